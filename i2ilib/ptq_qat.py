"""When does quantisation-aware training pay? Matting and super-resolution, each with the float control that is fair.

A quantised network that was trained further has had two things: its integers in the loop, and more training. So the
float network trains for the same steps at the same rate as well, and is quantised after that. What QAT is worth is the
distance to these two.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from . import colour, metrics, models, patches, runtime
from .datasets import synthetic, videomatte
from .errors import I2IError
from .quant import Quantised, quantise, tail_aware
from .quant.qat import Trainable, fine_tune
from .train.batches import Batches

Network = Callable[[torch.Tensor], torch.Tensor]
Source = Callable[[int], tuple[torch.Tensor, torch.Tensor]]

FLOAT = 32  # bits of the arms that are not quantised
# the finer the grid, the smaller the steps: of the rates in `rates`, the best on the validation frames at 8 and 4 bits
MATTING_LR = {8: 1e-5, 6: 3e-5, 5: 3e-5, 4: 1e-4}
ENLARGING_LR = {8: 1e-4, 6: 1e-4, 5: 3e-4, 4: 1e-3}
RECORDS = {"matting": "ptq_qat_matting", "super-resolution": "ptq_qat_super_resolution"}  # in data/results, by task


# --- a task ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A trained network with what is needed to train it further and to score it."""

    name: str
    model: nn.Module  # float32, in evaluation mode
    source: Callable[[int], Source]  # seed to (step to (input, target)), float32 NCHW in the network's ranges
    calibration: Callable[[int], list[torch.Tensor]]  # seed to batches of training inputs
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # output, target
    score: Callable[[Network], dict[str, float]]  # on the frames that nothing here was trained on or chosen by
    validate: Callable[[Network], dict[str, float]]  # on those by which rates are chosen
    lr: dict[int, float]  # of the weights by bits, chosen on the validation frames; "float continued" has that of 8
    threshold_lr: float
    metric: str  # the first one to look at
    about: dict  # JSON values: what the figures depend on


