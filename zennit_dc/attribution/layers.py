'''What a layer's output is, and its gradient.'''
from contextlib import contextmanager

import torch


def require_layer(model, layer):
    '''Raise a ValueError if a model has no module of a name.'''
    if not layer or layer not in dict(model.named_modules()):
        raise ValueError(f'the model has no module named {layer!r}')


def gradient_at(model, layer, input, attr_output_fn):
    '''The gradient at a layer's output, or what the hooks of a composite make of it.

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

    Returns
    -------
    tuple of :py:class:`torch.Tensor`
        The model's output, and the gradient at the layer's output and this output, of shape (batch, channels, height,
        width).
    '''
    with recorded(model, layer) as activations, torch.enable_grad():
        output = model(input.detach().requires_grad_())
    activation = require_one_map(activations, layer)
    gradient, = torch.autograd.grad(output, activation, attr_output_fn(output))
    return output.detach(), gradient, activation.detach()


@contextmanager
def recorded(model, layer):
    '''A context in which the outputs of a module are recorded, in a list.'''
    activations = []

    def record(module, args, output):
        activations.append(output)
        return output.clone() if isinstance(output, torch.Tensor) else output  # may be overwritten in place

    handle = model.get_submodule(layer).register_forward_hook(record)
    try:
        yield activations
    finally:
        handle.remove()


def require_one_map(activations, layer):
    '''Return the only one of a layer's recorded outputs, or raise a ValueError if it has no height and width.'''
    if len(activations) != 1 or not isinstance(activations[0], torch.Tensor) or activations[0].ndim != 4:
        raise ValueError(f'layer {layer!r} does not give one output with channels, height and width')
    return activations[0]
