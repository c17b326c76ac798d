'''Routing: functions that only move values, for which the split form is the same for both tensors.'''
from itertools import accumulate

import torch

from ..axes import joined
from ..operations import route
from ..split import SplitTensor, pairs_in, split_form, unsupported
from ..views import as_view
from .arithmetic import parts
from .reading import Comparison
from .table import follow_axes, keep_axes, keep_layer, overloads, plain, to_dtype, torch_form


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
register_routing(  # of a part of an axis, the entries change their order
    ('flip', 'fliplr', 'flipud', 'roll', 'narrow', 'gather', 'index_select', 'take_along_dim'),
    lambda pairs, output, _: output if pairs[0].place('batch') is None else joined(pairs, output)
)
register_routing(
    ('permute', 'transpose', 'swapaxes', 'swapdims', 'movedim', 'moveaxis', 't', 'adjoint', 'unsqueeze', 'squeeze',
     'select', 'repeat', 'tile', 'repeat_interleave', 'pixel_shuffle', 'pixel_unshuffle', 'channel_shuffle',
     'native_channel_shuffle', '__getitem__', 'unfold', 'rot90', 'diagonal', 'masked_select', 'atleast_1d',
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
            return output
