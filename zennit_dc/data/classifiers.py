'''Classifiers by name: torchvision's, the demo's, and a user's own.'''
import importlib
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from PIL import Image
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..logits import Logits
from ..wording import similar
from .categories import load_categories
from .feature_maps import Survey
from .images import require_local


# resize to 256, crop the center of 224 and normalize with ImageNet's mean and standard deviation
IMAGENET_PREPROCESSING = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms


# whose weights of ImageNet want an input that they normalize themselves, again
OWN_NORMALIZATION = ('googlenet', 'inception_v3')


# where checkpoints have their state dict, and what wrappers of a model write before its names
NESTS = ('state_dict', 'model_state_dict', 'model')
PREFIXES = ('module.', '_orig_mod.')


class Classifier(NamedTuple):
    '''A model with what is needed to feed it with images and to name its classes.

    Parameters
    ----------
    name : str
        The model's name.
    model : :py:class:`torch.nn.Module`
        The model, from images of shape (batch, channels, height, width) to scores of shape (batch, classes).
    preprocessing : callable
        From an image of Pillow to a normalized tensor of shape (channels, height, width), with the attributes ``mean``
        and ``std`` of one number a channel and ``resize_size``, as torchvision's transforms have them.
    categories : list[str] or None
        The names of the classes by their index, if they are known.
    '''
    name: str
    model: torch.nn.Module
    preprocessing: object
    categories: list | None = None

    @property
    def mode(self):
        '''Pillow's name of the color mode of the model's images.'''
        return 'L' if len(self.preprocessing.mean) == 1 else 'RGB'

    def category(self, index):
        '''The name of a class, which is its index if no names are known.'''
        known = self.categories is not None and index < len(self.categories)
        return self.categories[index] if known else f'class {index}'

    def to(self, device, dtype):
        '''Move the model to a device and dtype, and set it to evaluation mode.

        Returns
        -------
        :py:class:`Classifier`
            This classifier.
        '''
        self.model.eval().to(device, dtype)
        return self

    def pixels(self, input):
        '''What normalized inputs of shape (..., channels, height, width) look like: RGB values in [0, 1] of shape (...,
        height, width, 3).'''
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.preprocessing.mean, self.preprocessing.std))
        pixels = (input.detach().cpu().float() * std + mean).clamp(0., 1.)
        return pixels.expand(*pixels.shape[:-3], 3, -1, -1).movedim(-3, -1)


def load_classifier(
    name='squeezenet1_0', weights='DEFAULT', size=None, mean=None, std=None, classes=None, output=None, input=None
):
    '''Load a classifier.

    Parameters
    ----------
    name : str, optional
        ``'demo'`` for the demo's own network, the name of a classifier of torchvision, or ``'module:function'`` for
        your own: a function without arguments that returns the model. This imports, and so runs, the module.
    weights : str, path or None, optional
        ``'DEFAULT'`` for the pretrained weights of torchvision, of the demo, or those that your function has loaded
        already; None for random ones of torchvision; else a file with a state dict, or with one under the key
        ``'state_dict'``, ``'model_state_dict'`` or ``'model'``, whose names may begin with ``'module.'``. GoogLeNet and
        Inception are set to transform their input, as they are with the weights of torchvision.
    size : int, optional
        The height and width of the input. Images are resized so that their shorter side has this length, and cropped to
        the center. Default is the preprocessing of torchvision's weights for this model, and for your own 224, from
        images with a shorter side of 256.
    mean, std : sequence of float, optional
        The mean and standard deviation, by channel, of the normalization; for images with values in [0, 1].
    classes : str or path, optional
        A file with the names of the classes, see :py:func:`~zennit_dc.data.categories.load_categories`.
    output : str or int, optional
        The key, attribute or index of the scores in what the model returns, see :py:class:`~zennit_dc.Logits`. Default
        is to find it.
    input : str, optional
        The name of the keyword by which the model takes images. Default is its first argument.

    Returns
    -------
    :py:class:`Classifier`
        The classifier in evaluation mode, on the CPU.

    Raises
    ------
    ValueError
        If there is no such model, or the weights cannot be read or do not fit.
    '''
    if name == 'demo':
        from ..demo import CLASSES, demo_network, demo_preprocessing

        model, preprocessing, categories = demo_network(), demo_preprocessing(), list(CLASSES)
    elif ':' in name:
        model, preprocessing, categories = build(name), IMAGENET_PREPROCESSING(), None
    elif name in torchvision.models.list_models(module=torchvision.models):
        default = torchvision.models.get_model_weights(name).DEFAULT
        model = pretrained(name, default) if weights == 'DEFAULT' else torchvision.models.get_model(name, weights=None)
        preprocessing, categories = default.transforms(), default.meta['categories']
        if name in OWN_NORMALIZATION and weights not in ('DEFAULT', None):
            model.transform_input = True
    else:
        names = ['demo', *torchvision.models.list_models(module=torchvision.models)]
        raise ValueError(
            f'there is no classifier named {name!r} in torchvision{similar(name, names) or ";"} \'demo\' and'
            ' module:function work too'
        )
    if weights not in ('DEFAULT', None):
        load_weights(model, name, weights)
    if ':' in name or (output, input) != (None, None):
        model = Logits(model, output, input)
    if classes is not None:
        categories = load_categories(classes)
    return Classifier(name, model.eval(), changed(preprocessing, size, mean, std), categories)


