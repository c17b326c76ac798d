'''Statistics that wait until it is known what they are used for: as constants where they scale or divide something, and
as split pairs where they are features themselves.'''
import math
import weakref
from contextlib import contextmanager
from functools import cache

import torch

from ..core.blocks import Instead
from ..core.nested import flatten
from ..core.pair import SplitTensor, common_pass, pairs_in
from ..core.table import public, standard_arguments
from ..core.views import alive
from .table import each_pair, is_in_place, overloads, plain


DIVISIONS = overloads(
    'div', 'divide', 'true_divide', '__truediv__', 'div_', 'divide_', 'true_divide_', '__itruediv__', 'floor_divide'
)
SCALINGS = overloads('mul', 'multiply', '__mul__', '__rmul__', 'mul_', 'multiply_', '__imul__')
PRODUCTS = overloads('matmul', 'mm', 'bmm', 'mv', '__matmul__', '__rmatmul__', 'einsum', 'tensordot')
LAYERS = overloads(
    'linear', 'addmm', *(f'conv{transposed}{axes}d' for transposed in ('', '_transpose') for axes in (1, 2, 3))
)
WEIGHTS = overloads('rsqrt', 'reciprocal', '__rtruediv__', '__rdiv__', 'softmax', 'special_softmax')
POWERS = overloads('pow', '__pow__', 'float_power')
LIKE_OTHERS = overloads('expand_as', 'view_as', 'reshape_as', 'type_as')


def constant(tensor, split_pass):
    '''A tensor that depends on the input, as a constant of the map.'''
    return Instead.apply(tensor, None, split_pass)


def note(split_pass, name):
    '''Note, in a pass that asks for it, that something is a constant of the map.'''
    if hasattr(split_pass, 'constants'):
        split_pass.constants[name] = None


def as_constants(obj):
    '''Replace split pairs in arguments by their difference, as constants of the map.'''
    return each_pair(as_constant, obj)


def as_constant(pair):
    '''The difference of a pair as a constant of the map.'''
    if isinstance(pair, Statistic) and pair.value is not None:
        return pair.value
    return constant(pair.difference, pair.split_pass)


class Statistic(SplitTensor):
    '''A statistic of the input. It is a constant of the map where it scales or divides something, and what is made of
    statistics and constants alone is a statistic as well. The split pair is made where something else is done with it,
    which makes it a feature.

    Parameters
    ----------
    value : :py:class:`torch.Tensor`
        The statistic as a constant.
    split_pass : :py:class:`~zennit_dc.core.pair.Pass`
        The forward pass.
    carry : callable
        A function without arguments that returns the split pair.
    is_weight : bool, optional
        Whether this is a constant in each product with other pairs, as attention weights and reciprocals are. Other
        statistics are so if the product has more entries.
    entries : int, optional
        The number of entries before they were repeated. Default is that of the value.
    sources : list of :py:class:`Statistic`, optional
        What it is made of, if that are statistics.
    title : str, optional
        The function that it is the value of. Default is that of the first source.
    '''
    is_ordinary = False  # whether a map is read here, so that it is used as any other pair

    @staticmethod
    def __new__(cls, value, split_pass, *args, **kwargs):
        return SplitTensor.__new__(cls, value, value, split_pass)

    def __init__(self, value, split_pass, carry, is_weight=False, entries=None, sources=(), title=None):
        super().__init__(value, value.detach(), split_pass)
        self.value, self.carry, self.is_weight = value, carry, is_weight
        self.entries = value.numel() if entries is None else entries
        self.state, self.title = state_of(split_pass), sources[0].title if title is None else title
        self.relatives = [relatives for source in sources for relatives in source.relatives] or [[]]
        for relatives in self.relatives:
            relatives.append(weakref.ref(self))

    def resolve(self):
        '''Become the split pair.'''
        if self.carry is None:
            return
        carry, self.carry = self.carry, None
        with in_state(self.split_pass, *self.state):
            pair = carry()
        if isinstance(pair, Statistic):
            pair.resolve()
        kept = {name: self.__dict__[name] for name in OWN}
        self.__dict__.update({**pair.__dict__, **kept})
        if self.view_of is not None:
            self.view_of.base.views.append(weakref.ref(self))

    @property
    def tensors(self):
        '''The difference and the sum of the split pair.'''
        self.resolve()
        return super().tensors

    def axis(self, name):
        '''The negative index of an axis of the split pair, see :py:meth:`SplitTensor.axis`.'''
        self.resolve()
        return super().axis(name)

    def changed(self, is_statistic):
        '''Be ready for an operation in place, after which this may be a statistic no longer.'''
        found = {id(each): each for relatives in self.relatives for each in alive(relatives)}
        for each in found.values():
            each.resolve()
            each.value, each.is_ordinary = None, each.is_ordinary or not is_statistic

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        call, function = SplitTensor.__torch_function__, public(function)
        args, kwargs = standard_arguments(function, args, kwargs or {})
        found = pairs_in((args, kwargs))
        split_pass = common_pass(function, found)
        for pair in found:
            if isinstance(pair, Statistic) and split_pass.reads_next(pair):
                pair.is_ordinary = True
        statistics = [pair for pair in found if waits(pair)]
        target = args[0] if args else None
        if waits(target) and is_in_place(function, kwargs):
            target.changed(len(statistics) == len(found))
        elif len(statistics) == len(found):
            return chained(split_pass, function, args, kwargs, statistics)
        else:
            args, kwargs = with_constants(function, args, kwargs)
            left = pairs_in((args, kwargs))
            if left and all(map(waits, left)):
                return chained(split_pass, function, args, kwargs, left)
        for pair in pairs_in((args, kwargs)):
            if isinstance(pair, Statistic):
                pair.resolve()
        return call(function, types, args, kwargs)


