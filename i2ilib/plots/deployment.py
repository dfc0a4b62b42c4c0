"""Figures about speed and energy: the roofline of a machine, targets side by side, what a frame of film costs.

Every bar and point says where it comes from: *measured* here and now, *recorded* in a full run, *modelled* from stated
assumptions, or printed in a *paper*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from ..deploy.roofline import whole
from ..errors import I2IError
from ..patches import Grid, nearest_multiple
from . import GRID, INK, PALETTE, WIDTH

if TYPE_CHECKING:
    from ..deploy.energy import Energy
    from ..deploy.roofline import Peaks, Point

BLUE, RED, GREEN, AMBER, VIOLET, GREY = PALETTE
PRECISION = {"float32": BLUE, "bf16": AMBER, "int8": RED}
LABEL = {"float32": (-9, -12), "bf16": (-9, 5), "int8": (7, -15)}  # points from a network's point to its label
ORIGIN = {  # colour, hatch
    "measured": (BLUE, ""),
    "recorded": (GREEN, "//"),
    "modelled": (AMBER, ".."),
    "paper": (GREY, "xx"),
}


class Row(NamedTuple):
    """A target in a comparison; one patch each, unless it says a batch."""

    name: str
    origin: str  # measured, recorded, modelled or paper
    patches_per_s: float
    latency_ms: float  # from handing over a batch until its result is there
    low: float | None = None  # 5th percentile of the latency
    high: float | None = None  # 95th
    joules: float | None = None  # of a patch
    reason: str = "no meter"  # why there are no joules

    @classmethod
    def of(cls, name: str, timed: Mapping, energy: Energy | None = None) -> Row:
        """From a row of :func:`i2ilib.deploy.bench`, and the energy of a batch."""
        batch = timed["batch"]
        return cls(
            name,
            timed["origin"],
            timed["patches_per_s"],
            timed["ms_per_patch"] * batch,
            timed["p5"] * batch,
            timed["p95"] * batch,
            None if energy is None or energy.joules is None else energy.joules / batch,
            "not asked" if energy is None else energy.reason,
        )


# --- the roofline ----------------------------------------------------------------------------------


def roofline(machine: Peaks, runs: Mapping[str, Sequence[Point]], *, title: str = "") -> Figure:
    """The machine's roofs, every convolution of a network beneath them, and the network as one point a precision.

    Args:
        machine: From :func:`i2ilib.deploy.roofline.peaks`.
        runs: Points from :func:`i2ilib.deploy.roofline.points` by the precision that was asked for. A disc's area is
            the convolution's share of its run's time; it is hollow where another precision ran.
        title: Above the axes.

    Raises:
        I2IError: If there is no point, or a precision is unknown.
    """
    if not runs or not all(runs.values()) or set(runs) - set(PRECISION):
        raise I2IError("runs", expected="points by " + " or ".join(PRECISION), got=f"{list(runs)}")
    figure, ax = plt.subplots(figsize=(WIDTH, 4.6))
    reach = [p.intensity for points in runs.values() for p in points]
    attained = [p.gmacs for points in runs.values() for p in points]
    peaks = [machine.gmacs[precision] for precision in runs]
    low, high = min(reach) / 2, max(max(reach), max(peaks) / machine.memory_gbs) * 2.5
    x = np.geomspace(low, high, 300)
    for gbs, line in ((machine.memory_gbs, "-"), (machine.cache_gbs, ":")):
        ax.plot(x, np.minimum(max(peaks), gbs * x), color=INK, ls=line, lw=1.3, zorder=1)
    outlined = [patheffects.withStroke(linewidth=3, foreground="white")]
    for precision, points in runs.items():
        colour, peak = PRECISION[precision], machine.gmacs[precision]
        ax.plot([peak / machine.cache_gbs, high], [peak, peak], color=colour, lw=1.6, zorder=1.5)
        name = f"{precision}: {_figure(peak)}"
        ax.text(high, peak * 1.08, name, color=colour, ha="right", fontsize=8.5, zorder=6, path_effects=outlined)
        total = whole(points, precision)
        for ours in (True, False):
            some = [p for p in points if (p.precision == precision) is ours]
            ax.scatter(
                [p.intensity for p in some],
                [p.gmacs for p in some],
                s=[10 + 600 * p.ms / total.ms for p in some],
                facecolor=(colour, 0.5) if ours else "none",
                edgecolor="white" if ours else colour,
                lw=0.6 if ours else 1.1,
                zorder=3,
            )
        ax.plot(total.intensity, total.gmacs, "D", ms=8.5, color=colour, mec=INK, mew=1.3, zorder=5)
        ax.annotate(
            f"whole, {precision}: {_figure(total.gmacs)}",
            (total.intensity, total.gmacs),
            xytext=LABEL[precision],  # neighbours are often near, and would be covered
            ha="left" if precision == "int8" else "right",
            textcoords="offset points",
            fontsize=8.5,
            fontweight="bold",
            zorder=6,
            bbox={"facecolor": "white", "alpha": 0.85, "lw": 0, "pad": 0.8},
        )
    handles = [
        Line2D([], [], color=INK, lw=1.3, label=f"from memory, {machine.memory_gbs:.0f} GB/s"),
        Line2D([], [], color=INK, lw=1.3, ls=":", label=f"from the caches, {machine.cache_gbs:.0f} GB/s"),
        Line2D([], [], ls="", marker="o", ms=7, color=(GREY, 0.6), label="a convolution; area: its share of the time"),
        Line2D([], [], ls="", marker="D", ms=7, color=GREY, mec=INK, label="all convolutions together"),
    ]
    if any(p.precision != precision for precision, points in runs.items() for p in points):
        label = "a convolution that ran in another precision"
        handles.insert(3, Line2D([], [], ls="", marker="o", ms=7, mfc="none", mec=GREY, label=label))
    ax.legend(handles=handles, loc="lower right", fontsize=8)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(min(attained) / 3, max(*peaks, *attained) * 1.9))
    ax.set(xlabel="operational intensity, MAC per byte of weights and maps", ylabel="attained, GMAC/s", title=title)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.grid(which="minor", visible=False)
    return figure


def bandwidth(machine: Peaks) -> Figure:
    """How fast bytes come from the caches and from memory, by how many are gone through in a circle."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.5))
    sizes, rates = zip(*machine.bandwidth, strict=True)
    ax.plot([size / 2**20 for size in sizes], rates, "o-", color=BLUE, ms=4)
    ax.set(xscale="log", xlabel="working set, MiB", ylabel="GB/s", ylim=(0, None), title=machine.device)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.grid(which="minor", visible=False)
    return figure


