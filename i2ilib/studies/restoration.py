"""The restoration thesis's four tables, and the size of its networks, measured on clips at hand beside its own figures.

Networks run as the thesis ran them: as they were trained, in a shorter floating point, and in INT8; there by TensorRT,
here by what this machine has. The core of a network is the accelerator's part; the host adds the bicubic enlargement.
What cannot be had is "not measured", with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from .. import metrics, models, runtime
from ..comparison.thesis import thesis_tables
from ..datasets import bvi_dvc, faults, moving
from ..deploy import Runner, bench, fastest_exact, make_runner, published, status
from ..errors import I2IError, UnavailableError
from ..models.layers import Enlarger
from ..pipeline.enlarge import core_of, for_integers
from ..quant import Quantised, with_positions
from . import named_networks

FPS = 24  # of the clip of 120 seconds
VMAF = ("vmaf_v0.6.1", "vmaf_v0.6.1neg")
TILE = 96  # the thesis's patch, pixels


def calibration(count: int = 8, *, scale: int = 2) -> torch.Tensor:
    """Small frames to calibrate INT8 on, (N, 3, 96, 96) in [-1, 1]: moving photographs, none of the clips judged."""
    frames = [
        moving.frame(scene, 0.5, height=scale * TILE, width=scale * TILE) for scene in moving.scenes(count, seed=9)
    ]
    return faults.resize(torch.stack(frames), (TILE, TILE)) * 2 - 1


def precisions(
    core: Enlarger, integers: tuple[nn.Module, Mapping[str, int]], example: torch.Tensor
) -> dict[str, tuple[str, Runner | str]]:
    """By the thesis's name of a precision: the backend, and a runner of it or why there is none.

    Args:
        core: From :func:`core_of`.
        integers: From :func:`i2ilib.pipeline.enlarge.for_integers`.
        example: (N, 3, H, W): engines are built for one height and width.
    """
    short = next((b for b in ("tensorrt-float16", "openvino-bf16", "torch-bf16") if status(b)), "torch-bf16")
    wanted = {"": "torch", "-FP32": "openvino", "-FP16": short, "-INT8": fastest_exact()[0]}
    found: dict[str, tuple[str, Runner | str]] = {}
    for suffix, backend in wanted.items():
        if there := status(backend):
            quantised = with_positions(*integers, example) if suffix == "-INT8" else None
            found[suffix] = backend, make_runner(backend, core, example, quantised=quantised)
        else:
            found[suffix] = backend, f"not measured: {there.reason}"
    return found


@torch.no_grad()
def restored(runner: Runner, network: Enlarger, low: torch.Tensor) -> torch.Tensor:
    """Frames through a runner of the core and the host's part: (N, 3, h, w) uint8 to (N, 3, s h, s w) uint8.

    Sides are padded by replication to multiples of 8.
    """
    height, width = low.shape[-2:]
    made = []
    for frame in low:
        x = _padded(frame[None])
        shown = network.host(runner.run(x), x).add(1).div(2).mul(255).round().to(torch.uint8)
        made.append(shown[..., : height * network.config.scale, : width * network.config.scale])
    return torch.cat(made)


def _padded(codes: torch.Tensor) -> torch.Tensor:
    """As a network sees it, in [-1, 1]."""
    height, width = codes.shape[-2:]
    x = codes.float().div(255) * 2 - 1
    return nn.functional.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")


def assembled(clips: Sequence[torch.Tensor], frames: int) -> Iterator[torch.Tensor]:
    """As many frames as wanted, (3, H, W) in [0, 1]: the clips one after the other, forth and back, again and again."""
    once = (frame for clip in itertools.cycle(clips) for frame in (*clip, *reversed(clip)))
    return (frame.float().div(255) for frame in itertools.islice(once, frames))


def _spread(clips: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """``count`` frames, or all, evenly over the clips: (N, 3, H, W) in [0, 1]."""
    every = [frame for clip in clips for frame in clip]
    places = np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int)
    return torch.stack([every[i] for i in places]).float().div(255)


def study(
    run: runtime.Run,
    pairs: Iterable[bvi_dvc.Pair],
    networks: Mapping[str, Enlarger],
    *,
    frames: int = 60,
    seconds: float | None = None,
    rounds: int | None = None,
    progress: bool = True,
) -> dict:
    """Measure the tables.

    Args:
        run: Gives the preset: how long the clip is and how often is timed.
        pairs: Frames that no network was trained on, from :func:`i2ilib.datasets.bvi_dvc.pairs`; of one size.
        networks: By name, "UNet" and "SRUNet" as the thesis has them, or others.
        frames: Of the tables of perceptual and traditional metrics.
        seconds: Of the clip for VMAF; the thesis's 120 in a full run.
        rounds: Of the timing; the thesis's 300 in a full run.
        progress: Show bars.

    Returns:
        JSON values: ``perceptual``, ``traditional``, ``vmaf``, ``speed`` and ``size``, each a list of rows with an
        ``origin`` (measured, paper, or "not measured: reason"), and ``about``.

    Raises:
        I2IError: If there are no frames, they differ in size, or a network's scale is another.
    """
    seconds = seconds or run.pick(smoke=0.5, quick=10, full=120)
    rounds = rounds or run.pick(smoke=3, quick=30, full=300)
    low, high = _clips(pairs)
    scale = high[0].shape[-1] // low[0].shape[-1]
    for name, network in networks.items():
        if network.config.scale != scale:
            raise I2IError(name, expected=f"a network that enlarges {scale} times", got=network.config.scale)
    made: dict[str, list[torch.Tensor]] = {}
    reasons, speed, size = {}, [], []
    batch = calibration(1, scale=scale)
    for name, network in networks.items():
        core = core_of(network)
        integers = for_integers(core, calibration(scale=scale).split(1))
        size += _sizes(name, core, with_positions(*integers, batch))
        found = precisions(core, integers, _padded(low[0][:1]))
        backends = {name + suffix: backend for suffix, (backend, _) in found.items()}
        reasons |= {name + suffix: runner for suffix, (_, runner) in found.items() if isinstance(runner, str)}
        for suffix, (_, runner) in found.items():
            if not isinstance(runner, str):
                with runner:
                    label = name + suffix
                    made[label] = [restored(runner, network, clip) for clip in tqdm(low, label, disable=not progress)]
        found = precisions(core, integers, batch)
        with contextlib.ExitStack() as stack:
            runners = {
                name + suffix: stack.enter_context(runner)
                for suffix, (_, runner) in found.items()
                if not isinstance(runner, str)
            }
            timed = bench(runners, batch, n=rounds, peer=name, progress=progress)
        speed += [
            {"model": label, "engine": backends[label], "seconds": row["ms_per_patch"] / 1e3, "p5": row["p5"] / 1e3,
             "p95": row["p95"] / 1e3, "speedup": row["speedup"], "n": rounds, "origin": "measured"}
            for label, row in timed.items()
        ]  # fmt: skip
    plain = [_enlarged(clip, scale) for clip in low]
    candidates = {"bicubic": plain} | made
    shown = {name: _spread(clips, frames) for name, clips in candidates.items()}
    tables = thesis_tables(_spread(high, frames), shown, label="frames at hand", progress=progress)
    result = {key: _rows(tables[key]) for key in ("perceptual", "traditional")}
    result["vmaf"] = _vmaf(candidates, high, round(seconds * FPS), progress) + _paper_vmaf()
    result["speed"] = speed + _paper("thesis_speed")
    result["size"] = size + _paper("thesis_size")
    for key in ("perceptual", "traditional", "vmaf", "speed"):
        result[key] += [{"model": name, "origin": reason} for name, reason in reasons.items()]
    result["about"] = {
        "frames": len(shown["bicubic"]), "seconds": seconds, "fps": FPS, "scale": scale,
        "size_pixels": list(high[0].shape[:1:-1]), "clips": len(high), "patch": TILE,
        "clip": "the clips one after the other, forth and back, until it is long enough",
    }  # fmt: skip
    return result


def _clips(pairs: Iterable[bvi_dvc.Pair]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Small and large frames of each clip, (N, 3, H, W) uint8."""
    by_clip: dict[str, list] = {}
    for pair in pairs:
        read = [part.mul(255).round().to(torch.uint8) for part in bvi_dvc.read_pair(pair)]
        by_clip.setdefault(pair.high.parent.name, []).append(read)
    shapes = {tuple(part.shape for part in read) for clip in by_clip.values() for read in clip}
    if len(shapes) != 1:
        raise I2IError("pairs", expected="frames of one size", got=f"{len(shapes)} sizes")
    low, high = ([torch.stack([read[k] for read in clip]) for clip in by_clip.values()] for k in (0, 1))
    return low, high


