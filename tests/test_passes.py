'''One forward pass of a model and its map: where the map is read, what it depends on, and what becomes of it.'''
import contextlib
import gc
import re
import warnings
import weakref

import pytest
import torch
from helpers import alive, assert_close, divided, explain, gradients, random_image
from literal import Network
from small_models import METHODS, Between, Block, Small, UNet, with_layers
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils.checkpoint import checkpoint
from zennit.attribution import Gradient

from zennit_dc import Balanced, DetachedActivations, Scaling, Shifting, SplitCAM, SplitGrad, SplitLRP


# inputs and outputs

class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.other, self.dense = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(5, 2)
        self.double()

    def forward(self, x, numbers, *, other):
        assert numbers.dtype == torch.int64
        return self.dense(F.relu(self.first(x[0]) + self.other(other['y'])))


class InARow(nn.Module):
    '''The same model with both inputs in one tensor.'''
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model([x[:, :4]], torch.arange(3), other={'y': x[:, 4:]})


@pytest.mark.parametrize('make', [lambda: SplitGrad(.5), lambda: SplitGrad(.3), lambda: SplitLRP(1e-3)])
def test_several_nested_inputs(make):
    model = TwoInputs()
    x, y = random_image(2, 4).requires_grad_(), random_image(2, 3, seed=2).requires_grad_()
    numbers = torch.arange(3)
    plain = model([x], numbers, other={'y': y})
    with make().context(model):
        output = model([x], numbers, other={'y': y})
        maps = torch.autograd.grad(output[:, 1].sum(), (x, y))
    assert torch.equal(output, plain)
    assert maps[0].shape == x.shape and maps[1].shape == y.shape and all(map.abs().max() > 0. for map in maps)
    assert_close(torch.cat(maps, 1), explain(make(), InARow(model), torch.cat([x, y], 1), 1))


@pytest.mark.parametrize('alpha', [.5, .3])
def test_two_layers_whose_outputs_are_added_are_one(alpha):
    '''For gradients; one layer shares relevance by contribution, and an addition evenly.'''
    model = TwoInputs()
    joined = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), model.dense).double()
    joined[0].weight.data = torch.cat([model.first.weight.data, model.other.weight.data], 1)
    joined[0].bias.data = model.first.bias.data + model.other.bias.data
    both = random_image(2, 7)
    assert_close(explain(SplitGrad(alpha), InARow(model), both, 1), explain(SplitGrad(alpha), joined, both, 1))


class TwoOutputs(nn.Module):
    def __init__(self, depth=1):
        super().__init__()
        self.trunk = nn.Sequential(*[
            layer for _ in range(depth) for layer in (nn.Linear(8, 8, bias=False), nn.ReLU())
        ])
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 2)])

    def forward(self, x):
        x = self.trunk(x)
        return {'one': self.heads[0](x), 'rest': (7, [self.heads[1](x)])}


def test_nested_outputs():
    model, image = TwoOutputs().double(), random_image(2, 8).requires_grad_()
    plain = model(image)
    one, = torch.autograd.grad(plain['one'][:, 1].sum(), image, retain_graph=True)
    other, = torch.autograd.grad(plain['rest'][1][0][:, 0].sum(), image)
    with SplitGrad(.5).context(model):
        output = model(image)
        assert torch.equal(output['one'], plain['one']) and torch.equal(output['rest'][1][0], plain['rest'][1][0])
        assert output['rest'][0] == 7
        for total, expected in (
            (output['one'][:, 1].sum(), one), (output['rest'][1][0][:, 0].sum(), other),
            (output['one'][:, 1].sum() + output['rest'][1][0][:, 0].sum(), one + other),
        ):
            assert_close(torch.autograd.grad(total, image, retain_graph=True)[0], expected / 2, 1e-13)


def test_two_classes_of_one_forward_pass():
    model, image = TwoOutputs().double(), random_image(2, 8)
    for make in (lambda: SplitGrad(.2), SplitLRP):
        pixels = image.clone().requires_grad_()
        with make().context(model):
            output = model(pixels)['one']
            maps = [torch.autograd.grad(output[:, unit].sum(), pixels, retain_graph=True)[0] for unit in (0, 2)]
        for unit, map in zip((0, 2), maps):
            with make().context(model):
                pixels = image.clone().requires_grad_()
                again, = torch.autograd.grad(model(pixels)['one'][:, unit].sum(), pixels)
            assert torch.equal(map, again)


