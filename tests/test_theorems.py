'''The paper's theorems, and what else holds for every network, as properties.'''
import itertools

import pytest
import torch
from helpers import assert_close, explain, gradient_of, random_image
from hypothesis import example, given, settings, strategies as st
from literal import Affine, Network

from zennit_dc import SplitGrad, SplitLRP, SplitTensor
from zennit_dc.core.pair import Pass, Settings


seeds = st.integers(0, 2 ** 31)
alphas = st.floats(0., .5)
poolings = st.sampled_from(['wta', 'convex'])
quickly = settings(max_examples=20, deadline=None)


def streams(network, plus, minus, pooling='convex'):
    '''g and h of a network at a pair of inputs.'''
    output = network(SplitTensor(plus - minus, plus + minus, Pass(Settings(pooling))))
    return output.positive_stream, output.negative_stream


def perceptron(widths, seed):
    '''A network of linear layers with ReLUs between, without bias, and its weights.'''
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for before, behind in itertools.pairwise(widths):
        layers += [torch.nn.Linear(before, behind, bias=False), torch.nn.ReLU()]
        layers[-2].weight.data = torch.randn(behind, before, generator=generator, dtype=torch.float64)
    return torch.nn.Sequential(*layers[:-1]).eval(), [layer.weight.data for layer in layers[:-1:2]]


@quickly
@given(seeds, poolings)
def test_theorem_1_difference_of_streams_is_the_network(seed, pooling):
    network = Network(seed % 5)
    plus, minus = random_image(2, 3, 16, 16, seed=seed), random_image(2, 3, 16, 16, seed=seed + 1)
    g, h = streams(network, plus, minus, pooling)
    # here the streams are of the order of 1e3: their difference loses three of sixteen digits
    assert_close(g - h, network(plus - minus), 1e-9)


@quickly
@given(seeds)
def test_streams_are_monotone(seed):
    network = Network(seed % 5)
    plus, minus, more, other = (random_image(1, 3, 16, 16, seed=seed + index) for index in range(4))
    before = streams(network, plus, minus)
    after = streams(network, plus + more.abs(), minus + other.abs())
    for low, high in zip(before, after):
        assert (low <= high + 1e-12 * high.abs()).all()


@quickly
@given(seeds, st.floats(0., 1.))
def test_streams_are_convex(seed, part):
    network = Network(seed % 5)
    one = [random_image(1, 3, 16, 16, seed=seed + index) for index in range(2)]
    two = [random_image(1, 3, 16, 16, seed=seed + index) for index in range(2, 4)]
    between = streams(network, *(part * a + (1 - part) * b for a, b in zip(one, two)))
    for middle, first, second in zip(between, streams(network, *one), streams(network, *two)):
        chord = part * first + (1 - part) * second
        assert (middle <= chord + 1e-12 * chord.abs()).all()


@quickly
@given(seeds)
def test_theorem_6_common_shift(seed):
    network, weights = perceptron([6, 8, 7, 5], seed)
    plus, minus, shift = (random_image(3, 6, seed=seed + index).requires_grad_() for index in range(3))
    product = shift
    for weight in weights:
        product = product @ weight.abs().T
    before, after = streams(network, plus, minus), streams(network, plus + shift, minus + shift)
    for low, high in zip(before, after):
        assert_close(high, low + product)
        for stream in (plus, minus):
            old, = torch.autograd.grad(low[:, 1].sum(), stream, retain_graph=True)
            new, = torch.autograd.grad(high[:, 1].sum(), stream, retain_graph=True)
            assert torch.equal(old, new)


@quickly
@given(seeds, alphas, st.sampled_from('gh'))
def test_theorem_7_and_claim_2(seed, alpha, output):
    network, weights = perceptron([6, 8, 7, 5], seed)
    image = random_image(3, 6, seed=seed)
    for at in (0., alpha):
        deltas = [explain(SplitGrad(at, sign + output), network, image) for sign in '+-']
        product = torch.eye(5, dtype=torch.float64)[2]
        for weight in reversed(weights):
            product = product @ weight.abs()
        expected = (1 - 2 * at) ** (len(weights) + 1) * product
        torch.testing.assert_close(sum(deltas), expected.expand(3, 6), rtol=1e-10, atol=1e-10)


