"""The restoration task: SRUNet or UNet from a small, compressed frame to the frame as it was, trained as a GAN.

The restoration thesis's losses: LPIPS (vgg) + (1 - SSIM) + 0.001 adversarial, Adam at 1e-4, random crops of 96x96.
Where the trunk of LPIPS is not on this machine another loss takes its place, under its own name: see
:data:`i2ilib.train.losses.PERCEPTUAL`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import colour, metrics, models
from ..datasets import bvi_dvc
from ..errors import I2IError, UnavailableError
from ..metrics.video import with_libvmaf
from ..models import Discriminator
from ..models.layers import Block, Enlarger, enlarge
from ..runtime import fetched
from . import parallel
from .batches import Batches
from .gan import GanTask, began_with, check_config, check_suffix, train_and_keep
from .loop import History, of_preset
from .losses import PERCEPTUAL
from .parallel import World

NETWORKS = ("srunet", "unet")
SCORES = ("psnr_db", "ssim", "vmaf_neg")  # of every epoch, as metrics.KEYS has them
_TRUNK = "vgg16-397923af.pth"


@dataclasses.dataclass(frozen=True)
class RestorationConfig:
    """How a network is trained to restore; the defaults are the thesis's, where it gives a number."""

    model: str = "srunet"
    width: int = 64  # filters: SRUNet's n_filters; of UNet's outermost stage, doubled at every one below
    depth: float = 1.0  # SRUNet's layer_multiplier
    scale: int | None = None  # how much larger the result is; that of the data when None
    discriminator_width: int = 64
    learning_rate: float = 1e-4
    discriminator_rate: float = 1e-4
    beta1: float = 0.9  # of Adam
    perceptual: str = "auto"  # a name in PERCEPTUAL; "auto": lpips_vgg where its trunk is here, else its substitute
    perceptual_weight: float = 1.0
    ssim_weight: float = 1.0  # of 1 - SSIM
    adversarial_weight: float = 0.001  # 0 trains without a discriminator
    decay_from: float = 1.0  # share of the steps after which the learning rate falls linearly to zero
    epochs: int = 60
    patches: int | None = None  # crops an epoch, drawn anew each time; as many as lie side by side when None
    crop: int = 96  # side, pixels of the small frame
    flip: bool = True  # turn and mirror crops
    batch: int = 8  # crops a step, over all processes
    best_by: str = "vmaf_neg"  # the score that chooses the epoch; another one is computed without libvmaf
    precision: str = "auto"  # of the convolutions: "bf16", "float32" or what fits; weights and losses stay float32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in NETWORKS:
            raise I2IError("model", expected=" or ".join(NETWORKS), got=repr(self.model))
        if self.perceptual not in ("auto", *PERCEPTUAL):
            raise I2IError("perceptual", expected=" or ".join(("auto", *PERCEPTUAL)), got=repr(self.perceptual))
        if self.best_by not in SCORES:
            raise I2IError("best_by", expected=" or ".join(SCORES), got=repr(self.best_by))
        if self.crop < 24 or self.crop % 8:
            raise I2IError("crop", expected="a multiple of 8, 24 or more", got=self.crop)
        check_config(self, at_least_one=("epochs", "batch", "patches", "scale"))
        if self.scale is not None:
            self.build()  # refuses what makes no network

    def build(self) -> Enlarger:
        """The network with fresh weights, at the scale that is settled."""
        if self.model == "unet":
            return models.UNet(filters=tuple(self.width * 2**k for k in range(4)), scale=self.scale)
        return models.SRUNet(n_filters=self.width, layer_multiplier=self.depth, scale=self.scale)


PRESETS: dict[str, dict[str, object]] = {
    "smoke": {"width": 8, "depth": 0.5, "discriminator_width": 8, "crop": 48, "epochs": 2, "patches": 16, "batch": 4},
    "quick": {
        "width": 32, "discriminator_width": 16, "learning_rate": 1e-3, "decay_from": 0.3, "epochs": 6, "patches": 1000,
        "batch": 2,
    },
    "full": {},
}  # fmt: skip


def restoration_config(preset: str, **fields: object) -> RestorationConfig:
    """The configuration of a preset: smoke (seconds), quick (small enough for a CPU), full (the thesis's; a GPU).

    Args:
        preset: "smoke", "quick" or "full".
        **fields: Single fields of :class:`RestorationConfig` to set.

    Raises:
        I2IError: If there is no such preset, or a field has a value that cannot be.

    Example:
        >>> restoration_config("quick", batch=2).patches
        1000
    """
    return RestorationConfig(**of_preset(PRESETS, preset, fields))


