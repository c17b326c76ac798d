'''Public names that are imported when they are first asked for: PyTorch takes seconds, for which help need not wait.'''
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
