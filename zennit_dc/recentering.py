'''Forward stabilisation: how the sum of a split pair is chosen anew. A common shift of both streams changes neither the
difference nor any gradient (theorem 6).'''
import math
from dataclasses import dataclass

import torch

from .axes import by_sample, in_shape
from .split import true_gradients


@dataclass(frozen=True)
class Scaling:
    '''Scale what both streams have in common (section 4.1, 'sc').

    Where the largest entry of either stream of a sample exceeds the threshold, the excess of the sum over the absolute
    value of the difference, which is twice the smaller of the two streams, is multiplied by theta, again and again
    while the sample's largest excess exceeds the threshold. Streams stay non-negative. Samples do not influence each
    other.

    Parameters
    ----------
    theta : float, optional
        The factor, in (0, 1).
    threshold : float, optional
        The largest entry that is left as it is, positive.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    '''
    theta: float = 0.1
    threshold: float = 10.

    def __post_init__(self):
        if not 0. < self.theta < 1.:
            raise ValueError(f'theta must be in (0, 1), not {self.theta}')
        if not 0. < self.threshold < math.inf:
            raise ValueError(f'threshold must be positive, not {self.threshold}')

    def __call__(self, difference, stream_sum):
        '''Return the new sum.

        Parameters
        ----------
        difference : :py:class:`torch.Tensor`
            The difference of shape (batch, ...).
        stream_sum : :py:class:`torch.Tensor`
            The sum of the same shape.

        Returns
        -------
        :py:class:`torch.Tensor`
            The new sum.
        '''
        if stream_sum.numel() == 0:
            return stream_sum
        samples = stream_sum.shape[0]
        magnitude = difference.abs().to(stream_sum.dtype)
        excess = stream_sum - magnitude
        largest_excess = excess.detach().reshape(samples, -1).amax(1)
        largest_entry = torch.add(magnitude, excess, alpha=.5).detach().reshape(samples, -1).amax(1)
        times = torch.ceil(torch.log(largest_excess.clamp(min=self.threshold) / self.threshold) / -math.log(self.theta))
        factor = torch.where(largest_entry > self.threshold, torch.pow(self.theta, times.clamp(min=1.)), 1.)
        return torch.addcmul(magnitude, excess, factor.reshape(-1, *(1,) * (stream_sum.ndim - 1)))


@dataclass(frozen=True)
class Shifting:
    '''Shift both streams to plus and minus half of their difference (appendix C.2, 'sh'): the new sum is zero.'''
    def __call__(self, difference, stream_sum):
        '''Return the new sum, zeros of the sum's shape.'''
        return torch.zeros_like(stream_sum)


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
    def choose(*tensors):
        new = recentering(*(by_sample(tensor, batch) for tensor in tensors))
        return in_shape(new, batch, tensors[0].shape)

    recentering, batch = pair.split_pass.recentering, pair.batch  # not the pair, which may keep the graph of this
    if not pair.split_pass.sums or recentering is None:
        return pair
    return pair.replaced(pair.difference, Recenter.apply(*pair.tensors, pair.split_pass, choose))
