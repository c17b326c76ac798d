'''Attributors for maps that are no gradients, and what enters at the output for a class.'''
from abc import abstractmethod
from contextlib import contextmanager

import torch
from zennit.attribution import Attributor

from .spatial import spread


class ActivationMap(Attributor):
    '''Base class of the rectified maps made of a layer's gradient and its activation.

    The attribution is the map's bilinear upsampling to the input's size, divided evenly among the input's channels, as
    that of :py:class:`~zennit_dc.SplitCAM` is.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    layer : str
        The name of the module at whose output of shape (batch, channels, height, width) the map is computed.
    attr_output : :py:class:`torch.Tensor` or callable, optional
        The default relevance of the output, as for Zennit's attributors.

    Raises
    ------
    ValueError
        If the model has no such module, or if its output is not one tensor with channels, height and width.
    '''
    def __init__(self, model, layer, attr_output=None):
        super().__init__(model, attr_output=attr_output)
        require_layer(model, layer)
        self.layer = layer

    @abstractmethod
    def combine(self, gradient, activation):
        '''The map, not yet rectified.

        Parameters
        ----------
        gradient, activation : :py:class:`torch.Tensor`
            The gradient of the class's score at the layer's output, and this output, of shape (batch, channels, height,
            width).

        Returns
        -------
        :py:class:`torch.Tensor`
            The map of shape (batch, 1, height, width).
        '''

    def forward(self, input, attr_output_fn):
        '''Compute the map.

        Parameters
        ----------
        input : :py:class:`torch.Tensor`
            The input of shape (batch, channels, height, width).
        attr_output_fn : callable
            The relevance of the output as a function of the output.

        Returns
        -------
        output : :py:class:`torch.Tensor`
            The model's output.
        attribution : :py:class:`torch.Tensor`
            The attribution in the input's shape.
        '''
        output, gradient, activation = gradient_at(self.model, self.layer, input, attr_output_fn)
        return output, spread(self.combine(gradient, activation).relu(), input)


class LayerCAM(ActivationMap):
    '''LayerCAM in the form of the paper's equation 5: the product of a layer's gradient and its activation, summed over
    channels and rectified. (The original [1]_ rectifies the gradient as well.)

    See :py:class:`ActivationMap` for the parameters, the attribution and the errors.

    References
    ----------
    .. [1] P.-T. Jiang, C.-B. Zhang, Q. Hou, M.-M. Cheng, and Y. Wei: "LayerCAM: Exploring Hierarchical Class Activation
           Maps for Localization," IEEE Transactions on Image Processing, vol. 30, 2021.
    '''
    def combine(self, gradient, activation):
        '''The product, summed over channels, see :py:meth:`ActivationMap.combine`.'''
        return (gradient * activation).sum(1, keepdim=True)


class GradCAMPlusPlus(ActivationMap):
    '''Grad-CAM++ in the form of the article's equations [1]_: the activations, weighted by channel and summed, and
    rectified.

    With the gradient g of the class's score S at the channel k of the layer's output A, the weight of the channel is
    the sum over positions of a max(g, 0) with a = g² / (2 g² + g³ ΣA_k), and zero where g is zero. These are the
    article's closed-form coefficients for Y = exp(S) and a piecewise linear S. The factor exp(S), which scales the
    whole map of an image by the same positive number and overflows for large scores, is left out of the gradient: for
    each image, the map is that of exp(S) up to this factor. The authors' code divides a by its sum over each channel as
    well; the article's equations do not, and neither does this class.

    As the equations suppose, the layer should be one with activations that are not negative, as behind a ReLU:
    elsewhere the denominators can come close to zero.

    See :py:class:`ActivationMap` for the parameters, the attribution and the errors.

    References
    ----------
    .. [1] A. Chattopadhay, A. Sarkar, P. Howlader, and V. N. Balasubramanian: "Grad-CAM++: Generalized Gradient-based
           Visual Explanations for Deep Convolutional Networks," IEEE Winter Conference on Applications of Computer
           Vision, 2018.
    '''
    def combine(self, gradient, activation):
        '''The weighted sum over channels, see :py:meth:`ActivationMap.combine`.'''
        denominator = 2. + gradient * activation.sum((2, 3), keepdim=True)  # both divided by g², which may underflow
        coefficient = 1. / torch.where(denominator == 0., 1., denominator)
        weight = (coefficient * gradient.relu()).sum((2, 3), keepdim=True)
        return (weight * activation).sum(1, keepdim=True)


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


def require_scores(output):
    '''Return a model's output if it has the shape (batch, classes), else raise a ValueError.'''
    if not isinstance(output, torch.Tensor):
        raise ValueError(f'the model\'s output must be a tensor of shape (batch, classes), not {type(output).__name__}')
    if output.ndim != 2:
        raise ValueError(f'the model\'s output must have the shape (batch, classes), not {tuple(output.shape)}')
    return output


def class_relevance(target=None):
    '''What enters at the output to explain a class: one for this class and zero for all others.

    Parameters
    ----------
    target : int, :py:class:`torch.Tensor` or None, optional
        The class's index, or one for each sample, of shape (batch,). Default is the class with the largest output.

    Returns
    -------
    callable
        A function of the output of shape (batch, classes), as Zennit's attributors take it for ``attr_output``. It
        raises an :py:exc:`ValueError` for a class that the output does not have.
    '''
    def relevance(output):
        require_scores(output)
        classes = output.detach().argmax(1) if target is None else torch.as_tensor(target, device=output.device)
        if classes.min() < 0 or classes.max() >= output.shape[1]:
            raise ValueError(
                f'there is no class {int(classes.min() if classes.min() < 0 else classes.max())}, but those from 0 to'
                f' {output.shape[1] - 1}'
            )
        return torch.zeros_like(output).scatter_(1, classes.expand(len(output))[:, None], 1.)
    return relevance
