"""Metrics of mattes, pictures and video, one file a family; each says its variant, range and direction.

:func:`registry` lists them all, :func:`score` computes several by name, :func:`paired` compares two candidates.
"""

from .blind import brisque
from .catalogue import Metric, Score, metric, register, registry, score
from .deep import dists, lpips, lpips_comp
from .interval import Paired, clip_block, harmonic_mean, paired
from .matte import iou, mad, mse, sad, unknown_band
from .picture import ms_ssim, psnr, ssim, ssim_flat
from .rendering import flip
from .structure import connectivity_error, gradient_error
from .video import VmafResult, vmaf
from .video_matte import dtssd, messddt

__all__ = [
    "KEYS",
    "Metric",
    "Paired",
    "Score",
    "VmafResult",
    "brisque",
    "clip_block",
    "connectivity_error",
    "dists",
    "dtssd",
    "flip",
    "gradient_error",
    "harmonic_mean",
    "iou",
    "lpips",
    "lpips_comp",
    "mad",
    "messddt",
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
    "ssim_flat",
    "unknown_band",
    "vmaf",
]

KEYS = {
    "iou": metric("iou"),
    "mse": metric("mse_255"),
    "dtssd": metric("dtssd"),
    "psnr_db": metric("psnr"),
    "ssim": metric("ssim_flat"),
    "vmaf_neg": metric("vmaf_v0.6.1neg"),
}
"""What the keys of training histories and recorded results mean: ``"mse"`` there is in squared 8-bit levels."""
