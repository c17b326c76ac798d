'''The pair, and the table of split forms.'''
import copy
import warnings

import pytest
import torch
from helpers import random_image
from small_models import Calls
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zennit_dc import SplitGrad, SplitLRP, SplitTensor, split_form


def test_pair_from_tensors_of_other_shapes():
    with pytest.raises(ValueError, match='shape'):
        SplitTensor(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(TypeError, match='int64'):
        SplitTensor(torch.ones(2, dtype=torch.int64), torch.ones(2))


def test_sum_that_is_not_computed_is_not_given(network, image):
    def read(module, args, output):
        with pytest.raises(RuntimeError, match='not computed'):
            return output.stream_sum

    handle = network.conv3.register_forward_hook(read)
    with SplitGrad().context(network):
        network(image)
    handle.remove()


def test_sum_is_kept_in_float32():
    pair = nn.Linear(4, 3).bfloat16()(SplitTensor.of(torch.randn(2, 4, dtype=torch.bfloat16)))
    assert pair.dtype == pair.difference.dtype == torch.bfloat16
    assert pair.stream_sum.dtype == torch.float32
    assert pair.float().stream_sum.dtype == torch.float32
    assert pair.double().stream_sum.dtype == torch.float64
    with torch.autocast('cpu', torch.bfloat16):
        pair = nn.Linear(4, 3)(SplitTensor.of(torch.randn(2, 4)))
    assert (pair.difference.dtype, pair.stream_sum.dtype) == (torch.bfloat16, torch.float32)


def test_functions_whose_names_have_two_signatures():
    pair = SplitTensor.of(random_image(2, 4, 6))
    weight, bias, mean, variance = (random_image(4, seed=seed).abs() for seed in range(4))
    output = torch.batch_norm(pair, weight, bias, mean, variance, False, .1, 1e-5, True)
    assert torch.equal(output.difference, F.batch_norm(pair.difference, mean, variance, weight, bias))
    values, places = torch.adaptive_max_pool1d(pair, 3)
    assert torch.equal(values.difference, F.adaptive_max_pool1d(pair.difference, 3)) and places.shape == (2, 4, 3)
    assert torch.dropout(pair, .5, False) is pair and torch.dropout(pair, p=.5, train=False) is pair


@pytest.mark.parametrize('function, named', [
    (torch.sigmoid, r'sigmoid.*SmoothReplacement\(\)'), (F.softmax, 'softmax'), (torch.Tensor.exp, 'exp'),
    (lambda x: x ** 2.5, 'pow'),
    (F.gelu, 'gelu.*smooth'), (F.hardshrink, 'jumps'), (lambda x: F.threshold(x, 0., 1.), 'jumps'),
    (lambda x: x.clamp(x), 'bounds'), (lambda x: 1 / x, 'rdiv.*attention'),
    (lambda x: x / x, 'div.*attention'),
    (lambda x: F.conv2d(torch.ones(1, 4, 9, 9), x), 'conv2d'), (lambda x: F.linear(x, x[0, 0]), 'linear'),
    (lambda x: F.relu(x[0, 0, 0]).fill_(1.), 'fill_'), (lambda x: x.amax(0), 'batch'),
    (copy.deepcopy, 'deepcopy'), (lambda x: F.conv2d(x[0], torch.ones(1, 4, 3, 3)), 'batch axis'),
    (lambda x: torch.ops.aten.lgamma(x), 'lgamma'),
    (lambda x: F.linear(x.flatten(), torch.ones(1, 144)), 'batch axis'), (lambda x: x.kthvalue(1)[0], 'kthvalue'),
])
def test_unsupported_functions_are_named(function, named):
    model = Calls(function)
    with SplitGrad(canonizers=None).context(model), pytest.raises(NotImplementedError, match=named) as error:
        model(torch.randn(1, 3, 8, 8))
    assert '\'block.calling\' (Calling)' in str(error.value)


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


def test_activations_are_counted_on_the_longest_way():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.depths = []

        def forward(self, x):
            for _ in range(3):
                one = F.relu(self.conv(x))
                x = (x + one) + (x + F.relu(self.conv(one)))
            self.depths.append(x.depth)
            return x.flatten(1)

    with SplitGrad().context(model := Blocks()):
        model(torch.ones(1, 3, 4, 4))
    assert model.depths == [6]


@pytest.mark.parametrize('make', [SplitGrad, SplitLRP])
def test_pair_that_a_module_keeps(make):
    class Keeping(nn.Module):
        def forward(self, x):
            self.kept, before = x, getattr(self, 'kept', None)
            return x if before is None else x + before

    model = nn.Sequential(nn.Linear(4, 3), Keeping())
    with make().context(model):
        model(torch.ones(2, 4))
        with pytest.raises(RuntimeError, match='add.*another forward pass.*keeps'):
            model(torch.ones(2, 4))
    with pytest.raises(RuntimeError, match='add.*another forward pass.*keeps'):
        model(torch.ones(2, 4))
    model[1].kept = None


def test_scripted_functions_are_named():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        function = torch.jit.script(double_of)
    model = Calls(function)
    with SplitGrad().context(model), pytest.raises(NotImplementedError, match=r'aten\.relu.*scripted'):
        model(torch.ones(1, 3, 8, 8))


def double_of(x):
    return 2 * torch.relu(x)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(x, factor):
        return x * factor

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class Branches(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.body, self.label, self.domain = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.body(x))
        return self.label(x), self.domain(self.function(x))


@pytest.mark.parametrize('make', [SplitGrad, SplitLRP])
@pytest.mark.parametrize('kind, arguments, form, same', [
    (Reverse, (), lambda pair: pair, lambda x: x),
    (Scaled, (2.,), lambda pair, factor: pair * factor, lambda x: x * 2.),
])
def test_autograd_functions_on_branches_and_with_forms(monkeypatch, make, kind, arguments, form, same):
    '''What does not lead to the explained output is left alone; and a form for the function, or its apply, holds.'''
    monkeypatch.setattr(kind, 'forward', kind.__dict__['forward'])  # which a form replaces
    forms = {}
    for room in ('pair', 'registry'):
        monkeypatch.setattr(f'zennit_dc.core.{room}.FUNCTION_FORMS', forms)
    torch.manual_seed(0)
    model, other, image = Branches(lambda x: kind.apply(x, *arguments)), Branches(same), torch.rand(2, 4)
    other.load_state_dict(model.state_dict())

    def map_of(model, index):
        pixels = image.clone().requires_grad_()
        with make().context(model):
            return torch.autograd.grad(model(pixels)[index].sum(), pixels)[0]

    assert torch.equal(map_of(model, 0), map_of(other, 0))
    with pytest.raises(NotImplementedError, match=f'{kind.__name__}.apply.*split_form'):
        map_of(model, 1)
    split_form(kind.apply)(form)
    assert map_of(other, 1).any() and torch.equal(map_of(model, 1), map_of(other, 1))


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Foreign(nn.Module):
    '''Two outputs, of which the second depends on an autograd function without a form by what a test gives it.'''
    def __init__(self, branch):
        super().__init__()
        self.branch, self.body, self.label = branch, nn.Linear(4, 8), nn.Linear(8, 3)
        self.recurrent, self.domain = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 8)

    def forward(self, x):
        x = F.relu(self.body(x))
        return self.label(x), self.branch(self, x)


