"""Frames and clips in and out: image sequences through OpenImageIO, video through ffmpeg.

Pixels come as they are stored: [0, 1] for integer formats, the open linear range for float ones. Whether the values
are sRGB-encoded or linear is not guessed here beyond :func:`stored_colour`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .errors import FrameError, I2IError
from .runtime import atomic_path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".exr")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mxf")
EXACT = ["-sws_flags", "accurate_rnd+full_chroma_int"]  # for ffmpeg, whose default is about one 8-bit code too dark
COLOURS = ("srgb", "linear")


@dataclasses.dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        rgb: (1, 3, H, W) float32, as stored. A grey picture has three equal channels.
        alpha: (1, 1, H, W) float32 in [0, 1], or None if the file has none.
        name: File name without suffix, or ``frame_000001`` for a video; names the results.
        source: What to name in an error: a path, or a path with a frame number.
    """

    rgb: torch.Tensor
    alpha: torch.Tensor | None
    name: str
    source: str


def stored_colour(path: str | os.PathLike) -> str:
    """The usual colour state of a file by its format: "linear" for OpenEXR, "srgb" for all others."""
    return "linear" if Path(path).suffix.lower() == ".exr" else "srgb"


# --- pictures --------------------------------------------------------------------------------------


def _open(path: Path):
    import OpenImageIO as oiio

    oiio.attribute("log_times", 0)
    wanted = oiio.ImageSpec()
    wanted.attribute("oiio:UnassociatedAlpha", 1)  # give colour as stored: do not multiply by alpha
    file = oiio.ImageInput.open(str(path), wanted)
    if file is None:
        reason = oiio.geterror().strip().splitlines()
        raise FrameError(str(path), expected="a readable image", got=reason[-1] if reason else "an unknown format")
    return file


