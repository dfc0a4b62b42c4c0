"""Restoration: a step is the thesis's, it starts as bicubic, folding changes nothing, resumed equals undisturbed."""

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from i2ilib import I2IError, IntegrityError, UnavailableError, metrics, models, runtime
from i2ilib.datasets import bvi_dvc, moving
from i2ilib.models import Discriminator, SRUNet, UNet
from i2ilib.models.layers import Block
from i2ilib.train import (
    RestorationConfig,
    RestorationData,
    RestorationTask,
    checkpoint,
    fit,
    losses,
    restoration,
    restoration_config,
    train_restoration,
)
from i2ilib.train.losses import vif_limited

runtime.require("torchvision")  # piq imports it
import piq  # noqa: E402

TINY = {
    "width": 8, "depth": 0.5, "discriminator_width": 4, "crop": 24, "batch": 2, "epochs": 2, "scale": 2,
    "perceptual": "vif_limited", "precision": "float32",
}  # fmt: skip
FOREVER = 1e9  # seconds between checkpoints: only epochs write them


class Blurred:
    """Stripes, and the same averaged over squares of two pixels: what is lost can be learned."""

    steps_per_epoch = 4

    def __init__(self, scale=2):
        self.scale = scale

    def __call__(self, step):
        random = torch.Generator().manual_seed(step)
        angle, phase = torch.rand(2, 4, 1, 1, 1, generator=random) * 6.28
        side = 24 * self.scale
        y, x = torch.meshgrid(torch.arange(side) * 0.7, torch.arange(side) * 0.7, indexing="ij")
        high = (0.5 + 0.5 * torch.sin(x * angle.cos() + y * angle.sin() + phase)).expand(-1, 3, -1, -1)
        return F.avg_pool2d(high, self.scale), high


def task(source=None, **fields):
    return RestorationTask(RestorationConfig(**TINY | fields), source or Blurred(fields.get("scale", 2)))


def train(made, folder, **more):
    return fit(made, folder, **{"progress": False, "save_every": FOREVER} | more)


def state(made):
    return {f"{n}.{k}": v.clone() for n, m in made.modules.items() for k, v in m.state_dict().items()}


