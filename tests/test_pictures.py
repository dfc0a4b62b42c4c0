"""What files of post-production hold besides pixels: windows, layers, orientation, gamma; against other programs."""

import itertools
import struct
import zlib

import numpy as np
import OpenImageIO as oiio
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from i2ilib import FrameError, I2IError
from i2ilib.frames import open_clip, read_image, write_image
from i2ilib.frames.layers import USUAL

FIXED = settings(derandomize=True, deadline=None, max_examples=60)


def exr(path, channels, pixels, *, data=(0, 0), display=None, parts=(), **attributes):
    """An OpenEXR file of OpenImageIO's making: channel names, (H, W, C), corner of the data window, display window."""
    specs = []
    for names, array, title in ((channels, pixels, None), *parts):
        height, width = array.shape[:2]
        spec = oiio.ImageSpec(width, height, len(names), "float")
        spec.channelnames = tuple(names)
        spec.x, spec.y = data
        if display:
            spec.full_x, spec.full_y, spec.full_width, spec.full_height = display
        for key, value in attributes.items():
            spec.attribute(key, *value) if isinstance(value, tuple) else spec.attribute(key, value)
        if parts:
            spec.attribute("oiio:subimagename", title or "main")
        specs.append((spec, array))
    file = oiio.ImageOutput.create(str(path))
    assert file.open(str(path), tuple(spec for spec, _ in specs)), file.geterror()
    for i, (spec, array) in enumerate(specs):
        assert i == 0 or file.open(str(path), spec, "AppendSubimage"), file.geterror()
        assert file.write_image(np.ascontiguousarray(array, np.float32)), file.geterror()
    file.close()
    return path


def flat(*values, size=(4, 5)):
    return np.broadcast_to(np.array(values, np.float32), (*size, len(values)))


def colours(frame):
    """Mean of each channel, rounded as half floats are."""
    return [round(float(v), 3) for v in frame.rgb.mean((0, 2, 3))]


# --- OpenEXR: windows --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "at", "display"),
    [
        ((128, 128), (64, 64), (0, 0, 256, 256)),  # less than the frame
        ((320, 320), (-32, -32), (0, 0, 256, 256)),  # overscan
        ((20, 300), (-10, 250), (0, 0, 256, 256)),  # across an edge
        ((10, 10), (500, 0), (0, 0, 256, 256)),  # nothing to see
        ((8, 8), (3, 2), (2, 2, 8, 8)),  # a display window that does not begin at the origin
    ],
)
def test_the_display_window_is_the_picture(tmp_path, size, at, display):
    pixels = np.random.default_rng(0).random((*size, 4), np.float32)
    frame = read_image(exr(tmp_path / "w.exr", "RGBA", pixels, data=at, display=display))
    x, y, width, height = display
    world = np.zeros((2000, 2000, 4), np.float32)  # the plane, from (-1000, -1000) on
    world[at[1] + 1000 : at[1] + 1000 + size[0], at[0] + 1000 : at[0] + 1000 + size[1]] = pixels
    expected = world[y + 1000 : y + 1000 + height, x + 1000 : x + 1000 + width].transpose(2, 0, 1)
    np.testing.assert_array_equal(torch.cat([frame.rgb, frame.alpha], 1)[0], expected)
    assert frame.origin == (x, y)


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(-20, 20), st.integers(-20, 20)),
    st.tuples(st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 12), st.integers(1, 12)),
)
@FIXED
def test_any_windows(tmp_path_factory, size, at, display):
    pixels = np.random.default_rng(0).random((*size, 3), np.float32)
    frame = read_image(exr(tmp_path_factory.mktemp("w") / "w.exr", "RGB", pixels, data=at, display=display))
    x, y, width, height = display
    world = np.zeros((64, 64, 3), np.float32)  # the plane, from (-20, -20) on
    world[at[1] + 20 : at[1] + 20 + size[0], at[0] + 20 : at[0] + 20 + size[1]] = pixels
    expected = world[y + 20 : y + 20 + height, x + 20 : x + 20 + width].transpose(2, 0, 1)
    np.testing.assert_array_equal(frame.rgb[0], expected)
    assert frame.origin == (x, y)


