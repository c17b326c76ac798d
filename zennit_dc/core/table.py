'''What a forward pass is given: the tables of forms, which say what a function is on split pairs, what to compute, and
what operations do at present.'''
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

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


class Settings(NamedTuple):
    '''What a forward pass computes. A :py:class:`~zennit_dc.SplitCanonizer` has these attributes, too.

    Parameters
    ----------
    pooling : {'wta', 'convex'}, optional
        The form of max-pooling: the winner takes all, or the one that keeps both streams convex (section 3.4).
    recentering : callable, optional
        A function ``(difference, sum) -> sum`` that chooses a new sum after each affine layer.
    rule : :py:class:`~zennit_dc.core.pair.TrueGradient`, optional
        The rule outside of modules that have one of their own. Default is the true gradient.
    root : :py:class:`torch.nn.Module`, optional
        The model.
    input_split : {'relu', 'half'}, optional
        How inputs are split, see :py:meth:`~zennit_dc.SplitTensor.of`.
    layer : str, optional
        The name of the module at whose output a map is read.
    '''
    pooling: str = 'wta'
    recentering: Callable | None = None
    rule: Any = None
    root: torch.nn.Module | None = None
    input_split: str = 'relu'
    layer: str | None = None


class Mode(NamedTuple):
    '''What operations do at present.

    Parameters
    ----------
    sums : bool, optional
        Whether the value of the sum is computed, or only the way of its gradient.
    keeps_graph : bool, optional
        Whether there is a graph, which is not the case below the layer at which the map is read.
    has_graph : bool, optional
        Whether the original model would have a graph.
    '''
    sums: bool = True
    keeps_graph: bool = True
    has_graph: bool = False