def told(history):
    return {name: values for name, values in history.steps.items() if name not in ("wait", "seconds")}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three clips of five frames, 96x112 pixels and half of it."""
    root = tmp_path_factory.mktemp("pairs")
    for scene in moving.SCENES:
        bvi_dvc.write_clip(root, scene.name, moving.frames(scene, 5, height=96, width=112))
    return root


# --- losses -------------------------------------------------------------------------------------------


def test_vif_is_that_of_vmaf_neg():
    """Against the features that libvmaf tells; it mirrors borders, and its luma is of limited range."""
    target = torch.stack([*moving.frames(moving.SCENES[2], 2, height=192, width=256)])
    soft = F.avg_pool2d(F.pad(target, [1] * 4, mode="replicate"), 3, 1)
    noisy = (target + 0.03 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    sharp = (target + 0.5 * (target - soft)).clamp(0, 1)
    for pred in (soft, noisy, sharp):
        features = metrics.vmaf(pred, target, model="vmaf_v0.6.1neg").features
        theirs = [np.mean(values) for name, values in features.items() if "vif_scale" in name]
        assert len(theirs) == 4
        assert 1 - vif_limited(pred, target).item() == pytest.approx(np.mean(theirs), abs=0.03)


def test_sharpening_earns_nothing_and_blur_costs():
    image = moving.frame(moving.SCENES[0], 0.2, height=96, width=128)[None]
    soft = F.avg_pool2d(F.pad(image, [1] * 4, mode="replicate"), 3, 1)
    assert vif_limited(image, image).item() == pytest.approx(0, abs=1e-4)
    contrast = (0.5 + 1.3 * (0.5 * image + 0.25 - 0.5)).clamp(0, 1), 0.5 * image + 0.25  # more of the same, unclipped
    assert 0 <= vif_limited(*contrast).item() < 0.03
    assert vif_limited(contrast[1] * 0.7 + 0.15, contrast[1]).item() > 0.05, "less of it does cost"
    assert vif_limited(soft, image).item() > 0.15
    noisy = (image + 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert vif_limited(noisy, image).item() > 0.15


def test_losses_have_finite_gradients_everywhere():
    flat = torch.full((1, 3, 48, 48), 0.5)
    ramp = torch.linspace(0, 1, 48).expand(1, 3, 48, 48)
    for pred, target in ((flat, flat), (flat, ramp), (ramp, flat), (1 - ramp, ramp), (ramp * 0, ramp)):
        pred = pred.clone().requires_grad_()
        loss = vif_limited(pred, target)
        loss.backward()
        assert -1e-3 <= loss.item() <= 1 and torch.isfinite(pred.grad).all()


def test_lpips_is_the_metrics(monkeypatch):
    seen = []
    monkeypatch.setattr(metrics, "lpips", lambda *pair, **more: seen.append((pair, more)) or torch.tensor(0.5))
    pair = torch.rand(2, 1, 3, 48, 48)
    assert losses.PERCEPTUAL["lpips_vgg"](*pair) == 0.5
    ((given, more),) = seen
    assert torch.equal(given[0], pair[0]) and torch.equal(given[1], pair[1])
    assert more == {"value_range": 1.0, "net": "vgg"}


# --- one step -----------------------------------------------------------------------------------------


def test_a_step_is_that_of_the_thesis():
    """Against the same step in plain PyTorch, with piq's SSIM."""
    made = task(learning_rate=1e-3, discriminator_rate=5e-4, adversarial_weight=0.5)
    network = SRUNet(n_filters=8, layer_multiplier=0.5)
    judge = Discriminator(in_channels=3, width=4)
    network.load_state_dict(made.modules["generator"].state_dict())
    judge.load_state_dict(made.modules["discriminator"].state_dict())
    ours = [torch.optim.Adam(network.parameters(), 1e-3), torch.optim.Adam(judge.parameters(), 5e-4)]
    bce = nn.BCEWithLogitsLoss()
    for step in range(3):
        low, high = Blurred()(step)
        y = network(low * 2 - 1)
        real, fake = judge(high * 2 - 1), judge(y.detach())
        loss = (bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))) / 2
        expected = {"discriminator": loss.item()}
        ours[1].zero_grad()
        loss.backward()
        ours[1].step()
        shown = (y + 1) / 2
        parts = vif_limited(shown, high), 1 - piq.ssim(shown.double(), high.double(), downsample=False)
        fooled = judge(y)
        adversarial = bce(fooled, torch.ones_like(fooled))
        ours[0].zero_grad()
        (parts[0] + parts[1] + 0.5 * adversarial).backward()
        ours[0].step()
        expected |= {"vif_limited": parts[0].item(), "1 - ssim": parts[1].item(), "adversarial": adversarial.item()}
        assert made.step(step, (low, high)) == pytest.approx(expected, rel=2e-4, abs=2e-5), step
    for key, value in network.state_dict().items():
        torch.testing.assert_close(made.modules["generator"].state_dict()[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("model", "scale"), [("srunet", 2), ("srunet", 4), ("unet", 2), ("unet", 4)])
def test_it_starts_as_the_bicubic_enlargement(model, scale):
    made = task(model=model, scale=scale)
    network = made.modules["generator"].eval()
    assert type(network) is {"srunet": SRUNet, "unet": UNet}[model]
    low, _ = Blurred(scale)(0)
    with torch.no_grad():
        shown = network(low * 2 - 1)
    plain = F.interpolate(low * 2 - 1, scale_factor=scale, mode="bicubic", align_corners=False).clamp(-1, 1)
    torch.testing.assert_close(shown, plain, rtol=0, atol=1e-6)
    made.step(0, Blurred(scale)(0))
    assert made.modules["generator"].conv_last.weight.abs().max() > 0


@pytest.mark.parametrize(
    ("decay_from", "expected"),
    [(1.0, [1] * 8), (0.5, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]), (0.0, [1 - k / 8 for k in range(8)])],
)
def test_rates_fall_linearly(decay_from, expected):
    made = task(decay_from=decay_from, learning_rate=8e-4, discriminator_rate=2e-4)
    rates = {"generator": [], "discriminator": []}
    for step in range(8):
        made._set_rate(step)
        for name, found in rates.items():
            found.append(made.optimisers[name].param_groups[0]["lr"])
    assert rates["generator"] == pytest.approx([8e-4 * share for share in expected])
    assert rates["discriminator"] == pytest.approx([2e-4 * share for share in expected])


