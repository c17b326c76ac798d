'''Canonizers: a model into split form and back.'''
import copy
import re
from collections.abc import Callable, Iterable
from functools import partial

import torch
from zennit.canonizers import AttributeCanonizer, Canonizer

from . import forms  # noqa: F401 (registers the split forms)
from .core.calls import ModuleForward, SplitForward
from .core.errors import describe
from .core.layers import sequence_of
from .core.needs import Choices
from .core.pair import TrueGradient, pass_of
from .core.table import MODULE_FORMS
from .core.wording import require_choice, similar
from .forms.hooks import BackwardHooks
from .recentering import Relative
from .rules import rules_of
from .streams import Readout


class SplitCanonizer(Canonizer):
    '''Bring a model into split form for the time of a composite's context.

    The forward of the root module splits its input, runs the model on the split pair and returns the difference of its
    output, which is bit-identical to the original output. Its gradient is what the readout makes of the gradients of
    the output's difference and sum. Hooks, parameters and buffers of the model stay as they are.

    The model is run once more from the start, so that its hooks and prints run again, where a pass meets something that
    was not known when it began:

    * a product of two activations, in a composite whose map needs no sums otherwise: once for each model;
    * a function without an exact split form, for which an option is taken (``automatic``): once for each option and
      model, and before the warning once as it is, and, where statistics are constants, once more to find out what that
      leaves out;
    * a layer's output that is used again after its activation, or samples that are along the second axis of the input:
      once for each model;
    * a gradient that is asked for within the model, where the input needs none: at each call.

    Parameters
    ----------
    readout : :py:class:`zennit_dc.streams.Readout`, optional
        What enters at the output, and the map it makes. Default is the difference, and with it the original gradient.
    rule : :py:class:`zennit_dc.core.pair.TrueGradient`, optional
        The rule for operations outside of modules to which a composite maps one. Default is none, i.e. the true
        gradient of the split network.
    layer : str, optional
        The name of the module at the output of which the map is computed. Default is the map at the model's input.
    pooling : {'wta', 'convex'}, optional
        The form of max-pooling (section 3.4).
    input_split : {'relu', 'half'}, optional
        How the input is split: :math:`x^\\pm = \\max(\\pm x, 0)` or :math:`\\pm x / 2` (appendix F).
    recentering : callable, optional
        The forward stabilisation: :py:class:`~zennit_dc.Relative`, :py:class:`~zennit_dc.Scaling`,
        :py:class:`~zennit_dc.Shifting` or a callable of the difference and the sum. None for no
        stabilisation.
    grid : tuple of int, optional
        The height and width of the grid of tokens at the layer, where they cannot be found from the input's, see
        :py:func:`~zennit_dc.core.places.places_of`.
    channels : int or (), optional
        The index of the input's axis of channels, or () if it has none, where this is not known from the first layer
        with weights, see :py:class:`~zennit_dc.composites.SplitComposite`.
    automatic : bool, optional
        Whether to take the options that a model needs, of those that leave its output bit-identical, and to warn of
        them.

    Raises
    ------
    ValueError
        If a parameter is not one of its values; or, when applied, if the model has no module named ``layer``.
    RuntimeError
        When applied, if the model is in split form already.
    '''
    def __init__(
        self, readout: Readout | None = None, rule: TrueGradient | None = None, layer: str | None = None,
        pooling: str = 'wta', input_split: str = 'relu', recentering: Callable | None = Relative(),
        grid: tuple[int, ...] | None = None, automatic: bool = False, channels: int | tuple[()] | None = None
    ):
        require_choice('pooling', pooling, ('wta', 'convex'))
        require_choice('input_split', input_split, ('relu', 'half'))
        if recentering is not None and (isinstance(recentering, type) or not callable(recentering)):
            choices = 'Relative(), Scaling(), Shifting(), a callable or None'
            raise ValueError(f'recentering must be {choices}, not {recentering!r}')
        if layer is not None and not isinstance(layer, str):
            raise ValueError(f'layer must be the name of a module, not {layer!r}')
        if channels not in (None, ()) and (type(channels) is not int or channels == 0):
            raise ValueError(f'channels must be the index of an axis after the first, () or None, not {channels!r}')
        self.readout = Readout() if readout is None else readout
        self.rule = TrueGradient() if rule is None else rule
        self.layer, self.pooling, self.input_split, self.recentering = layer, pooling, input_split, recentering
        self.grid, self.channels = grid, channels
        self.root: torch.nn.Module | None = None
        self.restore: list[Callable] = []
        self.is_active = True
        self.choices = Choices(automatic)

    def copy(self) -> 'SplitCanonizer':
        '''Return a copy of this canonizer, which shares the readout, and what was chosen for models.'''
        instance = copy.copy(self)
        instance.restore = []
        return instance

    def apply(self, root_module: torch.nn.Module) -> list[Canonizer]:
        '''Bring the model into split form.

        Parameters
        ----------
        root_module : :py:class:`torch.nn.Module`
            The model.

        Returns
        -------
        list
            The one applied instance.
        '''
        instance = self.copy()
        self.readout.saliency = None
        instance.register(root_module)
        return [instance]

    def register(self, root_module: torch.nn.Module) -> None:
        '''Replace the forward of the root module, and of modules for which a split form was registered.

        Parameters
        ----------
        root_module : :py:class:`torch.nn.Module`
            The model.
        '''
        refuse_other_forms(root_module)
        named = dict(root_module.named_modules(remove_duplicate=False))
        modules = {**named, **{name.replace('_orig_mod.', ''): module for name, module in named.items()}}
        if self.layer == '':
            raise ValueError('the layer must be a module inside of the model, not the model itself')
        if self.layer is not None and self.layer not in modules:
            remedy = similar(self.layer, modules) or ': model.named_modules() has their names'
            raise ValueError(f'there is no module named {self.layer!r}{remedy}')
        self.root = root_module
        self.choices.known.setdefault(root_module, set())
        self.restore += self.choices.apply(root_module)
        for module in root_module.modules():
            self.run_eagerly(module)
            form = next((MODULE_FORMS[kind] for kind in type(module).__mro__ if kind in MODULE_FORMS), None)
            if form is not None:
                self.replace_forward(module, ModuleForward(form, module))
        self.call_backward_hooks()
        self.replace_forward(root_module, SplitForward(self, root_module.forward))
        if self.layer is not None:
            self.restore.append(modules[self.layer].register_forward_hook(self.at_layer).remove)

    def modules(self) -> Iterable[torch.nn.Module]:
        '''The modules of the model, if it is in split form.'''
        return () if self.root is None else self.root.modules()

    def call_backward_hooks(self) -> None:
        '''Call the backward hooks of modules with gradients of pairs, also those that were added in the context.'''
        for module in self.modules():
            if module is not self.root and (module._backward_hooks or module._backward_pre_hooks):
                self.restore.append(BackwardHooks(module).remove)

    @property
    def active(self) -> bool:
        '''As of Zennit's hooks, whether rules hold in backward passes. They do not where any rule of the model is made
        inactive, either, as :py:class:`zennit.composites.MixedComposite` makes its rules alone.'''
        return self.is_active and all(rule.active for rule in rules_of(self.root, self.modules()))

    @active.setter
    def active(self, is_active: bool) -> None:
        self.is_active = is_active

    def run_eagerly(self, module):
        '''Let a compiled module run as the one that it was made of, until the canonizer is removed.'''
        if (original := getattr(module, '_orig_mod', None)) is not None:
            self.replace_forward(module, original.__call__)
        if (compiled := module.__dict__.get('_compiled_call_impl')) is not None:
            module._compiled_call_impl = None
            self.restore.append(partial(setattr, module, '_compiled_call_impl', compiled))

    def replace_forward(self, module, forward):
        '''Set a module's forward until the canonizer is removed.'''
        pop, before = module.__dict__.pop, module.__dict__.get('forward')
        module.forward = forward
        self.restore.append(partial(pop, 'forward') if before is None else partial(setattr, module, 'forward', before))

    def remove(self) -> None:
        '''Bring the model back into its original form.'''
        while self.restore:
            self.restore.pop()()

    def at_layer(self, module, args, output):
        '''Forward hook of the layer.'''
        split_pass = pass_of(output)
        if split_pass is not None and split_pass.root is self.root:  # and not of a model that shares the module
            split_pass.at_layer(describe(module, self.root), sequence_of(module, output))


