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


class Followed(NamedTuple):
    '''The places of a layer's output where the axes of the input have been followed to it.

    Parameters
    ----------
    parts : tuple
        Of each axis of the output, the first entry and the number of entries that are samples, channels or places.
    lengths : tuple of int
        The axes that these consist of, in row-major order.
    order : tuple of int
        The indices of these axes: samples, channels, and places in the order of the input.
    axes : tuple of int
        The indices of the input's axes that are places.
    windows : tuple
        The parts of these that the layer's output is about, each from start to end.
    '''
    parts: tuple
    lengths: tuple
    order: tuple
    axes: tuple
    windows: tuple

    @property
    def grid(self):
        '''The numbers of places.'''
        return tuple(self.lengths[index] for index in self.order[len(self.order) - len(self.axes):])

    def arranged(self, tensor):
        '''A tensor of the output's shape as (batch, channels, *places).'''
        for axis, (first, count) in enumerate(self.parts):
            tensor = tensor.narrow(axis, first, count)
        tensor = tensor.reshape(self.lengths).permute(self.order)
        channels = math.prod(tensor.shape[1:tensor.ndim - len(self.axes)])  # no -1, as there may be no samples
        return tensor.reshape(tensor.shape[0], channels, *self.grid)

    require_reached = Places.require_reached


