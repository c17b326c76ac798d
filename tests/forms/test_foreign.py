'''Regions of feature maps, and frozen batch norms.'''
import pytest
import torch
from helpers import assert_close, explain, gradient_of, random_image
from jacobians import require_relevance, require_sensitivities, require_streams
from torch import nn
from torchvision import ops

from zennit_dc import SplitGrad, SplitLRP


IMAGE = (2, 4, 6, 6)
BOXES = torch.tensor([[0, 0., 0., 5., 3.], [1, 1.2, .5, 4.7, 5.], [1, -1., 2., 3., 9.]], dtype=torch.float64)
AVERAGES = {
    'roi_align': lambda x: ops.roi_align(x, BOXES, (2, 3), sampling_ratio=2, aligned=True),
    'roi_align of lists': lambda x: ops.roi_align(x, [BOXES[:1, 1:], BOXES[1:, 1:]], 2, .5),
    'ps_roi_align': lambda x: ops.ps_roi_align(x, BOXES, 2, .8, 2),
    'ps_roi_pool': lambda x: ops.ps_roi_pool(x, BOXES[:2], 2),  # torch has another gradient outside of the image
}


@pytest.mark.parametrize('name', AVERAGES)
def test_averages(name):
    for require in (require_streams, require_sensitivities, require_relevance):
        require(IMAGE, AVERAGES[name])


class Regions(nn.Module):
    '''A network that pools over regions, of which it has one for each image.'''
    def __init__(self, pool):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.pool = nn.Conv2d(3, 4, 3, padding=1), ops.FrozenBatchNorm2d(4), pool
        self.last = nn.Linear(16, 3)
        self.double().eval()
        for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean):
            tensor.data = torch.randn(4, dtype=torch.float64)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        boxes = [torch.stack([box[0], box[1], box[0] + 3, box[1] + 4])[None] for box in x.mean((2, 3)).abs()]
        return self.last(self.pool(x, [box.detach() for box in boxes]).flatten(1))


@pytest.mark.parametrize('pool', [ops.RoIPool(2, 1.), ops.RoIAlign(2, 1., 2)])
def test_networks(pool):
    model, image = Regions(pool), random_image(2, 3, 6, 6)
    assert_close(explain(SplitGrad(.5), model, image), gradient_of(model, image) / 2)
    for composite in (SplitGrad(), SplitLRP()):
        map = explain(composite, model, image)
        assert map.flatten(1).any(1).all()
        assert_close(map[:1], explain(composite, model, image[:1]), 1e-7)


def test_roi_pool():
    '''The winner takes all: where regions are single places, they are these.'''
    box = torch.tensor([[0, 1., 2., 3., 4.]], dtype=torch.float64)

    class Pooled(nn.Module):
        def forward(self, x):
            return ops.roi_pool(x, box, 3).flatten(1)

    image = random_image(1, 2, 6, 6)
    expected = torch.zeros_like(image)
    expected[0, 1, 2:5, 1:4] = 1.
    found = sum(explain(SplitLRP(), Pooled(), image, unit=unit) for unit in range(9, 18))
    assert torch.equal(found, expected)
    with SplitGrad(pooling='convex').context(model := Pooled()), pytest.raises(NotImplementedError, match='convex'):
        model(image.requires_grad_())


def test_refused():
    class Boxes(nn.Module):
        def forward(self, x):
            return ops.roi_align(torch.ones(1, 4, 6, 6).double(), torch.cat([torch.zeros(2, 1).double(), x], 1), 2)

    with SplitGrad().context(model := Boxes()), pytest.raises(NotImplementedError, match='constant features'):
        model(random_image(2, 4).abs().requires_grad_())
