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
from helpers import assert_close, rounding
from PIL import Image
from torch import nn
from zennit.attribution import Gradient

from zennit_dc import Balanced, SplitGrad, SplitLRP, SplitTensor
from zennit_dc.core.pair import FORMS

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


def snippets():
    '''The Python code of the README.'''
    return re.findall(r'```python\n(.*?)```', (EXAMPLES.parent / 'README.md').read_text(), re.DOTALL)


def test_use_in_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'examples').symlink_to(EXAMPLES)
    state = torchvision.models.vgg16(weights=None).state_dict()
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', lambda *args, **kwargs: state)
    names = {}
    exec(snippets()[0], names)
    assert names['composite'].saliency.shape == (1, 14, 14)
    assert Image.open('map.png').size == (224, 224)


def test_models_in_the_readme():
    '''In two lines, with random weights, and a small configuration for the one that has none by its name.'''
    pytest.importorskip('timm', reason='the extra "test" is not installed')
    transformers = pytest.importorskip('transformers', reason='the extra "test" is not installed')
    if not transformers.utils.is_torch_available():
        pytest.skip('this version of transformers needs a later version of PyTorch')
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, num_labels=1000
    )
    code = snippets()[2].replace('pretrained=True', 'pretrained=False').replace('convnext_tiny', 'convnext_atto')
    code = code.replace(".from_pretrained('google/vit-base-patch16-224')", '(config)')
    names = {'Gradient': Gradient, 'image': torch.randn(1, 3, 64, 64), 'config': config}
    with pytest.warns(UserWarning, match='canonizers=\'auto\' takes'):
        exec(code, names)
    assert names['attribution'].shape == (1, 3, 64, 64) and names['attribution'].any()


def test_additions_in_the_readme():
    '''A form, a rule, a method and a metric, each of which does what it says.'''
    pytest.importorskip('quantus')
    from zennit_dc.data import IMAGENET_PREPROCESSING, Classifier
    from zennit_dc.evaluation.metrics import METRICS, Explained
    from zennit_dc.methods import METHODS, attributor, saliency_map

    names = {}
    try:
        exec(snippets()[4], names)
        pair = SplitTensor.of(torch.tensor([[1., 2., 0.], [3., -4., 0.], [0., 0., 0.]]))
        assert torch.trace(pair).difference == -3 and torch.trace(pair).stream_sum == 5
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
        ).eval()
        model[-1].weight.data *= 1000.  # so that gradients are clipped
        image = torch.randn(1, 3, 8, 8)
        composites = [SplitGrad(.3), SplitGrad(.3, layer_map=[((nn.Conv2d,), names['Clipped'](.3))])]
        first, second = (saliency_map(Gradient(model, composite), image, 1)[1] for composite in composites)
        assert second.isfinite().all() and not torch.equal(first, second)
        classifier = Classifier('', model, IMAGENET_PREPROCESSING())
        map = saliency_map(attributor('smooth-splitgrad', classifier, alpha=.4), image, 1)[1]
        assert map.shape == (1, 8, 8) and map.any()
        explained = Explained(model, image, map > 0, torch.tensor([1]), map, False, None, None)
        assert METRICS['peak'].score(explained) == map.max()
    finally:
        FORMS.pop(torch.trace, None), METHODS.pop('smooth-splitgrad', None), METRICS.pop('peak', None)


def test_difference_of_the_readme():
    torch.manual_seed(0)
    names = {'images': torch.randint(256, (64, 1, 28, 28), dtype=torch.uint8), 'labels': torch.randint(10, (64,))}
    exec(snippets()[1], names)
    model = names['model'].double()
    inputs = (names['images'][:8] / 255.).double().requires_grad_()
    h = model.h(1. - inputs)
    classes = names['output'].argmax(1)
    gradient, = torch.autograd.grad(h[torch.arange(8), classes].sum(), inputs)
    tolerance = max(
        rounding(names['model'].float(), (1. - inputs[[i]]).float(), unit=unit) for i, unit in enumerate(classes)
    )
    assert_close(names['missing'].double(), gradient, tolerance)


@pytest.mark.slow(10)
def test_benchmark():
    '''The whole script with two methods, as it starts a process for each of them, and its measurements with all.'''
    result = run_script(
        EXAMPLES / 'benchmark.py', '--models', 'resnet18', '--batch', 2, '--size', 64, '--rounds', 2, '--one-class',
        '--methods', 'SplitLRP'
    )
    assert result.returncode == 0, result.stderr
    first, _, *lines = result.stdout.splitlines()
    assert '2 images of 64 × 64, all of one class; median of 2 rounds' in first
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    assert [row[1] for row in rows[2:]] == ['Saliency', 'SplitLRP']
    for row in rows[2:]:
        median, least, largest = map(float, re.fullmatch(r'(.*) \((.*) to (.*)\)', row[2]).groups())
        assert 0 < least <= median <= largest
        assert abs(float(row[4]) * float(row[3]) - 2) < .1 and all(float(cell) >= 0 for cell in row[3:])
    # the gradient's memory is its own, and that of SplitLRP, which keeps two streams, is larger
    assert rows[2][6] == rows[2][8] == '1.00' and float(rows[3][8]) > 1.


@pytest.fixture(name='benchmark')
def fixture_benchmark():
    '''The script, and arguments of small measurements.'''
    device = torch.device('cpu')
    arguments = Namespace(batch=2, size=64, rounds=1, device=device, dtype='float32', one_class=False, alpha=None)
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


def test_refusals_of_the_benchmark(benchmark, capsys):
    '''A peer may refuse a model, but no method of ours.'''
    script, args = benchmark
    script['measure']('resnet18', 'DeepLift (Captum)', args)
    assert capsys.readouterr().out.startswith('refused DeepLift needs a module of its own for each call')
    with pytest.raises(ValueError, match='DeepLift needs'):
        script['METHODS']['SplitGrad'] = script['METHODS']['DeepLift (Captum)']
        script['measure']('resnet18', 'SplitGrad', args)


def test_classes_of_the_benchmark(benchmark):
    '''Composites are told that images share a class if they do, and the shift.'''
    script, args = benchmark

    class Sharing(SplitGrad):
        def __init__(self, alpha, shared, **kwargs):
            super().__init__(alpha, **kwargs)
            self.given = alpha, shared

    for one_class in (False, True):
        args.one_class, args.alpha = one_class, .4 if one_class else None
        model, layer, input, relevance = script['load']('resnet18', args)
        assert layer == 'layer4' and input.shape == (2, 3, 64, 64)
        assert relevance.argmax(1).tolist() == [0, int(not one_class)]
        given = script['ours'](model, args, Sharing).composite.given
        assert given == ((.4, True) if one_class else (Balanced(), False))
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


@pytest.mark.parametrize('name', ['squeezenet', 'efficientnet_lite0', 'drawings'])
def test_tables_of_the_results_are_those_of_the_scores(name):
    pd = pytest.importorskip('pandas')
    pytest.importorskip('quantus', reason='the extra "evaluation" is not installed')
    from zennit_dc.evaluation.tables import markdown, results_table

    folder = EXAMPLES / 'results'
    scores = pd.read_csv(folder / name / 'settings.csv', keep_default_na=False, dtype=str)
    scores = scores.melt(['method', 'setting', 'image'], var_name='metric', value_name='score')
    scores = scores[scores['score'] != '']
    table = markdown(results_table(scores.assign(score=scores['score'].astype(float))))
    assert table in (folder / 'README.md').read_text(encoding='utf-8')
