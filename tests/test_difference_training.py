'''Training that can be killed and resumed, the example that trains on MNIST, and the gallery of prototypes.'''
import copy
import json
import runpy
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import explain
from torch import nn

from zennit_dc import SplitGrad
from zennit_dc.demo import demo_network, demo_preprocessing
from zennit_dc.figures import color, concept_gallery, stream_overlay
from zennit_dc.models import Classifier
from zennit_dc.networks import accuracy, mlp_maxout, train
from zennit_dc.networks.train import Checkpoint, batches

EXAMPLE = Path(__file__).parents[1] / 'examples' / 'mnist_difference.py'
MNIST = Path(__file__).parents[2] / 'shared' / 'data' / 'mnist'


def drawn(count, seed):
    '''Images of which the brightest of ten columns tells the class.'''
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    images = torch.randint(0, 120, (count, 1, 28, 28), generator=generator)
    images[torch.arange(count), 0, :, 2 * labels + 4] += 120
    return images.to(torch.uint8), labels


def network(variant='dicin', seed=0):
    torch.manual_seed(seed)
    return mlp_maxout(variant, width=8)


class Killed(Exception):
    pass


def killed_behind(epoch):
    '''A context in which a training is killed when it has saved the state behind an epoch.'''
    save = Checkpoint.save

    def save_and_die(checkpoint, number):
        save(checkpoint, number)
        if number == epoch:
            raise Killed
    return patch.object(Checkpoint, 'save', save_and_die)


def same_weights(one, other):
    return all(torch.equal(weight, other.state_dict()[key]) for key, weight in one.state_dict().items())


def test_training_learns():
    model = train(network(), *drawn(600, 0), epochs=8, batch_size=50, learning_rate=.02, progress=False)
    assert not model.training
    assert accuracy(model, *drawn(200, 1)) > .6
    floats, labels = drawn(200, 1)
    assert accuracy(model, floats / 255., labels) == accuracy(model, floats, labels)


def test_training_that_was_killed_goes_on(tmp_path):
    def run(**options):
        model = network()
        model.h = nn.Sequential(model.h, nn.Dropout(.1))  # so that more than the order of images is random
        return train(model, *drawn(90, 0), epochs=3, batch_size=20, progress=False, **options)

    whole = run()
    path = tmp_path / 'state'
    for epoch in (1, 2):
        with pytest.raises(Killed), killed_behind(epoch):
            run(checkpoint=path)
    assert torch.load(path, weights_only=True)['epoch'] == 2
    with patch.object(torch, 'randperm', wraps=torch.randperm) as order:
        resumed = run(checkpoint=path)
    assert order.call_count == 1
    assert same_weights(resumed, whole)
    assert same_weights(run(checkpoint=path), whole)
    assert [each.name for each in tmp_path.iterdir()] == ['state']


def test_a_single_image_in_the_last_batch():
    rows = batches(torch.arange(7), 3)
    assert [each.tolist() for each in rows] == [[0, 1, 2], [3, 4, 5, 6]]
    assert [len(each) for each in batches(torch.arange(8), 3)] == [3, 3, 2]
    train(network(), *drawn(41, 0), epochs=2, batch_size=20, progress=False)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('autocast', [None, torch.bfloat16])
def test_types(dtype, autocast):
    '''Images of any type are those of the network, and a step in bfloat16 is about one in float32.'''
    images, labels = drawn(60, 0)

    def run(images, labels, autocast):
        return train(
            network().to(dtype), images, labels, epochs=2, batch_size=20, autocast=autocast, progress=False
        )

    trained = run(images, labels, autocast)
    assert next(trained.parameters()).dtype == dtype
    assert same_weights(trained, run(images.to(dtype) / 255., labels.int(), autocast))
    assert accuracy(trained, images, labels) == accuracy(trained, images.to(torch.float64) / 255., labels.int())
    exact = run(images, labels, None)
    change, error = (
        sum((one - two).square().sum() for one, two in zip(exact.parameters(), other.parameters()))
        for other in (network().to(dtype), trained)
    )
    assert error <= .2 * change if autocast else error == 0.


