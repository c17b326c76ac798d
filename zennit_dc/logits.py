'''Any model as one that takes one tensor and returns one tensor, as attributors expect it.'''
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from .core.nested import entries_of, flatten
from .core.wording import require_choice
from .forms.table import overloads, plain


NAMES = ('logits', 'out')  # of what is explained in the output of a model that returns more
SOFTMAX = overloads('softmax', 'log_softmax') | {torch.special.softmax, torch.special.log_softmax}


class Logits(Module):
    '''A model that returns one tensor of another model's output, for the attributors of Zennit, Captum and others.

    It shares the other model's parameters and modules under their names, and changes nothing in that model.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model, which may return a tensor, tuple, list, dict or dataclass.
    output : str or int, optional
        The key, attribute or index of the tensor in the output. Default is ``'logits'`` or ``'out'``, or the only
        tensor that is no scalar.
    input : str, optional
        The name of the keyword that takes the tensor. Default is the first positional argument.
    drop : {None, 'softmax'}, optional
        Leave out the softmax or log_softmax at the very end of the model, so that its logits are explained rather than
        its probabilities. Logits are sums, which can be split.

    Raises
    ------
    ValueError
        When called, if the output has no such tensor, with a list of what it has; or if the model does not end with
        the softmax that is to be dropped.
    '''
    model: Module

    def __init__(
        self, model: Module, output: str | int | None = None, input: str | None = None, drop: str | None = None
    ):
        require_choice('drop', drop, (None, 'softmax'))
        if not isinstance(model, Module):
            raise TypeError(f'Logits needs a model, not a {type(model).__name__}')
        model = getattr(model, '_orig_mod', model)  # of a compiled one
        vars(self)['model'] = model  # not as a module, which would change the names of those in it
        super().__init__()
        vars(self).update({name: vars(model)[name] for name in ('_parameters', '_buffers', '_modules')})
        self.output, self.input, self.drop = output, input, drop
        self.dropped: int | None = None

    # the model's own, which may be set after this one is made
    training = property(lambda self: self.model.training, lambda self, value: None)

    def train(self, mode: bool = True) -> 'Logits':
        '''Set the model to training or evaluation mode.'''
        self.model.train(mode)
        return self

    def _apply(self, function: Callable, recurse: bool = True) -> 'Logits':
        self.model._apply(function, recurse)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        '''The state dict of the model.'''
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        '''Load a state dict into the model.'''
        return self.model.load_state_dict(*args, **kwargs)

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = '', remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        '''This module, the model under the same empty name, such that rules and forms for it hold, and its modules.'''
        memo = set() if memo is None else memo
        if self not in memo or not remove_duplicate:
            memo.add(self)
            yield prefix, self
        yield from self.model.named_modules(memo, prefix, remove_duplicate)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        '''The tensor of the model's output, for its input.'''
        if self.input is not None and args:
            args, kwargs = args[1:], {**kwargs, self.input: args[0]}
        if self.drop is None:
            return self.tensor_of(self.model(*args, **kwargs))
        if self.dropped is None:
            self.dropped = self.last_softmax(args, kwargs)
        with SoftmaxCalls(self.dropped) as calls:
            output = self.tensor_of(self.model(*args, **kwargs))
        if output is not calls.last:
            self.dropped = None
            raise ValueError('another softmax is the last one than for the first input: make another Logits')
        return output

    def last_softmax(self, args: tuple, kwargs: dict) -> int:
        '''The number of the softmax at the end of the model. To count it, the model is run without a graph, on copies
        that need no gradient, as Zennit's hooks expect a graph of all that needs one.'''
        leaves, structure = flatten((args, kwargs))
        args, kwargs = structure([
            leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in map(plain, leaves)
        ])
        with torch.no_grad(), SoftmaxCalls() as calls:
            output = self.tensor_of(self.model(*args, **kwargs))
        if output is not calls.last:
            raise ValueError('the model does not end with a softmax or log_softmax to be dropped: leave out drop')
        return calls.count

    def tensor_of(self, output: Any) -> Tensor:
        '''The chosen tensor of an output.'''
        if isinstance(output, torch.Tensor):
            if self.output is not None:
                raise ValueError(f'the model returns one tensor, and nothing named {self.output!r}: leave out output')
            return output
        entries = entries_of(output) or {}
        tensors = {key: value for key, value in entries.items() if isinstance(value, torch.Tensor)}
        candidates = [key for key, value in tensors.items() if value.ndim]
        names = (*NAMES, *(candidates if len(candidates) == 1 else ())) if self.output is None else (self.output,)
        found = [value for name in names if (value := entry(output, entries, name)) is not None]
        if not found or not isinstance(found[0], torch.Tensor):
            what = ', '.join(
                f'{key!r} {tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__}'
                for key, value in entries.items() if value is not None
            ) or 'nothing in it that is a tensor'
            lacking = '' if self.output is None else f', and no tensor {self.output!r}'
            scores = [key for key in candidates if tensors[key].ndim == 2]
            example = [*NAMES[:1], *candidates, *scores][-1]
            raise ValueError(
                f'the model returns a {type(output).__name__} with {what}{lacking}: choose one, as in Logits(model,'
                f' output={example!r}), or --output {example}'
            )
        return found[0]

    def extra_repr(self) -> str:
        '''The parameters that are given.'''
        given = {name: getattr(self, name) for name in ('output', 'input', 'drop')}
        return ', '.join(f'{name}={value!r}' for name, value in given.items() if value is not None)


def entry(output: Any, entries: dict, name: str | int) -> Any:
    '''The entry of an output by its key, index or attribute, or None if it has none.'''
    if name in entries:
        return entries[name]
    if isinstance(name, int):
        values = list(entries.values())
        return values[name] if -len(values) <= name < len(values) else None
    return getattr(output, name, None)


class SoftmaxCalls(TorchFunctionMode):
    '''A context in which calls of softmax and log_softmax are counted, and one of them is left out.

    Parameters
    ----------
    dropped : int, optional
        The number of the call that is left out, from one on.

    Attributes
    ----------
    count : int
        The number of calls so far.
    last : :py:class:`torch.Tensor` or None
        What the call that is left out has returned, or the last call if none is left out.
    '''
    def __init__(self, dropped: int | None = None):
        super().__init__()
        self.count, self.dropped, self.last = 0, dropped, None

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function not in SOFTMAX:
            return function(*args, **kwargs)
        self.count += 1
        scores = args[0] if args else kwargs.get('input')
        output = scores if self.count == self.dropped else function(*args, **kwargs)
        self.last = output if self.dropped in (None, self.count) else self.last
        return output
