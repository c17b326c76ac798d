'''Routing: functions that only move values, for which the split form is the same for both tensors.'''
from functools import partial
from itertools import accumulate, pairwise

import torch

from ..axes import Place, joined, joined_places
from ..operations import route
from ..split import SplitTensor, pairs_in, split_form, unsupported
from ..views import as_view
from .arithmetic import parts
from .reading import Comparison
from .table import (
    follow_axes, follow_places, keep_axes, keep_layer, note_tokens, overloads, plain, to_dtype, torch_form
)


def register_routing(names, note_axes):
    '''Register functions that move values, and what notes where axes are then.'''
    for function in {function for name in names for function in overloads(name)}:
        @split_form(function)
        def routing(pair, *args, function=function, **kwargs):
            args, kwargs = plain(args), plain(kwargs)
            if not isinstance(pair, SplitTensor):
                return function(pair, *args, **kwargs)

            def move(tensor):
                return function(tensor, *args, **kwargs)

            output = route(pair, move)
            return output if output is pair else note_axes([pair], output, move)


register_routing(
    ('flatten', 'unflatten', 'reshape', 'reshape_as', 'ravel'), lambda pairs, output, _: keep_axes(*pairs, output)
)
register_routing(
    ('clone', 'detach', 'alias_copy', 'expand', 'expand_as', 'broadcast_to'),
    lambda pairs, output, _: joined(pairs, output)
)
register_routing(('contiguous',), keep_layer)


def reordered(pairs, output, function, reverses=False):
    '''Note the axes where entries change their order, in which parts of axes are lost.'''
    if pairs[0].places:
        follow_places(pairs, output, function, reverses)
    if pairs[0].place('batch') is not None:
        places = output.places
        joined(pairs, output).places = places
    return output


def turned(pairs, output, function):
    '''Note the axes where they are swapped and reversed.'''
    follow_axes(pairs, output, function)
    if pairs[0].places:
        follow_places(pairs, output, function, reverses=True)
    return output


register_routing(('roll', 'narrow', 'gather', 'index_select', 'take_along_dim'), reordered)
register_routing(('flip', 'fliplr', 'flipud'), partial(reordered, reverses=True))
register_routing(('rot90',), turned)
register_routing(
    ('permute', 'transpose', 'swapaxes', 'swapdims', 'movedim', 'moveaxis', 't', 'adjoint', 'unsqueeze', 'squeeze',
     'select', 'repeat', 'tile', 'repeat_interleave', 'pixel_shuffle', 'pixel_unshuffle', 'channel_shuffle',
     'native_channel_shuffle', '__getitem__', 'unfold', 'diagonal', 'masked_select', 'atleast_1d',
     'atleast_2d', 'atleast_3d'), follow_axes
)


@split_form(torch.Tensor.view, torch.Tensor.view_as)
def view(pair, *shape, size=None, dtype=None):
    if not isinstance(pair, SplitTensor):
        return pair.view(shape[0].values[0].shape)
    shape = shape or (dtype if size is None else size,)
    if isinstance(shape[0], torch.dtype):
        raise unsupported('view', (pair,), f' as {shape[0]}, as it is about bits')
    shape = tuple(shape[0].shape) if isinstance(shape[0], torch.Tensor) else shape
    moved = pair.difference.view(*shape)
    # the sum may lie in memory in another order than the difference
    output = pair.like(moved, pair.tensors[1].reshape(moved.shape))
    output.is_gate = pair.is_gate
    return keep_axes(pair, as_view(output, pair, lambda tensor: tensor.view(moved.shape)))


for getter in ('T', 'mT', 'H', 'mH'):
    @split_form(getattr(torch.Tensor, getter).__get__)
    def transposed(pair, *args, getter=getter):
        def move(tensor):
            return getattr(tensor, getter)
        return follow_axes([pair], route(pair, move), move)


for name in ('chunk', 'split', 'tensor_split', 'unsafe_chunk', 'unsafe_split', 'split_with_sizes'):
    for function in overloads(name):
        @split_form(function)
        def pieces(pair, *args, function=function, **kwargs):
            dim = kwargs.get('dim', args[1] if len(args) > 1 else 0)
            lengths = [piece.shape[dim] for piece in function(pair.difference.detach(), *args, **kwargs)]
            # each by its own, as torch does not let the views of one function be changed in place
            return tuple(pair.narrow(dim, end - length, length) for end, length in zip(accumulate(lengths), lengths))


