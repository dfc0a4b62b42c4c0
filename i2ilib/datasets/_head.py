"""The head of the synthetic faces: an ellipsoid with a neck, deformed by smooth bumps, and what an expression moves.

Everything is a function of material coordinates: the angle around the head and the height on it.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def soft(x: Tensor, width: float) -> Tensor:
    """From 0 to 1 around x = 0."""
    return torch.sigmoid((x * (4 / width)).clamp(-30, 30))


def fall(x: Tensor) -> Tensor:
    """exp(-x), for x of at least 0; never so small that arithmetic turns slow."""
    return torch.exp(-x.clamp(max=30))


def bump(x: Tensor, y: Tensor, x0: float, y0: float, wide: float, high: float) -> Tensor:
    return fall(((x - x0) / wide) ** 2 + ((y - y0) / high) ** 2)


class Plane:
    """Material coordinates of every texel: ``x``, ``y`` on the undeformed face, and masks."""

    def __init__(self, size: int):
        line = (torch.arange(size) + 0.5) / size
        v, u = torch.meshgrid(line, 2 * line - 1, indexing="ij")
        self.u, self.v, self.size = u, v, size
        self.theta = theta = math.pi * (0.38 * u + 0.32 * u**3 + 0.30 * u**5)  # finest in front
        head = (v / 0.88).clamp(max=1)
        head = head + 0.4 / math.tau * (torch.sin(math.tau * (head - 0.05)) + math.sin(math.tau * 0.05))  # and at eyes
        self.phi = phi = math.radians(90) - head * math.radians(152)  # crown to below the chin
        self.neck = ((v - 0.88) / 0.12).clamp(min=0)
        round_ = torch.cos(phi).clamp(min=0) ** torch.where(phi < 0, 0.72, 0.9)
        self.x, self.y = 0.80 * torch.sin(theta) * round_, 1.06 * torch.sin(phi)
        self.z = 0.90 * torch.cos(theta) * round_
        self.front = soft(torch.cos(theta) - 0.15, 0.5) * (1 - self.neck).clamp(min=0)
        away = theta.abs()
        fringe = 0.56 + 0.10 * torch.cos(2.2 * (theta - 0.35)) + 0.02 * torch.cos(9 * theta + 1)
        above = self.y - fringe + 1.22 * soft(away - 1.10, 0.55)  # a bob: down to the chin at the sides
        self.hair = soft(above - 0.06, 0.12) * (self.neck <= 0)  # where it stands off
        self.tinted = soft(above + 0.02, 0.04) * (self.neck <= 0)  # where it is seen


plane = functools.lru_cache(maxsize=4)(Plane)
Params = dict[str, Tensor]  # (N, 1, 1) by name


def mouth(p: Plane, e: Params) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Across the mouth (-1 and 1 at its corners), above its line, half the height of the gap, fading beyond it."""
    across = p.x / (0.235 - 0.05 * e["pucker"] + 0.02 * e["smile"])
    arch = (1 - across**2).clamp(min=0)
    line = -0.520 + 0.022 * ((e["smile"] + 0.4) * (across**2 - 0.4)) + 0.012 * torch.cos(3 * across) * arch
    gap = 0.072 * e["jaw"].clamp(min=0) * arch**0.7 * (1 + 0.35 * e["pucker"].clamp(min=0))
    return across, p.y - line, gap, soft(1 - across.abs(), 0.15) * (p.front > 0.2)


