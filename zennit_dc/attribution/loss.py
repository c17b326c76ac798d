'''The cross-entropy of a class as a function of the image: its gradient and its Hessian, in closed form [1]_.

With the logits f, their probabilities p, the class y and the class gradients w_i = ∇f_i, a network that is linear
around the image has the gradient Σ p_i w_i − w_y and the Hessian Cov_p(w), the covariance of the class gradients
(equations 14 and 6). Both are divided by s = 1 − p_y, which is all that vanishes where the network is certain. With the
competitors' probabilities q_i = p_i / s they are d = Σ q_i w_i − w_y and p_y d dᵀ + Cov_q(w), exactly and for every p.

All sums are in double precision, for each image on its own. Nothing but :py:func:`hessian` holds as many numbers as the
Hessian has.

References
----------
.. [1] S. Singla, E. Wallace, S. Feng, and S. Feizi: "Understanding Impacts of High-Order Loss Approximations and
       Features in Deep Learning Interpretation," International Conference on Machine Learning, 2019.
'''
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, functional as F

from .layers import require_evaluation
from .relevance import Target, class_relevance, require_scores


Chosen = tuple[Tensor, Tensor] | None
'''The likeliest classes as :py:func:`likeliest` returns them, or None for all classes.'''
EXHAUSTED = 1e-8  # what is left of a product next to a basis that holds it, as a share of the product


def inner(first: Tensor, second: Tensor) -> Tensor:
    '''The inner product of each image's entries, with axes of length one in place of the image's.'''
    return (first * second).flatten(1).sum(1).view(-1, *[1] * (first.ndim - 1))


class ClassGradients:
    '''The gradients of all logits as columns of a matrix W, by the graph of a forward pass.

    Parameters
    ----------
    input : :py:class:`torch.Tensor`
        The input of shape (batch, ...), which requires a gradient.
    output : :py:class:`torch.Tensor`
        The logits of shape (batch, classes).
    '''
    def __init__(self, input: Tensor, output: Tensor):
        self.input, self.output = input, output

    def combined(self, coefficients: Tensor) -> Tensor:
        '''The sum Wc of shape (batch, ...), for coefficients c of shape (batch, classes).'''
        gradient, = torch.autograd.grad(
            self.output, self.input, coefficients.to(self.output), retain_graph=True, materialize_grads=True
        )
        return gradient.double()

    def of(self, indices: Tensor) -> Tensor:
        '''The gradients of the logits with indices of shape (batch,), of shape (batch, ...).'''
        return self.combined(F.one_hot(indices, self.output.shape[1]))

    def products(self, directions: Tensor) -> Tensor:
        '''The inner products Wᵀu of shape (batch, classes), for directions u of shape (batch, ...).'''
        coefficients, gradient = self.linear
        products, = torch.autograd.grad(
            gradient, coefficients, directions.to(gradient), retain_graph=True, materialize_grads=True
        )
        return products.double()

    @cached_property
    def linear(self) -> tuple[Tensor, Tensor]:
        '''Coefficients and their sum Wc, as a function of which its derivative is Wᵀu.'''
        classes = self.output.shape[1]
        coefficients = torch.linspace(-1., 1., classes).to(self.output).expand_as(self.output).clone().requires_grad_()
        gradient, = torch.autograd.grad(self.output, self.input, coefficients, create_graph=True)
        return coefficients, gradient

    @property
    def is_curved(self) -> bool:
        '''Whether a second derivative of the logits is not zero.'''
        _, gradient = self.linear
        second, = torch.autograd.grad(
            gradient, self.input, gradient.detach(), retain_graph=True, materialize_grads=True
        )
        return bool(second.any())


class ClassMaps:
    '''The gradients of some classes, or the maps of a composite in their place, held as they are.

    Parameters
    ----------
    rows : :py:class:`torch.Tensor`
        The maps of shape (batch, classes, ...), in double precision.
    '''
    def __init__(self, rows: Tensor):
        self.rows = rows

    def combined(self, coefficients: Tensor) -> Tensor:
        '''The sum Wc, see :py:meth:`ClassGradients.combined`.'''
        return torch.einsum('bc,bc...->b...', coefficients, self.rows)

    def products(self, directions: Tensor) -> Tensor:
        '''The inner products Wᵀu, see :py:meth:`ClassGradients.products`.'''
        return torch.einsum('bcd,bd->bc', self.rows.flatten(2), directions.flatten(1))


