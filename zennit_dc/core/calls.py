'''The forward that a model has in split form, and those of modules with a form of their own.'''
import sys
import threading
from contextlib import nullcontext
from functools import partial

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as everywhere
from torch.nn.modules.batchnorm import _BatchNorm

from ..rules import SplitRule, require_split_rule
from .batches import refuse_forward_mode, transformed, within_transforms
from .errors import GRAPH, StartOver, Unsupported, describe
from .graphs import same
from .nested import flatten
from .pair import SplitTensor, common_pass, output_of, pairs_in
from .passes import MapPass
from .tokens import FIRST_EMBEDDING, Embedding, are_tokens, token_weights


class TemporaryForward:
    '''A forward that a module has for the time of a context, and that is not to be copied or saved with it.'''
    def __deepcopy__(self, memo):
        raise RuntimeError('the model is in split form: copy or save it outside of the composite\'s context')

    __reduce_ex__ = __deepcopy__


class ModuleForward(TemporaryForward):
    '''The form of a module on split pairs, and its own forward on anything else.'''
    def __init__(self, form, module):
        self.form, self.module, self.forward = form, module, module.forward

    def __call__(self, *args, **kwargs):
        pairs = pairs_in((args, kwargs))
        if common_pass(self.module.forward, pairs) is None:
            return self.forward(*args, **kwargs)
        return output_of(self.form, (self.module, *args), kwargs, pairs)


class SplitForward(TemporaryForward):
    '''The forward of a model in split form.'''
    def __init__(self, canonizer, forward):
        self.canonizer, self.forward = canonizer, forward

    def __call__(self, *args, **kwargs):
        if not self.canonizer.active:
            return self.as_it_is(args, kwargs)
        root = self.canonizer.root
        training = require_fit(root)
        self.canonizer.call_backward_hooks()
        leaves, structure = flatten((args, kwargs))
        if any(isinstance(leaf, SplitTensor) for leaf in leaves):
            raise RuntimeError('the model\'s input is in split form already: contexts may not be nested in one model')
        if forward_ad._current_level >= 0:
            refuse_forward_mode(*filter(torch.is_tensor, leaves))
        leaves, indices = explained(leaves, root)
        call, inputs = Call(self.forward, leaves, structure, indices), [leaves[index] for index in indices]
        before = None if training is None else random_state(inputs[0].device)
        run = partial(self.run, call)
        if within_transforms():
            others = (leaf for index, leaf in enumerate(leaves) if torch.is_tensor(leaf) and index not in indices)
            output = transformed(run, self.canonizer.readout, inputs, (*others, *root.parameters(), *root.buffers()))
        else:
            output = run(inputs)
        if training is not None and not all(map(torch.equal, before, random_state(inputs[0].device))):
            where = describe(training, root)
            raise RuntimeError(f'{where} is in training mode, and random numbers are drawn: call .eval() on the model')
        return output

    def as_it_is(self, args, kwargs):
        '''What the model returns without split pairs.'''
        if any(getattr(leaf, 'tokens', None) is not None for leaf in flatten((args, kwargs))[0]):
            raise NotImplementedError(
                'token numbers have no gradient where the composite is inactive: take that of what the embedding'
                ' returns'
            )
        return self.forward(*args, **kwargs)

    def run(self, call, inputs):
        '''Run the model, and start over where something turns out on the way, see :py:class:`SplitCanonizer`.'''
        canonizer = self.canonizer
        while True:
            split_pass = MapPass(canonizer, call, inputs, call.layer)
            try:
                output = split_pass.run()
                break
            except StartOver as reason:
                if reason.found == GRAPH and all(each.requires_grad for each in inputs):
                    raise RuntimeError('a gradient is asked for within the model, which runs in no_grad()') from None
                if reason.found == GRAPH:
                    inputs = [each if each.requires_grad else same(each.detach()).requires_grad_() for each in inputs]
                else:
                    split_pass.known.add(reason.found)
            except Unsupported as error:
                canonizer.restore += canonizer.choices.add(canonizer.root, error)
            except RuntimeError as error:
                if split_pass.refused is None:
                    raise
                raise split_pass.refused from error
        canonizer.choices.report(canonizer, output, call, inputs)
        return output


