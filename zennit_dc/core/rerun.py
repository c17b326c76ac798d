'''What a forward pass is run again with, where a map needs tensors of which nothing was kept, or float64.'''
from collections.abc import Callable
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import torch

from .errors import StartOver
from .formless import ReadingPass
from .nested import flatten, modules_of
from .pair import SplitTensor
from .settings import Mode, Settings
from .tensors import same


class Rerun(NamedTuple):
    '''What it takes to run a model again.

    Parameters
    ----------
    call : callable
        The original forward as a function of the list of its floating point inputs alone.
    inputs : list of :py:class:`torch.Tensor`
        These inputs.
    versions : list
        What tells whether parameters and buffers are the same as before.
    autocast : :py:class:`torch.dtype` or None
        The dtype of autocast, where it was on.
    '''
    call: Callable
    inputs: list
    versions: list
    autocast: torch.dtype | None

    @classmethod
    def of(cls, root, call, inputs):
        '''That of a model that is about to be called.'''
        versions = versions_of(root)
        kind = device_type(versions)
        return cls(call, inputs, versions, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)

    @contextmanager
    def running(self, split_pass, exact=False):
        '''A context in which the model of a pass is run again, with a graph; if exact, in float64. It gives the call
        and the inputs, which have the graph of the first ones where a graph is asked for.'''
        if split_pass.is_over() or self.versions != versions_of(split_pass.root):
            raise changed()
        graph, dtype = torch.is_grad_enabled(), None if exact else self.autocast
        with torch.enable_grad(), torch.autocast(device_type(self.versions), dtype, enabled=dtype is not None):
            inputs = [same(input) if graph else input.detach().requires_grad_() for input in self.inputs]
            yield in_float64(split_pass.root, self.call, inputs) if exact else (self.call, inputs)


def changed():
    '''The error for a model that is not as it was.'''
    return RuntimeError(
        'to compute this map, the model has to be run again, but it has changed since its forward pass: call the'
        ' backward pass inside of the composite\'s context and with the same parameters'
    )


def in_float64(root, call, inputs):
    '''The call of a model with its parameters and buffers in float64, and its inputs.'''
    calling = torch.nn.ModuleDict({'root': root})
    calling.forward = call
    tensors = {name: tensor.double() for name, tensor in chain(calling.named_parameters(), calling.named_buffers())
               if tensor.is_floating_point()}
    return lambda inputs: torch.func.functional_call(calling, tensors, (inputs,)), [each.double() for each in inputs]


def tensors_of(root):
    '''The parameters and buffers of a model, each of them once.'''
    found = (each for module in modules_of(root) for each in (*module._parameters.values(), *module._buffers.values()))
    return list(dict.fromkeys(tensor for tensor in found if tensor is not None))


def trained_of(root):
    '''The parameters of a model that need a gradient.'''
    return [tensor for tensor in tensors_of(root) if tensor.requires_grad]


def versions_of(root):
    '''What tells whether the parameters and buffers of a model are others than before.'''
    return [(id(tensor), tensor._version, tensor.device.type, tensor.data_ptr()) for tensor in tensors_of(root)]


def device_type(versions):
    '''The type of the device of the first parameter.'''
    return versions[0][2] if versions else 'cpu'


# gradients from another run

class Probe:
    '''The tensors at which a map is read, in a pass that is run again with all of its graph.

    Parameters
    ----------
    index : int
        The index of the input at which the map is read, if it is not read at a layer.
    '''
    def __init__(self, index):
        self.index, self.tensors = index, None


def at_reading(split_pass, index=0, exact=False):
    '''The gradients of difference and sum at the place where the map of a pass is read, and these tensors, from another
    pass with all of its graph; if exact, in float64.'''
    seeds = split_pass.running.seeds
    if not all(isinstance(number, int) for number in seeds):
        raise RuntimeError('its backward pass starts within the model, not at the output')
    _, output, read = another(split_pass, index, exact)
    leaves = flatten(output)[0]
    seeded = [(leaves[number], seed.gradient.to(leaves[number].dtype)) for number, seed in seeds.items()]
    return *gradients(read, seeded, materialize_grads=True), *read


def below_layer(split_pass, layer_gradients, trained):
    '''The true gradients by inputs and parameters of what is below the layer of a pass.'''
    inputs, _, read = another(split_pass)
    seeded = [each for each in zip(read, layer_gradients) if each[0].requires_grad]
    return gradients([*inputs, *trained], seeded, allow_unused=True)


def gradients_of_output(split_pass, index, gradient, trained):
    '''The true gradients by inputs that need one and by parameters of the output of a pass with an index.'''
    with split_pass.rerun.running(split_pass) as (call, inputs):
        settings = Settings(split_pass.settings.pooling, None, split_pass.rules[0], split_pass.root)
        true_pass = ReadingPass(settings, Mode(has_graph=True))
        pairs = [SplitTensor(same(input), split_pass.sum_of_input(input), true_pass).as_input() for input in inputs]
        output = flatten(call(pairs))[0][index].difference
    needed = [new for new, old in zip(inputs, split_pass.inputs) if old.requires_grad]
    return gradients([*needed, *trained], [(output, gradient)], allow_unused=True)


def another(split_pass, index=0, exact=False):
    '''The inputs and the output of another forward pass with all of its graph, and the tensors at which the map is
    read.'''
    with split_pass.rerun.running(split_pass, exact) as (call, inputs):
        probe = Probe(index)
        try:
            output = type(split_pass)(split_pass.canonizer, call, inputs, split_pass.layer, probe).run()
        except StartOver as reason:
            raise changed() from reason
    read, probe.tensors = probe.tensors, None  # as their graph holds the pass, and with it the probe
    return inputs, output, read


def gradients(tensors, seeded, **kwargs):
    '''The gradients by tensors of outputs that are given with what enters there.'''
    outputs, seeds = zip(*seeded)
    return torch.autograd.grad(outputs, tensors, seeds, create_graph=torch.is_grad_enabled(), **kwargs)
