'''What a layer's output is, and its gradient.

A map at a layer is about a feature map. Where the only use of a module's output is an activation, it is read after
that: a unit that does not fire is no feature. Where there are other uses, as a sum or a second branch, or none, it is
read at the module's output itself. So a network that is written with functions has the same maps as one of modules.
'''
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from ..composites import relevance_by
from ..core.places import places_of
from .uses import Output, Recording


def require_evaluation(model: Module) -> None:
    '''Raise a RuntimeError if a module of a model is in training mode.'''
    for name, module in model.named_modules():
        if module.training:
            where = f'module {name!r}' if name else 'the model'
            raise RuntimeError(f'{where} ({type(module).__name__}) is in training mode: call .eval() on the model')


def require_layer(model: Module, layer: str) -> None:
    '''Raise a ValueError if a model has no module of a name.'''
    if not layer or layer not in dict(model.named_modules()):
        raise ValueError(f'the model has no module named {layer!r}')


def gradient_at(
    model: Module, layer: str, input: Tensor, attr_output_fn: Callable[[Tensor], Tensor],
    grid: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    '''The gradient at a layer's output as what follows sees it, or what the hooks of a composite make of it.

    This is after an activation, if the output goes straight into one and nowhere else; else at the output itself.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    layer : str
        The name of the module.
    input : :py:class:`torch.Tensor`
        The input of shape (batch, channels, height, width).
    attr_output_fn : callable
        The relevance of the output as a function of the output.
    grid : tuple of int, optional
        The height and width of the grid of tokens at the layer, see :py:func:`~zennit_dc.core.places.places_of`.

    Returns
    -------
    tuple of :py:class:`torch.Tensor`
        The model's output, and the gradient at the layer's output and this output, arranged as (batch, channels,
        height, width).
    '''
    with recorded(model, layer) as activations, torch.enable_grad():
        output = model(input.detach().requires_grad_())
    activation, places = require_one_map(activations, layer, input.shape, grid)
    gradient, = torch.autograd.grad(output, activation, relevance_by(attr_output_fn)(output))
    places.require_reached(f'layer {layer!r}', gradient)
    return output.detach(), places.arranged(gradient), places.arranged(activation.detach())


@contextmanager
def recorded(model: Module, layer: str) -> Iterator[list]:
    '''A context in which the outputs of a module are recorded, in a list: as what follows sees them, which is known at
    the context's end.'''
    activations, uses = [], Recording()

    def record(module: Module, args: tuple, output: Any) -> Tensor | None:
        if not isinstance(output, torch.Tensor):
            activations.append(output)
            return None
        with uses.pause():
            activations.append(uses.follow(output.clone()))  # which may be overwritten in place
            activations[-1].read = activations[-1].tensor = output
        return activations[-1].aliases[0]

    with uses.watching(model):
        handle = model.get_submodule(layer).register_forward_hook(record)
        try:
            yield activations
        finally:
            handle.remove()
            activations[:] = [each.read if isinstance(each, Output) else each for each in activations]


def require_one_map(
    activations: list, layer: str, input_shape: Sequence[int], grid: tuple[int, ...] | None = None
) -> tuple[Tensor, Any]:
    '''Return the only one of a layer's recorded outputs, and its places in the input, or raise a ValueError if there
    are none. Where the shape leaves it open, channels come first.'''
    if len(activations) != 1 or not isinstance(activations[0], torch.Tensor):
        raise ValueError(f'layer {layer!r} does not give one output with channels, height and width')
    return activations[0], places_of(f'layer {layer!r}', activations[0].shape, input_shape, grid=grid, default=1)
