'''The composites in Zennit's workflows, for models of all structures.'''
import contextlib
import copy
from functools import partial

import pytest
import torch
from helpers import assert_close, divided, explain, gradient_of, random_image, rounding
from literal import Network
from small_models import METHODS, UNet
from torch import nn
from torch.nn import functional as F
from zennit.attribution import Gradient, IntegratedGradients, Occlusion, SmoothGrad
from zennit.composites import COMPOSITES, MixedComposite, NameMapComposite
from zennit.core import Composite

from zennit_dc import Balanced, Relative, Scaling, Shifting, SmoothReplacement, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.rules import SplitEpsilon


def target(output):
    '''The output relevance of unit 2.'''
    return torch.eye(5, dtype=output.dtype)[[2] * len(output)]


def test_composites_are_registered():
    assert {'split_lrp': SplitLRP, 'split_grad': SplitGrad, 'split_cam': SplitCAM}.items() <= COMPOSITES.items()
    assert all(issubclass(kind, Composite) for kind in (SplitLRP, SplitGrad, SplitCAM))


@pytest.mark.parametrize('make, message', [
    (lambda: SplitGrad(.6), 'alpha'), (lambda: SplitGrad(-.1), 'alpha'), (lambda: SplitGrad(float('nan')), 'alpha'),
    (lambda: SplitGrad('0.4'), 'alpha'), (lambda: SplitGrad({'conv': .3}), 'output'),
    (lambda: SplitGrad(stream='positive'), 'stream'), (lambda: SplitCAM('x', stream='f'), 'stream'),
    (lambda: SplitLRP(stream='g'), 'stream'), (lambda: SplitLRP(epsilon=0.), 'epsilon'),
    (lambda: SplitLRP(epsilon=float('inf')), 'epsilon'), (lambda: SplitLRP(pooling='max'), 'pooling'),
    (lambda: SplitGrad(input_split='abs'), 'input_split'), (lambda: SplitGrad(recentering='sc'), 'recentering'),
    (lambda: SplitGrad('balanced'), r'Balanced\(\), a mapping'), (lambda: SplitCAM('x', Balanced), r'Balanced\(\)'),
    (lambda: SplitLRP(recentering=Relative), r'Relative\(\)'), (lambda: SplitLRP(canonizers='none'), 'or None'),
    (lambda: SplitLRP(canonizers=SmoothReplacement()), 'a list'),
    (lambda: SplitLRP(canonizers=[SmoothReplacement]), 'a list'),
    (lambda: SplitCAM(None), 'layer'), (lambda: SplitGrad(layer=3), 'layer'),
    (lambda: Scaling(1.), 'theta'), (lambda: Scaling(threshold=0.), 'threshold'),
])
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


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
    noise = [torch.randn_like(image) * .1 * spread for _ in range(2)] + [0. * image]  # the last pass has none
    noisy = [explain(METHODS[method](), network, image + one) for one in noise]
    assert_close(attribution, sum(noisy) / 3)


def test_saliency_is_that_of_this_model_and_without_a_graph(network, image):
    composite = SplitCAM('conv3')
    explain(composite, network, image, create_graph=True)
    assert not composite.saliency.requires_grad
    with composite.context(Network(1)):
        assert composite.saliency is None


