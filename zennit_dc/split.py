'''The split pair: a tensor that carries a difference of two streams and their sum through a model.'''
import sys
import weakref
from dataclasses import dataclass, field

import torch


FORMS = {}
MODULE_FORMS = {}


def split_form(*functions):
    '''Register a split form: what is called in place of a function, or of a module, on split pairs.

    Parameters
    ----------
    *functions : callable or type
        Torch functions, methods or operators (anything that dispatches to ``__torch_function__``), which are replaced
        by the decorated function with the same arguments; or subclasses of :py:class:`torch.nn.Module`, whose
        instances have their forward replaced, inside of a composite's context, by the decorated function with the
        module as its first argument. Later registrations replace earlier ones.

    Returns
    -------
    callable
        A decorator that returns the decorated function unchanged. The function should return a
        :py:class:`SplitTensor`, best made with the building blocks :py:func:`~zennit_dc.affine.affine`,
        :py:func:`~zennit_dc.operations.linear`, :py:func:`~zennit_dc.operations.activation` and
        :py:func:`~zennit_dc.operations.route`, which also say what happens to relevance.
    '''
    def register(form):
        for function in functions:
            is_module = isinstance(function, type) and issubclass(function, torch.nn.Module)
            (MODULE_FORMS if is_module else FORMS)[function] = form
        return form
    return register


class TrueGradient:
    '''The interface of what an operation on split pairs asks of a rule. This one changes nothing: the backward pass
    computes the true gradient of the split network.'''
    quantity = None
    merges_batch_norm = False
    damping = 1.

    def output_damping(self, form):
        '''The factor of the sum's gradient at the model's output, for the form of a finished forward pass.'''
        return self.damping

    def before_affine(self, pair):
        '''Called on the input of a layer with weights.'''
        return pair

    def before_linear(self, pair):
        '''Called on the input of a linear operation without weights: averages, sums, constants.'''
        return pair

    def behind(self, pair):
        '''Called on the output of either of them.'''
        return pair

    def activation(self, function, pair):
        '''Apply an elementwise nonlinear function of the pair.'''
        return function(pair)

    def pooling(self, winner, convex):
        '''Return the sum of a convex max-pooling, given the sum at the winner's place, and the convex one.'''
        return convex

    def negation(self, pair):
        '''Exchange the streams.'''
        return pair.like(-pair.difference, pair._stream_sum)

    def summands(self, *pairs):
        '''Called on the pairs that will be added to each other.'''
        return pairs

    def factors(self, *pairs):
        '''Called on the pairs that will be multiplied with each other.'''
        return pairs

    def unruled(self):
        '''What holds in place of this rule in a pass whose gradient shall be the true one.'''
        return TrueGradient()


