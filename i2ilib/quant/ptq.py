"""Post-training quantisation in the DPU's scheme: calibrate, fake-quantise, export, keep."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import fx, nn
from tqdm.auto import tqdm

from ..errors import I2IError
from . import graph as g
from .fixed_point import fake_quantise, fix_position, limit_shifts

BITS = 8


class Quantised:
    """A network on the DPU's integer grids.

    Attributes:
        fix_positions: Fix position by tensor name: ``input``, ``encoder.0.conv.weight``, ``encoder.0.act``, ``cat``, …
        example_shape: (C, H, W) of the input that the graph was captured with.
    """

    def __init__(self, graph: fx.GraphModule, fix_positions: dict[str, int], example_shape: tuple[int, int, int]):
        self.sites = g.sites(graph)
        missing = [site.name for site in self.sites if site.name not in fix_positions]
        if missing or len(fix_positions) != len(self.sites):
            raise I2IError(
                "fix_positions",
                expected=f"one for each of the {len(self.sites)} tensors of this network",
                got=f"{len(fix_positions)}, without " + (", ".join(missing[:4]) or "error, but with strangers"),
            )
        self.fix_positions = dict(fix_positions)
        self.example_shape = tuple(example_shape)
        self.graph = _on_grid(graph, self.sites, self.fix_positions)

    @torch.no_grad()
    def fake(self, x: torch.Tensor) -> torch.Tensor:
        """The quantised network in float32, rounding feature maps as the DPU does (ties up).

        Args:
            x: (N, C, H, W) float32 in the range that the network was trained on.

        Returns:
            The network's output, (N, C', H', W') float32.
        """
        positions = self.fix_positions
        return _Rounding(self.graph, self.sites, lambda site, value: positions[site.name]).run(x)

    def to_onnx(self, path: str | os.PathLike) -> Path:
        """Write the network as ONNX (opset 18) with int8 Q/DQ pairs and a free batch size."""
        from .export import to_onnx
        from .scheme import to_qdq

        qdq = to_qdq(self.graph, self.sites, self.fix_positions)
        return to_onnx(qdq, torch.zeros(2, *self.example_shape), path)


def quantise(
    model: nn.Module, calibration_batches: Iterable[torch.Tensor], scheme: str = "dpu", *, progress: bool = False
) -> Quantised:
    """Quantise a trained network to INT8 after training.

    Parameters are searched once, on the folded values. Each calibration batch then flows through the network; at
    every site the position is searched on the unrounded tensor, joins the site's history, and the tensor is rounded
    at the most frequent position so far (the smallest on a tie) before it flows on. The last step keeps all shifts
    within the DPU's limits.

    Args:
        model: A network of the supported operators; it is copied, not changed.
        calibration_batches: Batches (N, C, H, W) float32, all of one height and width, as the network sees them.
        scheme: "dpu": signed int8, symmetric, per tensor, power-of-two scales.
        progress: Show a bar over the batches.

    Returns:
        The quantised network.

    Raises:
        I2IError: If there is no batch, the scheme is unknown, a batch is not finite, or an operator is not supported.
    """
    if scheme != "dpu":
        raise I2IError("scheme", expected="'dpu'", got=repr(scheme))
    batches = [batch.cpu() for batch in calibration_batches]
    if not batches:
        raise I2IError("calibration_batches", expected="at least one batch", got="none")
    graph = g.capture(model.cpu(), batches[0][:2])
    sites = g.sites(graph)
    positions = {s.name: fix_position(g.parameter(graph, s.node), "parameter") for s in sites if s.kind == "parameter"}
    rounded = _on_grid(graph, sites, positions)
    history: dict[str, Counter[int]] = {site.name: Counter() for site in sites if site.kind != "parameter"}

    def search(site: g.Site, value: torch.Tensor) -> int:
        history[site.name][fix_position(value, site.kind)] += 1
        return _mode(history[site.name])

    interpreter = _Rounding(rounded, sites, search)
    with torch.no_grad():
        for batch in tqdm(batches, desc="calibrate", unit="batch", disable=not progress):
            interpreter.run(batch)
    positions |= {name: _mode(counts) for name, counts in history.items()}
    return Quantised(graph, _within_limits(graph, positions), batches[0].shape[1:])


def with_positions(model: nn.Module, fix_positions: dict[str, int], example: torch.Tensor) -> Quantised:
    """The quantised network for fix positions that are known: kept with the weights, or set by hand."""
    return Quantised(g.capture(model, example), fix_positions, example.shape[1:])


def _mode(counts: Counter[int]) -> int:
    most = max(counts.values())
    return min(position for position, count in counts.items() if count == most)


def _on_grid(graph: fx.GraphModule, sites: list[g.Site], positions: dict[str, int]) -> fx.GraphModule:
    """A copy of ``graph`` whose parameters are rounded to their grids."""
    rounded = g.copy_graph(graph)
    nodes = {node.name: node for node in rounded.graph.nodes}
    for site in sites:
        if site.kind == "parameter":
            node = nodes[site.node.name]
            value = g.parameter(rounded, node).detach()
            g.set_parameter(rounded, node, fake_quantise(value, positions[site.name], kind="parameter", bits=BITS))
    return rounded


def _within_limits(graph: fx.GraphModule, positions: dict[str, int]) -> dict[str, int]:
    """The positions after the export-time adjustment of every convolution's shifts."""
    positions = dict(positions)
    for node in graph.graph.nodes:
        if node.target not in g.CONVOLUTIONS:
            continue
        before, after = node.args[0], g.group_end(node)  # a convolution's input is always rounded
        if g.tensor_name(after) not in positions:  # rounded at the concat that consumes it
            after = next(iter(after.users))
        weight, bias = g.tensor_name(node.args[1]), node.args[2] if len(node.args) > 2 else None
        bias = None if bias is None else g.tensor_name(bias)
        fp_w, fp_b, fp_out = limit_shifts(
            positions[g.tensor_name(before)], positions[weight], positions.get(bias), positions[g.tensor_name(after)]
        )
        positions |= {weight: fp_w, g.tensor_name(after): fp_out} | ({bias: fp_b} if bias else {})
    return positions


class _Rounding(fx.Interpreter):
    """Runs a graph and rounds the value of every activation site at the position that ``position`` names."""

    def __init__(self, graph: fx.GraphModule, sites: list[g.Site], position):
        super().__init__(graph)
        self.sites = {site.node.name: site for site in sites if site.kind != "parameter"}
        self.position = position

    def run_node(self, node: fx.Node):
        value = super().run_node(node)
        site = self.sites.get(node.name)
        if site is None:
            return value
        return fake_quantise(value, self.position(site, value), kind=site.kind, bits=BITS)
