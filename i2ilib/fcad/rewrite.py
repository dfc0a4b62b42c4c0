"""A graph rewrite: what a large kernel computes on a map of repeated pixels, small kernels compute on the map before.

Behind a nearest up-sampling by s, a kernel of K rows meets only about K / s different ones. So one K × K convolution on
the large map is s² convolutions on the small one, one for each place in a block of s × s pixels, with kernels whose
weights are sums of the large one's; ``pixel_shuffle`` sets the blocks together. 5 × 5 behind a doubling becomes four of
3 × 3: 9 products in the place of 25, and 1.44 times the weights.

**Exact in the integers** where each output is rounded once: the sums are the same numbers. That needs weights that are
wider (``Layer.wider``: 2 bits where four are added), so two products no longer share a multiplier. Where kernels are
rounded to the old width instead, products pair again and results differ as after any other quantisation: calibrate and
measure anew. **Not equal** where the large map is padded by reflection, which the small one cannot tell (zeros and
repeated edges are fine); nor where the up-sampling rounds between two grids.
"""

from __future__ import annotations

import dataclasses
from math import ceil, prod

import numpy as np

from .arguments import expect
from .graph import Graph, Layer


def small_kernels(weight: np.ndarray, scale: int = 2) -> np.ndarray:
    """The kernels before an up-sampling that give what one gives behind it.

    Args:
        weight: (Co, Ci, K, K), K odd; integers stay integers.
        scale: Of the up-sampling.

    Returns:
        (Co · scale², Ci, S, S) in the order of ``pixel_shuffle``; S odd, so padding is S // 2. Where S exceeds
        what a place needs (K = 3: two of three rows), the rest is zeros.

    Example:
        >>> small_kernels(np.arange(9).reshape(1, 1, 3, 3))[0, 0].tolist()
        [[0, 3, 0], [9, 24, 0], [0, 0, 0]]
    """
    co, ci, k, _ = weight.shape
    taps = _taps(k, scale)
    span = _span(k, scale)
    rows = np.zeros((scale, span, k), weight.dtype)  # which rows of the large kernel meet which of the small map
    for place, row in enumerate(taps):
        rows[place, np.array(row) + span // 2, np.arange(k)] = 1
    made = np.einsum("ayr,bxs,oirs->oabiyx", rows, rows, weight)
    return made.reshape(co * scale**2, ci, span, span)


def _taps(kernel: int, scale: int) -> list[list[int]]:
    """For each place in a block, the row of the small map that each row of the kernel meets."""
    half = kernel // 2
    return [[(place + offset) // scale for offset in range(-half, half + 1)] for place in range(scale)]


def _span(kernel: int, scale: int) -> int:
    """Rows of the small map that all places of a block meet together, the same number on both sides."""
    return 2 * max(abs(row) for taps in _taps(kernel, scale) for row in taps) + 1


def fold(graph: Graph, *, exact: bool = True) -> Graph:
    """Compute convolutions behind nearest up-samplings before them, in smaller pieces.

    Taken are convolutions of an odd square kernel, stride 1 and "same" padding, behind one or more up-samplings by a
    whole number that repeat pixels, wherever that makes fewer products. A 1 × 1 convolution simply goes before the
    up-sampling. An up-sampling that others read stays for them.

    Args:
        graph: Of :func:`~i2ilib.fcad.graph.analyse`.
        exact: Keep the sums' kernels as they are, wider than the others; else they are rounded to the same width.

    Returns:
        The graph with fewer products. Shapes of all other layers, and what the network computes, stay.

    Example:
        >>> import torch
        >>> from i2ilib.fcad.graph import analyse
        >>> net = torch.nn.Sequential(torch.nn.Upsample(None, 2), torch.nn.Conv2d(4, 8, 5, padding=2))
        >>> before = analyse(net, torch.zeros(1, 4, 8, 8))
        >>> after = fold(before)
        >>> after.macs / before.macs, [(layer.kind, layer.out_shape) for layer in after.layers]
        (0.36, [('conv', (32, 8, 8)), ('shuffle', (8, 16, 16))])
    """
    found = {layer.name: layer for layer in expect("graph", graph, Graph, "Analyse the network first.").layers}
    renamed: dict[str, str] = {}
    layers: list[Layer] = []
    for layer in graph.layers:
        source, scale = _behind(found, layer)
        source = renamed.get(source, source)
        layer = dataclasses.replace(layer, inputs=tuple(renamed.get(name, name) for name in layer.inputs))
        if scale == 1 or not (made := _folded(layer, source, scale, exact)):
            layers.append(layer)
            continue
        layers += made
        renamed[layer.name] = made[-1].name
    outputs = tuple(renamed.get(name, name) for name in graph.outputs)
    folded = dataclasses.replace(graph, layers=tuple(layers), outputs=outputs)
    needed = {layer.name for branch in folded.branches for layer in branch.layers}
    return dataclasses.replace(folded, layers=tuple(layer for layer in layers if layer.name in needed))


def _behind(found: dict[str, Layer], layer: Layer) -> tuple[str, int]:
    """The map behind the up-samplings that a layer reads, and by how much they repeat it."""
    source, scale, size = layer.inputs[0], 1, layer.in_shape
    while (up := found.get(source)) and up.kind == "upsample" and up.nearest and isinstance(up.scale, int):
        if up.out_shape != size:  # reshaped or cropped on the way
            break
        source, scale, size = up.inputs[0], scale * up.scale, up.in_shape
    return source, scale


def _folded(layer: Layer, source: str, scale: int, exact: bool) -> list[Layer] | None:
    """The layers in a convolution's place, or None where it must stay."""
    kernel = layer.kernel[0]
    fits = layer.kind == "conv" and layer.stride == layer.dilation == 1 and layer.kernel == (kernel, kernel)
    same = layer.in_shape[1:] == layer.out_shape[1:] and kernel % 2 == 1
    if not fits or not same:
        return None
    ci, (co, height, width) = layer.in_shape[0], layer.out_shape
    small = (height // scale, width // scale)
    if kernel == 1:
        if layer.untied:
            return None
        made = dataclasses.replace(
            layer, inputs=(source,), in_shape=(ci, *small), out_shape=(co, *small), macs=layer.weights * prod(small)
        )
        name = f"{layer.name}.up"
        up = Layer(name, "upsample", (layer.name,), made.out_shape, layer.out_shape, scale=scale, nearest=True)
        return [made, up]
    taps = max(len(set(rows)) for rows in _taps(kernel, scale))
    weights = layer.weights // kernel**2 * taps**2 * scale**2
    if weights * prod(small) >= layer.macs:
        return None
    added = max(rows.count(row) for rows in _taps(kernel, scale) for row in rows) ** 2
    span = _span(kernel, scale)
    made = dataclasses.replace(
        layer, inputs=(source,), in_shape=(ci, *small), out_shape=(co * scale**2, *small), kernel=(taps, taps),
        span=(span, span) if span > taps else None, weights=weights, macs=weights * prod(small),
        wider=ceil(np.log2(added)) if exact else 0,
    )  # fmt: skip
    name = f"{layer.name}.blocks"
    return [made, Layer(name, "shuffle", (layer.name,), made.out_shape, layer.out_shape, scale=scale)]
