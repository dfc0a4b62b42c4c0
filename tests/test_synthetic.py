"""The synthetic actors: exact alpha, hair, motion blur, determinism, and clips that survive an interruption."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from i2ilib import runtime
from i2ilib.datasets import synthetic, videomatte
from i2ilib.datasets.synthetic import ACTORS, background, render_frame, write_clip
from i2ilib.errors import I2IError

SIZE = {"height": 128, "width": 192}
ARM = next(a for a in ACTORS if a.arm)


@pytest.fixture(scope="module")
def frames():
    return {actor.name: render_frame(actor, 0.5, **SIZE) for actor in ACTORS}


def test_there_are_several_different_actors(frames):
    assert len(ACTORS) >= 6 and len({a.name for a in ACTORS}) == len(ACTORS)
    mattes = [f.pha for f in frames.values()]
    assert min((a - b).abs().mean() for i, a in enumerate(mattes) for b in mattes[:i]) > 0.01


@pytest.mark.parametrize("actor", ACTORS, ids=lambda a: a.name)
def test_frame_is_a_person_with_soft_hair(frames, actor):
    fgr, pha = frames[actor.name]
    assert fgr.shape == (3, 128, 192) and pha.shape == (1, 128, 192)
    assert fgr.dtype == pha.dtype == torch.float32
    assert fgr.min() >= 0 and fgr.max() <= 1 and pha.min() == 0 and pha.max() == 1
    assert (fgr[:, pha[0] == 0] == 0).all(), "black where nothing is"
    assert 0.15 < pha.mean() < 0.8
    soft = (pha > 0.02) & (pha < 0.98)
    outline = 2 * (128 + 192)  # what a hard edge around the figure would cost at most, two pixels wide
    assert soft.sum() > outline
    sizes = np.bincount(ndimage.label((pha[0] > 0.5).numpy())[0].ravel())[1:]
    assert sizes.max() > 0.95 * sizes.sum(), "one figure"
    plate = background(actor, **SIZE)
    assert plate.shape == (3, 128, 192) and plate.min() >= 0 and plate.max() <= 1 and plate.std() > 0.03


def test_hair_is_finer_than_a_disc_of_three_pixels():
    pha = render_frame(ACTORS[0], 0.5, height=512, width=768, shutter=0).pha[0].numpy()
    thin = pha - ndimage.grey_opening(pha, footprint=np.hypot(*np.mgrid[-2:3, -2:3]) < 1.8)
    assert (thin > 0.3).sum() > 500, "strands about a pixel wide vanish under a morphological opening"


def test_same_arguments_same_bytes(frames):
    again = render_frame(ARM, 0.5, **SIZE)
    assert torch.equal(again.fgr, frames[ARM.name].fgr) and torch.equal(again.pha, frames[ARM.name].pha)
    other = render_frame(ARM, 0.5, **SIZE, seed=1)
    assert torch.equal(other.pha, again.pha) and not torch.equal(other.fgr, again.fgr), "the seed is of the grain"


def test_motion_blur_is_the_mean_over_the_exposure():
    shutter, time = 1 / 12, 0.3  # the hand passes the body and the head turns
    blurred = render_frame(ARM, time, **SIZE, shutter=shutter)
    moments = [render_frame(ARM, time + shutter * (k - 4) / 9, **SIZE, shutter=0) for k in range(9)]
    mean = torch.stack([m.pha for m in moments]).mean(0)
    colour = torch.stack([m.pha * m.fgr for m in moments]).mean(0)
    error = [(x - mean).abs().mean() for x in (blurred.pha, moments[4].pha)]
    assert error[0] < 0.4 * error[1] and error[1] > 0.001
    error = [(f.pha * f.fgr - colour).abs().mean() for f in (blurred, moments[4])]
    assert error[0] < 0.8 * error[1]


def test_resolution_changes_detail_not_the_picture():
    small = render_frame(ARM, 0.5, **SIZE, shutter=0).pha[None]
    large = render_frame(ARM, 0.5, height=256, width=384, shutter=0).pha[None]
    assert (torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean() < 0.02


def test_too_small_a_frame_and_unknown_photograph_are_refused():
    with pytest.raises(I2IError, match="at least 32×32"):
        render_frame(ARM, 0, height=16, width=64)
    with pytest.raises(I2IError, match="photograph: expected one of motorcycle"):
        background(dataclasses.replace(ARM, photo="beach"), 64, 64)


# --- clips on disc ---------------------------------------------------------------------------------------

SMALL = {"frames": 3, "height": 64, "width": 96}


def snapshot(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def clip_root(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips"), ARM, **SMALL)


def test_clip_has_the_layout_and_the_rendered_pixels(clip_root):
    name = f"{ARM.name}_96x64"
    assert sorted(snapshot(clip_root)) == [
        f"train/bgr/{name}.png",
        *(f"train/fgr/{name}/0000{i}.png" for i in range(3)),
        f"train/meta/{name}.json",
        *(f"train/pha/{name}/0000{i}.png" for i in range(3)),
    ]
    (clip,) = videomatte.clips(clip_root)
    fgr, pha = clip.frame(1)
    rendered = render_frame(ARM, 1 / 24, height=64, width=96)
    for stored, exact in ((fgr, rendered.fgr), (pha, rendered.pha), (clip.background, background(ARM, 64, 96))):
        torch.testing.assert_close(stored, exact, atol=0.5 / 255 + 1e-6, rtol=0)
    about = json.loads((clip_root / "train" / "meta" / f"{name}.json").read_text())
    assert about["generator"] == synthetic.VERSION and about["actor"]["skin"] == list(ARM.skin)


def test_finished_clip_is_kept_and_half_written_one_completed(clip_root, tmp_path, monkeypatch):
    whole = snapshot(clip_root)
    real, drawn = synthetic.render_frame, []

    def counting(actor, time, **options):
        drawn.append(time)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return real(actor, time, **options)

    monkeypatch.setattr(synthetic, "render_frame", counting)
    write_clip(clip_root, ARM, **SMALL)
    assert drawn == [] and snapshot(clip_root) == whole
    with pytest.raises(KeyboardInterrupt):
        write_clip(tmp_path, ARM, **SMALL)
    assert not (tmp_path / "train" / "meta" / f"{ARM.name}_96x64.json").exists(), "not complete, not marked"
    write_clip(tmp_path, ARM, **SMALL)
    assert len(drawn) == 4, "two frames, the one that was interrupted, and the same again"
    assert snapshot(tmp_path) == whole


def test_other_parameters_render_again(clip_root, tmp_path):
    write_clip(tmp_path, ARM, **SMALL, name="x")
    before = snapshot(tmp_path)
    write_clip(tmp_path, ARM, **SMALL | {"frames": 2}, name="x", start=0.5, quality=90)
    after = snapshot(tmp_path)
    assert set(after) == {
        "train/bgr/x.jpg", "train/fgr/x/00000.jpg", "train/fgr/x/00001.jpg",
        "train/pha/x/00000.png", "train/pha/x/00001.png", "train/meta/x.json",
    }  # fmt: skip
    assert after["train/pha/x/00000.png"] != before["train/pha/x/00000.png"]


def test_no_frames_is_refused(tmp_path):
    with pytest.raises(I2IError, match="at least one"):
        write_clip(tmp_path, ARM, frames=0, height=64, width=96)


def test_command_line(tmp_path):
    options = ["--out", str(tmp_path), "--actor", "mei", "--frames", "1", "--size", "96x64", "--split", "test"]
    synthetic.main(options)
    (clip,) = videomatte.clips(tmp_path, "test")
    assert (clip.name, len(clip), clip.height, clip.width) == ("mei_96x64", 1, 64, 96)


def test_committed_sample_is_what_the_generator_makes():
    root = runtime.DATA / "sample"
    (clip,) = videomatte.clips(root)
    assert (len(clip), clip.height, clip.width) == (32, 512, 768)
    assert sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) < 5e6
    index = 20
    fgr, pha = clip.frame(index)
    rendered = render_frame(ACTORS[0], synthetic.SAMPLE_START + index / 24, height=512, width=768)
    assert (pha - rendered.pha).abs().max() <= 1.01 / 255
    inside = rendered.pha.expand(3, -1, -1) > 0.99
    assert (fgr - rendered.fgr)[inside].abs().mean() < 0.01, "JPEG"


def test_sample_video_shows_the_composite():
    import imageio_ffmpeg

    exact = ["-sws_flags", "accurate_rnd+full_chroma_int"]
    reader = imageio_ffmpeg.read_frames(str(runtime.DATA / "sample" / "clip.mp4"), output_params=exact)
    about = next(reader)
    assert about["size"] == (768, 512) and about["fps"] == 24 and "tv, bt709" in about["pix_fmt"]
    first = np.frombuffer(next(reader), np.uint8).reshape(512, 768, 3)
    reader.close()
    source, _ = videomatte.matting_frame(videomatte.clips(runtime.DATA / "sample")[0], 0)
    error = first.astype(float) - source.permute(1, 2, 0).numpy() * 255
    assert np.sqrt((error**2).mean()) < 2 and abs(error.mean()) < 0.1


def test_written_images_are_8_bit(clip_root):
    for kind, mode in (("fgr", "RGB"), ("pha", "L")):
        with Image.open(next((clip_root / "train" / kind).rglob("*.png"))) as image:
            assert image.mode == mode
