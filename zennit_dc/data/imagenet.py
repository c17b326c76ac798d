'''The thousand classes of ImageNet, whose names and WordNet IDs come with the package.'''
from importlib.resources import files

from .categories import simple


RENAMED = 134, 639
'''The crane that is a bird, and a second maillot, which older versions of torchvision name as classes 517 and 638.'''


def imagenet_classes():
    '''The classes of ImageNet (ILSVRC 2012).

    Returns
    -------
    list[tuple[str, str]]
        The WordNet ID and the name of each class by its index, such as ``('n01440764', 'tench')``.
    '''
    lines = files(__package__).joinpath('imagenet_classes.txt').read_text(encoding='utf-8').splitlines()
    return [tuple(line.split(' ', 1)) for line in lines if not line.startswith('#')]


def wordnet_ids(categories):
    '''The WordNet IDs of classes, where they are those of ImageNet.

    Parameters
    ----------
    categories : sequence of str
        The names of the classes by index.

    Returns
    -------
    list[str] or None
        The WordNet ID of each class, or None if they are other classes.
    '''
    if len(categories) != 1000:
        return None
    known = imagenet_classes()
    pairs = enumerate(zip(categories, known))
    different = {index for index, (given, (_, name)) in pairs if simple(given) != simple(name)}
    return [each for each, _ in known] if different <= {*RENAMED} else None
