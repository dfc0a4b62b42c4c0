"""Moving photographs: deterministic, inside the photograph, moving as told, and written once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from skimage.registration import phase_cross_correlation

from i2ilib import I2IError
from i2ilib.datasets import moving
from i2ilib.datasets.moving import Scene
from i2ilib.frames import open_clip
from i2ilib.runtime import DATA

STILL = Scene("still", "coffee", (0.5, 0.5, 1.0), (0.5, 0.5, 1.0))


@pytest.mark.parametrize("scene", [*moving.SCENES, *moving.scenes(6, seed=3)], ids=lambda scene: scene.name)
def test_frames_are_8_bit_codes_and_the_same_every_time(scene):
    first, again = (moving.frame(scene, 0.4, height=48, width=64) for _ in range(2))
    assert first.shape == (3, 48, 64) and first.dtype == torch.float32
    assert torch.equal(first, again)
    assert torch.equal(first, (first * 255).round() / 255) and 0 <= first.min() < first.max() <= 1
    later = moving.frame(scene, 0.9, height=48, width=64)
    assert not torch.equal(first, later)


def test_a_still_camera_shows_the_photograph_as_pillow_shrinks_it():
    whole = Image.fromarray(data.coffee())
    shrunk = np.asarray(whole.resize((150, 100), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(moving.frame(STILL, 0.0, height=100, width=150).permute(1, 2, 0) * 255, shrunk)


def test_a_pan_moves_the_picture_by_what_the_scene_says():
    pan = Scene("pan", "coffee", (0.4, 0.5, 0.5), (0.5, 0.5, 0.5))  # 60 of 600 columns in a second
    a, b = (moving.frame(pan, second, height=200, width=300).mean(0).numpy() for second in (0.0, 1.0))
    moved, *_ = phase_cross_correlation(a, b, upsample_factor=10)
    np.testing.assert_allclose(moved, (0, 60), atol=0.5)  # the window is 300 columns wide: one of them is one pixel


def test_a_photograph_that_is_large_enough_is_not_enlarged():
    near = Scene("near", "coffee", (0.5, 0.5, 0.05), (0.5, 0.5, 0.05))
    frame = moving.frame(near, 0.0, height=100, width=150).permute(1, 2, 0).mul(255).byte().numpy()
    np.testing.assert_array_equal(frame, data.coffee()[150:250, 225:375])


@given(
    photo=st.sampled_from(moving.PHOTOS),
    start=st.tuples(st.floats(-1, 2), st.floats(-1, 2), st.floats(0.01, 1)),
    second=st.floats(0, 100),
    size=st.tuples(st.integers(16, 70), st.integers(16, 70)),
    shape=st.sampled_from(["", "bars", "checks", "star", "rings"]),
    words=st.sampled_from(["", "Qx9"]),
)
@settings(max_examples=40, deadline=None)
def test_any_scene_at_any_time_gives_a_picture(photo, start, second, size, shape, words):
    scene = Scene("any", photo, start, (start[1], start[0], start[2]), shape=shape, words=words)
    frame = moving.frame(scene, second, height=size[0], width=size[1])
    assert frame.shape == (3, *size) and torch.isfinite(frame).all()


def test_words_and_shapes_lie_before_the_photograph_in_their_ink():
    ink = (1.0, 0.0, 0.2)
    plain = moving.frame(STILL, 0.5, height=96, width=128)
    for more in ({"words": "MMMM", "height": 0.3}, {"shape": "checks"}):
        shown = moving.frame(Scene("s", "coffee", STILL.start, STILL.end, ink=ink, **more), 0.5, height=96, width=128)
        changed = (shown != plain).any(0)
        inked = (shown - torch.tensor(ink)[:, None, None]).abs().amax(0) < 0.003
        assert 0.01 < inked.float().mean() < changed.float().mean() < 0.6
        assert (changed & ~inked).any(), "edges are soft: they lie between two pixels"


def test_scenes_are_drawn_from_a_seed():
    assert moving.scenes(5, seed=1) == moving.scenes(5, seed=1) != moving.scenes(5, seed=2)
    assert moving.scenes(3, seed=1) == moving.scenes(5, seed=1)[:3]
    assert [scene.photo for scene in moving.scenes(4, photos=("cat", "page")[1:])] == ["page"] * 4
    wide = moving.scenes(40, extent=(0.8, 0.9))
    assert all(0.8 <= scene.start[2] <= 0.9 for scene in wide) and len({scene.start for scene in wide}) == 40
    for extent in ((0, 1), (0.9, 0.8), (0.5, 1.1)):
        with pytest.raises(I2IError, match="extent: expected two shares"):
            moving.scenes(1, extent=extent)
    assert {scene.photo for scene in moving.scenes(len(moving.PHOTOS))} == set(moving.PHOTOS)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"photo": "mona_lisa"}, r"photograph: expected one of astronaut, .*'mona_lisa'"),
        ({"shape": "cube"}, r"shape: expected one of bars, checks"),
        ({"start": (0.5, 0.5, 0.0)}, "extent: expected above 0, at most 1"),
        ({"end": (0.5, 0.5, 1.5)}, "extent"),
    ],
)
def test_scenes_that_cannot_be(fields, match):
    with pytest.raises(I2IError, match=match):
        Scene(**{"name": "x", "photo": "coffee", "start": STILL.start, "end": STILL.end} | fields)


def test_frames_that_are_too_small():
    with pytest.raises(I2IError, match=r"at least 16×16 pixels, got 15×64"):
        moving.frame(STILL, 0.0, height=15, width=64)


def test_clips_are_written_as_videos_and_kept(tmp_path):
    arguments = [str(tmp_path), "--scenes", "2", "--frames", "3", "--size", "64x48", "--seed", "5"]
    moving.main(arguments)
    names = [f"{scene.name}.mp4" for scene in moving.scenes(2, seed=5)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    clip = open_clip(tmp_path / names[0])
    assert (len(clip), clip.fps, clip.index.size) == (3, 24.0, (48, 64))
    before = (tmp_path / names[0]).stat().st_mtime_ns
    (tmp_path / names[1]).unlink()
    moving.main(arguments)
    assert (tmp_path / names[0]).stat().st_mtime_ns == before and (tmp_path / names[1]).exists()


def test_the_committed_sample_is_what_the_generator_writes():
    for scene in moving.SCENES:
        shown = [frame.rgb[0] for _, frame in open_clip(DATA / "restoration" / f"{scene.name}.mp4").read()]
        assert len(shown) == 24
        for place in (0, 23):
            made = moving.frame(scene, place / 24, height=192, width=256)
            assert 10 * torch.log10(1 / (shown[place] - made).square().mean()) > 31, "coded at CRF 12"