def positions(p: Plane, e: Params) -> Tensor:
    """(N, 3, size, size): where every texel is in space."""
    x0, y0, f = p.x, p.y, p.front
    one = torch.ones_like(e["smile"])

    def pair(x: float, y: float, wide: float, high: float) -> Tensor:
        return bump(x0, y0, x, y, wide, high) + bump(x0, y0, -x, y, wide, high)

    jaw_line = 1 - 0.24 * torch.sigmoid(-(y0 + 0.45) * 6)
    x, y, z = x0 * jaw_line * one, y0 * one, p.z * one
    # the skull and the features of a face at rest
    still = 0.05 * pair(0.24, 0.27, 0.20, 0.07) + 0.07 * pair(0.40, -0.16, 0.19, 0.15)
    still += 0.11 * bump(x0, y0, 0, 0.0, 0.075, 0.24) + 0.25 * bump(x0, y0, 0, -0.24, 0.115, 0.12)
    still += 0.10 * pair(0.105, -0.28, 0.065, 0.06) - 0.13 * pair(0.305, 0.07, 0.19, 0.12)
    still += 0.085 * pair(0.305, 0.06, 0.14, 0.095) + 0.07 * bump(x0, y0, 0, -0.52, 0.26, 0.15)
    still += 0.13 * bump(x0, y0, 0, -0.86, 0.19, 0.13) - 0.05 * bump(x0, y0, 0, -0.68, 0.2, 0.06)
    z = z + f * (still - 0.05 * pair(0.62, 0.25, 0.2, 0.35))
    # hair stands off the skull
    strands = 0.012 * torch.sin(26 * p.theta + 5 * p.phi) + 0.010 * torch.sin(11 * p.theta - 3)
    full = 0.105 + 0.05 * bump(p.theta, y0, 0.5, 0.75, 0.9, 0.3) + 0.16 * torch.sigmoid(-(y0 - 0.1) * 5)
    lift = 1 + p.hair * (full + strands * p.hair**3)
    x, y, z = x * lift, y * (1 + 0.09 * p.hair * soft(y0, 0.4)), z * lift
    # below the chin: the neck, leaning back
    down = p.neck
    inward = torch.where(down > 0, 1 - 0.30 * torch.sin(math.pi * (down.clamp(max=0.5))) + 0.75 * down**4, one)
    x, z = x * inward, z * torch.where(down > 0, inward * (1 - 0.25 * down.clamp(max=0.5)), one) - 0.16 * down
    y = y - 0.66 * down**1.3
    # what moves
    across, above, gap, _ = mouth(p, e)
    around = bump(x0, y0, 0, -0.52, 0.40, 0.26) * f
    corner = around * 1.4 * torch.tanh(across**2 / 1.4)
    opened = e["jaw"].clamp(min=0)
    lower = soft(-above, 0.05) * f * fall((x0 / 0.62) ** 2) * (1 - down).clamp(min=0) ** 2
    y = y + 0.115 * e["smile"] * corner + 0.05 * e["smirk"] * corner * torch.tanh(2 * across) - 0.16 * opened * lower
    y = y + 0.012 * opened * around
    x = x * (1 + around * (0.16 * e["smile"] - 0.22 * e["pucker"]))
    lips = fall(((above.abs() - gap - 0.035) / 0.035) ** 2) * fall(across**4) * f
    z = z + 0.055 * lips * (1 + 0.9 * e["pucker"]) - 0.05 * opened * lower - 0.05 * e["smile"] * corner
    z = z - 0.10 * soft(gap - above.abs(), 0.02) * (gap > 0.004) * f
    cheek = pair(0.36, -0.20, 0.15, 0.13)
    z, y = z + 0.055 * e["smile"] * cheek * f, y + 0.035 * e["smile"] * cheek * f
    for side, name in ((-1, "left"), (1, "right")):
        brow = bump(x0, y0, 0.27 * side, 0.30, 0.24, 0.13) * f
        y = y + brow * (0.055 * e[f"brow_{name}"] - 0.025 * e["frown"])
        lid = bump(x0, y0, 0.30 * side, 0.08, 0.13, 0.06) * f
        z = z + 0.02 * lid * (-e[f"lid_{name}"]).clamp(min=0)
    z = z + 0.03 * e["frown"] * bump(x0, y0, 0, 0.24, 0.12, 0.10) * f
    return torch.stack([x, y, z], 1)


def normals(mesh: Tensor) -> Tensor:
    """(N, 3, H, W) unit normals, pointing outwards."""
    wide = F.pad(mesh, (1, 1, 0, 0), "circular")  # around the head
    du = wide[..., 2:] - wide[..., :-2]
    high = F.pad(mesh, (0, 0, 1, 1), "replicate")
    dv = high[..., 2:, :] - high[..., :-2, :]
    normal = torch.linalg.cross(dv, du, dim=1)
    return normal / normal.norm(dim=1, keepdim=True).clamp(min=1e-9)


def warp(p: Plane, mesh: Tensor, view: Tensor) -> Tensor:
    """(N, 2, size, size): how far what is seen of a texel lies beside it, in 1/64 of the texture's edge."""
    normal = normals(mesh)
    wide = F.pad(mesh, (1, 1, 0, 0), "circular")
    along_u = F.normalize(wide[..., 2:] - wide[..., :-2], dim=1)
    along_v = torch.linalg.cross(along_u, normal, dim=1)
    eyes = bump(p.x, p.y, 0.30, 0.075, 0.13, 0.06) + bump(p.x, p.y, -0.30, 0.075, 0.13, 0.06)
    lips = bump(p.x, p.y, 0, -0.55, 0.2, 0.05)
    depth = (0.75 * eyes + 0.35 * lips) * p.front + 0.30 * p.hair
    slope = torch.stack([(view * along_u).sum(1), (view * along_v).sum(1)], 1)
    return -depth * slope
