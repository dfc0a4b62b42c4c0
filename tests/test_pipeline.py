"""The road of a frame with networks whose answer is known, and what a clip leaves on disk, read by other programs."""

import dataclasses
import json
import math
import subprocess
import time

import imageio_ffmpeg
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from i2ilib import FrameError, I2IError, pipeline
from i2ilib.frames import Frame, open_clip, write_image
from i2ilib.pipeline import MatteOptions, matte, matte_clip, network_input, run_patches


class Known:
    """A runner that computes a given function, and counts the batches in flight."""

    def __init__(self, function):
        self.function, self.seen, self.flying, self.most = function, [], 0, 0

    def submit(self, batch):
        self.flying += 1
        self.most = max(self.most, self.flying)
        return _Later(self, batch)


class _Later:
    def __init__(self, runner, batch):
        self.runner, self.batch = runner, batch

    def result(self):
        self.runner.flying -= 1
        self.runner.seen.append(self.batch)
        return self.runner.function(self.batch)


def green(q=1):
    """The matte is the green channel as the network sees it, mapped back from [-q, q] to [-1, 1]."""
    return Known(lambda mapped: mapped[:, 1:2] / q)


def picture(rgb, source="x.png", alpha=None):
    return Frame(rgb, alpha, "x", source)


def plain(value, size=256, channels=3):
    return torch.full((1, channels, size, size), float(value))


@pytest.fixture
def noise():
    return torch.rand(1, 3, 256, 512, generator=torch.Generator().manual_seed(0))


# --- one frame -------------------------------------------------------------------------------------


def test_matte_of_a_known_network(noise):
    alpha = matte(green(), picture(noise))
    assert alpha.shape == (1, 1, 256, 512) and alpha.dtype == torch.float32
    torch.testing.assert_close(alpha, noise[:, 1:2], atol=1e-6, rtol=0)


def test_three_output_channels_are_averaged(noise):
    alpha = matte(Known(lambda mapped: mapped), picture(noise))
    torch.testing.assert_close(alpha, noise.mean(1, keepdim=True), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("source", "colour"), [("x.exr", "auto"), ("x.png", "linear")])
@pytest.mark.parametrize(("light", "code"), [(0.18, 0.461356), (0.5, 0.735357), (0.002, 0.02584)])  # IEC 61966-2-1
def test_linear_light_is_encoded(source, colour, light, code):
    encoded = matte(green(), picture(plain(light), source), MatteOptions(input_colour=colour))
    same = matte(green(), picture(plain(code)))
    torch.testing.assert_close(encoded, plain(code, channels=1), atol=2e-6, rtol=0)
    torch.testing.assert_close(encoded, same, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("source", "colour"), [("x.png", "auto"), ("x.tif", "auto"), ("x.exr", "srgb")])
