"""How many cycles a network takes on AMD's DPUCAHX8H, layer by layer, and how jobs in flight hide its latency.

The model is built from the public description of the engine; three constants that no document states are fitted to
throughputs that AMD published (:mod:`i2ilib.deploy.zoo` holds the networks and judges the result). Everything it
returns is modelled, nothing measured.

Documented: an engine multiplies 16 input channels x 16 output channels x 8 pixels in a cycle, moves 16 channels of a
pixel in a cycle, and has two groups of banks for 65,536 such words each; a core's engines run the same layer at the
same time, each on an image of its own, with the same weights.

Assumed, because the published networks are met best so:

- a layer takes the longest of computing, moving feature maps and reading weights, which overlap, and a start-up;
- the 8 pixels are of one column; the columns of a kernel are packed with the channels of an image; a transposed
  convolution multiplies no zeros (with them, the published pix2pix would be faster than possible);
- feature maps that fit a group of banks stay there; larger ones go to the card's memory and come back;
- activations, normalisation, padding, concat (an address), and a pooling that alone reads a convolution move nothing.

Source: DPUCAHX8H for Convolutional Neural Networks, PG367 1.0; the target description in Vitis AI (target_factory).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from torch import Tensor, nn

from ..errors import I2IError
from .layers import Layer, layers

# --- what is modelled ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Target:
    """A card: how many engines it has and what each does in a cycle. Vary it with :func:`dataclasses.replace`."""

    name: str
    engines: tuple[int, ...] = (3, 3)  # of each core; a core works on one image an engine at a time
    mhz: float = 300.0
    channels_in: int = 16  # multiplied in one cycle
    channels_out: int = 16
    pixels: int = 8  # of one column of the output
    bank_words: int = 8 * 8192  # 16 channels of a pixel each: the largest feature map that stays in the engine

    def __post_init__(self):
        values = (self.mhz, self.channels_in, self.channels_out, self.pixels, *self.engines)
        if not self.engines or min(values) <= 0 or self.bank_words < 0:
            raise I2IError("Target", expected="cores with engines, and positive sizes", got=self)

    @property
    def peak_gmac(self) -> float:
        """Multiply-accumulates of all engines, in 1e9 a second."""
        return sum(self.engines) * self.channels_in * self.channels_out * self.pixels * self.mhz / 1e3


U50 = Target("Alveo U50, 6 engines, 300 MHz")
U50LV = Target("Alveo U50LV, 9 engines, 275 MHz", engines=(4, 5), mhz=275.0)  # two cores; 4 and 5 is our reading
TARGETS = {"U50": U50, "U50LV": U50LV}


@dataclasses.dataclass(frozen=True)
class Constants:
    """What no document states: effective rates of the card's memory, and the start-up of a layer."""

    weights_per_cycle: float  # bytes that a core reads, for all its engines together
    features_per_cycle: float  # bytes that an engine reads or writes; its port could do 16
    start_cycles: float  # of every layer: instructions, first tile in, last tile out

    def __post_init__(self):
        if min(dataclasses.astuple(self)) <= 0:
            raise I2IError("Constants", expected="positive numbers", got=self)


CONSTANTS = Constants(weights_per_cycle=46.9, features_per_cycle=9.93, start_cycles=9030.0)  # zoo.refit() finds them


# --- cycles of a layer ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one batch (an image an engine) costs a core in one layer, in cycles."""

    layer: Layer
    compute: float
    load: float  # feature maps that come from the card's memory
    save: float  # and go there
    weights: float  # read once for all engines of the core
    start: float

    @property
    def cycles(self) -> float:
        """The longest of computing, moving feature maps and reading weights, after the start-up."""
        return max(self.compute, self.load + self.save, self.weights) + self.start

    @property
    def bound(self) -> str:
        """What the layer spends most of its time on: "compute", "features", "weights", "start" or, free, "none"."""
        parts = {"compute": self.compute, "features": self.load + self.save, "weights": self.weights}
        parts["start"] = self.start
        return max(parts, key=parts.get) if any(parts.values()) else "none"


