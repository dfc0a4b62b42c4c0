"""IoU and MSE against the lemur mattes, scikit-image and plain numpy."""

import math

import numpy as np
import pytest
import torch
from conftest import shared
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage import io
from skimage.metrics import mean_squared_error

from i2ilib import I2IError, metrics


def lemur(name):
    return torch.from_numpy(io.imread(shared(f"data/matting/{name}.png"))).float()[None, None] / 255


def test_lemur_mattes():  # the values of the reference data's own table
    pred, target = lemur("lemur_alpha_fba"), lemur("lemur_alpha")
    assert metrics.iou(pred, target) == pytest.approx(0.99394, abs=5e-6)
    assert metrics.mse(pred, target) == pytest.approx(0.000636, abs=5e-7)
    expected = mean_squared_error(pred.numpy() * 255, target.numpy() * 255)
    assert metrics.mse(pred, target, scale=255) == pytest.approx(expected, rel=1e-5)
    assert metrics.mse(pred * 255, target * 255, value_range=255, scale=255) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.9])
def test_iou_is_the_mean_over_images(threshold):
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.rand(2, 3, 1, 17, 19, generator=generator)
    a, b = pred.numpy() > threshold, target.numpy() > threshold
    expected = np.mean([(x & y).sum() / (x | y).sum() for x, y in zip(a, b, strict=True)])
    assert metrics.iou(pred, target, threshold) == pytest.approx(expected, abs=1e-12)
    assert metrics.iou(target, pred, threshold) == metrics.iou(pred, target, threshold)
    assert metrics.iou(pred[0], target[0], threshold) == metrics.iou(pred[:1], target[:1], threshold)


def test_identity_and_direction():
    x = torch.rand(2, 1, 8, 8)
    assert metrics.iou(x, x) == 1 and metrics.mse(x, x) == 0
    assert metrics.iou(1 - x, x, 0.5) < 0.1
    assert metrics.mse((x * 0.9), x) < metrics.mse((x * 0.5), x)


def test_threshold_is_strict_and_absent_is_an_argument():
    half, empty = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, 1, 4, 4)
    assert metrics.iou(half, empty) == 1.0
    assert metrics.iou(half, empty, absent=0.0) == 0.0
    assert math.isnan(metrics.iou(half, empty, absent=float("nan")))
    full = torch.ones(1, 1, 4, 4)
    assert metrics.iou(torch.cat([full, empty]), torch.cat([full, full])) == 0.5
    assert metrics.iou(torch.cat([full, empty]), torch.cat([full, empty]), absent=0.0) == 0.5


def test_masks_are_welcome():
    mask = torch.tensor([[True, False], [True, True]])
    assert metrics.iou(mask, mask) == 1 and metrics.mse(mask, ~mask) == 1


@pytest.mark.parametrize("metric", [metrics.iou, metrics.mse])
@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5), r"one shape, got \(1, 1, 4, 4\) and \(1, 1, 4, 5\)"),
        (torch.zeros(0), torch.zeros(0), "at least one pixel"),
        (torch.zeros(2, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8), "floating point or bool"),
        (torch.tensor([0.0, float("nan")]), torch.zeros(2), "pred: expected values from 0 to 1"),
        (torch.zeros(2), torch.tensor([0.0, float("inf")]), "target: expected values from 0 to 1, got 0 to inf"),
        (torch.tensor([0.0, 1.01]), torch.zeros(2), "got 0 to 1.01"),
        (torch.tensor([-0.01, 1.0]), torch.zeros(2), "clamp"),
    ],
)
def test_bad_pairs(metric, pred, target, message):
    with pytest.raises(I2IError, match=message):
        metric(pred, target)


def test_bad_options():
    x = torch.zeros(2)
    for threshold in (-0.1, 1.0):
        with pytest.raises(I2IError, match="threshold"):
            metrics.iou(x, x, threshold)
    with pytest.raises(I2IError, match="scale: expected above 0"):
        metrics.mse(x, x, scale=0)
    with pytest.raises(I2IError, match="value_range: expected above 0"):
        metrics.mse(x, x, value_range=0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30), st.integers(0, 6))
def test_the_unknown_band_is_scipys_dilation(seed, height, width, radius):
    rng = np.random.default_rng(seed)
    alpha = rng.choice([0.0, 0.5, 1.0], (2, 1, height, width), p=[0.5, 0.05, 0.45])
    band = metrics.unknown_band(torch.from_numpy(alpha), radius).numpy()
    square = np.ones((2 * radius + 1,) * 2)
    for image, found in zip(alpha, band, strict=True):
        assert (found[0] == ndimage.binary_dilation(image[0] == 0.5, square)).all()


def test_a_band_of_less_than_nothing():
    with pytest.raises(I2IError, match="radius: expected a whole number, 0 or more, got -1"):
        metrics.unknown_band(torch.zeros(1, 1, 4, 4), -1)
