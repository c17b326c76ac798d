'''Composites: SplitLRP, SplitGrad and SplitCAM.'''
from collections.abc import Callable, Mapping
from functools import wraps
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from zennit.attribution import Attributor, Gradient
from zennit.canonizers import AttributeCanonizer, Canonizer
from zennit.composites import LayerMapComposite, register_composite
from zennit.types import BatchNorm, Linear

from .canonizers import SplitCanonizer
from .core.tokens import are_tokens, token_weights
from .core.wording import require_choice
from .recentering import Relative
from .rules import Balanced, BalancedSensitivity, ShiftedSensitivity, SplitEpsilon, SplitRule, require_split_rule
from .streams import ActivatedSensitivity, Readout, Relevance, Sensitivity


LayerMap = list[tuple[tuple[type[Module], ...], SplitRule]]
Alpha = float | Balanced | Mapping | Callable


class SplitComposite(LayerMapComposite):
    '''Base class of the composites for models in split form, and what they have in common.

    The gradient of the model's output is the map at the input, in the input's shape; or, for a layer, the map at the
    output of the named module, reduced over channels: ``saliency`` holds it at the layer's resolution, and the gradient
    is its bilinear upsampling, divided evenly among the input's channels. The layer's output has spatial axes, or is
    one of tokens, as in transformers; those that are no places (class token and registers) are left out. The axes of
    the input are followed to the layer, in whichever order they are: time before features, views or frames in the batch
    axis, axes that the model adds, and parts that it cuts out of its input.

    Of a model of token numbers, as of texts, the map is read at their embedding or a layer after it, and the gradient
    is of shape (batch, tokens).

    A layer is a feature map. If the module's output goes straight into an activation, and nowhere else, the map is read
    after the activation, whether that is a module or a function. Before it, units that do not fire have negative values
    and sensitivities that are not zero. In any other case the map is read at the output itself. Where a module's output
    turns out to be used again after its activation, the model is run once more from the start.

    Within ``composite.inactive()``, as in Zennit, rules do not hold: the model runs as it is, and backward passes have
    its true gradient. So has the backward pass of an output from before. What is computed within it has no map
    afterwards. The gradient of a map is its true one without it, too.

    Samples are along the first axis of the input. Where time comes first, as recurrent layers and attention have it by
    default, they are along the second one: that is noticed at such a layer, or where the model's output has no samples
    of the first axis left, but may have those of the second one. The model is run once more from the start then, the
    first time that it is called. A model that leaves both axes as they are, (time, batch, features) to (time, batch,
    classes), without such a layer, does not tell: transpose its input and output.

    Parameters
    ----------
    readout : :py:class:`zennit_dc.streams.Readout`
        What enters at the output, and the map it makes. The composites choose it.
    rule : :py:class:`zennit_dc.rules.SplitRule`
        The rule for affine layers, and for all operations outside of them. The composites choose it.
    layer : str, optional
        The name of the module at whose output the map is read. Default is the model's input.
    pooling : {'wta', 'convex'}, optional
        The form of max-pooling: the winner takes all, or convex streams (section 3.4).
    input_split : {'relu', 'half'}, optional
        How the input is split: :math:`x^\\pm = \\max(\\pm x, 0)` or :math:`\\pm x / 2` (appendix F).
    recentering : callable or None, optional
        The forward stabilisation. The default, :py:class:`~zennit_dc.Relative`, keeps what both streams have in common
        in proportion to the activations. The paper has :py:class:`~zennit_dc.Scaling`, whose threshold in absolute
        units is too large for networks with batch norms, or :py:class:`~zennit_dc.Shifting`. None leaves it out.
    layer_map : list[tuple[tuple[torch.nn.Module, ...], SplitRule]], optional
        A mapping from module types to rules, which is prepended to that of the composite.
    canonizers : 'auto' or list[:py:class:`zennit.canonizers.Canonizer`] or None, optional
        The canonizers to be applied before the model is split. With ``'auto'``, the default, these are the ones for
        attention and normalizations, and for smooth activations, if the model has any, see
        :py:class:`~zennit_dc.DetachedStatistics` and :py:class:`~zennit_dc.DetachedActivations`. Neither changes the
        output, and a warning lists them; how often the model is run for that,
        :py:class:`~zennit_dc.SplitCanonizer` says. With a list, or with None for no canonizers, a function that needs
        one raises an error that names it. Batch norms need none: each is part of the affine layer that it follows, in
        the order of execution.
    grid : tuple of int, optional
        The height and width of the grid of tokens at the layer, where they cannot be found from the input's.
    channels : int or (), optional
        The index of the axis of channels of the input in whose shape a layer's map is, such as 1 for (batch, channels,
        height, width), and -1 for (batch, time, features); () if it has none, as raw audio of shape (batch, time). All
        other axes but the first are places. By default, this is the axis that the first layer with weights sums over,
        and an error asks for it where that does not tell.

    Raises
    ------
    ValueError
        If a parameter is not one of its values.
    TypeError
        If a rule in ``layer_map`` is not one for split pairs.
    FloatingPointError
        In the backward pass, if the map is not finite.
    '''
    def __init__(
        self, readout: Readout, rule: SplitRule, layer: str | None = None,
        pooling: str = 'wta', input_split: str = 'relu',
        recentering: Callable | None = Relative(), layer_map: LayerMap | None = None,
        canonizers: list[Canonizer] | str | None = 'auto', grid: tuple[int, ...] | None = None,
        channels: int | tuple[()] | None = None,
    ):
        layer_map = list(layer_map or [])
        for types, hook in layer_map:
            require_split_rule(hook, f'the layer_map\'s entry for {types}'.format)
        automatic = canonizers == 'auto'
        own = [] if automatic or canonizers is None else canonizers
        if not isinstance(own, (list, tuple)) or not all(isinstance(each, Canonizer) for each in own):
            raise ValueError(f'canonizers must be \'auto\', a list of canonizers or None, not {canonizers!r}')
        self.readout = readout
        split = SplitCanonizer(readout, rule, layer, pooling, input_split, recentering, grid, automatic, channels)
        super().__init__([*layer_map, ((Linear, BatchNorm), rule)], [*own, split])

    @property
    def saliency(self) -> Tensor | None:
        '''The last map at the layer, of shape (batch, height, width) (and the like for other numbers of axes) at the
        layer's resolution, or None if there was none yet.'''
        return self.readout.saliency

    def register(self, module: Module) -> None:
        '''Bring a model into split form and register the rules, or leave it as it was if that fails.

        Parameters
        ----------
        module : :py:class:`torch.nn.Module`
            The model.

        Raises
        ------
        RuntimeError
            If this composite is in the context of a model already.
        '''
        if self.handles:
            name = type(self).__name__
            raise RuntimeError(f'this {name} is in a context already: leave that first, or make another composite')
        try:
            super().register(module)
        except BaseException:
            self.remove()
            raise
        for rule in self.hook_refs:
            rule.root = module
        self.hook_refs.update(each for each in self.handles if isinstance(each, SplitCanonizer))  # for inactive()


