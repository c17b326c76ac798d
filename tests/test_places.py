'''Layers as places: grids of tokens, and maps at them by all methods.'''
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from helpers import alive, assert_close, explain, gradient_of, random_image
from small_models import Calling
from torch import nn
from torch.nn import functional as F
from zennit.attribution import Gradient

from zennit_dc import DetachedActivations, DetachedStatistics, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.attribution import LayerCAM, class_relevance
from zennit_dc.core.following import input_places, reshaped_places
from zennit_dc.core.places import places_of, spread, token_grid
from zennit_dc.data.classifiers import IMAGENET_PREPROCESSING, Classifier, last_layer, layers
from zennit_dc.methods import attributor


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
    assert_arranged(shape, places_of('layer', shape, IMAGE, channels, grid), *expected)


def assert_arranged(shape, places, channels, grid):
    '''Assert that places are those of channels at an index, and of a grid, of which tokens are the last of an axis.'''
    tensor = torch.arange(math.prod(shape)).reshape(shape)
    expected = tensor.movedim(channels, 1)
    if tensor.ndim < len(grid) + 2:
        expected = expected[:, :, -math.prod(grid):].unflatten(2, grid)
    assert places.grid == grid and torch.equal(places.arranged(tensor), expected)


@pytest.mark.parametrize('shape, input_shape, channels, expected', [
    ((2, 5, 4), (2, 3, 9), None, (1, (4,))), ((2, 4, 5), (2, 3, 9), 2, (2, (4,))),
    ((2, 5, 4, 2, 1), (2, 3, 16, 8, 4), None, (1, (4, 2, 1))),
])
def test_places_of_other_inputs(shape, input_shape, channels, expected):
    assert_arranged(shape, places_of('layer', shape, input_shape, channels), *expected)


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
        classes = class_relevance(torch.tensor([1, 2]))
        maps.append(attributor(method, classifier, layer='layer')(PHOTO, classes)[1])
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


# inputs whose axes are in another order

class Classes(nn.Module):
    '''A network of convolutions, and the same with its input arranged by a function.'''
    def __init__(self, channels, axes, arrange=None, collect=None):
        super().__init__()
        torch.manual_seed(0)
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        self.conv, self.other = conv(channels, 5, 3, 2, 1), conv(5, 4, 3, padding=1)
        self.arrange, self.collect = arrange, collect
        self.double()

    def forward(self, x):
        x = x if self.arrange is None else self.arrange(x)
        x = self.other(F.relu(self.conv(x))).relu().flatten(2).mean(2)
        return x if self.collect is None else self.collect(x)


SIGNAL, VOLUME = random_image(2, 3, 12), random_image(2, 1, 6, 8, 4)
ARRANGED = {
    'series': (SIGNAL, lambda x: x.mT, lambda x: x.mT),
    'rows': (PHOTO, lambda x: x.permute(0, 2, 3, 1), lambda x: x.permute(0, 3, 1, 2)),
    'columns first': (PHOTO, lambda x: x.permute(0, 3, 1, 2), lambda x: x.permute(0, 2, 3, 1)),
    'audio': (SIGNAL[:, :1], lambda x: x[:, 0], lambda x: x[:, None]),
    'spectrogram': (PHOTO[:, :1], lambda x: x[:, 0], lambda x: x.unsqueeze(1)),
    'volume': (VOLUME, lambda x: x[:, 0], lambda x: x.reshape(-1, 1, 6, 8, 4)),
    'gray': (PHOTO[:, :1], lambda x: x[:, 0], lambda x: torch.stack([x], 1)),
}


@pytest.mark.parametrize('name', ARRANGED)
@pytest.mark.parametrize('layer', ['conv', 'other'])
def test_maps_in_the_order_of_the_input(name, layer):
    '''They are those of the network whose input has its channels first.'''
    image, arrange, back = ARRANGED[name]
    model = Classes(image.shape[1], image.ndim - 2)
    image = alive(model, *image.shape)
    expected = explain(SplitCAM(layer, .3), model, image)
    map = explain(SplitCAM(layer, .3), Classes(image.shape[1], image.ndim - 2, back), arrange(image))
    assert map.shape == arrange(image).shape
    assert_close(map, arrange(expected), 1e-12)


