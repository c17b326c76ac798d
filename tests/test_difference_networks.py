'''Monotone and input-convex networks, their differences, and their training.'''
import copy
import warnings
from functools import cache

import pytest
import torch
from helpers import assert_close, explain, gradient_of
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from zennit.composites import EpsilonPlus
from zennit.torchvision import SequentialMergeBatchNorm

from zennit_dc import Balanced, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.networks import (
    TRANSFORMS,
    VARIANTS,
    Difference,
    DifferenceOfConvex,
    FreeLinear,
    Maxout,
    cnn_maxout,
    effective,
    mlp_maxout,
    nonnegative,
)


SMALL = {
    'mlp_maxout': lambda variant, **options: mlp_maxout(variant, width=12, **{'scale': .1, **options}),
    'cnn_maxout': lambda variant, **options: cnn_maxout(variant, (2, 3, 4, 4), (12, 8), **{'scale': .1, **options}),
}
CONVEX = ('ic', 'mon', 'dic', 'dm', 'dicin', 'dmin')
DIFFERENCES = ('dic', 'dm', 'dicin', 'dmin')
quickly = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2 ** 31)


def digits(count, seed, dtype=torch.float64):
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@cache
def trained(name, variant, steps=0, transform='relu'):
    '''A small network in float64, with the statistics of some images in its batch norms, after some training steps.'''
    torch.manual_seed(0)
    network = SMALL[name](variant, transform=transform).double()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    images, labels = digits(32, 3), torch.arange(32) % 10
    with torch.no_grad():
        network(images)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def convexity_violation(network, x, y):
    '''By how much a network exceeds its chord in the middle of two inputs, relative to its values.'''
    with torch.no_grad():
        ends, middle = (network(x) + network(y)) / 2, network((x + y) / 2)
    return ((middle - ends) / (1 + ends.abs())).max().item()


def monotonicity_violation(network, x, step):
    '''By how much a network decreases where its inputs increase, relative to its values.'''
    with torch.no_grad():
        low, high = network(x), network(x + step.abs())
    return ((low - high) / (1 + high.abs())).max().item()


def parts_of(network):
    '''A network alone, or both of a difference.'''
    return (network.g, network.h) if isinstance(network, Difference) else (network,)