class CrossEntropy:
    '''The derivatives of −log p_y, divided by s = 1 − p_y.

    Parameters
    ----------
    logits : :py:class:`torch.Tensor`
        The logits of shape (batch, classes). One of minus infinity is of a class that is not there.
    own : :py:class:`torch.Tensor`
        Ones for the class y and zeros for all others, in the same shape.
    maps : :py:class:`ClassGradients` or :py:class:`ClassMaps`
        The gradients of these classes.

    Attributes
    ----------
    log_scale : :py:class:`torch.Tensor`
        The logarithm of s, of shape (batch,).
    '''
    def __init__(self, logits: Tensor, own: Tensor, maps: ClassGradients | ClassMaps):
        logits, own = logits.detach().double(), own.bool()
        competitors = logits.masked_fill(own, -torch.inf)
        total = logits.logsumexp(1)
        self.maps: Any = maps
        self.log_scale = competitors.logsumexp(1) - total
        self.probability = (logits[own] - total).exp()[:, None]
        self.competitors = competitors.softmax(1)
        self.difference = self.competitors - own.double()

    def gradient(self) -> Tensor:
        '''The gradient d of shape (batch, ...).'''
        return self.maps.combined(self.difference)

    def product(self, directions: Tensor) -> Tensor:
        '''The Hessian's products with directions of shape (batch, ...), in their shape.'''
        slopes = self.maps.products(directions)
        slopes = slopes - slopes.gather(1, self.competitors.argmax(1, keepdim=True))  # what is certain cancels exactly
        return self.maps.combined(
            self.probability * self.difference * inner(self.difference, slopes)
            + self.competitors * (slopes - inner(self.competitors, slopes))
        )

    def eigenpairs(self, count: int, steps: int | None = None) -> tuple[Tensor, Tensor]:
        '''The Hessian's largest eigenvalues of shape (batch, count), descending, and their eigenvectors of shape
        (batch, count, ...), from the Krylov space of the gradient after ``steps`` products (``2 * count`` by default,
        ten at least). Where this space has fewer dimensions, eigenvalues and vectors are zero.'''
        krylov = Krylov(self, max(2 * count, 10) if steps is None else max(count, steps))
        return krylov.values[:, :count], krylov.vectors(count)


class MeanCrossEntropy:
    '''The mean of several losses, divided by the mean of their s, so that a loss has the weight of its own s.

    Parameters
    ----------
    losses : sequence of :py:class:`CrossEntropy`
        The losses.
    '''
    eigenpairs = CrossEntropy.eigenpairs

    def __init__(self, losses: Sequence[CrossEntropy]):
        logarithms = torch.stack([loss.log_scale for loss in losses])
        total = logarithms.logsumexp(0)
        self.losses = losses
        self.log_scale = total - math.log(len(losses))
        self.weights = (logarithms - total).exp()

    def gradient(self) -> Tensor:
        '''The gradient, see :py:meth:`CrossEntropy.gradient`.'''
        return self.weighted(loss.gradient() for loss in self.losses)

    def product(self, directions: Tensor) -> Tensor:
        '''The Hessian's products, see :py:meth:`CrossEntropy.product`.'''
        return self.weighted(loss.product(directions) for loss in self.losses)

    def weighted(self, values: Iterable[Tensor]) -> Tensor:
        '''The sum of each loss's values, by the losses' weights.'''
        return sum(weight.view(-1, *[1] * (value.ndim - 1)) * value for weight, value in zip(self.weights, values))


