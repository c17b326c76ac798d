'''Activations. Piecewise linear ones are sums of ReLUs, and so are their split forms.'''
import math
from functools import cache, partial

import numpy as np
import torch
from torch.nn import functional as F

from ..core.blocks import activated, activation
from ..core.graphs import same, true_gradients
from ..core.pair import RECTIFIED, Rectified, sum_dtype, unsupported
from .arithmetic import Valued
from .table import activation_form, form_of_each, missing, overloads, refuse_pairs, refuse_random, torch_form


JUMPING = ', as it jumps and no difference of convex functions does', 'replace it by a continuous activation'


class SplitReLU(torch.autograd.Function):
    '''ReLU of the pair, :math:`(\\max(d, 0), s + \\max(-d, 0))` (equation 1), with the mask of the original
    pre-activations (equation 48). At zero it follows torch, whose gradient is zero there. Where the sum is not
    computed, it is passed on. Relevance passes unchanged.'''
    @staticmethod
    def forward(ctx, difference, stream_sum, split_pass, passes):
        ctx.split_pass, ctx.passes, output = split_pass, passes, torch.relu(difference)
        ctx.save_for_backward(difference if passes else output)  # relevance keeps the difference anyway
        return output, stream_sum - difference.clamp(max=0.) if split_pass.mode.sums else same(stream_sum)

    @staticmethod
    def backward(ctx, gradient, sum_gradient):
        if ctx.passes and ctx.split_pass.makes_map():
            return gradient, sum_gradient, None, None
        saved, negative = ctx.saved_tensors[0].detach(), sum_gradient.to(gradient.dtype)
        output = torch.relu(saved) if ctx.passes else saved
        # a float mask and lerp, which is exact at 0 and 1, take a fraction of the time of torch.where
        return (-negative).lerp_(gradient, torch.sign(output).to(gradient.dtype)), sum_gradient, None, None


@activation_form('relu')
def relu(pair):
    '''The split form of ReLU, of one node.'''
    passes = pair.split_pass.rule.passes_activations
    output = pair.replaced(*SplitReLU.apply(*pair.tensors, pair.split_pass, passes))
    output = activated(output, pair, relu_of)
    output.depth, output.facts = pair.depth + (RECTIFIED not in pair.facts), output.facts | {RECTIFIED}
    if passes and pair.layer is not None:
        output.origin = Rectified(pair.tensors[0])
    return output


def relu_of(difference, stream_sum):
    '''ReLU of a difference and a sum (equation 1).'''
    return torch.relu(difference), stream_sum - difference.clamp(max=0.)


@form_of_each(overloads(
    'dropout', 'dropout1d', 'dropout2d', 'dropout3d', 'alpha_dropout', 'feature_alpha_dropout', 'feature_dropout'
))
def dropout(function, pair, p=0.5, training=None, inplace=False, train=True):
    refuse_random((train if training is None else training) and p > 0, function.__name__, pair)
    return pair


def slopes_at(function, places):
    '''The slopes of a function at some places, apart from the running pass: a graph can be made here in inference mode,
    too, and no checkpoint counts what the graph keeps.'''
    with torch.inference_mode(False), torch.autograd.graph.saved_tensors_hooks(*[lambda tensor: tensor] * 2):
        places = torch.tensor(places, dtype=torch.float64)
        return true_gradients(function, [places], torch.ones_like(places))[0].detach()


