'''Additions, products and what is made of them, of pairs and with constants; and choices by constant masks.'''
import math
from functools import reduce

import torch
from torch.nn import functional as F

from ..core.axes import same_axes, some_samples, take_axes
from ..core.blocks import add, linear, multiply, passing
from ..core.graphs import same
from ..core.pair import FILLED, SplitTensor, pairs_in, sum_dtype, unsupported
from ..core.registry import split_form
from ..core.views import NewValue as Valued, assign, become_pair
from .reading import refuse_comparison
from .table import plain, torch_form


def operands(first, other):
    '''The pair and the constant of two operands.'''
    return (first, other) if isinstance(first, SplitTensor) else (other, first)


def magnitude_of(constant):
    '''The absolute value of a number or a tensor.'''
    if isinstance(constant, complex) or (isinstance(constant, torch.Tensor) and constant.is_complex()):
        raise unsupported('a sum with, a product with or a choice of complex numbers', (),
                          remedy='make the split pair complex, as torch.complex(x, torch.zeros_like(x)) does')
    if not isinstance(constant, torch.Tensor) or constant.is_floating_point():
        return abs(constant)
    return constant.to(torch.float64).abs()


def parts(operand):
    '''The difference and the sum of a pair, or of a constant.'''
    return operand.tensors if isinstance(operand, SplitTensor) else (operand, magnitude_of(operand))


def streams(*operands):
    '''The differences of several operands, and their sums, which have one dtype.'''
    differences, sums = zip(*map(parts, operands))
    dtype = sum_dtype(reduce(torch.promote_types, (each.dtype for each in operands if isinstance(each, torch.Tensor))))
    return differences, [each.to(dtype) if isinstance(each, torch.Tensor) else each for each in sums]


def of_both(function, *operands, note_axes=same_axes):
    '''What a function that only moves entries makes of the differences of several operands, and of their sums.'''
    pairs = pairs_in(operands)
    return note_axes(pairs, pairs[0].like(*(function(*each) for each in streams(*operands))), None)


def valued(pair, value):
    '''A pair whose difference is computed in another way, with another rounding.'''
    return pair.replaced(Valued.apply(pair.difference, value.detach()), pair.tensors[1])


def computed_by(function):
    '''A decorator of a form that is written as the steps of a function, each of which has a form of its own. What it
    returns has the value, and with it the rounding, of the function itself.'''
    return lambda steps: lambda *args, **kwargs: valued(steps(*args, **kwargs), function(*plain(args), **plain(kwargs)))


def scaled(tensor, factor):
    '''A tensor or a pair times a number. Nothing is computed if the number is one.'''
    return tensor if factor == 1 else tensor * factor


@torch_form('add', '__add__', '__radd__')
def addition(first, other, *, alpha=1):
    pair, constant = operands(first, other)
    refuse_comparison(constant, pair)
    if isinstance(constant, SplitTensor):
        if alpha == 1:
            return add((first, other), torch.add)
        value = torch.add(*plain((first, other)), alpha=alpha)
        return valued(add((first, multiplication(other, alpha)), torch.add), value)
    own, size = (1, abs(alpha) * magnitude_of(other)) if pair is first else (abs(alpha), magnitude_of(first))
    return linear(
        pair, lambda tensor: torch.add(*((tensor, other) if pair is first else (first, tensor)), alpha=alpha),
        lambda total: (total if own == 1 else own * total) + size, same_axes
    )


@torch_form('sub', 'subtract', '__sub__')
def subtraction(first, other, *, alpha=1):
    if any(each is True or each is False or getattr(each, 'dtype', None) is torch.bool for each in (first, other)):
        torch.sub(*plain((first, other)))  # which raises
    if isinstance(other, SplitTensor):
        return addition(first, negation(other), alpha=alpha)
    return addition(first, other, alpha=-alpha)  # as torch computes it


torch_form('rsub', '__rsub__')(lambda other, first, *, alpha=1: subtraction(first, other, alpha=alpha))


@torch_form('neg', 'negative', '__neg__')
def negation(pair):
    '''Exchange the streams, and with them their relevances.'''
    difference, stream_sum = pair.tensors
    return passing(pair.replaced(-difference, same(stream_sum)), (stream_sum, difference))


@torch_form('mul', 'multiply', '__mul__', '__rmul__')
def multiplication(first, other):
    pair, constant = operands(first, other)
    refuse_comparison(constant, pair)
    if isinstance(constant, SplitTensor):
        return multiply(first, other, torch.mul)
    return linear(
        pair, lambda tensor: tensor * constant if pair is first else constant * tensor,  # as strides follow the first
        lambda total: total * magnitude_of(constant), same_axes
    )


