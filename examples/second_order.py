'''What the loss's curvature adds to a map: CAFO and CASO on photographs, and what the article says of them.

    python second_order.py PHOTOGRAPHS squeezenet1_0.pt --outlines masks.json --out second_order

PHOTOGRAPHS is a folder of images whose names begin with the index of the class and an underscore, as 284_cat.jpg.
Writes the numbers of each photograph, and the tables of them, as CSV into the folder, with confidence.png, after the
article's figure 1, and examples.png and path.png, after its figures 2 and 3; and the tables into the page beside it,
second_order.md, in which what you write around them is kept. It takes about ten minutes on a CPU.
'''
import itertools
import time
from functools import partial
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from spectra import images_of
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from zennit.attribution import Gradient, SmoothGrad

from zennit_dc.attribution import CAFO, CASO, SmoothCAFO, SmoothCASO, Sparsity, class_relevance, cross_entropy, shown
from zennit_dc.data.classifiers import load_classifier
from zennit_dc.evaluation.data import Polygons
from zennit_dc.evaluation.metrics import attribution_localisation, pointing_game
from zennit_dc.evaluation.pages import command_line, number, page_beside, read_csv, save_csv, table, update_page
from zennit_dc.figures import save


SHARES = (.5, .75, .9, .95, .98)
BINS = (0., .6, .9, .99, 1.)


class Normalized(nn.Module):
    '''A model of pixels in [0, 1].'''
    def __init__(self, model, preprocessing):
        super().__init__()
        self.model = model
        for name in ('mean', 'std'):
            self.register_buffer(name, torch.tensor(getattr(preprocessing, name)).view(-1, 1, 1))

    def forward(self, x):
        return self.model((x - self.mean) / self.std)

    def pixels(self, input):
        '''The pixels of a normalized input.'''
        return input * self.std + self.mean


class OnSupport:
    '''A loss, as a function of some of the image's entries.'''
    def __init__(self, loss, support):
        self.loss, self.support = loss, support
        self.eigenpairs = type(loss).eigenpairs.__get__(self)

    def gradient(self):
        return self.loss.gradient() * self.support

    def product(self, directions):
        return self.loss.product(directions * self.support) * self.support


def signed_map(kind, model, image, **parameters):
    '''The Δ of the predicted class.'''
    return kind(model, signed=True, **parameters)(image, class_relevance())[1].double()


def unit(map):
    '''A map of length one.'''
    return (map / map.norm()).flatten()


def angle(first, second):
    '''The cosine of two maps.'''
    return float(unit(first) @ unit(second))


def difference(model, image, **parameters):
    '''The distance of the maps of CAFO and CASO, of length one and without sparsity.'''
    first, second = signed_map(CAFO, model, image, penalty=0.), signed_map(CASO, model, image, penalty=0., **parameters)
    return float((unit(first) - unit(second)).norm())


def confidence_table(model, images, pixel_model):
    '''For each photograph the confidence, the spectrum, and how much CAFO and CASO differ without sparsity.'''
    rows = []
    for image in tqdm(images.split(1), desc='confidence', unit='image', disable=None):
        loss = cross_entropy(model, image)
        values, vectors = loss.eigenpairs(4, 10)
        pixels = pixel_model.pixels(image)
        differences = difference(model, image, margin=.1), difference(pixel_model, pixels, margin=0., offset=10.)
        rows.append((
            loss.probability.item(), *(values[0] * loss.log_scale.exp()).tolist(),
            abs(angle(loss.gradient(), vectors[:, 0])), *differences
        ))
    return pd.DataFrame(rows, columns=['confidence', 'L', 'λ_2', 'λ_3', 'λ_4', 'cos(g, u_1)', 'margin', 'article'])


def binned(confidence):
    '''The medians of the confidence table over ranges of confidence, and rank correlations.'''
    rows = []
    for low, high in itertools.pairwise(BINS):
        own = confidence[(confidence['confidence'] >= low) & (confidence['confidence'] < (high if high < 1. else 2.))]
        rows.append((
            f'{low:g} to {high:g}', len(own), *(own[name].median() for name in ('L', 'cos(g, u_1)')),
            (own['λ_2'] / own['L']).median(), *(own[name].median() for name in ('margin', 'article'))
        ))
    rows.append((
        'rank correlation', len(confidence), *(spearmanr(confidence['confidence'], values)[0] for values in (
            confidence['L'], confidence['cos(g, u_1)'], confidence['λ_2'] / confidence['L'], confidence['margin'],
            confidence['article']
        ))
    ))
    return pd.DataFrame(rows, columns=['confidence', 'images', 'L', 'cos(g, u_1)', 'λ_2 / L', 'margin', 'article'])


