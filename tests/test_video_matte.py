"""dtSSD against NumPy, MESSDdt against its definition in loops, and the estimated motion against known shifts."""

import math

import numpy as np
import pytest
import torch
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import io

from i2ilib import I2IError, metrics
from i2ilib.metrics import dtssd, messddt

STILL = torch.zeros(1, 2, 1, 1)


def clips(seed, frames=3, height=7, width=8, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    pred, target = torch.rand(2, frames, 1, height, width, generator=rng, dtype=dtype)
    mask = torch.rand(frames, 1, height, width, generator=rng) < 0.6
    return pred, target, mask


def test_dtssd_is_numpys():
    pred, target, mask = clips(0, frames=5)
    p, t, m = (clip.numpy() for clip in (pred, target, mask))
    change = (np.diff(p, axis=0) - np.diff(t, axis=0)) ** 2
    expected = np.sqrt(change.mean((1, 2, 3)))
    found = dtssd(pred, target, reduction="none")
    assert found.tolist() == pytest.approx(expected) and found.dtype == torch.float64
    assert dtssd(pred, target) == pytest.approx(expected.mean())
    masked = [np.sqrt(c[earlier].mean()) for c, earlier in zip(change, m[:-1], strict=True)]
    assert dtssd(pred, target, mask=mask, reduction="none").tolist() == pytest.approx(masked)
    assert dtssd(pred, target, mask=torch.zeros_like(mask)) == 0


def naive(pred, target, flow, mask):
    """MESSDdt of two frames, (H, W), with motion in whole pixels."""
    height, width = pred.shape[1:]
    total, count = 0.0, 0
    for y in range(height):
        for x in range(width):
            to_x, to_y = x + int(flow[0, y, x]), y + int(flow[1, y, x])
            if mask[y, x] and 0 <= to_x < width and 0 <= to_y < height:
                now = (pred[0, y, x] - target[0, y, x]) ** 2
                later = (pred[1, to_y, to_x] - target[1, to_y, to_x]) ** 2
                total += abs(now - later)
                count += 1
    return total / max(count, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6), st.integers(0, 6))
