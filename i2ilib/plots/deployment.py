"""Figures about speed and energy: the roofline of a machine, targets side by side, what a frame of film costs.

Every point says where it comes from: *measured* here and now, *recorded* in a full run, *modelled* from stated
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
from matplotlib.ticker import LogLocator, NullFormatter

from ..deploy.roofline import whole
from ..errors import I2IError
from ..patches import Grid, nearest_multiple
from . import GRID, INK, PALETTE, WIDTH

if TYPE_CHECKING:
    from ..deploy.energy import Energy
    from ..deploy.roofline import Peaks, Point

BLUE, RED, GREEN, AMBER, VIOLET, GREY = PALETTE
WHITE = [patheffects.withStroke(linewidth=3, foreground="white")]
PRECISION = {"float32": BLUE, "bf16": AMBER, "int8": RED}
ORIGIN = {  # colour, marker
    "measured": (BLUE, "o"),
    "recorded": (GREEN, "s"),
    "modelled": (AMBER, "^"),
    "paper": (GREY, "D"),
}
FILM = 90 * 60  # seconds of the film on the upper axes


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
    """A panel a precision: its roof, every convolution of a network beneath it, and the network as one point.

    Args:
        machine: From :func:`i2ilib.deploy.roofline.peaks`.
        runs: Points from :func:`i2ilib.deploy.roofline.points` by the precision that was asked for. A disc's area is
            the convolution's share of its run's time; it is hollow where another precision ran.
        title: Of the figure.

    Raises:
        I2IError: If there is no point, or a precision is unknown.
    """
    if not runs or not all(runs.values()) or set(runs) - set(PRECISION):
        raise I2IError("runs", expected="points by " + " or ".join(PRECISION), got=f"{list(runs)}")
    figure, axes = plt.subplots(1, len(runs), figsize=(WIDTH, 4.1), sharex=True, sharey=True, squeeze=False)
    every = [p for points in runs.values() for p in points]
    peaks = [machine.gmacs[precision] for precision in runs]
    low = min(p.intensity for p in every) / 2
    high = max(*(p.intensity for p in every), max(peaks) / machine.memory_gbs) * 2.5
    x = np.geomspace(low, high, 300)
    for ax, (precision, points) in zip(axes[0], runs.items(), strict=True):
        colour, peak, total = PRECISION[precision], machine.gmacs[precision], whole(points, precision)
        for gbs, line in ((machine.memory_gbs, "-"), (machine.cache_gbs, ":")):
            ax.plot(x, np.minimum(peak, gbs * x), color=INK, ls=line, lw=1.3, zorder=1)
        for ours in (True, False):
            some = [p for p in points if (p.precision == precision) is ours]
            ax.scatter(
                [p.intensity for p in some],
                [p.gmacs for p in some],
                s=[10 + 450 * p.ms / total.ms for p in some],
                facecolor=(colour, 0.5) if ours else "none",
                edgecolor="white" if ours else colour,
                lw=0.6 if ours else 1.1,
                zorder=3,
            )
        ax.plot(total.intensity, total.gmacs, "D", ms=8.5, color=colour, mec=INK, mew=1.3, zorder=5)
        ran = sum(p.precision == precision for p in points)
        reached = f"roof {_figure(peak)}, whole {_figure(total.gmacs)} GMAC/s"
        ax.set_title(f"{precision} asked for, {ran} of {len(points)} ran in it\n{reached}", size=9)
        ax.set(xscale="log", yscale="log", xlim=(low, high), xlabel="MAC per byte")
        ax.grid(which="minor", visible=False)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
    attained = [p.gmacs for p in every]
    axes[0, 0].set(ylim=(min(attained) / 2, max(*peaks, *attained) * 1.5), ylabel="attained, GMAC/s")
    handles = [
        Line2D([], [], color=INK, lw=1.3, label=f"from memory, {machine.memory_gbs:.0f} GB/s"),
        Line2D([], [], color=INK, lw=1.3, ls=":", label=f"from the caches, {machine.cache_gbs:.0f} GB/s"),
        Line2D([], [], ls="", marker="o", ms=7, color=(GREY, 0.6), label="a convolution; area: its share of the time"),
        Line2D([], [], ls="", marker="D", ms=7, color=GREY, mec=INK, label="all convolutions together"),
    ]
    if any(p.precision != precision for precision, points in runs.items() for p in points):
        label = "a convolution that ran in another precision"
        handles.insert(3, Line2D([], [], ls="", marker="o", ms=7, mfc="none", mec=GREY, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    if title:
        figure.suptitle(title, x=0.01, ha="left", size=10.5, weight="bold")
    return figure


def bandwidth(machine: Peaks) -> Figure:
    """How fast bytes come from the caches and from memory, by how many are gone through in a circle."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.5))
    sizes, rates = zip(*machine.bandwidth, strict=True)
    ax.plot([size / 2**20 for size in sizes], rates, "o-", color=BLUE, ms=4)
    ax.set(xscale="log", xlabel="working set, MiB", ylabel="GB/s (measured)", ylim=(0, None), title=machine.device)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.grid(which="minor", visible=False)
    return figure


