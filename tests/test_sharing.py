'''One sum for all images of a batch, against one for each.'''
import pytest
import torch
import torchvision
from helpers import assert_close, gradients, random_image
from literal import Network
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zennit_dc import Balanced, SplitCAM, SplitGrad, split_form
from zennit_dc.attribution import class_relevance, contrast
from zennit_dc.core.blocks import Layer
from zennit_dc.rules import ShiftedSensitivity, ruled


def maps(composite, model, images, relevance, **kwargs):
    '''The maps of a batch, and the number of the operation after which sums are shared, if any is.'''
    images = images.clone().requires_grad_()
    with composite.context(model):
        output = model(images)
        map, = torch.autograd.grad(output, images, relevance(output), **kwargs)
    return map, composite.canonizers[-1].first_shared.get(model)


@pytest.fixture(name='sizes')
def fixture_sizes(monkeypatch):
    '''How many samples the sum's gradient has in each layer with weights, from the output on.'''
    found, transposed = [], Layer.transposed_magnitude

    def counting(self, gradient, weight, shape):
        found.append(len(gradient))
        return transposed(self, gradient, weight, shape)

    monkeypatch.setattr(Layer, 'transposed_magnitude', counting)
    return found


@pytest.mark.slow(4)
@pytest.mark.parametrize('name, full', [('resnet18', 1), ('mobilenet_v2', 0), ('densenet121', 1)])
def test_networks(name, full, sizes):
    model = torchvision.models.get_model(name, weights=None).double().eval()
    images, relevance = random_image(3, 3, 32, 32), contrast(5, [7, 9])
    expected, _ = maps(SplitGrad(.3, '+h'), model, images, relevance)
    each, sizes[:] = set(sizes), []
    assert each == {3}
    actual, first = maps(SplitGrad(.3, '+h', shared=True), model, images, relevance)
    # the same kernels run for one image as for three, but may sum in another order
    assert_close(actual, expected, 1e-12)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    assert sizes == sorted(sizes) and (first is not None) == bool(full)
    assert sizes.count(3) == 2 * full and sizes.count(1) == len(layers) - 2 * full  # a layer and its norm


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('alpha', [.3, Balanced()])
@pytest.mark.parametrize('stream', ['g', '+g'])
def test_no_gradient_of_a_sum_that_nothing_is_read_off(stream, alpha, shared, sizes):
    '''The sensitivity of the difference needs the sum's gradient down to the lowest activation.'''
    model, images = torchvision.models.resnet18(weights=None).eval(), random_image(2, 3, 32, 32, dtype=torch.float32)
    maps(SplitGrad(alpha, stream, shared=shared), model, images, contrast(5, [7, 9]))
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    assert len(sizes) == len(layers) - (2 if stream == 'g' else 0)  # the first convolution and its norm


@pytest.mark.parametrize('stream', ['+g', '-g', 'g', '+h', '-h', 'h'])
@pytest.mark.parametrize('alpha', [0., .3, .5, Balanced(), {'': .3, 'a': .2}.get])
def test_streams_and_shifts(stream, alpha):
    model, images = Network(), random_image(4, 3, 16, 16)
    shift = alpha if not callable(alpha) else lambda name: .3 if name else .2
    for create in (SplitGrad, lambda *args, **kwargs: SplitCAM('conv3', *args, **kwargs)):
        expected, actual = (
            maps(create(shift, stream, shared=shared), model, images, class_relevance(1))[0] for shared in (False, True)
        )
        assert_close(actual, expected, 1e-12)


def test_maps_can_be_differentiated():
    model, images = Network(), random_image(3, 3, 16, 16)
    found = []
    for shared in (False, True):
        leaf = images.clone().requires_grad_()
        with SplitGrad(.3, shared=shared).context(model):
            map, = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf, create_graph=True)
            found.append(torch.autograd.grad(map.square().sum(), [*model.parameters()], allow_unused=True))
    assert any(each is not None and each.any() for each in found[0])
    for one, other in zip(*found):
        assert (one is None) == (other is None)
        if one is not None and one.any():
            assert_close(other, one, 1e-11)


def test_different_relevances_are_refused():
    model, images = Network(), random_image(3, 3, 16, 16)
    with pytest.raises(ValueError, match='give images of one class'):
        maps(SplitGrad(.3, shared=True), model, images, class_relevance(torch.tensor([0, 1, 0])))
    maps(SplitGrad(.3, shared=True), model, images[:1], class_relevance(0))
    maps(SplitGrad(.3), model, images, class_relevance(torch.tensor([0, 1, 0])))


class Calls(nn.Module):
    '''A function between two layers.'''
    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Conv2d(3, 4, 3), nn.Linear(64, 5), function
        self.double()

    def forward(self, x):
        return self.last(self.function(F.relu(self.first(x))).flatten(1))


class Flipped(nn.Module):
    def forward(self, x):
        return x.flip(-1)