@quickly
@given(seeds, st.lists(st.floats(0., .5), min_size=4, max_size=4))
def test_theorem_9_closed_form(seed, alpha):
    '''Equation 71. The product of the shifts of Q[j + 1] runs from j + 1 to L, as in the proof's equation 82; equation
    71 itself has it run from j.'''
    network, weights = perceptron([6, 8, 7, 5], seed)
    image = random_image(1, 6, seed=seed)
    names = {'0': alpha[0], '2': alpha[1], '4': alpha[2], '': alpha[3]}
    unit = torch.eye(5, dtype=torch.float64)[2:3]
    # masks of the pre-activations; the last layer has no activation, and all of it passes
    activation, masks = image, []
    for weight in weights:
        masks.append((activation @ weight.T > 0).double())
        activation = (activation @ weight.T).clamp(min=0)
    masks[-1] = torch.ones_like(masks[-1])

    def plain(last):
        product = torch.eye(6, dtype=torch.float64)
        for weight, mask in zip(weights[:last], masks):
            product = mask.T * (weight @ product)
        return product

    delta = unit @ plain(3)
    total = torch.zeros_like(delta)
    for j in range(3):
        absolute = unit
        for weight in reversed(weights[j + 1:]):
            absolute = absolute @ weight.abs()
        shifts = torch.tensor([1 - 2 * value for value in alpha[j + 1:]], dtype=torch.float64).prod()
        total += shifts * absolute @ ((1 - masks[j]).T * weights[j] @ plain(j))
    for stream, expected in (('g', (delta - total) / 2), ('h', -(delta + total) / 2)):
        torch.testing.assert_close(
            explain(SplitGrad(names, stream), network, image), expected, rtol=1e-10, atol=1e-10
        )


@quickly
@given(seeds, alphas, poolings)
def test_equation_4_backward_invariant(seed, alpha, pooling):
    network, image = Network(seed % 5), random_image(2, 3, 16, 16, seed=seed)
    g, h = (explain(SplitGrad(alpha, stream, pooling=pooling), network, image) for stream in 'gh')
    gradient = gradient_of(network, image)
    # g and h may be larger than the gradient, their difference, by the growth of the weights
    torch.testing.assert_close(g - h, gradient, rtol=0, atol=1e-13 * (g.abs().max() + gradient.abs().max()).item())


@pytest.mark.parametrize('pooling', ['wta', 'convex'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_alpha_one_half_is_half_the_gradient(dtype, pooling):
    network, image = Network().to(dtype), random_image(2, 3, 16, 16, dtype=dtype)
    gradient = gradient_of(network, image)
    for stream, sign in (('g', 1), ('h', -1), ('+g', 1), ('-g', -1)):
        assert torch.equal(explain(SplitGrad(.5, stream, pooling=pooling), network, image), sign * gradient / 2)


@quickly
@given(seeds, poolings)
@example(124164, 'wta')
def test_relevance_is_conserved_without_bias(seed, pooling):
    '''But for what reaches a stream that is zero, as happens in the corners of an image: nothing contributes to it.'''
    network, image = Network(seed % 5, bias=False), random_image(2, 3, 16, 16, seed=seed)
    relevance = sum(
        explain(SplitLRP(1e-12, stream, pooling=pooling), network, image) for stream in ('positive', 'negative')
    )
    literal = network.literal(pooling, merged=True)
    literal.forward(image, recentering=1.)
    relevances = literal.relevances(torch.eye(5, dtype=torch.float64)[[2, 2]], 1e-12)
    lost = sum(
        torch.where(stream == 0, arrived, 0.).flatten(1).sum(1)
        for name, operation, _ in literal.nodes if isinstance(operation, Affine)
        for stream, arrived in zip(operation.outputs, relevances[name])
    )
    torch.testing.assert_close(relevance.sum((1, 2, 3)) + lost, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)


@quickly
@given(seeds, alphas)
def test_sensitivities_of_g_and_h_differ_by_the_gradient(seed, alpha):
    '''The part that the shift adds is shared by g and h, and is all that parts the map of g from the gradient.'''
    network, image = Network(seed % 5), random_image(2, 3, 16, 16, seed=seed)
    options = {'input_split': 'half', 'recentering': None}
    g, h = (explain(SplitGrad(alpha, stream, **options), network, image) for stream in 'gh')
    gradient = gradient_of(network, image)
    scale = g.abs().max()
    assert (g - h - gradient).abs().max() <= 1e-12 * scale
    shared = g + h
    assert ((2 * g - gradient).abs() - shared.abs()).abs().max() <= 1e-12 * scale
    half = explain(SplitGrad(.5, 'g', **options), network, image)
    assert (2 * half - gradient).abs().max() <= 1e-12 * gradient.abs().max()


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_without_a_shift_splitgrad_is_the_gradient_of_a_convex_function(seed):
    '''Of g(x / 2, -x / 2): it is between the differences of the literal streams to both sides.'''
    network, image = Network(seed % 5), random_image(1, 3, 16, 16, seed=seed)
    literal = network.literal('convex')
    direction, step = random_image(1, 3, 16, 16, seed=seed + 1), 1e-6

    def value(x):
        return literal.forward(x, 'half')[0][:, 2].sum()

    map = explain(SplitGrad(0., pooling='convex', input_split='half', recentering=None), network, image)
    slope, rounding = (map * direction).sum(), 1e-7 * map.norm() * direction.norm()
    before, after = ((value(image + end) - value(image)) / step for end in (-step * direction, step * direction))
    # the same but for rounding, if there is no kink within a step
    assert -before - rounding <= slope <= after + rounding
    other = random_image(1, 3, 16, 16, seed=seed + 2)
    assert value((image + other) / 2) <= (value(image) + value(other)) / 2 * (1 + 1e-12) + 1e-12
