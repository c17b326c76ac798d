'''Canonizers: a model into split form and back.'''
import functools
import warnings
from dataclasses import replace
from itertools import chain

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from zennit.canonizers import Canonizer
from zennit.core import Hook

from .operations import largest_power
from .recentering import Scaling
from .rules import SplitRule
from .split import MODULE_FORMS, SplitForm, SplitTensor, TrueGradient, has_pairs, input_sum, pairs_in, sum_dtype
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
        modules = dict(root_module.named_modules())
        if self.layer is not None and self.layer not in modules:
            raise ValueError(f'there is no module named {self.layer!r}, but {", ".join(list(modules)[1:])}')
        if self.layer == '':
            raise ValueError('the layer must be a module inside of the model, not the model itself')

        self.root = root_module
        for module in modules.values():
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
            self.restore.append(lambda: module.__dict__.pop('forward'))
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
            return pairs[0].form.run.at_layer(module, output)
        return output


class SplitForward:
    '''The forward of a model in split form.'''
    def __init__(self, canonizer, forward):
        self.canonizer = canonizer
        self.forward = forward

    def __call__(self, *args, **kwargs):
        refuse_foreign_rules(self.canonizer.root)
        refuse_training_mode(self.canonizer.root)
        keys = [key for key, value in chain(enumerate(args), kwargs.items()) if is_floating(value)]
        if has_pairs((args, kwargs)):
            raise RuntimeError('the model\'s input is in split form already: contexts may not be nested in one model')
        if len(keys) != 1:
            raise NotImplementedError(
                f'a model in split form takes one floating point tensor, but was called with {len(keys)}'
            )
        key, = keys

        def call(pair):
            if isinstance(key, str):
                return self.forward(*args, **{**kwargs, key: pair})
            return self.forward(*args[:key], pair, *args[key + 1:], **kwargs)

        return SplitRun(self.canonizer, call)(kwargs[key] if isinstance(key, str) else args[key])


