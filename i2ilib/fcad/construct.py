"""Construction: from analysed layers to pipelines of stages, the space in which a design is searched."""

from __future__ import annotations

import dataclasses
from math import ceil, inf, prod

from ..errors import I2IError
from .arguments import expect, positive, several, whole
from .graph import Graph, Layer

Factors = tuple[int, int, int]  # (cpf, kpf, h)


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
    def reach(self) -> tuple[int, int]:
        """Rows and columns of the input that one position needs."""
        if self.transposed:
            return tuple(ceil(k / self.stride) for k in self.kernel)
        return tuple(self.dilation * (k - 1) + 1 for k in self.kernel)

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
        return {source for stage in stages for source, _ in stage.sources} - {pipeline}


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
    that keeps up with the convolution, as DNNBuilder's pooling stages do. Concatenation, sums and shuffles are wiring:
    a stage then has several sources, and a sum is added up by the latest of them. Maps that wait for a join with a
    longer path go through external memory, written once and read once. What happens to the network's input before the
    first convolution is left to whoever writes that input.

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
        I2IError: If there is no convolution, or one is followed by light stages that a single one cannot stand for.

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

    branches = graph.branches
    owner: dict[str, int] = {}  # stage to pipeline-to-be
    for index in sorted(range(len(branches)), key=lambda index: -branches[index].ops):
        for layer in branches[index].layers:
            if layer.name in fusion.stages:
                owner.setdefault(layer.name, index)
    owning = [index for index in range(len(branches)) if index in owner.values()]
    place: dict[str, tuple[int, int]] = {}
    members: list[list[str]] = [[name for name in fusion.stages if owner.get(name) == index] for index in owning]
    for p, names in enumerate(members):
        place |= {name: (p, s) for s, name in enumerate(names)}
    pipelines = tuple(
        Pipeline(
            branches[index].name,
            tuple(
                dataclasses.replace(fusion.stages[name], sources=tuple(place[one] for one in fusion.sources[name]))
                for name in names
            ),
        )
        for index, names in zip(owning, members, strict=True)
    )
    taps = tuple(
        (branch.name, *(place[fusion.tail[output][0]] if fusion.tail[output] else (-1, -1)))
        for index, (branch, output) in enumerate(zip(branches, graph.outputs, strict=True))
        if index not in owning
    )
    return DesignSpace(pipelines, bits, frequency_hz, taps)


