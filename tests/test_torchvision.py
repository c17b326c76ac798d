'''The networks of torchvision: the output of the split form is the original's, bit by bit, and all maps are finite.'''
import copy
import warnings

import pytest
import torch
import torchvision
from helpers import assert_close, explain, gradient_of, random_image, rounding
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zennit_dc import SmoothReplacement, SplitCAM, SplitGrad, SplitLRP


# layer, and the size of the image
NETWORKS = {
    'vgg11': ('features.13', 64),
    'vgg16_bn': ('23', 32),
    'resnet18': ('layer3', 32),
    'resnet50': ('layer3.2', 32),
    'resnext50_32x4d': ('layer3', 32),
    'densenet121': ('features.denseblock3', 32),
    'googlenet': ('inception4a', 64),
    'inception_v3': ('Mixed_6a', 80),
    'squeezenet1_0': ('features.9', 64),
    'alexnet': ('features.8', 80),
    'mnasnet1_0': ('layers.9', 32),
    'shufflenet_v2_x1_0': ('stage3', 32),
    'r3d_18': ('layer2', 32),
}


def network_of(name):
    '''A network with random weights that keep its activations alive, in eval mode.'''
    torch.manual_seed(0)
    options = {'init_weights': False, 'transform_input': True} if name in ('googlenet', 'inception_v3') else {}
    if name == 'vgg16_bn':  # without its classifier, whose 120 million weights are those of VGG11
        model = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs['D'], batch_norm=True)
        model.extend([torch.nn.Flatten(), torch.nn.Linear(512, 10)]).eval()
    else:
        model = torchvision.models.get_model(name, weights=None, **options).eval()
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)):
            for tensor, low in (
                (module.weight.data, .5), (module.bias.data, -.2), (module.running_mean, -.2), (module.running_var, .5)
            ):
                tensor.copy_(low + torch.rand(tensor.shape, generator=generator) * (1. if low > 0 else .4))
    return model


def image_for(name, size):
    shape = (2, 3, 4, size, size) if name == 'r3d_18' else (2, 3, size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize('name', NETWORKS)
def test_networks(name):
    layer, size = NETWORKS[name]
    model, image = network_of(name), image_for(name, size)
    gradient = gradient_of(model, image)
    # explain() asserts that the output is bit-identical
    assert_close(explain(SplitGrad(.5), model, image), gradient / 2, rounding(model, image, unit=2))
    for composite in (SplitGrad(), SplitLRP(), SplitLRP(layer=layer), SplitCAM(layer, stream='+g')):
        attribution = explain(composite, model, image)
        assert attribution.shape == image.shape
        assert attribution.abs().flatten(1).sum(1).min() > 0


class Decisions(TorchFunctionMode):
    '''A mode that writes down which ReLUs are on and which entries max-pooling takes.'''
    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.relu:
            self.made.append(args[0] >= 0)
        elif function is torch.max_pool2d:
            self.made.append(F.max_pool2d(*args, **kwargs, return_indices=True)[1])
        return function(*args, **kwargs)


@torch.no_grad()
def decisions(model, image):
    '''All decisions of a model: among the inputs for which they are the same, it is affine.'''
    with Decisions() as decided:
        model(image)
    assert len(decided.made) > 100
    return decided.made


def decided_image(model, exact):
    '''An image for which float32 decides as float64. Of some million pre-activations, about one is so close to zero
    that it rounds to another sign. There the network has a kink, and both maps are right, one for each side.'''
    for seed in range(30):
        image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        if all(map(torch.equal, decisions(model, image), decisions(exact, image.double()))):
            return image
    raise AssertionError('float32 decides about no image as float64 does')


@pytest.mark.slow(10)
@pytest.mark.parametrize('name, layer', [('resnet152', 'layer2.3'), ('densenet201', 'features.denseblock2')])
def test_depth_alone_makes_no_map_infinite(name, layer):
    '''The maps in float32 are those in float64, but for a power of two for each image where they are too large.'''
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    exact = copy.deepcopy(model).double()
    image = decided_image(model, exact)
    maps, tolerance = [], rounding(model, image, unit=2)
    for make in (SplitGrad, SplitLRP, lambda: SplitCAM(layer), lambda: SplitGrad(0.)):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            single, double = explain(make(), model, image), explain(make(), exact, image.double())
        double = double / double.abs().amax((1, 2, 3), keepdim=True)
        ratio = (single.double() * double).sum((1, 2, 3)) / double.square().sum((1, 2, 3))
        assert_close(single.double() / ratio.reshape(-1, 1, 1, 1), double, tolerance)
        maps.append(single)
    for scaled in (maps[0], maps[3]):
        assert scaled.abs().max() < torch.finfo(torch.float32).max


def test_scaled_maps_are_said_to_be_scaled():
    model = torchvision.models.resnet152(weights=None).eval()
    image = torch.randn(1, 3, 32, 32)
    with pytest.warns(UserWarning, match='two to the power of'):
        explain(SplitGrad(0.), model, image)


def test_overflow_without_recentering():
    '''Streams that overflow float32 are computed in float64, and are an error where they overflow that as well.'''
    model, image = network_of('resnet50'), image_for('resnet50', 32)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data *= 3.
    single = explain(SplitLRP(recentering=None), model, image)
    # nothing is left of float32 but the rounding of the map
    assert_close(single.double(), explain(SplitLRP(recentering=None), model.double(), image.double()), 1e-7)
    torch.manual_seed(0)
    layers = [layer for _ in range(450) for layer in (torch.nn.Linear(32, 32, bias=False), torch.nn.ReLU())]
    for layer in layers[::2]:
        torch.nn.init.orthogonal_(layer.weight, 1.4)
    deep, image = torch.nn.Sequential(*layers), torch.randn(2, 32)
    with pytest.raises(FloatingPointError, match='SplitLRP is not finite.*Relative'):
        explain(SplitLRP(recentering=None), deep, image)
    explain(SplitLRP(), deep, image)


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
                    tolerance = rounding(model, image, read=lambda output, entry=entry: output[entry])
                    assert_close(map, gradient / 2, tolerance)
            assert map.abs().max() > 0
