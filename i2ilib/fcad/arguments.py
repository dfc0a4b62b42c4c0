"""What the public functions are given, checked in one place: what is wrong is named before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from numbers import Integral, Real
from typing import Any, TypeVar

from ..errors import I2IError

T = TypeVar("T")


def expect(what: str, value: object, kind: type[T], remedy: str | None = None) -> T:
    """The value, if it is of that kind; else I2IError says what it is."""
    if not isinstance(value, kind):
        raise I2IError(what, expected=f"a {kind.__name__}", got=kind_of(value), remedy=remedy)
    return value


def kind_of(value: object) -> str:
    """A word for a value of the wrong kind."""
    return "None" if value is None else type(value).__name__


def whole(value: object, least: int = 1) -> bool:
    """Whether a value is a whole number, NumPy's included, not below ``least``."""
    return isinstance(value, Integral) and not _truth(value) and value >= least


def positive(value: object) -> bool:
    """Whether a value is a number above 0, infinity included."""
    return isinstance(value, Real) and not _truth(value) and value > 0


def weight(value: object) -> bool:
    """Whether a value is a finite number, not below 0."""
    return isinstance(value, Real) and not _truth(value) and 0 <= value < inf


def _truth(value: object) -> bool:
    """Whether a value is True or False, NumPy's included, which Python counts among the numbers."""
    return isinstance(value, bool) or type(value).__name__ == "bool"


def several(values: Any) -> tuple:
    """The values of any sequence, none of what is no sequence."""
    try:
        return tuple(values)
    except TypeError:
        return ()


def one_each(what: str, given: Any, branches: int, fits: Callable[[object], bool], kind: str, remedy: str) -> tuple:
    """One value for each branch; 1 each where none are given."""
    values = (1,) * branches if given is None else several(given)
    if len(values) != branches or not all(map(fits, values)):
        expected = f"{branches} {kind}, one for each branch"
        raise I2IError(what, expected=expected, got=repr(given), remedy=remedy)
    return values


def batches(given: Sequence[int] | None, branches: int) -> tuple[int, ...]:
    """Copies of each branch, 1 each by default."""
    remedy = "Give the copies of each branch's pipeline."
    return tuple(map(int, one_each("batch_sizes", given, branches, whole, "whole numbers from 1", remedy)))
