'''Maps that are recorded once and replayed: the same tensor operations without the Python that has asked for them.'''
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from zennit.attribution import Gradient
from zennit.canonizers import Canonizer
from zennit.core import Composite

from ..core.maps import noting_doubts
from .graphs import PLAIN, Folded, NotRecorded, Replay, traced


CHANGING = 'handles', 'hook_refs', 'saliency'  # attributes of a composite and its readout that are not its own
PLAIN_TYPES = type(None), bool, int, float, str
HOOKS = [f'_{kind}_hooks' for kind in ('forward_pre', 'forward', 'backward_pre', 'backward')]


class Recorded(Gradient):
    '''The gradient attributor of Zennit, which records all tensor operations of a call and replays them in later ones.

    The first call for a shape, memory layout, dtype and device of the input computes the map as always, with all errors
    and warnings. Then the call is recorded with another input, and replayed and compared with the given one. Later
    calls replay. What enters at the output is computed anew in each call, between the forward and the backward part.

    A recording holds for one state of model, composite and torch: parameters and buffers by identity and version, hooks
    and plain attributes of modules, canonizers and rules of the composite with all that they hold, training mode and
    autocast. In another state the call is recorded anew. A map that
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

    Attributes
    ----------
    refusal : str or None
        Why the last of the calls that cannot be recorded cannot be, where that is no error.

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
        self.is_exceeded = False
        self.refusal: str | None = None
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
            is_due = entry == self.patience
            found, made = self.recorded(input, seed_of) if is_due else (self.plain(input, seed_of), None)
        if made is not None:
            self.add(self.state(input), made)  # that of the next call, as a model may note something at its first one
        elif isinstance(entry, int):
            self.add(state, entry + 1)
        return found

    def plain(self, input: Tensor, seed_of: Callable) -> tuple[Tensor, Tensor]:
        '''The output and the map of an input without a recording, and without a graph.'''
        with torch.enable_grad():
            output, map = Gradient.forward(self, input.detach(), seed_of)
        return output.detach(), map.detach()

    forward = plain

    def recorded(self, input: Tensor, seed_of: Callable) -> tuple[tuple[Tensor, Tensor], Replay | float]:
        '''The output and the map of an input, and the recording that is made of it, or infinity if none can be.'''
        seeds: list[Tensor] = []
        recording: Replay | float

        def noted(output: Tensor) -> Tensor:
            seeds.append(seed_of(output))
            return seeds[0]

        expected = *self.plain(input, noted), self.saliency()
        try:
            with torch.random.fork_rng([input.device] if input.is_cuda else []):  # so that later calls draw the same
                recording = self.compared(input, seeds[0], expected)
        except NotRecorded as error:
            if self.strict:
                raise
            recording, self.refusal = math.inf, str(error)
        self.keep(expected[2])
        return expected[:2], recording

    def compared(self, input: Tensor, seed: Tensor, expected: tuple) -> 'Replay':
        '''A recording of a call, which makes what is expected of it.'''
        module = traced(self.call, input.detach(), seed.detach())
        recording = Replay(module, self.folded, self.backend_for(input))
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

    def call(self, input: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        '''What is recorded: the output, the map, whether it is to be checked, and the composite's map at its layer.'''
        output, map, doubts = self.unchecked(input, seed)
        doubt = torch.stack(doubts).any() if doubts else map.new_zeros((), dtype=torch.bool)
        return output, map, doubt, self.saliency()

    def add(self, state: tuple, recording: 'Replay | float') -> None:
        '''Keep a recording, or how many calls there were, and drop what has not been used for the longest time.'''
        self.recordings[state] = recording
        self.recordings.move_to_end(state)
        if len(self.recordings) <= self.limit:
            return
        _, last = self.recordings.popitem(last=False)
        if isinstance(last, Replay) and not self.is_exceeded:
            self.is_exceeded = True
            warnings.warn(
                f'there are more than {self.limit} kinds of calls, of which those that were dropped are recorded anew:'
                ' give inputs of fewer shapes, or a larger limit', stacklevel=3
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
        composite = None if self.composite is None else (*held_by(self.composite), is_active(self.composite))
        return (
            input.shape, input.stride(), input.dtype, input.device, autocast, tuple(map(Identity, hooks)),
            state_of(self.model), composite
        )

    def current_hooks(self) -> list:
        '''The hooks of the model, without those of the composite.'''
        hooks = hooks_of(self.model)
        return self.hooks[0] if self.hooks is not None and hooks == self.hooks[1] else hooks


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
    found = (getattr(module, kind) for module in model.modules() for kind in HOOKS)
    return [hook for hooks in found if hooks for hook in hooks.values()]


def state_of(model: Module) -> tuple:
    '''What tells whether a model is another one: its tensors by identity and version, and its plain attributes.'''
    modules = list(model.modules())
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


class Identity:
    '''An object in a key, by its identity. It lives as long as the key, so that no other one has its place.'''
    __slots__ = ('held',)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __hash__(self) -> int:
        return id(self.held)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Identity) and self.held is other.held


def held_by(composite: Composite) -> list:
    '''What tells whether a composite is another one: all that it holds, as canonizers, rules and what these hold. Plain
    values count by value, tensors by identity and version, and all others by identity.'''
    key: list = []
    left: list = [composite]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if type(each) in PLAIN_TYPES:
            key += type(each), each
        elif isinstance(each, Tensor):
            key += Identity(each), each._version, each.data_ptr()
        elif type(each) in (tuple, list, dict):
            key += type(each), len(each)
        else:
            key.append(Identity(each))
        if id(each) not in seen:
            seen.add(id(each))
            left += parts_of(each)
    return key


def parts_of(obj: Any) -> list:
    '''What an object of a composite holds, but for what changes as it is used: entries, attributes, and what functions
    have of where they were made.'''
    if type(obj) in (tuple, list):
        return [*obj]
    if type(obj) is dict:
        return [*obj, *obj.values()]
    if isinstance(obj, MethodType):
        return [obj.__func__, obj.__self__]
    if isinstance(obj, FunctionType):
        return [obj.__defaults__, obj.__kwdefaults__, *map(content_of, obj.__closure__ or ())]
    if isinstance(obj, partial):
        return [obj.func, *obj.args, *obj.keywords.values()]
    is_ours = type(obj).__module__.partition('.')[0] in ('zennit', 'zennit_dc')
    if isinstance(obj, (Module, type)) or not (is_ours or callable(obj) or isinstance(obj, (Composite, Canonizer))):
        return []
    return [value for name, value in getattr(obj, '__dict__', {}).items() if name not in CHANGING]


def content_of(cell: CellType) -> Any:
    '''What a function has of where it was made under one name, or None where that has no value.'''
    try:
        return cell.cell_contents
    except ValueError:
        return None
