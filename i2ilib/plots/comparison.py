"""Figures of comparisons: every metric over the frames, and the worst frame beside its reference."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ..errors import I2IError
from ..metrics import metric
from . import ERROR_MAP, WIDTH, show
from .metrics import look


def comparison(
    frames: Mapping[str, pd.DataFrame], worst: tuple[str, torch.Tensor, torch.Tensor] | None = None
) -> Figure:
    """A panel a metric with a line a candidate, and below it one frame, its reference and where they differ.

    Args:
        frames: By candidate, one row a frame and one column a metric, as :meth:`Candidate.per_frame` gives them.
        worst: What to call the frame, the candidate's picture and the reference's, (C, H, W) or (1, C, H, W), [0, 1].

    Raises:
        I2IError: If there is nothing to draw.
    """
    names = [name for name in next(iter(frames.values()), pd.DataFrame()) if _any(frames, name)]
    if not names and worst is None:
        raise I2IError("frames", expected="scores of at least one metric", got="none", remedy="See why in the table.")
    columns = max(1, min(3, len(names)))
    rows = math.ceil(len(names) / columns)
    heights = [2.1 * rows] * bool(names) + [2.3] * (worst is not None)
    figure = plt.figure(figsize=(WIDTH, sum(heights)))
    parts = np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights))
    if worst is not None:
        _beside(parts[-1], *worst)
    if not names:  # equal in every frame
        return figure
    axes = parts[0].subplots(rows, columns, squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        _panel(ax, name, frames)
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    if len(frames) > 1:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        parts[0].legend(handles, labels, loc="outside lower center", ncols=min(4, len(frames)))
    return figure


def _plain(name: str) -> str:
    """A name as Matplotlib shows it: a dollar begins no formula, an underscore hides nothing."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _any(frames: Mapping[str, pd.DataFrame], name: str) -> bool:
    return any(name in table and np.isfinite(table[name]).any() for table in frames.values())


def _panel(ax, name: str, frames: Mapping[str, pd.DataFrame]) -> None:
    for place, (candidate, table) in enumerate(frames.items()):
        if name not in table:
            continue
        every = max(1, len(table) // 20)  # a mark on each of some twenty frames
        ax.plot(
            np.arange(1, len(table) + 1),
            table[name],
            label=_plain(candidate),
            markevery=every,
            ms=3.5,
            lw=1.3,
            **look(place),
        )
    ax.set(title=metric(name).heading, xlabel="frame")
    if max(map(len, frames.values())) == 1:
        ax.set_xticks([1])


def _beside(part, title: str, pred: torch.Tensor, target: torch.Tensor) -> None:
    pred, target = (image.reshape(-1, *image.shape[-2:]).detach().float().cpu() for image in (pred, target))
    left, middle, right = part.subplots(1, 3)
    show(left, target, "reference")
    show(middle, pred, _plain(title))
    error = (pred - target).abs().mean(0)
    drawn = show(right, error, "absolute difference", cmap=ERROR_MAP, vmin=0, vmax=max(error.max().item(), 1e-6))
    part.colorbar(drawn, ax=right, shrink=0.8)
