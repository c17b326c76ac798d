'''Layers with weights, and averages.'''
import itertools
from functools import partial

import pytest
import torch
from helpers import assert_close, divided, gradients, random_image
from jacobians import IMAGE, require_relevance, require_sensitivities, require_streams
from small_models import Block, pair_of, with_layers
from torch import nn
from torch.nn import functional as F

from zennit_dc import SplitCAM, SplitGrad, SplitLRP, SplitTensor


def weight(*shape):
    return random_image(*shape, seed=sum(shape))


def bias(size):
    return random_image(size, seed=size)


def norm(x, size):
    return F.batch_norm(x, bias(size), bias(size).abs() + .1, weight(size), weight(size, 1)[:, 0])


LINEAR = {
    'linear': ((2, 5), lambda x: F.linear(x, weight(3, 5), bias(3))),
    'linear of many weights': ((2, 3000), lambda x: F.linear(x, weight(100, 3000), bias(100))),
    'linear of tokens': ((2, 3, 5), lambda x: F.linear(x, weight(3, 5))),
    'matmul': ((2, 3, 5), lambda x: x @ weight(5, 4)),
    'matmul from the left': ((2, 3, 5), lambda x: weight(4, 3) @ x),
    'mm': ((2, 5), lambda x: torch.mm(x, weight(5, 4))),
    'addmm': ((2, 5), lambda x: torch.addmm(bias(4), x, weight(5, 4))),
    'conv1d': ((2, 4, 9), lambda x: F.conv1d(x, weight(6, 2, 3), bias(6), 2, 1, 2, 2)),
    'conv2d': (IMAGE, lambda x: F.conv2d(x, weight(6, 2, 3, 2), bias(6), (2, 1), (1, 0), (1, 2), 2)),
    'conv2d same': (IMAGE, lambda x: F.conv2d(x, weight(6, 4, 2, 4), bias(6), padding='same', dilation=(1, 1))),
    'conv2d same odd': (IMAGE, lambda x: F.conv2d(x, weight(6, 4, 3, 3), padding='same', dilation=2)),
    'conv2d valid': (IMAGE, lambda x: F.conv2d(x, weight(6, 4, 3, 3), padding='valid')),
    'conv3d': ((2, 2, 4, 5, 4), lambda x: F.conv3d(x, weight(4, 2, 3, 3, 2), bias(4), (1, 2, 1), 1)),
    'conv_transpose1d': ((2, 4, 5), lambda x: F.conv_transpose1d(x, weight(4, 3, 3), bias(6), 2, 1, 1, 2, 2)),
    'conv_transpose2d': (IMAGE, lambda x: F.conv_transpose2d(x, weight(4, 3, 3, 2), bias(3), (2, 1), 1, (1, 0))),
    'conv_transpose3d': ((1, 2, 3, 3, 2), lambda x: F.conv_transpose3d(x, weight(2, 2, 2, 2, 2), bias(2), 2)),
    'batch_norm': (IMAGE, lambda x: norm(x, 4)),
    'batch_norm 1d': ((2, 4), lambda x: norm(x, 4)),
    'batch_norm 3d': ((2, 4, 2, 3, 2), lambda x: norm(x, 4)),
    'batch_norm without parameters': (IMAGE, lambda x: F.batch_norm(x, bias(4), bias(4).abs() + .1)),
    'circular convolution': ((2, 3, 6, 6), nn.Conv2d(3, 4, 3, padding=1, padding_mode='circular').double()),
    'avg_pool1d': ((2, 4, 6), lambda x: F.avg_pool1d(x, 2)),
    'avg_pool2d': (IMAGE, lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)),
    'avg_pool3d': ((2, 2, 4, 4, 4), lambda x: F.avg_pool3d(x, 2)),
    'adaptive_avg_pool1d': ((2, 4, 7), lambda x: F.adaptive_avg_pool1d(x, 3)),
    'adaptive_avg_pool2d': (IMAGE, lambda x: F.adaptive_avg_pool2d(x, (4, 1))),
    'adaptive_avg_pool3d': ((2, 2, 4, 4, 4), lambda x: F.adaptive_avg_pool3d(x, 3)),
    'mean': (IMAGE, lambda x: x.mean((2, 3))),
    'torch.mean': (IMAGE, lambda x: torch.mean(x, dim=[2, 3], keepdim=True)),
    'sum': (IMAGE, lambda x: x.sum(1)),
    'einsum of one operand': (IMAGE, lambda x: torch.einsum('bchh->bc', x)),
}


@pytest.mark.parametrize('name', LINEAR)
def test_streams(name):
    require_streams(*LINEAR[name])


