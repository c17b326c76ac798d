'''What a forward pass computes, and what its operations do at present.'''
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Settings(NamedTuple):
    '''What a forward pass computes. A :py:class:`~zennit_dc.SplitCanonizer` has these attributes, too.

    Parameters
    ----------
    pooling : {'wta', 'convex'}, optional
        The form of max-pooling: the winner takes all, or the one that keeps both streams convex (section 3.4).
    recentering : callable, optional
        A function ``(difference, sum) -> sum`` that chooses a new sum after each affine layer.
    rule : :py:class:`~zennit_dc.core.pair.TrueGradient`, optional
        The rule outside of modules that have one of their own. Default is the true gradient.
    root : :py:class:`torch.nn.Module`, optional
        The model.
    input_split : {'relu', 'half'}, optional
        How inputs are split, see :py:meth:`~zennit_dc.SplitTensor.of`.
    layer : str, optional
        The name of the module at whose output a map is read.
    '''
    pooling: str = 'wta'
    recentering: Callable | None = None
    rule: Any = None
    root: torch.nn.Module | None = None
    input_split: str = 'relu'
    layer: str | None = None


class Mode(NamedTuple):
    '''What operations do at present.

    Parameters
    ----------
    sums : bool, optional
        Whether the value of the sum is computed, or only the way of its gradient.
    keeps_graph : bool, optional
        Whether there is a graph, which is not the case below the layer at which the map is read.
    has_graph : bool, optional
        Whether the original model would have a graph.
    '''
    sums: bool = True
    keeps_graph: bool = True
    has_graph: bool = False
