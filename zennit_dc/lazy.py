'''Public names that are imported when they are first asked for: PyTorch takes seconds, for which help need not wait.'''
import sys
from importlib import import_module


def lazily(package, homes, before=()):
    '''The functions ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    Parameters
    ----------
    package : dict
        The package's own ``globals()``, to which names are added as they are imported.
    homes : dict[str, tuple[str, ...]]
        The package's modules, which can be asked for as well, each with the public names that are found there.
    before : sequence of str, optional
        Modules to import before any other.
    '''
    own = package['__name__']
    places = {**{home: home for home in homes}, **{name: home for home, names in homes.items() for name in names}}

    def find(name):
        if name not in places:
            raise AttributeError(f'module {own!r} has no attribute {name!r}', name=name)
        for home in before:
            import_module(f'{own}.{home}')
        module = import_module(f'{own}.{places[name]}')
        package[name] = module if name == places[name] else getattr(module, name)
        return package[name]

    def names():
        return sorted({*package, *(name for name in places if '.' not in name)})
    return find, names


def import_with(other, name, otherwise):
    '''Import a module as soon as another one is imported, or now if that is.

    Parameters
    ----------
    other : str
        The name of the other module, which does not import the module.
    name : str
        The name of the module.
    otherwise : callable
        What to do with the other module where it is imported in the midst of an import of the module's package, which
        may need what is not there yet.
    '''
    if other in sys.modules:
        import_module(name)
    elif not any(isinstance(each, ImportedWith) and each.name == name for each in sys.meta_path):
        sys.meta_path.insert(0, ImportedWith(other, name, otherwise))


def later(module, name):
    '''A function that calls what has a name in a module, which is imported then.'''
    def call(*args, **kwargs):
        return getattr(import_module(module), name)(*args, **kwargs)
    call.__name__ = call.__qualname__ = name
    return call


class ImportedWith:
    '''What finds a module as all others do, once, and has another one imported with it.

    Parameters
    ----------
    other : str
        The name of the module to find.
    name : str
        The name of the module that is imported after it.
    otherwise : callable
        See :py:func:`import_with`.
    '''
    def __init__(self, other, name, otherwise):
        self.other, self.name, self.otherwise = other, name, otherwise

    def follow(self, module):
        '''Import the other module, unless one beside it is in the midst of its own import.'''
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        package = f'{self.name.rpartition(".")[0]}.'
        beside = (each for name, each in list(sys.modules.items()) if name.startswith(package))
        if package != '.' and any(getattr(each.__spec__, '_initializing', False) for each in beside):
            self.otherwise(module)
        else:
            import_module(self.name)

    def find_spec(self, fullname, path, target=None):
        '''The spec of the module, whose loader imports the other one at its end.'''
        if fullname != self.other:
            return None
        finders = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = ImportingLoader(spec, self)
        return spec


class ImportingLoader:
    '''The loader of a module that imports another one at its end, and leaves the module its own loader.'''
    def __init__(self, spec, finder):
        self.spec, self.loader, self.finder = spec, spec.loader, finder

    def create_module(self, spec):
        '''As the module's own loader does.'''
        return self.loader.create_module(spec)

    def exec_module(self, module):
        '''As the module's own loader does, and import the other one.'''
        self.spec.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.finder.follow(module)
