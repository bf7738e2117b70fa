"""A background thread gives what the iterable gives, errors included, and ends when it is asked to."""

import itertools
import threading
from contextlib import closing

import pytest

from clip_la.data.stream.prefetch import Prefetcher

NAME = "background under test"


def running():
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def test_items_come_in_order_from_another_thread():
    makers = (threading.current_thread().name for _ in range(5))
    with closing(Prefetcher(enumerate(makers), NAME)) as items:
        assert list(items) == [(i, NAME) for i in range(5)]
    assert running() == []


def test_an_error_is_raised_where_its_item_would_have_come():
    def items():
        yield 1
        raise ValueError("broken")

    iterator = iter(Prefetcher(items(), NAME))
    assert next(iterator) == 1
    with pytest.raises(ValueError, match="broken"):
        next(iterator)


def test_it_works_no_further_ahead_than_asked():
    made = []
    release = threading.Event()

    def items():
        for i in itertools.count():
            made.append(i)
            if i == 2:
                release.set()
            yield i

    with closing(Prefetcher(items(), NAME, ahead=2)) as background:
        assert release.wait(10)  # two in the queue, one in hand
        assert next(iter(background)) == 0
    assert max(made) <= 3


def test_closing_ends_a_chain_of_threads_in_the_middle_of_an_endless_sequence():
    first = Prefetcher(itertools.count(), NAME)
    second = Prefetcher(map(str, first), NAME)
    assert next(iter(second)) == "0"
    second.close()
    first.close()
    for thread in running():
        thread.join(10)
    assert running() == []
