"""The texture of the synthetic faces: paint on material coordinates, under two lights and the sky.

Colours are scene-linear until the last step.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..colour import linear_to_srgb, srgb_to_linear
from ._head import Params, Plane, bump, fall, mouth, normals, positions, soft


def _rgb(*codes: float) -> Tensor:
    """Scene-linear colour of sRGB codes, (3, 1, 1)."""
    return srgb_to_linear(torch.tensor(codes))[:, None, None]


SKIN, WARM, LIPS = _rgb(0.89, 0.67, 0.55), _rgb(0.86, 0.44, 0.38), _rgb(0.74, 0.33, 0.33)
HAIR, BROW, LASH = _rgb(0.34, 0.17, 0.12), _rgb(0.27, 0.14, 0.11), _rgb(0.12, 0.07, 0.07)
WHITE, IRIS, RIM, DARK = _rgb(0.93, 0.92, 0.91), _rgb(0.25, 0.55, 0.60), _rgb(0.07, 0.17, 0.23), _rgb(0.03, 0.03, 0.04)
THROAT, TEETH, SHIRT = _rgb(0.30, 0.08, 0.09), _rgb(0.94, 0.92, 0.88), _rgb(0.16, 0.30, 0.42)
_KEY = F.normalize(torch.tensor([-0.55, 0.62, 0.75]), dim=0)
_FILL = F.normalize(torch.tensor([0.85, 0.05, 0.45]), dim=0)


def texture(p: Plane, e: Params, view: Tensor) -> Tensor:
    """(N, 3, size, size) sRGB in [0, 1]."""
    normal = normals(positions(p, e))
    paint = _paint(p, e)
    key, fill = _KEY[:, None, None], _FILL[:, None, None]

    def lit(light: Tensor, wrap: float) -> Tensor:
        return (((normal * light).sum(1, keepdim=True) + wrap) / (1 + wrap)).clamp(min=0)

    sky = 0.5 + 0.5 * normal[:, 1:2]
    warm, cool = _rgb(1.0, 0.93, 0.84), _rgb(0.74, 0.84, 1.0)
    light = 1.10 * warm * lit(key, 0.25) + 0.30 * cool * lit(fill, 0.4) + (0.16 + 0.20 * sky) * cool
    half = F.normalize(key + view, dim=1)
    shine = (normal * half).sum(1, keepdim=True).clamp(min=0)
    back = F.normalize(fill + view, dim=1)
    shine = shine**26 + 0.45 * (normal * back).sum(1, keepdim=True).clamp(min=0) ** 18
    grazing = (1 - (normal * view).sum(1, keepdim=True).clamp(0, 1)) ** 3
    colour = paint.albedo * light * _shade(p, e) + paint.gloss * shine * warm
    colour = colour + 0.05 * grazing * cool * (0.4 + sky) + paint.glow
    return linear_to_srgb(colour.clamp(0, 1))


def _shade(p: Plane, e: Params) -> Tensor:
    """How much light reaches the creases: (N, 1, size, size) in [0, 1]."""
    x, y, f = p.x, p.y, p.front
    dark = 0.30 * bump(x, y, 0, -0.385, 0.10, 0.035) + 0.35 * p.neck.clamp(max=0.4) / 0.4 * fall(3 * p.neck)
    for side in (-1, 1):
        dark = dark + 0.30 * bump(x, y, 0.17 * side, 0.09, 0.06, 0.10)
        dark = dark + 0.12 * bump(x, y, 0.3 * side, 0.18, 0.2, 0.05)
        dark = dark + 0.75 * bump(x, y, 0.060 * side, -0.345, 0.030, 0.016)  # nostrils
        fold = x * side - 0.19 - 0.55 * (-0.30 - y)
        fold = fall((fold / 0.045) ** 2 + ((y + 0.40) / 0.10) ** 2) * soft(x * side - 0.1, 0.1)
        dark = dark + 0.16 * (0.3 + e["smile"]).clamp(min=0) * fold
        dark = dark + 0.25 * e["frown"].clamp(min=0) * bump(x, y, 0.05 * side, 0.29, 0.014, 0.06)
    edge = fall(((p.tinted - 0.4) / 0.3) ** 2) * 0.25
    dark = dark * f + edge + 0.10 * bump(x, y, 0, -0.655, 0.17, 0.035) * f
    return (1 - dark).clamp(0.05, 1)[:, None].reshape(-1, 1, p.size, p.size)


class _Canvas:
    """Layers of paint on every texel: colour under light, strength of gloss, and what shines whatever the light."""

    def __init__(self, p: Plane, count: int):
        self.pixel = 3.2 / p.size  # softest edge that a texel can show
        self.albedo = SKIN.expand(count, 3, p.size, p.size)
        self.gloss = torch.zeros(count, 1, p.size, p.size)
        self.glow = torch.zeros(count, 3, p.size, p.size)

    def cover(self, colour: Tensor, share: Tensor) -> None:
        """Lay a colour over the albedo."""
        self.albedo = self.albedo + (colour - self.albedo) * _layer(share)

    def polish(self, strength: Tensor) -> None:
        """Add gloss."""
        self.gloss = self.gloss + _layer(strength)

    def light(self, colour: Tensor, share: Tensor) -> None:
        """Lay a colour that no light changes over all there is."""
        self.albedo, self.gloss = self.albedo * (1 - _layer(share)), self.gloss * (1 - _layer(share))
        self.glow = self.glow + (colour - self.glow) * _layer(share)


def _layer(share: Tensor) -> Tensor:
    """(H, W) or (N, H, W) to (N, 1, H, W)."""
    return share.reshape(-1, 1, *share.shape[-2:])


def _paint(p: Plane, e: Params) -> _Canvas:
    x, y, f = p.x, p.y, p.front
    canvas = _Canvas(p, len(e["smile"]))
    cheeks = bump(x, y, 0.40, -0.22, 0.20, 0.15) + bump(x, y, -0.40, -0.22, 0.20, 0.15)
    canvas.cover(WARM, ((0.38 + 0.30 * e["blush"]) * cheeks + 0.22 * bump(x, y, 0, -0.26, 0.12, 0.10)) * f)
    canvas.polish(0.10 * (1 - p.tinted) * (p.neck <= 0) + 0.10 * f * bump(x, y, 0, -0.25, 0.12, 0.14))
    _paint_mouth(canvas, p, e)
    for side, name in ((-1, "left"), (1, "right")):
        _paint_eye(canvas, p, e, side, e[f"lid_{name}"])
        along = (x * side - 0.29) / 0.19
        centre = 0.270 + 0.030 * e[f"brow_{name}"] - 0.045 * (along - 0.15) ** 2
        centre = centre - 0.035 * e["frown"] * torch.sigmoid(-4 * along)
        thick = 0.030 * (1.1 - 0.45 * along).clamp(min=0.1)
        brow = fall(((y - centre) / thick) ** 4) * soft(1 - along.abs(), 0.25) * (x * side > 0) * f
        canvas.cover(BROW, 0.9 * brow * (0.94 + 0.06 * torch.sin(150 * x * side + 60 * y)))
    strand = torch.sin(70 * p.theta + 9 * p.phi) + torch.sin(43 * p.theta - 14 * p.phi + 2) + torch.sin(131 * p.theta)
    canvas.cover(HAIR * (1 + 0.22 * strand), p.tinted)
    band = fall(((y - 0.80 + 0.05 * torch.cos(3 * p.theta)) / 0.10) ** 2) * (0.7 + 0.3 * strand / 3)
    canvas.polish(p.tinted * (0.10 + 0.35 * band))
    canvas.cover(SHIRT, soft(p.neck - 0.55 - 0.06 * torch.cos(p.theta), 0.06))
    return canvas


def _paint_mouth(canvas: _Canvas, p: Plane, e: Params) -> None:
    pixel = canvas.pixel
    across, above, gap, inside = mouth(p, e)
    bow = 1 - 0.28 * fall((across / 0.16) ** 2) + 0.10 * fall(((across.abs() - 0.3) / 0.2) ** 2)
    arch = (1 - across**2).clamp(min=0)
    press = 1 + 0.35 * e["jaw"].clamp(max=0) + 0.25 * e["pucker"]
    top, bottom = gap + 0.062 * press * arch**0.75 * bow, -gap - 0.075 * press * arch**0.6
    lips = soft(top - above, 2.5 * pixel) * soft(above - bottom, 2.5 * pixel) * inside
    canvas.cover(LIPS, lips)
    canvas.polish(0.22 * lips * soft(-above, 2 * pixel))
    canvas.cover(THROAT, 0.75 * fall((above / 0.008) ** 2) * inside * (1 - soft(gap - 0.01, 0.01)) * p.front)
    hole = soft(gap - above.abs(), 1.5 * pixel) * inside * soft(gap - 0.004, 0.004)
    teeth = soft(above - 0.45 * gap, 2 * pixel) * soft(0.97 - across.abs(), 0.3)
    canvas.light(THROAT * 0.45 + (TEETH * 0.62 - THROAT * 0.45) * _layer(teeth), hole)


def _paint_eye(canvas: _Canvas, p: Plane, e: Params, side: int, lid: Tensor) -> None:
    pixel, seen = canvas.pixel, p.front > 0.2
    dx, dy = (p.x - 0.305 * side) / 1.30, (p.y - 0.07) / 1.42
    across = dx / 0.150
    arch = (1 - across**2).clamp(min=0) ** 0.7
    opened = (0.74 + 0.38 * lid + 0.10 * lid.clamp(min=0)).clamp(min=0) * soft(lid + 0.9, 0.4)
    opened = torch.where(lid < -0.98, torch.zeros_like(opened), opened)
    gx, gy = dx - 0.055 * e["gaze_x"], dy - 0.008 - 0.028 * e["gaze_y"]
    radius = torch.sqrt(gx**2 + gy**2)
    dy = dy - 0.012 * across * side  # eyes slant a little
    top = (0.110 * opened - 0.030) * arch
    low = torch.minimum((0.018 * e["smile"].clamp(min=0) - 0.048) * arch, top)
    low = top + (low - top) * soft(opened, 0.3)
    within = (
        soft(top - dy, 2 * pixel) * soft(dy - low, 2 * pixel) * (across.abs() < 1) * seen * soft(opened - 0.05, 0.1)
    )
    canvas.cover(WARM * 0.9, 0.25 * fall(((dy - top - 0.03) / 0.028) ** 2) * arch * p.front)  # the lid's crease
    canvas.cover(WHITE * 0.86, within)
    rays, shade = 0.85 + 0.15 * torch.cos(14 * torch.atan2(gy, gx)), 0.75 + 0.6 * (0.5 - gy / 0.12)
    canvas.cover(IRIS, within * soft(0.066 - radius, 2 * pixel))
    canvas.cover(IRIS * _layer(rays * shade), within * soft(0.062 - radius, 2 * pixel))
    canvas.cover(RIM, within * fall(((radius - 0.064) / 0.009) ** 2))
    canvas.cover(DARK, within * soft(0.028 - radius, 1.5 * pixel))
    canvas.cover(DARK, 0.45 * within * fall(((dy - top) / 0.022) ** 2))  # shadow of the lid
    canvas.cover(LASH, 0.92 * fall(((dy - top - 0.006) / 0.011) ** 2) * soft(1.04 - across.abs(), 0.12) * seen)
    canvas.cover(LASH, 0.30 * fall(((dy - low + 0.004) / 0.007) ** 2) * soft(0.9 - across.abs(), 0.3) * seen)
    spot = soft(0.016 - torch.sqrt((gx + 0.024) ** 2 + (gy - 0.026) ** 2), 2 * pixel) * within
    canvas.glow = canvas.glow + 0.9 * _layer(spot)