def test_without_a_judge_there_is_none():
    made = task(adversarial_weight=0.0)
    assert set(made.modules) == set(made.optimisers) == {"generator"}
    assert set(made.step(0, Blurred()(0))) == {"vif_limited", "1 - ssim"}


def test_what_nothing_uses_is_not_trained():
    made = task()
    network = made.modules["generator"].train()
    low, high = Blurred()(0)
    (network(low * 2 - 1) - high).square().mean().backward()
    idle = {name for name, p in network.named_parameters() if p.grad is None}
    assert idle == {name for name, p in network.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in idle} >= {"to_rgb", "dconv_down1"}


def test_losses_fall_and_the_result_beats_where_it_started(tmp_path):
    made = task(epochs=16, learning_rate=3e-3)
    low, high = Blurred()(10**6)

    def error():
        with torch.no_grad():
            return F.mse_loss((made.modules["generator"](low * 2 - 1) + 1) / 2, high).item()

    before = error()
    history = train(made, tmp_path)
    ssim = history.steps["1 - ssim"]
    assert np.mean(ssim[-10:]) < 0.7 * np.mean(ssim[:10])
    assert error() < 0.7 * before


# --- folding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["srunet", "unet"])
def test_what_is_deployed_is_folded_and_the_same(model, tmp_path):
    made = task(model=model)
    train(made, tmp_path)
    folded, apart = made.deployable()
    assert folded.config.folded and not any(m.conv_adapter for m in folded.modules() if isinstance(m, Block))
    x = torch.rand(1, 3, 32, 40) * 2 - 1
    with torch.no_grad():
        difference = (folded(x) - made.modules["generator"].eval()(x)).abs().max().item()
    assert 0 <= apart < 1e-5 and difference < 1e-5
    assert made.modules["generator"].config.folded is False, "the training goes on unfolded"


def test_the_difference_is_that_of_the_frames(root):
    config = RestorationConfig(**TINY | {"scale": None, "best_by": "ssim"})
    made = RestorationTask(config, RestorationData.of_folder(root, config, progress=False)[0])
    nn.init.normal_(made.modules["generator"].conv_last.weight)
    folded, apart = made.deployable()
    x = made.data.validation[0][0][:1].float() / 255 * 2 - 1
    with torch.no_grad():
        difference = (folded(x) - made.modules["generator"].eval()(x)).abs().max().item()
    assert difference == pytest.approx(apart, abs=5e-7) and apart > 0


# --- resuming -----------------------------------------------------------------------------------------


def test_in_two_halves_equals_in_one(tmp_path):
    whole, first, second = task(), task(), task()
    history = train(whole, tmp_path / "whole")

    def stop(so_far):
        if len(so_far) == 5:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(first, tmp_path / "halves", on_step=stop, save_every=0)
    again = train(second, tmp_path / "halves")
    assert told(again) == told(history) and len(history) == 8
    one, two = state(whole), state(second)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_another_configuration_is_refused(tmp_path):
    train(task(), tmp_path)
    with pytest.raises(IntegrityError, match="width=8 instead of 16"):
        train(task(width=16), tmp_path)


