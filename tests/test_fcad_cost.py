"""The cost model against F-CAD's Table IV, and its forms against plain rational arithmetic."""

import dataclasses
import json
import subprocess
import sys
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from conftest import shared
from fcad_decoder import decoder_space

from i2ilib.errors import I2IError
from i2ilib.fcad import PLATFORMS, Budget, Config, DesignSpace, cost, evaluate, published
from i2ilib.fcad.construct import Pipeline, Stage
from i2ilib.fcad.platforms import asic, platform

ROWS = published.TABLE_4.to_dict("records")
WEIGHT_TRAFFIC = {1: 11.5, 2: 23.0, 3: 22.7, 4: 31.8, 5: 31.8}  # Gbit/s, of an independent computation


@pytest.fixture(scope="module")
def designs():
    return {case: evaluate(published.paper_design(decoder_space(), case)) for case in published.CASES}


def flat(bits=8, stages=1, **fields):
    """A design space of one pipeline of small stages."""
    stage = Stage("c", 8, 6, 12, 10, 12, 10, (3, 3), macs=8 * 6 * 9 * 120, ops=2 * 8 * 6 * 9 * 120, weights=432)
    stages = [dataclasses.replace(stage, sources=((0, n - 1),) if n else (), **fields) for n in range(stages)]
    return DesignSpace((Pipeline("p", tuple(stages)),), bits)


# --- Table IV ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"case{row['case']}-branch{row['branch']}")
def test_table_4(designs, row):
    branch = designs[row["case"]].branches[row["branch"] - 1]
    assert branch.dsp == row["dsp"]
    assert branch.batch == row["batch"]
    assert round(branch.fps, 1) == row["fps"]
    assert round(100 * branch.efficiency, 1) == row["efficiency_pct"]
    if row["precision_bits"] == 8:
        assert branch.bram == row["bram18"]
    else:
        assert branch.bram == pytest.approx(row["bram18"], rel=0.04)


def test_table_4_totals(designs):
    for case, rows in published.TABLE_4.groupby("case"):
        assert designs[case].dsp == rows.total_dsp_printed.iloc[0]
        assert designs[case].bram == pytest.approx(rows.bram18.sum(), rel=0.01)  # case 5's printed total is a slip
        budget = PLATFORMS[rows.device.iloc[0]]
        assert (budget.dsp, budget.bram) == (rows.dsp_budget.iloc[0], rows.bram18_budget.iloc[0])
        assert designs[case].fits(budget)


def test_16_bit_residuals_are_the_known_ones(designs):
    off = {(r["case"], r["branch"]): designs[r["case"]].branches[r["branch"] - 1].bram - r["bram18"] for r in ROWS}
    assert {key: value for key, value in off.items() if value} == {(3, 1): 14, (3, 2): -1, (5, 1): 14, (5, 2): -1}


def test_table_5_means_of_branches(designs):
    """F-CAD's efficiencies there are means of the branches' printed ones; Eq. 3 over the design gives others."""
    printed = published.TABLE_5.query("design == 'F-CAD'").efficiency_pct.tolist()
    branches = [[round(100 * branch.efficiency, 1) for branch in designs[case].branches] for case in (4, 5)]
    assert [round(sum(one) / 3, 1) for one in branches] == printed
    assert [round(100 * designs[case].efficiency, 1) for case in (4, 5)] == [94.3, 95.0]


def test_weight_traffic(designs):
    for case, expected in WEIGHT_TRAFFIC.items():
        config = published.paper_design(decoder_space(), case)
        total = 0.0
        for pipeline, factors in zip(config.space.pipelines, config.factors, strict=True):
            pairs = list(zip(pipeline.stages, factors, strict=True))
            longest = max(cost.cycles(stage, *f) for stage, f in pairs)
            total += (
                sum(cost.traffic(stage, *f, config.space.bits) * cost.cycles(stage, *f) for stage, f in pairs) / longest
            )
        assert round(total * config.space.frequency_hz / 1e9, 1) == expected
        assert designs[case].bandwidth / 1e9 > expected  # biases, inputs and outputs come on top
        assert designs[case].bandwidth / 1e9 < expected + 4 + 3.3


