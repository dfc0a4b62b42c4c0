"""FLIP: the package's own score, and the published formulas where there is nothing to blur."""

import sys

import numpy as np
import pytest
import torch
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from i2ilib import I2IError, UnavailableError, available, metrics
from i2ilib.runtime import require

if not available("flip_evaluator"):  # Linux on ARM has no wheel
    pytest.skip(available("flip_evaluator").reason, allow_module_level=True)
flip_evaluator = require("flip_evaluator")


def lab(rgb):
    """CIELAB of an sRGB colour, against the white of the same matrix, with Hunt's adjustment as the paper has it."""
    rgb = np.asarray(rgb, np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    ratio = matrix @ linear / matrix.sum(1)
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    lightness = 116 * f[1] - 16
    return np.array([lightness, 5 * (f[0] - f[1]) * lightness, 2 * (f[1] - f[2]) * lightness])


def apart(one, other):
    """The printed difference of two even colours: HyAB to the power 0.7, its range compressed at 0.4 and 0.95."""

    def hyab(a, b):
        d = lab(a) - lab(b)
        return (abs(d[0]) + np.hypot(d[1], d[2])) ** 0.7

    most = hyab([0, 1, 0], [0, 0, 1])
    error = hyab(one, other)
    knee = 0.4 * most
    return 0.95 / knee * error if error < knee else 0.95 + 0.05 * (error - knee) / (most - knee)


def even(colour, height=12, width=9):
    return torch.tensor(colour, dtype=torch.float32)[:, None, None].expand(3, height, width)


COLOUR = st.tuples(*[st.integers(0, 255).map(lambda code: code / 255)] * 3)


@settings(max_examples=40, deadline=None)
@given(one=COLOUR, other=COLOUR)
def test_even_colours_by_the_printed_formulas(one, other):
    found = metrics.flip(even(one), even(other), value_range=1.0)
    assert found == pytest.approx(apart(one, other), abs=2e-3)


def test_green_and_blue_are_farthest_apart():
    assert metrics.flip(even([0, 1, 0]), even([0, 0, 1]), value_range=1.0) == pytest.approx(1, abs=1e-4)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 256, (2, 3, 24, 31), generator=generator)
    pred = (target + torch.randint(-40, 41, target.shape, generator=generator)).clamp(0, 255)
    return pred / 255, target / 255


def own(pred, target, **parameters):
    images = (np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in (target, pred))
    return flip_evaluator.evaluate(*images, "LDR", parameters=parameters)[1]


def test_the_packages_own_score(pair):
    expected = [own(p, t) for p, t in zip(*pair, strict=True)]
    assert metrics.flip(*pair, value_range=1.0, reduction="none").tolist() == expected and expected[0] > 0.01
    assert metrics.flip(*pair, value_range=1.0) == pytest.approx(np.mean(expected))
    codes = [image * 255 for image in pair]
    assert metrics.flip(*codes, value_range=255) == pytest.approx(np.mean(expected), abs=1e-6)


def test_pictures():
    images = []
    for name in ("ex_ref.png", "ex_p0.png", "ex_p1.png"):
        with Image.open(shared(f"data/metrics/{name}")) as image:
            images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    ref, blurred, shifted = images
    found = [metrics.flip(image, ref, value_range=1.0) for image in (ref, blurred, shifted)]
    assert found == [0, *(own(image, ref) for image in (blurred, shifted))]


def test_direction_and_symmetry(pair):
    pred, target = pair
    assert metrics.flip(target, target, value_range=1.0) == 0
    small, large = (target + (pred - target) * share for share in (0.3, 1.0))
    assert 0 < metrics.flip(small, target, value_range=1.0) < metrics.flip(large, target, value_range=1.0) < 1
    assert metrics.flip(pred, target, value_range=1.0) == pytest.approx(metrics.flip(target, pred, value_range=1.0))


def test_far_away_less_is_seen(pair):
    near, usual, far = (metrics.flip(*pair, value_range=1.0, pixels_per_degree=ppd) for ppd in (20, 67.02064, 200))
    assert near > usual > far and usual == pytest.approx(metrics.flip(*pair, value_range=1.0), abs=1e-6)
    assert far == pytest.approx(np.mean([own(p, t, ppd=200.0) for p, t in zip(*pair, strict=True)]))


def test_grey_is_repeated(pair):
    grey = [image[:1, :1] for image in pair]
    expected = metrics.flip(*(image.expand(-1, 3, -1, -1) for image in grey), value_range=1.0)
    assert metrics.flip(*grey, value_range=1.0) == expected
    assert metrics.flip(*(image[0, 0] for image in grey), value_range=1.0) == expected


def test_inputs_stay_as_they_are(pair, capfd):
    kept = [image.clone() for image in pair]
    metrics.flip(*pair, value_range=1.0)
    assert all(torch.equal(*both) for both in zip(kept, pair, strict=True))
    for dtype in (torch.float64, torch.float16):
        same = [image.to(dtype) for image in pair]
        assert metrics.flip(*same, value_range=1.0) == pytest.approx(metrics.flip(*pair, value_range=1.0), rel=1e-2)
    assert not isinstance(metrics.flip(pair[0].requires_grad_(), pair[1], value_range=1.0), torch.Tensor)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ((torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)), {}, "one shape"),
        ((torch.zeros(4, 8, 8),) * 2, {}, "one or three channels, got 4"),
        ((torch.zeros(3, 8, 8), torch.full((3, 8, 8), 7.0)), {}, "target: expected values from 0 to 1"),
        ((torch.zeros(3, 8, 8),) * 2, {"pixels_per_degree": 0}, "pixels_per_degree: expected above 0, got 0"),
        ((torch.zeros(3, 8, 8),) * 2, {"pixels_per_degree": float("nan")}, "pixels_per_degree"),
        ((torch.zeros(3, 8, 8),) * 2, {"reduction": "sum"}, "mean or none"),
    ],
)
def test_bad_input(images, options, message):
    with pytest.raises(I2IError, match=message):
        metrics.flip(*images, value_range=1.0, **options)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    with pytest.raises(UnavailableError, match="pip install flip_evaluator"):
        metrics.flip(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), value_range=1.0)
    score = metrics.score(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), ["flip"])["flip"]
    assert str(score).startswith("not available: flip_evaluator")