def test_places_of_dense_layers():
    '''Points of shape (batch, points, 3), and series, of which a dense layer makes features.'''
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), Calling(lambda x: x.amax(1)), nn.Linear(5, 4)).double()
    composite = SplitGrad(.5, layer='0')
    points = random_image(2, 7, 3)
    map = explain(composite, model, points)
    assert composite.saliency.shape == (2, 7)
    assert_close(map, composite.saliency[..., None].expand(2, 7, 3) / 3)


def test_channels_that_are_not_known():
    '''A network that has no layer with weights before the axes are one.'''
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(40, 3)).double()
    series = random_image(2, 8, 5)
    with pytest.raises(ValueError, match=r'channels=1 .*channels=-1'):
        explain(SplitCAM('0', .5), model, series)
    product = gradient_of(model, series) * series / 2
    for channels, expected in ((-1, product.mean(2, keepdim=True)), (2, product.mean(2, keepdim=True)),
                               (1, product.mean(1, keepdim=True)), ((), product)):
        assert_close(explain(SplitCAM('0', .5, channels=channels), model, series), expected.expand_as(series), 1e-12)
    for channels in (0, 1.5, True, 'last'):
        with pytest.raises(ValueError, match='channels must be'):
            SplitCAM('0', channels=channels)
    with pytest.raises(ValueError, match='no axis 3'):
        explain(SplitCAM('0', .5, channels=3), model, series)


def test_channels_that_are_mixed_before_axes_are_one():
    '''What is left of the axes are not the channels.'''
    def network(*start):
        mixed = Calling(lambda x: torch.ones(2, 3).double() @ x)
        return nn.Sequential(nn.Identity(), *start, mixed, nn.Flatten(), nn.Linear(14, 3)).double()

    with pytest.raises(ValueError, match=r'channels=1 .*channels=-1'):
        explain(SplitCAM('0', .5), network(), random_image(2, 3, 7))
    composite = SplitCAM('0', .5)
    explain(composite, network(Calling(lambda x: x.mean(2))), random_image(2, 3, 7, 7))
    assert composite.saliency.shape == (2, 7, 7)


def test_channels_are_known_from_what_follows_the_layer():
    model = nn.Sequential(nn.Identity(), Calling(lambda x: x.mT), nn.Conv1d(5, 3, 3), nn.Flatten(), nn.Linear(18, 3))
    series = random_image(2, 8, 5)
    product = gradient_of(model.double(), series) * series / 2
    assert_close(explain(SplitCAM('0', .5), model, series), product.mean(2, keepdim=True).expand_as(series), 1e-12)


def test_axis_of_the_input_that_becomes_two():
    '''Pixels in a row, as tokens have them: the map is not read along the rows alone.'''
    model = Classes(3, 2, lambda x: x.unflatten(1, (20, 32)).movedim(-1, 1))
    with pytest.raises(ValueError, match='spatial axes'):
        explain(SplitCAM('conv', .3), model, PHOTO.flatten(2).mT)


def test_patches_of_audio():
    '''Whose entries a dense layer puts together.'''
    model = nn.Sequential(
        Calling(lambda x: x.view(-1, 6, 4)), nn.Linear(4, 5), nn.ReLU(), Calling(lambda x: x.mean(1)), nn.Linear(5, 3)
    ).double()
    composite = SplitCAM('1', .5)
    map = explain(composite, model, random_image(2, 24))
    assert_close(map, F.interpolate(composite.saliency[:, None], 24, mode='linear')[:, 0], 1e-12)


# a sample alone, whose axis has a length of one

RESHAPED = [
    (3, 4, 8, 5), (12, 2, 4, 5), (3, 4, 2, 4, 5), (96, 5), (12, 40), (480,), (6, 16, 5), (3, 1, 4, 8, 5), (1, 12, 8, 5),
    (8, 12, 5), (5, 96), (4, 24, 5), (3, 160), (8, 5, 12),
]


