'''Every method by its name, each as an attributor of Zennit: the package's own, and what to compare with.'''
from ..lazy import lazily
from .table import BASELINES, CONTROLS, METHODS, RECENTERINGS, Method, attributor, recentering_named, saliency_map


__all__ = [
    'BASELINES', 'CONTROLS', 'LRPEpsilonPlus', 'LRPGamma', 'METHODS', 'Method', 'RECENTERINGS', 'attributor',
    'recentering_named', 'saliency_map',
]
__getattr__, __dir__ = lazily(globals(), {'lrp': ('LRPEpsilonPlus', 'LRPGamma')})
