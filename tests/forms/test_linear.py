'''Each function's split form, against what its Jacobian says.'''
import functools

import pytest
import torch
from helpers import assert_close, random_image
from torch import nn
from torch.nn import functional as F

import zennit_dc
from zennit_dc import SplitGrad, SplitLRP, SplitTensor, split_form
from zennit_dc.operations import activation
from zennit_dc.affine import Layer, affine
from zennit_dc.split import SplitForm

W = random_image(4, 3, 3, seed=11)
CONSTANT = random_image(2, 4, 6, 6, seed=12)


def weight(*shape):
    return random_image(*shape, seed=sum(shape))


def bias(size):
    return random_image(size, seed=size)


def norm(x, size):
    return F.batch_norm(x, bias(size), bias(size).abs() + .1, weight(size), weight(size, 1)[:, 0])


IMAGE = (2, 4, 6, 6)
AFFINE = {
    'linear': ((2, 5), lambda x: F.linear(x, weight(3, 5), bias(3))),
    'linear of many weights': ((2, 3000), lambda x: F.linear(x, weight(100, 3000), bias(100))),
    'linear of tokens': ((2, 3, 5), lambda x: F.linear(x, weight(3, 5))),
    'matmul': ((2, 3, 5), lambda x: x @ weight(5, 4)),
    'matmul from the left': ((2, 3, 5), lambda x: weight(4, 3) @ x),
    'mm': ((2, 5), lambda x: torch.mm(x, weight(5, 4))),
    'addmm': ((2, 5), lambda x: torch.addmm(bias(4), x, weight(5, 4))),
    'conv1d': ((2, 4, 9), lambda x: F.conv1d(x, weight(6, 2, 3), bias(6), 2, 1, 2, 2)),
    'conv2d': (IMAGE, lambda x: F.conv2d(x, weight(6, 2, 3, 2), bias(6), (2, 1), (1, 0), (1, 2), 2)),
    'conv2d same': (IMAGE, lambda x: F.conv2d(x, weight(6, 4, 2, 4), bias(6), padding='same', dilation=(1, 1))),
    'conv2d same odd': (IMAGE, lambda x: F.conv2d(x, weight(6, 4, 3, 3), padding='same', dilation=2)),
    'conv2d valid': (IMAGE, lambda x: F.conv2d(x, weight(6, 4, 3, 3), padding='valid')),
    'conv3d': ((2, 2, 4, 5, 4), lambda x: F.conv3d(x, weight(4, 2, 3, 3, 2), bias(4), (1, 2, 1), 1)),
    'conv_transpose1d': ((2, 4, 5), lambda x: F.conv_transpose1d(x, weight(4, 3, 3), bias(6), 2, 1, 1, 2, 2)),
    'conv_transpose2d': (IMAGE, lambda x: F.conv_transpose2d(x, weight(4, 3, 3, 2), bias(3), (2, 1), 1, (1, 0))),
    'conv_transpose3d': ((1, 2, 3, 3, 2), lambda x: F.conv_transpose3d(x, weight(2, 2, 2, 2, 2), bias(2), 2)),
    'batch_norm': (IMAGE, lambda x: norm(x, 4)),
    'batch_norm 1d': ((2, 4), lambda x: norm(x, 4)),
    'batch_norm 3d': ((2, 4, 2, 3, 2), lambda x: norm(x, 4)),
    'batch_norm without parameters': (IMAGE, lambda x: F.batch_norm(x, bias(4), bias(4).abs() + .1)),
    'circular convolution': ((2, 3, 6, 6), nn.Conv2d(3, 4, 3, padding=1, padding_mode='circular').double()),
}
LINEAR = {
    'avg_pool1d': ((2, 4, 6), lambda x: F.avg_pool1d(x, 2)),
    'avg_pool2d': (IMAGE, lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)),
    'avg_pool3d': ((2, 2, 4, 4, 4), lambda x: F.avg_pool3d(x, 2)),
    'adaptive_avg_pool1d': ((2, 4, 7), lambda x: F.adaptive_avg_pool1d(x, 3)),
    'adaptive_avg_pool2d': (IMAGE, lambda x: F.adaptive_avg_pool2d(x, (4, 1))),
    'adaptive_avg_pool3d': ((2, 2, 4, 4, 4), lambda x: F.adaptive_avg_pool3d(x, 3)),
    'mean': (IMAGE, lambda x: x.mean((2, 3))),
    'torch.mean': (IMAGE, lambda x: torch.mean(x, dim=[2, 3], keepdim=True)),
    'sum': (IMAGE, lambda x: x.sum(1)),
    'interpolate nearest': (IMAGE, lambda x: F.interpolate(x, scale_factor=2)),
    'interpolate bilinear': (IMAGE, lambda x: F.interpolate(x, (9, 8), mode='bilinear', align_corners=True)),
    'add number': (IMAGE, lambda x: x + 3),
    'number minus': (IMAGE, lambda x: 2. - x),
    'minus number': (IMAGE, lambda x: x - 1.5),
    'add constant': (IMAGE, lambda x: CONSTANT + x),
    'minus constant': (IMAGE, lambda x: x - CONSTANT),
    'constant minus': (IMAGE, lambda x: CONSTANT - x),
    'add with alpha': (IMAGE, lambda x: torch.add(x, CONSTANT, alpha=-2)),
    'add with alpha to a constant': (IMAGE, lambda x: torch.add(CONSTANT, x, alpha=-2)),
    'times number': (IMAGE, lambda x: -2 * x),
    'times constant': (IMAGE, lambda x: x * CONSTANT),
    'over constant': (IMAGE, lambda x: x / CONSTANT),
    'negative': (IMAGE, lambda x: -x),
    'sum of pairs': (IMAGE, lambda x: x[:, :2] + x[:, 2:]),
    'difference of pairs': (IMAGE, lambda x: torch.sub(x[:, :2], x[:, 2:], alpha=3)),
    'python sum': (IMAGE, lambda x: sum([x[:, :2], x[:, 2:]])),
    'scaled input': (IMAGE, lambda x: torch.unsqueeze(x[:, 0], 1) * (.229 / .5) + (.485 - .5) / .5),
}
ROUTING = {
    'flatten': lambda x: torch.flatten(x, 1),
    'view': lambda x: x.view(2, -1),
    'view of a permutation': lambda x: x.permute(0, 2, 3, 1).contiguous().view(2, 36, 4),
    'reshape': lambda x: x.reshape(2, 2, -1),
    'unflatten': lambda x: x.unflatten(1, (2, 2)),
    'permute': lambda x: x.permute(0, 2, 3, 1),
    'transpose': lambda x: x.transpose(1, 2).contiguous(),
    'mT': lambda x: x.mT,
    'unsqueeze and squeeze': lambda x: x.unsqueeze(1).squeeze(1),
    'cat': lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
    'cat with a constant': lambda x: torch.cat([x, CONSTANT], 1),
    'stack': lambda x: torch.stack([x, x], dim=1),
    'chunk': lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    'split': lambda x: x.split([1, 3], 1)[1],
    'torch.split': lambda x: torch.split(x, 2, dim=1)[0],
    'unbind': lambda x: x.unbind(1)[2],
    'indexing': lambda x: x[:, [0, 2], ::2, None],
    'zero padding': lambda x: F.pad(x, (1, 2, 0, 1)),
    'reflection padding': lambda x: F.pad(x, (1, 2, 0, 1), mode='reflect'),
    'constant padding': lambda x: F.pad(x, (1, 1), value=-2.),
    'dropout in eval mode': lambda x: F.dropout(x, .5, training=False),
    'identity': nn.Identity(),
    'clone': lambda x: x.clone(),
    'conversion': lambda x: x.to(torch.float64).double().type_as(x),
    'channel shuffle': lambda x: F.channel_shuffle(x, 2),
    'pixel shuffle': lambda x: F.pixel_shuffle(x, 2),
    'expand': lambda x: x[:, :, :1].expand(-1, -1, 3, -1),
    'flip': lambda x: x.flip(2),
    'loop over rows': lambda x: torch.stack([row for row in x.transpose(0, 1)], 1),
    'in-place addition': lambda x: x.clone().add_(CONSTANT),
    'in-place through a view': lambda x: double_half(x.clone()),
}
ALL = {**AFFINE, **LINEAR, **{name: (IMAGE, function) for name, function in ROUTING.items()}}


