"""The matting task: pix2pix's conditional GAN from an sRGB frame to its alpha matte."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from .. import colour, metrics, patches
from ..datasets import videomatte
from ..errors import I2IError
from ..models import Discriminator, Generator
from . import parallel
from .batches import Batches
from .gan import GanTask, check_config, check_suffix, train_and_keep
from .loop import History, of_preset
from .parallel import World

SCORES = ("iou", "mse")  # of every epoch, as metrics.KEYS has them


@dataclasses.dataclass(frozen=True)
class MattingConfig:
    """How the matting GAN is trained; the defaults are the paper's, and pix2pix's where the paper is silent."""

    width: int = 64  # filters of the first convolution; 64 is the published generator
    discriminator_width: int = 64
    order: str = "dpu"  # of the generator's operators
    dropout: float = 0.5  # in the middle decoder blocks
    q_in: int = 1  # the network sees [-q_in, q_in] and answers in [-1, 1], as tanh does
    learning_rate: float = 2e-4
    beta1: float = 0.5  # of Adam
    l1_weight: float = 100.0  # λ
    adversarial_weight: float = 1.0  # 0 trains on L1 alone
    decay_from: float = 0.5  # share of the steps after which the learning rate falls linearly to zero
    freeze_from: float = 0.5  # share of the steps after which the generator's BatchNorm keeps its statistics
    epochs: int = 10
    patches: int | None = None  # an epoch, drawn anew each time; all of the grid when None
    stride: int = 64  # pixels between the patches of a frame
    flip: bool = True  # mirror half of the patches
    batch: int = 1  # patches a step, over all processes
    mode: str = "auto"  # "composite": before the background plate; "foreground": without, as in the paper; or what fits
    precision: str = "auto"  # of the convolutions: "bf16", "float32" or what fits; weights and losses stay float32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "composite", "foreground"):
            raise I2IError("mode", expected="auto, composite or foreground", got=repr(self.mode))
        if self.q_in not in colour.Q_VALUES:
            raise I2IError("q_in", expected="a power of two from 1 to 128", got=self.q_in)
        check_config(self, at_least_one=("epochs", "batch", "patches"))


PRESETS: dict[str, dict[str, object]] = {
    "smoke": {"width": 8, "discriminator_width": 8, "epochs": 2, "patches": 20},
    "quick": {"width": 16, "discriminator_width": 16, "epochs": 10, "patches": 400},
    "full": {},
}


def matting_config(preset: str, **fields: object) -> MattingConfig:
    """The configuration of a preset: smoke (seconds), quick (minutes on two cores), full (the paper's; a GPU).

    Args:
        preset: "smoke", "quick" or "full".
        **fields: Single fields of :class:`MattingConfig` to set.

    Raises:
        I2IError: If there is no such preset, or a field has a value that cannot be.

    Example:
        >>> matting_config("quick", batch=2).patches
        400
    """
    return MattingConfig(**of_preset(PRESETS, preset, fields))


def settle_mode(config: MattingConfig, clips: Sequence[videomatte.Clip]) -> MattingConfig:
    """The configuration with "auto" decided: composite where every clip has a background plate, else foreground."""
    if config.mode != "auto":
        return config
    return dataclasses.replace(config, mode="composite" if all(clip.plate for clip in clips) else "foreground")


@dataclasses.dataclass(frozen=True)
class MattingData:
    """The frames of a training, in memory as 8-bit codes."""

    training: videomatte.PatchDataset
    validation: videomatte.PatchDataset | None = None

    @classmethod
    def of_clips(
        cls,
        clips: videomatte.Clip | Sequence[videomatte.Clip],
        config: MattingConfig,
        *,
        budget_bytes: int = 4 * 2**30,
        progress: bool = True,
    ) -> MattingData:
        """Split clips in time, 57 to 11 to 7, and hold the first two parts.

        Args:
            clips: One or several, all of the same number of frames.
            config: Mode, stride, mirrors and seed.
            budget_bytes: Most memory that the frames may take.
            progress: Show a bar while they are decoded.

        Raises:
            I2IError: If the frames do not fit in the budget, or there are too few.
        """
        chosen = [clips] if isinstance(clips, videomatte.Clip) else list(clips)
        split = videomatte.paper_split(min(len(clip) for clip in chosen))
        common = {"mode": settle_mode(config, chosen).mode, "progress": progress}
        training = videomatte.PatchDataset(
            chosen, split.train, stride=config.stride, flip=config.flip, seed=config.seed,
            budget_bytes=budget_bytes, **common,
        )  # fmt: skip
        left = budget_bytes - training.nbytes
        validation = videomatte.PatchDataset(
            chosen, split.validation, stride=patches.PATCH, budget_bytes=left, **common
        )
        return cls(training, validation)


class MattingTask(GanTask):
    """Trains a generator, and a discriminator beside it.

    Args:
        config: Sizes and rates; a precision of "auto" is settled here.
        data: What to train and validate on; or any function from a step to (source, alpha) with an attribute
            ``steps_per_epoch``: source (N, 3, H, W) and alpha (N, 1, H, W), float32 in [0, 1], sRGB and coverage.
        device: Where to train.
        folder: Of the training, where the generator of every epoch is kept, ``epoch_01.safetensors`` and so on; kept
            nowhere when None.
        about: JSON values that belong to the configuration and are kept with it: the clip, its frames.
        world: This process among those that train together.

    Attributes:
        samples: What the last epoch's generator makes of up to three validation patches: (N, 5, 256, 256) float32 in
            [0, 1], sRGB source, made matte and true matte; None before.
    """

    sample_parts: ClassVar[dict[str, int]] = {"source": 3, "made": 1, "true": 1}

    def __init__(
        self,
        config: MattingConfig,
        data: MattingData | Batches,
        *,
        device: str = "cpu",
        folder: str | os.PathLike | None = None,
        about: dict | None = None,
        world: World | None = None,
    ):
        self.data = data if isinstance(data, MattingData) else None
        batches = data
        if self.data:
            batches = Batches(
                self.data.training, batch=config.batch, per_epoch=config.patches, seed=config.seed, world=world
            )
        more = {"device": device, "folder": folder, "about": about, "world": world}
        super().__init__(config, self._networks, batches, **more)

    def _networks(self, config: MattingConfig) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {"generator": self._generator(config.dropout)}
        if config.adversarial_weight:
            found["discriminator"] = Discriminator(in_channels=4, width=config.discriminator_width)
        return found

    def _generator(self, dropout: float) -> Generator:
        config = self.options
        return Generator(out_channels=1, width=config.width, order=config.order, dropout=dropout)

    def step(self, index: int, batch: tuple[torch.Tensor, ...]) -> dict[str, float]:
        """One step of the discriminator, then one of the generator, as pix2pix alternates them."""
        config = self.options
        torch.manual_seed(config.seed * 1_000_003 + index)  # for dropout: a resumed run draws the same
        source, alpha = (part.to(self.device, memory_format=torch.channels_last) for part in batch)
        source, target = colour.to_fixed(source, config.q_in), colour.to_fixed(alpha, 1)
        self._set_rate(index)
        self._settle_norms(index)
        losses = {}
        with self._precision():
            made = self._trained["generator"](source).float()
        seen = source / config.q_in
        if config.adversarial_weight:
            losses["discriminator"] = self._train_judge(
                torch.cat([seen, made.detach()], 1), torch.cat([seen, target], 1)
            )
        losses["l1"] = F.l1_loss(made, target)
        loss = config.l1_weight * losses["l1"]
        if config.adversarial_weight:
            losses["adversarial"] = self._fool(torch.cat([seen, made], 1))
            loss = loss + config.adversarial_weight * losses["adversarial"]
        self._descend("generator", loss)
        return parallel.average(losses, self.world)

    def _settle_norms(self, index: int) -> None:
        """Let the generator train with the statistics that it will be deployed with, for the last part."""
        generator = self.modules["generator"]
        if index == self._frozen_from:
            generator.load_state_dict(self._estimated().state_dict())
        for norm in generator.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.train(index < self._frozen_from)

    @property
    def _frozen_from(self) -> int:
        return math.ceil(self.options.freeze_from * self.steps)

    # --- after an epoch ---------------------------------------------------------------------------------

    def deployable(self, done: int | None = None) -> Generator:
        """A copy of the generator as it will run: no dropout, fixed statistics.

        Args:
            done: Steps that were taken; all of them when None. Before its statistics are frozen they are estimated.
        """
        done = self.steps if done is None else done
        return (self._copy() if done > self._frozen_from else self._estimated()).eval()

    def _copy(self) -> Generator:
        copy = self._generator(dropout=0.0)
        copy.load_state_dict(self.modules["generator"].state_dict())
        return copy.to(self.device, memory_format=torch.channels_last)

    def _estimated(self, samples: int = 128) -> Generator:
        """A copy of the generator with true statistics.

        BatchNorm's running averages come from batches of one patch, each normalised by itself: they follow the last
        few dozen patches and miss how patches differ. Here they are taken anew over many patches at once.
        """
        copy = self._copy()
        if self.data:
            training = self.data.training
            # drawn at random: every n-th patch of a grid can be a column of it
            drawn = np.random.default_rng(self.options.seed).permutation(len(training))[:samples]
            chosen = drawn[: max(16, len(drawn) // 16 * 16)].tolist()  # whole batches: update_bn weighs them alike
            sources = (torch.stack([training.cut(i, 0)[0] for i in part]) for part in _parts(chosen, 16))
            with self._precision():
                mapped = (colour.to_fixed(source.to(self.device), self.options.q_in) for source in sources)
                update_bn((m.contiguous(memory_format=torch.channels_last) for m in mapped), copy)
        return copy

    def finish_epoch(self, epoch: int) -> dict[str, float]:
        """Score the generator on the validation frames and keep it with its scores."""
        model = self.deployable(epoch * self.batches.steps_per_epoch)
        scores = self.validate(model)
        self._keep(epoch, model, scores, task="matting", colour="srgb", q_in=self.options.q_in)
        return scores

    def validate(self, model: nn.Module) -> dict[str, float]:
        """:data:`SCORES`, means over the validation frames; none without them."""
        if self.data is None or self.data.validation is None:
            return {}
        frames = self.data.validation.frames
        pairs = [self.predict(model, frame) for frame in frames]
        spread = sorted({len(frames) * k // 3 for k in range(3)})
        self.samples = torch.cat([_busiest(frames[i], *pairs[i]) for i in spread])
        return {key: sum(metrics.KEYS[key](*pair).mean().item() for pair in pairs) / len(pairs) for key in SCORES}

    @torch.no_grad()
    def predict(self, model: nn.Module, frame: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The matte of a frame, and the true one.

        Args:
            model: A generator in evaluation mode.
            frame: (4, H, W) uint8 from :attr:`PatchDataset.frames`.

        Returns:
            Two tensors (1, 1, H, W) float32 in [0, 1].
        """
        source, alpha = frame[None, :3].float().div(255), frame[None, 3:].float().div(255)
        made = []
        for _, batch in patches.iter_batches(colour.to_fixed(source, self.options.q_in), batch=8):
            with self._precision():
                made.append(model(batch.to(self.device, memory_format=torch.channels_last)).float().cpu())
        whole = patches.merge(made, height=frame.shape[-2], width=frame.shape[-1])
        return colour.from_fixed(whole, 1).clamp(0, 1), alpha


def _busiest(frame: torch.Tensor, made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """The patch of a frame whose true matte varies most: (1, 5, 256, 256) in [0, 1]."""
    every = patches.split(torch.cat([frame[None, :3].float().div(255), made, true], 1))
    return every[every[:, 4].flatten(1).std(1).argmax()][None]


def _parts(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def train_matting(
    data: str | os.PathLike,
    out: str | os.PathLike,
    config: MattingConfig | None = None,
    *,
    clip: str | Sequence[str] | None = None,
    device: str = "cpu",
    budget_bytes: int = 4 * 2**30,
    progress: bool = True,
    save_every: float | None = None,
    world: World | None = None,
    on_step: Callable[[History], None] | None = None,
    on_epoch: Callable[[MattingTask, History], None] | None = None,
) -> History:
    """Train a generator on one clip, as the paper does for each of its users, and keep the best epoch's.

    The folder named like ``out`` without suffix holds ``checkpoint.safetensors``, from which an interrupted training
    goes on, and the generator of every epoch. The best is the one with the least error on the validation frames.

    Args:
        data: Folder in the VideoMatte240K layout.
        out: The ``.safetensors`` file to write.
        config: Sizes, losses and rates.
        clip: Name of the clip, or several names for one generator; the first clip by default.
        device: Where to train.
        budget_bytes: Most memory that decoded frames may take.
        progress: Show a bar.
        save_every: As in :func:`i2ilib.train.fit`.
        world: This process among those that train together.
        on_step: As in :func:`i2ilib.train.fit`.
        on_epoch: The same, with the task.

    Returns:
        The losses of every step, and the scores of every epoch.

    Raises:
        I2IError: If there is no such clip, its frames do not fit in the budget, or ``out`` has another suffix.
        IntegrityError: If the checkpoint there belongs to another configuration or is damaged.
        KeyboardInterrupt: If the training was asked to end.
    """
    config, out, world = config or MattingConfig(), Path(out), world or World()
    check_suffix(out)
    found = {c.name: c for c in videomatte.clips(data, "train")}
    names = [next(iter(found))] if clip is None else [clip] if isinstance(clip, str) else list(clip)
    if strange := [name for name in names if name not in found]:
        raise I2IError("clip", expected=" or ".join(found), got=repr(strange[0]))
    chosen = [found[name] for name in names]
    config = settle_mode(config, chosen)
    folder = out.with_suffix("")
    frames = MattingData.of_clips(chosen, config, budget_bytes=budget_bytes, progress=progress and world.leads)
    about = {"clip": ", ".join(names), "frames": list(videomatte.paper_split(min(map(len, chosen))).train)}
    task = MattingTask(config, frames, device=device, folder=folder, about=about, world=world)
    return train_and_keep(
        task, out, "mse", save_every=save_every, progress=progress, on_step=on_step, on_epoch=on_epoch
    )