def inputs(seed):
    '''Two batches of inputs of any sign, far apart or close to each other.'''
    generator = torch.Generator().manual_seed(seed)
    x, y = (3 * torch.randn(8, 1, 28, 28, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, x + (y - x) * torch.logspace(-3, 0, 8, dtype=torch.float64).view(-1, 1, 1, 1)


# guarantees

@pytest.mark.parametrize('steps', [0, 1, 8])
@pytest.mark.parametrize('variant', CONVEX)
@pytest.mark.parametrize('name', SMALL)
@settings(max_examples=4, deadline=None)
@given(seeds)
def test_networks_are_convex_and_monotone_before_during_and_after_training(name, variant, steps, seed):
    x, y = inputs(seed)
    for network in parts_of(trained(name, variant, steps)):
        assert convexity_violation(network, x, y) < 1e-12
        if variant in ('mon', 'dm', 'dmin'):
            assert monotonicity_violation(network, x, y - x) < 1e-12


@pytest.mark.parametrize('steps', [0, 8])
@pytest.mark.parametrize('transform', TRANSFORMS)
@quickly
@given(seeds)
def test_all_transforms_guarantee_it(transform, steps, seed):
    x, y = inputs(seed)
    for network in parts_of(trained('mlp_maxout', 'dmin', steps, transform)):
        assert convexity_violation(network, x, y) < 1e-12
        assert monotonicity_violation(network, x, y - x) < 1e-12


@pytest.mark.parametrize('transform', TRANSFORMS)
@quickly
@given(seeds)
def test_whatever_the_parameters_are(transform, seed):
    '''Also those that no training finds.'''
    network = copy.deepcopy(trained('mlp_maxout', 'mon', 0, transform))
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x, y = inputs(seed)
    assert convexity_violation(network, x, y) < 1e-10 and monotonicity_violation(network, x, y - x) < 1e-10


@pytest.mark.parametrize('variant', ['none', 'diff'])
def test_unrestricted_networks_fail_the_checks(variant):
    x, y = inputs(0)
    for network in parts_of(trained('mlp_maxout', variant, 8)):
        assert convexity_violation(network, x, y) > 1e-3
        assert monotonicity_violation(network, x, y - x) > 1e-3


@pytest.mark.parametrize('name', ['linear2', 'norm2', 'linear4'])
def test_a_single_restricted_layer_that_is_broken_fails_the_checks(name):
    network = effective(trained('mlp_maxout', 'mon'))
    layer = getattr(network, name)
    layer.weight.data = -layer.weight.data
    x, y = inputs(0)
    assert convexity_violation(network, x, y) > 1e-3
    assert monotonicity_violation(network, x, y - x) > 1e-3


def test_input_convex_networks_are_not_monotone():
    x, y = inputs(0)
    assert monotonicity_violation(trained('mlp_maxout', 'ic'), x, y - x) > 1e-3


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('variant', VARIANTS)
def test_variants(name, variant):
    network, images = trained(name, variant), digits(3, 1)
    output = network(images)
    assert output.shape == (3, 10)
    if variant in ('none', 'ic', 'mon'):
        assert not isinstance(network, Difference)
    else:
        of_h = 1 - images if variant in ('dicin', 'dmin') else images
        assert torch.equal(output, network.g(images) - network.h(of_h))
        assert isinstance(network, DifferenceOfConvex) == (variant != 'diff')
    for part in parts_of(network):
        weights = {key: weight for key, weight in effective(part).state_dict().items() if 'running' not in key}
        negative = {key for key, weight in weights.items() if (weight < 0).any()}
        first = {'mlp_maxout': 'linear1.weight', 'cnn_maxout': 'conv1.weight'}[name]
        if variant in ('none', 'diff'):
            assert len(negative) > 2
        else:
            assert negative == ({first} if variant in ('ic', 'dic', 'dicin') else set())


def test_architectures():
    '''The widths of appendix D.1.'''
    shapes = {key: tuple(weight.shape) for key, weight in effective(mlp_maxout('mon')).state_dict().items()}
    assert [shapes[f'linear{number}.weight'] for number in (1, 2, 3, 4)] == [
        (1600, 784), (1600, 800), (1600, 800), (10, 800)
    ]
    shapes = {key: tuple(weight.shape) for key, weight in cnn_maxout('none').state_dict().items()}
    assert [shapes[f'conv{number}.weight'] for number in (1, 2, 3, 4)] == [
        (64, 1, 3, 3), (128, 32, 3, 3), (256, 64, 3, 3), (256, 128, 3, 3)
    ]
    assert [shapes[f'linear{number}.weight'] for number in (1, 2, 3)] == [(2048, 6272), (512, 1024), (10, 256)]


# layers

@pytest.mark.parametrize('transform', TRANSFORMS)
def test_effective_weights_can_be_set(transform):
    layer = nonnegative(nn.Linear(3, 2).double(), transform, .5)
    assert (layer.weight > 0).all() and (layer.bias > 0).all()
    weight = torch.tensor([[0., 1e-3, 1.], [2., 30., 5.]], dtype=torch.float64)
    layer.weight = weight
    torch.testing.assert_close(layer.weight, weight, rtol=1e-9, atol=0. if transform == 'relu' else 1.1e-6)
    with pytest.raises(ValueError, match='cannot be set to negative'):
        layer.weight = -weight
    before = weight.clone()
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(1.)
    assert torch.equal(weight, before)  # the layer has its own


def test_initial_weights_are_absolute_gaussian():
    network = nonnegative(nn.Sequential(nn.Linear(200, 100), nn.BatchNorm1d(100)), scale=.02)
    weight = network[0].weight
    assert abs(weight.mean().item() / (.02 * (2 / torch.pi) ** .5) - 1) < .02
    assert abs(weight.square().mean().sqrt().item() / .02 - 1) < .02
    assert (network[1].weight == 1).all() and (network[1].bias > 0).all()


@pytest.mark.parametrize('rank', [1, 2, 3])
def test_maxout(rank):
    input = torch.randn(2, 6, 4)
    output = Maxout(rank)(input)
    width = 6 // rank
    for feature in range(width):
        assert torch.equal(output[:, feature], input[:, feature::width].amax(1))


def test_errors_name_the_thing():
    with pytest.raises(ValueError, match='variant must be one of \'none\'.*not \'dcm\''):
        mlp_maxout('dcm')
    with pytest.raises(ValueError, match='transform must be one of \'relu\'.*not \'abs\''):
        cnn_maxout('dm', transform='abs')
    with pytest.raises(ValueError, match='scale of the initial weights must be positive, not -1'):
        mlp_maxout('mon', width=2, scale=-1)
    with pytest.raises(ValueError, match=r'shape \(batch, 1, 28, 28\), not \(2, 784\)'):
        trained('mlp_maxout', 'dm')(torch.zeros(2, 784))
    with pytest.raises(ValueError, match='Maxout of rank 2 cannot share 3 features'):
        Maxout()(torch.zeros(1, 3))
    with pytest.raises(ValueError, match='rank of Maxout must be a positive integer, not 0'):
        Maxout(0)
    with pytest.raises(ValueError, match='module \'0\' .* is parametrized already'):
        nonnegative(nn.Sequential(nonnegative(nn.Linear(2, 2))))
    with pytest.raises(ValueError, match='weight of module \'h.1\' .* may become negative'):
        DifferenceOfConvex(nonnegative(nn.Linear(2, 2)), nn.Sequential(nonnegative(nn.Linear(2, 2)), nn.Linear(2, 2)))
    with pytest.raises(ValueError, match='weight of module \'g\' .* may become negative'):
        DifferenceOfConvex(parametrizations.weight_norm(nn.Linear(2, 2, bias=False)), nonnegative(nn.Linear(2, 2)))
    positive, negative = (nonnegative(nn.Linear(2, 2)) for _ in range(2))
    for module in (nn.PReLU(), nn.ReLU6(), nn.GELU()):
        with pytest.raises(ValueError, match=f'module \'h.1\' .{type(module).__name__}. is not convex'):
            DifferenceOfConvex(positive, nn.Sequential(negative, nonnegative(module)))
    with pytest.raises(ValueError, match='module g.2 .FreeLinear. comes after an activation'):
        DifferenceOfConvex(nonnegative(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), FreeLinear(2, 2))), negative)
    DifferenceOfConvex(nonnegative(nn.Sequential(nn.Flatten(), nn.Linear(2, 2), FreeLinear(2, 2), Maxout())), negative)
    difference = Difference(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r'outputs of g and h differ in shape: \(3, 2\) and \(3, 1\)'):
        difference(torch.zeros(3, 2))


