'''Normalization, with statistics of the input as constants: layer, group, instance and RMS norm, local responses, norms
and variances, and division by a pair.'''
import math
from functools import partial
from typing import ClassVar

import torch
from torch.nn import functional as F

from ..core.axes import same_axes, with_channels
from ..core.blocks import Layer, affine, linear, magnitude
from ..core.pair import pass_of
from ..core.registry import split_form
from ..core.table import FORMS
from .arithmetic import Valued, computed_by
from .deferred import as_constants, constant, note
from .linear import batch_norm
from .table import SplitOption, missing, own_steps, refuse_pairs, refuse_random, require_batch, torch_form


class DetachedStatistics(SplitOption):
    '''Treat what softmax returns, and statistics of the input, as constants where they scale, weight or divide
    something in the split form of a model.

    With ``canonizers='auto'``, composites take it where a model needs it. Attention is then a positive linear map of
    its values; layer, group, instance and RMS norm are affine; and the denominator is a constant wherever something is
    divided by what depends on the input. Softmax and reciprocals are constants in all products with other pairs, and
    norms, standard deviations and roots are in those that have more entries than they.

    Where such a statistic is used in another way it is a feature, as the standard deviation is that is concatenated
    with means. Features are linear around the given input: with :math:`c_i` for the derivatives there, a norm or a
    standard deviation is :math:`\\sum_i c_i x_i`. Sensitivities pass through these coefficients, so that SplitGrad at
    :math:`\\alpha = 0.5` is half of the original gradient. Relevance is conserved; roots, powers and softmax pass it
    unchanged. Of reciprocals, a constant takes a part of the relevance, as a bias does.

    The model's output stays bit-identical. But the paper's network class does not have these functions: g and h are
    convex and monotone only as functions around the given input, and the sensitivities leave out how attention weights
    and the statistics of normalizations change with the input.
    '''
    forms: ClassVar[dict] = {}


detached_form = partial(torch_form, table=DetachedStatistics.forms)
optional_form = partial(split_form, table=DetachedStatistics.forms)


class Normalization(Layer):
    '''The linear map of a normalization with constant statistics: subtract the mean, and scale.

    Parameters
    ----------
    function : callable
        The normalization itself, as the model computes it.
    mean : callable, optional
        The mean of a tensor over each group of entries, in a shape that broadcasts with it. Without it, none is
        subtracted.
    size : int, optional
        The number of entries of a group.
    '''
    def __init__(self, function, mean=None, size=None):
        super().__init__(self.normalized, difference=lambda difference, *parameters: Valued.apply(
            self.normalized(difference, *parameters), function(difference.detach())
        ))
        self.mean, self.size = mean, size

    def normalized(self, input, weight, bias):
        '''The normalization.'''
        output = (input if self.mean is None else input - self.mean(input)) * weight
        return output if bias is None else output + bias

    def magnitude(self, stream_sum, weight, bias):
        '''The same with the absolute values of the matrix that subtracts the mean.'''
        if self.mean is not None:
            stream_sum = stream_sum * (1 - 2 / self.size) + self.mean(stream_sum)
        output = stream_sum * magnitude(weight, stream_sum)
        return output if bias is None else output + magnitude(bias, stream_sum)


def normalized(pair, name, function, variance, weight, bias, channels, mean=None, size=None):
    '''A normalization by a variance, as a function computes it, of channels along an axis of some index, if there is
    one. For mean and size see :py:class:`Normalization`.'''
    note(pair.split_pass, name)
    scale = constant(torch.rsqrt(variance), pair.split_pass).expand(pair.values[0].shape)
    note_axes = same_axes if channels is None else partial(with_channels, channels)
    layer = Normalization(function, mean, size)
    return affine(pair, layer, scale if weight is None else scale * weight, bias, note_axes)


