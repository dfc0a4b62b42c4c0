"""The fixed-point view against plain numpy; the widget driven from Python without a front end."""

import matplotlib
import numpy as np
import pytest
import torch
from skimage import data

matplotlib.use("Agg")

from i2ilib import I2IError, widgets


@pytest.fixture(scope="module")
def photo():
    return torch.from_numpy(data.rocket()[::4, ::4].copy()).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize(("q", "position"), [(4, 0), (64, 0), (128, 0), (1, 6), (1, 7), (128, -1)])
def test_view_agrees_with_numpy(photo, q, position):
    view = widgets.fixed_point_view(photo, q, q, fix_position=position)
    x = photo.double().numpy()
    exact = (2 * x - 1) * q * 2.0**position
    codes = np.clip(np.floor(exact + 0.5), -128, 127)
    result = (codes / 2.0**position / q + 1) / 2
    np.testing.assert_array_equal(view.codes.numpy(), codes)
    np.testing.assert_allclose(view.result.numpy(), result, atol=1e-6)
    assert view.stats["levels"] == len(np.unique(codes))
    assert view.stats["mean_error"] == pytest.approx(np.abs(result - x).mean() * 255, abs=1e-4)
    assert view.stats["max_error"] == pytest.approx(np.abs(result - x).max() * 255, abs=1e-4)
    assert view.stats["saturated_share"] == pytest.approx((exact >= 127.5).mean())
    assert view.histogram[0].sum() == x.size and view.histogram[0, int(codes.min()) + 128] > 0


@pytest.mark.parametrize(("q_in", "q_out", "position"), [(1, 64, 6), (16, 128, 2), (64, 4, 0), (128, 128, 0)])
def test_saturation_is_counted_at_both_ends(photo, q_in, q_out, position):
    view = widgets.fixed_point_view(photo, q_in, q_out, fix_position=position)
    enters = (2 * photo.double().numpy() - 1) * q_in * 2.0**position
    codes = np.clip(np.floor(enters + 0.5), -128, 127)
    leaves = codes * q_out / q_in
    np.testing.assert_array_equal(view.codes_out.numpy(), np.clip(np.floor(leaves + 0.5), -128, 127))
    for end, exact, name in ((0, enters, "saturated_share"), (1, leaves, "saturated_share_out")):
        below, above = (exact < -128.5).sum(), (exact >= 127.5).sum()
        assert view.saturated[end].tolist() == [below, above] and view.histogram[end].sum() == exact.size
        assert view.stats[name] == pytest.approx((below + above) / exact.size)
    assert view.stats["levels_out"] == len(view.codes_out.unique())


def test_a_grey_picture_is_not_called_unsaturated(photo):
    stats = widgets.fixed_point_view(photo, 1, 64, fix_position=6).stats
    assert stats["saturated_share"] == 0 and stats["saturated_share_out"] > 0.9


def test_view_takes_a_batch_of_one_and_stays_a_view(photo):
    one, same = widgets.fixed_point_view(photo[None], 8, 8), widgets.fixed_point_view(photo, 8, 8)
    assert torch.equal(one.codes, same.codes)
    assert one.result.shape == photo.shape


def test_output_step_limits_what_input_kept(photo):
    fine, coarse = (widgets.fixed_point_view(photo, 64, q_out) for q_out in (64, 4))
    assert len(coarse.result.unique()) <= 9 < len(fine.result.unique())
    assert coarse.stats["mean_error"] > 4 * fine.stats["mean_error"]


def test_exposure_saturates(photo):
    plain, bright = (widgets.fixed_point_view(photo, 128, 128, exposure=stops) for stops in (0.0, 2.0))
    assert bright.stats["saturated_share"] > plain.stats["saturated_share"]
    assert bright.zoom == plain.zoom


def test_zoom_prefers_smooth_shading():
    noise = torch.rand(3, 120, 120, generator=torch.Generator().manual_seed(0))
    noise[:, :, 60:] = torch.linspace(0, 1, 60).view(60, 1).repeat_interleave(2, 0)
    _, left, height, width = widgets.fixed_point_view(noise, 8, 8).zoom
    assert left >= 60 and (height, width) == (40, 40)


def test_explorer_answers_its_sliders(photo):
    widget = widgets.fixed_point_explorer(photo)
    before = bytes(widget.picture.value)
    assert before.startswith(b"\x89PNG")
    widget.q_in.value = 4
    assert widget.view.q_in == 4 and widget.view.stats["levels"] <= 9
    after = bytes(widget.picture.value)
    assert after.startswith(b"\x89PNG") and after != before
    widget.q_out.value, widget.fix_position.value, widget.exposure.value = 8, 2, 1.0
    view = widgets.fixed_point_view(photo, 4, 8, fix_position=2, exposure=1.0)
    assert torch.equal(widget.view.codes, view.codes)
    assert not any(c.continuous_update for c in (widget.q_in, widget.q_out, widget.fix_position, widget.exposure))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: widgets.fixed_point_view(torch.zeros(1, 16, 16), 4, 4), r"\(3, H, W\)"),
        (lambda: widgets.fixed_point_view(torch.zeros(2, 3, 16, 16), 4, 4), r"\(3, H, W\)"),
        (lambda: widgets.fixed_point_view(torch.zeros(3, 8, 16), 4, 4), "12 x 12"),
        (lambda: widgets.fixed_point_view(torch.zeros(3, 16, 16), 5, 4), "got 5"),
        (lambda: widgets.fixed_point_view(torch.zeros(3, 16, 16), 4, 5), "got 5"),
        (lambda: widgets.fixed_point_view(torch.zeros(3, 16, 16), 4, 4, fix_position=8), "-7 to 7"),
        (lambda: widgets.fixed_point_explorer(torch.zeros(3, 16, 16, dtype=torch.uint8)), "floating-point"),
    ],
)
def test_errors(call, message):
    with pytest.raises(I2IError, match=message):
        call()
