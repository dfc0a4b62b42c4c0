"""Figures of restoration: how a network trains."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from . import PALETTE, WIDTH, curve, show

_APART = ("discriminator", "adversarial", "wait", "seconds")  # no losses against the true frame
_LABELS = {"vmaf_neg": "VMAF NEG", "psnr_db": "PSNR, dB", "ssim": "SSIM"}


def restoration(
    steps: dict[str, list[float]], epochs: list[dict[str, float]], samples: torch.Tensor | None = None
) -> Figure:
    """How a restoration GAN trains: its losses by step, its scores by epoch, and what it makes now.

    Args:
        steps: Losses against the true frame, by their names, and with a discriminator ``discriminator`` and
            ``adversarial``: one value a step.
        epochs: Scores on the validation frames after every epoch; the last of ``vmaf_neg``, ``ssim`` and ``psnr_db``
            that is there is drawn; may be empty.
        samples: (N, 9, H, W) in [0, 1]: bicubic enlargement, made and true, of up to three frames.
    """
    rows = 1 if samples is None else 2
    heights = (2.6, 1.25)[:rows]
    figure = plt.figure(figsize=(WIDTH, sum(heights)))
    parts = np.atleast_1d(figure.subfigures(rows, 1, height_ratios=heights))
    losses, game, scores = parts[0].subplots(1, 3)
    n = len(next(iter(steps.values())))
    for (name, values), colour in zip(
        ((name, values) for name, values in steps.items() if name not in _APART), PALETTE, strict=False
    ):
        curve(losses, values, colour, name)
    losses.set(title="Against the true frame", xlabel="step", ylabel="loss", xlim=(0, n), ylim=(0, None))
    losses.legend(loc="upper right")
    if "discriminator" in steps:
        for name, colour in (("adversarial", PALETTE[2]), ("discriminator", PALETTE[1])):
            curve(game, steps[name], colour, name)
        game.axhline(np.log(2), color=PALETTE[5], lw=1, ls="--", label="ln 2: undecided")
        game.legend(loc="upper left", fontsize=8)
    game.set(title="The game", xlabel="step", ylabel="cross-entropy", xlim=(0, n))
    game.set_ylim(0, 1.3 * game.get_ylim()[1])  # the legend lies above the curves
    key = next((key for key in _LABELS if epochs and key in epochs[0]), None)
    if key:
        values = [row[key] for row in epochs]
        best = int(np.argmax(values))
        scores.plot(np.arange(1, len(values) + 1), values, "o-", color=PALETTE[0], ms=3.5)
        label = f"best: epoch {best + 1}, {values[best]:.4g}"
        scores.plot(best + 1, values[best], "o", ms=8, mfc="none", color=PALETTE[1], label=label)
        scores.legend(loc="lower right")
        scores.set(xlim=(0.5, len(epochs) + 0.5))
    scores.set(title="Validation", xlabel="epoch", ylabel=_LABELS.get(key, ""))
    scores.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    if samples is not None:
        panels = parts[1].subplots(1, 3 * len(samples[:3]), squeeze=False)[0]
        for axes, sample in zip(panels.reshape(-1, 3), samples, strict=False):
            for ax, image, name in zip(axes, sample.split(3), ("bicubic", "made", "true"), strict=True):
                show(ax, image)
                ax.set_title(name, fontsize=8, fontweight="normal", pad=3)
    return figure
