"""Video against the ffmpeg program: timing, alpha, orientation, places, damage; and what the library writes."""

import gc
import os
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from i2ilib import FrameError, I2IError
from i2ilib.frames import open_clip, video, write_video

FIXED = settings(derandomize=True, deadline=None, max_examples=25)


def ffmpeg(*arguments):
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, check=True).stdout


def decoded(path, layout, channels, size):
    """Frames (N, H, W, C) in [0, 1] as the program gives them, none doubled and none dropped; its white is 255 << 8."""
    flags = ["-sws_flags", "accurate_rnd+full_chroma_int", "-fps_mode", "passthrough"]
    raw = ffmpeg("-i", path, *flags, "-f", "rawvideo", "-pix_fmt", layout, "-")
    if layout == "rgb24":
        return np.frombuffer(raw, np.uint8).reshape(-1, *size, channels) / 255
    return np.minimum(np.frombuffer(raw, np.uint16).reshape(-1, *size, channels) / 65280, 1)


def levels(path, *options, count=12, times=None):
    """A clip of flat greys, each 18 codes brighter than the one before."""
    source = f"color=black:s=64x48:r=30:d={count / 30},format=yuv420p,geq=lum='16+N*18':cb=128:cr=128"
    timing = ["-vf", f"settb=1/90000,setpts=({times})/TB"] if times else []
    ffmpeg("-f", "lavfi", "-i", source, *timing, "-fps_mode", "passthrough", *options, path)
    return path


def greys(clip):
    """The number of each frame by its grey, in playing order."""
    return [round((float(frame.rgb.mean()) * 255) / (18 * 255 / 219)) for _, frame in clip.read()]


X264 = ("-c:v", "libx264", "-crf", "4", "-enc_time_base", "1:90000")


# --- timing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize(
    "times",
    [
        "if(lt(N,5),N,N+20)/25",  # one long hold
        "(N+0.45*mod(N,3))/30",  # a phone
        "(6+(N-6)*0.3)/30",  # faster than nominal
        "N*N/30",
        "3+N/30",  # a late start
    ],
)
def test_every_frame_once_and_in_order_whatever_the_times(tmp_path, times, suffix):
    clip = open_clip(levels(tmp_path / f"v{suffix}", *X264, times=times.replace(",", r"\,")))
    assert clip.names == tuple(f"frame_{i:06d}" for i in range(1, 13))
    assert greys(clip) == list(range(12))


@pytest.mark.parametrize("base", ["1:30", "1:90000"])
def test_times_that_are_equal_or_go_back_cost_no_frame(tmp_path, base):
    path = levels(tmp_path / "v.mkv", "-c:v", "libx264", "-crf", "4", "-enc_time_base", base, times="6+(N-6)*0.3")
    assert greys(open_clip(path)) == list(range(12))


def test_times_are_told(tmp_path):
    clip = open_clip(levels(tmp_path / "v.mp4", *X264, times=r"3+if(lt(N\,5)\,N\,N+20)/25"))
    assert clip.times == pytest.approx([i / 25 if i < 5 else (i + 20) / 25 for i in range(12)], abs=1e-4)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=14), st.sampled_from([".mp4", ".mov", ".mkv"]))
@FIXED
def test_written_times_are_read(tmp_path_factory, gaps, suffix):
    """Milliseconds, which every container holds."""
    times = (np.cumsum([0, *gaps]) / 1000).tolist()
    path = tmp_path_factory.mktemp("t") / f"t{suffix}"
    write_video(path, (np.full((16, 32, 3), 17 * i, np.uint8) for i in range(len(times))), times=times, crf=4)
    clip = open_clip(path)
    assert clip.times == pytest.approx(times, abs=1e-6)
    assert [round(float(frame.rgb.mean()) * 15) for _, frame in clip.read()] == list(range(len(times)))


