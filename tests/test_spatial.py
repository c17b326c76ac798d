'''Layers as places: grids of tokens, and maps at them by all methods.'''
import pytest
import torch
from helpers import assert_close, explain, random_image
from small_models import Calling
from torch import nn
from torch.nn import functional as F

from zennit.attribution import Gradient
from zennit_dc import DetachedStatistics, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.attribution import LayerCAM, class_relevance
from zennit_dc.data.classifiers import IMAGENET_PREPROCESSING, Classifier, last_layer, layers
from zennit_dc.methods import attributor
from zennit_dc.spatial import places_of, token_grid


@pytest.mark.parametrize('tokens, size, grid', [
    (196, (224, 224), (14, 14)), (197, (224, 224), (14, 14)), (201, (224, 224), (14, 14)), (198, (224, 224), (14, 14)),
    (578, (384, 384), (24, 24)), (1370, (518, 518), (37, 37)), (257, (224, 224), (16, 16)), (5, (32, 32), (2, 2)),
    (17, (32, 32), (4, 4)), (3136, (224, 224), (56, 56)), (281, (224, 320), (14, 20)),
    (151, (250, 170), (15, 10)),
    (9, (32, 32), None), (1, (224, 224), None), (220, (224, 224), None),
])
def test_grids_of_tokens(tokens, size, grid):
    '''Nine tokens are three by three, or two by two after a class token and four registers.'''
    assert token_grid(tokens, size) == grid


IMAGE = (2, 3, 32, 32)


@pytest.mark.parametrize('shape, channels, grid, expected', [
    ((2, 3, 8, 8), None, None, (1, (8, 8))), ((2, 8, 8, 40), None, None, (3, (8, 8))),
    ((2, 8, 8, 8), 3, None, (3, (8, 8))),
    ((2, 8, 8, 5), None, (8, 8), (3, (8, 8))), ((2, 5, 1, 8), None, (1, 8), (1, (1, 8))),
    ((2, 65, 8), None, None, (2, (8, 8))),
    ((2, 8, 65), 1, None, (1, (8, 8))), ((2, 9, 5), None, (2, 2), (2, (2, 2))), ((2, 60, 5), 2, (6, 10), (2, (6, 10))),
])
def test_places(shape, channels, grid, expected):
    assert places_of('layer', shape, IMAGE, channels, grid) == expected


def test_places_of_other_inputs():
    assert places_of('layer', (2, 5, 4), (2, 3, 9)) == (1, (4,))
    assert places_of('layer', (2, 4, 5), (2, 3, 9), 2) == (2, (4,))
    assert places_of('layer', (2, 5, 4, 2, 1), (2, 3, 16, 8, 4)) == (1, (4, 2, 1))


@pytest.mark.parametrize('shape, channels, grid, message', [
    ((2, 5), None, None, r'\(2, 5\), without spatial axes.*without tokens'),
    ((6, 5, 8, 8), None, None, 'without spatial'),
    ((2, 9, 5), None, None, r'grid=\(height, width\)'), ((2, 9, 5), None, (4, 4), '4 × 4 places'),
    ((2, 8, 8, 8), None, None, r'not clear.*grid='), ((2, 7, 9, 8), 2, None, 'not clear'),
    ((2, 5, 8, 8), None, (4, 4), 'not clear'), ((2, 9, 5), None, (3,), r'2 positive integers.*\(3,\)'),
    ((2, 9, 5), None, (3., 3), '2 positive integers'),
])
def test_places_that_are_not_clear(shape, channels, grid, message):
    with pytest.raises(ValueError, match=message):
        places_of('layer', shape, IMAGE, channels, grid)


class Transformer(nn.Module):
    '''A small one, with a class token and two registers; or the same network with spatial axes in place of tokens.'''
    def __init__(self, tokens=True):
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.tokens = nn.Conv2d(3, 6, 4, 4), tokens
        self.norm, self.before, self.after = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)
        self.relu, self.layer, self.prefix = nn.ReLU(), nn.Identity(), nn.Parameter(torch.randn(1, 3, 6))
        self.double().eval()

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        x = x + self.relu(self.before(self.norm(x)))
        x = self.layer(x) if self.tokens else x
        prefix, x = x[:, :3], x[:, 3:].transpose(1, 2).unflatten(2, (5, 8))
        x = x if self.tokens else self.layer(x)
        attention = torch.softmax(x.mean(1).flatten(1), -1)
        x = torch.einsum('bt,btc->bc', attention, self.relu(self.after(x.flatten(2).mT)))
        return self.head(x + .1 * self.relu(self.after(prefix)).sum(1))


PHOTO = random_image(2, 3, 20, 32)
COMPOSITES = {
    'SplitCAM': lambda **kwargs: SplitCAM('layer', .3, '+g', **kwargs),
    'SplitGrad': lambda **kwargs: SplitGrad(layer='layer', **kwargs),
    'SplitLRP': lambda **kwargs: SplitLRP(1e-3, 'positive', 'layer', recentering=None, **kwargs),
}


