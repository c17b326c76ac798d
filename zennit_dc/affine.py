'''Affine layers on split pairs, and the re-centering of their outputs.'''
from dataclasses import dataclass

import torch

from .growth import Replace, count_growth
from .split import SplitTensor


CHUNK = 2 ** 18


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
