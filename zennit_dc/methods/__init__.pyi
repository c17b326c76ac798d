from .lrp import LRPEpsilonPlus as LRPEpsilonPlus, LRPGamma as LRPGamma
from .replays import replaying as replaying
from .table import (
    BASELINES as BASELINES,
    CONTROLS as CONTROLS,
    METHODS as METHODS,
    RECENTERINGS as RECENTERINGS,
    Method as Method,
    attributor as attributor,
    recentering_named as recentering_named,
    saliency_map as saliency_map,
)
