'''Re-centering: in proportion, by a threshold, and by shifting.'''
import copy
import math
from pathlib import Path

import pytest
import torch
import torchvision
from helpers import assert_close, explain, random_image
from hypothesis import given, settings, strategies as st
from literal import Network
from torch.nn import functional as F
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import LayerMapComposite
from zennit.rules import Norm, Pass, ZPlus
from zennit.types import Activation, AvgPool, BatchNorm, Convolution

from zennit_dc import Relative, Scaling, Shifting, SplitCAM, SplitGrad, SplitLRP, SplitTensor


def test_scaling_by_hand():
    difference = torch.tensor([[1., -2.], [1., -2.], [1., -2.], [30., 0.]])
    stream_sum = torch.tensor([[3., 5.], [30., 5.], [3000., 5.], [30., 1.]])
    # untouched; excess 29 times 0.1; excess 2999 times 0.001 (299.9 and 29.99 exceed 10); entry 30 at excess 0 and 1
    expected = torch.tensor([[3., 5.], [3.9, 2.3], [3.999, 2.003], [30., .1]])
    torch.testing.assert_close(Scaling()(difference, stream_sum), expected)


def test_shifting_makes_streams_half_of_the_difference():
    difference, stream_sum = random_image(2, 5), random_image(2, 5, seed=2)
    assert torch.equal(Shifting()(difference, stream_sum), torch.zeros(2, 5, dtype=torch.float64))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2 ** 31), st.sampled_from(['wta', 'convex']), st.floats(.01, .9), st.floats(.1, 100.))
def test_scaling_keeps_streams_non_negative(seed, pooling, theta, threshold):
    network, image = Network(seed % 5), 10 * random_image(2, 3, 16, 16, seed=seed)
    seen = []

    def check(module, args, output):
        if isinstance(output, SplitTensor):
            largest = output.stream_sum.abs().max()
            assert output.positive_stream.min() >= -1e-15 * largest
            assert output.negative_stream.min() >= -1e-15 * largest
            if isinstance(module, torch.nn.Conv2d):
                excess = output.stream_sum - output.difference.abs()
                # an entry of the streams is at least half of the excess
                assert excess.max() <= 2 * threshold * (1 + 1e-9)
            seen.append(module)

    handles = [module.register_forward_hook(check) for module in network.modules()]
    composite = SplitLRP(pooling=pooling, recentering=Scaling(theta, threshold))
    with composite.context(network):
        network(image)
    for handle in handles:
        handle.remove()
    assert len(seen) > 10


@pytest.mark.parametrize('rho', [0., .1, 1., math.inf])
@pytest.mark.parametrize('shape', [(2, 5), (3,), (2, 3, 4, 4)])
def test_relative_by_its_definition(rho, shape):
    difference, excess = random_image(*shape), random_image(*shape, seed=2).abs()
    for scale in (1e-3, 1., 1e3):
        total = difference.abs() + scale * excess
        new = Relative(rho)(difference, total) - difference.abs()
        for each, before, own in zip(new, scale * excess, difference):
            largest = rho * own.abs().mean()
            expected = before * min(1., float(largest / before.mean()))
            torch.testing.assert_close(each, expected, rtol=1e-12, atol=1e-12 * float(total.max()))


def test_relative_of_zeros_and_of_nothing():
    zeros = torch.zeros(2, 4, dtype=torch.float64)
    assert torch.equal(Relative()(zeros, zeros), zeros)
    assert not Relative()(zeros, zeros + 3.).any()  # where nothing differs nothing is in common
    assert Relative()(zeros[:0], zeros[:0]).shape == (0, 4)
    total = zeros.clone().requires_grad_()
    assert torch.autograd.grad(Relative()(zeros, total).sum(), total)[0].isfinite().all()


@pytest.mark.parametrize('rho', [-1., math.nan, True, '1'])
def test_relative_needs_a_ratio(rho):
    with pytest.raises(ValueError, match='rho must be'):
        Relative(rho)


@pytest.mark.parametrize('wrong', [None, 1., [1.]])
def test_recentering_of_ones_own_returns_a_tensor(network, image, wrong):
    composite = SplitLRP(recentering=lambda difference, stream_sum: wrong)
    with composite.context(network), pytest.raises(TypeError, match=f're-centering returns a {type(wrong).__name__}'):
        network(image)


