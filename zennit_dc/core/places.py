'''The places of a layer's output: which parts of an input its entries are about, and its maps in the input's size.'''
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
    '''The axes of samples, channels and places of a layer's output.

    Parameters
    ----------
    parts : tuple
        What is left of axes without entries that are no places: the index of each axis, the first entry and the number
        of entries.
    lengths : tuple of int
        The axes of which the rest consists, in row-major order.
    order : tuple of int
        The indices of these axes: samples, channels, and places in the order of the input.
    axes : tuple of int
        The indices of the input's axes that are places.
    windows : tuple
        The parts of these that the layer's output is about, each from start to end.
    source : int, optional
        The index of the input.
    '''
    parts: tuple
    lengths: tuple
    order: tuple
    axes: tuple
    windows: tuple
    source: int = 0

    @property
    def grid(self):
        '''The numbers of places along each axis, as (height, width) for images.'''
        return tuple(self.lengths[index] for index in self.order[len(self.order) - len(self.axes):])

    def arranged(self, tensor):
        '''A tensor of the output's shape as (batch, channels, *places), without what is no place, as class tokens.'''
        for axis, first, count in self.parts:
            tensor = tensor.narrow(axis, first, count)
        tensor = tensor.reshape(self.lengths).permute(self.order)
        channels = tensor.shape[1:tensor.ndim - len(self.axes)]
        return tensor.reshape(tensor.shape[0], math.prod(channels), *self.grid)

    def require_reached(self, name, *gradients):
        '''Raise a ValueError if gradients of a layer's output arrive at tokens that are no places alone, as they do
        after the last attention of a model that reads its class token.'''
        if any(each.any() for each in gradients) and not any(self.arranged(each).any() for each in gradients):
            raise ValueError(
                f'of the output of {name}, the class\'s score depends on the tokens before the grid alone (as a class'
                ' token is), so that the map is zero: choose a layer before the last attention'
            )


