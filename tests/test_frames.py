"""Frames in and out against Pillow and tifffile, and every way in which a file can be bad."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from i2ilib import FrameError, I2IError
from i2ilib.frames import open_clip, read_image, stored_colour, write_image


@pytest.fixture
def picture(tmp_path):
    """Random 8-bit colours as an array and a PNG of Pillow's making."""
    array = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "p.png")
    return array, tmp_path / "p.png"


def test_reads_what_pillow_wrote(picture):
    array, path = picture
    frame = read_image(path)
    np.testing.assert_array_equal((frame.rgb[0].permute(1, 2, 0) * 255).round().numpy(), array)
    assert frame.alpha is None and frame.name == "p"


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA"])
def test_grey_palette_and_alpha(picture, tmp_path, mode):
    array, _ = picture
    image = Image.fromarray(array).convert(mode)
    image.save(tmp_path / "m.png")
    frame = read_image(tmp_path / "m.png")
    expected = np.asarray(image.convert("RGB")) / 255
    np.testing.assert_allclose(frame.rgb[0].permute(1, 2, 0), expected, atol=1e-6)
    assert (frame.alpha is not None) == ("A" in mode)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_rgba_keeps_colour_under_transparent_pixels(tmp_path, suffix):
    rgba = torch.rand(1, 4, 9, 7)
    rgba[:, 3, :4] = 0  # colour there must survive: straight alpha
    write_image(tmp_path / f"x{suffix}", rgba)
    frame = read_image(tmp_path / f"x{suffix}")
    assert (torch.cat([frame.rgb, frame.alpha], 1) - rgba).abs().max() <= 0.5 / 65535 + 1e-7


def test_16_bit_tiff_is_what_tifffile_reads(tmp_path):
    pixels = torch.rand(1, 3, 5, 6)
    write_image(tmp_path / "x.tif", pixels)
    expected = (pixels[0].permute(1, 2, 0).numpy() * 65535 + 0.5).astype(np.uint16)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "x.tif"), expected)


def test_exr_keeps_open_range_and_nan(tmp_path):
    linear = torch.tensor([[-0.5, 0.18, 4.0, float("nan")]]).reshape(1, 1, 1, 4).expand(1, 3, 1, 4)
    write_image(tmp_path / "x.exr", linear)
    found = read_image(tmp_path / "x.exr").rgb
    torch.testing.assert_close(found, linear.half().float(), equal_nan=True)
    assert stored_colour("x.exr") == "linear" and stored_colour("x.PNG") == "srgb"


def test_8_bit_rounds_and_clips(tmp_path):
    write_image(tmp_path / "x.png", torch.tensor([-1.0, 0.5, 2.0]).reshape(1, 1, 1, 3), bits=8)
    assert np.asarray(Image.open(tmp_path / "x.png")).tolist() == [[0, 128, 255]]


def _half(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".exr"])
def test_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    write_image(path, torch.rand(1, 3, 64, 64))
    with pytest.raises(FrameError, match=f"cut{suffix}"):
        read_image(_half(path))


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("text.png", "empty.png", "absent.png"):
        with pytest.raises(FrameError, match=name):
            read_image(tmp_path / name)


def test_bad_writes(tmp_path):
    with pytest.raises(I2IError, match="shape"):
        write_image(tmp_path / "x.png", torch.rand(3, 4, 4))
    with pytest.raises(I2IError, match="8 or 16"):
        write_image(tmp_path / "x.png", torch.rand(1, 3, 4, 4), bits=10)
    with pytest.raises(I2IError, match="gif"):
        write_image(tmp_path / "x.gif", torch.rand(1, 3, 4, 4))
    assert list(tmp_path.iterdir()) == []


def test_folder_plays_in_natural_order_and_passes_over_a_bad_frame(tmp_path):
    for i in (1, 2, 10):
        write_image(tmp_path / f"f{i}.png", torch.full((1, 3, 32, 32), i / 10))
    _half(tmp_path / "f2.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    clip = open_clip(tmp_path)
    assert clip.names == ("f1", "f2", "f10")
    frames = dict(clip.read())
    assert isinstance(frames["f2"], FrameError) and frames["f10"].rgb.mean() == 1
    assert list(dict(clip.read({"f10"}))) == ["f10"]


def test_pictures_of_one_stem_stay_apart(tmp_path):
    write_image(tmp_path / "a.png", torch.zeros(1, 3, 4, 4))
    write_image(tmp_path / "a.exr", torch.zeros(1, 3, 4, 4))
    assert sorted(open_clip(tmp_path).names) == ["a_exr", "a_png"]


def write_video(path, frames, fps=24):
    import imageio_ffmpeg

    height, width = frames[0].shape[:2]
    options = {"fps": fps, "codec": "libx264", "pix_fmt_out": "yuv444p", "output_params": ["-crf", "4"]}
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), macro_block_size=2, **options)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


