'''Writing at constant indices: functions that copy entries to places of another tensor, add them there, or take their
maxima, as message passing over graphs does.'''
from functools import partial

import torch

from ..core.axes import UNKNOWN, Axes, Axis, some_samples
from ..core.blocks import activated, linear, summands
from ..core.pair import SplitTensor, pairs_in, unsupported
from .arithmetic import computed_by, of_both, streams, valued
from .pooling import opposite, pool
from .reading import refuse_comparison
from .table import form_of_each, overloads, plain, torch_form


def along(target, dim, of_rows, pairs, output, function=None):
    '''Note that entries were moved along one axis: the largest depth of several pairs, and the other axes on which they
    agree. All that is in an entry may be moved with it, so that samples stay samples. Without an axis, they were moved
    within a target, whose axes stay if it is a pair.'''
    shape, found = output.values[0].shape, []
    output.depth = max(pair.depth for pair in pairs)
    if dim is None:
        known = target.axes if isinstance(target, SplitTensor) else UNKNOWN
        output.axes = known._replace(places=output.axes.places)
        return output
    for name in ('batch', 'channels'):
        index, *others = {pair.axis(name) for pair in pairs}
        stays = index is not None and not others and index % len(shape) != dim % len(shape)
        stays = stays and shape[index] == getattr(pairs[0].axes, name).length
        found.append(Axis.at(shape, index) if stays else None)
    output.axes = Axes(*found, output.axes.places)
    return some_samples(pairs, output, dim) if of_rows else output


def moved(function, target, indices, source, dim=None):
    '''A function ``(target, *indices, source) -> tensor`` that moves entries of both, along an axis where there is
    one.'''
    indices = plain(indices)
    return of_both(lambda own, other: function(own, *indices, other), target, source,
                   note_axes=partial(along, target, dim, is_row(indices)))


def summed(function, target, indices, source, dim=None, scales=False, of_sums=None):
    '''The same for a function that adds up entries with coefficients that are not negative. Those of the target's own
    entries may differ from one if it ``scales`` them. The sums may have a function of their own.'''
    indices, of_sums = plain(indices), of_sums or function
    (own, other), (own_sum, other_sum) = streams(target, source)
    note_axes = partial(along, target, dim, is_row(indices))
    if not isinstance(target, SplitTensor):
        return linear(source, lambda tensor: function(own, *indices, tensor),
                      lambda total: of_sums(own_sum, *indices, total), note_axes)
    if not isinstance(source, SplitTensor):
        return linear(target, lambda tensor: function(tensor, *indices, other),
                      lambda total: of_sums(total, *indices, other_sum), note_axes)
    kept = summed(function, target, indices, torch.zeros_like(other), dim) if scales else target
    added = summed(function, torch.zeros_like(own), indices, source, dim, of_sums=of_sums)
    shares = (target.split_pass.rule.shared(pair, summands(kept, added)).tensors for pair in (kept, added))
    output = valued(target.like(*map(torch.add, *shares)), function(plain(target), *indices, plain(source)))
    return note_axes([target, source], output)


def is_row(indices):
    '''Whether the last of some indices has one number for each entry along an axis.'''
    return bool(indices) and isinstance(indices[-1], torch.Tensor) and indices[-1].ndim == 1


# copies

@torch_form('scatter')
def scatter(target, dim, index, src=None, value=None, reduce=None):
    src = value if src is None else src
    if reduce not in (None, 'add'):
        raise unsupported('scatter', (target, src), f' for reduce={reduce!r}')
    if reduce == 'add':
        is_number = not isinstance(src, torch.Tensor)
        src = torch.full(index.shape, src, dtype=target.dtype, device=index.device) if is_number else src
        return scatter_add(target, dim, index, src)
    if isinstance(src, SplitTensor) and src.values[0].ndim == 0:
        src = src.expand(index.shape)
    return moved(torch.scatter, target, (dim, index), src, dim)


