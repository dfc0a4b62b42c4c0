"""Moving photographs: clips whose every frame is computed, to train and to try restoration on without any film.

The camera pans and zooms over photographs that ship inside scikit-image, and words and shapes with hard edges pass
before them. A frame is a function of a :class:`Scene` and a moment. A photograph that is larger than the frame is
never enlarged, so that its frames are as sharp as a picture of their size can be. Images are sRGB codes in [0, 1].
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from .. import runtime
from ..errors import I2IError
from ..frames import write_video

_FINE = 4  # shapes are drawn this much larger than they are shown, and shrunk as they are placed
_SHAPES = ("", "bars", "checks", "star", "rings")

View = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Scene:
    """A photograph, the way of the camera over it, and what passes before it.

    Attributes:
        name: Of the clip.
        photo: In :data:`PHOTOS`.
        start: What the first frame sees: x and y of its centre and its extent, as shares of the photograph; an extent
            of 1 is the largest window of the frame's shape.
        end: What the last frame would see after one second.
        words: A line of text that crosses the frame from the right, or none.
        shape: "bars", "checks", "star" or "rings", which crosses from the left and turns nothing; or none.
        ink: Colour of words and shape, sRGB in [0, 1].
        height: Of the line of text, as a share of the frame's.
    """

    name: str
    photo: str
    start: View
    end: View
    words: str = ""
    shape: str = ""
    ink: tuple[float, float, float] = (1.0, 1.0, 1.0)
    height: float = 0.12

    def __post_init__(self) -> None:
        if self.photo not in PHOTOS:
            raise I2IError("photograph", expected="one of " + ", ".join(PHOTOS), got=repr(self.photo))
        if self.shape not in _SHAPES:
            raise I2IError("shape", expected="one of " + ", ".join(filter(None, _SHAPES)), got=repr(self.shape))
        if not (0 < self.start[2] <= 1 and 0 < self.end[2] <= 1):
            raise I2IError("extent", expected="above 0, at most 1", got=(self.start[2], self.end[2]))


PHOTOS = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "hubble", "motorcycle",
    "motorcycle_right", "page", "retina", "rocket", "tissue",
)  # fmt: skip


@functools.lru_cache(maxsize=16)
def photo(name: str) -> Image.Image:
    """A photograph inside scikit-image, RGB."""
    from skimage import data

    makers = {
        "hubble": data.hubble_deep_field,
        "motorcycle": lambda: data.stereo_motorcycle()[0],
        "motorcycle_right": lambda: data.stereo_motorcycle()[1],
        "tissue": data.immunohistochemistry,
    }
    return Image.fromarray((makers.get(name) or getattr(data, name))()).convert("RGB")


def frame(scene: Scene, second: float, *, height: int, width: int) -> torch.Tensor:
    """One frame.

    Args:
        scene: What is seen.
        second: When.
        height: Pixels.
        width: Pixels.

    Returns:
        (3, height, width) float32, sRGB codes in [0, 1] that are whole 8-bit numbers.

    Raises:
        I2IError: If a side is below 16 pixels.

    Example:
        >>> frame(SCENES[0], 0.5, height=32, width=48).shape
        torch.Size([3, 32, 48])
    """
    if min(height, width) < 16:
        raise I2IError("frame size", expected="at least 16×16 pixels", got=f"{height}×{width} (height×width)")
    whole = photo(scene.photo)
    picture = whole.resize((width, height), Image.Resampling.LANCZOS, box=_window(scene, second, whole, height, width))
    if scene.shape:
        side = round(0.55 * height)
        drift = 0.5 + 0.5 * np.sin(1.3 * second)
        _lay(
            picture, _drawn(scene.shape, side), scene.ink, (second * 0.45 % 1.4 - 0.4) * width, drift * (height - side)
        )
    if scene.words:
        line = _written(scene.words, max(6, round(scene.height * height)))
        travel = width + line.width / _FINE
        _lay(picture, line, scene.ink, width - second * 0.4 % 1 * travel, 0.8 * height - line.height / _FINE / 2)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


def frames(scene: Scene, count: int, *, height: int, width: int, fps: float = 24.0) -> Iterator[torch.Tensor]:
    """The frames of a clip, one by one.

    Args:
        scene: What is seen.
        count: How many.
        height: Pixels.
        width: Pixels.
        fps: Frames per second.
    """
    return (frame(scene, i / fps, height=height, width=width) for i in range(count))


def scenes(
    count: int, *, seed: int = 0, photos: Sequence[str] = PHOTOS, extent: tuple[float, float] = (0.35, 1.0)
) -> list[Scene]:
    """Scenes drawn at random: photographs in turn, with other windows, speeds, words and shapes every time.

    Args:
        count: How many.
        seed: The same gives the same.
        photos: To choose from.
        extent: Least and largest share of a photograph that is seen at first: a large one in a small frame is crisp.

    Raises:
        I2IError: If there is no such photograph, or the shares are none.

    Example:
        >>> [scene.name for scene in scenes(3, photos=("coffee", "rocket"))]
        ['coffee_0_000', 'rocket_0_001', 'coffee_0_002']
    """
    if not 0 < extent[0] <= extent[1] <= 1:
        raise I2IError("extent", expected="two shares above 0, at most 1, in order", got=extent)
    rng, drawn = np.random.default_rng(seed), []
    for number in range(count):
        share = rng.uniform(*extent)
        start = np.array([rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), share])
        step = np.array([*(share * rng.normal(0, 0.25, 2)), share * rng.normal(0, 0.12)])
        end = np.clip(start + step, (0, 0, min(0.3, share)), 1)
        chosen = photos[number % len(photos)]
        words = " ".join(rng.choice(_WORDS, 5)) if rng.random() < 0.35 else ""
        shape = str(rng.choice(_SHAPES[1:])) if rng.random() < 0.25 else ""
        ink, size = tuple(rng.random(3).round(2).tolist()), round(rng.uniform(0.07, 0.2), 3)
        view = [tuple(point.round(4).tolist()) for point in (start, end)]
        drawn.append(
            Scene(f"{chosen}_{seed}_{number:03d}", chosen, *view, words=words, shape=shape, ink=ink, height=size)
        )
    return drawn


_WORDS = (
    "Light",
    "falls",
    "where",
    "edges",
    "meet;",
    "24",
    "frames",
    "1080",
    "lines,",
    "(Qx9",
    "&",
    "wz7)",
    "--",
    "KINO",
)

SCENES: tuple[Scene, ...] = (
    Scene("coffee", "coffee", (0.45, 0.5, 0.8), (0.6, 0.5, 0.62), words="one frame is never enough 0123456789"),
    Scene("rocket", "rocket", (0.3, 0.55, 0.6), (0.62, 0.5, 0.75), shape="bars", ink=(0.95, 0.8, 0.2)),
    Scene("astronaut", "astronaut", (0.5, 0.35, 0.9), (0.45, 0.3, 0.6), shape="star", ink=(0.1, 0.25, 0.6)),
)  # of the committed sample


def _window(scene: Scene, second: float, whole: Image.Image, height: int, width: int) -> tuple[float, ...]:
    """Left, top, right and bottom of what a frame sees, in pixels of the photograph; it stays inside, and sways."""
    sway = 0.5 - 0.5 * np.cos(np.pi * second)  # to the end in a second, and back in another
    x, y, extent = (a + (b - a) * sway for a, b in zip(scene.start, scene.end, strict=True))
    most = min(whole.width, whole.height * width / height)
    w = max(extent * most, min(width, most))  # not enlarged, as long as the photograph is large enough
    h = w * height / width
    left = float(np.clip(x * whole.width - w / 2, 0, whole.width - w))
    top = float(np.clip(y * whole.height - h / 2, 0, whole.height - h))
    return left, top, min(left + w, whole.width), min(top + h, whole.height)


@functools.lru_cache(maxsize=32)
def _written(words: str, height: int) -> Image.Image:
    """The coverage of a line of text, drawn finely."""
    font = ImageFont.load_default(size=height * _FINE)
    left, top, right, bottom = font.getbbox(words)
    mask = Image.new("L", (int(right - left) + 1, int(bottom - top) + 1))
    ImageDraw.Draw(mask).text((-left, -top), words, fill=255, font=font)
    return mask


@functools.lru_cache(maxsize=32)
def _drawn(shape: str, side: int) -> Image.Image:
    """The coverage of a shape, drawn finely."""
    n = side * _FINE
    y, x = (np.mgrid[0:n, 0:n] + 0.5) / n * 2 - 1
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    inside = {
        "bars": np.sin(12 * (x + 0.3 * y)) > 0,
        "checks": (np.sin(9 * x) > 0) != (np.sin(9 * y) > 0),
        "star": radius < 0.62 + 0.36 * np.cos(7 * angle),
        "rings": (radius < 1) & (np.sin(20 * radius**1.5) > 0),
    }[shape]
    return Image.fromarray((inside * 255).astype(np.uint8))


def _lay(picture: Image.Image, mask: Image.Image, ink: Sequence[float], left: float, top: float) -> None:
    """Paint with a finely drawn coverage whose corner lies at any fraction of a pixel."""
    x, y = int(np.floor(left)), int(np.floor(top))
    size = -(-mask.width // _FINE) + 1, -(-mask.height // _FINE) + 1
    fine = Image.new("L", (size[0] * _FINE, size[1] * _FINE))
    fine.paste(mask, (round((left - x) * _FINE), round((top - y) * _FINE)))
    colour = tuple(round(255 * part) for part in ink)
    picture.paste(colour, (x, y), fine.resize(size, Image.Resampling.BOX))


def write_clips(
    folder: str | Path,
    chosen: Sequence[Scene] = SCENES,
    *,
    count: int = 24,
    height: int = 192,
    width: int = 256,
    fps: float = 24.0,
    crf: int = 12,
) -> Path:
    """Write clips as videos, ``<folder>/<name>.mp4``; those that are there are kept.

    Args:
        folder: Where.
        chosen: The scenes.
        count: Frames of each.
        height: Pixels, even.
        width: Pixels, even.
        fps: Frames per second.
        crf: As of :func:`i2ilib.frames.write_video`.

    Returns:
        ``folder``.
    """
    folder = Path(folder)
    for scene in tqdm(chosen, desc="scenes", unit="clip", leave=False):
        path = folder / f"{scene.name}.mp4"
        if not path.exists():
            shown = frames(scene, count, height=height, width=width, fps=fps)
            write_video(path, (f.mul(255).byte().permute(1, 2, 0).numpy() for f in shown), fps=fps, crf=crf)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m i2ilib.datasets.moving``: write moving photographs as videos."""
    parser = argparse.ArgumentParser(prog="python -m i2ilib.datasets.moving", description="Write moving photographs.")
    parser.add_argument("out", type=Path, nargs="?", default=runtime.DATA / "restoration", help="folder of the videos")
    parser.add_argument("--scenes", type=int, help="how many, drawn at random (default: those of the sample)")
    parser.add_argument("--extent", type=float, nargs=2, default=(0.35, 1.0), help="of those: the share that is seen")
    parser.add_argument("--frames", type=int, default=24, help="of each (default: 24)")
    parser.add_argument("--size", default="256x192", help="width x height, pixels (default: 256x192)")
    parser.add_argument("--crf", type=int, default=12, help="of x264 (default: 12)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    width, height = map(int, options.size.split("x"))
    chosen = SCENES
    if options.scenes:
        chosen = scenes(options.scenes, seed=options.seed, extent=tuple(options.extent))
    write_clips(options.out, chosen, count=options.frames, height=height, width=width, crf=options.crf)


if __name__ == "__main__":
    main()