def test_a_window_that_no_memory_holds_is_refused(tmp_path):
    path = exr(tmp_path / "w.exr", "RGB", flat(1, 2, 3), display=(0, 0, 2**20, 2**20))
    with pytest.raises(FrameError, match=r"w\.exr: expected at most \d+ pixels, got 1048576 x 1048576"):
        read_image(path)


def test_the_origin_is_written_to_openexr(tmp_path):
    write_image(tmp_path / "o.exr", torch.rand(1, 3, 4, 5), origin=(-7, 3))
    spec = oiio.ImageInput.open(str(tmp_path / "o.exr")).spec()
    assert (spec.x, spec.y, spec.full_x, spec.full_y, spec.full_width) == (-7, 3, -7, 3, 5)
    assert read_image(tmp_path / "o.exr").origin == (-7, 3)


# --- OpenEXR: layers ---------------------------------------------------------------------------------


def rgb(layer):
    return [f"{layer}.{c}" if layer else c for c in "RGB"]


@pytest.mark.parametrize(
    ("channels", "values", "expected", "alpha"),
    [
        ([*rgb("albedo"), *rgb("beauty")], (1, 2, 3, 4, 5, 6), [4, 5, 6], None),
        ([*rgb("beauty"), "matte.A"], (1, 2, 3, 4), [1, 2, 3], None),  # a foreign alpha
        ([*rgb("beauty"), "beauty.A"], (1, 2, 3, 4), [1, 2, 3], 4),
        ([*rgb("albedo"), *rgb(""), "A", "Z"], (1, 2, 3, 4, 5, 6, 7, 8), [4, 5, 6], 7),
        (["red", "green", "blue"], (1, 2, 3), [1, 2, 3], None),
        (["v.red", "v.green", "v.blue", "v.alpha"], (1, 2, 3, 4), [1, 2, 3], 4),
        ([*rgb("ViewLayer.Combined"), *rgb("ViewLayer.DiffDir")], (1, 2, 3, 4, 5, 6), [1, 2, 3], None),
        ([*rgb("N"), *rgb("C")], (1, 2, 3, 4, 5, 6), [4, 5, 6], None),
        ([*rgb("normal"), "Z"], (1, 2, 3, 4), [1, 2, 3], None),  # the only colours, and it is said
        (["Y"], (2,), [2, 2, 2], None),
        (["Y", "A"], (2, 3), [2, 2, 2], 3),
    ],
)
def test_the_colour_layer(tmp_path, channels, values, expected, alpha):
    order = np.random.default_rng(0).permutation(len(channels))  # no rule may hang on the order in the file
    path = exr(tmp_path / "l.exr", [channels[i] for i in order], flat(*(values[i] for i in order)))
    frame = read_image(path)
    assert colours(frame) == expected
    assert (None if frame.alpha is None else float(frame.alpha.mean())) == alpha


@pytest.mark.parametrize(
    "channels",
    [
        ["N.X", "N.Y", "N.Z"],
        ["R", "G"],
        ["Z"],
        ["A"],
        ["R"],
        [*rgb("albedo"), *rgb("diffuse")],
        ["a.Y", "b.Y"],
        ["Y", "RY"],
    ],
)
def test_what_does_not_say_its_colour_is_refused_with_the_layers(tmp_path, channels):
    path = exr(tmp_path / "l.exr", channels, flat(*range(1, len(channels) + 1)))
    with pytest.raises(FrameError, match=r"l\.exr: expected a layer with R, G and B, got .*--layer") as refused:
        read_image(path)
    assert all(name.rpartition(".")[2] in str(refused.value) for name in channels)


@pytest.mark.parametrize(
    ("layer", "expected", "alpha"),
    [("albedo", [1, 2, 3], 8), ("BEAUTY", [4, 5, 6], None), ("Z", [7, 7, 7], None), ("beauty.g", [5, 5, 5], None)],
)
def test_a_layer_that_is_asked_for(tmp_path, layer, expected, alpha):
    path = exr(tmp_path / "l.exr", [*rgb("albedo"), *rgb("beauty"), "Z", "albedo.A"], flat(1, 2, 3, 4, 5, 6, 7, 8))
    frame = read_image(path, layer=layer)
    assert colours(frame) == expected and (None if frame.alpha is None else float(frame.alpha.mean())) == alpha
    assert colours(dict(open_clip(path, layer=layer).read())["l"]) == expected


