'''Fourier transforms, which are linear with constant coefficients, and complex numbers, whose real and imaginary parts
are pairs.'''
from functools import partial

import torch
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary, resolve_name

from ..core.axes import Axes, Axis, follow_axes
from ..core.blocks import linear
from ..core.pair import SplitTensor, pairs_in, unsupported
from ..core.registry import split_form
from ..core.table import public
from .arithmetic import valued
from .features import p_norm, statistic_form
from .table import form_of_each, getters, overloads, plain


COMPLEX_FORMS = {}
complex_form = partial(split_form, table=COMPLEX_FORMS)


class ComplexPair(SplitTensor):
    '''A complex tensor whose real and imaginary parts are split pairs.

    Parameters
    ----------
    parts : :py:class:`~zennit_dc.core.pair.SplitTensor`
        Both, along a last axis of length two.
    '''
    @staticmethod
    def __new__(cls, parts):
        difference = as_complex(parts.difference)
        return torch.Tensor._make_wrapper_subclass(
            cls, difference.shape, dtype=difference.dtype, device=difference.device,
            requires_grad=any(tensor.requires_grad for tensor in parts.values)
        )

    def __init__(self, parts):
        super().__init__(*map(as_complex, parts.tensors), parts.split_pass)
        self.parts, self.depth, self.facts = parts, parts.depth, frozenset({parts.unmapped} - {None})
        self.axes = first_axes(parts.axes, self.values[0].shape)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        function, kwargs = public(function), kwargs or {}
        pair = pairs_in((args, kwargs))[0]
        if function in COMPLEX_FORMS:
            return COMPLEX_FORMS[function](*args, **kwargs)
        if getattr(pair.split_pass.forms.get(function), 'is_reading', False):
            return super().__torch_function__(function, types, args, kwargs)
        name = resolve_name(function) or getattr(function, '__name__', function)
        raise unsupported(
            f'{name} of complex numbers', (pair,), remedy='take z.abs(), z.real and z.imag, or'
            ' torch.view_as_real(z), and go on with these'
        )


def as_complex(parts):
    '''Complex numbers of real and imaginary parts, in their memory where torch can do that.'''
    *strides, last = parts.stride()
    can = last == 1 and not any(step % 2 for step in (*strides, parts.storage_offset()))
    return torch.view_as_complex(parts if can else parts.contiguous())


def first_axes(axes, shape):
    '''Those of some axes that are also in a shape which has the same first ones.'''
    known = (axis is not None and axis.index is not None and axis.index < len(shape) for axis in axes[:2])
    return Axes(*(Axis.at(shape, axis.index) if there else None for axis, there in zip(axes, known)), axes.places)


@form_of_each(overloads(
    'reshape', 'view', 'flatten', 'unflatten', 'permute', 'transpose', 'movedim', 'swapaxes', 'unsqueeze', 'squeeze',
    'select', 'narrow', '__getitem__', 'flip', 'roll', 'index_select', 'clone', 'contiguous', 'expand', 'resolve_conj'
), table=COMPLEX_FORMS)
def moved(function, pair, *args, **kwargs):
    '''A function that moves complex numbers.'''
    def of_complex(tensor):
        return function(tensor, *plain(args), **kwargs)

    def move(tensor):
        return torch.view_as_real(of_complex(as_complex(tensor)))

    parts = pair.parts.like(*map(move, pair.parts.tensors))
    output = follow_axes([pair], ComplexPair(parts), of_complex)
    parts.axes = first_axes(output.axes, parts.values[0].shape)
    return output


# between real and complex numbers

split_form(torch.view_as_complex)(ComplexPair)
complex_form(torch.view_as_real)(lambda pair: pair.parts)
complex_form(torch.real, *getters('real'))(lambda pair, *_: pair.parts.select(-1, 0))
complex_form(torch.imag, *getters('imag'))(lambda pair, *_: pair.parts.select(-1, 1))
split_form(torch.real, *getters('real'))(lambda pair, *_: pair)


