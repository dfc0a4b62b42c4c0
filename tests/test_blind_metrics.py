"""BRISQUE against MATLAB's published scores and piq's features; its model is read as libsvm writes it."""

import csv
import sys

import numpy as np
import pytest
import torch
from conftest import shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from i2ilib import I2IError, IntegrityError, metrics, runtime
from i2ilib.runtime import require

require("torchvision")
piq = require("piq")
peer = sys.modules["piq.brisque"]  # the name piq.brisque is a function


def picture(name):
    with Image.open(shared(f"data/metrics/{name}")) as image:
        pixels = torch.from_numpy(np.array(image)).float()
    return pixels if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def goldens():
    with open(shared("data/metrics/metric_goldens.csv"), encoding="utf-8") as file:
        return {row["dist"]: row for row in csv.DictReader(file) if row["metric"] == "brisque"}


MODEL = """svm_type epsilon_svr
kernel_type rbf
gamma 0.05
nr_class 2
total_sv 3
rho -50.5
probA 5.7
SV
"""


@pytest.fixture
def small(tmp_path):
    """A folder with a model of three vectors, lines ending as in Windows; some zeros are left out, as libsvm does."""
    rng = np.random.default_rng(0)
    vectors, weights = rng.uniform(-1, 1, (3, 36)), (7.0, -3.0, 40.0)
    vectors[1, ::4] = 0
    rows = [
        f"{weight} " + "".join(f"{i + 1}:{v!r} " for i, v in enumerate(map(float, vector)) if v)
        for weight, vector in zip(weights, vectors, strict=True)
    ]
    ranges = ["x", "-1 1", *(f"{i + 1} {-1 - 0.01 * i} {2 + 0.01 * i}" for i in range(36))]
    for name, lines in (("allmodel", MODEL.splitlines() + rows), ("allrange", ranges)):
        (tmp_path / name).write_bytes("".join(f"{line}\r\n" for line in lines).encode())
    low, high = -1 - 0.01 * np.arange(36), 2 + 0.01 * np.arange(36)

    def svm(features):
        scaled = -1 + 2 * (features - low) / (high - low)
        kernel = [np.exp(-0.05 * sum((a - b) ** 2 for a, b in zip(v, scaled, strict=True))) for v in vectors]
        return sum(k * w for k, w in zip(kernel, weights, strict=True)) + 50.5

    return tmp_path, svm


def peers_features(grey):
    """piq's statistics at both scales; half the size rounded up, as MATLAB's imresize."""
    x = grey[None, None].double()
    half = piq.functional.imresize(x, scale=0.5)
    return torch.cat([peer._natural_scene_statistics(x), peer._natural_scene_statistics(half)], -1)[0].numpy()


