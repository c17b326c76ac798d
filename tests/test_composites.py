'''The composites in Zennit's workflows, and what they refuse.'''
import copy
import gc
import warnings
import weakref

import pytest
import torch
from helpers import assert_close, explain, gradient_of, random_image
from literal import Network
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils.checkpoint import checkpoint
from zennit.attribution import Gradient, SmoothGrad
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import COMPOSITES, EpsilonPlus, MixedComposite, NameMapComposite
from zennit.core import Composite
from zennit.rules import Epsilon, Gamma

from zennit_dc import Scaling, Shifting, SplitCAM, SplitCanonizer, SplitGrad, SplitLRP, SplitTensor
from zennit_dc.rules import ShiftedSensitivity, SplitEpsilon

METHODS = {
    'SplitGrad': lambda: SplitGrad(),
    'SplitGrad at a layer': lambda: SplitGrad(.3, '+g', 'conv3'),
    'SplitCAM': lambda: SplitCAM('pool', .3, '+g'),
    'SplitCAM h': lambda: SplitCAM('conv4', .3, 'h', pooling='convex'),
    'SplitLRP': lambda: SplitLRP(1e-3),
    'SplitLRP at a layer': lambda: SplitLRP(1e-3, layer='pool'),
    'SplitLRP at a convolution': lambda: SplitLRP(1e-3, layer='conv2', pooling='convex'),
}


@pytest.fixture(name='network')
def fixture_network():
    return Network()


@pytest.fixture(name='image')
def fixture_image():
    return random_image(2, 3, 16, 16)


def target(output):
    '''The output relevance of unit 2.'''
    return torch.eye(5, dtype=output.dtype)[[2] * len(output)]


def test_composites_are_registered():
    assert {'split_lrp': SplitLRP, 'split_grad': SplitGrad, 'split_cam': SplitCAM}.items() <= COMPOSITES.items()
    assert all(issubclass(kind, Composite) for kind in (SplitLRP, SplitGrad, SplitCAM))


@pytest.mark.parametrize('method', METHODS)
def test_attributor(network, image, method):
    expected = explain(METHODS[method](), network, image)
    composite = METHODS[method]()
    with Gradient(network, composite) as attributor:
        output, attribution = attributor(image, target)
        again = attributor(image, target)[1]
    assert torch.equal(output, network(image))
    assert torch.equal(attribution, expected) and torch.equal(again, expected)
    assert attribution.shape == image.shape


@pytest.mark.parametrize('method', METHODS)
def test_smooth_grad(network, image, method):
    composite = METHODS[method]()
    torch.manual_seed(3)
    with SmoothGrad(network, composite, noise_level=.1, n_iter=3) as attributor:
        _, attribution = attributor(image, target)
    torch.manual_seed(3)
    spread = (image.flatten(1).amax(1) - image.flatten(1).amin(1)).reshape(-1, 1, 1, 1)
    noise = [torch.randn_like(image) * .1 * spread if index else 0 * image for index in range(3)]
    noisy = [explain(METHODS[method](), network, image + one) for one in noise]
    # Zennit draws the noise of the first pass or not, depending on its version
    if not torch.allclose(attribution, sum(noisy) / 3, rtol=1e-6):
        torch.manual_seed(3)
        noisy = [
            explain(METHODS[method](), network, image + torch.randn_like(image) * .1 * spread) for _ in range(3)
        ]
    assert_close(attribution, sum(noisy) / 3)


def test_layer_map_is_upsampled_to_the_input(network, image):
    for composite in (SplitCAM('conv3', stream='+g'), SplitGrad(layer='conv3'), SplitLRP(layer='conv3')):
        assert composite.saliency is None
        attribution = explain(composite, network, image)
        assert composite.saliency.shape == (2, 8, 8)
        expected = F.interpolate(composite.saliency[:, None], (16, 16), mode='bilinear', align_corners=False)[:, 0]
        assert attribution.shape == image.shape
        assert_close(attribution.sum(1), expected, 1e-14)
        assert torch.equal(attribution[:, 0], attribution[:, 2])