@pytest.mark.parametrize('old', [(12, 8, 5), (1, 12, 8, 5), (12, 1, 8, 5)])
@pytest.mark.parametrize('new', RESHAPED)
def test_places_of_a_sample_alone(old, new):
    '''In another shape, those of all axes but the samples' are where they are in a batch.'''
    found = []
    for samples in (1, 7):
        places = reshaped_places(input_places(0, (samples, *old)), (samples, *old), (samples, *new))
        found.append({key: place for key, place in places.items() if key[1] not in (0, -1)})
    assert found[0] == found[1]


def test_axis_that_is_taken_apart():
    '''It is known again where two parts of it are one axis again; where there were three, its coarsest part is.'''
    shapes = (2, 12, 5), (2, 3, 4, 5), (2, 3, 2, 2, 5)
    places = input_places(0, shapes[0])
    for apart, expected in ((shapes[:2], places[0, 1]), (shapes, places[0, 1]._replace(length=3, step=4))):
        found = places
        for old, new in pairwise((*apart, *apart[-2::-1])):
            found = reshaped_places(found, old, new)
        assert found[0, 1] == expected and found[0, -2] is None


class Windows(nn.Module):
    '''Features of places in windows, channels last, and the places of each window of two by two put together.'''
    def __init__(self, merge, size=2, shift=0):
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.mix, self.layer = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 6), nn.Identity()
        self.reduce, self.merged, self.head = nn.Linear(24, 5), nn.Identity(), nn.Linear(5, 4)
        self.merge, self.size, self.shift = merge, size, shift
        self.double().eval()

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        x = self.layer(x + self.in_windows(x.roll((-self.shift, -self.shift), (1, 2))))
        x = self.merged(self.reduce(self.merge(x)).relu())
        x = x + self.in_windows_again(x)
        return self.head(x.mean((1, 2)))

    def in_windows(self, x):
        rows, columns = x.shape[1] // self.size, x.shape[2] // self.size
        windows = x.view(-1, rows, self.size, columns, self.size, 6).permute(0, 1, 3, 2, 4, 5)
        windows = self.mix(windows.reshape(-1, self.size ** 2, 6))
        windows = (windows + windows.mean(1, keepdim=True)).relu()
        x = windows.view(-1, rows, columns, self.size, self.size, 6).permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
        return x.roll((self.shift, self.shift), (1, 2))

    @staticmethod
    def in_windows_again(x):
        return x.reshape(len(x), -1, 5).relu().view(x.shape)


MERGES = {
    'reshape': lambda x: x.reshape(
        len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, 6).permute(0, 1, 3, 4, 2, 5).flatten(3),
    'slices': lambda x: torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1),
    'unfold': lambda x: x.unfold(1, 2, 2).unfold(2, 2, 2).permute(0, 1, 2, 5, 4, 3).flatten(3),
}


@pytest.mark.parametrize('size, shift', [(2, 0), (2, 1), (4, 2)])
@pytest.mark.parametrize('merge', MERGES)
@pytest.mark.parametrize('layer', ['layer', 'merged'])
def test_windows_of_a_sample_alone(merge, layer, size, shift):
    '''The maps are those of the sample in a batch, and have all places.'''
    images, model = random_image(3, 3, 16, 32), Windows(MERGES[merge], size, shift)
    for make in (SplitCAM, partial(SplitGrad, .3), SplitLRP):
        composite = make(layer=layer)
        map = explain(composite, model, images)
        saliency = composite.saliency
        assert saliency.shape == ((3, 8, 16) if layer == 'layer' else (3, 4, 8))
        assert_close(explain(composite, model, images[1:2]), map[1:2])
        assert composite.saliency.shape == saliency[:1].shape
        assert_close(composite.saliency, saliency[1:2])


# views and parts

def test_views_in_the_batch_axis():
    '''The map of each view is that of the view alone.'''
    views = random_image(2, 3, 3, 8, 8)
    model = Classes(3, 2, lambda x: x.flatten(0, 1), lambda x: x.unflatten(0, (-1, 3)).sum(1))
    map = explain(SplitCAM('conv', .3), model, views)
    for view in range(3):
        assert_close(map[:, view], explain(SplitCAM('conv', .3), Classes(3, 2), views[:, view]), 1e-12)


