"""What the processor can do: told by PyTorch, of processors that are not here too, within oneDNN's limit."""

import json
import os
import types

import psutil
import pytest
import torch

from i2ilib import I2IError
from i2ilib.runtime import cpu_name, machine
from i2ilib.runtime.machine import BF16, INT8, UNITS, this_machine

AVX512 = ("avx", "avx2", "avx512_f", "avx512_bw", "avx512_vnni", "avx512_bf16")
# what torch.cpu.get_capabilities() says of each: name, architecture, units that are there
PROCESSORS = {
    "xeon": (
        "Intel Xeon Platinum 8481C",
        "x86_64",
        (*AVX512, "avx_vnni", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    ),
    "zen4": ("AMD EPYC 9R14", "x86_64", AVX512),
    "laptop": ("Intel Core i7-1260P", "x86_64", ("avx", "avx2", "avx_vnni")),
    "ultra": ("Intel Core Ultra 7 258V", "x86_64", ("avx", "avx2", "avx_vnni", "avx_ne_convert")),
    "zen2": ("AMD EPYC 7R32", "x86_64", ("avx", "avx2")),
    "old": ("Intel Core i7-3770", "x86_64", ("avx",)),
    "m1": ("Apple M1", "arm64", ("neon", "fp16_arith", "dot")),
    "graviton3": ("", "arm64", ("neon", "fp16_arith", "bf16", "i8mm", "dot", "sve", "sve_bf16")),
}


@pytest.fixture
def processor(monkeypatch):
    """A function that puts another processor here, and with it a limit of oneDNN."""

    def choose(which, limit=None):
        name, architecture, units = PROCESSORS[which]
        known = {unit for _, other, those in PROCESSORS.values() if other == architecture for unit in those}
        told = {"cpu_name": name, "architecture": architecture} | {unit: unit in units for unit in known}
        if "sve" in units:
            told["sve_max_length"] = 256
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: types.MappingProxyType(told))
        if limit is None:
            monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        else:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        machine._machine.cache_clear()
        return this_machine()

    yield choose
    machine._machine.cache_clear()


@pytest.mark.parametrize(
    ("which", "units", "int8", "bf16", "strongest"),
    [
        (
            "xeon",
            ("avx2", "avx_vnni", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),
            ("avx_vnni", "avx512_vnni", "amx_int8"),
            ("avx512_bf16", "amx_bf16"),
            "AMX",
        ),
        (
            "zen4",
            ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16"),
            ("avx512_vnni",),
            ("avx512_bf16",),
            "AVX-512 BF16",
        ),
        ("laptop", ("avx2", "avx_vnni"), ("avx_vnni",), (), "AVX-VNNI"),
        ("ultra", ("avx2", "avx_vnni", "avx_ne_convert"), ("avx_vnni",), (), "AVX-NE-CONVERT"),
        ("zen2", ("avx2",), (), (), "AVX2"),
        ("old", (), (), (), "no AVX2"),
        ("m1", ("neon", "dot"), ("dot",), (), "dot product"),
        ("graviton3", ("neon", "sve", "dot", "i8mm", "bf16"), ("dot", "i8mm"), ("bf16",), "bf16"),
    ],
)
def test_units_of(processor, which, units, int8, bf16, strongest):
    found = processor(which)
    assert (found.units, found.int8, found.bf16, found.limit) == (units, int8, bf16, "")
    name, architecture, _ = PROCESSORS[which]
    assert found.name == (name or "arm64") and found.architecture == architecture  # Linux on ARM tells no name
    assert str(found) == cpu_name() == f"{found.name}, {found.cores} core{'s' * (found.cores > 1)}, {strongest}"


@pytest.mark.parametrize("which", ["xeon", "m1"])
def test_description_is_json(processor, which):
    found = processor(which)
    told = found.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["units"] == [UNITS[unit] for unit in found.units] and told["memory_gib"] > 0
    assert {"name", "architecture", "units", "cores", "memory_gib", "limit"} == told.keys()


# --- the limit ---------------------------------------------------------------------------------------


AVX2, VNNI, F = {"avx2"}, {"avx_vnni"}, {"avx512_f"}
FP16 = AVX2 | VNNI | F | {"avx512_vnni", "avx512_bf16"}
AMX = FP16 | {"amx_int8", "amx_bf16"}
LIMITS = {  # of an Xeon with AMX; from oneDNN's documentation, "CPU Dispatcher Control"
    "SSE41": set(),
    "AVX": set(),
    "AVX2": AVX2,
    "AVX2_VNNI": AVX2 | VNNI,
    "AVX2_VNNI_2": AVX2 | VNNI,
    "AVX512_CORE": AVX2 | F,
    "AVX512_CORE_VNNI": AVX2 | F | {"avx512_vnni"},
    "AVX512_CORE_BF16": AVX2 | F | {"avx512_vnni", "avx512_bf16"},
    "AVX512_CORE_FP16": FP16,
    "AVX10_1_512": FP16,
    "AVX10_2_512": FP16,
    "AVX512_CORE_AMX": AMX,
    "AVX10_1_512_AMX": AMX,
    "AVX512_CORE_AMX_FP16": AMX,
    "AVX10_1_512_AMX_FP16": AMX,
    "AVX10_2_512_AMX_2": AMX,
}


def test_every_value_that_is_known_is_tried():
    assert LIMITS.keys() == machine._SETS.keys()


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("spell", [str.upper, str.lower])
def test_limit(processor, limit, spell):
    found = processor("xeon", spell(limit))
    assert set(found.units) == LIMITS[limit] and found.limit == limit
    assert str(found).endswith(f", limited to {limit}") and found.describe()["limit"] == limit


@pytest.mark.parametrize("limit", ["", "ALL", "DEFAULT", "default"])
def test_no_limit(processor, limit):
    assert processor("xeon", limit) == processor("xeon")


def test_a_limit_adds_nothing(processor):
    assert processor("laptop", "AVX512_CORE_AMX").units == ("avx2", "avx_vnni")
    assert processor("zen4", "AVX2_VNNI").units == ("avx2",)
    assert processor("ultra", "AVX2_VNNI").units == ("avx2", "avx_vnni")
    assert processor("ultra", "AVX2_VNNI_2").units == ("avx2", "avx_vnni", "avx_ne_convert")


def test_a_limit_that_onednn_does_not_know(processor):
    with pytest.raises(I2IError, match=r"ONEDNN_MAX_CPU_ISA: expected SSE41 or .*, got 'AVX512'\. Unset it"):
        processor("xeon", "avx512")


@pytest.mark.parametrize("limit", ["AVX2", "nonsense"])
def test_arm_has_no_limit(processor, limit):
    assert processor("m1", limit) == processor("m1")


def test_asked_once_for_each_limit(processor, monkeypatch):
    first = processor("xeon")
    monkeypatch.setattr(torch.cpu, "get_capabilities", None)  # asking again would fail
    assert this_machine() is first


# --- this process ------------------------------------------------------------------------------------


def test_cores_are_those_that_may_be_used(processor, monkeypatch):
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [0, 3, 5], raising=False)
    assert processor("zen2").cores == 3
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [7])
    assert str(processor("zen2")) == "AMD EPYC 7R32, 1 core, AVX2"


def test_macos_does_not_tell_which_cores(processor, monkeypatch):
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert processor("m1").cores == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processor("m1").cores == 1


def test_the_machine_that_is_here():
    found = this_machine()
    assert found.name and found.cores >= 1 and found.memory_gib > 0
    assert set(found.units) <= set(UNITS) and set(found.int8) <= set(INT8) and set(found.bf16) <= set(BF16)