# --- places --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """72 frames with B frames and a key frame every twelve."""
    path = tmp_path_factory.mktemp("long") / "l.mp4"
    codec = ("-c:v", "libx264", "-g", "12", "-bf", "3", "-pix_fmt", "yuv420p")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=24:d=3", *codec, path)
    return path


def as_array(frame):
    return frame.rgb[0].permute(1, 2, 0).numpy()


@given(st.sets(st.integers(0, 71), max_size=8))
@FIXED
def test_any_frames_of_a_clip_are_the_same_as_in_a_row(long, places):
    clip, whole = open_clip(long), decoded(long, "rgb48le", 3, (48, 64))
    found = {name: as_array(frame) for name, frame in clip.read({clip.names[place] for place in places})}
    assert list(found) == [clip.names[place] for place in sorted(places)]
    for place in places:
        np.testing.assert_allclose(found[clip.names[place]], whole[place], atol=1e-6)


def test_the_last_frame_is_read_from_the_last_key_frame(long, monkeypatch):
    clip, starts, decode = open_clip(long), [], video.decoded_frames
    monkeypatch.setattr(video, "decoded_frames", lambda path, **more: starts.append(more) or decode(path, **more))
    assert len(list(clip.read({clip.names[71]}))) == 1
    assert starts[-1]["start"] == clip.index.stamps[60]


def test_a_part_that_was_cut_out_without_coding_it_again(long, tmp_path):
    ffmpeg("-ss", "0.9", "-i", long, "-c", "copy", tmp_path / "cut.mp4")  # an edit list hides the frames before
    whole = decoded(tmp_path / "cut.mp4", "rgb48le", 3, (48, 64))
    clip = open_clip(tmp_path / "cut.mp4")
    assert len(clip) == len(whole)
    np.testing.assert_allclose(np.stack([as_array(f) for _, f in clip.read()]), whole, atol=1e-6)


def test_the_end_that_an_edit_list_cuts_off(long, tmp_path):
    """As telephones trim: every sample stays in the file."""
    data = bytearray(long.read_bytes())
    at = data.index(b"elst") + 12  # version and flags, count, then the duration in the movie's units
    assert int.from_bytes(data[at : at + 4], "big") == 3000
    data[at : at + 4] = (1500).to_bytes(4, "big")
    (tmp_path / "t.mp4").write_bytes(data)
    clip = open_clip(tmp_path / "t.mp4")
    whole = decoded(tmp_path / "t.mp4", "rgb48le", 3, (48, 64))
    assert len(clip) == len(whole) < 72
    np.testing.assert_allclose(np.stack([as_array(f) for _, f in clip.read()]), whole, atol=1e-6)


def test_white_is_white(tmp_path):
    for layout, codec in (("gray", "ffv1"), ("gray10le", "ffv1"), ("gbrp10le", "ffv1"), ("gbrp", "utvideo")):
        raw = tmp_path / "white.rgb"
        raw.write_bytes(b"\xff" * (3 * 64 * 48))
        source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-i", raw)
        ffmpeg(*source, "-pix_fmt", layout, "-c:v", codec, tmp_path / "w.mkv")
        least = 1 - 3 / 1023 if layout == "gbrp10le" else 1  # ffmpeg makes 1020 of 255
        ((_, frame),) = open_clip(tmp_path / "w.mkv").read()
        assert frame.rgb.min() >= least - 1e-6, layout


