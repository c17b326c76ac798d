'''Look at what mnist_difference.py has trained: figures 3 and 8, and a split network next to a trained difference.

    python mnist_pictures.py FOLDER RUNS --out pictures

FOLDER holds mnist_test.npz, and RUNS what mnist_difference.py has written. Saves, for the trained networks that are
there, at the first seed:

- classes_*.png (figure 3): two threes, and what the streams of a difference see in them for each of the ten classes;
- digits_*.png (figure 8): a digit of each class, and the gradients of its own class;
- comparison_*.png: SplitLRP and SplitGrad of an ordinary network, and of the difference;

and strokes.csv: how much of each stream's gradient is on the strokes, and how much in the gaps between them. The page
beside the folder gets a table of it for each network; what you write around it is kept. It needs scikit-image, which
comes with pip install "zennit-dc[evaluation]".
'''
from pathlib import Path

import click
import pandas as pd
import torch
from matplotlib.figure import Figure
from mnist_difference import NETWORKS, TITLES, digits
from skimage.morphology import convex_hull_image
from tqdm import tqdm
from zennit.attribution import Gradient

from zennit_dc import SplitGrad, SplitLRP
from zennit_dc.attribution import class_relevance
from zennit_dc.evaluation.pages import command_line, number, page_beside, read_csv, save_csv, table, update_page
from zennit_dc.figures import color, stream_overlay
from zennit_dc.networks import Difference, DifferenceOfConvex


def load(runs, network, variant):
    '''A trained network in evaluation mode, or None if it is not there.'''
    found = sorted(runs.glob(f'{network}_{variant}_*.pt'), key=lambda path: int(path.stem.rpartition('_')[2]))
    if not found:
        return None
    model = NETWORKS[network](variant)
    model.load_state_dict(torch.load(found[0], map_location='cpu', weights_only=True))
    return model.eval()


def map_by(model, composite, images, target):
    '''The attributions of shape (count, 28, 28) of a class, or of a class for each image.'''
    targets = torch.as_tensor(target).expand(len(images))
    with Gradient(model, composite) as attributor:
        return torch.cat([
            attributor(some, class_relevance(classes))[1][:, 0]
            for some, classes in zip(images.split(100), targets.split(100))
        ])


def streams(model, images, target):
    '''What is shown in red and blue: of a difference the gradients of g and of h, each by what it sees; of another
    network the positive and the negative part of its gradient. Rounding errors, where one is zero, are left out.'''
    if isinstance(model, DifferenceOfConvex):
        pair = torch.stack([map_by(model, SplitGrad(0., stream), images, target) for stream in ('g', 'h')])
        g, h = torch.where(pair.abs() < 1e-5 * pair.abs().amax((0, 2, 3), keepdim=True), 0., pair)
        return g, -h if model.invert else h
    if isinstance(model, Difference):
        return map_by(model.g, None, images, target), map_by(model.h, None, images, target)
    gradient = map_by(model, None, images, target)
    return gradient.clamp(min=0.), (-gradient).clamp(min=0.)


def panels(rows, titles, labels):
    '''A figure of pictures in rows and columns.'''
    figure = Figure(figsize=(1.05 * len(rows[0]) + .9, 1.12 * len(rows) + .4), layout='constrained')
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for row, cells, label in zip(axes, rows, labels, strict=True):
        row[0].set_ylabel(label, fontsize='small')
        for axis, cell in zip(row, cells, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.imshow(cell.convert('RGB') if hasattr(cell, 'convert') else cell.numpy(), vmin=0, vmax=1, cmap='gray')
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize='small')
    return figure


def of_classes(model, images, classes=10):
    '''The streams for all classes. A digit's panels have one scale, so that classes can be compared.'''
    rows = []
    for image in images:
        g, h = streams(model, image.expand(classes, -1, -1, -1), torch.arange(classes))
        largest = torch.maximum(g.amax(), h.amax()).item()
        rows.append([image[0], *(stream_overlay(.6 * image[0], *pair, largest=largest) for pair in zip(g, h))])
    return panels(rows, ['', *map(str, range(classes))], [''] * len(rows))


def of_digits(models, images, labels):
    '''The streams of each digit's own class, by model.'''
    rows = [
        [stream_overlay(.6 * image[0], *pair) for image, *pair in zip(images, *streams(model, images, labels))]
        for model in models.values()
    ]
    return panels([*rows, list(images[:, 0])], map(str, labels.tolist()), [*models, ''])


def comparison(ordinary, difference, images, labels):
    '''The same methods for both networks, by digit: a column for each map. The ordinary one also has shifted streams.
    Maxout is taken in its convex form, as the winner-takes-all one leaves half of the gradient in each stream. The
    gradients of g and h have one scale.'''
    columns = {'': list(images[:, 0])}
    for (name, model), alphas in ((ordinary, (.4, 0.)), (difference, (0.,))):
        relevance = SplitLRP(pooling='convex')
        if isinstance(model, DifferenceOfConvex):
            maps = {
                'SplitLRP of g': map_by(model.g, relevance, images, labels),
                'SplitLRP of h': map_by(model.h, relevance, model.input_of_h(images), labels),
            }
        else:
            maps = {'SplitLRP': map_by(model, relevance, images, labels)}
        columns |= {f'{name}\n{title}': [color(map) for map in shown] for title, shown in maps.items()}
        for alpha in alphas:
            pair = [map_by(model, SplitGrad(alpha, stream, pooling='convex'), images, labels) for stream in 'gh']
            largest = torch.stack(pair).abs().amax((0, 2, 3)).tolist()
            for stream, shown in zip('gh', pair):
                columns[f'{name}\n{stream}, α = {alpha:g}'] = [
                    color(map, largest=end) for map, end in zip(shown, largest)
                ]
    return panels([*zip(*columns.values())], columns, [''] * len(images))


