'''What errors say about a name that is not there.'''
from difflib import get_close_matches


def similar(name, names):
    '''What may have been meant by a name, as a part of a sentence, which is empty where no other name is like it.'''
    spellings = {each.lower(): each for each in names}
    close = [spellings[each] for each in get_close_matches(str(name).lower(), spellings)]
    return f', did you mean {" or ".join(map(repr, close))}?' if close else ''


def meant(name, names):
    '''What may have been meant by one of a few names, as a part of a sentence, or else all of them.'''
    return similar(name, names) or f', but {", ".join(names)}'
