"""The accelerator of F-CAD's Fig. 5, cycle by cycle: stages that wait for maps, for room and for weights.

This is the second opinion on the cost model: it knows shapes, factors and the depth of the input buffers, and shares
no formula with :mod:`i2ilib.fcad.cost`. Nothing is fitted. Everything it returns is modelled, nothing measured.

What happens, in columns, the unit in which maps travel (a weight serves one output column, and an input buffer keeps
the K columns of a position and those of one step more):

- A stage starts an output column when the input columns under its kernel are complete (padding is free at borders)
  and each buffer behind it has room for what the column adds. The next frame follows the last without a gap.
- A column is a loop over output channels in groups of ``kpf``: *tiles*. A tile loops over input channels in groups of
  ``cpf``, the kernel's taps, and rows in ``h`` partitions, a cycle each. A finished column is readable after the depth
  of the data path: ``depth`` cycles and the levels of the adder tree over ``cpf`` products.
- A tile needs its weights, which come again for every column, through a buffer of two tiles: one works, one is filled.
  Untied biases come with them. Copies of a batch run in lockstep on the same weights.
- One external memory serves inputs, weights, untied biases, outputs, and maps that wait for a join, all open requests
  evenly, or one after the other. A request is a tile of weights or a column of a map.
- Up-sampling and pooling are stages of their own, with two columns of buffer, or those of the window; they write 32
  channels of one pixel in a cycle. A pooling over the whole map keeps running results and holds up nobody.
- A stage that feeds several starts only when all of them have room. A join takes directly the source
  that lags most, so that none has to wait in the buffers, and the others from external memory.

**Partitions.** ``h`` splits the rows of a column, so all partitions work on the same column, on rows of their own.
They need no other order of columns than an undivided stage, and give none: partitioning costs no initial latency,
only the rows that two neighbours both need (halo), written into both buffers at once. Were maps to travel by rows, the
last partition could not begin before most of the map was there; :func:`partition_cost` puts numbers to both.

Source: Zhang et al., "F-CAD", section V and Fig. 5; the column buffers are those of DNNBuilder (ICCAD 2018).
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..errors import I2IError
from .arguments import expect, positive, whole
from .construct import Addend, Config, DesignSpace, Light, Stage

if TYPE_CHECKING:
    import pandas as pd

DEPTH = 8  # cycles from an operand to a written result without the adder tree: our assumption for a DSP data path
WRITE_CHANNELS = 32  # of one pixel, that an up-sampling or pooling stage writes in a cycle
_END, _READABLE = range(2)  # kinds of events; within a cycle they happen in this order
_CAUSES = ("busy", "starved", "blocked", "weights")


# --- what comes out ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StageActivity:
    """What one stage did in the window: its cycles add up to the window's."""

    name: str
    branch: str
    kind: str  # "conv", "upsample" or "pool"
    busy: int  # cycles
    starved: int  # cycles without the input columns of the next position
    blocked: int  # cycles without room behind the stage
    weights: int  # cycles without the weights of the next tile
    bits: int  # of weights and untied biases, moved for it in the window
    capacity: int  # columns that its input buffer holds, of each copy
    peak: int  # columns that it held at most
    buffer_elements: int  # of the input buffer of one copy, halo included
    halo_elements: int  # of them kept twice, for a neighbouring partition
    starts: np.ndarray  # (columns,) int64: cycle in which each output column began, over the whole run
    ends: np.ndarray  # (columns,) int64: cycle after its last multiplication


@dataclasses.dataclass(frozen=True)
class MoveActivity:
    """A map on its way through external memory."""

    stage: str  # that reads it, or whose output it is
    branch: str
    kind: str  # "input", "output" or "join": a map that waits for one
    busy: int  # cycles in the window
    cycles: int  # that it needs of the window at a pixel a cycle; less than ``busy`` where the bandwidth is short


@dataclasses.dataclass(frozen=True)
class BranchActivity:
    """One branch of a simulated design."""

    name: str
    images: int  # per frame: what the copies make together
    fps: float  # images a second in the steady state
    interval_cycles: float  # between frames, steady state
    first_column_cycles: int  # until the first output column has left
    initial_latency_cycles: int  # until the first frame has left
    layer_by_layer_cycles: int  # the same frame if each stage waited for the whole map before it
    finished: np.ndarray  # (frames,) int64: cycle in which each frame had left