def written_to(model, x):
    x = x.clone()
    first, second = x[:, :6], x[:, 4:]
    first += Reverse.apply(first)
    return second * 2


@pytest.mark.parametrize('branch', [
    lambda model, x: model.domain(Swish.apply(x)), lambda model, x: torch.exp(Reverse.apply(x)).softmax(1),
    lambda model, x: model.recurrent(Reverse.apply(x)[:, None])[0][:, 0], written_to,
    lambda model, x: x + model.domain(Reverse.apply(x)), lambda model, x: Reverse.apply(x),
])
def test_no_map_of_what_depends_on_an_autograd_function(branch):
    '''It is refused however the output depends on it; outputs are as they are, and others have their maps.'''
    torch.manual_seed(0)
    model, image = Foreign(branch), torch.rand(2, 4).requires_grad_()
    with SplitGrad(.4).context(alone := nn.Sequential(model.body, nn.ReLU(), model.label)):
        expected, = torch.autograd.grad(alone(image).sum(), image)
    plain = model(image)
    with SplitGrad(.4).context(model):
        output = model(image)
        assert all(map(torch.equal, output, plain))
        assert torch.equal(torch.autograd.grad(output[0].sum(), image, retain_graph=True)[0], expected)
        with pytest.raises(NotImplementedError, match='(Reverse|Swish).apply.*split_form'):
            torch.autograd.grad(output[0].sum() + output[1].sum(), image)


def test_form_of_an_autograd_function_without_a_gradient(monkeypatch):
    '''What torch.no_grad() cuts off is cut off with a form, too.'''
    monkeypatch.setattr(Reverse, 'forward', Reverse.__dict__['forward'])
    forms = {}
    for room in ('pair', 'registry'):
        monkeypatch.setattr(f'zennit_dc.core.{room}.FUNCTION_FORMS', forms)
    split_form(Reverse)(lambda pair: pair)

    def branch(model, x):
        with torch.no_grad():
            cut = Reverse.apply(x)
        return x + cut

    model, image = Foreign(branch), torch.rand(2, 4).requires_grad_()
    with SplitGrad(.5).context(model):
        map, = torch.autograd.grad(model(image)[1].sum(), image)
    image = image.detach().requires_grad_()
    gradient, = torch.autograd.grad(F.relu(model.body(image)).sum(), image)
    torch.testing.assert_close(map, gradient / 2)
