'''Graphs of plain tensors: their nodes, another run of a function for its gradients, and what they keep of pairs. A
tensor that can be computed of what a rule keeps anyway is not kept, but computed again in the backward pass. That saves
a third of the memory of relevance in VGG16.'''
import weakref
from contextlib import contextmanager, nullcontext

import torch

from .pair import Rectified


same = torch.ops.aten.alias.default  # a view that keeps all strides: view_as changes the strides of axes of length one


def true_gradients(function, tensors, gradient):
    '''The gradients of a function by its tensors, of which some may be None, from another run of it.'''
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        copies = [tensor if tensor is None else same(tensor) if graph and tensor.requires_grad
                  else tensor.detach().requires_grad_() for tensor in tensors]
        output, known = function(*copies), [copy for copy in copies if copy is not None]
        if not output.requires_grad:
            return [None] * len(copies)
        found = iter(torch.autograd.grad(output, known, gradient, create_graph=graph, allow_unused=True))
    return [None if copy is None else next(found) for copy in copies]


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


@contextmanager
def recomputed(tensors, function):
    '''A context in which some tensors that are kept for the backward pass are computed again there, by a function that
    returns all of them.'''
    known = [(tensor.untyped_storage()._cdata, tensor.shape) for tensor in tensors]

    def pack(tensor):
        kind = tensor.untyped_storage()._cdata, tensor.shape
        return known.index(kind) if kind in known else tensor

    def unpack(kept):
        if isinstance(kept, torch.Tensor):
            return kept
        with torch.no_grad():
            return function()[kept]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def without_rectified(pair):
    '''A context for functions of a pair: if it is the ReLU of a tensor that a rule keeps, it is computed of that.'''
    if not isinstance(pair.origin, Rectified):
        return nullcontext()
    source = pair.origin.source.detach()
    return recomputed(pair.values[:1], lambda: (torch.relu(source),))


def without_activation(output, pair, function, choose):
    '''A context for functions of an activation's output, which is made by a function of a pair: if this is a layer's
    output, of which a rule keeps the tensors, it is computed of these, with the sum that another function chooses.'''
    if pair is None or pair.layer is None or not pair.split_pass.rule.passes_activations:
        return nullcontext()
    difference, stream_sum = (tensor.detach() for tensor in pair.layer.tensors)
    return recomputed(output.values, lambda: function(difference, choose(difference, stream_sum)))
