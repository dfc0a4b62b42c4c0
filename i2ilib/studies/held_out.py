"""Does a restoration network beat interpolation, and interpolation with an unsharp mask, on clips it never saw?

A clip is halved and coded with x265 at a CRF, then enlarged by each candidate. Unsharp masks of a ladder of strengths
are tried, and the best of them *on that very clip* is what a network is held against: more than anyone could choose
without the original. Bicubic and Lanczos are Pillow's (a = -0.5, three lobes); the bicubic branch of a network is
PyTorch's (a = -0.75), which is sharper: that alone gives a network a start. The best mask is chosen by VMAF NEG, which
gives no credit for contrast that the original does not have; the verdict is told by each of five metrics, of which FLIP
stands where LPIPS would: it needs no weights. Networks of others may run beside.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from .. import metrics, models, runtime
from ..datasets import faults
from ..deploy import fastest_exact, make_runner
from ..errors import FrameError, I2IError
from ..frames import names, open_clip, srgb_codes
from ..models.layers import Enlarger, enlarge
from ..pipeline.enlarge import core_of, for_integers
from ..quant import with_positions
from . import named_networks
from .peers import PEERS, open_peer
from .restoration import calibration, restored

MASKS = {
    f"Lanczos, unsharp {size}×{size}, {amount:g}": (size, amount) for size in (3, 5) for amount in (0.5, 1, 1.5, 2)
}
SCORES = ("vmaf_v0.6.1neg", "vmaf_v0.6.1", "flip", "ssim", "psnr")  # of every frame
DECIDES = SCORES[0]  # which mask is the best
Way = Callable[[torch.Tensor], torch.Tensor]


def read_clip(path: str | Path, *, frames: int, first: int = 0, multiple: int = 4) -> torch.Tensor:
    """Some frames of a clip, (N, 3, H, W) sRGB codes in [0, 1], cut at the right and at the bottom to what divides.

    Raises:
        FrameError: If a frame cannot be read, or there are none.
    """
    clip, found = open_clip(path), []
    for _, frame in clip.read(set(clip.names[first : first + frames])):
        if isinstance(frame, FrameError):
            raise frame
        found.append(srgb_codes(frame)[0])
    if not found:
        raise FrameError(str(path), expected=f"a frame after the first {first}", got=f"{len(clip)} frames")
    clips = torch.stack(found)
    height, width = (side // multiple * multiple for side in clips.shape[-2:])
    return clips[..., :height, :width]


def ways(
    size: tuple[int, int], networks: Mapping[str, Enlarger], others: Mapping[str, Way]
) -> Iterator[tuple[str, Way]]:
    """Every way of enlarging, by name: functions from (N, 3, h, w) to (N, 3, H, W), in [0, 1]."""
    yield "bicubic", lambda low: faults.resize(low, size)
    yield "Lanczos", lambda low: faults.resize(low, size, "lanczos")
    for name, mask in MASKS.items():
        yield name, functools.partial(_sharpened, size, mask)
    for name, network in networks.items():
        yield name, functools.partial(enlarge, network)
    yield from others.items()


@contextlib.contextmanager
def in_integers(network: Enlarger, size: tuple[int, int]) -> Iterator[Way]:
    """The network as a DPU would run it: maps doubled by transposed convolutions, INT8 by positions for its output.

    Calibrated on moving photographs (:func:`.restoration.calibration`), in integers on this machine's fastest exact
    backend.

    Args:
        network: As it was trained.
        size: Height and width of the small frames, pixels.
    """
    dpu, core, positions = _quantised(network)
    example = torch.zeros(2, 3, *(side + -side % 8 for side in size))
    with make_runner(fastest_exact()[0], core, example, quantised=with_positions(core, positions, example)) as runner:
        runner.prepare((1, *example.shape[1:]))
        yield lambda low: restored(runner, dpu, low.mul(255).round().to(torch.uint8)).float().div(255)


@functools.lru_cache(maxsize=4)
def _quantised(network: Enlarger) -> tuple[Enlarger, nn.Module, dict[str, int]]:
    dpu = models.with_doubling(network, "transposed")
    return dpu, *for_integers(core_of(dpu), calibration(scale=network.config.scale).split(1))


def _sharpened(size: tuple[int, int], mask: tuple[int, float], low: torch.Tensor) -> torch.Tensor:
    return faults.sharpen(faults.resize(low, size, "lanczos"), mask[1], size=mask[0])


def judge(
    frames: torch.Tensor,
    networks: Mapping[str, Enlarger],
    *,
    crf: int = 23,
    scale: int = 2,
    others: Mapping[str, Way] | None = None,
    bases: Mapping[str, str] | None = None,
    progress: bool = False,
) -> dict:
    """Score every candidate on a clip.

    Args:
        frames: The original, (N, 3, H, W) in 8-bit sRGB codes in [0, 1]; sides multiples of ``2 * scale``.
        networks: By name, in evaluation mode, of that scale.
        crf: Of x265.
        scale: How much smaller the coded frames are.
        others: Further ways, by name: functions of the small frames, (N, 3, h, w) in [0, 1].
        bases: For some names, another candidate that it is held against as well: of integers, their float network.
        progress: Show a bar.

    Returns:
        JSON values: ``rows``, by candidate and metric (:data:`SCORES`) the score of every frame; ``seconds``, by
        candidate, of each frame on average; ``best_mask``; and ``against``, for each network, rival (bicubic,
        Lanczos, the best mask) and metric the mean difference with the ends of its 95 % interval
        (:func:`i2ilib.metrics.paired`).

    Raises:
        I2IError: If a network enlarges by another factor, or there are fewer than two frames.
    """
    for name, network in networks.items():
        if network.config.scale != scale:
            raise I2IError(name, expected=f"a network that enlarges {scale} times", got=network.config.scale)
    size = tuple(frames.shape[-2:])
    low = faults.x265(faults.resize(frames, tuple(side // scale for side in size)), crf)
    rows, seconds = {}, {}
    every = dict(ways(size, networks, others or {}))
    for name, way in tqdm(every.items(), "scores", disable=not progress, leave=False):
        began = time.perf_counter()
        shown = way(low)
        seconds[name] = (time.perf_counter() - began) / len(low)
        shown = shown.mul(255).round().div(255)
        rows[name] = {key: list(one.values) for key, one in metrics.score(shown, frames, SCORES).items()}
    best = max(MASKS, key=lambda name: sum(rows[name][DECIDES]))
    block = metrics.clip_block(len(frames))

    def less(ours: dict, theirs: dict) -> dict:
        return {key: metrics.paired(ours[key], theirs[key], block=block)._asdict() for key in SCORES}

    rivals = ("bicubic", "Lanczos", best)
    judged = [*networks, *(others or {})]
    against = {name: {other: less(rows[name], rows[other]) for other in rivals} for name in judged}
    for name, base in (bases or {}).items():
        against[name][base] = less(rows[name], rows[base])
    return {"frames": len(frames), "size_pixels": [*size[::-1]], "crf": crf, "scale": scale, "rows": rows,
            "seconds": seconds, "best_mask": best, "against": against}  # fmt: skip


def table(found: Mapping[str, dict]) -> pd.DataFrame:
    """A row a clip and candidate: means over the frames, and for networks the verdict against the best mask."""
    rows = []
    for clip, result in found.items():
        for name in ("bicubic", "Lanczos", result["best_mask"], *result["against"]):
            scores = result["rows"][name]
            row = {"clip": clip, "candidate": name}
            for key in SCORES:
                one = metrics.metric(key)
                row[one.heading] = sum(scores[key]) / result["frames"]
                if name in result["against"]:
                    told = metrics.Paired(**result["against"][name][result["best_mask"]][key])
                    verdict = told.verdict(higher_is_better=one.higher_is_better)
                    row[f"{one.label} less the best mask"] = f"{told} {verdict}"
            rows.append(row)
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m i2ilib.studies.held_out``: networks against interpolation and unsharp masks on unseen clips."""
    parser = argparse.ArgumentParser(
        prog="python -m i2ilib.studies.held_out", description="Hold networks against unsharp masks on unseen clips."
    )
    parser.add_argument("clips", type=Path, nargs="+", help="videos or folders of pictures")
    told = "a .safetensors file, or a .pth as published; several"
    parser.add_argument("--network", action="append", metavar="NAME=WEIGHTS", default=[], help=told)
    parser.add_argument("--crf", type=int, default=23, help="of x265 (default: 23)")
    parser.add_argument("--scale", type=int, default=2, choices=[2, 4], help="default: 2")
    parser.add_argument("--frames", type=int, default=48, help="of each clip (default: 48)")
    parser.add_argument("--first", type=int, default=0, help="frame of each clip, from 0 (default: 0)")
    parser.add_argument("--peers", action="store_true", help="networks of others too, where ncnn is installed")
    parser.add_argument("--int8", action="store_true", help="each network in integers too, in the form for a DPU")
    parser.add_argument("--record", action="store_true", help="keep the result in data/results")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    run = runtime.start(0, preset="full")  # nothing of it depends on a preset
    networks = named_networks(options.network)
    others = {name: open_peer(name) for name in PEERS} if options.peers else {}
    found = {}
    for name, path in zip(names.unique(options.clips), options.clips, strict=True):
        frames = read_clip(path, frames=options.frames, first=options.first, multiple=2 * options.scale)
        frames = frames.mul(255).round().div(255)
        with contextlib.ExitStack() as stack:
            small = tuple(side // options.scale for side in frames.shape[-2:])
            integers = {  # opened before they are timed
                f"{each}, INT8": stack.enter_context(in_integers(network, small))
                for each, network in (networks.items() if options.int8 else ())
            }
            found[name] = judge(
                frames,
                networks,
                crf=options.crf,
                scale=options.scale,
                others=integers | others,
                bases={f"{each}, INT8": each for each in networks if options.int8},
                progress=not options.json,
            )
    if options.record:
        runtime.record("restoration_held_out", run, found)
    with pd.option_context("display.width", 200, "display.precision", 4):
        print(json.dumps(found, indent=2) if options.json else table(found).fillna("").to_string(index=False))


if __name__ == "__main__":
    main()