@pytest.mark.parametrize("layout", ["yuv420p", "yuv422p10le", "yuv444p", "bgr0"])
def test_greys_are_those_of_the_standard(tmp_path, layout):
    """BT.601 and BT.709 agree on grey: (Y - 16) / 219 of limited range; RGB is what it is."""
    deep = layout.endswith("10le")
    codes = np.arange(256 if layout == "bgr0" else 220, dtype=np.uint16) + (0 if layout == "bgr0" else 16)
    if layout == "bgr0":
        planes = [np.repeat(np.tile(codes, (16, 1))[..., None], 4, 2)]
    else:
        across, down = {"yuv420p": (2, 2), "yuv422p10le": (2, 1), "yuv444p": (1, 1)}[layout]
        planes = [np.tile(codes, (16, 1)), *[np.full((16 // down, 220 // across), 128, np.uint16)] * 2]
    raw = b"".join((plane * 4 if deep else plane.astype(np.uint8)).tobytes() for plane in planes)
    (tmp_path / "g.raw").write_bytes(raw)
    source = ("-f", "rawvideo", "-pix_fmt", layout, "-s", f"{len(codes)}x16", "-i", tmp_path / "g.raw")
    ffmpeg(*source, "-c:v", "ffv1", tmp_path / "g.mkv")
    ((_, frame),) = open_clip(tmp_path / "g.mkv").read()
    expected = codes / 255 if layout == "bgr0" else (codes - 16.0) / 219
    assert np.abs(frame.rgb[0, 0, 8].numpy() - expected).max() < 0.05 / 255


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("v.avi", ["mpeg4", "-bf", "2"]),
        ("v.avi", ["ffv1"]),
        ("v.mxf", ["mpeg2video", "-bf", "2"]),
        ("v.mov", ["prores_ks"]),
        ("v.mov", ["qtrle"]),
        ("v.mkv", ["ffv1", "-pix_fmt", "gray16le"]),
        ("v.mkv", ["ffv1", "-pix_fmt", "gbrp12le"]),
        ("v.avi", ["utvideo", "-pix_fmt", "gbrap"]),
        ("v.avi", ["rawvideo", "-pix_fmt", "pal8"]),
        ("v.avi", ["rawvideo", "-pix_fmt", "monow"]),
        ("v.webm", ["libvpx-vp9"]),
        ("v.mp4", ["libx265", "-x265-params", "log-level=none"]),
        ("v.m4v", ["libx264", "-g", "1000"]),
    ],
)
def test_usual_codecs_give_what_ffmpeg_gives(tmp_path, name, codec):
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=0.6", "-c:v", *codec, tmp_path / name)
    whole = decoded(tmp_path / name, "rgb24" if "pal8" in codec else "rgb48le", 3, (48, 64))
    clip = open_clip(tmp_path / name)
    assert len(clip) == len(whole) == 15 and clip.fps == 25
    # ffmpeg makes 0.996 of white where it only shifts 8 bits to 16
    np.testing.assert_allclose(np.stack([as_array(f) for _, f in clip.read()]), whole, atol=5e-3)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("b.mxf", ["libx264", "-bf", "2", "-g", "12", "-pix_fmt", "yuv420p"]),  # time stamps are those of decoding
        ("b.avi", ["libx264", "-bf", "1", "-g", "12", "-pix_fmt", "yuv420p"]),
        ("x.avi", ["libxvid", "-bf", "2", "-g", "12"]),  # two frames in a packet
        ("m.mov", ["qtrle", "-pix_fmt", "gray", "-g", "12"]),  # a palette in the first packet alone
        ("p.avi", ["rawvideo", "-pix_fmt", "pal8"]),
        ("r.mov", ["rpza"]),  # every packet says that it is a key frame
        ("o.mp4", ["libx265", "-x265-params", "keyint=12:log-level=none"]),  # open groups of pictures
    ],
)
def test_frames_from_the_middle_are_those_of_ffmpeg(tmp_path, name, codec):
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25:duration=2", "-c:v", *codec, tmp_path / name)
    whole = decoded(tmp_path / name, "rgb24" if {*codec} & {"pal8", "rpza"} else "rgb48le", 3, (64, 96))
    clip = open_clip(tmp_path / name)
    assert len(clip) == len(whole)
    for wanted in ({clip.names[-1]}, {clip.names[5], clip.names[30], clip.names[31]}, set(clip.names)):
        found = dict(clip.read(wanted))
        assert found.keys() == wanted
        for key, frame in found.items():
            np.testing.assert_allclose(as_array(frame), whole[clip.names.index(key)], atol=5e-3)


