'''How a function, a module or an autograd function gets its split form.'''
import functools

import torch

from .pair import BY_FUNCTION, SplitTensor, common_pass, output_of, pairs_in
from .table import FORMS, FUNCTION_FORMS, MODULE_FORMS


def split_form(*functions, table=FORMS):
    '''Register a split form: what is called in place of a function, or of a module, on split pairs.

    Parameters
    ----------
    *functions : callable or type
        Torch functions, methods or operators (anything that dispatches to ``__torch_function__``), which are replaced
        by the decorated function with the same arguments; or subclasses of :py:class:`torch.nn.Module`, whose
        instances have their forward replaced, inside of a composite's context, by the decorated function with the
        module as its first argument; or subclasses of :py:class:`torch.autograd.Function`, or their ``apply``. Later
        registrations replace earlier ones.
    table : dict, optional
        The table of forms of functions to register to. Default is the common one.

    Returns
    -------
    callable
        A decorator that returns the decorated function unchanged. The function should return a
        :py:class:`SplitTensor`, best made with the building blocks of :py:mod:`zennit_dc.core.blocks`, which also say
        what happens to relevance.

    Raises
    ------
    TypeError
        If one of the functions is none, such as its name.
    '''
    wrong = next((function for function in functions if not callable(function)), None)
    if wrong is not None:
        raise TypeError(f'split_form registers functions, modules and autograd functions, not {wrong!r}')

    def register(form):
        for function in functions:
            kind = function.__self__ if getattr(function, '__name__', '') == 'apply' else function
            if isinstance(kind, type) and issubclass(kind, torch.autograd.Function):
                register_autograd_function(kind, form)
                continue
            is_module = isinstance(function, type) and issubclass(function, torch.nn.Module)
            (MODULE_FORMS if is_module else table)[function] = form
        return form
    return register


def register_autograd_function(kind, form):
    '''Let a subclass of :py:class:`torch.autograd.Function` have a form on split pairs. Its forward is still what it
    was on anything else.'''
    if kind not in FUNCTION_FORMS:
        original, with_context = kind.forward, kind.setup_context is torch.autograd.Function.setup_context

        @functools.wraps(original)
        def forward(*args, **kwargs):
            own = args[1:] if with_context else args
            given = pairs_in((own, kwargs))
            split_pass = common_pass(kind.apply, given)
            if split_pass is None:
                return original(*args, **kwargs)
            with torch.set_grad_enabled(split_pass.mode.keeps_graph):  # which autograd functions leave to backward
                output = output_of(FUNCTION_FORMS[kind], own, kwargs, given)
            return tuple(each_by_function(each, given) for each in output) if isinstance(output, (tuple, list)) else \
                each_by_function(output, given)

        kind.forward = staticmethod(forward)
    FUNCTION_FORMS[kind] = form


def each_by_function(output, given):
    '''An output of the form of an autograd function, which is not one of the pairs that it was given.'''
    if not isinstance(output, SplitTensor):
        return output
    if any(output is each for each in given):
        cause, output = output.unmapped, output.replaced(*output.tensors)
        output.facts |= {cause} - {None}
    output.facts |= {BY_FUNCTION}
    return output
