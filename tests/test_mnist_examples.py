'''The examples that train differences of networks on MNIST, and draw what these see.'''
import csv
import json
import runpy
import signal
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from click.testing import CliRunner
from helpers import drawn

from zennit_dc.networks import accuracy, mlp_maxout


EXAMPLE = Path(__file__).parents[1] / 'examples' / 'mnist_difference.py'
MNIST = Path(__file__).parents[2] / 'shared' / 'data' / 'mnist'


def run_example(*arguments):
    return CliRunner().invoke(runpy.run_path(str(EXAMPLE))['main'], [str(each) for each in arguments])


@pytest.fixture(scope='module', name='folder')
def fixture_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mnist')
    for part, count, seed in (('train', 256, 0), ('test', 100, 1)):
        images, labels = drawn(count, seed)
        np.savez(folder / f'mnist_{part}.npz', x=images[:, 0].numpy(), y=labels.numpy())
    return folder


def test_smooth_relus(folder, tmp_path):
    main = runpy.run_path(str(EXAMPLE.with_name('smooth_relu.py')))['main']
    options = ['--out', tmp_path / 'runs', '--beta', 1, '--beta', 'inf', '--seed', 0, '--seed', 1]
    options += ['--count', 128, '--maps', 4, '--epochs']
    results = []
    for _ in range(2):  # the second time, nothing is trained again
        result = CliRunner().invoke(main, [str(each) for each in (folder, *options, 2)])
        assert result.exit_code == 0, result.output
        weights = tmp_path / 'runs' / 'inf_1.pt'
        written = weights.with_name('smooth_relu.csv').read_text(), (tmp_path / 'runs.md').read_text()
        results.append((*written, weights.stat().st_mtime))
    assert results[0] == results[1]
    header, _, *rows = [line for line in results[0][1].splitlines() if line.startswith('|')]
    assert results[0][0].splitlines()[0].startswith('beta,seed,accuracy') and len(results[0][0].splitlines()) == 5
    assert ' EF ' in header and [row.split('|')[1].strip() for row in rows] == ['1', '∞ (ReLU)']
    assert (tmp_path / 'runs' / 'smooth_relu.png').is_file()
    result = CliRunner().invoke(main, [str(each) for each in (folder, *options, 3)])
    assert result.exit_code == 1 and 'epochs (2 there, 3 here)' in result.output


@pytest.mark.slow(5)
def test_example(folder, tmp_path):
    out = tmp_path / 'runs'
    options = ['--out', out, '--epochs', 1, '--variant', 'ic', '--seed', 0]
    result = run_example(folder, *options)
    assert result.exit_code == 0, result.output
    first = json.loads((out / 'mlp_maxout_ic_0.json').read_text())
    assert first['variant'] == 'ic' and first['epochs'] == 1 and 0 <= first['accuracy'] <= 1
    assert sorted(path.name for path in out.iterdir()) == [
        'accuracies.csv', 'mlp_maxout_ic_0.json', 'mlp_maxout_ic_0.pt'
    ]
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
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in result.stdout.splitlines()]
    paper = {'IC': '98.36', 'Mon': '98.30'}
    assert rows[0] == ['accuracy in %', 'mlp_maxout', 'paper'] and rows[2:] == [
        [title, f'{100 * each["accuracy"]:.2f}', paper[title]] for title, each in zip(('IC', 'Mon'), results)
    ]
    assert result.stdout.strip() in (tmp_path / 'runs.md').read_text()

    result = run_example(folder, *options[:4], '--variant', 'none', '--network', 'cnn_maxout', '--scale', .02)
    assert result.exit_code == 0, result.output
    third = json.loads((out / 'cnn_maxout_none_0.json').read_text())
    assert (third['batch_size'], third['learning_rate'], third['scale']) == (64, .0005, .02)

    result = run_example(folder, *options, '--batch-size', 32)
    assert result.exit_code == 1
    assert 'has mlp_maxout ic 0 with other settings, batch_size (256 there, 32 here)' in result.stderr


