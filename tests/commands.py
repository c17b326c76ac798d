'''Commands of the command line, in this process or in one of their own.'''
import subprocess
import sys
import warnings

import processes
from click.testing import CliRunner

from zennit_dc.cli import main


ATTRIBUTE = ('--model', 'demo', '--layer', 'residual', '--method', 'splitcam', '--batch-size', '4')


def run(*arguments):
    '''Run a command in this process, which is the quick way: an import of PyTorch takes seconds. It does not show what
    is deprecated, as Python does not, but for pytest.'''
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        result = CliRunner().invoke(main, [str(each) for each in arguments], prog_name='zennit-dc')
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def command(*arguments):
    '''The command line of a command.'''
    return [sys.executable, '-m', 'zennit_dc', *map(str, arguments)]


def run_process(*arguments, cwd=None, prepare=()):
    '''Run a command in a process, after a function that prepares it is called there with its arguments.'''
    return processes.call(processes.command_line, [str(each) for each in arguments], *prepare, cwd=cwd)


def run_processes(*arguments, count=2):
    '''Run a command in several processes that share the work, by torchrun.'''
    return processes.call(processes.launch, [str(each) for each in arguments], count)


def run_code(code):
    '''Run Python code in a process that has imported PyTorch, but nothing of the package.'''
    return processes.call(processes.execute, code)


def run_script(path, *arguments, cwd=None):
    '''Run a script in such a process.'''
    return processes.call(processes.script, path, [str(each) for each in arguments], cwd=cwd)


def require_success(result):
    '''Require that a command did what it should.'''
    assert result.returncode == 0, result.stderr


def require_error(result, *messages):
    '''Require that a command ended with one line, which has these words.'''
    assert result.returncode not in (0, None)
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith('zennit-dc: error: ')
    for message in messages:
        assert message in result.stderr
