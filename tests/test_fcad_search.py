"""The search for accelerators: the paper's Tables II and IV and Fig. 3, a plain loop by its listings, brute force."""

from __future__ import annotations

import importlib.util
import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fcad_decoder import decoder_space

from i2ilib.errors import I2IError
from i2ilib.fcad.construct import DesignSpace, Pipeline, Stage
from i2ilib.fcad.cost import Budget, Config, evaluate
from i2ilib.fcad.ladder import Designs, Ladder, splits
from i2ilib.fcad.optimum import optimum
from i2ilib.fcad.search import at_level, factors, fitness, in_branch, search

BATCH = (1, 2, 2)
UNIT = 25 * 65536  # cycles: work of the decoder's stages is counted in it
CASES = {  # Table IV: budget, bits, cycles of the branches' slowest stages in the paper's designs (in units)
    1: (Budget(900, 1090), 8, (2, 8, 4)),
    2: (Budget(1590, 1592), 8, (1, 4, 2)),
    3: (Budget(1590, 1592), 16, (2, 8, 16)),
    4: (Budget(2520, 1824), 8, (1, 2, 2)),
    5: (Budget(2520, 1824), 16, (2, 4, 4)),
}
BEST = {  # FPS, DSPs, BRAMs; as in Table IV at 8 bits; case 3's third branch is 4 times as fast as the paper's
    1: ((61.0, 30.5, 61.0), 737, 884),
    2: ((122.1, 61.0, 122.1), 1357, 1024),
    3: ((61.0, 30.5, 61.0), 1349, 1566),
    4: ((122.1, 122.1, 122.1), 2229, 1168),
    5: ((61.0, 61.0, 61.0), 2213, 1766),
}
GROUPS = [(case, evolve) for case in CASES for evolve in ("repair", "paper")]


