'''Captum's methods for layers on a model in split form, against the gradients that its pairs keep.'''
import importlib.util
from functools import partial

import pytest
import torch
from helpers import assert_close, divided, explain, random_image
from torch import nn

from zennit_dc import SplitGrad, SplitLRP


pytestmark = pytest.mark.skipif(importlib.util.find_spec('captum') is None, reason='Captum is not installed')

COMPOSITES = [SplitGrad, SplitLRP, partial(SplitLRP, stream='positive')]


def network(norm=False, inplace=False):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU(inplace), nn.Conv2d(4, 5, 3)]
    if norm:
        layers[1].running_mean.uniform_(-.2, .2)
        layers[1].running_var.uniform_(.5, 2.)
    return nn.Sequential(*layers, nn.ReLU(inplace), nn.Flatten(), nn.Linear(80, 3)).double().eval()


def image(requires_grad=False):
    return random_image(2, 3, 8, 8).requires_grad_(requires_grad)


def kept(model, composite, layer):
    '''The gradient that the output of a layer keeps, and its values.'''
    found = {}

    def keep(module, args, output):
        output.retain_grad()
        found.update(pair=output, values=output.detach().clone())
        return output.clone()
    with composite.context(model) as split, model[layer].register_forward_hook(keep):
        split(image(True))[:, 1].sum().backward()
        return found['pair'].grad, found['values']


def attributed(method, model, composite, layer, requires_grad=False, **kwargs):
    from captum import attr
    with composite.context(model) as split:
        explained = getattr(attr, method)(split, split[layer])
        if kwargs:
            explained = attr.NoiseTunnel(explained)
        return explained.attribute(image(requires_grad), target=1, **kwargs)


@pytest.mark.parametrize('requires_grad', [False, True])
@pytest.mark.parametrize('layer', [0, 3, 4])
@pytest.mark.parametrize('norm, inplace', [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize('composite', COMPOSITES)
def test_layer_methods(composite, norm, inplace, layer, requires_grad):
    model = network(norm, inplace)
    gradient, values = kept(model, composite(), layer)
    found = attributed('LayerGradientXActivation', model, composite(), layer, requires_grad)
    assert type(found) is torch.Tensor and found.any()
    assert_close(found, gradient * values, 1e-12)
    found = attributed('LayerGradCam', model, composite(), layer, requires_grad)
    assert_close(found, (gradient.mean((2, 3), keepdim=True) * values).sum(1, keepdim=True), 1e-12)


@pytest.mark.parametrize('method', ['LayerGradientXActivation', 'LayerGradCam'])
@pytest.mark.parametrize('composite', COMPOSITES)
def test_noise_tunnel_of_layer_methods(composite, method):
    model = network()
    found = attributed(method, model, composite(), 0, nt_samples=2, stdevs=0.)
    assert_close(found, attributed(method, model, composite(), 0), 1e-12)


@pytest.mark.parametrize('layer, norm', [(0, False), (3, False), (0, True)])
def test_relevance_is_that_of_the_layer(layer, norm):
    model, composite = network(norm), SplitLRP(layer=str(layer))
    explain(composite, model, image(), 1)
    found = attributed('LayerGradientXActivation', model, SplitLRP(), layer) / kept(model, SplitLRP(), layer)[1]
    assert_close(found.sum(1), composite.saliency.reshape(found.sum(1).shape), divided())


@pytest.mark.parametrize('composite', COMPOSITES)
def test_values_put_at_a_layer_are_refused(composite):
    with pytest.raises(RuntimeError, match=r'name the layer in the composite \(layer=...\)'):
        attributed('LayerIntegratedGradients', network(), composite(), 0)


def test_below_the_layer_of_the_map():
    with pytest.raises(NotImplementedError, match='leave out layer, or ask for layers above it'):
        attributed('LayerGradientXActivation', network(), SplitLRP(layer='3'), 0)


def test_output_is_the_same():
    model, outputs = network(), []
    with SplitLRP().context(model) as split:
        handle = split[0].register_forward_hook(lambda module, args, output: output.requires_grad_())
        outputs.append(split(image()))
        handle.remove()
        with torch.no_grad():
            outputs.append(split(image()))
    assert outputs[0].requires_grad and torch.equal(*outputs)
