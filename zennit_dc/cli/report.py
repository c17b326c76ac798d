'''Six methods on fresh drawings: a figure, and a table of how often and how much they find the object.'''
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.classifiers import load_classifier
from ..data.parts import atomic_write
from ..data.progress import progress_bar
from ..demo.drawing import CLASSES, draw_batch
from ..evaluation.localisation import attribution_localisation, pointing_game
from ..figures import caption, color, side_by_side
from ..methods import METHODS, attributor, saliency_map


CHOSEN = [  # the methods that are known, as they are known, then those of the split form, as explain has them
    ('gradient', None, 'none'), ('lrp-gamma', None, 'none'), ('layercam', 'residual', 'none'),
    ('layercam', 'features', 'none'), ('splitgrad', None, 'likely'), ('splitcam', 'residual', 'likely'),
    ('splitcam', 'features', 'likely'), ('splitlrp', None, 'likely'), ('splitlrp', 'features', 'likely'),
]
ROWS = (0, 3, 4, 7, 8)
HEADING = (
    'red speaks for the class, blue against it; maps by SplitGrad, SplitCAM and SplitLRP are of the class rather than'
    ' the other likely ones'
)
COLUMNS = (
    'pointing game  the share of drawings in which the largest value of the map is on the object',
    '|map|          the same for the largest absolute value',
    'mass inside    the share of the map\'s positive part that is on the object, in the mean',
    'ms / image     the time for a map',
    'chance         what a map that knows nothing would have',
    '',
    'Mass inside favors maps at the input, which follow the outline of the object, as those of LRP-γ do; maps at a',
    'layer reach beyond it, as their grid is coarser. No column asks whether a map tells one class from another: see',
    '"zennit-dc explain" for that, and "zennit-dc evaluate" for more metrics.',
)


def report(out, count=200, device='cpu', dtype=torch.float32, seed=0, progress=True, batch_size=50):
    '''Explain fresh drawings by the methods of :py:data:`CHOSEN`.

    Writes ``demo.png``, a figure, and the drawings with their masks as ``images/CLASS/NUMBER.png`` and
    ``masks/CLASS/NUMBER.png`` into a folder.

    Parameters
    ----------
    out : path
        The folder.
    count : int, optional
        The number of drawings, at least 10.
    device : str or :py:class:`torch.device`, optional
        Where to compute.
    dtype : :py:class:`torch.dtype`, optional
        The precision to compute in.
    seed : int, optional
        The seed of the drawings, not negative: it is counted on from the seeds of the training and test drawings.
    progress : bool, optional
        Whether to show a progress bar.
    batch_size : int, optional
        The number of drawings in a batch.

    Returns
    -------
    str
        The table: for each method, what the class is explained against, the share of drawings in which the map's
        largest value is on the object (pointing game), the same for the map's absolute values, the mean share of the
        map's positive part that is on the object (mass inside the mask), and the time for an image.
    '''
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    classifier = load_classifier('demo').to(device, dtype)
    images, masks, labels = draw_batch(count, 2 + seed)
    save_drawings(out, images, masks, labels)
    inputs = torch.stack([classifier.preprocessing(Image.fromarray(image)) for image in images]).to(device, dtype)
    masks, targets = torch.from_numpy(masks), torch.from_numpy(labels)
    table, shown = [], {}
    with progress_bar(total=len(CHOSEN) * count, desc='maps', unit='map', shown=progress) as bar:
        for method, layer, against in CHOSEN:
            chosen, start = attributor(method, classifier, **({'layer': layer} if layer else {})), time.perf_counter()
            outputs, maps = maps_by(chosen, against, inputs, targets, batch_size, bar)
            milliseconds = f'{1000. * (time.perf_counter() - start) / count:.1f}'
            where = layer or 'input'
            shown[f'{METHODS[method].title} {where}'] = maps[list(ROWS)]
            table.append((METHODS[method].title, where, against, *scored(maps, masks), milliseconds))
    captions = [caption(classifier, outputs[row], int(labels[row])) for row in ROWS]
    save_figure(out / 'demo.png', captions, images[list(ROWS)], shown)
    right = np.mean([int(output.argmax()) == label for output, label in zip(outputs, labels)])
    chance = float(masks.double().mean())
    table.append(('chance', '', '', chance, chance, chance, ''))
    return '\n'.join([
        f'{count} drawings of {len(CLASSES)} classes, {right:.1%} of them classified correctly; explained is the'
        ' drawn class, by itself (none) or rather than the other likely ones', '', *format_table(table), '',
        *COLUMNS, '',
        f'The figure is {out / "demo.png"}, the drawings are in {out / "images"}.'
    ])


def maps_by(chosen, against, inputs, targets, batch_size, bar):
    '''The outputs for images and the maps of their classes by an attributor, in double precision on the CPU.

    Parameters
    ----------
    chosen : :py:class:`zennit.attribution.Attributor`
        The attributor.
    against : str
        What the classes are explained against.
    inputs : :py:class:`torch.Tensor`
        The images of shape (images, channels, height, width).
    targets : :py:class:`torch.Tensor`
        The class of each image.
    batch_size : int
        The number of images in a batch.
    bar : :py:class:`tqdm.tqdm`
        The progress bar of maps.
    '''
    outputs, maps = [], []
    for batch in torch.arange(len(inputs)).split(batch_size):
        output, map = saliency_map(chosen, inputs[batch], targets[batch], against=against)
        outputs.append(output.cpu().double())
        maps.append(map.cpu().double())
        bar.update(len(batch))
    return torch.cat(outputs), torch.cat(maps)


def scored(maps, masks):
    '''The means over maps of the columns from the pointing game to the mass inside.'''
    scores = (
        pointing_game(maps, masks), pointing_game(maps.abs(), masks),
        attribution_localisation(maps, masks, positive=True),
    )
    return [float(score.mean()) for score in scores]


def save_figure(path, captions, images, shown):
    '''Save a figure with a row for each image, of whose maps ``shown`` has those of each column by its title.'''
    rows = [
        (text, image, {title: color(maps[row]) for title, maps in shown.items()})
        for row, (text, image) in enumerate(zip(captions, images))
    ]
    with atomic_write(path) as temporary:
        side_by_side(rows, HEADING).savefig(temporary, format='png', dpi=70)


def save_drawings(out, images, masks, labels):
    '''Save drawings and their masks in folders by class, in place of an earlier run's.'''
    for name, kind in itertools.product(CLASSES, ('images', 'masks')):
        for path in (out / kind / name.replace(' ', '_')).glob('[0-9][0-9][0-9][0-9][0-9].png'):
            path.unlink()
    for index, (image, mask, label) in enumerate(zip(images, masks, labels)):
        name = Path(CLASSES[label].replace(' ', '_'), f'{index:05d}.png')
        for kind, array in (('images', image), ('masks', np.uint8(255) * mask)):
            (out / kind / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(out / kind / name) as temporary:
                Image.fromarray(array).save(temporary, 'png')


def format_table(rows):
    '''The lines of a table.'''
    header = ('method', 'layer', 'against', 'pointing game', '|map|', 'mass inside', 'ms / image')
    cells = [header, *([f'{cell:.3f}' if isinstance(cell, float) else cell for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return [
        '  '.join(f'{cell:{side}{width}}' for cell, side, width in zip(row, '<<<>>>>', widths)).rstrip()
        for row in cells
    ]
