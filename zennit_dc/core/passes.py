'''One forward pass of a model in split form, and the map of its backward passes.

A backward pass makes a map if it comes from the output of a forward pass and reaches the place where the map is read:
the input, or a layer. In this backward pass rules hold. In any other, such as one that differentiates a map, all
gradients are the true ones, so that nothing has to be recorded for it.
'''
import math
import sys
import warnings
import weakref
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch

from .axes import Axis, Place, by_sample, input_places
from .batches import is_batch, maps_of_batch, refuse_batch, refused as refused_batch
from ..forms.reading import Refused, number, read_alone
from ..forms.table import plain
from .nested import flatten, modules_of
from ..rules import SplitRule, ruled
from .sharing import evaluated, is_shared, shared_seed
from .places import (
    ACTIVATIONS, channels_unknown, followed, given_channels, laid_over, likely_channels, name_of, places_of
)
from .pair import (
    LEAVES, OtherSamples, Pass, SeveralUses, SplitTensor, Unshared, Unsupported, common_pass, foreign, input_sum,
    pairs_in, same, sum_dtype, unsupported
)
from .views import become_plain

EXACT = 2. ** -17  # the part of a map's largest value that rounding may change


class Independent(NotImplementedError):
    '''The error for a model whose output has no pair in it.'''


class Seed(NamedTuple):
    '''What enters at an output: its gradient, the number of activations before it, and its axis of samples.'''
    gradient: torch.Tensor
    depth: float
    batch: Axis | None

    def samples(self):
        '''Whether each sample explains this output, which it does not if its gradient is zero.'''
        return by_sample(self.gradient, self.batch).unsqueeze(-1).flatten(1).any(1)


