"""Job folders: what is kept, what is made again, and what is never touched, whatever happened in between."""

import json
import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from test_pictures import exr, flat, png_with
from test_pipeline import green
from test_video import levels

from i2ilib import I2IError, pipeline
from i2ilib.frames import open_clip, read_image, write_image, write_video
from i2ilib.pipeline import MatteOptions, matte_clip, plan_clip, run_plan


@pytest.fixture
def shot(tmp_path):
    folder = tmp_path / "shot"
    folder.mkdir()
    for i in (1, 2, 3):
        save(folder / f"f{i}.png", 20 * i)
    return folder


def save(path, green, size=(40, 30)):
    Image.new("RGB", size, (7, green, 9)).save(path)


def run(source, out, runner=None, **more):
    return matte_clip(runner or green(), open_clip(source), out, progress=False, **more)


def alpha(path):
    """The flat matte in a file, as an 8-bit code."""
    return round(float(read_image(path).rgb.mean()) * 255)


def later(path, by=1_000_000_000):
    """Give a file another time, whatever the clock of the file system can tell apart."""
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + by))


# --- sources that change -----------------------------------------------------------------------------


def test_a_frame_that_was_rendered_again_is_matted_again(tmp_path, shot):
    run(shot, tmp_path / "out")
    save(shot / "f2.png", 200)
    later(shot / "f2.png")
    report = run(shot, tmp_path / "out")
    assert (report.written, report.kept) == (["f2"], ["f1", "f3"])
    assert [alpha(tmp_path / f"out/alpha/f{i}.png") for i in (1, 2, 3)] == [20, 200, 60]
    assert run(shot, tmp_path / "out").kept == ["f1", "f2", "f3"]


def test_a_frame_of_another_size_in_bytes_and_the_same_time(tmp_path, shot):
    run(shot, tmp_path / "out")
    before = (shot / "f2.png").stat().st_mtime_ns
    save(shot / "f2.png", 200, size=(400, 300))
    os.utime(shot / "f2.png", ns=(before, before))
    assert run(shot, tmp_path / "out").written == ["f2"]


