"""VideoMatte240K: clips of people with a foreground and an alpha, as frames or as the original videos.

Layouts that are read, per split (``train`` or ``test``)::

    <root>/<split>/fgr/<clip>/00000.jpg …    <root>/<split>/pha/<clip>/00000.jpg …    frames, of any format and depth
    <root>/<split>/fgr/<clip>.mp4            <root>/<split>/pha/<clip>.mp4            videos, as published
    <root>/<split>/bgr/<clip>.png                                                     background (our addition)

The data set: Lin et al., "Real-Time High-Resolution Background Matting", CVPR 2021; 484 clips, 384 of them 4K and
100 HD. All images here are sRGB codes in [0, 1]; the foreground is straight, not multiplied by alpha.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from .. import patches
from ..errors import FrameError, I2IError
from ..frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Frame, coverage, read_image, srgb_codes
from ..frames import names as frame_names
from ..frames import video as frame_video
from ..patches import Grid

PAGE = "https://grail.cs.washington.edu/projects/background-matting-v2/"


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip: a sequence of foregrounds with their alphas."""

    name: str
    fgr: tuple[Path, ...]  # one file a frame, or one video
    pha: tuple[Path, ...]
    plate: Path | None  # the background's file, if there is one
    frames: int
    height: int
    width: int

    def __len__(self) -> int:
        return self.frames

    def frame(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Foreground (3, H, W) and alpha (1, H, W) of one frame, float32, sRGB codes in [0, 1].

        Raises:
            I2IError: If there is no such frame.
            FrameError: If a file cannot be decoded, or foreground and alpha differ in size.
        """
        if not 0 <= index < self.frames:
            raise I2IError(f"frame of {self.name}", expected=f"0 to {self.frames - 1}", got=index)
        if self.fgr[0].suffix.lower() in VIDEO_SUFFIXES:
            fgr, pha = _video(self.fgr[0]).frame(index), _video(self.pha[0]).frame(index)
        else:
            fgr, pha = read_image(self.fgr[index]), read_image(self.pha[index], coverage=True)
        if fgr.rgb.shape != pha.rgb.shape:
            want = f"an alpha of {tuple(fgr.rgb.shape[-2:])} (height, width)"
            raise FrameError(f"{self.name} frame {index}", expected=want, got=tuple(pha.rgb.shape[-2:]))
        return srgb_codes(fgr)[0], coverage(pha)[0]

    @property
    def background(self) -> torch.Tensor | None:
        """The plate (3, H, W) float32, sRGB codes in [0, 1]; None where the data set has none."""
        return None if self.plate is None else srgb_codes(read_image(self.plate))[0]


class _Video:
    """Frames of a video by place; in order they are decoded once, and going back begins at a key frame."""

    def __init__(self, path: Path):
        self.path, self.index, self.place, self.stream = path, frame_video.scan(path), -1, None

    def frame(self, place: int) -> Frame:
        back, self.place = place <= self.place, place
        if back or self.stream is None:
            self.stream = frame_video.read(self.path, self.index, iter(lambda: self.place, None))
        _, frame = next(self.stream)
        if isinstance(frame, FrameError):
            raise frame
        return frame


_video = functools.lru_cache(maxsize=4)(_Video)


def clips(root: str | Path, split: str = "train") -> list[Clip]:
    """The clips of a split, sorted by name.

    Raises:
        I2IError: If a folder is missing or empty, or foregrounds and alphas do not pair up.
        FrameError: If the first frame of a clip cannot be decoded.
    """
    root = Path(root)
    folder = root / split
    remedy = (
        f"Get VideoMatte240K from {PAGE}, or make a small one with i2ilib.datasets.synthetic.write_clip; "
        f"the layout is {root}/train/fgr/<clip>/00000.png beside {root}/train/pha/<clip>/00000.png."
    )
    if not folder.is_dir():
        splits = sorted(p.parent.name for p in root.glob("*/fgr"))
        found = "the splits " + ", ".join(splits) if splits else "nothing" if root.exists() else "no such folder"
        raise I2IError(str(folder), expected="a folder with fgr and pha", got=found, remedy=remedy)
    for kind in ("fgr", "pha"):
        if not (folder / kind).is_dir():
            raise I2IError(str(folder / kind), expected="a folder of clips", got="no such folder", remedy=remedy)
    entries = {kind: _entries(folder / kind) for kind in ("fgr", "pha")}
    if not entries["fgr"]:
        raise I2IError(str(folder / "fgr"), expected="folders of frames, or videos", got="no clip", remedy=remedy)
    if odd := sorted(set(entries["fgr"]) ^ set(entries["pha"])):
        raise I2IError(
            str(folder),
            expected="every clip in fgr and in pha",
            got=f"only one of them for {', '.join(odd[:4])}",
            remedy="Copy the missing half, or remove the other one.",
        )
    return [_clip(folder, name, path, entries["pha"][name]) for name, path in entries["fgr"].items()]


def _entries(folder: Path) -> dict[str, Path]:
    """Clips by name: folders of frames, and videos."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and (path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES):
            name = path.name if path.is_dir() else path.stem
            if name in found:
                remedy = "Rename or remove one of them."
                raise I2IError(str(path), expected="one clip of a name", got=f"{found[name].name} too", remedy=remedy)
            found[name] = path
    return found


def _clip(folder: Path, name: str, fgr: Path, pha: Path) -> Clip:
    plate = next((p for s in IMAGE_SUFFIXES if (p := folder / "bgr" / f"{name}{s}").exists()), None)
    if fgr.is_dir() != pha.is_dir():
        raise I2IError(str(fgr), expected=f"frames or a video, as {pha}", got="the other of the two")
    if fgr.is_dir():
        files = tuple([p for p in sorted(folder.iterdir()) if _is_image(p)] for folder in (fgr, pha))
        counts = tuple(map(len, files))
    else:
        files = ((fgr,), (pha,))
        counts = (_video(fgr).index.count, _video(pha).index.count)
    if counts[0] != counts[1] or not counts[0]:
        raise I2IError(
            str(fgr),
            expected=f"as many foregrounds as alphas, at least one ({pha} has {counts[1]})",
            got=counts[0],
            remedy=f"Extract or render the clip again; the data set's page is {PAGE}.",
        )
    if fgr.is_dir():
        files = _paired(*files)
        size = tuple(read_image(files[0][0]).rgb.shape[-2:])
    else:
        size = _video(fgr).index.size
    return Clip(name, *files, plate, counts[0], *size)


def _paired(fgr: list[Path], pha: list[Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Files of the same frames in playing order: of the same names, or else of the same numbers."""
    keys: tuple[Callable[[Path], object], ...] = (lambda p: p.stem, lambda p: frame_names.numbers(p.stem))
    odd: list[str] = []
    for key in keys:
        ours, theirs = ({key(path): path for path in files} for files in (fgr, pha))
        telling = len(ours) == len(fgr) and len(theirs) == len(pha) and () not in ours.keys() | theirs.keys()
        if telling and ours.keys() == theirs.keys():
            order = sorted(ours, key=lambda frame: frame_names.natural(ours[frame].name))
            return tuple(ours[frame] for frame in order), tuple(theirs[frame] for frame in order)
        if telling or not odd:
            alone = ours.keys() ^ theirs.keys()
            odd = [str(path) for path in (*fgr, *pha) if key(path) in alone]
    raise I2IError(
        str(fgr[0].parent),
        expected=f"a frame for each alpha in {pha[0].parent}, of the same name or number",
        got="no partner for " + (", ".join(odd[:4]) or "two files of one name"),
        remedy="Number both alike.",
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


# --- frames for training -----------------------------------------------------------------------------


def composite(fgr: torch.Tensor, pha: torch.Tensor, bgr: torch.Tensor) -> torch.Tensor:
    """``pha * fgr + (1 - pha) * bgr`` on sRGB codes, as VideoMatte240K is used.

    Args:
        fgr: (..., 3, H, W) straight foreground, sRGB in [0, 1].
        pha: (..., 1, H, W) alpha in [0, 1].
        bgr: (..., 3, H, W) background, sRGB in [0, 1].

    Returns:
        (..., 3, H, W) sRGB in [0, 1].

    Example:
        >>> half = torch.full((1, 2, 2), 0.5)
        >>> composite(torch.ones(3, 2, 2), half, torch.zeros(3, 2, 2)).unique()
        tensor([0.5000])
    """
    if fgr.shape[-2:] != pha.shape[-2:] or fgr.shape[-2:] != bgr.shape[-2:]:
        raise I2IError(
            "composite",
            expected=f"three images of one size, {tuple(fgr.shape[-2:])} (height, width)",
            got=f"alpha {tuple(pha.shape[-2:])}, background {tuple(bgr.shape[-2:])}",
            remedy="Resize the background with torch.nn.functional.interpolate.",
        )
    return pha * fgr + (1 - pha) * bgr


def matting_frame(
    clip: Clip, index: int, *, mode: Literal["composite", "foreground"] = "composite", bgr: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A training pair: what the network sees, and the alpha it should give.

    Args:
        clip: From :func:`clips`.
        index: Frame.
        mode: ``composite``: the person before a background. ``foreground``: the foreground frame itself, as in
            Murphy et al., section 3.3.
        bgr: Background (3, H, W), sRGB in [0, 1]; the clip's own plate when None.

    Returns:
        source (3, H, W) sRGB in [0, 1], alpha (1, H, W) in [0, 1].

    Raises:
        I2IError: If the mode is unknown, or a composite is asked for and there is no background.
    """
    if mode not in ("composite", "foreground"):
        raise I2IError("mode", expected="composite or foreground", got=repr(mode))
    fgr, pha = clip.frame(index)
    if mode == "foreground":
        return fgr, pha
    bgr = clip.background if bgr is None else bgr
    if bgr is None:
        raise I2IError(
            f"clip {clip.name}",
            expected="a background to composite over",
            got="none beside the clip",
            remedy="Pass bgr=, or use mode='foreground' as the paper does.",
        )
    return composite(fgr, pha, bgr), pha


class Split(NamedTuple):
    """Frame indices of one clip."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def paper_split(frames: int | None = None, *, n_train: int = 57, n_validation: int = 11, n_test: int = 7) -> Split:
    """Frames for training, validation and testing: the paper's 57, 11 and 7, or as many as these are in proportion.

    The paper does not say which frames it holds out. Neighbouring frames are near-copies, so frames drawn at random
    would test what was trained on. Here the clip is cut in time, in the order train, validation, test, without a gap:
    only the frames beside a cut have a neighbour on the other side.

    Args:
        frames: Frames in the clip; exactly as many as the three numbers ask for when None. A longer clip is sampled
            evenly, a shorter one is divided in proportion.
        n_train: Frames for training.
        n_validation: Frames for validation.
        n_test: Frames for the test.

    Raises:
        I2IError: If a part would be empty.

    Example:
        >>> [len(part) for part in paper_split()], paper_split(frames=32).test
        ([57, 11, 7], (29, 30, 31))
    """
    wanted = (n_train, n_validation, n_test)
    total = sum(wanted)
    frames = total if frames is None else frames
    if min(wanted) < 1 or frames < 3:
        raise I2IError("paper_split", expected="at least one frame in each part", got=f"{wanted} of {frames} frames")
    picked = min(frames, total)
    indices = tuple(int(i) for i in np.linspace(0, frames - 1, picked).round())
    test = max(1, round(picked * n_test / total))
    validation = max(1, round(picked * n_validation / total))
    cut = picked - test - validation
    return Split(indices[:cut], indices[cut : cut + validation], indices[cut + validation :])


class PatchDataset(torch.utils.data.Dataset):
    """Patches cut on the fly from frames that are held in memory as 8-bit codes.

    Every frame is scaled to the nearest multiple of the patch (section 3.3.1 of the paper) when it is loaded.

    Args:
        clip: From :func:`clips`, or several clips.
        indices: Frames to use, of every clip; all when None.
        patch: Side of a patch, pixels.
        stride: Distance between patches, pixels; the paper's 64.
        mode: As in :func:`matting_frame`.
        bgr: Background (3, H, W) for ``composite`` instead of the clips' own.
        flip: Mirror patches left to right at random.
        seed: Of the mirrors; a patch is a function of the seed, the epoch and its index.
        budget_bytes: Most memory that frames may take; the data set stops with an error rather than swap.
        progress: Show a bar while frames are decoded.

    Items are source (3, patch, patch) and alpha (1, patch, patch), float32, sRGB codes in [0, 1].

    Raises:
        I2IError: If the frames do not fit in the budget, or there are none.
        FrameError: If a frame cannot be decoded.
    """

    def __init__(
        self,
        clip: Clip | Sequence[Clip],
        indices: Sequence[int] | None = None,
        *,
        patch: int = patches.PATCH,
        stride: int = 64,
        mode: Literal["composite", "foreground"] = "composite",
        bgr: torch.Tensor | None = None,
        flip: bool = False,
        seed: int = 0,
        budget_bytes: int = 4 * 2**30,
        progress: bool = False,
    ):
        chosen = [clip] if isinstance(clip, Clip) else list(clip)
        frames = [(c, i) for c in chosen for i in (range(len(c)) if indices is None else indices)]
        if not frames:
            raise I2IError("PatchDataset", expected="at least one frame", got="none")
        sizes = [patches.nearest_multiple(c.height, c.width, patch=patch) for c, _ in frames]
        self.nbytes = sum(4 * h * w for h, w in sizes)  # three colours and alpha
        if self.nbytes > budget_bytes:
            raise I2IError(
                "PatchDataset",
                expected=f"frames within budget_bytes={budget_bytes}",
                got=f"{self.nbytes} bytes for {len(frames)} frames",
                remedy="Use fewer frames (indices=), or raise the budget.",
            )
        self.patch, self.flip, self.seed, self.epoch = patch, flip, seed, 0
        self._grids = [Grid(*size, patch=patch, stride=stride) for size in sizes]
        self._ends = list(itertools.accumulate(len(grid) for grid in self._grids))
        plates = {c.name: c.background if bgr is None and mode == "composite" else bgr for c in chosen}

        def load(frame: tuple[Clip, int]) -> torch.Tensor:
            """Source and alpha as codes (4, H, W) uint8, scaled to whole patches."""
            c, i = frame
            pair = matting_frame(c, i, mode=mode, bgr=plates[c.name])
            return patches.fit(torch.cat(pair)[None], patch=patch)[0].mul(255).round().to(torch.uint8)

        # a video has one reader and is decoded in order; single images do not wait for each other
        readers = 1 if any(c.fgr[0].suffix.lower() in VIDEO_SUFFIXES for c in chosen) else 2
        with ThreadPoolExecutor(readers) as pool:
            loaded = pool.map(load, frames)
            self.frames = list(tqdm(loaded, "frames", len(frames), leave=False, unit="frame", disable=not progress))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cut(index, self.epoch)

    def cut(self, index: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A patch as it is seen in an epoch; safe to call from several threads."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        k = bisect.bisect_right(self._ends, index)
        grid = self._grids[k]
        row, column = divmod(index - (self._ends[k] - len(grid)), grid.columns)
        y, x = grid.tops[row], grid.lefts[column]
        both = self.frames[k][:, y : y + self.patch, x : x + self.patch]
        if self.flip and np.random.default_rng([self.seed, epoch, index]).random() < 0.5:
            both = both.flip(-1)
        both = both.float().div(255)
        return both[:3], both[3:]
