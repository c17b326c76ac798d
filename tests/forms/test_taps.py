'''Gradients along the way.'''
import torch
from helpers import random_image
from torch import nn

from zennit_dc import SplitGrad


def test_hooks_below_the_layer_of_a_map_are_not_called():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).double().eval()
    called, handles = [], []
    model[0].register_forward_hook(lambda module, args, output: handles.append(output.register_hook(called.append)))
    image = random_image(1, 3, 8, 8).requires_grad_()
    with SplitGrad(layer='2').context(model):
        output = model(image)
        gradient, = torch.autograd.grad(output, image, torch.ones_like(output))
    handles[0].remove()
    assert gradient.any() and not called