@split_form(torch.complex)
def complex_of(real, imag):
    exact = torch.view_as_real(torch.complex(*plain((real, imag))))
    return ComplexPair(valued(torch.stack(torch.broadcast_tensors(real, imag), -1), exact))


def modulus(parts):
    '''The absolute value of complex numbers, by their real and imaginary parts.'''
    if has_torch_function_unary(parts):
        return handle_torch_function(modulus, (parts,), parts)
    return as_complex(parts).abs()


@statistic_form(functions=(modulus,))
def modulus_as_feature(value, parts):
    return p_norm(value, parts, 2, (parts.ndim - 1,))


complex_form(*overloads('abs', 'absolute', '__abs__'))(lambda pair: modulus(pair.parts))


# arithmetic

@complex_form(*overloads('conj', 'conj_physical'))
def conjugate(pair):
    real, imag = pair.parts.unbind(-1)
    exact = torch.view_as_real(plain(pair).conj().resolve_conj())  # in its strides, on which later rounding may depend
    return ComplexPair(valued(torch.stack([real, -imag], -1), exact))


def in_parts(function, form, first, other):
    '''What a form makes of the parts of complex numbers, with the original function's rounding.'''
    exact = torch.view_as_real(function(*plain((first, other))).resolve_conj())
    return ComplexPair(valued(form(function, first, other), exact))


def sum_of(function, first, other):
    '''A sum or difference.'''
    return function(parts_of(first), parts_of(other))


def product_of(function, first, other):
    '''A product or quotient.'''
    first, other = (first, other) if isinstance(first, ComplexPair) else (other, first)
    if isinstance(other, (int, float)) or (isinstance(other, torch.Tensor) and not other.is_complex()):
        return function(first.parts, other if isinstance(other, (int, float)) else other.unsqueeze(-1))
    if function is torch.div:
        raise unsupported('a division by complex numbers', (first,), remedy='multiply by the reciprocal')
    if isinstance(other, ComplexPair):
        (real, imag), (one, two) = first.parts.unbind(-1), other.parts.unbind(-1)
        return torch.stack([real * one - imag * two, real * two + imag * one], -1)
    factor = torch.as_tensor(other, device=first.device)
    rows = torch.stack([factor.real, factor.imag, -factor.imag, factor.real], -1).unflatten(-1, (2, 2))

    def times(tensor, rows):
        return (tensor.unsqueeze(-1) * rows.to(tensor.dtype)).sum(-2)

    return linear(
        first.parts, lambda tensor: times(tensor, rows), lambda total: times(total, rows.abs()), first_stay
    )


def parts_of(operand):
    '''The real and imaginary parts of an operand.'''
    if isinstance(operand, ComplexPair):
        return operand.parts
    operand = torch.as_tensor(operand)
    return torch.stack([operand.real, operand.imag if operand.is_complex() else torch.zeros_like(operand)], -1)


for function, form, names in (
    (torch.add, sum_of, ('add', '__add__', '__radd__')), (torch.sub, sum_of, ('sub', 'subtract', '__sub__')),
    (torch.mul, product_of, ('mul', 'multiply', '__mul__', '__rmul__')),
    (torch.div, product_of, ('div', 'divide', 'true_divide', '__truediv__')),
):
    complex_form(*overloads(*names))(partial(in_parts, function, form))


# transforms

def first_stay(pairs, output, function=None, mixed=None):
    '''Note that an output has the axes of a pair before others, but for one that is mixed.'''
    axes, output.depth = first_axes(pairs[0].axes, output.values[0].shape), pairs[0].depth
    output.axes = axes._replace(places={
        key: None if place is None or place.axis == mixed else place for key, place in axes.places.items()
    })
    return output


