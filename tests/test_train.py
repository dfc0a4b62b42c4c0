"""Training: a step is pix2pix's, resumed equals undisturbed, bad checkpoints are refused, the best epoch stays."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import shared
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import nn

from i2ilib import I2IError, IntegrityError, models
from i2ilib.datasets import videomatte
from i2ilib.models import Discriminator, Generator
from i2ilib.runtime import machine
from i2ilib.train import (
    History,
    MattingConfig,
    MattingData,
    MattingTask,
    checkpoint,
    fit,
    gan,
    loop,
    matting_config,
    train_matting,
)
from i2ilib.train.gan import best_epoch, has_bf16, settle_precision
from i2ilib.train.matting import settle_mode

TINY = {"width": 4, "discriminator_width": 4, "epochs": 2}
FOREVER = 1e9  # seconds between checkpoints: only epochs write them


class Squares:
    """An easy task: one bright square at a place that depends on the step; alpha is the square."""

    steps_per_epoch = 4

    def __call__(self, step):
        generator = torch.Generator().manual_seed(step)
        top, left = torch.randint(0, 128, (2,), generator=generator).tolist()
        alpha = torch.zeros(1, 1, 256, 256)
        alpha[..., top : top + 128, left : left + 128] = 1
        return 0.1 + 0.8 * alpha.expand(1, 3, 256, 256), alpha


class Coins:
    """A matte of coin tosses, which no generator can foresee and every discriminator can recognise."""

    steps_per_epoch = 30

    def __call__(self, step):
        generator = torch.Generator().manual_seed(step)
        return torch.full((1, 3, 256, 256), 0.5), torch.randint(0, 2, (1, 1, 256, 256), generator=generator).float()


def task(source=None, **fields):
    return MattingTask(MattingConfig(**TINY | fields), source or Squares())


def train(made, folder, **more):
    return fit(made, folder, **{"progress": False, "save_every": FOREVER} | more)


def state(made):
    weights = {f"{n}.{k}": v for n, m in made.modules.items() for k, v in m.state_dict().items()}
    moments = {
        f"{n}.{i}.{k}": v
        for n, o in made.optimisers.items()
        for i, s in o.state_dict()["state"].items()
        for k, v in s.items()
    }
    return {name: value.clone() for name, value in (weights | moments).items()}


def assert_equal(a, b):
    a, b = state(a), state(b)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def losses(history):
    return {name: values for name, values in history.steps.items() if name not in ("wait", "seconds")}


def steps_saved(folder):
    about, steps = checkpoint.load(folder / "checkpoint.safetensors", modules={}, optimisers={})
    return len(History(steps, about["epochs"])), len(about["epochs"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    made = task()
    return made, train(made, tmp_path_factory.mktemp("whole"))


# --- one step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("q_in", [1, 16])
def test_a_step_is_that_of_pix2pix(q_in):
    made = task(precision="float32", dropout=0.0, q_in=q_in, l1_weight=50.0, adversarial_weight=2.0)
    generator = Generator(out_channels=1, width=4)
    discriminator = Discriminator(in_channels=4, width=4)
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        network.load_state_dict(made.modules[name].state_dict())
    rates = {"lr": 2e-4, "betas": (0.5, 0.999)}
    ours = [torch.optim.Adam(network.parameters(), **rates) for network in (generator, discriminator)]
    bce = nn.BCEWithLogitsLoss()
    source = torch.rand(2, 3, 256, 256)
    for step in range(2):
        alpha = torch.rand(2, 1, 256, 256).round()
        found = made.step(step, (source, alpha))
        seen, target = 2 * source - 1, 2 * alpha - 1
        fake = generator(q_in * seen)
        said = discriminator(torch.cat([seen, fake.detach()], 1)), discriminator(torch.cat([seen, target], 1))
        d_loss = (bce(said[0], torch.zeros_like(said[0])) + bce(said[1], torch.ones_like(said[1]))) / 2
        ours[1].zero_grad()
        d_loss.backward()
        ours[1].step()
        said = discriminator(torch.cat([seen, fake], 1))
        adversarial, l1 = bce(said, torch.ones_like(said)), (fake - target).abs().mean()
        ours[0].zero_grad()
        (2 * adversarial + 50 * l1).backward()
        ours[0].step()
        want = {"discriminator": d_loss.item(), "l1": l1.item(), "adversarial": adversarial.item()}
        assert found == pytest.approx(want, rel=1e-4)
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        for key, value in network.state_dict().items():
            # Adam's first steps are as long as the rate, 2e-4, whatever the gradient; near 0 rounding turns them
            miss = (made.modules[name].state_dict()[key] - value).double().abs()
            assert miss.mean() < 2e-6 and miss.max() <= 1e-3, (name, key, miss.mean(), miss.max())


def test_the_generators_step_leaves_the_judge_alone():
    made, kept = task(), {}
    judge = made.modules["discriminator"]
    made.optimisers["discriminator"].register_step_post_hook(
        lambda *_: kept.update({n: (p.detach().clone(), p.grad.clone()) for n, p in judge.named_parameters()})
    )
    made.step(0, Squares()(0))
    assert len(kept) == len(list(judge.parameters()))
    for name, parameter in judge.named_parameters():
        weight, gradient = kept[name]
        assert parameter.requires_grad
        assert torch.equal(parameter, weight) and torch.equal(parameter.grad, gradient)


def test_q_in_scales_what_the_generator_sees():
    made = task(q_in=64)
    seen = {}
    for name, module in made.modules.items():
        module.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, args[0]))
    made.step(0, Squares()(0))
    assert (float(seen["generator"].min()), float(seen["generator"].max())) == pytest.approx((-51.2, 51.2), abs=1e-3)
    assert seen["discriminator"].shape[1] == 4 and seen["discriminator"][:, :3].abs().max() <= 1


@pytest.mark.parametrize(("freeze_from", "first"), [(0.0, 0), (0.5, 4), (0.6, 5), (1.0, 8)])
def test_the_last_part_trains_with_the_statistics_that_are_deployed(clips, freeze_from, first):
    made = on_clips(clips["wide"], patches=4, freeze_from=freeze_from, flip=False)
    generator, judge = made.modules["generator"], made.modules["discriminator"]
    seen = []
    for step in range(8):
        weights = {key: value.clone() for key, value in generator.state_dict().items()}
        if step == first:
            estimated = {key: value.clone() for key, value in made._estimated().state_dict().items()}
        made.step(step, made.batches(step))
        after = generator.state_dict()
        if step >= first:  # statistics stay what they were estimated to be, weights are trained on
            assert all(torch.equal(after[key], estimated[key]) for key in after if "running" in key)
            deployed = made.deployable().state_dict()
            assert all(torch.equal(deployed[key], after[key]) for key in after)
        assert not torch.equal(after["encoder.1.norm.weight"], weights["encoder.1.norm.weight"])
        assert all(m.training for m in generator.modules() if isinstance(m, nn.Dropout))
        assert all(m.training for m in judge.modules())
        seen.append({m.training for m in generator.modules() if isinstance(m, nn.BatchNorm2d)})
    assert seen == [{True}] * first + [{False}] * (8 - first)


@pytest.mark.parametrize(
    ("decay_from", "expected"),
    [
        (0.5, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (1.0, [1] * 8),
        (0.0, [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
    ],
)
def test_the_rate_falls_linearly(decay_from, expected):
    made = task(adversarial_weight=0.0, decay_from=decay_from, learning_rate=1e-3)
    rates = []
    for step in range(8):
        made.step(step, Squares()(step))
        rates.append(made.optimisers["generator"].param_groups[0]["lr"] / 1e-3)
    assert rates == pytest.approx(expected)


def test_bf16_and_float32_agree(tmp_path):
    found = {p: losses(train(task(precision=p, epochs=1), tmp_path / p)) for p in ("bf16", "float32")}
    for name, half in found["bf16"].items():
        full = found["float32"][name]
        assert half == pytest.approx(full, rel=0.05) and half != full


# --- what is learnt ----------------------------------------------------------------------------------


def test_losses_fall_on_an_easy_task(tmp_path):
    made = task(dropout=0.0, learning_rate=5e-3, epochs=8, adversarial_weight=0.0)
    history = train(made, tmp_path)
    l1 = history.steps["l1"]
    assert set(made.modules) == {"generator"} and set(history.steps) == {"l1", "wait", "seconds"}
    assert l1[0] > 0.7 and sum(l1[-5:]) / 5 < 0.4 * l1[0]  # an untrained network answers 0: L1 is 1


def test_the_gan_starts_undecided_and_both_networks_learn():
    made = task()
    before = state(made)
    first = made.step(0, Squares()(0))
    assert set(first) == {"discriminator", "adversarial", "l1"}
    # a discriminator that knows nothing gives a half: binary cross-entropy ln 2 (pix2pix, equation 1)
    assert first["discriminator"] == pytest.approx(math.log(2), rel=0.25)
    assert first["adversarial"] == pytest.approx(math.log(2), rel=0.4)
    after = state(made)
    for name in ("generator.head.conv.weight", "discriminator.layers.0.weight"):
        assert not torch.equal(before[name], after[name])


def test_the_discriminator_learns_to_tell_matte_from_guess(tmp_path):
    history = train(task(Coins(), learning_rate=2e-3, epochs=1, decay_from=1.0), tmp_path)
    assert min(history.steps["discriminator"]) < 0.5 * math.log(2)  # ln 2 if it were shown one image twice


# --- resuming ----------------------------------------------------------------------------------------


def test_in_two_halves_equals_in_one(undisturbed, tmp_path):
    def cut(history):
        if len(history) == 5:
            raise RuntimeError("power cut")

    whole, history = undisturbed
    assert len(history) == 8 and all(len(values) == 8 for values in history.steps.values())
    with pytest.raises(RuntimeError):  # at the first step of the second epoch: what is on disk is the first
        train(task(), tmp_path, on_step=cut)
    assert steps_saved(tmp_path) == (4, 1)
    torch.rand(7)  # the state of the world does not matter
    second = task()
    resumed = train(second, tmp_path)
    assert_equal(second, whole)
    assert losses(resumed) == losses(history) and resumed.epochs == history.epochs == [{}, {}]
    assert len(resumed) == 8 and steps_saved(tmp_path) == (8, 2)


def test_restored_moments_lie_as_their_weights_do(folder):
    made = task()
    checkpoint.load(folder / "checkpoint.safetensors", modules=made.modules, optimisers=made.optimisers)
    for optimiser in made.optimisers.values():  # Adam's fused kernel pairs them by place in memory
        for parameter, values in optimiser.state.items():
            assert values["exp_avg"].stride() == values["exp_avg_sq"].stride() == parameter.stride()


@pytest.mark.parametrize(("error", "save_every", "last"), [(KeyboardInterrupt, FOREVER, 4), (RuntimeError, 0.0, 5)])
def test_killed_between_checkpoints(undisturbed, tmp_path, error, save_every, last):
    def kill(history):
        if len(history) == 6:
            raise error("power cut")

    with pytest.raises(error, match="power cut"):
        train(task(), tmp_path, save_every=save_every, on_step=kill)
    assert steps_saved(tmp_path)[0] == last
    taken, second = [], task()
    history = train(second, tmp_path, on_step=lambda history: taken.append(len(history)))
    assert taken == list(range(last + 1, 9)) and losses(history) == losses(undisturbed[1])
    assert_equal(second, undisturbed[0])


def test_killed_while_an_epoch_is_finished(undisturbed, tmp_path):
    def kill(history):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(task(), tmp_path, save_every=0.0, on_epoch=kill)
    assert steps_saved(tmp_path) == (3, 0)
    epochs, second = [], task()
    train(second, tmp_path, on_epoch=lambda history: epochs.append(len(history.epochs)))
    assert epochs == [1, 2]
    assert_equal(second, undisturbed[0])


@pytest.mark.parametrize(
    ("save_every", "writing", "expected"),
    [
        (None, 0.0625, [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]),  # steps of four seconds: after the tenth second
        (None, 1.0, [3, 8, 13, 18, 23, 28, 30]),  # a second of writing: 20 seconds until the next
        (40.0, 1.0, [10, 20, 30]),
    ],
)
def test_checkpoints_cost_at_most_a_twentieth_of_the_time(tmp_path, monkeypatch, save_every, writing, expected):
    clock, saved = [0.0], []

    def work(history):
        clock[0] += 4.0

    def save(*_, history, **__):
        saved.append(len(history["seconds"]))
        clock[0] += writing

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(checkpoint, "save", save)
    made = task(Coins(), epochs=1)
    made.step = lambda index, batch: {"l1": 0.5}
    train(made, tmp_path, save_every=save_every, on_step=work)
    assert saved == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_it_finishes_the_step_and_saves(undisturbed, tmp_path, capsys, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    taken, after = [], []

    def ask(history):
        taken.append(len(history))
        if len(history) == 3:
            os.kill(os.getpid(), number)
            after.append("the step went on")

    with pytest.raises(KeyboardInterrupt):
        train(task(), tmp_path, on_step=ask)
    assert taken == [1, 2, 3] and after and steps_saved(tmp_path) == (3, 0)
    told = capsys.readouterr()
    assert told.out == "" and "interrupted after step 3" in told.err
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    second = task()
    history = train(second, tmp_path)
    assert losses(history) == losses(undisturbed[1])
    assert_equal(second, undisturbed[0])


def test_asked_twice_it_ends_at_once(tmp_path):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    after = []

    def ask(history):
        if len(history) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            after.append("once")
            os.kill(os.getpid(), signal.SIGINT)
            after.append("twice")

    with pytest.raises(KeyboardInterrupt):
        train(task(), tmp_path, on_step=ask)
    assert after == ["once"] and steps_saved(tmp_path) == (4, 1)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_handlers_are_restored_after_an_end_and_an_error(tmp_path):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    inside = []

    def look(history):
        inside.append([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])
        if len(history) == 2:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(task(), tmp_path, on_step=look)
    train(task(), tmp_path)
    assert all(found not in handlers for found in inside[0])
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_outside_the_main_thread_it_trains_too(undisturbed, tmp_path):
    made, found = task(), []
    worker = threading.Thread(target=lambda: found.append(train(made, tmp_path)))
    worker.start()
    worker.join()
    assert found and losses(found[0]) == losses(undisturbed[1])


def test_a_finished_training_is_not_trained_again(tmp_path):
    train(task(epochs=1), tmp_path)
    before = (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns

    def never(_):
        pytest.fail("trained again")

    history = train(task(epochs=1), tmp_path, on_step=never, on_epoch=never)
    assert len(history) == 4 and len(history.epochs) == 1
    assert (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns == before


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / ".checkpoint-0123abcd.part.safetensors"
    left.write_bytes(b"half a fi")
    mine = [".checkpoint-backup.safetensors", ".pre-commit-config.yaml", "notes.txt"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".my-folder").mkdir()
    train(task(epochs=1), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*mine, ".my-folder", "checkpoint.safetensors"])


def test_the_bar_tells_losses_and_scores(tmp_path, capsys):
    made = task(epochs=1)
    made.finish_epoch = lambda epoch: {"iou": 0.5, "mse": 12.25}
    train(made, tmp_path, progress=True)
    told = capsys.readouterr()
    assert "iou 0.5, mse 12.25" in told.out + told.err
    assert "4/4" in told.err and re.search(r"l1=\d\.\d{3}", told.err)
    train(task(), tmp_path / "quiet")
    assert "".join(capsys.readouterr()) == ""


# --- history -----------------------------------------------------------------------------------------


def test_history_counts_time_and_waiting():
    history = History()
    assert (len(history), history.seconds, history.waiting) == (0, 0, 0.0)
    history.append({"l1": 0.5, "wait": 0.25, "seconds": 1.0})
    history.append({"l1": 0.25, "wait": 0.5, "seconds": 2.0})
    assert len(history) == 2 and history.steps["l1"] == [0.5, 0.25]
    assert history.seconds == 3.0 and history.waiting == 0.25


def test_waiting_is_a_part_of_a_steps_time(undisturbed):
    steps = undisturbed[1].steps
    assert all(0 <= wait < seconds for wait, seconds in zip(steps["wait"], steps["seconds"], strict=True))


# --- checkpoints that cannot be used -----------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")

    def stop(history):
        if len(history) == 2:  # which is not saved, the first is
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(task(), folder, save_every=0.0, on_step=stop)
    return (folder / "checkpoint.safetensors").read_bytes()


@pytest.fixture
def folder(saved, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(saved)
    return tmp_path


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"width": 8}, "width=4 instead of 8"),
        ({"epochs": 9}, "epochs=2 instead of 9"),
        ({"patches": 7}, "patches=None instead of 7"),
        ({"learning_rate": 1e-3, "seed": 1}, r"learning_rate=0\.0002 instead of 0\.001, seed=0 instead of 1"),
    ],
)
def test_another_configuration_is_refused(folder, saved, fields, match):
    with pytest.raises(IntegrityError, match=rf"checkpoint\.safetensors.*{match}.*(another folder|[Dd]elete it)"):
        train(task(**fields), folder)
    assert (folder / "checkpoint.safetensors").read_bytes() == saved


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(folder, saved, share):
    (folder / "checkpoint.safetensors").write_bytes(saved[: int(len(saved) * share)])
    with pytest.raises(IntegrityError, match=r"checkpoint\.safetensors.*Delete it"):
        train(task(), folder)


def test_a_foreign_checkpoint_is_refused(folder):
    path = folder / "checkpoint.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(IntegrityError, match="Delete it"):
        train(task(), folder)
    models.save(path, task().modules["generator"])
    with pytest.raises(IntegrityError, match="Delete it"):
        train(task(), folder)


def test_tensors_that_do_not_fit_are_refused(folder):
    path = folder / "checkpoint.safetensors"
    other = {"generator": nn.Linear(2, 2)}
    with pytest.raises(IntegrityError, match=r"generator|state_dict"):
        checkpoint.load(path, modules=other, optimisers={})
    with pytest.raises(IntegrityError, match="stranger"):
        checkpoint.load(path, modules={}, optimisers={"stranger": torch.optim.Adam(other["generator"].parameters())})
    about, history = checkpoint.load(path, modules={}, optimisers={})  # None accepts any
    assert about["config"]["width"] == 4 and len(history["l1"]) == 1


def test_a_refusal_of_tensors_says_what_to_do(folder):
    with pytest.raises(IntegrityError, match=r"[Dd]elete it"):
        checkpoint.load(folder / "checkpoint.safetensors", modules={"generator": nn.Linear(2, 2)}, optimisers={})


def test_a_checkpoint_is_plain_tensors_and_json(folder):
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["i2ilib-checkpoint"])
        names = set(file.keys())
        assert file.get_tensor("history/l1").dtype == torch.float64
    assert header["about"]["config"] == dataclasses.asdict(settle_precision(MattingConfig(**TINY), "cpu"))
    assert {"module/generator/head.conv.weight", "optimiser/discriminator/0/exp_avg", "history/seconds"} <= names


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_leaves_the_old_checkpoint(folder, saved, monkeypatch, error):
    def full(tensors, path, metadata=None):
        path.write_bytes(b"half a fi")
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        train(task(), folder)
    assert [p.name for p in folder.iterdir()] == ["checkpoint.safetensors"]
    assert (folder / "checkpoint.safetensors").read_bytes() == saved


# --- configurations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"q_in": 3}, "q_in.*power of two"),
        ({"q_in": 256}, "q_in"),
        ({"precision": "fp8"}, "'fp8'"),
        ({"batch": 0}, "batch.*at least 1"),
        ({"epochs": 0}, "epochs.*at least 1"),
        ({"patches": 0}, "patches.*at least 1"),
        ({"width": 0}, "width"),
        ({"discriminator_width": 0}, "width"),
        ({"order": "x"}, "'x'"),
        ({"dropout": 1.0}, "dropout"),
        ({"seed": -1}, "seed.*at least 0"),
    ],
)
def test_configurations_that_cannot_be(fields, match):
    with pytest.raises(I2IError, match=match):
        task(**fields)


def test_the_defaults_are_the_papers():
    text = next(shared("seeds").glob("000*.txt")).read_text(encoding="utf-8")
    config = MattingConfig()
    assert f"for {config.epochs} epochs" in text
    assert f"learning rate set to {config.learning_rate:.4f} and batch size of {config.batch}" in text
    assert f"A stride of {config.stride} is used" in text


def test_presets():
    assert matting_config("full") == MattingConfig()
    smoke, quick = matting_config("smoke"), matting_config("quick", batch=2, width=8)
    assert smoke.width < matting_config("quick").width < 64
    assert smoke.epochs * smoke.patches < 100 and (quick.batch, quick.width) == (2, 8)
    with pytest.raises(I2IError, match=r"preset.*smoke or quick or full.*'huge'"):
        matting_config("huge")
    with pytest.raises(I2IError, match="batch"):
        matting_config("quick", batch=0)


# --- clips on disk -----------------------------------------------------------------------------------

NAMES = {"walk": (300, 256), "wide": (512, 256)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two clips of five frames in the VideoMatte240K layout: a grey square that walks over a blue plate."""
    root = tmp_path_factory.mktemp("clips")
    for name, size in NAMES.items():
        for kind in (f"fgr/{name}", f"pha/{name}", "bgr"):
            (root / "train" / kind).mkdir(parents=True, exist_ok=True)
        for i in range(5):
            Image.new("RGB", size, (40 * i + 20,) * 3).save(root / f"train/fgr/{name}/{i}.png")
            alpha = Image.new("L", size)
            alpha.paste(255, (20 * i, 50, 20 * i + 100, 200))
            alpha.save(root / f"train/pha/{name}/{i}.png")
        Image.new("RGB", size, (0, 0, 255)).save(root / f"train/bgr/{name}.png")
    return root


