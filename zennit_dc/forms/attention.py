'''Attention and layer norm, with attention weights and normalization statistics as constants of the input.'''
import math
import types
from functools import partial

import torch
from torch.nn import functional as F

from ..operations import Instead, Layer, affine, linear, magnitude
from ..split import SplitTensor, joined, split_form, unsupported
from .arithmetic import Valued
from .linear import of_one_sample, with_channels
from .table import SplitOption, follow_axes, missing, overloads, plain, require_evaluation


class DetachedAttention(SplitOption):
    '''Treat what softmax returns, and the statistics of layer norms, as constants in the split form of a model.

    Pass it to a composite among its ``canonizers``. Then attention is a positive linear map of its values, layer norm
    is affine, and normalized vectors are scaled ones. The model's output stays bit-identical. But the
    paper's network class does not have these functions: with their values at the given input as constants, g and h are
    convex and monotone only as functions around this input, and the sensitivities leave out how attention weights and
    statistics change with the input. SplitGrad at :math:`\\alpha = 0.5` is half of the gradient that leaves this out.
    '''
    forms = {}


detached_form = partial(split_form, table=DetachedAttention.forms)


def constant(tensor, split_pass):
    '''A tensor that depends on the input, as a constant of the map.'''
    return Instead.apply(tensor, None, split_pass)


for function in overloads('softmax', 'norm'):
    @detached_form(function)
    def constants(pair, *args, function=function, **kwargs):
        '''Attention weights, and norms, which are constants from here on.'''
        return constant(function(pair.difference, *args, **kwargs), pair.split_pass)


class Centering(Layer):
    '''The linear map of a normalization with constant statistics: subtract the mean over axes, and scale.

    Parameters
    ----------
    axes : tuple of int
        The axes.
    function : callable
        The normalization itself, as the model computes it.
    '''
    def __init__(self, axes, function):
        super().__init__(self.centered, difference=lambda difference, *parameters: Valued.apply(
            self.centered(difference, *parameters), function(difference.detach())
        ))
        self.axes = axes

    def centered(self, input, weight, bias):
        '''The normalization.'''
        output = (input - input.mean(self.axes, keepdim=True)) * weight
        return output if bias is None else output + bias

    def magnitude(self, stream_sum, weight, bias):
        '''The same with the absolute values of the matrix that subtracts the mean.'''
        size = math.prod(stream_sum.shape[axis] for axis in self.axes)
        output = stream_sum * (1 - 2 / size) + stream_sum.mean(self.axes, keepdim=True)
        output = output * magnitude(weight, stream_sum)
        return output if bias is None else output + magnitude(bias, stream_sum)


@detached_form(*overloads('layer_norm'))
def layer_norm(pair, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    axes, original = tuple(range(-len(normalized_shape), 0)), pair.difference
    scale = constant(torch.rsqrt(original.var(axes, unbiased=False, keepdim=True) + eps), pair.split_pass)
    scale = scale.expand(original.shape) if weight is None else scale * weight
    layer = Centering(axes, lambda tensor: F.layer_norm(tensor, normalized_shape, weight, bias, eps))
    output = affine(pair, layer, scale, bias)
    return with_channels(pair, output, -1) if len(axes) == 1 else joined([pair], output)


@detached_form(F.scaled_dot_product_attention)
def attention(query, key, value, attn_mask=None, dropout_p=0., is_causal=False, *, scale=None, enable_gqa=False):
    '''Attention, a positive linear map of the values.'''
    if enable_gqa or not isinstance(value, SplitTensor):
        raise unsupported(
            'scaled_dot_product_attention', (query, key, value), ' for grouped queries or constant values'
        )
    require_evaluation(dropout_p > 0., 'the dropout of attention', value)
    query, key = (each.difference if isinstance(each, SplitTensor) else each for each in (query, key))
    logits = masked(query @ key.mT * (query.shape[-1] ** -.5 if scale is None else scale), attn_mask, is_causal)
    weights = constant(logits.softmax(-1), value.split_pass)

    def attend(tensor):
        original = F.scaled_dot_product_attention(
            *plain((query.detach(), key.detach())), tensor.detach(), attn_mask, 0., is_causal, scale=scale
        )
        return Valued.apply(weights @ tensor, original)

    output = linear(value, attend, lambda tensor: weights.to(tensor.dtype) @ tensor)
    return follow_axes([value], output, lambda tensor: of_one_sample(weights) @ tensor)


def masked(logits, mask, is_causal):
    '''The logits of attention, with minus infinity where a mask is false, or plus a mask of numbers.'''
    if is_causal and mask is None:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is None:
        return logits
    return logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask


missing(
    DetachedAttention.forms, ', as it is outside of the class of networks that can be split exactly',
    'pass canonizers=[zennit_dc.DetachedAttention()] to the composite to treat attention weights and normalization'
    ' statistics as constants'
)


def own_steps(function):
    '''The steps that torch takes in a function which is written in Python, each of them by its form.'''
    names = dict.fromkeys(('has_torch_function', 'has_torch_function_unary', 'has_torch_function_variadic'))
    steps = {**function.__globals__, **{name: lambda *_: False for name in names}}
    return types.FunctionType(function.__code__, steps, function.__name__, function.__defaults__)


for function in (F.multi_head_attention_forward, F.normalize):
    split_form(function)(own_steps(function))
