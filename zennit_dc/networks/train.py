'''Training that goes on where it was stopped.'''
import math
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from ..parts import differences, written


def train(
    network, images, labels, epochs=8, batch_size=256, learning_rate=.03, weight_decay=1e-3, autocast=None,
    checkpoint=None, progress=True
):
    '''Train a classifier by AdamW with a one-cycle learning rate, on the device where it is.

    The order of the images is that of PyTorch's random numbers: seed them before the network is built.

    Parameters
    ----------
    network : :py:class:`torch.nn.Module`
        The network, from images to scores of shape (batch, classes), which is changed in place.
    images : :py:class:`torch.Tensor`
        The images of shape (count, channels, height, width), of a floating point type, or of uint8 and then divided by
        255.
    labels : :py:class:`torch.Tensor`
        Their classes, integers of shape (count,).
    epochs : int, optional
        How many times to go through the images.
    batch_size : int, optional
        The number of images in a step.
    learning_rate : float, optional
        The largest learning rate.
    weight_decay : float, optional
        The weight decay, of the parameters to which the positivity transform is applied (appendix D.1).
    autocast : torch.dtype, optional
        The type for products with weights, ``torch.bfloat16``, where a processor is faster at it; the weights, the
        optimizer and the loss keep theirs.
    checkpoint : path, optional
        A file to which the state is written after each epoch. If it is there, training goes on from it, and ends with
        the same weights as if it had never been stopped.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    :py:class:`torch.nn.Module`
        The network itself, in evaluation mode.

    Raises
    ------
    ValueError
        If images and labels are not equally many, or the checkpoint is of another training.
    FloatingPointError
        If the loss is not finite.
    '''
    if len(images) != len(labels) or not len(images):
        raise ValueError(f'there are {len(images)} images, but {len(labels)} labels')
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay, fused=True)
    steps = math.ceil(len(images) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * steps)
    state = Checkpoint(checkpoint, network, optimizer, schedule, {
        'network': str(network), 'images': len(images), 'epochs': epochs, 'batch_size': batch_size,
        'learning_rate': learning_rate, 'weight_decay': weight_decay, 'autocast': str(autocast),
    })
    finished = state.load()
    with tqdm(total=epochs * steps, initial=finished * steps, unit='step', disable=not progress) as bar:
        for epoch in range(finished + 1, epochs + 1):
            bar.set_description(f'Epoch {epoch} of {epochs}')
            network.train()
            for rows in torch.randperm(len(images)).split(batch_size):
                with torch.autocast(device.type, autocast, enabled=autocast is not None):
                    scores = network(as_input(images[rows], device))
                loss = F.cross_entropy(scores.float() if autocast is not None else scores, labels[rows].to(device))
                if not torch.isfinite(loss):
                    raise FloatingPointError(
                        f'the loss is not finite in epoch {epoch}: use a smaller learning rate, or a smaller scale of'
                        ' the initial weights'
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f'{loss.item():.4f}', refresh=False)
            state.save(epoch)
    return network.eval()


class Checkpoint:
    '''The state of a training in a file, which is written whole or not at all.

    Parameters
    ----------
    path : path or None
        The file, or None to keep nothing.
    network, optimizer, schedule
        What is trained and how, with a ``state_dict`` each.
    settings : dict
        All else that the result depends on, as numbers and strings.
    '''
    def __init__(self, path, network, optimizer, schedule, settings):
        self.path = None if path is None else Path(path)
        self.parts = {'network': network, 'optimizer': optimizer, 'schedule': schedule}
        self.settings = settings

    def save(self, epoch):
        '''Write the state behind an epoch.'''
        if self.path is None:
            return
        random = {'cpu': torch.get_rng_state()}
        if torch.cuda.is_initialized():
            random['cuda'] = torch.cuda.get_rng_state()
        state = {name: part.state_dict() for name, part in self.parts.items()}
        with written(self.path) as temporary:
            torch.save({**state, 'random': random, 'epoch': epoch, 'settings': self.settings}, temporary)

    def load(self):
        '''Take over the state of the file, if it is there. Returns the number of finished epochs.'''
        if self.path is None or not self.path.exists():
            return 0
        try:
            state = torch.load(self.path, map_location='cpu', weights_only=True)
            different = differences(state['settings'], self.settings)
        except Exception as error:
            raise ValueError(f'{self.path} is no checkpoint of a training: {error}') from error
        if different:
            raise ValueError(
                f'{self.path} is the checkpoint of another training, which differs in {", ".join(different)}:'
                ' delete it, or choose another file'
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state['random']['cpu'])
        if 'cuda' in state['random'] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state['random']['cuda'])
        return state['epoch']


def as_input(images, device):
    '''Images as a network takes them.'''
    images = images.to(device)
    return images / 255. if images.dtype == torch.uint8 else images


@torch.no_grad()
def accuracy(network, images, labels, batch_size=1000):
    '''The share of images that a network classifies correctly, in evaluation mode.

    Parameters
    ----------
    network : :py:class:`torch.nn.Module`
        The network, from images to scores of shape (batch, classes).
    images, labels : :py:class:`torch.Tensor`
        The images and their classes, as for :py:func:`train`.
    batch_size : int, optional
        The number of images at a time.

    Returns
    -------
    float
        The share.
    '''
    network.eval()
    device = next(network.parameters()).device
    predicted = torch.cat([network(as_input(rows, device)).argmax(1).cpu() for rows in images.split(batch_size)])
    return (predicted == labels).double().mean().item()