@pytest.fixture(scope="module")
def clips(root):
    return {clip.name: clip for clip in videomatte.clips(root, "train")}


def on_clips(clips, **fields):
    config = MattingConfig(**TINY | fields)
    return MattingTask(config, MattingData.of_clips(clips, config, progress=False))


def test_data_of_one_clip_and_of_several(clips):
    data = MattingData.of_clips(clips["wide"], MattingConfig(), progress=False)
    assert len(data.training) == 3 * 5 and len(data.validation) == 2  # (512 - 256) / 64 + 1; 1 frame without overlap
    assert data.training.flip and not data.validation.flip
    assert all(frame.dtype == torch.uint8 and frame.shape == (4, 256, 512) for frame in data.training.frames)
    both = MattingData.of_clips([clips["walk"], clips["wide"]], MattingConfig(stride=256, flip=False), progress=False)
    assert len(both.training) == 3 * 1 + 3 * 2 and len(both.validation.frames) == 2 and not both.training.flip
    plain, _ = both.training.cut(0, 0)
    # a composite on codes: the first pixel is the blue plate, the square's middle the grey figure of frame 0
    assert plain[:, 0, 200].tolist() == pytest.approx([0, 0, 1], abs=1 / 255)
    assert plain[:, 120, 40].tolist() == pytest.approx([20 / 255] * 3, abs=1 / 255)
    fed = MattingData.of_clips(clips["walk"], MattingConfig(mode="foreground"), progress=False).training.cut(0, 0)[0]
    assert fed[:, 0, 200].tolist() == pytest.approx([20 / 255] * 3, abs=1 / 255)


