'''What is promised of each device, the CPU among them: the maps of float64 on the CPU, up to rounding.'''
import numpy as np
import pytest
import torch
from commands import require_success, run
from fuzzing import campaign
from fuzzing.families import FAMILIES
from fuzzing.programs import generate
from group_features import NETWORKS, Reference, coordinate_ascent, images
from helpers import DEVICES, assert_close, explain, random_image, rounding
from literal import Network
from PIL import Image
from small_models import METHODS as SMALL, Small
from torch import nn
from torch.nn import functional as F
from zennit.attribution import Gradient

from zennit_dc import (
    Balanced,
    DetachedActivations,
    DetachedStatistics,
    SplitCAM,
    SplitGrad,
    SplitLRP,
    SplitTensor,
    class_agreement,
    contrast,
)
from zennit_dc.attribution import CAFO, CASO, class_relevance
from zennit_dc.demo import demo_network, demo_preprocessing, draw


ON_DEVICES = pytest.mark.parametrize('device', DEVICES)
UNIT = 2
# whose random programs have these operations between them
OPERATIONS = {'conv2d', 'batch_norm', 'block', 'max_pool2d', 'attention', 'layer_norm', 'hardswish', 'relu6'}


@pytest.fixture(autouse=True)
def fixture_reproducible():
    '''Kernels that sum in the same order each time, and take float32 for what it is: on a GPU, torch's default for
    convolutions rounds it to the 11 bits of TensorFloat-32.'''
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


class Mobile(nn.Module):
    '''An inverted residual with squeeze and excitation, as in MobileNetV3, and the activation of MobileNetV2.'''
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True))
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.project, self.dense = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        initialize(self)

    def forward(self, x):
        x = self.stem(x)
        out = self.depthwise(x)
        out = out * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(out, 1)))))
        out = F.max_pool2d(x + self.project(out), 3, 2, 1)
        return self.dense(F.adaptive_avg_pool2d(out, 1).flatten(1))


class Transformer(nn.Module):
    '''A block of a vision transformer on 4 × 4 patches.'''
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp, self.dense = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), nn.Linear(8, 5)
        initialize(self)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        tokens = self.first(x)
        x = x + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.dense((x + self.mlp(self.second(x))).mean(1))


def initialize(model):
    '''Weights and statistics from a seed, in float64 and evaluation mode.'''
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            fan = tensor[0].numel() if tensor.ndim > 1 else 4.
            tensor.data = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / fan ** .5
        if name.endswith('var'):
            tensor.abs_().add_(.2)
    model.double().eval()


MODELS = {'convolutions': (Network, 'conv3'), 'mobile': (Mobile, 'depthwise'), 'transformer': (Transformer, 'first')}
METHODS = {
    'SplitGrad': lambda layer, **kwargs: SplitGrad(**kwargs),
    'SplitGrad, shifted': lambda layer, **kwargs: SplitGrad(.4, **kwargs),
    'SplitCAM': lambda layer, **kwargs: SplitCAM(layer, **kwargs),
    'SplitCAM +g': lambda layer, **kwargs: SplitCAM(layer, .4, '+g', **kwargs),
    'SplitLRP': lambda layer, **kwargs: SplitLRP(1e-2, **kwargs),
    'SplitLRP, layer': lambda layer, **kwargs: SplitLRP(1e-2, layer=layer, **kwargs),
}
MAPS = [pytest.mark.parametrize('name', MODELS), pytest.mark.parametrize('method', METHODS)]


def on_all_maps(test):
    '''A test of all methods for all models.'''
    return MAPS[0](MAPS[1](test))


def composite_of(name, method):
    '''The composite of a method for a model.'''
    detached = [DetachedStatistics(), DetachedActivations()] if name == 'transformer' else None
    return METHODS[method](MODELS[name][1], canonizers=detached)


