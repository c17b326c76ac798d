'''What errors say about a name or a value that is not there.'''
from difflib import get_close_matches


MOST = 5  # of the names that are suggested


def similar(name, names):
    '''What may have been meant by a name, as a part of a sentence, or nothing where no other name is like it. The names
    that contain its words come first, the shortest before, and else those that are spelt alike.'''
    spellings = {each.lower(): each for each in names}
    words = set(words_of(name))
    containing = [each for each in names if words and words <= set(words_of(each))]
    close = [spellings[each] for each in get_close_matches(str(name).lower(), spellings)] if not containing else []
    found = list(dict.fromkeys([*sorted(containing, key=len), *close]))
    if not found:
        return ''
    more = f' or one of {len(found) - MOST} more' if len(found) > MOST else ''
    return f', did you mean {" or ".join(map(repr, found[:MOST]))}{more}?'


def require_choice(name, value, choices):
    '''Raise if a parameter is not one of its values.'''
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, choices))}, not {value!r}')


def words_of(name):
    '''The words of a name, in lower case.'''
    return ''.join(each if each.isalnum() else ' ' for each in str(name).lower()).split()


def meant(name, names):
    '''What may have been meant by one of a few names, as a part of a sentence, or else all of them.'''
    return similar(name, names) or f', but {", ".join(names)}'
