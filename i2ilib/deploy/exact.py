"""The DPU's integers as a target of their own: what a card must give, computed on any CPU."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from ..quant import Quantised
from ..runtime import cpu_name, versions
from .runner import check_batch


class ExactRunner:
    """:meth:`Quantised.integer` behind the interface of a runner.

    Args:
        quantised: The network.
    """

    def __init__(self, quantised: Quantised):
        self.quantised = quantised
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="exact")  # PyTorch threads within an operator

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        self.run(torch.zeros(shape))

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        check_batch(batch)
        return self.quantised.integer(batch)

    def submit(self, batch: torch.Tensor) -> Future[torch.Tensor]:
        return self.worker.submit(self.run, batch)

    def describe(self) -> dict[str, object]:
        return {
            "target": "exact integers",
            "device": cpu_name(),
            "precision": "int8",
            "versions": versions("torch"),
            "origin": "measured",
        }

    def __enter__(self) -> ExactRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.worker.shutdown(cancel_futures=exception[0] is not None)
