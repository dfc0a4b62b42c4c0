"""What every full-reference metric asks of its two images."""

from __future__ import annotations

import torch

from ..errors import I2IError

SLACK = 1e-6  # of the range: float rounding may step over the edge


def check_pair(pred: torch.Tensor, target: torch.Tensor, *, value_range: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Both images as floating point, after checking shape, finiteness and range.

    Args:
        pred: Any shape; floating point or bool.
        target: The same shape; floating point or bool.
        value_range: Largest value allowed; the smallest is 0.

    Raises:
        I2IError: If the shapes differ, the images are empty, hold NaN or infinity, or leave [0, value_range].
    """
    if pred.shape != target.shape:
        raise I2IError(
            "pred and target",
            expected="one shape",
            got=f"{tuple(pred.shape)} and {tuple(target.shape)}",
            remedy="Crop or scale one of them first.",
        )
    if not value_range > 0:
        raise I2IError("value_range", expected="above 0", got=value_range, remedy="Use 1.0 or 255.")
    for name, image in (("pred", pred), ("target", target)):
        if image.numel() == 0:
            raise I2IError(name, expected="at least one pixel", got=tuple(image.shape))
        if not (image.is_floating_point() or image.dtype == torch.bool):
            raise I2IError(
                name, expected="floating point or bool", got=image.dtype, remedy="Divide 8-bit values by 255."
            )
        low, high = (float(value) for value in torch.aminmax(image.detach().to(torch.float32)))
        # written so that NaN fails
        if not (low >= -SLACK * value_range and high <= value_range * (1 + SLACK)):
            raise I2IError(
                name,
                expected=f"values from 0 to {value_range:g}",
                got=f"{low:g} to {high:g}",
                remedy="State value_range, or clamp what the network overshot.",
            )
    return tuple(image.float() if image.dtype == torch.bool else image for image in (pred, target))
