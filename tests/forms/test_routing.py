'''Functions that only move values.'''
import pytest
import torch
from fuzzing.families import SHUFFLE
from helpers import assert_close, divided, explain, random_image
from jacobians import IMAGE, require_moved_relevance, require_sensitivities, require_streams
from torch import nn
from torch.nn import functional as F

from zennit_dc import SplitCAM, SplitGrad, SplitLRP


CONSTANT = random_image(*IMAGE, seed=12)
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
    **({'channel shuffle': lambda x: F.channel_shuffle(x, 2)} if SHUFFLE else {}),
    'pixel shuffle': lambda x: F.pixel_shuffle(x, 2),
    'expand': lambda x: x[:, :, :1].expand(-1, -1, 3, -1),
    'flip': lambda x: x.flip(2),
    'unfold': lambda x: F.unfold(x, 3, 1, 1, 2),
    'loop over rows': lambda x: torch.stack([row for row in x.transpose(0, 1)], 1),
}


@pytest.mark.parametrize('name', ROUTING)
def test_streams(name):
    require_streams(IMAGE, ROUTING[name])


@pytest.mark.parametrize('name', ROUTING)
def test_sensitivities(name):
    require_sensitivities(IMAGE, ROUTING[name])


@pytest.mark.parametrize('name', ROUTING)
def test_relevance(name):
    require_moved_relevance(ROUTING[name])


@pytest.mark.parametrize('axis', [1, 2, None])
def test_batch_axis_that_is_not_the_first(axis):
    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.other = nn.Linear(6, 6).double(), nn.Linear(6, 6).double()

        def forward(self, x):
            x = x.permute(1, 0, 2) if axis == 1 else x.transpose(0, 1).unsqueeze(0) if axis == 2 else x.transpose(0, 1)
            x = x.reshape(-1, 6) if axis is None else x
            x = self.other(F.relu(self.first(x))) + x
            return x.mean(0) if axis == 1 else x[0].mean(0) if axis == 2 else x.unflatten(0, (5, -1)).mean(0)

    model, image = Moved(), random_image(3, 5, 6)
    changed = image.clone()
    changed[1] *= 1e4
    maps = [explain(SplitLRP(), model, each) for each in (image, changed, image[:1])]
    assert_close(maps[1][[0, 2]], maps[0][[0, 2]], 1e-12)
    assert_close(maps[2], maps[0][:1], 1e-12)


SOME = {
    'index_select': lambda net, x: torch.cat([net(x.index_select(0, torch.tensor([i]))) for i in range(len(x))]),
    'split': lambda net, x: torch.cat([net(part) for part in x.split(1)]),
    'chunks': lambda net, x: torch.cat([net(part) for part in x.tensor_split(2)]),
    'gather': lambda net, x: net(x.gather(0, torch.arange(len(x))[:, None, None, None].expand_as(x))),
    'take_along_dim': lambda net, x: torch.cat([
        net(x.take_along_dim(torch.full((1, 1, 1, 1), index), 0)) for index in range(len(x))
    ]),
    'a mask': lambda net, x: torch.zeros(len(x), 4, dtype=x.dtype).index_copy(
        0, kept := (x.amax((1, 2, 3)) > 1).nonzero()[:, 0], net(x.index_select(0, kept))
    ),
}


class Some(nn.Module):
    '''A network for some samples at a time, which is called by a function.'''
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Flatten(1))
        self.net.append(nn.Linear(54, 4))
        self.function = function
        self.double()

    def forward(self, x):
        return self.function(self.net, x)


@pytest.mark.parametrize('name', SOME)
@pytest.mark.parametrize('composite', [SplitGrad, SplitLRP])
def test_maps_of_some_samples_at_a_time(name, composite):
    model, images = Some(SOME[name]), random_image(4, 3, 7, 7)
    maps = explain(composite(), model, images)
    for index in range(len(images)):
        alone = explain(composite(), model, images[index:index + 1])
        assert_close(alone, maps[index:index + 1], divided() if composite is SplitLRP else 1e-12)


ORDERS = {
    'indices': lambda net, x: net(x[order := x.sum((1, 2, 3)).argsort()])[order.argsort()],
    'index_select': lambda net, x: net(x.index_select(0, order := x.sum((1, 2, 3)).argsort()))[order.argsort()],
    'flip': lambda net, x: net(x.flip(0)).flip(0), 'roll': lambda net, x: net(x.roll(1, 0)).roll(-1, 0),
}


@pytest.mark.parametrize('name', ORDERS)
def test_maps_at_a_layer_of_samples_in_another_order(name):
    model, direct, images = Some(ORDERS[name]), Some(lambda net, x: net(x)), random_image(3, 3, 7, 7)
    assert_close(explain(SplitGrad(.3), model, images), explain(SplitGrad(.3), direct, images), 1e-12)
    with pytest.raises(ValueError, match=r'another order in module .*Some.*net\.2.*one sample'):
        explain(SplitCAM('net.2'), model, images)
    alone = images[:1]
    assert_close(explain(SplitCAM('net.2'), model, alone), explain(SplitCAM('net.2'), direct, alone), 1e-12)


@pytest.mark.parametrize('move', [
    lambda x: x.flip(2), lambda x: x.roll(1, 3), lambda x: x[:, [2, 0, 1]], lambda x: x[torch.arange(len(x))]
])
def test_maps_at_a_layer_of_samples_in_their_order(move):
    model, images = Some(lambda net, x: net(move(x))), random_image(3, 3, 7, 7)
    maps = explain(SplitCAM('net.2'), model, images)
    assert_close(explain(SplitCAM('net.2'), model, images[1:2]), maps[1:2], 1e-12)
