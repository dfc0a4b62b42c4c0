"""Exact merging against full enumeration, the figures of a separate study of the decoder, and its error branches."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from fcad_decoder import decoder_space

from i2ilib.errors import I2IError
from i2ilib.fcad import merging
from i2ilib.fcad.construct import DesignSpace, Pipeline, Stage
from i2ilib.fcad.cost import (
    Budget,
    Config,
    control,
    cycles,
    evaluate,
    largest,
    map_buffers,
    multipliers,
    source,
    weight_buffers,
)
from i2ilib.fcad.merging import FACTORS, merge, prune
from i2ilib.fcad.pareto import OBJECTIVES, dsp_bound, fastest, front, fronts, headroom, refresh, value

CASES = {1: (8, 900, 1090), 2: (8, 1590, 1592), 3: (16, 1590, 1592), 4: (8, 2520, 1824), 5: (16, 2520, 1824)}
BATCH = (1, 2, 2)
PAPER = {1: 30.5, 2: 61.0, 3: 15.3, 4: 122.1, 5: 61.0}  # lowest FPS of the three branches, Table IV
# A separate exhaustive study, the warp field's buffer written 16 channels wide: powers, rows, integers, DSP-only bound.
STUDY = {
    "slowest": {
        1: (30.5, 40.7, 42.2, 45.8),
        2: (61.0, 81.4, 81.4, 86.0),
        3: (30.5, 33.7, 40.7, 43.0),
        4: (122.1, 126.0, 132.1, 140.1),
        5: (61.0, 61.0, 66.1, 70.1),
    },
    "pairs": {
        1: (15.3, 22.7, 23.1, 24.7),
        2: (30.5, 42.5, 44.4, 46.3),
        3: (15.3, 18.8, 22.2, 23.2),
        4: (61.0, 69.8, 72.3, 75.5),
        5: (30.5, 33.7, 36.3, 37.8),
    },
}


def case(number):
    bits, dsp, bram = CASES[number]
    return decoder_space(bits), Budget(dsp, bram)


def stage(name, ci, co, size, *, kernel=3, upsample=1, sources=(), stride=1, groups=1):
    weights = ci // groups * co * kernel**2
    return Stage(
        name, ci, co, size, size, size * stride, size * stride, (kernel, kernel), weights * size**2, 0, weights,
        stride=stride, groups=groups, upsample=upsample, bias=co, untied=size % 2 == 0, external=size, sources=sources,
    )  # fmt: skip


def random_space(rng, shapes):
    """Pipelines of so many stages; each reads one before it, of any pipeline; some are up-sampled, some skip."""
    most = {1: 9, 2: 4, 3: 2}[sum(shapes)]  # channels and rows: small enough to try every design
    pipelines, all_before = [], []
    for p, length in enumerate(shapes):
        stages = []
        for s in range(length):
            ci, co, size = rng.integers(1, most + 1, 3).tolist()
            sources = ((p, s - 1),) if s else ()
            if all_before and (not s or rng.random() < 0.3):
                sources = (*sources, all_before[rng.integers(len(all_before))])
            up, wide = int(rng.integers(1, 3)), 8 * int(rng.integers(1, 20))  # wide maps make buffers differ
            made = stage(f"{p}.{s}", ci, co, size, upsample=up, sources=sources, kernel=int(rng.integers(1, 4)))
            stages.append(replace(made, width=wide, in_width=wide, macs=made.macs * wide // size))
        all_before += [(p, s) for s in range(length)]
        pipelines.append(Pipeline(str(p), tuple(stages)))
    return DesignSpace(tuple(pipelines), int(rng.choice([8, 16])))


def choices(stage, bits, factors):
    """All (cpf, kpf, h) of a set, from its definition."""
    every = itertools.product(*(range(1, m + 1) for m in largest(stage)))
    if factors == "integers":
        return list(every)
    two = {1, 2, 4, 8}
    pair = bits == 8 and stage.out_channels % 2 == 0
    return [
        (c, k, h) for c, k, h in every
        if c in two and k in two and stage.in_channels % c == 0 and stage.out_channels % k == 0
        and (k > 1 or not pair) and (factors == "rows" or h in two)
    ]  # fmt: skip


def enumerated(space, batch, factors):
    """Every design of a space, evaluated."""
    lists = [choices(stage, space.bits, factors) for pipeline in space.pipelines for stage in pipeline.stages]
    results = []
    for flat in itertools.product(*lists):
        parts, rest = [], list(flat)
        for pipeline in space.pipelines:
            parts.append(tuple(rest[: len(pipeline.stages)]))
            rest = rest[len(pipeline.stages) :]
        results.append(evaluate(Config(space, tuple(parts), batch)))
    return results


def undominated(rows):
    """The distinct rows that no other is at most equal to in every column."""
    rows = np.unique(np.array(rows), axis=0)
    worse = [((rows <= row).all(1) & (rows < row).any(1)).any() for row in rows]
    return rows[~np.array(worse)]


# --- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("span", [3, 30])
def test_prune_keeps_what_nothing_dominates(columns, span):
    rng = np.random.default_rng(span + columns)
    for size in (0, 1, 7, 300):
        costs, group = rng.integers(0, span, (size, columns)).astype(float), rng.integers(0, 4, size)
        kept = prune(costs, group)
        found = sorted((int(group[i]), *costs[i]) for i in kept)
        expected = [(g, *row) for g in range(4) if (group == g).any() for row in undominated(costs[group == g])]
        assert found == sorted(expected)
        assert len(prune(costs)) == (len(undominated(costs)) if size else 0)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_merge_is_the_pruned_sum(columns):
    rng = np.random.default_rng(columns)
    a, b = rng.integers(0, 40, (30, columns)), rng.integers(0, 40, (20, columns))
    cap = np.full(columns, 45)
    sums, left, right = merge(a, b, cap)
    assert np.array_equal(sums, a[left] + b[right])
    every = (a[:, None] + b).reshape(-1, columns)
    assert np.array_equal(np.unique(sums, axis=0), undominated(every[(every <= cap).all(1)]))
    assert np.array_equal(np.unique(merge(a, b)[0], axis=0), undominated(every))


# --- against every design of small spaces ----------------------------------------------------------------------------


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("shapes", [(1,), (2,), (1, 1), (3,), (2, 1)])
def test_front_equals_enumeration(factors, shapes):
    rng = np.random.default_rng(len(shapes) * 10 + FACTORS.index(factors))
    for _ in range(3):
        space = random_space(rng, shapes)
        batch = tuple(rng.integers(1, 4, len(shapes)).tolist())
        results = enumerated(space, batch, factors)
        longest = np.array([[max(branch.cycles) for branch in result.branches] for result in results])
        bounds = longest[rng.integers(len(results))]
        kept = [result for result, taken in zip(results, longest, strict=True) if (taken <= bounds).all()]
        found = front(space, bounds, batch, factors=factors)
        assert np.array_equal(np.stack([found.dsp, found.bram], 1), undominated([(r.dsp, r.bram) for r in kept]))
        rates = space.frequency_hz / bounds
        bits = [sum(b.bandwidth / b.fps * b.batch * r for b, r in zip(k.branches, rates, strict=True)) for k in kept]
        third = front(space, bounds, batch, factors=factors, bandwidth=True)
        expected = undominated([(r.dsp, r.bram, round(q)) for r, q in zip(kept, bits, strict=True)])
        rows = np.stack([third.dsp, third.bram, np.rint(third.moved @ rates)], 1)
        assert np.array_equal(np.unique(rows, axis=0), expected)
        for index in range(len(found)):
            result = evaluate(found.config(index))
            assert (result.dsp, result.bram) == (found.dsp[index], found.bram[index])
            assert result.bandwidth == pytest.approx(found.bandwidth[index], rel=1e-12)
            assert [max(branch.cycles) for branch in result.branches] == found.cycles[index].tolist()


SPACES = [(1,), (2,), (1, 1), (3,), (1, 1, 1), (2, 1)]
SEEDS = [(10 * n + k, shapes, factors) for n, shapes in enumerate(SPACES) for k, factors in enumerate(FACTORS)]


@pytest.mark.parametrize(("seed", "shapes", "factors"), [*SEEDS, (1085, (2,), "integers")])  # the last one bisects
def test_fastest_equals_enumeration(seed, shapes, factors):
    rng = np.random.default_rng(seed)
    for _ in range(2):
        space = random_space(rng, shapes)
        batch = tuple(rng.integers(1, 4, len(shapes)).tolist())
        results = enumerated(space, batch, factors)
        costs = np.array([(r.dsp, r.bram, r.bandwidth) for r in results])
        for tight in itertools.product((0, 1), repeat=3):  # which of the three is scarce
            budget = Budget(*(np.quantile(c, rng.uniform(0, 0.5)) if t else 1e15
                              for c, t in zip(costs.T, tight, strict=True)))  # fmt: skip
            fitting = [result for result in results if result.fits(budget)]
            for objective in OBJECTIVES:
                if not fitting:
                    with pytest.raises(I2IError, match=r"expected (at least|enough of all)"):
                        fastest(space, budget, batch, factors=factors, objective=objective)
                    continue
                config = fastest(space, budget, batch, factors=factors, objective=objective)
                assert evaluate(config).fits(budget)
                best = max(r.slowest if objective == "slowest" else r.pairs_per_second for r in fitting)
                assert value(config, objective) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize(("number", "bits"), [(3, 16), (5, 8), (6, 8)])
def test_front_of_a_large_stage_equals_its_whole_grid(number, bits):
    """Here more partitions than enough can be cheaper: blocks of memory come whole."""
    texture, batch = decoder_space().pipelines[1].stages[number], 2
    fed = replace(texture, sources=((0, 0),))
    space = DesignSpace((Pipeline("feeds", (stage("s", 1, 4, 2),)), Pipeline("fed", (fed,))), bits)
    c, k, h = np.ix_(*(np.arange(1, min(m, n) + 1) for m, n in zip(largest(fed), merging.LIMITS, strict=True)))
    time = cycles(fed, c, k, h)
    dsp = control(fed) + batch * multipliers(fed, c, k, h, bits)
    bram = weight_buffers(fed, c, k, h, bits) + batch * map_buffers(fed, c, k, h, bits, 4)
    for bound in np.quantile(time, np.linspace(0.02, 0.5, 25), method="lower"):
        inside = time <= bound
        least = {d: bram[inside & (dsp == d)].min() for d in np.unique(dsp[inside])[:60]}
        expected = [(d, b) for d, b in least.items() if all(b < least[e] for e in least if e < d)]
        found = front(space, bound, (1, batch), pipeline=1, source_kpf=4)
        some = found.dsp <= max(least)
        assert list(zip(found.dsp[some], found.bram[some], strict=True)) == expected


# --- the decoder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", CASES)
def test_headroom_is_that_of_the_study(number):
    space, budget = case(number)
    for objective, rows in STUDY.items():
        *expected, bound = rows[number]
        for factors, figure in zip(FACTORS, expected, strict=True):
            taken = fastest(space, budget, BATCH, factors=factors, objective=objective, source_kpf=16)
            assert value(taken, objective) == pytest.approx(figure, abs=0.051)
        assert dsp_bound(space, budget, BATCH, objective=objective) == pytest.approx(bound, abs=0.051)


@pytest.mark.parametrize("number", CASES)
def test_every_case_has_a_faster_design_than_the_paper(number):
    """With the coupling of pipelines as it is; the fixed width of the study can only lose."""
    space, budget = case(number)
    table = headroom(space, budget, BATCH)
    for objective in OBJECTIVES:
        row = table.loc[objective]
        assert row.is_monotonic_increasing  # each set holds the one before, and the bound holds all
        assert (row.to_numpy() >= np.array(STUDY[objective][number]) - 0.051).all()
    config = fastest(space, budget, BATCH)
    result = evaluate(config)
    assert result.fits(budget) and result.slowest == table.loc["slowest", "integers"]
    assert result.slowest > 1.05 * PAPER[number]


def test_exact_coupling_beats_the_fixed_width():
    space, budget = case(1)
    exact = fastest(space, budget, BATCH, factors="rows")
    fixed = fastest(space, budget, BATCH, factors="rows", source_kpf=16)
    assert value(exact) > value(fixed)
    assert exact.factors[1][4][1] != 16


def test_front_of_one_pipeline_takes_the_width_it_is_told():
    space = decoder_space()
    narrow, wide = (front(space, 6_553_600, BATCH, pipeline=2, factors="powers", source_kpf=k) for k in (16, 64))
    factors = ((1, 1, 1),) * 6, ((1, 1, 1),) * 4 + ((1, 16, 1),) + ((1, 1, 1),) * 3, ((16, 2, 1),)
    branch = evaluate(Config(space, factors, BATCH)).branches[2]
    assert (branch.dsp, branch.bram) == (38, 112)  # Table IV, case 1: a design within the bound ...
    assert ((narrow.dsp <= 38) & (narrow.bram <= 112)).any()  # ... that the front meets or beats
    assert not np.array_equal(narrow.bram, wide.bram)
    with pytest.raises(I2IError, match="front over all pipelines, got the front of one"):
        narrow.config(0)


@pytest.mark.parametrize("factors", FACTORS)
def test_bandwidth_binds(factors):
    space, budget = case(3)
    free = evaluate(fastest(space, budget, BATCH, factors=factors))
    short = replace(budget, bandwidth=0.6 * free.bandwidth)
    result = evaluate(fastest(space, short, BATCH, factors=factors))
    assert result.fits(short)
    assert 0.5 * free.slowest <= result.slowest <= 0.75 * free.slowest


# --- other networks --------------------------------------------------------------------------------------------------


def unet():
    """A 16-layer pix2pix U-Net of 256 x 256: strides, transposed convolutions, skips, all stages coupled."""
    down, up = (64, 128, 256, 512, 512, 512, 512, 512), (512, 512, 512, 512, 256, 128, 64, 3)
    stages, ci, size = [], 3, 256
    for n, co in enumerate(down):
        size //= 2
        made = stage(f"down{n}", ci, co, size, kernel=4, stride=2, sources=((0, n - 1),) if n else ())
        stages.append(replace(made, untied=False))
        ci = co
    for n, co in enumerate(up):
        ci = 512 if not n else 2 * stages[7 - n].out_channels
        skip = ((0, 7 - n),) if n else ()
        made = stage(f"up{n}", ci, co, size, kernel=4, sources=((0, 7 + n), *skip))
        stages.append(replace(made, transposed=True, stride=2, handed_on=(2 * size, 2 * size), untied=False))
        size *= 2
    return DesignSpace((Pipeline("unet", tuple(stages)),))


@pytest.mark.parametrize("factors", FACTORS)
def test_unet_reaches_what_dsps_allow(factors):
    """Where only DSPs are short every stage decides alone, so one line gives the answer."""
    space, budget = unet(), Budget(2520, 10**9, 1e30)
    options, levels = [], set()
    for layer in space.pipelines[0].stages:
        c, k, h = np.ix_(*merging._values(layer, factors, 8))
        time, dsp = np.broadcast_arrays(cycles(layer, c, k, h), control(layer) + multipliers(layer, c, k, h, 8))
        options.append((time.ravel(), dsp.ravel()))
        levels |= set(np.unique(time).tolist())
    levels = np.array(sorted(level for level in levels if level >= max(time.min() for time, _ in options)))
    spent = np.zeros(len(levels))
    for time, dsp in options:
        order = np.argsort(time)
        least = np.minimum.accumulate(dsp[order])
        spent += least[np.searchsorted(time[order], levels, side="right") - 1]
    expected = space.frequency_hz / levels[spent <= budget.dsp].min()
    result = evaluate(fastest(space, budget, factors=factors))
    assert result.slowest == pytest.approx(expected) and result.dsp <= budget.dsp
    assert result.slowest < dsp_bound(space, budget)
    short = replace(budget, bram=result.bram - 1, bandwidth=0.5 * result.bandwidth)
    slower = evaluate(fastest(space, short, factors=factors))
    assert slower.fits(short) and slower.slowest < result.slowest


def test_unet_stages_are_coupled():
    space = unet()
    assert all(source(space, 0, s) == (0, s - 1) for s in range(1, 16))


# --- curves and refresh rates ----------------------------------------------------------------------------------------


def test_fronts_over_rates():
    space, budget = case(4)
    found = fronts(space, (30, 60, 1e9), BATCH, cap=budget)
    assert set(found.rate) == {30, 60}  # no design reaches the last
    assert (found.dsp <= budget.dsp).all() and (found.bram <= budget.bram).all()
    least = [found.dsp[found.rate == rate].min() for rate in (30, 60)]
    assert least[0] < least[1]
    assert len(found.rate) == len(found.dsp) == len(found.bram) == len(found.bandwidth)
    one = front(space, [int(n * 200e6 / 60) for n in BATCH], BATCH, factors="rows", cap=budget)
    assert np.array_equal(found.dsp[found.rate == 60], one.dsp)
    top = value(fastest(space, budget, BATCH, factors="rows"))
    assert len(fronts(space, [top], BATCH, cap=budget).rate) and not len(
        fronts(space, [1.001 * top], BATCH, cap=budget).rate
    )
    nothing = fronts(space, [60], BATCH, cap=replace(budget, bandwidth=1.0))
    assert not len(nothing.rate)


def test_refresh_says_what_a_budget_lacks():
    space, budget = case(4)
    table = refresh(space, budget, BATCH, rates=(60, 120), factors=("powers", "rows"))
    assert list(table.index) == [(60, "powers"), (60, "rows"), (120, "powers"), (120, "rows")]
    assert table["keeps up"].tolist() == [True, True, False, False]
    assert table["pairs/s in the budget"].tolist() == pytest.approx([61.0, 69.8, 61.0, 69.8], abs=0.051)
    row = table.loc[120, "rows"]
    assert row["least DSP"] > budget.dsp and table["least BRAM within the DSP"].isna().tolist() == [
        False,
        False,
        True,
        True,
    ]
    just = Budget(int(row["least DSP within the BRAM"]), budget.bram)
    assert value(fastest(space, just, BATCH, factors="rows", objective="pairs"), "pairs") >= 120
    less = replace(just, dsp=just.dsp - 1)
    assert value(fastest(space, less, BATCH, factors="rows", objective="pairs"), "pairs") < 120


def test_refresh_of_a_platform_that_holds_nothing():
    table = refresh(decoder_space(), Budget(50, 50), BATCH, rates=(90,), factors=("powers",))
    assert table["pairs/s in the budget"].tolist() == [0.0] and not table["keeps up"].any()


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(100, 10**6), "budget tiny: expected at least [0-9]+ DSP, got 100 DSP"),
        (Budget(10**6, 100), "expected at least [0-9]+ BRAM, got"),
        (Budget(10**6, 10**6, 1.0), r"expected at least [0-9.e+]+ bit/s, got .* 1 bit/s. Take a larger platform"),
        (Budget(3, 3, 3.0), "at least [0-9]+ DSP, [0-9]+ BRAM, [0-9.e+]+ bit/s"),
    ],
)
def test_budgets_too_small(budget, message):
    with pytest.raises(I2IError, match=message):
        fastest(decoder_space(), replace(budget, name="tiny"), BATCH, factors="powers")


def test_budget_too_small_for_both_at_once():
    space = decoder_space()
    least = front(space, 10**12, BATCH)
    assert len(least) > 1  # the fewest DSPs and the fewest block RAMs are of different designs
    with pytest.raises(I2IError, match="enough of all at once"):
        fastest(space, Budget(int(least.dsp.min()), int(least.bram.min())), BATCH)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, b: fastest(s, b, factors="primes"), "factors: expected one of .*, got primes"),
        (lambda s, b: fastest(s, b, objective="mean"), "objective: expected one of .*, got mean"),
        (lambda s, b: fastest(s, b, (1, 2)), "batch_sizes: expected 3 whole numbers from 1"),
        (lambda s, b: fastest(s, b, (1, 2, 0)), "batch_sizes: expected 3 whole numbers from 1"),
        (lambda s, b: fastest(s, b, (1, 2, 1.5)), "batch_sizes: expected 3 whole numbers from 1"),
        (lambda s, b: fastest(s, b, source_kpf=0), "source_kpf: expected at least 1 channel"),
        (lambda s, b: front(s, 10, factors="rows"), "cycles of geometry: expected at least [0-9]+, its fastest"),
        (lambda s, b: front(s, (10, 10)), "cycles: expected one number, or 3"),
        (lambda s, b: front(s, 10**7, pipeline=3), "pipeline: expected an index below 3"),
        (lambda s, b: front(s, 10**7, pipeline=2), "warp.1: expected the kpf of the stage that feeds it"),
        (lambda s, b: fastest(s, b, 2), "batch_sizes: expected 3 whole numbers from 1"),
        (lambda s, b: fastest(s, b, (1, 2, True)), "batch_sizes: expected 3 whole numbers from 1"),
        (lambda s, b: fastest(None, b), "space: expected a DesignSpace, got None"),
        (lambda s, b: fastest(s, None), "budget: expected a Budget, got None"),
        (lambda s, b: refresh(s, "Z80"), "budget: expected a Budget, or one of Z7045, .*, got 'Z80'"),
        (lambda s, b: fronts(s, [0.0]), "rate: expected more than 0"),
        (lambda s, b: fronts(s, [60], objective="sum"), "objective"),
        (lambda s, b: dsp_bound(s, b, objective="sum"), "objective"),
        (lambda s, b: value(fastest(s, b, factors="powers"), "sum"), "objective"),
    ],
)
def test_arguments_without_meaning(call, message):
    with pytest.raises(I2IError, match=message):
        call(*case(4))


def test_names_of_platforms_serve():
    space, budget = case(4)
    named = fastest(space, "ZU9CG", BATCH, factors="powers")
    assert named == fastest(space, budget, BATCH, factors="powers")
    assert dsp_bound(space, "ZU9CG", BATCH) == dsp_bound(space, budget, BATCH)


def test_front_is_empty_where_the_cap_is_low():
    found = front(decoder_space(), 10**7, BATCH, cap=Budget(100, 10**6), factors="powers")
    assert len(found) == 0 and found.bandwidth.shape == (0,)


def test_a_budget_below_control_leaves_nothing():
    assert dsp_bound(decoder_space(), Budget(100, 1)) == 0
