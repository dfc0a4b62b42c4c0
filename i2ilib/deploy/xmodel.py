"""AMD's compiler, vai_c_xir, where it is present: from the quantiser's xmodel to one with a DPU's instructions.

The compiler is a program of four options, so nothing of this library has to run inside AMD's container: it is called
from outside, by a command. An xmodel is a protobuf message; the little of it that is checked is read here, without
AMD's libraries.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from ..errors import I2IError, IntegrityError, UnavailableError
from ..runtime import Availability, atomic_path, split_command, write_json

VAI_C = "I2I_VAI_C"  # the compiler: a path, or a command that ends in one
_COMPILER = "vai_c_xir"
_WHERE = (
    "It comes with AMD's Vitis AI container only: 2.5 is the last release for the Alveo U50, 1.4.1 the last whose U50 "
    f"overlay need not be built by hand. Name it in {VAI_C}, for example 'docker exec NAME {_COMPILER}'."
)
BOARDS = {name: f"/opt/vitis_ai/compiler/arch/DPUCAHX8H/{name}/arch.json" for name in ("U50", "U50LV")}  # in there
# as Vitis AI 3.5 numbers them; a card that another release has set up may say something else, and the card is right
TARGETS = {
    "DPUCAHX8H_ISA2": 0x20200000010002A,
    "DPUCAHX8H_ISA2_DWC": 0x20200000010002B,
    "DPUCAHX8H_ISA2_ELP2": 0x20200000000002E,
}
_FINGERPRINT = re.compile(rb"\x0a\x0fdpu_fingerprint\x12.([\x00-\x7f])", re.DOTALL)  # key, value, the value's field


# --- what an xmodel says -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Xmodel:
    """The part of an xmodel that can be read without AMD's libraries."""

    name: str
    operators: dict[str, str]  # type by name, in the order of the file
    fix_positions: dict[str, int]  # of ``fix`` operators, by name
    fingerprint: int | None  # of the DPU that it is compiled for; None before it is compiled


def read(path: str | os.PathLike) -> Xmodel:
    """What an xmodel holds.

    Raises:
        I2IError: If there is no file.
        IntegrityError: If it is not an xmodel, or compiled for two DPUs.
    """
    path = Path(path)
    if not path.is_file():
        raise I2IError(str(path), expected="an xmodel", got="no file")
    data = path.read_bytes()
    name, operators, positions = "", {}, {}
    try:
        for field, value in _fields(data):
            if field == 1:
                name = value.decode()
            elif field == 5:
                parts = list(_fields(value))
                own, kind = (dict(parts)[number].decode() for number in (1, 2))
                operators[own] = kind
                if kind == "fix":
                    attributes = dict(_attribute(v) for f, v in parts if f == 3)
                    positions |= {own: attributes["fix_point"]} if "fix_point" in attributes else {}
        found = {_fingerprint_at(data, match) for match in _FINGERPRINT.finditer(data)}
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(str(path), expected="an xmodel", got=f"another file ({error or 'cut short'})") from None
    if not name or not operators:
        raise IntegrityError(str(path), expected="an xmodel, with operators", got="another file")
    if len(found) > 1:
        raise IntegrityError(str(path), expected="one DPU", got=", ".join(map(hexadecimal, sorted(found))))
    return Xmodel(name, operators, positions, next(iter(found), None))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift >= 70:
            raise ValueError("no protobuf message")


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and content of every field of a protobuf message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 2, 5):
            size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise ValueError("cut short")
        else:
            raise ValueError("no protobuf message")
        yield key >> 3, value


def _attribute(entry: bytes) -> tuple[str, object]:
    """Name and value of an attribute; the value is a message with one field, whose number tells the type."""
    parts = dict(_fields(entry))
    ((_, value),) = _fields(parts[2])
    return parts[1].decode(), value - 2**64 if isinstance(value, int) and value >= 2**63 else value


def _fingerprint_at(data: bytes, match: re.Match) -> int:
    if match[1][0] & 7 == 1:  # eight plain bytes
        return int.from_bytes(data[match.end() : match.end() + 8], "little")
    return _varint(data, match.end())[0]


def hexadecimal(fingerprint: int | None) -> str:
    """A fingerprint as AMD's tools print it, with the target's name where it is a known one."""
    if fingerprint is None:
        return "none"
    name = next((name for name, value in TARGETS.items() if value == fingerprint), None)
    return f"{fingerprint:#x}" + (f" ({name})" if name else "")


