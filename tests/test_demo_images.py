'''The package's own drawings, and the network trained on them.'''
import runpy
import sys
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from commands import require_success, run_script
from hypothesis import given, settings, strategies as st
from PIL import Image
from zennit.attribution import Gradient

from zennit_dc import SplitGrad
from zennit_dc.demo import CLASSES, DemoNetwork, demo_network, demo_preprocessing, draw, draw_batch, drawing
from zennit_dc.demo.network import WEIGHTS


measure = pytest.importorskip('skimage.measure', reason='the extra "evaluation" is not installed')

COUNT = 500
numbers = st.integers(0, 2 ** 40)

EXAMPLES = Path(__file__).parents[1] / 'examples'


@cache
def fresh_drawings():
    '''Drawings of a series that the network was neither trained nor tested on, made once.'''
    return draw_batch(COUNT, 7)


@pytest.fixture(scope='module', name='network')
def fixture_network():
    return demo_network()


def inputs(images):
    '''Images as the network takes them.'''
    return demo_preprocessing()(torch.from_numpy(images).permute(0, 3, 1, 2))


def same(one, other):
    return all(np.array_equal(left, right) for left, right in zip(one, other))


def layers(seed, index):
    '''The drawing, and what was blended into it: pairs of fill and distance, those of the object last.'''
    calls = []

    def blend(canvas, fill, distance):
        calls.append((fill, distance))
        return original(canvas, fill, distance)

    original = drawing.blend
    with patch.object(drawing, 'blend', blend):
        return draw(seed, index), calls


@settings(max_examples=30, deadline=None)
@given(numbers, numbers)
def test_a_drawing_depends_on_its_two_numbers_alone(seed, index):
    first = draw(seed, index)
    np.random.seed(seed % 1000)
    draw(seed, index + 1)
    assert same(first, draw(seed, index))
    assert not np.array_equal(first.image, draw(seed + 1, index).image)
    assert not np.array_equal(first.image, draw(seed, index + 1).image)


def test_a_batch_has_the_series_in_its_order():
    images, masks, labels = draw_batch(12, 3, start=8)
    assert images.shape == (12, 64, 64, 3) and masks.shape == (12, 64, 64) and labels.shape == (12,)
    assert (images.dtype, masks.dtype, labels.dtype) == (np.uint8, bool, np.int64)
    for row in range(12):
        assert same(draw(3, 8 + row), (images[row], masks[row], labels[row]))
    assert [len(array) for array in draw_batch(0, 3)] == [0, 0, 0]


@pytest.mark.parametrize('arguments', [(-1, 0), (0, -1)])
def test_negative_numbers_are_refused(arguments):
    with pytest.raises(ValueError):
        draw(*arguments)


