"""One small interface to every target: prepare for a shape, run a batch, keep several in flight, say what ran."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, Self, runtime_checkable

import torch

from ..errors import I2IError


@runtime_checkable
class Runner(Protocol):
    """A network that is ready to run somewhere.

    Use it as a context manager; leaving the block waits for what is in flight and frees the device.
    """

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Compile and warm up for batches of ``shape`` (N, C, H, W). Other shapes still run, after preparing."""

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """The network's output for a batch: float32 (N, C, H, W) in, float32 (N, C', H', W') out, both on the CPU."""

    def submit(self, batch: torch.Tensor) -> Future[torch.Tensor]:
        """Start a batch and return at once; the batch must not be changed until the future is done.

        Blocks while as many batches are in flight as the target can use, so memory stays bounded.
        """

    def describe(self) -> dict[str, object]:
        """What ran where: ``target``, ``device``, ``precision``, ``versions``, ``origin`` (measured or modelled)."""

    def __enter__(self) -> Runner: ...

    def __exit__(self, *exception: object) -> None: ...


class Serial:
    """What runners share whose library uses all threads within an operator: one thread computes batch after batch.

    Everything runs in that thread, :meth:`run` too, since what some libraries prepare (CUDA graphs) belongs to one. A
    runner that was left opens again by itself. A subclass computes in ``_run`` and says what it is.
    """

    IN_FLIGHT = 2  # one computes, one waits for it

    def __init__(self):
        self.worker: ThreadPoolExecutor | None = None
        self.lock, self.free = threading.Lock(), threading.Semaphore(self.IN_FLIGHT)

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        self.run(torch.zeros(shape))

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        return self.submit(batch).result()

    def submit(self, batch: torch.Tensor) -> Future[torch.Tensor]:
        check_batch(batch)
        self.free.acquire()  # blocks while all are in flight
        with self.lock:
            if self.worker is None:
                self.worker = ThreadPoolExecutor(1, thread_name_prefix=type(self).__name__)
            future = self.worker.submit(self._run, batch)
        future.add_done_callback(lambda _: self.free.release())
        return future

    def _run(self, batch: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            worker, self.worker = self.worker, None
        if worker is not None:
            worker.shutdown(cancel_futures=any(exception))


def check_batch(batch: torch.Tensor) -> None:
    """Refuse what no runner takes.

    Raises:
        I2IError: If ``batch`` is not a float32 CPU tensor of shape (N, C, H, W) with N of 1 or more.
    """
    if batch.ndim != 4 or not len(batch) or batch.dtype != torch.float32 or batch.device.type != "cpu":
        got = f"{tuple(batch.shape)} {batch.dtype} on {batch.device}"
        raise I2IError("batch", expected="(N, C, H, W) float32 on the CPU", got=got)


def verify(runner: Runner, reference: torch.Tensor, batch: torch.Tensor, *, lsb: float | None = None) -> float:
    """The largest difference between a runner's output and a reference.

    Args:
        runner: What to check.
        reference: (N, C', H', W') float32, the output that is right.
        batch: (N, C, H, W) float32, the input that belongs to it.
        lsb: Value of one step of the output's grid; None reports the absolute error.

    Returns:
        Largest absolute difference, in units of ``lsb`` where given; 0 is best, NaN where either holds one.

    Raises:
        I2IError: If the shapes differ.
    """
    output = runner.run(batch)
    if output.shape != reference.shape:
        raise I2IError("output", expected=f"the reference's shape {tuple(reference.shape)}", got=tuple(output.shape))
    error = float((output - reference.detach()).abs().max())
    return error if lsb is None else error / lsb
