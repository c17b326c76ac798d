'''Routing: functions that only move values, for which the split form is the same for both tensors.'''
from functools import partial
from itertools import accumulate, pairwise

import torch

from ..core.axes import follow_axes, same_axes, same_order, some_samples
from ..core.blocks import route
from ..core.following import Place, follow_places, joined_places, note_order, note_tokens
from ..core.pair import INPUT, RECTIFIED, SplitTensor, pairs_in, unsupported
from ..core.registry import split_form
from ..core.views import as_view, at_strides, laid_out
from .arithmetic import of_both, selects_rows
from .reading import known
from .table import form_of_each, getters, keep_layer, overloads, plain, to_dtype, torch_form


def of_one_tensor(function, note_axes, block=route):
    '''The form of a function of one tensor, by its building block, and by what notes where axes are then.'''
    def form(pair, *args, **kwargs):
        args, kwargs = plain(args), plain(kwargs)
        if not isinstance(pair, SplitTensor):
            return function(pair, *args, **kwargs)

        def apply(tensor):
            return function(tensor, *args, **kwargs)

        return block(pair, apply, note_axes=note_axes)
    return form


def register(functions, note_axes, block=route):
    '''Register functions of one tensor, see :py:func:`of_one_tensor`.'''
    for function in functions:
        split_form(function)(of_one_tensor(function, note_axes, block))


register(overloads('flatten', 'unflatten', 'reshape', 'reshape_as', 'ravel'), same_order)
register(overloads('clone', 'alias_copy', 'expand', 'expand_as', 'broadcast_to'), same_axes)
register(overloads('contiguous', 'positive', '__pos__', 'resolve_conj', 'resolve_neg'), keep_layer)


def reordered(pairs, output, function, reverses=False):
    '''Note the axes where entries change their order, in which parts of axes are lost.'''
    places = follow_places(pairs, output, function, reverses).axes.places if pairs[0].axes.places else {}
    if pairs[0].axis('batch') is not None:
        same_axes(pairs, output)
    output.axes = output.axes._replace(places=places)
    return note_order(pairs[0], output, function)


def turned(pairs, output, function):
    '''Note the axes where they are swapped and reversed.'''
    follow_axes(pairs, output, function)
    return follow_places(pairs, output, function, reverses=True) if pairs[0].axes.places else output


def entries(pairs, output, function):
    '''Note the axes of entries at indices, which may put samples in another order.'''
    return note_order(pairs[0], follow_axes(pairs, output, function), function)


def in_order(pairs, output, function):
    '''Note the axes where others of length one come or go. That of a batch of one may go, and come back.'''
    follow_axes(pairs, output, function)
    batch = pairs[0].axes.batch
    if batch is not None and output.axes.batch is None:
        output.axes = output.axes._replace(batch=batch.reshaped(output.values[0].shape))
    return output


register(overloads('squeeze', 'unsqueeze'), in_order)
register(overloads('roll'), reordered)


@form_of_each(overloads('atleast_1d', 'atleast_2d', 'atleast_3d'))
def of_each_tensor(function, *tensors):
    '''A function of one tensor, or of several, each by itself.'''
    found = tuple(of_one_tensor(function, in_order)(each) for each in tensors)
    return found if len(found) > 1 else found[0]


def chosen(dim, pairs, output, function):
    '''Note the axes of some entries along one. If that is the axis of samples, it is not known to be one afterwards,
    even where all are chosen, as a sample's map must not depend on how many are.'''
    reordered(pairs, output, function)
    batch, shape = pairs[0].axes.batch, pairs[0].values[0].shape
    if batch is not None and batch.may_be_in(shape, dim):
        output.axes = output.axes._replace(batch=None)
    return output


def chosen_whole(dim, pairs, output, function):
    '''Note the axes of some entries along one, with all that is in them: of the axis of samples, these are samples.'''
    return some_samples(pairs, chosen(dim, pairs, output, function), dim)


@form_of_each(overloads('gather', 'index_select', 'narrow'))
def some_entries(function, pair, dim, *args, **kwargs):
    note_axes = partial(chosen if function.__name__ == 'gather' else chosen_whole, dim)
    return of_one_tensor(function, note_axes)(pair, dim, *args, **kwargs)


