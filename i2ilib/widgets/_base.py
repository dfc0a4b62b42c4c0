"""What the views share: a figure as PNG, results kept while their network lives, mattes from what a network gives."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Hashable, MutableMapping
from weakref import WeakKeyDictionary

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from .. import colour
from ..errors import I2IError

KEPT = 32  # results a network: mattes and single tensors

_results: MutableMapping[object, dict] = WeakKeyDictionary()


def png(figure: Figure) -> bytes:
    """The figure as PNG; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def kept(owner: object, key: Hashable, make: Callable[[], object]):
    """What ``make`` gives, made once for ``owner`` and ``key``; the oldest results go first, and all with the owner."""
    results = _results.setdefault(owner, {})
    if key not in results:
        value = make()
        while len(results) >= KEPT:
            results.pop(next(iter(results)))
        results[key] = value
    return results[key]


def digest(*tensors: torch.Tensor) -> bytes:
    """A name for the content of tensors: one changed in place is another."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        found.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().data)
    return found.digest()


def read_matte(out: torch.Tensor, q_out: int) -> torch.Tensor:
    """(1, H, W) alpha [0, 1] of what a matting network gives, (1, C, H, W) read as [-q_out, q_out]."""
    return colour.from_fixed(out.detach().mean(1), q_out).clamp(0, 1)


def as_truth(truth: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``truth`` as (1, H, W), held against ``x``."""
    if x.ndim != 4 or len(x) != 1 or not x.is_floating_point():
        got = f"{tuple(x.shape)} {x.dtype}"
        raise I2IError("x", expected="one floating-point patch (1, C, H, W)", got=got, remedy="Pick one of the batch.")
    flat = truth[0] if truth.ndim == 4 and len(truth) == 1 else truth
    if flat.shape != (1, *x.shape[-2:]):
        want = f"(1, 1, {x.shape[-2]}, {x.shape[-1]}), the alpha of x"
        raise I2IError("truth", expected=want, got=tuple(truth.shape))
    return flat.detach().float().cpu()
