"""Exact trade-offs of designs: costs of stages added up, one stage after another, without what is dominated.

A stage has a finite set of factors (cpf, kpf, h) that keep a bound on its cycles, and costs add up over stages, so all
best costs of a pipeline are the pruned Minkowski sum of its stages' fronts. One thing couples stages: an input buffer
depends on how many channels arrive at once, the kpf of the stage that feeds it. Every stage has at most one such
source (``cost.source``), so the coupling is a forest: from its leaves up, each stage's front is kept for each width
that can arrive. Nothing is approximated. :mod:`.pareto` asks the questions.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from functools import cached_property, lru_cache
from math import inf

import numpy as np

from ..errors import I2IError
from . import cost
from .construct import DesignSpace, Stage

FACTORS = ("powers", "rows", "integers")
LIMITS = (64, 64, 32)  # of cpf, kpf and h: as far as the paper's designs reach


def prune(costs: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
    """Indices of the rows that no other row dominates; of equal rows one stays.

    Args:
        costs: (N, K), K from 1 to 3, lower is better.
        group: (N,) labels from 0; rows of different groups never meet.

    Returns:
        Indices, by group and then rising first column.

    Example:
        >>> prune(np.array([[3, 1], [1, 4], [2, 4], [3, 2]])).tolist()
        [1, 0]
    """
    group = np.zeros(len(costs), int) if group is None else group
    order = np.lexsort((*costs.T[::-1], group))
    if not len(order):
        return order
    if costs.shape[1] == 1:
        return order[np.diff(group[order], prepend=-1) != 0]
    span = np.ptp(costs[:, 1]) + 1
    second = costs[order, 1] - span * group[order]  # a new group starts below all of the last
    if costs.shape[1] == 2:
        return order[second < _least_before(second)]
    third = costs[order, 2]
    for level in np.unique(np.quantile(third, np.linspace(0, 1, 16, endpoint=False), method="lower")):
        # Rids us of most: rows behind one no dearer in the second column and at most ``level`` in the third.
        best = _least_before(np.where(third <= level, second, inf))
        keep = (third < level) | (second < best)
        order, second, third = order[keep], second[keep], third[keep]
    return order[_stairs(second, third, group[order])]


def _least_before(values: np.ndarray) -> np.ndarray:
    """For each value the least of those before it."""
    return np.concatenate([[inf], np.minimum.accumulate(values)[:-1]])


def _stairs(second: np.ndarray, third: np.ndarray, group: np.ndarray) -> list[int]:
    """Places of what no earlier row of its group dominates, by a staircase of the kept ones."""
    kept, last, stairs = [], None, []
    for index, (b, c, label) in enumerate(zip(second.tolist(), third.tolist(), group.tolist(), strict=True)):
        if label != last:
            last, stairs = label, []
        place = bisect_right(stairs, (b, inf))
        if place and -stairs[place - 1][1] <= c:
            continue
        kept.append(index)
        end = place
        while end < len(stairs) and -stairs[end][1] >= c:
            end += 1
        start = place - 1 if place and stairs[place - 1][0] == b else place
        stairs[start:end] = [(b, -c)]
    return kept


def merge(a: np.ndarray, b: np.ndarray, cap: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All sums of a row of ``a`` and a row of ``b`` that nothing dominates (the pruned Minkowski sum).

    Args:
        a: (N, K), K from 1 to 3.
        b: (M, K).
        cap: (K,): sums above it in any column are dropped.

    Returns:
        The sums (L, K), and for each the row of ``a`` and of ``b`` that it comes from.

    Example:
        >>> merge(np.array([[1, 9], [5, 2]]), np.array([[1, 1], [4, 0]]))[0].tolist()
        [[2, 10], [5, 9], [6, 3], [9, 2]]
    """
    sums = (a[:, None] + b[None]).reshape(-1, a.shape[1])
    rows = np.arange(len(sums)) if cap is None else np.flatnonzero((sums <= cap).all(1))
    rows = rows[prune(sums[rows])]
    return sums[rows], rows // len(b), rows % len(b)