def rank_one_errors(d, c, confidence):
    '''The relative errors of p_y/s ggᵀ and of the article's ggᵀ/s as the Hessian, for random class gradients and equal
    competitors.'''
    W = torch.randn(d, c, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.full((c,), (1. - confidence) / (c - 1), dtype=torch.float64)
    p[0] = confidence
    g, factor = W @ (p - F.one_hot(torch.tensor(0), c)), torch.diag(p.sqrt()) - torch.outer(p, p.sqrt())
    H = W @ factor @ factor.T @ W.T
    return [
        ((H - weight / (1. - confidence) * torch.outer(g, g)).norm() / H.norm()).item() for weight in (confidence, 1.)
    ]


def rank_one_table():
    '''How well a matrix of rank one is the Hessian, over the numbers of entries and classes.'''
    rows = [
        (d, c, *rank_one_errors(d, c, .5), rank_one_errors(d, c, .999)[0], min(d, c) ** -.5)
        for d, c in ((40, 10), (400, 10), (400, 100), (400, 1000), (2000, 1000))
    ]
    return pd.DataFrame(rows, columns=[
        'd', 'c', 'p_y/s ggᵀ, p_y = 0.5', 'ggᵀ/s, p_y = 0.5', 'p_y/s ggᵀ, p_y = 0.999', '1/√min(d, c)'
    ])


def path_table(model, images):
    '''How much CASO and CAFO differ over the share of pixels without importance.'''
    rows = []
    for image in tqdm(images.split(1), desc='sparsity', unit='image', disable=None):
        loss = cross_entropy(model, image)
        largest = loss.eigenpairs(1, 10)[0].item()
        for share in SHARES:
            first, second = (signed_map(kind, model, image, penalty=Sparsity(share)) for kind in (CAFO, CASO))
            supports = first.abs().amax(1) > 0., second.abs().amax(1) > 0.
            shared = (supports[0] & supports[1]).sum() / (supports[0] | supports[1]).sum()
            rest = OnSupport(loss, second != 0.).eigenpairs(1, 10)[0].item()
            rows.append((share, loss.probability.item(), angle(first, second), shared.item(), rest / largest))
    return pd.DataFrame(rows, columns=['η', 'confidence', 'cosine', 'overlap of supports', 'λ_max / L'])


def over_shares(path):
    '''The least, the median and the largest value of the path's columns for each share.'''
    found = path.drop(columns='confidence').groupby('η').agg(['min', 'median', 'max'])
    found.columns = [f'{name}, {kind}' for name, kind in found.columns]
    return found.reset_index()


def copies_table(model, images, levels=(.02, .05, .15), n_iter=20):
    '''For each photograph and noise level the share of noisy copies that the network misclassifies, and what weight
    they have in the smooth versions.'''
    rows = []
    for image in tqdm(images.split(1), desc='copies', unit='image', disable=None):
        for level in levels:
            torch.manual_seed(0)
            copies = torch.cat([*SmoothCAFO(model, noise_level=level, n_iter=n_iter).noisy(image), image])
            with torch.no_grad():
                p = model(copies).double().softmax(1)
            target = p[-1].argmax()
            weights, wrong = 1. - p[:, target], p.argmax(1) != target
            rows.append((level, wrong.double().mean().item(), ((weights * wrong).sum() / weights.sum()).item()))
    return pd.DataFrame(rows, columns=['noise level', 'misclassified copies', 'their weight'])


METHODS = {
    'gradient of the logit': Gradient,
    'gradient of the loss': partial(CAFO, penalty=0.),
    **{f'CAFO, η = {share:g}': partial(CAFO, penalty=Sparsity(share)) for share in (.75, .9, .98)},
    'CASO, η = 0': partial(CASO, penalty=0., tolerance=1e-2),
    'CASO, η = 0.9': partial(CASO, penalty=Sparsity(.9), tolerance=1e-2),
    'SmoothGrad, 10 copies': partial(SmoothGrad, noise_level=.15, n_iter=10),
    'SmoothCAFO, η = 0, 10 copies': partial(SmoothCAFO, penalty=0., n_iter=10),
}


def localisation_table(classifier, samples):
    '''Where the maps of the labels are, by outlines.'''
    rows = []
    for name, method in tqdm(METHODS.items(), desc='localisation', disable=None):
        for place, sample in enumerate(samples):
            torch.manual_seed(0)
            map = method(classifier.model)(sample.input[None], class_relevance(sample.label))[1].detach().abs().sum(1)
            scores = [float(score(map, sample.mask[None])[0]) for score in (pointing_game, attribution_localisation)]
            rows.append((name, place, *scores))
    return pd.DataFrame(rows, columns=['map', 'image', 'pointing game', 'mass inside'])


COSTS = {
    'CAFO': CAFO, 'CASO, tolerance 1e-2': partial(CASO, tolerance=1e-2), 'CASO, tolerance 1e-3': CASO,
    'CASO, 10 classes, 1e-2': partial(CASO, classes=10, tolerance=1e-2),
    'CASO, 50 classes, 1e-2': partial(CASO, classes=50, tolerance=1e-2),
    'SmoothCAFO, 10 copies': partial(SmoothCAFO, n_iter=10),
    'SmoothCASO, 10 copies, 1e-2': partial(SmoothCASO, n_iter=10, tolerance=1e-2),
}


def seconds(attributor, image):
    '''The time of a call.'''
    start = time.perf_counter()
    attributor(image.clone(), class_relevance())
    return time.perf_counter() - start


def cost_table(model, images):
    '''The time of each method, in gradients of the same image.'''
    attributors = {name: make(model) for name, make in COSTS.items()}
    for each in (Gradient(model), *list(attributors.values())[:2]):
        seconds(each, images[:1])  # what is done once
    rows = []
    for name, attributor in tqdm(attributors.items(), desc='cost', disable=None):
        ratios = [
            seconds(attributor, image) / np.median([seconds(Gradient(model), image) for _ in range(5)])
            for image in images.split(1)
        ]
        rows.append((name, np.median(ratios), min(ratios), max(ratios)))
    return pd.DataFrame(rows, columns=['method', 'median', 'least', 'most'])


def summaries(raw):
    '''The tables of the page, of what was measured of each photograph.'''
    found = {
        'confidence': binned(raw['confidence']), 'rank_one': rank_one_table(), 'sparsity': over_shares(raw['sparsity']),
        'copies': raw['copies'].groupby('noise level').mean().reset_index(), 'cost': raw['cost'],
    }
    if 'localisation' in raw:
        scores = raw['localisation'].drop(columns='image')
        found['localisation'] = scores.groupby('map', sort=False).mean().reset_index()
    return found


def rounded(row, names, digits=2):
    '''Columns of a row for people, those of a name with min, median and max in one cell.'''
    return [number(row[name], digits) if name in row else ', '.join(
        number(row[f'{name}, {kind}'], digits) for kind in ('min', 'median', 'max')
    ) for name in names]


def parts(folder):
    '''The tables of the page, of those in a folder.'''
    found = {path.stem: read_csv(path).to_dict('records') for path in (folder / 'tables').glob('*.csv')}
    shown = {
        'confidence': table(['confidence', 'n', 'L', 'cos(g, u_1)', 'λ_2 / L', '1.1 L/2', 'L/2 + 10'], [
            [row['confidence'], row['images'], *rounded(row, ('L', 'cos(g, u_1)', 'λ_2 / L', 'margin', 'article'), 3)]
            for row in found['confidence']
        ]),
        'rank_one': table(
            ['d', 'c', 'p_y/s ggᵀ, 0.5', 'ggᵀ/s, 0.5', 'p_y/s ggᵀ, 0.999', '1/√min(d, c)'],
            [[row['d'], row['c'], *rounded(row, list(row)[2:], 3)] for row in found['rank_one']]
        ),
        'sparsity': table(['η', 'cosine', 'overlap of supports', 'λ_max / L'], [
            [number(row['η']), *rounded(row, ('cosine', 'overlap of supports', 'λ_max / L'), 3)]
            for row in found['sparsity']
        ]),
        'copies': table(['noise level', 'misclassified copies', 'their weight'], [
            rounded(row, row) for row in found['copies']
        ]),
        'cost': table(['method', 'gradients, median', 'least', 'most'], [
            [row['method'], *rounded(row, ('median', 'least', 'most'))] for row in found['cost']
        ]),
    }
    if 'localisation' in found:
        shown['localisation'] = table(['map', 'pointing game', 'mass inside'], [
            [row['map'], *rounded(row, ('pointing game', 'mass inside'), 3)] for row in found['localisation']
        ])
    return shown


def confidence_figure(confidence):
    '''The difference of CASO and CAFO over the confidence, after the article's figure 1, and the spectrum.'''
    picture = Figure(figsize=(12., 4.), layout='constrained')
    left, right = picture.subplots(1, 2)
    for name, marker, title in (('margin', 'o', 'λ2 = 1.1 L/2'), ('article', 'x', 'λ2 = L/2 + 10, pixels in [0, 1]')):
        left.plot(confidence['confidence'], confidence[name], marker, markersize=4, label=title)
    left.set(xlabel='confidence', ylabel='|CASO − CAFO|, unit vectors')
    left.legend()
    chosen = confidence.sort_values('confidence').iloc[[0, len(confidence) // 2, -1]]
    for place, row in enumerate(chosen.to_dict('records')):
        values = np.array([row[name] for name in ('L', 'λ_2', 'λ_3', 'λ_4')]) / row['L']
        right.semilogy(range(1, 5), np.maximum(values, 1e-9), 'os^'[place] + '-', label=f'p = {row["confidence"]:.4f}')
    right.set(xlabel='eigenvalue', ylabel='share of the largest', xticks=range(1, 5))
    right.legend()
    return picture


def examples_figure(classifier, images):
    '''The maps of CAFO and CASO for some photographs, and their difference, after the article's figure 2.'''
    picture = Figure(figsize=(7.5, 2.6 * len(images)), layout='constrained')
    for row, image in zip(picture.subplots(len(images), 3, squeeze=False), images.split(1)):
        maps = [signed_map(kind, classifier.model, image, penalty=0.) for kind in (CAFO, CASO)]
        maps.append((unit(maps[1]) - unit(maps[0])).view_as(maps[0]))
        p, target = classifier.model(image).detach().softmax(1)[0].max(0)
        name = f'{classifier.category(int(target))}, p = {p:.4f}'
        for axis, map, title in zip(row, maps, (f'{name}: CAFO', 'CASO', 'difference of unit vectors')):
            axis.imshow(shown(map)[0], cmap='gray', vmin=0., vmax=1.)
            axis.set_title(title, fontsize=8)
        for axis in row:
            axis.axis('off')
    return picture


def path_figure(classifier, image):
    '''One photograph's maps over the share of pixels without importance, after the article's figure 3.'''
    picture = Figure(figsize=(2.3 * (1 + len(SHARES)), 4.8), layout='constrained')
    grid = picture.subplots(2, 1 + len(SHARES))
    for row, kind in zip(grid, (CAFO, CASO)):
        for axis, share in zip(row, (0., *SHARES)):
            axis.imshow(shown(signed_map(kind, classifier.model, image, penalty=Sparsity(share)))[0], cmap='gray')
            axis.set_title(f'{kind.__name__}, η = {share:g}', fontsize=8)
            axis.axis('off')
    return picture


@click.command()
@click.argument('photographs', type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.argument('weights', type=click.Path(path_type=Path))
@click.option('--outlines', type=click.Path(path_type=Path), help='Outlines of objects, for the localisation.')
@click.option('--out', type=click.Path(path_type=Path, file_okay=False), default='second_order', help='The folder.')
@click.option('--images', 'count', type=click.IntRange(3), default=50, help='The number of photographs.')
def main(photographs, weights, outlines, out, count):
    '''Compare CAFO and CASO with SqueezeNet on PHOTOGRAPHS.'''
    torch.set_num_threads(1)
    classifier = load_classifier('squeezenet1_0', weights)
    model, (images, _) = classifier.model, images_of(photographs, classifier, count)
    confidence = confidence_table(model, images, Normalized(model, classifier.preprocessing).eval())
    by_confidence = images[np.argsort(confidence['confidence'].tolist())]
    some = by_confidence[np.linspace(0, len(images) - 1, min(7, len(images))).astype(int)]
    raw = {
        'confidence': confidence, 'sparsity': path_table(model, some), 'copies': copies_table(model, images),
        'cost': cost_table(model, some),
    }
    if outlines is not None:
        data = Polygons(classifier, photographs, outlines)
        samples = [data.sample(index) for index in range(min(len(data), count))]
        raw['localisation'] = localisation_table(classifier, samples)
    for name, found in raw.items():
        save_csv(out / f'{name}.csv', found)
    for name, found in summaries(raw).items():
        save_csv(out / 'tables' / f'{name}.csv', found)
    save(confidence_figure(confidence), out / 'confidence.png')
    save(examples_figure(classifier, some[[0, 1, -2, -1]] if len(some) > 3 else some), out / 'examples.png')
    save(path_figure(classifier, some[:1]), out / 'path.png')
    update_page(page_beside(out), f'CAFO and CASO, {len(images)} photographs', command_line(), parts(out))
    click.echo('\n\n'.join(parts(out).values()))


if __name__ == '__main__':
    main()
