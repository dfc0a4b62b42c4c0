"""Colour against scikit-image, OpenImageIO, published sRGB values and AMD's rounding goldens."""

import numpy as np
import pytest
import torch
from conftest import shared
from skimage import color

from i2ilib import I2IError, colour

RAMP = torch.linspace(0, 1, 4099, dtype=torch.float64)


def test_encode_agrees_with_scikit_image():
    white = color.rgb2xyz(np.ones((1, 1, 3)))[0, 0]  # a grey in XYZ is its linear value times white
    expected = color.xyz2rgb(RAMP.numpy()[None, :, None] * white)[0].mean(1)
    np.testing.assert_allclose(colour.linear_to_srgb(RAMP).numpy(), expected, atol=2e-6)


def test_decode_agrees_with_scikit_image():
    white = color.rgb2xyz(np.ones((1, 1, 3)))[0, 0]
    expected = color.rgb2xyz(np.repeat(RAMP.numpy()[None, :, None], 3, 2))[0] / white
    np.testing.assert_allclose(colour.srgb_to_linear(RAMP).numpy(), expected[:, 1], atol=1e-12)


def test_encode_agrees_with_openimageio():
    oiio = pytest.importorskip("OpenImageIO")
    frame = RAMP.float().numpy().reshape(1, -1, 1).repeat(3, 2)
    expected = oiio.ImageBufAlgo.colorconvert(oiio.ImageBuf(frame), "lin_srgb", "srgb").get_pixels()
    np.testing.assert_allclose(colour.linear_to_srgb(torch.from_numpy(frame)).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("code", "linear"), [(0, 0.0), (1, 0.000304), (10, 0.003035), (11, 0.003347), (128, 0.215861), (255, 1.0)]
)
def test_published_table(code, linear):  # the usual sRGB look-up table, six places
    assert colour.srgb_to_linear(torch.tensor(code / 255)).item() == pytest.approx(linear, abs=6e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 6e-7), (torch.float64, 5e-8), (torch.float16, 2e-3)])
def test_round_trip(dtype, tolerance):
    ramp = RAMP.to(dtype)
    back = colour.srgb_to_linear(colour.linear_to_srgb(ramp))
    assert back.dtype == dtype
    assert (back - ramp).abs().max() < tolerance


def test_float32_is_as_exact_as_float64_rounded():
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    for curve in (colour.linear_to_srgb, colour.srgb_to_linear):
        assert (curve(x).double() - curve(x.double())).abs().max() < 3e-7


def test_threshold_belongs_to_the_line():
    at, above = torch.tensor([0.0031308, 0.0031309], dtype=torch.float64)
    assert colour.linear_to_srgb(at) == at * 12.92
    assert colour.linear_to_srgb(above) == pytest.approx(1.055 * above.item() ** (1 / 2.4) - 0.055, abs=1e-12)


def test_printed_threshold_leaves_a_step():
    eps = 1e-9
    sides = torch.tensor([colour.PAPER_THRESHOLD - eps, colour.PAPER_THRESHOLD + eps], dtype=torch.float64)
    low, high = colour.srgb_to_linear(sides, threshold=colour.PAPER_THRESHOLD)
    assert high / low == pytest.approx(((0.059045 / 1.055) ** 2.4) / (0.004045 / 12.92), rel=1e-5)
    assert high > 3 * low
    low, high = colour.srgb_to_linear(sides * 10)  # at 0.04045 the standard's two halves meet
    assert high == pytest.approx(low.item(), rel=1e-5)


@pytest.mark.parametrize("curve", [colour.linear_to_srgb, colour.srgb_to_linear])
def test_outside_and_not_a_number(curve):
    y = curve(torch.tensor([-0.5, 2.0, float("nan"), float("inf"), -float("inf")]))
    slope = 12.92 if curve is colour.linear_to_srgb else 1 / 12.92
    assert y[0] == pytest.approx(-0.5 * slope)
    expected = 1.055 * 2 ** (1 / 2.4) - 0.055 if curve is colour.linear_to_srgb else (2.055 / 1.055) ** 2.4
    assert y[1] == pytest.approx(expected, rel=1e-6)
    assert y[2].isnan() and y[3] == float("inf") and y[4] == -float("inf")


