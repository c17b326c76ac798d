'''Classifiers by name: torchvision's, EfficientNet-Lite, the demo's, and a user's own.'''
import importlib
import os
import sys
import warnings
from typing import NamedTuple

import torch
import torchvision
from PIL import Image

from ..core.wording import similar
from ..logits import Logits
from . import efficientnet_lite
from .categories import load_categories
from .channels import other_channels
from .feature_maps import Survey
from .weights import load_weights


# resize to 256, crop the center of 224 and normalize with ImageNet's mean and standard deviation
IMAGENET_PREPROCESSING = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms


# whose weights of ImageNet want an input that they normalize themselves, again
OWN_NORMALIZATION = ('googlenet', 'inception_v3')


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
        The name of a classifier of torchvision; ``'efficientnet_lite0'``, ``'efficientnet_lite1'`` or
        ``'efficientnet_lite2'``, with the extra ``efficientnet-lite``; ``'demo'`` for the demo's own network; or
        ``'module:function'`` for your own: a function without arguments that returns the model. This imports, and so
        runs, the module.
    weights : str, path or None, optional
        ``'DEFAULT'`` for the pretrained weights of torchvision, of EfficientNet-Lite's packages, of the demo, or those
        that your function has loaded already; None for random ones, of your function those that it returns; else a
        file with a state dict, or with one under the key ``'state_dict'``, ``'model_state_dict'`` or ``'model'``, whose
        names may all begin with the name of a module that had the model in it, see
        :py:func:`~zennit_dc.data.weights.load_weights`. GoogLeNet and Inception are set to transform their input, as
        they are with the weights of torchvision.
    size : int, optional
        The height and width of the input. Images are resized so that their shorter side has this length, and cropped to
        the center. Default is the preprocessing of torchvision's weights for this model, and for your own 224, from
        images with a shorter side of 256.
    mean, std : sequence of float, optional
        The mean and standard deviation of the normalization, by channel or one number for all; for images with values
        in [0, 1]. Where both are one number, images are gray, unless the model takes three channels.
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
    ModuleNotFoundError
        If the packages of EfficientNet-Lite are not installed.
    '''
    source = of_function if ':' in name else SOURCES.get(name)
    if source is None:
        raise ValueError(
            f'there is no classifier named {name!r} in torchvision{similar(name, SOURCES) or ";"}'
            f' {", ".join(map(repr, OTHERS))} and module:function work too'
        )
    model, preprocessing, categories = source(name, weights, size)
    if weights not in ('DEFAULT', None):
        load_weights(model, name, weights)
    if ':' in name or (output, input) != (None, None):
        model = Logits(model, output, input)
    if classes is not None:
        categories = load_categories(classes)
    classifier = Classifier(name, model.eval(), changed(preprocessing, size, mean, std), categories)
    if classifier.mode == 'L' and other_channels(model, black_input(classifier)[None]) == 3:
        classifier = classifier._replace(preprocessing=changed(preprocessing, size, 3 * [*mean], 3 * [*std]))
    return classifier


def of_demo(name, weights, size):
    '''The demo's network with its weights, its preprocessing, and the names of its classes.'''
    from ..demo import CLASSES, demo_network, demo_preprocessing

    return demo_network(weights is not None), demo_preprocessing(), list(CLASSES)


def of_function(name, weights, size):
    '''What a function of one's own builds, with ImageNet's preprocessing.'''
    return build(name), IMAGENET_PREPROCESSING(), None


def of_torchvision(name, weights, size):
    '''A network of torchvision.'''
    default = torchvision.models.get_model_weights(name).DEFAULT
    model = pretrained(name, default) if weights == 'DEFAULT' else torchvision.models.get_model(name, weights=None)
    if name in OWN_NORMALIZATION and weights not in ('DEFAULT', None):
        model.transform_input = True
    return model, default.transforms(), default.meta['categories']


def of_efficientnet_lite(name, weights, size):
    '''A network of the packages of EfficientNet-Lite.'''
    model = efficientnet_lite.efficientnet_lite(name, weights == 'DEFAULT', size)
    return model, efficientnet_lite.preprocessing(name), efficientnet_lite.categories()


