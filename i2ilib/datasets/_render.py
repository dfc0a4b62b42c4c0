"""One frame of a synthetic actor: hair and body drawn in layers, moved through the exposure and averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy import ndimage

from . import _figure as figure
from . import _hair as hair
from . import _paint as paint
from ._motion import PELVIS, Pose, local, pose

if TYPE_CHECKING:
    from .synthetic import Actor

REACH = 3.0  # of a figure to either side, half heads


def _light(actor: Actor) -> hair.Light:
    azimuth, elevation = np.radians(actor.key_angle)
    key_dir = np.array([np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    plate = paint.linear(paint.plate(actor, 90, 160))
    sky, ground = plate[:, :45].mean((1, 2)), plate[:, 45:].mean((1, 2))
    sky, ground = (c / max(c.max(), 1e-3) * 0.5 + 0.5 for c in (sky, ground))  # tinted by the place
    rim_dir = np.array([-np.sign(azimuth or 1.0) * 0.85, -0.5, 0])
    return hair.Light(
        key_dir, 0.92 * paint.linear(actor.key), 0.30 * sky, 0.16 * ground, rim_dir, 1.1 * paint.linear(actor.rim)
    )


_Window = tuple[slice, slice]  # rows and columns of the canvas


class _View(NamedTuple):
    """Figure coordinates on a pixel grid."""

    scale: float  # pixels per half head
    origin: complex  # of the figure, in pixels
    shape: tuple[int, int]

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        y, x = np.mgrid[0 : self.shape[0], 0 : self.shape[1]].astype(np.float32)
        return (x - self.origin.real) / self.scale, (y - self.origin.imag) / self.scale

    def window(self, low: complex, high: complex, margin: int) -> _Window | None:
        """The pixels of a box in figure coordinates and a margin; None where it is not on the canvas."""
        a, b = complex(low) * self.scale + self.origin, complex(high) * self.scale + self.origin
        h, w = self.shape
        ys = slice(max(0, int(a.imag) - margin), min(h, int(b.imag) + margin + 1))
        xs = slice(max(0, int(a.real) - margin), min(w, int(b.real) + margin + 1))
        return (ys, xs) if ys.stop - ys.start > 1 and xs.stop - xs.start > 1 else None

    def cut(self, window: _Window) -> _View:
        ys, xs = window
        origin = self.origin - complex(xs.start, ys.start)
        return _View(self.scale, origin, (ys.stop - ys.start, xs.stop - xs.start))

    def coarse(self, step: int) -> _View:
        h, w = self.shape
        origin = (self.origin - (step - 1) / 2 * (1 + 1j)) / step
        return _View(self.scale / step, origin, (-(-h // step), -(-w // step)))


PARTS = ("trunk", "head", "arm")


def _surfaces(part: str, actor: Actor, p: Pose, x: np.ndarray, y: np.ndarray) -> tuple[figure.Surface, ...]:
    """A part's surfaces in one pose: neck and trunk, head, or sleeve and hand."""
    if part == "head":
        hx, hy = x - np.float32(p.head_at.real), y - np.float32(p.head_at.imag)
        return (figure.head(hx, hy, p.head_turn, actor.build),)
    if part == "arm":
        elbow, wrist = np.array([p.elbow.real, p.elbow.imag, 0.15]), np.array([p.wrist.real, p.wrist.imag, 0.75])
        return figure.forearm(x, y, elbow, wrist, float(p.hand_turn), 0.10, actor.build)
    wide = 1.0 + 0.16 * actor.build
    lx, ly = local(p, x, y)
    neck, trunk = figure.torso(lx, ly, actor.build, actor.bust)
    elbow = (complex(p.elbow) - PELVIS - complex(p.body_shift)) * np.exp(-1j * p.body_turn) + PELVIS
    shoulder = np.array([1.22 * wide, 1.78, -0.15])
    left = figure.arm_upper(lx, ly, shoulder * [-1, 1, 1], np.array([-1.22 * wide - 0.32, 3.6, -0.2]), actor.build)
    right = figure.arm_upper(lx, ly, shoulder, np.array([elbow.real, elbow.imag, 0.05]), actor.build)
    return neck, figure.melt(trunk, (left, 0.16), (right, 0.16))


def _box(part: str, p: Pose) -> tuple[complex, complex]:
    """Corners of a part's box in figure coordinates."""
    if part == "head":
        return p.head_at - (1.05 + 1.2j), p.head_at + (1.05 + 1.2j)
    if part == "arm":
        x, y = zip(*((complex(q).real, complex(q).imag) for q in (p.elbow, p.wrist)), strict=True)
        reach = 1.05  # a hand beyond the wrist
        return complex(min(x) - reach, min(y) - reach), complex(max(x) + reach, max(y) + reach)
    return complex(-9, p.head_at.imag + 0.35), complex(9, 9)


