'''Train differences of monotone and of input-convex networks on MNIST, and print their accuracies (table 12).

    python mnist_difference.py FOLDER --out runs --variant dic --variant dm --seed 0 --seed 1

FOLDER holds mnist_train.npz and mnist_test.npz, with the arrays x of shape (count, 28, 28) and dtype uint8, and y. Each
finished training is two files in runs, the weights, and the accuracy with the settings. Killed at any moment, the same
command goes on after the last epoch; several commands can share a folder if they train different networks, variants or
seeds. All accuracies go into accuracies.csv in the folder --results, and a table into the page beside it. Trained
weights are used like this:

    from zennit_dc import SplitGrad
    from zennit_dc.networks import mlp_maxout

    network = mlp_maxout('dicin').eval()
    network.load_state_dict(torch.load('runs/mlp_maxout_dicin_0.pt', weights_only=True))
    with SplitGrad(alpha=0., stream='h').context(network):
        torch.autograd.grad(network(images)[:, 3].sum(), images)
'''
import json
import sys
import zipfile
from pathlib import Path
from statistics import median

import click
import numpy as np
import pandas as pd
import torch

from zennit_dc.data.parts import atomic_write, differences
from zennit_dc.data.processes import local_device
from zennit_dc.evaluation.pages import command_line, page_beside, read_csv, save_csv, table, update_page
from zennit_dc.networks import VARIANTS, accuracy, cnn_maxout, mlp_maxout, train


NETWORKS = {'mlp_maxout': mlp_maxout, 'cnn_maxout': cnn_maxout}


def defaults(network, variant):
    '''The settings of a training. Fully connected layers of cnn_maxout have no batch norm, and take smaller steps.'''
    if network == 'mlp_maxout':
        return {'batch_size': 256, 'learning_rate': .03, 'scale': .01}
    return {'batch_size': 64, 'learning_rate': .0005 if variant in ('none', 'diff') else .005, 'scale': .003}


def digits(path):
    '''Images of shape (count, 1, 28, 28) and their classes.'''
    try:
        with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays['x'], arrays['y']
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise click.ClickException(f'{path} cannot be read as digits: {error}') from error
    if images.shape[1:] != (28, 28) or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise click.ClickException(
            f'{path} must have x of shape (count, 28, 28) and dtype uint8, and y of shape (count,), not'
            f' {images.dtype} {images.shape} and {labels.shape}'
        )
    if not labels.size or labels.min() < 0 or labels.max() > 9:
        raise click.ClickException(f'{path} must have classes from 0 to 9 in y')
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()


def finished(out):
    '''The results so far, by network, variant and seed.'''
    results = [json.loads(path.read_text()) for path in out.glob('*.json')]
    return {tuple(result[key] for key in ('network', 'variant', 'seed')): result for result in results}


TITLES = {
    'none': 'None', 'ic': 'IC', 'mon': 'Mon', 'dic': 'DIC', 'dm': 'DM', 'diff': 'Diff.None', 'dicin': 'DICIN',
    'dmin': 'DMIN'
}
PAPER = {
    'mlp_maxout': (98.39, 98.36, 98.30, 98.56, 98.55, 98.47, 98.58, 98.54),
    'cnn_maxout': (99.19, 99.16, 98.50, 97.94, 98.06, 97.94, 98.17, 98.28),
}
'''Table 12 of the paper: medians in per cent, by network and in the order of the titles.'''


def accuracies(results):
    '''The test accuracies in per cent: of each network and variant the median, the least and the largest.'''
    rows = []
    for network in NETWORKS:
        for variant in TITLES:
            shares = [
                100 * result['accuracy'] for result in results
                if (result['network'], result['variant']) == (network, variant)
            ]
            if shares:
                rows.append((network, variant, len(shares), median(shares), min(shares), max(shares)))
    return pd.DataFrame(rows, columns=['network', 'variant', 'seeds', 'median', 'least', 'most'])