# the trained pair

def of_h(network):
    '''h as a function of x.'''
    return lambda input: network.h(network.input_of_h(input))


@pytest.mark.parametrize('pooling', ['wta', 'convex'])
@pytest.mark.parametrize('variant', DIFFERENCES)
@pytest.mark.parametrize('name', SMALL)
def test_streams_are_the_trained_pair(name, variant, pooling):
    network, images = trained(name, variant, 8), digits(4, 5)
    g, h = gradient_of(network.g, images), gradient_of(of_h(network), images)
    for stream, expected in {'g': g, '+g': g, '-g': -g, 'h': h, '+h': h, '-h': -h}.items():
        assert_close(explain(SplitGrad(0., stream, pooling=pooling), network, images), expected)
    original = gradient_of(network, images)
    assert_close(explain(SplitGrad(.5, 'g'), network, images), original / 2)
    assert_close(explain(SplitGrad(.5, 'h'), network, images), -original / 2)


@pytest.mark.parametrize('variant', DIFFERENCES)
def test_values_of_the_streams(variant):
    '''At the output they are g and h; before it, the positive stream is the layer's activation up to a constant.'''
    network, images = trained('cnn_maxout', variant, 8), digits(4, 5)
    read = {}
    handles = [
        module.register_forward_hook(lambda module, args, output, key=key: read.update({key: output}))
        for key, module in (('g', network.g.maxout3), ('h', network.h.maxout3), ('output', network))
    ]
    explain(SplitLRP(recentering=None, pooling='convex'), nn.Sequential(network), images)
    for handle in handles:
        handle.remove()
    assert_close(read['output'].positive_stream, network.g(images))
    assert_close(read['output'].negative_stream, network.h(network.input_of_h(images)))
    for pair in (read['g'], read['h']):
        constant = pair.negative_stream
        assert (constant - constant[:1]).abs().max() <= 1e-10 * constant.abs().max()


