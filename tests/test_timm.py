'''Models of timm with random weights: what their families need, and maps at tokens.'''
import warnings

import pytest
import torch
from helpers import assert_close, random_image, rounding
from zennit.attribution import Gradient

from zennit_dc import DetachedStatistics, SmoothReplacement, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.attribution import LayerCAM, contrast, recorded
from zennit_dc.core.places import spread

timm = pytest.importorskip('timm', reason='the extra "test" is not installed')
SMALL = {  # the size of the image, and what makes a model small
    'convnextv2_atto': (64, {'depths': (1, 1, 1, 1)}), 'poolformer_s12': (32, {}), 'efficientvit_b0': (64, {}),
    'resmlp_12_224': (32, {'img_size': 32}), 'shvit_s1': (64, {}),
    'crossvit_tiny_240': (120, {'img_size': 120, 'depth': ((1, 1, 0), (1, 1, 0))}),
    'volo_d1_224': (64, {'img_size': 64}),
    'sequencer2d_s': (28, {'layers': (1, 1, 1, 1), 'embed_dims': (16, 16, 16, 16), 'hidden_sizes': (4, 8, 8, 8)}),
}


@pytest.fixture(autouse=True)
def fixture_silent():
    '''What is chosen for a model is no matter here.'''
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def build(name, **kwargs):
    '''A model with random weights, none of which are zeros.'''
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **kwargs).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=.05)
    return model


@pytest.mark.parametrize('name', SMALL)
def test_family(name):
    size, options = SMALL[name]
    model = build(name, **options)
    image = random_image(1, 3, size, size, dtype=torch.float32)
    expected = model(image)
    for make in (SplitGrad, SplitLRP):
        output, attribution = Gradient(model, make(canonizers='auto'))(image, contrast(1))
        assert torch.equal(output, expected) and attribution.any()
    replacing = SplitGrad(canonizers=[DetachedStatistics(), SmoothReplacement()])
    output, attribution = Gradient(model, replacing)(image, contrast(1))
    assert attribution.any() and (output - expected).abs().max() < .1 * expected.std()


def test_maps_at_a_block_of_tokens():
    model, image = build('vit_tiny_patch16_224', img_size=64, depth=3), random_image(2, 3, 64, 64, dtype=torch.float32)
    for make in (SplitCAM, SplitGrad, SplitLRP):
        composite = make(layer='blocks.1', canonizers='auto')
        output, attribution = Gradient(model, composite)(image, contrast(1))
        assert torch.equal(output, model(image)) and composite.saliency.shape == (2, 4, 4)
        assert attribution.any() and attribution.shape == image.shape
        alone = make(layer='blocks.1', canonizers='auto')
        Gradient(model, alone)(image[:1], contrast(1))
        assert_close(alone.saliency, composite.saliency[:1], rounding(model, image[:1]))


def test_layercam_at_a_block_of_tokens():
    '''It is the product of gradient and activation, at the tokens that are places.'''
    model, image = build('vit_tiny_patch16_224', img_size=64, depth=2), random_image(2, 3, 64, 64, dtype=torch.float32)
    with recorded(model, 'blocks.0') as outputs:
        score = model(image)[:, 1].sum()
    gradient, = torch.autograd.grad(score, outputs)
    expected = (gradient * outputs[0].detach())[:, 1:].sum(-1).reshape(2, 1, 4, 4).relu()
    target = torch.nn.functional.one_hot(torch.tensor([1, 1]), 7).float()
    assert_close(LayerCAM(model, 'blocks.0')(image, target)[1], spread(expected, image), rounding(model, image))
