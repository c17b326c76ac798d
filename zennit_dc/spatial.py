'''Layers as places in the image: where a layer's output has its channels and its places, and maps of it in the input's
size.'''
import math
from typing import NamedTuple

import torch
from torch.overrides import resolve_name


ACTIVATIONS = frozenset((
    'celu', 'clamp', 'clamp_min', 'clip', 'elu', 'gelu', 'hardshrink', 'hardsigmoid', 'hardswish', 'hardtanh',
    'leaky_relu', 'log_sigmoid', 'logsigmoid', 'mish', 'prelu', 'relu', 'relu6', 'rrelu', 'selu', 'sigmoid', 'silu',
    'softplus', 'softshrink', 'softsign', 'tanh', 'tanhshrink', 'threshold',
))
'''The names of torch's activations. A module whose output goes straight into one of them, and nowhere else, has its map
read after it: what comes before is no feature map, as it has values for units that do not fire.'''


def name_of(function):
    '''The name of a function, method or property of torch, without the underscores around it.'''
    name = resolve_name(function) or getattr(function, '__name__', '')
    return name.removesuffix('.__get__').rpartition('.')[2].strip('_')


class Places(NamedTuple):
    '''The axis of channels of a layer's output, and the grid of its places, as (height, width) for images.'''
    channels: int
    grid: tuple

    def arranged(self, tensor):
        '''A tensor of the output's shape as (batch, channels, height, width), or the like for other numbers of spatial
        axes. Of tokens, only those of the grid are kept, which are the last ones.'''
        tensor = tensor.movedim(self.channels, 1)
        if tensor.ndim == len(self.grid) + 2:
            return tensor
        return tensor[:, :, tensor.shape[2] - math.prod(self.grid):].unflatten(2, self.grid)

    def require_reached(self, name, *gradients):
        '''Raise a ValueError if gradients of a layer's output arrive at tokens that are no places alone, as they do
        after the last attention of a model that reads its class token.'''
        if any(each.any() for each in gradients) and not any(self.arranged(each).any() for each in gradients):
            raise ValueError(
                f'of the output of {name}, the class\'s score depends on the tokens before the grid alone (as a class'
                ' token is), so that the map is zero: choose a layer before the last attention'
            )


def places_of(name, shape, input_shape, channels=None, grid=None, default=None):
    '''The places of a layer's output, which are the input's at another resolution: as spatial axes, before or after the
    channels, or as tokens in row-major order, before which there may be others, as a class token and registers.

    Parameters
    ----------
    name : str
        The layer, as it is called in errors.
    shape, input_shape : tuple of int
        The shape of its output, and the input's, (batch, channels, height, width) or the like.
    channels : int, optional
        The index of the output's axis of channels, if it is known.
    grid : tuple of int, optional
        The numbers of places along the spatial axes. By default they are found in the input's ratio.
    default : int, optional
        The index of the axis of channels where the shape allows both. By default that is an error.

    Returns
    -------
    :py:class:`Places`
        The places.

    Raises
    ------
    ValueError
        If there are no such places, or if it is not clear where.
    '''
    shape, size = tuple(shape), tuple(input_shape[2:])
    what = f'the output of {name} has the shape {shape}'
    if len(shape) not in (3, len(input_shape)) or not size or shape[0] != input_shape[0]:
        raise ValueError(
            f'{what}, without spatial axes as the input of shape {tuple(input_shape)} has them, and without tokens:'
            ' choose a layer before the spatial axes are reduced'
        )
    grid = require_grid(grid, size)
    if len(shape) < len(input_shape):
        channels = 2 if channels is None else channels
        tokens = shape[3 - channels] if channels else 0
        found = grid if grid is not None else token_grid(tokens, size)
        if found is None or math.prod(found) > tokens:
            which = 'no grid in the input\'s ratio' if grid is None else f'no {" × ".join(map(str, grid))} places'
            raise ValueError(f'{what}, in which {which} can be found: pass grid=(height, width), as in grid=(14, 14)'
                             ' (--grid 14x14), or choose a layer with spatial axes')
        return Places(channels, found)
    last, possible = len(shape) - 1, channel_axes(shape, size, grid)
    if channels is None and possible:
        channels = possible[0] if len(possible) == 1 else default
    if channels not in (1, last) or grid is not None and channels not in possible:
        raise ValueError(f'{what}, of which it is not clear which axes are spatial: choose a layer whose output has the'
                         ' channels first or last, or pass grid=(height, width), the lengths of the spatial axes')
    return Places(channels, shape[2:] if channels == 1 else shape[1:-1])


def require_grid(grid, size):
    '''A grid as a tuple, or a ValueError if it does not have as many positive numbers as there are spatial axes.'''
    if grid is None:
        return None
    numbers = tuple(grid) if isinstance(grid, (tuple, list)) else (grid,)
    if len(numbers) != len(size) or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ValueError(f'the grid must be {len(size)} positive integers, as in grid=(14, 14), not {grid!r}')
    return numbers


def channel_axes(shape, size, grid=None):
    '''The indices, 1 or the last one, which the axis of channels may have for all that the shape says.'''
    options = ((1, shape[2:]), (len(shape) - 1, shape[1:-1]))
    if grid is not None:
        return [index for index, spatial in options if spatial == grid]
    if len(size) != 2:
        return [1]
    return [index for index, spatial in options if not distorted(spatial, size)]


def distorted(size, input_size):
    '''Whether spatial axes are so differently long from the input's that one of them is likely to be none.'''
    strides = [of_input / of_output for of_output, of_input in zip(size, input_size)]
    return max(strides) > 2 * min(strides)


def token_grid(tokens, size):
    '''The grid of the last of a number of tokens over an image of a size, or None if there is none, or more than one.

    It is as long along each axis as the image is in steps of some number of pixels, and leaves fewest tokens before it:
    up to eight where this number divides the image, else up to two. Where a grid of the latter kind leaves fewer than
    any of the former, neither is found.
    '''
    exact, rounded = {}, {}
    for step in range(1, max(size) + 1):
        for grid in (tuple(side // step for side in size), tuple(-(-side // step) for side in size)):
            prefix, divides = tokens - math.prod(grid), all(side == step * count for side, count in zip(size, grid))
            if 0 <= prefix <= (8 if divides else 2) and math.prod(grid) > 1:
                (exact if divides else rounded)[grid] = prefix
    fewest = min((*exact.values(), *rounded.values()), default=None)
    best = {grid for grid, prefix in (exact or rounded).items() if prefix == fewest}
    return best.pop() if len(best) == 1 else None


def spread(saliency, input):
    '''The attribution of a map: its linear upsampling to the input's size, divided evenly among the channels.

    Parameters
    ----------
    saliency : :py:class:`torch.Tensor`
        The map of shape (batch, 1, height, width), or for another number of spatial axes, at any resolution.
    input : :py:class:`torch.Tensor`
        The input of shape (batch, channels, height, width).

    Returns
    -------
    :py:class:`torch.Tensor`
        The attribution in the input's shape.
    '''
    size, channels = input.shape[2:], input.shape[1]
    mode = {1: 'linear', 2: 'bilinear', 3: 'trilinear'}[len(size)]
    upsampled = torch.nn.functional.interpolate(saliency, size, mode=mode, align_corners=False)
    return (upsampled / channels).expand(input.shape)
