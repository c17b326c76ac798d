'''Axes of samples, which forms follow as far as it is proven, so that no map depends on the other images.'''
import pytest
import torch
from helpers import assert_close, explain, random_image
from torch import nn
from torch.nn import functional as F

from zennit_dc import Balanced, Scaling, SplitGrad, SplitLRP, SplitTensor


MANY = torch.stack([random_image(6, 5, seed=seed) for seed in range(3)])


class Moved(nn.Module):
    '''A function between two layers, the first of which makes (batch, tokens, channels); its output has the batch where
    the function to undo it says.'''
    def __init__(self, function, undo):
        super().__init__()
        torch.manual_seed(0)
        self.function, self.undo = function, undo
        self.before, self.mixed, self.last = nn.Linear(6, 6), nn.LazyLinear(5), nn.LazyLinear(3)
        self.double().eval()

    def forward(self, x):
        x = F.relu(self.mixed(self.function(self.before(x))))
        return self.last(self.undo(x).flatten(1))


def swap(x):
    return x.transpose(0, 1)


MOVES = {
    'matrices on the right': (lambda x: x[:, 0] @ MANY, swap),
    'a constant with more axes': (lambda x: x[:, 0] + 9 * torch.ones(4, 1, 6).double(), swap),
    'repeat': (lambda x: x[:, 0].repeat(4, 1, 1), swap),
    'expand': (lambda x: x[:, 0].expand(4, len(x), 6), swap),
    'einsum': (lambda x: torch.einsum('btc,dc->tbd', x, MANY[0].T), swap),
    'dstack': (lambda x: torch.dstack([swap(x)[0], 2 * swap(x)[1]]), lambda x: x.sum(1)),
    'several advanced indices': (lambda x: x.unflatten(2, (3, 2))[:, [0, 1], :, [1, 0]], swap),
    'a maximum behind a permutation': (lambda x: x.unflatten(2, (3, 2)).permute(1, 2, 0, 3).amax(1), swap),
    'merged into other axes': (
        lambda x: swap(x).reshape(4 * len(x), 3, 2), lambda x: x.reshape(4, -1, 15).transpose(0, 1)
    ),
    'stacked maxima': (lambda x: torch.stack([x, 2 * x]).max(0)[0], lambda x: x),
    'tokens first': (lambda x: swap(x).amax(0), lambda x: x),
    'joined': (lambda x: torch.cat([swap(x), swap(2 * x)]), swap),
    'windows': (lambda x: x.unflatten(1, (2, 2)).transpose(1, 2).reshape(2 * len(x), 2, 6),
                lambda x: x.reshape(-1, 2, 2, 5)),
    'sorted and selected': (lambda x: swap(x.sort(1)[0].topk(2, 1)[0]), swap),
    'rotated': (lambda x: swap(x).rot90(1, (0, 2)), lambda x: x.transpose(0, 1)),
    'diagonal': (lambda x: x[:, :, :4].diagonal(0, 1, 2), lambda x: x),
    'unfolded': (lambda x: swap(x).unfold(0, 2, 1).mean(-1), swap),
    'windows of one sample': (lambda x: x.unfold(0, 1, 1)[..., 0], lambda x: x),
    'samples merged, beside an axis of length one': (
        lambda x: x.unflatten(2, (2, 3))[:, 0].transpose(0, 1).reshape(2 * len(x), 1, 3),
        lambda x: x.unflatten(0, (2, -1)).transpose(0, 1)
    ),
    'merged before layers': (
        lambda x: F.conv1d(F.relu(x.reshape(4 * len(x), 1, 6)), torch.full((1, 1, 3), .3).double()),
        lambda x: x.unflatten(0, (-1, 4)),
    ),
    'a batch norm after another order of memory': (
        lambda x: F.batch_norm(
            torch.einsum('bchw,dc->bdhw', x[:, :, None], MANY[0, :4, :4]).contiguous(memory_format=torch.channels_last),
            *MANY[1, :2, :4].abs(), eps=.1
        ).flatten(2), lambda x: x
    ),
    'samples twice': (lambda x: torch.cat([x, 2 * x]), lambda x: x.unflatten(0, (2, -1)).transpose(0, 1)),
    'samples and a constant': (lambda x: torch.cat([x, random_image(1, 4, 6)]), lambda x: x[:-1]),
    'tensordot': (lambda x: torch.tensordot(MANY[0][:, :4], x, ([1], [1])), swap),
    'more axes': (lambda x: torch.atleast_3d(x[:, 0]), lambda x: x),
}
COMPOSITES = {
    'scaling': lambda: SplitLRP(1e-3, recentering=Scaling(.1, .1)), 'balanced': lambda: SplitGrad(Balanced()),
    'convex': lambda: SplitLRP(1e-3, 'negative', pooling='convex', recentering=Scaling(.1, .1)),
}


