"""What the benchmarks share: options, timing in turns, the network that two of them time. No benchmark by itself."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from i2ilib.models import Generator
from i2ilib.quant import Quantised, quantise


def arguments(doc: str, **numbers: tuple[int, str]) -> argparse.ArgumentParser:
    """The options of a benchmark: ``--json``, and whole numbers by name, each with its default and its meaning."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    for name, (default, meaning) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default: {default})")
    return parser


def tell(options: argparse.Namespace, result: dict, lines: Sequence[str]) -> None:
    """Print the result as one JSON object, or the lines for people."""
    print(json.dumps(result) if options.json else "\n".join(lines))


def medians(tasks: dict[str, Callable[[], object]], n: int) -> dict[str, float]:
    """Median seconds of each, in turns, after a round that warms up."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(n + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            times[name] += [time.perf_counter() - start] * (turn > 0)
    return {name: statistics.median(values) for name, values in times.items()}


def quantised_generator(width: int, batch: torch.Tensor) -> tuple[nn.Module, Quantised]:
    """The pix2pix generator with random weights, which speed does not depend on: float and quantised.

    Args:
        width: Filters of the first convolution.
        batch: (N, 3, 256, 256) float32 in [-1, 1]; two of its patches at most are calibrated on.
    """
    model, few = Generator(width=width), batch[:2]
    with torch.no_grad():
        for _ in range(2):  # BatchNorm statistics that fit the weights
            model.train()(few)
    return model.eval(), quantise(model, [few])