# --- targets ---------------------------------------------------------------------------------------


def targets(rows: Sequence[Row], *, peer: str | None = None) -> Figure:
    """Latency and throughput of targets, each with its origin; ratios to a peer where one is named.

    Args:
        rows: From top to bottom. The whiskers are the 5th and 95th percentiles.
        peer: Name of the row that the others' throughput is divided by.

    Raises:
        I2IError: If there is no row, an origin is unknown, or the peer is not among them.
    """
    _check(rows)
    names = [row.name for row in rows]
    if peer is not None and peer not in names:
        raise I2IError("peer", expected=" or ".join(names), got=repr(peer))
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 0.9 + 0.34 * len(rows)), sharey=True)
    _bars(left, rows, [row.latency_ms for row in rows])
    for i, row in enumerate(rows):
        end = row.high or row.latency_ms
        if row.low is not None and row.high is not None:
            left.plot([row.low, row.high], [i, i], color=INK, lw=1.2, marker="|", ms=5, zorder=3)
        left.text(end * 1.08, i, _figure(row.latency_ms), va="center", fontsize=8)
    _bars(right, rows, [row.patches_per_s for row in rows])
    base = next((row.patches_per_s for row in rows if row.name == peer), None)
    for i, row in enumerate(rows):
        ratio = f"  (×{_figure(row.patches_per_s / base)})" if base else ""
        right.text(row.patches_per_s * 1.08, i, _figure(row.patches_per_s) + ratio, va="center", fontsize=8)
    whiskers = "; whiskers: 5th to 95th percentile" if any(row.low is not None for row in rows) else ""
    left.set(title="Latency of a batch", xlabel=f"ms, log{whiskers}")
    right.set(title="Throughput" + (f" (against {peer})" if peer else ""), xlabel="patches a second, log")
    _log(left, [v for row in rows for v in (row.latency_ms, row.low, row.high) if v is not None], room=3)
    _log(right, [row.patches_per_s for row in rows], room=8 if peer else 3)
    _legend(figure, rows)
    return figure