@pytest.mark.parametrize('name', COMPOSITES)
def test_maps_of_tokens(name):
    '''They are those of the same values with spatial axes. explain() asserts that the output is bit-identical.'''
    maps, saliencies = [], []
    for tokens in (True, False):
        composite = COMPOSITES[name](canonizers=[DetachedStatistics()])
        maps.append(explain(composite, Transformer(tokens), PHOTO))
        saliencies.append(composite.saliency)
    assert saliencies[0].shape == (2, 5, 8)
    if 'Balanced' not in name and name != 'SplitGrad':  # balanced over prefix tokens, too
        assert_close(*saliencies, 1e-9)
        assert_close(*maps, 1e-9)
    alone = explain(COMPOSITES[name](canonizers=[DetachedStatistics()]), Transformer(), PHOTO[1:])
    assert_close(alone, explain(COMPOSITES[name](canonizers=[DetachedStatistics()]), Transformer(), PHOTO)[1:])


def test_maps_of_tokens_can_be_differentiated():
    image, model = PHOTO[:1, :, :8, :8].clone().requires_grad_(), Transformer()
    model.forward = lambda x: model.head(model.after(F.relu(model.layer(
        torch.cat([model.prefix, model.patch(x).flatten(2).mT], 1)) ** 2)).sum(1))

    def map_of(x):
        with SplitGrad(.3, layer='layer').context(model):
            return torch.autograd.grad(model(x)[:, 2].sum(), x, create_graph=True)[0]

    assert torch.autograd.gradcheck(map_of, image, atol=1e-5, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize('method', ['layercam', 'gradcam', 'gradcam++', 'guided-gradcam', 'guided-backprop'])
def test_peers_at_tokens(method):
    pytest.importorskip('captum')
    maps = []
    for tokens in (True, False):
        classifier = Classifier('own', Transformer(tokens), IMAGENET_PREPROCESSING(), None)
        output, map = attributor(method, classifier, layer='layer')(PHOTO, class_relevance(torch.tensor([1, 2])))
        maps.append(map)
    assert_close(*maps)


@pytest.mark.parametrize('method', [SplitCAM, SplitGrad, SplitLRP, LayerCAM])
def test_class_token_alone(method):
    '''Where only a token that is no place has a gradient, there is an error instead of a map of zeros.'''
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Linear(3, 4)

        def forward(self, x):
            tokens = self.tokens(x.flatten(2).mT)
            return self.norm(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))[:, 0]

    model, image = Model(), torch.rand(2, 3, 4, 4)
    model.norm = nn.Linear(4, 5)
    make = method(model, 'norm') if method is LayerCAM else Gradient(model, method(layer='norm'))
    with pytest.raises(ValueError, match='norm.*class token.*before the last attention'):
        make(image, torch.eye(5)[[1, 2]])


def test_layercam_at_a_given_grid():
    model = nn.Sequential(nn.Flatten(2), nn.Identity(), nn.Flatten(), nn.Linear(27, 4)).double()
    model[1].forward = lambda x: x.mT
    image = random_image(2, 3, 3, 3)
    map = LayerCAM(model, '1', grid=(3, 3))(image, class_relevance(torch.tensor([1, 2])))[1]
    gradient, = torch.autograd.grad(model(image.requires_grad_())[[0, 1], [1, 2]].sum(), image)
    assert_close(map.sum(1), (gradient * image).sum(1).relu().detach())


def test_grid_of_a_composite():
    torch.manual_seed(0)
    model = nn.Sequential(Calling(lambda x: x.flatten(2)[..., :66]), nn.Flatten(), nn.Linear(198, 4)).double()
    for grid, message in ((None, r'\(2, 3, 66\).*grid=\(height'), ((3, 30), '3 × 30 places'),
                          ((2, 2, 2), '2 positive')):
        with SplitCAM('0', grid=grid).context(model), pytest.raises(ValueError, match=message):
            model(PHOTO)
    composite = SplitCAM('0', .5, grid=(6, 10))
    Gradient(model, composite)(PHOTO, class_relevance(torch.tensor([1, 2])))
    assert composite.saliency.shape == (2, 6, 10)


class ClassToken(Transformer):
    '''Of which the last layer's class token alone is used.'''
    def forward(self, x):
        x = torch.cat([self.prefix.expand(len(x), -1, -1), self.patch(x).flatten(2).mT], 1)
        x = self.before(x)
        x = x + x.mean(1, keepdim=True)
        return self.head(self.after(self.layer(x))[:, 0])


def test_layers_have_a_grid():
    classifier = Classifier('own', ClassToken().float(), IMAGENET_PREPROCESSING(crop_size=32, resize_size=32), None)
    found = {name: shape for name, _, shape, _ in layers(classifier)}
    assert found == {'patch': (6, 8, 8), 'before': (6, 8, 8), 'layer': (6, 8, 8), 'after': (8, 8, 8)}
    assert last_layer(classifier) == 'before'
