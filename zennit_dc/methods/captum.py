'''Baselines to compare with: Captum's methods as attributors of Zennit.

Captum is needed when an attributor is made, and is part of the extra ``evaluation``. All of its methods run in Captum's
default settings, with a reference of zeros (the mean color of normalized images) where one is needed, unless the class
says otherwise. The model is given a copy of the input, and is the same afterwards: nothing in it is switched over.
'''
import warnings
from abc import abstractmethod
from contextlib import contextmanager

import torch
from zennit.attribution import Attributor

from ..attribution import class_relevance, gradient_at, require_layer, require_scores
from ..spatial import spread
from .seeding import image_seed, seeded


CHUNK = 32  # images that a method of many forward passes takes at a time, if it is not given more


class CaptumAttributor(Attributor):
    '''Base class of Captum's methods.

    A call returns the model's output and the attribution in the input's shape. What is explained is the sum of the
    scores, each times its relevance: the score of a class, if that is all that
    :py:func:`~zennit_dc.attribution.class_relevance` lets in, or a difference of scores.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model, in evaluation mode, from images of shape (batch, channels, height, width) to scores of shape (batch,
        classes).
    attr_output : :py:class:`torch.Tensor` or callable, optional
        The default relevance of the output, as for Zennit's attributors.

    Raises
    ------
    ModuleNotFoundError
        If Captum is not installed.
    ValueError
        In a call, if the relevance has not the output's shape, or the method cannot be computed for the model.
    '''
    one_by_one = False
    '''Whether to give Captum one image at a time.'''

    def __init__(self, model, attr_output=None):
        import captum.attr  # noqa: F401

        super().__init__(model, attr_output=attr_output)

    @abstractmethod
    def attribute(self, captum, model, input, targets):
        '''The attribution by Captum.

        Parameters
        ----------
        captum : module
            :py:mod:`captum.attr`.
        model : :py:class:`torch.nn.Module`
            The model, as Captum shall call it.
        input : :py:class:`torch.Tensor`
            The input of shape (batch, channels, height, width), which may be changed.
        targets : :py:class:`torch.Tensor`
            The indices of the images' explained scores among the scores of the model, of shape (batch,).

        Returns
        -------
        :py:class:`torch.Tensor`
            The attribution in the input's shape.
        '''

    def predict(self, input):
        '''The model's output of shape (batch, classes), computed in order to look at how the model does it.'''
        return Isolated(self.model, input.dtype)(input)

    def isolated(self, output, relevance):
        '''The model as Captum shall call it, for images with a given output and relevance.'''
        return Isolated(self.model, output.dtype, relevance)

    @contextmanager
    def prepared(self):
        '''A context in which Captum is called.'''
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield

    def forward(self, input, attr_output_fn):
        '''The output and the attribution, see :py:meth:`zennit.attribution.Attributor.forward`.'''
        import captum.attr

        with torch.no_grad():
            output = require_scores(self.predict(input))
        relevance = require_relevance(attr_output_fn(output), output)
        size = 1 if self.one_by_one else len(input)
        attributions = []
        for images, scores, weights in zip(input.split(size), output.split(size), relevance.split(size)):
            targets = torch.arange(len(images), device=images.device)
            with self.prepared():
                model = self.isolated(scores, weights)
                attributions.append(self.attribute(captum.attr, model, images.detach().clone(), targets).detach())
        return output, torch.cat(attributions).to(input.dtype)


class Isolated(torch.nn.Module):
    '''A model that gets a copy of its input, which it may overwrite, in a dtype; and that returns, for each image, the
    explained score of each image of a batch.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    dtype : :py:class:`torch.dtype`
        The dtype of its input. (Captum's noise has float32 as its own.)
    relevance : :py:class:`torch.Tensor`, optional
        The relevance of the output for each image, of shape (images, classes). Default is to return the output.
    expected : :py:class:`torch.Tensor`, optional
        The output for the first images of each batch, of shape (images, classes).

    Raises
    ------
    ValueError
        When called, if the output is not the expected one.
    '''
    def __init__(self, model, dtype, relevance=None, expected=None):
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.relevance = relevance
        self.expected = expected

    def forward(self, input):
        '''Call the model.'''
        output = self.model(input.to(self.dtype, copy=True))
        if self.expected is not None:
            difference = (output[:len(self.expected)].detach() - self.expected).abs().max()
            if not difference <= 1e-2 * self.expected.abs().max():
                raise ValueError(
                    'the model computes something else when its activations get copies of their inputs: one of them'
                    ' overwrites in place what is read again later'
                )
        if self.relevance is None:
            return output
        used = self.relevance.any(0)  # a score of minus infinity times a relevance of zero is not a number
        return output[:, used] @ self.relevance[:, used].T


def require_relevance(relevance, output):
    '''The relevance of the output, detached, if it has the output's shape; else raise a ValueError.'''
    if relevance.shape != output.shape:
        raise ValueError(
            f'the relevance of the output must have the output\'s shape, {tuple(output.shape)}, not'
            f' {tuple(relevance.shape)}'
        )
    return relevance.detach().to(output)


