'''Max-pooling, maxima and orders, in both split forms: the winner takes all, or convex streams (section 3.4).'''
import torch
from torch.nn import functional as F

from ..core.axes import follow_axes, same_axes
from ..core.blocks import activated, passing
from ..core.following import mixed
from ..core.graphs import without_rectified
from ..core.pair import SplitTensor, pairs_in, unsupported
from ..core.registry import split_form
from ..core.table import FORMS
from .arithmetic import streams
from .linear import per_axis
from .table import form_of_each, overloads, torch_form


def pool(pair, difference, winner, convex):
    '''The split form of a maximum (section 3.4).

    Parameters
    ----------
    pair : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The input.
    difference : :py:class:`torch.Tensor`
        The largest difference of each window.
    winner : :py:class:`torch.Tensor`
        The sum at the place of the largest difference.
    convex : callable
        A function that returns the sum for ``pooling='convex'``: the largest difference plus the window's sum of
        :math:`s - d`.

    Returns
    -------
    :py:class:`~zennit_dc.core.pair.SplitTensor`
        The output, about whose axes nothing is known.
    '''
    output = pair.like(difference, winner)
    if pair.split_pass.settings.pooling == 'wta':
        return output
    return passing(pair.like(difference, convex()), output.tensors)


def pool_windows(pair, difference, winners, window_sum):
    '''The split form of max-pooling, from functions that pick the winners' entries of a tensor, and that sum it over
    windows.'''
    original, stream_sum = pair.tensors
    return pool(pair, difference, winners(stream_sum),
                lambda: window_sum(stream_sum) + (difference - window_sum(original)))


def adaptive_sums(tensor, shape, *args, **kwargs):
    '''The sums of a tensor over the windows of an adaptive pooling with an output of a spatial shape.'''
    axes = len(shape)
    sums = getattr(F, f'adaptive_avg_pool{axes}d')(tensor, shape)
    for axis, windows in enumerate(shape, -axes):
        places, size = torch.arange(windows, device=tensor.device), tensor.shape[axis]
        counts = ((places + 1) * size + windows - 1) // windows - places * size // windows
        sums = sums * counts.to(sums.dtype).reshape(-1, *(1,) * (-axis - 1))
    return sums


def window_sums(tensor, shape, kernel_size, stride=None, padding=0, dilation=1, *args, **kwargs):
    '''The sums of a tensor over the windows of a pooling with an output of a spatial shape.'''
    axes = len(shape)
    settings = kernel_size, stride or kernel_size, padding, dilation
    kernel, stride, padding, dilation = (per_axis(value, axes) for value in settings)
    spatial = tensor.shape[-axes:]
    edges = []  # what ceil_mode needs after the last window, from the last axis on as F.pad counts
    for windows, step, width, size, length, pad in zip(shape, stride, dilation, kernel, spatial, padding):
        edges = [pad, max((windows - 1) * step + width * (size - 1) + 1 - length - pad, pad), *edges]
    padded = F.pad(tensor.reshape(-1, 1, *spatial), edges)
    sums = getattr(F, f'conv{axes}d')(padded, padded.new_ones(1, 1, *kernel), stride=stride, dilation=dilation)
    return sums[(..., *map(slice, shape))].reshape(*tensor.shape[:-axes], *shape)


class Pick(torch.autograd.Function):
    '''The entries of a tensor at indices along its last axis, for whose gradient the tensor itself is not kept.'''
    @staticmethod
    def forward(ctx, tensor, indices):
        ctx.set_materialize_grads(False)
        ctx.shape = tensor.shape
        ctx.save_for_backward(indices)
        return tensor.gather(-1, indices)

    @staticmethod
    def backward(ctx, gradient):
        if gradient is None:
            return None, None
        return gradient.new_zeros(ctx.shape).scatter_add(-1, ctx.saved_tensors[0], gradient), None


def register_max_pooling(axes, prefix, sums_of):
    '''Register max-pooling over a number of axes, also with indices.'''
    name = f'{prefix}max_pool{axes}d'
    function = getattr(F, f'{name}_with_indices')

    @torch_form(f'{name}_with_indices')
    def with_indices(pair, *args, return_indices=True, **kwargs):
        with without_rectified(pair):
            difference, indices = function(pair.difference, *args, **kwargs)
        output = pool_windows(
            pair, difference,
            lambda tensor: Pick.apply(tensor.flatten(-axes), indices.flatten(-axes)).view_as(indices),
            lambda tensor: sums_of(tensor, difference.shape[-axes:], *args, **kwargs)
        )
        return same_axes([pair], output), indices

    @torch_form(name)
    def max_pool(pair, *args, return_indices=False, **kwargs):
        output, indices = with_indices(pair, *args, **kwargs)
        return (output, indices) if return_indices else output


for number in (1, 2, 3):
    register_max_pooling(number, '', window_sums)
    register_max_pooling(number, 'adaptive_', adaptive_sums)
