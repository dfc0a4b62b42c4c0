"""Figures of metrics: one error in many forms, what each metric makes of it, and how sure a difference is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ..errors import I2IError
from ..metrics import Paired
from . import ERROR_MAP, INK, PALETTE, SIGNED_MAP, WIDTH, show

_LINES = ("-", "--", "-.", ":")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def pictures(images: Mapping[str, torch.Tensor], captions: Mapping[str, str] | None = None, columns: int = 4) -> Figure:
    """Pictures in a grid, each with its name above and a line below.

    Args:
        images: By name, (3, H, W) or (1, H, W) in [0, 1].
        captions: By the same names.
        columns: Pictures in a row.
    """
    if not images:
        raise I2IError("images", expected="at least one", got="none")
    captions = captions or {}
    rows = -(-len(images) // columns)
    height, width = next(iter(images.values())).shape[-2:]
    panel = WIDTH / columns
    size = (WIDTH, rows * (panel * height / width + 0.25 + 0.18 * bool(captions)))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for ax, (name, image) in zip(axes.flat, images.items(), strict=False):
        show(ax, image, name)
        ax.set_xlabel(captions.get(name, ""), labelpad=2)
    for ax in axes.flat[len(images) :]:
        ax.axis("off")
    return figure


def rank_lines(ranks: pd.DataFrame) -> Figure:
    """The order in which each metric puts the same pictures: a line a picture, which crosses where metrics disagree.

    Args:
        ranks: A row a picture, a column a metric; 1 is the best.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 0.6 + 0.36 * len(ranks)))
    at = np.arange(ranks.shape[1])
    for place, (name, row) in enumerate(ranks.iterrows()):
        own = look(place)
        ax.plot(at, row, ms=7, **own)
        for x, ha, gap in ((at[0], "right", -0.08), (at[-1], "left", 0.08)):
            ax.text(x + gap, row.iloc[x], name, ha=ha, va="center", color=own["color"], fontsize=9)
    ax.set(xticks=at, xticklabels=ranks.columns, xlim=(-0.8, at[-1] + 0.8), ylim=(len(ranks) + 0.5, 0.5))
    ax.set(
        yticks=[1, len(ranks)],
        yticklabels=["best", "worst"],
        title="The same error in decibels, in each metric's order",
    )
    ax.grid(False, axis="y")
    return figure


def ladders(found: Mapping[str, pd.DataFrame], units: Mapping[str, str], limits: tuple[float, float]) -> Figure:
    """A panel a fault: at each strength, the noise that each metric holds for as bad.

    Args:
        found: By fault, a row a strength and a column a metric: σ of that noise, 8-bit codes.
        units: Of the strengths, by fault.
        limits: The weakest and the strongest noise that was tried; what lies beyond is drawn on the edge.
    """
    columns = 4
    rows = -(-(len(found) + 1) // columns)  # the legend has the last place
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 1.95 * rows), sharey=True, squeeze=False)
    for place, (ax, (name, table)) in enumerate(zip(axes.flat, found.items(), strict=False)):
        at = np.arange(len(table))
        for line, metric in enumerate(table):
            ax.plot(at, table[metric].clip(*limits), label=metric, **{**look(line), "ms": 3.5, "lw": 1.3})
        ax.set(title=name, xticks=at, xticklabels=[f"{strength:g}" for strength in table.index], yscale="log")
        ax.set_xlabel(units[name], labelpad=1)
        ax.set_ylim(limits[0] / 1.3, limits[1] * 1.3)
        ticks = [2.0**k for k in range(-1, 8) if limits[0] <= 2.0**k <= limits[1]][::2]
        ax.yaxis.set_major_locator(mpl.ticker.FixedLocator(ticks))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        if place % columns == 0:
            ax.set_ylabel("as bad as noise\nof σ, codes")
    for ax in axes.flat[len(found) :]:
        ax.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[len(found)].legend(handles, labels, loc="center", handlelength=2.6)
    return figure


