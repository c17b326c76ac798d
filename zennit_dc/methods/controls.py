'''Controls, which explain nothing: what a method should be better than.'''
from abc import abstractmethod
from collections.abc import Callable

import torch
from zennit.attribution import Attributor

from .seeding import image_seed


class Control(Attributor):
    '''Base class of what does not look at the model, but has its output as all attributors.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    attr_output : :py:class:`torch.Tensor` or callable, optional
        Not used.
    '''
    @abstractmethod
    def attribute(self, input):
        '''The attribution of an input of shape (batch, channels, height, width), in its shape.'''

    def forward(self, input, attr_output_fn):
        '''The output, and the attribution, which does not depend on it, see
        :py:meth:`zennit.attribution.Attributor.forward`.'''
        input = input.detach()
        with torch.no_grad():
            return self.model(input.clone()), self.attribute(input)


class Random(Control):
    '''A map of standard normal noise, divided evenly among the channels.

    It is drawn for each image by a seed of its values, and so the same whenever it is asked for, whatever the batch.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    seed : int, optional
        The seed.
    attr_output : :py:class:`torch.Tensor` or callable, optional
        Not used.
    '''
    def __init__(self, model: torch.nn.Module, seed: int = 0, attr_output: torch.Tensor | Callable | None = None):
        super().__init__(model, attr_output=attr_output)
        self.seed = seed

    def attribute(self, input):
        '''The attribution, see :py:meth:`Control.attribute`.'''
        maps = torch.stack([
            torch.randn(
                1, *image.shape[1:], generator=torch.Generator().manual_seed(image_seed(image, self.seed)),
                dtype=torch.float64
            ) for image in input
        ])
        return (maps / input.shape[1]).to(input).expand(input.shape)


class OriginalImage(Control):
    '''The normalized input itself as the attribution: bright pixels are relevant, and dark ones irrelevant.

    See :py:class:`Control` for the parameters.
    '''
    def attribute(self, input):
        '''The attribution, see :py:meth:`Control.attribute`.'''
        return input.clone()


class ImageCenter(Control):
    '''A Gaussian around the image's center, whose standard deviations are a quarter of the height and of the width,
    divided evenly among the channels: where photographers put what they show.

    See :py:class:`Control` for the parameters.
    '''
    def attribute(self, input):
        '''The attribution, see :py:meth:`Control.attribute`.'''
        rows, columns = (
            torch.exp(-8. * (torch.linspace(.5, size - .5, size, dtype=torch.float64) / size - .5) ** 2)
            for size in input.shape[2:]
        )
        return (rows[:, None] * columns / input.shape[1]).to(input).expand(input.shape)


class BinaryMask(Control):
    '''The mask of the object, divided evenly among the channels.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    masks : :py:class:`torch.Tensor`
        The masks of the images to explain, of shape (batch, height, width): true, or one, on the object.
    attr_output : :py:class:`torch.Tensor` or callable, optional
        Not used.

    Raises
    ------
    ValueError
        In a call, if the masks do not have the input's batch, height and width.
    '''
    def __init__(
        self, model: torch.nn.Module, masks: torch.Tensor, attr_output: torch.Tensor | Callable | None = None
    ):
        super().__init__(model, attr_output=attr_output)
        self.masks = masks

    def attribute(self, input):
        '''The attribution, see :py:meth:`Control.attribute`.'''
        shape = (len(input), *input.shape[2:])
        if self.masks.shape != shape:
            raise ValueError(f'the masks must have the shape {shape} of the images, not {tuple(self.masks.shape)}')
        return (self.masks.to(input)[:, None] / input.shape[1]).expand(input.shape)
