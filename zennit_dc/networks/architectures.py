'''The networks of appendix D: Maxout networks for digits, and differences of them.'''
from collections import OrderedDict
from itertools import pairwise

from torch import nn

from .difference import Difference, DifferenceOfConvex
from .layers import FreeConv2d, FreeLinear, Maxout, nonnegative


VARIANTS = ('none', 'ic', 'mon', 'dic', 'dm', 'diff', 'dicin', 'dmin')


class MaxoutNetwork(nn.Sequential):
    '''Layers one after the other, from digits of shape (batch, 1, 28, 28) to scores of shape (batch, 10).'''
    def forward(self, input):
        '''The scores.'''
        if tuple(input.shape[1:]) != (1, 28, 28):
            raise ValueError(f'the input must have the shape (batch, 1, 28, 28), not {tuple(input.shape)}')
        return super().forward(input)


def mlp_maxout(variant, width=800, rank=2, transform='relu', scale=.01):
    '''The wide perceptron of appendix D.1, alone or as a difference of two: fully connected layers from 784 to 800 to
    800 to 800 to 10 features, with batch norm and Maxout after the first three.

    Parameters
    ----------
    variant : {'none', 'ic', 'mon', 'dic', 'dm', 'diff', 'dicin', 'dmin'}
        One network without restrictions, input-convex (whose first layer has weights of either sign), or monotone; or
        the difference of two networks that are input-convex, monotone, or without restrictions (table 12: Diff.None);
        or ``'dic'`` and ``'dm'`` where h sees :math:`1 - x`.
    width : int, optional
        The number of features after each Maxout.
    rank : int, optional
        The rank of Maxout.
    transform : {'relu', 'softplus', 'exp', 'square'}, optional
        The positivity transform p.
    scale : float, optional
        The standard deviation of the Gaussian of whose random numbers the absolute values are the initial non-negative
        weights. Weights without restriction start as PyTorch lets them.

    Returns
    -------
    :py:class:`~zennit_dc.networks.MaxoutNetwork` or :py:class:`~zennit_dc.networks.Difference`
        The network in training mode, from images of shape (batch, 1, 28, 28), with values in [0, 1], to scores of shape
        (batch, 10). The differences of convex networks are :py:class:`~zennit_dc.networks.DifferenceOfConvex`. The
        modules of a network are named ``linear1``, ``norm1``, ``maxout1`` and so on.

    Raises
    ------
    ValueError
        If a parameter is not one of its values; or, when called, if the input has another shape.
    '''
    def layers(free):
        yield 'flatten', nn.Flatten()
        for number in (1, 2, 3):
            linear = FreeLinear if free and number == 1 else nn.Linear
            yield f'linear{number}', linear(784 if number == 1 else width, rank * width, bias=False)
            yield f'norm{number}', nn.BatchNorm1d(rank * width)
            yield f'maxout{number}', Maxout(rank)
        yield 'linear4', nn.Linear(width, 10)

    return variant_of(variant, layers, transform, scale)


def cnn_maxout(variant, channels=(32, 64, 128, 128), widths=(1024, 256), rank=2, transform='relu', scale=.01):
    '''The convolutional network of appendix D.1, alone or as a difference of two: 3 x 3 convolutions with 32, 64, 128
    and 128 channels, each with batch norm and Maxout, and fully connected layers from 6272 to 1024 to 256 to 10
    features with Maxout between. Behind the second and the fourth convolution is a 2 x 2 max-pooling, which the paper
    does not mention, but which its 6272 = 128 * 7 * 7 features need.

    Parameters
    ----------
    variant : {'none', 'ic', 'mon', 'dic', 'dm', 'diff', 'dicin', 'dmin'}
        The variant, see :py:func:`mlp_maxout`.
    channels : tuple of int, optional
        The four numbers of channels after each Maxout.
    widths : tuple of int, optional
        The numbers of features between the fully connected layers.
    rank, transform, scale
        See :py:func:`mlp_maxout`.

    Returns
    -------
    :py:class:`~zennit_dc.networks.MaxoutNetwork` or :py:class:`~zennit_dc.networks.Difference`
        The network, see :py:func:`mlp_maxout`. The modules of a network are named ``conv1``, ``norm1``, ``maxout1``,
        ``pool2``, ``linear1`` and so on.

    Raises
    ------
    ValueError
        If a parameter is not one of its values; or, when called, if the input has another shape.
    '''
    def layers(free):
        for number, (inputs, outputs) in enumerate(pairwise([1, *channels]), 1):
            convolution = FreeConv2d if free and number == 1 else nn.Conv2d
            yield f'conv{number}', convolution(inputs, rank * outputs, 3, padding=1, bias=False)
            yield f'norm{number}', nn.BatchNorm2d(rank * outputs)
            yield f'maxout{number}', Maxout(rank)
            if number in (2, 4):
                yield f'pool{number}', nn.MaxPool2d(2)
        yield 'flatten', nn.Flatten()
        for number, (inputs, outputs) in enumerate(pairwise([7 * 7 * channels[-1], *widths]), 1):
            yield f'linear{number}', nn.Linear(inputs, rank * outputs)
            yield f'maxout{number + len(channels)}', Maxout(rank)
        yield f'linear{len(widths) + 1}', nn.Linear(widths[-1], 10)

    return variant_of(variant, layers, transform, scale)


def variant_of(variant, layers, transform, scale):
    '''A network or the difference of two, from a function ``free -> (name, layer) ...``, which says whether the first
    layer is free to have weights of either sign.'''
    if variant not in VARIANTS:
        raise ValueError(f'variant must be one of {", ".join(map(repr, VARIANTS))}, not {variant!r}')

    def network(restriction):
        model = MaxoutNetwork(OrderedDict(layers(restriction == 'ic')))
        return model if restriction == 'none' else nonnegative(model, transform, scale)

    if variant in ('none', 'ic', 'mon'):
        return network(variant)
    if variant == 'diff':
        return Difference(network('none'), network('none'))
    restriction = 'ic' if variant in ('dic', 'dicin') else 'mon'
    return DifferenceOfConvex(network(restriction), network(restriction), invert=variant in ('dicin', 'dmin'))
