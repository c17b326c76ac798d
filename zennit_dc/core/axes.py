'''The axes of samples and channels of a pair, how what functions return is noted to have them, tensors with their
samples first, and the axes of samples of inputs.'''
import math
from typing import NamedTuple

from .errors import FIRST_AXIS, SECOND_AXIS, StartOver
from .following import follow_places, joined_places, moved_to, note_tokens, reshaped_places


class Axis(NamedTuple):
    '''An axis of samples or channels, which may be a part of an axis of a tensor, or consist of several.

    Parameters
    ----------
    length : int
        Its length.
    entries : int
        The number of entries of the tensor for each step along it, in row-major order. Reshaping does not change it.
    index : int or None
        Its index, or None where it is not exactly one axis of the tensor.
    is_part : bool, optional
        Whether it has some of the samples, each of them along one entry.
    '''
    length: int
    entries: int
    index: int | None
    is_part: bool = False

    @classmethod
    def at(cls, shape, index):
        '''The axis with an index in a shape.'''
        return cls(shape[index], math.prod(shape[index:][1:]), index % len(shape))

    def reshaped(self, shape):
        '''This axis in another shape of the same entries.'''
        found = [axis.index for axis in axes_of(shape) if axis[:2] == self[:2]]
        # axes of length one that follow each other cannot be told apart
        return self._replace(index=self.index if self.index in found else found[0] if found else None)

    def may_be_in(self, shape, index):
        '''Whether it is the axis with an index in a shape, or may be a part of it.'''
        if self.index is not None:
            return self.index == index % len(shape)
        length, entries = Axis.at(shape, index)[:2]
        return entries < self.length * self.entries and self.entries <= length * entries

    def within(self, old, new, count):
        '''This axis, without its index, in a new shape of what is made of a number of tensors of an old shape. It is
        known if all axes whose lengths change come after it, or if the tensors are joined one after the other, each
        with this axis as a whole.'''
        first = next((index for index, lengths in enumerate(zip(old, new)) if len(set(lengths)) > 1), len(old))
        before, after = math.prod(old[first:]), math.prod(new[first:])
        # axes of length one may have been taken for another
        comes_first = self.index is None or any(axis[:2] == self[:2] for axis in axes_of(old)[:first])
        if len(old) == len(new) and before and self.entries % before == 0 and comes_first:
            return self._replace(entries=self.entries // before * after, index=None)
        whole = not self.is_part and after == before * count and before % max(self.length * self.entries, 1) == 0
        return self._replace(index=None) if len(old) == len(new) and whole else None


def axes_of(shape):
    '''The axes of a shape.'''
    return [Axis(length, math.prod(shape[index + 1:]), index) for index, length in enumerate(shape)]


class Axes(NamedTuple):
    '''What is known of the axes of a pair.

    Parameters
    ----------
    batch, channels : :py:class:`Axis` or None
        The axes of samples and of channels, where they are known.
    places : dict
        The :py:class:`~zennit_dc.core.following.Place` of each axis of the inputs by the indices of both, or None where
        it is lost; empty in a pass that does not follow them.
    '''
    batch: Axis | None
    channels: Axis | None
    places: dict

    def axis(self, name, ndim):
        '''The negative index of 'batch' or 'channels' in a number of axes, or None if it is not known to be an axis.'''
        axis = getattr(self, name)
        return None if axis is None or axis.index is None else axis.index - ndim

    def places_in(self, index):
        '''The places that are in the axis with an index, as a whole or as parts of it.'''
        return {key: place for key, place in self.places.items() if place is not None and place.axis == index}

    def lost(self):
        '''What is known of a pair that is made of the one with these axes in some way.'''
        return Axes(None, None, dict.fromkeys(self.places))


UNKNOWN = Axes(None, None, {})


# what forms note, as functions of pairs, of what is made of them, and of the function of tensors that made it

def same_axes(pairs, output, function=None):
    '''Note that entries stay along their axes: the largest depth of several pairs, and the axes on which they agree.
    Axes are counted from the last one, as broadcasting does.'''
    known, shape = [(pair.axes, pair.values[0].shape) for pair in pairs], output.values[0].shape
    batch, channels = (common_axis(name, known, shape) for name in ('batch', 'channels'))
    places = [(axes.places, own) for axes, own in known]
    followed = joined_places(places, shape) if any(own for own, _ in places) else output.axes.places
    output.depth, output.axes = max(pair.depth for pair in pairs), Axes(batch, channels, followed)
    return output


def common_axis(name, known, shape):
    '''The axis of samples or channels on which pairs with some axes and shapes agree, in a shape made of them.'''
    axes, shapes = {getattr(own, name) for own, _ in known}, {own for _, own in known}
    index, *others = {own.axis(name, len(lengths)) for own, lengths in known}
    if not (index is None or others) and (name == 'channels' or shape[index] == known[0][0].batch.length):
        return Axis.at(shape, index)._replace(is_part=all(axis.is_part for axis in axes))
    return axes.pop().within(*shapes, shape, len(known)) if len(shapes) == len(axes) == 1 and None not in axes else None


def same_order(pairs, output, function=None):
    '''Note that entries keep their order.'''
    (batch, channels, places), old, new = pairs[0].axes, pairs[0].values[0].shape, output.values[0].shape
    batch, channels = (axis and axis.reshaped(new) for axis in (batch, channels))
    output.axes = Axes(batch, channels, places and reshaped_places(places, old, new))
    return note_tokens(output) if places else output


def follow_axes(pairs, output, function):
    '''Note where the axes of pairs are in what a function made of them, if that can be proven with tensors without
    memory: of a view by its strides; of anything else by its shape, if one axis of the output is as long as this one,
    however long this one is.'''
    found, shape = [], output.values[0].shape
    for name in ('batch', 'channels'):
        indices = [pair.axes.axis(name, pair.values[0].ndim) for pair in pairs]
        index = None if None in indices else moved_to(pairs, indices, output, function)
        found.append(None if index is None else Axis.at(shape, index))
    if (batch := found[0]) is not None:
        known = [pair.axes.batch for pair in pairs]
        found[0] = batch._replace(is_part=batch.length != known[0].length or any(axis.is_part for axis in known))
    output.depth, output.axes = max(pair.depth for pair in pairs), Axes(*found, output.axes.places)
    return follow_places(pairs, output, function) if any(pair.axes.places for pair in pairs) else output


def some_samples(pairs, output, index):
    '''Note that the entries along an axis are some samples of pairs, if all have their samples along it.'''
    indices, ndim = {pair.axis('batch') for pair in pairs}, output.values[0].ndim
    if indices == {index % ndim - ndim}:
        output.axes = output.axes._replace(batch=Axis.at(output.values[0].shape, index)._replace(is_part=True))
    return output


def with_channels(index, pairs, output, function=None):
    '''Note that a layer keeps the first axes of a pair, and has channels at an index.'''
    same_axes(pairs, output)
    output.axes = output.axes._replace(channels=Axis.at(output.values[0].shape, index))
    return output


def take_axes(target, part, view):
    '''Note the axes of a pair that was a constant until another one was written into a part of it.

    Parameters
    ----------
    target, part : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The pair, and what was written into a part of it.
    view : :py:class:`torch.Tensor` or None
        This part as a view of a tensor without values, if it is known.
    '''
    axes, own, taken = axes_of(target.values[0].shape), part.values[0].shape, []
    for name in ('batch', 'channels'):
        index, found = part.axes.axis(name, len(own)), None
        if index is not None and view is not None and -index <= view.ndim:
            found = [axis for axis in axes if axis[:2] == (own[index], view.stride(index))]
            found = found[0] if len(found) == 1 else axes[index] if -index <= len(axes) else None
        taken.append(found if found is not None and found.length == own[index] == view.shape[index] else None)
    target.axes = Axes(*taken, target.axes.places)


def by_sample(tensor, batch):
    '''A tensor with its samples first, by their axis. Without an axis, each entry is a sample.'''
    batch = Axis(tensor.numel(), 1, None) if batch is None else batch
    return tensor if leads(batch, tensor.shape) else tensor.reshape(-1, *batch[:2]).movedim(1, 0)


def in_shape(rows, batch, shape):
    '''What :py:func:`by_sample` has made of a tensor, in the tensor's own shape again.'''
    return rows if leads(batch, shape) else rows.movedim(0, 1).reshape(shape)


def leads(batch, shape):
    '''Whether the samples are along the first axis of a shape.'''
    return math.prod(shape) == 0 or (batch is not None and batch.index == 0)


# the samples of inputs, along the first axis, or along the second one if time comes first

def axes_of_samples(inputs, known):
    '''The index of the axis of samples of each input, for what is known of the model. Where it is the second one of the
    first input, it is that of all others that are as long there, but for those that have samples alone.'''
    if SECOND_AXIS not in known or FIRST_AXIS in known:
        return [0] * len(inputs)
    first, *_ = shapes = [input.shape for input in inputs]
    return [int(len(shape) > 1 and shape[1:2] == first[1:2]
                and (len(shape) > 2 or index == 0 or shape[:1] != first[1:2])) for index, shape in enumerate(shapes)]


def require_samples(pair, axis):
    '''Start over, once for each model, where a function has samples along an axis of a pair, but those of the first
    input are taken to be along its first axis, which is another one. They may be along its second one then.'''
    split_pass, batch = pair.split_pass, pair.axes.batch
    if split_pass.input_axes.samples and batch is not None and batch.index == 0 and axis != 0:
        try_second_axis(split_pass, [pair.values[0].shape[axis:]])


def require_found_samples(split_pass, pairs):
    '''Start over with another axis of samples if this one is in none of the outputs: with the second one if that may be
    in them, once for each model, and with the first one again where neither is.'''
    if any(pair.axis('batch') is not None for pair in pairs):
        return
    if split_pass.input_axes.samples[0]:
        raise StartOver(FIRST_AXIS)
    try_second_axis(split_pass, [pair.values[0].shape for pair in pairs])


def try_second_axis(split_pass, shapes):
    '''Start over, once for each model, if any of some shapes begins with the second axis of the first input.'''
    length = split_pass.inputs[0].shape[1:2]
    if length and any(shape[:1] == length for shape in shapes) and SECOND_AXIS not in split_pass.known:
        raise StartOver(SECOND_AXIS)