def test_layer_may_be_a_container():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 5, 3), nn.Flatten())
    ).double()
    image = random_image(2, 3, 8, 8)
    one, two = SplitCAM('0', .3, '+g'), SplitCAM('0.1', .3, '+g')
    assert torch.equal(explain(one, model, image), explain(two, model, image))


def test_nothing_below_the_layer_is_differentiated(network, image):
    calls = []
    network.conv1.register_full_backward_hook(lambda *_: calls.append('conv1'))
    handle = network.conv2.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    explain(SplitCAM('conv3'), network, image)
    handle.remove()
    # the first is that of the plain forward pass
    assert calls == [True, False]


def test_other_canonizers_are_applied_before(image):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).double().eval()
    model[1].running_mean.normal_()
    merged = copy.deepcopy(model)
    SequentialMergeBatchNorm().apply(merged)
    with torch.no_grad():
        expected = merged(image)
    with SplitLRP(canonizers=[SequentialMergeBatchNorm()]).context(model):
        assert torch.equal(model(image), expected)
        assert torch.equal(model[1].weight, torch.ones(4, dtype=torch.float64))
    assert not torch.equal(model(image), expected)


def test_batch_norm_is_merged_in_the_order_of_execution(image):
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.unrelated = nn.Conv2d(4, 4, 1)
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return F.relu(self.norm(self.conv(x)), inplace=True).flatten(1)

    model = Backwards().double().eval()
    for parameter in (model.norm.weight, model.norm.bias):
        nn.init.normal_(parameter)
    model.norm.running_mean.normal_()
    merged = nn.Sequential(copy.deepcopy(model.conv), copy.deepcopy(model.norm), nn.ReLU(), nn.Flatten()).eval()
    SequentialMergeBatchNorm().apply(merged)
    for stream in ('positive', 'negative'):
        assert_close(explain(SplitLRP(stream=stream), model, image), explain(SplitLRP(stream=stream), merged, image))


def test_bare_canonizer_gives_the_original_gradient(network, image):
    assert torch.equal(explain(Composite(canonizers=[SplitCanonizer()]), network, image), gradient_of(network, image))


def test_hooks_of_the_user_keep_firing(network, image):
    seen = []
    network.conv1.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    explain(SplitGrad(), network, image)
    assert seen == [(2, 8, 16, 16)] * 2


def test_keyword_input(network, image):
    image.requires_grad_()
    with SplitGrad(.5).context(network):
        gradient, = torch.autograd.grad(network(x=image)[:, 2].sum(), image)
    assert torch.equal(gradient, gradient_of(network, image) / 2)


def test_shared_module_inside_of_a_layer_and_other_dimensions():
    tabular = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)).double().eval()
    series = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()).double()
    volume = nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.AdaptiveMaxPool3d(1), nn.Flatten()).double()
    for model, image, layer in (
        (tabular, random_image(3, 6), None), (series, random_image(2, 3, 9), '1'),
        (volume, random_image(2, 3, 5, 6, 7), '1'),
    ):
        for composite in [SplitGrad(.3), SplitLRP()] + ([SplitCAM(layer), SplitLRP(layer=layer)] if layer else []):
            assert explain(composite, model, image).shape == image.shape
        assert torch.equal(explain(SplitGrad(.5), model, image), gradient_of(model, image) / 2)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 2e-5), (torch.bfloat16, .1)])
@pytest.mark.parametrize('method', METHODS)
def test_dtypes(network, image, method, dtype, tolerance):
    '''Float32 and bfloat16 have 24 and 8 digits, of which a sum of some ten layers loses a few.'''
    expected = explain(METHODS[method](), network.to(dtype).double(), image.to(dtype).double())
    attribution = explain(METHODS[method](), network.to(dtype), image.to(dtype))
    assert attribution.dtype == dtype
    error = (attribution.double() - expected).norm() / expected.norm()
    assert error < tolerance


# the map itself can be differentiated

SMOOTH = {name: make for name, make in METHODS.items() if 'Grad' not in name}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.pool, self.dense = nn.Conv2d(3, 3, 1), nn.MaxPool2d(2), nn.Linear(3, 2)
        self.double().eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, x):
        x = F.relu(self.norm(self.conv1(x)))
        return self.dense(F.relu(self.pool(self.conv2(x) + x)).flatten(1))


