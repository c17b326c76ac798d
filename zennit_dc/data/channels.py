'''How many channels a model takes.'''
from contextlib import contextmanager

import torch
from torch.nn.modules.conv import _ConvNd


class Refused(Exception):
    '''A layer takes another number of channels.'''


def other_channels(model, input):
    '''The number of channels that a model takes, where it does not take those of an input.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model, which is run once, and once more if this is an error.
    input : :py:class:`torch.Tensor`
        An input of shape (1, channels, height, width).

    Returns
    -------
    int or None
        What its first convolution takes, or what its first dense layer takes of all pixels; or else 1 or 3, where the
        model can be run with this. None if the model takes the input, or where the number of channels is not the
        reason that it does not.
    '''
    weight = next((each for each in model.parameters() if each.is_floating_point()), input)
    input, channels = input.to(weight), input.shape[1]
    layers = [module for module in model.modules() if isinstance(module, (_ConvNd, torch.nn.Linear))]
    handles = [layer.register_forward_pre_hook(refusing(input)) for layer in layers]
    try:
        if takes(model, input):
            return None
        others = [other for other in (1, 3) if other != channels]
        return next((other for other in others if takes(model, input[:, :1].expand(-1, other, -1, -1))), None)
    except Refused as refused:
        return refused.args[0]
    finally:
        for handle in handles:
            handle.remove()


def refusing(input):
    '''A hook that raises where a layer takes another number of channels than an input has.'''
    channels, entries = input.shape[1], input[0].numel()

    def hook(module, args):
        if not args or not isinstance(args[0], torch.Tensor):
            return
        shape = args[0].shape
        if isinstance(module, _ConvNd) and shape[-3:] == input.shape[-3:] and module.in_channels != channels:
            raise Refused(module.in_channels)
        if isinstance(module, torch.nn.Linear) and shape[-1] == entries != module.in_features:
            taken, rest = divmod(module.in_features * channels, entries)
            if not rest:
                raise Refused(taken)
    return hook


def takes(model, input):
    '''Whether a model takes an input.'''
    try:
        with torch.no_grad():
            model(input.clone())
    except Refused:
        raise
    except Exception:  # whatever it is, a model of one's own can raise it
        return False
    return True


@contextmanager
def diagnosed(model, input):
    '''A context in which the error of a model says what to do, if it takes another number of channels than an input of
    shape (1, channels, height, width).'''
    try:
        yield
    except (RuntimeError, ValueError) as error:
        taken, given = other_channels(model, input), input.shape[1]
        if taken is None:
            raise
        remedy = {
            1: 'give one number each for gray images, as in --mean .5 --std .5',
            3: 'give three numbers each for images in color, as in --mean .485,.456,.406 --std .229,.224,.225',
        }.get(taken, 'images have one or three')
        raise ValueError(
            f'the model takes {taken} channel{"" if taken == 1 else "s"}, but images have {given} by mean and std:'
            f' {remedy}'
        ) from error
