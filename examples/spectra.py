'''Tell how smooth the maps of a network are, and how far from its gradient, on photographs.

    python spectra.py PHOTOGRAPHS squeezenet1_0.pt --out spectra

PHOTOGRAPHS is a folder of images whose names begin with the index of the class and an underscore, as 284_cat.jpg.
Writes all numbers as CSV and spectra.png, the curve of complexity and faithfulness, into the folder, and the tables
into the page beside it, spectra.md, in which what you write around them is kept. It takes some minutes.
'''
import re
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from tqdm import tqdm
from zennit.attribution import Gradient, SmoothGrad
from zennit.composites import BetaSmooth

from zennit_dc import Balanced, NotInPlace, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.data.classifiers import load_classifier
from zennit_dc.data.images import read_image
from zennit_dc.evaluation.metrics import pixel_flipping
from zennit_dc.evaluation.pages import command_line, number, page_beside, read_csv, save_csv, table, update_page
from zennit_dc.evaluation.spectra import (
    expected_frequency,
    frequency_gap,
    gradient_gap,
    published_expected_frequency,
)
from zennit_dc.figures import save
from zennit_dc.methods import attributor


ALPHAS = (.5, .45, .4, .35, .3, 0.)
LAYERS = ('features.4', 'features.7', 'features.9', 'features.12')


def images_of(folder, classifier, count):
    '''Photographs, and their classes as relevance.'''
    paths = [path for path in sorted(folder.iterdir()) if re.match(r'\d+_', path.name)][:count]
    if not paths:
        raise click.ClickException(f'{folder} has no images whose names begin with a class and an underscore')
    classes = [int(path.name.partition('_')[0]) for path in paths]
    inputs = torch.stack([classifier.preprocessing(read_image(path)) for path in paths])
    return inputs, torch.eye(len(classifier.categories))[classes]


def attribution_by(method, images, targets):
    '''The attributions of images, one after the other.'''
    return torch.cat([method(*pair)[1].detach() for pair in zip(images.split(1), targets.split(1))])


def published_table():
    '''What the published statistic and the expected frequency are for noise, blurred, or with zeros.'''
    noise = np.random.default_rng(0).normal(size=(8, 224, 224))
    kept = np.random.default_rng(1).random(noise.shape)
    maps = {
        'white noise': noise,
        **{f'blurred, σ = {width}': gaussian_filter(noise, (0, width, width), mode='wrap') for width in (1, 2, 8, 16)},
        **{f'{share:.0%} set to zero': noise * (kept > share) for share in (.5, .9, .98)},
    }
    rows = [(name, expected_frequency(each).mean(), 1e5 * published_expected_frequency(each).mean())
            for name, each in maps.items()]
    return pd.DataFrame(rows, columns=['map', 'EF', 'published × 1e5'])


def input_table(classifier, images, targets):
    '''Complexity and faithfulness at the input: the gap is over all channels.'''
    model = classifier.model
    methods = {
        'Gradient': Gradient(model),
        **{f'SplitGrad, α = {alpha}': Gradient(model, SplitGrad(alpha)) for alpha in ALPHAS},
        'SplitGrad, Balanced()': Gradient(model, SplitGrad()),
        'SmoothGrad, 0.15, 16 copies': SmoothGrad(model, noise_level=.15, n_iter=16),
        'Integrated Gradients': attributor('integrated-gradients', classifier),
        'SplitLRP, positive': Gradient(model, SplitLRP(stream='positive')),
        **{f'BetaSmooth, β = {beta}, in place': Gradient(model, BetaSmooth(beta)) for beta in (1., 10.)},
        **{f'BetaSmooth, β = {beta}, NotInPlace()': Gradient(model, BetaSmooth(beta, canonizers=[NotInPlace()]))
           for beta in (1., 10., 100.)},
    }
    reference, rows = attribution_by(methods['Gradient'], images, targets), []
    for name, method in tqdm(methods.items(), desc='input', disable=None):
        torch.manual_seed(0)
        map = attribution_by(method, images, targets)
        rows.append((name, expected_frequency(map.sum(1)).mean(),
                     frequency_gap(map.sum(1), reference.sum(1)).mean(), gradient_gap(map, reference).mean()))
    return pd.DataFrame(rows, columns=['map', 'EF', 'ΔEF', 'gap'])


def layer_table(classifier, images, targets):
    '''Complexity and faithfulness at layers: the reference is gradient × activation, summed over channels.'''
    rows = []
    for layer in tqdm(LAYERS, desc='layers', disable=None):
        def cam(alpha, layer=layer):
            return Gradient(classifier.model, SplitCAM(layer, alpha))

        methods = {
            **{f'SplitCAM, α = {alpha}': cam(alpha) for alpha in ALPHAS}, 'SplitCAM, Balanced()': cam(Balanced()),
            'LayerCAM': attributor('layercam', classifier, layer=layer),
            'GradCAM': attributor('gradcam', classifier, layer=layer),
        }
        reference = attribution_by(cam(.5), images, targets).sum(1)
        for name, method in methods.items():
            map = attribution_by(method, images, targets).sum(1)
            flipping = pixel_flipping(classifier.model, images, targets.argmax(1), map, (.05,))
            rows.append((layer, name, expected_frequency(map).mean(), frequency_gap(map, reference).mean(),
                         gradient_gap(map, reference).mean(), flipping.mean()))
    return pd.DataFrame(rows, columns=['layer', 'map', 'EF', 'ΔEF', 'gap', 'Pixel Fl. AUC@5'])


