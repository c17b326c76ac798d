'''How forms are registered, and what they have in common.'''
import copy
import functools
import re
import types

import torch
from torch.nn import functional as F
from zennit.canonizers import Canonizer

from ..core.axes import same_axes, take_axes
from ..core.errors import called_in
from ..core.pair import RECTIFIED, SplitTensor, pass_of, sum_dtype, unsupported
from ..core.registry import split_form
from ..core.table import FORMS, OVERLAYS
from ..core.views import assign, become_pair


IN_PLACE = re.compile(r'__i(add|and|div|floordiv|lshift|mod|mul|or|pow|rshift|sub|truediv|xor)__|__setitem__|.*[^_]_')
NAMESPACES = (torch, torch.Tensor, F, torch.special, torch._C._nn)


class SplitOption(Canonizer):
    '''Base class of the canonizers which, passed to a composite for split pairs, choose a split form for functions that
    have no exact one. They change nothing in a model, but are a table of forms which is laid over the common one.

    Attributes
    ----------
    forms : dict
        The table of forms.
    is_exact : bool
        Whether the model's output stays bit-identical.
    '''
    forms, is_exact = {}, True

    def apply(self, root_module: torch.nn.Module) -> list[Canonizer]:
        '''Choose this option for a model.

        Parameters
        ----------
        root_module : :py:class:`torch.nn.Module`
            The model, as it is passed to the composite.

        Returns
        -------
        list
            The one applied instance.

        Raises
        ------
        RuntimeError
            If an option of this type is chosen for this model already.
        '''
        instance = copy.copy(self)
        instance.register(root_module)
        return [instance]

    def register(self, root_module: torch.nn.Module) -> None:
        '''Choose this option for a model until it is removed.'''
        chosen = OVERLAYS.setdefault(root_module, [])
        if any(type(option) is type(self) for option in chosen):
            raise RuntimeError(f'{type(self).__name__} is applied to this model already')
        chosen.append(self)
        self.root = root_module

    def remove(self) -> None:
        '''Choose it no longer.'''
        OVERLAYS[self.root].remove(self)


def overloads(*names):
    '''All the functions and methods that torch has under the given names.'''
    found = (getattr(space, name, None) for name in names for space in NAMESPACES)
    return {function for function in found if callable(function)}


def getters(*names):
    '''The functions that get attributes of tensors.'''
    return {getattr(torch.Tensor, name).__get__ for name in names}


def torch_form(*names, table=FORMS):
    '''Register a split form for all functions and methods of torch with these names, and for those that do the same in
    place.'''
    in_place_names = [f'__i{name[2:]}' if name.startswith('__') else f'{name}_' for name in names]

    def register(form):
        split_form(*overloads(*names), table=table)(form)
        split_form(*overloads(*in_place_names), table=table)(in_place(form, in_place_names[0]))
        return form
    return register


def form_of_each(functions, table=FORMS):
    '''Register one split form for each of some functions, which it is given before their arguments.'''
    def register(form):
        for function in functions:
            own = functools.update_wrapper(functools.partial(form, function), form)
            split_form(function, table=table)(own)
        return form
    return register


def activation_form(*names, table=FORMS):
    '''Register the split form of an activation, whose functions may have a parameter ``inplace``.'''
    def register(form):
        @functools.wraps(form)
        def with_inplace(pair, *args, inplace=False, **kwargs):
            output = form(pair, *args, **kwargs)
            return assign(pair, output) if inplace else output
        return torch_form(*names, table=table)(with_inplace)
    return register


def missing(functions, reason, remedy):
    '''Register that functions have no form unless an option gives them one.'''
    @form_of_each(functions)
    def form(function, *args, **kwargs):
        raise unsupported(function.__name__, (args, kwargs), reason, remedy)


def own_steps(function):
    '''A function of torch that is written in Python, as the steps it consists of, each of which has a form.'''
    steps = {name: (lambda *_: False) if name.startswith('has_torch_function') else each
             for name, each in function.__globals__.items()}
    return types.FunctionType(function.__code__, steps, function.__name__, function.__defaults__)


def is_in_place(function, kwargs):
    '''Whether a function changes its first argument.'''
    return bool(IN_PLACE.fullmatch(getattr(function, '__name__', ''))) or bool(kwargs.get('inplace'))


def in_place(form, name):
    '''A split form that changes its first argument.'''
    def changed(target, *args, **kwargs):
        is_pair = isinstance(target, SplitTensor)
        output = form(target if is_pair else target.clone(), *args, **kwargs)
        if output.values[0].shape != target.shape:
            raise unsupported(name, (output,), ' where it changes the shape')
        return take_value(target, output) if is_pair else become_value(target, output, name)
    return changed


def take_value(target, value):
    '''Give a pair the value of another one, in its own dtype.'''
    return assign(target, to_dtype(value, lambda tensor: tensor.to(target.values[0].dtype)))


def become_value(target, value, name):
    '''Give a plain tensor the value of a pair, with which it becomes a pair itself.'''
    is_view = target._base is not None and target._base.is_contiguous()
    view = torch.empty_strided(target.shape, target.stride(), device='meta') if is_view else None
    become_pair(target, value.split_pass, name)
    take_value(target, value)
    if target.view_of is None:
        target.axes = value.axes._replace(places=target.axes.places)
    else:
        take_axes(target.whole, value, view)
    return target


def each_pair(change, obj):
    '''Arguments with what a function makes of each of the split pairs among them.'''
    if isinstance(obj, SplitTensor):
        return change(obj)
    if type(obj) in (tuple, list):
        return type(obj)(each_pair(change, each) for each in obj)
    return {key: each_pair(change, value) for key, value in obj.items()} if type(obj) is dict else obj


def plain(obj):
    '''Replace split pairs in arguments by their difference, as values.'''
    return each_pair(lambda pair: pair.values[0].detach(), obj)


def refuse_pairs(name, *parameters):
    '''Raise where a parameter is itself a split pair: that is a product of pairs.'''
    if any(isinstance(each, SplitTensor) for each in parameters):
        raise unsupported(name, parameters, ' for a weight or a bias that depends on the input')


def require_batch(pair, dimensions, name):
    '''Raise if the pair lacks its batch axis.'''
    shape = pair.values[0].shape
    if len(shape) < dimensions:
        remedy = 'keep that axis, which squeeze() drops from a batch of one: name the axes that are to be squeezed'
        raise unsupported(name, (pair,), f' for an input of shape {tuple(shape)} without a batch axis', remedy)


def refuse_random(training, name, pair):
    '''Raise for a function that draws random numbers.'''
    if training:
        where = called_in(pass_of(pair))
        raise RuntimeError(f'{name}, called in {where}, is in training mode: call .eval() on the model')


def to_dtype(pair, function):
    '''Change the dtype or the device of a pair; the sum stays in at least float32.'''
    difference, stream_sum = pair.tensors
    converted = function(difference)
    if converted is difference:
        return pair
    output = pair.replaced(converted, stream_sum.to(converted.device, sum_dtype(converted.dtype)))
    output.facts = pair.facts & {RECTIFIED}
    stays = (converted.dtype, converted.device) == (difference.dtype, difference.device)
    return keep_layer([pair], output, function) if stays else output


def keep_layer(pairs, output, function):
    '''Note that entries keep their values, so that a batch norm finds the layer before it all the same.'''
    if (layer := pairs[0].layer) is not None:
        output.origin = layer._replace(tensors=(function(layer.tensors[0]), layer.tensors[1]))
    return same_axes(pairs, output)
