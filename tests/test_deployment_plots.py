"""What the figures show is what they were given: every value, its origin, and what nobody measured."""

import pytest

from i2ilib import I2IError
from i2ilib.deploy.energy import Energy
from i2ilib.deploy.roofline import Peaks, Point
from i2ilib.plots import deployment
from i2ilib.plots.deployment import Row, frame_patches

MACHINE = Peaks({"int8": 1000.0, "bf16": 400.0, "float32": 100.0}, {}, ((2**20, 120.0), (2**30, 20.0)), "a processor")
ROWS = [
    Row("eager", "measured", 10.0, 100.0, 95.0, 130.0),
    Row("engine", "measured", 200.0, 5.0, 4.8, 6.0, 0.5),
    Row("model", "modelled", 400.0, 20.0),
    Row("card", "paper", 394.0, 23.1, joules=0.07),
]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_row_from_a_timing():
    timed = {"ms_per_patch": 5.0, "p5": 4.0, "p95": 7.0, "patches_per_s": 200.0, "batch": 8, "origin": "measured"}
    assert Row.of("a", timed) == Row("a", "measured", 200.0, 40.0, 32.0, 56.0, None, "not asked")
    assert Row.of("a", timed, Energy(4.0)).joules == 0.5
    assert Row.of("a", timed, Energy(None, reason="no meter")).reason == "no meter"


def test_targets_show_values_ratios_and_origins():
    figure = deployment.targets(ROWS, peer="eager")
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [100.0, 5.0, 20.0, 23.1]
    assert texts(right)[1] == "200  (×20)" and texts(left) == ["100", "5", "20", "23.1"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["eager", "engine", "model", "card"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["measured", "modelled", "paper"]
    assert len({bar.get_hatch() for bar in right.patches}) == 3
    assert [line.get_xdata().tolist() for line in left.lines] == [[95.0, 130.0], [4.8, 6.0]]
    assert texts(deployment.targets(ROWS).axes[1])[1] == "200"


def row(ms, low, high):
    return {"ms_per_patch": ms, "p5": low, "p95": high}


def test_machines_show_every_row_beside_its_own_peer():
    runs = {
        "eager": {"one": row(80.0, 70.0, 90.0), "other": row(120.0, 110.0, 200.0)},
        "engine": {"one": row(4.0, 3.0, 5.0)},
        "integers": {"other": row(60.0, 50.0, 65.0)},
    }
    figure = deployment.machines(runs, peer="eager")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == list(runs)
    assert texts(left) == ["80", "120", "4", "60", "not run", "not run"]
    assert texts(right) == ["×1", "×1", "×20", "×2"]
    spread = [line.get_xdata().tolist() for line in left.lines if len(line.get_xdata()) == 2]
    assert spread == [[70.0, 90.0], [110.0, 200.0], [3.0, 5.0], [50.0, 65.0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "other"]
    assert len({line.get_marker() for line in left.lines} - {"None"}) == 2
    alone = deployment.machines({"eager": {"one": row(80.0, 70.0, 90.0)}}, peer="eager")
    assert texts(alone.axes[1]) == ["×1"]


def test_producer_says_what_was_not_measured():
    left, right = deployment.producer(ROWS).axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx([row.patches_per_s / 120 for row in ROWS])
    assert [bar.get_width() for bar in right.patches] == pytest.approx([0.5 * 120, 0.07 * 120])
    assert texts(right) == ["60", "8.4", "not measured", "not measured"]
    nothing = deployment.producer(ROWS[:1], height=1080, width=1920)
    assert texts(nothing.axes[1]) == ["not measured"] and not nothing.axes[1].patches
    assert nothing.axes[0].patches[0].get_width() == pytest.approx(10 / frame_patches(1080, 1920))


def test_roofline_shows_every_convolution_and_the_whole():
    runs = {
        "int8": [Point("a", 4 * 10**8, 10**6, "int8", 1.0), Point("b", 10**6, 10**6, "int8", 0.5)],
        "bf16": [Point("a", 4 * 10**8, 2 * 10**6, "bf16", 2.0), Point("b", 10**6, 4 * 10**6, "float32", 1.0)],
    }
    figure = deployment.roofline(MACHINE, runs, title="a network")
    (ax,) = figure.axes
    drawn = sorted(x for dots in ax.collections for xy in dots.get_offsets() for x in xy)
    assert drawn == pytest.approx(sorted(x for points in runs.values() for p in points for x in (p.intensity, p.gmacs)))
    assert texts(ax) == ["int8: 1000", "whole, int8: 267", "bf16: 400", "whole, bf16: 134"]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "from memory, 20 GB/s" in legend and "a convolution that ran in another precision" in legend
    assert len(deployment.roofline(MACHINE, {"int8": runs["int8"]}).axes[0].get_legend().get_texts()) == 4


def test_bandwidth_and_sweep():
    line = deployment.bandwidth(MACHINE).axes[0].lines[0]
    assert line.get_xydata().tolist() == [[1.0, 120.0], [1024.0, 20.0]]
    cells = {(b, s): {"patches_per_s": 10.0 * b * s, "latency_ms": 5.0 * b} for b in (1, 4) for s in (1, 2)}
    left, right = deployment.sweep({**cells, (2, 1): {"patches_per_s": 7.0, "latency_ms": 3.0}}).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[10.0, 7.0, 40.0], [20.0, 80.0]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[5.0, 3.0, 20.0], [5.0, 20.0]]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["1 stream", "2 streams"]


def test_what_cannot_be_drawn():
    for draw in (deployment.targets, deployment.producer):
        with pytest.raises(I2IError, match="rows: expected at least one target"):
            draw([])
        with pytest.raises(I2IError, match=r"origin: expected measured or .* got 'guessed'"):
            draw([Row("a", "guessed", 1.0, 1.0)])
    with pytest.raises(I2IError, match="peer: expected eager or engine"):
        deployment.targets(ROWS, peer="other")
    with pytest.raises(I2IError, match="runs: expected at least one target of a machine"):
        deployment.machines({"eager": {}}, peer="eager")
    with pytest.raises(I2IError, match="peer: expected a row of 'eager' for every machine, got none for b"):
        deployment.machines({"eager": {"a": row(1.0, 1.0, 1.0)}, "x": {"b": row(1.0, 1.0, 1.0)}}, peer="eager")
    for runs in ({}, {"int8": []}, {"int4": [Point("a", 1, 1, "int8", 1.0)]}):
        with pytest.raises(I2IError, match="runs: expected points by"):
            deployment.roofline(MACHINE, runs)
    with pytest.raises(I2IError, match="cells: expected at least one"):
        deployment.sweep({})


def test_figures_are_read_in_three_digits():
    assert [deployment._figure(x) for x in (0.02914, 3.14159, 94.8, 1104, 2243.2)] == [
        "0.0291", "3.14", "94.8", "1100", "2240"
    ]  # fmt: skip
