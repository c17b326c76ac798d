'''Monotone and input-convex networks, and their trained differences (section 3.5 and appendix D of the paper).'''
from .architectures import VARIANTS, MaxoutNetwork, cnn_maxout, mlp_maxout
from .difference import Difference, DifferenceOfConvex
from .layers import TRANSFORMS, FreeConv2d, FreeLinear, Maxout, Positive, effective, nonnegative
from .train import accuracy, train


__all__ = [
    'TRANSFORMS', 'VARIANTS', 'Difference', 'DifferenceOfConvex', 'FreeConv2d', 'FreeLinear', 'Maxout', 'MaxoutNetwork',
    'Positive', 'accuracy', 'cnn_maxout', 'effective', 'mlp_maxout', 'nonnegative', 'train',
]
