'''The graph of a recorded call: how it is traced, what is computed once in it, and how it is replayed.'''
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.split_module import split_module
from torch.nn import Module


ALIASES = torch.ops.aten.detach.default, torch.ops.aten.alias.default
PLAIN = 'take zennit.attribution.Gradient in place of Recorded'


class NotRecorded(NotImplementedError):
    '''The error for a call that cannot be recorded.'''


def traced(call: Callable, input: Tensor, seed: Tensor) -> fx.GraphModule:
    '''The graph of a call with another input of the same kind, so that values that are read of it are noticed.
    Whatever is raised while it is traced is the cause of the error, but for a lack of memory.'''
    other = input.flip(-1) if input.ndim else input.clone()
    other = other.mul_(.75) if other.is_floating_point() else other
    try:
        return make_fx(lambda input, seed: call(input, seed))(other, seed)  # which counts the arguments, and self
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any type, as models and libraries raise them, though the plain call works
        raise NotRecorded(
            f'this call cannot be recorded, as it depends on values: {type(error).__name__}: {error}; {PLAIN}'
        ) from error


class Replay:
    '''The operations of a call, as a function of its input and of a function of its output.

    Parameters
    ----------
    module : :py:class:`torch.fx.GraphModule`
        The graph of a function of input and seed, which returns output, map, doubt and the map at the layer.
    folded : :py:class:`Folded`
        Where to keep what depends on constants alone.
    backend : str or None
        Who runs it.
    '''
    def __init__(self, module: fx.GraphModule, folded: 'Folded', backend: str | None) -> None:
        graph = module.graph
        require_repeatable(graph)
        ask_for_seed(graph)
        for node in graph.nodes:
            if node.target in ALIASES:
                node.replace_all_uses_with(node.args[0])
        for node in graph.nodes:
            if node.op == 'get_attr':  # the present values, as canonizers give those of before back
                module.__dict__[node.target] = getattr(module, node.target).detach()
        folded.fold(module)
        for node in reversed(graph.nodes):
            if node.op not in ('placeholder', 'output') and not node.users and not writes(node):
                graph.erase_node(node)
        module.recompile()
        self.run, self.is_compiled = compiled(module, backend) if backend else module, backend is not None

    def __call__(self, input: Tensor, seed_of: Callable) -> Any:
        with torch.no_grad(), torch.autocast(input.device.type, enabled=False):  # whose casts are recorded
            found = self.run(input, seed_of)
        # as memory of a recording on a GPU is written to again
        return [each.clone() if torch.is_tensor(each) else each for each in found] if self.is_compiled else found


@dataclass(frozen=True)
class Constant:
    '''A tensor in a key, by its place in memory and its version. It lives as long as the key, so that no other one has
    its place.'''
    place: tuple
    held: Tensor = field(compare=False)

    @classmethod
    def of(cls, tensor: Tensor) -> 'Constant':
        '''That of a tensor.'''
        layout = tensor.shape, tensor.stride(), tensor.dtype, tensor.device
        return cls((tensor.data_ptr(), tensor._version, *layout), tensor)


class Folded:
    '''What depends on constants alone, which all recordings share as long as one of them needs it.

    Parameters
    ----------
    budget : int
        The largest number of bytes.
    '''
    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.tensors: weakref.WeakValueDictionary[tuple, Tensor] = weakref.WeakValueDictionary()

    def fold(self, module: fx.GraphModule) -> None:
        '''Compute what depends on constants alone, and let the graph of a module have it as constants.'''
        graph: Any = module.graph
        keys: dict[fx.Node, tuple] = {}
        for node in list(graph.nodes):
            if node.op == 'get_attr':
                tensor = getattr(module, node.target)
                keys[node] = Constant.of(tensor),
                continue
            if not is_foldable(node, keys):
                continue
            key = str(node.target), fx.map_arg((node.args, tuple(node.kwargs.items())), keys.get)
            tensor = self.tensors.get(key)
            if tensor is None:
                with torch.no_grad():
                    tensor = node.target(*of_module(module, node.args), **of_module(module, node.kwargs))
                if tensor.nbytes + sum(each.nbytes for each in self.tensors.values()) > self.budget:
                    continue
                self.tensors[key] = tensor
            keys[node] = key
            name = f'folded_{len(module.__dict__)}'
            module.__dict__[name] = tensor
            with graph.inserting_before(node):
                constant = graph.create_node('get_attr', name)
            node.replace_all_uses_with(constant)
            graph.erase_node(node)
            keys[constant] = key


