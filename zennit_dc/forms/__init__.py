'''The split forms of torch's functions, one file a family. To import them is to register them.'''
from . import activations, arithmetic, attention, detached, linear, pooling, reading, routing, smooth  # noqa: F401
