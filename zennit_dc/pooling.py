'''Max-pooling in both of its split forms: the winner takes all, or convex streams (section 3.4).'''
import torch
from torch.nn import functional as F

from .functional import torch_form
from .growth import Replace
from .operations import as_pair
from .split import SplitTensor, pairs_in, split_form, unsupported


def pool(pair, difference, winners, window_sum):
    '''The split form of max-pooling (section 3.4).

    Parameters
    ----------
    pair : :py:class:`~zennit_dc.split.SplitTensor`
        The input.
    difference : :py:class:`torch.Tensor`
        The largest difference of each window.
    winners : callable
        A function that picks the values at the places of these from a tensor of the input's shape.
    window_sum : callable
        A function that sums such a tensor over each window.

    Returns
    -------
    :py:class:`~zennit_dc.split.SplitTensor`
        The output: the sum at the winner's place, or, for ``pooling='convex'``, the largest difference plus the
        window's sum of :math:`s - d`.
    '''
    winner = winners(pair._stream_sum)
    if pair.form.pooling == 'wta':
        return pair.like(difference, winner)
    change = difference - window_sum(pair.difference)
    if pair.form.sums != 'values':
        change = Replace.apply(change, torch.zeros_like(change))
    return pair.like(difference, pair.form.rule.pooling(winner, window_sum(pair._stream_sum) + change))


def window_counts(size, windows, device):
    '''The number of entries in each window of adaptive pooling along one axis.'''
    places = torch.arange(windows, device=device)
    return ((places + 1) * size + windows - 1) // windows - places * size // windows


def window_sums(tensor, kernel, stride, padding, dilation, shape):
    '''Sum a tensor over the windows of a pooling whose output has the given spatial shape.'''
    axes = len(kernel)
    spatial = tensor.shape[-axes:]
    # what ceil_mode needs behind the last window, from the last axis on as torch.nn.functional.pad counts
    behind = [
        max((windows - 1) * step + width * (size - 1) + 1 - length - pad, pad)
        for windows, step, width, size, length, pad in zip(shape, stride, dilation, kernel, spatial, padding)
    ]
    edges = [edge for pad, end in zip(reversed(padding), reversed(behind)) for edge in (pad, end)]
    padded = torch.nn.functional.pad(tensor.reshape(-1, 1, *spatial), edges)
    convolution = getattr(torch.nn.functional, f'conv{axes}d')
    sums = convolution(padded, padded.new_ones(1, 1, *kernel), stride=stride, dilation=dilation)
    sums = sums[(..., *(slice(windows) for windows in shape))]
    return sums.reshape(*tensor.shape[:-axes], *shape)


def register_max_pooling(axes):
    '''Register max-pooling and adaptive max-pooling over a number of axes, both also with indices.'''
    def winners(indices):
        def pick(tensor):
            return tensor.flatten(-axes).gather(-1, indices.flatten(-axes)).view_as(indices)
        return pick

    def numbers(value):
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes

    @torch_form(f'max_pool{axes}d_with_indices')
    def with_indices(
        pair, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=True
    ):
        stride = kernel_size if stride is None or stride == [] else stride
        difference, indices = getattr(F, f'max_pool{axes}d_with_indices')(
            pair.difference, kernel_size, stride, padding, dilation, ceil_mode
        )
        geometry = [numbers(value) for value in (kernel_size, stride, padding, dilation)]

        def window_sum(tensor):
            return window_sums(tensor, *geometry, difference.shape[-axes:])

        return pool(pair, difference, winners(indices), window_sum), indices

    @torch_form(f'max_pool{axes}d')
    def max_pool(
        pair, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
    ):
        output, indices = with_indices(pair, kernel_size, stride, padding, dilation, ceil_mode)
        return (output, indices) if return_indices else output

    @torch_form(f'adaptive_max_pool{axes}d_with_indices')
    def adaptive_with_indices(pair, output_size, return_indices=True):
        difference, indices = getattr(F, f'adaptive_max_pool{axes}d_with_indices')(pair.difference, output_size)

        def window_sum(tensor):
            sums = getattr(F, f'adaptive_avg_pool{axes}d')(tensor, difference.shape[-axes:])
            for axis in range(-axes, 0):
                counts = window_counts(tensor.shape[axis], difference.shape[axis], tensor.device)
                sums = sums * counts.to(sums.dtype).reshape(-1, *(1,) * (-axis - 1))
            return sums

        return pool(pair, difference, winners(indices), window_sum), indices

    if axes == 1:
        split_form(torch.adaptive_max_pool1d)(adaptive_with_indices)  # which returns indices, unlike its namesake

    @split_form(getattr(F, f'adaptive_max_pool{axes}d'))
    def adaptive_max_pool(pair, output_size, return_indices=False):
        output, indices = adaptive_with_indices(pair, output_size)
        return (output, indices) if return_indices else output


for number in (1, 2, 3):
    register_max_pooling(number)


@torch_form('maximum', 'fmax')
def maximum(first, other):
    '''The larger one of two: max-pooling over both (Maxout, equation 17).'''
    form = next(pairs_in((first, other))).form
    pairs = [
        operand if isinstance(operand, SplitTensor) else as_pair(operand, form) for operand in (first, other)
    ]
    shape = torch.broadcast_shapes(*(pair.difference.shape for pair in pairs))
    return amax(torch.stack([pair.expand(shape) for pair in pairs], -1), -1)


@torch_form('minimum', 'fmin')
def minimum(first, other):
    '''The smaller one of two.'''
    return -maximum(-first, -other)


@torch_form('max')
def max_of(first, other=None, keepdim=False, *, dim=None):
    '''The maximum over an axis (Maxout, equation 17) and its places, over everything, or of two.'''
    if isinstance(first, torch.Tensor) and isinstance(other, torch.Tensor):
        return maximum(first, other)
    dim = other if dim is None else dim
    if dim is None:
        return amax(first)
    return torch.return_types.max((amax(first, dim, keepdim), first.difference.argmax(dim, keepdim)))


@torch_form('min')
def min_of(first, other=None, keepdim=False, *, dim=None):
    '''The minimum over an axis and its places, or of two.'''
    if isinstance(first, torch.Tensor) and isinstance(other, torch.Tensor):
        return minimum(first, other)
    dim = other if dim is None else dim
    if dim is None:
        return -amax(-first)
    return torch.return_types.min((-amax(-first, dim, keepdim), first.difference.argmin(dim, keepdim)))


@torch_form('amin')
def amin(pair, dim=(), keepdim=False):
    '''The minimum over axes.'''
    return -amax(-pair, dim, keepdim)


@torch_form('amax')
def amax(pair, dim=(), keepdim=False):
    '''Global max-pooling over axes.'''
    ndim = pair.difference.ndim
    axes = sorted(axis % ndim for axis in ((dim,) if isinstance(dim, int) else dim)) or list(range(ndim))
    if 0 in axes:
        raise unsupported('a maximum over the batch axis', (pair,))
    rest = [axis for axis in range(ndim) if axis not in axes]

    def windows(tensor):
        return tensor.permute(*rest, *axes).flatten(len(rest))

    def restore(tensor):
        return tensor.reshape([1 if axis in axes else pair.shape[axis] for axis in range(ndim)]) if keepdim else tensor

    difference, places = windows(pair.difference).max(-1)
    return pool(
        pair, restore(difference), lambda tensor: restore(windows(tensor).gather(-1, places[..., None])[..., 0]),
        lambda tensor: restore(windows(tensor).sum(-1)),
    )
