"""Frames of any size through a network that enlarges: padded by replication, in tiles that join without a seam."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from .. import colour, models, patches
from ..deploy import INTEGER, Runner, check_backend, make_runner
from ..deploy.runner import check_batch
from ..errors import I2IError
from ..models.layers import Enlarger
from ..quant import output_aware, quantise, with_positions
from ..runtime import this_machine

K = TypeVar("K")
_PIECE = 96  # most side of what INT8 is calibrated on, pixels: a multiple of 8
_MOST_REACH = 1024  # pixels; a network that sees further looks at the whole picture


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that enlarges, in two parts: the detail, tile by tile on a runner; and the rest, on whole frames.

    Attributes:
        runner: Gives the detail (N, 3, s H, s W) of (N, 3, H, W) in [-1, 1]; None where there is none to add.
        finish: (detail or None, input) of a whole frame to its result (1, 3, H', W') in [-1, 1].
        scale: s, of the detail.
        factor: Of the result: H' is ``int(H * factor)``.
        multiple: H and W of the runner's input are multiples of it.
        reach: Pixels of the input beyond a tile's edge that change the tile; a multiple of ``multiple``. None: all,
            so there are no tiles.
        bytes_a_pixel: Memory for each pixel of the input, roughly.
        identity: What it is, as JSON values; results of another one are another job's.
    """

    runner: Runner | None
    finish: Callable[[torch.Tensor | None, torch.Tensor], torch.Tensor]
    scale: int
    factor: Fraction
    multiple: int = 8
    reach: int | None = 0
    bytes_a_pixel: int = 64
    identity: dict = dataclasses.field(default_factory=dict)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result."""
        return int(height * self.factor), int(width * self.factor)


@contextlib.contextmanager
def open_network(
    model: str | os.PathLike | nn.Module | int,
    *,
    backend: str = "torch",
    calibration: Callable[[], Iterable[torch.Tensor]] | None = None,
    progress: bool = False,
) -> Iterator[Network]:
    """A network that is ready to enlarge; leaving the block frees the device.

    The convolutions run on the backend, with their adapters folded. The bicubic part, the sum and the clamp are
    computed in float32 on whole frames: no integer engine runs them, and a bicubic filter that is not a power of two
    rounds differently in every tile.

    Args:
        model: A ``.safetensors`` file, a ``.pth`` file of the authors of SRUNet, an SRUNet or UNet in memory; or a
            whole number, for bicubic enlargement and no network.
        backend: A name in :data:`i2ilib.deploy.BACKENDS`.
        calibration: Gives batches (N, 3, H, W) in [-1, 1] for INT8 where the file keeps no fix positions.
        progress: Show a bar while fix positions are found, which takes a minute or more for a large network.

    Raises:
        I2IError: If the file is missing or holds another kind of network, or the backend is unknown or cannot run here.
        IntegrityError: If the file is damaged.
    """
    if isinstance(model, int):
        if not 1 <= model <= 16:
            raise I2IError("scale", expected="a whole number from 1 to 16", got=model)
        yield Network(None, _bicubic(model), model, Fraction(model), 1, identity={"model": f"bicubic {model}x"})
        return
    net, positions, identity = _loaded(model)
    positions = positions if backend in INTEGER else None
    core = _core(net, fold=positions is None)
    if backend == "torch" and torch.backends.mkldnn.is_available():
        core = _Steady(core)
    if backend in INTEGER and positions is None:
        if calibration is None:
            raise I2IError(str(model), expected="fix positions, or frames to calibrate on", got="neither")
        pieces = [batch[..., :_PIECE, :_PIECE] for batch in calibration()]
        core, positions = for_integers(core, pieces, progress=progress)
    config = net.config
    factor = Fraction(config.scale) * Fraction(getattr(config, "downsample", None) or 1).limit_denominator(64)

    def make(example: torch.Tensor) -> Runner:
        quantised = with_positions(core, positions, example) if backend in INTEGER else None
        return make_runner(backend, core, example, quantised=quantised)

    check_backend(backend)  # now, not at the first frame
    with Fitting(make) as runner:
        yield Network(
            runner,
            functools.partial(_finish, net),
            config.scale,
            factor,
            reach=reach(core, scale=config.scale),
            bytes_a_pixel=_bytes_a_pixel(core),
            identity=identity | {"backend": backend},
        )


class Fitting:
    """A :class:`~i2ilib.deploy.Runner` that is made anew for each height and width: engines compile for one.

    Args:
        make: From an example (N, C, H, W) to a runner for its size.
    """

    def __init__(self, make: Callable[[torch.Tensor], Runner]):
        self.make, self.made, self.size = make, contextlib.ExitStack(), None
        self.runner: Runner | None = None

    def _fit(self, shape: Sequence[int]) -> Runner:
        if tuple(shape[1:]) != self.size:
            self.made.close()  # waits for what is in flight
            self.runner = self.made.enter_context(self.make(torch.zeros(2, *shape[1:])))
            self.size = tuple(shape[1:])
        return self.runner

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        self._fit(shape).prepare(shape)

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        return self.submit(batch).result()

    def submit(self, batch: torch.Tensor) -> Future[torch.Tensor]:
        check_batch(batch)
        return self._fit(batch.shape).submit(batch)

    def describe(self) -> dict[str, object]:
        return self.runner.describe() if self.runner else {}

    def __enter__(self) -> Fitting:
        return self

    def __exit__(self, *exception: object) -> None:
        self.made.close()


def _loaded(model: str | os.PathLike | nn.Module) -> tuple[Enlarger, dict[str, int] | None, dict]:
    """The network, its fix positions if it keeps any, and what it is."""
    positions, identity = None, {}
    if isinstance(model, nn.Module):
        net = model
        total = hashlib.sha256(repr(getattr(net, "config", "")).encode())
        for value in net.state_dict().values():
            total.update(value.detach().cpu().contiguous().numpy().tobytes())
        identity = {"model": type(net).__name__, "weights": total.hexdigest()}
    else:
        path = Path(model)
        if path.suffix.lower() == ".pth":
            net = models.load_published(path)
        else:
            net, meta = models.load(path)
            positions = meta.get("fix_positions")
        identity = {"model": type(net).__name__, "weights": hashlib.sha256(path.read_bytes()).hexdigest()}
    if not isinstance(net, Enlarger):
        raise I2IError(
            "model" if isinstance(model, nn.Module) else str(model),
            expected="a network that enlarges (SRUNet, UNet)",
            got=type(net).__name__,
        )
    return net.eval(), positions, identity


def core_of(model: str | os.PathLike | nn.Module) -> nn.Module:
    """The part of a network that a runner computes, in plain PyTorch: the detail, from folded convolutions.

    Args:
        model: As in :func:`open_network`, but for a number.
    """
    return _core(_loaded(model)[0], fold=True)


def for_integers(
    core: nn.Module, batches: Iterable[torch.Tensor], *, progress: bool = False
) -> tuple[nn.Module, dict[str, int]]:
    """A core with its channels balanced and its biases corrected for INT8, and fix positions that serve its output.

    Args:
        core: From :func:`core_of`; stays as it is.
        batches: (N, 3, H, W) in [-1, 1], a few and small.
        progress: Show a bar.

    Returns:
        A float network that differs by the correction of its biases alone, and the positions that belong to it, for
        :func:`i2ilib.quant.with_positions`.
    """
    batches = list(batches)
    quantised = quantise(core, batches, equalise=True, correct_bias=True)
    quantised = output_aware(quantised, batches, progress=progress)
    repaired = copy.deepcopy(core)
    repaired.load_state_dict({name: quantised.folded.get_parameter(name) for name in core.state_dict()})
    return repaired, quantised.fix_positions


def _core(net: Enlarger, *, fold: bool) -> nn.Module:
    """The part for the runner: detail only; folded, unless its fix positions belong to the network as it is."""
    if fold and not net.config.folded:
        net = models.reparametrise(net)
    if not net.config.residual:
        return net
    core = type(net)(dataclasses.replace(net.config, residual=False))
    core.load_state_dict(net.state_dict())
    return core.eval()


class _Steady(nn.Module):
    """A network in PyTorch that rounds alike in tiles of any size.

    Convolutions by oneDNN: PyTorch takes it for more than 20480 numbers only, and for fewer a kernel that rounds
    differently by size. Channels last: there one pixel of a bilinear enlargement is computed as any other is, while
    rows of planes have ends that are computed apart.
    """

    def __init__(self, core: nn.Module):
        super().__init__()
        self.core = copy.deepcopy(core)
        for module in self.core.modules():
            if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
                module.__class__ = _OneDnn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.core(x.contiguous(memory_format=torch.channels_last)).contiguous()


class _OneDnn(nn.Conv2d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        where = (self.padding, self.stride, self.dilation)
        return torch.ops.aten.mkldnn_convolution(x, weight, bias, *where, self.groups)


@torch.inference_mode()
def _finish(net: Enlarger, detail: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return net.host(detail, x)


def _bicubic(scale: int) -> Callable[[torch.Tensor | None, torch.Tensor], torch.Tensor]:
    @torch.inference_mode()
    def finish(_: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
        y = F.interpolate(x, scale_factor=float(scale), mode="bicubic", align_corners=False)
        return y.clamp(-1, 1)

    return finish


@torch.no_grad()
def reach(network: Callable[[torch.Tensor], torch.Tensor], *, scale: int, multiple: int = 8) -> int | None:
    """How far a network sees beyond the edges of a block of pixels, found by not-a-number.

    Every operator passes NaN on, whatever its weights, so a block of NaN comes out as large as its influence is. Data
    beyond the edge of a tile have no influence on what lies further in than that, and neither have the zeros with
    which its convolutions replace them.

    Args:
        network: (1, 3, H, W) to (1, C, scale H, scale W), in PyTorch.
        scale: How much larger the output is.
        multiple: Side of the block, pixels, and of the grid on which tiles may lie.

    Returns:
        Pixels of the input, a multiple of ``multiple``; None if there is no end to it.
    """
    blocks = 8  # on either side
    while blocks * multiple <= _MOST_REACH:
        side = (2 * blocks + 1) * multiple
        x = torch.zeros(1, 3, side, side)
        x[..., blocks * multiple : -blocks * multiple, blocks * multiple : -blocks * multiple] = math.nan
        hit = torch.isnan(network(x)).any(1)[0]
        found = [torch.nonzero(hit.any(axis)).flatten() for axis in (0, 1)]
        if not len(found[0]):
            return 0
        first = min(int(places[0]) for places in found)
        last = max(int(places[-1]) for places in found)
        if first > 0 and last < scale * side - 1:
            far = max(blocks * multiple - first / scale, (last + 1) / scale - (blocks + 1) * multiple)
            return multiple * math.ceil(max(far, 0) / multiple)
        blocks *= 2
    return None


@torch.no_grad()
def _bytes_a_pixel(core: nn.Module) -> int:
    """Memory that a network needs for a pixel: twice its four largest maps, since engines copy them too."""
    sizes, side = [], 64
    watched = [module for module in core.modules() if not list(module.children())]
    hooks = [m.register_forward_hook(lambda _m, _i, out: sizes.append(4 * out.numel())) for m in watched]
    core(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return 2 * sum(sorted(sizes)[-4:]) // side**2


# --- tiles -------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """What a tile reads and what it gives, along both sides, in pixels of the padded frame."""

    read: tuple[slice, slice]
    give: tuple[slice, slice]


def tiles(
    height: int, width: int, network: Network, *, tile: int | None = None, memory_gib: float | None = None
) -> list[Tile]:
    """Tiles of one size that cover a frame, and give every pixel as the whole frame would.

    Args:
        height: Of the padded frame, pixels; a multiple of the network's.
        width: Likewise.
        network: For its reach, multiple and need of memory.
        tile: Longest side of a tile, pixels; by default as long as memory lasts.
        memory_gib: What a tile may need; a quarter of the machine's by default.

    Raises:
        I2IError: If the tile is too small to give anything, or the memory too small for a tile.
    """
    m, r = network.multiple, network.reach
    if tile is None:
        memory = this_machine().memory_gib / 4 if memory_gib is None else memory_gib
        most = memory * 2**30 / network.bytes_a_pixel
        if height * width <= most or r is None:
            tile = max(height, width)
        else:
            tile = max(int(math.sqrt(most)), math.floor(most / max(height, width)))
    if r is None and tile < max(height, width):
        raise I2IError("tile", expected="none: every pixel of this network needs the whole frame", got=tile)
    tile = tile // m * m
    if tile < max(height, width) and tile < 2 * r + m:
        raise I2IError(
            "tile",
            expected=f"at least {2 * r + m} pixels: the network sees {r} beyond each edge",
            got=tile,
            remedy="Choose larger tiles, or allow more memory.",
        )
    rows, columns = (_spans(size, min(tile, size), r or 0) for size in (height, width))
    return [Tile((a, b), (c, d)) for (a, c), (b, d) in itertools.product(rows, columns)]


def _spans(size: int, tile: int, reach: int) -> list[tuple[slice, slice]]:
    """Along one side: what each tile reads, and what it gives."""
    begins = patches.starts(size, tile, tile - 2 * reach) if tile < size else [0]
    joints = [0, *(begin + reach for begin in begins[1:]), size]
    return [(slice(b, b + tile), slice(*give)) for b, give in zip(begins, itertools.pairwise(joints), strict=True)]


def enlarge(
    network: Network, rgb: torch.Tensor, *, tile: int | None = None, memory_gib: float | None = None
) -> torch.Tensor:
    """One frame, enlarged.

    Args:
        network: From :func:`open_network`.
        rgb: (1, 3, H, W) float32, sRGB codes in [0, 1]; any H and W.
        tile: Longest side of a tile, pixels; by default as long as memory lasts.
        memory_gib: What a tile may need.

    Returns:
        (1, 3, H', W') float32 in [0, 1].

    Example:
        >>> with open_network(3) as network:
        ...     enlarge(network, torch.zeros(1, 3, 5, 7)).shape
        torch.Size([1, 3, 15, 21])
    """
    ((_, out),) = enlarge_all(network, [(None, rgb)], tile=tile, memory_gib=memory_gib)
    return out


def enlarge_all(
    network: Network,
    frames: Iterable[tuple[K, torch.Tensor]],
    *,
    batch: int = 1,
    tile: int | None = None,
    memory_gib: float | None = None,
) -> Iterator[tuple[K, torch.Tensor]]:
    """Frames of one size, enlarged in order; while one is finished the runner computes the next.

    Args:
        network: From :func:`open_network`.
        frames: A key and a frame each, as in :func:`enlarge`.
        batch: Frames that go through the runner at once.
        tile: Longest side of a tile, pixels; by default as long as memory lasts.
        memory_gib: What the tiles of a batch may need.

    Yields:
        The key and the enlarged frame.
    """
    if batch < 1:
        raise I2IError("batch", expected="at least 1", got=batch)
    memory_gib = (this_machine().memory_gib / 4 if memory_gib is None else memory_gib) / batch
    waiting: deque = deque()
    frames = iter(frames)
    while group := list(itertools.islice(frames, batch)):
        keys, pictures = zip(*group, strict=True)
        x = colour.to_fixed(torch.cat(pictures), 1)
        waiting.append((keys, x, _begin(network, x, tile, memory_gib)))
        if len(waiting) > 1:
            yield from _end(network, *waiting.popleft())
    while waiting:
        yield from _end(network, *waiting.popleft())


def _begin(network: Network, x: torch.Tensor, tile: int | None, memory_gib: float) -> list:
    """Tiles and the futures of their details."""
    if network.runner is None:
        return []
    height, width = x.shape[-2:]
    padded = F.pad(x, (0, -width % network.multiple, 0, -height % network.multiple), mode="replicate")
    grid = tiles(*padded.shape[-2:], network, tile=tile, memory_gib=memory_gib)
    return [(part, network.runner.submit(padded[..., part.read[0], part.read[1]].contiguous())) for part in grid]


def _end(network: Network, keys: Sequence[K], x: torch.Tensor, parts: list) -> Iterator[tuple[K, torch.Tensor]]:
    s, (height, width) = network.scale, x.shape[-2:]
    detail = torch.empty(len(x), 3, s * height, s * width) if parts else None
    for part, future in parts:
        out = future.result()
        (top, left), (y, x_) = ([side.start for side in sides] for sides in part)
        bottom, right = min(part.give[0].stop, height), min(part.give[1].stop, width)
        inner = out[..., s * (y - top) : s * (bottom - top), s * (x_ - left) : s * (right - left)]
        detail[..., s * y : s * bottom, s * x_ : s * right] = inner
    for i, key in enumerate(keys):
        one = None if detail is None else detail[i : i + 1]
        yield key, colour.from_fixed(network.finish(one, x[i : i + 1]), 1).clamp(0, 1)