def _visible(surface: figure.Surface) -> np.ndarray:
    return np.where(surface.inside > 0, surface.z, figure.FAR)


def _resize(a: np.ndarray, window: _Window, step: int) -> np.ndarray:
    """A window of a coarse field, brought to full resolution."""
    ys, xs = window
    y = ((np.arange(ys.start, ys.stop, dtype=np.float32)) - (step - 1) / 2) / step
    x = ((np.arange(xs.start, xs.stop, dtype=np.float32)) - (step - 1) / 2) / step
    gy, gx = (torch.from_numpy(v * np.float32(2 / max(n - 1, 1)) - 1) for v, n in zip((y, x), a.shape, strict=True))
    grid = torch.stack(torch.meshgrid(gy, gx, indexing="ij")[::-1], -1)[None]
    field = torch.from_numpy(a.astype(np.float32))[None, None]
    return torch.nn.functional.grid_sample(field, grid, padding_mode="border", align_corners=True)[0, 0].numpy()


def _layers(
    actor: Actor, p: Pose, view: _View, light: hair.Light, hair_tau: np.ndarray, blink: float, margin: int
) -> dict[str, tuple[_Window, torch.Tensor]]:
    """The body's layers at mid-shutter: where on the canvas, and premultiplied sRGB codes with coverage (4, h, w)."""
    step = max(1, round(view.scale / 45))
    low = view.coarse(step)
    grid = low.grid()
    coarse = {part: _surfaces(part, actor, p, *grid) for part in PARTS}
    scene = np.maximum.reduce([_visible(s) for surfaces in coarse.values() for s in surfaces])
    tau = ndimage.gaussian_filter(hair_tau[::step, ::step], 0.05 * low.scale)
    shade = np.exp(-0.9 * np.clip(tau, 0, 2))
    lx, ly = round(0.10 * low.scale * light.key_dir[0]), round(0.12 * low.scale * light.key_dir[1])
    shade = ndimage.shift(shade, (-ly, -lx), order=0, mode="nearest")  # hair throws its shadow away from the key

    out = {}
    for part in PARTS:
        window = view.window(*_box(part, p), margin)
        if window is None:
            continue
        sub = view.cut(window)
        x, y = sub.grid()
        z_low = np.maximum.reduce([s.z for s in coarse[part]])
        key = figure.shadow(z_low, scene, light.key_dir, low.scale)
        ao = paint.occlusion(z_low, scene, low.scale)
        if part != "arm":
            key, ao = key * shade, ao * (0.45 + 0.55 * shade)
        site = paint.Site(
            actor, p, light, view.scale, x, y, _resize(key, window, step), _resize(ao, window, step), blink
        )
        colour, alpha = getattr(paint, f"shade_{part}")(site, _surfaces(part, actor, p, x, y))
        image = np.concatenate([paint.encode(colour) * alpha, alpha[None]]).astype(np.float32)
        out[part] = (window, torch.from_numpy(image))
    return out


def _warp(layer: torch.Tensor, turn: complex, shift: complex, pivot: complex) -> torch.Tensor:
    """Move a layer (4, H, W): rotate by the unit complex ``turn`` about ``pivot`` and shift, all in pixels."""
    _, h, w = layer.shape
    y, x = torch.meshgrid(torch.arange(h, dtype=torch.float32), torch.arange(w, dtype=torch.float32), indexing="ij")
    c, s = turn.real, turn.imag
    px, py = x - pivot.real - shift.real, y - pivot.imag - shift.imag
    sx, sy = c * px + s * py + pivot.real, -s * px + c * py + pivot.imag
    grid = torch.stack([sx * (2 / (w - 1)) - 1, sy * (2 / (h - 1)) - 1], -1)[None]
    return torch.nn.functional.grid_sample(layer[None], grid, align_corners=True)[0]


def _over(below: torch.Tensor, layer: torch.Tensor) -> None:
    """Put a premultiplied layer over an image, in place."""
    below.mul_(1 - layer[3:]).add_(layer)


