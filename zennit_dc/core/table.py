'''The tables of forms, which say what a function is on split pairs.'''
import weakref

import torch


FORMS = {}
MODULE_FORMS = {}
FUNCTION_FORMS = {}  # by subclasses of torch.autograd.Function
OVERLAYS = weakref.WeakKeyDictionary()  # the options that are chosen for a model, each with a table of forms

OPERATORS = torch._ops.OpOverload, torch._ops.OpOverloadPacket
SPACES = {'linalg_': torch.linalg, 'special_': torch.special, 'fft_': torch.fft}


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


def forms_of(root):
    '''The table of forms for a model: the common table, overlaid with the tables of the options chosen for it.'''
    tables = [option.forms for option in (OVERLAYS.get(root, ()) if root is not None else ())]
    return {key: form for table in (FORMS, *tables) for key, form in table.items()} if tables else FORMS
