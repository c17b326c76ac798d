'''Forward stabilisation: how the sum of a split pair is chosen anew. A common shift of both streams changes neither the
difference nor any gradient (theorem 6).'''
import math

import torch


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
    def __init__(self, theta=0.1, threshold=10.):
        if not 0. < theta < 1.:
            raise ValueError(f'theta must be in (0, 1), not {theta}')
        if not (threshold > 0. and math.isfinite(threshold)):
            raise ValueError(f'threshold must be positive, not {threshold}')
        self.theta = theta
        self.threshold = threshold

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
        factor = torch.where(largest_entry > self.threshold, self.theta ** times.clamp(min=1.), 1.)
        return torch.addcmul(magnitude, excess, factor.reshape(-1, *(1,) * (stream_sum.ndim - 1)))

    def __repr__(self):
        return f'Scaling(theta={self.theta}, threshold={self.threshold})'


class Shifting:
    '''Shift both streams to plus and minus half of their difference (appendix C.2, 'sh'): the new sum is zero.'''
    def __call__(self, difference, stream_sum):
        '''Return the new sum, zeros of the sum's shape.'''
        return torch.zeros_like(stream_sum)

    def __repr__(self):
        return 'Shifting()'


RECENTERINGS = {'scaling': Scaling, 'shifting': Shifting, 'none': lambda: None}
