"""Order and names of frames, on names that people and programs give."""

from pathlib import PurePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2ilib.frames.names import natural, numbers, unique

FIXED = settings(derandomize=True, deadline=None)
words = st.text(st.sampled_from("abAB01._- ①٣é"), max_size=8)


@pytest.mark.parametrize(
    "played",
    [
        ["f1.png", "f2.png", "f10.png"],
        ["s.-0002.exr", "s.-0001.exr", "s.0000.exr", "s.0001.exr"],
        ["-2.png", "-1.png", "0.png", "1.png"],
        ["a_-3.png", "a_-2.png", "a_4.png"],
        ["shot-0001.png", "shot-0002.png", "shot-0010.png"],  # a dash between words and numbers is no minus
        ["2024-01-02.png", "2024-01-10.png", "2024-02-01.png"],
        ["A1.png", "a2.png", "A3.png"],
        ["①1.png", "①2.png"],  # a digit that is no number
    ],
)
def test_frames_play_in_the_order_of_their_numbers(played):
    assert sorted(reversed(played), key=natural) == played


@given(st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=20, unique=True), st.booleans())
@FIXED
def test_any_numbers_are_in_order(frames, padded):
    shown = [f"shot.{n:05d}.exr" if padded else f"shot.{n}.exr" for n in frames]
    assert sorted(shown, key=natural) == [name for _, name in sorted(zip(frames, shown, strict=True))]
    assert [numbers(PurePath(name).stem) for name in shown] == [(n,) for n in frames]


@given(st.lists(words, max_size=12, unique=True))
@FIXED
def test_any_names_have_one_order(names):
    assert sorted(names, key=natural) == sorted(names[::-1], key=natural)


@pytest.mark.parametrize(
    ("stem", "expected"),
    [("0012", (12,)), ("take2_0007", (2, 7)), ("x.-3", (-3,)), ("x-3", (3,)), ("plate", ()), ("①", ())],
)
def test_the_numbers_of_a_name(stem, expected):
    assert numbers(stem) == expected


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.png", "b.jpg"], ["a", "b"]),
        (["a.png", "a.jpg", "a_png.tif"], ["a_png_2", "a_jpg", "a_png"]),
        (["a.png", "a.exr", "a_png.png"], ["a_png_2", "a_exr", "a_png"]),
        (["A.png", "a.jpg"], ["A_png", "a_jpg"]),  # one file on macOS and Windows
        (["x.png", "x_png.png", "x_png.jpg", "x.jpg"], ["x_png", "x_png_png", "x_png_jpg", "x_jpg"]),
    ],
)
def test_names_that_would_collide(files, names):
    assert list(unique([PurePath(f) for f in files])) == names


@given(
    st.lists(st.tuples(words.filter(lambda w: w.strip(". ")), st.sampled_from([".png", ".jpg", ".EXR"])), unique=True)
)
@FIXED
def test_names_are_unique_whatever_the_files_are_called(files):
    paths = [PurePath(f"x{stem}{suffix}") for stem, suffix in files]
    names = unique(paths)
    assert len({name.casefold() for name in names}) == len(paths) and all(names)
