"""A clip enlarged: what the ffmpeg program finds in the result, whatever the source is; killed and resumed; refused."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from i2ilib import FrameError, I2IError, cli, models
from i2ilib.frames import coding as coded
from i2ilib.frames import open_clip, read_image, video, write_image
from i2ilib.frames.joining import Part, Timing, contents, join
from i2ilib.models import SRUNet
from i2ilib.pipeline import upscale as module
from i2ilib.pipeline.audit import audit_video
from i2ilib.pipeline.enlarge import open_network
from i2ilib.pipeline.upscale import UpscaleOptions, beside, calibration, upscale

PROGRAM = imageio_ffmpeg.get_ffmpeg_exe()
X265 = ("-c:v", "libx265", "-x265-params", "log-level=error")


def ffmpeg(*arguments):
    program = [PROGRAM, "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, check=True).stdout


def about(path):
    """What the program says of a file."""
    return subprocess.run([PROGRAM, "-hide_banner", "-i", path], capture_output=True, text=True).stderr


def tagged(matrix="bt709", primaries=None, transfer=None, range_="tv"):
    """A filter that says what pixels mean, and leaves them."""
    primaries, transfer = primaries or matrix, transfer or matrix
    return f"setparams=colorspace={matrix}:color_primaries={primaries}:color_trc={transfer}:range={range_}"


def make(path, *options, size="72x48", rate=24, seconds=1.0, filters="null", layout="yuv420p", tags="bt709"):
    """A moving test picture; ``filters`` come before the pixel format, and options may hold further inputs."""
    width, height = size.split("x")
    chain = f"{filters},scale={width}:{height},format={layout}" + (f",{tagged(tags)}" if tags else "")
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s=72x48:r={rate}:d={seconds}", *options, "-vf", chain, path)
    return path


def pixels(path, layout="rgb24", channels=3):
    """Frames (N, H, W, C) as the program decodes them, none doubled and none dropped, turned as it shows them."""
    height, width = open_clip(path).index.size
    raw = ffmpeg("-i", path, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", layout, "-")
    kind = np.uint16 if "48" in layout or "16" in layout else np.uint8
    return np.frombuffer(raw, kind).reshape(-1, height, width, channels)


def stamps(path):
    """Seconds of each frame, as the program's showinfo tells them."""
    command = [PROGRAM, "-hide_banner", "-i", path, "-vf", "showinfo", "-fps_mode", "passthrough", "-f", "null", "-"]
    told = subprocess.run(command, capture_output=True, text=True).stderr
    base = re.search(r"config in time_base: (\d+)/(\d+)", told)
    unit = int(base[1]) / int(base[2])
    return [int(n) * unit for n in re.findall(r"n: *\d+ pts: *(-?\d+) ", told)]


def packets(path, stream):
    """MD5 of a stream's packets, by the program."""
    return ffmpeg("-i", path, "-map", f"0:{stream}", "-c", "copy", "-f", "md5", "-").decode().strip()


@pytest.fixture(scope="module")
def bicubic():
    with open_network(2) as network:
        yield network


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("w") / "small.safetensors"
    models.save(path, SRUNet(n_filters=4, layer_multiplier=0.5))
    return path


@pytest.fixture
def run(bicubic):
    """Enlarge twice with an audit; segments of seven frames, so that there are several."""

    def enlarged(source, out, *, network=bicubic, **how):
        settings = {name: how.pop(name) for name in list(how) if name in UpscaleOptions.__dataclass_fields__}
        options = UpscaleOptions(**{"segment": 7} | settings)
        return upscale(source, out, network, options, **{"audit": True, "progress": False} | how)

    return enlarged


def failures(report):
    return [str(check) for check in report.checks if not check.ok]


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """Two sounds, subtitles, chapters, tags, all colour tags; B frames and several key frames."""
    folder = tmp_path_factory.mktemp("rich")
    (folder / "s.srt").write_text("1\n00:00:00,100 --> 00:00:00,600\nhi\n\n2\n00:00:00,700 --> 00:00:00,900\nyou\n")
    (folder / "m.txt").write_text(
        ";FFMETADATA1\ntitle=A title\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=400\ntitle=One\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=400\nEND=1000\ntitle=Two\n"
    )
    more = ["-f", "lavfi", "-i", "sine=d=1", "-f", "lavfi", "-i", "sine=f=880:d=1"]
    more += ["-i", folder / "s.srt", "-i", folder / "m.txt", "-map", "0", "-map", "1", "-map", "2", "-map", "3"]
    more += ["-map_metadata", "4", "-metadata:s:a:1", "language=deu", "-c:a", "aac"]
    video_options = ["-c:v", "libx264", "-g", "9", "-bf", "3"]
    make(folder / "rich.mp4", *more, *video_options, "-c:s", "mov_text")
    make(folder / "rich.mkv", *more, *video_options, "-c:s", "srt")
    return folder


# --- what is kept --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_subtitles_chapters_and_tags(run, rich, tmp_path, suffix):
    source, out = rich / f"rich{suffix}", tmp_path / f"o{suffix}"
    report = run(source, out)
    assert report.ok and report.written == 24 and not (tmp_path / f"o{suffix}.parts").exists()
    for stream in ("a:0", "a:1"):
        assert packets(out, stream) == packets(source, stream)
    assert ffmpeg("-i", out, "-map", "0:s", "-f", "srt", "-") == ffmpeg("-i", source, "-map", "0:s", "-f", "srt", "-")
    told = about(out)
    assert re.search(r"title *: A title", told) and "(deu)" in told
    assert re.search(r"start 0\.4\d*, end 1\.0", told) and re.search(r"title *: Two", told)
    assert "yuv420p(tv, bt709, progressive)" in told and "144x96" in told


