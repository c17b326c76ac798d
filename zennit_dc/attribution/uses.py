'''What follows a module: the functions that use its output.'''
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ..core.nested import flatten
from ..core.places import ACTIVATIONS, name_of


WRITING = ('setitem', 'set')  # which return no tensor


class Output:
    '''A module's output, and how what follows it sees it.

    Parameters
    ----------
    tensor : :py:class:`torch.Tensor`
        The output, as the module returns it.

    Attributes
    ----------
    activation : str or None
        The name of the activation that is its only use so far.
    read : :py:class:`torch.Tensor`
        Where a map is read: the activation's output, or else the module's.
    '''
    def __init__(self, tensor: Tensor):
        self.tensor = self.read = tensor
        self.aliases = [tensor]
        self.numbers: list[Tensor] = []
        self.activation: str | None = None
        self.is_open = True
        self.with_graph = torch.is_grad_enabled()

    def is_among(self, tensors: Iterable[Tensor]) -> bool:
        '''Whether this output, or what hooks made of it, is one of some tensors.'''
        return any(is_same(one, other) for one in tensors for other in self.aliases)

    def is_in(self, tensors: Iterable[Tensor]) -> bool:
        '''Whether this output, or a number made of it alone, is one of some tensors.'''
        return self.is_among(tensors) or any(one is number for one in tensors for number in self.numbers)

    def use(self, activation: str | None, result: Tensor, in_place: bool) -> None:
        '''Note a use, by an activation or, if that is None, by another function, and its result.'''
        if activation is None or self.activation is not None:
            self.activation, self.read, self.is_open = None, self.tensor, False
        else:
            self.activation, self.read, self.is_open = activation, result, not in_place


class Uses(TorchFunctionMode):
    '''A context that watches how the outputs of modules are used.

    A use is a call of a function of torch, or of a tensor's method, that gets the output and returns tensors of numbers
    that are no integers, or writes to it. Asking for a shape or dtype is none, nor is a comparison, a number without
    axes (as the maximum of all entries) that is only read, or what the hooks of modules do. An activation within an
    autograd function is not the output's next use: the autograd function is, which has the gradient.
    '''
    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Output] = []
        self.held: list[list[Tensor]] = []
        self.paused = 0

    def follow(self, tensor: Tensor) -> Output:
        '''Begin to watch an output, and return it as an :py:class:`Output`.'''
        self.outputs.append(Output(tensor))
        return self.outputs[-1]

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        self.outputs = [output for output in self.outputs if output.is_open]
        tensors = tensors_in((args, kwargs)) if self.outputs else ()
        used = [output for output in self.outputs if output.is_in(tensors)]
        if not used:
            return func(*args, **kwargs)
        name = name_of(func)
        first: Any = args[0] if args else kwargs.get('input')
        times = sum(each is first for each in tensors)
        if name == 'view_as' and times == 2:  # which autograd functions call on what they return as it is
            return func(*args, **kwargs)
        is_activation = name in ACTIVATIONS and times == 1
        activated = [output for output in used if is_activation and output.is_among([first])
                     and output.with_graph == torch.is_grad_enabled()]
        result, read = (self.activate if activated else self.call)(func, args, kwargs)
        alone = all(any(output.is_in([each]) for output in used) for each in tensors)
        if alone and isinstance(result, torch.Tensor) and result.ndim == 0 and result is not first:
            for output in used:
                output.numbers.append(result)
        elif name in WRITING or any(not is_discrete(each) for each in tensors_in(result)):
            for output in used:
                output.use(known_name(name, args, kwargs) if output in activated else None, read, result is first)
        return result

    def call(self, func: Callable, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        '''The result of a function, and where it is to be read.'''
        result = func(*args, **kwargs)
        return result, result

    activate = call

    @contextmanager
    def watching(self, model: Module) -> Iterator['Uses']:
        '''A context in which a model is run.'''
        with ExitStack() as stack:
            for module in model.modules():
                if module._forward_pre_hooks or module._forward_hooks:
                    for handle in self.around_hooks(module):
                        stack.callback(handle.remove)
            stack.callback(model.register_forward_hook(lambda module, args, output: self.end(output)).remove)
            stack.enter_context(self)
            yield self

    def end(self, output: Any) -> None:
        '''Note what a model returns.'''
        returned = tensors_in(output)
        for each in self.outputs:
            if each.is_open and any(one is number for one in returned for number in each.numbers):
                each.use(None, each.tensor, False)

    def around_hooks(self, module: Module) -> tuple[RemovableHandle, ...]:
        '''Hooks before and after those that a module has, such that what these do to a tensor is no use of it.'''
        return (
            module.register_forward_pre_hook(lambda module, *inputs: self.enter(inputs), prepend=True,
                                             with_kwargs=True),
            module.register_forward_pre_hook(lambda module, *inputs: self.leave(inputs), with_kwargs=True),
            module.register_forward_hook(lambda module, args, output: self.enter(output), prepend=True),
            module.register_forward_hook(lambda module, args, output: self.leave(output)),
        )

    def enter(self, before: Any) -> None:
        '''Begin to pass over what is done, with the tensors before it.'''
        self.held.append(tensors_in(before))
        self.paused += 1

    def leave(self, after: Any) -> None:
        '''Go on, with the tensors after what was done.'''
        self.paused -= 1
        before, after = self.held.pop(), tensors_in(after)
        for one, other in zip(before, after) if len(before) == len(after) else ():
            for output in self.outputs:
                if one is not other and output.is_among([one]):
                    output.aliases.append(other)

    @contextmanager
    def pause(self) -> Iterator[None]:
        '''A context in which nothing is a use.'''
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1


class Recording(Uses):
    '''The same for outputs of which gradients are taken. Where such an output is read, nothing may be written to it
    later: an activation in place, or one that returns its input, gets or returns a copy.'''
    def activate(self, func: Callable, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        '''The result of an activation, and where it is to be read.'''
        first = args[0] if args else kwargs['input']
        copy = first.clone()
        read = func(copy, *args[1:], **kwargs) if args else func(**{**kwargs, 'input': copy})
        if read is not copy:
            return read.clone(), read
        first.copy_(copy)
        return first, read


def tensors_in(obj: Any) -> list[Tensor]:
    '''The tensors in nested containers.'''
    return [each for each in flatten(obj)[0] if isinstance(each, torch.Tensor)]


def is_discrete(tensor: Tensor) -> bool:
    '''Whether a tensor has no gradient by its kind, as that of a comparison.'''
    return not tensor.is_floating_point() and not tensor.is_complex()


def is_same(one: Tensor, other: Tensor) -> bool:
    '''Whether two tensors are one, or views of all of the same memory. The backward hooks of a module make such a view
    of what it returns.'''
    is_alias = torch._C._is_alias_of  # type: ignore[attr-defined]
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and is_alias(one, other))


def known_name(name: str, args: tuple, kwargs: dict) -> str:
    '''The name by which people know an activation: torch calls hardtanh for its module ReLU6.'''
    limits = {**dict(zip(('input', 'min_val', 'max_val'), args)), **kwargs}
    return 'relu6' if name == 'hardtanh' and (limits.get('min_val'), limits.get('max_val')) == (0., 6.) else name
