'''The split pair, a tensor that carries a difference of two streams and their sum through a model, and the forward pass
that it belongs to.'''
import math
from typing import NamedTuple

import torch

from .axes import UNKNOWN, Axes, Axis
from .errors import Unsupported, called_in, other_pass
from .following import InputAxes
from .nested import entries_of
from .settings import Mode, Settings
from .table import FUNCTION_FORMS, OPERATORS, forms_of, public, standard_arguments
from .wording import require_choice


# what is known of the values of a pair
INPUT = 'the values of the input, in other places'
GATE = 'the output of a gate, which may be a constant factor'
RECTIFIED = 'the output of a ReLU, which another one leaves as it is'
PROBABILITY = 'the output of softmax itself'
BY_FUNCTION = 'the output of the form of an autograd function, of which nothing was made yet'
ADOPTED = 'the values of a plain tensor, until a pair was written into it'
FILLED = 'the values of a plain tensor, but for samples that were written into it'
MOVED = frozenset((INPUT, GATE, RECTIFIED, FILLED))  # the facts that hold for the same values in other places
WRITTEN = frozenset((INPUT, PROBABILITY, ADOPTED, FILLED))  # those that hold after something was written to a pair


class TrueGradient:
    '''The interface of what an operation on split pairs asks of a rule. This one changes nothing: the backward pass
    computes the true gradient of the split network.'''
    quantity, passes_activations = None, False  # the latter is whether activations pass on what arrives, unchanged

    def output_damping(self, depth):
        '''The factor of the sum's gradient at an output after a number of activations, at least one.'''
        return 1.

    def before_affine(self, pair):
        '''Called on the input of a layer with weights; ``before_linear`` is called on the input of a linear operation
        without weights (averages, sums, constants), and ``after`` on the output of either.'''
        return pair

    before_linear = after = before_affine

    def shared(self, pair, count):
        '''Called on each of several pairs that are added or multiplied, with how many there are, or how many there are
        of each entry.'''
        return pair


class Pass:
    '''One forward pass: what all split pairs in it have in common. The backward pass of this one makes no map, but
    computes true gradients.

    Parameters
    ----------
    settings : :py:class:`~zennit_dc.core.settings.Settings`, optional
        What to compute.
    mode : :py:class:`~zennit_dc.core.settings.Mode`, optional
        What operations do at present.

    Attributes
    ----------
    forms : dict
        The table of forms.
    rules : list
        The rule of the settings, and those of the modules that are being run, the innermost one last.
    plain : list
        Weak references to pairs that were plain tensors, and to those whose memory plain tensors share.
    input_axes : :py:class:`~zennit_dc.core.following.InputAxes`
        What is noted of the axes of inputs.
    '''
    refused = None  # the error for an operation that was called from C++, which may raise another one in its place

    def __init__(self, settings=Settings(), mode=Mode()):
        self.settings, self.forms, self.mode = settings, forms_of(settings.root), mode
        self.rules = [TrueGradient() if settings.rule is None else settings.rule]
        self.plain, self.input_axes = [], InputAxes([], {}, {}, [])

    @property
    def root(self):
        '''The model.'''
        return self.settings.root

    @property
    def rule(self):
        '''The rule that holds, the innermost of the stack.'''
        return self.rules[-1]

    def is_over(self):
        '''Whether the context of this pass has ended, so that its canonizer has nothing to restore any more.'''
        return not getattr(self.settings, 'restore', True)

    def makes_map(self):
        '''Whether the running backward pass is one that makes a map, in which rules hold.'''
        return False

    def has_batch(self):
        '''Whether the running backward pass is one with several gradients at once.'''
        return False

    def sum_of_input(self, input):
        '''The sum of an input's two streams: its absolute value for 'relu', zero for 'half'.'''
        stream_sum = input.abs() if self.settings.input_split == 'relu' else torch.zeros_like(input)
        return stream_sum.to(sum_dtype(input.dtype))

    def embedded(self, difference, stream_sum):
        '''The difference and the sum of an embedding of tokens.'''
        return difference, stream_sum

    def at_layer(self, where, output):
        '''Called with the output of the layer at which a map is read, and what it is called.'''

    def reads_next(self, pair):
        '''Whether a map is read at a pair, or after the activation that comes next.'''
        return False

    def apply(self, function, args, kwargs, pairs):
        '''What the model gets for a function of arguments, in which there are some pairs.'''
        form = self.forms.get(function)
        if form is None or kwargs.get('out') is not None:
            name = torch.overrides.resolve_name(function) or getattr(function, '__name__', function)
            raise unsupported(name, args, *() if form is None else (' for out=', 'take what it returns'))
        return output_of(form, args, kwargs, pairs)