register(overloads('flip', 'fliplr', 'flipud'), partial(reordered, reverses=True))
register(overloads('rot90'), turned)
register(overloads(
    'permute', 'transpose', 'swapaxes', 'swapdims', 'movedim', 'moveaxis', 't', 'adjoint', 'select', 'repeat', 'tile',
    'repeat_interleave', 'pixel_shuffle', 'pixel_unshuffle', 'channel_shuffle', 'native_channel_shuffle', 'unfold',
    'diagonal', 'masked_select', 'diag', 'diag_embed', 'take', 'max_unpool1d', 'max_unpool2d', 'max_unpool3d'
), follow_axes)


@split_form(torch.Tensor.__getitem__)
def item(pair, index):
    keys = index if isinstance(index, tuple) else (index,)
    is_whole = all(key is None or key is Ellipsis or (isinstance(key, slice) and key == slice(None)) for key in keys)
    output = of_one_tensor(torch.Tensor.__getitem__, in_order if is_whole else entries)(pair, index)
    return some_samples([pair], output, 0) if isinstance(pair, SplitTensor) and selects_rows(index) else output


for name in ('tril', 'triu'):
    torch_form(name)(of_one_tensor(getattr(torch, name), same_axes))
register(getters('T', 'mT', 'H', 'mH'), follow_axes)


@torch_form('nan_to_num')
def nan_to_num(pair, nan=None, posinf=None, neginf=None):
    '''Finite entries as they are, and constants in place of others.'''
    difference, stream_sum = pair.tensors
    output, kept = torch.nan_to_num(difference, nan, posinf, neginf), torch.isfinite(difference)
    output = pair.replaced(output, torch.where(kept, stream_sum, output.detach().abs().to(stream_sum.dtype)))
    output.facts = pair.facts & {INPUT}
    return output


@split_form(*overloads('as_strided'))
def as_strided(pair, size, stride, storage_offset=None):
    '''A view of the memory of the pair that this one is itself a view of.'''
    root, difference = pair.whole, pair.difference
    own = root.difference
    if torch.empty_like(own).stride() != own.stride():
        raise unsupported('as_strided', (pair,), ' of a part of memory', 'call .contiguous() before')
    offset, strides = difference.storage_offset() if storage_offset is None else storage_offset, own.stride()
    offset -= own.storage_offset()

    def move(tensor):
        return at_strides(size, stride, offset, laid_out(tensor, strides))

    output = pair.like(difference.as_strided(size, stride, storage_offset), move(root.tensors[1]))
    return as_view(output, root, move)


@split_form(torch.broadcast_tensors)
def broadcast_tensors(*tensors):
    tensors = tensors[0] if isinstance(tensors[0], (tuple, list)) else tensors
    shape = torch.broadcast_shapes(*(each.shape for each in tensors))
    return tuple(each.broadcast_to(shape) for each in tensors)


@torch_form('take_along_dim')
def take_along_dim(pair, indices, dim=None):
    if dim is None:
        return pair.reshape(-1).take_along_dim(indices.reshape(-1), 0)
    return of_one_tensor(torch.take_along_dim, partial(chosen, dim))(pair, indices, dim)


@torch_form('diff')
def diff(pair, n=1, dim=-1, prepend=None, append=None):
    '''Differences of neighbours, n times.'''
    if n < 1:  # for which torch does not look at what is around
        return of_one_tensor(torch.diff, same_axes)(pair, n, dim)
    around = [each for each in (prepend, pair, append) if each is not None]
    pair = torch.cat(around, dim) if len(around) > 1 else pair
    for _ in range(min(n, pair.shape[dim])):
        length = pair.shape[dim] - 1
        pair = pair.narrow(dim, 1, length) - pair.narrow(dim, 0, length)
    return pair


@form_of_each(overloads('view', 'view_as'))
def view(function, pair, *args, **kwargs):
    viewed = function(*plain((pair, *args)), **plain(kwargs))
    if not isinstance(pair, SplitTensor):
        return viewed
    if viewed.dtype != pair.dtype:
        raise unsupported('view', (pair,), f' as {viewed.dtype}, as it is about bits')
    # the sum may lie in memory in another order than the difference
    return route(pair, lambda tensor: tensor.reshape(viewed.shape), same_order)


@form_of_each(overloads(
    'chunk', 'split', 'tensor_split', 'unsafe_chunk', 'unsafe_split', 'split_with_sizes', 'hsplit', 'vsplit', 'dsplit'
))
def pieces(function, pair, *args, **kwargs):
    axes = {'hsplit': min(pair.values[0].ndim - 1, 1), 'vsplit': 0, 'dsplit': 2}
    dim = axes.get(function.__name__, kwargs.get('dim', args[1] if len(args) > 1 else 0))
    lengths = [piece.shape[dim] for piece in function(pair.difference.detach(), *args, **kwargs)]
    # each by its own, as torch does not let the views of one function be changed in place
    return tuple(pair.narrow(dim, end - length, length) for end, length in zip(accumulate(lengths), lengths))