# maps of layers

def test_layer_map_is_upsampled_to_the_input(network, image):
    for composite in (SplitCAM('conv3', stream='+g'), SplitGrad(layer='conv3'), SplitLRP(layer='conv3')):
        assert composite.saliency is None
        attribution = explain(composite, network, image)
        assert composite.saliency.shape == (2, 8, 8)
        expected = F.interpolate(composite.saliency[:, None], (16, 16), mode='bilinear', align_corners=False)[:, 0]
        assert attribution.shape == image.shape
        assert_close(attribution.sum(1), expected, 1e-12)
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
    handle = network.conv2.register_forward_hook(lambda module, args, output: calls.append(output.requires_grad))
    explain(SplitCAM('conv3'), network, image)
    handle.remove()
    # the first is the plain forward pass
    assert calls == [True, False]


@pytest.mark.parametrize('forward, layer, message', [
    (lambda self, x: self.two(self.two(self.one(x))).flatten(1), 'two', 'more than once'),
    (lambda self, x: self.two(self.one(x)).flatten(1), 'dense', 'was not called'),
    (lambda self, x: self.dense(self.two(self.one(x)).flatten(1)), 'dense', r'\(2, 5\).*spatial'),
    (lambda self, x: (self.two(self.one(x.detach())), self.one(x).flatten(1))[1], 'two', 'not on a split pair.*detach'),
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


def test_channels_that_are_the_last_axis():
    '''The map is the map after their permutation.'''
    class ChannelsLast(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mix, self.other = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 6), nn.Identity()
            self.back, self.dense = nn.Identity(), nn.Linear(6, 4)

        def forward(self, x):
            x = self.mix(self.conv(x).permute(0, 2, 3, 1))
            x = self.other(x.reshape(len(x), -1, 6).reshape(x.shape))
            return self.dense(F.relu(self.back(x.permute(0, 3, 1, 2)).clone()).mean((2, 3)))

    model, image = ChannelsLast().double(), random_image(2, 3, 16, 16)
    maps = []
    for layer in ('conv', 'mix', 'other', 'back'):
        composite = SplitCAM(layer, .3)
        explain(composite, model, image)
        maps.append(composite.saliency)
        assert composite.saliency.shape == (2, 16, 16)
    for map in maps[1:3]:
        assert_close(map, maps[3], 1e-12)


# maps that are differentiated

@pytest.mark.parametrize('composite', [
    SplitGrad(.3), SplitGrad(.3, 'g', 'conv2'), SplitCAM('conv2', .3), SplitCAM('norm', .3, '+g'),
    SplitCAM('pool', .3, '-h', pooling='convex'), SplitCAM('pool', .3, '-h', recentering=Scaling(.1, .5)),
    SplitLRP(.1), SplitLRP(.1, 'positive', 'conv2'), SplitLRP(.1, layer='conv1'), SplitLRP(.1, pooling='convex'),
    SplitLRP(.1, input_split='half'), SplitLRP(.1, recentering=Scaling(.1, .5)), SplitLRP(.1, recentering=Shifting()),
])
def test_maps_can_be_differentiated(composite):
    model, image = Small(), alive(Small(), 1, 2, 4, 4).requires_grad_()
    seed = random_image(1, 2, seed=9).abs().requires_grad_()
    with composite.context(model):
        assert torch.autograd.gradgradcheck(model, image, seed, atol=1e-6, rtol=1e-6, fast_mode=True)
        plain, = torch.autograd.grad(model(image), image, seed.detach())
        differentiable, = torch.autograd.grad(model(image), image, seed.detach(), create_graph=True)
    assert_close(differentiable.detach(), plain, 1e-13)


def test_maps_can_be_differentiated_by_weights():
    model, image = Small(), alive(Small(), 1, 2, 4, 4).requires_grad_()
    for composite in (SplitGrad(.3), SplitCAM('conv2', .3, '+g'), SplitLRP(.1)):
        def total(weight, composite=composite):
            # the map is computed while the model has these weights
            with composite.context(model), _reparametrize_module(model, {'conv2.weight': weight}):
                attribution, = torch.autograd.grad(model(image)[:, 0].sum(), image, create_graph=True)
            return attribution.square().sum()

        weight = model.conv2.weight.detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(total, weight, atol=1e-6, rtol=1e-6, fast_mode=True)


def test_map_that_needs_another_pass_needs_the_same_model():
    model, image = Small(), alive(Small(), 1, 2, 4, 4).requires_grad_()
    with SplitLRP(layer='conv2').context(model):
        output = model(image)
    with pytest.raises(RuntimeError, match='inside of the composite'):
        torch.autograd.grad(output[:, 0].sum(), image, create_graph=True)
    with SplitLRP(layer='conv2').context(model):
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


# gradients that are too large

def test_scale_is_undone_where_the_map_is_representable():
    '''In this network the sensitivities of early layers overflow on the way, but not at the input.'''
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 64)]
    for _ in range(60):
        layers += [torch.nn.ReLU(), torch.nn.Linear(64, 64)]
    model = torch.nn.Sequential(*layers)
    for layer in layers[::2]:
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    torch.nn.init.constant_(layers[0].weight, 1e-35)
    image = torch.randn(3, 8)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        # each layer multiplies the sum's gradient by about 0.24 * 51, and the first by 1e-35
        single = explain(SplitGrad(.38, '+g'), model, image)
    double = explain(SplitGrad(.38, '+g'), model.double(), image.double())
    assert 1e3 < double.abs().max() < 1e38
    assert_close(single.double(), double, 1e-4)


