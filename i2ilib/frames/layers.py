"""Which channels of a file are the picture: the colour layer among what a renderer writes into one OpenEXR."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

from ..errors import FrameError

# what renderers and compositors call the layer to look at; the one without a name comes first
USUAL = ("", "rgba", "rgb", "beauty", "combined", "main", "color", "colour", "default", "c", "ci")
_LONG = {"red": "R", "green": "G", "blue": "B", "alpha": "A"}
_GREY = {"Y", "L", "I", "GREY", "GRAY", "LUMINANCE"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """Channels that belong together.

    Attributes:
        part: Index of the part (the subimage) that holds them.
        name: ``beauty`` of ``beauty.R``; of a part's name where there are several; else empty.
        channels: Channel of the part by its last name: R, G, B, A, Y, Z, …
    """

    part: int
    name: str
    channels: dict[str, int]

    @property
    def colours(self) -> tuple[int, ...] | None:
        """Indices of red, green and blue in the part; None if one is missing."""
        found = tuple(self.channels[c] for c in "RGB" if c in self.channels)
        return found if len(found) == 3 else None

    def __str__(self) -> str:
        return f"{self.name or '(no name)'}: {' '.join(self.channels)}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The channels to read: three colours or one grey, and alpha."""

    part: int
    rgb: tuple[int, ...]
    alpha: int | None
    notes: tuple[str, ...] = ()


def layers(parts: Iterable[tuple[str, Sequence[str]]]) -> list[Layer]:
    """The layers of a file in its own order.

    Args:
        parts: Name and channel names of every part.

    Example:
        >>> [str(layer) for layer in layers([("", ["A", "B", "G", "R", "depth.Z"])])]
        ['(no name): A B G R', 'depth: Z']
    """
    parts = list(parts)
    found: dict[tuple[int, str], dict[str, int]] = {}
    for part, (title, channels) in enumerate(parts):
        for index, channel in enumerate(channels):
            name, _, last = channel.rpartition(".")
            name = name or (title if len(parts) > 1 else "")
            last = _LONG.get(last.casefold(), last.upper())
            found.setdefault((part, name), {}).setdefault(last, index)
    often = Counter(name for _, name in found)  # a layer that several parts have carries the part's name too
    named = {key: key[1] if often[key[1]] == 1 else f"{parts[key[0]][0]}.{key[1]}".strip(".") for key in found}
    return [Layer(part, named[part, name], channels) for (part, name), channels in found.items()]


def choose(source: str, found: Sequence[Layer], *, wanted: str | None = None, any_grey: bool = False) -> Choice:
    """The colour layer of a file.

    It is the layer that was asked for; else the one without a name, or the only one called as renderers call it (the
    first of :data:`USUAL` that there is); else the only one with red, green and blue; else a luminance. Alpha is taken
    from the same layer only.

    Args:
        source: The file, for errors.
        found: From :func:`layers`.
        wanted: Name of a layer, or of one channel to be read as grey.
        any_grey: Whether a file of one channel is grey whatever its name, as in all formats but OpenEXR.

    Raises:
        FrameError: If there is no such layer, or none or several that could be the colour; lists the layers.
    """
    refused = FrameError(
        source,
        expected="a layer with R, G and B" if wanted is None else f"a layer {wanted!r} with R, G and B or one channel",
        got="; ".join(map(str, found)),
        remedy="Choose one by its name, or one channel as grey (--layer; layer= in Python).",
    )
    if wanted is not None:
        return _named(found, wanted, refused)
    coloured = [layer for layer in found if layer.colours]
    usual = {name: index for index, name in reversed(list(enumerate(USUAL)))}
    ranks = [usual.get(_last(layer.name), len(USUAL)) for layer in coloured]
    best = [layer for layer, rank in zip(coloured, ranks, strict=True) if rank == min(ranks)]
    if len(best) == 1:
        layer = best[0]
        said = (f"colour is its layer {layer.name}",) if layer.name else ()
        return Choice(layer.part, layer.colours, layer.channels.get("A"), said)
    grey = [layer for layer in found if len(layer.channels.keys() - {"A"}) == 1]
    if not coloured and len(grey) == 1 and (any_grey or _GREY & grey[0].channels.keys()):
        return _grey(grey[0])
    raise refused


def _last(name: str) -> str:
    return name.rpartition(".")[2].casefold()


def _grey(layer: Layer) -> Choice:
    (index,) = (index for name, index in layer.channels.items() if name != "A")
    return Choice(layer.part, (index,), layer.channels.get("A"))


def _named(found: Sequence[Layer], wanted: str, refused: FrameError) -> Choice:
    for layer in found:
        if layer.name.casefold() == wanted.casefold():
            if layer.colours:
                return Choice(layer.part, layer.colours, layer.channels.get("A"))
            if len(layer.channels.keys() - {"A"}) == 1:
                return _grey(layer)
            if set(layer.channels) == {"A"}:
                return Choice(layer.part, (layer.channels["A"],), None)
    name, _, channel = wanted.rpartition(".")
    for layer in found:
        index = layer.channels.get(_LONG.get(channel.casefold(), channel.upper()))
        if layer.name.casefold() == name.casefold() and index is not None:
            return Choice(layer.part, (index,), None)
    raise refused
