"""Figures that look like one book. Each function takes plain data and returns a Figure."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import seaborn as sns
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ..errors import I2IError
from ..runtime import atomic_path

if TYPE_CHECKING:
    from ..widgets import FixedPointView

PALETTE = ("#20639b", "#d1495b", "#3a9d7a", "#e8a33d", "#6b5b95", "#7a8891")  # blue, red, green, amber, violet, grey
INK = "#22303c"
GRID = "#dfe4e8"
WIDTH = 9.0  # inches: the width of a page
ERROR_MAP = LinearSegmentedColormap.from_list("i2i_error", ["#ffffff", "#f6c28b", PALETTE[1], "#4a0d2b"])
SIGNED_MAP = LinearSegmentedColormap.from_list("i2i_signed", [PALETTE[0], "#ffffff", PALETTE[1]])


def style() -> None:
    """Set the house style of all figures: font, palette, resolution, layout. ``i2ilib.start()`` calls it."""
    sns.set_theme(
        style="whitegrid",
        palette=list(PALETTE),
        rc={
            "figure.figsize": (WIDTH, 3.4),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "savefig.dpi": 160,
            "savefig.bbox": "tight",
            "savefig.facecolor": "white",
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 9.5,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 9.5,
            "axes.edgecolor": "#9aa5ad",
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": GRID,
            "grid.linewidth": 0.7,
            "lines.linewidth": 1.8,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "legend.fontsize": 8.5,
            "legend.frameon": False,
            "image.cmap": "gray",
            "image.interpolation": "nearest",
            **{key: INK for key in ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")},
        },
    )


def to_image(tensor: torch.Tensor | np.ndarray) -> np.ndarray:
    """An image as ``imshow`` wants it.

    Args:
        tensor: (C, H, W) or (1, C, H, W) with one or three channels, or (H, W); floating point, [0, 1]. Values outside
            are clipped.

    Returns:
        float32 (H, W, 3), or (H, W) for one channel, in [0, 1].

    Raises:
        I2IError: If the shape is another one or the values are not floating point.
    """
    image = torch.as_tensor(tensor).detach().cpu()
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    channels = image.shape[0] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3) or not image.is_floating_point():
        raise I2IError(
            "image",
            expected="floating point, (C, H, W) with one or three channels",
            got=f"{tuple(image.shape)} {image.dtype}",
            remedy="Pick one image of the batch.",
        )
    image = image.float().clamp(0, 1)
    return (image.permute(1, 2, 0) if channels == 3 else image.reshape(image.shape[-2:])).numpy()


def show(ax: plt.Axes, image: torch.Tensor | np.ndarray, title: str = "", **options) -> mpl.image.AxesImage:
    """Draw an image or map without ticks; ``options`` go to ``imshow``.

    Args:
        ax: Where to draw.
        image: What :func:`to_image` takes; or, with ``cmap`` among the options, a (H, W) map in any unit.
        title: Above the picture.
    """
    data = np.asarray(image) if "cmap" in options else to_image(image)
    limits = {} if "cmap" in options else {"vmin": 0, "vmax": 1}
    artist = ax.imshow(data, **{**limits, **options})
    ax.set(xticks=[], yticks=[], title=title)
    ax.grid(False)
    sns.despine(ax=ax, left=True, bottom=True)
    return artist


def matte_panels(
    source: torch.Tensor,
    matte: torch.Tensor,
    truth: torch.Tensor,
    *,
    titles: tuple[str, str, str, str] | None = None,
    limit: float | None = None,
) -> Figure:
    """Source, matte, truth and their signed difference, side by side; a row for each image of the batch.

    Args:
        source: (N, 3, H, W) or (3, H, W) sRGB, [0, 1].
        matte: (N, 1, H, W) or (1, H, W) coverage, [0, 1].
        truth: The same shape and range as ``matte``.
        titles: Above the four columns.
        limit: Alpha at which the colours of the error map end; the largest error by default.

    Raises:
        I2IError: If the three do not show the same pixels.
    """
    source, matte, truth = (x[None] if x.ndim == 3 else x for x in (source, matte, truth))
    places = [(len(x), *x.shape[-2:]) for x in (source, matte, truth)]
    if len(set(places)) != 1 or matte.shape != truth.shape:
        raise I2IError(
            "matte_panels",
            expected="source, matte and truth of the same pixels",
            got=", ".join(str(tuple(x.shape)) for x in (source, matte, truth)),
        )
    error = (matte - truth).detach().float().cpu()[:, 0]
    limit = limit or max(error.abs().max().item(), 1e-6)
    rows, height, width = places[0]
    panel = (WIDTH - 0.7) / 4
    figure, axes = plt.subplots(rows, 4, figsize=(WIDTH, rows * panel * height / width + 0.35), squeeze=False)
    names = titles or ("source", "matte", "truth", "matte − truth")
    for i, row in enumerate(axes):
        for ax, image, name in zip(row, (source[i], matte[i], truth[i]), names, strict=False):
            show(ax, image, name if i == 0 else "")
        last = show(row[3], error[i], names[3] if i == 0 else "", cmap=SIGNED_MAP, vmin=-limit, vmax=limit)
    figure.colorbar(last, ax=axes[:, 3], label="alpha", shrink=0.9)
    return figure


def training(
    steps: dict[str, list[float]], epochs: list[dict[str, float]], samples: torch.Tensor | None = None
) -> Figure:
    """How a matting GAN trains: its losses by step, its scores by epoch, and what it makes now.

    Args:
        steps: ``l1`` and, with a discriminator, ``discriminator`` and ``adversarial``: one value a step.
        epochs: ``iou`` and ``mse`` on the validation frames after every epoch; may be empty.
        samples: (N, 5, H, W) in [0, 1]: sRGB source, made matte and true matte of up to three patches.
    """
    rows = 1 if samples is None else 2
    figure = plt.figure(figsize=(WIDTH, 2.6 + (0 if samples is None else 1.25)))
    parts = np.atleast_1d(figure.subfigures(rows, 1, height_ratios=(2.6, 1.25)[:rows]))
    losses, game, scores = parts[0].subplots(1, 3)
    n = len(steps["l1"])
    curve(losses, steps["l1"], PALETTE[0])
    losses.set(title="L1 to the true matte", xlabel="step", ylabel="in [−1, 1], log", yscale="log", xlim=(0, n))
    if "discriminator" in steps:
        for name, colour in (("adversarial", PALETTE[2]), ("discriminator", PALETTE[1])):
            curve(game, steps[name], colour, name)
        game.axhline(math.log(2), color=PALETTE[5], lw=1, ls="--", label="ln 2: undecided")
        game.legend(loc="upper left", ncols=2, fontsize=8, handlelength=1.2, columnspacing=0.9, borderaxespad=0.1)
    game.set(title="The game", xlabel="step", ylabel="cross-entropy", xlim=(0, n))
    game.set_ylim(0, 1.25 * game.get_ylim()[1])  # the legend lies above the curves
    if epochs:
        at = np.arange(1, len(epochs) + 1)
        errors = [row["mse"] for row in epochs]
        scores.plot(at, errors, "o-", color=PALETTE[0], ms=3.5)
        best = int(np.argmin(errors))
        label = f"best: epoch {best + 1}, IoU {epochs[best]['iou']:.3f}"
        scores.plot(best + 1, errors[best], "o", ms=8, mfc="none", color=PALETTE[1], label=label)
        scores.legend(loc="upper right")
        scores.set(xlim=(0.5, len(epochs) + 0.5), ylim=(0, 1.25 * max(errors)))
    scores.set(title="Validation", xlabel="epoch", ylabel="MSE, 8-bit scale")
    scores.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    if samples is not None:
        panels = parts[1].subplots(1, 3 * len(samples[:3]), squeeze=False)[0]
        for k, sample in enumerate(samples[:3]):
            for ax, image, name in zip(
                panels[3 * k :], (sample[:3], sample[3:4], sample[4:]), ("source", "made", "true"), strict=False
            ):
                show(ax, image)
                ax.set_title(name, fontsize=8, fontweight="normal", pad=3)
    return figure


def curve(ax: plt.Axes, values: list[float], colour: str, label: str | None = None) -> None:
    """A noisy series: every value faint, and its running mean."""
    series = np.asarray(values, dtype=float)
    window = max(1, len(series) // 40)
    ax.plot(np.arange(1, len(series) + 1), series, color=colour, lw=0.5, alpha=0.25)
    mean = np.convolve(series, np.ones(window) / window, mode="valid")
    ax.plot(np.arange(len(mean)) + (window + 1) / 2, mean, color=colour, label=label)


def fixed_point_figure(view: FixedPointView) -> Figure:
    """What a fixed-point mapping does to a photograph: result, a part enlarged, error map, codes that enter and leave.

    All scales are the same for every view, so that two of them can be compared.

    Args:
        view: From :func:`i2ilib.widgets.fixed_point_view`.
    """
    height, width = view.result.shape[-2:]
    figure = plt.figure(figsize=(WIDTH, 2.15 + (WIDTH - 1) / 3 * height / width))
    above, below = figure.subfigures(2, 1, height_ratios=(figure.get_figheight() - 1.8, 1.8))
    whole, part, miss = above.subplots(1, 3)
    top, left, rows, columns = view.zoom
    show(whole, view.result, f"q_i = {view.q_in}, q_o = {view.q_out}, position {view.fix_position}")
    whole.add_patch(mpl.patches.Rectangle((left, top), columns, rows, fill=False, color=PALETTE[3], lw=1.5))
    stats = view.stats
    show(part, view.result[:, top : top + rows, left : left + columns], "the frame, enlarged")
    title = f"error: {stats['mean_error']:.2f} mean, {stats['max_error']:.1f} max"
    scale = mpl.colors.SymLogNorm(linthresh=1, vmin=0, vmax=255)  # from one 8-bit code to all of them
    artist = show(miss, view.error_codes.amax(0), title, cmap=ERROR_MAP, norm=scale)
    bar = above.colorbar(artist, ax=miss, label="8-bit codes", shrink=0.85, ticks=(0, 1, 4, 16, 64, 255))
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.ax.minorticks_off()
    for ax, end, way in zip(below.subplots(1, 2, sharey=True), (0, 1), ("enter", "leave"), strict=True):
        levels, clipped = (stats[name + ("_out" if end else "")] for name in ("levels", "saturated_share"))
        title = f"codes that {way}: {levels} levels, {100 * clipped:.2f} % saturated"
        _code_histogram(ax, view.histogram[end], view.saturated[end], title)
    return figure


def _code_histogram(ax: plt.Axes, histogram: torch.Tensor, saturated: torch.Tensor, title: str) -> None:
    """Share of samples for each INT8 code; what saturated is coloured."""
    total = histogram.sum().item()
    share = 100 * histogram.numpy() / total
    ax.bar(np.arange(-128, 128), share, width=1.0, color=PALETTE[0], linewidth=0)
    xlabel = "INT8 code"
    if saturated.any():
        clipped = 100 * saturated.numpy() / total
        ax.bar((-128, 127), clipped, width=3.0, color=PALETTE[1], linewidth=0)
        xlabel += " (red: saturated)"  # a legend would cover bars at some setting
    ax.set(xlim=(-132, 132), xticks=range(-128, 129, 64), xlabel=xlabel, ylabel="samples, %", title=title)
    ax.set_yscale("symlog", linthresh=1)
    ax.set(ylim=(0, 100), yticks=(0, 1, 10, 100))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.label_outer()


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure, whole or not at all; the suffix of ``path`` chooses the format."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
