'''Attention and normalization with constant weights and statistics.'''
import pytest
import torch
import torchvision
from helpers import assert_close, explain, gradient_of, random_image
from torch import nn
from torch.nn import functional as F

from zennit_dc import DetachedStatistics, Scaling, SmoothReplacement, SplitCAM, SplitGrad, SplitLRP, SplitTensor
from zennit_dc.core.pair import Pass, Settings
from zennit_dc.evaluation.deviation import output_deviation


class LayerNorm(nn.Module):
    '''Layer norm, with its statistics as constants where asked for.'''
    constant = False

    def __init__(self, size):
        super().__init__()
        self.weight, self.bias = nn.Parameter(random_image(size, seed=5)), nn.Parameter(random_image(size, seed=6))

    def forward(self, x):
        if not self.constant:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias)
        scale = torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5).detach()
        return (x - x.mean(-1, keepdim=True)) * scale * self.weight + self.bias


class Block(nn.Module):
    '''A block of a transformer in one of four ways to write attention.'''
    constant = False

    def __init__(self, way):
        super().__init__()
        self.way, self.norm = way, LayerNorm(6)
        self.project, self.out, self.dense = nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(6, 5)
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.double().eval()
        generator = torch.Generator().manual_seed(0)
        for name, parameter in self.named_parameters():
            if 'norm' not in name:
                parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2

    def forward(self, x):
        tokens = self.norm(x)
        if self.way == 'module':
            mixed, _ = self.attend(tokens, tokens, tokens, need_weights=False)
        elif self.way == 'module with weights':
            mixed, _ = self.attend(tokens, tokens, tokens)
        else:
            q, k, v = self.project(tokens).chunk(3, -1)
            if self.way == 'function' and not self.constant:
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            elif self.way == 'function':
                mask = torch.full((4, 4), -torch.inf, dtype=x.dtype).triu(1)
                mixed = torch.softmax(q @ k.mT / 6 ** .5 + mask, -1).detach() @ v
            else:
                weights = torch.softmax(q @ k.mT, -1)
                mixed = (weights.detach() if self.constant else weights) @ v
            mixed = self.out(mixed)
        return self.dense(F.relu(x + mixed).mean(1))


def detached():
    return [DetachedStatistics()]


@pytest.mark.parametrize('way', ['function', 'operators'])
def test_constants(way):
    '''SplitGrad at one half is half of the gradient of the same block with detached weights and statistics.'''
    model, image = Block(way), random_image(2, 4, 6)
    gradient = explain(SplitGrad(.5, canonizers=detached()), model, image)
    model.constant = model.norm.constant = True
    pixels = image.clone().requires_grad_()
    expected, = torch.autograd.grad(model(pixels)[:, 2].sum(), pixels)
    assert_close(gradient, expected / 2, 1e-12)


@pytest.mark.parametrize('way', ['module', 'module with weights', 'function', 'operators'])
def test_maps_with_attention(way):
    model, image = Block(way), random_image(2, 4, 6)
    for make in (SplitGrad, SplitLRP, lambda canonizers: SplitGrad(.2, '+g', canonizers=canonizers)):
        # explain() asserts that the output is bit-identical
        map = explain(make(canonizers=detached()), model, image)
        assert torch.isfinite(map).all() and (map.abs().amax((1, 2)) > 0).all()
        assert_close(map[:1], explain(make(canonizers=detached()), model, image[:1]), 1e-12)
        loud = torch.cat([image[:1], 1e4 * image[1:]])
        assert_close(explain(make(canonizers=detached()), model, loud)[:1], map[:1], 1e-12)


