'''The examples.'''
import re
import runpy
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from commands import run_script
from PIL import Image

from zennit_dc import Balanced, SplitGrad, SplitLRP


EXAMPLES = Path(__file__).parents[1] / 'examples'
DATA = Path(__file__).parents[2] / 'shared' / 'data'
PHOTOGRAPH = EXAMPLES / 'coffee.jpg'


@pytest.fixture(scope='module', name='weights')
def fixture_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'random.pt'
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_0(weights=None).state_dict(), path)
    return path


@pytest.mark.slow(2)
def test_explain_photo(tmp_path, weights):
    result = run_script(EXAMPLES / 'explain_photo.py', PHOTOGRAPH, weights, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() in torchvision.models.SqueezeNet1_0_Weights.DEFAULT.meta['categories']
    maps = sorted(tmp_path.iterdir())
    assert [path.name for path in maps] == ['splitcam.png', 'splitgrad.png', 'splitlrp.png']
    for path in maps:
        image = Image.open(path).convert('RGB')
        assert image.size == (224, 224) and len(image.getcolors(2 ** 24)) > 10
    helped = run_script(EXAMPLES / 'explain_photo.py', '--help', cwd=tmp_path)
    assert helped.returncode == 0 and 'photograph' in helped.stdout and maps == sorted(tmp_path.iterdir())


def test_concepts(tmp_path, monkeypatch, capsys):
    pytest.importorskip('crp', reason='zennit-crp is not installed (pip install --no-deps zennit-crp)')
    monkeypatch.setattr(sys, 'argv', ['concepts.py', '--channels', '2', '--out', str(tmp_path / 'concepts.png')])
    runpy.run_path(str(EXAMPLES / 'concepts.py'), run_name='__main__')
    assert Image.open(tmp_path / 'concepts.png').size[0] > 300
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all('channels' in line for line in lines)


@pytest.mark.skipif(not DATA.is_dir(), reason=f'{DATA} is not there')
def test_virelay_project(tmp_path, monkeypatch, capsys):
    model = pytest.importorskip('virelay.model', reason='the extra "virelay" is not installed')
    images, labels = np.load(DATA / 'cifar10' / 'test_1000.npz').values()
    np.savez(tmp_path / 'images.npz', x=images[::10], y=labels[::10])
    weights = DATA / 'weights' / 'resnet20_cifar10.pt'
    arguments = ('virelay_project.py', tmp_path / 'images.npz', weights, '--out', tmp_path / 'cifar10')
    monkeypatch.setattr(sys, 'argv', [str(each) for each in arguments])
    runpy.run_path(str(EXAMPLES / 'virelay_project.py'), run_name='__main__')
    assert f'python -m virelay {tmp_path / "cifar10" / "project.yaml"}' in capsys.readouterr().out
    project = model.Project(str(tmp_path / 'cifar10' / 'project.yaml'))
    assert [each.human_readable_name for each in project.get_analysis_categories('Spectral')] == [
        'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'
    ]
    predictions = [project.get_attribution(index).prediction.argmax() for index in range(100)]
    assert np.mean(predictions == labels[::10]) > .7  # 80.4 % on all of them
    project.close()


@pytest.mark.slow(10)
def test_benchmark(tmp_path):
    '''The whole script with two methods, as it starts a process for each of them, and its measurements with all.'''
    pd = pytest.importorskip('pandas')
    page = tmp_path / 'speed.md'
    page.write_text('By hand.\n<!-- begin cpu-2 -->\nold\n<!-- end cpu-2 -->\nAnd this.\n')
    result = run_script(
        EXAMPLES / 'benchmark.py', '--models', 'resnet18', '--batch', 2, '--size', 64, '--rounds', 2,
        '--methods', 'SplitLRP', '--out', tmp_path / 'speed'
    )
    assert result.returncode == 0, result.stderr
    assert '2 images of 64 × 64, each of another class; medians of 2 rounds' in result.stdout
    assert result.stdout.strip() in page.read_text() and 'old' not in page.read_text()
    assert page.read_text().startswith('By hand.') and page.read_text().endswith('And this.\n')
    header, _, *rows = [line.split('|')[1:-1] for line in result.stdout.splitlines() if line.startswith('|')]
    assert [header[0].strip(), *(row[0].strip() for row in rows)] == ['time / memory', 'Saliency', 'SplitLRP']
    assert rows[0][1].strip().endswith(' / 1.00')
    found = pd.read_csv(tmp_path / 'speed' / 'cpu-2.csv').set_index('method')
    assert list(found.index) == ['Saliency', 'SplitLRP'] and (found['least'] > 0.).all()
    assert (found['time'].between(found['least'], found['most'])).all()
    np.testing.assert_allclose(found['images_per_second'] * found['seconds'], 2., rtol=1e-4)
    # the gradient's memory is its own, and that of SplitLRP, which keeps two streams, is larger
    assert found.loc['Saliency', ['peak', 'increase']].eq(1.).all() and found.loc['SplitLRP', 'increase'] > 1.


@pytest.fixture(name='benchmark')
def fixture_benchmark():
    '''The script, and arguments of small measurements.'''
    device = torch.device('cpu')
    arguments = Namespace(batch=2, size=64, rounds=1, seconds=None, device=device, dtype='float32', alpha=None)
    return runpy.run_path(str(EXAMPLES / 'benchmark.py')), arguments


@pytest.mark.slow(5)
def test_measurements_of_the_benchmark(benchmark):
    script, args = benchmark
    methods = list(script['METHODS'])
    assert methods == [
        'Model splitting', 'Saliency', 'LayerCAM', 'Grad-CAM (Captum)', 'DeepLift (Captum)', 'LRP-γ (EpsilonGammaBox)',
        'LRP (EpsilonPlus)', 'SplitGrad', 'SplitCAM', 'SplitLRP'
    ]
    timings = script['times']('squeezenet1_0', methods, args)
    assert list(timings) == methods
    assert min(time for ratios, median in timings.values() for time in (*ratios, median)) > 0
    for method in methods:
        before, peak = script['memory']('squeezenet1_0', method, args)
        assert peak >= before > 0


@pytest.mark.slow(5)
def test_recordings_of_the_benchmark(benchmark):
    script, args = benchmark
    args.recorded, args.methods, args.size, args.batch = True, None, 32, 1
    assert script['chosen_methods'](args) == [
        'Saliency', 'Saliency, recorded', 'LRP (EpsilonPlus)', 'LRP (EpsilonPlus), recorded', 'SplitGrad',
        'SplitGrad, recorded', 'SplitLRP', 'SplitLRP, recorded'
    ]
    args.methods = ['SplitCAM', 'LayerCAM']
    methods = script['chosen_methods'](args)
    assert methods == ['Saliency', 'Saliency, recorded', 'LayerCAM', 'SplitCAM', 'SplitCAM, recorded']
    args.recorded = False
    assert script['chosen_methods'](args) == ['Saliency', 'LayerCAM', 'SplitCAM']
    args.methods = ['SplitCAM, recorded']
    assert script['chosen_methods'](args) == ['Saliency', 'SplitCAM', 'SplitCAM, recorded']
    model, layer, input, relevance = script['load']('resnet18', args)
    plain, recorded = (
        script['attributor_of'](method, model, layer, args) for method in ('SplitCAM', 'SplitCAM, recorded')
    )
    for _ in range(2):
        assert all(map(torch.equal, recorded(input, relevance), plain(input.clone(), relevance)))
    assert [type(each).__name__ for each in recorded.recordings.values()] == ['Replay']


def test_page_of_replays(benchmark):
    '''A table of all sizes and batches that fits, and three sentences where all that they are about was measured.'''
    pd, script = pytest.importorskip('pandas'), benchmark[0]
    names = [each for method in script['TITLES'] for each in (method, f'{method}, recorded')]
    found = pd.DataFrame([
        ('resnet18', size, batch, method, 10.5, 10., 11.025, 9., 12., .1, batch / .1, 3, 'Measured.')
        for size in script['SIZES'] for batch in script['BATCHES'] for method in names
    ], columns=script['RECORDED_COLUMNS'])
    made = script['recorded_parts']('cpu', found)
    assert len(re.findall(r'[.](?=\s|$)', made['message'])) == 3
    assert 'EpsilonPlus takes 10.50 to 10.50' in made['message']
    first, _, row, *_ = made['cpu'].splitlines()
    assert first.startswith('| plain/replay |') and row.startswith('| 1 of 8 px    | 10.50 / 10.50 |')
    assert '3 to 3 rounds' in made['cpu'] and 'by 10%' in made['cpu']
    assert list(script['recorded_parts']('cpu', found[found['method'] != 'SplitLRP'])) == ['cpu']


def test_refusals_of_the_benchmark(benchmark, capsys):
    '''A peer may refuse a model, but no method of ours.'''
    script, args = benchmark
    script['measure']('resnet18', 'DeepLift (Captum)', args)
    assert capsys.readouterr().out.startswith('refused DeepLift needs a module of its own for each call')
    with pytest.raises(ValueError, match='DeepLift needs'):
        script['METHODS']['SplitGrad'] = script['METHODS']['DeepLift (Captum)']
        script['measure']('resnet18', 'SplitGrad', args)


def test_classes_of_the_benchmark(benchmark):
    '''Each image explains another class, and composites are told the shift.'''
    script, args = benchmark

    for args.alpha in (None, .4):
        model, layer, input, relevance = script['load']('resnet18', args)
        assert layer == 'layer4' and input.shape == (2, 3, 64, 64)
        assert relevance.argmax(1).tolist() == [0, 1]
        assert script['ours'](model, args, SplitGrad).composite.alpha == (args.alpha or Balanced())
        assert script['ours'](model, args, SplitLRP).composite.saliency is None


@pytest.mark.parametrize('name, model', [
    ('squeezenet', 'squeezenet1_0'), ('efficientnet_lite0', 'efficientnet_lite0'), ('drawings', 'demo'),
])
def test_options_of_the_results(name, model):
    from zennit_dc.cli.evaluation import evaluate, read_options, settings_of

    options = read_options(evaluate, EXAMPLES / 'results' / f'{name}.toml')
    context = evaluate.make_context('evaluate', [] if 'source' in options else ['photos'], default_map=options)
    assert context.params['model'] == model
    with context:
        settings = [setting for text in context.params['given'] for setting in settings_of(text)]
    methods = {setting.method for setting in settings}
    assert len(settings) == len(set(settings)) and {'splitlrp', 'splitcam', 'splitgrad', 'random'} < methods
    assert {'integrated-gradients', 'lrp-gamma', 'lrp-epsilon-plus', 'image-center'} < methods
