"""Figures about integers: tensors on their grids, what rounding costs, how fix positions are found."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..errors import I2IError
from ..quant import graph as g
from ..quant.fixed_point import Kind, to_integers
from . import GRID, INK, PALETTE, SIGNED_MAP, WIDTH, curve, show

if TYPE_CHECKING:
    from ..deploy.staircase import Step
    from ..quant.correct import Pair
    from ..quant.ptq import Quantised
    from ..widgets import CalibrationView, PositionView

BLUE, RED, GREEN, AMBER, VIOLET, GREY = PALETTE
BINS = 24, 128  # over the grid and the values: for a few of them, for many


# --- tensors and their grids ---------------------------------------------------------------------


def grid_shares(values: torch.Tensor, fp: int, *, bits: int = 8, kind: Kind = "activation") -> tuple[float, float]:
    """Share of the values beyond the ends of the grid, and share that is not zero but becomes zero.

    Args:
        values: Any shape, float, unrounded.
        fp: Fix position.
        bits: Of the integers.
        kind: Chooses the rounding, as in :func:`i2ilib.quant.to_integers`.

    Returns:
        ``(saturated, to zero)``, each 0 to 1.
    """
    values = _checked(values)
    wide = to_integers(values, fp, kind=kind, bits=32)  # rounded, not yet clipped
    half = 2 ** (bits - 1)
    saturated = ((wide < -half) | (wide > half - 1)).sum().item()
    lost = ((wide == 0) & (values != 0)).sum().item()
    return saturated / values.numel(), lost / values.numel()


def tensor_histogram(
    values: torch.Tensor,
    fp: int,
    *,
    bits: int = 8,
    kind: Kind = "activation",
    title: str = "",
    ax: plt.Axes | None = None,
) -> Figure:
    """The values of a tensor and the integer grid that is to hold them; what saturates is red.

    Args:
        values: Any shape, float, unrounded.
        fp: Fix position: the grid's step is ``2^-fp``.
        bits: Of the integers.
        kind: Chooses the rounding.
        title: Above the axes.
        ax: Where to draw; a new figure by default.

    Raises:
        I2IError: If there is no value, or one is not finite.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH, 2.6))
    saturated, lost = _histogram(ax, values, fp, bits, kind)
    handles = _legend_of_a_grid(f"saturated: {_percent(saturated)}", f"rounded to zero: {_percent(lost)}", bits)
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.1, columnspacing=1.2)
    ax.set_title(title, pad=22)
    ax.set(xlabel=f"value (step $2^{{{-fp}}}$)", ylabel="values, %")
    return ax.get_figure(root=True)


def _legend_of_a_grid(saturated: str, lost: str, bits: int) -> list[Patch]:
    return [
        Patch(color=BLUE, label="on the grid"),
        Patch(color=RED, label=saturated),
        Patch(color=AMBER, alpha=0.5, label=lost),
        Patch(facecolor=GREEN, alpha=0.15, label=f"the {2**bits} integers"),
    ]


def _histogram(ax: plt.Axes, values: torch.Tensor, fp: int, bits: int, kind: Kind) -> tuple[float, float]:
    """Draw the bars, the range of the grid, and what rounds to zero; return the two shares."""
    values = _checked(values)
    half, step = 2 ** (bits - 1), 2.0**-fp
    low, high = (-half - 0.5) * step, (half - 0.5) * step  # what still rounds to an integer of the range
    least, most = min(low, values.min().item()), max(high, values.max().item())
    bins = min(max(BINS[0], 2 * math.isqrt(values.numel())), BINS[1])
    width = max(high - low, most - least) / bins
    before, after = (math.ceil((low - least) / width - 1e-6), math.ceil((most - high) / width - 1e-6))
    inside = max(1, round((high - low) / width))
    edges = np.concatenate(
        [
            low - width * np.arange(before, 0, -1),
            np.linspace(low, high, inside + 1),
            high + width * np.arange(1, after + 1),
        ]
    )
    edges[0], edges[-1] = min(edges[0], least), max(edges[-1], most)
    counts, edges = np.histogram(values.double().numpy(), edges)
    share = 100 * counts / values.numel()
    ax.axvspan(low, high, color=GREEN, alpha=0.12, lw=0, zorder=0)
    ax.axvspan(-step / 2, step / 2, color=AMBER, alpha=0.5, lw=0, zorder=0.5)
    floor = 50 / values.numel()  # half of one value: bars stand on it
    for first, last, colour in ((0, before, RED), (before, before + inside, BLUE), (before + inside, len(share), RED)):
        if last > first:
            ax.stairs(share[first:last], edges[first : last + 1], baseline=floor, fill=True, color=colour, zorder=2)
    margin = 0.02 * (edges[-1] - edges[0])
    ax.set(yscale="log", ylim=(floor, 150), xlim=(edges[0] - margin, edges[-1] + margin))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.grid(axis="x", visible=False)
    if 2**bits <= 32:  # few enough to be seen
        ax.set_xticks(np.arange(-half, half) * step, minor=True)
        ax.tick_params(axis="x", which="minor", length=4, color=GREEN, bottom=True)
    return grid_shares(values, fp, bits=bits, kind=kind)


