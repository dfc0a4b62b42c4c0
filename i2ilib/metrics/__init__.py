"""Metrics of mattes, pictures and video, one file a family; each says its variant, range and direction.

:func:`registry` lists them all, :func:`score` computes several by name, :func:`paired` compares two candidates.
"""

from .catalogue import Metric, Score, metric, register, registry, score
from .interval import Paired, paired
from .matte import iou, mad, mse, sad, unknown_band
from .picture import ms_ssim, psnr, ssim

__all__ = [
    "Metric",
    "Paired",
    "Score",
    "iou",
    "mad",
    "metric",
    "ms_ssim",
    "mse",
    "paired",
    "psnr",
    "register",
    "registry",
    "sad",
    "score",
    "ssim",
    "unknown_band",
]
