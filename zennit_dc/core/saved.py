'''What graphs keep of pairs. A tensor that can be computed of what a rule keeps anyway is not kept, but computed again
in the backward pass. That saves a third of the memory of relevance in VGG16.'''
from contextlib import contextmanager, nullcontext

import torch

from .pair import Rectified


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
