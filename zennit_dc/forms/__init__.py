'''The split forms of torch's functions, one file a family. To import them is to register them.'''
from importlib import import_module
from pkgutil import iter_modules

from .statistics import require_option


for family in iter_modules(__path__):
    import_module(f'{__name__}.{family.name}')
require_option()