class Gated(torch.nn.Module):
    '''A network without biases, with a product, a view that is changed in place, two inputs, and units that never
    fire.'''
    def __init__(self, bias=False):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.one, self.two = torch.nn.Conv2d(3, 8, 3, bias=bias), torch.nn.Conv2d(3, 8, 3, bias=bias)
        self.three, self.dense = torch.nn.Conv2d(8, 8, 3, bias=bias), torch.nn.Linear(8, 5, bias=bias)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        self.three.weight.data[:5] = -self.three.weight.data[:5].abs()

    def forward(self, first, second):
        hidden = F.relu(self.one(first))
        hidden[:, ::2].mul_(.5).relu_()
        hidden = F.hardtanh(self.three(hidden + F.relu(self.two(second))), 0., math.inf)
        return self.dense((hidden * hidden).mean((2, 3)))


def maps_of(composite, model, *images):
    '''The output, and the normalized maps of one class at all inputs.'''
    images = [image.clone().requires_grad_() for image in images]
    with composite.context(model):
        output = model(*images)
        maps = torch.autograd.grad(output[:, 2].sum(), images)
    return output.detach(), [map / map.abs().amax() for map in maps]


@pytest.mark.parametrize('create', [
    lambda rho: SplitGrad(.3, 'g', recentering=Relative(rho)), lambda rho: SplitGrad(recentering=Relative(rho)),
    lambda rho: SplitGrad(.1, '-h', recentering=Relative(rho)),
    lambda rho: SplitCAM('conv2', .3, recentering=Relative(rho)),
    lambda rho: SplitCAM('norm1', .3, 'h', recentering=Relative(rho)),
], ids=['SplitGrad g', 'Balanced', 'SplitGrad -h', 'SplitCAM g', 'SplitCAM h'])
def test_relative_changes_no_sensitivity(create):
    '''Theorem 6, bit for bit.'''
    network, image = Network(), random_image(2, 3, 16, 16)
    expected = explain(create(math.inf), network, image)
    for rho in (0., .1, 1.):
        assert torch.equal(explain(create(rho), network, image), expected)


@pytest.mark.parametrize('stream', ['positive', 'negative', 'combined'])
@pytest.mark.parametrize('factor', [1e-4, 1e4])
def test_relative_is_equivariant(stream, factor):
    '''A factor on the input and on all biases leaves every normalized map as it is.'''
    network, image = Network(), random_image(2, 3, 16, 16)
    scaled = copy.deepcopy(network)
    for module in scaled.modules():
        for name in ('bias', 'running_mean'):
            if isinstance(getattr(module, name, None), torch.Tensor):
                getattr(module, name).data *= factor
    for layer in (None, 'norm1', 'conv4'):
        maps = []
        for model, input in ((network, image), (scaled, factor * image)):
            composite = SplitLRP(lambda denominator: denominator, stream, layer, recentering=Relative(.3))
            found = explain(composite, model, input)
            maps.append(found if layer is None else composite.saliency)
        assert maps[0].any() and maps[0].isfinite().all()
        # relevance does not grow with the activations it is shared by
        assert_close(maps[1], maps[0], 1e-12)


def test_relative_of_several_inputs_views_and_products():
    '''The maps of a network with all of these do not depend on the batch, and are the same for all factors on the
    input.'''
    model, images = Gated(), [random_image(3, 3, 8, 8, seed=seed) for seed in (1, 2)]
    for composite in (SplitLRP(stream='positive'), SplitGrad(.3), SplitLRP(.1, 'positive', input_split='half')):
        output, maps = maps_of(composite, model, *images)
        assert torch.equal(output, model(*images))
        for sample in range(3):
            alone = maps_of(composite, model, *[image[sample:sample + 1] for image in images])[1]
            for map, own in zip(maps, alone):
                part = map[sample:sample + 1]
                assert_close(own, part / part.abs().amax(), 1e-11)
    stabilized = SplitLRP(lambda denominator: denominator + 1e-300, 'positive')
    for map, other in zip(maps_of(stabilized, model, *images)[1],
                          maps_of(stabilized, model, *[100 * image for image in images])[1]):
        assert_close(other, map, 1e-11)


@pytest.mark.parametrize('layer', [None, 'conv2'])
@pytest.mark.parametrize('rho', [.01, .3, 1.])
def test_maps_with_relative_can_be_differentiated(rho, layer):
    '''By the input, and by the weights of the layers whose outputs are computed again.'''
    network, image = Network(), random_image(1, 3, 16, 16).requires_grad_()
    composite = SplitLRP(.1, 'positive', layer, recentering=Relative(rho))
    direction, weights = random_image(1, 3, 16, 16, seed=5), [network.conv1.weight, network.conv4.bias]

    def projected(create_graph=False):
        map, = torch.autograd.grad(network(image)[:, 2].sum(), image, create_graph=create_graph)
        return (map * direction).sum()

    with composite.context(network):
        gradients = torch.autograd.grad(projected(True), [image, *weights])
        for tensor, gradient in zip([image, *weights], gradients):
            along, kept = random_image(*tensor.shape, seed=7), tensor.detach().clone()
            values = []
            for step in (1e-6, -1e-6):
                tensor.data = kept + step * along
                values.append(projected().item())
            tensor.data = kept
            assert (values[0] - values[1]) / 2e-6 == pytest.approx((gradient * along).sum().item(), rel=1e-5)


