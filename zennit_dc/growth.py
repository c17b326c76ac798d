'''Gradients that are replaced or scaled, and the powers of two by which they grow in deep networks.'''
import math

import torch


class ScaleGradient(torch.autograd.Function):
    '''The identity, whose gradient is multiplied by a factor.'''
    @staticmethod
    def forward(ctx, input, factor):
        ctx.factor = factor
        return input.view_as(input)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class Replace(torch.autograd.Function):
    '''Another value for a tensor, with the gradient of the tensor (theorem 6).'''
    @staticmethod
    def forward(ctx, input, value):
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def count_growth(pair, output):
    '''Multiply both gradients behind an affine layer by a power of two, about that by which the layer will let the
    sum's gradient grow, and count the powers.

    A sum that starts as one at the input and goes through the network without biases and activations grows forward as
    its gradient does backward. Such a sum is itself divided by the powers. Where products of pairs need the real sum,
    growth is estimated by how much it changes in its mean.
    '''
    mean = output._stream_sum.detach().mean()
    if output.form.sums == 'growth':
        return raised(output, output.exponent + torch.ceil(torch.log2(mean)).clamp(min=0.))
    growth = torch.log2(mean / pair._stream_sum.detach().mean() * output.form.rule.output_damping(output.form))
    return raised(output, output.exponent + growth.clamp(min=0.))


def raised(pair, exponent):
    '''A pair whose gradients, and whose sum if it only counts growth, are scaled so that the powers are as given.'''
    factor = torch.exp2(torch.floor(pair.exponent) - torch.floor(exponent))
    sum_factor = factor.to(pair._stream_sum.dtype)
    scaled = pair.like(
        ScaleGradient.apply(pair.difference, factor.to(pair.difference.dtype)),
        pair._stream_sum * sum_factor if pair.form.sums == 'growth' else ScaleGradient.apply(
            pair._stream_sum, sum_factor
        ),
    )
    scaled.exponent = exponent
    return scaled


def align(pairs):
    '''Give pairs that will be joined the same depth and power of two.'''
    depth = max(pair.depth for pair in pairs)
    for pair in pairs:
        pair.depth = depth
    if not pairs[0].form.counts_growth:
        return pairs
    highest = torch.stack([pair.exponent for pair in pairs]).amax(0)
    return [raised(pair, highest) for pair in pairs]


def largest_power(exponent, magnitude, dtype):
    '''The largest power of two, up to the given one, that numbers up to a magnitude can be scaled by in a dtype.'''
    top = math.frexp(torch.finfo(dtype).max)[1] - 2
    return torch.minimum(exponent, top - torch.frexp(magnitude.double())[1]).clamp(min=0.)
