"""Skin, face and cloth of the synthetic actors: colours painted on the body, then lit. Colours are scene-linear."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage, signal

from .. import colour
from ..errors import I2IError
from . import _figure as figure
from ._hair import Light
from ._motion import Pose, local

if TYPE_CHECKING:
    from .synthetic import Actor


def linear(srgb: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """sRGB codes to linear light, float32."""
    return colour.srgb_to_linear(torch.tensor(np.asarray(srgb, np.float32))).numpy()


def encode(light: np.ndarray) -> np.ndarray:
    """Scene-linear to sRGB codes in [0, 1], with a soft shoulder above 0.7."""
    x = np.clip(light.astype(np.float32), 0, None)
    x = np.where(x > 0.7, 1 - 0.3 * np.exp((0.7 - x) / 0.3), x)
    return colour.linear_to_srgb(torch.from_numpy(x)).numpy()


@functools.lru_cache(maxsize=8)
def photo(name: str) -> np.ndarray:
    """A photograph inside scikit-image as (3, h, w) float32 linear."""
    from skimage import data

    makers = {
        "motorcycle": lambda: data.stereo_motorcycle()[0],
        "coffee": data.coffee,
        "rocket": data.rocket,
        "chelsea": data.chelsea,
        "brick": lambda: data.brick().T,  # lies on its side
        "grass": data.grass,
        "gravel": data.gravel,
    }
    if name not in makers:
        raise I2IError("photograph", expected="one of " + ", ".join(makers), got=repr(name))
    image = makers[name]().astype(np.float32) / 255
    image = np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image
    return linear(image).transpose(2, 0, 1)


@functools.lru_cache(maxsize=16)
def _cloth_grain(name: str) -> np.ndarray:
    """Fine grain of a photograph, (512, 512), zero mean and unit deviation, made to tile."""
    grey = photo(name).mean(0)[:512, :512]
    grey = grey - ndimage.gaussian_filter(grey, 12, mode="wrap")
    return ((grey - grey.mean()) / grey.std()).clip(-2.5, 2.5).astype(np.float32)


@functools.lru_cache(maxsize=4)
def plate(actor: Actor, height: int, width: int) -> np.ndarray:
    """The actor's background (3, H, W), sRGB codes in [0, 1]."""
    image = photo(actor.photo)
    _, h, w = image.shape
    cx, cy, share = actor.crop
    view_w = min(w, h * width / height) * share
    view_h = view_w * height / width
    left = np.clip(cx * w - view_w / 2, 0, w - view_w)
    top = np.clip(cy * h - view_h / 2, 0, h - view_h)
    box = (left, top, left + view_w, top + view_h)
    planes = [np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC, box=box)) for p in image]
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
    return np.clip(encode(plate) + grain(rng, height, width), 0, 1).astype(np.float32)


