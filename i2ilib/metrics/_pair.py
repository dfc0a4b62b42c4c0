"""What the metrics ask of their images, and how they tell their result."""

from __future__ import annotations

import torch

from ..errors import I2IError


class NoScore(I2IError):
    """An image that a metric has no score of, though nothing is wrong with the call."""


SLACK = 1e-6  # of the range: float rounding may step over the edge


def check_pair(pred: torch.Tensor, target: torch.Tensor, *, value_range: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Both images as floating point, after checking shape, finiteness and range.

    Args:
        pred: Any shape; floating point or bool.
        target: The same shape; floating point or bool.
        value_range: Largest value allowed; the smallest is 0.

    Raises:
        I2IError: If the shapes or devices differ, or an image is not as :func:`check_image` asks.
    """
    for name, image in (("pred", pred), ("target", target)):
        if not isinstance(image, torch.Tensor):
            raise I2IError(name, expected="a tensor", got=type(image).__name__, remedy="Use torch.from_numpy.")
    if pred.shape != target.shape:
        raise I2IError(
            "pred and target",
            expected="one shape",
            got=f"{tuple(pred.shape)} and {tuple(target.shape)}",
            remedy="Crop or scale one of them first.",
        )
    if pred.device != target.device:
        raise I2IError("pred and target", expected="one device", got=f"{pred.device} and {target.device}")
    return check_image("pred", pred, value_range), check_image("target", target, value_range)


def check_image(name: str, image: torch.Tensor, value_range: float) -> torch.Tensor:
    """An image as floating point, after checking it.

    Raises:
        I2IError: If it is empty, is neither floating point nor bool, holds NaN or infinity, or leaves
            [0, ``value_range``].
    """
    if not value_range > 0:
        raise I2IError("value_range", expected="above 0", got=value_range, remedy="Use 1.0 or 255.")
    if image.ndim > 4:
        raise I2IError(name, expected="four axes at most, (N, C, H, W)", got=tuple(image.shape))
    if image.numel() == 0:
        raise I2IError(name, expected="at least one pixel", got=tuple(image.shape))
    if not (image.is_floating_point() or image.dtype == torch.bool):
        raise I2IError(name, expected="floating point or bool", got=image.dtype, remedy="Divide 8-bit values by 255.")
    low, high = (float(value) for value in torch.aminmax(image.detach().to(torch.float32)))
    # written so that NaN fails
    if not (low >= -SLACK * value_range and high <= value_range * (1 + SLACK)):
        raise I2IError(
            name,
            expected=f"values from 0 to {value_range:g}",
            got=f"{low:g} to {high:g}",
            remedy="State value_range, or clamp what the network overshot.",
        )
    return image.float() if image.dtype == torch.bool else image


def as_batch(image: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W): with fewer axes it is one image, (C, H, W) or (H, W)."""
    if not 2 <= image.ndim <= 4:
        raise I2IError("image", expected="(N, C, H, W), (C, H, W) or (H, W)", got=tuple(image.shape))
    return image if image.ndim == 4 else image.reshape(1, -1, *image.shape[-2:])


def flat(image: torch.Tensor) -> torch.Tensor:
    """(N, values): four axes are a batch, fewer are one image."""
    return image.reshape(image.shape[0] if image.ndim == 4 else 1, -1)


def masked_sum(error: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Sum over each image, (N,): of the pixels in the mask, or of all."""
    return flat(error if mask is None else error * mask_like(mask, error)).sum(1)


def masked_mean(error: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over each image, (N,): of the pixels in the mask, or of all; 0 where the mask has none."""
    if mask is None:
        return flat(error).mean(1)
    return masked_sum(error, mask) / flat(mask_like(mask, error)).sum(1).clamp_min(1)


def mask_like(mask: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The mask in the shape of the image.

    Raises:
        I2IError: If it is not bool, or has another size.
    """
    if mask.dtype != torch.bool:
        raise I2IError("mask", expected="bool", got=mask.dtype, remedy="Compare the trimap: trimap == 128.")
    try:
        return mask.expand(image.shape)
    except RuntimeError:
        size = f"the size of the images, {tuple(image.shape)}"
        raise I2IError("mask", expected=size, got=tuple(mask.shape)) from None


def as_rgb(batch: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W); grey is repeated.

    Raises:
        I2IError: If there are other than one or three channels.
    """
    if batch.shape[1] not in (1, 3):
        raise I2IError("images", expected="one or three channels", got=batch.shape[1], remedy="Drop the alpha channel.")
    return batch.expand(-1, 3, -1, -1)


def told(scores: torch.Tensor, reduction: str) -> float | torch.Tensor:
    """The scores of a batch, (N,), as a metric returns them.

    "mean" gives their mean: a float, or, where an input requires a gradient, a tensor of one number that carries it.
    "none" gives them as they are.

    Raises:
        I2IError: If ``reduction`` is neither.
    """
    if reduction == "none":
        return scores
    if reduction != "mean":
        raise I2IError("reduction", expected="mean or none", got=repr(reduction))
    mean = scores.mean()
    return mean if mean.requires_grad else mean.item()
