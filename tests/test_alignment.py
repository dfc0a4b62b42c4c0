"""Shifts, delays and crops are found where they are, and nowhere else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import data

from i2ilib.metrics.alignment import found_crop, found_delay, found_shift

ASTRONAUT = torch.from_numpy(data.astronaut()[:200, 100:340].transpose(2, 0, 1).copy()).float() / 255


@settings(max_examples=20, deadline=None)
@given(st.floats(-12, 12), st.floats(-12, 12), st.integers(0, 2**31))
def test_a_shift_is_found(down, right, seed):
    if max(abs(down), abs(right)) < 0.5:
        return
    moved = torch.from_numpy(ndimage.shift(ASTRONAUT.numpy(), (0, down, right), order=3, mode="nearest"))
    moved += 0.01 * torch.randn(moved.shape, generator=torch.Generator().manual_seed(seed))
    assert found_shift(moved, ASTRONAUT) == pytest.approx((down, right), abs=0.25)


def _blurred(image):
    return torch.from_numpy(ndimage.gaussian_filter(image.numpy(), (0, 3, 3)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x, lambda x: x * 0.5, lambda x: x**2.2, lambda x: x.flip(2), _blurred,
        lambda x: x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
        lambda x: (x * 8).round() / 8, torch.zeros_like, lambda x: x.mean((1, 2), keepdim=True).expand_as(x),
    ],
)  # fmt: skip
def test_other_faults_are_no_shift(spoil):
    assert found_shift(spoil(ASTRONAUT), ASTRONAUT) is None


def test_pictures_too_small_for_a_shift():
    assert found_shift(torch.rand(7, 7), torch.rand(7, 7)) is None
    assert found_shift(torch.rand(9, 9), torch.rand(9, 9)) is None


@given(st.integers(-5, 5), st.integers(12, 30), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_a_delay_is_found(delay, length, seed):
    film = torch.rand(length + 5, 1, 20, 24, generator=torch.Generator().manual_seed(seed))
    late, early = film[:length], film[abs(delay) : abs(delay) + length]
    pair = (late, early) if delay >= 0 else (early, late)
    assert found_delay(*map(list, pair)) == delay


def test_no_delay_in_stills_noise_and_single_frames():
    still = [torch.full((3, 8, 8), 0.5)] * 9
    assert found_delay(still, still) == 0 and found_delay(still[:1], still[:1]) == 0 and found_delay([], []) == 0
    noise = np.random.default_rng(0).random((2, 30, 3, 16, 16))
    assert found_delay(*(list(map(torch.from_numpy, clip)) for clip in noise)) == 0


def test_a_crop_is_found_in_either_order():
    part = ASTRONAUT[:, 33:150, 101:200]
    assert found_crop(part, ASTRONAUT) == found_crop(ASTRONAUT, part) == (33, 101)
    noisy = part + 0.02 * torch.randn(part.shape, generator=torch.Generator().manual_seed(0))
    assert found_crop(noisy, ASTRONAUT) == (33, 101)


def test_what_is_not_cut_out():
    scaled = torch.nn.functional.interpolate(ASTRONAUT[None], scale_factor=0.5, mode="area")[0]
    assert found_crop(scaled, ASTRONAUT) is None  # smaller, but scaled
    assert found_crop(ASTRONAUT[:, :100], ASTRONAUT[:, :, :100]) is None  # neither fits into the other
    assert found_crop(torch.full((3, 9, 9), 0.5), ASTRONAUT) is None  # nothing to recognise
