'''Attributors of a layer's gradient and activation, and what enters at the output for a class.'''
from .cams import ActivationMap, GradCAMPlusPlus, LayerCAM
from .layers import gradient_at, recorded, require_layer, require_one_map
from .relevance import class_agreement, class_relevance, contrast, map_cosine, relevance_of, require_scores, runner_up


__all__ = [
    'ActivationMap', 'GradCAMPlusPlus', 'LayerCAM', 'class_agreement', 'class_relevance', 'contrast', 'gradient_at',
    'map_cosine', 'recorded', 'relevance_of', 'require_layer', 'require_one_map', 'require_scores', 'runner_up',
]
