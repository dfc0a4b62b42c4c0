"""From the float network to the engine, step by step, each held against the one before, in LSB of the last tensor."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from ..errors import IntegrityError
from ..quant import Quantised
from ..quant.graph import capture, without_host
from ..runtime import available
from .onnxruntime import OnnxRuntimeRunner
from .openvino import OpenVinoRunner
from .runner import Runner

Network = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the staircase.

    Attributes:
        name: What computed.
        against: The step that it is compared with.
        max_lsb: Largest difference in steps (LSB) of the last int8 tensor; fractions where a float network takes part.
        differing: Values that differ by half a step or more, of ``total``.
        reason: Why the step was not run; empty where it was.
    """

    name: str
    against: str
    max_lsb: float = 0.0
    differing: int = 0
    total: int = 0
    reason: str = ""


def staircase(
    model: nn.Module,
    quantised: Quantised,
    batch: torch.Tensor,
    *,
    runners: dict[str, Runner] | None = None,
    chunk: int = 4,
    progress: bool = False,
) -> list[Step]:
    """Walk from float to the engines and count what each step changes.

    What is compared is the last tensor that the scheme rounds, before the host's operators (tanh, clamp): there one LSB
    has one size. The engines get the ONNX file with ties lifted, so that they go up as on the DPU, and as the
    standard has it, ties to even; and once with the integers carried as float32 values.

    Args:
        model: The float network.
        quantised: The same, quantised.
        batch: (N, C, H, W) float32, at least two.
        runners: Further engines for the part on the device, by name, held against the exact integers.
        chunk: Images computed at a time.
        progress: Show a bar over the steps.

    Returns:
        The steps, in order; those that cannot run here with the reason.
    """
    device = quantised.on_device()
    folded = device.folded
    with tempfile.TemporaryDirectory() as folder:
        up = device.to_onnx(Path(folder) / "up.onnx")
        fast = device.to_onnx(Path(folder) / "fast.onnx", form="cpu")
        even = device.to_onnx(Path(folder) / "even.onnx", ties="even")
        floats = device.to_onnx(Path(folder) / "floats.onnx", form="float")
        with (
            OpenVinoRunner(floats, precision="int8-float") as carried,
            OpenVinoRunner(fast, precision="int8") as lifted,
            OpenVinoRunner(up, precision="int8") as deployed,
            OpenVinoRunner(even, precision="int8") as plain,
        ):
            networks: list[tuple[str, str, Network]] = [
                ("float", "float", without_host(capture(model, batch[:2], fold=False))),
                ("folded", "float", folded),
                ("fake-quantised", "folded", device.fake),
                ("exact integers", "fake-quantised", device.integer),
                ("ONNX Runtime, as written", "exact integers", OnnxRuntimeRunner(up, optimise=False).run),
                ("ONNX Runtime, fused", "exact integers", OnnxRuntimeRunner(up).run),
                ("OpenVINO, integers as float32", "exact integers", carried.run),
                ("OpenVINO INT8", "exact integers", lifted.run),
                ("OpenVINO INT8, plain form", "exact integers", deployed.run),
                ("OpenVINO INT8, ties to even", "exact integers", plain.run),
                *((name, "exact integers", runner.run) for name, runner in (runners or {}).items()),
            ]
            outputs, steps = {}, []
            for name, against, network in tqdm(networks, desc="staircase", unit="step", disable=not progress):
                try:
                    with torch.inference_mode():
                        outputs[name] = torch.cat([network(part) for part in batch.split(chunk)])
                except IntegrityError as error:  # of a network that an engine would not run in integers
                    steps.append(Step(name, against, reason=str(error).partition(": ")[2]))  # without the path
                    continue
                apart = (outputs[name] - outputs[against]).abs() / quantised.step
                differing = int((apart >= 0.5).sum())
                steps.append(Step(name, against, float(apart.max()), differing, apart.numel()))
    ran = set(runners or ())
    absent = {"TensorRT INT8": available("tensorrt"), "Alveo U50": available("vart")}
    return steps + [
        Step(name, "exact integers", reason=there.reason)
        for name, there in absent.items()
        if not there and name not in ran
    ]
