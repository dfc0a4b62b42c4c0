"""What a design costs and how fast it is: cycles, DSPs, block RAMs, bandwidth (Eqs. 3 to 5 of F-CAD).

The forms of the DSP and memory models are DNNBuilder's, restated as formulas and confirmed on F-CAD's Table IV. The
factors ``cpf``, ``kpf``, ``h`` and ``arriving`` may be integers or integer arrays that broadcast; counts are exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from ..errors import I2IError
from .arguments import expect, positive
from .construct import Config, DesignSpace, Factors, Light, Stage, largest

if TYPE_CHECKING:
    import pandas as pd

Integers = int | np.ndarray

CONV_DSP = 6  # control of a convolution
LIGHT_DSP = 2  # control of an up-sampling or pooling stage
LIGHT_CHANNELS = 32  # channels that such a stage reads at once
MEMORY_WORD = 512  # bits of a word on the way from external memory
ROUNDING = 1 + 1e-12  # sums of bandwidth and of shares may miss the number that they stand for

# Depth of an 18-Kb block by the width that is asked of it (0 to 36 bits); a block is 1, 2, 4, 9, 18 or 36 bits wide.
_DEPTH = np.array([16392] * 2 + [8192] + [4096] * 2 + [2048] * 5 + [1024] * 9 + [512] * 18)


def _ceil(a: Integers, b: Integers) -> Integers:
    return -(-a // b)


def _plain(value: Integers) -> Integers:
    return int(value) if np.ndim(value) == 0 else value


def blocks(write_width: Integers, write_depth: Integers, read_width: Integers, read_depth: Integers) -> Integers:
    """18-Kb block RAMs of one dual-port buffer that is written and read at different widths.

    Args:
        write_width: Bits written at once.
        write_depth: Words written.
        read_width: Bits read at once.
        read_depth: Words read.

    Example:
        >>> blocks(512, 50, 64, 400)
        15
    """
    width, depth = np.maximum(write_width, read_width), np.minimum(write_depth, read_depth)
    wide, rest = width // 72, width % 72
    half = rest >= 36
    return _plain((2 * wide + half) * _ceil(depth, 512) + _ceil(depth, _DEPTH[rest - 36 * half]))


def cycles(stage: Stage, cpf: Integers, kpf: Integers, h: Integers) -> Integers:
    """Clock cycles of one frame (Eq. 4 times the clock), with factors that need not divide."""
    rounds = _ceil(stage.in_channels // stage.groups, cpf) * _ceil(stage.out_channels, kpf) * _ceil(stage.height, h)
    return rounds * stage.width * stage.kernel[0] * stage.kernel[1]


def multipliers(stage: Stage, cpf: Integers, kpf: Integers, h: Integers, bits: int) -> Integers:
    """DSPs that multiply in one copy; at 8 bits two share one where they share an operand (:meth:`Stage.paired`).

    A gate takes one more for each channel that it meets at once.
    """
    gates = stage.products * min(LIGHT_CHANNELS, stage.in_channels)
    return cpf * (_ceil(kpf, 2) if stage.paired(bits) else kpf) * h + gates


def control(stage: Stage) -> int:
    """DSPs of a stage that do not depend on its factors, nor on the batch."""
    return CONV_DSP + LIGHT_DSP * len(stage.lights)


def weight_buffers(stage: Stage, cpf: Integers, kpf: Integers, h: Integers, bits: int) -> Integers:
    """18-Kb block RAMs of the weight buffer (in turns) and the bias buffer; copies of a batch share them.

    ``h`` does not enter: all partitions work with the same weights.
    """
    del h
    taps, wide = stage.in_channels // stage.groups * stage.kernel[0] * stage.kernel[1], bits + stage.wider
    words = _ceil(taps * kpf * wide, MEMORY_WORD)
    read = cpf * kpf * wide
    bias_words = np.maximum(2, _ceil(stage.out_channels, kpf))
    weights = blocks(MEMORY_WORD, 2 * words, read, 2 * (MEMORY_WORD * words // read))
    return weights + blocks(kpf * bits, bias_words, kpf * bits, bias_words)


def map_buffers(stage: Stage, cpf: Integers, kpf: Integers, h: Integers, bits: int, arriving: Integers) -> Integers:
    """18-Kb block RAMs of one copy: the input buffer, and those of the up-samplings and poolings behind the stage.

    The input buffer holds the columns that a position needs and those of one step more (``Stage.held``), over all rows,
    or over each partition's rows with their halo. Of grouped convolutions it counts the channels of one group at once,
    which is too few where ``kpf`` reaches over several groups.

    Args:
        stage: The stage.
        cpf: Input channels at once.
        kpf: Output channels at once.
        h: Partitions of the height.
        bits: Of a map's element.
        arriving: Channels that the source writes at once, of :func:`arriving`.
    """
    rows, _ = stage.reach
    part = np.minimum(stage.in_height, (_ceil(stage.height, h) - 1) * stage.step + rows)
    part = np.where(np.equal(h, 1), stage.in_height, part)
    held = _ceil(stage.in_channels * part * stage.held, arriving)
    total = h * blocks(arriving * bits, held, cpf * bits, _ceil(held * arriving, cpf))
    u = min(LIGHT_CHANNELS, stage.out_channels)
    for light in stage.lights:
        rows, columns = stage.lights[light.behind - 1].size if light.behind else stage.made
        elements = stage.out_channels * rows * _light_columns(light, columns)
        width = u if light.behind else kpf
        total = total + blocks(width * bits, _ceil(elements, width), u * bits, _ceil(elements, u))
    return _plain(total)


def _light_columns(light: Light, columns: int) -> int:
    """Columns that a light keeps; of a pooling over a whole map a running sum is enough, so two as for up-sampling."""
    return 2 if light.kind == "upsample" or light.factor >= columns else max(2, light.factor)


def traffic(stage: Stage, cpf: Integers, kpf: Integers, h: Integers, bits: int) -> float | np.ndarray:
    """Weights from external memory while the stage runs, bits per cycle: each weight serves one output column."""
    return cpf * kpf * (bits + stage.wider) / _ceil(stage.height, h)


def moved(stage: Stage, cpf: Integers, kpf: Integers, bits: int, batch: int = 1) -> Integers:
    """Bits to and from external memory per frame of every copy.

    Weights come once for each column and serve all copies, as do untied biases; maps that enter, leave or wait for a
    join (``stage.external``) count for each copy.
    """
    inner = stage.in_channels // stage.groups
    padded = _ceil(inner, cpf) * cpf * _ceil(stage.out_channels, kpf) * kpf * stage.kernel[0] * stage.kernel[1]
    maps = stage.bias * stage.untied + stage.external * batch
    return padded * stage.width * (bits + stage.wider) + maps * bits


def source(space: DesignSpace, pipeline: int, stage: int) -> tuple[int, int] | None:
    """(pipeline, stage) whose ``kpf`` decides how many channels arrive at once; None where nothing searched does.

    That is: at the network's input, and behind an up-sampling or pooling of the stage's own pipeline.
    """
    here = space.pipelines[pipeline].stages[stage]
    if not here.sources:
        return None
    p, s = here.sources[0]
    feeder = space.pipelines[p].stages[s]
    port = here.taken[0] if here.taken else feeder.gives((here.in_height, here.in_width))
    return None if p == pipeline and port else (p, s)


def arriving(space: DesignSpace, pipeline: int, stage: int, kpf_of_source: Integers | None = None) -> Integers:
    """Channels that arrive at once at a stage's input buffer.

    One at the network's input; ``min(32, in_channels)`` behind an up-sampling or pooling of its own pipeline; else the
    ``kpf`` of the stage that feeds it (the latest one where several do).

    Args:
        space: The design space.
        pipeline: Index of the pipeline.
        stage: Index of the stage in it.
        kpf_of_source: ``kpf`` of the stage named by :func:`source`.
    """
    here = space.pipelines[pipeline].stages[stage]
    if not here.sources:
        return 1
    if source(space, pipeline, stage) is None:
        return min(LIGHT_CHANNELS, here.in_channels)
    if kpf_of_source is None:
        raise I2IError(f"stage {here.name}", expected="the kpf of the stage that feeds it", got="none")
    return kpf_of_source


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a platform gives."""

    dsp: int
    bram: int  # 18-Kb blocks
    bandwidth: float = 102.4e9  # bit/s of external memory; 64-bit DDR3-1600
    name: str = ""

    def __post_init__(self) -> None:
        for field in ("dsp", "bram", "bandwidth"):
            value = getattr(self, field)
            if not positive(value) or (field != "bandwidth" and not 1 <= value < inf):
                what, remedy = f"budget {self.name or field}", "Even the smallest design needs some of each."
                expected = f"more than 0 {field}"
                if positive(value):
                    expected = f"a finite number of {field}" if value == inf else f"at least 1 {field}"
                raise I2IError(what, expected=expected, got=repr(value), remedy=remedy)


