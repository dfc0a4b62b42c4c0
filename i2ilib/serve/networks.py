"""Networks as models of a server: matting and enlarging, in every precision that was opened for them.

Pictures come and go in linear light, as Nuke works. What a number may be, and what becomes of it:

- beyond 1 and below 0: a network sees white and black there; planes of colour in the reply keep the number;
- NaN and infinity, of either sign: 0, for the network and in the reply.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from .. import colour, models, patches
from ..deploy import INTEGER, Runner, fastest_exact, make_runner
from ..errors import I2IError, IntegrityError
from ..frames import Frame
from ..models.layers import Enlarger
from ..pipeline import MatteOptions, cut_out, matte
from ..pipeline.enlarge import Network, enlarge, open_network
from ..quant import Quantised, load, with_positions
from .menu import Option, Served, Value
from .scheduler import Pool, Work

PLANES = ("alpha", "rgba", "premultiplied")
SOURCES = ("corner", "reduce")


def matting(
    name: str,
    pools: Mapping[str, Pool],
    *,
    label: str | None = None,
    q_in: int = 1,
    q_out: int = 1,
    patch: int = patches.PATCH,
) -> Served:
    """A matting network: RGB in; its matte out.

    Knobs: ``q_i`` and ``q_o``, the ranges that the network sees and gives; ``overlap`` of patches in pixels, over which
    they fade; ``matte_transfer`` as in :class:`i2ilib.pipeline.MatteOptions`; ``precision``, a key of ``pools``; and
    ``planes``: "alpha" in all three, "rgba" with straight colours, or "premultiplied" colours with alpha as the fourth.
    A node copies as many planes as it has, so only one with an alpha channel gets the fourth.

    Args:
        name: What a request calls it by.
        pools: By precision; the first is the default.
        label: In the node's menu; the name by default.
        q_in: Of the weights; the default of ``q_i``.
        q_out: Likewise of ``q_o``.
        patch: Pixels.
    """

    def function(images: tuple[np.ndarray, ...], values: dict[str, Value], work: Work) -> np.ndarray:
        frame = Frame(_colours(images[0]), None, name, "the picture", colour="linear")
        pool = pools[values["precision"]]
        options = MatteOptions(
            q_in=values["q_i"],
            q_out=values["q_o"],
            patch=patch,
            stride=patch - values["overlap"],
            feather=values["overlap"],
            batch=pool.batch,
            input_colour="linear",
            matte_transfer=values["matte_transfer"],
            non_finite="zero",
        )
        alpha = matte(work.share(pool), frame, options)
        if values["planes"] == "alpha":
            return alpha[0].expand(3, -1, -1).numpy()
        whole = values["planes"] == "premultiplied"
        return cut_out(frame, alpha, options, suffix=".exr", premultiply=whole)[0].numpy()

    return Served(
        name,
        label or name,
        function,
        outputs=(("matte", 3),),
        options=(
            Option("q_i", q_in, choices=colour.Q_VALUES),
            Option("q_o", q_out, choices=colour.Q_VALUES),
            Option("overlap", 0, low=0, high=patch - patch // 4),
            Option("matte_transfer", "none", choices=("none", "srgb")),
            Option("planes", "alpha", choices=PLANES),
            Option("precision", next(iter(pools)), choices=tuple(pools)),
        ),
    )


def enlarging(
    name: str, networks: Mapping[str, tuple[Network, Pool]], *, label: str | None = None, tile: int = 512
) -> Served:
    """A network that enlarges, for a node whose reply must have the size of its input.

    Knobs: ``precision``, and ``source``, which says where the small picture is. "corner": it lies in the lower left
    corner of the format, as Nuke's Reformat leaves it without resizing and centring, and is enlarged to all of it; the
    format must be a size that the network gives. "reduce": it fills the format, is reduced by the network's factor and
    enlarged again, whatever its size.

    Args:
        name: What a request calls it by.
        networks: By precision, each with a pool of its runner; the first is the default.
        label: In the node's menu; the name by default.
        tile: Longest side of a tile, pixels, where the network's reach allows it: what a small picture waits for.
    """

    def function(images: tuple[np.ndarray, ...], values: dict[str, Value], work: Work) -> np.ndarray:
        network, pool = networks[values["precision"]]
        linear = torch.nan_to_num(_colours(images[0]), nan=0.0, posinf=0.0, neginf=0.0)
        srgb, (height, width) = colour.linear_to_srgb(linear).clamp_(0, 1), linear.shape[-2:]
        if values["source"] == "corner":
            h, w = (_before(side, network) for side in (height, width))
            small = srgb[..., height - h :, :w].contiguous()
        else:
            small = patches.unfit(srgb, *(max(1, round(side / network.factor)) for side in (height, width)))
        most = None if network.reach is None else max(tile, 4 * network.reach)
        shared = dataclasses.replace(network, runner=work.share(pool) if network.runner else None)
        large = enlarge(shared, small, tile=None if most is None or max(small.shape[-2:]) <= most else most)
        return colour.srgb_to_linear(patches.unfit(large, height, width))[0].numpy()

    return Served(
        name,
        label or name,
        function,
        outputs=(("enlarged", 3),),
        options=(
            Option("source", SOURCES[0], choices=SOURCES),
            Option("precision", next(iter(networks)), choices=tuple(networks)),
        ),
    )


def _before(side: int, network: Network) -> int:
    """Pixels that become so many."""
    found = math.ceil(side / network.factor)
    if found < 1 or int(found * network.factor) != side:
        near = [int(n * network.factor) for n in (max(found - 1, 1), max(found, 1))]
        raise I2IError(
            "format",
            expected=f"sides {network.factor} times those of the small picture, such as {near[0]} or {near[1]}",
            got=side,
            remedy="Reformat to such a size, or set source to reduce.",
        )
    return found


def _colours(image: np.ndarray) -> torch.Tensor:
    """(1, 3, H, W) of an image of three planes or more."""
    if len(image) < 3:
        raise I2IError("image 0", expected="three planes: red, green, blue", got=len(image))
    return torch.from_numpy(np.array(image[:3], np.float32, order="C"))[None]  # a copy, upright and aligned


# --- from files ------------------------------------------------------------------------------------------


def precision_of(backend: str) -> str:
    """What a backend computes in, as the knob calls it.

    Example:
        >>> precision_of("openvino-int8-float"), precision_of("torch"), precision_of("torch-cuda-bf16")
        ('int8', 'float32', 'bf16')
    """
    if backend in INTEGER:
        return "int8"
    last = backend.rpartition("-")[2]
    return last if last in ("bf16", "float16") else "float32"


def open_models(
    stack: contextlib.ExitStack,
    weights: Mapping[str, Path],
    backends: Sequence[str] = ("auto",),
    *,
    batch: int = 8,
    copies: int = 1,
) -> tuple[list[Served], list[Pool]]:
    """Models from weights files, each compiled for its backends.

    Args:
        stack: Closes pools and frees devices at its end.
        weights: By name: a file of :func:`i2ilib.models.save`, one of :func:`i2ilib.quant.save`, or the ``.pth`` file
            of a network that enlarges.
        backends: Names in :data:`i2ilib.deploy.BACKENDS`, one for each precision; the first is the default. "auto" is
            the fastest that gives exact integers, and PyTorch for a network that enlarges.
        batch: Patches of a batch.
        copies: Runners of each, for a device that takes several.

    Raises:
        I2IError: If a network cannot be served or run, or two backends compute in the same precision.
        IntegrityError: If a file is damaged.
    """
    served, pools = [], []
    for name, path in weights.items():
        network, meta = _read(Path(path))
        enlarges = isinstance(network, Enlarger)
        opened: dict[str, object] = {}
        for backend in backends:
            if backend == "auto":
                backend = "torch" if enlarges else fastest_exact()[0]
            precision = precision_of(backend)
            if precision in opened:
                raise I2IError("backends", expected="one for each precision", got=f"two for {precision}")
            if enlarges:
                found = stack.enter_context(open_network(path, backend=backend))
                pool = stack.enter_context(Pool([found.runner], batch=1))
                opened[precision] = (found, pool)
            else:
                runners = [stack.enter_context(_runner(backend, network, meta, path)) for _ in range(copies)]
                single = None
                if (
                    backend.startswith("openvino") and batch > 1
                ):  # it pads a small batch to the size it was compiled for
                    single = stack.enter_context(_runner(backend, network, meta, path))
                    single.prepare((1, 3, patches.PATCH, patches.PATCH))
                for runner in runners:
                    runner.prepare((batch, 3, patches.PATCH, patches.PATCH))
                pool = opened[precision] = stack.enter_context(Pool(runners, batch=batch, single=single))
            pools.append(pool)
        if enlarges:
            served.append(enlarging(name, opened))
        else:
            served.append(matting(name, opened, q_in=meta.get("q_in", 1), q_out=meta.get("q_out", 1)))
    return served, pools


def _read(path: Path) -> tuple[torch.nn.Module | Quantised, dict]:
    """A network that takes a picture, from any of the files, and what was kept with it."""
    if path.suffix.lower() == ".pth":
        return models.open_network(path), {}
    try:
        network, meta = models.load(path)
    except IntegrityError as first:
        try:
            return load(path), {}
        except IntegrityError:
            raise first from None
    if not isinstance(network, models.Generator | Enlarger):
        got = type(network).__name__
        raise I2IError(str(path), expected="a network from picture to picture", got=got)
    return network, meta


def _runner(backend: str, network: torch.nn.Module | Quantised, meta: dict, path: Path) -> Runner:
    example = torch.zeros(2, 3, patches.PATCH, patches.PATCH)
    xmodel = path.with_suffix(".xmodel")
    how = {"xmodel": xmodel if backend == "u50" and xmodel.exists() else None}
    if isinstance(network, Quantised):
        return make_runner(backend, network.folded, example, quantised=network, **how)
    quantised = None
    if backend in INTEGER:
        if not meta.get("fix_positions"):
            remedy = "Quantise it first (i2i quantise), or name a backend in float32."
            raise I2IError(str(path), expected="fix positions", got="none", remedy=remedy)
        quantised = with_positions(network, meta["fix_positions"], example)
    return make_runner(backend, network, example, quantised=quantised, **how)
