"""Data-parallel training by torchrun: what one process with the whole batch would compute, on several.

Every process takes its share of each batch. Two layers look beyond a single patch, and are made to see the whole batch:
BatchNorm by summing its statistics over the processes, dropout by drawing the whole batch's mask everywhere and using
its own rows. (``torch.nn.SyncBatchNorm`` does the first on GPUs alone.)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import I2IError


class World(NamedTuple):
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0


@contextlib.contextmanager
def world(device: str = "cpu") -> Iterator[tuple[World, str]]:
    """Join the processes that ``torchrun`` started, over NCCL on GPUs and Gloo on CPUs; alone without it.

    Args:
        device: Where to train, "cpu" or "cuda".

    Yields:
        This process's place, and its own device.

    Raises:
        I2IError: If there are fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(), device
        return
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise I2IError(
                "torchrun",
                expected=f"at most {torch.cuda.device_count()} processes, one for each GPU",
                got=f"process {local + 1}",
                remedy="Lower --nproc-per-node, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU.",
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(torch.distributed.get_rank(), torch.distributed.get_world_size()), device
    finally:
        torch.distributed.destroy_process_group()


def distribute(module: nn.Module, world: World) -> nn.Module:
    """A module whose BatchNorm and dropout see the whole batch, wrapped to average its gradients.

    Args:
        module: Changed in place; parameters and their names stay.
        world: From :func:`world`.

    Returns:
        ``DistributedDataParallel`` around ``module``; ``module`` itself in a world of one.
    """
    if world.size == 1:
        return module
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                child.__class__ = _WholeBatchNorm
            elif isinstance(child, nn.Dropout):
                setattr(parent, name, _WholeBatchDropout(child.p, world))
    # statistics are the same everywhere by construction
    return nn.parallel.DistributedDataParallel(module, forward_sync_buffers=False)


def average(values: dict[str, torch.Tensor], world: World) -> dict[str, float]:
    """The mean of each value over the processes."""
    together = torch.stack([value.detach().float() for value in values.values()])
    if world.size > 1:
        torch.distributed.all_reduce(together)
    return dict(zip(values, (together / world.size).tolist(), strict=True))


class _WholeBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose statistics are those of the batch over all processes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        values, n = x.float(), x[:, 0].numel() * torch.distributed.get_world_size()
        mean = _Sum.apply(values.sum((0, 2, 3))) / n
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / n
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over the processes; so is its gradient."""

    @staticmethod
    def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    backward = forward


class _WholeBatchDropout(nn.Module):
    """Dropout that zeroes what it would zero in one process: every process draws the mask of the whole batch."""

    def __init__(self, p: float, world: World):
        super().__init__()
        self.p, self.world = p, world

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        shape = (len(x) * self.world.size, *x.shape[1:])
        whole = torch.ones(shape, dtype=x.dtype, device=x.device)
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            whole = whole.contiguous(memory_format=torch.channels_last)
        return x * F.dropout(whole, self.p).chunk(self.world.size)[self.world.rank]
