"""What the figures show is what they were given: every value, its origin, and what nobody measured."""

import numpy as np
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


def test_plane_shows_values_origins_and_what_is_in_flight():
    figure = deployment.plane(ROWS, held=(1, 9), title="t")
    (ax,) = figure.axes
    said = texts(ax)
    assert {"1 in flight", "9 in flight"} <= set(said)
    assert said[-4:] == [
        "model: 20 ms, 400 / s", "card: 23.1 ms, 394 / s", "engine: 5 ms, 200 / s", "eager: 100 ms, 10 / s"
    ]  # fmt: skip
    points = {line.get_xydata()[0].tolist()[0]: line for line in ax.lines if len(line.get_xydata()) == 1}
    assert sorted(points) == [5.0, 20.0, 23.1, 100.0] and len({line.get_marker() for line in points.values()}) == 3
    for number, line in zip((1, 9), ax.lines, strict=False):  # the diagonals come first
        assert np.allclose(np.prod(line.get_data(), axis=0) / 1e3, number)
    bars = [list(line.get_xdata()) for line in ax.lines[2:] if len(line.get_xydata()) == 2]
    assert bars == [[4.8, 6.0], [95.0, 130.0]]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["measured", "modelled", "paper"]


def row(ms, low, high, **more):
    return {"ms_per_patch": ms, "p5": low, "p95": high, **more}


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
    assert texts(alone.axes[1]) == ["×1"] and "ratio of the medians" in alone.axes[1].get_xlabel()


def test_machines_show_the_spread_of_paired_ratios():
    same = {"speedup": 1.0, "speedup_p5": 1.0, "speedup_p95": 1.0}
    faster = {"speedup": 21.0, "speedup_p5": 15.0, "speedup_p95": 25.0}
    runs = {"eager": {"here": row(80.0, 70.0, 90.0, **same)}, "engine": {"here": row(4.0, 3.0, 5.0, **faster)}}
    right = deployment.machines(runs, peer="eager").axes[1]
    assert texts(right) == ["×1", "×21"] and "ratio of the rounds" in right.get_xlabel()
    assert [15.0, 25.0] in [list(line.get_xdata()) for line in right.lines]


def test_producer_says_what_was_not_measured():
    def points(ax):
        return [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]

    left, right = deployment.producer(ROWS).axes
    assert points(left) == pytest.approx([row.patches_per_s / 120 for row in ROWS])
    assert points(right) == pytest.approx([0.5 * 120, 0.07 * 120])
    assert texts(right) == ["60", "8.4", "not measured", "not measured"]
    spread = left.lines[0].get_xdata()
    assert list(spread) == pytest.approx([10 / 120 * 100 / 130, 10 / 120 * 100 / 95])  # slow is few frames
    nothing = deployment.producer(ROWS[:1], height=1080, width=1920)
    assert texts(nothing.axes[1]) == ["not measured"] and not points(nothing.axes[1])
    assert points(nothing.axes[0])[0] == pytest.approx(10 / frame_patches(1080, 1920))
    (over,) = left.child_axes
    left.figure.canvas.draw()
    assert over.get_xlabel() == "hours for a film of 90 minutes"
    assert over.get_xlim() == pytest.approx(sorted(90 * 60 * 24 / x / 3600 for x in left.get_xlim()))


def test_roofline_shows_every_convolution_and_the_whole():
    runs = {
        "int8": [Point("a", 4 * 10**8, 10**6, "int8", 1.0), Point("b", 10**6, 10**6, "int8", 0.5)],
        "bf16": [Point("a", 4 * 10**8, 2 * 10**6, "bf16", 2.0), Point("b", 10**6, 4 * 10**6, "float32", 1.0)],
    }
    figure = deployment.roofline(MACHINE, runs, title="a network")
    for ax, (precision, points) in zip(figure.axes, runs.items(), strict=True):  # a panel each
        drawn = sorted(x for dots in ax.collections for xy in dots.get_offsets() for x in xy)
        assert drawn == pytest.approx(sorted(x for p in points for x in (p.intensity, p.gmacs)))
        assert (ax.get_title(loc="left") or ax.get_title()).startswith(f"{precision} asked for")
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]
    assert titles == [
        "int8 asked for, 2 of 2 ran in it\nroof 1000, whole 267 GMAC/s",
        "bf16 asked for, 1 of 2 ran in it\nroof 400, whole 134 GMAC/s",
    ]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "from memory, 20 GB/s" in legend and "a convolution that ran in another precision" in legend
    assert len(deployment.roofline(MACHINE, {"int8": runs["int8"]}).legends[0].get_texts()) == 4


def test_bandwidth_and_sweep():
    ax = deployment.bandwidth(MACHINE).axes[0]
    line = ax.lines[0]
    assert ax.get_ylabel() == "GB/s (measured)"
    assert line.get_xydata().tolist() == [[1.0, 120.0], [1024.0, 20.0]]
    cells = {(b, s): {"patches_per_s": 10.0 * b * s, "latency_ms": 5.0 * b} for b in (1, 4) for s in (1, 2)}
    left, right = deployment.sweep({**cells, (2, 1): {"patches_per_s": 7.0, "latency_ms": 3.0}}).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[10.0, 7.0, 40.0], [20.0, 80.0]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[5.0, 3.0, 20.0], [5.0, 20.0]]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["1 stream", "2 streams"]
    spread = {"patches_per_s_spread": (9.0, 12.0), "latency_ms_spread": (4.0, 7.0)}
    left, right = deployment.sweep({(1, 1): cells[1, 1] | spread}).axes
    assert [list(ax.lines[1].get_ydata()) for ax in (left, right)] == [[9.0, 12.0], [4.0, 7.0]]


def test_what_cannot_be_drawn():
    for draw in (deployment.plane, deployment.producer):
        with pytest.raises(I2IError, match="rows: expected at least one target"):
            draw([])
        with pytest.raises(I2IError, match=r"origin: expected measured or .* got 'guessed'"):
            draw([Row("a", "guessed", 1.0, 1.0)])
    with pytest.raises(I2IError, match="runs: expected at least one target of a machine"):
        deployment.machines({"eager": {}}, peer="eager")
    with pytest.raises(I2IError, match="peer: expected a row of 'eager' for every machine, got none for b"):
        deployment.machines({"eager": {"a": row(1.0, 1.0, 1.0)}, "x": {"b": row(1.0, 1.0, 1.0)}}, peer="eager")
    for runs in ({}, {"int8": []}, {"int4": [Point("a", 1, 1, "int8", 1.0)]}):
        with pytest.raises(I2IError, match="runs: expected points by"):
            deployment.roofline(MACHINE, runs)
    with pytest.raises(I2IError, match="cells: expected at least one"):
        deployment.sweep({})


def test_labels_keep_apart_and_near():
    assert deployment._apart([0.9, 0.89, 0.3], 0.1) == pytest.approx([0.9, 0.8, 0.3])
    assert deployment._apart([0.5, 0.01, 0.0], 0.1) == pytest.approx([0.5, 0.13, 0.03])


def test_figures_are_read_in_three_digits():
    assert [deployment._figure(x) for x in (0.02914, 3.14159, 94.8, 1104, 2243.2)] == [
        "0.0291", "3.14", "94.8", "1100", "2240"
    ]  # fmt: skip
