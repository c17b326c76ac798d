'''In-place operations on split pairs. A pair that is changed gets a new value, and so do all pairs that share its
memory: the one of which it is a view, and the other views of that one.

A plain tensor into which a pair is written becomes a pair itself, as the same object, until the forward pass ends. What
``detach()`` returns is a plain tensor in the memory of a pair's difference.'''
import gc
import math
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes as untraced

from .graphs import same
from .pair import ADOPTED, WRITTEN, Rectified, SplitTensor, unsupported


class View(NamedTuple):
    '''What a pair is a view of: the pair in whose memory it is, and a function that selects the view in a tensor of
    that pair's shape.'''
    base: Any
    path: Callable


def as_view(output, source, function):
    '''Note that a pair is a view of another, if their differences share memory.

    Parameters
    ----------
    output, source : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The pair that may be a view, and the pair from which a function made it.
    function : callable
        This function of a tensor. Of the functions that return several views it is the one that selects this view.

    Returns
    -------
    :py:class:`~zennit_dc.core.pair.SplitTensor`
        The output.
    '''
    if output is not source and memory(output) == memory(source):
        view, whole = source.view_of, source.whole
        output.view_of = View(whole, lambda tensor: function(viewed(view, tensor)))
        whole.views.append(weakref.ref(output))
        output.pending = source.pending  # where memory was lent
    return output


def viewed(view, tensor):
    '''What a view selects in a tensor of its base's shape; all of the tensor where the view is None.'''
    return tensor if view is None else view.path(tensor)


def alive(references):
    '''The objects of some weak references that still exist.'''
    return [each for each in (reference() for reference in references) if each is not None]


def sharing(pair):
    '''The pairs whose differences share their memory: the one of which all others are views comes first.'''
    return [pair.whole, *alive(pair.whole.views)]


def memory(pair):
    '''An identifier of the memory of a pair's difference, which views have in common.'''
    return pair.values[0].untyped_storage()._cdata


def assign(pair, value):
    '''Give a pair the value of another one of its shape, as an in-place operation on a tensor does. All pairs that
    share its memory change as well.

    Parameters
    ----------
    pair, value : :py:class:`~zennit_dc.core.pair.SplitTensor`
        The pair to be changed, and its new value.

    Returns
    -------
    :py:class:`~zennit_dc.core.pair.SplitTensor`
        The changed pair.
    '''
    base, *views = pairs = sharing(pair)
    layout, lent = base.difference, base.pending
    whole = pair is base and not views
    if whole:
        new = laid_out(value.difference, layout.stride()), value.tensors[1]
    else:
        new = [written(tensor, layout, pair.view_of, part) for tensor, part in zip(base.tensors, value.tensors)]
    if not torch.is_grad_enabled():  # then torch changes the value alone
        new = [with_graph_of(old, tensor) for old, tensor in zip(base.values, new)]
    changed = [(True, True)] if whole else seen_parts(layout, pair, pairs)
    for each, (sees_any, sees_all) in zip(pairs, changed):
        with torch.set_grad_enabled(torch.is_grad_enabled() or new[0].requires_grad):
            each.values = tuple(viewed(each.view_of, tensor.to(old.dtype)) for tensor, old in zip(new, each.values))
        each.origin = value.origin if whole and isinstance(value.origin, Rectified) else None
        each.pending = None
        each.depth = max(each.depth, value.depth) if sees_any else each.depth
        if sees_any:
            now = value.facts if sees_all else each.facts & value.facts
            each.facts = now | {fact for fact in each.facts if fact in WRITTEN or fact is each.unmapped}
    if lent is not None:
        lent.move(pairs)
    if base.split_pass.plain:
        show_graph(pairs)
    return pair


def seen_parts(layout, pair, others):
    '''Whether each of some pairs sees any entry that is written to a pair, and whether all that it sees is written.
    They share memory, in which the whole tensor has a layout.'''
    with untraced():  # as shapes and strides alone tell
        mask = torch.empty_strided(layout.shape, layout.stride(), dtype=torch.bool, device=layout.device).zero_()
        viewed(pair.view_of, mask).fill_(True)
        seen = [viewed(each.view_of, mask) for each in others]
        return [(bool(each.any()), bool(each.all())) for each in seen]


