"""The Alveo U50 by AMD's VART: a compiled xmodel as a Runner, several jobs in flight.

The whole road, each step with what it needs::

    result = quant.nndct.quantise(net, batches, batches[0][:1], folder="job")  # AMD's container; I2I_NNDCT_PYTHON
    compiled = compile_xmodel(result.xmodel, "net.xmodel", arch="U50")  # AMD's container; I2I_VAI_C
    quantised = quant.with_positions(net, result.fix_positions, batches[0])  # nothing: the same integers, here
    with VartRunner(compiled, quantised=quantised) as runner:  # the card, VART; I2I_VART_PYTHON, I2I_DPU
        runner.run(batch)

:func:`from_pytorch` does all four. VART runs in a process of its own (``vart_worker.py``), by the Python that
``I2I_VART_PYTHON`` names, since AMD's containers have one in which this library cannot be imported. The card's
fingerprint is compared with the xmodel's before anything runs: VART itself would end its process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import I2IError, UnavailableError
from ..quant import Quantised, calibration, nndct, with_positions
from ..quant import graph as g
from ..quant.fixed_point import to_integers
from ..runtime import OPTIONAL, Availability, split_command
from . import vart_worker
from .runner import check_batch
from .xmodel import BOARDS, compile_xmodel, fingerprint, hexadecimal, sidecar
from .xmodel import read as read_xmodel

PYTHON = "I2I_VART_PYTHON"  # one that has vart and xir: a path, or a command such as 'docker exec -i NAME python3'
CARD = "I2I_DPU"  # the card's fingerprint, 0x…, or a command that prints it
TOOLS = ("show_dpu", "xdputil query", "xilinx_show_devices")  # AMD's, that print it; by release
_SOURCE = Path(vart_worker.__file__).read_text(encoding="utf-8")
_SYMBOL = " A build of VART for another Python or system fails so: name AMD's own Python in " + PYTHON + "."
_PLUMBING = ("data", "const", "fix", "float2fix", "fix2float", "upload", "download")  # operators that compute nothing


# --- the card ------------------------------------------------------------------------------------------


def status(card: str | int | None = None) -> Availability:
    """Whether a DPU can be run from here: VART and xir import (AMD's), and the card tells its fingerprint.

    Args:
        card: As in :class:`VartRunner`.
    """
    try:
        _check_system()
        done = subprocess.run(
            [*_python(), "-c", _SOURCE], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
    except UnavailableError as error:
        return Availability(False, str(error))
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return Availability(False, f"{PYTHON} names no Python that answers: {error}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        hint = f" Or name the Python of AMD's container in {PYTHON}, for example 'docker exec -i NAME python3'."
        return Availability(False, f"{last}.{_symbol(last)} {OPTIONAL['vart']}.{hint}")
    try:
        found, dpu = json.loads(done.stdout), _card(card)
    except json.JSONDecodeError:
        return Availability(False, f"{PYTHON} names a command that prints more than Python does: {done.stdout[:200]!r}")
    except I2IError as error:
        return Availability(False, str(error))
    return Availability(True, f"vart {found['vart']}".strip() + f", DPU {hexadecimal(dpu)}")


def _check_system() -> None:
    """AMD has no driver of the card for Windows, whose pipes could not be waited for with a time limit either."""
    if sys.platform == "win32":
        remedy = OPTIONAL["vart"] + "."
        raise UnavailableError("vart", expected="Linux, where the card's driver is", got="Windows", remedy=remedy)


def _python() -> list[str]:
    return split_command(os.environ.get(PYTHON) or "") or [sys.executable]


def _symbol(text: str) -> str:
    return _SYMBOL if "undefined symbol" in text else ""


def _card(card: str | int | None) -> int:
    """The fingerprint of the DPU on the card: given, or asked for."""
    remedy = f"Give it as card=, or in {CARD}: the number (0x…), or a command that prints it, such as 'show_dpu'."
    told = os.environ.get(CARD) if card is None else card
    if isinstance(told, int) or re.fullmatch(r"0x[0-9a-fA-F]{1,16}", told or ""):
        return fingerprint(told)
    command = told or next((tool for tool in TOOLS if shutil.which(tool.split()[0])), None)
    if command is None:
        raise UnavailableError("DPU", expected="a card that tells its fingerprint", got="no tool for it", remedy=remedy)
    try:
        done = subprocess.run(split_command(command), capture_output=True, text=True, errors="replace", timeout=120)
        text = done.stdout + done.stderr
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        text = str(error)
    found = {int(value, 16) for value in re.findall(r"fingerprint\W{1,6}(0x[0-9a-fA-F]+)", text)} - {0}  # 0: no DPU
    if len(found) != 1:
        got = (
            ", ".join(map(hexadecimal, sorted(found))) or f"none; {command} says: {' | '.join(text.splitlines()[-4:])}"
        )
        raise UnavailableError("DPU", expected="a card with one fingerprint", got=got, remedy=remedy)
    return found.pop()


# --- the runner ----------------------------------------------------------------------------------------


class VartRunner:
    """A compiled xmodel on an Alveo card.

    The card computes as many images at a time as it has engines; a batch of any other size is split, and the last part
    padded. The input is rounded here, ``clip(floor(x · 2^fp + 0.5), -128, 127)``, as VART's own conversion truncates
    and wraps; the output is ``q · 2^-fp``, and then the host's tail (tanh, clamp) in float32.

    Args:
        xmodel: From :func:`~i2ilib.deploy.xmodel.compile_xmodel`. Where VART's Python is in a container, it must see
            the file under the same path.
        jobs: Runs in flight; the engines overlap one's transfer with another's computing.
        card: The card's fingerprint, or a command that prints it; else ``I2I_DPU``, else AMD's tools are asked.
        quantised: The network that the xmodel was made of. Its host operators at the end are the tail; its shapes and
            its fix positions of input and output are held against the xmodel's.
        tail: The host's part, instead of ``quantised``: float32 (N, C', H', W') to float32.
        output: Name of the output tensor, where there are several.
        timeout_s: A run that takes longer is given up, and the process with it.

    Raises:
        I2IError: If the xmodel is not one whole DPU subgraph behind its input (the CPU's operators are named), is for
            another DPU than the card's (both are named), does not fit ``quantised``, or needs a tail that is not given.
        IntegrityError: If it is not an xmodel, or its sidecar belongs to another.
        UnavailableError: If VART or the card's fingerprint cannot be had.
    """

    def __init__(
        self,
        xmodel: str | os.PathLike,
        *,
        jobs: int = 6,
        card: str | int | None = None,
        quantised: Quantised | None = None,
        tail: Callable[[torch.Tensor], torch.Tensor] | None = None,
        output: str | None = None,
        timeout_s: float = 60.0,
    ):
        if jobs < 1 or timeout_s <= 0:
            raise I2IError("jobs, timeout_s", expected="1 or more, above 0", got=(jobs, timeout_s))
        if quantised is not None and tail is not None:
            raise I2IError("quantised, tail", expected="one of them", got="both")
        _check_system()
        self.path, self.jobs, self.timeout_s = Path(xmodel).absolute(), jobs, timeout_s
        self.made_for, self.about = read_xmodel(self.path).fingerprint, sidecar(self.path) or {}
        self.card = _card(card)
        self.lock, self.submitting = threading.Lock(), threading.Lock()
        self.slots, self.flying = threading.Semaphore(jobs), deque()
        self.failure: Exception | None = None
        self.closed = False
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the runner)
        self.process = self._start()
        try:
            told = self._line()
            self.versions = told["versions"]
            index = self._check_graph(told["subgraphs"], quantised is not None or tail is not None)
            self._tell(f"{index}\n".encode())
            tensors = self._line()
            self._check_tensors(tensors, output)
            if quantised is not None:
                self._check_network(quantised)
        except BaseException:
            self._end(kill=True)
            raise
        self.tail = tail or (host_tail(quantised) if quantised is not None else lambda y: y)
        self.reader = threading.Thread(target=self._read, name="vart", daemon=True)
        self.reader.start()

    def _start(self) -> subprocess.Popen:
        try:
            return subprocess.Popen(
                [*_python(), "-c", _SOURCE, str(self.path), str(self.jobs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                bufsize=0,
                start_new_session=True,  # an interrupted cell must not end it
            )
        except (OSError, ValueError) as error:  # no such command; quotation that does not end
            self.log.close()
            raise UnavailableError("vart", expected=f"a Python, from {PYTHON}", got=str(error)) from None

    # --- what is refused ---

    def _check_graph(self, subgraphs: list[dict], has_tail: bool) -> int:
        """The index of the one DPU subgraph."""
        on_dpu = [i for i, each in enumerate(subgraphs) if each["device"] == "DPU"]
        others = {
            i: [f"{kind} ({name})" for name, kind in each["operators"] if kind.removesuffix("-fix") not in _PLUMBING]
            for i, each in enumerate(subgraphs)
            if each["device"] not in ("DPU", "USER")
        }
        first, last = (on_dpu[0], on_dpu[-1]) if on_dpu else (len(subgraphs), len(subgraphs))
        before = [op for i, ops in others.items() for op in ops if i < last]
        if len(on_dpu) != 1 or before:
            got = f"{len(on_dpu)}; the CPU has: {', '.join(before) or 'nothing'}"
            remedy = "i2ilib.quant.inspect says which operators split a network, and what would change it."
            if not on_dpu:
                remedy = "Compile it first: i2ilib.deploy.xmodel.compile_xmodel."
            raise I2IError(str(self.path), expected="one DPU subgraph, first of all", got=got, remedy=remedy)
        told = {subgraphs[first]["fingerprint"], self.made_for}
        told |= {fingerprint(self.about["fingerprint"])} if self.about.get("fingerprint") else set()
        if told - {None} != {self.card}:
            made_for = ", ".join(hexadecimal(each) for each in sorted(told - {None})) or "an unknown DPU"
            remedy = f"Compile it for the card: compile_xmodel(…, arch='{self.card:#x}')."
            want = f"an xmodel for the card's DPU, {hexadecimal(self.card)}"
            raise I2IError(str(self.path), expected=want, got=f"one for {made_for}", remedy=remedy)
        after = [op for i, ops in others.items() for op in ops if i > first]
        if after and not has_tail:
            remedy = "Give quantised=, or the same in float32 as tail=."
            raise I2IError(str(self.path), expected="the host's part", got=", ".join(after), remedy=remedy)
        return first

    def _check_tensors(self, tensors: dict[str, list[dict]], output: str | None) -> None:
        inputs, outputs = tensors["inputs"], tensors["outputs"]
        names = [each["name"] for each in outputs]
        if len(inputs) != 1 or any(len(each["dims"]) != 4 for each in [*inputs, *outputs]):
            got = [(each["name"], each["dims"]) for each in inputs + outputs]
            raise I2IError(str(self.path), expected="one input, and images (N, H, W, C)", got=got)
        if odd := [each["name"] for each in [*inputs, *outputs] if each["dtype"].lstrip("x") != "int8"]:
            raise I2IError(str(self.path), expected="int8 tensors", got=f"others: {', '.join(odd)}")
        if (output is None and len(outputs) != 1) or (output is not None and output not in names):
            raise I2IError("output", expected=f"one of {', '.join(names)}", got=repr(output))
        self.input = inputs[0]
        self.index = 0 if output is None else names.index(output)
        self.output, self.sizes = outputs[self.index], [int(np.prod(each["dims"])) for each in outputs]
        self.engines = self.input["dims"][0]
        if self.output["dims"][0] != self.engines:
            raise I2IError(str(self.path), expected=f"{self.engines} images out", got=self.output["dims"][0])

    def _check_network(self, quantised: Quantised) -> None:
        core = quantised.on_device()
        sites = [site for site in core.sites if site.kind != "parameter"]
        (end,) = (node for node in core.folded.graph.nodes if node.op == "output")
        shapes = tuple(quantised.example_shape), tuple(int(n) for n in end.args[0][0].meta["val"].shape[1:])
        for told, site, (channels, height, width) in zip(
            (self.input, self.output), (sites[0], sites[-1]), shapes, strict=True
        ):
            want = [height, width, channels], quantised.fix_positions[site.name]
            if (found := (told["dims"][1:], told["fix_point"])) != want:
                words = [f"(H, W, C) {tuple(dims)} at fix position {fp}" for dims, fp in (want, found)]
                remedy = "The xmodel is of another network, or was quantised otherwise."
                raise I2IError(f"{told['name']}, {site.name}", expected=words[0], got=words[1], remedy=remedy)

    # --- batches ---

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Run a batch of zeros; the shape of an image is the xmodel's."""
        self.run(torch.zeros(shape))

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        return self._submit(batch, eager=True).result()

    def submit(self, batch: torch.Tensor) -> Future[torch.Tensor]:
        return self._submit(batch, eager=False)

    def _submit(self, batch: torch.Tensor, *, eager: bool) -> Future[torch.Tensor]:
        check_batch(batch)
        engines, height, width, channels = self.input["dims"]
        if tuple(batch.shape[1:]) != (channels, height, width):
            want = f"(N, C, H, W) with (C, H, W) = {(channels, height, width)}, what the xmodel was compiled for"
            raise I2IError("batch", expected=want, got=tuple(batch.shape))
        work = _Work(batch, self.output["dims"], engines)
        q = to_integers(batch, self.input["fix_point"], kind="input").to(torch.int8).permute(0, 2, 3, 1).contiguous()
        with self.submitting:  # the parts of a batch one after the other
            for start in range(0, len(batch), engines):
                part = q[start : start + engines].numpy()
                if len(part) < engines:
                    part = np.concatenate([part, np.zeros((engines - len(part), *part.shape[1:]), np.int8)])
                self._send(part, work, start, eager and start + engines >= len(batch))
        return work.future

    def _send(self, part: np.ndarray, work: _Work, start: int, eager: bool) -> None:
        self.slots.acquire()  # blocks while enough are in flight
        with self.lock:
            if self.closed or self.failure:
                self.slots.release()
                raise self.failure or I2IError("VartRunner", expected="an open runner", got="one that was left")
            self.flying.append((work, start))
        try:
            self._tell(bytes([eager]) + part.tobytes())
        except BaseException:  # interrupted amid a job: the process would take the next one's bytes for its rest
            self.process.kill()
            raise

    def _read(self) -> None:
        """Take the answers, which come in the order of the jobs."""
        try:
            while True:
                head = self._bytes(8)
                if head is None:
                    break
                code, length = struct.unpack("<iI", head)
                payload = self._bytes(length)
                if payload is None:
                    break
                with self.lock:
                    work, start = self.flying.popleft()
                self.slots.release()
                if code:
                    work.fail(I2IError("VART", expected="status 0", got=f"{code}: {payload.decode(errors='replace')}"))
                else:
                    self._take(work, start, payload)
            if self.flying or not self.closed:
                raise I2IError("VART", expected="a process that answers", got=f"one that ended: {self._said()}")
        except Exception as error:
            with self.lock:
                self.failure, lost = error, list(self.flying)
                self.flying.clear()
            self.process.kill()
            for work, _ in lost:
                work.fail(error)
                self.slots.release()
            self.slots.release()  # for one that may wait; it finds the failure

    def _take(self, work: _Work, start: int, payload: bytes) -> None:
        skip = sum(self.sizes[: self.index])
        q = np.frombuffer(payload, np.int8, self.sizes[self.index], skip).reshape(self.output["dims"])
        part = q[: len(work.q) - start]
        work.q[start : start + len(part)] = part
        work.left -= 1
        if work.left == 0 and not work.future.done():
            try:
                value = torch.from_numpy(work.q).permute(0, 3, 1, 2).contiguous().float()
                work.future.set_result(self.tail(value * 2.0 ** -self.output["fix_point"]))
            except Exception as error:  # of the tail
                work.fail(error)

    # --- the process ---

    def _bytes(self, size: int) -> bytes | None:
        """So many bytes of the process's answer; None at its end.

        A process with nothing to do may be silent for ever, one with jobs, or told to end, for ``timeout_s``.
        """
        data, source = bytearray(size), self.process.stdout
        got, silent = 0, 0.0
        while got < size:
            if not select.select([source], [], [], 0.25)[0]:
                silent = silent + 0.25 if self.flying or got or self.closed else 0.0
                if silent >= self.timeout_s:
                    raise I2IError(
                        "VART", expected=f"an answer in {self.timeout_s:g} s", got=f"none; it said: {self._said()}"
                    )
                continue
            count = source.readinto(memoryview(data)[got:])
            if not count:
                return None
            got, silent = got + count, 0.0
        return bytes(data)

    def _tell(self, data: bytes) -> None:
        view = memoryview(data)
        with contextlib.suppress(OSError):  # the process has ended: who reads its answers tells why
            while view:
                view = view[self.process.stdin.write(view) :]

    def _line(self) -> dict:
        """A line of JSON, while the process starts."""
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], self.timeout_s)[0]:
                got = f"none in {self.timeout_s:g} s; it said: {self._said()}"
                raise I2IError("VART", expected="an answer", got=got, remedy="Give it more time: timeout_s.")
            byte = self.process.stdout.read(1)
            if not byte:
                self.process.wait()
                said = self._said()
                if "ImportError" in said or "ModuleNotFoundError" in said:
                    remedy = OPTIONAL["vart"] + "." + _symbol(said)
                    raise UnavailableError("vart", expected="VART and xir", got=said, remedy=remedy)
                raise I2IError(str(self.path), expected="an xmodel that VART runs", got=f"{said}{_symbol(said)}")
            line += byte
        return json.loads(line)

    def _said(self) -> str:
        """The end of what the process has printed."""
        self.log.flush()
        size = os.fstat(self.log.fileno()).st_size
        text = os.pread(self.log.fileno(), 4000, max(0, size - 4000)).decode(errors="replace")
        return " | ".join(text.strip().splitlines()[-6:]) or "nothing"

    def _end(self, *, kill: bool = False) -> None:
        self.process.stdin.close()  # it finishes its jobs and ends
        if kill:
            self.process.kill()
        if (reader := getattr(self, "reader", None)) is not None:
            reader.join()  # however many jobs there are; it gives up on a process that is silent
        try:
            self.process.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def describe(self) -> dict[str, object]:
        board = self.about.get("arch")
        return {
            "target": "VART",
            "device": f"Alveo {board if board in BOARDS else 'card'}",
            "precision": "int8",
            "engines": self.engines,
            "jobs": self.jobs,
            "dpu": hexadecimal(self.card),
            "versions": self.versions,
            "origin": "measured",
        }

    def __enter__(self) -> VartRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            if self.closed:
                return
            self.closed = True
        with self.submitting:
            self._end()


