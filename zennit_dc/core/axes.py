'''Where the axes of samples, of channels and of inputs are in a pair, and tensors with their samples first.'''
import math
from itertools import pairwise
from typing import NamedTuple


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
    '''
    length: int
    entries: int
    index: int | None

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
        length, entries, _ = Axis.at(shape, index)
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
            return Axis(self.length, self.entries // before * after, None)
        whole = after == before * count and before % max(self.length * self.entries, 1) == 0
        return self._replace(index=None) if len(old) == len(new) and whole else None


def axes_of(shape):
    '''The axes of a shape.'''
    return [Axis(length, math.prod(shape[index + 1:]), index) for index, length in enumerate(shape)]


class Place(NamedTuple):
    '''Where an axis of an input is in a tensor that is made of the input: as an axis, or as a part of one.

    Parameters
    ----------
    axis : int
        The index of the axis that it is, or is a part of.
    length : int
        Its length.
    step : int
        The number of entries of the axis for each step along this one, where several axes are one in row-major order.
    first, behind : int
        The numbers of entries of the axis that come before and after, such as class tokens.
    window : tuple of float
        The part of the input's axis that it is about, from start to end, in entries of the input. It runs backwards
        where the start is the larger one.
    surplus : int, optional
        By how many entries convolutions with much padding have made it longer. Cutting these off changes no window.
    '''
    axis: int
    length: int
    step: int
    first: int
    behind: int
    window: tuple
    surplus: int = 0

    @classmethod
    def of_input(cls, axis, length):
        '''The place of an axis in the input itself.'''
        return cls(axis, length, 1, 0, 0, (0., float(length)))

    def extent(self):
        '''The number of entries along the input's axis that it is about.'''
        return abs(self.window[1] - self.window[0])

    @staticmethod
    def joined(options):
        '''One of several places that differ in nothing but their windows: the smallest, or all of them together where
        they differ by less than a place, as every second entry from the first on and from the second on do.'''
        smallest = min(options, key=Place.extent)
        starts, ends = zip(*(each.window for each in options))
        apart = max(max(starts) - min(starts), max(ends) - min(ends))
        if smallest.window[0] > smallest.window[1] or apart * smallest.length >= smallest.extent():
            return smallest
        return smallest._replace(window=(min(starts), max(ends)))

    def is_whole(self, shape):
        '''Whether it is all of an axis.'''
        return self.step == 1 and self.length == shape[self.axis]

    def within(self, start, end, length):
        '''This place where only the part from start to end is left, with another length.'''
        if 0 < self.length - length <= self.surplus:
            return self._replace(length=length, surplus=self.surplus - (self.length - length))
        low, high = self.window
        scale = (high - low) / self.length
        return self._replace(length=length, window=(low + start * scale, low + end * scale))

    def cut(self, axis, coordinates, total):
        '''This place where only the entries with some coordinates are left of a total number along its axis, or None if
        it is not known. The axis has another index then.'''
        if not coordinates:
            return None
        count, start, steps = len(coordinates), coordinates[0], {two - one for one, two in pairwise(coordinates)} or {1}
        place, step = self._replace(axis=axis), steps.pop()
        if steps or step == 0:
            return None
        if self.step == 1 and self.length == total:
            end = min(start + count * step, total) if step > 0 else max(start + 1 + count * step, 0)
            return place.within(start if step > 0 else start + 1, end, count)
        behind = self.behind - (total - start - count)
        if step == 1 and start <= self.first and behind >= 0:
            return place._replace(first=self.first - start, behind=behind)
        return None

    def resized(self, axis, length):
        '''This place, which is all of an axis, where the axis has another length.'''
        grown = length - self.length if self.length < length < 1.5 * self.length else 0
        return self._replace(axis=axis, length=length, surplus=self.surplus + grown)

    def reshaped(self, old, new):
        '''This place in another shape of the same entries, or None if it is not known. Where the axis is taken apart,
        this is the place of its coarser part.'''
        behind = math.prod(old[self.axis + 1:])
        if self.first or self.behind:
            index = Axis.at(old, self.axis).reshaped(new).index
            return None if index is None else self._replace(axis=index)
        entries, exact, coarse = self.step * behind, [], []
        for index, length in enumerate(new):
            own = math.prod(new[index + 1:])
            whole = own * length
            if own and entries % own == 0 and whole % max(entries * self.length, 1) == 0:
                exact.append(self._replace(axis=index, step=entries // own))
            elif whole > own > entries > 0 and own % entries == 0 and whole == entries * self.length:
                coarse.append(self._replace(axis=index, length=length, step=1, surplus=0))
        same = [place for place in exact if place.axis == self.axis]  # axes of length one cannot be told apart
        return next(iter([*same, *exact, *coarse]), None)


def input_places(index, shape, samples=0):
    '''The places of all axes of an input, by its index and theirs in the order that has the samples first.'''
    order = sorted(range(len(shape)), key=lambda axis: axis != samples)
    return {(index, key): Place.of_input(axis, shape[axis]) for key, axis in enumerate(order)}


def reshaped_places(places, old, new):
    '''The places of the axes of inputs in another shape of the same entries. Where an axis is taken apart, the place of
    its finer part has the key -1 - axis until this part is summed over or both parts are one axis again.'''
    found = {}
    for (source, axis), place in places.items():
        moved = place and place.reshaped(old, new)
        found.setdefault((source, axis), moved)
        if moved is None or moved.length == place.length:
            continue
        if axis < 0 or places.get((source, -1 - axis)) is not None:
            found[source, axis] = None
            continue
        fine = place._replace(length=place.length // moved.length)
        found[source, -1 - axis] = fine.reshaped(old, new) or moved
    for source, axis in [key for key in found if key[1] < 0]:
        coarse, fine = found.get((source, -1 - axis)), found[source, axis]
        if coarse and fine and coarse.axis == fine.axis and coarse.step == fine.step * fine.length:
            found[source, -1 - axis] = coarse._replace(length=coarse.length * fine.length, step=fine.step)
            found[source, axis] = None
    return found


def joined_places(parts, shape):
    '''The places of the axes of inputs in a tensor that is made of several others, of which the places and shapes are
    given. Axes are counted from the last one, as broadcasting does. Where they differ, the longest counts, if
    there is only one.'''
    found = {}
    for key in {key: None for places, _ in parts for key in places}:
        moved = [(place, own, axis) for places, own in parts if (place := places.get(key)) is not None
                 and (axis := place.axis - len(own) + len(shape)) >= 0]
        same = [place._replace(axis=axis) for place, own, axis in moved if own[place.axis] == shape[axis]]
        options = same or [place.resized(axis, shape[axis]) for place, own, axis in moved if place.is_whole(own)]
        options = [each for each in options if each.length == max(other.length for other in options)]
        agree = len({each[:5] for each in options}) == 1
        found[key] = Place.joined(options) if agree else None
    for source, axis in [key for key in found if key[1] < 0]:
        if any(places.get((source, -1 - axis)) and not places.get((source, axis)) for places, _ in parts):
            found[source, axis] = None  # as the axis is whole elsewhere
    return found


def note_channels(pair, index):
    '''Note that weights belong to an axis of a pair, which tells which axis of an input has the channels: the only one
    that is there, or none if all are elsewhere. What is known first counts.'''
    index %= pair.values[0].ndim
    for source in {source for source, _ in pair.places} - set(pair.split_pass.input_channels) if pair.places else ():
        own = {axis: place for (which, axis), place in pair.places.items() if which == source and axis >= 0}
        inside = [axis for axis, place in own.items() if place is not None and place.axis == index]
        if len(inside) == 1 or (not inside and None not in own.values()):
            pair.split_pass.input_channels[source] = inside[0] if inside else None


def mixed(pair, index):
    '''Note that weights mix the entries along an axis of a pair, so that it is no axis of an input any more.'''
    if pair.places:
        index %= pair.values[0].ndim
        pair.places = {key: None if place is not None and place.axis == index else place
                       for key, place in pair.places.items()}


def joined(pairs, output):
    '''An output that is made of several pairs, with the largest of their depths and the axes on which they agree. Axes
    are counted from the last one, as broadcasting does.'''
    output.depth, shape = max(pair.depth for pair in pairs), output.values[0].shape
    shapes = {pair.values[0].shape for pair in pairs}
    if any(pair.places for pair in pairs):
        output.places = joined_places([(pair.places, pair.values[0].shape) for pair in pairs], shape)
    for name in ('batch', 'channels'):
        axes, (place, *others) = {getattr(pair, name) for pair in pairs}, {pair.place(name) for pair in pairs}
        if not (place is None or others) and (name == 'channels' or shape[place] == pairs[0].batch.length):
            setattr(output, name, Axis.at(shape, place))
        elif len(shapes) == len(axes) == 1 and None not in axes:
            setattr(output, name, axes.pop().within(*shapes, shape, len(pairs)))
    return output


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