class Rectified(NamedTuple):
    '''What a pair is the ReLU of: a tensor that a rule keeps anyway.'''
    source: torch.Tensor


class SplitTensor(torch.Tensor):
    '''A split pair :math:`(a^+, a^-)` in difference and sum coordinates: :math:`d = a^+ - a^-`, which is the original
    network's activation, and :math:`s = a^+ + a^-`. It reports shape, dtype and device of the difference, and passes
    through modules, functions and operators by their split forms. Everything without a split form raises.

    Parameters
    ----------
    difference : :py:class:`torch.Tensor`
        The difference, a floating point tensor of any shape.
    stream_sum : :py:class:`torch.Tensor`
        The sum, of the same shape. It is kept in at least float32. The streams are non-negative where it is no less
        than the difference's absolute value.
    split_pass : :py:class:`Pass`, optional
        The forward pass. Default is one with winner-takes-all pooling and no re-centering.

    Raises
    ------
    TypeError
        If the difference is no floating point tensor.
    ValueError
        If the shapes differ.
    '''
    facts = frozenset()  # what is known of the values, or the error for all that depends on them

    @staticmethod
    def __new__(cls, difference, stream_sum, split_pass=None):
        if not difference.is_floating_point():
            raise TypeError(f'a split pair needs floating point tensors, not {difference.dtype}')
        if difference.shape != stream_sum.shape:
            raise ValueError(f'the sum has not the shape of the difference, {tuple(difference.shape)}')
        return torch.Tensor._make_wrapper_subclass(
            cls, difference.shape, dtype=difference.dtype, device=difference.device,
            requires_grad=difference.requires_grad or stream_sum.requires_grad
        )

    def __init__(self, difference, stream_sum, split_pass=None):
        self.split_pass = Pass() if split_pass is None else split_pass
        difference, stream_sum = (  # as a mask that was read of a pair makes what it is combined with its own type
            tensor if type(tensor) is torch.Tensor else tensor.as_subclass(torch.Tensor)
            for tensor in (difference, stream_sum)
        )
        self.values = difference, stream_sum.to(sum_dtype(difference.dtype))
        self.depth, self.axes = 0, UNKNOWN
        self.pending = None  # what is still to be done before the tensors are read, a function of this pair
        self.origin = None  # the affine layer that this is the very output of, or what this is the ReLU of
        self.view_of, self.views = None, []  # what this is a view of, or weak references to the views of it

    @classmethod
    def of(cls, input, input_split='relu', **kwargs):
        '''Split a tensor, so that a model can be called on the pair.

        Parameters
        ----------
        input : :py:class:`torch.Tensor`
            The tensor to split, of any shape; (samples, channels, …).
        input_split : {'relu', 'half'}
            Either :math:`x^+ = \\max(x, 0), x^- = \\max(-x, 0)`, or :math:`x^\\pm = \\pm x / 2` (appendix F).
        **kwargs
            Parameters of :py:class:`~zennit_dc.core.settings.Settings`, ``pooling`` and ``recentering`` among them.

        Returns
        -------
        :py:class:`SplitTensor`
            The split pair, whose difference is ``input``.

        Raises
        ------
        ValueError
            If ``pooling`` or ``input_split`` is not one of its values.
        '''
        settings = Settings(**kwargs, input_split=input_split)
        require_choice('pooling', settings.pooling, ('wta', 'convex'))
        require_choice('input_split', input_split, ('relu', 'half'))
        split_pass = Pass(settings)
        return cls(input, split_pass.sum_of_input(input), split_pass).as_input()

    def as_input(self, samples=0):
        '''This pair as that of an input, whose samples are along an axis with an index, and whose channels are after
        them if that is the first.'''
        shape, self.facts = self.values[0].shape, self.facts | {INPUT}
        batch = Axis.at(shape, samples) if shape else None
        self.axes = Axes(batch, Axis.at(shape, 1) if len(shape) > 1 and samples == 0 else None, {})
        return self

    @property
    def unmapped(self):
        '''The error for what has no map, as it depends on an autograd function without a form, or None.'''
        return next((fact for fact in self.facts if isinstance(fact, Unsupported)), None)

    @property
    def layer(self):
        '''The affine layer that this is the very output of, or None.'''
        return None if isinstance(self.origin, Rectified) else self.origin

    @property
    def whole(self):
        '''The pair of which this is a view, or this one itself.'''
        return self if self.view_of is None else self.view_of.base

    @property
    def tensors(self):
        '''The difference and the sum, which is a placeholder with a graph in a pass that does not compute it.'''
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending(self)
        return self.values

    @property
    def difference(self):
        '''The difference :math:`d = a^+ - a^-` of the two streams.'''
        return self.tensors[0]

    @property
    def stream_sum(self):
        '''The sum :math:`s = a^+ + a^-` of the two streams.'''
        if not self.split_pass.mode.sums:
            raise RuntimeError(
                'the sum of this split pair is not computed, since the map does not depend on it (theorem 6); read it'
                ' in the context of SplitLRP or below the layer of a SplitCAM with stream \'+g\', or call the model on'
                ' SplitTensor.of(input)'
            )
        return self.tensors[1]

    @property
    def positive_stream(self):
        '''The positive stream :math:`a^+ = (s + d) / 2`, the argument of g.'''
        return (self.stream_sum + self.difference) / 2

    @property
    def negative_stream(self):
        '''The negative stream :math:`a^- = (s - d) / 2`, the argument of h.'''
        return (self.stream_sum - self.difference) / 2

    def axis(self, name):
        '''The negative index of the axis 'batch' or 'channels', or None if it is not known to be an axis.'''
        return self.axes.axis(name, self.values[0].ndim)

    def like(self, difference, stream_sum):
        '''Return a pair of the same forward pass and depth, about whose axes nothing is known.'''
        pair = SplitTensor(difference, stream_sum, self.split_pass)
        pair.depth = self.depth
        if self.axes.places:
            pair.axes = self.axes.lost()
        return pair

    def replaced(self, difference, stream_sum):
        '''Return a pair of the same forward pass, depth and axes, as an elementwise function has it.'''
        pair = self.like(difference, stream_sum)
        pair.axes = self.axes
        return pair

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs, function = kwargs or {}, public(function) if isinstance(function, OPERATORS) else function
        pairs = pairs_in((args, kwargs))
        split_pass = common_pass(function, pairs)
        if kwargs:
            args, kwargs = standard_arguments(function, args, kwargs)
        return split_pass.apply(function, args, kwargs, pairs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default and torch._C._current_graph_task_id() != -1:
            kept = SplitTensor(*args[0].values, args[0].split_pass)  # by a checkpoint that is run again
            vars(kept).update(vars(args[0]))
            return kept
        remedy = 'call it as Python code, or give the module that calls it a form with zennit_dc.split_form'
        error = unsupported(f'{function} (called by a scripted or compiled function, or from C++)', args, remedy=remedy)
        if (split_pass := pass_of((args, kwargs))) is not None:
            split_pass.refused = error
        raise error

    def __repr__(self, *, tensor_contents=None):
        return 'SplitTensor(difference={!r}, stream_sum={!r})'.format(*self.tensors)

    def __reduce_ex__(self, protocol):
        raise unsupported('copy.deepcopy or pickle of a split pair', (self,))

    __deepcopy__ = __reduce_ex__


def common_pass(function, pairs):
    '''The pass to which all of some pairs, the arguments of a function, belong, or an error if there are several, or if
    it is over. None if there are no pairs.'''
    split_pass = pairs[0].split_pass if pairs else None
    if split_pass is None:
        return None
    others = (pair.split_pass for pair in pairs if pair.split_pass is not split_pass)
    if split_pass.is_over() or any((other.root, split_pass.root) != (None, None) for other in others):
        raise other_pass(getattr(function, '__name__', function), split_pass.is_over())
    for pair in pairs:
        note_autograd_function(pair, function)
    return split_pass


def note_autograd_function(pair, function):
    '''Note where a pair, an argument of a function, is the output of a :py:class:`torch.autograd.Function` without a
    form, which has no graph of the pair's own tensors.'''
    with torch._C.DisableTorchFunctionSubclass():
        node = pair.grad_fn
    if BY_FUNCTION in pair.facts:
        pair.facts -= {BY_FUNCTION}
        if node is None:  # in torch.no_grad(), which the form did not see
            pair.values, pair.depth = tuple(tensor.detach() for tensor in pair.tensors), -math.inf
    elif node is not None and getattr(node, '_forward_cls', None) not in FUNCTION_FORMS and pair.unmapped is None:
        cause = f'{type(node).__name__.removesuffix("Backward")}.apply (an autograd function or reentrant checkpoint)'
        note_unmapped(pair, unsupported(f'{cause} before {getattr(function, "__name__", function)}', (pair,)))


def output_of(form, args, kwargs, pairs):
    '''What a form returns, which has no map where one of the pairs in its arguments has none.'''
    cause = unmapped_cause(pairs)
    output = form(*args, **kwargs)
    return output if cause is None else note_unmapped(output, cause)


def unmapped_cause(pairs):
    '''The error for the first of some pairs that has no map, or None.'''
    return next((pair.unmapped for pair in pairs if pair.unmapped is not None), None)


def note_unmapped(output, cause):
    '''Note the cause for which all pairs in an output, and those that share their memory, have no map.'''
    for pair in pairs_in(output):
        views = [view() for view in pair.whole.views] if pair is pair.whole or pair.unmapped is None else []
        for each in (pair, pair.whole, *views):
            if each is not None and each.unmapped is None:
                each.facts |= {cause}
    return output


def sum_dtype(dtype):
    '''The dtype of the sum for a dtype of the difference: never less than float32.'''
    return torch.promote_types(dtype, torch.float32)


LEAVES = {torch.Tensor, torch.nn.Parameter, type(None), bool, int, float, str}  # what most arguments are


def pairs_in(obj):
    '''All split pairs in nested tuples, lists, dicts and dataclasses.'''
    found, left = [], [obj]
    while left:
        each = left.pop()
        if isinstance(each, SplitTensor):
            found.append(each)
        elif type(each) in (tuple, list):
            left += each[::-1]
        elif type(each) is dict:
            left += [*each.values()][::-1]
        elif type(each) not in LEAVES and not isinstance(each, torch.Tensor):
            left += [*(entries_of(each) or {}).values()][::-1]
    return found


def pass_of(obj):
    '''The pass of the first split pair in nested tuples, lists, dicts and dataclasses, or None if there is none.'''
    found = pairs_in(obj)
    return found[0].split_pass if found else None


def unsupported(name, args, reason='', remedy='give it one with zennit_dc.split_form'):
    '''The error for a function which has no split form.'''
    return Unsupported(name, called_in(pass_of(args)), reason, remedy)
