'''Layers of monotone and input-convex networks: effective weights that cannot be negative, and Maxout.'''
import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize


# the positivity transforms p of appendix D.1, each with its inverse for positive weights
TRANSFORMS = {
    'relu': (torch.relu, torch.clone),
    'softplus': (F.softplus, lambda weight: weight + torch.log(-torch.expm1(-weight))),
    'exp': (torch.exp, torch.log),
    'square': (torch.square, torch.sqrt),
}
SMALLEST = 1e-6  # the weight that zero becomes where the transform only reaches zero in the limit, or is flat there


class Positive(nn.Module):
    '''A parametrization by which weights are :math:`p(\\tilde W)` of the parameters :math:`\\tilde W` that are trained
    (appendix D.1).

    Parameters
    ----------
    transform : {'relu', 'softplus', 'exp', 'square'}
        The positivity transform p.

    Raises
    ------
    ValueError
        If there is no such transform; or, when assigned, if a weight is negative.
    '''
    def __init__(self, transform='relu'):
        super().__init__()
        if transform not in TRANSFORMS:
            raise ValueError(f'transform must be one of {", ".join(map(repr, TRANSFORMS))}, not {transform!r}')
        self.transform = transform

    def forward(self, parameter):
        '''The effective weights.'''
        return TRANSFORMS[self.transform][0](parameter)

    def right_inverse(self, weight):
        '''Parameters with these effective weights. Zero is only reached by ReLU, and else is a weight of 1e-6.'''
        if (weight < 0).any():
            raise ValueError('weights that are restricted to non-negative ones cannot be set to negative ones')
        return TRANSFORMS[self.transform][1](weight if self.transform == 'relu' else weight.clamp(min=SMALLEST))

    def extra_repr(self):
        '''The transform's name.'''
        return repr(self.transform)


class FreeLinear(nn.Linear):
    '''A fully connected layer with weights of either sign, to be the first of an input-convex network: what follows is
    a monotone network on an affine transformation of the input (appendix D). In split form, all of its output is in the
    positive stream.'''


class FreeConv2d(nn.Conv2d):
    '''A convolution with weights of either sign, to be the first layer of an input-convex network, see
    :py:class:`FreeLinear`.'''


FREE = FreeLinear, FreeConv2d
# what may be between the input and a free layer
AFFINE = *FREE, nn.Flatten, nn.Unflatten, nn.Linear, nn.modules.conv._ConvNd, _BatchNorm, nn.Identity, nn.Dropout
# modules that are not both convex and non-decreasing
NOT_CONVEX = (
    nn.PReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink,
    nn.Threshold, nn.Sigmoid, nn.Tanh, nn.Softsign, nn.LogSigmoid, nn.GELU, nn.SiLU, nn.Mish, nn.SELU, nn.Softmax,
    nn.LogSoftmax, nn.LayerNorm, nn.GroupNorm,
)


class Maxout(nn.Module):
    '''The maximum over groups of features: output feature i is the largest of the input features i, i + n, i + 2n and
    so on, for n output features (equation 17).

    Parameters
    ----------
    rank : int
        The number of features in a group. The input has the shape (batch, rank * features, ...), and the output (batch,
        features, ...).

    Raises
    ------
    ValueError
        If rank is not a positive integer; or, when called, if the number of features is no multiple of it.
    '''
    def __init__(self, rank=2):
        super().__init__()
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f'the rank of Maxout must be a positive integer, not {rank!r}')
        self.rank = rank

    def forward(self, input):
        '''The maximum over each group.'''
        if input.shape[1] % self.rank:
            raise ValueError(f'Maxout of rank {self.rank} cannot share {input.shape[1]} features evenly among groups')
        return torch.amax(input.unflatten(1, (self.rank, -1)), 1)

    def extra_repr(self):
        '''The rank.'''
        return f'rank={self.rank}'


