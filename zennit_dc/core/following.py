'''Where the axes of inputs are in a pair, in a pass that reads its map at a layer: as axes, or as parts of axes; and
where functions move them.'''
import math
from itertools import pairwise
from typing import NamedTuple

import torch

from .errors import called_in


MARKER, *PRIMES = 10007, 10009, 10037, 10039, 10061, 10067, 10069, 10079  # longer than axes usually are


class InputAxes(NamedTuple):
    '''What a pass notes of the axes of its inputs.

    Parameters
    ----------
    samples : list[int]
        The index of the axis of samples of each input: the first one, or the second one if time comes first. Empty in a
        pass that makes no map.
    channels : dict
        The index of the axis of channels of each input by its own, or None for one that has none, where it is known.
    tokens : dict
        The places of inputs in the last axis of tokens of each length, where there are others before them.
    reorders : list[str]
        The modules in which the samples were put in another order.
    '''
    samples: list
    channels: dict
    tokens: dict
    reorders: list


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

    def fills(self, shape):
        '''Whether it is all of an axis but for what comes before and after it.'''
        return self.step == 1 and self.first + self.length + self.behind == shape[self.axis]

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
            found = [index for index, length in enumerate(new)
                     if (length, math.prod(new[index + 1:])) == (old[self.axis], behind)]
            # axes of length one that follow each other cannot be told apart
            return self._replace(axis=self.axis if self.axis in found else found[0]) if found else None
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
    that is there, or none if all are elsewhere. An axis of the input that is lost may be there, too. The only one that
    is known to be there counts then only if it fills the pair's axis, or is the first after the batch. What is noted
    first is kept.'''
    shape, places, known = pair.values[0].shape, pair.axes.places, pair.split_pass.input_axes.channels
    index %= len(shape)
    for source in {source for source, _ in places} - set(known):
        own = {axis: place for (which, axis), place in places.items() if which == source and axis >= 0}
        inside = [axis for axis, place in own.items() if place is not None and place.axis == index]
        is_only = len(inside) == 1 and (inside == [1] or None not in own.values() or own[inside[0]].fills(shape))
        if is_only or (not inside and None not in own.values()):
            known[source] = inside[0] if inside else None


def mixed(pair, index):
    '''Note that weights mix the entries along an axis of a pair, so that it is no axis of an input any more.'''
    lost = dict.fromkeys(pair.axes.places_in(index % pair.values[0].ndim))
    pair.axes = pair.axes._replace(places={**pair.axes.places, **lost})


def note_tokens(pair):
    '''Note the places of a pair that are parts of one axis, in case that this axis is not followed all the way.'''
    for index, length in enumerate(pair.values[0].shape):
        inside = pair.axes.places_in(index)
        is_part = not all(place.is_whole(pair.values[0].shape) for place in inside.values())
        if index and is_part and any(place.length > 1 for place in inside.values()):
            pair.split_pass.input_axes.tokens[length] = inside
    return pair


def follow_places(pairs, output, function, reverses=False):
    '''Note where the axes of inputs are in what a function made of pairs, and of which part of them; it may be one that
    reverses axes.'''
    shape, parts = output.values[0].shape, []
    for pair in pairs:
        old, known = pair.values[0].shape, {key: place for key, place in pair.axes.places.items() if place is not None}
        axes = {place.axis for place in known.values()}
        axes = {axis: moved_axis(pairs, pair, axis, output, function) for axis in axes}
        found = dict.fromkeys(pair.axes.places)
        for key, place in known.items():
            axis, length = axes[place.axis], old[place.axis]
            if axis is not None and shape[axis] == length and not reverses:
                found[key] = place._replace(axis=axis)
            elif axis is not None:
                found[key] = place.cut(axis, coordinates(pair, place.axis, axis, function), length)
        parts.append((found, shape))
    output.axes = output.axes._replace(places=joined_places(parts, shape))
    return note_tokens(output)


def moved_axis(pairs, pair, axis, output, function):
    '''The index that an axis of a pair has in what a function made of pairs, or None if it is not known.'''
    index = axis - pair.values[0].ndim
    for aligned in (False, True) if len(pairs) > 1 else (False,):  # others may have the same axis
        indices = [index if each is pair or (aligned and -index <= each.values[0].ndim) else None for each in pairs]
        found = moved_to(pairs, indices, output, function, coarse=True)
        if found is not None:
            return found
    return None


def note_order(pair, output, function):
    '''Note for the pass where a function puts samples in another order, which a map at a layer would have.'''
    batch, shape = pair.axes.batch, output.values[0].shape
    if not pair.axes.places or batch is None or batch.index is None or shape[batch.index:][:1] != (batch.length,):
        return output
    if coordinates(pair, batch.index, batch.index, function) != [*range(batch.length)]:
        pair.split_pass.input_axes.reorders.append(called_in(pair.split_pass))
        output.axes = output.axes._replace(places={
            key: None if key[1] == 0 else place for key, place in output.axes.places.items()
        })
    return output


def coordinates(pair, axis, moved, function):
    '''The entries along an axis of a pair that are left along an axis of what a function makes of it.'''
    shape = pair.values[0].shape
    lengths = [length if index == axis else 1 for index, length in enumerate(shape)]
    entries = function(torch.arange(shape[axis], device=pair.device).reshape(lengths).expand(shape))
    if not entries.numel():
        return []
    return entries[tuple(slice(None) if index == moved else 0 for index in range(entries.ndim))].tolist()


def moved_to(pairs, indices, output, function, coarse=False):
    '''The index of the only axis of the output where the axis with some indices in pairs may be, or None; of several
    views of it, the coarsest one if asked for.'''
    tensors, shape = [], output.values[0].shape
    try:
        for pair, index in zip(pairs, indices):
            lengths = list(pair.values[0].shape)
            if index is not None:
                length, lengths[index] = lengths[index], MARKER
            tensors.append(torch.empty_strided(lengths, PRIMES[:len(lengths)], device='meta'))
        probe, stride = function(*tensors), tensors[0].stride(indices[0] if indices[0] is not None else 0)
    except (RuntimeError, IndexError, TypeError, AssertionError):  # the last in torch 2.4
        return None  # what cannot be asked is not proven
    if probe.ndim != len(shape):
        return None
    if probe.untyped_storage()._cdata == tensors[0].untyped_storage()._cdata:
        strides = {axis: own for axis, own in enumerate(probe.stride()) if own and probe.shape[axis] > 1}
        parts = {axis: own for axis, own in strides.items() if not own % stride}
        wanted = max(parts.values(), default=None) if coarse else stride
        found = [axis for axis, own in parts.items() if own == wanted] or [*parts]
        if not found and not coarse:  # where one entry of it is left
            found = [axis for axis, own in enumerate(probe.stride()) if own == stride]
    else:
        found = [axis for axis, lengths in enumerate(zip(probe.shape, shape)) if lengths == (MARKER, length)]
    return found[0] if len(found) == 1 else None
