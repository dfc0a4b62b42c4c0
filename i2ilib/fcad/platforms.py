"""Budgets of known platforms, and of an ASIC in the same units."""

from __future__ import annotations

from ..errors import I2IError
from .arguments import expect, whole
from .cost import Budget

# Name: DSPs, 18-Kb blocks (two for each of 36 Kb, which data sheets count), bit/s of memory, and where that stands. The
# figures are the whole device's. A card's shell or a memory controller takes some away, and what a placed design
# reaches is less again.
_DDR3, _DDR4 = 102.4e9, 153.6e9  # one 64-bit channel: DDR3-1600, DDR4-2400
_KNOWN: dict[str, tuple[int, int, float, str]] = {
    # F-CAD, Table IV: DSPs and 18-Kb blocks as printed; it states no bandwidth, so 64-bit DDR3-1600.
    "Z7045": (900, 1090, _DDR3, "F-CAD, Table IV; memory assumed: 64-bit DDR3-1600"),
    "ZU17EG": (1590, 1592, _DDR3, "F-CAD, Table IV; memory assumed: 64-bit DDR3-1600"),
    "ZU9CG": (2520, 1824, _DDR3, "F-CAD, Table IV; memory assumed: 64-bit DDR3-1600"),
    # The paper names no board for it, so one 64-bit DDR4-2400 channel is assumed.
    "KU115": (5520, 4320, _DDR4, "AMD DS890, XCKU115; memory assumed: 64-bit DDR4-2400"),
    # 640 blocks of UltraRAM are left out: the model knows block RAM only.
    "U50": (5952, 2688, 2528e9, "AMD DS965, Alveo U50: HBM2 of 316 GB/s at its peak"),
    "Z7020": (220, 280, 34.1e9, "AMD DS190, XC7Z020; memory: 32-bit DDR3-1066"),
    "ZU3EG": (360, 432, _DDR4, "AMD DS891, XCZU3EG; memory: 64-bit DDR4-2400"),
    "ZU7EV": (1728, 624, _DDR4, "AMD DS891, XCZU7EV; memory: 64-bit DDR4-2400; 96 UltraRAMs left out"),
    "K26": (1248, 288, _DDR4, "AMD DS987, Kria K26: 64-bit DDR4-2400; 64 UltraRAMs left out"),
    "ZU15EG": (3528, 1488, _DDR4, "AMD DS891, XCZU15EG; memory: 64-bit DDR4-2400; 112 UltraRAMs left out"),
    "ZU19EG": (1968, 1968, _DDR4, "AMD DS891, XCZU19EG; memory: 64-bit DDR4-2400; 128 UltraRAMs left out"),
    "U200": (6840, 4320, 616e9, "AMD DS962, Alveo U200: four DDR4 channels, 77 GB/s; 960 UltraRAMs left out"),
    "U250": (12288, 5376, 616e9, "AMD DS962, Alveo U250: four DDR4 channels, 77 GB/s; 1280 UltraRAMs left out"),
    "U280": (9024, 4032, 3680e9, "AMD DS963, Alveo U280: HBM2 of 460 GB/s; 960 UltraRAMs left out"),
}
PLATFORMS: dict[str, Budget] = {name: Budget(*figures[:3], name=name) for name, figures in _KNOWN.items()}
SOURCES: dict[str, str] = {name: figures[3] for name, figures in _KNOWN.items()}


def platform(budget: Budget | str) -> Budget:
    """A budget, or that of a platform by name.

    Raises:
        I2IError: If it is neither.

    Example:
        >>> platform("Z7045").dsp
        900
    """
    if isinstance(budget, str):
        if budget not in PLATFORMS:
            raise I2IError("budget", expected=f"a Budget, or one of {', '.join(PLATFORMS)}", got=repr(budget))
        return PLATFORMS[budget]
    return expect("budget", budget, Budget, "Give Budget(dsp, bram), or the name of a platform.")


BLOCK_BITS = 18 * 1024


def asic(*, macs: int, buffer_bytes: int, bandwidth: float = 102.4e9, bits: int = 8, name: str = "ASIC") -> Budget:
    """An ASIC by its MAC units, on-chip buffer and external bandwidth (the paper's Sec. VII), in the model's units.

    At 8 bits two MAC units stand for one DSP, which multiplies twice a cycle; at 16 bits one does. The buffer counts as
    18-Kb blocks, rounded down: the model cuts memories as an FPGA must, so an ASIC's own cut needs no more.

    Args:
        macs: Multiply-accumulate units.
        buffer_bytes: On-chip memory.
        bandwidth: External memory, bit/s.
        bits: Width of the MAC units' operands, 8 or 16.
        name: For tables.

    Raises:
        I2IError: If ``bits`` is neither, or nothing is left of a resource.

    Example:
        >>> asic(macs=4096, buffer_bytes=2 * 2**20)
        Budget(dsp=2048, bram=910, bandwidth=102400000000.0, name='ASIC')
    """
    if bits not in (8, 16):
        raise I2IError("bits", expected="8 or 16", got=repr(bits))
    for what, value in (("macs", macs), ("buffer_bytes", buffer_bytes)):
        if not whole(value):
            raise I2IError(what, expected="a whole number from 1", got=repr(value))
    return Budget(macs * bits // 16, buffer_bytes * 8 // BLOCK_BITS, bandwidth, name)
