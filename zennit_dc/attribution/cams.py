'''Attributors for the rectified maps of a layer's gradient and activation.'''
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Module
from zennit.attribution import Attributor

from ..core.places import spread
from .layers import gradient_at, require_layer


class ActivationMap(Attributor):
    '''Base class of the rectified maps made of a layer's gradient and its activation.

    The attribution is the map's bilinear upsampling to the input's size, divided evenly among the input's channels, as
    for :py:class:`~zennit_dc.SplitCAM`.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    layer : str
        The name of the module at whose output the map is computed, with spatial axes or a grid of tokens: after an
        activation, if the output goes straight into one and nowhere else.
    attr_output : :py:class:`torch.Tensor` or callable, optional
        The default relevance of the output, as for Zennit's attributors.
    grid : tuple of int, optional
        The height and width of the grid of tokens, where they cannot be found from the input's.

    Raises
    ------
    ValueError
        If the model has no such module, or in a call, if its output is not one tensor with places in the input.
    '''
    def __init__(
        self, model: Module, layer: str, attr_output: Tensor | Callable | None = None,
        grid: tuple[int, ...] | None = None
    ):
        super().__init__(model, attr_output=attr_output)
        require_layer(model, layer)
        self.layer, self.grid = layer, grid

    @abstractmethod
    def combine(self, gradient: Tensor, activation: Tensor) -> Tensor:
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

    def forward(self, input: Tensor, attr_output_fn: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        '''The output and the attribution, see :py:meth:`zennit.attribution.Attributor.forward`.'''
        output, gradient, activation = gradient_at(self.model, self.layer, input, attr_output_fn, self.grid)
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
    def combine(self, gradient: Tensor, activation: Tensor) -> Tensor:
        '''The product, summed over channels, see :py:meth:`ActivationMap.combine`.'''
        return (gradient * activation).sum(1, keepdim=True)


class GradCAMPlusPlus(ActivationMap):
    '''Grad-CAM++ in the form of the article's equations [1]_: the activations, weighted by channel and summed, and
    rectified.

    With the gradient g of the class's score S at the channel k of the layer's output A, the weight of the channel is
    the sum over positions of a max(g, 0) with a = g² / (2 g² + g³ ΣA_k), and zero where g is zero. These are the
    article's closed-form coefficients for Y = exp(S) and a piecewise linear S. The factor exp(S), which scales the
    whole map of an image by the same positive number and overflows for large scores, is left out of the gradient: the
    map of each image equals the map for exp(S) up to this factor. The authors' code also divides a by its sum over each
    channel; the article's equations do not, and neither does this class.

    The equations assume that the layer's activations are not negative, as they are after a ReLU: elsewhere the
    denominators can come close to zero.

    See :py:class:`ActivationMap` for the parameters, the attribution and the errors.

    References
    ----------
    .. [1] A. Chattopadhay, A. Sarkar, P. Howlader, and V. N. Balasubramanian: "Grad-CAM++: Generalized Gradient-based
           Visual Explanations for Deep Convolutional Networks," IEEE Winter Conference on Applications of Computer
           Vision, 2018.
    '''
    def combine(self, gradient: Tensor, activation: Tensor) -> Tensor:
        '''The weighted sum over channels, see :py:meth:`ActivationMap.combine`.'''
        denominator = 2. + gradient * activation.sum((2, 3), keepdim=True)  # both divided by g², which may underflow
        coefficient = 1. / torch.where(denominator == 0., 1., denominator)
        weight = (coefficient * gradient.relu()).sum((2, 3), keepdim=True)
        return (weight * activation).sum(1, keepdim=True)