@pytest.fixture(scope="module")
def listings():
    """The benchmark's plain-Python version of the two listings, with its own cost model."""
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "fcad_search.py"
    spec = importlib.util.spec_from_file_location("fcad_listings", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def case_of(number: int) -> tuple[DesignSpace, Budget]:
    budget, bits, _ = CASES[number]
    return decoder_space(bits), budget


def rounded(fps) -> tuple[float, ...]:
    return tuple(round(value, 1) for value in fps)


def chain(name: str, index: int, layers: list[tuple[int, int, int]], fed: tuple = ()) -> Pipeline:
    """A pipeline of 3 x 3 convolutions, (channels in, channels out, rows), without up-sampling."""
    stages = []
    for number, (ci, co, size) in enumerate(layers):
        macs = 9 * ci * co * size * size
        rest = {"height": size, "width": size, "in_height": size, "in_width": size, "kernel": (3, 3)}
        rest |= {"macs": macs, "ops": 2 * macs, "weights": 9 * ci * co}
        sources = ((index, number - 1),) if number else fed
        stages.append(Stage(f"{name}.{number}", ci, co, sources=sources, **rest))
    return Pipeline(name, tuple(stages))


# --- GetPF and levels ------------------------------------------------------------------------------------------------


def test_factors_by_hand():
    stages = decoder_space().pipelines[1].stages
    assert factors(512, stages[4], 8) == (32, 16, 1)  # channels in first, at most twice the channels out
    assert factors(512, stages[6], 8) == (16, 16, 2)  # 16 x 16 channels: the rest partitions the height
    assert factors(512, stages[6], 8, partition=False) == (16, 16, 1)
    assert factors(1, stages[0], 8) == (1, 2, 1)  # 7 channels in; outputs in pairs
    assert factors(1, stages[0], 16) == (1, 1, 1)
    assert factors(16, stages[7], 8) == (16, 1, 1)  # 3 channels out: neither divided nor paired
    assert factors(11.4, stages[4], 8) == (4, 4, 1) and factors(11.2, stages[4], 8) == (4, 2, 1)  # nearest power
    assert factors(1e9, stages[6], 8)[2] == 512  # never more partitions than rows


@pytest.mark.parametrize("pf", [0, -1, math.nan, math.inf])
def test_factors_refuses(pf):
    with pytest.raises(I2IError, match="pf: expected a positive, finite"):
        factors(pf, decoder_space().pipelines[0].stages[0], 8)


def test_splits_saturate():
    for pipeline in decoder_space().pipelines:
        for stage in pipeline.stages:
            table = splits(stage, 8)
            assert [factors(2**e, stage, 8) for e in range(len(table))] == list(map(tuple, table.tolist()))
            assert factors(2.0 ** (len(table) + 3), stage, 8) == tuple(table[-1].tolist())


@pytest.mark.parametrize("case", CASES)
def test_levels_are_the_papers_designs(case):
    published = pytest.importorskip("i2ilib.fcad.published")
    _, bits, units = CASES[case]
    config = at_level(decoder_space(bits), [unit * UNIT for unit in units], batch_sizes=BATCH)
    assert config.factors == published.PAPER_CONFIGS[case] and config.batch == BATCH


@pytest.mark.parametrize(
    ("level", "dsp", "bram", "efficiency", "latency_ms"),
    [
        (4, 644, 723, 81.59, (32.8, 32.8, 32.8, 32.8, 31.5)),
        (2, 1044, 861, 50.33, (16.4, 16.4, 16.4, 32.8, 15.7)),
        (1, 1828, 1197, 28.74, (8.2, 8.2, 8.2, 32.8, 15.7)),  # the paper: 1820 DSPs, 28.8 %
    ],
)
def test_dnnbuilder(level, dsp, bram, efficiency, latency_ms):
    """Table II's three schemes and Fig. 3: channels alone cannot accelerate Conv7 beyond 30.5 FPS."""
    space = decoder_space(8)
    found = evaluate(at_level(space, level * UNIT, partition=False))
    assert (found.dsp, found.bram, round(found.slowest, 1)) == (dsp, bram, 30.5)
    work = found.slowest * sum(pipeline.ops for pipeline in space.pipelines)
    assert 100 * work / (4 * found.dsp * 200e6) == pytest.approx(efficiency, abs=0.005)
    assert tuple(round(cycles / 200e3, 1) for cycles in found.branches[1].cycles[3:]) == latency_ms
    assert evaluate(at_level(space, level * UNIT)).slowest == pytest.approx(30.5176 * 4 / level, abs=1e-4)


@pytest.mark.parametrize("cycles", [0, -5, math.nan, (UNIT, UNIT), (UNIT, UNIT, 0)])
def test_at_level_refuses(cycles):
    with pytest.raises(I2IError, match="cycles: expected a positive number, or 3 of them"):
        at_level(decoder_space(), cycles)


# --- Algorithm 2 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
def test_in_branch_is_the_listing(listings, bits):
    """Random shares, each branch: the ladder stops where the plain loop does."""
    space, rng = decoder_space(bits), np.random.default_rng(3)
    infeasible = 0
    for _ in range(60):
        dsp, bram, bandwidth = rng.uniform(5, 1500), rng.uniform(50, 1400), 10 ** rng.uniform(8, 11.5)
        j, batch, width = int(rng.integers(3)), int(rng.integers(1, 3)), int(2 ** rng.integers(7))
        chosen = {1: [(1, width, 1)] * 8}
        found = in_branch(space, j, Budget(dsp, bram, bandwidth), batch, {(1, 4): width})
        plain = listings.in_branch(
            space, j, (dsp, bram, bandwidth), batch, chosen, listings.get_pf, listings.utilisation
        )
        assert found == (plain and tuple(plain[0]))
        infeasible += found is None
    assert 0 < infeasible < 50


def test_in_branch_refuses():
    space, share = decoder_space(), Budget(100, 300)
    with pytest.raises(I2IError, match=r"kpf_of_source: expected a power of two up to 64 for stage \(1, 4\)"):
        in_branch(space, 2, share)
    with pytest.raises(I2IError, match=r"kpf_of_source.*got 3"):
        in_branch(space, 2, share, 1, {(1, 4): 3})
    with pytest.raises(I2IError, match="batch_sizes: expected 1 whole numbers"):
        in_branch(space, 0, share, 0)
    with pytest.raises(I2IError, match="budget bandwidth: expected a finite"):
        in_branch(space, 0, Budget(100, 300, math.inf))


def test_designs_cost_what_evaluate_says():
    """Also across pipelines: the buffer behind a stage of another pipeline follows that stage's kpf."""
    space, rng = decoder_space(8), np.random.default_rng(0)
    ladders = [Ladder(space, index, batch, 102.4e9) for index, batch in enumerate(BATCH)]
    for _ in range(20):
        rows = [int(rng.integers(len(ladder))) for ladder in ladders]
        chosen = tuple(tuple(map(tuple, d.factors[r].tolist())) for d, r in zip(ladders, rows, strict=True))
        found = evaluate(Config(space, chosen, BATCH)).branches
        for index, (ladder, row) in enumerate(zip(ladders, rows, strict=True)):
            width = chosen[1][4][1]
            bram = ladder.bram[row] + sum(table[row, width.bit_length() - 1] for table in ladder.fed.values())
            got = (ladder.dsp[row], bram, ladder.fps[row], ladder.bandwidth[row])
            want = (found[index].dsp, found[index].bram, found[index].fps, found[index].bandwidth)
            assert got == pytest.approx(want, rel=1e-12)


# --- Algorithm 1 -----------------------------------------------------------------------------------------------------


def test_fitness_by_hand():
    assert fitness([10, 20, 30], penalty="paper") == pytest.approx(60 - 0.1 * 200 / 3)
    assert fitness([10, 20, 30]) == pytest.approx(60 - 0.1 * 200 / 3 * 100 / 20)
    assert fitness([1000, 2000, 3000]) == pytest.approx(100 * fitness([10, 20, 30]))
    assert fitness([10, 20, 30], (1, 0, 2), 0) == 70
    assert fitness([[5.0], [7.0]]).tolist() == [5, 7]  # a single branch has no variance


@pytest.mark.parametrize("case", CASES)
def test_search_is_the_plain_loop(listings, case):
    """The paper's evolution, same random numbers: same fitness in every iteration, same design."""
    space, budget = case_of(case)
    found = search(space, budget, batch_sizes=BATCH, n=5, p=40, seed=case, evolve="paper")
    best, config, history = listings.plain_loop(space, budget, n=5, p=40, seed=case)
    assert list(found.history) == pytest.approx(history, rel=1e-12) and found.fitness == pytest.approx(best, rel=1e-12)
    assert found.config.factors == tuple(tuple(config[j]) for j in range(3))


@pytest.mark.parametrize("case", CASES)
def test_search_reaches_the_optimum(case):
    """Repair: in at least 9 of 10 seeds, and 27 of 30 others; no design of the search exceeds the enumerated one."""
    space, budget = case_of(case)
    best = optimum(space, budget, batch_sizes=BATCH)
    assert (rounded(best.evaluation.fps), best.evaluation.dsp, best.evaluation.bram) == BEST[case]
    hits = []
    for seed in range(40):
        found = search(space, budget, batch_sizes=BATCH, seed=seed)
        assert found.fitness <= best.fitness + 1e-9 and found.evaluation.fits(budget)
        hits.append(found.fitness >= best.fitness - 1e-9)
    assert sum(hits[:10]) >= 9 and sum(hits[10:]) >= 27


@pytest.mark.parametrize("case", [1, 2, 4])
def test_the_papers_evolution_finds_the_papers_designs(case):
    """In the best of 10 runs, as the paper ran it; cases 3 and 5 leave so little slack that it misses them."""
    space, budget = case_of(case)
    runs = [search(space, budget, batch_sizes=BATCH, seed=seed, evolve="paper") for seed in range(10)]
    assert rounded(max(runs, key=lambda run: run.fitness).evaluation.fps) == BEST[case][0]


@pytest.mark.parametrize(("case", "evolve"), GROUPS)
def test_results_are_consistent(case, evolve):
    space, budget = case_of(case)
    found, again = (search(space, budget, batch_sizes=BATCH, seed=7, n=8, p=60, evolve=evolve) for _ in range(2))
    assert found.config == again.config and found.history == again.history
    assert len(found.history) == 8 and list(found.history) == sorted(found.history)
    assert (
        found.history[-1]
        == found.fitness
        == pytest.approx(float(fitness(found.evaluation.fps, penalty="paper" if evolve == "paper" else "relative")))
    )
    before = (-math.inf, *found.history)[found.convergence - 1]
    assert before < found.history[found.convergence - 1] == found.fitness
    assert found.shares.shape == (3, 3) and found.shares.min() >= 0 and found.shares.sum(1).max() <= 1 + 1e-9
    assert found.evaluation == evaluate(found.config)


def test_paper_evolution_keeps_whole_budgets():
    space, budget = case_of(2)
    found = search(space, budget, batch_sizes=BATCH, evolve="paper")
    assert found.shares.sum(1) == pytest.approx(np.ones(3))


def test_priorities_move_the_design():
    space, budget = decoder_space(8), Budget(2100, 1400)
    even = search(space, budget, batch_sizes=BATCH).evaluation.fps
    texture = search(space, budget, (0, 5, 0), BATCH, alpha=0).evaluation.fps
    assert texture[1] > even[1] and texture[0] < even[0]
    assert fitness(texture, (0, 5, 0), 0) == pytest.approx(optimum(space, budget, (0, 5, 0), BATCH, alpha=0).fitness)


# --- other spaces ----------------------------------------------------------------------------------------------------


def test_single_branch_is_no_prisoner_of_one_ladder():
    """With one branch the shares of DSPs and BRAMs are fixed; the search still tries starts within the bandwidth."""
    space = DesignSpace((chain("only", 0, [(3, 24, 32), (24, 40, 32), (40, 48, 16), (48, 5, 16)]),))
    for dsp in (150, 300, 600):
        best = optimum(space, Budget(dsp, 4000))
        assert search(space, Budget(dsp, 4000)).fitness == pytest.approx(best.fitness)


def test_branches_that_feed_each_other():
    """Two pipelines hang on a third that stands behind them in the list."""
    trunk = [(8, 32, 32), (32, 32, 32), (32, 16, 32)]
    pipelines = (
        chain("a", 0, [(32, 8, 32), (8, 3, 32)], ((2, 1),)),
        chain("b", 1, [(16, 2, 32)], ((2, 2),)),
        chain("trunk", 2, trunk),
    )
    space = DesignSpace(pipelines, 16)
    assert space.order[0] == 2
    best = optimum(space, Budget(700, 700), batch_sizes=(2, 1, 1))
    hits = [search(space, Budget(700, 700), None, (2, 1, 1), seed=s).fitness >= best.fitness - 1e-9 for s in range(10)]
    assert sum(hits) >= 9 and best.evaluation.fits(Budget(700, 700))


def test_many_branches(monkeypatch):
    """Five alike: too many combinations for a small table, so some are cut off, and the optimum stays."""
    space = DesignSpace(tuple(chain(str(i), i, [(4, 16, 32), (16, 4, 32)]) for i in range(5)))
    budget = Budget(400, 400)
    whole = optimum(space, budget)
    module = sys.modules["i2ilib.fcad.optimum"]
    monkeypatch.setattr(module, "MANY", 2000)
    monkeypatch.setattr(module, "TOO_MANY", 1000)
    cut = optimum(space, budget)
    assert whole.complete and not cut.complete
    assert cut.fitness == pytest.approx(whole.fitness) == pytest.approx(search(space, budget).fitness)
    assert cut.feasible < whole.feasible < whole.combinations == cut.combinations
    monkeypatch.setattr(module, "MANY", 5)
    monkeypatch.setattr(module, "TOO_MANY", 1)
    program = optimum(space, budget)  # the integer program, which proves the same
    assert program.fitness == pytest.approx(whole.fitness) and program.exact and program.feasible is None
    with pytest.raises(I2IError, match="at most 5 combinations of frame rates"):
        optimum(space, budget, factors="powers")


def test_unet_with_skips():
    """A network never meant for it: the pix2pix generator, joins and transposed convolutions included."""
    torch = pytest.importorskip("torch")
    from i2ilib.fcad.construct import construct
    from i2ilib.fcad.graph import analyse
    from i2ilib.models import Generator

    space = construct(analyse(Generator(width=8), torch.zeros(1, 3, 256, 256)))
    budget = Budget(600, 900)
    best = optimum(space, budget)
    assert best.evaluation.fits(budget)
    assert search(space, budget).fitness == pytest.approx(best.fitness)


# --- the optimum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_optimum_of_every_power_of_two(case):
    """In the paper's five cases GetPF's choice of factors costs nothing."""
    space, budget = case_of(case)
    paper, powers = (optimum(space, budget, batch_sizes=BATCH, factors=f) for f in ("paper", "powers"))
    assert powers.fitness == paper.fitness and powers.feasible is None
    assert paper.complete and 0 < paper.feasible < paper.combinations


def test_powers_beat_getpf_where_block_rams_are_short():
    space, budget = decoder_space(8), Budget(3000, 1000)
    paper, powers = (optimum(space, budget, batch_sizes=BATCH, factors=f) for f in ("paper", "powers"))
    assert powers.fitness > paper.fitness and powers.evaluation.fits(budget)


@pytest.mark.parametrize("budget", [(20, 60), (24, 52), (30, 80), (60, 60), (200, 200)])
@pytest.mark.parametrize("priorities", [(1, 1), (1, 3)])
def test_optimum_against_brute_force(budget, priorities):
    """Every design of a small space, evaluated one by one."""
    first = chain("first", 0, [(2, 2, 4), (2, 3, 4)])
    space = DesignSpace((first, chain("second", 1, [(2, 2, 4)], ((0, 0),))), 16)
    budget = Budget(*budget)
    powers = {2: (1, 2), 3: (1,), 4: (1, 2, 4)}
    stages = [stage for pipeline in space.pipelines for stage in pipeline.stages]
    options = [list(itertools.product(powers[s.in_channels], powers[s.out_channels], powers[s.height])) for s in stages]
    best, most = -math.inf, -math.inf
    getpf = [set(map(tuple, splits(stage, 16).tolist())) for stage in stages]
    for a, b, c in itertools.product(*options):
        found = evaluate(Config(space, ((a, b), (c,)), (1, 2)))
        if not found.fits(budget):
            continue
        value = float(fitness(found.fps, priorities, 1e-7))
        best = max(best, value)
        if all(triple in allowed for triple, allowed in zip((a, b, c), getpf, strict=True)):
            most = max(most, value)
    if best == -math.inf:
        with pytest.raises(I2IError, match="short of"):
            optimum(space, budget, priorities, (1, 2), alpha=1e-7, factors="powers")
        return
    assert optimum(space, budget, priorities, (1, 2), alpha=1e-7, factors="powers").fitness == pytest.approx(best)
    if most > -math.inf:
        assert optimum(space, budget, priorities, (1, 2), alpha=1e-7).fitness == pytest.approx(most)


@pytest.mark.parametrize(("case", "alpha"), [(5, 0.07), (2, 0.15)])
def test_alpha_outside_its_bounds(case, alpha):
    """0.1 is no accident: below 0.074 and above 0.147 the paper's designs are not the best any more."""
    space, budget = case_of(case)

    def best(alpha):
        return rounded(optimum(space, budget, batch_sizes=BATCH, alpha=alpha, penalty="paper").evaluation.fps)

    assert best(alpha) != BEST[case][0]
    assert best(0.0745) == best(0.1465) == BEST[case][0]


def test_candidates_keep_the_cheapest():
    """What is dropped is undercut or equalled by a design of the same rate that writes as wide."""
    from i2ilib.fcad.optimum import _candidates

    space = decoder_space(8)
    kept, every = _candidates(space, 1, 2, 102.4e9), Ladder(space, 1, 2, 102.4e9)
    assert isinstance(kept, Designs)
    for row in range(len(every)):
        same = (kept.cycles == every.cycles[row]) & (kept.factors[:, 4, 1] == every.factors[row, 4, 1])
        no_dearer = (kept.dsp <= every.dsp[row]) & (kept.bram <= every.bram[row])
        assert (same & no_dearer & (kept.bandwidth <= every.bandwidth[row])).any()


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [search, optimum])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"priorities": (1, 1)}, "priorities: expected 3 finite weights"),
        ({"priorities": (1, math.nan, 1)}, "priorities: expected 3 finite weights"),
        ({"priorities": (1, -1, 1)}, "priorities: expected 3 finite weights"),
        ({"batch_sizes": (1, 2)}, "batch_sizes: expected 3 whole numbers from 1"),
        ({"batch_sizes": (1, 2, 0)}, "batch_sizes: expected 3 whole numbers from 1"),
        ({"batch_sizes": (1, 2, 1.5)}, "batch_sizes: expected 3 whole numbers from 1"),
        ({"alpha": -0.1}, "alpha: expected a finite weight"),
        ({"alpha": math.nan}, "alpha: expected a finite weight"),
        ({"budget": Budget(900, 1090, math.inf)}, "budget bandwidth: expected a finite number"),
        ({"priorities": ("1", 1, 1)}, "priorities: expected 3 finite weights .*, got .'1', 1, 1"),
        ({"priorities": np.ones((3, 1))}, "priorities: expected 3 finite weights"),
        ({"priorities": 1}, "priorities: expected 3 finite weights .*, got 1"),
        ({"batch_sizes": 2}, "batch_sizes: expected 3 whole numbers from 1, .*, got 2"),
        ({"alpha": "0.1"}, "alpha: expected a finite weight, at least 0, got '0.1'"),
        ({"alpha": None}, "alpha: expected a finite weight, at least 0, got None"),
        ({"budget": None}, "budget: expected a Budget, got None"),
        ({"budget": "Z80"}, "budget: expected a Budget, or one of Z7045, .*, got 'Z80'"),
        ({"space": None}, "space: expected a DesignSpace, got None"),
    ],
)
def test_bad_arguments(task, arguments, message):
    with pytest.raises(I2IError, match=message):
        task(**{"space": decoder_space(), "budget": Budget(900, 1090), **arguments})


