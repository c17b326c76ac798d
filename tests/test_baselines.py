'''Captum's methods, the controls and Grad-CAM++ against direct calls and literal formulas.'''
import copy
import importlib.util
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from commands import require_success, run_code
from helpers import assert_close, random_image, rounding
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock
from zennit.attribution import Gradient
from zennit.composites import EpsilonGammaBox, EpsilonPlus, LayerMapComposite

from zennit_dc.attribution import GradCAMPlusPlus, class_relevance
from zennit_dc.data.classifiers import IMAGENET_PREPROCESSING, Classifier
from zennit_dc.demo import demo_network
from zennit_dc.methods import METHODS, attributor
from zennit_dc.methods.controls import BinaryMask
from zennit_dc.methods.lrp import canonizers
from zennit_dc.methods.scores import Isolated


needs_captum = pytest.mark.skipif(importlib.util.find_spec('captum') is None, reason='Captum is not installed')
PARAMETERS = {
    'saliency': {}, 'input-x-gradient': {}, 'integrated-gradients': {}, 'gradient-shap': {}, 'deeplift': {},
    'guided-backprop': {}, 'deconvolution': {}, 'guided-gradcam': {'layer': '3'},
    'occlusion': {'window': 5, 'stride': 3}, 'feature-ablation': {'patch': 4}, 'gradcam': {'layer': '3'},
}
OTHERS = {'random': {}, 'original-image': {}, 'image-center': {}, 'gradcam++': {'layer': '3'}}
HOOKING = ('deeplift', 'guided-backprop', 'deconvolution', 'guided-gradcam')
TARGETS = torch.tensor([2, 0, 3])


def make(name, model, **parameters):
    '''The attributor of a method.'''
    return attributor(name, Classifier('', model, None), **{**PARAMETERS, **OTHERS}[name], **parameters)


@pytest.fixture(name='network')
def fixture_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(inplace=True), nn.Conv2d(5, 6, 3, stride=2), nn.ReLU(inplace=True),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 4),
    ).eval().double().requires_grad_(False)


@pytest.fixture(name='images')
def fixture_images():
    return random_image(3, 2, 14, 14)


