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

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage, signal

from .. import runtime
from ..errors import I2IError
from . import _figure as figure
from . import _hair as hair

VERSION = 1  # of the generator: a finished clip of another version is rendered again
DEFAULT_ROOT = runtime.CACHE / "videomatte_synthetic"
PELVIS, NECK = complex(0, 6.0), complex(0, 0.95)  # pivots in figure coordinates

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
    tint: RGB = (1.0, 1.0, 1.0)  # multiplies the background
    crop: tuple[float, float, float] = (0.5, 0.5, 1.0)  # centre x and y, share of the photograph that is seen
    blur: float = 0.010  # radius of the background's defocus, in frame heights
    key_angle: tuple[float, float] = (-40.0, 35.0)  # azimuth (right is positive) and elevation of the key light, degrees
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


H = hair.Style
ACTORS: tuple[Actor, ...] = (
    Actor("ines", 11, (0.86, 0.66, 0.55), (0.30, 0.17, 0.09), H(2.6, 2600, curl=0.045, turns=3.0, lift=0.55, part=0.22),
          (0.16, 0.30, 0.36), "rocket", collar="vee", crop=(0.40, 0.62, 0.75), key_angle=(38, 34),
          key=(1.0, 0.86, 0.70), rim=(1.0, 0.62, 0.30), position=(0.52, 0.40), eyes=(0.25, 0.33, 0.20)),
)  # fmt: skip


# --- motion ------------------------------------------------------------------------------------------


class Pose(NamedTuple):
    """Where the parts are at some times; arrays over time."""

    body_turn: np.ndarray  # radians
    body_shift: np.ndarray  # complex: x + iy
    head_at: np.ndarray  # complex
    head_turn: np.ndarray  # (..., 3, 3)
    head_roll: np.ndarray
    elbow: np.ndarray  # complex
    wrist: np.ndarray  # complex
    hand_turn: np.ndarray
    yaw: np.ndarray


def pose(actor: Actor, time: np.ndarray | float) -> Pose:
    """The actor's pose at ``time`` (seconds, scalar or array)."""
    t = np.asarray(time, float) + actor.phase
    beat = 2 * np.pi * actor.tempo * t
    body_turn = actor.sway * np.sin(0.5 * beat + 0.6) + 0.3 * actor.sway * np.sin(1.3 * beat)
    body_shift = 0.10 * np.sin(0.5 * beat) + 1j * 0.018 * np.sin(1.7 * t)
    yaw = actor.turn * np.tanh(2.2 * np.sin(beat)) + 0.05 * np.sin(2.1 * t)
    pitch = 0.05 * np.sin(0.83 * beat + 1) + 0.05 * np.cos(beat) ** 4
    head_roll = body_turn * 0.5 + 0.10 * np.sin(beat - 0.5)

    def body(point: complex) -> np.ndarray:
        return PELVIS + np.exp(1j * body_turn) * (point - PELVIS) + body_shift

    # minus i: up; the head's centre swings about the neck
    head_at = body(NECK) + np.exp(1j * head_roll) * (-NECK) + 0.10 * np.sin(yaw) + 1j * 0.10 * pitch
    shoulder = body(complex(1.22 + 0.18 * actor.build, 1.90))
    swing = 0.5 - 0.5 * np.tanh(2.4 * np.cos(1.25 * beat + 0.4))  # held, then fast
    upper = 0.16 + actor.arm * (0.10 + 0.10 * swing)  # from straight down, outwards
    elbow = shoulder + 1.62 * np.exp(1j * (np.pi / 2 - upper))
    lower = np.pi / 2 - 0.1 + actor.arm * (np.pi * 0.60 - 0.25 + 0.85 * (1 - swing) - 0.35 * swing)
    wrist = elbow + 1.42 * np.exp(1j * lower)
    hand_turn = actor.arm * (0.25 * np.sin(2.5 * beat) + 0.25)
    return Pose(
        body_turn, body_shift, head_at, figure.rotation(yaw, pitch, head_roll), head_roll, elbow, wrist, hand_turn, yaw
    )


# --- colours, textures, background -------------------------------------------------------------------