# which returns indices, unlike its namesake
split_form(torch.adaptive_max_pool1d)(FORMS[F.adaptive_max_pool1d_with_indices])


# maxima of pairs and over axes

@torch_form('maximum')
def maximum(first, other):
    '''The larger one of two: max-pooling over both (Maxout, equation 17).'''
    # as in torch's gradient, each has a half where they are equal
    return larger(torch.maximum, first, other, lambda one, two: (one > two) + .5 * (one == two))


@torch_form('fmax')
def number_or_maximum(first, other):
    '''The same, but where one of the two is nan, it is the other one.'''
    return larger(torch.fmax, first, other, lambda one, two: ((one > two) | torch.isnan(two)) + .5 * (one == two))


def larger(function, first, other, share):
    '''The larger one of two, by a function that tells the share of the first one.'''
    pairs = list(pairs_in((first, other)))
    (one, two), (one_sum, two_sum) = streams(first, other)
    difference, won = function(one, two), share(one, two)
    # no product, as that of zero and what is infinite is nan
    winner = torch.where(won == .5, one_sum / 2 + two_sum / 2, torch.where(won > .5, one_sum, two_sum))
    output = pool(pairs[0], difference, winner, lambda: one_sum + two_sum + (difference - one - two))
    return activated(same_axes(pairs, output))


@torch_form('amax')
def amax(pair, dim=(), keepdim=False):
    '''The maximum over axes. Entries that are equal share it, as they share torch's gradient.'''
    dims = [*range(pair.values[0].ndim)] if dim == () else dim
    largest = torch.amax(pair.difference, dims, True)
    won = pair.difference == largest
    share = won / won.sum(dims, True)

    def winners(tensor):  # of which others may be infinite, where they are masked
        return torch.where(won, tensor * share.to(tensor.dtype), 0.).sum(dims, True)

    return over_axes(pair, largest, dims, keepdim, winners)


def over_axes(pair, difference, dims, keepdim, winners):
    '''A maximum over axes, from functions that keep these with length one.'''
    output = pool_windows(pair, difference, winners, lambda tensor: tensor.sum(dims, True))
    follow_axes([pair], output, lambda tensor: tensor.sum(dims, True))
    if output.axes.batch is None and pair.axis('batch') is not None:
        raise unsupported('a maximum over the batch axis', (pair,), ', with which the map of an image would depend on'
                          ' the others', 'take it over another axis')
    output = activated(output)
    return output if keepdim else output.squeeze(dims if isinstance(dims, int) else tuple(dims))


@torch_form('max')
def max_of(first, other=None, keepdim=False, *, dim=None):
    '''The maximum over an axis (Maxout, equation 17) and its places, over everything, or of two.'''
    if isinstance(first, torch.Tensor) and isinstance(other, torch.Tensor):
        return maximum(first, other)
    dim = other if dim is None else dim
    if dim is None:
        return amax(first)
    difference, places = torch.max(first.difference, dim, True)
    output = over_axes(first, difference, dim, keepdim, lambda tensor: tensor.gather(dim, places))
    return torch.return_types.max((output, places if keepdim else places.squeeze(dim)))


def opposite(largest):
    '''The form of a minimum: the negative of the maximum of the negatives.'''
    def smallest(*args, **kwargs):
        dtype = pairs_in((args, kwargs))[0].values[0].dtype

        def negated(operand):
            if isinstance(operand, torch.Tensor) and not operand.is_floating_point():
                operand = operand.to(dtype)  # as integers may have no sign
            return -operand if isinstance(operand, torch.Tensor) else operand

        found = largest(*map(negated, args), **{name: negated(each) for name, each in kwargs.items()})
        if isinstance(found, SplitTensor):
            return -found
        return torch.return_types.min((-found.values, found.indices))
    return smallest


for name, largest in (('minimum', maximum), ('fmin', number_or_maximum), ('amin', amax), ('min', max_of)):
    torch_form(name)(opposite(largest))


@torch_form('aminmax')
def aminmax(pair, *, dim=None, keepdim=False):
    dims = () if dim is None else dim
    return torch.return_types.aminmax((pair.amin(dims, keepdim), pair.amax(dims, keepdim)))


@form_of_each(overloads('sort', 'topk'))
def ordered(function, pair, *args, **kwargs):
    '''Order entries by their differences. Each of them takes its sum along.'''
    name = function.__name__
    if pair.split_pass.settings.pooling == 'convex':
        raise unsupported(name, (pair,), ' of convex streams', 'use pooling=\'wta\'')
    found = function(pair.difference, *args, **kwargs)
    dim = kwargs.get('dim', next(iter(args[name == 'topk':]), -1))
    output = same_axes([pair], pair.like(found.values, pair.tensors[1].gather(dim, found.indices)))
    if pair.values[0].ndim:
        mixed(output, dim)
    return type(found)((output, found.indices))