def compute_cycles(layer: Layer, target: Target = U50) -> int:
    """Cycles in which an engine's multipliers work on one image of a layer.

    Channels are rounded up to 16 and the rows of a column to 8. Few channels (an image) are packed with the columns of
    the kernel: 3 channels of a 7x7 kernel take 7 x 2 steps instead of 49. A transposed convolution of stride s runs as
    s x s ordinary ones on the small map, one for each phase of the output, so that no zero is multiplied. Pooling, sums
    and resizing are done by other units, as fast as the data comes.
    """
    if layer.kind not in ("conv", "deconv", "linear"):
        return 0
    groups, (kh, kw) = layer.groups, layer.kernel
    ci = math.prod(layer.inputs[0]) if layer.kind == "linear" else layer.inputs[0][0]
    ci, co = ci // groups, layer.output[0] // groups
    if ci * 4 <= target.channels_in:
        steps = kh * math.ceil(kw * ci / target.channels_in)
    else:
        steps = kh * kw * math.ceil(ci / target.channels_in)
    _, height, width = (*(layer.inputs[0] if layer.kind == "deconv" else layer.output), 1, 1)[:3]
    pixels = math.ceil(height / target.pixels) * width
    return groups * steps * math.ceil(co / target.channels_out) * pixels


def costs(network: Sequence[Layer], target: Target = U50, *, constants: Constants = CONSTANTS) -> list[Cost]:
    """The cost of every layer of a network, in its order.

    Args:
        network: All layers, as :func:`layers` gives them: what stays on chip depends on who reads it.
        target: The card.
        constants: Rates of its memory, and start-up.
    """
    return [
        Cost(
            layer,
            compute,
            load / constants.features_per_cycle,
            save / constants.features_per_cycle,
            layer.weights / constants.weights_per_cycle,
            0.0 if layer.kind == "concat" else constants.start_cycles,
        )
        for layer, compute, load, save in _traffic(network, target)
    ]


def _traffic(network: Sequence[Layer], target: Target) -> list[tuple[Layer, int, int, int]]:
    """For each layer: cycles of compute, bytes loaded and bytes saved by an engine, in whole words of 16 channels."""
    readers: dict[int, list[int]] = {}
    for index, layer in enumerate(network):
        for source in layer.sources:
            readers.setdefault(source, []).append(index)

    def words(shape: tuple[int, ...]) -> int:
        channels, *pixels = shape
        return math.ceil(channels / target.channels_in) * math.prod(pixels)

    stays = [False] * len(network)  # in the banks: small, read again, and part of nothing that is too large
    for index in reversed(range(len(network))):
        after = [network[reader].kind for reader in readers.get(index, [])]
        joined = [stays[reader] for reader in readers.get(index, []) if network[reader].kind == "concat"]
        streamed = after == ["pool"] and network[index].kind in ("conv", "deconv")  # the pooling takes it as it comes
        stays[index] = streamed or (bool(after) and words(network[index].output) <= target.bank_words and all(joined))

    rows = []
    for index, layer in enumerate(network):
        load = save = 0
        if layer.kind != "concat":
            shapes = [(math.prod(layer.inputs[0]),)] if layer.kind == "linear" else layer.inputs
            pairs = zip(layer.sources, shapes, strict=True)
            load = sum(words(shape) for source, shape in pairs if source < 0 or not stays[source])
            save = 0 if stays[index] else words(layer.output)
        rows.append((layer, compute_cycles(layer, target), load * target.channels_in, save * target.channels_in))
    return rows