class Eagerly:
    '''A context in which compiled functions run as those that they were made of (from torch 2.6 on). As torch has one
    such state for all threads, the first thread in it sets it, and the last one resets it.'''
    def __init__(self):
        self.lock, self.count, self.stance = threading.Lock(), 0, nullcontext()

    def __enter__(self):
        with self.lock:
            can_be_set = hasattr(torch.compiler, 'set_stance') and not torch.compiler.is_compiling()
            if self.count == 0 and 'torch._dynamo' in sys.modules and can_be_set:
                self.stance = torch.compiler.set_stance('force_eager')
            self.count += 1

    def __exit__(self, *_):
        with self.lock:
            self.count -= 1
            if self.count == 0:
                stance, self.stance = self.stance, nullcontext()
                stance.__exit__(None, None, None)


EAGERLY = Eagerly()


class Call:
    '''A model's forward as a function of the list of its inputs.

    Parameters
    ----------
    forward : callable
        The forward.
    leaves : list
        Its arguments.
    structure : callable
        What makes positional and keyword arguments of them.
    indices : list[int]
        The indices of those that are inputs.

    Attributes
    ----------
    tokens : :py:class:`torch.Tensor` or None
        The token numbers for which the first input stands, if it does.
    '''
    def __init__(self, forward, leaves, structure, indices):
        self.forward, self.leaves, self.structure, self.indices = forward, leaves, structure, indices
        self.tokens = getattr(leaves[indices[0]], 'tokens', None)
        self.layer = None if self.tokens is None else FIRST_EMBEDDING

    def __call__(self, inputs):
        replaced = dict(zip(self.indices, inputs))
        if self.tokens is not None:
            replaced[self.indices[0]] = self.tokens
        args, kwargs = self.structure([replaced.get(index, leaf) for index, leaf in enumerate(self.leaves)])
        splits = self.tokens is not None and isinstance(inputs[0], SplitTensor)
        with Embedding(inputs[0], self.tokens) if splits else nullcontext(), EAGERLY:
            return self.forward(*args, **kwargs)


def explained(leaves, root):
    '''The arguments of a model, and the indices of those that are its inputs: the floating point tensors, or, if there
    are none, the first token numbers, for which their weights stand then.'''
    indices = [index for index, leaf in enumerate(leaves) if torch.is_tensor(leaf) and leaf.is_floating_point()]
    if indices:
        return leaves, sorted(indices, key=lambda index: getattr(leaves[index], 'tokens', None) is None)
    tokens = [index for index, leaf in enumerate(leaves) if are_tokens(leaf)]
    if not tokens:
        raise NotImplementedError(
            'a model in split form was called without a floating point tensor, and without token numbers'
        )
    weights = token_weights(leaves[tokens[0]], root)
    return [weights if index == tokens[0] else leaf for index, leaf in enumerate(leaves)], tokens[:1]


def require_fit(root):
    '''Raise if a Zennit rule is registered that does not know pairs, or if a batch norm is in training mode, before it
    changes its running statistics; and return any other module that is in training mode.'''
    if everywhere._global_backward_hooks or everywhere._global_backward_pre_hooks:
        raise NotImplementedError(
            'a backward hook is registered for all modules, which torch cannot call with gradients of split pairs:'
            ' register it to modules, or remove it for the time of the context'
        )
    training = None
    for module in root.modules():
        if module.training:
            training = module
            if isinstance(module, _BatchNorm):
                raise RuntimeError(f'{describe(module, root)} is in training mode: call .eval() on the model')
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if not isinstance(owner := getattr(hook, '__self__', None), SplitRule):
                require_split_rule(owner, partial(describe, module, root))
    return training


def random_state(device):
    '''The states of the generators of random numbers.'''
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == 'cuda' else states
