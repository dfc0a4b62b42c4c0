"""Pushing a fault and judging pairs, driven from Python; the widgets show what the plain functions say."""

import base64
import io
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage import data

from i2ilib import I2IError, metrics
from i2ilib.datasets import faults
from i2ilib.widgets import (
    ChoicePair,
    ForcedChoice,
    agreement,
    choice_pairs,
    metric_explorer,
    metric_picture,
    metric_view,
)


@pytest.fixture(scope="module")
def photos():
    """Too small for MS-SSIM, which says so."""
    pixels = torch.from_numpy(data.astronaut()[:64, 160:240].copy()).permute(2, 0, 1).float() / 255
    return {"one": pixels, "other": pixels.flip(-1)}


def pixels_of(widget):
    return np.asarray(Image.open(io.BytesIO(widget.picture.value)))


def test_the_view_is_the_fault_and_its_scores(photos):
    view = metric_view(photos["one"], "brightness", 16)
    assert torch.equal(view.picture, faults.brightness(photos["one"], 16))
    assert view.error_codes.max().item() == pytest.approx(16, abs=1e-3)
    assert view.scores["psnr"].mean == pytest.approx(metrics.psnr(view.picture, view.photo, value_range=1.0))
    assert "161" in view.scores["ms_ssim"].reason and math.isnan(view.scores["ms_ssim"].mean)


def test_the_picture_has_three_parts(photos):
    view = metric_view(photos["one"], "shift", 2)
    drawn = metric_picture(view)
    assert drawn.shape == (64, 3 * 80 + 2 * 8, 3) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[:, :80], np.rint(255 * photos["one"].permute(1, 2, 0).numpy()))
    none = metric_picture(metric_view(photos["one"], "matrix", 0.0))
    assert none[:, -80:].min() == 255  # no error is white


@pytest.mark.parametrize(
    ("change", "words"),
    [({"photo": torch.zeros(1, 64, 64)}, "photo"), ({"photo": torch.zeros(3, 64, 64, dtype=torch.uint8)}, "uint8"),
     ({"fault": "fog"}, "'fog'"), ({"names": ["beauty"]}, "'beauty'")],
)  # fmt: skip
def test_the_view_refuses(photos, change, words):
    with pytest.raises(I2IError, match=words):
        metric_view(**{"photo": photos["one"], "fault": "blur", "strength": 1, "names": ("psnr",)} | change)


def test_every_control_of_the_explorer(photos):
    widget = metric_explorer(photos)
    seen = [pixels_of(widget).tobytes()]
    for control, value in ((widget.photo, "other"), (widget.fault, "brightness"), (widget.strength, 64)):
        control.value = value
        seen.append(pixels_of(widget).tobytes())
    assert len(set(seen)) == 4
    assert torch.equal(widget.view.picture, faults.brightness(photos["other"], 64))
    assert [value for _, value in widget.strength.options] == list(faults.FAULTS["brightness"].strengths)
    assert f"{widget.view.scores['psnr'].mean:.4f}" in widget.table.value and "PSNR (dB) ↑" in widget.table.value
    np.testing.assert_array_equal(pixels_of(widget), metric_picture(widget.view))


def test_slow_metrics_are_asked_by_a_click_and_go_with_the_next_move(photos):
    widget = metric_explorer(photos)
    widget.fault.value = "sharpen"
    assert "vmaf_v0.6.1" not in widget.view.scores
    widget.ask.click()
    assert widget.view.scores["vmaf_v0.6.1"].mean > widget.view.scores["vmaf_v0.6.1neg"].mean
    assert "VMAF v0.6.1 NEG" in widget.table.value
    widget.strength.value = 3
    assert "vmaf_v0.6.1" not in widget.view.scores


def losses():
    return pd.DataFrame(
        {"A": [1.0, 2, 3, 4], "B": [4.0, 3, 2, 1], "same": [5.0] * 4, "none": [math.nan] * 4}, index=list("wxyz")
    )


@pytest.fixture
def pairs():
    images = {name: torch.full((3, 8, 8), k / 4) for k, name in enumerate("wxyz")}
    return choice_pairs(torch.zeros(3, 8, 8), images, losses(), 6, seed=1)


def test_pairs_are_drawn_once_with_their_losses(pairs):
    assert len({frozenset(pair.names) for pair in pairs}) == 6
    for pair in pairs:
        assert pair.losses["A"] == tuple(losses().loc[name, "A"] for name in pair.names)
        assert pair.left.max().item() == "wxyz".index(pair.names[0]) / 4
    sides = [pair.names[0] < pair.names[1] for pair in pairs]
    assert True in sides and False in sides  # no name is always on the left
    with pytest.raises(I2IError, match="1 to 6 pairs"):
        choice_pairs(torch.zeros(3, 8, 8), dict.fromkeys("wxyz", torch.zeros(3, 8, 8)), losses(), 7)


