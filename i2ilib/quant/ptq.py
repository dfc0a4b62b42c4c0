"""Post-training quantisation in the DPU's scheme: calibrate, fake-quantise, compute in integers, export, keep."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import fx, nn
from tqdm.auto import tqdm

from ..errors import I2IError
from . import calibration, correct
from . import graph as g
from .fixed_point import fake_quantise, fix_position, limit_shifts

BITS = range(2, 9)  # the DPU has 8; fewer bits are for study, in the same arithmetic


class Quantised:
    """A network on the DPU's integer grids.

    Attributes:
        folded: The float network with BatchNorm folded, before anything is rounded.
        sites: Its tensors that have a fix position, in the order in which they are computed.
        fix_positions: Fix position by tensor name: ``input``, ``encoder.0.conv.weight``, ``encoder.0.act``, ``cat``, …
        example_shape: (C, H, W) of the input that the graph was captured with.
        bits: Of every integer: 8, or fewer for study.
    """

    def __init__(
        self, folded: fx.GraphModule, fix_positions: dict[str, int], example_shape: tuple[int, ...], *, bits: int = 8
    ):
        self.folded, self.example_shape, self.bits = folded, tuple(example_shape), _checked(bits)
        self.sites = g.sites(folded)
        self.fix_positions = dict(fix_positions)
        names = {site.name for site in self.sites}
        if strange := names ^ self.fix_positions.keys():
            raise I2IError(
                "fix_positions",
                expected=f"one for each of the {len(names)} tensors of this network",
                got=f"{len(self.fix_positions)}; too many or missing: {', '.join(sorted(strange)[:4])}",
            )

    @functools.cached_property
    def graph(self) -> fx.GraphModule:
        """The network with every parameter rounded to its grid, still in float32."""
        rounded = g.copy_graph(self.folded)
        nodes = {node.name: node for node in rounded.graph.nodes}
        for site in self.sites:
            if site.kind == "parameter":
                value = g.parameter(rounded, nodes[site.node.name]).detach()
                value = fake_quantise(value, self.fix_positions[site.name], kind="parameter", bits=self.bits)
                g.set_parameter(rounded, nodes[site.node.name], value)
        return rounded

    def fake(self, x: torch.Tensor) -> torch.Tensor:
        """The quantised network in float32, rounding feature maps as the DPU does (ties up).

        Args:
            x: (N, C, H, W) float32 in the range that the network was trained on.

        Returns:
            The network's output, (N, C', H', W') float32.
        """
        return run(self.graph, self._feature_maps, x, self.fix_positions, bits=self.bits)

    def activations(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The value of every rounded feature map, float32, by tensor name; :meth:`fake` on the way."""
        kept: dict[str, torch.Tensor] = {}

        def keep(site: g.Site, value: torch.Tensor) -> torch.Tensor:
            kept[site.name] = fake_quantise(value, self.fix_positions[site.name], kind=site.kind, bits=self.bits)
            return kept[site.name]

        with torch.no_grad():
            g.interpret(self.graph, self._feature_maps, x, keep)
        return kept

    @functools.cached_property
    def _executor(self):
        from .integer import Executor

        return Executor(self)

    def integer(self, x: torch.Tensor, *, keep: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """The network in integers alone: int8 in, int32 sums, shifts, int8 out. The reference for every engine.

        Args:
            x: As in :meth:`fake`; rounded to int8 first.
            keep: When given, filled with every int8 feature map (N, C, H, W) by tensor name.

        Returns:
            The network's output, (N, C', H', W') float32: the last int8 tensor times its step, after the host's
            operators (tanh, clamp), which are float.
        """
        return self._executor(x, keep=keep)

    def moved(self, fix_positions: dict[str, int]) -> Quantised:
        """The same network with some fix positions changed.

        Raises:
            I2IError: If a name is not a tensor of this network.
        """
        return Quantised(self.folded, self.fix_positions | fix_positions, self.example_shape, bits=self.bits)

    def on_device(self) -> Quantised:
        """The part that ends in the last rounded tensor, without the host's operators behind it (tanh, clamp).

        Its outputs are int8 values times one step, so that two engines can be compared integer by integer.
        """
        return Quantised(g.without_host(self.folded), self.fix_positions, self.example_shape, bits=self.bits)

    @property
    def step(self) -> float:
        """The step of the last rounded tensor: one LSB of what :meth:`on_device` gives."""
        return 2.0 ** -self.fix_positions[self.sites[-1].name]

    def to_onnx(self, path: str | os.PathLike, *, ties: str = "up", form: str = "plain") -> Path:
        """Write the network as ONNX (opset 18) with int8 Q/DQ pairs and a free batch size.

        Args:
            path: Where; written whole or not at all.
            ties: "up" moves every tensor by less than its finest step before it is rounded, so that engines, whose
                ties go to even, round as the DPU does; "even" leaves the ties to the engine.
            form: "plain" keeps the network's operators; "cpu" computes the same integers with convolutions that suit
                the matrix units of CPUs (:mod:`i2ilib.quant.rewrite`); "float" holds the same integers as float32
                values, with rounding and saturation as operators and no Q/DQ pair, for processors whose int8 arithmetic
                is slow or saturates (:mod:`i2ilib.quant.float_form`).

        Raises:
            I2IError: If ``ties`` or ``form`` is something else, the network has fewer than 8 bits, or, of "float",
                float32 cannot hold a tensor's sums.
        """
        from .export import to_onnx
        from .float_form import to_float
        from .rewrite import for_cpu
        from .scheme import to_qdq
        from .ties import break_ties

        if ties not in ("up", "even"):
            raise I2IError("ties", expected="'up' or 'even'", got=repr(ties))
        if form not in ("plain", "cpu", "float"):
            raise I2IError("form", expected="'plain' or 'cpu' or 'float'", got=repr(form))
        if form == "float" and ties != "up":
            raise I2IError(
                "ties", expected="'up' for the form 'float', which writes the DPU's rule out", got=repr(ties)
            )
        if self.bits != 8:
            raise I2IError("to_onnx", expected="8 bits, what this export writes", got=f"{self.bits} bits")
        example = torch.zeros(2, *self.example_shape)
        graph, sites = (self.graph, self.sites) if form == "plain" else for_cpu(self.graph, self.sites)
        if form == "float":
            return to_onnx(to_float(graph, sites, self.fix_positions), example, path)
        if ties == "up":
            graph, sites = break_ties(graph, sites, self.fix_positions)
        return to_onnx(to_qdq(graph, sites, self.fix_positions), example, path)

    def save(self, path: str | os.PathLike) -> Path:
        """Keep the network, graph and int8 parameters, in one ``.safetensors``; :func:`i2ilib.quant.load` reads it."""
        from .interchange import save

        return save(path, self)

    def to_json(self, path: str | os.PathLike) -> Path:
        """Write the graph with every fix position and shift as JSON; :mod:`i2ilib.quant.interchange` has the format."""
        from .interchange import to_json

        return to_json(self, path)

    @property
    def _feature_maps(self) -> list[g.Site]:
        return [site for site in self.sites if site.kind != "parameter"]


@torch.no_grad()
def run(
    graph: fx.GraphModule, sites: list[g.Site], x: torch.Tensor, fix_positions: dict[str, int], *, bits: int = 8
) -> torch.Tensor:
    """A folded float network in which only those tensors are rounded that ``fix_positions`` names.

    With the positions of one layer it shows what that layer's integers cost, all else being float.

    Args:
        graph: ``Quantised.folded``.
        sites: Its sites.
        x: (N, C, H, W) float32.
        fix_positions: By tensor name, parameters and feature maps.
        bits: Of the integers.
    """
    chosen = [site for site in sites if site.name in fix_positions]
    return g.interpret(
        graph, chosen, x, lambda site, value: fake_quantise(value, fix_positions[site.name], kind=site.kind, bits=bits)
    )


def quantise(
    model: nn.Module,
    calibration_batches: calibration.Batches,
    scheme: str = "dpu",
    *,
    bits: int = 8,
    equalise: bool = False,
    correct_bias: bool = False,
    progress: bool = False,
) -> Quantised:
    """Quantise a trained network to INT8 after training.

    Parameters are searched once, on the folded values. Each calibration batch then flows through the network; at
    every site the position is searched on the unrounded tensor, joins the site's history, and the tensor is rounded
    at the most frequent position so far (the smallest on a tie) before it flows on. The last step keeps all shifts
    within the DPU's limits.

    Args:
        model: A network of the supported operators; it is copied, not changed. :func:`i2ilib.quant.inspect` names every
            operator that would be refused.
        calibration_batches: Batches (N, C, H, W) of floating point, all of one height and width, as the network sees
            them: a tensor, a list, a generator, a ``DataLoader``, also of (image, label) or dicts;
            :func:`i2ilib.quant.calibration.read` has the rules.
        scheme: "dpu": signed int8, symmetric, per tensor, power-of-two scales.
        bits: Of every integer, 2 to 8; the DPU and the engines have 8.
        equalise: Balance the channels of neighbouring convolutions first (:func:`i2ilib.quant.correct.equalise`).
        correct_bias: Take the mean error of each channel off its bias (:mod:`i2ilib.quant.correct`).
        progress: Show a bar over the batches.

    Returns:
        The quantised network.

    Raises:
        I2IError: If there is no batch, one has another form, type or size or is not finite, the scheme is unknown, the
            model cannot be exported, or an operator is not supported.
    """
    if scheme != "dpu":
        raise I2IError("scheme", expected="'dpu'", got=repr(scheme))
    bits = _checked(bits)
    batches = list(calibration.read(calibration_batches))
    folded = g.capture(model, batches[0][:2])
    if equalise:
        correct.equalise(folded)
    biases = {} if correct_bias else None
    positions = calibrate(folded, batches, bits=bits, biases=biases, progress=progress)
    if correct_bias:
        correct.correct_biases(folded, biases)
    return Quantised(folded, within_limits(folded, positions), batches[0].shape[1:], bits=bits)


@torch.no_grad()
def calibrate(
    folded: fx.GraphModule,
    batches: list[torch.Tensor],
    *,
    bits: int = 8,
    biases: dict[str, torch.Tensor] | None = None,
    progress: bool = False,
) -> dict[str, int]:
    """The fix positions that the batches ask for, before the limits of the shifts.

    ``biases``, when given, is filled with what bias correction makes of every bias, batch after batch.
    """
    sites = g.sites(folded)
    positions = {
        site.name: fix_position(g.parameter(folded, site.node), "parameter", bits=bits)
        for site in sites
        if site.kind == "parameter"
    }
    update = None if biases is None else functools.partial(correct.update_bias, folded, biases)
    history: dict[str, Counter[int]] = {site.name: Counter() for site in sites if site.kind != "parameter"}

    def search(site: g.Site, value: torch.Tensor) -> torch.Tensor:
        if site.kind == "parameter":
            if biases and site.node.target in biases:
                return biases[site.node.target]
            return fake_quantise(value, positions[site.name], kind="parameter", bits=bits)
        history[site.name][fix_position(value, site.kind, bits=bits)] += 1
        return fake_quantise(value, _mode(history[site.name]), kind=site.kind, bits=bits)

    for batch in tqdm(batches, desc="calibrate", unit="batch", disable=not progress):
        g.interpret(folded, sites, batch, search, update)
    return positions | {name: _mode(counts) for name, counts in history.items()}


def with_positions(model: nn.Module, fix_positions: dict[str, int], example: torch.Tensor) -> Quantised:
    """The quantised network for fix positions that are known: kept with the weights, or set by hand.

    Args:
        model: As in :func:`quantise`.
        fix_positions: By tensor name, one for every rounded tensor.
        example: (N, C, H, W) of floating point; its values do not matter.

    Raises:
        I2IError: If a position is missing or strange, or as :func:`quantise` for the model and the example.
    """
    example = calibration.one(example, "example")
    return Quantised(g.capture(model, example), fix_positions, example.shape[1:])


@torch.no_grad()
def tail_aware(quantised: Quantised, batches: calibration.Batches, *, finer: int = 6) -> Quantised:
    """The network with its last rounded tensor at the position that serves the host's tail best.

    Calibration looks at that tensor itself and spends its integers on the whole range. Where a tanh or a clamp comes
    after it, the far ends of the range all give the same, and steps are missed around zero, where the tail is steep.

    Args:
        quantised: From :func:`i2ilib.quant.quantise`.
        batches: As for calibration, read once and batch by batch; none is kept. No targets are needed.
        finer: Positions above the present one that are tried.

    Returns:
        The network whose output, behind the tail, has the least mean squared difference from the float network's;
        the shifts stay within the DPU's limits. The same one where nothing is gained.

    Raises:
        I2IError: If there is no batch, or one has another form, type or size or is not finite.
    """
    name = quantised.sites[-1].name
    positions = [quantised.fix_positions | {name: quantised.fix_positions[name] + more} for more in range(finer + 1)]
    tried = [moved[name] for moved in positions if within_limits(quantised.folded, moved) == moved]
    errors = dict.fromkeys(tried, 0.0)  # sums of squares
    for batch in calibration.read(batches, "batches"):
        exact = run(quantised.folded, quantised.sites, batch, {})
        for fp in tried:
            errors[fp] += float((quantised._executor(batch, last=fp) - exact).double().square().sum())
    return quantised.moved({name: min(tried, key=errors.get)}) if tried else quantised


@torch.no_grad()
def output_aware(quantised: Quantised, batches: calibration.Batches, *, progress: bool = False) -> Quantised:
    """The network with the positions that serve its output, where calibration looked at each tensor alone.

    One tensor after the other is tried a step coarser and a step finer, and stays where the network's rounded output
    comes nearest to the float network's. Calibration cuts off the few largest values of a weight where that lowers the
    weight's own squared error; the output of a network that sharpens depends on them, and here they come back.

    Args:
        quantised: From :func:`i2ilib.quant.quantise`.
        batches: As for calibration; all are kept in memory, and computed some two times for each rounded tensor, so
            a few small ones do. No targets are needed.
        progress: Show a bar over the tensors.

    Returns:
        The network whose output has the least mean squared difference found; the shifts stay within the DPU's limits.

    Raises:
        I2IError: If there is no batch, or one has another form, type or size or is not finite.
    """
    folded, sites, bits = quantised.folded, quantised.sites, quantised.bits
    data = [(batch, run(folded, sites, batch, {})) for batch in calibration.read(batches, "batches")]

    def error(positions: dict[str, int]) -> float:
        apart = (run(folded, sites, batch, positions, bits=bits) - exact for batch, exact in data)
        return sum(float(difference.double().square().sum()) for difference in apart)

    best, least = quantised.fix_positions, error(quantised.fix_positions)
    for name in tqdm([site.name for site in sites], desc="positions", unit="tensor", disable=not progress):
        for step in (-1, 1):
            moved = best | {name: best[name] + step}
            if within_limits(folded, moved) == moved and (found := error(moved)) < least:
                best, least = moved, found
                break
    return quantised.moved(best)


def sensitivity(
    quantised: Quantised, score: Callable[[Callable[[torch.Tensor], torch.Tensor]], float], *, progress: bool = False
) -> dict[str, float]:
    """What each layer's integers cost: the score with that layer alone rounded, all others float.

    Args:
        quantised: Any quantised network.
        score: Takes a network (batch in, batch out) and gives a number.
        progress: Show a bar over the layers.

    Returns:
        Score by layer: a convolution with its parameters and the tensor that it ends in; ``input``; every other
        rounded tensor.
    """
    bits, folded, sites = quantised.bits, quantised.folded, quantised.sites
    result = {}
    for layer, names in tqdm(layers(quantised).items(), desc="layers", unit="layer", disable=not progress):
        only = {name: quantised.fix_positions[name] for name in names}
        result[layer] = score(lambda x, only=only: run(folded, sites, x, only, bits=bits))
    return result


def layers(quantised: Quantised) -> dict[str, list[str]]:
    """The rounded tensors, layer by layer: a convolution's name, or the tensor's own, to tensor names."""
    names = {site.node: site.name for site in quantised.sites}
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    for node in quantised.folded.graph.nodes:
        if node.target in g.CONVOLUTIONS:
            layer = g.tensor_name(node)
            layer = f"{layer}#{node.name}" if layer in found else layer
            group = node.args[1], g.bias_of(node), g.group_end(node)
            found[layer] = [names[part] for part in group if part in names]
            taken |= set(found[layer])
        elif node.op != "get_attr" and node in names and names[node] not in taken:
            found[names[node]] = [names[node]]
    return found


def _checked(bits: int) -> int:
    if bits not in BITS:
        raise I2IError("bits", expected=f"{BITS[0]} to {BITS[-1]}", got=repr(bits))
    return bits


def _mode(counts: Counter[int]) -> int:
    most = max(counts.values())
    return min(position for position, count in counts.items() if count == most)


def within_limits(graph: fx.GraphModule, positions: dict[str, int]) -> dict[str, int]:
    """The positions after the export-time adjustment of every convolution's shifts."""
    positions = dict(positions)
    names = {site.node: site.name for site in g.sites(graph)}
    for node in graph.graph.nodes:
        if node.target not in g.CONVOLUTIONS:
            continue
        weight, bias = names[node.args[1]], names.get(g.bias_of(node))
        before, after = names[node.args[0]], names[g.rounded_at(node, names)]
        fp_w, fp_b, fp_out = limit_shifts(positions[before], positions[weight], positions.get(bias), positions[after])
        positions |= {weight: fp_w, after: fp_out} | ({bias: fp_b} if bias else {})
    return positions
