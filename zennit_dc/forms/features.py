'''Softmax, norms, deviations, roots and reciprocals: constants where they scale or divide something, and functions that
are linear around the given input where they are features.'''
import math
from functools import partial

import torch
from torch.nn import functional as F

from ..core.axes import same_axes
from ..core.blocks import Instead, instead, linear, moved_alike, passing
from ..core.pair import PROBABILITY, SplitTensor, pairs_in, pass_of, unsupported
from .arithmetic import Valued, division, multiplication, power, valued
from .deferred import Statistic, as_constants, constant, note
from .linear import per_axis
from .statistics import detached_form, optional_form
from .table import each_pair, missing, overloads


def statistic(function, carry, *args, is_weight=False, **kwargs):
    '''A statistic: the value of a function of some arguments, and ``carry(value, *args)``, which makes the split pair
    where the statistic turns out to be a feature.'''
    value, split_pass = function(*as_constants(args), **as_constants(kwargs)), pass_of((args, kwargs))
    args, kwargs = kept((args, kwargs))
    output = Statistic(value, split_pass, lambda: carry(value, *args, **kwargs), is_weight, title=carry.__name__)
    output.facts = frozenset({PROBABILITY} if carry is softmax else ())
    return output


def kept(obj):
    '''Arguments with copies of their pairs, which operations in place leave as they are.'''
    return each_pair(lambda pair: pair.replaced(*pair.tensors), obj)


def statistic_form(*names, functions=(), is_weight=False):
    '''Register what makes the split pair of a statistic, a function of its value and its arguments.'''
    def register(carry):
        for function in {*functions, *overloads(*names)}:
            optional_form(function)(partial(statistic, function, carry, is_weight=is_weight))
        return carry
    return register


# elementwise functions

def tangent(pair, value, slope_of, function=None):
    '''The split form of an elementwise function as its tangent at the given input, through whose slope sensitivities
    pass.

    Parameters
    ----------
    pair : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The input.
    value : :py:class:`torch.Tensor`
        The function's value, of a shape to which the input can be expanded.
    slope_of : callable
        The slope as a function of the input. Where it is not finite, zero is taken, as torch does for norms of zero.
    function : callable, optional
        The function itself if it is zero at zero and grows with the absolute value of its input. Then it makes the sum,
        too, so that a stream that is zero stays so, and relevance passes unchanged. The sum is no less than the
        absolute value, which may be larger for negative inputs. Without it, the tangent is an affine function, whose
        constant takes relevance as a bias does.

    Returns
    -------
    :py:class:`~zennit_dc.core.pair.SplitTensor`
        The output.
    '''
    source, split_pass = pair if pair.values[0].shape == value.shape else pair.expand(value.shape), pair.split_pass
    original, total = source.tensors
    is_regular, is_finite = torch.isfinite(slope_of(original.detach())), torch.isfinite(original.detach())
    slope = constant(where_regular(slope_of, original, is_regular), split_pass)
    # what is masked is minus infinity, of which the product with a slope of zero is nan
    offset = constant(value - slope * torch.where(is_finite, original, 0.), split_pass)

    def path(difference):
        return Valued.apply(difference * slope + offset, value.detach())

    def size(total):
        return torch.where(is_finite, total, 0.) * slope.abs().to(total.dtype) + offset.abs().to(total.dtype)

    if function is None:
        return linear(source, path, size, same_axes)
    stream_sum = size(total)
    if split_pass.mode.sums:
        own, least = where_regular(function, total, total > 0), value.abs().to(total.dtype)
        # no less than the value where streams are not negative, as a logarithm of negative numbers would be
        own = torch.where(total >= original.abs(), torch.maximum(own, least), own)
        stream_sum = Instead.apply(own, stream_sum, split_pass)
    output = source.replaced(path(original), stream_sum)
    if not split_pass.rule.passes_activations:
        return output
    falls = slope.detach() < 0  # as even powers do on the left of zero, where the streams change places
    return instead(output, (torch.where(falls, total, original), torch.where(falls, original, total)))


def where_regular(function, tensor, is_regular, otherwise=0.):
    '''A function of a tensor where that is regular, and a number where it is not, with a gradient of zero.'''
    return torch.where(is_regular, function(torch.where(is_regular, tensor, 1.)), otherwise)


def register_elementwise(name, slope_of, title=None, function=None, is_weight=False):
    '''Register an elementwise function by its slope, also in place, see :py:func:`tangent`.'''
    def carry(value, pair):
        return tangent(pair, value, slope_of, function)

    carry.__name__ = title or name
    detached_form(name)(partial(statistic, getattr(torch, name), carry, is_weight=is_weight))