class _Fusion:
    """Turns layers into stages, one layer after another; stages are known by the name of their convolution."""

    def __init__(self, graph: Graph):
        self.stages: dict[str, Stage] = {}  # in running order
        self.sources: dict[str, tuple[str, ...]] = {}
        self.tail: dict[str, tuple[str, ...]] = {name: () for name in graph.inputs}  # who makes a map, the latest first
        self.elements = {name: prod(shape) for name, shape in graph.inputs.items()}
        self.waiting: dict[str, int] = {}  # of a join: elements that go through external memory for it

    def take(self, layer: Layer) -> None:
        self.elements[layer.name] = layer.elements
        if layer.kind in ("conv", "deconv", "linear"):
            self._open(layer)
        elif layer.kind in ("concat", "add"):
            self._join(layer)
        else:
            self.tail[layer.name] = tail = self.tail[layer.inputs[0]]
            self._pass_on(layer)
            if tail and layer.kind != "shuffle":
                self._attach(layer, tail)

    def leave(self, output: str) -> None:
        """Write an output of the network to external memory."""
        if tail := self.tail[output]:
            self._charge(tail[0], self.elements[output] + self.waiting.pop(output, 0))

    def _open(self, layer: Layer) -> None:
        (ci, in_height, in_width), (co, height, width) = layer.in_shape, layer.out_shape
        source, flat = layer.inputs[0], layer.kind == "deconv"
        sources = self.tail[source]
        self.stages[layer.name] = Stage(
            name=layer.name, in_channels=ci, out_channels=co, in_height=in_height, in_width=in_width,
            height=in_height if flat else height, width=in_width if flat else width, kernel=layer.kernel,
            macs=layer.macs, ops=layer.ops, weights=layer.weights, stride=layer.stride, groups=layer.groups,
            dilation=layer.dilation, transposed=flat, bias=layer.bias,
            untied=layer.untied, external=self.waiting.pop(source, 0) if sources else prod(layer.in_shape),
        )  # fmt: skip
        if flat:
            self.stages[layer.name] = _handing(self.stages[layer.name], (height, width))
        self.sources[layer.name] = sources
        self.tail[layer.name] = (layer.name,)

    def _join(self, layer: Layer) -> None:
        """Concatenate or add: whoever comes before the latest waits in external memory."""
        order = list(self.stages)
        tails = {name: self.tail[name] for name in layer.inputs}
        latest = max(tails, key=lambda name: max((order.index(one) for one in tails[name]), default=-1))
        wait = sum((2 if tails[name] else 1) * self.elements[name] for name in tails if name != latest)
        wait += sum(self.waiting.pop(name, 0) for name in tails)
        if layer.kind == "concat":
            union = {one for tail in tails.values() for one in tail}
            self.tail[layer.name] = tuple(sorted(union, key=order.index, reverse=True))
            self.waiting[layer.name] = wait
            return
        self.tail[layer.name] = tails[latest]
        if tails[latest]:  # the latest stage adds the others to what it gives
            here = tails[latest][0]
            others = {one for tail in tails.values() for one in tail} - {*tails[latest], *self.sources[here]}
            self.sources[here] += tuple(sorted(others, key=order.index, reverse=True))
            self._charge(here, wait)

    def _pass_on(self, layer: Layer) -> None:
        if layer.inputs[0] in self.waiting:
            self.waiting[layer.name] = self.waiting.pop(layer.inputs[0])

    def _attach(self, layer: Layer, tail: tuple[str, ...]) -> None:
        """Fuse an activation, or set an up-sampling or pooling behind the stages that make its input."""
        first = self.stages[tail[0]]
        self.stages[tail[0]] = dataclasses.replace(first, ops=first.ops + layer.ops)
        if layer.kind == "activation":
            return
        for name in tail:
            stage = self.stages[name]
            light = self._light(layer, stage)
            if light is None:
                got = f"{layer.name} too"
                remedy = "Put a convolution between them, or leave one of them to the host."
                expected = "one up-sampling or one pooling behind a convolution"
                raise I2IError(f"stage {stage.name}", expected=expected, got=got, remedy=remedy)
            self.stages[name] = light

    def _light(self, layer: Layer, stage: Stage) -> Stage | None:
        size = layer.out_shape[1:]
        if layer.kind == "upsample" and not isinstance(layer.scale, int):
            remedy = "Pool, or stride a convolution, to make maps smaller; leave other sizes to the host."
            raise I2IError(layer.name, expected="an up-sampling by a whole number", got=layer.scale, remedy=remedy)
        if layer.kind == "upsample" and not stage.pool:
            if stage.upsample > 1 and layer.in_shape[1:] == (stage.out_height, stage.out_width):  # one after another
                return _handing(dataclasses.replace(stage, upsample=stage.upsample * layer.scale), size)
            if stage.upsample in (1, layer.scale):
                return _handing(dataclasses.replace(stage, upsample=layer.scale), size)
        if layer.kind == "pool" and stage.upsample == 1 and (not stage.pool or stage.handed_on == size):
            return dataclasses.replace(stage, pool=max(stage.pool, layer.kernel[1]), handed_on=size)
        return None

    def _charge(self, name: str, elements: int) -> None:
        stage = self.stages[name]
        self.stages[name] = dataclasses.replace(stage, external=stage.external + elements)


def _handing(stage: Stage, size: tuple[int, int]) -> Stage:
    """The stage that hands on maps of this size."""
    plain = dataclasses.replace(stage, handed_on=None)
    same = (plain.out_height, plain.out_width) == size
    return plain if same else dataclasses.replace(plain, handed_on=size)
