'''Pictures that the package draws itself, and a small network trained on them.'''
from .drawing import CLASSES, Drawing, draw, draw_batch
from .network import DemoNetwork, demo_network, demo_preprocessing


__all__ = ['CLASSES', 'DemoNetwork', 'Drawing', 'demo_network', 'demo_preprocessing', 'draw', 'draw_batch']
