'''Mosaics of two by two images for the Grid Pointing Game.'''
import hashlib
import json

import numpy as np
import torch

from ..attribution import require_evaluation, require_scores
from .checks import require_positive, require_shape
from .data import MaskedImages, Sample


QUADRANTS = ('top-left', 'top-right', 'bottom-left', 'bottom-right')


class Mosaics(MaskedImages):
    '''Mosaics of two by two confidently classified images of different classes, each of which is explained, so that
    there are four samples of each mosaic. Their masks are the quadrants. Each image keeps its size; so the network has
    to be one that takes images of any size.

    Parameters
    ----------
    images : :py:class:`~zennit_dc.evaluation.data.MaskedImages`
        The images. Their classifier's model has to be on the CPU or any device, in evaluation mode.
    indices : sequence of int
        The indices of the images to draw from.
    count : int
        The number of mosaics.
    seed : int, optional
        The seed, see :py:func:`mosaic_members`.
    least : float, optional
        The smallest probability of its label with which an image is confidently classified.

    Raises
    ------
    ValueError
        If the model does not take images of this size, or fewer than four classes have a confidently classified image.
    '''
    def __init__(self, images, indices, count, seed=0, least=.5):
        model = images.classifier.model
        parameter = next(model.parameters())
        confidences = []
        for index in indices:
            sample = images.sample(index)
            with torch.no_grad():
                output = require_scores(model(sample.input[None].to(parameter)))
            confidences.append(output.double().softmax(1)[0, sample.label].item())
        labels = [images.labels[index] for index in indices]
        members = mosaic_members(torch.tensor(labels), torch.tensor(confidences), count, seed, least).tolist()
        self.images = images
        self.members = [[indices[each] for each in four] for four in members]
        names = [f'{number:05d}-{quadrant}' for number in range(count) for quadrant in QUADRANTS]
        super().__init__(images.classifier, names, [images.labels[index] for four in self.members for index in four])
        require_any_size(model, self.sample(0).input.to(parameter))

    def fingerprint(self):
        '''A hash of the images' own one and of the choice.'''
        return hashlib.sha256(json.dumps([self.images.fingerprint(), self.members]).encode()).hexdigest()

    def sample(self, index):
        '''The mosaic with the quadrant of one of its images as the mask.'''
        number, quadrant = divmod(index, 4)
        inputs = torch.stack([self.images.sample(each).input for each in self.members[number]])
        mask = torch.zeros(4, 1, *inputs.shape[2:], dtype=torch.bool)
        mask[quadrant] = True
        return Sample(self.names[index], mosaic(inputs), mosaic(mask)[0], self.labels[index])


def mosaic_members(targets, confidences, count, seed=0, least=.5):
    '''Draw four confidently classified images of different classes for each mosaic: first the classes, each with the
    same probability, and then one image of each.

    Parameters
    ----------
    targets : :py:class:`torch.Tensor`
        The classes of the images, of shape (batch,).
    confidences : :py:class:`torch.Tensor`
        The probabilities of these classes, of shape (batch,).
    count : int
        The number of mosaics.
    seed : int, optional
        The seed.
    least : float, optional
        The smallest probability that is confident. With 0.5, the class is always the predicted one.

    Returns
    -------
    :py:class:`torch.Tensor`
        The indices of the images in the four quadrants, of shape (count, 4).

    Raises
    ------
    ValueError
        If a shape does not fit, or fewer than four classes have a confidently classified image.
    '''
    targets, confidences = (torch.as_tensor(each).cpu() for each in (targets, confidences))
    require_shape('confidences', confidences, targets.shape)
    require_positive(count=count)
    images = {}
    for index in torch.nonzero(confidences >= least).flatten().tolist():
        images.setdefault(int(targets[index]), []).append(index)
    if len(images) < 4:
        raise ValueError(
            f'a mosaic needs images of four classes, but {len(images)} have one with a probability of at least {least}'
        )
    generator = np.random.default_rng(seed)
    return torch.tensor([
        [int(generator.choice(images[each])) for each in generator.choice(sorted(images), 4, replace=False)]
        for _ in range(count)
    ])


def mosaic(images):
    '''Join four images of shape (4, channels, height, width) into one of shape (channels, 2 * height, 2 * width).'''
    return torch.cat([torch.cat([*row], 2) for row in images.unflatten(0, (2, 2))], 1)


def require_any_size(model, input):
    '''Require that a model takes images of another size than those that it was trained with, such as mosaics: its
    layers are convolutions and the like, and a pooling to a fixed size is before its classifier.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model in evaluation mode.
    input : :py:class:`torch.Tensor`
        An image of this size, of shape (channels, height, width).

    Raises
    ------
    ValueError
        If it does not take such an image.
    RuntimeError
        If the model is in training mode.
    '''
    require_evaluation(model)
    try:
        with torch.no_grad():
            output = model(input[None])
    except torch.cuda.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f'the model does not take images of {input.shape[1]} x {input.shape[2]} pixels, as mosaics are: it has'
            f' layers of a fixed size ({error})'
        ) from error
    require_scores(output)
