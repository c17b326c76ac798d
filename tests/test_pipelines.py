'''Whole pipelines, from a list of images to the score of one detection.'''
import warnings

import pytest
import torch
from helpers import assert_close
from torch import nn
from torchvision.models import detection

from zennit_dc import SplitCAM, SplitGrad, SplitLRP


OPTIONS = {'weights': None, 'weights_backbone': None, 'min_size': 64, 'max_size': 96, 'num_classes': 4}
DETECTORS = {
    'retinanet_resnet50_fpn': {'score_thresh': 0.}, 'fcos_resnet50_fpn': {'score_thresh': 0.},
    'fasterrcnn_mobilenet_v3_large_fpn': {'box_score_thresh': 0.},
}


class Score(nn.Module):
    '''The scores of one detection in each image of a batch, the likeliest one, of shape (batch, 1).'''
    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, images):
        return torch.stack([found['scores'][:1] for found in self.detector(list(images))])


def score(name):
    '''The score of a detector with random weights.'''
    torch.manual_seed(0)
    return Score(getattr(detection, name)(**OPTIONS, **DETECTORS[name]).eval())


@pytest.mark.slow(8)
@pytest.mark.parametrize('name', DETECTORS)
def test_detectors(name):
    '''The output is bit-identical, and each image has its own map.'''
    model = score(name)
    images = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    layer = 'detector.backbone.body.layer3' if 'resnet' in name else 'detector.backbone.body.13'
    expected = model(images.requires_grad_())
    for composite in (SplitGrad(canonizers='auto'), SplitLRP(canonizers='auto'), SplitCAM(layer, canonizers='auto')):
        with warnings.catch_warnings(), composite.context(model):
            warnings.simplefilter('ignore')
            output = model(images)
            map, = torch.autograd.grad(output[0].sum(), images)
        assert torch.equal(output, expected)
        assert map[0].isfinite().all() and map[0].any() and not map[1].any()


@pytest.mark.slow(5)
def test_gradient():
    '''With a shift of one half, the map of a score by softmax is half of the gradient.'''
    model = score('fasterrcnn_mobilenet_v3_large_fpn').double()
    image = torch.rand(1, 3, 64, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected, = torch.autograd.grad(model(image).sum(), image)
    with warnings.catch_warnings(), SplitGrad(.5, canonizers='auto').context(model):
        warnings.simplefilter('ignore')
        map, = torch.autograd.grad(model(image).sum(), image)
    assert type(map) is torch.Tensor
    assert_close(map, expected / 2, 1e-8)
