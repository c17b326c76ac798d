'''Faithfulness: Pixel Flipping and Selectivity (section 5.2).'''
import numpy as np
import quantus
import torch
from quantus.helpers.enums import ScoreDirection
from quantus.helpers.model.pytorch_model import PyTorchModel
from quantus.helpers.utils import get_padding_size

from ..attribution import require_evaluation, require_scores
from .checks import finite_maps, require_images, require_positive


class PixelFlipping(quantus.PixelFlipping):
    '''Quantus' Pixel Flipping with pixels in place of channel entries, as :py:func:`pixel_flipping` describes it.

    Its score of an image has one area for each fraction. Quantus' arguments ``softmax`` and ``batch_size`` have no
    effect: it is the model's output as it is, and there are this object's own number of images in a forward pass.

    Parameters
    ----------
    fractions : tuple[float, ...], optional
        The fractions of the pixels in (0, 1] at which the areas end.
    step : int, optional
        The number of pixels in a step.
    batch_size : int, optional
        The number of images in a forward pass. Default is 4 on the CPU, where more are slower, and else 64.

    Raises
    ------
    ValueError
        If there is no such fraction, or the step or batch size is not positive.
    '''
    score_direction = ScoreDirection.HIGHER

    def __init__(self, fractions=(.05, .2), step=112, batch_size=None):
        super().__init__(step, abs=False, normalise=False, perturb_baseline='mean', disable_warnings=True)
        if not fractions or not all(0. < each <= 1. for each in fractions):
            raise ValueError(f'the fractions of the pixels must be in (0, 1], not {fractions}')
        require_positive(step=step, batch_size=1 if batch_size is None else batch_size)
        self.fractions = fractions
        self.batch_size = batch_size

    def custom_preprocess(self, **data):
        '''Take any number of pixels, as the last step is cut.'''

    def evaluate_batch(self, model, x_batch, y_batch, a_batch, **kwargs):
        '''Compute the areas.

        Parameters
        ----------
        model : :py:class:`quantus.helpers.model.pytorch_model.PyTorchModel`
            The model.
        x_batch, y_batch, a_batch : :py:class:`numpy.ndarray`
            The images of shape (batch, channels, height, width), their classes of shape (batch,) and the attributions
            of shape (batch, channels, height, width) or (batch, 1, height, width), to be summed over channels.

        Returns
        -------
        list[list[float]]
            For each image one area for each fraction.
        '''
        pixels = a_batch[0, 0].size
        cuts = [max(1, round(fraction * pixels)) for fraction in self.fractions]
        counts = torch.tensor(sorted({*range(0, max(cuts), self.features_in_step), *cuts}))
        areas = []
        for input, target, map in zip(x_batch, y_batch, a_batch.sum(1), strict=True):
            logits = logits_without(model, input, target, removal_order(map), counts, input.mean(), self.batch_size)
            areas.append([])
            for cut in cuts:
                chosen = (counts == cut) | (counts < cut) & (counts % self.features_in_step == 0)
                areas[-1].append(torch.trapezoid(logits[0] - logits[chosen], counts[chosen].double() / pixels).item())
        return areas


class Selectivity(quantus.Selectivity):
    '''Quantus' Selectivity with many steps in a forward pass, as :py:func:`selectivity` describes it.

    Its score of an image is the curve. Quantus' arguments ``softmax`` and ``batch_size`` have no effect: it is the
    model's output as it is, and there are this object's own number of images in a forward pass.

    Parameters
    ----------
    patch_size : int, optional
        The height and width of a patch in pixels.
    batch_size : int, optional
        The number of images in a forward pass. Default is 4 on the CPU, where more are slower, and else 64.

    Raises
    ------
    ValueError
        If one of them is not positive.
    '''
    def __init__(self, patch_size=8, batch_size=None):
        super().__init__(patch_size, abs=False, normalise=False, perturb_baseline='black', disable_warnings=True)
        require_positive(patch_size=patch_size, batch_size=1 if batch_size is None else batch_size)
        self.batch_size = batch_size

    def evaluate_batch(self, model, x_batch, y_batch, a_batch, **kwargs):
        '''Compute the curves.

        Parameters
        ----------
        model : :py:class:`quantus.helpers.model.pytorch_model.PyTorchModel`
            The model.
        x_batch, y_batch, a_batch : :py:class:`numpy.ndarray`
            The images of shape (batch, channels, height, width), their classes of shape (batch,) and the attributions
            of shape (batch, channels, height, width) or (batch, 1, height, width), to be summed over channels.

        Returns
        -------
        :py:class:`numpy.ndarray`
            For each image the class's output after each patch, of shape (batch, patches).
        '''
        rows, columns = (
            (np.arange(size) + get_padding_size(size, self.patch_size)[0]) // self.patch_size
            for size in x_batch.shape[2:]
        )
        patches = rows[:, None] * (columns[-1] + 1) + columns
        counts = torch.arange(1, patches[-1, -1] + 2)
        return np.stack([
            logits_without(
                model, input, target, removal_order(np.bincount(patches.ravel(), map.ravel()))[patches], counts,
                input.min(), self.batch_size
            )
            for input, target, map in zip(x_batch, y_batch, a_batch.sum(1), strict=True)
        ])


