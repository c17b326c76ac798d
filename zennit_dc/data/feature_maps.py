'''The layers of a model at which maps can be read, and the last feature map before its places are summed up, found by
running the model.'''
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch

from ..attribution.uses import Uses, is_discrete, tensors_in
from ..core.places import ACTIVATIONS, name_of, places_of


MAKING = ACTIVATIONS | frozenset((
    'glu', 'maximum', 'minimum',
    'batch_norm', 'group_norm', 'instance_norm', 'layer_norm', 'local_response_norm', 'normalize', 'rms_norm',
    'bilinear', 'conv1d', 'conv2d', 'conv3d', 'conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d', 'linear',
    'add', 'addcdiv', 'addcmul', 'iadd', 'isub', 'radd', 'rsub', 'sub', 'subtract',
    'cat', 'concat', 'concatenate', 'hstack', 'dstack',
))
'''The names of functions that make feature maps: activations, normalizations, affine layers, additions, and what puts
channels together.'''
PRODUCTS = frozenset(('addbmm', 'addmm', 'baddbmm', 'bmm', 'einsum', 'imatmul', 'matmul', 'mm', 'rmatmul'))
'''Those that are affine where one factor alone depends on the input.'''
ROUTING = frozenset((
    'chunk', 'clone', 'contiguous', 'detach', 'expand', 'flatten', 'float', 'double', 'getitem', 'H', 'mH', 'mT',
    'moveaxis', 'movedim', 'narrow', 'permute', 'reshape', 'reshape_as', 'roll', 'split', 'squeeze', 'swapaxes',
    'swapdims', 'T', 'tensor_split', 'to', 'transpose', 'type_as', 'unbind', 'unflatten', 'unsqueeze', 'view',
    'view_as',
))
'''Those that move values.'''
WEIGHTING = ('log_softmax', 'scaled_dot_product_attention', 'softmax', 'softmin')
'''Those whose arguments are scores of places, or queries, and no feature maps.'''


class Layer(NamedTuple):
    '''A module at which maps can be read.

    Parameters
    ----------
    name, kind : str
        Its name, and its type's.
    shape : tuple of int
        The output's shape (channels, height, width). Tokens that are no places, as class tokens, do not count.
    activation : str or None
        The name of the activation after which maps are read, if the output goes straight into one and nowhere else.
    '''
    name: str
    kind: str
    shape: tuple
    activation: str | None = None

    @property
    def place(self):
        '''Where maps are read, for people.'''
        return self.name if self.activation is None else f'{self.name} (after {self.activation})'


class FeatureMap:
    '''What a function makes, which is a feature map if it has places, now or when its axes are arranged.

    Parameters
    ----------
    size : int
        The number of its values.
    node : :py:class:`torch.autograd.graph.Node`
        What made it, in the graph.

    Attributes
    ----------
    modules : tuple[str, ...]
        The names of the modules that are running when it gets its places, the innermost last.
    ended : tuple[str, ...]
        Those that have ended before.
    grid : tuple[int, ...]
        Its places along each axis.
    is_reached : bool
        Whether the model's output depends on it at some of its places.
    is_query : bool
        Whether it is a score or query, by which places are weighted.
    '''
    def __init__(self, size, node):
        self.size, self.node = size, node
        self.modules = self.ended = self.grid = None
        self.is_reached = self.is_query = False


