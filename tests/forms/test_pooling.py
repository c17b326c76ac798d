'''Max-pooling and maxima.'''
import pytest
import torch
from helpers import assert_close, explain, random_image
from small_models import Calling, pair_of
from torch import nn
from torch.nn import functional as F

from zennit_dc import SplitGrad, SplitLRP, SplitTensor
from zennit_dc.core.pair import Pass, Settings


POOLING = {
    'max_pool1d': ((2, 3, 9), nn.MaxPool1d(3, 2, 1)),
    'max_pool1d dilated': ((2, 3, 9), nn.MaxPool1d(3, 1, 1, dilation=2, ceil_mode=True)),
    'max_pool2d': ((2, 3, 9, 8), nn.MaxPool2d(2)),
    'max_pool2d padded': ((2, 3, 9, 8), nn.MaxPool2d(3, 2, 1)),
    'max_pool2d ceil_mode': ((2, 3, 10, 8), nn.MaxPool2d(3, 2, ceil_mode=True)),
    'max_pool2d ceil_mode padded': ((2, 3, 10, 9), nn.MaxPool2d((3, 2), (2, 3), (1, 1), ceil_mode=True)),
    'max_pool2d overlapping': ((2, 3, 9, 8), nn.MaxPool2d(3, 1, 1)),
    'max_pool2d apart': ((2, 3, 9, 8), nn.MaxPool2d(2, 3)),
    'max_pool2d dilated': ((2, 3, 9, 8), nn.MaxPool2d(2, 2, dilation=(2, 3))),
    'max_pool3d': ((2, 3, 4, 5, 6), nn.MaxPool3d(2, 2, 1)),
    'adaptive_max_pool1d': ((2, 3, 9), nn.AdaptiveMaxPool1d(4)),
    'adaptive_max_pool2d': ((2, 3, 9, 8), nn.AdaptiveMaxPool2d((4, 3))),
    'adaptive_max_pool2d global': ((2, 3, 9, 8), nn.AdaptiveMaxPool2d(1)),
    'adaptive_max_pool3d': ((2, 3, 4, 5, 6), nn.AdaptiveMaxPool3d((2, None, 4))),
    'amax': ((2, 3, 9, 8), lambda x: x.amax((2, 3))),
    'torch.amax': ((2, 3, 9, 8), lambda x: torch.amax(x, -1, keepdim=True)),
    'with indices': ((2, 3, 9, 8), lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
}


@pytest.mark.parametrize('name', POOLING)
def test_max_pooling(name):
    '''Windows are found by the pooling itself: an entry is in the windows that it wins where it is raised.'''
    shape, pooling = POOLING[name]
    x, total = random_image(*shape), random_image(*shape, seed=5).abs() + 3
    outputs = {
        kind: pooling(SplitTensor(x, total, Pass(Settings(kind)))) for kind in ('wta', 'convex')
    }
    expected = pooling(x)
    winner = torch.autograd.functional.jacobian(pooling, x).reshape(expected.numel(), -1)
    assert torch.equal(winner.sum(1), torch.ones(len(winner), dtype=winner.dtype))
    inside = torch.zeros_like(winner)
    for index in range(x.numel()):
        raised = x.clone()
        raised.view(-1)[index] += 100.
        inside[:, index] = (pooling(raised) != expected).flatten()
    plus, minus = (total + x).flatten() / 2, (total - x).flatten() / 2
    # equation 17, window by window
    candidates = plus + (inside @ minus)[:, None] - inside * minus
    convex_plus = torch.where(inside > 0, candidates, -torch.inf).amax(1)
    for kind, a_plus, a_minus in (
        ('wta', winner @ plus, winner @ minus), ('convex', convex_plus, inside @ minus),
    ):
        assert torch.equal(outputs[kind].difference, expected)
        assert_close(outputs[kind].positive_stream, a_plus.reshape(expected.shape))
        assert_close(outputs[kind].negative_stream, a_minus.reshape(expected.shape))


@pytest.mark.parametrize('pooling', ['wta', 'convex'])
def test_winner_takes_all_relevance(pooling):
    image = torch.tensor([[[[1., 4., 3., -2.], [2., -5., 1., -1.]]]]).requires_grad_()
    with SplitLRP(stream='positive', pooling=pooling).context(model := torch.nn.Sequential(torch.nn.MaxPool2d(2))):
        relevance, = torch.autograd.grad(model(image), image, torch.tensor([[[[7., -2.]]]]))
    assert torch.equal(relevance, torch.tensor([[[[0., 7., -2., 0.], [0., 0., 0., 0.]]]]))


@pytest.mark.parametrize('pooling', ['wta', 'convex'])
def test_maximum_and_minimum(pooling):
    form = Pass(Settings(pooling))
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


@pytest.mark.parametrize('function', [
    lambda x: x.sort(-1)[0], lambda x: torch.sort(x, 1, descending=True).values, lambda x: x.topk(2, 1)[0],
    lambda x: x.topk(3)[0], lambda x: x.max(axis=1)[0], lambda x: torch.max(x, dim=-1, keepdim=True).values,
])
def test_orders_take_both_streams_with_them(function):
    x, total = random_image(2, 4, 5), 9 + random_image(2, 4, 5, seed=2).abs()
    output = function(SplitTensor(x, total))
    assert torch.equal(output.difference, function(x))
    places = {value: sum for value, sum in zip(x.flatten().tolist(), total.flatten().tolist())}
    assert output.stream_sum.flatten().tolist() == [places[value] for value in output.difference.flatten().tolist()]


def test_orders_are_not_convex():
    for function in (torch.sort, lambda x: torch.topk(x, 2)):
        with pytest.raises(NotImplementedError, match='convex.*wta'):
            function(SplitTensor.of(random_image(2, 4), pooling='convex'))


def test_maximum_with_a_constant_in_a_network_that_overflows():
    layers = [layer for _ in range(60) for layer in (nn.Linear(64, 64), nn.ReLU())]
    torch.manual_seed(0)
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=.18)
    model = nn.Sequential(*layers, Calling(lambda x: torch.maximum(x, torch.zeros(64))))
    with pytest.warns(UserWarning, match='two to the power of'):
        attribution = explain(SplitGrad(0.), model, random_image(2, 64, dtype=torch.float32))
    assert attribution.abs().amax(1).min() > 0
