"""The ground floor: presets, seeds, paths, optional libraries, downloads, safe writes, recorded results."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib
import importlib.metadata
import io
import json
import logging
import os
import platform
import random
import re
import secrets
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..errors import I2IError, IntegrityError, UnavailableError
from .machine import this_machine

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

PRESETS = ("smoke", "quick", "full")


def _find_root() -> Path:
    """The project folder: ``I2I_HOME``, else the checkout that holds this package, else the working folder."""
    if home := os.environ.get("I2I_HOME"):
        return Path(home).resolve()
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()


ROOT = _find_root()
DATA = ROOT / "data"
CACHE = DATA / "cache"
FIGURES = ROOT / "figures"
RESULTS = DATA / "results"
WEIGHTS = DATA / "weights"


# --- one start for every notebook and command -------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """What a notebook needs to know about this run; made by :func:`start`."""

    preset: str  # "smoke", "quick" or "full"; from I2I_PRESET
    seed: int
    device: str  # "cuda" or "cpu": where PyTorch computes
    device_name: str  # as the vendor spells it, for tables
    threads: int  # CPU threads that PyTorch uses

    def pick(self, *, smoke: T, quick: T, full: T) -> T:
        """The value for this run's preset. Presets change sizes, never code paths."""
        return {"smoke": smoke, "quick": quick, "full": full}[self.preset]

    def describe(self) -> dict[str, object]:
        """Provenance of a result: device, versions, preset, seed and date."""
        return {
            **dataclasses.asdict(self),
            "date": datetime.date.today().isoformat(),
            "python": platform.python_version(),
            "versions": versions(),
        }


def start(seed: int = 0, *, preset: str | None = None) -> Run:
    """Seed everything, pick the device, apply the house style to figures.

    The only place where the environment is read: ``I2I_PRESET`` (smoke, quick, full; quick when unset) and
    ``I2I_THREADS`` (CPU threads; all cores when unset).

    Args:
        seed: Seed for Python, NumPy and PyTorch.
        preset: Overrides ``I2I_PRESET``.

    Raises:
        I2IError: If the preset, the seed or the number of threads is not one that exists.
    """
    preset = preset or os.environ.get("I2I_PRESET") or "quick"
    if preset not in PRESETS:
        raise I2IError("I2I_PRESET", expected=" or ".join(PRESETS), got=repr(preset), remedy="Unset it for quick.")
    if not 0 <= seed < 2**32:
        raise I2IError("seed", expected="0 to 4294967295", got=seed)
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if wanted := os.environ.get("I2I_THREADS"):
        if not wanted.isdigit() or int(wanted) < 1:
            raise I2IError("I2I_THREADS", expected="a whole number of CPU threads", got=repr(wanted))
        torch.set_num_threads(int(wanted))
    cuda = torch.cuda.is_available()
    with contextlib.suppress(ImportError):  # figures are optional for the command line
        from ..plots import style

        style()
    return Run(
        preset=preset,
        seed=seed,
        device="cuda" if cuda else "cpu",
        device_name=torch.cuda.get_device_name() if cuda else cpu_name(),
        threads=torch.get_num_threads(),
    )


def cpu_name() -> str:
    """This CPU as the vendor spells it, with the cores that may be used and its strongest vector or matrix unit."""
    return str(this_machine())


