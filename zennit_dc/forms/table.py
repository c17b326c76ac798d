'''How forms are registered, and how they follow the axes of samples and channels.'''
import copy
import functools
import types

import torch
from torch.nn import functional as F
from zennit.canonizers import Canonizer

from ..core.axes import Axis, joined, joined_places, reshaped_places
from ..core.errors import called_in
from ..core.pair import RECTIFIED, SplitTensor, pass_of, sum_dtype, unsupported
from ..core.registry import split_form
from ..core.table import FORMS, OVERLAYS
from ..core.views import assign, become_pair, take_axes


NAMESPACES = (torch, torch.Tensor, F, torch.special, torch._C._nn)
MARKER, *PRIMES = 10007, 10009, 10037, 10039, 10061, 10067, 10069, 10079  # longer than axes usually are


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


def torch_form(*names, inplace=(), table=FORMS):
    '''Register a split form for all functions and methods of torch with these names, and, as an in-place operation, for
    the functions named by ``inplace``.'''
    def register(form):
        split_form(*overloads(*names), table=table)(form)
        split_form(*overloads(*inplace), table=table)(in_place(form, *inplace[:1]))
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
    '''Register the split form of an activation, whose functions may have a parameter ``inplace``, or an underscore at
    the end of the first name.'''
    def register(form):
        @functools.wraps(form)
        def with_inplace(pair, *args, inplace=False, **kwargs):
            output = form(pair, *args, **kwargs)
            return assign(pair, output) if inplace else output
        return torch_form(*names, inplace=(f'{names[0]}_',), table=table)(with_inplace)
    return register


def missing(functions, reason, remedy):
    '''Register that functions have no form unless an option gives them one.'''
    @form_of_each(functions)
    def form(function, *args, **kwargs):
        raise unsupported(function.__name__, (args, kwargs), reason, remedy)


def own_steps(function):
    '''The steps that torch takes in a function which is written in Python, each of them by its form.'''
    names = dict.fromkeys(('has_torch_function', 'has_torch_function_unary', 'has_torch_function_variadic'))
    steps = {**function.__globals__, **{name: lambda *_: False for name in names}}
    return types.FunctionType(function.__code__, steps, function.__name__, function.__defaults__)


def in_place(form, name=None):
    '''A split form that changes its first argument.'''
    def changed(target, *args, **kwargs):
        if not isinstance(target, SplitTensor):
            return into_plain(form, name, target, *args, **kwargs)
        output = form(target, *args, **kwargs)
        shape, dtype = target.values[0].shape, target.values[0].dtype
        if output.values[0].shape != shape:
            raise unsupported(name, (target,), ' where it changes the shape')
        return assign(target, to_dtype(output, lambda tensor: tensor.to(dtype)))
    return changed


def into_plain(form, name, target, *args, **kwargs):
    '''Change a plain tensor by pairs, with which it becomes a pair itself.'''
    if not isinstance(target, torch.Tensor):
        raise unsupported(f'{name} on {type(target).__name__}', (args, kwargs))
    split_pass, shape = pass_of((args, kwargs)), target.shape
    output = form(target.clone(), *args, **kwargs)
    if output.values[0].shape != shape:
        raise unsupported(name, (output,), ' where it changes the shape')
    view = target if target._base is not None and target._base.is_contiguous() else None
    view = None if view is None else torch.empty_strided(shape, view.stride(), device='meta')
    become_pair(target, split_pass, name)
    assign(target, to_dtype(output, lambda tensor: tensor.to(target.values[0].dtype)))
    if target.base is None:
        target.batch, target.channels = output.batch, output.channels
    else:
        take_axes(target.base, output, view)
    return target


def plain(obj):
    '''Replace split pairs in arguments by their difference, as values.'''
    if isinstance(obj, SplitTensor):
        return obj.values[0].detach()
    if type(obj) in (tuple, list):
        return type(obj)(map(plain, obj))
    return {key: plain(value) for key, value in obj.items()} if type(obj) is dict else obj


def refuse_pairs(name, *parameters):
    '''Raise where a parameter is itself a split pair: that is a product of pairs.'''
    if pass_of(parameters) is not None:
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
        output.layer = layer._replace(tensors=(function(layer.tensors[0]), layer.tensors[1]))
    return joined(pairs, output)


def keep_axes(pair, output):
    '''Note that entries keep their order.'''
    for name in ('batch', 'channels'):
        axis = getattr(pair, name)
        setattr(output, name, axis and axis.reshaped(output.values[0].shape))
    output.places = pair.places and reshaped_places(pair.places, pair.values[0].shape, output.values[0].shape)
    return note_tokens(output)


