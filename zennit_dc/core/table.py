'''The tables of forms, which say what a function is on split pairs, and how a function and its arguments are called
there.'''
import weakref
from types import BuiltinFunctionType, MethodDescriptorType

import torch


FORMS = {}
MODULE_FORMS = {}
FUNCTION_FORMS = {}  # by subclasses of torch.autograd.Function
OVERLAYS = weakref.WeakKeyDictionary()  # the options that are chosen for a model, each with a table of forms

OPERATORS = torch._ops.OpOverload, torch._ops.OpOverloadPacket
SPACES = {'linalg_': torch.linalg, 'special_': torch.special, 'fft_': torch.fft}
NUMPY_NAMES = {'axis': 'dim', 'keepdims': 'keepdim'}  # which torch's functions in C++ take as well
BUILT_IN = BuiltinFunctionType, MethodDescriptorType


def public(function):
    '''The function that has the form of an operator of aten, which graphs of torch.export call: one of torch with the
    same name and parameters, unless the operator has a form itself.'''
    if not isinstance(function, OPERATORS):
        return function
    packet = getattr(function, 'overloadpacket', function)
    space, _, name = packet._qualified_op_name.rpartition('::')
    if space != 'aten' or packet in FORMS:
        return packet
    found = [getattr(each, name, None) for each in (torch, torch.Tensor, torch._C._nn)]
    found += [getattr(each, name.removeprefix(prefix), None) for prefix, each in SPACES.items()
              if name.startswith(prefix)]
    return next((each for each in found if each is not None and each in FORMS), packet)


def standard_arguments(function, args, kwargs):
    '''The arguments of a function with the first one by its place, even where it is named, and with torch's names where
    those of numpy are given.'''
    if isinstance(function, BUILT_IN):
        kwargs = {NUMPY_NAMES.get(name, name): each for name, each in kwargs.items()}
    first = next((name for name in ('input', 'tensors', 'self') if name in kwargs), None)
    if first is None or function is torch.where:  # of which it is the second
        return args, kwargs
    return (kwargs[first], *args), {name: each for name, each in kwargs.items() if name != first}


def forms_of(root):
    '''The table of forms for a model: the common table, overlaid with the tables of the options chosen for it.'''
    tables = [option.forms for option in (OVERLAYS.get(root, ()) if root is not None else ())]
    return {key: form for table in (FORMS, *tables) for key, form in table.items()} if tables else FORMS
