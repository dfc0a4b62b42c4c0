"""The avatar task: a codec avatar decoder learns the synthetic faces, all three outputs at once."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import models
from ..datasets import faces
from ..errors import I2IError
from ..models import Avatar, CodecAvatarConfig, CodecAvatarDecoder
from ..models.codec_avatar import UntiedConv2d
from .batches import Batches
from .loop import History, fit, of_preset
from .parallel import World


@dataclasses.dataclass(frozen=True)
class AvatarConfig:
    """How a decoder of the synthetic faces is trained; the defaults take minutes on two cores."""

    size: int = 256  # height and width of the texture
    width: float = 0.5  # channels, as a multiple of the paper's
    tied: tuple[str, ...] = ()  # convolutions with one bias a channel
    faces: int = 128  # expressions and views that are drawn once
    epochs: int = 30
    batch: int = 4
    learning_rate: float = 2e-3  # of Adam; falls to zero along a cosine
    geometry_weight: float = 4.0  # of the squared errors in the sum that is minimised; the texture's is 1
    warp_weight: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tied", tuple(self.tied))
        for name in ("faces", "epochs", "batch"):
            if (value := getattr(self, name)) < 1:
                raise I2IError(name, expected="at least 1", got=value)
        CodecAvatarConfig(size=self.size, width=self.width, tied=self.tied)  # refuses what makes no network

    @property
    def decoder(self) -> CodecAvatarConfig:
        """What is trained."""
        return CodecAvatarConfig(size=self.size, width=self.width, tied=self.tied)


PRESETS: dict[str, dict[str, object]] = {
    "smoke": {"size": 64, "width": 0.125, "faces": 16, "epochs": 2},
    "quick": {},
    "full": {"faces": 512, "epochs": 24},
}


def avatar_config(preset: str, **fields: object) -> AvatarConfig:
    """The configuration of a preset: smoke (seconds), quick (a minute or two), full (that of the weights that ship).

    Args:
        preset: "smoke", "quick" or "full".
        **fields: Single fields of :class:`AvatarConfig` to set.

    Raises:
        I2IError: If there is no such preset, or a field has a value that cannot be.
    """
    return AvatarConfig(**of_preset(PRESETS, preset, fields))


class FaceDataset:
    """Faces with random expressions from random directions, computed once; textures are kept as 8-bit codes.

    Args:
        count: How many.
        size: Of the texture.
        seed: The same gives the same.
        progress: Show a bar.
    """

    def __init__(self, count: int, *, size: int, seed: int, progress: bool = False):
        self.latents, self.views = faces.draw(count, seed=seed)
        parts = []
        for start in tqdm(range(0, count, 4), desc="faces", disable=not progress, leave=False):
            chosen = slice(start, start + 4)
            geometry, texture, warp = faces.face(self.latents[chosen], self.views[chosen], size=size)
            parts.append((geometry, texture.mul(255).round().to(torch.uint8), warp))
        self.geometry, self.texture, self.warp = (torch.cat(part) for part in zip(*parts, strict=True))

    def __len__(self) -> int:
        return len(self.latents)

    def cut(self, index: int, epoch: int) -> tuple[Tensor, ...]:
        """Latent, view, geometry, texture in [0, 1] and warp field of one face; the same in every epoch."""
        texture = self.texture[index].float().div(255)
        return self.latents[index], self.views[index], self.geometry[index], texture, self.warp[index]


def errors(made: Avatar, true: Avatar, *, weight: Tensor | None = None) -> dict[str, Tensor]:
    """Mean squared error of each output: half heads squared, [0, 1] squared, warp units squared.

    Args:
        made: What a decoder gives.
        true: What it should give.
        weight: Of the texture's errors, (s, s) with mean 1; the same everywhere when None.
    """
    found = {name: (a - b).square() for name, a, b in zip(Avatar._fields, made, true, strict=True)}
    if weight is not None:
        found["texture"] = found["texture"] * weight
    return {name: squares.mean() for name, squares in found.items()}


@torch.no_grad()
def start_from_mean(decoder: CodecAvatarDecoder, data: FaceDataset) -> None:
    """Give outputs with an untied bias the mean face as bias, so that only what differs from it is left to learn."""
    texture = data.texture.float().mean(0) / 255
    means = {"geometry.conv6": data.geometry.mean(0), "texture.conv8": texture, "warp.conv6": data.warp.mean(0)}
    for name, mean in means.items():
        if isinstance(layer := decoder.get_submodule(f"{name}.conv"), UntiedConv2d):
            layer.bias[: len(mean)] = mean


class AvatarTask:
    """Trains a decoder on squared errors; those of the texture weigh most where a viewer looks.

    Args:
        config: Sizes and rates.
        device: Where to train.
        progress: Show a bar while the faces are computed.
    """

    def __init__(self, config: AvatarConfig, *, device: str = "cpu", progress: bool = True):
        self.options, self.device, self.world = config, torch.device(device), World()
        self.config, self.epochs = dataclasses.asdict(config) | {"tied": list(config.tied)}, config.epochs
        data = FaceDataset(config.faces, size=config.size, seed=config.seed, progress=progress)
        self.batches = Batches(data, batch=min(config.batch, config.faces), seed=config.seed)
        self.unseen = FaceDataset(16, size=config.size, seed=config.seed + 1)
        self.attention = faces.attention(config.size).to(self.device)
        torch.manual_seed(config.seed)
        decoder = CodecAvatarDecoder(config.decoder)
        start_from_mean(decoder, data)
        decoder.to(self.device)
        self.modules = {"decoder": decoder}
        self.optimisers = {"decoder": torch.optim.Adam(decoder.parameters(), config.learning_rate)}

    def step(self, index: int, batch: tuple[Tensor, ...]) -> dict[str, float]:
        """One step on (latent, view, geometry, texture, warp); the three squared errors before it."""
        config, optimiser = self.options, self.optimisers["decoder"]
        share = index / (self.epochs * self.batches.steps_per_epoch)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        latent, view, *true = (part.to(self.device) for part in batch)
        losses = errors(self.modules["decoder"](latent, view), Avatar(*true), weight=self.attention)
        total = losses["texture"] + config.geometry_weight * losses["geometry"] + config.warp_weight * losses["warp"]
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        return {name: loss.item() for name, loss in losses.items()}

    @torch.no_grad()
    def finish_epoch(self, epoch: int) -> dict[str, float]:
        """Score the decoder on faces that it was not trained on: mean squared errors, and PSNR of the texture in dB."""
        data, decoder = self.unseen, self.modules["decoder"]
        parts = []
        for i in range(len(data)):
            latent, view, *true = (part[None].to(self.device) for part in data.cut(i, 0))
            parts.append(errors(decoder(latent, view), Avatar(*true)))
        scores = {name: sum(part[name].item() for part in parts) / len(parts) for name in Avatar._fields}
        return scores | {"psnr": -10 * math.log10(max(scores["texture"], 1e-12))}


def train_avatar(
    out: str | os.PathLike,
    config: AvatarConfig | None = None,
    *,
    device: str = "cpu",
    half: bool = False,
    progress: bool = True,
) -> History:
    """Train a decoder and keep it as a weights file; a training that was interrupted goes on.

    The folder named like ``out`` without suffix holds the checkpoint.

    Args:
        out: The ``.safetensors`` file to write.
        config: Sizes and rates.
        device: Where to train.
        half: Store the parameters in half precision; they are loaded as float32.
        progress: Show bars.

    Returns:
        The errors of every step, and the scores of every epoch.

    Raises:
        I2IError: If ``out`` has another suffix.
        IntegrityError: If the checkpoint there belongs to another configuration or is damaged.
    """
    config, out = config or AvatarConfig(), Path(out)
    if out.suffix != ".safetensors":  # now, not after the training
        raise I2IError(str(out), expected="the suffix .safetensors", got=repr(out.suffix))
    task = AvatarTask(config, device=device, progress=progress)
    history = fit(task, out.with_suffix(""), progress=progress)
    decoder = task.modules["decoder"].cpu()
    trained = task.config | {"validation": history.epochs[-1]}
    models.save(out, decoder.half() if half else decoder, task="avatar", colour="srgb", trained=trained)
    return history


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m i2ilib.train.avatar``: train a decoder from the command line."""
    parser = argparse.ArgumentParser(prog="python -m i2ilib.train.avatar", description="Train a codec avatar decoder.")
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--preset", choices=PRESETS, default="quick")
    parser.add_argument("--half", action="store_true", help="store the parameters in half precision")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    train_avatar(options.out, avatar_config(options.preset), device=options.device, half=options.half)


if __name__ == "__main__":
    main()
