"""Budgets of known platforms, and of an ASIC in the same units."""

from __future__ import annotations

from ..errors import I2IError
from .arguments import expect, whole
from .cost import Budget

PLATFORMS: dict[str, Budget] = {
    budget.name: budget
    for budget in (
        # F-CAD, Table IV: DSPs and 18-Kb blocks as printed; it states no bandwidth, so 64-bit DDR3-1600.
        Budget(900, 1090, name="Z7045"),
        Budget(1590, 1592, name="ZU17EG"),
        Budget(2520, 1824, name="ZU9CG"),
        # AMD DS890 (UltraScale), XCKU115: 5520 DSP slices, 2160 blocks of 36 Kb; the paper names no
        # board, so one 64-bit DDR4-2400 channel is assumed.
        Budget(5520, 4320, 153.6e9, name="KU115"),
        # AMD DS965, Alveo U50: 5952 DSP slices, 1344 blocks of 36 Kb, HBM2 of 316 GB/s at its peak. Its 640 UltraRAM
        # blocks are left out: the model knows block RAM only.
        Budget(5952, 2688, 2528e9, name="U50"),
    )
}


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