def test_rates_of_the_whole(designs):
    one = designs[1]
    assert one.slowest == one.fps[1]
    assert one.pairs_per_second == pytest.approx(200e6 / (8 * 1_638_400))
    assert [branch.delivered for branch in one.branches] == [one.fps[0], one.fps[1], one.fps[1]]  # fed by the slow one
    three = designs[3]
    assert [branch.delivered for branch in three.branches] == [three.fps[0], three.fps[2], three.fps[2]]  # held up
    assert [branch.delivered for branch in designs[4].branches] == list(designs[4].fps)


def test_table_of_an_evaluation(designs):
    table = designs[2].table()
    assert table.index.tolist() == ["geometry", "texture", "warp", "design"]
    assert table["DSP"].tolist() == [351, 936, 70, 1357]
    assert table["FPS"].iloc[-1] == designs[2].slowest


def test_stages_add_up(designs):
    for evaluation in designs.values():
        for branch in evaluation.branches:
            assert (sum(branch.stage_dsp), sum(branch.stage_bram)) == (branch.dsp, branch.bram)
            assert branch.fps == branch.batch * 200e6 / max(branch.cycles)


def test_printed_tables_are_copies():
    for number in (2, 4, 5):
        name = f"fcad_table{number}.csv"
        assert (published.DATA / "published" / name).read_bytes() == shared(f"facts/{name}").read_bytes()


# --- the forms ---------------------------------------------------------------------------------------------