class PiecewiseLinear:
    '''A continuous piecewise-linear function of one variable,
    :math:`\\varphi(z) = c + m z + \\sum_k c_k \\max(z - t_k, 0) + \\sum_j c_j \\max(t_j - z, 0)`, with the ReLUs to the
    right and to the left of an anchor. By equation 1 and the split of weights, its sum is
    :math:`|c| + |m| s + \\sum_k |c_k| (s + |t_k| + \\max(t_k - d, 0)) + \\sum_j |c_j| (s + |t_j| + \\max(d - t_j, 0))`,
    that is :math:`A s + B + H(d)` with a convex piecewise-linear H. The anchor is where the slope is smallest.

    Parameters
    ----------
    knots : sequence of float
        The places where the slope changes, in ascending order. Where it changes its sign, a piece of no length, whose
        slope is zero, makes A smallest.
    slopes : sequence of float
        The slopes between, one more than the knots.
    value : float
        The value at the first knot.
    function : callable, optional
        The function as a model computes it. Its gradient says to which of both pieces a knot belongs. Default is this
        function, whose knots belong to the pieces on their right.
    '''
    def __init__(self, knots, slopes, value, function=None):
        self.function, right = self if function is None else function, np.full(len(knots), True)
        knots, slopes = (np.asarray(numbers, dtype=float) for numbers in (knots, slopes))
        if function is not None:
            own = slopes_at(function, knots).numpy()
            right = abs(own - slopes[1:]) < abs(own - slopes[:-1])
        anchor = abs(slopes).argmin()
        values = value + np.cumsum([0., *slopes[1:-1] * np.diff(knots)])
        intercepts = np.append(values[0], values) - slopes * np.append(knots[0], knots)
        changes = abs(np.diff(slopes))
        self.factor = abs(slopes[anchor]) + changes.sum()
        self.offset = abs(intercepts[anchor]) + (changes * abs(knots)).sum()
        # the slope of H changes by -c to the left of each knot on the right, and by c to the right of each on the left
        passed, places = np.arange(len(slopes))[:, None], np.arange(len(knots))
        signs = (passed > places) - 1. * (places >= anchor)
        # the bounds of a function that clamps, whose value says to which piece an entry belongs
        clamps = [*slopes] == [0., 1., 0.] and value == knots[0] < knots[1] and [*right] == [False, True]
        self.bounds = knots.tolist() if clamps else None
        self.knots, self.right = torch.tensor(knots), torch.tensor(right)
        self.lines = torch.tensor(np.stack([slopes, intercepts]))
        self.hinges = torch.tensor(np.stack([signs @ changes, -signs @ (changes * knots)]))

    def __call__(self, input):
        '''The function's value.'''
        slope, intercept = self.lines.to(input)[:, self.piece(input)]
        return slope * input + intercept

    def piece(self, input):
        '''The index of the piece of each entry.'''
        values = input.detach().to(sum_dtype(input.dtype)).contiguous()  # in which torch compares, too
        knots = self.knots.to(values)
        knots = torch.where(self.right.to(input.device), knots, torch.nextafter(knots, knots + 1))
        return torch.bucketize(values, knots, right=True)

    def bounds_in(self, dtype):
        '''The bounds of a function that clamps, if they are the same in a dtype, so that its value says which entries
        are cut off; else None.'''
        if self.bounds is None or dtype.itemsize > 2:
            return self.bounds
        return self.bounds if torch.tensor(self.bounds, dtype=dtype).tolist() == self.bounds else None

    def gradient(self, gradient, sum_gradient, values):
        '''The gradient by the input, of which values say to which pieces they belong.'''
        dtype, values = gradient.dtype, values.to(sum_dtype(values.dtype))
        knots = zip(self.knots.tolist(), self.right.tolist())
        passed = [(values >= knot if right else values > knot).to(dtype) for knot, right in knots]
        through = torch.mul(gradient, piecewise(self.lines[0], passed))
        return torch.addcmul(through, sum_gradient.to(dtype), piecewise(self.hinges[0], passed))

    def split(self, pair):
        '''The split form.'''
        if not pair.split_pass.mode.sums:
            return activated(pair.replaced(*Pieces.apply(*pair.tensors, self)))

        def of(original, total):
            slope, intercept = self.hinges.to(total)[:, self.piece(original)]
            return self.function(original), total * self.factor + self.offset + (slope * original + intercept)

        return activation(pair, of)


def piecewise(values, passed):
    '''The value of each entry's piece, by what says which knots the entry has passed.'''
    first, *steps = values.diff(prepend=values.new_zeros(1)).tolist()
    return sum((step * each for step, each in zip(steps, passed) if step), first)


class Pieces(torch.autograd.Function):
    '''The split form of a piecewise-linear function where the sum is not computed, by the piece of each entry.'''
    @staticmethod
    def forward(ctx, difference, stream_sum, function):
        ctx.function, ctx.bounds = function, function.bounds_in(difference.dtype)
        output = function.function(difference)
        ctx.save_for_backward(difference if ctx.bounds is None else output)
        return output, same(stream_sum)

    @staticmethod
    def backward(ctx, gradient, sum_gradient):
        function, values, passing = ctx.function, ctx.saved_tensors[0].detach(), sum_gradient.to(gradient.dtype)
        if ctx.bounds is None:
            through = function.gradient(gradient, passing, values)
        else:
            through = gradient_through_clamp(ctx.bounds, gradient, passing, values)
        return through, sum_gradient * function.factor, None


