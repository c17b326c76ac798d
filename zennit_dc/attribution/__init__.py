'''Attributors of a layer's gradient and activation, and what enters at the output for a class.'''
from .cams import ActivationMap, GradCAMPlusPlus, LayerCAM
from .group_features import CAFO, CASO, SmoothCAFO, SmoothCASO, shown
from .layers import gradient_at, recorded, require_evaluation, require_layer, require_one_map
from .loss import CrossEntropy, cross_entropy, hessian
from .maximum import Solution, Sparsity
from .relevance import class_agreement, class_relevance, contrast, map_cosine, relevance_of, require_scores, runner_up
from .replay import NotRecorded, Recorded
from .support import Support, support


__all__ = [
    'CAFO',
    'CASO',
    'ActivationMap',
    'CrossEntropy',
    'GradCAMPlusPlus',
    'LayerCAM',
    'NotRecorded',
    'Recorded',
    'SmoothCAFO',
    'SmoothCASO',
    'Solution',
    'Sparsity',
    'Support',
    'class_agreement',
    'class_relevance',
    'contrast',
    'cross_entropy',
    'gradient_at',
    'hessian',
    'map_cosine',
    'recorded',
    'relevance_of',
    'require_evaluation',
    'require_layer',
    'require_one_map',
    'require_scores',
    'runner_up',
    'shown',
    'support',
]
