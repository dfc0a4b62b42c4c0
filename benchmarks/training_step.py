"""A training step of the full-size pix2pix GAN against PyTorch eager float32, in the same run.

    python benchmarks/training_step.py [--json] [--n 8] [--batch 1] [--width 64] [--ladder] [--record]

A step trains the discriminator, then the generator, on 256×256 patches. Ours is ``i2ilib.train.MattingTask`` as it
comes; the peer is the step below, as one writes it from the published description. Both start from the same weights,
and their first losses are held against each other before anything is timed. Candidates take turns, step by step.
The patches are random: speed does not depend on them. ``--ladder`` also times what lies between the two, one
ingredient at a time, and ``torch.compile`` on top; bf16 only where the device has units for it, which is where ours
trains in it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import torch
from _common import arguments
from torch import nn
from torch.nn import functional as F

from i2ilib import start
from i2ilib.models import Discriminator, Generator
from i2ilib.models.analysis import count_parameters
from i2ilib.runtime import record
from i2ilib.train import MattingConfig, MattingTask
from i2ilib.train.matting import has_bf16

OURS, PEER = "i2ilib", "PyTorch eager float32"
WARM_UP = 3  # steps
VERIFIED = 2  # steps without dropout: the second one's L1 also tells whether the generator was updated alike
# of every loss, relative: bf16 rounds a value by up to 2**-8, and a loss is a mean of hundreds; in float32 it is Adam
# that parts the second losses, which moves a weight by the whole rate where rounding turns a gradient near zero
TOLERANCE = {"bf16": 0.002, "float32": 5e-4}
BF16 = "+ bf16, channels last"  # the rung of the ladder

Step = Callable[[torch.Tensor, torch.Tensor], dict[str, float]]  # source and alpha in [0, 1] -> losses


class Plain:
    """The pix2pix step as one writes it in PyTorch: eager, float32, default layout, Adam as it comes.

    Args:
        width: Filters of both networks' first convolution.
        device: "cpu" or "cuda".
        fused: Adam updates all weights in one kernel.
        bf16: Convolutions in bf16, weights and maps channels last.
    """

    def __init__(self, width: int, device: str = "cpu", *, fused: bool | None = None, bf16: bool = False):
        self.layout = torch.channels_last if bf16 else torch.contiguous_format
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=bf16)
        self.generator = Generator(out_channels=1, width=width, dropout=0.5)
        self.discriminator = Discriminator(in_channels=4, width=width)
        for network in (self.generator, self.discriminator):
            network.to(device, memory_format=self.layout)
        self.adam_g = torch.optim.Adam(self.generator.parameters(), 2e-4, (0.5, 0.999), fused=fused)
        self.adam_d = torch.optim.Adam(self.discriminator.parameters(), 2e-4, (0.5, 0.999), fused=fused)

    def step(self, source: torch.Tensor, alpha: torch.Tensor) -> dict[str, float]:
        """One step of the discriminator, then one of the generator."""
        source, alpha = (2 * x.to(memory_format=self.layout) - 1 for x in (source, alpha))
        with self.autocast:
            made = self.generator(source).float()

        self.adam_d.zero_grad()
        fake, real = self.judge(source, made.detach(), 0.0), self.judge(source, alpha, 1.0)
        loss_d = (fake + real) * 0.5
        loss_d.backward()
        self.adam_d.step()

        self.discriminator.requires_grad_(False)
        self.adam_g.zero_grad()
        adversarial, l1 = self.judge(source, made, 1.0), F.l1_loss(made, alpha)
        (adversarial + 100 * l1).backward()
        self.adam_g.step()
        self.discriminator.requires_grad_(True)
        return {"discriminator": loss_d.item(), "l1": l1.item(), "adversarial": adversarial.item()}

    def judge(self, source: torch.Tensor, matte: torch.Tensor, target: float) -> torch.Tensor:
        """The discriminator's loss when it is to answer ``target``."""
        with self.autocast:
            logits = self.discriminator(torch.cat([source, matte], 1)).float()
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def our_task(width: int, batch: int, device: str) -> tuple[MattingTask, Step]:
    """The library's task in its default configuration, and its step."""
    config = MattingConfig(width=width, discriminator_width=width, batch=batch)
    task = MattingTask(config, SimpleNamespace(steps_per_epoch=1_000_000), device=device)
    return task, lambda source, alpha: task.step(0, (source, alpha))


@contextlib.contextmanager
def without_dropout(*networks: nn.Module) -> Iterator[None]:
    """Dropout draws other masks for another layout; without it two ways can be compared loss by loss."""
    layers = [(layer, layer.p) for network in networks for layer in network.modules() if isinstance(layer, nn.Dropout)]
    for layer, _ in layers:
        layer.p = 0.0
    try:
        yield
    finally:
        for layer, p in layers:
            layer.p = p


