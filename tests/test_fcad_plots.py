"""What the figures of accelerators show is what they were given: stages, arrows, shares, differences, fronts."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from fcad_decoder import decoder_space
from matplotlib.patches import PathPatch, Rectangle

from i2ilib import I2IError
from i2ilib.fcad import Budget, Config, DesignSpace, evaluate
from i2ilib.fcad.construct import Pipeline
from i2ilib.fcad.pareto import Fronts
from i2ilib.fcad.simulate import BranchActivity, Simulation, StageActivity
from i2ilib.plots import fcad

SPACE = decoder_space()
ROWS = (  # the paper's case 1, as reconstructed from its table
    "1x2x1 4x4x1 8x4x1 8x8x1 16x8x1 16x4x1",
    "1x2x1 2x2x1 4x2x1 8x4x1 16x8x1 16x8x1 16x8x1 4x1x1",
    "16x2x1",
)
CASE_1 = Config(
    SPACE, tuple(tuple(tuple(map(int, part.split("x"))) for part in row.split()) for row in ROWS), (1, 2, 2)
)
Z7045 = Budget(900, 1090, name="Z7045")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def boxes(ax):
    """Width and height of the filled part of every box, in the order of the stages."""
    return [(p.get_width(), p.get_height()) for p in ax.patches if isinstance(p, Rectangle) and p.get_zorder() == 3.2]


def arrows(ax):
    """Where the arrows into stages start and end: ((x, y), (x, y))."""
    return [(text.xyann, text.xy) for text in ax.texts if getattr(text, "arrow_patch", None)]


def test_pipelines_draw_every_stage_of_a_space_by_its_work():
    ax = fcad.pipelines(SPACE, title="decoder").axes[0]
    areas = np.array(boxes(ax)).prod(axis=1)
    macs = np.array([stage.macs for pipeline in SPACE.pipelines for stage in pipeline.stages])
    drawn = areas > 0.07**2 * 1.001  # the smallest are no smaller than a point
    assert drawn.sum() == 13 and np.allclose(areas[drawn] / areas.max(), macs[drawn] / macs.max())
    said = texts(ax)
    assert {"geometry", "texture", "warp"} <= set(said) and said.count("×2") == 12
    assert "4→128\n8²" in said and "16→3\n1024²" in said
    assert "area: multiplications" in [text.get_text() for text in ax.figure.legends[0].get_texts()]


def test_pipelines_fork_where_branches_part():
    ax = fcad.pipelines(SPACE).axes[0]
    (fork,) = [line for line in ax.lines if line.get_marker() == "o"]
    column, row = (float(np.ravel(v)[0]) for v in (fork.get_xdata(), fork.get_ydata()))
    assert 4 < column < 5  # behind the fifth stage
    starts = [start for start, _ in arrows(ax) if start[0] == column]
    assert len(starts) == 1 and starts[0][1] < row  # from there down to the third row
    assert len(arrows(ax)) == 15 + 3  # into every stage, and three results
    without = dataclasses.replace(SPACE, pipelines=SPACE.pipelines[:2])
    assert not [line for line in fcad.pipelines(without).axes[0].lines if line.get_marker() == "o"]


def test_pipelines_show_a_configuration():
    ax, found = fcad.pipelines(CASE_1).axes[0], evaluate(CASE_1)
    sizes = np.array(boxes(ax))
    dsp = np.array([n for branch in found.branches for n in branch.stage_dsp])
    paces = [max(branch.cycles) for branch in found.branches[:2]]  # the warp field waits for the texture
    paces.append(paces[1])
    busy = np.array([n / pace for branch, pace in zip(found.branches, paces, strict=True) for n in branch.cycles])
    assert np.allclose((sizes[:, 0] / sizes[:, 0].max()) ** 2, dsp / dsp.max())
    assert np.allclose(sizes[:, 1] / sizes[:, 0], busy)
    said = texts(ax)
    assert "texture: 30.5 FPS, 500 DSP, 551 BRAM" in said and "64→16\n256²\n16×8×1" in said
    assert "warp: 30.5 of 61.0 FPS, 38 DSP, 112 BRAM" in said


def test_pipelines_of_a_network_with_skips():
    skips = [(), (0,), (1,), (2,), (3, 1), (4, 0)]  # a U-Net of six
    stages = tuple(
        dataclasses.replace(SPACE.pipelines[0].stages[2], name=f"s{i}", sources=tuple((0, s) for s in sources))
        for i, sources in enumerate(skips)
    )
    ax = fcad.pipelines(DesignSpace((Pipeline("matte", stages),))).axes[0]
    arcs = [patch for patch in ax.patches if isinstance(patch, PathPatch)]
    ends = sorted((arc.get_path().vertices[0][0], arc.get_path().vertices[-1][0]) for arc in arcs)
    assert ends == [(0.0, 5.0), (1.0, 4.0)]
    tops = [arc.get_path().vertices[:, 1].max() for arc in sorted(arcs, key=lambda arc: arc.get_path().vertices[0][0])]
    assert tops[0] > tops[1]  # the longer one above


def test_occupancy_adds_up_by_branch():
    found = evaluate(CASE_1)
    figure = fcad.occupancy({"ours": found, "again": found}, {"ours": Z7045, "again": Budget(450, 545)})
    dsp, bram, bandwidth = figure.axes
    widths = [bar.get_width() for bar in dsp.patches]
    assert widths == pytest.approx([199 / 900, 500 / 900, 38 / 900, 199 / 450, 500 / 450, 38 / 450])
    assert texts(dsp) == ["737", "737"] and texts(bram) == ["884", "884"]
    assert sum(bar.get_width() for bar in bandwidth.patches[:3]) == pytest.approx(found.bandwidth / Z7045.bandwidth)
    limit = [line.get_color() for line in dsp.lines]
    assert limit == [fcad.RED]  # one of them does not fit
    fits = fcad.occupancy({"ours": found}, Z7045, title="case 1")
    assert [line.get_color() for line in fits.axes[0].lines] == [fcad.INK]
    assert [t.get_text() for t in fits.legends[0].get_texts()] == ["geometry", "texture", "warp"]


def test_latency_outlines_what_cannot_become_faster():
    schemes = {"small": [8.0, 8.0, 2.0], "large": [2.0, 4.0, 2.0]}
    ax = fcad.latency(schemes, ["a", "b", "c"], floors=[1.0, 4.0, 0.5]).axes[0]
    solid = [bar.get_height() for bar in ax.patches if bar.get_facecolor()[3] > 0]
    outlined = [(bar.get_x() > 1, bar.get_height()) for bar in ax.patches if bar.get_facecolor()[3] == 0]
    assert solid == [8.0, 8.0, 2.0, 2.0, 4.0, 2.0] and outlined == [(True, 4.0)]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["small: 125.0 FPS", "large: 250.0 FPS", "at its largest parallelism"]
    assert len(fcad.latency(schemes, ["a", "b", "c"]).axes[0].get_legend().get_texts()) == 2


def test_comparison_writes_only_differences_that_print():
    table = pd.DataFrame(
        [("a", "FPS", 61.0, 61.035, 1), ("b", "FPS", 61.0, 61.06, 1), ("a", "DSP", 382, 396, 0)],
        columns=["row", "quantity", "paper", "ours", "digits"],
    )
    fps, dsp = fcad.comparison(table, title="t").axes
    assert texts(fps) == ["+0.1"] and texts(dsp) == ["+14"]
    assert [line.get_xdata().tolist() for line in fps.lines] == [[61.0, 61.0], [61.035, 61.06]]
    assert [label.get_text() for label in fps.get_yticklabels()] == ["a", "b"]


def test_histories_tell_who_reached_the_optimum():
    runs = {"case": [[-np.inf, 1.0, 3.0], [2.0, 2.0, 2.0]], "other": [[-np.inf] * 3]}
    figure = fcad.histories(runs, {"case": 3.0, "other": 5.0})
    left, right = figure.axes
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in (left, right)]  # where the house style puts them
    assert titles == ["case\n1 of 2 seeds", "other\n0 of 1 seeds"]
    first, second, optimum = left.lines
    assert (first.get_color(), second.get_color()) == (fcad.BLUE, fcad.RED)
    assert np.isnan(first.get_ydata()[0]) and first.get_ydata()[1:].tolist() == [1.0, 3.0]
    assert optimum.get_ydata() == [3.0, 3.0] and left.get_ylim()[0] < 1 < 3 < left.get_ylim()[1]
    three = fcad.histories(dict.fromkeys("abc", runs["case"]), dict.fromkeys("abc", 3.0), columns=2)
    assert [ax.axison for ax in three.axes] == [True, True, True, False]


def test_priorities_fill_a_triangle():
    grid = [(i, j, 4 - i - j) for i in range(5) for j in range(5 - i)]
    table = pd.DataFrame(grid, columns=["a", "b", "c"]).assign(won=["x" if g[0] > 2 else "y" for g in grid])
    ax = fcad.priorities(table, "won", corners=["a", "b", "c"]).axes[0]
    points = {c.get_label(): c.get_offsets() for c in ax.collections}
    assert {name.split()[0]: len(p) for name, p in points.items()} == {"y": 12, "x": 3}
    xs = next(p for name, p in points.items() if name.startswith("x"))
    assert xs[:, 0].max() <= 0.25 + 1e-9  # near corner a, which is at the origin
    assert texts(ax) == ["a", "b", "c"]


def test_fronts_are_staircases_of_the_best():
    found = evaluate(CASE_1)
    cloud = Fronts(np.array([10.0, 20.0, 15.0, 40.0]), np.array([5, 8, 9, 20]), np.array([1, 2, 3, 4]), np.full(4, 1e9))
    figure = fcad.fronts({"powers": cloud}, marks={"case 1": found}, budget=Budget(30, 9, 5e9, "chip"), title="t")
    dsp, bram, bandwidth = figure.axes
    assert dsp.lines[0].get_xdata().tolist() == [5, 8, 20] and dsp.lines[0].get_ydata().tolist() == [10.0, 20.0, 40.0]
    assert bandwidth.lines[0].get_xdata().tolist() == [1.0] and bandwidth.lines[0].get_ydata().tolist() == [40.0]
    (star,) = [line for line in bram.lines if line.get_marker() == "*"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (884, pytest.approx(30.5176 / 2)) and "case 1" in texts(bram)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["powers", "paper", "budget: chip"]
    assert texts(dsp)[-2:] == [" 90 Hz", " 120 Hz"] and dsp.get_ylim()[1] > 120
    alone = fcad.fronts({"powers": cloud}, objective="slowest", refresh=()).axes[0]
    assert alone.get_ylim()[1] < 50 and "slowest" in alone.get_ylabel()


def test_overview_places_the_design_before_its_front():
    curve = Fronts(np.array([10.0, 15.0]), np.array([500, 700]), np.array([1, 2]), np.full(2, 1e9))
    figure = fcad.overview(CASE_1, Z7045, curves={"powers": curve}, title="one line")
    picture, bars, front = figure.axes
    assert "texture: 30.5 FPS, 500 DSP, 551 BRAM" in texts(picture) and len(boxes(picture)) == 15
    assert [bar.get_width() for bar in bars.patches[:3]] == pytest.approx([199 / 900, 500 / 900, 38 / 900])
    (point,) = [line for line in front.lines if line.get_marker() == "o"]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (737, pytest.approx(30.5176 / 2))
    assert front.lines[0].get_xdata().tolist() == [500, 700] and front.lines[0].get_label() == "powers"
    assert "one line" in [text.get_text() for text in figure.texts]
    assert front.get_ylabel() == "stereo pairs a second"
    alone = dataclasses.replace(CASE_1, batch=(1, 1, 1))  # no pairs: a frame of each
    assert fcad.overview(alone, Z7045).axes[2].get_ylabel().startswith("FPS")
    plain = fcad.overview(CASE_1, Z7045, objective="slowest").axes[2]
    assert plain.get_ylabel().startswith("FPS") and plain.get_ylim()[1] > 30.5


def test_timeline_draws_work_and_what_stages_wait_for():
    stages = tuple(
        StageActivity(name, branch, kind, *times, 0, 3, 3, 1, 0, np.array(starts), np.array(starts) + 10)
        for name, branch, kind, times, starts in (
            ("a1", "a", "conv", (50, 25, 25, 0), [0, 10, 40, 50]),
            ("a1", "a", "upsample", (1, 99, 0, 0), [10, 20, 50, 60]),
            ("a2", "a", "conv", (20, 0, 0, 80), [20, 40, 60, 80]),
        )
    )
    branch = BranchActivity("a", 1, 1.0, 40.0, 30, 50, 90, np.array([50, 90]))
    simulation = Simulation((branch,), stages, 100, 0, 1e9, 1e6)
    left, right = fcad.timeline(simulation, title="t").axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a 1", "a 2"]  # only what multiplies
    spans = [sorted(path.get_extents().x0 for path in part.get_paths()) for part in left.collections]
    assert np.allclose(spans[0], [0]) and np.allclose(spans[1], [0.04]) and np.allclose(spans[2], [0.02, 0.04])
    assert [bar.get_width() for bar in right.patches] == pytest.approx([0.5, 0.25, 0.25, 0, 0.2, 0, 0, 0.8])
    assert left.get_xlim() == (0, pytest.approx(0.09))
    assert fcad.timeline(simulation, frames=1).axes[0].get_xlim()[1] == pytest.approx(0.05)
    with pytest.raises(I2IError, match="frames: expected 1 to 2"):
        fcad.timeline(simulation, frames=3)


def test_agreement_shows_the_models_error():
    table = pd.DataFrame({"modelled": [101.0, 97.0], "simulated": [100.0, 100.0]}, index=["a", "b"])
    ax = fcad.agreement(table, paper={"paper, largest": 2.89}).axes[0]
    assert [bar.get_height() for bar in ax.patches if bar.get_zorder() == 2] == pytest.approx([1.0, -3.0])
    assert texts(ax) == ["+1.00", "−3.00"]
    assert ax.get_legend().get_texts()[0].get_text() == "paper, largest: ±2.89 %"
    assert len(fcad.agreement(table).axes[0].get_legend().get_texts()) == 1


def test_what_cannot_be_drawn():
    frame = pd.DataFrame({"a": [1]})
    for draw in (
        lambda: fcad.occupancy({}, Z7045),
        lambda: fcad.occupancy({"a": evaluate(CASE_1)}, {"b": Z7045}),
        lambda: fcad.latency({}, ["a"]),
        lambda: fcad.latency({"s": [1.0]}, ["a", "b"]),
        lambda: fcad.comparison(frame),
        lambda: fcad.histories({}, {}),
        lambda: fcad.histories({"a": []}, {"a": 1.0}),
        lambda: fcad.histories({"a": [[1.0]]}, {}),
        lambda: fcad.priorities(frame, "a", corners=["a"]),
        lambda: fcad.priorities(frame, "w", corners=["a", "b", "c"]),
        lambda: fcad.fronts({}),
        lambda: fcad.fronts({"a": Fronts(*(np.zeros(0),) * 4)}),
        lambda: fcad.fronts({"a": Fronts(*(np.ones(1),) * 4)}, objective="mean"),
        lambda: fcad.agreement(frame),
    ):
        with pytest.raises(I2IError, match=r"expected .*, got"):
            draw()