def rational_blocks(ww, dw, wr, dr):
    """The block count with fractions for depths, step by step."""
    depths = {1: 16392, 2: 8192, 4: 4096, 9: 2048, 18: 1024, 36: 512}
    width, depth, n = max(ww, wr), min(Fraction(dw), Fraction(dr)), 0
    if width >= 72:
        n += 2 * (width // 72) * ceil(depth / 512)
        width %= 72
    if width >= 36:
        n += ceil(depth / 512)
        width -= 36
    return n + ceil(depth / depths[min(w for w in depths if w >= width)])


def rational_branch(stages, factors, bits, batch, widths):
    """BRAM of a stride 1 branch without pooling, from the formulas in fractions."""
    fixed = copies = 0
    for stage, (cpf, kpf, h), iw in zip(stages, factors, widths, strict=True):
        ci, co, k, height = stage.in_channels, stage.out_channels, stage.kernel[0], stage.height
        rows = height if h == 1 else ceil(Fraction(height, h)) + k - 1
        held = ceil(Fraction(ci * rows * (k + 1), iw))
        copies += h * rational_blocks(iw * bits, held, cpf * bits, Fraction(held * iw, cpf))
        if stage.upsample > 1:
            u = min(32, co)
            lines = co * height * 2
            copies += rational_blocks(kpf * bits, Fraction(lines, kpf), u * bits, Fraction(lines, u))
        words = ceil(Fraction(ci * k * k * kpf * bits, 512))
        read = cpf * kpf * bits
        fixed += rational_blocks(512, 2 * words, read, 2 * floor(Fraction(512 * words, read)))
        deep = max(Fraction(2), Fraction(co, kpf))
        fixed += rational_blocks(kpf * bits, deep, kpf * bits, deep)
    return fixed + batch * copies


@pytest.mark.parametrize("bits", [8, 16])
def test_bram_against_fractions(bits):
    """Random factors, most of which do not divide."""
    rng = np.random.default_rng(0)
    space = decoder_space(bits)
    for _ in range(40):
        factors = [
            tuple(tuple(int(rng.integers(1, min(m, 40) + 1)) for m in cost.largest(stage)) for stage in p.stages)
            for p in space.pipelines
        ]
        batch = tuple(int(n) for n in rng.integers(1, 4, 3))
        result = evaluate(Config(space, tuple(factors), batch))
        for p, pipeline in enumerate(space.pipelines):
            widths = [1] + [min(32, stage.in_channels) for stage in pipeline.stages[1:]]
            if p == 2:
                widths = [factors[1][4][1]]
            expected = rational_branch(pipeline.stages, factors[p], bits, batch[p], widths)
            # one halo may be wider than the map: then the model holds the map
            if all(
                -(-s.height // f[2]) + s.kernel[0] - 1 <= s.height or f[2] == 1
                for s, f in zip(pipeline.stages, factors[p], strict=True)
            ):
                assert result.branches[p].bram == expected


def test_blocks_against_fractions():
    rng = np.random.default_rng(1)
    widths, depths = rng.integers(1, 700, (500, 2)), rng.integers(0, 70_000, (500, 2))
    found = cost.blocks(widths[:, 0], depths[:, 0], widths[:, 1], depths[:, 1])
    wanted = [rational_blocks(*map(int, (w[0], d[0], w[1], d[1]))) for w, d in zip(widths, depths, strict=True)]
    assert found.tolist() == wanted


def test_arrays_and_integers_agree():
    rng = np.random.default_rng(2)
    stage = decoder_space().pipelines[1].stages[6]
    cpf, kpf, h = rng.integers(1, 17, (3, 60))
    wide = rng.integers(1, 33, 60)
    calls = {
        "cycles": lambda c, k, n, a: cost.cycles(stage, c, k, n),
        "multipliers": lambda c, k, n, a: cost.multipliers(stage, c, k, n, 8),
        "weight_buffers": lambda c, k, n, a: cost.weight_buffers(stage, c, k, n, 8),
        "map_buffers": lambda c, k, n, a: cost.map_buffers(stage, c, k, n, 8, a),
        "traffic": lambda c, k, n, a: cost.traffic(stage, c, k, n, 8),
        "moved": lambda c, k, n, a: cost.moved(stage, c, k, 8),
    }
    for name, call in calls.items():
        single = [call(*map(int, values)) for values in zip(cpf, kpf, h, wide, strict=True)]
        assert call(cpf, kpf, h, wide).tolist() == single, name
        if name != "traffic":
            assert all(type(value) is int for value in single), name
    grid = cost.map_buffers(stage, cpf[:, None], kpf[:, None], 1, 8, wide[None])
    assert grid.shape == (60, 60)


def test_cycles_are_exact():
    stage = flat().pipelines[0].stages[0]
    assert cost.cycles(stage, 1, 1, 1) == stage.macs
    assert cost.cycles(stage, 3, 4, 5) == 3 * 2 * 3 * 10 * 9  # uneven rounds are whole rounds
    huge = dataclasses.replace(stage, in_channels=10**6, out_channels=10**6, height=10**4, width=10**4)
    assert cost.cycles(huge, 1, 1, 1) == 9 * 10**20  # beyond 64 bits


def test_dsp_pairs_even_channels_at_8_bits_only():
    even, odd = (dataclasses.replace(flat().pipelines[0].stages[0], out_channels=n) for n in (6, 3))
    assert [cost.multipliers(stage, 4, 2, 3, bits) for stage in (even, odd) for bits in (8, 16)] == [12, 24, 24, 24]
    assert cost.multipliers(even, 4, 3, 1, 8) == 8  # the odd one out takes a DSP of its own
    assert [cost.control(dataclasses.replace(even, **light)) for light in ({}, {"upsample": 2}, {"pool": 2})] == [
        6,
        8,
        8,
    ]


def test_pooling_buffer_is_that_of_upsampling():
    """A 2 x 2 pooling keeps two columns, as up-sampling does; a 3 x 3 one keeps three; a whole map needs sums only."""
    stage = dataclasses.replace(flat().pipelines[0].stages[0], height=512, width=512, in_height=512, in_width=512)
    plain, *light = (
        cost.map_buffers(dataclasses.replace(stage, **light), 1, 1, 1, 16, 1)
        for light in ({}, {"upsample": 2}, {"pool": 2}, {"pool": 3}, {"pool": 512})
    )
    up, two, three, whole = (n - plain for n in light)
    assert up == two == whole
    assert three > two > 0


def test_transposed_and_dilated_reach():
    stage = flat().pipelines[0].stages[0]
    assert dataclasses.replace(stage, kernel=(4, 4), stride=2, transposed=True).reach == (2, 2)
    assert dataclasses.replace(stage, kernel=(4, 4), stride=2, transposed=True).made == (24, 20)
    assert dataclasses.replace(stage, dilation=2).reach == (5, 5)


def test_arriving():
    space = decoder_space()
    assert cost.arriving(space, 1, 0) == 1
    assert cost.arriving(space, 1, 1) == 32  # behind its own pipeline's up-sampling
    assert cost.arriving(space, 1, 7) == 16
    assert cost.source(space, 2, 0) == (1, 4)
    assert cost.arriving(space, 2, 0, 8) == 8
    assert cost.source(flat(stages=2), 0, 1) == (0, 0)
    with pytest.raises(I2IError, match="kpf of the stage that feeds it"):
        cost.arriving(space, 2, 0)


def test_a_map_taken_before_its_upsampling_comes_from_the_convolution():
    space = flat(stages=2, upsample=2)
    assert cost.source(space, 0, 1) == (0, 0)


def test_moved():
    """Weights once a column, padded to whole rounds; untied biases and maps on top."""
    stage = dataclasses.replace(flat().pipelines[0].stages[0], bias=720, untied=True, external=100)
    assert cost.moved(stage, 1, 1, 8) == (432 * 10 + 720 + 100) * 8
    assert cost.moved(stage, 3, 4, 16, batch=2) == (9 * 8 * 9 * 10 + 720 + 200) * 16
    for h in (1, 2, 5):
        run = cost.traffic(stage, 3, 4, h, 8) * cost.cycles(stage, 3, 4, h)
        assert run == pytest.approx(cost.moved(dataclasses.replace(stage, untied=False, external=0), 3, 4, 8))


# --- configurations, budgets, errors ------------------------------------------------------------------------


def test_config_round_trip():
    config = published.paper_design(decoder_space(), 4)
    assert Config.from_json(config.space, json.loads(json.dumps(config.to_json()))) == config


GOOD = (((2, 2, 1),),)


@pytest.mark.parametrize(
    ("factors", "batch", "text"),
    [
        ((), (1,), "factors: expected one entry for each of 1 pipelines, got 0"),
        (GOOD, (1, 1), "batch: expected one entry"),
        (GOOD, (0,), "batch of p: expected a whole number from 1, got 0"),
        (GOOD, (1.5,), "batch of p"),
        ((((2, 2, 1), (1, 1, 1)),), (1,), "factors of p: expected .* each of 1 stages, got 2 entries"),
        ((((9, 2, 1),),), (1,), r"factors of stage c: expected .*\(8, 6, 12\), got \(9, 2, 1\)"),
        ((((1, 7, 1),),), (1,), "stage c"),
        ((((1, 1, 13),),), (1,), "stage c"),
        ((((1, 1, 0),),), (1,), "stage c"),
        ((((1, 1.0, 1),),), (1,), "stage c"),
        ((((1, True, 1),),), (1,), "stage c"),
        ((((1, 1),),), (1,), "stage c"),
    ],
)
def test_bad_designs(factors, batch, text):
    with pytest.raises(I2IError, match=text):
        evaluate(Config(flat(), factors, batch))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda space: Config(None, GOOD, (1,)), "space: expected a DesignSpace, got None"),
        (lambda space: Config(space, None, (1,)), "factors: expected one entry for each of 1 pipelines, got 0"),
        (lambda space: Config(space, GOOD, 1), "batch: expected one entry for each of 1 pipelines, got 0"),
        (lambda space: Config(space, ((3,),), (1,)), "factors of stage c: .* whole numbers from 1"),
        (lambda space: Config.from_json(space, {}), "design: expected a dict with factors and batch"),
        (lambda space: evaluate(space), "config: expected a Config, got DesignSpace"),
        (lambda space: evaluate(None), "config: expected a Config, got None"),
        (lambda space: evaluate(Config(space, GOOD, (1,))).fits("Z7045"), "budget: expected a Budget, got str"),
        (lambda space: Budget("900", 1090), "budget dsp: expected more than 0 dsp, got '900'"),
        (lambda space: Budget(900, None), "budget bram: expected more than 0 bram, got None"),
        (lambda space: Budget(900, float("inf")), "budget bram: expected a finite number of bram, got inf"),
        (lambda space: asic(macs=None, buffer_bytes=10**6), "macs: expected a whole number from 1, got None"),
        (lambda space: platform("Z80"), "budget: expected a Budget, or one of Z7045, .*, got 'Z80'"),
        (lambda space: platform((900, 1090)), "budget: expected a Budget, got tuple. Give Budget"),
    ],
)
def test_wrong_kinds(call, text):
    with pytest.raises(I2IError, match=text):
        call(flat())