def regions(images):
    '''Where strokes, the gaps between them (the rest of their convex hull), and the surroundings are.'''
    stroke = images[:, 0] > .5
    hull = torch.stack([torch.from_numpy(convex_hull_image(each.numpy())) for each in stroke])
    return {'stroke': stroke, 'gaps': hull & ~stroke, 'elsewhere': ~hull & ~stroke}


def shares(map, places):
    '''How much of each map's positive part is in each region, on average over the images.'''
    mass = map.clamp(min=0.)
    total = mass.sum((1, 2))
    return [(torch.where(place, mass, 0.).sum((1, 2)) / total)[total > 0].mean().item() for place in places.values()]


COLUMNS = ['network', 'variant', 'stream', 'stroke', 'gaps', 'elsewhere']


def parts(folder):
    '''The tables of the page, of the numbers in a folder: for each network the shares of both streams.'''
    measured, found = read_csv(folder / 'strokes.csv'), {}
    for network, own in measured.dropna(subset='network').groupby('network', sort=False):
        own = own.assign(stream=own['stream'].replace({'positive': 'g', 'negative': 'h'}))
        order = list(dict.fromkeys(own['variant']))
        own = own.pivot(index='variant', columns='stream', values=['stroke', 'gaps']).loc[order]
        shown = [(place, stream) for stream in 'gh' for place in ('stroke', 'gaps')]
        found[network] = table(
            [network, *(f'{stream}: {place}' for place, stream in shown)],
            [[variant, *(number(each, 3) for each in row)] for variant, row in own.reindex(columns=shown).iterrows()]
        )
    return found


@click.command(help=__doc__.split('\n\n')[0])
@click.argument('folder', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument('runs', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option('--out', type=click.Path(file_okay=False, path_type=Path), required=True, help='Folder for the pictures.')
@click.option('--count', type=click.IntRange(1), default=1000, show_default=True, help='The digits that are measured.')
def main(folder, runs, out, count):
    '''Draw and measure all networks that are there.'''
    images, labels = digits(folder / 'mnist_test.npz')
    images = images / 255.
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[chosen], labels[chosen]
    places = regions(images[:count])
    rows = [(None, 'area', None, *shares(torch.ones_like(images[:count, 0]), places))]
    out.mkdir(parents=True, exist_ok=True)

    def save(figure, name):
        figure.savefig(out / name, dpi=130)
        click.echo(out / name)

    for network in NETWORKS:
        models = {TITLES[variant]: load(runs, network, variant) for variant in TITLES}
        models = {title: model for title, model in models.items() if model is not None}
        if not models:
            continue
        with torch.no_grad():
            right = torch.stack([model(images[:2000]).argmax(1) == labels[:2000] for model in models.values()]).all(0)
        of_class = [(right & (labels[:2000] == label)).nonzero()[:, 0] for label in range(10)]
        for label, each in enumerate(of_class):
            if len(each) < 2:
                raise click.ClickException(
                    f'of the class {label}, not even two digits are right for all networks of {runs}: train them longer'
                )
        first = torch.stack([each[0] for each in of_class])
        for title in ('DIC', 'DICIN', 'DMIN'):
            if title in models:
                save(of_classes(models[title], images[of_class[3][:2]]), f'classes_{network}_{title.lower()}.png')
        save(of_digits(models, images[first], labels[first]), f'digits_{network}.png')
        if {'None', 'DICIN'} <= {*models}:
            shown = first[[2, 3, 4, 5, 7]]
            figure = comparison(('None', models['None']), ('DICIN', models['DICIN']), images[shown], labels[shown])
            save(figure, f'comparison_{network}.png')
        split = {
            f'None, split (α = {alpha:g})': SplitGrad(alpha, 'g', pooling='convex') for alpha in (.4, 0.)
            if 'None' in models
        }
        for title, model in tqdm(models.items(), network, leave=False, disable=None):
            pair = streams(model, images[:count], labels[:count])
            names = ('g', 'h') if isinstance(model, Difference) else ('positive', 'negative')
            for name, map in zip(names, pair, strict=True):
                rows.append((network, title, name, *shares(map, places)))
        for title, composite in split.items():
            map = map_by(models['None'], composite, images[:count], labels[:count])
            rows.append((network, title, 'g', *shares(map, places)))
    save_csv(out / 'strokes.csv', pd.DataFrame(rows, columns=COLUMNS))
    update_page(page_beside(out), 'What the streams of trained differences see', command_line(), parts(out))
    click.echo('\n\n'.join(parts(out).values()))


if __name__ == '__main__':
    main()
