'''What the Jacobian of an affine function says of its split form.'''
import functools

import torch
from helpers import assert_close, random_image
from small_models import Calling

from zennit_dc import SplitGrad, SplitLRP, SplitTensor
from zennit_dc.core.pair import Pass, Settings


IMAGE = (2, 4, 6, 6)


@functools.cache
def jacobian(function, shape):
    '''The matrix and the bias of an affine function.'''
    zero = torch.zeros(shape, dtype=torch.float64)
    with torch.no_grad():
        offset = function(zero)
    matrix = torch.autograd.functional.jacobian(function, zero).reshape(offset.numel(), -1)
    return matrix, offset


def require_streams(shape, function, affine=None, canonizers=()):
    '''The sum of the output is that of the absolute matrix, or of the matrix of another function that is affine.'''
    x, total, model = random_image(*shape), random_image(*shape, seed=5).abs(), Calling(function)
    applied = [instance for canonizer in canonizers for instance in canonizer.apply(model)]
    output = model(SplitTensor(x, total, Pass(Settings(root=model))))
    for instance in applied:
        instance.remove()
    assert torch.equal(output.difference, function(x))
    matrix, offset = jacobian(affine or function, shape)
    assert_close(output.stream_sum, (matrix.abs() @ total.flatten()).reshape(offset.shape) + offset.abs())


def require_sensitivities(shape, function, affine=None, canonizers=()):
    '''The sensitivities are those of the matrix and its absolute values.'''
    x, model = random_image(*shape).requires_grad_(), Calling(function)
    matrix, offset = jacobian(affine or function, shape)
    seed = random_image(*offset.shape, seed=3)
    for composite, expected in (
        (SplitGrad(0., 'g', canonizers=canonizers), matrix.T @ seed.flatten() / 2),
        (SplitGrad(0., '+g', canonizers=canonizers), (matrix.T @ seed.flatten() + matrix.abs().T @ seed.flatten()) / 2),
    ):
        with composite.context(model):
            gradient, = torch.autograd.grad(model(x), x, seed)
        size = (matrix.abs().T @ seed.abs().flatten()).max().item()  # as all of the expected may be zero
        torch.testing.assert_close(gradient, expected.reshape(shape), rtol=1e-10, atol=1e-10 * size)


def require_relevance(shape, function, affine=None, canonizers=()):
    '''The relevance is that of one layer with this matrix (equation 9).'''
    x, model = random_image(*shape).requires_grad_(), Calling(function)
    matrix, offset = jacobian(affine or function, shape)
    plus, minus = x.detach().clamp(min=0).flatten(), (-x.detach()).clamp(min=0).flatten()
    w_plus, w_minus = matrix.clamp(min=0), (-matrix).clamp(min=0)
    relevance = random_image(*offset.shape, seed=3)
    u_plus = relevance.flatten() / (w_plus @ plus + w_minus @ minus + offset.flatten().clamp(min=0) + .1)
    with SplitLRP(.1, 'combined', recentering=None, canonizers=canonizers).context(model):
        attribution, = torch.autograd.grad(model(x), x, relevance)
    expected = plus * (w_plus.T @ u_plus) - minus * (w_minus.T @ u_plus)
    assert_close(attribution, expected.reshape(shape))


def require_moved_relevance(function):
    '''The relevance goes where the values came from.'''
    x, model = random_image(*IMAGE).requires_grad_(), Calling(function)
    matrix, offset = jacobian(function, IMAGE)
    relevance = random_image(*offset.shape, seed=3)
    with SplitLRP().context(model):
        attribution, = torch.autograd.grad(model(x), x, relevance)
    assert_close(attribution, (matrix.T @ relevance.flatten()).reshape(IMAGE))