def test_designs_of_any_integers_are_plain():
    array = Config(flat(), np.array(GOOD), np.array([1]))
    assert array == Config(flat(), GOOD, (1,))
    assert json.loads(json.dumps(array.to_json())) == array.to_json()


def test_platforms_by_name():
    assert platform("ZU9CG") == platform(PLATFORMS["ZU9CG"]) == Budget(2520, 1824, name="ZU9CG")


def test_grouped_stages_have_fewer_channels_to_share():
    space = flat(groups=2)
    assert cost.largest(space.pipelines[0].stages[0]) == (4, 6, 12)
    with pytest.raises(I2IError, match="stage c"):
        evaluate(Config(space, (((8, 1, 1),),), (1,)))


def test_budgets():
    for field in ("dsp", "bram", "bandwidth"):
        for value in (0, -1, float("nan")):
            with pytest.raises(I2IError, match=f"budget b: expected more than 0 {field}, got {value}"):
                dataclasses.replace(Budget(1, 1, name="b"), **{field: value})
    small = evaluate(Config(flat(), GOOD, (1,)))
    assert small.fits(Budget(small.dsp, small.bram, small.bandwidth))
    assert small.fits(Budget(small.dsp, small.bram, np.nextafter(small.bandwidth, 0)))  # a sum's last digit
    for field in ("dsp", "bram", "bandwidth"):
        short = {"dsp": small.dsp, "bram": small.bram, "bandwidth": small.bandwidth}
        assert not small.fits(Budget(**short | {field: short[field] * 0.9}))