class _Work:
    """A batch on its way: its integers as they come back, and who waits for it."""

    def __init__(self, batch: torch.Tensor, dims: list[int], engines: int):
        self.q = np.empty((len(batch), *dims[1:]), np.int8)
        self.left = -(-len(batch) // engines)
        self.future: Future[torch.Tensor] = Future()
        self.future.set_running_or_notify_cancel()  # the card has it: there is no way back

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def host_tail(quantised: Quantised) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the host computes behind the last rounded tensor (tanh, clamp): float32 (N, C, H, W) to the same."""
    (end,) = (node for node in quantised.folded.graph.nodes if node.op == "output")
    nodes, node = [], end.args[0][0]
    while node.target in g.HOST:
        nodes.insert(0, node)
        node = node.args[0]

    def tail(y: torch.Tensor) -> torch.Tensor:
        for node in nodes:
            y = node.target(y, *node.args[1:], **node.kwargs)
        return y

    return tail


def from_pytorch(
    model: nn.Module,
    batches: Iterable[torch.Tensor],
    *,
    folder: str | os.PathLike,
    arch: str | os.PathLike | int = "U50",
    jobs: int = 6,
    card: str | int | None = None,
) -> VartRunner:
    """The whole road: quantise after training with AMD's quantiser, compile with AMD's compiler, run on the card.

    Args:
        model: A network of the supported operators, trained with the DPU's slope.
        batches: To calibrate on, as for :func:`i2ilib.quant.quantise`, of the height and width to come.
        folder: New or empty; it gets ``quantise/`` (the job, with its log) and ``network.xmodel`` with its sidecar. The
            containers must see it under the same path.
        arch: As in :func:`~i2ilib.deploy.xmodel.compile_xmodel`.
        jobs: As in :class:`VartRunner`.
        card: As in :class:`VartRunner`.

    Raises:
        UnavailableError: If the quantiser, its xmodel library, the compiler, VART or the card is absent.
        I2IError: As the four steps do.
    """
    batches, folder = list(calibration.read(batches, "batches")), Path(folder)
    result = nndct.quantise(model, batches, batches[0][:1], folder=folder / "quantise")
    if result.xmodel is None:
        raise UnavailableError("xmodel", expected="an export by AMD's quantiser", got=result.export_error or "none")
    compiled = compile_xmodel(result.xmodel, folder / "network.xmodel", arch=arch)
    quantised = with_positions(model, result.fix_positions, batches[0])
    return VartRunner(compiled, jobs=jobs, card=card, quantised=quantised)