@torch_form('unbind')
def unbind(pair, dim=0):
    return tuple(pair.select(dim, index) for index in range(pair.values[0].shape[dim]))


split_form(torch.Tensor.__iter__)(lambda pair: iter(unbind(pair)))


for name in ('to', 'float', 'double', 'half', 'bfloat16', 'type', 'cpu', 'cuda', 'type_as', 'long', 'int', 'bool'):
    for function in overloads(name):
        @split_form(function)
        def conversion(pair, *args, function=function, **kwargs):
            args, kwargs = plain(args), plain(kwargs)
            if not isinstance(pair, SplitTensor):
                return function(pair, *args, **kwargs)
            converted = function(pair.difference, *args, **kwargs)
            if not isinstance(converted, torch.Tensor):  # the name of a type
                return converted
            if not converted.is_floating_point():
                return converted.detach().as_subclass(Comparison)
            return to_dtype(pair, lambda tensor: function(tensor, *args, **kwargs))


for name in ('cat', 'concat', 'concatenate', 'stack', 'hstack', 'vstack', 'dstack'):
    for function in overloads(name):
        @split_form(function)
        def joining(tensors, *args, function=function, name=name, **kwargs):
            pairs = list(pairs_in(tensors))
            both = zip(*map(parts, tensors))
            output = pairs[0].like(*(function(each, *args, **kwargs) for each in both))
            joined(pairs, output)
            if 'stack' in name and len({pair.batch for pair in pairs}) == 1:  # which may insert an axis anywhere
                follow_axes(pairs[:1], output, lambda tensor: function([tensor] * len(tensors), *args, **kwargs))
                output.depth = max(pair.depth for pair in pairs)
            if any(pair.places for pair in pairs):
                join_places(name, tensors, output, lambda tensors: function(tensors, *args, **kwargs))
            return output


def join_places(name, tensors, output, function):
    '''Note where the axes of inputs are in tensors that are joined: where an axis has others before it, as class tokens
    are, behind these.'''
    shape, dims = output.values[0].shape, [*range(output.values[0].ndim)]
    if name == 'stack':
        found = [(place_of_one(each, output, lambda tensor: function([tensor] * len(tensors))), shape)
                 for each in pairs_in(tensors)]
        output.places = joined_places(found, shape)
        return
    lengths = {index: [each.shape[index] if each.ndim == len(shape) else -1 for each in tensors] for index in dims}
    along = [index for index in dims if sum(lengths[index]) == shape[index] != lengths[index][0]]
    before = [0, *accumulate(lengths[along[0]])] if len(along) == 1 else None
    output.places = {} if before is None else {
        key: among_others(key, [*zip(tensors, before)], along[0], before[-1])
        for key in {key: None for pair in pairs_in(tensors) for key in pair.places}
    }
    note_tokens(output)


def place_of_one(pair, output, function):
    '''The places of a pair in what a function of it alone would make.'''
    alone = output.like(*output.values)
    return follow_places([pair], alone, function).places


def among_others(key, tensors, along, total):
    '''The place of an input's axis in tensors that are joined along an axis, each with the length of those before, in a
    total length.'''
    known = [(place, pair.values[0].shape, before) for pair, before in tensors
             if isinstance(pair, SplitTensor) and (place := pair.places.get(key)) is not None]
    moved = [place if place.axis != along else place._replace(
        first=place.first + before, behind=place.behind + total - before - shape[along]
    ) for place, shape, before in known]
    if len({place[:5] for place in moved}) <= 1:
        return min(moved, key=Place.extent, default=None)
    pieces = all(place.axis == along and place.is_whole(shape) for place, shape, _ in known)
    if pieces and all(one.window[1] == two.window[0] and one.first + one.length == two.first
                      for one, two in pairwise(moved)):
        length, window = sum(place.length for place in moved), (moved[0].window[0], moved[-1].window[1])
        return moved[0]._replace(length=length, window=window, behind=moved[-1].behind)
    return None
