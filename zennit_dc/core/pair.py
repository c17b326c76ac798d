'''The split pair, a tensor that carries a difference of two streams and their sum through a model, and the forward pass
that it belongs to.'''
import math

import torch

from .axes import Axis
from .errors import Unsupported, called_in
from .nested import entries_of
from .table import FUNCTION_FORMS, OPERATORS, forms_of, public


same = torch.ops.aten.alias.default  # a view that keeps all strides: view_as changes the strides of axes of length one


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
        '''Called on each of several pairs that are added or multiplied, with how many there are: a number, or a tensor
        of those of each entry that are not zero.'''
        return pair


class Pass:
    '''One forward pass: what all split pairs in it have in common. The backward pass of this one makes no map, but
    computes true gradients.

    Parameters
    ----------
    pooling : {'wta', 'convex'}
        The form of max-pooling: the winner takes all, or the one that keeps both streams convex (section 3.4).
    recentering : callable, optional
        A function ``(difference, sum) -> sum`` that chooses a new sum after each affine layer.
    rule : :py:class:`TrueGradient`, optional
        The rule outside of modules that have one of their own.
    root : :py:class:`torch.nn.Module`, optional
        The model.

    Attributes
    ----------
    sums : bool
        Whether the value of the sum is computed, or only the way of its gradient.
    has_graph, without_graph : bool
        Whether the original output has a graph; and whether operations need none at present, as below the layer at
        which the map is read.
    is_over : bool
        Whether the context of the pass has ended.
    input_channels : dict
        The index of the axis of channels of each input by its own, or None for one that has none, where it is known.
    tokens : dict
        The places of inputs in the last axis of tokens of each length, where there are others before them.
    reorders : list[str]
        The modules in which the samples were put in another order, before the layer at which a map is read.
    '''
    has_graph, without_graph, is_over = False, False, False
    refused = None  # the error for an operation that was not called by Python, where another one may take its place

    def __init__(self, pooling='wta', recentering=None, rule=None, root=None):
        require_choice('pooling', pooling, ('wta', 'convex'))
        self.pooling, self.recentering, self.root, self.forms = pooling, recentering, root, forms_of(root)
        self.rules, self.sums = [TrueGradient() if rule is None else rule], True
        self.adopted, self.lenders = [], []  # tensors that became pairs, and pairs whose memory plain tensors share
        self.input_channels, self.tokens, self.reorders = {}, {}, []

    @property
    def rule(self):
        '''The rule of the module that is being run, the innermost of the stack.'''
        return self.rules[-1]

    def makes_map(self):
        '''Whether the running backward pass is one that makes a map, in which rules hold.'''
        return False

    def has_batch(self):
        '''Whether the running backward pass is one with several gradients at once.'''
        return False

    def note_loss(self, loss):
        '''Called in a backward pass that makes a map, with a function that returns how much rounding changes it.'''

    def sum_of_input(self, input):
        '''The sum of an input's streams.'''
        return input.abs()

    def embedded(self, difference, stream_sum):
        '''The difference and the sum of an embedding of tokens.'''
        return difference, stream_sum

    def at_layer(self, where, output):
        '''Called with the output of the layer at which a map is read, and what it is called.'''

    def begin(self, pair):
        '''Called with an embedding of tokens.'''

    def reads_next(self, pair):
        '''Whether a map is read at a pair, or after the activation that comes next.'''
        return False

    def require_samples(self, pair, axis):
        '''Called where a function tells which axis of a pair has the samples.'''

    def apply(self, function, args, kwargs, pairs):
        '''What the model gets for a function of arguments, in which there are some pairs.'''
        form = self.forms.get(function)
        if form is None:
            raise unsupported(torch.overrides.resolve_name(function) or getattr(function, '__name__', function), args)
        return noted(form, args, kwargs, pairs)


def noted(form, args, kwargs, pairs):
    '''What a form returns, with a note where one of the pairs in its arguments depends on an autograd function that has
    no form.'''
    cause = foreign_cause(pairs)
    output = form(*args, **kwargs)
    return output if cause is None else foreign(output, cause)


def foreign_cause(pairs):
    '''The error for one of some pairs that depends on an autograd function without a form, or None.'''
    return next((pair.foreign for pair in pairs if pair.foreign is not None), None)


def foreign(output, cause):
    '''Note for all pairs in an output, and those in whose memory they are, that there is no map of them.'''
    for pair in pairs_in(output):
        base = pair if pair.base is None else pair.base
        views = [view() for view in base.views] if pair is base or pair.foreign is None else []
        for each in (pair, base, *views):
            if each is not None and each.foreign is None:
                each.foreign = cause
    return output


INPUT = 'the values of the input, in other places'
GATE = 'the output of a gate, which may be a constant factor'
RECTIFIED = 'the output of a ReLU, which another one leaves as it is'
PROBABILITY = 'the output of softmax itself'
BY_FUNCTION = 'the output of the form of an autograd function, of which nothing was made yet'
MOVED = frozenset((INPUT, GATE, RECTIFIED))  # the facts that hold for the same values in other places
WRITTEN = frozenset((INPUT, PROBABILITY))  # those of a pair that hold after something was written to it

