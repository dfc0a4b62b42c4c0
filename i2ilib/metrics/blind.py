"""Quality of a picture without a reference: BRISQUE, by its authors' own support-vector model."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage, special

from ..errors import I2IError, IntegrityError
from ..runtime import fetched, file_state
from ._pair import NoScore, as_batch, check_image, told
from .catalogue import Metric, register

_GAUSSIAN = np.exp(-(np.square(np.mgrid[-3:4, -3:4]).sum(0)) / (2 * (7 / 6) ** 2))  # σ 7/6, as MATLAB forms it
_GAUSSIAN /= _GAUSSIAN.sum()
_HALVING = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256  # MATLAB's imresize by 0.5: bicubic, antialiased
_SMALLEST = 14  # the window must fit into the half-size image
_FEATURES = 36
_GREY = (0.298936, 0.587043, 0.114021)  # ITU-R BT.601, full range
_SHIFTS = ((0, 1), (1, 0), (1, 1), (-1, 1))  # towards the neighbours: rows, columns
_SHAPES = np.arange(200, 10001) / 1000  # exponents of the distributions, among which the best is taken
_RATIOS = special.gamma(2 / _SHAPES) ** 2 / (special.gamma(1 / _SHAPES) * special.gamma(3 / _SHAPES))  # E[|x|]² / E[x²]


def brisque(
    image: torch.Tensor, *, value_range: float, model: str | os.PathLike | None = None, reduction: str = "mean"
) -> float | torch.Tensor:
    """Blind image spatial quality: statistics of the picture against a model of what people said of others.

    Lower is better, nominally 0 to 100, but scores outside occur. No gradient: shapes are looked up in a table. The
    picture becomes grey by BT.601 and is rounded to 8 bits, as the authors' code reads it. The model was fitted to
    photographs with five kinds of distortion and knows no others; scores of mattes or drawings mean nothing.

    Implementations agree closely but where many pixels lie in areas of one value, as in strong JPEG: the fit counts
    signs, there those of rounding errors, and the order of a sum decides. The package brisque holds another model.

    Args:
        image: (N, C, H, W), (C, H, W) or (H, W), RGB or grey, values in [0, ``value_range``], sides of 14 or more.
        value_range: Largest possible value, 1.0 or 255.
        model: Folder with ``allmodel`` and ``allrange`` in libsvm's text form; by default the files as fetched.
        reduction: "mean" over the images, or "none".

    Returns:
        The score.

    Raises:
        I2IError: If the image leaves the range, is too small, has other than one or three channels, or is so even that
            its statistics are undefined, or the folder lacks a file.
        UnavailableError: If the model is not here.
        IntegrityError: If a file of it has another checksum, or holds something else.

    Source:
        Mittal, Moorthy and Bovik, No-Reference Image Quality Assessment in the Spatial Domain, 2012,
        doi:10.1109/TIP.2012.2214050; BRISQUE Software Release, 2011, live.ece.utexas.edu, (c) The University of Texas
        at Austin.

    Example:
        >>> brisque(torch.rand(3, 64, 64), value_range=1.0)  # doctest: +SKIP
        88.6
    """
    images = as_batch(check_image("image", image, value_range)).detach().cpu().double().numpy() * (255 / value_range)
    if min(images.shape[-2:]) < _SMALLEST:
        got = "×".join(map(str, images.shape[-2:]))
        raise I2IError("image", expected=f"sides of {_SMALLEST} pixels or more", got=got)
    if images.shape[1] not in (1, 3):
        raise I2IError("image", expected="one or three channels", got=images.shape[1], remedy="Drop the alpha channel.")
    greys = np.round(images[:, 0] if images.shape[1] == 1 else np.einsum("nchw,c->nhw", images, _GREY))
    svm = _model(*(file_state(path) for path in _files(model)))
    scores = [svm(_features(grey)) for grey in greys]
    return told(torch.tensor(scores, dtype=torch.float64, device=image.device), reduction)


class _Model(NamedTuple):
    """A regression by support vectors, with the range that each feature had when it was fitted."""

    gamma: float
    rho: float
    weights: np.ndarray  # (vectors,)
    vectors: np.ndarray  # (vectors, features)
    low: np.ndarray  # (features,), becomes -1
    high: np.ndarray  # (features,), becomes 1

    def __call__(self, features: np.ndarray) -> float:
        scaled = 2 * (features - self.low) / (self.high - self.low) - 1
        return float(np.exp(-self.gamma * np.square(self.vectors - scaled).sum(1)) @ self.weights - self.rho)


def _features(grey: np.ndarray) -> np.ndarray:
    """36 numbers: at full and at half size the shape and variance of the normalised picture, and four numbers of the
    products of each pixel with its neighbour in four directions."""
    if np.ptp(grey) == 0:
        raise NoScore("image", expected="a photograph", got="one value everywhere", remedy="Leave it out.")
    found = []
    for size in ("full", "half"):
        if size == "half":
            halved = ndimage.correlate1d(grey, _HALVING, 0, mode="reflect", origin=-1)[::2]
            grey = ndimage.correlate1d(halved, _HALVING, 1, mode="reflect", origin=-1)[:, ::2]
        mean, square = (ndimage.correlate(part, _GAUSSIAN, mode="constant") for part in (grey, grey * grey))
        normalised = (grey - mean) / (np.sqrt(np.abs(square - mean * mean)) + 1)
        found += _symmetric_shape(normalised)
        for shift in _SHIFTS:
            found += _asymmetric_shape(normalised * np.roll(normalised, shift, (0, 1)))
    return np.array(found)


def _symmetric_shape(x: np.ndarray) -> list[float]:
    """Shape and variance of the generalised Gaussian with the same first absolute and second moments."""
    square = np.square(x).mean()
    ratio = square / np.square(np.abs(x).mean())
    return [_SHAPES[np.abs(1 / _RATIOS - ratio).argmin()], square]


def _asymmetric_shape(x: np.ndarray) -> list[float]:
    """Shape, mean, left and right variance of the asymmetric generalised Gaussian fitted by moments."""
    below, above = x[x < 0], x[x > 0]
    if not (below.size and above.size):
        raise NoScore("image", expected="a photograph", got="an even or regular pattern", remedy="Leave it out.")
    left, right = np.square(below).mean(), np.square(above).mean()
    skew = np.sqrt(left / right)
    ratio = np.square(np.abs(x).mean()) / np.square(x).mean() * (skew**3 + 1) * (skew + 1) / np.square(skew**2 + 1)
    shape = _SHAPES[np.square(_RATIOS - ratio).argmin()]
    one, two, three = special.gamma(np.array([1, 2, 3]) / shape)
    return [shape, (np.sqrt(right) - np.sqrt(left)) * two / np.sqrt(one * three), left, right]


def _files(folder: str | os.PathLike | None) -> list[Path]:
    names = ("allmodel", "allrange")
    if folder is None:
        return [fetched("brisque_" + name) for name in names]
    paths = [Path(folder, name) for name in names]
    for path in paths:
        if not path.is_file():
            raise I2IError("model", expected="a folder with allmodel and allrange", got=f"none at {path}")
    return paths


@functools.lru_cache(maxsize=4)
def _model(model: tuple[str, int, int], ranges: tuple[str, int, int]) -> _Model:
    """Both files, as libsvm writes them: a regression with the RBF kernel, and features scaled to [-1, 1]."""
    return _Model(*_parsed(model[0], _svm), *_parsed(ranges[0], _ranges))


def _parsed(path: str, parse: Callable[[str], tuple]) -> tuple:
    try:
        return parse(Path(path).read_text(encoding="ascii"))
    except (ValueError, KeyError, IndexError) as error:
        raise IntegrityError(path, expected="BRISQUE's model in libsvm's text form", got=repr(error)) from None


def _svm(text: str) -> tuple[float, float, np.ndarray, np.ndarray]:
    head, _, body = text.partition("\nSV\n")
    about = dict(line.split(maxsplit=1) for line in head.splitlines())
    if (kind := (about["svm_type"], about["kernel_type"])) != ("epsilon_svr", "rbf"):
        raise ValueError(" ".join(kind))
    rows = [line.split() for line in body.splitlines()]
    if len(rows) != int(about["total_sv"]):
        raise ValueError(f"{len(rows)} support vectors of {about['total_sv']}")
    vectors = np.zeros((len(rows), _FEATURES))  # what is 0 may be left out
    for vector, row in zip(vectors, rows, strict=True):
        for entry in row[1:]:
            index, value = entry.split(":")
            vector[int(index) - 1] = float(value)
    return float(about["gamma"]), float(about["rho"]), np.array([float(row[0]) for row in rows]), vectors


def _ranges(text: str) -> tuple[np.ndarray, np.ndarray]:
    scaling, *rows = [line.split() for line in text.splitlines()][1:]
    if scaling != ["-1", "1"] or [row[0] for row in rows] != [str(i + 1) for i in range(_FEATURES)]:
        raise ValueError(f"scaling to {scaling}, {len(rows)} features")
    low, high = np.array([row[1:] for row in rows], dtype=np.float64).T
    return low, high


register(
    Metric(
        name="brisque",
        label="BRISQUE",
        variant="LIVE's release of 2011, RGB to rounded BT.601 grey; nominally 0 to 100, may leave it",
        higher_is_better=False,
        score_range=(0, 100),
        source="Mittal et al. 2012, doi:10.1109/TIP.2012.2214050",
        function=brisque,
        takes="picture",
        settings={"value_range": 1.0},
        needs=("brisque_allmodel", "brisque_allrange"),
        smallest=_SMALLEST,
    )
)
