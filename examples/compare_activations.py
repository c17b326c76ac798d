'''Compare two ways to explain a network with smooth activations: constants and piecewise-linear interpolations.

    python compare_activations.py --kind SiLU --out activations.md

Small SqueezeNets with SiLU are trained on the demo's drawings, without and with squeeze-and-excitation. For each of
them, each method explains drawings that it has not seen, with DetachedActivations and with SmoothReplacement: how often
the map's largest value is on the object (pointing game), and how much the maps of the two likeliest classes agree
(cosine; near 1, the map does not explain the class). It takes about a quarter of an hour for each kind on one core.
'''
import statistics
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn
from train_demo import HELD_OUT_SERIES, TRAINING_SERIES, accuracy, drawings, train
from zennit.attribution import Gradient

from zennit_dc import DetachedActivations, SmoothReplacement, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.attribution import class_agreement, class_relevance
from zennit_dc.data.parts import atomic_write
from zennit_dc.demo import CLASSES, demo_preprocessing, draw_batch
from zennit_dc.evaluation.localisation import pointing_game


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


def mean_and_error(values):
    '''The mean of several networks, and its standard error.'''
    error = statistics.stdev(values) / len(values) ** .5 if len(values) > 1 else float('nan')
    return f'{statistics.mean(values):.3f} ± {error:.3f}'


def table(kind, found, deviations):
    '''The lines of the table of a kind of network, for what was found for each of them.'''
    yield f'| {kind} | canonizer | pointing game | class agreement |'
    yield '|---|---|---|---|'
    for method in METHODS:
        for canonizer in CANONIZERS:
            cells = [mean_and_error(values) for values in zip(*(each[method, canonizer] for each in found))]
            yield f'| {method} | {canonizer} | {" | ".join(cells)} |'
    yield ''
    shares = ', '.join(f'{name} {max(values):.2%}' for name, values in deviations.items())
    yield f'Largest deviation of the output, as a share of the standard deviation of an image\'s logits: {shares}.'


@click.command()
@click.option('--out', type=click.Path(dir_okay=False, path_type=Path), required=True, help='File for the tables.')
@click.option('--kind', 'kinds', multiple=True, type=click.Choice(NETWORKS), default=tuple(NETWORKS), show_default=True)
@click.option('--networks', type=click.IntRange(1), default=3, show_default=True, help='Networks of each kind.')
@click.option('--epochs', type=click.IntRange(1), default=12, show_default=True, help='Passes through the drawings.')
@click.option('--samples', type=click.IntRange(1), default=5_000, show_default=True, help='Drawings to train on.')
@click.option('--images', 'count', type=click.IntRange(1), default=100, show_default=True, help='Drawings to explain.')
def main(out, kinds, networks, epochs, samples, count):
    '''Train networks, explain drawings and write the tables.'''
    if not out.parent.is_dir():
        raise click.ClickException(f'there is no folder {out.parent}')
    known, held_out = drawings(samples, TRAINING_SERIES), drawings(1_000, HELD_OUT_SERIES)
    pictures, masks, labels = draw_batch(count, HELD_OUT_SERIES + 1)
    images = demo_preprocessing()(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    masks, labels = torch.from_numpy(masks), torch.from_numpy(labels)
    lines = []
    for kind in kinds:
        found, accuracies, deviations = [], [], {name: [] for name in CANONIZERS}
        for seed in range(networks):
            network = train(*known, epochs, seed, torch.device('cpu'), NETWORKS[kind], learning_rate=2e-3).eval()
            accuracies.append(accuracy(network, *held_out))
            found.append(scores(network, images, masks, labels))
            for name, option in CANONIZERS.items():
                deviations[name].append(largest_deviation(network, images, option))
        heading = f'{networks} networks with {kind}, accuracy {mean_and_error(accuracies)}'
        lines += [f'**{heading}**', '', *table(kind, found, deviations), '']
        print('\n'.join(lines))
    with atomic_write(out) as temporary:
        temporary.write_text('\n'.join(lines), encoding='utf-8')


if __name__ == '__main__':
    main()
