'''In-place operations and views.'''
import pytest
import torch
from helpers import assert_close, divided, explain, gradient_of, random_image
from jacobians import IMAGE, require_sensitivities, require_streams
from small_models import Calling, with_layers
from torch import nn
from torch.nn import functional as F

from zennit_dc import SplitCAM, SplitGrad, SplitLRP, SplitTensor


def test_in_place_operation_through_a_view():
    def function(x):
        x = x.clone()
        x[:, :2].mul_(-2.)
        return x

    require_streams(IMAGE, function)
    require_sensitivities(IMAGE, function)


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


def test_in_place_operations_keep_the_dtype():
    pair = SplitTensor.of(torch.ones(2, 3, dtype=torch.bfloat16))
    pair += torch.full((2, 3), 1e-3)
    assert pair.dtype == torch.bfloat16 and torch.equal(pair.difference, torch.ones(2, 3, dtype=torch.bfloat16))
    with pytest.raises(NotImplementedError, match='shape'):
        SplitTensor.of(torch.ones(1, 3)).add_(torch.ones(2, 3))


def test_memory_of_sums_is_that_of_differences():
    pair = SplitTensor.of(torch.ones(2, dtype=torch.bfloat16))
    converted = pair.float()
    converted.view(2, 1).mul_(10.)
    assert torch.equal(pair.stream_sum, torch.ones(2)) and torch.equal(converted.stream_sum, torch.full((2,), 10.))
    pair = SplitTensor(torch.ones(2, 3), torch.ones(3, 2).T)
    pair.view(6).mul_(10.)
    assert torch.equal(pair.difference, torch.full((2, 3), 10.)) and torch.equal(pair.stream_sum, pair.difference)


def test_output_may_be_changed_in_place(network, image):
    expected = gradient_of(network, image) / 2
    image.requires_grad_()
    with SplitGrad(.5).context(network):
        output = network(image)
        output += 1.
        assert torch.equal(torch.autograd.grad(output[:, 2].sum(), image)[0], expected)


@pytest.mark.parametrize('change', [
    lambda view: view.relu_(), lambda view: view.clamp_(-.5, .5), lambda view: view.abs_(), lambda view: view.square_(),
    lambda view: F.hardtanh_(view), lambda view: F.leaky_relu_(view), lambda view: F.relu6(view, inplace=True),
    lambda view: F.hardswish(view, inplace=True), lambda view: view.mul_(-2.), lambda view: view.add_(view),
    lambda view: view.masked_fill_(torch.arange(view.shape[-1]) > 1, 3.), lambda view: view.neg_(),
])
@pytest.mark.parametrize('take', [
    lambda x: x[:, 1:3], lambda x: x.permute(0, 2, 3, 1)[..., ::2], lambda x: x.chunk(2, 1)[1],
    lambda x: x.unbind(2)[0], lambda x: x.permute(0, 2, 3, 1).flatten(0, 2), lambda x: x[:, :, 1:][..., 0],
])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_every_in_place_operation_through_a_view(change, take, memory_format):
    '''As it is without a graph, where torch allows it for the views of any function.'''
    class Changed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.last = torch.nn.Conv2d(4, 4, 1).double(), torch.nn.Linear(100, 3).double()

        def forward(self, x):
            x = self.conv(x)
            other = x[:, :, :2]
            change(take(x))
            return self.last(x.flatten(1)) + other.sum((1, 2, 3))[:, None]

    model = Changed().to(memory_format=memory_format)
    image = random_image(2, 4, 5, 5).to(memory_format=memory_format)
    with torch.no_grad():
        expected = model(image)
    image.requires_grad_()
    for composite in (SplitGrad(.5), SplitLRP()):
        with composite.context(model):
            output = model(image)
            attribution, = torch.autograd.grad(output[:, 1].sum(), image)
        assert torch.equal(output, expected)
        assert attribution.abs().max() > 0


def test_sensitivity_of_an_in_place_operation_on_a_view_of_other_memory():
    '''Here the sum would have other memory than the difference.'''
    class Rows(torch.nn.Module):
        def __init__(self, in_place):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.last = torch.nn.Conv2d(4, 4, 1).double(), torch.nn.Linear(100, 3).double()
            self.in_place = in_place

        def forward(self, x):
            x = self.conv(x)
            if not self.in_place:
                return self.last(x.relu().flatten(1))
            x.permute(0, 2, 3, 1).flatten(0, 2).relu_()
            return self.last(x.flatten(1))

    models = [Rows(in_place).to(memory_format=torch.channels_last) for in_place in (True, False)]
    image = random_image(2, 4, 5, 5).to(memory_format=torch.channels_last)
    # gradients in other strides take other kernels
    for make, tolerance in ((lambda: SplitGrad(.3), 1e-12), (lambda: SplitGrad(.5), 1e-12), (SplitLRP, divided())):
        one, other = (explain(make(), model, image) for model in models)
        assert_close(one, other, tolerance)


