'''Progress: a bar in a terminal, and else a line each minute.'''
import sys
from time import time

from tqdm import tqdm


MINUTE = 60.


class Lines(tqdm):
    '''A progress bar for files and pipes. It writes a line if no bar of this kind has written one for a minute.

    Parameters
    ----------
    interval : float, optional
        The number of seconds between two lines.
    *args, **kwargs
        As :py:class:`tqdm.tqdm` takes them.
    '''
    written = time()

    def __init__(self, *args, interval=MINUTE, **kwargs):
        self.interval = interval
        super().__init__(*args, ascii=True, ncols=100, **kwargs)

    def display(self, msg=None, pos=None):
        '''Write a line, if it is time for one. tqdm's own thread asks every ten seconds.'''
        if msg is None and time() - Lines.written >= self.interval:
            Lines.written = time()
            self.fp.write(f'{self}\n')
            self.fp.flush()

    def clear(self, nolock=False):
        '''Leave all lines.'''

    def close(self):
        '''End without a line of its own.'''
        self.last_print_t = 0.  # as if nothing had been displayed
        super().close()


def begin():
    '''Count the first minute from now on.'''
    Lines.written = time()


def progress_bar(*args, shown=True, **kwargs):
    '''A progress bar of :py:mod:`tqdm` where there is a terminal, and else one that writes a line each minute.

    Parameters
    ----------
    shown : bool, optional
        Whether to show it at all.
    *args, **kwargs
        As :py:class:`tqdm.tqdm` takes them.
    '''
    return (tqdm if sys.stderr.isatty() else Lines)(*args, disable=not shown, **kwargs)