def build(specification):
    '''The model that a function named ``'module:function'`` returns.'''
    module, _, function = specification.partition(':')
    if '' not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python -m does
    try:
        model = getattr(importlib.import_module(module), function)()
    except Exception as error:
        raise ValueError(f'{specification} cannot be called: {type(error).__name__}: {error}') from error
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f'{specification} returns a {type(model).__name__}, and not a model')
    return model


def pretrained(name, weights):
    '''A model of torchvision with its pretrained weights, which are downloaded if they are not there yet.'''
    try:
        return torchvision.models.get_model(name, weights=weights)
    except MemoryError:
        raise
    except Exception as error:  # of the network, of the disk, or of a file that was not downloaded to its end
        raise OSError(
            f'the pretrained weights of {name} cannot be downloaded or read ({type(error).__name__}: {error}): name a'
            ' file of weights with --weights FILE'
        ) from error


def load_weights(model, name, path):
    '''Load a file of weights into a model. It may hold nothing but tensors and plain containers.'''
    state = read_state(path)
    own = model.state_dict()
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in own):
            consume_prefix_in_state_dict_if_present(state, prefix)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
        reason = None
    except RuntimeError as error:  # shapes, which do not tell what is missing
        missing, unexpected = sorted({*own} - {*state}), sorted({*state} - {*own})
        reason = error
    other = [
        f'{key} {tuple(getattr(state[key], "shape", ()))}, not {tuple(own[key].shape)}' for key in own
        if key in state and isinstance(own[key], torch.Tensor) and own[key].shape != getattr(state[key], 'shape', None)
    ]
    found = [
        f'{len(keys)} of {len(all)} {what} ({", ".join(keys[:3])}{", ..." if len(keys) > 3 else ""})'
        for keys, all, what in (
            (missing, own, 'tensors are missing'), (unexpected, state, 'are unexpected'),
            (other, own, 'are of another shape')
        ) if keys
    ]
    if found or reason:
        raise ValueError(f'{path} cannot be loaded into {name}: {"; ".join(found) or reason}') from reason


def read_state(path):
    '''The state dict of a file, or of the checkpoint that it holds.'''
    require_local(path)
    if not Path(path).is_file():
        raise ValueError(f'there is no file of weights {path}')
    if not Path(path).stat().st_size:
        raise ValueError(f'{path} cannot be loaded as weights: the file is empty')
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # what is wrong with a file can come from any of pickle, zipfile, PyTorch ...
        reason = str(error).strip().partition('\n')[0].partition('. ')[0][:120]
        raise ValueError(
            f'{path} cannot be loaded as weights, as it is truncated, of another kind, or holds more than tensors: what'
            f' is needed is torch.save(model.state_dict(), FILE) ({type(error).__name__}: {reason})'
        ) from error
    while isinstance(state, dict) and (nest := next((k for k in NESTS if isinstance(state.get(k), dict)), None)):
        state = state[nest]
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not named or not any(isinstance(each, torch.Tensor) for each in state.values()):
        keys = f' of {", ".join(map(str, [*state][:5]))}' if isinstance(state, dict) else ''
        kind = type(state).__name__
        raise ValueError(f'{path} cannot be loaded as weights: it holds a {kind}{keys}, and no state dict')
    return state


