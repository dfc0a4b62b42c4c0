"""What this machine's processor can do, asked once; defaults follow from it.

PyTorch reads the processor (by the cpuinfo library, on x86 and ARM, on Linux, macOS and Windows). A limit that the user
sets for oneDNN, which both PyTorch and OpenVINO obey, holds here too: with ``ONEDNN_MAX_CPU_ISA=AVX2`` a processor with
AMX is one without.
"""

from __future__ import annotations

import dataclasses
import functools
import os

import psutil

from ..errors import I2IError

# oneDNN's instruction sets, each with the vector and matrix units that it adds to those of the set it builds on
_SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "SSE41": ("", ()),
    "AVX": ("SSE41", ()),
    "AVX2": ("AVX", ("avx2",)),
    "AVX2_VNNI": ("AVX2", ("avx_vnni",)),
    "AVX2_VNNI_2": ("AVX2_VNNI", ("avx_ne_convert",)),
    "AVX512_CORE": ("AVX2", ("avx512_f",)),
    "AVX512_CORE_VNNI": ("AVX512_CORE", ("avx512_vnni",)),
    "AVX512_CORE_BF16": ("AVX512_CORE_VNNI", ("avx512_bf16",)),
    "AVX512_CORE_FP16": ("AVX512_CORE_BF16", ("avx_vnni",)),
    "AVX512_CORE_AMX": ("AVX512_CORE_FP16", ("amx_int8", "amx_bf16")),
    "AVX512_CORE_AMX_FP16": ("AVX512_CORE_AMX", ()),
    "AVX10_1_512": ("AVX512_CORE_FP16", ()),  # the same three by their newer names
    "AVX10_1_512_AMX": ("AVX512_CORE_AMX", ()),
    "AVX10_1_512_AMX_FP16": ("AVX512_CORE_AMX_FP16", ()),
    "AVX10_2_512": ("AVX512_CORE_FP16", ("avx_ne_convert",)),
    "AVX10_2_512_AMX_2": ("AVX10_2_512", ("amx_int8", "amx_bf16")),
}
_LIMIT = "ONEDNN_MAX_CPU_ISA"

# capability as PyTorch names it: what people call it; the stronger last
UNITS = {
    "neon": "NEON",
    "sve": "SVE",
    "dot": "dot product",
    "i8mm": "INT8 matrix product",
    "bf16": "bf16",
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx_ne_convert": "AVX-NE-CONVERT",
    "avx512_f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX INT8",
}
INT8 = ("dot", "i8mm", "avx_vnni", "avx512_vnni", "amx_int8")  # sum four products of int8 in 32 bits at once
BF16 = ("bf16", "avx512_bf16", "amx_bf16")


@dataclasses.dataclass(frozen=True)
class Machine:
    """A processor and its memory."""

    name: str  # as the vendor spells it
    architecture: str  # "x86_64", "arm64"
    units: tuple[str, ...]  # of UNITS: vector and matrix units that may be used; the stronger last
    cores: int  # that this process may use
    memory_gib: float
    limit: str = ""  # of ONEDNN_MAX_CPU_ISA, where it is set

    @property
    def int8(self) -> tuple[str, ...]:
        """Units that sum products of int8 without losing a bit."""
        return tuple(unit for unit in self.units if unit in INT8)

    @property
    def bf16(self) -> tuple[str, ...]:
        """Units that multiply bfloat16."""
        return tuple(unit for unit in self.units if unit in BF16)

    @property
    def kind(self) -> str:
        """One word for file names: the strongest unit, "amx" or "avx2" say, or the architecture where none is known."""
        strongest = self.units[-1] if self.units else self.architecture
        return "amx" if strongest.startswith("amx") else strongest

    def describe(self) -> dict[str, object]:
        """For JSON: every field, the units as people call them."""
        return dataclasses.asdict(self) | {"units": [UNITS[unit] for unit in self.units]}

    def __str__(self) -> str:
        strongest = "AMX" if "amx_int8" in self.units else UNITS[self.units[-1]] if self.units else "no AVX2"
        limit = f", limited to {self.limit}" if self.limit else ""
        return f"{self.name}, {self.cores} core{'s' * (self.cores != 1)}, {strongest}{limit}"


def this_machine() -> Machine:
    """The machine that this process runs on.

    Raises:
        I2IError: If ``ONEDNN_MAX_CPU_ISA`` is set to what oneDNN does not know.
    """
    return _machine(os.environ.get(_LIMIT, "").upper())


@functools.cache
def _machine(limit: str) -> Machine:
    import torch

    found = torch.cpu.get_capabilities()
    if limit in ("ALL", "DEFAULT") or found["architecture"] != "x86_64":  # oneDNN has no limit elsewhere
        limit = ""
    allowed = within(limit) if limit else set(UNITS)
    return Machine(
        name=found.get("cpu_name") or found["architecture"],
        architecture=found["architecture"],
        units=tuple(unit for unit in UNITS if found.get(unit) and unit in allowed),
        cores=_cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        limit=limit,
    )


def within(limit: str) -> set[str]:
    """The units of an instruction set and of those that it builds on."""
    if limit not in _SETS:
        raise I2IError(_LIMIT, expected=" or ".join(_SETS), got=repr(limit), remedy="Unset it to use all there is.")
    below, units = _SETS[limit]
    return {*units, *(within(below) if below else ())}


def _cores() -> int:
    try:
        return len(psutil.Process().cpu_affinity())
    except AttributeError:  # macOS has none
        return os.cpu_count() or 1
