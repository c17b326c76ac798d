'''Batches of gradients, and transforms of torch.func. Split pairs know neither: their maps are computed one after the
other.'''
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import torch
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge

from .nested import flatten


def refused(kind):
    '''The error for a kind of gradients of which there is no map.'''
    return NotImplementedError(
        f'a model in split form has no map for {kind}: take the map of one output after the other, in a loop of'
        ' torch.autograd.grad(output, input, gradient, retain_graph=True) or with'
        ' torch.autograd.functional.jacobian(..., vectorize=False)'
    )


def each_alone(readout, function, *batches):
    '''Call a function with each of the gradients in some batches, and stack the lists of tensors or None that it
    returns. The maps at a layer are stacked as well.'''
    found, saliencies = [], []
    for gradients in zip(*batches):
        readout.saliency = None
        found.append(function(*gradients))
        saliencies.append(readout.saliency)
    readout.saliency = None if saliencies[0] is None else torch.stack(saliencies)
    return [None if maps[0] is None else torch.stack(maps) for maps in zip(*found)]


# several gradients in one backward pass of torch.autograd

# whether a gradient stands for several, by is_grads_batched=True or vectorize=True
is_batch = torch._C._functorch.is_legacy_batchedtensor


def maps_of_batch(readout, function, gradient, outputs, parameters):
    '''The maps for a batch of gradients that enters at an output, by a function of one gradient.

    Parameters
    ----------
    readout : :py:class:`~zennit_dc.streams.Readout`
        The readout, which keeps the map at a layer.
    function : callable
        A function of one gradient that returns the maps of the inputs.
    gradient : :py:class:`torch.Tensor`
        The batch of gradients.
    outputs, parameters
        The nodes of all outputs in the graph, and the parameters, of which no gradient is computed.

    Returns
    -------
    list of :py:class:`torch.Tensor`
        A batch of maps for each input.

    Raises
    ------
    NotImplementedError
        If gradients enter at several outputs, or are asked for at parameters, or are to be differentiated again.
    '''
    gradients = torch._remove_batch_dim(gradient, 1, 1, 0)
    if torch.is_grad_enabled() or is_batch(gradients):
        raise refused('several gradients in one backward pass that is to be differentiated again (create_graph=True)')
    if sum(map(torch._C._will_engine_execute_node, outputs)) > 1:
        raise refused('several gradients in one backward pass from several outputs')
    if any(map(is_asked_for, parameters)):
        raise refused('several gradients in one backward pass by parameters')
    maps = each_alone(readout, function, gradients)
    return [map if map is None else torch._add_batch_dim(map, 0, 1) for map in maps]


def is_asked_for(leaf):
    '''Whether the running backward pass computes the gradient of a leaf of the graph.'''
    try:
        return torch._C._will_engine_execute_node(get_gradient_edge(leaf).node)
    except RuntimeError:  # which is said of those whose gradient is returned
        return True


# transforms of torch.func

class Transformed(torch.autograd.Function):
    '''The outputs of a model, which can be differentiated once and in reverse mode. Their graph is kept outside of the
    transforms.'''
    @staticmethod
    def forward(graph, *inputs):
        with torch.enable_grad(), saved_tensors_hooks():
            graph.inputs = [input.detach().requires_grad_() for input in inputs]
            graph.leaves, graph.structure = flatten(graph.run(graph.inputs))
        graph.outputs = [leaf for leaf in graph.leaves if torch.is_tensor(leaf)]
        return tuple(output.detach() for output in graph.outputs)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.graph = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, *gradients):
        return None, *Maps.apply(ctx.graph, *gradients, *ctx.saved_tensors)

    @staticmethod
    def vmap(info, in_dims, graph, *inputs):
        raise refused('torch.func.vmap of the model, which is given all samples of a batch at once')

    @staticmethod
    def jvp(ctx, *tangents):
        raise refused('forward-mode derivatives (torch.func.jvp, jacfwd and hessian)')


class Maps(torch.autograd.Function):
    '''The maps of a model's inputs for gradients at its outputs, or batches of these. The inputs are arguments too, so
    that differentiating the maps is noticed.'''
    @staticmethod
    def forward(graph, *gradients):
        seeded = [both for both in zip(graph.outputs, gradients) if both[0].requires_grad and both[1].any()]
        outputs, seeds = zip(*seeded) if seeded else (graph.outputs[:1], gradients[:1])
        with saved_tensors_hooks():
            return torch.autograd.grad(outputs, graph.inputs, seeds, retain_graph=True, materialize_grads=True)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        pass

    @staticmethod
    def backward(ctx, *gradients):
        raise refused('derivatives of maps within torch.func')

    @staticmethod
    def vmap(info, in_dims, graph, *tensors):
        batches = [each.expand(info.batch_size, *each.shape) if dim is None else each.movedim(dim, 0)
                   for each, dim in zip(tensors, in_dims[1:])]
        maps = each_alone(graph.readout, partial(Maps.apply, graph), *batches)
        return tuple(maps), (0,) * len(maps)


@contextmanager
def saved_tensors_hooks():
    '''A context in which saved tensors may have hooks, which torch.func forbids for graphs of its own.'''
    reason = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
    torch._C._autograd._saved_tensors_hooks_enable()
    try:
        yield
    finally:
        if reason is not None:
            torch._C._autograd._saved_tensors_hooks_disable(reason)


def transformed(run, readout, inputs, others):
    '''The output of a model within transforms of torch.func, which may transform its inputs but no other tensors.'''
    if any(torch._C._functorch.is_functorch_wrapped_tensor(each) for each in others):
        raise refused('torch.func by others than the floating point inputs, such as parameters')
    graph = SimpleNamespace(run=run, readout=readout)  # and the graph of the outputs, once the model was run
    outputs = iter(Transformed.apply(graph, *inputs))
    return graph.structure([next(outputs) if torch.is_tensor(leaf) else leaf for leaf in graph.leaves])


within_transforms = torch._C._are_functorch_transforms_active


def refuse_forward_mode(*inputs):
    '''Raise if inputs carry tangents of a forward-mode derivative.'''
    if any(forward_ad.unpack_dual(input).tangent is not None for input in inputs):
        raise refused('forward-mode derivatives (torch.autograd.forward_ad, or strategy=\'forward-mode\')')