def test_frames_beyond_the_budget_are_refused(clips):
    needed = 4 * 4 * 256 * 256  # three frames to train on, one to validate on; three colours and alpha
    config = MattingConfig()
    data = MattingData.of_clips(clips["walk"], config, budget_bytes=needed, progress=False)
    assert data.training.nbytes + data.validation.nbytes == needed
    for budget in (needed - 1, needed // 2):
        with pytest.raises(I2IError, match=r"budget.*Use fewer frames"):
            MattingData.of_clips(clips["walk"], config, budget_bytes=budget, progress=False)


def test_the_mode_that_fits_is_chosen(root, clips, tmp_path):
    bare = dataclasses.replace(clips["wide"], plate=None)
    auto, plain = MattingConfig(seed=3), MattingConfig(mode="foreground")
    assert settle_mode(auto, [clips["walk"], clips["wide"]]) == MattingConfig(seed=3, mode="composite")
    assert settle_mode(auto, [clips["walk"], bare]) == MattingConfig(seed=3, mode="foreground")
    assert settle_mode(plain, [clips["walk"]]) is plain
    shutil.copytree(root / "train/fgr/walk", tmp_path / "train/fgr/bare")
    shutil.copytree(root / "train/pha/walk", tmp_path / "train/pha/bare")
    for data, mode in ((root, "composite"), (tmp_path, "foreground")):
        out = tmp_path / f"{mode}.safetensors"
        train_matting(data, out, MattingConfig(**TINY | {"epochs": 1, "patches": 1}), progress=False)
        assert models.load(out)[1]["trained"]["mode"] == mode


def test_a_mode_that_does_not_exist_is_refused(clips):
    with pytest.raises(I2IError, match="'glow'"):
        on_clips(clips["walk"], mode="glow")


@pytest.fixture
def processor(monkeypatch):
    """A processor with certain units, whatever this one has."""

    def have(*units, onednn=True):
        found = {"architecture": "x86_64"} | dict.fromkeys(("avx", "avx2", *units), True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
        machine._machine.cache_clear()

    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    yield have
    machine._machine.cache_clear()


BF16 = {True: "avx512_bf16", False: "avx512_vnni"}  # a unit of a processor with bf16, and of one without


@pytest.mark.parametrize(
    ("units", "onednn", "limit", "expected"),
    [
        ((), True, "", "float32"),
        (("avx512_f", "avx512_vnni"), True, "", "float32"),
        (("avx512_f", "avx512_bf16"), True, "", "bf16"),
        (("amx_bf16",), True, "", "bf16"),
        (("bf16",), True, "", "bf16"),  # ARM's
        (("amx_bf16",), False, "", "float32"),
        (("amx_bf16",), True, "AVX512_CORE_VNNI", "float32"),
    ],
)
def test_the_precision_that_the_processor_has_is_chosen(processor, monkeypatch, units, onednn, limit, expected):
    processor(*units, onednn=onednn)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert settle_precision(MattingConfig(seed=3), "cpu") == MattingConfig(seed=3, precision=expected)
    made = task()
    assert made.config["precision"] == made.options.precision == expected
    with made._precision():
        assert torch.is_autocast_enabled("cpu") == (expected == "bf16")
    for chosen in ("bf16", "float32"):
        assert task(precision=chosen).config["precision"] == chosen


@pytest.mark.parametrize("units", [True, False])
def test_the_precision_that_a_gpu_has_is_chosen(monkeypatch, units):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or units)
    assert has_bf16("cuda:0") == units
    assert settle_precision(MattingConfig(), "cuda").precision == ("bf16" if units else "float32")
    assert settle_precision(MattingConfig(), "mps").precision == "float32"


@pytest.mark.parametrize("bf16", [True, False])
def test_a_training_goes_on_in_the_precision_that_it_began_in(processor, tmp_path, bf16):
    def made(folder, **fields):
        source = Squares()
        source.steps_per_epoch = 2
        return MattingTask(MattingConfig(**TINY | {"epochs": 1} | fields), source, folder=folder)

    def cut(history):
        if len(history) == 2:  # which is not saved, the first is
            raise RuntimeError("power cut")

    precision, other = ("bf16", "float32") if bf16 else ("float32", "bf16")
    whole = made(tmp_path / "whole", precision=precision)
    train(whole, whole.folder)
    processor(BF16[bf16])
    begun = made(tmp_path / "moved")
    with pytest.raises(RuntimeError):
        train(begun, begun.folder, save_every=0.0, on_step=cut)
    assert steps_saved(begun.folder) == (1, 0)
    processor(BF16[not bf16])
    with pytest.raises(IntegrityError, match=f"precision='{precision}' instead of '{other}'"):
        train(made(begun.folder, precision=other), begun.folder)
    second = made(begun.folder)
    history = train(second, begun.folder)
    assert second.config == whole.config == history.config and history.config["precision"] == precision
    assert_equal(second, whole)
    assert made(tmp_path / "new").config["precision"] == other


def test_emulated_bf16_is_told(root, tmp_path, monkeypatch, capsys):
    out, config = tmp_path / "m.safetensors", MattingConfig(**TINY | {"epochs": 1, "patches": 1})
    train_matting(root, out, dataclasses.replace(config, precision="bf16"), progress=False)
    assert capsys.readouterr().out == ""
    for units in (True, False):
        monkeypatch.setattr(gan, "has_bf16", lambda device, units=units: units)
        history = train_matting(root, out, config)
        told = [line for line in capsys.readouterr().out.splitlines() if "bf16" in line]
        assert history.config["precision"] == "bf16"
        assert len(told) == (not units) and all(str(tmp_path / "m") in line for line in told)


def test_more_patches_a_step_than_an_epoch_has_are_refused(clips):
    with pytest.raises(I2IError, match=r"batch.*at most the 3 patches"):
        on_clips(clips["walk"], batch=4)


# --- what an epoch leaves ----------------------------------------------------------------------------


def test_deployable_has_true_statistics(clips):
    made = on_clips(clips["wide"], precision="float32", flip=False, q_in=2, stride=64)
    for step in range(2):
        made.step(step, made.batches(step))
    before = state(made)
    model = made.deployable(2)
    training = made.modules["generator"]
    assert training.training and all(torch.equal(value, before[name]) for name, value in state(made).items())
    assert any(isinstance(m, nn.Dropout) for m in training.modules())
    assert not model.training and not any(isinstance(m, nn.Dropout) for m in model.modules())
    for (name, a), b in zip(training.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), name
    # all 15 patches at once through the layers up to the first norms of encoder and decoder
    x = torch.cat([f[None, :3, :, x : x + 256] for f in made.data.training.frames for x in range(0, 257, 64)])
    x = 2 * (2 * x.float() / 255 - 1)
    with torch.no_grad():
        plain = Generator(out_channels=1, width=4).train()
        plain.load_state_dict(training.state_dict())
        seen = {}
        for where in ("encoder.1.norm", "decoder.0.norm"):
            plain.get_submodule(where).register_forward_pre_hook(
                lambda _, args, where=where: seen.update({where: args[0]})
            )
        plain(x)
    for where, values in seen.items():
        norm, old = model.get_submodule(where), training.get_submodule(where)
        torch.testing.assert_close(norm.running_mean, values.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(norm.running_var, values.var((0, 2, 3)), rtol=1e-3, atol=1e-6)
        assert not torch.allclose(old.running_var, norm.running_var, rtol=0.05)


def test_deployable_spreads_its_samples_over_the_training(clips):
    made = on_clips(clips["wide"], flip=False)
    cuts, cut = [], made.data.training.cut
    made.data.training.cut = lambda index, epoch: cuts.append(index) or cut(index, epoch)
    made._estimated(samples=4)
    made._estimated(samples=4)
    assert cuts[:4] == cuts[4:] and len(set(cuts)) == 4
    made.deployable(0)
    assert sorted(cuts[8:]) == list(range(15))


def test_a_training_that_is_read_back_deploys_what_it_deployed(clips, tmp_path):
    made = on_clips(clips["wide"], patches=2)
    train(made, tmp_path)
    again = on_clips(clips["wide"], patches=2)
    train(again, tmp_path)  # finished: nothing is trained
    was, now = made.deployable().state_dict(), again.deployable().state_dict()
    assert all(torch.equal(was[key], now[key]) for key in was)


def test_without_data_deployable_keeps_the_running_statistics():
    made = task()
    made.step(0, Squares()(0))
    model = made.deployable()
    trained = made.modules["generator"].state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())
    assert made.finish_epoch(1) == {} and made.samples is None


def test_validation_is_what_the_metrics_say(clips):
    made = on_clips([clips["wide"], clips["walk"]], precision="float32", q_in=4)
    made.step(0, made.batches(0))
    model = made.deployable()
    scores = made.validate(model)
    ious, errors = [], []
    for frame in made.data.validation.frames:
        source, alpha = (2 * frame[:3].float() / 255 - 1) * 4, frame[3].numpy() / 255
        with torch.no_grad():  # patch by patch, side by side
            parts = [model(source[None, :, :, x : x + 256])[0, 0] for x in range(0, frame.shape[-1], 256)]
        matte = np.clip((torch.cat(parts, 1).numpy().astype(np.float64) + 1) / 2, 0, 1)
        made_matte, true = made.predict(model, frame)
        np.testing.assert_allclose(made_matte[0, 0], matte, atol=1e-4)
        np.testing.assert_allclose(true[0, 0], alpha, atol=1e-6)
        either = (matte > 0.5) | (alpha > 0.5)
        ious.append(((matte > 0.5) & (alpha > 0.5)).sum() / either.sum())
        errors.append(((matte - alpha) ** 2).mean() * 255**2)
    assert scores == {"iou": pytest.approx(np.mean(ious), abs=1e-3), "mse": pytest.approx(np.mean(errors), rel=1e-3)}


def test_samples_are_the_busiest_patches(clips):
    made = on_clips([clips["wide"], clips["walk"]])
    model = made.deployable()
    made.validate(model)
    wide, walk = made.data.validation.frames
    assert made.samples.shape == (2, 5, 256, 256) and made.samples.dtype == torch.float32
    assert made.samples.min() >= 0 and made.samples.max() <= 1
    # frame 3's square lies in columns 60 to 160: in the left half of the wide clip
    for sample, frame in zip(made.samples, (wide[..., :256], walk), strict=True):
        torch.testing.assert_close(sample[:3], frame[:3].float() / 255)
        torch.testing.assert_close(sample[4], frame[3].float() / 255)
    torch.testing.assert_close(made.samples[0, 3], made.predict(model, wide)[0][0, 0, :, :256])


def test_what_is_kept_after_training(root, tmp_path):
    config = MattingConfig(**TINY | {"q_in": 4, "mode": "foreground", "patches": 2})
    seen = []
    history = train_matting(
        root,
        tmp_path / "m.safetensors",
        config,
        progress=False,
        on_epoch=lambda made, history: seen.append((made.samples.shape, dict(history.epochs[-1]))),
    )
    assert len(history) == 4 and [set(scores) for scores in history.epochs] == [{"iou", "mse"}] * 2
    assert seen == [((1, 5, 256, 256), scores) for scores in history.epochs]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "checkpoint.safetensors",
        "epoch_01.safetensors",
        "epoch_02.safetensors",
    ]
    kept = 1 + int(np.argmin([scores["mse"] for scores in history.epochs]))
    for name, epoch in (("m", kept), ("m/epoch_01", 1), ("m/epoch_02", 2)):
        model, meta = models.load(tmp_path / f"{name}.safetensors")
        assert model.config.width == 4 and model.config.out_channels == 1 and model.config.dropout == 0
        assert (meta["q_in"], meta["colour"], meta["task"]) == (4, "srgb", "matting")
        trained = meta["trained"]
        assert trained == dataclasses.asdict(settle_precision(config, "cpu")) | {
            "clip": "walk",
            "frames": [0, 1, 2],
            "epoch": epoch,
            "validation": history.epochs[epoch - 1],
        }