def _enlarged(low: torch.Tensor, scale: int) -> torch.Tensor:
    size = tuple(scale * side for side in low.shape[-2:])
    return faults.resize(low.float().div(255), size).mul(255).round().to(torch.uint8)


def _sizes(name: str, core: Enlarger, quantised: Quantised) -> list[dict]:
    """Bytes of the network's file as it was trained, and with its integers."""
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder, "float.safetensors"), Path(folder, "int8.safetensors")
        models.save(whole, core)
        quantised.save(small)
        before, after = whole.stat().st_size, small.stat().st_size
    reduction = 100 * (1 - after / before)
    return [{"model": name, "float32_bytes": before, "int8_bytes": after, "reduction_percent": reduction,
             "origin": "measured"}]  # fmt: skip


def _vmaf(
    candidates: Mapping[str, list[torch.Tensor]], high: list[torch.Tensor], count: int, progress: bool
) -> list[dict]:
    rows = []
    for name, clips in candidates.items():
        row: dict[str, object] = {"model": name, "origin": "measured", "frames": count}
        for model in VMAF:
            try:
                pair = assembled(clips, count), assembled(high, count)
                found = metrics.vmaf(*pair, model=model, bits=8, progress=progress)
                row |= {f"{model}_mean": found.mean, f"{model}_harmonic_mean": found.harmonic_mean}
            except UnavailableError as error:
                row["origin"] = f"not measured: {error}"
        rows.append(row)
    return rows


