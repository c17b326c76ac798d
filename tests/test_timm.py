'''Models of timm with random weights: what their families need, and maps at tokens.'''
import warnings

import pytest
import torch
from helpers import assert_close, random_image, rounding
from zennit.attribution import Gradient

from zennit_dc import DetachedActivations, DetachedStatistics, SmoothReplacement, SplitCAM, SplitGrad, SplitLRP
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
    for make, layer in ((SplitCAM, 'blocks.1'), (SplitGrad, 'blocks.2.norm1'), (SplitLRP, 'blocks.1')):
        composite = make(layer=layer, canonizers='auto')
        output, attribution = Gradient(model, composite)(image, contrast(1))
        assert torch.equal(output, model(image)) and composite.saliency.shape == (2, 4, 4)
        assert attribution.any() and attribution.shape == image.shape
        alone = make(layer=layer, canonizers='auto')
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


STAGES = {'depths': (1, 1, 2, 1), 'num_heads': (1, 2, 2, 4), 'embed_dim': 8}
WINDOWED = {  # the size of the image, what makes a model small, and layers with the sides of their grids
    'swin_tiny_patch4_window7_224': (64, {'img_size': 64, 'window_size': 4, **STAGES}, {
        'patch_embed': 16, 'layers.0': 16, 'layers.1': 8, 'layers.2.blocks.0': 4, 'layers.2': 4, 'norm': 2}),
    'swinv2_tiny_window8_256': (64, {'img_size': 64, 'window_size': 4, **STAGES}, {
        'layers.0': 16, 'layers.1': 8, 'layers.2.blocks.1': 4, 'layers.3': 2}),
    'swinv2_cr_tiny_224': (64, {'img_size': 64, 'window_size': 4, **STAGES}, {
        'stages.0': 16, 'stages.1': 8, 'stages.2': 4}),
    'maxvit_pico_rw_256': (64, {'img_size': 64, 'depths': (1, 1, 1, 1), 'embed_dim': (32, 32, 32, 32)}, {
        'stages.0': 16, 'stages.1': 8, 'stages.2': 4}),
    'convnext_atto': (64, {'depths': (1, 1, 1, 1), 'dims': (8, 8, 8, 8)}, {
        'stages.0': 16, 'stages.1': 8, 'stages.2': 4}),
}


@pytest.mark.parametrize('name', WINDOWED)
def test_image_alone_and_in_a_batch(name):
    '''The maps at each stage have the same places and values.'''
    size, options, layers = WINDOWED[name]
    model, images = build(name, **options), random_image(2, 3, size, size, dtype=torch.float32)
    for layer, side in layers.items():
        saliencies = []
        for batch in (images, images[:1]):
            composite = SplitCAM(layer, canonizers=[DetachedStatistics(), DetachedActivations()])
            Gradient(model, composite)(batch, contrast(1))
            assert composite.saliency.shape == (len(batch), side, side)
            saliencies.append(composite.saliency[:1])
        assert saliencies[0].any()
        assert_close(*saliencies, rounding(model, images[:1]))