class Krylov:
    '''An orthonormal basis of the space that a loss's gradient and the Hessian span, and the Hessian on it.

    The basis is made orthogonal in full (Lanczos' method with reorthogonalisation), and holds zeros where the space has
    no more dimensions.

    Parameters
    ----------
    loss : :py:class:`CrossEntropy` or :py:class:`MeanCrossEntropy`
        The loss.
    steps : int
        The number of products with the Hessian.

    Attributes
    ----------
    gradient : :py:class:`torch.Tensor`
        The loss's gradient of shape (batch, ...).
    values : :py:class:`torch.Tensor`
        The Hessian's eigenvalues on the space, descending, of shape (batch, steps).

    Raises
    ------
    FloatingPointError
        If the gradients are not finite.
    '''
    def __init__(self, loss: CrossEntropy | MeanCrossEntropy, steps: int):
        self.gradient = loss.gradient()
        vector, basis, products = unit(self.gradient), [], []
        for _ in range(steps):
            basis.append(vector)
            products.append(loss.product(vector))
            vector = unit(independent(products[-1], basis))
        self.basis, self.products = torch.stack(basis, 1), torch.stack(products, 1)
        matrix = torch.einsum('bid,bjd->bij', self.basis.flatten(2), self.products.flatten(2))
        if not matrix.isfinite().all():
            raise FloatingPointError('the gradients of the loss are not finite: check the images, or try float64')
        values, self.rotation = torch.linalg.eigh((matrix + matrix.mT) / 2)
        self.values, self.rotation = values.flip(1), self.rotation.flip(2)

    def vectors(self, count: int) -> Tensor:
        '''The eigenvectors of the largest eigenvalues, of shape (batch, count, ...).'''
        return torch.einsum('bi...,bic->bc...', self.basis, self.rotation[:, :, :count])

    def solved(self, shift: Tensor) -> Iterator[Tensor]:
        '''The solution of (shift − H) Δ = g on the space, and its product with the Hessian, of shape (batch, ...).'''
        size = inner(self.gradient, self.gradient).sqrt().flatten(1)
        shares = torch.einsum('bij,bj->bi', self.rotation, size * self.rotation[:, 0] / (shift[:, None] - self.values))
        return (torch.einsum('bi...,bi->b...', each, shares) for each in (self.basis, self.products))


def unit(vector: Tensor) -> Tensor:
    '''Each image's vector, of length one or zero.'''
    length = inner(vector, vector).sqrt()
    return vector / torch.where(length > 0., length, 1.)


def independent(vector: Tensor, basis: list[Tensor]) -> Tensor:
    '''The part of each image's vector that is orthogonal to its basis, or zero where this is nothing but rounding.'''
    rest = vector
    for _ in range(2):  # once leaves rounding behind
        for each in basis:
            rest = rest - inner(each, rest) * each
    return rest * (inner(rest, rest) > EXHAUSTED ** 2 * inner(vector, vector))


def likeliest(output: Tensor, own: Tensor, count: int) -> tuple[Tensor, Tensor]:
    '''The indices of each image's class and of the likeliest classes.

    Parameters
    ----------
    output : :py:class:`torch.Tensor`
        The logits of shape (batch, classes).
    own : :py:class:`torch.Tensor`
        Ones for the class and zeros for all others, in the same shape.
    count : int
        The number of classes, to which the class itself is added if it is none of them.

    Returns
    -------
    indices : :py:class:`torch.Tensor`
        The indices of shape (batch, chosen), the class itself first.
    absent : :py:class:`torch.Tensor`
        The last index of an image that has a class less than others of its batch.
    '''
    count, target = min(count, output.shape[1]), own.argmax(1, keepdim=True)
    short = (output > output.gather(1, target)).sum(1) < count
    others = output.masked_fill(own > 0, -torch.inf).topk(count - 1 if short.all() else count, 1).indices
    absent = torch.zeros(len(output), 1 + others.shape[1], dtype=torch.bool, device=output.device)
    absent[:, count:] = short[:, None]
    return torch.cat([target, others], 1), absent


def forward(model: Module, input: Tensor) -> tuple[Tensor, Tensor]:
    '''A copy of the input that requires a gradient, and the logits as a function of it.

    Raises
    ------
    ValueError
        If the output is not of shape (batch, classes), with two classes or more.
    RuntimeError
        If the model is in training mode.
    '''
    require_evaluation(model)
    input = input.detach().requires_grad_()
    with torch.enable_grad():
        output = require_scores(model(input.clone()))
    if output.shape[1] < 2:
        raise ValueError('the loss of the only class is zero, whatever the input: a model with two classes is needed')
    return input, output


