'''Functions that only move values.'''
import pytest
import torch
from fuzzing.families import SHUFFLE
from helpers import assert_close, explain, random_image
from jacobians import IMAGE, require_moved_relevance, require_sensitivities, require_streams
from torch import nn
from torch.nn import functional as F

from zennit_dc import SplitLRP


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
