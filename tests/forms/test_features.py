'''Statistics as features, which carry relevance, and as divisors and scales, which are constants.'''
import warnings

import pytest
import torch
from helpers import assert_close, explain, gradient_of, random_image
from torch import nn
from torch.nn import functional as F

from zennit_dc import DetachedStatistics, SplitCAM, SplitGrad, SplitLRP


SHAPE = 2, 3, 8, 8
AXES = 2, 3
CENTERS = random_image(3, 4, seed=5).abs()


class Pooling(nn.Module):
    '''A network whose places are summed up by a statistic.'''
    def __init__(self, function, features=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(features, 3) if features else None
        self.exponent = nn.Parameter(torch.full((1,), 3.))
        self.exponents = nn.Parameter(torch.tensor([1.5, 2., 3., 4.5]).reshape(4, 1, 1))
        self.function, self.offset = function, .01  # where no derivative is infinite
        generator = torch.Generator().manual_seed(0)
        for name, parameter in self.named_parameters():
            if 'exponent' not in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) / 2
        self.double().eval()

    def forward(self, x):
        features = self.function(self, self.conv(x).relu() + self.offset)
        return features if self.head is None else self.head(features.flatten(1))

    def without_biases(self):
        '''A model that conserves relevance.'''
        for module in (self.conv, self.head):
            if module is not None:
                module.bias.data.zero_()
        self.offset = 0.
        return self


def detached():
    return [DetachedStatistics()]


def both(statistic):
    '''Means beside a statistic.'''
    return lambda m, h: torch.cat([h.mean(AXES), statistic(m, h)], 1)


def generalized_mean(h, exponent):
    return F.avg_pool2d(h.clamp(min=1e-6).pow(exponent), 6).pow(1. / exponent)