def by_captum(name, model, input, target):
    '''Direct calls, for one image.'''
    from captum import attr

    layer = model[3] if isinstance(model, nn.Sequential) and len(model) > 3 else None
    if name == 'gradient-shap':
        return attr.GradientShap(model).attribute(input, torch.zeros_like(input), target=target)
    if name == 'guided-gradcam':
        return attr.GuidedGradCam(model, layer).attribute(input, target=target)
    if name == 'occlusion':
        return attr.Occlusion(model).attribute(input, (2, 5, 5), (2, 3, 3), target=target)
    if name == 'feature-ablation':
        mask = torch.tensor([[row // 4 * 4 + column // 4 for column in range(14)] for row in range(14)])
        return attr.FeatureAblation(model).attribute(input, target=target, feature_mask=mask[None, None])
    if name == 'gradcam':
        map = attr.LayerGradCam(model, layer).attribute(input, target=target)
        return F.interpolate(map, (14, 14), mode='bilinear').expand(-1, 2, -1, -1) / 2.
    kind = {
        'saliency': 'Saliency', 'input-x-gradient': 'InputXGradient', 'integrated-gradients': 'IntegratedGradients',
        'deeplift': 'DeepLift', 'guided-backprop': 'GuidedBackprop', 'deconvolution': 'Deconvolution',
    }[name]
    return getattr(attr, kind)(model).attribute(input, target=target)


@needs_captum
@pytest.mark.parametrize('name', PARAMETERS)
def test_same_as_captum(name, network, images):
    output, attribution = make(name, network)(images, class_relevance(TARGETS))
    assert torch.equal(output, network(images))
    for image, target, actual in zip(images.split(1), TARGETS.tolist(), attribution.split(1)):
        if name == 'gradient-shap':
            from zennit_dc.methods.seeding import image_seed

            seed = image_seed(image[0], 0)
            torch.manual_seed(seed)
            np.random.seed(seed % 2 ** 32)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            expected = by_captum(name, network, image.clone(), target).detach()
        assert_close(actual, expected.double(), 1e-6 if name == 'occlusion' else 1e-10)  # Captum's is a float32


@needs_captum
@pytest.mark.parametrize('name', [*PARAMETERS, *OTHERS])
def test_map_does_not_depend_on_the_batch_or_the_order(name, network, images):
    chosen = make(name, network)
    together = chosen(images, class_relevance(TARGETS))[1]
    turned = chosen(images.flip(0), class_relevance(TARGETS.flip(0)))[1].flip(0)
    alone = torch.cat([chosen(image[None], class_relevance(target))[1] for image, target in zip(images, TARGETS)])
    assert_close(turned, together)
    assert_close(alone, together)


@needs_captum
@pytest.mark.parametrize('name', [*PARAMETERS, *OTHERS])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_dtypes(name, dtype, network, images):
    expected = make(name, network)(images, class_relevance(TARGETS))[1]
    output, attribution = make(name, network.to(dtype))(images.to(dtype), class_relevance(TARGETS))
    assert output.dtype == attribution.dtype == dtype
    assert attribution.shape == images.shape
    assert attribution.isfinite().all()
    if dtype == torch.float32 and name not in ('random', 'gradient-shap'):
        # the network's weights were rounded to float32, and some methods take differences of outputs
        tolerance = max(rounding(network, images[[i]].to(dtype), unit=unit) for i, unit in enumerate(TARGETS))
        assert_close(attribution.double(), expected, 10. * tolerance)


def condition(model, input):
    '''All that a call could have changed in a model, its input and the random numbers.'''
    state = [
        (name, type(module), module.training, getattr(module, 'inplace', None), sorted(vars(module)),
         *(tuple(map(id, getattr(module, hooks).values())) for hooks in vars(module) if hooks.endswith('_hooks')))
        for name, module in model.named_modules()
    ]
    tensors = [
        (name, tensor.requires_grad, tensor.grad, tensor.data_ptr(), tensor._version)
        for name, tensor in (*model.named_parameters(), *model.named_buffers(), ('input', input))
    ]
    return state, tensors, torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), np.random.get_state()[2]


@needs_captum
@pytest.mark.parametrize('frozen', [True, False])
@pytest.mark.parametrize('name', [*PARAMETERS, *OTHERS])
def test_model_is_the_same_afterwards(name, frozen, network, images):
    network.requires_grad_(not frozen)
    network.train()
    network[4].register_forward_hook(lambda module, args, output: None)
    before = condition(network, images)
    make(name, network)(images, class_relevance(TARGETS))
    assert condition(network, images) == before


@pytest.mark.parametrize('name', ['lrp-gamma', 'lrp-epsilon-plus'])
def test_lrp_leaves_a_model_as_it_was(name):
    '''Its own parameters, which an optimizer may hold, and nothing that hides what they are converted to.'''
    torch.manual_seed(0)
    model = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4).eval().double()
    input, before = random_image(1, 3, 32, 32), model.state_dict(keep_vars=True)
    values, converted = {key: value.clone() for key, value in before.items()}, copy.deepcopy(model).float()
    attributor(name, Classifier('', model, IMAGENET_PREPROCESSING()))(input, class_relevance(2))
    after = model.state_dict(keep_vars=True)
    assert after.keys() == before.keys() and all(after[key] is before[key] for key in after)
    assert all(torch.equal(after[key], value) for key, value in values.items())
    assert torch.equal(model.float()(input.float()), converted(input.float()))


@needs_captum
@pytest.mark.parametrize('fails', range(1, 4))
@pytest.mark.parametrize('name', PARAMETERS)
def test_model_is_the_same_after_an_error(name, fails, network, images):
    calls = []

    def fail(module, args):
        calls.append(module)
        if len(calls) == fails:
            raise ZeroDivisionError

    network[5].register_forward_pre_hook(fail)
    before = condition(network, images)
    chosen = make(name, network)
    try:
        chosen(images, class_relevance(TARGETS))
    except ZeroDivisionError:
        assert len(calls) == fails
    else:
        assert len(calls) < fails
    assert condition(network, images) == before


@needs_captum
def test_model_is_the_same_after_an_error_in_the_backward_pass(network, images):
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input):
            return input.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise ZeroDivisionError

    network[5].register_forward_hook(lambda module, args, output: Failing.apply(output))
    before = condition(network, images)
    for name in HOOKING:
        with pytest.raises(ZeroDivisionError):
            make(name, network)(images, class_relevance(TARGETS))
        assert condition(network, images) == before


class Functional(nn.Module):
    '''A ReLU outside of modules.'''
    def __init__(self, relu):
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3)
        self.activation = nn.ReLU()
        self.function = relu

    def forward(self, input):
        return self.function(self.activation(self.convolution(input)) - .1).mean((2, 3))


