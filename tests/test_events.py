"""Event files hold what the training told, as TensorBoard's own reader sees it; and without TensorBoard they say so."""

import sys

import numpy as np
import pytest
import torch

from i2ilib import UnavailableError
from i2ilib.train import History, MattingConfig, MattingTask, fit
from i2ilib.train.events import events


class Ramp:
    """Batches of noise, two an epoch."""

    steps_per_epoch = 2

    def __call__(self, step):
        generator = torch.Generator().manual_seed(step)
        return torch.rand(1, 3, 256, 256, generator=generator), torch.rand(1, 1, 256, 256, generator=generator)


@pytest.fixture
def read():
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def run(folder):
        events = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
        return events.Reload()

    return run


def task():
    made = MattingTask(MattingConfig(width=4, discriminator_width=4, epochs=3), Ramp())
    made.finish_epoch = lambda epoch: {"iou": 0.25 * epoch, "mse": 100.0 / epoch}
    return made


def train(made, folder, log, then=None):
    """As train_matting hands them on: on_epoch gets the task too."""
    with events(log) as (on_step, on_epoch):

        def step(history):
            on_step(history)
            if then is not None:
                then(history)

        return fit(made, folder, progress=False, save_every=1e9, on_step=step, on_epoch=lambda h: on_epoch(made, h))


def test_losses_by_step_and_scores_by_epoch(read, tmp_path):
    made = task()
    history = train(made, tmp_path / "run", tmp_path / "log")
    found = read(tmp_path / "log")
    assert len(list((tmp_path / "log").iterdir())) == 1
    tags = {f"step/{name}" for name in ("l1", "discriminator", "adversarial", "wait", "seconds")}
    assert set(found.Tags()["scalars"]) == tags | {"validation/iou", "validation/mse"}
    for name, values in history.steps.items():
        scalars = found.Scalars(f"step/{name}")
        assert [s.step for s in scalars] == [1, 2, 3, 4, 5, 6]
        assert [s.value for s in scalars] == pytest.approx(values, rel=1e-6)
    assert [(s.step, s.value) for s in found.Scalars("validation/iou")] == [(2, 0.25), (4, 0.5), (6, 0.75)]
    assert [s.value for s in found.Scalars("validation/mse")] == pytest.approx([100, 50, 100 / 3])
    assert found.Tags()["images"] == []


def test_samples_are_shown_side_by_side(read, tmp_path):
    skimage = pytest.importorskip("skimage.io")
    made, history = task(), History()
    history.append({"l1": 0.5, "wait": 0.0, "seconds": 1.0})
    history.epochs.append({"iou": 0.5, "mse": 1.0})
    made.samples = torch.rand(2, 5, 8, 12)
    with events(tmp_path) as (_, on_epoch):
        on_epoch(made, history)
    found = read(tmp_path)
    (tag,) = found.Tags()["images"]
    (image,) = found.Images(tag)
    assert (image.step, image.width, image.height) == (1, 2 * 3 * 12, 8)
    (tmp_path / "image.png").write_bytes(image.encoded_image_string)
    parts = np.split(skimage.imread(tmp_path / "image.png") / 255, 6, axis=1)
    want = [part.expand(3, -1, -1) for sample in made.samples for part in sample.split((3, 1, 1))]
    for part, right in zip(parts, want, strict=True):
        np.testing.assert_allclose(part, right.permute(1, 2, 0), atol=1.01 / 255)


def test_a_resumed_run_shows_every_step_once(read, tmp_path):
    def cut(history):
        if len(history) == 3:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):  # step 3 is in the event file and not in the checkpoint, which is at step 2
        train(task(), tmp_path / "run", tmp_path / "log", then=cut)
    before = read(tmp_path / "log")
    assert [s.step for s in before.Scalars("step/l1")] == [1, 2, 3]
    history = train(task(), tmp_path / "run", tmp_path / "log")
    assert len(list((tmp_path / "log").iterdir())) == 2
    found = read(tmp_path / "log")
    scalars = found.Scalars("step/seconds")  # the clock tells the two takes of step 3 apart
    assert [s.step for s in scalars] == [1, 2, 3, 4, 5, 6]
    assert [s.value for s in scalars] == pytest.approx(history.steps["seconds"], rel=1e-6)
    assert [s.step for s in found.Scalars("validation/iou")] == [2, 4, 6]


def test_nothing_to_tell_leaves_no_file(tmp_path):
    pytest.importorskip("tensorboard")
    with events(tmp_path / "log"):
        pass
    assert not (tmp_path / "log").exists()


def test_files_are_closed_when_the_training_fails(read, tmp_path):
    history = History()
    history.append({"l1": 0.5, "wait": 0.0, "seconds": 1.0})
    with pytest.raises(RuntimeError), events(tmp_path) as (on_step, _):
        on_step(history)
        raise RuntimeError("power cut")
    assert [s.value for s in read(tmp_path).Scalars("step/l1")] == [0.5]


def test_without_tensorboard_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UnavailableError, match=r"tensorboard.*pip install tensorboard"), events(tmp_path):
        pytest.fail("it trains without what was asked for")