def of_module(module: fx.GraphModule, args: Any) -> Any:
    '''Arguments with the tensors of a module in place of its nodes.'''
    return fx.node.map_arg(args, lambda node: getattr(module, str(node.target)))


def is_foldable(node: fx.Node, keys: dict) -> bool:
    '''Whether a node is one tensor that depends on constants alone, and is not changed.'''
    if node.op != 'call_function' or not isinstance(node.target, torch._ops.OpOverload) or writes(node):
        return False
    returns = node.target._schema.returns
    is_tensor = len(returns) == 1 and isinstance(returns[0].type, torch.TensorType)
    inputs = node.all_input_nodes
    return is_tensor and bool(inputs) and all(each in keys for each in inputs) and not is_written(node)


def writes(node: fx.Node) -> bool:
    '''Whether a node changes one of its arguments, or is no operation on tensors.'''
    return not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable


def is_written(node: Any) -> bool:
    '''Whether anything writes to a node's memory.'''
    users = [user for user in node.users if isinstance(user.target, torch._ops.OpOverload)]
    if any(user.target._schema.is_mutable for user in users):
        return True
    views = (user for user in users if any(each.alias_info is not None for each in user.target._schema.returns))
    return any(is_written(view) for view in views)


def require_repeatable(graph: fx.Graph) -> None:
    '''Raise if operations draw random numbers, or make shapes of values.'''
    for node in graph.nodes:
        tags = getattr(node.target, 'tags', ())
        if torch.Tag.nondeterministic_seeded in tags and not has_no_dropout(node):
            raise NotRecorded(f'a call that draws random numbers ({node.target}) cannot be recorded: {PLAIN}')
        masks = [each for each in node.all_input_nodes if node.target is torch.ops.aten.index.Tensor
                 and each.meta['val'].dtype in (torch.bool, torch.uint8)]
        if torch.Tag.dynamic_output_shape in tags and (masks or node.target is not torch.ops.aten.index.Tensor):
            raise NotRecorded(f'a shape that depends on values ({node.target}) cannot be recorded: {PLAIN}')


def has_no_dropout(node: Any) -> bool:
    '''Whether a node has a probability of dropout, which is zero.'''
    names = [each.name for each in node.target._schema.arguments]
    given = {**dict(zip(names, node.args)), **node.kwargs}
    return 'dropout_p' in names and given.get('dropout_p', 0.) == 0.


def ask_for_seed(graph: Any) -> None:
    '''Let a graph take a function of the output in place of the seed.'''
    _, placeholder = (node for node in graph.nodes if node.op == 'placeholder')
    output = next(iter(reversed(graph.nodes))).args[0][0]
    first = next(node for node in graph.nodes if placeholder in node.all_input_nodes)
    like = placeholder.meta['val']
    with graph.inserting_before(first):
        seed = graph.call_function(seed_for, (placeholder, output, tuple(like.shape), like.stride(), like.dtype))
    placeholder.replace_all_uses_with(seed, delete_user_cb=lambda user: user is not seed)


def seed_for(seed_of: Callable, output: Tensor, shape: tuple, stride: tuple, dtype: torch.dtype) -> Tensor:
    '''What enters at the output, laid out as it was recorded.'''
    seed = seed_of(output).detach()
    if seed.shape != shape:
        raise ValueError(f'the relevance at the output has shape {tuple(seed.shape)}, but the output has {shape}')
    if (seed.stride(), seed.dtype) == (stride, dtype):
        return seed
    return torch.empty_strided(shape, stride, dtype=dtype, device=seed.device).copy_(seed)


def compiled(module: fx.GraphModule, backend: str) -> Module:
    '''A graph in two parts, before and after the function of the output, which a backend runs.'''
    part = 0

    def part_of(node: fx.Node) -> int:
        nonlocal part
        part += node.target is seed_for
        here = part
        part += node.target is seed_for
        return here

    split: Any = split_module(module, module, part_of)
    for name, each in split.named_children():
        if not any(node.target is seed_for for node in each.graph.nodes):
            setattr(split, name, torch.compile(each, backend=backend, fullgraph=True, dynamic=False))
    return split