def note_tokens(pair):
    '''Note the places of a pair that are parts of one axis, in case that this axis is not followed all the way.'''
    for index, length in enumerate(pair.values[0].shape) if pair.places else ():
        inside = {key: place for key, place in pair.places.items() if place is not None and place.axis == index}
        is_part = not all(place.is_whole(pair.values[0].shape) for place in inside.values())
        if index and is_part and any(place.length > 1 for place in inside.values()):
            pair.split_pass.tokens[length] = inside
    return pair


def follow_axes(pairs, output, function):
    '''Note where the axes of pairs are in what a function made of them, if that can be proven with tensors without
    memory: of a view by its strides; of anything else by its shape, if one axis of the output is as long as this one,
    however long this one is.'''
    output.depth = max(pair.depth for pair in pairs)
    for name in ('batch', 'channels'):
        places = [pair.place(name) for pair in pairs]
        axis = None if None in places else moved_to(pairs, places, output, function)
        setattr(output, name, None if axis is None else Axis.at(output.values[0].shape, axis))
    if any(pair.places for pair in pairs):
        follow_places(pairs, output, function)
    return output


def follow_places(pairs, output, function, reverses=False):
    '''Note where the axes of inputs are in what a function made of pairs, and of which part of them; it may be one that
    reverses axes.'''
    shape, parts = output.values[0].shape, []
    for pair in pairs:
        old, known = pair.values[0].shape, {key: place for key, place in pair.places.items() if place is not None}
        axes = {place.axis for place in known.values()}
        axes = {axis: moved_axis(pairs, pair, axis, output, function) for axis in axes}
        found = dict.fromkeys(pair.places)
        for key, place in known.items():
            axis, length = axes[place.axis], old[place.axis]
            if axis is not None and shape[axis] == length and not reverses:
                found[key] = place._replace(axis=axis)
            elif axis is not None:
                found[key] = place.cut(axis, coordinates(pair, place.axis, axis, function), length)
        parts.append((found, shape))
    output.places = joined_places(parts, shape)
    return note_tokens(output)


def moved_axis(pairs, pair, axis, output, function):
    '''The index that an axis of a pair has in what a function made of pairs, or None if it is not known.'''
    place = axis - pair.values[0].ndim
    for aligned in (False, True) if len(pairs) > 1 else (False,):  # others may have the same axis
        places = [place if each is pair or (aligned and -place <= each.values[0].ndim) else None for each in pairs]
        found = moved_to(pairs, places, output, function, coarse=True)
        if found is not None:
            return found
    return None


def note_order(pair, output, function):
    '''Note for the pass where a function puts samples in another order, which a map at a layer would have.'''
    batch, shape = pair.batch, output.values[0].shape
    if not pair.places or batch is None or batch.index is None or shape[batch.index:][:1] != (batch.length,):
        return
    entries = coordinates(pair, batch.index, batch.index, function)
    if entries != [*range(batch.length)]:
        pair.split_pass.reorders.append(called_in(pair.split_pass))
        output.places = {key: None if key[1] == 0 else place for key, place in output.places.items()}


def coordinates(pair, axis, moved, function):
    '''The entries along an axis of a pair that are left along an axis of what a function makes of it.'''
    shape = pair.values[0].shape
    lengths = [length if index == axis else 1 for index, length in enumerate(shape)]
    entries = function(torch.arange(shape[axis], device=pair.device).reshape(lengths).expand(shape))
    return entries[tuple(slice(None) if index == moved else 0 for index in range(entries.ndim))].tolist()


def moved_to(pairs, places, output, function, coarse=False):
    '''The index of the only axis of the output where the axis at some places of pairs may be, or None; of several views
    of it, the coarsest one if asked for.'''
    tensors, shape = [], output.values[0].shape
    try:
        for pair, place in zip(pairs, places):
            lengths = list(pair.values[0].shape)
            if place is not None:
                length, lengths[place] = lengths[place], MARKER
            tensors.append(torch.empty_strided(lengths, PRIMES[:len(lengths)], device='meta'))
        probe, stride = function(*tensors), tensors[0].stride(places[0] if places[0] is not None else 0)
    except (RuntimeError, IndexError, TypeError, AssertionError):  # the last in torch 2.4
        return None  # what cannot be asked is not proven
    if probe.ndim != len(shape):
        return None
    if probe.untyped_storage()._cdata == tensors[0].untyped_storage()._cdata:
        strides = {axis: own for axis, own in enumerate(probe.stride()) if own and probe.shape[axis] > 1}
        parts = {axis: own for axis, own in strides.items() if not own % stride}
        wanted = max(parts.values(), default=None) if coarse else stride
        found = [axis for axis, own in parts.items() if own == wanted] or [*parts]
    else:
        found = [axis for axis, lengths in enumerate(zip(probe.shape, shape)) if lengths == (MARKER, length)]
    return found[0] if len(found) == 1 else None