def test_codes_stay_as_they_are(source, colour):
    alpha = matte(green(), picture(plain(0.18), source), MatteOptions(input_colour=colour))
    torch.testing.assert_close(alpha, plain(0.18, channels=1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("q", [1, 2, 64, 128])
def test_the_network_sees_its_own_range(noise, q):
    noise[0, :, 0, 0], noise[0, :, 0, 1] = 0, 1
    runner = green(q)
    alpha = matte(runner, picture(noise), MatteOptions(q_in=q))
    seen = torch.cat(runner.seen)
    assert (seen.min(), seen.max()) == (-q, q)
    torch.testing.assert_close(alpha, noise[:, 1:2], atol=1e-6, rtol=0)


def test_nothing_brighter_than_white_reaches_the_network():
    light = torch.tensor([-3.0, 0.0, 1.0, 40.0]).repeat_interleave(64).expand(1, 3, 256, 256)
    mapped = network_input(picture(light, "x.exr"), MatteOptions(q_in=4))
    assert mapped[0, 0, 0, ::64].tolist() == pytest.approx([-4, -4, 4, 4], abs=1e-6) and mapped.max() <= 4


@pytest.mark.parametrize(
    ("height", "width", "patches"),
    [(1, 1, 1), (256, 256, 1), (90, 160, 1), (300, 700, 3), (384, 383, 2), (1080, 300, 4)],
)
def test_any_size_comes_back(height, width, patches):
    down, across = torch.meshgrid(torch.linspace(0.1, 0.9, height), torch.linspace(0, 1, width), indexing="ij")
    ramp = (0.5 * (down + across)).expand(1, 3, height, width)
    runner = green()
    alpha = matte(runner, picture(ramp), MatteOptions(batch=2))
    assert alpha.shape == (1, 1, height, width)
    assert sum(map(len, runner.seen)) == patches and {tuple(b.shape[1:]) for b in runner.seen} == {(3, 256, 256)}
    assert (alpha - ramp[:, 1:2]).abs().max() < 0.01  # a smooth ramp survives being scaled to whole patches and back


def test_patches_go_back_where_they_came_from():
    means = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    blocks = means.repeat_interleave(256, 0).repeat_interleave(256, 1).expand(1, 3, 512, 768)
    average = Known(lambda mapped: mapped.mean((1, 2, 3), keepdim=True).expand(-1, 1, 256, 256))
    alpha = matte(average, picture(blocks), MatteOptions(batch=4))  # the second batch is smaller
    torch.testing.assert_close(alpha, blocks[:, :1], atol=1e-5, rtol=0)


def test_overlap_leaves_agreeing_patches_alone(noise):
    alpha = matte(green(), picture(noise), MatteOptions(stride=100, feather=50, batch=3))
    torch.testing.assert_close(alpha, noise[:, 1:2], atol=1e-6, rtol=0)


def test_feather_fades_along_a_raised_cosine():
    frame = torch.zeros(1, 3, 256, 512)
    frame[..., 256:] = 1  # the three patches have means 0, 0.5 and 1
    average = Known(lambda mapped: mapped.mean((1, 2, 3), keepdim=True).expand(-1, 1, 256, 256))
    hard = matte(average, picture(frame), MatteOptions(stride=128))
    torch.testing.assert_close(hard[0, 0, 7, 192::64], torch.tensor([0.25, 0.75, 0.75, 1, 1]), atol=1e-5, rtol=0)
    soft = matte(average, picture(frame), MatteOptions(stride=128, feather=128))
    expected = [0.5 * math.sin((k + 0.5) / 128 * math.pi / 2) ** 2 for k in range(128)]
    torch.testing.assert_close(soft[0, 0, 7, 128:256], torch.tensor(expected), atol=1e-5, rtol=0)


def test_unpremultiply_divides_in_the_colours_of_the_file():
    alpha = plain(0.5, channels=1)
    alpha[..., :128] = 0
    rgb = torch.where(alpha > 0, plain(0.09), plain(0.3))
    frame = picture(rgb, "x.exr", alpha)
    divided = matte(green(), frame, MatteOptions(input_alpha="unpremultiply"))
    assert divided[0, 0, 5, 200] == pytest.approx(0.461356, abs=2e-6)  # 0.09 / 0.5 = 0.18, then encoded
    assert divided[0, 0, 5, 5] == pytest.approx(0.583831, abs=2e-6)  # 0.3 encoded: where alpha is 0, as it is
    ignored = matte(green(), frame)
    assert ignored[0, 0, 5, 200] == pytest.approx(1.055 * 0.09 ** (1 / 2.4) - 0.055, abs=2e-6)
    opaque = matte(green(), dataclasses.replace(frame, alpha=None), MatteOptions(input_alpha="unpremultiply"))
    torch.testing.assert_close(opaque, ignored)


def test_matte_transfer_decodes_alpha():
    alpha = matte(green(), picture(plain(0.5)), MatteOptions(matte_transfer="srgb"))
    torch.testing.assert_close(alpha, plain(0.214041, channels=1), atol=2e-6, rtol=0)


def test_non_finite_pixels_are_refused_or_made_zero(noise):
    noise[0, 0, 3, 4], noise[0, 1, 5, 6], noise[0, 2, 5, 6], noise[0, 2, 7, 8] = math.nan, math.inf, math.nan, -math.inf
    with pytest.raises(FrameError, match=r"shot\.png.*finite.*3 pixels"):
        matte(green(), picture(noise, "shot.png"))
    alpha = matte(green(), picture(noise, "shot.png"), MatteOptions(non_finite="zero"))
    assert torch.isfinite(alpha).all() and alpha[0, 0, 5, 6] == 0 and alpha[0, 0, 3, 4] == noise[0, 1, 3, 4]


def test_few_batches_are_in_flight_and_come_back_in_order(noise):
    runner = green()
    options = MatteOptions(batch=1, stride=32)
    mapped = network_input(picture(noise), options)
    sizes = []
    for out in run_patches(runner, mapped, options):
        assert torch.equal(out, mapped[:, 1:2, :, 32 * len(sizes) : 32 * len(sizes) + 256])
        sizes.append(len(out))
    assert len(sizes) == 9 and 1 < runner.most <= 3 and runner.flying == 0


@pytest.mark.parametrize("field", ["input_colour", "input_alpha", "matte_transfer", "non_finite"])
def test_unknown_option(field):
    with pytest.raises(I2IError, match=f"{field}.*'x'"):
        MatteOptions(**{field: "x"})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"q_in": 3}, "power of two"),
        ({"stride": 0}, "stride"),
        ({"stride": 300}, "stride"),
        ({"batch": 0}, "batch"),
        ({"feather": 10}, "feather"),
        ({"stride": 128, "feather": 129}, "feather"),
    ],
)
def test_numbers_that_cannot_be(options, match):
    with pytest.raises(I2IError, match=match):
        matte(green(), picture(plain(0.5)), MatteOptions(**options))


