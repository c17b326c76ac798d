'''Piecewise-linear activations: each is a sum of ReLUs, and its split form is theirs.'''
import torch
from torch.nn import functional as F

from .functional import in_place_or_new, torch_form
from .operations import activation
from .split import called_in, unsupported


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
        knots, slopes = (torch.as_tensor(numbers, dtype=torch.float64) for numbers in (knots, slopes))
        values = torch.cat([knots.new_zeros(1), (slopes[1:-1] * knots.diff()).cumsum(0)]) + value
        changes = slopes.diff()
        self.knots = knots
        self.slopes = slopes
        self.intercepts = torch.cat([values[:1], values]) - slopes * torch.cat([knots[:1], knots])

        # an anchor is a piece, with its slope, or a knot, from which two slopes start
        total = changes.abs().sum()
        of_pieces, of_knots = slopes.abs() + total, slopes[:-1].abs() + slopes[1:].abs() + total - changes.abs()
        if of_pieces.min() <= of_knots.min():
            piece = int(of_pieces.argmin())
            slope, constant = slopes[piece], self.intercepts[piece]
            right = torch.arange(len(knots)) >= piece
            coefficients, left_extra = changes.abs(), torch.zeros_like(knots)
        else:
            knot = int(of_knots.argmin())
            slope, constant = slopes.new_zeros(()), values[knot]
            right = torch.arange(len(knots)) >= knot
            coefficients, left_extra = changes.abs(), torch.zeros_like(knots)
            coefficients[knot], left_extra[knot] = slopes[knot + 1].abs(), slopes[knot].abs()
        to_right = torch.where(right, coefficients, 0.)
        to_left = torch.where(right, 0., coefficients) + left_extra
        self.factor = float(slope.abs() + (to_right + to_left).sum())
        self.offset = float(constant.abs() + ((to_right + to_left) * knots.abs()).sum())
        # H grows with slope -to_right to the left of a knot, and with slope to_left to the right of it
        passed = torch.cat([torch.zeros(1, dtype=torch.float64), to_left.cumsum(0)])
        ahead = torch.cat([to_right.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
        passed_at = torch.cat([torch.zeros(1, dtype=torch.float64), (to_left * knots).cumsum(0)])
        ahead_at = torch.cat([(to_right * knots).flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
        self.hinge_slopes = passed - ahead
        self.hinge_intercepts = ahead_at - passed_at

    def __call__(self, input):
        '''The function's value.'''
        piece = self.piece(input)
        return self.at(self.slopes, piece, input) * input + self.at(self.intercepts, piece, input)

    def piece(self, input):
        '''The index of the piece of each entry; a knot belongs to the piece on its right.'''
        return torch.bucketize(input.detach(), self.knots.to(input), right=True)

    @staticmethod
    def at(table, piece, like):
        '''Look a number up for each entry.'''
        return table.to(like)[piece]

    def split(self, pair, difference):
        '''The split form, with the difference already computed.'''
        evaluate = pair.form.sums == 'values'

        def of(original, stream_sum):
            output = difference(original)
            return output, Hinges.apply(original, stream_sum, self, evaluate)

        return activation(pair, of)


class Hinges(torch.autograd.Function):
    '''The sum of a piecewise-linear function, :math:`A s + B + H(d)`; where sums are not values, :math:`A s`.'''
    @staticmethod
    def forward(ctx, difference, stream_sum, function, evaluate):
        ctx.factor = function.factor
        piece = function.piece(difference)
        ctx.save_for_backward(function.at(function.hinge_slopes, piece, stream_sum).to(difference.dtype))
        output = stream_sum * function.factor
        if evaluate:
            hinge = function.at(function.hinge_slopes, piece, stream_sum) * difference
            output = output + function.offset + hinge + function.at(function.hinge_intercepts, piece, stream_sum)
        return output

    @staticmethod
    def backward(ctx, gradient):
        slopes, = ctx.saved_tensors
        return gradient.to(slopes.dtype) * slopes, gradient * ctx.factor, None, None


@torch_form('leaky_relu', inplace=('leaky_relu_',))
@in_place_or_new
def leaky_relu(pair, negative_slope=0.01):
    return leaky(pair, negative_slope, lambda tensor: F.leaky_relu(tensor, negative_slope))


@torch_form('rrelu', inplace=('rrelu_',))
@in_place_or_new
def rrelu(pair, lower=1. / 8, upper=1. / 3, training=False):
    if training:
        raise RuntimeError(f'rrelu, called in {called_in(pair.form)}, is in training mode: call .eval() on the model')
    return leaky(pair, (lower + upper) / 2, lambda tensor: F.rrelu(tensor, lower, upper, False))


@torch_form('prelu')
def prelu(pair, weight):
    slope = weight.reshape(1, -1, *(1,) * (pair.difference.ndim - 2)) if weight.numel() > 1 else weight.reshape(())
    return leaky(pair, slope, lambda tensor: F.prelu(tensor, weight))


def leaky(pair, slope, function):
    '''A leaky ReLU, :math:`m z + (1 - m) \\max(z, 0)`: its sum is
    :math:`|m| s + |1 - m| (s + \\max(-d, 0))`.'''
    evaluate = pair.form.sums == 'values'
    return activation(
        pair, lambda difference, total: (function(difference), Leaky.apply(difference, total, slope, evaluate))
    )


class Leaky(torch.autograd.Function):
    '''The sum of a leaky ReLU, whose slope may be one for each channel.'''
    @staticmethod
    def forward(ctx, difference, stream_sum, slope, evaluate):
        slope = torch.as_tensor(slope, dtype=stream_sum.dtype, device=stream_sum.device)
        ctx.save_for_backward(difference < 0, slope)
        ctx.dtype = difference.dtype
        output = stream_sum * (slope.abs() + (1 - slope).abs())
        return output + (1 - slope).abs() * torch.relu(-difference) if evaluate else output

    @staticmethod
    def backward(ctx, gradient):
        negative, slope = ctx.saved_tensors
        through = -(1 - slope).abs() * gradient * negative.to(gradient.dtype)
        return through.to(ctx.dtype), gradient * (slope.abs() + (1 - slope).abs()), None, None


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


@torch_form('clamp_min', inplace=('clamp_min_',))
def clamp_min(pair, min):
    return clamp(pair, min)


@torch_form('clamp_max', inplace=('clamp_max_',))
def clamp_max(pair, max):
    return clamp(pair, None, max)


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


for name in ('hardshrink', 'threshold', 'threshold_'):
    @torch_form(name)
    def jump(pair, *args, name=name, **kwargs):
        raise unsupported(
            name, (pair,), ', as it jumps and no difference of convex functions does',
            'replace it by a continuous activation'
        )
