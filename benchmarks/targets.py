"""Every target that is here, on the same patches: PyTorch, ONNX Runtime, OpenVINO, the exact integers, GPU and card.

    python benchmarks/targets.py [--json] [--n 5] [--batch 32] [--width 64] [--only openvino-int8 torch] [--record]

Two networks, the full-size pix2pix generator and SRUNet, a patch of 256×256 at a time (latency) and in batches
(throughput). The weights are random: speed does not depend on them. Before anything is timed its output is held against
PyTorch in float32, or against the exact integers. The ratio is the fastest backend that is exact on this machine, the
commands' default, to PyTorch eager float32 in the same run; OpenVINO float32 and OpenVINO with NNCF's ordinary INT8 are
the other peers. Energy is read from a meter or not told.
"""

from __future__ import annotations

import contextlib
import json

import torch
from _common import arguments, quantised_generator
from torch import nn
from tqdm.auto import tqdm

import i2ilib
from i2ilib import runtime
from i2ilib.deploy import (
    BACKENDS,
    INTEGER,
    Runner,
    backends,
    bench,
    cycles,
    energy,
    fastest_exact,
    make_runner,
    nncf,
    published,
    verify,
)
from i2ilib.errors import I2IError, IntegrityError
from i2ilib.models import Generator, SRUNet, reparametrise
from i2ilib.models.analysis import count_macs, count_parameters
from i2ilib.quant import Quantised, quantise

PEER, NNCF = "torch", "openvino-nncf"
LIMITS = {"float32": 1e-4, "bf16": 0.1, "float16": 0.02, "int8": 0.1}  # most apart from float, of the largest output
LSB = {
    "openvino-int8": 0.5,
    "openvino-int8-float": 0.5,
    "exact": 0.5,
    "u50": 0.5,
}  # no integer may differ; others fuse, and round ties to even
FUSED = 8.0


def networks(width: int, batch: torch.Tensor) -> dict[str, tuple[nn.Module, Quantised]]:
    """The two networks, float and quantised."""
    enlarger = reparametrise(SRUNet()).eval()
    return {"generator": quantised_generator(width, batch), "srunet": (enlarger, quantise(enlarger, [batch[:2]]))}


def check(name: str, runner: Runner, model: nn.Module, quantised: Quantised, batch: torch.Tensor) -> dict:
    """How far a runner is from its reference.

    Raises:
        I2IError: If that is too far.
    """
    integers = name in INTEGER
    with torch.inference_mode():
        reference = quantised.integer(batch) if integers else model(batch)
    unit = quantised.step if integers else float(reference.abs().max())
    apart = verify(runner, reference, batch, lsb=unit)
    most = LSB.get(name, FUSED) if integers else LIMITS[str(runner.describe()["precision"])]
    what = "LSB from the exact integers" if integers else "of the largest output, from PyTorch float32"
    if apart > most:
        raise I2IError(name, expected=f"at most {most:g} {what}", got=f"{apart:g}")
    return {"apart": apart, "apart_in": what}


def measured(
    title: str, model: nn.Module, quantised: Quantised, batch: torch.Tensor, names: list[str], *, n: int, quiet: bool
) -> tuple[list[dict], dict[str, str]]:
    """Rows of one network, a patch at a time and in the batch, with energy; and why other targets have none."""
    rows, refused = [], {}
    with contextlib.ExitStack() as stack:
        runners, apart, spent = {}, {}, {}
        for name in tqdm(names, desc=f"{title}: open and verify", unit="target", disable=quiet):
            if name == NNCF:
                made = nncf.from_pytorch(model, [batch[:8]])
            else:
                made = make_runner(name, model, batch, quantised=quantised)
            stack.enter_context(made)
            try:
                made.prepare(tuple(batch.shape))
            except IntegrityError as error:  # an engine that would not run it as its name says
                refused[f"{name}, {title}"] = str(error).partition(": ")[2]  # without the path
                continue
            runners[name] = made
            apart[name] = check(name, runners[name], model, quantised, batch[:4])
            told = runners[name].describe()
            spent[name] = energy.measure(lambda run=runners[name].run: run(batch), meter=energy.meter_for(told))
        for size in (len(batch), 1):
            for name, row in bench(runners, batch[:size], n=n, progress=not quiet).items():
                joules = spent[name].joules
                joules = {"joules": None if joules is None else joules / len(batch), "energy": str(spent[name])}
                rows.append({"name": name, "network": title, **row, **apart[name], **joules})
    return rows, refused