@pytest.mark.parametrize("layer", ["normal", "albedo.Z", "", "N"])
def test_a_layer_that_is_not_there_is_refused(tmp_path, layer):
    path = exr(tmp_path / "l.exr", [*rgb("albedo"), "N.X", "N.Y"], flat(1, 2, 3, 4, 5))
    with pytest.raises(FrameError, match=rf"a layer '{layer}'.*got N: X Y; albedo: R G B"):
        read_image(path, layer=layer)


def test_layers_in_parts(tmp_path):
    parts = [("RGBA", flat(4, 5, 6, 7), "beauty"), (["Z"], flat(8), "depth")]
    path = exr(tmp_path / "p.exr", "RGB", flat(1, 2, 3), parts=parts)
    assert colours(read_image(path)) == [4, 5, 6]  # of "main" and "beauty" the more telling name
    assert colours(read_image(path, layer="main")) == [1, 2, 3]
    assert colours(read_image(path, layer="depth")) == [8, 8, 8]


@pytest.mark.parametrize(
    "channels",
    [
        [*rgb("BG.Combined"), *rgb("FG.Combined")],
        [*rgb("diffuse.color"), *rgb("specular.color")],
        [*rgb("left.rgba"), *rgb("right.rgba")],
    ],
)
def test_two_of_one_kind_are_not_decided(tmp_path, channels):
    path = exr(tmp_path / "l.exr", channels, flat(*range(1, 7)))
    with pytest.raises(FrameError, match="expected a layer with R, G and B"):
        read_image(path)
    assert colours(read_image(path, layer=channels[3][:-2])) == [4, 5, 6]


def test_parts_of_one_layer_are_told_apart(tmp_path):
    path = exr(tmp_path / "p.exr", rgb("beauty"), flat(1, 2, 3), parts=[(rgb("beauty"), flat(4, 5, 6), "p2")])
    with pytest.raises(FrameError, match=r"main\.beauty: R G B; p2\.beauty: R G B"):
        read_image(path)
    assert colours(read_image(path, layer="p2.beauty")) == [4, 5, 6]


def test_the_layer_that_was_taken_is_said(tmp_path):
    assert read_image(exr(tmp_path / "n.exr", rgb("N"), flat(1, 2, 3))).notes == ("colour is its layer N",)
    path = exr(tmp_path / "l.exr", [*rgb("albedo"), *rgb("beauty")], flat(1, 2, 3, 4, 5, 6))
    assert read_image(path).notes == ("colour is its layer beauty",)


def test_a_deep_file_is_refused(tmp_path):
    spec = oiio.ImageSpec(2, 2, 5, "float")
    spec.channelnames = ("R", "G", "B", "A", "Z")
    spec.deep = True
    deep = oiio.DeepData()
    deep.init(4, 5, spec.channelformats or ("float",) * 5, spec.channelnames)
    file = oiio.ImageOutput.create(str(tmp_path / "d.exr"))
    assert file.open(str(tmp_path / "d.exr"), spec) and file.write_deep_image(deep)
    file.close()
    with pytest.raises(FrameError, match=r"d\.exr: expected a flat image, got a deep one"):
        read_image(tmp_path / "d.exr")


def test_ids_and_lab_are_no_colours(tmp_path):
    spec = oiio.ImageSpec(4, 3, 5, "half")
    spec.channelnames = ("R", "G", "B", "id.R", "id")
    spec.channelformats = ("half", "half", "half", "uint", "uint")
    file = oiio.ImageOutput.create(str(tmp_path / "i.exr"))
    assert file.open(str(tmp_path / "i.exr"), spec) and file.write_image(flat(0.25, 0.5, 0.75, 7, 9, size=(3, 4)))
    file.close()
    assert colours(read_image(tmp_path / "i.exr")) == [0.25, 0.5, 0.75]
    with pytest.raises(FrameError, match=r"i\.exr: expected RGB or grey, got whole numbers"):
        read_image(tmp_path / "i.exr", layer="id")
    Image.new("LAB", (4, 3)).save(tmp_path / "l.tif")
    with pytest.raises(FrameError, match=r"l\.tif: expected RGB or grey, got CIELAB"):
        read_image(tmp_path / "l.tif")