torch_form('square')(lambda pair: multiply(pair, pair, torch.mul))


@torch_form('pow', '__pow__')
def power(pair, exponent):
    '''A product of as many equal factors.'''
    if not isinstance(pair, SplitTensor) or not isinstance(exponent, (int, float)) or exponent not in range(1, 9):
        raise unsupported('pow', (pair, exponent), ' for exponents other than 1 to 8')
    if exponent <= 2:
        return pair.clone() if exponent == 1 else multiply(pair, pair, torch.mul)
    return valued(multiplication(power(pair, exponent - 1), pair), torch.pow(*plain((pair, exponent))))


@torch_form('div', 'divide', 'true_divide', '__truediv__')
def division(pair, other, *, rounding_mode=None):
    if isinstance(other, SplitTensor) or rounding_mode is not None:
        raise unsupported('div', (pair, other), ' for a divisor that depends on the input, or with a rounding mode')
    refuse_comparison(other, pair)
    return linear(pair, lambda tensor: tensor / other, lambda total: total / magnitude_of(other), same_axes)


SEVERAL_STEPS = {
    'addcmul': lambda first, tensor1, tensor2, *, value=1: first + scaled(tensor1 * tensor2, value),
    'addcdiv': lambda first, tensor1, tensor2, *, value=1: first + scaled(tensor1 / tensor2, value),
    'lerp': lambda start, end, weight: start * (1 - weight) + end * weight,
}
for name, steps in SEVERAL_STEPS.items():
    torch_form(name)(computed_by(getattr(torch, name))(steps))


# choices by constant masks

@split_form(torch.where)
def where(condition, input=None, other=None):
    mask, both = plain(condition), [each for each in (input, other) if each is not None]
    if not pairs_in(both):  # where the condition alone was a pair
        return torch.where(mask, *both)
    refuse_comparison(mask, *both)
    return of_both(lambda *both: torch.where(mask, *both), *both)


split_form(torch.Tensor.where)(lambda first, condition, other: where(condition, first, other))


@torch_form('masked_fill')
def masked_fill(pair, mask, value):
    mask = plain(mask)
    refuse_comparison(mask, pair)
    return of_both(lambda tensor, number: tensor.masked_fill(mask, number), pair, value)


@split_form(torch.Tensor.__setitem__)
def set_item(target, index, value):
    '''Write entries, which moves values; what they are written into becomes a pair, if it is none.'''
    for key in index if isinstance(index, tuple) else (index,):
        refuse_comparison(key, target)
    index = plain(index)
    if not pairs_in((target, value)):  # where the index alone was a pair
        target[index] = value
        return
    if is_plain := not isinstance(target, SplitTensor):
        become_pair(target, value.split_pass, '__setitem__')
    was_constant = target.depth == -math.inf and target.axes.batch is None and target.view_of is None
    output = target.replaced(*(tensor.clone() for tensor in target.tensors))
    for tensor, part in zip(output.values, parts(value)):
        tensor[index] = part.to(tensor.dtype) if isinstance(part, torch.Tensor) else part
    output.depth = max(each.depth for each in pairs_in((target, value)))
    assign(target, output)
    if was_constant and isinstance(value, SplitTensor):
        take_axes(target, value, memory_at(output.values[0].shape, index))
        if selects_rows(index) and value.values[0].ndim == target.values[0].ndim:
            some_samples([value], target, 0)
            target.facts |= {FILLED} if is_plain else frozenset()


def selects_rows(index):
    '''Whether an index selects entries along the first axis by a mask or by numbers, and by slices alone along
    others.'''
    first, *others = index if isinstance(index, tuple) and index else (index,)
    by_numbers = isinstance(first, list) or getattr(first, 'ndim', None) == 1
    return by_numbers and all(isinstance(each, slice) or each is Ellipsis for each in others)


def memory_at(shape, index):
    '''What an index selects of a tensor, without values, if it is a view.'''
    try:
        whole = torch.empty(shape, device='meta')
        view = whole[index]
    except (RuntimeError, IndexError, NotImplementedError):  # as masks, which only values tell
        return None
    return view if view.untyped_storage()._cdata == whole.untyped_storage()._cdata else None


@torch_form('copy')
def copy_of(target, source, non_blocking=False):
    '''The values of another tensor, in the shape of the first.'''
    pair = source if isinstance(source, SplitTensor) else target
    both = zip(parts(target), parts(source))
    return same_axes([pair], pair.like(*(torch.broadcast_to(new, old.shape) for old, new in both)))


@split_form(F.pad)
def pad(pair, pad, mode='constant', value=None):
    return of_both(lambda tensor, number: F.pad(tensor, pad, mode, number), pair, 0. if value is None else value)
