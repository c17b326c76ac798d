'''Resampling with constant coefficients: interpolation, sampling at a grid, and the sum of patches.'''
import torch
from torch.nn import functional as F

from ..core.axes import follow_axes, same_axes
from ..core.blocks import linear
from ..core.pair import SplitTensor, unsupported
from ..core.registry import split_form
from .linear import per_axis
from .routing import register
from .table import torch_form


@torch_form('interpolate', 'upsample')
def interpolate(
    pair, size=None, scale_factor=None, mode='nearest', align_corners=None, recompute_scale_factor=None, antialias=False
):
    '''Interpolation. The coefficients of a bicubic one, and of Lanczos', have both signs, and are products of those of
    both axes.'''
    def resized(tensor, size=size, scale=scale_factor):
        return F.interpolate(tensor, size, scale, mode, align_corners, recompute_scale_factor, antialias)

    if mode not in ('bicubic', 'lanczos'):
        return linear(pair, resized, note_axes=same_axes)
    rows, columns = (
        resized(torch.eye(length, device=pair.device, dtype=torch.float64)[None, None],
                None if own is None else (own, length), None if scale is None else (scale, 1.))[0, 0].abs()
        for length, own, scale in zip(pair.shape[2:], per_axis(size, 2), per_axis(scale_factor, 2))
    )
    return linear(pair, resized, lambda total: rows.to(total.dtype) @ total @ columns.T.to(total.dtype), same_axes)


@split_form(F.grid_sample)
def grid_sample(pair, grid, mode='bilinear', padding_mode='zeros', align_corners=None):
    '''Sampling at the places of a grid.'''
    if isinstance(grid, SplitTensor):
        raise unsupported('grid_sample', (pair, grid), ' for a grid that depends on the input',
                          'detach what it is made of, e.g. affine_grid(theta.detach(), …), for a constant grid')
    if mode == 'bicubic':
        raise unsupported('grid_sample', (pair,), ' for negative coefficients (bicubic)', 'use mode=\'bilinear\'')
    def sampled(tensor):
        return F.grid_sample(tensor, grid.to(tensor.dtype), mode, padding_mode, align_corners)

    def sampled_sum(total):
        # as bfloat16 rounds a place to another one, and no sum to less than the difference
        rounds = mode == 'nearest' and pair.values[0].dtype is torch.bfloat16
        return sampled(total.to(torch.bfloat16)).to(total.dtype) if rounds else sampled(total)

    return linear(pair, sampled, sampled_sum, same_axes)


register([F.fold], follow_axes, linear)  # the sum of overlapping patches