def main() -> None:
    """Measure, compare, print; keep on request."""
    numbers = {"n": (5, "rounds"), "batch": (32, "patches a batch"), "width": (64, "filters of the first convolution")}
    parser = arguments(__doc__, **numbers)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join([*BACKENDS, NNCF])} (default: all)")
    parser.add_argument(
        "--record", action="store_true", help="keep the table in data/results/deployment_<kind of CPU>.json"
    )
    options = parser.parse_args()
    run = i2ilib.start(0)
    ours, why = fastest_exact()
    there = {name: here for name, here in backends().items() if name != "u50"}  # random weights have no xmodel
    there[NNCF] = runtime.available("nncf")
    chosen = [name for name in (options.only or there) if there.get(name, True)]
    if strange := set(chosen) - set(there):
        parser.error(f"no such target: {', '.join(sorted(strange))}")
    batch = torch.rand(options.batch, 3, 256, 256) * 2 - 1
    rows, about, refused = [], {}, {}
    for title, (model, quantised) in networks(options.width, batch).items():
        about[title] = {"parameters": count_parameters(model), "gmac": count_macs(model, batch[:1]) / 1e9}
        few = batch if title == "generator" else batch[:4]  # its maps are large, its weights few: a batch gains nothing
        found, without = measured(title, model, quantised, few, chosen, n=options.n, quiet=options.json)
        rows += found
        refused |= without
    speed = {(row["network"], row["name"], row["batch"]): row["patches_per_s"] for row in rows}

    def ratios(network: str, size: int) -> dict[str, float]:
        base = speed.get((network, ours, size))
        return {k[1]: base / v for k, v in speed.items() if base and k[0] == network and k[2] == size and k[1] != ours}

    result = {
        "name": "targets",
        "ours": speed.get(("generator", ours, options.batch)),
        "ours_name": ours,
        "ours_because": why,
        "peer": speed.get(("generator", PEER, options.batch)),
        "ratio": ratios("generator", options.batch).get(PEER),
        "unit": "patches/s",
        "n": options.n,
        "device": run.device_name,
        "peer_name": "PyTorch eager float32",
        "batch": options.batch,
        "width": options.width,
        "ours_to_each": {f"{title}, batch {size}": ratios(title, size) for title, _, size in speed},
        "networks": about,
        "targets": rows,
        "not_measured": {name: here.reason for name, here in there.items() if not here} | refused,
        "origin": "measured",
    }
    if options.record:
        runtime.record(f"deployment_{runtime.this_machine().kind}", run, result)
    print(json.dumps(result) if options.json else text(result, run.threads))


def text(result: dict, threads: int) -> str:
    """The table for people, the paper's rows and the card's model beneath it."""
    lines = [
        f"256×256 patches; {result['device']}, {threads} threads, median of {result['n']} (5th to 95th percentile)",
        f"ours is {result['ours_name']}: {result['ours_because']}",
    ]
    for title, facts in result["networks"].items():
        lines.append(f"\n{title}: {facts['parameters'] / 1e6:.2f} M parameters, {facts['gmac']:.2f} GMAC a patch")
        base = result["ours_to_each"]
        for row in (row for row in result["targets"] if row["network"] == title):
            ratio = base[f"{title}, batch {row['batch']}"].get(row["name"])
            against = f"ours is {ratio:4.1f}×" if ratio else ""
            times = f"{row['ms_per_patch']:7.2f} ms ({row['p5']:.2f} to {row['p95']:.2f})"
            lines.append(
                f"  {row['name']:20} batch {row['batch']:3} {row['patches_per_s']:7.1f}/s  {times:34} {against}"
            )
    model = cycles.estimate(Generator(width=64), example=torch.empty(1, 3, 256, 256))
    lines.append(f"\nmodelled  Alveo U50, generator, 3 jobs in flight: {model.pipeline(3).fps:.0f}/s")
    for name, row in published.TABLE_2.iterrows():
        lines.append(f"paper     {name}, table 2: {row.fps:g}/s, {row.latency_ms:g} ms, {row.energy_j:g} J")
    reasons = sorted({row["energy"] for row in result["targets"] if row["joules"] is None})
    lines += ["", *reasons, *(f"not measured: {name}: {why}" for name, why in result["not_measured"].items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