@pytest.mark.parametrize('size', [2, 3, 5])
def test_parts_in_another_order_are_no_tokens(size):
    '''Of parts of which one may have a single entry, none is taken for a token before the places.'''
    model = nn.Sequential(Calling(lambda x: torch.cat(x.split(size, 3)[::-1], 3)), nn.Conv2d(3, 2, 3, padding=1))
    model.append(nn.Flatten())
    image, composite = random_image(2, 3, 6, 6), SplitCAM('0', .3)
    explain(composite, model.double().eval(), image, 1)
    assert composite.saliency.shape == (2, 6, 6)


def test_patches_in_the_batch_axis():
    '''One axis of the input is then two, which is said.'''
    def patches(x):
        return x.unflatten(3, (3, 4)).permute(0, 3, 1, 2, 4).reshape(-1, 3, 8, 4)

    model = Classes(3, 2, patches, lambda x: x.reshape(-1, 3, 4).sum(1))
    with pytest.raises(ValueError, match='6 samples are not the 2 of the batch.*patches'):
        explain(SplitCAM('conv', .3), model, random_image(2, 3, 8, 12))


@pytest.mark.parametrize('cut, place', [
    (lambda x: x[..., 2:-2, 4:], (2, 2, 4, 0)), (lambda x: x.narrow(2, 3, 17), (3, 0, 0, 0)),
    (lambda x: x[:, :, :8].split(8, 2)[0], (0, 12, 0, 0)), (lambda x: x.chunk(2, 3)[1][..., 1:], (0, 0, 17, 0)),
])
def test_model_that_cuts_a_part_out_of_its_input(cut, place):
    '''The map lies where the part does.'''
    expected = explain(SplitCAM('conv', .3), Classes(3, 2), cut(PHOTO))
    top, bottom, left, right = place
    map = explain(SplitCAM('conv', .3), Classes(3, 2, cut), PHOTO)
    assert_close(map, F.pad(expected, (left, right, top, bottom)), 1e-12)


@pytest.mark.parametrize('turn', [lambda x: x.flip(-1), lambda x: x.rot90(1, (2, 3)), lambda x: x.flip((2, 3))])
def test_model_that_turns_its_input(turn):
    expected = explain(SplitCAM('conv', .3), Classes(3, 2), turn(PHOTO))
    assert_close(turn(explain(SplitCAM('conv', .3), Classes(3, 2, turn), PHOTO)), expected, 1e-12)


@pytest.mark.parametrize('order', [
    [(0, 0), (1, 0), (0, 1), (1, 1)], [(1, 1), (0, 1), (1, 0), (0, 0)], [(0, 1), (1, 1)],
])
@pytest.mark.parametrize('join', [lambda parts: torch.cat(parts, 1), sum], ids=['cat', 'sum'])
def test_every_second_entry(order, join):
    '''As Swin and YOLO merge patches: the map lies over all of the image, but where the first entry is in no part.'''
    def merged(x):
        return join([x[..., row::2, column::2] for row, column in order])

    composite, count = SplitCAM('conv', .3), 3 if join is sum else 3 * len(order)
    map = explain(composite, Classes(count, 2, merged), PHOTO)
    skipped = min(column for _, column in order)
    image = PHOTO[..., skipped:]
    assert_close(map, F.pad(spread(composite.saliency.unsqueeze(1), image), (skipped, 0)), 1e-12)


def test_padding_that_is_cut_off_moves_nothing():
    '''As causal convolutions do.'''
    model = nn.Sequential(
        nn.Conv1d(3, 4, 3, padding=2), Calling(lambda x: x[..., :-2]), nn.ReLU(), nn.Identity(),
        Calling(lambda x: x.sum(2))
    ).double()
    composite = SplitCAM('3', .3)
    assert_close(explain(composite, model, SIGNAL).sum(1), composite.saliency, 1e-12)


def test_axis_that_is_averaged():
    '''The map does not vary along it.'''
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), Calling(lambda x: x.mean(2)), nn.Conv1d(4, 4, 1), nn.ReLU(),
        Calling(lambda x: x.sum(2))
    ).double()
    composite, image = SplitCAM('3', .3), random_image(2, 1, 6, 9)
    map = explain(composite, model, image)
    assert composite.saliency.shape == (2, 9)
    assert_close(map, composite.saliency[:, None, None].expand(2, 1, 6, 9) / 6, 1e-12)


