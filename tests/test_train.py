"""Training: resumed is the same as undisturbed, bad checkpoints are refused, and the losses fall."""

import math

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from i2ilib import I2IError, IntegrityError, models
from i2ilib.datasets import videomatte
from i2ilib.train import MattingConfig, MattingTask, checkpoint, clip_batches, fit, train_matting

TINY = {"width": 4, "discriminator_width": 4, "batch": 1, "steps": 8, "dropout": 0.5}


def squares(step):
    """An easy task: one bright square at a place that depends on the step; alpha is the square."""
    generator = torch.Generator().manual_seed(step)
    top, left = torch.randint(0, 128, (2,), generator=generator).tolist()
    alpha = torch.zeros(1, 1, 256, 256)
    alpha[..., top : top + 128, left : left + 128] = 1
    return 0.1 + 0.8 * alpha.expand(1, 3, 256, 256), alpha


def task(**fields):
    return MattingTask(MattingConfig(**TINY | fields), squares)


def train(made, folder, steps=8, **more):
    return fit(made, steps=steps, folder=folder, progress=False, **more)


def state(made):
    weights = {f"{n}.{k}": v for n, m in made.modules.items() for k, v in m.state_dict().items()}
    moments = {
        f"{n}.{i}.{k}": v
        for n, o in made.optimisers.items()
        for i, s in o.state_dict()["state"].items()
        for k, v in s.items()
    }
    return weights | moments


def assert_equal(a, b):
    a, b = state(a), state(b)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def losses(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    made = task()
    return made, train(made, tmp_path_factory.mktemp("whole"))


# --- resuming --------------------------------------------------------------------------------------


def test_in_two_halves_equals_in_one(undisturbed, tmp_path):
    whole, history = undisturbed
    train(task(), tmp_path, steps=4)
    torch.rand(7)  # the state of the world does not matter
    second = task()
    resumed = train(second, tmp_path)
    assert_equal(second, whole)
    assert losses(resumed) == losses(history) and len(history) == 8
    seconds = [row["seconds"] for row in resumed]
    assert seconds == sorted(seconds)  # the clock goes on too


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_killed_between_checkpoints(undisturbed, tmp_path, error):
    def kill(done, _):
        if done == 5:
            raise error("power cut")

    with pytest.raises(error):
        train(task(), tmp_path, save_every=2, on_step=kill)
    steps = []
    second = task()
    history = train(second, tmp_path, save_every=2, on_step=lambda done, _: steps.append(done))
    assert steps == [5, 6, 7, 8] and len(history) == 8  # from the checkpoint at step 4
    assert_equal(second, undisturbed[0])


def test_a_finished_training_is_not_trained_again(undisturbed, tmp_path):
    train(task(), tmp_path, steps=2)
    before = (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns
    history = train(task(), tmp_path, steps=2, on_step=lambda *_: pytest.fail("a step was taken"))
    assert len(history) == 2 and (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns == before


# --- checkpoints that cannot be used -----------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    train(task(), folder, steps=1)
    return (folder / "checkpoint.safetensors").read_bytes()


@pytest.fixture
def folder(saved, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(saved)
    return tmp_path


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"width": 8}, "width=4 instead of 8"),
        ({"steps": 9}, "steps=8 instead of 9"),
        ({"learning_rate": 1e-3, "seed": 1}, r"learning_rate=0\.0002 instead of 0\.001, seed=0 instead of 1"),
    ],
)
def test_another_configuration_is_refused(folder, saved, fields, match):
    with pytest.raises(IntegrityError, match=rf"checkpoint\.safetensors.*{match}"):
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
    models.save(path, task().generator)
    with pytest.raises(IntegrityError, match="Delete it"):
        train(task(), folder)


def test_tensors_that_do_not_fit_are_refused(folder):
    path = folder / "checkpoint.safetensors"
    other = {"generator": nn.Linear(2, 2)}
    with pytest.raises(IntegrityError, match=r"generator|state_dict"):
        checkpoint.load(path, modules=other, optimisers={})
    with pytest.raises(IntegrityError, match="stranger"):
        checkpoint.load(path, modules={}, optimisers={"stranger": torch.optim.Adam(other["generator"].parameters())})
    assert checkpoint.load(path, modules={}, optimisers={})["config"]["width"] == 4  # None accepts any


def test_a_full_disk_leaves_the_old_checkpoint(folder, saved, monkeypatch):
    def full(tensors, path, metadata=None):
        path.write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        train(task(), folder, steps=2)
    assert [p.name for p in folder.iterdir()] == ["checkpoint.safetensors"]
    assert (folder / "checkpoint.safetensors").read_bytes() == saved


# --- what is learnt ----------------------------------------------------------------------------------


def test_losses_fall_on_an_easy_task(tmp_path):
    made = task(dropout=0.0, learning_rate=5e-3, steps=30, adversarial_weight=0.0)
    history = train(made, tmp_path, steps=30)
    l1 = [row["l1"] for row in history]
    assert set(made.modules) == {"generator"} and set(history[0]) == {"l1", "seconds"}
    assert l1[0] > 0.7 and sum(l1[-5:]) / 5 < 0.4 * l1[0]  # an untrained network answers 0: L1 is 1


def test_the_gan_starts_undecided_and_both_networks_learn(tmp_path):
    made = task()
    before = {name: value.clone() for name, value in state(made).items()}
    first = losses(train(made, tmp_path, steps=1))[0]
    assert set(first) == {"discriminator", "adversarial", "l1"}
    # a discriminator that knows nothing gives a half: binary cross-entropy ln 2 (pix2pix, equation 1)
    assert first["discriminator"] == pytest.approx(math.log(2), rel=0.25)
    assert first["adversarial"] == pytest.approx(math.log(2), rel=0.4)
    after = state(made)
    for name in ("generator.head.conv.weight", "discriminator.layers.0.weight"):
        assert not torch.equal(before[name], after[name])