def test_agreement_counts_opinions(pairs):
    as_a = ["left" if pair.losses["A"][0] > pair.losses["A"][1] else "right" for pair in pairs]
    found = agreement(pairs, as_a)
    assert found.loc["A"].tolist() == [6, 6] and found.loc["B"].tolist() == [0, 6]
    assert found.loc["same"].tolist() == found.loc["none"].tolist() == [0, 0]
    assert agreement([], []).empty


@pytest.mark.parametrize(
    ("left", "right", "tie", "told"),
    [
        (100.0, 100.5, 0.01, [0, 0]),
        (100.0, 100.5, 0.001, [1, 1]),
        (99.0, 100.0, 0.01, [0, 0]),  # the share is of the larger loss, and the bound itself a tie
        (98.9, 100.0, 0.01, [1, 1]),
        (-30.2, -30.0, 0.01, [0, 0]),  # scores of which the higher are better, as dB
        (-31.0, -30.0, 0.01, [1, 1]),
        (-0.1, 0.1, 0.5, [1, 1]),
        (5.0, 5.0, 0.0, [0, 0]),
        (5.0, math.nextafter(5.0, 6), 0.0, [1, 1]),
        (0.0, 0.0, 0.01, [0, 0]),
        (0.0, 1e-9, 0.01, [1, 1]),
        (-math.inf, -30.0, 0.01, [1, 1]),  # PSNR of an equal picture
        (-math.inf, -30.0, 0.0, [1, 1]),
        (-math.inf, -math.inf, 0.01, [0, 0]),
        (math.nan, 1.0, 0.01, [0, 0]),
        (1.0, math.nan, 0.0, [0, 0]),
    ],
)
def test_what_is_a_tie(left, right, tie, told):
    """Of pairs whose right side is worse, if there is a difference; and the same by exchanged sides."""
    here, there = (ChoicePair(None, None, None, ("a", "b"), {"A": two}) for two in ((left, right), (right, left)))
    assert agreement([here], ["right"], tie=tie).loc["A"].tolist() == told
    assert agreement([there], ["left"], tie=tie).loc["A"].tolist() == told
    assert agreement([here], ["left"], tie=tie).loc["A"].tolist() == [0, told[1]]


def test_agreement_of_pairs_with_different_metrics():
    pairs = [ChoicePair(None, None, None, ("a", "b"), losses) for losses in ({"A": (1, 2)}, {"A": (2, 1), "B": (2, 1)})]
    found = agreement(pairs, ["right", "right"])
    assert found.loc["A"].tolist() == [1, 2] and found.loc["B"].tolist() == [0, 1]


@pytest.mark.parametrize("tie", [-0.01, 1, math.nan])
def test_agreement_refuses_what_is_no_share(pairs, tie):
    with pytest.raises(I2IError, match="tie: expected a share from 0 to below 1"):
        agreement(pairs, ["left"] * 6, tie=tie)


@pytest.mark.parametrize("choices", [["left"], ["left"] * 5 + ["both"]])
def test_agreement_refuses(pairs, choices):
    with pytest.raises(I2IError, match="left or right, 6 times"):
        agreement(pairs, choices)


def test_the_game_tells_nothing_before_its_end(pairs):
    game = ForcedChoice(pairs)
    first = game.picture.value
    for number in range(6):
        assert game.result is None and f"Pair {number + 1} of 6" in game.told.value
        assert "agrees" not in game.told.value
        (game.left, game.right)[number % 2].click()
    assert game.choices == ["left", "right"] * 3 and game.left.disabled and game.right.disabled
    pd.testing.assert_frame_equal(game.result, agreement(pairs, game.choices))
    assert "Who agrees with you" in game.told.value and pairs[0].names[0] in game.told.value
    game.choose("left")  # the game is over
    assert len(game.choices) == 6
    game.back.click()
    assert len(game.choices) == 5 and game.result is None and not game.left.disabled
    game.again.click()
    assert game.choices == [] and game.picture.value == first and game.back.disabled


def test_the_game_refuses(pairs):
    with pytest.raises(I2IError, match="at least one"):
        ForcedChoice([])
    with pytest.raises(I2IError, match=r"left or right.*'both'"):
        ForcedChoice(pairs).choose("both")


@pytest.mark.parametrize(
    "make", [lambda photos, pairs: metric_explorer(photos), lambda photos, pairs: ForcedChoice(pairs)]
)
def test_a_page_without_front_end_shows_the_picture(photos, pairs, make):
    widget = make(photos, pairs)
    bundle, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    shown = Image.open(io.BytesIO(base64.b64decode(bundle["image/jpeg"])))
    assert shown.size == Image.open(io.BytesIO(widget.picture.value)).size
