'''The forward that a model has in split form, what is chosen for it, and those of modules with a form of their own.'''
import sys
import threading
import warnings
import weakref
from contextlib import nullcontext
from functools import partial

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as everywhere
from torch.nn.modules.batchnorm import _BatchNorm
from zennit.core import Hook

from ..forms.detached import DetachedActivations
from ..rules import SplitRule
from .batches import refuse_forward_mode, transformed, within_transforms
from .errors import GRAPH, StartOver, Unsupported, describe
from .needs import LARGEST_DEVIATION, OPTIONS, functions_of, left_out, relative_deviation, request
from .nested import flatten, modules_of
from .pair import SplitTensor, common_pass, output_of, pairs_in, pass_of
from .passes import MapPass
from .table import OVERLAYS
from .tensors import same
from .tokens import FIRST_EMBEDDING, Embedding, are_tokens, token_weights


SCRIPTED = 'call the Python function it was made of, or give the module that calls it a form with zennit_dc.split_form'


class Choices:
    '''The options that a composite has taken by itself, and what else has turned out, for each model.

    Parameters
    ----------
    automatic : bool
        Whether the composite takes any. If not, an error names the options that have a form for a function.
    '''
    def __init__(self, automatic=False):
        self.automatic = automatic
        self.chosen, self.reported = weakref.WeakKeyDictionary(), weakref.WeakSet()
        self.known = weakref.WeakKeyDictionary()  # what made a pass of a model start over, see StartOver

    def apply(self, root):
        '''Apply the options that were taken for a model, and return functions that remove them.'''
        return [option.remove for name in self.chosen.get(root, {}) for option in OPTIONS[name]().apply(root)]

    def add(self, root, error):
        '''Take the first option that has a form for the function of an error and leaves the output as it is, and return
        what removes it. Raise the error if there is none that would help.'''
        applied = {type(option) for option in OVERLAYS.get(root, ())}
        helpful = [name for name in OPTIONS if error.name in functions_of(name)]
        if not helpful or any(OPTIONS[name] in applied for name in helpful):
            raise error
        exact = [name for name in helpful if OPTIONS[name].is_exact]
        if not self.automatic or not exact:
            raise NotImplementedError(request(error, helpful)) from error
        self.chosen.setdefault(root, {})[exact[0]] = f'{error.name} in {error.where}'
        self.reported.discard(root)
        return [option.remove for option in OPTIONS[exact[0]]().apply(root)]

    def report(self, canonizer, output, call, inputs):
        '''Warn once of the options that were taken for the model of a canonizer, a function of its inputs, and of its
        output in split form if that deviates much from the original.'''
        root = canonizer.root
        chosen = self.chosen.get(root, {})
        changed = not all(option.is_exact for option in OVERLAYS.get(root, ()))
        if root in self.reported or not (chosen or changed):
            return
        self.reported.add(root)
        deviation = relative_deviation(output, call([input.clone() for input in inputs]))
        amount = f'deviates by {deviation:.2%} of the spread of the logits' if deviation else 'is bit-identical'
        if chosen:
            taken = ', and '.join(f'{OPTIONS[name].__name__}() for {what}' for name, what in chosen.items())
            left = left_out(canonizer, call, inputs) if 'attention' in chosen else ''
            warnings.warn(
                f'canonizers=\'auto\' takes {taken}: maps are about the model around the given input. Its output'
                f' {amount}{left}', stacklevel=2
            )
        if not deviation <= LARGEST_DEVIATION:
            warnings.warn(
                f'WRONG MODEL: with smooth activations replaced, the output {amount}, so that maps explain another'
                f' function than this model. Do not use them: take {DetachedActivations.__name__}(), which leaves the'
                ' output as it is, or a smaller tolerance', stacklevel=2
            )


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
        if pass_of((args, kwargs)) is not None:
            raise RuntimeError('the model\'s input is in split form already: contexts may not be nested in one model')
        leaves, structure = flatten((args, kwargs))
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
                raise NotImplementedError(f'a scripted function was called on split pairs: {SCRIPTED}') from error
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
    for module in modules_of(root):
        if module.training:
            training = module
            if isinstance(module, _BatchNorm):
                raise RuntimeError(f'{describe(module, root)} is in training mode: call .eval() on the model')
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for hook in hooks.values() if hooks else ():
                owner = getattr(hook, '__self__', None)
                if owner is not None and not isinstance(owner, SplitRule):
                    require_split_rule(owner, partial(describe, module, root))
    return training


def random_state(device):
    '''The states of the generators of random numbers.'''
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == 'cuda' else states


def require_split_rule(rule, where):
    '''Raise if an object is a Zennit hook but no rule for split pairs, or a class.'''
    if isinstance(rule, type):
        raise TypeError(f'{rule.__name__} of {where()} is a class: make a rule of it')
    if isinstance(rule, Hook) and not isinstance(rule, SplitRule):
        name = type(rule).__name__
        raise TypeError(f'{name} of {where()} is not a rule for split pairs: use one of zennit_dc.rules')
