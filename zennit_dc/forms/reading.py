'''What is read off a pair: shape and kind, the difference as a plain tensor, and values for comparisons and control
flow.'''
import math
import sys
import weakref

import torch

from ..core.errors import SEVERAL_USES, StartOver, Unsupported
from ..core.nested import flatten
from ..core.pair import INPUT, Pass, SplitTensor, note_unmapped, pairs_in, unmapped_cause, unsupported
from ..core.registry import split_form
from ..core.views import lend
from .table import form_of_each, getters, is_in_place, overloads, plain


class Comparison(torch.Tensor):
    '''What a comparison of split pairs gives, or a cast to integers: a constant of the input, as for torch. It knows
    the pairs that it was made of, on which it is no constant: where a pair is chosen by its own comparison, a function
    was written by hand that may have a split form.'''
    origin, sources = 'a comparison', ()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        output = super().__torch_function__(function, types, args, kwargs)
        if function is torch.Tensor.__getitem__ and not isinstance(args[0], Comparison) and are_masks(args[1]):
            return output.as_subclass(torch.Tensor)  # which has entries of the other tensor alone
        made_of = [each for each in flatten((args, kwargs))[0] if isinstance(each, Comparison)]
        for each in flatten(output)[0]:
            if isinstance(each, Comparison):
                each.origin = made_of[0].origin
                sources = {source for own in made_of for source in own.sources}
                each.sources = sources if each.numel() in {own.numel() for own in made_of} else ()
        return output


def are_masks(index):
    '''Whether all comparisons in an index are masks.'''
    return all(key.dtype is torch.bool for key in flatten(index)[0] if isinstance(key, Comparison))


def known(value, origin, args):
    '''A tensor that was read off pairs. It remembers those of them with which it must not be combined.'''
    value = value.as_subclass(Comparison)
    value.origin = origin
    value.sources = {weakref.ref(pair.whole) for pair in pairs_in(args) if INPUT not in pair.facts}
    return value


def refuse_comparison(value, *operands):
    '''Raise if a value was read of one of the pairs with which it is to be combined.'''
    if not isinstance(value, Comparison) or not value.sources:
        return
    sources = [source() for source in value.sources]
    if any(pair.whole is source for pair in pairs_in(operands) for source in sources):
        raise unsupported(
            f'a product of, a sum with or a choice by {value.origin} of the same split pair', operands,
            ', as it is not continuous',
            'use relu, clamp, maximum or minimum; or read it off pair.detach(), with which it is a constant'
        )


class Refused:
    '''What raises an error as soon as the tensors of a pair are read, if the pair has no split form.'''
    def __init__(self, error):
        self.error = error

    def __call__(self, pair):
        pair.pending = self
        raise self.error


class Number(Refused):
    '''The same for a number that was made of a layer's output alone. As this uses the output, the pass starts over, if
    it has not ended.'''
    def __call__(self, pair):
        if pair.split_pass.has_left:
            self.error = unsupported(
                'a number that was read of the output of the layer at which the map is read, and that is used after the'
                ' model has ended', (pair,), remedy='take its value in the model, as in h.max().item()'
            )
        super().__call__(pair)


NUMBERS = ('max', 'min', 'amax', 'amin', 'mean', 'sum', 'std', 'var', 'norm', 'median', 'quantile')


def number(function, args, kwargs):
    '''What a function is on a layer's output, if that is a number without axes, which may be read; else None.'''
    if getattr(function, '__name__', None) not in NUMBERS:
        return None
    output = read_alone(function, args, kwargs, StartOver(SEVERAL_USES))
    if not isinstance(output, SplitTensor) or output.values[0].ndim > 0:
        return None
    output.pending = Number(output.pending.error)
    return output


def read_alone(function, args, kwargs, error):
    '''What a function without a split form returns for the differences, as pairs that may only be read; whatever else
    is made of them raises the error.'''
    name = getattr(function, '__name__', '')
    if is_in_place(function, kwargs) or name in ('__get__', '__set__', 'backward'):
        raise error
    pair = pairs_in((args, kwargs))[0]
    try:
        with torch.no_grad():
            leaves, structure = flatten(function(*plain(args), **plain(kwargs)))
    except (RuntimeError, TypeError, ValueError, IndexError) as reason:  # what torch raises for values alone
        raise error from reason
    if any(torch.is_tensor(leaf) and not is_readable(leaf) for leaf in leaves):  # which would go on as a constant
        raise error
    output = structure([pair.like(leaf, leaf.abs()) if torch.is_tensor(leaf) and leaf.is_floating_point() else leaf
                        for leaf in leaves])
    for each in pairs_in(output):
        each.pending = Refused(error)
    return output


