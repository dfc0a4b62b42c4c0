"""LPIPS, DISTS and LPIPS-Comp against the packages that define them and the printed formulas, with drawn weights.

The true weights are downloads; where they are here, the published scores are met too.
"""

import hashlib
import json
import socket
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from i2ilib import I2IError, IntegrityError, UnavailableError, metrics, runtime
from i2ilib.cli import main
from i2ilib.comparison.thesis import thesis_tables
from i2ilib.metrics import deep
from i2ilib.runtime import require

torchvision, lpips, piq = (require(name) for name in ("torchvision", "lpips", "piq"))

TRUNKS = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg16_bn": "vgg16_bn-6c64b313.pth",
}
NETS = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}
CHANNELS = (64, 128, 256, 512, 512)


def draw(architecture, seed=0):
    """torchvision's convolutional layers with weights of a scale that keeps signals alive, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):  # the classifier would take half a gigabyte
        features = getattr(torchvision.models, architecture)(weights=None).features
    features = features.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, value in features.state_dict().items():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.1)
            if value.ndim == 4:
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
            elif "running_var" in name or (value.ndim == 1 and architecture == "vgg16_bn" and "weight" in name):
                value.add_(0.5)
    return features


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Networks by architecture, a folder that holds them as torchvision's files do, and entries for the registry."""
    folder, networks = tmp_path_factory.mktemp("cache") / "downloads", {}
    folder.mkdir()
    for architecture, name in TRUNKS.items():
        networks[architecture] = draw(architecture)
        state = {"features." + key: value for key, value in networks[architecture].state_dict().items()}
        state = {key: value for key, value in state.items() if "num_batches" not in key}  # as files of that age
        zipped = architecture != "alexnet"  # some of the true files are in torch's older form
        torch.save(
            state | {"classifier.6.bias": torch.zeros(1000)}, folder / name, _use_new_zipfile_serialization=zipped
        )
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(2, 1, 3 + sum(CHANNELS), 1, 1, generator=generator)
    torch.save(dict(zip(("alpha", "beta"), weights / weights.sum(), strict=True)), folder / "dists_weights.pt")
    entries = runtime.registry()
    known = {path.name: entries[path.name] | {"sha256": digest(path)} for path in folder.iterdir()}
    return SimpleNamespace(folder=folder, networks=networks, entries=entries | known)


