'''Robustness: Max Sensitivity (section 5.2).'''
import warnings

import numpy as np
import quantus
import torch

from ..attribution import require_evaluation
from .checks import finite_maps, require_images, require_positive


class MaxSensitivity(quantus.MaxSensitivity):
    '''Quantus' Max Sensitivity of absolute values without its assertions on a batch's maps, see
    :py:func:`max_sensitivity`.

    Parameters
    ----------
    explain_func : callable
        A function of the keywords ``model``, ``inputs`` and ``targets`` that returns maps, as Quantus has it.
    generators : list[:py:class:`numpy.random.RandomState`]
        The source of the noise of each image.
    samples : int, optional
        The number of samples.
    '''
    def __init__(self, explain_func, generators, samples=25):
        super().__init__(nr_samples=samples, abs=True, normalise=False, perturb_func=self.noise, disable_warnings=True)
        self.explain_func = explain_func
        self.generators = generators

    def noise(self, arr, lower_bound, **kwargs):
        '''Add the uniform noise that Quantus adds, in [-lower_bound, lower_bound], to each image from its own source.

        Parameters
        ----------
        arr : :py:class:`numpy.ndarray`
            The images of shape (batch, entries).
        lower_bound : float
            The largest absolute value of the noise.
        '''
        noise = [each.uniform(-lower_bound, lower_bound, arr.shape[1]) for each in self.generators]
        return (arr + np.stack(noise)).astype(arr.dtype)

    def explain_batch(self, model, x_batch, y_batch):
        '''The maps' absolute values.'''
        return np.abs(self.explain_func(model=model, inputs=x_batch, targets=y_batch))


def max_sensitivity(model, inputs, targets, explain, samples=25, seed=0):
    '''The largest relative change of a map's absolute values under noise on the input. A smaller change is better.

    It is Quantus', in Euclidean norms, with uniform noise in [-0.2, 0.2] on each entry of the (normalized) input. The
    paper has 25 samples, and Quantus 200; the paper has absolute values, and Quantus' default is ``abs=False``. The
    division by the norm of the unperturbed map is Quantus' own [2]_. It makes the score of a map of zeros infinite, or
    NaN if the perturbed maps are zero, too. Quantus asserts that neither all maps of a batch nor all perturbed ones are
    constant or negative; here they may be.

    The noise of an image depends on its seed alone, and NumPy's global random state is not used. Quantus
    draws the same noise for this image alone after ``numpy.random.seed(seed)``.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model in evaluation mode.
    inputs : :py:class:`torch.Tensor`
        The images of shape (batch, channels, height, width).
    targets : :py:class:`torch.Tensor`
        The classes of shape (batch,).
    explain : callable
        A function of images and classes, as ``inputs`` and ``targets``, that returns their maps of shape (batch,
        height, width).
    samples : int, optional
        The number of samples, for each of which ``explain`` is called once.
    seed : int or sequence of int, optional
        The seed of the noise of each image, or one for each.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The changes of shape (batch,).

    Raises
    ------
    ValueError
        If a shape or the number of samples does not fit.
    RuntimeError
        If the model is in training mode.
    FloatingPointError
        If a map is not finite.

    References
    ----------
    .. [2] C.-K. Yeh, C.-Y. Hsieh, A. Suggala, D. I. Inouye, and P. K. Ravikumar: "On the (In)fidelity and Sensitivity
           of Explanations," Advances in Neural Information Processing Systems, 2019.
    '''
    require_evaluation(model)
    require_images(inputs, targets)
    require_positive(samples=samples)

    def explain_func(model, inputs, targets):
        images = torch.from_numpy(inputs).to(device)
        return finite_maps(explain(images, targets), (len(images), *images.shape[2:])).reshape(len(images), -1)

    device, images = inputs.device, inputs.detach().cpu().numpy()
    generators = [np.random.RandomState(each) for each in np.broadcast_to(seed, len(images))]
    metric = MaxSensitivity(explain_func, generators, samples)
    with np.errstate(divide='ignore', invalid='ignore'), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'All-NaN', RuntimeWarning)
        return metric.evaluate_batch(None, images, targets, metric.explain_batch(None, images, targets))
