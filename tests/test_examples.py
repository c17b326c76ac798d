'''The examples as processes.'''
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from zennit_dc import SplitTensor
from zennit_dc.split import FORMS

EXAMPLES = Path(__file__).parents[1] / 'examples'
PHOTOGRAPH = EXAMPLES / 'coffee.jpg'


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope='module', name='weights')
def fixture_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'random.pt'
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_0(weights=None).state_dict(), path)
    return path


def test_explain_photo(tmp_path, weights):
    figure = tmp_path / 'figure.png'
    result = run(
        'explain_photo.py', PHOTOGRAPH, PHOTOGRAPH, '--weights', weights, '--layer', 'features.9', '--alpha', .45,
        '--target', 967, '--out', figure
    )
    assert result.returncode == 0, result.stderr
    assert Image.open(figure).size[0] > 1000
    maps = sorted(path.name for path in (tmp_path / 'figure_maps').iterdir())
    methods = ['Gradient', 'LRP-gamma', 'LayerCAM', 'SplitCAM', 'SplitGrad', 'SplitLRP']
    assert maps == [f'coffee-{index}_{method}.png' for index in (1, 2) for method in methods]
    for path in (tmp_path / 'figure_maps').iterdir():
        image = Image.open(path).convert('RGB')
        assert image.size == (224, 224) and len(image.getcolors(2 ** 24)) > 10


@pytest.mark.parametrize('arguments, message', [
    (['missing.jpg'], 'missing.jpg cannot be read'),
    ([__file__], 'cannot be read as an image'),
    ([PHOTOGRAPH, '--model', 'perceptron'], 'perceptron'),
    ([PHOTOGRAPH, '--layer', 'features.99'], 'features.99'),
    ([PHOTOGRAPH, '--model', 'alexnet', '--layer', 'features.8'], 'cannot be loaded into alexnet'),
    ([PHOTOGRAPH, '--target', '1000'], 'no class 1000'),
    ([PHOTOGRAPH, '--alpha', '0.7'], 'alpha'),
])
def test_explain_photo_with_bad_arguments(tmp_path, weights, arguments, message):
    result = run('explain_photo.py', *arguments, '--weights', weights, '--out', tmp_path / 'figure.png')
    assert result.returncode == 1
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / 'figure.png').exists()


def test_code_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (EXAMPLES.parent / 'README.md').read_text()
    use, _, own = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    names = {}
    exec(use.replace("weights='DEFAULT'", 'weights=None'), names)
    assert names['composite'].saliency.shape == (1, 14, 14)
    assert Image.open('map.png').size == (224, 224)
    try:
        exec(own, names)
        pair = SplitTensor.of(torch.tensor([[1., 2., 0.], [3., -4., 0.], [0., 0., 0.]]))
        assert torch.trace(pair).difference == -3 and torch.trace(pair).stream_sum == 5
    finally:
        FORMS.pop(torch.trace, None)


def test_benchmark():
    result = run('benchmark.py', '--models', 'resnet18', '--batch', 1, '--rounds', 1)
    assert result.returncode == 0, result.stderr
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in result.stdout.splitlines()]
    assert [row[1] for row in rows[2:]] == [
        'Model splitting', 'Saliency', 'LayerCAM', 'LRP-γ (EpsilonGammaBox)', 'LRP (EpsilonPlus)', 'SplitGrad',
        'SplitCAM', 'SplitLRP'
    ]
    assert all(float(cell) >= 0 for row in rows[2:] for cell in row[2:])
