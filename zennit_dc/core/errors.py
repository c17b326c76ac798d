'''The errors of functions without a split form, and the reasons for which a pass starts over.'''
import sys

import torch


class Unsupported(NotImplementedError):
    '''The error for a function that has no split form.

    Attributes
    ----------
    name, where : str
        The function, and the module that called it.
    '''
    def __init__(self, name, where, reason, remedy):
        super().__init__(f'{name}, called in {where}, has no split form{reason}: {remedy}')
        self.name, self.where = name, where


class NeedsSums(BaseException):
    '''Raised by products in a pass that does not compute sums. It starts over and does.'''


class SeveralUses(BaseException):
    '''Raised where a layer's output is used again after an activation, behind which its map was read. The pass starts
    over and reads it at the output itself.'''


class OtherSamples(BaseException):
    '''Raised where an input turns out to have its samples along another axis than it was taken to have. The pass starts
    over and takes that one.'''


class NeedsGraph(BaseException):
    '''Raised where a gradient by a pair is asked for in a pass of inputs that need none.'''


def describe(module, root=None):
    '''A module by its type, and its name in a model.'''
    names = {} if root is None else {child: f'\'{name}\' ' for name, child in root.named_modules()}
    kind = type(module).__name__
    return f'module {names[module]}({kind})' if module in names else f'module {kind}'


def called_in(split_pass):
    '''Describe the module in which the running function was called.'''
    frame = sys._getframe(1)
    while frame is not None and not isinstance(frame.f_locals.get('self'), torch.nn.Module):
        frame = frame.f_back
    return 'no module' if frame is None else describe(frame.f_locals['self'], split_pass and split_pass.root)
