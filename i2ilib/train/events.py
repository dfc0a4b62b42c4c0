"""Event files for TensorBoard, as an option: losses by step, scores and samples by epoch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from ..runtime import require
from .loop import History

if TYPE_CHECKING:
    from .gan import GanTask


@contextlib.contextmanager
def events(
    folder: str | os.PathLike,
) -> Iterator[tuple[Callable[[History], None], Callable[[GanTask, History], None]]]:
    """Write event files while a training runs; look at them with ``tensorboard --logdir FOLDER``.

    A resumed training writes a further file; TensorBoard shows the steps that it takes again once.

    Args:
        folder: Where the files go.

    Yields:
        ``on_step`` and ``on_epoch`` for :func:`i2ilib.train.train_matting` and :func:`i2ilib.train.train_restoration`.

    Raises:
        UnavailableError: If TensorBoard is not installed.
    """
    require("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writers: list[SummaryWriter] = []

    def writer(history: History) -> SummaryWriter:
        if not writers:  # from here on, what a killed run wrote beyond its last checkpoint is hidden
            writers.append(SummaryWriter(os.fspath(folder), purge_step=len(history)))
        return writers[0]

    def on_step(history: History) -> None:
        for name, values in history.steps.items():
            writer(history).add_scalar(f"step/{name}", values[-1], len(history))

    def on_epoch(task: GanTask, history: History) -> None:
        to, step = writer(history), len(history)
        for name, value in history.epochs[-1].items():
            to.add_scalar(f"validation/{name}", value, step)
        if task.samples is not None:
            parts = task.samples.split([*task.sample_parts.values()], 1)
            pictures = [part.expand(-1, 3, -1, -1) for part in parts]
            to.add_images(", ".join(task.sample_parts), torch.cat(pictures, 3), step)
        to.flush()

    try:
        yield on_step, on_epoch
    finally:
        for open_writer in writers:
            open_writer.close()
