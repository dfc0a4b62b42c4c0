"""Metrics of alpha mattes: intersection over union and mean squared error."""

from __future__ import annotations

import torch

from ..errors import I2IError
from ._pair import check_pair


def iou(pred: torch.Tensor, target: torch.Tensor, threshold: float = 0.5, *, absent: float = 1.0) -> float:
    """Intersection over union of the pixels whose alpha is above ``threshold``, averaged over the images of a batch.

    Higher is better, 1 is best. "Above" is strict: alpha equal to the threshold is background.

    Args:
        pred: Coverage in [0, 1]: (N, C, H, W), one IoU for each of the N images; with fewer axes it is one image.
        target: The same shape and range.
        threshold: Alpha that separates background from foreground, 0 to 1 (1 excluded).
        absent: Score of an image in which neither matte has foreground. 1 says that agreeing on nothing is right;
            others use 0 or NaN.

    Returns:
        Mean IoU, [0, 1].

    Raises:
        I2IError: If the shapes differ, the mattes are empty or leave [0, 1], or the threshold is out of range.

    Example:
        >>> iou(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
        0.5
    """
    if not 0 <= threshold < 1:
        raise I2IError("threshold", expected="from 0 to below 1", got=threshold)
    pred, target = check_pair(pred, target, value_range=1.0)
    images = pred.shape[0] if pred.ndim == 4 else 1
    a, b = ((matte > threshold).reshape(images, -1) for matte in (pred, target))
    both, either = (a & b).sum(1).double(), (a | b).sum(1).double()
    return torch.where(either > 0, both / either.clamp_min(1), absent).mean().item()


def mse(pred: torch.Tensor, target: torch.Tensor, *, value_range: float = 1.0, scale: float = 1.0) -> float:
    """Mean squared error over all pixels, channels and images, on a [0, ``scale``] range.

    Lower is better, 0 is best. The matting paper's Table 1 lists errors from 1.64 to 3.35 without saying on which
    scale. On [0, 1] an error above 1 is impossible, so the table is read here with ``scale=255``, the 8-bit scale on
    which mattes are stored; 1.64 is then a root-mean-square error of 1.3 grey levels. It is a reading, not a fact.

    Args:
        pred: Any shape, values in [0, ``value_range``].
        target: The same shape and range.
        value_range: Largest value that the inputs may take.
        scale: Largest value of the range on which the error is told, squared units; 255 for 8-bit levels.

    Returns:
        Mean squared error, [0, ``scale`` squared].

    Raises:
        I2IError: If the shapes differ, the images are empty, hold NaN or leave [0, ``value_range``], or ``scale`` is
            not above 0.

    Example:
        >>> mse(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.5])), mse(torch.ones(1), torch.zeros(1), scale=255)
        (0.125, 65025.0)
    """
    if not scale > 0:
        raise I2IError("scale", expected="above 0", got=scale, remedy="Use 1.0 or 255.")
    pred, target = check_pair(pred, target, value_range=value_range)
    return (pred.double() - target.double()).square().mean().item() * (scale / value_range) ** 2