@needs_captum
@pytest.mark.parametrize('name', HOOKING)
@pytest.mark.parametrize('function', [
    F.relu, torch.relu, torch.Tensor.relu, torch.Tensor.relu_, partial(F.relu, inplace=True), nn.ReLU6(), F.relu6,
])
def test_functional_relu_is_refused(name, function, images):
    model = Functional(function).double().eval()
    layer = {'layer': 'activation'} if name == 'guided-gradcam' else {}
    chosen = METHODS[name].attributor(Classifier('', model, None), **layer)
    with pytest.raises(ValueError, match='relu|hardtanh'):
        chosen(images, class_relevance(TARGETS))


@needs_captum
@pytest.mark.parametrize('function', [
    nn.GELU(), nn.Hardswish(), F.silu, torch.sigmoid, partial(F.max_pool2d, kernel_size=2), partial(F.softmax, dim=1),
    nn.AdaptiveMaxPool2d(3), nn.GroupNorm(2, 4),
])
def test_deeplift_refuses_what_captum_takes_for_linear(function, images):
    model = Functional(function).double().eval()
    with pytest.raises(ValueError, match='DeepLift acts on'):
        make('deeplift', model)(images, class_relevance(TARGETS))
    make('guided-backprop', model)(images, class_relevance(TARGETS))


@needs_captum
def test_deeplift_takes_all_of_its_modules(images):
    for module in (nn.ELU(), nn.LeakyReLU(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.Softmax(1), nn.MaxPool2d(2)):
        make('deeplift', Functional(module).double().eval())(images, class_relevance(TARGETS))


@needs_captum
def test_models_that_can_not_be_explained(images):
    reused = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(2, 4, 3), reused, nn.Conv2d(4, 4, 3), reused, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match='module of its own for each call, but the model calls \'1\' 2 times'):
        make('deeplift', model.double().eval())(images, class_relevance(TARGETS))
    without = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    with pytest.raises(ValueError, match='calls none'):
        make('guided-backprop', without)(images, class_relevance(TARGETS))
    with pytest.raises(ValueError, match='calls none'):
        make('deconvolution', without)(images, class_relevance(TARGETS))


class Shared(nn.Module):
    '''A hooked module's input that is read elsewhere, or the output of another hooked module.'''
    def __init__(self, pooling, before):
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3, padding=1)
        self.before = before
        self.pooling = pooling
        self.other = nn.Conv2d(4, 4, pooling.kernel_size, pooling.stride)
        self.end = nn.LazyLinear(4)

    def forward(self, input):
        output = self.before(self.convolution(input))
        return self.end((self.pooling(output) + self.other(output)).flatten(1))


@needs_captum
@pytest.mark.parametrize('before', [nn.Identity(), nn.ReLU(), nn.Tanh()])
@pytest.mark.parametrize('size, stride', [(2, 2), (3, 2), (3, 1)])
def test_deeplift_sums_up(before, size, stride, images):
    torch.manual_seed(3)
    model = nn.Sequential(Shared(nn.MaxPool2d(size, stride), before)).double().eval()
    output, attribution = make('deeplift', model)(images, class_relevance(TARGETS))
    difference = (output - model(torch.zeros_like(images))).gather(1, TARGETS[:, None])[:, 0].detach()
    assert_close(attribution.sum((1, 2, 3)), difference)


@needs_captum
def test_deeplift_sums_up_where_captum_does_not(images):
    from captum.attr import DeepLift

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Flatten(), nn.Linear(144, 4)
    ).double().eval()
    attribution = make('deeplift', model)(images, class_relevance(TARGETS))[1]
    difference = (model(images) - model(torch.zeros_like(images))).gather(1, TARGETS[:, None])[:, 0].detach()
    assert_close(attribution.sum((1, 2, 3)), difference)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        captum = DeepLift(model).attribute(images.clone(), target=TARGETS).sum((1, 2, 3)).detach()
    assert (captum - difference).abs().max() > 1e-3 * difference.abs().max()


class Reused(nn.Module):
    '''One ReLU for both branches, whose inputs are also read by a sum.'''
    def __init__(self):
        super().__init__()
        self.first, self.second, self.end = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)
        self.relu = nn.ReLU(inplace=False)

    def forward(self, input):
        first, second = self.first(input), self.second(input)
        return self.end(self.relu(first) * 2. - self.relu(second) + first + second).sum((2, 3))