@pytest.fixture
def here(drawn, monkeypatch):
    """The drawn weights pass for the registered ones; nothing reaches a network."""
    monkeypatch.setattr(runtime, "registry", lambda: drawn.entries)
    monkeypatch.setattr(runtime, "CACHE", drawn.folder.parent)
    return drawn.networks


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """The true registry, and caches of ours and of PyTorch's that hold nothing."""
    monkeypatch.setattr(runtime, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a metric went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(2)
    target = torch.rand(2, 3, 33, 40, generator=generator)
    return (target + 0.2 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """Linear weights as a user would keep them."""
    generator = torch.Generator().manual_seed(3)
    tensors = {f"lin{i}": torch.rand(c, generator=generator) for i, c in enumerate(CHANNELS)}
    path = tmp_path_factory.mktemp("linear") / "mine.safetensors"
    safetensors.torch.save_file(tensors, path)
    return path, tensors


def of(metric, linear):
    """A metric by name, with all that it needs beside the images."""
    if metric == "lpips_comp":
        return lambda *images, **more: metrics.lpips_comp(*images, linear=linear[0], **{"value_range": 1.0} | more)
    net = metric.removeprefix("lpips_")
    function = (metrics.dists, {}) if metric == "dists" else (metrics.lpips, {"net": net})
    return lambda *images, **more: function[0](*images, **{"value_range": 1.0} | function[1] | more)


EVERY = pytest.mark.parametrize("metric", ["lpips_alex", "lpips_squeeze", "lpips_comp", "dists"])


# --- against others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_lpips_is_the_packages(here, pair, net, spatial):
    trunk = SimpleNamespace(features=here[NETS[net]])
    with mock.patch.object(lpips.pretrained_networks.tv, NETS[net], lambda pretrained: trunk):
        peer = lpips.LPIPS(net=net, spatial=spatial, pnet_rand=True, verbose=False)
    with torch.no_grad():
        expected = peer(*pair, normalize=True).mean((1, 2, 3))
    found = metrics.lpips(*pair, value_range=1.0, net=net, spatial=spatial, reduction="none")
    assert expected.min() > 1e-3 and torch.allclose(found, expected, rtol=0, atol=1e-6)


def piq_dists(features, folder):
    weights = torch.load(folder / "dists_weights.pt", weights_only=True)
    with (
        mock.patch("torch.hub.load_state_dict_from_url", lambda *_, **__: weights),
        mock.patch.object(piq.perceptual, "vgg16", lambda **_: SimpleNamespace(features=features)),
    ):
        return piq.DISTS(reduction="none")


@pytest.mark.parametrize("size", [(33, 40), (5, 9)])
def test_dists_is_piqs(here, drawn, size):
    pred, target = torch.rand(2, 2, 3, *size, generator=torch.Generator().manual_seed(4)).double()
    expected = piq_dists(draw("vgg16").double(), drawn.folder)(pred, target)  # layers of its own: it replaces some
    found = metrics.dists(pred, target, value_range=1.0, reduction="none")
    # piq's mean and deviation of the colours are in single precision
    assert found.dtype == torch.float64 and torch.allclose(found, expected, rtol=0, atol=1e-7)


def test_dists_shrinks_large_images_as_piq_does(here, drawn, monkeypatch):
    whole = torchvision.models.vgg16

    def coarse(**options):  # the same weights, fewer pixels behind the first layer
        network = whole(**options)
        network.features[0].stride = (8, 8)
        return network

    monkeypatch.setattr(torchvision.models, "vgg16", coarse)
    monkeypatch.setattr(deep, "dists_network", deep.dists_network.__wrapped__)  # not kept for other tests
    pred, target = torch.rand(2, 1, 3, 400, 420, generator=torch.Generator().manual_seed(6))
    expected = piq_dists(draw("vgg16"), drawn.folder)(pred, target).item()
    assert metrics.dists(pred, target, value_range=1.0) == pytest.approx(expected, abs=1e-5)
    assert abs(metrics.dists(pred, target, value_range=1.0, resize=False) - expected) > 1e-3


def l2_pooled(x):
    """As printed: squares, weighted by the Hann window's inner values, at every second pixel; then the root."""
    window = np.hanning(5)[1:-1, None] * np.hanning(5)[1:-1]
    padded = np.pad(x**2, ((0, 0), (1, 1), (1, 1)))
    height, width = ((side + 1) // 2 for side in x.shape[1:])
    out = np.empty((len(x), height, width))
    for i in range(height):
        for j in range(width):
            out[:, i, j] = (padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * window).sum((1, 2))
    return np.sqrt(out / window.sum() + 1e-12)


def test_dists_is_the_printed_formula(here, drawn):
    layers, weights = here["vgg16"], torch.load(drawn.folder / "dists_weights.pt", weights_only=True)
    pred, target = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(5)).double()

    def channels(image):
        found, x = list(image.numpy()), image - torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        x = (x / torch.tensor([0.229, 0.224, 0.225])[:, None, None])[None]
        for layer in layers[:-1]:
            if isinstance(layer, torch.nn.MaxPool2d):
                found += list(x[0].numpy())
                x = torch.from_numpy(l2_pooled(x[0].numpy()))[None]
            elif isinstance(layer, torch.nn.Conv2d):
                x = torch.nn.functional.conv2d(x, layer.weight.double(), layer.bias.double(), padding=1)
            else:
                x = x.relu()
        return found + list(x[0].numpy())

    with torch.no_grad():
        both = list(zip(channels(pred), channels(target), strict=True))
    total = 0.0
    for (x, y), alpha, beta in zip(both, weights["alpha"].flatten(), weights["beta"].flatten(), strict=True):
        texture = (2 * x.mean() * y.mean() + 1e-6) / (x.mean() ** 2 + y.mean() ** 2 + 1e-6)
        covariance = ((x - x.mean()) * (y - y.mean())).mean()
        structure = (2 * covariance + 1e-6) / (x.var() + y.var() + 1e-6)
        total += float(alpha) * texture + float(beta) * structure
    assert len(both) == 1475
    assert metrics.dists(pred, target, value_range=1.0) == pytest.approx(1 - total, abs=1e-7)


def test_lpips_comp_is_the_printed_formula(here, pair, linear):
    layers, ends = here["vgg16_bn"], (5, 12, 22, 32, 42)

    def activations(images):
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
        x, found = (images - mean) / deviation, []
        for i, layer in enumerate(layers):
            x = layer(x.clone())
            if i in ends:
                assert isinstance(layer, torch.nn.ReLU) and isinstance(layers[i + 1], torch.nn.MaxPool2d)
                found.append((x / x.norm(dim=1, keepdim=True)).numpy())
        return found

    with torch.no_grad():
        both = zip(activations(pair[0]), activations(pair[1]), strict=True)
    expected = np.zeros(2)
    for (z, other), w in zip(both, linear[1].values(), strict=True):
        scaled = np.sqrt(w.numpy())[:, None, None] * (z - other)
        expected += np.square(scaled).sum(1).mean((1, 2))
    found = metrics.lpips_comp(*pair, value_range=1.0, linear=linear[0], reduction="none")
    assert expected.min() > 0.01 and found.numpy() == pytest.approx(expected, rel=1e-4)


# --- what holds for all --------------------------------------------------------------------------------


@EVERY
def test_equal_images_are_0_apart(here, pair, linear, metric):
    score = of(metric, linear)
    assert score(pair[0], pair[0]) == 0
    assert 0 < score(*pair) < score(1 - pair[1], pair[1])
    assert score(*pair) == pytest.approx(score(*reversed(pair)), rel=1e-5)


@EVERY
def test_the_value_range_is_taken_out(here, pair, linear, metric):
    score = of(metric, linear)
    assert score(pair[0] * 255, pair[1] * 255, value_range=255) == pytest.approx(score(*pair), rel=1e-4)


@EVERY
def test_images_of_a_batch_do_not_meet(here, pair, linear, metric):
    score = of(metric, linear)
    each = [score(p, t) for p, t in zip(*pair, strict=True)]
    assert score(*pair, reduction="none").tolist() == pytest.approx(each, rel=1e-4)
    assert score(*pair) == pytest.approx(np.mean(each), rel=1e-4)


@EVERY
def test_grey_is_repeated(here, pair, linear, metric):
    score, grey = of(metric, linear), [image[:1, :1] for image in pair]
    expected = score(*(image.expand(-1, 3, -1, -1) for image in grey))
    assert score(*grey) == score(*(image[0, 0] for image in grey)) == expected


@EVERY
def test_gradients_reach_the_image_alone(here, pair, linear, metric):
    pred = pair[0].clone().requires_grad_()
    score = of(metric, linear)(pred, pair[1])
    score.backward()
    assert score.shape == () and pred.grad.isfinite().all() and pred.grad.abs().amax((1, 2, 3)).min() > 0
    stepped = (pred - 0.01 * pred.grad / pred.grad.abs().max()).detach().clamp(0, 1)
    assert of(metric, linear)(stepped, pair[1]) < score.item()


@EVERY
def test_precisions(here, pair, linear, metric):
    score = of(metric, linear)
    double, single = score(pair[0].double(), pair[1], reduction="none"), score(*pair, reduction="none")
    assert double.dtype == torch.float64 and double.tolist() == pytest.approx(single.tolist(), rel=1e-3)
    half = [image.half() for image in pair]
    assert score(*half) == pytest.approx(score(*(image.float() for image in half)))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 99), height=st.integers(31, 48), width=st.integers(31, 48), n=st.integers(1, 3))
