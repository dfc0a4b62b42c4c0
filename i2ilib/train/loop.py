"""One training loop: a task computes steps, the loop counts, shows, validates, saves and resumes them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from tqdm.auto import tqdm

from ..errors import I2IError
from ..runtime import discard_parts
from . import checkpoint
from .parallel import World


def of_preset(presets: Mapping[str, dict[str, object]], preset: str, fields: dict[str, object]) -> dict[str, object]:
    """The fields of a preset, and over them those that were set one by one.

    Raises:
        I2IError: If there is no such preset.
    """
    if preset not in presets:
        raise I2IError("preset", expected=" or ".join(presets), got=repr(preset))
    return presets[preset] | fields


class Source(Protocol):
    """Gives the batch of a step by its index, and knows how many steps make an epoch."""

    steps_per_epoch: int

    def __call__(self, step: int) -> tuple[torch.Tensor, ...]: ...


class Task(Protocol):
    """What the loop trains.

    A step depends on its index and on the state alone, so a resumed run sees the same data in the same order.
    """

    modules: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]
    config: dict  # JSON values; a checkpoint of another configuration is refused
    batches: Source
    epochs: int
    world: World

    def step(self, index: int, batch: tuple[torch.Tensor, ...]) -> dict[str, float]:
        """Take one optimisation step and return the losses by name."""

    def finish_epoch(self, epoch: int) -> dict[str, float]:
        """Validate, keep what the epoch made, and return the scores by name; called once an epoch, from 1."""


@dataclasses.dataclass
class History:
    """What happened so far."""

    steps: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # losses, "seconds", and those in "wait"
    epochs: list[dict[str, float]] = dataclasses.field(default_factory=list)  # scores of every whole epoch
    config: dict = dataclasses.field(default_factory=dict)  # the task's, as the checkpoint has it

    def __len__(self) -> int:
        return len(self.steps.get("seconds", ()))

    @property
    def seconds(self) -> float:
        """Time that the steps took, those of earlier runs counted in."""
        return sum(self.steps.get("seconds", ()))

    @property
    def waiting(self) -> float:
        """Share of that time in which a step waited for its batch."""
        return sum(self.steps["wait"]) / self.seconds if len(self) else 0.0

    def append(self, row: dict[str, float]) -> None:
        """Add a step."""
        for name, value in row.items():
            self.steps.setdefault(name, []).append(value)


def fit(
    task: Task,
    folder: str | os.PathLike,
    *,
    save_every: float | None = None,
    progress: bool = True,
    on_step: Callable[[History], None] | None = None,
    on_epoch: Callable[[History], None] | None = None,
) -> History:
    """Train a task to its end, from its checkpoint in ``folder`` if there is one.

    Ctrl-C and SIGTERM end the training after the step under way, with a checkpoint. However else it ends, the last
    checkpoint is whole, and training from it gives what an undisturbed run would have given.

    Args:
        task: What to train.
        folder: Holds ``checkpoint.safetensors``.
        save_every: Seconds between checkpoints; when None ten, or more where writing one would take more than a
            twentieth of the time. One is also written after every epoch.
        progress: Show a bar.
        on_step: Called after every step, for pictures while it runs.
        on_epoch: Called after every epoch.

    Returns:
        The losses of every step and the scores of every epoch, from the first.

    Raises:
        IntegrityError: If the checkpoint is damaged or of another configuration.
        KeyboardInterrupt: If the training was asked to end.
    """
    folder, leads = Path(folder), task.world.leads
    path = folder / checkpoint.NAME
    parts = {"modules": task.modules, "optimisers": task.optimisers}
    history = History(config=task.config)
    if path.exists():
        about, steps = checkpoint.load(path, expected=task.config, **parts)
        history = History(steps, about["epochs"], task.config)
    if leads:
        discard_parts(path)

    def save() -> float:
        """Write a checkpoint; the time at which the next one is due."""
        began = time.perf_counter()
        if leads:
            about = {"config": task.config, "epochs": history.epochs}
            checkpoint.save(path, about=about, history=history.steps, **parts)
        ended = time.perf_counter()
        return ended + (max(10.0, 20 * (ended - began)) if save_every is None else save_every)

    per_epoch = task.batches.steps_per_epoch
    total, done = task.epochs * per_epoch, len(history)
    due = time.perf_counter() + (10.0 if save_every is None else save_every)
    bar = tqdm(total=total, initial=done, desc="train", unit="step", disable=not (progress and leads))
    with bar, _requests_to_end(active=task.world.size == 1) as ended:
        while done < total:
            began = time.perf_counter()
            batch = task.batches(done)
            wait = time.perf_counter() - began
            losses = task.step(done, batch)
            history.append(losses | {"wait": wait, "seconds": time.perf_counter() - began})
            done += 1
            bar.update()
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)
            if on_step is not None and leads:
                on_step(history)
            whole = done % per_epoch == 0
            if whole and leads:
                scores = task.finish_epoch(done // per_epoch)
                history.epochs.append(scores)
                if progress and scores:
                    told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
                    bar.write(f"epoch {done // per_epoch} of {task.epochs}: validation {told}")
                if on_epoch is not None:
                    on_epoch(history)
            if whole or ended.is_set() or time.perf_counter() >= due:
                due = save()
            if ended.is_set() and done < total:
                bar.write(f"interrupted after step {done}; run again to go on from there", file=sys.stderr)
                raise KeyboardInterrupt
    return history


@contextlib.contextmanager
def _requests_to_end(*, active: bool) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a request, so that no step is cut in half; obey the second at once."""
    ended, old = threading.Event(), {}

    def ask(number: int, frame: object) -> None:
        if ended.is_set():
            raise KeyboardInterrupt
        ended.set()

    if active and threading.current_thread() is threading.main_thread():
        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
