"""What tasks with a discriminator share: precision, learning rate, alternation, and the weights of every epoch."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from .. import models
from ..errors import I2IError
from ..runtime import atomic_path, discard_parts, this_machine
from . import checkpoint, parallel
from .batches import Batches
from .loop import History, fit
from .parallel import World
from .speed import lay_out

C = TypeVar("C")

PRECISIONS = ("bf16", "float32")


def has_bf16(device: str | torch.device) -> bool:
    """Whether a device has units for bfloat16; others emulate it, in several times the time of float32."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(this_machine().bf16) and torch.backends.mkldnn.is_available()


def settle_precision(config: C, device: str | torch.device, folder: str | os.PathLike | None = None) -> C:
    """The configuration with "auto" decided: as the training in the folder began, else bf16 where the device has it.

    Args:
        config: Of the training; a precision other than "auto" stays.
        device: Where to train.
        folder: Of the training. One that began there keeps its precision, whatever machine it goes on on.
    """
    if config.precision != "auto":
        return config
    kept = began_with(folder, "precision")
    if kept not in PRECISIONS:  # no checkpoint, or one that loading it will refuse
        kept = "bf16" if has_bf16(device) else "float32"
    return dataclasses.replace(config, precision=kept)


def began_with(folder: str | os.PathLike | None, field: str) -> Any:
    """A field of the configuration with which the training in a folder began; None without one."""
    return None if folder is None else checkpoint.configuration(Path(folder) / checkpoint.NAME).get(field)


def check_config(config: Any, *, at_least_one: Sequence[str]) -> None:
    """Refuse a precision, a seed or a count that cannot be.

    Raises:
        I2IError: If there is one.
    """
    if config.precision not in ("auto", *PRECISIONS):
        raise I2IError("precision", expected="auto, bf16 or float32", got=repr(config.precision))
    if config.seed < 0:
        raise I2IError("seed", expected="at least 0", got=config.seed)
    for name in at_least_one:
        if (value := getattr(config, name)) is not None and value < 1:
            raise I2IError(name, expected="at least 1", got=value)


