"""The best design of the paper's space, by looking at all of them: what the search is held against.

The fitness of a design depends on nothing but the frame rates of its branches, and a branch has few: its slowest stage
sets the rate, and each stage has one cycle count for each power of two. So every combination of rates can be tried.
Two spaces are enumerated.

``factors="paper"``: for each branch

- every design that Algorithm 2 can return, whatever the branch's share of the budget (all rungs of all ladders);
- for every cycle count that a stage of the branch can have with ``GetPF``'s factors, the design in which each stage
  takes the smallest target of parallelism that keeps it (multipliers only grow with the target).

Of designs with the same rate, and the same widths where they feed other branches, those that another undercuts or
equals in DSPs, block RAMs and bandwidth are dropped; what remains is combined completely. That completeness is the
proof of optimality. As the first kind holds all that Algorithms 1 and 2 can reach, no run of the search, of either
evolution, exceeds this optimum.

``factors="powers"``: all powers of two that divide the channels, and h up to 32, each stage on its own. ``GetPF`` takes
one split of a target; another may need fewer block RAMs. Of the combinations of rates, only those with a larger fitness
than the paper's optimum matter. Where not even designs at most that slow fit (an exact front, ``merging``), nothing
faster does either; what that leaves is settled one by one, with the rates exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from math import prod

import numpy as np

from ..errors import I2IError
from . import cost
from .bounded import CLOSE, choose
from .construct import DesignSpace
from .cost import ROUNDING, Budget, Config
from .goal import USUAL, Goal
from .ladder import Designs, Ladder, level_exponents, log2, smallest, triples, worth
from .merging import Forest
from .platforms import platform
from .search import SearchResult, check_arguments, nothing_fits, rows_of, search

FACTORS = ("paper", "powers")
MANY = 1_000_000  # partial combinations beyond which those that cannot win are cut off
TOO_MANY = 4  # times as many: they are not tried any more


@dataclasses.dataclass(frozen=True, eq=False)
class Optimum(SearchResult):
    """The best design, and how much was looked at. ``shares`` are in proportion to what the branches use."""

    combinations: int  # of the branches' frame rates
    feasible: int | None  # of them, those with a design that fits; None where only those that would win were tried
    complete: bool  # all were visited; else those whose best possible fitness is too low were cut off, uncounted
    bound: float  # no design of the space has a larger fitness; the fitness itself where that is proven

    @property
    def exact(self) -> bool:
        """Whether no design of the space is better."""
        return self.bound <= self.fitness


def optimum(
    space: DesignSpace, budget: Budget | str, priorities: Sequence[float] | None = None,
    batch_sizes: Sequence[int] | None = None, *, alpha: float = 0.1, factors: str = "paper",
    objective: str = "built", penalty: str = "relative", seconds: float = 20.0,
) -> Optimum:  # fmt: skip
    """The design of the largest fitness, by enumeration of every combination of frame rates.

    Where branches are too many for that, an integer program over the same designs (:mod:`~i2ilib.fcad.bounded`) finds
    it, or at least a bound that no design exceeds, and how near the best known one is.

    Args:
        space: Pipelines, precision and clock.
        budget: DSPs, 18-Kb block RAMs and bit/s of the whole design, or the name of a platform.
        priorities: Weight of each branch's frame rate, at least 0; 1 each by default.
        batch_sizes: Copies of each branch; 1 each by default.
        alpha: Weight of the variance of the frame rates, at least 0, in 1/FPS.
        objective: Of :func:`~i2ilib.fcad.search.search`.
        penalty: "relative" or "paper", of :func:`~i2ilib.fcad.goal.fitness`.
        seconds: That the integer program may take.
        factors: "paper", what the search chooses from, or "powers", all factors that are powers of two and divide the
            channels. If both give the same fitness, ``GetPF``'s choice of factors costs nothing.

    Returns:
        The result, as of ``search``, with the number of combinations. Of several that share the largest fitness, the
        one with the fewest DSPs, then block RAMs.

    Raises:
        I2IError: If an argument is unusable, nothing fits, or with "powers" the branches are too many to combine.
    """
    budget = platform(budget)
    goal = check_arguments(space, budget, priorities, batch_sizes, alpha, penalty, objective)
    batch = goal.batch
    if factors not in FACTORS:
        raise I2IError("factors", expected=" or ".join(map(repr, FACTORS)), got=repr(factors))
    if factors == "powers":
        return _powers(budget, goal)
    designs = [_candidates(space, index, batch[index], budget.bandwidth) for index in range(len(batch))]
    rates = [np.unique(found.fps) for found in designs]
    bound, combinations = _Bound(budget, goal, designs), prod(map(len, rates))

    # One row a partial combination: the design of each branch so far, and their needs.
    chosen, needs = np.zeros((1, 0), int), np.zeros((1, 3))
    order, complete = space.order, True
    least = [_needs(found).min(0) for found in designs]
    given = np.array([budget.dsp, budget.bram, budget.bandwidth], float) * ROUNDING
    for place, index in enumerate(order):
        found = designs[index]
        rest = sum((least[later] for later in order[place + 1 :]), np.zeros(3))
        size = len(chosen) * len(found)
        complete = complete and (place == 0 or size <= MANY)
        if size > TOO_MANY * MANY:
            return _chosen(goal, budget, designs, bound.known, combinations, seconds)
        parts = []
        for rows in np.array_split(np.arange(len(chosen)), -(-size // MANY) or 1):
            total = needs[rows, None] + _needs(found)  # (partial, design, resource)
            for (p, s), table in found.fed.items():
                width = designs[p].factors[chosen[rows, order.index(p)], s, 1]
                total[..., 1] += table[:, log2(width)].T
            row, design = np.nonzero((total + rest <= given).all(2))
            part = np.column_stack([chosen[rows[row]], design]), total[row, design]
            parts.append(part if complete else bound.cut(*part))
        chosen, needs = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(chosen):
        raise nothing_fits(budget, cost.evaluate(smallest(space, batch)))

    chosen = chosen[:, np.argsort(order)]
    cycles = np.stack([found.cycles[column] for found, column in zip(designs, chosen.T, strict=True)], 1)
    scores = goal.score(cycles)
    tied = np.flatnonzero(scores >= scores.max() - 1e-9)
    best = tied[np.lexsort(needs[tied, 1::-1].T)[0]]
    feasible = len(np.unique(cycles, axis=0))
    return _result(_config(goal, designs, chosen[best]), goal, combinations, feasible, complete)


def _config(goal: Goal, designs: Sequence[Designs], rows: Sequence[int]) -> Config:
    found = tuple(triples(design.factors[row]) for design, row in zip(designs, rows, strict=True))
    return Config(goal.space, found, goal.batch)


def _chosen(goal: Goal, budget: Budget, designs: Sequence[Designs], known: SearchResult, combinations: int,
            seconds: float) -> Optimum:  # fmt: skip
    """By the integer program; the better of its design and the one that a search knows."""
    start = np.array([[max(branch.cycles) for branch in known.evaluation.branches]])
    found = choose(goal, designs, budget, start, seconds=seconds)
    if found is None:  # out of time; the sum of what each branch could reach alone bounds all
        most = goal.score(np.array([each.cycles.min() for each in designs]))
        if goal.objective != "slowest":
            most = goal.rates(np.array([each.cycles.min() for each in designs])) @ np.array(goal.priorities)
        return _result(known.config, goal, combinations, None, False, float(most))
    better = found.score > known.fitness
    config = _config(goal, designs, found.rows) if better else known.config
    bound = max(found.bound, found.score, known.fitness)
    return _result(config, goal, combinations, None, False, bound)


def _result(config: Config, goal: Goal, combinations: int, feasible: int | None, complete: bool,
            bound: float = -np.inf) -> Optimum:  # fmt: skip
    evaluation = cost.evaluate(config)
    score = float(goal.score(np.array([max(branch.cycles) for branch in evaluation.branches])))
    shares = rows_of(np.array([[branch.dsp, branch.bram, branch.bandwidth] for branch in evaluation.branches]).T)
    bound = bound if bound > score * (1 + CLOSE) else score
    return Optimum(config, evaluation, score, (score,), 1, shares, combinations, feasible, complete, bound)


def _needs(designs: Designs) -> np.ndarray:
    """(N, 3): DSPs, block RAMs, bit/s."""
    return np.stack([designs.dsp, designs.bram, designs.bandwidth], 1)


def _candidates(space: DesignSpace, pipeline: int, batch: int, bandwidth: float) -> Designs:
    """What is enumerated of one branch, without what another design of the same rate makes superfluous."""
    stages = space.pipelines[pipeline].stages
    levels = level_exponents(stages, space.bits)
    exponents = np.unique(np.vstack([Ladder(space, pipeline, batch, bandwidth).exponents, levels]), axis=0)
    designs = Designs(space, pipeline, batch, exponents)
    return Designs(space, pipeline, batch, exponents[worth(space, pipeline, designs)])


class _Bound:
    """What a partial combination can still reach, against what a search found: cuts off only what cannot win."""

    def __init__(self, budget: Budget, goal: Goal, designs: list[Designs]):
        self.budget, self.goal, self.order, self.designs = budget, goal, goal.space.order, designs
        self.weights = np.array(goal.priorities)
        self.fastest = np.array([found.fps.max() for found in designs])

    @cached_property
    def known(self) -> SearchResult:
        """What a search finds."""
        goal = self.goal
        return search(goal.space, self.budget, goal.priorities, goal.batch, alpha=goal.alpha, penalty=goal.penalty,
                      objective=goal.objective)  # fmt: skip

    def cut(self, chosen: np.ndarray, needs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The partial combinations that may reach as much."""
        placed = list(self.order[: chosen.shape[1]])
        fps = np.stack([self.designs[j].fps[column] for j, column in zip(placed, chosen.T, strict=True)], 1)
        keep = self._reach(fps, placed) >= self.known.fitness - 1e-9
        return chosen[keep], needs[keep]

    def _reach(self, fps: np.ndarray, placed: list[int]) -> np.ndarray:
        """What a partial combination's score stays below: delivered rates do not exceed those built."""
        goal, branches = self.goal, len(self.order)
        if goal.objective == "slowest":
            images = np.array(goal.batch)[placed]  # one copy may serve all images of those that feed it
            return (fps / images).min(1) * max(goal.batch)
        others = [j for j in range(branches) if j not in placed]
        reach = fps @ self.weights[placed] + self.fastest[others] @ self.weights[others]
        if goal.objective == "delivered":
            return reach
        # The squared deviations of all branches from their mean are at least those of some from theirs.
        penalty = goal.alpha * fps.var(1) * len(placed) / branches
        if goal.penalty == "relative":
            penalty *= USUAL * branches / (fps.sum(1) + self.fastest[others].sum())
        return reach - penalty


