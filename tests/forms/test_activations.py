'''Piecewise-linear activations, replaced smooth ones, maxima and products of pairs.'''
import pytest
import torch
from helpers import assert_close, explain, gradient_of, random_image
from torch import nn
from torch.nn import functional as F

from zennit_dc import Scaling, SmoothReplacement, SplitCAM, SplitGrad, SplitLRP, SplitTensor
from zennit_dc.smooth import SMOOTH, interpolation
from zennit_dc.split import SplitForm

SLOPES = random_image(4, seed=8)
# each as ReLUs of the pair and weights, with which the paper's own split works
PIECEWISE_LINEAR = {
    'leaky_relu': (lambda x: F.leaky_relu(x, .2), lambda x: .2 * x + .8 * F.relu(x)),
    'leaky_relu of negative slope': (nn.LeakyReLU(-.5), lambda x: -.5 * x + 1.5 * F.relu(x)),
    'leaky_relu of large slope': (nn.LeakyReLU(3., inplace=True), lambda x: 3 * x - 2 * F.relu(x)),
    'prelu of one slope': (nn.PReLU(init=.25).double(), lambda x: .25 * x + .75 * F.relu(x)),
    'prelu': (
        lambda x: F.prelu(x, SLOPES), lambda x: SLOPES[:, None, None] * x + (1 - SLOPES)[:, None, None] * F.relu(x)
    ),
    'rrelu': (nn.RReLU(.1, .5).eval(), lambda x: .3 * x + .7 * F.relu(x)),
    'relu6': (nn.ReLU6(), lambda x: F.relu(x) - F.relu(x - 6)),
    'hardtanh': (nn.Hardtanh(-.5, 1.5), lambda x: F.relu(x + .5) - F.relu(x - 1.5) - .5),
    'clamp': (lambda x: x.clamp(-.5, 1.5), lambda x: F.relu(x + .5) - F.relu(x - 1.5) - .5),
    'clamp from below': (lambda x: torch.clamp(x, min=.5), lambda x: F.relu(x - .5) + .5),
    'clamp from above': (lambda x: x.clamp_max(.5), lambda x: .5 - F.relu(.5 - x)),
    'clamp in place': (lambda x: x.clone().clamp_(max=.5), lambda x: .5 - F.relu(.5 - x)),
    'hardsigmoid': (nn.Hardsigmoid(), lambda x: F.relu(x + 3) / 6 - F.relu(x - 3) / 6),
    'softshrink': (nn.Softshrink(.4), lambda x: F.relu(x - .4) - F.relu(-.4 - x)),
    'abs': (torch.abs, lambda x: F.relu(x) + F.relu(-x)),
}
SHAPE = (2, 4, 5, 5)


class Between(nn.Module):
    '''A function between two convolutions.'''
    def __init__(self, function):
        super().__init__()
        self.before, self.behind, self.function = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 3), function
        generator = torch.Generator().manual_seed(0)
        self.double().eval()
        for layer in (self.before, self.behind):
            for parameter in layer.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, x):
        return self.behind(self.function(self.before(x))).flatten(1)


def pair_of(shape=SHAPE, seed=1):
    return SplitTensor(3 * random_image(*shape, seed=seed), 9 + random_image(*shape, seed=seed + 1).abs())


@pytest.mark.parametrize('name', PIECEWISE_LINEAR)
def test_piecewise_linear_activations(name):
    function, literal = PIECEWISE_LINEAR[name]
    output, expected = function(pair_of()), literal(pair_of())
    assert torch.equal(output.difference, function(pair_of().difference))
    assert_close(output.difference, expected.difference, 1e-14)
    assert_close(output.stream_sum, expected.stream_sum, 1e-14)