class SplitRun:
    '''One forward pass in split form, and the map of its backward pass.

    Parameters
    ----------
    canonizer : :py:class:`SplitCanonizer`
        What to compute.
    call : callable
        The original forward as a function of the split pair alone.
    growth : bool
        Whether to scale gradients by powers of two, where the map of a pass without is not finite.
    recorded, replayed : list
        Values that are recorded, or were: see :py:class:`~zennit_dc.split.SplitForm`.
    '''
    def __init__(self, canonizer, call, growth=False, recorded=None, replayed=None):
        self.canonizer = canonizer
        self.readout = canonizer.readout
        self.call = call
        self.growth = growth
        self.recorded = recorded
        self.replayed = replayed
        rule = canonizer.rule if recorded is None else canonizer.rule.unruled()
        below = 'values' if self.readout.needs_sum or recorded is not None else 'unevaluated'
        self.form = SplitForm(
            canonizer.pooling, canonizer.recentering, [rule], canonizer.root,
            self.above_layer if canonizer.layer is None else below, recorded,
            None if replayed is None else iter(replayed)
        )
        self.form.run = self
        self.input = self.start = self.seed = self.exponent = None
        self.graph = False
        self.captured = False

    @property
    def above_layer(self):
        '''What becomes of the sum where the graph is kept.'''
        if self.recorded is not None or self.canonizer.rule.quantity != 'sensitivity':
            return 'values'
        return 'growth' if self.growth else 'unevaluated'

    def __call__(self, input):
        '''Run the model.'''
        self.graph = torch.is_grad_enabled() and input.requires_grad
        self.input = input
        stream_sum = input_sum(input, self.canonizer.input_split).to(sum_dtype(input.dtype))
        if self.form.sums == 'growth':
            stream_sum = torch.ones_like(stream_sum)
        if self.recorded is not None:
            pair = SplitTensor(input.view_as(input), stream_sum, self.form)
        elif self.canonizer.layer is None:
            pair = SplitTensor(*Enter.apply(input, stream_sum.detach(), self), self.form)
        else:
            pair = SplitTensor(input.detach(), stream_sum.detach(), self.form)
        if self.growth:
            pair.exponent = torch.zeros(len(input), device=input.device)
        with torch.set_grad_enabled(self.graph and (self.recorded is not None or self.canonizer.layer is None)):
            output = self.call(pair)
        return output if self.recorded is not None else self.leave(output)

    def leave(self, output):
        '''The difference of the output.'''
        if not isinstance(output, SplitTensor):
            raise NotImplementedError(
                f'the output of a model in split form must be one tensor that depends on the input, not'
                f' {type(output).__name__}'
            )
        layer = self.canonizer.layer
        if layer is not None and not self.captured:
            raise ValueError(f'module {layer!r} was not called in this forward pass, or not on a split pair')
        if layer is not None and self.graph and not depends_on(output, self.start):
            raise ValueError(f'the model\'s output does not depend on the output of module {layer!r}')
        self.exponent = output.exponent
        return Leave.apply(output.difference, output._stream_sum, self)

    def at_layer(self, module, output):
        '''Read the map off a module's output.'''
        name = self.form.name(module)
        if not isinstance(output, SplitTensor):
            raise ValueError(f'the output of module {name} is not one tensor but {type(output).__name__}')
        if self.captured:
            raise ValueError(
                f'module {name} was called more than once in this forward pass, so that there is not one map at its'
                ' output: choose a module that is called once'
            )
        shape, axes = tuple(output.shape), self.input.ndim
        if output.ndim != axes or axes < 3 or shape[0] != self.input.shape[0]:
            raise ValueError(
                f'the output of module {name} has the shape {shape}, without spatial axes that correspond to those of'
                f' the input of shape {tuple(self.input.shape)}: choose a layer before the spatial axes are reduced'
            )
        self.captured = True
        affine = None if output.layer is None else replace(output.layer, is_read=True)
        if self.recorded is not None:
            self.recorded.append((output.difference, output._stream_sum))
            output.layer = affine
            return output
        values = self.form.values(output)
        self.form.sums = self.above_layer
        stream_sum = torch.ones_like(output._stream_sum) if self.form.sums == 'growth' else output._stream_sum
        torch.set_grad_enabled(self.graph)
        output = output.like(
            *AtLayer.apply(self.input, output.difference.detach(), stream_sum.detach(), *values, self)
        )
        output.layer = affine
        self.start = output.difference.grad_fn
        return output

    def input_map(self, gradient, sum_gradient):
        '''The map at the input.'''
        again = self.differentiable()
        if again is not None:
            return again
        return self.finite(self.unscaled(self.readout.combine(gradient, sum_gradient))).to(self.input.dtype)

    def layer_map(self, gradient, sum_gradient, difference, stream_sum):
        '''The map at the layer, upsampled to the input and distributed over its channels.'''
        again = self.differentiable()
        if again is not None:
            return again
        saliency = self.unscaled(self.readout.at_layer(gradient, sum_gradient, difference, stream_sum))
        if not self.growth and not is_finite(saliency):
            return self.finite(saliency)
        self.readout.saliency = self.finite(saliency)
        size, channels = self.input.shape[2:], self.input.shape[1]
        mode = {1: 'linear', 2: 'bilinear', 3: 'trilinear'}[len(size)]
        upsampled = torch.nn.functional.interpolate(saliency.unsqueeze(1), size, mode=mode, align_corners=False)
        return (upsampled / channels).expand(self.input.shape).to(self.input.dtype)

    def differentiable(self):
        '''Where the map itself is to be differentiated and depends on activations: the map with those of another pass,
        whose gradient is the true one. Else None.'''
        if not torch.is_grad_enabled() or self.replayed is not None:
            return None
        if not (self.readout.uses_values or self.canonizer.rule.uses_values):
            return None
        input = self.input.view_as(self.input)
        recorded = []
        SplitRun(self.canonizer, self.call, recorded=recorded)(input)
        return self.again(input, replayed=recorded)

    def finite(self, map):
        '''The map, computed again with scaled gradients if it is not finite, and an error if that does not help.'''
        if is_finite(map):
            return map
        if not self.growth and self.canonizer.rule.quantity == 'sensitivity':
            return self.again(self.input if torch.is_grad_enabled() else self.input.detach(), growth=True)
        raise FloatingPointError(f'the map of {self.readout.name} is not finite: {self.readout.advice}')

    def again(self, input, **kwargs):
        '''The map of another pass.'''
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            input = input.view_as(input) if graph else input.detach().requires_grad_()
            run = SplitRun(self.canonizer, self.call, **{'replayed': self.replayed, 'growth': self.growth, **kwargs})
            map, = torch.autograd.grad(run(input), input, self.seed, create_graph=graph)
        return map

    def unscaled(self, map):
        '''Undo the scaling of the gradients as far as the result is representable.'''
        if not self.growth:
            return map
        exponent = self.exponent
        largest = map.detach().abs().reshape(len(map), -1).amax(1)
        if (largest == 0).any():
            raise FloatingPointError(f'the map of {self.readout.name} underflows: {self.readout.advice}')
        power = largest_power(exponent, largest, map.dtype)
        if (power < exponent).any():
            warnings.warn(
                f'the map of {self.readout.name} is too large for {map.dtype}: it is scaled, image by image, by'
                f' two to the power of {(power - exponent).int().tolist()}; a larger alpha avoids this', stacklevel=2
            )
        half = torch.floor(power / 2)
        shape = (-1, *(1,) * (map.ndim - 1))
        return map * torch.exp2(half).to(map.dtype).view(shape) * torch.exp2(power - half).to(map.dtype).view(shape)