def pixel_flipping(model, inputs, targets, maps, fractions=(.05, .2), step=112, batch_size=None):
    '''The area under the curve of the drop of a class's logit while pixels are removed, largest in the map first. A
    larger area is better.

    The curve is piecewise linear in the fraction of removed pixels, from no drop at 0. The last step is cut at the
    fraction, rounded to whole pixels (at least one), so that the area is the mean drop times the fraction. A removed
    pixel gets the mean over all channels and pixels of the image (which is normalized), in all of its channels. Pixels
    of equal value are removed in reading order.

    Quantus' class of the same name has other curves: it removes entries of channels and not pixels, so that 112 of them
    are some 37 pixels of a color image; its mean is one number for all channels, but computed anew in each step
    from what is left of the image; its steps must divide the number of pixels, and go on until nothing is left; it
    takes probabilities unless ``softmax=False``; and its area is under the logit and not its drop, over the number of
    the step and without the whole image, and is not computed with NumPy from 2.4.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model in evaluation mode, from images to logits of shape (batch, classes).
    inputs : :py:class:`torch.Tensor`
        The images of shape (batch, channels, height, width), in float32 or float64, where the model is.
    targets : :py:class:`torch.Tensor`
        The classes of shape (batch,).
    maps : :py:class:`torch.Tensor`
        The maps of shape (batch, height, width).
    fractions : tuple[float, ...], optional
        The fractions of the pixels in (0, 1] at which the areas end.
    step : int, optional
        The number of pixels in a step.
    batch_size : int, optional
        The number of images in a forward pass. Default is 4 on the CPU, where more are slower, and else 64.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The areas of shape (fractions, batch), in units of the logit.

    Raises
    ------
    ValueError
        If a shape, class, fraction, step or batch size does not fit.
    RuntimeError
        If the model is in training mode.
    FloatingPointError
        If a map or a logit is not finite.
    '''
    return np.array(scores(PixelFlipping(tuple(fractions), step, batch_size), model, inputs, targets, maps)).T


def selectivity(model, inputs, targets, maps, patch_size=8, batch_size=None):
    '''The mean of a class's logit over the steps in which patches are removed until none is left, the patch with the
    largest sum in the map first. A smaller mean is better.

    The curve equals Quantus' class of the same name with ``softmax=False``; Quantus' default is ``softmax=True``. The
    paper does not say which it has, nor how a curve becomes a score, but its tables, with 2.7 to 6.3, fit the mean
    logit: a mean probability is at most one, and the area under the probability, over the number of the step, is of the
    order of tens even for a random map of 224 x 224 pixels. Quantus returns the curve, without the
    whole image, and has such an area as an average over all images alone (and not with NumPy from 2.4). The mean does
    not depend on the number of patches.

    The paper says that the metric perturbs pixels smoothly. Quantus sets whole patches to the smallest value of all
    channels and pixels of the (normalized) image, which it calls black. If patches do not fill the image, those at its
    edges are cut. Patches of equal sum are removed in reading order, which Quantus
    leaves open; its own loop, of one step in a forward pass, takes 2.8 times as long.

    Parameters
    ----------
    model, inputs, targets, maps
        The model, images, classes and maps, see :py:func:`pixel_flipping`.
    patch_size : int, optional
        The height and width of a patch in pixels.
    batch_size : int, optional
        The number of images in a forward pass. Default is 4 on the CPU, where more are slower, and else 64.

    Returns
    -------
    :py:class:`numpy.ndarray`
        The means of shape (batch,), in units of the logit.

    Raises
    ------
    ValueError
        If a shape, class, patch size or batch size does not fit.
    RuntimeError
        If the model is in training mode.
    FloatingPointError
        If a map or a logit is not finite.
    '''
    return scores(Selectivity(patch_size, batch_size), model, inputs, targets, maps).mean(1)


def scores(metric, model, inputs, targets, maps):
    '''The scores by a metric of Quantus of maps that fit to the images.'''
    require_evaluation(model)
    require_images(inputs, targets)
    maps = finite_maps(maps, (len(inputs), *inputs.shape[2:]))
    wrapped = PyTorchModel(model, softmax=False, device=inputs.device)
    inputs, targets = inputs.detach().cpu().numpy(), torch.as_tensor(targets).cpu().numpy()
    return metric.evaluate_batch(wrapped, inputs, targets, maps[:, None])


def removal_order(values):
    '''The place of each value in descending order, in the values' shape. Equal values keep their order.'''
    order = np.argsort(-values, axis=None, kind='stable')
    places = np.empty_like(order)
    places[order] = np.arange(values.size)
    return places.reshape(values.shape)


@torch.no_grad()
def logits_without(model, input, target, places, counts, value, batch_size):
    '''A class's logit as more and more of an image is replaced by a value.

    Parameters
    ----------
    model : :py:class:`quantus.helpers.model.pytorch_model.PyTorchModel`
        The model.
    input : :py:class:`numpy.ndarray`
        The image of shape (channels, height, width).
    target : int
        The class.
    places : :py:class:`numpy.ndarray`
        The place of each pixel in the order of replacement, of shape (height, width).
    counts : :py:class:`torch.Tensor`
        The numbers of replaced places, of shape (steps,).
    value : float
        The value.
    batch_size : int or None
        The number of images in a forward pass, or None for the default.

    Returns
    -------
    :py:class:`torch.Tensor`
        The logits of shape (steps,), in float64 on the CPU.
    '''
    input, places, counts = (torch.as_tensor(each, device=model.device) for each in (input, places, counts))
    logits = []
    for count in counts.split(batch_size or (4 if input.device.type == 'cpu' else 64)):
        images = torch.where(places < count.view(-1, 1, 1, 1), float(value), input)
        # convolutions are up to twice as fast with channels last
        output = require_scores(model.get_model()(images.contiguous(memory_format=torch.channels_last)))
        if not 0 <= target < output.shape[1]:
            raise ValueError(f'there is no class {target}, but those from 0 to {output.shape[1] - 1}')
        logits.append(output[:, target])
    logits = torch.cat(logits).double().cpu()
    if not torch.isfinite(logits).all():
        raise FloatingPointError('a logit is not finite: check the input and the weights, or use a higher precision')
    return logits
