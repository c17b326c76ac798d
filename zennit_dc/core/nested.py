'''Nested tuples, lists, dicts and dataclasses, in which models take their inputs and return their outputs.'''
import copy
import dataclasses
from functools import partial
from itertools import islice

from torch.utils._pytree import tree_flatten, tree_unflatten


def entries_of(obj):
    '''The entries of a container by their keys, names or indices, or None if an object is no container.

    Parameters
    ----------
    obj : object
        A tuple, list or dict, an instance of one of their subclasses, or of a dataclass.

    Returns
    -------
    dict or None
        The entries.
    '''
    if isinstance(obj, dict):
        return dict(obj.items())
    if isinstance(obj, (tuple, list)):
        return dict(enumerate(obj))
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}
    return None


def rebuilt(obj, values):
    '''A container of the same type as another one, with other values for its entries, in their order.'''
    if isinstance(obj, (tuple, list)):
        return obj._make(values) if hasattr(obj, '_make') else type(obj)(values)
    output = copy.copy(obj)
    change = output.__setitem__ if isinstance(obj, dict) else partial(object.__setattr__, output)  # if frozen, too
    for key, value in zip(entries_of(obj), values):
        change(key, value)
    return output


def flatten(obj):
    '''The leaves of nested containers in their order, and a function that puts other leaves into the same structure.

    Parameters
    ----------
    obj : object
        Nested containers that :py:func:`entries_of` knows, or that are registered to PyTorch's trees.

    Returns
    -------
    leaves : list
        Everything that is no container.
    structure : callable
        A function of as many leaves, which returns new containers of the same types.
    '''
    entries = entries_of(obj)
    if entries is None:
        leaves, spec = tree_flatten(obj)
        return leaves, lambda leaves: tree_unflatten(leaves, spec)
    parts = [flatten(entry) for entry in entries.values()]

    def structure(leaves):
        leaves = iter(leaves)
        return rebuilt(obj, [rebuild(list(islice(leaves, len(own)))) for own, rebuild in parts])

    return [leaf for own, _ in parts for leaf in own], structure
