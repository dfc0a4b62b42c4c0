"""What the F-CAD paper printed (origin: paper), and the designs behind its Table IV (origin: reconstructed).

``TABLE_2``, ``TABLE_4`` and ``TABLE_5`` are read from ``data/published`` when they are first asked for.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ..errors import I2IError
from ..runtime import DATA
from .construct import DesignSpace
from .cost import Config, Factors

if TYPE_CHECKING:
    import pandas as pd

SOURCE = (
    "X. Zhang, D. Wang, P. Chuang, S. Ma, D. Chen, Y. Li: F-CAD: A Framework to Explore Hardware Accelerators for Codec"
    " Avatar Decoding, DAC 2021"
)
NOTES = {
    2: (
        "The row that the paper prints for schemes 2 and 3 of HybridDNN stands here twice.",
        "The efficiencies of DNNBuilder and HybridDNN rest on two operation counts, 13.77 and 13.1 GOP.",
    ),
    4: (
        "Case 5, total BRAM: printed 1735; its rows add up to 1753, which is the printed 96.1 % of 1824.",
        "Case 2, total DSP: printed 83.5 %; 1357 of 1590 is 85.3 %.",
        "Case 1, total DSP: printed 81.8 %; 737 of 900 is 81.89 %, cut instead of rounded.",
        "Case 3, branch 3 at 15.3 FPS: at 61.0 FPS it takes fewer BRAM (case 5), so the design is not the best one.",
    ),
    5: (
        "F-CAD's columns are cases 4 and 5 of Table IV, with batch 1, 2, 2; the text says batch 1 throughout.",
        "F-CAD's efficiencies are means of the three branches' printed ones; Eq. 3 over the design gives 94.3 and"
        " 95.0 %, and the other designs' numbers are of that kind.",
        "BRAM 1735 repeats the slip of Table IV, case 5.",
    ),
}

BATCH = (1, 2, 2)  # of every case: one mesh, and texture and warp field for two eyes
CASES = {1: ("Z7045", 8), 2: ("ZU17EG", 8), 3: ("ZU17EG", 16), 4: ("ZU9CG", 8), 5: ("ZU9CG", 16)}  # platform, bits


def _parse(text: str) -> tuple[Factors, ...]:
    return tuple(tuple(int(factor) for factor in triple.split("x")) for triple in text.split())


# Reconstructed: the paper prints none. cpf x kpf x h by branch and stage; they give Table IV's DSP, FPS and efficiency,
# and at 8 bits its BRAM, to the printed digit.
PAPER_CONFIGS: dict[int, tuple[tuple[Factors, ...], ...]] = {
    1: (
        _parse("1x2x1 4x4x1 8x4x1 8x8x1 16x8x1 16x4x1"),
        _parse("1x2x1 2x2x1 4x2x1 8x4x1 16x8x1 16x8x1 16x8x1 4x1x1"),
        _parse("16x2x1"),
    ),
    2: (
        _parse("1x2x1 8x4x1 8x8x1 16x8x1 16x16x1 32x4x1"),
        _parse("1x2x1 4x2x1 4x4x1 8x8x1 16x16x1 16x16x1 16x16x1 8x1x1"),
        _parse("32x2x1"),
    ),
    3: (
        _parse("1x1x1 4x4x1 8x4x1 8x8x1 16x8x1 16x4x1"),
        _parse("1x1x1 2x2x1 4x2x1 8x4x1 16x8x1 16x8x1 16x8x1 4x1x1"),
        _parse("4x2x1"),
    ),
    4: (
        _parse("1x2x1 8x4x1 8x8x1 16x8x1 16x16x1 32x4x1"),
        _parse("1x2x1 4x4x1 8x4x1 16x8x1 32x16x1 32x16x1 16x16x2 16x1x1"),
        _parse("32x2x1"),
    ),
    5: (
        _parse("1x1x1 4x4x1 8x4x1 8x8x1 16x8x1 16x4x1"),
        _parse("1x1x1 4x2x1 4x4x1 8x8x1 16x16x1 16x16x1 16x16x1 8x1x1"),
        _parse("16x2x1"),
    ),
}


def paper_design(space: DesignSpace, case: int) -> Config:
    """The reconstructed design of a case of Table IV, at that case's precision.

    Args:
        space: The codec avatar decoder's; its precision is set.
        case: 1 to 5.

    Raises:
        I2IError: If there is no such case.
    """
    if case not in CASES:
        raise I2IError("case", expected="1 to 5", got=case)
    return Config(dataclasses.replace(space, bits=CASES[case][1]), PAPER_CONFIGS[case], BATCH)


def table(number: int) -> pd.DataFrame:
    """Table II, IV or V as printed.

    Args:
        number: 2, 4 or 5.

    Returns:
        The rows; ``attrs`` holds ``source`` and ``notes`` (slips and what a reader must know).

    Raises:
        I2IError: If the number is another.

    Example:
        >>> table(4).query("case == 4 and branch == 2").fps.item()
        122.1
    """
    import pandas as pd

    if number not in NOTES:
        raise I2IError("table", expected="2, 4 or 5", got=number)
    rows = pd.read_csv(DATA / "published" / f"fcad_table{number}.csv")
    rows.attrs = {"source": SOURCE, "notes": NOTES[number]}
    return rows


def __getattr__(name: str) -> pd.DataFrame:
    if name in ("TABLE_2", "TABLE_4", "TABLE_5"):
        return table(int(name[-1]))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