@dataclasses.dataclass(frozen=True)
class Simulation:
    """A simulated design; its window runs from the first frame of the slowest branch to the end."""

    branches: tuple[BranchActivity, ...]
    stages: tuple[StageActivity, ...]
    window_cycles: int
    bits: int  # through external memory in the window, of all kinds
    bandwidth: float  # bit/s that were offered
    frequency_hz: float
    moves: tuple[MoveActivity, ...] = ()

    @property
    def fps(self) -> tuple[float, ...]:
        """Images per second by branch."""
        return tuple(branch.fps for branch in self.branches)

    @property
    def slowest(self) -> float:
        """The lowest rate of the branches, images per second."""
        return min(self.fps)

    @property
    def traffic(self) -> float:
        """Mean traffic of external memory in the window, bit/s."""
        return self.bits / self.window_cycles * self.frequency_hz

    def table(self) -> pd.DataFrame:
        """One row a stage: shares of the window in per cent, columns held, traffic."""
        import pandas as pd

        rows = [
            {
                "branch": s.branch,
                "stage": s.name,
                "kind": s.kind,
                **{f"{cause} (%)": 100 * getattr(s, cause) / self.window_cycles for cause in _CAUSES},
                "columns held": s.peak,
                "capacity": s.capacity,
                "traffic (Gbit/s)": s.bits / self.window_cycles * self.frequency_hz / 1e9,
            }
            for s in self.stages
        ]
        return pd.DataFrame(rows).set_index(["branch", "stage", "kind"])

    def branch_table(self) -> pd.DataFrame:
        """One row a branch: rate, and latencies in milliseconds."""
        import pandas as pd

        ms = 1e3 / self.frequency_hz
        rows = [
            {
                "branch": b.name,
                "FPS": b.fps,
                "interval (ms)": b.interval_cycles * ms,
                "first column (ms)": b.first_column_cycles * ms,
                "first frame (ms)": b.initial_latency_cycles * ms,
                "layer by layer (ms)": b.layer_by_layer_cycles * ms,
            }
            for b in self.branches
        ]
        return pd.DataFrame(rows).set_index("branch")


# --- what runs -----------------------------------------------------------------------------------

_Spans = tuple[list[int], list[int]]  # first and last input line that each position needs


