"""The view of the card against what must hold for any card; the widget driven from Python without a front end."""

import dataclasses

import matplotlib
import pytest

matplotlib.use("Agg")

from i2ilib import I2IError, widgets
from i2ilib.deploy import zoo
from i2ilib.deploy.cycles import U50, estimate
from i2ilib.widgets.u50 import BANKS


def test_the_card_as_sold_is_the_papers_network_on_the_u50():
    view, whole = widgets.u50_view(), estimate(zoo.traced(zoo.PIX2PIX))
    assert view.estimate.cycles == whole.cycles and view.pipeline == view.sold == whole.pipeline(3)
    assert sum(view.bounds.values()) == pytest.approx(1) and "none" not in view.bounds


def test_every_knob_does_what_physics_says():
    sold = widgets.u50_view()
    assert widgets.u50_view(mhz=600.0).pipeline.fps == pytest.approx(2 * sold.pipeline.fps)
    assert widgets.u50_view(engines=6).pipeline.fps == pytest.approx(2 * sold.pipeline.fps)
    assert widgets.u50_view(engines=6).pipeline.latency_ms == pytest.approx(sold.pipeline.latency_ms)
    assert widgets.u50_view(jobs=6).pipeline.latency_ms == pytest.approx(2 * sold.pipeline.latency_ms)
    moved = [widgets.u50_view(bank_words=words).estimate for words in (0, *BANKS)]
    traffic = [sum(cost.load + cost.save for cost in found.layers) for found in moved]
    assert traffic == sorted(traffic, reverse=True) and traffic[0] > 3 * traffic[-1] > 0  # input and output remain
    half = widgets.u50_view(width=32)
    assert half.sold == half.pipeline and 2 < half.pipeline.fps / sold.pipeline.fps < 4


def test_every_control_of_the_widget():
    widget = widgets.u50_widget()
    assert widget.view == widgets.u50_view() and bytes(widget.picture.value).startswith(b"\x89PNG")
    seen = {bytes(widget.picture.value)}
    settings = {"width": 32, "mhz": 450, "engines": 4, "bank_words": BANKS[0], "jobs": 2}
    for name, value in settings.items():
        control = getattr(widget, name)
        control.value = value
        assert not control.continuous_update
        seen.add(bytes(widget.picture.value))
    assert len(seen) == 6
    assert widget.view == widgets.u50_view(**settings)
    target = dataclasses.replace(widget.view.estimate.target, name=U50.name)
    assert target == dataclasses.replace(U50, mhz=450, engines=(4, 4), bank_words=BANKS[0])
    assert "with 2 in flight" in widget.view.caption and "modelled" in widget.view.caption


@pytest.mark.parametrize(
    ("change", "words"),
    [({"width": 0}, "width"), ({"mhz": 0}, "positive"), ({"engines": 0}, "positive"), ({"jobs": 0}, "jobs")],
)
def test_what_makes_no_card_is_refused(change, words):
    with pytest.raises(I2IError, match=words):
        widgets.u50_view(**change)


def test_sizes_of_banks_are_whole_thousands():
    labels = [label for label, _ in widgets.u50_widget().bank_words.options]
    assert labels == ["8 K", "16 K", "32 K", "64 K", "128 K", "256 K", "512 K"]
    assert all(isinstance(words, int) for words in BANKS)