@needs_captum
@pytest.mark.parametrize('name, backward', [
    ('guided-backprop', lambda gradient, input: gradient.relu() * (input > 0.)),
    ('deconvolution', lambda gradient, input: gradient.relu()),
])
def test_one_relu_for_two_branches(name, backward, images):
    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input):
            ctx.save_for_backward(input)
            return input.relu()

        @staticmethod
        def backward(ctx, gradient):
            return backward(gradient, *ctx.saved_tensors)

    torch.manual_seed(1)
    model = Reused().double().eval()
    attribution = make(name, model)(images, class_relevance(TARGETS))[1]
    leaf = images.clone().requires_grad_()
    model.relu.forward = Rule.apply
    expected, = torch.autograd.grad(model(leaf).gather(1, TARGETS[:, None]).sum(), leaf)
    assert_close(attribution, expected)


class Overwriting(nn.Module):
    '''A ReLU that overwrites what is read again.'''
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, input):
        output = self.convolution(input)
        return (self.relu(output) + output).sum((2, 3))


@needs_captum
def test_activation_that_overwrites_what_is_read_again_is_refused(images):
    model = Overwriting().double().eval()
    for name in ('deeplift', 'guided-backprop', 'deconvolution'):
        with pytest.raises(ValueError, match='overwrites in place'):
            make(name, model)(images, class_relevance(TARGETS))


def at_layer(name, network, images, end):
    '''The map at the output of a module of a sequence.'''
    classifier = Classifier('', network, IMAGENET_PREPROCESSING(mean=(.5, .5), std=(.3, .2)))
    _, attribution = attributor(name, classifier, layer=str(end - 1))(images, class_relevance(TARGETS))
    assert_close(attribution[:, 0], attribution[:, 1])
    return attribution.sum(1)


def read_at(network, end):
    '''The number of modules before the place at which a map at the output of one of them is read.'''
    return end + isinstance(network[end], nn.ReLU)


def upsampled(relevance):
    '''The map of what is at a layer.'''
    return F.interpolate(relevance.sum(1, keepdim=True), (14, 14), mode='bilinear')[:, 0]


@needs_captum
@pytest.mark.parametrize('end', [1, 2, 4, 5])
def test_guided_backprop_at_a_layer_is_captums_of_what_follows(end, network, images):
    from captum import attr

    start = read_at(network, end)
    middle = network[:start](images).detach()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        expected = attr.GuidedBackprop(network[start:]).attribute(middle.clone().requires_grad_(), TARGETS)
    assert_close(at_layer('guided-backprop', network, images, end), upsampled(expected.detach()))
    with pytest.raises(ValueError, match='no layer \'nowhere\''):
        attributor('guided-backprop', Classifier('', network, None), layer='nowhere')


@pytest.mark.parametrize('name, zennits', [
    ('lrp-gamma', partial(EpsilonGammaBox, low=-torch.ones(1, 2, 1, 1), high=torch.ones(1, 2, 1, 1))),
    ('lrp-epsilon-plus', EpsilonPlus),
])
@pytest.mark.parametrize('end', [1, 2, 4, 5])
def test_lrp_at_a_layer_is_that_of_what_follows(end, name, zennits, network, images):
    rules = zennits().layer_map
    start = read_at(network, end)
    middle = network[:start](images).detach()
    _, expected = Gradient(network[start:], LayerMapComposite(rules))(middle, class_relevance(TARGETS))
    assert_close(at_layer(name, network, images, end), upsampled(expected))


@needs_captum
@pytest.mark.parametrize('name', ['saliency', 'occlusion', 'feature-ablation', 'guided-backprop'])
def test_model_may_overwrite_its_input(name, network, images):
    class Normalizing(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, input):
            return self.network(input.mul_(2.))

    before = images.clone()
    attribution = make(name, Normalizing())(images, class_relevance(TARGETS))[1]
    assert torch.equal(images, before)
    assert_close(attribution, make(name, network)(2. * images, class_relevance(TARGETS))[1] * (
        2. if name in ('saliency', 'guided-backprop') else 1.
    ))


@needs_captum
@pytest.mark.parametrize('name', ['input-x-gradient', 'integrated-gradients', 'gradient-shap', 'deeplift', 'occlusion',
                                  'feature-ablation', 'gradcam'])
