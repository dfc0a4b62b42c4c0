"""Readers of the VideoMatte240K layouts, the compositing identity, splits and patches."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from test_pictures import png_with
from test_video import X264, levels

from i2ilib.datasets import videomatte
from i2ilib.datasets.synthetic import ACTORS, background, render_frame, write_clip, write_video
from i2ilib.datasets.videomatte import Clip, PatchDataset, clips, composite, matting_frame, paper_split
from i2ilib.errors import FrameError, I2IError
from i2ilib.frames import write_image
from i2ilib.patches import Grid, nearest_multiple


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("videomatte")
    return write_clip(root, ACTORS[1], frames=4, height=64, width=96, name="0001")


@pytest.fixture
def copy(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    return tmp_path / "data"


def as_video(root, target):
    """The same clip in the layout of the published files."""
    (clip,) = clips(root)
    for kind in (0, 1):
        folder = target / "train" / ("fgr", "pha")[kind]
        folder.mkdir(parents=True)
        frames = (clip.frame(i)[kind].expand(3, -1, -1).mul(255).round().byte() for i in range(len(clip)))
        write_video(folder / "0001.mp4", (f.permute(1, 2, 0).numpy() for f in frames), fps=24, crf=4)


def test_frame_layout(root):
    (clip,) = clips(root)
    assert (clip.name, len(clip), clip.height, clip.width) == ("0001", 4, 64, 96)
    fgr, pha = clip.frame(3)
    assert fgr.shape == (3, 64, 96) and pha.shape == (1, 64, 96) and fgr.dtype == torch.float32
    with Image.open(root / "train" / "fgr" / "0001" / "00003.png") as image:
        assert np.array_equal(fgr.mul(255).round().byte().permute(1, 2, 0), np.asarray(image))
    assert clip.background.shape == (3, 64, 96)


def test_video_layout_reads_the_same_within_the_codec(root, tmp_path):
    as_video(root, tmp_path)
    (video,), (frames,) = clips(tmp_path), clips(root)
    assert (len(video), video.height, video.width) == (len(frames), 64, 96) and video.background is None
    for i in (0, 2, 1, 1, 3):  # in order, back, and again
        (fgr, pha), (fgr0, pha0) = video.frame(i), frames.frame(i)
        assert pha.shape == pha0.shape and (pha - pha0).abs().mean() < 2 / 255
        assert (fgr - fgr0).abs().mean() < 6 / 255  # colour at half resolution
    others = [(video.frame(0)[1] - frames.frame(i)[1]).abs().mean() for i in range(4)]
    assert int(np.argmin(others)) == 0


def test_jpeg_frames_without_a_background(root, copy):
    shutil.rmtree(copy / "train" / "bgr")
    for kind in ("fgr", "pha"):
        for path in (copy / "train" / kind / "0001").glob("*.png"):
            Image.open(path).save(path.with_suffix(".jpg"), quality=97, subsampling=0)
            path.unlink()
    (clip,) = clips(copy)
    assert clip.background is None and len(clip) == 4
    assert (clip.frame(0)[1] - clips(root)[0].frame(0)[1]).abs().mean() < 2 / 255
    with pytest.raises(I2IError, match=r"expected a background.*mode='foreground'"):
        matting_frame(clip, 0)
    source, _ = matting_frame(clip, 0, mode="foreground")
    assert torch.equal(source, clip.frame(0)[0])


def put(folder, names, codes, mode="RGB", size=(24, 16)):
    folder.mkdir(parents=True)
    for name, code in zip(names, codes, strict=True):
        Image.new(mode, size, (code,) * 3 if mode == "RGB" else code).save(folder / name)


@pytest.mark.parametrize(
    ("fgr", "pha"),
    [
        ("{:04d}.png", "{}.png"),  # 0010 beside 10, which sort differently
        ("walk_fgr.{:03d}.jpg", "walk_pha.{:03d}.png"),
        ("{}.tif", "{}.png"),
        ("s.-{:02d}.png", "-{}.png"),
        ("take2_{}.png", "take2_{}.png"),
    ],
)
def test_frames_are_paired_by_number(tmp_path, fgr, pha):
    frames = range(1, 13)
    put(tmp_path / "train/fgr/c", [fgr.format(i) for i in frames], [10 * i for i in frames])
    put(tmp_path / "train/pha/c", [pha.format(i) for i in frames], [20 * i for i in frames], mode="L")
    (clip,) = clips(tmp_path)
    found = [[round(float(part.mean()) * 255) for part in clip.frame(i)] for i in range(12)]
    numbers = reversed(frames) if "-" in pha else frames
    assert found == [[pytest.approx(10 * i, abs=1), 20 * i] for i in numbers]


@pytest.mark.parametrize(
    ("fgr", "pha", "odd"),
    [
        (["1.png", "2.png"], ["1.png", "3.png"], "2.png.*3.png"),
        (["a.png", "b.png"], ["a.png", "c.png"], "b.png.*c.png"),
        (["1.png", "01.png"], ["1.png", "2.png"], "01.png.*2.png"),
        (["1.png", "1.jpg"], ["1.png", "2.png"], "no partner for"),
        (["f_001_v2.png"], ["a_009_v2.png"], "f_001_v2.png.*a_009_v2.png"),
        (["t1_001.png"], ["t2_001.png"], "t1_001.png.*t2_001.png"),
    ],
)
def test_frames_that_do_not_pair_are_refused_by_name(tmp_path, fgr, pha, odd):
    put(tmp_path / "train/fgr/c", fgr, [1] * len(fgr))
    put(tmp_path / "train/pha/c", pha, [1] * len(pha), mode="L")
    with pytest.raises(I2IError, match=rf"(?s){odd}.*Number both alike"):
        clips(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".exr"])
def test_mattes_of_16_bits_keep_their_values(tmp_path, suffix):
    put(tmp_path / "train/fgr/c", ["1.png"], [100], size=(8, 8))
    (tmp_path / "train/pha/c").mkdir(parents=True)
    alpha = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    write_image(tmp_path / f"train/pha/c/1{suffix}", alpha)
    (clip,) = clips(tmp_path)
    torch.testing.assert_close(clip.frame(0)[1], alpha[0], atol=3e-4 if suffix == ".exr" else 1e-5, rtol=0)
    assert float(PatchDataset(clip, patch=8, stride=8, mode="foreground")[0][1].mean()) == pytest.approx(0.5, abs=2e-3)


def test_linear_foregrounds_are_encoded(tmp_path):
    (tmp_path / "train/fgr/c").mkdir(parents=True)
    write_image(tmp_path / "train/fgr/c/1.exr", torch.full((1, 3, 4, 4), 0.18))
    put(tmp_path / "train/pha/c", ["1.png"], [255], mode="L", size=(4, 4))
    assert clips(tmp_path)[0].frame(0)[0].mean() == pytest.approx(0.461356, abs=2e-4)  # IEC 61966-2-1


def test_a_colour_picture_is_no_alpha(tmp_path):
    put(tmp_path / "train/fgr/c", ["1.png"], [100])
    (tmp_path / "train/pha/c").mkdir(parents=True)
    Image.new("RGB", (24, 16), (255, 0, 0)).save(tmp_path / "train/pha/c/1.png")
    with pytest.raises(FrameError, match=r"1\.png: expected a grey picture as alpha"):
        clips(tmp_path)[0].frame(0)


def with_alpha(tmp_path, picture):
    put(tmp_path / "train/fgr/c", ["1.png"], [100])
    (tmp_path / "train/pha/c").mkdir(parents=True)
    picture.save(tmp_path / "train/pha/c/1.png")
    return clips(tmp_path)[0].frame(0)[1]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("colour", [0, 255])
def test_a_matte_in_the_alpha_channel(tmp_path, mode, colour):
    picture = Image.new(mode, (24, 16), (*[colour] * (len(mode) - 1), 128))
    assert with_alpha(tmp_path, picture).unique().tolist() == [pytest.approx(128 / 255)]


def test_two_mattes_in_one_file_are_refused(tmp_path):
    picture = Image.linear_gradient("L").resize((24, 16))
    picture.putalpha(128)
    with pytest.raises(FrameError, match="expected one matte, got a grey picture and an alpha channel"):
        with_alpha(tmp_path, picture)


def test_no_gamma_applies_to_coverage(tmp_path):
    put(tmp_path / "train/fgr/c", ["1.png"], [100], size=(4, 3))
    (tmp_path / "train/pha/c").mkdir(parents=True)
    png_with(tmp_path / "train/pha/c/1.png", 55556)
    assert clips(tmp_path)[0].frame(0)[1].mean() == pytest.approx(128 / 255, abs=1e-6)


@pytest.mark.parametrize("kind", ["fgr", "pha"])
def test_what_is_not_finite_is_refused(tmp_path, kind):
    for name in ("fgr", "pha"):
        (tmp_path / "train" / name / "c").mkdir(parents=True)
        pixels = torch.full((1, 3, 4, 4), float("nan") if name == kind else 0.5)
        write_image(tmp_path / "train" / name / "c/1.exr", pixels)
    with pytest.raises(FrameError, match=r"1\.exr: expected finite pixels"):
        clips(tmp_path)[0].frame(0)


def test_videos_of_any_timing_pair_frame_by_frame(tmp_path):
    for kind in ("fgr", "pha"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        levels(tmp_path / f"train/{kind}/c.mkv", *X264, times=r"if(lt(N\,5)\,N\,N+20)/25")
    (clip,) = clips(tmp_path)
    assert len(clip) == 12
    for i in (0, 1, 7, 11, 4, 5):
        fgr, pha = clip.frame(i)
        assert round(float(fgr.mean()) * 219 / 18) == i and round(float(pha.mean()) * 219 / 18) == i


# --- errors, each with its way out ---------------------------------------------------------------------------


def test_missing_root_and_wrong_split_name_the_page(root, tmp_path):
    with pytest.raises(I2IError, match=r"no such folder.*background-matting-v2"):
        clips(tmp_path / "absent")
    with pytest.raises(I2IError, match=r"valid.*the splits train"):
        clips(root, "valid")
    with pytest.raises(I2IError, match="got nothing"):
        clips(tmp_path)


@pytest.mark.parametrize("kind", ["fgr", "pha"])
def test_missing_kind(copy, kind):
    shutil.rmtree(copy / "train" / kind)
    with pytest.raises(I2IError, match=f"{kind}: expected a folder of clips"):
        clips(copy)


def test_no_clip(copy):
    for kind in ("fgr", "pha"):
        shutil.rmtree(copy / "train" / kind / "0001")
    with pytest.raises(I2IError, match="got no clip"):
        clips(copy)


def test_one_name_for_two_clips(copy):
    (copy / "train/fgr/0001.mp4").write_bytes(b"")
    with pytest.raises(I2IError, match=r"0001\.mp4: expected one clip of a name, got 0001 too"):
        clips(copy)


@pytest.mark.parametrize("kind", ["fgr", "pha"])
def test_frames_do_not_pair_with_a_video(copy, kind):
    shutil.rmtree(copy / "train" / kind / "0001")
    (copy / "train" / kind / "0001.mp4").write_bytes(b"")
    with pytest.raises(I2IError, match="expected frames or a video, as"):
        clips(copy)


def test_unpaired_clip(copy):
    shutil.copytree(copy / "train" / "fgr" / "0001", copy / "train" / "fgr" / "0002")
    with pytest.raises(I2IError, match="only one of them for 0002"):
        clips(copy)


@pytest.mark.parametrize("lost", [["00002"], ["00000", "00001", "00002", "00003"]])
def test_counts_that_differ(copy, lost):
    for name in lost:
        (copy / "train" / "pha" / "0001" / f"{name}.png").unlink()
    with pytest.raises(I2IError, match=f"pha.* has {4 - len(lost)}.*got 4"):
        clips(copy)


def test_empty_clip(copy):
    for path in [*(copy / "train" / "fgr" / "0001").iterdir(), *(copy / "train" / "pha" / "0001").iterdir()]:
        path.unlink()
    with pytest.raises(I2IError, match="at least one"):
        clips(copy)


def test_unreadable_files(copy, tmp_path):
    (copy / "train" / "fgr" / "0001" / "00001.png").write_bytes(b"not a picture")
    (clip,) = clips(copy)
    with pytest.raises(FrameError, match=r"00001\.png: expected an image"):
        clip.frame(1)
    for kind in ("fgr", "pha"):
        (tmp_path / "v" / "train" / kind).mkdir(parents=True)
        (tmp_path / "v" / "train" / kind / "a.mp4").write_bytes(b"not a video")
    with pytest.raises(FrameError, match=r"a\.mp4: expected a video"):
        clips(tmp_path / "v")


def test_sizes_that_differ(copy):
    path = copy / "train" / "pha" / "0001" / "00002.png"
    Image.open(path).resize((48, 32)).save(path)
    with pytest.raises(FrameError, match=r"frame 2: expected an alpha of \(64, 96\).*got \(32, 48\)"):
        clips(copy)[0].frame(2)


def test_frame_out_of_range(root, tmp_path):
    with pytest.raises(I2IError, match="0 to 3, got 4"):
        clips(root)[0].frame(4)
    as_video(root, tmp_path)
    (clip,) = clips(tmp_path)
    long = Clip(**{**vars(clip), "frames": 9})  # the container promised more than it holds
    with pytest.raises(FrameError, match="frame_000007: expected a frame, got the stream ended early"):
        long.frame(6)


# --- composite ----------------------------------------------------------------------------------------------


def test_composite_is_exact_and_recovers_alpha(root):
    frame, bgr = render_frame(ACTORS[0], 0.4, height=128, width=192), background(ACTORS[0], 128, 192)
    made = composite(frame.fgr, frame.pha, bgr)
    expected = frame.pha.numpy() * frame.fgr.numpy() + (1 - frame.pha.numpy()) * bgr.numpy()
    assert np.array_equal(made, expected)
    assert torch.equal(made[:, frame.pha[0] == 0], bgr[:, frame.pha[0] == 0])
    assert torch.equal(made[:, frame.pha[0] == 1], frame.fgr[:, frame.pha[0] == 1])
    # two composites over known backgrounds give alpha back: Smith and Blinn, "Blue screen matting", 1996
    black, white = (composite(frame.fgr, frame.pha, torch.full_like(bgr, v)) for v in (0.0, 1.0))
    torch.testing.assert_close(1 - (white - black), frame.pha.expand(3, -1, -1), atol=1e-6, rtol=0)


def test_composite_of_other_sizes():
    with pytest.raises(I2IError, match=r"\(4, 4\).*background \(4, 5\)"):
        composite(torch.zeros(3, 4, 4), torch.zeros(1, 4, 4), torch.zeros(3, 4, 5))


def test_matting_frame_over_another_photograph(root):
    (clip,) = clips(root)
    grey = torch.full((3, 64, 96), 0.5)
    source, alpha = matting_frame(clip, 0, bgr=grey)
    assert (source[:, alpha[0] == 0] == 0.5).all()
    own, _ = matting_frame(clip, 0)
    assert torch.equal(own[:, alpha[0] == 0], clip.background[:, alpha[0] == 0])
    with pytest.raises(I2IError, match="composite or foreground"):
        matting_frame(clip, 0, mode="trimap")


# --- splits and patches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [None, 3, 32, 75, 500])
def test_split_has_no_frame_twice_and_keeps_time_apart(frames):
    parts = paper_split(frames)
    flat = list(itertools.chain(*parts))
    assert flat == sorted(set(flat)) and all(parts)
    assert max(flat) < (frames or 75)
    if frames is None or frames >= 75:
        assert [len(p) for p in parts] == [57, 11, 7]


def test_split_errors():
    for arguments in ({"frames": 2}, {"n_test": 0}):
        with pytest.raises(I2IError, match="at least one frame in each part"):
            paper_split(**arguments)


def test_patch_counts_beside_the_paper():
    """57, 11 and 7 frames cut with a stride of 64; the paper prints about 20000, 4000 and 2500 for HD."""
    parts = paper_split()

    def counts(height, width):
        return [len(part) * len(Grid(height, width, stride=64)) for part in parts]

    assert counts(*nearest_multiple(1080, 1920)) == [21489, 4147, 2639]  # 377 a frame: scaled as section 3.3.1 says
    whole = [len(part) * ((1080 - 256) // 64 + 1) * ((1920 - 256) // 64 + 1) for part in parts]
    assert whole == [20007, 3861, 2457]  # 351 a frame: not scaled, the rest cut off
    assert all(abs(n / printed - 1) < 0.04 for n, printed in zip(whole, (20000, 4000, 2500), strict=True))
    assert counts(*nearest_multiple(2160, 3840)) == [94221, 18183, 11571]  # the paper: 34000, 6800 and 4300


def test_patch_dataset_is_the_grid_of_the_scaled_frame(root):
    (clip,) = clips(root)
    data = PatchDataset(clip, patch=32, stride=16)
    assert len(data) == 4 * 3 * 5  # 64 x 96 is a multiple of 32
    source, alpha = data[17]  # frame 1, row 0, column 2
    whole = matting_frame(clip, 1)
    torch.testing.assert_close(source, whole[0][:, :32, 32:64], atol=0.5 / 255 + 1e-6, rtol=0)
    assert torch.equal(alpha, whole[1][:, :32, 32:64])
    scaled = PatchDataset(clip, [0], patch=40, stride=10)
    assert len(scaled) == 5 * 5 and scaled.nbytes == 4 * 80 * 80  # 64 x 96 goes to 80 x 80
    assert scaled[24][0].shape == (3, 40, 40)


def test_patch_dataset_default_size_and_foreground_mode(root):
    (clip,) = clips(root)
    data = PatchDataset(clip, [2], mode="foreground")
    assert len(data) == 1 and data[0][0].shape == (3, 256, 256) and data[0][1].shape == (1, 256, 256)


def test_patches_of_several_clips_and_sizes_follow_each_other(root):
    (clip,) = clips(root)
    data = PatchDataset([clip, clip], [0, 3], patch=32, stride=20)
    each = Grid(64, 96, patch=32, stride=20).positions  # the last row and column are aligned with the edge
    assert len(data) == 4 * len(each)
    for index in (0, len(each) - 1, len(each), 3 * len(each) + 7):
        y, x = each[index % len(each)]
        whole = matting_frame(clip, [0, 3][index // len(each) % 2])
        torch.testing.assert_close(data[index][0], whole[0][:, y : y + 32, x : x + 32], atol=0.5 / 255 + 1e-6, rtol=0)


def test_mirrors_repeat_by_seed_and_change_by_epoch(root):
    (clip,) = clips(root)
    a, b, c = (PatchDataset(clip, patch=32, stride=16, flip=True, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True))
    assert any(not torch.equal(x[0], y[0]) for x, y in zip(a, c, strict=True))
    b.epoch = 1
    assert any(not torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True))
    assert all(torch.equal(a.cut(i, 1)[0], b[i][0]) for i in range(len(a)))


def test_flip_mirrors_source_and_alpha_together(root):
    (clip,) = clips(root)
    plain, flipped = (PatchDataset(clip, patch=32, stride=32, flip=f) for f in (False, True))
    turned = 0
    for (x, a), (y, b) in zip(plain, flipped, strict=True):
        mirrored = not torch.equal(x, y)
        turned += mirrored
        assert torch.equal(b, a.flip(-1) if mirrored else a) and torch.equal(y, x.flip(-1) if mirrored else x)
    assert 0 < turned < len(plain)


def test_patch_dataset_works_in_a_loader(root):
    loader = torch.utils.data.DataLoader(PatchDataset(clips(root)[0], patch=32, stride=32), batch_size=8)
    assert [tuple(x.shape) for x, _ in loader] == [(8, 3, 32, 32)] * 3


def test_memory_budget_is_kept(root):
    (clip,) = clips(root)
    needed = 4 * 4 * 64 * 96
    data = PatchDataset(clip, patch=32, stride=32, budget_bytes=needed)
    held = sum(f.nbytes for f in data.frames)
    assert held == data.nbytes == needed
    with pytest.raises(I2IError, match=f"budget_bytes={needed - 1}, got {needed} bytes for 4 frames"):
        PatchDataset(clip, patch=32, stride=32, budget_bytes=needed - 1)
    with pytest.raises(I2IError, match="at least one frame"):
        PatchDataset(clip, [])
    with pytest.raises(IndexError):
        data[len(data)]


def test_page_is_the_official_one():
    assert videomatte.PAGE == "https://grail.cs.washington.edu/projects/background-matting-v2/"
