'''The sanity check by randomised layers (appendix B.4).'''
import copy

import numpy as np
import torch
from scipy.stats import spearmanr
from skimage.feature import hog
from skimage.metrics import structural_similarity
from zennit.types import Linear

from ..data.classifiers import black_input
from .checks import finite_maps


def randomised(classifier, count=3, seed=0):
    '''A classifier with the weights and biases of its last layers drawn anew.

    They are drawn from a normal distribution of mean zero with the standard deviation of the layer's weights, so that
    activations keep their magnitude. (The paper has Gaussian noise, and does not say of which scale.)

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier, which is not changed.
    count : int, optional
        The number of layers: the last ones in a forward pass of all linear layers and convolutions.
    seed : int, optional
        The seed.

    Returns
    -------
    :py:class:`~zennit_dc.data.classifiers.Classifier`
        The new classifier.

    Raises
    ------
    ValueError
        If the model has fewer layers.
    '''
    model = copy.deepcopy(classifier.model)
    called, handles = {}, []  # the modules as an ordered set
    parameter = next(model.parameters())
    try:
        for module in model.modules():
            if isinstance(module, Linear):
                handles.append(module.register_forward_hook(lambda module, *_: called.update({module: None})))
        with torch.no_grad():
            model(black_input(classifier)[None].to(parameter))
    finally:
        for handle in handles:
            handle.remove()
    if not 1 <= count <= len(called):
        raise ValueError(f'{classifier.name} has {len(called)} linear layers and convolutions, of which not {count} can'
                         ' be randomised')
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in list(called)[-count:]:
            deviation = module.weight.std()
            for each in (module.weight, module.bias):
                if each is not None:
                    noise = torch.randn(each.shape, generator=generator, dtype=torch.float64)
                    each.copy_(noise.to(each) * deviation)
    return classifier._replace(model=model)


def similarities(first, second):
    '''How similar two maps are, as table 6 has it; the maps are divided by their largest absolute value beforehand.

    Where a correlation is not defined, as one of the two is constant, it is 1 if both are equal, and else 0.

    Parameters
    ----------
    first, second : :py:class:`torch.Tensor`
        The maps of shape (height, width), of at least 24 pixels each.

    Returns
    -------
    hog : float
        Pearson's correlation of the histograms of oriented gradients, with the default settings of scikit-image.
    spearman : float
        The rank correlation of the signed values.
    ssim : float
        The structural similarity, for a range of values from -1 to 1 and else with the default settings of
        scikit-image.

    Raises
    ------
    ValueError
        If the shapes differ, or the maps are too small.
    FloatingPointError
        If a map is not finite.
    '''
    if min(first.shape) < 24:
        raise ValueError(f'histograms of oriented gradients need maps of 24 pixels or more, not {tuple(first.shape)}')
    pair = finite_maps(torch.stack([first, second.to(first)]), (2, *first.shape))
    largest = np.abs(pair).max((1, 2), keepdims=True)
    pair = np.divide(pair, largest, out=np.zeros_like(pair), where=largest > 0.)
    histograms = np.stack([hog(each) for each in pair])
    return (
        correlation(*histograms), correlation(*pair.reshape(2, -1), function=spearmanr),
        float(structural_similarity(*pair, data_range=2.))
    )


def correlation(first, second, function=np.corrcoef):
    '''A correlation of two vectors, by SciPy's or NumPy's function.'''
    if np.ptp(first) == 0. or np.ptp(second) == 0.:
        return float(np.array_equal(first, second))
    found = function(first, second)
    return float(found[0, 1] if isinstance(found, np.ndarray) else found.statistic)
