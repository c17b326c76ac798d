'''What runs in a thread beside the model.'''
import threading

import pytest
import torch

from zennit_dc.data.threads import ahead, meanwhile


def test_the_next_item_is_made_while_one_is_used():
    made, threads = [threading.Event() for _ in range(4)], set()

    def items():
        for number, event in enumerate(made):
            threads.add(threading.get_ident())
            event.set()
            yield number, torch.get_num_threads()

    before, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for number, count in ahead(items()):
            assert number == 3 or made[number + 1].wait(10.)
            assert number >= 2 or not made[number + 2].is_set()  # but no more than that
            found.append((number, count))
        assert found == [(number, 1) for number in range(4)] and torch.get_num_threads() == 2
        assert len(threads) == 1 and threading.get_ident() not in threads
    finally:
        torch.set_num_threads(before)


def test_errors_come_in_the_place_of_their_item():
    def items():
        yield 1
        raise KeyError('second')

    found = []
    with pytest.raises(KeyError, match='second'):
        found.extend(ahead(items()))
    assert found == [1]
    assert list(ahead([])) == [] and list(ahead([None, 2])) == [None, 2]


def test_calls_in_their_order_and_all_of_them_at_the_end():
    called, go_on = [], threading.Event()

    def slow(number):
        assert go_on.wait(10.)
        called.append(number)

    with meanwhile(slow) as call:
        call(0)
        assert called == []
        go_on.set()
        for number in range(1, 5):
            call(number)
    assert called == list(range(5))


def test_errors_of_calls_are_raised_and_do_not_hide_others():
    def fail(number):
        called.append(number)
        raise OSError('full')

    called = []
    with pytest.raises(OSError, match='full'), meanwhile(fail) as call:
        call(0)
        call(1)
        pytest.fail('the second call did not raise the error of the first')
    with pytest.raises(OSError, match='full'), meanwhile(fail) as call:
        call(2)
    with pytest.raises(KeyboardInterrupt), meanwhile(fail) as call:
        call(3)
        raise KeyboardInterrupt
    assert called == [0, 2, 3]