@pytest.mark.parametrize('variant', ['dicin', 'dm'])
def test_layers_of_the_trained_pair(variant):
    '''SplitGrad and SplitCAM at a layer of g or h, for alpha = 0, are made of the gradient of g or h.'''
    network, images = trained('cnn_maxout', variant, 8), digits(2, 5)
    for part, input in (('g', images), ('h', network.input_of_h(images))):
        modules = list(getattr(network, part))
        place = modules.index(getattr(network, part).maxout2) + 1
        activation = nn.Sequential(*modules[:place])(input).detach().requires_grad_()
        gradient, = torch.autograd.grad(nn.Sequential(*modules[place:])(activation)[:, 2].sum(), activation)
        for stream, factor in ((part, .5), (f'+{part}', 1.)):
            composite = SplitGrad(0., stream, layer=f'{part}.maxout2')
            explain(composite, network, images)
            assert_close(composite.saliency, factor * gradient.mean(1))
        composite = SplitCAM(f'{part}.maxout2', 0., part)
        explain(composite, network, images)
        assert_close(composite.saliency, .5 * (gradient * activation).sum(1))


def test_other_composites_accept_it():
    for variant in DIFFERENCES:
        network, images = trained('cnn_maxout', variant, 8), digits(2, 5)
        for composite in (
            SplitGrad(Balanced()), SplitGrad(lambda name: .1 if 'g' in name else .2), SplitLRP(),
            SplitLRP(stream='positive', layer='g.pool2'), SplitCAM('h.pool2', Balanced(), 'h'),
        ):
            map = explain(composite, network, images)
            assert torch.isfinite(map).all() and map.any()


def test_shifts_by_the_names_of_restricted_layers():
    network, images = trained('mlp_maxout', 'mon', 8), digits(2, 5)
    names = [name for name, layer in network.named_modules() if hasattr(layer, 'weight') and 'param' not in name]
    alphas = dict.fromkeys(['', *names], .3)
    expected = explain(SplitGrad(.3, '+g'), network, images)
    assert torch.equal(explain(SplitGrad(alphas, '+g'), network, images), expected)
    assert not torch.equal(explain(SplitGrad({**alphas, 'linear2': .2}, '+g'), network, images), expected)


@pytest.mark.parametrize('variant', ['ic', 'mon'])
@pytest.mark.parametrize('name', SMALL)
def test_a_convex_network_alone_is_its_own_positive_stream(name, variant):
    network, images = trained(name, variant, 8), digits(3, 5)
    gradient = gradient_of(network, images)
    for pooling in ('wta', 'convex'):
        assert_close(explain(SplitGrad(0., '+g', pooling=pooling), network, images), gradient)
        of_h = explain(SplitGrad(0., '+h', pooling=pooling), network, images)
        assert of_h.abs().max() < 1e-10 * gradient.abs().max()