def explain_all(name, method, model, image):
    '''The map of a method for a model.'''
    return explain(composite_of(name, method), model, image)


# the equations, in float64

def literal_sensitivity(stream):
    '''The sensitivities of a stream at a node, with the shift of 0.4, and its activation.'''
    def read(literal, name):
        plus, minus = literal.sensitivities(UNIT, stream[-1], .4)[name]
        activation = literal.streams[name]
        if stream == '+g':
            return plus, activation[0]
        return (plus - minus) / 2, activation[0] - activation[1]
    return read


@ON_DEVICES
@pytest.mark.parametrize('stream', ['g', '+g'])
def test_sensitivities_are_the_literal_ones(device, stream):
    network, image = Network(), random_image(3, 3, 16, 16)
    literal = network.literal()
    literal.forward(image)
    network.to(device)
    gradient = explain(SplitGrad(.4, stream), network, image.to(device))
    assert_close(gradient.cpu(), literal_sensitivity(stream)(literal, 'input')[0])
    for layer in ('norm1', 'pool', 'conv3'):
        composite = SplitCAM(layer, .4, stream, recentering=None)
        map = explain(composite, network, image.to(device))
        assert map.device.type == composite.saliency.device.type == device
        sensitivity, activation = literal_sensitivity(stream)(literal, {'norm1': 'relu1'}.get(layer, layer))
        expected = (sensitivity * activation).sum(1)
        assert_close(composite.saliency.cpu(), expected)
        assert_close(map.cpu().sum(1), F.interpolate(expected[:, None], (16, 16), mode='bilinear').squeeze(1))


@ON_DEVICES
@pytest.mark.parametrize('pooling', ['wta', 'convex'])
def test_relevance_is_the_literal_one(device, pooling):
    network, image = Network(), random_image(3, 3, 16, 16)
    literal = network.literal(pooling, merged=True)
    seed = torch.zeros_like(literal.forward(image, recentering=1.)[0])
    seed[:, UNIT] = 1.
    relevances = literal.relevances(seed, 1e-3)
    network.to(device)
    for stream, part in (('positive', 0), ('negative', 1)):
        gradient = explain(SplitLRP(1e-3, stream, pooling=pooling), network, image.to(device))
        assert_close(gradient.cpu(), relevances['input'][part])
        composite = SplitLRP(1e-3, stream, 'pool', pooling)
        explain(composite, network, image.to(device))
        assert_close(composite.saliency.cpu(), relevances['pool'][part].sum(1))


@ON_DEVICES
def test_random_programs(device):
    '''All properties that the fuzzer knows: literal streams, two precisions of the output, batches, derivatives.'''
    seeds, missing = [], set(OPERATIONS)
    for seed in range(10000):
        found = missing & {step.family for step in generate(seed, FAMILIES).steps}
        seeds, missing = [*seeds, *([seed] if found else [])], missing - found
        if not missing:
            break
    result = campaign.run(seeds, device=device)
    assert not result.failures, result
    assert result.families.keys() >= OPERATIONS
    assert result.held.keys() >= {'output', 'sensitivity', 'relevance', 'layer', 'double_backward'}, result


# all methods, in all precisions

@ON_DEVICES
@on_all_maps
def test_maps_are_those_of_the_cpu(device, name, method):
    '''Which sums in another order, and may have other kernels for one image than for a batch. On a GPU, torch's hard
    sigmoids have a sixth in float32, whatever the dtype.'''
    model, image = MODELS[name][0](), random_image(3, 3, 16, 16)
    expected = torch.cat([explain_all(name, method, model, each[None]) for each in image])
    model.to(device)
    composite = composite_of(name, method)
    map = explain(composite, model, image.to(device))
    assert map.device.type == device and map.dtype == torch.float64
    assert_close(map.cpu(), expected, 1e-6 if (name, device) == ('mobile', 'cuda') else 1e-10)
    saliency = composite.saliency
    assert (saliency is None) == ('CAM' not in method and 'layer' not in method)
    assert saliency is None or (saliency.device.type == device and saliency.ndim == 3)


