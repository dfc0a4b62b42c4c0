"""Differences of rendered pictures as a viewer sees them who flips between the two: LDR-FLIP."""

from __future__ import annotations

import math

import torch

from ..errors import I2IError
from ..runtime import require
from ._pair import as_batch, as_rgb, check_pair, told
from .catalogue import Metric, register

PIXELS_PER_DEGREE = 0.7 * 3840 / 0.7 * math.pi / 180  # FLIP's own viewer: 0.7 m before a 4K display 0.7 m wide, 67.02


def flip(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    value_range: float,
    pixels_per_degree: float = PIXELS_PER_DEGREE,
    reduction: str = "mean",
) -> float | torch.Tensor:
    """LDR-FLIP, by NVIDIA's flip-evaluator: colour and edge differences after the eye's blur, mean over the pixels.

    Lower is better, 0 for equal images, at most 1. No gradient: it is compiled code on the CPU, whatever the device,
    and slow for large pictures. For pictures as a display shows them, sRGB in [0, ``value_range``]; HDR-FLIP, for
    linear radiance, is not covered, and clipped radiance is no substitute for it.

    Args:
        pred: (N, C, H, W), (C, H, W) or (H, W), RGB or grey (repeated to RGB), sRGB, values in [0, ``value_range``].
        target: The same shape and range.
        value_range: Largest possible value, 1.0 or 255.
        pixels_per_degree: Of the viewer's visual angle; scores depend on it.
        reduction: "mean" over the images, or "none".

    Returns:
        [0, 1].

    Raises:
        I2IError: If the shapes differ, the images leave the range or have other than one or three channels, or
            ``pixels_per_degree`` is not above 0.
        UnavailableError: If flip-evaluator is not installed.

    Source:
        Andersson et al., FLIP: A Difference Evaluator for Alternating Images, 2020, doi:10.1145/3406183.

    Example:
        >>> round(flip(torch.ones(3, 32, 32), torch.zeros(3, 32, 32), value_range=1.0), 3)
        0.967
    """
    if not 0 < pixels_per_degree < math.inf:  # the library would end the process
        raise I2IError("pixels_per_degree", expected="above 0", got=pixels_per_degree)
    pairs = [as_rgb(as_batch(image)) for image in check_pair(pred, target, value_range=value_range)]
    evaluate, scores = require("flip_evaluator").evaluate, []
    for ours, theirs in zip(*pairs, strict=True):
        test, reference = (
            (image.detach().cpu().float() / value_range).clamp(0, 1).permute(1, 2, 0).numpy()
            for image in (ours, theirs)
        )
        _, mean, _ = evaluate(reference, test, "LDR", applyMagma=False, parameters={"ppd": pixels_per_degree})
        scores.append(mean)
    return told(torch.tensor(scores, dtype=torch.float64, device=pred.device), reduction)


register(
    Metric(
        name="flip",
        label="FLIP",
        variant=f"LDR, sRGB, {PIXELS_PER_DEGREE:.2f} pixels per degree, mean over the pixels",
        higher_is_better=False,
        score_range=(0, 1),
        source="Andersson et al. 2020, doi:10.1145/3406183; computed by flip-evaluator",
        function=flip,
        settings={"value_range": 1.0},
    )
)
