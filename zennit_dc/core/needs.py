'''What a model needs to be split: all its functions without an exact split form, found by running it to its end, and
the canonizers that have forms for them.'''
import functools
import operator
import warnings
import weakref
from itertools import chain
from typing import NamedTuple

import torch

from ..forms.detached import DetachedActivations
from ..forms.smooth import SmoothReplacement
from ..forms.statistics import DetachedStatistics
from ..forms.table import plain
from .nested import flatten
from .errors import Unsupported
from .pair import Pass, SplitTensor, TrueGradient, pairs_in
from .table import FORMS, OVERLAYS


OPTIONS = {'attention': DetachedStatistics, 'activations': DetachedActivations, 'smooth': SmoothReplacement}
'''The canonizers by their names on the command line, those first that leave the output as it is.'''
LARGEST_DEVIATION = .01
TENSORS = operator.attrgetter('tensors')


@functools.cache
def option_forms():
    '''The table of forms of each canonizer by its name.'''
    return {name: option().forms for name, option in OPTIONS.items()}


class Need(NamedTuple):
    '''A call of a function that has no exact split form.

    Parameters
    ----------
    name : str
        The function.
    where : str
        The module that called it.
    options : tuple[str, ...]
        The names of the canonizers with a form for it.
    reason : str
        What the error says.
    '''
    name: str
    where: str
    options: tuple
    reason: str


class Survey(Pass):
    '''A forward pass that goes on after functions without a split form, by their values.

    Parameters
    ----------
    canonizer : :py:class:`~zennit_dc.SplitCanonizer`
        The canonizer of the model.
    forms : dict, optional
        The table of forms. Default is the model's, with the options that are chosen for it.
    '''
    def __init__(self, canonizer, forms=None):
        super().__init__(canonizer.pooling, canonizer.recentering, canonizer.rule, canonizer.root)
        self.forms = self.forms if forms is None else forms
        self.needs, self.softmax = [], None

    def __call__(self, call, inputs):
        '''Run the model, given as a function of its inputs. Returns whether its end is a softmax.'''
        with torch.no_grad():
            copies = [input.detach().clone() for input in inputs]
            output = call([SplitTensor(copy, copy.abs(), self).as_input() for copy in copies])
            list(map(TENSORS, pairs_in(output)))  # which features that are statistics make only now
        tensors = [leaf for leaf in flatten(output)[0] if isinstance(leaf, torch.Tensor)]
        return bool(tensors) and all(tensor is self.softmax for tensor in tensors)

    def evaluate(self, function, args, kwargs):
        '''What a function is on pairs, by its form, or by a canonizer's, or by its value.'''
        try:
            return super().evaluate(function, args, kwargs)
        except Unsupported as error:
            name = getattr(function, '__name__', error.name)
            options = {key: forms[function] for key, forms in option_forms().items() if function in forms}
            output = self.by_option(options, args, kwargs)
            options = options if output is not None else ()
            output = self.by_value(name, function, args, kwargs) if output is None else output
            self.softmax = output if name.removeprefix('special_') in ('softmax', 'log_softmax') else self.softmax
            self.needs.append(Need(name.strip('_'), error.where, tuple(options), str(error)))
            return output

    def by_option(self, forms, args, kwargs):
        '''What the first of some forms makes of pairs, or None if it cannot.'''
        try:
            return next(iter(forms.values()))(*args, **kwargs) if forms else None
        except Unsupported:
            return None

    def by_value(self, name, function, args, kwargs):
        '''What a function is on differences, as pairs; or its first argument if that is changed in place.'''
        leaves, structure = flatten(function(*plain(args), **plain(kwargs)))
        if kwargs.get('inplace') or name.endswith('_') and not name.endswith('__'):
            return args[0]
        return structure([
            SplitTensor(leaf, leaf.abs(), self) if torch.is_tensor(leaf) and leaf.is_floating_point() else leaf
            for leaf in leaves
        ])

    def at_layer(self, module, output):
        '''The output of the layer at which a map is read, as it is.'''
        return output


