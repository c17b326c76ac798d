'''The errors of functions without a split form, and what makes a pass start over.'''
import sys
from traceback import walk_stack

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


LOGITS = 'explain the logits, with zennit_dc.Logits(model, drop=\'softmax\') in place of the model'

SUMS = 'sums are computed everywhere, as products need them'
SEVERAL_USES = 'the layer\'s output is used again after its activation, so that the map is read at the output itself'
SECOND_AXIS = 'the samples are along the second axis of the input'
FIRST_AXIS = 'the samples are along the first axis all the same, as nothing follows the second one'
GRAPH = 'a gradient is asked for within the model, where no input needs one'


class StartOver(BaseException):
    '''Raised where a pass finds out what was not known when it began: the model runs once more, from the start.'''
    @property
    def found(self):
        '''What the pass has found out, one of the above.'''
        return self.args[0]


def describe(module, root=None):
    '''A module by its type, and its name in a model.'''
    names = {} if root is None else {child: f'\'{name}\' ' for name, child in root.named_modules()}
    kind = type(module).__name__
    return f'module {names[module]}({kind})' if module in names else f'module {kind}'


def called_in(split_pass):
    '''Describe the module in which the running function was called.'''
    callers = (frame.f_locals.get('self') for frame, _ in walk_stack(sys._getframe(1)))
    module = next((caller for caller in callers if isinstance(caller, torch.nn.Module)), None)
    return 'no module' if module is None else describe(module, split_pass and split_pass.root)


def other_pass(name, is_over):
    '''The error for a function that is called with a pair of another forward pass.'''
    if is_over and torch._C._current_graph_task_id() != -1:
        return RuntimeError(
            f'{name}, called in {called_in(None)}, is run again by a checkpoint after the end of the composite\'s'
            ' context: call the backward pass inside of the context'
        )
    return RuntimeError(
        f'{name}, called in {called_in(None)}, has a split pair of another forward pass: a module keeps what it'
        ' has seen; clear it, or give the module a form with zennit_dc.split_form. Methods that put values of'
        ' their own at a layer, as Captum\'s LayerIntegratedGradients does, are not defined for split pairs:'
        ' name the layer in the composite (layer=...), and call the method for the input'
    )


def probabilities(name):
    '''The error for a model that ends with softmax, or the like.'''
    return NotImplementedError(
        f'the model ends with {name}, but a probability is no sum that could be split: {LOGITS}'
    )


def independence(output, leaves):
    '''The error for an output in which no part is a pair, and some leaves are no numbers.'''
    unknown = [leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)]
    if not unknown:
        return NotImplementedError(
            f'no part of the output, {type(output).__name__}, depends on the input: the model has computed it from'
            ' values that have left the graph, as .detach(), torch.no_grad() and new tensors make them'
        )
    where = '' if unknown[0] is output else f' in a {type(output).__name__}'
    return NotImplementedError(
        f'the output of the model is an object of type {type(unknown[0]).__name__}{where}, in which no tensors are'
        ' found: return tensors, or tuples, lists, dicts or dataclasses of them (a generator as list(generator)),'
        ' or explain a module that returns the tensor of interest'
    )