@pytest.mark.parametrize('composite', [
    SplitGrad(.3), SplitGrad(.3, 'g', 'conv2'), SplitCAM('conv2', .3), SplitCAM('norm', .3, '+g'),
    SplitCAM('pool', .3, '-h', pooling='convex'), SplitCAM('pool', .3, '-h', recentering=Scaling(.1, .5)),
    SplitLRP(.1), SplitLRP(.1, 'positive', 'conv2'), SplitLRP(.1, layer='conv1'), SplitLRP(.1, pooling='convex'),
    SplitLRP(.1, input_split='half'), SplitLRP(.1, recentering=Scaling(.1, .5)), SplitLRP(.1, recentering=Shifting()),
])
def test_maps_can_be_differentiated(composite):
    model, image = Small(), random_image(1, 2, 4, 4).requires_grad_()
    seed = random_image(1, 2, seed=9).abs().requires_grad_()
    with composite.context(model):
        assert torch.autograd.gradgradcheck(model, image, seed, atol=1e-6, rtol=1e-6)
        plain, = torch.autograd.grad(model(image), image, seed.detach())
        differentiable, = torch.autograd.grad(model(image), image, seed.detach(), create_graph=True)
    assert_close(differentiable.detach(), plain, 1e-13)


def test_maps_can_be_differentiated_by_weights():
    model, image = Small(), random_image(1, 2, 4, 4).requires_grad_()
    for composite in (SplitGrad(.3), SplitCAM('conv2', .3, '+g'), SplitLRP(.1)):
        def total(weight, composite=composite):
            # the map is computed while the model has these weights
            with composite.context(model), _reparametrize_module(model, {'conv2.weight': weight}):
                attribution, = torch.autograd.grad(model(image)[:, 0].sum(), image, create_graph=True)
            return attribution.square().sum()

        weight = model.conv2.weight.detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(total, weight, atol=1e-6, rtol=1e-6)


# the model is left as it was

def state_of(model):
    return [
        (
            name, module, dict(module.__dict__), list(module._forward_hooks), list(module._forward_pre_hooks),
            {key: (value, value.requires_grad, value.clone()) for key, value in module._parameters.items()
             if value is not None},
            {key: value.clone() for key, value in module._buffers.items()},
        ) for name, module in model.named_modules()
    ]


def assert_untouched(model, before):
    after = state_of(model)
    assert len(after) == len(before)
    for old, new in zip(before, after):
        assert old[:2] == new[:2] and old[3:5] == new[3:5]
        assert old[2].keys() == new[2].keys()
        assert all(new[2][key] is value for key, value in old[2].items())
        for key, (parameter, requires_grad, value) in old[5].items():
            assert new[5][key][0] is parameter and parameter.requires_grad == requires_grad
            assert torch.equal(value, new[5][key][2]) and parameter.grad is None
        assert all(torch.equal(value, new[6][key]) for key, value in old[6].items())


@pytest.mark.parametrize('method', METHODS)
def test_model_is_untouched(network, image, method):
    network.conv1.weight.requires_grad_(False)
    before = state_of(network)
    explain(METHODS[method](), network, image)
    assert_untouched(network, before)
    with pytest.raises(ZeroDivisionError), METHODS[method]().context(network):
        network(image)
        raise ZeroDivisionError
    assert_untouched(network, before)
    network.train()
    training = state_of(network)
    with pytest.raises(RuntimeError, match='eval'), METHODS[method]().context(network):
        network(image)
    assert_untouched(network, training)
    assert torch.is_grad_enabled()


def test_nested_contexts(network, image):
    before = state_of(network)
    other = Network(1)
    with SplitGrad().context(network):
        expected = network(image)
        with pytest.raises(RuntimeError, match='split form already'), SplitLRP().context(network):
            pass
        with SplitLRP().context(other):
            assert torch.equal(network(image), expected)
            other(image)
        with SplitGrad().context(network.dense), pytest.raises(RuntimeError, match='nested'):
            network(image)
        assert torch.equal(network(image), expected)
    assert_untouched(network, before)


