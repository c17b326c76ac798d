'''A small network trained on the package's own drawings, whose weights are part of the package.'''
from pathlib import Path

import torch
from torch import nn
from torchvision.transforms._presets import ImageClassification

from .drawing import CLASSES, SIZE


WEIGHTS = Path(__file__).with_name('weights.pt')


class DemoNetwork(nn.Module):
    '''Convolutions as in VGG, a residual block, global average pooling and a linear layer.

    Its weights are random; :py:func:`demo_network` has the trained ones. It takes images of shape (batch, 3, 64, 64),
    normalized by :py:func:`demo_preprocessing`, and returns logits of shape (batch, 10). The outputs of its modules
    ``features`` and ``residual``, which only the pooling and the linear layer ``classifier`` follow, have the
    shape (batch, 64, 16, 16).
    '''
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *convolution(3, 16), nn.MaxPool2d(2),
            *convolution(16, 32), *convolution(32, 32), nn.MaxPool2d(2),
            *convolution(32, 64), *convolution(64, 64),
        )
        self.residual = Residual(64)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(64, len(CLASSES))

    def forward(self, input):
        output = self.residual(self.features(input))
        return self.classifier(self.flatten(self.pool(output)))


class Residual(nn.Module):
    '''Two convolutions around which the input is added, as the basic block of ResNet.'''
    def __init__(self, channels):
        super().__init__()
        self.branch = nn.Sequential(*convolution(channels, channels), *convolution(channels, channels)[:2])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, input):
        output = self.branch(input)
        output += input
        return self.relu(output)


def convolution(inputs, outputs):
    '''A convolution that keeps the size, with batch norm and ReLU.'''
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def demo_network(is_trained=True):
    '''The trained network, in evaluation mode, on the CPU.

    Parameters
    ----------
    is_trained : bool, optional
        Whether it has its weights, or random ones.

    Returns
    -------
    :py:class:`DemoNetwork`
        The network. It was trained on 20,000 drawings of series 0, and classifies the first 2,000 of series 1, as the
        first 10,000 of series 2, without an error.
    '''
    network = DemoNetwork()
    if is_trained:
        network.load_state_dict(torch.load(WEIGHTS, map_location='cpu', weights_only=True))
    return network.eval()


def demo_preprocessing():
    '''What makes inputs of images, in the form of torchvision's.

    Returns
    -------
    :py:class:`torchvision.transforms._presets.ImageClassification`
        The preprocessing, from a PIL image, or a uint8 tensor of shape (..., 3, height, width), to a float tensor of
        shape (..., 3, 64, 64). A drawing keeps its pixels, and is only normalized.
    '''
    return ImageClassification(crop_size=SIZE, resize_size=SIZE, mean=(.5, .5, .5), std=(.25, .25, .25))
