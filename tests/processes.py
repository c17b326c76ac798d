'''Processes that start as copies of one that has imported PyTorch, which takes seconds, and nothing of zennit_dc.'''
import itertools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tqdm import tqdm


FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(['torchvision', 'zennit.composites', 'matplotlib.figure', 'torch.distributed', 'quantus'])


class Process:
    '''A process that calls a function, which must be one of a module.

    Parameters
    ----------
    function, *arguments
        What it calls.
    cwd : path, optional
        Its working directory. Default is the current one.
    '''
    def __init__(self, function, *arguments, cwd=None):
        self.folder = tempfile.TemporaryDirectory()
        self.process = FORKS.Process(target=begin, args=(self.folder.name, cwd or os.getcwd(), function, arguments))
        self.process.start()

    def wait(self):
        '''Its exit code, or minus a signal, and what it has written.'''
        with self.folder:
            self.process.join(300.)
            if self.process.exitcode is None:
                self.process.kill()
                raise TimeoutError(f'a process has not ended: {self.said("stdout")} {self.said("stderr")}')
            return subprocess.CompletedProcess(
                (), self.process.exitcode, *(self.said(name) for name in ('stdout', 'stderr'))
            )

    def said(self, name):
        return (Path(self.folder.name) / name).read_text()


def choose_kernels():
    '''Do without oneDNN, if ZENNIT_DC_TESTS_MKLDNN is 0.'''
    if os.environ.get('ZENNIT_DC_TESTS_MKLDNN') == '0':
        import torch

        torch.backends.mkldnn.set_flags(False)


def begin(folder, cwd, function, arguments):
    '''What a process does.'''
    for name in ('stdout', 'stderr'):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), getattr(sys, name).fileno())
    os.chdir(cwd)
    choose_kernels()
    function(*arguments)


def call(function, *arguments, cwd=None):
    '''Call a function in a process.'''
    return Process(function, *arguments, cwd=cwd).wait()


def command_line(arguments, prepare=None, *prepared):
    '''Do what ``python -m zennit_dc`` does, after what prepares it.'''
    sys.argv = ['zennit-dc', *arguments]
    sys.path.insert(0, os.getcwd())
    if prepare is not None:
        prepare(*prepared)
    from zennit_dc.__main__ import main

    main()


def launch(arguments, count):
    '''Do what ``torchrun --standalone -m zennit_dc`` does, with processes that are copies of this one.'''
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        1, 1, count, run_id='tests', rdzv_backend='c10d', rdzv_endpoint='localhost:0', start_method='fork',
        max_restarts=0, monitor_interval=.1
    )
    elastic_launch(config, returning)(arguments)


def returning(arguments):
    '''Do what a command does, and return, which the launcher of functions waits for.'''
    try:
        command_line(arguments)
    except SystemExit as end:
        assert not end.code, end.code


def execute(code):
    '''Do what ``python -c`` does.'''
    sys.path.insert(0, os.getcwd())
    exec(code, {'__name__': '__main__'})


def script(path, arguments, prepare=None, *prepared):
    '''Do what ``python`` does with a script, after what prepares it.'''
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(Path(path).parent))
    if prepare is not None:
        prepare(*prepared)
    runpy.run_path(str(path), run_name='__main__')


def end_at(number, *names):
    '''Let a call of functions of the module os, the first of which has the number 1, end the process by SIGKILL.'''
    tqdm.set_lock(threading.RLock())  # whose own one would be left behind
    signal_at(number, signal.SIGKILL, *names)


def interrupt_at(number, *names):
    '''Let a call of functions of the module os be interrupted as by Ctrl-C.'''
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal_at(number, signal.SIGINT, *names)


def signal_at(number, sent, *names):
    numbers = itertools.count(1)

    def signalling(function):
        def call_or_end(*args, **kwargs):
            if next(numbers) == number:
                os.kill(os.getpid(), sent)
            return function(*args, **kwargs)
        return call_or_end

    for name in names:
        setattr(os, name, signalling(getattr(os, name)))