@pytest.mark.parametrize('composite', COMPOSITES)
@pytest.mark.parametrize('name', MOVES)
def test_maps_do_not_depend_on_the_batch(name, composite):
    if 'sorted' in name and composite == 'convex':
        pytest.skip('an order is no convex function')
    model, images = Moved(*MOVES[name]), random_image(3, 4, 6)
    images[0] *= 100
    images[2] *= .01
    with torch.no_grad():
        model(images)  # makes the lazy layers
    together = explain(COMPOSITES[composite](), model, images, 1)
    for index in range(3):
        alone = explain(COMPOSITES[composite](), model, images[index:index + 1], 1)
        # a few layers of float64
        assert_close(together[index:index + 1], alone, 1e-11)


@pytest.mark.parametrize('function, places', [
    (lambda x: x.permute(1, 2, 0, 3), (-2, -4)), (lambda x: x[:, None, ..., 0], (-4, -2)), (lambda x: x[0], (None, -3)),
    (lambda x: x[..., None, 1:, :2], (-5, -4)), (lambda x: x[:, :1], (-4, -3)), (lambda x: x.flatten(1), (-2, None)),
    (lambda x: x.flatten(2).mT, (-3, -1)), (lambda x: x.flatten(0, 1), (None, None)),
    (lambda x: x.flatten(0, 1).unflatten(0, (-1, 3)), (-4, -3)), (lambda x: x.mean((2, 3)), (-2, -1)),
    (lambda x: x.sum(1, keepdim=True), (-4, None)), (lambda x: x.amax(1), (-3, None)),
    (lambda x: x.squeeze(2), (-4, -3)), (lambda x: torch.stack([x, x], 2), (-5, -4)),
    (lambda x: torch.hstack([x, x]), (-4, None)), (lambda x: x.chunk(3, 1)[1], (-4, -3)),
    (lambda x: x.unbind(2)[0], (-3, -2)), (lambda x: x.expand(7, *x.shape), (-4, -3)),
    (lambda x: x.repeat(1, 2, 1, 1), (-4, None)), (lambda x: x[:, [0, 2]], (-4, None)),
    (lambda x: x[:, [0, 1], :, [1, 0]], (-2, None)), (lambda x: F.pixel_unshuffle(x, 2), (-4, None)),
    (lambda x: x.view(len(x), -1, 4, 6)[:, 0], (-3, None)), (lambda x: x.transpose(1, 2).flip(2), (-4, -2)),
    (lambda x: torch.einsum('bchw,dc->dbhw', x, torch.ones(2, 3)), (-3, None)),
    (lambda x: torch.where(torch.ones(4, 6) > 0, x, 0.), (-4, -3)), (lambda x: x @ x.mT, (-4, -3)),
    (lambda x: x.mT @ torch.ones(4, 2), (-4, -3)), (lambda x: torch.ones(2, 4) @ x, (-4, -3)),
    (lambda x: F.linear(x, torch.ones(5, 6)), (-4, -1)), (lambda x: F.avg_pool2d(x, 2), (-4, -3)),
])
@pytest.mark.parametrize('batch', [1, 2])
def test_axes_are_followed(function, places, batch):
    '''Also where there is one sample, so that the length of its axis says nothing.'''
    if batch == 1 and places == (None, None):
        pytest.skip('to merge an axis with one of length one leaves it as it is')
    output = function(SplitTensor.of(torch.zeros(batch, 3, 4, 6)))
    assert (output.axis('batch'), output.axis('channels')) == places
