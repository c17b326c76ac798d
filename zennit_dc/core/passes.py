'''One forward pass of a model in split form, and the backward passes that make its map.

The way of a call, in the order of this file: ``run`` calls the model on the pairs that ``enter`` makes of its inputs.
Each function of a pair comes to ``apply``, which calls its form. Forms are made of building blocks, which ask the rule
of the running module what becomes of gradients there (``rules.py``). ``leave`` returns the differences of the output. A
gradient that arrives there goes through ``seeds_of``, by which the readout says what enters the two streams
(``streams.py``), and then through the rules. Where it comes to the node that ``enter`` has made, ``input_gradients``
has the readout make the map of it. At a layer, ``core/layers.py`` puts this node behind the layer's output.

A backward pass makes a map if it comes from the output of a forward pass and reaches the place where the map is read:
the input, or a layer. In this backward pass rules hold. In any other, such as one that differentiates a map, all
gradients are the true ones, so that nothing has to be recorded for it.
'''
import math
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch

from ..forms.reading import value_alone
from ..forms.table import plain
from ..rules import rules_of
from .axes import Axis, axes_of_samples, by_sample, require_found_samples
from .batches import is_batch, maps_of_batch, refused, within_transforms
from .errors import SUMS, Unsupported, independence, probabilities
from .following import input_places
from .graphs import Node, same
from .layers import LayerOutput, end_layer, require_one_map, use_layer
from .maps import Rerun, gradients_of_output, input_gradients, trained_of
from .nested import flatten
from .pair import LEAVES, PROBABILITY, Pass, SplitTensor, common_pass, pairs_in
from .settings import Mode
from .views import alive, become_plain


class Seed(NamedTuple):
    '''What enters at an output: its gradient, the number of activations before it, and its axis of samples.'''
    gradient: torch.Tensor
    depth: float
    batch: Axis | None

    def samples(self):
        '''Whether each sample explains this output, which it does not if its gradient is zero.'''
        return by_sample(self.gradient, self.batch).unsqueeze(-1).flatten(1).any(1)


class Backward(NamedTuple):
    '''A running backward pass that makes a map: what enters at the outputs, by their indices, and how much rounding
    changes the map.'''
    seeds: dict
    losses: list


class Nodes(NamedTuple):
    '''Nodes of the graph, by weak references: those at which the map is read, those of the outputs, and those behind a
    map that can be differentiated.'''
    entrances: list
    exits: list
    maps: list


