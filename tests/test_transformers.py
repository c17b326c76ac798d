'''Models of Hugging Face's transformers, each in two lines.'''
import functools
import warnings

import pytest
import torch
from helpers import assert_close, rounding
from zennit.attribution import Gradient

from zennit_dc import Logits, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.attribution import contrast


transformers = pytest.importorskip('transformers', reason='the extra "test" is not installed')
if not transformers.utils.is_torch_available():
    pytest.skip('this version of transformers needs a later version of PyTorch', allow_module_level=True)
models = pytest.importorskip('transformer_models')


@pytest.fixture(name='silent', autouse=True)
def fixture_silent():
    '''What is chosen for a model is no matter here.'''
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@pytest.mark.parametrize('name', models.NAMES)
def test_model(name):
    model, image = models.build(name)
    expected = model(pixel_values=image)['logits']
    # a small epsilon, as the activations of some networks with random weights vanish with the depth
    for make in (SplitGrad, functools.partial(SplitLRP, 1e-30)):
        attributor = Gradient(Logits(model), make(canonizers='auto'))
        output, attribution = attributor(image, contrast(1))
        assert torch.equal(output, expected) and attribution.any() and attribution.shape == image.shape


def test_model_in_the_context():
    '''Without Logits, the output is the model's own, and is differentiated by its name.'''
    model, image = models.build('ResNet')
    expected = model(image, output_hidden_states=True)
    with SplitCAM('resnet.encoder.stages.2').context(model):
        output = model(pixel_values=image.requires_grad_(), output_hidden_states=True)
        saliency, = torch.autograd.grad(output.logits[:, 1].sum(), image)
    assert type(output) is type(expected) and saliency.any()
    assert torch.equal(output.logits, expected.logits)
    assert len(output.hidden_states) == 5
    assert all(torch.equal(*states) for states in zip(output.hidden_states, expected.hidden_states))


@pytest.mark.parametrize('name, layers', [
    ('Swin', ('swin.embeddings.norm', 'swin.encoder.layers.0.downsample', 'swin.layernorm')),
    ('ConvNext', ('convnext.encoder.stages.0', 'convnext.encoder.stages.2')),
])
def test_image_alone_and_in_a_batch(name, layers):
    '''The maps at each stage have the same places and values.'''
    model, image = models.build(name)
    images, wrapped = torch.cat([image, image.flip(-1) - 1.]), Logits(model)
    for layer in layers:
        saliencies = []
        for batch in (images, image):
            composite = SplitCAM(layer, canonizers='auto')
            Gradient(wrapped, composite)(batch, contrast(1))
            saliencies.append(composite.saliency[:1])
        assert saliencies[0].shape == saliencies[1].shape and min(saliencies[0].shape[1:]) > 1
        assert_close(*saliencies, rounding(wrapped, image))