@pytest.mark.parametrize('name', LINEAR)
def test_sensitivities(name):
    require_sensitivities(*LINEAR[name])


@pytest.mark.parametrize('name', LINEAR)
def test_relevance(name):
    require_relevance(*LINEAR[name])


@pytest.mark.parametrize('name, function', {
    'matmul(other)': lambda x: torch.matmul(x, other=weight(5, 4)),
    'mm(mat2)': lambda x: torch.mm(x, mat2=weight(5, 4)),
    'addmm(mat1, mat2)': lambda x: torch.addmm(bias(4), mat1=x, mat2=weight(5, 4)),
    'mv': lambda x: torch.mv(x, bias(5)), 'tensordot': lambda x: torch.tensordot(x, weight(5, 4), 1),
    'tensordot over axes': lambda x: torch.tensordot(x, weight(4, 5), ([1], [1])),
    'matrix from the left': lambda x: weight(4, 5) @ x.T, 'baddbmm': lambda x: torch.baddbmm(
        weight(2, 1, 4), x[:, None], weight(2, 5, 4)),
}.items())
def test_other_ways_to_call_products_of_matrices(name, function):
    require_streams((2, 5), function)
    require_sensitivities((2, 5), function)


@pytest.mark.parametrize('equation, operands', [
    ('bchw,cd,de->behw', [(4, 3), (3, 5)]), ('...w,wv,ev->...e', [(6, 2), (3, 2)]),
    ('bchw,hi,wj,c', [(6, 2), (6, 3), (4,)]), ('...w,wv,ve', [(6, 2), (2, 3)]),
])
def test_einsum_of_many_operands(equation, operands):
    constants = [weight(*shape).abs() for shape in operands]  # as magnitudes of products of constants else differ

    def function(x):
        return torch.einsum(equation, x, *constants)

    require_streams(IMAGE, function)
    require_sensitivities(IMAGE, function)


def test_einsum_of_pairs():
    pair = pair_of((2, 3, 4)).as_input()
    output = torch.einsum('bij,kj,bki->bk', pair, weight(3, 4), pair[..., :3])
    expected = ((weight(3, 4) @ pair.mT) * pair[..., :3]).sum(-1)
    assert_close(output.difference, expected.difference)
    assert_close(output.stream_sum, expected.stream_sum)
    assert output.axis('batch') == -2


class Pooled(nn.Module):
    '''A layer, an einsum with constants of each sample, such as masks, and another layer.'''
    def __init__(self, equation, constants, is_first):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 6).double(), nn.LazyLinear(3, dtype=torch.float64)
        self.equation, self.constants, self.is_first = equation, constants, is_first

    def forward(self, x):
        x = F.relu(self.first(x))
        operands = (self.constants, x) if self.is_first else (x, self.constants)
        return self.last(F.relu(torch.einsum(self.equation, *operands)).flatten(1))


@pytest.mark.parametrize('composite', [SplitGrad, SplitLRP])
@pytest.mark.parametrize('equation, shape, is_first', [
    ('bnc,bn->bc', (3, 4), False), ('bn,bnc->bc', (3, 4), True), ('...nc,...n->...c', (3, 4), False),
    ('...n, bnc -> bc...', (4,), True), ('bnc,b->bnc', (3,), False), ('bnc,bnk->bkc', (3, 4, 2), False),
    ('bnc,bn->bnc', (3, 4), False), ('bnc,bnc->bn', (3, 4, 6), False),
])
def test_einsum_with_constants_of_each_sample(equation, shape, is_first, composite):
    model, images = Pooled(equation, weight(*shape).abs(), is_first), random_image(3, 4, 5)
    model(images)
    expected, = gradients(composite(), model, images)
    for index in range(3):
        alone = slice(index, index + 1)
        model.constants = weight(*shape).abs()[alone] if shape[0] == 3 else weight(*shape).abs()
        found, = gradients(composite(), model, images[alone])
        assert_close(found, expected[alone], divided() if composite is SplitLRP else 1e-12)


@pytest.mark.parametrize('function', [
    lambda x: F.bilinear(x, weight(2, 3, 4), weight(6, 5, 4), bias(6)), lambda x: F.bilinear(
        weight(2, 3, 4), x, weight(6, 4, 5), bias(6)),
])
def test_bilinear_layer_with_a_constant(function):
    require_streams((2, 3, 5), function)
    require_sensitivities((2, 3, 5), function)