def verify(task: MattingTask, ours: Step, plain: Plain, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    """The largest relative difference between the losses of the first steps.

    Raises:
        SystemExit: If it is beyond the tolerance: what computes something else needs no stopwatch.
    """
    for name, module in task.modules.items():
        getattr(plain, name).load_state_dict(module.state_dict())
    worst, tolerance = 0.0, TOLERANCE[task.options.precision]
    with without_dropout(task.modules["generator"], plain.generator):
        for step in range(VERIFIED):
            a, b = ours(*batch), plain.step(*batch)
            for name in b:
                worst = max(worst, error := abs(a[name] - b[name]) / b[name])
                if not error <= tolerance:
                    raise SystemExit(f"step {step}, {name}: ours {a[name]:.5f}, {PEER} {b[name]:.5f}: not the same")
    return worst


def ladder(ends: dict[str, Step], width: int, batch: int, device: str) -> dict[str, Step]:
    """The peer, then one ingredient after the other up to ours, and what could lie beyond."""
    compiled, step = our_task(width, batch, device)
    for module in compiled.modules.values():
        module.compile()
    rung = {BF16: Plain(width, device, fused=True, bf16=True).step} if has_bf16(device) else {}
    return {
        PEER: ends[PEER],
        "+ fused Adam": Plain(width, device, fused=True).step,
        **rung,
        OURS: ends[OURS],  # + deep layers as matrix products, on a CPU
        "+ torch.compile": step,
    }


def measure(steps: dict[str, Step], batch: tuple[torch.Tensor, torch.Tensor], *, n: int) -> dict[str, list[float]]:
    """Milliseconds of every step by name, the warm-up's first; the candidates take turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(WARM_UP + n):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            steps[name](*batch)  # ends with the losses as numbers, so a GPU has finished too
            times[name].append((time.perf_counter() - began) * 1e3)
    return times


def main() -> None:
    """Verify, measure, print."""
    parser = arguments(
        __doc__,
        n=(8, "timed steps of each"),
        batch=(1, "patches a step, 1 as published"),
        width=(64, "filters of the first convolutions"),
    )
    parser.add_argument("--ladder", action="store_true", help="one ingredient at a time, and torch.compile: minutes")
    parser.add_argument("--record", action="store_true", help="keep the result in data/results")
    options = parser.parse_args()
    run = start(0)

    source = torch.rand(options.batch, 3, 256, 256, device=run.device)
    alpha = (torch.rand(options.batch, 1, 256, 256, device=run.device) > 0.5).float()
    task, ours = our_task(options.width, options.batch, run.device)
    plain = Plain(options.width, run.device)
    error = verify(task, ours, plain, (source, alpha))

    steps, missing = {PEER: plain.step, OURS: ours}, {}
    if options.ladder:
        steps = ladder(steps, options.width, options.batch, run.device)
        missing = {} if BF16 in steps else {BF16: "this processor has no bf16 unit"}
    times = measure(steps, (source, alpha), n=options.n)
    warm_up = {name: sum(values[:WARM_UP]) / 1e3 for name, values in times.items()}
    milliseconds = {
        name: dict(zip(("p5", "median", "p95"), np.percentile(values[WARM_UP:], (5, 50, 95)).tolist(), strict=True))
        for name, values in times.items()
    }
    rate = {name: 1e3 / row["median"] for name, row in milliseconds.items()}
    result = {
        "name": "training_step",
        "ours": rate[OURS],
        "peer": rate[PEER],
        "ratio": rate[OURS] / rate[PEER],
        "unit": "steps/s",
        "n": options.n,
        "device": run.device_name,
        "threads": run.threads,
        "peer_name": PEER,
        "batch": options.batch,
        "width": options.width,
        "precision": task.options.precision,
        "parameters": sum(map(count_parameters, task.modules.values())),
        "ms": milliseconds,
        "not_measured": missing,
        "warm_up_s": warm_up,
        "max_relative_difference": error,
        "tolerance": TOLERANCE[task.options.precision],
        "versions": run.describe()["versions"],
        "origin": "measured",
    }
    if options.record:
        record(result["name"], run, result)
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"pix2pix training step, both networks {result['parameters'] / 1e6:.1f} M parameters, batch {options.batch}, "
        f"{OURS} in {result['precision']}; {run.device_name}, {run.threads} threads, median of {options.n}"
    )
    for name, row in milliseconds.items():
        print(
            f"  {name:22} {row['median']:8.1f} ms ({row['p5']:.1f} to {row['p95']:.1f})  {rate[name]:6.2f} steps/s"
            f"  {rate[name] / rate[PEER]:5.2f} x  first {WARM_UP} steps {warm_up[name]:.1f} s"
        )
    for name, reason in missing.items():
        print(f"  {name:22} not measured: {reason}")
    allowed = f"{result['tolerance']} is let pass ({result['precision']})"
    print(f"  losses of the first {VERIFIED} steps agree to {error:.1e}; up to {allowed}")


if __name__ == "__main__":
    main()
