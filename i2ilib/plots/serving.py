"""Figures about a server: one frame's way through it, and what it does with more and more clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ..errors import I2IError
from . import INK, PALETTE, WIDTH

_HATCHES = ("", "//", "", "xx", "", "..", "\\\\", "++")  # neighbours differ without their colours


class Load(NamedTuple):
    """What so many clients got from a server."""

    clients: int
    patches_per_s: float
    latency_ms: float  # median of a frame
    worst_ms: float


def journey(ways: Mapping[str, Mapping[str, float]], *, title: str = "") -> Figure:
    """The stations of frames, one bar a frame, as long as they took.

    Args:
        ways: Milliseconds by station, in order, by frame.
        title: Of the figure.

    Raises:
        I2IError: If there is no frame or a station took less than no time.
    """
    if not ways or any(ms < 0 for way in ways.values() for ms in way.values()):
        raise I2IError("ways", expected="milliseconds by station, from 0", got=dict(ways))
    stations = list(dict.fromkeys(name for way in ways.values() for name in way))
    figure, ax = plt.subplots(figsize=(WIDTH, 1.35 + 0.55 * len(ways)))
    longest = max(sum(way.values()) for way in ways.values())
    for row, way in enumerate(ways.values()):
        left = 0.0
        for i, name in enumerate(stations):
            ms = way.get(name, 0.0)
            look = {"color": PALETTE[i % len(PALETTE)], "hatch": _HATCHES[i % len(_HATCHES)], "edgecolor": "white"}
            ax.barh(row, ms, left=left, height=0.6, lw=0.6, label=name if row == 0 else None, **look)
            if ms > 0.06 * longest:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.85}
                ax.text(left + ms / 2, row, f"{ms:.0f}", ha="center", va="center", fontsize=8, color=INK, bbox=box)
            left += ms
        ax.text(left, row, f"  {left:.0f} ms", va="center", fontsize=8.5)
    ax.set(yticks=range(len(ways)), yticklabels=list(ways), ylim=(len(ways) - 0.5, -0.5), xlim=(0, 1.12 * longest))
    ax.set(xlabel="ms since the client began (measured)", title=title)
    ax.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=min(len(stations), 8), handlelength=1.4, columnspacing=1.2)
    return figure


def load(runs: Mapping[str, Sequence[Load]], *, alone: float, title: str = "") -> Figure:
    """Throughput and latency against the number of clients.

    Args:
        runs: Rows by what was varied beside the clients.
        alone: Patches a second of the Runner by itself, with batches in flight.
        title: Of the figure.

    Raises:
        I2IError: If there is no row.
    """
    if not runs or not all(runs.values()):
        raise I2IError("runs", expected="rows", got=dict(runs))
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.3))
    left.axhline(alone, color=INK, lw=1, ls="--", label="Runner alone")
    for i, (name, rows) in enumerate(runs.items()):
        clients = [row.clients for row in rows]
        look = {"color": PALETTE[i % len(PALETTE)], "marker": "os^Dv"[i % 5], "ms": 5}
        left.plot(clients, [row.patches_per_s for row in rows], label=name, **look)
        right.plot(clients, [row.latency_ms for row in rows], label=f"{name}, median", **look)
        right.plot(clients, [row.worst_ms for row in rows], ls=":", lw=1.2, label=f"{name}, longest", **look)
    every = sorted({row.clients for rows in runs.values() for row in rows})
    for ax in (left, right):
        ax.set(xscale="log", xlabel="clients at once", xticks=every, xticklabels=[f"{n}" for n in every])
        ax.xaxis.set_minor_formatter("")
        ax.grid(axis="x", which="minor", visible=False)
        ax.legend()
    top = 1.15 * max(alone, *(row.patches_per_s for rows in runs.values() for row in rows))
    left.set(ylim=(0, top), ylabel="patches/s (measured)", title=title or "Throughput")
    right.set(yscale="log", ylabel="ms until a frame is back, log", title="Latency")
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter("")
    low = np.floor(np.log10(min(row.latency_ms for rows in runs.values() for row in rows)))
    high = np.ceil(np.log10(max(row.worst_ms for rows in runs.values() for row in rows)))
    right.set_ylim(10**low, 10 ** max(high, low + 1))
    return figure