def intervals(rows: Mapping[str, Mapping[str, Paired]], xlabels: Mapping[str, str]) -> Figure:
    """Mean differences with their intervals: a row a comparison, a panel a metric, beside a line at no difference.

    Args:
        rows: By comparison, then by metric.
        xlabels: Below the panels, by metric.
    """
    metrics = list(next(iter(rows.values())))
    size = (WIDTH, 0.9 + 0.34 * len(rows))
    figure, axes = plt.subplots(1, len(metrics), figsize=size, sharey=True, squeeze=False)
    for ax, metric in zip(axes.flat, metrics, strict=True):
        ax.axvline(0, color=INK, lw=0.9)
        for y, found in enumerate(rows.values()):
            one = found[metric]
            sure = not one.low <= 0 <= one.high
            ax.plot([one.low, one.high], [y, y], "|-", color=PALETTE[0 if sure else 5], lw=3, ms=14, mew=1.5)
            ax.plot(one.difference, y, "o" if sure else "D", color=INK, ms=5, mfc=INK if sure else "white")
        ax.set(title=metric, xlabel=xlabels[metric], yticks=range(len(rows)), yticklabels=list(rows))
        ax.set_ylim(len(rows) - 0.4, -0.6)
    return figure


def game(pairs: Sequence, columns: int = 4) -> Figure:
    """The pairs of :class:`~i2ilib.widgets.ForcedChoice`, for those who cannot click: left and right of each."""
    rows = -(-len(pairs) // columns)
    height, width = pairs[0].left.shape[-2:]
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * (WIDTH / columns / 2 * height / width + 0.3)))
    for number, (ax, pair) in enumerate(zip(np.ravel(axes), pairs, strict=False), 1):
        gap = torch.ones(pair.left.shape[0], height, max(width // 32, 1))
        show(ax, torch.cat([pair.left, gap, pair.right], -1), f"pair {number}: left, right")
    for ax in np.ravel(axes)[len(pairs) :]:
        ax.axis("off")
    return figure


def flicker(
    errors: Mapping[str, torch.Tensor], scores: Mapping[str, Mapping[str, Sequence[float]]], frames: int = 4
) -> Figure:
    """Errors of mattes over some frames, and what scores say of each frame or pair of frames.

    Args:
        errors: By candidate, matte minus truth of every frame, (N, 1, H, W) or (N, H, W).
        scores: By metric, then by candidate, a score a frame (or a pair of neighbours).
        frames: How many to show.
    """
    rows, limit = len(errors), max(float(error.abs().max()) for error in errors.values())
    height, width = next(iter(errors.values())).shape[-2:]
    above_height = rows * (WIDTH / (frames + 1) * height / width + 0.1) + 0.3
    figure = plt.figure(figsize=(WIDTH, above_height + 1.9))
    above, below = figure.subfigures(2, 1, height_ratios=(above_height, 1.9))
    axes = above.subplots(rows, frames, squeeze=False)
    for row, (name, error) in zip(axes, errors.items(), strict=True):
        for k, ax in enumerate(row):
            title = f"frame {k + 1}" if row is axes[0] else ""
            artist = show(ax, error[k].reshape(height, width), title, cmap=SIGNED_MAP, vmin=-limit, vmax=limit)
        row[0].set_ylabel(name)
    above.colorbar(artist, ax=axes, label="matte − truth", shrink=0.9)
    for ax, (metric, found) in zip(np.atleast_1d(below.subplots(1, len(scores))), scores.items(), strict=True):
        for place, (name, values) in enumerate(found.items()):
            ax.plot(np.arange(1, len(values) + 1), values, label=name, **{**look(place), "ms": 4})
        ax.set(
            title=metric, xlabel="frame or pair", ylim=(0, 1.25 * max(max(values) for values in found.values()) + 1e-9)
        )
        ax.set_xlim(0.5, len(values) + 0.5)
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    ax.legend(loc="best")
    return figure


def similarity_maps(maps: Mapping[str, np.ndarray]) -> Figure:
    """Maps of local similarity side by side, on one scale: white where it is 1.

    Args:
        maps: By name, (H, W); names may have two lines.
    """
    height, width = next(iter(maps.values())).shape
    size = (WIDTH, (WIDTH - 0.8) / len(maps) * height / width + 0.45)
    figure, axes = plt.subplots(1, len(maps), figsize=size, squeeze=False)
    for ax, (name, local) in zip(axes.flat, maps.items(), strict=True):
        artist = show(ax, 1 - local, name, cmap=ERROR_MAP, vmin=0, vmax=1)
    figure.colorbar(artist, ax=axes, label="1 − SSIM", shrink=0.9)
    return figure


def look(place: int) -> dict:
    """Colour, line and marker of a series: they differ without colour, too."""
    return {
        "color": PALETTE[place % len(PALETTE)],
        "ls": _LINES[place % len(_LINES)],
        "marker": _MARKS[place % len(_MARKS)],
    }
