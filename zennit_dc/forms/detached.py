'''Smooth activations as multiplications by constants of the input, and gates as constant factors.'''
import functools
from typing import ClassVar

import torch
from torch.nn import functional as F

from ..core.blocks import passing
from ..core.pair import GATE, SplitTensor
from .activations import slopes_at
from .arithmetic import Valued, multiplication, subtraction
from .deferred import constant
from .smooth import SMOOTH, parametric_forms
from .table import SplitOption, torch_form


class DetachedActivations(SplitOption):
    '''Treat smooth activations as multiplications by constants of the input, and gates as constant factors.

    With ``canonizers='auto'``, composites take it where a model needs it. Each activation :math:`\\varphi` (ELU, SELU,
    CELU, SiLU, GELU, Mish, Softplus, Sigmoid, LogSigmoid, Tanh, Tanhshrink, Hardsigmoid, Hardswish; as module or
    function) becomes :math:`\\varphi(0) + c z` with the constant :math:`c = (\\varphi(z) - \\varphi(0)) / z \\geq 0` at
    the given input, which is the identity rule of AttnLRP [1]_ for relevance. In a product, a sigmoid is a constant
    factor, and so is one minus a sigmoid.

    The model's output stays bit-identical, whatever the depth and the weights, and products do not let the streams
    grow: deep networks with gates have finite maps. But g and h are convex and monotone only as functions around the
    given input, and where no ReLU or maximum is left, they are linear there: SplitGrad and SplitCAM are then half of
    the gradient, and of its product with the activation, with these constants, and do not depend on alpha.

    :py:class:`~zennit_dc.SmoothReplacement` keeps the decomposition for all inputs, of a function that differs from the
    model. Take it where its deviation is small and the streams themselves are of interest; take this one for everything
    else, and always where the output must be the model's.

    References
    ----------
    .. [1] R. Achtibat, S. M. V. Hatefi, M. Dreyer, A. Jain, T. Wiegand, S. Lapuschkin, and W. Samek: "AttnLRP:
           Attention-Aware Layer-Wise Relevance Propagation for Transformers," International Conference on Machine
           Learning, 2024.
    '''
    forms: ClassVar[dict] = {}


FUNCTIONS = {
    **{name: function for name, (function, _, _) in SMOOTH.items()}, 'hardsigmoid': F.hardsigmoid,
    'hardswish': F.hardswish,
}
GATES = ('sigmoid', 'hardsigmoid')


@functools.cache
def at_zero(name, parameters):
    '''The value of an activation at zero, and its slope there.'''
    function = functools.partial(FUNCTIONS[name], **dict(parameters))
    return function(torch.zeros((), dtype=torch.float64)).item(), slopes_at(function, 0.).item()


def detached(pair, name, parameters):
    '''The split form of an activation by its name in :py:data:`FUNCTIONS`, and by names and values of its
    parameters.'''
    function, (start, steepness) = functools.partial(FUNCTIONS[name], **dict(parameters)), at_zero(name, parameters)
    original, total = pair.tensors
    # where the difference of the function to its value at zero is more than rounding
    near = original.detach().abs() <= (torch.finfo(original.dtype).eps ** .5 if start else 0.)
    places = torch.where(near, torch.ones_like(original), original)
    ratio = torch.where(near, torch.full_like(original, steepness), (function(places) - start) / places).clamp(min=0.)
    ratio = constant(ratio, pair.split_pass)
    value = Valued.apply(original * ratio + start, function(original.detach()))
    output = passing(pair.replaced(value, total * ratio.to(total.dtype) + abs(start)), pair.tensors)
    output.facts = frozenset({GATE} if name in GATES else ())
    return output


parametric_forms(FUNCTIONS, detached, DetachedActivations.forms)


@torch_form('mul', 'multiply', '__mul__', '__rmul__', table=DetachedActivations.forms)
def gated(first, other):
    '''A product, of which one factor is a constant if it is a gate.'''
    if isinstance(first, SplitTensor) and isinstance(other, SplitTensor):
        if GATE in other.facts:
            other = constant(other.difference, other.split_pass)
        elif GATE in first.facts:
            first = constant(first.difference, first.split_pass)
    return multiplication(first, other)


@torch_form('rsub', '__rsub__', table=DetachedActivations.forms)
def complement(pair, whole, *, alpha=1):
    '''A constant minus a pair. One minus a gate is a gate, too.'''
    output = subtraction(whole, pair, alpha=alpha)
    if isinstance(pair, SplitTensor) and not isinstance(whole, torch.Tensor) and whole == alpha == 1:
        output.facts |= pair.facts & {GATE}
    return output