def test_relevance_of_g_is_that_of_its_stream():
    '''All relevance enters the positive stream, which is g: that of h is zero, and that of g is conserved, but for
    what the constants take.'''
    torch.manual_seed(0)
    g, h = (
        nonnegative(nn.Sequential(nn.Linear(5, 8, bias=False), Maxout(), nn.Linear(4, 3, bias=False)), scale=1.)
        for _ in range(2)
    )
    network, input = DifferenceOfConvex(g, h, invert=True).double(), torch.rand(4, 5, dtype=torch.float64)
    relevance = explain(SplitLRP(stream='positive'), network, input)
    # the stabilizer of the difference takes a share of about 1e-6
    assert_close(relevance, explain(SplitLRP(stream='positive'), g, input), 1e-5)
    assert_close(relevance.sum(1), torch.ones(4, dtype=torch.float64), 1e-5)


@pytest.mark.parametrize('variant', ['dic', 'dicin', 'dm'])
@pytest.mark.parametrize('name', SMALL)
def test_relevance_of_h_is_that_of_the_network_h(name, variant):
    '''And none of the difference's, which has that of g in its positive stream.'''
    network, images = trained(name, variant, 8), digits(3, 5)
    other = copy.deepcopy(network)
    for parameter in other.h.parameters():
        parameter.data *= 3.
    relevance = explain(SplitLRP(), network, images)
    assert_close(explain(SplitLRP(), other, images), relevance, 1e-5)
    assert_close(relevance, explain(SplitLRP(), network.g, images), 1e-5)  # by the stabilizer of the last difference
    assert not explain(SplitLRP(stream='negative'), network, images).any()


@pytest.mark.parametrize('name', SMALL)
def test_relevance_of_an_input_convex_network(name):
    '''It depends on no split of the input, also where values are negative.'''
    network, images = trained(name, 'ic', 8), 2. * digits(3, 5) - 1.
    relu, half = (explain(SplitLRP(input_split=kind), network, images) for kind in ('relu', 'half'))
    assert_close(half, relu)
    assert_close(explain(SplitLRP(), DifferenceOfConvex(network, network), images), relu, 1e-5)


def test_a_forward_of_ones_own_is_refused():
    class Doubled(DifferenceOfConvex):
        def forward(self, input):
            return super().forward(2 * input)

    network = trained('mlp_maxout', 'dm')
    with pytest.raises(NotImplementedError, match='Doubled is a DifferenceOfConvex with a forward of its own'):
        explain(SplitGrad(), Doubled(network.g, network.h), digits(1, 0))


@pytest.mark.parametrize('variant', DIFFERENCES)
def test_bfloat16(variant):
    '''The streams are about those in float64: a bfloat16 has 8 bits, and its gradient is off by as much.'''
    network, images = copy.deepcopy(trained('cnn_maxout', variant, 8)), digits(4, 5, torch.bfloat16)
    for stream in ('g', 'h'):
        exact = explain(SplitGrad(0., stream), network.double(), images.double())
        map = explain(SplitGrad(0., stream), network.bfloat16(), images)
        assert map.dtype == torch.bfloat16
        assert (map.double() - exact).norm() < .1 * exact.norm()