@dataclass
class SplitForm:
    '''How one forward pass is split. All pairs of a forward pass share one instance.

    Parameters
    ----------
    pooling : {'wta', 'convex'}
        The form of max-pooling: the winner takes all, or the one that keeps both streams convex (section 3.4).
    recentering : callable, optional
        A function ``(difference, sum) -> sum`` which chooses a new sum behind each affine layer.
    rules : list
        The stack of rules: the default, and that of each module that is being run, the innermost last.
    root : :py:class:`torch.nn.Module`, optional
        The model, for the names in messages.
    sums : {'values', 'unevaluated', 'growth'}
        Whether the sum is computed, or only its gradient's way back is kept, or it measures by how much that gradient
        grows from layer to layer.
    recorded : list, optional
        Where to record the values that rules ask for, in a pass with the true gradient.
    replayed : iterator, optional
        The recorded values, for the rules of a pass whose map is to be differentiated.
    depth : int
        The largest number of activations on the way from the input, or from the layer at which the map is read, to any
        pair so far.
    '''
    pooling: str = 'wta'
    recentering: object = None
    rules: list = field(default_factory=lambda: [TrueGradient()])
    root: object = None
    sums: str = 'values'
    recorded: list = None
    replayed: object = None
    run: object = None
    counts_growth: bool = False
    used_values: bool = False
    depth: int = 0

    def __post_init__(self):
        if self.pooling not in ('wta', 'convex'):
            raise ValueError(f'pooling must be \'wta\' or \'convex\', not {self.pooling!r}')

    @property
    def rule(self):
        '''The rule of the module that is being run.'''
        return self.rules[-1]

    def values(self, pair):
        '''The pair's tensors as values for a rule's formula, cut off from the pair's own gradient; where the map
        itself is to be differentiated, those that an earlier, unmodified pass has recorded.'''
        self.used_values = True
        if self.replayed is not None:
            return next(self.replayed)
        return pair.difference.detach(), pair._stream_sum.detach()

    def constants(self, *tensors):
        '''Tensors that depend on the input, as constants; where the map itself is to be differentiated, those that an
        earlier pass has recorded.'''
        self.used_values = True
        if self.replayed is not None:
            return next(self.replayed)
        if self.recorded is not None:
            self.recorded.append(tensors)
            return tensors
        return tuple(tensor.detach() for tensor in tensors)

    def name(self, module):
        '''Describe a module by its name in the model and its type.'''
        names = dict((child, name) for name, child in self.root.named_modules()) if self.root is not None else {}
        name = names.get(module)
        return f'{type(module).__name__}' if name is None else f'\'{name}\' ({type(module).__name__})'


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
    form : :py:class:`SplitForm`, optional
        How the forward pass is split. Default is winner-takes-all pooling and no re-centering.

    Raises
    ------
    TypeError
        If the difference is no floating point tensor.
    ValueError
        If the shapes differ.
    '''
    @staticmethod
    def __new__(cls, difference, stream_sum, form=None):
        if not difference.is_floating_point():
            raise TypeError(f'a split pair needs floating point tensors, not {difference.dtype}')
        if difference.shape != stream_sum.shape:
            raise ValueError(
                f'difference and sum differ in shape: {tuple(difference.shape)} and {tuple(stream_sum.shape)}'
            )
        return torch.Tensor._make_wrapper_subclass(
            cls, difference.shape, dtype=difference.dtype, device=difference.device,
            requires_grad=difference.requires_grad or stream_sum.requires_grad
        )

    def __init__(self, difference, stream_sum, form=None):
        self.difference = difference
        self._stream_sum = stream_sum.to(sum_dtype(difference.dtype))
        self.form = SplitForm() if form is None else form
        self.exponent = None
        self.depth = 0  # minus infinity below the layer at which the map is read
        self.batch_axis, self.channel_axis = 0, 1
        self.layer = None
        self.aliases = [weakref.ref(self)]
        self.torn = False

    @classmethod
    def of(cls, input, input_split='relu', **kwargs):
        '''Split a tensor, so that a model can be called on the pair.

        Parameters
        ----------
        input : :py:class:`torch.Tensor`
            The tensor to split, of any shape.
        input_split : {'relu', 'half'}
            Either :math:`x^+ = \\max(x, 0), x^- = \\max(-x, 0)`, or :math:`x^\\pm = \\pm x / 2` (appendix F).
        **kwargs
            Parameters of :py:class:`SplitForm`, ``pooling`` and ``recentering`` among them.

        Returns
        -------
        :py:class:`SplitTensor`
            The split pair, whose difference is ``input``.
        '''
        return cls(input, input_sum(input, input_split), SplitForm(**kwargs))

    @property
    def stream_sum(self):
        '''The sum :math:`s = a^+ + a^-` of the two streams.'''
        if self.form.sums != 'values':
            raise RuntimeError(
                'the sum of this split pair is not computed, since the map does not depend on it (theorem 6); read it'
                ' in the context of SplitLRP or below the layer of a SplitCAM with stream \'+g\', or call the model on'
                ' SplitTensor.of(input)'
            )
        return self._stream_sum

    @property
    def positive_stream(self):
        '''The positive stream :math:`a^+ = (s + d) / 2`, the argument of g.'''
        return (self.stream_sum + self.difference) / 2

    @property
    def negative_stream(self):
        '''The negative stream :math:`a^- = (s - d) / 2`, the argument of h.'''
        return (self.stream_sum - self.difference) / 2

    def like(self, difference, stream_sum):
        '''Return a pair of the same forward pass.'''
        pair = SplitTensor(difference, stream_sum, self.form)
        pair.exponent, pair.batch_axis, pair.channel_axis = self.exponent, self.batch_axis, self.channel_axis
        pair.depth = self.depth
        return pair

    def map(self, function):
        '''Return a pair with a function applied to both of its tensors.'''
        return self.like(function(self.difference), function(self._stream_sum))

    def assign(self, other):
        '''Take another pair's value in place, as an in-place operation on a tensor would: also for all views.'''
        alive = [pair for pair in (alias() for alias in self.aliases) if pair is not None]
        if len(alive) > 1:
            try:
                if any(pair.torn for pair in alive):
                    raise RuntimeError('the sum of a view has a memory of its own')
                self.difference.copy_(other.difference)
                self._stream_sum.copy_(other._stream_sum)
            except RuntimeError as error:
                raise unsupported(
                    'an in-place operation on a view, or on a tensor of which there are views', (self,),
                    f' here ({str(error).splitlines()[0]})', 'use the operation that is not in-place'
                ) from error
        else:
            self.difference, self._stream_sum = other.difference, other._stream_sum
        for pair in alive:
            pair.exponent, pair.depth, pair.layer = other.exponent, other.depth, None
        self.layer = other.layer
        return self

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        form = FORMS.get(function)
        if form is None:
            raise unsupported(torch.overrides.resolve_name(function) or getattr(function, '__name__', function), args)
        kwargs = dict(kwargs or {})
        args = *(kwargs.pop(name) for name in ('input', 'tensors') if name in kwargs), *args
        for pair in pairs_in(args):
            pair.require_no_node(function)
        result = form(*args, **kwargs)
        for output in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(output, SplitTensor):
                output.join_aliases(args)
        return result

    def require_no_node(self, function):
        '''Raise if this pair is the output of a :py:class:`torch.autograd.Function`, which computes it without a graph
        of the pair's own tensors.'''
        with torch._C.DisableTorchFunctionSubclass():
            node = self.grad_fn
        if node is not None:
            raise unsupported(
                f'{type(node).__name__.removesuffix("Backward")}.apply (an autograd function or reentrant checkpoint)'
                f' before {getattr(function, "__name__", function)}', (self,)
            )

    def join_aliases(self, sources):
        '''Join the views of those of the sources that share this pair's memory.'''
        for source in sources:
            if not isinstance(source, SplitTensor) or source is self or source.aliases is self.aliases:
                continue
            shared = memory_of(source.difference) == memory_of(self.difference)
            sum_shared = memory_of(source._stream_sum) == memory_of(self._stream_sum)
            if shared:
                source.aliases.append(weakref.ref(self))
                self.aliases = source.aliases
            if self.form.sums == 'values' and shared != sum_shared:
                if shared:
                    self.torn = source.torn = True
                else:
                    self._stream_sum = self._stream_sum.clone()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise unsupported(function, args)

    def __format__(self, specification):
        return format(repr(self), specification)

    def __repr__(self, *, tensor_contents=None):
        return f'SplitTensor(difference={self.difference!r}, stream_sum={self._stream_sum!r})'

    def __deepcopy__(self, memo):
        raise unsupported('copy.deepcopy', (self,))

    def __reduce_ex__(self, protocol):
        raise unsupported('pickle', (self,))