@register_composite('split_lrp')
class SplitLRP(SplitComposite):
    '''Layer-wise relevance propagation with the epsilon rule on both streams of the split network (section 4.2). At a
    layer, relevance is summed over channels.

    Parameters
    ----------
    epsilon : float or callable, optional
        The stabilizer of the epsilon rule (equation 9), see :py:class:`~zennit_dc.rules.SplitEpsilon`.
    stream : {'positive', 'negative', 'combined'}, optional
        :math:`R^+`, :math:`R^-` or :math:`R^+ - R^-` (equation 10). At the input of a network with
        ``input_split='relu'``, the sign of the combined relevance is the sign of the normalized pixel, and no vote for
        or against the class: take the positive stream there, as the command line does.
    layer, pooling, input_split, recentering, layer_map, canonizers, grid, channels
        See :py:class:`SplitComposite`. With ``pooling='convex'``, relevance goes to the winner all the same.
    '''
    def __init__(
        self, epsilon: float | Callable = 1e-6, stream: str = 'combined', layer: str | None = None,
        pooling: str = 'wta', input_split: str = 'relu',
        recentering: Callable | None = Relative(), layer_map: LayerMap | None = None,
        canonizers: list[Canonizer] | str | None = 'auto', grid: tuple[int, ...] | None = None,
        channels: int | tuple[()] | None = None,
    ):
        require_choice('stream', stream, Relevance.streams)
        super().__init__(
            Relevance(stream), SplitEpsilon(epsilon), layer, pooling, input_split, recentering, layer_map, canonizers,
            grid, channels
        )


