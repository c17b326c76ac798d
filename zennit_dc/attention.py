'''Attention and layer norm, with attention weights and normalization statistics as constants of the input.'''
import math

import torch
from torch.nn import functional as F

from .affine import Layer, finish_affine, weighted
from .functional import overloads, torch_form
from .growth import Replace
from .operations import linear
from .options import SplitOption
from .split import SplitTensor, split_form, unsupported


class DetachedAttention(SplitOption):
    '''Treat what softmax returns, and the statistics of layer norms, as constants in the split form of a model.

    Pass it to a composite among its ``canonizers``. Then attention is a positive linear map of its values, layer norm
    is affine, and normalized vectors are scaled ones. The model's output stays bit-identical. But the
    paper's network class does not have these functions: with their values at the given input as constants, g and h are
    convex and monotone only as functions around this input, and the sensitivities leave out how attention weights and
    statistics change with the input. SplitGrad at :math:`\\alpha = 0.5` is half of the gradient that leaves this out.
    '''


def require_detached(name, pair):
    '''Raise if the function may not be treated as linear.'''
    if DetachedAttention.of(pair.form.root) is None:
        raise unsupported(
            name, (pair,), ', as it is outside of the class of networks that can be split exactly',
            'pass canonizers=[zennit_dc.DetachedAttention()] to the composite to treat attention weights and'
            ' normalization statistics as constants'
        )


for function in overloads('softmax'):
    @split_form(function)
    def softmax(pair, *args, function=function, **kwargs):
        '''Attention weights, which are constants from here on.'''
        require_detached('softmax', pair)
        return pair.form.constants(function(pair.difference, *args, **kwargs))[0]


class Centering(Layer):
    '''The linear map of a normalization with constant statistics: subtract the mean over axes, and scale.'''
    def __init__(self, axes):
        super().__init__(self.centered)
        self.normalized = axes

    def centered(self, input, weight, bias):
        '''The normalization.'''
        output = (input - input.mean(self.normalized, keepdim=True)) * weight
        return output if bias is None else output + bias

    def magnitude(self, stream_sum, weight, bias):
        '''The same with the absolute values of the matrix that subtracts the mean.'''
        size = math.prod(stream_sum.shape[axis] for axis in self.normalized)
        output = stream_sum * (1 - 2 / size) + stream_sum.mean(self.normalized, keepdim=True)
        output = output * weight.abs().to(stream_sum.dtype)
        return output if bias is None else output + bias.abs().to(stream_sum.dtype)


def normalization(pair, axes, weight, bias, eps, function):
    '''A normalization of each sample over axes, with its statistics as constants.'''
    variance = pair.difference.var(axes, unbiased=False, keepdim=True)
    scale, = pair.form.constants(torch.rsqrt(variance + eps))
    scale = scale.expand(pair.difference.shape) if weight is None else scale * weight
    layer = Centering(axes)

    def difference_layer(input, weight, bias):
        return Replace.apply(layer.centered(input, weight, bias), function(input.detach()))

    pair = pair.form.rule.before_affine(pair)
    return finish_affine(weighted(pair, layer, scale, bias, difference_layer), bias)


@torch_form('layer_norm')
def layer_norm(pair, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    require_detached('layer_norm', pair)
    axes = tuple(range(-len(normalized_shape), 0))
    return normalization(
        pair, axes, weight, bias, eps, lambda tensor: F.layer_norm(tensor, normalized_shape, weight, bias, eps)
    )


@split_form(F.normalize)
def normalize(pair, p=2., dim=1, eps=1e-12, out=None):
    '''A vector over its norm, which is a constant.'''
    require_detached('normalize', pair)
    norm, = pair.form.constants(pair.difference.norm(p, dim, keepdim=True).clamp_min(eps))
    return linear(
        pair, lambda tensor: Replace.apply(tensor / norm, F.normalize(tensor.detach(), p, dim, eps)),
        lambda tensor: tensor / norm
    )


@split_form(F.scaled_dot_product_attention)
def attention(query, key, value, attn_mask=None, dropout_p=0., is_causal=False, *, scale=None, enable_gqa=False):
    '''Attention, a positive linear map of the values.'''
    if enable_gqa or not isinstance(value, SplitTensor):
        raise unsupported(
            'scaled_dot_product_attention', (query, key, value), ' for grouped queries or constant values'
        )
    require_detached('scaled_dot_product_attention', value)
    if dropout_p > 0.:
        raise RuntimeError('attention drops out at random: call .eval() on the model')
    query, key = (
        operand.difference if isinstance(operand, SplitTensor) else operand for operand in (query, key)
    )
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    weights, = value.form.constants(logits.softmax(-1))

    def attend(tensor):
        original = F.scaled_dot_product_attention(
            query.detach(), key.detach(), tensor.detach(), None if is_causal else attn_mask, 0., is_causal, scale=scale
        )
        return Replace.apply(weights @ tensor, original)

    return linear(value, attend, lambda tensor: weights.to(tensor.dtype) @ tensor)


@split_form(F.multi_head_attention_forward)
def multi_head_attention(
    query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v, add_zero_attn,
    dropout_p, out_proj_weight, out_proj_bias, training=True, key_padding_mask=None, need_weights=True, attn_mask=None,
    use_separate_proj_weight=False, q_proj_weight=None, k_proj_weight=None, v_proj_weight=None, static_k=None,
    static_v=None, average_attn_weights=True, is_causal=False
):
    '''The steps of :py:func:`torch.nn.functional.multi_head_attention_forward` on split pairs of shape (tokens, batch,
    channels).'''
    extras = (bias_k, bias_v, key_padding_mask, static_k, static_v)
    if any(extra is not None for extra in extras) or add_zero_attn or query.ndim != 3:
        raise unsupported(
            'multi_head_attention_forward', (query, key, value),
            ' without a batch axis, with key_padding_mask, add_bias_kv, add_zero_attn or static keys'
        )
    if training and dropout_p > 0.:
        raise RuntimeError('multi_head_attention_forward is in training mode: call .eval() on the model')
    tokens, batch, channels = query.shape
    if use_separate_proj_weight:
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        projected = F._in_projection(query, key, value, q_proj_weight, k_proj_weight, v_proj_weight, *biases)
    else:
        projected = F._in_projection_packed(query, key, value, in_proj_weight, in_proj_bias)
    size = channels // num_heads
    q, k, v = (one.view(one.shape[0], batch * num_heads, size).transpose(0, 1) for one in projected)
    if need_weights:
        logits = q * math.sqrt(1. / size) @ k.transpose(-2, -1)
        weights = F.softmax(logits if attn_mask is None else logits + attn_mask, -1)
        output = torch.bmm(weights, v)
        output = output.transpose(0, 1).contiguous().view(tokens * batch, channels)
        output = F.linear(output, out_proj_weight, out_proj_bias).view(tokens, batch, channels)
        weights = weights.view(batch, num_heads, tokens, -1)
        return output, weights.mean(1) if average_attn_weights else weights
    q, k, v = (one.view(batch, num_heads, -1, size) for one in (q, k, v))
    output = F.scaled_dot_product_attention(q, k, v, attn_mask, 0., is_causal)
    output = output.permute(2, 0, 1, 3).contiguous().view(batch * tokens, channels)
    return F.linear(output, out_proj_weight, out_proj_bias).view(tokens, batch, channels), None
