"""Hair for the synthetic actors: strands grown once, posed at any time, drawn as exact pixel coverage."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from scipy import sparse

SKULL_CENTRE = np.array([0.0, -0.22, -0.08], np.float32)
SKULL_RADII = np.array([0.72, 0.79, 0.86], np.float32)
POINTS = 44  # points along a strand before it is resampled to pixels


class Style(NamedTuple):
    """How hair grows; lengths in half heads, angles in radians."""

    length: float
    strands: int
    curl: float = 0.0  # radius of the curl
    turns: float = 2.0  # turns of the curl over a strand
    lift: float = 0.5  # how far strands stand up from the scalp
    weight: float = 1.0  # gravity
    part: float = -0.25  # x of the parting
    locks: int = 90
    fly_away: float = 0.06  # share of strands that leave their lock
    fringe: float = 0.0  # 0: combed to the sides; 1: over the forehead
    bald: float = 0.0  # raises the hairline


class Strands(NamedTuple):
    """Strands at rest in head coordinates (x right, y down, z to the viewer; half a head is 1)."""

    points: np.ndarray  # (N, P, 3) float32
    tint: np.ndarray  # (N,) brightness of each strand, about 1
    phase: np.ndarray  # (N,) phase of its sway, radians
    width: np.ndarray  # (N,) relative width, about 1


def _unit(v: np.ndarray) -> np.ndarray:
    return v / (np.linalg.norm(v, axis=-1, keepdims=True) + 1e-6)


def _roots(rng: np.random.Generator, n: int, style: Style) -> np.ndarray:
    """``n`` points on the skull above the hairline, as unit directions (n, 3)."""
    d = _unit(rng.normal(size=(n * 6, 3)))
    azimuth = np.abs(np.arctan2(d[:, 0], d[:, 2]))
    line = np.interp(azimuth, [0, 0.6, 0.95, 1.25, 1.45, 1.75, 3.15], [-0.62, -0.56, -0.3, 0.2, 0.34, 0.3, 0.75])
    line = line + 0.05 * np.sin(9 * azimuth) - style.bald * np.cos(azimuth / 2) + rng.normal(0, 0.03, n * 6)
    return d[d[:, 1] < line][:n]


@functools.lru_cache(maxsize=16)
def grow(style: Style, seed: int) -> Strands:
    """Grow strands from the scalp: lifted by the root, combed from the parting, bent by weight, gathered in locks."""
    rng = np.random.default_rng(seed)
    root = _roots(rng, style.strands, style)
    n = len(root)
    guides = _roots(rng, style.locks, style)
    lock = np.argmax(root @ guides.T, axis=1)
    guide_noise = rng.normal(size=(style.locks, 3))
    stray = rng.random(n) < style.fly_away
    own = rng.normal(size=(n, 3))
    noise = guide_noise[lock] * 0.22 + own * np.where(stray, 0.40, 0.07)[:, None]

    side = np.tanh(25 * (root[:, 0] - style.part))
    front = np.clip(root[:, 2], 0, 1) * np.clip(-root[:, 1] * 1.4, 0, 1)
    comb = np.stack([side * (0.55 + 0.5 * front), 0.15 - 0.2 * front, -0.55 - 0.25 * front], -1)
    over = np.stack([side * 0.25, np.full(n, 0.75), np.full(n, 0.35)], -1)
    comb = comb + style.fringe * front[:, None] * (over - comb)
    length = style.length * rng.normal(1.0, 0.07, n) * np.where(stray, rng.uniform(0.45, 1.05, n), 1.0)
    length *= 1 + 0.10 * guide_noise[lock, 0]
    if style.fringe:  # a fringe is cut above the eyes
        length = length + style.fringe * (front > 0.45) * (np.minimum(length, 0.62) - length)
    step = (length / (POINTS - 1))[:, None]

    p = SKULL_CENTRE + SKULL_RADII * root
    direction = _unit(_unit(root / SKULL_RADII) * style.lift + comb + noise)
    points = np.empty((n, POINTS, 3), np.float32)
    shell = (1.03 + 0.10 * style.lift * (0.5 + rng.random(n)) + 0.05 * guide_noise[lock, 1])[:, None]
    for i in range(POINTS):
        points[:, i] = p
        u = i / (POINTS - 1)
        direction = direction + step * (style.weight * np.array([0, 2.6, 0]) + comb * 0.5 * (1 - u) + noise)
        direction = _unit(direction)
        p = p + direction * step
        radii = SKULL_RADII * np.minimum(shell, 1.0 + 0.12 * i)  # off the scalp within a few steps
        q = (p - SKULL_CENTRE) / radii
        under = q[:, 1] > 0  # beside the face and the neck the skull goes on as a cylinder
        q[under, 1] = 0
        q *= np.maximum(1 / (np.linalg.norm(q, axis=1, keepdims=True) + 1e-6), 1)
        p = np.where(under[:, None] & (np.arange(3) == 1), p, SKULL_CENTRE + q * radii)
        below = np.clip(p[:, 1] - 1.15, 0, 0.7)  # over the shoulders: outwards and to the front or the back
        p = p + step * below[:, None] * np.stack([0.15 * np.sign(p[:, 0]), 0 * below, np.sign(p[:, 2] + 0.1)], -1)
    if style.curl:
        u = np.linspace(0, 1, POINTS, dtype=np.float32)
        angle = guide_noise[lock, 2:3] * 2 + own[:, :1] * 0.5 + 2 * np.pi * style.turns * u * (1 + 0.12 * own[:, 1:2])
        tangent = _unit(np.gradient(points, axis=1))
        e1 = _unit(np.cross(tangent, np.array([0.3, 0.2, 1.0])))
        e2 = np.cross(tangent, e1)
        size = style.curl * np.minimum(u * 4, 1) * (1 + 0.25 * own[:, 2:3])
        points += size[..., None] * (np.cos(angle)[..., None] * e1 + np.sin(angle)[..., None] * e2)
    tint = np.clip(1 + 0.20 * guide_noise[lock, 0] + 0.17 * rng.normal(size=n), 0.45, 1.7)
    width = np.clip(rng.normal(1, 0.2, n), 0.5, 1.6) * np.where(stray, 0.8, 1.0)
    return Strands(
        points, tint.astype(np.float32), rng.uniform(0, 6.28, n).astype(np.float32), width.astype(np.float32)
    )


def posed(strands: Strands, rotation: np.ndarray, offset: np.ndarray, *, time: float, sway: float) -> np.ndarray:
    """Strand points in figure coordinates (N, P, 3).

    Args:
        strands: From :func:`grow`.
        rotation: (P, 3, 3) of the head as each point along a strand follows it: the tips come late.
        offset: (P, 3) position of the head likewise.
        time: Seconds.
        sway: Amplitude of the free movement of the tips, half heads.
    """
    u = np.linspace(0, 1, POINTS, dtype=np.float32)
    p = np.einsum("pij,npj->npi", rotation.astype(np.float32), strands.points) + offset.astype(np.float32)
    wave = np.sin(2 * np.pi * 0.7 * time + strands.phase[:, None] + 3 * u) + 0.6 * np.sin(4.1 * time - 2 * u)
    p[..., 0] += sway * u**2 * wave
    return p


class Light(NamedTuple):
    """Light of the scene, linear RGB; directions are unit vectors (x right, y down, z to the viewer)."""

    key_dir: np.ndarray
    key: np.ndarray
    sky: np.ndarray
    ground: np.ndarray
    rim_dir: np.ndarray
    rim: np.ndarray


def shade(points: np.ndarray, strands: Strands, light: Light, centre: np.ndarray) -> tuple[np.ndarray, ...]:
    """Diffuse and specular weight of every point of a strand, (N, P) each: Kajiya and Kay (1989), plus a rim."""
    tangent = _unit(np.gradient(points, axis=1))
    normal = _unit(points - centre)
    normal[..., 1] *= 0.75
    along = tangent @ light.key_dir
    facing = normal @ light.key_dir
    diffuse = np.sqrt(np.clip(1 - along**2, 0, 1)) * np.clip(0.42 + 0.62 * facing, 0.05, None)
    half = _unit(light.key_dir + np.array([0, 0, 1.0]))
    shine = np.sqrt(np.clip(1 - (tangent @ half) ** 2, 0, 1))
    specular = (0.55 * shine**70 + 0.25 * shine**14) * np.clip(facing + 0.35, 0, 1)
    edge = np.clip(1 - np.abs(normal[..., 2]), 0, 1) ** 2
    rim = edge * np.clip(0.5 + 0.5 * normal[..., :2] @ light.rim_dir[:2], 0, None) ** 2
    sky = 0.5 - 0.5 * normal[..., 1]
    root = 0.45 + 0.55 * np.minimum(np.linspace(0, 1, POINTS) * 5, 1)  # less light between the roots
    tint = strands.tint[:, None]
    return diffuse * tint * root, specular * (0.5 + 0.5 * tint), rim * tint, sky * root * tint


def draw(
    xy: np.ndarray, values: np.ndarray, layer: np.ndarray, width: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw strands into two layers as optical depth, independent of their order.

    Each strand is sampled about once a pixel and shared bilinearly between four pixels. Coverage is
    ``1 - exp(-tau)``; colours are averages in which nearer strands weigh more.

    Args:
        xy: (N, P, 2) positions in pixels; pixel centres at whole numbers.
        values: (N, P, 1 + k): height towards the viewer in half heads, and k numbers carried along.
        layer: (N, P) 0 or 1.
        width: (N,) width in pixels.
        shape: Height and width of the layers.

    Returns:
        tau (2, H, W) float32; flat indices (M,) of the pixels drawn; values (M, k) float32 there, averaged by weight.
    """
    h, w = shape
    length = np.linalg.norm(np.diff(xy, axis=1), axis=2)
    per = max(1, int(np.ceil(np.percentile(length, 90))))
    t = (np.arange(per, dtype=np.float32) + 0.5)[:, None] / per

    def resample(a: np.ndarray) -> np.ndarray:
        return (a[:, :-1, None] + (a[:, 1:, None] - a[:, :-1, None]) * t).reshape(-1, a.shape[-1])

    taper = np.interp(np.linspace(0, 1, POINTS - 1), [0, 0.6, 1], [1.5, 1.5, 0.6])
    amount = np.repeat((length / per * width[:, None] * taper).astype(np.float32)[..., None], per, axis=2).reshape(-1)
    at = resample(xy.astype(np.float32))
    keep = ((at > 0) & (at < [w - 1, h - 1])).all(1)
    at, amount = at[keep], amount[keep]
    carried = resample(values.astype(np.float32))[keep]
    weight = amount * np.exp(3 * carried[:, 0])
    carried = np.concatenate([amount[:, None], weight[:, None], weight[:, None] * carried[:, 1:]], 1)
    low = at.astype(np.int32)
    (fx, fy), base = (at - low).T, low[:, 1] * w + low[:, 0]
    base = base + np.repeat(layer[:, :-1, None], per, axis=2).reshape(-1)[keep].astype(np.int32) * (h * w)
    index = base[:, None] + np.array([0, 1, w, w + 1], np.int32)
    share = np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], 1)
    columns = np.arange(0, 4 * len(base) + 1, 4, dtype=np.int32)
    splat = sparse.csc_array((share.ravel(), index.ravel(), columns), shape=(2 * h * w, len(base)))
    total = splat @ carried
    tau = np.ascontiguousarray(total[:, 0])
    drawn = np.flatnonzero(tau > 1e-4)
    total = total[drawn]
    return tau.reshape(2, h, w), drawn, total[:, 2:] / total[:, 1:2]
