"""Figures of metrics hold the numbers they were given."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")

from i2ilib import I2IError, plots
from i2ilib.metrics import Paired
from i2ilib.plots import metrics as figures
from i2ilib.widgets import ChoicePair


@pytest.fixture(autouse=True)
def house_style():
    plots.style()


def test_pictures_have_their_names_and_captions():
    images = {f"picture {k}": torch.full((3, 4, 5), k / 10) for k in range(5)}
    figure = figures.pictures(images, {"picture 0": "20 dB"})
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title(loc="left") for ax in shown] == list(images)
    assert [ax.get_xlabel() for ax in shown][:2] == ["20 dB", ""]
    assert float(shown[3].images[0].get_array()[0, 0, 0]) == pytest.approx(0.3)
    assert len(figure.axes) == 8 and not figure.axes[-1].axison
    with pytest.raises(I2IError, match="at least one"):
        figures.pictures({})


def test_rank_lines_draw_every_rank_and_name_both_ends():
    ranks = pd.DataFrame({"SSIM": [1.0, 2, 3], "FLIP": [3.0, 1, 2]}, index=["blur", "noise", "bands"])
    (ax,) = figures.rank_lines(ranks).axes
    assert [line.get_ydata().tolist() for line in ax.lines] == ranks.to_numpy().tolist()
    assert sorted(text.get_text() for text in ax.texts) == sorted([*ranks.index] * 2)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the best on top
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ax.lines}) == 3


def test_ladders_clip_to_what_was_tried():
    table = pd.DataFrame({"PSNR": [0.1, 4.0], "SSIM": [2.0, 900.0]}, index=[0.5, 2.0])
    figure = figures.ladders({"blur": table, "shift": table}, {"blur": "pixels", "shift": "px"}, (0.5, 128))
    blur, shift, legend = figure.axes[:3]
    assert [line.get_ydata().tolist() for line in blur.lines] == [[0.5, 4.0], [2.0, 128.0]]
    assert [tick.get_text() for tick in blur.get_xticklabels()] == ["0.5", "2"]
    assert (blur.get_xlabel(), shift.get_xlabel()) == ("pixels", "px")
    assert [text.get_text() for text in legend.get_legend().get_texts()] == ["PSNR", "SSIM"]


def test_intervals_show_certainty():
    rows = {"a − b": {"VMAF": Paired(2.0, 1.0, 3.0, 9)}, "c − b": {"VMAF": Paired(0.2, -1.0, 1.5, 9)}}
    (ax,) = figures.intervals(rows, {"VMAF": "points"}).axes
    bars = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 3]
    assert [
        line.get_xdata().tolist() if hasattr(line.get_xdata(), "tolist") else list(line.get_xdata()) for line in bars
    ] == [
        [1.0, 3.0],
        [-1.0, 1.5],
    ]
    assert bars[0].get_color() != bars[1].get_color()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(rows) and ax.get_xlabel() == "points"


def test_game_shows_both_sides():
    black, white = torch.zeros(3, 8, 8), torch.ones(3, 8, 8)
    pair = ChoicePair(black, black, white, ("a", "b"), {})
    figure = figures.game([pair] * 3, columns=2)
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.images] == [
        f"pair {k}: left, right" for k in (1, 2, 3)
    ]
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown[:, :8].max() == 0 and shown[:, -8:].min() == 1


def test_flicker_shows_signed_errors_on_one_scale():
    stays = torch.full((3, 1, 6, 9), 0.1)
    jumps = stays * torch.tensor([1.0, -2.0, 1.0]).view(3, 1, 1, 1)
    scores = {"MSE": {"stays": [0.01] * 3, "jumps": [0.01, 0.04, 0.01]}}
    figure = figures.flicker({"stays": stays, "jumps": jumps}, scores, frames=3)
    shown = [ax for ax in figure.axes if ax.images][:6]
    assert all(ax.images[0].get_clim() == pytest.approx((-0.2, 0.2)) for ax in shown)
    np.testing.assert_allclose(shown[4].images[0].get_array(), -0.2)
    (below,) = [ax for ax in figure.axes if ax.get_title(loc="left") == "MSE"]
    assert [list(line.get_ydata()) for line in below.lines] == list(scores["MSE"].values())


def test_similarity_maps_share_a_scale():
    figure = figures.similarity_maps({"a": np.ones((4, 6)), "b": np.zeros((4, 6))})
    first, second = figure.axes[:2]
    assert first.images[0].get_array().max() == 0 and second.images[0].get_array().min() == 1
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 1)