# --- targets ---------------------------------------------------------------------------------------


def plane(rows: Sequence[Row], *, held: Sequence[float] = (1, 3, 9), title: str = "") -> Figure:
    """Latency against throughput; along a diagonal the product of the two is the same number of patches in flight.

    Args:
        rows: A point each, named at the side with its two numbers. The bars are the 5th and 95th percentiles.
        held: Patches in flight, a diagonal each.
        title: Above the axes.

    Raises:
        I2IError: If there is no row, or an origin is unknown.
    """
    _check(rows)
    figure, ax = plt.subplots(figsize=(WIDTH, 3.6))
    times = [v for row in rows for v in (row.latency_ms, row.low, row.high) if v is not None]
    rates = [row.patches_per_s for row in rows]
    ends = np.array([min(times) / 2, max(times) * 2])
    floor, top = min(rates) / 2, max(rates) * 2
    for number in held:
        ax.plot(ends, 1e3 * number / ends, color=GREY, lw=0.9, ls="--", zorder=1)
        x = max(ends[0] * 1.08, 1.25e3 * number / top)  # near its upper end
        if x < ends[1] and floor < 1e3 * number / x < top:
            at = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "size": 8, "color": GREY}
            ax.annotate(f"{number:g} in flight", (x, 1e3 * number / x), path_effects=WHITE, zorder=2, **at)
    order = sorted(rows, key=lambda row: -row.patches_per_s)
    heights = np.log([row.patches_per_s / floor for row in order]) / np.log(top / floor)
    for row, height in zip(order, _apart(heights, min(0.09, 0.94 / len(rows))), strict=True):
        colour, marker = ORIGIN[row.origin]
        if row.low is not None and row.high is not None:
            ax.plot([row.low, row.high], [row.patches_per_s] * 2, color=colour, lw=1.4, alpha=0.6, zorder=3)
        ax.plot(row.latency_ms, row.patches_per_s, marker, ms=7, color=colour, mec="white", mew=0.6, zorder=4)
        said = f"{row.name}: {_figure(row.latency_ms)} ms, {_figure(row.patches_per_s)} / s"
        arrow = {"arrowstyle": "-", "lw": 0.6, "color": GREY, "shrinkB": 4, "relpos": (0, 0.5)}
        ax.annotate(said, (row.latency_ms, row.patches_per_s), (1.03, height), textcoords="axes fraction",
                    va="center", size=8.5, annotation_clip=False, arrowprops=arrow)  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=(floor, top), title=title)
    spread = "; bars: 5th to 95th percentile" if any(row.low is not None for row in rows) else ""
    ax.set(xlabel=f"latency, ms{spread}", ylabel="patches a second")
    for axis, (low, high) in ((ax.xaxis, ends), (ax.yaxis, (floor, top))):
        if high < 100 * low:  # else one tick would be all
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    ax.grid(which="minor", visible=False)
    _legend(figure, rows)
    return figure