def test_entries_are_assigned():
    x, other = (SplitTensor(random_image(2, 4), 3 + random_image(2, 4).abs()) for _ in '12')
    expected, total = x.difference.clone(), x.stream_sum.clone()
    view = x[:, 1:]
    x[:, 0], x[0, 1:3] = -2., other[1, :2]
    expected[:, 0], expected[0, 1:3] = -2., other.difference[1, :2]
    total[:, 0], total[0, 1:3] = 2., other.stream_sum[1, :2]
    assert torch.equal(x.difference, expected) and torch.equal(x.stream_sum, total)
    assert torch.equal(view.difference, expected[:, 1:])
    with pytest.raises(NotImplementedError, match='comparison'):
        x[x < 0] = 0.


class Written(torch.nn.Module):
    '''A function of two layers of an image.'''
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = torch.nn.Linear(4, 5), torch.nn.Linear(4, 5)
        self.last, self.function = torch.nn.Linear(5, 3), function
        self.register_buffer('buffer', torch.zeros(2, 5))
        self.double().eval()

    def forward(self, x):
        return self.last(self.function(self, self.one(x), self.other(x)))


def added_to_detached(model, v, w):
    h = v.detach()
    h += w
    return h


def added_to_data(model, v, w):
    h = v.data
    return h.add_(w.relu(), alpha=2.)


def written_into_view(model, v, w):
    output = torch.zeros(2, 5).double()
    output[:, :2].copy_(v[:, :2])
    output[:, 2:].add_(w[:, 2:])
    return output.relu()


def written_into_one_of_several_views(model, v, w):
    output = torch.zeros(2, 5).double()
    left, middle = output[:, :2], output[:, 1:3]
    left.copy_(v[:, :2])
    return output.relu() + middle.mT[0, :, None] * 2.


def written_into_buffer(model, v, w):
    model.buffer[:, 1:] = v[:, 1:]
    return model.buffer + w.relu()


def value_changed_without_graph(model, v, w):
    with torch.no_grad():
        v.mul_(3.)
        w[:, 1:] = 0.
    return v.relu() + w


def detached_then_changed(model, v, w):
    h = v.detach()
    v.relu_()
    return v + h * w


@pytest.mark.parametrize('function', [
    added_to_detached, added_to_data, written_into_view, written_into_one_of_several_views, written_into_buffer,
    value_changed_without_graph, detached_then_changed,
], ids=lambda function: function.__name__)
def test_half_of_the_gradient_of_what_is_written(function):
    model, image = Written(function), random_image(2, 4)
    before = model.buffer
    expected = gradient_of(model, image, 1)
    model.buffer = torch.zeros(2, 5).double()
    found = explain(SplitGrad(.5), model, image, 1)
    assert_close(found, expected / 2)
    assert type(model.buffer) is type(before.data) is torch.Tensor


def test_memory_that_was_written_to_is_not_read_again():
    def changed(model, v, w):
        v.detach().mul_(2.)
        return v + w

    def overwritten(model, v, w):
        v.detach().add_(w)
        return v + w

    def several(model, v, w):
        one, other = v.detach(), v.detach()
        one += w
        return one + other

    for function in (changed, overwritten, several):
        with SplitGrad().context(model := Written(function)), pytest.raises(NotImplementedError, match='detach'):
            model(random_image(2, 4).requires_grad_())


def test_what_detach_returned_keeps_a_copy():
    def copied(model, v, w):
        h = v.detach().clone()
        h.mul_(2.)
        return h * w + v

    model, image = Written(copied), random_image(2, 4)
    assert_close(explain(SplitGrad(.5), model, image, 1), gradient_of(model, image, 1) / 2)


def test_a_tensor_that_became_a_pair_is_read_and_written_again():
    def written(model, v, w):
        kept = torch.zeros_like(v.detach())
        kept.copy_(v)
        half = kept * (kept.detach() > -.2)
        half.mT.pow_(2)
        return half + w

    model, image = Written(written), random_image(2, 4)
    assert_close(explain(SplitGrad(.5), model, image, 1), gradient_of(model, image, 1) / 2)


def test_memory_that_other_tensors_keep_becomes_no_pair():
    def kept(model, v, w):
        output = torch.zeros(2, 5).double()
        other = output.detach()
        output += v
        return output + other

    with SplitGrad().context(model := Written(kept)), pytest.raises(NotImplementedError, match='kept elsewhere'):
        model(random_image(2, 4).requires_grad_())


def test_parameters_become_no_pairs():
    def leaf(model, v, w):
        model.last.bias[:] = v[0, :3]
        return v

    with SplitGrad().context(model := Written(leaf)), pytest.raises(NotImplementedError, match='Parameter'):
        model(random_image(2, 4).requires_grad_())