def loss_of(
    maps: Any, output: Tensor, own: Tensor, chosen: Chosen = None
) -> CrossEntropy:
    '''The loss of a forward pass.

    Parameters
    ----------
    maps : :py:class:`ClassGradients` or callable
        The gradients of all classes; or, for chosen ones, a function of indices of shape (batch,) that returns the maps
        of these classes, of shape (batch, ...).
    output : :py:class:`torch.Tensor`
        The logits of shape (batch, classes).
    own : :py:class:`torch.Tensor`
        Ones for the class and zeros for all others, in the same shape.
    chosen : tuple of :py:class:`torch.Tensor`, optional
        What :py:func:`likeliest` returns. Default is all classes, whose gradients are not held.

    Returns
    -------
    :py:class:`CrossEntropy`
        The loss, divided by 1 − p_y.
    '''
    if chosen is None:
        return CrossEntropy(output, own, maps)
    indices, absent = chosen
    rows = ClassMaps(torch.stack([maps(each).double() for each in indices.unbind(1)], 1))
    return CrossEntropy(output.gather(1, indices).masked_fill(absent, -torch.inf), own.gather(1, indices), rows)


def cross_entropy(model: Module, input: Tensor, target: Target = None, classes: int | None = None) -> CrossEntropy:
    '''The cross-entropy of a class as a function of the input.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model, in evaluation mode, from inputs of shape (batch, ...) to logits of shape (batch, classes). Where it
        is not linear around the input, the Hessian is the Gauss–Newton matrix.
    input : :py:class:`torch.Tensor`
        The input of shape (batch, ...).
    target : int or :py:class:`torch.Tensor`, optional
        The class, or one for each input. Default is the predicted class.
    classes : int, optional
        The number of likeliest classes to which the logits are restricted, apart from the class itself, two at least.
        Their gradients are held. Default is all classes, whose gradients are not.

    Returns
    -------
    :py:class:`CrossEntropy`
        The loss, divided by 1 − p_y.

    Raises
    ------
    ValueError
        If there is no such class, or only one.
    RuntimeError
        If the model is in training mode.
    '''
    input, output = forward(model, input)
    own, gradients = class_relevance(target)(output), ClassGradients(input, output)
    if classes is None:
        return loss_of(gradients, output, own)
    return loss_of(gradients.of, output, own, likeliest(output, own, require_classes(classes)))


def require_classes(classes: int) -> int:
    '''Return a number of classes if it is two or more, else raise a ValueError.'''
    if not isinstance(classes, int) or classes < 2:
        raise ValueError(f'classes must be two or more, not {classes!r}: a class has a loss by its competitors alone')
    return classes


def hessian(model: Module, input: Tensor, target: Target = None, classes: int | None = None) -> Tensor:
    '''The Hessian of the cross-entropy with respect to the input, for small inputs (equation 6).

    Parameters
    ----------
    model, input, target, classes
        See :py:func:`cross_entropy`.

    Returns
    -------
    :py:class:`torch.Tensor`
        The Hessians of shape (batch, entries, entries), in double precision.

    Raises
    ------
    ValueError, RuntimeError
        See :py:func:`cross_entropy`.
    '''
    input, output = forward(model, input)
    own, count = class_relevance(target)(output), output.shape[1] if classes is None else require_classes(classes)
    loss = loss_of(ClassGradients(input, output).of, output, own, likeliest(output, own, count))
    pairs = loss.competitors[:, :, None] * loss.competitors[:, None]
    pairs.diagonal(dim1=1, dim2=2).zero_()
    spread = torch.diag_embed(pairs.sum(2)) - pairs  # where 1 − q would be nothing but rounding
    spread += loss.probability[:, :, None] * loss.difference[:, :, None] * loss.difference[:, None]
    rows = loss.maps.rows.flatten(2)
    return loss.log_scale.exp()[:, None, None] * (rows.mT @ spread @ rows)
