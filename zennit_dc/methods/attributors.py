'''The attributors of all methods, of which :py:mod:`zennit_dc.methods.table` knows the names. To import them takes as
long as to import PyTorch.'''
from zennit.attribution import Gradient

from ..attribution import CAFO, CASO, GradCAMPlusPlus, LayerCAM, SmoothCAFO, SmoothCASO
from ..composites import SplitCAM, SplitGrad, SplitLRP
from .captum import FeatureAblation, GradCAM, GradientSHAP, InputXGradient, IntegratedGradients, Occlusion, Saliency
from .controls import BinaryMask, ImageCenter, OriginalImage, Random
from .deeplift import DeepLift
from .hooked import Deconvolution, GuidedBackprop, GuidedGradCAM
from .lrp import LRPEpsilonPlus, LRPGamma


__all__ = [
    'CAFO',
    'CASO',
    'BinaryMask',
    'Deconvolution',
    'DeepLift',
    'FeatureAblation',
    'GradCAM',
    'GradCAMPlusPlus',
    'Gradient',
    'GradientSHAP',
    'GuidedBackprop',
    'GuidedGradCAM',
    'ImageCenter',
    'InputXGradient',
    'IntegratedGradients',
    'LRPEpsilonPlus',
    'LRPGamma',
    'LayerCAM',
    'Occlusion',
    'OriginalImage',
    'Random',
    'Saliency',
    'SmoothCAFO',
    'SmoothCASO',
    'SplitCAM',
    'SplitGrad',
    'SplitLRP',
]