def test_other_primaries_are_said(tmp_path):
    ap1 = (0.713, 0.293, 0.165, 0.830, 0.128, 0.044, 0.32168, 0.33767)
    path = exr(tmp_path / "c.exr", "RGB", flat(1, 2, 3), chromaticities=("float[8]", ap1))
    assert "primaries" in read_image(path).notes[0]


@given(st.data())
@FIXED
def test_any_layers_give_the_right_colours_or_are_refused(tmp_path_factory, data):
    prefixes = st.sampled_from(["", "beauty", "albedo", "N", "left.beauty", "Combined", "matte"])
    lasts = st.sampled_from(["R", "G", "B", "A", "Z", "X", "Y", "red", "green", "blue"])
    channels = data.draw(st.lists(st.tuples(prefixes, lasts), min_size=1, max_size=8, unique=True))
    names = [f"{p}.{c}" if p else c for p, c in channels]
    path = exr(tmp_path_factory.mktemp("l") / "l.exr", names, flat(*range(1, len(names) + 1), size=(2, 2)))
    where = {}
    for value, (prefix, last) in enumerate(channels, 1):
        where.setdefault(prefix, {}).setdefault({"red": "R", "green": "G", "blue": "B"}.get(last, last), []).append(
            value
        )
    coloured = [prefix for prefix, found in where.items() if {"R", "G", "B"} <= found.keys()]
    ranks = [USUAL.index(last) if (last := p.rpartition(".")[2].lower()) in USUAL else 99 for p in coloured]
    try:
        frame = read_image(path)
    except FrameError as refused:
        assert ranks.count(min(ranks, default=0)) != 1, refused
        return
    taken = colours(frame)
    fits = [p for p in coloured if all(v in where[p][c] for v, c in zip(taken, "RGB", strict=True))]
    if not coloured:
        assert taken[0] == taken[1] == taken[2] and any(taken[0] in found.get("Y", []) for found in where.values())
    else:
        assert fits
        if frame.alpha is not None:
            assert int(frame.alpha.mean()) in where[fits[0]]["A"]
        if "" in coloured:
            assert fits == [""]


# --- orientation and gamma -----------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_upright_as_viewers_show_it(tmp_path, orientation, suffix):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)).resize((48, 32), 0)
    exif = image.getexif()
    exif[274] = orientation
    path = tmp_path / f"o{suffix}"
    image.save(path, exif=exif, **({"quality": 100, "subsampling": 0} if suffix == ".jpg" else {}))
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    found = read_image(path).rgb[0].permute(1, 2, 0).mul(255).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2


def png_with(path, gamma=None, srgb=False):
    """A grey of 0.5 with a gAMA of gamma / 100000, and perhaps an sRGB chunk, put in by hand."""
    Image.new("RGB", (4, 3), (128, 128, 128)).save(path)
    data = path.read_bytes()

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    more = (chunk(b"sRGB", b"\0") if srgb else b"") + (chunk(b"gAMA", struct.pack(">I", gamma)) if gamma else b"")
    path.write_bytes(data[:33] + more + data[33:])  # behind the header
    return path


@pytest.mark.parametrize(
    ("gamma", "srgb", "state", "value", "said"),
    [
        (None, False, "srgb", 128 / 255, False),
        (45455, False, "srgb", 128 / 255, False),  # how PNG says sRGB without its chunk
        (45455, True, "srgb", 128 / 255, False),
        (100000, True, "srgb", 128 / 255, False),  # the sRGB chunk wins
        (100000, False, "linear", 128 / 255, True),
        (55556, False, "srgb", 1.055 * ((128 / 255) ** 1.8) ** (1 / 2.4) - 0.055, True),  # light, then IEC 61966-2-1
    ],
)
def test_gamma_of_a_png(tmp_path, gamma, srgb, state, value, said):
    frame = read_image(png_with(tmp_path / "g.png", gamma, srgb))
    assert frame.colour == state and bool(frame.notes) == said
    assert float(frame.rgb.mean()) == pytest.approx(value, abs=1e-4)