def test_context_that_can_not_be_entered(network):
    before = state_of(network)
    for composite in (SplitCAM('conv9'), SplitGrad({'': .3}), SplitGrad({'': .3, 'conv9': .2})):
        with pytest.raises(ValueError, match='conv'), composite.context(network):
            pass
        assert_untouched(network, before)


def test_own_forward_attribute_survives(network, image):
    plain = network.forward
    network.forward = lambda x: plain(x) * 2
    own = network.forward
    assert torch.equal(explain(SplitGrad(.5), network, image), gradient_of(network, image) / 2)
    assert network.__dict__['forward'] is own


# errors

@pytest.mark.parametrize('make, message', [
    (lambda: SplitGrad(.6), 'alpha'), (lambda: SplitGrad(-.1), 'alpha'), (lambda: SplitGrad(float('nan')), 'alpha'),
    (lambda: SplitGrad('0.4'), 'alpha'), (lambda: SplitGrad({'conv': .3}), 'output'),
    (lambda: SplitGrad(stream='positive'), 'stream'), (lambda: SplitCAM('x', stream='f'), 'stream'),
    (lambda: SplitLRP(stream='g'), 'stream'), (lambda: SplitLRP(epsilon=0.), 'epsilon'),
    (lambda: SplitLRP(epsilon=float('inf')), 'epsilon'), (lambda: SplitLRP(pooling='max'), 'pooling'),
    (lambda: SplitGrad(input_split='abs'), 'input_split'), (lambda: SplitGrad(recentering='sc'), 'recentering'),
    (lambda: SplitCAM(None), 'layer'), (lambda: SplitGrad(layer=3), 'layer'),
    (lambda: Scaling(1.), 'theta'), (lambda: Scaling(threshold=0.), 'threshold'),
])
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Calls(nn.Module):
    '''A model that calls a function behind a convolution, in a module of its own.'''
    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.block = nn.Sequential()
        self.block.calling = Calling(function)

    def forward(self, x):
        return self.block.calling(self.conv(x))


