"""The BVI-DVC layout: pairs of small compressed and large frames, written with x265."""

import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from i2ilib.datasets import bvi_dvc
from i2ilib.errors import FrameError, I2IError


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