def test_content_decides_on_request(tmp_path, shot):
    run(shot, tmp_path / "out", by_content=True)
    for path in shot.iterdir():
        later(path)  # copied from somewhere, say
    assert run(shot, tmp_path / "out", by_content=True).kept == ["f1", "f2", "f3"]
    state = (shot / "f2.png").stat()
    data = bytearray((shot / "f2.png").read_bytes())
    save(shot / "f2.png", 41)  # as many bytes
    assert (shot / "f2.png").stat().st_size == len(data)
    os.utime(shot / "f2.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert run(shot, tmp_path / "out", by_content=True).written == ["f2"]
    assert alpha(tmp_path / "out/alpha/f2.png") == 41


def test_content_that_was_never_noted_is_not_trusted(tmp_path, shot):
    run(shot, tmp_path / "out")
    assert run(shot, tmp_path / "out", by_content=True).written == ["f1", "f2", "f3"]
    assert run(shot, tmp_path / "out").kept == ["f1", "f2", "f3"]


def test_a_video_that_was_coded_again(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, [np.full((32, 32, 3), 100, np.uint8)] * 3, fps=24)
    assert len(run(path, tmp_path / "out").written) == 3
    assert len(run(path, tmp_path / "out").kept) == 3
    write_video(path, [np.full((32, 32, 3), 150, np.uint8)] * 3, fps=24)
    later(path)
    assert len(run(path, tmp_path / "out").written) == 3
    assert abs(alpha(tmp_path / "out/alpha/frame_000002.png") - 150) <= 1


def test_the_times_of_a_video_are_kept_beside_its_mattes(tmp_path):
    path = levels(tmp_path / "v.mp4", "-c:v", "libx264", "-enc_time_base", "1:90000", times=r"if(lt(N\,5)\,N\,N+20)/25")
    run(path, tmp_path / "out")
    first, *lines = (tmp_path / "out/timecodes.txt").read_text().splitlines()
    assert first == "# timestamp format v2"
    expected = [40 * (i if i < 5 else i + 20) for i in range(12)]
    assert [float(line) for line in lines] == pytest.approx(expected, abs=0.1)


# --- interruptions -------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupt(monkeypatch, after):
    """Let a run end when so many pictures are written."""
    written = []

    def write(path, *args, **more):
        if len(written) == after:
            raise Interrupted
        written.append(path)
        return write_image(path, *args, **more)

    monkeypatch.setattr(pipeline, "write_image", write)


@pytest.mark.parametrize("after", range(7))
def test_an_interrupted_overwrite_never_keeps_the_other_models_frames(tmp_path, shot, monkeypatch, after):
    out = tmp_path / "out"
    run(shot, out, identity={"weights": "a"})
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        new = type(green())(lambda mapped: -mapped[:, 1:2])
        if after < 6:
            with pytest.raises(Interrupted):
                run(shot, out, new, identity={"weights": "b"}, overwrite=True)
        else:
            run(shot, out, new, identity={"weights": "b"}, overwrite=True)
    report = run(shot, out, type(green())(lambda mapped: -mapped[:, 1:2]), identity={"weights": "b"})
    assert sorted(report.written + report.kept) == ["f1", "f2", "f3"]
    assert [alpha(out / f"alpha/f{i}.png") for i in (1, 2, 3)] == [235, 215, 195]
    with pytest.raises(I2IError, match="another job"):
        run(shot, out, identity={"weights": "a"})


def test_a_log_that_was_cut_in_a_line_is_read_up_to_it(tmp_path, shot):
    run(shot, tmp_path / "out")
    log = tmp_path / "out/frames.jsonl"
    log.write_bytes(log.read_bytes()[:-30] + b"\xff\n[]\n{}\n")
    report = run(shot, tmp_path / "out")
    assert (report.kept, report.written) == (["f1", "f2"], ["f3"])
    assert len(log.read_text().splitlines()) == 4  # two kept, and one begun and ended
    assert run(shot, tmp_path / "out").kept == ["f1", "f2", "f3"]


def test_a_result_that_was_painted_on_is_kept_and_one_that_was_damaged_is_not(tmp_path, shot):
    out = tmp_path / "out"
    run(shot, out)
    save(out / "alpha/f1.png", 77)
    (out / "rgba/f2.png").write_bytes((out / "rgba/f2.png").read_bytes()[:-60] + bytes(60))
    later(out / "rgba/f2.png")
    report = run(shot, out)
    assert (report.kept, report.written) == (["f1", "f3"], ["f2"])
    assert report.notes == {"its results were changed since they were written, and are kept": ["f1"]}
    with Image.open(out / "alpha/f1.png") as painted:
        assert painted.getpixel((0, 0)) == (7, 77, 9)


def test_results_of_each_format_have_their_own_state(tmp_path, shot):
    out = tmp_path / "out"
    run(shot, out)
    save(shot / "f2.png", 200)
    later(shot / "f2.png")
    assert len(run(shot, out, suffix=".tif").written) == 3
    assert run(shot, out).written == ["f2"] and alpha(out / "alpha/f2.png") == 200


def test_what_a_killed_run_wrote_of_another_source_is_not_kept(tmp_path, shot, monkeypatch):
    out, before = tmp_path / "out", (shot / "f2.png").read_bytes()
    state = (shot / "f2.png").stat()
    run(shot, out)
    save(shot / "f2.png", 200)
    later(shot / "f2.png")
    with monkeypatch.context() as patch:  # killed when the pictures are written and their note is not

        def killed(*_):
            raise Interrupted

        patch.setattr("i2ilib.pipeline.job.JobFolder.note", killed)
        with pytest.raises(Interrupted):
            run(shot, out)
    (shot / "f2.png").write_bytes(before)  # and the source is put back, with its time
    os.utime(shot / "f2.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert run(shot, out).written == ["f2"] and alpha(out / "alpha/f2.png") == 40


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path, shot):
    out = tmp_path / "out"
    run(shot, out)
    (out / "alpha/.f1-0123abcd.part.png").write_bytes(b"half")
    (out / "rgba/.mine-0123abcd.part.png").write_bytes(b"mine")
    run(shot, out)
    assert not (out / "alpha/.f1-0123abcd.part.png").exists() and (out / "rgba/.mine-0123abcd.part.png").exists()


def test_a_folder_in_the_place_of_a_result_costs_that_frame(tmp_path, shot):
    (tmp_path / "out/alpha/f2.png").mkdir(parents=True)
    report = run(shot, tmp_path / "out", overwrite=True)
    assert report.written == ["f1", "f3"] and "got a folder" in report.failed["f2"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_among_the_frames_waits_for_nobody(tmp_path, shot):
    os.mkfifo(shot / "f4.png")
    for more in ({}, {"by_content": True}):
        report = run(shot, tmp_path / "out", **more)
        assert list(report.failed) == ["f4"] and "no file" in report.failed["f4"]


def test_highlights_over_little_alpha_stay_finite(tmp_path):
    exr(tmp_path / "h.exr", "RGBA", flat(3e38, 1e35, 0.5, 1e-7))
    options = MatteOptions(input_alpha="unpremultiply")
    for suffix in (".exr", ".png"):
        run(tmp_path / "h.exr", tmp_path / suffix, options=options, suffix=suffix)
        assert torch.isfinite(read_image(tmp_path / f"{suffix}/rgba/h{suffix}").rgb).all()


# --- whose folder --------------------------------------------------------------------------------------


def test_files_of_unknown_origin_are_not_touched(tmp_path, shot):
    out = tmp_path / "out"
    (out / "alpha").mkdir(parents=True)
    save(out / "alpha/f1.png", 77)
    before = (out / "alpha/f1.png").read_bytes()
    with pytest.raises(I2IError, match="another job"):
        run(shot, out)
    assert (out / "alpha/f1.png").read_bytes() == before and not (out / "job.json").exists()
    assert run(shot, out, overwrite=True).written == ["f1", "f2", "f3"]


def test_a_plan_writes_nothing_and_a_finished_one_needs_no_network(tmp_path, shot):
    plan = plan_clip(open_clip(shot), tmp_path / "out")
    assert plan.wanted == ["f1", "f2", "f3"] and not (tmp_path / "out").exists()
    run_plan(green(), plan, progress=False)
    plan = plan_clip(open_clip(shot), tmp_path / "out")
    assert plan.wanted == [] and run_plan(None, plan, progress=False).kept == ["f1", "f2", "f3"]


def test_a_job_that_never_wrote_leaves_the_folder_free(tmp_path, shot):
    plan = plan_clip(open_clip(shot), tmp_path / "out", identity={"weights": "a"})
    plan.job.claim()
    assert run(shot, tmp_path / "out", identity={"weights": "b"}).written == ["f1", "f2", "f3"]


def test_a_layer_is_part_of_the_job(tmp_path):
    path = exr(tmp_path / "l.exr", ["a.R", "a.G", "a.B", "b.R", "b.G", "b.B"], flat(0, 0.2, 0, 0, 0.7, 0))
    for layer in "ab":
        matte_clip(green(), open_clip(path, layer=layer), tmp_path / layer, suffix=".exr", progress=False)
    assert alpha(tmp_path / "a/alpha/l.exr") < alpha(tmp_path / "b/alpha/l.exr")
    with pytest.raises(I2IError, match="another job"):
        matte_clip(green(), open_clip(path, layer="b"), tmp_path / "a", suffix=".exr", progress=False)


# --- what a file says of itself reaches the results ---------------------------------------------------------


@pytest.mark.parametrize("suffix", [".exr", ".png"])
def test_a_matte_has_the_display_window_of_its_plate(tmp_path, suffix):
    pixels = np.zeros((128, 128, 3), np.float32)
    pixels[:64] = 1
    exr(tmp_path / "w.exr", "RGB", pixels, data=(64, 64), display=(0, 0, 256, 256))
    run(tmp_path / "w.exr", tmp_path / "out", suffix=suffix)
    found = read_image(tmp_path / f"out/alpha/w{suffix}").rgb[0, 0]
    expected = torch.zeros(256, 256)
    expected[64:128, 64:192] = 1
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert read_image(tmp_path / f"out/rgba/w{suffix}").rgb.shape == (1, 3, 256, 256)


def test_an_anamorphic_plate_keeps_its_pixels(tmp_path):
    exr(tmp_path / "a.exr", "RGB", flat(0.1, 0.2, 0.3), display=(3, -2, 5, 4), data=(3, -2), PixelAspectRatio=2.0)
    run(tmp_path / "a.exr", tmp_path / "out", suffix=".exr")
    for kind in ("alpha", "rgba"):
        frame = read_image(tmp_path / f"out/{kind}/a.exr")
        assert (frame.aspect, frame.origin) == (2.0, (3, -2))


def test_linear_light_in_a_png_is_encoded(tmp_path):
    run(png_with(tmp_path / "g.png", 100000), tmp_path / "out")
    assert read_image(tmp_path / "out/alpha/g.png").rgb.mean() == pytest.approx(
        1.055 * (128 / 255) ** (1 / 2.4) - 0.055, abs=1e-4
    )
    code = run(tmp_path / "g.png", tmp_path / "as_code", options=MatteOptions(input_colour="srgb"))
    assert code.written and alpha(tmp_path / "as_code/alpha/g.png") == 128


def test_highlights_survive_a_second_job(tmp_path):
    exr(tmp_path / "h.exr", "RGB", flat(1e5, 0.5, 3e38))
    assert run(tmp_path / "h.exr", tmp_path / "one", suffix=".exr").written == ["h"]
    assert run(tmp_path / "one/rgba/h.exr", tmp_path / "two", suffix=".exr", premultiply=False).written == ["h"]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".exr"])
