"""A 4K frame from linear light to the network's range and back, against NumPy and OpenImageIO.

    python benchmarks/colour.py [--json] [--n 15]

Ours: equations 1 and 2, then 3 and 4, on a float32 frame of 3840 x 2160 x 3. Peer: the same four formulas in NumPy,
as one writes them down. OpenImageIO's ``colorconvert`` does the two transfer functions only, without the mapping.
scikit-image has both curves inside its XYZ conversions and offers no function for the curve alone.
Every round runs all candidates on the same frame, in turning order; medians are compared.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from _common import arguments

import i2ilib
from i2ilib import colour

HEIGHT, WIDTH, Q = 2160, 3840, 64


def numpy_there_and_back(linear: np.ndarray) -> np.ndarray:
    """Equations 1 to 4 in NumPy, float32."""
    srgb = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    mapped = Q * (srgb - 0.5) * 2
    srgb = (mapped / Q + 1) / 2
    return np.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)


def ours_there_and_back(linear: torch.Tensor, buffer: torch.Tensor | None = None) -> torch.Tensor:
    """The library's four functions: a new frame, or all in ``buffer`` as a stream of frames allows."""
    frame = colour.linear_to_srgb(linear, out=buffer)
    colour.to_fixed(frame, Q, out=frame)
    colour.from_fixed(frame, Q, out=frame)
    return colour.srgb_to_linear(frame, out=frame)


def candidates(linear: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is compared, by name; OpenImageIO only where it is installed."""
    array, buffer = linear.numpy(), torch.empty_like(linear)
    found: dict[str, Callable[[], object]] = {
        "i2ilib": lambda: ours_there_and_back(linear),
        "i2ilib, buffer reused": lambda: ours_there_and_back(linear, buffer),
        "NumPy": lambda: numpy_there_and_back(array),
    }
    if i2ilib.available("OpenImageIO"):
        import OpenImageIO as oiio

        convert, source = oiio.ImageBufAlgo.colorconvert, oiio.ImageBuf(array)
        found["OpenImageIO, curves only"] = lambda: convert(convert(source, "lin_srgb", "srgb"), "srgb", "lin_srgb")
    return found


def main() -> None:
    """Measure, compare, print."""
    options = arguments(__doc__, n=(15, "rounds; the median is reported")).parse_args()
    run = i2ilib.start()
    linear = torch.rand(HEIGHT, WIDTH, 3) ** 2.2
    tasks = candidates(linear)
    error = np.abs(ours_there_and_back(linear).numpy() - numpy_there_and_back(linear.numpy())).max()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(options.n + 1):
        names = list(tasks)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            tasks[name]()
            if turn:  # the first round warms up
                times[name].append((time.perf_counter() - start) * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "name": "colour: 4K frame, linear to mapped and back",
        "ours": medians["i2ilib"],
        "peer": medians["NumPy"],
        "peer_name": f"NumPy {np.__version__}, equations 1 to 4 as written",
        "ratio": medians["NumPy"] / medians["i2ilib"],
        "unit": "ms a frame (median, measured; lower is better; ratio = peer / ours)",
        "n": options.n,
        "device": run.device_name,
        "threads": run.threads,
        "max_difference": float(error),
        "all_ms": medians,
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{result['name']}; {run.device_name}, {run.threads} threads, median of {options.n}")
    for name, value in medians.items():
        print(f"  {name:26} {value:8.1f} ms  {medians['NumPy'] / value:5.1f} x NumPy")
    print(f"  largest difference to NumPy: {error:.1e} of full scale")


if __name__ == "__main__":
    main()
