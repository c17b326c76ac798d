'''A model of torchvision for each set of operations, by the script that makes the README's table of all models.'''
import warnings
from functools import partial

import pytest
import supported_models
import torch
import torchvision


# The smallest of the models that call the same functions of torch. What is too large for a test is tested elsewhere by
# its parts: AlexNet, VGG, DeepLabV3 and FCN of ResNet in test_torchvision.py, ViT in forms/test_attention.py.
MODELS = [
    'convnext_tiny', 'densenet121', 'efficientnet_b0', 'googlenet', 'inception_v3', 'mnasnet0_5',
    'mobilenet_v2', 'mobilenet_v3_small', 'regnet_x_400mf', 'regnet_y_400mf', 'resnet18', 'shufflenet_v2_x0_5',
    'squeezenet1_1', 'swin_t', 'swin_v2_t', 'deeplabv3_mobilenet_v3_large', 'lraspp_mobilenet_v3_large', 'mc3_18',
    'swin3d_t',
]


@pytest.mark.parametrize('name', MODELS)
def test_model(name):
    family, = [each for each in supported_models.FAMILIES if name in supported_models.models_of(each)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        row = supported_models.examine(name, partial(supported_models.build, name, family, frames=4))
    assert row[2:] == ['bit-identical', *['yes'] * 3]


def test_maxvit():
    '''With two blocks on small images, as its own are 224 pixels high and wide.'''
    torch.manual_seed(0)
    model = torchvision.models.MaxVit((32, 32), 8, 2, [16, 32], [1, 1], 8, .2, num_classes=10)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        row = supported_models.examine('maxvit', lambda: supported_models.prepared(model, (3, 32, 32)))
    assert row[2:] == ['bit-identical', *['yes'] * 3]