def grain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Film grain (3, H, W): mostly common to the three layers, a little coarser at high resolution."""
    common = rng.standard_normal((1, height, width), np.float32)
    own = rng.standard_normal((3, height, width), np.float32)
    sigma = 0.35 + 0.35 * height / 1080
    field = ndimage.gaussian_filter(0.8 * common + 0.45 * own, (0, sigma, sigma))
    return 0.011 * field / field.std()


def _mix(base: np.ndarray, over: np.ndarray | tuple[float, ...], mask: np.ndarray) -> np.ndarray:
    over = np.asarray(over, np.float32)
    over = over[:, None, None] if over.ndim == 1 else over
    return base + (over - base) * mask


def _paint_head(actor: Actor, c: np.ndarray, pixel: float, blink: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Albedo (3, H, W) linear, gloss (H, W) and self-lit sparkle (H, W) of the head at canonical points ``c``."""
    x, y, z = c
    bump, step = figure.bump, figure.smoothstep
    front = step(0.05, 0.3, z)
    skin = linear(actor.skin)
    mottle = 0.03 * figure.sample(figure.noise(actor.seed, 256, 5.0), x * 40, y * 40)
    pores = 0.018 * figure.sample(figure.noise(actor.seed + 1, 256, 0.8), x * 150, y * 150) * min(1, 0.012 / pixel)
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

    hair_line = linear(actor.hair) * 0.55
    if actor.beard:
        jaw = step(0.30, 0.52, y + 0.25 * np.abs(x)) * (1 - 0.9 * bump(x, y, 0, 0.53, 0.2, 0.075)) * front
        jaw *= 1 - bump(x, y, 0, 0.30, 0.14, 0.1)
        speck = 1 + 0.35 * figure.sample(figure.noise(actor.seed + 2, 256, 0.9), x * 140, y * 90)
        albedo = _mix(albedo, hair_line, np.clip(actor.beard * jaw * speck, 0, 1))

    lip = np.abs(x) / 0.25
    curve = 0.512 - 0.030 * lip**2 + 0.010 * np.cos(lip * 5) * (lip < 1)  # the line between the lips
    arch = np.clip(1 - lip**2, 0, 1)
    above = curve - 0.066 * arch**0.8 * (1 - 0.22 * np.exp(-((x / 0.04) ** 2)))
    below = curve + 0.092 * arch**0.7
    mouth = step(-pixel, pixel, y - above) * step(-pixel, pixel, below - y) * front
    tone = 1 + 0.18 * figure.sample(figure.noise(3, 256, 1.2), x * 160, y * 30)
    albedo = _mix(albedo, linear(actor.lips)[:, None, None] * tone, 0.75 * mouth * step(0.0, 0.25, arch))
    albedo *= 1 - 0.72 * front * np.exp(-(((y - curve) / (0.011 + pixel * 0.4)) ** 2)) * step(0, 0.12, 1.06 - lip)
    gloss = gloss + 0.14 * mouth * bump(x, y, 0, 0.55, 0.16, 0.04)
    albedo *= 1 - 0.75 * front * (bump(x, y, -0.052, 0.325, 0.030, 0.016) + bump(x, y, 0.052, 0.325, 0.030, 0.016))

    sparkle = np.zeros_like(x)
    opening = 1 - blink
    for side in (-1, 1):
        ex, ey = (x - side * 0.272) * side / 1.22, (y - 0.005) / 1.22  # towards the temple is positive
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
        ball = _mix(white, linear(actor.eyes)[:, None, None] * 1.6 * np.clip(fibre, 0.2, 1.6), iris)
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
        v = (ex - 0.018) / 0.165
        ridge = ey + 0.172 + 0.035 * np.clip(1 - v * v, 0, 1) - 0.045 * np.clip(v - 0.3, 0, 1) * 1.2
        thick = 0.030 * np.clip(1.05 - np.abs(v), 0, 1) ** 0.5 * (1 - 0.35 * np.clip(v, 0, 1))
        strokes = 0.75 + 0.30 * figure.sample(figure.noise(5, 256, 1.0), (ex + 0.9 * ey) * 220, (ey - 0.4 * ex) * 45)
        brow = step(thick + 0.012, thick - 0.012, np.abs(ridge)) * step(0, 0.2, 1.04 - np.abs(v))
        albedo = _mix(albedo, hair_line * 0.8, np.clip(0.85 * brow * strokes * front, 0, 0.95))

    azimuth = np.abs(np.arctan2(x, z + 0.08))
    line = np.interp(azimuth, [0, 0.6, 0.95, 1.25, 1.45, 1.75, 3.15], [-0.60, -0.55, -0.32, 0.15, 0.3, 0.3, 0.8])
    line -= actor.style.bald * np.cos(azimuth / 2)
    scalp = step(0.03, -0.10, (y + 0.22) / 0.79 - (line) + 0.02 * mottle)
    albedo = _mix(albedo, linear(actor.hair) * 0.5, scalp * 0.92)
    return albedo, gloss * (1 - 0.8 * scalp), sparkle


