'''What is there before PyTorch is: help, errors, and the public names.'''
import json
import platform
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from commands import command, require_error, require_success, run_code, run_process
from processes import interrupt_at
from zennit.image import CMAPS

import zennit_dc
from zennit_dc import data, methods
from zennit_dc.cli import evaluation, main, maps
from zennit_dc.evaluation.settings import SELECTION


# what takes long to import
HEAVY = ('torch', 'torchvision', 'zennit', 'matplotlib', 'pandas', 'quantus', 'captum', 'h5py', 'numpy', 'PIL')
COMMANDS = """
import contextlib, io, json, sys
from zennit_dc.cli import main

for arguments in json.loads(sys.argv[1]):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            main(arguments, prog_name='zennit-dc')
        except SystemExit as end:
            code = end.code
    heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    print(json.dumps([code, out.getvalue(), error.getvalue(), heavy]))
"""


def answered(*commands):
    '''What one process answers to commands: the exit code, what was written, and the modules that were imported.'''
    started = [sys.executable, '-c', COMMANDS, json.dumps(commands), json.dumps(HEAVY)]
    lines = subprocess.run(started, capture_output=True, text=True, check=True).stdout.splitlines()
    for arguments, line in zip(commands, lines, strict=True):
        code, out, error, heavy = json.loads(line)
        yield subprocess.CompletedProcess(arguments, code, out, error), heavy


