"""In a branch (Algorithm 2 of F-CAD): what one pipeline makes of its share of DSPs, block RAMs and bandwidth.

Bandwidth sets a target of parallelism for every stage in proportion to its work, then all targets are halved together
until the branch fits. That is a ladder. Targets are rounded to powers of two, so a branch is a vector of exponents,
one a stage; one halving takes 1 off each, down to 0. Where the ladder starts depends on the bandwidth share alone,
and only through the order in which stages round up. All ladders of a branch together have some hundred rungs: they are
costed once, as arrays, and a whole population then climbs down by looking up.

Readings of what the paper leaves open:

- Operations count 2 for each multiply-accumulate; only their ratios matter. ``norm_param`` is bits / height: weight
  traffic of one multiplier, since a weight serves one output column.
- Targets are rounded up to whole numbers once, then halved as reals, never below 1.
- What a branch needs is what :func:`~i2ilib.fcad.cost.evaluate` says of it: control, weight and bias buffers and the
  traffic of weights once, multipliers and buffers of maps for each copy of the batch. So budgets hold by construction.
- A pipeline comes after those that feed it: how wide their stages write decides its input buffer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from ..errors import I2IError
from . import cost
from .arguments import batches
from .construct import DesignSpace, Stage
from .cost import ROUNDING, Budget, Config, Factors

LIMIT = 64  # largest cpf and kpf
RATIO = 2  # cpf is at most that many times kpf while kpf can grow
WIDTHS = 1 << np.arange(LIMIT.bit_length())  # what a source may write at once: kpf of any stage


def factors(pf: float, stage: Stage, bits: int, *, partition: bool = True) -> Factors:
    """Split a target of parallelism into channels in, channels out and rows (``GetPF`` of Algorithm 2).

    The target is rounded to a power of two. Input channels are served first, as far as a power of two divides them,
    then output channels; ``cpf`` gives way while it exceeds twice ``kpf``; what channels cannot take goes to ``h``.

    Args:
        pf: Multiplications at once that are aimed at, positive.
        stage: The stage.
        bits: 8 or 16. Where output channels are computed in pairs (``Stage.paired``) ``kpf`` is at least 2.
        partition: Whether the height may be partitioned; DNNBuilder, without it, stops at ``cpf * kpf``.

    Returns:
        (cpf, kpf, h), powers of two.

    Raises:
        I2IError: If ``pf`` is not positive and finite.
    """
    if not 0 < pf < math.inf:
        raise I2IError("pf", expected="a positive, finite target of parallelism", got=pf)
    return _split(max(round(math.log2(pf)), 0), *_shape(stage, bits), partition)


def _shape(stage: Stage, bits: int) -> tuple[int, int, int, bool]:
    """What the split depends on: channels in (of a group) and out, rows, whether outputs come in pairs."""
    return stage.in_channels // stage.groups, stage.out_channels, stage.height, stage.paired(bits)


def _split(exponent: int, inner: int, outer: int, rows: int, paired: bool, partition: bool) -> Factors:
    target = 1 << exponent
    cpf = _power(inner, target)
    kpf, most = _power(outer, target // cpf), _power(outer, target)
    while cpf > RATIO * kpf and kpf < most:
        cpf, kpf = cpf // 2, kpf * 2
    h = min(max(1, target // (cpf * kpf)), 1 << rows.bit_length() - 1) if partition else 1
    return cpf, max(2, kpf) if paired else kpf, h


def _power(channels: int, most: int) -> int:
    """The largest power of two that divides ``channels``, up to ``most`` and to LIMIT, all of them powers of two."""
    return min(channels & -channels, most, LIMIT)


@lru_cache(maxsize=4096)
def _splits(inner: int, outer: int, rows: int, paired: bool, partition: bool) -> np.ndarray:
    """(exponents, 3): the factors for targets 1, 2, 4, ...; from the last row on they stay."""
    last = (_power(inner, LIMIT) * _power(outer, LIMIT) * (rows if partition else 1)).bit_length() - 1
    table = np.array([_split(e, inner, outer, rows, paired, partition) for e in range(last + 1)])
    table.setflags(write=False)
    return table


def splits(stage: Stage, bits: int, *, partition: bool = True) -> np.ndarray:
    """(exponents, 3) int: ``factors(2**e, ...)`` for e = 0, 1, ...; from the last row on they stay the same."""
    return _splits(*_shape(stage, bits), partition)


class Designs:
    """Designs of one pipeline, as arrays: costs of all copies of its batch.

    Args:
        space: The design space.
        pipeline: Index of the pipeline.
        batch: Copies.
        exponents: (N, stages) int: a target of parallelism of two to this power for each stage.

    Attributes:
        factors: (N, stages, 3) int: cpf, kpf, h.
        cycles: (N,) int: of the slowest stage, per frame.
        fps: (N,) of all copies.
        dsp: (N,) int.
        bram: (N,) int: 18-Kb blocks, without what ``fed`` says.
        fed: By (pipeline, stage) of another pipeline that feeds this one: (N, 7) int, block RAMs of the input buffers
            behind it where it writes 1, 2, 4, ... 64 channels at once.
        bandwidth: (N,) bit/s, mean over a frame.
    """

    def __init__(self, space: DesignSpace, pipeline: int, batch: int, exponents: np.ndarray):
        stages, bits = space.pipelines[pipeline].stages, space.bits
        tables = [splits(stage, bits) for stage in stages]
        self.exponents = exponents
        self.factors = np.stack([t[np.minimum(e, len(t) - 1)] for t, e in zip(tables, exponents.T, strict=True)], 1)
        self.cycles, self.dsp, self.bram, moved = (np.zeros(len(exponents), np.int64) for _ in range(4))
        self.fed: dict[tuple[int, int], np.ndarray] = {}
        for index, stage in enumerate(stages):
            cpf, kpf, h = three = self.factors[:, index].T
            self.cycles = np.maximum(self.cycles, cost.cycles(stage, cpf, kpf, h))
            self.dsp += cost.control(stage) + batch * cost.multipliers(stage, cpf, kpf, h, bits)
            self.bram += cost.weight_buffers(stage, cpf, kpf, h, bits)
            moved += cost.moved(stage, cpf, kpf, bits, batch)
            source = cost.source(space, pipeline, index)
            if source is None or source[0] == pipeline:
                width = cost.arriving(space, pipeline, index, source and self.factors[:, source[1], 1])
                self.bram += batch * cost.map_buffers(stage, cpf, kpf, h, bits, width)
            else:
                buffers = batch * cost.map_buffers(stage, *three[..., None], bits, WIDTHS)
                self.fed[source] = self.fed.get(source, 0) + buffers
        self.fps = batch * space.frequency_hz / self.cycles
        self.bandwidth = moved * (space.frequency_hz / self.cycles)

    def __len__(self) -> int:
        return len(self.cycles)


def worth(space: DesignSpace, pipeline: int, designs: Designs) -> np.ndarray:
    """Indices of designs that no other of the same rate, and the same widths where they feed others, makes superfluous.

    That is: none undercuts or equals them in DSPs, block RAMs and bandwidth; the first of equal ones stays.
    """
    sent = [s for other in space.pipelines for stage in other.stages for p, s in stage.sources[:1]
            if p == pipeline and other is not space.pipelines[pipeline]]  # fmt: skip
    kind = np.column_stack([designs.cycles, designs.factors[:, sorted(set(sent)), 1]])
    _, kind = np.unique(kind, axis=0, return_inverse=True)
    price = np.column_stack([designs.dsp, designs.bram, designs.bandwidth, *designs.fed.values()])
    order = np.argsort(kind.reshape(-1), kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(kind.reshape(-1)[order])) + 1)
    return np.sort(np.concatenate([rows[_undominated(price[rows])] for rows in groups]))


def _undominated(price: np.ndarray) -> np.ndarray:
    """Rows that no other undercuts or equals in all columns; the first of equal ones stays."""
    values, index = np.unique(price, axis=0, return_index=True)
    no_dearer = (values[:, None] <= values).all(2)
    return index[no_dearer.sum(0) == 1]


class Ladder(Designs):
    """All that Algorithm 2 can make of one pipeline, whatever its share: designs, and the order in which it tries them.

    Args:
        space: The design space.
        pipeline: Index of the pipeline.
        batch: Copies that are asked for.
        bandwidth: The most bandwidth that a share may hold, bit/s.
        levels: Hold level designs too: for each cycle count that a stage can have, the smallest target of every stage
            that keeps it. Halving all targets together can step over them.

    Attributes:
        norm: ``norm_bw``, bit/s: weight traffic at targets in proportion to work, 1 for the smallest stage.
        starts: (S,) rising: bandwidth over ``norm`` beyond which one more target rounds up.
        rungs: (S + 1, T) int: from each start, the designs after 0, 1, ... halvings.
        levels: (L,) int: the level designs, the fastest first; none where not asked for.
        least: (N,) bit/s: the smallest share of bandwidth from which a design is reached, and which pays for it.
    """

    def __init__(self, space: DesignSpace, pipeline: int, batch: int, bandwidth: float, *, levels: bool = False):
        stages = space.pipelines[pipeline].stages
        macs = np.array([stage.macs for stage in stages], float)
        ratio = macs / macs.min()
        reuse = np.array([cost.traffic(stage, 1, 1, 1, space.bits) for stage in stages])
        self.norm = float((ratio * reuse).sum() * space.frequency_hz)
        # A target of ceil(x ratio) rounds to 2^e from n = ceil(2^(e - 1/2)) on, that is for x above (n - 1) / ratio.
        highest = int(np.log2(np.ceil(bandwidth / self.norm * ratio.max())) + 0.5)
        least = np.ceil(2.0 ** (np.arange(1, highest + 1) - 0.5)) - 1
        beyond = least / ratio[:, None]
        self.starts = np.unique(beyond[beyond < bandwidth / self.norm * ROUNDING])
        first = np.zeros((len(self.starts) + 1, len(stages)), np.int16)
        first[1:] = np.stack([np.searchsorted(row, self.starts, side="right") for row in beyond], 1)
        steps = np.arange(first.max() + 1, dtype=np.int16)
        tops = [len(splits(stage, space.bits)) - 1 for stage in stages]
        tried = np.clip(first[:, None] - steps[:, None], 0, tops).reshape(-1, len(stages))
        level = level_exponents(stages, space.bits) if levels else np.zeros((0, len(stages)), int)
        exponents, rows = np.unique(np.vstack([tried, level]), axis=0, return_inverse=True)
        rows = rows.reshape(-1)
        self.rungs = rows[: len(tried)].reshape(len(first), len(steps))
        super().__init__(space, pipeline, batch, exponents)
        self.levels = np.unique(rows[len(tried) :])
        self.levels = self.levels[np.argsort(self.cycles[self.levels], kind="stable")]
        lowest = np.concatenate([[0], self.starts * ROUNDING**8])[:, None] * self.norm
        highest = np.concatenate([self.starts, [math.inf]])[:, None] * self.norm
        needed = np.maximum(self.bandwidth[self.rungs], lowest)
        self.least = np.full(len(self), math.inf)
        np.minimum.at(self.least, self.rungs, np.where(needed <= highest, needed, math.inf))
        np.minimum.at(self.least, self.levels, self.bandwidth[self.levels])

    def descend(self, limits: Sequence[np.ndarray], widths: Mapping[tuple[int, int], np.ndarray]) -> np.ndarray:
        """Run Algorithm 2 for many shares at once, and take a level design where it is faster.

        Args:
            limits: DSPs, block RAMs and bit/s, (P,) each.
            widths: Channels that the stages of other pipelines write at once, (P,) each: powers of two up to 64.

        Returns:
            (P,) int: index of the design, -1 where none fits.
        """
        dsp, bram, bandwidth = (np.asarray(limit, float)[:, None] * ROUNDING for limit in limits)
        tried = self.rungs[np.searchsorted(self.starts, bandwidth[:, 0] / self.norm / ROUNDING)]  # (P, T)
        ports = {source: log2(width) for source, width in widths.items() if source in self.fed}

        def first(rows: np.ndarray) -> np.ndarray:
            """(P,) the first design of each row that fits, -1 where none does."""
            needed = self.bram[rows]
            for source, buffers in self.fed.items():
                needed = needed + buffers[rows, ports[source][:, None]]
            fits = (self.dsp[rows] <= dsp) & (needed <= bram) & (self.bandwidth[rows] <= bandwidth)
            place = fits.argmax(1)[:, None]
            return np.where(fits.any(1), np.take_along_axis(np.broadcast_to(rows, fits.shape), place, 1)[:, 0], -1)

        found = first(tried)
        if not len(self.levels):
            return found
        level = first(self.levels[None])
        faster = (level >= 0) & ((found < 0) | (self.cycles[level] < self.cycles[found]))
        return np.where(faster, level, found)


def log2(powers: np.ndarray) -> np.ndarray:
    return np.frexp(powers)[1] - 1


def in_branch(
    space: DesignSpace, pipeline: int, share: Budget, batch: int = 1,
    kpf_of_source: Mapping[tuple[int, int], int] | None = None,
) -> tuple[Factors, ...] | None:  # fmt: skip
    """The best design of one branch within its share (Algorithm 2).

    Args:
        space: The design space.
        pipeline: Index of the branch.
        share: DSPs, block RAMs and bandwidth of this branch alone.
        batch: Copies that are asked for.
        kpf_of_source: ``kpf`` of each stage of another pipeline that feeds this one, by (pipeline, stage).

    Returns:
        (cpf, kpf, h) of each stage, or None where even targets of 1 do not fit.

    Raises:
        I2IError: If the batch is no whole number from 1, or the ``kpf`` of a feeding stage is missing.
    """
    (batch,) = batches((batch,), 1)
    ladder = Ladder(space, pipeline, batch, finite(share).bandwidth)
    widths = {}
    for source in ladder.fed:
        width = (kpf_of_source or {}).get(source)
        if width not in WIDTHS:
            expected = f"a power of two up to {LIMIT} for stage {source}, which feeds pipeline {pipeline}"
            raise I2IError("kpf_of_source", expected=expected, got=width)
        widths[source] = np.array([width])
    (found,) = ladder.descend(([share.dsp], [share.bram], [share.bandwidth]), widths)
    return None if found < 0 else triples(ladder.factors[found])


def triples(array: np.ndarray) -> tuple[Factors, ...]:
    return tuple(map(tuple, array.tolist()))


# --- schemes without a search ----------------------------------------------------------------------------------------


def at_level(
    space: DesignSpace, cycles: int | Sequence[int], *, partition: bool = True,
    batch_sizes: Sequence[int] | None = None,
) -> Config:  # fmt: skip
    """The design in which no stage takes more than so many cycles, each with the smallest target that does it.

    A stage that cannot be that fast takes all that it can. Without partition that is how DNNBuilder, which computes
    in parallel over channels only, meets its limit (the three schemes of F-CAD's Table II, and its Fig. 3).

    Args:
        space: The design space.
        cycles: Most cycles of a frame, for all pipelines or for each.
        partition: Whether the height may be partitioned (F-CAD) or not (DNNBuilder).
        batch_sizes: Copies of each branch; 1 each by default.

    Returns:
        The design.

    Raises:
        I2IError: If the cycles are not positive, or there are as many as neither one nor the pipelines.
    """
    pipelines = space.pipelines
    bounds = [cycles] * len(pipelines) if np.ndim(cycles) == 0 else list(cycles)
    if len(bounds) != len(pipelines) or not all(bound > 0 for bound in bounds):
        raise I2IError("cycles", expected=f"a positive number, or {len(pipelines)} of them", got=cycles)
    chosen = []
    for pipeline, bound in zip(pipelines, bounds, strict=True):
        tables = [splits(stage, space.bits, partition=partition) for stage in pipeline.stages]
        rows = [level_exponent(stage, table, bound) for stage, table in zip(pipeline.stages, tables, strict=True)]
        chosen.append(tuple(tuple(table[row].tolist()) for table, row in zip(tables, rows, strict=True)))
    return Config(space, tuple(chosen), batches(batch_sizes, len(pipelines)))


def level_exponent(stage: Stage, table: np.ndarray, bound: float) -> int:
    """The smallest exponent with which a stage keeps a bound on its cycles; the fastest where none does."""
    taken = cost.cycles(stage, *table.T)
    return int(np.argmax(taken <= max(bound, taken.min())))


def level_exponents(stages: Sequence[Stage], bits: int) -> np.ndarray:
    """(L, stages): for every cycle count that one of the stages can have, each stage's smallest exponent within it."""
    tables = [splits(stage, bits) for stage in stages]
    counts = [cost.cycles(stage, *table.T) for stage, table in zip(stages, tables, strict=True)]
    slowest = np.unique(np.concatenate(counts))
    slowest = slowest[slowest >= max(count.min() for count in counts)]
    # Cycles fall with the exponent, so the smallest that keeps a bound is counted by those that do not.
    return np.unique(np.stack([(count[:, None] > slowest).sum(0) for count in counts], 1), axis=0)


def smallest(space: DesignSpace, batch: tuple[int, ...]) -> Config:
    """Every target of parallelism at 1."""
    return at_level(space, math.inf, batch_sizes=batch)


# --- arguments -------------------------------------------------------------------------------------------------------


def finite(budget: Budget) -> Budget:
    if not math.isfinite(budget.bandwidth):
        remedy = "Algorithm 2 starts from it; give the memory's peak, however large."
        raise I2IError("budget bandwidth", expected="a finite number of bit/s", got=budget.bandwidth, remedy=remedy)
    return budget
