"""The BVI-DVC layout: pairs of small compressed and large frames, written with x265."""

import dataclasses
import json
import os
import shutil

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from i2ilib.datasets import bvi_dvc
from i2ilib.errors import FrameError, I2IError
from i2ilib.frames import write_video


def moving(n=3, h=256, w=384):
    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    return [photo[:, 4 * i : 4 * i + h, 8 * i : 8 * i + w] for i in range(n)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return bvi_dvc.write_clip(tmp_path_factory.mktemp("bvi"), "clip", moving(), crf=23)


def test_layout_and_order(root):
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*.png"))
    assert names == [f"{f}/clip/clip_{i:03d}.png" for f in ("frames_HQ", "frames_QF23") for i in (1, 2, 3)]
    found = bvi_dvc.pairs(root)
    assert [p.high.name for p in found] == ["clip_001.png", "clip_002.png", "clip_003.png"]
    assert bvi_dvc.pairs(root, clip="clip") == found


def test_pair_is_the_same_scene(root):
    for pair, frame in zip(bvi_dvc.pairs(root), moving(), strict=True):
        low, high = bvi_dvc.read_pair(pair)
        assert low.shape == (3, 128, 192) and high.shape == (3, 256, 384)
        torch.testing.assert_close(high, frame, atol=1e-6, rtol=0)
        small = torch.nn.functional.interpolate(frame[None], scale_factor=0.5, mode="bicubic", antialias=True)[0]
        assert 28 < peak_signal_noise_ratio(small.clamp(0, 1).numpy(), low.numpy(), data_range=1) < 50
        assert (small.mean((1, 2)) - low.mean((1, 2))).abs().max() < 0.01, "colours survive"


def test_a_higher_crf_is_worse(tmp_path):
    for crf in (15, 40):
        bvi_dvc.write_clip(tmp_path, "c", moving(), crf=crf)
    errors = []
    for crf in (15, 40):
        low, high = bvi_dvc.read_pair(bvi_dvc.pairs(tmp_path, crf)[2])
        errors.append((torch.nn.functional.avg_pool2d(high[None], 2)[0] - low).square().mean())
    assert errors[1] > 2 * errors[0]


def test_random_crop_is_aligned(root):
    high = torch.rand(3, 256, 384)
    low = high[:, ::2, ::2]
    for seed in range(5):
        a, b = bvi_dvc.random_crop(low, high, generator=torch.Generator().manual_seed(seed))
        assert a.shape == (3, 96, 96) and b.shape == (3, 192, 192) and torch.equal(b[:, ::2, ::2], a)
    again = bvi_dvc.random_crop(low, high, generator=torch.Generator().manual_seed(4))
    assert torch.equal(again[0], a)
    with pytest.raises(I2IError, match="at least 200 x 200"):
        bvi_dvc.random_crop(low, high, size=200)


def test_errors_name_the_folder_and_the_page(root, tmp_path):
    with pytest.raises(I2IError, match=r"frames_HQ: expected a folder of clips, got none.*BVI-DVC"):
        bvi_dvc.pairs(tmp_path)
    with pytest.raises(I2IError, match=r"frames_QF30.*got frames_HQ, frames_QF23"):
        bvi_dvc.pairs(root, 30)
    with pytest.raises(I2IError, match=r"for clip other, got 0 and 0"):
        bvi_dvc.pairs(root, clip="other")


def test_missing_and_broken_frames(tmp_path):
    bvi_dvc.write_clip(tmp_path, "c", moving(2))
    pair = bvi_dvc.pairs(tmp_path)[0]
    pair.high.write_bytes(b"no")
    with pytest.raises(FrameError, match=r"c_001.png: expected an image"):
        bvi_dvc.read_pair(pair)
    with pytest.raises(FrameError, match="a size that divides"):
        bvi_dvc.read_pair(bvi_dvc.Pair(low=bvi_dvc.pairs(tmp_path)[1].high, high=bvi_dvc.pairs(tmp_path)[1].low))
    pair.high.unlink()
    with pytest.raises(I2IError, match=r"got 1 and 2, c/c_001\.png in one only"):
        bvi_dvc.pairs(tmp_path)


def test_writer_refuses_what_it_cannot_code(tmp_path):
    with pytest.raises(I2IError, match="at least one frame"):
        bvi_dvc.write_clip(tmp_path, "c", [])
    with pytest.raises(I2IError, match="multiples of 4"):
        bvi_dvc.write_clip(tmp_path, "c", [torch.zeros(3, 64, 66)])
    with pytest.raises(I2IError, match="frame 2: expected"):
        bvi_dvc.write_clip(tmp_path, "c", [torch.zeros(3, 64, 64), torch.zeros(3, 64, 128)])


def test_failure_of_the_coder_is_told(tmp_path):
    with pytest.raises(FrameError, match="ffmpeg to code the clip"):
        bvi_dvc.write_clip(tmp_path, "c", moving(1), crf=99)


# --- any clips ----------------------------------------------------------------------------------------


def pictures(folder, count=3, h=133, w=150, name="f", suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(data.astronaut()[4 * i : 4 * i + h, 8 * i : 8 * i + w]).save(folder / f"{name}{i}.{suffix}")
    return folder


def video(path, count=4, h=130, w=150, fps=12.0):
    write_video(path, (data.astronaut()[4 * i : 4 * i + h, :w] for i in range(count)), fps=fps, crf=8)
    return path


def run(clips, root, **more):
    return list(bvi_dvc.degrade(clips, root, progress=False, **more))


def states(found):
    return {clip.name: clip.state for clip in found}


def files(root):
    return {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


def test_a_folder_of_clips_of_both_kinds(tmp_path):
    pictures(tmp_path / "in/walk")
    video(tmp_path / "in/run.mp4")
    (tmp_path / "in/notes.txt").write_text("no clip")
    (tmp_path / "in/empty").mkdir()
    found = run(tmp_path / "in", tmp_path / "out")
    assert [(c.name, c.state, c.frames, c.size) for c in found] == [
        ("run", "written", 4, (128, 148)),
        ("walk", "written", 3, (132, 148)),
    ]
    pairs = bvi_dvc.pairs(tmp_path / "out")
    assert len(pairs) == 7
    for pair, start in zip(bvi_dvc.pairs(tmp_path / "out", clip="walk"), range(3), strict=True):
        low, high = bvi_dvc.read_pair(pair)
        assert low.shape == (3, 66, 74)
        middle = data.astronaut()[4 * start : 4 * start + 132, 8 * start + 1 : 8 * start + 149]  # one column each side
        assert torch.equal(high.mul(255).round().byte().permute(1, 2, 0), torch.from_numpy(middle))
    assert not list((tmp_path / "out").rglob("*.part*"))


def test_frames_of_a_video_keep_order_rate_and_number(tmp_path, monkeypatch):
    rates, plain = [], bvi_dvc.ffmpeg.run

    def noted(arguments, **more):
        if "-framerate" in arguments:
            rates.append(arguments[arguments.index("-framerate") + 1])
        return plain(arguments, **more)

    monkeypatch.setattr(bvi_dvc.ffmpeg, "run", noted)
    path = video(tmp_path / "v.mkv", count=5, fps=15.0)
    assert run(path, tmp_path / "a")[0].frames == 5
    run(path, tmp_path / "b", fps=30)
    run(pictures(tmp_path / "p"), tmp_path / "c")
    assert rates == ["15.0", "30", "24.0"]
    shown = [bvi_dvc.read_pair(pair)[1].mean().item() for pair in bvi_dvc.pairs(tmp_path / "a")]
    true = [data.astronaut()[4 * i + 1 : 4 * i + 129, 1:149].mean() / 255 for i in range(5)]
    np.testing.assert_allclose(shown, true, atol=0.004)


def test_what_is_done_is_kept_and_the_rest_is_made(tmp_path):
    pictures(tmp_path / "in/a")
    pictures(tmp_path / "in/b")
    run(tmp_path / "in", tmp_path / "out")
    before = files(tmp_path / "out")
    assert states(run(tmp_path / "in", tmp_path / "out")) == {"a": "kept", "b": "kept"}
    assert files(tmp_path / "out") == before
    pictures(tmp_path / "in/b", name="g")  # three more frames of b
    pictures(tmp_path / "in/c")
    found = run(tmp_path / "in", tmp_path / "out")
    assert [(c.state, c.frames) for c in found] == [("kept", 3), ("written", 6), ("written", 3)]
    (tmp_path / "in/a/f1.png").unlink()
    found = run(tmp_path / "in", tmp_path / "out")
    assert [(c.state, c.frames) for c in found] == [("written", 2), ("kept", 6), ("kept", 3)]
    assert len(bvi_dvc.pairs(tmp_path / "out", clip="a")) == 2, "no frame of before is left"


def test_a_source_that_was_written_again_is_made_again(tmp_path):
    source = pictures(tmp_path / "in")
    run(source, tmp_path / "out")
    os.utime(source / "f0.png", ns=(1, 1))
    assert states(run(source, tmp_path / "out")) == {"in": "written"}


@pytest.mark.parametrize("lost", ["frames_HQ/in/in_002.png", "frames_QF23/in/in_003.png", "clips/in.json"])
def test_a_file_that_was_lost_is_made_again(tmp_path, lost):
    source = pictures(tmp_path / "in")
    run(source, tmp_path / "out")
    (tmp_path / "out" / lost).unlink()
    assert states(run(source, tmp_path / "out")) == {"in": "written"}
    assert len(bvi_dvc.pairs(tmp_path / "out")) == 3 and (tmp_path / "out" / lost).exists()


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"frames": 3}'])
def test_a_damaged_marker_counts_for_none(tmp_path, damage):
    source = pictures(tmp_path / "in")
    run(source, tmp_path / "out")
    (tmp_path / "out/clips/in.json").write_text(damage)
    assert states(run(source, tmp_path / "out")) == {"in": "written"}


def test_a_second_crf_codes_the_same_frames(tmp_path):
    source = pictures(tmp_path / "in")
    run(source, tmp_path / "out")
    before = files(tmp_path / "out/frames_HQ") | files(tmp_path / "out/frames_QF23")
    assert states(run(source, tmp_path / "out", crf=40)) == {"in": "written"}
    assert (
        states(run(source, tmp_path / "out", crf=23)) == states(run(source, tmp_path / "out", crf=40)) == {"in": "kept"}
    )
    assert before.items() <= files(tmp_path / "out").items()
    assert len(bvi_dvc.pairs(tmp_path / "out", 40)) == 3
    with pytest.raises(I2IError, match=r"frames of one CRF, got 23, 40\. Name the CRF"):
        bvi_dvc.only_crf(tmp_path / "out")
    shutil.rmtree(tmp_path / "out/frames_QF40")
    assert bvi_dvc.only_crf(tmp_path / "out") == 23
    with pytest.raises(I2IError, match=r"got none\. Make them"):
        bvi_dvc.only_crf(tmp_path)


def test_another_scale_makes_everything_again(tmp_path):
    source = pictures(tmp_path / "in", h=136, w=150)
    run(source, tmp_path / "out")
    run(source, tmp_path / "out", crf=30)
    found = run(source, tmp_path / "out", scale=4)
    assert [(c.state, c.size) for c in found] == [("written", (136, 144))]
    assert not list((tmp_path / "out/frames_QF30").glob("*/*")), "coded from frames of another size"
    low, high = bvi_dvc.read_pair(bvi_dvc.pairs(tmp_path / "out")[0])
    assert low.shape == (3, 34, 36) and high.shape == (3, 136, 144)


@pytest.mark.parametrize("fails_at", [1, 2])
def test_killed_while_coding(tmp_path, monkeypatch, fails_at):
    source = pictures(tmp_path / "in")
    plain, calls = bvi_dvc.ffmpeg.run, []

    def killed(*arguments, **more):
        calls.append(1)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return plain(*arguments, **more)

    monkeypatch.setattr(bvi_dvc.ffmpeg, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out/clips/in.json").exists()
    monkeypatch.setattr(bvi_dvc.ffmpeg, "run", plain)
    assert states(run(source, tmp_path / "out")) == {"in": "written"}
    run(source, tmp_path / "whole")
    for kind in ("frames_HQ", "frames_QF23"):
        for path in (tmp_path / "whole" / kind).rglob("*.png"):
            assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_a_bad_clip_costs_only_itself(tmp_path):
    pictures(tmp_path / "in/good")
    pictures(tmp_path / "in/broken")
    (tmp_path / "in/broken/f1.png").write_bytes(b"no")
    pictures(tmp_path / "in/mixed", 1)
    pictures(tmp_path / "in/mixed", 1, h=100, name="g")
    pictures(tmp_path / "in/tiny", h=63)
    (tmp_path / "in/torn.mp4").write_bytes(b"no video")
    found = {clip.name: clip for clip in run(tmp_path / "in", tmp_path / "out")}
    assert {n: c.state for n, c in found.items()} == {
        "good": "written", "broken": "failed", "mixed": "failed", "tiny": "failed", "torn": "failed",
    }  # fmt: skip
    for name, words in {
        "broken": ("f1.png", "expected an image"),
        "mixed": ("g0.png", "133×150 pixels, as the first frame", "100×150"),
        "tiny": ("f0.png", "sides of 64 pixels or more, to be scaled down 2 times", "63×150"),
        "torn": ("torn.mp4", "expected a video"),
    }.items():
        assert all(word in found[name].reason for word in words), found[name].reason
    assert {pair.high.parent.name for pair in bvi_dvc.pairs(tmp_path / "out", clip="good")} == {"good"}
    json.dumps([dataclasses.asdict(clip) for clip in found.values()])


def test_ten_bit_video_becomes_eight(tmp_path):
    with av.open(str(tmp_path / "deep.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 80, 72, "yuv420p10le"
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(data.astronaut()[:72, :80].copy(), format="rgb24")
            file.mux(stream.encode(frame.reformat(format="yuv420p10le")))
        file.mux(stream.encode(None))
    assert run(tmp_path / "deep.mkv", tmp_path / "out")[0].size == (72, 80)
    low, high = bvi_dvc.read_pair(bvi_dvc.pairs(tmp_path / "out")[0])
    assert torch.equal(high, (high * 255).round() / 255) and low.shape == (3, 36, 40)


def test_names_with_percent_signs_and_twice_the_same(tmp_path):
    pictures(tmp_path / "in/50%d off")
    pictures(tmp_path / "in/a")
    video(tmp_path / "in/a.mp4", count=2)
    found = run(tmp_path / "in", tmp_path / "out")
    assert {c.state for c in found} == {"written"} and len({c.name for c in found}) == 3
    assert len(bvi_dvc.pairs(tmp_path / "out")) == 8


def test_more_frames_than_three_digits_count_are_in_order(tmp_path):
    for kind in ("frames_HQ", "frames_QF23"):
        (tmp_path / kind / "c").mkdir(parents=True)
        for number in (1, 2, 999, 1000, 1001):
            (tmp_path / kind / "c" / f"c_{number:03d}.png").touch()
    assert [p.high.stem for p in bvi_dvc.pairs(tmp_path)] == ["c_001", "c_002", "c_999", "c_1000", "c_1001"]


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"crf": 52}, "crf: expected a whole number from 0 to 51"),
        ({"crf": -1}, "crf"),
        ({"scale": 3}, "scale: expected 2 or 4, got 3"),
        ({"fps": 0}, "fps: expected above 0"),
        ({"fps": float("nan")}, "fps"),
    ],
)
def test_settings_that_cannot_be(tmp_path, more, match):
    with pytest.raises(I2IError, match=match):
        run(pictures(tmp_path / "in"), tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be(tmp_path):
    with pytest.raises(FrameError, match=r"absent: expected a picture, a folder of pictures or a video"):
        run(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FrameError, match=r"empty: expected videos, pictures, or folders of pictures, got a folder with none"
    ):
        run(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(I2IError, match="a folder to write to, got a file"):
        run(pictures(tmp_path / "in"), tmp_path / "file")


# --- crops --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two clips whose small frames are every second pixel of the large ones, each pixel a number of its own."""
    root = tmp_path_factory.mktemp("exact")
    for clip, (h, w) in {"a": (64, 96), "b": (48, 32)}.items():
        for kind in ("frames_HQ", "frames_QF23"):
            (root / kind / clip).mkdir(parents=True)
        for i in range(2):
            high = np.random.default_rng(i).integers(0, 256, (2 * h, 2 * w, 3), dtype=np.uint8)
            Image.fromarray(high).save(root / f"frames_HQ/{clip}/{clip}_{i}.png")
            Image.fromarray(high[::2, ::2]).save(root / f"frames_QF23/{clip}/{clip}_{i}.png")
    return bvi_dvc.pairs(root)


@given(index=st.integers(0, 27), epoch=st.integers(0, 10**6), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_crops_are_aligned_and_of_their_frame(made, index, epoch, seed):
    crops = bvi_dvc.CropDataset(made, size=16, seed=seed)
    low, high = crops.cut(index % len(crops), epoch)
    assert low.shape == (3, 16, 16) and high.shape == (3, 32, 32) and low.is_contiguous() and high.is_contiguous()
    # turned back, whichever way it was turned, the small crop is every second pixel of the large one
    kept = [high[:, y::2, x::2] for y in (0, 1) for x in (0, 1)]
    assert any(torch.equal(low, one) for one in kept)
    again = bvi_dvc.CropDataset(made, size=16, seed=seed).cut(index % len(crops), epoch)
    assert torch.equal(low, again[0]) and torch.equal(high, again[1])


def test_crops_lie_everywhere_and_in_eight_ways(made):
    crops = bvi_dvc.CropDataset(made[:1], size=16)
    assert len(crops) == 4 * 6 and crops.scale == 2 and not crops.mapped
    assert crops.nbytes == 3 * (64 * 96 + 128 * 192)
    frame, found, ways = torch.from_numpy(crops.frames[0][0]).permute(2, 0, 1).float().div(255), set(), set()
    windows = {frame[:, y : y + 16, x : x + 16].numpy().tobytes(): (y, x) for y in range(49) for x in range(81)}
    for epoch in range(60):
        low, _ = crops.cut(3, epoch)
        for way in range(8):
            back = low.flip(2) if way % 2 else low
            back = back.rot90(-(way // 2), (1, 2)).contiguous()
            if (place := windows.get(back.numpy().tobytes())) is not None:
                found.add(place)
                ways.add(way)
    assert len(found) > 50 and ways == set(range(8))
    plain = bvi_dvc.CropDataset(made[:1], size=16, flip=False)
    assert all(plain.cut(0, epoch)[0].numpy().tobytes() in windows for epoch in range(10))
    assert torch.equal(plain[5][0], plain.cut(5, 0)[0])
    plain.epoch = 4
    assert torch.equal(plain[5][0], plain.cut(5, 4)[0])
    with pytest.raises(IndexError):
        plain[24]


def test_frames_beyond_the_budget_are_mapped_and_the_same(made):
    held, mapped = (bvi_dvc.CropDataset(made, size=16, budget_bytes=budget) for budget in (10**9, 1000))
    assert mapped.mapped and isinstance(mapped.frames[0][0].base, np.memmap) and not held.mapped
    for index in range(len(held)):
        assert all(torch.equal(a, b) for a, b in zip(held.cut(index, 1), mapped.cut(index, 1), strict=True))


def test_crops_that_cannot_be(made, tmp_path):
    with pytest.raises(I2IError, match="at least one frame"):
        bvi_dvc.CropDataset([])
    with pytest.raises(I2IError, match=r"b_0.png: expected at least 33 x 33 pixels, got 48 x 32"):
        bvi_dvc.CropDataset(made, size=33)
    big = bvi_dvc.Pair(made[0].low, tmp_path / "big.png")
    Image.new("RGB", (384, 256)).save(big.high)
    with pytest.raises(I2IError, match="clips of one scale, got 2 and 4"):
        bvi_dvc.CropDataset([made[0], big], size=16)
    big.high.write_bytes(b"no")
    with pytest.raises(FrameError, match=r"big.png: expected an image"):
        bvi_dvc.CropDataset([big], size=16)