def nonnegative(module, transform='relu', scale=.01):
    '''Restrict all weights and biases to non-negative values, except in :py:data:`FREE` layers, and initialize them as
    the paper does (appendix D.1).

    The attributes ``weight`` and ``bias`` are the effective ones. They are absolute values of Gaussian random numbers,
    but for the scales of batch norms, which are one.

    Parameters
    ----------
    module : :py:class:`torch.nn.Module`
        A layer or a network, which is changed in place.
    transform : {'relu', 'softplus', 'exp', 'square'}, optional
        The positivity transform p.
    scale : float, optional
        The standard deviation of the Gaussian.

    Returns
    -------
    :py:class:`torch.nn.Module`
        The module itself.

    Raises
    ------
    ValueError
        If there is no such transform, the scale is not positive, or a layer is restricted already.
    '''
    if not scale > 0:
        raise ValueError(f'the scale of the initial weights must be positive, not {scale!r}')
    Positive(transform)  # raises before anything is changed
    layers = [(name, layer) for name, layer in module.named_modules() if not isinstance(layer, FREE)]
    for name, layer in layers:
        if parametrize.is_parametrized(layer):
            raise ValueError(
                f'module {name!r} ({type(layer).__name__}) is parametrized already: restrict the other layers alone'
            )
    for _, layer in layers:
        for key, parameter in [*layer.named_parameters(recurse=False)]:
            with torch.no_grad():
                if isinstance(layer, _BatchNorm) and key == 'weight':
                    parameter.fill_(1.)
                else:
                    parameter.normal_(0., scale).abs_()
            parametrize.register_parametrization(layer, key, Positive(transform))
    return module


def require_nonnegative(network, name):
    '''Raise a ValueError if a network is certainly not convex: if a layer that is not free has parameters that may
    become negative, if a module is not convex, or if a free layer comes after an activation in a sequence.'''
    affine = True
    for path, layer in network.named_children() if isinstance(network, nn.Sequential) else ():
        if isinstance(layer, FREE) and not affine:
            raise ValueError(
                f'module {name}.{path} ({type(layer).__name__}) comes after an activation, but must be a first layer:'
                ' restrict a usual layer by zennit_dc.networks.nonnegative instead'
            )
        affine = affine and isinstance(layer, AFFINE)
    for path, layer in network.named_modules():
        if isinstance(layer, NOT_CONVEX):
            kind = parametrize.type_before_parametrizations(layer)
            raise ValueError(
                f'module {".".join(filter(None, (name, path)))!r} ({kind.__name__}) is not convex and'
                ' non-decreasing: use Maxout or ReLU, or Difference for networks that are not convex'
            )
        if isinstance(layer, (*FREE, parametrize.ParametrizationList)):
            continue
        free = [key for key, _ in layer.named_parameters(recurse=False)]
        free += [
            key for key, chain in getattr(layer, 'parametrizations', {}).items() if not isinstance(chain[-1], Positive)
        ]
        if free:
            raise ValueError(
                f'the {free[0]} of module {".".join(filter(None, (name, path)))!r} ({type(layer).__name__}) may become'
                ' negative: call zennit_dc.networks.nonnegative on the network, make its first layer a FreeLinear or'
                ' FreeConv2d, or use Difference for networks that are not convex'
            )


def effective(network):
    '''A copy of a trained network for explanations: plain weights in place of the parametrizations, in evaluation mode.

    It computes the same, a little faster, and can be changed by Zennit's own canonizers (which merge batch norms).
    Nothing keeps its weights from becoming negative if it is trained again.

    Parameters
    ----------
    network : :py:class:`torch.nn.Module`
        The network, which stays as it is.

    Returns
    -------
    :py:class:`torch.nn.Module`
        The copy.
    '''
    network = copy.deepcopy(network)
    for layer in [*network.modules()]:
        if parametrize.is_parametrized(layer):
            weights = {
                key: (getattr(layer, key).detach(), chain.original.requires_grad)
                for key, chain in layer.parametrizations.items()
            }
            # not by remove_parametrizations, which would change the class that the copy shares with the original
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            for key, (weight, requires_grad) in weights.items():
                layer.register_parameter(key, nn.Parameter(weight, requires_grad))
    return network.eval()
