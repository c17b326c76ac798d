'''Training that can be killed and resumed.'''
import copy
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers import drawn
from torch import nn

from zennit_dc.networks import accuracy, mlp_maxout, train
from zennit_dc.networks.train import Checkpoint, batches


MNIST = Path(__file__).parents[2] / 'shared' / 'data' / 'mnist'


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