@pytest.mark.parametrize('name', PIECEWISE_LINEAR)
def test_sensitivities_of_piecewise_linear_activations(name):
    function, literal = (Between(each) for each in PIECEWISE_LINEAR[name])
    image = random_image(*SHAPE)
    for make in (
        lambda: SplitGrad(.3), lambda: SplitGrad(0., '+g'), lambda: SplitCAM('before', .3, '-h', recentering=None),
        lambda: SplitGrad(.2, layer='before'),
    ):
        with make().context(literal):
            pixels = image.clone().requires_grad_()
            expected, = torch.autograd.grad(literal(pixels)[:, 2].sum(), pixels)
        # the gradient of torch's own hardsigmoid has 1 / 6 in float32
        assert_close(explain(make(), function, image), expected, 1e-6 if name == 'hardsigmoid' else 1e-10)
    assert torch.equal(explain(SplitGrad(.5), function, image), gradient_of(function, image) / 2)


@pytest.mark.parametrize('name', PIECEWISE_LINEAR)
def test_relevance_passes_activations(name):
    pixels = random_image(*SHAPE).requires_grad_()
    relevance = random_image(*SHAPE, seed=4)
    with SplitLRP(stream='positive').context(model := nn.Sequential(nn.Identity())):
        model[0].forward = PIECEWISE_LINEAR[name][0]
        attribution, = torch.autograd.grad(model(pixels), pixels, relevance)
    assert torch.equal(attribution, relevance)


@pytest.mark.parametrize('pooling', ['wta', 'convex'])
def test_maximum_and_minimum(pooling):
    form = SplitForm(pooling)
    pairs = [pair_of(seed=seed) for seed in (1, 5)]
    first, other = (SplitTensor(pair.difference, pair.stream_sum, form) for pair in pairs)
    larger = first.difference >= other.difference
    for function, wins in (
        (torch.maximum, larger), (torch.minimum, ~larger), (torch.max, larger), (torch.min, ~larger)
    ):
        output = function(first, other)
        assert torch.equal(output.difference, function(first.difference, other.difference))
        # equation 17 for two, and for the minimum with exchanged streams
        sign = 1 if function in (torch.maximum, torch.max) else -1
        loser = torch.where(
            wins, other.stream_sum - sign * other.difference, first.stream_sum - sign * first.difference
        )
        expected = torch.where(wins, first.stream_sum, other.stream_sum)
        assert_close(output.stream_sum, expected if pooling == 'wta' else expected + loser)
    x = first.difference
    assert torch.equal(torch.maximum(first, torch.zeros(5, 5).double()).difference, x.relu())
    values, places = torch.max(first, 1)
    assert torch.equal(values.difference, x.amax(1)) and torch.equal(places, x.argmax(1))
    assert torch.equal(first.min(dim=2, keepdim=True).values.difference, x.amin(2, keepdim=True))
    assert torch.equal(first.amin((2, 3)).difference, x.amin((2, 3)))


# products

PRODUCTS = {
    'elementwise': (SHAPE, SHAPE, lambda x, y: x * y),
    'gate': (SHAPE, (2, 4, 1, 1), lambda x, y: x.mul(y)),
    'matrices': ((2, 3, 4, 5), (2, 3, 5, 2), lambda x, y: x @ y),
    'torch.bmm': ((2, 4, 5), (2, 5, 3), torch.bmm),
    'einsum': ((2, 4, 5), (2, 5, 3), lambda x, y: torch.einsum('bij,bjk->bki', x, y)),
}


@pytest.mark.parametrize('name', PRODUCTS)
def test_equation_19(name):
    shape, other_shape, product = PRODUCTS[name]
    x, y = pair_of(shape), pair_of(other_shape, 5)
    output = product(x, y)
    assert torch.equal(output.difference, product(x.difference, y.difference))
    x_plus, x_minus, y_plus, y_minus = x.positive_stream, x.negative_stream, y.positive_stream, y.negative_stream
    assert_close(output.positive_stream, product(x_plus, y_plus) + product(x_minus, y_minus))
    assert_close(output.negative_stream, product(x_plus, y_minus) + product(x_minus, y_plus))