@detached_form('layer_norm')
def layer_norm(pair, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    refuse_pairs('layer_norm', weight, bias)
    axes = tuple(range(-len(normalized_shape), 0))
    return normalized(
        pair, 'layer_norm', lambda tensor: F.layer_norm(tensor, normalized_shape, weight, bias, eps),
        pair.difference.var(axes, unbiased=False, keepdim=True) + eps, weight, bias, -1 if len(axes) == 1 else None,
        lambda tensor: tensor.mean(axes, keepdim=True), math.prod(normalized_shape)
    )


@detached_form('rms_norm')
def rms_norm(pair, normalized_shape, weight=None, eps=None):
    refuse_pairs('rms_norm', weight)
    axes, original = tuple(range(-len(normalized_shape), 0)), pair.difference
    variance = original.square().mean(axes, keepdim=True) + (torch.finfo(original.dtype).eps if eps is None else eps)
    return normalized(pair, 'rms_norm', lambda tensor: F.rms_norm(tensor, normalized_shape, weight, eps),
                      variance, weight, None, -1 if len(axes) == 1 else None)


@detached_form('group_norm')
def group_norm(pair, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    return grouped(pair, lambda tensor: F.group_norm(tensor, num_groups, weight, bias, eps),
                   num_groups, weight, bias, eps)


@optional_form(F.instance_norm)
def instance_norm(pair, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True,
                  momentum=.1, eps=1e-5):
    refuse_pairs('instance_norm', running_mean, running_var, weight, bias)
    if not use_input_stats:
        return batch_norm(pair, running_mean, running_var, weight, bias, False, momentum, eps)
    refuse_random(running_mean is not None, 'instance_norm', pair)
    return grouped(pair, lambda tensor: F.instance_norm(tensor, None, None, weight, bias, True, momentum, eps),
                   pair.values[0].shape[1], weight, bias, eps)


def grouped(pair, function, groups, weight, bias, eps):
    '''A normalization over groups of channels and over all axes after these.'''
    refuse_pairs('a norm of groups of channels', weight, bias)
    original, after = pair.difference, (1,) * (pair.values[0].ndim - 2)
    name = 'group_norm' if groups < original.shape[1] else 'instance_norm'
    size = math.prod(original.shape[1:]) // groups
    require_batch(pair, 3 if groups == original.shape[1] else 2, 'group_norm')

    def over_groups(statistic, tensor):
        found = statistic(tensor.reshape(len(tensor), groups, size))
        return found.repeat_interleave(tensor.shape[1] // groups, 1).reshape(*tensor.shape[:2], *after)

    variance = over_groups(lambda rows: rows.var(-1, unbiased=False), original) + eps
    weight, bias = (each if each is None else each.reshape(-1, *after) for each in (weight, bias))
    mean = partial(over_groups, lambda rows: rows.mean(-1))
    return normalized(pair, name, function, variance, weight, bias, 1, mean, size)


@optional_form(F.local_response_norm)
def local_response_norm(pair, size, alpha=1e-4, beta=.75, k=1.):
    '''A division by means over neighbouring channels, of which torch takes as many before as after.'''
    note(pair.split_pass, 'local_response_norm')
    original = pair.difference
    squares = F.pad(original.square().movedim(1, -1).flatten(1, -2), (size // 2, (size - 1) // 2))
    means = F.avg_pool1d(squares, size, 1).unflatten(1, original.shape[2:]).movedim(-1, 1)
    scale = constant((k + alpha * means) ** -beta, pair.split_pass)
    value = F.local_response_norm(original.detach(), size, alpha, beta, k)
    return linear(
        pair, lambda tensor: Valued.apply(tensor * scale, value), lambda total: total * scale.to(total.dtype), same_axes
    )


@optional_form(torch.cosine_similarity, F.cosine_similarity)
@computed_by(torch.cosine_similarity)
def cosine_similarity(x1, x2, dim=1, eps=1e-8):
    note(pass_of((x1, x2)), 'cosine_similarity')
    one, other = (each / as_constants(each).norm(dim=dim, keepdim=True).clamp_min(eps) for each in (x1, x2))
    return (one * other).sum(dim)


def require_option():
    '''Register, once all families are, that functions which only this option gives a form need it.'''
    missing(
        DetachedStatistics.forms.keys() - FORMS.keys(),
        ', as it is outside of the class of networks that can be split exactly',
        'pass canonizers=[zennit_dc.DetachedStatistics()] to the composite to treat attention weights and'
        ' normalization statistics as constants'
    )


for function in (F.normalize, F.softmin):
    split_form(function)(own_steps(function))
