"""ONNX files, from float graphs and from quantised ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..runtime import atomic_path, quiet

OPSET = 18


def to_onnx(model: nn.Module, example: torch.Tensor, path: str | os.PathLike) -> Path:
    """Write ``model`` as an ONNX file with a free batch size, input ``x`` and output ``y``.

    Args:
        model: A module in evaluation mode, or a graph with quantise/dequantise operators.
        example: (N, C, H, W) float32 with N of 2 or more; height and width are fixed by it.
        path: Where; written whole or not at all.

    Returns:
        ``path``.
    """
    import onnx

    path = Path(path)
    batch = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    with quiet("torch.onnx", "onnxscript", "torch.export"), torch.no_grad():
        exported = torch.export.export(model, (example,), dynamic_shapes=batch)
        exported.run_decompositions = partial(_decomposed, exported, exported.run_decompositions)
        program = torch.onnx.export(
            exported, (), dynamo=True, opset_version=OPSET, verbose=False, input_names=["x"], output_names=["y"]
        )
    with atomic_path(path) as temporary:
        program.save(str(temporary), external_data=False)
        onnx.checker.check_model(str(temporary), full_check=True)
    return path


def _decomposed(
    exported: torch.export.ExportedProgram,
    decompose: Callable[[Mapping], torch.export.ExportedProgram],
    table: Mapping[object, Callable],
) -> torch.export.ExportedProgram:
    """``exported`` with operators that ONNX knows; itself where it has no others and none that writes in place.

    PyTorch's exporter asks for this and would trace a network again that needs nothing: half of the time of an export.

    Args:
        exported: The network, of any operators.
        decompose: Its ``run_decompositions``.
        table: How operators that ONNX does not know are computed by others.
    """
    targets = {node.target for node in exported.graph.nodes if node.op == "call_function"}
    known = all(isinstance(target, torch._ops.OpOverload) and not target._schema.is_mutable for target in targets)
    return exported if known and targets.isdisjoint(table) else decompose(table)
