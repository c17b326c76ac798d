'''Layers with weights, and linear operations without: convolutions, products with constant matrices, batch norm,
and averages.'''
import re
from functools import partial

import torch
from torch.nn import functional as F

from ..core.axes import follow_axes, same_axes, with_channels
from ..core.blocks import Dense, Layer, affine, instead, linear, moved_alike, multiply, pending, recenter, weighted
from ..core.errors import called_in
from ..core.following import mixed, note_channels
from ..core.pair import SplitTensor, pass_of, unsupported
from ..core.registry import split_form
from ..core.views import laid_out
from .arithmetic import computed_by, scaled, valued
from .routing import of_one_tensor, register
from .table import form_of_each, overloads, plain, refuse_pairs, require_batch, torch_form


DENSE = Dense()


# convolutions

def convolution(pair, weight, bias, stride, padding, dilation, transposed, output_padding, groups, axes=None):
    '''Any convolution, by the parameters of :py:func:`torch.convolution`, over as many axes as the weight has, or over
    a given number of them.'''
    axes = weight.ndim - 2 if axes is None else axes
    name = f'conv{"_transpose" * transposed}{axes}d'
    refuse_pairs(name, weight, bias)
    require_batch(pair, axes + 2, name)
    stride, padding, dilation = (per_axis(each, axes) for each in (stride, padding, dilation))
    function, low = getattr(F, name), first_padding(padding, weight.shape[2:], dilation)
    settings = stride, padding, *((output_padding, groups, dilation) if transposed else (dilation, groups))

    def apply(input, weight, bias):
        return function(input, weight, bias, *settings)

    def transpose(gradient, weight, shape):
        left = (0,) * axes if transposed else [  # where the kernel does not get to
            (length + 2 * before - width * (size - 1) - 1) % step
            for length, size, step, before, width in zip(shape[2:], weight.shape[2:], stride, low, dilation)
        ]
        output = torch.convolution(gradient, weight, None, stride, low, dilation, not transposed, left, groups)
        # without what is padded, which for transposed convolutions may be as long as a step of the dilation
        return output[(..., *map(slice, shape[2:]))]

    return affine(pair, Layer(apply, transpose, axes), weight, bias, partial(contracted, 1))


def contracted(index, pairs, output, function):
    '''Note that each channel of a layer, along the axis with an index, is made of all channels of its input.'''
    with_channels(index, pairs, output)
    if pairs[0].axes.places:
        note_channels(pairs[0], index)
        mixed(output, index)
    return output


def per_axis(value, axes):
    '''A parameter of a convolution, which may be one number for all axes, also in a sequence, for each axis.'''
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * axes if len(values) == 1 else values


