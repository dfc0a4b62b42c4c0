"""The best choice of one design for each branch where combinations are too many to try: exact, or with a bound.

A branch takes one of its designs, whose needs add up to the budget at most; buffers between branches depend on a pair
of designs, one on each side. That is an integer program (SciPy's HiGHS solves it). The penalty on how far the rates lie
apart is convex, so planes that touch it from below stand for it: each solution adds the plane at its own rates, until
the program's best value is that of a real design, or time is over. Either way nothing exceeds the last value.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from .cost import ROUNDING, Budget
from .goal import USUAL, Goal
from .ladder import Designs, log2

CLOSE = 1e-6  # of the value: nearer than that, the best is found


@dataclasses.dataclass(frozen=True)
class Choice:
    """One design for each branch."""

    rows: tuple[int, ...]
    score: float
    bound: float  # what no choice exceeds; the score itself where that is proven to be the best


def choose(
    goal: Goal, designs: Sequence[Designs], budget: Budget, start: np.ndarray | None = None, *, seconds: float = 20.0
) -> Choice | None:
    """Choose designs for the largest score within a budget.

    Args:
        goal: What is maximised.
        designs: Those of each branch.
        budget: Of all together.
        start: (points, branches) cycles of designs that are known to fit: where the penalty is touched first.
        seconds: After which the last bound is given.

    Returns:
        The best choice found, and the bound; None where nothing fits, or nothing was found in time.
    """
    program = _Program(goal, designs, budget)
    ends = time.monotonic() + seconds
    for cycles in () if start is None else start:
        program.touch(goal.rates(cycles))
    best, bound = None, np.inf
    while (left := ends - time.monotonic()) > 0:
        found, limit = program.solve(left)
        bound = min(bound, limit)
        if found is None:
            break
        score, rates = program.judge(found)
        if best is None or score > best.score:
            best = Choice(tuple(found), score, bound)
        if bound <= best.score + CLOSE * abs(best.score) or not program.touch(rates):
            break
    if best is None:
        return None
    exact = bound <= best.score + CLOSE * abs(best.score)
    return dataclasses.replace(best, bound=best.score if exact else bound)


class _Program:
    """Variables: a binary for each design, pairs of designs that share a buffer, delivered rates, and the penalty."""

    def __init__(self, goal: Goal, designs: Sequence[Designs], budget: Budget):
        self.goal, self.designs = goal, designs
        self.first = np.cumsum([0, *map(len, designs)])
        self.equal: list[dict[int, float]] = []
        self.at_most: list[tuple[dict[int, float], float]] = []
        needs = [np.stack([d.dsp, d.bram, d.bandwidth], 1).astype(float) for d in designs]
        given = np.array([budget.dsp, budget.bram, budget.bandwidth], float)
        self.count = int(self.first[-1])
        spent = [dict(enumerate(np.concatenate([need[:, r] for need in needs]) / given[r])) for r in range(3)]
        for b, found in enumerate(designs):
            for (p, s), table in found.fed.items():
                # The pair (design here, width there): all widths of a design sum to it, all designs to the width.
                widths = np.unique(log2(designs[p].factors[:, s, 1]))
                pair = self._new(len(found) * len(widths)).reshape(len(found), len(widths))
                for row in range(len(found)):
                    self.equal.append({**dict.fromkeys(pair[row].tolist(), 1.0), int(self.first[b] + row): -1.0})
                for column, width in enumerate(widths):
                    there = np.flatnonzero(log2(designs[p].factors[:, s, 1]) == width) + self.first[p]
                    here = dict.fromkeys(pair[:, column].tolist(), 1.0)
                    self.equal.append(here | dict.fromkeys(there.tolist(), -1.0))
                spent[1] |= dict(zip(pair.ravel().tolist(), (table[:, widths] / given[1]).ravel(), strict=True))
        self.at_most += [(row, ROUNDING) for row in spent]
        self.rate = self._new(len(designs))
        self.penalty = int(self._new(1)[0])
        self._rates()
        self.touched: set[tuple[float, ...]] = set()

    def _new(self, count: int) -> np.ndarray:
        self.count += count
        return np.arange(self.count - count, self.count)

    def _rates(self) -> None:
        """A branch's rate is that of its design, or at most that of any branch for which it must wait."""
        built = self.goal.objective == "built"
        for b in range(len(self.designs)):
            for q, other in enumerate(self.designs):
                if q != b and (built or not self._waits(b, q)):
                    continue
                cycles = np.ones((len(other), len(self.designs)))  # what b delivers if q alone held it up
                cycles[:, q] = other.cycles
                columns = (self.first[q] + np.arange(len(other))).tolist()
                rates = (-self.goal.rates(cycles)[:, b]).tolist()
                row = {int(self.rate[b]): 1.0, **dict(zip(columns, rates, strict=True))}
                self.at_most.append((row, 0.0))

    def _waits(self, b: int, q: int) -> bool:
        """Whether a slower q makes b slower."""
        cycles = np.ones((2, len(self.designs)))
        cycles[1, q] = 2
        fast, slow = self.goal.rates(cycles)[:, b]
        return bool(slow < fast)

    def touch(self, rates: np.ndarray) -> bool:
        """Hold the penalty above its tangent at these rates; False where it is already."""
        goal, key = self.goal, tuple(np.round(rates, 6).tolist())
        if goal.objective == "slowest" or goal.alpha == 0 or key in self.touched:
            return False
        self.touched.add(key)
        n, mean = len(rates), rates.mean()
        value, slope = rates.var(), 2 * (rates - mean) / n
        if goal.penalty == "relative":
            value, slope = USUAL * value / mean, USUAL * (slope / mean - value / mean**2 / n)
        value, slope = goal.alpha * value, goal.alpha * slope
        row = dict(zip(self.rate.tolist(), slope.tolist(), strict=True)) | {self.penalty: -1.0}
        self.at_most.append((row, float(slope @ rates - value)))
        return True

    def solve(self, seconds: float) -> tuple[list[int] | None, float]:
        """The designs of the best solution, and what no solution exceeds."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        goal, count = self.goal, self.count + (self.goal.objective == "slowest")
        value = np.zeros(count)
        at_most = list(self.at_most)
        if goal.objective == "slowest":
            value[-1] = -1
            at_most += [({count - 1: 1.0, int(rate): -1.0}, 0.0) for rate in self.rate]
        else:
            value[self.rate], value[self.penalty] = -np.array(goal.priorities), 1
        one = [dict.fromkeys(range(a, b), 1.0) for a, b in zip(self.first[:-1], self.first[1:], strict=True)]

        def matrix(rows: Sequence[dict[int, float]]) -> csr_array:
            places = [(r, c, v) for r, row in enumerate(rows) for c, v in row.items()]
            r, c, v = zip(*places, strict=True)
            return csr_array((v, (r, c)), shape=(len(rows), count))

        rules = [
            LinearConstraint(matrix(one), 1, 1),
            LinearConstraint(matrix([row for row, _ in at_most]), -np.inf, np.array([most for _, most in at_most])),
        ]
        if self.equal:
            rules.append(LinearConstraint(matrix(self.equal), 0, 0))
        whole = np.zeros(count)
        whole[: self.first[-1]] = 1
        upper = np.full(count, np.inf)
        upper[: self.first[-1]] = 1
        options = {"time_limit": max(seconds, 0.1), "mip_rel_gap": CLOSE / 10}
        result = milp(value, constraints=rules, integrality=whole, bounds=Bounds(0, upper), options=options)
        dual = getattr(result, "mip_dual_bound", None)
        limit = -dual if dual is not None else (-result.fun if result.x is not None else np.inf)
        if result.x is None:
            return None, limit
        return [int(np.argmax(result.x[a:b])) for a, b in zip(self.first[:-1], self.first[1:], strict=True)], limit

    def judge(self, rows: Sequence[int]) -> tuple[float, np.ndarray]:
        """The score of a choice, and its rates."""
        cycles = np.array([found.cycles[row] for found, row in zip(self.designs, rows, strict=True)])
        return float(self.goal.score(cycles)), self.goal.rates(cycles)
