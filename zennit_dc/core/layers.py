'''The output of the layer at which a map is read, its places in the inputs, and what reads the map there.'''
from functools import partial

import torch

from ..forms.reading import Refused, number
from ..rules import ruled
from .errors import SEVERAL_USES, StartOver
from .following import Place
from .graphs import Node
from .maps import layer_gradients, marked
from .pair import GATE, SplitTensor, pairs_in
from .places import ACTIVATIONS, channels_unknown, followed, name_of, places_of
from .views import show_graph


class LayerOutput:
    '''What is known of the output of the layer at which the map is read.

    Parameters
    ----------
    where : str
        The layer, as it is called in errors.
    pair : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The output. The map is read there, or after the activation that is all that follows.

    Attributes
    ----------
    pair : :py:class:`~zennit_dc.core.pair.SplitTensor` or None
        The output, as long as the functions that are called on it matter.
    graph : bool
        Whether operations had a graph when the layer ended.
    is_read : bool
        Whether the map has been read.
    location : :py:class:`~zennit_dc.core.places.Places` or None
        The places of the output, as soon as they are known.
    '''
    def __init__(self, where, pair):
        self.pair, self.graph, self.is_read, self.location = pair, torch.is_grad_enabled(), False, None
        axis = pair.axis('channels')
        self.where, self.shape, self.places = where, pair.values[0].shape, pair.axes.places
        self.channels = None if axis is None else len(self.shape) + axis

    def locate(self, split_pass, is_last=False):
        '''Find the places of the output, if the input's axis of channels is known already. At the end of the model,
        what is likely counts.'''
        if self.location is None and split_pass.probe is None:
            self.location = self.located(split_pass, is_last)

    def located(self, split_pass, is_last):
        '''The places of the output, or None as long as they are not known.'''
        sources = sorted({source for source, _ in self.places}) or [0]
        self.require_order(split_pass, [self.places.get((index, 0)) for index in sources])
        given, grid = {sources[0]: split_pass.canonizer.channels}, split_pass.canonizer.grid
        channels = {index: channels_of(split_pass, index, given.get(index), is_last) for index in sources}
        known = [index for index in sources if channels[index] != ()]
        for index in known if grid is None else ():
            places = followed(self.shape, self.input_places(split_pass, index), channels[index], self.channels, index)
            if places is not None:
                return places
        if not is_last and known != sources:
            return None
        index = (known or sources)[0]
        shape = shape_of(split_pass, index)
        likely = self.likely(index, shape, channels[index] if known else 1, grid)
        if not known:
            raise channels_unknown(self.where, shape)
        return likely

    def require_order(self, split_pass, samples):
        '''Raise if samples, of which the places are given, may be in another order than in the input.'''
        if (reorders := split_pass.input_axes.reorders) and None in samples:
            raise ValueError(
                f'the samples were put in another order in {reorders[0]}, so that it is not known which'
                f' sample each map at the output of {self.where} is of: choose a layer before that, or call the model'
                ' on one sample at a time'
            )

    def likely(self, index, shape, channels, grid):
        '''The places of the output for all that its shape says, in an input of a shape with its samples first.'''
        axes = tuple(axis for axis in range(1, len(shape)) if axis != channels)
        count = shape[channels] if channels in range(len(shape)) else 1
        arranged = shape[0], count, *(shape[axis] for axis in axes)
        return places_of(self.where, self.shape, arranged, self.channels, grid)._replace(source=index, axes=axes)

    def input_places(self, split_pass, index):
        '''The places of an input's axes in the output. Those that are lost are taken to be where they were known along
        an axis of tokens, if only one axis of the output may be that one.'''
        shape, hints = shape_of(split_pass, index), self.token_places(split_pass, index)
        own = {axis: self.places.get((index, axis)) if self.places.get((index, -1 - axis)) is None else None
               for axis in range(len(shape))}
        if None not in own.values():
            return own
        if any(axis > 0 and source == index and own.get(axis) is not None for source, axis in hints):
            return own  # the axis is as long as tokens by chance, as one of those that they consist of is elsewhere
        own[0] = Place.of_input(0, shape[0]) if hints and own[0] is None else own[0]
        return {axis: hints[index, axis] if place is None and (index, axis) in hints else place
                for axis, place in own.items()}

    def token_places(self, split_pass, index):
        '''The places that were known along an axis of tokens, moved to the only axis of the output that has its length.
        If the output has no other axis besides samples and channels, up to eight other tokens may come before them.'''
        tokens, axes = split_pass.input_axes.tokens, {*range(1, len(self.shape))} - {self.channels}
        longest = 9 if len(axes) == 1 else 1
        found = [(before, axis) for before in range(longest) for axis in axes if self.shape[axis] - before in tokens]
        nearest = [axis for before, axis in found if before == found[0][0]]
        if len(nearest) != 1 or self.shape[0] != shape_of(split_pass, index)[0]:
            return {}
        before, axis = found[0]
        return {key: place._replace(axis=axis, first=place.first + before)
                for key, place in tokens[self.shape[axis] - before].items()}


