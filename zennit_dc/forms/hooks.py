'''Hooks that look at gradients, which are those of the difference; in a backward pass that makes a map, they are what
comes there of the sensitivities or of the relevance.'''
from collections import OrderedDict
from functools import partial

import torch
from torch.autograd.graph import register_multi_grad_hook
from torch.utils.hooks import RemovableHandle

from ..core.pair import SplitTensor
from ..core.registry import split_form
from .reading import reading


class ChangedGradient(RuntimeError):
    '''The error for a hook that changes the gradient of a pair in a backward pass that makes a map.'''


@split_form(torch.Tensor.register_hook)
@reading
def register_hook(pair, hook):
    difference, split_pass = pair.difference, pair.split_pass
    if not difference.requires_grad:  # as below the layer at which the map is read
        return RemovableHandle({})

    def watched(gradient):
        changed = hook(gradient)
        if changed is not None and changed is not gradient and split_pass.makes_map():
            raise ChangedGradient(
                'a hook that was given to register_hook changes the gradient of a split pair, of which it sees the'
                ' difference\'s alone: let it return None, or give the module that calls it a form with'
                ' zennit_dc.split_form'
            )
        return changed

    return difference.register_hook(watched)


@split_form(torch.Tensor.retain_grad)
@reading
def retain_grad(pair):
    if pair.difference.requires_grad:
        pair.difference.retain_grad()


@split_form(torch.Tensor.grad.__get__)
@reading
def grad(pair, *args):
    return pair.difference.grad


for getter in ('retains_grad', 'is_leaf', '_version', 'output_nr'):
    @split_form(getattr(torch.Tensor, getter).__get__)
    @reading
    def of_difference(pair, *args, getter=getter):
        return getattr(pair.values[0], getter)


def watched_of(each):
    '''The tensor of an argument or output whose gradient is watched: of a pair, the difference.'''
    return each.difference if isinstance(each, SplitTensor) else each if isinstance(each, torch.Tensor) else None


class BackwardHooks:
    '''The backward hooks of a module, which are called with the gradients of its inputs and outputs, of pairs those
    of the differences, until this is removed. They only look: of an input that is used elsewhere, they see the whole
    gradient.

    Parameters
    ----------
    module : :py:class:`torch.nn.Module`
        The module.
    '''
    def __init__(self, module):
        self.module, self.inputs = module, []
        self.hooks, self.pre_hooks = module._backward_hooks, module._backward_pre_hooks
        module._backward_hooks, module._backward_pre_hooks = OrderedDict(), OrderedDict()
        self.handles = [
            module.register_forward_pre_hook(self.before, prepend=True), module.register_forward_hook(self.behind)
        ]

    def remove(self):
        '''Give the module its hooks back, with those that it was given since.'''
        self.hooks.update(self.module._backward_hooks)
        self.pre_hooks.update(self.module._backward_pre_hooks)
        self.module._backward_hooks, self.module._backward_pre_hooks = self.hooks, self.pre_hooks
        for handle in self.handles:
            handle.remove()

    def before(self, module, args):
        '''Keep the differences of the input, which may be changed in place.'''
        self.inputs.append(list(map(watched_of, args)))

    def behind(self, module, args, output):
        '''Wait for the gradients.'''
        inputs, outputs = self.inputs.pop(), output if isinstance(output, tuple) else (output,)
        outputs = list(map(watched_of, outputs))
        tensors = [each if each is not None and each.requires_grad else None for each in (*outputs, *inputs)]
        known = [index for index, each in enumerate(tensors) if each is not None]
        if torch.is_grad_enabled() and known:
            call = partial(self.call, known, len(outputs), len(inputs))
            register_multi_grad_hook([tensors[index] for index in known], call)

    def call(self, known, outputs, inputs, found):
        '''Call the hooks with the gradients of as many outputs and inputs.'''
        gradients = [None] * (outputs + inputs)
        for index, gradient in zip(known, found):
            gradients[index] = gradient
        grad_output, grad_input = tuple(gradients[:outputs]), tuple(gradients[outputs:])
        changed = [hook(self.module, grad_output) for hook in self.pre_hooks.values()]
        changed += [hook(self.module, grad_input, grad_output) for hook in self.hooks.values()]
        if any(each is not None for each in changed):
            raise ChangedGradient(
                f'a backward hook of {type(self.module).__name__} changes a gradient, of which it sees the'
                ' difference\'s alone: let it return None, or remove it for the time of the context'
            )
