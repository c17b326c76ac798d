'''Every method by its name, each as an attributor of Zennit: the package's own, and what to compare with.'''
from lazy_loader import attach_stub


__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