def test_labels_are_balanced():
    _, _, labels = fresh_drawings()
    assert len(set(CLASSES)) == 10
    assert np.bincount(labels).tolist() == [COUNT // 10] * 10


@settings(max_examples=50, deadline=None)
@given(numbers, st.integers(0, 1000))
def test_the_mask_is_what_the_object_covers(seed, index):
    (image, mask, _), calls = layers(seed, index)
    fill, distance = calls[-1]
    assert np.array_equal(mask, distance <= 0)
    inside = distance <= -.5
    assert inside.any() and np.array_equal(image[inside], np.rint(fill[inside] * 255))

    covered = drawing.blend(np.zeros(image.shape), np.ones(3), distance)[..., 0]
    assert np.array_equal(covered >= .5, mask)
    # the smooth edge of a sharp corner may reach the border, but the object does not
    assert max(covered[[0, -1]].max(), covered[:, [0, -1]].max()) < .5


@pytest.mark.parametrize('label', range(10))
def test_the_mask_has_the_shape_of_the_class(label):
    _, masks, labels = fresh_drawings()
    shape = CLASSES[label].split()[1]
    # the area of a shape of outer radius 1
    area = {
        'disk': np.pi, 'square': 2, 'triangle': 3 ** .5 * 3 / 4, 'ring': np.pi * (1 - .48 ** 2),
        'star': 5 * .5 * np.sin(np.pi / 5),
    }[shape]
    for mask in masks[labels == label]:
        assert measure.label(mask, connectivity=2).max() == 1
        assert measure.euler_number(mask, connectivity=2) == (0 if shape == 'ring' else 1)
        assert 11 - .5 < np.sqrt(mask.sum() / area) < 16 + .5


def test_objects_are_anywhere():
    _, masks, _ = fresh_drawings()
    assert masks[:, 32, 32].mean() < .4
    assert masks.mean(0)[8:56, 8:56].all()


@pytest.mark.parametrize('label', range(10))
def test_distractors_have_the_texture_or_a_shape_but_not_both(label):
    texture = CLASSES[label].split()[0]
    with patch.object(drawing, 'fabric', side_effect=drawing.fabric) as fabric:
        _, calls = layers(5, label)
        names = [call.args[1] for call in fabric.call_args_list]
    assert sorted(names[:2]) == ['checkered', 'striped'] and names[2:] == [texture]
    *plain, one, other, _ = calls
    assert one[0].shape == other[0].shape == (64, 64, 3)
    assert len(plain) >= 2 + 3 and all(fill.shape == (3,) for fill, _ in plain)
    assert all((distance < 0).any() for _, distance in calls[-5:])


def test_preprocessing_only_normalizes_a_drawing():
    image = draw(4, 2).image
    expected = (torch.from_numpy(image).permute(2, 0, 1) / 255 - .5) / .25
    assert torch.equal(demo_preprocessing()(Image.fromarray(image)), expected)
    assert torch.equal(inputs(image[None])[0], expected)


def test_checkpoint():
    assert WEIGHTS.stat().st_size < 1_000_000
    state = torch.load(WEIGHTS, weights_only=True)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}
    assert {tensor.device.type for tensor in state.values()} == {'cpu'}
    assert DemoNetwork().load_state_dict(state)
    with patch.object(torch, 'load', wraps=torch.load) as load:
        assert not demo_network().training
    assert load.call_args.kwargs == {'map_location': 'cpu', 'weights_only': True}


@torch.no_grad()
def test_the_network_knows_fresh_drawings(network):
    images, _, labels = fresh_drawings()
    predicted = network(inputs(images)).argmax(1)
    assert (predicted == torch.from_numpy(labels)).float().mean() > .93


def test_shapes_of_the_maps(network):
    shapes = {}
    for name in ('features', 'residual', 'pool'):
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    network(torch.zeros(2, 3, 64, 64))
    assert shapes == {'features': (2, 64, 16, 16), 'residual': (2, 64, 16, 16), 'pool': (2, 64, 1, 1)}


def test_split_form_is_exact(network):
    images, _, labels = fresh_drawings()
    batch = inputs(images[:10])
    expected = network(batch).detach()
    composite = SplitGrad()
    with composite.context(network) as split:
        assert torch.equal(split(batch.requires_grad_()), expected)
    with Gradient(network, composite) as attributor:
        output, attribution = attributor(batch, torch.eye(10)[torch.from_numpy(labels[:10])])
    assert torch.equal(output.detach(), expected)
    assert attribution.shape == batch.shape and attribution.isfinite().all() and attribution.any()


def test_training(tmp_path):
    out = tmp_path / 'weights.pt'
    arguments = ('--out', out, '--samples', '200', '--held-out', '50', '--epochs', '1', '--seed', '3')
    result = run_script(EXAMPLES / 'train_demo.py', *arguments)
    require_success(result)
    assert result.stdout.endswith('% of 50 held-out drawings are classified correctly\n')
    assert [path.name for path in tmp_path.iterdir()] == ['weights.pt']
    assert DemoNetwork().load_state_dict(torch.load(out, weights_only=True))


@pytest.mark.parametrize('arguments, message', [
    (['--out', 'missing/weights.pt'], 'there is no folder'),
    (['--out', ''], 'is a directory'),
    (['--out', 'weights.pt', '--epochs', '0'], '--epochs'),
    (['--out', 'weights.pt', '--device', 'abacus'], 'abacus'),
])
def test_training_with_bad_arguments(tmp_path, arguments, message, monkeypatch):
    option, name, *others = arguments
    monkeypatch.setattr(sys, 'argv', ['train.py', option, str(tmp_path / name), *others])
    monkeypatch.delitem(sys.modules, 'train_demo', raising=False)
    with pytest.raises(SystemExit) as status:
        runpy.run_module('train_demo', run_name='__main__')
    # a status that is a string is what Python prints to stderr before it exits with one
    assert message in status.value.code and len(status.value.code.splitlines()) == 1
    assert not any(tmp_path.iterdir())