def first_padding(padding, kernel, dilation):
    '''A padding at the beginning of each axis; at its end, 'same' may pad one more.'''
    if padding == 'same':
        return [width * (size - 1) // 2 for width, size in zip(dilation, kernel)]
    return (0,) * len(kernel) if padding == 'valid' else padding


for number in (1, 2, 3):
    @torch_form(f'conv{number}d')
    def conv(pair, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, axes=number):
        return convolution(pair, weight, bias, stride, padding, dilation, False, 0, groups, axes)

    @torch_form(f'conv_transpose{number}d')
    def conv_transpose(
        pair, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, axes=number
    ):
        return convolution(pair, weight, bias, stride, padding, dilation, True, output_padding, groups, axes)


# products with constant matrices, and of pairs

@torch_form('linear')
def dense(pair, weight, bias=None):
    refuse_pairs('linear', weight, bias)
    require_batch(pair, 2, 'linear')
    if weight.ndim == 1 and bias is None:
        return matmul(pair, weight)
    return affine(pair, DENSE, weight, bias, partial(contracted, -1))


@torch_form('matmul', 'mm', 'bmm', 'mv', '__matmul__')
def matmul(left, right=None, *, other=None, mat2=None, vec=None):
    '''A constant on the right is a layer's weight; one on the left mixes tokens, as attention weights do.'''
    right = next(operand for operand in (right, other, mat2, vec) if operand is not None)
    if not isinstance(right, SplitTensor):
        require_batch(left, 2, 'matmul')
        note_channels(left, -1)
    has_graph, constants = pass_of((left, right)).mode.has_graph, (id(left), id(right))

    def function(*tensors):
        if has_graph:  # torch folds matrices that need a gradient, as all but constants do in the original
            keep = [each.requires_grad or id(each) in constants for each in tensors]
            tensors = [each if kept else each.detach().requires_grad_() for each, kept in zip(tensors, keep)]
        return torch.matmul(*tensors)

    return bilinear(function, left, right)


split_form(torch.Tensor.__rmatmul__)(lambda right, left: matmul(left, right))


def of_one_sample(matrices, *_):
    '''Matrices of which there may be one for each sample, without memory, as if there were one sample.'''
    return torch.empty((*(1,) * (matrices.ndim - 2), *matrices.shape[-2:]), device='meta')


def bilinear(function, left, right, stand_in=of_one_sample):
    '''A bilinear function of a pair and a constant, or of two pairs. What stands for the constant where axes are
    followed, without memory, is a function of it and of what stands for the pair.'''
    if not isinstance(left, SplitTensor):
        return linear(
            right, lambda tensor: function(left, tensor), lambda total: function(left.abs().to(total.dtype), total),
            moved_alike(lambda tensor: function(stand_in(left, tensor), tensor))
        )
    if isinstance(right, SplitTensor):
        return multiply(left, right, function, follow_axes)
    return affine(
        left, Layer(lambda input, weight, bias: function(input, weight)), right, None,
        moved_alike(lambda tensor: function(tensor, stand_in(right, tensor)))
    )


# other products, and those of sparse matrices that are constant
@form_of_each(overloads('dot', 'vdot', 'inner', 'outer', 'ger', 'kron', 'smm', 'tensordot'))
def product(function, left, right=None, *, other=None, vec2=None, tensor=None, **kwargs):
    right = next(each for each in (right, other, vec2, tensor) if each is not None)
    return bilinear(partial(function, **kwargs), left, right)


@split_form(torch.sparse.mm)
def sparse_matmul(left, right, reduce=None):
    if reduce is not None:
        raise unsupported('torch.sparse.mm', (left, right), f' for reduce={reduce!r}')
    return bilinear(torch.sparse.mm, left, right)


@torch_form('addmm')
def addmm(bias, pair=None, weight=None, *, mat1=None, mat2=None, beta=1, alpha=1):
    pair, weight = mat1 if pair is None else pair, mat2 if weight is None else weight
    if not isinstance(pair, SplitTensor) or pass_of((bias, weight)) is not None or beta != 1 or alpha != 1:
        return computed_by(torch.addmm)(plus_product)(bias, pair, weight, beta=beta, alpha=alpha)
    layer = Layer(lambda input, weight, bias: input @ weight if bias is None else torch.addmm(bias, input, weight))
    return affine(pair, layer, weight, bias, partial(contracted, -1))


def plus_product(bias, batch1, batch2, *, beta=1, alpha=1):
    '''A product of matrices plus a bias.'''
    return scaled(bias, beta) + scaled(batch1 @ batch2, alpha)


torch_form('baddbmm')(computed_by(torch.baddbmm)(plus_product))


@torch_form('einsum')
def einsum(equation, *operands):
    '''A sum of products. That of more than two operands is a chain of products of two, in the given order.'''
    operands = operands[0] if isinstance(operands[0], (tuple, list)) else operands
    if len(operands) > 2:
        chain, result = operands[0], torch.einsum(equation, *plain(operands))
        for step, operand in zip(steps_of(equation), operands[1:]):
            chain = torch.einsum(step, chain, operand)
        return valued(chain, result)
    function = partial(torch.einsum, equation)
    if len(operands) == 2:
        return bilinear(function, *operands, partial(in_step, equation, isinstance(operands[0], SplitTensor)))
    return linear(operands[0], function)


def in_step(equation, is_second, constant, tensor):
    '''A constant, without memory, whose axes are as long as those with the same label of the other operand, a tensor.
    It is the second operand, or the first.'''
    terms = equation.replace(' ', '').partition('->')[0].split(',')
    own, others = (labels(term, operand.ndim) for term, operand in zip(
        terms[::-1] if is_second else terms, (constant, tensor)
    ))
    lengths = [tensor.shape[others.index(label)] if label in others and length > 1 else length
               for label, length in zip(own, constant.shape)]
    return torch.empty(lengths, device='meta')


def labels(term, count):
    '''The labels of a number of axes, of which an ellipsis has those that count from its end.'''
    found = re.findall(r'\.\.\.|\w', term)
    if '...' not in found:
        return found
    place = found.index('...')
    return [*found[:place], *range(len(found) - count - 1, 0), *found[place + 1:]]


def steps_of(equation):
    '''The equations of products of two, each of what the ones before made and of the next operand. What is neither in a
    later operand nor in the output is summed.'''
    inputs, arrow, output = equation.replace(' ', '').partition('->')
    made, *others = terms = [re.findall(r'\.\.\.|\w', term) for term in inputs.split(',')]
    letters, steps = [label for term in terms for label in term], []
    output = re.findall(r'\.\.\.|\w', output) if arrow else sorted(
        label for label in {*letters} if label == '...' or letters.count(label) == 1
    )
    for count, term in enumerate(others, 1):
        later = {*output}.union(*others[count:])
        kept = [label for label in dict.fromkeys([*made, *term]) if label in later]
        kept = kept if others[count:] else output
        steps.append(f'{"".join(made)},{"".join(term)}->{"".join(kept)}')
        made = kept
    return steps


@torch_form('bilinear')
@computed_by(F.bilinear)
def bilinear_layer(input1, input2, weight, bias=None):
    '''A layer of two inputs, with a weight for each product of their features.'''
    if isinstance(input1, SplitTensor) and isinstance(input2, SplitTensor):
        output = einsum('...i,oij,...j->...o', input1, weight, input2)
    else:
        pair, constant, axes = (input1, input2, 'oji') if isinstance(input1, SplitTensor) else (input2, input1, 'oij')
        output = einsum('...j,...oj->...o', pair, torch.einsum(f'...i,{axes}->...oj', constant, weight))
    return output if bias is None else output + bias


# batch norm

@split_form(F.batch_norm)
def batch_norm(
    pair, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    '''A batch norm after an affine layer belongs to this layer; any other is an affine layer itself.'''
    refuse_pairs('batch_norm', running_mean, running_var, weight, bias)
    if training or running_mean is None or running_var is None:
        raise RuntimeError(
            f'batch_norm, called in {called_in(pair.split_pass)}, uses the statistics of the batch, with which the map'
            ' of an image would depend on the others: call .eval() on the model (and track running statistics)'
        )
    require_batch(pair, 2, 'batch_norm')
    rule, before, axes = pair.split_pass.rule, pair.layer, (1, -1, *(1,) * (pair.values[0].ndim - 2))
    scale = torch.rsqrt(running_var + eps) if weight is None else weight * torch.rsqrt(running_var + eps)
    scale, shift = scale.reshape(axes), None
    if pair.split_pass.mode.sums or rule.passes_activations:  # else nothing is made of the bias
        shift = -running_mean.reshape(axes) * scale if bias is None else torch.addcmul(
            bias.reshape(axes), running_mean.reshape(axes), scale, value=-1
        )

    def normalize(difference, *_):
        output = F.batch_norm(difference, running_mean, running_var, weight, bias, False, momentum, eps)
        strides = output.stride()
        if output.requires_grad:  # for gradients in some other strides, torch's own is wrong on a CPU
            output.register_hook(lambda gradient: gradient if gradient is None else laid_out(gradient, strides))
        return output

    layer = Layer(
        lambda input, scale, shift: input * scale if shift is None else torch.addcmul(shift, input, scale),
        lambda gradient, scale, shape: gradient * scale,
        difference=normalize
    )
    if before is None or not rule.passes_activations:  # sensitivities are not shifted between the layer and its norm
        source, rule = (rule.before_affine(pair), rule) if before is None else (pair, before.rule)
        return pending(same_axes([pair], weighted(source, layer, scale, shift)), shift, rule)
    stream_sum = before.tensors[1]
    if before.bias is not None:
        stream_sum, shift = stream_sum - before.bias.abs(), scale * before.bias + shift
    difference = pair.difference if before.is_read else before.tensors[0]
    output = same_axes([pair], weighted(pair.replaced(difference, stream_sum), layer, scale, shift))
    output = recenter(instead(output, pair.tensors)) if before.is_read else pending(output, shift, before.rule)
    if (tap := vars(pair).get('tap')) is not None:  # hooks of the layer's output see the norm's
        tap.attach(output, lambda: output)
    return output


@split_form(torch.batch_norm)
def builtin_batch_norm(pair, weight, bias, mean, variance, training, momentum, eps, cudnn_enabled=True):
    '''The same with the order of parameters that the built-in function has.'''
    return batch_norm(pair, mean, variance, weight, bias, training, momentum, eps)


# linear operations without weights

register(
    overloads('adaptive_avg_pool1d', 'adaptive_avg_pool2d', 'adaptive_avg_pool3d', 'cumsum'), same_axes, linear
)


@form_of_each(overloads('avg_pool1d', 'avg_pool2d', 'avg_pool3d'))
def average(function, pair, *args, **kwargs):
    if (kwargs.get('divisor_override') or (args[5:] and args[5]) or 1) < 0:
        raise unsupported('an average', (pair,), ' for a negative divisor_override')
    return of_one_tensor(function, same_axes, linear)(pair, *args, **kwargs)


@form_of_each(overloads('mean', 'sum', 'trace'))
def reduction(function, pair, *args, **kwargs):
    # axes by the sum, as torch runs several times as much Python for a mean without values
    follow = moved_alike(lambda tensor: tensor.sum(*args, **kwargs))
    return linear(pair, lambda tensor: function(tensor, *args, **kwargs), note_axes=follow)