def test_checkpoint_is_whole_or_not_written(tmp_path):
    '''Killed while it writes the second, the first is still there.'''
    path, data = tmp_path / 'state', drawn(40, 0)

    def fail(state, file):
        Path(file).write_bytes(b'half')
        raise Killed

    with pytest.raises(Killed), killed_behind(1):
        train(network(), *data, epochs=2, checkpoint=path, progress=False)
    before = path.read_bytes()
    with pytest.raises(Killed), patch.object(torch, 'save', fail):
        train(network(), *data, epochs=2, checkpoint=path, progress=False)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_training_errors_name_the_thing(tmp_path):
    images, labels = drawn(40, 0)
    for function in (train, accuracy):
        for data, message in (
            ((images, labels[1:]), 'there are 40 images, but 39 labels'),
            ((images, labels[:, None]), r'integers of shape \(count,\), not torch.int64 \(40, 1\)'),
            ((images, labels.float()), 'labels must be integers'), ((images.int(), labels), 'not of torch.int32'),
        ):
            with pytest.raises(ValueError, match=message):
                function(network(), *data)
    for options in ({'epochs': 0}, {'batch_size': 1}):
        with pytest.raises(ValueError, match='at least one epoch, and two images in a batch'):
            train(network(), images, labels, **options)
    with pytest.raises(ValueError, match='there is no folder .*nowhere for the checkpoint state: make it'):
        train(network(), images, labels, checkpoint=tmp_path / 'nowhere' / 'state')
    model = network()
    with torch.no_grad():
        next(model.parameters()).fill_(float('nan'))
    with pytest.raises(FloatingPointError, match='loss is not finite in epoch 1: use a smaller learning rate'):
        train(model, images, labels, progress=False)
    with pytest.raises(FloatingPointError, match='g.linear1.weight is not finite in epoch 1: use a smaller learning'):
        train(network(), images, labels, epochs=1, batch_size=40, weight_decay=float('inf'), progress=False)
    path = tmp_path / 'state'
    train(network(), images, labels, epochs=1, checkpoint=path, progress=False)
    with pytest.raises(ValueError, match=r'which differs in learning_rate \(0.03 there, 1.0 here'):
        train(network(), images, labels, epochs=1, learning_rate=1., checkpoint=path, progress=False)
    for other, data, key in (
        (network('dm'), (images, labels), 'initial weights, network'),
        (network(seed=1), (images, labels), 'initial weights'),
        (network(), (255 - images, labels), 'images'), (network(), (images, labels.flip(0)), 'images'),
    ):
        before = copy.deepcopy(other)
        with pytest.raises(ValueError, match=f'of another training, which differs in {key}: '):
            train(other, *data, epochs=1, checkpoint=path, progress=False)
        assert same_weights(before, other)
    path.write_bytes(b'something else')
    with pytest.raises(ValueError, match='is no checkpoint of a training'):
        train(network(), images, labels, epochs=1, checkpoint=path, progress=False)


def run_example(*arguments):
    return CliRunner().invoke(runpy.run_path(str(EXAMPLE))['main'], [str(each) for each in arguments])


@pytest.fixture(scope='module', name='folder')
def fixture_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mnist')
    for part, count, seed in (('train', 256, 0), ('test', 100, 1)):
        images, labels = drawn(count, seed)
        np.savez(folder / f'mnist_{part}.npz', x=images[:, 0].numpy(), y=labels.numpy())
    return folder


def test_example(folder, tmp_path):
    out = tmp_path / 'runs'
    options = ['--out', out, '--epochs', 1, '--variant', 'ic', '--seed', 0]
    result = run_example(folder, *options)
    assert result.exit_code == 0, result.output
    first = json.loads((out / 'mlp_maxout_ic_0.json').read_text())
    assert first['variant'] == 'ic' and first['epochs'] == 1 and 0 <= first['accuracy'] <= 1
    assert sorted(path.name for path in out.iterdir()) == ['mlp_maxout_ic_0.json', 'mlp_maxout_ic_0.pt']
    trained = mlp_maxout('ic')
    trained.load_state_dict(torch.load(out / 'mlp_maxout_ic_0.pt', weights_only=True))
    with np.load(folder / 'mnist_test.npz') as arrays:
        images, labels = torch.from_numpy(arrays['x'])[:, None], torch.from_numpy(arrays['y'])
    assert accuracy(trained, images, labels) == first['accuracy']
    (out / 'mlp_maxout_ic_0.pt').unlink()

    result = run_example(folder, *options, '--variant', 'mon')
    assert result.exit_code == 0, result.output
    results = [json.loads((out / f'mlp_maxout_{variant}_0.json').read_text()) for variant in ('ic', 'mon')]
    assert results[0] == first and results[1]['variant'] == 'mon'
    assert not (out / 'mlp_maxout_ic_0.pt').exists()  # was not trained again
    assert result.stdout.splitlines() == [
        '| Model | ic | mon |', '|---|---|---|', '| mlp_maxout | ' + ' | '.join(
            '{0:.2f} [{0:.2f}, {0:.2f}]'.format(100 * each['accuracy']) for each in results
        ) + ' |'
    ]

    result = run_example(folder, *options[:4], '--variant', 'none', '--network', 'cnn_maxout', '--scale', .02)
    assert result.exit_code == 0, result.output
    third = json.loads((out / 'cnn_maxout_none_0.json').read_text())
    assert (third['batch_size'], third['learning_rate'], third['scale']) == (64, .0005, .02)

    result = run_example(folder, *options, '--batch-size', 32)
    assert result.exit_code == 1
    assert 'has mlp_maxout ic 0 with other settings, batch_size (256 there, 32 here)' in result.stderr