def test_the_best_epoch_is_kept(root, tmp_path, monkeypatch):
    errors, seen = iter([30.0, 10.0, 10.0, 20.0]), []
    monkeypatch.setattr(MattingTask, "validate", lambda *_: {"iou": 0.5, "mse": next(errors)})
    out, config = tmp_path / "m.safetensors", MattingConfig(**TINY | {"epochs": 4, "patches": 1})

    def look(made, history):
        seen.append(models.load(out)[1]["trained"]["epoch"])

    history = train_matting(root, out, config, progress=False, on_epoch=look)
    assert seen == [1, 2, 2, 2]  # there from the first epoch on; of equals the first
    best = (tmp_path / "m/epoch_02.safetensors").read_bytes()
    assert out.read_bytes() == best != (tmp_path / "m/epoch_01.safetensors").read_bytes()
    assert best_epoch(history) == 2
    out.unlink()  # the training is finished, and its result comes back without a step
    again = train_matting(root, out, config, progress=False, on_step=lambda _: pytest.fail("trained again"))
    assert out.read_bytes() == best and again.epochs == history.epochs


def test_a_clip_in_two_halves_equals_in_one(root, tmp_path):
    config = MattingConfig(**TINY | {"patches": 2})

    def stop(history):
        if len(history) == 3:
            raise RuntimeError("power cut")

    found = {}
    for name in ("whole", "halves"):
        out = tmp_path / f"{name}.safetensors"
        if name == "halves":
            with pytest.raises(RuntimeError, match="power cut"):
                train_matting(root, out, config, progress=False, on_step=stop)
            assert out.exists()  # the best so far
        found[name] = train_matting(root, out, config, progress=False)
    assert losses(found["halves"]) == losses(found["whole"]) and found["halves"].epochs == found["whole"].epochs
    for name in ("", "/epoch_01", "/epoch_02"):
        halves, whole = (models.load(tmp_path / f"{k}{name}.safetensors")[0].state_dict() for k in ("halves", "whole"))
        assert all(torch.equal(halves[key], whole[key]) for key in whole)


