"""The matting task: pix2pix's conditional GAN from an sRGB frame to its alpha matte."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from .. import colour, models, patches
from ..datasets import videomatte
from ..errors import I2IError
from ..models import Discriminator, Generator
from .loop import fit

Batches = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class MattingConfig:
    """How the matting GAN is trained; the losses are those of pix2pix."""

    width: int = 16  # filters of the first convolution; 64 is the published generator
    discriminator_width: int = 16
    order: str = "dpu"  # of the generator's operators
    dropout: float = 0.5  # in the middle decoder blocks, as pix2pix trains
    q_in: int = 1  # the network sees [-q_in, q_in] and answers in [-1, 1], as tanh does
    learning_rate: float = 2e-4
    beta1: float = 0.5  # of Adam
    l1_weight: float = 100.0  # λ
    adversarial_weight: float = 1.0  # 0 trains on L1 alone
    decay_from: float = 0.5  # share of the steps after which the learning rate falls linearly to zero
    steps: int = 2000  # in all; sets the decay
    batch: int = 2  # patches a step; the paper's is 1
    mode: str = "composite"  # the figure before a background; "foreground" is what the paper feeds
    precision: str = "bf16"  # of the convolutions: "bf16" or "float32"; weights and losses stay float32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "float32"):
            raise I2IError("precision", expected="'bf16' or 'float32'", got=repr(self.precision))
        if self.q_in not in colour.Q_VALUES:
            raise I2IError("q_in", expected="a power of two from 1 to 128", got=self.q_in)
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise I2IError(name, expected="at least 1", got=getattr(self, name))


class MattingTask:
    """Trains a generator, and a discriminator beside it.

    Args:
        config: Sizes and rates.
        batches: Gives the batch of a step by its index: source (N, 3, H, W) and alpha (N, 1, H, W), float32 in
            [0, 1], sRGB and coverage.
        device: Where to train.
    """

    def __init__(self, config: MattingConfig, batches: Batches, *, device: str = "cpu"):
        self.options, self.batches, self.device = config, batches, torch.device(device)
        self.config = dataclasses.asdict(config)
        torch.manual_seed(config.seed)
        generator = Generator(out_channels=1, width=config.width, order=config.order, dropout=config.dropout)
        self.modules: dict[str, nn.Module] = {"generator": generator}
        if config.adversarial_weight:
            self.modules["discriminator"] = Discriminator(in_channels=4, width=config.discriminator_width)
        self.optimisers = {}
        for name, module in self.modules.items():
            module.to(self.device, memory_format=torch.channels_last).train()
            betas = (config.beta1, 0.999)
            self.optimisers[name] = torch.optim.Adam(module.parameters(), config.learning_rate, betas)

    @property
    def generator(self) -> Generator:
        """The network that is kept after training."""
        return self.modules["generator"]

    def step(self, index: int) -> dict[str, float]:
        """One step of the discriminator, then one of the generator, as pix2pix alternates them."""
        config = self.options
        torch.manual_seed(config.seed * 1_000_003 + index)  # for dropout: a resumed run draws the same
        source, alpha = (x.to(self.device, memory_format=torch.channels_last) for x in self.batches(index))
        source = colour.to_fixed(source, config.q_in)
        target = colour.to_fixed(alpha, 1)
        self._set_rate(index)
        losses = {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            made = self.generator(source).float()
            if config.adversarial_weight:
                losses["discriminator"] = self._train_discriminator(source, made.detach(), target)
            l1 = F.l1_loss(made, target)
            loss = config.l1_weight * l1
            if config.adversarial_weight:
                fooled = self._judge(source, made, real=True)
                loss = loss + config.adversarial_weight * fooled
                losses["adversarial"] = fooled
        optimiser = self.optimisers["generator"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # also reaches the discriminator, whose gradients are cleared before its next step
        optimiser.step()
        return {name: float(value.detach()) for name, value in (losses | {"l1": l1}).items()}

    def _train_discriminator(self, source: torch.Tensor, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        optimiser = self.optimisers["discriminator"]
        loss = 0.5 * (self._judge(source, made, real=False) + self._judge(source, target, real=True))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss.detach()

    def _judge(self, source: torch.Tensor, matte: torch.Tensor, *, real: bool) -> torch.Tensor:
        logits = self.modules["discriminator"](torch.cat([source / self.options.q_in, matte], 1)).float()
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def _set_rate(self, index: int) -> None:
        config = self.options
        start = config.decay_from * config.steps
        share = 1.0 if index < start else max(0.0, (config.steps - index) / max(config.steps - start, 1))
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * share


def clip_batches(
    clip: videomatte.Clip, indices: Sequence[int], config: MattingConfig, *, patch: int = patches.PATCH
) -> Batches:
    """The batches of every step: patches at random places of the given frames, mirrored half of the time.

    A batch depends on the seed and the step alone.

    Args:
        clip: From :func:`i2ilib.datasets.videomatte.clips`.
        indices: The training frames.
        config: Batch, mode, steps and seed.
        patch: Side of a patch, pixels.
    """
    count = config.batch
    drawn = videomatte.PatchDataset(
        clip, indices, patch=patch, mode=config.mode, samples=config.steps * count, flip=True, seed=config.seed
    )

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [drawn[step * count + i] for i in range(count)]
        return torch.stack([source for source, _ in pairs]), torch.stack([alpha for _, alpha in pairs])

    return batch


def train_matting(
    data: str | os.PathLike,
    out: str | os.PathLike,
    config: MattingConfig | None = None,
    *,
    clip: str | None = None,
    device: str = "cpu",
    progress: bool = True,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train a generator on one clip, as the paper does for each of its users, and keep it.

    An interrupted training goes on from its checkpoint in the folder named like ``out`` without suffix.

    Args:
        data: Folder in the VideoMatte240K layout.
        out: The ``.safetensors`` file to write.
        config: Sizes, losses and rates.
        clip: Name of the clip; the first by default.
        device: Where to train.
        progress: Show a bar.
        on_step: As in :func:`i2ilib.train.fit`.

    Returns:
        The losses of every step.

    Raises:
        I2IError: If there is no such clip, or ``out`` has another suffix.
        IntegrityError: If the checkpoint there belongs to another configuration or is damaged.
    """
    config, out = config or MattingConfig(), Path(out)
    if out.suffix != ".safetensors":  # now, not after an hour of training
        raise I2IError(str(out), expected="the suffix .safetensors", got=repr(out.suffix))
    found = {c.name: c for c in videomatte.clips(data, "train")}
    if clip is not None and clip not in found:
        raise I2IError("clip", expected=" or ".join(found), got=repr(clip))
    chosen = found[clip] if clip is not None else next(iter(found.values()))
    split = videomatte.paper_split(len(chosen))
    task = MattingTask(config, clip_batches(chosen, split.train, config), device=device)
    history = fit(task, steps=config.steps, folder=out.with_suffix(""), progress=progress, on_step=on_step)
    trained = {"clip": chosen.name, "frames": list(split.train), **task.config}
    models.save(out, task.generator, task="matting", colour="srgb", q_in=config.q_in, trained=trained)
    return history
