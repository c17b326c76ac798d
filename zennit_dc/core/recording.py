'''Checks of a map's values, which are left to whoever records the call.'''
from contextlib import contextmanager
from contextvars import ContextVar


DOUBTS = ContextVar('doubts', default=None)
'''What has been noted while a thread records: tensors of one Boolean, which say whether a map is to be checked.'''


@contextmanager
def noting_doubts():
    '''A context in which no value of a map is read. Yields the list of what says whether one should have been.'''
    token = DOUBTS.set([])
    try:
        yield DOUBTS.get()
    finally:
        DOUBTS.reset(token)
