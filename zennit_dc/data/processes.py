'''Several processes, as torchrun starts them.'''
import atexit
import os
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed


def local_device(device):
    '''The device of this process: for ``'cuda'`` the GPU of its local rank.

    Raises
    ------
    ValueError
        If there is no such device.
    '''
    try:
        device = torch.device(device)
        if device.type == 'cuda' and device.index is None and 'LOCAL_RANK' in os.environ:
            device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'there is no device {str(device)!r} here: {error}') from error
    return device


@contextmanager
def process_group(device):
    '''Join the processes that torchrun started, or be the only one. Once joined, a process stays in the group until it
    ends. The processes only wait for each other, so that several of them can share a GPU, as with ``'cuda:0'``.

    Parameters
    ----------
    device : :py:class:`torch.device`
        The device of this process.

    Yields
    ------
    rank : int
        The number of this process.
    size : int
        The number of processes.
    wait : callable
        A function that returns once all processes have called it.
    '''
    if int(os.environ.get('WORLD_SIZE', 1)) == 1:
        yield 0, 1, lambda: None
        return
    if not torch.distributed.is_initialized():
        if device.type == 'cuda':
            torch.cuda.set_device(device)
        # long enough to wait for the slowest process; when one fails, torchrun ends the others
        torch.distributed.init_process_group('gloo', timeout=timedelta(days=7))
        # and not earlier, as a second group could not be made
        atexit.register(torch.distributed.destroy_process_group)
    yield torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.distributed.barrier
