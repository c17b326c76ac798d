'''Train small networks on MNIST with smooth ReLUs, and tell how smooth their maps are and what smoothing takes away.

    python smooth_relu.py FOLDER --out runs --beta 1 --beta inf --seed 0 --seed 1

FOLDER holds mnist_train.npz and mnist_test.npz, as for mnist_difference.py. In place of ReLUs the networks have
Softplus of precision beta, and ReLUs for inf. Each is trained until it classifies a share of digits right that it has
not seen, so that all are compared at about the same accuracy. Each finished training is two files in runs, the weights,
and what was measured with its settings; killed at any moment, the same command goes on with the next one. All that was
measured goes into smooth_relu.csv and smooth_relu.png in the folder --results, and the means into the page beside it.

Measured on test digits, for the predicted class: the expected frequency (EF) of the gradient, the differences to it of
SmoothGrad and GradCAM, and the gap of SmoothGrad to the gradient, see zennit_dc.evaluation.spectra.
'''
import json
import math
from pathlib import Path

import click
import pandas as pd
import torch
from matplotlib.figure import Figure
from mnist_difference import digits
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from zennit.attribution import Gradient, SmoothGrad

from zennit_dc.attribution import class_relevance
from zennit_dc.data.parts import atomic_write, differences
from zennit_dc.evaluation.pages import command_line, number, page_beside, read_csv, save_csv, table, update_page
from zennit_dc.evaluation.spectra import expected_frequency, frequency_gap, gradient_gap
from zennit_dc.figures import save
from zennit_dc.methods.captum import GradCAM


BATCH, LEARNING_RATE, CHECKED_EVERY, HELD_OUT = 64, 3e-3, 20, 1_000
MEASURED = {
    'accuracy': 'accuracy', 'frequency': 'EF', 'smoothgrad frequency gap': 'ΔEF SmoothGrad',
    'smoothgrad gap': 'gap SmoothGrad', 'gradcam frequency gap': 'ΔEF GradCAM',
}


def smooth_network(beta):
    '''Two convolutions with Softplus of a precision, or ReLU if it is infinite, and a linear layer.'''
    def activation():
        return nn.ReLU() if beta == math.inf else nn.Softplus(beta)

    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), activation(), nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), activation(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 10)
    )


def train(network, images, labels, held_out, accuracy, epochs, seed, progress):
    '''Train a network until it classifies a share of held-out digits right, or for a number of epochs; returns the
    share.'''
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    reached, step = 0., 0
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = F.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            progress.update()
            if step % CHECKED_EVERY == 0:
                with torch.no_grad():
                    reached = (network(held_out[0]).argmax(1) == held_out[1]).double().mean().item()
                progress.set_postfix(accuracy=f'{reached:.3f}')
                if reached >= accuracy:
                    return reached
    return reached


def measure(network, images, seed):
    '''What is measured, as means over images.'''
    with torch.no_grad():
        target = class_relevance(network(images).argmax(1))
    gradient = Gradient(network)(images, target)[1][:, 0]
    torch.manual_seed(seed)
    smooth = SmoothGrad(network, noise_level=.15, n_iter=32)(images, target)[1][:, 0]
    cam = GradCAM(network, '4')(images, target)[1].sum(1)
    found = {
        'frequency': expected_frequency(gradient), 'smoothgrad frequency gap': frequency_gap(smooth, gradient),
        'smoothgrad gap': gradient_gap(smooth, gradient), 'gradcam frequency gap': frequency_gap(cam, gradient),
    }
    return {name: float(values.mean()) for name, values in found.items()}