def parts(folder):
    '''The table of the page, of the accuracies in a folder: medians beside the paper's.'''
    found = read_csv(folder / 'accuracies.csv').set_index(['network', 'variant'])['median']
    networks = list(found.index.unique('network'))
    header = ['accuracy in %', *(title for network in networks for title in (network, 'paper'))]
    return {'accuracies': table(header, [
        [title, *(f'{value:.2f}' if value == value else '–' for network in networks for value in (
            found.get((network, variant), np.nan), PAPER[network][place]
        ))] for place, (variant, title) in enumerate(TITLES.items()) if variant in found.index.unique('variant')
    ])}


@click.command(help=__doc__.split('\n\n')[0])
@click.argument('folder', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option('--out', type=click.Path(file_okay=False, path_type=Path), required=True, help='Folder for the results.')
@click.option('--results', type=click.Path(file_okay=False, path_type=Path), help='For the numbers.  [default: --out]')
@click.option('--network', 'networks', type=click.Choice(list(NETWORKS)), multiple=True, default=['mlp_maxout'],
              show_default=True)
@click.option('--variant', 'variants', type=click.Choice(VARIANTS), multiple=True, default=VARIANTS,
              show_default=True)
@click.option('--seed', 'seeds', type=click.IntRange(0), multiple=True, default=[0], show_default=True)
@click.option('--epochs', type=click.IntRange(1), default=8, show_default=True)
@click.option('--batch-size', type=click.IntRange(2), help='[default: 256; cnn_maxout 64]')
@click.option('--learning-rate', type=click.FloatRange(0, min_open=True),
              help='[default: 0.03; cnn_maxout 0.005, without restrictions 0.0005]')
@click.option('--weight-decay', type=click.FloatRange(0), default=1e-3, show_default=True)
@click.option('--scale', type=click.FloatRange(0, min_open=True),
              help='Of the initial non-negative weights.  [default: 0.01; cnn_maxout 0.003]')
@click.option('--bfloat16', is_flag=True, help='Multiply with weights in this precision, which some CPUs do faster.')
@click.option('--device', default='cpu', show_default=True, help='Where to train.')
def main(folder, out, results, networks, variants, seeds, bfloat16, device, epochs, weight_decay, **given):
    '''Train what is not trained yet.'''
    try:
        device = local_device(device)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    training, test = (digits(folder / f'mnist_{part}.npz') for part in ('train', 'test'))
    out.mkdir(parents=True, exist_ok=True)
    for network, variant, seed in ((n, v, s) for s in seeds for n in networks for v in variants):
        settings = {'epochs': epochs, 'weight_decay': weight_decay, **defaults(network, variant)}
        settings.update({key: value for key, value in given.items() if value is not None})
        run = {'network': network, 'variant': variant, 'seed': seed, 'bfloat16': bfloat16, **settings}
        name = f'{network}_{variant}_{seed}'
        before = finished(out).get((network, variant, seed))
        if before is not None:
            different = differences({key: before.get(key) for key in run}, run)
            if different:
                raise click.ClickException(
                    f'{out} has {network} {variant} {seed} with other settings, {", ".join(different)}: choose another'
                    ' --out'
                )
            (out / f'{name}.checkpoint').unlink(missing_ok=True)
            continue
        click.echo(name, err=True)
        torch.manual_seed(seed)
        model = NETWORKS[network](variant, scale=settings.pop('scale')).to(device)
        checkpoint = out / f'{name}.checkpoint'
        try:
            train(
                model, *training, **settings, autocast=torch.bfloat16 if bfloat16 else None, checkpoint=checkpoint,
                progress=sys.stderr.isatty()
            )
        except (ValueError, FloatingPointError) as error:
            raise click.ClickException(f'{name}: {error}') from error
        with atomic_write(out / f'{name}.pt') as temporary:
            torch.save({key: tensor.cpu() for key, tensor in model.state_dict().items()}, temporary)
        run['accuracy'] = accuracy(model, *test)
        with atomic_write(out / f'{name}.json') as temporary:
            temporary.write_text(json.dumps(run, indent=1))
        checkpoint.unlink()
    results = results or out
    save_csv(results / 'accuracies.csv', accuracies(finished(out).values()))
    update_page(page_beside(results), 'Networks trained as a difference', command_line(), parts(results))
    click.echo(parts(results)['accuracies'])


if __name__ == '__main__':
    main()
