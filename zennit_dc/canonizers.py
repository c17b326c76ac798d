'''Canonizers: a model into split form and back.'''
import functools
from itertools import chain

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchvision.ops import StochasticDepth
from zennit.canonizers import Canonizer
from zennit.core import Hook

from .recentering import Scaling
from .rules import SplitRule
from .run import SplitRun
from .smooth import SmoothReplacement
from .split import MODULE_FORMS, TrueGradient, has_pairs, pairs_in
from .streams import Difference


class SplitCanonizer(Canonizer):
    '''Bring a model into split form for the time of a composite's context.

    The forward of the root module splits its input, runs the model on the split pair and returns the difference of its
    output, which is bit-identical to the original output. Its gradient is what the readout makes of the gradients of
    the output's difference and sum. Hooks, parameters and buffers of the model stay as they are.

    Parameters
    ----------
    readout : :py:class:`zennit_dc.streams.Difference`, optional
        What enters at the output, and the map it makes. Default is the difference, and with it the original gradient.
    rule : :py:class:`zennit_dc.split.TrueGradient`, optional
        The rule for operations outside of modules to which a composite maps one. Default is none, i.e. the true
        gradient of the split network.
    layer : str, optional
        The name of the module at the output of which the map is computed. Default is the map at the model's input.
    pooling : {'wta', 'convex'}, optional
        The form of max-pooling (section 3.4).
    input_split : {'relu', 'half'}, optional
        How the input is split: :math:`x^\\pm = \\max(\\pm x, 0)` or :math:`\\pm x / 2` (appendix F).
    recentering : callable, optional
        The forward stabilisation, e.g. :py:class:`~zennit_dc.Scaling` or :py:class:`~zennit_dc.Shifting`. None for no
        stabilisation.

    Raises
    ------
    ValueError
        If a parameter is not one of its values; or, when applied, if the model has no module named ``layer``.
    RuntimeError
        When applied, if the model is in split form already.
    '''
    def __init__(
        self, readout=None, rule=None, layer=None, pooling='wta', input_split='relu', recentering=Scaling()
    ):
        require_choice('pooling', pooling, ('wta', 'convex'))
        require_choice('input_split', input_split, ('relu', 'half'))
        if recentering is not None and not callable(recentering):
            raise ValueError(f'recentering must be Scaling(), Shifting(), a callable or None, not {recentering!r}')
        if layer is not None and not isinstance(layer, str):
            raise ValueError(f'layer must be the name of a module, not {layer!r}')
        self.readout = Difference() if readout is None else readout
        self.rule = TrueGradient() if rule is None else rule
        self.layer = layer
        self.pooling = pooling
        self.input_split = input_split
        self.recentering = recentering
        self.root = None
        self.restore = []
        self.has_products = False
        self.validate = None

    def copy(self):
        '''Return a copy of this canonizer, which shares the readout.'''
        return type(self)(self.readout, self.rule, self.layer, self.pooling, self.input_split, self.recentering)

    def apply(self, root_module):
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
        instance.validate = self.validate
        self.readout.saliency = None
        instance.register(root_module)
        return [instance]

    def register(self, root_module):
        '''Replace the forward of the root module, and that of modules for which a split form was registered.

        Parameters
        ----------
        root_module : :py:class:`torch.nn.Module`
            The model.
        '''
        for name, module in root_module.named_modules():
            if isinstance(getattr(module.__dict__.get('forward'), 'func', None), SplitForward):
                raise RuntimeError(
                    f'module \'{name}\' ({type(module).__name__}) is in split form already: leave the context of the'
                    ' other composite first'
                )
        modules = dict(root_module.named_modules(remove_duplicate=False))
        if self.layer is not None and self.layer not in modules:
            raise ValueError(f'there is no module named {self.layer!r}, but {", ".join(list(modules)[1:])}')
        if self.layer == '':
            raise ValueError('the layer must be a module inside of the model, not the model itself')

        if self.validate is not None:
            self.validate(root_module)
        self.root = root_module
        for module in root_module.modules():
            form = next((MODULE_FORMS[kind] for kind in type(module).__mro__ if kind in MODULE_FORMS), None)
            if form is not None:
                self.replace_forward(module, functools.partial(split_or_plain, form, module, module.forward))
        self.replace_forward(root_module, functools.partial(SplitForward(self, root_module.forward)))
        if self.layer is not None:
            self.restore.append(modules[self.layer].register_forward_hook(self.at_layer).remove)

    def replace_forward(self, module, forward):
        '''Set a module's forward until the canonizer is removed.'''
        before = module.__dict__.get('forward')
        module.forward = forward
        if before is None:
            self.restore.append(lambda: module.__dict__.pop('forward', None))
        else:
            self.restore.append(lambda: setattr(module, 'forward', before))

    def remove(self):
        '''Bring the model back into its original form.'''
        while self.restore:
            self.restore.pop()()

    def at_layer(self, module, args, output):
        '''Forward hook of the layer: cut the graph here, and start it anew.'''
        pairs = list(pairs_in(output))
        if pairs:
            return pairs[0].form.run().at_layer(module, output)
        return output


