'''Layers with weights, and averages.'''
import pytest
import torch
from helpers import random_image
from jacobians import IMAGE, require_relevance, require_sensitivities, require_streams
from torch import nn
from torch.nn import functional as F


def weight(*shape):
    return random_image(*shape, seed=sum(shape))


def bias(size):
    return random_image(size, seed=size)


def norm(x, size):
    return F.batch_norm(x, bias(size), bias(size).abs() + .1, weight(size), weight(size, 1)[:, 0])


LINEAR = {
    'linear': ((2, 5), lambda x: F.linear(x, weight(3, 5), bias(3))),
    'linear of many weights': ((2, 3000), lambda x: F.linear(x, weight(100, 3000), bias(100))),
    'linear of tokens': ((2, 3, 5), lambda x: F.linear(x, weight(3, 5))),
    'matmul': ((2, 3, 5), lambda x: x @ weight(5, 4)),
    'matmul from the left': ((2, 3, 5), lambda x: weight(4, 3) @ x),
    'mm': ((2, 5), lambda x: torch.mm(x, weight(5, 4))),
    'addmm': ((2, 5), lambda x: torch.addmm(bias(4), x, weight(5, 4))),
    'conv1d': ((2, 4, 9), lambda x: F.conv1d(x, weight(6, 2, 3), bias(6), 2, 1, 2, 2)),
    'conv2d': (IMAGE, lambda x: F.conv2d(x, weight(6, 2, 3, 2), bias(6), (2, 1), (1, 0), (1, 2), 2)),
    'conv2d same': (IMAGE, lambda x: F.conv2d(x, weight(6, 4, 2, 4), bias(6), padding='same', dilation=(1, 1))),
    'conv2d same odd': (IMAGE, lambda x: F.conv2d(x, weight(6, 4, 3, 3), padding='same', dilation=2)),
    'conv2d valid': (IMAGE, lambda x: F.conv2d(x, weight(6, 4, 3, 3), padding='valid')),
    'conv3d': ((2, 2, 4, 5, 4), lambda x: F.conv3d(x, weight(4, 2, 3, 3, 2), bias(4), (1, 2, 1), 1)),
    'conv_transpose1d': ((2, 4, 5), lambda x: F.conv_transpose1d(x, weight(4, 3, 3), bias(6), 2, 1, 1, 2, 2)),
    'conv_transpose2d': (IMAGE, lambda x: F.conv_transpose2d(x, weight(4, 3, 3, 2), bias(3), (2, 1), 1, (1, 0))),
    'conv_transpose3d': ((1, 2, 3, 3, 2), lambda x: F.conv_transpose3d(x, weight(2, 2, 2, 2, 2), bias(2), 2)),
    'batch_norm': (IMAGE, lambda x: norm(x, 4)),
    'batch_norm 1d': ((2, 4), lambda x: norm(x, 4)),
    'batch_norm 3d': ((2, 4, 2, 3, 2), lambda x: norm(x, 4)),
    'batch_norm without parameters': (IMAGE, lambda x: F.batch_norm(x, bias(4), bias(4).abs() + .1)),
    'circular convolution': ((2, 3, 6, 6), nn.Conv2d(3, 4, 3, padding=1, padding_mode='circular').double()),
    'avg_pool1d': ((2, 4, 6), lambda x: F.avg_pool1d(x, 2)),
    'avg_pool2d': (IMAGE, lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)),
    'avg_pool3d': ((2, 2, 4, 4, 4), lambda x: F.avg_pool3d(x, 2)),
    'adaptive_avg_pool1d': ((2, 4, 7), lambda x: F.adaptive_avg_pool1d(x, 3)),
    'adaptive_avg_pool2d': (IMAGE, lambda x: F.adaptive_avg_pool2d(x, (4, 1))),
    'adaptive_avg_pool3d': ((2, 2, 4, 4, 4), lambda x: F.adaptive_avg_pool3d(x, 3)),
    'mean': (IMAGE, lambda x: x.mean((2, 3))),
    'torch.mean': (IMAGE, lambda x: torch.mean(x, dim=[2, 3], keepdim=True)),
    'sum': (IMAGE, lambda x: x.sum(1)),
    'interpolate nearest': (IMAGE, lambda x: F.interpolate(x, scale_factor=2)),
    'interpolate bilinear': (IMAGE, lambda x: F.interpolate(x, (9, 8), mode='bilinear', align_corners=True)),
}


@pytest.mark.parametrize('name', LINEAR)
def test_streams(name):
    require_streams(*LINEAR[name])


@pytest.mark.parametrize('name', LINEAR)
def test_sensitivities(name):
    require_sensitivities(*LINEAR[name])


@pytest.mark.parametrize('name', LINEAR)
def test_relevance(name):
    require_relevance(*LINEAR[name])
