'''Explanations from the DC decomposition of ReLU networks, for Zennit.'''
from . import forms  # noqa: F401 (registers the split forms)
from .attribution import class_agreement, contrast
from .canonizers import SplitCanonizer
from .composites import SplitCAM, SplitGrad, SplitLRP
from .forms.attention import DetachedAttention
from .forms.smooth import SmoothReplacement
from .recentering import Scaling, Shifting
from .rules import Balanced
from .split import SplitTensor, split_form


__all__ = [
    'Balanced', 'DetachedAttention', 'Scaling', 'Shifting', 'SmoothReplacement', 'SplitCAM', 'SplitCanonizer',
    'SplitGrad', 'SplitLRP', 'SplitTensor', 'class_agreement', 'contrast', 'split_form',
]
__version__ = '0.1.0'
