"""Beyond the paper: the best design that exists, by exact merging of trade-offs instead of a search.

:func:`fastest` finds the design with the largest objective, :func:`front` all best trade-offs of DSPs and block RAMs at
a bound on the cycles, :func:`fronts` the same over frame rates, :func:`refresh` whether a platform keeps up with a
headset, :func:`headroom` what the wider sets of factors give. The merging itself is in :mod:`.merging`.

Sets of factors (``factors=``), all with cpf, kpf <= 64 and h <= 32:
    "powers": powers of two; cpf and kpf divide the channels, as in the paper.
    "rows": cpf and kpf as in "powers", h any integer: the last partition may be smaller.
    "integers": any integers; the last round of a stage may leave multipliers idle (Eq. 4 with ceilings).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import inf, lcm
from typing import TYPE_CHECKING

import numpy as np

from ..errors import I2IError
from . import cost
from .arguments import batches, expect
from .construct import DesignSpace
from .merging import FACTORS, Forest, Front
from .platforms import platform

if TYPE_CHECKING:
    import pandas as pd

OBJECTIVES = ("slowest", "pairs")


def front(
    space: DesignSpace,
    cycles: int | Sequence[int],
    batch_sizes: Sequence[int] | None = None,
    *,
    factors: str = "integers",
    cap: cost.Budget | None = None,
    bandwidth: bool = False,
    pipeline: int | None = None,
    source_kpf: int | None = None,
) -> Front:
    """All best trade-offs of DSPs and block RAMs, on request also bandwidth, at a bound on the cycles: exact.

    Args:
        space: The design space.
        cycles: Most cycles of one frame, for all pipelines or one number for each.
        batch_sizes: Copies of each pipeline; one of each if None.
        factors: "powers", "rows" or "integers".
        cap: Most DSPs, block RAMs and, with ``bandwidth``, bit/s; None for no limit.
        bandwidth: A third cost beside the two: bit/s where every pipeline waits until its bound is over. A design that
            runs on at once takes more, as ``Front.bandwidth`` says. Such fronts are long: with "integers" and many
            coupled stages (a U-Net) they take minutes.
        pipeline: Index of the only one that takes part; None for all.
        source_kpf: Channels written at once by other pipelines, taken as given; needed for one pipeline that another
            feeds. Else the feeding stage's own kpf counts.

    Returns:
        The designs by rising DSPs, one for each best trade-off; empty where ``cap`` allows none.

    Raises:
        I2IError: If no factors keep the bound, or an argument has no meaning.
    """
    batch = _checked(space, batch_sizes, factors, source_kpf)
    if pipeline is not None and pipeline not in range(len(space.pipelines)):
        raise I2IError("pipeline", expected=f"an index below {len(space.pipelines)}, or None", got=pipeline)
    forest = Forest(space, batch, factors, pipeline, source_kpf)
    each = [cycles] * len(space.pipelines) if np.ndim(cycles) == 0 else list(cycles)
    if len(each) != len(space.pipelines):
        raise I2IError("cycles", expected=f"one number, or {len(space.pipelines)}", got=cycles)
    for p in forest.pipelines:
        least = int(forest.levels[p][0])
        if each[p] < least:
            raise I2IError(f"cycles of {space.pipelines[p].name}", expected=f"at least {least}, its fastest design",
                           got=each[p], remedy="Ask for a lower rate.")  # fmt: skip
    return _front(forest, {p: int(each[p]) for p in range(len(each))}, cap, bandwidth)


def _front(forest: Forest, bounds: dict[int, int], cap: cost.Budget | None, bandwidth: bool = False) -> Front:
    limit = np.array([inf, inf, inf] if cap is None else [cap.dsp, cap.bram, cap.bandwidth])
    solution = forest.solve(bounds, limit if bandwidth else limit[:2])
    if solution:
        return solution.front()
    none, pipelines = np.zeros(0, int), np.zeros((0, len(forest.space.pipelines)), int)
    factors = np.zeros((0, len(forest.stages), 3), int)
    return Front(forest.space, forest.batch, none, none, pipelines, pipelines, factors, tuple(forest.stages))


def fastest(
    space: DesignSpace,
    budget: cost.Budget | str,
    batch_sizes: Sequence[int] | None = None,
    *,
    factors: str = "integers",
    objective: str = "slowest",
    source_kpf: int | None = None,
) -> cost.Config:
    """The design with the largest objective that fits a budget. No design of the same factors does better.

    The objective can only take values that some stage's cycle count gives. Those that a bound on each resource alone
    (and on sums of DSPs and block RAMs) rules out are skipped; among the rest a bisection finds the largest that has a
    design on its front. Bandwidth is checked on that front, and becomes a third cost where it binds.

    Args:
        space: The design space.
        budget: DSPs, 18-Kb block RAMs, bit/s, or the name of a platform.
        batch_sizes: Copies of each pipeline; one of each if None.
        factors: "powers", "rows" or "integers".
        objective: "slowest", the lowest frame rate of the branches, or "pairs", moments per second: the lowest of
            frame rate over batch (``Evaluation.pairs_per_second``).
        source_kpf: Channels written at once by other pipelines, taken as given (a study of the model; the design found
            then costs something else in ``cost.evaluate``). None: the feeding stage's own kpf.

    Returns:
        The design; of several that reach the value, one with little of DSP and BRAM.

    Raises:
        I2IError: If no design fits, with what the smallest one needs; or an argument has no meaning.
    """
    if objective not in OBJECTIVES:
        raise I2IError("objective", expected=f"one of {OBJECTIVES}", got=objective)
    budget = platform(budget)
    batch = _checked(space, batch_sizes, factors, source_kpf)
    forest = Forest(space, batch, factors, None, source_kpf)
    # The time between frames, in units that make it a whole number for every pipeline.
    common = lcm(*batch)
    unit = [common // size if objective == "slowest" else 1 for size in batch]
    times = [unit[p] * forest.levels[p] for p in forest.pipelines]
    times = np.unique(np.concatenate(times)[np.concatenate(times) >= max(time[0] for time in times)])
    times = times[_possible(forest, budget, times, unit)]
    found: dict[int, Front | None] = {}
    hunt = _Hunt(forest, budget)

    def works(place: int) -> bool:
        found[place] = hunt.fitting({p: int(times[place]) // unit[p] for p in forest.pipelines})
        return found[place] is not None

    low, high, step = -1, 0, 1  # low fails; a fast design leaves little choice, so try the fastest first
    while high < len(times) and not works(high):
        low, high, step = high, high + step, 2 * step
        if high >= len(times) > low + 1:
            high = len(times) - 1
    if high >= len(times):
        raise _too_small(forest, budget)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    best = found[high]
    fits = np.flatnonzero(best.bandwidth <= budget.bandwidth * cost.ROUNDING)
    use = best.dsp[fits] / budget.dsp + best.bram[fits] / budget.bram
    return best.config(int(fits[use.argmin()]))


_MIXES = (1 / 8, 1 / 4, 1 / 2, 1 / 1.4, 1, 1.4, 2, 4, 8)  # weights of block RAMs against DSPs in bounds on their sum


def _possible(forest: Forest, budget: cost.Budget, times: np.ndarray, unit: list[int]) -> np.ndarray:
    """Which times between frames no simple bound rules out."""
    weights = np.array(
        [(1 / budget.dsp, 0, 0), (0, 1 / budget.bram, 0), *((1 / budget.dsp, mix / budget.bram, 0) for mix in _MIXES)]
    )
    limits = np.array([1, 1, *(1 + mix for mix in _MIXES)])
    total, bandwidth = np.zeros((len(times), len(limits))), np.zeros(len(times))
    for (p, _), table in zip(forest.stages, forest.tables, strict=True):
        total += table.floor(times // unit[p], weights)
    for p in forest.pipelines:
        place = np.searchsorted(forest.levels[p], times // unit[p], side="right") - 1
        bandwidth += np.minimum.accumulate(forest.bandwidth[p].min(0))[place]
    return (total <= limits * (1 + 1e-9)).all(1) & (bandwidth <= budget.bandwidth * (1 + 1e-9))


class _Hunt:
    """Looks for designs within a budget; remembers the weights that settled the last question."""

    def __init__(self, forest: Forest, budget: cost.Budget):
        self.forest = forest
        self.cap = np.array([budget.dsp, budget.bram, budget.bandwidth * cost.ROUNDING])
        self.weights = {2: 1 / self.cap[:2], 3: 1 / self.cap}

    def fitting(self, bounds: dict[int, int]) -> Front | None:
        """Designs within bounds of which at least one fits, or None if no such design exists."""
        found = self._some(bounds, 2, {})
        if found is None or found.bandwidth.min() <= self.cap[2]:
            return found
        return self._within(bounds, {})

    def _within(self, bounds: dict[int, int], pins: dict[int, int]) -> Front | None:
        """The same with bandwidth as a third cost, by branch and bound.

        The third cost is that of pipelines that wait until their bound is over, so it is a lower bound. Where it is met
        and the design still takes too much, it has a pipeline that is faster than its bound. Either that pipeline gets
        this many cycles as its new bound, or one of its stages, the slowest, must take more.
        """
        bounds, pins = self._allowed(bounds, pins)
        found = bounds and self._some(bounds, 3, pins)
        if not found or found.bandwidth.min() <= self.cap[2]:
            return found or None
        cycles = found.cycles[int(found.bandwidth.argmin())]
        p = max(bounds, key=lambda p: bounds[p] / cycles[p])
        least = int(cycles[p])
        if least == bounds[p]:  # only the rounding of sums stands between the two
            return None
        answer = self._within({**bounds, p: least}, pins)
        members = [index for index, (owner, _) in enumerate(self.forest.stages) if owner == p]
        for index in [index for index in members if index in pins] or members:
            answer = answer or self._within(bounds, {**pins, index: least})
        return answer

    def _allowed(self, bounds: dict[int, int], pins: dict[int, int]) -> tuple[dict[int, int], dict[int, int]]:
        """Bounds and pins without the cycles whose least bandwidth leaves too little for the others; empty: all do."""
        forest, least, pins = self.forest, {}, dict(pins)
        slowest = {forest.stages[index][0]: index for index in pins}
        for p, bound in bounds.items():
            members = [index for index, (owner, _) in enumerate(forest.stages) if owner == p]
            row, floor = (members.index(slowest[p]), pins[slowest[p]]) if p in slowest else (slice(None), 0)
            inside = (forest.levels[p] > floor) & (forest.levels[p] <= bound)
            least[p] = np.where(inside, np.atleast_2d(forest.bandwidth[p][row]).min(0), inf)
        spare = self.cap[2] * (1 + 1e-9) - sum(each.min() for each in least.values())
        if not spare >= 0:
            return {}, {}
        allowed = {p: forest.levels[p][each <= each.min() + spare] for p, each in least.items()}
        pins.update({index: int(allowed[p][0]) - 1 for p, index in slowest.items()})
        return {p: int(levels[-1]) for p, levels in allowed.items()}, pins

    def _some(self, bounds: dict[int, int], columns: int, pins: dict[int, int]) -> Front | None:
        """Some designs within bounds and caps, or None if there are none.

        Where much is left over, fronts grow long. So costs are first weighed into one (Lagrange), which often gives a
        design that fits or proves that none does; then only a part of what is left is used, and last all of it.
        """
        forest, cap = self.forest, self.cap[:columns]
        rate = forest.space.frequency_hz / np.array([bounds[p] for p in range(len(bounds))])
        for _ in range(6):
            weights = self.weights[columns]
            single = forest.solve(bounds, cap, pins=pins, weights=weights)
            if single is None:
                return None
            found = single.front()
            use = np.array([found.dsp[0], found.bram[0], found.moved[0] @ rate])[:columns] / cap
            if (use <= 1).all():
                return found
            weights = weights * np.maximum(use, 0.2) ** 4
            self.weights[columns] = weights / (weights @ cap)
        solution = forest.solve(bounds, cap, pins=pins, share=1 / 16) or forest.solve(bounds, cap, pins=pins)
        return solution and solution.front()


class _Unfit(I2IError):
    """No design fits the budget."""


def _too_small(forest: Forest, budget: cost.Budget) -> _Unfit:
    """What the smallest designs need, and what the budget gives."""
    smallest = forest.solve({p: int(forest.levels[p][-1]) for p in forest.pipelines}, np.array([inf, inf])).front()
    bandwidth = sum(forest.bandwidth[p].min() for p in forest.pipelines)
    need = {"DSP": smallest.dsp.min(), "BRAM": smallest.bram.min(), "bit/s": bandwidth}
    short = [f"{need:.6g} {name}" for (name, need), have in zip(
        need.items(), (budget.dsp, budget.bram, budget.bandwidth), strict=True) if need > have]  # fmt: skip
    got = f"{budget.dsp} DSP, {budget.bram} BRAM, {budget.bandwidth:.6g} bit/s"
    expected = "at least " + ", ".join(short) if short else "enough of all at once: DSP, BRAM and bit/s"
    return _Unfit(f"budget {budget.name}".strip(), expected=expected, got=got,
                    remedy="Take a larger platform, fewer copies or fewer bits.")  # fmt: skip


def _checked(
    space: DesignSpace, batch_sizes: Sequence[int] | None, factors: str, source_kpf: int | None = None
) -> tuple[int, ...]:
    expect("space", space, DesignSpace, "Construct it from a graph.")
    if factors not in FACTORS:
        raise I2IError("factors", expected=f"one of {FACTORS}", got=factors)
    if source_kpf is not None and source_kpf < 1:
        raise I2IError("source_kpf", expected="at least 1 channel, or None", got=source_kpf)
    return batches(batch_sizes, len(space.pipelines))


# --- tables and curves -----------------------------------------------------------------------------------------------


def value(config: cost.Config, objective: str = "slowest") -> float:
    """The objective of a design: FPS of its slowest branch, or stereo pairs per second."""
    if objective not in OBJECTIVES:
        raise I2IError("objective", expected=f"one of {OBJECTIVES}", got=objective)
    result = cost.evaluate(config)
    return result.slowest if objective == "slowest" else result.pairs_per_second


def dsp_bound(
    space: DesignSpace, budget: cost.Budget | str, batch_sizes: Sequence[int] | None = None, *,
    objective: str = "slowest",
) -> float:  # fmt: skip
    """What no design can exceed: the objective if every DSP but those of control multiplied in every cycle."""
    if objective not in OBJECTIVES:
        raise I2IError("objective", expected=f"one of {OBJECTIVES}", got=objective)
    budget = platform(budget)
    batch = _checked(space, batch_sizes, "integers")
    control = sum(cost.control(stage) for pipeline in space.pipelines for stage in pipeline.stages)
    images = batch if objective == "pairs" else (1,) * len(batch)
    work = sum(pipeline.macs * n for pipeline, n in zip(space.pipelines, images, strict=True))
    rate = cost.operations_per_dsp(space.bits) / 2 * space.frequency_hz
    return max(0.0, (budget.dsp - control) * rate / work)


def headroom(space: DesignSpace, budget: cost.Budget | str, batch_sizes: Sequence[int] | None = None) -> pd.DataFrame:
    """The largest objective in each set of factors, and the bound that DSPs alone set; one row for each objective."""
    import pandas as pd

    rows = {}
    for objective in OBJECTIVES:
        rows[objective] = {
            factors: value(fastest(space, budget, batch_sizes, factors=factors, objective=objective), objective)
            for factors in FACTORS
        }
        rows[objective]["DSP-only bound"] = dsp_bound(space, budget, batch_sizes, objective=objective)
    return pd.DataFrame(rows).T.rename_axis("objective")


@dataclasses.dataclass(frozen=True)
class Fronts:
    """Best designs over a range of rates: arrays of one length, a design at each index."""

    rate: np.ndarray  # asked for, FPS or pairs per second
    dsp: np.ndarray
    bram: np.ndarray  # 18-Kb blocks
    bandwidth: np.ndarray  # bit/s


def fronts(
    space: DesignSpace,
    rates: Sequence[float],
    batch_sizes: Sequence[int] | None = None,
    *,
    factors: str = "rows",
    objective: str = "slowest",
    cap: cost.Budget | None = None,
) -> Fronts:
    """Rate against DSPs, block RAMs and bandwidth: for each rate the exact front of designs that reach it.

    Args:
        space: The design space.
        rates: FPS of the slowest branch, or pairs per second.
        batch_sizes: Copies of each pipeline; one of each if None.
        factors: "powers", "rows" or "integers".
        objective: "slowest" or "pairs".
        cap: Leave out designs beyond this budget.

    Returns:
        Arrays for plotting; rates that no design reaches have no entry. Designs are best in DSPs and block RAMs; the
        bandwidth is what they take.

    Raises:
        I2IError: If a rate is not positive, or an argument has no meaning.
    """
    found = [(rate, _at_rate(space, rate, batch_sizes, factors, objective, cap)) for rate in rates]
    columns = [np.concatenate([np.zeros(0), *(getattr(f, n) for _, f in found)]) for n in ("dsp", "bram", "bandwidth")]
    keep = np.ones(len(columns[0]), bool) if cap is None else columns[2] <= cap.bandwidth
    rate = np.concatenate([np.zeros(0), *(np.full(len(f), rate) for rate, f in found)])
    return Fronts(rate[keep], columns[0][keep].astype(int), columns[1][keep].astype(int), columns[2][keep])


def _at_rate(space: DesignSpace, rate: float, batch_sizes: Sequence[int] | None, factors: str, objective: str,
             cap: cost.Budget | None) -> Front:  # fmt: skip
    if objective not in OBJECTIVES:
        raise I2IError("objective", expected=f"one of {OBJECTIVES}", got=objective)
    if not rate > 0:
        raise I2IError("rate", expected="more than 0 per second", got=rate)
    batch = _checked(space, batch_sizes, factors)
    forest = Forest(space, batch, factors)
    images = batch if objective == "slowest" else (1,) * len(batch)
    bounds = {p: int(n * space.frequency_hz / rate * (1 + 1e-12)) for p, n in enumerate(images)}
    return _front(forest, bounds, cap)


def refresh(
    space: DesignSpace,
    budget: cost.Budget | str,
    batch_sizes: Sequence[int] | None = None,
    *,
    rates: Sequence[float] = (90, 120),
    factors: Sequence[str] = FACTORS,
) -> pd.DataFrame:
    """Whether a budget keeps up with a headset, and what would.

    Args:
        space: The design space.
        budget: What the platform gives, or its name.
        batch_sizes: Copies of each pipeline, which are the images of one moment; one of each if None.
        rates: Refresh rates in Hz, a stereo pair each.
        factors: Sets of factors, one row each per rate.

    Returns:
        By rate and factors: pairs per second of the fastest design (0 where none fits), whether that keeps up, the
        least DSPs at any number of block RAMs and the reverse, and the least of either within the budget of the other
        (missing where there is none). Bandwidth enters only the fastest design.
    """
    import pandas as pd

    budget = platform(budget)
    rows = {}
    for kind in factors:
        try:
            best = value(fastest(space, budget, batch_sizes, factors=kind, objective="pairs"), "pairs")
        except _Unfit:
            best = 0.0
        for rate in rates:
            found = _at_rate(space, rate, batch_sizes, kind, "pairs", None)
            rows[rate, kind] = {
                "pairs/s in the budget": best,
                "keeps up": best >= rate,
                "least DSP": _least(found.dsp),
                "least BRAM": _least(found.bram),
                "least DSP within the BRAM": _least(found.dsp[found.bram <= budget.bram]),
                "least BRAM within the DSP": _least(found.bram[found.dsp <= budget.dsp]),
            }
    table = pd.DataFrame(rows).T.rename_axis(["rate (Hz)", "factors"])
    counts = {column: "Int64" for column in table.columns if column.startswith("least")}
    table = table.astype({"pairs/s in the budget": float, "keeps up": bool, **counts})
    return table.sort_index(level=0, sort_remaining=False)


def _least(counts: np.ndarray) -> int | None:
    return min(counts.tolist(), default=None)