class NotInPlace(AttributeCanonizer):
    '''Let activations of a model that change their input in place leave it as it is, for the time of a context.

    Rules that need an activation's input in the backward pass, such as Zennit's
    :py:class:`~zennit.rules.ReLUBetaSmooth`, are wrong in silence where the activation has overwritten it, as the ReLUs
    of most of torchvision's models do. Split pairs do not need this.
    '''
    def __init__(self):
        super().__init__(out_of_place)

    def remove(self) -> None:
        '''Let it compute in place again.'''
        self.module.inplace = True

    def copy(self) -> 'NotInPlace':
        '''Return an instance that is not applied.'''
        return type(self)()


def out_of_place(name, module):
    '''The attribute by which a module leaves its input as it is, if it changes it in place.'''
    return {'inplace': False} if getattr(module, 'inplace', False) is True else None


def refuse_other_forms(root):
    '''Raise if a model has modules that cannot be run on pairs, since they are scripted or in split form.'''
    for module in root.modules():
        if isinstance(module.__dict__.get('forward'), SplitForward):
            where = describe(module, root)
            raise RuntimeError(f'{where} is in split form already: leave the context of the other composite first')
        if isinstance(module, torch.jit.ScriptModule):
            where = describe(module, root)
            raise TypeError(
                f'{where} is scripted or traced by torch.jit, whose operations split pairs do not see: explain the'
                ' module that it was made of'
            )
        if re.match(r'torch\.(ao\.)?nn\.(intrinsic\.)?quantized\.', type(module).__module__):
            raise TypeError(
                f'{describe(module, root)} is quantized ({type(module).__module__}), of whose integer weights no stream'
                ' can be made: explain the float model that it was made of'
            )