@pytest.mark.parametrize('make', [SplitGrad, lambda: SplitCAM('one'), lambda: SplitLRP(layer='other')])
def test_an_output_that_depends_on_parameters_alone_is_an_error(make):
    class Frozen(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.last = (torch.nn.Conv2d(3, 3, 1).double() for _ in range(3))

        def forward(self, x):
            with torch.no_grad():
                x = self.one(x) + self.other(x)
            return self.last(x.relu()).mean((2, 3))

    with make().context(model := Frozen()), pytest.raises(ValueError, match='does not depend on .*no_grad'):
        model(random_image(2, 3, 5, 5).requires_grad_())


def test_a_plain_tensor_becomes_one_again():
    kept = []

    def function(model, v, w):
        kept.append(torch.zeros(2, 5).double())
        kept[0][:, 1:] = v[:, 1:]
        return kept[0].relu()

    with SplitLRP().context(model := Written(function)):
        model(random_image(2, 4).requires_grad_())
        assert type(kept[0]) is torch.Tensor and not kept[0].requires_grad
        assert torch.equal(kept[0][:, 1:], model.one(random_image(2, 4))[:, 1:])
        assert not kept[0].__dict__


@pytest.mark.parametrize('batch', [1, 3])
def test_a_sample_has_one_map_where_tensors_are_filled(batch):
    class Filled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.other = torch.nn.Conv2d(2, 3, 3), torch.nn.Conv2d(3, 3, 3)
            self.double()

        def forward(self, x):
            output = x.new_zeros(len(x), 3, 6, 6)
            output[:, :, 1:-1, 1:-1] = self.conv(x)
            return self.other(output).relu().mean((2, 3))

    image = random_image(3, 2, 6, 6)
    image[1:] *= 1e3
    assert_close(explain(SplitLRP(), Filled(), image[:batch])[:1], explain(SplitLRP(), Filled(), image[:1]), 1e-12)


class InPlace(nn.Module):
    '''Batch norms, additions and activations in place, as residual networks have them.'''
    def __init__(self, activation=F.relu):
        super().__init__()
        self.activation = activation
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, input):
        for convolution, norm in zip(self.convolutions, self.norms):
            output = self.activation(norm(convolution(input)), inplace=True)
            output = convolution(output)
            output += input
            input = self.activation(output, inplace=True)
        return input.flatten(1)


def network(activation=F.relu):
    '''A model that has seen some statistics.'''
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Identity(), InPlace(activation), nn.Linear(108, 5)).double()
    model(random_image(8, 3, 6, 6))
    return model.eval()


COMPOSITES = {
    'balanced': SplitGrad, 'shifted': lambda: SplitGrad(.3), 'stream': lambda: SplitGrad(.3, '+g'),
    'cam': lambda: SplitCAM('1', .3), 'relevance': SplitLRP,
}


@pytest.mark.parametrize('name', COMPOSITES)
def test_a_model_that_computes_in_place(name):
    '''The output stays the same to the bit, and maps are those of the model that makes new tensors.'''
    model, image = network(), random_image(3, 3, 6, 6)
    expected = model(image)
    with COMPOSITES[name]().context(model):
        assert torch.equal(model(image.clone().requires_grad_()), expected) and torch.equal(model(image), expected)
    other = network(lambda input, inplace: F.relu(input))
    assert_close(explain(COMPOSITES[name](), model, image), explain(COMPOSITES[name](), other, image), 1e-12)


def test_additions_in_place_with_a_factor():
    class Model(nn.Module):
        def forward(self, input):
            output = F.conv2d(input, weight)
            output.add_(input, alpha=-.7)
            return output.relu_().flatten(1)

    weight, image = random_image(3, 3, 1, 1), random_image(2, 3, 2, 2, seed=2)
    model = Model().eval()
    expected = model(image)
    with SplitGrad(.3).context(model):
        assert torch.equal(model(image.clone().requires_grad_()), expected)


def scaled(gate):
    return gate.mul_(2.)


def part(gate):
    gate[:, 0] = 1.
    return gate


@pytest.mark.parametrize('in_place, other', [
    (lambda x: x.sigmoid_(), torch.sigmoid), (lambda x: F.hardsigmoid(x, inplace=True), F.hardsigmoid),
    (lambda x: scaled(x.sigmoid()), lambda x: x.sigmoid() * 2.),
    (lambda x: part(x.sigmoid()), lambda x: torch.cat([torch.ones_like(x[:, :1]), x.sigmoid()[:, 1:]], 1)),
])
def test_gates_that_are_written_in_place(in_place, other):
    '''A gate in place is one as it is out of place, and so is what is no gate any more.'''
    def model(gate):
        torch.manual_seed(0)
        return with_layers(Calling(lambda x: x * gate(x.clone()))).double()

    image = random_image(2, 3, 8, 8)
    for make in (lambda: SplitGrad(.3), SplitLRP):
        maps = [explain(make(), model(gate), image) for gate in (in_place, other)]
        assert_close(maps[0], maps[1], 1e-9)


def clipped(x):
    x = x.clone()
    x[x < -1] = -1.
    x[x > 1] = 1.
    return x


@pytest.mark.parametrize('prepare', [clipped, lambda x: x.clone().sub_(.5).masked_fill(x > 1, 0.)])
def test_input_that_is_prepared_in_place(prepare):
    '''Masks of the input choose constants of it, also after something was written to it.'''
    model, image = with_layers(nn.ReLU()), random_image(2, 3, 8, 8)
    map = explain(SplitGrad(.5), nn.Sequential(Calling(prepare), model), image)
    assert_close(map, gradient_of(nn.Sequential(Calling(prepare), model), image) / 2)