def test_premultiplied_results_are_multiplied_once(tmp_path, suffix):
    save(tmp_path / "p.png", 128)
    run(tmp_path / "p.png", tmp_path / "out", suffix=suffix, premultiply=True)
    frame = read_image(tmp_path / f"out/rgba/p{suffix}")
    code = 128 / 255
    light = ((code + 0.055) / 1.055) ** 2.4 if suffix == ".exr" else code
    assert frame.rgb[0, 1].mean() == pytest.approx(light * code, abs=3e-4)


def test_an_alpha_that_is_not_used_is_said(tmp_path):
    write_image(tmp_path / "a.png", torch.rand(1, 4, 20, 20))
    write_image(tmp_path / "b.png", torch.ones(1, 4, 20, 20))
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / f"{name}.png").rename(tmp_path / f"in/{name}.png")
    ((note, names),) = run(tmp_path / "in", tmp_path / "out").notes.items()
    assert "alpha channel is not used" in note and names == ["a"]
    assert not run(tmp_path / "in", tmp_path / "used", options=MatteOptions(input_alpha="unpremultiply")).notes


# --- many files of all kinds ---------------------------------------------------------------------------


def mixed(folder, rng, count):
    """Files of all kinds; gives the green code of each that can be read, None for the others, by file name."""
    expected = {}
    kinds = ["png", "jpg", "tif", "exr", "window", "layers", "turned", "cut", "empty", "text", "link", "nan", "unsaid"]
    for i in range(count):
        kind, code = kinds[i % len(kinds)], int(rng.integers(10, 240))
        stem = rng.choice([f"a.{i:04d}", f"b{i}", f"n.-{i}", f"same{i // 2}", f"①{i}", f"Ü {i}"])
        light = ((code / 255 + 0.055) / 1.055) ** 2.4 if code > 10 else code / 255 / 12.92
        suffix = {"png": ".png", "turned": ".jpg", "jpg": ".JPG", "tif": ".tiff", "cut": ".png", "text": ".jpeg"}
        path = folder / f"{stem}{suffix.get(kind, '.png' if kind in ('empty', 'link') else '.exr')}"
        if path.exists() or path.is_symlink():
            continue
        image = Image.new("RGB", (int(rng.integers(1, 60)), int(rng.integers(1, 60))), (3, code, 5))
        exif = image.getexif()
        exif[274] = int(rng.integers(1, 9))
        good = True
        if kind in ("png", "tif"):
            image.save(path)
        elif kind in ("jpg", "turned"):
            image.save(path, quality=100, subsampling=0, exif=exif if kind == "turned" else Image.Exif())
        elif kind == "exr":
            exr(path, "RGB", flat(0, light, 0))
        elif kind == "window":
            exr(path, "RGB", flat(0, light, 0, size=(30, 30)), data=(-5, -5), display=(0, 0, 20, 20))
        elif kind == "layers":
            exr(
                path,
                ["albedo.R", "albedo.G", "albedo.B", "beauty.R", "beauty.G", "beauty.B"],
                flat(9, 9, 9, 0, light, 0),
            )
        else:
            good = False
            if kind == "cut":
                Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(path)
                path.write_bytes(path.read_bytes()[:2000])
            elif kind == "link":
                path.symlink_to(folder / "nowhere.png")
            elif kind == "nan":
                exr(path, "RGB", flat(0, np.nan, 0))
            elif kind == "unsaid":
                exr(path, ["N.X", "N.Y", "N.Z"], flat(0, 0, 1))
            else:
                path.write_bytes(b"" if kind == "empty" else b"no picture at all")
        expected[path.name] = code if good else None
    return expected