def read_image(path: str | os.PathLike) -> Frame:
    """Read one PNG, JPEG, TIFF or OpenEXR file of 8 to 32 bits, grey or colour, with or without alpha.

    Raises:
        FrameError: If the file is missing, truncated, empty or not a picture; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FrameError(str(path), expected="an image file", got="nothing there" if not path.exists() else "no file")
    file = _open(path)
    try:
        spec = file.spec()
        pixels = file.read_image("float")  # integers arrive as value / maximum, half and float as they are
        problem = file.geterror().strip()
    finally:
        file.close()
    if pixels is None or problem:  # JPEG gives half a picture and an error
        raise FrameError(
            str(path),
            expected="a whole image",
            got=problem.splitlines()[0] if problem else "no pixels",
            remedy="It looks truncated or damaged: copy or render it again.",
        )
    data = torch.from_numpy(np.ascontiguousarray(pixels.reshape(spec.height, spec.width, -1).transpose(2, 0, 1)))[None]
    names = [name.split(".")[-1].upper() for name in spec.channelnames]
    alpha = data[:, names.index("A")][:, None] if "A" in names else None
    if {"R", "G", "B"} <= set(names):
        rgb = data[:, [names.index(c) for c in "RGB"]]
    else:  # grey: whatever the one channel is called
        first = next((i for i, name in enumerate(names) if name != "A"), 0)
        rgb = data[:, [first] * 3]
    return Frame(rgb, alpha, path.stem, str(path))


def write_image(path: str | os.PathLike, pixels: torch.Tensor, *, bits: int = 16, premultiplied: bool = False) -> None:
    """Write a picture, whole or not at all.

    Args:
        path: ``.png`` and ``.tif`` hold ``bits`` per channel; ``.exr`` holds float16, ``.jpg`` 8 bits.
        pixels: (1, C, H, W) float32; C is 1 (grey), 3 (RGB) or 4 (RGB and alpha). Integer formats clip to [0, 1].
        bits: 8 or 16.
        premultiplied: Whether the colours were multiplied by alpha already; recorded where the format can.

    Raises:
        FrameError: If the picture cannot be written.
        I2IError: If ``pixels`` or ``bits`` is none of the above.
    """
    import OpenImageIO as oiio

    path = Path(path)
    if pixels.ndim != 4 or pixels.shape[0] != 1 or pixels.shape[1] not in (1, 3, 4):
        raise I2IError("write_image", expected="pixels of shape (1, 1 or 3 or 4, H, W)", got=tuple(pixels.shape))
    if bits not in (8, 16):
        raise I2IError("bits", expected="8 or 16", got=bits)
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise I2IError(str(path), expected="a name ending in " + ", ".join(IMAGE_SUFFIXES), got=repr(suffix))
    array = pixels[0].permute(1, 2, 0).to(torch.float32).numpy()
    if suffix == ".exr":
        kind, array = "half", array.astype(np.float16)
    else:
        bits = 8 if suffix in (".jpg", ".jpeg") else bits
        kind = f"uint{bits}"
        array = (np.clip(array, 0, 1) * (2**bits - 1) + 0.5).astype(kind)
    array = np.ascontiguousarray(array)
    height, width, channels = array.shape
    spec = oiio.ImageSpec(width, height, channels, kind)
    spec.attribute("oiio:ColorSpace", "lin_rec709_scene" if suffix == ".exr" else "srgb_rec709_scene")
    if channels == 4:
        spec.alpha_channel = 3
        if not premultiplied:
            spec.attribute("oiio:UnassociatedAlpha", 1)
    if suffix == ".png":
        spec.attribute("png:compressionLevel", 1)  # film grain hardly compresses: higher levels cost time, not size
    with atomic_path(path) as temporary:
        file = oiio.ImageOutput.create(str(temporary))
        if file is None or not file.open(str(temporary), spec) or not file.write_image(array) or not file.close():
            raise FrameError(str(path), expected="a writable image", got=(file or oiio).geterror())


# --- clips -----------------------------------------------------------------------------------------


def _natural(path: Path) -> list:
    """Sort key that puts frame 9 before frame 10."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", path.name)]


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip on disk, read frame by frame; made by :func:`open_clip`.

    Attributes:
        path: The folder, image or video.
        names: One name a frame, unique, in playing order.
        files: The image files; empty for a video.
        fps: Frames per second of a video, else None.
    """

    path: Path
    names: tuple[str, ...]
    files: tuple[Path, ...] = ()
    fps: float | None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, wanted: set[str] | None = None) -> Iterator[tuple[str, Frame | FrameError]]:
        """Each frame by name, or the error that it met; a bad frame does not end the clip.

        Args:
            wanted: Names of the frames to read; all by default. The others are passed over cheaply.
        """
        wanted = set(self.names) if wanted is None else wanted
        if not self.files:
            yield from self._read_video(wanted)
            return
        for name, file in zip(self.names, self.files, strict=True):
            if name in wanted:
                try:
                    yield name, dataclasses.replace(read_image(file), name=name)
                except FrameError as error:
                    yield name, error

    def _read_video(self, wanted: set[str]) -> Iterator[tuple[str, Frame | FrameError]]:
        import imageio_ffmpeg

        left = list(self.names)
        stream = imageio_ffmpeg.read_frames(str(self.path), pix_fmt="rgb48le", bits_per_pixel=48, output_params=EXACT)
        try:
            width, height = next(stream)["size"]
            for raw in stream:
                if not left:
                    break
                name = left.pop(0)
                if name in wanted:
                    pixels = np.frombuffer(raw, np.uint16).reshape(height, width, 3)
                    rgb = torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(65535))
                    yield name, Frame(rgb.contiguous(), None, name, f"{self.path}, {name}")
        except (OSError, RuntimeError) as error:
            problem = str(error).strip().splitlines()[-1]
        else:
            problem = "the stream ended early"
        finally:
            stream.close()
        for name in left:
            if name in wanted:
                yield name, FrameError(f"{self.path}, {name}", expected="a frame", got=problem)


def open_clip(path: str | os.PathLike) -> Clip:
    """A clip from a folder of pictures, one picture, or a video.

    Raises:
        FrameError: If nothing readable is there: no such path, a folder without pictures, a broken video.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()), key=_natural)
        files = [p for p in files if not p.name.startswith(".")]
        if not files:
            raise FrameError(
                str(path), expected="pictures (" + ", ".join(IMAGE_SUFFIXES) + ")", got="a folder with none"
            )
        stems = [p.stem for p in files]  # shot.png beside shot.exr must not become one result
        names = tuple(p.stem if stems.count(p.stem) == 1 else p.name.replace(".", "_") for p in files)
        return Clip(path, names, tuple(files))
    if not path.exists():
        raise FrameError(str(path), expected="a picture, a folder of pictures or a video", got="nothing there")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Clip(path, (path.stem,), (path,))
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return _open_video(path)
    raise FrameError(
        str(path), expected="one of " + ", ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES), got=repr(path.suffix or path.name)
    )


def _open_video(path: Path) -> Clip:
    import imageio_ffmpeg

    try:
        count, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
        stream = imageio_ffmpeg.read_frames(str(path))
        meta = next(stream)
        stream.close()
    except (OSError, RuntimeError) as error:
        reason = [line for line in str(error).splitlines() if line.strip()]
        raise FrameError(str(path), expected="a video that ffmpeg can read", got=reason[-1].strip()) from None
    if not count:
        raise FrameError(str(path), expected="a video", got="no frames")
    return Clip(path, tuple(f"frame_{i:06d}" for i in range(1, count + 1)), fps=meta["fps"])
