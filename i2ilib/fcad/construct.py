"""Construction: from analysed layers to pipelines of stages, the space in which a design is searched."""

from __future__ import annotations

import dataclasses
from math import ceil, inf, prod

from ..errors import I2IError
from .arguments import expect, positive, several, whole
from .graph import Graph, Layer

Factors = tuple[int, int, int]  # (cpf, kpf, h)


@dataclasses.dataclass(frozen=True)
class Light:
    """An up-sampling or a pooling behind a convolution: a buffer and a control of its own."""

    kind: str  # "upsample" or "pool"
    factor: int  # of the up-sampling, or columns of the pooling's window
    size: tuple[int, int]  # rows and columns of the map that it makes
    behind: int = 0  # what it reads: 0 the convolution, n the n-th light of its stage


@dataclasses.dataclass(frozen=True)
class Addend:
    """A map of another stage that is added to what a stage gives."""

    source: tuple[int, int]  # (pipeline, stage)
    size: tuple[int, int]  # rows and columns of both maps


@dataclasses.dataclass(frozen=True)
class Stage:
    """One convolution with what is fused into it: a unit of the accelerator.

    A transposed convolution computes at its *input* positions: each meets the whole kernel once, which counts every
    real product and none with an inserted zero. A linear layer is a convolution whose kernel covers its whole map.
    """

    name: str
    in_channels: int
    out_channels: int
    height: int  # positions where it computes, before up-sampling or pooling: rows
    width: int  # ... and columns
    in_height: int
    in_width: int
    kernel: tuple[int, int]  # (rows, columns)
    macs: int  # per frame
    ops: int  # Eq. 3: 2 per MAC, 1 per output of an activation, 1 per up-sampled output
    weights: int  # elements
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    transposed: bool = False
    upsample: int = 1  # factor of the up-sampling behind it
    pool: int = 0  # columns of the pooling window behind it; 0: none
    handed_on: tuple[int, int] | None = None  # rows and columns of the map given on; None: made · upsample
    bias: int = 0  # elements
    untied: bool = False  # one bias for each output element
    external: int = 0  # map elements per frame to and from external memory: inputs, outputs, maps that wait for a join
    sources: tuple[tuple[int, int], ...] = ()  # (pipeline, stage), the latest first; empty: the network's input
    taken: tuple[int, ...] = ()  # of each source: 0 its convolution's map, n its n-th light's; empty: as sizes tell
    addends: tuple[Addend, ...] = ()  # added at its output, column by column
    more: tuple[Light, ...] = ()  # lights beside the one that upsample or pool stands for
    burst: int = 1  # input columns that come at once, where a source makes fewer and wider ones (reshaping, shuffles)
    products: int = 0  # of maps that are multiplied on their way in: gates
    span: tuple[int, int] | None = None  # rows and columns that its kernels meet together, where more than each does
    wider: int = 0  # bits by which weights are wider than the design's: sums of several weights

    @property
    def made(self) -> tuple[int, int]:
        """Rows and columns that the convolution itself makes."""
        factor = self.stride if self.transposed else 1
        return self.height * factor, self.width * factor

    @property
    def out_height(self) -> int:
        """Rows of the map that it hands on."""
        return self.handed_on[0] if self.handed_on else self.made[0] * self.upsample

    @property
    def out_width(self) -> int:
        """Columns of the map that it hands on."""
        return self.handed_on[1] if self.handed_on else self.made[1] * self.upsample

    @property
    def light(self) -> bool:
        """Whether an up-sampling or a pooling stage stands behind the convolution."""
        return self.upsample > 1 or self.pool > 0

    @property
    def lights(self) -> tuple[Light, ...]:
        """All up-samplings and poolings behind it."""
        if not self.light:
            return self.more
        kind, factor = ("pool", self.pool) if self.pool else ("upsample", self.upsample)
        return (Light(kind, factor, (self.out_height, self.out_width)), *self.more)

    def gives(self, size: tuple[int, int]) -> int:
        """Which of its maps a reader of that size takes: 0 the convolution's, n the n-th light's."""
        sizes = [light.size for light in self.lights]
        if size in sizes:
            return sizes.index(size) + 1
        return 0 if not sizes or size in (self.made, (self.height, self.width)) else 1  # else reshaped or cropped

    def paired(self, bits: int) -> bool:
        """Whether two products share a multiplier: at 8 bits, where two output channels meet the same input.

        Not so where each output channel of a group has inputs of its own (depthwise), nor where weights are wider.
        """
        return bits == 8 and not self.wider and self.out_channels // self.groups % 2 == 0

    @property
    def held(self) -> int:
        """Columns that its input buffer holds: those that a position keeps, and two steps, one used and one filled."""
        reach, step = self.reach[1], max(self.step, self.burst)
        if self.burst > 1:
            return min(max(reach - self.step, 0) + 2 * step, 2 * self.in_width)
        return 2 * reach if self.width == 1 and reach > 1 else reach + step

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns of the input that one position needs."""
        if self.transposed:
            return tuple(ceil(k / self.stride) for k in self.kernel)
        return self.span or tuple(self.dilation * (k - 1) + 1 for k in self.kernel)

    @property
    def step(self) -> int:
        """Input positions from one computed position to the next."""
        return 1 if self.transposed else self.stride


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The stages that one branch owns, in running order: stages that it shares are owned once, by one branch."""

    name: str
    stages: tuple[Stage, ...]

    @property
    def ops(self) -> int:
        """Operations per frame of its own stages, as Eq. 3 counts them."""
        return sum(stage.ops for stage in self.stages)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per frame of its own stages."""
        return sum(stage.macs for stage in self.stages)

    @property
    def weights(self) -> int:
        """Weights of its own stages, without biases."""
        return sum(stage.weights for stage in self.stages)


@dataclasses.dataclass(frozen=True)
class DesignSpace:
    """What a search chooses factors for: pipelines, precision and clock."""

    pipelines: tuple[Pipeline, ...]  # in the order of the outputs
    bits: int = 8  # of maps and weights: 8 or 16
    frequency_hz: float = 200e6
    taps: tuple[tuple[str, int, int], ...] = ()  # outputs without a stage of their own: (name, pipeline, stage);
    # (name, -1, -1) is an input of the network, handed through

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise I2IError("bits", expected="8 or 16", got=repr(self.bits))
        if not (positive(self.frequency_hz) and self.frequency_hz < inf):
            raise I2IError("frequency_hz", expected="a positive clock in Hz", got=repr(self.frequency_hz))
        if not self.pipelines or not all(pipeline.stages for pipeline in self.pipelines):
            raise I2IError("design space", expected="at least one pipeline, each with a stage", got="none")

    @property
    def names(self) -> tuple[str, ...]:
        """The branches' names."""
        return tuple(pipeline.name for pipeline in self.pipelines)

    @property
    def order(self) -> tuple[int, ...]:
        """Indices of the pipelines, each after those that feed it."""
        order: list[int] = []
        waiting = list(range(len(self.pipelines)))
        while waiting:
            ready = [index for index in waiting if self.shared_from(index) <= set(order)]
            if not ready:
                raise I2IError("design space", expected="pipelines without a circle", got=self.names)
            order.append(ready[0])
            waiting.remove(ready[0])
        return tuple(order)

    def shared_from(self, pipeline: int) -> set[int]:
        """Indices of the other pipelines whose stages feed this one."""
        stages = self.pipelines[pipeline].stages
        fed = {source for stage in stages for source, _ in stage.sources}
        return (fed | {addend.source[0] for stage in stages for addend in stage.addends}) - {pipeline}