register_elementwise('sqrt', lambda x: .5 * x.rsqrt(), function=torch.sqrt)
register_elementwise('rsqrt', lambda x: -.5 * x ** -1.5, is_weight=True)
register_elementwise('reciprocal', lambda x: -x ** -2, is_weight=True)
register_elementwise('exp', torch.exp)
register_elementwise('expm1', torch.exp)
register_elementwise('log1p', lambda x: 1 / (1 + x), function=torch.log1p)
register_elementwise('log', lambda x: 1 / x, 'logarithm')
register_elementwise('log2', lambda x: 1 / (x * math.log(2)), 'logarithm')
register_elementwise('log10', lambda x: 1 / (x * math.log(10)), 'logarithm')


def quotient(value, first, other):
    '''What a number or a tensor is, divided by a pair.'''
    return tangent(other, value, lambda x: first * -x ** -2)


def reciprocal_of(first, other, function=torch.div):
    '''The statistic that a constant is, divided by a pair, as a function computes it.'''
    return statistic(function, quotient, first, other, is_weight=True)


@detached_form('__rtruediv__', '__rdiv__')
def reflected_division(divisor, first):
    '''The division of an operator, which is a product with the reciprocal.'''
    if pairs_in((first,)):
        return divisor.reciprocal() * first
    return reciprocal_of(first, divisor, lambda first, other: other.reciprocal() * first)


@detached_form('div', 'divide', 'true_divide', '__truediv__')
def division_by_constant(first, other, *, rounding_mode=None):
    '''A division by a pair as a constant. What is divided may be a constant, too: that is a reciprocal.'''
    if rounding_mode is not None or not pairs_in((other,)):
        return division(first, other, rounding_mode=rounding_mode)
    if isinstance(first, SplitTensor):
        note(other.split_pass, 'divisors')
        return division(first, as_constants(other))
    return reciprocal_of(first, other)


@detached_form('pow', '__pow__')
def power_or_root(pair, exponent):
    '''A product for exponents from 1 to 8. Any other power is a statistic, as a square root is.'''
    is_number = isinstance(exponent, (int, float))
    if not isinstance(pair, SplitTensor) or (is_number and exponent in range(1, 9)) or pairs_in((exponent,)):
        return power(pair, exponent)
    is_weight = bool((torch.as_tensor(exponent) < 0).all())
    return statistic(torch.pow, power_of, pair, exponent, is_weight=is_weight)


def power_of(value, pair, exponent):
    '''A power as a feature.'''
    def function(x):
        return x ** exponent

    is_falling = bool((torch.as_tensor(exponent) < 0).any())
    return tangent(pair, value, lambda x: exponent * x ** (exponent - 1), None if is_falling else function)


@optional_form(*overloads('sign', 'sgn'))
def sign(pair):
    '''The sign, which is a constant wherever it has a derivative.'''
    return torch.sign(as_constants(pair))


# norms and deviations

def weighted_sum(pair, value, coefficients, dims, keepdim):
    '''The split form of a function that is homogeneous of degree one, :math:`\\sum_i c_i x_i` with its derivatives at
    the given input as constant coefficients.'''
    coefficients = constant(coefficients, pair.split_pass)
    magnitude = coefficients.abs()

    def summed(tensor):
        return tensor.sum(dims, keepdim)

    return linear(
        pair, lambda tensor: Valued.apply(summed(tensor * coefficients).to(value.dtype), value.detach()),
        lambda total: summed(total.to(torch.promote_types(total.dtype, value.dtype)) * magnitude), moved_alike(summed)
    )


def axes_of(pair, dim):
    '''A parameter dim as a tuple of axes.'''
    count = pair.values[0].ndim
    axes = range(count) if dim is None or dim in ((), []) else [dim] if isinstance(dim, int) else dim
    return tuple(sorted(axis % count for axis in axes)) if count else ()


def over(numerator, denominator):
    '''A quotient, which is zero where the denominator is.'''
    return where_regular(lambda size: numerator / size, denominator, denominator != 0)


def with_axes(value, pair, dims):
    '''What was made over some axes of a pair, with an axis of length one for each of them.'''
    return value.reshape([1 if axis in dims else length for axis, length in enumerate(pair.values[0].shape)])


@statistic_form('norm', functions=(torch.linalg.vector_norm,))
def norm(value, pair, p=2, dim=None, keepdim=False, *, ord=None, dtype=None, out=None):
    p = p if ord is None else ord
    return p_norm(value, pair, 2 if p in ('fro', None) else p, axes_of(pair, dim), keepdim)


@statistic_form(functions=(torch.linalg.norm,))
def linalg_norm(value, pair, ord=None, dim=None, keepdim=False, *, dtype=None, out=None):
    '''A vector norm, or that of Frobenius.'''
    if ord not in (None, 'fro') and len(axes_of(pair, dim)) == 2:
        raise unsupported(f'a matrix norm with ord={ord!r} that is a feature', (pair,))
    return norm(value, pair, ord, dim, keepdim)


