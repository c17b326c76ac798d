'''The importance of groups of features, by the loss and its curvature: CAFO, CASO and their smooth versions [1]_.

The importance of an image's entries is |Δ| for the Δ that maximises gᵀΔ + ΔᵀHΔ/2 − λ1 |Δ|₁ − λ2 |Δ|₂², with the
loss's gradient g and Hessian H (CASO, definition 3), or zero for H (CAFO, definition 2), or both as means over noisy
copies of the image (definition 4). All is computed for g, H, λ1 and λ2 divided by s = 1 − p_y, which have the same Δ,
and which do not vanish where the network is certain.

References
----------
.. [1] S. Singla, E. Wallace, S. Feng, and S. Feizi: "Understanding Impacts of High-Order Loss Approximations and
       Features in Deep Learning Interpretation," International Conference on Machine Learning, 2019.
'''
import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor
from torch.nn import Module, functional as F
from tqdm import tqdm
from zennit.attribution import Attributor
from zennit.core import Composite

from .loss import Chosen, ClassGradients, CrossEntropy, MeanCrossEntropy, forward, likeliest, loss_of, require_classes
from .maximum import PATIENCE, Solution, Sparsity, first_order, second_order


class CAFO(Attributor):
    '''Group features by the loss's gradient (definition 2): the gradient, softly thresholded.

    A call returns the model's output and |Δ| in the input's shape; and leaves how it was found in ``solution``.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model, in evaluation mode, to logits of shape (batch, classes).
    composite : :py:class:`zennit.core.Composite`, optional
        Rules whose maps of single classes take the place of the classes' gradients.
    attr_output : :py:class:`torch.Tensor` or callable, optional
        The default relevance of the output: one for the class whose loss is explained, and zero for all others.
    penalty : :py:class:`~.maximum.Sparsity` or float, optional
        The penalty λ1, by the share of pixels without importance, or as a number in units of the loss's gradient.
    classes : int, optional
        The number of likeliest classes to which the logits are restricted, two at least; the explained class is always
        among them. Default is all, exactly; and 10 with a composite.
    signed : bool, optional
        Whether the attribution is Δ, whose sign is that of more loss: opposite to that of the class's gradient.

    Attributes
    ----------
    solution : :py:class:`~.maximum.Solution`
        How the last maps were found.

    Raises
    ------
    ValueError
        If a parameter is not in its range; or in a call, if the relevance is not one for one class, or the logits have
        another shape.
    RuntimeError
        In a call, if the model is in training mode.
    FloatingPointError
        In a call, if the map is not finite.
    '''
    needs_hessian = False

    def __init__(
        self, model: Module, composite: Composite | None = None, attr_output: Tensor | Callable | None = None,
        penalty: Sparsity | float | None = None, classes: int | None = None, signed: bool = False
    ):
        super().__init__(model, composite, attr_output)
        self.penalty = Sparsity() if penalty is None else penalty
        is_number = isinstance(self.penalty, Real) and 0. <= float(self.penalty) < math.inf
        if not isinstance(self.penalty, Sparsity) and not is_number:
            raise ValueError(f'penalty must be a Sparsity or a number of zero or more, not {penalty!r}')
        self.classes = 10 if classes is None and composite is not None else classes
        if self.classes is not None:
            require_classes(self.classes)
        self.signed = signed
        self.solution: Solution | None = None
        self.is_checked = False

    def noisy(self, input: Tensor) -> Sequence[Tensor]:
        '''The noisy copies of the input over which the loss is averaged, too.'''
        return ()

    def solve(self, loss: MeanCrossEntropy) -> tuple[Tensor, Solution]:
        '''The Δ of a loss, and how it was found.'''
        return first_order(loss, self.penalty)

    def forward(self, input: Tensor, attr_output_fn: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        '''The output and the attribution, see :py:meth:`zennit.attribution.Attributor.forward`.'''
        leaf, output = forward(self.model, input)
        own = require_one_class(attr_output_fn(output.detach()).detach(), output)
        chosen = None if self.classes is None else likeliest(output.detach(), own, self.classes)
        self.report_curved(leaf, output)
        copies = tqdm(self.noisy(input.detach()), desc='copies', disable=None, leave=False, delay=PATIENCE)
        losses = [self.loss(*forward(self.model, copy), own, chosen) for copy in copies]
        delta, self.solution = self.solve(MeanCrossEntropy([*losses, self.loss(leaf, output, own, chosen)]))
        attribution = (delta if self.signed else delta.abs()).to(input.dtype)
        if not attribution.isfinite().all():
            raise FloatingPointError(
                f'the map is not finite in {input.dtype}: the model\'s gradients are not, or the class is so unlikely'
                ' that its loss has next to no curvature; try float64, or CAFO in place of CASO'
            )
        return output.detach(), attribution

    def report_curved(self, leaf: Tensor, output: Tensor) -> None:
        '''Warn, once, if the Hessian is that of a network that is not piecewise linear.'''
        if self.needs_hessian and self.composite is None and not self.is_checked:
            self.is_checked = True
            if ClassGradients(leaf, output).is_curved:
                warnings.warn('the model is not piecewise linear: the Gauss–Newton matrix takes the place of the'
                              ' Hessian', stacklevel=4)

    def loss(self, leaf: Tensor, output: Tensor, own: Tensor, chosen: Chosen) -> CrossEntropy:
        '''The loss of a forward pass.'''
        if self.composite is None:
            gradients = ClassGradients(leaf, output)
            return loss_of(gradients if chosen is None else gradients.of, output, own, chosen)
        return loss_of(lambda indices: self.class_map(leaf, indices), output.detach(), own, chosen)

    def class_map(self, input: Tensor, indices: Tensor) -> Tensor:
        '''The composite's map of one class for each image; it may not be linear in the relevance of several.'''
        leaf, output = forward(self.model, input)  # as a composite's graph may serve once
        return torch.autograd.grad(output, leaf, F.one_hot(indices, output.shape[1]).to(output))[0].detach()


class CASO(CAFO):
    '''Group features by the loss's gradient and Hessian (definition 3).

    Of networks that are not piecewise linear, the Gauss–Newton matrix takes the place of the Hessian, and a warning
    says so. With a composite it is the covariance of the classes' maps.

    Parameters
    ----------
    model, composite, attr_output, penalty, classes, signed
        See :py:class:`CAFO`.
    margin, offset : float, optional
        The penalty λ2 is (1 + margin) L/2 + offset for the Hessian's largest eigenvalue L. The article has an offset of
        10 and no margin, for a model that takes pixels in [0, 1].
    tolerance : float, optional
        The error of Δ, relative to its length, at which an image is finished.
    steps : int, optional
        The largest number of steps. A warning says so if they were not enough.
    krylov : int, optional
        The number of products with the Hessian by which L is computed.

    Raises
    ------
    ValueError
        As :py:class:`CAFO` does; or in a call, if λ2 is not larger than L/2, as for an image that the loss does not
        depend on.
    RuntimeError, FloatingPointError
        See :py:class:`CAFO`.
    '''
    needs_hessian = True

    def __init__(
        self, model: Module, composite: Composite | None = None, attr_output: Tensor | Callable | None = None,
        penalty: Sparsity | float | None = None, classes: int | None = None, signed: bool = False, margin: float = .1,
        offset: float = 0., tolerance: float = 1e-3, steps: int = 300, krylov: int = 10
    ):
        super().__init__(model, composite, attr_output, penalty, classes, signed)
        if not (0. <= margin < math.inf and 0. <= offset < math.inf and margin + offset > 0.):
            raise ValueError(
                'λ2 must be larger than L/2: margin and offset must be zero or more, and one of them larger, not'
                f' {margin} and {offset}'
            )
        if not tolerance > 0. or steps < 1 or krylov < 1:
            raise ValueError(
                f'tolerance, steps and krylov must be larger than zero, not {tolerance}, {steps} and {krylov}'
            )
        self.margin, self.offset, self.tolerance = margin, offset, tolerance
        self.steps, self.krylov = steps, krylov

    def solve(self, loss: MeanCrossEntropy) -> tuple[Tensor, Solution]:
        '''The Δ of a loss, and how it was found.'''
        return second_order(
            loss, self.penalty, self.margin, self.offset, self.tolerance, self.steps, self.krylov
        )


class Smooth:
    '''What makes a group feature smooth: noisy copies of the input (definition 4).

    Parameters
    ----------
    noise_level : float, optional
        The standard deviation of the noise, as a share of the range of the image's values.
    n_iter : int, optional
        The number of copies, the last of which has no noise, as in Zennit's SmoothGrad.
    '''
    def set_noise(self, noise_level: float, n_iter: int) -> None:
        '''Set the parameters.'''
        if not 0. <= noise_level < math.inf or n_iter < 1:
            raise ValueError(
                f'noise_level must be zero or more, and n_iter one or more, not {noise_level} and {n_iter}'
            )
        self.noise_level, self.n_iter = noise_level, n_iter

    def noisy(self, input: Tensor) -> Sequence[Tensor]:
        '''The noisy copies of the input, by PyTorch's generator.'''
        axes = tuple(range(1, input.ndim))
        deviation = self.noise_level * (input.amax(axes, keepdim=True) - input.amin(axes, keepdim=True))
        return [input + torch.randn_like(input) * deviation for _ in range(self.n_iter - 1)]


class SmoothCAFO(Smooth, CAFO):
    '''Group features by the mean of the loss's gradient over noisy copies of the input, all of the input's own class.

    A copy has the weight of its loss's 1 − p_y: what the noise makes the network misclassify weighs most.

    Parameters
    ----------
    model, composite, attr_output, penalty, classes, signed
        See :py:class:`CAFO`.
    noise_level, n_iter
        See :py:class:`Smooth`.

    Raises
    ------
    ValueError, RuntimeError, FloatingPointError
        See :py:class:`CAFO`.
    '''
    def __init__(
        self, model: torch.nn.Module, composite: Composite | None = None,
        attr_output: torch.Tensor | Callable | None = None, penalty: Sparsity | float | None = None,
        classes: int | None = None, signed: bool = False,
        *, noise_level: float = .15, n_iter: int = 20
    ):
        super().__init__(model, composite, attr_output, penalty, classes, signed)
        self.set_noise(noise_level, n_iter)


class SmoothCASO(Smooth, CASO):
    '''Group features by the means of the loss's gradient and Hessian over noisy copies, see :py:class:`SmoothCAFO`.

    Without a number of classes or a composite, each copy holds its graph, so that memory grows with ``n_iter``.

    Parameters
    ----------
    model, composite, attr_output, penalty, classes, signed, margin, offset, tolerance, steps, krylov
        See :py:class:`CASO`.
    noise_level, n_iter
        See :py:class:`Smooth`.

    Raises
    ------
    ValueError, RuntimeError, FloatingPointError
        See :py:class:`CASO`.
    '''
    def __init__(
        self, model: torch.nn.Module, composite: Composite | None = None,
        attr_output: torch.Tensor | Callable | None = None, penalty: Sparsity | float | None = None,
        classes: int | None = None, signed: bool = False, margin: float = .1, offset: float = 0.,
        tolerance: float = 1e-3, steps: int = 300, krylov: int = 10,
        *, noise_level: float = .15, n_iter: int = 20
    ):
        super().__init__(
            model, composite, attr_output, penalty, classes, signed, margin, offset, tolerance, steps, krylov
        )
        self.set_noise(noise_level, n_iter)


def require_one_class(relevance: Tensor, output: Tensor) -> Tensor:
    '''Return the relevance if it has the output's shape and is one for one class of each image, else raise a
    ValueError.'''
    if relevance.shape != output.shape:
        raise ValueError(
            f'the relevance of the output must have the output\'s shape, {tuple(output.shape)}, not'
            f' {tuple(relevance.shape)}'
        )
    ones = relevance == 1
    if not (ones.sum(1) == 1).all() or (relevance != ones).any():
        raise ValueError(
            'the relevance of the output must be one for the class whose loss is explained, and zero for all others:'
            ' give class_relevance(target); the loss is a contrast to the likely classes by itself'
        )
    return relevance


def shown(attribution: Tensor, percentile: float = 99.) -> Tensor:
    '''Maps as they are shown (appendix D): absolute values, summed over channels and capped.

    Parameters
    ----------
    attribution : :py:class:`torch.Tensor`
        The attribution of shape (batch, channels, height, width).
    percentile : float, optional
        The percentile of what is not zero at which each map is capped, from 0 to 100.

    Returns
    -------
    :py:class:`torch.Tensor`
        The maps of shape (batch, height, width), in [0, 1].

    Raises
    ------
    ValueError
        If the percentile is not in this range.
    '''
    if not 0. <= percentile <= 100.:
        raise ValueError(f'percentile must be from 0 to 100, not {percentile}')
    maps = attribution.detach().double().abs().sum(1)
    for each in maps:
        values = each[each > 0.]
        if values.numel():
            cap = values.sort().values[min(math.ceil(percentile / 100. * len(values)), len(values)) - 1]
            each.clamp_(max=cap).div_(cap)
    return maps.to(attribution.dtype)
