"""Figures about the cycle model of the Alveo U50: how well it is met, where a network's time goes, jobs in flight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from ..errors import I2IError
from . import GRID, PALETTE, WIDTH

if TYPE_CHECKING:
    from ..deploy.cycles import Estimate, Pipeline

BLUE, RED, GREEN, AMBER, VIOLET, GREY = PALETTE
HALVES = {"fitted": (BLUE, "o"), "held out": (GREEN, "s"), "paper": (RED, "*")}  # colour, marker
PARTS = {"compute": BLUE, "features": GREEN, "weights": AMBER, "start": GREY}
LABELS = {"compute": "compute", "features": "feature maps", "weights": "weights", "start": "start of the layer"}
TICKS = (50, 100, 200, 500, 1000, 2000, 4000)  # images a second


def short_name(name: str) -> str:
    """A network's name without framework, data set and sizes: ``resnet18`` for ``cf_resnet18_imagenet_224_224_3.65G``.

    Example:
        >>> short_name("tf_mlperf_resnet50_imagenet_224_224_8.19G"), short_name("pix2pix_256_256")
        ('mlperf_resnet50', 'pix2pix')
    """
    words = name.split("_")
    words = words[1:] if words[0] in ("cf", "dk", "tf", "tf2", "pt") else words
    first = next((i for i, word in enumerate(words) if word.isdigit()), len(words))
    sets = ("imagenet", "cityscapes", "coco", "voc", "bdd", "nuclei", "chaos-CT")
    return "_".join(word for word in words[:first] if word not in sets)


def throughput(judged: pd.DataFrame, *, cards: Sequence[str] = ("u50", "u50lv"), within: float = 0.15) -> Figure:
    """Modelled against published throughput; networks beyond the band, and pix2pix, are named.

    Args:
        judged: From :func:`i2ilib.deploy.zoo.judge`.
        cards: A panel each; "u50lv" was never fitted to.
        within: Half the width of the band, as a share.

    Raises:
        I2IError: If there is no network to draw.
    """
    used = judged[judged.half.isin(list(HALVES))]
    if used.empty:
        raise I2IError("throughput", expected="networks that were used", got="none")
    values = used[[f"{card}{end}" for card in cards for end in ("", "_modelled")]].to_numpy(dtype=float)
    ends = np.array([np.nanmin(values) / 1.5, np.nanmax(values) * 1.5])
    figure, axes = plt.subplots(1, len(cards), figsize=(WIDTH, 4.6 if len(cards) > 1 else 6.5), squeeze=False)
    titles = {"u50": "U50: 6 engines, 300 MHz", "u50lv": "U50LV: 9 engines, 275 MHz"}
    for ax, card in zip(axes[0], cards, strict=True):
        rows = used.dropna(subset=[card])
        ax.fill_between(ends, ends * (1 - within), ends * (1 + within), color=GRID, lw=0, zorder=0)
        ax.plot(ends, ends, color=GREY, lw=0.8, zorder=1)
        for half, (colour, marker) in HALVES.items():
            part = rows[rows.half == half]
            size = 110 if marker == "*" else 26
            ax.scatter(
                part[card], part[f"{card}_modelled"], s=size, c=colour, marker=marker, lw=0.5, ec="white", zorder=3
            )
        named = rows[(rows[f"{card}_error"].abs() > within) | (rows.half == "paper")]
        left = np.log(named[card] / ends[0]) < 0.25 * np.log(ends[1] / ends[0])  # of the labels: leave them there
        order = named[card].where(left, -named[card]).sort_values().index  # then no line crosses another label
        for line, (name, row) in enumerate(named.loc[order].iterrows()):
            label = f"{short_name(name)} {100 * row[f'{card}_error']:+.0f} %".replace("-", "−")
            point = (row[card], row[f"{card}_modelled"])
            arrow = {"arrowstyle": "-", "lw": 0.6, "color": GREY, "shrinkB": 4, "relpos": (0 if left[name] else 1, 0.5)}
            at = (0.36, 0.95 - 0.065 * line)  # in a column, so that no label meets another
            ax.annotate(label, point, at, textcoords="axes fraction", ha="right", va="center", size=8, arrowprops=arrow)
        used_here = rows[rows.half != "paper"]
        met = (used_here[f"{card}_error"].abs() <= within).sum()
        ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(FixedLocator(TICKS))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
        ax.set(xlabel="published, images/s", ylabel="modelled, images/s")
        ax.set_title(f"{titles.get(card, card)}\n{met} of {len(used_here)} within {100 * within:.0f} %")
    handles = [
        Line2D([], [], color=colour, marker=marker, ls="", ms=9 if marker == "*" else 5, label=half)
        for half, (colour, marker) in HALVES.items()
        if half in set(used.half)
    ]
    axes[0, 0].legend(handles=[*handles, Patch(color=GRID, label=f"±{100 * within:.0f} %")], loc="lower right")
    return figure


def layer_cycles(estimate: Estimate, *, title: str = "", limit: int = 60) -> Figure:
    """The cycles of every layer that takes some, coloured by what bounds it; ticks mark the parts hidden behind it.

    Args:
        estimate: Of a network.
        title: Above the axes.
        limit: With more layers than these, only the costliest are drawn, in their order.
    """
    rows = estimate.frame()
    rows = rows[rows.cycles > 0]
    share = 1.0
    if len(rows) > limit:
        share = rows.cycles.nlargest(limit).sum() / rows.cycles.sum()
        rows = rows.loc[rows.cycles.nlargest(limit).index.sort_values()]
    at = np.arange(len(rows))
    figure, ax = plt.subplots(figsize=(WIDTH, 3.7))
    parts = rows[["compute", "features", "weights"]] / 1e3
    slowest, start = parts.max(axis=1), rows.start / 1e3
    colours = [PARTS[name] for name in parts.idxmax(axis=1)]
    ax.bar(at, slowest, color=colours, width=0.8, lw=0)
    ax.bar(at, start, bottom=slowest, color=GREY, width=0.8, lw=0, alpha=0.6)
    for name in parts:
        hidden = (parts[name] > 0) & (parts[name] < slowest)
        ax.hlines(parts[name][hidden], at[hidden] - 0.4, at[hidden] + 0.4, color="white", lw=2.6)
        ax.hlines(parts[name][hidden], at[hidden] - 0.4, at[hidden] + 0.4, color=PARTS[name], lw=1.4)
    names = [name if len(name) < 22 else "…" + name[-20:] for name in rows.layer]
    step = max(1, len(names) // 40)
    ax.set_xticks(
        at[::step], names[::step], rotation=60 if len(names) < 12 else 90, ha="right" if len(names) < 12 else "center"
    )
    ax.tick_params(axis="x", labelsize=7.5)
    ax.grid(False, axis="x")
    ax.set(ylabel="1000 cycles of a batch", xlim=(-0.7, len(rows) - 0.3))
    shown = set(parts.idxmax(axis=1)) | {name for name in parts if (parts[name] > 0).any()} | {"start"}
    total = rows.cycles.sum()
    by = rows.groupby(parts.idxmax(axis=1)).cycles.sum() / total
    handles = [
        Patch(
            color=colour,
            alpha=0.6 if name == "start" else 1,
            label=LABELS[name] + (f" (bounds {100 * by[name]:.0f} %)" if name in by else ""),
        )
        for name, colour in PARTS.items()
        if name in shown
    ]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2, columnspacing=1.2)
    kept = "" if share == 1 else f" (the costliest {limit} layers, {100 * share:.0f} % of the time)"
    ax.set_title(title + kept, pad=24)
    return figure


def jobs_in_flight(
    pipelines: Sequence[Pipeline], *, paper: tuple[float, float, float] | None = None, jobs: float = 3.0
) -> Figure:
    """Latency, initiation interval and throughput against jobs in flight: modelled, and a paper's point.

    Args:
        pipelines: From :meth:`i2ilib.deploy.cycles.Estimate.pipeline`, for one and more jobs.
        paper: Latency in ms, initiation interval in ms and images a second, as printed.
        jobs: Where to put the paper's point: by Little's law, its images in flight over the images of a job.

    Raises:
        I2IError: If there is nothing to draw.
    """
    if not pipelines:
        raise I2IError("jobs_in_flight", expected="pipelines", got="none")
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.9))
    looks = (("latency_ms", "latency of a job, ms"), ("ii_ms", "initiation interval, ms"), ("fps", "images/s"))
    at = [pipeline.jobs for pipeline in pipelines]
    for index, (ax, (field, label)) in enumerate(zip(axes, looks, strict=True)):
        values = [getattr(pipeline, field) for pipeline in pipelines]
        ax.plot(at, values, "o-", color=BLUE, ms=4, label="modelled")
        top = max(values)
        if paper is not None:
            ax.plot(jobs, paper[index], "*", color=RED, ms=12, mec="white", mew=0.5, label="paper")
            top = max(top, paper[index])
        ax.set(xlabel="jobs in flight", title=label, ylim=(0, 1.12 * top))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[2].legend(loc="lower right")
    return figure