def test_scaled_gradients_of_nested_outputs():
    torch.manual_seed(0)
    model, image = TwoOutputs(90), torch.randn(2, 8)
    for module in model.trunk:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=2.)
    maps = {}
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        pixels = image.to(dtype).requires_grad_()
        with SplitGrad(.1).context(model), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            output = model(pixels)
            for key, total in (
                ('one', output['one'][:, 1].sum()), ('other', 3 * output['rest'][1][0][:, 0].sum()),
                ('both', output['one'][:, 1].sum() + output['rest'][1][0][:, 0].sum()),
            ):
                map, = torch.autograd.grad(total, pixels, retain_graph=True)
                largest = map.double().abs().amax(1, keepdim=True)
                maps[key, dtype] = map.double() / largest
                assert dtype == torch.float32 or largest.min() > 1e40
    for key in ('one', 'other', 'both'):
        assert_close(maps[key, torch.float32], maps[key, torch.float64], 1e-4)


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


@pytest.mark.parametrize('composite', [
    SplitLRP(input_split='half'), SplitLRP(input_split='half', layer='0'),
    SplitLRP(input_split='half', recentering=Shifting()),
])
def test_halves_of_an_input_once_more_in_float64(composite):
    '''Whose sum, which is zero, has no graph of its own. In float32, relevance over outputs overflows on its way.'''
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(20, 2)).requires_grad_(False)
    model[0].weight /= 1e36
    model[2].weight *= 1e36
    series, relevance, maps = random_image(2, 3, 5, dtype=torch.float32), torch.full((2, 2), 1e10), []
    for dtype in (torch.float32, torch.float64):
        input = series.to(dtype).requires_grad_()
        with composite.context(model.to(dtype)), warnings.catch_warnings():
            warnings.simplefilter('error')
            maps += torch.autograd.grad(model(input), input, relevance.to(dtype))
    assert_close(maps[0].double(), maps[1], 1e-4)


def test_map_that_is_not_finite_in_float16():
    '''It is scaled by the power of two that the warning names.'''
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).half()
    model[0].weight.data.fill_(6e4)
    model[1].weight.data.copy_(torch.tensor([[10., -10.], [10., -10.]]))
    image = torch.full((1, 2), .01, dtype=torch.float16)
    with pytest.warns(UserWarning, match='too large for torch.float16') as caught:
        map = explain(SplitGrad(0., '+g'), model, image, 0)
    power, = (int(each) for each in re.findall(r'power of \[(-?\d+)\]', str(caught[0].message)))
    expected = 2. ** power * explain(SplitGrad(0., '+g'), model.double(), image.double(), 0)
    assert expected.abs().max() <= torch.finfo(torch.float16).max < 2. ** -power * expected.abs().max()
    assert_close(map.double(), expected, torch.finfo(torch.float16).eps)


@pytest.mark.parametrize('method', METHODS)
def test_maps_that_are_not_finite(network, image, method):
    image[0, 0, 0, 0] = torch.nan
    image.requires_grad_()
    with METHODS[method]().context(network), pytest.raises(FloatingPointError, match='not finite'):
        torch.autograd.grad(network(image).sum(), image, torch.full((), torch.nan, dtype=torch.float64))


