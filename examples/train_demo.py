'''Train the network on drawings.

    python train_demo.py --out weights.pt

So the weights in the package were made, in 12 minutes on one core.
'''
import sys
from pathlib import Path

import click
import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from zennit_dc.data.parts import atomic_write
from zennit_dc.data.processes import local_device
from zennit_dc.demo.drawing import draw_batch
from zennit_dc.demo.network import DemoNetwork, demo_preprocessing


TRAINING_SERIES, HELD_OUT_SERIES = 0, 1
BATCH = 64
LEARNING_RATE = 4e-3
WEIGHT_DECAY = .05


def drawings(count, series):
    '''Images of shape (count, 3, 64, 64) and dtype uint8, and their labels.'''
    starts = tqdm(range(0, count, 100), f'Drawing series {series}', unit_scale=100, unit='image')
    images, _, labels = zip(*(draw_batch(min(100, count - start), series, start) for start in starts))
    return torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2), torch.from_numpy(np.concatenate(labels))


def train(images, labels, epochs, seed, device, make=DemoNetwork, learning_rate=LEARNING_RATE):
    '''Train a network.

    Parameters
    ----------
    images : :py:class:`torch.Tensor`
        Images of shape (count, 3, 64, 64) and dtype uint8.
    labels : :py:class:`torch.Tensor`
        Their classes, of shape (count,).
    epochs : int
        How many times to go through the images.
    seed : int
        The seed of the initial weights, and of the images' order and transformations.
    device : :py:class:`torch.device`
        Where to train.
    make : callable, optional
        A function without arguments that returns the network.
    learning_rate : float, optional
        The largest step size.

    Returns
    -------
    :py:class:`torch.nn.Module`
        The trained network.
    '''
    torch.manual_seed(seed)
    preprocess = demo_preprocessing()
    network = make().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps)
    with tqdm(total=steps, desc='Training', unit='step') as progress:
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(BATCH):
                inputs = preprocess(turned(images[rows]).to(device)).contiguous(memory_format=torch.channels_last)
                loss = F.cross_entropy(network(inputs), labels[rows].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()
                progress.set_postfix(loss=f'{loss.item():.3f}')
    return network


def turned(images):
    '''Turn images by a random multiple of 90 degrees, and mirror them or not.'''
    images = torch.rot90(images, int(torch.randint(4, ())), (2, 3))
    return images.flip(3) if torch.rand(()) < .5 else images


@torch.no_grad()
def accuracy(network, images, labels):
    '''The share of images, of shape (count, 3, 64, 64) and dtype uint8, of which the network tells the class.'''
    network.eval()
    preprocess, device = demo_preprocessing(), next(network.parameters()).device
    predicted = torch.cat([network(preprocess(rows.to(device))).argmax(1).cpu() for rows in images.split(BATCH)])
    return (predicted == labels).float().mean().item()


def usable_device(context, parameter, name):
    '''The device of this name, if it can be used.'''
    try:
        return local_device(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.option('--out', type=click.Path(dir_okay=False, path_type=Path), required=True, help='File for the weights.')
@click.option('--epochs', type=click.IntRange(1), default=10, show_default=True, help='Passes through the drawings.')
@click.option('--samples', type=click.IntRange(1), default=20_000, show_default=True, help='Drawings to train on.')
@click.option('--held-out', type=click.IntRange(1), default=2_000, show_default=True, help='Drawings to test on.')
@click.option('--seed', type=click.IntRange(0), default=0, show_default=True, help='Of weights and order.')
@click.option('--device', default='cpu', show_default=True, callback=usable_device, help='Where to train.')
def main(out, epochs, samples, held_out, seed, device):
    '''Train the demo network on drawings and save its weights.'''
    if not out.parent.is_dir():
        raise click.ClickException(f'there is no folder {out.parent}')
    network = train(*drawings(samples, TRAINING_SERIES), epochs, seed, device)
    share = accuracy(network, *drawings(held_out, HELD_OUT_SERIES))
    try:
        with atomic_write(out) as temporary:
            torch.save({name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}, temporary)
    except (OSError, RuntimeError) as error:
        raise click.ClickException(f'{out} cannot be written: {error}') from error
    print(f'{share:.2%} of {held_out} held-out drawings are classified correctly')


if __name__ == '__main__':
    try:
        main(standalone_mode=False)
    except click.Abort:
        sys.exit('Stopped, nothing was written')
    except click.ClickException as error:
        sys.exit(f'Error: {error.format_message()}')