def test_a_colour_profile_is_said_unless_it_is_srgb(tmp_path):
    image = Image.new("RGB", (4, 3))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "s.jpg", icc_profile=srgb)
    image.save(tmp_path / "p.jpg", icc_profile=srgb.replace(b"s\0R\0G\0B", b"w\0i\0d\0e").replace(b"sRGB", b"wide"))
    assert read_image(tmp_path / "s.jpg").notes == ()
    (note,) = read_image(tmp_path / "p.jpg").notes
    assert "colour profile" in note and "taken as sRGB" in note


def test_a_float_tiff_is_said_to_be_codes(tmp_path):
    tifffile.imwrite(tmp_path / "f.tif", np.full((4, 5, 3), 1.5, np.float32), photometric="rgb")
    frame = read_image(tmp_path / "f.tif")
    assert frame.rgb.max() == 1.5 and "sRGB codes" in frame.notes[0]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32])
def test_white_may_be_zero(tmp_path, kind):
    codes = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (4, 5), dtype=kind)
    tifffile.imwrite(tmp_path / "w.tif", codes, photometric="miniswhite")
    expected = 1 - codes.astype(np.float64) / np.iinfo(kind).max
    np.testing.assert_allclose(read_image(tmp_path / "w.tif").rgb[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_without_its_end_is_refused(tmp_path, progressive):
    rng, path = np.random.default_rng(0), tmp_path / "p.jpg"
    thumbnail = Image.new("RGB", (8, 8))
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    thumbnail.save(tmp_path / "t.jpg")
    exif = Image.Exif()
    exif[0x927C] = (tmp_path / "t.jpg").read_bytes()  # a whole JPEG inside, as cameras put one
    image.save(path, progressive=progressive, quality=95, exif=exif)
    whole = path.read_bytes()
    assert read_image(path).rgb.shape == (1, 3, 64, 64)
    path.write_bytes(whole + b"a film, as telephones append one \xff\xda and so on")
    assert read_image(path).rgb.shape == (1, 3, 64, 64)
    for share in np.linspace(0.2, 0.99, 12):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(FrameError, match=r"p\.jpg"):
            read_image(path)


def test_pages_are_said(tmp_path):
    tifffile.imwrite(tmp_path / "p.tif", np.zeros((3, 4, 5), np.uint16), photometric="minisblack")
    assert "first page" in read_image(tmp_path / "p.tif").notes[0]


def test_the_content_decides_on_the_format(tmp_path):
    exr(tmp_path / "x.exr", "RGB", flat(4, 5, 6)).rename(tmp_path / "x.png")
    frame = read_image(tmp_path / "x.png")
    assert colours(frame) == [4, 5, 6] and frame.colour == "linear"


# --- what is written -----------------------------------------------------------------------------------


def test_highlights_beyond_half_float_are_its_largest_number(tmp_path):
    pixels = (
        torch.tensor([1e5, -1e9, 65504, 65519.9, float("inf"), float("nan")]).reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    )
    write_image(tmp_path / "h.exr", pixels)
    found = read_image(tmp_path / "h.exr").rgb[0, 0, 0]
    assert found[:4].tolist() == [65504, -65504, 65504, 65504] and found[4].isinf() and found[5].isnan()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".exr"])
def test_premultiplied_colours_are_stored_as_they_come(tmp_path, suffix):
    pixels = torch.tensor([0.25, 0.125, 0.0, 0.5]).reshape(1, 4, 1, 1).expand(1, 4, 3, 3)
    write_image(tmp_path / f"p{suffix}", pixels, premultiplied=True)
    frame = read_image(tmp_path / f"p{suffix}")
    torch.testing.assert_close(torch.cat([frame.rgb, frame.alpha], 1), pixels, atol=1e-5, rtol=0)
    if suffix == ".png":
        assert oiio.ImageBuf(str(tmp_path / "p.png")).spec().alpha_channel == 3


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(I2IError, match=r"x\.jpg: expected 1 or 3 channels"):
        write_image(tmp_path / "x.jpg", torch.rand(1, 4, 3, 3))
    with pytest.raises(FrameError, match=r"x\.png: expected finite pixels"):
        write_image(tmp_path / "x.png", torch.full((1, 3, 3, 3), float("nan")))
    with pytest.raises(I2IError, match="shape"):
        write_image(tmp_path / "x.png", torch.zeros(1, 3, 0, 3))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FrameError, match=r"folder\.png: expected a file to write, got a folder"):
        write_image(tmp_path / "folder.png", torch.zeros(1, 3, 4, 4))
    assert len(list(tmp_path.iterdir())) == 1