# --- every power of two ----------------------------------------------------------------------------------------------


def _powers(budget: Budget, goal: Goal) -> Optimum:
    space, batch = goal.space, goal.batch
    forest = Forest(space, batch, "powers")
    levels = [forest.levels[p] for p in range(len(batch))]
    combinations = prod(map(len, levels))
    if combinations > MANY:
        raise I2IError("optimum", expected=f"at most {MANY} combinations of frame rates", got=combinations,
                       remedy="Take factors='paper'.")  # fmt: skip
    known, floor, none = None, -np.inf, None
    try:
        known = optimum(space, budget, goal.priorities, batch, alpha=goal.alpha, objective=goal.objective,
                        penalty=goal.penalty)  # fmt: skip
        floor = known.fitness + 1e-9
    except I2IError as error:  # nothing fits; another split of the targets may
        none = error
    cycles = np.stack(np.meshgrid(*levels, indexing="ij"), -1).reshape(-1, len(batch))
    scores = goal.score(cycles)
    wins = scores > floor
    cycles, scores = cycles[wins], scores[wins]
    cap = np.array([budget.dsp, budget.bram], float)
    possible = np.ones(len(cycles), bool)
    for row in np.argsort(-cycles.sum(1), kind="stable"):  # the slowest first: what does not fit rules out most
        if possible[row] and forest.solve(dict(enumerate(cycles[row].tolist())), cap) is None:
            possible &= (cycles > cycles[row]).any(1)
    for row in np.flatnonzero(possible)[np.argsort(-scores[possible], kind="stable")]:
        found = _exactly(forest, budget, cycles[row].tolist())
        if found is not None:
            return _result(found, goal, combinations, None, True)
    if known is None:
        raise none
    return dataclasses.replace(known, combinations=combinations, feasible=None)


def _exactly(forest: Forest, budget: Budget, cycles: list[int]) -> Config | None:
    """A design that fits and whose pipelines take just these cycles; None if there is none."""
    cap = np.array([budget.dsp, budget.bram, budget.bandwidth * ROUNDING])
    stages = enumerate(zip(forest.stages, forest.tables, strict=True))
    able = [(p, index) for index, ((p, _), table) in stages if np.any(table.levels == cycles[p])]
    for pins in product(*([index for q, index in able if q == p] for p in range(len(cycles)))):
        exact = {index: cycles[forest.stages[index][0]] - 1 for index in pins}  # more than one cycle less
        solution = forest.solve(dict(enumerate(cycles)), cap, pins=exact)
        if solution is not None:
            return solution.front().config(0)
    return None
