"""Frames and clips in and out: image sequences through OpenImageIO, video through PyAV.

Pixels come as they are stored: [0, 1] for integer formats, the open linear range for float ones, together with what
the file says of its colour.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import FrameError, I2IError
from . import names as _names
from . import picture as _picture
from . import video as _video
from .picture import COLOURS, Frame, read_image, stored_colour, write_image
from .values import coverage, srgb_codes
from .video import write_video

__all__ = [
    "COLOURS",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Clip",
    "Frame",
    "coverage",
    "open_clip",
    "read_image",
    "srgb_codes",
    "stored_colour",
    "write_image",
    "write_video",
]

IMAGE_SUFFIXES = _picture.SUFFIXES
VIDEO_SUFFIXES = _video.SUFFIXES


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip on disk, read frame by frame; made by :func:`open_clip`.

    Attributes:
        path: The folder, image or video.
        names: One name a frame, unique, in playing order.
        files: The image files; empty for a video.
        fps: Average frames per second of a video, else None.
        layer: The layer of OpenEXR files to read; None for the colour layer.
        mattes: Pictures are mattes: read as :func:`read_image` does with ``coverage``.
        passed_over: Names of files of the folder that are no pictures.
        index: Of a video.
    """

    path: Path
    names: tuple[str, ...]
    files: tuple[Path, ...] = ()
    fps: float | None = None
    layer: str | None = None
    mattes: bool = False
    passed_over: tuple[str, ...] = ()
    index: _video.Index | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def times(self) -> tuple[float, ...] | None:
        """Seconds of each frame of a video from the first; None for pictures, and where the video does not tell."""
        return None if self.index is None else self.index.times

    def source(self, name: str) -> Path:
        """The file that holds a frame."""
        return self.files[self._places[name]] if self.files else self.path

    def read(self, wanted: set[str] | None = None) -> Iterator[tuple[str, Frame | FrameError]]:
        """Each frame by name, or the error that it met; a bad frame does not end the clip.

        Args:
            wanted: Names of the frames to read; all by default. The others cost little or nothing.
        """
        places = range(len(self)) if wanted is None else sorted(self._places[n] for n in wanted if n in self._places)
        if not self.files:
            for place, frame in _video.read(self.path, self.index, places):
                yield self.names[place], frame
            return
        for place in places:
            name = self.names[place]
            try:
                frame = read_image(self.files[place], layer=self.layer, coverage=self.mattes)
                yield name, dataclasses.replace(frame, name=name)
            except FrameError as error:
                yield name, error

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}


def open_clip(path: str | os.PathLike, *, layer: str | None = None, mattes: bool = False) -> Clip:
    """A clip from a folder of pictures, one picture, or a video.

    Args:
        path: The folder or file.
        layer: The layer of OpenEXR files, as in :func:`read_image`.
        mattes: Pictures are mattes: their numbers count, whatever gamma a file declares.

    Raises:
        FrameError: If nothing readable is there: no such path, a folder without pictures, a broken video.
        I2IError: If a layer is asked of a video.
    """
    path = Path(path)
    if os.path.isdir(path):  # says no, and raises nothing, for whatever cannot be asked
        return _folder(path, layer, mattes)
    if problem := _picture.what_is_wrong(path):
        raise FrameError(str(path), expected="a picture, a folder of pictures or a video", got=problem)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Clip(path, (path.stem,), (path,), layer=layer, mattes=mattes)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        known = ", ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        raise FrameError(str(path), expected="one of " + known, got=repr(path.suffix or path.name))
    if layer is not None:
        raise I2IError("layer", expected="pictures", got=f"the video {path}")
    index = _video.scan(path)
    return Clip(path, tuple(f"frame_{i + 1:06d}" for i in range(index.count)), fps=index.fps, index=index)


def _folder(path: Path, layer: str | None, mattes: bool) -> Clip:
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and not _is_dir(entry)]
    except OSError as error:
        raise FrameError(str(path), expected="a folder that can be read", got=error.strerror) from None
    pictures, others = [], []  # a broken link is a frame too: one that cannot be read
    for name in names:
        (pictures if Path(name).suffix.lower() in IMAGE_SUFFIXES else others).append(name)
    if not pictures:
        raise FrameError(str(path), expected="pictures (" + ", ".join(IMAGE_SUFFIXES) + ")", got="a folder with none")
    files = tuple(path / name for name in sorted(pictures, key=_names.natural))
    passed_over = tuple(sorted(others, key=_names.natural))
    return Clip(path, _names.unique(files), files, layer=layer, mattes=mattes, passed_over=passed_over)


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False