@dataclasses.dataclass(frozen=True)
class BranchResult:
    """One branch of an evaluated design; counts include all its copies."""

    name: str
    dsp: int
    bram: int  # 18-Kb blocks
    bandwidth: float  # bit/s, mean over a frame
    fps: float  # frames of all copies
    efficiency: float  # Eq. 3, 0 to 1
    ops: int  # per frame
    batch: int
    cycles: tuple[int, ...]  # by stage, of one frame
    stage_dsp: tuple[int, ...]
    stage_bram: tuple[int, ...]
    delivered: float  # FPS; below ``fps`` where it shares stages with a slower branch, which the paper leaves aside:
    # one that feeds it starves it, one that it feeds holds up the stages that both need


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A modelled design, by branch and in total."""

    branches: tuple[BranchResult, ...]
    efficiency: float  # Eq. 3 over the whole design, 0 to 1

    @property
    def dsp(self) -> int:
        """DSPs of the design."""
        return sum(branch.dsp for branch in self.branches)

    @property
    def bram(self) -> int:
        """18-Kb block RAMs of the design."""
        return sum(branch.bram for branch in self.branches)

    @property
    def bandwidth(self) -> float:
        """External memory traffic of the design, bit/s."""
        return sum(branch.bandwidth for branch in self.branches)

    @property
    def fps(self) -> tuple[float, ...]:
        """Frames per second by branch."""
        return tuple(branch.fps for branch in self.branches)

    @property
    def delivered(self) -> tuple[float, ...]:
        """Frames per second by branch where branches that share stages wait for the slowest."""
        return tuple(branch.delivered for branch in self.branches)

    @property
    def slowest(self) -> float:
        """The lowest frame rate of the branches, FPS."""
        return min(self.fps)

    @property
    def pairs_per_second(self) -> float:
        """Moments per second, where a branch's batch is what one moment needs: two views of two eyes, one mesh."""
        return min(branch.fps / branch.batch for branch in self.branches)

    def fits(self, budget: Budget) -> bool:
        """Whether DSPs, block RAMs and bandwidth all stay within the budget."""
        expect("budget", budget, Budget)
        bandwidth = budget.bandwidth * ROUNDING
        return self.dsp <= budget.dsp and self.bram <= budget.bram and self.bandwidth <= bandwidth

    def table(self) -> pd.DataFrame:
        """One row a branch, and one for the design."""
        import pandas as pd

        rows = [
            {
                "branch": branch.name,
                "batch": branch.batch,
                "DSP": branch.dsp,
                "BRAM (18 Kb)": branch.bram,
                "bandwidth (Gbit/s)": branch.bandwidth / 1e9,
                "FPS": branch.fps,
                "delivered": branch.delivered,
                "efficiency (%)": 100 * branch.efficiency,
            }
            for branch in self.branches
        ]
        total = ["design", None, self.dsp, self.bram, self.bandwidth / 1e9, self.slowest, self.slowest]
        total.append(100 * self.efficiency)
        rows.append(dict(zip(rows[0], total, strict=True)))
        return pd.DataFrame(rows).astype({"batch": "Int64"}).set_index("branch")