class Mixed(nn.Module):
    '''Convolutions with a gate, a maximum, attention over places, and a smooth activation.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.gate, self.dense = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)
        self.double().eval()

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = F.max_pool2d(x * F.gelu(self.gate(x)).mean((2, 3), keepdim=True), 2).flatten(2).mT
        return self.dense((torch.softmax(x @ x.mT, -1) @ x).mean(1))


SWITCHED = [
    *((Network, make) for make in METHODS.values()), *((Mixed, make) for make in (
        SplitGrad, SplitLRP, lambda: SplitCAM('conv', stream='+g'), lambda: SplitLRP(layer='gate')
    )),
]


@pytest.mark.filterwarnings('ignore:canonizers')
@pytest.mark.parametrize('build, make', SWITCHED)
def test_inactive_composites_have_the_true_gradient(build, make):
    '''That of the model as it is, whether the model is called within or before.'''
    model, composite, image = build(), make(), random_image(2, 3, 16, 16).requires_grad_()
    expected, original, map = model(image).detach(), gradient_of(model, image), explain(make(), model, image)
    with composite.context(model):
        before = model(image)
        with pytest.raises(KeyError), composite.inactive() as inactive:
            inside = model(image)
            assert torch.equal(torch.autograd.grad(inside[:, 2].sum(), image)[0], original)
            gradient, = torch.autograd.grad(before[:, 2].sum(), image, retain_graph=True)
            assert_close(gradient, original, 1e-12)
            raise KeyError
        assert inactive is composite and torch.equal(inside, expected) and torch.equal(before, expected)
        for output in (before, model(image)):
            assert torch.equal(torch.autograd.grad(output[:, 2].sum(), image)[0], map)
        assert not torch.equal(map, original)


@pytest.mark.parametrize('make', [lambda: SplitGrad(layer='conv3'), lambda: SplitLRP(layer='conv3')])
def test_true_gradients_of_a_pair_below_a_layer(network, image, make):
    '''They are not known, as the skip connection has no graph, unless the model runs as it is.'''
    composite, image, kept = make(), image.requires_grad_(), []

    def keep(module, args, output):
        output.retain_grad()
        kept.append(output)

    handle = network.mean.register_forward_hook(keep)
    with composite.context(network):
        network(image)
        with composite.inactive():
            network(image)
            kept[-1].sum().backward(inputs=[image])
            with pytest.raises(NotImplementedError, match='below module \'conv3\'.*inactive'):
                kept[-2].backward(torch.ones_like(kept[-1]), inputs=[image])
    handle.remove()


def test_a_mixed_composite_is_made_inactive(network, image):
    '''Zennit makes inactive what it has registered to modules, which are rules alone.'''
    image, composite = image.requires_grad_(), MixedComposite([
        NameMapComposite([(['conv3'], SplitEpsilon(.1))]), SplitLRP()
    ])
    with composite.context(network):
        with composite.inactive():
            gradient, = torch.autograd.grad(network(image)[:, 2].sum(), image)
        map, = torch.autograd.grad(network(image)[:, 2].sum(), image)
    assert torch.equal(gradient, gradient_of(network, image)) and not torch.equal(map, gradient)


def test_backward_hooks_of_modules_are_called_where_the_composite_is_inactive(network, image):
    seen, composite, image = [], SplitGrad(), image.requires_grad_()
    network.dense.register_full_backward_hook(lambda module, inputs, outputs: seen.append((*inputs, *outputs)))
    torch.autograd.grad(network(image)[:, 2].sum(), image)
    with composite.context(network), composite.inactive():
        torch.autograd.grad(network(image)[:, 2].sum(), image)
    assert len(seen) == 2 and all(map(torch.equal, *seen))


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('kind', [
    Gradient, partial(SmoothGrad, n_iter=3), partial(IntegratedGradients, n_iter=3), Occlusion
])
def test_zennits_attributors_are_made_inactive(network, image, method, kind):
    plain, attributor, maps = kind(network), kind(network, METHODS[method]()), []
    torch.manual_seed(3)
    _, expected = plain(image, target)
    with attributor:
        for context in (attributor.inactive, contextlib.nullcontext):
            torch.manual_seed(3)
            with context():
                maps.append(attributor(image, target)[1])
    assert_close(maps[0], expected, 1e-12)
    assert torch.equal(maps[0], maps[1]) == (kind is Occlusion)  # which takes no gradients


@pytest.mark.parametrize('method', METHODS)
def test_gradient_of_a_map_is_its_true_one_inactive_or_not(network, image, method):
    found, image = [], image.requires_grad_()
    composite = METHODS[method]()
    for context in (composite.inactive, contextlib.nullcontext):
        with composite.context(network):
            map, = torch.autograd.grad(network(image)[:, 2].sum(), image, create_graph=True)
            with context():
                found.append(torch.autograd.grad(map.square().sum(), network.dense.weight)[0])
    assert found[0].any() and torch.equal(*found)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 2e-5), (torch.bfloat16, .1)])
@pytest.mark.parametrize('method', METHODS)
def test_dtypes(network, image, method, dtype, tolerance):
    '''Float32 and bfloat16 have 24 and 8 digits, of which a sum of some ten layers loses a few.'''
    expected = explain(METHODS[method](), network.to(dtype).double(), image.to(dtype).double())
    attribution = explain(METHODS[method](), network.to(dtype), image.to(dtype))
    assert attribution.dtype == dtype
    error = (attribution.double() - expected).norm() / expected.norm()
    assert error < max(tolerance, rounding(network, image.to(dtype), unit=2, factor=4.))


@pytest.mark.parametrize('composite', [
    SplitGrad(.3), SplitGrad(.3, 'g', 'conv3'), SplitCAM('pool', .3, '+g'), SplitLRP(), SplitLRP(layer='pool'),
    SplitLRP(pooling='convex'), SplitLRP(recentering=Shifting()),
])
def test_maps_do_not_depend_on_the_batch(composite):
    network, image = Network(), random_image(1, 3, 16, 16)
    neighbours = torch.cat([1e4 * random_image(1, 3, 16, 16, seed=7), image, 1e-4 * image])
    # a convolution may sum in another order for another batch size
    tolerance = divided() if isinstance(composite, SplitLRP) else 1e-12
    assert_close(explain(composite, network, neighbours)[1:2], explain(composite, network, image), tolerance)


# models of other structures

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
    model, image = model.double(), random_image(*shape).abs()
    assert_close(explain(SplitGrad(.5), model, image), gradient_of(model, image) / 2)
    for composite in (SplitGrad(), SplitLRP(), SplitGrad({name: .2 for name, _ in model.named_modules()})):
        assert explain(composite, model, image).shape == image.shape


def test_weights_that_require_no_gradient():
    model, image = UNet(), random_image(2, 2, 16, 16)
    expected = [explain(composite, model, image, 1) for composite in (SplitGrad(), SplitLRP(), SplitCAM('bottom'))]
    model.requires_grad_(False)
    for one, composite in zip(expected, (SplitGrad(), SplitLRP(), SplitCAM('bottom'))):
        assert torch.equal(explain(composite, model, image, 1), one)


@pytest.mark.parametrize('first, other', [
    (SplitGrad(.1), SplitGrad(.3)), (SplitLRP(.1), SplitGrad(.3)), (SplitCAM('0.2'), SplitLRP(.1))
])
def test_models_that_share_modules(first, other):
    '''The rules of each composite hold for its own model alone, whichever context is the inner one.'''
    torch.manual_seed(0)
    common = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    models = [nn.Sequential(common, nn.Flatten(), nn.Linear(64, 3)).double() for _ in range(2)]
    image, composites = random_image(2, 3, 8, 8), (first, other)
    expected = [explain(*pair, image) for pair in zip(composites, models)]
    for order in (1, -1):
        with contextlib.ExitStack() as contexts:
            leaf = image.clone().requires_grad_()
            for composite, model in list(zip(composites, models))[::order]:
                contexts.enter_context(composite.context(model))
            found = [torch.autograd.grad(model(leaf)[:, 2].sum(), leaf)[0] for model in models]
        assert all(map(torch.equal, found, expected))


def test_composite_in_two_contexts(network, image):
    composite, other = SplitGrad(.3), Network(1)
    expected = explain(SplitGrad(.3), network, image)
    image.requires_grad_()
    with composite.context(network):
        with pytest.raises(RuntimeError, match='in a context already'), composite.context(other):
            pass
        attribution, = torch.autograd.grad(network(image)[:, 2].sum(), image)
    assert torch.equal(attribution, expected)
    with composite.context(other):
        other(image)
