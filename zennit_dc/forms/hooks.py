'''Backward hooks of modules, which see the gradient of a pair as that of its difference. In a backward pass that makes
a map, this is what arrives there of the sensitivities or of the relevance.'''
from collections import OrderedDict
from functools import partial
from itertools import compress

import torch
from torch.autograd.graph import register_multi_grad_hook

from ..core.pair import SplitTensor


class ChangedGradient(RuntimeError):
    '''The error for a hook that changes the gradient of a pair in a backward pass that makes a map.'''


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
        tensors = [*map(watched_of, outputs), *inputs]
        has_graph = [each is not None and each.requires_grad for each in tensors]
        if torch.is_grad_enabled() and any(has_graph):
            call = partial(self.call, len(outputs), has_graph)
            register_multi_grad_hook([*compress(tensors, has_graph)], call)

    def call(self, outputs, has_graph, found):
        '''Call the hooks with the gradients of a number of outputs, and of the inputs.'''
        found = iter(found)
        gradients = tuple(next(found) if has else None for has in has_graph)
        grad_output, grad_input = gradients[:outputs], gradients[outputs:]
        changed = [hook(self.module, grad_output) for hook in self.pre_hooks.values()]
        changed += [hook(self.module, grad_input, grad_output) for hook in self.hooks.values()]
        if any(each is not None for each in changed):
            raise ChangedGradient(
                f'a backward hook of {type(self.module).__name__} changes a gradient, of which it sees the'
                ' difference\'s alone: let it return None, or remove it for the time of the context'
            )
