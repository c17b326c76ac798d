'''The kinds of operation on split pairs but affine layers: linear, activation, routing, addition and multiplication.'''
import torch

from .affine import recenter
from .growth import Replace, align, raised
from .split import SplitTensor, called_in, input_sum, sum_dtype, unsupported


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


def common_axis(pairs):
    '''The batch axis of pairs that are joined, counted alike in all of them, or None.'''
    axes = {None if pair.batch_axis is None else (pair.batch_axis, pair.ndim) for pair in pairs}
    return pairs[0].batch_axis if len(axes) == 1 else None


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
    output = pair.form.rule.activation(
        lambda operand: operand.like(*function(operand.difference, operand._stream_sum)), pair
    )
    output.depth = pair.depth + 1
    pair.form.depth = max(pair.form.depth, output.depth)
    return output


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
    product.batch_axis, product.depth = common_axis([first, other]), max(first.depth, other.depth)
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


def to_dtype(pair, function):
    '''Change the dtype or the device of a pair; the sum stays in at least float32.'''
    difference = function(pair.difference)
    if difference is pair.difference:
        return pair
    # a conversion that makes a new difference makes a new sum, even if that keeps its dtype
    stream_sum = pair._stream_sum.to(difference.device, sum_dtype(difference.dtype))
    return pair.like(difference, stream_sum.view_as(stream_sum))