def coins(step):
    """A matte of coin tosses, which no generator can foresee and every discriminator can recognise."""
    generator = torch.Generator().manual_seed(step)
    return torch.full((1, 3, 256, 256), 0.5), torch.randint(0, 2, (1, 1, 256, 256), generator=generator).float()


def test_the_discriminator_learns_to_tell_matte_from_guess(tmp_path):
    config = MattingConfig(**TINY | {"learning_rate": 2e-3, "steps": 30, "decay_from": 1.0})
    history = train(MattingTask(config, coins), tmp_path, steps=30)
    assert min(row["discriminator"] for row in history) < 0.5 * math.log(2)  # ln 2 if it were shown one image twice


def test_bf16_and_float32_agree(tmp_path):
    found = {p: losses(train(task(precision=p), tmp_path / p, steps=3)) for p in ("bf16", "float32")}
    for half, full in zip(found["bf16"], found["float32"], strict=True):
        assert half == pytest.approx(full, rel=0.05) and half != full


def test_q_in_scales_what_the_generator_sees(monkeypatch):
    made = task(q_in=64)
    seen = {}
    made.generator.register_forward_pre_hook(lambda _, args: seen.setdefault("generator", args[0]))
    made.modules["discriminator"].register_forward_pre_hook(lambda _, args: seen.setdefault("judge", args[0]))
    made.step(0)
    assert (float(seen["generator"].min()), float(seen["generator"].max())) == pytest.approx((-51.2, 51.2), abs=1e-3)
    assert seen["judge"].shape[1] == 4 and seen["judge"][:, :3].abs().max() <= 1


def test_the_rate_falls_linearly_over_the_second_half():
    made = task(adversarial_weight=0.0)
    rates = []
    for step in range(8):
        made._set_rate(step)
        rates.append(made.optimisers["generator"].param_groups[0]["lr"] / 2e-4)
    assert rates == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"q_in": 3}, "q_in.*power of two"),
        ({"q_in": 256}, "q_in"),
        ({"precision": "fp8"}, "'fp8'"),
        ({"batch": 0}, "batch.*at least 1"),
        ({"steps": 0}, "steps.*at least 1"),
        ({"width": 0}, "width"),
        ({"order": "x"}, "'x'"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_configurations_that_cannot_be(fields, match):
    with pytest.raises(I2IError, match=match):
        task(**fields)


# --- a clip on disk ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five 300 x 256 frames in the VideoMatte240K layout: a grey square that walks over a dark plate."""
    root = tmp_path_factory.mktemp("clips")
    for kind in ("fgr/walk", "pha/walk", "bgr"):
        (root / "train" / kind).mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (300, 256), (40 * i + 20,) * 3).save(root / f"train/fgr/walk/{i}.png")
        alpha = Image.new("L", (300, 256))
        alpha.paste(255, (20 * i, 50, 20 * i + 100, 200))
        alpha.save(root / f"train/pha/walk/{i}.png")
    Image.new("RGB", (300, 256), (0, 0, 255)).save(root / "train/bgr/walk.png")
    return root


def test_batches_depend_on_seed_and_step_alone(data):
    clip = videomatte.clips(data, "train")[0]
    config = MattingConfig(batch=2, steps=4)
    one, two = clip_batches(clip, [0, 1, 2], config), clip_batches(clip, [0, 1, 2], config)
    source, alpha = one(3)
    assert source.shape == (2, 3, 256, 256) and alpha.shape == (2, 1, 256, 256)
    again = [two(i) for i in (0, 1, 3)][-1]
    assert torch.equal(source, again[0]) and torch.equal(alpha, again[1])
    assert not torch.equal(source, one(2)[0])
    other = clip_batches(clip, [0, 1, 2], MattingConfig(batch=2, steps=4, seed=1))(3)
    assert not torch.equal(alpha, other[1])
    # a composite on codes: where alpha is 0 the blue plate, where it is 1 the grey figure
    outside, inside = (alpha == 0).expand_as(source), (alpha == 1).expand_as(source)
    assert set(source[:, 2:][outside[:, 2:]].tolist()) == {1.0} and set(source[:, :1][outside[:, :1]].tolist()) == {0.0}
    assert torch.equal(source[:, :1][inside[:, :1]], source[:, 2:][inside[:, 2:]])


def test_what_is_kept_after_training(data, tmp_path):
    config = MattingConfig(**TINY | {"steps": 2, "q_in": 4, "mode": "foreground"})
    history = train_matting(data, tmp_path / "m.safetensors", config, progress=False)
    model, meta = models.load(tmp_path / "m.safetensors")
    assert len(history) == 2 and model.config.width == 4 and model.config.out_channels == 1
    assert (meta["q_in"], meta["colour"], meta["task"]) == (4, "srgb", "matting")
    assert meta["trained"]["clip"] == "walk" and meta["trained"]["frames"] == [0, 1, 2]
    assert (tmp_path / "m" / "checkpoint.safetensors").exists()


def test_places_and_clips_that_cannot_be(data, tmp_path):
    config = MattingConfig(**TINY | {"steps": 1})
    with pytest.raises(I2IError, match=r"clip.*walk.*'run'"):
        train_matting(data, tmp_path / "m.safetensors", config, clip="run", progress=False)
    with pytest.raises(I2IError, match=r"m\.pt.*\.safetensors"):  # before an hour of training, not after
        train_matting(data, tmp_path / "m.pt", config, progress=False)
    assert not list(tmp_path.iterdir())