def _cloth(actor: Actor, u: np.ndarray, v: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Albedo (3, H, W) and relief (H, W, half heads) of the cloth at cloth coordinates ``u``, ``v``."""
    threads = figure.sample(_cloth_grain(actor.texture), u * 230, v * 230)
    fine = np.clip(scale / 220, 0, 1)
    weave = np.sin(u * 260) * np.sin(v * 260) * fine
    wear = figure.sample(figure.noise(actor.seed + 7, 256, 12.0), u * 45, v * 45)
    base = linear(actor.cloth)
    value = 1 + 0.07 * threads + 0.06 * weave + 0.05 * wear
    albedo = base[:, None, None] * value
    if actor.stripes:
        band = figure.smoothstep(-0.04, 0.04, np.sin(2 * np.pi * actor.stripes * v) - 0.35)
        albedo = _mix(albedo, np.minimum(base * 0.25 + 0.55, 0.8)[:, None, None] * value, band)
    bend = figure.sample(figure.noise(actor.seed + 8, 256, 9.0), u * 30, v * 30)
    across, along = (u * 0.9 + v * 0.45) * 42 + 5 * bend, (v - u * 0.5) * 11
    folds = figure.sample(figure.noise(actor.seed + 9, 256, 7.0), across, along)
    ridges = 1 - np.abs(folds)
    relief = 0.016 * ridges + 0.012 * bend + 0.0016 * weave + 0.0010 * threads
    return albedo, relief.astype(np.float32)


def _collar(actor: Actor, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Above 0: cloth; below 0: skin; about half heads from the collar's edge. Torso coordinates."""
    if actor.collar == "roll":
        return y - 0.92 - 0.10 * (x / 0.4) ** 2 * -1
    if actor.collar == "vee":
        drop = np.clip(y - 1.20, 0, None)
        return (np.abs(x) - 0.56 * (1 - drop / 1.05)) * 0.85
    r = np.sqrt((x / 0.60) ** 2 + (np.clip(y - 1.22, 0, None) / 0.42) ** 2)
    return (r - 1) * 0.5


def occlusion(z: np.ndarray, scene: np.ndarray, scale: float) -> np.ndarray:
    """Share of the sky that a height field sees, from how deep it lies below its surroundings; 0.25 to 1."""
    scene = np.maximum(scene, -1.2)
    near = ndimage.gaussian_filter(scene, 0.10 * scale) - z
    far = ndimage.gaussian_filter(scene, 0.35 * scale) - z
    return np.clip(1 - 1.5 * np.clip(near, 0, 0.4) - 0.55 * np.clip(far, 0, 0.6), 0.25, 1).astype(np.float32)


class Site(NamedTuple):
    """What the painters need to know of a pose and of the light that falls on each pixel."""

    actor: Actor
    pose: Pose
    light: Light
    scale: float  # pixels per half head
    x: np.ndarray  # (H, W) figure coordinates
    y: np.ndarray
    key: np.ndarray  # (H, W) share of key light
    ambient: np.ndarray  # (H, W) share of sky light
    blink: float  # 0 open, 1 closed


def _edge(inside: np.ndarray, scale: float) -> np.ndarray:
    """Coverage of an outline that is about one and a half pixels soft."""
    return np.clip(inside * scale / 1.5 + 0.5, 0, 1)


def shade_trunk(site: Site, surfaces: list[figure.Surface]) -> tuple[np.ndarray, np.ndarray]:
    """Linear colour (3, H, W) and coverage (H, W) of this layer."""
    actor, p, light, scale, x, y, key, ao, _ = site
    neck, trunk = surfaces
    lx, ly = local(p, x, y)
    g = _collar(actor, lx, ly)
    pixel = 1.0 / scale
    cloth_albedo, relief = _cloth(actor, lx, ly, scale)
    # cloth bridges the hollows between the parts below it
    drape = ndimage.gaussian_filter(np.maximum(trunk.z, -0.6), 0.05 * scale)
    z_trunk = trunk.z + (drape - trunk.z) * figure.smoothstep(0.06, 0.22, trunk.inside)
    hem = np.exp(-(((g - 0.055) / 0.05) ** 2)) * 0.030 + 0.02
    seam = np.exp(-(((g - 0.12) / 0.012) ** 2))
    z_cloth = z_trunk + relief + hem - 0.012 * seam
    if actor.collar == "roll":
        z_cloth = np.maximum(z_cloth, neck.z + 0.07 + 0.012 * np.sin(lx * 70) + 0.02 * np.cos((ly - 1.08) * 14))
    z_skin = figure.smooth_max(neck.z, z_trunk - 0.03, 0.12)
    cloth = figure.smoothstep(-pixel, pixel, g)
    inside = np.maximum(trunk.inside, neck.inside)
    if actor.collar == "roll":
        inside = np.where(g > 0, np.maximum(inside, neck.inside + 0.06), inside)
    else:
        bone = np.exp(-(((ly - 1.60 - 0.08 * np.abs(lx)) / 0.06) ** 2)) * figure.smoothstep(0.08, 0.2, np.abs(lx))
        z_skin = z_skin + 0.020 * bone
    contact = 1 - 0.45 * np.exp(-np.clip(-g, 0, None) / 0.06) * (g < 0)
    chin = 1 - 0.35 * figure.smoothstep(1.35, 0.8, ly)
    mottle = 0.03 * figure.sample(figure.noise(actor.seed, 256, 5.0), lx * 40, ly * 40)
    tone = linear(actor.skin) * np.array([1, 0.95, 0.93], np.float32)
    skin_albedo = tone[:, None, None] * (1 + mottle)
    skin_key, skin_ao = key * contact, ao * contact * chin
    skin = figure.light_skin(skin_albedo, figure.normals(z_skin, scale), light, skin_key, skin_ao, 0.07)
    fabric = figure.light_cloth(cloth_albedo, figure.normals(z_cloth, scale), light, key, ao * (1 - 0.35 * seam), 0.02)
    return _mix(skin, fabric, cloth), _edge(inside, scale)


def shade_head(site: Site, surfaces: list[figure.Surface]) -> tuple[np.ndarray, np.ndarray]:
    """Linear colour (3, H, W) and coverage (H, W) of this layer."""
    actor, p, light, scale, x, y, key, ao, blink = site
    (head,) = surfaces
    hx, hy = x - np.float32(p.head_at.real), y - np.float32(p.head_at.imag)
    z = np.maximum(head.z, -1.0)
    c = np.einsum("ji,jhw->ihw", p.head_turn.astype(np.float32), np.stack([hx, hy, z]))
    pixel = 0.8 / scale
    albedo, gloss, sparkle = _paint_head(actor, c, pixel, blink)
    cx, cy, cz = c
    front = figure.smoothstep(0.1, 0.4, cz)
    sockets = figure.bump(cx, cy, -0.265, 0.0, 0.16, 0.10) + figure.bump(cx, cy, 0.265, 0.0, 0.16, 0.10)
    relief = -0.055 * sockets
    relief += 0.030 * (figure.bump(cx, cy, -0.25, -0.17, 0.20, 0.07) + figure.bump(cx, cy, 0.25, -0.17, 0.20, 0.07))
    relief -= 0.016 * figure.bump(cx, cy, 0, 0.40, 0.035, 0.05)  # philtrum
    relief += 0.030 * figure.bump(cx, cy, 0, 0.465, 0.15, 0.035) + 0.036 * figure.bump(cx, cy, 0, 0.55, 0.13, 0.036)
    relief -= 0.030 * figure.bump(cx, cy, 0, 0.64, 0.15, 0.05)
    for side in (-1, 1):
        relief += 0.050 * figure.bump(cx, cy, side * 0.272, -0.005, 0.13, 0.075)  # eyeball
        relief -= 0.020 * figure.bump(cx, cy, side * 0.25, 0.50, 0.035, 0.06)
    pores = figure.sample(figure.noise(actor.seed + 4, 256, 0.9), cx * 120, cy * 120)
    z = z + relief * front + 0.0006 * pores * front
    colour = figure.light_skin(albedo, figure.normals(z, scale), light, key, ao, gloss)
    return colour + 0.9 * sparkle, _edge(head.inside, scale)


def shade_arm(site: Site, surfaces: list[figure.Surface]) -> tuple[np.ndarray, np.ndarray]:
    """Linear colour (3, H, W) and coverage (H, W) of this layer."""
    actor, p, light, scale, x, y, key, ao, _ = site
    sleeve, hand = surfaces
    way = complex(p.wrist - p.elbow)
    local = (x + 1j * y - complex(p.elbow)) / (way / abs(way))
    u, v = local.real.astype(np.float32), local.imag.astype(np.float32)
    cloth_albedo, relief = _cloth(actor, v + 7, u + 3, scale)
    cuff = abs(way) - 0.10 + 0.05 * v**2
    g = cuff - u
    pixel = 1.0 / scale
    cloth = figure.smoothstep(-pixel, pixel, g) * figure.smoothstep(-pixel, pixel, sleeve.inside + 0.03)
    hem = 0.03 * np.exp(-(((g - 0.05) / 0.04) ** 2))
    skin_albedo = linear(actor.skin)[:, None, None] * np.ones_like(u)
    contact = 1 - 0.5 * np.exp(-np.clip(-g, 0, None) / 0.05)
    skin = figure.light_skin(skin_albedo, figure.normals(hand.z, scale), light, key * contact, ao * contact, 0.08)
    z = sleeve.z + 1.3 * relief + hem
    fabric = figure.light_cloth(cloth_albedo, figure.normals(z, scale), light, key, ao, 0.02)
    inside = np.where(g > 0, np.maximum(sleeve.inside, -0.5), np.maximum(hand.inside, -0.5))
    alpha = _edge(inside, scale) * (1 if actor.arm else 0)
    return _mix(skin, fabric, cloth), alpha