class Enter(torch.autograd.Function):
    '''Split the input. The gradient is the map at the input.'''
    @staticmethod
    def forward(ctx, input, stream_sum, run):
        ctx.run = run
        return input.view_as(input), stream_sum.view_as(stream_sum)

    @staticmethod
    def backward(ctx, gradient, sum_gradient):
        return ctx.run.input_map(gradient, sum_gradient), None, None


class AtLayer(torch.autograd.Function):
    '''Continue with a layer's output as if the input were all it depends on. The gradient is the layer's map.'''
    @staticmethod
    def forward(ctx, input, difference, stream_sum, difference_value, sum_value, run):
        ctx.run = run
        ctx.save_for_backward(difference_value, sum_value)
        return difference.view_as(difference), stream_sum.view_as(stream_sum)

    @staticmethod
    def backward(ctx, gradient, sum_gradient):
        return ctx.run.layer_map(gradient, sum_gradient, *ctx.saved_tensors), None, None, None, None, None


class Leave(torch.autograd.Function):
    '''The difference of the output. Its gradient enters the streams as the readout says.'''
    @staticmethod
    def forward(ctx, difference, stream_sum, run):
        ctx.run, ctx.sum_dtype = run, stream_sum.dtype
        return difference.view_as(difference)

    @staticmethod
    def backward(ctx, gradient):
        ctx.run.seed = gradient
        return *ctx.run.readout.seed(gradient, ctx.sum_dtype), None


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
        if module.training and isinstance(module, (_BatchNorm, _DropoutNd)):
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


def is_floating(value):
    '''Whether a value is a floating point tensor.'''
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def depends_on(pair, node):
    '''Whether a pair's graph contains a node.'''
    pending, seen = [pair.difference.grad_fn, pair._stream_sum.grad_fn], {None}
    while pending:
        current = pending.pop()
        if current is node:
            return True
        if current not in seen:
            seen.add(current)
            pending += [following for following, _ in current.next_functions]
    return False


def is_finite(map):
    '''Whether all entries are finite.'''
    return bool(torch.isfinite(map.detach()).all())