def followed(shape, places, input_channels=None, channels=None):
    '''The places of a layer's output to which the axes of an input have been followed.

    Parameters
    ----------
    shape : tuple of int
        The shape of the output.
    places : dict
        The :py:class:`~zennit_dc.core.axes.Place` of each axis of the input, or None where it is not known.
    input_channels : int, optional
        The index of the input's axis of channels, if it has one.
    channels : int, optional
        The index of the output's axis of channels, if it is known.

    Returns
    -------
    :py:class:`Followed` or None
        The places, or None where not enough is known.
    '''
    live = {axis: place for axis, place in places.items() if place is not None and axis != input_channels}
    parts, lengths, kinds, others = [], [], [], []
    for index, total in enumerate(shape):
        own = ((place.step, place.length, axis, place) for axis, place in live.items() if place.axis == index)
        inside = sorted(own, reverse=True)
        first, behind = (inside[0][-1].first, inside[0][-1].behind) if inside else (0, 0)
        left = total - first - behind
        parts.append((first, left))
        for step, _, axis, place in inside:
            if (place.first, place.behind) != (first, behind) or left % max(step * place.length, 1):
                return None
            if left > step * place.length:
                others.append(index)
                lengths.append(left // (step * place.length))
                kinds.append(None)
            lengths.append(place.length)
            kinds.append(axis)
            left = step
        if left > 1 or not inside:
            others.append(index)
            lengths.append(left)
            kinds.append(None)
    lost = [axis for axis, place in places.items() if place is None and axis != input_channels]
    axes = tuple(sorted(axis for axis in live if axis))
    if 0 not in live or not axes or (lost and (len(others) > 1 or others != [channels] * len(others))):
        return None
    rest = [index for index, kind in enumerate(kinds) if kind is None]
    order = kinds.index(0), *rest, *(kinds.index(axis) for axis in axes)
    return Followed(tuple(parts), tuple(lengths), order, axes, tuple(live[axis].window for axis in axes))


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
        samples = '' if shape[:1] == tuple(input_shape[:1]) else (
            f'; {shape[0]} samples are not the {input_shape[0]} of the batch, as where views, frames or patches are put'
            ' into the batch axis'
        )
        raise ValueError(
            f'{what}, without spatial axes as the input of shape {tuple(input_shape)} has them, and without tokens'
            f'{samples}: choose a layer before the spatial axes are reduced'
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
    if channels not in (1, last) or (grid is not None and channels not in possible):
        raise ValueError(f'{what}, of which it is not clear which axes are spatial: choose a layer whose output has the'
                         ' channels first or last, or pass grid=(height, width), the lengths of the spatial axes')
    return Places(channels, shape[2:] if channels == 1 else shape[1:-1])


def require_channels(channels):
    '''The index of an input's axis of channels as it is given, or a ValueError if it cannot be one.'''
    if channels is None or channels == () or (type(channels) is int and channels != 0):
        return channels
    raise ValueError(f'channels must be the index of an axis after the first, () or None, not {channels!r}')


def given_channels(channels, shape):
    '''The index of an input's axis of channels as it is given for this shape, or None for ().'''
    if channels == ():
        return None
    if not 0 < channels % len(shape) or not -len(shape) < channels < len(shape):
        raise ValueError(f'the input of shape {tuple(shape)} has no axis {channels} for its channels')
    return channels % len(shape)


def likely_channels(shape):
    '''The index of the axis of channels of what has the shape of images, as it cannot be mistaken; else None.'''
    return 1 if len(shape) > 3 and shape[1] <= 4 < min(shape[2:]) else None


def channels_unknown(name, shape):
    '''The error for an input whose axis of channels is not known.'''
    return ValueError(
        f'it is not known which axis of the input of shape {tuple(shape)} has the channels, so that there is no map of'
        f' {name} in its shape: pass channels=1 if these are the first after the batch, channels=-1 if they are the'
        ' last, or channels=() if there are none'
    )


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
    axes = range(2, input.ndim)
    return laid_over(saliency.squeeze(1), input.shape, axes, [(0, input.shape[axis]) for axis in axes])


def laid_over(saliency, shape, axes, windows):
    '''The attribution of a map at some of an input's axes: its linear upsampling to the windows that it is about,
    divided evenly among the channels, and among all else along which the map has no places.

    Parameters
    ----------
    saliency : :py:class:`torch.Tensor`
        The map of shape (batch, height, width), or for another number of axes, at any resolution.
    shape : tuple of int
        The shape of the input.
    axes : sequence of int
        The indices of the input's axes that are places, in their order.
    windows : sequence of tuple
        The parts of these axes that the map is about, each from start to end; backwards where the start is the larger
        one. Outside of them, the attribution is zero.

    Returns
    -------
    :py:class:`torch.Tensor`
        The attribution in the input's shape.
    '''
    bounds = [(round(min(window)), max(round(max(window)), round(min(window)) + 1)) for window in windows]
    upsampled = resized(saliency, [high - low for low, high in bounds])
    backwards = [index for index, (start, end) in enumerate(windows, 1) if start > end]
    upsampled = upsampled.flip(backwards) if backwards else upsampled
    margins = [(low, shape[axis] - high) for axis, (low, high) in zip(axes, bounds)]
    if any(map(any, margins)):
        upsampled = torch.nn.functional.pad(upsampled, [each for margin in margins[::-1] for each in margin])
    lengths = [length if index in (0, *axes) else 1 for index, length in enumerate(shape)]
    others = math.prod(length for index, length in enumerate(shape) if index not in (0, *axes))
    return (upsampled.reshape(lengths) / others).expand(shape)


def resized(map, size):
    '''A map of shape (batch, ...) in another size, by linear interpolation.'''
    changed = [axis for axis, length in enumerate(size, 1) if map.shape[axis] != length]
    while changed:
        some, changed = changed[:3], changed[3:]
        kept = [axis for axis in range(map.ndim) if axis not in some]
        moved = map.permute(*kept, *some)
        mode = {1: 'linear', 2: 'bilinear', 3: 'trilinear'}[len(some)]
        new = [size[axis - 1] for axis in some]
        rows = torch.nn.functional.interpolate(
            moved.reshape(-1, 1, *moved.shape[len(kept):]), new, mode=mode, align_corners=False
        ).reshape(*moved.shape[:len(kept)], *new)
        map = rows.permute([(*kept, *some).index(axis) for axis in range(map.ndim)])
    return map
