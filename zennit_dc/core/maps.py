'''From the gradients at the place where a map is read to the map: what is read off the streams, in float64 where
rounding would change it, and within the range of its dtype.'''
import math
import warnings
import weakref

import torch

from .places import laid_over
from .recording import DOUBTS
from .rerun import at_reading, below_layer
from .tensors import same


EXACT = 2. ** -17  # the part of a map's largest value that rounding may change


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


def layer_gradients(split_pass, values, trained, *gradients):
    '''The gradients by a layer's output with some values, the inputs and the parameters that need them: the map for the
    input that has its places, or the true ones of what is below the layer, which is run again for them. In a backward
    pass with several gradients at once, outputs give the maps to the inputs.'''
    found = [None] * (len(split_pass.inputs) + len(trained))
    if split_pass.makes_map():
        found[split_pass.output.location.source] = layer_map(split_pass, values, gradients)
    elif not split_pass.has_batch() and any(gradient.any() for gradient in gradients):  # else they bypass the layer
        found = below_layer(split_pass, gradients, trained)
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
    elif DOUBTS.get() is None:
        require_more_than_rounding(split_pass, saliency, [places.arranged(each) for each in (*gradients, *values)])
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
def require_more_than_rounding(split_pass, saliency, tensors):
    '''Raise if the entries of a map at a layer cancel each other out over the channels, as sensitivities do before a
    layer norm. In dtypes that round more than float32, this cannot be told.'''
    readout = split_pass.readout
    entries = readout.at_layer(*(each.unsqueeze(1) for each in tensors))  # each channel by itself
    rounding = 2 ** 10 * torch.finfo(entries.dtype).eps
    largest, sizes = (each.abs().flatten(1).amax(1) for each in (saliency, entries.abs().mean(1)))
    if rounding < 2. ** -10 and (largest < rounding * sizes).any():
        raise ValueError(
            f'nothing but rounding is left of the map of {readout.name} at the output of {split_pass.output.where}: its'
            ' entries cancel each other out over the channels, as sensitivities do before layer norms, which subtract'
            ' the mean of the channels. Take SplitCAM or SplitLRP, or choose a layer within a block'
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