@pytest.mark.parametrize(("one", "other", "name"), [(".mp4", ".mkv", "subrip"), (".mkv", ".mp4", "mov_text")])
def test_subtitles_become_the_text_of_the_other_container(run, rich, tmp_path, one, other, name):
    source, out = tmp_path / f"a{one}", tmp_path / f"o{other}"
    ffmpeg("-i", rich / f"rich{one}", "-map", "0:v", "-map", "0:s", "-c", "copy", source)
    report = run(source, out)
    assert not failures(report) and any(f"(subtitle) became {name}" in note for note in report.notes)
    assert ffmpeg("-i", out, "-map", "0:s", "-f", "srt", "-") == ffmpeg("-i", source, "-map", "0:s", "-f", "srt", "-")


def test_attachments_and_covers(run, rich, tmp_path):
    (tmp_path / "font.ttf").write_bytes(bytes(range(256)))
    options = ["-map", "0:v", "-c", "copy", "-attach", tmp_path / "font.ttf", "-metadata:s:t", "mimetype=font/ttf"]
    ffmpeg("-i", rich / "rich.mkv", *options, tmp_path / "a.mkv")
    report = run(tmp_path / "a.mkv", tmp_path / "o.mkv")
    assert not failures(report) and "attachment 1" in [check.name for check in report.checks]
    ffmpeg("-dump_attachment:t:0", tmp_path / "again.ttf", "-i", tmp_path / "o.mkv", "-f", "null", "-")
    assert (tmp_path / "again.ttf").read_bytes() == bytes(range(256))
    assert [c.name for c in run(tmp_path / "a.mkv", tmp_path / "o.mp4").checks if not c.ok] == ["attachment 1"]

    Image.new("RGB", (20, 10), (200, 20, 20)).save(tmp_path / "cover.png")
    cover = ["-map", "0:v", "-map", "0:a", "-map", "1", "-c", "copy", "-disposition:v:1", "attached_pic"]
    ffmpeg("-i", rich / "rich.mp4", "-i", tmp_path / "cover.png", *cover, tmp_path / "c.mp4")
    report = run(tmp_path / "c.mp4", tmp_path / "oc.mp4")
    assert not failures(report) and "cover 1" in [check.name for check in report.checks]
    assert re.search(r"Video: png.*20x10.*attached pic", about(tmp_path / "oc.mp4"))


