"""Enlarging: tiles equal the whole to the last bit, any size, the published goldens, and how far a network sees."""

import numpy as np
import pytest
import torch
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from i2ilib import I2IError, IntegrityError, models
from i2ilib.deploy import fastest_exact, make_runner
from i2ilib.models import Generator, SRUNet, UNet
from i2ilib.pipeline.enlarge import Network, enlarge, enlarge_all, open_network, reach, tiles
from i2ilib.runtime import this_machine

FIXED = settings(derandomize=True, deadline=None, max_examples=20)
SMALL = {
    "2x": lambda: SRUNet(n_filters=4, layer_multiplier=0.5),
    "1.5x": lambda: SRUNet(n_filters=6, layer_multiplier=0.5, downsample=0.75),
    "4x": lambda: SRUNet(n_filters=4, layer_multiplier=0.5, scale=4),
    "3x UNet": lambda: UNet(filters=(3, 4, 5, 8), scale=3),
    "folded core": lambda: models.reparametrise(SRUNet(n_filters=16, layer_multiplier=0.7, residual=False)),
    "2x for a DPU": lambda: SRUNet(n_filters=4, layer_multiplier=0.5, upsample="transposed"),
}


@pytest.fixture(scope="module")
def networks():
    """Random weights, by name, each open."""
    torch.manual_seed(0)
    found, ways = {}, {name: make().eval() for name, make in SMALL.items()}
    with torch.no_grad():  # detail that is not next to nothing
        for net in ways.values():
            for value in net.parameters():
                value.mul_(1.5)
    opened = [(name, open_network(net)) for name, net in ways.items()]
    for name, way in opened:
        found[name] = (way.__enter__(), ways[name])
    yield found
    for _, way in opened:
        way.__exit__(None, None, None)


# --- tiles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@given(st.integers(1, 230), st.integers(1, 230), st.integers(0, 9))
@FIXED
def test_tiled_equals_untiled_to_the_last_bit(networks, name, height, width, more):
    network, _ = networks[name]
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height * width))
    tile = 2 * network.reach + 8 * (1 + more)
    tiled, whole = (enlarge(network, x, tile=side) for side in (tile, 10_000))
    if this_machine().kind == "avx2":  # where it was seen; on other units oneDNN may choose its kernels by size
        assert torch.equal(tiled, whole)
    torch.testing.assert_close(tiled, whole, atol=1e-6, rtol=0)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 3), st.integers(1, 8))
@FIXED
def test_tiles_cover_every_pixel_once_and_lie_on_the_grid(rows, columns, halo, inner):
    network = Network(None, None, 2, 2, reach=8 * halo)
    height, width, tile = 8 * rows, 8 * columns, 16 * halo + 8 * inner
    seen = np.zeros((height, width), int)
    shapes = set()
    for part in tiles(height, width, network, tile=tile):
        seen[part.give] += 1
        shapes.add(np.empty((height, width))[part.read].shape)
        for read, give, side in zip(part.read, part.give, (height, width), strict=True):
            assert read.start % 8 == 0 and read.start >= 0 and read.stop <= side
            assert read.start == 0 or give.start - read.start >= 8 * halo  # far enough from an edge that is none
            assert read.stop == side or read.stop - give.stop >= 8 * halo
    assert (seen == 1).all() and len(shapes) == 1


def test_a_frame_that_does_not_fit_is_tiled(networks):
    network, _ = networks["2x"]
    memory = 100 * 100 * network.bytes_a_pixel / 2**30
    few = tiles(400, 800, network, memory_gib=memory)
    area = [(p.read[0].stop - p.read[0].start) * (p.read[1].stop - p.read[1].start) for p in few]
    assert len(few) > 1 and max(area) <= 100 * 100 * 1.01
    assert len(tiles(400, 800, network, memory_gib=32 * memory)) == 1


