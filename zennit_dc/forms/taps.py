'''Gradients along the way: hooks of a split pair, and the relevance that it keeps, as zennit-crp asks of the outputs of
layers.

What a hook sees in a backward pass that makes a map is this map at the pair, for each entry: relevance in
:py:class:`~zennit_dc.SplitLRP`, the sensitivity in the others. A hook that changes it changes both streams alike, which
is defined for linear functions, such as masks of channels. Where a batch norm is part of the layer before it, the
layer's output is that of the norm, as with Zennit's canonizers.
'''
import sys
import weakref
from collections import OrderedDict
from contextlib import contextmanager
from functools import partial
from traceback import walk_stack

import torch
from torch.utils.hooks import RemovableHandle

from ..core.batches import refused
from ..core.errors import GRAPH, StartOver
from ..core.graphs import Node
from ..core.nested import flatten
from ..core.pair import SplitTensor, unsupported
from ..core.registry import split_form
from ..core.table import FORMS
from .hooks import ChangedGradient
from .reading import reading_form
from .table import getters


TOLERANCE = 1e-3  # of the largest entry, by which a hook may deviate from a linear function


class Kept:
    '''What is done with the gradients of a pair, and kept of them. The graph holds it, so that it holds no tensors of
    the graph.

    Parameters
    ----------
    split_pass : :py:class:`~zennit_dc.core.pair.Pass`
        The forward pass.
    dtype : :py:class:`torch.dtype`
        That of the pair.
    '''
    def __init__(self, split_pass, dtype):
        self.split_pass, self.dtype = split_pass, dtype
        self.hooks, self.retains, self.gradient = OrderedDict(), False, None
        self.depth = 0  # of the output that was explained last

    def seen(self, gradient, sum_gradient):
        '''What hooks see of the gradients of difference and sum.'''
        if self.split_pass.makes_map():
            gradient = self.split_pass.readout.combine(gradient, sum_gradient)
        return gradient.to(self.dtype)

    def pass_on(self, *gradients):
        '''The gradients as the hooks leave them.'''
        if self.split_pass.has_batch():
            raise refused('several gradients in one backward pass at a tensor within the model, as hooks see it')
        if self.split_pass.makes_map():
            self.depth = self.split_pass.largest_depth()
        seen = self.seen(*gradients)
        for hook in list(self.hooks.values()):
            changed = applied(hook, seen)
            if torch.equal(changed, seen):
                continue
            if self.split_pass.makes_map():
                gradients = [applied(hook, gradient) for gradient in gradients]
                require_linear(changed, self.seen(*gradients), seen)
            else:
                gradients = changed, *gradients[1:]
            seen = changed
        if self.retains:
            kept = seen.detach()
            self.gradient = kept.clone() if self.gradient is None else self.gradient + kept
        return gradients


def applied(hook, gradient):
    '''What a hook makes of a gradient, which it may change in place.'''
    given = gradient.clone()
    changed = hook(given)
    return given if changed is None else changed


def require_linear(changed, expected, seen):
    '''Raise if a hook does not do the same to both streams.'''
    tolerance = TOLERANCE * max(float(seen.abs().max()), float(changed.abs().max()))
    if not (changed - expected).abs().max() <= tolerance:
        raise ChangedGradient(
            'a hook that was given to register_hook changes the gradient of a split pair by a function that is not'
            ' linear, which is not defined for its two streams: let it multiply by a mask, or return None'
        )


class Tap:
    '''The place in the graph where the gradients of a pair are seen.

    Attributes
    ----------
    before : tuple of :py:class:`torch.Tensor` or None
        The pair's tensors before that place, as soon as anything is made of the pair.
    nodes : list
        The node of the graph there.
    '''
    def __init__(self, pair):
        self.kept, self.before, self.nodes = Kept(pair.split_pass, pair.values[0].dtype), None, []
        self.attach(pair, weakref.ref(pair))

    def attach(self, pair, reference):
        '''Put the place behind the tensors of a pair, as soon as it is not about to become another layer's.'''
        self.pair, pending = reference, pair.pending

        def insert(pair):
            if pending is not None:
                pending(pair)
            self.before = pair.values
            if has_graph(pair):
                self.nodes.clear()
                pair.values = Node.apply(self.nodes, self.kept.pass_on, *pair.values)

        if pending is None:
            insert(pair)
        else:
            pair.pending = insert

    def start(self, streams):
        '''The difference, for a backward pass that starts there: behind the hooks, with the gradients of both streams
        that they have left; or at the pair as it is now, as if it were the output.'''
        pair = self.pair()
        if pair.unmapped is not None:
            raise pair.unmapped
        tensors = pair.tensors if streams is None else self.before
        end = pair.depth if streams is None else self.kept.depth, pair.axes.batch
        return Node.apply([], partial(seeds_at, pair.split_pass, end, tensors[1].dtype, streams), *tensors)[0]