# --- a clip ----------------------------------------------------------------------------------------


def ffmpeg(path, layout, channels, kind=np.uint16):
    """A picture as ffmpeg decodes it: (H, W, C), independent of the library that wrote it."""
    program = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        str(path),
        "-f",
        "rawvideo",
        "-pix_fmt",
        layout,
        "-",
    ]
    raw = np.frombuffer(subprocess.run(program, capture_output=True, check=True).stdout, kind)
    side = math.isqrt(raw.size // channels)
    return raw.reshape(channels, side, side).transpose(1, 2, 0) if "gbrap" in layout else raw.reshape(side, side, -1)


@pytest.fixture
def codes():
    return np.random.default_rng(0).integers(0, 65536, (256, 256, 3), dtype=np.uint16)


@pytest.fixture
def shot(tmp_path):
    """Three flat 8-bit frames of Pillow's making."""
    folder = tmp_path / "shot"
    folder.mkdir()
    for i in (1, 2, 3):
        Image.new("RGB", (40, 30), (10 * i, 20 * i, 30 * i)).save(folder / f"f{i}.png")
    return folder


def run(folder, out, options=None, **more):
    return matte_clip(green(), open_clip(folder), out, options, progress=False, **more)


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_png_holds_16_bits_and_straight_colours(tmp_path, codes):
    tifffile.imwrite(tmp_path / "a.tif", codes, photometric="rgb")
    assert run(tmp_path / "a.tif", tmp_path / "out").written == ["a"]
    with Image.open(tmp_path / "out/alpha/a.png") as alpha:
        assert alpha.mode.startswith("I;16")
        np.testing.assert_array_equal(np.asarray(alpha), codes[..., 1])
    rgba = ffmpeg(tmp_path / "out/rgba/a.png", "rgba64le", 4)
    np.testing.assert_array_equal(rgba, np.dstack([codes, codes[..., 1]]))


def test_tiff_with_premultiplied_colours(tmp_path, codes):
    tifffile.imwrite(tmp_path / "a.tif", codes, photometric="rgb")
    run(tmp_path / "a.tif", tmp_path / "out", suffix=".tif", premultiply=True)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out/alpha/a.tif"), codes[..., 1])
    with tifffile.TiffFile(tmp_path / "out/rgba/a.tif") as file:
        assert file.pages[0].extrasamples == (tifffile.EXTRASAMPLE.ASSOCALPHA,)
        rgba = file.asarray().astype(int)
    expected = codes.astype(np.float64) * codes[..., 1:2] / 65535
    assert np.abs(rgba[..., :3] - expected).max() <= 1 and (rgba[..., 3] == codes[..., 1]).all()


def test_exr_is_linear_and_premultiplied(tmp_path):
    Image.new("RGB", (256, 256), (255, 128, 0)).save(tmp_path / "a.png")
    run(tmp_path / "a.png", tmp_path / "out", suffix=".exr")
    g, b, r, a = ffmpeg(tmp_path / "out/rgba/a.exr", "gbrapf32le", 4, np.float32)[9, 9]
    coverage = 128 / 255
    light = ((coverage + 0.055) / 1.055) ** 2.4  # IEC 61966-2-1
    np.testing.assert_allclose([r, g, b, a], [coverage, light * coverage, 0, coverage], rtol=2**-11)


def test_colours_divided_by_their_alpha_are_straight_in_the_result(tmp_path):
    write_image(tmp_path / "a.exr", torch.cat([plain(0.09), plain(0.5, channels=1)], 1), premultiplied=True)
    run(tmp_path / "a.exr", tmp_path / "out", MatteOptions(input_alpha="unpremultiply"))
    rgba = ffmpeg(tmp_path / "out/rgba/a.png", "rgba64le", 4)
    assert np.abs(rgba / 65535 - 0.461356).max() < 2e-4  # 0.18 encoded; the source's alpha is gone


def test_exr_in_png_out_is_encoded(tmp_path):
    write_image(tmp_path / "a.exr", plain(0.18))
    run(tmp_path / "a.exr", tmp_path / "out")
    rgba = ffmpeg(tmp_path / "out/rgba/a.png", "rgba64le", 4)
    assert np.abs(rgba / 65535 - 0.461356).max() < 2e-4  # half float holds 11 bits of 0.18


def test_colours_that_are_not_finite_are_black_in_the_result(tmp_path):
    light = plain(0.18)
    light[:, :, 0, 0] = math.nan
    write_image(tmp_path / "a.exr", light)
    report = run(tmp_path / "a.exr", tmp_path / "out", MatteOptions(non_finite="zero"), suffix=".exr")
    assert report.written and (ffmpeg(tmp_path / "out/rgba/a.exr", "gbrapf32le", 4, np.float32)[0, 0] == 0).all()


def test_a_second_run_keeps_what_is_whole_and_rewrites_what_is_cut(tmp_path, shot):
    out = tmp_path / "out"
    assert run(shot, out).written == ["f1", "f2", "f3"]
    results = sorted(out.glob("*/*.png"))
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in results}
    assert len(results) == 6
    cut(out / "alpha/f2.png")
    (out / "rgba/f3.png").unlink()
    again = run(shot, out)
    assert (again.written, again.kept, again.failed) == (["f2", "f3"], ["f1"], {})
    assert sorted(out.glob("*/*.png")) == results
    for path, (data, when) in before.items():
        assert path.read_bytes() == data
        assert (path.stat().st_mtime_ns == when) == (path.stem == "f1")


