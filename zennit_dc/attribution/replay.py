'''Maps that are recorded once and replayed: the same tensor operations without the Python that has asked for them.'''
import math
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.split_module import split_module
from torch.nn import Module
from zennit.attribution import Gradient
from zennit.core import Composite

from ..core.nested import modules_of
from ..core.recording import noting_doubts


ALIASES = torch.ops.aten.detach.default, torch.ops.aten.alias.default
HOOKS = [f'_{kind}_hooks' for kind in ('forward_pre', 'forward', 'backward_pre', 'backward')]
PLAIN = 'take zennit.attribution.Gradient in place of Recorded'


class NotRecorded(NotImplementedError):
    '''The error for a call that cannot be recorded.'''


class Recorded(Gradient):
    '''The gradient attributor of Zennit, which records all tensor operations of a call and replays them in later ones.

    The first call for a shape, memory layout, dtype and device of the input computes the map as always, with all errors
    and warnings. Then the call is recorded with another input, and replayed and compared with the given one. Later
    calls replay. What enters at the output is computed anew in each call, between the forward and the backward part.

    A recording holds for one state of model, composite and torch: parameters and buffers by identity and version, hooks
    and plain attributes of modules, training mode and autocast. In another state the call is recorded anew. A map that
    is not finite, that is zero, or that rounding has changed is computed again without the recording.

    Where a call is recorded, the model's forward runs twice, and with it its hooks; where it is replayed, not at all.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model, which returns one tensor.
    composite : :py:class:`zennit.core.Composite`, optional
        The composite, one of this package or of Zennit. Default is none, which makes the plain gradient.
    attr_output : :py:class:`torch.Tensor` or callable, optional
        The relevance at the output, of the output's shape, or a function of the output. Default is the output itself.
    backend : {'cudagraphs', 'inductor', 'aot_eager', 'eager'}, optional
        Who runs the operations: the name of a backend of :py:func:`torch.compile`. Default is ``'cudagraphs'`` for
        inputs on a GPU, and otherwise no backend: the operations run one after the other.
    create_graph : bool, optional
        Not supported, as a replayed map has no graph.
    strict : bool, optional
        Whether a call that cannot be recorded is an error. If not, it is computed as always, and not tried again.
    patience : int, optional
        The number of calls of a kind that are computed as always before one is recorded. Default is none.
    limit : int, optional
        The number of recordings that are kept. The one that has not been used for the longest time is dropped.
    budget : int, optional
        The number of bytes of what depends on parameters alone, such as :math:`|W|`, that is computed once for all
        recordings instead of in each call.

    Raises
    ------
    NotImplementedError
        If ``create_graph`` is asked for.
    NotRecorded
        When called, if the model or its rules read values in Python, draw random numbers, or make shapes of values; or
        if the recording does not make the map that was computed before.
    '''
    def __init__(
        self, model: Module, composite: Composite | None = None, attr_output: Tensor | Callable | None = None,
        backend: str | None = None, *, create_graph: bool = False, strict: bool = True, patience: int = 0,
        limit: int = 8, budget: int = 2 ** 26
    ) -> None:
        if create_graph:
            raise NotImplementedError(f'a replayed map has no graph (create_graph=True): {PLAIN}')
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f'limit must be a positive number of recordings, not {limit!r}')
        super().__init__(model=model, composite=composite, attr_output=attr_output)
        self.backend, self.strict, self.patience = backend, strict, patience
        self.limit, self.folded = limit, Folded(budget)
        self.recordings: OrderedDict[tuple, Replay | float] = OrderedDict()
        self.referents: dict[tuple, list] = {}
        self.is_exceeded = False
        # those of the model without and with the composite, while that is registered
        self.hooks: tuple[list, list] | None = None

    def __enter__(self) -> 'Recorded':
        '''Register the composite, whose own hooks are not the user's.'''
        before = hooks_of(self.model)
        super().__enter__()
        self.hooks = before, hooks_of(self.model)
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> bool:
        '''Remove the composite.'''
        self.hooks = None
        return super().__exit__(exc_type, exc_value, traceback)

    def __call__(self, input: Tensor, attr_output: Tensor | Callable | None = None) -> tuple[Tensor, Tensor]:
        '''Compute the output and the map of an input, see :py:class:`zennit.attribution.Attributor`.

        Parameters
        ----------
        input : :py:class:`torch.Tensor`
            The model's input.
        attr_output : :py:class:`torch.Tensor` or callable, optional
            The relevance at the output, or a function of the output. Default is the attributor's.

        Returns
        -------
        output : :py:class:`torch.Tensor`
            The model's output, without a graph.
        attribution : :py:class:`torch.Tensor`
            The map, of the input's shape, without a graph.
        '''
        relevance = self.attr_output_fn if attr_output is None else attr_output
        seed_of = relevance if callable(relevance) else lambda output: relevance
        state = self.state(input)
        entry = self.recordings.get(state, 0)
        if isinstance(entry, Replay):
            self.recordings.move_to_end(state)
            output, map, is_doubtful, saliency = entry(input.detach(), seed_of)
            if not is_doubtful:
                self.keep(saliency)
                return output, map
        is_registered = self.composite is None or self.composite.handles
        with nullcontext() if is_registered else self:
            if entry == self.patience:
                return self.recorded(input, seed_of)
            found = self.plain(input, seed_of)
        if isinstance(entry, int):
            self.add(state, entry + 1)
        return found

    def plain(self, input: Tensor, seed_of: Callable) -> tuple[Tensor, Tensor]:
        '''The output and the map of an input without a recording, and without a graph.'''
        with torch.enable_grad():
            output, map = Gradient.forward(self, input.detach(), seed_of)
        return output.detach(), map.detach()

    forward = plain

    def recorded(self, input: Tensor, seed_of: Callable) -> tuple[Tensor, Tensor]:
        '''The output and the map of an input, of which a recording is made.'''
        seeds: list[Tensor] = []
        recording: Replay | float

        def noted(output: Tensor) -> Tensor:
            seeds.append(seed_of(output))
            return seeds[0]

        expected = *self.plain(input, noted), self.saliency()
        try:
            with torch.random.fork_rng([input.device] if input.is_cuda else []):  # so that later calls draw the same
                recording = self.compared(input, seeds[0], expected)
        except NotRecorded:
            if self.strict:
                raise
            recording = math.inf
        self.add(self.state(input), recording)  # as a model may note something at its first call
        self.keep(expected[2])
        return expected[:2]

    def compared(self, input: Tensor, seed: Tensor, expected: tuple) -> 'Replay':
        '''A recording of a call, which makes what is expected of it.'''
        recording = Replay(self.traced(input.detach(), seed.detach()), self.folded, self.backend_for(input))
        output, map, is_doubtful, saliency = recording(input.detach(), lambda output: seed.detach())
        same = (*self.unchecked(input.detach(), seed)[:2], self.saliency()) if is_doubtful else expected
        is_exact = input.is_cpu and self.backend is None
        for name, one, other in zip(('output', 'map', 'map at the layer'), (output, map, saliency), same):
            require_same(name, one, other, is_exact)
        return recording

    def backend_for(self, input: Tensor) -> str | None:
        '''Who runs the operations for an input.'''
        return 'cudagraphs' if self.backend is None and input.is_cuda else self.backend

    def unchecked(self, input: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        '''The output and the map of an input without checks of their values, and what these would be about.'''
        outputs: list[Tensor] = []

        def noted(output: Tensor) -> Tensor:
            outputs.append(output.detach())
            return seed

        with torch.enable_grad(), noting_doubts() as doubts:
            input = input.requires_grad_() if input.is_floating_point() else input
            _, map = self.grad(input, noted)
        return outputs[0], map.detach(), doubts

    def traced(self, input: Tensor, seed: Tensor) -> fx.GraphModule:
        '''The graph of a call with another input of the same kind, so that values that are read of it are noticed.'''
        def call(input: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
            output, map, doubts = self.unchecked(input, seed)
            doubt = torch.stack(doubts).any() if doubts else map.new_zeros((), dtype=torch.bool)
            return output, map, doubt, self.saliency()

        other = input.flip(-1) if input.ndim else input.clone()
        try:
            return make_fx(call)(other.mul_(.75) if other.is_floating_point() else other, seed)
        except Exception as error:  # whatever the model raises, as the plain call has worked
            raise NotRecorded(f'this call cannot be recorded, as it depends on values: {error}; {PLAIN}') from error

    def add(self, state: tuple, recording: 'Replay | float') -> None:
        '''Keep a recording, or how many calls there were, and drop what has not been used for the longest time.'''
        self.recordings[state] = recording
        self.recordings.move_to_end(state)
        self.referents[state] = self.current_hooks()  # whose ids are part of the state
        if len(self.recordings) <= self.limit:
            return
        dropped, last = self.recordings.popitem(last=False)
        self.referents.pop(dropped)
        if isinstance(last, Replay) and not self.is_exceeded:
            self.is_exceeded = True
            warnings.warn(
                f'there are more than {self.limit} kinds of calls, of which those that were dropped are recorded anew:'
                ' give inputs of fewer shapes, or a larger limit', stacklevel=4
            )

    def saliency(self) -> Tensor | None:
        '''The composite's map at its layer, or None.'''
        return getattr(getattr(self.composite, 'readout', None), 'saliency', None)

    def keep(self, saliency: Tensor | None) -> None:
        '''Let a map be the composite's map at its layer.'''
        if saliency is not None:
            self.composite.readout.saliency = saliency

    def state(self, input: Tensor) -> tuple:
        '''All that a recording depends on.'''
        hooks, kind = self.current_hooks(), input.device.type
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        composite = None if self.composite is None else (plain_attributes(self.composite), is_active(self.composite))
        return (
            input.shape, input.stride(), input.dtype, input.device, autocast, tuple(map(id, hooks)),
            state_of(self.model), composite
        )

    def current_hooks(self) -> list:
        '''The hooks of the model, without those of the composite.'''
        hooks = hooks_of(self.model)
        return self.hooks[0] if self.hooks is not None and hooks == self.hooks[1] else hooks


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
        folded.fold(module)
        for node in reversed(graph.nodes):
            if node.op not in ('placeholder', 'output') and not node.users and not writes(node):
                graph.erase_node(node)
        module.recompile()
        for name in {node.target for node in graph.nodes if node.op == 'get_attr'}:
            module.__dict__[name] = getattr(module, name)  # which is found faster than a parameter
        self.run, self.is_compiled = compiled(module, backend) if backend else module, backend is not None

    def __call__(self, input: Tensor, seed_of: Callable) -> Any:
        with torch.no_grad(), torch.autocast(input.device.type, enabled=False):  # whose casts are recorded
            found = self.run(input, seed_of)
        # as memory of a recording on a GPU is written to again
        return [each.clone() if torch.is_tensor(each) else each for each in found] if self.is_compiled else found


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
                keys[node] = id(tensor), tensor._version
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


def require_same(name: str, found: Tensor, expected: Tensor | None, is_exact: bool) -> None:
    '''Raise if a replay has not the values of the call, to the last bit or but for rounding.'''
    if expected is None or torch.equal(found, expected):
        return
    part = ((found - expected).abs().max() / expected.abs().max()).item()
    if is_exact or not part <= expected.numel() ** .5 * torch.finfo(expected.dtype).eps:
        raise NotRecorded(
            f'the {name} of the recording is not that of the call, by {part:.1g} of its largest value: the model or its'
            f' rules read values in Python, or by another library; {PLAIN}'
        )


def hooks_of(model: Module) -> list:
    '''The hooks of all modules of a model.'''
    found = (getattr(module, kind) for module in modules_of(model) for kind in HOOKS)
    return [hook for hooks in found if hooks for hook in hooks.values()]


def state_of(model: Module) -> tuple:
    '''What tells whether a model is another one: its tensors by identity and version, and its plain attributes.'''
    modules = list(modules_of(model))
    tensors = (each for module in modules for each in (*module._parameters.values(), *module._buffers.values()))
    state = [(id(each), each._version, each.data_ptr()) for each in tensors if each is not None]
    return tuple(state), tuple(plain_attributes(module) for module in modules)


def is_active(composite: Composite) -> bool:
    '''Whether the rules of a composite hold, which they do not within its context ``inactive()``.'''
    return all(hook.active for hook in composite.hook_refs)


def plain_attributes(obj: Any) -> tuple:
    '''The values of an object's attributes that are numbers, words or tuples.'''
    return tuple(value if type(value) is not tuple else repr(value) for value in obj.__dict__.values()
                 if type(value) in (bool, int, float, str, tuple))
