'''The kinds of operation on split pairs, of which split forms are made: affine, linear, activation, routing and
addition.'''
import math
from dataclasses import dataclass

import torch

from .split import SplitTensor, called_in, input_sum, sum_dtype, unsupported


CHUNK = 2 ** 18


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


class SplitReLU(torch.autograd.Function):
    '''ReLU of the pair, :math:`(\\max(d, 0), s + \\max(-d, 0))` (equation 1), with the mask of the original
    pre-activations, :math:`d \\geq 0` (equation 48). Where the sum is not computed, it is passed on.'''
    @staticmethod
    def forward(ctx, difference, stream_sum, evaluate):
        ctx.save_for_backward(difference >= 0)
        output = torch.relu(difference)
        return output, stream_sum + (output - difference) if evaluate else stream_sum.view_as(stream_sum)

    @staticmethod
    def backward(ctx, gradient, sum_gradient):
        mask, = ctx.saved_tensors
        # a float mask and lerp, which is exact at 0 and 1, take a fraction of the time of torch.where
        through = torch.lerp(-sum_gradient.to(gradient.dtype), gradient, mask.to(gradient.dtype))
        return through, sum_gradient, None


class Magnitude(torch.autograd.Function):
    '''The way of the sum through an affine layer, :math:`|W| s + |b|`. The absolute values live only as long as they
    are needed, and nothing but the layer's own weights is kept for the backward pass.'''
    @staticmethod
    def forward(ctx, stream_sum, weight, bias, layer, shape):
        ctx.layer, ctx.shape = layer, stream_sum.shape
        ctx.save_for_backward(weight)
        if shape is not None:
            return stream_sum.new_zeros(()).expand(shape)
        with torch.autocast(stream_sum.device.type, enabled=False):
            return layer.magnitude(stream_sum, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        weight, = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            return ctx.layer.transposed_magnitude(gradient, weight, ctx.shape), None, None, None, None


@dataclass(frozen=True)
class AffineOutput:
    '''What a pair remembers that is the very output of an affine layer: the pair before rule and re-centering, the
    bias, the layer's rule, and whether the map is read here, so that there is no layer any more into which to merge a
    batch norm.'''
    raw: SplitTensor
    bias: torch.Tensor | None
    rule: object
    is_read: bool = False


class Layer:
    '''An affine layer with weights.

    Parameters
    ----------
    apply : callable
        The layer, a function ``(input, weight, bias) -> output``.
    transpose : callable, optional
        The transpose of its linear part, a function ``(gradient, weight, input_shape) -> gradient``. Without it, the
        gradient is left to autograd, which keeps the weights' absolute values in memory.
    axes : int, optional
        The number of axes behind that of the channels, to which the bias belongs.
    '''
    def __init__(self, apply, transpose=None, axes=0):
        self.apply = apply
        self.transpose = transpose
        self.axes = axes

    def magnitude(self, stream_sum, weight, bias):
        '''Apply the layer with the absolute values of its parameters.'''
        return self.apply(stream_sum, magnitude(weight, stream_sum), magnitude(bias, stream_sum))

    def transposed_magnitude(self, gradient, weight, shape):
        '''Apply the transpose of the layer with the absolute values of its weights.'''
        return self.transpose(gradient, magnitude(weight, gradient), shape)


class Dense(Layer):
    '''A fully connected layer. Its weights are many and used once, so that their absolute values are taken in chunks
    that fit into the processor's cache.'''
    def __init__(self):
        super().__init__(torch.nn.functional.linear, lambda gradient, weight, shape: gradient @ weight)

    def magnitude(self, stream_sum, weight, bias):
        if not self.in_chunks(weight):
            return super().magnitude(stream_sum, weight, bias)
        output = torch.cat([stream_sum @ rows.T for _, rows in self.chunks(weight, stream_sum)], -1)
        return output if bias is None else output + magnitude(bias, stream_sum)

    def transposed_magnitude(self, gradient, weight, shape):
        if not self.in_chunks(weight):
            return super().transposed_magnitude(gradient, weight, shape)
        output = gradient.new_zeros(shape)
        for place, rows in self.chunks(weight, gradient):
            output += gradient[..., place] @ rows
        return output

    @staticmethod
    def in_chunks(weight):
        '''Whether to take the weights in chunks: on the CPU, unless a graph of the gradient is asked for.'''
        return weight.device.type == 'cpu' and weight.numel() > CHUNK and not torch.is_grad_enabled()

    @staticmethod
    def chunks(weight, like):
        '''Yield slices of rows, and the absolute values of these.'''
        step = max(CHUNK // weight.shape[1], 1)
        for start in range(0, weight.shape[0], step):
            yield slice(start, start + step), magnitude(weight[start:start + step], like)


def magnitude(tensor, like):
    '''The absolute value of a tensor, if it is one, in the dtype of another.'''
    return None if tensor is None else tensor.abs().to(like.dtype)


def affine(pair, layer, weight, bias=None):
    '''The split form of an affine layer with weights, :math:`(W d + b, |W| s + |b|)`.

    Parameters
    ----------
    pair : :py:class:`~zennit_dc.split.SplitTensor`
        The layer's input, of shape (batch, ...).
    layer : :py:class:`Layer`
        The layer.
    weight : :py:class:`torch.Tensor`
        Its weight.
    bias : :py:class:`torch.Tensor`, optional
        Its bias.

    Returns
    -------
    :py:class:`~zennit_dc.split.SplitTensor`
        The layer's output.
    '''
    raw = weighted(pair.form.rule.before_affine(pair), layer, weight, bias)
    return finish_affine(raw, bias.reshape(-1, *(1,) * layer.axes) if bias is not None and layer.axes else bias)


def finish_affine(raw, bias, rule=None):
    '''Place the rule behind an affine layer and re-center its output, which remembers the layer in case that a batch
    norm follows.'''
    rule = raw.form.rule if rule is None else rule
    output = recenter(rule.behind(raw))
    output.layer = AffineOutput(raw, bias, rule)
    return output


def weighted(pair, layer, weight, bias, difference_layer=None):
    '''Apply an affine layer to both tensors of the pair.'''
    form = pair.form
    difference = (difference_layer or layer.apply)(pair.difference, weight, bias)
    stream_sum = pair._stream_sum
    if form.sums == 'growth':
        bias = None
    if layer.transpose is None or form.rule.quantity is None:
        with torch.autocast(stream_sum.device.type, enabled=False):
            stream_sum = layer.magnitude(stream_sum, weight, bias)
    else:
        unevaluated = difference.shape if form.sums == 'unevaluated' else None
        stream_sum = Magnitude.apply(stream_sum, weight, bias, layer, unevaluated)
    output = pair.like(difference, stream_sum)
    return count_growth(pair, output) if form.counts_growth else output


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
    growth = torch.log2(mean / pair._stream_sum.detach().mean() * output.form.rule.damping)
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


def recenter(pair):
    '''Choose a new sum. Gradients do not see it (theorem 6), unless the map itself is to be differentiated.'''
    form = pair.form
    if form.sums != 'values' or form.recentering is None:
        return pair.like(pair.difference, pair._stream_sum)
    if form.recorded is not None:
        return pair.like(pair.difference, by_sample(pair, pair.difference, pair._stream_sum))
    new = by_sample(pair, pair.difference.detach(), pair._stream_sum.detach())
    return pair.like(pair.difference, Replace.apply(pair._stream_sum, new))


def by_sample(pair, difference, stream_sum):
    '''The re-centered sum, decided sample by sample; where the batch has no axis of its own, entry by entry.'''
    axis, recentering = pair.batch_axis, pair.form.recentering
    if axis == 0:
        return recentering(difference, stream_sum)
    if axis is None:
        return recentering(difference.reshape(-1, 1), stream_sum.reshape(-1, 1)).reshape(stream_sum.shape)
    return recentering(difference.movedim(axis, 0), stream_sum.movedim(axis, 0)).movedim(0, axis)


def common_axis(pairs):
    '''The batch axis of pairs that are joined, counted alike in all of them, or None.'''
    axes = {None if pair.batch_axis is None else (pair.batch_axis, pair.ndim) for pair in pairs}
    return pairs[0].batch_axis if len(axes) == 1 else None


def align(pairs):
    '''Give pairs that will be joined the same power of two.'''
    if not pairs[0].form.counts_growth:
        return pairs
    highest = torch.stack([pair.exponent for pair in pairs]).amax(0)
    return [raised(pair, highest) for pair in pairs]


def linear(pair, function, sum_function=None):
    '''The split form of a linear operation without weights (averages, sums, constants to add or multiply).

    Parameters
    ----------
    pair : :py:class:`~zennit_dc.split.SplitTensor`
        The operation's input.
    function : callable
        The operation on the difference.
    sum_function : callable, optional
        The operation on the sum. Default is the same, which is right where no coefficient is negative.

    Returns
    -------
    :py:class:`~zennit_dc.split.SplitTensor`
        The operation's output.
    '''
    require_pair(pair)
    rule = pair.form.rule
    pair = rule.before_linear(pair)
    return rule.behind(pair.like(function(pair.difference), (sum_function or function)(pair._stream_sum)))


def activation(pair, function):
    '''The split form of an elementwise nonlinear function.

    Parameters
    ----------
    pair : :py:class:`~zennit_dc.split.SplitTensor`
        The function's input.
    function : callable
        A function ``(difference, stream_sum) -> (difference, stream_sum)``. Sensitivities pass through its gradient;
        relevance passes unchanged.

    Returns
    -------
    :py:class:`~zennit_dc.split.SplitTensor`
        The function's output.
    '''
    return pair.form.rule.activation(
        lambda operand: operand.like(*function(operand.difference, operand._stream_sum)), pair
    )


def route(pair, function):
    '''The split form of an operation that only moves values: the same for both tensors.

    Parameters
    ----------
    pair : :py:class:`~zennit_dc.split.SplitTensor`
        The operation's input.
    function : callable
        The operation, which returns a tensor.

    Returns
    -------
    :py:class:`~zennit_dc.split.SplitTensor`
        The operation's output, which is ``pair`` itself where the operation returns its very argument.
    '''
    difference = function(pair.difference)
    return pair if difference is pair.difference else pair.like(difference, function(pair._stream_sum))


def add(pairs, function):
    '''The split form of an addition of pairs: sensitivities pass, relevance is shared evenly.

    Parameters
    ----------
    pairs : tuple of :py:class:`~zennit_dc.split.SplitTensor`
        The summands.
    function : callable
        The addition of tensors.

    Returns
    -------
    :py:class:`~zennit_dc.split.SplitTensor`
        The sum of the pairs.
    '''
    pairs = pairs[0].form.rule.summands(*align(pairs))
    output = pairs[0].like(
        function(*(pair.difference for pair in pairs)), function(*(pair._stream_sum for pair in pairs))
    )
    output.batch_axis = common_axis(pairs)
    return output


def multiply(first, other, function):
    '''The split form of a product of two pairs, :math:`(d_1 d_2, s_1 s_2)` (appendix E, equation 19), or of any other
    bilinear function of them, as a product of matrices. Relevance is shared evenly among the factors.

    Parameters
    ----------
    first : :py:class:`~zennit_dc.split.SplitTensor`
        The first factor.
    other : :py:class:`~zennit_dc.split.SplitTensor`
        The other factor.
    function : callable
        The product of two tensors.

    Returns
    -------
    :py:class:`~zennit_dc.split.SplitTensor`
        The product of the pairs.
    '''
    form = first.form
    if form.sums != 'values':
        if form.replayed is not None:
            next(form.replayed), next(form.replayed)  # the factors' values, which only a gradient would need
        return Deferred.of(first, other, function(first.difference.detach(), other.difference.detach()))
    if form.counts_growth:
        mean = function(first._stream_sum.detach(), other._stream_sum.detach()).mean()
        exponent = torch.stack([
            pair.exponent + torch.log2(mean / pair._stream_sum.detach().mean()).clamp(min=0.) for pair in (first, other)
        ]).amin(0)
        first, other = raised(first, exponent), raised(other, exponent)
    first, other = form.rule.factors(first, other)
    if form.recorded is not None:
        for pair in (first, other):
            form.recorded.append((pair.difference, pair._stream_sum))
        product = first.like(
            function(first.difference, other.difference), function(first._stream_sum, other._stream_sum)
        )
    else:
        # the gradient of each factor is made of the other's value, and not of what rules have made of its gradient
        product = first.like(*(
            Replace.apply(function(one, other_value) + function(one_value, two), function(one_value, other_value))
            for one, two, one_value, other_value in zip(
                (first.difference, first._stream_sum), (other.difference, other._stream_sum),
                form.values(first), form.values(other)
            )
        ))
    product.batch_axis = common_axis([first, other])
    return recenter(form.rule.behind(product))


class Deferred(torch.autograd.Function):
    '''A product of pairs whose sums are not computed. If its gradient is needed, the map of the run is computed again
    with sums; if not, as where the product goes into attention weights that are constants, they never are.'''
    @staticmethod
    def of(first, other, value):
        '''The product pair.'''
        tensors = [tensor for pair in (first, other) for tensor in (pair.difference, pair._stream_sum)]
        return align([first, other])[0].like(*Deferred.apply(value, first.form.run(), *tensors))

    @staticmethod
    def forward(ctx, value, run, *tensors):
        ctx.run, ctx.tensors = run, [tensor.new_zeros(()).expand(tensor.shape) for tensor in tensors]
        return value, tensors[-1].new_zeros(()).expand(value.shape)

    @staticmethod
    def backward(ctx, *_):
        ctx.run.sum_is_needed = True
        return None, None, *ctx.tensors


def as_pair(tensor, form):
    '''A constant as a split pair.'''
    return SplitTensor(tensor, input_sum(tensor, 'relu'), form)


def require_pair(operand):
    '''Raise if an operation's first operand is no split pair, as where a pair is an index or a parameter.'''
    if not isinstance(operand, SplitTensor):
        raise NotImplementedError(
            f'a function, called in {called_in(None)}, has a split pair for another argument than its first, for which'
            ' it has no split form'
        )


def require_batch(pair, dimensions, name):
    '''Raise if the pair lacks its batch axis.'''
    if pair.difference.ndim < dimensions:
        raise unsupported(
            name, (pair,), f' for an input of shape {tuple(pair.difference.shape)} without a batch axis'
        )


def batch_norm_parameters(mean, variance, weight, bias, eps):
    '''The scale and the shift that a batch norm in eval mode amounts to.'''
    scale = torch.rsqrt(variance + eps) if weight is None else weight * torch.rsqrt(variance + eps)
    return scale, -mean * scale if bias is None else bias - mean * scale


def largest_power(exponent, magnitude, dtype):
    '''The largest power of two, up to the given one, that numbers up to a magnitude can be scaled by in a dtype.'''
    top = math.frexp(torch.finfo(dtype).max)[1] - 2
    return torch.minimum(exponent, top - torch.frexp(magnitude.double())[1]).clamp(min=0.)


def to_dtype(pair, function):
    '''Change the dtype or the device of a pair; the sum stays in at least float32.'''
    difference = function(pair.difference)
    if difference is pair.difference:
        return pair
    # a conversion that makes a new difference makes a new sum, even if that keeps its dtype
    stream_sum = pair._stream_sum.to(difference.device, sum_dtype(difference.dtype))
    return pair.like(difference, stream_sum.view_as(stream_sum))