class _Edge:
    """A bounded buffer between two units, counted in columns of the reader's map.

    Where a map is cropped between them the scale is stretched: the reader's column j stands for the writer's columns
    up to (j + 1) * writer / reader.
    """

    def __init__(self, writer: _Unit, reader: _Unit, capacity: float, spans: _Spans, width: int):
        first, last = spans
        self.writer, self.reader, self.capacity, self.width = writer, reader, capacity, width
        self.need = [-(-(column + 1) * writer.columns // width) for column in last]  # the writer's, at each position
        self.free = [*first[1:], width]  # the reader's, that are done with after each position
        self.slot = [((column + 1) * width - 1) // writer.columns for column in range(writer.columns)]
        burst = -(-width // writer.columns)  # of the reader's, that one column of the writer is
        if burst > 1:  # one burst is read while the next comes; a window reaches over into the last
            reach = max(b - a for a, b in zip(first, last, strict=True))
            self.capacity = max(capacity, min(reach + 2 * burst, 2 * width))
        self.readable = 0  # columns of the writer, over all frames
        self.freed = 0  # columns of the reader, over all frames
        self.peak = 0
        reader.lag = max(reader.lag, writer.lag + (last[0] + 1) / width)
        writer.outputs.append(self)
        reader.inputs.append(self)


class _Unit:
    """What makes columns from columns: a convolution, an up-sampling, or a move through external memory."""

    def __init__(self, index: int, kind: str, columns: int, cycles: list[int], **options):
        self.index, self.kind, self.columns, self.cycles = index, kind, columns, cycles
        self.tiles: int = options.get("tiles", 1)  # of a column
        self.bits: list[int] = options.get("bits", [0])  # to fetch for each tile of len(cycles) columns
        self.again: list[int] = options.get("again", self.bits)  # the same from the second time on
        self.fill: int = options.get("fill", 0)
        self.inputs: list[_Edge] = []
        self.outputs: list[_Edge] = []
        self.lag = 0.0  # of its first column behind the input, in maps
        self.frame = self.column = self.tile = 0
        self.ended = 0  # tiles, over all frames
        self.loaded = 0  # tiles whose weights have come, over all frames
        self.working = False
        self.due = 0  # cycle in which the tile ends
        self.cause, self.since = "starved", 0
        self.time = dict.fromkeys(_CAUSES, 0)
        self.moved = 0  # bits
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.finished: list[int] = []

    def tile_bits(self, tile: int) -> int:
        """Bits to fetch for a tile, counted over all frames."""
        return (self.bits if tile < len(self.bits) else self.again)[tile % len(self.bits)]

    def waits_for(self) -> str | None:
        """Why the next tile cannot start, or None."""
        if not self.tile:
            for edge in self.inputs:
                if edge.readable < self.frame * edge.writer.columns + edge.need[self.column]:
                    return "starved"
            for edge in self.outputs:
                if self.frame * edge.width + edge.slot[self.column] >= edge.freed + edge.capacity:
                    return "blocked"
        return "weights" if self.kind == "conv" and self.loaded <= self.ended else None

    def account(self, now: int, cause: str) -> None:
        """Book the time since the last change, and note what comes now."""
        self.time[self.cause] += now - self.since
        self.cause, self.since = cause, now


def _spans(stage: Stage, axis: int) -> _Spans:
    """Input rows (axis 0) or columns (axis 1) under the kernel at each output position, padded as in PyTorch."""
    size, count = (stage.in_height, stage.height) if axis == 0 else (stage.in_width, stage.width)
    if not stage.transposed:
        return _sliding(count, size, stage.reach[axis], stage.stride)
    # Output o takes the inputs i with i * stride <= o + cropped <= i * stride + kernel - 1.
    kernel, at = stage.kernel[axis], range(_cropped(stage, axis), count * stage.stride + _cropped(stage, axis))
    first = [-(-(o - kernel + 1) // stage.stride) for o in at]
    return [min(max(0, i), size - 1) for i in first], [min(o // stage.stride, size - 1) for o in at]


def _cropped(stage: Stage, axis: int) -> int:
    """Lines that a transposed convolution leaves out before its first, so that sizes grow by its stride."""
    return max(0, (stage.kernel[axis] - stage.stride + 1) // 2)


def _sliding(count: int, size: int, reach: int, step: int) -> _Spans:
    """A window that slides over ``size`` lines and what padding it takes: half on each side, an odd line before."""
    before = (max(0, (count - 1) * step + reach - size) + 1) // 2
    first = [i * step - before for i in range(count)]
    return [max(0, i) for i in first], [min(size, i + reach) - 1 for i in first]


def _capacity(stage: Stage) -> int:
    """Columns that an input buffer holds: those of a position and of one step (K + 1 at stride 1).

    A single position (a linear layer) needs a whole new map for its next step; with K + 1 columns it would wait for it.
    """
    return stage.reach[1] + (stage.reach[1] if stage.width == 1 else stage.step)


def _map_rows(stage: Stage, h: int) -> int:
    """Rows that the input buffers of all partitions keep together."""
    if h == 1:
        return stage.in_height
    return h * min(stage.in_height, (-(-stage.height // h) - 1) * stage.step + stage.reach[0])


def partition_cost(stage: Stage, h: int) -> dict[str, int]:
    """What ``h`` partitions cost a stage, with maps that come by columns (as simulated), or if they came by rows.

    By columns the partitions share each column and keep halo rows twice. By rows the last partition cannot start before
    its first rows are there, and all rows before them must be kept for the partitions above.

    Args:
        stage: The stage.
        h: Partitions of its rows.

    Returns:
        ``columns_wait``: input columns until all partitions work; ``columns_elements``: elements of the input buffer;
        ``halo_elements``: of them kept twice; ``rows_wait`` and ``rows_elements``: the same if maps came by rows.

    Example:
        >>> from i2ilib.fcad.construct import Stage
        >>> partition_cost(Stage("c", 16, 16, 512, 512, 512, 512, (5, 5), macs=0, ops=0, weights=6400), 2)
        {'columns_wait': 3, 'columns_elements': 49920, 'halo_elements': 768, 'rows_wait': 259, 'rows_elements': 2129920}
    """
    last_row = _spans(stage, 0)[1]
    part = -(-len(last_row) // h)
    wait = last_row[(len(last_row) - 1) // part * part] + 1  # until the last partition's first position
    rows = stage.reach[0] + stage.step if h == 1 else min(stage.in_height, wait + stage.step)
    held = stage.in_channels * _capacity(stage)
    return {
        "columns_wait": _spans(stage, 1)[1][0] + 1,
        "columns_elements": held * _map_rows(stage, h),
        "halo_elements": max(0, held * (_map_rows(stage, h) - stage.in_height)),
        "rows_wait": wait,
        "rows_elements": stage.in_channels * stage.in_width * rows,
    }


class _Plant:
    """A design as units and the buffers between them."""

    def __init__(self, config: Config, depth: int, keep: bool):
        space = config.space
        self._space, self.bits, self.depth, self.keep = space, space.bits, depth, keep
        self.units: list[_Unit] = []  # each after those that feed it
        self.stages: dict[tuple[int, int], tuple[_Unit, ...]] = {}  # convolution, and up-samplings and poolings if any
        self.outputs: dict[int, list[_Unit]] = {}  # by pipeline: what sends the branch's output, the last stage's first
        self.images: dict[int, int] = {}  # by pipeline: in a frame of all copies
        self.moves: list[tuple[str, tuple[int, int], _Unit]] = []  # kind, stage and what moves its map
        self._here = (0, 0)  # the stage that is being built
        self._stored: dict[int, _Unit] = {}  # by writer: what puts its map into external memory
        for p in space.order:
            pipeline, feeders = space.pipelines[p], sorted(space.shared_from(p))
            self.images[p] = images = self.images[feeders[0]] if feeders else config.batch[p]
            turns = -(-images // config.batch[p])  # a copy may serve several images, one after the other
            for s, (stage, factors) in enumerate(zip(pipeline.stages, config.factors[p], strict=True)):
                self._here = p, s
                self.stages[p, s] = self._stage(space, stage, factors, turns, images)
            ends = [len(pipeline.stages) - 1, *(s for q, s in _loose(space) if q == p)]
            self.outputs[p] = [self._leave((p, s), images) for s in ends]
        for _, p, s in space.taps:
            if p >= 0:  # an input that is handed through is no work of the accelerator's
                self._leave((p, s), self.images[p])

    @property
    def named(self) -> dict[str, tuple[_Unit, ...]]:
        """Units by the name of their stage."""
        return {self._space.pipelines[p].stages[s].name: units for (p, s), units in self.stages.items()}

    def _unit(self, *args, **options) -> _Unit:
        self.units.append(_Unit(len(self.units), *args, **options))
        return self.units[-1]

    def _link(self, writer: _Unit, reader: _Unit, capacity: float) -> _Unit:
        """Let a reader take every column of a writer, one at a time."""
        lines = list(range(reader.columns))
        _Edge(writer, reader, capacity, (lines, lines), reader.columns)
        return reader

    def _move(self, kind: str, columns: int, channels: int, height: int, width: int, images: int) -> _Unit:
        """A map through external memory, in so many columns, at most a pixel a cycle."""
        pixels = -(-height * width // columns)
        unit = self._unit("move", columns, [pixels], bits=[channels * pixels * self.bits * images])
        self.moves.append((kind, self._here, unit))
        return unit

    def _leave(self, key: tuple[int, int], images: int) -> _Unit:
        """What sends the map that a stage hands on as an output: one that no other reads, else its first light's."""
        stage, units, self._here = self._space.pipelines[key[0]].stages[key[1]], self.stages[key], key
        unread = [unit for unit in units[1:] if not unit.outputs]
        end = (unread or units[1:2] or units)[0]
        columns = min(end.columns, stage.out_width)
        there = (columns, stage.out_channels, stage.out_height, stage.out_width, images)
        return self._link(end, self._move("output", *there), 2)

    def _from_memory(self, writer: _Unit, columns: int, channels: int, size: tuple[int, int], images: int) -> _Unit:
        """A map that comes back from external memory, where it is written once."""
        there = (columns, channels, *size, images)
        if writer.index not in self._stored:
            self._stored[writer.index] = self._link(writer, self._move("join", *there), 2)
        return self._link(self._stored[writer.index], self._move("join", *there), math.inf)

    def _feeds(self, space: DesignSpace, stage: Stage, images: int) -> tuple[list[_Unit], list[tuple[_Unit, Addend]]]:
        """The units that a stage reads, and those whose maps it adds to its own.

        Of all, the one that lags most comes directly, and the others come back from external memory: none has to wait
        in a buffer, where it would hold up what others need.
        """
        here = stage.in_height, stage.in_width
        if not stage.sources:
            feeds, sources = [self._move("input", stage.in_width, stage.in_channels, *here, images)], []
            latest = feeds[0]
        else:
            ports = stage.taken or [space.pipelines[p].stages[s].gives(here) for p, s in stage.sources]
            sources = [
                (self.stages[p, s][port], space.pipelines[p].stages[s].out_channels)
                for (p, s), port in zip(stage.sources, ports, strict=True)
            ]
            latest = max((writer for writer, _ in sources), key=lambda writer: writer.lag)
            feeds = [latest]
        added = []
        for addend in stage.addends:
            p, s = addend.source
            there = space.pipelines[p].stages[s]
            added.append((self.stages[p, s][there.gives(addend.size)], there.out_channels, addend))
        added = [one for one in added if one[0] is not latest]  # what it reads anyway is still in its buffer
        # Its own first column comes after so much of its input; what comes from memory takes two columns more.
        own = latest.lag + (_spans(stage, 1)[1][0] + 1) / stage.in_width
        late = max((one for one in added), key=lambda one: one[0].lag, default=None)
        if late and sources and late[0].lag + 2 / late[2].size[1] > own:
            feeds = [self._from_memory(latest, stage.in_width, sources[0][1], here, images)]
        else:
            late = None
        for writer, channels in sources:
            if writer is not latest:  # also where a stage joins a map with itself
                feeds.append(self._from_memory(writer, stage.in_width, channels, here, images))
        adds = []
        for one in added:
            writer, channels, addend = one
            if one is not late:
                writer = self._from_memory(writer, addend.size[1], channels, addend.size, images)
            adds.append((writer, addend))
        return feeds, adds

    def _stage(
        self, space: DesignSpace, stage: Stage, factors: tuple[int, int, int], turns: int, images: int
    ) -> tuple[_Unit, ...]:
        """A convolution, and what is behind it; a copy does its work ``turns`` times."""
        feeds, adds = self._feeds(space, stage, images)
        cpf, kpf, h = factors
        inner, (kh, kw) = stage.in_channels // stage.groups, stage.kernel
        made = [min(kpf, stage.out_channels - k) for k in range(0, stage.out_channels, kpf)]  # channels of each tile
        # A transposed convolution makes `stride` output columns at a position, each from its own taps.
        phases = stage.stride if stage.transposed else 1
        shift = _cropped(stage, 1) if stage.transposed else 0
        taps = [kh * len(range((phase + shift) % phases, kw, phases)) for phase in range(phases)]
        columns = stage.width * phases
        bias = stage.bias * self.bits // (columns * stage.out_channels) if stage.untied else 0  # of a channel
        tiles = [(n, channels) for n in taps for channels in made]
        first = [(n * inner * (self.bits + stage.wider) + bias) * channels for n, channels in tiles]
        again = [bias * channels for _, channels in tiles] if self.keep and len(tiles) <= 2 else first
        conv = self._unit(
            "conv", columns, [-(-inner // cpf) * n * -(-stage.height // h) * turns for n in taps],
            tiles=len(made), bits=first, again=again, fill=self.depth + (cpf - 1).bit_length(),
        )  # fmt: skip
        for writer in feeds:
            capacity = math.inf if writer.kind == "move" and writer.inputs else _capacity(stage)
            _Edge(writer, conv, capacity, _spans(stage, 1), stage.in_width)
        units = [conv]
        for light in stage.lights:
            units.append(self._light(stage, light, units, turns))
        for writer, addend in adds:
            self._link(writer, units[stage.gives(addend.size)], 2)
        return tuple(units)

    def _light(self, stage: Stage, light: Light, units: list[_Unit], turns: int) -> _Unit:
        """An up-sampling or pooling behind a convolution, or behind another of them."""
        before, (rows, columns) = units[light.behind], light.size
        if light.kind == "upsample":
            columns = before.columns * light.factor
            rows = (stage.lights[light.behind - 1].size[0] if light.behind else stage.made[0]) * light.factor
        unit = self._unit(light.kind, columns, [rows * -(-stage.out_channels // WRITE_CHANNELS) * turns])
        if light.kind == "upsample":
            lines = [x // light.factor for x in range(columns)]
            _Edge(before, unit, 2, (lines, lines), before.columns)
            return unit
        step = max(1, round(before.columns / columns))
        first, last = _sliding(columns, before.columns, light.factor, step)
        running = light.factor >= before.columns
        _Edge(before, unit, 2 * before.columns if running else max(2, light.factor), (first, last), before.columns)
        return unit


class _Memory:
    """External memory that serves requests at so many bits a cycle, together or one after the other.

    A level rises with what is served: a request ends when the level reaches its mark. In order, marks are stacked and
    the level rises at the full rate; fair, each mark is the request's own size above, and the rate is shared.
    """

    def __init__(self, rate: float, fair: bool):
        self.rate, self.fair = rate, fair
        self.at = self.level = self.last = 0.0
        self.marks: list[tuple[float, int, _Unit]] = []
        self.count = 0

    def request(self, unit: _Unit, bits: int) -> None:
        self.last = (self.level if self.fair else max(self.level, self.last)) + bits
        heapq.heappush(self.marks, (self.last, self.count, unit))
        self.count += 1

    def ends(self) -> float:
        """When the next request ends if no other comes, in cycles."""
        if not self.marks:
            return math.inf
        return self.at + (self.marks[0][0] - self.level) * (len(self.marks) if self.fair else 1) / self.rate

    def served(self, now: int) -> Iterator[_Unit]:
        """Whose requests have ended since the last call."""
        while (ends := self.ends()) <= now + 1e-4:
            self.at, (self.level, _, unit) = ends, heapq.heappop(self.marks)
            yield unit
        if self.marks:
            self.level += (now - self.at) * self.rate / (len(self.marks) if self.fair else 1)
        self.at = now


def _run(plant: _Plant, frames: int, memory: _Memory) -> tuple[int, int]:
    """Play events until every branch has sent its frames; returns the first and the last cycle of the window."""
    units, outputs = plant.units, [unit for ends in plant.outputs.values() for unit in ends]
    events: list[tuple[int, int, int]] = []  # (cycle, kind, unit)
    begun: int | None = None
    now, woken = 0, set(range(len(units)))

    def arrived(unit: _Unit) -> None:
        woken.add(unit.index)
        if unit.kind == "move":
            heapq.heappush(events, (max(now, unit.due), _END, unit.index))
        else:
            unit.loaded += 1

    def request(unit: _Unit, bits: int) -> None:
        if bits and memory.rate < math.inf:
            memory.request(unit, bits)
        else:
            arrived(unit)

    for unit in units:
        if unit.kind == "conv":
            for tile in (0, 1):
                request(unit, unit.tile_bits(tile))
    while True:
        for unit in memory.served(now):
            arrived(unit)
        while events and events[0][0] == now:
            _, kind, index = heapq.heappop(events)
            unit = units[index]
            woken.add(index)
            if kind == _READABLE:
                for edge in unit.outputs:
                    edge.readable += 1
                    woken.add(edge.reader.index)
                continue
            unit.working = False
            unit.moved += unit.tile_bits(unit.ended)
            unit.tile += 1
            unit.ended += 1
            if unit.kind == "conv":  # the tile's half of the weight buffer is free for the one after the next
                request(unit, unit.tile_bits(unit.ended + 1))
            if unit.tile == unit.tiles:
                unit.ends.append(now)
                for edge in unit.inputs:
                    edge.freed = unit.frame * edge.width + edge.free[unit.column]
                    woken.add(edge.writer.index)
                heapq.heappush(events, (now + unit.fill, _READABLE, index))
                unit.tile, unit.column = 0, unit.column + 1
                if unit.column == unit.columns:
                    unit.finished.append(now)
                    unit.column, unit.frame = 0, unit.frame + 1
        for index in sorted(woken):
            unit = units[index]
            woken.discard(index)
            if unit.working:
                continue
            cause = unit.waits_for()
            unit.account(now, cause or "busy")
            if cause:
                continue
            unit.working = True
            if not unit.tile:
                unit.starts.append(now)
                for edge in unit.outputs:
                    edge.peak = max(edge.peak, unit.frame * edge.width + edge.slot[unit.column] + 1 - edge.freed)
            unit.due = now + unit.cycles[unit.column % len(unit.cycles)]
            if unit.kind == "move":
                request(unit, unit.bits[0])
            else:
                heapq.heappush(events, (unit.due, _END, index))
        done = min(len(unit.finished) for unit in outputs)
        if done and begun is None:
            begun = now
            for unit in units:
                unit.account(now, unit.cause)
                unit.time, unit.moved = dict.fromkeys(_CAUSES, 0), 0
        if done >= frames:
            for unit in units:
                unit.account(now, unit.cause)
            return begun, now
        following = min(events[0][0] if events else math.inf, math.ceil(min(memory.ends(), 1e18) - 1e-4))
        if following >= 1e18:
            raise _stuck(plant, now)
        now = max(now, following)


def _stuck(plant: _Plant, now: int) -> I2IError:
    """Who waits for whom where nothing can start."""
    names = {unit.index: name for name, units in plant.named.items() for unit in units}
    blocked = [unit for unit in plant.units if unit.cause == "blocked"]
    edges = [
        edge for unit in blocked for edge in unit.outputs
        if unit.frame * edge.width + edge.slot[unit.column] >= edge.freed + edge.capacity
    ]  # fmt: skip
    joins = any(len(edge.reader.inputs) > 1 for edge in edges)

    def name(unit: _Unit) -> str:
        return names.get(unit.index, "external memory")

    told = [f"{name(edge.writer)} waits for room before {name(edge.reader)}" for edge in edges[:3]]
    remedy = "Two ways to a join differ by more columns than the buffers on them hold." if joins else (
        "An input buffer holds fewer columns than its reader and its writer take at once.")  # fmt: skip
    got = f"one in which nothing can start after cycle {now}" + (": " + "; ".join(told) if told else "")
    return I2IError("simulation", expected="a pipeline that moves", got=got, remedy=remedy)


def simulate(
    config: Config,
    *,
    frames: int = 4,
    bandwidth: float = math.inf,
    arbitration: str = "fair",
    keep_weights: bool = False,
    depth: int = DEPTH,
) -> Simulation:
    """Run a design cycle by cycle until every branch has sent its frames.

    Args:
        config: The design: space, factors, batch.
        frames: Frames that the slowest branch sends, at least 2; the first fills the pipeline and counts as latency.
        bandwidth: Of external memory, bit/s.
        arbitration: "fair": all open requests share the bandwidth evenly, the limit of short bursts in turns; or
            "in order": each is served whole, in order of arrival, in the same cycle by stage.
        keep_weights: Fetch the weights of a stage only once where the buffer's two tiles hold them all; else they come
            again for every column, as in the cost model.
        depth: Cycles from an operand to a written result, without the adder tree.

    Returns:
        Rates, latencies, and what each stage did. Branches that share stages run at the pace of the slowest of them:
        its full buffers hold up the shared stages, and those feed the others.

    Raises:
        I2IError: If an argument is out of range, branches that share stages start from different batches, or the design
            cannot move (two ways to a join that differ by more than buffers hold).
    """
    space = expect("config", config, Config, "Of a search, that is its .config.").space
    _check(space, config.batch)
    if not whole(frames, 2):
        raise I2IError("frames", expected="a whole number from 2", got=repr(frames), remedy="The first is latency.")
    if not positive(bandwidth):
        raise I2IError("bandwidth", expected="bit/s above 0", got=repr(bandwidth))
    if arbitration not in ("fair", "in order"):
        raise I2IError("arbitration", expected="'fair' or 'in order'", got=repr(arbitration))
    if not whole(depth, 0):
        raise I2IError("depth", expected="a whole number of cycles from 0", got=repr(depth))
    plant = _Plant(config, depth, keep_weights)
    begun, ended = _run(plant, frames, _Memory(bandwidth / space.frequency_hz, arbitration == "fair"))

    stages = [_stage_activity(config, key, unit, plant) for key, units in plant.stages.items() for unit in units]
    branches = [_branch_activity(space, p, plant) for p in range(len(space.pipelines))]
    bits = sum(unit.moved for unit in plant.units)
    moves = [
        MoveActivity(
            space.pipelines[p].stages[s].name, space.pipelines[p].name, kind, unit.time["busy"],
            round(unit.moved / unit.bits[0] * unit.cycles[0]),
        )
        for kind, (p, s), unit in plant.moves
    ]  # fmt: skip
    return Simulation(tuple(branches), tuple(stages), ended - begun, bits, bandwidth, space.frequency_hz, tuple(moves))


def _stage_activity(config: Config, key: tuple[int, int], unit: _Unit, plant: _Plant) -> StageActivity:
    p, s = key
    pipeline = config.space.pipelines[p]
    stage = pipeline.stages[s]
    inputs = [edge for edge in unit.inputs if edge.width == unit.inputs[0].width and edge.capacity < math.inf]
    capacity = inputs[0].capacity if inputs else _capacity(stage)
    if unit.kind == "conv":
        cost = partition_cost(stage, config.factors[p][s][2])
        elements, halo = cost["columns_elements"], cost["halo_elements"]
    else:
        elements, halo = stage.out_channels * stage.height * capacity, 0
    return StageActivity(
        name=stage.name,
        branch=pipeline.name,
        kind=unit.kind,
        **{cause: unit.time[cause] for cause in _CAUSES},
        bits=unit.moved,
        capacity=capacity,
        peak=max((edge.peak for edge in inputs), default=0),
        buffer_elements=elements,
        halo_elements=halo,
        starts=np.array(unit.starts, np.int64),
        ends=np.array(unit.ends, np.int64),
    )


def _branch_activity(space: DesignSpace, p: int, plant: _Plant) -> BranchActivity:
    outputs, images = plant.outputs[p], plant.images[p]
    whole_frames = min(len(unit.finished) for unit in outputs)
    done = np.max([unit.finished[:whole_frames] for unit in outputs], axis=0).astype(np.int64)
    steady = done[1:] if len(done) > 2 else done
    interval = float(steady[-1] - steady[0]) / (len(steady) - 1)
    stages = [plant.stages[key][0] for key in ancestors(space, p)]
    return BranchActivity(
        name=space.pipelines[p].name,
        images=images,
        fps=images * space.frequency_hz / interval,
        interval_cycles=interval,
        first_column_cycles=max(unit.ends[0] for unit in outputs),
        initial_latency_cycles=int(done[0]),
        layer_by_layer_cycles=sum(u.columns // len(u.cycles) * u.tiles * sum(u.cycles) for u in stages),
        finished=done,
    )


def _loose(space: DesignSpace) -> list[tuple[int, int]]:
    """Stages that no other reads, without the last of each pipeline: parts of an output that concatenates several."""
    stages = [stage for pipeline in space.pipelines for stage in pipeline.stages]
    read = {source for stage in stages for source in stage.sources}
    read |= {addend.source for stage in stages for addend in stage.addends}
    earlier = [(p, s) for p, pipeline in enumerate(space.pipelines) for s in range(len(pipeline.stages) - 1)]
    return [key for key in earlier if key not in read]


def ancestors(space: DesignSpace, pipeline: int) -> set[tuple[int, int]]:
    """The stages that a branch's output depends on."""
    found: set[tuple[int, int]] = set()
    todo = [
        (pipeline, len(space.pipelines[pipeline].stages) - 1),
        *(key for key in _loose(space) if key[0] == pipeline),
    ]
    while todo:
        key = todo.pop()
        if key not in found:
            found.add(key)
            stage = space.pipelines[key[0]].stages[key[1]]
            todo += [*stage.sources, *(addend.source for addend in stage.addends)]
    return found


def _check(space: DesignSpace, batch: tuple[int, ...]) -> None:
    """Pipelines that feed the same one must start together."""
    for p, pipeline in enumerate(space.pipelines):
        feeding = [batch[f] for f in sorted(space.shared_from(p))]
        if len(set(feeding)) > 1:
            expected = "the branches that feed it to have one batch size"
            raise I2IError(f"batch of {pipeline.name}", expected=expected, got=feeding)
