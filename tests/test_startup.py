'''What is there before PyTorch is: help, errors, and the public names.'''
import os
import signal
import subprocess
import sys
import time

import pytest
import zennit_dc
from commands import command, require_error, require_success
from zennit.image import CMAPS

from zennit_dc import data, methods
from zennit_dc.cli import evaluation, main, maps
from zennit_dc.evaluation.settings import SELECTION


def cpu_seconds(*arguments):
    '''The CPU time of a command, the least of three times, and its result.'''
    times = []
    for _ in range(3):
        before = os.times()
        result = subprocess.run(command(*arguments), capture_output=True, text=True)
        after = os.times()
        times.append(sum(after[2:4]) - sum(before[2:4]))
    return min(times), result


@pytest.mark.parametrize('arguments', [
    ['--help'], ['--version'], *([name, '--help'] for name in main.commands)
], ids=' '.join)
def test_help_is_there_at_once(arguments):
    seconds, result = cpu_seconds(*arguments)
    require_success(result)
    assert seconds < 1., seconds


@pytest.mark.parametrize('arguments, message', [
    (['explain', 'x.png', '--bogus'], '--bogus'),
    (['explain', 'x.png', '--method', 'splitcan'], '\'splitcam\''),
    (['explain', 'x.png', '--cmap', 'pink'], 'pink'),
    (['attribute', 'x', '--method', 'grad-cam'], '\'gradcam\''),
    (['layers', 'demo', '--size', '4097'], '4096'),
    (['evaluate', 'x', '--outlines', 'nowhere.json'], 'nowhere.json'),
], ids=lambda each: ' '.join(each) if isinstance(each, list) else '')
def test_wrong_arguments_are_refused_at_once(arguments, message):
    seconds, result = cpu_seconds(*arguments)
    require_error(result, message)
    assert seconds < 1., seconds


def test_constants_that_would_take_long_to_import():
    assert maps.CMAPS == tuple(CMAPS) and evaluation.SELECTION == SELECTION


def test_public_names():
    code = (
        'import sys, zennit_dc, zennit_dc.methods, zennit_dc.data\n'
        'assert "torch" not in sys.modules\n'
        'for package in (zennit_dc, zennit_dc.methods, zennit_dc.data):\n'
        '    assert {*package.__all__} <= {*dir(package)}\n'
        '    names = {}\n'
        '    exec(f"from {package.__name__} import *", names)\n'
        '    assert {*package.__all__} <= {*names}\n'
        'assert zennit_dc.split.FORMS and zennit_dc.rules.Balanced is zennit_dc.Balanced'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
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
    subprocess.run([sys.executable, '-c', code], check=True)


def test_composites_alone_register_the_split_forms():
    code = 'import zennit_dc.composites, sys; assert len(sys.modules["zennit_dc.split"].FORMS) > 100'
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('seconds', [.3, 1., 2.])
def test_ctrl_c_is_one_line(seconds, tmp_path):
    arguments = ('demo', '--images', 5000, '--out', tmp_path / 'demo')
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background are told to ignore it
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, before)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        try:
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    # Python ends itself by the signal if this came while a string was executed, which a shell calls 130 as well
    assert process.returncode in (130, -signal.SIGINT)
    assert [line for line in error.splitlines() if 'maps:' not in line] == ['zennit-dc: error: interrupted']


def test_no_pretrained_weights(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('torch.hub.download_url_to_file', unreachable)
    with pytest.raises(OSError, match='no route.*--weights FILE'):
        data.load_classifier('squeezenet1_0')


def unreachable(*args, **kwargs):
    raise OSError('no route to host')
