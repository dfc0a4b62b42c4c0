"""Numbers that others printed, from ``data/published``, each table with its source. Their origin is "paper".

``TABLE_2``, ``THESIS_SPEED``, ``THESIS_SIZE`` and ``THESIS_QUALITY`` are read when they are first asked for.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

from ..errors import I2IError
from ..runtime import DATA

if TYPE_CHECKING:
    import pandas as pd

FOLDER = DATA / "published"
TABLES = ("table_2", "thesis_speed", "thesis_size", "thesis_quality")


@functools.cache
def _read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def table(name: str) -> pd.DataFrame:
    """A published table, as printed.

    Args:
        name: One of :data:`TABLES`.

    Returns:
        One row a line of the table, by its name; ``attrs`` holds ``source``, ``about``, ``columns`` (unit or meaning
        of each) and ``notes``.

    Raises:
        I2IError: If there is no such table.

    Example:
        >>> table("table_2").loc["U-Net GPU", "latency_ms"].item()
        2.9
    """
    import pandas as pd

    if name not in TABLES:
        raise I2IError("table", expected=" or ".join(TABLES), got=repr(name))
    data = _read(name)
    rows = pd.DataFrame(data["rows"])
    rows = rows.set_index(rows.columns[0])
    rows.attrs = {key: value for key, value in data.items() if key != "rows"}
    return rows


def __getattr__(name: str) -> pd.DataFrame:
    if name.lower() in TABLES and name.isupper():
        return table(name.lower())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