def test_gaps_that_avi_fills_are_no_frames(tmp_path):
    source = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25:duration=2"]
    ffmpeg(
        *source, "-vf", "select='not(between(n,5,14))'", "-fps_mode", "passthrough", "-c:v", "mjpeg", tmp_path / "v.avi"
    )
    ffmpeg(*source, "-c:v", "libx264", "-pix_fmt", "yuv420p", tmp_path / "a.mp4")
    ffmpeg("-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "a.avi")
    for name, count in (("v.avi", 40), ("a.avi", 50)):
        found = [frame for _, frame in open_clip(tmp_path / name).read()]
        assert len(found) == count and not any(isinstance(frame, FrameError) for frame in found)


def test_side_data_that_is_not_known_does_no_harm(tmp_path):
    for i in range(3):
        image = Image.new("RGB", (64, 48), (50 * i, 0, 0))
        exif = image.getexif()
        exif[274] = 3
        image.save(tmp_path / f"e{i}.jpg", exif=exif)
    ffmpeg("-i", tmp_path / "e%d.jpg", "-c", "copy", tmp_path / "e.mov")
    assert len([frame.rgb for _, frame in open_clip(tmp_path / "e.mov").read()]) == 3


def test_frames_that_were_read_are_freed_at_once(long):
    """Not when the garbage collector comes by: a few dozen frames of film are gigabytes."""
    import av

    frames = open_clip(long).read()
    gc.collect()
    gc.disable()
    try:
        alive = [
            sum(type(one) is av.VideoFrame for one in gc.get_objects()) for i, _ in enumerate(frames) if i % 24 == 23
        ]
    finally:
        gc.enable()
    assert len(alive) == 3 and max(alive) < 24  # those that B frames and the decoder's threads wait for


def test_a_cover_picture_is_not_the_video(long, tmp_path):
    Image.new("RGB", (500, 500)).save(tmp_path / "cover.png")
    cover = ["-map", "1", "-map", "0", "-c", "copy", "-disposition:v:0", "attached_pic"]
    ffmpeg("-i", long, "-i", tmp_path / "cover.png", *cover, tmp_path / "c.mp4")
    assert len(open_clip(tmp_path / "c.mp4")) == 72


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "p.mp4")
    with pytest.raises(FrameError, match=r"p\.mp4: expected .*, got no file"):
        open_clip(tmp_path / "p.mp4")


# --- alpha, orientation, colour -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mov", ["prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le"]),
        ("a.webm", ["libvpx-vp9", "-pix_fmt", "yuva420p", "-lossless", "1"]),
        ("a.webm", ["libvpx", "-pix_fmt", "yuva420p", "-crf", "4", "-b:v", "4M", "-auto-alt-ref", "0"]),
        ("a.mov", ["qtrle"]),
        ("a.mkv", ["ffv1", "-pix_fmt", "yuva420p"]),
    ],
)
def test_alpha_of_a_video(tmp_path, name, codec):
    source = "color=red:s=64x48:r=24:d=0.25,format=rgba,geq=r='r(X,Y)':g=0:b=0:a='if(lt(X,32),0,if(lt(X,48),128,255))'"
    ffmpeg("-f", "lavfi", "-i", source, "-c:v", *codec, tmp_path / name)
    frames = [frame for _, frame in open_clip(tmp_path / name).read()]
    assert len(frames) == 6
    for frame in frames:
        found = frame.alpha[0, 0, 5, [4, 40, 60]].tolist()
        assert found == pytest.approx([0, 128 / 255, 1], abs=0.03 if "libvpx" in codec else 4e-3)


def test_an_opaque_video_has_no_alpha(long):
    assert next(iter(open_clip(long).read()))[1].alpha is None