class SignalTransformer(nn.Module):
    '''Patches of a signal as tokens, with others before and after them.'''
    def __init__(self, series):
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.mix, self.head, self.series = nn.Conv1d(3, 6, 4, 4), nn.Linear(6, 6), nn.Linear(6, 4), series
        self.layer, self.others = nn.Identity(), nn.Parameter(torch.randn(1, 3, 6))
        self.double().eval()

    def forward(self, x):
        tokens = self.patch(x.mT if self.series else x).mT
        first, last = self.others.expand(len(x), -1, -1).split([2, 1], 1)
        tokens = torch.cat([first, tokens, last], 1)
        tokens = tokens + torch.softmax(tokens @ tokens.mT, -1) @ tokens
        return self.head(F.relu(self.mix(self.layer(tokens)))).mean(1)


@pytest.mark.parametrize('series', [True, False])
def test_tokens_of_a_signal(series):
    signal = random_image(2, 32, 3) if series else random_image(2, 3, 32)
    composite = SplitCAM('layer', .3, canonizers=[DetachedStatistics()])
    map = explain(composite, SignalTransformer(series), signal).sum(2 if series else 1)
    assert composite.saliency.shape == (2, 8)
    assert_close(map, F.interpolate(composite.saliency[:, None], 32, mode='linear')[:, 0], 1e-12)


