'''Attributors of a layer's gradient and activation, and what enters at the output for a class.'''
from .cams import ActivationMap, GradCAMPlusPlus, LayerCAM
from .layers import gradient_at, recorded, require_layer, require_one_map
from .relevance import class_relevance, require_scores


__all__ = [
    'ActivationMap', 'GradCAMPlusPlus', 'LayerCAM', 'class_relevance', 'gradient_at', 'recorded', 'require_layer',
    'require_one_map', 'require_scores',
]