def _checked(values: torch.Tensor) -> torch.Tensor:
    values = values.detach().cpu().float().flatten()
    if values.numel() == 0 or not torch.isfinite(values).all():
        raise I2IError("values", expected="finite values", got="none" if values.numel() == 0 else "NaN or infinity")
    return values


def _percent(share: float) -> str:
    """A share as one reads it: "0", "0.03 %", "12 %"."""
    return "0" if share == 0 else f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.3g} %"


@torch.no_grad()
def float_values(quantised: Quantised, x: torch.Tensor, *names: str) -> dict[str, torch.Tensor]:
    """The values of rounded tensors as they would be without any rounding, in the folded float network.

    Args:
        quantised: Any quantised network.
        x: (N, C, H, W) float32 as the network sees it.
        *names: Of tensors, parameters and feature maps; all of them by default.

    Returns:
        By name, in the order of computation; parameters in their own shape, feature maps (N, C, H, W).

    Raises:
        I2IError: If a name is not a tensor of this network.
    """
    chosen = [site for site in quantised.sites if not names or site.name in names]
    _known(quantised, names)
    found: dict[str, torch.Tensor] = {}

    def keep(site: g.Site, value: torch.Tensor) -> torch.Tensor:
        found[site.name] = value.detach()
        return value

    if any(site.kind != "parameter" for site in chosen):
        g.interpret(quantised.folded, chosen, x, keep)
    else:
        found = {site.name: g.parameter(quantised.folded, site.node).detach() for site in chosen}
    return {site.name: found[site.name] for site in chosen}


def _known(quantised: Quantised, names: Iterable[str]) -> None:
    if strange := [name for name in names if name not in quantised.fix_positions]:
        known = ", ".join(list(quantised.fix_positions)[:6])
        raise I2IError("tensor", expected=f"a tensor of this network: {known}, …", got=", ".join(map(repr, strange)))


def weight_and_activation_histograms(
    quantised: Quantised, x: torch.Tensor, names: Sequence[str], *, columns: int = 3
) -> Figure:
    """Several tensors with the grids that a quantised network gives them, side by side.

    Args:
        quantised: The network.
        x: (N, C, H, W) float32 as the network sees it.
        names: Tensors, in the order of the panels.
        columns: Panels in a row.

    Raises:
        I2IError: If there is no name, or one is not a tensor of this network.
    """
    if not names:
        raise I2IError("names", expected="at least one tensor", got="none")
    values = float_values(quantised, x, *names)
    kinds = {site.name: site.kind for site in quantised.sites}
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 0.4 + 1.75 * rows), squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        fp = quantised.fix_positions[name]
        saturated, lost = _histogram(ax, values[name], fp, quantised.bits, kinds[name])
        ax.set_title(name, fontsize=9)
        note = f"position {fp}\n{_percent(saturated)} saturated\n{_percent(lost)} to zero"
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
        ax.text(0.985, 0.97, note, transform=ax.transAxes, ha="right", va="top", fontsize=7.5, bbox=box, zorder=4)
        ax.xaxis.set_major_locator(MaxNLocator(5))
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    figure.supylabel("values, %", fontsize=9.5)
    handles = _legend_of_a_grid("saturated", "rounded to zero", quantised.bits)
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


