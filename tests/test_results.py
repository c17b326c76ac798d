'''The form of the pages of results, and what writes them.'''
import re
import shlex
from pathlib import Path

import pytest


pytest.importorskip('quantus', reason='the extra "evaluation" is not installed')

import pandas as pd
import render_results

from zennit_dc.evaluation.pages import (
    ROWS,
    WIDTH,
    fits,
    number,
    page,
    read_csv,
    replaced,
    save_csv,
    table,
    update_page,
)


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'examples' / 'results'
PAGES = sorted(RESULTS.rglob('*.md'))
FILES = [*PAGES, *sorted(RESULTS.rglob('*.csv')), *sorted(RESULTS.rglob('*.toml'))]
names = {'ids': lambda path: str(path.relative_to(RESULTS))}


def tables_of(text):
    '''The tables of a page, as lists of lines.'''
    return [found[0].splitlines() for found in re.finditer(r'(?:^\|.*\n)+', text, re.MULTILINE)]


def sentences_of(text):
    '''The sentences of a text.'''
    return re.findall(r'[.!?](?=\s|$)', text.strip())


@pytest.mark.parametrize('path', PAGES, **names)
def test_a_page_begins_with_three_sentences_and_one_table(path):
    text = re.sub(r'<!--.*?-->', '', path.read_text(encoding='utf-8'), flags=re.DOTALL)
    title, message, *_ = re.split(r'\n\n+', text.strip())
    assert re.fullmatch('# .+', title) and len(sentences_of(message)) == 3
    before, _, _ = text.partition('\n|')
    assert re.split(r'\n\n+', before.strip()) == [title, message]


@pytest.mark.parametrize('path', PAGES, **names)
def test_all_tables_are_small(path):
    tables = tables_of(path.read_text(encoding='utf-8'))
    assert tables
    for lines in tables:
        assert len(lines) - 2 <= ROWS and max(map(len, lines)) <= WIDTH, lines[0]


@pytest.mark.parametrize('path', FILES, **names)
def test_numbers_have_a_digit_before_the_point(path):
    assert not re.findall(r'.*(?<![\w.\d\]])[-−]?\.\d.*', path.read_text(encoding='utf-8'))


@pytest.mark.parametrize('path', PAGES, **names)
def test_a_page_names_the_commands_that_make_it(path):
    text = path.read_text(encoding='utf-8')
    blocks = '\n'.join(re.findall(r'```sh\n(.*?)```', text, re.DOTALL)).replace('\\\n', ' ')
    commands = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    makers = [words for words in commands if words[:1] == ['python'] or words[:2] == ['zennit-dc', 'evaluate']]
    assert makers
    for words in makers:
        for word in words:
            assert not re.fullmatch(r'examples/[\w/]+\.(py|toml)', word) or (ROOT / word).is_file(), word


@pytest.mark.parametrize('path', PAGES, **names)
def test_links_lead_to_files(path):
    for link in re.findall(r'\]\(([^)#]+)', path.read_text(encoding='utf-8')):
        assert '://' in link or (path.parent / link).exists(), link


def test_tables_are_those_of_the_numbers_beside_them():
    '''What is generated of the pages is what the present code makes of the CSV files.'''
    for path, parts in render_results.pages(RESULTS):
        text = path.read_text(encoding='utf-8')
        # a person has written the messages
        assert all(f'<!-- begin {name} -->' in text for name in parts if name != 'message'), path
        assert replaced(text, parts) == text, path


def test_what_is_written_around_parts_is_kept(tmp_path):
    path, parts = tmp_path / 'page.md', {'one': table(['a'], [['1']]), 'two': 'text'}
    update_page(path, 'Title', 'python make.py', parts)
    text = path.read_text(encoding='utf-8')
    assert text.startswith('# Title\n') and '```sh\npython make.py\n```' in text
    assert text == page('Title', 'python make.py', parts)
    own = text.replace('# Title', '# My title\n\nWhat it says.')
    own = own.replace('<!-- begin two -->\n\ntext\n\n<!-- end two -->', 'Mine.')
    path.write_text(own, encoding='utf-8')
    update_page(path, 'Title', 'python make.py', {'one': table(['a'], [['2']]), 'two': 'other'})
    assert path.read_text(encoding='utf-8') == own.replace('| 1 |', '| 2 |')


@pytest.mark.parametrize('text', [
    '<!-- begin one -->', '<!-- end one -->', '<!-- end one --> <!-- begin one -->',
    '<!-- begin one --> <!-- begin one --> <!-- end one -->', '<!-- begin one --> <!-- end one --> <!-- end one -->',
])
def test_parts_that_do_not_begin_and_end_once_are_refused(tmp_path, text):
    path = tmp_path / 'page.md'
    path.write_text(text, encoding='utf-8')
    with pytest.raises(ValueError, match='page.md: the part \'one\' must begin once'):
        update_page(path, 'Title', 'command', {'one': 'new'})
    assert path.read_text(encoding='utf-8') == text


def test_tables_that_are_too_large_are_refused():
    assert len(table(['a'], [['b']] * ROWS).splitlines()) == 2 + ROWS
    with pytest.raises(ValueError, match=f'{ROWS + 1} rows'):
        table(['a'], [['b']] * (ROWS + 1))
    widest = 'b' * (WIDTH - 4)
    assert len(table([widest], [['b']]).splitlines()[0]) == WIDTH and fits([widest], [['b']])
    with pytest.raises(ValueError, match=f'{WIDTH + 1} characters'):
        table([f'{widest}b'], [['b']])
    assert not fits([f'{widest}b'], [['b']])


def test_cells():
    first, rule, row = table(['text', 'number'], [['a|b', '0.57']]).splitlines()
    assert first == '| text | number |' and rule == '|:-----|-------:|' and row == r'| a\|b |   0.57 |'
    assert [number(value) for value in (.567, -.567, -.001, 57.1, 233.4, float('nan'), None)] == [
        '0.57', '-0.57', '0.00', '57.1', '233', '–', '–'
    ]
    assert number(.0114, 3) == '0.011'


def test_tables_as_csv(tmp_path):
    written = pd.DataFrame({'network': ['None', None], 'value': [1 / 3, float('nan')]})
    save_csv(tmp_path / 'folder' / 'numbers.csv', written)
    assert (tmp_path / 'folder' / 'numbers.csv').read_text() == 'network,value\nNone,0.333333\n,\n'
    found = read_csv(tmp_path / 'folder' / 'numbers.csv')
    assert found['network'].tolist()[0] == 'None' and found.isna().to_numpy().tolist() == [[False, False], [True, True]]