@contextmanager
def diagnosed(model):
    '''A context in which the error of a map that is not finite says whether the model's weights are the reason.'''
    try:
        yield
    except FloatingPointError as error:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if broken:
            raise FloatingPointError(
                f'the map is not finite, as {len(broken)} of the model\'s {len(tensors)} tensors are not, the first of'
                f' them {broken[0]}: load other weights, or take a --dtype that can hold them'
            ) from error
        raise FloatingPointError(f'{error} (the weights are finite, so that they are not the reason)') from error


def changed(preprocessing, size, mean, std):
    '''A preprocessing with the given parts changed.'''
    if size is None and mean is None and std is None:
        return preprocessing
    mean = list(preprocessing.mean if mean is None else mean)
    std = list(preprocessing.std if std is None else std)
    if len(mean) != len(std):
        raise ValueError(f'mean has {len(mean)} channels, but std has {len(std)}')
    if len(mean) not in (1, 3) or not all(each > 0. for each in std):
        raise ValueError('mean and std are one or three numbers each, and all of std are positive')
    crop, resize = (preprocessing.crop_size, preprocessing.resize_size) if size is None else ([size], [size])
    return IMAGENET_PREPROCESSING(
        crop_size=crop[0], resize_size=resize[0], mean=tuple(mean), std=tuple(std),
        interpolation=preprocessing.interpolation, antialias=preprocessing.antialias
    )


def layers(classifier, device='cpu', dtype=torch.float32):
    '''The modules at whose output maps can be read, by running the model on a black image.

    These are the modules that are called once in a forward pass and give one tensor with places in the input: with
    channels, height and width, or with tokens.

    Parameters
    ----------
    classifier : :py:class:`Classifier`
        The classifier.
    device, dtype
        Where the model is, and its floating point type.

    Returns
    -------
    list[:py:class:`~zennit_dc.data.feature_maps.Layer`]
        The name, type and output shape (channels, height, width) of each module, in the order in which they end, and
        the activation after which maps are read, if the output goes straight into one.
    '''
    return [*Survey(classifier.model, black_input(classifier)[None].to(device, dtype)).layers.values()]


def last_feature_map(classifier, device='cpu', dtype=torch.float32):
    '''The layer of the last feature map before the places are summed up, by running the model on a black image.

    A feature map is what an activation, a normalization, an affine layer, an addition or a concatenation makes, with a
    height and width of more than one; pooling, dropout and reshaping make none. It is the last one on which the model's
    output depends at its places, as it does not on the last tokens where a class token alone is used.

    Parameters
    ----------
    classifier : :py:class:`Classifier`
        The classifier.
    device, dtype
        Where the model is, and its floating point type.

    Returns
    -------
    layer : :py:class:`~zennit_dc.data.feature_maps.Layer`
        The layer whose maps are read there, or else the last one before.
    is_last : bool
        Whether its maps are read at the last feature map. They are not if no module makes it alone, such as
        ``relu(self.norm(x) + y)``.

    Raises
    ------
    ValueError
        If there is none.
    '''
    survey = Survey(classifier.model, black_input(classifier)[None].to(device, dtype), differentiate=True)
    found = survey.last()
    if found is None:
        raise ValueError(
            f'no module of {classifier.name} gives a tensor with height and width, or with tokens: choose methods that'
            ' explain at the input, as in --method splitgrad@input'
        )
    return found


def last_layer(classifier, device='cpu', dtype=torch.float32):
    '''The name of the layer of the last feature map, see :py:func:`last_feature_map`.'''
    return last_feature_map(classifier, device, dtype)[0].name


def black_input(classifier):
    '''The normalized input for a black image of shape (channels, height, width).'''
    size = max(classifier.preprocessing.resize_size)
    return classifier.preprocessing(Image.new(classifier.mode, (size, size)))
