'''Explanations from the DC decomposition of ReLU networks, for Zennit.'''
from . import activations, functional, pooling, routing  # noqa: F401 (register the split forms)
from .attention import DetachedAttention
from .balancing import Balanced
from .canonizers import SplitCanonizer
from .composites import SplitCAM, SplitGrad, SplitLRP
from .recentering import Scaling, Shifting
from .smooth import SmoothReplacement
from .split import SplitTensor, split_form


__all__ = [
    'Balanced', 'DetachedAttention', 'Scaling', 'Shifting', 'SmoothReplacement', 'SplitCAM', 'SplitCanonizer',
    'SplitGrad', 'SplitLRP', 'SplitTensor', 'split_form',
]
__version__ = '0.1.0'