def shape_of(split_pass, index):
    '''The shape of an input with its samples first.'''
    return split_pass.inputs[index].movedim(split_pass.input_axes.samples[index], 0).shape


def channels_of(split_pass, index, given, is_last):
    '''The index that an input's axis of channels has, with samples first, as it is given or known; None if it has none,
    or () if it is not known.'''
    shape = split_pass.inputs[index].shape
    if given == ():
        return None
    if given is not None:
        if not -len(shape) < given < len(shape):
            raise ValueError(f'the input of shape {tuple(shape)} has no axis {given} for its channels')
        return given % len(shape)
    are_images = is_last and len(shape) > 3 and shape[1] <= 4 < min(shape[2:])
    found = split_pass.input_axes.channels.get(index, 1 if are_images else ())
    # where the axis of channels is taken to be that of the samples, the pass starts over at its end
    return 1 if found == 0 and split_pass.input_axes.samples[index] == 1 else found


def require_one_map(where, output, is_known):
    '''Raise an error if there is not one map at a layer's output, or if the output is known already.'''
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(f'{where} is run again in the backward pass by a checkpoint: read the map outside of it')
    if not isinstance(output, SplitTensor):
        raise ValueError(f'the output of {where} is not one tensor but {type(output).__name__}')
    if isinstance(output.pending, Refused):
        raise output.pending.error
    if output.dtype.is_complex:
        raise ValueError(f'the output of {where} is complex: choose the module that takes its absolute value')
    if is_known:
        remedy = 'so that there is not one map at its output: choose a module that is called once'
        raise ValueError(f'{where} was called more than once in this forward pass, {remedy}')


def sequence_of(module, output):
    '''The tensor in a layer's output at which a map is read. Of recurrent layers, it has the outputs of all steps. Of
    other layers that return several values, it is the only one that depends on the input.'''
    if isinstance(module, torch.nn.RNNBase):
        return output[0]
    pairs = pairs_in(output)
    return pairs[0] if isinstance(output, (tuple, list)) and len(pairs) == 1 else output


# where the map is read

def use_layer(split_pass, function, args, kwargs, pairs):
    '''What the model gets for a function of the layer's output. The first one tells where the map is read: after an
    activation, of whose input nothing else may be made then; else at the output itself. A number that is only read
    tells nothing.'''
    found, is_alone = split_pass.output, len(pairs) == 1
    goes_on = SEVERAL_USES not in split_pass.known
    if is_alone and goes_on and (read := number(function, args, kwargs)) is not None:
        return read
    if found.is_read:
        raise StartOver(SEVERAL_USES)
    pair, found.pair = found.pair, None
    goes_on = goes_on and torch.is_grad_enabled() == found.graph
    if not is_alone or name_of(function) not in ACTIVATIONS or not goes_on:
        read_at(split_pass, pair)
        return split_pass.evaluate(function, args, kwargs, pairs)
    output = split_pass.evaluate(function, args, kwargs, pairs)
    found.pair = None if output is pair else pair  # which an activation in place has changed
    read_at(split_pass, output)
    return output


def read_at(split_pass, pair):
    '''Read the map at a pair, and go on with it as if it were the input. Its places are followed until it is known
    where the inputs have their channels.'''
    layer = pair.layer and pair.layer._replace(is_read=True)
    places = pair.axes.places if split_pass.output.location is None else {}
    values = ruled(pair, lambda *gradients: gradients).values  # whose sum is no function of the difference any more
    split_pass.output.is_read = True
    split_pass.mode = split_pass.mode._replace(sums=split_pass.sums_above, keeps_graph=split_pass.mode.has_graph)
    if split_pass.probe is not None:
        split_pass.probe.tensors = values
    elif split_pass.mode.has_graph:
        values = split_pass.read_off(entered_at_layer(split_pass, values))
    pair.values, pair.origin, pair.axes = values, layer, pair.axes._replace(places=places)
    pair.depth, pair.facts = 0, pair.facts - {GATE}
    show_graph([pair])


def entered_at_layer(split_pass, values):
    '''The tensors of the layer's output, of which the gradients make the map of an input.'''
    with torch.enable_grad():
        inputs = [marked(input, split_pass.nodes.entrances) for input in split_pass.inputs]
        return Node.apply([], partial(layer_gradients, split_pass, values), *values, *inputs)


def end_layer(split_pass, output):
    '''Read the map at the layer's output if nothing else was made of it.'''
    found = split_pass.output
    if found.is_read and any(pair is found.pair for pair in pairs_in(output)):
        raise StartOver(SEVERAL_USES)
    if not found.is_read and found.pair is not None:
        read_at(split_pass, found.pair)
    found.pair = None  # whose graph holds this object