def _hair_layers(
    actor: Actor, time: float, view: _View, light: hair.Light, lit: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hair behind and before the body, premultiplied (4, H, W); optical depth of the front; light of the strands."""
    strands = hair.grow(actor.style, actor.seed)
    late = np.linspace(0, 1, hair.POINTS) ** 1.5 * 0.10 * min(actor.style.length, 2.5)
    p = pose(actor, time - late)
    offset = np.stack([p.head_at.real, p.head_at.imag, 0 * late], -1)
    sway = 0.035 * actor.style.length
    points = hair.posed(strands, p.head_turn, offset, time=time + actor.phase, sway=sway)
    centre = np.array([p.head_at[0].real, p.head_at[0].imag, 0]) + p.head_turn[0] @ hair.SKULL_CENTRE
    lit = np.stack(hair.shade(points, strands, light, centre), -1) if lit is None else lit
    origin = np.array([view.origin.real, view.origin.imag])
    xy = points[..., :2] * view.scale + origin
    z = points[..., 2]
    # in front where it lies over the head, or over the chest
    before = np.where(points[..., 1] < centre[1] + 1.0, z > -0.22, z > 0.02)
    width = 0.0062 * strands.width * view.scale
    tau, drawn, value = hair.draw(xy, np.concatenate([z[..., None], lit], -1), before, width, view.shape)
    base = paint.linear(actor.hair)
    mix = np.stack([
        light.key * base * 1.25, (0.10 + 0.6 * base) * light.key * 0.55, (0.08 + 0.9 * base) * light.rim * 0.7,
        1.1 * light.sky * base,
    ]).astype(np.float32)  # fmt: skip
    depth = tau.ravel()[drawn]
    colour = value @ mix
    behind = drawn < tau[0].size
    colour *= np.where(behind, 0.55 + 0.45 * np.exp(-0.25 * depth), 1)[:, None]  # less light reaches the hair behind
    alpha = 1 - np.exp(-depth)
    image = np.zeros((4, tau.size), np.float32)
    for plane, codes in zip(image, (*paint.encode(colour.T), np.ones_like(alpha)), strict=True):
        plane[drawn] = codes * alpha
    back, front = image.reshape(4, 2, *view.shape).swapaxes(0, 1)
    return back, front, tau[1], lit


def render(actor: Actor, time: float, height: int, width: int, shutter: float) -> tuple[np.ndarray, np.ndarray]:
    """Straight sRGB codes (3, H, W) and coverage (1, H, W), without grain."""
    scale = actor.size * height
    path = pose(actor, time + shutter * np.linspace(-0.5, 0.5, 9))
    fingers = path.wrist + 0.6 * np.exp(1j * np.angle(path.wrist - path.elbow))
    head_travel = float(np.ptp(path.head_at.real) + np.ptp(path.head_at.imag) + np.ptp(path.yaw)) * scale
    travel = max(head_travel, float(np.ptp(fingers.real) + np.ptp(fingers.imag)) * scale)
    count, hair_count = (int(np.clip(2 * np.ceil(way / 4 - 0.25) + 1, 1, 9)) for way in (travel, head_travel))
    # draw on a canvas that holds the figure, a little beyond the frame
    pad = int(np.ceil(travel)) + 2
    at = complex(actor.position[0] * width, actor.position[1] * height)
    left = max(-pad, int(at.real - REACH * scale))
    right = min(width + pad, int(at.real + REACH * scale))
    origin = at - complex(left, -pad)
    view = _View(scale, origin, (height + 2 * pad, right - left))
    light = _light(actor)
    p = Pose(*(np.asarray(v) for v in pose(actor, time)))
    blink = float(np.exp(-((((time + actor.phase + 0.9) % 2.7 - 1.35) / 0.07) ** 2)))
    mid_hair = _hair_layers(actor, time, view, light)
    drawn, hair_at = mid_hair, (hair_count - 1) // 2  # the hair of which part of the exposure
    body = _layers(actor, p, view, light, mid_hair[2], blink, pad)

    def pixel(q: complex) -> complex:
        return complex(q) * scale + origin

    total = torch.zeros(4, *view.shape)
    for k in range(count):
        moment = time + shutter * ((k + 0.5) / count - 0.5)
        still = 2 * k + 1 == count
        part = min(k * hair_count // count, hair_count - 1)
        if part != hair_at:
            hair_time = time + shutter * ((part + 0.5) / hair_count - 0.5)
            middle = 2 * part + 1 == hair_count
            drawn, hair_at = mid_hair if middle else _hair_layers(actor, hair_time, view, light, mid_hair[3]), part
        back, front, *_ = drawn
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
            layers = {}
            for part, (window, layer) in body.items():
                turn, shift, pivot = (complex(m) for m in moves[part])
                layers[part] = (window, _warp(layer, turn, shift, pivot - complex(window[1].start, window[0].start)))
        image = torch.from_numpy(back).clone()
        for part in PARTS:
            if part == "arm":
                _over(image, torch.from_numpy(front))
            if part in layers:
                (ys, xs), layer = layers[part]
                _over(image[:, ys, xs], layer)
        total += image
    whole = np.zeros((4, height, width), np.float32)
    first, last = max(left, 0), min(right, width)
    whole[:, :, first:last] = total[:, pad : pad + height, first - left : last - left].numpy() / count
    alpha = np.clip(whole[3:], 0, 1)
    alpha = np.where(alpha < 1 / 510, 0, np.where(alpha > 1 - 1 / 510, 1, alpha))  # 8 bits see no difference
    return whole[:3] / np.maximum(whole[3:], 1e-6), alpha
