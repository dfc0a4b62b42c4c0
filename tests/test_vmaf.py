"""VMAF against Netflix's expected scores, and every way in which a score could silently be one of something else."""

import csv
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import imageio_ffmpeg
import numpy as np
import psutil
import pytest
import torch
from conftest import REFERENCE, shared
from hypothesis import given, settings
from hypothesis import strategies as st

from i2ilib import FrameError, I2IError, IntegrityError, UnavailableError, colour, metrics
from i2ilib.frames import ffmpeg as program
from i2ilib.frames import open_clip, read_image, write_image
from i2ilib.metrics._libvmaf import MODELS, known_models, parse_log

FIXED = settings(derandomize=True, deadline=None, max_examples=50)
FORMS = {"src01": ((576, 324), "yuv420p10le"), "src01s": ((160, 90), "yuv420p")}
VIDEO = REFERENCE / "data" / "video"
GOLDENS = [*csv.DictReader((VIDEO / "vmaf_goldens.csv").open())] if VIDEO.exists() else []
ASKED = [row for row in GOLDENS if row["feature"] != "float_ms_ssim"]  # of libvmaf, which has that on request
POSIX = pytest.mark.skipif(os.name != "posix", reason="the stand-in for ffmpeg is a shell script")
STILL = 97.428  # a frame without motion against itself


def run_ffmpeg(*arguments, data=None):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def src01(which, clip="src01"):
    """A raw file and how to read it."""
    (width, height), layout = FORMS[clip]
    path = shared(f"data/video/src01_hrc0{which}_{width}x{height}.{layout}.yuv")
    return path, {"size": (width, height), "pixel_format": layout}


def picture(seed=0, height=54, width=96, n=3):
    """Frames (N, 3, H, W) of moving, smooth noise, sRGB codes on 8 bits."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, height // 6, width // 6, generator=generator)
    large = torch.nn.functional.interpolate(small, (height, width + 4 * n), mode="bicubic").clamp(0, 1)
    frames = torch.cat([large[..., 4 * i : 4 * i + width] for i in range(n)])
    return (frames * 255).round() / 255


def worse(frames, by=0.05):
    generator = torch.Generator().manual_seed(1)
    noisy = frames + by * torch.randn(frames.shape, generator=generator)
    return (noisy.clamp(0, 1) * 255).round() / 255


def folder_of(frames, path, bits=8, suffix="png"):
    path.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        write_image(path / f"f{number:03d}.{suffix}", frame[None], bits=bits)
    return path


def planes(frames, matrix, full):
    """Y'CbCr 4:2:0 of 8 bits by the definitions of BT.601, BT.709 and BT.2020, one plane behind the other."""
    kr, kb = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}[matrix]
    red, green, blue = frames.double().unbind(1)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = torch.stack([(blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)], 1)
    chroma = torch.nn.functional.avg_pool2d(chroma, 2)
    codes = (luma * 255, 128 + chroma * 255) if full else (16 + luma * 219, 128 + chroma * 224)
    return torch.cat([code.round().clamp(0, 255).flatten(1) for code in codes], 1).byte().numpy().tobytes()