def test_a_bad_frame_is_reported_and_the_others_are_written(tmp_path, shot, capsys):
    cut(shot / "f2.png")
    report = matte_clip(green(), open_clip(shot), tmp_path / "out")
    assert report.written == ["f1", "f3"] and list(report.failed) == ["f2"] and "f2.png" in report.failed["f2"]
    assert sorted(p.stem for p in tmp_path.glob("out/*/*.png")) == ["f1", "f1", "f3", "f3"]
    told = capsys.readouterr()
    assert told.out == "" and "skipped" in told.err and "f2.png" in told.err


def test_a_folder_belongs_to_one_job(tmp_path, shot):
    out = tmp_path / "out"
    run(shot, out, identity={"weights": "a"})
    old = (out / "alpha/f1.png").read_bytes()
    for more in ({"identity": {"weights": "b"}}, {"premultiply": True, "identity": {"weights": "a"}}):
        with pytest.raises(I2IError, match="another job"):
            run(shot, out, **more)
    with pytest.raises(I2IError, match="another job"):
        run(shot, out, MatteOptions(matte_transfer="srgb"), identity={"weights": "a"})
    assert (out / "alpha/f1.png").read_bytes() == old
    report = run(shot, out, MatteOptions(matte_transfer="srgb"), overwrite=True)
    assert len(report.written) == 3 and not report.kept and (out / "alpha/f1.png").read_bytes() != old
    assert run(shot, out, MatteOptions(matte_transfer="srgb")).kept == ["f1", "f2", "f3"]


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}"])
def test_a_job_file_that_cannot_be_read_is_not_trusted(tmp_path, shot, text):
    run(shot, tmp_path / "out")
    assert json.loads((tmp_path / "out/job.json").read_text())["job"]["patch"] == 256
    (tmp_path / "out/job.json").write_text(text)
    with pytest.raises(I2IError, match="another job"):
        run(shot, tmp_path / "out")


def test_places_and_formats_that_cannot_be(tmp_path, shot):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(I2IError, match=r"a folder to write to, got a file"):
        run(shot, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(I2IError, match=r"\.png or \.tif or \.exr"):
        run(shot, tmp_path / "out", suffix=".jpg")
    assert not (tmp_path / "out").exists()


def test_few_frames_are_held_however_slow_the_disk(tmp_path, monkeypatch):
    for i in range(6):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"f{i}.png")
    clip, out, behind = open_clip(tmp_path), tmp_path / "out", []

    class Watched:
        def __getattr__(self, name):
            return getattr(clip, name)

        def __len__(self):
            return len(clip)

        def read(self, wanted):
            for i, (name, frame) in enumerate(clip.read(wanted)):
                behind.append(i - len(list(out.glob("alpha/*.png"))))  # frames read and not yet written
                yield name, frame

    def slow(*args, **more):
        time.sleep(0.03)
        return write_image(*args, **more)

    monkeypatch.setattr(pipeline, "write_image", slow)
    assert len(matte_clip(green(), Watched(), out, progress=False).written) == 6
    assert max(behind) <= 2