def laid_out(tensor, strides):
    '''A tensor with given strides, on which the order of later sums may depend.'''
    return tensor if tensor.stride() == strides else tensor.new_empty_strided(tensor.shape, strides).copy_(tensor)


def written(tensor, layout, view, part):
    '''A copy of a tensor in the layout of another one, with a part written into a view of it.'''
    copy = tensor.new_empty_strided(layout.shape, layout.stride()).copy_(tensor)
    viewed(view, copy).copy_(part)
    return copy


class NewValue(torch.autograd.Function):
    '''Another value for a tensor. The gradient is passed on to the tensor as it is.'''
    @staticmethod
    def forward(ctx, tensor, value):
        ctx.set_materialize_grads(False)
        return same(value)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def with_graph_of(old, new):
    '''A new value with the graph of an old tensor, if it has one.'''
    if not old.requires_grad or new.requires_grad:
        return new
    with torch.enable_grad():
        return NewValue.apply(old, new)


# plain tensors in the memory of a pair

class Lent:
    '''What is done before the tensors of a pair are read, if plain tensors share the memory of its difference: to raise
    if one of them was written to, as the sum does not know of that.'''
    def __init__(self, tensor):
        self.memory, self.version, self.tensors = tensor.detach(), tensor._version, []

    def __call__(self, pair):
        if self.memory._version != self.version:
            raise unsupported(
                'a tensor that detach() or data made of a split pair, and that was written to,', (pair,),
                ', as the pair that shares its memory is used again', 'write to a copy, x.detach().clone()'
            )
        pair.pending = self

    def move(self, pairs):
        '''Let the plain tensors see the new value of the pairs, which is elsewhere in memory.'''
        self.tensors = [(reference, view) for reference, view in self.tensors if reference() is not None]
        for reference, view in self.tensors:
            with torch.no_grad():
                reference().set_(viewed(view, pairs[0].values[0].detach()))
        for pair in pairs if self.tensors else ():
            pair.pending = self
        self.version = self.memory._version  # which these tensors keep


def lend(pair):
    '''The difference of a pair as a plain tensor without a graph, in the same memory.'''
    difference, (base, *views) = pair.difference, sharing(pair)
    if not isinstance(base.pending, Lent):
        lent = Lent(base.difference)
        if ADOPTED not in base.facts:
            pair.split_pass.plain.append(weakref.ref(base))
        for each in (base, *views):
            each.pending = lent
    output = difference.detach()
    base.pending.tensors.append((weakref.ref(output), pair.view_of))
    return output


def refuse_overwritten(pair):
    '''What is done before the tensors of a pair are read, if another pair was written into its memory: to raise.'''
    pair.pending = refuse_overwritten
    raise unsupported(
        'a split pair into whose memory another one was written, through a tensor of detach() or data,', (pair,),
        remedy='write to a copy, x.detach().clone()'
    )


# plain tensors that become pairs

REMEDY = 'write to a new tensor, e.g. x.clone(), or make one of its parts with torch.cat, torch.stack or torch.where'


def become_pair(tensor, split_pass, name):
    '''Make a plain tensor a pair, before another pair is written into it. The tensor of which it is a view becomes a
    pair as well, and so do the other views of that one. They are plain tensors again when the forward pass ends.

    Parameters
    ----------
    tensor : :py:class:`torch.Tensor`
        The plain tensor.
    split_pass : :py:class:`~zennit_dc.core.pair.Pass`
        The pass of the pair that is written.
    name : str
        The operation in place.

    Raises
    ------
    NotImplementedError
        If it is no floating point tensor, or a parameter; or if tensors share its memory that would not see what is
        written.
    '''
    with torch._C.DisableTorchFunctionSubclass():
        base = tensor if tensor._base is None else tensor._base
        for each in (tensor, base):
            require_changeable(each, name)
        is_lent = False
        if type(base) is torch.Tensor:
            is_lent = overwrite(base, split_pass, name)
            adopt(base, laid_out(base.clone(), base.stride()), split_pass)
        views = [] if base is tensor else [tensor]
        if not is_lent and not are_all(base, views, split_pass):
            views = [each for each in gc.get_objects() if type(each) is torch.Tensor and is_view(each, base)]
            if not are_all(base, views, split_pass):
                raise unsupported(f'{name} on a tensor', (base,), ' whose memory is kept elsewhere', REMEDY)
        for view in views:
            path = partial(at_strides, view.shape, view.stride(), view.storage_offset() - base.storage_offset())
            adopt(view, path(base.values[0]), split_pass, path(base.values[1]))
            as_view(view, base, path)