class Calling(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize('function, named', [
    (torch.sigmoid, r'sigmoid.*SmoothReplacement\(\)'), (F.softmax, 'softmax'), (torch.Tensor.exp, 'exp'),
    (lambda x: x ** 3, 'pow'),
    (F.gelu, 'gelu.*smooth'), (F.hardshrink, 'jumps'), (lambda x: F.threshold(x, 0., 1.), 'jumps'),
    (lambda x: x.clamp(x), 'bounds'), (lambda x: 1 / x, 'truediv'),
    (lambda x: x / x, 'division'), (lambda x: torch.zeros(1, 4, 6, 6).add_(x), 'plain tensor'),
    (lambda x: F.conv2d(torch.ones(1, 4, 9, 9), x), 'conv2d'), (lambda x: F.linear(x, x[0, 0]), 'linear'),
    (lambda x: F.interpolate(x, scale_factor=2, mode='bicubic'), 'interpolate'), (lambda x: x.numpy(), 'numpy'),
    (lambda x: F.relu(x[0, 0, 0]).fill_(1.), 'fill_'), (lambda x: x.amax(0), 'batch'), (copy.deepcopy, 'deepcopy'),
    (lambda x: F.conv2d(x[0], torch.ones(1, 4, 3, 3)), 'batch axis'), (lambda x: torch.ops.aten.relu(x), 'relu'),
    (lambda x: F.linear(x.flatten(), torch.ones(1, 144)), 'batch axis'), (lambda x: torch.sort(x)[0], 'sort'),
    (lambda x: torch.ones(6, 4) @ x[0, :, 0], 'samples'),
])
def test_unsupported_functions_are_named(function, named):
    model = Calls(function)
    with SplitGrad().context(model), pytest.raises(NotImplementedError, match=named) as error:
        model(torch.randn(1, 3, 8, 8))
    assert '\'block.calling\' (Calling)' in str(error.value)


@pytest.mark.parametrize('layer', [
    nn.BatchNorm2d(4), nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), F.dropout, F.dropout2d,
    nn.BatchNorm2d(4, track_running_stats=False).eval(), lambda x: F.batch_norm(x, None, None, training=True),
])
def test_training_mode(layer):
    model = Calls(layer)
    with SplitGrad().context(model), pytest.raises(RuntimeError, match=r'eval\(\)'):
        model(torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize('forward, layer, message', [
    (lambda self, x: self.two(self.two(self.one(x))).flatten(1), 'two', 'more than once'),
    (lambda self, x: self.two(self.one(x)).flatten(1), 'dense', 'was not called'),
    (lambda self, x: self.dense(self.two(self.one(x)).flatten(1)), 'dense', r'\(2, 5\).*spatial'),
    (lambda self, x: (self.two(self.one(x.detach())), self.one(x).flatten(1))[1], 'two', 'does not depend'),
])
def test_layers_that_have_no_map(forward, layer, message):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.dense = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(48, 5)

    Model.forward = forward
    model, image = Model(), torch.randn(2, 3, 4, 4).requires_grad_()
    with SplitCAM(layer).context(model), pytest.raises(ValueError, match=message):
        torch.autograd.grad(model(image).sum(), image)
    assert torch.is_grad_enabled()


def test_inputs_and_outputs_without_tensors():
    class Constant(nn.Module):
        def forward(self, x):
            return {'out': torch.ones(2)}

    with SplitGrad().context(model := Constant()):
        with pytest.raises(NotImplementedError, match='is a dict without any'):
            model(torch.randn(2, 3))
        with pytest.raises(NotImplementedError, match='without a floating point tensor'):
            model(torch.ones(2, 3, dtype=torch.int64))


def test_foreign_rules_are_refused(network, image):
    for rule in (Gamma(), Epsilon()):
        with pytest.raises(TypeError, match=type(rule).__name__):
            SplitLRP(layer_map=[(nn.Linear, rule)])
        mixed = MixedComposite([NameMapComposite([(['conv3'], rule)]), SplitLRP()])
        with mixed.context(network), pytest.raises(TypeError, match=f'{type(rule).__name__}.*conv3'):
            network(image)
    with EpsilonPlus().context(network), SplitGrad().context(network), pytest.raises(TypeError, match='conv1'):
        network(image)
    for rule, composite in ((ShiftedSensitivity(.3), SplitLRP()), (SplitEpsilon(), SplitGrad())):
        mixed = MixedComposite([NameMapComposite([(['conv3'], rule)]), composite])
        with mixed.context(network), pytest.raises(TypeError, match='rule for'):
            network(image)


@pytest.mark.parametrize('method', METHODS)
def test_maps_that_are_not_finite(network, image, method):
    image[0, 0, 0, 0] = torch.nan
    image.requires_grad_()
    with METHODS[method]().context(network), pytest.raises(FloatingPointError, match='not finite'):
        torch.autograd.grad(network(image).sum(), image, torch.full((), torch.nan, dtype=torch.float64))


def test_sum_that_is_not_computed_is_not_given(network, image):
    def read(module, args, output):
        with pytest.raises(RuntimeError, match='not computed'):
            return output.stream_sum

    handle = network.conv3.register_forward_hook(read)
    with SplitGrad().context(network):
        network(image)
    handle.remove()


def test_pair_from_tensors_of_other_shapes():
    with pytest.raises(ValueError, match='shape'):
        SplitTensor(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(TypeError, match='int64'):
        SplitTensor(torch.ones(2, dtype=torch.int64), torch.ones(2))


# what once was wrong

def test_default_output_relevance_keeps_nothing_alive():
    '''The output relevance of Zennit's default is the output itself, whose graph holds the run that holds it.'''
    network, composite = Network(), SplitGrad()
    gc.collect()
    gc.disable()
    try:
        for create_graph in (False, True):
            image = random_image(1, 3, 16, 16)
            kept = weakref.ref(image)
            with Gradient(network, composite, create_graph=create_graph) as attributor:
                attributor(image)
            del image
            assert kept() is None
    finally:
        gc.enable()


def test_map_that_needs_another_pass_needs_the_same_model():
    model, image = Small(), random_image(1, 2, 4, 4).requires_grad_()
    with SplitLRP().context(model):
        output = model(image)
    with pytest.raises(RuntimeError, match='inside of the composite'):
        torch.autograd.grad(output[:, 0].sum(), image, create_graph=True)
    with SplitLRP().context(model):
        output = model(image)
        model.conv2.weight.data = 2 * model.conv2.weight.data
        with pytest.raises(RuntimeError, match='same parameters'):
            torch.autograd.grad(output[:, 0].sum(), image, create_graph=True)


def test_autocast_holds_for_another_pass():
    network, image = Network().float(), random_image(2, 3, 16, 16).float().requires_grad_()
    maps = []
    for create_graph in (False, True):
        with SplitCAM('conv3', stream='+g').context(network):
            with torch.autocast('cpu', torch.bfloat16):
                output = network(image)
            maps.append(torch.autograd.grad(output[:, 2].sum(), image, create_graph=create_graph)[0].detach())
    assert_close(maps[1], maps[0], 1e-6)


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


@pytest.mark.parametrize('function', [
    Doubling.apply, lambda x: checkpoint(torch.relu, x, use_reentrant=True), lambda x: Doubling.apply(x).relu() + x,
])
def test_autograd_functions_are_refused(function):
    model, image = Calls(function), torch.randn(1, 3, 8, 8).requires_grad_()
    with SplitGrad().context(model), pytest.raises(NotImplementedError, match='autograd function'):
        model(image)


@pytest.mark.parametrize('axis', [1, 2, None])
def test_batch_axis_that_is_not_the_first(axis):
    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.other = nn.Linear(6, 6).double(), nn.Linear(6, 6).double()

        def forward(self, x):
            x = x.permute(1, 0, 2) if axis == 1 else x.transpose(0, 1).unsqueeze(0) if axis == 2 else x.transpose(0, 1)
            x = x.reshape(-1, 6) if axis is None else x
            x = self.other(F.relu(self.first(x))) + x
            return x.mean(0) if axis == 1 else x[0].mean(0) if axis == 2 else x.unflatten(0, (5, -1)).mean(0)

    model, image = Moved(), random_image(3, 5, 6)
    changed = image.clone()
    changed[1] *= 1e4
    maps = [explain(SplitLRP(), model, each) for each in (image, changed, image[:1])]
    assert_close(maps[1][[0, 2]], maps[0][[0, 2]], 1e-12)
    assert_close(maps[2], maps[0][:1], 1e-12)


def test_image_that_is_not_explained_beside_one_whose_gradients_are_scaled():
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(60) for layer in (nn.Linear(64, 64, bias=False), nn.ReLU())][:-1])
    for layer in model[::2]:
        nn.init.normal_(layer.weight)
    nn.init.constant_(model[0].weight, 1e-35)
    image = torch.randn(2, 64).requires_grad_()
    with SplitGrad(.38, '+g').context(model):
        output = model(image)
        map, = torch.autograd.grad(output[1, 2], image)
    assert torch.isfinite(map).all() and map[1].abs().max() > 0 and (map[0] == 0).all()


