'''What other packages add to torch: the sum of residual networks that Zennit's canonizers make.'''
import math
from functools import partial

import torch
from zennit.layer import Sum

from ..core.pair import SplitTensor
from ..core.registry import split_form
from .table import follow_axes


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
