"""A small renderer: triangles on a grid of points, a depth buffer, a texture that is read where a field says."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WARP_UNIT = 1 / 64  # of the texture's edge: what 1 in a warp field means


def draw(geometry: Tensor, texture: Tensor, warp: Tensor, view: Tensor, size: int, zoom: float) -> Tensor:
    """One avatar (3, h, w), (3, s, s), (2, h, w) from a view (3,): (3, size/2, size/2) sRGB."""
    forward = F.normalize(view, dim=0)
    right = F.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), forward), dim=0)
    camera = torch.stack([right, torch.linalg.cross(forward, right), forward])
    crown = geometry[:, :1].mean(2, keepdim=True).expand(-1, -1, geometry.shape[2])
    mesh = torch.cat([crown, geometry], 1)
    mesh = torch.cat([mesh[:, :, -1:], mesh, mesh[:, :, :1]], 2)  # closed behind the head
    points = torch.einsum("ij,jhw->ihw", camera, mesh)
    near = 7.0 / (7.0 - points[2])  # the viewer stands 3.5 heads away
    scale = zoom * size / 2
    columns, rows = size / 2 + points[0] * near * scale, size * 0.455 - points[1] * near * scale
    covered, corner, weight = rasterise(rows.numpy(), columns.numpy(), points[2].numpy(), size)
    h, w = geometry.shape[1:]
    v = torch.cat([torch.zeros(1), (torch.arange(h) + 0.5) / h])[:, None].expand(-1, w + 2)
    u = ((torch.arange(w + 2) - 0.5) / w)[None].expand(h + 1, -1)
    at = (torch.stack([u, v]).reshape(2, -1)[:, corner] * weight).sum(1)  # (2, pixels) in [0, 1]
    at = at + WARP_UNIT * sample(warp, at)
    picture = backdrop(size)
    picture[:, covered] = sample(texture, at).clamp(0, 1)
    return F.avg_pool2d(picture.reshape(1, 3, size, size), 2)[0]


def sample(image: Tensor, at: Tensor) -> Tensor:
    """(C, H, W) at (2, P) positions in [0, 1], around the head without a seam: (C, P)."""
    width = image.shape[2]
    margin = max(1, width // 16)
    wide = torch.cat([image[:, :, -margin:], image, image[:, :, :margin]], 2)
    x = (at[0] * width + margin) / (width + 2 * margin)
    grid = torch.stack([2 * x - 1, 2 * at[1] - 1], -1)[None, None]
    return F.grid_sample(wide[None], grid, padding_mode="border", align_corners=False)[0, :, 0]


def rasterise(rows: np.ndarray, columns: np.ndarray, depth: np.ndarray, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which pixels a grid of points covers: their indices (P,), the nearest triangle's corners (3, P) and weights."""
    index = np.arange(rows.size).reshape(rows.shape)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    corners = np.concatenate([np.stack([a, c, b]).reshape(3, -1), np.stack([b, c, d]).reshape(3, -1)], 1)
    y, x, z = (part.ravel().astype(np.float32)[corners] for part in (rows, columns, depth))
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    front = area < -1e-6  # rows grow downwards
    y, x, z, area, corners = y[:, front], x[:, front], z[:, front], area[front], corners[:, front]
    # every pixel centre in the box around a triangle is tried
    low_x, low_y = (np.ceil(v.min(0) - 0.5).clip(0, size).astype(np.int64) for v in (x, y))
    high_x, high_y = (np.floor(v.max(0) - 0.5).clip(-1, size - 1).astype(np.int64) for v in (x, y))
    wide, high = (high_x - low_x + 1).clip(0), (high_y - low_y + 1).clip(0)
    count = wide * high
    which = np.repeat(np.arange(count.size), count)
    inner = np.arange(which.size) - np.repeat(np.cumsum(count) - count, count)
    px, py = low_x[which] + inner % wide[which], low_y[which] + inner // wide[which]
    x, y, z, area, corners = x[:, which], y[:, which], z[:, which], area[which], corners[:, which]
    fx, fy = px + 0.5, py + 0.5
    w1 = ((fx - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (fy - y[0])) / area
    w2 = ((x[1] - x[0]) * (fy - y[0]) - (fx - x[0]) * (y[1] - y[0])) / area
    weight = np.stack([1 - w1 - w2, w1, w2])
    hit = (weight >= -1e-6).all(0)
    pixel, weight, corners, z = (py * size + px)[hit], weight[:, hit], corners[:, hit], (weight * z).sum(0)[hit]
    order = np.lexsort((-z, pixel))  # nearest first in each pixel
    first = order[np.unique(pixel[order], return_index=True)[1]]
    return (
        torch.from_numpy(pixel[first]),
        torch.from_numpy(corners[:, first]),
        torch.from_numpy(weight[:, first]).float(),
    )


def backdrop(size: int) -> Tensor:
    """(3, size²): a soft grey-blue, lighter behind the head."""
    line = (torch.arange(size) + 0.5) / size - 0.5
    light = torch.exp(-3.5 * (line[:, None] ** 2 + line[None] ** 2)).reshape(-1)
    return torch.tensor([0.62, 0.68, 0.74])[:, None] + torch.tensor([0.28, 0.25, 0.22])[:, None] * light