def fingerprint(source: str | os.PathLike | int) -> int | None:
    """The fingerprint of a DPU: from a number, a target's name, an ``arch.json``, a sidecar, or a compiled xmodel.

    Args:
        source: 0x20200000010002a, "0x20200000010002a", "DPUCAHX8H_ISA2", or the path of a file.

    Returns:
        The number; None where the file tells none (an xmodel before it is compiled).

    Raises:
        I2IError: If it is none of these.
        IntegrityError: If a file is damaged.

    Example:
        >>> hex(fingerprint("DPUCAHX8H_ISA2_DWC")), fingerprint("0x2a")
        ('0x20200000010002b', 42)
    """
    text = str(source)
    if isinstance(source, int):
        return source
    if text in TARGETS:
        return TARGETS[text]
    if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text):
        return int(text, 16)
    if Path(source).suffix != ".json":
        return read(source).fingerprint
    told = _read_json(Path(source))
    value = told.get("fingerprint") or told.get("target")
    if value is None and "source_sha256" in told:  # a sidecar
        return None
    if not isinstance(value, str) or not (value in TARGETS or re.fullmatch(r"0x[0-9a-fA-F]{1,16}", value)):
        want = f"a fingerprint, 0x…, or a target: {', '.join(TARGETS)}"
        raise IntegrityError(str(source), expected=want, got=repr(value))
    return fingerprint(value)


def sidecar(xmodel: str | os.PathLike) -> dict | None:
    """What :func:`compile_xmodel` wrote beside an xmodel; None where there is none.

    Raises:
        IntegrityError: If it belongs to another file.
    """
    xmodel = Path(xmodel)
    path = _sidecar_path(xmodel)
    if not path.exists():
        return None
    told = _read_json(path)
    if (found := _sha256(xmodel)) != told.get("sha256"):
        remedy = "Compile it again, or take the sidecar away if the xmodel comes from elsewhere."
        got = f"SHA-256 {found}"
        raise IntegrityError(str(xmodel), expected=f"SHA-256 {told.get('sha256')}", got=got, remedy=remedy)
    return told


def _sidecar_path(xmodel: Path) -> Path:
    return xmodel.with_name(xmodel.name + ".json")


def _read_json(path: Path) -> dict:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise I2IError(str(path), expected="a JSON file", got="no file") from None
    except (OSError, ValueError) as error:
        raise IntegrityError(str(path), expected="a JSON file", got=str(error)) from None
    if not isinstance(told, dict):
        raise IntegrityError(str(path), expected="a JSON object", got=type(told).__name__)
    return told


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- compiling ---------------------------------------------------------------------------------------


def status(command: str | None = None) -> Availability:
    """Whether the compiler can be called: ``command``, else what ``I2I_VAI_C`` names, else vai_c_xir on the PATH."""
    words = _words(command)
    found = shutil.which(words[0])
    return Availability(True, " ".join(words)) if found else Availability(False, f"no {words[0]} here. {_WHERE}")