# --- from float to engine ------------------------------------------------------------------------


def staircase_figure(steps: Sequence[Step]) -> Figure:
    """The way down from float to the engines, as stairs: what every step changed, in LSB; a step not run is hatched.

    A step lies one tread below the one that it is compared with. Its colour says how far the two are apart: equal,
    within rounding (no value off by half a step), off by a step at most, off by more.

    Args:
        steps: From :func:`i2ilib.deploy.staircase.staircase`; each has ``name``, ``against``, ``max_lsb``,
            ``differing``, ``total`` and ``reason``, which is empty where the step was run.

    Raises:
        I2IError: If there is no step.
    """
    if not steps:
        raise I2IError("steps", expected="at least one", got="none")
    depth: dict[str, int] = {}
    for step in steps:
        depth[step.name] = 0 if step.against == step.name else depth.get(step.against, 0) + 1
    top = max(depth.values()) + 1
    figure, ax = plt.subplots(figsize=(WIDTH, 1.75 + 0.5 * top + 0.28 * sum(bool(step.reason) for step in steps)))
    size = 7.5 if len(steps) < 12 else 6.8  # of what is told in a column
    for i, step in enumerate(steps):
        height = top - depth[step.name] + 0.6
        if step.reason:
            ax.bar(i, height, 1, color="white", edgecolor=GREY, hatch="////", lw=0.8)
            ax.text(i, height + 0.1, "not run\nhere", ha="center", va="bottom", fontsize=size, color=GREY)
            continue
        colour, told = _verdict(step)
        ax.bar(i, height, 1, color=colour, alpha=0.16, lw=0)
        ax.plot((i - 0.5, i + 0.5), (height, height), color=colour, lw=3.5, solid_capstyle="butt")
        ax.text(i, height + 0.1, told, ha="center", va="bottom", fontsize=size, color=INK, linespacing=1.25)
        if i and depth[step.name] > depth[steps[i - 1].name]:
            ax.plot((i - 0.5,) * 2, (height, height + 1), color=GREY, lw=0.8)
    names = ["\n".join(textwrap.wrap(step.name, 11)) for step in steps]
    ax.set(xlim=(-0.5, len(steps) - 0.5), ylim=(0, top + 1.5), yticks=[], xticks=range(len(steps)))
    ax.set_xticklabels(names, fontsize=8, fontweight="bold")
    ax.grid(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=0)
    kinds = {GREEN: "equal", BLUE: "no value off by half a step", AMBER: "off by one step at most", RED: "off by more"}
    handles = [Patch(facecolor=colour, label=label) for colour, label in kinds.items()]
    ax.legend(handles=handles, loc="upper right", fontsize=8)
    absent = [textwrap.fill(f"{step.name}: {step.reason}", 135) for step in steps if step.reason]
    if absent:
        ax.set_xlabel("\n".join(absent), fontsize=7, color=GREY, loc="left", labelpad=8)
    ax.set_title("What each step changes, in LSB of the last int8 tensor")
    return figure


def _verdict(step: Step) -> tuple[str, str]:
    """Colour and text of a step that was run."""
    if step.against == step.name:
        return GREY, "where we\nbegin"
    if step.max_lsb == 0:
        return GREEN, f"equal to\n{step.against}"
    share = _percent(step.differing / step.total)
    colour = BLUE if step.differing == 0 else AMBER if step.max_lsb <= 1 else RED
    largest = f"max {step.max_lsb:.2g} LSB" if step.max_lsb >= 0.01 else "max < 0.01 LSB"
    return colour, f"{largest}\n{share} differ"


# --- what integers cost --------------------------------------------------------------------------