@torch_form('unbind')
def unbind(pair, dim=0):
    return tuple(pair.select(dim, index) for index in range(pair.values[0].shape[dim]))


@form_of_each(overloads(
    'to', 'float', 'double', 'half', 'bfloat16', 'type', 'cpu', 'cuda', 'type_as', 'long', 'int', 'short', 'char',
    'byte', 'bool',
))
def conversion(function, pair, *args, **kwargs):
    args, kwargs = plain(args), plain(kwargs)
    if not isinstance(pair, SplitTensor):
        return function(pair, *args, **kwargs)
    converted = function(pair.values[0], *args, **kwargs)
    if not isinstance(converted, torch.Tensor) or converted.dtype is torch.bool:  # a type's name, or a mask
        return converted
    if not converted.is_floating_point():
        return known(converted.detach(), 'a cast to integers', (pair,))
    return to_dtype(pair, lambda tensor: function(tensor, *args, **kwargs))


@form_of_each(overloads(
    'cat', 'concat', 'concatenate', 'stack', 'hstack', 'vstack', 'dstack', 'column_stack', 'row_stack'
))
def joining(function, tensors, *args, **kwargs):
    def join(*each):
        return function(each, *args, **kwargs)

    def of_one(tensor):
        return join(*[tensor] * len(tensors))

    pairs, output, name = pairs_in(tensors), of_both(join, *tensors), function.__name__
    if len(pairs) == len(tensors):
        output.facts = frozenset.intersection(*(pair.facts for pair in pairs)) & {RECTIFIED}
    if 'stack' in name and len({pair.axes.batch for pair in pairs}) == 1:  # which may insert an axis anywhere
        follow_axes(pairs[:1], output, of_one)
        output.depth = max(pair.depth for pair in pairs)
    if any(pair.axes.batch is not None and pair.axes.batch.is_part for pair in pairs) and 'stack' not in name:
        some_samples(pairs, output, kwargs.get('dim', next(iter(args), 0)))
    if any(pair.axes.places for pair in pairs):
        return stacked(pairs, output, of_one) if name == 'stack' else in_row(tensors, output)
    return output


def stacked(pairs, output, function):
    '''Note where the axes of inputs are in stacked tensors, by a function that stacks as many copies of one.'''
    shape = output.values[0].shape
    found = [follow_places([pair], output.like(*output.values), function) for pair in pairs]
    output.axes = output.axes._replace(places=joined_places([(each.axes.places, shape) for each in found], shape))
    return output


def in_row(tensors, output):
    '''Note where the axes of inputs are in tensors that are joined: where an axis has others before it, as class tokens
    are, behind these.'''
    shape, dims = output.values[0].shape, [*range(output.values[0].ndim)]
    lengths = {index: [each.shape[index] if each.ndim == len(shape) else -1 for each in tensors] for index in dims}
    along = [index for index in dims if sum(lengths[index]) == shape[index] != lengths[index][0]]
    before = [0, *accumulate(lengths[along[0]])] if len(along) == 1 else None
    places = {} if before is None else {
        key: among_others(key, [*zip(tensors, before)], along[0], before[-1])
        for key in {key: None for pair in pairs_in(tensors) for key in pair.axes.places}
    }
    output.axes = output.axes._replace(places=places)
    return note_tokens(output)


def among_others(key, tensors, along, total):
    '''The place of an input's axis in tensors that are joined along an axis, each with the length of those before, in a
    total length; or None where it is lost in one of them, as it is where one entry of it is left.'''
    known = [(pair.axes.places[key], pair.values[0].shape, before) for pair, before in tensors
             if isinstance(pair, SplitTensor) and key in pair.axes.places]
    if any(place is None for place, _, _ in known):
        return None
    moved = [place if place.axis != along else place._replace(
        first=place.first + before, behind=place.behind + total - before - shape[along]
    ) for place, shape, before in known]
    if len({place[:5] for place in moved}) <= 1:
        return Place.joined(moved) if moved else None
    pieces = all(place.axis == along and place.is_whole(shape) for place, shape, _ in known)
    if pieces and all(one.window[1] == two.window[0] and one.first + one.length == two.first
                      for one, two in pairwise(moved)):
        length, window = sum(place.length for place in moved), (moved[0].window[0], moved[-1].window[1])
        return moved[0]._replace(length=length, window=window, behind=moved[-1].behind)
    return None
