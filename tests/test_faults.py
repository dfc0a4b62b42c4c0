"""Faults against what their definitions say; strengths that hurt more and more; errors tuned to be equal."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from i2ilib import I2IError
from i2ilib.datasets import faults
from i2ilib.datasets.faults import FAULTS, tuned
from i2ilib.widgets import fixed_point_view


@pytest.fixture(scope="module")
def photo():
    return torch.from_numpy(data.astronaut()[:64, 160:256].copy()).permute(2, 0, 1).float() / 255


def mse(one, other):
    return (one.double() - other).square().mean().item()


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_keeps_shape_type_and_range_and_its_ladder_rises(photo, name):
    before, fault = photo.clone(), FAULTS[name]
    errors = []
    for strength in fault.strengths:
        found = fault(photo, strength)
        assert found.shape == photo.shape and found.dtype == photo.dtype
        assert found.min() >= 0 and found.max() <= 1
        errors.append(mse(found, photo))
    assert errors == sorted(errors) and len(set(errors)) == len(errors) and errors[0] > 0
    assert torch.equal(photo, before)
    assert fault.label and fault.unit and (not fault.whole or all(s == int(s) for s in fault.strengths))


@pytest.mark.parametrize("name", sorted(set(FAULTS) - {"noise", "x265"}))
def test_frames_of_a_batch_do_not_touch(photo, name):
    batch, strength = torch.stack([photo, photo.flip(-1)]), FAULTS[name].strengths[2]
    found = FAULTS[name](batch, strength)
    assert all(torch.equal(one, FAULTS[name](frame, strength)) for one, frame in zip(found, batch, strict=True))


SIDES = st.sampled_from([1, 2, 3, 5, 8, 13, 17])


@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("name", sorted(set(FAULTS) - {"x265"}))
@given(batch=st.sampled_from([(), (1,), (2,)]), height=SIDES, width=SIDES, seed=st.integers(0, 99))
def test_grey_fares_as_three_equal_channels_at_any_size(name, batch, height, width, seed):
    grey = torch.rand((*batch, 1, height, width), generator=torch.Generator().manual_seed(seed))
    colours = grey.expand(*batch, 3, height, width)
    found, coloured = (FAULTS[name](picture, FAULTS[name].strengths[-1]) for picture in (grey, colours))
    assert found.shape == grey.shape and coloured.shape == colours.shape
    assert all(picture.min() >= 0 and picture.max() <= 1 for picture in (found, coloured))
    if name != "noise":  # which is drawn for each channel
        torch.testing.assert_close(coloured, found.expand_as(colours), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*FAULTS, "resize"])
@pytest.mark.parametrize(
    "shape", [(64, 64), (2, 64, 64), (4, 64, 64), (0, 3, 64, 64), (3, 0, 64), (2, 2, 3, 64, 64), torch.uint8]
)
def test_what_is_no_picture_is_refused(name, shape):
    images = torch.zeros(3, 64, 64, dtype=shape) if isinstance(shape, torch.dtype) else torch.zeros(shape)
    with pytest.raises(I2IError, match=r"^(images|frames): expected floating point, \(C, H, W\) or .*got \("):
        faults.resize(images, (32, 32)) if name == "resize" else FAULTS[name](images, FAULTS[name].strengths[0])


@pytest.mark.parametrize(
    ("name", "strength", "words"),
    [
        ("banding", 2.7, "q: expected a power of two from 1 to 128, got 2.7"),
        ("jpeg", 50.7, "quality: expected a whole number from 1 to 100, got 50.7"),
        ("jpeg", 0, "quality: expected a whole number from 1 to 100, got 0"),
        ("jpeg", 101, "quality: expected a whole number from 1 to 100, got 101"),
        ("x265", 51.5, "crf: expected 0 to 51, got 51.5"),
        ("x265", float("nan"), "crf: expected 0 to 51, got nan"),
    ],
)
def test_strengths_that_the_codec_does_not_have(photo, name, strength, words):
    with pytest.raises(I2IError, match=words):
        FAULTS[name](photo, strength)


def test_whole_strengths_may_come_as_floats(photo):
    for name, strength in (("banding", 4), ("jpeg", 50), ("x265", 30)):
        assert torch.equal(FAULTS[name](photo, float(strength)), FAULTS[name](photo, strength))


def test_blur_is_a_gaussian_of_that_sigma():
    point = torch.zeros(1, 41, 41, dtype=torch.float64)
    point[0, 20, 20] = 1
    x = torch.arange(41.0, dtype=torch.float64) - 20
    bell = torch.exp(-x.square() / (2 * 2.5**2))
    bell /= bell.sum()
    torch.testing.assert_close(faults.blur(point, 2.5)[0], torch.outer(bell, bell), atol=1e-5, rtol=0)


def test_noise_has_its_deviation_and_is_drawn_again_alike():
    grey = torch.full((3, 128, 128), 0.5)
    noisy = faults.noise(grey, 12.0)
    assert 255 * (noisy - grey).std().item() == pytest.approx(12, rel=0.02)
    assert abs(255 * (noisy - grey).mean().item()) < 0.3
    assert torch.equal(noisy, faults.noise(grey, 12.0)) and not torch.equal(noisy, faults.noise(grey, 12.0, seed=1))


@pytest.mark.parametrize("q", [2, 4, 64])
def test_banding_is_the_fixed_point_of_notebook_02(photo, q):
    found = faults.banding(photo, q)
    torch.testing.assert_close(found, fixed_point_view(photo, q, q).result)
    assert len(found.unique()) <= 2 * q + 1


def test_jpeg_of_one_channel_and_of_a_batch(photo):
    grey = photo.mean(0, keepdim=True)
    assert mse(faults.jpeg(grey, 95), grey) < 1e-4 < mse(faults.jpeg(grey, 5), grey)
    assert faults.jpeg(torch.stack([photo] * 2), 50).shape == (2, *photo.shape)


def test_x265_keeps_colours_and_codes_a_batch_as_a_clip(photo):
    orange = torch.tensor([0.9, 0.45, 0.15]).view(3, 1, 1).expand(3, 64, 64)
    assert 255 * (faults.x265(orange, 4) - orange).abs().max() < 3  # another matrix on the way back is off by more
    pan = torch.stack([photo.roll(k, -1) for k in range(4)])
    coded = faults.x265(pan, 30)
    assert coded.shape == pan.shape
    assert not torch.equal(coded[3], faults.x265(pan[3], 30))  # it is predicted from those before


def test_x265_codes_grey_as_three_equal_channels(photo):
    grey = photo.mean(0, keepdim=True)
    found = faults.x265(torch.stack([grey, grey.flip(-1)]), 4)
    assert found.shape == (2, *grey.shape) and 255 * (found[0] - grey).abs().max() < 5
    coloured = faults.x265(torch.stack([grey, grey.flip(-1)]).expand(2, *photo.shape), 4)
    torch.testing.assert_close(coloured, found.expand_as(coloured), atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize("shape", [(3, 63, 64), (3, 64, 30), (1, 64, 65), (1, 1, 1)])
def test_x265_names_the_sizes_that_it_takes(shape):
    with pytest.raises(I2IError, match=r"even sides of 32.*got"):
        faults.x265(torch.zeros(shape), 23)


def test_shift_by_whole_and_half_pixels(photo):
    inside = (..., slice(8, -8))
    torch.testing.assert_close(faults.shift(photo, 3)[inside], photo.roll(3, -1)[inside], atol=1e-5, rtol=0)
    ramp = torch.linspace(0.1, 0.9, 81, dtype=torch.float64).expand(1, 9, 81)
    torch.testing.assert_close(faults.shift(ramp, 0.5)[inside], ramp[inside] - 0.005, atol=1e-6, rtol=0)


def test_brightness_adds_codes():
    assert (255 * faults.brightness(torch.tensor([[[0.0, 0.5, 1.0]]]), 51)).tolist()[0][0] == pytest.approx(
        [51, 178.5, 255]
    )


def test_sharpen_leaves_flat_areas_and_overshoots_at_edges():
    step = torch.cat([torch.full((3, 16, 16), 0.3), torch.full((3, 16, 16), 0.7)], -1)
    found = faults.sharpen(step, 1.0)
    torch.testing.assert_close(found[..., :8], step[..., :8])
    # of a binomial window of 5, 5/16 of the weight lies beyond the edge of the pixel beside it
    assert found[0, 8, 15].item() == pytest.approx(0.3 - 5 / 16 * 0.4, abs=1e-6)
    assert faults.sharpen(step, 1.0, size=3)[0, 8, 15].item() == pytest.approx(0.3 - 1 / 4 * 0.4, abs=1e-6)
    torch.testing.assert_close(faults.sharpen(step, 0.0), step)
    with pytest.raises(I2IError, match=r"3 or 5 pixels.*got 4"):
        faults.sharpen(step, 1.0, size=4)


def test_sharpen_moves_luma_alone(photo):
    change = faults.sharpen(0.25 + photo / 2, 0.3) - (0.25 + photo / 2)
    torch.testing.assert_close(change[0], change[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(change[0], change[2], atol=1e-6, rtol=0)


def test_wrong_matrix_against_pillow_and_the_printed_numbers_of_bt709():
    colours = torch.tensor([[0.6, 0.3, 0.3], [0.3, 0.6, 0.35], [0.4, 0.4, 0.7], [0.5, 0.5, 0.5]])
    codes = (255 * colours).round().to(torch.uint8)
    luma, cb, cr = np.asarray(Image.fromarray(codes[None].numpy()).convert("YCbCr"))[0].astype(float).T  # BT.601
    cb, cr = cb - 128, cr - 128
    read = np.stack([luma + 1.5748 * cr, luma - 0.1873 * cb - 0.4681 * cr, luma + 1.8556 * cb])
    found = 255 * faults.matrix((codes.T / 255)[:, None], 1.0)[:, 0]
    np.testing.assert_allclose(found, read, atol=2)  # Pillow rounds to whole codes
    assert abs(found - codes.T).max() > 5
    np.testing.assert_allclose(found[:, 3], codes[3], atol=1e-3)  # grey has no chroma


def test_wrong_range_and_gamma():
    ends = torch.tensor([[[0.0, 1.0]]])
    assert (255 * faults.value_range(ends, 1.0)).flatten().tolist() == pytest.approx([16, 235])
    assert faults.gamma_twice(torch.full((1, 2, 2), 0.5), 1.0)[0, 0, 0].item() == pytest.approx(
        1.055 * 0.5 ** (1 / 2.4) - 0.055, abs=1e-6
    )


@pytest.mark.parametrize("name", ["matrix", "range", "gamma"])
def test_a_share_of_nothing_is_nothing(photo, name):
    torch.testing.assert_close(FAULTS[name](photo, 0.0), photo)


@pytest.mark.parametrize("name", ["blur", "noise", "shift", "brightness", "sharpen"])
def test_tuned_reaches_the_error(photo, name):
    strength = tuned(name, photo, 4e-4)
    assert mse(FAULTS[name](photo, strength), photo) == pytest.approx(4e-4, rel=1e-3)


def test_tuned_takes_the_nearest_quality(photo):
    quality = tuned("jpeg", photo, 4e-4)
    apart = {q: abs(np.log(mse(faults.jpeg(photo, q), photo) / 4e-4)) for q in (quality - 1, quality, quality + 1)}
    assert quality == int(quality) and min(apart, key=apart.get) == quality


@settings(max_examples=10, deadline=None)
@given(codes=st.floats(0.5, 40))
def test_tuned_inverts_the_brightness(codes):
    grey = torch.full((3, 16, 16), 0.4)
    assert tuned("brightness", grey, (codes / 255) ** 2) == pytest.approx(codes, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [("banding", 1e-4, "fault"), ("fog", 1e-4, "'fog'"), ("blur", 0.5, "an error that blur makes")],
)
def test_tuned_refuses(photo, name, error, words):
    with pytest.raises(I2IError, match=words):
        tuned(name, photo, error)


def test_alike_has_one_error(photo):
    found = faults.alike(photo, 4)
    errors = {name: mse(picture, photo) for name, picture in found.items()}
    assert next(iter(found)) == "banding" and len(found) == 7
    assert all(error == pytest.approx(errors["banding"], rel=0.05) for error in errors.values())
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(found.values(), 2))


def test_resize(photo):
    small = faults.resize(photo, (32, 48))
    assert small.shape == (3, 32, 48)
    assert faults.resize(torch.stack([small] * 2), (64, 96), "lanczos").shape == (2, *photo.shape)
    assert faults.resize(photo[:, :1, :1], (1, 5)).shape == (3, 1, 5)
    assert faults.resize(photo[:1, :1], (7, 1)).shape == (1, 7, 1)
    grey = torch.full((1, 20, 30), 100 / 255)
    torch.testing.assert_close(faults.resize(grey, (7, 90), "lanczos"), torch.full((1, 7, 90), 100 / 255))
    assert mse(faults.resize(small, (64, 96), "lanczos"), photo) < mse(faults.resize(small, (64, 96)), photo)
    with pytest.raises(I2IError, match=r"bicubic or lanczos.*'nearest'"):
        faults.resize(photo, (32, 48), "nearest")
