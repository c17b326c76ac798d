'''Operators of aten that have no function of torch with the same name and parameters, as graphs of torch.export call
them. What such a function would be is written in torch's own functions, each of which has its form.'''
import torch
from torch.nn import functional as F

from ..core.axes import same_axes
from ..core.blocks import linear
from ..core.pair import unsupported
from ..core.registry import split_form
from .arithmetic import copy_of, valued
from .linear import convolution
from .reading import reading
from .routing import register
from .table import plain


ATEN = torch.ops.aten


@split_form(ATEN.slice)
def slice_of(pair, dim=0, start=None, end=None, step=1):
    return pair[(slice(None),) * (dim % pair.ndim) + (slice(start, end, step),)]


@split_form(ATEN.index)
def index(pair, indices):
    return pair[tuple(slice(None) if each is None else each for each in indices)]


split_form(ATEN.alias, ATEN.lift_fresh_copy)(lambda pair: pair.view(pair.shape))
split_form(ATEN.copy)(lambda target, source, non_blocking=False: copy_of(target, source))
split_form(ATEN.dropout_)(lambda pair, p, train: F.dropout(pair, p, train, True))
split_form(ATEN.detach_)(lambda pair: pair.detach())
split_form(ATEN._unsafe_view)(lambda pair, shape: pair.reshape(shape))
split_form(ATEN.constant_pad_nd)(lambda pair, pad, value=0: F.pad(pair, pad, 'constant', value))
split_form(ATEN.pad)(F.pad)
split_form(ATEN._softmax)(lambda pair, dim, half_to_float=False: torch.softmax(pair, dim))
split_form(ATEN._log_softmax)(lambda pair, dim, half_to_float=False: torch.log_softmax(pair, dim))
split_form(ATEN._adaptive_avg_pool2d)(F.adaptive_avg_pool2d)
split_form(ATEN._adaptive_avg_pool3d)(F.adaptive_avg_pool3d)


@split_form(ATEN._to_copy)
def to_copy(pair, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None):
    return pair.to(device or pair.device, dtype or pair.dtype, copy=True)


@split_form(ATEN._assert_tensor_metadata)
@reading
def require_metadata(pair, *args, **kwargs):
    ATEN._assert_tensor_metadata(*plain((pair, *args)), **kwargs)


@split_form(ATEN.sym_size)
@reading
def size(pair, dim):
    return pair.shape[dim]


# layers

split_form(ATEN.convolution)(convolution)


@split_form(ATEN.instance_norm)
def instance_norm(pair, weight, bias, mean, variance, use_input_stats, momentum, eps, cudnn_enabled=True):
    return F.instance_norm(pair, mean, variance, weight, bias, use_input_stats, momentum, eps)


# normalizations return statistics, too, which nothing in a graph of an evaluation uses

@split_form(ATEN._native_batch_norm_legit_no_training)
def batch_norm(pair, weight, bias, mean, variance, momentum, eps):
    return F.batch_norm(pair, mean, variance, weight, bias, False, momentum, eps), None, None


@split_form(ATEN.native_layer_norm)
def layer_norm(pair, shape, weight, bias, eps):
    return F.layer_norm(pair, shape, weight, bias, eps), None, None


@split_form(ATEN.native_group_norm)
def group_norm(pair, weight, bias, samples, channels, places, groups, eps):
    return F.group_norm(pair, groups, weight, bias, eps), None, None


@split_form(ATEN._native_batch_norm_legit)
def instance_statistics(pair, weight, bias, *settings):
    '''What an instance norm is in a graph: a batch norm of one sample by its own statistics.'''
    if len(settings) != 3 or pair.shape[0] != 1:
        raise unsupported('a batch norm by the statistics of the batch', (pair,), remedy='call .eval() before')
    return F.instance_norm(pair, None, None, weight, bias, True, *settings[1:]), None, None


# resampling

register([
    ATEN.upsample_linear1d, ATEN.upsample_bilinear2d, ATEN.upsample_trilinear3d, ATEN._upsample_bilinear2d_aa,
    ATEN.upsample_nearest1d, ATEN.upsample_nearest2d, ATEN.upsample_nearest3d,
], same_axes, linear)


@split_form(ATEN.upsample_bicubic2d)
def upsample_bicubic(pair, size, align_corners, *scales, scale_factors=None):
    found = scale_factors or (scales[0] if scales else None)
    value = ATEN.upsample_bicubic2d(plain(pair), size, align_corners, *scales or [scale_factors])
    return valued(F.interpolate(pair, size, None if size else found, 'bicubic', align_corners), value)