def seeds_at(split_pass, end, sum_dtype, streams, gradient, _):
    '''What enters the streams of a pair at which a backward pass starts.'''
    place = f'a pair of {split_pass.root}', end
    seeds = split_pass.seeds_of(place, *end, sum_dtype, gradient, None)
    return streams if streams is not None and split_pass.makes_map() else seeds


def has_graph(pair):
    '''Whether a pair has a graph.'''
    return any(tensor.requires_grad for tensor in pair.values)


def tap_of(pair):
    '''The tap of a pair, which is made when first asked for, or None if the pair has no graph, as where the map is read
    at a layer above.'''
    if not has_graph(pair):
        return None
    if (tap := vars(pair).get('tap')) is None:
        tap = vars(pair)['tap'] = Tap(pair)
        if (canonizer := getattr(pair.split_pass, 'canonizer', None)) is not None:
            canonizer.restore.append(partial(end, weakref.ref(pair)))
    return tap


def require_above(pair, name):
    '''Raise if nothing is differentiated at a pair, since the map is read there or above.'''
    layer = getattr(pair.split_pass, 'layer', None)
    if layer is not None and pair.split_pass.mode.has_graph and not has_graph(pair):
        raise unsupported(
            name, (pair,), f' where the map is read at layer {layer!r}, as nothing is differentiated there or below',
            'leave out layer, or ask for layers above it'
        )


@reading_form(*getters('requires_grad'))
def requires_grad(pair, *args):
    '''Whether a pair has a graph. A hook of a module that asks for it, as Captum's do, may differentiate by it.'''
    if has_graph(pair) and is_in_hook():
        tap_of(pair)
    return has_graph(pair)


@reading_form(torch.Tensor.requires_grad_, torch.Tensor.requires_grad.__set__)
def require_grad(pair, requires_grad=True):
    if not requires_grad and has_graph(pair):
        raise unsupported('requires_grad = False', (pair,), remedy='call detach(), which returns a plain tensor')
    if requires_grad and tap_of(pair) is None:
        require_above(pair, 'requires_grad_')
        has_canonizer = hasattr(pair.split_pass, 'canonizer')
        if has_canonizer and torch.is_grad_enabled() and not pair.split_pass.mode.has_graph:
            raise StartOver(GRAPH)
    return pair


def is_in_hook():
    '''Whether a hook of a module runs.'''
    name = None
    for frame, _ in walk_stack(sys._getframe()):
        if frame.f_globals.get('__name__') == 'torch.nn.modules.module':
            return name not in ('forward', '__call__')
        name = frame.f_code.co_name
    return False


@reading_form(*getters('grad_fn'))
def grad_fn(pair, *args):
    '''That of the difference.'''
    if any(frame.f_globals.get('__name__', '').startswith('torch._dynamo') for frame, _ in walk_stack(sys._getframe())):
        raise unsupported(
            'the graph of a split pair (read by torch.compile)', (pair,),
            remedy='explain the module that is not compiled'
        )
    require_above(pair, 'grad_fn')
    tap_of(pair)
    return pair.values[0].grad_fn


@reading_form(torch.Tensor.register_hook)
def register_hook(pair, hook):
    tap = tap_of(pair)
    hooks = OrderedDict() if tap is None else tap.kept.hooks
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


@reading_form(torch.Tensor.retain_grad)
def retain_grad(pair):
    if (tap := tap_of(pair)) is not None:
        tap.kept.retains = True


@reading_form(*getters('grad'))
def gradient_of(pair, *args):
    require_above(pair, 'grad')
    tap = vars(pair).get('tap')
    return None if tap is None else tap.kept.gradient


@reading_form(torch.Tensor.grad.__set__)
def set_gradient(pair, value):
    if (tap := vars(pair).get('tap')) is not None:
        tap.kept.gradient = value


# backward passes from and to pairs

