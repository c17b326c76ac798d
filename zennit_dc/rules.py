'''Rules: what a layer does to the sensitivities or to the relevance of a split pair. A rule is a Zennit hook that a
composite maps to a module, and holds for all operations that run inside of this module.'''
import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from zennit.core import Hook, RemovableHandle, RemovableHandleList

from .core.axes import by_sample, in_shape
from .core.errors import describe
from .core.graphs import same
from .core.pair import SplitTensor, TrueGradient, pass_of


class Ruled(torch.autograd.Function):
    '''A pair's tensors as they are. In a backward pass that makes a map, their gradients become what a function of
    these gradients and of some values makes of them; in any other, they pass.'''
    @staticmethod
    def forward(
        ctx: Any, split_pass: Any, function: Callable, difference: Tensor, stream_sum: Tensor, *values: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.split_pass, ctx.function = split_pass, function
        ctx.like = [(tensor.shape, tensor.dtype) for tensor in (difference, stream_sum)]
        ctx.save_for_backward(*values)
        return same(difference), same(stream_sum)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple:
        values = ctx.saved_tensors
        known = next((gradient for gradient in gradients if gradient is not None), None)
        if known is not None and ctx.split_pass.makes_map():
            filled = (known.new_zeros(shape, dtype=dtype) if gradient is None else gradient
                      for gradient, (shape, dtype) in zip(gradients, ctx.like))
            gradients = changed = ctx.function(*filled, *values)
            if changed[1].shape != ctx.like[1][0]:
                raise RuntimeError('a rule has changed the shape of a sum\'s gradient: let its function keep it')
        return None, None, *gradients, *(None,) * len(values)


def ruled(pair: SplitTensor, function: Callable, *values: Tensor) -> SplitTensor:
    '''A pair whose gradients a rule changes.

    Parameters
    ----------
    pair : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The pair.
    function : callable
        A function ``(gradient, sum_gradient, *values) -> (gradient, sum_gradient)`` of the gradients of the difference
        and the sum.
    *values : :py:class:`torch.Tensor`
        Tensors that are kept for the function.

    Returns
    -------
    :py:class:`~zennit_dc.core.pair.SplitTensor`
        The pair with the same values.
    '''
    return pair.replaced(*Ruled.apply(pair.split_pass, function, *pair.tensors, *values))


class SplitRule(Hook, TrueGradient):
    '''Base class of the rules for split pairs.

    While the module runs that it is registered to, operations on pairs ask this rule instead of the composite's
    default what to place before and after them. No state is kept between forward and backward. The rules of a composite
    hold for its own model alone, of which another model may share modules. A model that is not in split form has no
    pairs, so that no rule changes its gradients: map rules in a composite that has a
    :py:class:`~zennit_dc.SplitCanonizer`, or is mixed with one that has.

    A rule of one's own sets ``quantity``, and overrides those of ``before_affine``, ``before_linear``, ``after``,
    ``shared`` and ``output_damping`` that are not to leave gradients as they are, see
    :py:class:`~zennit_dc.core.pair.TrueGradient`. Each takes a pair and returns one, best by :py:func:`ruled`.

    Attributes
    ----------
    quantity : {'sensitivity', 'relevance'}
        What the gradients of pairs stand for: the former in SplitGrad and SplitCAM, the latter in SplitLRP. A rule in a
        composite for the other one raises a TypeError in the model's forward.
    '''
    quantity: Any  # the name of what the gradients stand for
    root: Module | None = None  # the model for which this rule holds, or None if it does for all

    def pre_forward(self, module: Module, args: tuple, kwargs: dict) -> None:
        '''Hold from here on for the operations on the pairs of this forward pass.'''
        split_pass = self.pass_of_model((args, kwargs))
        if split_pass is not None:
            default = split_pass.rules[0].quantity or 'neither sensitivity nor relevance'
            if self.quantity != default:
                where = f'{describe(module, split_pass.root)} runs in a composite for {default}'
                own = f'is a rule for {self.quantity}' if self.quantity else 'has no quantity'
                raise TypeError(f'{type(self).__name__} {own}, but {where}')
            split_pass.rules.append(self)

    def post_forward(self, module: Module, args: tuple, kwargs: dict, output: Any) -> None:
        '''Hold no longer.'''
        split_pass = self.pass_of_model((args, kwargs))
        if split_pass is not None and len(split_pass.rules) > 1:
            split_pass.rules.pop()

    def pass_of_model(self, arguments: Any) -> Any:
        '''The pass to which the pairs in arguments belong, if it is one of a model for which this rule holds.'''
        split_pass = pass_of(arguments)
        holds = split_pass is not None and (self.root is None or split_pass.settings.root in (None, self.root))
        return split_pass if holds else None

    def register(self, module: Module) -> RemovableHandleList:
        '''Register this rule to a module.

        Parameters
        ----------
        module : :py:class:`torch.nn.Module`
            The module for whose operations the rule shall hold.

        Returns
        -------
        :py:class:`zennit.core.RemovableHandleList`
            Handles to remove it again.
        '''
        return RemovableHandleList([
            RemovableHandle(self), module.register_forward_pre_hook(self.pre_forward, with_kwargs=True),
            module.register_forward_hook(self.post_forward, with_kwargs=True, always_call=True),
        ])

    def copy(self) -> 'SplitRule':
        '''Return a copy of this rule.'''
        return copy.copy(self)


def require_split_rule(rule: Any, where: Callable[[], str]) -> None:
    '''Raise if an object is a Zennit hook but no rule for split pairs, or a class of hooks.'''
    if isinstance(rule, type) and issubclass(rule, Hook):
        raise TypeError(f'{rule.__name__} of {where()} is a class: pass a rule, as in {rule.__name__}()')
    if isinstance(rule, Hook) and not isinstance(rule, SplitRule):
        name = type(rule).__name__
        raise TypeError(f'{name} of {where()} is not a rule for split pairs: use one of zennit_dc.rules')


def rules_of(root: Module | None, modules: Iterable[Module]) -> list[SplitRule]:
    '''The rules that are registered to modules and hold for a model, for each module the last one first.'''
    hooks = (hook for module in modules for hook in reversed(module._forward_pre_hooks.values()))
    owners = (getattr(hook, '__self__', None) for hook in hooks)
    return [owner for owner in owners if isinstance(owner, SplitRule) and owner.root in (None, root)]


@dataclass(eq=False)
class ShiftedSensitivity(SplitRule):
    '''Backward stabilisation of the sensitivities: the shift by alpha (equations 36 to 41), which multiplies the
    gradient of the sum at the input of each affine layer by :math:`1 - 2 \\alpha`.

    Parameters
    ----------
    alpha : float
        The shift, in [0, 0.5]: 0 for the true gradient of the split network, 0.5 for half of the original one.

    Raises
    ------
    ValueError
        If alpha is not in [0, 0.5].
    '''
    alpha: float
    quantity = 'sensitivity'

    def __post_init__(self) -> None:
        super().__init__()
        if not is_number(self.alpha) or not 0. <= self.alpha <= .5:
            raise ValueError(f'alpha must be a number in [0, 0.5], not {self.alpha!r}')

    def output_damping(self, depth: int | None) -> float:
        '''The factor of the sum's gradient, at the output and at each affine layer.'''
        return 1. - 2. * self.alpha

    def before_affine(self, pair: SplitTensor) -> SplitTensor:
        '''Shift the local sensitivities of the layer's input, if anything is made of those.'''
        if not pair.tensors[1].requires_grad:
            return pair
        damping = self.output_damping(None)
        return ruled(pair, lambda gradient, sum_gradient: (gradient, sum_gradient * damping))


@dataclass(frozen=True)
class Balanced:
    '''In place of a fixed shift alpha: scale the sum's gradient, image by image and at the input of every affine layer,
    to a part of the difference's.

    How much a fixed alpha leaves of the sum's gradient depends on the weights, and grows or vanishes exponentially with
    the depth of the network above the layer; what it adds to the difference's gradient at each activation is the part
    of the map that is the same for all classes. With this, the mean absolute value of the sum's gradient is
    :math:`\\kappa / n` times the difference's, for n activations one after the other between the layer (or the
    input) and the output, so that all of them together add about as much in a deep network as in a shallow one. Of
    several outputs those count that the sample explains; activations that do not lead there do not. A ReLU of what
    a ReLU has rectified already, or of entries that were moved since, changes nothing and is not counted. Maxima of
    tensors or over axes (Maxout) are activations; max-pooling is none, and neither is what
    :py:class:`~zennit_dc.DetachedActivations` makes linear. Where a model's samples go through different numbers of
    activations, as at early exits, the largest in the batch counts: call such a model on one sample at a time. For
    :math:`\\kappa = 0` the map equals the map for :math:`\\alpha = 0.5`.

    Parameters
    ----------
    kappa : float, optional
        The part for all activations together, not negative.

    Raises
    ------
    ValueError
        If kappa is negative or not finite.
    '''
    kappa: float = 0.1

    def __post_init__(self) -> None:
        if not is_number(self.kappa) or not 0. <= self.kappa < math.inf:
            raise ValueError(f'kappa must be a number that is not negative, not {self.kappa!r}')


@dataclass(eq=False)
class BalancedSensitivity(SplitRule):
    '''The rule for :py:class:`Balanced`.

    Parameters
    ----------
    kappa : float
        The mean absolute value of the sum's gradient, as a part of the difference's, for all activations together.
    '''
    kappa: float
    quantity = 'sensitivity'

    def __post_init__(self) -> None:
        super().__init__()

    def output_damping(self, depth: Tensor | int) -> Tensor | float:
        '''The part of the sum's gradient, at the output and at each affine layer.'''
        return self.kappa / depth

    def before_affine(self, pair: SplitTensor) -> SplitTensor:
        '''Balance the gradients of the layer's input, sample by sample; entry by entry where the samples have no axis
        of their own.'''
        if not pair.tensors[1].requires_grad:
            return pair
        split_pass, batch = pair.split_pass, pair.axes.batch

        def balance(gradient: Tensor, sum_gradient: Tensor) -> tuple[Tensor, Tensor]:
            rows = by_sample(sum_gradient, batch)
            present, other = mean_size(rows), mean_size(by_sample(gradient.to(rows.dtype), batch))
            # zero times a mean that overflows is not a number, so that this does not pass unnoticed
            target = torch.add(self.output_damping(split_pass.explained_depth(rows, batch)) * other, present, alpha=0.)
            rows = rows * (target / (present.clamp(min=torch.finfo(rows.dtype).tiny) + (present == 0.)))
            return gradient, in_shape(rows, batch, gradient.shape)

        return ruled(pair, balance)


@dataclass(eq=False)
class SplitEpsilon(SplitRule):
    '''The epsilon rule (equation 9 with :math:`\\gamma = 0`) on both streams.

    The gradients of the difference and of the sum stand for the relevances :math:`R^+` and :math:`R^-`. After a
    layer they are divided by its outputs, the layer's own transpose brings them to its input, and before the layer they
    are multiplied by its inputs. Activations pass relevance on, max-pooling gives it to the winner, additions share it
    evenly among the summands, and a batch norm is part of the affine layer that it follows. What is added at indices
    shares it with what was there if that is not zero.

    Parameters
    ----------
    epsilon : float or callable
        The stabilizer: a positive number, which is added to the denominator with its sign, or a function that
        stabilizes a denominator, see :py:class:`zennit.core.Stabilizer`.

    Raises
    ------
    ValueError
        If epsilon is neither a positive number nor callable.
    '''
    epsilon: float | Callable[[Tensor], Tensor] = 1e-6
    quantity, passes_activations = 'relevance', True

    def __post_init__(self) -> None:
        super().__init__()
        if not callable(self.epsilon) and not (is_number(self.epsilon) and 0. < self.epsilon < math.inf):
            raise ValueError(f'epsilon must be a positive number or a callable, not {self.epsilon!r}')

    def before_affine(self, pair: SplitTensor) -> SplitTensor:
        '''Multiply by the inputs.'''
        return ruled(pair, times_input, *pair.tensors)

    before_linear = before_affine

    def after(self, pair: SplitTensor) -> SplitTensor:
        '''Divide by the outputs.'''
        epsilon = self.epsilon
        divide = partial(over_stabilized, epsilon) if callable(epsilon) else partial(over_epsilon, epsilon)
        return ruled(pair, partial(over_output, divide, pair.split_pass), *pair.tensors)

    def shared(self, pair: SplitTensor, count: int | Tensor) -> SplitTensor:
        '''Share relevance evenly among a number of pairs, or a number for each entry.'''
        def share(positive: Tensor, negative: Tensor, count: int | Tensor = count) -> tuple[Tensor, Tensor]:
            return positive / count, negative / count

        return ruled(pair, share, *([count] if isinstance(count, Tensor) else []))


SMALL = 2. ** -6  # the part of the sum of which a stream has enough bits


def is_number(value: Any) -> bool:
    '''Whether a value is a real number.'''
    return isinstance(value, Real) and not isinstance(value, bool)


def mean_size(rows: Tensor) -> Tensor:
    '''The mean absolute value of each sample.'''
    return rows.abs().mean([*range(1, rows.ndim)], keepdim=True) if rows.ndim > 1 else rows.abs()


def times_input(
    gradient: Tensor, sum_gradient: Tensor, difference: Tensor, stream_sum: Tensor
) -> tuple[Tensor, Tensor]:
    '''The relevances of a layer's input: :math:`R^\\pm = a^\\pm c^\\pm` (equation 9).'''
    positive = quarter_product(stream_sum + difference, sum_gradient + gradient)  # of twice the factors
    negative = quarter_product(stream_sum - difference, sum_gradient - gradient)
    return positive.to(difference.dtype), negative


def quarter_product(buffer: Tensor, other: Tensor) -> Tensor:
    '''A quarter of the product of two tensors, in the memory of the first one if there is no graph that needs it.'''
    out = None if torch.is_grad_enabled() else buffer
    return torch.addcmul(buffer.new_zeros(()), buffer, other, value=.25, out=out)


def over_output(
    divide: Callable, split_pass: Any, positive: Tensor, negative: Tensor, difference: Tensor, stream_sum: Tensor
) -> tuple[Tensor, Tensor]:
    '''The relevances of a layer's output over this output, :math:`u^\\pm = R^\\pm / (z^\\pm + \\varepsilon \\,
    \\mathrm{sign} z^\\pm)` (equation 9), as gradients of its difference and sum, :math:`(u^+ - u^-, u^+ + u^-)`. Zero
    where the output is, as all that it is made of is zero, too; but for rounding in a dtype below float32.'''
    streams = [stream_sum + difference, stream_sum - difference]  # twice
    if difference.dtype.itemsize < 4:  # else a map is computed again where rounding changes it
        rounding = stream_sum * (2. * torch.finfo(difference.dtype).eps)
        streams = [stream.masked_fill(stream.abs() <= rounding, 0.) for stream in streams]
    positive, negative = map(divide, (positive, negative), streams)
    quotient = (positive - negative).to(difference.dtype)
    if quotient.dtype == torch.float32 and quotient.numel():
        split_pass.note_loss(partial(loss, quotient, difference, stream_sum))
    return quotient, positive.add_(negative)


def over_epsilon(epsilon: float, relevance: Tensor, twice: Tensor) -> Tensor:
    '''Relevance over a stream plus epsilon with its sign, for twice the stream; without a mask, which is slow.'''
    return twice.sign().mul_(relevance).div_(torch.rsub(twice.abs(), epsilon, alpha=-.5))


def over_stabilized(stabilize: Callable, relevance: Tensor, twice: Tensor) -> Tensor:
    '''Relevance over a stream that a function stabilizes, for twice the stream.'''
    return relevance / stabilize(.5 * twice).masked_fill(twice == 0., math.inf)


@torch.no_grad()
def loss(quotient: Tensor, difference: Tensor, stream_sum: Tensor) -> Tensor:
    '''The largest error of a layer's relevance: a stream has the rounding of the sum, by which relevance is multiplied
    as it is divided by a stream. Only that counts which is less than a part of the sum.'''
    excess = difference.abs().sub_(stream_sum, alpha=1. - 2. * SMALL).relu_().mul_(quotient).abs_()
    return excess.amax() * (torch.finfo(difference.dtype).eps / (2. * SMALL))