@dataclasses.dataclass(frozen=True)
class Config:
    """A design: factors of every stage, and how many copies of each pipeline.

    Raises:
        I2IError: If factors or batch do not belong to the space, or a factor exceeds what a stage has work for.
    """

    space: DesignSpace
    factors: tuple[tuple[Factors, ...], ...]  # (cpf, kpf, h) by pipeline and stage
    batch: tuple[int, ...]  # copies by pipeline

    def __post_init__(self) -> None:
        pipelines = expect("space", self.space, DesignSpace).pipelines
        factors, batch = several(self.factors), several(self.batch)
        for what, given in (("factors", factors), ("batch", batch)):
            if len(given) != len(pipelines):
                raise I2IError(what, expected=f"one entry for each of {len(pipelines)} pipelines", got=len(given))
        for pipeline, copies in zip(pipelines, batch, strict=True):
            if not whole(copies):
                raise I2IError(f"batch of {pipeline.name}", expected="a whole number from 1", got=repr(copies))
        chosen = tuple(map(_factors, pipelines, factors))
        object.__setattr__(self, "factors", chosen)  # plain numbers, whatever sequences and integers came
        object.__setattr__(self, "batch", tuple(map(int, batch)))

    def to_json(self) -> dict:
        """Factors and batch as plain lists."""
        return {"factors": [[list(f) for f in pipeline] for pipeline in self.factors], "batch": list(self.batch)}

    @classmethod
    def from_json(cls, space: DesignSpace, data: dict) -> Config:
        """The inverse of :meth:`to_json`, for the same space."""
        if not isinstance(data, dict) or not {"factors", "batch"} <= data.keys():
            raise I2IError("design", expected="a dict with factors and batch, as to_json gives it", got=repr(data))
        return cls(space, data["factors"], data["batch"])


