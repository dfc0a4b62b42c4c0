"""Figures about accelerators with a stage a layer: the pipelines, what they occupy, how they were found, what they do.

Each takes results of :mod:`i2ilib.fcad` or plain numbers. What is modelled or simulated is filled, a paper's is hollow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from ..errors import I2IError
from ..fcad.cost import Config, evaluate
from . import GRID, INK, PALETTE, WIDTH

if TYPE_CHECKING:
    from ..fcad.construct import DesignSpace, Stage
    from ..fcad.cost import Budget, Evaluation
    from ..fcad.pareto import Fronts
    from ..fcad.simulate import Simulation

BLUE, RED, GREEN, AMBER, VIOLET, GREY = PALETTE
BRANCHES = (BLUE, GREEN, VIOLET, AMBER, RED, GREY)  # a colour a branch, in the order of the outputs
NARROW, CROWDED = 10, 24  # columns from which captions take more lines; from which they have no room
POINTS = 7.5  # size of a caption
SETS = (  # of factors
    {"color": BLUE, "lw": 4.5, "alpha": 0.35},
    {"color": GREEN, "lw": 2.6, "alpha": 0.65},
    {"color": VIOLET, "lw": 1.0, "ls": (0, (5, 2))},
)
WHITE = [patheffects.withStroke(linewidth=2.2, foreground="white")]
CAUSES = {"busy": GREEN, "starved": GRID, "blocked": AMBER, "weights": RED}
CAUSE_NAMES = {"busy": "busy", "starved": "no input", "blocked": "no room", "weights": "no weights"}
RATES = {"pairs": "stereo pairs a second", "slowest": "FPS of the slowest branch"}
RESOURCES = {"dsp": "DSP", "bram": "BRAM, 18 Kb", "bandwidth": "bandwidth, Gbit/s"}


# --- the pipeline picture --------------------------------------------------------------------------


def pipelines(design: DesignSpace | Config, *, title: str = "") -> Figure:
    """The accelerator: a row a branch, a box a stage, arrows where maps go, a triangle where one is upsampled.

    Beneath a stage stand its number, its channels, the map that it computes and, of a configuration, cpf × kpf × h;
    where there are very many, only the number, and the map where it changes.

    Args:
        design: A design space: a box's area is its multiplications. Or a configuration of it: the area is its DSP, and
            the filled part the share of the time in which it works; of a branch that waits for others that it shares
            stages with, "30.5 of 61.0 FPS" are delivered.
        title: Above the picture.
    """
    space = design.space if isinstance(design, Config) else design
    place = _Places(space, lines=4 if isinstance(design, Config) else 3)
    figure, ax = plt.subplots(figsize=(WIDTH, place.height * place.inch + 0.55))
    _draw_pipelines(ax, design, place)
    what = "DSP" if isinstance(design, Config) else "multiplications"
    handles = [Patch(facecolor=(GREY, 0.85), edgecolor=GREY, label=f"area: {what}")]
    if isinstance(design, Config):
        handles.append(Patch(facecolor=(GREY, 0.18), edgecolor=GREY, label="pale: share of the time idle"))
    if any(stage.upsample > 1 for pipeline in space.pipelines for stage in pipeline.stages):
        handles.append(Line2D([], [], ls="", marker=">", ms=6, color=AMBER, label="upsampling"))
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles))
    ax.set_title(title, pad=4)
    return figure


def _reads(stage: Stage) -> list[tuple[int, int]]:
    """The stages whose maps a stage reads or adds."""
    return list(dict.fromkeys([*stage.sources, *(addend.source for addend in stage.addends)]))


class _Places:
    """Where the stages go: one unit is a column, and as much upwards, so that a box is a square."""

    side = 0.66  # of the largest box

    def __init__(self, space: DesignSpace, *, lines: int):
        self.columns: list[list[int]] = [[] for _ in space.pipelines]
        for j in space.order:
            for stage in space.pipelines[j].stages:
                before = [self.columns[q][s] for q, s in _reads(stage)]
                self.columns[j].append(max([*before, *self.columns[j][-1:], -1]) + 1)
        self.last = max(max(row) for row in self.columns)
        self.width = max(self.last + 1.5, 8.0)
        self.inch = (WIDTH - 0.2) / self.width  # of a unit
        if self.last >= NARROW:  # channels, and factors, on two lines
            lines = 2 * lines - 2
        captions = ((lines if self.last < CROWDED else 2) * 1.35 * POINTS / 72 + 0.05) / self.inch
        self.rows, self.labels, y = [], [], 0.0
        for j, pipeline in enumerate(space.pipelines):
            spans = [
                self.columns[j][i] - self.columns[j][s]
                for i, stage in enumerate(pipeline.stages)
                for q, s in _reads(stage)
                if q == j and s != i - 1
            ]
            y -= (0.2 + 0.04) / self.inch  # the label
            self.labels.append(y)
            y -= max(0.75 * self.rise(max(spans)), self.side / 2) if spans else self.side / 2
            self.rows.append(y)
            y -= self.side / 2 + captions + 0.08 / self.inch
        self.height = -y

    @staticmethod
    def rise(span: int) -> float:
        """How far the arc of a skip connection would go up, were it a polygon."""
        return 0.6 + 0.13 * span


def _draw_pipelines(ax: plt.Axes, design: DesignSpace | Config, place: _Places) -> None:
    space, evaluation = design, None
    if isinstance(design, Config):
        space, evaluation = design.space, evaluate(design)
    sizes = [
        [stage.macs for stage in pipeline.stages] if evaluation is None else list(evaluation.branches[j].stage_dsp)
        for j, pipeline in enumerate(space.pipelines)
    ]
    largest = max(max(row) for row in sizes)
    side = {
        (j, i): max(0.07, 0.035 / place.inch, place.side * (size / largest) ** 0.5)
        for j, row in enumerate(sizes)
        for i, size in enumerate(row)
    }
    for j, pipeline in enumerate(space.pipelines):
        colour, y = BRANCHES[j % len(BRANCHES)], place.rows[j]
        label = pipeline.name
        if evaluation is not None:
            branch = evaluation.branches[j]
            held = f"{branch.delivered:.1f} of " if branch.delivered < branch.fps else ""
            label += f": {held}{branch.fps:.1f} FPS, {branch.dsp} DSP, {branch.bram} BRAM"
        x = place.columns[j][0] - (0.38 if place.columns[j][0] else 0.5)  # right of the fork
        ax.text(x, place.labels[j], label, color=colour, size=9, weight="bold", va="bottom", zorder=6)
        for i, stage in enumerate(pipeline.stages):
            x, busy = place.columns[j][i], 1.0
            if evaluation is not None:
                busy = branch.cycles[i] * branch.delivered / (branch.batch * space.frequency_hz)
            _box(ax, x, y, side[j, i], colour, busy)
            said, end = _map(stage.height, stage.width), "\n" if place.last >= NARROW else ""
            if place.last < CROWDED:
                said = f"{stage.in_channels}→{end}{stage.out_channels}\n{said}"
                if evaluation is not None:
                    cpf, kpf, h = design.factors[j][i]
                    said += f"\n{cpf}×{kpf}{end}×{h}"
            elif i and said == _map(pipeline.stages[i - 1].height, pipeline.stages[i - 1].width):
                said = ""
            under = y - place.side / 2 - 0.04 / place.inch
            ax.text(x, under, f"{i + 1}", ha="center", va="top", size=POINTS, weight="bold", zorder=5)
            under -= 1.3 * POINTS / 72 / place.inch
            ax.text(x, under, said, ha="center", va="top", size=POINTS, linespacing=1.15, zorder=5)
        _wires(ax, space, j, place, side)
    ax.set(xlim=(-0.75, place.width - 0.75), ylim=(-place.height, 0), aspect="equal", anchor="W")
    ax.axis("off")


def _box(ax: plt.Axes, x: float, y: float, side: float, colour: str, busy: float) -> None:
    corner = (x - side / 2, y - side / 2)
    ax.add_patch(Rectangle(corner, side, side, facecolor="white", lw=0, zorder=3))
    ax.add_patch(Rectangle(corner, side, side, facecolor=(colour, 0.18), lw=0, zorder=3))
    ax.add_patch(Rectangle(corner, side, side * busy, facecolor=(colour, 0.85), lw=0, zorder=3.2))
    ax.add_patch(Rectangle(corner, side, side, facecolor="none", edgecolor=colour, lw=0.9, zorder=3.4))


def _map(height: int, width: int) -> str:
    return f"{height}²" if height == width else f"{height}×{width}"


def _wires(ax: plt.Axes, space: DesignSpace, j: int, place: _Places, side: dict[tuple[int, int], float]) -> None:
    """Arrows into the stages of a pipeline: from the stage before, from further back, from another pipeline."""
    style = {"arrowstyle": "-|>", "lw": 0.9, "color": GREY, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 6}
    columns, rows, stages = place.columns, place.rows, space.pipelines[j].stages
    for i, stage in enumerate(stages):
        x, y, half = columns[j][i], rows[j], side[j, i] / 2
        if not stage.sources:
            ax.annotate("", (x - half, y), (x - 0.6, y), arrowprops=style, zorder=2)
        for q, s in _reads(stage):
            start, out = columns[q][s], side[q, s] / 2
            if q == j and s == i - 1:
                ax.annotate("", (x - half, y), (start + out, y), arrowprops=style, zorder=2)
            elif q == j:
                up = y + place.rise(x - start)
                path = Path([(start, y + out), (start, up), (x, up), (x, y + half)], [Path.MOVETO, *[Path.CURVE4] * 3])
                ax.add_patch(PathPatch(path, facecolor="none", edgecolor=GREY, lw=0.9, alpha=0.8, zorder=2))
            else:
                fork = start + 0.56
                ax.plot([fork], [rows[q]], "o", ms=3.5, color=INK, zorder=4.5)
                ax.plot([fork, fork], [rows[q], y], color=GREY, lw=0.9, zorder=1.5)
                ax.annotate("", (x - half, y), (fork, y), arrowprops=style, zorder=2)
        if stage.upsample > 1:
            ax.plot(x + 0.42, y, ">", ms=4.5, color=AMBER, mec="white", mew=0.3, zorder=4)
            at = (x + 0.43, y + 0.05 / place.inch)
            ax.text(*at, f"×{stage.upsample}", ha="center", va="bottom", size=POINTS, zorder=4, path_effects=WHITE)
    if not any((j, len(stages) - 1) in _reads(stage) for pipeline in space.pipelines for stage in pipeline.stages):
        x, half = columns[j][-1], side[j, len(stages) - 1] / 2
        ax.annotate("", (x + 0.66, rows[j]), (x + half, rows[j]), arrowprops=style, zorder=2)


# --- what a design occupies ------------------------------------------------------------------------


def occupancy(designs: Mapping[str, Evaluation], budget: Budget | Mapping[str, Budget], *, title: str = "") -> Figure:
    """DSP, BRAM and bandwidth of designs as shares of the budget, by branch.

    Args:
        designs: A bar each in every panel.
        budget: Of all, or of each.
        title: Of the figure.

    Raises:
        I2IError: If there is no design, or a budget is missing.
    """
    if not designs:
        raise I2IError("designs", expected="at least one evaluation", got="none")
    budgets = budget if isinstance(budget, Mapping) else dict.fromkeys(designs, budget)
    if missing := [name for name in designs if name not in budgets]:
        raise I2IError("budget", expected="one for each design", got=f"none for {missing[0]!r}")
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 1.25 + 0.36 * len(designs)), sharey=True)
    for ax, (resource, label) in zip(axes, RESOURCES.items(), strict=True):
        unit = 1e9 if resource == "bandwidth" else 1
        ends = [_stack(ax, row, found, budgets[name], resource) for row, (name, found) in enumerate(designs.items())]
        reach = max(1.0, *ends)
        ax.axvline(1, color=RED if reach > 1.0005 else INK, lw=1.2, ls="--")
        limits = sorted({getattr(budgets[name], resource) / unit for name in designs})
        of = "–".join(f"{value:.4g}" for value in dict.fromkeys((limits[0], limits[-1])))
        ax.set(xlim=(0, 1.22 * reach), ylim=(len(designs) - 0.45, -0.55))
        ax.set_title(f"{label}: budget {of}", size=9)
        ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        ax.set_xticks(np.arange(0, 1.01, 0.25) if reach < 1.6 else np.arange(0, reach + 0.5, 0.5))
        ax.grid(axis="y", visible=False)
    axes[0].set(yticks=range(len(designs)), yticklabels=list(designs))
    names = [branch.name for branch in next(iter(designs.values())).branches]
    handles = [Patch(color=BRANCHES[j % len(BRANCHES)], label=name) for j, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names))
    if title:
        figure.suptitle(title, x=0.01, ha="left", size=10.5, weight="bold")
    return figure


def overview(
    config: Config,
    budget: Budget,
    *,
    curves: Mapping[str, Fronts] | None = None,
    objective: str = "pairs",
    title: str = "",
) -> Figure:
    """A design at a glance: its pipelines, what it occupies, and where it stands before the front of its space.

    Args:
        config: The design.
        budget: What it may occupy.
        curves: As in :func:`fronts`; only their DSP are drawn.
        objective: What its rates are: "pairs" or "slowest".
        title: Above all.
    """
    place, found = _Places(config.space, lines=4), evaluate(config)
    top, bottom = place.height * place.inch, 1.85
    whole = top + bottom + 0.85
    figure = plt.figure(figsize=(WIDTH, whole), layout="none")  # places by hand: a view must answer at once
    figure.text(0.012, 1 - 0.08 / whole, title, weight="bold", size=10.5, va="top")
    note = "a box's area: its DSP; pale: idle"
    figure.text(0.99, 1 - 0.34 / whole, note, size=8, va="top", ha="right", color=GREY)
    across = (WIDTH - 0.2) / WIDTH
    _draw_pipelines(figure.add_axes((0.011, (bottom + 0.5) / whole, across, top / whole)), config, place)
    bars = figure.add_axes((0.12, 0.42 / whole, 0.33, (bottom - 0.35) / whole))
    for row, resource in enumerate(RESOURCES):
        _stack(bars, row, found, budget, resource)
    bars.axvline(1, color=INK, lw=1.2, ls="--")
    bars.set(yticks=range(3), yticklabels=[name.split(",")[0] for name in RESOURCES.values()], ylim=(2.55, -0.55))
    bars.set(xlim=(0, 1.25), title=f"Share of the budget{': ' + budget.name if budget.name else ''}")
    bars.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    bars.set_xticks(np.arange(0, 1.01, 0.25))
    bars.grid(axis="y", visible=False)
    ax = figure.add_axes((0.55, 0.42 / whole, 0.43, (bottom - 0.35) / whole))
    here = _rate(found, objective)
    curves, reach = curves or {}, 1.08 * max(budget.dsp, found.dsp)
    for k, (name, curve) in enumerate(curves.items()):
        ax.step(
            *_best(curve.dsp, curve.rate), where="post", color=(GREY, INK)[k % 2], lw=1.6 - 0.6 * (k % 2), label=name
        )
    ax.plot(found.dsp, here, "o", ms=7, color=RED, zorder=4, label="this design")
    ax.axvline(budget.dsp, color=INK, lw=1, ls="--")
    most = max([here, *(rate for curve in curves.values() for rate in curve.rate[curve.dsp < reach])])
    for hertz in (90, 120):
        if hertz < 1.3 * most:
            ax.axhline(hertz, color=AMBER, lw=1, ls="--", zorder=1)
            ax.text(0, hertz, f" {hertz} Hz", size=7.5, va="bottom")
    ax.set(xlim=(0, reach), ylim=(0, 1.15 * most), xlabel="DSP")
    ax.set_ylabel(RATES["slowest" if set(config.batch) == {1} else objective], size=8)
    ax.legend(loc="upper left", fontsize=7.5, borderaxespad=0.2)
    ax.set_title("Against the best there are" if curves else "Throughput")
    return figure


def _stack(ax: plt.Axes, row: int, found: Evaluation, budget: Budget, resource: str) -> float:
    """One bar of shares of the budget, by branch; its end."""
    limit, unit = getattr(budget, resource), 1e9 if resource == "bandwidth" else 1
    edge = 0.0
    for j, branch in enumerate(found.branches):
        share = getattr(branch, resource) / limit
        ax.barh(row, share, left=edge, height=0.62, color=BRANCHES[j % len(BRANCHES)], ec="white", lw=0.6)
        edge += share
    used = getattr(found, resource) / unit
    at = 1.0 if 0.8 < edge < 1 else edge  # the value beside the limit's line, not on it
    ax.text(at + 0.02, row, f"{used:.3g}" if unit > 1 else f"{used:.0f}", va="center", size=8, zorder=5)
    return edge


# --- time, layer by layer --------------------------------------------------------------------------


def latency(
    schemes: Mapping[str, Sequence[float]],
    names: Sequence[str],
    *,
    floors: Sequence[float] | None = None,
    title: str = "",
) -> Figure:
    """Time of every layer in designs of growing size, as the paper's Fig. 3; what cannot become faster is outlined.

    Args:
        schemes: Milliseconds of each layer, by the design's name.
        names: Of the layers.
        floors: Milliseconds of each layer at the largest parallelism that the architecture has. A bar that touches its
            floor is outlined.
        title: Above the axes.

    Raises:
        I2IError: If there is nothing to draw or the numbers of layers differ.
    """
    if not schemes or any(len(times) != len(names) for times in schemes.values()):
        got = {name: len(times) for name, times in schemes.items()} or "none"
        raise I2IError("schemes", expected=f"designs with {len(names)} layers each", got=got)
    figure, ax = plt.subplots(figsize=(WIDTH, 3.1))
    at, width = np.arange(len(names)), 0.8 / len(schemes)
    stuck = False
    for k, (name, times) in enumerate(schemes.items()):
        x = at + (k - (len(schemes) - 1) / 2) * width
        slowest = max(times)
        label = f"{name}: {1e3 / slowest:.1f} FPS"
        ax.bar(x, times, width * 0.92, color=BRANCHES[k % len(BRANCHES)], alpha=0.8, lw=0, label=label)
        for i, value in enumerate(times):
            held = floors is not None and value <= floors[i] * 1.0001
            stuck |= held
            if held:
                ax.bar(x[i], value, width * 0.92, facecolor="none", edgecolor=RED, lw=1.8, zorder=4)
            size = 7.5 if len(names) * len(schemes) < 20 else 6
            ax.text(x[i], value, f"{value:.1f}", ha="center", va="bottom", size=size, color=RED if held else INK)
    ax.set(ylabel="ms a frame", xlim=(-0.6, len(names) - 0.4), ylim=(0, 1.14 * max(max(v) for v in schemes.values())))
    ax.set_xticks(at, names)
    ax.grid(False, axis="x")
    handles, labels = ax.get_legend_handles_labels()
    if stuck:
        handles.append(Patch(facecolor="none", edgecolor=RED, lw=1.8))
        labels.append("at its largest parallelism")
    ax.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2, columnspacing=1.2)
    ax.set_title(title, pad=24)
    return figure


# --- ours beside the paper's -----------------------------------------------------------------------


def comparison(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Values of ours (discs) beside a paper's (hollow squares), a panel a quantity; differences are written out.

    Args:
        table: Columns ``row``, ``quantity``, ``paper``, ``ours``, and ``digits`` (of the paper's print; a difference
            that rounds away is none). Rows and quantities appear in their order.
        title: Of the figure.

    Raises:
        I2IError: If a column is missing or there is no row.
    """
    wanted = ("row", "quantity", "paper", "ours", "digits")
    if table.empty or set(wanted) - set(table.columns):
        raise I2IError(
            "table", expected="rows with " + ", ".join(wanted), got=f"{len(table)} rows, {list(table.columns)}"
        )
    rows, quantities = list(dict.fromkeys(table.row)), list(dict.fromkeys(table.quantity))
    figure, axes = plt.subplots(1, len(quantities), figsize=(WIDTH, 1.1 + 0.22 * len(rows)), sharey=True, squeeze=False)
    for ax, quantity in zip(axes[0], quantities, strict=True):
        part = table[table.quantity == quantity]
        at = [rows.index(row) for row in part.row]
        ax.plot(part.paper, at, "s", ms=8, mfc="none", mec=INK, mew=1.0, zorder=2)
        ax.plot(part.ours, at, "o", ms=4.2, color=RED, zorder=3)
        reach = max(part.paper.max(), part.ours.max())
        for y, (_, line) in zip(at, part.iterrows(), strict=True):
            if round(line.ours, int(line.digits)) != round(line.paper, int(line.digits)):
                off = f"{line.ours - line.paper:+.{int(line.digits)}f}".replace("-", "−")
                ax.text(max(line.ours, line.paper) + 0.06 * reach, y, off, va="center", size=7.5, color=RED)
        ax.set(title=quantity, xlim=(0, 1.3 * reach), ylim=(len(rows) - 0.5, -0.5))
    axes[0, 0].set(yticks=range(len(rows)), yticklabels=rows)
    handles = [
        Line2D([], [], ls="", marker="s", ms=8, mfc="none", mec=INK, label="paper"),
        Line2D([], [], ls="", marker="o", ms=4.2, color=RED, label="ours, modelled; the difference where there is one"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    if title:
        figure.suptitle(title, x=0.01, ha="left", size=10.5, weight="bold")
    return figure


# --- the search ------------------------------------------------------------------------------------


def histories(
    runs: Mapping[str, Sequence[Sequence[float]]], optima: Mapping[str, float], *, columns: int = 5, title: str = ""
) -> Figure:
    """Best fitness so far, iteration by iteration: a line a seed, a panel a problem; the enumerated optimum is dashed.

    Args:
        runs: By problem, for each seed the best fitness after every iteration (minus infinity: nothing feasible yet).
        optima: The largest fitness there is, by problem.
        columns: Panels a row.
        title: Of the figure.

    Raises:
        I2IError: If there is no run or an optimum is missing.
    """
    if not runs or not all(runs.values()) or set(runs) - set(optima):
        raise I2IError("runs", expected="histories with an optimum each", got=f"{list(runs)} and {list(optima)}")
    wide = min(columns, len(runs))
    deep = -(-len(runs) // wide)
    figure, axes = plt.subplots(deep, wide, figsize=(WIDTH, 0.5 + 2.1 * deep), squeeze=False)
    for ax in axes.flat[len(runs) :]:
        ax.axis("off")
    for ax, (name, seeds) in zip(axes.flat, runs.items(), strict=False):
        best, bottom = optima[name], np.inf
        reached = 0
        for history in seeds:
            values = np.asarray(history, dtype=float)
            there = values[-1] >= best - 1e-9 * abs(best)
            reached += there
            known = np.where(np.isfinite(values), values, np.nan)
            at = np.arange(1, len(values) + 1)
            ax.step(at, known, where="post", color=BLUE if there else RED, lw=1.0, alpha=0.6)
            if np.isfinite(known).any():
                bottom = min(bottom, np.nanmin(known))
        ax.axhline(best, color=INK, lw=1.1, ls="--")
        room = 0.08 * (best - bottom) or 0.01 * abs(best) if np.isfinite(bottom) else 1.0
        ax.set(title=f"{name}\n{reached} of {len(seeds)} seeds", xlabel="iteration")
        ax.set_ylim((bottom if np.isfinite(bottom) else best - 1) - room, best + room)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=2))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.tick_params(labelsize=7.5)
    for row in axes:
        row[0].set_ylabel("best fitness so far")
    handles = [
        Line2D([], [], color=INK, ls="--", lw=1.1, label="optimum, enumerated"),
        Line2D([], [], color=BLUE, lw=1.2, label="a seed that reaches it"),
        Line2D([], [], color=RED, lw=1.2, label="a seed that does not"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    if title:
        figure.suptitle(title, x=0.01, ha="left", size=10.5, weight="bold")
    return figure


def priorities(table: pd.DataFrame, value: str, *, corners: Sequence[str], title: str = "") -> Figure:
    """Which design wins where: a triangle of three priorities that sum to one, a colour a design.

    Args:
        table: Columns named as ``corners`` hold the priorities, column ``value`` what won there.
        value: Name of that column; its values become the legend.
        corners: Three names.
        title: Above the triangle.

    Raises:
        I2IError: If there are not three corners, or a column is missing.
    """
    if len(corners) != 3 or table.empty or {value, *corners} - set(table.columns):
        raise I2IError(
            "priorities", expected=f"three corners and {value!r} as columns", got=f"{list(corners)} of {list(table)}"
        )
    weights = table[list(corners)].to_numpy(dtype=float)
    weights = weights / weights.sum(axis=1, keepdims=True)
    ends = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])
    points = weights @ ends
    counts = table[value].value_counts()
    figure, ax = plt.subplots(figsize=(WIDTH * 0.8, 4.1))
    ax.add_patch(plt.Polygon(ends, closed=True, facecolor="none", edgecolor=GREY, lw=1))
    pitch = np.sqrt(0.433 / len(table))  # of points spread over the triangle's area
    shades = (*PALETTE, "#a3c4bc", "#8c564b", "#c49bbb", INK)
    for k, name in enumerate(counts.index):
        here = points[(table[value] == name).to_numpy()]
        label = f"{name}  ({100 * counts[name] / len(table):.0f} %)"
        ax.scatter(*here.T, s=(300 * pitch) ** 2, marker="h", color=shades[k % len(shades)], lw=0, label=label)
    for (x, y), name, ha, va in zip(
        ends, corners, ("center", "center", "center"), ("top", "top", "bottom"), strict=True
    ):
        ax.text(x, y + (0.035 if va == "bottom" else -0.035), name, ha=ha, va=va, weight="bold")
    ax.set(xlim=(-0.12, 1.12), ylim=(-0.1, 0.95), aspect="equal", title=title)
    ax.axis("off")
    ax.legend(title=value, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=0.5, alignment="left")
    return figure


# --- fronts ----------------------------------------------------------------------------------------


def fronts(
    curves: Mapping[str, Fronts],
    *,
    objective: str = "pairs",
    marks: Mapping[str, Evaluation] | None = None,
    refresh: Sequence[float] = (90.0, 120.0),
    budget: Budget | None = None,
    title: str = "",
) -> Figure:
    """Throughput against DSP, BRAM and bandwidth: a staircase a set of factors; a paper's designs as hollow stars.

    Args:
        curves: From :func:`i2ilib.fcad.pareto.fronts`, by the name of the set.
        objective: What their rates are: "pairs" (stereo pairs a second) or "slowest" (FPS of the slowest branch).
        marks: A paper's designs.
        refresh: Horizontal lines, Hz.
        budget: Vertical lines.
        title: Of the figure.

    Raises:
        I2IError: If there is nothing to draw, or no such objective.
    """
    if not curves or not all(len(curve.rate) for curve in curves.values()):
        raise I2IError("curves", expected="fronts with designs", got=list(curves) or "none")
    if objective not in RATES:
        raise I2IError("objective", expected=" or ".join(RATES), got=repr(objective))
    stars = {name: (_rate(found, objective), found) for name, found in (marks or {}).items()}
    top = max(*(curve.rate.max() for curve in curves.values()), *(rate for rate, _ in stars.values()), *refresh, 0)
    figure, axes = plt.subplots(1, len(RESOURCES), figsize=(WIDTH, 3.5), sharey=True)
    for ax, (resource, label) in zip(axes, RESOURCES.items(), strict=True):
        unit = 1e9 if resource == "bandwidth" else 1
        for k, curve in enumerate(curves.values()):
            look = SETS[k % len(SETS)]  # where two coincide, both are seen: the thinner above the wider
            ax.step(*_best(getattr(curve, resource) / unit, curve.rate), where="post", zorder=2 + 0.1 * k, **look)
        for name, (rate, found) in stars.items():
            at = (getattr(found, resource) / unit, rate)
            ax.plot(*at, "*", ms=11, mfc="white", mec=RED, mew=1.1, ls="", zorder=5)
            ax.annotate(name, at, (5, -9), textcoords="offset points", size=7.5, color=RED, path_effects=WHITE)
        for hertz in refresh:
            ax.axhline(hertz, color=AMBER, lw=1, ls="--", zorder=1)
            if ax is axes[0]:
                ax.text(0, hertz, f" {hertz:g} Hz", color=INK, size=7.5, va="bottom", path_effects=WHITE)
        if budget is not None:
            ax.axvline(getattr(budget, resource) / unit, color=INK, lw=1, ls=":")
        ax.set(xlabel=label, ylim=(0, 1.08 * top))
        ax.set_xlim(0, None)
    axes[0].set_ylabel(RATES[objective])
    handles = [Line2D([], [], label=name, **SETS[k % len(SETS)]) for k, name in enumerate(curves)]
    if stars:
        handles.append(Line2D([], [], ls="", marker="*", ms=11, mfc="white", mec=RED, label="paper"))
    if budget is not None:
        name = f"budget: {budget.name}" if budget.name else "budget"
        handles.append(Line2D([], [], color=INK, ls=":", lw=1, label=name))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    if title:
        figure.suptitle(title, x=0.01, ha="left", size=10.5, weight="bold")
    return figure


def _rate(found: Evaluation, objective: str) -> float:
    return found.pairs_per_second if objective == "pairs" else found.slowest


def _best(cost: np.ndarray, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The staircase of a cloud: by rising cost, the points with a higher rate than all before."""
    order = np.lexsort((-rate, cost))
    cost, rate = cost[order], rate[order]
    keep = np.r_[True, rate[1:] > np.maximum.accumulate(rate)[:-1]]
    return cost[keep], rate[keep]


# --- simulation ------------------------------------------------------------------------------------


def agreement(table: pd.DataFrame, *, paper: Mapping[str, float] | None = None, title: str = "") -> Figure:
    """Model over simulation, a bar a design, as the paper's Fig. 6 shows model over board.

    Args:
        table: Columns ``modelled`` and ``simulated`` (the same unit), designs as index.
        paper: Half widths of bands, in per cent, by label.
        title: Above the axes.

    Raises:
        I2IError: If there is no design or a column is missing.
    """
    if table.empty or {"modelled", "simulated"} - set(table.columns):
        raise I2IError("table", expected="designs with modelled and simulated", got=f"{len(table)} rows, {list(table)}")
    errors = 100 * (table.modelled / table.simulated - 1)
    figure, ax = plt.subplots(figsize=(WIDTH, 3.0))
    at = np.arange(len(table))
    for k, (label, band) in enumerate((paper or {}).items()):
        ax.axhspan(-band, band, color=GRID, alpha=0.5 + 0.5 * (k > 0), lw=0, zorder=0, label=f"{label}: ±{band:g} %")
    ax.bar(at, errors, 0.6, color=AMBER, lw=0, zorder=2, label="ours: model over simulation")
    reach = max(errors.abs().max(), *(paper or {"": 0.1}).values(), 0.1)
    for x, error in zip(at, errors, strict=True):
        up = error >= 0
        text = f"{error:+.2f}".replace("-", "−")
        ax.text(x, error + (0.03 if up else -0.03) * reach, text, ha="center", va="bottom" if up else "top", size=7.5)
    ax.axhline(0, color=INK, lw=0.8)
    ax.set_xticks(at, table.index, rotation=30 if len(table) > 6 else 0, ha="right" if len(table) > 6 else "center")
    ax.set(ylabel="modelled over simulated, %", ylim=(-1.25 * reach, 1.25 * reach))
    ax.grid(False, axis="x")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    ax.set_title(title, pad=24)
    return figure


def timeline(simulation: Simulation, *, frames: int = 2, title: str = "") -> Figure:
    """When each stage works on the first frames, and what it does in the steady state.

    Left: a bar where a stage works, a shade a frame; white is waiting. Right: shares of the window of the simulation.

    Args:
        simulation: From :func:`i2ilib.fcad.simulate`.
        frames: To draw.
        title: Of the figure.

    Raises:
        I2IError: If fewer frames were simulated.
    """
    branches = {branch.name: branch for branch in simulation.branches}
    there = min(len(branch.finished) for branch in simulation.branches)
    if not 1 <= frames <= there:
        raise I2IError("frames", expected=f"1 to {there}, as many as were simulated", got=frames)
    units = [unit for unit in simulation.stages if unit.kind == "conv"]
    names = list(branches)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(WIDTH, 1.2 + 0.2 * len(units)), sharey=True, width_ratios=(2.6, 1)
    )
    ms = 1e3 / simulation.frequency_hz
    labels, number = [], 0
    for row, unit in enumerate(units):
        number = number + 1 if row and units[row - 1].branch == unit.branch else 1
        labels.append(f"{unit.branch} {number}")
        colour = BRANCHES[names.index(unit.branch) % len(BRANCHES)]
        columns = len(unit.starts) // len(branches[unit.branch].finished)
        for frame in range(frames):
            part = slice(frame * columns, (frame + 1) * columns)
            spans = [(start * ms, (end - start) * ms) for start, end in _joined(unit.starts[part], unit.ends[part])]
            left.broken_barh(spans, (row - 0.36, 0.72), facecolor=(colour, 0.9 if frame % 2 == 0 else 0.5), lw=0)
        edge = 0.0
        for cause, shade in CAUSES.items():
            share = getattr(unit, cause) / simulation.window_cycles
            right.barh(row, share, left=edge, height=0.72, color=shade, lw=0)
            edge += share
    last = max(branch.finished[frames - 1] for branch in simulation.branches) * ms
    left.set(xlim=(0, last), ylim=(len(units) - 0.4, -0.6), xlabel="ms from the start (simulated)")
    left.set_yticks(range(len(units)), labels)
    left.set_title(f"Work on the first {frames} frames" if frames > 1 else "Work on the first frame")
    right.set(xlim=(0, 1), xticks=(0, 0.5, 1), xlabel="steady state, share of the time")
    right.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    for ax in (left, right):
        ax.grid(False, axis="y")
    handles = [Patch(color=shade, label=CAUSE_NAMES[cause]) for cause, shade in CAUSES.items()]
    right.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0.2, fontsize=7.5,
                 handlelength=1, columnspacing=0.8)  # fmt: skip
    if title:
        figure.suptitle(title, x=0.01, ha="left", size=10.5, weight="bold")
    return figure


def _joined(starts: np.ndarray, ends: np.ndarray) -> list[tuple[int, int]]:
    """Spans without a pause between them as one."""
    pauses = np.flatnonzero(starts[1:] > ends[:-1])
    return list(zip(starts[np.r_[0, pauses + 1]].tolist(), ends[np.r_[pauses, -1]].tolist(), strict=True))