class Survey(Uses):
    '''A run of a model on an input, from which its layers are known, and its feature maps.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    input : :py:class:`torch.Tensor`
        The input.
    differentiate : bool, optional
        Whether to find out on which feature maps the output depends.
    '''
    def __init__(self, model, input, differentiate=False):
        super().__init__()
        self.model, self.input, self.differentiate = model, input, differentiate
        self.modules = {name: module for name, module in model.named_modules() if name}
        self.calls, self.running, self.found, self.maps = {}, [], {}, []
        with self.watching(model), constant(model):
            output = model(input.requires_grad_(differentiate))
        self.end = output.grad_fn
        if differentiate and self.maps and output.requires_grad:
            weights = torch.linspace(1., 2., output.numel()).view_as(output)  # as probabilities have a constant sum
            torch.autograd.grad(output, input, weights.to(output))

    @contextmanager
    def watching(self, model):
        '''A context in which the model is run.'''
        with ExitStack() as stack:
            for name, module in self.modules.items():
                for handle in self.hooks(module, name):
                    stack.callback(handle.remove)
            yield stack.enter_context(super().watching(model))

    def hooks(self, module, name):
        '''Hooks of a module that note its calls.'''
        def begin(module, args):
            self.running.append(name)

        def end(module, args, output):
            self.running.pop()
            self.calls.setdefault(name, []).append(self.noted(name, self.sequence_of(module, output)))

        return module.register_forward_pre_hook(begin), module.register_forward_hook(end)

    def sequence_of(self, module, output):
        '''What a module returns, as it is; or the tensor among several values at which a map is read, see
        :py:func:`zennit_dc.core.layers.sequence_of`.'''
        if not isinstance(output, (tuple, list)):
            return output
        if isinstance(module, torch.nn.RNNBase):
            return output[0]
        tensors = [each for each in tensors_in(output) if not is_discrete(each)]
        reached = [each for each in tensors if each.requires_grad] if self.differentiate else tensors
        return reached[0] if len(reached) == 1 else output

    def noted(self, name, output):
        '''The shape of a module's output by places, what follows it, and the feature map that it is; or None if it has
        no places.'''
        if not isinstance(output, torch.Tensor) or not (places := found_places(name, output.shape, self.input.shape)):
            return None
        with self.pause():
            shape = tuple(places.arranged(output.detach()).shape[1:])
            return shape, self.follow(output), self.map_of(output)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.paused or not self.differentiate:
            return super().__torch_function__(func, types, args, kwargs)
        inputs = tensors_in((args, kwargs or {}))
        versions = [version_of(tensor) for tensor in inputs]  # as they may be written to
        result = super().__torch_function__(func, types, args, kwargs)
        with self.pause():
            self.look_at(name_of(func), inputs, versions, result)
        return result

    def look_at(self, name, inputs, versions, result):
        '''Note what a function makes of feature maps.'''
        for each in versions if name in WEIGHTING else ():
            if each in self.found:
                self.found[each][1].is_query = True
        for output in tensors_in(result):
            if version_of(output) in versions or not output.requires_grad:
                continue
            if output is result and makes_map(name, inputs):
                self.note(output, FeatureMap(output.numel(), output.grad_fn))
            elif name in ROUTING and versions and versions[0] in self.found:
                self.note(output, self.found[versions[0]][1])

    def note(self, tensor, feature_map):
        '''Note a tensor that is a feature map, or a part of it.'''
        self.found[version_of(tensor)] = tensor, feature_map  # the tensor, whose identity is its own while it is alive
        places = found_places('', tensor.shape, self.input.shape)
        if feature_map.modules is not None or self.map_of(tensor) is None or not places or min(places.grid) < 2:
            return

        def reach(gradient):
            feature_map.is_reached |= bool(places.arranged(gradient).any())

        feature_map.modules, feature_map.ended, feature_map.grid = tuple(self.running), tuple(self.calls), places.grid
        tensor.register_hook(reach)
        self.maps.append(feature_map)

    def map_of(self, tensor):
        '''The feature map that a tensor is, with its axes in whichever order, or None.'''
        _, feature_map = self.found.get(version_of(tensor), (None, None)) if self.differentiate else (None, None)
        return feature_map if feature_map is not None and feature_map.size == tensor.numel() else None

    @property
    def layers(self):
        '''The modules that are called once and whose output has places, as :py:class:`Layer` by their names, in the
        order in which they end.'''
        return {
            name: Layer(name, type(self.modules[name]).__name__, found[0], found[1].activation)
            for name, (found, *more) in self.calls.items() if found and not more
        }

    def last(self):
        '''The layer of the last feature map, and True; or the last layer before it, and False, where no module makes
        this feature map. None if there is neither. A feature map has a height and width of more than one, and the
        output depends on its places.'''
        maps = self.used
        name = self.maker(maps[-1]) if maps else None
        if name is not None:
            return self.layers[name], True
        names = [name for name, layer in self.layers.items() if min(layer.shape[1:]) > 1]
        before = [name for name in names if maps and name in maps[-1].ended and self.read(name) in maps]
        names = before or names
        return (self.layers[names[-1]], False) if names else None

    def middle(self):
        '''The layer of the last feature map that has about twice as many places along each axis as the last of all, or
        None if no module makes one.

        Several modules may make one. Those within the fewest others are chosen from, since inside of a block there may
        be branches side by side: see :py:meth:`depth`.
        '''
        maps = [each for each in self.used if self.makers(each) and all(
            2 * side >= 3 * last for side, last in zip(each.grid, self.used[-1].grid, strict=True)
        )]
        maps = [each for each in maps if each.grid == maps[-1].grid]
        depths = {each: min(self.depth(name, each) for name in self.makers(each)) for each in maps}
        found = [each for each, depth in depths.items() if depth == min(depths.values())]
        return self.layers[self.maker(found[-1])] if found else None

    def depth(self, name, feature_map):
        '''The number of modules that a module is within. Where the whole output depends on this feature map alone,
        there are no branches beside it, and modules at which no map can be read do not count.'''
        parts, layers = name.split('.'), self.layers
        outer = ['.'.join(parts[:count]) for count in range(1, len(parts))]
        readable = sum(each in layers for each in outer)
        others = sum(each in self.calls and each not in layers for each in outer)
        return readable + others if others and not self.is_bottleneck(feature_map) else readable

    def is_bottleneck(self, feature_map):
        '''Whether all paths of the graph from the output to the input, which is its only leaf, go through a feature
        map.'''
        seen, left = {None, feature_map.node}, [self.end]
        while left:
            node = left.pop()
            if node not in seen:
                seen.add(node)
                before = [each for each, _ in node.next_functions]
                if not before:
                    return False
                left += before
        return True

    @property
    def used(self):
        '''The feature maps on whose places the output depends, or all of them if it depends on none.'''
        maps = [each for each in self.maps if not each.is_query]
        return [each for each in maps if each.is_reached] or maps

    def maker(self, feature_map):
        '''The name of the module whose maps are read at a feature map, the outermost that is no mere sequence, or None
        if there is none.'''
        names = self.makers(feature_map)
        own = [name for name in names if type(self.modules[name]) is not torch.nn.Sequential]
        return next(iter([*own, *names[::-1]]), None)

    def makers(self, feature_map):
        '''The names of the modules whose maps are read at a feature map: those that make it, the outermost first, or
        else those whose output goes into the activation that makes it.'''
        layers = self.layers
        inside = [name for name in feature_map.modules if name in layers and self.calls[name][0][2] is feature_map]
        before = [name for name in reversed(layers) if name not in inside and name in feature_map.ended
                  and layers[name].activation and self.read(name) is feature_map]
        return inside or before

    def read(self, name):
        '''The feature map at which maps of a layer are read, or None.'''
        _, output, feature_map = self.calls[name][0]
        return feature_map if output.activation is None else self.map_of(output.read)


def makes_map(name, inputs):
    '''Whether a function makes a feature map.'''
    return name in MAKING or (name in PRODUCTS and sum(tensor.requires_grad for tensor in inputs) == 1)


def version_of(tensor):
    '''The identity of a tensor and its version, which changes as something is written to it.'''
    return id(tensor), None if tensor.is_inference() else tensor._version


@contextmanager
def constant(model):
    '''A context in which the parameters of a model are constants: what does not depend on the input has no graph.'''
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def found_places(name, shape, input_shape):
    '''The places of a layer's output, or None if there are none.'''
    try:
        return places_of(name, shape, input_shape, default=1)
    except ValueError:
        return None