def machines(runs: Mapping[str, Mapping[str, Mapping]], *, peer: str) -> Figure:
    """The same targets on several machines: time of a patch, and throughput against a peer in the same machine's run.

    Args:
        runs: From top to bottom: target to machine to a row of :func:`i2ilib.deploy.bench`; a machine that did not run
            a target is left out of it. A row is drawn in the machine's colour and with its marker; the whiskers are
            the 5th and 95th percentiles.
        peer: Name of the target that the others are divided by; each machine must have run it.

    Raises:
        I2IError: If there is no target or no machine, or one without the peer.
    """
    names = list(dict.fromkeys(machine for rows in runs.values() for machine in rows))
    if not names:
        raise I2IError("runs", expected="at least one target of a machine", got="none")
    if without := [name for name in names if name not in runs.get(peer, {})]:
        raise I2IError("peer", expected=f"a row of {peer!r} for every machine", got=f"none for {without[0]}")
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 1.2 + 0.42 * len(runs)), sharey=True)
    looks = list(zip((BLUE, RED, GREEN, AMBER), "osD^", strict=True))
    places = np.linspace(-0.2, 0.2, len(names)) if len(names) > 1 else [0.0]
    ratios, times, absent = [], [], []
    for i, rows in enumerate(runs.values()):
        for k, (name, place) in enumerate(zip(names, places, strict=True)):
            colour, marker = looks[k % len(looks)]
            if (row := rows.get(name)) is None:
                absent.append((i + place, colour))
                continue
            ratio = runs[peer][name]["ms_per_patch"] / row["ms_per_patch"]
            times += [row["p5"], row["ms_per_patch"], row["p95"]]
            ratios.append(ratio)
            left.plot([row["p5"], row["p95"]], [i + place] * 2, color=colour, lw=1.4, alpha=0.6, zorder=2)
            left.plot(row["ms_per_patch"], i + place, marker, color=colour, ms=5.5, mec="white", mew=0.6, zorder=3)
            left.text(row["p95"] * 1.12, i + place, _figure(row["ms_per_patch"]), va="center", fontsize=7.5)
            right.plot([1, ratio], [i + place] * 2, color=colour, lw=1.4, alpha=0.6, zorder=2)
            right.plot(ratio, i + place, marker, color=colour, ms=5.5, mec="white", mew=0.6, zorder=3)
            right.text(max(ratio, 1) * 1.12, i + place, f"×{_figure(ratio)}", va="center", fontsize=7.5)
    right.axvline(1, color=INK, lw=0.8)
    for ax, values, room in ((left, times, 3), (right, [1, *ratios], 3)):
        _log(ax, values, room=room)
        ax.set(yticks=range(len(runs)), yticklabels=list(runs), ylim=(len(runs) - 0.5, -0.5))
        ax.hlines(np.arange(len(runs) - 1) + 0.5, 0, 1, transform=ax.get_yaxis_transform(), color=GRID, lw=0.7)
        ax.grid(axis="y", visible=False)
    for y, colour in absent:
        left.text(left.get_xlim()[0] * 1.1, y, "not run", va="center", fontsize=7.5, color=colour, style="italic")
    left.set(title="Time of a patch", xlabel="ms, log; whiskers: 5th to 95th percentile")
    right.set(title=f"Throughput against {peer} in the same run", xlabel="ratio, log")
    handles = [
        Line2D([], [], color=looks[k % 4][0], marker=looks[k % 4][1], ms=6, lw=1.4, label=name)
        for k, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=1)
    return figure


def producer(rows: Sequence[Row], *, height: int = 2160, width: int = 3840, rate: float = 24.0) -> Figure:
    """What a frame of film costs: frames a second and joules a frame, or that nobody has measured them.

    Args:
        rows: Of one patch each.
        height: Of the frame, pixels; it is scaled to the nearest multiple of a patch, as the pipeline does.
        width: Of the frame.
        rate: Frames a second that would be real time.

    Raises:
        I2IError: If there is no row, or an origin is unknown.
    """
    _check(rows)
    count = frame_patches(height, width)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 1.0 + 0.34 * len(rows)), sharey=True)
    speed = [row.patches_per_s / count for row in rows]
    _bars(left, rows, speed)
    for i, value in enumerate(speed):
        left.text(value * 1.08, i, _figure(value), va="center", fontsize=8)
    left.axvline(rate, color=RED, lw=1.2, ls="--")
    left.text(rate, -0.62, f"real time, {rate:g}", color=RED, ha="center", va="bottom", fontsize=8)
    known = [row.joules * count for row in rows if row.joules is not None]
    _bars(right, rows, [None if row.joules is None else row.joules * count for row in rows])
    for i, row in enumerate(rows):
        if row.joules is not None:
            right.text(row.joules * count * 1.08, i, _figure(row.joules * count), va="center", fontsize=8)
    _log(left, [*speed, rate], room=3)
    _log(right, known or [1, 100], room=4)
    start = right.get_xlim()[0]
    for i, row in enumerate(rows):
        if row.joules is None:
            right.text(start * 1.1, i, "not measured", va="center", fontsize=8, color=GREY, style="italic")
    left.set(xlabel="frames a second, log")
    right.set(xlabel="joules a frame, log")
    left.set_title("How fast", pad=14)
    right.set_title(f"At what cost: {width} × {height}, {count} patches", pad=14)
    _legend(figure, rows)
    return figure


