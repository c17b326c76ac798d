'''The building blocks, of which every split form is made: affine layers, linear operations, activations, routing,
additions and products. They decide what becomes of sensitivities and relevance.'''
from contextlib import nullcontext
from typing import NamedTuple

import torch

from .axes import by_sample, follow_axes, in_shape, same_axes
from .errors import SUMS, StartOver
from .graphs import same, true_gradients, without_activation, without_rectified
from .pair import FILLED, MOVED, SplitTensor, TrueGradient, unsupported
from .views import as_view


CHUNK = 2 ** 18  # the entries of a dense layer's weight of which the absolute values are taken at once


class Layer:
    '''An affine layer with weights.

    Parameters
    ----------
    apply : callable
        The layer, a function ``(input, weight, bias) -> output``.
    transpose : callable, optional
        The transpose of its linear part, a function ``(gradient, weight, input_shape) -> gradient``, if the weight is
        the same for all samples. Without it, this is the gradient of the layer, which is run again for it.
    bias_axes : int, optional
        The number of axes after the axis to which the bias belongs.
    difference : callable, optional
        The layer as the model computes it, with the parameters of ``apply``, which it is by default.
    '''
    def __init__(self, apply, transpose=None, bias_axes=0, difference=None):
        self.apply, self.transpose, self.bias_axes = apply, transpose, bias_axes
        self.difference = apply if difference is None else difference

    def magnitude(self, stream_sum, weight, bias):
        '''Apply the layer with the absolute values of its parameters.'''
        return self.apply(stream_sum, magnitude(weight, stream_sum), magnitude(bias, stream_sum))

    def transposed_magnitude(self, gradient, weight, shape):
        '''Apply the transpose of the layer with the absolute values of its weights.'''
        if self.transpose is None:
            zeros = gradient.new_zeros(shape)
            return true_gradients(lambda input: self.magnitude(input, weight, None), [zeros], gradient)[0]
        return self.transpose(gradient, magnitude(weight, gradient), shape)


class Dense(Layer):
    '''A fully connected layer. Its weights are many and used once, so that their absolute values are taken in chunks
    that fit into the processor's cache.'''
    def __init__(self):
        super().__init__(torch.nn.functional.linear, lambda gradient, weight, shape: gradient @ weight)

    def magnitude(self, stream_sum, weight, bias):
        output = torch.cat([stream_sum @ magnitude(rows, stream_sum).T for _, rows in chunks(weight)], -1)
        return output if bias is None else output + magnitude(bias, stream_sum)

    def transposed_magnitude(self, gradient, weight, shape):
        return sum(gradient[..., part] @ magnitude(rows, gradient) for part, rows in chunks(weight))


