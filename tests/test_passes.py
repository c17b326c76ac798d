'''Models of other structures than one image in, one tensor of logits out.'''
import copy
import gc
import warnings
import weakref

import pytest
import torch
import torchvision
from helpers import assert_close, explain, gradient_of, random_image
from torch import nn
from torch.nn import functional as F

from zennit_dc import SmoothReplacement, SplitCAM, SplitGrad, SplitLRP


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.other, self.dense = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(5, 2)
        self.double()

    def forward(self, x, numbers, *, other):
        assert numbers.dtype == torch.int64
        return self.dense(F.relu(self.first(x[0]) + self.other(other['y'])))


@pytest.mark.parametrize('make', [lambda: SplitGrad(.5), lambda: SplitGrad(.3), lambda: SplitLRP(1e-3)])
def test_several_nested_inputs(make):
    '''The maps are those of a model whose one input is both, in a row.'''
    model = TwoInputs()
    joined = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), model.dense).double()
    joined[0].weight.data = torch.cat([model.first.weight.data, model.other.weight.data], 1)
    joined[0].bias.data = model.first.bias.data + model.other.bias.data
    if isinstance(make(), SplitLRP):
        # one layer shares relevance by contribution, an addition evenly
        joined = None
    x, y = random_image(2, 4).requires_grad_(), random_image(2, 3, seed=2).requires_grad_()
    numbers = torch.arange(3)
    plain = model([x], numbers, other={'y': y})
    with make().context(model):
        output = model([x], numbers, other={'y': y})
        maps = torch.autograd.grad(output[:, 1].sum(), (x, y))
    assert torch.equal(output, plain)
    if joined is not None:
        assert_close(torch.cat(maps, 1), explain(make(), joined, torch.cat([x, y], 1), 1))
    assert maps[0].shape == x.shape and maps[1].shape == y.shape


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
            assert_close(torch.autograd.grad(total, image, retain_graph=True)[0], expected / 2, 1e-14)


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


@pytest.mark.parametrize('name', ['fcn_resnet50', 'deeplabv3_resnet50', 'lraspp_mobilenet_v3_large'])
def test_segmentation(name):
    torch.manual_seed(0)
    builder = getattr(torchvision.models.segmentation, name)
    options = {'aux_loss': True} if name != 'lraspp_mobilenet_v3_large' else {}
    model = builder(weights=None, weights_backbone=None, num_classes=4, **options).eval()
    image = random_image(2, 3, 48, 48, dtype=torch.float32)
    layer = 'backbone.layer2' if options else 'backbone.12'
    canonizers = [] if options else [SmoothReplacement()]
    for entry in ['out', 'aux'] if options else ['out']:
        pixels = image.clone().requires_grad_()
        plain = model(pixels)[entry]
        gradient, = torch.autograd.grad(plain[:, 1].sum(), pixels)
        for composite in (
            SplitGrad(.5, canonizers=canonizers), SplitLRP(canonizers=canonizers),
            SplitCAM(layer, canonizers=canonizers),
        ):
            with composite.context(model):
                output = model(pixels)[entry]
                map, = torch.autograd.grad(output[:, 1].sum(), pixels)
            if not canonizers:
                assert torch.equal(output, plain)
                if isinstance(composite, SplitGrad):
                    assert_close(map, gradient / 2, 1e-5)
            assert map.abs().max() > 0


class UNet(nn.Module):
    '''Downwards by max-pooling, upwards by a transposed convolution and by interpolation, with skip connections.'''
    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)])
        self.bottom = nn.Conv2d(6, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.conv, self.last = nn.Conv2d(12, 4, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.double()

    def forward(self, x):
        one = F.relu(self.down[0](x))
        two = F.relu(self.down[1](F.max_pool2d(one, 2)))
        x = self.up(F.relu(self.bottom(F.max_pool2d(two, 2))))
        x = F.relu(self.conv(torch.cat([x, two], 1)))
        x = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
        return self.last(torch.cat([x, one], 1)).mean((2, 3))


def test_unet():
    model, image = UNet(), random_image(2, 2, 16, 16)
    assert_close(explain(SplitGrad(.5), model, image, 1), gradient_of(model, image, 1) / 2, 1e-13)
    for composite in (SplitGrad(), SplitLRP(), SplitCAM('bottom', stream='+g'), SplitLRP(layer='conv')):
        assert explain(composite, model, image, 1).abs().max() > 0


class Recurrent(nn.Module):
    def __init__(self, unrolled=False):
        super().__init__()
        self.cell, self.dense = nn.Linear(6, 6).double(), nn.Linear(6, 3).double()
        self.cells = nn.ModuleList([copy.deepcopy(self.cell) for _ in range(3)]) if unrolled else [self.cell] * 3

    def forward(self, x):
        state = torch.zeros(len(x), 6, dtype=x.dtype)
        for step, cell in enumerate(self.cells):
            state = F.relu(cell(state + x[:, step]))
        return self.dense(state)


@pytest.mark.parametrize('make', [lambda: SplitGrad(.3), SplitLRP])
def test_recurrent_use_of_a_layer(make):
    torch.manual_seed(0)
    model = Recurrent(True)
    shared = Recurrent()
    shared.load_state_dict({key: value for key, value in model.state_dict().items() if 'cells' not in key})
    shared.cell.load_state_dict(model.cell.state_dict())
    image = random_image(2, 3, 6)
    assert torch.equal(explain(make(), shared, image), explain(make(), model, image))


@pytest.mark.parametrize('model, shape', [
    (nn.Linear(4, 3), (2, 4)), (nn.Conv2d(3, 4, 2), (2, 3, 2, 2)), (nn.MaxPool2d(2), (2, 3, 4, 4)),
    (nn.BatchNorm2d(3).eval(), (2, 3, 4, 4)), (nn.ReLU(), (2, 3)), (nn.Sequential(nn.Linear(4, 3)), (2, 4)),
    (nn.DataParallel(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))), (2, 4)),
])
def test_roots(model, shape):
    model, image = model.double(), random_image(*shape)
    assert_close(explain(SplitGrad(.5), model, image), gradient_of(model, image) / 2)
    for composite in (SplitGrad(), SplitLRP(), SplitGrad({name: .2 for name, _ in model.named_modules()})):
        assert explain(composite, model, image).shape == image.shape