def sensitivity_figure(
    scores: Mapping[str, float], baseline: float, *, metric: str = "IoU", reference: float | None = None
) -> Figure:
    """What the integers of every layer cost alone: a bar from the float score to the score with that layer rounded.

    Args:
        scores: Layer to score, in layer order, from :func:`i2ilib.quant.sensitivity`.
        baseline: Score of the float network.
        metric: Name and unit of the score.
        reference: Score with all layers rounded.

    Raises:
        I2IError: If there is no layer.
    """
    if not scores:
        raise I2IError("scores", expected="at least one layer", got="none")
    names, values = list(scores), np.array(list(scores.values()), dtype=float)
    far = np.argsort(-np.abs(values - baseline), kind="stable")[:3]
    colours = [RED if i in far and values[i] != baseline else BLUE for i in range(len(names))]
    figure, ax = plt.subplots(figsize=(WIDTH, 1.0 + 0.19 * len(names)))
    ax.barh(range(len(names)), values - baseline, left=baseline, color=colours, height=0.72, lw=0)
    ax.plot(values, range(len(names)), "o", ms=3, color=INK, mew=0)
    ax.axvline(baseline, color=INK, lw=1, label=f"float: {baseline:.4g}")
    if reference is not None:
        ax.axvline(reference, color=VIOLET, lw=1.2, ls="--", label=f"all layers in integers: {reference:.4g}")
    ax.set(yticks=range(len(names)), ylim=(len(names) - 0.4, -0.6), xlabel=f"{metric} with this layer alone rounded")
    ax.set_yticklabels(names, fontsize=8)
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1)
    return figure


def bits_figure(
    means: Mapping[str, Mapping[int, float]],
    spreads: Mapping[str, Mapping[int, float]] | None = None,
    *,
    metric: str = "IoU",
    baseline: float | None = None,
) -> Figure:
    """A score against the bits of the integers, a line for every way to quantise.

    Args:
        means: Arm ("PTQ", "QAT") to bits to mean score.
        spreads: The same, standard deviations over seeds.
        metric: Name and unit of the score.
        baseline: Score of the float network.

    Raises:
        I2IError: If there is no arm.
    """
    if not means:
        raise I2IError("means", expected="at least one arm", got="none")
    figure, ax = plt.subplots(figsize=(0.62 * WIDTH, 3.1))
    width = 0.06
    for i, (arm, points) in enumerate(means.items()):
        bits = np.array(sorted(points))
        errors = [(spreads or {}).get(arm, {}).get(int(b), 0.0) for b in bits]
        ax.errorbar(
            bits + width * (i - (len(means) - 1) / 2),  # side by side, so that bars do not cover each other
            [points[int(b)] for b in bits],
            yerr=errors if any(errors) else None,
            marker="o",
            ms=4.5,
            capsize=3,
            elinewidth=1.2,
            color=PALETTE[i % len(PALETTE)],
            label=arm,
        )
    if baseline is not None:
        ax.axhline(baseline, color=INK, lw=1, ls="--", label="float32")
    ax.set(xlabel="bits of every integer", ylabel=metric)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="best")
    return figure


# --- how channels share a range -------------------------------------------------------------------


def equalisation_figure(pair: Pair, *, bits: int = 8) -> Figure:
    """Ranges of the channels between two convolutions, before and after they were shared.

    Every channel of a tensor has the same step, a power of two that holds the largest channel. The title counts what
    that leaves to the channel in the middle: integers on either side of zero.

    Args:
        pair: From :func:`i2ilib.quant.correct.equalise`.
        bits: Of the integers.
    """
    before = pair.ranges.double().cpu().numpy()
    scales = pair.scales.double().cpu().numpy()
    after = np.stack([before[0] / scales, before[1] * scales])
    order = np.argsort(before[0], kind="stable")
    at = np.arange(len(order))
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.0), sharey=True)
    parts = ((f"{pair.first}, output channels", 0), (f"{pair.second}, input channels", 1))
    for ax, (name, i) in zip(axes, parts, strict=True):
        old, new = before[i, order], after[i, order]
        ax.vlines(at, np.minimum(old, new), np.maximum(old, new), color=GREY, lw=0.8, alpha=0.6)
        ax.plot(at, old, "o", ms=4, mfc="white", color=RED, label="before")
        ax.plot(at, new, "o", ms=4, color=BLUE, label="after")
        left = [_integers(values, bits) for values in (old, new)]
        ax.set_title(f"{name}\nmiddle channel: ±{left[0]:.0f} → ±{left[1]:.0f} integers")
        ax.set(xlabel="channel, by range before")
        ax.set_yscale("log", base=2)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("largest |weight|")
    axes[0].legend(loc="best")
    return figure


