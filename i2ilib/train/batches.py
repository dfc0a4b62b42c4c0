"""Which patches a training step sees: a function of the seed and the step, prepared while the step before computes."""

from __future__ import annotations

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from ..errors import I2IError
from .parallel import World


class Patches(Protocol):
    """A data set whose items depend on the epoch: :class:`i2ilib.datasets.videomatte.PatchDataset`."""

    def __len__(self) -> int: ...

    def cut(self, index: int, epoch: int) -> tuple[torch.Tensor, ...]: ...


class Batches:
    """The batches of a training, by step; every epoch in its own random order, no patch twice in it.

    Args:
        data: Where patches come from.
        batch: Patches a step, over all processes.
        per_epoch: Patches an epoch, drawn anew each time; all when None.
        seed: Of the order.
        world: This process's place; it gets its share of every batch.

    Raises:
        I2IError: If an epoch has fewer patches than a batch, or a batch cannot be shared out evenly.
    """

    def __init__(
        self, data: Patches, *, batch: int, per_epoch: int | None = None, seed: int = 0, world: World | None = None
    ):
        self.data, self.batch, self.seed, self.world = data, batch, seed, world or World()
        self.patches = min(per_epoch or len(data), len(data))
        self.steps_per_epoch = self.patches // batch
        if not self.steps_per_epoch:
            raise I2IError("batch", expected=f"at most the {self.patches} patches of an epoch", got=batch)
        if batch % self.world.size:
            raise I2IError("batch", expected=f"a multiple of the {self.world.size} processes", got=batch)
        self._order = functools.lru_cache(maxsize=2)(self._draw)  # the next batch may be of the next epoch
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future] | None = None

    def __call__(self, step: int) -> tuple[torch.Tensor, ...]:
        """This process's part of the batch of a step, each tensor (N, ...)."""
        ahead, self._ahead = self._ahead, None
        made = ahead[1].result() if ahead and ahead[0] == step else self._make(step)
        self._ahead = step + 1, self._pool.submit(self._make, step + 1)
        return made

    def _make(self, step: int) -> tuple[torch.Tensor, ...]:
        epoch, at = divmod(step, self.steps_per_epoch)
        share = self.batch // self.world.size
        first = at * self.batch + self.world.rank * share
        items = [self.data.cut(int(i), epoch) for i in self._order(epoch)[first : first + share]]
        return tuple(torch.stack(parts) for parts in zip(*items, strict=True))

    def _draw(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).choice(len(self.data), self.patches, replace=False)
