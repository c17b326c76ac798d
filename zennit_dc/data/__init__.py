'''Classifiers and images by their names, and long runs in parts and on several processes.'''
from lazy_loader import attach_stub


__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
