"""The view of a design space against the paper's table and the library; the widget driven without a front end."""

import dataclasses
import io

import matplotlib
import pytest
from PIL import Image

matplotlib.use("Agg")

from fcad_decoder import decoder_space

from i2ilib import I2IError
from i2ilib.fcad import PLATFORMS, Budget
from i2ilib.fcad.pareto import fastest, value
from i2ilib.fcad.search import search
from i2ilib.widgets.fcad import OWN, _curves, fcad_explorer, fcad_picture, fcad_view

SPACE, BATCH = decoder_space(), (1, 2, 2)


def test_the_view_finds_the_papers_best_design():
    view = fcad_view(SPACE, batch=BATCH)  # ZU9CG at 8 bits: case 4 of Table IV
    found = view.found.evaluation
    assert [round(fps, 1) for fps in found.fps] == [122.1, 122.1, 122.1] and (found.dsp, found.bram) == (2229, 1168)
    assert view.reached and view.caption == "122.1 / 122.1 / 122.1 FPS, 8 bits (modelled; the optimum of the space)"
    assert view.found.config == search(SPACE, PLATFORMS["ZU9CG"], None, BATCH).config


def test_the_view_passes_every_argument_on():
    assert fcad_view(SPACE, PLATFORMS["ZU17EG"], batch=BATCH, bits=16).found.config.space.bits == 16
    small = Budget(1000, 1900)
    rates = [fcad_view(SPACE, small, batch=BATCH, bits=16, priorities=p).best.evaluation.fps for p in (None, (0, 9, 0))]
    assert rates[1][1] > rates[0][1]
    assert fcad_view(SPACE, PLATFORMS["ZU17EG"]).found.config.batch == (1, 1, 1)
    seeds = {fcad_view(SPACE, PLATFORMS["ZU17EG"], batch=BATCH, seed=seed).found.shares.tobytes() for seed in range(3)}
    assert len(seeds) > 1


def test_a_miss_names_the_optimum():
    view = fcad_view(SPACE, PLATFORMS["Z7045"], batch=BATCH)
    worse = fcad_view(SPACE, Budget(300, 1090), batch=BATCH).found
    miss = dataclasses.replace(view, found=worse)
    assert "61.0 / 30.5 / 61.0 FPS, delivered 61.0 / 30.5 / 30.5, 8 bits" in view.caption  # as the simulation shows
    assert view.reached and not miss.reached and "the optimum: 61.0 / 30.5 / 61.0)" in miss.caption
    alone = dataclasses.replace(view, best=None)
    assert not alone.reached and "optimum unknown" in alone.caption


def test_nothing_fits_is_an_answer():
    view = fcad_view(SPACE, PLATFORMS["Z7045"], bits=16, batch=BATCH)
    assert view.found is view.best is None and not view.reached
    assert "short of 18-Kb BRAMs" in view.reason and view.caption == view.reason
    with pytest.raises(I2IError, match=r"view: expected a design, got budget Z7045"):
        fcad_picture(view)


def test_the_fronts_hold_the_fastest_design():
    pairs = value(fastest(SPACE, PLATFORMS["ZU9CG"], BATCH, factors="powers", objective="pairs"), "pairs")
    curves = _curves(SPACE, BATCH, pairs)
    for curve in curves.values():
        assert (abs(curve.rate / pairs - 1) < 1e-6).any()
        fits = (curve.dsp <= 2520) & (curve.bram <= 1824)
        assert curve.rate[fits].max() >= pairs * (1 - 1e-6)
    powers = curves["powers of two"]
    assert powers.rate[(powers.dsp <= 2520) & (powers.bram <= 1824)].max() == pytest.approx(pairs)


def test_every_control_of_the_widget():
    widget = fcad_explorer(SPACE, batch=BATCH)
    assert widget.view.found.config == fcad_view(SPACE, batch=BATCH).found.config and not widget.message.value
    seen = {bytes(widget.picture.value)}
    assert Image.open(io.BytesIO(widget.picture.value)).format == "PNG"
    controls = [
        (widget.platform, "ZU17EG"), (widget.bits, 16), (widget.dsp, 1000), (widget.bram, 1900), (widget.gbytes, 25.6),
        (widget.priorities[0], 4.0), (widget.batch[0], 2),
    ]  # fmt: skip
    for control, setting in controls:
        control.value = setting
        seen.add(bytes(widget.picture.value))
    assert len(seen) == 1 + len(controls)
    assert widget.platform.value == OWN
    assert widget.view.budget == Budget(1000, 1900, 25.6 * 8e9)
    assert (widget.view.space.bits, widget.view.batch, widget.view.priorities) == (16, (2, 2, 2), (4.0, 1.0, 1.0))
    widget.seed.value = 5
    expected = fcad_view(SPACE, widget.view.budget, bits=16, priorities=(4, 1, 1), batch=(2, 2, 2), seed=5)
    assert widget.view.found.config == expected.found.config and widget.view.found.history == expected.found.history
    assert not widget.dsp.continuous_update


def test_a_platform_sets_the_budget_and_leaves_it():
    widget = fcad_explorer(SPACE, platform="Z7045")
    assert (widget.dsp.value, widget.bram.value, widget.gbytes.value) == (900, 1090, 12.8)
    widget.platform.value = "KU115"
    assert (widget.dsp.value, widget.bram.value) == (5520, 4320) and widget.view.budget == PLATFORMS["KU115"]
    widget.dsp.value = 5000
    assert widget.platform.value == OWN and widget.view.budget.name == ""
    widget.platform.value = "KU115"
    assert widget.view.budget == PLATFORMS["KU115"]


def test_what_cannot_be_is_said_and_undone():
    widget = fcad_explorer(SPACE)
    widget.dsp.value = 30
    assert "Nothing fits" in widget.message.value and "short of DSPs" in widget.message.value
    assert widget.picture.value == b"" and widget.picture.layout.display == "none" and widget.view.found is None
    widget.dsp.value = 0
    assert "expected more than 0" in widget.message.value and widget.view is None
    widget.dsp.value = 900
    assert not widget.message.value and widget.picture.value and widget.picture.layout.display == ""


def test_no_such_platform():
    with pytest.raises(I2IError, match=r"platform: expected Z7045 or .* got 'Z80'"):
        fcad_explorer(SPACE, platform="Z80")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"bits": 4}, "bits"), ({"priorities": (1, 1)}, "priorities"), ({"batch": (0, 1, 1)}, "batch")],
)
def test_what_makes_no_problem_is_refused(change, words):
    with pytest.raises(I2IError, match=words):
        fcad_view(SPACE, **change)