def gradient_through_clamp(bounds, gradient, sum_gradient, values):
    '''The gradient by the input of a function that cuts off, whose H has the slopes -2, -1 and 0.'''
    low, high = bounds
    inside = torch.ops.aten.hardtanh_backward(gradient - sum_gradient, values, low, high)
    passed = torch.sign(values - low if low else values).to(gradient.dtype)
    return torch.lerp(-2. * sum_gradient, inside, passed)


@activation_form('leaky_relu')
def leaky_relu(pair, negative_slope=0.01):
    return leaky(pair, negative_slope, lambda tensor: F.leaky_relu(tensor, negative_slope))


@activation_form('rrelu')
def rrelu(pair, lower=1. / 8, upper=1. / 3, training=False):
    refuse_random(training, 'rrelu', pair)
    return leaky(pair, (lower + upper) / 2, lambda tensor: F.rrelu(tensor, lower, upper, False))


@torch_form('prelu')
def prelu(pair, weight):
    refuse_pairs('prelu', weight)
    axes = pair.values[0].ndim - 2
    slope = weight.reshape(1, -1, *(1,) * axes) if weight.numel() > 1 else weight.reshape(())
    return leaky(pair, slope, lambda tensor: F.prelu(tensor, weight))


def leaky(pair, slope, function):
    '''A leaky ReLU, :math:`m z + (1 - m) \\max(z, 0)`: its sum is
    :math:`|m| s + |1 - m| (s + \\max(-d, 0))`.'''
    def of(difference, total):
        hinge, negative = abs(1 - slope), difference - torch.relu(difference)
        # not torch's own, as the gradient of its gradient by the slope is wrong at zero
        path = torch.where(difference > 0, difference, slope * difference)
        return Valued.apply(path, function(difference.detach())), total * (abs(slope) + hinge) - hinge * negative

    return activation(pair, of)


@cache
def clamping(low, high, function):
    '''The function that cuts off below low and above high, either of which may be None.'''
    below, above = (bound is not None and math.isfinite(bound) for bound in (low, high))
    knots = [bound for bound, cuts in ((low, below), (high, above)) if cuts] or [0.]
    slopes = [0.] * below + [1.] + [0.] * above
    slopes += [1.] * (len(knots) + 1 - len(slopes))  # where nothing is cut off
    return PiecewiseLinear(knots, slopes, knots[0], lambda tensor: function(tensor, low, high))


activation_form('hardtanh')(lambda pair, min_val=-1., max_val=1.: clamping(min_val, max_val, F.hardtanh).split(pair))
activation_form('relu6')(lambda pair: clamping(0., 6., F.hardtanh).split(pair))


@torch_form('clamp', 'clip')
def clamp(pair, min=None, max=None):
    if isinstance(min, torch.Tensor) or isinstance(max, torch.Tensor):
        raise unsupported('clamp', (pair, min, max), ' for bounds that are tensors', 'use torch.maximum and minimum')
    return clamping(min, max, torch.clamp).split(pair)


torch_form('clamp_min')(clamp)
torch_form('clamp_max')(lambda pair, max: clamp(pair, None, max))


@cache
def hard_sigmoid():
    '''The hard sigmoid, of which torch's own gradient has none, and is in float32.'''
    return PiecewiseLinear([-3., 3.], [0., 1 / 6, 0.], 0., lambda tensor: Valued.apply(
        F.hardtanh(tensor, -3., 3.) / 6 + .5, F.hardsigmoid(tensor.detach())
    ))


hardsigmoid = activation_form('hardsigmoid')(lambda pair: hard_sigmoid().split(pair))


@torch_form('softshrink')
def softshrink(pair, lambd=0.5):
    return PiecewiseLinear([-lambd, lambd], [1., 0., 1.], 0., lambda tensor: F.softshrink(tensor, lambd)).split(pair)


@torch_form('abs', 'absolute', '__abs__')
def absolute(pair):
    # with a piece of no length between, whose slope is the gradient at zero
    return PiecewiseLinear([0., 0.], [-1., 0., 1.], 0., torch.abs).split(pair)


@activation_form('threshold')
def threshold(pair, threshold, value):
    if threshold != value:
        raise unsupported('threshold', (pair,), *JUMPING)
    function = partial(F.threshold, threshold=threshold, value=value)
    return PiecewiseLinear([threshold], [0., 1.], value, function).split(pair)


missing(overloads('hardshrink'), *JUMPING)
