'''Operators of aten that have no function of torch with the same name and parameters, as graphs of torch.export call
them. What such a function would be is written in torch's own functions, each of which has its form.'''
import torch
from torch.nn import functional as F

from ..core.axes import same_axes
from ..core.blocks import linear
from ..core.pair import unsupported
from ..core.registry import split_form
from .arithmetic import computed_by, copy_of
from .linear import convolution
from .reading import value
from .routing import register
from .table import form_of_each


ATEN = torch.ops.aten


IN_TORCH = {
    ATEN.slice: lambda pair, dim=0, start=None, end=None, step=1:
        pair[(slice(None),) * (dim % pair.ndim) + (slice(start, end, step),)],
    ATEN.index: lambda pair, indices: pair[tuple(slice(None) if each is None else each for each in indices)],
    ATEN.alias: lambda pair: pair.view(pair.shape),
    ATEN.lift_fresh_copy: lambda pair: pair.view(pair.shape),
    ATEN.copy: copy_of,
    ATEN.dropout_: lambda pair, p, train: F.dropout(pair, p, train, True),
    ATEN.detach_: lambda pair: pair.detach(),
    ATEN._unsafe_view: lambda pair, shape: pair.reshape(shape),
    ATEN.constant_pad_nd: lambda pair, pad, value=0: F.pad(pair, pad, 'constant', value),
    ATEN.pad: F.pad,
    ATEN._softmax: lambda pair, dim, half_to_float=False: torch.softmax(pair, dim),
    ATEN._log_softmax: lambda pair, dim, half_to_float=False: torch.log_softmax(pair, dim),
    ATEN._adaptive_avg_pool2d: F.adaptive_avg_pool2d,
    ATEN._adaptive_avg_pool3d: F.adaptive_avg_pool3d,
    ATEN.convolution: convolution,
    ATEN.instance_norm: lambda pair, weight, bias, mean, variance, use_input_stats, momentum, eps, cudnn_enabled=True:
        F.instance_norm(pair, mean, variance, weight, bias, use_input_stats, momentum, eps),
    # normalizations return statistics, too, which nothing in a graph of an evaluation uses
    ATEN._native_batch_norm_legit_no_training: lambda pair, weight, bias, mean, variance, momentum, eps:
        (F.batch_norm(pair, mean, variance, weight, bias, False, momentum, eps), None, None),
    ATEN.native_layer_norm: lambda pair, shape, weight, bias, eps:
        (F.layer_norm(pair, shape, weight, bias, eps), None, None),
    ATEN.native_group_norm: lambda pair, weight, bias, samples, channels, places, groups, eps:
        (F.group_norm(pair, groups, weight, bias, eps), None, None),
}
for operator, form in IN_TORCH.items():
    split_form(operator)(form)


@split_form(ATEN._to_copy)
def to_copy(pair, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None):
    return pair.to(device or pair.device, dtype or pair.dtype, copy=True)


form_of_each([ATEN._assert_tensor_metadata, ATEN.sym_size])(value)


@split_form(ATEN._native_batch_norm_legit)
def instance_statistics(pair, weight, bias, *settings):
    '''What an instance norm is in a graph: a batch norm of one sample by its own statistics.'''
    if len(settings) != 3 or pair.shape[0] != 1:
        raise unsupported('a batch norm by the statistics of the batch', (pair,), remedy='call .eval() before')
    return F.instance_norm(pair, None, None, weight, bias, True, *settings[1:]), None, None


register([
    ATEN.upsample_linear1d, ATEN.upsample_bilinear2d, ATEN.upsample_trilinear3d, ATEN._upsample_bilinear2d_aa,
    ATEN.upsample_nearest1d, ATEN.upsample_nearest2d, ATEN.upsample_nearest3d,
], same_axes, linear)


@split_form(ATEN.upsample_bicubic2d)
@computed_by(ATEN.upsample_bicubic2d)
def upsample_bicubic(pair, size, align_corners, scales=None, *others, scale_factors=None):
    return F.interpolate(pair, size, None if size else scale_factors or scales, 'bicubic', align_corners)