def test_relevance_of_several_classes_is_a_sum_of_maps(name, network, images):
    chosen, weights = make(name, network), (1., -.5, 0., -.5)
    relevance = images.new_tensor(weights).expand(len(images), -1)
    alone = [weight * chosen(images, class_relevance(index))[1] for index, weight in enumerate(weights)]
    # Captum sums up what squares do in float32
    assert_close(chosen(images, relevance)[1], sum(alone), 1e-5 if name == 'occlusion' else 1e-10)


@needs_captum
def test_a_masked_class_does_not_matter(network, images):
    class Masked(torch.nn.Module):
        def forward(self, input):
            return network(input) + input.new_tensor([0., 0., -torch.inf, 0.])

    assert_close(make('saliency', Masked())(images, class_relevance(1))[1],
                 make('saliency', network)(images, class_relevance(1))[1])


@needs_captum
def test_relevance_of_another_shape_is_refused(network, images):
    with pytest.raises(ValueError, match='must have the output\'s shape'):
        make('saliency', network)(images, lambda output: torch.ones_like(output[:, 0]))


@needs_captum
def test_default_relevance_and_bounds(network, images):
    from zennit_dc.methods.captum import FeatureAblation, GradCAM, Occlusion, Saliency

    expected = Saliency(network)(images, class_relevance(TARGETS))[1]
    assert torch.equal(Saliency(network, class_relevance(TARGETS))(images)[1], expected)
    with torch.no_grad():
        assert torch.equal(Saliency(network)(images, class_relevance(TARGETS))[1], expected)
    with pytest.raises(ValueError, match='stride'):
        Occlusion(network, 4, 5)
    with pytest.raises(ValueError, match='larger than the image'):
        Occlusion(network)(images, class_relevance(TARGETS))
    with pytest.raises(ValueError, match='patch'):
        FeatureAblation(network, 0)
    with pytest.raises(ValueError, match='no module named'):
        GradCAM(network, '')
    with pytest.raises(ValueError, match='spatial axes'):
        METHODS['gradcam'].attributor(Classifier('', network, None), layer='5')(images, class_relevance(TARGETS))


def test_missing_captum():
    code = (
        'import sys; sys.modules["captum"] = None\n'
        'from zennit_dc.methods import METHODS; from zennit_dc.data.classifiers import load_classifier\n'
        'METHODS["random"].attributor(load_classifier("demo"))\n'
        'try: METHODS["saliency"].attributor(load_classifier("demo"))\n'
        'except ModuleNotFoundError as error: print(error)'
    )
    result = run_code(code)
    require_success(result)
    assert 'captum' in result.stdout


def test_controls(network, images):
    output, original = make('original-image', network)(images)
    assert torch.equal(output, network(images)) and torch.equal(original, images)
    masks = torch.arange(3 * 14 * 14).view(3, 14, 14) % 3 == 0
    assert torch.equal(BinaryMask(network, masks)(images)[1].sum(1) > 0., masks)
    with pytest.raises(ValueError, match='masks'):
        BinaryMask(network, masks[:2])(images)
    noise = torch.cat([make('random', network, seed=seed)(images)[1].sum(1) for seed in range(20)]).flatten()
    assert abs(noise.mean()) < .05 and abs(noise.std() - 1.) < .05
    assert not torch.equal(*make('random', network)(images[:2])[1])
    assert torch.equal(make('random', network)(images)[1], make('random', network)(images)[1])


def test_epsilon_plus_is_zennits(network, images):
    expected = Gradient(network, EpsilonPlus())(images, class_relevance(TARGETS))
    found = attributor('lrp-epsilon-plus', Classifier('', network, None))(images, class_relevance(TARGETS))
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


def test_epsilon_plus_merges_batch_norms():
    model, image = demo_network(), random_image(2, 3, 64, 64, dtype=torch.float32)
    chosen = attributor('lrp-epsilon-plus', Classifier('', model, None))
    before = condition(model, image)
    attribution = chosen(image, class_relevance())[1]
    assert attribution.isfinite().all() and condition(model, image) == before
    merged = Gradient(model, EpsilonPlus(canonizers=canonizers(model)))(image, class_relevance())[1]
    apart = Gradient(model, EpsilonPlus())(image, class_relevance())[1]
    assert torch.equal(attribution, merged) and not torch.allclose(attribution, apart, rtol=.01)


