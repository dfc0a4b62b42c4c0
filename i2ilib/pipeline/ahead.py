"""Stages of a pipeline that work at the same time: each in a thread of its own, a few items ahead and no more."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def ahead(items: Iterable[T], depth: int) -> Iterator[Iterator[T]]:
    """The same items, made in a thread of their own.

    An error of that thread is raised here, behind the items before it. Leaving the block stops the thread, whatever
    is left, and closes ``items``, so nothing is decoded for nobody.

    Args:
        items: Asked for one by one, in the thread.
        depth: Items that may wait at once; one more is in the making.

    Example:
        >>> with ahead(range(3), depth=1) as numbers:
        ...     list(numbers)
        [0, 1, 2]
    """
    waiting: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(item: T | None, end: object = None) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put((item, end), timeout=0.1)
                return True
        return False

    def work() -> None:
        end: object = StopIteration
        try:
            for item in items:
                if not put(item):
                    break
        except BaseException as error:  # the reader of the items decides what to do about it
            end = error
        finally:
            if close := getattr(items, "close", None):
                close()
        put(None, end)

    def given() -> Iterator[T]:
        while True:
            item, end = waiting.get()
            if end is StopIteration:
                return
            if end is not None:
                raise end
            yield item

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        yield given()
    finally:
        stop.set()
        thread.join()
