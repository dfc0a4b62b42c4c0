"""BVI-DVC as SRUNet is trained on it: the frames of a clip, and the same frames small and compressed.

Layout::

    <root>/frames_HQ/<clip>/<clip>_001.png …           the clip as it is
    <root>/frames_QF<crf>/<clip>/<clip>_001.png …      scaled down, then coded with x265 at that CRF
    <root>/clips/<clip>.json                           what a clip was made from, and how (our addition); written last

Sources: Vaccaro et al., "Fast video visual quality and resolution improvement using SR-UNet", ACM MM 2021 (the layout,
96 x 96 crops, CRF 22 and 23, half size); Ma, Zhang and Bull, "BVI-DVC", IEEE TMM 2021 (the clips). Images are sRGB
codes in [0, 1].
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from .. import runtime
from ..errors import FrameError, I2IError
from ..frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Clip, ffmpeg, open_clip, read_image, srgb_codes
from ..frames import names as frame_names

PAGE = "https://fan-aaron-zhang.github.io/BVI-DVC/"
SMALLEST = 32  # pixels of a coded side, which x265 needs
VERSION = 1  # of the preparation: a clip of another one is made again


class Pair(NamedTuple):
    """Files of one frame."""

    low: Path  # small and compressed
    high: Path


def pairs(root: str | Path, crf: int = 23, *, clip: str | None = None) -> list[Pair]:
    """The frames of a data set, of one clip or of all, in order.

    Raises:
        I2IError: If a folder is missing or empty, or a frame lacks its counterpart.
    """
    root = Path(root)
    remedy = f"Get BVI-DVC from {PAGE}, or take clips of your own, and run i2i degrade on them."
    names = {}
    for kind in ("frames_HQ", f"frames_QF{crf}"):
        folder = root / kind
        if not folder.is_dir():
            found = ", ".join(sorted(p.name for p in root.glob("frames_*"))) or "none"
            raise I2IError(str(folder), expected="a folder of clips", got=found, remedy=remedy)
        names[kind] = {str(p.relative_to(folder)) for p in folder.glob(f"{clip or '*'}/*.png")}
    high, low = names.values()
    if not high or high != low:
        odd = sorted(high ^ low)[:3]
        raise I2IError(
            str(root),
            expected=f"the same frames in frames_HQ and frames_QF{crf}" + (f" for clip {clip}" if clip else ""),
            got=f"{len(high)} and {len(low)}" + (f", {', '.join(odd)} in one only" if odd else ""),
            remedy=remedy,
        )
    return [
        Pair(root / f"frames_QF{crf}" / name, root / "frames_HQ" / name)
        for name in sorted(high, key=frame_names.natural)
    ]


def only_crf(root: str | Path) -> int:
    """The CRF of the compressed frames of a data set that has them at one.

    Raises:
        I2IError: If it has none, or several.
    """
    found = sorted(int(p.name[9:]) for p in Path(root).glob("frames_QF*") if p.name[9:].isdigit())
    if len(found) != 1:
        told = ", ".join(map(str, found)) or "none"
        remedy = "Name the CRF." if found else "Make them with i2i degrade."
        raise I2IError(f"{root}/frames_QF", expected="compressed frames of one CRF", got=told, remedy=remedy)
    return found[0]


def read_pair(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Low (3, h, w) and high (3, s h, s w) of one frame, float32, sRGB codes in [0, 1]; s is a whole number.

    Raises:
        FrameError: If a file cannot be decoded, or the sizes are not a whole multiple of each other.
    """
    low, high = (read_image(path).rgb[0] for path in pair)
    scale = high.shape[1] // low.shape[1]
    if (low.shape[1] * scale, low.shape[2] * scale) != tuple(high.shape[1:]):
        raise FrameError(
            str(pair.low),
            expected=f"a size that divides {tuple(high.shape[1:])} (height, width)",
            got=tuple(low.shape[1:]),
            remedy="Make the clip again with i2i degrade.",
        )
    return low, high


