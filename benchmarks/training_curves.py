"""Loss curves of the library's training step and of PyTorch eager float32, beside the noise between runs.

    python benchmarks/training_curves.py [--json] [--steps 150] [--width 16] [--seeds 3] [--figure curves.png]

Both ways train on the sample clip from the same weights, on the same patches in the same order; from run to run only
the masks of dropout differ, which is the noise that a difference between the ways must be seen against. Compared is
the mean L1 of the last quarter. The ways are those that ``training_step.py`` times: ours in bf16 where the device has
units for it, else in float32; only from width 32 on are there layers heavy enough for matrix products.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path

import numpy as np
import torch
from _common import arguments
from matplotlib import pyplot as plt
from scipy import stats
from tqdm.auto import tqdm
from training_step import OURS, PEER, Plain

from i2ilib import start
from i2ilib.datasets import videomatte
from i2ilib.plots import PALETTE, save
from i2ilib.runtime import DATA, record
from i2ilib.train import MattingConfig, MattingData, MattingTask
from i2ilib.train.batches import Batches
from i2ilib.train.gan import settle_precision


def train_ours(config: MattingConfig, batches: Batches, weights: dict[str, dict], *, steps: int, device: str):
    """L1 of every step, one by one, by the library."""
    task = MattingTask(config, batches, device=device)
    for name, module in task.modules.items():
        module.load_state_dict(weights[name])
    for step in range(steps):
        yield task.step(step, batches(step))["l1"]


def train_plain(config: MattingConfig, batches: Batches, weights: dict[str, dict], *, steps: int, device: str):
    """L1 of every step, one by one, by the plain step."""
    plain = Plain(config.width, device)
    for name, state in weights.items():
        getattr(plain, name).load_state_dict(state)
    torch.manual_seed(config.seed)  # for dropout
    for step in range(steps):
        yield plain.step(*(part.to(device) for part in batches(step)))["l1"]


WAYS = {OURS: train_ours, PEER: train_plain}


def draw(path: Path, curves: dict[str, np.ndarray]) -> None:
    """Every run as a thin line, smoothed; the mean of a way's runs as a thick one."""
    figure, ax = plt.subplots(figsize=(6, 3))
    for (way, runs), colour, dash in zip(curves.items(), PALETTE[:2], ("-", "--"), strict=True):
        window = max(1, runs.shape[1] // 20)
        smooth = np.stack([np.convolve(run, np.ones(window) / window, "valid") for run in runs])
        at = np.arange(smooth.shape[1]) + window
        ax.plot(at, smooth.T, color=colour, lw=0.6, alpha=0.5)
        ax.plot(at, smooth.mean(0), color=colour, ls=dash, label=f"{way}, {len(runs)} runs")
    ax.set(
        title="Same weights, same patches: only the masks of dropout differ",
        xlabel="step",
        ylabel=f"L1 in [−1, 1], mean of {window} steps, log",
        yscale="log",
    )
    ax.legend()
    save(figure, path)
    plt.close(figure)


def main() -> None:
    """Train, compare, print."""
    parser = arguments(
        __doc__,
        steps=(150, "steps of each run"),
        width=(16, "filters of the first convolutions"),
        seeds=(3, "runs of each way, at least 2"),
    )
    parser.add_argument("--figure", type=Path, help="draw the curves into this file")
    parser.add_argument("--record", action="store_true", help="keep the result in data/results")
    options = parser.parse_args()
    if options.seeds < 2 or options.steps < 4:
        parser.error("noise needs at least 2 seeds, and a quarter at least 4 steps")
    run = start(0)

    # the peer's learning rate stays as it is, so ours must not decay either
    config = MattingConfig(width=options.width, discriminator_width=options.width, batch=1, decay_from=1.0)
    config = settle_precision(config, run.device)
    clip = videomatte.clips(DATA / "sample")[0]
    data = MattingData.of_clips(clip, config, progress=False)
    first = Plain(config.width)
    weights = {name: getattr(first, name).state_dict() for name in ("generator", "discriminator")}

    runs: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    with tqdm(total=len(WAYS) * options.seeds * options.steps, unit="step", leave=False) as bar:
        for seed in range(options.seeds):
            for way, train in WAYS.items():
                seeded = dataclasses.replace(config, seed=seed)
                batches = Batches(data.training, batch=1, seed=0)  # the same for every run
                l1 = []
                for value in train(seeded, batches, weights, steps=options.steps, device=run.device):
                    l1.append(value)
                    bar.update()
                runs[way].append(l1)
    curves = {way: np.array(values) for way, values in runs.items()}
    last = {way: values[:, -(options.steps // 4) :].mean(1).tolist() for way, values in curves.items()}
    mean = {way: statistics.mean(values) for way, values in last.items()}
    std = {way: statistics.stdev(values) for way, values in last.items()}
    # Welch's interval: how large a difference of the means these few runs leave open
    interval = stats.ttest_ind(last[OURS], last[PEER], equal_var=False).confidence_interval(0.95)
    low, high = map(float, interval)
    result = {
        "name": "training_curves",
        "ours": mean[OURS],
        "peer": mean[PEER],
        "ratio": mean[OURS] / mean[PEER],
        "unit": "mean L1 of the last quarter, mattes in [-1, 1] (lower is better; ratio = ours / peer)",
        "n": options.seeds,
        "device": run.device_name,
        "peer_name": PEER,
        "steps": options.steps,
        "width": options.width,
        "batch": 1,
        "precision": config.precision,
        "l1_float32": {"mean": mean[PEER], "std": std[PEER], "runs": last[PEER]},
        "l1_ours": {"mean": mean[OURS], "std": std[OURS], "runs": last[OURS]},
        "difference": mean[OURS] - mean[PEER],
        "interval_95": [low, high],
        "within_noise": low <= 0 <= high,
        "versions": run.describe()["versions"],
        "origin": "measured",
    }
    if options.figure:
        draw(options.figure, curves)
    if options.record:
        record(result["name"], run, result)
    if options.json:
        print(json.dumps(result))
        return
    sizes = f"{options.steps} steps, width {options.width}, {options.seeds} runs each, {OURS} in {config.precision}"
    print(f"mean L1 of the last quarter of {sizes}")
    for way in WAYS:
        print(f"  {way:22} {mean[way]:.4f} ± {std[way]:.4f}")
    verdict = "within" if result["within_noise"] else "beyond"
    print(f"  difference {result['difference']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}: {verdict} the noise")


if __name__ == "__main__":
    main()