class Gated(nn.Module):
    '''Squeeze and excitation, a square, a product of matrices and Hardswish.'''
    def __init__(self, bias=True):
        super().__init__()
        self.conv, self.squeeze, self.excite, self.dense = (
            nn.Conv2d(2, 3, 2, bias=bias), nn.Conv2d(3, 2, 1, bias=bias), nn.Conv2d(2, 3, 1, bias=bias),
            nn.Linear(27, 3, bias=bias)
        )
        generator = torch.Generator().manual_seed(0)
        self.double().eval()
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = x * F.relu(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.dense((x @ x.mT + x ** 2).flatten(1))


def test_sensitivities_of_products_are_true_gradients():
    model, image = Gated(), random_image(2, 2, 4, 4)
    plus, minus = image.clamp(min=0).requires_grad_(), (-image).clamp(min=0).requires_grad_()
    output = model(SplitTensor(plus - minus, plus + minus))
    for stream, of in (('g', output.positive_stream), ('h', output.negative_stream)):
        deltas = torch.autograd.grad(of[:, 2].sum(), (plus, minus), retain_graph=True)
        for sign, delta in zip('+-', deltas):
            assert_close(explain(SplitGrad(0., sign + stream, recentering=None), model, image), delta)
    assert_close(explain(SplitGrad(.5), model, image), gradient_of(model, image) / 2)


def test_relevance_of_products():
    '''All monomials of equation 19 get their share, and each factor of them half of it.'''
    model, image = nn.Module(), random_image(2, 3, 2)
    model.forward = lambda x: x[:, 0] * x[:, 1] * 2.
    for stream in ('positive', 'negative'):
        pixels = image.clone().requires_grad_()
        with SplitLRP(1e-12, stream, recentering=None).context(model):
            relevance, = torch.autograd.grad(model(pixels), pixels, torch.ones(2, 2).double())
        # all of R+ is in x+ y+ + x- y-, of which one is not zero where the product is positive
        positive = image[:, 0] * image[:, 1] > 0
        expected = torch.where(positive, .5, 0.)
        for factor in (0, 1):
            own = image[:, factor] > 0 if stream == 'positive' else image[:, factor] < 0
            torch.testing.assert_close(relevance[:, factor], (expected * own).double())
    total = sum(explain(SplitLRP(1e-12, stream), Gated(bias=False), random_image(2, 2, 4, 4)).sum((1, 2, 3))
                for stream in ('positive', 'negative'))
    torch.testing.assert_close(total, torch.ones(2).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize('composite', [
    SplitGrad(.3), SplitGrad(.3, '+g', recentering=Scaling(.1, 1.)), SplitCAM('conv', .3, '+g'), SplitLRP(.1),
    SplitLRP(.1, 'positive', 'conv', recentering=Scaling(.1, 1.)),
])
def test_maps_with_products_can_be_differentiated(composite):
    model, image = Gated(), random_image(1, 2, 4, 4).requires_grad_()
    seed = random_image(1, 3, seed=9).requires_grad_()
    with composite.context(model):
        assert torch.autograd.gradgradcheck(model, image, seed, atol=1e-5, rtol=1e-5)


def test_hardswish_is_exact():
    model, image = Between(nn.Hardswish()), 3 * random_image(*SHAPE)
    # the gradient of torch's own hardswish and hardsigmoid has 1 / 6 in float32
    assert_close(explain(SplitGrad(.5), model, image), gradient_of(model, image) / 2, 1e-6)
    pair = pair_of()
    expected = pair * F.hardsigmoid(pair)
    assert_close(F.hardswish(pair).stream_sum, expected.stream_sum)


# replaced activations

@pytest.mark.parametrize('name', SMOOTH)
def test_interpolation(name):
    places = torch.linspace(-150, 150, 300001, dtype=torch.float64)
    exact = SMOOTH[name][0](places)
    knots = []
    for tolerance in (.1, .01, .001):
        function = interpolation(name, tolerance, ())
        # the grid of knots is finite
        assert (function(places) - exact).abs().max() <= tolerance * 1.001
        assert (function.hinge_slopes.diff() >= -1e-12).all()
        knots.append(len(function.knots))
    assert knots[0] < knots[1] < knots[2] < 100


def test_interpolation_by_parameters():
    places = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    for name, parameters in (
        ('softplus', {'beta': .5}), ('gelu', {'approximate': 'tanh'}), ('elu', {'alpha': 2.}), ('celu', {'alpha': .5}),
    ):
        function = interpolation(name, .01, tuple(parameters.items()))
        assert (function(places) - getattr(F, name)(places, **parameters)).abs().max() <= .01001


@pytest.mark.parametrize('activation', [
    nn.ELU(.7, inplace=True), nn.SELU(), nn.CELU(), nn.SiLU(inplace=True), nn.GELU(), nn.GELU('tanh'), nn.Mish(),
    nn.Softplus(2.), nn.Sigmoid(), nn.Tanh(), nn.LogSigmoid(), torch.tanh, F.silu,
])
def test_smooth_replacement(activation):
    model, image = Between(activation), random_image(*SHAPE)
    expected = model(image).detach()
    for make in (SplitGrad, SplitLRP, lambda **kwargs: SplitCAM('before', stream='+g', **kwargs)):
        deviations = []
        for tolerance in (.1, .001):
            replacement, pixels = SmoothReplacement(tolerance), image.clone().requires_grad_()
            with make(canonizers=[replacement]).context(model):
                output = model(pixels)
                attribution, = torch.autograd.grad(output[:, 2].sum(), pixels)
            assert attribution.abs().max() > 0
            assert replacement.deviation == (output - expected).abs().max()
            deviations.append(replacement.deviation)
        # an error of the activation grows by the absolute row sums of the last layer
        assert 0 < deviations[1] <= .001001 * model.behind.weight.abs().sum((1, 2, 3)).max()
        assert deviations[1] < deviations[0]
    with SplitGrad().context(model), pytest.raises(NotImplementedError, match='SmoothReplacement'):
        model(image)


def test_replaced_streams_are_convex_and_monotone():
    model = Between(nn.GELU()).eval()
    form = SplitForm('convex', root=model)
    applied, = SmoothReplacement().apply(model)

    def streams(plus, minus):
        output = model(SplitTensor(plus - minus, plus + minus, form))
        return output.positive_stream, output.negative_stream

    one, two = ([random_image(*SHAPE, seed=seed) for seed in seeds] for seeds in ((1, 2), (3, 4)))
    middle = [(a + b) / 2 for a, b in zip(one, two)]
    for between, first, second in zip(streams(*middle), streams(*one), streams(*two)):
        assert (between <= (first + second) / 2 + 1e-10).all()
    above = [a + b.abs() for a, b in zip(one, two)]
    for low, high in zip(streams(*one), streams(*above)):
        assert (low <= high + 1e-10).all()
    applied.remove()
    with pytest.raises(NotImplementedError, match='SmoothReplacement'):
        F.gelu(SplitTensor.of(one[0]))


def test_bad_tolerance():
    for tolerance in (0., -1., 1e-7, float('inf')):
        with pytest.raises(ValueError, match='tolerance'):
            SmoothReplacement(tolerance)


def test_one_replacement_for_two_models_at_once():
    replacement, models, image = SmoothReplacement(), [Between(nn.GELU()) for _ in '12'], random_image(*SHAPE)
    with SplitGrad(canonizers=[replacement]).context(models[0]):
        with SplitGrad(canonizers=[replacement]).context(models[1]):
            models[1](image)
        models[0](image)
    for model in models:
        with SplitGrad().context(model), pytest.raises(NotImplementedError, match='SmoothReplacement'):
            model(image)
    twice = SplitGrad(canonizers=[replacement, SmoothReplacement()])
    with pytest.raises(RuntimeError, match='already'), twice.context(models[0]):
        pass
    assert SmoothReplacement.of(models[0]) is None