def peak_memory_gib() -> float | None:
    """Most memory that this process has held at once, GiB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)


def versions(*packages: str) -> dict[str, str]:
    """Versions of the named distributions that are installed; of the main ones when none is named."""
    found = {}
    for name in packages or ("torch", "torchao", "openvino", "onnx", "onnxruntime", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence other people's notices while we call them: warnings, what they print, and the named loggers."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


# --- optional libraries and devices --------------------------------------------------------------


class Availability(NamedTuple):
    """Whether something can be used here, and why not; true or false by itself."""

    ok: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ok


_AMD = (
    "Comes with AMD's Vitis AI container only (no pip package); "
    "the DPU's scheme runs in PyTorch and OpenVINO without it"
)
OPTIONAL = {
    "torch": "pip install torch",
    "torchao": "pip install torchao",
    "openvino": "pip install openvino",
    "onnxruntime": "pip install onnxruntime",
    "tensorboard": "pip install tensorboard; training shows its curves without it",
    "tensorrt": "pip install tensorrt, on a machine with an NVIDIA GPU; OpenVINO works without it",
    "tensorrt_rtx": "pip install tensorrt-rtx, on Linux or Windows; it checks ONNX files for TensorRT, without a GPU",
    "pytorch_nndct": _AMD,
    "xir": _AMD,
    "vart": _AMD,
    "nncf": "pip install nncf; it is only a peer to compare with",
    "ncnn": "pip install ncnn; it only runs networks of others to compare with",
    "zeus": "pip install zeus; without it energy is not measured on NVIDIA GPUs",
    "compiler": "Needs a C++ compiler on the path (g++; clang++ on macOS, cl on Windows), or named by CXX; only "
    "torch.compile does",
    "cuda": "Needs an NVIDIA GPU with its driver and a CUDA build of PyTorch; the CPU works without it",
}


def require(name: str):
    """Import an optional library, or say where to get it.

    Raises:
        UnavailableError: If it is absent or cannot be loaded, with what to install and what works without it.
    """
    try:
        if name == "torchvision":
            _guard_torchvision()
        with quiet(name, "torch.utils._pytree"):  # torchao reports every kernel that it lacks
            return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a build for another torch fails with an undefined symbol
        raise UnavailableError(
            name,
            expected="an importable library",
            got=str(error).splitlines()[0],
            remedy=OPTIONAL.get(name, f"pip install {name}") + ".",
        ) from None


def available(name: str) -> Availability:
    """Whether an optional library or device can be used here, with the reason.

    Args:
        name: One of :data:`OPTIONAL`, or any importable module.

    Example:
        >>> bool(available("numpy")), available("numpy").reason.split()[0]
        (True, 'numpy')
    """
    if name == "cuda":
        torch = require("torch")
        if torch.cuda.is_available():
            return Availability(True, torch.cuda.get_device_name())
        return Availability(False, OPTIONAL["cuda"])
    if name == "compiler":
        usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")  # what torch.compile calls
        found = shutil.which(os.environ.get("CXX") or usual)
        return Availability(True, Path(found).name) if found else Availability(False, OPTIONAL["compiler"])
    try:
        module = require(name)
    except UnavailableError as error:
        return Availability(False, str(error))
    if name == "xir" and not hasattr(module, "Graph"):
        return Availability(False, "the module named xir here is not AMD's. " + _AMD)
    found = getattr(module, "__version__", None) or versions(name).get(name, "")
    return Availability(True, f"{name} {found}".strip())


def split_command(command: str) -> list[str]:
    """The words of a command that a setting holds, as a shell splits them; a backslash of Windows is part of a path.

    Raises:
        ValueError: If a quotation does not end.

    Example:
        >>> split_command("docker exec 'my container' python3")
        ['docker', 'exec', 'my container', 'python3']
    """
    split = shlex.shlex(command, posix=True)
    split.whitespace_split, split.commenters = True, ""
    if sys.platform == "win32":
        split.escape = ""
    return list(split)


def _guard_torchvision() -> None:
    """Let a CUDA build of torchvision import beside a CPU build of torch (it asks for two absent operators)."""
    torch = require("torch")
    for op in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # already defined: a matching torchvision
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _KEPT.append(library)


_KEPT: list[object] = []  # operator definitions vanish with the object that made them


# --- files ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name only when the block ends without an error.

    A reader sees the old file or the whole new one, never a part. The suffix is kept, since writers choose the
    format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _reserve(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _reserve(path: Path) -> Path:
    """A new, empty file beside ``path`` with the permissions that any new file gets."""
    while True:
        temporary = path.with_name(f".{_short(path)}-{secrets.token_hex(4)}.part{path.suffix}")
        with contextlib.suppress(FileExistsError):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return temporary


def _short(path: Path) -> str:
    """The stem, or a digest of one so long that a temporary name would exceed the 255 bytes of most file systems."""
    name = os.fsencode(path.name)
    return path.stem if len(name) <= 200 else hashlib.sha256(name).hexdigest()[:32]


def discard_parts(*paths: str | os.PathLike) -> None:
    """Delete what killed processes left of files: the temporary files of :func:`atomic_path`, and no others.

    Args:
        paths: The files that were to be written; nobody may be writing them.
    """
    by_folder: dict[Path, set[tuple[str, str]]] = {}
    for path in map(Path, paths):
        by_folder.setdefault(path.parent, set()).add((_short(path), path.suffix))
    for folder, known in by_folder.items():
        for part in folder.glob(".*.part*"):
            name = re.fullmatch(r"\.(.*)-[0-9a-f]{8}\.part(\.[^.]*)?", part.name, re.DOTALL)
            if name and (name[1], name[2] or "") in known and part.is_file():
                part.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, data: object) -> None:
    """Write ``data`` as readable JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, sort_keys=False) + "\n", encoding="utf-8")