OWN = 'value', 'carry', 'is_weight', 'entries', 'state', 'relatives', 'title'  # what stays of it as a split pair


def waits(obj):
    '''Whether an object is a statistic of which it is not known what it is used for.'''
    return isinstance(obj, Statistic) and not obj.is_ordinary


def state_of(split_pass):
    '''What an operation of a pass depends on besides its arguments.'''
    return [*split_pass.rules], split_pass.mode, torch.is_grad_enabled()


@contextmanager
def in_state(split_pass, rules, mode, graph):
    '''A context for operations that were called before.'''
    before = split_pass.rules, split_pass.mode
    split_pass.rules, split_pass.mode = rules, mode
    try:
        with torch.set_grad_enabled(graph and mode.keeps_graph):
            yield
    finally:
        split_pass.rules, split_pass.mode = before


def chained(split_pass, function, args, kwargs, sources):
    '''What a function makes of statistics and constants alone.'''
    with torch.set_grad_enabled(torch.is_grad_enabled() and split_pass.mode.keeps_graph):
        result = function(*as_constants(args), **as_constants(kwargs))
    if getattr(split_pass.forms.get(function), 'is_reading', False):
        return result
    known = {id(source.value): source for source in sources if source.value is not None}
    leaves, structure = flatten(result)

    @cache
    def carried():
        return flatten(SplitTensor.__torch_function__(function, (), args, kwargs))[0]

    is_weight = any(source.is_weight for source in sources) or function in WEIGHTS
    is_weight |= function in DIVISIONS and not isinstance(args[0], Statistic)  # a constant, divided by a statistic
    is_weight |= function in POWERS and bool((torch.as_tensor(plain((*args[1:], *kwargs.values()))[0]) < 0).all())
    repeats = function not in LAYERS | PRODUCTS
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            entries = min([leaf.numel()] + repeats * [max(source.entries for source in sources)])
            leaves[place] = known[id(leaf)] if id(leaf) in known else Statistic(
                leaf, split_pass, lambda place=place: carried()[place], is_weight, entries, sources
            )
    return structure(leaves)


def with_constants(function, args, kwargs):
    '''The arguments of a function of statistics and other pairs, with constants in place of those pairs that divide or
    scale, and of those of which only the shape matters.'''
    if function in LIKE_OTHERS:
        return (args[0], *as_constants(args[1:])), as_constants(kwargs)
    if function in DIVISIONS:
        return (args[0], *constants_of(args[1:])), constants_of(kwargs)
    if function in LAYERS:
        first = 2 if function in overloads('addmm') else 1  # up to the layer's input
        return (*args[:first], *constants_of(args[first:], waits)), {
            name: each if name == 'mat1' else constants_of(each, waits) for name, each in kwargs.items()
        }
    if function in SCALINGS:
        shapes = [each.shape for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
        entries = math.prod(torch.broadcast_shapes(*shapes))
        return constants_of((args, kwargs), lambda each: waits(each) and (each.is_weight or entries > each.entries))
    if function in PRODUCTS:
        return constants_of((args, kwargs), lambda each: waits(each) and each.is_weight)
    return args, kwargs


def constants_of(obj, condition=lambda pair: True):
    '''Replace the split pairs that fulfil a condition, or all of them, by constants of the map.'''
    def change(pair):
        if not condition(pair):
            return pair
        note(pair.split_pass, pair.title if isinstance(pair, Statistic) else 'divisors')
        return as_constant(pair)

    return each_pair(change, obj)
