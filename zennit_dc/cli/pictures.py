'''The figure and the files that the command explain makes of maps.'''
import json
import os
import re
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..attribution.support import blurred
from ..data.files import UnreadableImage
from ..data.images import read_image
from ..data.parts import atomic_write
from ..data.progress import progress_bar
from ..figures import Bar, blend, color, largest_shown, number, save, side_by_side
from ..methods import METHODS
from .explanations import FOR_THE_CLASS, SENSITIVITIES


UNSIGNED = (
    'saliency', 'layercam', 'gradcam++', 'cafo', 'caso', 'smooth-cafo', 'smooth-caso', 'binary-mask', 'image-center'
)
'''The methods whose maps are never negative.'''
GRAINY = (
    *SENSITIVITIES, 'saliency', 'input-x-gradient', 'integrated-gradients', 'gradient-shap', 'deeplift', 'cafo', 'caso',
    'smooth-cafo', 'smooth-caso'
)
'''The methods whose maps at the input change from pixel to pixel, as gradients do.'''
LENGTH = 30
'''The number of rows of a figure. Of many more, no picture could be saved: its sides have up to 65535 pixels, and 16383
in WebP.'''
FOOTER = (
    'Each map has its own scale. The numbers at a color bar are values of single pixels: no shares of the score, to'
    ' which they need not add up.'
)
'''What a figure says of its color bars.'''


class Look(NamedTuple):
    '''How maps are drawn.

    Parameters
    ----------
    cmap : str
        Zennit's name of the color map.
    overlay : bool or None
        Whether to lay maps over the images. None is for maps at a layer alone.
    percentile : float or None
        The percentile of the absolute values that gets the color map's end. None is 99 at the input and 100 at a layer.
    smoothing : float or None
        The standard deviation of the blur in pixels. None is a hundredth of the shorter side for grainy maps at the
        input, and 0 for others.
    '''
    cmap: str = 'bwr'
    overlay: bool | None = None
    percentile: float | None = None
    smoothing: float | None = None


class Picture(NamedTuple):
    '''A map as it is shown.

    Parameters
    ----------
    images : dict[str, :py:class:`PIL.Image.Image`]
        Its images by the endings of their names. The figure has the last one.
    color_bar : :py:class:`~zennit_dc.figures.Bar`
        The color bar.
    note : str
        What was done to draw it.
    '''
    images: dict[str, Image.Image]
    color_bar: Bar
    note: str


class Rows:
    '''The rows of a figure, one for each image and class.

    Parameters
    ----------
    explanations : :py:class:`~zennit_dc.cli.explanations.Explanations`
        Whose maps they show.
    look : :py:class:`Look`
        How maps are drawn.
    '''
    def __init__(self, explanations, look):
        self.explanations, self.look = explanations, look
        self.rows, self.color_bars, self.notes = [], [], []

    @property
    def count(self):
        '''The number of maps.'''
        return sum(map(len, self.color_bars))

    def add(self, text, photo, pictures, notes):
        '''Add a row.

        Parameters
        ----------
        text : str
            What stands beside the image.
        photo : :py:class:`numpy.ndarray`
            The image.
        pictures : dict[str, :py:class:`Picture`]
            Its maps by their titles.
        notes : dict[str, str]
            What is said of them, besides what was done to draw them.
        '''
        shown = {title: [*picture.images.values()][-1] for title, picture in pictures.items()}
        said = {title: '\n'.join(filter(None, [picture.note, notes.get(title)])) for title, picture in pictures.items()}
        self.rows.append((text, photo, self.by_column(shown, 'no map, see the error')))
        self.color_bars.append(self.by_column({title: picture.color_bar for title, picture in pictures.items()}))
        self.notes.append(self.by_column(said))

    def by_column(self, found, missing=None):
        '''What is known by titles, by the titles of the figure's columns, which name the layer and a stream that was
        chosen; with what stands for those that are not known, if that is given.'''
        columns = {}
        for title, (method, layer) in self.explanations.methods.items():
            if title in found or missing is not None:
                place, stream = 'the input' if layer is None else layer, self.explanations.own_streams[title]
                chosen = '' if stream is None else f'\nstream {stream}'
                columns[f'{METHODS[method].title}\nat {place}{chosen}'] = found.get(title, missing)
        return columns

    def draw(self, title, saliency, photo):
        '''The picture of a map of shape (height, width).'''
        method, layer = self.explanations.methods[title]
        at_input = self.explanations.is_at_input(title)
        width = self.look.smoothing
        if width is None:
            width = .01 * min(saliency.shape) if at_input and method in GRAINY else 0.
        is_absolute = width > 0. and at_input and method in SENSITIVITIES
        note = ''
        if width > 0.:
            saliency = blurred((saliency.abs() if is_absolute else saliency)[None], width)[0]
            note = f'{"absolute values, " if is_absolute else ""}blurred by {number(width)} pixels'
        percentile = (99. if at_input else 100.) if self.look.percentile is None else self.look.percentile
        largest = largest_shown(saliency, percentile)
        images = {'': color(saliency, self.look.cmap, largest)}
        if layer is not None if self.look.overlay is None else self.look.overlay:
            images['_overlay'] = blend(photo, saliency, self.look.cmap, largest=largest)
        ends = ('', 'matters') if is_absolute else self.ends(title)
        return Picture(images, Bar(largest, *ends, largest < saliency.abs().max().item()), note)

    def ends(self, title):
        '''What the ends of the colors mean.'''
        method, stream = self.explanations.methods[title][0], self.explanations.own_streams[title]
        if method in UNSIGNED:
            return '', 'matters'
        if stream == 'combined':
            return 'negative stream', 'positive stream'
        if stream == 'negative':
            return 'against', 'for, by the\nnegative stream'
        if stream not in FOR_THE_CLASS:
            return f'lowers {stream[-1]}', f'raises {stream[-1]}'
        return 'against the class', 'for it'

    def save(self, path, folder, heading):
        '''Save the figure. Rows for which it has no room go on in further figures in a folder, from which those of an
        earlier run are removed. The number of further figures is returned.'''
        starts = range(0, len(self.rows), LENGTH)
        for index, start in enumerate(starts, 1):
            rows, bars, notes = (each[start:start + LENGTH] for each in (self.rows, self.color_bars, self.notes))
            figure = side_by_side(rows, heading, bars, self.look.cmap, notes, FOOTER)
            save(figure, path if index == 1 else page(path, folder, index))
        index = len(starts) + 1
        while (left := page(path, folder, index)).exists():
            left.unlink()
            index += 1
        return len(starts) - 1