@dataclasses.dataclass(frozen=True)
class Front:
    """Designs of which none beats another in DSPs and block RAMs; by rising DSPs."""

    space: DesignSpace
    batch: tuple[int, ...]
    dsp: np.ndarray  # (N,)
    bram: np.ndarray  # (N,), 18-Kb blocks
    cycles: np.ndarray  # (N, pipelines), of a frame; 0 for a pipeline that takes no part
    moved: np.ndarray  # (N, pipelines), bits of a frame to and from external memory
    factors: np.ndarray  # (N, stages, 3): cpf, kpf, h
    stages: tuple[tuple[int, int], ...]  # (pipeline, stage) of the second axis of factors

    def __len__(self) -> int:
        return len(self.dsp)

    @property
    def bandwidth(self) -> np.ndarray:
        """(N,), bit/s as ``cost.evaluate`` counts it."""
        return (self.moved * (self.space.frequency_hz / np.maximum(self.cycles, 1))).sum(1)

    def config(self, index: int) -> cost.Config:
        """One design of the front; only of a front over all pipelines."""
        found = dict(zip(self.stages, self.factors[index].tolist(), strict=True))
        if len(found) != sum(len(pipeline.stages) for pipeline in self.space.pipelines):
            raise I2IError("config", expected="a front over all pipelines", got="the front of one pipeline")
        factors = tuple(
            tuple(tuple(found[p, s]) for s in range(len(pipeline.stages)))
            for p, pipeline in enumerate(self.space.pipelines)
        )
        return cost.Config(self.space, factors, self.batch)


# --- stages ----------------------------------------------------------------------------------------------------------


