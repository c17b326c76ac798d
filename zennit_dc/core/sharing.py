'''One sum for all images of a batch. Where its value is not computed, the sum's gradient depends on the relevance at
the output and on weights alone (theorem 7), from the output down to the first operation that depends on the image, such
as max-pooling. Where all images explain the same, it is computed once.

From an operation of the forward pass on, the placeholder of each pair's sum has one sample. An operation that cannot
take such a pair, or that makes another one of it, starts the pass over, so that this begins after it.
'''
import torch

from .pair import NeedsSums, Unshared, Unsupported, pairs_in, same


ATTEMPTS = 24  # how often a pass starts over before nothing is shared


class First(torch.autograd.Function):
    '''The first sample of a sum's placeholder. What its gradient is holds for all of them.'''
    @staticmethod
    def forward(ctx, stream_sum, axis):
        ctx.shape = stream_sum.shape
        return same(stream_sum.narrow(axis, 0, 1))

    @staticmethod
    def backward(ctx, gradient):
        return gradient.expand(ctx.shape), None


def is_shared(pair):
    '''Whether a pair's sum has one sample for all.'''
    (difference, stream_sum), axis = pair.values, pair.place('batch')
    shape = list(difference.shape)
    if axis is None:
        return False
    shape[axis] = 1
    return list(stream_sum.shape) == shape


def share(pair):
    '''Let a pair's sum have one sample for all. Views, which an operation in place may write to, do not come in.'''
    if is_shared(pair):
        return
    difference, stream_sum = pair.tensors
    is_whole = pair.is_full and pair.base is None and not pair.views and difference.shape == stream_sum.shape
    if pair.place('batch') is None or not is_whole:
        raise IndexError('a pair whose sum cannot be shared')
    pair.values = difference, First.apply(stream_sum, pair.place('batch'))


def evaluated(split_pass, evaluate, function, args, kwargs):
    '''What a function is on pairs whose sums have one sample for all.

    Parameters
    ----------
    split_pass : :py:class:`~zennit_dc.core.pair.Pass`
        The pass, which counts operations.
    evaluate : callable
        Its way to evaluate a function.
    function, args, kwargs
        The function and its arguments.

    Raises
    ------
    Unshared
        If an argument cannot be shared, or the function does not keep it so.
    '''
    split_pass.shares = True
    try:
        for pair in pairs_in((args, kwargs)):
            share(pair)
        if len({pair.batch.length for pair in pairs_in((args, kwargs))}) > 1:
            raise IndexError('pairs of different numbers of samples')
        output = evaluate(function, args, kwargs)
        if all(map(is_shared, pairs_in(output))):
            return output
    except (NeedsSums, Unsupported):
        raise
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise Unshared(split_pass.calls) from error
    finally:
        split_pass.shares = False
    raise Unshared(split_pass.calls)


def shared_seed(seed, pair_shape):
    '''What enters the sum at the output, of which there is one sample for all.

    Raises
    ------
    ValueError
        If the images do not explain the same relevance.
    '''
    if seed.shape == pair_shape:
        return seed
    axis = next(index for index, lengths in enumerate(zip(seed.shape, pair_shape)) if lengths[0] != lengths[1])
    first = seed.narrow(axis, 0, 1)
    if not torch.equal(first.expand_as(seed), seed):
        raise ValueError(
            'shared=True computes one sum for all images, which have to explain the same relevance, but they differ:'
            ' give images of one class to a call, or do without it'
        )
    return first
