'''How the tests are run: by one thread in each process, and the slowest first.'''
import os

# before torch is imported, and for the processes that tests start, too: two workers share the cores
for library in ('OMP', 'MKL', 'OPENBLAS', 'NUMBA'):
    os.environ[f'{library}_NUM_THREADS'] = '1'

from collections import Counter  # noqa: E402

import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    '''Start with what takes longest: the tests of a group, which one worker runs, by the sum of their times.'''
    times = Counter()
    for item in items:
        slow = item.get_closest_marker('slow')
        times[unit(item)] += slow.args[0] if slow else 0
    items.sort(key=lambda item: -times[unit(item)])


def unit(item):
    '''What one worker runs: a group of tests, or a test.'''
    group = item.get_closest_marker('xdist_group')
    return item.nodeid if group is None else (group.args or (group.kwargs['name'],))