def evaluate(config: Config) -> Evaluation:
    """Model a design (Eqs. 3 to 5).

    Args:
        config: The design.

    Returns:
        Frame rates, resources and efficiency. A frame counts once for each copy: at batch 2, two images. The
        efficiency divides by all DSPs, control included, at 4 (8 bits) or 2 (16 bits) operations a cycle.

    Raises:
        I2IError: If it is none.
    """
    space = expect("config", config, Config, "Of a search, that is its .config.").space
    branches = []
    for p, pipeline in enumerate(space.pipelines):
        batch, factors = config.batch[p], config.factors[p]
        lat, dsp, bram, bits = [], [], [], 0
        for s, (stage, (cpf, kpf, h)) in enumerate(zip(pipeline.stages, factors, strict=True)):
            feeder = source(space, p, s)
            width = arriving(space, p, s, config.factors[feeder[0]][feeder[1]][1] if feeder else None)
            lat.append(cycles(stage, cpf, kpf, h))
            dsp.append(control(stage) + batch * multipliers(stage, cpf, kpf, h, space.bits))
            shared = weight_buffers(stage, cpf, kpf, h, space.bits)
            bram.append(shared + batch * map_buffers(stage, cpf, kpf, h, space.bits, width))
            bits += moved(stage, cpf, kpf, space.bits, batch)
        rate = space.frequency_hz / max(lat)  # of one copy
        peak = operations_per_dsp(space.bits) * sum(dsp) * space.frequency_hz
        name, ops, efficiency = pipeline.name, pipeline.ops, batch * rate * pipeline.ops / peak
        fps, stages = batch * rate, (tuple(lat), tuple(dsp), tuple(bram))
        branches.append(BranchResult(name, sum(dsp), sum(bram), bits * rate, fps, efficiency, ops, batch, *stages, fps))
    work = sum(branch.fps * branch.ops for branch in branches)
    peak = operations_per_dsp(space.bits) * sum(branch.dsp for branch in branches) * space.frequency_hz
    rates = at_one_pace(space, config.batch, np.array([max(branch.cycles) for branch in branches])).tolist()
    return Evaluation(
        tuple(dataclasses.replace(branch, delivered=rate) for branch, rate in zip(branches, rates, strict=True)),
        work / peak,
    )