LEAVES = {torch.Tensor, torch.nn.Parameter, type(None), bool, int, float, str}  # what most arguments are


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
    facts = frozenset()  # what is known of the values

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
        self.depth, self.batch, self.channels = 0, None, None  # the latter where they are known to be axes
        self.places = {}  # of the axes of inputs, in a pass that follows them, or None where they are lost
        self.pending = None  # what is still to be done before the tensors are read, a function of this pair
        self.layer = None  # the affine layer that this is the very output of
        self.recipe = None  # a tensor that a rule keeps, of which this is the ReLU
        self.base, self.path, self.views = None, None, []
        self.foreign = None  # the error for what depends on an autograd function without a form, of which no map is

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
            Parameters of :py:class:`Pass`, ``pooling`` and ``recentering`` among them.

        Returns
        -------
        :py:class:`SplitTensor`
            The split pair, whose difference is ``input``.
        '''
        return cls(input, input_sum(input, input_split), Pass(**kwargs)).as_input()

    def as_input(self, samples=0):
        '''This pair as that of an input, whose samples are along an axis with an index, and whose channels are after
        them if that is the first.'''
        shape, self.facts = self.values[0].shape, self.facts | {INPUT}
        self.batch = Axis.at(shape, samples) if shape else None
        self.channels = Axis.at(shape, 1) if len(shape) > 1 and samples == 0 else None
        return self

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
        if not self.split_pass.sums:
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

    def place(self, name):
        '''The negative index of the axis 'batch' or 'channels', or None if it is not known to be an axis.'''
        axis = getattr(self, name)
        return None if axis is None or axis.index is None else axis.index - self.values[0].ndim

    def like(self, difference, stream_sum):
        '''Return a pair of the same forward pass and depth, about whose axes nothing is known.'''
        pair = SplitTensor(difference, stream_sum, self.split_pass)
        pair.depth = self.depth
        pair.places = dict.fromkeys(self.places) if self.places else self.places
        return pair

    def replaced(self, difference, stream_sum):
        '''Return a pair of the same forward pass, depth and axes, as an elementwise function has it.'''
        pair = self.like(difference, stream_sum)
        pair.batch, pair.channels, pair.places = self.batch, self.channels, self.places
        return pair

    def kept(self):
        '''This pair as another object, with all that is known of it.'''
        pair = SplitTensor(*self.values, self.split_pass)
        vars(pair).update(vars(self))
        return pair

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs, function = kwargs or {}, public(function) if isinstance(function, OPERATORS) else function
        pairs = pairs_in((args, kwargs))
        split_pass = common_pass(function, pairs)
        first = next((name for name in ('input', 'tensors', 'self') if name in kwargs), None)
        if first is not None:
            kwargs = dict(kwargs)
            args = kwargs.pop(first), *args
        return split_pass.apply(function, args, kwargs, pairs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default and torch._C._current_graph_task_id() != -1:
            return args[0].kept()  # by a checkpoint that is run again
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
    if split_pass.is_over or any((other.root, split_pass.root) != (None, None) for other in others):
        raise other_pass(getattr(function, '__name__', function), split_pass.is_over)
    for pair in pairs:
        note_autograd_function(pair, function)
    return split_pass


def other_pass(name, is_over):
    '''The error for a function that is called with a pair of another forward pass.'''
    if is_over and torch._C._current_graph_task_id() != -1:
        return RuntimeError(
            f'{name}, called in {called_in(None)}, is run again by a checkpoint after the end of the composite\'s'
            ' context: call the backward pass inside of the context'
        )
    return RuntimeError(
        f'{name}, called in {called_in(None)}, has a split pair of another forward pass: a module keeps what it'
        ' has seen; clear it, or give the module a form with zennit_dc.split_form. Methods that put values of'
        ' their own at a layer, as Captum\'s LayerIntegratedGradients does, are not defined for split pairs:'
        ' name the layer in the composite (layer=...), and call the method for the input'
    )


def note_autograd_function(pair, function):
    '''Note where a pair, an argument of a function, is the output of a :py:class:`torch.autograd.Function` without a
    form, which has no graph of the pair's own tensors.'''
    with torch._C.DisableTorchFunctionSubclass():
        node = pair.grad_fn
    if BY_FUNCTION in pair.facts:
        pair.facts -= {BY_FUNCTION}
        if node is None:  # in torch.no_grad(), which the form did not see
            pair.values, pair.depth = tuple(tensor.detach() for tensor in pair.tensors), -math.inf
    elif node is not None and getattr(node, '_forward_cls', None) not in FUNCTION_FORMS and pair.foreign is None:
        cause = f'{type(node).__name__.removesuffix("Backward")}.apply (an autograd function or reentrant checkpoint)'
        foreign(pair, unsupported(f'{cause} before {getattr(function, "__name__", function)}', (pair,)))


def true_gradients(function, tensors, gradient):
    '''The gradients of a function by its tensors, of which some may be None, from another run of it.'''
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        copies = [tensor if tensor is None else same(tensor) if graph and tensor.requires_grad
                  else tensor.detach().requires_grad_() for tensor in tensors]
        output, known = function(*copies), [copy for copy in copies if copy is not None]
        if not output.requires_grad:
            return [None] * len(copies)
        found = iter(torch.autograd.grad(output, known, gradient, create_graph=graph, allow_unused=True))
    return [None if copy is None else next(found) for copy in copies]


def sum_dtype(dtype):
    '''The dtype of the sum for a dtype of the difference: never less than float32.'''
    return torch.promote_types(dtype, torch.float32)


def input_sum(input, input_split):
    '''The sum of an input's two streams: its absolute value for 'relu', zero for 'half'.'''
    require_choice('input_split', input_split, ('relu', 'half'))
    return input.abs() if input_split == 'relu' else torch.zeros_like(input)


def require_choice(name, value, choices):
    '''Raise if a parameter is not one of its values.'''
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, choices))}, not {value!r}')


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
    '''The pass of the first split pair in nested tuples, lists, dicts and dataclasses, or None if there is
    none.'''
    found = pairs_in(obj)
    return found[0].split_pass if found else None


def unsupported(name, args, reason='', remedy='give it one with zennit_dc.split_form'):
    '''The error for a function which has no split form.'''
    return Unsupported(name, called_in(pass_of(args)), reason, remedy)
