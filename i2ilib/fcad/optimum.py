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

import numpy as np

from ..errors import I2IError
from . import cost
from .construct import DesignSpace
from .cost import ROUNDING, Budget, Config
from .ladder import Designs, Ladder, level_exponent, log2, smallest, splits, triples
from .merging import Forest
from .platforms import platform
from .search import SearchResult, check_arguments, fitness, nothing_fits, rows_of, search

FACTORS = ("paper", "powers")
MANY = 1_000_000  # partial combinations beyond which those that cannot win are cut off


@dataclasses.dataclass(frozen=True, eq=False)
class Optimum(SearchResult):
    """The best design, and how much was looked at. ``shares`` are in proportion to what the branches use."""

    combinations: int  # of the branches' frame rates
    feasible: int | None  # of them, those with a design that fits; None where only those that would win were tried
    complete: bool  # all were visited; else those whose best possible fitness is too low were cut off, uncounted


def optimum(
    space: DesignSpace, budget: Budget | str, priorities: Sequence[float] | None = None,
    batch_sizes: Sequence[int] | None = None, *, alpha: float = 0.1, factors: str = "paper",
) -> Optimum:  # fmt: skip
    """The design of the largest fitness, by enumeration of every combination of frame rates.

    Args:
        space: Pipelines, precision and clock.
        budget: DSPs, 18-Kb block RAMs and bit/s of the whole design, or the name of a platform.
        priorities: Weight of each branch's frame rate, at least 0; 1 each by default.
        batch_sizes: Copies of each branch; 1 each by default.
        alpha: Weight of the variance of the frame rates, at least 0, in 1/FPS.
        factors: "paper", what the search chooses from, or "powers", all factors that are powers of two and divide the
            channels. If both give the same fitness, ``GetPF``'s choice of factors costs nothing.

    Returns:
        The result, as of ``search``, with the number of combinations. Of several that share the largest fitness, the
        one with the fewest DSPs, then block RAMs.

    Raises:
        I2IError: If an argument is unusable, nothing fits, or the branches are too many to combine.
    """
    budget = platform(budget)
    priorities, batch = check_arguments(space, budget, priorities, batch_sizes, alpha)
    if factors not in FACTORS:
        raise I2IError("factors", expected=" or ".join(map(repr, FACTORS)), got=repr(factors))
    if factors == "powers":
        return _powers(space, budget, priorities, batch, alpha)
    designs = [_candidates(space, index, batch[index], budget.bandwidth) for index in range(len(batch))]
    rates = [np.unique(found.fps) for found in designs]
    bound = _Bound(space, budget, priorities, batch, alpha, designs)

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
        if len(chosen) > 4 * MANY:
            got = f"{len(order)} with {len(chosen)} combinations of the first {place + 1}"
            raise I2IError("optimum", expected="fewer branches", got=got, remedy="Use search, or a smaller budget.")
    if not len(chosen):
        raise nothing_fits(budget, cost.evaluate(smallest(space, batch)))

    chosen = chosen[:, np.argsort(order)]
    fps = np.stack([found.fps[column] for found, column in zip(designs, chosen.T, strict=True)], 1)
    scores = fitness(fps, priorities, alpha)
    tied = np.flatnonzero(scores >= scores.max() - 1e-9)
    best = tied[np.lexsort(needs[tied, 1::-1].T)[0]]
    found = tuple(triples(design.factors[i]) for design, i in zip(designs, chosen[best], strict=True))
    combinations = int(np.prod([len(rate) for rate in rates], dtype=float))
    feasible = len(np.unique(fps, axis=0))
    return _result(Config(space, found, batch), priorities, alpha, combinations, feasible, complete)


def _result(config: Config, priorities: tuple[float, ...], alpha: float, combinations: int, feasible: int | None,
            complete: bool) -> Optimum:  # fmt: skip
    evaluation = cost.evaluate(config)
    score = float(fitness(evaluation.fps, priorities, alpha))
    shares = rows_of(np.array([[branch.dsp, branch.bram, branch.bandwidth] for branch in evaluation.branches]).T)
    return Optimum(config, evaluation, score, (score,), 1, shares, combinations, feasible, complete)


def _needs(designs: Designs) -> np.ndarray:
    """(N, 3): DSPs, block RAMs, bit/s."""
    return np.stack([designs.dsp, designs.bram, designs.bandwidth], 1)