class SplitPass(Pass):
    '''One forward pass of a model with all of its graph, of which the gradients are taken from outside at the place
    where the map is read.

    Parameters
    ----------
    canonizer : :py:class:`~zennit_dc.SplitCanonizer`
        What to compute.
    call : callable
        The original forward as a function of the list of its floating point inputs alone.
    place : int, optional
        The index of the input at which the map is read, if it is not read at a layer.
    layer : str, optional
        What the place is called at which the map is read, if it is the embedding of tokens. Default is the canonizer's
        layer.

    Attributes
    ----------
    awaited : :py:class:`~zennit_dc.core.pair.SplitTensor` or None
        The layer's output, until something is made of it: the map is read there, or after an activation.
    activated : :py:class:`~zennit_dc.core.pair.SplitTensor` or None
        The layer's output, if the map is read after its activation, of which nothing else may be made then.
    '''
    has_graph, follows = True, False

    def __init__(self, canonizer, call, place=0, layer=None):
        super().__init__(canonizer.pooling, canonizer.recentering, canonizer.rule, canonizer.root)
        self.canonizer, self.call, self.place = canonizer, call, place
        self.readout, self.layer = canonizer.readout, layer if canonizer.layer is None else canonizer.layer
        self.rules += rules_of(canonizer.root)
        self.sums_above = canonizer.needs_sums or canonizer.rule.quantity != 'sensitivity'
        self.sums = self.sums_above if self.layer is None else canonizer.needs_sums or self.readout.needs_sum
        self.inputs, self.read, self.seeds, self.losses = None, None, {}, {}
        self.awaited = self.activated = None
        self.awaited_graph = True  # whether operations had a graph when the layer ended

    @property
    def is_over(self):
        '''Whether the context of this pass has ended.'''
        return not self.canonizer.restore

    def makes_map(self):
        '''Whether the running backward pass is one that makes a map.'''
        return torch._C._current_graph_task_id() in self.seeds

    def begins_map(self):
        '''Whether a backward pass that comes from an output makes a map.'''
        return True

    def __call__(self, inputs):
        '''Run the model. The output has the difference in place of each split pair.'''
        self.inputs, output = inputs, None
        try:
            output = self.leave(self.call([self.enter(index) for index in range(len(inputs))]))
        finally:
            become_plain(self, output is not None)
        return output

    def enter(self, index):
        '''Split an input.'''
        input = self.inputs[index]
        stream_sum = input_sum(input, self.canonizer.input_split).to(sum_dtype(input.dtype))
        pair = SplitTensor(*self.split(index, input, stream_sum), self).as_input(self.samples_of(index))
        pair.depth = 0 if self.layer is None else -math.inf
        pair.places = input_places(index, input.shape) if self.follows else {}
        return pair

    def samples_of(self, index):
        '''The index of an input's axis of samples: the first one, or the second one if time comes first.'''
        shape, first = self.inputs[index].shape, self.inputs[0].shape
        second = self.canonizer.samples.get(self.root, 0) == 1 and len(shape) > 1 and shape[1] == first[1]
        return int(second and (len(shape) > 2 or index == 0 or shape[0] != first[1]))

    def require_samples(self, pair, axis):
        '''Start over, once for each model, where the samples of the first input are taken to be along its first axis,
        which is another one than that of a pair here, but may be along its second one.'''
        is_first = pair.batch is not None and pair.batch.index == 0 != axis
        may_be_second = self.inputs[0].shape[1:2] == pair.values[0].shape[axis:][:1]
        if is_first and may_be_second and self.root not in self.canonizer.samples:
            raise OtherSamples

    def require_found_samples(self, pairs):
        '''Start over with another axis of samples if this one is in none of the outputs: with the second one if that
        may be in them, once for each model, and with the first one again where neither is.'''
        if any(pair.batch is not None and pair.batch.index is not None for pair in pairs):
            return
        length = self.inputs[0].shape[1:2]
        may_be_second = bool(length) and any(pair.values[0].shape[:1] == length for pair in pairs)
        if self.canonizer.samples.get(self.root, may_be_second) == 1:
            raise OtherSamples

    def split(self, index, input, stream_sum):
        '''The difference and the sum of an input.'''
        values = same(input), stream_sum
        self.read = values if self.layer is None and index == self.place else self.read
        return values

    def sum_of_input(self, input):
        '''The sum of an input's streams.'''
        return input_sum(input, self.canonizer.input_split)

    def begin(self, pair):
        '''Called with an embedding of tokens, at which the map is read if no layer is named.'''
        if self.layer != self.canonizer.layer:
            self.at_layer(self.layer, pair)

    def at_layer(self, where, output):
        '''Called with the output of the layer at which the map is read, and what it is called.'''
        self.awaited, self.awaited_graph = output, torch.is_grad_enabled()

    def apply(self, function, args, kwargs):
        '''What the model gets for a function of pairs. The first one of the layer's output tells where the map is read:
        after an activation, else at the output itself. A number that is only read tells nothing.'''
        if self.awaited is self.activated is None or getattr(self.forms.get(function), 'is_reading', False):
            return super().apply(function, args, kwargs)
        pairs = pairs_in((args, kwargs))
        if len(pairs) == 1 and any(pairs[0] is each for each in (self.awaited, self.activated)):
            if self.root not in self.canonizer.several_uses and (found := number(function, args, kwargs)) is not None:
                return found
        if any(pair is self.activated for pair in pairs):
            raise SeveralUses
        if not any(pair is self.awaited for pair in pairs):
            return super().apply(function, args, kwargs)
        pair, self.awaited = self.awaited, None
        goes_on = torch.is_grad_enabled() == self.awaited_graph and self.root not in self.canonizer.several_uses
        if len(pairs) > 1 or name_of(function) not in ACTIVATIONS or not goes_on:
            self.read_at(pair)
            return super().apply(function, args, kwargs)
        output = super().apply(function, args, kwargs)
        self.activated = None if output is pair else pair  # which an activation in place has changed
        self.read_at(output)
        return output

    def evaluate(self, function, args, kwargs):
        '''What a function is on pairs, by its form; without one, a value that may be read.'''
        try:
            output = super().evaluate(function, args, kwargs)
        except Unsupported as error:
            return self.value_alone(function, args, kwargs, error)
        if not torch.is_grad_enabled() and self.has_graph and not self.without_graph:
            for pair in pairs_in(output):
                if not pair.values[0].requires_grad:
                    pair.depth = -math.inf  # as it does not depend on where the map is read
        return output

    def value_alone(self, function, args, kwargs, error):
        '''What a function without a form is on pairs: a value that may be read, or, behind and within an autograd
        function without a form, that goes on as one of which there is no map.'''
        cause = self.foreign_cause(args, kwargs)
        if cause is None and (kind := running_function()) is not None and not self.without_graph:
            cause = unsupported(f'{kind.__name__}.apply (an autograd function, which calls {error.name})', args)
        output = read_alone(function, args, kwargs, error)
        if cause is None:
            return output
        self.has_foreign = True
        for pair in pairs_in(output):
            pair.settle, pair.depth = None, -math.inf
        return foreign(output, cause)

    def read_at(self, pair):
        '''Read the map at a pair.'''
        layer = pair.layer and pair.layer._replace(is_read=True)
        read = ruled(pair, lambda *gradients: gradients)  # whose sum is no function of the difference any more
        self.read, self.sums = read.values, self.sums_above
        self.continue_from(pair, read.values, layer)

    @staticmethod
    def continue_from(pair, values, layer):
        '''Go on with other tensors of a pair, which the model has already.'''
        pair.values, pair.layer, pair.depth, pair.recipe, pair.is_gate = values, layer, 0, None, False
        pair.places = {}
        if any(tensor.requires_grad for tensor in values):
            with torch._C.DisableTorchFunctionSubclass():
                pair.requires_grad_()

    def leave(self, output):
        '''The differences of the output.'''
        if self.awaited is not None:
            self.read_at(self.awaited)
        if any(pair is self.activated for pair in pairs_in(output)):
            raise SeveralUses
        self.activated = None  # whose graph holds this object
        leaves, structure = flatten(output)
        pairs = {place: leaf for place, leaf in enumerate(leaves) if isinstance(leaf, SplitTensor)}
        if all(pair.is_probability for pair in pairs.values()):
            raise Independent(self.independence(output, leaves))
        common_pass('the end of the model', list(pairs.values()), {})
        if all(pair.foreign for pair in pairs.values()):
            raise next(iter(pairs.values())).foreign
        if self.layer is not None and self.read is None:
            how = 'or not on a split pair (but on what detach() returned, for one)'
            if isinstance(self.root, torch.fx.GraphModule):
                how = 'as a graph does not call them: torch.export.unflatten(program) does'
            raise ValueError(f'module {self.layer!r} was not called in this forward pass, {how}')
        reached = any(pair.difference.requires_grad and pair.depth > -math.inf for pair in pairs.values())
        self.require_found_samples(pairs.values())
        if self.has_graph and not reached:
            where = 'the input' if self.layer is None else f'the output of module {self.layer!r}'
            raise ValueError(
                f'the model\'s output does not depend on {where}, or what follows that runs in torch.no_grad()'
            )
        for place, pair in pairs.items():
            ends, stream_sum = (place, pair.depth, pair.batch), pair.tensors[1]
            seeds = partial(self.seeds_of, *ends, stream_sum.dtype, stream_sum.shape)
            if pair.foreign:
                values = [tensor.detach() for tensor in pair.tensors]
                leaves[place] = Node.apply([], partial(refused, pair.foreign), *values, *self.inputs)[0].clone()
                continue
            leaves[place] = self.end(seeds, *pair.tensors).clone()  # which may be changed in place
        return structure(leaves)

    def end(self, seeds, *tensors):
        '''The difference of an output, whose gradient enters by a function.'''
        return Node.apply([], seeds, *tensors)[0]

    @staticmethod
    def independence(output, leaves):
        '''What the error says where no part of the output is a pair.'''
        unknown = [leaf for leaf in leaves if type(leaf) not in LEAVES and not isinstance(leaf, torch.Tensor)]
        if not unknown:
            return (
                f'no part of the output, {type(output).__name__}, depends on the input: the model has computed it from'
                ' values that have left the graph, as .detach(), torch.no_grad() and new tensors make them'
            )
        where = '' if unknown[0] is output else f' in a {type(output).__name__}'
        return (
            f'the output of the model is an object of type {type(unknown[0]).__name__}{where}, in which no tensors are'
            ' found: return tensors, or tuples, lists, dicts or dataclasses of them (a generator as list(generator)),'
            ' or explain a module that returns the tensor of interest'
        )

    def seeds_of(self, place, depth, batch, sum_dtype, sum_shape, gradient, _):
        '''What enters the streams for the gradient at a place of the output, which is kept for the time of a backward
        pass that makes a map; or the gradient as it is.'''
        refuse_batch(gradient)
        if not self.begins_map():
            return gradient, None
        task = torch._C._current_graph_task_id()
        if task not in self.seeds:
            # not longer than this pass, as the gradient may be made of the output whose graph holds this object
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self.forget(task))
        self.seeds.setdefault(task, {})[place] = Seed(gradient, max(depth, 1), batch)
        damping = self.canonizer.rule.output_damping(max(depth, 1))
        seed, sum_seed = self.readout.seed(gradient, sum_dtype, damping)
        return seed, shared_seed(sum_seed, sum_shape)

    def forget(self, task):
        '''Keep nothing of a backward pass that is over.'''
        self.seeds.pop(task)
        self.losses.pop(task, None)

    def largest_depth(self):
        '''The number of activations before the output that is explained, or the largest if there are several.'''
        return max(seed.depth for seed in self.seeds[torch._C._current_graph_task_id()].values())

    def explained_depth(self, rows):
        '''The number of activations before the outputs that each of the samples in the rows of a tensor explains, the
        largest of several.'''
        seeds = self.seeds[torch._C._current_graph_task_id()].values()
        if len({seed.depth for seed in seeds}) == 1:
            return self.largest_depth()
        explains = [(seed.samples(), seed.depth) for seed in seeds]
        depths = [torch.where(own if len(own) == len(rows) else own.any(), depth, 1) for own, depth in explains]
        largest = torch.stack([depth.expand(len(rows)) for depth in depths]).amax(0)
        return largest.to(rows.dtype).reshape(-1, *(1,) * (rows.ndim - 1))