@reading_form(torch.autograd.backward, torch.Tensor.backward)
def backward(tensors, grad_tensors=None, retain_graph=None, create_graph=False, inputs=None, **kwargs):
    grad_tensors = kwargs.pop('gradient', grad_tensors)
    if any(isinstance(each, SplitTensor) for each in flatten(inputs)[0]):
        raise unsupported('backward to split pairs', flatten(inputs)[0], remedy='call torch.autograd.grad')
    starts, seeds = started(tensors, grad_tensors, 'backward')
    torch.autograd.backward(starts, seeds, retain_graph, create_graph, inputs=inputs)


@reading_form(torch.autograd.grad)
def grad(outputs, inputs, grad_outputs=None, retain_graph=None, create_graph=False, only_inputs=True, **kwargs):
    starts, seeds = started(outputs, grad_outputs, 'grad')
    taps = [tap_at(each, 'grad') if isinstance(each, SplitTensor) else None for each in inputs]
    wanted = [(each,) if tap is None else tap.before for each, tap in zip(inputs, taps)]
    needed = [tensor for tensors in wanted for tensor in tensors if tensor.requires_grad]
    with reaching([tap for tap in taps if tap is not None]):
        found = iter(torch.autograd.grad(starts, needed, seeds, retain_graph, create_graph, **kwargs))
    gradients = [[next(found) if tensor.requires_grad else None for tensor in tensors] for tensors in wanted]
    return tuple(each[0] if tap is None else with_streams(tap.kept, *each) for each, tap in zip(gradients, taps))


@contextmanager
def reaching(taps):
    '''A context in which backward passes that get to some taps make a map.'''
    reached = [(tap.kept.split_pass.nodes.entrances, list(tap.nodes)) for tap in taps]
    for entrances, nodes in reached:
        entrances.extend(nodes)
    try:
        yield
    finally:
        for entrances, nodes in reached:
            entrances[:] = [node for node in entrances if node not in nodes]


def tap_at(pair, name):
    '''The tap of a pair, which was asked to keep its gradient, or an error.'''
    tap = vars(pair).get('tap')
    if tap is None or tap.before is None:
        raise unsupported(
            f'torch.autograd.{name}', (pair,), ' of pairs that keep no gradient', 'call retain_grad() on the pair when'
            ' the model makes it'
        )
    return tap


def started(tensors, gradients, name):
    '''The tensors from which a backward pass starts, and what enters there.'''
    tensors = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
    single = gradients is None or isinstance(gradients, torch.Tensor)
    gradients = [gradients] * len(tensors) if single else list(gradients)
    starts = [
        tap_at(each, name).start(streams_of(seed)) if isinstance(each, SplitTensor) else each
        for each, seed in zip(tensors, gradients)
    ]
    return starts, gradients


def with_streams(kept, gradient, sum_gradient):
    '''What is seen of the gradients of a pair, which remembers them.'''
    if gradient is None:
        return None
    sum_gradient = torch.zeros_like(gradient) if sum_gradient is None else sum_gradient
    readout = getattr(kept.split_pass, 'readout', None)
    seen = gradient if readout is None else readout.combine(gradient, sum_gradient)
    seen = seen.to(kept.dtype).clone()
    seen.streams = gradient, sum_gradient, seen._version
    return seen


def streams_of(gradient):
    '''The gradients of both streams that a gradient of a pair remembers, or None.'''
    *streams, version = getattr(gradient, 'streams', (None,))
    if not streams:
        return None
    if version != gradient._version:
        raise RuntimeError('the gradient of a split pair was changed in place: change a copy, or use a hook')
    return tuple(streams)


# copies of a layer's output

@split_form(torch.clone, torch.Tensor.clone)
def clone(pair, *args, form=FORMS[torch.clone], **kwargs):
    '''A copy, which a batch norm takes for the layer's output all the same, as a hook that keeps it may return one.'''
    output = form(pair, *args, **kwargs)
    if vars(pair).get('tap') is not None and pair.layer is not None:
        output.origin, vars(output)['tap'] = pair.layer, pair.tap
    return output


# after the end

class Ended(torch.Tensor):
    '''What was a split pair before the context of its pass ended, and is its difference.'''
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        leaves, structure = flatten((args, kwargs or {}))
        args, kwargs = structure([vars(leaf)['value'] if type(leaf) is Ended else leaf for leaf in leaves])
        return function(*args, **kwargs)


def end(reference):
    '''Let a pair that was asked for its gradient be a plain tensor, as its context ends.'''
    pair = reference()
    if pair is None:
        return
    value, tap = pair.values[0].detach(), vars(pair)['tap']
    value.grad = tap.kept.gradient
    vars(pair).clear()
    pair.__class__ = Ended
    vars(pair)['value'] = value