def test_example_that_was_killed_goes_on(folder, tmp_path):
    '''By SIGKILL, at any moment behind the first epoch; the weights become the same.'''
    def command(out):
        return [sys.executable, EXAMPLE, folder, '--out', out, '--variant', 'dmin', '--epochs', '12']

    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    subprocess.run(command(whole), check=True, capture_output=True)
    process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (killed / 'mlp_maxout_dmin_0.checkpoint').exists():
        assert process.poll() is None
        time.sleep(.01)
    process.kill()
    process.wait()
    assert not (killed / 'mlp_maxout_dmin_0.json').exists()
    checkpoint = killed / 'mlp_maxout_dmin_0.checkpoint'
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:100])  # a training from the start, whose weights were the same, would not read it
    refused = subprocess.run(command(killed), capture_output=True, text=True)
    assert refused.returncode == 1 and 'is no checkpoint of a training' in refused.stderr
    checkpoint.write_bytes(content)
    subprocess.run(command(killed), check=True, capture_output=True)
    one, other = (torch.load(out / 'mlp_maxout_dmin_0.pt', weights_only=True) for out in (whole, killed))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert not (killed / 'mlp_maxout_dmin_0.checkpoint').exists()


def test_example_refuses_other_data(tmp_path):
    np.savez(tmp_path / 'mnist_train.npz', x=np.zeros((2, 28, 28), np.uint8), y=np.array([3, 10]))
    result = run_example(tmp_path, '--out', tmp_path / 'runs')
    assert result.exit_code == 1 and 'must have classes from 0 to 9' in result.stderr
    (tmp_path / 'mnist_train.npz').write_bytes((tmp_path / 'mnist_train.npz').read_bytes()[:100])
    result = run_example(tmp_path, '--out', tmp_path / 'runs')
    assert result.exit_code == 1 and 'cannot be read as digits' in result.stderr
    np.savez(tmp_path / 'mnist_train.npz', x=np.zeros((2, 32, 32), np.uint8), y=np.zeros(2))
    result = run_example(tmp_path, '--out', tmp_path / 'runs')
    assert result.exit_code == 1 and 'must have x of shape (count, 28, 28)' in result.stderr
    result = run_example(tmp_path, '--out', tmp_path / 'runs', '--variant', 'dcm')
    assert result.exit_code == 2 and '\'dcm\' is not one of' in result.stderr


@pytest.mark.skipif(not MNIST.is_dir(), reason=f'{MNIST} is not there')
def test_pictures(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    for part in ('train', 'test'):
        with np.load(MNIST / f'mnist_{part}.npz') as arrays:
            np.savez(tmp_path / f'mnist_{part}.npz', x=arrays['x'][::20], y=arrays['y'][::20])
    variants = ('none', 'mon', 'diff', 'dicin')
    chosen = [option for variant in variants for option in ('--variant', variant)]
    trained = run_example(tmp_path, '--out', tmp_path / 'runs', '--epochs', 3, '--batch-size', 50, *chosen)
    assert trained.exit_code == 0, trained.output
    script = runpy.run_path(str(EXAMPLE.with_name('mnist_pictures.py')))
    result = CliRunner().invoke(script['main'], [
        str(each) for each in (tmp_path, tmp_path / 'runs', '--out', tmp_path / 'pictures', '--count', 50)
    ])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / 'pictures').iterdir()) == [
        'classes_mlp_maxout_dicin.png', 'comparison_mlp_maxout.png', 'digits_mlp_maxout.png'
    ]
    rows = [line.strip('| ').split(' | ') for line in result.output.splitlines() if line.startswith('| ')]
    assert [tuple(row[:2]) for row in rows[2:]] == [
        ('mlp_maxout None', 'positive'), ('mlp_maxout None', 'negative'), ('mlp_maxout Mon', 'positive'),
        ('mlp_maxout Mon', 'negative'), ('mlp_maxout Diff.None', 'g'), ('mlp_maxout Diff.None', 'h'),
        ('mlp_maxout DICIN', 'g'), ('mlp_maxout DICIN', 'h'),
        ('mlp_maxout None, split (α = 0.4)', 'g'), ('mlp_maxout None, split (α = 0)', 'g'),
    ]
    for row in [rows[1], *rows[2:5], *rows[6:]]:  # of a monotone network, no gradient is negative
        assert sum(map(float, row[2:])) == pytest.approx(1., abs=.002)  # three digits behind the point
    assert rows[5][2:] == ['nan'] * 3


