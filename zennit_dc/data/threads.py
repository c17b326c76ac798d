'''What runs in a thread beside the model: reading what comes next, and writing what is done.'''
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


def ahead(items):
    '''The items of an iterable, of which a thread makes the next one while one is used.

    Parameters
    ----------
    items : iterable
        The items. What its iterator raises is raised where the item would have been.

    Yields
    ------
    object
        Each item, in their order.
    '''
    threads, end = torch.get_num_threads(), object()
    with ThreadPoolExecutor(1, initializer=take_one_core) as executor:
        iterator = executor.submit(iter, items).result()
        torch.set_num_threads(threads)  # of all but that thread
        coming = executor.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = executor.submit(next, iterator, end)
            yield item


def take_one_core():
    '''Let PyTorch compute on one core in this thread, as the others are the model's. It sets the number for new
    threads, too, until it is set again.'''
    torch.set_num_threads(1)
    torch.get_num_threads()  # when first asked, a thread takes the number for new ones


@contextmanager
def meanwhile(function):
    '''Call a function of what is done in a thread, one call at a time and in their order.

    Parameters
    ----------
    function : callable
        The function, e.g. one that writes a file.

    Yields
    ------
    callable
        A function of the same arguments, which returns nothing and waits for the call before, of which it raises the
        error. At the end, the last call is waited for.
    '''
    calls = []

    def call(*args, **kwargs):
        while calls:
            calls.pop().result()
        calls.append(executor.submit(function, *args, **kwargs))

    with ThreadPoolExecutor(1) as executor:
        yield call
        while calls:
            calls.pop().result()
