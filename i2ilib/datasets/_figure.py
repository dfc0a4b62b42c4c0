"""The body of the synthetic actors: ellipsoids and limbs melted into one height field, then lit like a face.

Figure coordinates: half a head is 1, the head is centred on (0, 0), x right, y down, z to the viewer, orthographic.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ._hair import Light

FAR = -9.0


class Surface(NamedTuple):
    """One body layer on a pixel grid: height z (half heads) and signed distance to its outline (positive inside)."""

    z: np.ndarray
    inside: np.ndarray


def smooth_max(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Maximum of two height fields with a fillet of radius ``k``."""
    h = np.clip(0.5 + 0.5 * (a - b) / k, 0, 1)
    return b + (a - b) * h + k * h * (1 - h)


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 below ``low``, 1 above ``high``, a cubic between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def bump(x: np.ndarray, y: np.ndarray, cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    """A Gaussian of height 1."""
    return np.exp(-(((x - cx) / rx) ** 2) - ((y - cy) / ry) ** 2)


def rotation(yaw: np.ndarray | float, pitch: np.ndarray | float, roll: np.ndarray | float) -> np.ndarray:
    """Head to figure coordinates (..., 3, 3): pitch about x, then yaw about y, then roll about z."""
    yaw, pitch, roll = np.broadcast_arrays(np.asarray(yaw, float), pitch, roll)
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    zero, one = np.zeros_like(cy), np.ones_like(cy)

    def matrix(*rows: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.stack([np.stack(row, -1) for row in rows], -2)

    about_y = matrix((cy, zero, sy), (zero, one, zero), (-sy, zero, cy))
    about_x = matrix((one, zero, zero), (zero, cp, -sp), (zero, sp, cp))
    about_z = matrix((cr, -sr, zero), (sr, cr, zero), (zero, zero, one))
    return about_z @ about_y @ about_x


def ellipsoid(
    x: np.ndarray,
    y: np.ndarray,
    centre: tuple[float, ...],
    radii: tuple[float, ...],
    turn: np.ndarray | None = None,
    *,
    soft: bool = False,
) -> Surface:
    """Front of an ellipsoid seen along z, or the paraboloid at its top, which melts into others without a crease."""
    turn = np.eye(3) if turn is None else turn
    c = turn @ np.asarray(centre, float)
    m = turn @ np.diag(1 / np.asarray(radii, float) ** 2) @ turn.T
    dx, dy = x - np.float32(c[0]), y - np.float32(c[1])
    b = np.float32(m[0, 2] / m[2, 2]) * dx + np.float32(m[1, 2] / m[2, 2]) * dy
    # the outline: q = 1 of the quadratic that is left when z is eliminated
    s = m[:2, :2] - np.outer(m[:2, 2], m[:2, 2]) / m[2, 2]
    gx, gy = np.float32(s[0, 0]) * dx + np.float32(s[0, 1]) * dy, np.float32(s[0, 1]) * dx + np.float32(s[1, 1]) * dy
    q = gx * dx + gy * dy
    depth = np.float32(1 / np.sqrt(m[2, 2]))
    root = depth * (1 - q) if soft else np.sqrt(np.abs(1 - q)) * np.where(q < 1, depth, -2.5 * depth)
    inside = (1 - q) / (2 * np.sqrt(gx * gx + gy * gy) + 1e-3)
    return Surface(np.float32(c[2]) - b + root, inside)


def limb(
    x: np.ndarray, y: np.ndarray, a: tuple[float, ...], b: tuple[float, ...], ra: float, rb: float, flat: float = 1.0
) -> Surface:
    """A rounded cone from ``a`` (radius ``ra``) to ``b`` (radius ``rb``), its depth scaled by ``flat``."""
    ax, ay, az = a
    bx, by, bz = b
    ex, ey = bx - ax, by - ay
    t = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
    r = ra + (rb - ra) * t
    d2 = (x - ax - t * ex) ** 2 + (y - ay - t * ey) ** 2
    gap = r * r - d2
    z = az + (bz - az) * t + np.sqrt(np.abs(gap)) * np.where(gap > 0, flat, -2.5 * flat)
    return Surface(z.astype(np.float32), (r - np.sqrt(d2)).astype(np.float32))


def melt(first: Surface, *rest: tuple[Surface, float]) -> Surface:
    """Union of surfaces, each joined to those before it with its own fillet."""
    z, inside = first
    for other, k in rest:
        z, inside = smooth_max(z, other.z, k), smooth_max(inside, other.inside, k * 0.7)
    return Surface(z, inside)


# --- parts -------------------------------------------------------------------------------------------


def head(x: np.ndarray, y: np.ndarray, turn: np.ndarray, build: float) -> Surface:
    """Skull, jaw, cheeks, brow, nose, lips and ears; ``build`` from 0 (slender) to 1 (square)."""

    def e(centre: tuple[float, ...], radii: tuple[float, ...], soft: bool = True) -> Surface:
        return ellipsoid(x, y, centre, radii, turn, soft=soft)

    jaw = 0.33 + 0.06 * build
    return melt(
        e((0, -0.22, -0.08), (0.70, 0.77, 0.84), False),
        (e((0, 0.16, 0.02), (0.575 + 0.03 * build, 0.74, 0.62), False), 0.14),
        (e((0, 0.62, 0.10), (jaw, 0.32, 0.42), False), 0.30),
        (e((0, 0.81, 0.40), (0.22 + 0.06 * build, 0.18, 0.20)), 0.14),
        (e((-0.32, 0.19, 0.38), (0.30, 0.26, 0.23)), 0.16),
        (e((0.32, 0.19, 0.38), (0.30, 0.26, 0.23)), 0.16),
        (e((0, 0.05, 0.60), (0.115, 0.40, 0.19)), 0.07),
        (e((0, 0.245, 0.64), (0.135, 0.115, 0.19)), 0.07),
        (e((-0.100, 0.280, 0.61), (0.080, 0.070, 0.15)), 0.03),
        (e((0.100, 0.280, 0.61), (0.080, 0.070, 0.15)), 0.03),
        (e((0, 0.52, 0.50), (0.36, 0.25, 0.15)), 0.10),
        (e((-0.69, 0.06, -0.12), (0.07, 0.19, 0.13), False), 0.05),
        (e((0.69, 0.06, -0.12), (0.07, 0.19, 0.13), False), 0.05),
    )


def torso(x: np.ndarray, y: np.ndarray, build: float, bust: float) -> tuple[Surface, Surface]:
    """Neck (skin) and clothed body; they are joined by the collar."""
    wide = 1.0 + 0.16 * build
    r = 0.33 + 0.08 * build
    neck = limb(x, y, (0, 0.45, -0.16), (0, 1.70, -0.22), r, r * 1.10)
    neck = melt(neck, (ellipsoid(x, y, (0, 1.80, -0.16), (1.1 * wide, 0.75, 0.36), soft=True), 0.25))
    body = melt(
        ellipsoid(x, y, (0, 2.65, -0.10), (1.20 * wide, 1.45, 0.66)),
        (limb(x, y, (-0.30, 1.30 - 0.06 * build, -0.26), (-1.20 * wide, 1.66, -0.22), 0.26, 0.36), 0.45),
        (limb(x, y, (0.30, 1.30 - 0.06 * build, -0.26), (1.20 * wide, 1.66, -0.22), 0.26, 0.36), 0.45),
        (limb(x, y, (0, 3.2, -0.15), (0, 6.5, -0.15), 1.06 * wide, 1.02 * wide, 0.6), 0.40),
    )
    for side in (-1, 1):
        chest = ellipsoid(x, y, (side * 0.48, 2.30 + 0.30 * bust, 0.30 + 0.14 * bust), (0.80, 0.75, 0.45), soft=True)
        body = melt(body, (chest, 0.25))
    return neck, body


def arm_upper(x: np.ndarray, y: np.ndarray, shoulder: np.ndarray, elbow: np.ndarray, build: float) -> Surface:
    """Upper arm from shoulder to elbow, (3,) points each."""
    r = 0.36 + 0.07 * build
    return limb(x, y, tuple(shoulder), tuple(elbow), r, r * 0.80)


def forearm(
    x: np.ndarray, y: np.ndarray, elbow: np.ndarray, wrist: np.ndarray, hand_turn: float, spread: float, build: float
) -> tuple[Surface, Surface]:
    """Sleeved forearm, and hand with five fingers that point along the forearm turned by ``hand_turn``."""
    r = 0.29 + 0.05 * build
    sleeve = limb(x, y, tuple(elbow), tuple(wrist), r, r * 0.66)
    way = np.arctan2(wrist[1] - elbow[1], wrist[0] - elbow[0]) + hand_turn

    def at(along: float, across: float, z: float) -> tuple[float, float, float]:
        c, s = np.cos(way), np.sin(way)
        return (wrist[0] + along * c - across * s, wrist[1] + along * s + across * c, wrist[2] + z)

    size = 0.92 + 0.12 * build
    hand = limb(x, y, at(-0.15, 0, 0), at(0.12, 0, 0), 0.16 * size, 0.19 * size, 0.7)
    palm = limb(x, y, at(0.22, -0.10, 0.02), at(0.22, 0.12, 0.02), 0.22 * size, 0.20 * size, 0.55)
    parts = [(palm, 0.12)]
    for i, reach in enumerate((0.60, 0.70, 0.66, 0.52)):
        across, fan = (-0.18, -0.06, 0.06, 0.175)[i], (i - 1.5) * spread
        tip = at(reach + 0.12, across + fan * 0.6, 0.0)
        knuckle = at(0.60, across * 1.05 + fan * 0.25, 0.05)
        parts.append((limb(x, y, at(0.30, across, 0.03), knuckle, 0.075 * size, 0.068 * size), 0.04))
        parts.append((limb(x, y, knuckle, tip, 0.068 * size, 0.056 * size), 0.02))
    parts.append((limb(x, y, at(0.10, -0.16, 0.10), at(0.36, -0.34 - spread, 0.14), 0.095 * size, 0.065 * size), 0.07))
    return sleeve, melt(hand, *parts)


# --- light -------------------------------------------------------------------------------------------


def shadow(z: np.ndarray, scene: np.ndarray, light: np.ndarray, scale: float) -> np.ndarray:
    """Share of key light that reaches height field ``z`` past the heights of ``scene``, 0 to 1.

    Args:
        z: (h, w) heights of the surface being lit.
        scene: (h, w) heights of everything.
        light: Unit vector to the light.
        scale: Pixels per half head on this grid.
    """
    lit = np.ones_like(z)
    h, w = z.shape
    for reach in np.geomspace(0.05, 1.6, 14):
        sx, sy = round(float(light[0] * reach * scale)), round(float(light[1] * reach * scale))
        shifted = np.full_like(scene, FAR)
        ys, xs = slice(max(0, -sy), min(h, h - sy)), slice(max(0, -sx), min(w, w - sx))
        if ys.stop <= ys.start or xs.stop <= xs.start:
            continue
        shifted[ys, xs] = scene[ys.start + sy : ys.stop + sy, xs.start + sx : xs.stop + sx]
        blocked = (shifted - z - light[2] * reach - 0.03) / (0.16 * reach + 0.03)
        lit = np.minimum(lit, 1 - np.clip(blocked, 0, 1))
    return ndimage.gaussian_filter(lit, 0.03 * scale)


def normals(z: np.ndarray, scale: float) -> np.ndarray:
    """Unit normals (3, H, W) of a height field with ``scale`` pixels per unit."""
    gy, gx = np.gradient(z, np.float32(1 / scale))
    n = np.stack([-gx, -gy, np.ones_like(z)])
    return n / np.sqrt((n * n).sum(0))


def light_skin(
    albedo: np.ndarray, n: np.ndarray, light: Light, key: np.ndarray, ambient: np.ndarray, gloss: np.ndarray | float
) -> np.ndarray:
    """Skin: light that wraps further in red than in blue (scattered under the skin), oil, and a rim.

    Args:
        albedo: (3, H, W) linear.
        n: (3, H, W) unit normals.
        light: The scene's light.
        key: (H, W) share of key light that arrives.
        ambient: (H, W) share of sky light that arrives.
        gloss: Strength of the highlight.

    Returns:
        (3, H, W) linear.
    """
    facing = np.tensordot(light.key_dir.astype(np.float32), n, 1)
    wrap = np.array([0.38, 0.20, 0.14], np.float32)[:, None, None]
    diffuse = np.clip((facing + wrap) / (1 + wrap), 0, None) ** 1.15
    # where a shadow ends the scattered light is red
    soft_key = np.stack([key**0.75, key, key**1.1])
    return _finish(albedo, diffuse * soft_key, n, light, key, ambient, gloss, 22.0)


def light_cloth(
    albedo: np.ndarray, n: np.ndarray, light: Light, key: np.ndarray, ambient: np.ndarray, gloss: np.ndarray | float
) -> np.ndarray:
    """Cloth: matt, with a little fuzz at grazing angles; arguments as in :func:`light_skin`."""
    facing = np.clip(np.tensordot(light.key_dir.astype(np.float32), n, 1), 0, None)
    fuzz = 0.22 * (1 - np.clip(n[2], 0, 1)) ** 2
    return _finish(albedo, (facing * key + fuzz * ambient)[None], n, light, key, ambient, gloss, 9.0)


def _finish(albedo, diffuse, n, light, key, ambient, gloss, power) -> np.ndarray:
    column = np.float32
    up = (0.5 - 0.5 * n[1]) * ambient
    fill = light.sky.astype(column)[:, None, None] * up + light.ground.astype(column)[:, None, None] * (ambient - up)
    half = light.key_dir + np.array([0, 0, 1.0])
    half = (half / np.linalg.norm(half)).astype(column)
    shine = np.clip(np.tensordot(half, n, 1), 0, 1) ** power * key * gloss
    graze = np.clip(1 - n[2], 0, 1)
    rim = graze**2.2 * np.clip(light.rim_dir[0] * n[0] + light.rim_dir[1] * n[1] + 0.05, 0, 1) * ambient**0.5
    colour = albedo * (light.key.astype(column)[:, None, None] * diffuse + fill)
    colour += light.key.astype(column)[:, None, None] * shine
    return colour + light.rim.astype(column)[:, None, None] * rim * (0.25 + albedo)


@functools.lru_cache(maxsize=8)
def noise(seed: int, size: int, smooth: float) -> np.ndarray:
    """Smooth noise (size, size) float32 that tiles, zero mean, unit deviation."""
    field = np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32)
    field = ndimage.gaussian_filter(field, smooth, mode="wrap")
    return (field - field.mean()) / field.std()


def sample(field: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear look-up in a tiling field at ``u`` (x) and ``v`` (y) in texels."""
    return ndimage.map_coordinates(field, np.stack([v, u]), order=1, mode="grid-wrap").astype(np.float32)
