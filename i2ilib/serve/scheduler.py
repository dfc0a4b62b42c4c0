"""Patches of many requests on common runners: in full batches, in turn, with several batches in flight."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import I2IError

if TYPE_CHECKING:  # a server without networks, of functions alone, starts without PyTorch
    import torch

    from ..deploy import Runner


class Cancelled(Exception):
    """The one who asked has left; nobody wants the result."""


class Work:
    """One request's claim on the pools; ends all at once when its client leaves.

    Example:
        >>> work = Work()
        >>> work.cancel()
        >>> work.check()
        Traceback (most recent call last):
        i2ilib.serve.scheduler.Cancelled
    """

    def __init__(self):
        self.lock, self.cancelled, self.shares = threading.Lock(), threading.Event(), []
        self.patches, self.seconds = 0, 0.0  # computed for it; between its first patch and its last result

    def share(self, pool: Pool) -> Share:
        """A runner for this request alone, whose patches travel with those of others."""
        share = Share(pool, self)
        with self.lock:
            self.shares.append(share)
        self.check(share)
        return share

    def check(self, *shares: Share) -> None:
        """Raise :class:`Cancelled` if the client has left."""
        if self.cancelled.is_set():
            for share in shares:
                share.pool.drop(share)
            raise Cancelled

    def cancel(self) -> None:
        """Forget what waits; what is being computed is thrown away."""
        self.cancelled.set()
        with self.lock:
            shares = list(self.shares)
        for share in shares:
            share.pool.drop(share)


class _Batch:
    """A batch as it was submitted, and what has come of it."""

    def __init__(self, share: Share, batch: torch.Tensor):
        self.share, self.batch, self.future = share, batch, Future()
        self.out: torch.Tensor | None = None
        self.left = len(batch)


class Share:
    """A :class:`i2ilib.deploy.Runner` that shares another with other requests; made by :meth:`Work.share`."""

    def __init__(self, pool: Pool, work: Work):
        self.pool, self.work = pool, work
        self.waiting: deque[tuple[_Batch, int]] = deque()
        self.began: float | None = None

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """Nothing: the pool's runners are ready."""

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        return self.submit(batch).result()

    def submit(self, batch: torch.Tensor) -> Future[torch.Tensor]:
        """As a runner's; blocks while this request has enough patches waiting.

        Raises:
            Cancelled: If the client has left; the futures of earlier batches raise it too.
        """
        from ..deploy.runner import check_batch

        check_batch(batch)
        return self.pool.add(self, batch)

    def describe(self) -> dict[str, object]:
        return self.pool.runners[0].describe()

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing: the runners belong to the pool."""


class Pool:
    """Runners of one network, and the patches that wait for them.

    Each batch takes one patch of every request in turn, so that one patch of a small picture does not wait behind the
    hundred of a large one. Patches of different sizes do not mix. A request may have a few batches waiting; then its
    :meth:`Share.submit` blocks, so memory stays bounded whatever the frames.

    Args:
        runners: One for each device, all of the same network; they belong to the caller, and outlive the pool.
        batch: Most patches of a batch.
        single: The same network for one patch at a time, for engines that pad a small batch to a full one: it takes
            what does not fill a quarter of a batch.
        ahead: Batches' worth of patches that one request may have waiting.

    Raises:
        I2IError: If there is no runner, or a number is below 1.
    """

    def __init__(self, runners: Sequence[Runner], *, batch: int = 8, single: Runner | None = None, ahead: int = 4):
        if not runners:
            raise I2IError("runners", expected="at least one", got="none")
        for name, value in {"batch": batch, "ahead": ahead}.items():
            if value < 1:
                raise I2IError(name, expected="at least 1", got=value)
        self.runners, self.single, self.batch, self.most = list(runners), single, batch, batch * ahead
        self.condition, self.turn, self.closed = threading.Condition(), deque(), False
        self.patches = self.batches = self.places = 0  # since the beginning; places that batches had for patches
        self.waiting = 0  # patches, now
        self.threads = [
            threading.Thread(target=self._feed, args=(runner,), name="feed", daemon=True) for runner in self.runners
        ]
        for thread in self.threads:
            thread.start()

    def add(self, share: Share, batch: torch.Tensor) -> Future[torch.Tensor]:
        """Let the patches of a batch wait for their turn."""
        whole = _Batch(share, batch)
        with self.condition:
            self.condition.wait_for(
                lambda: len(share.waiting) < self.most or share.work.cancelled.is_set() or self.closed
            )
            share.work.check()
            if self.closed:
                raise I2IError("pool", expected="one that is open", got="a closed one")
            share.began = share.began or time.monotonic()
            if not share.waiting:
                self.turn.append(share)
            share.waiting.extend((whole, i) for i in range(len(batch)))
            self.waiting += len(batch)
            self.condition.notify_all()
        return whole.future

    def drop(self, share: Share) -> None:
        """Forget what waits of a request, and let its futures raise :class:`Cancelled`."""
        with self.condition:
            dropped = {id(whole): whole for whole, _ in share.waiting}
            self.waiting -= len(share.waiting)
            share.waiting.clear()
            if share in self.turn:
                self.turn.remove(share)
            self.condition.notify_all()
        for whole in dropped.values():
            _fail(whole, Cancelled())

    def _take(self) -> list[tuple[_Batch, int]]:
        """The next batch: a patch of each request in turn, all of one size. The condition is held."""
        taken, others = [], []
        while self.turn and len(taken) < self.batch:
            share = self.turn.popleft()
            whole, _ = share.waiting[0]
            if taken and whole.batch.shape[1:] != taken[0][0].batch.shape[1:]:
                others.append(share)
                continue
            taken.append(share.waiting.popleft())
            if share.waiting:
                self.turn.append(share)
        self.turn.extendleft(reversed(others))  # they are first next time
        self.waiting -= len(taken)
        return taken

    def _feed(self, runner: Runner) -> None:
        """Keep one runner busy, until the pool is closed."""
        while True:
            with self.condition:
                self.condition.wait_for(lambda: self.turn or self.closed)
                if not self.turn:
                    return
                taken = self._take()
                self.condition.notify_all()
            if self.single is not None and 4 * len(taken) <= self.batch:
                for one in taken:
                    self._submit(self.single, [one])
            else:
                self._submit(runner, taken)

    def _submit(self, runner: Runner, taken: list[tuple[_Batch, int]]) -> None:
        import torch

        try:
            first = _alone(taken)  # a whole batch of one request goes as it is
            together = first.batch if first else torch.cat([whole.batch[i : i + 1] for whole, i in taken])
            future = runner.submit(together)  # blocks while as many are in flight as the target can use
        except BaseException as error:  # whatever a runner raises is the requests', not the pool's
            self._failed(taken, error)
        else:
            future.add_done_callback(lambda done: self._give(taken, 1 if runner is self.single else self.batch, done))

    def _give(self, taken: list[tuple[_Batch, int]], places: int, done: Future[torch.Tensor]) -> None:
        """Hand the results of a batch to the requests that they belong to."""
        try:
            out = done.result()
            if len(out) != len(taken):
                raise I2IError("runner", expected=f"{len(taken)} results", got=len(out))
        except BaseException as error:
            self._failed(taken, error)
            return
        finished, now, alone = [], time.monotonic(), _alone(taken)
        with self.condition:
            self.patches += len(taken)
            self.batches += 1
            self.places += places
            for (whole, i), result in zip(taken, out, strict=True):
                work = whole.share.work
                work.patches += 1
                work.seconds = max(work.seconds, now - whole.share.began)
                if whole.out is None:
                    whole.out = out if alone else out.new_empty(len(whole.batch), *out.shape[1:])
                if whole.out is not out:
                    whole.out[i] = result
                whole.left -= 1
                if not whole.left:
                    finished.append(whole)
        for whole in finished:
            if not whole.future.done():
                whole.future.set_result(whole.out)

    def _failed(self, taken: list[tuple[_Batch, int]], error: BaseException) -> None:
        for whole in {id(whole): whole for whole, _ in taken}.values():
            _fail(whole, error)

    def close(self) -> None:
        """Compute what waits, and end; the runners stay open."""
        with self.condition:
            self.closed = True
            self.condition.notify_all()
        for thread in self.threads:
            thread.join()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _alone(taken: list[tuple[_Batch, int]]) -> _Batch | None:
    """The batch that was submitted, if it was taken alone and whole."""
    first = taken[0][0]
    return first if len(taken) == len(first.batch) and all(whole is first for whole, _ in taken) else None


def _fail(whole: _Batch, error: BaseException) -> None:
    try:
        if not whole.future.done():
            whole.future.set_exception(error)
    except Exception:  # done by another thread in between
        return


# --- memory ------------------------------------------------------------------------------------------


class Memory:
    """Bytes of messages that may be held at once; who wants more waits.

    Bytes are counted as they come, so that one who announces much and sends nothing takes nothing. When none is left,
    one message may go beyond the limit until it is whole, the first that asks: so there is always one that can finish,
    and never more held than the limit and one message.

    Args:
        total: Bytes.
    """

    def __init__(self, total: int):
        self.total, self.used, self.beyond = total, 0, None
        self.condition = threading.Condition()

    @contextmanager
    def claim(self) -> Iterator[Claim]:
        """A claim that ends with the block."""
        claim = Claim(self)
        try:
            yield claim
        finally:
            claim.release()


class Claim:
    """What one message holds of a :class:`Memory`."""

    def __init__(self, memory: Memory):
        self.memory, self.held = memory, 0

    def grow(self, n: int, *, seconds: float | None = None) -> None:
        """Hold so many more bytes.

        Raises:
            TimeoutError: If they are not free in time.
        """
        memory = self.memory
        with memory.condition:
            free = lambda: memory.used + n <= memory.total  # noqa: E731
            if not memory.condition.wait_for(lambda: free() or memory.beyond in (None, self), seconds):
                raise TimeoutError
            if not free():
                memory.beyond = self
            memory.used += n
            self.held += n

    def force(self, n: int) -> None:
        """Hold so many bytes that are there already, in place of all that was held."""
        with self.memory.condition:
            self.memory.used += n - self.held
            self.held = n
            self._settle()

    def release(self) -> None:
        """Hold nothing."""
        self.force(0)

    def _settle(self) -> None:
        if self.memory.beyond is self:
            self.memory.beyond = None
        self.memory.condition.notify_all()


class Slots:
    """So many at once, first come first served; no more than so many may wait.

    Args:
        most: At once.
        waiting: That may wait.
    """

    def __init__(self, most: int, *, waiting: int):
        self.free, self.most_waiting = most, waiting
        self.line: deque[threading.Event] = deque()
        self.lock = threading.Lock()

    @contextmanager
    def taken(self, work: Work) -> Iterator[None]:
        """Wait for a slot, and hold it.

        Raises:
            I2IError: If too many wait already.
            Cancelled: If the client leaves meanwhile.
        """
        mine = threading.Event()
        with self.lock:
            if self.free and not self.line:
                self.free -= 1
                mine.set()
            elif len(self.line) >= self.most_waiting:
                raise I2IError(
                    "server",
                    expected=f"at most {self.most_waiting} requests that wait",
                    got="one more",
                    remedy="Try again later.",
                )
            else:
                self.line.append(mine)
        try:
            while not mine.wait(0.1):
                work.check()
        except BaseException:
            self._leave(mine)
            raise
        try:
            yield
        finally:
            self._leave(mine)

    def _leave(self, mine: threading.Event) -> None:
        with self.lock:
            if not mine.is_set():
                self.line.remove(mine)
            elif self.line:
                self.line.popleft().set()
            else:
                self.free += 1
