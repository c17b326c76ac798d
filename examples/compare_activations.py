'''Compare two ways to explain a network with smooth activations: constants and piecewise-linear interpolations.

    python compare_activations.py --kind SiLU --out activations

Small SqueezeNets with SiLU are trained on the demo's drawings, without and with squeeze-and-excitation. For each of
them, each method explains drawings that it has not seen, with DetachedActivations and with SmoothReplacement: how often
the map's largest value is on the object (pointing game), and how much the maps of the two likeliest classes agree
(cosine; near 1, the map does not explain the class). Writes what was found for each network, and the means over them,
as CSV into the folder, and a table into the page beside it, activations.md, in which what you write around it is kept.
It takes about a quarter of an hour for each kind on one core.
'''
from functools import partial
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from torch import nn
from train_demo import HELD_OUT_SERIES, TRAINING_SERIES, accuracy, drawings, train
from zennit.attribution import Gradient

from zennit_dc import DetachedActivations, SmoothReplacement, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.attribution import class_agreement, class_relevance
from zennit_dc.demo import CLASSES, demo_preprocessing, draw_batch
from zennit_dc.evaluation.localisation import pointing_game
from zennit_dc.evaluation.pages import command_line, number, page_beside, read_csv, save_csv, table, update_page


CANONIZERS = {
    'DetachedActivations()': DetachedActivations, 'SmoothReplacement(1e-3)': SmoothReplacement,
    'SmoothReplacement(1e-2)': partial(SmoothReplacement, 1e-2),
}
METHODS = {
    'SplitGrad, input': SplitGrad,
    'SplitGrad, input, α = 0.4': partial(SplitGrad, .4),
    'SplitGrad, features.3': partial(SplitGrad, layer='features.3'),
    'SplitCAM, features.6': partial(SplitCAM, 'features.6'),
    'SplitCAM, features.3': partial(SplitCAM, 'features.3'),
    'SplitLRP, input, positive': partial(SplitLRP, stream='positive'),
    'SplitLRP, features.6': partial(SplitLRP, layer='features.6'),
}


class Fire(nn.Module):
    '''Two convolutions side by side after one that reduces the channels, and a gate for each channel if asked for.'''
    def __init__(self, inputs, squeezed, expanded, gated):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1, self.expand3 = nn.Conv2d(squeezed, expanded, 1), nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(2 * expanded, squeezed, 1), nn.SiLU(),
            nn.Conv2d(squeezed, 2 * expanded, 1), nn.Sigmoid()
        ) if gated else None
        self.activation = nn.SiLU()

    def forward(self, input):
        squeezed = self.activation(self.squeeze(input))
        output = self.activation(torch.cat([self.expand1(squeezed), self.expand3(squeezed)], 1))
        return output if self.gate is None else output * self.gate(output)


class SmallSqueezeNet(nn.Module):
    '''A SqueezeNet for drawings of 64 × 64 pixels, with SiLU in place of ReLU.'''
    def __init__(self, gated=False):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.SiLU(),
            Fire(32, 8, 16, gated), Fire(32, 8, 32, gated), nn.MaxPool2d(2),
            Fire(64, 16, 32, gated), Fire(64, 16, 64, gated),
        )
        self.classifier = nn.Conv2d(128, len(CLASSES), 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, input):
        return self.classifier(self.features(input)).mean((2, 3))


NETWORKS = {'SiLU': SmallSqueezeNet, 'SiLU and gates': partial(SmallSqueezeNet, gated=True)}


def scores(network, images, masks, labels, batch=25):
    '''The pointing game and the class agreement of each method with each canonizer, as means over images.'''
    found = {}
    for method, make in METHODS.items():
        for canonizer, option in CANONIZERS.items():
            hits, agreements = [], []
            for rows in torch.arange(len(images)).split(batch):
                attributor = Gradient(network, make(canonizers=[option()]))
                _, attribution = attributor(images[rows], class_relevance(labels[rows]))
                hits.extend(pointing_game(attribution.sum(1), masks[rows]))
                agreements.extend(class_agreement(attributor, images[rows]).tolist())
            found[method, canonizer] = np.mean(hits), np.nanmean(agreements)
    return found


