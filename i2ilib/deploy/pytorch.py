"""PyTorch itself as a target: eager float32, the peer of every ratio, and bfloat16 where a matrix unit helps."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import nn

from ..errors import I2IError
from ..runtime import cpu_name, versions
from .runner import check_batch


class PytorchRunner:
    """Eager PyTorch.

    Args:
        model: Any module of one tensor in and one out; used as it is, in evaluation mode.
        precision: "float32", or "bf16" for autocast in channels_last.
        device: "cpu" or "cuda".
    """

    def __init__(self, model: nn.Module, *, precision: str = "float32", device: str = "cpu"):
        if precision not in ("float32", "bf16"):
            raise I2IError("precision", expected="'float32' or 'bf16'", got=repr(precision))
        self.precision, self.device = precision, torch.device(device)
        self.layout = torch.channels_last if precision == "bf16" else torch.contiguous_format
        self.model = model.eval().to(self.device, memory_format=self.layout)
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="pytorch")  # PyTorch threads within an operator

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        self.run(torch.zeros(shape))

    @torch.inference_mode()
    def run(self, batch: torch.Tensor) -> torch.Tensor:
        check_batch(batch)
        batch = batch.to(self.device, memory_format=self.layout)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model(batch).float().contiguous().cpu()

    def submit(self, batch: torch.Tensor) -> Future[torch.Tensor]:
        return self.worker.submit(self.run, batch)

    def describe(self) -> dict[str, object]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name()
        return {
            "target": "PyTorch eager",
            "device": name,
            "precision": self.precision,
            "versions": versions("torch"),
            "origin": "measured",
        }

    def __enter__(self) -> PytorchRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.worker.shutdown(cancel_futures=exception[0] is not None)
