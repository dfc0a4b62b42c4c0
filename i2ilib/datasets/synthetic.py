"""Small film clips whose alpha is known exactly: procedural actors with real hair, light and motion blur.

The actors stand in for VideoMatte240K where it is not at hand, in the same file layout. Everything is computed from
the parameters of an :class:`Actor`, a time and a size; cloth and backgrounds come from photographs that ship inside
scikit-image.

Conventions, as VideoMatte240K is used:

- Colours are sRGB code values in [0, 1] (8 bits in files). A frame is the mean of several renders while the shutter is
  open; alpha is their mean coverage, the foreground their mean coverage-weighted colour divided by alpha.
- The foreground is straight (not multiplied by alpha), and black where alpha is 0.
- A composite is ``alpha * foreground + (1 - alpha) * background``, computed on the sRGB code values.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from .. import runtime
from ..errors import I2IError
from ..frames import write_video
from . import _hair as hair
from . import _paint as paint
from ._render import render

VERSION = 1  # of the generator: a finished clip of another version is rendered again
DEFAULT_ROOT = runtime.CACHE / "videomatte_synthetic"
SAMPLE_START = 0.25  # seconds: a turn of the head and a sweep of the arm follow

RGB = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Actor:
    """One person, how they move, and where they stand. Colours are sRGB in [0, 1]; lengths are half heads."""

    name: str
    seed: int
    skin: RGB
    hair: RGB
    style: hair.Style
    cloth: RGB
    photo: str  # background: motorcycle, coffee, rocket, chelsea, brick or grass
    texture: str = "grass"  # photograph whose grain makes the cloth: grass, gravel or brick
    collar: str = "crew"  # crew, vee or roll
    stripes: float = 0.0  # stripes per half head; 0 for plain cloth
    eyes: RGB = (0.28, 0.18, 0.10)
    lips: RGB = (0.70, 0.36, 0.34)
    beard: float = 0.0  # 0 to 1
    build: float = 0.3  # 0 slender, 1 broad
    bust: float = 0.0
    tint: RGB = (1.0, 1.0, 1.0)  # multiplies the background
    crop: tuple[float, float, float] = (0.5, 0.5, 1.0)  # centre x and y, share of the photograph that is seen
    blur: float = 0.010  # radius of the background's defocus, in frame heights
    key_angle: tuple[float, float] = (-40.0, 35.0)  # azimuth (right is positive) and elevation of the key, degrees
    key: RGB = (1.0, 0.95, 0.88)
    rim: RGB = (0.55, 0.68, 1.0)
    position: tuple[float, float] = (0.5, 0.40)  # of the head, in frame widths and heights
    size: float = 0.185  # half a head, in frame heights
    sway: float = 0.05  # of the body, radians
    turn: float = 0.40  # of the head, radians
    tempo: float = 0.45  # turns of the head per second
    arm: float = 1.0  # 0: both arms hang; 1: one forearm crosses the body
    phase: float = 0.0  # seconds


class Frame(NamedTuple):
    """A rendered frame."""

    fgr: torch.Tensor  # (3, H, W) float32, sRGB in [0, 1], straight; black where alpha is 0
    pha: torch.Tensor  # (1, H, W) float32 coverage in [0, 1]


Hair = hair.Style
ACTORS: tuple[Actor, ...] = (
    Actor(
        "ines", seed=11, skin=(0.87, 0.68, 0.57), hair=(0.33, 0.20, 0.12),
        style=Hair(2.5, 2600, curl=0.05, turns=2.5, lift=0.45, part=0.22, fly_away=0.05),
        cloth=(0.17, 0.30, 0.36), collar="vee", bust=0.8, eyes=(0.25, 0.33, 0.20),
        photo="rocket", crop=(0.40, 0.62, 0.75), key_angle=(38, 34), key=(1.0, 0.88, 0.76), rim=(1.0, 0.66, 0.38),
        position=(0.50, 0.42), size=0.205,
    ),
    Actor(
        "kofi", seed=23, skin=(0.45, 0.29, 0.21), hair=(0.09, 0.07, 0.06),
        style=Hair(0.55, 4200, curl=0.075, turns=5.0, lift=1.3, weight=0.05, locks=220, fly_away=0.10),
        cloth=(0.72, 0.55, 0.20), texture="gravel", build=0.85, beard=0.35, eyes=(0.16, 0.09, 0.05),
        lips=(0.47, 0.27, 0.24), photo="brick", tint=(1.15, 0.72, 0.55), crop=(0.5, 0.45, 0.9), blur=0.012,
        key_angle=(-42, 30), key=(1.0, 0.93, 0.82), rim=(0.55, 0.75, 1.0), phase=1.3, turn=0.35,
    ),
    Actor(
        "mei", seed=37, skin=(0.91, 0.75, 0.64), hair=(0.08, 0.07, 0.08),
        style=Hair(1.5, 3000, lift=0.35, part=0.0, fringe=1.0, fly_away=0.03, locks=140),
        cloth=(0.62, 0.20, 0.22), collar="roll", build=0.15, bust=0.8, eyes=(0.15, 0.09, 0.06),
        lips=(0.75, 0.33, 0.35), photo="coffee", crop=(0.12, 0.25, 0.5), blur=0.016, key_angle=(-30, 42),
        key=(1.0, 0.92, 0.80), rim=(1.0, 0.80, 0.55), phase=2.1, tempo=0.52,
    ),
    Actor(
        "lars", seed=41, skin=(0.90, 0.70, 0.60), hair=(0.72, 0.57, 0.36),
        style=Hair(0.62, 2600, curl=0.02, lift=0.9, weight=0.5, part=-0.3, bald=0.06, fly_away=0.10),
        cloth=(0.80, 0.80, 0.78), stripes=3.2, build=0.75, beard=0.75, eyes=(0.30, 0.45, 0.58),
        lips=(0.72, 0.42, 0.40), photo="motorcycle", crop=(0.75, 0.2, 0.6), blur=0.012, key_angle=(45, 38),
        rim=(0.8, 0.9, 1.0), phase=0.4, turn=0.45,
    ),
    Actor(
        "amara", seed=53, skin=(0.62, 0.42, 0.31), hair=(0.16, 0.10, 0.08),
        style=Hair(1.35, 3600, curl=0.11, turns=6.0, lift=1.0, weight=0.45, locks=160, fly_away=0.08, part=-0.1),
        cloth=(0.90, 0.86, 0.78), texture="gravel", collar="vee", build=0.2, bust=0.8, eyes=(0.22, 0.13, 0.07),
        lips=(0.62, 0.30, 0.30), photo="grass", tint=(0.62, 0.85, 0.32), crop=(0.5, 0.5, 0.8), blur=0.020,
        key_angle=(35, 48), key=(1.0, 0.95, 0.84), rim=(1.0, 0.93, 0.70), phase=3.2, tempo=0.40,
    ),
    Actor(
        "elin", seed=67, skin=(0.92, 0.74, 0.67), hair=(0.66, 0.30, 0.14),
        style=Hair(1.9, 2600, curl=0.06, turns=3.5, lift=0.55, part=-0.2, fly_away=0.07),
        cloth=(0.27, 0.27, 0.33), stripes=0.0, build=0.1, bust=0.8, eyes=(0.28, 0.42, 0.40), lips=(0.78, 0.42, 0.40),
        photo="chelsea", crop=(0.9, 0.1, 0.42), tint=(0.55, 0.62, 0.78), blur=0.020, key_angle=(-48, 32),
        rim=(0.6, 0.78, 1.0), phase=4.4, arm=0.0, turn=0.5,
    ),
)  # fmt: skip


def background(actor: Actor, height: int, width: int) -> torch.Tensor:
    """The plate the actor stands before: a photograph, cropped, out of focus, with film grain.

    Returns:
        (3, height, width) float32, sRGB codes in [0, 1].
    """
    return torch.from_numpy(paint.plate(actor, height, width).copy())


def render_frame(
    actor: Actor, time: float, *, height: int, width: int, shutter: float = 1 / 48, seed: int = 0
) -> Frame:
    """Render one frame.

    Args:
        actor: Who, and how they move.
        time: Middle of the exposure, seconds.
        height: Pixels.
        width: Pixels.
        shutter: Seconds the shutter is open; 0 for no motion blur.
        seed: Of the film grain, together with the time.

    Returns:
        A :class:`Frame`: the same numbers for the same arguments.

    Raises:
        I2IError: If the frame is smaller than 32 pixels.
    """
    if min(height, width) < 32:
        raise I2IError("frame size", expected="at least 32×32 pixels", got=f"{height}×{width} (height×width)")
    colour, alpha = render(actor, float(time), height, width, float(shutter))
    rng = np.random.default_rng([actor.seed, seed, round(time * 1e4) % 2**32])
    fgr = np.clip(colour + paint.grain(rng, height, width), 0, 1) * (alpha > 0)
    return Frame(torch.from_numpy(fgr.astype(np.float32)), torch.from_numpy(alpha.astype(np.float32)))


# --- clips on disc ---------------------------------------------------------------------------------------


def write_clip(
    root: str | Path = DEFAULT_ROOT,
    actor: Actor = ACTORS[0],
    *,
    frames: int,
    height: int,
    width: int,
    split: str = "train",
    name: str | None = None,
    fps: float = 24.0,
    start: float = 0.0,
    quality: int | None = None,
) -> Path:
    """Render a clip in the frame layout of VideoMatte240K; a finished one is kept, a half-written one completed.

    Files: ``<root>/<split>/fgr/<name>/00000.png``, ``<root>/<split>/pha/<name>/00000.png`` (8 bits) and, as our
    addition, the background ``<root>/<split>/bgr/<name>.png`` and ``<root>/<split>/meta/<name>.json``. The last is
    written last and marks the clip as complete.

    Args:
        root: Folder of the data set; a folder in the cache by default.
        actor: Who is seen.
        frames: Number of frames.
        height: Pixels.
        width: Pixels.
        split: ``train`` or ``test``.
        name: Of the clip; the actor's name and the size by default.
        fps: Frames per second; the shutter is open half of the time.
        start: Time of the first frame, seconds.
        quality: JPEG quality of the foreground and background; PNG when None.

    Returns:
        ``root``, ready for :func:`i2ilib.datasets.videomatte.clips`.

    Raises:
        I2IError: If there are no frames, or they are smaller than 32 pixels.
    """
    if frames < 1:
        raise I2IError("frames", expected="at least one", got=frames)
    name = name or f"{actor.name}_{width}x{height}"
    folder, suffix = Path(root) / split, "png" if quality is None else "jpg"
    about = {
        "generator": VERSION,
        "frames": frames,
        "height": height,
        "width": width,
        "fps": fps,
        "start": start,
        "quality": quality,
        "actor": json.loads(json.dumps(dataclasses.asdict(actor))),
    }
    marker, started = folder / "meta" / f"{name}.json", folder / "meta" / f"{name}.partial.json"
    if _holds(marker, about):
        return Path(root)
    if not _holds(started, about):  # other parameters, or another generator: nothing there can be kept
        for kind in ("fgr", "pha"):
            for old in (folder / kind / name).glob("*"):
                old.unlink()
        for old in (marker, *(folder / "bgr").glob(f"{name}.*")):
            old.unlink(missing_ok=True)
        runtime.write_json(started, about)
    plate = folder / "bgr" / f"{name}.{suffix}"
    _save(plate, background(actor, height, width), quality)
    for i in tqdm(range(frames), desc=name, unit="frame", leave=False):
        fgr, pha = folder / "fgr" / name / f"{i:05d}.{suffix}", folder / "pha" / name / f"{i:05d}.png"
        if fgr.exists() and pha.exists():
            continue
        frame = render_frame(actor, start + i / fps, height=height, width=width, shutter=0.5 / fps)
        _save(fgr, frame.fgr, quality)
        _save(pha, frame.pha, None)
    runtime.write_json(marker, about)
    started.unlink()
    return Path(root)


def _holds(path: Path, about: dict) -> bool:
    return path.exists() and json.loads(path.read_text(encoding="utf-8")) == about


def _codes(image: torch.Tensor) -> np.ndarray:
    """8-bit codes (H, W, C) of an image (C, H, W) in [0, 1]."""
    return image.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _save(path: Path, image: torch.Tensor, quality: int | None) -> None:
    codes = _codes(image).squeeze()
    options = {"optimize": True} if quality is None else {"quality": quality, "subsampling": 0, "optimize": True}
    with runtime.atomic_path(path) as temporary:
        Image.fromarray(codes).save(temporary, **options)


def write_sample(root: str | Path = runtime.DATA / "sample") -> Path:
    """The committed sample: a short clip in the frame layout, and its composite as a video, ``clip.mp4``.

    Args:
        root: Where to write; ``data/sample`` by default.

    Returns:
        ``root``.
    """
    from .videomatte import clips, matting_frame

    root = write_clip(root, ACTORS[0], frames=32, height=512, width=768, name="ines", start=SAMPLE_START, quality=92)
    clip = clips(root)[0]
    frames = (_codes(matting_frame(clip, i)[0]) for i in range(len(clip)))
    write_video(root / "clip.mp4", frames, fps=24.0, crf=12)
    return root


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m i2ilib.datasets.synthetic``: render clips from the command line."""
    parser = argparse.ArgumentParser(prog="python -m i2ilib.datasets.synthetic", description="Render matting clips.")
    parser.add_argument("--out", type=Path, default=DEFAULT_ROOT, help="folder of the data set")
    parser.add_argument("--actor", choices=[a.name for a in ACTORS], action="append", help="all when not given")
    parser.add_argument("--frames", type=int, default=75, help="57 + 11 + 7, as the paper uses")
    parser.add_argument("--size", default="1920x1080", help="width x height, pixels")
    parser.add_argument("--split", default="train")
    parser.add_argument("--name", help="of the clip, when there is one")
    parser.add_argument("--fps", type=float, default=24.0)
    parser.add_argument("--start", type=float, default=0.0, help="time of the first frame, seconds")
    parser.add_argument("--jpeg", type=int, metavar="QUALITY", help="foregrounds as JPEG instead of PNG")
    parser.add_argument("--sample", action="store_true", help="write the committed sample clip to --out instead")
    options = parser.parse_args(arguments)
    if options.sample:
        write_sample(options.out)
        return
    width, height = map(int, options.size.split("x"))
    for actor in ACTORS:
        if not options.actor or actor.name in options.actor:
            write_clip(
                options.out, actor, frames=options.frames, height=height, width=width, split=options.split,
                name=options.name, fps=options.fps, start=options.start, quality=options.jpeg,
            )  # fmt: skip


if __name__ == "__main__":
    main()