def write_tensors(path: str | os.PathLike, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    """Write tensors as safetensors with a checksum, whole or not at all.

    Args:
        path: Where.
        tensors: By name, on any device.
        header: Texts to keep with them.

    Raises:
        OSError: If the file cannot be written, of a full disk for one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=header | {_DIGEST: _digest(tensors, header)})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from None


def read_tensors(path: str | os.PathLike, want: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file, as they were written; without a checksum they are taken as they are.

    Args:
        path: The file.
        want: What it should be, for errors.

    Raises:
        FileNotFoundError: If there is none.
        IntegrityError: If the file is truncated, none of safetensors, or its content is not what was written.
    """
    from safetensors import SafetensorError, safe_open

    again = "Delete it, or save or copy it again."
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # copies: safetensors maps the file, which Windows then lets nobody replace
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise IntegrityError(str(path), expected=want, got=str(error), remedy=again) from None
    digest = header.pop(_DIGEST, None)
    if digest is not None and digest != (found := _digest(tensors, header)):
        got = f"content with the SHA-256 {found} instead of {digest}"
        raise IntegrityError(str(path), expected=want, got=got, remedy=again)
    return tensors, header


_DIGEST = "sha256"  # the header's key


def _digest(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> str:
    """SHA-256 of names, types, shapes, values and header, in an order of their own."""
    import torch

    total = hashlib.sha256(json.dumps(sorted(header.items())).encode())
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def registry() -> dict[str, dict]:
    """Files that can be fetched, by name: ``url``, ``sha256``, ``size`` in bytes, ``licence`` and ``about``."""
    return json.loads((Path(__file__).parents[1] / "registry.json").read_text(encoding="utf-8"))


def fetched(name: str, *, folder: str | os.PathLike | None = None) -> Path:
    """The local path of a registered file that is here, checked by SHA-256; nothing is downloaded.

    A file of download.pytorch.org is also taken from PyTorch's own cache, ``$TORCH_HOME/hub/checkpoints``.

    Args:
        name: A name in :func:`registry`.
        folder: Where files are kept; ``data/cache/downloads`` by default.

    Raises:
        I2IError: If the name is not registered.
        UnavailableError: If it is not here; says how to get it, by command or by hand.
        IntegrityError: If the file here has another checksum; says so of a file in PyTorch's cache too.
    """
    entry, path = _entry(name), Path(folder or CACHE / "downloads") / name
    remedy = _how_to_get(name, entry, path)
    for place in (path, *_torch_cache(name, entry)):
        if place.exists():
            return verified(place, entry["sha256"], remedy)
    got = "none" + (", and I2I_OFFLINE is set" if os.environ.get("I2I_OFFLINE") else "")
    raise UnavailableError(name, expected="a file in the cache", got=got, remedy=remedy)


def fetch(name: str, *, folder: str | os.PathLike | None = None, mend: bool = False) -> Path:
    """The local path of a registered file, checked by SHA-256; downloaded, whole or not at all, where it is not here.

    Args:
        name: A name in :func:`registry`.
        folder: Where files are kept; ``data/cache/downloads`` by default.
        mend: Download anew what is here with another checksum, instead of refusing it.

    Raises:
        I2IError: If the name is not registered.
        UnavailableError: If it is not here and cannot be downloaded, or ``I2I_OFFLINE`` is set; says where to put
            the file by hand.
        IntegrityError: If a file is here or arrives with another checksum.
    """
    try:
        return fetched(name, folder=folder)
    except (UnavailableError, IntegrityError) as error:
        if os.environ.get("I2I_OFFLINE") or (isinstance(error, IntegrityError) and not mend):
            raise
    import pooch

    entry, path = _entry(name), Path(folder or CACHE / "downloads") / name
    remedy = _how_to_get(name, entry, path)
    pooch.get_logger().setLevel("WARNING")  # its notice would put an absolute path into notebooks
    try:
        pooch.retrieve(entry["url"], known_hash=entry["sha256"], fname=name, path=path.parent, progressbar=True)
    except ValueError as error:  # pooch's word for a wrong checksum
        raise IntegrityError(name, expected=f"SHA-256 {entry['sha256']}", got=str(error), remedy=remedy) from None
    except Exception as error:  # requests, urllib3 and OS errors alike: the file could not be had
        raise UnavailableError(name, expected="a download", got=type(error).__name__, remedy=remedy) from None
    return path


def verified(path: Path, sha256: str, remedy: str) -> Path:
    """``path`` itself, if that file has this SHA-256; a file that has not changed is read once a process.

    Raises:
        IntegrityError: If it has another; ends with ``remedy``.
    """
    if (found := _sha256(*file_state(path))) != sha256:
        raise IntegrityError(str(_shown(path)), expected=f"SHA-256 {sha256}", got=found, remedy=remedy)
    return path


def file_state(path: str | os.PathLike) -> tuple[str, int, int]:
    """Path, size and time of change: as long as they stay, what was read of a file holds."""
    found = os.stat(path)
    return os.fspath(path), found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _sha256(path: str, size: int, changed_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(name: str) -> dict:
    entries = registry()
    if name not in entries:
        raise I2IError("fetch", expected="one of " + ", ".join(entries), got=repr(name))
    return entries[name]


def _torch_cache(name: str, entry: dict) -> list[Path]:
    """Where torch.hub keeps a file of that name, if it is one of PyTorch's."""
    if not entry["url"].startswith("https://download.pytorch.org/"):
        return []  # others use names such as dists_weights.pt for files of their own
    return [Path(require("torch").hub.get_dir(), "checkpoints", name)]


def _how_to_get(name: str, entry: dict, path: Path) -> str:
    by_hand = f"download {entry['url']} (SHA-256 {entry['sha256']}) and put it at {_shown(path)}."
    return f"Run i2i fetch {name} online, or {by_hand}"


def _shown(path: Path) -> Path:
    """From the project folder, where it lies there: texts in notebooks are then the same on every machine."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


# --- recorded results ------------------------------------------------------------------------------


def record(name: str, run: Run, result: dict) -> Path:
    """Keep a full run's figures in ``data/results/<name>.json`` with their provenance.

    Raises:
        I2IError: If the run is smaller than the one already recorded.
    """
    path = RESULTS / f"{name}.json"
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))["provenance"]["preset"]
        if PRESETS.index(run.preset) < PRESETS.index(old):
            raise I2IError(
                str(path), expected=f"a run at least as large as {old}", got=run.preset, remedy=f"Set I2I_PRESET={old}."
            )
    write_json(path, {"provenance": run.describe(), "result": result})
    return path


def recorded(name: str) -> dict:
    """A recorded result: ``{"provenance": …, "result": …}``.

    Raises:
        I2IError: If nothing was recorded under that name.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in RESULTS.glob("*.json"))) or "none yet"
        raise I2IError("recorded", expected=f"a recorded result ({known})", got=repr(name))
    return json.loads(path.read_text(encoding="utf-8"))
