"""A job folder: which job its frames belong to, and which of them are whole results of sources as they are now.

``job.json`` tells the job. ``frames.jsonl`` has a line for every frame that was written: the job that wrote it, and
the state of its source and of its results. A line is added before a frame is written, which revokes what is there, and
another when both results are on disk. So what a killed run or an interrupted overwrite left behind is never taken for a
result of the job at hand.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import FrameError, I2IError
from ..frames import read_image
from ..runtime import atomic_path, write_json


@dataclasses.dataclass(frozen=True)
class JobFolder:
    """A folder that one job may write to; made by :func:`open_job`."""

    out: Path
    about: dict
    fingerprint: str
    by_content: bool
    records: dict[str, dict]  # by the name of the result files; of this job alone

    def claim(self) -> None:
        """Write down whose the folder is from now on."""
        write_json(self.out / "job.json", {"fingerprint": self.fingerprint, "job": self.about})
        with atomic_path(self._log) as temporary:
            temporary.write_text("".join(map(_line, self.records.values())), encoding="utf-8")

    def source(self, path: Path) -> dict | None:
        """The state of a source: size and time, and its SHA-256 where content decides; None if it cannot be had."""
        try:
            if not path.is_file():  # reading a pipe would wait for ever
                return None
            state = _state(path)
            return state | {"sha256": _sha256(path, **state)} if self.by_content else state
        except OSError:
            return None

    def keeps(self, source: dict | None, results: Sequence[Path]) -> bool:
        """Whether the results of a frame are whole, of this job, and of the source as it is."""
        record = self.records.get(results[0].name)
        if record is None or source is None:
            return False
        keys = ("sha256",) if self.by_content else ("size", "mtime_ns")
        if any(record["source"].get(key) != source[key] for key in keys):
            return False
        return all(path.is_file() for path in results) and (self.untouched(results) or all(map(_readable, results)))

    def untouched(self, results: Sequence[Path]) -> bool:
        """Whether the results of a frame are the files that were written."""
        return [*map(_state, results)] == self.records[results[0].name]["results"]

    def begin(self, results: Sequence[Path]) -> None:
        """Write down that a frame's results are no longer to be relied on."""
        self._add({"file": results[0].name, "job": None})

    def note(self, source: dict | None, results: Sequence[Path]) -> None:
        """Write down that a frame's results are on disk."""
        state = {"source": source or {}, "results": [*map(_state, results)]}
        self._add({"file": results[0].name, "job": self.fingerprint} | state)

    def _add(self, record: dict) -> None:
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(_line(record))

    @property
    def _log(self) -> Path:
        return self.out / "frames.jsonl"


def open_job(
    out: Path, about: dict, *, results: str = "*/*", overwrite: bool = False, by_content: bool = False
) -> JobFolder:
    """The folder of a job, which it may not have yet; nothing is written.

    Args:
        out: The folder.
        about: What the results depend on besides the sources' content, as JSON values.
        results: Pattern of the files that count as results of a job.
        overwrite: Take the folder whatever is there, and keep nothing.
        by_content: Know a source by its SHA-256 rather than by size and time.

    Raises:
        I2IError: If the folder holds results that are not known to be of this job.
    """
    text = json.dumps(about, sort_keys=True, default=str)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    if out.exists() and not out.is_dir():
        raise I2IError(str(out), expected="a folder to write to", got="a file")
    if not overwrite and any(out.glob(results)) and _owner(out) != fingerprint:
        raise I2IError(
            str(out),
            expected="a new folder, or one with results of this model and these options",
            got="results of another job",
            remedy="Choose another folder, or overwrite it.",
        )
    records = {} if overwrite else _records(out / "frames.jsonl", fingerprint)
    return JobFolder(out, json.loads(text), fingerprint, by_content, records)


def _owner(out: Path) -> str | None:
    try:
        return json.loads((out / "job.json").read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _records(log: Path, fingerprint: str) -> dict[str, dict]:
    """The last line of every frame, if it is of this job; a line that a kill cut short is passed over."""
    records: dict[str, dict] = {}
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    for line in lines:
        try:
            record = json.loads(line)
            records.pop(record["file"], None)
            if record["job"] == fingerprint and isinstance(record["source"], dict) and record["results"]:
                records[record["file"]] = record
        except (ValueError, KeyError, TypeError):
            continue
    return records


def _line(record: dict) -> str:
    return json.dumps(record) + "\n"


def _state(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


@functools.lru_cache(maxsize=1)  # every frame of a video asks for the same file
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _readable(path: Path) -> bool:
    try:
        read_image(path)
    except FrameError:
        return False
    return True