def test_any_size_is_scored(here, seed, height, width, n):
    pred, target = torch.rand(2, n, 3, height, width, generator=torch.Generator().manual_seed(seed))
    for score in (metrics.lpips, metrics.dists):
        found = score(pred, target, value_range=1.0, reduction="none")
        assert found.shape == (n,) and (found > 0).all() and found.isfinite().all()


def test_a_network_is_built_once_for_a_file(here, drawn, pair, monkeypatch, tmp_path):
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: (read.append(path), load(path, **options))[1])
    name = TRUNKS["squeezenet1_1"]
    (tmp_path / "downloads").mkdir()
    path = tmp_path / "downloads" / name
    path.write_bytes((drawn.folder / name).read_bytes())
    monkeypatch.setattr(runtime, "CACHE", tmp_path)
    first = metrics.lpips(*pair, value_range=1.0, net="squeeze")
    assert metrics.lpips(*pair, value_range=1.0, net="squeeze") == first and read.count(str(path)) == 1
    other = {"features." + key: value for key, value in draw("squeezenet1_1", seed=9).state_dict().items()}
    torch.save(other, path)
    with pytest.raises(IntegrityError):  # although the network is still in memory
        metrics.lpips(*pair, value_range=1.0, net="squeeze")
    entries = runtime.registry()
    monkeypatch.setattr(runtime, "registry", lambda: {name: entries[name] | {"sha256": digest(path)}})
    assert metrics.lpips(*pair, value_range=1.0, net="squeeze") != first and read.count(str(path)) == 2


