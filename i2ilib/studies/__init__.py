"""Experiments on top of the library, each a program with a recorded result: ``python -m i2ilib.studies.<name>``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..errors import I2IError
from ..models import open_network


def named_networks(given: Sequence[str]) -> dict[str, nn.Module]:
    """Networks from ``NAME=WEIGHTS``.

    Raises:
        I2IError: If one is not given so, or its file is missing.
    """
    found = {}
    for each in given:
        name, _, path = each.partition("=")
        if not path:
            raise I2IError("--network", expected="NAME=WEIGHTS", got=repr(each))
        found[name] = open_network(path)
    return found
