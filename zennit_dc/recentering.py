'''Forward stabilisation: how the sum of a split pair is chosen anew. A common shift of both streams changes neither the
difference nor any gradient (theorem 6).

A re-centering is a callable ``(difference, sum) -> sum``. It is asked after affine layers and products; and after
activations as well, if it has an attribute ``after_activations`` that is true.
'''
import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Relative:
    '''Keep what both streams have in common in proportion to what they differ in, wherever the network's activations
    are large or small.

    The excess of the sum over the absolute value of the difference, :math:`e = s - |d|`, is twice the smaller of the
    two streams. Where its mean over a sample is more than :math:`\\rho` times the mean of :math:`|d|`, the excess is
    scaled down to that, :math:`s' = |d| + e \\min(1, \\rho \\, \\mathrm{mean} |d| / \\mathrm{mean} \\, e)`. This is
    done after affine layers and products, and after activations: a unit that does not fire has a difference of zero,
    and all of its sum is excess. :py:class:`~zennit_dc.Balanced` says what is an activation.

    Streams stay non-negative. The mean of a sum is at most :math:`1 + \\rho` times that of its difference's absolute
    values, so that no depth makes it overflow. A factor on the input and on all biases changes no normalized map.
    Samples do not influence each other.

    The paper's :py:class:`Scaling` lets the excess stay where it is below a threshold in absolute units. That fits
    networks whose activations are in the tens, such as VGG. With batch norms they are about one, so that the excess
    outweighs the difference in all layers, and SplitLRP shares relevance by what depends on neither image nor class.

    Parameters
    ----------
    rho : float, optional
        The largest ratio :math:`\\rho` of the mean excess to the mean absolute difference, not negative. With zero, no
        excess is left: behind ReLUs, SplitLRP's positive relevance is then that of the :math:`z^+` rule. With infinity,
        the sum is left as it is.

    Raises
    ------
    ValueError
        If rho is negative or no number.
    '''
    rho: float = 1.
    after_activations: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.rho, Real) or isinstance(self.rho, bool) or not self.rho >= 0.:
            raise ValueError(f'rho must be a number that is not negative, not {self.rho!r}')

    def __call__(self, difference: Tensor, stream_sum: Tensor) -> Tensor:
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
        if self.rho == math.inf or stream_sum.numel() == 0:
            return stream_sum
        magnitude, axes = difference.abs().to(stream_sum.dtype), [*range(1, stream_sum.ndim)]
        size, total = (each.mean(axes, keepdim=True) if axes else each for each in (magnitude, stream_sum))
        if self.rho == 0.:
            return torch.where(total > size, magnitude, stream_sum)
        largest = torch.maximum(size, (total - size) / self.rho).clamp(min=torch.finfo(size.dtype).tiny)
        return torch.lerp(magnitude, stream_sum, size / largest)


@dataclass(frozen=True)
class Scaling:
    '''Scale what both streams have in common (section 4.1, 'sc'), as the paper does. See :py:class:`Relative` for
    networks with batch norms, where its threshold is too large.

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

    def __post_init__(self) -> None:
        if not 0. < self.theta < 1.:
            raise ValueError(f'theta must be in (0, 1), not {self.theta}')
        if not 0. < self.threshold < math.inf:
            raise ValueError(f'threshold must be positive, not {self.threshold}')

    def __call__(self, difference: Tensor, stream_sum: Tensor) -> Tensor:
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
    def __call__(self, difference: Tensor, stream_sum: Tensor) -> Tensor:
        '''Return the new sum, zeros of the sum's shape.'''
        return torch.zeros_like(stream_sum)
