'''In-place operations on split pairs, and the views through which others see them. A pair takes a new value, and so do
the pair that it is a view of, and all other views of that one. Memory is written to where nothing has come of it yet,
by additions and activations (``is_spare``).'''
import weakref

import torch


def as_view(output, source, function):
    '''Note that a pair is a view of another, if their differences share memory.

    Parameters
    ----------
    output, source : :py:class:`~zennit_dc.split.SplitTensor`
        The pair that may be a view, and the pair from which a function made it.
    function : callable
        This function of a tensor. Of the functions that return several views it is the one that selects this view.

    Returns
    -------
    :py:class:`~zennit_dc.split.SplitTensor`
        The output.
    '''
    if output is not source and memory(output) == memory(source):
        path = source.path
        output.base = source if source.base is None else source.base
        output.path = function if path is None else lambda tensor: function(path(tensor))
        output.base.views.append(weakref.ref(output))
    return output


def memory(pair):
    '''What is equal for pairs whose differences share their memory.'''
    return pair.values[0].untyped_storage()._cdata


def assign(pair, value, is_new=False):
    '''Give a pair the value of another one of its shape, as an in-place operation on a tensor would: the pair of which
    it is a view, and the other views of that one, change as well.

    Parameters
    ----------
    pair, value : :py:class:`~zennit_dc.split.SplitTensor`
        The pair to be changed, and its new value.
    is_new : bool, optional
        Whether nothing else has the memory of the new value, or has come of it.

    Returns
    -------
    :py:class:`~zennit_dc.split.SplitTensor`
        The changed pair.
    '''
    base = pair if pair.base is None else pair.base
    views = [view for view in (reference() for reference in base.views) if view is not None]
    layout = base.difference
    whole = pair is base and not views
    if whole:
        new = laid_out(value.difference, layout.stride()), value.tensors[1]
    else:
        new = [written(tensor, layout, pair.path, part) for tensor, part in zip(base.tensors, value.tensors)]
    for each in (base, *views):
        each.values = tuple(tensor.to(old.dtype) if each.path is None else each.path(tensor.to(old.dtype))
                            for tensor, old in zip(new, each.values))
        each.layer, each.recipe, each.depth = None, value.recipe if whole else None, max(each.depth, value.depth)
    base.is_unread = whole and is_new
    return pair


def laid_out(tensor, strides):
    '''A tensor in other strides, on which the order of later sums may depend.'''
    return tensor if tensor.stride() == strides else tensor.new_empty_strided(tensor.shape, strides).copy_(tensor)


def written(tensor, layout, path, part):
    '''A copy of a tensor, in the layout of another, with a part written into the view that a path leads to.'''
    copy = torch.empty_strided(layout.shape, layout.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    (copy if path is None else path(copy)).copy_(part)
    return copy
