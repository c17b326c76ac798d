'''Memory that is used again, and operations block by block.'''
import threading

import pytest
import torch
from helpers import assert_close, explain, random_image
from torch import nn
from torch.nn import functional as F

from zennit_dc import SplitCAM, SplitGrad, SplitLRP, SplitTensor
from zennit_dc.core import buffers
from zennit_dc.core.buffers import WORKSPACE, blocks, blockwise, passing_magnitude

COMPOSITES = {
    'balanced': SplitGrad, 'shifted': lambda: SplitGrad(.3),
    'stream': lambda: SplitGrad(.3, '+g'), 'cam': lambda: SplitCAM('1', .3), 'relevance': SplitLRP,
}


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


@pytest.mark.parametrize('shape', [(3, 5, 4), (1, 7), (40,), (2, 1, 30)])
@pytest.mark.parametrize('last', [False, True])
def test_blocks_are_all_of_a_tensor(shape, last, monkeypatch):
    monkeypatch.setattr(buffers, 'BLOCK', 6)
    first = torch.zeros(shape) if not last else torch.zeros(shape[::-1]).permute(*reversed(range(len(shape))))
    other = torch.arange(first.numel()).reshape(first.shape)
    for part, own in blocks(first, other):
        assert part.numel() <= 6
        part += own + 1
    assert torch.equal(first, other + 1.)


def test_blocks_of_tensors_that_do_not_belong_together(monkeypatch):
    monkeypatch.setattr(buffers, 'BLOCK', 6)
    with torch.no_grad(), pytest.raises(ValueError, match='zip'):
        blockwise(lambda one, two, out: out.zero_(), torch.ones(4, 5), torch.ones(2, 5))


def test_blockwise_needs_no_blocks_where_a_graph_is_made(monkeypatch):
    monkeypatch.setattr(buffers, 'BLOCK', 6)
    outs = []
    function = lambda one, two, out: outs.append(out) or torch.mul(one, two, out=out)  # noqa: E731
    one, two = random_image(4, 5), random_image(4, 5)
    with torch.no_grad():
        assert torch.equal(blockwise(function, one, two), one * two)
    assert len(outs) == 4 and None not in outs
    assert torch.equal(blockwise(function, one, two), one * two) and outs[4:] == [None]


@pytest.mark.parametrize('name', COMPOSITES)
@pytest.mark.parametrize('activation', [F.relu, F.relu6, F.hardtanh], ids=lambda activation: activation.__name__)
def test_maps_do_not_depend_on_the_blocks(name, activation, monkeypatch):
    model, image = network(activation), random_image(3, 3, 6, 6) * 4
    expected = explain(COMPOSITES[name](), model, image)
    monkeypatch.setattr(buffers, 'BLOCK', 7)
    assert_close(explain(COMPOSITES[name](), model, image), expected, 1e-12)


@pytest.mark.parametrize('name', COMPOSITES)
def test_memory_is_written_to_where_the_model_does(name):
    '''The output stays the same to the bit, and maps are those of the model that makes new tensors.'''
    model, image = network(), random_image(3, 3, 6, 6)
    expected = model(image)
    with COMPOSITES[name]().context(model):
        assert torch.equal(model(image.clone().requires_grad_()), expected) and torch.equal(model(image), expected)
    other = network(lambda input, inplace: F.relu(input))
    assert_close(explain(COMPOSITES[name](), model, image), explain(COMPOSITES[name](), other, image), 1e-12)


@pytest.mark.parametrize('activation', [torch.relu_, F.relu6])
def test_only_what_nothing_has_come_of_is_written_to(activation):
    '''A layer's output is, but not what else has been read, or is a view.'''
    def model(input, read):
        output = F.conv2d(input, torch.eye(3).reshape(3, 3, 1, 1))
        found.append(output.values[0])
        kept = output * 2 if read == 'value' else output.view(-1) if read == 'view' else None
        activation(output, **({} if activation is torch.relu_ else {'inplace': True}))
        return output, kept

    found, image = [], torch.randn(1, 3, 2, 2)
    for read in (None, 'value', 'view'):
        pair = SplitTensor.of(image.clone())
        pair.split_pass.sums = False
        output, kept = model(pair, read)
        assert torch.equal(output.difference, activation(image.clone()))
        assert (found[-1] is output.difference) == (read is None)
        assert torch.equal(found[-1], image) == (read is not None)
        if read == 'value':
            assert torch.equal(kept.difference, image * 2)
        elif read == 'view':
            assert torch.equal(kept.difference, output.difference.view(-1))


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


def test_workspace_is_each_thread_s_own_and_keeps_the_layout():
    weight = torch.randn(64, 32, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last)
    with torch.no_grad():
        first = passing_magnitude(weight, weight.dtype)
        assert torch.equal(first, weight.abs()) and first.stride() == weight.stride()
        assert passing_magnitude(-weight, weight.dtype).data_ptr() == first.data_ptr() == WORKSPACE.memory.data_ptr()
        assert WORKSPACE.like(weight.expand(2, *weight.shape)) is None
        assert WORKSPACE.like(weight[:1, :1]) is None  # smaller than is worth it
        found = []
        thread = threading.Thread(target=lambda: found.append(passing_magnitude(weight, weight.dtype)))
        thread.start()
        thread.join()
        assert found[0].data_ptr() != first.data_ptr()
    assert passing_magnitude(weight, weight.dtype).data_ptr() != first.data_ptr()  # as a graph may keep it
