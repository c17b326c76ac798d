'''Rules: what a layer does to the sensitivities or to the relevance of a split pair. A rule is a Zennit hook that a
composite maps to a module, and holds for all operations that run inside of this module.'''
import math
from numbers import Real

import torch
from zennit.core import Hook, RemovableHandle, RemovableHandleList

from .growth import Replace, ScaleGradient
from .split import TrueGradient, pairs_in


class SplitRule(Hook, TrueGradient):
    '''Base class of the rules for split pairs.

    While the module runs that it is registered to, operations on pairs ask this rule instead of the composite's
    default what to place before and behind them. No state is kept between forward and backward.
    '''
    def pre_forward(self, module, args, kwargs):
        '''Hold from here on for the operations on the pairs of this forward pass.'''
        form = next((pair.form for pair in pairs_in((args, kwargs))), None)
        if form is not None:
            if form.recorded is None and self.quantity != form.rules[0].quantity:
                raise TypeError(
                    f'{type(self).__name__} is a rule for {self.quantity}, but module {form.name(module)} runs in a'
                    f' composite for {form.rules[0].quantity or "neither sensitivity nor relevance"}'
                )
            form.rules.append(self if form.recorded is None else self.unruled())

    def post_forward(self, module, args, kwargs, output):
        '''Hold no longer.'''
        form = next((pair.form for pair in pairs_in((args, kwargs))), None)
        if form is not None and len(form.rules) > 1:
            form.rules.pop()

    def register(self, module):
        '''Register this rule to a module.

        Parameters
        ----------
        module : :py:class:`torch.nn.Module`
            The module for whose operations the rule shall hold.

        Returns
        -------
        :py:class:`zennit.core.RemovableHandleList`
            Handles to remove it again.
        '''
        return RemovableHandleList([
            RemovableHandle(self),
            module.register_forward_pre_hook(self.pre_forward, with_kwargs=True),
            module.register_forward_hook(self.post_forward, with_kwargs=True, always_call=True),
        ])


class ShiftedSensitivity(SplitRule):
    '''Backward stabilisation of the sensitivities: the shift by alpha (equations 36 to 41), which multiplies the
    gradient of the sum at the input of each affine layer by :math:`1 - 2 \\alpha`.

    Parameters
    ----------
    alpha : float
        The shift, in [0, 0.5]: 0 for the true gradient of the split network, 0.5 for half of the original one.

    Raises
    ------
    ValueError
        If alpha is not in [0, 0.5].
    '''
    quantity = 'sensitivity'

    def __init__(self, alpha):
        super().__init__()
        if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0. <= alpha <= .5:
            raise ValueError(f'alpha must be a number in [0, 0.5], not {alpha!r}')
        self.alpha = alpha = float(alpha)
        self.damping = 1. - 2. * alpha

    def before_affine(self, pair):
        '''Shift the local sensitivities of the layer's input.'''
        if pair.form.sums == 'growth':
            return pair.like(pair.difference, pair._stream_sum * self.damping)
        return pair.like(pair.difference, ScaleGradient.apply(pair._stream_sum, self.damping))

    def copy(self):
        '''Return a copy of this rule.'''
        return type(self)(self.alpha)

    def __repr__(self):
        return f'ShiftedSensitivity(alpha={self.alpha})'


