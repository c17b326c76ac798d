'''Whether a function is on split pairs what it is on tensors.'''
import torch
from torch.utils._pytree import tree_flatten, tree_map

from zennit_dc import SplitTensor
from zennit_dc.core.pair import Pass, Settings


class Fresh(torch.autograd.Function):
    '''A tensor with a graph, of its own memory, in the same strides, so that it may be changed in place.'''
    @staticmethod
    def forward(ctx, tensor):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def is_input(obj):
    '''Whether an argument is a tensor of which a pair is to be made: one of floating point numbers.'''
    return isinstance(obj, torch.Tensor) and obj.is_floating_point()


def strides_of(tensor):
    '''The strides of axes that have more than one entry, which tell where there are any entries at all.'''
    return [step for step, length in zip(tensor.stride(), tensor.shape) if length > 1 and tensor.numel()]


def output_of(function, make, arguments, pairs, leaves):
    '''What a function returns for arguments, of which the given ones are made to something else.'''
    found = iter(range(10 ** 6))

    def argument(obj):
        if not is_input(obj):
            return obj
        place, copied = next(found), Fresh.apply(obj.detach())
        if pairs is not None and place not in pairs:
            return copied.detach()
        leaves.append(obj.detach().clone(memory_format=torch.preserve_format).requires_grad_())
        return make(Fresh.apply(leaves[-1]))

    torch.manual_seed(0)
    return tree_flatten(function(*tree_map(argument, arguments)))


def split_inputs(root=None, **kwargs):
    '''A function that makes pairs of one pass, each with its absolute value as its sum.'''
    split_pass = Pass(Settings(root=root, **kwargs))

    def split(tensor):
        pair = SplitTensor(tensor, tensor.detach().abs(), split_pass).as_input()
        pair.facts = frozenset()
        return pair
    return split


def require_agreement(function, *arguments, pairs=None, root=None, gradient=True, **kwargs):
    '''A function of some tensors, of which all or those at some places are pairs, has the output that it has of plain
    tensors, bit by bit, of the same dtype and in the same order of memory, and a sum that is not smaller, but for
    rounding; and the difference has the gradient that the output has.'''
    leaves, own = [], []
    expected, structure = output_of(function, lambda tensor: tensor, arguments, pairs, leaves)
    found, own_structure = output_of(function, split_inputs(root, **kwargs), arguments, pairs, own)
    assert str(own_structure) == str(structure)
    sums = [0., 0.]
    for one, other in zip(expected, found):
        if not isinstance(one, torch.Tensor):
            assert one == other
            continue
        is_pair = isinstance(other, SplitTensor)
        assert is_pair or not (one.is_floating_point() and one.requires_grad), 'a constant'
        difference = (other.difference if is_pair else other).as_subclass(torch.Tensor)
        torch.testing.assert_close(difference, one, rtol=0, atol=0, equal_nan=True, check_stride=False)
        assert strides_of(difference) == strides_of(one)
        if is_pair and not difference.is_complex():
            require_larger(other.stream_sum, difference)
        if one.requires_grad:
            weights = torch.randn(one.shape, dtype=torch.float64).to(one.dtype)
            sums = [old + (torch.view_as_real(each * weights) if each.is_complex() else each * weights).sum()
                    for old, each in zip(sums, (one, difference))]
    if gradient and isinstance(sums[0], torch.Tensor):
        require_same_gradients(sums, leaves, own)


def require_larger(stream_sum, difference):
    '''A sum is not smaller than the difference's absolute value, but for rounding, where that is finite.'''
    value = difference.detach().abs().to(stream_sum.dtype)
    finite = torch.isfinite(value)
    tolerance = 8 * torch.finfo(difference.dtype).eps
    assert stream_sum.dtype == torch.promote_types(difference.dtype, torch.float32)
    if finite.any():
        assert (stream_sum[finite] >= value[finite] - tolerance * value[finite].max()).all()


def require_same_gradients(sums, leaves, own):
    '''The gradients of both by their leaves are the same, but for rounding; 1e3 roundings of those that are small
    beside others.'''
    expected, found = (torch.autograd.grad(total, each, allow_unused=True) for total, each in zip(sums, (leaves, own)))
    for one, other in zip(expected, found):
        if one is None or other is None:
            assert one is other or not (other if one is None else one).any()
            continue
        size = one.abs().nan_to_num(0., 0., 0.).max().item() if one.numel() else 0.
        tolerance = 1e3 * torch.finfo(one.dtype).eps * size
        torch.testing.assert_close(other, one, rtol=0, atol=tolerance, equal_nan=True)