def random_crop(
    low: torch.Tensor, high: torch.Tensor, *, size: int = 96, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A random crop of ``low`` and the same part of the scene in ``high``.

    Args:
        low: (3, h, w).
        high: (3, s h, s w).
        size: Side of the crop in ``low``, pixels.
        generator: Of the position.

    Returns:
        (3, size, size) and (3, s size, s size).

    Raises:
        I2IError: If the frame is smaller than the crop.
    """
    _, h, w = low.shape
    if min(h, w) < size:
        raise I2IError("crop", expected=f"a frame of at least {size} x {size} pixels", got=f"{h} x {w}")
    scale = high.shape[1] // h
    y = int(torch.randint(h - size + 1, (), generator=generator))
    x = int(torch.randint(w - size + 1, (), generator=generator))
    part = high[:, y * scale : (y + size) * scale, x * scale : (x + size) * scale]
    return low[:, y : y + size, x : x + size], part


def write_clip(
    root: str | Path, name: str, frames: Iterable[torch.Tensor], *, crf: int = 23, scale: int = 2, fps: float = 24.0
) -> Path:
    """Write a clip in the layout: the frames, and the same scaled down and coded with x265.

    Args:
        root: Folder of the data set.
        name: Of the clip.
        frames: (3, H, W) each, sRGB codes in [0, 1]; H and W multiples of ``2 * scale``, as 4:2:0 needs.
        crf: Constant rate factor of x265; 22 and 23 in the paper.
        scale: How much smaller the coded frames are.
        fps: Frames per second, which x265 needs for its rate control.

    Returns:
        ``root``.

    Raises:
        I2IError: If there are no frames, they differ in size, or the size does not divide.
    """
    root = Path(root)
    _clear(root, name, "frames_HQ")
    size = _write_high(root, name, frames, 2 * scale)
    _write_low(root, name, size, crf=crf, scale=scale, fps=fps)
    return root


def _clear(root: Path, name: str, kinds: str) -> None:
    """Delete a clip's marker, and its frames of some kinds."""
    _marker(root, name).unlink(missing_ok=True)
    for kind in root.glob(kinds):
        if (kind / name).is_dir():
            shutil.rmtree(kind / name)


def _marker(root: Path, name: str) -> Path:
    return root / "clips" / f"{name}.json"


def _write_high(root: Path, name: str, frames: Iterable[torch.Tensor], multiple: int) -> tuple[int, int]:
    """Write the frames of a clip as 8-bit PNG; their height and width."""
    size, count = None, 0
    for count, frame in enumerate(frames, 1):
        size = size or tuple(frame.shape)
        if tuple(frame.shape) != size or size[1] % multiple or size[2] % multiple:
            raise I2IError(
                f"frame {count}",
                expected=f"(3, H, W) as the first, H and W multiples of {multiple}",
                got=tuple(frame.shape),
                remedy="Crop the frames.",
            )
        codes = frame.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        with runtime.atomic_path(root / "frames_HQ" / name / f"{name}_{count:03d}.png") as temporary:
            Image.fromarray(codes).save(temporary, compress_level=1)  # faster to write
    if not count:
        raise I2IError("frames", expected="at least one frame", got="none")
    return size[1:]


def _write_low(root: Path, name: str, size: tuple[int, int], *, crf: int, scale: int, fps: float) -> None:
    """Scale the frames of a clip down, code them, and write what comes back."""
    low = root / f"frames_QF{crf}" / name
    _clear(root, name, low.parent.name)
    low.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        coded = f"{folder}/clip.mp4"
        small = f"{size[1] // scale}:{size[0] // scale}"
        scaled = f"scale={small}:flags=bicubic+accurate_rnd:out_color_matrix=bt709:out_range=tv"
        x265 = ["-c:v", "libx265", "-crf", str(crf), "-pix_fmt", "yuv420p", "-x265-params", "log-level=none:pools=1"]
        back = ["-vf", "scale=in_color_matrix=bt709:in_range=tv:flags=accurate_rnd+full_chroma_int"]
        back += ["-pix_fmt", "rgb24", "-fps_mode", "passthrough"]
        # a percent sign in a name is none of the pattern's, a minus begins no option, a colon ends no protocol
        pattern = f"./{name.replace('%', '%%')}_%03d.png"
        there = ["-framerate", str(fps), "-i", pattern, "-vf", scaled, *x265]
        there += ["-colorspace", "bt709", "-color_range", "tv", coded]
        for arguments, place in ((there, root / "frames_HQ" / name), (["-i", coded, *back, pattern], low)):
            ffmpeg.run(["-y", *arguments], what=str(root / name), expected="ffmpeg to code the clip", folder=place)


# --- any clips ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Degraded:
    """What became of a clip.

    Attributes:
        name: In the data set.
        state: "written", "kept" or "failed".
        frames: How many.
        size: Height and width of the large frames, pixels.
        notes: What had to be decided about them.
        reason: Of a failure.
    """

    name: str
    state: str
    frames: int = 0
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    reason: str = ""


def sources(path: str | Path) -> dict[str, Path]:
    """Clips by name: a video or a picture, a folder of pictures, or a folder of such.

    Raises:
        FrameError: If nothing there can be a clip.

    Example:
        >>> sources("BVI-DVC")  # doctest: +SKIP
        {'AAdvertisingMassagesBangkokVidevo_3840x2176_25fps_10bit_420': PosixPath('BVI-DVC/AAdvertising….mp4'), …}
    """
    path = Path(path)
    if not path.is_dir():
        open_clip(path)  # says what is wrong with it
        return {path.stem: path}
    inside = sorted(
        (p for p in path.iterdir() if not p.name.startswith(".")), key=lambda p: frame_names.natural(p.name)
    )
    found = [p for p in inside if (_has_pictures(p) if p.is_dir() else p.suffix.lower() in VIDEO_SUFFIXES)]
    if _has_pictures(path):
        found.append(path)
    if not found:
        raise FrameError(str(path), expected="videos, pictures, or folders of pictures", got="a folder with none")
    return dict(zip(frame_names.unique(found), found, strict=True))


def _has_pictures(folder: Path) -> bool:
    return any(p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") for p in folder.iterdir())


def degrade(
    clips: str | Path,
    root: str | Path,
    *,
    crf: int = 23,
    scale: int = 2,
    fps: float | None = None,
    progress: bool = True,
) -> Iterator[Degraded]:
    """Prepare clips as BVI-DVC is prepared for SRUNet; one that is done, by the same settings, is kept.

    Frames lose what does not divide by ``2 * scale``, the same at both sides, and are stored in 8 bits.

    Args:
        clips: What :func:`sources` takes.
        root: Folder of the data set. Clips that are there already stay; a second CRF of theirs can be added.
        crf: Constant rate factor of x265.
        scale: How much smaller the coded frames are.
        fps: Frames per second; by default those of a video, and 24 of pictures.
        progress: Show a bar.

    Yields:
        Each clip as it is done. One that cannot be read is told, and costs only itself.

    Raises:
        I2IError: If there is no clip, or a setting cannot be.
    """
    if crf not in range(52):
        raise I2IError("crf", expected="a whole number from 0 to 51", got=crf)
    if scale not in (2, 4):
        raise I2IError("scale", expected="2 or 4", got=scale)
    if fps is not None and not 0 < fps < 1000:
        raise I2IError("fps", expected="above 0 and below 1000", got=fps)
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise I2IError(str(root), expected="a folder to write to", got="a file")
    found = sources(clips)
    with tqdm(found.items(), desc="clips", unit="clip", disable=not progress) as bar:
        for name, path in bar:
            bar.set_postfix_str(name, refresh=False)
            try:
                yield _degrade(path, root, name, crf=crf, scale=scale, fps=fps)
            except I2IError as error:
                yield Degraded(name, "failed", reason=str(error))


def _degrade(path: Path, root: Path, name: str, *, crf: int, scale: int, fps: float | None) -> Degraded:
    about = {"version": VERSION, "source": _state(path), "scale": scale, "fps": fps}
    marker = _marker(root, name)
    done = _read(marker)
    same = done is not None and all(done.get(key) == value for key, value in about.items())
    if same and crf in done["crf"] and _whole(root, name, crf, done["frames"]):
        return Degraded(name, "kept", done["frames"], tuple(done["size"]), tuple(done["notes"]))
    if not (same and _whole(root, name, None, done["frames"])):
        clip, notes = open_clip(path), set()
        rate = fps or clip.fps or 24.0
        _clear(root, name, "frames_*")  # coded frames of another source or size too
        size = _write_high(root, name, _cropped(clip, scale, notes), 2 * scale)
        frames = len(list((root / "frames_HQ" / name).glob("*.png")))
        done = about | {"frames": frames, "size": list(size), "rate": rate, "notes": sorted(notes), "crf": []}
    _write_low(root, name, tuple(done["size"]), crf=crf, scale=scale, fps=done["rate"])
    if not _whole(root, name, crf, done["frames"]):
        got = len(list((root / f"frames_QF{crf}" / name).glob("*.png")))
        raise FrameError(str(path), expected=f"{done['frames']} coded frames", got=got)
    done["crf"] = sorted({*done["crf"], crf})
    runtime.write_json(marker, done)
    return Degraded(name, "written", done["frames"], tuple(done["size"]), tuple(done["notes"]))


def _cropped(clip: Clip, scale: int, notes: set[str]) -> Iterator[torch.Tensor]:
    """The frames of a clip, (3, H, W) sRGB codes in [0, 1], cut to a size that divides."""
    multiple, first = 2 * scale, None
    for _, frame in clip.read():
        if isinstance(frame, FrameError):
            raise frame
        codes = srgb_codes(frame)[0]
        notes.update(frame.notes)
        height, width = codes.shape[1:]
        if first not in (None, (height, width)):
            want = f"{first[0]}×{first[1]} pixels, as the first frame"
            raise FrameError(frame.source, expected=want, got=f"{height}×{width}")
        first = height, width
        h, w = height // multiple * multiple, width // multiple * multiple
        if min(h, w) < SMALLEST * scale:
            want = f"sides of {SMALLEST * scale} pixels or more, to be scaled down {scale} times"
            raise FrameError(frame.source, expected=want, got=f"{height}×{width}")
        top, left = (height - h) // 2, (width - w) // 2
        yield codes[:, top : top + h, left : left + w]


def _state(path: Path) -> list:
    """By what a source is known again: size and time of change of every file of it."""
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
    return [[p.name, *runtime.file_state(p)[1:]] for p in files]


def _read(marker: Path) -> dict | None:
    try:
        done = json.loads(marker.read_text(encoding="utf-8"))
        return done if {"frames", "size", "notes", "crf", "rate"} <= done.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _whole(root: Path, name: str, crf: int | None, frames: int) -> bool:
    """Whether the large frames of a clip are all there, and the coded ones where a CRF is given."""
    kinds = ["frames_HQ"] + ([] if crf is None else [f"frames_QF{crf}"])
    wanted = {f"{name}_{number:03d}.png" for number in range(1, frames + 1)}
    return all({p.name for p in (root / kind / name).glob("*.png")} == wanted for kind in kinds)


# --- crops to train on --------------------------------------------------------------------------------------


class CropDataset(torch.utils.data.Dataset):
    """Random crops of small frames and of the large ones that they were made from.

    All frames lie open: decoding a picture for every crop would take longer than a training step. They are kept as
    8-bit codes in memory, or beyond the budget in a file that is mapped into it, which is gone with the data set.

    Args:
        found: From :func:`pairs`.
        size: Side of a crop of the small frame, pixels.
        flip: Turn and mirror crops at random, in any of the eight ways.
        seed: A crop is a function of the seed, the epoch and its index.
        budget_bytes: Most memory that frames may take.
        progress: Show a bar while frames are decoded.

    Attributes:
        scale: How many times larger the large frames are.
        nbytes: What all frames take.
        mapped: Whether they lie in a file.

    Items are low (3, size, size) and high (3, s size, s size), float32, sRGB codes in [0, 1]. There are as many of a
    frame as fit into it side by side.

    Raises:
        I2IError: If there are no frames, they differ in scale, or one is smaller than a crop.
        FrameError: If a frame cannot be decoded.
    """

    def __init__(
        self,
        found: Sequence[Pair],
        *,
        size: int = 96,
        flip: bool = True,
        seed: int = 0,
        budget_bytes: int = 4 * 2**30,
        progress: bool = False,
    ):
        if not found:
            raise I2IError("CropDataset", expected="at least one frame", got="none")
        self.size, self.flip, self.seed, self.epoch = size, flip, seed, 0
        shapes = [_sizes(pair) for pair in found]
        scales = {high[0] // low[0] for low, high in shapes}
        if len(scales) > 1:
            raise I2IError("CropDataset", expected="clips of one scale", got=" and ".join(map(str, sorted(scales))))
        (self.scale,) = scales
        for pair, (low, _) in zip(found, shapes, strict=True):
            if min(low) < size:
                raise I2IError(str(pair.low), expected=f"at least {size} x {size} pixels", got=f"{low[0]} x {low[1]}")
        lengths = [3 * (low[0] * low[1] + high[0] * high[1]) for low, high in shapes]
        self.nbytes = sum(lengths)
        self.mapped = self.nbytes > budget_bytes
        codes = self._room()
        starts = itertools.accumulate(lengths, initial=0)
        self.frames: list[tuple[np.ndarray, np.ndarray]] = []  # (h, w, 3) and (s h, s w, 3) uint8
        bar = tqdm(zip(found, shapes, starts, strict=False), "frames", len(found), leave=False, disable=not progress)
        for pair, (low, high), start in bar:
            middle, end = start + 3 * low[0] * low[1], start + 3 * (low[0] * low[1] + high[0] * high[1])
            parts = codes[start:middle].reshape(*low, 3), codes[middle:end].reshape(*high, 3)
            for part, picture in zip(parts, read_pair(pair), strict=True):
                part[:] = picture.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            self.frames.append(parts)
        crops = [(low[0] // size) * (low[1] // size) for low, _ in shapes]
        self._of = np.repeat(np.arange(len(found)), crops)

    def _room(self) -> np.ndarray:
        if not self.mapped:
            return np.empty(self.nbytes, np.uint8)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the data set)
        self._file.truncate(self.nbytes)
        return np.memmap(self._file, np.uint8, "r+")

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cut(index, self.epoch)

    def cut(self, index: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A crop as it is seen in an epoch; safe to call from several threads."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        seed = int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        planes = [torch.from_numpy(codes).permute(2, 0, 1) for codes in self.frames[self._of[index]]]
        both = random_crop(*planes, size=self.size, generator=generator)
        if self.flip:
            turns, mirrored = divmod(int(torch.randint(8, (), generator=generator)), 2)
            both = [part.rot90(turns, (1, 2)) for part in both]
            both = [part.flip(2) for part in both] if mirrored else both
        low, high = (part.contiguous().float().div(255) for part in both)
        return low, high


def _sizes(pair: Pair) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of the small and of the large frame, from the headers of their files."""
    found = []
    for path in pair:
        try:
            with Image.open(path) as picture:
                found.append((picture.height, picture.width))
        except OSError as error:
            raise FrameError(str(path), expected="an image", got=str(error)) from None
    return found[0], found[1]