def test_relevance_of_attention_is_conserved():
    model, image = Block('operators'), random_image(2, 4, 6)
    for layer in (model.project, model.out, model.dense):
        layer.bias.data.zero_()
    model.norm.bias.data.zero_()
    total = sum(
        explain(SplitLRP(1e-12, stream, canonizers=detached()), model, image).sum((1, 2))
        for stream in ('positive', 'negative')
    )
    torch.testing.assert_close(total, torch.ones(2).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize('size', [1, 2, 5])
def test_layer_norm_is_a_matrix(size):
    model, image = nn.Sequential(nn.LayerNorm(size)).double(), random_image(2, size)
    canonizer = DetachedStatistics().apply(model)[0]
    pair = SplitTensor(image, image.abs() + 1, Pass(Settings(root=model)))
    output = model(pair)
    canonizer.remove()
    assert torch.equal(output.difference, model(image))
    scale = torch.rsqrt(image.var(-1, unbiased=False, keepdim=True) + 1e-5)
    matrix = torch.eye(size).double() - 1 / size
    torch.testing.assert_close(output.stream_sum, (pair.stream_sum @ matrix.abs()) * scale, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('make', [
    lambda c: SplitGrad(.3, canonizers=c), lambda c: SplitGrad(.3, '+g', canonizers=c, recentering=Scaling(.1, 1.)),
    lambda c: SplitLRP(.1, canonizers=c),
])
@pytest.mark.parametrize('way', ['operators', 'module'])
def test_maps_with_attention_can_be_differentiated(make, way):
    '''The derivative of the map is that of what was computed: weights and statistics depend on the input in it.'''
    model, image = Block(way), random_image(1, 4, 6).requires_grad_()

    def map_of(x, create_graph=True):
        with make(detached()).context(model):
            return torch.autograd.grad(model(x)[:, 2].sum(), x, create_graph=create_graph)[0]

    assert_close(map_of(image).detach(), map_of(image, False), 1e-12)
    assert torch.autograd.gradcheck(map_of, image, atol=1e-5, rtol=1e-4, fast_mode=True)


def test_refused_without_the_canonizer():
    image = random_image(2, 4, 6)
    for way, name in (('module', 'scaled_dot_product_attention'), ('operators', 'layer_norm')):
        composite = SplitGrad(canonizers=None)
        with composite.context(model := Block(way)), pytest.raises(NotImplementedError, match=f'{name}.*Detached'):
            model(image)
    for function, name in (
        (lambda x: F.softmax(x, -1) @ x.mT, 'softmax'), (F.normalize, 'div'),
        (lambda x: F.scaled_dot_product_attention(x, x, x), 'attention'),
    ):
        model = nn.Module()
        model.forward = function
        composite = SplitGrad(canonizers=None)
        with composite.context(model), pytest.raises(NotImplementedError, match=f'{name}.*Detached'):
            model(image)


@pytest.mark.parametrize('name, layer', [('vit_b_16', None), ('swin_t', 'features.3'), ('swin_v2_t', None)])
def test_transformers_of_torchvision(name, layer):
    torch.manual_seed(0)
    size = {'image_size': 32} if name.startswith('vit') else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **size).eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=.05)
    image = random_image(2, 3, 32, 32, dtype=torch.float32).requires_grad_()
    canonizers = [DetachedStatistics(), SmoothReplacement(1e-3)]
    composites = [SplitGrad(canonizers=canonizers), SplitLRP(canonizers=canonizers)]
    for composite in composites:
        with composite.context(model):
            map, = torch.autograd.grad(model(image)[:, 2].sum(), image)
        assert (map.abs().amax((1, 2, 3)) > 0).all() and output_deviation(model, image, canonizers=canonizers) < .1
    if name == 'vit_b_16':
        with SplitCAM('encoder.ln', canonizers=canonizers).context(model):
            output = model(image)[:, 2].sum()
            with pytest.raises(ValueError, match=r'encoder\.ln.*class token.*before the last attention'):
                torch.autograd.grad(output, image)


@pytest.mark.parametrize('need_weights', [True, False])
@pytest.mark.parametrize('shape', [(3, 3), (4, 3, 3)])
@pytest.mark.parametrize('boolean', [True, False])
def test_masks_of_multi_head_attention(boolean, shape, need_weights):
    '''True is a token that is not seen. explain() asserts that the output is bit-identical.'''
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double().eval()
    mask = random_image(*shape)
    if boolean:
        mask = mask > .5
        mask[..., 0] = False

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x, attn_mask=mask, need_weights=need_weights)[0].flatten(1)

    for make in (SplitGrad, SplitLRP):
        assert explain(make(canonizers=detached()), Masked(), random_image(2, 3, 4)).abs().max() > 0