def p_norm(value, pair, p, dims, keepdim=False):
    '''A norm as a feature, :math:`\\sum_i x_i \\, \\mathrm{sign}(x_i) (|x_i| / \\|x\\|_p)^{p - 1}`.'''
    if not isinstance(p, (int, float)) or not p > 0:
        raise unsupported(f'a norm with p={p!r} that is a feature', (pair,))
    original, size = pair.difference, with_axes(value, pair, dims)
    if p == math.inf:
        winners = original.abs() == size
        coefficients = original.sign() * winners / winners.sum(dims, True)
    elif p == 2:
        coefficients = over(original, size)
    else:
        ratio = over(original.abs(), size)
        powers = where_regular(lambda ratio: ratio ** (p - 1), ratio, ratio != 0, 0. if p > 1 else 1.)
        coefficients = original.sign() * powers
    return weighted_sum(pair, value, coefficients, dims, keepdim)


def deviation_arguments(pair, dim=None, unbiased=True, keepdim=False, *, correction=1):
    '''The axes, whether they are kept, and what is taken from the number of entries, of a deviation.'''
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    correction = 1 if correction is None else correction
    return axes_of(pair, dim), keepdim, correction if unbiased else 0


@statistic_form('std')
def std(value, pair, *args, **kwargs):
    '''A standard deviation as a feature, :math:`\\sum_i x_i (x_i - \\bar x) / (n \\sigma)`.'''
    dims, keepdim, correction = deviation_arguments(pair, *args, **kwargs)
    original = pair.difference
    centered = original - original.mean(dims, True)
    count = math.prod(original.shape[axis] for axis in dims) - correction
    return weighted_sum(pair, value, over(centered, with_axes(value, pair, dims) * count), dims, keepdim)


@statistic_form('var')
def var(value, pair, *args, **kwargs):
    '''The square of the standard deviation.'''
    deviation = std(where_regular(torch.sqrt, value, value > 0), pair, *args, **kwargs)
    return tangent(deviation, value, lambda x: 2 * x, torch.square)


def with_mean(function, carry, pair, *args, **kwargs):
    '''A deviation, and the mean.'''
    dims, keepdim, _ = deviation_arguments(pair, *args, **kwargs)
    mean = function(pair.difference.detach(), *args, **kwargs)[1]
    return (
        statistic(lambda *args, **kwargs: function(*args, **kwargs)[0], carry, pair, *args, **kwargs),
        valued(pair.mean(dims, keepdim), mean)
    )


optional_form(torch.std_mean)(partial(with_mean, torch.std_mean, std))
optional_form(torch.var_mean)(partial(with_mean, torch.var_mean, var))


# distances

@statistic_form('cdist')
def cdist(value, x1, x2, p=2., compute_mode=None):
    return valued(norm(value, x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1), value)


@statistic_form('pairwise_distance')
def pairwise_distance(value, x1, x2, p=2., eps=1e-6, keepdim=False):
    return norm(value, x1 - x2 + eps, p, -1, keepdim)


@statistic_form('dist')
def dist(value, first, other, p=2):
    return norm(value, first - other, p)


# pooling

for number in (1, 2, 3):
    @statistic_form(f'lp_pool{number}d')
    def lp_pool(value, pair, norm_type, kernel_size, stride=None, ceil_mode=False, *, axes=number):
        kernel = per_axis(kernel_size, axes)
        powers = power_of(pair.difference ** norm_type, pair, norm_type)
        means = getattr(F, f'avg_pool{axes}d')(powers, kernel, kernel if stride is None else stride, 0, ceil_mode)
        return power_of(value, multiplication(means, math.prod(kernel)), 1. / norm_type)


# softmax

@statistic_form('softmax', is_weight=True)
def softmax(value, pair, dim=None, *args, **kwargs):
    '''Probabilities as features: sensitivities pass through the derivatives at the given input, and relevance passes
    unchanged.'''
    split_pass, is_finite = pair.split_pass, torch.isfinite(pair.difference)
    # a dtype may be asked for; and what is masked is minus infinity
    original, total = (torch.where(is_finite, tensor, 0.).to(torch.promote_types(tensor.dtype, value.dtype))
                       for tensor in pair.tensors)
    dim = F._get_softmax_dim('softmax', pair.values[0].ndim, 3) if dim is None else dim
    weights = constant(value, split_pass)

    def path(tensor, weights):
        share = weights.to(tensor.dtype)
        return share * (tensor - (share * tensor).sum(dim, True))

    def size(tensor):
        share = weights.to(tensor.dtype)
        return share * ((1 - 2 * share) * tensor + (share * tensor).sum(dim, True))

    offset = constant(value - path(original, value).to(value.dtype), split_pass)
    output = pair.replaced(
        Valued.apply(path(original, weights).to(value.dtype) + offset, value.detach()),
        size(total) + offset.abs().to(total.dtype)
    )
    return passing(output, pair.tensors)


missing(
    overloads('log_softmax'), ', as it is no sum that could be split',
    'explain the logits, with zennit_dc.Logits(model, drop=\'softmax\') in place of a model that ends with it'
)
