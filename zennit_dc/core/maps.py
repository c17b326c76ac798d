'''From the gradients at the place where a map is read to the map: what is read off the streams, in float64 where
rounding would change it, and within the range of its dtype; and what the model is run again with, for a map that needs
float64, or tensors of which nothing was kept.'''
import math
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import NamedTuple

import torch

from ..forms.reading import ReadingPass
from .errors import StartOver
from .graphs import Node, same
from .nested import flatten
from .pair import SplitTensor
from .places import laid_over
from .settings import Mode, Settings


EXACT = 2. ** -17  # the part of a map's largest value that rounding may change
DOUBTS = ContextVar('doubts', default=None)
'''What has been noted while a thread records: tensors of one Boolean, which say whether a map is to be checked.'''


@contextmanager
def noting_doubts():
    '''A context in which no value of a map is read. Yields the list of what says whether one should have been.'''
    token = DOUBTS.set([])
    try:
        yield DOUBTS.get()
    finally:
        DOUBTS.reset(token)


def marked(tensor, nodes):
    '''A tensor such that it is noticed when it is differentiated.'''
    return Node.apply(nodes, lambda gradient: (gradient,), tensor)[0] if torch.is_grad_enabled() else tensor


def input_gradients(split_pass, index, *gradients):
    '''The gradients by an input of a pass, and by its sum: the map, or the true ones.'''
    if not split_pass.makes_map():
        return gradients

    def read(gradient, sum_gradient, *_):
        return split_pass.readout.combine(gradient, sum_gradient)

    dtype = split_pass.rerun.inputs[index].dtype
    map = exact(split_pass, read(*gradients).to(dtype), read, dtype, index, split_pass.input_axes.samples[index])
    require_dependence(split_pass, map)
    return marked(map, split_pass.nodes.maps), None


def layer_gradients(split_pass, values, *gradients):
    '''The gradients by a layer's output with some values, and by the inputs: the map for the input that has its places.
    True gradients, and those of several maps at once, are given to the inputs by the outputs.'''
    found = [None] * len(split_pass.inputs)
    if split_pass.makes_map():
        found[split_pass.output.location.source] = layer_map(split_pass, values, gradients)
    elif not split_pass.has_batch() and any(gradient.any() for gradient in gradients):
        raise NotImplementedError(
            f'the true gradient of a pair within the model is not known below module {split_pass.layer!r}, at which a'
            ' map is read: take that of the model\'s output, or call the model within the composite\'s inactive()'
        )
    return None, None, *found


def layer_map(split_pass, values, gradients):
    '''The map of an input from the gradients by a layer's output with some values.'''
    places = split_pass.output.location

    def read(*tensors):
        return split_pass.readout.at_layer(*(places.arranged(tensor) for tensor in tensors))

    input, samples = split_pass.inputs[places.source], split_pass.input_axes.samples[places.source]
    saliency = read(*(at_reading(split_pass) if torch.is_grad_enabled() else (*gradients, *values)))
    saliency = exact(split_pass, saliency, read, input.dtype)
    if DOUBTS.get() is None and not saliency.any():
        places.require_reached(f'module {split_pass.layer!r}', *gradients)
    warn_of_rounding(split_pass, saliency, [places.arranged(each) for each in (*gradients, *values)])
    require_dependence(split_pass, saliency)
    split_pass.readout.saliency = saliency.detach()
    map = laid_over(saliency, input.movedim(samples, 0).shape, places.axes, places.windows).to(input.dtype)
    return marked(map.movedim(0, samples), split_pass.nodes.maps)


def exact(split_pass, map, read, dtype, index=0, samples=0):
    '''A map; or what is read off another run in float64, where it is not finite, or rounding changes it.'''
    losses = split_pass.running.losses
    if DOUBTS.get() is not None:
        DOUBTS.get().append(is_doubtful(map, losses, samples))
        return map
    finite = is_finite(map)
    part = part_of(map.movedim(samples, 0), losses).item() if losses and map.numel() else 0.
    if finite and part <= EXACT:
        return map
    try:
        tensors = at_reading(split_pass, index, exact=True)
    except RuntimeError as error:
        if not finite:
            raise
        warnings.warn(
            f'rounding may change the map of {split_pass.readout.name} by {min(part, 1.):.1g} of its largest value,'
            f' and it cannot be computed in float64: {error}', stacklevel=2
        )
        return map
    map = read(*tensors)
    if not is_finite(map):
        raise FloatingPointError(f'the map of {split_pass.readout.name} is not finite: {reason(split_pass)}')
    return in_range(split_pass.readout, map, dtype, samples)


def reason(split_pass):
    '''What is not finite already where the map begins, or what else may help.'''
    if not all(map(is_finite, split_pass.inputs)):
        return 'the input has entries that are not'
    name = next((name for name, tensor in split_pass.root.named_parameters() if not is_finite(tensor)), None)
    if name is not None:
        return f'{name} of the model has entries that are not'
    if not all(is_finite(seed.gradient) for seed in split_pass.running.seeds.values()):
        return 'the relevance that enters at the output has entries that are not'
    return split_pass.readout.advice


