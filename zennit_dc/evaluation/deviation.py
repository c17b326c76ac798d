'''By how much canonizers change the output of a model.'''
import torch
from zennit.core import Composite

from ..canonizers import SplitCanonizer
from ..core.nested import flatten


def output_deviation(model, *args, canonizers, **kwargs):
    '''The largest absolute difference of a model's output, with canonizers such as
    :py:class:`~zennit_dc.SmoothReplacement`, to its original output.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    *args, **kwargs
        Its input.
    canonizers : list[:py:class:`zennit.canonizers.Canonizer`]
        The canonizers.

    Returns
    -------
    float
        The difference.
    '''
    with torch.no_grad():
        original = flatten(model(*args, **kwargs))[0]
        with Composite(canonizers=[*canonizers, SplitCanonizer(recentering=None)]).context(model):
            output = flatten(model(*args, **kwargs))[0]
    return max((one - other).abs().max().item() for one, other in zip(output, original) if torch.is_tensor(one))