def _candidates(space: DesignSpace, pipeline: int, batch: int, bandwidth: float) -> Designs:
    """What is enumerated of one branch, without what another design of the same rate makes superfluous."""
    stages = space.pipelines[pipeline].stages
    tables = [splits(stage, space.bits) for stage in stages]
    counts = [cost.cycles(stage, *table.T) for stage, table in zip(stages, tables, strict=True)]
    slowest = np.unique(np.concatenate(counts))
    slowest = slowest[slowest >= max(count.min() for count in counts)]
    levels = [[level_exponent(s, t, bound) for s, t in zip(stages, tables, strict=True)] for bound in slowest]
    exponents = np.unique(np.vstack([Ladder(space, pipeline, batch, bandwidth).exponents, levels]), axis=0)
    designs = Designs(space, pipeline, batch, exponents)
    sent = [s for other in space.pipelines for stage in other.stages for p, s in stage.sources[:1]
            if p == pipeline and other is not space.pipelines[pipeline]]  # fmt: skip
    kind = np.column_stack([designs.cycles, designs.factors[:, sorted(set(sent)), 1]])
    _, kind = np.unique(kind, axis=0, return_inverse=True)
    price = np.column_stack([_needs(designs), *designs.fed.values()])
    kept = [rows[_undominated(price[rows])] for rows in (np.flatnonzero(kind == k) for k in range(kind.max() + 1))]
    return Designs(space, pipeline, batch, exponents[np.sort(np.concatenate(kept))])


def _undominated(price: np.ndarray) -> np.ndarray:
    """Rows that no other undercuts or equals in all columns; the first of equal ones stays."""
    price = np.unique(price, axis=0, return_index=True)
    values, index = price
    no_dearer = (values[:, None] <= values).all(2)
    return index[no_dearer.sum(0) == 1]


class _Bound:
    """What a partial combination can still reach, against what a search found: cuts off only what cannot win."""

    def __init__(self, space: DesignSpace, budget: Budget, priorities: tuple[float, ...], batch: tuple[int, ...],
                 alpha: float, designs: list[Designs]):  # fmt: skip
        self.arguments, self.alpha = (space, budget, priorities, batch), alpha
        self.order, self.designs, self.weights = space.order, designs, np.array(priorities)
        self.most = np.array([found.fps.max() for found in designs]) * self.weights

    @cached_property
    def reached(self) -> float:
        """The fitness of a design that a search finds."""
        return search(*self.arguments, alpha=self.alpha).fitness

    def cut(self, chosen: np.ndarray, needs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The partial combinations that may reach as much."""
        placed = list(self.order[: chosen.shape[1]])
        fps = np.stack([self.designs[j].fps[column] for j, column in zip(placed, chosen.T, strict=True)], 1)
        rest = self.most.sum() - self.most[placed].sum()
        # The squared deviations of all branches from their mean are at least those of some from theirs.
        reach = fps @ self.weights[placed] + rest - self.alpha * fps.var(1) * len(placed) / len(self.order)
        keep = reach >= self.reached - 1e-9
        return chosen[keep], needs[keep]


# --- every power of two ----------------------------------------------------------------------------------------------


def _powers(space: DesignSpace, budget: Budget, priorities: tuple[float, ...], batch: tuple[int, ...],
            alpha: float) -> Optimum:  # fmt: skip
    forest = Forest(space, batch, "powers")
    levels = [forest.levels[p] for p in range(len(batch))]
    combinations = int(np.prod([len(level) for level in levels], dtype=float))
    if combinations > MANY:
        raise I2IError("optimum", expected=f"at most {MANY} combinations of frame rates", got=combinations,
                       remedy="Take factors='paper'.")  # fmt: skip
    known, floor, none = None, -np.inf, None
    try:
        known = optimum(space, budget, priorities, batch, alpha=alpha)
        floor = known.fitness + 1e-9
    except I2IError as error:  # nothing fits; another split of the targets may
        none = error
    cycles = np.stack(np.meshgrid(*levels, indexing="ij"), -1).reshape(-1, len(batch))
    scores = fitness(np.array(batch) * space.frequency_hz / cycles, priorities, alpha)
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
            return _result(found, priorities, alpha, combinations, None, True)
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
