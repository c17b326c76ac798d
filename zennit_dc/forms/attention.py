'''Attention, with its weights as constants.'''
import math

import torch
from torch.nn import functional as F

from ..core.axes import Axis, require_samples
from ..core.blocks import linear, moved_alike
from ..core.pair import SplitTensor, pass_of
from ..core.registry import split_form
from .arithmetic import Valued, valued
from .deferred import constant, note
from .features import softmax, statistic
from .linear import of_one_sample
from .statistics import optional_form
from .table import each_pair, own_steps, plain, refuse_random


@optional_form(F.scaled_dot_product_attention)
def attention(query, key, value, attn_mask=None, dropout_p=0., is_causal=False, *, scale=None, enable_gqa=False):
    '''Attention, a positive linear map of the values. Of values that are constants, it is a statistic.'''
    split_pass = pass_of((query, key, value, attn_mask))
    refuse_random(dropout_p > 0., 'the dropout of attention', (query, key, value))
    settings = {'scale': scale, **({'enable_gqa': True} if enable_gqa else {})}  # which torch 2.4 does not know
    if not isinstance(value, SplitTensor):
        return statistic(F.scaled_dot_product_attention, attention_to_constants, query, key, value, attn_mask,
                         is_weight=True, is_causal=is_causal, **settings)
    note(split_pass, 'scaled_dot_product_attention')
    mask = attn_mask  # torch computes attention in another way for a mask that has a gradient
    if isinstance(attn_mask, SplitTensor):
        mask = plain(attn_mask).requires_grad_(split_pass.mode.has_graph)
    query, key, attn_mask = each_pair(lambda pair: pair.difference, (query, key, attn_mask))
    logits, grouped = logits_of(query, key, attn_mask, is_causal, scale, enable_gqa)
    weights = constant(logits.softmax(-1), split_pass)

    def attend(tensor):
        return weights.to(tensor.dtype) @ grouped(tensor)

    original = F.scaled_dot_product_attention(
        query.detach(), key.detach(), plain(value), mask, 0., is_causal, **settings
    )
    return linear(
        value, lambda tensor: Valued.apply(attend(tensor), original), attend,
        moved_alike(lambda tensor: of_one_sample(weights) @ grouped(tensor))
    )


def logits_of(query, key, mask, is_causal, scale, enable_gqa):
    '''The logits of attention, and what repeats keys or values for all heads of a group.'''
    heads = query.shape[-3] // key.shape[-3] if enable_gqa else 1

    def grouped(tensor):
        return tensor.repeat_interleave(heads, -3) if heads > 1 else tensor

    scale = query.shape[-1] ** -.5 if scale is None else scale
    return masked(query @ grouped(key).mT * scale, mask, is_causal), grouped


def attention_to_constants(output, query, key, value, mask, is_causal, scale, enable_gqa=False):
    '''Attention to constant values as a feature, by that of its weights.'''
    logits, grouped = logits_of(query, key, mask, is_causal, scale, enable_gqa)
    weights = softmax(torch.softmax(plain(logits), -1), logits, -1)
    return valued(torch.matmul(weights, grouped(value)), output)


def masked(logits, mask, is_causal):
    '''The logits of attention, with minus infinity where a mask is false, or plus a mask of numbers.'''
    if is_causal and mask is None:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is None:
        return logits
    return logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask


@split_form(F.multi_head_attention_forward)
def multi_head_attention(query, *args, **kwargs):
    '''The attention of several heads, of queries of shape (tokens, batch, channels).'''
    is_batch = isinstance(query, SplitTensor) and query.values[0].ndim == 3
    if is_batch:
        require_samples(query, 1)
    output, weights = own_steps(F.multi_head_attention_forward)(query, *args, **kwargs)
    if is_batch and isinstance(output, SplitTensor) and query.axis('batch') == -2:
        output.axes = output.axes._replace(batch=Axis.at(output.values[0].shape, -2))  # which was one with the heads
    return output, weights