@ON_DEVICES
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 2e-5), (torch.bfloat16, .3)])
@on_all_maps
def test_precisions(device, name, method, dtype, tolerance):
    '''Float32 and bfloat16 have 24 and 8 bits, of which some ten layers lose a few. In bfloat16 a ReLU near zero may be
    on the other side, and of a single stream, a sum of both signs, most may cancel.'''
    create, image = MODELS[name][0], random_image(3, 3, 16, 16).to(dtype)
    expected = explain_all(name, method, create().to(dtype).double(), image.double())
    model, image = create().to(device, dtype), image.to(device)
    map = explain_all(name, method, model, image)
    assert map.device.type == device and map.dtype == dtype and map.isfinite().all()
    tolerance = max(tolerance, rounding(model, image, unit=UNIT, factor=4.))
    assert (map.cpu().double() - expected).norm() < tolerance * expected.norm()


@ON_DEVICES
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('name', MODELS)
def test_output_is_bit_identical_with_the_kernels_of_the_default(device, name, channels_last, dtype):
    '''Among them TensorFloat-32 for float32, with which maps are near those of float64, too.'''
    create = MODELS[name][0]
    layout = {'memory_format': torch.channels_last if channels_last else torch.contiguous_format}
    model, image = create().to(device, dtype).to(**layout), random_image(3, 3, 16, 16).to(device, dtype).to(**layout)
    for method in ('SplitGrad', 'SplitCAM', 'SplitLRP'):
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
            map = explain_all(name, method, model, image)  # which compares the outputs
        expected = explain_all(name, method, create().to(dtype).double(), image.cpu().double())
        tolerance = max(.15, rounding(model, image, unit=UNIT, factor=4.))
        assert (map.cpu().double() - expected).norm() < tolerance * expected.norm()


@ON_DEVICES
def test_autocast(device):
    '''Weights of a convolution are rounded to 8 bits, those of the sum stay in float32.'''
    network, image = Network().float().to(device), random_image(2, 3, 16, 16).float().to(device)
    for create in (SplitGrad, lambda: SplitCAM('conv3', stream='+g'), lambda: SplitLRP(1e-2)):
        exact, maps = explain(create(), network, image), []
        with torch.autocast(device, torch.bfloat16):
            expected = network(image)
        for create_graph, backward_too in ((False, False), (True, False), (False, True)):
            leaf = image.clone().requires_grad_()
            with create().context(network):
                with torch.autocast(device, torch.bfloat16):
                    output = network(leaf)
                with torch.autocast(device, torch.bfloat16, enabled=backward_too):
                    map, = torch.autograd.grad(output[:, UNIT].sum(), leaf, create_graph=create_graph)
            assert output.dtype == torch.bfloat16 and torch.equal(output, expected)
            maps.append(map.detach())
        for map in maps[1:]:
            assert_close(map, maps[0], 1e-6)
        assert maps[0].dtype == torch.float32 and (maps[0] - exact).norm() < .2 * exact.norm()
    with torch.autocast(device, torch.bfloat16):
        pair = nn.Linear(4, 3, device=device)(SplitTensor.of(torch.randn(2, 4, device=device)))
    assert (pair.difference.dtype, pair.stream_sum.dtype) == (torch.bfloat16, torch.float32)


@ON_DEVICES
@pytest.mark.parametrize('alpha', [0., Balanced()])
def test_maps_out_of_the_range_of_float32(device, alpha):
    '''Each layer multiplies the sum's gradient by some 30, so that it is computed again, in float64.'''
    torch.manual_seed(0)
    layers = [layer for _ in range(40) for layer in (nn.Linear(32, 32), nn.ReLU())][:-1]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight)
    nn.init.constant_(layers[0].weight, 1e-32)
    model, image = nn.Sequential(*layers).eval(), torch.randn(3, 32)
    expected = explain(SplitGrad(alpha, '+g'), model.double(), image.double())
    map = explain(SplitGrad(alpha, '+g'), model.float().to(device), image.to(device))
    assert map.device.type == device and map.isfinite().all()
    assert_close(map.cpu().double(), expected, 1e-4)


