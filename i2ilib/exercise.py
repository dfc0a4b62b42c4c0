"""Grade an exercise of a notebook on the reader's own function.

A check takes the function and compares what it gives with :func:`expect`. It may return a remark, which is told when
all is right. The same check runs on the solution, and on a plausible mistake, which it has to find.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

Answer = TypeVar("Answer")
Check = Callable[[Answer], str | None]


def expect(what: str, got: object, wanted: object, *, within: float = 0.0) -> None:
    """Compare a result of an answer with what is right.

    Args:
        what: The call, as the reader would type it.
        got: What the answer gave: a number, a text, None, an array or tensor, or a list or tuple of them.
        wanted: What is right.
        within: Largest difference of numbers that is still right.

    Raises:
        AssertionError: If they differ; names the call and both values.

    Example:
        >>> expect("half(3)", 1.5, 1.5)
        >>> expect("half(3)", 1, 1.5)
        Traceback (most recent call last):
        AssertionError: half(3): expected 1.5, got 1
    """
    if not _equal(got, wanted, within):
        raise AssertionError(f"{what}: expected {_told(wanted)}, got {_told(got)}")


def grade(check: Check, answer: Answer) -> None:
    """Run a check on an answer and print how it went.

    A stub that raises ``NotImplementedError`` is no mistake: its hint is printed.

    Raises:
        AssertionError: If the answer is wrong; says what came and what is right.
    """
    name = getattr(answer, "__name__", "the answer")
    try:
        remark = check(answer)
    except NotImplementedError as hint:
        print(f"{name}: not written yet. Hint: {hint}")
        return
    print(f"{name}: right. {remark or ''}".rstrip())


def finds(check: Check, mistake: Answer) -> None:
    """Show that a check finds a mistake, and print what it says.

    Raises:
        AssertionError: If the check passes.
    """
    try:
        check(mistake)
    except AssertionError as told:
        print(f"a mistake is found: {told}")
        return
    raise AssertionError(f"the check passes {getattr(mistake, '__name__', mistake)}, which is wrong")


def _equal(got: object, wanted: object, within: float) -> bool:
    if isinstance(wanted, list | tuple) and isinstance(got, list | tuple):
        return len(got) == len(wanted) and all(_equal(g, w, within) for g, w in zip(got, wanted, strict=True))
    if wanted is None or isinstance(wanted, str | bool | dict | set) or got is None or isinstance(got, str):
        return got == wanted
    try:
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    except (TypeError, ValueError, RuntimeError):
        return False
    return got.shape == wanted.shape and bool((np.abs(got - wanted) <= within).all())


def _told(value: object) -> str:
    shape = tuple(getattr(value, "shape", ()))
    if len(shape) == 0 or int(np.prod(shape)) <= 8:
        return str(value.tolist() if hasattr(value, "tolist") else value)
    return f"shape {shape}, mean {float(np.asarray(value, np.float64).mean()):.6g}"