class MapPass(SplitPass):
    '''One forward pass of a model whose backward passes return the map as the gradient of the input. Below a layer it
    has no graph.'''
    def __init__(self, canonizer, call, layer=None):
        super().__init__(canonizer, call, layer=layer)
        self.follows, self.places, self.explained = self.layer is not None, None, 0
        tensors, self.entrances, self.maps = tensors_of(self.root), [], []
        self.state, self.trained = state_of(tensors), [tensor for tensor in tensors if tensor.requires_grad]
        kind = self.device_type = next((device for *_, device, _ in self.state), 'cpu')
        self.autocast_dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        self.calls, self.is_inside = 0, False  # of functions on pairs, and within one
        self.exits, self.batches = [], set()  # nodes of outputs, and backward passes with several gradients
        self.has_left = False  # whether the forward pass is at its end
        self.may_differentiate = False  # whether the caller of the running function has a graph

    def __call__(self, inputs):
        '''Run the model. The output has the difference in place of each split pair.'''
        self.has_graph = torch.is_grad_enabled() and any(input.requires_grad for input in inputs)
        self.without_graph = self.layer is not None or not self.has_graph
        if self.canonizer.shared and self.has_graph and len(inputs[0]) > 1:
            self.first_shared = self.canonizer.first_shared.get(self.root, 0)
        return super().__call__(inputs)

    def apply(self, function, args, kwargs):
        '''What the model gets for a function of pairs, or, after the end of the model, what it is for the values of
        those that were asked for their gradient.'''
        if self.has_left and torch._C._current_graph_task_id() == -1:
            is_reading = getattr(self.forms.get(function), 'is_reading', False)
            if not is_reading and any('tap' in vars(pair) for pair in pairs_in((args, kwargs))):
                return function(*plain(args), **plain(kwargs))
        self.may_differentiate = torch.is_grad_enabled()
        return super().apply(function, args, kwargs)

    def evaluate(self, function, args, kwargs):
        '''What a function is on pairs, by its form.'''
        if self.has_left and self.layer is not None and torch._C._current_graph_task_id() != -1:
            if any(pair.depth == -math.inf for pair in pairs_in((args, kwargs))):  # of which nothing was kept
                where = f'what comes before module {self.layer!r}'
                raise RuntimeError(f'{where} is run again by a checkpoint: read the map outside of it')
        if self.first_shared is None or self.is_inside:
            return super().evaluate(function, args, kwargs)
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError('a checkpoint runs a part of the model again: do without shared=True')
        self.calls, self.is_inside = self.calls + 1, True
        try:
            evaluate = super().evaluate
            if self.sums or self.calls <= self.first_shared:
                return evaluate(function, args, kwargs)
            return evaluated(self, evaluate, function, args, kwargs)
        finally:
            self.is_inside = False

    def require_full(self):
        '''Start over with full sums up to here, if they are shared.'''
        if self.first_shared is None or self.sums:
            return
        self.calls += not self.is_inside
        if self.shares or not self.is_inside and self.calls > self.first_shared:
            raise Unshared(self.calls)

    def leave(self, output):
        '''The differences of the output.'''
        for pair in pairs_in(output):
            if pair.values[1].shape != pair.values[0].shape and not is_shared(pair):
                raise Unshared(self.calls)
        self.has_left = True
        output = super().leave(output)
        if self.layer is not None and self.places is None:
            self.places = self.found_places(is_last=True)
        return output

    def begins_map(self):
        '''Whether a backward pass that comes from an output makes a map: it does if it gets to the place where one is
        read, and does not also differentiate a map of this forward pass.'''
        reaches = torch._C._will_engine_execute_node
        entrances, maps = (any(map(reaches, alive(nodes))) for nodes in (self.entrances, self.maps))
        return entrances and not maps

    def end(self, seeds, *tensors):
        '''The difference of an output, whose gradient enters by a function; the maps of several at once go to the
        inputs from here.'''
        inputs = [input for input in self.inputs if input.requires_grad and tensors[0].requires_grad]

        def maps(gradient):
            with torch.enable_grad():
                output = super(MapPass, self).end(seeds, *tensors)
            return torch.autograd.grad(output, inputs, gradient, retain_graph=True, allow_unused=True)

        def enter(gradient, sum_gradient):
            if not is_batch(gradient):
                return *seeds(gradient, sum_gradient), *[None] * len(inputs)
            self.begin_batch()
            return None, None, *maps_of_batch(self.readout, maps, gradient, alive(self.exits), self.trained)

        return Node.apply(self.exits, enter, *tensors, *inputs)[0]

    def begin_batch(self):
        '''Note for the time of this backward pass that there is nothing between outputs and inputs.'''
        if not self.begins_map():
            raise refused_batch('several gradients in one backward pass that does not reach the input, or a map')
        task = torch._C._current_graph_task_id()
        self.batches.add(task)
        torch.autograd.Variable._execution_engine.queue_callback(lambda: self.batches.discard(task))

    def split(self, index, input, stream_sum):
        '''The difference and the sum of an input, whose gradient is the map.'''
        if self.without_graph:
            return same(input.detach()), stream_sum.detach()
        return self.read_off(Node.apply(self.entrances, partial(self.input_gradients, index), input, stream_sum))

    def read_off(self, values):
        '''The difference and the sum at the place where the map is read, of which the sum gets no gradient if there is
        nothing to read off it.'''
        difference, stream_sum = values
        return difference, stream_sum if self.readout.reads_sum or self.sums_above else stream_sum.detach()

    def embedded(self, difference, stream_sum):
        '''The difference and the sum of an embedding of tokens.'''
        return same(difference.detach()), stream_sum.detach()

    def at_layer(self, where, output):
        '''Called with the output of the layer at which the map is read, and what it is called.'''
        self.require_one_map(where, output)
        self.found = LayerOutput(where, output)
        self.places = self.found_places()
        super().at_layer(where, output)

    def read_at(self, pair):
        '''Go on with a pair as if the input were all it depends on. Its places are followed until it is known where the
        input has its channels.'''
        places = pair.places if self.places is None else {}
        super().read_at(pair)
        values, self.read, self.without_graph = self.read, True, not self.has_graph
        if self.has_graph:
            with torch.enable_grad():
                inputs = [self.marked(input, self.entrances) for input in self.inputs]
                function = partial(self.layer_gradients, values)
                values = self.read_off(Node.apply([], function, *values, *inputs, *self.trained))
        self.continue_from(pair, values, pair.layer)
        pair.places = places

    def found_places(self, is_last=False):
        '''The places of the layer's output, and the input that has them, or None as long as it is not known where this
        has its channels.'''
        found, inputs = self.found, [(index, self.shape_of(index)) for index in self.found.sources]
        channels = {index: self.channels_of(index, is_last) for index, _ in inputs}
        known = [(index, shape) for index, shape in inputs if channels[index] != ()]
        for index, shape in known if self.canonizer.grid is None else ():
            own = found.places_of(index, shape, self.tokens, self.samples_of(index))
            places = followed(found.shape, own, channels[index], found.channels)
            if places is not None:
                self.explained, self.region = index, (places.axes, places.windows)
                return places
        if not is_last and len(known) < len(inputs):
            return None
        index, shape = (known or inputs)[0]
        return self.likely_places(index, shape, channels[index] if known else 1, bool(known))

    def likely_places(self, index, shape, channels, is_known):
        '''The places of the layer's output for all that its shape says.'''
        found, axes = self.found, [axis for axis in range(1, len(shape)) if axis != channels]
        count = shape[channels] if channels in range(len(shape)) else 1
        arranged = shape[0], count, *(shape[axis] for axis in axes)
        places = places_of(found.where, found.shape, arranged, found.channels, self.canonizer.grid)
        if not is_known:
            raise channels_unknown(found.where, shape)
        self.explained, self.region = index, (axes, [(0, shape[axis]) for axis in axes])
        return places

    def channels_of(self, index, is_last):
        '''The index of an input's axis of channels, None if it has none, or () if it is not known.'''
        given, shape = self.canonizer.channels, self.inputs[index].shape
        if given is not None and index == self.found.sources[0]:
            found = given_channels(given, shape)
        else:
            likely = likely_channels(shape) if is_last else None
            found = self.input_channels.get(index, () if likely is None else likely)
        return 1 if found == 0 and self.samples_of(index) == 1 else found

    def shape_of(self, index):
        '''The shape of an input with its samples first.'''
        shape, samples = self.inputs[index].shape, self.samples_of(index)
        return torch.Size((shape[samples], *shape[:samples], *shape[samples + 1:]))

    def require_one_map(self, where, output):
        '''Raise an error if there is not one map at a layer's output.'''
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(f'{where} is run again in the backward pass by a checkpoint: read the map outside of it')
        if not isinstance(output, SplitTensor):
            raise ValueError(f'the output of {where} is not one tensor but {type(output).__name__}')
        if isinstance(output.settle, Refused):
            raise output.settle.error
        if output.dtype.is_complex:
            raise ValueError(f'the output of {where} is complex: choose the module that takes its absolute value')
        if self.read is not None or self.awaited is not None:
            remedy = 'so that there is not one map at its output: choose a module that is called once'
            raise ValueError(f'{where} was called more than once in this forward pass, {remedy}')

    def input_gradients(self, index, *gradients):
        '''The gradients by an input, and by its sum: the map, or the true ones.'''
        if not self.makes_map():
            return gradients
        dtype = self.inputs[index].dtype
        map = self.readout.combine(*gradients).to(dtype)
        map = self.exact(map, self.combined, dtype, index, self.samples_of(index))
        self.require_dependence(map)
        return self.marked(map, self.maps), None

    def layer_gradients(self, values, *gradients):
        '''The gradients by the layer's output, the inputs and the parameters: the map for the input that has its
        places, or the true ones of what is below the layer, which is run again for them.'''
        input, maps = self.inputs[self.explained], [None] * (len(self.inputs) + len(self.trained))
        if torch._C._current_graph_task_id() in self.batches:
            return None, None, *maps
        if not self.makes_map():
            return None, None, *self.below_layer(*gradients)
        saliency = self.saliency(*(self.again() if torch.is_grad_enabled() else (*gradients, *values)))
        saliency = self.exact(saliency, self.saliency, input.dtype)
        if not saliency.any():
            self.places.require_reached(f'module {self.layer!r}', *gradients)
        self.require_dependence(saliency)
        self.readout.saliency = saliency.detach()
        map = laid_over(saliency, self.shape_of(self.explained), *self.region).to(input.dtype)
        map = map.movedim(0, self.samples_of(self.explained))
        maps[self.explained] = self.marked(map, self.maps)
        return None, None, *maps

    def combined(self, gradient, sum_gradient, *_):
        '''The map of an input, from the gradients of its difference and sum.'''
        return self.readout.combine(gradient, sum_gradient)

    def saliency(self, *tensors):
        '''The map of a layer's output, from the gradients of its difference and sum, and these.'''
        shape = tensors[0].shape  # sums may have one sample for all
        return self.readout.at_layer(*(self.places.arranged(tensor.expand(shape)) for tensor in tensors))

    def note_loss(self, loss):
        '''Keep how much rounding changes a map, for the time of this backward pass; but not with autocast, in which
        that is far more.'''
        if self.autocast_dtype is None:
            self.losses.setdefault(torch._C._current_graph_task_id(), []).append(loss())

    def exact(self, map, read, dtype, index=0, samples=0):
        '''A map; or what is read off another pass in float64, where it is not finite, or rounding changes it.'''
        finite, losses = is_finite(map), self.losses.get(torch._C._current_graph_task_id())
        part = part_of(map.movedim(samples, 0), losses) if losses and map.numel() else 0.
        if finite and part <= EXACT:
            return map
        try:
            tensors = self.again(index, exact=True)
        except RuntimeError as error:
            if not finite:
                raise
            warnings.warn(
                f'rounding may change the map of {self.readout.name} by {min(part, 1.):.1g} of its largest value,'
                f' and it cannot be computed in float64: {error}', stacklevel=2
            )
            return map
        return self.in_range(read(*tensors), dtype, samples)

    def require_dependence(self, map):
        '''Raise if a map is zero because weights are, as those of a head that is not trained yet.'''
        seeds = self.seeds[torch._C._current_graph_task_id()]
        if map.any() or not any(seed.gradient.any() for seed in seeds.values()):
            return
        zero = [name for name, tensor in self.root.named_parameters()
                if not tensor.any() and (tensor.ndim > 1 or not name.endswith('bias'))]  # norms may start at zero
        if zero:
            through = '' if self.layer is None else f' through module {self.layer!r}'
            others = f' and {len(zero) - 3} others' if len(zero) > 4 else ''
            raise ValueError(
                f'the map of {self.readout.name} is zero, as the class\'s score does not depend on the input{through}:'
                f' all of {", ".join(zero[:3] if others else zero)}{others} is zero. Load trained weights'
            )
        if self.readout.vanishes:
            warnings.warn(f'the map of {self.readout.name} is zero: {self.readout.vanishes}', stacklevel=2)

    def in_range(self, map, dtype, samples=0):
        '''A map in float64 in another dtype, scaled by a power of two for each image where it is too large for it.'''
        if not is_finite(map):
            raise FloatingPointError(f'the map of {self.readout.name} is not finite: {self.readout.advice}')
        others = [axis for axis in range(map.ndim) if axis != samples]
        largest = map.detach().abs().amax(others, keepdim=True) if others else map.detach().abs()
        power = (math.frexp(torch.finfo(dtype).max)[1] - 2 - torch.frexp(largest)[1]).clamp(max=0)
        powers = power.flatten().tolist()
        factors = map.new_tensor([math.ldexp(1., each) for each in powers])  # torch.ldexp may take float32
        if power.any():
            how = f'image by image, by two to the power of {powers}; a larger alpha avoids this'
            warnings.warn(f'the map of {self.readout.name} is too large for {dtype}: it is scaled, {how}', stacklevel=2)
        return (map * factors.reshape(power.shape)).to(dtype)

    def again(self, index=0, exact=False):
        '''The gradients of difference and sum at the place where the map is read, and these tensors, from another pass
        with all of its graph; if exact, in float64.'''
        seeds = self.seeds[torch._C._current_graph_task_id()]
        _, output, read = self.other_pass(index, exact)
        leaves = flatten(output)[0]
        seeded = [(leaves[place], seed.gradient.to(leaves[place].dtype)) for place, seed in seeds.items()]
        return *gradients(read, seeded, materialize_grads=True), *read

    def below_layer(self, *layer_gradients):
        '''The true gradients by inputs and parameters of what is below the layer.'''
        other, _, read = self.other_pass()
        seeded = [(tensor, gradient.expand_as(tensor)) for tensor, gradient in zip(read, layer_gradients)
                  if tensor.requires_grad]
        return gradients([*other.inputs, *self.trained], seeded, allow_unused=True)

    def other_pass(self, index=0, exact=False):
        '''Another forward pass with all of its graph, its output, and the tensors at which the map is read.'''
        if self.is_over or self.state != state_of(tensors_of(self.root)):
            raise RuntimeError(
                'to compute this map, the model has to be run again, but it has changed since its forward pass: call'
                ' the backward pass inside of the composite\'s context and with the same parameters'
            )
        graph, dtype = torch.is_grad_enabled(), None if exact else self.autocast_dtype
        with torch.enable_grad(), torch.autocast(self.device_type, dtype, enabled=dtype is not None):
            inputs = [same(input) if graph else input.detach().requires_grad_() for input in self.inputs]
            call, inputs = in_float64(self.root, self.call, inputs) if exact else (self.call, inputs)
            other = SplitPass(self.canonizer, call, index, self.layer)
            output = other(inputs)
            read, other.read = other.read, None  # as their graph holds the pass
        return other, output, read

    @staticmethod
    def marked(tensor, nodes):
        '''A tensor such that it is noticed when it is differentiated.'''
        return Node.apply(nodes, lambda gradient: (gradient,), tensor)[0] if torch.is_grad_enabled() else tensor


