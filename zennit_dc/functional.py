'''The split form of each torch function. Modules, methods, operators and functional calls all end up here.'''
import functools

import torch
from torch.nn import functional as F

from .affine import Dense, Layer, affine, finish_affine, recenter, weighted
from .growth import Replace
from .operations import SplitReLU, activation, add, batch_norm_parameters, linear, multiply, require_batch, to_dtype
from .split import SplitTensor, called_in, has_pairs, split_form, unsupported


NAMESPACES = (torch, torch.Tensor, F, torch._C._nn)
DENSE = Dense()


def overloads(*names):
    '''All the functions and methods that torch has under the given names.'''
    found = (getattr(space, name, None) for name in names for space in NAMESPACES)
    return {function for function in found if callable(function)}


def torch_form(*names, inplace=()):
    '''Register a split form for all functions and methods of torch with these names, and, as an in-place operation, for
    those of other names.'''
    def register(form):
        def in_place(target, *args, **kwargs):
            if not isinstance(target, SplitTensor):
                raise unsupported(
                    f'{inplace[0]} on a plain tensor', (args, kwargs), ', as it would have to become a split pair'
                )
            output = form(target, *args, **kwargs)
            if output.difference.shape != target.difference.shape:
                raise unsupported(inplace[0], (target,), ' where it changes the shape')
            return target.assign(to_dtype(output, lambda tensor: tensor.to(target.difference.dtype)))

        split_form(*overloads(*names))(form)
        split_form(*overloads(*inplace))(in_place)
        return form
    return register


def plain(obj):
    '''Replace split pairs in arguments by their difference, as values.'''
    if isinstance(obj, SplitTensor):
        return obj.difference.detach()
    if isinstance(obj, (tuple, list)):
        return type(obj)(plain(element) for element in obj) if type(obj) in (tuple, list) else obj
    if isinstance(obj, dict):
        return {key: plain(value) for key, value in obj.items()}
    return obj


# what is read off the tensor: shape and kind, and values for comparisons and control flow

for getter in (
    'shape', 'dtype', 'device', 'ndim', 'layout', 'is_cuda', 'is_cpu', 'is_mps', 'is_sparse', 'is_quantized', 'is_meta',
    'is_mkldnn', 'is_nested', 'is_xpu', 'itemsize', 'nbytes',
):
    @split_form(getattr(torch.Tensor, getter).__get__)
    def read(pair, *args, getter=getter):
        return getattr(pair.difference, getter)


@split_form(torch.Tensor.requires_grad.__get__)
def requires_grad(pair, *args):
    return pair.difference.requires_grad or pair._stream_sum.requires_grad


class Comparison(torch.Tensor):
    '''What a comparison of split pairs gives: for control flow and indexing, not for arithmetic with pairs.'''


for function in overloads(
    'gt', 'ge', 'lt', 'le', 'eq', 'ne', 'greater', 'greater_equal', 'less', 'less_equal', 'not_equal', 'isclose',
    'signbit', 'isnan', 'isinf', 'isfinite', 'sign', 'heaviside',
):
    @split_form(function)
    def comparison(*args, function=function, **kwargs):
        return function(*plain(args), **plain(kwargs)).as_subclass(Comparison)


for function in overloads(
    'size', 'dim', 'ndimension', 'numel', 'nelement', 'is_floating_point', 'is_complex', 'is_contiguous', 'stride',
    'get_device', 'element_size', '__len__', 'is_signed', 'is_same_size', 'zeros_like', 'ones_like', 'full_like',
    'empty_like', 'rand_like', 'randn_like', 'new_zeros', 'new_ones', 'new_full', 'new_empty', 'new_tensor',
    '__bool__', '__float__', '__int__', '__index__', 'item', 'tolist', 'equal', 'allclose', '__format__',
    'argmax', 'argmin', 'any', 'all', 'count_nonzero', 'is_nonzero',
):
    @split_form(function)
    def value(*args, function=function, **kwargs):
        return function(*plain(args), **plain(kwargs))


# affine layers

