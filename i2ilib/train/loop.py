"""One training loop: a task computes steps, the loop counts, shows, saves and resumes them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from tqdm.auto import tqdm

from . import checkpoint


class Task(Protocol):
    """What the loop trains.

    A step depends on its index and on the state alone, so a resumed run sees the same data in the same order.
    """

    modules: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]
    config: dict  # JSON values; a checkpoint of another configuration is refused

    def step(self, index: int) -> dict[str, float]:
        """Take one optimisation step and return the losses by name."""


def fit(
    task: Task,
    *,
    steps: int,
    folder: str | os.PathLike,
    save_every: int = 200,
    progress: bool = True,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train a task up to ``steps`` steps, from its checkpoint in ``folder`` if there is one.

    Args:
        task: What to train.
        steps: Steps in all, those of an earlier run counted in.
        folder: Holds ``checkpoint.safetensors``.
        save_every: Steps between checkpoints; one is also written at the end.
        progress: Show a bar.
        on_step: Called with the number of steps done and their losses, for pictures while it runs.

    Returns:
        The losses of every step, from the first, each with ``seconds``, the time since the run began.

    Raises:
        IntegrityError: If the checkpoint is damaged or of another configuration.
    """
    path = Path(folder) / "checkpoint.safetensors"
    parts = {"modules": task.modules, "optimisers": task.optimisers}
    history: list[dict[str, float]] = []
    if path.exists():
        history = checkpoint.load(path, expected=task.config, **parts)["history"][:]
    began = time.perf_counter() - (history[-1]["seconds"] if history else 0.0)

    def save() -> None:
        checkpoint.save(path, about={"config": task.config, "history": history}, **parts)

    saved = len(history)
    bar = tqdm(total=steps, initial=len(history), desc="train", unit="step", disable=not progress)
    with bar:
        try:
            while len(history) < steps:
                losses = task.step(len(history))
                history.append(losses | {"seconds": round(time.perf_counter() - began, 3)})
                bar.update()
                bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)
                if on_step is not None:
                    on_step(len(history), losses)
                if len(history) % save_every == 0:
                    save()
                    saved = len(history)
        except KeyboardInterrupt:  # a step that was cut short is taken again from the last whole one
            told = f"interrupted at step {len(history)}; run again to go on from step {saved}"
            bar.write(told, file=sys.stderr)
            raise
    if saved != len(history):
        save()
    return history
