'''Activations. Those that are piecewise linear are sums of ReLUs, and their split form is that of these.'''
import numpy as np
import torch
from torch.nn import functional as F

from ..operations import activation, relu
from ..split import called_in, unsupported
from .table import in_place_or_new, missing, overloads, torch_form


torch_form('relu', inplace=('relu_',))(in_place_or_new(relu))


for name in (
    'dropout', 'dropout1d', 'dropout2d', 'dropout3d', 'alpha_dropout', 'feature_alpha_dropout', 'feature_dropout',
):
    @torch_form(name)
    def dropout(pair, p=0.5, training=None, inplace=False, train=None, name=name):
        training = train if training is None else training
        # as in torch.nn.functional, whose dropouts are on where nothing is said, but for the alpha dropouts
        if (name not in ('alpha_dropout', 'feature_alpha_dropout') if training is None else training) and p > 0:
            raise RuntimeError(
                f'{name}, called in {called_in(pair.split_pass)}, is in training mode: call .eval() on the model'
            )
        return pair


class PiecewiseLinear:
    '''A continuous piecewise-linear function of one variable,
    :math:`\\varphi(z) = c + m z + \\sum_k c_k \\max(z - t_k, 0) + \\sum_j c_j \\max(t_j - z, 0)`, with the ReLUs to the
    right and to the left of an anchor. By equation 1 and the split of weights, its sum is
    :math:`|c| + |m| s + \\sum_k |c_k| (s + |t_k| + \\max(t_k - d, 0)) + \\sum_j |c_j| (s + |t_j| + \\max(d - t_j, 0))`,
    that is :math:`A s + B + H(d)` with a convex piecewise-linear H. The anchor is where A is smallest.

    Parameters
    ----------
    knots : sequence of float
        The places where the slope changes, in ascending order.
    slopes : sequence of float
        The slopes between, one more than the knots.
    value : float
        The value at the first knot.
    '''
    def __init__(self, knots, slopes, value):
        knots, slopes = (np.asarray(numbers, dtype=float) for numbers in (knots, slopes))
        around = abs(slopes[:-1]) + abs(slopes[1:]) - abs(np.diff(slopes))
        anchor = abs(slopes).argmin()
        if around.min() < abs(slopes).min():  # a knot, which is a piece of no length
            anchor = around.argmin() + 1
            knots, slopes = np.insert(knots, anchor, knots[anchor - 1]), np.insert(slopes, anchor, 0.)
        values = value + np.cumsum([0., *slopes[1:-1] * np.diff(knots)])
        intercepts = np.append(values[0], values) - slopes * np.append(knots[0], knots)
        changes = abs(np.diff(slopes))
        self.factor = abs(slopes[anchor]) + changes.sum()
        self.offset = abs(intercepts[anchor]) + (changes * abs(knots)).sum()
        # the slope of H changes by -c to the left of each knot on the right, and by c to the right of each on the left
        passed, places = np.arange(len(slopes))[:, None], np.arange(len(knots))
        signs = (passed > places) - 1. * (places >= anchor)
        tables = knots, slopes, intercepts, signs @ changes, -signs @ (changes * knots)
        self.knots, self.slopes, self.intercepts, self.hinge_slopes, self.hinge_intercepts = map(torch.tensor, tables)

    def __call__(self, input):
        '''The function's value.'''
        piece = self.piece(input)
        return self.at(self.slopes, piece, input) * input + self.at(self.intercepts, piece, input)

    def piece(self, input):
        '''The index of the piece of each entry; a knot belongs to the piece on its right.'''
        return torch.bucketize(input.detach().contiguous(), self.knots.to(input), right=True)

    @staticmethod
    def at(table, piece, like):
        '''Look a number up for each entry.'''
        return table.to(like)[piece]

    def split(self, pair, difference):
        '''The split form, with the function that computes the difference.'''
        def of(original, total):
            piece = self.piece(original)
            hinges = self.at(self.hinge_slopes, piece, total) * original + self.at(self.hinge_intercepts, piece, total)
            return difference(original), total * self.factor + self.offset + hinges

        return activation(pair, of)


@torch_form('leaky_relu', inplace=('leaky_relu_',))
@in_place_or_new
def leaky_relu(pair, negative_slope=0.01):
    return leaky(pair, negative_slope, lambda tensor: F.leaky_relu(tensor, negative_slope))


@torch_form('rrelu', inplace=('rrelu_',))
@in_place_or_new
def rrelu(pair, lower=1. / 8, upper=1. / 3, training=False):
    if training:
        raise RuntimeError(
            f'rrelu, called in {called_in(pair.split_pass)}, is in training mode: call .eval() on the model'
        )
    return leaky(pair, (lower + upper) / 2, lambda tensor: F.rrelu(tensor, lower, upper, False))


@torch_form('prelu')
def prelu(pair, weight):
    axes = pair.values[0].ndim - 2
    slope = weight.reshape(1, -1, *(1,) * axes) if weight.numel() > 1 else weight.reshape(())
    return leaky(pair, slope, lambda tensor: F.prelu(tensor, weight))


def leaky(pair, slope, function):
    '''A leaky ReLU, :math:`m z + (1 - m) \\max(z, 0)`: its sum is
    :math:`|m| s + |1 - m| (s + \\max(-d, 0))`.'''
    def of(difference, total):
        hinge = abs(1 - slope)
        return function(difference), total * (abs(slope) + hinge) + hinge * (torch.relu(difference) - difference)

    return activation(pair, of)


def clamping(low, high):
    '''The function that cuts off below low and above high, either of which may be None.'''
    if low is None:
        return PiecewiseLinear([high], [1., 0.], high)
    return PiecewiseLinear([low], [0., 1.], low) if high is None else PiecewiseLinear([low, high], [0., 1., 0.], low)


@torch_form('hardtanh', inplace=('hardtanh_',))
@in_place_or_new
def hardtanh(pair, min_val=-1., max_val=1.):
    return clamping(min_val, max_val).split(pair, lambda tensor: F.hardtanh(tensor, min_val, max_val))


@torch_form('relu6')
@in_place_or_new
def relu6(pair):
    return clamping(0., 6.).split(pair, F.relu6)


@torch_form('clamp', 'clip', inplace=('clamp_', 'clip_'))
def clamp(pair, min=None, max=None):
    if isinstance(min, torch.Tensor) or isinstance(max, torch.Tensor):
        raise unsupported('clamp', (pair, min, max), ' for bounds that are tensors', 'use torch.maximum and minimum')
    return clamping(min, max).split(pair, lambda tensor: tensor.clamp(min, max))


torch_form('clamp_min', inplace=('clamp_min_',))(clamp)
torch_form('clamp_max', inplace=('clamp_max_',))(lambda pair, max: clamp(pair, None, max))


@torch_form('hardsigmoid')
@in_place_or_new
def hardsigmoid(pair):
    return PiecewiseLinear([-3., 3.], [0., 1 / 6, 0.], 0.).split(pair, F.hardsigmoid)


@torch_form('softshrink')
def softshrink(pair, lambd=0.5):
    return PiecewiseLinear([-lambd, lambd], [1., 0., 1.], 0.).split(pair, lambda tensor: F.softshrink(tensor, lambd))


@torch_form('abs', 'absolute', '__abs__', inplace=('abs_', 'absolute_'))
def absolute(pair):
    return PiecewiseLinear([0.], [-1., 1.], 0.).split(pair, torch.abs)


missing(
    overloads('hardshrink', 'threshold', 'threshold_'), ', as it jumps and no difference of convex functions does',
    'replace it by a continuous activation'
)
