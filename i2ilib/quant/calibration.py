"""Calibration data in the forms in which PyTorch programs hold them, as batches (N, C, H, W) float32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import I2IError

Batches = Iterable | torch.Tensor | np.ndarray | Dataset  # what the functions that calibrate take; see `read`
_WANTED = "a batch (N, C, H, W) of floating point"


def read(data: Batches, what: str = "calibration_batches") -> Iterator[torch.Tensor]:
    """The batches of calibration data, checked one by one as they come; none is kept.

    Args:
        data: One batch, or an iterable of batches, read once: a list, a generator, a ``DataLoader``, a ``Dataset``. A
            batch is a tensor or an array (N, C, H, W) of floating point, without N a batch of one; or a tuple or list,
            of which the first counts, as in (image, label); or a dict with one such value. All have one (C, H, W).
        what: The argument's name, for errors.

    Yields:
        (N, C, H, W) float32, on the CPU.

    Raises:
        I2IError: If there is no batch, or one has another form, type or size, or a value that is not finite.

    Example:
        >>> [tuple(batch.shape) for batch in read([(torch.zeros(2, 3, 8, 8), torch.zeros(2)), np.zeros((3, 8, 8))])]
        [(2, 3, 8, 8), (1, 3, 8, 8)]
    """
    if isinstance(data, torch.Tensor | np.ndarray | Mapping):
        data = [data]
    elif isinstance(data, Dataset) and isinstance(data, Sized) and not isinstance(data, Iterable):
        data = map(data.__getitem__, range(len(data)))
    elif isinstance(data, str | bytes) or not isinstance(data, Iterable):
        remedy = "Pass a tensor, a list of tensors or a DataLoader."
        raise I2IError(what, expected="batches (N, C, H, W)", got=type(data).__name__, remedy=remedy)
    shape = None
    for index, entry in enumerate(data):
        batch = one(entry, f"{what}, batch {index}")
        if not torch.isfinite(batch).all():
            where, remedy = f"{what}, batch {index}", "Leave such frames out."
            raise I2IError(where, expected="finite values", got="NaN or infinity", remedy=remedy)
        shape = shape or batch.shape[1:]
        if batch.shape[1:] != shape:
            got = f"{tuple(shape)} and, in batch {index}, {tuple(batch.shape[1:])}"
            raise I2IError(what, expected="one shape (C, H, W)", got=got, remedy="Crop or resize to one size.")
        yield batch
    if shape is None:
        raise I2IError(what, expected="at least one batch", got="none")


def one(example: object, what: str = "example") -> torch.Tensor:
    """A single batch, as :func:`read` takes it, whose values do not matter."""
    value = _image(example, what)
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(value.astype(np.float32))
    shape = value.shape if isinstance(value, torch.Tensor | np.ndarray) else None
    if shape is None or len(shape) not in (3, 4) or 0 in shape:
        got = type(value).__name__ if shape is None else f"shape {tuple(shape)}"
        raise I2IError(what, expected=_WANTED, got=got, remedy="Pass the images alone, for example as tensors.")
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        remedy = "Convert as for the network's own input, for example batch.float() / 255."
        raise I2IError(what, expected=f"{_WANTED}, as the network sees it", got=value.dtype, remedy=remedy)
    if value.is_meta or value.layout != torch.strided:
        raise I2IError(what, expected="a dense tensor with values", got=f"{value.layout} on {value.device}")
    value = value.detach().to("cpu", torch.float32)
    return value if value.ndim == 4 else value[None]


def _image(entry: object, what: str) -> object:
    """The network's input in what a data loader gives."""
    if isinstance(entry, tuple | list) and entry:
        return entry[0]
    if not isinstance(entry, Mapping):
        return entry
    axes = {key: getattr(value, "ndim", 0) for key, value in entry.items()}
    images = [key for key, n in axes.items() if n == max(3, *axes.values()) and n <= 4]
    if len(images) != 1:
        remedy = "Choose one: (batch['image'] for batch in loader)."
        got = f"{len(images)} in a dict of {', '.join(map(str, entry)) or 'nothing'}"
        raise I2IError(what, expected="one value (N, C, H, W)", got=got, remedy=remedy)
    return entry[images[0]]
