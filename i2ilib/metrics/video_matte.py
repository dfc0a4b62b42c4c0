"""Metrics of mattes in time: dtSSD, which stays at a pixel, and MESSDdt, which follows the motion."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch.nn import functional

from ..errors import I2IError
from ..runtime import require
from ._pair import check_image, check_pair, flat, mask_like, masked_mean, told
from .catalogue import Metric, register
from .matte import register_with_band

EROFEEV = "Erofeev et al., Perceptually Motivated Benchmark for Video Matting, BMVC 2015, doi:10.5244/C.29.99"


def dtssd(
    pred: torch.Tensor, target: torch.Tensor, *, mask: torch.Tensor | None = None, reduction: str = "mean"
) -> float | torch.Tensor:
    """Root mean square, over the pixels, of the error in a matte's change from each frame to the next.

    Lower is better, 0 is best: an error that stays the same in all frames costs nothing. Differentiable; at 0 the
    derivative is 0. Published tables print it times 100. The variant is that of RobustVideoMatting's evaluation, whose
    root is of a mean; Erofeev's and those of Deep Video Matting and TCVOM take it of a sum, which grows with the frame.
    Its tables also average a 0 for each clip's first frame: (N - 1) / N of the mean here.

    Args:
        pred: Coverage in [0, 1], frames in order, two or more: (N, C, H, W).
        target: The same shape and range.
        mask: The pixels to count, bool, of a shape that can be expanded to that of ``pred``; all by default, as
            RobustVideoMatting does. Of a pair, the mask of the earlier frame counts; without any pixel it scores 0.
        reduction: "mean" over the pairs of consecutive frames, or "none".

    Returns:
        [0, 2], or one for each pair, (N - 1,). A long clip may be passed in parts that overlap by one frame.

    Raises:
        I2IError: If there are fewer than two frames, the shapes differ, the mattes are empty or leave [0, 1], or the
            mask is not bool or has another size.

    Source:
        Erofeev et al., Perceptually Motivated Benchmark for Video Matting, BMVC 2015, doi:10.5244/C.29.99.

    Example:
        >>> target = torch.zeros(3, 1, 8, 8)
        >>> pred = torch.tensor([0.0, 0.5, 0.5]).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)
        >>> dtssd(pred, target, reduction="none").tolist()
        [0.5, 0.0]
    """
    pred, target, mask = _prepared(pred, target, mask)
    change = (pred - target).diff(dim=0) * mask
    count = flat(mask).sum(1).clamp_min(1).to(change)
    # vector_norm, because its derivative at zero is 0, not NaN
    return told(torch.linalg.vector_norm(flat(change), dim=1) / count.sqrt(), reduction)


def messddt(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    flow: torch.Tensor | None = None,
    frames: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    reduction: str = "mean",
) -> float | torch.Tensor:
    """Mean of |(p(x, k) − t(x, k))² − (p(x + v, k + 1) − t(x + v, k + 1))²|: the change of the error along the motion.

    Lower is better, 0 is best: an error that moves with the object costs nothing. Differentiable in the mattes.

    Erofeev et al. sum this over the pixels of a frame; here it is divided by their number, as in later evaluations,
    so that scores of two sizes compare; tables scale it variously. p − t is read between pixels by bilinear
    interpolation, as TCVOM does. A pixel whose motion v leaves the frame is not counted. Scores depend on the motion
    field: compare only those of one. The much-copied code of Deep Video Matting (nowsyn/DVM, evaluation/metric.py at
    1c866e2) swaps rows and columns where it follows the motion, and reads the clip's second frame for every pair; its
    scores are not those of the definition.

    Args:
        pred: Coverage in [0, 1], frames in order, two or more: (N, C, H, W).
        target: The same shape and range.
        flow: Motion v of each pixel to the next frame, (N - 1, 2, H, W), in pixels: to the right, then down. By default
            estimated: by scikit-image's ``optical_flow_tvl1``, from ``target``, or from ``frames``. Its regularisation
            carries the motion of the outline into the flat inside and outside of a matte, where
            ``optical_flow_ilk``, which solves each window alone, has nothing to go by and goes astray by many pixels.
            It is slow.
        frames: Pictures to estimate the motion from, (N, any, H, W) in [0, 1]; the mean of their channels is used.
        mask: The pixels to count, as for :func:`dtssd`.
        reduction: "mean" over the pairs of consecutive frames, or "none".

    Returns:
        [0, 1], or one for each pair, (N - 1,). A long clip may be passed in parts that overlap by one frame.

    Raises:
        I2IError: As :func:`dtssd` does; if both ``flow`` and ``frames`` are given, or one has another size; if
            ``flow`` is not floating point or not finite; or if motion is to be estimated on a side of one pixel.

    Source:
        Erofeev et al., Perceptually Motivated Benchmark for Video Matting, BMVC 2015, doi:10.5244/C.29.99.

    Example:
        >>> target = torch.zeros(2, 1, 8, 8)
        >>> pred = torch.zeros(2, 1, 8, 8)
        >>> pred[0, 0, 4, 2] = pred[1, 0, 4, 3] = 1  # a wrong pixel that moves to the right
        >>> right = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 8, 8)
        >>> messddt(pred, target, flow=right), messddt(pred, target, flow=0 * right)
        (0.0, 0.03125)
    """
    pred, target, mask = _prepared(pred, target, mask)
    if flow is not None and frames is not None:
        raise I2IError("flow and frames", expected="one of them", got="both", remedy="Motion is estimated or given.")
    if flow is not None:
        flow = _checked_flow(flow, target)
    else:
        flow = _estimated(target if frames is None else _checked_frames(frames, target))
    later, inside = _along(pred[1:] - target[1:], flow.to(pred))
    error = ((pred[:-1] - target[:-1]).square() - later.square()).abs()
    return told(masked_mean(error, mask & inside), reduction)


def _prepared(pred, target, mask) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clips in double precision, and which pixels of each pair's earlier frame count."""
    pred, target = check_pair(pred, target, value_range=1.0)
    if pred.ndim != 4 or len(pred) < 2:
        raise I2IError(
            "clip",
            expected="two frames or more, (N, C, H, W)",
            got=tuple(pred.shape),
            remedy="Stack the frames in order along the first axis.",
        )
    mask = torch.ones_like(pred, dtype=torch.bool) if mask is None else mask_like(mask, pred)
    return pred.double(), target.double(), mask[:-1]


