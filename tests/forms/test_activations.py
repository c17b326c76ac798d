'''ReLU, and the other piecewise-linear activations.'''
import pytest
import torch
from helpers import assert_close, explain, gradient_of, gradients, random_image
from small_models import SHAPE, Between, Block, pair_of
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.stateless import _reparametrize_module

from zennit_dc import SplitCAM, SplitGrad, SplitLRP, SplitTensor


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
    'hardtanh of one value': (lambda x: F.hardtanh(x, .5, .5), lambda x: F.relu(x - .5) - F.relu(x - .5) + .5),
    'clamp': (lambda x: x.clamp(-.5, 1.5), lambda x: F.relu(x + .5) - F.relu(x - 1.5) - .5),
    'clamp from below': (lambda x: torch.clamp(x, min=.5), lambda x: F.relu(x - .5) + .5),
    'clamp from above': (lambda x: x.clamp_max(.5), lambda x: .5 - F.relu(.5 - x)),
    'clamp in place': (lambda x: x.clone().clamp_(max=.5), lambda x: .5 - F.relu(.5 - x)),
    'hardsigmoid': (nn.Hardsigmoid(), lambda x: F.relu(x + 3) / 6 - F.relu(x - 3) / 6),
    'threshold': (nn.Threshold(.3, .3), lambda x: F.relu(x - .3) + .3),
    'threshold in place': (lambda x: F.threshold(x.clone(), 0., 0., inplace=True), F.relu),
    'softshrink': (nn.Softshrink(.4), lambda x: F.relu(x - .4) - F.relu(-.4 - x)),
    'abs': (torch.abs, lambda x: F.relu(x) + F.relu(-x)),
}


@pytest.mark.parametrize('function', [F.relu, torch.relu, nn.ReLU(), nn.ReLU(inplace=True), torch.Tensor.relu])
def test_relu(function):
    x, total = random_image(3, 4), random_image(3, 4, seed=2).abs() + 3
    x[0, 0] = 0.
    pair = SplitTensor(x.clone().requires_grad_(), total.clone().requires_grad_())
    difference, stream_sum = pair.difference, pair.stream_sum
    output = function(pair)
    assert torch.equal(output.difference, x.relu())
    assert torch.equal(output.positive_stream, torch.maximum((total + x) / 2, (total - x) / 2))
    d_seed, s_seed = random_image(3, 4, seed=3), random_image(3, 4, seed=4)
    gradients = torch.autograd.grad(
        (output.difference, output.stream_sum), (difference, stream_sum), (d_seed, s_seed)
    )
    # equation 48, but that zero counts as negative, as in torch's own gradient
    assert torch.equal(gradients[0], torch.where(x > 0, d_seed, -s_seed))
    assert torch.equal(gradients[1], s_seed)


@pytest.mark.parametrize('name', PIECEWISE_LINEAR)
def test_piecewise_linear_activations(name):
    function, literal = PIECEWISE_LINEAR[name]
    output, expected = function(pair_of()), literal(pair_of())
    assert torch.equal(output.difference, function(pair_of().difference))
    assert_close(output.difference, expected.difference, 1e-12)
    assert_close(output.stream_sum, expected.stream_sum, 1e-12)


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
        assert_close(explain(make(), function, image), expected, 1e-10)
    # the gradient of torch's own hardsigmoid has 1 / 6 in float32
    error = explain(SplitGrad(.5), function, image) - gradient_of(function, image) / 2
    assert error.abs().max() <= (1e-6 if name == 'hardsigmoid' else 0.)


@pytest.mark.parametrize('name', PIECEWISE_LINEAR)
def test_relevance_passes_activations(name):
    pixels = random_image(*SHAPE).requires_grad_()
    relevance = random_image(*SHAPE, seed=4)
    with SplitLRP(stream='positive').context(model := nn.Sequential(nn.Identity())):
        model[0].forward = PIECEWISE_LINEAR[name][0]
        attribution, = torch.autograd.grad(model(pixels), pixels, relevance)
    assert torch.equal(attribution, relevance)


def test_kinks_have_the_derivatives_of_torch():
    '''So that half of the gradient is half of torch's own also where pre-activations are zero, as on black pixels.'''
    class Kinks(nn.Module):
        def __init__(self, function):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last, self.function = nn.Linear(4, 12, bias=False), nn.LazyLinear(3), function
            self.double()

        def forward(self, x):
            return self.last(self.function(self.first(x)))

    image = random_image(3, 4)
    image[0], image[1, 1:] = 0., 0.
    for function in (
        F.relu, torch.abs, F.leaky_relu, F.relu6, lambda x: F.relu6(x + 6.), lambda x: F.hardtanh(x - 1.),
        lambda x: F.hardtanh(x + 1.), lambda x: (x + 1.).clamp(-1., 1.), lambda x: F.softshrink(x - .5),
        lambda x: F.prelu(x, torch.tensor(.3).double()), F.hardtanh,
        lambda x: x.clamp(0., 1.), lambda x: x.clamp_min(0.), lambda x: F.softshrink(x, 0.),
        lambda x: F.threshold(x, 0., 0.),
        lambda x: x.unflatten(1, (4, 3)).amax(1), lambda x: x.unflatten(1, (4, 3)).max(1)[0],
        lambda x: torch.maximum(x, 2 * x), lambda x: torch.minimum(x, x.abs()), lambda x: x.amin(1, keepdim=True),
        lambda x: F.max_pool1d(x[:, None], 3)[:, 0], lambda x: torch.maximum(x, torch.zeros(())),
        lambda x: F.relu(F.relu(x)),
    ):
        model = Kinks(function)
        with torch.no_grad():
            model(image)
        for stream, sign in (('g', .5), ('h', -.5)):
            # sums of some ten products in another order
            assert_close(
                explain(SplitGrad(.5, stream), model, image), sign * gradient_of(model, image), 1e-14
            )


@pytest.mark.parametrize('make', [lambda: SplitLRP(.1), lambda: SplitGrad(.3), lambda: SplitCAM('before', .3, '+g')])
def test_maps_can_be_differentiated_by_a_slope(make):
    model, image = Between(nn.PReLU(4)).double(), random_image(*SHAPE).requires_grad_()

    def total(slope):
        with make().context(model), _reparametrize_module(model, {'function.weight': slope}):
            attribution, = torch.autograd.grad(model(image)[:, 2].sum(), image, create_graph=True)
        return (attribution * random_image(*SHAPE, seed=7)).sum()

    slope = random_image(4, seed=3).abs().requires_grad_()
    assert torch.autograd.gradcheck(total, slope, atol=1e-6, rtol=1e-6, fast_mode=True)
    with torch.no_grad():  # at zero, where the gradient of torch's own has another one
        image[0], model.before.bias[:] = 0., 0.
    assert torch.autograd.gradcheck(total, slope, atol=1e-6, rtol=1e-6, fast_mode=True)


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
