'''The change Δ of an image that maximises gᵀΔ + ΔᵀHΔ/2 − λ1 |Δ|₁ − λ2 |Δ|₂², for a loss's gradient g and Hessian H, or
without H, and the penalties.'''
import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .loss import Krylov, MeanCrossEntropy, inner


SETTLING = 20  # the steps in which the penalty follows the solution, whatever its error
PATIENCE = 5.  # seconds after which a progress bar is shown


@dataclass(frozen=True)
class Sparsity:
    '''The penalty λ1 for which a share of each image's pixels has no importance in all channels.

    Parameters
    ----------
    share : float, optional
        The share of the pixels, from 0 to below 1. One pixel at least has an importance; entries that the loss does not
        depend on have none, whatever the share.

    Raises
    ------
    ValueError
        If the share is not in this range.
    '''
    share: float = .75

    def __post_init__(self) -> None:
        if not 0. <= self.share < 1.:
            raise ValueError(f'the share of pixels without importance must be from 0 to below 1, not {self.share}')

    def bounds(self, values: Tensor) -> Tensor:
        '''The penalties from and up to which each image has this sparsity, if ``values`` of shape (batch, ...) are
        g + HΔ.'''
        pixels = values.abs().flatten(2).amax(1) if values.ndim > 2 else values.abs()
        zeros = min(round(self.share * pixels.shape[1]), pixels.shape[1] - 1)
        if not zeros:
            return pixels.new_zeros(2, len(pixels))
        return pixels.sort(1).values[:, zeros - 1:zeros + 1].T


class Solution(NamedTuple):
    '''How a maximum was found, for each image, in double precision and of shape (batch,).

    Parameters
    ----------
    lambda1, lambda2 : :py:class:`torch.Tensor`
        The penalties λ1, in units of the loss's gradient, and λ2, in units of its Hessian.
    L : :py:class:`torch.Tensor`
        The largest eigenvalue of the loss's Hessian; zero for CAFO, which has none.
    error_bound : :py:class:`torch.Tensor`
        A bound of the Euclidean distance between the Δ that was found and the one of the maximum.
    steps : :py:class:`torch.Tensor`
        The number of steps.
    '''
    lambda1: torch.Tensor
    lambda2: torch.Tensor
    L: torch.Tensor
    error_bound: torch.Tensor
    steps: torch.Tensor


def per_image(values: Tensor, like: Tensor) -> Tensor:
    '''Values of shape (batch,) with axes of length one, as many as ``like`` has.'''
    return values.view(-1, *[1] * (like.ndim - 1))


def thresholded(values: Tensor, lambda1: Tensor) -> Tensor:
    '''Values of shape (batch, ...), softly thresholded by λ1 of shape (batch,): 2λ2 Δ after a proximal step, if they
    are g + HΔ.'''
    return values.sign() * (values.abs() - per_image(lambda1, values)).clamp(min=0.)


def penalty_of(penalty: Sparsity | float, values: Tensor, log_scale: Tensor) -> Tensor:
    '''The penalty λ1 divided by s, for each image, if ``values`` are (g + HΔ) / s.'''
    if isinstance(penalty, Sparsity):
        return penalty.bounds(values).mean(0)
    return penalty * (-log_scale).exp() if penalty else torch.zeros_like(log_scale)


def first_order(loss: MeanCrossEntropy, penalty: Sparsity | float) -> tuple[Tensor, Solution]:
    '''The maximum without a Hessian, and how it was found.

    Parameters
    ----------
    loss : :py:class:`~zennit_dc.attribution.loss.MeanCrossEntropy`
        The loss.
    penalty : :py:class:`Sparsity` or float
        The penalty λ1.

    Returns
    -------
    delta : :py:class:`torch.Tensor`
        The Δ of shape (batch, ...).
    solution : :py:class:`Solution`
        How it was found. λ2 is s/2, so that Δ is the thresholded gradient, divided by s.
    '''
    gradient, scale = loss.gradient(), loss.log_scale.exp()
    lambda1, none = penalty_of(penalty, gradient, loss.log_scale), torch.zeros_like(scale)
    return thresholded(gradient, lambda1), Solution(lambda1 * scale, scale / 2., none, none, none.long())


