"""The errors that i2ilib raises for input it cannot use."""

from __future__ import annotations


class I2IError(ValueError):
    """Bad input, told in three parts: what was expected, what came, and what to do.

    Args:
        what: The thing at fault: an argument, a file, a tensor by name.
        expected: What would have been right.
        got: What was found instead.
        remedy: One sentence that tells the reader how to go on.

    Example:
        >>> print(I2IError("q_in", expected="a power of two from 1 to 128", got=3, remedy="Choose 2 or 4."))
        q_in: expected a power of two from 1 to 128, got 3. Choose 2 or 4.
    """

    def __init__(self, what: str, *, expected: object = None, got: object = None, remedy: str | None = None):
        parts = [f"expected {expected}"] if expected is not None else []
        parts += [f"got {got}"] if got is not None else []
        message = what + (": " + ", ".join(parts) if parts else "")
        super().__init__(message + (f". {remedy}" if remedy else ""))


class FrameError(I2IError):
    """A frame or clip that cannot be read or written; the message names the file."""


class IntegrityError(I2IError):
    """A file whose content is not what its checksum, header or configuration promises."""


class UnavailableError(I2IError, ImportError):
    """An optional library or device that is absent; the message says where to get it."""