def double_half(x):
    x[:, :2].mul_(-2.)
    return x


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@functools.cache
def jacobian(function, shape):
    '''The matrix and the bias of an affine function.'''
    zero = torch.zeros(shape, dtype=torch.float64)
    with torch.no_grad():
        offset = function(zero)
    matrix = torch.autograd.functional.jacobian(function, zero).reshape(offset.numel(), -1)
    return matrix, offset


@pytest.mark.parametrize('name', ALL)
def test_affine_functions(name):
    shape, function = ALL[name]
    x, total = random_image(*shape), random_image(*shape, seed=5).abs()
    output = function(SplitTensor(x, total))
    assert torch.equal(output.difference, function(x))
    matrix, offset = jacobian(function, shape)
    assert_close(output.stream_sum, (matrix.abs() @ total.flatten()).reshape(offset.shape) + offset.abs())


@pytest.mark.parametrize('name', ALL)
def test_gradients_of_affine_functions(name):
    shape, function = ALL[name]
    x, model = random_image(*shape).requires_grad_(), Function(function)
    matrix, offset = jacobian(function, shape)
    seed = random_image(*offset.shape, seed=3)
    for composite, expected in (
        (SplitGrad(0., 'g'), matrix.T @ seed.flatten() / 2),
        (SplitGrad(0., '+g'), (matrix.T @ seed.flatten() + matrix.abs().T @ seed.abs().flatten()) / 2),
    ):
        with composite.context(model):
            gradient, = torch.autograd.grad(model(x), x, seed)
        assert_close(gradient, expected.reshape(shape))


