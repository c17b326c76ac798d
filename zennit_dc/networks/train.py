'''Training that goes on where it was stopped.'''
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from ..data.fingerprints import fingerprint, fingerprint_of
from ..data.parts import atomic_write, differences


def train(
    network, images, labels, epochs=8, batch_size=256, learning_rate=.03, weight_decay=1e-3, autocast=None,
    checkpoint=None, progress=True
):
    '''Train a classifier by AdamW with a one-cycle learning rate, on the device where it is.

    PyTorch's random numbers give the order of the images: seed them before the network is built.

    Parameters
    ----------
    network : :py:class:`torch.nn.Module`
        The network, from images to scores of shape (batch, classes), which is changed in place.
    images : :py:class:`torch.Tensor`
        The images of shape (count, channels, height, width), of a floating point type, or of uint8 and then divided by
        255. They are converted to the network's type.
    labels : :py:class:`torch.Tensor`
        Their classes, integers of shape (count,).
    epochs : int, optional
        How many times to go through the images.
    batch_size : int, optional
        The number of images in a step; of one more in the last step of an epoch, if a single one were left, of which
        batch norms know no deviation.
    learning_rate : float, optional
        The largest learning rate.
    weight_decay : float, optional
        The weight decay, of all parameters: where there is a positivity transform, of those that it is applied to
        (appendix D.1).
    autocast : torch.dtype, optional
        The type for products with weights, ``torch.bfloat16``, where a processor is faster at it; the weights, the
        optimizer and the loss keep theirs.
    checkpoint : path, optional
        A file to which the state is written after each epoch. If it is there, training goes on from it, and ends with
        the same weights as if it had never been stopped. The network must then have the same initial weights, so that
        PyTorch's random numbers must have been seeded.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    :py:class:`torch.nn.Module`
        The network itself, in evaluation mode.

    Raises
    ------
    ValueError
        If a parameter is out of range, images and labels are not equally many or of other types, the checkpoint has no
        folder, or it is of another training.
    FloatingPointError
        If the loss or a parameter is not finite.
    '''
    require_pairs(images, labels)
    if epochs < 1 or batch_size < 2:
        raise ValueError(f'there must be at least one epoch, and two images in a batch, not {epochs} and {batch_size}')
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay, fused=True)
    steps = len(batches(torch.arange(len(images)), batch_size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * steps)
    state = Checkpoint(checkpoint, network, optimizer, schedule, {
        'network': str(network), 'initial weights': fingerprint(network), 'epochs': epochs,
        'images': fingerprint_of({'images': images, 'labels': labels}), 'batch_size': batch_size,
        'learning_rate': learning_rate, 'weight_decay': weight_decay, 'autocast': str(autocast),
    })
    finished = state.load()
    with tqdm(total=epochs * steps, initial=finished * steps, unit='step', disable=not progress) as bar:
        for epoch in range(finished + 1, epochs + 1):
            bar.set_description(f'Epoch {epoch} of {epochs}')
            network.train()
            for rows in batches(torch.randperm(len(images)), batch_size):
                with torch.autocast(device.type, autocast, enabled=autocast is not None):
                    scores = network(as_input(images[rows], network))
                loss = F.cross_entropy(scores if autocast is None else scores.float(), labels[rows].long().to(device))
                require_finite(loss, 'loss', epoch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f'{loss.item():.4f}', refresh=False)
            for name, parameter in network.named_parameters():
                require_finite(parameter, name, epoch)
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
        if self.path is not None and not self.path.parent.is_dir():
            raise ValueError(f'there is no folder {self.path.parent} for the checkpoint {self.path.name}: make it')
        self.parts = {'network': network, 'optimizer': optimizer, 'schedule': schedule}
        self.settings = settings

    def save(self, epoch):
        '''Write the state after an epoch.'''
        if self.path is None:
            return
        random = {'cpu': torch.get_rng_state()}
        if self.device() is not None:
            random['cuda'] = torch.cuda.get_rng_state(self.device())
        state = {name: part.state_dict() for name, part in self.parts.items()}
        with atomic_write(self.path) as temporary:
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
                ' delete it, or choose another file; or seed PyTorch before the network is built'
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state['random']['cpu'])
        if 'cuda' in state['random'] and self.device() is not None:
            torch.cuda.set_rng_state(state['random']['cuda'], self.device())
        return state['epoch']

    def device(self):
        '''The GPU of the network, or None.'''
        device = next(self.parts['network'].parameters()).device
        return device if device.type == 'cuda' else None


def require_pairs(images, labels):
    '''Raise a ValueError if images and labels do not belong together.'''
    if len(images) != len(labels) or not len(images):
        raise ValueError(f'there are {len(images)} images, but {len(labels)} labels')
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f'labels must be integers of shape (count,), not {labels.dtype} {tuple(labels.shape)}')
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise ValueError(f'images must be of a floating point type or of uint8, not of {images.dtype}')


def require_finite(tensor, name, epoch):
    '''Raise a FloatingPointError if a tensor is not finite.'''
    if not torch.isfinite(tensor).all():
        raise FloatingPointError(
            f'the {name} is not finite in epoch {epoch}: use a smaller learning rate, or a smaller scale of the initial'
            ' weights'
        )


def batches(order, batch_size):
    '''The indices of each step: a single one that is left goes with those before.'''
    rows = [*order.split(batch_size)]
    if len(rows) > 1 and len(rows[-1]) == 1:
        rows[-2:] = [torch.cat(rows[-2:])]
    return rows


def as_input(images, network):
    '''Images as a network takes them.'''
    first = next(network.parameters())
    converted = images.to(first.device, first.dtype)
    return converted / 255. if images.dtype == torch.uint8 else converted


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

    Raises
    ------
    ValueError
        If images and labels are not equally many or of other types.
    '''
    require_pairs(images, labels)
    network.eval()
    predicted = torch.cat([network(as_input(rows, network)).argmax(1).cpu() for rows in images.split(batch_size)])
    return (predicted == labels.cpu()).double().mean().item()