def test_messddt_is_as_defined(seed, height, width, reach):
    pred, target, mask = clips(seed, height=height, width=width)
    rng = np.random.default_rng(seed)
    flow = rng.integers(-reach, reach + 1, (2, 2, height, width))
    found = messddt(pred, target, flow=torch.from_numpy(flow).double(), mask=mask, reduction="none")
    p, t, m = (clip[:, 0].numpy() for clip in (pred, target, mask))
    expected = [naive(p[k : k + 2], t[k : k + 2], flow[k], m[k]) for k in range(2)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_messddt_reads_the_error_between_pixels():
    pred, target, _ = clips(1, frames=2, height=9, width=9)
    flow = torch.rand(1, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    inner = torch.zeros(9, 9, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    y, x = np.mgrid[:9, :9]
    place = np.stack([y + flow[0, 1].numpy(), x + flow[0, 0].numpy()])
    now, later = (pred - target)[:, 0].numpy()
    later = ndimage.map_coordinates(later, place, order=1)
    expected = abs(now**2 - later**2)[1:-1, 1:-1].mean()
    assert messddt(pred, target, flow=flow, mask=inner) == pytest.approx(expected)


def test_what_leaves_the_frame_is_not_counted():
    target = torch.zeros(2, 1, 4, 4)
    pred = target.clone()
    pred[1, ..., -1] = 1
    right = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert messddt(pred, target, flow=right) == pytest.approx(1 / 3)  # three columns of four stay
    # up to half a pixel beyond the last centre is inside, and as that pixel
    assert messddt(pred, target, flow=0.49 * right) == pytest.approx((1 + 0.49**2) / 4)
    assert messddt(pred, target, flow=0.51 * right) == pytest.approx(0.51**2 / 3)
    assert messddt(pred, target, flow=10 * right) == 0  # nothing is left


@pytest.mark.parametrize("seed", range(3))
def test_moving_together_costs_nothing_along_the_motion(seed):
    """A wrong matte that moves with the object: no MESSDdt, but dtSSD, which stays at the pixel."""
    pred, target, _ = clips(seed, frames=1, height=12, width=13)
    dx, dy = (int(n) for n in np.random.default_rng(seed).integers(1, 4, 2))
    pred, target = (torch.cat([clip.roll((k * dy, k * dx), (-2, -1)) for k in range(3)]) for clip in (pred, target))
    flow = torch.tensor([dx, dy]).double().reshape(1, 2, 1, 1).expand(2, 2, 12, 13)
    assert messddt(pred, target, flow=flow) == pytest.approx(0, abs=1e-12)
    assert messddt(pred, target, flow=0 * flow) > 0.05 and dtssd(pred, target) > 0.05
    assert messddt(pred, target, flow=-flow) > 0.05


def test_identity_symmetry_and_a_still_error():
    pred, target, _ = clips(0)
    flow = torch.ones(2, 2, 7, 8)
    assert dtssd(pred, pred) == messddt(pred, pred, flow=flow) == 0
    assert dtssd(pred, target) == pytest.approx(dtssd(target, pred))
    assert messddt(pred, target, flow=flow) == pytest.approx(messddt(target, pred, flow=flow))
    offset = pred * 0.5 + 0.2
    assert dtssd(offset, pred * 0.5) == pytest.approx(0, abs=1e-12)  # the same error in every frame
    assert messddt(offset, pred * 0.5, flow=flow) == pytest.approx(0, abs=1e-12)


def test_a_clip_may_come_in_parts():
    pred, target, mask = clips(3, frames=5)
    flow = torch.randn(4, 2, 7, 8, generator=torch.Generator().manual_seed(0))
    for function, more in ((dtssd, {}), (messddt, {"flow": flow}), (messddt, {})):
        whole = function(pred, target, mask=mask, reduction="none", **more)
        assert whole.shape == (4,)
        parts = []
        for k in range(4):
            part = {name: value[k : k + 1] for name, value in more.items()}
            two = slice(k, k + 2)
            parts.append(function(pred[two], target[two], mask=mask[two], **part))
        assert parts == pytest.approx(whole.tolist(), abs=1e-12)


# --- motion that is estimated ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lemur():
    matte = torch.from_numpy(io.imread(shared("data/matting/lemur_alpha.png"))).double()[None, None, ::4, ::4] / 255
    other = torch.from_numpy(io.imread(shared("data/matting/lemur_alpha_fba.png"))).double()[None, None, ::4, ::4] / 255
    picture = torch.from_numpy(io.imread(shared("data/matting/lemur.png"))).double().movedim(-1, 0)[None, :3, ::4, ::4]
    return matte, other, picture / 255


@pytest.mark.parametrize("source", ["mattes", "frames"])
def test_estimated_motion_is_near_the_true_one(lemur, source):
    dx, dy = 2, -1
    matte, other, picture = (torch.cat([clip, clip.roll((dy, dx), (-2, -1))]) for clip in lemur)
    inner = torch.zeros(matte.shape[-2:], dtype=torch.bool)
    inner[6:-6, 6:-6] = True  # what rolls over the border has no motion
    given = {} if source == "mattes" else {"frames": picture}
    found = messddt(other, matte, mask=inner, **given)
    still = messddt(other, matte, mask=inner, flow=STILL.expand(1, 2, *inner.shape))
    assert found < 0.15 * still
    true = torch.tensor([dx, dy]).reshape(1, 2, 1, 1).expand(1, 2, *inner.shape).double()
    assert messddt(other, matte, mask=inner, flow=true) < 1e-12 < found


def test_the_true_mattes_give_the_motion():
    """The prediction has no say in it, and a clip without any motion is followed in place."""
    pred, target, _ = clips(4)
    target = target[:1].expand(3, -1, -1, -1)
    assert messddt(pred, target) == pytest.approx(messddt(pred, target, flow=STILL.expand(2, 2, 7, 8)))
    assert messddt(pred, torch.zeros_like(target)) > 0  # nothing to see at all


# --- gradients, registration, errors -------------------------------------------------------------------------


def test_differentiable():
    pred, target, mask = clips(5, height=4, width=5)
    pred = (pred * 0.8 + 0.1).requires_grad_()
    flow = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for function, more in ((dtssd, {}), (messddt, {"flow": flow})):
        assert torch.autograd.gradcheck(lambda p: function(p, target, mask=mask, reduction="none", **more), pred)  # noqa: B023
        equal = target.clone().requires_grad_()
        function(equal, target, **more).backward()
        assert equal.grad.abs().max() == 0
    assert messddt(pred, target).requires_grad  # motion is estimated without one


def test_registered():
    pred, target, _ = clips(0)
    for name, function in (("dtssd", dtssd), ("messddt", messddt)):
        entry = metrics.metric(name)
        assert entry.of == "matte" and entry.takes == "clip" and not entry.higher_is_better
        assert entry(pred, target).tolist() == function(pred, target, reduction="none").tolist()
    zero, one = torch.zeros(3, 1, 4, 4), torch.ones(3, 1, 4, 4)
    zero[1] = 1
    assert dtssd(zero, 1 - zero) == metrics.metric("dtssd").score_range[1]
    assert messddt(zero, one, flow=STILL.expand(2, 2, 4, 4)) == metrics.metric("messddt").score_range[1]


@pytest.mark.parametrize("function", [dtssd, messddt])
@pytest.mark.parametrize(
    ("pred", "target", "more", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5), {}, "one shape"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), {}, r"clip: expected two frames or more.*\(1, 1, 4, 4\)"),
        (torch.zeros(4, 4), torch.zeros(4, 4), {}, "clip: expected two frames or more.*in order along the first axis"),
        (torch.zeros(2, 1, 4, 4) - 1, torch.zeros(2, 1, 4, 4), {}, "pred: expected values from 0 to 1"),
        (torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), math.inf), {}, "target: expected values from 0 to 1"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), {"mask": torch.zeros(4, 4)}, "mask: expected bool"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), {"mask": torch.zeros(4, 3) > 0}, "mask: expected the size"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), {"reduction": "max"}, "reduction: expected mean or none"),
    ],
)
def test_bad_clips(function, pred, target, more, message):
    with pytest.raises(I2IError, match=message):
        function(pred, target, **more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"flow": torch.zeros(2, 2, 4, 4)}, r"flow: expected \(N - 1, 2, H, W\) = \(1, 2, 4, 4\), got \(2, 2, 4, 4\)"),
        ({"flow": torch.zeros(1, 2, 4, 4, dtype=torch.int64)}, "flow: expected floating point, got torch.int64"),
        ({"flow": torch.full((1, 2, 4, 4), math.nan)}, "flow: expected finite numbers"),
        ({"flow": torch.zeros(1, 2, 4, 4), "frames": torch.zeros(2, 3, 4, 4)}, "flow and frames: expected one of them"),
        ({"frames": torch.zeros(2, 3, 4, 5)}, r"frames: expected the number and size of the mattes, \(2, 1, 4, 4\)"),
        ({"frames": torch.zeros(3, 3, 4, 4)}, "frames: expected the number and size"),
        ({"frames": torch.zeros(2, 4, 4)}, "frames: expected the number and size"),
        ({"frames": torch.full((2, 3, 4, 4), 255.0)}, "frames: expected values from 0 to 1"),
    ],
)
def test_bad_motion(more, message):
    with pytest.raises(I2IError, match=message):
        messddt(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), **more)


def test_no_motion_can_be_estimated_on_a_line():
    line = torch.zeros(2, 1, 1, 6)
    with pytest.raises(I2IError, match="flow: expected one that is given"):
        messddt(line, line)
    assert messddt(line, line, flow=torch.zeros(1, 2, 1, 6)) == 0