def needs_of(canonizer, call, inputs, error):
    '''What a model needs, which is given as a function of its inputs, after an error. Raises if its end is softmax, or
    if the survey of it comes to no end.'''
    depends = isinstance(error, Unsupported)
    survey = Survey(canonizer, None if depends else FORMS)
    try:
        ends_with_softmax = survey(call, inputs)
    except Exception as reason:  # whatever the model raises for values that no form has computed
        if isinstance(reason, Unsupported):
            survey.needs.append(Need(reason.name, reason.where, (), str(reason)))
        raise (request(survey.needs) if survey.needs and depends else error) from reason
    if ends_with_softmax:
        last = survey.needs[-1]
        raise NotImplementedError(
            f'the model ends with {last.name}, called in {last.where}, but a probability is no sum that could be split:'
            ' explain the logits, with zennit_dc.Logits(model, drop=\'softmax\') in place of the model'
        ) from error
    return survey.needs if depends else []


class Influence(Pass):
    '''A forward pass whose gradients are those of the difference, with statistics as constants or without.

    Parameters
    ----------
    canonizer : :py:class:`~zennit_dc.SplitCanonizer`
        The canonizer of the model.

    Attributes
    ----------
    constants : dict
        The names of statistics that were used as constants, in their order.
    '''
    rule, is_constant = TrueGradient(), False

    def __init__(self, canonizer):
        super().__init__(canonizer.pooling, None, canonizer.rule, canonizer.root)
        self.has_graph, self.constants = True, {}

    def makes_map(self):
        '''Whether statistics are constants in the running backward pass.'''
        return self.is_constant

    def at_layer(self, module, output):
        '''The output of the layer at which a map is read, as it is.'''
        return output

    def __call__(self, call, inputs):
        '''The part of the gradient of each sample's largest score that comes through constants: the norm of what is
        left out, over that of the whole. None where the score has no gradient.'''
        with torch.enable_grad():
            leaves = [input.detach().clone().requires_grad_() for input in inputs]
            pairs = [SplitTensor(leaf * 1, leaf.detach().abs(), self).as_input() for leaf in leaves]
            scores = [leaf.difference for leaf in flatten(call(pairs))[0] if isinstance(leaf, SplitTensor)][:1]
            if not scores or not scores[0].requires_grad:
                return None
            score = scores[0].reshape(len(scores[0]) if scores[0].ndim else 1, -1).amax(1).sum()
        whole = torch.autograd.grad(score, leaves, retain_graph=True, allow_unused=True)
        self.is_constant = True
        constant = torch.autograd.grad(score, leaves, allow_unused=True)
        squares = [0., 0.]
        for one, other in zip(whole, constant):
            one, other = (torch.zeros(()) if each is None else each.double() for each in (one, other))
            squares = [squares[0] + (one - other).square().sum().item(), squares[1] + one.square().sum().item()]
        return (squares[0] / squares[1]) ** .5 if squares[1] else None


def left_out(canonizer, call, inputs):
    '''What is said of the part of the score that constants leave out.

    Parameters
    ----------
    canonizer : :py:class:`~zennit_dc.SplitCanonizer`
        The canonizer of the model, whose options are applied.
    call : callable
        The model as a function of its inputs.
    inputs : list of :py:class:`torch.Tensor`
        The inputs.

    Returns
    -------
    str
        The statistics that are constants, and the size of what they leave out, as a part of the gradient; or nothing.
    '''
    if torch.is_inference_mode_enabled():
        return ''
    influence = Influence(canonizer)
    share = influence(call, inputs)
    if not influence.constants or share is None:
        return ''
    return (
        f'. Constants are {", ".join(influence.constants)}: what the largest score gets through them is left out,'
        f' {share:.0%} of its gradient'
    )


