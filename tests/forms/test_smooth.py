'''Smooth activations, replaced by interpolations, and hardswish.'''
import pytest
import torch
from helpers import assert_close, explain, gradient_of, random_image
from small_models import SHAPE, Between, pair_of
from torch import nn
from torch.nn import functional as F

from zennit_dc import SmoothReplacement, SplitCAM, SplitGrad, SplitLRP, SplitTensor
from zennit_dc.core.pair import Pass, Settings
from zennit_dc.core.table import OVERLAYS
from zennit_dc.evaluation.deviation import output_deviation
from zennit_dc.forms.smooth import SMOOTH, interpolation


def test_hardswish_is_exact():
    model, image = Between(nn.Hardswish()), 3 * random_image(*SHAPE)
    # the gradient of torch's own hardswish and hardsigmoid has 1 / 6 in float32
    assert_close(explain(SplitGrad(.5), model, image), gradient_of(model, image) / 2, 1e-6)
    pair = pair_of()
    expected = pair * F.hardsigmoid(pair)
    assert_close(F.hardswish(pair).stream_sum, expected.stream_sum)


@pytest.mark.parametrize('name', SMOOTH)
def test_interpolation(name):
    places = torch.linspace(-150, 150, 300001, dtype=torch.float64)
    exact = SMOOTH[name][0](places)
    knots = []
    for tolerance in (.1, .01, .001):
        function = interpolation(name, tolerance, ())
        # the grid of knots is finite
        assert (function(places) - exact).abs().max() <= tolerance * 1.001
        assert (function.hinges[0].diff() >= -1e-12).all()
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
            deviations.append(output_deviation(model, image, canonizers=[replacement]))
            assert deviations[-1] == (output - expected).abs().max()
        # an error of the activation grows by the absolute row sums of the last layer
        assert 0 < deviations[1] <= .001001 * model.behind.weight.abs().sum((1, 2, 3)).max()
        assert deviations[1] < deviations[0]
    with SplitGrad(canonizers=None).context(model), pytest.raises(NotImplementedError, match='SmoothReplacement'):
        model(image)


def test_replaced_streams_are_convex_and_monotone():
    model = Between(nn.GELU()).eval()
    applied, = SmoothReplacement().apply(model)
    form = Pass(Settings('convex', root=model))

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
        with SplitGrad(canonizers=None).context(model), pytest.raises(NotImplementedError, match='SmoothReplacement'):
            model(image)
    twice = SplitGrad(canonizers=[replacement, SmoothReplacement()])
    with pytest.raises(RuntimeError, match='already'), twice.context(models[0]):
        pass
    assert not any(OVERLAYS.get(model) for model in models)
