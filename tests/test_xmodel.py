"""The compiler is a stand-in with vai_c_xir's options, files and habits; what is read is a real export of AMD's."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import shared
from standins.write_xmodel import write_xmodel
from standins.xir import STRING, UNSIGNED, attribute, field, varint
from torch import nn

from i2ilib import I2IError, IntegrityError, UnavailableError
from i2ilib.deploy import xmodel
from i2ilib.deploy.xmodel import compile_xmodel, fingerprint, hexadecimal, read, sidecar
from i2ilib.quant import quantise

STANDINS = Path(__file__).parent / "standins"
ISA2, DWC = 0x20200000010002A, 0x20200000010002B


@pytest.fixture
def compiler(monkeypatch):
    """AMD's compiler is here, by name of a command; a function sets how it behaves."""
    monkeypatch.setenv(xmodel.VAI_C, f"env STAND=IN {sys.executable} {STANDINS / 'vai_c_xir'}")
    return lambda **how: [monkeypatch.setenv(f"STANDIN_{name}", value) for name, value in how.items()]


@pytest.fixture(scope="module")
def quantised():
    torch.manual_seed(0)
    return quantise(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh()), [torch.rand(2, 3, 8, 8)])


@pytest.fixture(scope="module")
def source(quantised, tmp_path_factory):
    return write_xmodel(tmp_path_factory.mktemp("job") / "net_int.xmodel", quantised)


def by_hand(path, *parts):
    path.write_bytes(field(1, "net") + field(5, field(1, "a") + field(2, "conv2d")) + b"".join(parts))
    return path


def told(value):
    return field(10, attribute(2, "dpu_fingerprint", UNSIGNED, value))


# --- what an xmodel says ---------------------------------------------------------------------------


def test_an_export_of_amds_quantiser_is_read():
    found = read(shared("golden/nndct/tiny_ed_plain_int.xmodel"))
    operators = json.loads(shared("golden/nndct/xmodel_ops.json").read_text())["tiny_ed_plain"]["ops"]
    assert found.name == "TinyED" and found.fingerprint is None
    assert found.operators == {op["name"]: op["type"] for op in operators}
    assert found.fix_positions == {op["name"]: op["attrs"]["fix_point"] for op in operators if op["type"] == "fix"}


def test_negative_fix_positions_are_read(tmp_path):
    fix = field(5, field(1, "b") + field(2, "fix") + attribute(3, "fix_point", 5, -3))
    assert read(by_hand(tmp_path / "a.xmodel", fix)).fix_positions == {"b": -3}


def test_the_fingerprint_in_a_compiled_xmodel_is_found_however_it_is_written(tmp_path):
    assert read(by_hand(tmp_path / "a.xmodel", told(DWC))).fingerprint == DWC
    plain = field(1, "dpu_fingerprint") + field(2, varint(8 << 3 | 1) + DWC.to_bytes(8, "little"))
    assert read(by_hand(tmp_path / "b.xmodel", field(10, field(2, plain)))).fingerprint == DWC
    assert read(by_hand(tmp_path / "c.xmodel", told(DWC), told(DWC))).fingerprint == DWC
    assert read(by_hand(tmp_path / "d.xmodel")).fingerprint is None
    with pytest.raises(IntegrityError, match=r"one DPU, got 0x20200000010002a \(DPUCAHX8H_ISA2\), 0x20200000010002b"):
        read(by_hand(tmp_path / "e.xmodel", told(DWC), told(ISA2)))