def largest_deviation(network, images, option):
    '''The largest deviation of the output, as a share of the standard deviation of an image's logits.'''
    with torch.no_grad():
        original = network(images)
        with SplitGrad(canonizers=[option()]).context(network):
            output = network(images)
    return ((output - original).abs().amax(1) / original.std(1)).max().item()


COLUMNS = ['kind', 'network', 'method', 'canonizer', 'pointing game', 'class agreement', 'deviation', 'accuracy']


def rows_of(kind, seed, found, deviations, share):
    '''The rows of a network.'''
    return [
        (kind, seed, *names, *values, deviations[names[1]], share) for names, values in found.items()
    ]


def averaged(rows):
    '''The means over networks of each kind and their standard errors, and the largest deviation.'''
    keys, names = COLUMNS[0:1] + COLUMNS[2:4], ['pointing game', 'class agreement', 'accuracy']
    found = rows.groupby(keys, sort=False)[names].agg(['mean', 'sem'])
    found.columns = [name if kind == 'mean' else f'{name}, error' for name, kind in found.columns]
    found['deviation'] = rows.groupby(keys, sort=False)['deviation'].max()
    return found.reset_index()


def parts(folder):
    '''The tables of the page, of the means in a folder: constants beside interpolations, for each kind of network.'''
    means = read_csv(folder / 'means.csv')
    constants, interpolations, *_ = CANONIZERS
    header = ['Pointing game ↑ / class agreement ↓', 'constants', 'interpolations']
    found = {}
    for kind, own in means.groupby('kind', sort=False):
        own = own.set_index(['method', 'canonizer'])
        found[kind] = table(header, [[method, *(
            f'{number(own.loc[(method, each), "pointing game"])} / {number(own.loc[(method, each), "class agreement"])}'
            for each in (constants, interpolations)
        )] for method in METHODS])
    return found


@click.command()
@click.option('--out', type=click.Path(file_okay=False, path_type=Path), default='activations', help='The folder.')
@click.option('--kind', 'kinds', multiple=True, type=click.Choice(NETWORKS), default=tuple(NETWORKS), show_default=True)
@click.option('--networks', type=click.IntRange(1), default=3, show_default=True, help='Networks of each kind.')
@click.option('--epochs', type=click.IntRange(1), default=12, show_default=True, help='Passes through the drawings.')
@click.option('--samples', type=click.IntRange(1), default=5_000, show_default=True, help='Drawings to train on.')
@click.option('--images', 'count', type=click.IntRange(1), default=100, show_default=True, help='Drawings to explain.')
def main(out, kinds, networks, epochs, samples, count):
    '''Train networks, explain drawings and write the tables.'''
    if not out.parent.is_dir():
        raise click.ClickException(f'there is no folder {out.parent}')
    rows = []
    known, held_out = drawings(samples, TRAINING_SERIES), drawings(1_000, HELD_OUT_SERIES)
    pictures, masks, labels = draw_batch(count, HELD_OUT_SERIES + 1)
    images = demo_preprocessing()(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    masks, labels = torch.from_numpy(masks), torch.from_numpy(labels)
    for kind in kinds:
        for seed in range(networks):
            network = train(*known, epochs, seed, torch.device('cpu'), NETWORKS[kind], learning_rate=2e-3).eval()
            deviations = {name: largest_deviation(network, images, option) for name, option in CANONIZERS.items()}
            found = scores(network, images, masks, labels)
            rows += rows_of(kind, seed, found, deviations, accuracy(network, *held_out))
    rows = pd.DataFrame(rows, columns=COLUMNS)
    save_csv(out / 'networks.csv', rows)
    save_csv(out / 'means.csv', averaged(rows))
    update_page(page_beside(out), 'Networks with smooth activations', command_line(), parts(out))
    click.echo('\n\n'.join(parts(out).values()))


if __name__ == '__main__':
    main()