def second_order(
    loss: MeanCrossEntropy, penalty: Sparsity | float, margin: float = .1, offset: float = 0., tolerance: float = 1e-3,
    steps: int = 300, krylov: int = 10
) -> tuple[Tensor, Solution]:
    '''The maximum with the Hessian, by accelerated proximal steps from the maximum for λ1 = 0.

    A step contracts by L/(2λ2), which bounds the error. Each image stops on its own, whatever the others need.

    Parameters
    ----------
    loss : :py:class:`~zennit_dc.attribution.loss.MeanCrossEntropy`
        The loss.
    penalty : :py:class:`Sparsity` or float
        The penalty λ1. A sparsity is that of the result, as the penalty follows the steps.
    margin, offset, tolerance, steps, krylov
        See :py:class:`~.group_features.CASO`.

    Returns
    -------
    delta : :py:class:`torch.Tensor`
        The Δ of shape (batch, ...).
    solution : :py:class:`Solution`
        How it was found.

    Raises
    ------
    ValueError
        If λ2 is not a number larger than L/2 for some image.
    '''
    space, scale = Krylov(loss, krylov), loss.log_scale.exp()
    gradient, largest = space.gradient, space.values[:, 0].clamp(min=0.)
    lambda2 = shift(largest, gradient, loss.log_scale, margin, offset)
    require_concave(lambda2, largest, gradient)
    rate, factor = largest / (2. * lambda2), per_image(2. * lambda2, gradient)
    momentum = per_image(momentum_of(rate), gradient)
    point, curved = space.solved(2. * lambda2)
    point = factor * point  # 2λ2 Δ, whose scale is the gradient's, and HΔ
    del space
    lambda1 = penalty_of(penalty, gradient, loss.log_scale)

    def advanced() -> tuple[Tensor, Tensor, Tensor]:
        step = thresholded(gradient + curved, lambda1)
        return step, norm(point - step) / (1. - rate), tolerance * norm(step)

    found, bound, taken = torch.zeros_like(gradient), torch.full_like(scale, torch.inf), torch.zeros_like(scale)
    running, last = torch.ones_like(scale, dtype=torch.bool), None
    with tqdm(total=steps, desc='CASO', unit='step', disable=None, leave=False, delay=PATIENCE) as bar:
        for count in range(steps):
            step, error, allowed = advanced()
            if isinstance(penalty, Sparsity):
                low, high = penalty.bounds(gradient + curved)
                wrong = (error <= allowed) & ~((low <= lambda1) & (lambda1 <= high))
                lambda1 = torch.where(running & (wrong | (count < SETTLING)), (low + high) / 2, lambda1)
                step, error, allowed = advanced()
            found = torch.where(per_image(running, found), step, found)
            bound, taken = torch.where(running, error, bound), taken + running
            running = running & ~(error <= allowed)
            bar.update()
            if not running.any():
                break
            now = step, loss.product(step / factor)
            point, curved = (new + momentum * (new - old) for new, old in zip(now, last or now))
            last = now
    if running.any():
        warn_of_error(steps, (bound / norm(found))[running].max())
    return found / factor, Solution(
        lambda1 * scale, lambda2 * scale, largest * scale, bound / (2. * lambda2), taken.long()
    )


def momentum_of(rate: Tensor) -> Tensor:
    '''The momentum with which steps that contract by a rate are accelerated.'''
    return (1. - (1. - rate).sqrt()) / (1. + (1. - rate).sqrt())


def warn_of_error(steps: int, error: Tensor) -> None:
    '''Warn, where :py:func:`second_order` was called, that it took all steps and was not done.'''
    warnings.warn(f'after {steps} steps the error of CASO is up to {error:.1e} of the map: give it more steps, or a'
                  ' larger margin', stacklevel=3)


def shift(largest: Tensor, gradient: Tensor, log_scale: Tensor, margin: float, offset: float) -> Tensor:
    '''The penalty λ2 divided by s, for each image. Where the Hessian is zero next to the gradient's own square, to the
    precision of its numbers, and there is no offset, it is 1/2, as without a Hessian.'''
    if offset:
        return (1. + margin) * largest / 2. + offset * (-log_scale).exp()
    rounding = torch.finfo(largest.dtype).eps * norm(gradient).square()
    return torch.where(largest > rounding, (1. + margin) * largest / 2., .5)


def norm(values: Tensor) -> Tensor:
    '''The Euclidean length of each image's entries, of shape (batch,).'''
    return inner(values, values).sqrt().flatten()


def require_concave(lambda2: Tensor, largest: Tensor, gradient: Tensor) -> None:
    '''Raise a ValueError if the loss does not depend on an image, or λ2 is not a number larger than L/2.'''
    for index, (shift, value, slope) in enumerate(zip(lambda2.tolist(), largest.tolist(), norm(gradient).tolist())):
        if not slope:
            raise ValueError(f'the loss does not depend on image {index}: all of its gradient is zero')
        if not math.isfinite(shift):
            raise ValueError(
                f'λ2 is not finite for image {index}: if its loss is close to zero, its map with an offset is zero, and'
                ' a margin is needed; else the model\'s gradients are not finite'
            )
        if not shift > value / 2.:
            raise ValueError(
                f'λ2 must be larger than L/2 = {value / 2.:.3g} for image {index}, but is {shift:.3g}: choose a larger'
                ' margin'
            )