def _linear(srgb: np.ndarray | RGB) -> np.ndarray:
    s = np.asarray(srgb, np.float32)
    return np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _encode(linear: np.ndarray) -> np.ndarray:
    """Scene-linear to sRGB codes, with a soft shoulder above 0.7."""
    x = np.clip(linear, 0, None)
    x = np.where(x > 0.7, 0.7 + 0.3 * (1 - np.exp(-(x - 0.7) / 0.3)), x)
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _photo(name: str) -> np.ndarray:
    """A photograph inside scikit-image as (3, h, w) float32 linear."""
    from skimage import data

    makers = {
        "motorcycle": lambda: data.stereo_motorcycle()[0],
        "coffee": data.coffee,
        "rocket": data.rocket,
        "chelsea": data.chelsea,
        "brick": data.brick,
        "grass": data.grass,
        "gravel": data.gravel,
    }
    if name not in makers:
        raise I2IError("photograph", expected="one of " + ", ".join(makers), got=repr(name))
    image = makers[name]().astype(np.float32) / 255
    image = np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image
    return _linear(image).transpose(2, 0, 1)


@functools.lru_cache(maxsize=16)
def _cloth_grain(name: str) -> np.ndarray:
    """Fine grain of a photograph, (512, 512), zero mean and unit deviation, made to tile."""
    grey = _photo(name).mean(0)[:512, :512]
    grey = grey - ndimage.gaussian_filter(grey, 12, mode="wrap")
    return ((grey - grey.mean()) / grey.std()).clip(-2.5, 2.5).astype(np.float32)


def background(actor: Actor, height: int, width: int) -> torch.Tensor:
    """The plate the actor stands before: a photograph, cropped, out of focus, with film grain.

    Returns:
        (3, height, width) float32, sRGB codes in [0, 1].
    """
    return torch.from_numpy(_plate(actor, height, width).copy())