@pytest.mark.parametrize('name', [*AFFINE, *(name for name in LINEAR if name not in (
    # additions share evenly, a negative exchanges the streams, and more than one layer has more than one denominator
    'python sum', 'sum of pairs', 'difference of pairs', 'negative', 'scaled input',
))])
def test_relevance_of_affine_functions(name):
    shape, function = ALL[name]
    x, model = random_image(*shape).requires_grad_(), Function(function)
    matrix, offset = jacobian(function, shape)
    plus, minus = x.detach().clamp(min=0).flatten(), (-x.detach()).clamp(min=0).flatten()
    w_plus, w_minus = matrix.clamp(min=0), (-matrix).clamp(min=0)
    relevance = random_image(*offset.shape, seed=3)
    u_plus = relevance.flatten() / (w_plus @ plus + w_minus @ minus + offset.flatten().clamp(min=0) + .1)
    with SplitLRP(.1, 'combined', recentering=None).context(model):
        attribution, = torch.autograd.grad(model(x), x, relevance)
    expected = plus * (w_plus.T @ u_plus) - minus * (w_minus.T @ u_plus)
    assert_close(attribution, expected.reshape(shape))


@pytest.mark.parametrize('function', [
    *(function for name, function in ROUTING.items() if 'in-place' not in name), LINEAR['negative'][1],
])
def test_relevance_of_routing(function):
    x, model = random_image(*IMAGE).requires_grad_(), Function(function)
    matrix, offset = jacobian(function, IMAGE)
    relevance = random_image(*offset.shape, seed=3)
    with SplitLRP().context(model):
        attribution, = torch.autograd.grad(model(x), x, relevance)
    assert_close(attribution, (matrix.T @ relevance.flatten()).reshape(IMAGE))