def _checked_flow(flow: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
    expected = (len(clip) - 1, 2, *clip.shape[-2:])
    if flow.shape != expected:
        raise I2IError("flow", expected=f"(N - 1, 2, H, W) = {expected}", got=tuple(flow.shape))
    if not flow.is_floating_point():
        raise I2IError("flow", expected="floating point", got=flow.dtype)
    if not flow.isfinite().all():
        remedy = "Set those pixels to 0 and leave them out by mask."
        raise I2IError("flow", expected="finite numbers", got="NaN or infinity", remedy=remedy)
    return flow


def _checked_frames(frames: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
    frames = check_image("frames", frames, 1.0)
    if frames.ndim != 4 or (len(frames), *frames.shape[-2:]) != (len(clip), *clip.shape[-2:]):
        size = f"the number and size of the mattes, {tuple(clip.shape)}"
        raise I2IError("frames", expected=size, got=tuple(frames.shape))
    return frames


def _along(error: torch.Tensor, flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The later frames' error where each pixel has gone, and whether that is inside the frame."""
    height, width = error.shape[-2:]
    y, x = torch.meshgrid(*(torch.arange(side).to(flow) for side in (height, width)), indexing="ij")
    # a pixel reaches half a step to each side; grid_sample counts the frame as from -1 to 1, edge to edge
    place = (torch.stack([x, y]) + flow + 0.5).movedim(1, -1) / torch.stack([x, y]).new_tensor([width, height])
    inside = ((place >= 0) & (place <= 1)).all(-1)[:, None].expand(error.shape)
    return functional.grid_sample(error, 2 * place - 1, padding_mode="border", align_corners=False), inside


def _estimated(clip: torch.Tensor) -> torch.Tensor:
    """Motion from each frame of (N, C, H, W) to the next: (N - 1, 2, H, W), right and down."""
    if min(clip.shape[-2:]) < 2:
        raise I2IError("flow", expected="one that is given, for frames of one row or column", got=None)
    optical_flow = require("skimage.registration").optical_flow_tvl1
    images = clip.detach().double().mean(1).cpu().numpy()
    found = [optical_flow(*pair)[::-1] for pair in itertools.pairwise(images)]  # rows come first there
    return torch.from_numpy(np.stack(found))


register_with_band(
    Metric(
        name="dtssd",
        label="dtSSD",
        variant="root of the mean over the whole frame, each pair of consecutive frames",
        higher_is_better=False,
        score_range=(0, 2),
        source=EROFEEV,
        function=dtssd,
        takes="clip",
        of="matte",
    )
)
register(
    Metric(
        name="messddt",
        label="MESSDdt",
        variant="mean over the whole frame, TV-L1 motion of the true mattes, each pair of consecutive frames",
        higher_is_better=False,
        score_range=(0, 1),
        source=EROFEEV,
        function=messddt,
        takes="clip",
        of="matte",
    )
)