class LayerOutput:
    '''What is known of the output of the layer at which the map is read.

    Parameters
    ----------
    where : str
        The layer, as it is called in errors.
    pair : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The output.
    '''
    def __init__(self, where, pair):
        place = pair.place('channels')
        self.where, self.shape, self.places = where, pair.values[0].shape, pair.places
        self.channels = None if place is None else len(self.shape) + place
        self.sources = sorted({source for source, _ in pair.places}) or [0]

    def places_of(self, index, shape, tokens, samples=0):
        '''The places of an input of a shape, which has its samples first; where they are lost, those of the only axis
        that is as long as tokens were where they were known.'''
        places = samples_first(self.places, samples)
        tokens = {length: samples_first(hints, samples) for length, hints in tokens.items()}
        own = {axis: places.get((index, axis)) for axis in range(len(shape))}
        own = {axis: place if places.get((index, -1 - axis)) is None else None for axis, place in own.items()}
        lost = [axis for axis, place in own.items() if place is None]
        if not lost:
            return own
        along = [axis for axis, length in enumerate(self.shape) if axis not in (0, self.channels) and length in tokens]
        hints = tokens[self.shape[along[0]]] if len(along) == 1 and self.shape[0] == shape[0] else {}
        if any(axis > 0 and source == index and own.get(axis) is not None for source, axis in hints):
            return own  # the axis is as long as tokens by chance, as one of those that they consist of is elsewhere
        own[0] = Place.of_input(0, shape[0]) if hints and own[0] is None else own[0]
        return {axis: hints[index, axis]._replace(axis=along[0]) if place is None and (index, axis) in hints else place
                for axis, place in own.items()}