def test_a_training_keeps_its_perceptual_loss(tmp_path, monkeypatch):
    train(task(), tmp_path)
    monkeypatch.setattr(restoration, "fetched", lambda name: name)  # the trunk has come since
    auto = RestorationConfig(**TINY | {"perceptual": "auto"})
    assert restoration.settle_perceptual(auto).perceptual == "lpips_vgg"
    assert restoration.settle_perceptual(auto, tmp_path).perceptual == "vif_limited"
    assert RestorationTask(auto, Blurred(), folder=tmp_path).options.perceptual == "vif_limited"


def test_lpips_that_is_not_here_is_told_before_the_training(monkeypatch):
    def absent(name):
        raise UnavailableError(name, expected="a file in the cache", got="none", remedy="Run i2i fetch.")

    monkeypatch.setattr(restoration, "fetched", absent)
    assert task(perceptual="auto").config["perceptual"] == "vif_limited"
    with pytest.raises(UnavailableError, match="vgg16"):
        task(perceptual="lpips_vgg")


# --- a folder of clips --------------------------------------------------------------------------------


def folder_config(**fields):
    return RestorationConfig(**TINY | {"scale": None, "best_by": "ssim", "patches": 4} | fields)


def test_clips_validate_or_train(root):
    data, about = RestorationData.of_folder(root, folder_config(), progress=False)
    assert about == {"crf": 23, "clips": ["astronaut", "coffee"], "validation_clips": ["rocket"]}
    assert len(data.training.frames) == 10 and [low.shape for low, _ in data.validation] == [(5, 3, 48, 56)]
    data, about = RestorationData.of_folder(
        root, folder_config(), clips=["r*"], validation=["coffee", "ast*"], frames=2, progress=False
    )
    assert (about["clips"], about["validation_clips"]) == (["rocket"], ["astronaut", "coffee"])
    assert [high.shape for _, high in data.validation] == [(2, 3, 96, 112)] * 2
    low, high = bvi_dvc.read_pair(bvi_dvc.pairs(root, clip="astronaut")[1])
    assert torch.equal(data.validation[0][0][1].float() / 255, low)
    assert torch.equal(data.validation[0][1][1].float() / 255, high)


def test_a_single_clip_validates_on_its_end(tmp_path):
    bvi_dvc.write_clip(tmp_path, "one", moving.frames(moving.SCENES[0], 7, height=64, width=64))
    data, about = RestorationData.of_folder(tmp_path, folder_config(), progress=False)
    assert (len(data.training.frames), len(data.validation[0][0])) == (5, 2)
    last, _ = bvi_dvc.read_pair(bvi_dvc.pairs(tmp_path)[-1])
    assert torch.equal(data.validation[0][0][-1].float() / 255, last)
    assert about["clips"] == about["validation_clips"] == ["one"]


def test_what_is_kept_after_training(root, tmp_path):
    seen = []
    out, config = tmp_path / "m.safetensors", folder_config(best_by="vmaf_neg")
    history = train_restoration(
        root, out, config, progress=False, on_epoch=lambda made, h: seen.append((made.samples.shape, h.epochs[-1]))
    )
    assert (
        len(history) == 4 and [set(s) for s in history.epochs] == [{"psnr_db", "ssim", "vmaf_neg", "folded_within"}] * 2
    )
    assert [shape for shape, _ in seen] == [(1, 9, 48, 48)] * 2 and [s for _, s in seen] == history.epochs
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "checkpoint.safetensors",
        "epoch_01.safetensors",
        "epoch_02.safetensors",
    ]
    model, meta = models.load(out)
    best = 1 + int(np.argmax([scores["vmaf_neg"] for scores in history.epochs]))
    assert out.read_bytes() == (tmp_path / f"m/epoch_{best:02d}.safetensors").read_bytes()
    assert model.config == models.SRUNetConfig(n_filters=8, layer_multiplier=0.5, folded=True)
    assert {"task": "restoration", "colour": "srgb", "q_in": 1, "scale": 2, "crf": 23}.items() <= meta.items()
    settled = dataclasses.asdict(dataclasses.replace(config, scale=2))
    assert meta["trained"] == json.loads(json.dumps(settled)) | {
        "crf": 23, "clips": ["astronaut", "coffee"], "validation_clips": ["rocket"],
        "epoch": best, "validation": history.epochs[best - 1],
    }  # fmt: skip
    assert 0 <= history.waiting < 1


