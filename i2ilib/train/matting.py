"""The matting task: pix2pix's conditional GAN from an sRGB frame to its alpha matte."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from .. import colour
from ..errors import I2IError
from ..models import Discriminator, Generator

Sampler = Callable[[torch.Generator], tuple[torch.Tensor, torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class MattingConfig:
    """How the matting GAN is trained; the losses are those of pix2pix."""

    width: int = 16  # filters of the first convolution; 64 is the published generator
    discriminator_width: int = 16
    order: str = "dpu"  # of the generator's operators
    dropout: float = 0.0
    q_in: int = 1  # the network sees [-q_in, q_in] and answers in [-1, 1], as tanh does
    learning_rate: float = 2e-4
    beta1: float = 0.5  # of Adam
    l1_weight: float = 100.0  # λ
    adversarial_weight: float = 1.0  # 0 trains on L1 alone
    decay_from: float = 0.5  # share of the steps after which the learning rate falls linearly to zero
    steps: int = 1000  # in all; sets the decay
    precision: str = "bf16"  # of the convolutions: "bf16" or "float32"; weights and losses stay float32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "float32"):
            raise I2IError("precision", expected="'bf16' or 'float32'", got=repr(self.precision))
        if self.q_in not in colour.Q_VALUES:
            raise I2IError("q_in", expected="a power of two from 1 to 128", got=self.q_in)


class MattingTask:
    """Trains a generator, and a discriminator beside it, on patches that ``sample`` draws.

    Args:
        config: Sizes and rates.
        sample: Draws a batch with the given random generator: source (N, 3, H, W) and alpha (N, 1, H, W), float32
            in [0, 1], sRGB and coverage.
        device: Where to train.
    """

    def __init__(self, config: MattingConfig, sample: Sampler, *, device: str = "cpu"):
        self.options, self.sample, self.device = config, sample, torch.device(device)
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
        random = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
        torch.manual_seed(config.seed * 1_000_003 + index)  # for dropout
        source, alpha = (x.to(self.device, memory_format=torch.channels_last) for x in self.sample(random))
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
        return {name: float(value) for name, value in (losses | {"l1": l1}).items()}

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