@pytest.mark.parametrize("name", ["n", "p"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True])
def test_bad_numbers(name, value):
    with pytest.raises(I2IError, match=f"{name}: expected a whole number from 1"):
        search(decoder_space(), Budget(900, 1090), **{name: value})


@pytest.mark.parametrize("value", [-1, 1.5, "0", None])
def test_bad_seeds(value):
    with pytest.raises(I2IError, match=f"seed: expected a whole number from 0, got {value!r}"):
        search(decoder_space(), Budget(900, 1090), seed=value)


@pytest.mark.parametrize("task", [search, optimum])
def test_arrays_and_names_of_platforms_serve(task):
    found = task(decoder_space(), "Z7045", np.ones(3), np.array(BATCH))
    assert found.config == task(decoder_space(), Budget(900, 1090), (1, 1, 1), BATCH).config


def test_unknown_names():
    with pytest.raises(I2IError, match="evolve: expected 'repair' or 'paper', got 'swarm'"):
        search(decoder_space(), Budget(900, 1090), evolve="swarm")
    with pytest.raises(I2IError, match="factors: expected 'paper' or 'powers', got 'rows'"):
        optimum(decoder_space(), Budget(900, 1090), factors="rows")


@pytest.mark.parametrize("bad", [0, -900, math.nan])
def test_budgets_that_are_none(bad):
    for amounts in ((bad, 1090), (900, bad), (900, 1090, bad)):
        with pytest.raises(I2IError, match="expected more than 0"):
            Budget(*amounts)


