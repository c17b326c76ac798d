'''Where mechanisms meet: checkpoints, inference mode, one sum for all images, memory written to, and low precision.'''
from functools import partial

import pytest
import torch
from helpers import assert_close
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zennit_dc import DetachedActivations, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.rules import ShiftedSensitivity, ruled


class Block(nn.Module):
    '''A function, or a checkpoint of it.'''
    def __init__(self, function, saves=False):
        super().__init__()
        self.function, self.saves = function, saves

    def forward(self, x):
        return checkpoint(self.function, x, use_reentrant=False) if self.saves else self.function(x)


class Two(nn.Module):
    '''A function of two inputs, of which each has a convolution.'''
    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head, self.function = nn.Linear(64, 3), function

    def forward(self, x, z):
        return self.head(F.relu(self.function(F.relu(self.first(x)), F.relu(self.second(z)))).flatten(1))


def network(*modules):
    '''A network with some modules in it.'''
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *modules, nn.Flatten(), nn.Linear(144, 3)).double().eval()


def gradients(composite, model, *inputs):
    '''The gradients of a class by inputs in a composite's context.'''
    leaves = [each.clone().requires_grad_() for each in inputs]
    with composite.context(model):
        return torch.autograd.grad(model(*leaves)[:, 1].sum(), leaves)


def image(*shape):
    '''Random numbers.'''
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize('make', [
    lambda: SplitCAM('2.function.0', .3), lambda: SplitCAM('2.function.0', .3, '+g'),
    lambda: SplitGrad(layer='2.function.0')
])
def test_layer_within_a_checkpoint_is_refused(make):
    model, input = network(Block(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), True)), image(2, 3, 8, 8)
    with pytest.raises(RuntimeError, match='by a checkpoint: read the map outside of it'):
        gradients(make(), model, input)


@pytest.mark.parametrize('function', [F.relu, lambda x: F.relu6(6. * x), nn.ReLU(inplace=True)])
@pytest.mark.parametrize('make', [SplitLRP, lambda: SplitGrad(.3)])
def test_checkpoint_after_a_layer(function, make):
    block, input = Block(function), image(2, 3, 8, 8)
    model = network(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4).double(), block)
    expected, = gradients(make(), model, input)
    block.saves = True
    assert_close(gradients(make(), model, input)[0], expected, 1e-13)


@pytest.mark.parametrize('function, composite', [
    (nn.ReLU6(), SplitGrad()), (nn.Hardsigmoid(), SplitLRP()), (nn.Softshrink(.123), SplitGrad()),
    (torch.abs, SplitLRP()), (lambda x: F.hardtanh(x, -.789, .321), SplitGrad()),
    (nn.GELU(), SplitGrad(canonizers=[DetachedActivations()])),
    (nn.Hardswish(), SplitGrad(canonizers=[DetachedActivations()])),
])
def test_inference_mode(function, composite):
    model, input = network(Block(function)), image(2, 3, 8, 8)
    expected = model(input)
    with torch.inference_mode(), composite.context(model):
        assert torch.equal(model(input), expected)


@pytest.mark.parametrize('function, samples', [
    (lambda v, w: v + w, 1), (lambda v, w: w + v, 1), (lambda v, w: v.cumsum(0) + w, 4),
    (lambda v, w: F.batch_norm(v.transpose(0, 1), torch.zeros(4).double(), torch.ones(4).double(),
                               torch.arange(4.).double()).transpose(0, 1) + w, 4),
    (lambda v, w: F.conv2d(v.transpose(0, 1), torch.ones(4, 4, 1, 1).double()).transpose(0, 1) + w, 4),
])
def test_one_sum_where_samples_meet(function, samples):
    model, inputs = Two(function).double().eval(), (image(4, 4, 4, 4), image(samples, 4, 4, 4))
    for stream in ('g', '+g'):
        expected = gradients(SplitGrad(.3, stream), model, *inputs)
        found = gradients(SplitGrad(.3, stream, shared=True), model, *inputs)
        for each, other in zip(found, expected):
            assert_close(each, other, 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize('low, high', [(-1., .7), (-.7, .1), (.1, .2), (0., 6.)])
def test_bounds_that_are_rounded(dtype, low, high):
    layer = nn.Conv1d(1, 1, 1, bias=False)
    layer.weight.data.fill_(1.)
    model = nn.Sequential(layer, Block(lambda x: F.hardtanh(x, low, high)), nn.Flatten(), nn.Linear(64, 3, bias=False))
    model[3].weight.data.fill_(1.)
    model, input = model.to(dtype).eval(), torch.linspace(-2., 8., 64).view(1, 1, 64).to(dtype)
    leaf = input.clone().requires_grad_()
    expected, = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    assert torch.equal(2 * gradients(SplitGrad(.5), model, input)[0], expected)


@pytest.mark.parametrize('parameters', [
    {'stride': (3, 3), 'dilation': (2,), 'padding': (0, 1)}, {'stride': (2,), 'padding': [1]},
    {'stride': [2, 1], 'padding': (1,), 'dilation': (1, 2)}, {'padding': 'same', 'dilation': (2,)},
])
@pytest.mark.parametrize('name', ['conv2d', 'conv_transpose2d'])
def test_one_number_in_a_sequence_is_for_all_axes(name, parameters):
    if name == 'conv_transpose2d' and parameters['padding'] == 'same':
        parameters = {'dilation': (2,)}
    weight, function = image(4, 4, 3, 1), getattr(F, name)
    repeated = {
        key: tuple(value) * 2 if not isinstance(value, str) and len(value) == 1 else value
        for key, value in parameters.items()
    }
    found = []
    for given in (parameters, repeated):
        torch.manual_seed(0)
        block = nn.Sequential(Block(partial(function, weight=weight, **given)), nn.AdaptiveAvgPool2d(6))
        found += gradients(SplitGrad(.3, '+g'), network(block), image(2, 3, 8, 8))
    assert torch.equal(*found)


def test_rule_after_a_layer_and_a_relu_in_place():
    class Doubled(ShiftedSensitivity):
        def after(self, pair):
            return ruled(pair, lambda gradient, sum_gradient: (2 * gradient, sum_gradient))

    model, input, maps = network(), image(2, 3, 8, 8), []
    for model[1].inplace in (False, True):
        maps += gradients(SplitGrad(.3, layer_map=[((nn.Conv2d,), Doubled(.3))]), model, input)
    assert torch.equal(*maps)