def _integers(ranges: np.ndarray, bits: int) -> float:
    """Integers on either side of zero that the median channel reaches, on the step that holds the largest."""
    if not ranges.max() > 0:
        return 0.0
    step = 2.0 ** math.ceil(math.log2(ranges.max() / (2 ** (bits - 1) - 0.5)))
    return float(np.floor(np.median(ranges) / step + 0.5))


def qat_figure(
    losses: Sequence[float],
    thresholds: Mapping[str, Sequence[float]] | None = None,
    *,
    frozen_from: int | None = None,
    highlight: int = 5,
) -> Figure:
    """How a network trains with its integers in the loop: loss, walk of the thresholds, and positions that changed.

    A threshold is drawn from the end of the octave that it began in: it starts between -1 and 0, and where it crosses
    a whole number its fix position changes by one, down as the threshold grows. Two bands hold all thresholds and the
    middle half of them.

    Args:
        losses: One a step: ``history.steps["loss"]``.
        thresholds: Tensor to its ``log2 t`` after every step, the first value after the first step.
        frozen_from: Step from which on thresholds are frozen.
        highlight: How many tensors, those that walked furthest, are named.

    Raises:
        I2IError: If there is no step, or the thresholds have another number of steps.
    """
    if not len(losses):
        raise I2IError("losses", expected="at least one step", got="none")
    panels = 3 if thresholds else 1
    figure, axes = plt.subplots(1, panels, figsize=(WIDTH if thresholds else 0.62 * WIDTH, 2.9), squeeze=False)
    axes = axes[0]
    curve(axes[0], list(losses), BLUE)
    axes[0].set(title="Loss", ylabel="loss, log", yscale="log")
    if thresholds:
        _walk(axes[1:], thresholds, len(losses), highlight)
    for ax in axes:
        ax.set(xlabel="step", xlim=(0, len(losses)))
        if frozen_from is not None and frozen_from < len(losses):
            ax.axvspan(frozen_from, len(losses), color=GRID, alpha=0.5, lw=0, zorder=0)
            ax.text(frozen_from, 1, " frozen", transform=ax.get_xaxis_transform(), va="top", fontsize=8, color=GREY)
    return figure


def _walk(axes: Sequence[plt.Axes], thresholds: Mapping[str, Sequence[float]], steps: int, highlight: int) -> None:
    """The thresholds, and how many positions differ from those of the first step."""
    walks, count = axes
    paths = np.array([list(values) for values in thresholds.values()], dtype=float)
    if paths.shape[1] != steps:
        raise I2IError("thresholds", expected=f"{steps} values a tensor", got=paths.shape[1])
    octave = np.ceil(paths)
    paths = paths - octave[:, :1]
    at = np.arange(1, steps + 1)
    named = np.argsort(-np.ptp(paths, axis=1), kind="stable")[:highlight]
    for share, shade in ((100, 0.15), (50, 0.3)):  # of the tensors
        edges = np.percentile(paths, (50 - share / 2, 50 + share / 2), axis=0)
        walks.fill_between(at, *edges, color=GREY, alpha=shade, lw=0, label="all" if share == 100 else "middle half")
    for colour, i in zip(np.resize(PALETTE[:5], len(named)), named, strict=True):
        walks.plot(at, paths[i], color=colour, lw=1.5, label=list(thresholds)[i])
    low, high = math.floor(paths.min()), math.ceil(paths.max())
    for line in range(low, high + 1):
        walks.axhline(line, color=INK, lw=0.8, alpha=0.5)
    walks.set(title="Thresholds", ylabel="$\\log_2 t$ less its octave's end", ylim=(low - 0.05, high + 0.05))
    walks.get_figure().legend(*walks.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7.5)
    moved = octave[:, :1] - octave  # of the fix position: it falls as the threshold grows
    for colour, label, number in ((BLUE, "finer", (moved > 0).sum(0)), (RED, "coarser", (moved < 0).sum(0))):
        count.plot(at, number, color=colour, drawstyle="steps-post", label=label)
    most = max(1, (moved != 0).sum(0).max())
    count.set(title="Positions that changed", ylabel=f"tensors, of {len(paths)}", ylim=(0, 1.1 * most))
    count.yaxis.set_major_locator(MaxNLocator(integer=True))
    count.legend(loc="best")


# --- what the widgets show -----------------------------------------------------------------------