def samples_first(places, samples):
    '''The places of inputs whose samples are along an axis, the first one or the second one, with that as the first.'''
    other = {0: 1, 1: 0, -1: -2, -2: -1} if samples else {}
    return {(source, other.get(axis, axis)): place for (source, axis), place in places.items()}


def sequence_of(module, output):
    '''The tensor in a layer's output at which a map is read: of recurrent layers, the outputs of all steps; of a layer
    that returns several values, the only one that depends on the input.'''
    if isinstance(module, torch.nn.RNNBase):
        return output[0]
    pairs = pairs_in(output)
    return pairs[0] if isinstance(output, (tuple, list)) and len(pairs) == 1 else output


class Node(torch.autograd.Function):
    '''The first one or two of several tensors as they are. A function of their gradients returns the gradients of all.

    Parameters
    ----------
    nodes : list
        Where to note this node of the graph, by a weak reference.
    function : callable
        The function.
    *tensors : :py:class:`torch.Tensor`
        The tensors.
    '''
    @staticmethod
    def forward(ctx, nodes, function, *tensors):
        ctx.function = function
        nodes.append(weakref.ref(ctx))
        return tuple(same(tensor) for tensor in tensors[:2])

    @staticmethod
    def backward(ctx, *gradients):
        return None, None, *ctx.function(*gradients)


