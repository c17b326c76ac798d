from . import (
    attribution as attribution,
    canonizers as canonizers,
    composites as composites,
    core as core,
    forms as forms,
    logits as logits,
    recentering as recentering,
    rules as rules,
    streams as streams,
)
from .attribution import class_agreement as class_agreement, contrast as contrast
from .canonizers import NotInPlace as NotInPlace, SplitCanonizer as SplitCanonizer
from .composites import SplitCAM as SplitCAM, SplitGrad as SplitGrad, SplitLRP as SplitLRP
from .core.pair import SplitTensor as SplitTensor
from .core.registry import split_form as split_form
from .forms.detached import DetachedActivations as DetachedActivations
from .forms.smooth import SmoothReplacement as SmoothReplacement
from .forms.statistics import DetachedStatistics as DetachedStatistics
from .logits import Logits as Logits
from .recentering import Relative as Relative, Scaling as Scaling, Shifting as Shifting
from .rules import Balanced as Balanced

__version__: str
