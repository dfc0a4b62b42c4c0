"""What engines need of CUDA, by way of PyTorch, in one place."""

from __future__ import annotations

import contextlib

import torch

from ..runtime import Availability, available


class Gpu:
    """What an engine needs of CUDA, by way of PyTorch; always the first visible GPU."""

    def status(self) -> Availability:
        """Whether PyTorch reaches a GPU, and why not."""
        if torch.version.cuda is None:
            return Availability(False, f"PyTorch {torch.__version__} is a build without CUDA; install a CUDA build")
        return available("cuda")

    def facts(self) -> dict[str, str]:
        """The GPU's name and compute capability: what an engine is bound to, beside TensorRT's version."""
        found = torch.cuda.get_device_properties(0)
        return {"gpu": found.name, "compute_capability": f"{found.major}.{found.minor}"}

    def clock_mhz(self) -> int | None:
        """The SM clock now; None where the driver does not tell."""
        try:
            return torch.cuda.clock_rate(0)
        except (RuntimeError, ImportError, AttributeError):
            return None

    def stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(0)

    def on(self, stream: torch.cuda.Stream) -> contextlib.AbstractContextManager:
        """Within the block, copies and allocations belong to ``stream``."""
        return torch.cuda.stream(stream)

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)

    def host(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Zeros in page-locked memory, which the GPU copies without the CPU."""
        return torch.zeros(shape).pin_memory()

    def device(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, device="cuda:0")