@pytest.mark.parametrize("turn", ["rotation 90", "rotation 180", "rotation 270", "hflip", "vflip", "rotation 90 hflip"])
def test_upright_as_players_show_it(long, tmp_path, turn):
    turn = [f"-display_{word}" if word.isalpha() else word for word in turn.split()]
    ffmpeg(*turn, "-i", long, "-c", "copy", tmp_path / "t.mp4")
    clip = open_clip(tmp_path / "t.mp4")
    found = as_array(next(iter(clip.read()))[1])
    assert found.shape[:2] == clip.index.size
    whole = decoded(tmp_path / "t.mp4", "rgb48le", 3, found.shape[:2])
    np.testing.assert_allclose(found, whole[0], atol=0.03)  # it turns half-size chroma, and then enlarges it


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ("color_trc=smpte2084:color_primaries=bt2020", ["SMPTE2084", "BT2020"]),
        ("color_trc=arib-std-b67", ["ARIB_STD_B67"]),
        ("color_trc=bt709:color_primaries=bt709", []),
    ],
)
def test_colours_that_are_not_ours_are_said(tmp_path, tags, words):
    source = f"testsrc2=s=64x48:r=24:d=0.1,format=yuv420p,setparams={tags}"
    ffmpeg("-f", "lavfi", "-i", source, "-c:v", "libx264", tmp_path / "c.mp4")
    notes = next(iter(open_clip(tmp_path / "c.mp4").read()))[1].notes
    assert len(notes) == len(words) and all(word in note for word, note in zip(words, notes, strict=True))


def test_fields_are_said(tmp_path):
    codec = ["-c:v", "mpeg2video", "-flags", "+ilme+ildct"]
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=0.2", *codec, tmp_path / "i.mxf")
    assert "interlaced" in next(iter(open_clip(tmp_path / "i.mxf").read()))[1].notes[0]


# --- damage ---------------------------------------------------------------------------------------------


def noise(path, *codec):
    """Twelve frames that hardly compress."""
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=256x144:r=24:d=0.5,noise=alls=60:allf=t", "-c:v", *codec, path)
    return path


@pytest.mark.parametrize(
    ("suffix", "codec", "most"),
    [
        (".mov", ["prores_ks"], 1),
        (".mov", ["png"], 1),
        (".mp4", ["libx264", "-g", "4", "-bf", "2"], 6),
        (".mxf", ["mpeg2video", "-g", "4", "-bf", "2"], 6),
        (".avi", ["mpeg4", "-g", "4"], 6),
    ],
)
def test_damage_costs_a_frame_and_those_that_are_made_from_it(tmp_path, suffix, codec, most):
    path = noise(tmp_path / f"v{suffix}", *codec)
    whole = [as_array(frame) for _, frame in open_clip(path).read()]
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    found = dict(open_clip(path).read())
    bad = [name for name, frame in found.items() if isinstance(frame, FrameError)]
    assert len(found) == 12 and 1 <= len(bad) <= most and all(name in str(found[name]) for name in bad)
    for frame, expected in zip(found.values(), whole, strict=True):
        assert isinstance(frame, FrameError) or np.array_equal(as_array(frame), expected)


@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "ffv1"), (".avi", "mpeg4"), (".mkv", "libx264")])
def test_frames_that_a_cut_file_promises_are_missed(tmp_path, suffix, codec):
    path = noise(tmp_path / f"v{suffix}", codec)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    clip = open_clip(path)
    found = list(clip.read())
    bad = [isinstance(frame, FrameError) for _, frame in found]
    assert len(clip) == len(found) == 12 and 3 < sum(bad) < 10 and bad == sorted(bad)