def encoded(frames, path, *options, matrix="bt709", full=False):
    """A lossless video of frames, tagged with its matrix and range."""
    height, width = frames.shape[-2:]
    tags = ["-colorspace", {"bt601": "smpte170m", "bt2020": "bt2020nc"}.get(matrix, matrix)]
    tags += ["-color_range", "pc" if full else "tv"]
    layout = ["-f", "rawvideo", "-pix_fmt", "yuvj420p" if full else "yuv420p", "-video_size", f"{width}x{height}"]
    lossless = ["-c:v", "libx264", "-qp", "0", *options]
    run_ffmpeg(*layout, *tags, "-i", "-", *lossless, *tags, path, data=planes(frames, matrix, full))
    return path


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    """No test leaves a process or a temporary file behind, however its scoring ended."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    assert not list(place.iterdir())
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before


# --- Netflix's numbers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_results():
    found = {}
    for row in ASKED:
        size, layout = FORMS[row["clip"]]
        key = row["dist"], row["ref"]
        if key not in found:
            dist, ref = (VIDEO / name for name in key)
            found[key] = metrics.vmaf(dist, ref, size=size, pixel_format=layout)
    return found


@pytest.mark.skipif(not ASKED, reason="reference data not beside this checkout: shared/data/video")
@pytest.mark.parametrize("row", ASKED, ids=lambda row: f"{row['dist'][:11]}-{row['clip']}-{row['feature']}")
def test_netflix_expects(row, golden_results):
    feature = {"float_psnr": "psnr_y"}.get(row["feature"], row["feature"])  # the same number by another extractor
    result = golden_results[row["dist"], row["ref"]]
    assert result.model == row["model"]
    values = result.frames if feature == "vmaf" else result.features[feature]
    assert len(values) == int(row["frames"])
    # libvmaf 3.2.0 corrected the motion at the edge of the frame
    either = [row["expected_mean"], row["expected_mean_libvmaf_3_1_and_older"], row["ffmpeg_7_0_2_mean"]]
    tolerance = 0.005 if feature == "vmaf" else 5e-4
    assert min(abs(np.mean(values) - float(x)) for x in either if x) < tolerance
    if feature == "vmaf":
        assert result.mean == pytest.approx(float(row["expected_mean"]), abs=0.005)
        assert result.harmonic_mean == pytest.approx(float(row["ffmpeg_9_0_2_harmonic_mean"]), abs=0.005)
        assert min(values) == pytest.approx(float(row["ffmpeg_9_0_2_min"]), abs=0.005)


@pytest.mark.parametrize(
    ("model", "mean"),
    [
        ("vmaf_v0.6.1neg", 80.681),
        ("vmaf_4k_v0.6.1", 88.968),
        ("vmaf_v1.0.16_3d0h", 88.914),
        ("vmaf_v1.0.16_5d0h", 89.962),
        ("vmaf_v1.0.16_1d5h_2160", 89.233),
    ],
)
def test_models_differ_by_points(model, mean):
    (dist, how), (ref, _) = src01(1), src01(0)
    if model not in known_models():
        pytest.skip(f"this libvmaf does not know {model}")
    result = metrics.vmaf(dist, ref, model=model, **how)
    assert result.mean == pytest.approx(mean, abs=0.005) and result.model == model


def test_distorted_comes_first():
    (dist, how), (ref, _) = src01(1), src01(0)
    assert metrics.vmaf(ref, dist, **how).mean == pytest.approx(87.14, abs=0.01)


@pytest.mark.parametrize(("matrix", "mean", "harmonic"), [("bt601", 82.7137, 82.7035), ("bt709", 81.7403, 81.7312)])
def test_rgb_needs_a_matrix(tmp_path, matrix, mean, harmonic):
    folders = []
    for which in (1, 0):
        (tmp_path / str(which)).mkdir()
        for path in shared("data/video/tiff").glob(f"src01_hrc0{which}*.tiff"):
            shutil.copy(path, tmp_path / str(which))
        folders.append(tmp_path / str(which))
    result = metrics.vmaf(*folders, matrix=matrix)
    assert (result.mean, result.harmonic_mean) == pytest.approx((mean, harmonic), abs=0.005)
    assert result.about["matrix"] == matrix and result.about["pixel_format"] == "yuv420p"
    assert result.about["dist"]["converted"] == "from RGB"
    tensors = [torch.cat([frame.rgb for _, frame in open_clip(path).read()]) for path in folders]
    assert metrics.vmaf(*tensors, matrix=matrix).frames == result.frames  # the same pixels, whoever reads them
    clips = [open_clip(path) for path in folders]
    assert metrics.vmaf(*clips, matrix=matrix).frames == result.frames


def test_threads_change_nothing():
    (dist, how), (ref, _) = src01(1, "src01s"), src01(0, "src01s")
    one, two = (metrics.vmaf(dist, ref, threads=n, **how) for n in (1, 2))
    assert one == two


# --- the log ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "mean", "harmonic"), [("9.0.2", 82.564227, 82.550063), ("7.0.2", 82.56523, 82.551082)]
)
def test_logs_of_two_builds(version, mean, harmonic):
    log = parse_log(shared(f"data/video/logs/src01_vmaf_v0.6.1_ffmpeg{version}.json").read_text())
    assert (log.mean, log.harmonic_mean) == (mean, harmonic)
    assert log.values["vmaf"][0] == 83.856284 and len(log.values["vmaf"]) == 3
    assert log.values["integer_vif_scale0"] == (0.505712, 0.411649, 0.381907)


def written(scores, **changes):
    """A log as libvmaf writes it."""
    frames = [{"frameNum": n, "metrics": {"psnr_y": 30.0 + n, "vmaf": round(x, 6)}} for n, x in enumerate(scores)]
    pooled = {
        "mean": round(np.mean(scores), 6),
        "harmonic_mean": round(len(scores) / sum(1 / (1 + np.array(scores))) - 1, 6),
    }
    return json.dumps({"version": "3.2.0", "frames": frames, "pooled_metrics": {"vmaf": pooled}} | changes)


@FIXED
@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_any_log_is_read(scores):
    log = parse_log(written(scores))
    assert log.values["vmaf"] == pytest.approx(scores, abs=1e-6) and len(log.values["psnr_y"]) == len(scores)
    assert log.mean == pytest.approx(np.mean(scores), abs=1e-5)
    assert log.harmonic_mean <= log.mean + 1e-5  # as of any positive numbers
    assert min(scores) - 1e-5 <= log.harmonic_mean <= max(scores) + 1e-5


@FIXED
@given(st.lists(st.floats(0, 100), min_size=1, max_size=5), st.data())
def test_a_cut_log_is_refused(scores, data):
    text = written(scores)
    with pytest.raises(IntegrityError, match="libvmaf's log: expected JSON with frames and pooled values"):
        parse_log(text[: data.draw(st.integers(0, len(text) - 1))])


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": []},
        {"frames": [{"frameNum": 1, "metrics": {"vmaf": 80.0}}, {"frameNum": 2, "metrics": {"vmaf": 90.0}}]},
        {"frames": [{"frameNum": 0, "metrics": {"vmaf": 80.0}}, {"frameNum": 1, "metrics": {"psnr_y": 30.0}}]},
        {"frames": [{"frameNum": 0, "metrics": {"vmaf": math.nan}}]},
        {"frames": [{"frameNum": 0, "metrics": {"vmaf": "high"}}]},
        {"frames": "none"},
        {"pooled_metrics": {}},
        {"pooled_metrics": {"vmaf": {"mean": 85.0, "harmonic_mean": 85.0}}},
        {"pooled_metrics": {"vmaf": {"mean": 84.0, "harmonic_mean": 84.709302}}},
    ],
)
def test_bad_logs(changes):
    with pytest.raises(IntegrityError, match="libvmaf's log"):
        parse_log(written([80.0, 90.0], **changes))
    assert parse_log(written([80.0, 90.0])).harmonic_mean == 84.709302


# --- one clip by every road ------------------------------------------------------------------------------


def test_a_lossless_video_scores_as_the_raw_file(tmp_path):
    (dist, how), (ref, _) = src01(1, "src01s"), src01(0, "src01s")
    raw = metrics.vmaf(dist, ref, **how)
    source = ["-f", "rawvideo", "-pix_fmt", how["pixel_format"], "-video_size", "160x90"]
    # other rates, uneven times, B-frames, sound before the picture, another container
    x264 = ["-c:v", "libx264", "-qp", "0", "-bf", "3", "-map", "1:a", "-map", "0:v", "-shortest", tmp_path / "dist.mp4"]
    run_ffmpeg(*source, "-r", "24", "-i", dist, "-f", "lavfi", "-i", "sine=d=9", *x264)
    uneven = ["-vf", "setpts=(N*N+N)/30/TB", "-fps_mode", "passthrough", "-c:v", "ffv1", tmp_path / "ref.mkv"]
    run_ffmpeg(*source, "-r", "50", "-i", ref, *uneven)
    for a, b, size in (("dist.mp4", "ref.mkv", None), ("dist.mp4", ref, how), (dist, "ref.mkv", how)):
        result = metrics.vmaf(tmp_path / a, tmp_path / b, **(size or {}))
        assert result.frames == raw.frames and result.features == raw.features
        assert [result.about[side]["converted"] for side in ("dist", "ref")] == ["no", "no"]
    assert result.about["frames"] == 48 and result.about["size"] == [160, 90]
    assert result.about["dist"]["kind"] == "raw" and result.about["ref"]["kind"] == "video"


def test_ten_bits(tmp_path):
    (dist, how), (ref, _) = src01(1), src01(0)
    raw = metrics.vmaf(dist, ref, **how)
    source = ["-f", "rawvideo", "-pix_fmt", how["pixel_format"], "-video_size", "576x324", "-i"]
    for name, path in (("dist", dist), ("ref", ref)):
        run_ffmpeg(*source, path, "-c:v", "ffv1", tmp_path / f"{name}.mkv")
    result = metrics.vmaf(tmp_path / "dist.mkv", tmp_path / "ref.mkv")
    assert result.frames == raw.frames and result.about["pixel_format"] == "yuv420p10le"


def test_scored_at_the_larger_depth(tmp_path):
    (dist, how), (ref, _) = src01(1, "src01s"), src01(0, "src01s")
    for path in (dist, ref):
        (np.fromfile(path, np.uint8).astype("<u2") * 4).tofile(tmp_path / path.name)
    run_ffmpeg("-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", "160x90", "-i", ref, "-c:v", "ffv1", tmp_path / "ref.mkv")
    deep = {"size": (160, 90), "pixel_format": "yuv420p10le"}
    both = metrics.vmaf(tmp_path / dist.name, tmp_path / ref.name, **deep)
    mixed = metrics.vmaf(tmp_path / dist.name, tmp_path / "ref.mkv", **deep)
    assert mixed.frames == both.frames
    assert mixed.about["pixel_format"] == "yuv420p10le"
    assert mixed.about["ref"]["converted"] == "yuv420p to yuv420p10le"
    shallow = metrics.vmaf(dist, ref, **how)
    assert metrics.vmaf(dist, ref, bits=10, **how).frames == both.frames
    assert shallow.about["pixel_format"] == "yuv420p" and shallow.mean == pytest.approx(both.mean, abs=0.005)


@pytest.mark.parametrize("layout", ["yuv422p", "yuv444p", "yuv444p10le", "yuv444p12le"])
def test_other_layouts_keep_their_luma(tmp_path, layout):
    """Luma alone counts for v0.6.1: without chroma, all layouts score alike."""
    (dist, how), (ref, _) = src01(1, "src01s"), src01(0, "src01s")
    shift = {"p": 0, "10le": 2, "12le": 4}[layout[6:].lstrip("p") or "p"]
    deep = np.uint8 if shift == 0 else np.dtype("<u2")
    chroma = 160 * 90 * (1 if "422" in layout else 2)
    for path in (dist, ref):
        luma = np.fromfile(path, np.uint8).reshape(-1, 160 * 90 * 3 // 2)[:, : 160 * 90].astype(deep) << shift
        grey = np.full((len(luma), chroma), 128 << shift, deep)
        np.concatenate([luma, grey], 1).tofile(tmp_path / path.name)
    result = metrics.vmaf(tmp_path / dist.name, tmp_path / ref.name, size=(160, 90), pixel_format=layout)
    expected = metrics.vmaf(dist, ref, bits=8 if shift == 0 else 10, **how)
    assert result.frames == expected.frames and result.features["psnr_y"] == expected.features["psnr_y"]
    assert result.about["pixel_format"] == ("yuv420p" if shift == 0 else "yuv420p10le")


def test_grey_levels_are_those_of_the_standard():
    """Even grey against even grey: PSNR by the definition of limited range, 16 + 219 Y, of 8 and of 10 bits."""
    light, dark = torch.full((2, 3, 36, 64), 0.8), torch.full((2, 3, 36, 64), 0.2)
    ten = metrics.vmaf(light + 1e-4, dark + 1e-4)
    assert ten.about["pixel_format"] == "yuv420p10le"
    assert ten.features["psnr_y"] == pytest.approx([20 * math.log10(1023 / (0.6 * 219 * 4))] * 2, abs=0.01)
    eight = metrics.vmaf(light, dark)
    assert eight.about["pixel_format"] == "yuv420p"
    assert eight.features["psnr_y"] == pytest.approx([20 * math.log10(255 / round(0.6 * 219))] * 2, abs=0.06)


def test_deep_pictures_and_light(tmp_path):
    frames = picture() * 0.9 + 0.0123
    noisy = worse(frames) * 0.9 + 0.0123
    deep = [folder_of(x, tmp_path / name, bits=16) for name, x in (("a", noisy), ("b", frames))]
    result = metrics.vmaf(*deep)
    assert result.about["pixel_format"] == "yuv420p10le" and result.about["dist"]["stored"] == "16 bits"
    stored = [torch.cat([read_image(path).rgb for path in sorted(folder.iterdir())]) for folder in deep]
    assert metrics.vmaf(*stored).frames == result.frames
    assert metrics.vmaf(iter(stored[0]), iter(stored[1])).frames == result.frames
    assert metrics.vmaf(list(stored[0]), (frame[None] for frame in stored[1])).frames == result.frames
    light = [
        folder_of(colour.srgb_to_linear(x), tmp_path / name, suffix="exr") for name, x in zip("cd", stored, strict=True)
    ]
    result = metrics.vmaf(*light)
    codes = [[colour.linear_to_srgb(read_image(p).rgb) for p in sorted(folder.iterdir())] for folder in light]
    assert result.frames == metrics.vmaf(*(torch.cat(x).clamp(0, 1) for x in codes)).frames
    assert "light" in result.about["ref"]["stored"]


def test_bits_of_rgb_may_be_chosen():
    frames = picture()
    noisy = worse(frames)
    assert metrics.vmaf(noisy, frames).about["pixel_format"] == "yuv420p"
    arriving = metrics.vmaf(iter(noisy), iter(frames))
    assert arriving.about["pixel_format"] == "yuv420p10le"
    assert metrics.vmaf(noisy, frames, bits=10).frames == arriving.frames
    assert metrics.vmaf(iter(noisy), iter(frames), bits=8).frames == metrics.vmaf(noisy, frames).frames


def test_a_still_and_one_frame():
    frame = picture(n=1)
    assert metrics.vmaf(frame[0], frame[0]).frames == pytest.approx([STILL], abs=0.001)
    grey = frame.mean(1, keepdim=True)
    assert metrics.vmaf(grey, grey.repeat(1, 3, 1, 1)).frames == pytest.approx([STILL], abs=0.001)


@pytest.mark.parametrize(("height", "width"), [(18, 18), (19, 21), (37, 40), (40, 37)])
def test_odd_sizes(tmp_path, height, width):
    frames = picture(height=max(height, 24), width=max(width, 24))[..., :height, :width]
    noisy = worse(frames)
    result = metrics.vmaf(noisy, frames)
    assert result.about["size"] == [width, height] and result.mean < 97
    folders = [folder_of(x, tmp_path / name) for name, x in (("a", noisy), ("b", frames))]
    assert metrics.vmaf(*folders).frames == result.frames
    rng = np.random.default_rng(0)  # raw, with chroma rounded up
    size = width * height + 2 * -(-width // 2) * -(-height // 2)
    (tmp_path / "odd.yuv").write_bytes(rng.integers(16, 236, 2 * size, dtype=np.uint8).tobytes())
    raw = metrics.vmaf(tmp_path / "odd.yuv", tmp_path / "odd.yuv", size=(width, height), pixel_format="yuv420p")
    assert raw.features["psnr_y"] == (60.0, 60.0) and raw.frames[1] > 99


# --- video: colour, rotation, damage ---------------------------------------------------------------------


def test_matrices_and_ranges_meet(tmp_path):
    frames = picture(height=96, width=128)
    a = encoded(frames, tmp_path / "709.mp4")
    b = encoded(frames, tmp_path / "601.mp4", matrix="bt601")
    c = encoded(frames, tmp_path / "full.mp4", full=True)
    same = metrics.vmaf(a, a)
    assert same.features["psnr_y"] == (60.0,) * 3 and same.about["dist"]["converted"] == "no"
    both = metrics.vmaf(b, b)
    assert both.about["matrix"] == "bt601" and both.about["dist"]["converted"] == "no"  # stored alike: left alone
    for video, how in ((b, "bt601 to bt709"), (c, "yuvj420p to yuv420p, full to limited range")):
        result = metrics.vmaf(video, a)
        assert result.about["dist"]["converted"] == how and result.about["ref"]["converted"] == "no"
        assert result.about["matrix"] == "bt709"
        assert min(result.features["psnr_y"]) > 50
        for name, path in (("x", video), ("y", a)):
            run_ffmpeg("-i", path, "-f", "rawvideo", tmp_path / f"{name}.yuv")
        as_stored = metrics.vmaf(tmp_path / "x.yuv", tmp_path / "y.yuv", size=(128, 96), pixel_format="yuv420p")
        assert max(as_stored.features["psnr_y"]) < 35  # what it is worth
    assert metrics.vmaf(b, a, matrix="bt601").about["ref"]["converted"] == "bt709 to bt601"
    assert min(metrics.vmaf(c, c).features["psnr_y"]) == 60 and metrics.vmaf(c, c).about["range"] == "limited"


def test_video_beside_pictures(tmp_path):
    frames = picture(height=96, width=128)
    pictures = folder_of(frames, tmp_path / "pictures")
    for matrix in ("bt709", "bt601"):
        video = encoded(frames, tmp_path / f"{matrix}.mp4", matrix=matrix)
        for pair in ((video, pictures), (frames, video), (video, iter(frames))):
            assert min(metrics.vmaf(*pair).features["psnr_y"]) > 49  # rounding alone
    rgb = tmp_path / "rgb.mkv"
    run_ffmpeg("-i", pictures / "f%03d.png", "-c:v", "libx264rgb", "-qp", "0", rgb)
    result = metrics.vmaf(rgb, pictures)
    assert result.features["psnr_y"] == (60.0,) * 3 and "RGB" in result.about["dist"]["stored"]


def test_a_video_that_does_not_state_its_matrix(tmp_path):
    frames = picture(height=96, width=128)
    tagged = encoded(frames, tmp_path / "601.mp4", matrix="bt601")
    bare = tmp_path / "bare.mp4"
    strip = "h264_metadata=matrix_coefficients=2:colour_primaries=2:transfer_characteristics=2"
    run_ffmpeg("-i", tagged, "-c", "copy", "-bsf:v", strip, bare)
    result = metrics.vmaf(bare, tagged)  # as the other
    assert result.about["matrix"] == "bt601" and result.features["psnr_y"] == (60.0,) * 3
    assert "not stated" in result.about["dist"]["stored"]
    result = metrics.vmaf(bare, frames)  # as our reader
    assert result.about["dist"]["converted"] == "bt601 to bt709" and min(result.features["psnr_y"]) > 49
    assert metrics.vmaf(bare, bare).about["matrix"] == "bt709"  # no more than a name: nothing is converted


def test_wide_gamut_is_not_mixed(tmp_path):
    frames = picture(height=96, width=128)
    wide = encoded(frames, tmp_path / "2020.mp4", matrix="bt2020")
    result = metrics.vmaf(wide, wide)
    assert result.about["matrix"] == "bt2020" and result.about["dist"]["converted"] == "no"
    for other in (encoded(frames, tmp_path / "709.mp4"), frames):
        with pytest.raises(FrameError, match=r"2020.mp4: expected .*bt709, bt601, got bt2020"):
            metrics.vmaf(other, wide)


def test_rotated_video(tmp_path):
    frames = picture(height=64, width=96)
    plain = encoded(frames, tmp_path / "plain.mp4")
    turned = tmp_path / "turned.mp4"
    run_ffmpeg("-display_rotation", "90", "-i", plain, "-c", "copy", turned)
    upright = torch.cat([frame.rgb for _, frame in open_clip(turned).read()])
    assert upright.shape[-2:] == (96, 64)
    result = metrics.vmaf(turned, upright)
    assert result.about["size"] == [64, 96] and min(result.features["psnr_y"]) > 45


def test_damaged_videos(tmp_path):
    frames = picture(height=96, width=128, n=12)
    whole = encoded(frames, tmp_path / "whole.mp4", "-g", "4", "-movflags", "+faststart")
    data = bytearray(whole.read_bytes())
    for place in range(len(data) // 2, len(data) // 2 + 400):
        data[place] ^= 0x5A
    (tmp_path / "damaged.mp4").write_bytes(data)
    with pytest.raises(FrameError, match=r"damaged.mp4 against"):
        metrics.vmaf(tmp_path / "damaged.mp4", whole)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[: len(data) // 2])
    with pytest.raises(FrameError, match=r"cut.mp4"):
        metrics.vmaf(tmp_path / "cut.mp4", whole)


def test_a_video_that_changes_its_size(tmp_path):
    for name, width in (("a", 128), ("b", 96)):
        encoded(picture(height=96, width=width, n=4), tmp_path / f"{name}.h264")
    joined = b"".join((tmp_path / f"{name}.h264").read_bytes() for name in "ab")
    (tmp_path / "joined.h264").write_bytes(joined)
    run_ffmpeg("-i", tmp_path / "joined.h264", "-c", "copy", tmp_path / "joined.mkv")
    steady = encoded(picture(height=96, width=128, n=len(open_clip(tmp_path / "joined.mkv"))), tmp_path / "steady.mkv")
    with pytest.raises(FrameError, match=r"joined.mkv"):
        metrics.vmaf(tmp_path / "joined.mkv", steady)


# --- what is refused -------------------------------------------------------------------------------------


def endless(frames):
    yield from itertools.cycle(frames)


@pytest.mark.parametrize(
    ("dist", "ref", "counts"),
    [
        (lambda f, d: f, lambda f, d: f[:2], r"3 \(dist\) and 2 \(ref\)"),
        (lambda f, d: folder_of(f[:2], d / "two"), lambda f, d: f, r"2 \(.*two\) and 3 \(ref\)"),
        (lambda f, d: iter(f), lambda f, d: iter(f[:2]), r"3 or more \(dist\) and 2 \(ref\)"),
        (lambda f, d: iter(f[:1]), lambda f, d: iter(f), r"2 or more \(ref\) and 1 \(dist\)"),
        (lambda f, d: endless(f), lambda f, d: f, r"4 or more \(dist\) and 3 \(ref\)"),
        (lambda f, d: iter(f[:2]), lambda f, d: f, r"3 or more \(ref\) and 2 \(dist\)"),
        (lambda f, d: endless(f), lambda f, d: encoded(f, d / "v.mp4"), r"4 or more \(dist\) and 3 \(.*v.mp4\)"),
        (lambda f, d: encoded(f, d / "v.mp4"), lambda f, d: iter(f[:2]), r"3 \(.*v.mp4\) and 2 \(ref\)"),
    ],
)
def test_unequal_lengths(tmp_path, dist, ref, counts):
    frames = picture()
    with pytest.raises(I2IError, match=f"equally many frames, got {counts}"):
        metrics.vmaf(dist(frames, tmp_path), ref(frames, tmp_path))


def test_raw_files(tmp_path):
    dist, how = src01(1, "src01s")
    short = tmp_path / "short.yuv"
    short.write_bytes(dist.read_bytes()[: 160 * 90 * 3 // 2 * 40])
    with pytest.raises(I2IError, match=r"48 \(.*hrc01.*\) and 40 \(.*short.yuv\)"):
        metrics.vmaf(dist, short, **how)
    with pytest.raises(I2IError, match="whole number of frames of 21600 bytes, 160×90 yuv420p, got 1036799 bytes"):
        short.write_bytes(dist.read_bytes()[:-1])
        metrics.vmaf(short, dist, **how)
    with pytest.raises(I2IError, match="got 0 bytes"):
        short.write_bytes(b"")
        metrics.vmaf(short, dist, **how)
    with pytest.raises(FrameError, match=r"none.yuv: expected a raw file"):
        metrics.vmaf(tmp_path / "none.yuv", dist, **how)
    for bad in ({"size": (160, 90)}, {"pixel_format": "yuv420p"}, how | {"pixel_format": "rgb24"}):
        with pytest.raises(I2IError, match=r"size=\(width, height\) and pixel_format"):
            metrics.vmaf(dist, dist, **bad)
    for size in ((160, 90, 3), (160.0, 90.0), (0, 90)):
        with pytest.raises(I2IError, match=r"\(width, height\) in pixels"):
            metrics.vmaf(dist, dist, size=size, pixel_format="yuv420p")
    with pytest.raises(I2IError, match=r"raw \.yuv file"):
        metrics.vmaf(picture(), picture(), size=(96, 54))


@POSIX
def test_odd_names_and_relative_paths(tmp_path, monkeypatch):
    (dist, how), (ref, _) = src01(1, "src01s"), src01(0, "src01s")
    expected = metrics.vmaf(dist, ref, **how)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", os.path.relpath(imageio_ffmpeg.get_ffmpeg_exe()))
    name = "-i a: b, [0:v] 'c' %03d;"
    shutil.copy(dist, f"{name}.yuv")
    source = ["-f", "rawvideo", "-pix_fmt", how["pixel_format"], "-s", "160x90", "-i", ref, "-c:v", "ffv1"]
    run_ffmpeg(*source, f"file:{name}.mkv")
    assert metrics.vmaf(f"{name}.yuv", f"{name}.mkv", **how).frames == expected.frames


def test_sizes(tmp_path):
    frames = picture()
    with pytest.raises(I2IError, match=r"one size in pixels, got 96×54 \(dist\) and 90×54 \(ref\)"):
        metrics.vmaf(frames, frames[..., :90])
    small = frames[..., :17, :40]
    with pytest.raises(I2IError, match=r"dist: expected sides of 18 pixels or more, for vmaf_v0.6.1, got 40×17"):
        metrics.vmaf(small, small)
    with pytest.raises(I2IError, match=r"sides of 180 pixels or more, the longer of 216, for .*, got 96×54"):
        metrics.vmaf(frames, frames, model="vmaf_v1.0.16_3d0h")
    path = folder_of(frames, tmp_path / "f")
    write_image(path / "f001.png", frames[:1, :, :50], bits=8)
    with pytest.raises(FrameError, match=r"f001.png: expected 96×54 pixels, as the first frame, got 96×50"):
        metrics.vmaf(path, frames)


def test_frames_that_are_none(tmp_path):
    frames = picture()
    for bad, message in (
        (frames.index_fill(0, torch.tensor([1]), math.nan), "dist, frame 2: expected values from 0 to 1, got nan"),
        (frames * 255, "frame 1: expected values from 0 to 1, got .* to 255"),
        ((frames * 255).byte(), "floating point"),
        (frames[:0], "dist: expected at least one frame, got none"),
        ([], "at least one frame"),
        (iter(()), "at least one frame"),
        (frames[:, :2], r"three channels, \(3, H, W\), got \(2, 54, 96\)"),
        ([frames], r"three channels, \(3, H, W\), got \(3, 3, 54, 96\)"),
        ([frames[0, 0]], r"a tensor \(3, H, W\), got \(54, 96\)"),
        ([frames[0].numpy()], "frame 1: expected a tensor"),
        (frames.numpy(), "frame 1: expected a tensor"),
        (42, "dist: expected a path, a clip, .*got int"),
        (tmp_path, "folder with none"),
        (tmp_path / "none.mp4", "none.mp4"),
    ):
        with pytest.raises(I2IError, match=message):
            metrics.vmaf(bad, frames)


def test_a_folder_of_two_depths(tmp_path):
    frames = picture()
    path = folder_of(frames, tmp_path / "f")
    write_image(path / "f002.png", frames[2:], bits=16)
    with pytest.raises(FrameError, match=r"f002.png: expected 8 bits, as the first picture, got 16 bits. Give bits=10"):
        metrics.vmaf(path, frames)
    assert metrics.vmaf(path, frames, bits=8).features["psnr_y"] == (60.0,) * 3
    assert min(metrics.vmaf(path, frames, bits=10).features["psnr_y"]) > 60


def test_options():
    frames = picture()
    for options, message in (
        ({"model": "vmaf_v0.6.1:n_subsample=5"}, "model: expected a name such as vmaf_v0.6.1"),
        ({"threads": 0}, "threads: expected 1 or more"),
        ({"matrix": "bt2020"}, "matrix: expected bt709 or bt601"),
        ({"bits": 12}, "bits: expected 8 or 10"),
    ):
        with pytest.raises(I2IError, match=message):
            metrics.vmaf(frames, frames, **options)


def test_unknown_models():
    frames = picture()
    with pytest.raises(
        I2IError, match=r"one that this libvmaf knows \(vmaf_v0.6.1, vmaf_v0.6.1neg, .*got 'vmaf_v9'"
    ) as error:
        metrics.vmaf(frames, frames, model="vmaf_v9")
    assert not isinstance(error.value, UnavailableError)
    assert {"vmaf_v0.6.1", "vmaf_v0.6.1neg", "vmaf_4k_v0.6.1"} <= set(known_models()) <= set(MODELS)


# --- when things go wrong on the way ---------------------------------------------------------------------


def test_a_frame_that_cannot_be_read(tmp_path):
    frames = picture(n=6)
    path = folder_of(frames, tmp_path / "f")
    (path / "f003.png").write_bytes((path / "f003.png").read_bytes()[:-300])
    with pytest.raises(FrameError, match=r"f003.png"):
        metrics.vmaf(frames, path)


class Mishap(Exception):
    pass


@pytest.mark.parametrize("mishap", [Mishap, KeyboardInterrupt])
def test_frames_that_fail_midway(mishap):
    frames = picture()

    def failing():
        yield from frames[:2]
        raise mishap

    with pytest.raises(mishap):
        metrics.vmaf(failing(), frames)


def stand_in(tmp_path, monkeypatch, script):
    """An ffmpeg that knows libvmaf by its word, and otherwise does as the script says."""
    path = tmp_path / "ffmpeg"
    version = '*-version*) echo "ffmpeg version 1.2"; exit;;'
    filters = '*filter=libvmaf*) echo "libvmaf AVOptions:"; exit;;'
    path.write_text(f'#!/bin/sh\ncase "$*" in {version} {filters} esac\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))


PROBE = 'case "$*" in *split\\[d\\]*) cat > /dev/null; exit;; esac'  # whether it knows the model: it does
NONE_KNOWN = r"model: expected one that this libvmaf knows \(\), got 'vmaf_v0.6.1'"


@POSIX
@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("cat > /dev/null", IntegrityError, "libvmaf: expected a log, got none"),
        ("cat > /dev/null; echo '{\"frames\": [' > vmaf.json", IntegrityError, "libvmaf's log: expected JSON"),
        ("cat > /dev/null; echo '[a @ 0x1] first' >&2; echo last >&2; exit 3", UnavailableError, NONE_KNOWN),
        ("exit 0", UnavailableError, NONE_KNOWN),  # it takes no frame, of none of the models
        (f"{PROBE}; exit 0", FrameError, "dist against ref: expected ffmpeg to score it, got no word"),
    ],
)
def test_an_ffmpeg_that_does_not_do_its_work(tmp_path, monkeypatch, script, error, message):
    stand_in(tmp_path, monkeypatch, script)
    frames = picture(height=600, width=900)  # more than a pipe holds
    with pytest.raises(error, match=message):
        metrics.vmaf(frames, frames)


@POSIX
def test_errors_quote_the_last_lines(tmp_path, monkeypatch):
    script = f'{PROBE}; echo "[a @ 0x1] first" >&2; echo last >&2; kill -9 $$'
    stand_in(tmp_path, monkeypatch, script)
    with pytest.raises(FrameError, match=r"dist against ref: expected ffmpeg .*signal 9, and a: first / last"):
        metrics.vmaf(picture(), picture())


@POSIX
def test_fewer_frames_than_were_given(tmp_path, monkeypatch):
    (tmp_path / "log").write_text(written([80.0, 90.0]))
    stand_in(tmp_path, monkeypatch, f"cat > /dev/null; cp {tmp_path / 'log'} vmaf.json")
    with pytest.raises(FrameError, match=r"dist and ref: expected 3 frames .*got 2"):
        metrics.vmaf(picture(), picture())
    with pytest.raises(FrameError, match=r"expected 3 frames .*got 2"):
        metrics.vmaf(iter(picture()), iter(picture()))


@POSIX
def test_ctrl_c_while_ffmpeg_works(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "exec sleep 60")
    (dist, how) = src01(1, "src01s")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background begin without it
    try:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            metrics.vmaf(dist, dist, **how)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)


@POSIX
def test_a_hung_ffmpeg_ends_with_the_frames(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "exec sleep 60")
    frames = picture(n=6)
    path = folder_of(frames, tmp_path / "f")
    (path / "f001.png").write_bytes(b"no picture")
    with pytest.raises(FrameError, match=r"f001.png"):
        metrics.vmaf(path, frames)


@POSIX
def test_no_libvmaf(tmp_path, monkeypatch):
    script = tmp_path / "ffmpeg"
    script.write_text('#!/bin/sh\necho "ffmpeg version 7.0.2-static"; echo "Unknown filter"\n')
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    frames = picture()
    with pytest.raises(
        UnavailableError, match=r"libvmaf: expected an ffmpeg that has it, got .*7.0.2-static.*pip install"
    ):
        metrics.vmaf(frames, frames)
    found = metrics.score(frames, frames, ["vmaf_v0.6.1", "psnr"])
    assert "pip install" in str(found["vmaf_v0.6.1"]) and found["vmaf_v0.6.1"].values == ()
    assert found["psnr"].mean == math.inf


def test_no_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    with pytest.raises(UnavailableError, match=r"nowhere: expected a program that runs.*IMAGEIO_FFMPEG_EXE"):
        metrics.vmaf(picture(), picture())
    with pytest.raises(UnavailableError, match=r"nowhere"):
        program.run([], what="x", expected="y")
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: (_ for _ in ()).throw(RuntimeError("none found")))
    with pytest.raises(UnavailableError, match="ffmpeg: expected a program that runs, got none found"):
        metrics.vmaf(picture(), picture())
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UnavailableError, match="imageio_ffmpeg"):
        program.program()


# --- as one of the metrics -------------------------------------------------------------------------------


def test_registered():
    frames = picture()
    noisy = worse(frames)
    for name in ("vmaf_v0.6.1", "vmaf_v0.6.1neg", "vmaf_4k_v0.6.1"):
        metric = metrics.metric(name)
        scores = metric(noisy, frames)
        assert scores.tolist() == list(metrics.vmaf(noisy, frames, model=name).frames) and scores.shape == (3,)
        assert metric.takes == "clip" and metric.score_range == (0, 100) and metric.higher_is_better
        assert metric.label.startswith("VMAF ") and "v0.6.1" in metric.label
    assert metrics.metric("vmaf_v1.0.16_3d0h").label == "VMAF v1.0.16 3H"
    function = metrics.metric("vmaf_v0.6.1").function
    assert function(noisy, frames, model="vmaf_v0.6.1") == pytest.approx(metrics.vmaf(noisy, frames).mean)


def test_of_whole_clips(tmp_path):
    frames = picture()
    dist, ref = (open_clip(folder_of(x, tmp_path / name)) for name, x in (("a", worse(frames)), ("b", frames)))
    values, about = metrics.metric("vmaf_v0.6.1").clips(dist, ref)
    result = metrics.vmaf(dist, ref)
    assert (
        values == result.frames
        and json.loads(json.dumps(about))["vmaf_v0.6.1"]["harmonic_mean"] == result.harmonic_mean
    )


def test_described_as_json():
    frames = picture()
    result = metrics.vmaf(worse(frames), frames)
    told = json.loads(json.dumps(result.describe()))
    assert told["mean"] == result.mean and told["frames"] == list(result.frames) and told["model"] == "vmaf_v0.6.1"
    assert set(told["features"]) >= {"psnr_y", "float_ssim", "integer_motion2", "integer_vif_scale0"}
    assert told["ffmpeg"] and told["about"]["libvmaf"]


def test_a_bar_on_request(tmp_path, capsys):
    frames = picture()
    metrics.vmaf(frames, frames)
    assert capsys.readouterr() == ("", "")
    metrics.vmaf(frames, frames, progress=True)
    assert "3/3" in capsys.readouterr().err
    video = encoded(frames, tmp_path / "v.mp4")
    metrics.vmaf(video, video, progress=True)
    assert "3/3" in capsys.readouterr().err