@pytest.mark.skipif(not MNIST.is_dir(), reason=f'{MNIST} is not there')
def test_digits_of_mnist_are_learned():
    '''A small difference of monotone networks on a tenth of the digits.'''
    data = []
    for part in ('train', 'test'):
        with np.load(MNIST / f'mnist_{part}.npz') as arrays:
            data.append((torch.from_numpy(arrays['x'])[::10, None], torch.from_numpy(arrays['y']).long()[::10]))
    torch.manual_seed(0)
    model = train(
        mlp_maxout('dmin', width=64), *data[0], epochs=3, batch_size=50, learning_rate=.02, progress=False
    )
    assert accuracy(model, *data[1]) > .8


# figure 5

def test_concept_gallery():
    classifier = Classifier('demo', demo_network(), demo_preprocessing(), [f'name {index}' for index in range(10)])
    inputs = torch.randn(2, 3, 64, 64)
    figure = concept_gallery(classifier, inputs, 3)
    axes = figure.get_axes()
    assert len(axes) == 6 and figure.get_suptitle() == 'Prototypes of name 3, α = 0.25'
    assert [axis.get_title() for axis in axes[1:3]] == ['gradient of g', 'gradient of h']
    for row, input in enumerate(inputs):
        np.testing.assert_allclose(axes[3 * row].get_images()[0].get_array(), classifier.pixels(input))
        for column, stream in ((1, 'g'), (2, 'h')):
            map = explain(SplitGrad(.25, stream), classifier.model, inputs, 3)[row].sum(0)
            shown = axes[3 * row + column].get_images()[0].get_array()
            assert np.array_equal(shown, np.asarray(color(map).convert('RGB')))
    figure.canvas.draw()


def test_concept_gallery_names_what_is_wrong():
    classifier = Classifier('demo', demo_network(), demo_preprocessing())
    with pytest.raises(ValueError, match=r'must have the shape \(count, channels, height, width\).*not \(3, 64, 64\)'):
        concept_gallery(classifier, torch.zeros(3, 64, 64), 0)
    with pytest.raises(ValueError, match='there is no class 10'):
        concept_gallery(classifier, torch.zeros(1, 3, 64, 64), 10)


# figures 3 and 8

def test_stream_overlay():
    image = torch.tensor([[0., 1.], [.5, .5]])
    g, h = torch.tensor([[1., 0.], [.1, .4]]), torch.tensor([[.5, 0.], [-9., .4]])
    colors = stream_overlay(image, g, h, threshold=.2, decay=.25)
    # ranks: 0 and 1 at the first pixel, 2 and 3 at the last; the pixel between is below the threshold
    opacity = torch.exp(-torch.arange(4, dtype=torch.float64))
    for row, column, red, blue in ((0, 0, opacity[0], opacity[1]), (1, 1, opacity[2], opacity[3])):
        rest = image[row, column] * (1. - red) * (1. - blue)
        both = 1. - (1. - red) * (1. - blue)
        expected = torch.stack([rest + both * red / (red + blue), rest, rest + both * blue / (red + blue)])
        torch.testing.assert_close(colors[row, column], expected, rtol=1e-12, atol=0.)
    assert colors[0, 1].tolist() == [1., 1., 1.] and colors[1, 0].tolist() == [.5, .5, .5]


def test_stream_overlay_by_one_scale():
    '''Compared with larger maps, nothing may be above the threshold.'''
    image, map = torch.rand(5, 5, dtype=torch.float64), torch.rand(5, 5)
    gray = image[:, :, None].expand(-1, -1, 3)
    torch.testing.assert_close(stream_overlay(image, map, map, largest=6.), gray, rtol=0., atol=0.)
    assert not torch.equal(stream_overlay(image, map, map), gray)
    for nothing in (torch.zeros(5, 5), -map):
        torch.testing.assert_close(stream_overlay(image, nothing, nothing, threshold=0.), gray, rtol=0., atol=0.)
    assert (stream_overlay(image, map, -map)[:, :, 2] <= image + 1e-12).all()


def test_stream_overlay_names_what_is_wrong():
    maps = torch.zeros(3, 4, 4)
    with pytest.raises(ValueError, match=r'one shape \(height, width\), not \(4, 4\), \(4, 4\) and \(1, 4, 4\)'):
        stream_overlay(maps[0], maps[1], maps[:1])
    with pytest.raises(ValueError, match='threshold must be in'):
        stream_overlay(*maps, threshold=2.)
    with pytest.raises(ValueError, match='decay positive'):
        stream_overlay(*maps, decay=0.)
    with pytest.raises(FloatingPointError, match='not finite'):
        stream_overlay(maps[0], maps[1], maps[2] / 0.)