def test_batches_and_order(networks):
    network, _ = networks["2x"]
    frames = [torch.rand(1, 3, 20, 28) for _ in range(5)]
    alone = [enlarge(network, frame) for frame in frames]
    for batch in (1, 2, 5, 8):
        found = list(enlarge_all(network, enumerate(frames), batch=batch))
        assert [key for key, _ in found] == list(range(5))
        for (_, one), other in zip(found, alone, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


# --- the network itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["2x", "1.5x", "4x", "3x UNet"])
def test_as_the_plain_model(networks, name):
    network, net = networks[name]
    x = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        plain = (net(2 * x - 1) + 1) / 2
    torch.testing.assert_close(enlarge(network, x), plain, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["2x", "4x"])
def test_padding_is_replication(networks, name):
    network, net = networks[name]
    x = torch.rand(1, 3, 17, 30)
    wide = np.pad(x.numpy(), ((0, 0), (0, 0), (0, 7), (0, 2)), "edge")
    with torch.no_grad():
        plain = (net(2 * torch.from_numpy(wide) - 1) + 1) / 2
    s = network.scale
    torch.testing.assert_close(enlarge(network, x), plain[..., : 17 * s, : 30 * s], atol=2e-6, rtol=0)


def test_a_core_gets_its_bicubic_part(networks):
    network, net = networks["folded core"]
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        detail = net(2 * x - 1)
        want = (detail + F.interpolate(2 * x - 1, scale_factor=2.0, mode="bicubic")).clamp(-1, 1)
    torch.testing.assert_close(enlarge(network, x), (want + 1) / 2, atol=5e-6, rtol=0)


@pytest.mark.parametrize(("name", "size"), [("2x", (34, 60)), ("1.5x", (25, 45)), ("3x UNet", (51, 90))])
def test_size(networks, name, size):
    network, _ = networks[name]
    assert enlarge(network, torch.rand(1, 3, 17, 30)).shape == (1, 3, *size) and network.size(17, 30) == size


@pytest.mark.parametrize(("name", "key"), [("2x", "y_2x"), ("1.5x", "y_1_5x")])
def test_published_goldens(name, key):
    data = np.load(shared("data/srunet") / "golden_io.npz")
    x = torch.from_numpy(data["input_rgb_uint8"]).permute(2, 0, 1)[None].float() / 255
    with open_network(shared("data/srunet") / f"srunet_{name}_crf23.pth") as network:
        found = 2 * enlarge(network, x)[0] - 1
    torch.testing.assert_close(found, torch.from_numpy(data[key]), rtol=0, atol=1e-5)


def test_bicubic_without_a_network():
    x = torch.rand(1, 3, 5, 9)
    with open_network(3) as network:
        want = F.interpolate(x, scale_factor=3.0, mode="bicubic").clamp(0, 1)
        torch.testing.assert_close(enlarge(network, x), want, atol=1e-6, rtol=0)


def test_int8_in_tiles(networks):
    """The integers do not depend on tiles; nor on the engine, where it is exact."""
    _, net = networks["2x"]
    batches = [torch.rand(1, 3, 48, 48) * 2 - 1 for _ in range(2)]
    x = torch.rand(1, 3, 90, 110)
    with open_network(net, backend="exact", calibration=lambda: batches) as network:
        assert network.identity["backend"] == "exact"
        whole = enlarge(network, x)
        assert torch.equal(enlarge(network, x, tile=2 * network.reach + 8), whole)
    with open_network(net) as network:
        assert 0 < float((enlarge(network, x) - whole).abs().max()) < 0.2


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_an_engine_takes_frames_of_every_size(networks, backend):
    """One compiled network has one size; a folder of pictures has many."""
    ours, net = networks["2x"]
    pytest.importorskip(backend)
    with open_network(net, backend=backend) as network:
        for size in ((24, 40), (17, 9), (24, 40)):
            x = torch.rand(2, 3, *size)
            found = [frame for _, frame in enlarge_all(network, [(0, x[:1]), (1, x[1:])], batch=2)]
            want = torch.cat([enlarge(ours, frame[None]) for frame in x])
            torch.testing.assert_close(torch.cat(found), want, rtol=0, atol=1e-4)
        assert network.runner.describe()["precision"] == "float32"


def test_an_engine_gives_the_exact_integers_in_tiles_and_batches(networks):
    pytest.importorskip("openvino")
    _, net = networks["2x"]
    batches = [torch.rand(1, 3, 48, 48) * 2 - 1]
    x = torch.rand(1, 3, 90, 110)
    with open_network(net, backend="exact", calibration=lambda: batches) as network:
        whole, tile = enlarge(network, x), 2 * network.reach + 8
    with open_network(net, backend=fastest_exact()[0], calibration=lambda: batches) as network:
        assert torch.equal(enlarge(network, x), whole) and torch.equal(enlarge(network, x, tile=tile), whole)


# --- reach ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["2x", "3x UNet"])
def test_nothing_beyond_the_reach_matters_and_something_within_does(networks, name):
    network, _ = networks[name]
    r, s = network.reach, network.scale
    x = torch.rand(1, 3, 16, 4 * r + 16)
    other = x.clone()
    other[..., :8] = 1 - other[..., :8]
    apart = (enlarge(network, x) - enlarge(network, other)).abs().amax((0, 1, 2))
    assert float(apart[s * (8 + r) :].max()) == 0
    assert float(apart[s * 8 :].max()) > 0


@pytest.mark.parametrize(("kernel", "want"), [(1, 0), (3, 8), (17, 8), (19, 16)])
def test_reach_of_a_convolution(kernel, want):
    assert reach(nn.Conv2d(3, 3, kernel, padding=kernel // 2), scale=1) == want


def test_a_network_without_an_end_to_its_reach_takes_whole_frames():
    assert reach(lambda x: x + x.mean((2, 3), keepdim=True), scale=1) is None
    network = Network(None, None, 1, 1, reach=None)
    assert len(tiles(512, 512, network)) == 1
    with pytest.raises(I2IError, match="whole frame"):
        tiles(512, 512, network, tile=256)


def test_a_network_that_does_not_look_has_no_reach():
    assert reach(lambda x: torch.zeros_like(x), scale=1) == 0


# --- what is refused -----------------------------------------------------------------------------------


def test_a_tile_smaller_than_its_margins(networks):
    network, _ = networks["2x"]
    with pytest.raises(I2IError, match=f"at least {2 * network.reach + 8}"):
        enlarge(network, torch.rand(1, 3, 300, 300), tile=2 * network.reach)
    with pytest.raises(I2IError, match="more memory"):
        enlarge(network, torch.rand(1, 3, 300, 300), memory_gib=1e-6)


def test_no_batch(networks):
    with pytest.raises(I2IError, match="batch"):
        list(enlarge_all(networks["2x"][0], [], batch=0))


@pytest.mark.parametrize("scale", [0, 17])
def test_a_scale_out_of_range(scale):
    with pytest.raises(I2IError, match="scale"), open_network(scale):
        pass


def test_other_networks_and_files(tmp_path):
    models.save(tmp_path / "g.safetensors", Generator(width=4))
    with pytest.raises(I2IError, match="enlarges"), open_network(tmp_path / "g.safetensors"):
        pass
    with pytest.raises(I2IError, match="enlarges"), open_network(Generator(width=4)):
        pass
    with pytest.raises(I2IError, match="no file"), open_network(tmp_path / "none.safetensors"):
        pass
    (tmp_path / "x.pth").write_bytes(b"none of it")
    with pytest.raises(IntegrityError), open_network(tmp_path / "x.pth"):
        pass
    net = SRUNet(n_filters=4, layer_multiplier=0.5)
    with pytest.raises(I2IError, match="fix positions"), open_network(net, backend="exact"):
        pass
    with pytest.raises(I2IError, match="backend"), open_network(net, backend="abacus"):
        pass


def test_a_saved_network_keeps_its_identity(tmp_path):
    torch.manual_seed(0)
    net = SRUNet(n_filters=4, layer_multiplier=0.5).eval()
    models.save(tmp_path / "a.safetensors", net)
    models.save(tmp_path / "b.safetensors", SRUNet(n_filters=4, layer_multiplier=0.5))
    with open_network(tmp_path / "a.safetensors") as a, open_network(tmp_path / "b.safetensors") as b:
        assert a.identity["model"] == "SRUNet" and a.identity != b.identity
        x = torch.rand(1, 3, 16, 16)
        with open_network(net) as same:
            assert torch.equal(enlarge(a, x), enlarge(same, x))


def test_the_runner_of_a_network_is_what_deploy_makes(networks):
    """The detail of the published form, by deploy's own eager runner, gives the same frame to rounding."""
    network, net = networks["2x"]
    core = models.reparametrise(net)
    core = type(core)(models.SRUNetConfig(**{**core.config.__dict__, "residual": False}))
    core.load_state_dict(models.reparametrise(net).state_dict())
    x = torch.rand(1, 3, 24, 32)
    with make_runner("torch", core, x) as runner, torch.no_grad():
        want = net.host(runner.run(2 * x - 1), 2 * x - 1)
    torch.testing.assert_close(enlarge(network, x), (want + 1) / 2, atol=1e-6, rtol=0)