@split_form(Flipped)
def flipped(module, pair):
    return pair.flip(-1)


@pytest.mark.parametrize('function, first', [
    (lambda x: x, None), (lambda x: x * 2 + 1, None), (lambda x: F.relu6(x) - F.leaky_relu(x, -.2), None),
    (lambda x: x.view(3, -1), True), (lambda x: x.reshape(len(x) * 4, 16).relu().view(len(x), -1), True),
    (lambda x: torch.maximum(x, 1. - x), True), (lambda x: x * x, None),
    (lambda x: x * torch.arange(3.).view(3, 1, 1, 1), True),
    (lambda x: torch.cat([x, x.flip(0)]).view(2, 3, -1).movedim(0, 1)[:, 0], True), (Flipped(), True),
    (lambda x: x.flatten(1).relu_(), True), (lambda x: x.amax(1, keepdim=True).expand(-1, 4, -1, -1), True),
    (lambda x: torch.stack([x, -x]).amax(0), True), (lambda x: x.abs(), None),
])
@pytest.mark.parametrize('alpha', [.3, Balanced()])
def test_what_depends_on_the_image_is_not_shared(function, first, alpha):
    torch.manual_seed(0)
    model, images = Calls(function).eval(), random_image(3, 3, 6, 6)
    results = []
    for shared in (False, True):
        torch.manual_seed(1)
        results.append(maps(SplitGrad(alpha, '+g', shared=shared), model, images, class_relevance(2)))
    assert_close(results[1][0], results[0][0], 1e-12)
    assert alpha != .3 or (results[1][1] is not None) == bool(first)


def test_what_was_found_holds_for_the_next_call(monkeypatch):
    calls, model, images = [], Network(), random_image(3, 3, 16, 16)
    monkeypatch.setattr(model, 'forward', lambda x, forward=model.forward: calls.append(1) or forward(x))
    composite = SplitGrad(.3, shared=True)
    for count in (2, 3):  # the first call starts over after the max-pooling
        maps(composite, model, images, class_relevance(0))
        assert len(calls) >= count
    found = len(calls)
    maps(composite, model, images, class_relevance(0))
    assert len(calls) == found + 1


def test_rules_that_differ_by_image_are_refused():
    class ByImage(ShiftedSensitivity):
        def before_affine(self, pair):
            return ruled(pair, lambda gradient, total: (gradient, total * gradient.mean((1, 2, 3), keepdim=True)))

    model = Calls(lambda x: F.relu(x)).eval()
    composite = SplitGrad(.3, layer_map=[((nn.Conv2d,), ByImage(.3))], shared=True)
    with pytest.raises(RuntimeError, match='do without shared=True'):
        maps(composite, model, random_image(3, 3, 6, 6), class_relevance(0))


def test_checkpoints_are_refused():
    model = Calls(lambda x: checkpoint(F.relu, x, use_reentrant=False)).eval()
    with pytest.raises(RuntimeError, match='checkpoint'):
        maps(SplitGrad(.3, shared=True), model, random_image(3, 3, 6, 6), class_relevance(0))


def test_maps_that_are_not_finite_are_computed_again():
    model, images = Network().float(), random_image(3, 3, 16, 16).float()
    for parameter in model.parameters():
        parameter.data *= 1e14 if parameter.ndim == 4 else 1.
    with pytest.warns(UserWarning, match='scaled'):
        expected, actual = (
            maps(SplitGrad(0., '+g', shared=shared), model, images, class_relevance(0))[0] for shared in (False, True)
        )
    assert actual.isfinite().all()
    assert_close(actual, expected, 1e-6)  # both of float64, and rounded to float32


class Two(nn.Module):
    '''A function of two inputs, of which each has a convolution.'''
    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head, self.function = nn.Linear(64, 3), function

    def forward(self, x, z):
        return self.head(F.relu(self.function(F.relu(self.first(x)), F.relu(self.second(z)))).flatten(1))


@pytest.mark.parametrize('function, samples', [
    (lambda v, w: v + w, 1), (lambda v, w: w + v, 1), (lambda v, w: v.cumsum(0) + w, 4),
    (lambda v, w: F.batch_norm(v.transpose(0, 1), torch.zeros(4).double(), torch.ones(4).double(),
                               torch.arange(4.).double()).transpose(0, 1) + w, 4),
    (lambda v, w: F.conv2d(v.transpose(0, 1), torch.ones(4, 4, 1, 1).double()).transpose(0, 1) + w, 4),
])
def test_one_sum_where_samples_meet(function, samples):
    model, inputs = Two(function).double().eval(), (random_image(4, 4, 4, 4), random_image(samples, 4, 4, 4))
    for stream in ('g', '+g'):
        expected = gradients(SplitGrad(.3, stream), model, *inputs)
        found = gradients(SplitGrad(.3, stream, shared=True), model, *inputs)
        for each, other in zip(found, expected):
            assert_close(each, other, 1e-12)