def _factors(pipeline: Pipeline, given: object) -> tuple[Factors, ...]:
    """The factors of a pipeline's stages, as plain numbers."""
    triples = tuple(map(several, several(given)))
    if len(triples) != len(pipeline.stages):
        expected = f"(cpf, kpf, h) for each of {len(pipeline.stages)} stages"
        raise I2IError(f"factors of {pipeline.name}", expected=expected, got=f"{len(triples)} entries")
    for stage, triple in zip(pipeline.stages, triples, strict=True):
        most = largest(stage)
        if len(triple) != 3 or not all(whole(f) and f <= m for f, m in zip(triple, most, strict=True)):
            expected = "(cpf, kpf, h) as whole numbers from 1 to ({}, {}, {})".format(*most)
            raise I2IError(f"factors of stage {stage.name}", expected=expected, got=triple)
    return tuple(tuple(map(int, triple)) for triple in triples)


def largest(stage: Stage) -> Factors:
    """The largest (cpf, kpf, h) that a stage has work for."""
    return stage.in_channels // stage.groups, stage.out_channels, stage.height


def construct(graph: Graph, *, bits: int = 8, frequency_hz: float = 200e6) -> DesignSpace:
    """Fuse layers into stages and deal the stages out to the branches (the paper's Sec. V).

    Fusion: a convolution, transposed convolution or linear layer makes a stage; bias, batch norm and activation belong
    to it. An up-sampling or a pooling behind it becomes a light stage of its own, with a buffer and its own control,
    that keeps up with the convolution, as DNNBuilder's pooling stages do; a convolution may have several, for several
    readers. Concatenation, sums, products and shuffles are wiring. A stage that reads a concatenation has several
    sources. A sum is added at the output of the stage that lags most; what is added to it are its ``addends``. A
    product with a gate (squeeze and excitation) is formed where it is read, by a multiplier for each channel that comes
    at once. Maps that wait for a join with a longer path go through external memory, written once and read by each
    join. What happens to the network's input before the first convolution is left to whoever writes that input.

    Separation: every output is a branch. A stage that several branches need belongs to the one with the highest demand,
    in operations with everything that it needs; the others are fed by it.

    Args:
        graph: Of :func:`~i2ilib.fcad.graph.analyse`.
        bits: Width of maps and weights: 8 or 16.
        frequency_hz: Clock.

    Returns:
        One pipeline for each output that has a stage of its own, in the order of the outputs. Others are ``taps``:
        they come with the stage that is named there, at its rate.

    Raises:
        I2IError: If there is no convolution, or an up-sampling or pooling stands where none can be.

    Example:
        >>> import torch
        >>> from i2ilib.fcad.graph import analyse
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Upsample(None, 2))
        >>> stage = construct(analyse(net, torch.zeros(1, 3, 8, 8))).pipelines[0].stages[0]
        >>> stage.ops == 2 * stage.macs + 8 * 8 * 8 + 8 * 16 * 16, stage.upsample
        (True, 2)
    """
    fusion = _Fusion(expect("graph", graph, Graph, "Analyse the network first."))
    for layer in graph.layers:
        fusion.take(layer)
    if not fusion.stages:
        got = ", ".join(sorted({layer.kind for layer in graph.layers})) or "no layer"
        raise I2IError("graph", expected="at least one convolution or linear layer", got=got)
    for output in dict.fromkeys(graph.outputs):
        fusion.leave(output)
    names = fusion.running_order()

    branches = graph.branches
    owner: dict[str, int] = {}  # stage to pipeline-to-be
    for index in sorted(range(len(branches)), key=lambda index: -branches[index].ops):
        # What is added to a stage is needed with it. So a stage's sources belong to its own branch or to one of higher
        # demand, and pipelines feed each other in one direction.
        for name in fusion.behind(fusion.tail[graph.outputs[index]]):
            owner.setdefault(name, index)
    owning = [index for index in range(len(branches)) if index in owner.values()]
    place: dict[str, tuple[int, int]] = {}
    members: list[list[str]] = [[name for name in names if owner.get(name) == index] for index in owning]
    for p, own in enumerate(members):
        place |= {name: (p, s) for s, name in enumerate(own)}
    pipelines = tuple(
        Pipeline(branches[index].name, tuple(fusion.finished(name, place) for name in own))
        for index, own in zip(owning, members, strict=True)
    )
    taps = tuple(
        (branch.name, *(place[fusion.tail[output][0]] if fusion.tail[output] else (-1, -1)))
        for index, (branch, output) in enumerate(zip(branches, graph.outputs, strict=True))
        if index not in owning
    )
    return DesignSpace(pipelines, bits, frequency_hz, taps)