def test_nothing_is_printed(here, pair, linear, capfd, recwarn):
    metrics.lpips(*pair, value_range=1.0, spatial=True)
    metrics.lpips_comp(*pair, value_range=1.0, linear=linear[0])
    metrics.dists(*pair, value_range=1.0)
    assert capfd.readouterr() == ("", "") and not recwarn.list


# --- what cannot be scored ---------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        (torch.zeros(3, 40, 40), torch.zeros(3, 40, 41), "one shape"),
        (torch.zeros(4, 40, 40), torch.zeros(4, 40, 40), "images: expected one or three channels, got 4"),
        (torch.full((3, 40, 40), 1.1), torch.zeros(3, 40, 40), "pred: expected values from 0 to 1"),
        (torch.zeros(40), torch.zeros(40), r"\(N, C, H, W\)"),
    ],
)
def test_bad_images(linear, metric, pred, target, message):
    with pytest.raises(I2IError, match=message):
        of(metric, linear)(pred, target)


@pytest.mark.parametrize(("net", "smallest"), [("alex", 31), ("squeeze", 17), ("vgg", 16)])
def test_the_smallest_image(here, net, smallest):
    pred, target = torch.rand(2, 3, smallest, 64)
    assert metrics.lpips(pred, target, value_range=1.0, net=net) > 0
    with pytest.raises(I2IError, match=f"images: expected sides of {smallest} pixels or more, got {smallest - 1}×64"):
        metrics.lpips(pred[:, 1:], target[:, 1:], value_range=1.0, net=net)


def test_bad_options(here, pair):
    with pytest.raises(I2IError, match="net: expected alex or vgg or squeeze, got 'resnet'"):
        metrics.lpips(*pair, value_range=1.0, net="resnet")
    with pytest.raises(I2IError, match="reduction: expected mean or none"):
        metrics.lpips(*pair, value_range=1.0, reduction="sum")