def memory_of(tensor):
    '''What is equal for tensors that share their memory.'''
    return tensor.untyped_storage()._cdata


def sum_dtype(dtype):
    '''The dtype of the sum for a dtype of the difference: never less than float32.'''
    return torch.promote_types(dtype, torch.float32)


def input_sum(input, input_split):
    '''The sum of an input's two streams: its absolute value for 'relu', zero for 'half'.'''
    if input_split == 'relu':
        return input.abs()
    if input_split == 'half':
        return torch.zeros_like(input)
    raise ValueError(f'input_split must be \'relu\' or \'half\', not {input_split!r}')


def pairs_in(obj):
    '''All split pairs in nested tuples, lists and dicts.'''
    if isinstance(obj, SplitTensor):
        yield obj
    elif isinstance(obj, (tuple, list)):
        for element in obj:
            yield from pairs_in(element)
    elif isinstance(obj, dict):
        yield from pairs_in(list(obj.values()))


def has_pairs(obj):
    '''Whether there is a split pair in nested tuples, lists and dicts.'''
    return next(pairs_in(obj), None) is not None


def called_in(form):
    '''Describe the module in which the running function was called.'''
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get('self')
        if isinstance(module, torch.nn.Module):
            return f'module {form.name(module) if form is not None else type(module).__name__}'
        frame = frame.f_back
    return 'no module'


def unsupported(name, args, reason='', remedy='give it one with zennit_dc.split_form'):
    '''The error for a function which has no split form.'''
    form = next((pair.form for pair in pairs_in(args)), None)
    return NotImplementedError(f'{name}, called in {called_in(form)}, has no split form{reason}: {remedy}')
