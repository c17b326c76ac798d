'''One forward pass in split form, and the map of its backward pass.'''
import math
import warnings
import weakref
from dataclasses import replace
from itertools import chain

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from .growth import align, largest_power
from .rules import SplitRule
from .split import SplitForm, SplitTensor, input_sum, sum_dtype


class SplitRun:
    '''One forward pass in split form, and the map of its backward pass.

    Parameters
    ----------
    canonizer : :py:class:`SplitCanonizer`
        What to compute.
    call : callable
        The original forward as a function of the list of its floating point inputs alone.
    growth : bool
        Whether to scale gradients by powers of two, where the map of a pass without is not finite.
    recorded, replayed : list
        Values that are recorded, or were: see :py:class:`~zennit_dc.split.SplitForm`.
    '''
    def __init__(self, canonizer, call, growth=False, recorded=None, replayed=None):
        own_rules = [each if recorded is None else each.unruled() for each in rules_of(canonizer.root)]
        self.canonizer = canonizer
        self.readout = canonizer.readout
        self.call = call
        self.growth = growth
        self.recorded = recorded
        self.replayed = replayed
        rule = canonizer.rule if recorded is None else canonizer.rule.unruled()
        below = 'values' if self.readout.needs_sum or recorded is not None or canonizer.has_products else 'unevaluated'
        self.form = SplitForm(
            canonizer.pooling, canonizer.recentering, [rule], canonizer.root,
            self.above_layer if canonizer.layer is None else below, recorded,
            None if replayed is None else iter(replayed)
        )
        self.form.run = weakref.ref(self)
        self.form.rules += own_rules
        self.state = state_of(canonizer.root)
        self.device_type = next((state[2] for state in self.state), 'cpu')
        self.autocast_dtype = None
        if torch.is_autocast_enabled(self.device_type):
            self.autocast_dtype = torch.get_autocast_dtype(self.device_type)
        self.form.counts_growth = growth and canonizer.layer is None
        self.inputs = self.start = self.backward = None
        self.seeds, self.exponent = {}, None
        self.graph = self.captured = self.sum_is_needed = False

    @property
    def above_layer(self):
        '''What becomes of the sum where the graph is kept.'''
        if self.recorded is not None or self.canonizer.rule.quantity != 'sensitivity' or self.canonizer.has_products:
            return 'values'
        return 'growth' if self.growth else 'unevaluated'

    def __call__(self, inputs):
        '''Run the model. The output has the difference in place of each split pair.'''
        self.graph = torch.is_grad_enabled() and any(input.requires_grad for input in inputs)
        self.inputs = inputs
        pairs = [self.enter(index) for index in range(len(inputs))]
        with torch.set_grad_enabled(self.graph and (self.recorded is not None or self.canonizer.layer is None)):
            output = self.call(pairs)
        return output if self.recorded is not None else self.leave(output)

    def enter(self, index):
        '''Split an input.'''
        input = self.inputs[index]
        stream_sum = input_sum(input, self.canonizer.input_split).to(sum_dtype(input.dtype))
        if self.form.sums == 'growth':
            stream_sum = torch.ones_like(stream_sum)
        if self.recorded is not None:
            return SplitTensor(input.view_as(input), stream_sum, self.form)
        if self.canonizer.layer is None:
            pair = SplitTensor(*Enter.apply(input, stream_sum.detach(), self, index), self.form)
        else:
            pair = SplitTensor(input.detach(), stream_sum.detach(), self.form)
            pair.depth = -math.inf
        if self.growth:
            pair.exponent = torch.zeros((), device=input.device)
        return pair

    def leave(self, output):
        '''The differences of the output.'''
        leaves, structure = tree_flatten(output)
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, SplitTensor)]
        if not places:
            raise NotImplementedError(
                f'the output of a model in split form must have tensors that depend on its input, but is a'
                f' {type(output).__name__} without any'
            )
        layer = self.canonizer.layer
        if layer is not None and not self.captured:
            raise ValueError(f'module {layer!r} was not called in this forward pass, or not on a split pair')
        for place in places:
            leaves[place].require_no_node('the end of the model')
        pairs = align([leaves[place] for place in places])
        if layer is not None and self.graph and not any(depends_on(pair, self.start) for pair in pairs):
            raise ValueError(f'the model\'s output does not depend on the output of module {layer!r}')
        self.start = None
        self.exponent = pairs[0].exponent
        for index, (place, pair) in enumerate(zip(places, pairs)):
            leaves[place] = Leave.apply(pair.difference, pair._stream_sum, self, index)
        return tree_unflatten(leaves, structure)

    def seed(self, index, gradient):
        '''Keep the gradient of an output for the time of a backward pass.'''
        backward = torch._C._current_graph_task_id()
        if backward != self.backward:
            self.backward, self.seeds = backward, {}
        # not longer than this pass, as the gradient may be made of the output whose graph holds this run
        torch.autograd.Variable._execution_engine.queue_callback(self.seeds.clear)
        self.seeds[index] = gradient

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
        input = self.inputs[0]
        shape, axes = tuple(output.shape), input.ndim
        if output.ndim != axes or axes < 3 or shape[0] != input.shape[0]:
            raise ValueError(
                f'the output of module {name} has the shape {shape}, without spatial axes that correspond to those of'
                f' the input of shape {tuple(input.shape)}: choose a layer before the spatial axes are reduced'
            )
        unknown = output.channel_axis is None
        if output.channel_axis not in (1, None) or unknown and distorted(shape[2:], input.shape[2:]):
            raise ValueError(
                f'the output of module {name} has the shape {shape}, of which the second axis is not that of channels:'
                ' choose a module whose output is ordered as the input, with spatial axes last'
            )
        self.captured = True
        affine = None if output.layer is None else replace(output.layer, is_read=True)
        if self.recorded is not None:
            self.recorded.append((output.difference, output._stream_sum))
            output.layer = affine
            return output
        used_values = self.form.used_values
        values = self.form.values(output)
        self.form.used_values = used_values
        self.form.sums, self.form.counts_growth, self.form.depth = self.above_layer, self.growth, 0
        stream_sum = torch.ones_like(output._stream_sum) if self.form.sums == 'growth' else output._stream_sum
        torch.set_grad_enabled(self.graph)
        output = output.like(
            *AtLayer.apply(input, output.difference.detach(), stream_sum.detach(), *values, self)
        )
        output.layer, output.depth = affine, 0
        self.start = output.difference.grad_fn
        return output

    def input_map(self, index, gradient, sum_gradient):
        '''The map at an input.'''
        again = self.other_pass(index)
        if again is not None:
            return again
        map = self.unscaled(self.readout.combine(gradient, sum_gradient)).to(self.inputs[index].dtype)
        return self.finite(map, index)

    def layer_map(self, gradient, sum_gradient, difference, stream_sum):
        '''The map at the layer, upsampled to the first input and distributed over its channels.'''
        again = self.other_pass(0)
        if again is not None:
            return again
        saliency = self.unscaled(self.readout.at_layer(gradient, sum_gradient, difference, stream_sum))
        if not self.growth and not is_finite(saliency):
            return self.finite(saliency, 0)
        self.readout.saliency = self.finite(saliency, 0).detach()
        input = self.inputs[0]
        size, channels = input.shape[2:], input.shape[1]
        mode = {1: 'linear', 2: 'bilinear', 3: 'trilinear'}[len(size)]
        upsampled = torch.nn.functional.interpolate(saliency.unsqueeze(1), size, mode=mode, align_corners=False)
        return self.finite((upsampled / channels).expand(input.shape).to(input.dtype), 0)

    def other_pass(self, index):
        '''The map of another pass if it can not be that of this one, else None: if a product of pairs needs their sums,
        or if the map itself is to be differentiated and depends on activations, whose gradient must be the true
        one.'''
        if self.sum_is_needed:
            self.canonizer.has_products = True
            return self.again(self.inputs, index)
        if not torch.is_grad_enabled() or self.replayed is not None:
            return None
        if not (self.readout.uses_values or self.form.used_values):
            return None
        inputs = [input.view_as(input) for input in self.inputs]
        recorded = []
        with self.autocast():
            SplitRun(self.canonizer, self.call, recorded=recorded)(inputs)
        return self.again(inputs, index, replayed=recorded)

    def finite(self, map, index):
        '''The map, computed again with scaled gradients if it is not finite, and an error if that does not help.'''
        if is_finite(map):
            return map
        if not self.growth and self.canonizer.rule.quantity == 'sensitivity':
            return self.again(self.inputs, index, growth=True)
        raise FloatingPointError(f'the map of {self.readout.name} is not finite: {self.readout.advice}')

    def again(self, inputs, index, **kwargs):
        '''The map of another pass.'''
        graph = torch.is_grad_enabled()
        if not self.canonizer.restore or self.state != state_of(self.canonizer.root):
            raise RuntimeError(
                'to compute this map, the model has to be run again, but it has changed since its forward pass: call'
                ' the backward pass inside of the composite\'s context and with the same parameters'
            )
        with torch.enable_grad(), self.autocast():
            inputs = [input.view_as(input) if graph else input.detach() for input in inputs]
            inputs[index].requires_grad_()
            run = SplitRun(self.canonizer, self.call, **{'replayed': self.replayed, 'growth': self.growth, **kwargs})
            leaves = tree_flatten(run(inputs))[0]
            outputs = [leaf for leaf in leaves if getattr(getattr(leaf, 'grad_fn', None), 'run', None) is run]
            map, = torch.autograd.grad(
                [outputs[place] for place in self.seeds], inputs[index], list(self.seeds.values()), create_graph=graph
            )
        return map

    def autocast(self):
        '''The autocast context of the forward pass.'''
        return torch.autocast(self.device_type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def unscaled(self, map):
        '''Undo the scaling of the gradients as far as the result is representable.'''
        if not self.growth:
            return map
        exponent = torch.floor(self.exponent).expand(len(map))
        largest = map.detach().abs().reshape(len(map), -1).amax(1)
        if not largest.any():
            raise FloatingPointError(f'the map of {self.readout.name} underflows: {self.readout.advice}')
        power = largest_power(exponent, largest, self.inputs[0].dtype)
        if (power < exponent).any():
            warnings.warn(
                f'the map of {self.readout.name} is too large for {map.dtype}: it is scaled, image by image, by'
                f' two to the power of {(power - exponent).int().tolist()}; a larger alpha avoids this', stacklevel=2
            )
        half = torch.floor(power / 2)
        shape = (-1, *(1,) * (map.ndim - 1))
        return map * torch.exp2(half).to(map.dtype).view(shape) * torch.exp2(power - half).to(map.dtype).view(shape)


class Enter(torch.autograd.Function):
    '''Split an input. The gradient is the map at the input.'''
    @staticmethod
    def forward(ctx, input, stream_sum, run, index):
        ctx.run, ctx.index = run, index
        return input.view_as(input), stream_sum.view_as(stream_sum)

    @staticmethod
    def backward(ctx, gradient, sum_gradient):
        return ctx.run.input_map(ctx.index, gradient, sum_gradient), None, None, None


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
    '''The difference of an output. Its gradient enters the streams as the readout says.'''
    @staticmethod
    def forward(ctx, difference, stream_sum, run, index):
        ctx.run, ctx.index, ctx.sum_dtype = run, index, stream_sum.dtype
        return difference.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.run.seed(ctx.index, gradient)
        damping = ctx.run.canonizer.rule.output_damping(ctx.run.form)
        return *ctx.run.readout.seed(gradient, ctx.sum_dtype, damping), None, None


def state_of(root):
    '''What tells whether parameters or buffers of a model are others than before.'''
    tensors = chain(root.parameters(), root.buffers())
    return [(id(tensor), tensor._version, tensor.device.type, tensor.data_ptr()) for tensor in tensors]


def distorted(size, input_size):
    '''Whether spatial axes are so differently long from the input's that one of them is likely to be none.'''
    strides = [of_input / of_output for of_output, of_input in zip(size, input_size)]
    return len(size) == 2 and max(strides) > 2 * min(strides)


def rules_of(root):
    '''The rules that are registered to the model itself, whose hooks see tensors that are not split yet.'''
    owners = [getattr(hook, '__self__', None) for hook in root._forward_pre_hooks.values()]
    return [owner for owner in reversed(owners) if isinstance(owner, SplitRule)]


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
