'''What is read off a pair.'''
import pytest
import torch
from helpers import random_image
from small_models import Calls
from torch import nn

from zennit_dc import SplitGrad, SplitTensor


def test_control_flow_reads_the_difference():
    class Branching(nn.Module):
        def forward(self, x):
            if x.ndim != 2 or len(x) != 3 or x.size(1) != 4 or x.dtype != torch.float64 or not x.is_floating_point():
                raise ValueError
            return x + x if x.mean() > 0 and (x[0, 0] < 1e9).all() else -x

    x = random_image(3, 4)
    for image in (x - x.mean() + 1, x - x.mean() - 1):
        image.requires_grad_()
        with SplitGrad(.5).context(model := Branching()):
            gradient, = torch.autograd.grad(model(image).sum(), image)
        assert torch.equal(gradient, torch.full_like(image, 1. if image.mean() > 0 else -.5))


@pytest.mark.parametrize('function', [
    lambda x: x * (x > 0), lambda x: x * (x > 0).float(), lambda x: x + torch.sign(x), lambda x: (x >= 0) * x,
])
def test_comparisons_are_no_constants(function):
    model = Calls(function)
    with SplitGrad().context(model), pytest.raises(NotImplementedError, match='comparison'):
        model(torch.randn(1, 3, 8, 8))


def test_conversions_to_integers_are_read():
    class Binned(nn.Module):
        def forward(self, x):
            counts = torch.bincount(x.flatten().to(torch.long).clamp(0, 3), minlength=4)
            return x.flatten(1) * counts.sum().item()

    image = random_image(2, 4).requires_grad_()
    with SplitGrad(.5).context(model := Binned()):
        gradient, = torch.autograd.grad(model(image).sum(), image)
    assert torch.equal(gradient, torch.full_like(image, 4.))
    for function in (lambda x: x * x.long(), lambda x: x + x.to(torch.int32)):
        with pytest.raises(NotImplementedError, match='comparison'):
            function(SplitTensor.of(torch.ones(2, 3)))
    with pytest.raises(NotImplementedError, match='view.*float16'):
        SplitTensor.of(torch.ones(2, 3)).view(torch.float16)