# statistics that are features, each with the number of features and whether constants take relevance
FEATURES = {
    'std': (lambda m, h: h.std(AXES), 4),
    'std of a dimension, biased': (lambda m, h: h.flatten(2).std(-1, False, True), 4),
    'std by keyword': (lambda m, h: torch.std(h, dim=AXES, correction=0), 4),
    'var': (lambda m, h: torch.var(h, dim=AXES), 4),
    'mean and std': (both(lambda m, h: h.std(AXES)), 8),
    'mean and variance': (both(lambda m, h: h.var(AXES)), 8),
    'std_mean': (lambda m, h: torch.cat(torch.std_mean(h, AXES), 1), 8),
    'var_mean': (lambda m, h: torch.cat(torch.var_mean(h, AXES, keepdim=True), 1), 8),
    'root of the variance': (lambda m, h: h.var(AXES).clamp(min=1e-8).pow(.5), 4),
    'norm': (lambda m, h: h.norm(dim=AXES), 4),
    'norm and mean': (both(lambda m, h: torch.linalg.vector_norm(h, dim=AXES)), 8),
    'Frobenius norm': (lambda m, h: torch.linalg.norm(h, 'fro', AXES), 4),
    'square of a norm': (lambda m, h: h.norm(dim=AXES) ** 2, 4),
    'norm with p=1': (lambda m, h: h.norm(1, AXES), 4),
    'norm with p=3': (lambda m, h: torch.linalg.vector_norm(h, 3, AXES), 4),
    'norm with p=inf': (lambda m, h: torch.norm(h, float('inf'), AXES), 4),
    'square root': (lambda m, h: h.sqrt().mean(AXES), 4),
    'roots of means beside these': (both(lambda m, h: torch.sqrt(h.mean(AXES))), 8),
    'GeM': (lambda m, h: generalized_mean(h, 3), 4),
    'GeM beside means': (both(lambda m, h: generalized_mean(h, 3).flatten(1)), 8),
    'GeM with a parameter': (lambda m, h: generalized_mean(h, m.exponent), 4),
    'GeM with parameters': (both(lambda m, h: generalized_mean(h, m.exponents).flatten(1)), 8),
    'log1p': (lambda m, h: torch.log1p(h.mean(AXES)), 4),
    'power 2.5': (lambda m, h: h.pow(2.5).mean(AXES), 4),
    'L2 pooling': (lambda m, h: F.lp_pool2d(h, 2, 6), 4),
    'L3 pooling of windows': (lambda m, h: nn.LPPool2d(3, 2, stride=1)(h).mean(AXES), 4),
    'std of chunks': (lambda m, h: torch.cat(h.std(AXES).chunk(2, 1)[::-1], 1), 4),
    'std in another shape': (lambda m, h: h.std(AXES, keepdim=True).view(-1, 4).relu(), 4),
    'std times mean': (lambda m, h: h.std(AXES) * h.mean(AXES), 4),
    'average of probabilities': (
        lambda m, h: (F.softmax(h.mean(AXES), 1) + F.softmax(h.amax(AXES), 1)) / 2, 0
    ),
    'one probability': (lambda m, h: torch.softmax(h.mean(AXES), 1)[:, 1:], 0),
}
# those in which a constant takes a part of the relevance
DISTANCES = {
    # and in which zero streams do, as an addition shares relevance evenly
    'std by hand': (lambda m, h: (h - h.mean(AXES, keepdim=True)).square().mean(AXES).sqrt(), 4),
    'signed square root': (
        lambda m, h: (torch.sign(h - .2) * torch.sqrt(torch.abs(h - .2) + 1e-5)).mean(AXES), 4
    ),
    'Euclidean distance': (lambda m, h: -(h.mean(AXES)[:, None] - CENTERS).pow(2).sum(-1).sqrt(), 0),
    'cdist': (lambda m, h: -torch.cdist(h.mean(AXES), CENTERS), 0),
    'cdist with p=1': (lambda m, h: -torch.cdist(h.mean(AXES), CENTERS, p=1.), 0),
    'pairwise_distance': (lambda m, h: -F.pairwise_distance(h.mean(AXES)[:, None], CENTERS[None]), 0),
    'module of distances': (lambda m, h: -nn.PairwiseDistance(1.5)(h.mean(AXES)[:, None], CENTERS[None]), 0),
    'distance of pairs': (lambda m, h: F.pairwise_distance(h[:, :, :3], h[:, :, 3:]).mean(2), 4),
    'kernel of distances': (lambda m, h: 1 / (1 + (h.mean(AXES)[:, None] - CENTERS).square().sum(-1)), 0),
    'reciprocal': (lambda m, h: h.mean(AXES).reciprocal(), 4),
    'power -1': (lambda m, h: (1 + h).pow(-1).mean(AXES), 4),
    'exponential': (lambda m, h: (-h.mean(AXES)).exp_(), 4),
    'expm1': (lambda m, h: torch.expm1(h.mean(AXES)), 4),
    'logarithm': (lambda m, h: torch.log(h.std(AXES) + .1), 4),
    'decibels': (lambda m, h: 10 * torch.log10(h.square().mean(AXES).clamp(min=1e-10)), 4),
    'log2': (lambda m, h: (h + 1).log2().mean(AXES), 4),
    'std in place': (lambda m, h: (h.std(AXES) + 0).clamp_(min=.01).add_(1), 4),
}
ALL = {**FEATURES, **DISTANCES}


@pytest.mark.parametrize('name', ALL)
def test_half_of_the_gradient(name):
    '''With a shift of one half the map is half of the model's own gradient, at the input and at a layer. explain()
    asserts that the output is bit-identical.'''
    model, image = Pooling(*ALL[name]), random_image(*SHAPE)
    assert_close(explain(SplitGrad(.5, canonizers=detached()), model, image), gradient_of(model, image) / 2, 1e-9)
    found = []
    handle = model.conv.register_forward_hook(lambda _, args, output: found.append(output))
    gradient, = torch.autograd.grad(model(image)[:, 2].sum(), found)
    handle.remove()
    composite = SplitCAM('conv', .5, canonizers=detached())
    explain(composite, model, image)
    expected = (gradient * found[0]).sum(1) / 2  # whose values are zero where ReLU is
    assert_close(composite.saliency, torch.where(found[0] > 0, gradient * found[0], 0.).sum(1) / 2, 1e-9)
    assert expected.isfinite().all()


