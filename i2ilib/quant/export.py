"""ONNX files, from float graphs and from quantised ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..runtime import atomic_path, quiet
from .tracing import A, argument

OPSET = 18

# what PyTorch's exporter writes as it stands: the operators of quantised networks, in every form, with Q/DQ pairs
_AS_THEY_ARE = {
    A.add.Tensor, A.avg_pool2d.default, A.cat.default, A.ceil.default, A.clamp.default, A.constant_pad_nd.default,
    A.conv2d.default, A.convolution.default, A.floor.default, A.leaky_relu.default, A.matmul.default,
    A.max_pool2d.default, A.mul.Tensor, A.permute.default, A.pixel_shuffle.default, A.relu.default, A.relu6.default,
    A.reshape.default, A.sigmoid.default, A.slice.Tensor, A.tanh.default, A.upsample_bicubic2d.vec,
    A.upsample_bilinear2d.vec, A.upsample_nearest2d.vec,
}  # fmt: skip


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
        exported.run_decompositions = partial(_decomposed, exported, exported.run_decompositions)  # asked for by export
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
    """A network of operators that can be written: ``exported`` itself where it has no others.

    PyTorch's exporter would trace it again in any case, which takes half of an export's time.

    Args:
        exported: Transposed convolutions in it are replaced.
        decompose: Its ``run_decompositions``.
        table: By operator that ONNX does not know, how others compute it.
    """
    for node in exported.graph.nodes:
        if node.target is A.conv_transpose2d.input and node.meta["val"].dim() == 4:
            # as the general convolution, which can be written
            defaults = enumerate((None, [1, 1], [0, 0], [0, 0], 1, [1, 1]), 2)
            bias, stride, padding, more, groups, dilation = (argument(node, i, default) for i, default in defaults)
            node.args = (*node.args[:2], bias, stride, padding, dilation, True, more, groups)
            node.target = A.convolution.default
    targets = {node.target for node in exported.graph.nodes if node.op == "call_function"}
    plain = {target for target in targets if getattr(target, "namespace", "") != "quantized_decomposed"}
    return exported if plain <= _AS_THEY_ARE and plain.isdisjoint(table) else decompose(table)