def noise(seed, height, width, *, channels=1):
    """8-bit codes: noise over a slope, so that neighbours resemble each other a little."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 100, height)[:, None] + np.linspace(0, 60, width)
    return torch.from_numpy((rng.integers(0, 90, (channels, height, width)) + slope).round()).float()


# --- scores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["goldhill.gif", "I01.BMP"])
def test_matlabs_published_scores(name):
    expected = float(goldens()[name]["value"])
    found = metrics.brisque(picture(name), value_range=255, model=shared("data/brisque"))
    assert found == pytest.approx(expected, rel=1e-4)
    assert metrics.brisque(picture(name) / 255, value_range=1.0, model=shared("data/brisque")) == pytest.approx(found)


@pytest.mark.parametrize("name", ["i01_01_5.bmp", "goldhill_jpeg.gif"])  # the second has even areas
def test_other_implementations_scores(name):
    row, image, model = goldens()[name], picture(name), shared("data/brisque")
    found = metrics.brisque(image, value_range=255, model=model)
    assert found == pytest.approx(float(row["value"]), abs=float(row["tolerance"]))
    for factor in (1 / 255, 1 / 3, 0.7, 3.0):
        assert metrics.brisque(image.double() * factor, value_range=255 * factor, model=model) == found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 999), height=st.integers(14, 50), width=st.integers(14, 50))
def test_any_size_is_piqs(small, seed, height, width):
    folder, svm = small
    grey = noise(seed, height, width)
    found = metrics.brisque(grey, value_range=255, model=folder)
    assert abs(found - 50.5) > 0.1  # what the model says of anything far from its vectors
    assert found == pytest.approx(svm(peers_features(grey[0])), abs=0.02)  # shapes are found in steps of 0.001


def test_rgb_becomes_rounded_grey(small):
    folder, svm = small
    rgb = noise(0, 30, 40, channels=3)
    grey = (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]).round()
    expected = pytest.approx(svm(peers_features(grey)), abs=0.05)  # a pixel may round to the other side
    assert metrics.brisque(rgb, value_range=255, model=folder) == expected
    assert metrics.brisque(grey, value_range=255, model=folder) == expected
    for other in (rgb[1], rgb.mean(0), rgb.flip(0)):
        assert metrics.brisque(other, value_range=255, model=folder) != expected


def test_images_of_a_batch_do_not_meet(small):
    batch = torch.stack([noise(seed, 30, 40) for seed in range(3)])
    each = [metrics.brisque(image, value_range=255, model=small[0]) for image in batch]
    found = metrics.brisque(batch, value_range=255, model=small[0], reduction="none")
    assert found.dtype == torch.float64 and found.tolist() == each and len(set(each)) == 3
    assert metrics.brisque(batch, value_range=255, model=small[0]) == pytest.approx(np.mean(each))
    assert metrics.brisque(batch.requires_grad_(), value_range=255, model=small[0]) == pytest.approx(np.mean(each))


# --- what cannot be scored ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(13, 40), "sides of 14 pixels or more, got 13×40"),
        (torch.rand(4, 20, 20), "one or three channels, got 4"),
        (torch.full((20, 20), 0.3), "a photograph, got one value everywhere"),
        (torch.stack([torch.rand(1, 20, 20), torch.ones(1, 20, 20)]), "one value everywhere"),
        (torch.zeros(20, 20).index_fill(0, torch.tensor([10]), 1), "an even or regular pattern"),
        (torch.full((20, 20), float("nan")), "values from 0 to 1"),
        (torch.rand(20, 20) * 255, "State value_range"),
        (torch.rand(20), r"\(N, C, H, W\)"),
    ],
)
def test_bad_images(small, image, message):
    with pytest.raises(I2IError, match=message):
        metrics.brisque(image, value_range=1.0, model=small[0])


def test_bad_options(small):
    with pytest.raises(I2IError, match="reduction: expected mean or none"):
        metrics.brisque(torch.rand(20, 20), value_range=1.0, model=small[0], reduction="sum")


def test_without_a_model_a_table_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "CACHE", tmp_path)
    found = metrics.score(torch.rand(2, 3, 20, 20), None, ["brisque"])["brisque"]
    assert str(found).startswith("not available: ") and "i2i fetch brisque_allmodel" in str(found)
    assert metrics.metric("brisque").takes == "picture" and metrics.metric("brisque").needs[1] in runtime.registry()


def test_the_fetched_model_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "CACHE", tmp_path)
    (tmp_path / "downloads").mkdir()
    for name in ("allmodel", "allrange"):
        content = shared(f"data/brisque/{name}").read_bytes()
        (tmp_path / "downloads" / f"brisque_{name}").write_bytes(content)
    image = noise(0, 40, 40)
    found = metrics.score(image[None] / 255, None, ["brisque"])["brisque"]
    assert found.values[0] == pytest.approx(metrics.brisque(image, value_range=255, model=shared("data/brisque")))
    (tmp_path / "downloads/brisque_allmodel").write_bytes(content)
    with pytest.raises(IntegrityError, match="i2i fetch brisque_allmodel"):
        metrics.brisque(image, value_range=255)
    found = metrics.score(image[None] / 255, None, ["brisque"])["brisque"]
    assert found.reason == "its weights have another checksum; i2i fetch brisque_allmodel"


def test_a_folder_without_a_model(small):
    (small[0] / "allrange").unlink()
    with pytest.raises(I2IError, match=r"model: expected a folder with allmodel and allrange, got none at .*allrange"):
        metrics.brisque(torch.rand(20, 20), value_range=1.0, model=small[0])


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("allmodel", "epsilon_svr", "c_svc", "c_svc rbf"),
        ("allmodel", "rbf", "linear", "epsilon_svr linear"),
        ("allmodel", "total_sv 3", "total_sv 4", "3 support vectors of 4"),
        ("allmodel", "gamma", "gamut", "gamma"),
        ("allmodel", " 36:", " 37:", "36 is out of bounds"),
        ("allmodel", "-3.0 ", "-3.x ", "could not convert"),
        ("allrange", "-1 1", "0 1", "scaling to"),
        ("allrange", "\n36 ", "\n37 ", "features"),
        ("allrange", "\n36 ", "\n36 é", "ascii"),
        ("allrange", "x\r\n-1 1\r\n", "", "scaling to"),
    ],
)
def test_a_model_of_another_kind(small, name, old, new, message):
    path = small[0] / name
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new).encode())
    with pytest.raises(IntegrityError, match=f"{name}: expected BRISQUE's model in libsvm's text form.*{message}"):
        metrics.brisque(torch.rand(20, 20), value_range=1.0, model=small[0])