class Grouped(nn.Module):
    '''Attention of four query heads to two heads of keys and values, with a mask that is learned or depends on the
    input; or with heads repeated by hand.'''
    def __init__(self, by_hand, mask):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = nn.Linear(6, 12), nn.Linear(6, 6), nn.Linear(6, 6)
        self.bias, self.by_hand, self.mask = nn.Parameter(torch.randn(4, 4)), by_hand, mask
        self.double()

    def forward(self, x):
        heads = (each(x).unflatten(-1, (-1, 3)).transpose(1, 2) for each in (self.query, self.key, self.value))
        query, key, value = heads
        key, value = (each.repeat_interleave(2, 1) if self.by_hand else each for each in (key, value))
        mask = {'learned': self.bias, 'of the input': (self.key(x) @ x.mT)[:, None], 'none': None}[self.mask]
        options = {} if self.by_hand else {'enable_gqa': True}
        return F.scaled_dot_product_attention(query, key, value, mask, scale=.5, **options).flatten(1)


@pytest.mark.skipif(torch.__version__ < (2, 5), reason='torch 2.4 has no grouped queries')
@pytest.mark.parametrize('mask', ['learned', 'of the input', 'none'])
def test_grouped_queries_and_masks(mask):
    image = random_image(2, 4, 6)
    for make in (SplitGrad, SplitLRP):
        maps = [explain(make(canonizers=detached()), Grouped(by_hand, mask), image) for by_hand in (False, True)]
        assert_close(*maps)


class Memory(nn.Module):
    '''Attention to learned tokens, as a feature or as the gate of one.'''
    def __init__(self, by_hand, causal=False):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.head = nn.Linear(6, 6).double(), nn.Linear(6, 3).double()
        self.keys, self.values = (nn.Parameter(torch.randn(2, 4, 6).double()) for _ in range(2))
        self.by_hand, self.causal = by_hand, causal

    def forward(self, x):
        query = self.query(x).relu()
        if self.by_hand:
            logits = query @ self.keys.mT * 6 ** -.5
            if self.causal:
                logits = logits.masked_fill(torch.ones(4, 4).triu(1) > 0, -torch.inf)
            found = torch.softmax(logits, -1) @ self.values
        else:
            found = F.scaled_dot_product_attention(query, self.keys, self.values, is_causal=self.causal)
        return self.head(query + found).mean(1)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('make', [SplitGrad, SplitLRP])
def test_attention_to_constants_is_that_by_hand(make, causal):
    maps = [explain(make(canonizers=detached()), Memory(by_hand, causal), random_image(2, 4, 6))
            for by_hand in (False, True)]
    assert_close(*maps)
    half = explain(SplitGrad(.5, canonizers=detached()), Memory(False, causal), random_image(2, 4, 6))
    assert_close(half, gradient_of(Memory(False, causal), random_image(2, 4, 6)) / 2)


@pytest.mark.parametrize('kwargs', [{}, {'enable_nested_tensor': False}, {'mask_check': False}])
@pytest.mark.parametrize('mask', [[[0, 0, 0, 0], [0, 0, 1, 1]], [[0, 0, 0, 0], [1, 0, 0, 1]]])
def test_encoder_with_padding(mask, kwargs):
    '''Padding gets nothing, whichever arguments the encoder has. explain() asserts that the output is
    bit-identical.'''
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, activation='relu')
            self.encoder, self.head = nn.TransformerEncoder(layer, 1, **kwargs), nn.Linear(6, 3)

        def forward(self, x):
            tokens = self.encoder(x, src_key_padding_mask=padding)
            return self.head((tokens * ~padding[..., None]).sum(1))

    torch.manual_seed(0)
    model, padding = Model().double().eval(), torch.tensor(mask).bool()
    for make in (SplitGrad, SplitLRP):
        map = explain(make(canonizers=detached()), model, random_image(2, 4, 6))
        assert map[~padding].any(1).all() and not map[padding].any()
