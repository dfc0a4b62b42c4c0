"""A clip enlarged twice, from file to file, against the network alone, and that against PyTorch eager float32.

    python benchmarks/upscale.py [--json] [--n 3] [--frames 24] [--height 540] [--width 960] [--filters 64] [--batch 1]
                                 [--backend torch] [--model WEIGHTS] [--record]

The clip is H.264, made by the library's own writer; the network is the published SRUNet's size with random weights,
which speed does not depend on, unless a file is named. In turns: eager PyTorch, in batches and a frame at a time, and
the backend compute as many whole frames, and ``upscale`` decodes, enlarges and encodes the clip (H.264, CRF 18).
Medians are compared, with the better of the two eager ones. An INT8 backend is calibrated on the clip. At most 15 % of
the network's speed is to be lost end to end. The machine's own float32 peak is measured beside, as a roof.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from _common import arguments, medians, tell

import i2ilib
from i2ilib import models, runtime
from i2ilib.deploy import BACKENDS, roofline, verify
from i2ilib.deploy.pytorch import PytorchRunner
from i2ilib.frames import write_video
from i2ilib.pipeline.enlarge import core_of, open_network
from i2ilib.pipeline.upscale import UpscaleOptions, calibration, upscale

LIMIT = 0.85  # of the network's frames a second


def clip(path: Path, frames: int, height: int, width: int) -> None:
    """Waves that move over a texture: neither still nor noise."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 60, (height, width, 1))
    x, y = np.arange(width)[None, :, None], np.arange(height)[:, None, None]
    write_video(
        path,
        ((texture + 95 + 90 * np.sin(x / 31 + y / 17 + i / 4 + np.arange(3))).astype(np.uint8) for i in range(frames)),
        fps=24,
        crf=23,
    )


def main() -> None:
    """Measure, compare, print."""
    parser = arguments(
        __doc__,
        n=(3, "rounds; the median is reported"),
        frames=(24, "of the clip"),
        height=(540, "of the clip, even"),
        width=(960, "of the clip, even"),
        filters=(64, "of SRUNet"),
        batch=(1, "frames that go through the network at once"),
    )
    parser.add_argument("--backend", default="torch", choices=list(BACKENDS), metavar="NAME", help="default: torch")
    parser.add_argument("--model", type=Path, help="weights of SRUNet (default: random)")
    parser.add_argument(
        "--record", action="store_true", help="keep the result in data/results/upscale_<kind of CPU>.json"
    )
    options = parser.parse_args()
    run = i2ilib.start(0, preset="full")  # nothing of it depends on a preset
    model = options.model or models.SRUNet(n_filters=options.filters).eval()
    shape = (options.batch, 3, options.height + -options.height % 8, options.width + -options.width % 8)
    batch = torch.rand(shape) * 2 - 1
    turns = max(options.frames // options.batch, 1)
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "in.mp4", Path(name) / "out.mp4"
        clip(source, options.frames, options.height, options.width)
        how = {"backend": options.backend, "calibration": lambda: calibration(source)}
        core = core_of(model)
        with open_network(model, **how) as network, PytorchRunner(core) as eager:
            for runner in (network.runner, eager):
                runner.prepare(shape)
            apart = verify(network.runner, eager.run(batch), batch)
            if options.backend.endswith(("torch", "onnxruntime", "openvino")) and apart > 1e-3:
                raise SystemExit(f"{options.backend} and eager differ by {apart:g}: not the same network")
            chosen = UpscaleOptions(batch=options.batch)

            def alone(runner, x=batch) -> None:
                for future in [runner.submit(x) for _ in range(turns * options.batch // len(x))]:
                    future.result()

            seconds = medians(
                {
                    "eager": lambda: alone(eager),
                    "eager, frame by frame": lambda: alone(eager, batch[:1]),
                    "network": lambda: alone(network.runner),
                    "end to end": lambda: upscale(source, out, network, chosen, overwrite=True, progress=False),
                },
                options.n,
            )
    counted = {"end to end": options.frames}
    rates = {task: counted.get(task, turns * options.batch) / value for task, value in seconds.items()}
    peer = max(rates["eager"], rates["eager, frame by frame"])
    result = {
        "name": "upscale",
        "ours": rates["network"],
        "peer": peer,
        "ratio": rates["network"] / peer,
        "unit": "frames/s",
        "n": options.n,
        "device": run.device_name,
        "threads": run.threads,
        "peer_name": "PyTorch eager float32",
        "peer_batches": rates["eager"],
        "backend": options.backend,
        "peak_gmacs": roofline.peaks(seconds=0.3).gmacs["float32"],
        "end_to_end": rates["end to end"],
        "share_of_network": rates["end to end"] / rates["network"],
        "share_of_network_limit": LIMIT,
        "size": [options.height, options.width],
        "batch": options.batch,
        "frames": options.frames,
        "max_difference": apart,
        "versions": run.describe()["versions"],
        "origin": "measured",
    }
    lines = [
        f"{options.width} x {options.height} to twice that, batch {options.batch}; {run.device_name}, "
        f"{run.threads} threads, median of {options.n}",
        *(f"  {task:21} {rate:8.2f} frames/s" for task, rate in rates.items()),
        f"  {options.backend} is {result['ratio']:.2f} times as fast as PyTorch eager float32",
        f"  end to end has {result['share_of_network']:.2f} of the network's speed; at least {LIMIT} is asked for",
    ]
    if options.record:
        runtime.record(f"upscale_{runtime.this_machine().kind}", run, result)
    tell(options, result, lines)


if __name__ == "__main__":
    main()
