'''Explanations from the DC decomposition of ReLU networks, for Zennit. The public names, which ``__init__.pyi`` lists,
are imported when they are first asked for: PyTorch takes seconds, for which help need not wait.'''
from importlib import import_module

from lazy_loader import attach_stub
from wrapt import when_imported


attribute_named, __dir__, __all__ = attach_stub(__name__, __file__)


def __getattr__(name):
    '''The public name, once the split forms are registered; or the version of the package that is installed.'''
    if name == '__version__':
        from importlib.metadata import version

        return version('zennit-dc')
    if name in __all__:
        import_module(f'{__name__}.forms')
    return attribute_named(name)


def named(composite):
    '''The composite of a name, which is imported when it is made.'''
    return lambda *args, **kwargs: getattr(import_module(f'{__name__}.composites'), composite)(*args, **kwargs)


@when_imported('zennit.composites')
def register_names(module):
    '''Register the composites to Zennit's by their names. Their own module does so again when it is imported.'''
    for name, composite in (('split_lrp', 'SplitLRP'), ('split_grad', 'SplitGrad'), ('split_cam', 'SplitCAM')):
        module.COMPOSITES.setdefault(name, named(composite))