def matting(
    clips: Sequence[videomatte.Clip],
    model: nn.Module,
    *,
    name: str = "matting",
    mode: str = "composite",
    q_in: int = 1,
    batch: int = 2,
    calibration: int = 64,
    every: int = 1,
    lr: dict[int, float] | None = None,
    threshold_lr: float = 1e-2,
) -> Task:
    """Matting by a trained generator; frames are divided as :func:`i2ilib.datasets.videomatte.paper_split` does it.

    Args:
        clips: All of the same number of frames.
        model: Sees (N, 3, 256, 256) sRGB in [-q_in, q_in], answers alpha in [-1, 1].
        name: Of the task.
        mode: As in training: "composite" or "foreground".
        q_in: As in training.
        batch: Patches a training step.
        calibration: Patches for calibration, drawn from the training frames.
        every: Take every n-th frame of each part, for a faster look.
        lr: Learning rates of the weights by bits; those that :func:`rates` found when None.
        threshold_lr: Learning rate of the thresholds.

    Returns:
        The task. Loss: L1 to the true alpha, in [-1, 1]. Scores: ``iou`` (threshold one half), ``mse`` (8-bit scale),
        means over the frames, and ``dtssd``, the flicker from one frame to the next; ``iou/<clip>`` and so on where
        there are several clips.
    """
    parts = videomatte.paper_split(min(len(clip) for clip in clips))
    part = {key: frames[::every] for key, frames in parts._asdict().items()}
    training = videomatte.PatchDataset(clips, part["train"], mode=mode, flip=True)
    held = {
        key: videomatte.PatchDataset(clips, part[key], stride=patches.PATCH, mode=mode).frames
        for key in ("validation", "test")
    }

    def source(seed: int) -> Source:
        batches = Batches(training, batch=batch, seed=seed)

        def give(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            srgb, alpha = batches(step)
            return colour.to_fixed(srgb, q_in), colour.to_fixed(alpha, 1)

        return give

    def draw(seed: int) -> list[torch.Tensor]:
        chosen = np.random.default_rng([seed, 1]).choice(len(training), min(calibration, len(training)), replace=False)
        inputs = colour.to_fixed(torch.stack([training.cut(int(i), 0)[0] for i in chosen]), q_in)
        return list(inputs.split(8))

    def score(part: str, network: Network) -> dict[str, float]:
        found: dict[str, list[float]] = {"iou": [], "mse": [], "dtssd": []}
        share = len(held[part]) // len(clips)
        last = None
        for i, codes in enumerate(held[part]):
            frame = codes.float().div(255)
            made = network(patches.split(colour.to_fixed(frame[:3], q_in)))
            matte = patches.merge(colour.from_fixed(made, 1).clamp(0, 1), height=codes.shape[1], width=codes.shape[2])
            pair, clip = (matte, frame[None, 3:]), clips[i // share].name
            scores = {key: metrics.KEYS[key](*pair).item() for key in ("iou", "mse")}
            if i % share:  # the frame before is of the same clip
                both = [torch.cat(two) for two in zip(last, pair, strict=True)]
                scores["dtssd"] = metrics.KEYS["dtssd"](*both).item()
            for key, value in scores.items():
                found[key].append(value)
                if len(clips) > 1:
                    found.setdefault(f"{key}/{clip}", []).append(value)
            last = pair
        return {key: statistics.fmean(values) for key, values in found.items() if values}

    about = {"clips": [clip.name for clip in clips], "mode": mode, "batch": batch, "calibration": calibration}
    about |= {"frames": {key: len(frames) * len(clips) for key, frames in part.items()}, "weights": _digest(model)}
    return Task(
        name, model.eval(), source, draw, F.l1_loss, lambda net: score("test", net),
        lambda net: score("validation", net), lr or MATTING_LR, threshold_lr, "iou", about,
    )  # fmt: skip


TILE = 64  # side of the low-resolution patches, pixels


def super_resolution(
    clip: videomatte.Clip,
    folder: str | os.PathLike,
    *,
    steps: int = 2000,
    n_filters: int = 16,
    quality: int = 30,
    batch: int = 8,
    calibration: int = 64,
    every: int = 1,
    lr: dict[int, float] | None = None,
    threshold_lr: float = 1e-3,
    progress: bool = False,
) -> Task:
    """Twice the size by the core of a small SRUNet, trained here: low resolution is the frame, halved and JPEG-coded.

    The network gives the detail; the host adds the bicubic enlargement and clamps. Its blocks are folded to one
    convolution each (:func:`i2ilib.models.reparametrise`) before anything is quantised.

    Args:
        clip: Whose composites to learn from.
        folder: Keeps the float network, so that it is trained once.
        steps: Of the float training.
        n_filters: Width of the network.
        quality: Of the JPEG that carries the low resolution.
        batch: Patches a training step.
        calibration: As in :func:`matting`, and the arguments after it.
        every: Take every n-th frame of each part, for a faster look.
        lr: Learning rates of the weights by bits; those that :func:`rates` found when None.
        threshold_lr: Learning rate of the thresholds.
        progress: Show a bar over the float training.

    Returns:
        The task. Loss: L1 to the true detail, in [-1, 1]. Scores: ``psnr_db`` and ``ssim`` (scikit-image, RGB in
        [0, 1], 7 x 7 windows), means over the frames, which pass through in tiles of 64 x 64 pixels; in ``about``,
        ``bicubic`` has those of the host alone.
    """
    parts = videomatte.paper_split(len(clip))
    part = {key: frames[::every] for key, frames in parts._asdict().items()}
    pairs = {key: [_degrade(clip, index, quality) for index in frames] for key, frames in part.items()}
    host = models.SRUNet(n_filters=n_filters).host

    def crop(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = pairs["train"][rng.integers(len(pairs["train"]))]
        y, x = (int(rng.integers(size - TILE + 1)) for size in low.shape[1:])
        pair = low[:, y : y + TILE, x : x + TILE], high[:, 2 * y : 2 * (y + TILE), 2 * x : 2 * (x + TILE)]
        return tuple(torch.from_numpy(part.copy()).float().div(127.5).sub(1) for part in pair)

    def source(seed: int) -> Source:
        def give(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            rng = np.random.default_rng([seed, 0, step])
            low, high = (torch.stack(part) for part in zip(*(crop(rng) for _ in range(batch)), strict=True))
            return low, high - host(torch.zeros_like(high), low)

        return give

    def draw(seed: int) -> list[torch.Tensor]:
        rng = np.random.default_rng([seed, 1])
        return list(torch.stack([crop(rng)[0] for _ in range(calibration)]).split(8))

    def score(part: str, network: Network) -> dict[str, float]:
        found: dict[str, list[float]] = {"psnr_db": [], "ssim": []}
        for low, high in pairs[part]:
            frame = torch.from_numpy(low).float().div(127.5).sub(1)[None]
            tiles = patches.split(frame, patch=TILE, stride=TILE)
            detail = patches.merge(network(tiles), height=high.shape[1], width=high.shape[2], stride=2 * TILE)
            made, true = host(detail, frame).add(1).div(2).clamp(0, 1), torch.from_numpy(high).float().div(255)[None]
            for key, values in found.items():
                values.append(metrics.KEYS[key](made, true).item())
        return {key: statistics.fmean(values) for key, values in found.items()}

    about = {"clip": clip.name, "steps": steps, "n_filters": n_filters, "quality": quality, "batch": batch}
    about |= {"calibration": calibration, "frames": {key: len(frames) for key, frames in part.items()}}
    path = Path(folder) / f"srunet_{_digest(about)}.safetensors"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = models.SRUNet(n_filters=n_filters, residual=False)
        settings = {"steps": steps, "lr": 1e-3, "decay": True, "progress": progress}
        train_float(fresh.train(), source(2**31), F.l1_loss, **settings)  # a seed that no arm has
        models.save(path, models.reparametrise(fresh), trained=about)
    model, _ = models.load(path)
    alone = score("test", lambda tiles: torch.zeros(len(tiles), 3, 2 * TILE, 2 * TILE))
    about |= {"weights": _digest(model), "bicubic": alone}
    return Task(
        "super-resolution", model.eval(), source, draw, F.l1_loss, lambda net: score("test", net),
        lambda net: score("validation", net), lr or ENLARGING_LR, threshold_lr, "psnr_db", about,
    )  # fmt: skip


def _degrade(clip: videomatte.Clip, index: int, quality: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame at half its size after JPEG, (3, H/2, W/2), and as it was, (3, H, W); sRGB codes, uint8."""
    srgb, _ = videomatte.matting_frame(clip, index)
    height, width = (size // (2 * TILE) * 2 * TILE for size in srgb.shape[1:])
    srgb = srgb[:, :height, :width]
    codes = [part.mul(255).round().to(torch.uint8).numpy() for part in (F.avg_pool2d(srgb, 2), srgb)]
    file = io.BytesIO()
    Image.fromarray(codes[0].transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file)).transpose(2, 0, 1), codes[1]


def _digest(thing: nn.Module | dict) -> str:
    """Eight characters that stand for weights or JSON values."""
    total = hashlib.sha256()
    if isinstance(thing, nn.Module):
        for key, value in sorted(thing.state_dict().items()):
            total.update(key.encode() + value.contiguous().numpy().tobytes())
    else:
        total.update(json.dumps(thing, sort_keys=True).encode())
    return total.hexdigest()[:8]


def train_float(
    model: nn.Module,
    batches: Source,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    steps: int,
    lr: float,
    decay: bool = False,
    progress: bool = False,
) -> list[float]:
    """Train a float network in place by Adam, in the mode that it is in.

    Args:
        model: Whose every parameter is trained.
        batches: Step to input and target.
        loss: Output and target to a scalar.
        steps: How many.
        lr: Learning rate; ``decay`` lets it fall to zero along a cosine.
        decay: See there.
        progress: Show a bar.

    Returns:
        The loss of every step.
    """
    optimiser = torch.optim.Adam(model.parameters(), lr, fused=True)
    losses = []
    for step in tqdm(range(steps), desc="float", unit="step", leave=False, disable=not progress):
        if decay:
            optimiser.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        x, target = batches(step)
        optimiser.zero_grad(set_to_none=True)
        value = loss(model(x), target)
        value.backward()
        optimiser.step()
        losses.append(value.item())
    return losses


# --- the arms ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to arrive at a network: how many bits, and how much training."""

    name: str
    bits: int = 8  # of every integer; 32: float
    steps: int = 0  # of training; 0: calibration alone
    lr: float = 0.0
    threshold_lr: float = 0.0
    batch_norm: str = "frozen"  # or "live"
    repair: bool = False  # equalisation and bias correction
    tail_aware: bool = False  # the last position by what comes out behind the host's tail
    float_first: bool = False  # the training is of the float network, calibration comes after it


# of the matting paper, sections 3.3 and 4.1: 10 to 15 iterations; it does not tell the rate of the thresholds
PAPER = {"steps": 15, "lr": 5e-8, "threshold_lr": 1e-2}
NAMES = (
    "float", "float continued", "continued, then PTQ", "continued, then PTQ with both", "PTQ", "PTQ repaired",
    "PTQ tail-aware", "PTQ with both", "QAT as published", "QAT", "QAT moving thresholds", "QAT live BatchNorm",
)  # fmt: skip
MOVING_LR = 0.1  # of thresholds: of the rates in `rates`, the only one at which positions move before they are frozen
BOTH = {"repair": True, "tail_aware": True}
SMOKE = ("PTQ", "continued, then PTQ with both", "QAT")  # at preset "smoke"
QUICK = ("float", "float continued", "PTQ with both", *SMOKE)  # at preset "quick"


def arms(task: Task, *, steps: int, bits: Sequence[int] = (8, 6, 5, 4), names: Sequence[str] = NAMES) -> list[Arm]:
    """The arms of the study: all of :data:`NAMES` at 8 bits; PTQ, QAT and their controls at fewer.

    Args:
        task: Gives the rates.
        steps: Of training, for every arm that trains, but the published one.
        bits: Numbers of bits.
        names: Which of :data:`NAMES`.

    Raises:
        I2IError: If a name is unknown, or the task has no rate for a number of bits.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise I2IError("arms", expected=" or ".join(map(repr, NAMES)), got=", ".join(map(repr, unknown)))
    if unknown := [n for n in bits if n not in task.lr]:
        raise I2IError("bits", expected=f"from {', '.join(map(str, sorted(task.lr)))}", got=unknown)
    found = [Arm("float", FLOAT), Arm("float continued", FLOAT, steps, task.lr[8])]
    for n in bits:
        trained = {"steps": steps, "lr": task.lr[n], "threshold_lr": task.threshold_lr}
        continued = {"steps": steps, "lr": task.lr[8], "float_first": True}
        found += [Arm("PTQ", n), Arm("PTQ with both", n, **BOTH), Arm("QAT", n, **trained)]
        found += [Arm("QAT moving thresholds", n, **trained | {"threshold_lr": MOVING_LR})]
        found += [Arm("continued, then PTQ", n, **continued)]
        found += [Arm("continued, then PTQ with both", n, **continued, **BOTH)]
        if n == 8:
            found += [Arm("PTQ repaired", repair=True), Arm("PTQ tail-aware", tail_aware=True)]
            found.append(Arm("QAT as published", **PAPER))
            if any(isinstance(module, nn.BatchNorm2d) for module in task.model.modules()):
                found.append(Arm("QAT live BatchNorm", **trained, batch_norm="live"))
    return sorted((arm for arm in found if arm.name in names), key=lambda arm: (-arm.bits, NAMES.index(arm.name)))


def arrive(task: Task, arm: Arm, seed: int, folder: str | os.PathLike) -> tuple[nn.Module | Quantised, dict]:
    """The network of an arm, and how it went.

    Args:
        task: What for.
        arm: Which.
        seed: Draws calibration patches and the order of the batches.
        folder: For the checkpoint of a training.

    Returns:
        The network: float, or quantised. ``losses``, twenty means along the training; ``moved``, how many fix
        positions are others than after calibration.
    """
    model, how = task.model, {}
    if arm.steps and (arm.float_first or arm.bits == FLOAT):
        model, losses = _continued(task, arm.steps, arm.lr, seed)
        how = {"losses": losses}
    if arm.bits == FLOAT:
        return model, how
    batches, start = _calibrated(task, model, arm.bits, arm.repair, seed)
    if arm.float_first or not arm.steps:
        return (tail_aware(start, batches) if arm.tail_aware else start), how
    trainable = Trainable(task.model, batches, start=start, bits=arm.bits)
    rates = {"lr": arm.lr, "threshold_lr": arm.threshold_lr, "batch_norm": arm.batch_norm}
    history = fine_tune(trainable, task.source(seed), task.loss, folder, steps=arm.steps, **rates, progress=False)
    network = trainable.quantised()
    moved = sum(network.fix_positions[name] != fp for name, fp in start.fix_positions.items())
    return network, {"losses": _thin(history.steps["loss"]), "moved": moved}


@functools.lru_cache(maxsize=1)
def _continued(task: Task, steps: int, lr: float, seed: int) -> tuple[nn.Module, list[float]]:
    model = copy.deepcopy(task.model)  # in evaluation mode: its BatchNorm keeps its statistics
    return model, _thin(train_float(model, task.source(seed), task.loss, steps=steps, lr=lr))


@functools.lru_cache(maxsize=2)  # most arms start from one of the two before
def _calibrated(
    task: Task, model: nn.Module, bits: int, repair: bool, seed: int
) -> tuple[list[torch.Tensor], Quantised]:
    batches = task.calibration(seed)
    return batches, quantise(model, batches, bits=bits, equalise=repair, correct_bias=repair)


def _thin(losses: list[float], parts: int = 20) -> list[float]:
    return [round(float(part.mean()), 6) for part in np.array_split(losses, min(parts, len(losses)))]


def runner(network: nn.Module | Quantised) -> Network:
    """Batch to batch: PyTorch for a float network, the exact integer executor for a quantised one."""
    return network.integer if isinstance(network, Quantised) else torch.no_grad()(network)


# --- the study ---------------------------------------------------------------------------------------


def study(
    task: Task,
    *,
    seeds: int = 3,
    steps: int = 100,
    bits: Sequence[int] = (8, 6, 5, 4),
    names: Sequence[str] = NAMES,
    folder: str | os.PathLike = runtime.ROOT / "runs" / "ptq_qat",
    progress: bool = True,
) -> list[dict]:
    """Train and score every arm with every seed; what ``folder`` has already is not computed again.

    Args:
        task: From :func:`matting` or :func:`super_resolution`.
        seeds: How many: 0, 1, …
        steps: Of every training, but the published one.
        bits: Numbers of bits, of those that the task has a rate for.
        names: Which of :data:`NAMES`.
        folder: Keeps one JSON file a result.
        progress: Show a bar.

    Returns:
        One row a result: ``task``, ``arm``, ``bits``, ``seed``, ``scores``, ``seconds``, the rates, ``losses``…

    Raises:
        I2IError: If there is no seed, a name is unknown, or a number of bits has no rate.
    """
    if seeds < 1:
        raise I2IError("seeds", expected="at least 1", got=seeds)
    planned = [(arm, seed) for seed in range(seeds) for arm in arms(task, steps=steps, bits=bits, names=names)]
    return list(_results(task, planned, task.score, Path(folder), progress=progress))


def rates(
    task: Task,
    lrs: Sequence[float] = (1e-6, 1e-5, 1e-4, 1e-3),
    threshold_lrs: Sequence[float] = (1e-3, 1e-2, 1e-1),
    *,
    steps: int = 100,
    bits: Sequence[int] = (8, 4),
    folder: str | os.PathLike = runtime.ROOT / "runs" / "ptq_qat",
    progress: bool = True,
) -> list[dict]:
    """QAT at several learning rates beside PTQ and the float control, scored on the *validation* frames, seed 0.

    Args:
        task: As in :func:`study`, and ``folder`` and ``progress``.
        lrs: Learning rates of the weights, each with the task's own for the thresholds.
        threshold_lrs: Learning rates of the thresholds, each with the task's own for the weights.
        steps: Of training.
        bits: Numbers of bits.
        folder: See there.
        progress: See there.

    Returns:
        Rows as of :func:`study`.
    """
    planned = [Arm("float", FLOAT), *(Arm("float continued", FLOAT, steps, lr) for lr in lrs)]
    for n in bits:
        pairs = [(lr, task.threshold_lr) for lr in lrs] + [(task.lr[n], other) for other in threshold_lrs]
        planned += [Arm("PTQ", n), *(Arm("QAT", n, steps, *pair) for pair in dict.fromkeys(pairs))]
    folder = Path(folder) / "rates"
    return list(_results(task, [(arm, 0) for arm in planned], task.validate, folder, progress=progress))


def _results(
    task: Task, planned: list[tuple[Arm, int]], score: Callable[[Network], dict], folder: Path, *, progress: bool
) -> Iterator[dict]:
    bar = tqdm(planned, desc=task.name, unit="arm", disable=not progress)
    for arm, seed in bar:
        bar.set_postfix_str(f"{arm.name}, {arm.bits} bits, seed {seed}")
        settings = dataclasses.asdict(arm) | {"task": task.about}
        stem = f"{task.name}_{arm.name}_{arm.bits}_{seed}_{_digest(settings)}".replace(" ", "-")
        path = folder / f"{stem}.json"
        if not path.exists():
            began = time.perf_counter()
            network, how = arrive(task, arm, seed, folder / stem)
            seconds = round(time.perf_counter() - began, 2)
            about = {key: value for key, value in dataclasses.asdict(arm).items() if key != "name"}
            row = {"task": task.name, "arm": arm.name, **about, "seed": seed, "scores": score(runner(network))}
            runtime.write_json(path, row | {"seconds": seconds} | how)
            shutil.rmtree(folder / stem, ignore_errors=True)
        yield json.loads(path.read_text(encoding="utf-8"))


def summarise(rows: Sequence[dict]) -> list[dict]:
    """Mean and standard deviation over the seeds.

    Args:
        rows: From :func:`study`, of one task or several.

    Returns:
        One row for each task, arm and number of bits: ``n``, ``seconds`` (mean), ``scores``: metric to ``mean`` and
        ``std`` (of the sample, n - 1; None of a single seed).

    Raises:
        I2IError: If a seed is there twice.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["arm"], row["bits"]), []).append(row)
    found = []
    for (task, arm, bits), members in groups.items():
        if len({row["seed"] for row in members}) < len(members):
            raise I2IError("rows", expected="a seed once", got=f"{task}, {arm}, {bits} bits: one twice or more")
        scores = {}
        for metric in members[0]["scores"]:
            values = [row["scores"][metric] for row in members]
            spread = statistics.stdev(values) if len(values) > 1 else None
            scores[metric] = {"mean": statistics.fmean(values), "std": spread}
        seconds = round(statistics.fmean(row["seconds"] for row in members), 2)
        found.append({"task": task, "arm": arm, "bits": bits, "n": len(members), "seconds": seconds, "scores": scores})
    return found


PAIRS = (  # what is asked, arm against arm; at the same bits where both are quantised
    ("PTQ", "float"),
    ("PTQ repaired", "PTQ"),
    ("PTQ tail-aware", "PTQ"),
    ("PTQ with both", "PTQ"),
    ("PTQ with both", "float"),
    ("float continued", "float"),
    ("continued, then PTQ", "PTQ"),
    ("continued, then PTQ with both", "PTQ with both"),
    ("QAT as published", "PTQ"),
    ("QAT", "PTQ"),
    ("QAT", "PTQ with both"),
    ("QAT", "continued, then PTQ"),
    ("QAT", "continued, then PTQ with both"),
    ("QAT", "float"),
    ("QAT", "float continued"),
    ("QAT moving thresholds", "QAT"),
    ("QAT moving thresholds", "continued, then PTQ with both"),
    ("QAT live BatchNorm", "QAT"),
)


def verdicts(rows: Sequence[dict]) -> list[dict]:
    """Which arm is better than which: where the interval of the difference, seed by seed, leaves out 0.

    Seeds are paired: both arms drew the same calibration patches and batches (:func:`i2ilib.metrics.paired`).

    Args:
        rows: From :func:`study`, of two seeds or more, of one task or several.

    Returns:
        For each of :data:`PAIRS`, number of bits and metric: ``task``, ``arm``, ``against``, ``bits``, ``metric``,
        ``difference`` (mean over the seeds), ``low`` and ``high`` (95 % interval), ``n`` and ``verdict``: "better",
        "worse" or "no difference".

    Raises:
        I2IError: If an arm has a single seed, or two arms have not the same seeds.
    """
    groups: dict[tuple, dict[int, dict]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["arm"], row["bits"]), {})[row["seed"]] = row["scores"]
    if any(len(group) < 2 for group in groups.values()):
        raise I2IError("verdicts", expected="two seeds or more", got="one", remedy="Run the study with more seeds.")
    found = []
    for arm, against in PAIRS:
        for (task, name, bits), ours in groups.items():
            theirs = groups.get((task, against, bits)) or groups.get((task, against, FLOAT))
            if name != arm or theirs is None:
                continue
            if ours.keys() != theirs.keys():
                raise I2IError("rows", expected="the same seeds", got=f"{task}, {arm}: others than {against}")
            for metric in ours[min(ours)]:
                pair = [[side[seed][metric] for seed in sorted(ours)] for side in (ours, theirs)]
                difference = metrics.paired(*pair)
                word = difference.verdict(higher_is_better=metrics.KEYS[metric.partition("/")[0]].higher_is_better)
                about = {"task": task, "arm": arm, "against": against, "bits": bits, "metric": metric}
                found.append(about | difference._asdict() | {"verdict": word})
    return found


# --- the command -------------------------------------------------------------------------------------


def tasks(
    run: runtime.Run,
    folder: str | os.PathLike = runtime.ROOT / "runs" / "ptq_qat",
    *,
    names: Sequence[str] = ("matting", "sr"),
) -> dict[str, Task]:
    """The two tasks at the size of a preset: on the sample clip, at "full" matting on all six actors.

    Args:
        run: Gives the preset.
        folder: For the float network of super-resolution.
        names: Which; matting at "full" renders the actors where they are not there, which takes an hour or more.

    Returns:
        By name, "matting" and "sr".
    """
    sample = videomatte.clips(runtime.DATA / "sample")[0]
    few = {"calibration": run.pick(smoke=8, quick=32, full=64), "every": run.pick(smoke=3, quick=1, full=1)}
    made = {}
    if "matting" in names:
        clips = actors() if run.preset == "full" else [sample]
        model, meta = models.pretrained("matting_actors")
        made["matting"] = matting(clips, model, mode=meta["trained"]["mode"], q_in=meta["q_in"], **few)
    if "sr" in names:
        made["sr"] = super_resolution(sample, folder, steps=run.pick(smoke=20, quick=500, full=2500), **few)
    return made


def actors() -> list[videomatte.Clip]:
    """The six actors, 75 frames of 768 × 512 each; rendered where they are not there, which takes an hour or more."""
    for actor in synthetic.ACTORS:
        synthetic.write_clip(synthetic.DEFAULT_ROOT, actor, frames=75, height=512, width=768)
    names = {f"{actor.name}_768x512" for actor in synthetic.ACTORS}
    return [clip for clip in videomatte.clips(synthetic.DEFAULT_ROOT) if clip.name in names]


def size(run: runtime.Run) -> dict[str, object]:
    """Arguments of :func:`study` for a preset: smoke takes seconds, quick minutes, full half an hour or more."""
    return {
        "seeds": run.pick(smoke=1, quick=3, full=3),
        "steps": run.pick(smoke=3, quick=50, full=100),
        "bits": run.pick(smoke=(8,), quick=(8, 4), full=(8, 6, 5, 4)),
        "names": run.pick(smoke=SMOKE, quick=QUICK, full=NAMES),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m i2ilib.ptq_qat``: when does quantisation-aware training pay?"""
    parser = argparse.ArgumentParser(prog="python -m i2ilib.ptq_qat", description=main.__doc__.split(": ")[1])
    parser.add_argument("--preset", choices=runtime.PRESETS, help="default: I2I_PRESET, else quick")
    parser.add_argument("--task", choices=["matting", "sr"], action="append", help="both when not given")
    parser.add_argument("--seeds", type=int, help="how many (default: the preset's)")
    parser.add_argument("--rates", action="store_true", help="try learning rates on the validation frames as well")
    parser.add_argument("--record", action="store_true", help="keep the result in data/results")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    run = runtime.start(0, preset=options.preset)
    settings = size(run) | ({} if options.seeds is None else {"seeds": options.seeds})
    if options.record and settings["seeds"] < 2:
        parser.error("what is recorded holds 2 seeds or more")
    folder = runtime.ROOT / "runs" / "ptq_qat" / run.preset
    made = tasks(run, folder, names=options.task or ("matting", "sr"))
    results = {task.name: report(task, **settings, folder=folder) for task in made.values()}
    if options.rates:
        swept = [row for task in made.values() for row in rates(task, steps=settings["steps"], folder=folder)]
        results["rates"] = {"tasks": {task.name: task.about for task in made.values()}, "rows": swept}
    if options.record:
        for name, result in results.items():
            runtime.record((RECORDS | {"rates": "ptq_qat_rates"})[name], run, result)
    summary = [row for task in made.values() for row in results[task.name]["summary"]]
    print(json.dumps(results, indent=2) if options.json else table(summary))


def report(task: Task, **settings) -> dict:
    """A task's study with its statistics, as it is recorded.

    Args:
        task: See :func:`study`.
        settings: Its arguments.

    Returns:
        The settings but ``folder``; ``about`` the task; ``seconds``; ``rows`` of :func:`study`; ``summary`` of them,
        and ``verdicts`` (none of a single seed).
    """
    rows = study(task, **settings)
    result = {key: value for key, value in settings.items() if key not in ("folder", "progress")}
    result |= {"about": task.about, "seconds": round(sum(row["seconds"] for row in rows), 1), "rows": rows}
    return result | {"summary": summarise(rows), "verdicts": verdicts(rows) if settings["seeds"] > 1 else []}


def table(summary: Sequence[dict]) -> str:
    """The summary as text: a line for each task, arm and number of bits; means ± standard deviations."""
    lines = []
    for row in summary:
        bits = "float" if row["bits"] == FLOAT else f"{row['bits']} bits"
        scores = (
            f"{metric} {score['mean']:.5g}" + ("" if score["std"] is None else f" ± {score['std']:.2g}")
            for metric, score in row["scores"].items()
        )
        lines.append(f"{row['task']:17}{row['arm']:20}{bits:8}n {row['n']}  " + "  ".join(scores))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