@torch_form('index_copy')
def index_copy(target, dim, index, source):
    return moved(torch.index_copy, target, (dim, index), source, dim)


@torch_form('index_fill')
def index_fill(target, dim, index, value):
    return moved(torch.index_fill, target, (dim, index), value, dim)


@torch_form('masked_scatter')
def masked_scatter(target, mask, source):
    refuse_comparison(mask, target, source)
    return moved(torch.masked_scatter, target, (mask,), source)


@form_of_each(overloads('select_scatter', 'slice_scatter', 'diagonal_scatter'))
def part_scatter(function, target, src, *args, **kwargs):
    return moved(lambda *both: function(*both, *args, **kwargs), target, (), src)


@torch_form('index_put')
def index_put(target, indices, values, accumulate=False):
    for index in indices:
        refuse_comparison(index, target, values)
    # the operator also takes None for a whole axis, as graphs of torch.export have it
    write, function = (summed if accumulate else moved), partial(torch.ops.aten.index_put, accumulate=accumulate)
    return write(function, target, (tuple(indices),), values)


# sums

@torch_form('index_add')
def index_add(target, dim, index, source, *, alpha=1):
    function, of_sums = (partial(torch.index_add, alpha=factor) for factor in (alpha, abs(alpha)))
    return summed(function, target, (dim, index), source, dim, of_sums=of_sums)


@torch_form('scatter_add')
def scatter_add(target, dim, index, src):
    return summed(torch.scatter_add, target, (dim, index), src, dim)


# reductions

@torch_form('scatter_reduce')
def scatter_reduce(target, dim, index, src, reduce, *, include_self=True):
    if reduce in ('sum', 'mean'):
        function = partial(torch.scatter_reduce, reduce=reduce, include_self=include_self)
        return summed(function, target, (dim, index), src, dim, scales=True)
    if reduce == 'amax':
        return scatter_amax(target, src, dim, plain(index), include_self)
    if reduce == 'amin':
        return opposite(lambda *both: scatter_amax(*both, dim, plain(index), include_self))(target, src)
    raise unsupported('scatter_reduce', (target, src), f' for reduce={reduce!r}')


def scatter_amax(target, src, dim, index, include_self):
    '''The largest of the entries that come to a place, which share it where they are equal, as they share torch's
    gradient. Where none comes, the target stays.'''
    (own, source), (own_sum, source_sum) = streams(target, src)
    source, source_sum = (each[tuple(map(slice, index.shape))] for each in (source, source_sum))

    def gathered(tensor, base):
        return torch.scatter_add(base, dim, index, tensor)

    difference = torch.scatter_reduce(own, dim, index, source, 'amax', include_self=include_self)
    counted, dtype = torch.zeros_like(own_sum), own_sum.dtype
    stays = gathered(torch.ones_like(source_sum), counted) == 0
    takes_part = torch.ones_like(stays) if include_self else stays
    won = (source == difference.gather(dim, index)).to(dtype)
    won_self = ((own == difference) & takes_part).to(dtype)
    count = gathered(won, won_self)
    winner = gathered(source_sum * (won / count.gather(dim, index)), own_sum * (won_self / count))

    def window_sum(tensor, base):
        return gathered(tensor, base * takes_part)

    pairs = pairs_in((target, src))
    output = pool(pairs[0], difference, winner, lambda: window_sum(source_sum, own_sum) + (
        difference - window_sum(source, own)
    ))
    return activated(along(target, dim, False, pairs, output))


@torch_form('index_reduce')
@computed_by(torch.index_reduce)
def index_reduce(target, dim, index, source, reduce, *, include_self=True):
    places = plain(index)
    if source.ndim:
        places = places.reshape([-1 if axis == dim % source.ndim else 1 for axis in range(source.ndim)])
    places = places.reshape(()) if source.ndim == 0 else places.expand(source.shape)
    return scatter_reduce(target, dim, places, source, reduce, include_self=include_self)