def value_alone(function, args, kwargs, pairs, error):
    '''What a function without a form is on pairs: a value that may be read; or, behind an autograd function without a
    form, one that goes on, and of which there is no map.'''
    output, cause = read_alone(function, args, kwargs, error), unmapped_cause(pairs)
    if cause is None:
        return output
    for pair in pairs_in(output):
        pair.pending, pair.depth = None, -math.inf
    return note_unmapped(output, cause)


class ReadingPass(Pass):
    '''A forward pass in which functions without a form are values that may be read.'''
    def apply(self, function, args, kwargs, pairs):
        '''What the model gets for a function of pairs.'''
        try:
            return super().apply(function, args, kwargs, pairs)
        except Unsupported as error:
            return value_alone(function, args, kwargs, pairs, error)


def is_readable(tensor):
    '''Whether a tensor has real numbers, in places that strides tell.'''
    return not (tensor.is_complex() or tensor.is_nested or tensor.layout is not torch.strided)


def reading(form):
    '''Note that a form makes no pair, so that nothing that follows depends on the pair by it.'''
    form.is_reading = True
    return form


def reading_form(*functions):
    '''Register a form that makes no pair.'''
    return lambda form: split_form(*functions)(reading(form))


@form_of_each(overloads(
    'size', 'dim', 'ndimension', 'numel', 'nelement', 'is_floating_point', 'is_complex', 'is_contiguous', 'stride',
    'get_device', 'element_size', '__len__', 'is_signed', 'is_same_size',
) | getters(
    'shape', 'dtype', 'device', 'ndim', 'layout', 'is_cuda', 'is_cpu', 'is_mps', 'is_sparse', 'is_quantized', 'is_meta',
    'is_mkldnn', 'is_nested', 'is_xpu', 'itemsize', 'nbytes', 'retains_grad', 'is_leaf', '_version', 'output_nr',
))
@reading
def described(function, pair, *args, **kwargs):
    return function(pair.values[0], *map(plain, args), **kwargs)


ROUNDINGS = overloads('floor', 'ceil', 'round', 'trunc', 'fix', 'floor_divide', '__floordiv__', '__rfloordiv__')


@form_of_each(ROUNDINGS | overloads(
    'gt', 'ge', 'lt', 'le', 'greater', 'greater_equal', 'less', 'less_equal', 'signbit', 'sign', 'sgn', 'heaviside',
))
@reading
def discontinuous(function, *args, **kwargs):
    origin = 'a rounding' if function in ROUNDINGS else 'a comparison'
    return known(function(*plain(args), **plain(kwargs)), origin, (args, kwargs))


@form_of_each(overloads(
    'eq', 'ne', '__eq__', '__ne__', 'not_equal', 'isclose', 'isnan', 'isinf', 'isfinite', 'isposinf', 'isneginf',
    'logical_not', 'logical_and', 'logical_or', 'logical_xor', 'zeros_like', 'ones_like', 'full_like', 'empty_like',
    'rand_like', 'randn_like', 'new_zeros', 'new_ones', 'new_full', 'new_empty', 'new_tensor', '__bool__', '__float__',
    '__int__', '__index__', 'item', 'tolist', 'equal', 'allclose', '__format__', '__contains__', 'argmax', 'argmin',
    'argsort', 'any', 'all', 'count_nonzero', 'is_nonzero', 'isin', 'nonzero', 'argwhere', 'bucketize', 'searchsorted',
    'histc', 'storage_offset', 'is_shared', 'is_pinned', 'is_inference', 'unique', 'bincount',
    '_nested_tensor_from_mask_left_aligned',  # whether padding comes last, for which torch.nn.TransformerEncoder asks
))
@reading
def value(function, *args, **kwargs):
    return function(*plain(args), **plain(kwargs))


# what leaves the graph is a plain tensor

def is_kept_by_checkpoint():
    '''Whether a checkpoint is run again in a backward pass, and keeps the arguments of a checkpoint within it.'''
    frame = sys._getframe(1) if torch._C._current_graph_task_id() != -1 else None
    while frame is not None and frame.f_globals.get('__name__', '').startswith('zennit_dc.'):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get('__name__') == 'torch.utils.checkpoint'


@reading_form(*overloads('detach'), *getters('data'))
def detached(pair, *args):
    if is_kept_by_checkpoint():
        return pair
    return pair.values[0].detach() if isinstance(pair.pending, Number) else lend(pair)


@form_of_each(overloads('numpy', '__array__', 'data_ptr', 'untyped_storage', '__dlpack__'))
@reading
def exported(function, pair, *args, **kwargs):
    return function(lend(pair), *args, **kwargs)