# --- a network, and jobs in flight ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """What a host sees that keeps some jobs in flight; a job is a batch with an image for every engine of a core."""

    jobs: int
    latency_ms: float  # of a job, from its submission to its result
    ii_ms: float  # initiation interval: time from one image's result to the next
    fps: float  # images a second

    @property
    def images(self) -> float:
        """In flight on average, by Little's law: throughput times latency."""
        return self.fps * self.latency_ms / 1e3


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A network on a target: modelled, not measured."""

    target: Target
    constants: Constants
    layers: tuple[Cost, ...]

    @property
    def cycles(self) -> float:
        """Of one batch on one core."""
        return sum(cost.cycles for cost in self.layers)

    @property
    def ms(self) -> float:
        """Of one batch on one core, milliseconds."""
        return self.cycles / self.target.mhz / 1e3

    @property
    def fps(self) -> float:
        """Images a second with all cores busy."""
        return 1e3 * sum(self.target.engines) / self.ms

    @property
    def macs(self) -> int:
        """Of one image."""
        return sum(cost.layer.macs for cost in self.layers)

    @property
    def utilisation(self) -> float:
        """Share of the multipliers' work that is the network's, 0 to 1, with all cores busy."""
        return self.fps * self.macs / 1e9 / self.target.peak_gmac

    def pipeline(self, jobs: int) -> Pipeline:
        """Latency, initiation interval and throughput when a new job is submitted as soon as one of ``jobs`` is done.

        A core takes one job at a time and needs :attr:`ms` for it. Up to as many jobs as cores, each more adds
        throughput; from then on jobs wait, and each more adds latency alone. Where cores differ, a job is an average
        one.

        Args:
            jobs: In flight at once, 1 or more.

        Raises:
            I2IError: If it is less.

        Example:
            >>> job = Cost(Layer("conv", "conv", 1, 1, ((1, 1, 1),), (1, 1, 1), (-1,)), 3e6, 0, 0, 0, 0)  # 10 ms
            >>> for n in (1, 2, 3):
            ...     step = Estimate(U50, CONSTANTS, (job,)).pipeline(n)
            ...     print(n, step.latency_ms, round(step.fps))
            1 10.0 300
            2 10.0 600
            3 15.0 600
        """
        if not isinstance(jobs, int) or jobs < 1:
            raise I2IError("jobs", expected="a whole number, 1 or more", got=jobs)
        busy = min(jobs, len(self.target.engines))
        fps = self.fps * busy / len(self.target.engines)
        return Pipeline(jobs, self.ms * jobs / busy, 1e3 / fps, fps)

    def frame(self) -> pd.DataFrame:
        """One row a layer: what it is, its parts in cycles, and what bounds it."""
        rows = [
            {
                "layer": cost.layer.name,
                "kind": cost.layer.kind,
                "output": "×".join(map(str, cost.layer.output)),
                "macs": cost.layer.macs,
                "compute": cost.compute,
                "features": cost.load + cost.save,
                "weights": cost.weights,
                "start": cost.start,
                "cycles": cost.cycles,
                "bound": cost.bound,
            }
            for cost in self.layers
        ]
        return pd.DataFrame(rows)


def estimate(
    network: Sequence[Layer] | nn.Module,
    target: Target = U50,
    *,
    example: Tensor | None = None,
    constants: Constants = CONSTANTS,
) -> Estimate:
    """Model a network on a card: cycles a layer, and from them time and throughput.

    Left out: the host's work before and after, operators that fall to the CPU (see :func:`i2ilib.quant.inspect`), tiles
    of maps too large for the banks beyond their traffic, and cores that disturb each other in memory.

    Args:
        network: Its layers, or a module.
        target: The card.
        example: (N, C, H, W), where a module is given.
        constants: Rates of the memory, and start-up.

    Raises:
        I2IError: If a module comes without an example, or there is no layer.

    Example:
        >>> import torch
        >>> from i2ilib.models import Generator
        >>> with torch.device("meta"):
        ...     found = estimate(Generator(), example=torch.empty(1, 3, 256, 256))
        >>> 335 < found.fps < 453  # a card was measured at 394.32 images a second
        True
    """
    if isinstance(network, nn.Module):
        if example is None:
            raise I2IError("estimate", expected="an example (N, C, H, W) with a module", got=None)
        network = layers(network, example)
    if not network:
        raise I2IError("estimate", expected="layers", got="none")
    return Estimate(target, constants, tuple(costs(network, target, constants=constants)))


# --- the three constants -------------------------------------------------------------------------

DOCUMENTED = Constants(weights_per_cycle=64.0, features_per_cycle=16.0, start_cycles=1000.0)  # where the fit starts


def fit(points: Iterable[tuple[Sequence[Layer], float]], target: Target = U50) -> Constants:
    """The constants that bring the modelled throughput of networks closest to what was measured.

    Least squares on the logarithm of the ratio (half and twice as fast are equally wrong), with a soft loss from 10 %
    on: one network that something else holds back shall not bend the others.

    Args:
        points: Layers of a network, and images a second with all cores busy.
        target: The card on which they were measured.

    Raises:
        I2IError: If there are fewer points than constants, or a throughput is not positive.
    """
    points = list(points)
    if len(points) < 3 or min(fps for _, fps in points) <= 0:
        raise I2IError(
            "fit", expected="3 networks or more, each with a positive throughput", got=[p[1] for p in points]
        )
    parts = []
    for network, _ in points:
        rows = [
            (compute, load + save, layer.weights, layer.kind != "concat")
            for layer, compute, load, save in _traffic(network, target)
        ]
        parts.append(np.array(rows, dtype=float).T)
    batches = np.array([target.mhz * 1e6 * sum(target.engines) / fps for _, fps in points])  # cycles of a batch

    def residuals(logarithms: np.ndarray) -> np.ndarray:
        weights, features, start = np.exp(logarithms)
        cycles = [
            np.maximum(np.maximum(compute, moved / features), read / weights).sum() + start * works.sum()
            for compute, moved, read, works in parts
        ]
        return np.log(np.array(cycles) / batches)

    begin = np.log(dataclasses.astuple(DOCUMENTED))
    return Constants(*np.exp(least_squares(residuals, begin, loss="soft_l1", f_scale=0.1).x).tolist())