class GanTask:
    """A generator, and a discriminator beside it where the adversarial loss counts.

    Args:
        config: With ``precision``, ``seed``, ``epochs``, ``learning_rate``, ``beta1``, ``decay_from``. A precision of
            "auto" is settled here.
        networks: Makes the networks by name, "generator" first, from the settled configuration.
        batches: What to train on.
        device: Where to train.
        folder: Of the training, where the generator of every epoch is kept, ``epoch_01.safetensors`` and so on; kept
            nowhere when None.
        about: JSON values that belong to the configuration and are kept with it.
        world: This process among those that train together.

    Attributes:
        samples: What the last epoch's generator makes, (N, C, H, W) float32 in [0, 1], the channels of
            :attr:`sample_parts` side by side; None before.
    """

    sample_parts: ClassVar[dict[str, int]]  # channels by name

    def __init__(
        self,
        config: Any,
        networks: Callable[[Any], dict[str, nn.Module]],
        batches: Batches,
        *,
        device: str = "cpu",
        folder: str | os.PathLike | None = None,
        about: dict | None = None,
        world: World | None = None,
    ):
        self.device, self.world = torch.device(device), world or World()
        self.folder, self.about = None if folder is None else Path(folder), about or {}
        self.options = config = settle_precision(config, self.device, self.folder)
        self.config, self.epochs = self.about | dataclasses.asdict(config), config.epochs
        self.batches, self.samples = batches, None
        torch.manual_seed(config.seed)
        self.modules = networks(config)
        self.optimisers, self._trained = {}, {}
        for name, module in self.modules.items():
            lay_out(module, self.device).train()
            self._trained[name] = parallel.distribute(module, self.world)
            betas = (config.beta1, 0.999)
            self.optimisers[name] = torch.optim.Adam(module.parameters(), self._rate(name), betas, fused=True)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.batches.steps_per_epoch

    def _rate(self, name: str) -> float:
        """The learning rate with which a network begins."""
        return self.options.learning_rate

    def _set_rate(self, index: int) -> None:
        config, steps = self.options, self.steps
        start = config.decay_from * steps
        share = 1.0 if index < start else max(0.0, (steps - index) / max(steps - start, 1))
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = self._rate(name) * share

    def _train_judge(self, made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """One step of the discriminator, between what was made and what is true; its loss before."""
        judge = self._trained["discriminator"]
        loss = 0.5 * (self._judge(judge, made, real=False) + self._judge(judge, true, real=True))
        self._descend("discriminator", loss)
        return loss

    def _fool(self, made: torch.Tensor) -> torch.Tensor:
        """How well the discriminator sees through what was made; its weights take no gradient."""
        judge = self.modules["discriminator"].requires_grad_(False)
        loss = self._judge(judge, made, real=True)
        judge.requires_grad_(True)
        return loss

    def _judge(self, judge: nn.Module, seen: torch.Tensor, *, real: bool) -> torch.Tensor:
        with self._precision():
            logits = judge(seen).float()
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def _descend(self, name: str, loss: torch.Tensor) -> None:
        optimiser = self.optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def _keep(self, epoch: int, model: nn.Module, scores: dict[str, float], **meta: object) -> None:
        """Keep an epoch's generator with its scores, where there is a folder."""
        if self.folder is not None:
            trained = self.config | {"epoch": epoch, "validation": scores}
            models.save(epoch_path(self.folder, epoch), model, **meta, trained=trained)


def train_and_keep(
    task: GanTask,
    out: Path,
    key: str,
    *,
    highest: bool = False,
    progress: bool = True,
    on_epoch: Callable[[GanTask, History], None] | None = None,
    **fitting: Any,
) -> History:
    """Train a task with a folder to its end; the epoch with the best score becomes the weights file.

    Args:
        task: What to train.
        out: The ``.safetensors`` file to write.
        key: Of the score that decides.
        highest: Whether more of it is better.
        progress: Show a bar.
        on_epoch: Called after every epoch.
        **fitting: For :func:`i2ilib.train.fit`.
    """
    folder = task.folder

    def best(history: History) -> int:
        return best_epoch(history, key, highest=highest)

    def keep(history: History) -> None:
        if best(history) == len(history.epochs):
            _copy(epoch_path(folder, len(history.epochs)), out)
        if on_epoch is not None:
            on_epoch(task, history)

    if progress and task.world.leads and task.options.precision == "bf16" and not has_bf16(task.device):
        tqdm.write(f"{folder}: this training is in bf16, which is emulated here, slowly; float32 needs another folder")
    if task.world.leads:
        for path in (out, *(epoch_path(folder, epoch) for epoch in range(1, task.epochs + 1))):
            discard_parts(path)
    history = fit(task, folder, progress=progress, on_epoch=keep, **fitting)
    if task.world.leads and not out.exists():
        _copy(epoch_path(folder, best(history)), out)
    return history


def best_epoch(history: History, key: str = "mse", *, highest: bool = False) -> int:
    """The epoch, from 1, with the least, or the highest, of a score on the validation frames; of equals the first."""
    scores = [epoch[key] for epoch in history.epochs]
    return 1 + scores.index(max(scores) if highest else min(scores))


def check_suffix(out: Path) -> None:
    """Refuse a weights file of another name, before the training and not after it.

    Raises:
        I2IError: If it has another suffix.
    """
    if out.suffix != ".safetensors":
        raise I2IError(str(out), expected="the suffix .safetensors", got=repr(out.suffix))


def epoch_path(folder: Path, epoch: int) -> Path:
    """Where the generator of an epoch, from 1, is kept."""
    return folder / f"epoch_{epoch:02d}.safetensors"


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