@pytest.mark.parametrize('variant', ['dicin', 'dm'])
@pytest.mark.parametrize('make', [SplitLRP, lambda: SplitCAM('g.maxout2', .3, '+g')])
def test_maps_can_be_differentiated_again(make, variant):
    '''Their derivative in a direction is the quotient of differences.'''
    network, images = trained('cnn_maxout', variant, 8), digits(2, 5)
    direction, step = digits(2, 6) - .5, 1e-6
    composite = make()
    with composite.context(network):
        input = images.clone().requires_grad_()
        map, = torch.autograd.grad(network(input)[:, 2].sum(), input, create_graph=True)
        weights = torch.linspace(1, 2, map.numel(), dtype=map.dtype).view_as(map)
        derivative, = torch.autograd.grad((map * weights).sum(), input)
    ahead, behind = (explain(make(), network, images + sign * step * direction) for sign in (1, -1))
    expected = ((ahead - behind) * weights).sum() / (2 * step)
    torch.testing.assert_close((derivative * direction).sum(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('first', [FreeLinear(6, 8), nn.Linear(6, 8)])
def test_networks_of_a_user(first):
    '''With a residual connection, an average and values of any sign, also far from the range of images.'''
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, input):
            return torch.relu(self.linear(input)) + input

    def network(seed):
        torch.manual_seed(seed)
        return nonnegative(nn.Sequential(copy.deepcopy(first), Residual(), Maxout(4), nn.Linear(2, 3)), scale=.5)

    difference = DifferenceOfConvex(network(0), network(1)).double().eval()
    input = 5 * torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for stream, part in (('g', difference.g), ('h', difference.h)):
        assert_close(explain(SplitGrad(0., stream), difference, input), gradient_of(part, input))


def test_a_network_that_is_not_convex_is_split_as_any_other():
    network, images = trained('mlp_maxout', 'diff', 8), digits(2, 5)
    sensitivities = [explain(SplitGrad(0., stream), network, images) for stream in ('+g', '-g', '+h', '-h')]
    assert min(each.min() for each in sensitivities) >= 0
    assert_close(sensitivities[0] - sensitivities[2], gradient_of(network, images))


def test_a_deep_pair_with_scaled_gradients():
    '''The gradients overflow on the way, as each layer multiplies them by about 8 * 1.5 * 0.8, and only the first one
    brings them back.'''
    torch.manual_seed(0)

    def network():
        layers = [FreeLinear(8, 8, bias=False), *(nn.Linear(8, 8, bias=False) for _ in range(40))]
        torch.nn.init.normal_(layers[0].weight, 0., 1e-35)
        return nonnegative(nn.Sequential(*layers), scale=1.5)

    difference, input = DifferenceOfConvex(network(), network(), invert=True), torch.rand(2, 8)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        single = explain(SplitGrad(0., 'g'), difference, input)
    double = gradient_of(difference.double().g, input.double())
    assert 1. < double.abs().max() < 1e38
    assert_close(single.double(), double, 1e-4)


# conversion, saving and loading

@pytest.mark.parametrize('variant', CONVEX)
def test_effective_networks(variant):
    network, images = trained('cnn_maxout', variant, 8), digits(3, 5)
    plain = effective(network.requires_grad_(variant != 'dm'))
    network.requires_grad_()
    assert all(parameter.requires_grad == (variant != 'dm') for parameter in plain.parameters())
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())
    assert any(parametrize.is_parametrized(module) for module in network.modules())
    assert torch.equal(plain(images), network(images)) and type(plain) is type(network)
    assert torch.equal(explain(SplitGrad(0.), plain, images), explain(SplitGrad(0.), network, images))
    # Zennit's canonizers write into weights, which the parametrized ones would not take
    with EpsilonPlus(canonizers=[SequentialMergeBatchNorm()]).context(plain):
        assert all(part.norm1.weight.eq(1).all() for part in parts_of(plain))
        assert_close(plain(images), network(images), 1e-3)  # it leaves the batch norms their eps of 1e-5


@pytest.mark.parametrize('variant', VARIANTS)
def test_save_and_load(tmp_path, variant):
    network, images = trained('mlp_maxout', variant, 8), digits(3, 5)
    torch.save(network.state_dict(), tmp_path / 'weights.pt')
    torch.manual_seed(1)
    other = SMALL['mlp_maxout'](variant).double().eval()
    assert not torch.equal(other(images), network(images))
    other.load_state_dict(torch.load(tmp_path / 'weights.pt', weights_only=True))
    assert torch.equal(other(images), network(images))