POOLING = {
    'max_pool1d': ((2, 3, 9), nn.MaxPool1d(3, 2, 1)),
    'max_pool1d dilated': ((2, 3, 9), nn.MaxPool1d(3, 1, 1, dilation=2, ceil_mode=True)),
    'max_pool2d': ((2, 3, 9, 8), nn.MaxPool2d(2)),
    'max_pool2d padded': ((2, 3, 9, 8), nn.MaxPool2d(3, 2, 1)),
    'max_pool2d ceil_mode': ((2, 3, 10, 8), nn.MaxPool2d(3, 2, ceil_mode=True)),
    'max_pool2d ceil_mode padded': ((2, 3, 10, 9), nn.MaxPool2d((3, 2), (2, 3), (1, 1), ceil_mode=True)),
    'max_pool2d overlapping': ((2, 3, 9, 8), nn.MaxPool2d(3, 1, 1)),
    'max_pool2d apart': ((2, 3, 9, 8), nn.MaxPool2d(2, 3)),
    'max_pool2d dilated': ((2, 3, 9, 8), nn.MaxPool2d(2, 2, dilation=(2, 3))),
    'max_pool3d': ((2, 3, 4, 5, 6), nn.MaxPool3d(2, 2, 1)),
    'adaptive_max_pool1d': ((2, 3, 9), nn.AdaptiveMaxPool1d(4)),
    'adaptive_max_pool2d': ((2, 3, 9, 8), nn.AdaptiveMaxPool2d((4, 3))),
    'adaptive_max_pool2d global': ((2, 3, 9, 8), nn.AdaptiveMaxPool2d(1)),
    'adaptive_max_pool3d': ((2, 3, 4, 5, 6), nn.AdaptiveMaxPool3d((2, None, 4))),
    'amax': ((2, 3, 9, 8), lambda x: x.amax((2, 3))),
    'torch.amax': ((2, 3, 9, 8), lambda x: torch.amax(x, -1, keepdim=True)),
    'with indices': ((2, 3, 9, 8), lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
}


@pytest.mark.parametrize('name', POOLING)
def test_max_pooling(name):
    '''Windows are found by the pooling itself: an entry is in the windows that it wins where it is raised.'''
    shape, pooling = POOLING[name]
    x, total = random_image(*shape), random_image(*shape, seed=5).abs() + 3
    outputs = {
        kind: pooling(SplitTensor(x, total, SplitForm(kind))) for kind in ('wta', 'convex')
    }
    expected = pooling(x)
    winner = torch.autograd.functional.jacobian(pooling, x).reshape(expected.numel(), -1)
    assert torch.equal(winner.sum(1), torch.ones(len(winner), dtype=winner.dtype))
    inside = torch.zeros_like(winner)
    for index in range(x.numel()):
        raised = x.clone()
        raised.view(-1)[index] += 100.
        inside[:, index] = (pooling(raised) != expected).flatten()
    plus, minus = (total + x).flatten() / 2, (total - x).flatten() / 2
    # equation 17, window by window
    candidates = plus + (inside @ minus)[:, None] - inside * minus
    convex_plus = torch.where(inside > 0, candidates, -torch.inf).amax(1)
    for kind, a_plus, a_minus in (
        ('wta', winner @ plus, winner @ minus), ('convex', convex_plus, inside @ minus),
    ):
        assert torch.equal(outputs[kind].difference, expected)
        assert_close(outputs[kind].positive_stream, a_plus.reshape(expected.shape))
        assert_close(outputs[kind].negative_stream, a_minus.reshape(expected.shape))


@pytest.mark.parametrize('function', [F.relu, torch.relu, nn.ReLU(), nn.ReLU(inplace=True), torch.Tensor.relu])
def test_relu(function):
    x, total = random_image(3, 4), random_image(3, 4, seed=2).abs() + 3
    x[0, 0] = 0.
    pair = SplitTensor(x.clone().requires_grad_(), total.clone().requires_grad_())
    difference, stream_sum = pair.difference, pair.stream_sum
    output = function(pair)
    assert torch.equal(output.difference, x.relu())
    assert torch.equal(output.positive_stream, torch.maximum((total + x) / 2, (total - x) / 2))
    d_seed, s_seed = random_image(3, 4, seed=3), random_image(3, 4, seed=4)
    gradients = torch.autograd.grad(
        (output.difference, output.stream_sum), (difference, stream_sum), (d_seed, s_seed)
    )
    # equation 48: zero counts as positive
    assert torch.equal(gradients[0], torch.where(x >= 0, d_seed, -s_seed))
    assert torch.equal(gradients[1], s_seed)


def test_in_place_operations_reach_all_views():
    x = SplitTensor(random_image(2, 4), random_image(2, 4).abs())
    expected = x.difference.clone()
    same, view = x, x.view(4, 2)
    same += 1
    view.mul_(3)
    x[:, :1].neg_()
    expected = (expected + 1) * 3
    expected[:, :1] *= -1
    assert torch.equal(x.difference, expected)
    assert torch.equal(view.difference, expected.view(4, 2))


def test_in_place_relu_changes_its_argument():
    x = SplitTensor(random_image(2, 4), random_image(2, 4).abs())
    expected = x.difference.relu()
    F.relu(x, inplace=True)
    assert torch.equal(x.difference, expected)


def test_control_flow_reads_the_difference():
    class Branching(nn.Module):
        def forward(self, x):
            if x.ndim != 2 or len(x) != 3 or x.size(1) != 4 or x.dtype != torch.float64 or not x.is_floating_point():
                raise ValueError
            return x + x if x.mean() > 0 and (x[0, 0] < 1e9).all() else -x

    x = random_image(3, 4)
    for image in (x - x.mean() + 1, x - x.mean() - 1):
        image.requires_grad_()
        with SplitGrad(.5).context(model := Branching()):
            gradient, = torch.autograd.grad(model(image).sum(), image)
        assert torch.equal(gradient, torch.full_like(image, 1. if image.mean() > 0 else -.5))


def test_sum_is_kept_in_float32():
    pair = nn.Linear(4, 3).bfloat16()(SplitTensor.of(torch.randn(2, 4, dtype=torch.bfloat16)))
    assert pair.dtype == pair.difference.dtype == torch.bfloat16
    assert pair.stream_sum.dtype == torch.float32
    assert pair.float().stream_sum.dtype == torch.float32
    assert pair.double().stream_sum.dtype == torch.float64
    with torch.autocast('cpu', torch.bfloat16):
        pair = nn.Linear(4, 3)(SplitTensor.of(torch.randn(2, 4)))
    assert (pair.difference.dtype, pair.stream_sum.dtype) == (torch.bfloat16, torch.float32)


def test_own_function_and_own_module():
    '''How to add a split form: the README's example.'''
    class Squares(nn.Module):
        def forward(self, x):
            return torch.trace(x)[None]

    @split_form(torch.trace)
    def trace(pair):
        return affine(pair, Layer(lambda x, weight, bias: (x * weight).sum().reshape(())), torch.eye(3))

    class Cube(nn.Module):
        def forward(self, x):
            return x.detach().numpy() ** 3

    @split_form(Cube)
    def cube(module, pair):
        return activation(pair, lambda d, s: (d.relu(), s + (-d).relu()))

    try:
        x = torch.rand(3, 3).requires_grad_()
        with SplitGrad(.5).context(model := Squares()):
            gradient, = torch.autograd.grad(model(x), x)
        assert torch.equal(gradient, torch.eye(3) / 2)
        with SplitGrad(.5).context(model := nn.Sequential(Cube())):
            assert torch.equal(model(x), x)
        assert 'forward' not in model[0].__dict__
    finally:
        del zennit_dc.split.FORMS[torch.trace], zennit_dc.split.MODULE_FORMS[Cube]