@pytest.mark.parametrize('cause', ['the input', 'conv2.weight', 'the relevance that enters'])
def test_what_is_not_finite_is_named(cause, image):
    network, relevance = Network(), torch.ones(len(image), 5).double()
    image = image.clone()
    {'the input': image, 'conv2.weight': network.conv2.weight.data}.get(cause, relevance)[0, 0] = float('nan')
    with pytest.raises(FloatingPointError, match=f'SplitLRP is not finite: {cause}'):
        Gradient(network, SplitLRP())(image, relevance)


# what is kept

@pytest.mark.parametrize('again', [False, True])
@pytest.mark.parametrize('name', ['SplitGrad', 'SplitLRP', 'SplitCAM'])
def test_no_forward_pass_is_kept_alive(name, again):
    '''Nor one that is run again, as for a map at a layer that can be differentiated.'''
    model, image, seen = UNet(), random_image(2, 2, 16, 16), []
    makers = {'SplitGrad': SplitGrad, 'SplitLRP': SplitLRP, 'SplitCAM': lambda: SplitCAM('bottom', stream='+g')}
    composite = makers[name]()
    model.conv.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output.difference)))
    gc.collect()
    gc.disable()
    try:
        with composite.context(model):
            pixels = image.clone().requires_grad_()
            output = model(pixels)
            map, = torch.autograd.grad(output[:, 1].sum(), pixels, create_graph=again)
            del output, map
            kept = weakref.ref(pixels)
            del pixels
            assert kept() is None and all(one() is None for one in seen)
            assert len(seen) > (again and name == 'SplitCAM')
    finally:
        gc.enable()


class Gated(nn.Module):
    '''A convolution whose channels are gated, so that the pass starts over with sums.'''
    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.last = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.double()

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.last(F.relu(x * F.hardsigmoid(self.gate(x)))).mean((2, 3))


@pytest.mark.parametrize('composite', [
    SplitGrad(.3), SplitGrad(), SplitGrad(.3, '+g', 'gate'), SplitCAM('conv', stream='+g'), SplitLRP()
])
def test_no_pass_with_products_is_kept_alive(composite):
    model, image, seen = Gated(), random_image(2, 2, 8, 8), []
    model.conv.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output.difference)))
    for _ in range(2):
        with composite.context(model):
            pixels = image.clone().requires_grad_()
            torch.autograd.grad(model(pixels)[:, 1].sum(), pixels)
    gc.collect()
    assert len(seen) >= 2 and not any(one() is not None for one in seen)


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


# which backward passes make a map

@pytest.mark.parametrize('make', [
    lambda: SplitGrad(.3), lambda: SplitGrad(Balanced()), lambda: SplitGrad(.2, '-h', pooling='convex'),
    lambda: SplitLRP(.1), lambda: SplitLRP(.1, recentering=Shifting()), lambda: SplitLRP(.1, layer='norm'),
    lambda: SplitCAM('conv2', .3, '+g'),
])
def test_loss_of_output_and_map(make):
    '''Its gradient is the sum of both parts' gradients, each computed on its own, the output's outside of a context.'''
    model, image = Small(), alive(Small(), 2, 2, 4, 4).requires_grad_()
    inputs = [*model.parameters(), image]

    def parts():
        output = model(image)
        return output, torch.autograd.grad(output[:, 1].sum(), image, create_graph=True)[0].square().sum()

    expected = torch.autograd.grad(model(image).sum(), inputs)
    with make().context(model):
        of_map = torch.autograd.grad(parts()[1], inputs, allow_unused=True)
        output, penalty = parts()
        joint = torch.autograd.grad(output.sum() + penalty, inputs)
        by_weights = torch.autograd.grad(model(image).sum(), inputs[:-1])
    for one, first, second in zip(joint, expected, of_map):
        assert_close(one, first if second is None else first + second, 1e-12)
    # without the way to the input, there is no map
    assert all(torch.equal(one, other) for one, other in zip(by_weights, expected))


