'''Writing at constant indices: functions that copy entries to places of another tensor, add them there, or take their
maxima, as message passing over graphs does.'''
import torch

from ..core.axes import Axis
from ..core.blocks import activated, add, linear
from ..core.pair import SplitTensor, pairs_in, sum_dtype, unsupported
from ..core.registry import split_form
from .arithmetic import negation, parts, valued
from .pooling import negated, pool
from .reading import refuse_comparison
from .table import overloads, plain, torch_form


def streams(*operands):
    '''The differences of some pairs or constants, and their sums, which have one dtype.'''
    differences, sums = zip(*map(parts, operands))
    dtype = sum_dtype(pairs_in(operands)[0].values[0].dtype)
    return differences, [each.to(dtype) if isinstance(each, torch.Tensor) else each for each in sums]


def along(operands, dim, output):
    '''An output whose entries were moved along one axis, with the depth of its pairs, and the other axes on which they
    agree.'''
    pairs, shape = pairs_in(operands), output.values[0].shape
    output.depth = max(pair.depth for pair in pairs)
    for name in ('batch', 'channels'):
        places = {pair.place(name) for pair in pairs}
        place = places.pop() if len(places) == 1 and dim is not None else None
        stays = place is not None and place % len(shape) != dim % len(shape)
        stays = stays and shape[place] == getattr(pairs[0], name).length
        setattr(output, name, Axis.at(shape, place) if stays else None)
    return output


def moved(function, dim, *operands):
    '''A function that moves the entries of tensors, which are pairs or constants.'''
    output = pairs_in(operands)[0].like(*(function(*each) for each in streams(*operands)))
    return along(operands, dim, output)


def summed(function, dim, target, source, scales=False, sum_function=None):
    '''A function ``(target, source) -> tensor`` that adds up entries of both with coefficients that are not negative;
    of the target's own there are others than one if it ``scales`` them. There may be another one for the sums.'''
    of_sums = function if sum_function is None else sum_function
    differences, sums = streams(target, source)
    if isinstance(target, SplitTensor) and isinstance(source, SplitTensor):
        own, other = (torch.zeros_like(each) for each in differences)
        kept = linear(target, lambda tensor: function(tensor, other.to(tensor.dtype))) if scales else target
        added = linear(source, lambda tensor: function(own, tensor), lambda total: of_sums(own.to(total.dtype), total))
        output = valued(add((kept, added), torch.add), function(*plain((target, source))))
    elif isinstance(target, SplitTensor):
        output = linear(target, lambda tensor: function(tensor, source), lambda total: of_sums(total, sums[1]))
    else:
        output = linear(source, lambda tensor: function(target, tensor), lambda total: of_sums(sums[0], total))
    return along((target, source), dim, output)


# copies

@torch_form('scatter', inplace=('scatter_',))
def scatter(target, dim, index, src=None, value=None, reduce=None):
    src, index = value if src is None else src, plain(index)
    if reduce is not None:
        if reduce != 'add':
            raise unsupported('scatter', (target, src), f' for reduce={reduce!r}')
        if not isinstance(src, torch.Tensor):
            src = torch.full(index.shape, src, dtype=target.dtype, device=index.device)
        return scatter_add(target, dim, index, src)
    if isinstance(src, SplitTensor) and src.values[0].ndim == 0:
        src = src.expand(index.shape)
    return moved(lambda *both: torch.scatter(both[0], dim, index, both[1]), dim, target, src)


@torch_form('index_copy', inplace=('index_copy_',))
def index_copy(target, dim, index, source=None, *, tensor=None):
    source, index = tensor if source is None else source, plain(index)
    return moved(lambda *both: torch.index_copy(both[0], dim, index, both[1]), dim, target, source)


@torch_form('index_fill', inplace=('index_fill_',))
def index_fill(target, dim, index, value):
    return moved(lambda *both: torch.index_fill(both[0], dim, plain(index), both[1]), dim, target, value)


@torch_form('masked_scatter', inplace=('masked_scatter_',))
def masked_scatter(target, mask, source):
    mask = plain(mask)
    refuse_comparison(mask, target, source)
    return keep_target(target, moved(lambda *both: torch.masked_scatter(both[0], mask, both[1]), None, target, source))


def keep_target(target, output):
    '''An output with the axes of what was written into, if that is a pair.'''
    if isinstance(target, SplitTensor):
        output.batch, output.channels = target.batch, target.channels
    return output


for function in overloads('select_scatter', 'slice_scatter', 'diagonal_scatter'):
    @split_form(function)
    def part_scatter(target, src, *args, function=function, **kwargs):
        return keep_target(target, moved(lambda *both: function(*both, *args, **kwargs), None, target, src))


@torch_form('index_put', inplace=('index_put_',))
def index_put(target, indices, values, accumulate=False):
    indices = plain(tuple(indices))
    for index in indices:
        refuse_comparison(index, target, values)
    if accumulate:
        output = summed(lambda *both: torch.index_put(both[0], indices, both[1], True), None, target, values)
    else:
        output = moved(lambda *both: torch.index_put(both[0], indices, both[1]), None, target, values)
    return keep_target(target, output)


# sums

@torch_form('index_add', inplace=('index_add_',))
def index_add(target, dim, index, source, *, alpha=1):
    index = plain(index)
    return summed(
        lambda *both: torch.index_add(both[0], dim, index, both[1], alpha=alpha), dim, target, source,
        sum_function=lambda *both: torch.index_add(both[0], dim, index, both[1], alpha=abs(alpha))
    )


@torch_form('scatter_add', inplace=('scatter_add_',))
def scatter_add(target, dim, index, src):
    index = plain(index)
    return summed(lambda *both: torch.scatter_add(both[0], dim, index, both[1]), dim, target, src)


# reductions

@torch_form('scatter_reduce', inplace=('scatter_reduce_',))
def scatter_reduce(target, dim, index, src, reduce, *, include_self=True):
    index = plain(index)
    if reduce in ('sum', 'mean'):
        return summed(
            lambda *both: torch.scatter_reduce(both[0], dim, index, both[1], reduce, include_self=include_self), dim,
            target, src, scales=True
        )
    if reduce == 'amax':
        return scatter_amax(target, dim, index, src, include_self)
    if reduce == 'amin':
        return negation(scatter_amax(negated(target), dim, index, negated(src), include_self))
    raise unsupported('scatter_reduce', (target, src), f' for reduce={reduce!r}')


def scatter_amax(target, dim, index, src, include_self):
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

    def window_sum(tensors):
        return gathered(tensors[1], tensors[0] * takes_part)

    pair = pairs_in((target, src))[0]
    output = pool(pair, difference, winner, lambda: window_sum((own_sum, source_sum)) + (
        difference - window_sum((own, source))
    ))
    return activated(along((target, src), dim, output))


@torch_form('index_reduce', inplace=('index_reduce_',))
def index_reduce(target, dim, index, source, reduce, *, include_self=True):
    shape = [1] * source.ndim
    shape[dim] = -1
    places = plain(index).reshape(shape).expand(source.shape)
    output = scatter_reduce(target, dim, places, source, reduce, include_self=include_self)
    value = torch.index_reduce(*plain((target, dim, index, source)), reduce, include_self=include_self)
    return valued(output, value)

