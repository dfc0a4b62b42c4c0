"""A face that is computed: expression and view in, mesh, texture and warp field out; and a small renderer.

It stands in for the captured faces behind codec avatars, whose data are not public. The head is an ellipsoid of
(angle, height) with a neck, deformed by smooth bumps; colours are painted on the same two coordinates and lit. Every
picture of it is a function of its parameters and has any size. Conventions:

- The plane of the texture: columns U run around the head from its back over its right side (left in the picture),
  the nose in the middle, and back; rows V run from the crown to the neck. The face has the larger share of both.
- Space: x right, y up, z towards the viewer; 1 is half the height of the head. The view is the unit vector from the
  head to the viewer.
- Light and gloss are in the texture, so it depends on the view; what lies below the surface (irises) or moves over it
  (gloss) is shifted by the warp field.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import I2IError
from ..models.codec_avatar import CODE, GRID, Avatar
from . import _head, _mesh, _skin

LATENT = CODE * GRID**2


@dataclasses.dataclass(frozen=True)
class Expression:
    """What a face does; everything in [-1, 1], 0 at rest."""

    smile: float = 0.0
    jaw: float = 0.0  # 1 open; below 0 the lips are pressed
    pucker: float = 0.0  # 1 pursed, -1 wide
    smirk: float = 0.0  # one corner of the mouth above the other
    brow_left: float = 0.0  # left in the picture: 1 raised, -1 lowered
    brow_right: float = 0.0
    lid_left: float = 0.0  # 1 wide open, -1 shut
    lid_right: float = 0.0
    gaze_x: float = 0.0  # 1 to the right of the picture
    gaze_y: float = 0.0  # 1 up
    frown: float = 0.0  # inner ends of the brows down and together
    blush: float = 0.0  # warmth of the cheeks


NAMES = tuple(field.name for field in dataclasses.fields(Expression))

# Where each parameter is written in the code before its channels are mixed: channel, rows, columns. The code is laid
# out like the face, because convolutions carry a number only a few cells far.
_UPPER, _LOWER, _LEFT, _RIGHT, _ALL = slice(0, 4), slice(4, 8), slice(0, 4), slice(4, 8), slice(0, 8)
_PLACES = {
    "lid_left": (0, _UPPER, _LEFT), "lid_right": (0, _UPPER, _RIGHT),
    "brow_left": (1, _UPPER, _LEFT), "brow_right": (1, _UPPER, _RIGHT),
    "gaze_x": (2, _UPPER, _ALL), "gaze_y": (3, _UPPER, slice(0, 3)), "frown": (3, _UPPER, slice(3, 8)),
    "smile": (0, _LOWER, _ALL), "jaw": (1, _LOWER, _ALL), "pucker": (2, _LOWER, _ALL),
    "smirk": (3, _LOWER, _LEFT), "blush": (3, _LOWER, _RIGHT),
}  # fmt: skip


def _layout() -> Tensor:
    """(parameters, 256): what each parameter adds to the code."""
    mixing = torch.from_numpy(np.linalg.qr(np.random.default_rng(7).normal(size=(CODE, CODE)))[0]).float()
    maps = torch.zeros(len(NAMES), CODE, GRID, GRID)
    for i, name in enumerate(NAMES):
        channel, rows, columns = _PLACES[name]
        maps[i, channel, rows, columns] = 1.0
    return torch.einsum("dc,kchw->kdhw", mixing, maps).flatten(1)


_LAYOUT = _layout()
_READ = torch.linalg.pinv(_LAYOUT)


def encode(expressions: Expression | Sequence[Expression] | Tensor) -> Tensor:
    """The code of one expression or several: a fixed linear map, which stands for the encoder that a headset runs.

    Args:
        expressions: One or several :class:`Expression`, or their fields as (N, 12) float32 in :data:`NAMES`' order.

    Returns:
        (N, 256) float32.

    Example:
        >>> encode(Expression(smile=1)).shape
        torch.Size([1, 256])
    """
    if isinstance(expressions, Expression):
        expressions = [expressions]
    if not isinstance(expressions, Tensor):
        expressions = torch.tensor([dataclasses.astuple(e) for e in expressions], dtype=torch.float32)
    return expressions @ _LAYOUT


def direction(azimuth: float, elevation: float = 0.0) -> Tensor:
    """The view from an azimuth (right is positive) and an elevation, in degrees: (3,) float32 of length 1."""
    a, e = math.radians(azimuth), math.radians(elevation)
    return torch.tensor([math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)])


def draw(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Codes and views at random: each parameter often at rest, views within 40° to the side and 20° up or down.

    Args:
        count: N.
        seed: The same gives the same.

    Returns:
        (N, 256) and (N, 3) float32.
    """
    rng = np.random.default_rng([seed, 14])
    values = np.clip(rng.normal(0, 0.55, (count, len(NAMES))), -1, 1)
    lids = [NAMES.index("lid_left"), NAMES.index("lid_right")]
    together = rng.random(count) < 0.8  # eyes mostly open and shut as a pair
    values[together, lids[1]] = values[together, lids[0]]
    angles = rng.uniform(-1, 1, (count, 2)) * (40, 20)
    views = torch.stack([direction(a, e) for a, e in angles]) if count else torch.zeros(0, 3)
    return encode(torch.from_numpy(values).float()), views


