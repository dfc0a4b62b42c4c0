"""Figures of the files that engines are built from, and of what their precision costs."""

from __future__ import annotations

import os
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..deploy.half import QDQ, read_onnx
from ..errors import I2IError
from . import ERROR_MAP, INK, PALETTE, WIDTH, show

SHORT = {
    "QuantizeLinear": "Q",
    "DequantizeLinear": "DQ",
    "ConvTranspose": "Conv\nTranspose",
    "LeakyRelu": "Leaky\nReLU",
}


def qdq_graph(path: str | os.PathLike, node: str, *, depth: int = 6, title: str = "") -> Figure:
    """The operators that feed one node of an ONNX file, with what flows between them: int8 or float.

    Args:
        path: The file.
        node: Name of the operator at the right end.
        depth: How many operators back.
        title: Above the figure.

    Raises:
        I2IError: If there is no file, or no such node in it.
    """
    graph = read_onnx(path).graph
    makers = {name: x for x in graph.node for name in x.output}
    end = next((x for x in graph.node if x.name == node), None)
    if end is None:
        raise I2IError("node", expected=f"an operator of {os.fspath(path)}", got=repr(node))
    constants = {tensor.name: tensor for tensor in graph.initializer}
    level = _levels(end, makers, depth)
    known = {x.name: x for x in graph.node if x.name in level}
    at: dict[str, tuple[float, float]] = {}
    rows = _place(end, makers, level, at, 0)
    figure, ax = plt.subplots(figsize=(WIDTH, 0.55 * max(rows, 3) + 0.9))
    for name, x in known.items():
        for number, tensor in enumerate(x.input):
            source = makers.get(tensor)
            if source is not None and source.name in at:
                _edge(ax, at[source.name], at[name], source.op_type == QDQ[0])
            elif number == 0 or (number == 1 and "Conv" in x.op_type) or source is not None:
                kept = constants.get(tensor)
                label = "weights" if kept is not None and kept.dims else ("…" if source is not None else tensor)
                start = (at[name][0] - 0.8, at[name][1])
                whole = source.op_type == QDQ[0] if source is not None else kept is not None and kept.data_type == 3
                _edge(ax, start, at[name], whole)
                ax.text(start[0] - 0.05, start[1], label, ha="right", va="center", fontsize=7.5, color=INK)
    for name, x in known.items():
        colour = {QDQ[0]: PALETTE[0], QDQ[1]: PALETTE[3]}.get(x.op_type, INK)
        strong = "Conv" in x.op_type
        box = {"boxstyle": "round,pad=0.35", "fc": "#e9eef2" if strong else "white", "ec": colour, "lw": 1.3}
        text = SHORT.get(x.op_type, x.op_type)
        ax.text(*at[name], text, ha="center", va="center", fontsize=8, color=colour, bbox=box, zorder=3)
    lines = [Line2D([], [], color=PALETTE[0], lw=2.4), Line2D([], [], color=PALETTE[3], lw=1.4)]
    ax.legend(lines, ["int8", "float, in the file"], loc="lower left", ncols=2, bbox_to_anchor=(0, -0.12))
    ax.set(xlim=(-depth - 1.4, 0.6), ylim=(-0.7, rows - 0.3), title=title)
    ax.axis("off")
    return figure


def _levels(end, makers: Mapping, depth: int) -> dict[str, int]:
    """Name of each operator within ``depth``, with its longest way to the end."""
    level, wave = {end.name: 0}, [end]
    for step in range(1, depth + 1):
        wave = [makers[name] for x in wave for name in x.input if name in makers]
        level |= {x.name: step for x in wave}
    return level


def _place(x, makers: Mapping, level: Mapping[str, int], at: dict, row: int) -> int:
    """Lay out the operators behind ``x`` in free rows, ``x`` amid them; the next free row."""
    parts = [makers[name] for name in x.input if name in makers and makers[name].name in level]
    new = [part for part in parts if part.name not in at]
    for part in new:
        row = row if part.name in at else _place(part, makers, level, at, row)
    heights = [at[part.name][1] for part in new]
    at[x.name] = (-level[x.name], heights[0] if heights else row)
    return row if heights else row + 1


def _edge(ax: plt.Axes, start: tuple[float, float], end: tuple[float, float], whole: bool) -> None:
    colour, width = (PALETTE[0], 2.4) if whole else (PALETTE[3], 1.4)
    middle = max(start[0] + 0.3, end[0] - 0.5)
    ax.plot([start[0], middle, end[0]], [start[1], start[1], end[1]], color=colour, lw=width, zorder=1)


def precision_figure(
    source: torch.Tensor, outputs: Mapping[str, torch.Tensor], *, reference: str = "float32", limit: float | None = None
) -> Figure:
    """One image as each precision makes it, and how far each is from the reference.

    Args:
        source: (3, H, W) sRGB, [0, 1].
        outputs: (C, H', W') in [0, 1] by precision, C of 1 or 3, ``reference`` among them.
        reference: The precision that the others are held against.
        limit: Error at which the colours end, 8-bit codes; all but a thousandth lie below it by default.

    Raises:
        I2IError: If the reference is missing or alone.
    """
    if reference not in outputs or len(outputs) < 2:
        raise I2IError("outputs", expected=f"{reference} and another", got=", ".join(outputs) or "none")
    others = [name for name in outputs if name != reference]
    height, width = outputs[reference].shape[-2:]
    panel = 2.1 * height / width
    figure, axes = plt.subplots(max(len(others), 2), 3, figsize=(0.78 * WIDTH, max(len(others), 2) * panel + 0.5))
    show(axes[0, 0], source, "input")
    show(axes[1, 0], outputs[reference], reference)
    for ax in axes[2:, 0]:
        ax.axis("off")
    for row, name in zip(axes, others, strict=False):
        error = 255 * (outputs[name] - outputs[reference]).abs().amax(0).cpu().numpy()
        most = limit or max(float(np.quantile(error, 0.999)), 1e-3)
        show(row[1], outputs[name], name)
        last = show(row[2], error, f"|{name} − {reference}|", cmap=ERROR_MAP, vmin=0, vmax=most)
        figure.colorbar(last, ax=row[2], label="8-bit codes", shrink=0.85, extend="max")
    for row in axes[len(others) :]:
        for ax in row[1:]:
            ax.axis("off")
    return figure


def speedups(table: Mapping[str, Mapping[str, float]], *, origin: str = "paper") -> Figure:
    """Time per run of each precision, grouped by network, with the speed-up over the first of its group.

    Args:
        table: Milliseconds by network and engine; the first engine of a network is the one the others are held against.
        origin: Of the numbers: measured, modelled, recorded or paper.
    """
    figure, axes = plt.subplots(1, len(table), figsize=(WIDTH, 2.5), squeeze=False)
    for ax, (network, times) in zip(axes[0], table.items(), strict=True):
        names, values = list(times), list(times.values())
        colours = [PALETTE[5], PALETTE[3], PALETTE[2], PALETTE[0]][: len(names)]
        ax.barh(names[::-1], values[::-1], color=colours[::-1], height=0.62)
        for i, value in enumerate(values[::-1]):
            text = f"{value:.1f}" + (f"   {values[0] / value:.2f}×" if i < len(values) - 1 else "")
            ax.text(value, i, "  " + text, va="center", fontsize=8.5)
        ax.set(title=network, xlabel=f"ms per run ({origin})", xlim=(0, 1.3 * max(values)))
        ax.grid(axis="y", visible=False)
    return figure
