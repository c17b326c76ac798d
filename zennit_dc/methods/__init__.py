'''Every method by its name, each as an attributor of Zennit: the package's own, and what to compare with.'''
from .lrp import LRPGamma
from .table import BASELINES, CONTROLS, METHODS, RECENTERINGS, Method, attributor, saliency_map


__all__ = [
    'BASELINES', 'CONTROLS', 'LRPGamma', 'METHODS', 'Method', 'RECENTERINGS', 'attributor', 'saliency_map',
]
