'''Backward stabilisation that follows the gradients: how large the sum's gradient may be beside the difference's.'''
import math
from numbers import Real

import torch

from .rules import SplitRule


class Balanced:
    '''In place of a fixed shift alpha: scale the sum's gradient, image by image and at the input of every affine layer,
    to a part of the difference's.

    How much a fixed alpha leaves of the sum's gradient depends on the weights, and grows or vanishes exponentially with
    the depth of the network above the layer; what it adds to the difference's gradient at each activation is the part
    of the map that is the same for all classes. With this, the mean absolute value of the sum's gradient is
    :math:`\\kappa / n` times that of the difference's, for n activations one after the other between the layer (or the
    input) and the output, so that all of them together add about as much in a deep network as in a shallow one. For
    :math:`\\kappa = 0` the map is that for :math:`\\alpha = 0.5`.

    Parameters
    ----------
    kappa : float, optional
        The part for all activations together, not negative.

    Raises
    ------
    ValueError
        If kappa is negative or not finite.
    '''
    def __init__(self, kappa=0.1):
        if isinstance(kappa, bool) or not isinstance(kappa, Real) or not 0. <= kappa < math.inf:
            raise ValueError(f'kappa must be a number that is not negative, not {kappa!r}')
        self.kappa = float(kappa)

    def __eq__(self, other):
        return isinstance(other, Balanced) and self.kappa == other.kappa

    def __hash__(self):
        return hash((Balanced, self.kappa))

    def __repr__(self):
        return f'Balanced(kappa={self.kappa})'


class BalancedSensitivity(SplitRule):
    '''The rule for :py:class:`Balanced`.

    Parameters
    ----------
    kappa : float
        The mean absolute value of the sum's gradient, as a part of that of the difference's, for all activations
        together.
    '''
    quantity = 'sensitivity'

    def __init__(self, kappa):
        super().__init__()
        self.kappa = kappa

    def before_affine(self, pair):
        '''Balance the gradients of the layer's input.'''
        if pair.form.sums == 'growth':
            return pair
        return pair.like(*Balance.apply(pair.difference, pair._stream_sum, self, pair.form, pair.batch_axis))

    def output_damping(self, form):
        '''The part of the sum's gradient at each affine layer, and at the output.'''
        return self.kappa / max(form.depth, 1)

    def copy(self):
        '''Return a copy of this rule.'''
        return type(self)(self.kappa)

    def __repr__(self):
        return f'BalancedSensitivity(kappa={self.kappa})'


class Balance(torch.autograd.Function):
    '''The identity, behind which the sum's gradient is scaled to a part of the difference's, sample by sample; where
    the batch has no axis of its own, entry by entry.'''
    @staticmethod
    def forward(ctx, difference, stream_sum, rule, form, batch_axis):
        ctx.rule, ctx.form, ctx.batch_axis = rule, form, batch_axis
        return difference.view_as(difference), stream_sum.view_as(stream_sum)

    @staticmethod
    def backward(ctx, gradient, sum_gradient):
        axes = [] if ctx.batch_axis is None else [axis for axis in range(gradient.ndim) if axis != ctx.batch_axis]
        target = ctx.rule.output_damping(ctx.form) * size(gradient.to(sum_gradient.dtype), axes)
        present = size(sum_gradient, axes).clamp(min=torch.finfo(sum_gradient.dtype).tiny)
        return gradient, sum_gradient / present * target, None, None, None


def size(gradient, axes):
    '''The mean absolute value along axes, or that of each entry if there are none.'''
    magnitude = gradient.abs()
    return magnitude.mean(axes, keepdim=True) if axes else magnitude
