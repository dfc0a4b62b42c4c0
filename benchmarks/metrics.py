"""Metrics of a 1080p frame: every one by itself, and SSIM and VMAF against their reference implementations.

    python benchmarks/metrics.py [--json] [--n 5] [--frames 6] [--height 1080] [--width 1920]

SSIM against scikit-image with the same window, in double precision. VMAF v0.6.1 of a raw file against the ffmpeg
program called by hand on the same files, with the same figures beside it. In turns; medians are compared.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from _common import arguments, medians
from skimage.metrics import structural_similarity

import i2ilib
from i2ilib import metrics


def pair(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth picture with grain, and the same with other grain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    smooth = 0.5 + 0.2 * np.sin(x / 37) * np.cos(y / 23)
    grain = [np.clip(smooth + 0.03 * rng.standard_normal((3, height, width)), 0, 1) for _ in range(2)]
    return tuple(torch.from_numpy((picture * 255).round() / 255)[None].float() for picture in grain)


def by_hand(folder: Path, size: str, threads: int) -> None:
    """libvmaf as its documentation calls it."""
    read = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", size, "-i"]
    options = f"log_fmt=json:log_path=log.json:model=version=vmaf_v0.6.1:n_threads={threads}"
    options += ":feature=name=psnr|name=float_ssim"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *read, "dist.yuv", *read, "ref.yuv"]
    subprocess.run([*command, "-lavfi", f"libvmaf={options}", "-f", "null", "-"], cwd=folder, check=True)


def main() -> None:
    """Measure, compare, print."""
    parser = arguments(
        __doc__,
        n=(5, "rounds; the median is reported"),
        frames=(6, "frames of the clip for VMAF"),
        height=(1080, "pixels"),
        width=(1920, "pixels"),
    )
    options = parser.parse_args()
    run = i2ilib.start()
    pred, target = pair(options.height, options.width)
    a, b = (image[0].double().numpy() for image in (pred, target))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), (options.width, options.height)
        rng = np.random.default_rng(1)
        for clip in ("ref", "dist"):
            luma = rng.integers(16, 236, (options.frames, options.height * options.width * 3 // 2), np.uint8)
            luma.tofile(folder / f"{clip}.yuv")
        clips = [folder / f"{clip}.yuv" for clip in ("dist", "ref")]
        found = {
            "SSIM": medians(
                {
                    "ours": lambda: metrics.ssim(pred, target, value_range=1.0),
                    "peer": lambda: structural_similarity(b, a, data_range=1.0, **window),
                },
                options.n,
            ),
            "VMAF v0.6.1": medians(
                {
                    "ours": lambda: metrics.vmaf(*clips, size=size, pixel_format="yuv420p", threads=threads),
                    "peer": lambda: by_hand(folder, f"{options.width}x{options.height}", threads),
                },
                options.n,
            ),
        }
    peers = {"SSIM": "scikit-image, Gaussian window", "VMAF v0.6.1": "the ffmpeg program, called by hand"}
    frames = {"SSIM": 1, "VMAF v0.6.1": options.frames}
    rows = [
        {
            "name": f"metrics: {what}",
            **{side: frames[what] / seconds for side, seconds in pair_.items()},
            "peer_name": peers[what],
            "ratio": pair_["peer"] / pair_["ours"],
        }
        for what, pair_ in found.items()
    ]
    alone, absent = {}, {}
    for name, metric in metrics.registry().items():
        if metric.clips or metric.takes == "clip":
            continue  # of clips: VMAF is above
        images = [image[:, :1] if metric.of == "matte" else image for image in (pred, target)]
        if reason := metrics.score(*images, [name])[name].reason:
            absent[name] = reason
            continue
        alone[name] = 1 / medians({name: lambda m=metric, i=images: m(*i)}, max(1, options.n // 2))[name]
    common = {"unit": "frames/s (median, measured)", "n": options.n, "device": run.device_name}
    common |= {"threads": threads, "size": f"{options.width}x{options.height}"}
    if options.json:
        print(json.dumps({**rows[0], "rows": rows, "frames_per_s": alone, "not_measured": absent} | common))
        return
    print(f"{run.device_name}, {common['size']}, median of {options.n}, {threads} threads")
    for row in rows:
        print(f"  {row['name']:22} {row['ours']:7.2f} frames/s, {row['ratio']:.2f} x {row['peer_name']}")
    for name, rate in sorted(alone.items(), key=lambda item: -item[1]):
        print(f"  {name:26} {rate:8.2f} frames/s")
    for name, reason in absent.items():
        print(f"  {name:26} not measured: {reason}")


if __name__ == "__main__":
    main()