def test_two_maps_and_a_gradient_of_one_forward_pass():
    model, image = Small(), alive(Small(), 2, 2, 4, 4).requires_grad_()
    alone = [explain(SplitLRP(.1), model, image, unit) for unit in (0, 1)]
    with SplitLRP(.1).context(model):
        output = model(image)
        maps = [torch.autograd.grad(output[:, unit].sum(), image, create_graph=True)[0] for unit in (0, 1)]
        between = torch.autograd.grad(maps[0].sum(), model.conv1.weight, retain_graph=True)[0]
        again = torch.autograd.grad(output[:, 1].sum(), image, retain_graph=True)[0]
        assert torch.equal(between, torch.autograd.grad(maps[0].sum(), model.conv1.weight)[0])
    for one, other in zip((*maps, again), (*alone, alone[1])):
        assert_close(one.detach(), other, 1e-13)


def test_output_is_bit_identical_where_axes_have_length_one():
    '''Strides of such axes mean nothing, but may choose how a convolution is computed.'''
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        sizes = [int(torch.randint(1, 4, (), generator=generator)) for _ in range(4)]
        conv = nn.Conv2d(sizes[1], 5, 1).double()
        model = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(5, 3, 1).double(), nn.Flatten())
        order = torch.randperm(4, generator=generator).tolist()
        image = torch.randn([sizes[axis] for axis in order], generator=generator, dtype=torch.float64)
        image = image.permute([order.index(axis) for axis in range(4)])
        for composite in (SplitGrad(), SplitLRP(), SplitCAM('1', stream='+g')):
            with composite.context(model):
                output = model(image.requires_grad_())
            assert torch.equal(output, model(image))


class Switching(nn.Module):
    '''A network, some of whose layers run in a context of their own.'''
    def __init__(self, context):
        super().__init__()
        torch.manual_seed(0)
        self.context = context
        self.conv, self.relu, self.dense = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(16, 4)
        self.double()

    def forward(self, x):
        with self.context():
            x = self.relu(self.conv(x))
        return self.dense(x.flatten(1))


@pytest.mark.parametrize('context', [torch.enable_grad, torch.no_grad])
def test_layer_that_is_called_where_gradients_are_switched(context):
    image = random_image(2, 3, 4, 4)
    for make in (lambda: SplitCAM('relu', stream='+g'), lambda: SplitLRP(layer='relu')):
        expected = explain(make(), Switching(contextlib.nullcontext), image)
        image.requires_grad_()
        with make().context(model := Switching(context)):
            assert torch.equal(torch.autograd.grad(model(image)[:, 2].sum(), image)[0], expected)
        image = image.detach()


def test_layer_before_what_runs_without_gradients():
    model = Switching(torch.no_grad).requires_grad_(False)
    model.relu = nn.Sequential(nn.Flatten(1), nn.ReLU())
    with SplitCAM('conv').context(model), pytest.raises(ValueError, match='no_grad'):
        model(random_image(1, 3, 4, 4).requires_grad_())


class Tokens(nn.Module):
    '''A layer of tokens that are as many as the squared number of channels.'''
    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.last = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(512, 3)
        self.rows, self.channels = nn.Identity(), nn.Identity()

    def forward(self, x):
        x = self.mix(F.relu(self.conv(x)).flatten(2).mT)
        rows = self.rows(x.view(-1, 8, 8, 8))
        return self.last(F.relu(self.channels(rows.permute(0, 3, 1, 2)).clone()).flatten(1))


def test_channels_are_found_where_all_sides_are_equal():
    model, image = Tokens().double(), random_image(2, 3, 32, 32)
    maps = []
    for layer in ('conv', 'channels', 'rows', 'mix'):
        explain(composite := SplitCAM(layer, .3), model, image)
        maps.append(composite.saliency)
    assert_close(maps[2], maps[1], 1e-12)
    assert_close(maps[3], maps[1], 1e-12)


@pytest.mark.parametrize('make', [lambda: SplitGrad(.3), SplitLRP])
def test_maps_of_checkpoints_can_be_differentiated(make):
    model, image = UNet(), random_image(2, 2, 16, 16).requires_grad_()
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return checkpoint(self.model, x, use_reentrant=False)

    maps = []
    for each in (model, Checkpointed()):
        with make().context(each):
            map, = torch.autograd.grad(each(image)[:, 1].sum(), image, create_graph=True)
            maps.append((map.detach(), torch.autograd.grad(map.square().sum(), model.bottom.weight)[0]))
    for one, other in zip(*maps):
        assert_close(one, other, divided() if make is SplitLRP else 1e-12)


