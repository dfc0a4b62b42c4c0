"""The file beside an engine that says what it was built from, for and with, and the check that it may run."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ..errors import I2IError, IntegrityError


def sidecar(engine: str | os.PathLike) -> Path:
    """Where an engine's sidecar lies.

    Example:
        >>> sidecar("nets/unet.engine").name
        'unet.engine.json'
    """
    return Path(f"{os.fspath(engine)}.json")


def check_engine(
    engine: str | os.PathLike, here: dict[str, str], *, onnx: str | os.PathLike | None = None
) -> dict[str, object]:
    """An engine's sidecar, if the engine may run here; needs neither TensorRT nor a GPU.

    Args:
        engine: The plan.
        here: ``gpu``, ``compute_capability`` and ``tensorrt`` of the machine that is to run it, as of
            :func:`machine`.
        onnx: When given, the engine must have been built from this very file.

    Raises:
        I2IError: If there is no engine.
        IntegrityError: If there is no readable sidecar, or anything in it is not as found; says how to rebuild.
    """
    engine = Path(engine)
    if not engine.is_file():
        raise I2IError(str(engine), expected="an engine", got="no file", remedy="Build it with build().")
    path = sidecar(engine)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        needed = {"engine_sha256": sha256(engine), **here}
        needed |= {} if onnx is None else {"onnx_sha256": sha256(Path(onnx))}
        differ = [f"{key} {record[key]}" for key in needed if record[key] != needed[key]]
        sizes = tuple(batches(record))
        again = f"build({record['onnx']!r}, {engine.name!r}, precision={record['precision']!r}, batch={sizes})"
    except FileNotFoundError as error:
        if Path(error.filename) != path:
            raise
        remedy = "Nothing says what the engine was built for: build it here with build()."
        raise IntegrityError(str(path), expected="the engine's sidecar", got="no file", remedy=remedy) from None
    except (ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
        got = f"{type(error).__name__} {error}".strip()
        remedy = "Build the engine again with build()."
        raise IntegrityError(str(path), expected="the sidecar that build() writes", got=got, remedy=remedy) from None
    if differ:
        want = ", ".join(f"{key} {needed[key]}" for key in needed if record[key] != needed[key])
        remedy = f"An engine does not travel: build it here with {again}."
        raise IntegrityError(str(engine), expected=want, got=", ".join(differ), remedy=remedy)
    return record


def batches(record: dict) -> list[int]:
    """Smallest, most frequent and largest batch that an engine was built for."""
    source = next(tensor for tensor in record["tensors"] if tensor["mode"] == "input")
    return [shape[0] for shape in source["shapes"]]


def sha256(path: Path) -> str:
    """A file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