NEEDED = {
    "lpips_alex": "i2i fetch alexnet-owt-7be5be79.pth",
    "lpips_vgg": "i2i fetch vgg16-397923af.pth",
    "lpips_squeeze": "i2i fetch squeezenet1_1-b8a52dc0.pth",
    "dists": "i2i fetch vgg16-397923af.pth",
    "lpips_comp": "not published",
}


def test_without_weights_a_table_says_how_to_get_them(empty, pair):
    found = metrics.score(*pair, [*NEEDED, "mse"])
    for name, words in NEEDED.items():
        assert str(found[name]).startswith("not available: ") and words in str(found[name]), name
        assert found[name].values == () and set(found[name].metric.needs) <= set(runtime.registry())
    assert found["mse"].values


def test_lpips_comp_by_name_with_a_file_of_ones_own(here, pair, linear, tmp_path, capsys):
    for name, image in zip(("d", "r"), pair, strict=True):
        (tmp_path / name).mkdir()
        for i in range(2):
            pixels = (image[i] * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    stored = [(image * 255).round() / 255 for image in pair]
    expected = metrics.lpips_comp(*stored, value_range=1.0, linear=linear[0], reduction="none").tolist()
    chosen = ["compare", str(tmp_path / "r"), str(tmp_path / "d"), "--metrics", "psnr,lpips_comp", "--json"]
    assert main([*chosen, "--lpips-comp", str(linear[0]), "--keep", str(tmp_path / "kept")]) == 0
    told = json.loads(capsys.readouterr().out)["candidates"][0]["scores"]["lpips_comp"]
    assert told["mean"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert told["metric"]["settings"]["linear"] == str(linear[0])
    assert main([*chosen, "--lpips-comp", str(linear[0]), "--keep", str(tmp_path / "kept")]) == 0
    assert json.loads(capsys.readouterr().out)["candidates"][0]["scores"]["lpips_comp"] == told
    tables = thesis_tables(stored[1], {"ours": stored[0]}, lpips_comp=linear[0])
    assert tables["perceptual"].loc["ours", "LPIPS-Comp ↓"].startswith(f"{np.mean(expected):.3f}")
    assert main([*chosen, "--lpips-comp", str(tmp_path / "none")]) == 2
    assert "--lpips-comp: expected a file, got none at" in capsys.readouterr().err
    chosen[4] = "psnr"
    assert main([*chosen, "--lpips-comp", str(linear[0])]) == 2
    assert "expected lpips_comp among --metrics, got psnr" in capsys.readouterr().err


def test_lpips_comp_needs_its_trunk_too(empty, pair, linear):
    with pytest.raises(UnavailableError, match=r"i2i fetch vgg16_bn-6c64b313\.pth"):
        metrics.lpips_comp(*pair, value_range=1.0, linear=linear[0])


@pytest.mark.parametrize("place", ["cache/downloads", "torch/hub/checkpoints"])
def test_a_network_of_the_right_name_alone_is_refused(empty, drawn, pair, place):
    (empty / place).mkdir(parents=True)
    name = TRUNKS["alexnet"]
    (empty / place / name).write_bytes((drawn.folder / name).read_bytes())
    with pytest.raises(IntegrityError, match=r"SHA-256 7be5be791159472b.* i2i fetch alexnet-owt-7be5be79\.pth"):
        metrics.lpips(*pair, value_range=1.0)
    told = metrics.score(*pair, ["lpips_alex"])["lpips_alex"]
    assert not told.values and told.reason == f"its weights have another checksum; i2i fetch {name}"


def test_other_linear_weights_in_the_package_are_refused(here, pair, tmp_path, monkeypatch):
    (tmp_path / "weights/v0.1").mkdir(parents=True)
    torch.save({f"lin{i}.model.1.weight": torch.ones(1, c, 1, 1) for i, c in enumerate((64, 192, 384, 256, 256))},
               tmp_path / "weights/v0.1/alex.pth")  # fmt: skip
    monkeypatch.setattr(lpips, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(IntegrityError, match=r"SHA-256 df73285e.*Install lpips 0\.1\.4 again"):
        metrics.lpips(*pair, value_range=1.0)


# --- files that the user names -------------------------------------------------------------------------------


def test_every_form_of_a_users_files_counts(here, drawn, pair, linear, tmp_path):
    expected = metrics.lpips_comp(*pair, value_range=1.0, linear=linear[0])
    named = {f"{name}.model.1.weight": value.reshape(1, -1, 1, 1) for name, value in linear[1].items()}
    torch.save(named, tmp_path / "linear.pth")
    safetensors.torch.save_file(
        torch.load(drawn.folder / TRUNKS["vgg16_bn"], weights_only=True), tmp_path / "t.safetensors"
    )
    for more in ({}, {"trunk": tmp_path / "t.safetensors"}, {"trunk": str(drawn.folder / TRUNKS["vgg16_bn"])}):
        assert metrics.lpips_comp(*pair, value_range=1.0, linear=tmp_path / "linear.pth", **more) == expected


def spoiled(tensors, path, kind):
    if kind == "less":
        del tensors["lin3"]
    elif kind == "short":
        tensors["lin3"] = tensors["lin3"][1:]
    elif kind == "negative":
        tensors["lin3"][7] = -1e-3
    torch.save({"state": tensors} if kind == "nested" else [*tensors] if kind == "list" else tensors, path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "code":
        torch.save({"lin0": np.random.default_rng}, path)
    elif kind == "none":
        path.unlink()


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("less", I2IError, "lin3 of 512 numbers, none negative, got none"),
        ("short", I2IError, r"lin3 of 512 numbers, none negative, got shape \(511,\)"),
        ("negative", I2IError, "smallest -0.001"),
        ("nested", IntegrityError, "tensors by name, got other objects"),
        ("list", IntegrityError, "tensors by name, got other objects"),
        ("cut", IntegrityError, "tensors by name"),
        ("code", IntegrityError, "tensors by name"),
        ("none", I2IError, "linear: expected a file, got none at"),
    ],
)
def test_linear_weights_that_are_none(here, pair, linear, tmp_path, kind, error, message):
    path = tmp_path / "mine.pth"
    spoiled({name: value.clone() for name, value in linear[1].items()}, path, kind)
    with pytest.raises(error, match=message):
        metrics.lpips_comp(*pair, value_range=1.0, linear=path)


def test_a_trunk_of_another_network(here, drawn, pair, linear):
    with pytest.raises(
        I2IError, match=r"vgg16-397923af\.pth: expected weights of shape \(64,\) for 1\.weight, got none"
    ):
        metrics.lpips_comp(*pair, value_range=1.0, linear=linear[0], trunk=drawn.folder / TRUNKS["vgg16"])
    with pytest.raises(I2IError, match="trunk: expected a file, got none at"):
        metrics.lpips_comp(*pair, value_range=1.0, linear=linear[0], trunk=drawn.folder / "none.pth")


# --- with the true weights -----------------------------------------------------------------------------------


def picture(name):
    with Image.open(shared(f"data/metrics/{name}")) as image:
        pixels = torch.from_numpy(np.array(image)) / 255
    return pixels if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def need(*names):
    for name in names:
        try:
            runtime.fetched(name)
        except UnavailableError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize(("name", "expected"), [("ex_p0.png", 0.722), ("ex_p1.png", 0.138)])
def test_published_lpips(name, expected):
    need(TRUNKS["alexnet"])
    found = metrics.lpips(picture(name), picture("ex_ref.png"), value_range=1.0, spatial=True)
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("names", "expected"), [(("goldhill_jpeg.gif", "goldhill.gif"), 0.19509), (("i01_01_5.bmp", "I01.BMP"), 0.17321)]
)
def test_published_dists(names, expected):
    need(TRUNKS["vgg16"], "dists_weights.pt")
    assert metrics.dists(*map(picture, names), value_range=1.0) == pytest.approx(expected, abs=1e-3)
