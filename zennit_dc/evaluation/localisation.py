'''Localisation: Attribution Localisation, the Pointing Game (section 5.2), the AUC on the object, and the Grid Pointing
Game.'''
import numpy as np
import torch

from .checks import filled_masks, finite_maps, require_shape


def attribution_localisation(maps, masks, positive=False):
    '''The share of the map that is inside the mask. A larger share is better.

    The score is the one that Quantus computes with ``abs=False``, where Quantus' default is ``abs=True``. The paper's
    text speaks of the ratio of attribution mass, which is a share for a map without negative values alone. For
    others, Quantus' ratio of the sums of signed values is larger than one, which Quantus replaces by NaN, if the
    values outside sum to less than zero; it may be negative; and its absolute value may be of any size as the whole
    sum is close to zero. Such are the paper's settings, and ``positive=True`` has the share of the positive values
    [1]_, in [0, 1]. The score of a map of zeros is zero, as it is with ``positive=True`` for a map without positive
    values.

    It is not Quantus' function that is called: this adds 1e-9 to the whole sum, so that the score depends on the map's
    scale, and prints a line for each score above one.

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
    maps = maps.clip(min=0.) if positive else maps
    largest = np.abs(maps).max((1, 2), keepdims=True)
    maps = np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0.)
    inside, total = (maps * masks).sum((1, 2)), maps.sum((1, 2))
    shares = np.divide(inside, total, out=np.where(inside == 0., 0., np.nan), where=total != 0.)
    return np.where(shares > 1., np.nan, shares)


def negative_localisation(maps, masks):
    '''The share of the map's negative values that is inside the mask: how much of what speaks against the class lies on
    its object. A smaller share is better.

    Parameters
    ----------
    maps : :py:class:`torch.Tensor`
        The maps of shape (batch, height, width).
    masks : :py:class:`torch.Tensor`
        The masks of the same shape, of type bool.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The shares of shape (batch,), in [0, 1]; NaN for a map without negative values, which has no such share.

    Raises
    ------
    ValueError
        If the shapes differ, or a mask is empty or not of type bool.
    FloatingPointError
        If a map is not finite.
    '''
    shares = attribution_localisation(-maps, masks, positive=True)
    return np.where((maps < 0.).flatten(1).any(1).cpu().numpy(), shares, np.nan)


def object_auc(maps, masks):
    '''The area under the ROC curve of the map as a classifier of pixels, into those of the object and all others: the
    probability that a pixel of the object has a larger value than one beside it, ties counting one half. A larger area
    is better, and 0.5 is chance, whatever the object's size.

    It depends on the order of the values alone, and is scikit-learn's, which Quantus' ``AUC`` uses, too; but Quantus'
    normalizes maps before.

    Parameters
    ----------
    maps : :py:class:`torch.Tensor`
        The maps of shape (batch, height, width).
    masks : :py:class:`torch.Tensor`
        The masks of the same shape, of type bool.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The areas of shape (batch,), in [0, 1].

    Raises
    ------
    ValueError
        If the shapes differ, or a mask is empty, covers the whole image, or is not of type bool.
    FloatingPointError
        If a map is not finite.
    '''
    from sklearn.metrics import roc_auc_score  # of the extra "evaluation", which zennit-dc demo does without

    maps, masks = finite_maps(maps, masks.shape), filled_masks(masks)
    if masks.all((1, 2)).any():
        raise ValueError(
            f'the masks of the images {np.flatnonzero(masks.all((1, 2))).tolist()} cover them, so that no pixel is'
            ' beside the object: leave them out'
        )
    return np.array([roc_auc_score(mask.ravel(), map.ravel()) for map, mask in zip(maps, masks)])


def pointing_game(maps, masks):
    '''Whether the map's largest value is inside the mask: 1 or 0.

    The hits are those of Quantus, which is not needed for it. If several pixels have the largest value, one of them
    inside is enough, be it negative or not. A constant map points nowhere: it scores 0, where Quantus raises for a
    batch of such maps, and else counts them as hits. For an empty mask, Quantus' score is a hit, too, as its NaN is
    written to an array of type bool.

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
    hits = (masks & (maps == maps.max((1, 2), keepdims=True))).any((1, 2))
    return (hits & (np.ptp(maps, axis=(1, 2)) > 0.)).astype(np.float64)


def grid_pointing_game(maps, quadrants):
    '''The share of a mosaic's map, in positive values, that is in the quadrant of the explained class's image [2]_. A
    larger share is better, and 0.25 is chance.

    The paper does not have this metric, which needs no masks, and neither has Quantus. The score of a map without
    positive values is zero.

    Parameters
    ----------
    maps : :py:class:`torch.Tensor`
        The maps of shape (batch, height, width), of mosaics, see :py:class:`zennit_dc.evaluation.mosaics.Mosaics`.
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
    .. [2] M. Böhle, M. Fritz, and B. Schiele: "Convolutional Dynamic Alignment Networks for Interpretable
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
