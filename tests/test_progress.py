'''Progress without a terminal.'''
import io
import time

import pytest

from zennit_dc.data import progress
from zennit_dc.data.progress import Lines, begin, progress_bar


@pytest.fixture(name='clock')
def fixture_clock(monkeypatch):
    '''A clock that a test moves.'''
    now = [1000.]
    monkeypatch.setattr(progress, 'time', lambda: now[0])
    monkeypatch.setattr(Lines, 'written', now[0])
    return now


def test_a_line_comes_each_minute(clock):
    file = io.StringIO()
    with Lines(range(10), 'maps', file=file, mininterval=0., miniters=1) as bar:
        for _ in bar:
            clock[0] += 25.
            bar.set_postfix_str('SplitCAM')
    lines = file.getvalue().splitlines()
    assert len(lines) == 3 and all(line.startswith('maps:') for line in lines)  # of 250 seconds, at 75, 150 and 225
    assert '\r' not in file.getvalue()


def test_the_minute_is_that_of_all_bars(clock):
    '''Or many short ones would say nothing.'''
    file = io.StringIO()
    for _ in range(5):
        with Lines(total=1, desc='maps', file=file) as bar:
            clock[0] += 25.
            bar.update()
            bar.refresh()
    assert len(file.getvalue().splitlines()) == 1
    begin()
    assert Lines.written == clock[0]


def test_nothing_is_written_where_it_is_not_shown(capsys):
    Lines.written = time.time() - 1000.
    for _ in progress_bar(range(3), shown=False):
        pass
    assert capsys.readouterr().err == ''
    for _ in progress_bar(range(3), 'maps'):
        pass
    assert capsys.readouterr().err.startswith('maps:   0%')
