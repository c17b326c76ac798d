'''Memory of the processor: to get new memory from the system often takes longer than to fill it, and what fits into the
cache need not be fetched again.'''
import threading

import torch


CHUNK = 2 ** 18  # the entries of a matrix that are worked on at once
BLOCK = 2 ** 19  # the entries of each tensor that are worked on at once


class Workspace(threading.local):
    '''Memory of a thread for what is used up before it is needed again.'''
    SMALLEST, LARGEST = 2 ** 15, 2 ** 26

    def __init__(self):
        self.memory = torch.empty(0, dtype=torch.uint8)

    def like(self, tensor):
        '''A tensor of the shape, strides and dtype of another one, or None where this memory is not for it.'''
        size = tensor.numel() * tensor.itemsize
        if not self.SMALLEST <= size <= self.LARGEST or tensor.device.type != 'cpu' or torch.is_grad_enabled():
            return None
        if tensor.numel() != 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride())):
            return None
        if size > len(self.memory):
            self.memory = torch.empty(size, dtype=torch.uint8)
        return self.memory[:size].view(tensor.dtype).as_strided(tensor.shape, tensor.stride())


WORKSPACE = Workspace()


def passing_magnitude(tensor, dtype):
    '''The absolute value of a tensor in a dtype, which holds until the next one is asked for if no graph is made.'''
    return torch.abs(tensor, out=WORKSPACE.like(tensor)).to(dtype)


def blockwise(function, first, *others):
    '''A function of tensors, entry by entry. What it makes between lies in the cache.

    Parameters
    ----------
    function : callable
        A function ``(first, *others, out) -> value``, where ``out`` is the tensor to write to, or None.
    first : :py:class:`torch.Tensor`
        The tensor that has the value's shape and dtype.
    *others : :py:class:`torch.Tensor`
        Tensors of that shape.

    Returns
    -------
    :py:class:`torch.Tensor`
        The value.
    '''
    if first.numel() <= BLOCK or first.device.type != 'cpu' or torch.is_grad_enabled():
        return function(first, *others, out=None)
    value = torch.empty_like(first)
    for part in blocks(value, first, *others):
        function(*part[1:], out=part[0])
    return value


def blocks(first, *others):
    '''Parts of tensors that belong together, of at most as many entries as a block has.'''
    if first.numel() <= BLOCK:
        yield first, *others
        return
    axis = max((axis for axis in range(first.ndim) if first.shape[axis] > 1), key=first.stride)
    step = max(first.shape[axis] * BLOCK // first.numel(), 1)
    for part in zip(*(each.split(step, axis) for each in (first, *others)), strict=True):
        yield from blocks(*part)


def chunks(weight):
    '''Slices of the rows of a matrix, and these rows; all of them at once on a GPU, or where a graph is asked for.'''
    rows, columns = weight.shape
    whole = weight.device.type != 'cpu' or torch.is_grad_enabled()
    step = max(rows if whole else CHUNK // max(columns, 1), 1)
    return [(slice(start, start + step), weight[start:start + step]) for start in range(0, max(rows, 1), step)]
