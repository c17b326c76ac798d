'''What is read off a pair: shape and kind, and values for comparisons and control flow.'''
import torch

from ..split import split_form, unsupported
from .table import overloads, plain


class Comparison(torch.Tensor):
    '''What a comparison of split pairs gives: for control flow and indexing, not for arithmetic with pairs.'''


def refuse_comparison(value):
    '''Raise if arithmetic with pairs has a comparison of pairs for a constant.'''
    if isinstance(value, Comparison):
        raise unsupported(
            'arithmetic with a comparison of split pairs', (), ', as it is not continuous',
            'use relu, clamp, maximum or minimum'
        )


def reading(form):
    '''Note that a form makes no pair, so that nothing that follows depends on the pair by it.'''
    form.is_reading = True
    return form


for getter in (
    'shape', 'dtype', 'device', 'ndim', 'layout', 'is_cuda', 'is_cpu', 'is_mps', 'is_sparse', 'is_quantized', 'is_meta',
    'is_mkldnn', 'is_nested', 'is_xpu', 'itemsize', 'nbytes',
):
    @split_form(getattr(torch.Tensor, getter).__get__)
    @reading
    def read(pair, *args, getter=getter):
        return getattr(pair.values[0], getter)


@split_form(torch.Tensor.requires_grad.__get__)
@reading
def requires_grad(pair, *args):
    return any(tensor.requires_grad for tensor in pair.values)


@split_form(torch.Tensor.grad_fn.__get__)
def grad_fn(pair, *args):
    raise unsupported(
        'the graph of a split pair (read by torch.compile, among others)', (pair,),
        remedy='explain the module that is not compiled'
    )


for function in overloads(
    'size', 'dim', 'ndimension', 'numel', 'nelement', 'is_floating_point', 'is_complex', 'is_contiguous', 'stride',
    'get_device', 'element_size', '__len__', 'is_signed', 'is_same_size',
):
    @split_form(function)
    @reading
    def described(pair, *args, function=function, **kwargs):
        return function(pair.values[0], *plain(args), **kwargs)


for function in overloads(
    'gt', 'ge', 'lt', 'le', 'eq', 'ne', 'greater', 'greater_equal', 'less', 'less_equal', 'not_equal', 'isclose',
    'signbit', 'isnan', 'isinf', 'isfinite', 'sign', 'heaviside', 'logical_not', 'logical_and', 'logical_or',
):
    @split_form(function)
    @reading
    def comparison(*args, function=function, **kwargs):
        return function(*plain(args), **plain(kwargs)).as_subclass(Comparison)


for function in overloads(
    'zeros_like', 'ones_like', 'full_like', 'empty_like', 'rand_like', 'randn_like', 'new_zeros', 'new_ones',
    'new_full', 'new_empty', 'new_tensor', '__bool__', '__float__', '__int__', '__index__', 'item', 'tolist', 'equal',
    'allclose', '__format__', 'argmax', 'argmin', 'argsort', 'any', 'all', 'count_nonzero', 'is_nonzero', 'isin',
):
    @split_form(function)
    @reading
    def value(*args, function=function, **kwargs):
        return function(*plain(args), **plain(kwargs))