@pytest.mark.parametrize('has_bias', [False, True])
def test_bilinear_layer_of_pairs(has_bias):
    torch.manual_seed(0)
    layer = nn.Bilinear(5, 5, 4, has_bias).double()
    model, image = nn.Sequential(nn.Linear(5, 5).double(), Block(lambda x: layer(x, x))), random_image(2, 3, 5)
    leaf = image.clone().requires_grad_()
    output = model(leaf)
    expected, = torch.autograd.grad(output[:, 1].sum(), leaf)
    assert_close(gradients(SplitGrad(.5), model, image)[0], expected / 2, 1e-12)
    with SplitLRP().context(model):
        assert torch.equal(model(image), output)


def test_negative_divisor():
    with pytest.raises(NotImplementedError, match='negative divisor_override'):
        F.avg_pool2d(SplitTensor.of(random_image(*IMAGE)), 2, divisor_override=-2)


@pytest.mark.parametrize('stride', [1, 2])
def test_transposed_convolution_of_an_output_padding_by_dilation(stride):
    def function(x):
        return F.conv_transpose1d(x, weight(4, 3, 2), None, stride, 0, 1, 1, 2)

    require_streams((2, 4, 5), function)
    require_sensitivities((2, 4, 5), function)
    require_relevance((2, 4, 5), function)


@pytest.mark.parametrize('make', [lambda: SplitGrad(.5), lambda: SplitGrad(.5, 'h', pooling='convex')])
def test_gradient_of_a_batch_norm_in_any_strides(make):
    '''Torch's own is wrong for some on a CPU, as for the one of this einsum.'''
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(4).double().eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(.5 + torch.rand(4, generator=generator))
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    for order in itertools.permutations('bchw'):
        for image in (random_image(1, 4, 3, 2), random_image(2, 4, 1, 2), random_image(3, 2, 1, 4).permute(0, 3, 2, 1)):
            sizes = dict(zip('bchw', image.shape))
            factor = random_image(*(sizes[letter] for letter in order))

            class Weighted(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.norm = norm

                def forward(self, x, order=''.join(order), factor=factor):
                    return torch.einsum(f'bchw,{order}->', self.norm(x), factor)[None]

            image.requires_grad_()
            with make().context(model := Weighted()):
                attribution, = torch.autograd.grad(model(image).sum(), image)
            sign = -1 if make().readout.output == 'h' else 1
            back = factor.permute([order.index(letter) for letter in 'bchw'])
            assert_close(attribution, sign * scale[:, None, None] * back / 2, 1e-12)


class Products(nn.Module):
    '''Matrix products below a layer.'''
    def __init__(self, product):
        super().__init__()
        self.product, self.layer = product, nn.Conv2d(3, 3, 1).double()

    def forward(self, x):
        return self.layer(self.product(x)).mean((2, 3))


@pytest.mark.parametrize('name, product', {
    'with constants': lambda x: x @ weight(7, 9),
    'with many constants': lambda x: x @ weight(3, 7, 9),
    'constants on the left': lambda x: weight(6, 5) @ x,
    'of a matrix with many constants': lambda x: (
        x.flatten(1) @ weight(3, 105, 6)
    ).movedim(1, 0).unflatten(2, (2, 3)),
    'of pairs': lambda x: x @ x[:, :1].mT,
}.items())
def test_matrix_products_below_a_layer_are_bit_identical(name, product):
    '''Torch folds matrices whether they need a gradient or not in different ways, with another rounding.'''
    torch.manual_seed(0)
    model, image = Products(product), random_image(4, 3, 5, 7).requires_grad_()
    with SplitCAM('layer').context(model):
        output = model(image)
    assert torch.equal(output, model(image))


@pytest.mark.parametrize('parameters', [
    {'stride': (3, 3), 'dilation': (2,), 'padding': (0, 1)}, {'stride': (2,), 'padding': [1]},
    {'stride': [2, 1], 'padding': (1,), 'dilation': (1, 2)}, {'padding': 'same', 'dilation': (2,)},
])
@pytest.mark.parametrize('name', ['conv2d', 'conv_transpose2d'])
def test_one_number_in_a_sequence_is_for_all_axes(name, parameters):
    if name == 'conv_transpose2d' and parameters['padding'] == 'same':
        parameters = {'dilation': (2,)}
    kernel, function = random_image(4, 4, 3, 1), getattr(F, name)
    repeated = {
        key: tuple(value) * 2 if not isinstance(value, str) and len(value) == 1 else value
        for key, value in parameters.items()
    }
    found = []
    for given in (parameters, repeated):
        torch.manual_seed(0)
        block = nn.Sequential(Block(partial(function, weight=kernel, **given)), nn.AdaptiveAvgPool2d(6))
        found += gradients(SplitGrad(.3, '+g'), with_layers(block), random_image(2, 3, 8, 8))
    assert torch.equal(*found)