def groups(space: DesignSpace, batch: Sequence[int]) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    """Of each pipeline: the images of a frame, how often its copies take turns, and the group that waits together."""
    group, images, turns = {}, {}, {}
    for p in space.order:
        feeders = sorted(space.shared_from(p))
        images[p] = images[feeders[0]] if feeders else batch[p]
        turns[p] = _ceil(images[p], batch[p])
        joined = {group[f] for f in feeders}
        group[p] = min(joined, default=p)
        group.update({q: group[p] for q, g in group.items() if g in joined})
    return images, turns, group


def at_one_pace(space: DesignSpace, batch: Sequence[int], cycles: np.ndarray) -> np.ndarray:
    """Frames a second that branches deliver: of those that share stages the slowest sets the pace of all.

    Args:
        space: The design space.
        batch: Copies of each pipeline; those of a fed one may take turns.
        cycles: (..., pipelines) of each pipeline's slowest stage.

    Returns:
        (..., pipelines) FPS of all copies.
    """
    images, turns, group = groups(space, batch)
    each = np.asarray(cycles) * [turns[p] for p in range(len(batch))]
    pace = {g: each[..., [p for p in group if group[p] == g]].max(-1) for g in set(group.values())}
    return np.stack([images[p] * space.frequency_hz / pace[group[p]] for p in range(len(batch))], -1)


def operations_per_dsp(bits: int) -> int:
    """Operations of one DSP in one cycle (beta of Eq. 3): 4 at 8 bits, 2 at 16."""
    return 4 if bits == 8 else 2


__all__ = [
    "BranchResult", "Budget", "Config", "Evaluation", "Factors", "arriving", "at_one_pace", "blocks", "control",
    "cycles", "evaluate", "groups", "largest", "map_buffers", "moved", "multipliers", "operations_per_dsp", "source",
    "traffic", "weight_buffers",
]  # fmt: skip
