'''What other packages add to torch: the sum of residual networks that Zennit's canonizers make, and the operators of
torchvision, for regions of feature maps and for what is selected of boxes by its values.'''
import math
from functools import partial

import torch
import torchvision  # noqa: F401 (which registers its operators)
from zennit.layer import Sum

from ..core.axes import follow_axes
from ..core.blocks import linear
from ..core.pair import SplitTensor, unsupported
from ..core.registry import split_form
from .pooling import pool
from .reading import value
from .table import form_of_each, plain


@split_form(Sum)
def summed(module, stacked):
    '''The addition of tensors that were stacked along an axis, as Zennit has it for residual networks: relevance is
    shared evenly among the summands.'''
    function = partial(torch.sum, dim=module.dim)
    if not isinstance(stacked, SplitTensor):
        return function(stacked)
    shape = stacked.values[0].shape
    count = math.prod(shape[axis] for axis in (module.dim if isinstance(module.dim, (tuple, list)) else [module.dim]))
    shares = stacked.split_pass.rule.shared(stacked, count)
    return follow_axes([stacked], stacked.like(*map(function, shares.tensors)), function)


# operators of torchvision

OPERATORS = torch.ops.torchvision


def operators(*names):
    '''The operators of torchvision with some names, without which it may be built.'''
    return [getattr(OPERATORS, name) for name in names if hasattr(OPERATORS, name)]


form_of_each(operators('nms'))(value)  # the indices of the boxes that are left, which are constants


def require_features(name, pair, rois):
    '''Raise where only the boxes are a pair, of which torchvision has no gradient either.'''
    if not isinstance(pair, SplitTensor):
        raise unsupported(name, (rois,), ' for constant features', 'pass rois.detach()')


@form_of_each(operators('roi_align', 'ps_roi_align', 'ps_roi_pool'))
def average(function, pair, rois, *settings):
    '''The averages of regions, with coefficients that are not negative.'''
    require_features(function.__name__, pair, rois)
    rois = plain(rois)

    def regions(tensor):
        output = function(tensor, rois.to(tensor.dtype), *settings)
        return output if isinstance(output, torch.Tensor) else output[0]

    output, original = linear(pair, regions, note_axes=None), function(pair.difference.detach(), rois, *settings)
    return output if isinstance(original, torch.Tensor) else (output, original[1])


@split_form(*operators('roi_pool'))
def roi_pool(pair, rois, *settings):
    '''The maxima of regions.'''
    require_features('roi_pool', pair, rois)
    rois = plain(rois)
    if pair.split_pass.settings.pooling == 'convex':
        raise unsupported('roi_pool', (pair,), ' of convex streams', 'use pooling=\'wta\'')
    difference, stream_sum = pair.tensors
    output, winners = OPERATORS.roi_pool(difference, rois, *settings)
    samples = rois[:, 0].long()
    entries = stream_sum.flatten(2)[samples].gather(2, winners.clamp(min=0).flatten(2).long()).view_as(winners)
    return pool(pair, output, torch.where(winners < 0, 0., entries), None), winners