@given(st.integers(0, 2**31))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_a_damaged_video_is_read_or_refused(long, tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(long.read_bytes())
    if rng.random() < 0.3:
        data = data[: rng.integers(0, len(data))]
    for at in rng.integers(0, len(data), rng.integers(1, 30)) if data else ():
        data[at] = rng.integers(0, 256)
    path = tmp_path_factory.mktemp("d") / "d.mp4"
    path.write_bytes(data)
    try:
        clip = open_clip(path)
    except FrameError as refused:
        assert "d.mp4" in str(refused)
        return
    found = dict(clip.read())
    assert tuple(found) == clip.names
    assert all("d.mp4" in str(f) if isinstance(f, FrameError) else f.rgb.shape[:2] == (1, 3) for f in found.values())


def test_sound_alone_is_refused(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", tmp_path / "s.mp4")
    with pytest.raises(FrameError, match=r"s\.mp4: expected a video"):
        open_clip(tmp_path / "s.mp4")


def test_layers_are_not_of_videos(long):
    with pytest.raises(I2IError, match="layer: expected pictures"):
        open_clip(long, layer="beauty")


# --- writing ------------------------------------------------------------------------------------------


def grey(*codes, size=(16, 32, 3)):
    return [np.full(size, code, np.uint8) for code in codes]


def test_what_is_written_is_tagged_and_exact_within_the_codec(tmp_path):
    write_video(tmp_path / "w.mp4", grey(0, 128, 255), fps=24000 / 1001, crf=1)
    frames = decoded(tmp_path / "w.mp4", "rgb48le", 3, (16, 32))
    assert frames.mean((1, 2, 3)) == pytest.approx([0, 128 / 255, 1], abs=2 / 255)
    about = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "w.mp4")], capture_output=True, text=True, check=False
    ).stderr
    assert "yuv420p(tv, bt709" in about and "23.98 fps" in about


@pytest.mark.parametrize(
    ("frames", "options", "match"),
    [
        (grey(1), {}, "fps .above 0. or times"),
        (grey(1), {"fps": 24, "times": [0]}, "fps .above 0. or times"),
        (grey(1), {"fps": 0}, "fps"),
        ([], {"fps": 24}, "frames: expected at least one"),
        (grey(1, 2), {"times": [0, 0]}, "times: expected seconds"),
        (grey(1, 2), {"times": [1, 0.5]}, "times: expected seconds"),
        (grey(1, 2), {"times": [-1, 0.5]}, "times: expected seconds"),
        (grey(1, 2), {"times": [0, float("nan")]}, "times: expected seconds"),
        (grey(1, 2), {"times": [0, float("inf")]}, "times: expected seconds"),
        (grey(1, 2), {"times": [0, 1e9]}, "times: expected seconds"),
        (grey(1, 2), {"times": [0]}, "got fewer, 1"),
        (grey(1, 2), {"times": [0, 1, 2]}, "got 3 for 2 frames"),
        (grey(1, size=(15, 32, 3)), {"fps": 24}, "H and W even"),
        (grey(1, size=(16, 32, 4)), {"fps": 24}, "H and W even"),
        ([*grey(1), *grey(1, size=(16, 16, 3))], {"fps": 24}, "like the first"),
        ([np.zeros((16, 32, 3), np.float32)], {"fps": 24}, "uint8"),
    ],
)
def test_what_cannot_be_written(tmp_path, frames, options, match):
    with pytest.raises(I2IError, match=match):
        write_video(tmp_path / "w.mp4", frames, **options)
    assert not list(tmp_path.iterdir())


def test_matroska_has_milliseconds(tmp_path):
    with pytest.raises(I2IError, match="each from 1/1000"):
        write_video(tmp_path / "w.mkv", grey(1, 2), times=[0, 0.0004])


def test_containers_that_cannot_hold_it(tmp_path):
    with pytest.raises(I2IError, match=r"w\.txt: expected a name ending in"):
        write_video(tmp_path / "w.txt", grey(1), fps=24)
    with pytest.raises(FrameError, match=r"w\.webm: expected a container for H\.264"):
        write_video(tmp_path / "w.webm", grey(1), fps=24)
    assert not list(tmp_path.iterdir())
