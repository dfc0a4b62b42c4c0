"""Exact integers against PyTorch eager float32: the full-size pix2pix generator, one 256×256 patch, in the same run.

    python benchmarks/exact_integers.py [--json] [--n 10] [--batch 1] [--width 64]

The integers are the reference that engines are held against; they may take three times as long as eager. The weights
are random: speed does not depend on them. Before anything is timed the integers must give what the fake-quantised
network gives, in every value.
"""

from __future__ import annotations

import torch
from _common import arguments, quantised_generator, tell

from i2ilib import start
from i2ilib.deploy import bench, verify
from i2ilib.deploy.exact import ExactRunner
from i2ilib.deploy.pytorch import PytorchRunner
from i2ilib.models.analysis import count_parameters

LIMIT = 3  # times the time of eager


def main() -> None:
    """Verify, measure, print."""
    numbers = {"n": (10, "rounds"), "batch": (1, "patches a batch"), "width": (64, "filters of the first convolution")}
    options = arguments(__doc__, **numbers).parse_args()
    run = start(0)

    batch = torch.rand(options.batch, 3, 256, 256) * 2 - 1
    model, quantised = quantised_generator(options.width, batch)
    with ExactRunner(quantised) as exact, PytorchRunner(model) as eager:
        error = verify(exact, quantised.fake(batch), batch)
        if error:
            raise SystemExit(f"exact integers and fake quantisation differ by up to {error:g}: not the same network")
        times = bench({"exact integers": exact, "eager": eager}, batch, n=options.n)

    ours, peer = times["exact integers"], times["eager"]
    result = {
        "name": "exact_integers",
        "ours": ours["patches_per_s"],
        "peer": peer["patches_per_s"],
        "ratio": ours["patches_per_s"] / peer["patches_per_s"],
        "unit": "patches/s",
        "n": options.n,
        "device": run.device_name,
        "threads": run.threads,
        "peer_name": "PyTorch eager float32",
        "batch": options.batch,
        "parameters": count_parameters(model),
        "time_of_eager": ours["ms_per_patch"] / peer["ms_per_patch"],
        "time_of_eager_limit": LIMIT,
        "max_difference": error,
        "versions": run.describe()["versions"],
        "origin": "measured",
    }
    lines = [
        f"pix2pix generator, {result['parameters'] / 1e6:.1f} M parameters, batch {options.batch}; "
        f"{run.device_name}, {run.threads} threads, median of {options.n}"
    ]
    for name, row in times.items():
        lines.append(f"  {name:15} {row['ms_per_patch']:7.1f} ms a patch  ({row['p5']:.1f} to {row['p95']:.1f})")
    lines += [
        f"  exact integers are {result['ratio']:.2f} times as fast as PyTorch eager float32",
        f"  exact / eager: {result['time_of_eager']:.2f} of its time; at most {LIMIT} is asked for",
        "  largest difference to the fake-quantised network: 0",
    ]
    tell(options, result, lines)


if __name__ == "__main__":
    main()