def test_validation_is_what_the_metrics_say(root):
    config = folder_config(best_by="vmaf_neg")
    data, _ = RestorationData.of_folder(root, config, validation=["coffee", "rocket"], progress=False)
    made = RestorationTask(config, data)
    scores = made.validate(made.deployable()[0])
    pairs = []
    for low, high in data.validation:  # an untrained network is the bicubic enlargement
        shown = F.interpolate(low.float() / 255 * 2 - 1, scale_factor=2, mode="bicubic").clamp(-1, 1)
        pairs.append((((shown + 1) / 2).mul(255).round() / 255, high.float() / 255))
    neg = np.mean([metrics.vmaf(*pair, model="vmaf_v0.6.1neg").mean for pair in pairs])
    psnr = np.mean([piq.psnr(*pair, reduction="none").mean().item() for pair in pairs])
    assert scores["vmaf_neg"] == pytest.approx(neg, abs=0.2) and scores["psnr_db"] == pytest.approx(psnr, abs=0.01)
    plain = made.samples[:, :3] - made.samples[:, 3:6]
    assert plain.abs().max() < 1 / 255 and torch.equal(made.samples[0, 6:], pairs[0][1][0, :, 24:72, 32:80])


def test_a_folder_in_two_halves_equals_in_one(root, tmp_path):
    def stop(history):
        if len(history) == 3:
            raise RuntimeError("power cut")

    found = {}
    for name in ("whole", "halves"):
        out = tmp_path / f"{name}.safetensors"
        if name == "halves":
            with pytest.raises(RuntimeError, match="power cut"):
                train_restoration(root, out, folder_config(), progress=False, on_step=stop)
        found[name] = train_restoration(root, out, folder_config(), progress=False)
    assert told(found["halves"]) == told(found["whole"]) and found["halves"].epochs == found["whole"].epochs
    halves, whole = (models.load(tmp_path / f"{name}.safetensors") for name in ("halves", "whole"))
    assert halves[1] == whole[1]
    assert all(torch.equal(value, whole[0].state_dict()[key]) for key, value in halves[0].state_dict().items())


def test_unet_at_four_times(tmp_path):
    bvi_dvc.write_clip(tmp_path, "one", moving.frames(moving.SCENES[0], 6, height=128, width=136), scale=4)
    out, config = tmp_path / "u.safetensors", folder_config(model="unet", epochs=1)
    train_restoration(tmp_path, out, config, progress=False)
    model, meta = models.load(out)
    assert type(model) is UNet and (model.config.scale, meta["scale"]) == (4, 4)
    assert model.config.filters == (8, 16, 32, 64)
    assert model(torch.zeros(1, 3, 32, 40)).shape == (1, 3, 128, 160)


