'''Explanations from the DC decomposition of ReLU networks, for Zennit.'''
from .lazy import import_with, later, lazily


__all__ = [
    'Balanced', 'DetachedActivations', 'DetachedAttention', 'DetachedStatistics', 'Logits', 'NotInPlace', 'Relative',
    'Scaling', 'Shifting', 'SmoothReplacement', 'SplitCAM', 'SplitCanonizer', 'SplitGrad', 'SplitLRP', 'SplitTensor',
    'class_agreement', 'contrast', 'split_form',
]
__version__ = '0.1.0'
__getattr__, __dir__ = lazily(globals(), {
    'attribution': ('class_agreement', 'contrast'), 'canonizers': ('NotInPlace', 'SplitCanonizer'),
    'composites': ('SplitCAM', 'SplitGrad', 'SplitLRP'), 'forms': (), 'forms.detached': ('DetachedActivations',),
    'forms.smooth': ('SmoothReplacement',), 'forms.statistics': ('DetachedAttention', 'DetachedStatistics'),
    'logits': ('Logits',), 'needs': (), 'nested': (), 'operations': (), 'passes': (),
    'recentering': ('Relative', 'Scaling', 'Shifting'), 'sharing': (),
    'rules': ('Balanced',), 'spatial': (), 'split': ('SplitTensor', 'split_form'), 'streams': (), 'views': (),
}, before=['forms'])  # which registers the split forms


def register_later(module):
    '''Register the composites to Zennit's by their names, before they are imported.'''
    for name, composite in (('split_lrp', 'SplitLRP'), ('split_grad', 'SplitGrad'), ('split_cam', 'SplitCAM')):
        module.COMPOSITES.setdefault(name, later('zennit_dc.composites', composite))


import_with('zennit.composites', 'zennit_dc.composites', register_later)