def require_changeable(tensor, name):
    '''Raise if a tensor cannot become a pair.'''
    bound = tensor.requires_grad and (tensor.is_leaf or tensor._is_view())
    if type(tensor) not in (torch.Tensor, SplitTensor) or not tensor.is_floating_point() or bound:
        what = f'a plain tensor ({type(tensor).__name__}, {tensor.dtype}{", which needs a gradient" * bound})'
        raise unsupported(f'{name} on {what}', (), ', as it would have to become a split pair', REMEDY)


def is_view(tensor, base):
    '''Whether a tensor is a view of another one.'''
    try:
        return tensor._base is base
    except RuntimeError:  # an undefined tensor, of which older versions of torch keep some
        return False


def at_strides(shape, stride, offset, tensor):
    '''A view of the memory of a whole tensor.'''
    return tensor.as_strided(shape, stride, tensor.storage_offset() + offset)


def adopt(tensor, difference, split_pass, stream_sum=None):
    '''Make a plain tensor the pair of a constant.'''
    if tensor.requires_grad:
        tensor.detach_()
    tensor.__class__ = SplitTensor
    tensor.__init__(difference, difference.abs() if stream_sum is None else stream_sum, split_pass)
    tensor.depth, tensor.facts = -math.inf, frozenset({ADOPTED})
    split_pass.plain.append(weakref.ref(tensor))


def adopted(split_pass):
    '''The pairs of a pass that were plain tensors.'''
    return [pair for pair in alive(split_pass.plain) if ADOPTED in pair.facts]


def are_all(base, views, split_pass):
    '''Whether only the given tensor, its given views and tensors that became pairs share its memory.'''
    storage = base.untyped_storage()
    known = sum(each.untyped_storage()._cdata == storage._cdata for each in adopted(split_pass))
    return torch._C._storage_Use_Count(storage._cdata) - 1 == known + len(views)


def show_graph(pairs):
    '''Let pairs need a gradient if their values do, so that autograd functions without a form are noticed.'''
    with torch._C.DisableTorchFunctionSubclass():
        for pair in pairs:
            if pair.is_leaf and any(tensor.requires_grad for tensor in pair.values):
                pair.requires_grad_()


def overwrite(tensor, split_pass, name):
    '''Note that a plain tensor, which is about to become a pair, overwrites another pair if it is in that one's memory.
    Return whether it does.'''
    storage = tensor.untyped_storage()._cdata
    owner = next((pair for pair in alive(split_pass.plain) if memory(pair) == storage), None)
    if owner is None:
        return False
    lent = alive(reference for reference, _ in owner.pending.tensors) if isinstance(owner.pending, Lent) else []
    if any(each is not tensor for each in lent):
        raise unsupported(f'{name} on one of several tensors that detach() or data made of a split pair', (owner,),
                          remedy=REMEDY)
    for each in sharing(owner):
        each.pending = refuse_overwritten
    return True


def become_plain(split_pass, is_done):
    '''Make the pairs that were plain tensors such tensors again, with their new values if the forward pass is done.'''
    for tensor in adopted(split_pass):
        value = tensor.values[0].detach()
        tensor.__dict__.clear()
        tensor.__class__ = torch.Tensor
        tensor.requires_grad_(False)
        if is_done:
            tensor.data = value
    split_pass.plain.clear()