def page(path, folder, index):
    '''The path of a figure that continues another one, from the second on.'''
    return folder / f'{path.stem}_{index}{path.suffix}'


def explain_images(images, out, folder, explanations, heading, look, save_arrays, place):
    '''Save the figure and the maps of images, and how good they are in the file ``support.json`` in their folder. Where
    a method has no map of an image, the figure says why, and so does an error at the end.

    Parameters
    ----------
    images : sequence of path
        The files.
    out, folder : path
        The figure, and the folder of the maps.
    explanations : :py:class:`~zennit_dc.cli.explanations.Explanations`
        What to compute.
    heading : str
        The figure's heading.
    look : :py:class:`Look`
        How maps are drawn.
    save_arrays : bool
        Whether to save the maps as arrays, too.
    place : dict
        Where and in which dtype to compute, as :py:meth:`torch.Tensor.to` takes it.

    Returns
    -------
    tuple of int
        The number of maps, and the number of further figures in the folder, see :py:meth:`Rows.save`.

    Raises
    ------
    UnreadableImage
        If images cannot be read, before the first map is computed.
    Exception
        What the first map raised that failed, if there is none of the first image.
    '''
    classifier, rows = explanations.classifier, Rows(explanations, look)

    def read(path):
        return classifier.preprocessing(read_image(path, classifier.mode))[None].to(**place)

    inputs = read_all(images, read)
    names = distinct([shortened(path.stem) for path in images])
    with progress_bar(total=len(inputs) * explanations.most, desc='maps', unit='map') as progress:
        for path, name, input in zip(images, names, inputs, strict=True):
            for target, text, ending, saliencies in explanations.of(path, input, progress):
                folder.mkdir(parents=True, exist_ok=True)
                photo = classifier.pixels(input[0]).numpy()
                pictures = {title: rows.draw(title, saliency, photo) for title, saliency in saliencies.items()}
                for title, picture in pictures.items():
                    file = folder / f'{name}{ending}_{file_name(title)}'
                    save_map(file, picture.images, saliencies[title], save_arrays)
                progress.set_postfix_str('hiding parts')
                notes = explanations.notes(path, input, target, ending, saliencies, look.cmap)
                rows.add(text, photo, pictures, notes)
    save_supports(folder / 'support.json', explanations)
    return rows.count, rows.save(out, folder, heading)


def read_all(paths, read):
    '''What a function makes of each of some image files. An UnreadableImage names all of those that it cannot read.'''
    found, errors = [], []
    for path in paths:
        try:
            found.append(read(path))
        except UnreadableImage as error:
            errors.append((path, error))
    if len(errors) > 1:
        others = ', '.join(str(path) for path, _ in errors[1:])
        raise UnreadableImage(f'{errors[0][1]}; nor can {others}') from errors[0][1]
    if errors:
        raise errors[0][1]
    return found


def save_supports(path, explanations):
    '''Save how good maps are as JSON, or remove what an earlier run has left where this one does not ask.'''
    if not explanations.asks:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        json.dump(explanations.supports, file, indent=1, ensure_ascii=False, allow_nan=False)


def save_map(path, images, saliency, as_array):
    '''Save a map as images by the endings of their names, and as an array if asked.'''
    for ending, image in images.items():
        with atomic_write(path.with_name(f'{path.name}{ending}.png')) as temporary:
            image.save(temporary, 'png')
    if as_array:
        with atomic_write(path.with_name(f'{path.name}.npy')) as temporary, open(temporary, 'wb') as file:
            np.save(file, saliency.detach().float().cpu().numpy(), allow_pickle=False)


def distinct(names):
    '''Names that are all different.'''
    chosen = []
    for index, name in enumerate(names, 1):
        candidates = [name] if names.count(name) == 1 else []
        endings = ('', *(f'-{more}' for more in range(len(names))))
        candidates += [f'{name}-{index}{ending}' for ending in endings]
        chosen.append(next(each for each in candidates if each not in {*chosen, *names[index:]}))
    return chosen


def shortened(name):
    '''A name, or its beginning, that leaves room for what is added in file systems whose names have 255 bytes.'''
    encoded = os.fsencode(name)
    return name if len(encoded) <= 150 else encoded[:150].decode(errors='ignore')


def file_name(title):
    '''A title as part of a file's name.'''
    return re.sub(r'[^\w.-]+', '-', title.replace('γ', 'gamma'))
