'''Differences of two networks, and their trained streams as a split pair.'''
import torch
from torch import nn
from torch.nn import functional as F

from ..core.blocks import Instead, linear, passing, pending
from ..core.graphs import same
from ..core.registry import split_form
from .layers import FreeConv2d, FreeLinear, require_nonnegative


class Difference(nn.Module):
    '''The difference :math:`f(x) = g(x) - h(x)` of two networks (section 3.5).

    Parameters
    ----------
    g, h : :py:class:`torch.nn.Module`
        The networks, with inputs and outputs of the same shape.
    invert : bool, optional
        Whether h sees :math:`1 - x` in place of x.
    '''
    def __init__(self, g, h, invert=False):
        super().__init__()
        self.g, self.h = g, h
        self.invert = invert

    def input_of_h(self, input):
        '''What h sees: x, or :math:`1 - x`.'''
        return 1 - input if self.invert else input

    def forward(self, input):
        '''The difference.'''
        g, h = self.g(input), self.h(self.input_of_h(input))
        self.require_same_shape(g, h)
        return g - h

    @staticmethod
    def require_same_shape(g, h):
        '''Raise a ValueError if the outputs differ in shape.'''
        if g.shape != h.shape:
            raise ValueError(f'the outputs of g and h differ in shape: {tuple(g.shape)} and {tuple(h.shape)}')

    def extra_repr(self):
        '''Whether the input of h is inverted.'''
        return 'invert=True' if self.invert else ''


class DifferenceOfConvex(Difference):
    '''The difference :math:`f(x) = g(x) - h(x)`, or :math:`g(x) - h(1 - x)`, of two networks that were built to be
    convex in evaluation mode: monotone ones (DM, DMIN), or input-convex ones (DIC, DICIN; section 3.5).

    The composites of this package take it as it is, and its streams are the trained pair: at the output,
    :math:`a^+ = g(x)` and :math:`a^- = h(x)`, exactly. No weights are split, as there are no negative ones. Inside of g
    and h everything is in the positive stream, up to a constant (that a batch norm subtracts), to which no gradient is
    sensitive (theorem 6): each is entered by the pair :math:`(x, 0)`, or :math:`(1 - x, 0)`, as a monotone network on
    an affine transformation of the input. The affine first layer of an input-convex network
    (:py:class:`~zennit_dc.networks.FreeLinear`) belongs to this transformation. Hence for
    :py:class:`~zennit_dc.SplitGrad` with ``alpha=0`` the streams ``'g'`` and ``'+g'`` are the gradient of g, the
    streams ``'h'`` and ``'+h'`` the gradient of h, both by x; with ``alpha=0.5`` both are plus or minus half of the
    gradient of f. Layers are named ``'g.conv1'`` or ``'h.conv1'``.

    :py:class:`~zennit_dc.SplitLRP` gives all relevance to the positive stream of the output, and so explains g alone.
    To explain h, attribute the network ``h`` at the input ``input_of_h(x)``.

    What is in front of a difference in a larger model is explained by its plain gradient.

    Parameters
    ----------
    g, h : :py:class:`torch.nn.Module`
        The networks, with inputs and outputs of the same shape. Their layers with weights are restricted by
        :py:func:`~zennit_dc.networks.nonnegative`, but the first, which may be a
        :py:class:`~zennit_dc.networks.FreeLinear` or :py:class:`~zennit_dc.networks.FreeConv2d`; all other operations
        must be convex and non-decreasing (Maxout, ReLU, max- and average pooling, flattening, additions).
    invert : bool, optional
        Whether h sees :math:`1 - x` in place of x.

    Raises
    ------
    ValueError
        If g or h is certainly not convex: if weights may become negative, a module is not convex (such as PReLU), or a
        free layer of an :py:class:`torch.nn.Sequential` comes after an activation. Operations that are no modules, and
        where modules are called in another order, are up to you.
    '''
    def __init__(self, g, h, invert=False):
        require_nonnegative(g, 'g')
        require_nonnegative(h, 'h')
        super().__init__(g, h, invert)


@split_form(DifferenceOfConvex)
def trained_pair(module, pair):
    '''The pair :math:`(g(x), h(x))`.'''
    if type(module).forward is not Difference.forward:
        raise NotImplementedError(
            f'{type(module).__name__} is a DifferenceOfConvex with a forward of its own, which has no split form: put'
            ' what it does around a DifferenceOfConvex, in a module that has it as a child'
        )

    g, h = module.g(enter(pair, same)), module.h(enter(pair, module.input_of_h))
    module.require_same_shape(g, h)
    # the last layer, whose weights are 1 and -1, of a network whose other weights are not negative
    streams = torch.stack([without_constant(g), without_constant(h)], 1)
    output = linear(streams, lambda both: both[:, 0] - both[:, 1], lambda both: both[:, 0] + both[:, 1], None)
    output.axes = g.axes._replace(places=output.axes.places)
    return output


@split_form(FreeLinear)
def free_linear(module, pair):
    '''An affine transformation of the input, by weights of either sign.'''
    return free_affine(F.linear(enter(pair, same), module.weight, module.bias))


@split_form(FreeConv2d)
def free_convolution(module, pair):
    '''The same for a convolution.'''
    return free_affine(module._conv_forward(enter(pair, same), module.weight, module.bias))


def free_affine(output):
    '''Put the output of an affine layer into the positive stream.'''
    layer = output.layer
    return pending(in_positive_stream(output, layer.tensors[0]), None, layer.rule)


def enter(pair, function):
    '''A function of the difference, all of it in the positive stream; relevance passes unchanged.'''
    output = in_positive_stream(pair, function(pair.difference))
    return passing(output, pair.tensors)


def in_positive_stream(pair, difference):
    '''The pair :math:`(d, 0)`, whose sum is its difference.'''
    return pair.replaced(difference, difference.to(pair.values[1].dtype))


def without_constant(pair):
    '''Take a constant from both streams, so that nothing is left in the negative one. Maps do not see it (theorem
    6).'''
    difference, stream_sum = pair.tensors
    return pair.replaced(difference, Instead.apply(difference.to(stream_sum.dtype), stream_sum, pair.split_pass))
