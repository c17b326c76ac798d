'''Localisation: Attribution Localisation, the Pointing Game (section 5.2), and the Grid Pointing Game.'''
import io
import warnings
from contextlib import redirect_stdout
from typing import NamedTuple

import numpy as np
import quantus
import torch

from ..attribution import require_scores
from .checks import filled_masks, finite_maps, require_evaluation, require_images, require_positive, require_shape


def attribution_localisation(maps, masks, positive=False):
    '''The share of the map that is inside the mask. A larger share is better.

    It is Quantus' with ``abs=False``, where Quantus' default is ``abs=True``. The paper's text speaks of the ratio of
    attribution mass, which is a share for a map without negative values alone. For others, Quantus' ratio of the sums
    of signed values is larger than one, which Quantus replaces by NaN, if the values outside sum to less than zero; it
    may be negative; and its absolute value may be of any size as the whole sum is close to zero. Such are the paper's
    settings, and ``positive=True`` has the share of the positive values [1]_, in [0, 1]. The score of a map of zeros is
    zero, as it is with ``positive=True`` for a map without positive values.

    Quantus adds 1e-9 to the whole sum, which matters for small maps; each is divided by its largest absolute value
    beforehand. (Quantus' own normalization divides by that of the whole batch.)

    Parameters
    ----------
    maps : :py:class:`torch.Tensor`
        The maps of shape (batch, height, width).
    masks : :py:class:`torch.Tensor`
        The masks of the same shape, of type bool.
    positive : bool, optional
        Whether negative values are replaced by zero.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The shares of shape (batch,).

    Raises
    ------
    ValueError
        If the shapes differ, or a mask is empty or not of type bool.
    FloatingPointError
        If a map is not finite.

    References
    ----------
    .. [1] M. Kohlbrenner, A. Bauer, S. Nakajima, A. Binder, W. Samek, and S. Lapuschkin: "Towards Best Practice in
           Explaining Neural Network Decisions with LRP," International Joint Conference on Neural Networks, 2020.
    '''
    maps, masks = finite_maps(maps, masks.shape), filled_masks(masks)
    largest = np.abs(maps).max((1, 2), keepdims=True)
    maps = np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0.)[:, None]
    with redirect_stdout(io.StringIO()):  # the advice to take absolute values
        metric = quantus.AttributionLocalisation(
            max_size=np.inf, positive_attributions=positive, abs=False, normalise=False, disable_warnings=True
        )
    with np.errstate(divide='ignore'), warnings.catch_warnings():  # by the size of an empty part of the batch
        warnings.filterwarnings('ignore', 'Inside explanation', UserWarning)
        return metric.evaluate_batch(x_batch=maps, a_batch=maps, s_batch=masks[:, None])


def pointing_game(maps, masks):
    '''Whether the map's largest value is inside the mask: 1 or 0.

    It is Quantus'. If several pixels have the largest value, one of them inside is enough, be it negative or not. A
    constant map points nowhere: it scores 0, where Quantus raises for a batch of such maps, and else counts them as
    hits. For an empty mask, Quantus' score is a hit, too, as its NaN is written to an array of type bool.

    Parameters
    ----------
    maps : :py:class:`torch.Tensor`
        The maps of shape (batch, height, width).
    masks : :py:class:`torch.Tensor`
        The masks of the same shape, of type bool.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The scores of shape (batch,).

    Raises
    ------
    ValueError
        If the shapes differ, or a mask is empty or not of type bool.
    FloatingPointError
        If a map is not finite.
    '''
    maps, masks = finite_maps(maps, masks.shape), filled_masks(masks)
    metric = quantus.PointingGame(abs=False, normalise=False, disable_warnings=True)
    hits = metric.evaluate_batch(a_batch=maps, s_batch=masks)
    return (hits & (maps.max((1, 2)) > maps.min((1, 2)))).astype(np.float64)


class Mosaics(NamedTuple):
    '''Mosaics of two by two images.

    Parameters
    ----------
    inputs : :py:class:`torch.Tensor`
        The mosaics of shape (count, channels, 2 * height, 2 * width).
    targets : :py:class:`torch.Tensor`
        The classes of the images in the quadrants, of shape (count, 4): top left, top right, bottom left and bottom
        right.
    members : :py:class:`torch.Tensor`
        The images' indices, of shape (count, 4).
    '''
    inputs: torch.Tensor
    targets: torch.Tensor
    members: torch.Tensor


def mosaics(inputs, targets, confidences, count, seed=0, least=.5):
    '''Draw mosaics of two by two images of different classes for :py:func:`grid_pointing_game`.

    Each image keeps its size. The network is one that takes images of any size, see :py:func:`require_any_size`.

    Parameters
    ----------
    inputs : :py:class:`torch.Tensor`
        The images of shape (batch, channels, height, width).
    targets, confidences, count, seed, least
        What to draw from, see :py:func:`mosaic_members`.

    Returns
    -------
    :py:class:`Mosaics`
        The mosaics.

    Raises
    ------
    ValueError
        If a shape does not fit, or fewer than four classes have a confidently classified image.
    '''
    targets = torch.as_tensor(targets)
    require_images(inputs, targets)
    members = mosaic_members(targets, confidences, count, seed, least)
    return Mosaics(torch.stack([mosaic(inputs[each]) for each in members]), targets.cpu()[members], members)


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
        If the model is in training mode, or it does not take such an image.
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


def grid_pointing_game(maps, quadrants):
    '''The share of a mosaic's map, in positive values, that is in the quadrant of the explained class's image [3]_. A
    larger share is better, and 0.25 is chance.

    The paper does not have this metric, which needs no masks, and neither has Quantus. The score of a map without
    positive values is zero.

    Parameters
    ----------
    maps : :py:class:`torch.Tensor`
        The maps of shape (batch, height, width), of the mosaics that :py:func:`mosaics` has.
    quadrants : :py:class:`torch.Tensor`
        The index of the quadrant of each, of shape (batch,): top left, top right, bottom left or bottom right.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The shares of shape (batch,).

    Raises
    ------
    ValueError
        If a shape or an index does not fit.
    FloatingPointError
        If a map is not finite.

    References
    ----------
    .. [3] M. Böhle, M. Fritz, and B. Schiele: "Convolutional Dynamic Alignment Networks for Interpretable
           Classifications," Conference on Computer Vision and Pattern Recognition, 2021.
    '''
    quadrants = torch.as_tensor(quadrants).cpu().numpy()
    require_shape('quadrants', quadrants, (len(maps),))
    maps = finite_maps(maps, maps.shape).clip(min=0.)
    batch, height, width = maps.shape
    if height % 2 or width % 2 or not ((quadrants >= 0) & (quadrants < 4)).all():
        raise ValueError('a mosaic has an even height and width, and its quadrants are numbered from 0 to 3')
    sums = maps.reshape(batch, 2, height // 2, 2, width // 2).sum((2, 4)).reshape(batch, 4)
    total = sums.sum(1)
    return np.divide(sums[np.arange(batch), quadrants], total, out=np.zeros(batch), where=total > 0.)