@pytest.mark.parametrize('name', FEATURES)
def test_relevance_is_conserved(name):
    model, image = Pooling(*FEATURES[name]), random_image(*SHAPE).abs()
    model.without_biases().conv.weight.data.abs_()
    streams = ('positive', 'negative')
    total = sum(explain(SplitLRP(1e-14, s, canonizers=detached()), model, image, 0).sum((1, 2, 3)) for s in streams)
    torch.testing.assert_close(total, torch.ones(2).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize('name', ALL)
def test_samples_alone(name):
    model, image = Pooling(*ALL[name]), random_image(*SHAPE)
    loud = torch.cat([image[:1], 100 * image[1:]])
    for make in (lambda: SplitGrad(canonizers=detached()), lambda: SplitLRP(canonizers=detached())):
        map = explain(make(), model, image)
        assert map.isfinite().all()
        for others in (image[:1], loud):
            assert_close(explain(make(), model, others)[:1], map[:1], 1e-7)


@pytest.mark.parametrize('name', ['std', 'var', 'norm with p=3', 'GeM with a parameter', 'L2 pooling', 'cdist',
                                  'average of probabilities', 'kernel of distances'])
def test_maps_can_be_differentiated(name):
    '''Coefficients depend on the input in the derivative of a map.'''
    model, image = Pooling(*ALL[name]), random_image(1, *SHAPE[1:])[..., :6, :6].contiguous().requires_grad_()
    if 'pooling' in name or 'GeM' in name:
        image = random_image(1, *SHAPE[1:]).requires_grad_()

    def map_of(x, create_graph=True):
        with SplitGrad(.3, canonizers=detached()).context(model):
            return torch.autograd.grad(model(x)[:, 2].sum(), x, create_graph=create_graph)[0]

    direction = random_image(*image.shape, seed=7)
    actual, = torch.autograd.grad((map_of(image) * direction).sum(), image)
    step = 1e-6 * random_image(*image.shape, seed=8)
    with torch.no_grad():
        points = [(image + sign * step).detach().requires_grad_() for sign in (1, -1)]
    difference = [(map_of(point, False) * direction).sum().item() for point in points]
    expected = (difference[0] - difference[1]) / 2
    assert (actual * step).sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('name', ['mean and std', 'var', 'norm', 'GeM with a parameter', 'L2 pooling', 'cdist',
                                  'average of probabilities', 'std_mean'])
def test_other_dtypes(name, dtype):
    '''explain() asserts that the output is bit-identical.'''
    if name == 'cdist' and dtype is torch.bfloat16:
        pytest.skip('torch has no cdist in bfloat16')
    model = Pooling(*ALL[name]).to(dtype)
    if name == 'cdist':
        model.function = lambda m, h: -torch.cdist(h.mean(AXES), CENTERS.to(dtype))
    for make in (SplitGrad, SplitLRP):
        assert explain(make(canonizers=detached()), model, random_image(*SHAPE).to(dtype)).isfinite().all()


# divisors and scales

SCALES = {
    'division by std': (lambda h, c: h / (h.std(AXES, keepdim=True) + .1), lambda h, c: h / (c.std(
        AXES, keepdim=True) + .1)),
    'standardization': (
        lambda h, c: (h - h.mean(AXES, keepdim=True)) / h.var(AXES, keepdim=True).add(1e-5).sqrt(),
        lambda h, c: (h - h.mean(AXES, keepdim=True)) / c.var(AXES, keepdim=True).add(1e-5).sqrt()
    ),
    'standardization by var_mean': (
        lambda h, c: (lambda v, m: (h - m) * torch.rsqrt(v + 1e-5))(*torch.var_mean(h, AXES, keepdim=True)),
        lambda h, c: (h - h.mean(AXES, keepdim=True)) * torch.rsqrt(c.var(AXES, keepdim=True) + 1e-5)
    ),
    'weighted reciprocal': (
        lambda h, c: h * (CENTERS[0].reshape(4, 1, 1) / (h.norm(dim=AXES, keepdim=True) + 1)).expand_as(h),
        lambda h, c: h * CENTERS[0].reshape(4, 1, 1) / (c.norm(dim=AXES, keepdim=True) + 1)
    ),
    'unit vectors': (lambda h, c: F.normalize(h, dim=1), lambda h, c: h / c.norm(dim=1, keepdim=True)),
    'response normalization': (
        lambda h, c: h * (h.norm(dim=AXES, keepdim=True) / (h.norm(dim=AXES, keepdim=True).mean(1, True) + 1)),
        lambda h, c: h * (c.norm(dim=AXES, keepdim=True) / (c.norm(dim=AXES, keepdim=True).mean(1, True) + 1))
    ),
    'attention in place': (
        lambda h, c: torch.softmax(h.flatten(2).mT @ h.flatten(2), -1).mul_(2.) @ h.flatten(2).mT,
        lambda h, c: 2. * torch.softmax(c.flatten(2).mT @ c.flatten(2), -1) @ h.flatten(2).mT
    ),
    'attention whose heads are mixed': (
        lambda h, c: F.linear(torch.softmax(h.mT @ h, -1).movedim(1, -1), CENTERS[:2].mT @ CENTERS[:2]).movedim(
            -1, 1) @ h.mT,
        lambda h, c: F.linear(torch.softmax(c.mT @ c, -1).movedim(1, -1), CENTERS[:2].mT @ CENTERS[:2]).movedim(
            -1, 1) @ h.mT
    ),
    'attentive statistics': (
        lambda h, c: (torch.softmax(h.flatten(2), -1) * h.flatten(2)).sum(-1),
        lambda h, c: (torch.softmax(c.flatten(2), -1) * h.flatten(2)).sum(-1)
    ),
}


@pytest.mark.parametrize('name', SCALES)
def test_divisors_and_scales_are_constants(name):
    function, frozen = SCALES[name]
    features = 4 if name == 'attentive statistics' else 9
    model, image = Pooling(lambda m, h: function(h, h).flatten(1)[:, :9], features), random_image(*SHAPE)
    gradient = explain(SplitGrad(.5, canonizers=detached()), model, image)
    model.function = lambda m, h: frozen(h, h.detach()).flatten(1)[:, :9]
    assert_close(gradient, gradient_of(model, image) / 2, 1e-9)


def test_one_statistic_as_divisor_and_feature():
    '''Each use by itself.'''
    def function(h, scale, feature):
        return torch.cat([h.mean(AXES) / (scale + .1), feature], 1)

    model = Pooling(lambda m, h: (lambda deviation: function(h, deviation, deviation))(h.std(AXES)), 8)
    image = random_image(*SHAPE)
    gradient = explain(SplitGrad(.5, canonizers=detached()), model, image)
    model.function = lambda m, h: function(h, h.std(AXES).detach(), h.std(AXES))
    assert_close(gradient, gradient_of(model, image) / 2, 1e-9)


def test_what_changes_in_place_after_a_statistic():
    def function(m, h):
        h = h * 1
        root = h.sqrt()
        h.mul_(2.)
        return torch.cat([root.mean(AXES), h.mean(AXES)], 1)

    model, image = Pooling(function, 8), random_image(*SHAPE)
    assert_close(explain(SplitGrad(.5, canonizers=detached()), model, image), gradient_of(model, image) / 2, 1e-9)


def test_layer_whose_output_is_a_statistic():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.LPPool2d(2, 2), nn.Flatten(), nn.Linear(36, 3)).double()
    image, found = random_image(*SHAPE), []
    handle = model[2].register_forward_hook(lambda _, args, output: found.append(output))
    gradient, = torch.autograd.grad(model(image)[:, 2].sum(), found)
    handle.remove()
    composite = SplitGrad(.5, layer='2', canonizers=detached())
    explain(composite, model, image)
    assert_close(composite.saliency, gradient.mean(1) / 2, 1e-9)