class SensitivityComposite(SplitComposite):
    '''Base class of SplitGrad and SplitCAM, which differ in the readout.

    Parameters
    ----------
    readout : type
        The class of the readout.
    alpha : float, Balanced, mapping or callable
        The shift of the local sensitivities, see :py:class:`SplitGrad`.
    stream : str
        The stream.
    layer, pooling, input_split, recentering, layer_map, canonizers, grid, channels
        See :py:class:`SplitComposite`.
    '''
    def __init__(
        self, readout: type[Sensitivity], alpha: Alpha, stream: str, layer: str | None = None,
        pooling: str = 'wta', input_split: str = 'relu',
        recentering: Callable | None = Relative(), layer_map: LayerMap | None = None,
        canonizers: list[Canonizer] | str | None = 'auto', grid: tuple[int, ...] | None = None,
        channels: int | tuple[()] | None = None,
    ):
        require_choice('stream', stream, readout.streams)
        self.alpha = dict(alpha) if type(alpha) is dict else alpha
        super().__init__(
            readout(stream), sensitivity_rule(self.alpha_of('')), layer, pooling, input_split, recentering, layer_map,
            canonizers, grid, channels
        )
        self.canonizers.insert(-1, AttributeCanonizer(self.require_alpha))  # which sets no attribute

    def require_alpha(self, name: str, module: Module) -> None:
        '''Raise if alpha is missing for a module, or wrong; or, for the model itself, if it is given for a module that
        the model does not have.'''
        if name == '' and isinstance(self.alpha, Mapping):
            unknown = sorted(set(self.alpha) - {each for each, _ in module.named_modules(remove_duplicate=False)})
            if unknown:
                raise ValueError(f'alpha has values for modules that the model does not have: {unknown}')
        self.mapping({}, name, module)

    def alpha_of(self, name: str) -> float | Balanced:
        '''The shift for the module of a name.'''
        if isinstance(self.alpha, (str, type)):
            choices = 'a number in [0, 0.5], Balanced(), a mapping or a callable'
            raise ValueError(f'alpha must be {choices}, not {self.alpha!r}')
        if not isinstance(self.alpha, Mapping):
            return self.alpha(name) if callable(self.alpha) else self.alpha
        if name not in self.alpha:
            what = f'module {name!r}' if name else 'the output, under the name \'\' of the model itself'
            raise ValueError(f'alpha has no value for {what}')
        return self.alpha[name]

    def mapping(self, ctx: dict, name: str, module: Module) -> SplitRule | None:
        '''Get the rule of a module: the given one of its type, or that with the module's own alpha.

        Parameters
        ----------
        ctx : dict
            A context dictionary, unused.
        name : str
            Name of the module.
        module : :py:class:`torch.nn.Module`
            The module.

        Returns
        -------
        :py:class:`~zennit_dc.rules.SplitRule` or None
            The rule, or None if there is none for this module.
        '''
        if not (isinstance(self.alpha, Mapping) or callable(self.alpha)):
            return super().mapping(ctx, name, module)
        own = next((hook for types, hook in self.layer_map[:-1] if isinstance(module, types)), None)
        weighted = any(parameter is not None for parameter in module._parameters.values()) or is_parametrized(module)
        if own is None and weighted and not isinstance(module, ParametrizationList):
            return sensitivity_rule(self.alpha_of(name))
        return own


def sensitivity_rule(alpha: float | Balanced) -> SplitRule:
    '''The rule for a shift, or for what takes its place.'''
    return BalancedSensitivity(alpha.kappa) if isinstance(alpha, Balanced) else ShiftedSensitivity(alpha)