def test_two_hundred_mixed_files_are_reported_each(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    expected = mixed(folder, np.random.default_rng(3), 215)
    for name in ("notes.txt", "grade.cube", "old.mov"):
        (folder / name).write_bytes(b"x")
    (folder / "more").mkdir()
    assert len(expected) >= 200
    clip = open_clip(folder)
    files = dict(zip(clip.names, (file.name for file in clip.files), strict=True))
    assert sorted(files.values()) == sorted(expected) and len(files) == len(expected)
    report = run(folder, out)
    good = {name for name, file in files.items() if expected[file] is not None}
    assert set(report.written) == good and set(report.failed) == files.keys() - good and not report.kept
    assert all(files[name] in message for name, message in report.failed.items())
    assert report.passed_over == ["grade.cube", "notes.txt", "old.mov"]
    for name in good:
        assert abs(alpha(out / f"alpha/{name}.png") - expected[files[name]]) <= 1, files[name]
        if not files[name].endswith(".exr"):
            with Image.open(folder / files[name]) as image:
                assert read_image(out / f"rgba/{name}.png").rgb.shape[:1:-1] == ImageOps.exif_transpose(image).size
    assert Counter(path.parent.name for path in out.glob("*/*")) == {"alpha": len(good), "rgba": len(good)}
    again = run(folder, out)
    assert set(again.kept) == good and set(again.failed) == set(report.failed) and not again.written


@given(st.lists(st.sampled_from(["keep", "render", "damage", "delete", "stop"]), min_size=3, max_size=3))
@settings(derandomize=True, deadline=None, max_examples=25)
def test_whatever_happens_between_two_runs_the_results_are_of_the_sources(tmp_path_factory, events):
    folder, out = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out")
    codes = [30, 60, 90]
    for i, code in enumerate(codes):
        save(folder / f"f{i}.png", code)
    run(folder, out)
    log = (out / "frames.jsonl").read_text().splitlines()
    for i, event in enumerate(events):
        if event == "render":
            codes[i] += 100
            save(folder / f"f{i}.png", codes[i])
            later(folder / f"f{i}.png")
        elif event == "damage":
            (out / f"rgba/f{i}.png").write_bytes(b"")
        elif event == "delete":
            (out / f"alpha/f{i}.png").unlink()
        elif event == "stop":  # killed after the pictures and before the note of them
            log = [line for line in log if json.loads(line)["file"] != f"f{i}.png"]
    (out / "frames.jsonl").write_text("".join(line + "\n" for line in log))
    report = run(folder, out)
    assert report.kept == [f"f{i}" for i, event in enumerate(events) if event == "keep"]
    assert [alpha(out / f"alpha/f{i}.png") for i in range(3)] == codes