@pytest.mark.parametrize('function, name', [
    (lambda m, h: torch.linalg.vector_norm(h, 0, AXES), 'p=0'),
    (lambda m, h: torch.linalg.vector_norm(h, float('-inf'), AXES), 'p=-inf'),
    (lambda m, h: torch.linalg.norm(h, 1, AXES), 'matrix norm with ord=1'),
    (lambda m, h: torch.lgamma(h.std(AXES)), 'lgamma'),
])
def test_features_without_a_form(function, name):
    '''An error names what has none, rather than to leave it out.'''
    with pytest.raises(NotImplementedError, match=name):
        explain(SplitGrad(canonizers=detached()), Pooling(function), random_image(*SHAPE))


def test_statistics_of_constants_have_no_slope():
    '''Of features that are zero, the gradient is zero, as torch's own of a norm is.'''
    model = Pooling(lambda m, h: torch.cat([h.std(AXES), h.norm(dim=AXES), h.mean(AXES).sqrt()], 1), 12)
    function = model.function
    model.function = lambda m, h: function(m, h * torch.tensor([1., 0., 1., 0.]).double().reshape(4, 1, 1))
    for make in (SplitGrad, SplitLRP):
        assert explain(make(canonizers=detached()), model, random_image(*SHAPE)).isfinite().all()


@pytest.mark.parametrize('name', ALL)
def test_auto(name):
    '''The choice of options is the one whose map is right, and nothing is left out.'''
    model, image = Pooling(*ALL[name]), random_image(*SHAPE)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        map = explain(SplitGrad(.5, canonizers='auto'), model, image)
    assert_close(map, gradient_of(model, image) / 2, 1e-9)
    assert not any('left out' in str(warning.message) for warning in seen)