def test_image_center():
    model = nn.Flatten()
    map = make('image-center', model)(random_image(2, 3, 10, 21))[1].sum(1)
    assert torch.equal(map[0], map[1])  # whatever is shown
    assert_close(map, map.flip(1)), assert_close(map, map.flip(2))
    assert (map[0].diff(dim=1)[:, :10] > 0.).all() and (map[0].diff(dim=0)[:4] > 0.).all() and map.min() > 0.
    # a Gaussian of a standard deviation of a quarter: at the border two of them from the center
    wide = make('image-center', model)(random_image(1, 1, 2001, 2001))[1][0, 0, 1000]
    assert abs(wide[0] / wide[1000] - np.exp(-2.)) < .001


def literal_grad_cam_plus_plus(activation, gradient):
    '''Equations 5, 6 and 19 of the article for one image, with the derivatives of exp(S) over exp(S).'''
    channels, height, width = activation.shape
    map = np.zeros((height, width))
    for k in range(channels):
        weight = 0.
        for i in range(height):
            for j in range(width):
                g = gradient[k, i, j]
                if g != 0.:
                    coefficient = g ** 2 / (2. * g ** 2 + activation[k].sum() * g ** 3)
                    weight += coefficient * max(g, 0.)
        map += weight * activation[k]
    return np.maximum(map, 0.)


@pytest.mark.parametrize('scale', [1., 30.])
def test_grad_cam_plus_plus(scale, network, images):
    network[-1].weight *= scale
    activation = network[:4](images).detach().requires_grad_()
    gradient, = torch.autograd.grad(network[4:](activation).gather(1, TARGETS[:, None]).sum(), activation)
    maps = np.stack([
        literal_grad_cam_plus_plus(*each) for each in zip(activation.detach().numpy(), gradient.numpy())
    ])
    expected = F.interpolate(torch.from_numpy(maps)[:, None], (14, 14), mode='bilinear')
    output, attribution = GradCAMPlusPlus(network, '3')(images, class_relevance(TARGETS))
    assert torch.equal(output, network(images))
    assert_close(attribution, (expected / 2.).expand_as(attribution))
    assert attribution.min() >= 0.


def test_grad_cam_plus_plus_of_tiny_gradients(network, images):
    network[-1].weight *= 1e-25
    attribution = GradCAMPlusPlus(network.float(), '3')(images.float(), class_relevance(TARGETS))[1]
    assert attribution.isfinite().all() and (attribution.amax((1, 2, 3)) > 0.).all()


def test_grad_cam_plus_plus_of_a_class_by_its_index():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(36, 5))
    with pytest.raises(TypeError, match=r'class_relevance\(3\)'):
        GradCAMPlusPlus(network.eval(), '0')(torch.ones(1, 3, 5, 5), 3)


def test_titles():
    titles = [method.title for method in METHODS.values()]
    assert len(set(titles)) == len(titles)
    assert {
        'Saliency', 'Input × Gradient', 'Integrated Gradients', 'Gradient SHAP', 'DeepLift', 'Guided Backprop',
        'Deconvolution', 'Guided GradCAM', 'Occlusion', 'Feature Ablation', 'GradCAM', 'GradCAM++', 'Random Baseline',
        'Original Image',
    } < set(titles)
    assert {*PARAMETERS, *OTHERS} < set(METHODS)


@needs_captum
@pytest.mark.parametrize('name', [
    'guided-backprop', 'deconvolution', 'guided-gradcam', 'gradcam', 'integrated-gradients',
])
def test_resnet(name):
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    before = condition(model, image := random_image(1, 3, 64, 64, dtype=torch.float32))
    layer = {'layer': 'layer2'} if 'gradcam' in name else {}
    attribution = METHODS[name].attributor(Classifier('', model, None), **layer)(image, class_relevance())[1]
    assert attribution.shape == image.shape and attribution.isfinite().all() and attribution.abs().max() > 0.
    assert condition(model, image) == before


@needs_captum
def test_demo_network_with_every_method():
    model = demo_network()
    image = random_image(2, 3, 64, 64, dtype=torch.float32)
    for name, method in METHODS.items():
        if name in PARAMETERS or name in OTHERS:
            layer = {'layer': 'features'} if method.needs_layer else {}
            output, attribution = method.attributor(Classifier('', model, None), **layer)(image, class_relevance())
            assert output.shape == (2, 10) and attribution.shape == image.shape and attribution.isfinite().all()


def test_isolated_casts_and_copies(network, images):
    model = Isolated(network.float(), torch.float32)
    assert torch.equal(model(images), network(images.float()))
    with pytest.raises(ValueError, match='overwrites'):
        Isolated(network, torch.float32, expected=network(images.float()) + 1.)(images)