def position_figure(view: PositionView, pinned: PositionView | None = None) -> Figure:
    """What moving fix positions does: the input, two mattes, their difference, the error, and the tensor on its grid.

    Args:
        view: From :func:`i2ilib.widgets.position_view`.
        pinned: Another, to compare with; by default the network as calibrated.
    """
    figure = plt.figure(figsize=(WIDTH, 4.6))
    above, below = figure.subfigures(2, 1, height_ratios=(2.45, 2.15))
    axes = above.subplots(1, 5)
    name, matte, iou, mse = "as calibrated", view.reference, view.reference_iou, view.reference_mse
    if pinned is not None:
        name, matte, iou, mse = "pinned", pinned.matte, pinned.iou, pinned.mse
    show(axes[0], view.picture, "the network\nreads\n")
    show(axes[1], matte, f"{name}\nIoU {iou:.4f}\nMSE {mse:.4g}")
    show(axes[2], view.matte, f"now\nIoU {view.iou:.4f}\nMSE {view.mse:.4g}")
    limits = {"cmap": SIGNED_MAP, "vmin": -0.5, "vmax": 0.5}  # the same at every move
    show(axes[3], (view.matte - matte)[0], f"now less\n{name}\n", **limits)
    artist = show(axes[4], view.error[0], "now less\nthe truth\n", **limits)
    above.colorbar(artist, ax=axes[3:], label="alpha", shrink=0.8, extend="both")
    text = f"{view.tensor}: position {view.fix_position}"
    text += f" (calibrated {view.start})" if view.fix_position != view.start else " (calibrated)"
    text += f", {view.bits} bits, mean squared error {view.tensor_mse:.2g}"
    if view.beyond:
        text += "; beyond the DPU's shifts"
    tensor_histogram(view.values, view.fix_position, bits=view.bits, kind=view.kind, title=text, ax=below.subplots())
    return figure


def calibration_view_figure(view: CalibrationView) -> Figure:
    """What calibrating on fewer batches does: mattes, error, and every fix position beside that of all batches.

    Args:
        view: From :func:`i2ilib.widgets.calibration_view`.
    """
    figure = plt.figure(figsize=(WIDTH, 5.0))
    above, below = figure.subfigures(2, 1, height_ratios=(2.7, 2.3))
    axes = above.subplots(1, 4)
    batches = "batch" if view.count == 1 else "batches"
    show(axes[0], view.truth, f"truth\nfloat32: IoU {view.float_iou:.4f}")
    show(axes[1], view.reference, f"all {view.total} batches\nIoU {view.reference_iou:.4f}")
    show(axes[2], view.matte, f"{view.count} {batches}\nIoU {view.iou:.4f}")
    _error(above, axes[3], view.error, view.mse)
    ax, names = below.subplots(), list(view.fix_positions)
    here = np.array(list(view.fix_positions.values()))
    there = np.array([view.changed.get(name, (0, fp))[1] for name, fp in view.fix_positions.items()])
    at, other = np.arange(len(names)), np.flatnonzero(here != there)
    ax.plot(at, there, "o", ms=6, mfc="none", color=GREY, label=f"all {view.total} batches")
    ax.plot(at, here, "o", ms=3, color=BLUE, label=f"{view.count} {batches}")
    ax.vlines(other, here[other], there[other], color=RED, lw=1.5)
    ax.plot(other, here[other], "o", ms=4.5, color=RED, label="moved")
    ax.set(ylabel="fix position", xlim=(-1, len(names)))
    ax.set_xticks(other, [names[i] for i in other], rotation=50, ha="right", rotation_mode="anchor", fontsize=7)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.1)
    extra = [name for on, name in ((view.equalise, "equalised"), (view.correct_bias, "biases corrected")) if on]
    ax.set_title(", ".join([f"{len(other)} of {len(names)} positions differ, {view.bits} bits", *extra]), pad=22)
    return figure


def _error(figure: Figure, ax: plt.Axes, error: torch.Tensor, mse: float) -> None:
    artist = show(ax, error[0], f"error\nMSE {mse:.4g}", cmap=SIGNED_MAP, vmin=-0.5, vmax=0.5)  # the same at every move
    figure.colorbar(artist, ax=ax, label="alpha", shrink=0.8, extend="both")