def test_sound_keeps_its_place(run, tmp_path):
    """A sound that begins late, and a picture that begins later."""
    more = ["-itsoffset", "0.25", "-f", "lavfi", "-i", "sine=d=0.5", "-map", "0", "-map", "1"]
    source = make(tmp_path / "a.mp4", *more, "-c:a", "aac", filters="setpts=PTS+0.5/TB")
    for suffix in (".mp4", ".mov", ".mkv"):
        out = tmp_path / f"o{suffix}"
        assert run(source, out).ok
        first = [contents(path)[0][0].times[0] - open_clip(path).index.stamps[0] * float(coded.coding(path).unit)
                 for path in (source, out)]  # fmt: skip
        assert first[0] == pytest.approx(first[1], abs=1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("times", ["(N+0.45*mod(N,3))/30", "if(lt(N,5),N,N+20)/25", "3+N/30", "N*N/90"])
def test_times_of_frames(run, tmp_path, times, suffix):
    filters = f"settb=1/90000,setpts=({times})/TB".replace(",N", r"\,N").replace(",5", r"\,5").replace(",3", r"\,3")
    timing = ["-fps_mode", "passthrough", "-enc_time_base", "1:90000"]
    source = make(tmp_path / "v.mp4", *timing, "-c:v", "libx264", "-bf", "3", filters=filters)
    out = tmp_path / f"o{suffix}"
    report = run(source, out)
    assert not failures(report)
    want, found = np.array(stamps(source)), np.array(stamps(out))
    exact = {".mkv": 0.5e-3}.get(suffix, 0) + 1e-9
    np.testing.assert_allclose(found - found[0], want - want[0], atol=exact)
    if suffix != ".mkv":  # which the program shifts by the frames that wait for others
        np.testing.assert_allclose(found, want, atol=1e-9)


@pytest.mark.parametrize(
    ("codec", "layout", "told"),
    [
        (
            "libx265",
            "yuv420p10le," + tagged("bt2020nc", "bt2020", "bt2020-10"),
            "yuv420p10le(tv, bt2020nc/bt2020/bt2020-10",
        ),
        ("libx264", "yuv420p10le," + tagged("bt709"), "yuv420p10le(tv, bt709"),
        ("libx264", "yuvj420p", "yuvj420p(pc"),
        ("libx264", "yuv444p," + tagged("smpte170m", range_="pc"), "yuvj444p(pc, smpte170m"),
        ("libx264", "yuv422p," + tagged("bt470bg"), "yuv422p(tv, bt470bg"),
        ("libx264", "yuv420p", "yuv420p"),
        ("libx264", "yuv420p," + tagged("fcc", "bt470m", "bt470m"), "yuv420p(tv, fcc/bt470m/bt470m"),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_format_and_tags(run, tmp_path, codec, layout, told, suffix):
    params = ("-x265-params", "log-level=error") if codec == "libx265" else ()
    source = make(tmp_path / f"a{suffix}", "-c:v", codec, *params, seconds=0.3, layout=layout, tags=None)
    report = run(source, tmp_path / f"o{suffix}")
    shown = [re.search(r"Video: [^,]*, (\w+(\([^)]*\))?)", about(path))[1] for path in (source, report.out)]
    shown = [text.replace(", progressive", "").replace("(progressive)", "") for text in shown]
    assert not failures(report) and shown[0] == shown[1] and shown[0].startswith(told)


@pytest.mark.parametrize(
    "layout", ["yuv420p10le," + tagged("bt709"), "yuvj420p", "yuv444p," + tagged("bt709"), "yuv420p"]
)
def test_the_picture_is_the_one_that_the_program_enlarges(run, tmp_path, layout):
    """Within what two conversions cost; a wrong matrix or range would be off by several codes."""
    lossless = ["-c:v", "ffv1"]
    source = make(tmp_path / "a.mkv", *lossless, seconds=0.2, filters="boxblur=6", layout=layout, tags=None)
    run(source, tmp_path / "o.mkv", codec="ffv1")
    small = torch.from_numpy(pixels(source).astype(np.float32)).permute(0, 3, 1, 2)
    want = F.interpolate(small, scale_factor=2.0, mode="bicubic").clamp(0, 255).permute(0, 2, 3, 1).numpy()
    apart = pixels(tmp_path / "o.mkv").astype(np.float32) - want
    assert abs(apart.mean()) < 0.6 and np.abs(apart).mean() < 1.2


@pytest.mark.parametrize("size", ["17x17", "71x49", "8x120", "33x18"])
def test_odd_sizes(run, tmp_path, size):
    source = make(tmp_path / "a.mkv", "-c:v", "libx264", size=size, layout="yuv444p", seconds=0.2)
    width, height = map(int, size.split("x"))
    report = run(source, tmp_path / "o.mp4")
    assert not failures(report) and report.size == (2 * height, 2 * width)
    assert pixels(tmp_path / "o.mp4").shape == (5, 2 * height, 2 * width, 3)


def test_an_odd_result_gets_a_row_and_a_column_where_chroma_is_halved(run, tmp_path):
    source = make(tmp_path / "a.mkv", "-c:v", "ffv1", size="17x17", seconds=0.2)
    with open_network(3) as network:
        report = run(source, tmp_path / "o.mp4", network=network)
    assert report.size == (52, 52) and any("51 x 51 became 52 x 52" in note for note in report.notes)
    assert not failures(report)


def test_a_network_on_17_pixels_and_one_frame(run, weights, tmp_path):
    source = make(tmp_path / "a.mp4", "-frames:v", "1", size="17x17", layout="yuv444p")
    with open_network(weights) as network:
        report = run(source, tmp_path / "o.mp4", network=network)
    assert report.ok and report.written == 1 and pixels(tmp_path / "o.mp4").shape == (1, 34, 34, 3)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_carried_out_and_its_matrix_dropped(run, tmp_path, degrees):
    plain = make(tmp_path / "p.mp4", "-c:v", "libx264", seconds=0.3, layout="yuv420p,setsar=4/3")
    ffmpeg("-display_rotation", degrees, "-i", plain, "-c", "copy", tmp_path / "r.mp4")
    assert "Display Matrix" in about(tmp_path / "r.mp4")
    report = run(tmp_path / "r.mp4", tmp_path / "o.mp4")
    assert not failures(report)
    told = about(tmp_path / "o.mp4")
    turned = degrees != 180
    assert "Display Matrix" not in told and ("96x144 [SAR 3:4" if turned else "144x96 [SAR 4:3") in told
    want, found = pixels(tmp_path / "r.mp4").astype(int), pixels(tmp_path / "o.mp4").astype(int)
    assert np.abs(found[:, ::2, ::2] - want).mean() < 12  # the other way up it is 60 and more
    assert np.abs(found[:, ::2, ::2] - want[:, ::-1, ::-1]).mean() > 30


def test_a_matrix_that_players_would_guess_otherwise_is_told(run, tmp_path):
    source = make(tmp_path / "a.mp4", "-frames:v", "2", size="640x64", tags=None)
    assert any("players guess BT.709" in note for note in run(source, tmp_path / "o.mp4").notes)
    source = make(tmp_path / "b.mp4", "-frames:v", "2", size="640x64")
    assert not run(source, tmp_path / "p.mp4").notes


def test_no_sound(run, tmp_path):
    report = run(make(tmp_path / "a.mp4"), tmp_path / "o.mp4")
    assert report.ok and "Audio" not in about(tmp_path / "o.mp4")


def test_codecs(run, tmp_path):
    source = make(tmp_path / "a.mp4", seconds=0.4)
    wanted = {"h264": ".mp4", "hevc": ".mp4", "vp9": ".webm", "av1": ".mkv", "ffv1": ".mkv"}
    for codec, suffix in wanted.items():
        out = tmp_path / f"{codec}{suffix}"
        report = run(source, out, codec=codec)
        assert not failures(report), codec
        assert f"Video: {codec}" in about(out) and len(pixels(out)) == 10
    assert "hvc1" in about(tmp_path / "hevc.mp4")


def test_a_smaller_crf_is_larger(run, tmp_path):
    source = make(tmp_path / "a.mp4")
    for crf in (10, 40):
        run(source, tmp_path / f"{crf}.mp4", crf=crf)
    assert (tmp_path / "10.mp4").stat().st_size > 2 * (tmp_path / "40.mp4").stat().st_size


def test_compared(run, tmp_path, weights):
    source = make(tmp_path / "a.mp4", "-crf", "1", seconds=0.3, layout="yuv444p")
    with open_network(weights) as network:
        for how in ("side", "split"):
            report = run(source, tmp_path / f"{how}.mp4", network=network, compare=how, crf=1)
            assert report.ok and report.compare == str(tmp_path / f"{how}_compare.mp4")
    names = ("side", "side_compare", "split_compare")
    network, side, split = (pixels(tmp_path / f"{name}.mp4").astype(int) for name in names)
    plain = side[:, :, :144]
    assert np.abs(side[:, :, 144:] - network).mean() < 2 < np.abs(plain - network).mean()
    assert np.abs(split[:, :, :68] - plain[:, :, :68]).mean() < 2
    assert np.abs(split[:, :, 76:] - network[:, :, 76:]).mean() < 2
    assert split[:, :, 72:74].min() > 200


def test_halves():
    small, large = torch.zeros(1, 3, 4, 6), torch.full((1, 3, 8, 12), 0.5)
    assert beside(small, large, "side").shape == (1, 3, 8, 24)
    halves = beside(small, large, "split")
    assert float(halves[..., :6].max()) == 0 and float(halves[..., 6:8].min()) == 1 and (halves[..., 8:] == 0.5).all()


# --- interlaced, HDR, transparent -----------------------------------------------------------------------


@pytest.fixture
def woven(tmp_path):
    """25 frames of two fields each."""
    options = ["-flags", "+ildct+ilme", "-c:v", "libx264", "-bf", "0", "-crf", "4"]
    return make(tmp_path / "i.mp4", *options, rate=50, layout="yuv420p,interlace")


def test_interlaced_is_refused_or_deinterlaced_as_the_program_does(run, woven, tmp_path):
    with pytest.raises(FrameError, match="--deinterlace"):
        run(woven, tmp_path / "o.mp4")
    report = run(woven, tmp_path / "o.mkv", deinterlace=True, codec="ffv1")
    assert not failures(report) and report.written == 25
    ffmpeg("-i", woven, "-vf", "bwdif=mode=send_frame", "-c:v", "ffv1", tmp_path / "want.mkv")
    want = pixels(tmp_path / "want.mkv").astype(int)
    small = np.asarray(pixels(tmp_path / "o.mkv").astype(int))
    assert len(want) == 25 and np.abs(small[:, ::2, ::2] - want).mean() < 12


def test_deinterlaced_frames_are_the_programs_from_any_place_on(woven, tmp_path):
    ffmpeg("-i", woven, "-vf", "bwdif=mode=send_frame", "-c:v", "ffv1", tmp_path / "want.mkv")
    want = [frame.rgb for _, frame in open_clip(tmp_path / "want.mkv").read()]
    index = video.scan(woven)
    for places in (range(25), range(9, 25), range(24, 25), range(3, 7)):
        found = list(video.read(woven, index, places, deinterlace=True))
        assert [place for place, _ in found] == list(places)
        for place, frame in found:
            if place:  # releases of FFmpeg differ in the first frame, which has none before it
                torch.testing.assert_close(frame.rgb, want[place], atol=1e-6, rtol=0)
            assert video.INTERLACED not in frame.notes
    assert list(video.read(woven, index, [], deinterlace=True)) == []


def test_video_that_becomes_interlaced_is_refused_where_it_does(run, woven, tmp_path):
    plain = make(tmp_path / "p.mp4", "-c:v", "libx264", "-bf", "0", "-crf", "4", rate=25)
    (tmp_path / "list.txt").write_text("file p.ts\nfile i.ts\n")
    for path in (plain, woven):
        ffmpeg("-i", path, "-c", "copy", path.with_suffix(".ts"))
    ffmpeg("-f", "concat", "-i", tmp_path / "list.txt", "-c", "copy", tmp_path / "both.mkv")
    with pytest.raises(FrameError, match="progressive"):
        run(tmp_path / "both.mkv", tmp_path / "o.mp4")


def test_hdr_is_refused_or_passed_in_its_own_space(run, tmp_path):
    for name, told in {"smpte2084": "PQ", "arib-std-b67": "HLG"}.items():
        layout = "yuv420p10le," + tagged("bt2020nc", "bt2020", name)
        source = make(tmp_path / f"{name}.mp4", *X265, seconds=0.3, layout=layout, tags=None)
        with pytest.raises(FrameError, match=f"{told}.*--own-space"):
            run(source, tmp_path / "o.mp4")
        report = run(source, tmp_path / f"{name}_o.mp4", own_space=True)
        assert not failures(report) and f"yuv420p10le(tv, bt2020nc/bt2020/{name}" in about(tmp_path / f"{name}_o.mp4")


def test_the_audit_tells_metadata_that_is_lost(run, tmp_path):
    mastering = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
    params = ["-c:v", "libx265", "-x265-params", f"log-level=error:hdr10=1:{mastering}"]
    layout = "yuv420p10le," + tagged("bt2020nc", "bt2020", "smpte2084")
    source = make(tmp_path / "a.mp4", *params, seconds=0.2, layout=layout, tags=None)
    report = run(source, tmp_path / "o.mp4", own_space=True)
    assert [check.name for check in report.checks if not check.ok] == ["metadata of pictures"] and not report.ok


def test_transparent_video_is_refused(run, tmp_path):
    source = make(tmp_path / "a.mkv", "-c:v", "ffv1", seconds=0.2, layout="yuva420p")
    with pytest.raises(FrameError, match="transparency"):
        run(source, tmp_path / "o.mp4")


def test_rgb_becomes_video_and_the_audit_says_so(run, tmp_path):
    source = make(tmp_path / "a.mkv", "-c:v", "ffv1", seconds=0.2, layout="gbrp", tags=None)
    report = run(source, tmp_path / "o.mp4")
    assert any("RGB is coded as yuv420p, BT.709" in note for note in report.notes)
    assert "yuv420p(tv, bt709" in about(tmp_path / "o.mp4") and not report.ok


# --- damage ----------------------------------------------------------------------------------------------


def test_truncated(run, rich, tmp_path):
    data = (rich / "rich.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 3 // 5])
    report = run(tmp_path / "cut.mkv", tmp_path / "o.mkv")
    assert 0 < report.written < 24 and len(report.failed) == 24 - report.written and not report.ok
    assert "frame_000024" in report.failed
    assert next(check.name for check in report.checks if not check.ok) == "frames"
    assert len(pixels(tmp_path / "o.mkv")) == report.written
    want = pixels(rich / "rich.mkv").astype(int)[: report.written]
    assert np.abs(pixels(tmp_path / "o.mkv").astype(int)[:, ::2, ::2] - want).mean() < 12


def test_a_segment_without_a_frame_that_can_be_read(run, tmp_path, monkeypatch):
    source = make(tmp_path / "a.mp4")
    read = video.read

    def damaged(*arguments, **more):
        for place, frame in read(*arguments, **more):
            yield place, FrameError("x", got="damaged") if 7 <= place < 15 else frame

    monkeypatch.setattr(module.video, "read", damaged)
    report = run(source, tmp_path / "o.mp4")
    assert report.written == 16 and sorted(report.failed) == [f"frame_{i:06d}" for i in range(8, 16)]
    found = stamps(tmp_path / "o.mp4")
    assert found == pytest.approx([i / 24 for i in range(24) if not 7 <= i < 15], abs=1e-9)


def test_no_frame_at_all(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module.video, "read", lambda _p, _i, places, **_: ((p, FrameError("x")) for p in places))
    with pytest.raises(FrameError, match="can be read"):
        run(make(tmp_path / "a.mp4"), tmp_path / "o.mp4")
    assert not (tmp_path / "o.mp4").exists()


def test_frames_of_another_size_are_left_out(run, tmp_path):
    for name, size in {"a": "72x48", "b": "96x64"}.items():
        make(tmp_path / f"{name}.ts", "-c:v", "libx264", "-bf", "0", size=size, seconds=0.25)
    (tmp_path / "list.txt").write_text("file a.ts\nfile b.ts\n")
    ffmpeg("-f", "concat", "-i", tmp_path / "list.txt", "-c", "copy", tmp_path / "both.mkv")
    report = run(tmp_path / "both.mkv", tmp_path / "o.mkv")
    assert report.written == 6 and len(report.failed) == 6
    assert "48 x 72 pixels, as the first" in report.failed["frame_000007"]


# --- interrupted ---------------------------------------------------------------------------------------


def frames_of(path):
    return ffmpeg("-i", path, "-map", "0:v", "-fps_mode", "passthrough", "-f", "framemd5", "-")


def test_killed_and_resumed(tmp_path, weights):
    source = make(tmp_path / "a.mp4", "-c:v", "libx264", "-bf", "3", seconds=3)
    command = [sys.executable, "-m", "i2ilib", "upscale", source, tmp_path / "o.mp4", "--model", weights]
    command += ["--segment", "6", "--compare", "split"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    segments, kills = tmp_path / "o.mp4.parts/segments", 0
    for least in (1, 4):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(segments.glob("*.json"))) < least:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2 and not (tmp_path / "o.mp4").exists()
    done = subprocess.run([*command, "--json", "--audit"], env=environment, capture_output=True, check=True)
    told = json.loads(done.stdout)
    assert told["ok"] and told["kept"] >= 18 and told["kept"] + told["written"] == 72
    with open_network(weights) as network:
        options = UpscaleOptions(segment=6, compare="split")
        upscale(source, tmp_path / "undisturbed.mp4", network, options, progress=False)
    for name in ("{}.mp4", "{}_compare.mp4"):
        assert frames_of(tmp_path / name.format("o")) == frames_of(tmp_path / name.format("undisturbed"))


@pytest.fixture
def interrupted(run, monkeypatch):
    """A run that is interrupted behind so many frames, in the middle of a segment."""

    def begun(count, *arguments, **options):
        put, done = coded.Encoder.put, []

        def failing(self, rgb):
            done.append(1)
            if len(done) > count:
                raise KeyboardInterrupt
            put(self, rgb)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(coded.Encoder, "put", failing)
            run(*arguments, **options)

    return begun


def test_interrupted_goes_on_behind_the_last_whole_segment(run, interrupted, rich, tmp_path):
    interrupted(17, rich / "rich.mp4", tmp_path / "o.mp4")
    assert not (tmp_path / "o.mp4").exists()
    assert not list((tmp_path / "o.mp4.parts").rglob(".*.part*"))  # the third segment left nothing
    report = run(rich / "rich.mp4", tmp_path / "o.mp4")
    assert (report.kept, report.written) == (14, 10) and report.ok
    run(rich / "rich.mp4", tmp_path / "undisturbed.mp4")
    assert frames_of(tmp_path / "o.mp4") == frames_of(tmp_path / "undisturbed.mp4")


def test_what_lies_in_the_folder_of_parts_is_left_alone(run, rich, tmp_path):
    mine = tmp_path / "o.mp4.parts/mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    run(rich / "rich.mp4", tmp_path / "o.mp4")
    assert mine.read_text() == "mine" and [*mine.parent.iterdir()] == [mine]
    before = (tmp_path / "o.mp4").read_bytes()
    with pytest.raises(I2IError, match="a file that is there"):  # a folder of parts alone begins nothing anew
        run(rich / "rich.mp4", tmp_path / "o.mp4", audit=False)
    assert (tmp_path / "o.mp4").read_bytes() == before


def test_deinterlaced_and_interrupted(run, interrupted, woven, tmp_path):
    interrupted(10, woven, tmp_path / "o.mp4", deinterlace=True)
    assert run(woven, tmp_path / "o.mp4", deinterlace=True).kept == 7
    run(woven, tmp_path / "undisturbed.mp4", deinterlace=True)
    assert frames_of(tmp_path / "o.mp4") == frames_of(tmp_path / "undisturbed.mp4")


def test_a_segment_that_is_gone_or_damaged_is_made_again(run, rich, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "join", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            run(rich / "rich.mp4", tmp_path / "o.mp4")
    segments = tmp_path / "o.mp4.parts/segments"
    (segments / "000001.nut").unlink()
    (segments / "000002.nut").write_bytes(b"damaged")
    report = run(rich / "rich.mp4", tmp_path / "o.mp4")
    assert (report.kept, report.written) == (10, 14) and report.ok
    run(rich / "rich.mp4", tmp_path / "undisturbed.mp4")
    assert frames_of(tmp_path / "o.mp4") == frames_of(tmp_path / "undisturbed.mp4")


def test_another_job_is_refused_or_begun_anew(run, interrupted, rich, tmp_path):
    interrupted(10, rich / "rich.mp4", tmp_path / "o.mp4")
    for other in ({"crf": 30}, {"codec": "hevc"}, {"segment": 8}, {"compare": "side"}):
        with pytest.raises(I2IError, match="another job"):
            run(rich / "rich.mp4", tmp_path / "o.mp4", **other)
    with open_network(3) as network, pytest.raises(I2IError, match="another job"):
        run(rich / "rich.mp4", tmp_path / "o.mp4", network=network)
    report = run(rich / "rich.mp4", tmp_path / "o.mp4", crf=30, overwrite=True)
    assert report.kept == 0 and report.ok


def test_a_result_that_is_there(run, rich, tmp_path):
    run(rich / "rich.mp4", tmp_path / "o.mp4", audit=False)
    before = (tmp_path / "o.mp4").stat().st_mtime_ns
    with pytest.raises(I2IError, match="a file that is there"):
        run(rich / "rich.mp4", tmp_path / "o.mp4", audit=False)
    report = run(rich / "rich.mp4", tmp_path / "o.mp4")
    assert report.ok and report.written == 0 and len(report.checks) > 10
    assert (tmp_path / "o.mp4").stat().st_mtime_ns == before
    run(rich / "rich.mp4", tmp_path / "o.mp4", overwrite=True)
    assert (tmp_path / "o.mp4").stat().st_mtime_ns > before


def test_a_file_where_the_comparison_should_be(run, rich, tmp_path):
    (tmp_path / "o_compare.mp4").write_bytes(b"mine")
    with pytest.raises(I2IError, match=r"o_compare.*a file that is there"):
        run(rich / "rich.mp4", tmp_path / "o.mp4", compare="side")
    assert (tmp_path / "o_compare.mp4").read_bytes() == b"mine"


# --- bounded -------------------------------------------------------------------------------------------


def test_no_stage_is_far_ahead_of_the_next(run, tmp_path, monkeypatch):
    source = make(tmp_path / "a.mp4", seconds=4)
    read, put, state = video.read, coded.Encoder.put, {"read": 0, "put": 0, "most": 0}

    def counted(*arguments, **more):
        for item in read(*arguments, **more):
            state["read"] += 1
            state["most"] = max(state["most"], state["read"] - state["put"])
            yield item

    def slow(self, rgb):
        time.sleep(0.003)  # longer than all before it
        state["put"] += 1
        put(self, rgb)

    monkeypatch.setattr(module.video, "read", counted)
    monkeypatch.setattr(coded.Encoder, "put", slow)
    report = run(source, tmp_path / "o.mp4", segment=96)
    assert report.written == state["put"] == 96
    # both queues full; in the making: one read, one or two in the network, one coded
    assert 3 <= state["most"] <= module._DECODED + module._ENLARGED + 6


# --- the audit can fail -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("frames", ("-vf", "select=not(eq(n\\,3))", "-fps_mode", "passthrough", "-c:a", "copy")),
        ("times of frames", ("-vf", "setpts=PTS*1.5", "-c:a", "copy")),
        ("duration", ("-vf", "setpts=PTS*1.5", "-c:a", "copy")),
        ("size", ("-vf", "scale=146:96", "-c:a", "copy")),
        ("bits", ("-pix_fmt", "yuv420p10le", "-c:a", "copy")),
        ("pixel format", ("-pix_fmt", "yuv444p", "-c:a", "copy")),
        ("range", ("-vf", "scale=out_range=pc", "-c:a", "copy")),
        ("matrix", ("-vf", "setparams=colorspace=smpte170m", "-c:a", "copy")),
        ("primaries", ("-vf", "setparams=color_primaries=bt470bg", "-c:a", "copy")),
        ("transfer", ("-vf", "setparams=color_trc=smpte170m", "-c:a", "copy")),
        ("aspect of a pixel", ("-vf", "setsar=4/3", "-c:a", "copy")),
        ("audio 1", ("-c:a", "aac", "-b:a", "32k")),
        ("audio 2", ("-c:a", "copy", "-map", "-0:a:1")),
        ("audio 2", ("-c:a", "copy", "-metadata:s:a:1", "language=fra")),
        ("subtitle 1", ("-c:a", "copy", "-sn")),
        ("chapters", ("-c:a", "copy", "-map_chapters", "-1")),
        ("tags", ("-c:a", "copy", "-metadata", "title=Another")),
    ],
)
def test_an_audit_finds_what_was_changed(run, rich, tmp_path, line, options):
    source, out = rich / "rich.mp4", tmp_path / "o.mp4"
    run(source, out, audit=False)
    maps = ["-map", "0:v", "-map", "0:a", "-map", "0:s?", "-c:s", "copy"]
    ffmpeg("-i", out, *maps, *options, tmp_path / "x.mp4")
    checks = audit_video(source, tmp_path / "x.mp4", (96, 144))
    assert line in [check.name for check in checks if not check.ok]


def test_an_audit_finds_a_display_matrix_fields_and_a_shift_of_sound(run, rich, woven, tmp_path):
    source, out = rich / "rich.mp4", tmp_path / "o.mp4"
    run(source, out, audit=False)

    def failing(*options):
        ffmpeg(*options, "-c", "copy", tmp_path / "x.mp4")
        return [check.name for check in audit_video(source, tmp_path / "x.mp4", (96, 144)) if not check.ok]

    assert "rotation" in failing("-display_rotation", "90", "-i", out)
    late = ["-i", out, "-itsoffset", "0.1", "-i", out, "-map", "0:v", "-map", "1:a", "-map", "0:s"]
    assert {"audio 1", "audio 2"} <= set(failing(*late))
    run(woven, tmp_path / "d.mp4", deinterlace=True, audit=False)
    size = (96, 144)
    assert not [c for c in audit_video(woven, tmp_path / "d.mp4", size, deinterlaced=True) if not c.ok]
    again = ["-vf", "setfield=tff", "-flags", "+ildct+ilme", "-c:v", "libx264"]
    ffmpeg("-i", tmp_path / "d.mp4", *again, tmp_path / "w.mp4")
    failed = [c.name for c in audit_video(woven, tmp_path / "w.mp4", size, deinterlaced=True) if not c.ok]
    assert "interlacing" in failed


# --- pictures --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "in"
    path.mkdir()
    for i in range(3):
        write_image(path / f"a.{i}.png", torch.rand(1, 3, 9 + i, 13), bits=8 if i else 16)
    write_image(path / "b.tif", torch.rand(1, 4, 9, 13))
    write_image(path / "c.exr", torch.rand(1, 3, 9, 13) * 2)
    (path / "notes.txt").write_text("x")
    return path


def test_a_folder_of_pictures(run, folder, tmp_path, bicubic):
    report = run(folder, tmp_path / "out")
    assert report.ok and report.written == 5 and not failures(report)
    assert "passed over, as no picture: notes.txt" in report.notes
    assert "brighter than white became white: c" in report.notes
    for i, depth in enumerate(("16 bits", "8 bits", "8 bits")):
        one, large = read_image(folder / f"a.{i}.png"), read_image(tmp_path / f"out/a.{i}.png")
        want = F.interpolate(one.rgb, scale_factor=2.0, mode="bicubic").clamp(0, 1)
        torch.testing.assert_close(large.rgb, want, atol=0.51 / (255 if i else 65535), rtol=0)
        assert large.depth == depth
    assert read_image(tmp_path / "out/b.tif").alpha.shape == (1, 1, 18, 26)
    assert read_image(tmp_path / "out/c.exr").colour == "linear"
    again = run(folder, tmp_path / "out")
    assert (again.written, again.kept) == (0, 5)
    os.utime(folder / "b.tif", (1, 1))
    again = run(folder, tmp_path / "out")
    assert (again.written, again.kept) == (1, 4)


def test_another_folder_is_refused(run, folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x.png").write_bytes(b"mine")
    with pytest.raises(I2IError, match="another job"):
        run(folder, tmp_path / "mine")
    with pytest.raises(I2IError, match="got the source"):
        run(folder, folder)
    with pytest.raises(I2IError, match="a name of a picture"):
        run(folder, tmp_path / "o.png")
    with pytest.raises(I2IError, match="compare"):
        run(folder, tmp_path / "out", compare="side")
    with pytest.raises(I2IError, match="crf"):
        run(folder, tmp_path / "out", crf=3)
    with pytest.raises(I2IError, match="a name of a video"):
        run(folder, tmp_path / "o.mp4")


def test_a_bad_picture_costs_only_itself(run, folder, tmp_path):
    (folder / "b.tif").write_bytes(b"no picture")
    report = run(folder, tmp_path / "out")
    assert report.written == 4 and list(report.failed) == ["b"] and not report.ok
    assert {check.name for check in report.checks if not check.ok} == {"pictures", "size, depth and alpha"}


def test_a_jpeg(run, tmp_path):
    Image.new("RGB", (10, 12), (200, 20, 20)).save(tmp_path / "x.jpg")
    assert run(tmp_path / "x.jpg", tmp_path / "out").ok
    with Image.open(tmp_path / "out/x.jpg") as large:
        assert large.size == (20, 24)


def test_a_video_becomes_pictures(run, tmp_path, woven):
    source = make(tmp_path / "v.mp4", *X265, seconds=0.25, layout="yuv420p10le")
    report = run(source, tmp_path / "out")
    assert report.ok and report.written == 6
    assert read_image(tmp_path / "out/frame_000003.png").depth == "16 bits"
    assert len((tmp_path / "out/timecodes.txt").read_text().splitlines()) == 7
    with pytest.raises(FrameError, match="--deinterlace"):
        run(woven, tmp_path / "i")
    assert run(woven, tmp_path / "i", deinterlace=True).written == 25


# --- options, and what they refuse ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"segment": 0}, {"batch": 0}, {"compare": "over"}, {"memory_gib": 0}, {"memory_gib": -1.0}]
)
def test_options_that_cannot_be(wrong):
    with pytest.raises(I2IError, match=next(iter(wrong))):
        UpscaleOptions(**wrong)


@pytest.mark.parametrize(
    ("out", "how", "word"),
    [
        ("o.mp4", {"codec": "h263"}, "auto or h264"),
        ("o.mp4", {"codec": "ffv1"}, "in .mp4"),
        ("o.webm", {"codec": "h264"}, "in .webm"),
        ("o.mp4", {"crf": 52}, "0 to 51"),
        ("o.mkv", {"codec": "ffv1", "crf": 3}, "lossless"),
    ],
)
def test_codecs_that_do_not_fit(run, rich, tmp_path, out, how, word):
    with pytest.raises(I2IError, match=word):
        run(rich / "rich.mp4", tmp_path / out, **how)


def test_ten_bits_need_a_codec_that_has_them(run, tmp_path):
    source = make(tmp_path / "a.mp4", *X265, seconds=0.2, layout="yuv420p10le")
    with pytest.raises(I2IError, match="10 bits"):
        run(source, tmp_path / "o.webm", codec="vp9")
    assert run(source, tmp_path / "o.webm").ok and "Video: av1" in about(tmp_path / "o.webm")


def test_a_matrix_that_is_not_computed(rich):
    how = dataclasses.replace(coded.coding(rich / "rich.mp4"), matrix=14)
    with pytest.raises(FrameError, match="number 14"):
        coded.target(how, (96, 144), ".mp4")
    with pytest.raises(I2IError, match="suffix"):
        coded.target(how, (96, 144), ".avi")


def test_the_source_is_not_written_over(run, rich, tmp_path):
    with pytest.raises(I2IError, match="the source"):
        run(rich / "rich.mp4", rich / "rich.mp4", overwrite=True)


def test_no_video(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"none")
    with pytest.raises(FrameError):
        coded.coding(tmp_path / "x.mp4")
    with pytest.raises(FrameError, match="the source"):
        join(tmp_path / "o.mp4", [], Timing((), 1, 1), None, tmp_path / "none.mp4")


def test_a_part_with_other_frames_than_it_should_have(rich, tmp_path):
    how = coded.coding(rich / "rich.mp4")
    aim = coded.target(how, (48, 72), ".mp4")
    with coded.encoding(tmp_path / "p.nut", aim) as encoder:
        for _ in range(3):
            encoder.put(torch.zeros(1, 3, 48, 72))
    assert encoder.count == 3
    with pytest.raises(FrameError, match="run again"):
        times = Timing((0, 1, 2, 3), how.unit, 1)
        join(tmp_path / "o.mp4", [Part(tmp_path / "p.nut", (0, 1, 2, 3), 2)], times, aim, rich / "rich.mp4")


def test_pieces_to_calibrate_on(folder, tmp_path):
    pieces = calibration(folder, frames=3, side=8)
    assert len(pieces) == 3 and all(piece.shape == (1, 3, 8, 8) for piece in pieces)
    assert calibration(folder, frames=1)[0].shape == (1, 3, 16, 16)
    assert all(float(piece.min()) >= -1 and float(piece.max()) <= 1 for piece in pieces)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.png").write_bytes(b"x")
    with pytest.raises(FrameError, match="calibrate"):
        calibration(tmp_path / "bad")


# --- the command -----------------------------------------------------------------------------------------


def test_the_command(rich, weights, tmp_path, capsys):
    command = ["upscale", str(rich / "rich.mp4"), str(tmp_path / "o.mp4"), "--model", str(weights), "--segment", "10"]
    assert cli.main([*command, "--audit", "--tile", "200"]) == 0
    told = capsys.readouterr()
    assert "24 written" in told.out and "pass  audio 2: aac" in told.out and "FAIL" not in told.out
    assert "24/24" in told.err and "frame/s" in told.err
    assert cli.main(command) == 2 and "a file that is there" in capsys.readouterr().err
    assert cli.main([*command, "--audit", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["size"] == [96, 144] and all(check["ok"] for check in found["checks"])


def test_the_command_fails_where_the_audit_does(rich, tmp_path, capsys):
    ffmpeg("-i", rich / "rich.mp4", "-vf", "scale=144:96", "-c:v", "libx264", "-c:a", "copy", "-sn", tmp_path / "o.mp4")
    command = ["upscale", str(rich / "rich.mp4"), str(tmp_path / "o.mp4"), "--scale", "2", "--audit"]
    assert cli.main(command) == 1 and "FAIL  subtitle 1" in capsys.readouterr().out


def test_int8_is_calibrated_on_the_clip_itself(weights, tmp_path, capsys):
    source = make(tmp_path / "a.mp4", seconds=0.2)
    out = Path(tmp_path / "o.mp4")
    assert cli.main(["upscale", str(source), str(out), "--model", str(weights), "--backend", "exact", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 5 and out.exists()