class Choices:
    '''Which canonizers a composite has chosen for which models by itself.

    Parameters
    ----------
    automatic : bool
        Whether it chooses any, or raises an error that names all that a model needs.
    '''
    def __init__(self, automatic=False):
        self.automatic = automatic
        self.chosen, self.reported = weakref.WeakKeyDictionary(), weakref.WeakSet()

    def apply(self, root):
        '''Apply what was chosen for a model, and return the applied instances.'''
        return [instance for name in self.chosen.get(root, {}) for instance in OPTIONS[name]().apply(root)]

    def choose(self, canonizer, call, inputs, error):
        '''Choose what a model needs, which is given as a function of its inputs, after an error; or raise an error that
        says what that is.'''
        root, found = canonizer.root, {}
        for need in needs_of(canonizer, call, inputs, error):
            found.setdefault(need.options[0] if need.options else None, []).append(need)
        before = self.chosen.setdefault(root, {})
        if not found or found.keys() & before.keys():
            raise error
        if None in found or not self.automatic:
            raise request(found[None] if self.automatic else list(chain(*found.values()))) from error
        before.update(found)
        self.reported.discard(root)
        return [instance for name in found for instance in OPTIONS[name]().apply(root)]

    def report(self, root, output, original, left_out):
        '''Warn once of what was chosen for a model, and where its output deviates much from the original one, which is
        the value of a function, as is what is said of the part of the score that is left out.'''
        chosen = self.chosen.get(root, {})
        changed = not all(option.is_exact for option in OVERLAYS.get(root, ()))
        if root in self.reported or not (chosen or changed):
            return
        self.reported.add(root)
        deviation = relative_deviation(output, original())
        amount = f'deviates by {deviation:.2%} of the spread of the logits' if deviation else 'is bit-identical'
        if chosen:
            taken = ', and '.join(f'{OPTIONS[name].__name__}() for {listed(needs)}' for name, needs in chosen.items())
            warnings.warn(
                f'canonizers=\'auto\' takes {taken}: maps are about the model around the given input. Its output'
                f' {amount}{left_out() if "attention" in chosen else ""}', stacklevel=2
            )
        if not deviation <= LARGEST_DEVIATION:
            warnings.warn(
                f'WRONG MODEL: with smooth activations replaced, the output {amount}, so that maps explain another'
                f' function than this model. Do not use them: take {DetachedActivations.__name__}(), which leaves the'
                ' output as it is, or a smaller tolerance', stacklevel=2
            )


def relative_deviation(output, original):
    '''The largest deviation of an output, in parts of the spread of the logits.

    Parameters
    ----------
    output, original
        Tensors of shape (batch, ...), or nested containers of them.

    Returns
    -------
    float
        The largest absolute difference of an image's logits, over their standard deviation, or over the logit's
        absolute value if there is but one; the largest for all images and tensors.
    '''
    ratios = [0.]
    for one, other in zip(*(flatten(each)[0] for each in (output, original))):
        if torch.is_tensor(other) and other.is_floating_point() and other.numel():
            one, other = (each.detach().double().reshape(len(each) if each.ndim else 1, -1) for each in (one, other))
            spread = other.std(1, correction=0) if other.shape[1] > 1 else other.abs()[:, 0]
            difference = (one - other).abs().amax(1)
            ratios.append(torch.where(difference == 0., 0., difference / spread).max().item())
    return max(ratios)


def listed(needs):
    '''The functions that are needed, with their numbers of calls.'''
    calls = {}
    for need in needs:
        calls.setdefault(need.name, []).append(need.where)
    return ', '.join(f'{name} ({len(places)} ×)' for name, places in calls.items())


def request(needs):
    '''The error that says all that a model needs, in the words of Python and of the command line.'''
    without = list({need.name: need.reason for need in needs if not need.options}.values())
    options = {need.options[0]: None for need in needs if need.options}
    if not options:
        return NotImplementedError('; '.join(without))
    helped = [need for need in needs if need.options]
    makers = ', '.join(f'{OPTIONS[name].__name__}()' for name in OPTIONS if name in options)
    flags = ' '.join(f'--canonizer {name}' for name in OPTIONS if name in options)
    smooth = 'activations' in options and all('smooth' in need.options for need in helped
                                              if need.options[0] == 'activations')
    instead = f', or {SmoothReplacement.__name__}() (smooth) in place of the last' if smooth else ''
    place = helped[0].where
    return NotImplementedError('; '.join([
        f'without an exact split form are {listed(helped)}, the first of them, {helped[0].name}, called in {place}:'
        f' pass canonizers=\'auto\' (--canonizer auto) to the composite, or canonizers=[{makers}] ({flags}){instead}',
        *without
    ]))