def chunks(weight):
    '''Slices of the rows of a matrix, and these rows; all of them at once on a GPU, or where a graph is asked for.'''
    rows, columns = weight.shape
    whole = weight.device.type != 'cpu' or torch.is_grad_enabled()
    step = max(rows if whole else CHUNK // max(columns, 1), 1)
    return [(slice(start, start + step), weight[start:start + step]) for start in range(0, max(rows, 1), step)]


class Magnitude(torch.autograd.Function):
    '''The way of the sum through an affine layer, :math:`|W| s + |b|`. The absolute values live only as long as they
    are needed.'''
    @staticmethod
    def forward(ctx, stream_sum, weight, bias, layer, split_pass, shape):
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.split_pass, ctx.shape = layer, split_pass, stream_sum.shape
        ctx.save_for_backward(stream_sum if split_pass.mode.sums else None, weight, bias)
        if not split_pass.mode.sums:
            return stream_sum.new_zeros(()).expand(shape)
        with without_autocast(stream_sum.device.type):
            return layer.magnitude(stream_sum, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        makes_map, tensors = ctx.split_pass.makes_map(), ctx.saved_tensors
        if gradient is None or (not ctx.needs_input_grad[0] and makes_map) or (tensors[0] is None and not makes_map):
            return (None,) * 6  # where nobody asks, or a sum has no true gradient
        with without_autocast(gradient.device.type):
            if makes_map:
                return ctx.layer.transposed_magnitude(gradient, tensors[1], ctx.shape), *(None,) * 5
            return *true_gradients(ctx.layer.magnitude, tensors, gradient), None, None, None


class PendingLayer(NamedTuple):
    '''An affine layer that a pair is the very output of, and what is still to be done before anything but a batch norm
    uses the pair: the rule and the re-centering.

    Parameters
    ----------
    tensors : tuple of :py:class:`torch.Tensor`
        The difference and the sum before that.
    bias : :py:class:`torch.Tensor` or None
        The bias.
    rule : :py:class:`~zennit_dc.core.pair.TrueGradient`
        The layer's rule.
    graph : bool
        Whether operations had a graph in the layer.
    is_read : bool
        Whether the map is read here, so that there is no layer any more into which to merge a batch norm.
    '''
    tensors: tuple
    bias: torch.Tensor | None
    rule: TrueGradient
    graph: bool
    is_read: bool = False

    def __call__(self, pair):
        with torch.set_grad_enabled(self.graph), torch.autograd.graph.saved_tensors_hooks(*[lambda tensor: tensor] * 2):
            pair.values = recenter(self.rule.after(pair)).values


def magnitude(tensor, like):
    '''The absolute value of a tensor, if it is one, in the dtype of another.'''
    return None if tensor is None else tensor.abs().to(like.dtype)


def without_autocast(kind):
    '''A context without autocast, which takes its time even where it is off already.'''
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class Recenter(torch.autograd.Function):
    '''Another sum for a pair. In a pass that makes a map, the sum's gradient does not see it (theorem 6); in any other
    it is the true one.'''
    @staticmethod
    def forward(ctx, difference, stream_sum, split_pass, choose):
        ctx.set_materialize_grads(False)
        ctx.split_pass, ctx.choose = split_pass, choose
        ctx.save_for_backward(difference, stream_sum)
        return choose(difference, stream_sum)

    @staticmethod
    def backward(ctx, gradient):
        if gradient is None or ctx.split_pass.makes_map():
            return None, gradient, None, None
        return *true_gradients(ctx.choose, ctx.saved_tensors, gradient), None, None


def recenter(pair):
    '''Choose a new sum for a pair, sample by sample; entry by entry where the samples have no axis of their own.'''
    split_pass = pair.split_pass
    if not split_pass.mode.sums or split_pass.settings.recentering is None:
        return pair
    return pair.replaced(pair.difference, Recenter.apply(*pair.tensors, split_pass, choice(pair)))


def choice(pair):
    '''The function that chooses a new sum for a pair, from its difference and its sum.'''
    recentering, batch = pair.split_pass.settings.recentering, pair.axes.batch  # not the pair, which may keep the graph

    def choose(*tensors):
        chosen = recentering(*(by_sample(tensor, batch) for tensor in tensors))
        if not isinstance(chosen, torch.Tensor):
            raise TypeError(f'the re-centering returns a {type(chosen).__name__}, and not the new sum, a tensor')
        return in_shape(chosen, batch, tensors[0].shape)

    return choose


def affine(pair, layer, weight, bias=None, note_axes=follow_axes):
    '''The split form of an affine layer with weights, :math:`(W d + b, |W| s + |b|)`.

    Parameters
    ----------
    pair : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The layer's input.
    layer : :py:class:`Layer`
        The layer.
    weight : :py:class:`torch.Tensor`
        Its weight.
    bias : :py:class:`torch.Tensor`, optional
        Its bias.
    note_axes : callable, optional
        What notes depth and axes of the output, see :py:func:`linear`.

    Returns
    -------
    :py:class:`~zennit_dc.core.pair.SplitTensor`
        The layer's output.
    '''
    def without_memory(tensor):
        return layer.apply(tensor, weight.detach().to('meta'), bias if bias is None else bias.detach().to('meta'))

    rule = pair.split_pass.rule
    with without_rectified(pair):
        output = weighted(rule.before_affine(pair), layer, weight, bias)
    note_axes([pair], output, without_memory)
    if bias is not None and layer.bias_axes:
        bias = bias.reshape(-1, *(1,) * layer.bias_axes)
    return pending(output, bias, rule)


def pending(output, bias, rule):
    '''The output of an affine layer, at which the rule and the re-centering wait until anything but a batch norm uses
    it.'''
    output.origin = output.pending = PendingLayer(output.values, bias, rule, torch.is_grad_enabled())
    return output


def weighted(pair, layer, weight, bias):
    '''Apply an affine layer to both tensors of the pair.'''
    difference, stream_sum = pair.tensors
    output = layer.difference(difference, weight, bias)
    return pair.like(output, Magnitude.apply(stream_sum, weight, bias, layer, pair.split_pass, output.shape))


def linear(pair, function, sum_function=None, note_axes=follow_axes):
    '''The split form of a linear operation without weights (averages, sums, constants to add or multiply).

    Parameters
    ----------
    pair : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The operation's input.
    function : callable
        The operation on the difference.
    sum_function : callable, optional
        The operation on the sum. Default is the same, which is right where no coefficient is negative.
    note_axes : callable or None, optional
        What notes depth and axes of the output, a function of the list of pairs, the output and the function. Default
        is :py:func:`~zennit_dc.core.axes.follow_axes`, which asks the function where it moves axes;
        :py:func:`~zennit_dc.core.axes.same_axes` is for one that leaves them where they are. With None nothing is known
        of them, so that each entry is re-centered on its own.

    Returns
    -------
    :py:class:`~zennit_dc.core.pair.SplitTensor`
        The operation's output.
    '''
    if not isinstance(pair, SplitTensor):
        raise unsupported('a function', (), ' of a split pair that is another argument than its first')
    rule = pair.split_pass.rule
    difference, stream_sum = rule.before_linear(pair).tensors
    output = rule.after(pair.like(function(difference), (sum_function or function)(stream_sum)))
    return output if note_axes is None else note_axes([pair], output, function)


def moved_alike(function):
    '''What notes the axes of an output by a function that moves them as the one that made it does, see
    :py:func:`linear`.'''
    return lambda pairs, output, _: follow_axes(pairs, output, function)


def activation(pair, function):
    '''The split form of an elementwise nonlinear function.

    Parameters
    ----------
    pair : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The function's input.
    function : callable
        A function ``(difference, stream_sum) -> (difference, stream_sum)``. Sensitivities pass through its gradient;
        relevance passes unchanged.

    Returns
    -------
    :py:class:`~zennit_dc.core.pair.SplitTensor`
        The function's output.
    '''
    return activated(passing(pair.replaced(*function(*pair.tensors)), pair.tensors), pair, function)


def activated(output, pair=None, function=None):
    '''The output of an activation: counted, and re-centered where the re-centering asks for that. It is made of a pair
    by a function of the pair's tensors, if these are given.'''
    output.depth += 1
    if not getattr(output.split_pass.settings.recentering, 'after_activations', False):
        return output
    with without_activation(output, pair, function, None if pair is None else choice(pair)):
        return recenter(output)


class Instead(torch.autograd.Function):
    '''The value of a tensor. In a pass that makes a map its gradient goes to another tensor of the same shape, if there
    is one, or is dropped; in any other pass it goes where it belongs.'''
    @staticmethod
    def forward(ctx, tensor, other, split_pass):
        ctx.set_materialize_grads(False)
        ctx.split_pass = split_pass
        return same(tensor)

    @staticmethod
    def backward(ctx, gradient):
        if ctx.split_pass.makes_map():
            return None, gradient if ctx.needs_input_grad[1] else None, None
        return gradient, None, None


def instead(pair, others):
    '''A pair, of which the map's gradients go to two other tensors.'''
    return pair.replaced(*(
        Instead.apply(tensor, other.to(tensor.dtype), pair.split_pass) for tensor, other in zip(pair.tensors, others)
    ))


def passing(output, tensors):
    '''The output of an activation, through whose gradient sensitivities pass. Relevance goes to two tensors of the same
    shape, unchanged.'''
    return instead(output, tensors) if output.split_pass.rule.passes_activations else output


def route(pair, function, note_axes=follow_axes):
    '''The split form of an operation that only moves values: the same for both tensors.

    Parameters
    ----------
    pair : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The operation's input.
    function : callable
        The operation, which returns a tensor.
    note_axes : callable or None, optional
        What notes depth and axes of the output, see :py:func:`linear`.

    Returns
    -------
    :py:class:`~zennit_dc.core.pair.SplitTensor`
        The operation's output, which is ``pair`` itself where the operation returns its very argument.
    '''
    difference, stream_sum = pair.tensors
    moved = function(difference)
    if moved is difference:
        return pair
    output = pair.like(moved, function(stream_sum))
    output.facts = pair.facts & MOVED
    as_view(output, pair, function)
    return output if note_axes is None else note_axes([pair], output, function)


def add(pairs, function):
    '''The split form of an addition of pairs: sensitivities pass, relevance is shared evenly among the summands. Where
    some samples of one of these were written into a plain tensor, :py:func:`summands` count.

    Parameters
    ----------
    pairs : tuple of :py:class:`~zennit_dc.core.pair.SplitTensor`
        The summands.
    function : callable
        The addition of tensors.

    Returns
    -------
    :py:class:`~zennit_dc.core.pair.SplitTensor`
        The sum of the pairs.
    '''
    count = summands(*pairs) if any(FILLED in pair.facts for pair in pairs) else len(pairs)
    shares = [pair.split_pass.rule.shared(pair, count).tensors for pair in pairs]
    return same_axes(pairs, pairs[0].like(*(function(*tensors) for tensors in zip(*shares))))


def summands(*pairs):
    '''How many of some pairs are not zero in both streams, entry by entry. As relevance is shared among these, that of
    a sample does not depend on whether anything is added to others.'''
    present = (difference.bool() | stream_sum.bool() for difference, stream_sum in (pair.tensors for pair in pairs))
    return sum(each.to(torch.uint8) for each in present).clamp(min=1)


def multiply(first, other, function, note_axes=same_axes):
    '''The split form of a product of two pairs, :math:`(d_1 d_2, s_1 s_2)` (appendix E, equation 19), or of any other
    bilinear function of them, as a product of matrices. Relevance is shared evenly among the factors.

    Parameters
    ----------
    first : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The first factor.
    other : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The other factor.
    function : callable
        The product of two tensors.
    note_axes : callable, optional
        What notes depth and axes, as :py:func:`~zennit_dc.core.axes.same_axes` does, which is the default, or
        :py:func:`~zennit_dc.core.axes.follow_axes`.

    Returns
    -------
    :py:class:`~zennit_dc.core.pair.SplitTensor`
        The product of the pairs.
    '''
    if not first.split_pass.mode.sums:
        raise StartOver(SUMS)
    rule = first.split_pass.rule
    one, two = (rule.shared(rule.before_linear(pair), 2) for pair in (first, other))
    product = first.like(*(function(*tensors) for tensors in zip(one.tensors, two.tensors)))
    return recenter(rule.after(note_axes([first, other], product, function)))
