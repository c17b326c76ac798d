'''The building blocks of split forms.'''
import copy
import gc
import weakref

import pytest
import torch
from helpers import assert_close, explain, random_image
from torch import nn
from torch.nn import functional as F
from zennit.canonizers import SequentialMergeBatchNorm

import zennit_dc
from zennit_dc import SplitGrad, SplitLRP, split_form
from zennit_dc.core import blocks
from zennit_dc.core.blocks import Layer, activation, affine


def test_own_function_and_own_module():
    '''How to add a split form: the example of .github/DESIGN.md.'''
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
        del zennit_dc.core.table.FORMS[torch.trace], zennit_dc.core.table.MODULE_FORMS[Cube]


def test_names_of_functions_are_no_functions():
    with pytest.raises(TypeError, match='not \'trace\''):
        split_form(torch.trace, 'trace')


# memory

@pytest.mark.parametrize('after', [nn.Conv2d(4, 4, 3), nn.MaxPool2d(2)])
def test_graphs_do_not_keep_the_output_of_a_relu_beside_its_input(after):
    '''As a rule keeps the layer's output already, of which it is computed again in the backward pass.'''
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), after, nn.Flatten()).double().eval()
    kept = []
    after.register_forward_pre_hook(lambda module, args: kept.append(weakref.ref(args[0].values[0])))
    image = random_image(2, 3, 9, 9).requires_grad_()
    with SplitLRP().context(model):
        output = model(image)
        gc.collect()
        assert kept[0]() is None
        assert torch.autograd.grad(output.sum(), image)[0].any()


# batch norms that are merged into the layer before them

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

    torch.manual_seed(0)
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


@pytest.mark.parametrize('composite', [SplitGrad, SplitLRP])
def test_maps_do_not_depend_on_the_chunks_of_dense_layers(composite, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    image = random_image(2, 3, 2, 2)
    expected = explain(composite(), model, image)
    monkeypatch.setattr(blocks, 'CHUNK', 24)
    assert len(blocks.chunks(model[1].weight.detach())) == 1  # where there is a graph
    with torch.no_grad():
        assert len(blocks.chunks(model[1].weight)) == 4
    assert_close(explain(composite(), model, image), expected, 1e-12)