def test_streams_with_relative_are_bounded():
    '''However deep the network is: the mean of a sum is at most 1 + rho times that of the difference's absolute
    values.'''
    layers = [each for _ in range(60) for each in (torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU())]
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), *layers).eval()
    image, ratios = random_image(2, 3, 8, 8, dtype=torch.float32), []

    def ratio(module, args, output):
        size = output.difference.abs().mean((1, 2, 3))
        ratios.append((output.stream_sum.mean((1, 2, 3)) / size).max().item())

    for rho in (.1, 1., 10.):
        handles = [module.register_forward_hook(ratio) for module in network]
        network(SplitTensor.of(image, recentering=Relative(rho)))
        assert len(ratios) == 121 and max(ratios) <= (1 + rho) * (1 + 1e-5)
        ratios.clear()
        for handle in handles:
            handle.remove()


def squeezenet():
    '''SqueezeNet with its weights of ImageNet.'''
    model = torchvision.models.squeezenet1_0()
    model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return model


def z_plus(model, layer, image, unit):
    '''The relevance at a layer by Zennit's rule, summed over channels.'''
    rules = [
        (Convolution, ZPlus(TINY)), (torch.nn.Linear, ZPlus(TINY)), (AvgPool, Norm(TINY)), (Activation, Pass()),
        (BatchNorm, Pass()),  # which is merged, but for its eps
    ]
    read = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: read.append(output * 1) or read[-1]
    )
    try:
        with LayerMapComposite(rules).context(model):
            relevance, = torch.autograd.grad(model(image.clone().requires_grad_())[:, unit].sum(), read)
    finally:
        handle.remove()
    return relevance.sum(1)


TINY = 1e-30  # of what is added to a denominator, as activations without biases are small
WEIGHTS = Path(__file__).parents[2] / 'shared' / 'data' / 'weights' / 'squeezenet1_0_imagenet.pt'


@pytest.mark.parametrize('network', ['random VGG', pytest.param('SqueezeNet', marks=pytest.mark.skipif(
    not WEIGHTS.exists(), reason='needs the weights of SqueezeNet in ../shared'
))])
def test_relative_of_zero_is_the_z_plus_rule(network):
    '''Behind ReLUs, SplitLRP's positive relevance is that of Zennit's ZPlus, and its negative relevance is zero.

    What differs is named. Zennit's rule leaves the bias out of the denominator, so that the biases are zero here. At
    the first layer, the input has a negative part, of which ZPlus has no share, so that maps are compared from the
    first activation on. Zennit's sums stand for no residual additions in these networks.
    '''
    if network == 'SqueezeNet':
        model = squeezenet()
        layers, size = ('features.4.squeeze_activation', 'features.7.expand3x3', 'features.12.squeeze'), 96
    else:
        torch.manual_seed(0)
        model = torchvision.models.vgg11_bn(weights=None, init_weights=False)
        model.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        model.classifier = torch.nn.Sequential(torch.nn.Linear(512, 32), torch.nn.ReLU(), torch.nn.Linear(32, 7))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_var, .5, 2.)
                torch.nn.init.uniform_(module.weight, -1., 1.)
        layers, size = ('features.2', 'features.9', 'features.20', 'features.28'), 64
    model = model.double().eval()
    merged = copy.deepcopy(model)
    SequentialMergeBatchNorm().apply(merged)
    for each in (model, merged):
        for module in each.modules():
            if isinstance(getattr(module, 'bias', None), torch.Tensor):
                module.bias.data.zero_()
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.zero_()
    image = random_image(1, 3, size, size)
    unit = model(image).argmax().item()
    for layer in layers:
        expected, maps = z_plus(merged, layer, image, unit), {}
        for stream in ('positive', 'negative'):
            composite = SplitLRP(TINY, stream, layer, recentering=Relative(0.))
            explain(composite, model, image, unit)
            maps[stream] = composite.saliency
        assert_close(maps['positive'], expected, 1e-9)
        assert not maps['negative'].any()