class SplitForward:
    '''The forward of a model in split form.'''
    def __init__(self, canonizer, forward):
        self.canonizer = canonizer
        self.forward = forward

    def __call__(self, *args, **kwargs):
        refuse_foreign_rules(self.canonizer.root)
        refuse_training_mode(self.canonizer.root)
        if has_pairs((args, kwargs)):
            raise RuntimeError('the model\'s input is in split form already: contexts may not be nested in one model')
        leaves, structure = tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if is_floating(leaf)]
        if not places:
            raise NotImplementedError('a model in split form was called without a floating point tensor')

        def call(inputs):
            replaced = dict(zip(places, inputs))
            args, kwargs = tree_unflatten([replaced.get(place, leaf) for place, leaf in enumerate(leaves)], structure)
            return self.forward(*args, **kwargs)

        inputs = [leaves[place] for place in places]
        output = SplitRun(self.canonizer, call)(inputs)
        replacement = SmoothReplacement.of(self.canonizer.root)
        if replacement is not None:
            with torch.no_grad():
                replacement.deviation = largest_difference(output, call(inputs))
        return output


def split_or_plain(form, module, forward, *args, **kwargs):
    '''Call the split form of a module on split pairs, and its own forward on anything else.'''
    if has_pairs((args, kwargs)):
        return form(module, *args, **kwargs)
    return forward(*args, **kwargs)


def refuse_foreign_rules(root):
    '''Raise if a Zennit rule is registered that does not know the split pair.'''
    for name, module in root.named_modules():
        for hook in chain(module._forward_pre_hooks.values(), module._forward_hooks.values()):
            require_split_rule(getattr(hook, '__self__', None), f'module \'{name}\' ({type(module).__name__})')


def refuse_training_mode(root):
    '''Raise if a module is in training mode whose output then is random or depends on the batch, before it changes its
    running statistics.'''
    for name, module in root.named_modules():
        random = isinstance(module, _DropoutNd) and module.p > 0 or isinstance(module, StochasticDepth) and module.p > 0
        if module.training and (random or isinstance(module, _BatchNorm)):
            raise RuntimeError(
                f'module \'{name}\' ({type(module).__name__}) is in training mode: call .eval() on the model'
            )


def require_split_rule(rule, where):
    '''Raise if an object is a Zennit hook but no rule for split pairs.'''
    if isinstance(rule, Hook) and not isinstance(rule, SplitRule):
        raise TypeError(
            f'{type(rule).__name__} of {where} is not a rule for split pairs: use one of zennit_dc.rules'
        )


def require_choice(name, value, choices):
    '''Raise if a parameter is not one of its values.'''
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, choices))}, not {value!r}')


def largest_difference(output, original):
    '''The largest absolute difference of two outputs of the same structure.'''
    return max(
        (one - other).abs().max().item()
        for one, other in zip(tree_flatten(output)[0], tree_flatten(original)[0]) if is_floating(one)
    )


def is_floating(value):
    '''Whether a value is a floating point tensor.'''
    return isinstance(value, torch.Tensor) and value.is_floating_point()