# derivatives of maps

@ON_DEVICES
@pytest.mark.parametrize('composite', [SplitGrad(.3), SplitCAM('conv2', .3, '+g'), SplitLRP(.1)])
def test_maps_can_be_differentiated(device, composite):
    model, image = Small().to(device), random_image(1, 2, 4, 4).to(device).requires_grad_()
    seed = random_image(1, 2, seed=9).abs().to(device).requires_grad_()
    with composite.context(model):
        # in which gradients that are added by several threads may differ by rounding
        assert torch.autograd.gradgradcheck(model, image, seed, atol=1e-6, rtol=1e-6, nondet_tol=1e-10)


@ON_DEVICES
def test_maps_can_be_differentiated_by_weights(device):
    found = []
    for place in ('cpu', device):
        model, image = Network().to(place), random_image(3, 3, 16, 16).to(place).requires_grad_()
        with SplitGrad(.4).context(model):
            map, = torch.autograd.grad(model(image)[:, UNIT].sum(), image, create_graph=True)
            total = map.square().sum()
            found.append(torch.autograd.grad(total, [model.conv1.weight, model.conv4.weight, model.dense.weight]))
    for expected, actual in zip(*found):
        assert_close(actual.cpu(), expected)


ELSEWHERE = {'cpu': 'meta', 'cuda': 'cpu'}


@ON_DEVICES
@pytest.mark.parametrize('method', SMALL)
def test_a_model_that_is_moved_before_the_map(device, method):
    '''The map is the one of the model as it was, or there is an error.'''
    network, image = Network().to(device), random_image(2, 3, 16, 16).to(device)
    expected = explain(SMALL[method](), network, image)
    leaf = image.clone().requires_grad_()
    with SMALL[method]().context(network):
        output = network(leaf)
        network.to(ELSEWHERE[device])
        try:
            map, = torch.autograd.grad(output[:, UNIT].sum(), leaf)
        except RuntimeError as error:  # of torch, about tensors of two devices, or of the package
            assert any(word in str(error) for word in ('device', 'type', 'same'))
        else:
            assert_close(map, expected)


@ON_DEVICES
def test_a_model_that_is_moved_before_another_pass(device):
    network, image = Network().to(device), random_image(2, 3, 16, 16).to(device).requires_grad_()
    with SplitLRP(layer='conv2').context(network):
        output = network(image)
        network.to(ELSEWHERE[device])
        with pytest.raises(RuntimeError, match='same parameters|same device'):  # the latter from torch, which is first
            torch.autograd.grad(output[:, UNIT].sum(), image, create_graph=True)


# what is built on maps

@ON_DEVICES
def test_classes_are_given_on_the_cpu(device):
    network, image = Network(), random_image(3, 3, 16, 16)
    targets = torch.tensor([0, 3, 1])
    output = network(image).detach()
    weights = output.softmax(1).scatter(1, targets[:, None], 0.)
    weights = -weights / weights.sum(1, keepdim=True)
    expected = torch.cat([
        torch.autograd.grad(network(leaf), leaf, row[None])[0] / 2 for leaf, row in zip(
            image.split(1), weights.scatter(1, targets[:, None], 1.)
        ) if leaf.requires_grad_() is leaf
    ])
    network.to(device)
    attributor = Gradient(network, SplitGrad(.5))
    for given in (targets, targets.to(device), targets.tolist()):
        actual, map = attributor(image.to(device), contrast(given, 'likely'))
        assert map.device.type == device
        assert_close(actual.cpu(), output, 1e-12)
        assert_close(map.cpu(), expected)
    agreement = class_agreement(attributor, image.to(device))
    assert agreement.shape == (3,) and (agreement.abs() < .999).all()


