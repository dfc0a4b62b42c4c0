"""ONNX files, from float graphs and from quantised ones."""

from __future__ import annotations

import os
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
        program = torch.onnx.export(
            exported, (), dynamo=True, opset_version=OPSET, verbose=False, input_names=["x"], output_names=["y"]
        )
    with atomic_path(path) as temporary:
        program.save(str(temporary), external_data=False)
        onnx.checker.check_model(str(temporary), full_check=True)
    return path