def test_the_batch_of_two_processes_is_that_of_one(root, tmp_path):
    script = tmp_path / "each.py"
    script.write_text(
        "import os, sys\n"
        "from i2ilib.train import RestorationConfig, train_restoration, parallel\n"
        f"fields = {folder_config(epochs=1, best_by='ssim')!r}\n"
        "with parallel.world() as (here, device):\n"
        f"    out = {str(tmp_path / 'two.safetensors')!r}\n"
        f"    train_restoration({str(root)!r}, out, fields, world=here, progress=False)\n"
        "os._exit(0)\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        launch, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    train_restoration(root, tmp_path / "one.safetensors", folder_config(epochs=1), progress=False)
    steps = {}
    for name in ("one", "two"):
        _, steps[name] = checkpoint.load(tmp_path / name / "checkpoint.safetensors", modules={}, optimisers={})
    for key in told(SimpleNamespace(steps=steps["one"])):
        np.testing.assert_allclose(steps["two"][key], steps["one"][key], rtol=1e-3, atol=1e-4, err_msg=key)


# --- what cannot be -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"model": "vgg"}, r"model: expected srunet or unet, got 'vgg'"),
        ({"perceptual": "lpips"}, r"perceptual: expected auto or lpips_vgg or vif_limited, got 'lpips'"),
        ({"best_by": "mse"}, r"best_by: expected psnr_db or ssim or vmaf_neg"),
        ({"crop": 16}, r"crop: expected a multiple of 8, 24 or more"),
        ({"crop": 100}, "crop"),
        ({"precision": "int8"}, "precision"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"epochs": 0}, "epochs: expected at least 1"),
        ({"batch": 0}, "batch"),
        ({"patches": 0}, "patches"),
        ({"scale": 0}, "scale"),
        ({"scale": 2, "width": 7}, r"n_filters: expected an even number"),
        ({"scale": 2, "depth": 0.1}, "layer_multiplier"),
    ],
)
def test_configurations_that_cannot_be(fields, match):
    with pytest.raises(I2IError, match=match):
        RestorationConfig(**fields)


def test_the_defaults_are_the_thesiss():
    config = restoration_config("full")
    assert (config.learning_rate, config.crop, config.width, config.depth) == (1e-4, 96, 64, 1.0)
    assert (config.perceptual_weight, config.ssim_weight, config.adversarial_weight) == (1.0, 1.0, 0.001)
    assert config.decay_from == 1.0 and dataclasses.replace(config, scale=4).build().config.scale == 4
    unet = dataclasses.replace(config, model="unet", scale=4).build()
    assert unet.config.filters == (64, 128, 256, 512)


def test_presets():
    assert restoration_config("smoke").patches < restoration_config("quick").patches
    assert restoration_config("quick", width=16).width == 16
    with pytest.raises(I2IError, match=r"preset: expected smoke or quick or full, got 'huge'"):
        restoration_config("huge")


def test_places_and_clips_that_cannot_be(root, tmp_path):
    out = tmp_path / "m.safetensors"
    with pytest.raises(I2IError, match=r"m\.pt.*\.safetensors"):
        train_restoration(root, tmp_path / "m.pt", folder_config(), progress=False)
    with pytest.raises(I2IError, match=r"validation: expected astronaut or coffee or rocket, got 'cof'"):
        train_restoration(root, out, folder_config(), validation=["cof"], progress=False)
    with pytest.raises(I2IError, match=r"clips: expected.*'x\*'"):
        train_restoration(root, out, folder_config(), clips=["x*"], progress=False)
    with pytest.raises(I2IError, match=r"at least one frame"):
        train_restoration(root, out, folder_config(), validation=["*"], progress=False)
    with pytest.raises(I2IError, match=r"compressed frames of one CRF, got none"):
        train_restoration(tmp_path, out, folder_config(), progress=False)
    with pytest.raises(I2IError, match=r"frames_QF30"):
        train_restoration(root, out, folder_config(), crf=30, progress=False)
    with pytest.raises(I2IError, match=r"at least 96 x 96 pixels, got 48 x 56"):
        train_restoration(root, out, folder_config(crop=96), progress=False)
    with pytest.raises(I2IError, match=r"scale: expected 2, that of the data, got 4"):
        train_restoration(root, out, folder_config(scale=4), progress=False)
    with pytest.raises(I2IError, match=r"scale: expected a whole number, got none"):
        RestorationTask(folder_config(), Blurred())
    assert not list(tmp_path.iterdir())