class Saliency(CaptumAttributor):
    '''The absolute gradient, by channel, see :py:class:`CaptumAttributor`.'''
    def attribute(self, captum, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        return captum.Saliency(model).attribute(input, targets)


class InputXGradient(CaptumAttributor):
    '''The product of the input and the gradient, see :py:class:`CaptumAttributor`.'''
    def attribute(self, captum, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        return captum.InputXGradient(model).attribute(input, targets)


class IntegratedGradients(CaptumAttributor):
    '''Integrated Gradients along the line from zeros, see :py:class:`CaptumAttributor`.

    At most 32 images, or one batch if it is larger, enter the model at a time. Captum rounds the weights of the steps
    to float32.

    Parameters
    ----------
    model, attr_output
        See :py:class:`CaptumAttributor`.
    steps : int, optional
        The number of steps.
    '''
    def __init__(self, model, steps=50, attr_output=None):
        super().__init__(model, attr_output)
        self.steps = steps

    def attribute(self, captum, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        return captum.IntegratedGradients(model).attribute(
            input, target=targets, n_steps=self.steps, internal_batch_size=max(CHUNK, len(input))
        )


class GradientSHAP(CaptumAttributor):
    '''Gradient SHAP: the mean of the gradient at random points of the line from zeros, times the input, see
    :py:class:`CaptumAttributor`.

    Captum has no default for the references; they are zeros, as for all other methods. Its points are drawn by NumPy,
    and its noise, of the default standard deviation zero, by PyTorch. Both are seeded for each image by its values, and
    their states are restored, so that a map does not depend on other images.

    Parameters
    ----------
    model, attr_output
        See :py:class:`CaptumAttributor`.
    samples : int, optional
        The number of points.
    seed : int, optional
        The seed.
    '''
    one_by_one = True

    def __init__(self, model, samples=5, seed=0, attr_output=None):
        super().__init__(model, attr_output)
        self.samples = samples
        self.seed = seed

    def attribute(self, captum, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        with seeded(image_seed(input[0], self.seed), input.device):
            return captum.GradientShap(model).attribute(
                input, torch.zeros_like(input), n_samples=self.samples, target=targets
            )


class Occlusion(CaptumAttributor):
    '''Occlusion: how much the score falls when a square of all channels is set to zero, as a mean over the squares that
    cover a pixel, see :py:class:`CaptumAttributor`.

    Captum has no default for the squares. The defaults here come from its tutorial for ImageNet; an image of 224 × 224
    pixels takes 784 forward passes.

    Parameters
    ----------
    model, attr_output
        See :py:class:`CaptumAttributor`.
    window : int, optional
        The side of the square in pixels.
    stride : int, optional
        The distance of neighboring squares in pixels, at most their side.

    Raises
    ------
    ValueError
        If the stride is not from one to the window's side, or in a call, if the window is larger than the image.
    '''
    def __init__(self, model, window=15, stride=8, attr_output=None):
        super().__init__(model, attr_output)
        if not 1 <= stride <= window:
            raise ValueError(f'stride must be from 1 to the window\'s {window} pixels, not {stride}')
        self.window = window
        self.stride = stride

    def attribute(self, captum, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        if self.window > min(input.shape[2:]):
            height, width = input.shape[2:]
            raise ValueError(f'the window of {self.window} pixels is larger than the image of {height} × {width}')
        return captum.Occlusion(model).attribute(
            input, (input.shape[1], self.window, self.window), (input.shape[1], self.stride, self.stride),
            target=targets, perturbations_per_eval=max(1, CHUNK // len(input))
        )


class FeatureAblation(CaptumAttributor):
    '''Feature Ablation: how much the score falls when a square patch of all channels is set to zero; the patches do not
    overlap. See :py:class:`CaptumAttributor`.

    Captum's default is one channel of one pixel at a time, which takes 150,528 forward passes for an image of 224 × 224
    pixels. Patches of 16 pixels take 196.

    Parameters
    ----------
    model, attr_output
        See :py:class:`CaptumAttributor`.
    patch : int, optional
        The side of the patches in pixels. Those at the right and lower border are cut off.

    Raises
    ------
    ValueError
        If the patch has no pixel.
    '''
    def __init__(self, model, patch=16, attr_output=None):
        super().__init__(model, attr_output)
        if patch < 1:
            raise ValueError(f'patch must be one pixel or more, not {patch}')
        self.patch = patch

    def attribute(self, captum, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        return captum.FeatureAblation(model).attribute(
            input, target=targets, feature_mask=patches(input, self.patch),
            perturbations_per_eval=max(1, CHUNK // len(input))
        )


def patches(input, size):
    '''The number of the square patch of each pixel, of the input's shape but for a batch of one.'''
    rows, columns = (torch.arange(length, device=input.device) // size for length in input.shape[2:])
    return (rows[:, None] * (columns[-1] + 1) + columns).expand(1, *input.shape[1:])


class GradCAM(CaptumAttributor):
    '''Grad-CAM at a layer, not rectified, as is Captum's default, see :py:class:`CaptumAttributor`.

    The attribution is the map's bilinear upsampling to the input's size, divided evenly among the input's channels.

    Parameters
    ----------
    model, attr_output
        See :py:class:`CaptumAttributor`.
    layer : str
        The name of the module at whose output the map is computed, with spatial axes or a grid of tokens: after an
        activation, if the output goes straight into one and nowhere else. At an activation, it is Captum's.
    grid : tuple of int, optional
        The height and width of the grid of tokens, where they cannot be found from the input's.

    Raises
    ------
    ValueError
        If the model has no such module, or in a call, if its output is not one tensor with places in the input.
    '''
    def __init__(self, model, layer, attr_output=None, grid=None):
        super().__init__(model, attr_output)
        require_layer(model, layer)
        self.layer, self.grid = layer, grid

    def saliency(self, model, input, targets):
        '''The map of shape (batch, 1, height, width): the activations, weighted by the means of their gradients.'''
        _, gradient, activation = gradient_at(
            model, f'model.{self.layer}', input, class_relevance(targets), self.grid
        )
        return (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True)

    def attribute(self, captum, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        return spread(self.saliency(model, input, targets), input)