def face(latent: Tensor, view: Tensor, *, size: int = 1024) -> Avatar:
    """The truth that a decoder learns: mesh, texture and warp field of a code, seen from a direction.

    Args:
        latent: (N, 256) float32; of other codes than :func:`encode` gives, what it can express of them.
        view: (N, 3) float32, unit vectors from the head to the viewer.
        size: Height and width of the texture, a multiple of 4.

    Returns:
        Geometry (N, 3, size/4, size/4), texture (N, 3, size, size) sRGB in [0, 1], warp (N, 2, size/4, size/4).

    Raises:
        I2IError: If shapes or size do not fit.
    """
    if latent.ndim != 2 or latent.shape[1] != LATENT or tuple(view.shape) != (len(latent), 3):
        got = f"{tuple(latent.shape)} and {tuple(view.shape)}"
        raise I2IError("face", expected=f"latent (N, {LATENT}) and view (N, 3)", got=got)
    if size < 16 or size % 4:
        raise I2IError("face size", expected="a multiple of 4 from 16", got=size)
    values = (latent @ _READ).clamp(-1, 1)
    e = dict(zip(NAMES, values.T[:, :, None, None], strict=True))
    view = (view / view.norm(dim=1, keepdim=True))[:, :, None, None]
    coarse = _head.plane(size // 4)
    geometry = _head.positions(coarse, e)
    return Avatar(geometry, _skin.texture(_head.plane(size), e, view), _head.warp(coarse, geometry, view))


def attention(size: int) -> Tensor:
    """Where a viewer looks: (size, size) weights of the texture's errors, mean 1; eyes and mouth weigh most."""
    p = _head.plane(size)
    eyes = _head.bump(p.x, p.y, 0.305, 0.07, 0.22, 0.13) + _head.bump(p.x, p.y, -0.305, 0.07, 0.22, 0.13)
    weight = 1 + p.front * (9 * eyes + 5 * _head.bump(p.x, p.y, 0, -0.53, 0.26, 0.14))
    return weight / weight.mean()


def render(avatar: Avatar, view: Tensor, *, size: int = 384, zoom: float = 0.60) -> Tensor:
    """Draw avatars as a viewer sees them: the mesh with its texture, read where the warp field says.

    Triangles between neighbouring texels of the geometry, a depth buffer, twice the resolution and a box filter.

    Args:
        avatar: Of N faces, computed by :func:`face` or decoded.
        view: (N, 3) float32, unit vectors from the head to the viewer.
        size: Height and width of the picture in pixels.
        zoom: Picture heights that half a head takes, at the head's distance, times two.

    Returns:
        (N, 3, size, size) float32, sRGB in [0, 1].

    Raises:
        I2IError: If there is not one view a face.
    """
    if tuple(view.shape) != (len(avatar.geometry), 3):
        raise I2IError("render", expected=f"views ({len(avatar.geometry)}, 3)", got=tuple(view.shape))
    parts = zip(*(part.detach().float().cpu() for part in avatar), view.detach().float().cpu(), strict=True)
    return torch.stack([_mesh.draw(*part, 2 * size, zoom) for part in parts])