def test_several_clips_make_one_generator(root, tmp_path):
    config = MattingConfig(**TINY | {"epochs": 1, "stride": 256})
    history = train_matting(root, tmp_path / "m.safetensors", config, clip=["wide", "walk"], progress=False)
    assert len(history) == 9
    assert models.load(tmp_path / "m.safetensors")[1]["trained"]["clip"] == "wide, walk"


def test_another_clip_is_refused_where_one_was_trained(root, tmp_path):
    config = MattingConfig(**TINY | {"epochs": 1, "patches": 1})
    train_matting(root, tmp_path / "m.safetensors", config, clip="walk", progress=False)
    with pytest.raises(IntegrityError, match="walk"):
        train_matting(root, tmp_path / "m.safetensors", config, clip="wide", progress=False)


def test_places_and_clips_that_cannot_be(root, tmp_path):
    config = MattingConfig(**TINY | {"epochs": 1})
    out = tmp_path / "m.safetensors"
    with pytest.raises(I2IError, match=r"clip.*walk or wide.*'run'"):
        train_matting(root, out, config, clip="run", progress=False)
    with pytest.raises(I2IError, match=r"clip.*'run'"):
        train_matting(root, out, config, clip=["walk", "run"], progress=False)
    with pytest.raises(I2IError, match=r"m\.pt.*\.safetensors"):  # before an hour of training, not after
        train_matting(root, tmp_path / "m.pt", config, progress=False)
    with pytest.raises(I2IError, match="budget"):
        train_matting(root, out, config, budget_bytes=1000, progress=False)
    assert not list(tmp_path.iterdir())
