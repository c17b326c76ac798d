'''The names of classes.'''
import json
import re
from decimal import Decimal
from pathlib import Path

from ..core.wording import similar


INDEX = re.compile(r'index:\s*([+-]?\d+)', re.IGNORECASE | re.ASCII)
NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)', re.ASCII)


def load_categories(path):
    '''Load the names of classes.

    Parameters
    ----------
    path : str or path
        A text file with a name in each line, or a JSON file: a list of names, a label map of
        :py:func:`~zennit_dc.data.images.load_label_map`, a mapping from indices to names or to lists that end with a
        name, as Keras has it for ImageNet, or a mapping from names to indices, as ``class_to_idx`` of torchvision.

    Returns
    -------
    list[str]
        The names by their index.

    Raises
    ------
    ValueError
        If the file cannot be read, or does not name each class once.
    '''
    try:
        text = Path(path).read_text(encoding='utf-8-sig')
        entries = json.loads(text) if Path(path).suffix.lower() == '.json' else text.strip().splitlines()
        if isinstance(entries, dict) and all(type(each) is int for each in entries.values()):
            named = inverted(entries)
        elif isinstance(entries, dict):
            named = {int(index): each if isinstance(each, str) else each[-1] for index, each in entries.items()}
        elif entries and isinstance(entries[0], dict):
            named = {int(each['index']): each['name'] for each in entries}
        else:
            named = dict(enumerate(entries))
    except OSError as error:
        raise ValueError(f'{path} cannot be read as names of classes: {error.strerror}') from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f'{path} cannot be read as names of classes: {type(error).__name__} {error}') from error
    names = [named.get(index) for index in range(len(named))]
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f'{path} has no name for class {index}')
    return [name.strip() for name in names]


def inverted(indices):
    '''The names of classes by their indices.'''
    named = {index: name for name, index in indices.items()}
    twice = [name for name, index in indices.items() if named[index] != name]
    if twice:
        raise ValueError(f'({twice[0]!r} and {named[indices[twice[0]]]!r} are both class {indices[twice[0]]})')
    return named


def require_names(categories, count, path):
    '''Raise if there are not as many names as classes.

    Parameters
    ----------
    categories : list[str]
        The names.
    count : int
        The number of classes of the model.
    path : str or path
        The file that has the names.

    Raises
    ------
    ValueError
        With both numbers.
    '''
    if len(categories) != count:
        raise ValueError(f'{path} has the names of {len(categories)} classes, but the model has {count}')


def find_class(name, count, categories=None):
    '''The index of a class.

    Where classes are named by numbers, as grades from 1 to 5 are, a name goes before an index: ``'3'`` is the class
    that is named 3. An index is what is no name, an integer in Python, or written as ``'index:3'``.

    Parameters
    ----------
    name : str or int
        Its name or index. Upper and lower case, and what stands between words, do not matter.
    count : int
        The number of classes.
    categories : list[str], optional
        The names of the classes.

    Returns
    -------
    int
        The index.

    Raises
    ------
    ValueError
        If there is no such class, or if there are several.
    '''
    given = INDEX.fullmatch(name.strip()) if isinstance(name, str) else None
    if isinstance(name, str) and given is None and (found := named_class(name, categories)) is not None:
        return found
    try:
        index = int(name if given is None else given[1])
    except ValueError:
        raise ValueError(unknown_name(name, categories)) from None
    if not 0 <= index < count:
        raise ValueError(f'there is no class {index}, but those from 0 to {count - 1}')
    return index


def named_class(name, categories):
    '''The index of a class by its name, or None if no class is named like that. Where
    the name is a number, one that is written alike goes before one of the same value, as 03 of 3.'''
    for plain in (str.strip, number_of) if number_of(name) is not None else (simple,):
        found = [index for index, each in enumerate(categories or ()) if plain(each) == plain(name)]
        if len(found) > 1:
            indices = ', '.join(map(str, found))
            raise ValueError(
                f'several classes are named {name!r}: give one of the indices {indices}, as in index:{found[0]}'
            )
        if found:
            return found[0]
    return None


def unknown_name(name, categories):
    '''What is said of a name that no class has.'''
    if categories is None:
        return f'no names of classes are known, so that {name!r} must be an index; --categories FILE names them'
    return f'there is no class named {name!r}{similar(name, categories)}'


def choice_of(name, count, categories):
    '''What a number was taken for, where classes have names, in words, or None where no number was given.

    Parameters
    ----------
    name : str
        What was given.
    count : int
        The number of classes.
    categories : list[str] or None
        Their names.
    '''
    if categories is None or (number_of(name) is None and INDEX.fullmatch(name.strip()) is None):
        return None
    index = find_class(name, count, categories)
    if INDEX.fullmatch(name.strip()) is None and named_class(name, categories) is not None:
        return f'the class named {categories[index]!r}, whose index is {index}'
    return f'the class of index {index}, named {categories[index]!r}'


def simple(name):
    '''A name in lower case, with a space between words.'''
    return ' '.join(''.join(each if each.isalnum() else ' ' for each in name.lower()).split())


def number_of(name):
    '''The number that a name is, or None if it is none.'''
    return Decimal(name.strip()) if NUMBER.fullmatch(name.strip()) else None