@pytest.mark.slow(4)
def test_example_that_was_killed_goes_on(folder, tmp_path):
    '''By SIGKILL, before the second epoch's checkpoint is in its place; the weights become the same.'''
    def options(out):
        return [str(each) for each in (folder, '--out', out, '--variant', 'dmin', '--epochs', 3)]

    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert run_example(*options(whole)).exit_code == 0
    result = processes.call(processes.script, EXAMPLE, options(killed), processes.end_at, 2, 'replace')
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not (killed / 'mlp_maxout_dmin_0.json').exists()
    checkpoint = killed / 'mlp_maxout_dmin_0.checkpoint'
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:100])  # a training from the start, whose weights were the same, would not read it
    refused = run_example(*options(killed))
    assert refused.exit_code == 1 and 'is no checkpoint of a training' in refused.stderr
    checkpoint.write_bytes(content)
    assert run_example(*options(killed)).exit_code == 0
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


@pytest.mark.slow(5)
def test_pictures(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    for part, count, seed in (('train', 512, 0), ('test', 200, 1)):
        images, labels = drawn(count, seed)
        np.savez(tmp_path / f'mnist_{part}.npz', x=images[:, 0].numpy(), y=labels.numpy())
    variants = ('none', 'mon', 'diff', 'dicin')
    chosen = [option for variant in variants for option in ('--variant', variant)]
    options = ('--epochs', 4, '--batch-size', 32, '--learning-rate', .01)  # by which all become right
    trained = run_example(tmp_path, '--out', tmp_path / 'runs', *options, *chosen)
    assert trained.exit_code == 0, trained.output
    script = runpy.run_path(str(EXAMPLE.with_name('mnist_pictures.py')))
    result = CliRunner().invoke(script['main'], [
        str(each) for each in (tmp_path, tmp_path / 'runs', '--out', tmp_path / 'pictures', '--count', 50)
    ])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / 'pictures').iterdir()) == [
        'classes_mlp_maxout_dicin.png', 'comparison_mlp_maxout.png', 'digits_mlp_maxout.png', 'strokes.csv'
    ]
    with (tmp_path / 'pictures' / 'strokes.csv').open(newline='', encoding='utf-8') as file:
        _, area, *rows = csv.reader(file)
    assert [tuple(row[1:3]) for row in rows] == [
        ('None', 'positive'), ('None', 'negative'), ('Mon', 'positive'), ('Mon', 'negative'), ('Diff.None', 'g'),
        ('Diff.None', 'h'), ('DICIN', 'g'), ('DICIN', 'h'), ('None, split (α = 0.4)', 'g'),
        ('None, split (α = 0)', 'g'),
    ]
    for row in [area, *rows[:3], *rows[4:]]:
        assert sum(map(float, row[3:])) == pytest.approx(1., abs=.002)  # three digits behind the point
    assert not any(rows[3][3:])  # of a monotone network, no gradient is negative
    shown = [line.strip('| ').split('|')[0].strip() for line in result.output.splitlines() if line.startswith('| ')]
    assert shown == ['mlp_maxout', 'None', 'Mon', 'Diff.None', 'DICIN', 'None, split (α = 0.4)', 'None, split (α = 0)']


@pytest.mark.long
@pytest.mark.slow(200)
@pytest.mark.skipif(not MNIST.is_dir(), reason=f'{MNIST} is not there')
def test_maps_of_smooth_networks_are_smoother(tmp_path):
    '''And have less that SmoothGrad could take away.'''
    main = runpy.run_path(str(EXAMPLE.with_name('smooth_relu.py')))['main']
    options = [MNIST, '--out', tmp_path, '--beta', 1, '--beta', 'inf']
    result = CliRunner().invoke(main, [str(each) for each in options])
    assert result.exit_code == 0, result.output
    found = {
        beta: [json.loads((tmp_path / f'{beta}_{seed}.json').read_text()) for seed in (0, 1)] for beta in ('1', 'inf')
    }
    smooth, kinked = (
        {name: np.mean([each[name] for each in runs]) for name in ('frequency', 'smoothgrad frequency gap')}
        for runs in found.values()
    )
    assert kinked['frequency'] >= smooth['frequency'] + .008
    assert kinked['smoothgrad frequency gap'] >= 5 * smooth['smoothgrad frequency gap']