def test_weights_that_require_no_gradient():
    model, image = UNet(), random_image(2, 2, 16, 16)
    expected = [explain(composite, model, image, 1) for composite in (SplitGrad(), SplitLRP(), SplitCAM('bottom'))]
    model.requires_grad_(False)
    for one, composite in zip(expected, (SplitGrad(), SplitLRP(), SplitCAM('bottom'))):
        assert torch.equal(explain(composite, model, image, 1), one)


def test_batch_norm_that_stands_before_its_convolution():
    class PreActivation(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(F.relu(self.norm(x))).flatten(1)

    class AffineFirst(PreActivation):
        '''The same with the batch norm written as a convolution: an affine layer of its own.'''
        def __init__(self, model):
            super().__init__()
            self.conv, self.norm = model.conv, nn.Conv2d(3, 3, 1, groups=3).double()
            scale = model.norm.weight / torch.sqrt(model.norm.running_var + model.norm.eps)
            self.norm.weight.data = scale.data.reshape(3, 1, 1, 1)
            self.norm.bias.data = (model.norm.bias - scale * model.norm.running_mean).data

    model = PreActivation().double().eval()
    for tensor in (model.norm.weight.data, model.norm.bias.data, model.norm.running_mean):
        tensor.normal_()
    other, image = AffineFirst(model), random_image(2, 3, 6, 6)
    for make in (SplitLRP, lambda: SplitGrad(.3), lambda: SplitGrad(.1, '+g')):
        results = []
        for each in (model, other):
            pixels = image.clone().requires_grad_()
            with make().context(each):
                results.append(torch.autograd.grad(each(pixels)[:, 2].sum(), pixels)[0])
        assert_close(*results)


def test_convolution_before_two_batch_norms():
    '''Each of the norms is merged into the convolution as if it were one of its own.'''
    class Forked(nn.Module):
        def __init__(self, copies=False):
            super().__init__()
            self.convs, self.norms = nn.ModuleList([nn.Conv2d(3, 4, 3)]), nn.ModuleList(nn.BatchNorm2d(4) for _ in '12')

        def forward(self, x):
            first = self.convs[0](x)
            other = self.convs[1](x) if len(self.convs) > 1 else first
            return torch.cat([F.relu(self.norms[0](first)), self.norms[1](other)], 1).flatten(1)

    model = Forked().double().eval()
    for norm in model.norms:
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
            tensor.normal_()
    twice, image = copy.deepcopy(model), random_image(2, 3, 6, 6)
    twice.convs.append(copy.deepcopy(model.convs[0]))
    for stream in ('positive', 'negative'):
        maps = []
        for each in (model, twice):
            pixels = image.clone().requires_grad_()
            with SplitLRP(stream=stream).context(each):
                maps.append(torch.autograd.grad(each(pixels)[:, ::7].sum(), pixels)[0])
        assert_close(*maps)


def test_no_forward_pass_is_kept_alive():
    model, image = UNet(), random_image(2, 2, 16, 16)
    gc.collect()
    gc.disable()
    try:
        for composite in (SplitGrad(), SplitLRP(), SplitCAM('bottom', stream='+g')):
            seen = []
            handle = model.conv.register_forward_hook(
                lambda module, args, output, seen=seen: seen.append(weakref.ref(output.difference))
            )
            with composite.context(model):
                pixels = image.clone().requires_grad_()
                output = model(pixels)
                torch.autograd.grad(output[:, 1].sum(), pixels)
                del output
                kept = weakref.ref(pixels)
                del pixels
                assert kept() is None and all(one() is None for one in seen) and seen
            handle.remove()
    finally:
        gc.enable()


def test_channels_that_are_not_the_second_axis():
    class ChannelsLast(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mix, self.other = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 6), nn.Identity()
            self.back, self.dense = nn.Identity(), nn.Linear(6, 4)

        def forward(self, x):
            x = self.mix(self.conv(x).permute(0, 2, 3, 1))
            x = self.other(x.reshape(len(x), -1, 6).reshape(x.shape))
            return self.dense(F.relu(self.back(x.permute(0, 3, 1, 2))).mean((2, 3)))

    model, image = ChannelsLast().double(), random_image(2, 3, 16, 16)
    for layer in ('mix', 'other'):
        with SplitCAM(layer).context(model), pytest.raises(ValueError, match='second axis is not that of channels'):
            model(image)
    for layer in ('conv', 'back'):
        composite = SplitCAM(layer)
        explain(composite, model, image)
        assert composite.saliency.shape == (2, 16, 16)
