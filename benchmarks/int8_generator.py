"""INT8 against PyTorch eager float32: the full-size pix2pix generator, one 256×256 patch, in the same run.

    python benchmarks/int8_generator.py [--json] [--n 10] [--batch 8] [--width 64]

The weights are random: speed does not depend on them. The INT8 output is held against the fake-quantised network
before anything is timed.
"""

from __future__ import annotations

import json

import torch
from _common import arguments, quantised_generator

from i2ilib import start
from i2ilib.deploy import bench, verify
from i2ilib.deploy.openvino import from_pytorch
from i2ilib.deploy.pytorch import PytorchRunner
from i2ilib.models.analysis import count_parameters


def main() -> None:
    numbers = {"n": (10, "rounds"), "batch": (8, "patches a batch"), "width": (64, "filters of the first convolution")}
    options = arguments(__doc__, **numbers).parse_args()
    run = start(0)

    batch = torch.rand(options.batch, 3, 256, 256) * 2 - 1
    model, quantised = quantised_generator(options.width, batch)
    step = 2.0 ** -quantised.fix_positions["head.conv"]
    with from_pytorch(quantised, batch) as int8, from_pytorch(model, batch) as floats, PytorchRunner(model) as eager:
        int8.prepare(tuple(batch.shape))
        error = verify(int8, quantised.fake(batch), batch, lsb=step)
        kinds = sorted(set(int8.precisions().values()))
        times = bench({"int8": int8, "openvino float32": floats, "eager": eager}, batch, n=options.n)

    ours, peer = times["int8"], times["eager"]
    result = {
        "name": "int8_generator",
        "ours": ours["patches_per_s"],
        "peer": peer["patches_per_s"],
        "ratio": ours["patches_per_s"] / peer["patches_per_s"],
        "unit": "patches/s",
        "n": options.n,
        "device": run.device_name,
        "peer_name": "PyTorch eager float32",
        "openvino_float32": times["openvino float32"]["patches_per_s"],
        "batch": options.batch,
        "parameters": count_parameters(model),
        "convolutions_run_in": kinds,
        "max_error_lsb": error,
        "versions": run.describe()["versions"],
        "origin": "measured",
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"pix2pix generator, {result['parameters'] / 1e6:.1f} M parameters, batch {options.batch}, {run.device_name}")
    for name, row in times.items():
        print(f"  {name:17} {row['patches_per_s']:7.1f} patches/s  ({row['p5']:.1f} to {row['p95']:.1f} ms a patch)")
    print(f"  INT8 is {result['ratio']:.1f} times PyTorch eager float32")
    print(f"  largest difference to the fake-quantised network: {error:.0f} steps of the output grid")


if __name__ == "__main__":
    main()
