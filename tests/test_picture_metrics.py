"""PSNR, SSIM and MS-SSIM against published values, scikit-image and piq."""

import csv

import numpy as np
import pytest
import torch
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from i2ilib import I2IError, metrics
from i2ilib.runtime import require

require("torchvision")  # piq imports it
piq = require("piq")
PAIRS = [("goldhill.gif", "goldhill_jpeg.gif"), ("I01.BMP", "i01_01_5.bmp"), ("ex_ref.png", "ex_p0.png")]
PAIRS += [("ex_ref.png", "ex_p1.png"), ("../matting/lemur_alpha.png", "../matting/lemur_alpha_fba.png")]


def picture(name):
    image = Image.open(shared(f"data/metrics/{name}"))
    pixels = np.asarray(image.convert("L" if "goldhill" in name or "lemur" in name else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy()).double() / 255


@pytest.mark.parametrize(("ref", "dist"), PAIRS)
def test_published_values(ref, dist):
    found = {
        "mse": lambda p, t: metrics.mse(p, t, scale=255 if "goldhill" in ref or "0" in dist or "p1" in dist else 1),
        "psnr": lambda p, t: metrics.psnr(p, t, value_range=1.0),
        "psnr_y": lambda p, t: metrics.psnr(p, t, value_range=1.0, channel="luma"),
        "ssim": lambda p, t: metrics.ssim(p, t, value_range=1.0),
        "ssim downsampled": lambda p, t: metrics.ssim(p, t, value_range=1.0, downsample=True),
        "ms_ssim": lambda p, t: metrics.ms_ssim(p, t, value_range=1.0),
        "iou": metrics.iou,
        "mae": metrics.mad,
        "sad": lambda p, t: 1000 * metrics.sad(p, t),
    }
    rows, checked = list(csv.DictReader(shared("data/metrics/metric_goldens.csv").open())), set()
    for row in rows:
        if (row["ref"], row["dist"]) != (ref, dist) or row["metric"] in ("lpips", "dists"):
            continue
        name = row["metric"] + (" downsampled" if "automatic downsampling" in row["variant"] else "")
        value = found[name](picture(dist), picture(ref))
        assert value == pytest.approx(float(row["value"]), abs=float(row["tolerance"])), row
        checked.add(name)
    assert {"psnr", "ssim", "mse"} <= checked


@settings(max_examples=25, deadline=None)
@given(
    st.integers(11, 70), st.integers(11, 40), st.sampled_from([1, 3]), st.floats(0, 1), st.sampled_from([1.0, 255.0]),
    st.integers(0, 2**31),
)  # fmt: skip
def test_as_scikit_image_has_them(height, width, channels, noise, value_range, seed):
    generator = torch.Generator().manual_seed(seed)
    target, other = torch.rand(2, channels, height, width, generator=generator, dtype=torch.float64) * value_range
    pred = (1 - noise) * target + noise * other
    a, b = pred.numpy(), target.numpy()
    expected = structural_similarity(
        a, b, data_range=value_range, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert metrics.ssim(pred, target, value_range=value_range) == pytest.approx(expected, abs=1e-9)
    if noise > 1e-6:
        expected = peak_signal_noise_ratio(b, a, data_range=value_range)
        assert metrics.psnr(pred, target, value_range=value_range) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [(161, 161), (176, 208), (255, 191)])
def test_as_piq_has_them(size):  # which extends both sides where one is odd: here both are, or neither
    generator = torch.Generator().manual_seed(0)
    target, other = torch.rand(2, 2, 3, *size, generator=generator, dtype=torch.float64)
    pred = (0.6 * target + 0.4 * other).requires_grad_()
    ours = metrics.ms_ssim(pred, target, value_range=1.0, reduction="none")
    assert torch.allclose(ours, piq.multi_scale_ssim(pred, target, reduction="none"), atol=1e-12)
    window = (Ellipsis, slice(40), slice(30))
    gradients = [
        torch.autograd.grad(of(pred[window], target[window]), pred)[0]
        for of in (
            lambda p, t: metrics.ssim(p, t, value_range=1.0),
            lambda p, t: piq.ssim(p, t, downsample=False),
        )
    ]
    assert torch.allclose(*gradients, atol=1e-12)


def test_float32_is_computed_in_double():
    target, other = torch.rand(2, 3, 200, 190, generator=torch.Generator().manual_seed(1))
    pred = 0.5 * (target + other)
    for metric in (metrics.ssim, metrics.ms_ssim, metrics.psnr):
        exact = metric(pred.double(), target.double(), value_range=1.0)
        assert metric(pred, target, value_range=1.0) == pytest.approx(exact, rel=1e-12)


def test_reductions():
    pred, target = torch.rand(2, 3, 1, 16, 16)
    each = metrics.ssim(pred, target, value_range=1.0, reduction="none")
    assert each.shape == (3,) and metrics.ssim(pred, target, value_range=1.0) == pytest.approx(each.mean().item())
    assert isinstance(metrics.psnr(pred, target, value_range=1.0), float)
    loss = metrics.psnr(pred.requires_grad_(), target, value_range=1.0)
    loss.backward()
    assert loss.shape == () and pred.grad.abs().max() > 0
    assert metrics.psnr(target, target, value_range=1.0) == float("inf")
    with pytest.raises(I2IError, match="reduction: expected mean or none, got 'sum'"):
        metrics.psnr(target, target, value_range=1.0, reduction="sum")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: metrics.ssim(x[..., :10], x[..., :10], value_range=1.0), "sides of 11 pixels or more, got 32×10"),
        (lambda x: metrics.ms_ssim(x, x, value_range=1.0), "sides of 161 pixels or more, got 32×32"),
        (lambda x: metrics.psnr(x, x[..., :9], value_range=1.0), "one shape"),
        (lambda x: metrics.psnr(x * 2, x, value_range=1.0), "pred: expected values from 0 to 1"),
        (lambda x: metrics.psnr(x, x, value_range=1.0, channel="red"), "channel: expected all or luma"),
        (lambda x: metrics.psnr(x, x, value_range=1.0, channel="luma"), "three channels for luma, got 1"),
        (lambda x: metrics.psnr(x[0, 0, 0], x[0, 0, 0], value_range=1.0), r"expected \(N, C, H, W\)"),
        (lambda x: metrics.psnr(x, x.to("meta"), value_range=1.0), "one device, got cpu and meta"),
    ],
)
def test_bad_images(call, message):
    with pytest.raises(I2IError, match=message):
        call(torch.full((1, 1, 32, 32), 0.75))