def compile_xmodel(
    xmodel: str | os.PathLike,
    out: str | os.PathLike,
    *,
    arch: str | os.PathLike | int = "U50",
    command: str | None = None,
    timeout_s: float = 1800.0,
) -> Path:
    """Compile the quantiser's xmodel for a DPU, with AMD's vai_c_xir.

    Beside the result lies ``<out>.json``: target, fingerprint, number of DPU subgraphs, SHA-256 of source and result,
    compiler, date. By hand the same is ``vai_c_xir -x SOURCE -a ARCH.json -o FOLDER -n NAME``.

    Args:
        xmodel: ``NndctResult.xmodel``, from :func:`i2ilib.quant.nndct.quantise`.
        out: The result, ``*.xmodel``, written whole or not at all. A compiler in a container must see its folder under
            the same path; the source is handed over through it.
        arch: What the card is: "U50" or "U50LV" (by the compiler's own list), a fingerprint as the card tells it
            ("0x20200000010002a"; the surest), a target of :data:`TARGETS`, or the path of an ``arch.json``.
        command: The compiler; see :func:`status`.
        timeout_s: The compiler is stopped after that many seconds.

    Returns:
        The result's absolute path.

    Raises:
        UnavailableError: If the compiler is not here; with where to get it.
        I2IError: If source or architecture are unknown, the compiler fails or writes nothing (with the end of its log),
            or time is up.
        IntegrityError: If source or result is not an xmodel, or the result is for another DPU.
    """
    xmodel, out = Path(xmodel).absolute(), Path(out).absolute()
    if out.suffix != ".xmodel":
        raise I2IError(str(out), expected="the suffix .xmodel", got=repr(out.suffix))
    if (made_for := read(xmodel).fingerprint) is not None:
        got = f"one compiled for {hexadecimal(made_for)}"
        raise I2IError(str(xmodel), expected="an xmodel as the quantiser exports it", got=got)
    architecture = _architecture(arch)
    if not (state := status(command)):
        raise UnavailableError(_COMPILER, expected="AMD's compiler", got=state.reason)
    with _folder(out) as work:
        shutil.copyfile(xmodel, work / "source.xmodel")
        if isinstance(architecture, dict):
            write_json(work / "arch.json", architecture)
        file = work / "arch.json" if isinstance(architecture, dict) else architecture
        words = ["-x", work / "source.xmodel", "-a", file, "-o", work / "out", "-n", out.stem]
        log = _run([*_words(command), *map(str, words)], work, timeout_s)
        made = work / "out" / f"{out.stem}.xmodel"
        if not made.is_file():  # the compiler ends with code 0 even when it has given up
            raise I2IError(str(xmodel), expected="a compiled xmodel", got=f"none; the log ends: {_end(log)}")
        made_for = read(made).fingerprint
        asked = _asked(architecture)
        if made_for is not None and asked is not None and made_for != asked:
            raise IntegrityError(str(out), expected=hexadecimal(asked), got=hexadecimal(made_for))
        target, graphs = (
            re.search(words, log) for words in (r"Target architecture: (\S+)", r"DPU subgraph number (\d+)")
        )
        about = {
            "arch": str(arch) if isinstance(arch, str | os.PathLike) else f"{arch:#x}",
            "target": target and target[1],
            "fingerprint": None if (told := made_for or asked) is None else f"{told:#x}",
            "dpu_subgraphs": graphs and int(graphs[1]),
            "source": xmodel.name,
            "source_sha256": _sha256(xmodel),
            "sha256": _sha256(made),
            "compiler": _version(tuple(_words(command))),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        with atomic_path(out) as temporary:
            shutil.copyfile(made, temporary)
        write_json(_sidecar_path(out), about)  # last; until then the old one does not fit, and reading says so
    return out


def _words(command: str | None) -> list[str]:
    told = command or os.environ.get(VAI_C) or ""
    try:
        return split_command(told) or [_COMPILER]
    except ValueError as error:
        raise I2IError(f"command, {VAI_C}", expected="a path or a command", got=f"{told!r} ({error})") from None


def _architecture(arch: str | os.PathLike | int) -> dict | str:
    """The content of an ``arch.json``, or the path of one that lies in the container."""
    if isinstance(arch, str) and arch in BOARDS:
        return BOARDS[arch]
    if isinstance(arch, str) and arch in TARGETS:
        return {"target": arch}
    if isinstance(arch, int) or re.fullmatch(r"0x[0-9a-fA-F]{1,16}", str(arch)):
        return {"fingerprint": f"{fingerprint(arch):#x}"}
    if Path(arch).suffix == ".json":
        told = _read_json(Path(arch))
        if isinstance(told.get("fingerprint") or told.get("target"), str):
            return told  # of targets that are not in our table, too: the compiler knows them
        raise IntegrityError(str(arch), expected="'target' or 'fingerprint'", got=", ".join(told) or "nothing")
    want = f"{', '.join((*BOARDS, *TARGETS))}, a fingerprint 0x…, or the path of an arch.json"
    raise I2IError("arch", expected=want, got=repr(arch))


def _asked(architecture: dict | str) -> int | None:
    """The fingerprint, where it was asked for as a number; what a target's name means differs between releases."""
    told = architecture.get("fingerprint") if isinstance(architecture, dict) else None
    return told and fingerprint(told)


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out``, gone at the end."""
    folder = out.with_name(f".{out.stem}-{uuid.uuid4().hex[:8]}")
    (folder / "out").mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(words: list[str], folder: Path, timeout_s: float) -> str:
    """Run the compiler and give its log."""
    log = folder / "log"
    try:
        with open(log, "wb") as output:
            code = subprocess.run(
                words, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=timeout_s
            ).returncode
    except subprocess.TimeoutExpired:
        got = f"none after {timeout_s:g} s; the log ends: {_end(_text(log))}"
        raise I2IError(
            words[0], expected="a compiled xmodel", got=got, remedy="Give it more time: timeout_s."
        ) from None
    except OSError as error:
        raise UnavailableError(words[0], expected="AMD's compiler", got=str(error), remedy=_WHERE) from None
    if code:
        got = f"code {code}; the log ends: {_end(_text(log))}"
        raise I2IError(shlex.join(words), expected="the compiler to end well", got=got)
    return _text(log)


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def _end(log: str) -> str:
    return " | ".join(log.strip().splitlines()[-12:])[-3000:] or "with nothing"


@functools.cache
def _version(words: tuple[str, ...]) -> str | None:
    """What the compiler says of its version, where it says anything."""
    try:
        done = subprocess.run([*words, "--version"], capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in done.stdout.splitlines() if re.search(r"\d", line)]
    return lines[0] if done.returncode == 0 and lines else None
