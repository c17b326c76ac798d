'''The axes of samples and channels: where they are in what is made of a pair, and samples laid along the first one.'''
import math
from typing import NamedTuple


class Axis(NamedTuple):
    '''An axis of a tensor: its length; how many entries there are for each step along it, in row-major order, which
    reshaping does not change; and its index, or None where it is a part of an axis, or of several.'''
    length: int
    entries: int
    index: int | None

    @classmethod
    def at(cls, shape, index):
        '''The axis of an index.'''
        return cls(shape[index], math.prod(shape[index:][1:]), index % len(shape))

    def reshaped(self, shape):
        '''This axis where the entries are in another shape.'''
        found = [index for index in range(len(shape)) if Axis.at(shape, index)[:2] == self[:2]]
        # axes of length one that follow each other cannot be told apart
        return self._replace(index=self.index if self.index in found else found[0] if found else None)

    def within(self, old, new, count):
        '''This axis in what is made of some tensors of one shape, without its index. It is known if the axes of other
        lengths come after it, or if the tensors are joined one after the other, each with this axis as a whole.'''
        first = next((index for index, lengths in enumerate(zip(old, new)) if len(set(lengths)) > 1), len(old))
        before, after = math.prod(old[first:]), math.prod(new[first:])
        # axes of length one may have been taken for another
        comes_first = self.index is None or any(Axis.at(old, index)[:2] == self[:2] for index in range(first))
        if len(old) == len(new) and before and self.entries % before == 0 and comes_first:
            return Axis(self.length, self.entries // before * after, None)
        whole = after == before * count and before % max(self.length * self.entries, 1) == 0
        return self._replace(index=None) if len(old) == len(new) and whole else None


def joined(pairs, output):
    '''An output that is made of several pairs, with their depth, and with the axes that they agree upon, counted from
    the last one as broadcasting does.'''
    output.depth, shape = max(pair.depth for pair in pairs), output.values[0].shape
    shapes = {pair.values[0].shape for pair in pairs}
    for name in ('batch', 'channels'):
        axes, (place, *others) = {getattr(pair, name) for pair in pairs}, {pair.place(name) for pair in pairs}
        if not (place is None or others) and (name == 'channels' or shape[place] == pairs[0].batch.length):
            setattr(output, name, Axis.at(shape, place))
        elif len(shapes) == len(axes) == 1 and None not in axes:
            setattr(output, name, axes.pop().within(*shapes, shape, len(pairs)))
    return output


def by_sample(tensor, batch):
    '''A tensor with the samples of an axis first, or with each of its entries as a sample if that is None.'''
    batch = Axis(tensor.numel(), 1, None) if batch is None else batch
    return tensor if leads(batch, tensor.shape) else tensor.reshape(-1, *batch[:2]).movedim(1, 0)


def in_shape(rows, batch, shape):
    '''What :py:func:`by_sample` has made of a tensor, in the shape that the tensor had.'''
    return rows if leads(batch, shape) else rows.movedim(0, 1).reshape(shape)


def leads(batch, shape):
    '''Whether samples are the first axis of a shape.'''
    return math.prod(shape) == 0 or batch is not None and batch.index == 0