OTHERS = {'demo': of_demo, **dict.fromkeys(efficientnet_lite.SIZES, of_efficientnet_lite)}
SOURCES = {**dict.fromkeys(torchvision.models.list_models(module=torchvision.models), of_torchvision), **OTHERS}
'''The functions that return the model, preprocessing and names of classes of a name, for weights and a size.'''


def build(specification):
    '''The model that a function named ``'module:function'`` returns.'''
    module, _, function = specification.partition(':')
    if module.endswith('.py'):
        raise ValueError(f'{specification} names a file: leave out .py, and write dots for folders')
    if '' not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python -m does
    try:
        model = getattr(importlib.import_module(module), function)()
    except Exception as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == module
        advice = ': run the command in the folder of its file' if is_missing else ''
        raise ValueError(f'{specification} cannot be called: {type(error).__name__}: {error}{advice}') from error
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


def changed(preprocessing, size, mean, std):
    '''A preprocessing with the given parts changed.'''
    if size is None and mean is None and std is None:
        return preprocessing
    mean = list(preprocessing.mean if mean is None else mean)
    std = list(preprocessing.std if std is None else std)
    mean, std = (other * len(each) if len(other) == 1 else other for other, each in ((mean, std), (std, mean)))
    if len(mean) != len(std):
        raise ValueError(f'mean has {len(mean)} channels, but std has {len(std)}')
    if len(mean) not in (1, 3) or not all(each > 0. for each in std):
        raise ValueError('mean and std are one or three numbers each, and all of std are positive')
    impossible = next((each for each in mean if not 0. <= each <= 1.), None)
    if impossible is not None:
        warnings.warn(
            f'no image has a mean of {impossible:g}, as pixels are from 0 to 1: if it is of pixels up to 255,'
            ' divide mean and std by 255', stacklevel=2
        )
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


def reading_places(classifier, names, device='cpu', dtype=torch.float32):
    '''Where maps at layers are read, by running the model on a black image.

    Parameters
    ----------
    classifier : :py:class:`Classifier`
        The classifier.
    names : sequence of str
        The names of layers.
    device, dtype
        Where the model is, and its floating point type.

    Returns
    -------
    dict[str, str]
        Where they are read, for people, by their names: the name itself, with an activation after it.

    Raises
    ------
    ValueError
        If a layer is not called once in the forward pass, so that there is not one map at its output.
    '''
    if not names:
        return {}
    survey = Survey(classifier.model, black_input(classifier)[None].to(device, dtype))
    for name in names:
        count = len(survey.calls.get(name, ()))
        if count != 1:
            how_often = f'called {count} times' if count else 'not called'
            raise ValueError(
                f'layer {name!r} of {classifier.name} is {how_often} in a forward pass, so that there is not one map at'
                f' its output: choose a module that is called once; `zennit-dc layers {classifier.name}` lists them'
            )
    layers = survey.layers
    return {name: layers[name].place if name in layers else name for name in names}


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


def middle_feature_map(classifier, device='cpu', dtype=torch.float32):
    '''The layer of the last feature map that has about twice as many places along each axis as the last of all has, by
    running the model on a black image. See :py:func:`last_feature_map`.

    Returns
    -------
    :py:class:`~zennit_dc.data.feature_maps.Layer` or None
        The layer, or None if there is none, as in a transformer whose tokens are as many in all layers.
    '''
    return Survey(classifier.model, black_input(classifier)[None].to(device, dtype), differentiate=True).middle()


def last_layer(classifier, device='cpu', dtype=torch.float32):
    '''The name of the layer of the last feature map, see :py:func:`last_feature_map`.'''
    return last_feature_map(classifier, device, dtype)[0].name


def black_input(classifier):
    '''The normalized input for a black image of shape (channels, height, width).'''
    size = max(classifier.preprocessing.resize_size)
    return classifier.preprocessing(Image.new(classifier.mode, (size, size)))