class SplitEpsilon(SplitRule):
    '''The epsilon rule (equation 9 with :math:`\\gamma = 0`) on both streams.

    The gradient of the difference and that of the sum stand for the relevances :math:`R^+` and :math:`R^-`. Behind a
    layer they are divided by its outputs, the layer's own transpose brings them to its input, and before the layer they
    are multiplied by its inputs. Activations pass relevance on, max-pooling gives it to the winner, additions share it
    evenly among the summands, and a batch norm is part of the affine layer that it follows.

    Parameters
    ----------
    epsilon : float
        The stabilizer, positive, which is added to the denominator with the sign of it.

    Raises
    ------
    ValueError
        If epsilon is not positive.
    '''
    quantity = 'relevance'
    merges_batch_norm = True

    def __init__(self, epsilon=1e-6):
        super().__init__()
        if isinstance(epsilon, bool) or not isinstance(epsilon, Real) or not 0. < epsilon < math.inf:
            raise ValueError(f'epsilon must be a positive number, not {epsilon!r}')
        self.epsilon = epsilon

    def before_affine(self, pair):
        '''Multiply by the inputs.'''
        return pair.like(*TimesInput.apply(pair.difference, pair._stream_sum, *pair.form.values(pair)))

    before_linear = before_affine

    def behind(self, pair):
        '''Divide by the outputs.'''
        return pair.like(
            *OverOutput.apply(pair.difference, pair._stream_sum, *pair.form.values(pair), self.epsilon)
        )

    def activation(self, function, pair):
        '''Pass relevance on unchanged.'''
        with torch.no_grad():
            output = function(pair)
        return pair.like(
            Replace.apply(pair.difference, output.difference), Replace.apply(pair._stream_sum, output._stream_sum)
        )

    def pooling(self, winner, convex):
        '''Give relevance to the winner.'''
        return Replace.apply(winner, convex.detach())

    def negation(self, pair):
        '''Exchange the relevances with the streams.'''
        return pair.like(*Exchange.apply(pair.difference, pair._stream_sum))

    def summands(self, *pairs):
        '''Share relevance evenly.'''
        return [pair.map(lambda tensor: ScaleGradient.apply(tensor, 1 / len(pairs))) for pair in pairs]

    def factors(self, *pairs):
        '''Share relevance evenly, and multiply each share by the factor.'''
        return self.summands(*(self.before_linear(pair) for pair in pairs))

    def unruled(self):
        '''Return what records the values that this rule asks for.'''
        return Recorder()

    def copy(self):
        '''Return a copy of this rule.'''
        return type(self)(self.epsilon)

    def __repr__(self):
        return f'SplitEpsilon(epsilon={self.epsilon})'


class Recorder(TrueGradient):
    '''The true gradient of the split network, which records the values that the epsilon rule will ask for.'''
    merges_batch_norm = True

    def before_affine(self, pair):
        pair.form.recorded.append((pair.difference, pair._stream_sum))
        return pair

    before_linear = behind = before_affine

    def factors(self, *pairs):
        return [self.before_linear(pair) for pair in pairs]


class OverOutput(torch.autograd.Function):
    '''Divide the relevances of a layer's output by that output (equation 9), and turn them into gradients of its
    difference and sum: :math:`u^\\pm = R^\\pm / (z^\\pm + \\varepsilon \\, \\mathrm{sign} z^\\pm)`, then
    :math:`(u^+ - u^-, u^+ + u^-)`.'''
    @staticmethod
    def forward(ctx, difference, stream_sum, difference_value, sum_value, epsilon):
        ctx.save_for_backward(difference_value, sum_value)
        ctx.epsilon = epsilon
        return difference.view_as(difference), stream_sum.view_as(stream_sum)

    @staticmethod
    def backward(ctx, positive, negative):
        difference, stream_sum = ctx.saved_tensors
        # 2 z, hence twice epsilon; the factor 2 that is left over is that of TimesInput
        positive = positive / stabilize(stream_sum + difference, 2 * ctx.epsilon)
        negative = negative / stabilize(stream_sum - difference, 2 * ctx.epsilon)
        return (positive - negative).to(difference.dtype), positive + negative, None, None, None


class TimesInput(torch.autograd.Function):
    '''Turn gradients of a layer's input into relevances: :math:`R^\\pm = a^\\pm (c_s \\pm c_d) / 2`.'''
    @staticmethod
    def forward(ctx, difference, stream_sum, difference_value, sum_value):
        ctx.save_for_backward(difference_value, sum_value)
        return difference.view_as(difference), stream_sum.view_as(stream_sum)

    @staticmethod
    def backward(ctx, gradient, sum_gradient):
        difference, stream_sum = ctx.saved_tensors
        positive = (stream_sum + difference) * (sum_gradient + gradient)
        negative = (stream_sum - difference) * (sum_gradient - gradient)
        return (positive * .5).to(difference.dtype), negative * .5, None, None


class Exchange(torch.autograd.Function):
    '''Exchange the streams, and their relevances on the way back.'''
    @staticmethod
    def forward(ctx, difference, stream_sum):
        ctx.dtypes = difference.dtype, stream_sum.dtype
        return -difference, stream_sum.view_as(stream_sum)

    @staticmethod
    def backward(ctx, positive, negative):
        return negative.to(ctx.dtypes[0]), positive.to(ctx.dtypes[1])


def stabilize(denominator, epsilon):
    '''Add epsilon with the denominator's sign.'''
    return denominator + torch.copysign(denominator.new_tensor(epsilon), denominator)