@ON_DEVICES
@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('kind', [CAFO, CASO])
def test_group_features(device, kind, name):
    input, targets = images(), torch.tensor([0, 3, 6])
    known = [Reference(NETWORKS[name](), input[i:i + 1], target) for i, target in enumerate(targets.tolist())]
    attributor = kind(NETWORKS[name]().to(device), signed=True, **({'tolerance': 1e-9} if kind is CASO else {}))
    _, found = attributor(input.to(device), class_relevance(targets))
    assert found.device.type == device
    for reference, delta, lambda1, lambda2 in zip(known, found.cpu(), *attributor.solution[:2]):
        if kind is CASO:
            expected = coordinate_ascent(reference.g, reference.H, lambda1.item(), lambda2.item())
        else:
            thresholded = (reference.g.abs() - lambda1.item()).clamp(min=0.)
            expected = reference.g.sign() * thresholded / (2. * lambda2.item())
        assert_close(delta.flatten(), expected, 1e-7 if kind is CASO else 1e-10)


# the command line

@pytest.fixture(scope='module', name='drawings')
def fixture_drawings(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images') / '3'  # a class
    folder.mkdir()
    for index in range(5):
        Image.fromarray(draw(7, index).image).save(folder / f'{index}.png')
    return sorted(folder.iterdir())


def demo_maps(drawings, composite):
    '''The maps of the demo's network, in float64.'''
    model, preprocessing = demo_network().double(), demo_preprocessing()
    inputs = torch.stack([preprocessing(Image.open(drawing)) for drawing in drawings]).double()
    return Gradient(model, composite)(inputs, class_relevance())[1].sum(1)


COMMANDS = {
    'splitgrad': (lambda: SplitGrad(.4), ('--alpha', .4)),
    'splitcam': (lambda: SplitCAM('residual'), ('--layer', 'residual')),
    'splitlrp': (lambda: SplitLRP(.1, 'positive'), ('--epsilon', .1, '--stream', 'positive')),
}


@ON_DEVICES
@pytest.mark.parametrize('method', COMMANDS)
def test_explain(tmp_path, drawings, device, method):
    create, options = COMMANDS[method]
    require_success(run(
        'explain', *drawings[:2], '--model', 'demo', '--method', method, *options, '--against', 'none', '--device',
        device, '--dtype', 'float64', '--save-arrays', '--out', tmp_path / 'figure.png'
    ))
    found = sorted((tmp_path / 'figure_maps').glob('*.npy'))
    for path, expected in zip(found, demo_maps(drawings[:2], create()), strict=True):
        assert_close(torch.from_numpy(np.load(path)).double(), expected, 1e-6)  # as arrays are in float32


@ON_DEVICES
@pytest.mark.parametrize('method', COMMANDS)
def test_attribute(tmp_path, drawings, device, method):
    h5py = pytest.importorskip('h5py', reason='the extra "virelay" is not installed')
    create, options = COMMANDS[method]
    expected, workers = demo_maps(drawings, create()), 2 * (method == 'splitcam')
    for dtype, tolerance in (('float64', 1e-6), ('float32', 1e-2)):  # in which a ReLU near zero may change sides
        out = tmp_path / f'{dtype}.h5'
        require_success(run(
            'attribute', drawings[0].parents[1], '--model', 'demo', '--method', method, *options, '--device', device,
            '--dtype', dtype, '--batch-size', 3, '--workers', workers, '--out', out
        ))
        with h5py.File(out) as file:
            actual = torch.from_numpy(file['attribution'][:]).double().sum(1)
            assert file['target'][:].tolist() == file['prediction'][:].argmax(1).tolist()
        assert (actual - expected).norm() < tolerance * expected.norm()