def of_axis(function, pair, n=None, dim=-1, norm=None):
    '''A transform along one axis, of real or complex numbers.'''
    shape, is_complex = pair.shape, isinstance(pair, ComplexPair)
    source, dim = pair.parts if is_complex else pair, dim % len(shape)
    unit = torch.eye(shape[dim], dtype=torch.float64, device=pair.device)
    unit = torch.stack([unit, 1j * unit], 1).flatten(0, 1) if is_complex else unit
    rows = as_real(function(unit, n, -1, norm)).abs()
    ends = rows.shape[1:]

    def of_parts(tensor):
        return as_real(function(as_complex(tensor) if is_complex else tensor, n, dim, norm))

    def of_sums(total):
        total = total.movedim(dim, -2).flatten(-2) if is_complex else total.movedim(dim, -1)
        return (total @ rows.flatten(1).to(total.dtype)).unflatten(-1, ends).movedim(len(shape) - 1, dim)

    output = linear(source, of_parts, of_sums, partial(first_stay, mixed=dim))
    return ComplexPair(output) if len(ends) == 2 else output


def as_real(tensor):
    '''A tensor, with its real and imaginary parts if it is complex.'''
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def of_axes(name, default, pair, s=None, dim=None, norm=None):
    '''A transform along several axes, one after the other, of which all but one are of complex numbers.'''
    dim = default if dim is None else dim
    dim, s = ((each,) if isinstance(each, int) else each for each in (dim, s))
    dims = [*range(pair.ndim)][-len(s) if s is not None else 0:] if dim is None else dim
    steps = [(name.replace('rfft', 'fft'), *step) for step in zip(s or [None] * len(dims), dims)]
    steps[-1] = name, *steps[-1][1:]
    output = pair
    for step, n, axis in steps if name.startswith('i') else steps[::-1]:
        output = of_axis(getattr(torch.fft, step), output, n, axis, norm)
    exact = as_real(getattr(torch.fft, f'{name}n')(plain(pair), s, dims, norm))
    return ComplexPair(valued(output.parts, exact)) if isinstance(output, ComplexPair) else valued(output, exact)


for name in ('fft', 'ifft', 'rfft', 'irfft'):
    one, two, several = (getattr(torch.fft, f'{name}{axes}') for axes in ('', 2, 'n'))
    for function, form in (
        (one, partial(of_axis, one)), (two, partial(of_axes, name, (-2, -1))), (several, partial(of_axes, name, None))
    ):
        split_form(function)(complex_form(function)(form))


@split_form(*overloads('stft'))
def stft(pair, n_fft, hop_length=None, win_length=None, window=None, center=True, pad_mode='reflect', normalized=False,
         onesided=None, return_complex=None, **kwargs):
    '''The transforms of overlapping windows. Time goes on from window to window.'''
    hop = n_fft // 4 if hop_length is None else hop_length

    def windows(tensor, hop, center):
        own = window if window is None else window.to(tensor.dtype)
        return torch.view_as_real(torch.stft(
            tensor, n_fft, hop, win_length, own, center, pad_mode, normalized, onesided, return_complex=True, **kwargs
        ))

    rows = windows(torch.eye(n_fft, dtype=torch.float64, device=pair.device), n_fft, False).abs()[:, :, 0]

    def of_sums(total):
        total = total if total.ndim > 1 else total[None]
        padded = F.pad(total, (n_fft // 2,) * 2, pad_mode) if center else total
        found = padded.unfold(-1, n_fft, hop) @ rows.flatten(1).to(total.dtype)
        return found.unflatten(-1, rows.shape[1:]).transpose(1, 2).reshape(shape)

    shape = windows(pair.difference.detach(), hop, center).shape
    output = linear(pair, lambda tensor: windows(tensor, hop, center), of_sums, first_stay)
    time, last = pair.ndim - 1, pair.ndim
    output.axes = output.axes._replace(channels=None, places={
        key: place if place is None or place.axis != time else
        place.resized(last, shape[last]) if place.is_whole(pair.shape) else None
        for key, place in pair.axes.places.items()
    })
    return ComplexPair(output) if return_complex else output