class _Fusion:
    """Turns layers into stages, one layer after another; stages are known by the name of their convolution.

    A map is known by its layer: the stages that make it (``tail``, the latest first), which of each stage's maps it is
    (``port``: 0 the convolution's, n that of its n-th light), and how far it lags behind the network's input
    (``lag``, in maps): what a join must wait for.
    """

    def __init__(self, graph: Graph):
        self.stages: dict[str, Stage] = {}  # in the order of the trace
        self.sources: dict[str, tuple[str, ...]] = {}
        self.taken: dict[str, dict[str, int]] = {}
        self.addends: dict[str, dict[tuple[str, tuple[int, int]], None]] = {}
        self.lights: dict[str, list[Light]] = {}
        self.used: set[tuple[str, int]] = set()  # (stage, port) that something reads
        self.tail: dict[str, tuple[str, ...]] = {name: () for name in graph.inputs}
        self.port: dict[str, dict[str, int]] = {name: {} for name in graph.inputs}
        self.lag: dict[str, float] = dict.fromkeys(graph.inputs, 0.0)
        self.elements = {name: prod(shape) for name, shape in graph.inputs.items()}
        self.waiting: dict[str, int] = {}  # of a join: elements that go through external memory for it
        self.written: set[str] = set()  # maps that lie there: read again, written once
        self.products: dict[str, int] = {}  # of a map that is formed where it is read, because it has a gate
        self.shapes = {**graph.inputs, **{layer.name: layer.out_shape for layer in graph.layers}}
        self.needs: dict[str, set[int]] = {}
        for index, branch in enumerate(graph.branches):
            for layer in branch.layers:
                self.needs.setdefault(layer.name, set()).add(index)

    def take(self, layer: Layer) -> None:
        self.elements[layer.name] = layer.elements
        self.lag[layer.name] = max(self.lag[name] for name in layer.inputs) + _lag(layer)
        if layer.kind in ("conv", "deconv", "linear"):
            self._open(layer)
        elif layer.kind in ("concat", "add", "mul"):
            self._join(layer)
        else:
            self._pass_on(layer)
            if self.tail[layer.name] and layer.kind != "shuffle":
                self._attach(layer)

    def leave(self, output: str) -> None:
        """Write an output of the network to external memory."""
        if tail := self.tail[output]:
            self._read(output)
            self._charge(tail[0], self.elements[output] + self.waiting.pop(output, 0), self.products.get(output, 0))

    def running_order(self) -> list[str]:
        """The stages, each after those that it reads and adds."""
        order: list[str] = []
        state: dict[str, bool] = {}  # True: placed, False: being placed
        for name in self.stages:
            waiting = [name]
            while waiting:
                if state.get(waiting[-1]):
                    waiting.pop()
                    continue
                here, state[here] = waiting[-1], False
                ahead = [one for one in self._before(here) if one not in state]
                if ahead:
                    waiting += ahead
                else:
                    state[here] = True
                    order.append(waiting.pop())
        return order

    def behind(self, tail: tuple[str, ...]) -> list[str]:
        """The stages that make a map, and all that these need, in the order of the trace."""
        found: set[str] = set()
        waiting = list(tail)
        while waiting:
            if (name := waiting.pop()) not in found:
                found.add(name)
                waiting += self._before(name)
        return [name for name in self.stages if name in found]

    def _before(self, name: str) -> list[str]:
        return [*self.sources[name], *(source for source, _ in self.addends[name])]

    def finished(self, name: str, place: dict[str, tuple[int, int]]) -> Stage:
        """The stage with its sources by place, and its lights without those that only stand before another."""
        stage, sources = self._with_lights(name), self.sources[name]
        addends = tuple(Addend(place[source], size) for source, size in self.addends[name])
        taken = tuple(self._port(source, self.taken[name][source]) for source in sources)
        here = stage.in_height, stage.in_width
        if all(self._with_lights(source).gives(here) == port for source, port in zip(sources, taken, strict=True)):
            taken = ()
        return dataclasses.replace(
            stage, sources=tuple(place[source] for source in sources), taken=taken, addends=addends,
            burst=self._burst(name),
        )  # fmt: skip

    def _burst(self, name: str) -> int:
        stage = self.stages[name]
        widths = [self._size(source, port)[1] for source, port in self.taken[name].items()]
        if stage.products:  # a gate is one number a channel, and waits nowhere
            widths = [width for width in widths if width > 1] or [stage.in_width]
        return max((-(-stage.in_width // width) for width in widths), default=1)

    def _size(self, name: str, port: int) -> tuple[int, int]:
        return self.lights[name][port - 1].size if port else self.stages[name].made

    def _kept(self, name: str) -> list[int]:
        """Ports of the lights that are read, and of those before them."""
        lights = self.lights[name]
        kept = {port for stage, port in self.used if stage == name and port}
        for port in range(len(lights), 0, -1):
            if port in kept and lights[port - 1].behind:
                kept.add(lights[port - 1].behind)
        return sorted(kept)

    def _port(self, name: str, port: int) -> int:
        return self._kept(name).index(port) + 1 if port else 0

    def _with_lights(self, name: str) -> Stage:
        stage, kept = self.stages[name], self._kept(name)
        lights = [self.lights[name][port - 1] for port in kept]
        lights = [dataclasses.replace(light, behind=self._port(name, light.behind)) for light in lights]
        if not lights:
            return stage
        first, more = lights[0], tuple(lights[1:])
        if first.kind == "pool":
            return dataclasses.replace(stage, pool=first.factor, handed_on=first.size, more=more)
        return _handing(dataclasses.replace(stage, upsample=first.factor, more=more), first.size)

    def _open(self, layer: Layer) -> None:
        (ci, in_height, in_width), (co, height, width) = layer.in_shape, layer.out_shape
        source, flat = layer.inputs[0], layer.kind == "deconv"
        self._read(source)
        sources = self.tail[source]
        stage = Stage(
            name=layer.name, in_channels=ci, out_channels=co, in_height=in_height, in_width=in_width,
            height=in_height if flat else height, width=in_width if flat else width, kernel=layer.kernel,
            macs=layer.macs, ops=layer.ops, weights=layer.weights, stride=layer.stride, groups=layer.groups,
            dilation=layer.dilation, transposed=flat, bias=layer.bias, untied=layer.untied, span=layer.span,
            wider=layer.wider,
            products=self.products.get(source, 0),
            external=self.waiting.pop(source, 0) if sources else prod(layer.in_shape),
        )  # fmt: skip
        self.stages[layer.name] = _handing(stage, (height, width)) if flat else stage
        self.sources[layer.name] = sources
        self.taken[layer.name] = dict(self.port[source])
        self.addends[layer.name], self.lights[layer.name] = {}, []
        self.tail[layer.name], self.port[layer.name] = (layer.name,), {layer.name: 0}

    def _read(self, name: str) -> None:
        self.used |= set(self.port[name].items())

    def _join(self, layer: Layer) -> None:
        """Concatenate, add or multiply: whoever comes before the latest waits in external memory.

        A sum is added up at the output of the stage that lags most; of those, one that no other branch needs for
        itself. A product is formed where it is read, by whatever reads it: its gate comes when a whole map has passed.
        """
        names = list(dict.fromkeys(layer.inputs))
        gated = layer.kind == "mul" or any(name in self.products for name in names)
        same = len({self.tail[name] for name in names}) == 1 and not self.products.keys() & {*names}
        if layer.kind == "mul" and same:
            self.tail[layer.name], self.port[layer.name] = self.tail[names[0]], self.port[names[0]]
            if self.tail[names[0]]:  # a function of one map, element by element
                self._charge(self.tail[names[0]][0], 0, ops=layer.ops)
            return
        need, order = self.needs.get(layer.name, set()), list(self.stages)

        def rank(name: str) -> tuple:
            tail = self.tail[name]
            own = bool(tail) and self.needs.get(tail[0]) == need
            return bool(tail), own or layer.kind != "add", self.lag[name], order.index(tail[0]) if tail else -1

        latest = max(names, key=rank)
        wait = 0
        for name in names:
            self._read(name)
            if name != latest:
                written = not self.tail[name] or name in self.written
                wait += (1 if written else 2) * self.elements[name]
                self.written.add(name)
            wait += self.waiting.pop(name, 0)
        if layer.kind == "add" and not gated:
            self.tail[layer.name], self.port[layer.name] = self.tail[latest], self.port[latest]
            if self.tail[latest]:
                here = self.tail[latest][0]
                for name in names:
                    for one in self.tail[name]:
                        if name != latest and one not in self.tail[latest]:
                            self.addends[here][one, layer.out_shape[1:]] = None
                self._charge(here, wait)
            return
        union = {one: port for name in names for one, port in self.port[name].items()}
        self.tail[layer.name] = tuple(sorted(union, key=lambda one: (self.lag[one], order.index(one)), reverse=True))
        self.port[layer.name], self.waiting[layer.name] = union, wait
        if gated:
            self.products[layer.name] = sum(self.products.get(name, 0) for name in names) + (layer.kind == "mul")

    def _pass_on(self, layer: Layer) -> None:
        before = layer.inputs[0]
        self.tail[layer.name], self.port[layer.name] = self.tail[before], self.port[before]
        if before in self.waiting:
            self.waiting[layer.name] = self.waiting.pop(before)
        if before in self.products:
            self.products[layer.name] = self.products[before]

    def _attach(self, layer: Layer) -> None:
        """Fuse an activation, or set an up-sampling or pooling behind the stages that make its input."""
        tail = self.tail[layer.name]
        self._charge(tail[0], 0, ops=layer.ops)
        if layer.kind == "activation":
            return
        if layer.name in self.products:
            remedy = "Put a convolution between them, or leave one of them to the host."
            got = "one behind a product of two maps, which is formed where a convolution reads it"
            expected = f"{_named(layer)} behind a convolution"
            raise I2IError(f"stage {layer.name}", expected=expected, got=got, remedy=remedy)
        if layer.kind == "upsample" and not isinstance(layer.scale, int):
            remedy = "Pool, or stride a convolution, to make maps smaller; leave other sizes to the host."
            raise I2IError(layer.name, expected="an up-sampling by a whole number", got=layer.scale, remedy=remedy)
        self.port[layer.name] = {name: self._light(layer, name, port) for name, port in self.port[layer.name].items()}

    def _light(self, layer: Layer, name: str, port: int) -> int:
        """The port of the light behind a stage's map that this layer is."""
        lights, factor = self.lights[name], layer.kernel[1] if layer.kind == "pool" else layer.scale
        if layer.kind == "upsample" and port and lights[port - 1].kind == "upsample":  # one after another: at once
            factor, port = factor * lights[port - 1].factor, lights[port - 1].behind
        light = Light(layer.kind, factor, layer.out_shape[1:], port)
        if light not in lights:
            lights.append(light)
        return lights.index(light) + 1

    def _charge(self, name: str, elements: int, products: int = 0, ops: int = 0) -> None:
        stage = self.stages[name]
        self.stages[name] = dataclasses.replace(
            stage, external=stage.external + elements, products=stage.products + products, ops=stage.ops + ops
        )


def _lag(layer: Layer) -> float:
    """How far a layer's map lags behind its input, in maps: the columns under the first position."""
    if layer.kind in ("conv", "deconv", "linear", "pool"):
        return min(1.0, layer.kernel[1] * layer.dilation / max(1, layer.in_shape[2]))
    return 0.0


def _named(layer: Layer) -> str:
    return "a pooling" if layer.kind == "pool" else "an up-sampling"


def _handing(stage: Stage, size: tuple[int, int]) -> Stage:
    """The stage that hands on maps of this size."""
    plain = dataclasses.replace(stage, handed_on=None)
    same = (plain.out_height, plain.out_width) == size
    return plain if same else dataclasses.replace(plain, handed_on=size)