def _values(stage: Stage, factors: str, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values that cpf, kpf and h may take."""
    most = np.minimum(LIMITS, cost.largest(stage))
    if factors == "integers":
        return tuple(np.arange(1, m + 1) for m in most)
    powers = 1 << np.arange(7)
    cpf = powers[(powers <= most[0]) & (stage.in_channels // stage.groups % powers == 0)]
    kpf = powers[(powers <= most[1]) & (stage.out_channels % powers == 0)]
    if stage.paired(bits):
        kpf = kpf[kpf > 1]  # two output channels share a DSP
    return cpf, kpf, powers[powers <= most[2]] if factors == "powers" else np.arange(1, most[2] + 1)


class Table:
    """Every factorisation of one stage as a grid (cpf, kpf, h), with its costs for all copies of a batch."""

    def __init__(self, stage: Stage, bits: int, batch: int, factors: str, widths: tuple[int, ...]):
        self.values = _values(stage, factors, bits)
        cpf, kpf, h = np.ix_(*self.values)
        first = cpf[:1], kpf[:, :1], h[:, :, :1]
        arriving = np.array(widths)[:, None, None, None]
        self.shape = tuple(map(len, self.values))
        self.cycles = np.broadcast_to(cost.cycles(stage, cpf, kpf, h), self.shape)
        self.dsp = cost.control(stage) + batch * cost.multipliers(stage, cpf, kpf, h, bits)
        # The map buffers are a term of (cpf, h, what arrives) and one of kpf.
        maps = cost.map_buffers(stage, cpf, first[1], h, bits, arriving)
        behind = cost.map_buffers(stage, first[0], kpf, first[2], bits, arriving[:1])[0]
        self.input = batch * maps[:, :, 0]  # (width, cpf, h)
        self.fixed = np.broadcast_to(
            cost.weight_buffers(stage, cpf, kpf, 1, bits) + batch * (behind - behind[:, :1]), (*self.shape[:2], 1)
        )[..., 0]  # (cpf, kpf)
        self.bits = np.broadcast_to(cost.moved(stage, cpf, kpf, bits, batch), (*self.shape[:2], 1))[..., 0]
        self.cheapest = self.input.min(0)

    @cached_property
    def levels(self) -> np.ndarray:
        """The cycle counts that the stage can have, rising."""
        return np.unique(self.cycles)

    @cached_property
    def _useless(self) -> np.ndarray:
        """(cpf, m, h): whether h partitions never pay where m are enough, because a number between costs no more."""
        n = self.shape[2]
        useless = np.ones((self.shape[0], n, n), bool)
        for h in range(n):
            no_better = (self.input[:, :, :h] <= self.input[:, :, h : h + 1]).all(0)  # (cpf, h): fewer, and no dearer
            reach = np.logical_or.accumulate(no_better[:, ::-1], axis=1)[:, ::-1]  # any of them from m on
            useless[:, :h, h] = reach
            useless[:, h, h] = False
        return useless

    def options(self, most: int, least: int = 0) -> tuple[np.ndarray, ...]:
        """Grid indices of the factors with more than ``least`` and at most ``most`` cycles.

        Without those that more partitions only make dearer.
        """
        enough = (self.cycles > most).sum(2)  # cycles fall with h
        cpf, kpf = np.nonzero(enough < self.shape[2])
        row, h = np.nonzero(~self._useless[cpf, enough[cpf, kpf]])
        slow = self.cycles[cpf[row], kpf[row], h] > least
        return cpf[row[slow]], kpf[row[slow]], h[slow]

    @cached_property
    def _rising(self) -> tuple[np.ndarray, np.ndarray]:
        """All factors by rising cycles: their cycles, and the columns DSP, BRAM (with the best width) and bits."""
        order = np.argsort(self.cycles, axis=None, kind="stable")
        bram = self.fixed[:, :, None] + self.cheapest[:, None]
        columns = np.broadcast_arrays(self.dsp, bram, self.bits[:, :, None])
        return self.cycles.reshape(-1)[order], np.stack(columns, -1).reshape(-1, 3)[order].astype(float)

    def lightest(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The fewest bits of a frame among factors with at most so many cycles, and with just so many (inf: none)."""
        cycles, bits = self._rising[0], self._rising[1][:, 2]
        own = self.levels >= levels[0]
        just = np.full(len(levels), inf)
        least = np.minimum.reduceat(bits, np.searchsorted(cycles, self.levels))
        just[np.searchsorted(levels, self.levels[own])] = least[own]
        return np.minimum.accumulate(bits)[np.searchsorted(cycles, levels, side="right") - 1], just

    def floor(self, bounds: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(bounds, weights): the least of each weighted sum of (DSP, BRAM, bits) among factors within each bound."""
        cycles, columns = self._rising
        return np.minimum.accumulate(columns @ weights.T)[np.searchsorted(cycles, bounds, side="right") - 1]


@lru_cache(maxsize=48)
def _table(stage: Stage, bits: int, batch: int, factors: str, widths: tuple[int, ...]) -> Table:
    return Table(stage, bits, batch, factors, widths)


# --- whole designs ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Points:
    """A front with the way back: costs (N, K), the option of the stage, and the row of what hangs below it."""

    costs: np.ndarray
    option: np.ndarray  # flat index into the stage's grid
    below: np.ndarray  # row of the product of its children's fronts


class Forest:
    """The stages of some pipelines; a stage is the parent of those whose input buffer depends on its kpf."""

    def __init__(self, space: DesignSpace, batch: tuple[int, ...], factors: str, only: int | None = None,
                 source_kpf: int | None = None):  # fmt: skip
        self.space, self.batch = space, batch
        self.pipelines = space.order if only is None else (only,)
        self.stages = [(p, s) for p in self.pipelines for s in range(len(space.pipelines[p].stages))]
        place = {stage: index for index, stage in enumerate(self.stages)}
        self.children: list[list[int]] = [[] for _ in self.stages]
        self.roots: list[int] = []
        self.tables: list[Table] = []
        for index, (p, s) in enumerate(self.stages):
            source = cost.source(space, p, s)
            if source in place and not (source_kpf and source[0] != p):
                self.children[place[source]].append(index)
                widths = tuple(self.tables[place[source]].values[1].tolist())
            else:
                self.roots.append(index)
                widths = (int(cost.arriving(space, p, s, source_kpf)),)
            self.tables.append(_table(space.pipelines[p].stages[s], space.bits, batch[p], factors, widths))

    @cached_property
    def levels(self) -> dict[int, np.ndarray]:
        """Cycle counts that each pipeline can have: those of a stage that no other is bound to exceed; rising."""
        levels = {}
        for p in self.pipelines:
            tables = [table for (q, _), table in zip(self.stages, self.tables, strict=True) if q == p]
            every = np.unique(np.concatenate([table.levels for table in tables]))
            levels[p] = every[every >= max(table.levels[0] for table in tables)]
        return levels

    @cached_property
    def bandwidth(self) -> dict[int, np.ndarray]:
        """(stages, levels) of each pipeline: bit/s below which no design goes whose slowest stage takes the level."""
        least = {}
        for p in self.pipelines:
            tables = [table for (q, _), table in zip(self.stages, self.tables, strict=True) if q == p]
            at_most, just = zip(*(table.lightest(self.levels[p]) for table in tables), strict=True)
            bits = np.sum(at_most, axis=0) + np.array(just) - np.array(at_most)
            least[p] = bits * (self.space.frequency_hz / self.levels[p])
        return least

    def solve(self, bounds: dict[int, int], cap: np.ndarray, *, weights: np.ndarray | None = None,
              pins: dict[int, int] | None = None, share: float = 1) -> Solution | None:  # fmt: skip
        """All best costs of designs within bounds on the cycles of each pipeline; None if there are none.

        Args:
            bounds: Most cycles of a frame, by pipeline.
            cap: (2,) most DSPs and block RAMs, or (3,) with bit/s of a design that takes just the cycles of the bounds.
            weights: Merge the sum of the costs with these weights (one each) instead: a single best design, and none
                where the cap so weighted is too low.
            pins: Stages (by index) that must take more than so many cycles.
            share: Use only that part of the DSPs and block RAMs that are left where every stage takes the least.
        """
        mix = np.eye(len(cap)) if weights is None else weights[:, None]
        cap, buffer = cap if weights is None else cap @ mix * (1 + 1e-9), mix[1]
        pins = pins or {}
        frequency, chosen, base, low = self.space.frequency_hz, [], [], []
        for index, ((p, _), table) in enumerate(zip(self.stages, self.tables, strict=True)):
            option = table.options(bounds[p], pins.get(index, 0))
            if not len(option[0]):
                return None
            cpf, kpf, h = option
            columns = [table.dsp[option], table.fixed[cpf, kpf], _fine(table.bits[cpf, kpf] * (frequency / bounds[p]))]
            columns = np.stack(columns[: len(mix)], 1) @ mix
            chosen.append(option)
            base.append(columns)
            low.append((columns + buffer * table.cheapest[cpf, h][:, None]).min(0))
        low = np.array(low)
        spare = cap - low.sum(0)  # what is left where every stage takes the least
        if (spare < 0).any():
            return None
        spare[:2] *= share
        cap = low.sum(0) + spare
        under = low.copy()  # the least of a stage and all below it
        for index in reversed(range(len(self.stages))):
            for child in self.children[index]:
                under[index] += under[child]
        fronts: dict[int, list[Points | None]] = {}
        products: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        for index in reversed(range(len(self.stages))):
            table, (cpf, kpf, h), costs = self.tables[index], chosen[index], base[index]
            room, below = under[index] + spare, under[index] - low[index]
            fits = costs + below + buffer * table.cheapest[cpf, h][:, None]
            keep = np.flatnonzero((fits <= room).all(1))
            cpf, kpf, h, costs = cpf[keep], kpf[keep], h[keep], costs[keep]
            option = np.ravel_multi_index((cpf, kpf, h), table.shape)
            row = np.zeros(len(keep), int)
            if self.children[index]:
                offset, rows, parts = np.zeros(table.shape[1], int), np.zeros(table.shape[1], int), []
                for k in np.unique(kpf).tolist():
                    found = [fronts[child][k] for child in self.children[index]]
                    if any(points is None for points in found):
                        continue
                    product = _product([points.costs for points in found], below + spare)
                    products[index, k] = product
                    offset[k], rows[k] = sum(map(len, parts)), len(product[0])
                    parts.append(product[0])
                if not parts:
                    return None
                repeat = np.repeat(np.arange(len(keep)), rows[kpf])
                row = np.arange(len(repeat)) - np.repeat(np.cumsum(rows[kpf]) - rows[kpf], rows[kpf])
                costs = costs[repeat] + np.concatenate(parts)[offset[kpf[repeat]] + row]
                cpf, h, option = cpf[repeat], h[repeat], option[repeat]
            found = _by_width(table, costs, cpf, h, buffer, room)
            if not any(found):
                return None
            fronts[index] = [points and Points(points[0], option[points[1]], row[points[1]]) for points in found]
        total = _product([fronts[root][0].costs for root in self.roots], cap)
        return Solution(self, fronts, products, *total) if len(total[0]) else None


def _fine(bandwidth: np.ndarray) -> np.ndarray:
    """Rounded down to 1/1024 bit/s: sums stay exact, so equal ones are found equal."""
    return np.floor(bandwidth * 1024) / 1024


def _by_width(
    table: Table, costs: np.ndarray, cpf: np.ndarray, h: np.ndarray, buffer: np.ndarray, room: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """For each width that can arrive: the front with that input buffer added, and the rows that it comes from."""
    rows = np.arange(len(costs))
    if len(table.input) > 1:  # what is worse at the same (cpf, h) is worse at every width
        rows = np.flatnonzero((costs + buffer * table.cheapest[cpf, h][:, None] <= room).all(1))
        rows = rows[prune(costs[rows], cpf[rows] * table.shape[2] + h[rows])]
    kinds, kind = np.unique(table.input[:, cpf[rows], h[rows]], axis=0, return_inverse=True)
    fronts = []
    for blocks in kinds:
        full = costs[rows] + buffer * blocks[:, None]
        fit = np.flatnonzero((full <= room).all(1))
        best = fit[prune(full[fit])]
        fronts.append((full[best], rows[best]) if len(best) else None)
    return [fronts[index] for index in kind.reshape(-1)]


def _product(fronts: list[np.ndarray], cap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The front of sums of one row of each, within a cap; and which rows (N, fronts) they are."""
    least = np.array([front.min(0) for front in fronts])
    costs, rows = fronts[0], np.arange(len(fronts[0]))[:, None]
    for index, front in enumerate(fronts[1:], start=1):
        costs, left, right = merge(costs, front, cap - least[index + 1 :].sum(0))
        rows = np.column_stack([rows[left], right])
    fit = np.flatnonzero((costs <= cap).all(1))
    return costs[fit], rows[fit]


@dataclasses.dataclass(frozen=True)
class Solution:
    """Best costs of whole designs, and how each comes about."""

    forest: Forest
    fronts: dict[int, list[Points | None]]
    products: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]
    costs: np.ndarray
    rows: np.ndarray  # (N, roots)

    def front(self) -> Front:
        """The designs with their factors."""
        forest, n = self.forest, len(self.costs)
        width = np.zeros((len(forest.stages), n), int)
        row = np.zeros((len(forest.stages), n), int)
        row[forest.roots] = self.rows.T
        factors = np.zeros((n, len(forest.stages), 3), int)
        count = len(forest.space.pipelines)
        cycles, bits = np.zeros((n, count), int), np.zeros((n, count), int)
        dsp, bram = np.zeros(n, int), np.zeros(n, int)
        for index, ((p, _), table) in enumerate(zip(forest.stages, forest.tables, strict=True)):
            option, below = np.zeros(n, int), np.zeros(n, int)
            for w in np.unique(width[index]):
                where, points = width[index] == w, self.fronts[index][w]
                option[where] = points.option[row[index][where]]
                below[where] = points.below[row[index][where]]
            cpf, kpf, h = np.unravel_index(option, table.shape)
            for k in np.unique(kpf).tolist() if forest.children[index] else ():
                where = np.flatnonzero(kpf == k)
                for j, child in enumerate(forest.children[index]):
                    width[child][where] = k
                    row[child][where] = self.products[index, k][1][below[where], j]
            factors[:, index] = np.stack([v[i] for v, i in zip(table.values, (cpf, kpf, h), strict=True)], 1)
            cycles[:, p] = np.maximum(cycles[:, p], table.cycles[cpf, kpf, h])
            dsp += table.dsp[cpf, kpf, h]
            bram += table.fixed[cpf, kpf] + table.input[width[index], cpf, h]
            bits[:, p] += table.bits[cpf, kpf]
        return Front(forest.space, forest.batch, dsp, bram, cycles, bits, factors, tuple(forest.stages))
