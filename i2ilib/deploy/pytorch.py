"""PyTorch itself as a target: eager float32, the peer of every ratio; bfloat16, compiled, and CUDA graphs beside it."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import I2IError
from ..quant.tracing import evaluation_copy
from ..runtime import cpu_name, quiet, versions
from .runner import Serial

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}


class PytorchRunner(Serial):
    """PyTorch: eager, compiled, or replayed as a CUDA graph.

    Args:
        model: Any module of one tensor in and one out; it is copied, not changed.
        precision: "float32"; "bf16", or "float16" on a GPU, for autocast in channels_last.
        device: "cpu" or "cuda".
        compiled: Let ``torch.compile`` fuse the network, once for every shape: with weights frozen on the CPU, as one
            CUDA graph on a GPU.

    Raises:
        I2IError: If the precision is none of these, or float16 is asked of a CPU.
    """

    def __init__(self, model: nn.Module, *, precision: str = "float32", device: str = "cpu", compiled: bool = False):
        known = [name for name in PRECISIONS if device != "cpu" or name != "float16"]
        if precision not in known:
            raise I2IError("precision", expected=" or ".join(map(repr, known)), got=repr(precision))
        super().__init__()
        self.precision, self.device, self.compiled = precision, torch.device(device), compiled
        self.layout = torch.contiguous_format if precision == "float32" else torch.channels_last
        self.model = evaluation_copy(model).to(self.device, memory_format=self.layout)
        self.call = self._compile() if compiled else self.model

    def _compile(self) -> nn.Module:
        if self.device.type == "cuda":
            return torch.compile(self.model, mode="reduce-overhead")  # records and replays CUDA graphs
        return torch.compile(self.model, options={"freezing": True})

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        with quiet("torch._inductor", "torch._dynamo"):
            for _ in range(3 if self.compiled else 1):  # a CUDA graph is recorded at the second call
                self.run(torch.zeros(shape))

    @torch.inference_mode()
    def _run(self, batch: torch.Tensor) -> torch.Tensor:
        batch = batch.to(self.device, memory_format=self.layout)
        kind, reduced = PRECISIONS[self.precision], self.precision != "float32"
        with torch.autocast(self.device.type, kind, enabled=reduced, cache_enabled=not self.compiled):
            return self.call(batch).float().contiguous().cpu()

    def describe(self) -> dict[str, object]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name()
        return {
            "target": "PyTorch compiled" if self.compiled else "PyTorch eager",
            "device": name,
            "precision": self.precision,
            "versions": versions("torch"),
            "origin": "measured",
        }