@pytest.mark.parametrize("curve", [colour.linear_to_srgb, colour.srgb_to_linear])
def test_gradients_are_right_and_finite_at_zero(curve):
    x = torch.tensor([-0.1, 0.0, 0.002, 0.01, 0.3, 1.0, 1.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(curve, x, eps=1e-7)
    (slope,) = torch.autograd.grad(curve(x).sum(), x)
    assert slope[1] == pytest.approx(12.92 if curve is colour.linear_to_srgb else 1 / 12.92)


def test_layout_and_chunks_do_not_matter():
    frame = torch.rand(3, 260, 300, generator=torch.Generator().manual_seed(1))  # more than one chunk
    expected = torch.stack([colour.linear_to_srgb(row) for row in frame.reshape(-1, 300)]).view_as(frame)
    hwc = frame.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for x in (frame, hwc, frame[None].to(memory_format=torch.channels_last)[0]):
        assert torch.equal(colour.linear_to_srgb(x), expected)
    assert torch.equal(colour.linear_to_srgb(frame[:, ::2, ::3]), expected[:, ::2, ::3])  # a view with gaps
    assert torch.equal(colour.linear_to_srgb(hwc, out=torch.empty_like(frame)), expected)  # strides differ
    assert (
        colour.linear_to_srgb(torch.tensor(1.0)).shape == () and colour.linear_to_srgb(torch.empty(0, 3)).numel() == 0
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_threads_do_not_matter(mode):
    frame = torch.rand(3, 400, 500, generator=torch.Generator().manual_seed(2))
    expected = torch.stack([colour.srgb_to_linear(row) for row in frame.reshape(-1, 500)]).view_as(frame)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with mode():
                weights = frame.clone().requires_grad_(mode is torch.no_grad)
                assert torch.equal(colour.srgb_to_linear(weights), expected)
                buffer = frame.clone()
                assert torch.equal(colour.srgb_to_linear(buffer, out=buffer), expected)
    finally:
        torch.set_num_threads(before)


def test_out_may_be_the_input():
    x = torch.rand(3, 50, 50)
    for function in (
        colour.linear_to_srgb,
        colour.srgb_to_linear,
        lambda t, out=None: colour.to_fixed(t, 32, out=out),
        lambda t, out=None: colour.from_fixed(t, 32, out=out),
    ):
        expected, buffer = function(x), x.clone()
        assert function(buffer, out=buffer) is buffer
        assert torch.equal(buffer, expected)


@pytest.mark.parametrize("q", colour.Q_VALUES)
def test_fixed_point_ends_and_round_trip(q):
    assert colour.to_fixed(torch.tensor([0.0, 0.5, 1.0]), q).tolist() == [-q, 0, q]
    levels = torch.arange(257) / 256  # exact in binary, so the way back is exact too
    assert torch.equal(colour.from_fixed(colour.to_fixed(levels, q), q), levels)


def test_int8_agrees_with_the_quantiser():
    golden = np.load(shared("golden/nndct/rounding.npz"))
    x = torch.from_numpy(golden["fq_x"])
    for position, expected in zip(golden["fq_fp"], golden["fq_int_m2"], strict=True):
        np.testing.assert_array_equal(colour.to_int8(x, fix_position=int(position)).numpy(), expected)
    codes = colour.to_int8(torch.from_numpy(golden["x"])).numpy()
    np.testing.assert_array_equal(codes, golden["round_m2"].clip(-128, 127))


def test_int8_saturates_and_inverts():
    extreme = torch.tensor([1e9, -1e9, float("inf"), -float("inf"), float("nan"), 0.49999997])
    assert colour.to_int8(extreme).tolist() == [127, -128, 127, -128, 0, 0]
    codes = torch.arange(-128, 128).to(torch.int8)
    for position in (-2, 0, 7):
        assert torch.equal(colour.to_int8(colour.from_int8(codes, fix_position=position), fix_position=position), codes)
    assert colour.from_int8(codes, fix_position=7, dtype=torch.float64).tolist()[0] == -1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: colour.linear_to_srgb(torch.zeros(3, dtype=torch.uint8)), "linear: expected a floating-point"),
        (lambda: colour.srgb_to_linear(torch.zeros(3, dtype=torch.int32)), "srgb: expected a floating-point"),
        (lambda: colour.srgb_to_linear(torch.zeros(3), threshold=4.045), "threshold"),
        (lambda: colour.to_fixed(torch.zeros(3), 3), "power of two from 1 to 128, got 3"),
        (lambda: colour.to_fixed(torch.zeros(3, dtype=torch.uint8), 4), "floating-point"),
        (lambda: colour.from_fixed(torch.zeros(3), 256), "got 256"),
        (lambda: colour.from_fixed(torch.zeros(3, dtype=torch.int8), 4), "mapped: expected a floating-point"),
        (lambda: colour.to_int8(torch.zeros(3, dtype=torch.int64)), "mapped"),
        (lambda: colour.from_int8(torch.zeros(3)), "dtype int8"),
        (lambda: colour.linear_to_srgb(torch.zeros(3), out=torch.zeros(4)), "out: expected shape"),
        (lambda: colour.to_fixed(torch.zeros(3), 4, out=torch.zeros(3, dtype=torch.float64)), "out: expected shape"),
        (lambda: colour.linear_to_srgb(torch.zeros(3, requires_grad=True), out=torch.zeros(3)), "needs gradients"),
    ],
)
def test_errors(call, message):
    with pytest.raises(I2IError, match=message):
        call()