def convolution(pair, weight, bias, name, transposed, stride, padding, dilation, groups, output_padding=None):
    '''Any convolution.'''
    axes = weight.ndim - 2
    require_batch(pair, axes + 2, name)
    function, reverse = getattr(F, name), getattr(torch.nn.grad, f'conv{axes}d_input')
    if isinstance(padding, str):
        pair, padding = explicit_padding(pair, padding, weight.shape[2:], dilation)

    def apply(input, weight, bias):
        if transposed:
            return function(input, weight, bias, stride, padding, output_padding, groups, dilation)
        return function(input, weight, bias, stride, padding, dilation, groups)

    def transpose(gradient, weight, shape):
        if transposed:
            return getattr(F, f'conv{axes}d')(gradient, weight, None, stride, padding, dilation, groups)
        return reverse(shape, weight, gradient, stride, padding, dilation, groups)

    output = affine(pair, Layer(apply, transpose, axes), weight, bias)
    output.channel_axis = 1
    return output


def explicit_padding(pair, padding, kernel, dilation):
    '''Turn the paddings 'valid' and 'same' into numbers, with one more behind where 'same' is odd.'''
    if padding == 'valid':
        return pair, 0
    dilation = dilation if isinstance(dilation, (tuple, list)) else (dilation,) * len(kernel)
    total = [width * (size - 1) for width, size in zip(dilation, kernel)]
    if any(amount % 2 for amount in total):
        edges = [edge for amount in reversed(total) for edge in (0, amount % 2)]
        pair = pair.map(lambda tensor: F.pad(tensor, edges))
    return pair, [amount // 2 for amount in total]


def register_convolutions(axes):
    '''Register the convolution of a number of axes, and its transpose.'''
    @torch_form(f'conv{axes}d')
    def conv(pair, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        refuse_pairs(f'conv{axes}d', weight, bias)
        return convolution(pair, weight, bias, f'conv{axes}d', False, stride, padding, dilation, groups)

    @torch_form(f'conv_transpose{axes}d')
    def conv_transpose(pair, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        refuse_pairs(f'conv_transpose{axes}d', weight, bias)
        return convolution(
            pair, weight, bias, f'conv_transpose{axes}d', True, stride, padding, dilation, groups, output_padding
        )


for number in (1, 2, 3):
    register_convolutions(number)


def refuse_pairs(name, *parameters):
    '''Raise where a parameter is itself a split pair: that is a product of pairs.'''
    if has_pairs(parameters):
        raise unsupported(name, parameters, ' for a weight or a bias that depends on the input')


@torch_form('linear')
def dense(pair, weight, bias=None):
    refuse_pairs('linear', weight, bias)
    require_batch(pair, 2, 'linear')
    output = affine(pair, DENSE, weight, bias)
    output.channel_axis = output.ndim - 1
    return output


@torch_form('matmul', 'mm', 'bmm', '__matmul__', '__rmatmul__')
def matmul(left, right):
    '''A constant on the right is a layer's weight; one on the left mixes tokens, as attention weights do.'''
    if isinstance(left, SplitTensor) and isinstance(right, SplitTensor):
        return multiply(left, right, torch.matmul)
    if isinstance(left, SplitTensor):
        require_batch(left, 2, 'matmul')
        return affine(left, Layer(lambda input, weight, bias: input @ weight), right)
    raise_if_mixing_samples(right)
    return linear(right, lambda tensor: left @ tensor, lambda tensor: left.abs().to(tensor.dtype) @ tensor)


def raise_if_mixing_samples(pair):
    '''Raise where a product from the left would mix samples.'''
    if pair.difference.ndim < 3:
        raise unsupported(
            'a matrix product from the left', (pair,), ' for an input of fewer than three axes',
            'it would mix the samples of the batch'
        )


@torch_form('addmm')
def addmm(bias, pair, weight, *, beta=1, alpha=1):
    if not isinstance(pair, SplitTensor) or isinstance(bias, SplitTensor) or beta != 1 or alpha != 1:
        raise unsupported('addmm', (bias, pair, weight), ' other than of a constant, a split pair and a matrix')
    refuse_pairs('addmm', weight)
    return affine(pair, Layer(lambda input, weight, bias: torch.addmm(bias, input, weight)), weight, bias)


@split_form(F.batch_norm)
def batch_norm(
    pair, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    '''A batch norm behind an affine layer belongs to this layer; any other is an affine layer itself.'''
    if training or running_mean is None or running_var is None:
        raise RuntimeError(
            f'batch_norm, called in {called_in(pair.form)}, uses the statistics of the batch, with which the map of an'
            ' image would depend on the others: call .eval() on the model (and track running statistics)'
        )
    require_batch(pair, 2, 'batch_norm')
    scale, shift = (
        parameter.reshape(1, -1, *(1,) * (pair.difference.ndim - 2))
        for parameter in batch_norm_parameters(running_mean, running_var, weight, bias, eps)
    )

    def normalize(input, *parameters):
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)

    layer = Layer(
        lambda input, scale, shift: torch.addcmul(shift, input, scale) if shift is not None else input * scale,
        lambda gradient, scale, shape: gradient * scale,
    )
    rule, before = pair.form.rule, pair.layer
    if before is None:
        return finish_affine(weighted(rule.before_affine(pair), layer, scale, shift, normalize), shift)
    if not rule.merges_batch_norm:
        return finish_affine(weighted(pair, layer, scale, shift, normalize), shift, before.rule)
    raw = before.raw
    if before.bias is not None:
        raw = raw.like(raw.difference, raw._stream_sum - before.bias.abs())
        shift = scale * before.bias + shift
    if before.is_read:
        merged = weighted(raw, layer, scale, shift, normalize)
        return recenter(activation(pair, lambda *_: (merged.difference, merged._stream_sum)))
    return finish_affine(weighted(raw, layer, scale, shift, normalize), shift, before.rule)


@split_form(torch.batch_norm)
def builtin_batch_norm(pair, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=True):
    '''The same with the order of parameters that the built-in function has.'''
    return batch_norm(pair, running_mean, running_var, weight, bias, training, momentum, eps)


# linear operations without weights

for name in (
    'avg_pool1d', 'avg_pool2d', 'avg_pool3d', 'adaptive_avg_pool1d', 'adaptive_avg_pool2d', 'adaptive_avg_pool3d',
    'mean', 'sum', 'cumsum',
):
    for function in overloads(name):
        @split_form(function)
        def average(pair, *args, function=function, **kwargs):
            output = linear(pair, lambda tensor: function(tensor, *args, **kwargs))
            if output.ndim < pair.ndim:
                output.batch_axis = behind_reduction(pair, args, kwargs)
            return output


def behind_reduction(pair, args, kwargs):
    '''The batch axis behind a reduction over axes that are not kept.'''
    axes = kwargs.get('dim', kwargs.get('axis', args[0] if args else None))
    if axes is None or pair.batch_axis is None:
        return None
    axes = [axis % pair.ndim for axis in ((axes,) if isinstance(axes, int) else axes)]
    return None if pair.batch_axis in axes else pair.batch_axis - sum(axis < pair.batch_axis for axis in axes)


@torch_form('interpolate', 'upsample')
def interpolate(pair, *args, **kwargs):
    mode = kwargs.get('mode', args[2] if len(args) > 2 else 'nearest')
    if mode == 'bicubic' or kwargs.get('antialias'):
        raise unsupported('interpolate', (pair,), ' for negative coefficients (bicubic) or antialias')
    return linear(pair, lambda tensor: F.interpolate(tensor, *args, **kwargs))


def constant_operand(first, other):
    '''The pair and the constant of two operands.'''
    return (first, other) if isinstance(first, SplitTensor) else (other, first)


def magnitude_of(constant):
    '''The absolute value of a number or a tensor, which is no comparison of the pair itself.'''
    if isinstance(constant, Comparison):
        raise unsupported(
            'arithmetic with a comparison of split pairs', (), ', as it is not continuous',
            'use relu, clamp, maximum or minimum'
        )
    if not isinstance(constant, torch.Tensor):
        return abs(constant)
    return constant.abs() if constant.is_floating_point() else constant.to(torch.float64).abs()


@torch_form('add', '__add__', '__radd__', inplace=('add_', '__iadd__'))
def addition(first, other, *, alpha=1):
    if isinstance(first, SplitTensor) and isinstance(other, SplitTensor):
        return add_multiple(first, other, alpha)
    pair, constant = constant_operand(first, other)
    weight = alpha if pair is other else 1
    size = magnitude_of(constant) * (1 if pair is other else abs(alpha))
    return linear(
        pair,
        lambda tensor: torch.add(*((tensor, other) if pair is first else (first, tensor)), alpha=alpha),
        lambda tensor: (tensor if weight == 1 else tensor * abs(weight)) + size,
    )


def add_multiple(first, other, alpha):
    '''A pair plus a multiple of another. The difference is computed in one step, as torch does it.'''
    if alpha == 1:
        return add((first, other), torch.add)
    total = add((first, multiplication(other, alpha)), torch.add)
    difference = torch.add(first.difference.detach(), other.difference.detach(), alpha=alpha)
    return total.like(Replace.apply(total.difference, difference), total._stream_sum)


@torch_form('sub', 'subtract', '__sub__', inplace=('sub_', 'subtract_', '__isub__'))
def subtraction(first, other, *, alpha=1):
    if isinstance(other, SplitTensor):
        return addition(first, negation(other), alpha=alpha)
    size = magnitude_of(other) * abs(alpha)
    return linear(first, lambda tensor: torch.sub(tensor, other, alpha=alpha), lambda tensor: tensor + size)


@torch_form('rsub', '__rsub__')
def reverse_subtraction(other, first, *, alpha=1):
    return subtraction(first, other, alpha=alpha)


@torch_form('neg', 'negative', '__neg__', inplace=('neg_', 'negative_'))
def negation(pair):
    return pair.form.rule.negation(pair)


@torch_form('mul', 'multiply', '__mul__', '__rmul__', inplace=('mul_', 'multiply_', '__imul__'))
def multiplication(first, other):
    pair, constant = constant_operand(first, other)
    if isinstance(constant, SplitTensor):
        return multiply(first, other, torch.mul)
    return linear(pair, lambda tensor: tensor * constant, lambda tensor: tensor * magnitude_of(constant))


@torch_form('square', inplace=('square_',))
def square(pair):
    return multiply(pair, pair, torch.mul)


@torch_form('pow', '__pow__', inplace=('pow_', '__ipow__'))
def power(pair, exponent):
    if not isinstance(pair, SplitTensor) or exponent != 2:
        raise unsupported('pow', (pair, exponent), ' for exponents other than 2')
    return square(pair)


@torch_form('einsum')
def einsum(equation, *operands):
    operands = operands[0] if isinstance(operands[0], (tuple, list)) else operands
    if len(operands) != 2:
        raise unsupported('einsum', operands, ' for other than two operands')
    if all(isinstance(operand, SplitTensor) for operand in operands):
        return multiply(*operands, lambda first, other: torch.einsum(equation, first, other))
    pair, constant = constant_operand(*operands)
    if pair is operands[0]:
        return affine(pair, Layer(lambda input, weight, bias: torch.einsum(equation, input, weight)), constant)
    return linear(
        pair, lambda tensor: torch.einsum(equation, constant, tensor),
        lambda tensor: torch.einsum(equation, constant.abs().to(tensor.dtype), tensor)
    )


@torch_form('div', 'divide', 'true_divide', '__truediv__', inplace=('div_', 'divide_', 'true_divide_', '__itruediv__'))
def division(pair, other, *, rounding_mode=None):
    if isinstance(other, SplitTensor) or rounding_mode is not None:
        raise unsupported('division by a split pair or with a rounding mode', (pair, other))
    return linear(pair, lambda tensor: tensor / other, lambda tensor: tensor / magnitude_of(other))


# nonlinear functions

def in_place_or_new(form):
    '''Give a split form the parameter inplace.'''
    @functools.wraps(form)
    def with_inplace(pair, *args, inplace=False, **kwargs):
        output = form(pair, *args, **kwargs)
        return pair.assign(output) if inplace else output
    return with_inplace


@torch_form('relu', inplace=('relu_',))
@in_place_or_new
def relu(pair):
    return activation(pair, lambda difference, total: SplitReLU.apply(difference, total, pair.form.sums == 'values'))


for name in (
    'dropout', 'dropout1d', 'dropout2d', 'dropout3d', 'alpha_dropout', 'feature_alpha_dropout', 'feature_dropout',
):
    @torch_form(name)
    def dropout(pair, p=0.5, training=None, inplace=False, train=None, name=name):
        training = train if training is None else training
        # as in torch.nn.functional, whose dropouts are on where nothing is said, but for the alpha dropouts
        if (name not in ('alpha_dropout', 'feature_alpha_dropout') if training is None else training) and p > 0:
            raise RuntimeError(
                f'{name}, called in {called_in(pair.form)}, is in training mode: call .eval() on the model'
            )
        return pair