@pytest.fixture
def video(tmp_path):
    ramp = np.linspace(0, 200, 64)[None, :, None] * np.ones((48, 1, 3))
    frames = [(ramp + 10 * i).astype(np.uint8) for i in range(5)]
    write_video(tmp_path / "v.mp4", frames)
    return tmp_path / "v.mp4", frames


def test_video_frames_by_name(video):
    path, frames = video
    clip = open_clip(path)
    assert len(clip) == 5 and clip.names[0] == "frame_000001" and clip.fps == 24
    found = dict(clip.read({"frame_000001", "frame_000004"}))
    assert list(found) == ["frame_000001", "frame_000004"]
    np.testing.assert_allclose(found["frame_000004"].rgb[0].permute(1, 2, 0) * 255, frames[3], atol=3)


def test_video_that_ends_early_reports_the_missing_frames(video):
    import dataclasses

    clip = open_clip(video[0])
    longer = dataclasses.replace(clip, names=(*clip.names, "frame_000006"))
    assert isinstance(dict(longer.read())["frame_000006"], FrameError)


def test_clips_that_are_none(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.docx").write_bytes(b"")
    for name in ("bad.mp4", "empty", "x.docx", "absent"):
        with pytest.raises(FrameError, match=name):
            open_clip(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    ["what?x=1", "a#b", "a%04d", "take:1", "-x", "q'q", "ü ñ 年", "a\nb", "a;b&c", "[1]", "x" * 250, " lead", "*"],
)
def test_odd_names_are_names(tmp_path, name):
    for suffix in (".png", ".exr", ".tif"):
        write_image(tmp_path / f"{name}{suffix}", torch.full((1, 3, 4, 4), 0.5))
        assert read_image(tmp_path / f"{name}{suffix}").rgb.mean() == pytest.approx(0.5, abs=1e-4)
    write_video(tmp_path / f"{name}.mp4", [np.full((16, 16, 3), 128, np.uint8)] * 2)
    assert len(list(open_clip(tmp_path / f"{name}.mp4").read())) == 2
    assert len(list(open_clip(tmp_path).read())) == 3


def test_a_name_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "\udcff.png"
    try:
        path.write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    ((_, problem),) = open_clip(tmp_path).read()
    assert isinstance(problem, FrameError) and "a name in UTF-8" in str(problem) and str(problem).isascii()


def test_a_link_to_nothing_is_a_frame_that_failed(tmp_path):
    write_image(tmp_path / "f1.png", torch.zeros(1, 3, 4, 4))
    (tmp_path / "f2.png").symlink_to(tmp_path / "gone.png")
    found = dict(open_clip(tmp_path).read())
    assert list(found) == ["f1", "f2"] and "a link to nothing" in str(found["f2"])
    with pytest.raises(FrameError, match="a link to nothing"):
        open_clip(tmp_path / "f2.png")


def test_what_is_passed_over_is_told(tmp_path):
    write_image(tmp_path / "f1.png", torch.zeros(1, 3, 4, 4))
    for name in ("notes.txt", "grade.dpx", ".hidden.png", "shot.mov"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    clip = open_clip(tmp_path)
    assert clip.names == ("f1",) and clip.passed_over == ("grade.dpx", "notes.txt", "shot.mov")
    assert clip.source("f1") == tmp_path / "f1.png"


def test_links_in_a_circle_and_names_that_are_too_long_are_frames_that_failed(tmp_path):
    write_image(tmp_path / "f1.png", torch.zeros(1, 3, 4, 4))
    (tmp_path / "f2.png").symlink_to(tmp_path / "f2.png")
    found = dict(open_clip(tmp_path).read())
    assert list(found) == ["f1", "f2"] and isinstance(found["f2"], FrameError) and "f2.png" in str(found["f2"])
    with pytest.raises(FrameError, match=r"x\.png: expected"):
        read_image(tmp_path / ("x" * 300 + ".png"))
    with pytest.raises(FrameError, match=r"x\.png: expected"):
        open_clip(tmp_path / ("x" * 300 + ".png"))


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def denied(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("i2ilib.frames.os.scandir", denied)
    with pytest.raises(FrameError, match="a folder that can be read, got Permission denied"):
        open_clip(tmp_path)
