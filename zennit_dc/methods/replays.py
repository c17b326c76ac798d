'''Attributors that are called many times, which are replayed from a recording where that pays.'''
from zennit.attribution import Attributor, Gradient

from ..attribution import Recorded


ENOUGH = 100
'''The number of calls from which a recording pays: it takes as long as 5 to 60 calls, the most for small networks, and
a replay saves up to two thirds of one.'''
PATIENCE = 10
'''The number of calls of a shape before it is recorded, so that a last batch, or one without some images, is not.'''


def replaying(attributor: Attributor, calls: int) -> Attributor:
    '''An attributor for many inputs of one shape, with the same maps to the last bit.

    A :py:class:`zennit.attribution.Gradient` with a composite becomes a
    :py:class:`~zennit_dc.attribution.Recorded`, which computes as always what it cannot record. All others stay: those
    of other types, the plain gradient, which would not be quicker, and those on a GPU, where a replay's maps are equal
    but for rounding.

    Parameters
    ----------
    attributor : :py:class:`zennit.attribution.Attributor`
        The attributor, whose model is where it will be called.
    calls : int
        The number of calls that are to come.

    Returns
    -------
    :py:class:`zennit.attribution.Attributor`
        The attributor, or one that takes its place.
    '''
    if type(attributor) is not Gradient or attributor.composite is None or calls < ENOUGH:
        return attributor
    keeps_graph = attributor.create_graph or attributor.retain_graph
    if keeps_graph or not all(each.is_cpu for each in attributor.model.parameters()):
        return attributor
    return Recorded(
        attributor.model, attributor.composite, attributor.attr_output_fn, strict=False, patience=PATIENCE
    )