def test_what_is_no_xmodel_is_refused(tmp_path, source):
    whole = source.read_bytes()
    for name, content in {
        "empty": b"",
        "text": b"standin",
        "zeros": bytes(100),
        "cut": whole[: len(whole) // 2],
        "no protobuf": b"\x0f" + whole,
        "no operators": field(1, "net"),
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(40),
    }.items():
        (tmp_path / "x.xmodel").write_bytes(content)
        with pytest.raises(IntegrityError, match="expected an xmodel"):
            pytest.fail(f"{name}: {read(tmp_path / 'x.xmodel')}")
    with pytest.raises(I2IError, match="no file"):
        read(tmp_path / "none.xmodel")


def test_fingerprints_come_from_numbers_names_and_files(tmp_path, source):
    assert fingerprint(ISA2) == fingerprint("0x20200000010002A") == fingerprint("DPUCAHX8H_ISA2") == ISA2
    for about in ({"fingerprint": hex(ISA2)}, {"target": "DPUCAHX8H_ISA2"}):
        (tmp_path / "arch.json").write_text(json.dumps(about))
        assert fingerprint(tmp_path / "arch.json") == fingerprint(str(tmp_path / "arch.json")) == ISA2
    assert fingerprint(by_hand(tmp_path / "a.xmodel", told(DWC))) == DWC and fingerprint(source) is None
    (tmp_path / "a.xmodel.json").write_text('{"source_sha256": "", "fingerprint": null}')
    assert fingerprint(tmp_path / "a.xmodel.json") is None
    assert hexadecimal(0x2A) == "0x2a" and hexadecimal(None) == "none" and hexadecimal(DWC).endswith("ISA2_DWC)")


@pytest.mark.parametrize(
    ("text", "match"),
    [("{", "a JSON file"), ("[]", "a JSON object, got list"), ("{}", "a fingerprint, 0x…"), ('{"target": "Z"}', "'Z'")],
)
def test_files_without_a_fingerprint_are_refused(tmp_path, text, match):
    (tmp_path / "arch.json").write_text(text)
    with pytest.raises(IntegrityError, match=match):
        fingerprint(tmp_path / "arch.json")
    with pytest.raises(I2IError, match="no file"):
        fingerprint(tmp_path / "other.json")


# --- compiling -------------------------------------------------------------------------------------


def test_compiling_leaves_the_result_and_its_sidecar_alone(compiler, source, tmp_path):
    out = compile_xmodel(source, tmp_path / "new" / "net.xmodel")
    assert out == tmp_path / "new" / "net.xmodel"
    assert sorted(p.name for p in out.parent.iterdir()) == ["net.xmodel", "net.xmodel.json"]
    about = sidecar(out)
    assert about == json.loads((tmp_path / "new" / "net.xmodel.json").read_text())
    assert about["arch"] == "U50" and about["target"] == "DPUCAHX8H_ISA2" and about["dpu_subgraphs"] == 1
    assert about["source"] == "net_int.xmodel" and about["compiler"] == "vai_c_xir stand-in 0.0"
    assert about["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert about["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert about["date"].endswith("+00:00")
    assert fingerprint(out) == fingerprint(tmp_path / "new" / "net.xmodel.json") == read(out).fingerprint == ISA2


def test_every_way_to_name_the_architecture(compiler, source, tmp_path):
    (tmp_path / "arch.json").write_text(json.dumps({"fingerprint": hex(DWC)}))
    for arch in (DWC, hex(DWC), "DPUCAHX8H_ISA2_DWC", tmp_path / "arch.json", str(tmp_path / "arch.json")):
        out = compile_xmodel(source, tmp_path / "net.xmodel", arch=arch)
        assert fingerprint(out) == DWC and sidecar(out)["target"] == "DPUCAHX8H_ISA2_DWC"
    assert sidecar(compile_xmodel(source, out, arch=DWC))["arch"] == hex(DWC)


def test_the_compiler_is_found_on_the_path_and_by_argument(monkeypatch, source, tmp_path):
    monkeypatch.delenv(xmodel.VAI_C, raising=False)
    monkeypatch.setenv("PATH", f"{STANDINS}{os.pathsep}{os.environ['PATH']}")
    assert xmodel.status() == (True, "vai_c_xir")
    assert sidecar(compile_xmodel(source, tmp_path / "net.xmodel"))["fingerprint"] == hex(ISA2)
    monkeypatch.setenv(xmodel.VAI_C, "/nowhere/vai_c_xir")
    command = f"{sys.executable} {STANDINS / 'vai_c_xir'}"
    assert xmodel.status(command) == (True, command)
    assert compile_xmodel(source, tmp_path / "net.xmodel", command=command)


def test_the_compiler_gets_paths_under_the_folder_of_the_result(monkeypatch, source, tmp_path):
    """So that one folder is all that a container must see."""
    script = tmp_path / "tool"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho broken; exit 2\n')
    script.chmod(0o755)
    with pytest.raises(I2IError, match="code 2; the log ends: broken"):
        compile_xmodel(source, tmp_path / "net.xmodel", arch=ISA2, command=str(script))
    x, _, a, _, o, *name = (tmp_path / "asked").read_text().split()[1:]
    assert all(Path(path).parent.parent == tmp_path for path in (x, a, o)) and name == ["-n", "net"]
    with pytest.raises(I2IError, match="code 2"):
        compile_xmodel(source, tmp_path / "net.xmodel", arch="U50", command=str(script))
    assert "-a /opt/vitis_ai/compiler/arch/DPUCAHX8H/U50/arch.json " in (tmp_path / "asked").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["asked", "tool"]


# --- when it is absent, or fails ---------------------------------------------------------------------


def test_absence_says_where_to_get_it(monkeypatch, source, tmp_path):
    monkeypatch.delenv(xmodel.VAI_C, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not xmodel.status()
    with pytest.raises(UnavailableError, match=r"no vai_c_xir here.*2\.5 is the last.*1\.4\.1.*I2I_VAI_C"):
        compile_xmodel(source, tmp_path / "net.xmodel")
    with pytest.raises(UnavailableError, match="no /nowhere/tool here"):
        compile_xmodel(source, tmp_path / "net.xmodel", command="/nowhere/tool -v")
    (tmp_path / "tool").write_bytes(b"\x7fELF no program")
    (tmp_path / "tool").chmod(0o755)
    with pytest.raises(UnavailableError, match=r"Exec format error.*1\.4\.1"):
        compile_xmodel(source, tmp_path / "net.xmodel", command=str(tmp_path / "tool"))
    assert not (tmp_path / "net.xmodel").exists()


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ({"COMPILER": "fail"}, I2IError, r"code 3; the log ends: .*Target architecture.* \| .*bank of weights"),
        ({"COMPILER": "nothing"}, I2IError, r"a compiled xmodel, got none; the log ends: .*bank of weights"),
        ({"COMPILER": "hang"}, I2IError, r"none after 1 s; the log ends: .*Target architecture.*timeout_s"),
        ({"COMPILER": "garbage"}, IntegrityError, "expected an xmodel"),
        ({"FINGERPRINT": hex(DWC)}, IntegrityError, r"expected 0x20200000010002a \(.*\), got 0x20200000010002b"),
    ],
)
def test_a_failure_is_told_and_the_old_result_stays(compiler, source, tmp_path, how, error, match):
    out = compile_xmodel(source, tmp_path / "net.xmodel", arch=ISA2)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    compiler(**how)
    with pytest.raises(error, match=match):
        compile_xmodel(source, out, arch=ISA2, timeout_s=1.0)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_architecture_or_a_source_that_cannot_be(compiler, source, tmp_path):
    out = tmp_path / "net.xmodel"
    for arch in ("U51", "0x", "DPUCZDX8G", tmp_path):
        with pytest.raises(I2IError, match=r"arch: expected U50, U50LV, DPUCAHX8H_ISA2.*a fingerprint 0x…"):
            compile_xmodel(source, out, arch=arch)
    with pytest.raises(I2IError, match="no file"):
        compile_xmodel(source, out, arch=tmp_path / "none.json")
    (tmp_path / "arch.json").write_text('{"dpu": 1}')
    with pytest.raises(IntegrityError, match="'target' or 'fingerprint', got dpu"):
        compile_xmodel(source, out, arch=tmp_path / "arch.json")
    with pytest.raises(I2IError, match=r"suffix \.xmodel"):
        compile_xmodel(source, tmp_path / "net.bin")
    (tmp_path / "job.xmodel").write_bytes(b"standin")
    with pytest.raises(IntegrityError, match="expected an xmodel"):
        compile_xmodel(tmp_path / "job.xmodel", out)
    made = compile_xmodel(source, out)
    with pytest.raises(I2IError, match="as the quantiser exports it, got one compiled for 0x20200000010002a"):
        compile_xmodel(made, tmp_path / "again.xmodel")


def test_a_compiler_that_tells_no_version_or_fingerprint(compiler, quantised, tmp_path, monkeypatch):
    """Where neither log nor file tell, the sidecar says what was asked for."""
    source = write_xmodel(tmp_path / "net_int.xmodel", quantised)
    script = tmp_path / "tool"
    script.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 2\ncp "$2" "$6/$8.xmodel"\n')
    script.chmod(0o755)
    out = compile_xmodel(source, tmp_path / "net.xmodel", arch=DWC, command=str(script))
    about = sidecar(out)
    assert about["fingerprint"] == hex(DWC)
    assert about["compiler"] is about["target"] is about["dpu_subgraphs"] is None
    assert sidecar(compile_xmodel(source, out, command=str(script)))["fingerprint"] is None


def test_a_sidecar_of_another_file_is_refused(compiler, source, tmp_path):
    out = compile_xmodel(source, tmp_path / "net.xmodel")
    out.write_bytes(out.read_bytes() + field(7, STRING))
    with pytest.raises(IntegrityError, match=r"SHA-256 .*, got SHA-256 .*Compile it again"):
        sidecar(out)
    (tmp_path / "net.xmodel.json").write_text("{")
    with pytest.raises(IntegrityError, match="a JSON file"):
        sidecar(out)
    assert sidecar(source) is None
