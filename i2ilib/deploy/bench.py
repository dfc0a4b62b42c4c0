"""Timing of runners: the same measurement for every target, taken in turns so that a busy moment hits all alike."""

from __future__ import annotations

import time

import numpy as np
import torch
from tqdm.auto import tqdm

from ..errors import I2IError
from .runner import Runner


def bench(
    runners: dict[str, Runner], batch: torch.Tensor, *, n: int = 20, peer: str | None = None, progress: bool = False
) -> dict[str, dict]:
    """Time a batch on several runners, round after round, one after the other.

    In every round each computes the batch twice, and the second time counts: the first comes after another network,
    which no frame of a stream does.

    Args:
        runners: By name; each is prepared for the batch and warmed up first.
        batch: (N, C, H, W) float32, the same for all.
        n: Rounds.
        peer: Name of the runner that the others are compared with, round by round.
        progress: Show a bar over the rounds.

    Returns:
        By name: ``ms_per_patch`` (median), ``p5`` and ``p95`` (ms per patch), ``patches_per_s`` (of the median),
        ``n``, ``batch``, and what the runner says of itself. With a peer also ``speedup`` (median over the rounds of
        the peer's time over its own), ``speedup_p5`` and ``speedup_p95``.

    Raises:
        I2IError: If the peer is not among the runners.
    """
    if peer is not None and peer not in runners:
        raise I2IError("peer", expected=" or ".join(runners), got=repr(peer))
    times: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():
        runner.prepare(tuple(batch.shape))
        runner.run(batch)
    for _ in tqdm(range(n), desc="time", unit="round", disable=not progress):
        for name, runner in runners.items():
            runner.run(batch)
            began = time.perf_counter()
            runner.run(batch)
            times[name].append((time.perf_counter() - began) * 1e3 / len(batch))
    result = {}
    for name, values in times.items():
        low, median, high = np.percentile(values, [5, 50, 95])
        result[name] = {
            "ms_per_patch": float(median),
            "p5": float(low),
            "p95": float(high),
            "patches_per_s": 1e3 / float(median),
            "n": n,
            "batch": len(batch),
            **runners[name].describe(),
        }
        if peer is not None:
            low, median, high = np.percentile(np.divide(times[peer], values), [5, 50, 95])
            result[name] |= {"speedup": float(median), "speedup_p5": float(low), "speedup_p95": float(high)}
    return result
