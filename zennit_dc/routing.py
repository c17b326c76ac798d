'''Routing: functions that only move values, for which the split form is the same for both tensors.'''
import torch
from torch.nn import functional as F

from .functional import overloads, plain
from .growth import align
from .operations import as_pair, common_axis, route, to_dtype
from .split import SplitTensor, pairs_in, split_form


PERMUTATIONS = ('permute', 'transpose', 'swapaxes', 'swapdims', 'movedim', 'moveaxis', 't', 'T', 'mT', 'H', 'mH')
SELECTIONS = ('select', 'unbind', '__getitem__')


def move_axes(pair, name, output, function, args):
    '''Note where the axes of batch and channels are behind a function.'''
    output.batch_axis, output.channel_axis = (
        moved_axis(axis, pair.difference.shape, output.difference.shape, name, function, args)
        for axis in (pair.batch_axis, pair.channel_axis)
    )


def moved_axis(axis, before, behind, name, function, args):
    '''Where an axis is behind a function, or None if it is no axis any more, or not known to be one.'''
    if axis is None or axis >= len(before):
        return None
    if name in PERMUTATIONS:
        # an axis is found again by its length, in a tensor in which all lengths are different
        probe = torch.empty(tuple(range(2, 2 + len(before))), device='meta')
        return list(function(probe).shape).index(axis + 2)
    if name == 'unsqueeze':
        return axis + (args[0] % (len(before) + 1) <= axis)
    if name == 'squeeze' and args and isinstance(args[0], int):
        dim = args[0] % len(before)
        return axis if len(behind) == len(before) else None if dim == axis else axis - (dim < axis)
    if name in ('select', 'unbind'):
        dim = (args[0] if args else 0) % len(before)
        return None if dim == axis else axis - (dim < axis)
    if name == '__getitem__':
        index = args[0] if isinstance(args[0], tuple) else (args[0],)
        if axis == 0:
            return 0 if isinstance(index[0], slice) or index[0] is Ellipsis else None
        return axis - 1 if len(index) == 1 and isinstance(index[0], int) else None
    if len(behind) == len(before) and behind[axis] == before[axis]:
        return axis
    # rows that begin with the batch's axis, of which each belongs to one sample
    return 0 if axis == 0 and len(behind) and before[0] and behind[0] % before[0] == 0 else None


def routed(pair, name, function, args=()):
    '''The pair that a function of tensors makes, with its batch axis.'''
    output = route(pair, function)
    if output is not pair:
        move_axes(pair, name, output, function, args)
    return output


for name in (
    'flatten', 'unflatten', 'reshape', 'permute', 'transpose', 'swapaxes', 'swapdims', 'movedim', 'moveaxis',
    't', 'unsqueeze', 'squeeze', 'expand', 'narrow', 'select', 'contiguous', 'clone', 'flip', 'roll', 'repeat', 'tile',
    'repeat_interleave', 'index_select', 'pixel_shuffle', 'pixel_unshuffle', 'channel_shuffle', '__getitem__',
    'reshape_as', 'expand_as', 'broadcast_to', 'detach', 'ravel', 'unfold', 'native_channel_shuffle',
    'fliplr', 'flipud', 'rot90', 'diagonal', 'take_along_dim', 'gather', 'masked_select', 'alias_copy',
):
    for function in overloads(name):
        @split_form(function)
        def routing(pair, *args, function=function, name=name, **kwargs):
            if not isinstance(pair, SplitTensor):
                return function(pair, *plain(args), **plain(kwargs))
            values = [*args, *(kwargs[key] for key in ('dim',) if key in kwargs)]
            return routed(pair, name, lambda tensor: function(tensor, *plain(args), **plain(kwargs)), values)


@split_form(torch.Tensor.view, torch.Tensor.view_as)
def view(pair, *shape):
    if not isinstance(pair, SplitTensor):
        return pair.view(shape[0].shape)
    difference = pair.difference.view(*shape) if not isinstance(shape[0], torch.Tensor) else (
        pair.difference.view(shape[0].shape)
    )
    # the sum may lie in memory in another order than the difference
    output = pair.like(difference, pair._stream_sum.reshape(difference.shape))
    move_axes(pair, 'view', output, None, ())
    return output


for getter in ('T', 'mT', 'H', 'mH'):
    @split_form(getattr(torch.Tensor, getter).__get__)
    def transposed(pair, *args, getter=getter):
        return routed(pair, getter, lambda tensor: getattr(tensor, getter))


for name in ('chunk', 'split', 'tensor_split', 'unbind', 'unsafe_chunk', 'unsafe_split', 'split_with_sizes'):
    for function in overloads(name):
        @split_form(function)
        def pieces(pair, *args, function=function, name=name, **kwargs):
            outputs = tuple(
                pair.like(difference, stream_sum) for difference, stream_sum in zip(
                    function(pair.difference, *args, **kwargs), function(pair._stream_sum, *args, **kwargs)
                )
            )
            values = [*args, *(kwargs[key] for key in ('dim',) if key in kwargs)]
            for output in outputs:
                move_axes(pair, name, output, None, values)
            return outputs


@split_form(torch.Tensor.__iter__)
def iterate(pair):
    return iter(pair.unbind(0))


for name in ('to', 'float', 'double', 'half', 'bfloat16', 'type', 'cpu', 'cuda', 'type_as'):
    for function in overloads(name):
        @split_form(function)
        def conversion(pair, *args, function=function, **kwargs):
            if not isinstance(pair, SplitTensor):
                return function(pair, *plain(args), **plain(kwargs))
            return to_dtype(pair, lambda tensor: function(tensor, *plain(args), **plain(kwargs)))


for name in ('cat', 'concat', 'concatenate', 'stack', 'hstack', 'vstack', 'dstack'):
    for function in overloads(name):
        @split_form(function)
        def joining(tensors, *args, function=function, name=name, **kwargs):
            form = next(pairs_in(tensors)).form
            pairs = [tensor if isinstance(tensor, SplitTensor) else as_pair(tensor, form) for tensor in tensors]
            aligned = align([pair for pair, tensor in zip(pairs, tensors) if pair is tensor])
            first = aligned[0]
            places = iter(aligned)
            pairs = [next(places) if pair is tensor else pair for pair, tensor in zip(pairs, tensors)]
            output = first.like(
                function([pair.difference for pair in pairs], *args, **kwargs),
                function([pair._stream_sum for pair in pairs], *args, **kwargs),
            )
            output.batch_axis = common_axis(aligned)
            if output.ndim > first.ndim and output.batch_axis is not None:
                dim = kwargs.get('dim', args[0] if args else 0)
                output.batch_axis += dim % output.ndim <= output.batch_axis
            return output


@split_form(F.pad)
def pad(pair, pad, mode='constant', value=None):
    return pair.like(
        F.pad(pair.difference, pad, mode, value),
        F.pad(pair._stream_sum, pad, mode, None if value is None else abs(value)),
    )