@pytest.mark.parametrize('kind', [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize('bidirectional', [False, True])
def test_layer_of_a_recurrent_network(kind, bidirectional):
    '''It returns a tuple, of which the map is read at the outputs of all steps.'''
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.steps = kind(3, 4, batch_first=True, bidirectional=bidirectional)
            self.layer, self.head = nn.Identity(), nn.Linear(8 if bidirectional else 4, 3)
            self.double().eval()

        def forward(self, x):
            return self.head(self.layer(self.steps(x)[0]).mean(1))

    series, maps = random_image(2, 5, 3), []
    for layer in ('steps', 'layer'):
        composite = SplitCAM(layer, .3, canonizers=[DetachedActivations()])
        maps.append(explain(composite, Recurrent(), series))
        assert composite.saliency.shape == (2, 5)
        assert_close(maps[-1].sum(2), composite.saliency, 1e-12)
    assert_close(*maps, 1e-12)


class TwoStreams(nn.Module):
    '''A network of an image and a signal.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.signal = Classes(3, 2), Classes(3, 1)

    def forward(self, x, y):
        return self.image(x) + self.signal(y)


@pytest.mark.parametrize('layer', ['image.conv', 'signal.conv'])
def test_layer_of_one_of_two_inputs(layer):
    '''The map has the shape of the input that the layer is about.'''
    model, inputs = TwoStreams(), (PHOTO, SIGNAL)
    which = ('image', 'signal').index(layer.partition('.')[0])
    leaves = [each.clone().requires_grad_() for each in inputs]
    with SplitCAM(layer, .3).context(model):
        maps = torch.autograd.grad(model(*leaves)[:, 2].sum(), leaves, allow_unused=True)
    assert maps[1 - which] is None or not maps[1 - which].any()
    assert_close(maps[which], explain(SplitCAM('conv', .3), (model.image, model.signal)[which], inputs[which]), 1e-12)


@pytest.mark.parametrize('function', [
    lambda x: x.sort(-1).values, lambda x: x.topk(3).values, lambda x: torch.topk(x, 1, dim=-1).values,
    lambda x: x.amax(-1, keepdim=True),
])
def test_an_order_has_no_places(function):
    '''What comes first is anywhere: a map of it has no places along this axis, however many are left.'''
    class Ordered(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Identity(), nn.Linear(1, 3)
            self.double().eval()

        def forward(self, x):
            return self.head(self.layer(function(2 * x)).reshape(-1).unsqueeze(1))

    with pytest.raises(ValueError, match='not known which axis.*channels'):
        explain(SplitCAM('layer', .3), Ordered(), random_image(3, 1, 5))


def test_an_axis_as_long_as_tokens_by_chance():
    '''Rows that are there twice are as many as pixels, which another branch lines up and nobody reads.'''
    class Twice(nn.Module):
        def __init__(self, lines_up):
            super().__init__()
            self.twice, self.last, self.lines_up = nn.Identity(), nn.Linear(40, 3), lines_up

        def forward(self, x):
            if self.lines_up:
                x.flatten(2)
            return self.last(self.twice(torch.concat((x, x), 2)).flatten(1))

    image, maps = random_image(2, 2, 5, 2), []
    for lines_up in (False, True):
        torch.manual_seed(0)
        composite = SplitGrad(.3, layer='twice', channels=1)
        explain(composite, Twice(lines_up).double().eval(), image)
        maps.append(composite.saliency)
    assert maps[0].shape == (2, 10, 2) and torch.equal(*maps)


def test_tokens_that_are_mixed_have_the_grid_of_the_patches():
    '''Which is not in the ratio of the image, and has as many places as a square.'''
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.patches, self.mix = nn.Conv2d(3, 5, (9, 4), (9, 4)), nn.Linear(36, 36)
            self.norm, self.head = nn.LayerNorm(5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.norm(self.mix(self.patches(x).flatten(2)).relu().mT).mean(1))

    composite = SplitGrad(.3, layer='norm')
    explain(composite, Mixer().double().eval(), random_image(2, 3, 36, 36))
    assert composite.saliency.shape == (2, 4, 9)


def test_single_entries_are_no_tokens():
    '''Channels of one place, which are as many as the layer's last axis is long.'''
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Calling(lambda x: x.new_zeros(3, 1, 5, 2).index_add(1, ZEROS, x))
            self.other = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            hidden = self.layer(F.interpolate(x, (5, 2), mode='bilinear', align_corners=True))
            return torch.cat([hidden.amin(3).flatten(1), self.other(x).flatten(1)], 1)

    model, composite = Model().double().eval(), SplitGrad(.5, layer='layer')
    with pytest.raises(ValueError, match='which axes are spatial'):
        explain(composite, model, random_image(3, 3, 3, 3))
    assert composite.saliency is None


ZEROS = torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize('make', [
    lambda: SplitCAM('0', .3, '+g'), lambda: SplitLRP(layer='0'), lambda: SplitGrad(), lambda: SplitLRP()
])
def test_batch_of_no_samples(make):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).double()
    image = random_image(0, 3, 8, 8).requires_grad_()
    with (composite := make()).context(model):
        map, = torch.autograd.grad(model(image).sum(), image)
    assert map.shape == image.shape
    if composite.canonizers[-1].layer is not None:
        assert composite.saliency.shape == (0, 6, 6)


class Frames(nn.Module):
    '''A model of videos whose tokens are in the order of height, width and time, behind a class token. That is a
    constant of the model's, or one of each frame, of which that of the first frame is left.'''
    def __init__(self, of_frames):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.layer, self.head = nn.Conv2d(3, 5, 8, 8), nn.Identity(), nn.Linear(5, 4)
        self.token, self.of_frames = nn.Parameter(torch.randn(1, 1, 5)), of_frames
        self.double().eval()

    def forward(self, x):
        batch, frames = x.shape[:2]
        tokens = self.patches(x.flatten(0, 1)).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)
        first = tokens[:batch, :1] if self.of_frames else self.token.expand(batch, -1, -1)
        tokens = tokens[:, 1:].unflatten(0, (batch, frames)).transpose(1, 2).flatten(1, 2)
        return self.head(F.relu(self.layer(torch.cat([first, tokens], 1)))).mean(1)


@pytest.mark.parametrize('make', [SplitCAM, lambda layer: SplitLRP(layer=layer)])
def test_tokens_behind_one_whose_places_are_not_known(make):
    '''They are where they were, and in no grid of another order that would have as many.'''
    video, saliencies = random_image(2, 4, 3, 32, 16), []
    for of_frames in (False, True):
        composite = make('layer')
        explain(composite, Frames(of_frames), video)
        saliencies.append(composite.saliency)
    assert saliencies[1].shape == (2, 4, 4, 2)
    assert_close(*saliencies)
