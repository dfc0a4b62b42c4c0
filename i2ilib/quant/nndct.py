"""AMD's own quantiser, pytorch_nndct, where it is present: its fix positions for our networks, and its xmodel.

The quantiser lives in AMD's Vitis AI container, with a Python and a PyTorch that this library cannot be imported under.
So a job is a folder: :func:`prepare` writes network, data and a script of its own into it, ``python nndct_worker.py
FOLDER`` runs there, :func:`collect` reads what came. :func:`quantise` does all three.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import I2IError, IntegrityError, UnavailableError
from ..runtime import Availability, available, split_command, write_json
from . import calibration, nndct_worker
from . import graph as g
from .interchange import describe, describe_float, match
from .ptq import Quantised

PYTHON = "I2I_NNDCT_PYTHON"  # the container's Python: a path, or a command that ends in one
_WORKER = "nndct_worker.py"
_SYMBOL = " A build of the quantiser for another PyTorch fails so: use the Python of AMD's container, or build it anew."


@dataclasses.dataclass(frozen=True)
class NndctResult:
    """What AMD's quantiser made of a network."""

    fix_positions: dict[str, int]  # by our tensor names; `with_positions` takes them
    output: torch.Tensor  # (1, C, H, W) float32, of its quantised network on the test image
    parameters: dict[str, torch.Tensor]  # trained, by our names, for `load_state_dict(strict=False)`; none after PTQ
    losses: list[float]  # mean absolute error of every step of QAT
    versions: dict[str, str]  # python, torch, numpy, pytorch_nndct
    seconds: float  # without the export
    xmodel: Path | None  # for AMD's compiler
    export_error: str | None  # why there is no xmodel
    folder: Path


def status() -> Availability:
    """Whether AMD's quantiser can be used: by the Python that ``I2I_NNDCT_PYTHON`` names, else by this one.

    The variable holds a path or a command, such as ``docker exec vitis python``; the job's folder must be visible there
    under the same path. Asking starts that Python once.
    """
    if not os.environ.get(PYTHON):
        here = available("pytorch_nndct")
        hint = f" Or name the Python of AMD's container in {PYTHON}, for example 'docker exec NAME python'."
        return here if here else Availability(False, here.reason + _symbol(here.reason) + hint)
    probe = "import pytorch_nndct as n; print('pytorch_nndct', getattr(n, '__version__', ''))"
    try:
        done = subprocess.run([*_command(), "-c", probe], capture_output=True, text=True, timeout=120)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return Availability(False, f"{PYTHON} names no Python that answers: {error}")
    last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1:] or ["it said nothing"]
    if done.returncode == 0:
        return Availability(True, last[0].strip())
    return Availability(False, f"the Python that {PYTHON} names cannot use it: {last[0]}.{_symbol(last[0])}")


def quantise(
    model: nn.Module,
    batches: calibration.Batches,
    test: torch.Tensor,
    *,
    folder: str | os.PathLike,
    timeout_s: float = 3600.0,
    **options,
) -> NndctResult:
    """Quantise ``model`` with AMD's tools: :func:`prepare`, run, :func:`collect`.

    Args:
        model: As in :func:`prepare`, with its further ``options``.
        batches: As in :func:`prepare`.
        test: As in :func:`prepare`.
        folder: Of the job; new or empty. The tools' log is in ``worker.log``.
        timeout_s: The tools are stopped after that many seconds.

    Raises:
        UnavailableError: If AMD's quantiser is not present.
        I2IError: If the job is not a possible one, the tools fail (with the end of their log), or time is up.
        IntegrityError: If what they left is not a result.
    """
    if not (state := status()):
        raise UnavailableError("pytorch_nndct", expected="AMD's quantiser", got=state.reason)
    folder = prepare(model, batches, test, folder=folder, **options)
    log = folder / "worker.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*_command(), str(folder / _WORKER), str(folder)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            got = f"none after {timeout_s:g} s; the log ends: {_tail(log)}"
            raise I2IError(str(folder), expected="a result", got=got, remedy="Give it more time: timeout_s.") from None
        finally:
            process.kill()
            process.wait()
    if code:
        end = _tail(log)
        raise I2IError(
            str(folder), expected="AMD's tools to end well", got=f"code {code}; the log ends: {end}{_symbol(end)}"
        )
    return collect(folder)