def settle_perceptual(config: RestorationConfig, folder: str | os.PathLike | None = None) -> RestorationConfig:
    """The configuration with "auto" decided: as the training in the folder began, else LPIPS where its trunk is here.

    Raises:
        UnavailableError: If LPIPS is asked for, or the training began with it, and its trunk is not here.
    """
    name = config.perceptual
    if name == "auto":
        name = began_with(folder, "perceptual")
        if name not in PERCEPTUAL:
            try:
                fetched(_TRUNK)
                name = "lpips_vgg"
            except UnavailableError:
                name = next(other for other in PERCEPTUAL if other != "lpips_vgg")
    if name == "lpips_vgg":
        fetched(_TRUNK)  # now, not at the first step
    return dataclasses.replace(config, perceptual=name)


@dataclasses.dataclass(frozen=True)
class RestorationData:
    """Frames of a training, as 8-bit codes."""

    training: bvi_dvc.CropDataset
    validation: tuple[tuple[Tensor, Tensor], ...] = ()  # small and large frames of a clip: (N, 3, h, w) uint8 each

    @classmethod
    def of_folder(
        cls,
        root: str | os.PathLike,
        config: RestorationConfig,
        *,
        crf: int | None = None,
        clips: Sequence[str] | None = None,
        validation: Sequence[str] | None = None,
        frames: int = 16,
        budget_bytes: int = 4 * 2**30,
        progress: bool = True,
    ) -> tuple[RestorationData, dict]:
        """Hold the frames of a folder from ``i2i degrade``, some clips of it for validation.

        Args:
            root: The folder.
            config: Crop, flips and seed.
            crf: Of the compressed frames; the only one there when None.
            clips: Names of the clips to train on, or patterns such as ``coffee_*``; all others when None.
            validation: The same of those that validate. The last tenth of all, in order, when None; of a single clip
                its last sixth of frames.
            frames: Most validation frames of a clip, the first ones: motion is judged between neighbours.
            budget_bytes: Most memory that training frames may take; beyond it they lie in a mapped file.
            progress: Show a bar while frames are decoded.

        Returns:
            The data, and what the configuration should say of it: ``crf``, and the two lists of clips.

        Raises:
            I2IError: If there is nothing to train or to validate on, or frames are too small.
        """
        crf = bvi_dvc.only_crf(root) if crf is None else crf
        by_clip: dict[str, list[bvi_dvc.Pair]] = {}
        for pair in bvi_dvc.pairs(root, crf):
            by_clip.setdefault(pair.high.parent.name, []).append(pair)
        names = list(by_clip)
        held = _chosen("validation", names, validation) if validation else names[len(names) - -(-len(names) // 10) :]
        taken = _chosen("clips", names, clips) if clips else [name for name in names if name not in held]
        if len(names) == 1 and not validation:
            (pairs,) = by_clip.values()
            last = -(-len(pairs) // 6)
            taken, by_clip = names, {names[0]: pairs[:-last], "": pairs[-last:]}
            tested = [by_clip[""]]
        else:
            if both := [name for name in taken if name in held]:
                remedy = "Name other clips to validate on."
                raise I2IError("clips", expected="none that validates too", got=", ".join(both), remedy=remedy)
            tested = [by_clip[name] for name in held]
        training = bvi_dvc.CropDataset(
            [pair for name in taken for pair in by_clip[name]],
            size=config.crop, flip=config.flip, seed=config.seed, budget_bytes=budget_bytes, progress=progress,
        )  # fmt: skip
        held_out = tuple(_stacked(pairs[:frames]) for pairs in tested)
        return cls(training, held_out), {"crf": crf, "clips": taken, "validation_clips": held}


def _chosen(what: str, names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise I2IError(what, expected=" or ".join(names[:8]), got=repr(pattern))
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _stacked(pairs: Sequence[bvi_dvc.Pair]) -> tuple[Tensor, Tensor]:
    low, high = zip(*map(bvi_dvc.read_pair, pairs), strict=True)
    return tuple(torch.stack(part).mul(255).round().to(torch.uint8) for part in (low, high))


class RestorationTask(GanTask):
    """Trains a network that starts as the bicubic enlargement, and a discriminator that sees its results alone.

    Args:
        config: Sizes and rates; "auto" and a scale of None are settled here.
        data: What to train and validate on; or any function from a step to (low, high) with an attribute
            ``steps_per_epoch``: (N, 3, h, w) and (N, 3, s h, s w), float32, sRGB codes in [0, 1].
        device: Where to train.
        folder: Of the training, where the network of every epoch is kept, folded; kept nowhere when None.
        about: JSON values that belong to the configuration and are kept with it: the clips.
        world: This process among those that train together.

    Attributes:
        samples: What the last epoch's network makes of up to three validation frames, their middle: (N, 9, H, W)
            float32 in [0, 1], bicubic enlargement, made and true; None before.

    Raises:
        I2IError: If the scale is neither given nor that of the data, or another one.
        UnavailableError: If the perceptual loss or the deciding score cannot be had.
    """

    sample_parts: ClassVar[dict[str, int]] = {"bicubic": 3, "made": 3, "true": 3}

    def __init__(
        self,
        config: RestorationConfig,
        data: RestorationData | Batches,
        *,
        device: str = "cpu",
        folder: str | os.PathLike | None = None,
        about: dict | None = None,
        world: World | None = None,
    ):
        config = settle_perceptual(config, folder)
        self.data = data if isinstance(data, RestorationData) else None
        batches = data
        if self.data:
            training = self.data.training
            if config.scale not in (None, training.scale):
                raise I2IError("scale", expected=f"{training.scale}, that of the data", got=config.scale)
            config = dataclasses.replace(config, scale=training.scale)
            options = {"batch": config.batch, "per_epoch": config.patches, "seed": config.seed, "world": world}
            batches = Batches(training, **options)
            if config.best_by == "vmaf_neg" and self.data.validation:
                with_libvmaf()  # now, not after an epoch
        if config.scale is None:
            raise I2IError("scale", expected="a whole number", got="none, and no data that tells it")
        more = {"device": device, "folder": folder, "about": about, "world": world}
        super().__init__(config, self._networks, batches, **more)

    def _networks(self, config: RestorationConfig) -> dict[str, nn.Module]:
        generator = config.build()
        nn.init.zeros_(generator.conv_last.weight)
        nn.init.zeros_(generator.conv_last.bias)
        _leave_out_the_unused(generator)
        found: dict[str, nn.Module] = {"generator": generator}
        if config.adversarial_weight:
            found["discriminator"] = Discriminator(in_channels=3, width=config.discriminator_width)
        return found

    def _rate(self, name: str) -> float:
        return self.options.discriminator_rate if name == "discriminator" else self.options.learning_rate

    def step(self, index: int, batch: tuple[Tensor, ...]) -> dict[str, float]:
        """One step of the discriminator, then one of the network."""
        config = self.options
        low, high = (part.to(self.device, memory_format=torch.channels_last) for part in batch)
        self._set_rate(index)
        losses = {}
        with self._precision():
            made = self._trained["generator"](colour.to_fixed(low, 1)).float()
        shown = colour.from_fixed(made, 1)
        if config.adversarial_weight:
            losses["discriminator"] = self._train_judge(made.detach(), colour.to_fixed(high, 1))
        losses[config.perceptual] = PERCEPTUAL[config.perceptual](shown, high)
        losses["1 - ssim"] = 1 - metrics.ssim(shown, high, value_range=1.0)
        loss = config.perceptual_weight * losses[config.perceptual] + config.ssim_weight * losses["1 - ssim"]
        if config.adversarial_weight:
            losses["adversarial"] = self._fool(made)
            loss = loss + config.adversarial_weight * losses["adversarial"]
        self._descend("generator", loss)
        return parallel.average(losses, self.world)

    def deployable(self) -> tuple[Enlarger, float]:
        """The network folded, in evaluation mode, and the largest difference that folding made: values in [-1, 1]."""
        network = self.options.build()
        network.load_state_dict(self.modules["generator"].state_dict())
        network.eval()
        folded = models.reparametrise(network).to(self.device)
        if self.data and self.data.validation:
            low = self.data.validation[0][0][:1]
            low = low[..., : low.shape[2] // 8 * 8, : low.shape[3] // 8 * 8]
            x = colour.to_fixed(low.float().div(255), 1)
        else:
            x = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(self.options.seed)) * 2 - 1
        x = x.to(self.device)
        with torch.no_grad():
            return folded, (folded(x) - network.to(self.device)(x)).abs().max().item()

    def finish_epoch(self, epoch: int) -> dict[str, float]:
        """Score the folded network on the validation frames and keep it with its scores."""
        network, apart = self.deployable()
        scores = self.validate(network) | {"folded_within": apart}
        about = {"scale": self.options.scale, "crf": self.about.get("crf")}
        self._keep(epoch, network.cpu(), scores, task="restoration", colour="srgb", q_in=1, **about)
        return scores

    def validate(self, network: Enlarger) -> dict[str, float]:
        """:data:`SCORES`, means over the validation frames, each shown in 8 bits; none without them."""
        if not (self.data and self.data.validation):
            return {}
        keys = SCORES if self.options.best_by == "vmaf_neg" else SCORES[:2]
        found: dict[str, list[Tensor]] = {key: [] for key in keys}
        samples = []
        for low, high in self.data.validation:
            true = high.float().div(255)
            made = enlarge(network, low.float().div(255)).mul(255).round().div(255)
            for key in keys:
                found[key].append(metrics.KEYS[key](made, true).double().cpu())
            samples.append(self._sample(low[:1].float().div(255), made[:1], true[:1]))
        spread = sorted({len(samples) * k // 3 for k in range(3)})
        smallest = [min(sample.shape[axis] for sample in samples) for axis in (2, 3)]
        self.samples = torch.cat([samples[i][..., : smallest[0], : smallest[1]] for i in spread])
        return {key: torch.cat(values).mean().item() for key, values in found.items()}

    def _sample(self, low: Tensor, made: Tensor, true: Tensor) -> Tensor:
        """The middle of a frame, enlarged without a network, made and true: (1, 9, H, W)."""
        plain = F.interpolate(low, size=true.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
        both = torch.cat([plain, made, true], 1)
        side = self.options.scale * self.options.crop
        top, left = ((length - min(side, length)) // 2 for length in both.shape[-2:])
        return both[..., top : top + side, left : left + side]


def _leave_out_the_unused(network: nn.Module) -> None:
    """Parameters that the published files have and nothing uses are not trained: several processes would wait."""
    for name, module in network.named_modules():
        unused = [module.conv_adapter] if isinstance(module, Block) and not module.sums else []
        for part in [*unused, *([module] if name == "to_rgb" else [])]:
            if part is not None:
                part.requires_grad_(False)


def train_restoration(
    data: str | os.PathLike,
    out: str | os.PathLike,
    config: RestorationConfig | None = None,
    *,
    crf: int | None = None,
    clips: Sequence[str] | None = None,
    validation: Sequence[str] | None = None,
    device: str = "cpu",
    budget_bytes: int = 4 * 2**30,
    progress: bool = True,
    save_every: float | None = None,
    world: World | None = None,
    on_step: Callable[[History], None] | None = None,
    on_epoch: Callable[[RestorationTask, History], None] | None = None,
) -> History:
    """Train a network on pairs of frames and keep the best epoch's, folded.

    The folder named like ``out`` without suffix holds ``checkpoint.safetensors``, from which an interrupted training
    goes on, and the network of every epoch.

    Args:
        data: Folder from ``i2i degrade``.
        out: The ``.safetensors`` file to write.
        config: Sizes, losses and rates.
        crf: As for :meth:`RestorationData.of_folder`, and so are
        clips: those to train on, and
        validation: those that choose the epoch.
        device: Where to train.
        budget_bytes: Most memory that decoded frames may take.
        progress: Show a bar.
        save_every: As in :func:`i2ilib.train.fit`.
        world: This process among those that train together.
        on_step: As in :func:`i2ilib.train.fit`.
        on_epoch: The same, with the task.

    Returns:
        The losses of every step, and the scores of every epoch; ``folded_within`` is the largest difference that
        folding made.

    Raises:
        I2IError: If there is nothing to train on, or ``out`` has another suffix.
        UnavailableError: If the perceptual loss or the deciding score cannot be had.
        IntegrityError: If the checkpoint there belongs to another configuration or is damaged.
        KeyboardInterrupt: If the training was asked to end.
    """
    config, out, world = config or RestorationConfig(), Path(out), world or World()
    check_suffix(out)
    loaded, about = RestorationData.of_folder(
        data, config, crf=crf, clips=clips, validation=validation,
        budget_bytes=budget_bytes, progress=progress and world.leads,
    )  # fmt: skip
    task = RestorationTask(config, loaded, device=device, folder=out.with_suffix(""), about=about, world=world)
    fitting = {"save_every": save_every, "progress": progress, "on_step": on_step}
    return train_and_keep(task, out, config.best_by, highest=True, on_epoch=on_epoch, **fitting)