def frame_patches(height: int, width: int) -> int:
    """Patches of a frame as the pipeline cuts it: scaled to the nearest multiple of 256, without overlap.

    Example:
        >>> frame_patches(2160, 3840), frame_patches(1080, 1920)
        (120, 32)
    """
    return len(Grid(*nearest_multiple(height, width)))


def sweep(cells: Mapping[tuple[int, int], Mapping], *, title: str = "") -> Figure:
    """How batch and streams change throughput and latency.

    Args:
        cells: (batch, streams) to a mapping with ``patches_per_s`` and ``latency_ms``.
        title: Above the axes.

    Raises:
        I2IError: If there is nothing to draw.
    """
    if not cells:
        raise I2IError("cells", expected="at least one measurement", got="none")
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.0))
    batches = sorted({batch for batch, _ in cells})
    for k, streams in enumerate(sorted({streams for _, streams in cells})):
        mine = [batch for batch in batches if (batch, streams) in cells]
        label = f"{streams} stream{'s' * (streams > 1)}"
        for ax, key in zip(axes, ("patches_per_s", "latency_ms"), strict=True):
            values = [cells[batch, streams][key] for batch in mine]
            ax.plot(mine, values, "os^Dv"[k % 5] + "-", color=PALETTE[k % len(PALETTE)], ms=5, label=label)
    axes[0].set(ylabel="patches a second", title=title or "Throughput")
    axes[1].set(ylabel="ms until a patch's result is there", title="Latency")
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_ylim(0, 1.1 * ax.dataLim.ymax)
        ax.set(xlabel="batch", xticks=batches, xticklabels=[str(batch) for batch in batches])
        ax.xaxis.set_minor_locator(plt.NullLocator())
    axes[0].legend(loc="lower right")
    return figure


# --- shared ----------------------------------------------------------------------------------------


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise I2IError("rows", expected="at least one target", got="none")
    if unknown := [row.origin for row in rows if row.origin not in ORIGIN]:
        raise I2IError("origin", expected=" or ".join(ORIGIN), got=repr(unknown[0]))


def _bars(ax: plt.Axes, rows: Sequence[Row], values: Sequence[float | None]) -> None:
    for i, (row, value) in enumerate(zip(rows, values, strict=True)):
        colour, hatch = ORIGIN[row.origin]
        if value is not None:
            ax.barh(i, value, height=0.62, color=colour, alpha=0.75, hatch=hatch, edgecolor="white", lw=0, zorder=2)
    ax.set(yticks=range(len(rows)), yticklabels=[row.name for row in rows], ylim=(len(rows) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)


def _log(ax: plt.Axes, values: Sequence[float], *, room: float) -> None:
    """A logarithmic axis with space for the labels to the right of the bars."""
    ax.set_xscale("log")
    ax.set_xlim(min(values) / 2.5, max(values) * room)
    if max(values) < 30 * min(values):  # else one tick would be all
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(which="minor", visible=False)


def _legend(figure: Figure, rows: Sequence[Row]) -> None:
    used = [origin for origin in ORIGIN if origin in {row.origin for row in rows}]
    handles = [
        Patch(facecolor=ORIGIN[o][0], alpha=0.75, hatch=ORIGIN[o][1], edgecolor="white", lw=0, label=o) for o in used
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(used))


def _figure(value: float) -> str:
    """Three significant digits, as one reads them: "0.0291", "3.14", "1200"."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{float(f'{value:.3g}'):.0f}"