class MapPass(Pass):
    '''One forward pass of a model, whose backward passes return the map as the gradient of the input. Below a layer it
    has no graph.

    Parameters
    ----------
    canonizer : :py:class:`~zennit_dc.SplitCanonizer`
        What to compute.
    call : callable
        The original forward as a function of the list of its floating point inputs alone.
    inputs : list of :py:class:`torch.Tensor`
        These inputs.
    layer : str, optional
        What the place is called at which the map is read, if it is the embedding of tokens. Default is the canonizer's
        layer.
    probe : :py:class:`~zennit_dc.core.maps.Probe`, optional
        What gets the tensors at which the map is read, in a pass that is run again: it has all of its graph, and the
        gradients are taken from outside.

    Attributes
    ----------
    backward : dict
        The :py:class:`Backward` of each backward pass that is running, by its number, or None for one with several
        gradients at once.
    nodes : :py:class:`Nodes`
        The nodes of the graph by which backward passes are told apart.
    output : :py:class:`~zennit_dc.core.layers.LayerOutput` or None
        What is known of the output of the layer at which the map is read.
    has_left : bool
        Whether the forward pass has ended.
    '''
    def __init__(self, canonizer, call, inputs, layer=None, probe=None):
        super().__init__(canonizer)
        self.layer, self.probe = layer if canonizer.layer is None else canonizer.layer, probe
        self.rerun = Rerun.of(canonizer.root, call, inputs)
        self.rules += rules_of(canonizer.root, [canonizer.root])  # whose hooks see tensors that are not split yet
        sums = self.sums_above if self.layer is None else SUMS in self.known or self.readout.sums
        has_graph = torch.is_grad_enabled() and any(input.requires_grad for input in inputs)
        self.mode = Mode(sums, has_graph and (probe is not None or self.layer is None), has_graph)
        self.input_axes.samples.extend(axes_of_samples(inputs, self.known))
        self.backward, self.nodes = {}, Nodes([], [], [])
        self.output, self.has_left = None, False

    @property
    def canonizer(self):
        '''The canonizer, which has the settings.'''
        return self.settings

    @property
    def inputs(self):
        '''The inputs of the model.'''
        return self.rerun.inputs

    @property
    def readout(self):
        '''What enters at the output, and the map it makes.'''
        return self.canonizer.readout

    @property
    def known(self):
        '''What has turned out about the model in passes that started over.'''
        return self.settings.choices.known[self.settings.root]

    @property
    def sums_above(self):
        '''Whether the value of the sum is computed above the layer.'''
        return SUMS in self.known or self.canonizer.rule.quantity != 'sensitivity'

    # the forward pass

    def run(self):
        '''Run the model. The output has the difference in place of each split pair.'''
        output = None
        try:
            output = self.leave(self.rerun.call([self.enter(index) for index in range(len(self.inputs))]))
            self.has_left = self.probe is None
        finally:
            become_plain(self, output is not None)
            if output is None:
                self.output = None  # whose graph holds this object
        return output

    def enter(self, index):
        '''Split an input.'''
        input = self.inputs[index]
        samples = self.input_axes.samples[index]
        pair = SplitTensor(*self.entered(index, input, self.sum_of_input(input)), self).as_input(samples)
        pair.depth = 0 if self.layer is None else -math.inf
        if self.layer is not None and self.probe is None:
            pair.axes = pair.axes._replace(places=input_places(index, input.shape, samples))
        return pair

    def entered(self, index, input, stream_sum):
        '''The difference and the sum of an input, of which the gradient is the map if it is read there.'''
        if not self.mode.keeps_graph:
            return same(input.detach()), stream_sum.detach()
        if self.probe is None:
            read = partial(input_gradients, self, index)
            return self.read_off(Node.apply(self.nodes.entrances, read, input, stream_sum))
        values = same(input), stream_sum.requires_grad_()  # which has no graph of its own where all of it is zero
        if self.layer is None and index == self.probe.index:
            self.probe.tensors = values
        return values

    def read_off(self, values):
        '''The difference and the sum at the place where the map is read, of which the sum gets no gradient if there is
        nothing to read off it.'''
        difference, stream_sum = values
        return difference, stream_sum if self.readout.reads_sum or self.sums_above else stream_sum.detach()

    def embedded(self, difference, stream_sum):
        '''The difference and the sum of an embedding of tokens.'''
        return (difference, stream_sum) if self.probe else (same(difference.detach()), stream_sum.detach())

    # functions of pairs

    def apply(self, function, args, kwargs, pairs):
        '''What the model gets for a function of pairs; or, after the end of the model, what it is for the values of
        those that were asked for their gradient.'''
        if not self.only_reads(function):
            is_after = self.has_left and torch._C._current_graph_task_id() == -1
            if is_after and any('tap' in vars(pair) for pair in pairs):
                return function(*plain(args), **plain(kwargs))
            if self.output is not None and any(pair is self.output.pair for pair in pairs):
                return use_layer(self, function, args, kwargs, pairs)
        return self.evaluate(function, args, kwargs, pairs)

    def only_reads(self, function):
        '''Whether the form of a function makes no pair.'''
        return getattr(self.forms.get(function), 'is_reading', False)

    def evaluate(self, function, args, kwargs, pairs):
        '''What a function is on pairs, by its form and with a graph where one is needed; without a form, a value that
        may be read.'''
        self.require_kept(pairs)
        with nullcontext() if self.mode.keeps_graph or self.only_reads(function) else torch.no_grad():
            try:
                output = super().apply(function, args, kwargs, pairs)
            except Unsupported as error:
                return value_alone(function, args, kwargs, pairs, error)
            if not torch.is_grad_enabled() and self.mode.keeps_graph:
                for pair in pairs_in(output):
                    if not pair.values[0].requires_grad:
                        pair.depth = -math.inf  # as it does not depend on where the map is read
        return output

    def require_kept(self, pairs):
        '''Raise if a checkpoint runs again what comes before the layer, of which nothing was kept.'''
        is_again = self.has_left and self.layer is not None and torch._C._current_graph_task_id() != -1
        if is_again and any(pair.depth == -math.inf for pair in pairs):
            where = f'what comes before module {self.layer!r}'
            raise RuntimeError(f'{where} is run again by a checkpoint: read the map outside of it')

    # the layer

    def at_layer(self, where, output):
        '''Called with the output of the layer at which the map is read, and what it is called.'''
        if self.probe is None:
            require_one_map(where, output, self.output is not None)
        self.output = LayerOutput(where, output)
        self.output.locate(self)

    def reads_next(self, pair):
        '''Whether a map is read at a pair, or after the activation that comes next.'''
        return self.output is not None and self.output.pair is pair and not self.output.is_read

    # the end of the model

    def leave(self, output):
        '''The differences of the output.'''
        if self.output is not None:
            end_layer(self, output)
        leaves, structure = flatten(output)
        pairs = {index: leaf for index, leaf in enumerate(leaves) if isinstance(leaf, SplitTensor)}
        if not pairs:
            raise independence(output, [leaf for leaf in leaves if type(leaf) not in LEAVES])
        if all(PROBABILITY in pair.facts for pair in pairs.values()):
            raise probabilities(next(iter(pairs.values())).title)
        common_pass('the end of the model', list(pairs.values()))
        self.require_reached(pairs.values())
        for index, pair in pairs.items():
            leaves[index] = self.left(index, pair)
        if self.output is not None:
            self.output.locate(self, is_last=True)
        return structure(leaves)

    def require_reached(self, pairs):
        '''Raise if no map of these pairs can be had, or start over if it is not along which axis they have samples.'''
        if all(pair.unmapped for pair in pairs):
            raise next(iter(pairs)).unmapped
        if self.layer is not None and (self.output is None or not self.output.is_read):
            how = 'or not on a split pair (but on what detach() returned, for one)'
            if isinstance(self.root, torch.fx.GraphModule):
                how = 'as a graph does not call them: torch.export.unflatten(program) does'
            raise ValueError(f'module {self.layer!r} was not called in this forward pass, {how}')
        reached = any(pair.difference.requires_grad and pair.depth > -math.inf for pair in pairs)
        require_found_samples(self, pairs)
        if self.mode.has_graph and not reached:
            where = 'the input' if self.layer is None else f'the output of module {self.layer!r}'
            raise ValueError(
                f'the model\'s output does not depend on {where}, or what follows that runs in torch.no_grad()'
            )

    def left(self, index, pair):
        '''The difference of a pair that is the leaf of the output with an index; it may be changed in place.'''
        if pair.unmapped:
            values = [tensor.detach() for tensor in pair.tensors]
            return Node.apply([], partial(no_map, pair.unmapped), *values, *self.inputs)[0].clone()
        seeds = partial(self.seeds_of, index, pair.depth, pair.axes.batch, pair.tensors[1].dtype)
        exit = Node.apply([], seeds, *pair.tensors)[0] if self.probe else self.exit(index, seeds, *pair.tensors)
        return exit.clone()

    def exit(self, index, seeds, *tensors):
        '''The difference of an output, whose gradient enters by a function. From here, the maps of several at once go
        to the inputs, and true gradients to inputs and parameters where nothing below a layer has a graph.'''
        inputs = [input for input in self.inputs if input.requires_grad and tensors[0].requires_grad]
        others = trained_of(self.root) if inputs and self.layer is not None else []

        def maps(gradient):
            with torch.enable_grad():
                output = Node.apply([], seeds, *tensors)[0]
            return torch.autograd.grad(output, inputs, gradient, retain_graph=True, allow_unused=True)

        def enter(gradient, sum_gradient):
            if is_batch(gradient):
                if not self.begins_map():
                    raise refused('several gradients in one backward pass that does not reach the input, or a map')
                self.begin_backward(None)  # as there is nothing between outputs and inputs
                found = maps_of_batch(self.readout, maps, gradient, alive(self.nodes.exits), trained_of(self.root))
                return None, None, *found, *[None] * len(others)
            if self.layer is not None and inputs and not self.begins_map():
                return None, None, *gradients_of_output(self, index, gradient, others)
            return *seeds(gradient, sum_gradient), *[None] * (len(inputs) + len(others))

        return Node.apply(self.nodes.exits, enter, *tensors, *inputs, *others)[0]

    # backward passes

    def makes_map(self):
        '''Whether the running backward pass is one that makes a map.'''
        return self.backward.get(torch._C._current_graph_task_id()) is not None

    def begins_map(self):
        '''Whether a backward pass that comes from an output makes a map: it does if it gets to the place where one is
        read, and does not also differentiate a map of this forward pass.'''
        if self.probe is not None:
            return True
        if not self.canonizer.active:
            return False
        reaches = torch._C._will_engine_execute_node
        entrances, maps = (any(map(reaches, alive(nodes))) for nodes in (self.nodes.entrances, self.nodes.maps))
        return entrances and not maps

    def begin_backward(self, backward):
        '''Keep something for the time of the running backward pass, and not longer than this pass, as what enters may
        be made of the output whose graph holds this object.'''
        task = torch._C._current_graph_task_id()
        if task not in self.backward:
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self.backward.pop(task))
        return self.backward.setdefault(task, backward)

    def has_batch(self):
        '''Whether the running backward pass is one with several gradients at once.'''
        return self.backward.get(torch._C._current_graph_task_id(), self) is None

    def seeds_of(self, index, depth, batch, sum_dtype, gradient, _):
        '''What enters the streams for the gradient at an output, which is kept for the time of a backward pass that
        makes a map; or the gradient as it is.'''
        if is_batch(gradient) or within_transforms():
            raise refused('several gradients in one backward pass from a tensor within the model, or in a vmap')
        if not self.begins_map():
            return gradient, None
        depth = max(depth, 1)
        self.begin_backward(Backward({}, [])).seeds[index] = Seed(gradient, depth, batch)
        return self.readout.seed(gradient, sum_dtype, self.canonizer.rule.output_damping(depth))

    @property
    def running(self):
        '''The backward pass that is running.'''
        return self.backward[torch._C._current_graph_task_id()]

    def note_loss(self, loss):
        '''Keep how much rounding changes a map, for the time of this backward pass; but not with autocast, in which
        that is far more.'''
        if self.probe is None and self.rerun.autocast is None:
            self.running.losses.append(loss())

    def largest_depth(self):
        '''The number of activations before the output that is explained, or the largest if there are several.'''
        return max(seed.depth for seed in self.running.seeds.values())

    def explained_depth(self, rows, batch):
        '''The number of activations before the outputs that each of the samples in the rows of a tensor explains, the
        largest of several. Where an axis has some of the samples, it is not known which.'''
        seeds = self.running.seeds.values()
        if len({seed.depth for seed in seeds}) == 1:
            return self.largest_depth()
        explains, is_part = [(seed.samples(), seed.depth) for seed in seeds], batch is not None and batch.is_part
        depths = [torch.where(own.any() if is_part or len(own) != len(rows) else own, depth, 1)
                  for own, depth in explains]
        largest = torch.stack([depth.expand(len(rows)) for depth in depths]).amax(0)
        return largest.to(rows.dtype).reshape(-1, *(1,) * (rows.ndim - 1))


def no_map(error, *gradients):
    '''Raise the error for an output of which there is no map, where anything asks for one.'''
    raise error