@register_composite('split_grad')
class SplitGrad(SensitivityComposite):
    '''The shifted sensitivity of a stream of the split network (section 4.1). At a layer, it is the mean over channels.

    Where nothing but layer norms reads a layer's output, by itself or as part of a sum, this mean is zero, and a
    warning says so. That holds for blocks of transformers and embeddings of texts: take SplitCAM or SplitLRP there.

    The sensitivities of networks without products of activations do not depend on the re-centering (theorem 6), so that
    the sum of the streams is not even computed; those of products do, as each factor's sensitivity is made of the other
    factor's streams.

    Parameters
    ----------
    alpha : float, Balanced, mapping or callable, optional
        The shift :math:`\\alpha \\in [0, 0.5]` of the local sensitivities (equations 36 to 41), once at the input of
        each affine layer and once at the output: 0 for the true gradient of the split network, 0.5 for half of the
        original gradient; the paper has 0.4. Too small a value lets that part of the map take over which is the same
        for all classes, the sooner the deeper the network above the layer is. Or :py:class:`~zennit_dc.Balanced`, the
        default, which follows the gradients. Or a mapping from the names of modules to these, or a callable of the
        name; the output, and affine operations outside of modules with parameters, have the name ``''``.
    stream : {'+g', '-g', 'g', '+h', '-h', 'h'}, optional
        The sensitivity of g or h to the positive or the negative stream, or to the difference of both.
    layer, pooling, input_split, recentering, layer_map, canonizers, grid, channels
        See :py:class:`SplitComposite`.
    '''
    def __init__(
        self, alpha: Alpha = Balanced(), stream: str = 'g', layer: str | None = None,
        pooling: str = 'wta', input_split: str = 'relu',
        recentering: Callable | None = Relative(), layer_map: LayerMap | None = None,
        canonizers: list[Canonizer] | str | None = 'auto', grid: tuple[int, ...] | None = None,
        channels: int | tuple[()] | None = None,
    ):
        super().__init__(
            Sensitivity, alpha, stream, layer, pooling, input_split, recentering, layer_map, canonizers, grid, channels
        )


@register_composite('split_cam')
class SplitCAM(SensitivityComposite):
    '''The product of a stream's shifted sensitivity and its activation at a layer, summed over channels and not
    rectified (section 4.1, equations 6 and 7). Nothing below the layer is differentiated.

    Parameters
    ----------
    layer : str
        The name of the module at whose output the map is computed.
    alpha : float, Balanced, mapping or callable, optional
        The shift of the local sensitivities, see :py:class:`SplitGrad`.
    stream : {'+g', '-g', 'g', '+h', '-h', 'h'}, optional
        The sensitivity of g or h to the positive or the negative stream, times this stream's activation, which depends
        on the re-centering; or the sensitivity to the difference of both, times the original activation.
    pooling, input_split, recentering, layer_map, canonizers, grid, channels
        See :py:class:`SplitComposite`.
    '''
    def __init__(
        self, layer: str, alpha: Alpha = Balanced(), stream: str = 'g',
        pooling: str = 'wta', input_split: str = 'relu',
        recentering: Callable | None = Relative(), layer_map: LayerMap | None = None,
        canonizers: list[Canonizer] | str | None = 'auto', grid: tuple[int, ...] | None = None,
        channels: int | tuple[()] | None = None,
    ):
        if layer is None:
            raise ValueError('SplitCAM needs the name of a layer')
        super().__init__(
            ActivatedSensitivity, alpha, stream, layer, pooling, input_split, recentering, layer_map, canonizers, grid,
            channels
        )


def explaining_tokens(grad: Callable) -> Callable:
    '''The method ``grad`` of an attributor of Zennit, such that it returns the map at the embedding for token numbers,
    by which torch has no gradients, if its composite brings models into split form.'''
    @wraps(grad)
    def gradient(self: Attributor, input: Tensor, attr_output_fn: Callable) -> Any:
        splits = any(isinstance(each, SplitCanonizer) for each in getattr(self.composite, 'canonizers', ()))
        if splits and not input.is_floating_point() and are_tokens(input):
            with torch.enable_grad():
                input = token_weights(input, self.model)
        return grad(self, input, relevance_by(attr_output_fn) if splits else attr_output_fn)
    return gradient


def relevance_by(attr_output_fn: Callable) -> Callable:
    '''A function that returns what enters at the output, and raises a TypeError if that is the index of a class.'''
    def relevance(output: Tensor) -> Any:
        entering = attr_output_fn(output)
        if isinstance(entering, Integral):
            raise TypeError(
                'what enters at the output is a tensor of its shape, or a function of the output, and not the class'
                f' {entering}: pass zennit_dc.attribution.class_relevance({entering}), or'
                f' zennit_dc.contrast({entering}) for the class rather than the others'
            )
        return entering
    return relevance


Gradient.grad = explaining_tokens(Gradient.grad)
