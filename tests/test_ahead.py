"""Stages in threads of their own: same items, same order, errors in their place, and never far ahead."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2ilib.pipeline.ahead import ahead


@given(st.lists(st.integers()), st.integers(1, 5))
@settings(derandomize=True, deadline=None, max_examples=25)
def test_the_same_items_in_the_same_order(items, depth):
    with ahead(items, depth) as first, ahead((2 * item for item in first), depth) as second:
        assert list(second) == [2 * item for item in items]


def test_an_error_comes_behind_the_items_before_it():
    def broken():
        yield from (1, 2)
        raise KeyError("third")

    found = []
    with pytest.raises(KeyError, match="third"), ahead(broken(), 4) as items:
        found.extend(iter(lambda: next(items), None))
    assert found == [1, 2]


def test_an_error_passes_through_the_next_stage():
    def broken():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"), ahead(broken(), 1) as one, ahead(map(str, one), 1) as other:
        list(other)


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_than_depth_wait(depth):
    made, most = [], 0

    def source():
        for i in range(40):
            made.append(i)
            yield i

    with ahead(source(), depth) as items:
        for taken, _ in enumerate(items, 1):
            time.sleep(0.001)  # a slow reader
            most = max(most, len(made) - taken)
    assert len(made) == 40 and 1 <= most <= depth + 1


def test_leaving_early_ends_the_thread_and_closes_the_items():
    closed, before = [], threading.active_count()

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    with pytest.raises(RuntimeError, match="enough"), ahead(endless(), 2) as one, ahead(map(str, one), 2) as other:
        next(other)
        raise RuntimeError("enough")
    assert closed == [True] and threading.active_count() == before