def in_range(readout, map, dtype, samples):
    '''A map in float64 in another dtype, scaled by a power of two for each image where it is too large for it.'''
    others = [axis for axis in range(map.ndim) if axis != samples]
    largest = map.detach().abs().amax(others, keepdim=True) if others else map.detach().abs()
    power = (math.frexp(torch.finfo(dtype).max)[1] - 2 - torch.frexp(largest)[1]).clamp(max=0)
    powers = power.flatten().tolist()
    factors = map.new_tensor([math.ldexp(1., each) for each in powers])  # torch.ldexp may take float32
    if power.any():
        how = f'image by image, by two to the power of {powers}; a larger alpha avoids this'
        warnings.warn(f'the map of {readout.name} is too large for {dtype}: it is scaled, {how}', stacklevel=2)
    return (map * factors.reshape(power.shape)).to(dtype)


def require_dependence(split_pass, map):
    '''Raise if a map is zero because weights are, as those of a head that is not trained yet.'''
    seeds = split_pass.running.seeds.values()
    if DOUBTS.get() is not None or map.any() or not any(seed.gradient.any() for seed in seeds):
        return
    readout = split_pass.readout
    zero = [name for name, tensor in split_pass.root.named_parameters()
            if not tensor.any() and (tensor.ndim > 1 or not name.endswith('bias'))]  # norms may start at zero
    if zero:
        through = '' if split_pass.layer is None else f' through module {split_pass.layer!r}'
        others = f' and {len(zero) - 3} others' if len(zero) > 4 else ''
        raise ValueError(
            f'the map of {readout.name} is zero, as the class\'s score does not depend on the input{through}:'
            f' all of {", ".join(zero[:3] if others else zero)}{others} is zero. Load trained weights'
        )
    if readout.vanishes:
        warnings.warn(f'the map of {readout.name} is zero: {readout.vanishes}', stacklevel=2)


@torch.no_grad()
def warn_of_rounding(split_pass, saliency, tensors):
    '''Warn if the entries of a map at a layer cancel each other out over the channels, as sensitivities do before a
    layer norm. This cannot be told in dtypes that round more than float32, nor where entries overflow.'''
    readout = split_pass.readout
    entries = readout.at_layer(*(each.unsqueeze(1) for each in tensors))  # each channel by itself
    rounding = 2 ** 10 * torch.finfo(entries.dtype).eps
    largest, sizes = (each.abs().flatten(1).amax(1) for each in (saliency, entries.abs().mean(1)))
    cancels = ((largest < rounding * sizes) & sizes.isfinite()).any() & (rounding < 2. ** -10)
    if DOUBTS.get() is not None:
        DOUBTS.get().append(cancels)
    elif cancels:
        warnings.warn(
            f'nothing but rounding is left of the map of {readout.name} at the output of {split_pass.output.where}: its'
            ' entries cancel each other out over the channels, as sensitivities do before layer norms, which subtract'
            ' the mean of the channels. Take a method such as SplitLRP, or a layer within a block', stacklevel=2
        )


def part_of(map, losses):
    '''The largest of some losses, as a part of the largest entry of a map of any sample that is not zero.'''
    largest = map.detach().abs().reshape(len(map), -1).amax(1)
    return torch.stack(losses).amax() / largest.masked_fill(largest == 0., math.inf).amin()


def is_doubtful(map, losses, samples):
    '''Whether a map is zero, not finite, or changed by rounding, as a tensor of one entry.'''
    if not map.numel():
        return map.new_zeros((), dtype=torch.bool)
    doubtful = ~(torch.isfinite(map).all() & map.any())
    return doubtful | (part_of(map.movedim(samples, 0), losses) > EXACT) if losses else doubtful


def is_finite(map):
    '''Whether all entries are finite.'''
    return bool(torch.isfinite(map.detach()).all())


# what is run again

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
    return [*root.parameters(), *root.buffers()]


def trained_of(root):
    '''The parameters of a model that need a gradient.'''
    return [tensor for tensor in tensors_of(root) if tensor.requires_grad]


def versions_of(root):
    '''What tells whether the parameters and buffers of a model are others than before.'''
    return [(id(tensor), tensor._version, tensor.device.type, tensor.data_ptr()) for tensor in tensors_of(root)]


def device_type(versions):
    '''The type of the device of the first parameter.'''
    return versions[0][2] if versions else 'cpu'


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
    probe = Probe(index)
    with split_pass.rerun.running(split_pass, exact) as (call, inputs):
        try:
            output = type(split_pass)(split_pass.canonizer, call, inputs, split_pass.layer, probe).run()
        except StartOver as reason:
            raise changed() from reason
    leaves, read = flatten(output)[0], probe.tensors
    probe.tensors = None  # as their graph holds the pass, and with it the probe
    seeded = [(leaves[number], seed.gradient.to(leaves[number].dtype)) for number, seed in seeds.items()]
    return *gradients(read, seeded, materialize_grads=True), *read


def gradients_of_output(split_pass, index, gradient, trained):
    '''The true gradients by inputs that need one and by parameters of the output of a pass with an index.'''
    with split_pass.rerun.running(split_pass) as (call, inputs):
        settings = Settings(split_pass.settings.pooling, None, split_pass.rules[0], split_pass.root)
        true_pass = ReadingPass(settings, Mode(has_graph=True))
        pairs = [SplitTensor(same(input), split_pass.sum_of_input(input), true_pass).as_input() for input in inputs]
        output = flatten(call(pairs))[0][index].difference
    needed = [new for new, old in zip(inputs, split_pass.inputs) if old.requires_grad]
    return gradients([*needed, *trained], [(output, gradient)], allow_unused=True)


def gradients(tensors, seeded, **kwargs):
    '''The gradients by tensors of outputs that are given with what enters there.'''
    outputs, seeds = zip(*seeded)
    return torch.autograd.grad(outputs, tensors, seeds, create_graph=torch.is_grad_enabled(), **kwargs)