def test_asic():
    assert asic(macs=1024, buffer_bytes=18 * 128 * 10, bits=16) == Budget(1024, 10, name="ASIC")
    assert asic(macs=1024, buffer_bytes=18 * 128 * 10 - 1).dsp == 512
    assert asic(macs=1024, buffer_bytes=18 * 128 * 10 - 1).bram == 9
    with pytest.raises(I2IError, match="bits: expected 8 or 16, got 4"):
        asic(macs=1, buffer_bytes=1, bits=4)
    with pytest.raises(I2IError, match="more than 0 bram"):
        asic(macs=16, buffer_bytes=100)


def test_design_space_errors():
    with pytest.raises(I2IError, match="bits: expected 8 or 16, got 12"):
        flat(bits=12)
    with pytest.raises(I2IError, match="positive clock"):
        dataclasses.replace(flat(), frequency_hz=0)
    with pytest.raises(I2IError, match="at least one pipeline"):
        DesignSpace(())
    a, b = (dataclasses.replace(flat().pipelines[0].stages[0], sources=((n, 0),)) for n in (1, 0))
    with pytest.raises(I2IError, match="without a circle"):
        _ = DesignSpace((Pipeline("a", (a,)), Pipeline("b", (b,)))).order


def test_order_follows_the_feeding():
    stage = flat().pipelines[0].stages[0]
    fed = dataclasses.replace(stage, sources=((2, 0),))
    assert DesignSpace((Pipeline("a", (fed,)), Pipeline("b", (fed,)), Pipeline("c", (stage,)))).order == (2, 0, 1)


def test_published_errors():
    with pytest.raises(I2IError, match="table: expected 2, 4 or 5, got 3"):
        published.table(3)
    with pytest.raises(I2IError, match="case: expected 1 to 5, got 6"):
        published.paper_design(decoder_space(), 6)
    with pytest.raises(AttributeError):
        _ = published.TABLE_3


def test_published_notes():
    """The slips are what the notes say they are."""
    fourth = published.TABLE_4
    case5 = fourth.query("case == 5")
    assert case5.bram18.sum() == 1753 != case5.total_bram18_printed.iloc[0]
    assert round(100 * 1753 / 1824, 1) == case5.total_bram18_pct_printed.iloc[0]
    assert fourth.attrs["source"] == published.SOURCE
    assert "1753" in fourth.attrs["notes"][0]
    assert len(published.TABLE_2) == 7


def test_light_import():
    """The cost model runs without PyTorch."""
    code = "import sys, i2ilib.fcad.cost, i2ilib.fcad.platforms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
