'''Functions without a form: what they return are values that may be read, or that go on as ones of which there is no
map.'''
import math
import sys

from ..forms.reading import read_alone
from .errors import Unsupported
from .pair import Pass, note_unmapped, pairs_in, unmapped_cause, unsupported


class ReadingPass(Pass):
    '''A forward pass in which a function without a form is a value that may be read.'''
    def apply(self, function, args, kwargs, pairs):
        '''What the model gets for a function of pairs.'''
        try:
            return super().apply(function, args, kwargs, pairs)
        except Unsupported as error:
            return value_alone(self, function, args, kwargs, pairs, error)


def value_alone(split_pass, function, args, kwargs, pairs, error):
    '''What a function without a form is on pairs: a value that may be read, or, behind and within an autograd function
    without a form, that goes on as one of which there is no map.'''
    cause = unmapped_cause(pairs)
    if cause is None and (kind := running_function()) is not None and split_pass.mode.keeps_graph:
        cause = unsupported(f'{kind.__name__}.apply (an autograd function, which calls {error.name})', args)
    output = read_alone(function, args, kwargs, error)
    if cause is None:
        return output
    for pair in pairs_in(output):
        pair.pending, pair.depth = None, -math.inf
    return note_unmapped(output, cause)


def running_function():
    '''The autograd function in whose forward this is called, or None.'''
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == 'apply' and frame.f_globals.get('__name__') == 'torch.autograd.function':
            return frame.f_locals.get('cls')  # None in a backward pass, in which the model runs again
        frame = frame.f_back
    return None


def refused(error, *gradients):
    '''Raise the error for an output of which there is no map, where anything asks for one.'''
    raise error