def test_map_that_is_not_finite_in_float16():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).half()
    model[0].weight.data.fill_(6e4)
    model[1].weight.data.copy_(torch.tensor([[10., -10.], [10., -10.]]))
    image = torch.full((1, 2), .01, dtype=torch.float16).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with SplitGrad(0., '+g').context(model):
            try:
                map, = torch.autograd.grad(model(image)[:, 0].sum(), image)
            except FloatingPointError:
                return
    assert torch.isfinite(map).all()


def test_functions_whose_names_have_two_signatures():
    pair = SplitTensor.of(random_image(2, 4, 6))
    weight, bias, mean, variance = (random_image(4, seed=seed).abs() for seed in range(4))
    output = torch.batch_norm(pair, weight, bias, mean, variance, False, .1, 1e-5, True)
    assert torch.equal(output.difference, F.batch_norm(pair.difference, mean, variance, weight, bias))
    values, places = torch.adaptive_max_pool1d(pair, 3)
    assert torch.equal(values.difference, F.adaptive_max_pool1d(pair.difference, 3)) and places.shape == (2, 4, 3)
    assert torch.dropout(pair, .5, False) is pair and torch.dropout(pair, p=.5, train=False) is pair


def test_in_place_operations_keep_the_dtype():
    pair = SplitTensor.of(torch.ones(2, 3, dtype=torch.bfloat16))
    pair += torch.full((2, 3), 1e-3)
    assert pair.dtype == torch.bfloat16 and torch.equal(pair.difference, torch.ones(2, 3, dtype=torch.bfloat16))
    with pytest.raises(NotImplementedError, match='shape'):
        SplitTensor.of(torch.ones(1, 3)).add_(torch.ones(2, 3))


