'''Checks of a map's values, which are left to whoever records the call.'''
import threading
from contextlib import contextmanager


class Doubts(threading.local):
    '''What a thread has noted while it records: tensors of one Boolean, which say whether a map is to be checked.'''
    noted = None


DOUBTS = Doubts()


@contextmanager
def noting_doubts():
    '''A context in which no value of a map is read. Yields the list of what says whether one should have been.'''
    before, DOUBTS.noted = DOUBTS.noted, []
    try:
        yield DOUBTS.noted
    finally:
        DOUBTS.noted = before