def test_help_is_there_at_once():
    '''It waits for no import that takes long.'''
    commands = [['--help'], ['--version'], *([name, '--help'] for name in main.commands)]
    for result, heavy in answered(*commands):
        require_success(result)
        assert result.stdout and heavy == [], result.args
    result = subprocess.run(command('--version'), capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith(f'zennit-dc, version {zennit_dc.__version__}\n')


def test_versions_that_a_report_needs():
    '''Those of what the maps are made with, without importing it.'''
    (result, heavy), = answered(['--version'])
    require_success(result)
    for package in ('torch', 'torchvision', 'zennit'):
        assert f'{package} {version(package)}' in result.stdout
    assert f'Python {platform.python_version()}' in result.stdout and heavy == []



PHOTOGRAPH = str(Path(__file__).parents[1] / 'examples' / 'coffee.jpg')


def test_wrong_arguments_are_refused_at_once():
    wrong = {
        '--bogus': ['explain', 'x.png', '--bogus'], '\'splitcam\'': ['explain', 'x.png', '--method', 'splitcan'],
        'pink': ['explain', 'x.png', '--cmap', 'pink'], '\'gradcam\'': ['attribute', 'x', '--method', 'grad-cam'],
        '4096': ['layers', 'demo', '--size', '4097'], 'nowhere.json': ['evaluate', 'x', '--outlines', 'nowhere.json'],
        'no folder nowhere': ['evaluate', 'nowhere'], 'nowhere, nor': ['attribute', 'nowhere', '--layer', 'features'],
        'no file nowhere.h5': ['analyze', 'nowhere.h5'], 'no file none.h5': ['project', PHOTOGRAPH, 'none.h5'],
    }
    for message, (result, heavy) in zip(wrong, answered(*wrong.values())):
        require_error(result, message)
        assert heavy == [], result.args


def test_wrong_files_and_classes_are_refused_before_pytorch_is_imported(tmp_path):
    names = tmp_path / 'names.txt'
    names.write_text('cat\ndog\n')
    wrong = {
        'no such file': ['explain', 'nowhere.png'], 'is a URL': ['explain', 'https://example.org/a.png'],
        'weights nowhere.pt': ['explain', PHOTOGRAPH, '--weights', 'nowhere.pt'],
        "'tiger cat' or 'Persian cat'": ['explain', PHOTOGRAPH, '--target', 'cat'],
        'no class 1000': ['explain', PHOTOGRAPH, '--against', '1000'],
        "'horse'": ['explain', PHOTOGRAPH, '--categories', str(names), '--target', 'horse'],
        'nowhere.txt cannot be read': ['explain', PHOTOGRAPH, '--categories', 'nowhere.txt'],
        "'dog'?": ['attribute', str(tmp_path), '--categories', str(names), '--target', 'doge', '--layer', 'x'],
    }
    commands = [[*command, '--out', str(tmp_path / 'out.png')] for command in wrong.values()]
    for message, (result, heavy) in zip(wrong, answered(*commands)):
        require_error(result, message)
        assert not {'torch', 'torchvision', 'zennit'} & {*heavy}, result.args


def test_constants_that_would_take_long_to_import():
    assert maps.CMAPS == tuple(CMAPS) and evaluation.SELECTION == SELECTION


def test_public_names():
    code = (
        'import sys, zennit_dc, zennit_dc.methods, zennit_dc.data\n'
        'assert "torch" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
    require_success(run_code(
        'import zennit_dc, zennit_dc.methods, zennit_dc.data\n'
        'for package in (zennit_dc, zennit_dc.methods, zennit_dc.data):\n'
        '    assert {*package.__all__} <= {*dir(package)}\n'
        '    names = {}\n'
        '    exec(f"from {package.__name__} import *", names)\n'
        '    assert {*package.__all__} <= {*names}\n'
        'assert zennit_dc.core.table.FORMS and zennit_dc.rules.Balanced is zennit_dc.Balanced'
    ))
    for package in (zennit_dc, methods, data):
        with pytest.raises(AttributeError, match='nothing'):
            _ = package.nothing


@pytest.mark.parametrize('module, name', [
    ('composites', 'SplitGrad'), ('canonizers', 'SplitCanonizer'), ('methods', 'LRPGamma'), ('methods', 'attributor'),
])
def test_split_forms_are_there_whatever_is_imported(module, name):
    code = (
        f'from zennit_dc.{module} import {name}\n'
        'import torch, zennit_dc.methods\n'
        'from zennit_dc.data import load_classifier\n'
        'splitgrad = zennit_dc.methods.attributor("splitgrad", load_classifier("demo"))\n'
        'assert zennit_dc.methods.saliency_map(splitgrad, torch.ones(1, 3, 64, 64))[1].isfinite().all()'
    )
    require_success(run_code(code))


def test_composites_alone_register_the_split_forms():
    code = 'import zennit_dc.composites, sys; assert len(sys.modules["zennit_dc.core.table"].FORMS) > 100'
    require_success(run_code(code))


NAMES = "{'split_lrp': 'SplitLRP', 'split_grad': 'SplitGrad', 'split_cam': 'SplitCAM'}"


@pytest.mark.parametrize('order', [
    ('import zennit_dc', 'from zennit.composites import COMPOSITES'),
    ('from zennit.composites import COMPOSITES', 'import zennit_dc'),
    ('import zennit_dc.rules', 'from zennit.composites import COMPOSITES'),
    ('from zennit_dc import SplitLRP', 'from zennit.composites import COMPOSITES'),
    ('from zennit_dc.methods import attributor', 'attributor', 'from zennit.composites import COMPOSITES'),
], ids=['first', 'last', 'module', 'composite', 'methods'])
def test_zennit_finds_the_composites_by_their_names(order):
    '''With nothing but the import of the package, before or after Zennit's.'''
    require_success(run_code('\n'.join([
        'import sys', *order, f'names = {NAMES}', 'import inspect, zennit.composites, zennit_dc',
        'for name, composite in names.items():',
        '    made = COMPOSITES[name](*["a layer"][:name == "split_cam"])',
        '    assert type(made) is getattr(zennit_dc, composite) is COMPOSITES[name]',
        'assert COMPOSITES is zennit.composites.COMPOSITES and "epsilon_plus" in COMPOSITES',
        'assert "class EpsilonPlus" in inspect.getsource(zennit.composites)',
        'assert zennit.composites.__spec__.loader is zennit.composites.__loader__',
        'assert not any(type(each).__module__.startswith("zennit_dc") for each in sys.meta_path)',
    ])))


def test_a_composite_by_its_name_with_a_canonizer():
    '''As in the examples that come with Zennit.'''
    require_success(run_code('\n'.join([
        'import zennit_dc, torch',
        'from torchvision.models.resnet import BasicBlock, ResNet',
        'from zennit.attribution import Gradient',
        'from zennit.composites import COMPOSITES',
        'from zennit.torchvision import ResNetCanonizer',
        'model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4).eval()',
        'composite = COMPOSITES["split_lrp"](canonizers=[ResNetCanonizer()])',
        'with Gradient(model, composite) as attributor:',
        '    output, relevance = attributor(torch.randn(2, 3, 32, 32), lambda output: output * torch.eye(4)[[1, 2]])',
        'assert relevance.shape == (2, 3, 32, 32) and relevance.abs().amax((1, 2, 3)).min() > 0',
    ])))


@pytest.mark.parametrize('first', ['zennit_dc', 'zennit_dc.logits', 'zennit_dc.composites'])
def test_zennit_may_come_last(first):
    '''Or in the midst of an import.'''
    code = (
        f'import sys, {first}\n'
        'from zennit.composites import COMPOSITES\n'
        'assert COMPOSITES["split_cam"]("a layer").readout.name == "SplitCAM"\n'
        'assert {"split_lrp", "split_grad"} <= {*COMPOSITES}'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


INTERRUPTED = """
import importlib.abc, runpy, signal, sys

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
module, out = sys.argv[1:]
sys.argv = ['zennit-dc', 'demo', '--images', '5000', '--out', out]
runpy.run_module('zennit_dc', run_name='__main__', alter_sys=True)
"""


@pytest.mark.parametrize('module', ['zennit_dc.cli', 'click', 'torch', 'torch.nn'])
def test_ctrl_c_is_one_line(module, tmp_path):
    '''While a module is imported.'''
    require_interrupted(subprocess.run(
        [sys.executable, '-c', INTERRUPTED, module, tmp_path / 'demo'], capture_output=True, text=True, timeout=60
    ))


@pytest.mark.parametrize('function', ['mkdir', 'replace'])
def test_ctrl_c_in_the_midst_is_one_line(function, tmp_path):
    '''While drawings are saved, and at the end.'''
    require_interrupted(run_process(
        'demo', '--images', 10, '--out', tmp_path / 'demo', prepare=(interrupt_at, 1, function)
    ))


def require_interrupted(result):
    '''Require one line. Python ends itself by the signal if this came while a string was executed.'''
    assert result.returncode in (130, -signal.SIGINT)
    assert [line for line in result.stderr.splitlines() if 'maps:' not in line] == ['zennit-dc: error: interrupted']


def test_no_pretrained_weights(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('torch.hub.download_url_to_file', unreachable)
    with pytest.raises(OSError, match='no route.*--weights FILE'):
        data.load_classifier('squeezenet1_0')


def unreachable(*args, **kwargs):
    raise OSError('no route to host')