def test_constants_of_other_dtypes():
    pair = SplitTensor.of(random_image(2, 3))
    numbers = torch.tensor([1, 200, 3], dtype=torch.uint8)
    assert torch.equal((pair - numbers).difference, pair.difference - numbers)
    assert_close((pair - numbers).stream_sum, pair.stream_sum + numbers)
    assert torch.equal((pair + (numbers > 2)).difference, pair.difference + (numbers > 2))
    constant = torch.ones(2, 3)
    assert constant.type_as(pair).dtype == torch.float64 and constant.to(pair).dtype == torch.float64
    assert constant.reshape_as(pair).shape == (2, 3) and constant[:1].expand_as(pair).shape == (2, 3)


def test_memory_of_sums_is_that_of_differences():
    pair = SplitTensor.of(torch.ones(2, dtype=torch.bfloat16))
    converted = pair.float()
    converted.view(2, 1).mul_(10.)
    assert torch.equal(pair.stream_sum, torch.ones(2)) and torch.equal(converted.stream_sum, torch.full((2,), 10.))
    torn = SplitTensor(torch.ones(2, 3), torch.ones(3, 2).T)
    flat = torn.view(6)
    with pytest.raises(NotImplementedError, match='in-place operation on a view'):
        flat.mul_(10.)


@pytest.mark.parametrize('function', [
    lambda x: x * (x > 0), lambda x: x * (x > 0).float(), lambda x: x + torch.sign(x), lambda x: (x >= 0) * x,
])
def test_comparisons_are_no_constants(function):
    model = Calls(function)
    with SplitGrad().context(model), pytest.raises(NotImplementedError, match='comparison'):
        model(torch.randn(1, 3, 8, 8))


def test_composites_can_not_be_made_inactive():
    with pytest.raises(NotImplementedError, match='create_graph'):
        SplitGrad().inactive()


def test_saliency_is_that_of_this_model_and_without_a_graph(network, image):
    composite = SplitCAM('conv3')
    explain(composite, network, image, create_graph=True)
    assert not composite.saliency.requires_grad
    with composite.context(Network(1)):
        assert composite.saliency is None


@pytest.mark.parametrize('names, rule', [(['conv1'], SplitEpsilon(.5)), (['conv2'], SplitEpsilon(.2))])
def test_epsilon_of_a_convolution_with_batch_norm(network, image, names, rule):
    literal = network.literal(merged=True)
    output = literal.forward(image, recentering=(.1, 10.))[0]
    epsilons = dict.fromkeys([name for name, *_ in literal.nodes], 1e-6)
    epsilons[names[0].replace('conv', 'norm')] = rule.epsilon
    expected = literal.relevances(target(output), epsilons)['input'][0]
    mixed = MixedComposite([NameMapComposite([(names, rule)]), SplitLRP(stream='positive')])
    assert_close(explain(mixed, network, image), expected)


def test_rule_of_a_root_that_is_a_layer():
    model, image = nn.Linear(4, 3).double(), random_image(2, 4)
    strong = explain(SplitLRP(layer_map=[(nn.Linear, SplitEpsilon(10.))]), model, image)
    assert_close(strong, explain(SplitLRP(10.), model, image))


def test_mixed_composite_that_can_not_be_entered(network):
    before = state_of(network)
    mixed = MixedComposite([NameMapComposite([]), SplitGrad({'': .3})])
    with pytest.raises(ValueError, match='conv1'), mixed.context(network):
        pass
    assert_untouched(network, before)


def test_output_may_be_changed_in_place(network, image):
    expected = gradient_of(network, image) / 2
    image.requires_grad_()
    with SplitGrad(.5).context(network):
        output = network(image)
        output += 1.
        assert torch.equal(torch.autograd.grad(output[:, 2].sum(), image)[0], expected)
