'''The options that a composite takes where a function has no exact split form, and what is said of them.'''
import functools
import warnings
import weakref

import torch

from ..forms.detached import DetachedActivations
from ..forms.reading import ReadingPass
from ..forms.smooth import SmoothReplacement
from ..forms.statistics import DetachedStatistics
from .errors import LOGITS
from .nested import flatten
from .pair import SplitTensor, TrueGradient
from .settings import Mode, Settings
from .table import OVERLAYS


OPTIONS = {'attention': DetachedStatistics, 'activations': DetachedActivations, 'smooth': SmoothReplacement}
'''The options by their names on the command line. Those that leave the output as it is come first.'''
LARGEST_DEVIATION = .01


class Choices:
    '''The options that a composite has taken by itself, and what else has turned out, for each model.

    Parameters
    ----------
    automatic : bool
        Whether the composite takes any. If not, an error names the options that have a form for a function.
    '''
    def __init__(self, automatic=False):
        self.automatic = automatic
        self.chosen, self.reported = weakref.WeakKeyDictionary(), weakref.WeakSet()
        self.known = weakref.WeakKeyDictionary()  # what made a pass of a model start over, see StartOver

    def apply(self, root):
        '''Apply the options that were taken for a model, and return functions that remove them.'''
        return [option.remove for name in self.chosen.get(root, {}) for option in OPTIONS[name]().apply(root)]

    def add(self, root, error):
        '''Take the first option that has a form for the function of an error and leaves the output as it is, and return
        what removes it. Raise the error if there is none that would help.'''
        applied = {type(option) for option in OVERLAYS.get(root, ())}
        helpful = [name for name in OPTIONS if error.name in functions_of(name)]
        if not helpful or any(OPTIONS[name] in applied for name in helpful):
            raise error
        exact = [name for name in helpful if OPTIONS[name].is_exact]
        if not self.automatic or not exact:
            raise NotImplementedError(request(error, helpful)) from error
        self.chosen.setdefault(root, {})[exact[0]] = f'{error.name} in {error.where}'
        self.reported.discard(root)
        return [option.remove for option in OPTIONS[exact[0]]().apply(root)]

    def report(self, canonizer, output, call, inputs):
        '''Warn once of the options that were taken for the model of a canonizer, a function of its inputs, and of its
        output in split form if that deviates much from the original.'''
        root = canonizer.root
        chosen = self.chosen.get(root, {})
        changed = not all(option.is_exact for option in OVERLAYS.get(root, ()))
        if root in self.reported or not (chosen or changed):
            return
        self.reported.add(root)
        deviation = relative_deviation(output, call([input.clone() for input in inputs]))
        amount = f'deviates by {deviation:.2%} of the spread of the logits' if deviation else 'is bit-identical'
        if chosen:
            taken = ', and '.join(f'{OPTIONS[name].__name__}() for {what}' for name, what in chosen.items())
            left = left_out(canonizer, call, inputs) if 'attention' in chosen else ''
            warnings.warn(
                f'canonizers=\'auto\' takes {taken}: maps are about the model around the given input. Its output'
                f' {amount}{left}', stacklevel=2
            )
        if not deviation <= LARGEST_DEVIATION:
            warnings.warn(
                f'WRONG MODEL: with smooth activations replaced, the output {amount}, so that maps explain another'
                f' function than this model. Do not use them: take {DetachedActivations.__name__}(), which leaves the'
                ' output as it is, or a smaller tolerance', stacklevel=2
            )


@functools.cache
def functions_of(name):
    '''The names of the functions for which an option has a form.'''
    return {getattr(function, '__name__', '') for function in OPTIONS[name]().forms}


def request(error, options):
    '''What the error says for a function that has no exact split form, but has one in options.'''
    makers = ' or '.join(f'{OPTIONS[name].__name__}() (--canonizer {name})' for name in options)
    instead = f'; or {LOGITS}, if it ends there' if 'softmax' in error.name else ''
    return (
        f'{error.name}, called in {error.where}, has no exact split form: pass canonizers=\'auto\' (--canonizer auto)'
        f' to the composite, which is the default, or {makers} among its canonizers{instead}'
    )


class Influence(ReadingPass):
    '''A forward pass whose gradients are those of the difference, with statistics as constants or without.

    Parameters
    ----------
    canonizer : :py:class:`~zennit_dc.SplitCanonizer`
        The canonizer of the model.

    Attributes
    ----------
    constants : dict
        The names of statistics that were used as constants, in their order.
    is_constant : bool
        Whether statistics are constants in the running backward pass.
    '''
    rule = TrueGradient()

    def __init__(self, canonizer):
        super().__init__(Settings(canonizer.pooling, None, canonizer.rule, canonizer.root), Mode(has_graph=True))
        self.constants, self.is_constant = {}, False

    def makes_map(self):
        '''Whether statistics are constants in the running backward pass.'''
        return self.is_constant


def left_out(canonizer, call, inputs):
    '''What is said of the part of each sample's largest score that constants leave out.

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
        The statistics that are constants, and the norm of the gradient that comes through them, as a part of that of
        the whole gradient; or nothing where there are none or no gradient.
    '''
    if torch.is_inference_mode_enabled():
        return ''
    influence = Influence(canonizer)
    with torch.enable_grad():
        leaves = [input.detach().clone().requires_grad_() for input in inputs]
        pairs = [SplitTensor(leaf * 1, leaf.detach().abs(), influence).as_input() for leaf in leaves]
        scores = [leaf.difference for leaf in flatten(call(pairs))[0] if isinstance(leaf, SplitTensor)][:1]
        if not influence.constants or not scores or not scores[0].requires_grad:
            return ''
        score = scores[0].reshape(len(scores[0]) if scores[0].ndim else 1, -1).amax(1).sum()
    whole = torch.autograd.grad(score, leaves, retain_graph=True, materialize_grads=True)
    influence.is_constant = True
    kept = torch.autograd.grad(score, leaves, materialize_grads=True)
    lost = [one.double() - other.double() for one, other in zip(whole, kept)]
    lost, whole = (sum(each.double().square().sum().item() for each in tensors) for tensors in (lost, whole))
    return '' if not whole else (
        f'. Constants are {", ".join(influence.constants)}: what the largest score gets through them is left out,'
        f' {(lost / whole) ** .5:.0%} of its gradient'
    )


def relative_deviation(output, original):
    '''The largest deviation of an output from the original one, as a multiple of the spread of the logits.

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
