'''Pages of results: sentences that a person writes around tables that are generated.'''
import re
import shlex
import sys

import numpy as np
import pandas as pd

from ..data.parts import atomic_write


ROWS, WIDTH = 10, 80
'''The most rows of a table on a page, and the most characters of a line of it. All else is for a CSV file.'''


def number(value, digits=2):
    '''A number for people, such as 0.57, or a dash where there is none. From 10 on it has fewer digits after the point,
    such as 57.1 and 571.'''
    if value is None or np.isnan(value):
        return '–'
    text = f'{value:.{max(0, digits - sum(abs(value) >= each for each in (10., 100., 1000.)))}f}'
    return text.lstrip('-') if not float(text) else text


def table(header, rows):
    '''A table in Markdown.

    Parameters
    ----------
    header : sequence of str
        The titles of the columns.
    rows : sequence of sequences of str
        The cells. Columns in which all cells are numbers or dashes are aligned to the right.

    Returns
    -------
    str
        The table.

    Raises
    ------
    ValueError
        If it has more than :py:data:`ROWS` rows, or lines of more than :py:data:`WIDTH` characters.
    '''
    columns = []
    for title, *column in zip(*([str(cell).replace('|', '\\|') for cell in row] for row in (header, *rows))):
        is_number = all(re.fullmatch(r'-?[\d.]+|–', cell) for cell in column)
        width = max(map(len, (title, *column)))
        rule = '-' * (width + 1) + ':' if is_number else ':' + '-' * (width + 1)
        cells = (f' {cell.rjust(width) if is_number else cell.ljust(width)} ' for cell in (title, *column))
        columns.append([rule, *cells])
    rule, first, *others = (f'|{"|".join(line)}|' for line in zip(*columns))
    if len(others) > ROWS or len(rule) > WIDTH:
        raise ValueError(
            f'the table {" | ".join(header)!r} has {len(others)} rows and {len(rule)} characters a line, more than'
            f' {ROWS} or {WIDTH}: write it as CSV, and show a summary'
        )
    return '\n'.join((first, rule, *others))


def fits(header, rows):
    '''Whether a table has at most :py:data:`WIDTH` characters a line.'''
    widths = [max(map(len, map(str, column))) for column in zip(header, *rows)]
    return sum(widths) + 3 * len(widths) + 1 <= WIDTH


def page(title, command, parts):
    '''A new page: a title, the command that makes it, and the parts.'''
    marked = [f'<!-- begin {name} -->\n\n{text.strip()}\n\n<!-- end {name} -->' for name, text in parts.items()]
    return '\n\n'.join([f'# {title}', *marked, f'```sh\n{command}\n```\n'])


def replaced(text, parts):
    '''A page with other parts, and what stands around them as it was.

    Parameters
    ----------
    text : str
        The page. A part stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.
    parts : dict[str, str]
        The new parts by their names. Those that the page does not have are left out.

    Returns
    -------
    str
        The page.

    Raises
    ------
    ValueError
        If a part begins and does not end, or is there twice.
    '''
    for name, part in parts.items():
        begin, end = f'<!-- begin {name} -->', f'<!-- end {name} -->'
        if begin not in text and end not in text:
            continue
        before, _, rest = text.partition(begin)
        _, closing, after = rest.partition(end)
        if not closing or end in before or begin in rest or end in after:
            raise ValueError(f'the part {name!r} must begin once, with {begin}, and then end once, with {end}')
        text = f'{before}{begin}\n\n{part.strip()}\n\n{end}{after}'
    return text


def update_page(path, title, command, parts):
    '''Write the parts of a page that are generated. What a person has written around them is kept, and so is what has
    been removed: of a page that is there, only the parts that it has are replaced.

    Parameters
    ----------
    path : :py:class:`~pathlib.Path`
        The page.
    title, command : str
        The title and the command of a new page.
    parts : dict[str, str]
        The parts by their names.

    Raises
    ------
    ValueError
        If the marks of a part are not what they must be, see :py:func:`replaced`.
    '''
    try:
        text = path.read_text(encoding='utf-8')
    except FileNotFoundError:
        save_text(path, page(title, command, parts))
        return
    try:
        save_text(path, replaced(text, parts))
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def page_beside(folder):
    '''The page of a folder of results, ``spectra.md`` of ``spectra``.'''
    return folder.parent / f'{folder.resolve().name}.md'


def command_line():
    '''The command that runs this script.'''
    return shlex.join(['python', *sys.argv])


def save_text(path, text):
    '''Write a text as a whole or not at all.'''
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def save_csv(path, frame):
    '''Write a table as CSV, with six digits of each number.'''
    path.parent.mkdir(parents=True, exist_ok=True)
    save_text(path, frame.to_csv(index=False, float_format='%.6g'))


def read_csv(path):
    '''A table that :py:func:`save_csv` wrote, in which nothing but an empty cell is missing.'''
    return pd.read_csv(path, keep_default_na=False, na_values=[''])
