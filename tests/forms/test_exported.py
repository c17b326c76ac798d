'''Graphs of torch.export.'''
import pytest
import torch
from helpers import assert_close, divided, explain, random_image
from torch import nn
from torch.nn import functional as F

from zennit_dc import SplitCAM, SplitGrad, SplitLRP


pytestmark = pytest.mark.skipif(torch.__version__ < '2.5', reason='torch.export has other graphs')
IMAGE = (2, 3, 6, 6)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


class Around(nn.Module):
    '''A function of a feature map between two layers.'''
    def __init__(self, function, module=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last, self.function, self.module = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), function, module
        self.double().eval()

    def forward(self, x):
        x = self.function(self.module, self.conv(x))
        return self.last(x.flatten(2).mean(2) if x.ndim == 4 else x.mean(1))


def filled(x):
    zeros = torch.zeros_like(x)
    zeros[:, 1:3] = x[:, :2]
    return zeros


# with the modules whose relevance does not depend on whether they are taken apart
FUNCTIONS = {
    'batch norm': (lambda m, x: m(x).relu(), nn.BatchNorm2d(4)),
    'instance norm': (lambda m, x: m(x).relu(), nn.InstanceNorm2d(4, affine=True)),
    'group norm': (lambda m, x: m(x).relu(), nn.GroupNorm(2, 4)),
    'layer norm': (lambda m, x: m(tokens(x)), nn.LayerNorm(4)),
    'transposed convolution': (lambda m, x: m(x).relu_(), nn.ConvTranspose2d(4, 4, 2, 2)),
    'pooling': (lambda m, x: F.adaptive_avg_pool2d(F.max_pool2d(x, 2, 1), 2), None),
    'bilinear': (lambda m, x: F.interpolate(x, scale_factor=1.7, mode='bilinear').relu(), None),
    'nearest': (lambda m, x: F.interpolate(x, (7, 9)).relu(), None),
    'bicubic': (lambda m, x: F.interpolate(x, scale_factor=1.5, mode='bicubic').relu(), None),
    'padding': (lambda m, x: F.pad(F.pad(x, (1, 1), value=.5), (0, 0, 1, 2), 'replicate').relu(), None),
    'slices': (lambda m, x: x[:, :, 1::2, :-1].relu(), None),
    'indices': (lambda m, x: x[:, [2, 0, 1, 3], 1:], None),
    'attention': (lambda m, x: m(*[tokens(x)] * 3)[0], nn.MultiheadAttention(4, 2, batch_first=True)),
    'fused attention': (lambda m, x: F.scaled_dot_product_attention(*[tokens(x)] * 3), None),
    'statistics': (lambda m, x: torch.cat([tokens(x).std(1), x.amax((2, 3))], 1).chunk(2, 1)[0][:, None], None),
    'norm as a feature': (lambda m, x: F.gelu(tokens(x).norm(dim=1))[:, None], None),
    'smooth': (lambda m, x: F.dropout(F.gelu(x), .5, False, True) * torch.sigmoid(x), None),
    'recurrent': (lambda m, x: m(tokens(x))[0], nn.LSTM(4, 4, batch_first=True)),
    'writing': (lambda m, x: filled(x).relu(), None),
    'masks': (lambda m, x: torch.where(x.detach() > 0, x, 2 * x).masked_fill(x.detach() > 1, 0.), None),
    'orders': (lambda m, x: tokens(x).topk(3, 1).values, None),
}
TAKEN_APART = ('attention', 'bicubic', 'recurrent', 'norm as a feature')


@pytest.mark.parametrize('name, decomposed', [
    *((name, False) for name in FUNCTIONS),
    *((name, True) for name in FUNCTIONS if name not in ('masks', 'writing'))  # where detach() and axes are lost
])
def test_maps(name, decomposed):
    '''The graph has the maps of the module that it was made of.'''
    model, image = Around(*FUNCTIONS[name]), random_image(*IMAGE)
    program = torch.export.export(model, (image,))
    graph = (program.run_decompositions() if decomposed else program).module()
    assert_close(*(explain(SplitGrad(.4, canonizers='auto'), each, image) for each in (graph, model)), 1e-8)
    if not decomposed or name not in TAKEN_APART:  # which round otherwise, before quotients by no less than epsilon
        maps = [explain(SplitLRP(1e-3, canonizers='auto'), each, image) for each in (graph, model)]
        assert_close(*maps, 1000 * divided(1e-3))


def test_layer():
    '''Graphs do not call modules, until they are taken apart again.'''
    model, image = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Flatten(), nn.Linear(64, 3)), IMAGE
    model, image = model.double().eval(), random_image(*IMAGE)
    program = torch.export.export(model, (image,))
    assert_close(*(explain(SplitCAM('0'), each, image) for each in (torch.export.unflatten(program), model)))
    with SplitCAM('0').context(graph := program.module()), pytest.raises(ValueError, match=r'torch\.export\.unflatten'):
        graph(image)


def test_quantized():
    float_model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    model = torch.ao.quantization.quantize_dynamic(float_model, {nn.Linear})
    refused = pytest.raises(TypeError, match=r"module '0' \(Linear\) is quantized.*explain the float model")
    with refused, SplitGrad().context(model):
        model(torch.randn(2, 4))