def machines(runs: Mapping[str, Mapping[str, Mapping]], *, peer: str) -> Figure:
    """The same targets on several machines: time of a patch, and throughput against a peer in the same machine's run.

    Args:
        runs: From top to bottom: target to machine to a row of :func:`i2ilib.deploy.bench`; a machine that did not run
            a target is left out of it. A row is drawn in the machine's colour and with its marker; the whiskers are
            the 5th and 95th percentiles. Rows that were timed against the peer round by round show that ratio and its
            spread, others the ratio of the medians.
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
            ratio = row.get("speedup", runs[peer][name]["ms_per_patch"] / row["ms_per_patch"])
            low, high = row.get("speedup_p5", ratio), row.get("speedup_p95", ratio)
            times += [row["p5"], row["ms_per_patch"], row["p95"]]
            ratios += [low, high]
            left.plot([row["p5"], row["p95"]], [i + place] * 2, color=colour, lw=1.4, alpha=0.6, zorder=2)
            left.plot(row["ms_per_patch"], i + place, marker, color=colour, ms=5.5, mec="white", mew=0.6, zorder=3)
            left.text(row["p95"] * 1.12, i + place, _figure(row["ms_per_patch"]), va="center", fontsize=7.5)
            right.plot([low, high], [i + place] * 2, color=colour, lw=1.4, alpha=0.6, zorder=2)
            right.plot(ratio, i + place, marker, color=colour, ms=5.5, mec="white", mew=0.6, zorder=3)
            right.text(max(high, 1) * 1.12, i + place, f"×{_figure(ratio)}", va="center", fontsize=7.5)
    right.axvline(1, color=INK, lw=0.8)
    for ax, values, room in ((left, times, 3), (right, [1, *ratios], 3)):
        _log(ax, values, room=room)
        ax.set(yticks=range(len(runs)), yticklabels=list(runs), ylim=(len(runs) - 0.5, -0.5))
        ax.hlines(np.arange(len(runs) - 1) + 0.5, 0, 1, transform=ax.get_yaxis_transform(), color=GRID, lw=0.7)
        ax.grid(axis="y", visible=False)
    for y, colour in absent:
        left.text(left.get_xlim()[0] * 1.1, y, "not run", va="center", fontsize=7.5, color=colour, style="italic")
    left.set(title="Time of a patch", xlabel="ms, log; whiskers: 5th to 95th percentile")
    paired = any("speedup" in row for rows in runs.values() for row in rows.values())
    spread = "of the rounds, log; whiskers as left" if paired else "of the medians, log"
    right.set(title=f"Times as fast as {peer} in the same run", xlabel=f"ratio {spread}")
    handles = [
        Line2D([], [], color=looks[k % 4][0], marker=looks[k % 4][1], ms=6, lw=1.4, label=name)
        for k, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=1)
    return figure


def producer(rows: Sequence[Row], *, height: int = 2160, width: int = 3840, rate: float = 24.0) -> Figure:
    """What a frame of film costs, and a film: frames a second and joules a frame, or that nobody has measured them.

    Args:
        rows: Of one patch each; a throughput's bar comes from the percentiles of its latency.
        height: Of the frame, pixels; it is scaled to the nearest multiple of a patch, as the pipeline does.
        width: Of the frame.
        rate: Frames a second of the film, and of real time.

    Raises:
        I2IError: If there is no row, or an origin is unknown.
    """
    _check(rows)
    count = frame_patches(height, width)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(WIDTH, 1.5 + 0.3 * len(rows)), sharey=True, width_ratios=(1.5, 1)
    )
    speed = [row.patches_per_s / count for row in rows]
    spread = [
        sorted(value * row.latency_ms / end for end in (row.low, row.high)) if row.low and row.high else [value] * 2
        for value, row in zip(speed, rows, strict=True)
    ]
    joules = [None if row.joules is None else row.joules * count for row in rows]
    for i, (row, value, (low, high)) in enumerate(zip(rows, speed, spread, strict=True)):
        colour, marker = ORIGIN[row.origin]
        left.plot([low, high], [i, i], color=colour, lw=1.4, alpha=0.6, zorder=2)
        left.plot(value, i, marker, color=colour, ms=6.5, mec="white", mew=0.6, zorder=3)
        beside = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "fontsize": 8, "path_effects": WHITE}
        left.annotate(_figure(value), (high, i), **beside)
        if joules[i] is not None:
            right.plot(joules[i], i, marker, color=colour, ms=6.5, mec="white", mew=0.6, zorder=3)
            right.annotate(_figure(joules[i]), (joules[i], i), **beside)
    left.axvline(rate, color=RED, lw=1.2, ls="--", zorder=1)
    _log(left, [*(v for pair in spread for v in pair), rate], room=3)
    _log(right, [value for value in joules if value is not None] or [1, 100], room=4)
    for i, row in enumerate(rows):
        if row.joules is None:
            right.text(
                right.get_xlim()[0] * 1.1, i, "not measured", va="center", fontsize=8, color=GREY, style="italic"
            )
    left.set(yticks=range(len(rows)), yticklabels=[row.name for row in rows], ylim=(len(rows) - 0.5, -0.5))
    left.set(xlabel=f"frames a second, log; dashed: real time, {rate:g}")
    right.set(xlabel="joules a frame, log")
    frames = FILM * rate
    for ax, what, there, back in (
        (left, "hours", lambda x: frames / np.maximum(x, 1e-9) / 3600, lambda x: frames / np.maximum(x, 1e-9) / 3600),
        (right, "kWh", lambda x: x * frames / 3.6e6, lambda x: x * 3.6e6 / frames),
    ):
        over = ax.secondary_xaxis("top", functions=(there, back))
        over.set_xlabel(f"{what} for a film of {FILM // 60} minutes", fontsize=8.5)
        over.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        over.xaxis.set_minor_formatter(NullFormatter())
    figure.suptitle(f"{width} × {height}, {count} patches a frame", x=0.01, ha="left", size=10.5, weight="bold")
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
        cells: (batch, streams) to a mapping with ``patches_per_s`` and ``latency_ms``; where it has them, the pairs
            ``patches_per_s_spread`` and ``latency_ms_spread`` are drawn as bars.
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
            look, at = {"color": PALETTE[k % len(PALETTE)]}, [batch * 1.05 ** (2 * k - 1) for batch in mine]
            ax.plot(at, values, "os^Dv"[k % 5] + "-", ms=5, label=label, **look)
            for x, batch in zip(at, mine, strict=True):
                if spread := cells[batch, streams].get(f"{key}_spread"):
                    ax.plot([x, x], spread, lw=1.6, alpha=0.6, **look)
    axes[0].set(ylabel="patches a second", title=title or "Throughput")
    axes[1].set(ylabel="ms until a patch's result is there", title="Latency")
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_ylim(0, 1.1 * ax.dataLim.ymax)
        ax.set(xlabel="batch", xticks=batches, xticklabels=[str(batch) for batch in batches])
        ax.xaxis.set_minor_locator(plt.NullLocator())
    axes[0].legend(loc="lower right")
    return figure


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Falling heights, moved as little as keeps them within 0 and 1 and a gap apart."""
    placed = []
    for height in heights:
        placed.append(min(height, placed[-1] - gap if placed else 0.97))
    for i in reversed(range(len(placed))):
        placed[i] = max(placed[i], placed[i + 1] + gap if i + 1 < len(placed) else 0.03)
    return placed


# --- shared ----------------------------------------------------------------------------------------


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise I2IError("rows", expected="at least one target", got="none")
    if unknown := [row.origin for row in rows if row.origin not in ORIGIN]:
        raise I2IError("origin", expected=" or ".join(ORIGIN), got=repr(unknown[0]))


def _log(ax: plt.Axes, values: Sequence[float], *, room: float) -> None:
    """A logarithmic axis with space for the labels to the right of the points."""
    ax.set_xscale("log")
    ax.set_xlim(min(values) / 2.5, max(values) * room)
    if max(values) < 30 * min(values):  # else one tick would be all
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(which="minor", visible=False)


def _legend(figure: Figure, rows: Sequence[Row]) -> None:
    used = [origin for origin in ORIGIN if origin in {row.origin for row in rows}]
    handles = [Line2D([], [], ls="", marker=ORIGIN[o][1], ms=7, color=ORIGIN[o][0], label=o) for o in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(used))


def _figure(value: float) -> str:
    """Three significant digits, as one reads them: "0.0291", "3.14", "1200"."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{float(f'{value:.3g}'):.0f}"