@pytest.mark.parametrize('make', [
    lambda: SplitGrad(.3), SplitLRP, lambda: SplitGrad(.3, '+g', pooling='convex'), lambda: SplitCAM('before', .3)
])
@pytest.mark.parametrize('function', [
    lambda x: x * x.relu(), lambda x: x.abs() + x, lambda x: F.max_pool2d((x.relu() * 2 + x).abs(), 2), nn.ReLU(True),
])
def test_checkpoints_within_a_checkpoint(function, make):
    def nested(depth):
        def run(x):
            return checkpoint(nested(depth - 1), x, use_reentrant=False) if depth else function(x)
        return run

    image = random_image(2, 4, 9, 9)
    expected, *found = (gradients(make(), Between(nested(depth)), image)[0] for depth in (0, 1, 2, 3))
    for each in found:
        assert_close(each, expected, divided() if make is SplitLRP else 1e-12)


@pytest.mark.parametrize('make', [SplitLRP, lambda: SplitLRP(stream='positive')])
def test_checkpoint_after_the_context_names_the_way_out(make):
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())

        def forward(self, x):
            return checkpoint(self.block, x, use_reentrant=False)

    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), Again(), nn.Flatten(), nn.Linear(108, 3)
    ).double().eval()
    image = random_image(2, 2, 6, 6).requires_grad_()
    for is_inside in (True, False):
        with make().context(model):
            map, = torch.autograd.grad(model(image)[:, 1].sum(), image, create_graph=True)
            if is_inside:
                map.square().sum().backward()
        if not is_inside:
            with pytest.raises(RuntimeError, match='call the backward pass inside of the context'):
                map.square().sum().backward()


@pytest.mark.parametrize('make', [
    lambda: SplitCAM('2.function.0', .3), lambda: SplitCAM('2.function.0', .3, '+g'),
    lambda: SplitGrad(layer='2.function.0')
])
def test_layer_within_a_checkpoint_is_refused(make):
    layers = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()
    block, input = Block(nn.Sequential(*layers), True), random_image(2, 3, 8, 8)
    with pytest.raises(RuntimeError, match='by a checkpoint: read the map outside of it'):
        gradients(make(), with_layers(block), input)


@pytest.mark.parametrize('function', [F.relu, lambda x: F.relu6(6. * x), nn.ReLU(inplace=True)])
@pytest.mark.parametrize('make', [SplitLRP, lambda: SplitGrad(.3)])
def test_checkpoint_after_a_layer(function, make):
    block, input = Block(function), random_image(2, 3, 8, 8)
    model = with_layers(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4).double(), block)
    expected, = gradients(make(), model, input)
    block.saves = True
    assert_close(gradients(make(), model, input)[0], expected, divided() if make is SplitLRP else 1e-12)


@pytest.mark.parametrize('function, composite', [
    (nn.ReLU6(), SplitGrad()), (nn.Hardsigmoid(), SplitLRP()), (nn.Softshrink(.123), SplitGrad()),
    (torch.abs, SplitLRP()), (lambda x: F.hardtanh(x, -.789, .321), SplitGrad()),
    (nn.GELU(), SplitGrad(canonizers=[DetachedActivations()])),
    (nn.Hardswish(), SplitGrad(canonizers=[DetachedActivations()])),
])
def test_inference_mode(function, composite):
    model, input = with_layers(Block(function)), random_image(2, 3, 8, 8)
    expected = model(input)
    with torch.inference_mode(), composite.context(model):
        assert torch.equal(model(input), expected)


class Turning(nn.Module):
    '''A layer's activation, of whose input something else is made too in the second run.'''
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.relu(x) + x if self.calls == 2 else torch.relu(x)


def test_model_that_takes_another_path_when_it_is_run_again():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Turning(), nn.Flatten(), nn.Linear(144, 3)).double()
    input = random_image(2, 3, 8, 8).requires_grad_()
    with SplitCAM('0', .3).context(model), pytest.raises(RuntimeError, match='has changed since its forward pass'):
        torch.autograd.grad(model(input)[:, 0].sum(), input, create_graph=True)


def test_gradient_within_a_model_that_has_none():
    class Asking(nn.Module):
        def forward(self, x):
            with torch.enable_grad():
                x.requires_grad_()
            return x

    model = with_layers(Asking())
    with SplitGrad().context(model), torch.no_grad(), pytest.raises(RuntimeError, match='runs in no_grad'):
        model(random_image(2, 3, 8, 8))