def correlations(layers):
    '''The rank correlation of EF and gap with Pixel Flipping over the maps at each layer.'''
    return pd.DataFrame([
        (layer, *(spearmanr(own[name], own['Pixel Fl. AUC@5'])[0] for name in ('EF', 'gap')))
        for layer, own in layers.groupby('layer', sort=False)
    ], columns=['layer', 'EF', 'gap'])


def over_layers(inputs, layers, column, digits):
    '''A table of a column over the layers, with SplitGrad at the input beside SplitCAM.'''
    inputs = inputs[inputs['map'].str.startswith('SplitGrad, ')]
    inputs = inputs.assign(map=inputs['map'].str.removeprefix('SplitGrad, '), layer='input')
    layers = layers.assign(map=layers['map'].str.removeprefix('SplitCAM, '))
    found = pd.concat([inputs[['layer', 'map', column]] if column in inputs else layers[:0], layers])
    found = found.pivot_table(column, 'map', 'layer', sort=False).reindex(list(dict.fromkeys(layers['map'])))
    order = [layer for layer in ('input', *LAYERS) if layer in found]
    return table(
        [column, *order], [[map, *(number(each, digits) for each in row)] for map, row in found[order].iterrows()]
    )


def parts(folder):
    '''The tables of the page, of the numbers in a folder.'''
    inputs, layers, noise, ranks = (
        read_csv(folder / f'{name}.csv') for name in ('input', 'layers', 'noise', 'correlations')
    )
    return {
        'gap': over_layers(inputs, layers, 'gap', 2), 'frequency': over_layers(inputs, layers, 'EF', 3),
        'flipping': over_layers(inputs, layers, 'Pixel Fl. AUC@5', 2),
        'others': table(['map at the input', 'EF', 'ΔEF', 'gap'], [
            [row['map'], number(row['EF'], 3), number(row['ΔEF'], 3), number(row['gap'])]
            for row in inputs.to_dict('records') if not row['map'].startswith('SplitGrad, α')
        ]),
        'correlations': table(['layer', 'EF and Pixel Flipping', 'gap and Pixel Flipping'], [
            [layer, number(frequency), number(gap)] for layer, frequency, gap in ranks.itertuples(index=False)
        ]),
        'noise': table(['map', 'EF of ranks [cycles/pixel]', 'published × 1e5'], [
            [row['map'], number(row['EF'], 3), number(row['published × 1e5'])] for row in noise.to_dict('records')
        ]),
    }


def figure(inputs, layers):
    '''The curves of SplitGrad and SplitCAM over α, with other maps as points, and Pixel Flipping over the gap.'''
    picture = Figure(figsize=(14., 4.2), layout='constrained')
    axes = picture.subplots(1, 3)
    split = inputs[inputs['map'].str.startswith('SplitGrad, α')]
    axes[0].plot(split['EF'], split['gap'], 'o-', markersize=4, label='SplitGrad over α')
    for place, row in enumerate(inputs[~inputs['map'].str.startswith('SplitGrad, α')].itertuples(), 1):
        axes[0].plot(row.EF, row.gap, 'osD^vx+*P'[place % 9], color=f'C{place}', label=row.map)
    axes[0].set(title='input', xlabel='EF [cycles/pixel]', ylabel='gap to the gradient')
    for place, (layer, own) in enumerate(layers.groupby('layer', sort=False)):
        curve, others = own[own['map'].str.contains('α')], own[~own['map'].str.contains('α')]
        for axis, horizontal, vertical in ((axes[1], 'EF', 'gap'), (axes[2], 'gap', 'Pixel Fl. AUC@5')):
            axis.plot(curve[horizontal], curve[vertical], 'o-', markersize=4, color=f'C{place}', label=layer)
            for row, marker in zip(others.to_dict('records'), '*s^'):
                axis.plot(row[horizontal], row[vertical], marker, color=f'C{place}',
                          label=row['map'] if place == 0 else None)
    axes[1].set(title='layers: SplitCAM over α', xlabel='EF [cycles/pixel]', ylabel='gap to gradient × activation')
    axes[2].set(title='the gap predicts Pixel Flipping', xlabel='gap to gradient × activation', ylabel='AUC@5')
    for axis in axes[:2]:
        axis.legend(fontsize=6)
    return picture


@click.command()
@click.argument('photographs', type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.argument('weights', type=click.Path(path_type=Path))
@click.option('--out', type=click.Path(path_type=Path, file_okay=False), default='spectra', help='The folder.')
@click.option('--images', 'count', type=click.IntRange(1), default=8, help='The number of photographs.')
def main(photographs, weights, out, count):
    '''Measure the spectra of SqueezeNet's maps of PHOTOGRAPHS.'''
    classifier = load_classifier('squeezenet1_0', weights)
    images, targets = images_of(photographs, classifier, count)
    inputs, layers = (make(classifier, images, targets) for make in (input_table, layer_table))
    tables = {'noise': published_table(), 'input': inputs, 'layers': layers, 'correlations': correlations(layers)}
    for name, found in tables.items():
        save_csv(out / f'{name}.csv', found)
    save(figure(inputs, layers), out / 'spectra.png')
    update_page(page_beside(out), f'Spectra of maps, {len(images)} photographs', command_line(), parts(out))
    click.echo('\n\n'.join(parts(out).values()))


if __name__ == '__main__':
    main()