def _rows(table: pd.DataFrame) -> list[dict]:
    return table.rename_axis("model").reset_index().to_dict("records")


def _paper(name: str) -> list[dict]:
    table = published.table(name).reset_index()
    return table.astype(object).where(table.notna(), None).assign(origin="paper").to_dict("records")


def _paper_vmaf() -> list[dict]:
    keep = ("model", "vmaf_mean", "vmaf_harmonic_mean", "origin")
    return [{key: row[key] for key in keep} for row in _paper("thesis_quality")]


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m i2ilib.studies.restoration``: the restoration thesis's tables on clips at hand."""
    parser = argparse.ArgumentParser(
        prog="python -m i2ilib.studies.restoration", description="Measure the restoration thesis's tables."
    )
    parser.add_argument("pairs", type=Path, help="folder from i2i degrade, of clips that no network was trained on")
    parser.add_argument(
        "--network", action="append", metavar="NAME=WEIGHTS", required=True,
        help="a .safetensors file, or a .pth as published; several",
    )  # fmt: skip
    parser.add_argument("--crf", type=int, help="of the frames (default: the only one there)")
    parser.add_argument("--preset", choices=runtime.PRESETS, help="default: I2I_PRESET, else quick")
    parser.add_argument("--record", action="store_true", help="keep the result in data/results")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    run = runtime.start(0, preset=options.preset)
    networks = named_networks(options.network)
    crf = bvi_dvc.only_crf(options.pairs) if options.crf is None else options.crf
    result = study(run, bvi_dvc.pairs(options.pairs, crf), networks, progress=not options.json)
    if options.record:
        runtime.record("restoration_thesis", run, result)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name in ("perceptual", "traditional", "vmaf", "speed", "size"):
        print(f"\n{name}\n{pd.DataFrame(result[name]).fillna('').to_string(index=False)}")


if __name__ == "__main__":
    main()