def run(beta, seed, settings, data, out, progress):
    '''Train and measure a network, if that is not done yet; returns what was measured.'''
    path = out / f'{beta:g}_{seed}.json'
    settings = {'beta': f'{beta:g}', 'seed': seed, **settings}
    if path.is_file():
        result = json.loads(path.read_text(encoding='utf-8'))
        other = differences({name: result.get(name) for name in settings}, settings)
        if other:
            raise click.ClickException(f'{path} is of other settings: {", ".join(other)}; choose another --out')
        return result
    (images, labels), held_out, shown = data
    torch.manual_seed(seed)
    network = smooth_network(beta)
    progress.set_description(f'β = {beta:g}, seed {seed}')
    accuracy = train(network, images, labels, held_out, settings['until'], settings['epochs'], seed, progress)
    network.eval()
    result = {**settings, 'accuracy': accuracy, **measure(network, shown, seed)}
    with atomic_write(path.with_suffix('.pt')) as temporary:
        torch.save(network.state_dict(), temporary)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1), encoding='utf-8')
    return result


def parts(folder):
    '''The table of the page, of the numbers in a folder: the means over seeds.'''
    results = read_csv(folder / 'smooth_relu.csv')
    return {'smooth_relu': table(['β', *MEASURED.values()], [
        [f'{beta:g}'.replace('inf', '∞ (ReLU)'), *(number(own[name].mean(), 3) for name in MEASURED)]
        for beta, own in results.groupby('beta', sort=False)
    ])}


def figure(results):
    '''What is measured over beta, with a point for each seed.'''
    betas = list(dict.fromkeys(results['beta']))
    shown = [name for name in MEASURED if name != 'accuracy']
    picture = Figure(figsize=(3.4 * len(shown), 3.), layout='constrained')
    for axis, name in zip(picture.subplots(1, len(shown)), shown):
        axis.plot(betas, [results[results['beta'] == beta][name].mean() for beta in betas], color='C0')
        axis.plot(results['beta'], results[name], 'o', color='C0', markersize=4, alpha=.6)
        axis.set(title=MEASURED[name], xlabel='β')
    return picture


def drawn(images, labels, count):
    '''A number of digits, normalized, and their classes, drawn at random, as the files may be sorted by class.'''
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    return (images[rows] / 255. - .1307) / .3081, labels[rows]


@click.command()
@click.argument('folder', type=click.Path(path_type=Path))
@click.option('--out', type=click.Path(path_type=Path, file_okay=False), default='runs', help='The folder of results.')
@click.option('--results', type=click.Path(path_type=Path, file_okay=False), help='For the numbers.  [default: --out]')
@click.option('--beta', 'betas', type=click.FloatRange(0., min_open=True), multiple=True, help='A precision, or inf.',
              default=(.3, 1., 5., 30., math.inf))
@click.option('--seed', 'seeds', type=click.IntRange(0), multiple=True, default=(0, 1), help='A seed.')
@click.option('--count', type=click.IntRange(100), default=12_000, help='Digits to train on.')
@click.option('--until', type=click.FloatRange(0., 1.), default=.965, help='The accuracy at which training stops.')
@click.option('--epochs', type=click.IntRange(1), default=8, help='The largest number of epochs.')
@click.option('--maps', 'shown', type=click.IntRange(1), default=200, help='Test digits to explain.')
def main(folder, out, results, betas, seeds, count, until, epochs, shown):
    '''Train networks on the digits in FOLDER with smooth ReLUs, and measure their maps.'''
    known = drawn(*digits(folder / 'mnist_train.npz'), count)
    tests, answers = drawn(*digits(folder / 'mnist_test.npz'), shown + HELD_OUT)
    data = known, (tests[shown:], answers[shown:]), tests[:shown]
    settings = {'count': count, 'until': until, 'epochs': epochs, 'maps': shown}
    out.mkdir(parents=True, exist_ok=True)
    runs = [(beta, seed) for beta in dict.fromkeys(betas) for seed in dict.fromkeys(seeds)]
    with tqdm(unit='step', disable=None) as progress:
        found = pd.DataFrame([run(*each, settings, data, out, progress) for each in runs])
    folder = results or out
    save_csv(folder / 'smooth_relu.csv', found[['beta', 'seed', *MEASURED]])
    save(figure(found), folder / 'smooth_relu.png')
    update_page(page_beside(folder), 'Networks trained with smooth ReLUs', command_line(), parts(folder))
    click.echo(parts(folder)['smooth_relu'])


if __name__ == '__main__':
    main()
