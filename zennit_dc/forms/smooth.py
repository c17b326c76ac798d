'''Smooth activations, replaced by piecewise-linear interpolations (section 3.4), and products that they are part of.'''
import functools
import math
from bisect import bisect_left

import torch
from torch.nn import functional as F

from ..core.blocks import multiply
from .activations import PiecewiseLinear, hardsigmoid
from .arithmetic import computed_by, valued
from .table import SplitOption, activation_form, missing, torch_form


class SmoothReplacement(SplitOption):
    '''Replace smooth activations by piecewise-linear interpolations in the split form of a model.

    Pass it to a composite among its ``canonizers``. Each activation (ELU, SELU, CELU, SiLU, GELU, Mish, Softplus,
    Sigmoid, LogSigmoid, Tanh, Tanhshrink; as module or function) becomes the function that interpolates it
    linearly between knots, which are as far apart as the tolerance allows, and continues with the activation's
    asymptotes where these are no further away than the tolerance. g and h are convex and monotone for all inputs, as in
    the paper. But the model's output changes: a warning says so where it does by more than 1 % of the spread of the
    logits. :py:class:`~zennit_dc.DetachedActivations` leaves it as it is.

    Parameters
    ----------
    tolerance : float, optional
        The largest absolute error of each replaced activation.

    Raises
    ------
    ValueError
        If the tolerance is not positive, or less than 1e-6, for which the knots would be too many.
    '''
    is_exact = False

    def __init__(self, tolerance: float = 1e-3):
        if not 1e-6 <= tolerance < math.inf:
            raise ValueError(f'the tolerance must be a number from 1e-6 on, not {tolerance!r}')
        self.tolerance = tolerance
        self.forms = replacements(tolerance)


@functools.cache
def interpolation(name, tolerance, parameters):
    '''The piecewise-linear interpolation of an activation.

    Parameters
    ----------
    name : str
        A key of :py:data:`SMOOTH`.
    tolerance : float
        The largest absolute error.
    parameters : tuple
        Pairs of names and values of the activation's parameters.

    Returns
    -------
    :py:class:`~zennit_dc.forms.activations.PiecewiseLinear`
        The interpolation.
    '''
    function, left, right = SMOOTH[name]
    parameters = dict(parameters)
    # the asymptotes are reached where the function stays within the tolerance from there to far outside
    far = 64. / min(1., abs(parameters.get('beta', 1.)))
    grid = torch.linspace(-far, far, 2 ** 20 + 1, dtype=torch.float64)
    values = function(grid, **parameters)
    first = last_within(values - left * grid, tolerance)
    last = len(grid) - 1 - last_within((values - right * grid).flip(0), tolerance)
    knots = [first]
    while knots[-1] < last:
        knots.append(furthest(grid, values, knots[-1], max(last, first + 1), tolerance))
    knots = torch.tensor(knots)
    slopes = values[knots].diff() / grid[knots].diff()
    return PiecewiseLinear(grid[knots], [left, *slopes.tolist(), right], values[knots[0]].item())


def last_within(values, tolerance):
    '''The last index up to which values differ from each other by no more than the tolerance.'''
    spread = torch.cummax(values, 0).values - torch.cummin(values, 0).values
    return max(int((spread <= tolerance).sum()) - 1, 0)


def furthest(grid, values, start, end, tolerance):
    '''The furthest index up to which the chord from a start is within the tolerance, by bisection.'''
    def is_beyond(index):
        inner = slice(start, index + 1)
        slope = (values[index] - values[start]) / (grid[index] - grid[start])
        error = values[inner] - values[start] - slope * (grid[inner] - grid[start])
        return not bool(error.abs().max() <= tolerance)  # as it is not for nan

    return start + 1 + bisect_left(range(start + 2, end + 1), True, key=is_beyond)


# each activation with the slopes of its asymptotes
SMOOTH = {
    'elu': (F.elu, 0., 1.),
    'selu': (F.selu, 0., 1.0507009873554804934193349852946),
    'celu': (F.celu, 0., 1.),
    'silu': (F.silu, 0., 1.),
    'gelu': (F.gelu, 0., 1.),
    'mish': (F.mish, 0., 1.),
    'softplus': (F.softplus, 0., 1.),
    'sigmoid': (torch.sigmoid, 0., 0.),
    'logsigmoid': (F.logsigmoid, 1., 0.),
    'tanh': (torch.tanh, 0., 0.),
    'tanhshrink': (F.tanhshrink, 1., 1.),
}
POSITIONS = {'elu': ('alpha',), 'celu': ('alpha',), 'softplus': ('beta', 'threshold')}


def parametric_forms(names, form, table):
    '''Register a form ``(pair, name, parameters)`` for activations by their names, and by names and values of their
    parameters.'''
    for name in names:
        @activation_form(name, *['expit'] if name == 'sigmoid' else [], table=table)
        def parametric(pair, *args, name=name, **kwargs):
            parameters = {**dict(zip(POSITIONS.get(name, ()), args)), **kwargs}
            return form(pair, name, tuple(sorted(parameters.items())))
    return table


def replacements(tolerance):
    '''The table of forms of smooth activations that are interpolated with a tolerance.'''
    return parametric_forms(
        SMOOTH, lambda pair, name, parameters: interpolation(name, tolerance, parameters).split(pair), {}
    )


missing(
    replacements(1e-3), ', as it is smooth',
    'pass canonizers=[zennit_dc.DetachedActivations()] (--canonizer activations) to the composite to take its ratio to'
    ' the input as a constant, or [zennit_dc.SmoothReplacement()] (--canonizer smooth) to replace it by a'
    ' piecewise-linear function'
)


@torch_form('glu')
def glu(pair, dim=-1):
    first, gate = pair.chunk(2, dim)
    factor = torch.sigmoid(gate)
    if torch.equal(factor.difference, torch.sigmoid(gate.difference)):  # and not a replacement, of another value
        return valued(first * factor, F.glu(pair.difference.detach(), dim))
    return first * factor


@activation_form('hardswish')
@computed_by(F.hardswish)
def hardswish(pair):
    '''Exact, as the product of the input and its hard sigmoid.'''
    return multiply(pair, hardsigmoid(pair), torch.mul)
