'''Smooth activations as multiplications by constants, and gates as constant factors.'''
import functools

import pytest
import torch
import torchvision
from helpers import assert_close, explain, random_image
from small_models import SHAPE, Between
from torch import nn
from torch.nn import functional as F

from zennit_dc import DetachedActivations, SplitCAM, SplitGrad, SplitLRP, SplitTensor
from zennit_dc.core.pair import Pass, Settings
from zennit_dc.forms.detached import FUNCTIONS, at_zero


ACTIVATIONS = [
    nn.ELU(.7, inplace=True), nn.SELU(), nn.CELU(2.), nn.SiLU(inplace=True), nn.GELU(), nn.GELU('tanh'), nn.Mish(),
    nn.Softplus(2.), nn.Sigmoid(), nn.Tanh(), nn.LogSigmoid(), nn.Tanhshrink(), nn.Hardswish(), nn.Hardsigmoid(),
    torch.tanh, F.silu, torch.special.expit,
]


def detached():
    return [DetachedActivations()]


class Frozen(nn.Module):
    '''An activation as a multiplication by its ratio to the input, which autograd does not see.'''
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        start = self.function(torch.zeros((), dtype=x.dtype))
        return start + x * ((self.function(x.detach().clone()) - start) / x).detach()


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_activations(activation):
    '''Half of the gradient with constant ratios, whatever alpha is. explain() asserts that the output is the same.'''
    model, image = Between(activation), random_image(*SHAPE)
    gradient = explain(SplitGrad(canonizers=detached()), model, image)
    for make in (SplitLRP, lambda **kwargs: SplitCAM('before', stream='+g', **kwargs)):
        assert explain(make(canonizers=detached()), model, image).abs().max() > 0
    frozen, pixels = Between(Frozen(activation)), image.clone().requires_grad_()
    expected, = torch.autograd.grad(frozen(pixels)[:, 2].sum(), pixels)
    assert_close(gradient, expected / 2, 1e-6)
    assert_close(explain(SplitGrad(.1, canonizers=detached()), model, image), expected / 2, 1e-6)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_streams(name):
    '''The sum is the ratio times the sum, also where the input is zero, tiny or large, and no less than the output.'''
    model = nn.Identity()
    option, = DetachedActivations().apply(model)
    for dtype in (torch.float32, torch.float64):
        places = torch.tensor([-80., -5., -1e-3, -1e-5, -1e-30, 0., 1e-30, 1e-5, 1e-3, 5., 80.], dtype=dtype)
        total = 2 * places.abs() + 1
        output = getattr(F, name, None) or getattr(torch, name)
        output = output(SplitTensor(places, total, Pass(Settings(root=model))))
        exact, (start, slope) = FUNCTIONS[name](places), at_zero(name, ())
        assert torch.equal(output.difference, exact)
        ratio = (output.stream_sum - abs(start)) / total
        near = places.abs() <= (1e-5 if start else 0.)
        expected = torch.where(near, slope, (exact - start) / torch.where(near, 1., places))
        torch.testing.assert_close(ratio, expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-5)
        assert (output.stream_sum >= output.difference.abs() - 1e-6).all() and (ratio >= -1e-6).all()
    option.remove()


class Gated(nn.Module):
    '''Squeeze and excitation, with gates that reach the product in some way.'''
    def __init__(self, reach, image=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.gate, self.reach, self.constant = nn.Conv2d(4, 4, 3), nn.Linear(4, 4), reach, None
        self.double().eval()
        self.constant = None if image is None else self.gate_of(F.relu(self.conv(image))).detach()

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.reach(x, self.gate_of(x) if self.constant is None else self.constant).flatten(1)

    def gate_of(self, x):
        return torch.sigmoid(self.gate(x.mean((2, 3))))


@pytest.mark.parametrize('reach', [
    lambda x, gate: x * gate[:, :, None, None], lambda x, gate: gate.view(*gate.shape, 1, 1) * x,
    lambda x, gate: x.mul_(gate.unsqueeze(-1).unsqueeze(-1).expand_as(x)),
    lambda x, gate: gate.chunk(1, 1)[0].reshape(-1, 4, 1, 1) * x,
    lambda x, gate: (1 - gate)[:, :, None, None] * x, lambda x, gate: x * torch.rsub(gate, 1.)[:, :, None, None],
])
def test_gates_are_constants(reach):
    image = random_image(*SHAPE)
    for make in (SplitGrad, SplitLRP, lambda **kwargs: SplitGrad(.1, '+g', **kwargs)):
        map = explain(make(canonizers=detached()), Gated(reach), image)
        assert_close(map, explain(make(), Gated(reach, image), image))


def test_maps_can_be_differentiated():
    model, image = Between(nn.SiLU()), random_image(1, *SHAPE[1:]).requires_grad_()

    def map_of(x, create_graph=True):
        with SplitGrad(.3, canonizers=detached()).context(model):
            return torch.autograd.grad(model(x)[:, 2].sum(), x, create_graph=create_graph)[0]

    assert_close(map_of(image).detach(), map_of(image, False), 1e-12)
    assert torch.autograd.gradcheck(map_of, image, atol=1e-5, rtol=1e-4, fast_mode=True)


def test_deep_network_with_squeeze_and_excitation():
    torch.manual_seed(0)
    model = torchvision.models.efficientnet_b0(weights=None, num_classes=10).eval()
    image = random_image(2, 3, 32, 32, dtype=torch.float32)
    # whose activations vanish with the depth, as its weights are random
    small = functools.partial(SplitLRP, 1e-25)
    for make in (SplitGrad, small, lambda **kwargs: SplitCAM('features.6', **kwargs)):
        assert explain(make(canonizers=detached()), model, image).abs().amax((1, 2, 3)).gt(0).all()


def test_gated_linear_unit_in_bfloat16():
    '''Which torch rounds once. explain() asserts that the output is bit-identical.'''
    model = nn.GLU(-1)
    assert explain(SplitGrad(canonizers=[DetachedActivations()]), model, random_image(3, 8, dtype=torch.bfloat16)).any()