def prepare(
    model: nn.Module,
    batches: calibration.Batches,
    test: torch.Tensor,
    *,
    folder: str | os.PathLike,
    mode: str = "ptq",
    equalise: bool = False,
    correct_bias: bool = False,
    targets: Iterable[torch.Tensor] | None = None,
    steps: int = 100,
    lr: float = 1e-5,
    quantizer_lr: float = 1e-2,
) -> Path:
    """Write a job for AMD's quantiser, to be run by ``python FOLDER/nndct_worker.py FOLDER`` where that is present.

    Args:
        model: A network of the supported operators; it is copied, not changed.
        batches: For calibration or training, as for :func:`i2ilib.quant.quantise`.
        test: (1, C, H, W) float32, to be run through the quantised network.
        folder: New or empty; it gets its name when all is in it.
        mode: "ptq": calibrate (BatchNorm folded before). "qat": train with BatchNorm in place.
        equalise: PTQ: AMD's cross-layer equalisation; the positions then belong to the weights that it leaves.
        correct_bias: PTQ: AMD's bias correction; likewise.
        targets: QAT: what the network should say to each batch; the loss is the mean absolute error.
        steps: QAT: of Adam; the batches go round. BatchNorm's statistics are frozen halfway.
        lr: QAT: of weights.
        quantizer_lr: QAT: of the log2 thresholds.

    Returns:
        The folder's absolute path.

    Raises:
        I2IError: If an argument is not possible, or the network has no form that QAT accepts.
    """
    batches, targets = list(calibration.read(batches, "batches")), [t.detach().cpu() for t in targets or ()]
    test = calibration.one(test, "test")
    folder = Path(folder).absolute()
    if mode not in ("ptq", "qat"):
        raise I2IError("mode", expected="'ptq' or 'qat'", got=repr(mode))
    if test.shape != (1, *batches[0].shape[1:]):
        want = f"one image like those of the batches, {(1, *batches[0].shape[1:])}"
        raise I2IError("test", expected=want, got=tuple(test.shape))
    if mode == "qat" and (len(targets) != len(batches) or steps < 1):
        raise I2IError("targets, steps", expected=f"{len(batches)} targets, a step or more", got=(len(targets), steps))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise I2IError(str(folder), expected="a new or an empty folder", got="one in use")
    folded = g.capture(model, batches[0][:2])
    network = folded if mode == "ptq" else g.capture(model, batches[0][:2], fold=False)
    document = describe_float(network)
    if untied := [node["name"] for node in document["nodes"] if node["operator"] == "untied_bias"]:
        remedy = "Leave that part out, or give its convolution a bias of its own."
        want = "biases of one number a channel, for AMD's quantiser"
        raise I2IError(untied[0], expected=want, got="an untied one", remedy=remedy)
    if mode == "qat":
        _refuse_what_qat_cannot(document)
    positions = {site.name: 0 for site in g.sites(folded)}  # unknown yet: for names, order and kinds
    ours = describe(Quantised(folded, positions, batches[0].shape[1:]))
    options = {
        "equalise": equalise,
        "correct_bias": correct_bias,
        "steps": steps,
        "lr": lr,
        "quantizer_lr": quantizer_lr,
    }
    parameters = {n.target: g.parameter(network, n) for n in network.graph.nodes if n.op == "get_attr"}
    tensors = {f"parameter/{name}": value for name, value in parameters.items()} | {"test": test}
    tensors |= {f"batch/{i}": b for i, b in enumerate(batches)} | {f"target/{i}": t for i, t in enumerate(targets)}
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()  # empty, and on Windows in the way of the new name
    try:
        write_json(temporary / "graph.json", document)
        write_json(temporary / "tensors.json", ours)
        write_json(temporary / "job.json", {"mode": mode, "batches": len(batches)} | options)
        np.savez(temporary / "tensors.npz", **{name: t.detach().cpu().numpy() for name, t in tensors.items()})
        shutil.copyfile(nndct_worker.__file__, temporary / _WORKER)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def collect(folder: str | os.PathLike) -> NndctResult:
    """The result that a job left in its folder, in our tensor names.

    Raises:
        IntegrityError: If there is none, or it is not of this network.
    """
    folder = Path(folder).absolute()
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        ours = json.loads((folder / "tensors.json").read_text(encoding="utf-8"))
        with np.load(folder / "output.npz") as arrays:
            values = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return NndctResult(
            fix_positions={name: fp for name, (_, fp) in match(ours, result["quant_info"]).items()},
            output=values["output"],
            parameters={n.removeprefix("parameter/"): v for n, v in values.items() if n != "output"},
            losses=result["losses"],
            versions=result["versions"],
            seconds=result["seconds"],
            xmodel=next(folder.glob("quantised/*.xmodel"), None),
            export_error=result["export_error"],
            folder=folder,
        )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        got = f"{type(error).__name__}: {error}"
        raise IntegrityError(str(folder), expected="a result of AMD's quantiser", got=got) from None


def _command() -> list[str]:
    return split_command(os.environ.get(PYTHON) or "") or [sys.executable]


def _symbol(text: str) -> str:
    return _SYMBOL if "undefined symbol" in text else ""


def _tail(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        return " | ".join(file.read().decode(errors="replace").strip().splitlines()[-12:]) or "with nothing"


def _refuse_what_qat_cannot(document: dict) -> None:
    kinds, seen = {node["name"]: node["operator"] for node in document["nodes"]}, set()
    for node in document["nodes"]:
        host = [name for name in node["inputs"] if kinds[name] in nndct_worker.HOST]
        if host and node["operator"] not in nndct_worker.HOST:
            remedy = "Leave the host's part out: the core alone is trained."
            raise I2IError(
                node["name"], expected="the host's operators at the end, for QAT", got=host[0], remedy=remedy
            )
        for about in node["parameters"].values():
            if about["name"] in seen:
                raise I2IError(about["name"], expected="a module that is called once, for QAT", got="one called twice")
            seen.add(about["name"])