def followed(shape, places, input_channels, channels, source):
    '''The places of a layer's output to which the axes of an input have been followed.

    Parameters
    ----------
    shape : tuple of int
        The shape of the output.
    places : dict
        The :py:class:`~zennit_dc.core.following.Place` of each axis of the input, or None where it is not known.
    input_channels : int or None
        The index of the input's axis of channels, if it has one.
    channels : int or None
        The index of the output's axis of channels, if it is known.
    source : int
        The index of the input.

    Returns
    -------
    :py:class:`Places` or None
        The places, or None where not enough is known.
    '''
    live = {axis: place for axis, place in places.items() if place is not None and axis != input_channels}
    parts, found = [], []  # the latter are axes that the output consists of: lengths, indices in input and output
    for index, total in enumerate(shape):
        inside = sorted(((place.step, place.length, axis) for axis, place in live.items() if place.axis == index),
                        reverse=True)
        first, behind = next(((live[axis].first, live[axis].behind) for *_, axis in inside), (0, 0))
        left = total - first - behind
        parts.append((index, first, left))
        for step, length, axis in inside:
            if (live[axis].first, live[axis].behind) != (first, behind) or left % max(step * length, 1):
                return None
            if left > step * length:
                found.append((left // (step * length), None, index))
            found.append((length, axis, index))
            left = step
        if left > 1 or not inside:
            found.append((left, None, index))
    kinds, others = [axis for _, axis, _ in found], [index for _, axis, index in found if axis is None]
    lost = [axis for axis, place in places.items() if place is None and axis != input_channels]
    axes = tuple(sorted(axis for axis in live if axis))
    if 0 not in live or not axes or (lost and (len(others) > 1 or others != [channels] * len(others))):
        return None
    rest = [index for index, kind in enumerate(kinds) if kind is None]
    order = kinds.index(0), *rest, *map(kinds.index, axes)
    lengths, windows = tuple(length for length, *_ in found), tuple(live[axis].window for axis in axes)
    return Places(tuple(parts), lengths, order, axes, windows, source)


def places_of(name, shape, input_shape, channels=None, grid=None, default=None):
    '''The places of a layer's output for all that its shape says. They are those of the input at another resolution: as
    spatial axes, before or after the channels, or as tokens in row-major order. Other tokens may come before these, as
    a class token and registers.

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
        return places_at(shape, channels, found, size)
    last, possible = len(shape) - 1, channel_axes(shape, size, grid)
    if channels is None and possible:
        channels = possible[0] if len(possible) == 1 else default
    if channels not in (1, last) or (grid is not None and channels not in possible):
        raise ValueError(f'{what}, of which it is not clear which axes are spatial: choose a layer whose output has the'
                         ' channels first or last, or pass grid=(height, width), the lengths of the spatial axes')
    return places_at(shape, channels, shape[2:] if channels == 1 else shape[1:-1], size)


def places_at(shape, channels, grid, size):
    '''The places of an output of a shape, whose channels have an index, in a grid over an input of a size: as many
    axes, or the last of one axis of tokens.'''
    ndim, count, windows = len(grid) + 2, math.prod(grid), tuple((0, side) for side in size)
    parts = ((3 - channels, shape[3 - channels] - count, count),) if len(shape) < ndim else ()
    lengths = (*shape[:2], *grid) if channels == 1 else (shape[0], *grid, shape[channels])
    order = range(ndim) if channels == 1 else (0, ndim - 1, *range(1, ndim - 1))
    return Places(parts, lengths, tuple(order), tuple(range(2, ndim)), windows)


def channels_unknown(name, shape):
    '''The error for an input whose axis of channels is not known.'''
    return ValueError(
        f'it is not known which axis of the input of shape {tuple(shape)} has the channels, so that there is no map of'
        f' {name} in its shape: pass channels=1 if these are the first after the batch, channels=-1 if they are the'
        ' last, or channels=() if there are none'
    )


def require_grid(grid, size):
    '''A grid as a tuple, or a ValueError if it is not one positive integer for each spatial axis.'''
    if grid is None:
        return None
    numbers = tuple(grid) if isinstance(grid, (tuple, list)) else (grid,)
    if len(numbers) != len(size) or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ValueError(f'the grid must be {len(size)} positive integers, as in grid=(14, 14), not {grid!r}')
    return numbers


def channel_axes(shape, size, grid=None):
    '''The indices that the axis of channels may have for all that the shape says: 1, the last one, both or none.'''
    options = ((1, shape[2:]), (len(shape) - 1, shape[1:-1]))
    if grid is not None:
        return [index for index, spatial in options if spatial == grid]
    if len(size) != 2:
        return [1]
    return [index for index, spatial in options if not distorted(spatial, size)]


def distorted(size, input_size):
    '''Whether the ratio of spatial axes is so far from the input's that one of them is likely to be no spatial axis.'''
    strides = [of_input / of_output for of_output, of_input in zip(size, input_size)]
    return max(strides) > 2 * min(strides)


def token_grid(tokens, size):
    '''The grid of tokens over an image of a size, or None if there is none, or more than one. It consists of the last
    of a number of tokens.

    Along each axis, the image has as many steps of some number of pixels as the grid has tokens. The grid that leaves
    fewest tokens before it counts: up to eight where this number of pixels divides the image, else up to two. None is
    found where a grid of the latter kind leaves fewer than any of the former.
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
    '''The attribution of a map: its linear upsampling to the input's size, divided evenly among channels.

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
    '''The attribution of a map of places along some of an input's axes: its linear upsampling to the windows that it is
    about, divided evenly among the entries along all other axes but the first.

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
    for axes in (changed[start:start + 3] for start in range(0, len(changed), 3)):
        moved, count = map.movedim(axes, [*range(-len(axes), 0)]), len(axes)
        rows = torch.nn.functional.interpolate(
            moved.flatten(0, -count - 1).unsqueeze(1), [size[axis - 1] for axis in axes],
            mode=('linear', 'bilinear', 'trilinear')[count - 1], align_corners=False
        )
        map = rows.squeeze(1).unflatten(0, moved.shape[:-count]).movedim([*range(-count, 0)], axes)
    return map
