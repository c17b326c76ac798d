'''Baselines to compare with: Captum's methods as attributors of Zennit.

Captum is needed when an attributor is made, and is part of the extra ``evaluation``. All of its methods run in Captum's
default settings, with a reference of zeros (the mean color of normalized images) where one is needed, unless the class
says otherwise. Zennit has Integrated Gradients and Occlusion as well, but computes something else: a Riemann sum, which
is less accurate with as many steps, and sums of the scores that are left, not of by how much they fall.
'''
import warnings
from collections.abc import Callable
from contextlib import contextmanager

import torch

from ..attribution import class_relevance, gradient_at, require_layer
from ..core.places import spread
from .scores import ScoreAttributor
from .seeding import image_seed, seeded


CHUNK = 32  # images that a method of many forward passes takes at a time, if it is not given more


class CaptumAttributor(ScoreAttributor):
    '''Base class of Captum's methods.

    Parameters
    ----------
    model, attr_output
        See :py:class:`ScoreAttributor`.

    Raises
    ------
    ModuleNotFoundError
        If Captum is not installed.
    '''
    def __init__(self, model: torch.nn.Module, attr_output: torch.Tensor | Callable | None = None):
        import captum.attr

        super().__init__(model, attr_output=attr_output)
        self.captum = captum.attr

    @contextmanager
    def prepared(self):
        '''A context in which Captum is called, without its warnings.'''
        with super().prepared(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield


class Saliency(CaptumAttributor):
    '''The absolute gradient, by channel, see :py:class:`CaptumAttributor`.'''
    def attribute(self, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        return self.captum.Saliency(model).attribute(input, targets)


class InputXGradient(CaptumAttributor):
    '''The product of the input and the gradient, see :py:class:`CaptumAttributor`.'''
    def attribute(self, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        return self.captum.InputXGradient(model).attribute(input, targets)


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
    def __init__(self, model: torch.nn.Module, steps: int = 50, attr_output: torch.Tensor | Callable | None = None):
        super().__init__(model, attr_output)
        self.steps = steps

    def attribute(self, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        return self.captum.IntegratedGradients(model).attribute(
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

    def __init__(
        self, model: torch.nn.Module, samples: int = 5, seed: int = 0,
        attr_output: torch.Tensor | Callable | None = None
    ):
        super().__init__(model, attr_output)
        self.samples = samples
        self.seed = seed

    def attribute(self, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        with seeded(image_seed(input[0], self.seed), input.device):
            return self.captum.GradientShap(model).attribute(
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
    def __init__(
        self, model: torch.nn.Module, window: int = 15, stride: int = 8,
        attr_output: torch.Tensor | Callable | None = None
    ):
        super().__init__(model, attr_output)
        if not 1 <= stride <= window:
            raise ValueError(f'stride must be from 1 to the window\'s {window} pixels, not {stride}')
        self.window = window
        self.stride = stride

    def attribute(self, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        if self.window > min(input.shape[2:]):
            height, width = input.shape[2:]
            raise ValueError(f'the window of {self.window} pixels is larger than the image of {height} × {width}')
        return self.captum.Occlusion(model).attribute(
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
    def __init__(self, model: torch.nn.Module, patch: int = 16, attr_output: torch.Tensor | Callable | None = None):
        super().__init__(model, attr_output)
        if patch < 1:
            raise ValueError(f'patch must be one pixel or more, not {patch}')
        self.patch = patch

    def attribute(self, model, input, targets):
        '''The attribution, see :py:meth:`CaptumAttributor.attribute`.'''
        return self.captum.FeatureAblation(model).attribute(
            input, target=targets, feature_mask=patches(input, self.patch),
            perturbations_per_eval=max(1, CHUNK // len(input))
        )


def patches(input, size):
    '''The number of the square patch of each pixel, of the input's shape but for a batch of one.'''
    rows, columns = (torch.arange(length, device=input.device) // size for length in input.shape[2:])
    return (rows[:, None] * (columns[-1] + 1) + columns).expand(1, *input.shape[1:])


class GradCAM(ScoreAttributor):
    '''Grad-CAM at a layer, not rectified, as is Captum's default, see :py:class:`ScoreAttributor`.

    The attribution is the map's bilinear upsampling to the input's size, divided evenly among the input's channels.

    Parameters
    ----------
    model, attr_output
        See :py:class:`ScoreAttributor`.
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
    def __init__(
        self, model: torch.nn.Module, layer: str, attr_output: torch.Tensor | Callable | None = None,
        grid: tuple[int, ...] | None = None
    ):
        super().__init__(model, attr_output)
        require_layer(model, layer)
        self.layer, self.grid = layer, grid

    def saliency(self, model, input, targets):
        '''The map of shape (batch, 1, height, width): the activations, weighted by the means of their gradients.'''
        _, gradient, activation = gradient_at(
            model, f'model.{self.layer}', input, class_relevance(targets), self.grid
        )
        return (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True)

    def attribute(self, model, input, targets):
        '''The attribution, see :py:meth:`ScoreAttributor.attribute`.'''
        return spread(self.saliency(model, input, targets), input)