def alive(nodes):
    '''Those of some nodes that still exist.'''
    return [node for node in (reference() for reference in nodes) if node is not None]


def running_function():
    '''The autograd function in whose forward this is called, or None.'''
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == 'apply' and frame.f_globals.get('__name__') == 'torch.autograd.function':
            return frame.f_locals['cls']
        frame = frame.f_back
    return None


def refused(error, *gradients):
    '''Raise the error for an output of which there is no map, where anything asks for one.'''
    raise error


def in_float64(root, call, inputs):
    '''The call of a model with its parameters and buffers in float64, and its inputs.'''
    calling = torch.nn.ModuleDict({'root': root})
    calling.forward = call
    tensors = {name: tensor.double() for name, tensor in chain(calling.named_parameters(), calling.named_buffers())
               if tensor.is_floating_point()}
    return lambda inputs: torch.func.functional_call(calling, tensors, (inputs,)), [each.double() for each in inputs]


def gradients(tensors, seeded, **kwargs):
    '''The gradients by tensors of outputs that are given with what enters there.'''
    outputs, seeds = zip(*seeded)
    return torch.autograd.grad(outputs, tensors, seeds, create_graph=torch.is_grad_enabled(), **kwargs)


def rules_of(root):
    '''The rules that are registered to the model itself, whose hooks see tensors that are not split yet.'''
    owners = [getattr(hook, '__self__', None) for hook in root._forward_pre_hooks.values()]
    return [owner for owner in reversed(owners) if isinstance(owner, SplitRule)]


def tensors_of(root):
    '''The parameters and buffers of a model, each of them once.'''
    found = (each for module in modules_of(root) for each in (*module._parameters.values(), *module._buffers.values()))
    return list({id(tensor): tensor for tensor in found if tensor is not None}.values())


def state_of(tensors):
    '''What tells whether tensors are others than before.'''
    return [(id(tensor), tensor._version, tensor.device.type, tensor.data_ptr()) for tensor in tensors]


def part_of(map, losses):
    '''The largest of some losses, as a part of the largest entry of a map of any sample that is not zero.'''
    largest = map.detach().abs().reshape(len(map), -1).amax(1)
    return (torch.stack(losses).amax() / largest.masked_fill(largest == 0., math.inf).amin()).item()


def is_finite(map):
    '''Whether all entries are finite.'''
    return bool(torch.isfinite(map.detach()).all())
