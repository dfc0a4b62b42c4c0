"""The ffmpeg program that the package imageio-ffmpeg brings: x265 as a command line codes it, and libvmaf.

``IMAGEIO_FFMPEG_EXE`` names another program. Frames of a video come through PyAV, see :mod:`i2ilib.frames.video`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import FrameError, UnavailableError
from ..runtime import require
from .video import _opened

_MATRICES = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020"}  # ITU-T H.273; 5 and 6 have the same numbers
_YUV = re.compile(r"yuv[aj]?4(?:20|22|44|11|10|40)p(?:9|10|12|14|16)?(?:le)?")


class ProgramError(FrameError):
    """The program failed; an error of what it was fed is another."""


class Stored(NamedTuple):
    """How a video stores its pixels.

    Attributes:
        stream: Number of the stream that :func:`i2ilib.frames.open_clip` reads.
        pixel_format: As FFmpeg names it.
        bits: Of a channel.
        yuv: Luma and chroma in planes.
        matrix: "bt709", "bt601", "bt2020", another by its number in ITU-T H.273, or None where the video does not say.
        full: Codes from 0 to the largest number, instead of the limited range.
    """

    stream: int
    pixel_format: str
    bits: int
    yuv: bool
    matrix: str | None
    full: bool


def stored(path: str | os.PathLike) -> Stored:
    """How a video stores its pixels, from its header.

    Raises:
        FrameError: If the file is no video.
    """
    with _opened(Path(path)) as (_, stream):
        context = stream.codec_context
        name, number = context.pix_fmt, context.colorspace
        return Stored(
            stream.index,
            name,
            max(component.bits for component in context.format.components),
            _YUV.fullmatch(name) is not None,
            None if number == 2 else _MATRICES.get(number, str(number)),
            context.color_range == 2 or name.startswith("yuvj"),
        )


def program() -> str:
    """Path of the program.

    Raises:
        UnavailableError: If there is none.
    """
    try:
        found = require("imageio_ffmpeg").get_ffmpeg_exe()
    except RuntimeError as error:
        raise _absent("ffmpeg", str(error)) from None
    return os.path.abspath(found) if os.path.dirname(found) else found  # it may have to run in another folder


@functools.lru_cache
def asked(program: str, *arguments: str) -> str:
    """What a program says when it is asked about itself; asked once.

    Raises:
        UnavailableError: If it cannot be run.
    """
    command = [program, *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _absent(program, getattr(error, "strerror", None) or str(error)) from None
    return done.stdout.decode(errors="replace")


def run(
    arguments: Sequence[str],
    *,
    what: str,
    expected: str,
    folder: str | os.PathLike | None = None,
    feed: Iterable[bytes] | None = None,
    tick: Callable[[int], None] | None = None,
) -> int:
    """Run the program to its end. However this ends, by an error or Ctrl-C, the program has ended too.

    Args:
        arguments: But for the program.
        what: What to name in an error, and
        expected: what it should have done.
        folder: Where it works.
        feed: Its standard input, asked for piece by piece as the program takes them.
        tick: Called with the number of frames done, now and then; without ``feed`` only.

    Returns:
        How many pieces it took.

    Raises:
        ProgramError: If it fails, or takes no more before the feed is at its end; quotes its last lines.
        UnavailableError: If there is no such program.
    """
    command = [program(), "-hide_banner", "-nostdin", "-v", "error", *(["-progress", "pipe:1"] if tick else [])]
    taken, whole = 0, True
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                [*command, *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL if feed is None else subprocess.PIPE,
                stdout=subprocess.PIPE if tick else subprocess.DEVNULL,
                stderr=errors,
            )
        except OSError as error:
            raise _absent(command[0], error.strerror or str(error)) from None
        try:
            for piece in feed or ():
                if not (whole := _takes(process, piece)):
                    break
                taken += 1
            _close(process.stdin)
            for line in process.stdout or ():
                if line.startswith(b"frame="):
                    tick(int(line[6:]))
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            _close(process.stdin)
            _close(process.stdout)
        if code or not whole:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()[-6:]
            told = " / ".join(re.sub(r"^\[(\S+) @ \w+\]", r"\1:", line) for line in lines) or "no word"
            got = told if code >= 0 else f"an end by signal {-code}, and {told}"
            raise ProgramError(what, expected=expected, got=got)
    return taken


def _takes(process: subprocess.Popen, piece: bytes) -> bool:
    """Whether the program took what it was given: one that has ended takes nothing, and why, its end tells."""
    try:
        process.stdin.write(piece)
    except OSError:  # a broken pipe; Windows calls it invalid
        return False
    return True


def _close(pipe) -> None:
    if pipe is not None:
        with contextlib.suppress(OSError):  # what is still to be written has nowhere to go
            pipe.close()


def _absent(name: str, got: str) -> UnavailableError:
    remedy = "pip install imageio-ffmpeg brings one; unset IMAGEIO_FFMPEG_EXE, or let it name one that runs."
    return UnavailableError(name, expected="a program that runs", got=got, remedy=remedy)