# --- any picture ----------------------------------------------------------------------------------------


@given(
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 8),
    st.integers(0, 2**31),
)
@FIXED
def test_any_picture_of_pillow(tmp_path_factory, mode, size, orientation, seed):
    path = tmp_path_factory.mktemp("p") / "p.png"
    codes = np.random.default_rng(seed).integers(0, 65536, (size[1], size[0], 4), dtype=np.uint16)
    if mode == "I;16":
        image = Image.fromarray(codes[..., 0])
    else:
        image = Image.fromarray((codes >> 8).astype(np.uint8)[..., : 4 if "A" in mode else 3]).convert(mode)
    exif = image.getexif()
    exif[274] = orientation
    image.save(path, exif=exif)
    with Image.open(path) as stored:
        shown = ImageOps.exif_transpose(stored)
        if mode == "I;16":
            expected = np.repeat(np.asarray(shown).astype(np.uint16)[..., None], 3, 2) / 65535
        else:
            expected = np.asarray(shown.convert("RGB")) / 255
        alpha = np.asarray(shown.convert("RGBA"))[..., 3] / 255 if "A" in mode else None
    frame = read_image(path)
    np.testing.assert_allclose(frame.rgb[0].permute(1, 2, 0), expected, atol=1e-6)
    if alpha is None:
        assert frame.alpha is None
    else:
        np.testing.assert_allclose(frame.alpha[0, 0], alpha, atol=1e-6)


@given(
    st.sampled_from([(".png", 8), (".png", 16), (".tif", 8), (".tif", 16), (".exr", 16)]),
    st.sampled_from([1, 3, 4]),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.booleans(),
    st.integers(0, 2**31),
)
@FIXED
def test_what_is_written_is_read(tmp_path_factory, kind, channels, size, premultiplied, seed):
    suffix, bits = kind
    pixels = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(seed))
    path = tmp_path_factory.mktemp("w") / f"w{suffix}"
    write_image(path, pixels, bits=bits, premultiplied=premultiplied)
    frame = read_image(path)
    found = (
        frame.rgb if channels == 3 else frame.rgb[:, :1] if channels == 1 else torch.cat([frame.rgb, frame.alpha], 1)
    )
    step = 2**-11 if suffix == ".exr" else 0.5 / (2**bits - 1) + 1e-7
    assert (found - pixels).abs().max() <= step and frame.colour == ("linear" if suffix == ".exr" else "srgb")


@given(st.sampled_from([".png", ".jpg", ".tif", ".exr"]), st.integers(0, 2**31))
@FIXED
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, suffix, seed):
    """Never a crash and never an error of another kind, wherever the damage is."""
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("d") / f"d{suffix}"
    write_image(path, torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(seed)))
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        data = data[: rng.integers(0, len(data))]
    for at in rng.integers(0, max(len(data), 1), rng.integers(1, 6)):
        if at < len(data):
            data[at] = rng.integers(0, 256)
    path.write_bytes(data)
    try:
        assert read_image(path).rgb.shape[:2] == (1, 3)
    except FrameError as refused:
        assert path.name in str(refused)


def test_every_bit_depth_of_integers_reaches_one(tmp_path):
    for kind, sign in itertools.product((8, 16, 32), "ui"):
        dtype = np.dtype(f"{sign}{kind // 8}")
        tifffile.imwrite(tmp_path / "d.tif", np.full((2, 2, 3), np.iinfo(dtype).max, dtype), photometric="rgb")
        assert read_image(tmp_path / "d.tif").rgb.unique().tolist() == [1], dtype