@pytest.mark.parametrize("task", [search, optimum])
@pytest.mark.parametrize(
    ("budget", "short"),
    [
        (Budget(100, 1090, name="tiny"), "short of DSPs"),
        (Budget(900, 300), "short of 18-Kb BRAMs"),
        (Budget(900, 1090, 1e6), "short of bit/s"),
        (Budget(1, 1, 1), "short of DSPs and 18-Kb BRAMs and bit/s"),
    ],
)
def test_infeasible_budgets_name_what_is_short(task, budget, short):
    """With what the smallest design needs: there it becomes feasible."""
    space = decoder_space()
    with pytest.raises(I2IError) as raised:
        task(space, budget, None, BATCH)
    text = str(raised.value)
    least = evaluate(at_level(space, math.inf, batch_sizes=BATCH))
    assert text.startswith(f"budget {budget.name}".rstrip() + ": expected room for the smallest design")
    assert f"{least.dsp} DSPs, {least.bram} 18-Kb BRAMs" in text and short in text and "larger budget" in text
    enough = Budget(least.dsp, least.bram, least.bandwidth * (1 + 1e-9))
    assert task(space, enough, None, BATCH).config.factors == at_level(space, math.inf).factors
    for scarce in ({"dsp": least.dsp - 1}, {"bandwidth": least.bandwidth * 0.99}):
        with pytest.raises(I2IError, match="short of"):
            task(space, replace(enough, **scarce), None, BATCH)


def test_paper_evolution_may_miss_the_only_design():
    space = decoder_space()
    least = evaluate(at_level(space, math.inf, batch_sizes=BATCH))
    with pytest.raises(I2IError, match="none in 2 iterations of 5 candidates, though the smallest design fits"):
        search(space, Budget(least.dsp, least.bram), None, BATCH, n=2, p=5, evolve="paper")


def test_no_torch():
    code = "import sys, i2ilib.fcad.search, i2ilib.fcad.optimum; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