@functools.lru_cache(maxsize=4)
def _plate(actor: Actor, height: int, width: int) -> np.ndarray:
    photo = _photo(actor.photo)
    _, h, w = photo.shape
    cx, cy, share = actor.crop
    view_w = min(w, h * width / height) * share
    view_h = view_w * height / width
    left = np.clip(cx * w - view_w / 2, 0, w - view_w)
    top = np.clip(cy * h - view_h / 2, 0, h - view_h)
    box = (left, top, left + view_w, top + view_h)
    planes = [
        np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC, box=box)) for p in photo
    ]
    plate = np.clip(np.stack(planes), 0, None)
    radius = max(actor.blur * height, 0.6)
    n = int(np.ceil(radius)) + 1
    yy, xx = np.mgrid[-n : n + 1, -n : n + 1]
    disc = np.clip(radius + 0.5 - np.hypot(xx, yy), 0, 1)
    padded = np.pad(plate, ((0, 0), (n, n), (n, n)), mode="reflect")
    plate = signal.oaconvolve(padded, disc[None] / disc.sum(), mode="valid", axes=(1, 2)).astype(np.float32)
    plate *= np.asarray(actor.tint, np.float32)[:, None, None]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    plate *= 1 - 0.35 * (((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) * 2)  # vignette
    rng = np.random.default_rng(actor.seed)
    return np.clip(_encode(plate) + _grain(rng, height, width), 0, 1).astype(np.float32)


def _grain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Film grain (3, H, W): mostly common to the three layers, a little coarser at high resolution."""
    common = rng.standard_normal((1, height, width), np.float32)
    own = rng.standard_normal((3, height, width), np.float32)
    sigma = 0.35 + 0.35 * height / 1080
    field = ndimage.gaussian_filter(0.8 * common + 0.45 * own, (0, sigma, sigma))
    return 0.011 * field / field.std()


def _light(actor: Actor) -> hair.Light:
    azimuth, elevation = np.radians(actor.key_angle)
    key_dir = np.array([np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    plate = _linear(_plate(actor, 90, 160))
    sky, ground = plate[:, :45].mean((1, 2)), plate[:, 45:].mean((1, 2))
    sky, ground = (c / max(c.max(), 1e-3) * 0.5 + 0.5 for c in (sky, ground))  # tinted by the place
    rim_dir = np.array([-np.sign(azimuth or 1.0) * 0.85, -0.5, 0])
    return hair.Light(
        key_dir, 0.92 * _linear(actor.key), 0.30 * sky, 0.16 * ground, rim_dir, 1.5 * _linear(actor.rim)
    )


# --- one frame -----------------------------------------------------------------------------------------


class _View(NamedTuple):
    """Figure coordinates on a pixel grid."""

    scale: float  # pixels per half head
    origin: complex  # of the figure, in pixels
    shape: tuple[int, int]

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        y, x = np.mgrid[0 : self.shape[0], 0 : self.shape[1]].astype(np.float32)
        return (x - self.origin.real) / self.scale, (y - self.origin.imag) / self.scale

    def coarse(self, step: int) -> _View:
        h, w = self.shape
        return _View(self.scale / step, (self.origin - (step - 1) / 2 * (1 + 1j)) / step, (-(-h // step), -(-w // step)))


class _Body(NamedTuple):
    """The body's surfaces in one pose."""

    neck: figure.Surface
    trunk: figure.Surface
    head: figure.Surface
    sleeve: figure.Surface
    hand: figure.Surface


def _body(actor: Actor, p: Pose, x: np.ndarray, y: np.ndarray) -> _Body:
    wide = 1.0 + 0.16 * actor.build
    lx, ly = _local(p, x, y)
    neck, trunk = figure.torso(lx, ly, actor.build)
    elbow = (complex(p.elbow) - PELVIS - complex(p.body_shift)) * np.exp(-1j * p.body_turn) + PELVIS
    shoulder = np.array([1.22 * wide, 1.90, -0.15])
    left = figure.arm_upper(lx, ly, shoulder * [-1, 1, 1], np.array([-1.22 * wide - 0.32, 3.6, -0.2]), actor.build)
    right = figure.arm_upper(lx, ly, shoulder, np.array([elbow.real, elbow.imag, 0.05]), actor.build)
    trunk = figure.melt(trunk, (left, 0.16), (right, 0.16))
    hx, hy = x - np.float32(p.head_at.real), y - np.float32(p.head_at.imag)
    head = figure.head(hx, hy, p.head_turn, actor.build)
    sleeve, hand = figure.forearm(
        x, y, np.array([p.elbow.real, p.elbow.imag, 0.15]), np.array([p.wrist.real, p.wrist.imag, 0.75]),
        float(p.hand_turn), 0.10, actor.build,
    )  # fmt: skip
    return _Body(neck, trunk, head, sleeve, hand)


def _local(p: Pose, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Torso coordinates of figure points."""
    z = (x + 1j * y - PELVIS - p.body_shift) * np.exp(-1j * p.body_turn) + PELVIS
    return z.real.astype(np.float32), z.imag.astype(np.float32)


def _visible(surface: figure.Surface) -> np.ndarray:
    return np.where(surface.inside > 0, surface.z, figure.FAR)


def _mix(base: np.ndarray, over: np.ndarray | RGB, mask: np.ndarray) -> np.ndarray:
    over = np.asarray(over, np.float32)
    over = over[:, None, None] if over.ndim == 1 else over
    return base + (over - base) * mask


def _paint_head(actor: Actor, c: np.ndarray, pixel: float, blink: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Albedo (3, H, W) linear, gloss (H, W) and self-lit sparkle (H, W) of the head at canonical points ``c``."""
    x, y, z = c
    bump, step = figure.bump, figure.smoothstep
    front = step(0.05, 0.3, z)
    skin = _linear(actor.skin)
    mottle = 0.06 * figure.sample(figure.noise(actor.seed, 256, 5.0), x * 70, y * 70)
    pores = 0.025 * figure.sample(figure.noise(actor.seed + 1, 256, 0.8), x * 150, y * 150) * min(1, 0.012 / pixel)
    albedo = skin[:, None, None] * (1 + mottle + pores)
    blood = (
        0.55 * (bump(x, y, -0.36, 0.24, 0.20, 0.15) + bump(x, y, 0.36, 0.24, 0.20, 0.15))
        + 0.55 * bump(x, y, 0, 0.27, 0.11, 0.10)
        + 0.7 * step(0.62, 0.70, np.abs(x)) * step(0.4, 0.2, np.abs(y - 0.06))
        + 0.25 * bump(x, y, 0, 0.82, 0.2, 0.1)
    ) * (0.5 + 0.5 * front)
    albedo = albedo * (1 - blood * np.array([0.03, 0.26, 0.24], np.float32)[:, None, None])
    hollow = bump(x, y, -0.27, -0.01, 0.17, 0.11) + bump(x, y, 0.27, -0.01, 0.17, 0.11)
    albedo = albedo * (1 - 0.22 * front * hollow)
    gloss = 0.10 + 0.08 * bump(x, y, 0, 0.2, 0.12, 0.35) + 0.05 * bump(x, y, 0, -0.45, 0.4, 0.2)

    hair_line = _linear(actor.hair) * 0.55
    if actor.beard:
        jaw = step(0.30, 0.52, y + 0.25 * np.abs(x)) * (1 - 0.9 * bump(x, y, 0, 0.53, 0.2, 0.075)) * front
        jaw *= 1 - bump(x, y, 0, 0.30, 0.14, 0.1)
        speck = 1 + 0.35 * figure.sample(figure.noise(actor.seed + 2, 256, 0.9), x * 140, y * 90)
        albedo = _mix(albedo, hair_line, np.clip(actor.beard * jaw * speck, 0, 1))

    lip = np.abs(x) / 0.235
    curve = 0.505 + 0.022 * lip**2 * -1 + 0.012 * np.cos(lip * 5) * (lip < 1)  # the line between the lips
    arch = np.clip(1 - lip**2, 0, 1)
    above = curve - 0.058 * arch**0.8 * (1 - 0.22 * np.exp(-((x / 0.04) ** 2)))
    below = curve + 0.082 * arch**0.7
    mouth = step(-pixel, pixel, y - above) * step(-pixel, pixel, below - y) * front
    tone = 1 + 0.18 * figure.sample(figure.noise(3, 256, 1.2), x * 160, y * 30)
    albedo = _mix(albedo, _linear(actor.lips)[:, None, None] * tone, 0.75 * mouth * step(0.0, 0.25, arch))
    albedo *= 1 - 0.72 * front * np.exp(-(((y - curve) / (0.011 + pixel * 0.4)) ** 2)) * step(0, 0.12, 1.06 - lip)
    gloss = gloss + 0.14 * mouth * bump(x, y, 0, 0.55, 0.16, 0.04)
    albedo *= 1 - 0.75 * front * (bump(x, y, -0.052, 0.325, 0.030, 0.016) + bump(x, y, 0.052, 0.325, 0.030, 0.016))

    sparkle = np.zeros_like(x)
    opening = 1 - blink
    for side in (-1, 1):
        ex, ey = (x - side * 0.268) * side, y - 0.005  # towards the temple is positive
        u = ex / 0.135
        lid = np.clip(1 - u * u, 0, 1)
        upper = -0.066 * opening * lid**0.75 + 0.012 * u - 0.012 * opening
        lower = 0.040 * lid + 0.004 * u
        eye = step(-pixel, pixel, ey - upper) * step(-pixel, pixel, lower - ey) * step(0, 0.1, 1 - np.abs(u)) * front
        white = np.array([0.62, 0.58, 0.55], np.float32)[:, None, None] * (1 - 0.35 * np.clip(u * u, 0, 1))
        gaze = 0.008 * side
        r = np.hypot(ex - gaze, (ey + 0.008) * 0.98)
        iris = step(pixel, -pixel, r - 0.060)
        fibre = 0.75 + 0.25 * np.sin(18 * np.arctan2(ey, ex - gaze)) * step(0.02, 0.05, r) + 4.0 * (r - 0.03)
        ball = _mix(white, _linear(actor.eyes)[:, None, None] * 1.6 * np.clip(fibre, 0.2, 1.6), iris)
        ball = _mix(ball, (0.01, 0.01, 0.01), step(pixel, -pixel, np.abs(r - 0.060) - 0.006) * 0.7)
        ball = _mix(ball, (0.004, 0.004, 0.004), step(pixel, -pixel, r - 0.027))
        ball = ball * (1 - 0.55 * np.exp(-np.clip(ey - upper, 0, None) / 0.022))  # shadow of the upper lid
        albedo = _mix(albedo, ball, eye)
        sparkle += eye * step(pixel, -pixel, np.hypot(ex * side + 0.022, ey + 0.030) - 0.013)
        lash = np.exp(-(((ey - upper + 0.006) / (0.012 + 0.5 * pixel)) ** 2)) * step(-0.02, 0.12, 1.12 - np.abs(u))
        albedo *= 1 - 0.86 * front * lash * (0.75 + 0.25 * step(-0.6, 0.8, u))
        rim = np.exp(-(((ey - lower - 0.004) / (0.008 + 0.4 * pixel)) ** 2)) * step(0, 0.1, 1.0 - np.abs(u))
        albedo *= 1 - 0.28 * front * rim
        crease = np.exp(-(((ey - upper + 0.042 - 0.02 * blink) / 0.014) ** 2)) * step(0, 0.2, 1.15 - np.abs(u))
        albedo *= 1 - 0.30 * front * crease
        v = (ex + 0.02) / 0.20
        ridge = ey + 0.185 + 0.035 * np.clip(1 - v * v, 0, 1) - 0.045 * np.clip(v - 0.3, 0, 1) * 1.2
        thick = 0.030 * np.clip(1.05 - np.abs(v), 0, 1) ** 0.5 * (1 - 0.35 * np.clip(v, 0, 1))
        strokes = 0.75 + 0.30 * figure.sample(figure.noise(5, 256, 1.0), (ex + 0.9 * ey) * 220, (ey - 0.4 * ex) * 45)
        brow = step(thick + 0.012, thick - 0.012, np.abs(ridge)) * step(0, 0.2, 1.04 - np.abs(v))
        albedo = _mix(albedo, hair_line * 0.8, np.clip(0.85 * brow * strokes * front, 0, 0.95))

    azimuth = np.abs(np.arctan2(x, z + 0.08))
    line = np.interp(azimuth, [0, 0.6, 0.95, 1.25, 1.45, 1.75, 3.15], [-0.60, -0.55, -0.32, 0.15, 0.3, 0.3, 0.8])
    line -= actor.style.bald * np.cos(azimuth / 2)
    scalp = step(0.03, -0.10, (y + 0.22) / 0.79 - (line) + 0.02 * mottle)
    albedo = _mix(albedo, _linear(actor.hair) * 0.5, scalp * 0.92)
    return albedo, gloss * (1 - 0.8 * scalp), sparkle


def _cloth(actor: Actor, u: np.ndarray, v: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Albedo (3, H, W) and relief (H, W, half heads) of the cloth at cloth coordinates ``u``, ``v``."""
    grain = figure.sample(_cloth_grain(actor.texture), u * 150, v * 150)
    fine = np.clip(scale / 220, 0, 1)
    weave = np.sin(u * 260) * np.sin(v * 260) * fine
    wear = figure.sample(figure.noise(actor.seed + 7, 256, 12.0), u * 45, v * 45)
    base = _linear(actor.cloth)
    value = 1 + 0.10 * grain + 0.06 * weave + 0.05 * wear
    albedo = base[:, None, None] * value
    if actor.stripes:
        band = figure.smoothstep(-0.04, 0.04, np.sin(2 * np.pi * actor.stripes * v) - 0.35)
        albedo = _mix(albedo, np.minimum(base * 0.25 + 0.55, 0.8)[:, None, None] * value, band)
    bend = figure.sample(figure.noise(actor.seed + 8, 256, 9.0), u * 30, v * 30)
    folds = figure.sample(figure.noise(actor.seed + 9, 256, 7.0), (u * 0.9 + v * 0.45) * 42 + 5 * bend, (v - u * 0.5) * 11)
    ridges = 1 - np.abs(folds)
    relief = 0.016 * ridges + 0.012 * bend + 0.0016 * weave + 0.0010 * grain
    return albedo, relief.astype(np.float32)


def _collar(actor: Actor, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Above 0: cloth; below 0: skin; about half heads from the collar's edge. Torso coordinates."""
    if actor.collar == "roll":
        return y - 0.98 - 0.10 * (x / 0.4) ** 2 * -1
    if actor.collar == "vee":
        drop = np.clip(y - 1.30, 0, None)
        return (np.abs(x) - 0.56 * (1 - drop / 1.05)) * 0.85
    r = np.sqrt((x / 0.60) ** 2 + (np.clip(y - 1.32, 0, None) / 0.44) ** 2)
    return (r - 1) * 0.5


def _occlusion(z: np.ndarray, scene: np.ndarray, scale: float) -> np.ndarray:
    """Share of the sky that a height field sees, from how deep it lies below its surroundings; 0.25 to 1."""
    scene = np.maximum(scene, -1.2)
    near = ndimage.gaussian_filter(scene, 0.10 * scale) - z
    far = ndimage.gaussian_filter(scene, 0.35 * scale) - z
    return np.clip(1 - 1.5 * np.clip(near, 0, 0.4) - 0.55 * np.clip(far, 0, 0.6), 0.25, 1).astype(np.float32)


def _resize(a: np.ndarray, shape: tuple[int, int], step: int) -> np.ndarray:
    if step == 1:
        return a
    y = (np.arange(shape[0], dtype=np.float32) - (step - 1) / 2) / step
    x = (np.arange(shape[1], dtype=np.float32) - (step - 1) / 2) / step
    t = torch.from_numpy(a.astype(np.float32))[None, None]
    gy = torch.from_numpy((y * 2 / max(a.shape[0] - 1, 1) - 1).astype(np.float32))
    gx = torch.from_numpy((x * 2 / max(a.shape[1] - 1, 1) - 1).astype(np.float32))
    grid = torch.stack(torch.meshgrid(gy, gx, indexing="ij")[::-1], -1)[None]
    return torch.nn.functional.grid_sample(t, grid, padding_mode="border", align_corners=True)[0, 0].numpy()


def _layers(actor: Actor, p: Pose, view: _View, light: hair.Light, hair_tau: np.ndarray, blink: float) -> dict:
    """The body's layers at mid-shutter: name → premultiplied sRGB codes and coverage, (4, H, W) float32."""
    x, y = view.grid()
    step = max(1, round(view.scale / 45))
    low = view.coarse(step)
    coarse, fine = _body(actor, p, *low.grid()), _body(actor, p, x, y)
    parts = {"trunk": ("neck", "trunk"), "head": ("head",), "arm": ("sleeve", "hand")}
    scene = np.maximum.reduce([_visible(s) for s in coarse])
    tau = ndimage.gaussian_filter(hair_tau, 0.05 * view.scale)[::step, ::step]
    shade = np.exp(-0.9 * np.clip(tau, 0, 2))
    lx, ly = round(0.10 * low.scale * light.key_dir[0]), round(0.12 * low.scale * light.key_dir[1])
    shade = np.roll(shade, (-ly, -lx), (0, 1))  # hair throws its shadow away from the key

    out = {}
    for name, members in parts.items():
        surfaces = [getattr(fine, m) for m in members]
        z_low = np.maximum.reduce([getattr(coarse, m).z for m in members])
        key = figure.shadow(z_low, scene, light.key_dir, low.scale)
        ao = _occlusion(z_low, scene, low.scale)
        if name != "arm":
            key, ao = key * shade, ao * (0.45 + 0.55 * shade)
        key, ao = _resize(key, view.shape, step), _resize(ao, view.shape, step)
        paint = {"trunk": _shade_trunk, "head": _shade_head, "arm": _shade_arm}[name]
        colour, alpha = paint(actor, p, view, light, surfaces, x, y, key, ao, blink)
        out[name] = np.concatenate([_encode(colour) * alpha, alpha[None]]).astype(np.float32)
    return out


def _edge(inside: np.ndarray, scale: float) -> np.ndarray:
    """Coverage of an outline that is about one and a half pixels soft."""
    return np.clip(inside * scale / 1.5 + 0.5, 0, 1)


def _shade_trunk(actor, p, view, light, surfaces, x, y, key, ao, blink):
    neck, trunk = surfaces
    lx, ly = _local(p, x, y)
    g = _collar(actor, lx, ly)
    pixel = 1.0 / view.scale
    cloth_albedo, relief = _cloth(actor, lx, ly, view.scale)
    hem = np.exp(-(((g - 0.055) / 0.05) ** 2)) * 0.030 + 0.02
    seam = np.exp(-(((g - 0.12) / 0.012) ** 2))
    z_cloth = trunk.z + relief + hem - 0.012 * seam
    if actor.collar == "roll":
        z_cloth = np.maximum(z_cloth, neck.z + 0.07 + 0.012 * np.sin(lx * 70) + 0.02 * np.cos((ly - 1.15) * 14))
    z_skin = figure.smooth_max(neck.z, trunk.z - 0.03, 0.12)
    cloth = figure.smoothstep(-pixel, pixel, g)
    inside = np.maximum(trunk.inside, neck.inside)
    if actor.collar == "roll":
        inside = np.where(g > 0, np.maximum(inside, neck.inside + 0.06), inside)
    elif actor.collar == "vee":
        collar_bone = 0.025 * np.exp(-(((ly - 1.62 - 0.10 * np.abs(lx)) / 0.05) ** 2)) * figure.smoothstep(0.08, 0.2, np.abs(lx))
        z_skin = z_skin + collar_bone
    contact = 1 - 0.45 * np.exp(-np.clip(-g, 0, None) / 0.06) * (g < 0)
    chin = 1 - 0.35 * figure.smoothstep(1.35, 0.8, ly)
    mottle = 0.05 * figure.sample(figure.noise(actor.seed, 256, 5.0), lx * 70, ly * 70)
    skin_albedo = _linear(actor.skin)[:, None, None] * (1 + mottle) * np.array([1, 0.95, 0.93], np.float32)[:, None, None]
    skin = figure.light_skin(skin_albedo, figure.normals(z_skin, view.scale), light, key * contact, ao * contact * chin, 0.07)
    cloth_ao = ao * (1 - 0.35 * seam)
    fabric = figure.light_cloth(cloth_albedo, figure.normals(z_cloth, view.scale), light, key, cloth_ao, 0.02)
    return _mix(skin, fabric, cloth), _edge(inside, view.scale)


def _shade_head(actor, p, view, light, surfaces, x, y, key, ao, blink):
    (head,) = surfaces
    hx, hy = x - np.float32(p.head_at.real), y - np.float32(p.head_at.imag)
    z = np.maximum(head.z, -1.0)
    c = np.einsum("ji,jhw->ihw", p.head_turn.astype(np.float32), np.stack([hx, hy, z]))
    pixel = 0.8 / view.scale
    albedo, gloss, sparkle = _paint_head(actor, c, pixel, blink)
    cx, cy, cz = c
    front = figure.smoothstep(0.1, 0.4, cz)
    sockets = figure.bump(cx, cy, -0.265, 0.0, 0.16, 0.10) + figure.bump(cx, cy, 0.265, 0.0, 0.16, 0.10)
    relief = -0.055 * sockets
    relief -= 0.016 * figure.bump(cx, cy, 0, 0.40, 0.035, 0.05)  # philtrum
    relief += 0.030 * figure.bump(cx, cy, 0, 0.465, 0.15, 0.035) + 0.036 * figure.bump(cx, cy, 0, 0.55, 0.13, 0.036)
    relief -= 0.030 * figure.bump(cx, cy, 0, 0.64, 0.15, 0.05)
    for side in (-1, 1):
        relief += 0.045 * figure.bump(cx, cy, side * 0.268, -0.005, 0.105, 0.060)  # eyeball
        relief -= 0.020 * figure.bump(cx, cy, side * 0.25, 0.50, 0.035, 0.06)
    pores = figure.sample(figure.noise(actor.seed + 4, 256, 0.9), cx * 120, cy * 120)
    z = z + relief * front + 0.0011 * pores * front
    colour = figure.light_skin(albedo, figure.normals(z, view.scale), light, key, ao, gloss)
    return colour + 0.9 * sparkle, _edge(head.inside, view.scale)


def _shade_arm(actor, p, view, light, surfaces, x, y, key, ao, blink):
    sleeve, hand = surfaces
    way = complex(p.wrist - p.elbow)
    local = (x + 1j * y - complex(p.elbow)) / (way / abs(way))
    u, v = local.real.astype(np.float32), local.imag.astype(np.float32)
    cloth_albedo, relief = _cloth(actor, v + 7, u + 3, view.scale)
    cuff = abs(way) - 0.10 + 0.05 * v**2
    g = cuff - u
    pixel = 1.0 / view.scale
    cloth = figure.smoothstep(-pixel, pixel, g) * figure.smoothstep(-pixel, pixel, sleeve.inside + 0.03)
    hem = 0.03 * np.exp(-(((g - 0.05) / 0.04) ** 2))
    skin_albedo = _linear(actor.skin)[:, None, None] * np.ones_like(u)
    contact = 1 - 0.5 * np.exp(-np.clip(-g, 0, None) / 0.05)
    skin = figure.light_skin(skin_albedo, figure.normals(hand.z, view.scale), light, key * contact, ao * contact, 0.08)
    z = sleeve.z + 1.3 * relief + hem
    fabric = figure.light_cloth(cloth_albedo, figure.normals(z, view.scale), light, key, ao, 0.02)
    inside = np.where(g > 0, np.maximum(sleeve.inside, -0.5), np.maximum(hand.inside, -0.5))
    alpha = _edge(inside, view.scale) * (1 if actor.arm else 0)
    return _mix(skin, fabric, cloth), alpha


def _warp(layer: torch.Tensor, turn: complex, shift: complex, pivot: complex) -> torch.Tensor:
    """Move a layer (4, H, W): rotate by the unit complex ``turn`` about ``pivot`` and shift, all in pixels."""
    _, h, w = layer.shape
    y, x = torch.meshgrid(torch.arange(h, dtype=torch.float32), torch.arange(w, dtype=torch.float32), indexing="ij")
    c, s = turn.real, turn.imag
    px, py = x - pivot.real - shift.real, y - pivot.imag - shift.imag
    sx, sy = c * px + s * py + pivot.real, -s * px + c * py + pivot.imag
    grid = torch.stack([sx * (2 / (w - 1)) - 1, sy * (2 / (h - 1)) - 1], -1)[None]
    return torch.nn.functional.grid_sample(layer[None], grid, align_corners=True)[0]


def _over(below: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    return layer + below * (1 - layer[3:])


def _hair_layers(actor: Actor, time: float, view: _View, light: hair.Light) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hair behind and before the body, premultiplied (4, H, W) each, and the optical depth of the front."""
    strands = hair.grow(actor.style, actor.seed)
    late = np.linspace(0, 1, hair.POINTS) ** 1.5 * 0.10 * min(actor.style.length, 2.5)
    p = pose(actor, time - late)
    offset = np.stack([p.head_at.real, p.head_at.imag, 0 * late], -1)
    sway = 0.035 * actor.style.length
    points = hair.posed(strands, p.head_turn, offset, time=time + actor.phase, sway=sway)
    centre = np.array([p.head_at[0].real, p.head_at[0].imag, 0]) + p.head_turn[0] @ hair.SKULL_CENTRE
    diffuse, specular, rim, sky = hair.shade(points, strands, light, centre)
    origin = np.array([view.origin.real, view.origin.imag])
    xy = points[..., :2] * view.scale + origin
    z = points[..., 2]
    # in front where it lies over the head, or over the chest
    before = np.where(points[..., 1] < centre[1] + 1.0, z > -0.22, z > 0.02)
    width = 0.0062 * strands.width * view.scale
    base = _linear(actor.hair)[:, None, None]
    out = []
    for front in (False, True):
        mask = before if front else ~before
        tau, (d, s, r, a, inside) = hair.draw(xy, z, (diffuse, specular, rim, sky, mask), width, view.shape)
        tau = tau * inside
        colour = base * (light.key[:, None, None] * d * 1.25 + 1.1 * light.sky[:, None, None] * a)
        colour += (0.10 + 0.6 * base) * light.key[:, None, None] * s * 0.55
        colour += (0.12 + 0.9 * base) * light.rim[:, None, None] * r
        if not front:
            colour *= 0.55 + 0.45 * np.exp(-0.25 * tau)
        alpha = 1 - np.exp(-tau)
        out.append(np.concatenate([_encode(colour) * alpha, alpha[None]]).astype(np.float32))
    return out[0], out[1], tau


def _frame(actor: Actor, time: float, height: int, width: int, shutter: float) -> tuple[np.ndarray, np.ndarray]:
    scale = actor.size * height
    moments = time + shutter * np.linspace(-0.5, 0.5, 9)
    path = pose(actor, moments)
    reach = max(np.ptp(q.real) + np.ptp(q.imag) for q in (path.head_at, path.wrist + 0.6 * np.exp(1j * np.angle(path.wrist - path.elbow))))
    travel = float(reach) * scale
    count = int(np.clip(2 * np.ceil(travel / 3.0) + 1, 1, 11)) if shutter else 1
    pad = int(np.ceil(travel)) + 2
    origin = complex(actor.position[0] * width + pad, actor.position[1] * height + pad)
    view = _View(scale, origin, (height + 2 * pad, width + 2 * pad))
    light = _light(actor)
    p = Pose(*(np.asarray(v) for v in pose(actor, time)))
    blink = float(np.exp(-((((time + actor.phase + 0.9) % 2.7 - 1.35) / 0.07) ** 2)))
    mid_hair = _hair_layers(actor, time, view, light)
    body = {k: torch.from_numpy(v) for k, v in _layers(actor, p, view, light, mid_hair[2], blink).items()}

    def pixel(q: complex) -> complex:
        return complex(q) * scale + origin

    total = torch.zeros(4, *view.shape)
    for k in range(count):
        moment = time + shutter * ((k + 0.5) / count - 0.5)
        still = 2 * k + 1 == count
        back, front, _ = mid_hair if still else _hair_layers(actor, moment, view, light)
        layers = body
        if not still:
            q = pose(actor, moment)
            head_move = (q.head_at - p.head_at) + 0.30 * (np.sin(q.yaw) - np.sin(p.yaw))
            trunk_turn = np.exp(1j * (q.body_turn - p.body_turn))
            arm_turn = (q.wrist - q.elbow) / (p.wrist - p.elbow)
            moves = {
                "trunk": (trunk_turn, (q.body_shift - p.body_shift) * scale, pixel(PELVIS + p.body_shift)),
                "head": (np.exp(1j * (q.head_roll - p.head_roll)), head_move * scale, pixel(p.head_at)),
                "arm": (arm_turn / abs(arm_turn), (q.elbow - p.elbow) * scale, pixel(p.elbow)),
            }
            layers = {name: _warp(body[name], *(complex(m) for m in move)) for name, move in moves.items()}
        image = torch.from_numpy(back)
        for layer in (layers["trunk"], layers["head"], torch.from_numpy(front), layers["arm"]):
            image = _over(image, layer)
        total += image
    total = total[:, pad : pad + height, pad : pad + width].numpy() / count
    alpha = np.clip(total[3:], 0, 1)
    alpha = np.where(alpha < 1 / 510, 0, np.where(alpha > 1 - 1 / 510, 1, alpha))  # 8 bits see no difference
    return total[:3] / np.maximum(total[3:], 1e-6), alpha


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
    colour, alpha = _frame(actor, float(time), height, width, float(shutter))
    rng = np.random.default_rng([actor.seed, seed, round(time * 1e4) % 2**32])
    fgr = np.clip(colour + _grain(rng, height, width), 0, 1) * (alpha > 0)
    return Frame(torch.from_numpy(fgr.astype(np.float32)), torch.from_numpy(alpha.astype(np.float32)))
