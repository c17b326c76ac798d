'''Additions and products, of pairs and with constants.'''
import pytest
import torch
from helpers import alive, assert_close, explain, gradient_of, random_image
from jacobians import IMAGE, require_moved_relevance, require_relevance, require_sensitivities, require_streams
from small_models import SHAPE, pair_of
from torch import nn
from torch.nn import functional as F

from zennit_dc import Scaling, SplitCAM, SplitGrad, SplitLRP, SplitTensor


CONSTANT = random_image(*IMAGE, seed=12)
ARITHMETIC = {
    'add number': (IMAGE, lambda x: x + 3),
    'number minus': (IMAGE, lambda x: 2. - x),
    'minus number': (IMAGE, lambda x: x - 1.5),
    'add constant': (IMAGE, lambda x: CONSTANT + x),
    'minus constant': (IMAGE, lambda x: x - CONSTANT),
    'constant minus': (IMAGE, lambda x: CONSTANT - x),
    'add with alpha': (IMAGE, lambda x: torch.add(x, CONSTANT, alpha=-2)),
    'add with alpha to a constant': (IMAGE, lambda x: torch.add(CONSTANT, x, alpha=-2)),
    'times number': (IMAGE, lambda x: -2 * x),
    'times constant': (IMAGE, lambda x: x * CONSTANT),
    'over constant': (IMAGE, lambda x: x / CONSTANT),
    'negative': (IMAGE, lambda x: -x),
    'sum of pairs': (IMAGE, lambda x: x[:, :2] + x[:, 2:]),
    'difference of pairs': (IMAGE, lambda x: torch.sub(x[:, :2], x[:, 2:], alpha=3)),
    'python sum': (IMAGE, lambda x: sum([x[:, :2], x[:, 2:]])),
    'scaled input': (IMAGE, lambda x: torch.unsqueeze(x[:, 0], 1) * (.229 / .5) + (.485 - .5) / .5),
    'in-place addition': (IMAGE, lambda x: x.clone().add_(CONSTANT)),
    'addcmul': (IMAGE, lambda x: torch.addcmul(CONSTANT, x, CONSTANT[:1], value=-2)),
    'addcmul of a constant': (IMAGE, lambda x: x.clone().addcmul_(CONSTANT, CONSTANT)),
    'addcdiv': (IMAGE, lambda x: torch.addcdiv(CONSTANT, x, CONSTANT[:1])),
    'lerp': (IMAGE, lambda x: torch.lerp(x, CONSTANT, .3)),
    'lerp of pairs': (IMAGE, lambda x: x[:, :2].lerp(x[:, 2:], CONSTANT[:, :2])),
}
# additions share evenly, a negative exchanges the streams, and more than one layer has more than one denominator
MORE_THAN_A_LAYER = ('python sum', 'sum of pairs', 'difference of pairs', 'negative', 'scaled input', 'lerp of pairs',
                     'addcmul', 'addcdiv', 'lerp')


@pytest.mark.parametrize('name', ARITHMETIC)
def test_streams(name):
    require_streams(*ARITHMETIC[name])


@pytest.mark.parametrize('name', ARITHMETIC)
def test_sensitivities(name):
    require_sensitivities(*ARITHMETIC[name])


@pytest.mark.parametrize('name', [name for name in ARITHMETIC if name not in MORE_THAN_A_LAYER])
def test_relevance(name):
    require_relevance(*ARITHMETIC[name])


def test_relevance_of_a_negative():
    require_moved_relevance(ARITHMETIC['negative'][1])


@pytest.mark.parametrize('stream', ['positive', 'negative'])
def test_relevance_is_shared_evenly_at_additions(stream):
    class Branches(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x[:, :2] + x[:, 2:4], x[:, 4:6] - x[:, 6:]], 1)

    image = torch.rand(1, 8).requires_grad_()
    with SplitLRP(stream=stream).context(model := Branches()):
        attribution, = torch.autograd.grad(model(image), image, torch.tensor([[3., -5., 7., 2.]]))
    # what is subtracted has its streams exchanged
    expected = [1.5, -2.5, 1.5, -2.5, 3.5, 1., 0., 0.] if stream == 'positive' else [0.] * 6 + [3.5, 1.]
    assert torch.equal(attribution, torch.tensor([expected]))


def test_constants_of_other_dtypes():
    pair = SplitTensor.of(random_image(2, 3))
    numbers = torch.tensor([1, 200, 3], dtype=torch.uint8)
    assert torch.equal((pair - numbers).difference, pair.difference - numbers)
    assert_close((pair - numbers).stream_sum, pair.stream_sum + numbers)
    assert torch.equal((pair + (numbers > 2)).difference, pair.difference + (numbers > 2))
    constant = torch.ones(2, 3)
    assert constant.type_as(pair).dtype == torch.float64 and constant.to(pair).dtype == torch.float64
    assert constant.reshape_as(pair).shape == (2, 3) and constant[:1].expand_as(pair).shape == (2, 3)


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
    model = Gated(bias=False)  # whose gates may all be shut
    total = sum(explain(SplitLRP(1e-12, stream), model, alive(model, 2, 2, 4, 4)).sum((1, 2, 3))
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
        assert torch.autograd.gradgradcheck(model, image, seed, atol=1e-5, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize('function, expected', [
    (lambda x: torch.addcmul(x[:, 0], x[:, 1], x[:, 2], value=-2), lambda x: x[:, 0] - 2 * x[:, 1] * x[:, 2]),
    (lambda x: torch.lerp(x[:, 0], x[:, 1], x[:, 2]), lambda x: x[:, 0] * (1 - x[:, 2]) + x[:, 1] * x[:, 2]),
    (lambda x: torch.baddbmm(x, x, x.mT, beta=.5, alpha=-2), lambda x: x / 2 - 2 * (x @ x.mT)),
    (lambda x: torch.addmm(x[0], x[0], x[1], alpha=3), lambda x: x[0] + 3 * (x[0] @ x[1])),
])
def test_several_steps_at_once(function, expected):
    pair = pair_of((2, 3, 3))
    assert torch.equal(function(pair).difference, function(pair.difference))
    assert_close(function(pair).stream_sum, expected(pair).stream_sum)


@pytest.mark.parametrize('exponent', [1, 2., 3, 5])
def test_powers_are_products(exponent):
    pair = pair_of()
    output = pair ** exponent
    assert torch.equal(output.difference, pair.difference ** exponent)
    assert_close(output.stream_sum, pair.stream_sum ** exponent)
    with pytest.raises(NotImplementedError, match='pow.*exponents'):
        pair ** 1.5


MASK = torch.tensor([[True, False, True, False, True, True]] * 3).repeat(2, 1)


@pytest.mark.parametrize('function', [
    lambda x: torch.where(MASK, x, -2 * x), lambda x: torch.where(MASK, x, 3.), lambda x: x.where(MASK, -x),
    lambda x: torch.where(MASK, torch.full((), -2.).double(), x), lambda x: x.masked_fill(MASK, -1.5),
    lambda x: x.clone().masked_fill_(~MASK, 2.),
])
def test_choices_by_constant_masks(function):
    require_streams(IMAGE, function)
    require_sensitivities(IMAGE, function)


def test_choices_by_comparisons_are_refused():
    x = 2 * SplitTensor.of(random_image(2, 3))
    for function in (lambda: torch.where(x > 0, x, 0 * x), lambda: x.masked_fill(x < 0, 0.)):
        with pytest.raises(NotImplementedError, match='comparison'):
            function()
