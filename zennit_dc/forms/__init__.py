'''The split forms of torch's functions, one file a family. To import them is to register them.'''
from . import (  # noqa: F401
    activations, arithmetic, attention, detached, detection, exported, features, foreign, fourier, hooks, linear,
    pooling, reading, recurrent, resampling, routing, scatter, smooth, statistics
)
