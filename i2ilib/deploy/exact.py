"""The DPU's integers as a target of their own: what a card must give, computed on any CPU."""

from __future__ import annotations

import torch

from ..quant import Quantised
from ..quant.integer import int8_pays
from ..runtime import cpu_name, versions
from .runner import Serial


class ExactRunner(Serial):
    """:meth:`Quantised.integer` behind the interface of a runner.

    Args:
        quantised: The network.
    """

    def __init__(self, quantised: Quantised):
        super().__init__()
        self.quantised = quantised

    def _run(self, batch: torch.Tensor) -> torch.Tensor:
        return self.quantised.integer(batch)

    def describe(self) -> dict[str, object]:
        return {
            "target": "exact integers",
            "device": cpu_name(),
            "precision": "int8" if int8_pays() else "int8-float",  # integers as float32 values
            "versions": versions("torch"),
            "origin": "measured",
        }
