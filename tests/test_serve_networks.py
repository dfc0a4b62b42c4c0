"""Networks behind the server: the command line's frames to the bit, knobs, rules for numbers, and the commands."""

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from serving import SAME, address, server_of

from i2ilib import cli, colour, models
from i2ilib.deploy.exact import ExactRunner
from i2ilib.deploy.pytorch import PytorchRunner
from i2ilib.errors import I2IError
from i2ilib.frames import Frame, read_image, write_image
from i2ilib.pipeline import MatteOptions, matte
from i2ilib.pipeline.enlarge import enlarge, open_network
from i2ilib.quant import quantise
from i2ilib.serve import client, conformance
from i2ilib.serve.networks import enlarging, matting, open_models, precision_of
from i2ilib.serve.scheduler import Pool, Work
from i2ilib.serve.server import Limits

PATCH = 32  # a generator of few levels takes it, and the road is the same


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    net = models.build("pix2pix", width=4, levels=5, out_channels=1)
    batch = torch.rand(8, 3, PATCH, PATCH) * 2 - 1
    with torch.no_grad():
        for _ in range(3):
            net.train()(batch)
    return net.eval()


@pytest.fixture(scope="module")
def runners(generator):
    quantised = quantise(generator, [torch.rand(8, 3, PATCH, PATCH) * 2 - 1])
    with ExactRunner(quantised) as exact, PytorchRunner(generator) as eager:
        yield {"int8": exact, "float32": eager}


@pytest.fixture(scope="module")
def server(runners):
    with contextlib.ExitStack() as stack:
        pools = {name: stack.enter_context(Pool([runner], batch=4)) for name, runner in runners.items()}
        model = matting("cut", pools, label="Cut out", patch=PATCH)
        with server_of(model, pools=list(pools.values()), metrics_port=0, limits=Limits()) as running:
            yield running


def linear(height, width, seed=0):
    return (np.random.default_rng(seed).random((3, height, width)) ** 2).astype(np.float32)


def alone(runner, planes, **options):
    """The command line's way: the same library call on the runner itself."""
    frame = Frame(torch.from_numpy(planes)[None], None, "f", "f.exr")
    return matte(runner, frame, MatteOptions(**{"patch": PATCH, "stride": PATCH, "batch": 4} | options))[0, 0].numpy()


@pytest.mark.parametrize(("height", "width"), [(64, 96), (70, 45), (1, 1), (33, 200)])
def test_a_matte_through_the_server_is_the_command_lines_to_the_bit(server, runners, height, width):
    planes = linear(height, width)
    shown = conformance.Node(server.host, server.port).render("Cut out", [planes])
    assert np.array_equal(shown, np.broadcast_to(alone(runners["int8"], planes), shown.shape))


def test_knobs_do_what_the_options_of_the_command_line_do(server, runners):
    planes, where = linear(80, 70), address(server)
    out = client.run(where, "cut", [planes], {"overlap": 8, "matte_transfer": "srgb"})
    expected = alone(runners["int8"], planes, stride=PATCH - 8, feather=8, matte_transfer="srgb")
    assert np.array_equal(out[0], expected)
    out = client.run(where, "cut", [planes], {"q_i": 2, "q_o": 4})
    assert np.array_equal(out[1], alone(runners["int8"], planes, q_in=2, q_out=4))
    out = client.run(where, "cut", [planes], {"precision": "float32"})
    assert np.abs(out[0] - alone(runners["float32"], planes)).max() < 1e-6
    plain = client.run(where, "cut", [planes])
    assert not np.array_equal(out, plain)


def test_planes_are_alpha_or_colours_with_alpha(server, runners):
    planes, where = linear(40, 40), address(server)
    planes[0, 3, 3], planes[1, 4, 4] = 7.5, -0.25  # pass through colour planes as they are
    alpha = alone(runners["int8"], planes)
    straight = client.run(where, "cut", [planes], {"planes": "rgba"})
    assert np.array_equal(straight, np.concatenate([planes, alpha[None]]))
    over = client.run(where, "cut", [planes], {"planes": "premultiplied"})
    assert np.array_equal(over, np.concatenate([planes * alpha, alpha[None]]))


def test_the_rule_for_numbers_beyond_and_for_none(server):
    where, planes = address(server), linear(40, 40)
    strange, plain = planes.copy(), planes.copy()
    strange[:, 0, :5] = [[np.nan, np.inf, -np.inf, 1e30, -5.0]] * 3
    plain[:, 0, :5] = [[0, 0, 0, 1, 0]] * 3
    out = client.run(where, "cut", [strange], {"planes": "rgba"})
    assert np.array_equal(out[3], client.run(where, "cut", [plain])[0])
    assert np.array_equal(out[:3, 0, :5], [[0, 0, 0, np.float32(1e30), -5]] * 3)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"q_i": 3}, "option q_i: expected 1 or 2 or 4"),
        ({"overlap": 25}, "from 0 to 24"),
        ({"overlap": -1}, "from 0 to 24"),
        ({"matte_transfer": "log"}, "none or srgb"),
        ({"planes": "beta"}, "alpha or rgba or premultiplied"),
        ({"precision": "int4"}, "int8 or float32"),
    ],
)
def test_knobs_say_what_they_take(server, values, told):
    with pytest.raises(client.Told, match=told):
        client.run(address(server), "cut", [linear(8, 8)], values)


def test_a_picture_of_one_plane_is_refused(server):
    with pytest.raises(client.Told, match="three planes"):
        client.run(address(server), "cut", [linear(8, 8)[:1]])


def test_the_kit_passes_on_a_network(server):
    assert [str(one) for one in conformance.check(server.host, server.port, seconds=60) if not one.ok] == []


def test_many_clients_get_their_own_frames_in_common_batches(server, runners):
    sizes = [(64, 64), (32, 32), (96, 40), (20, 20)]
    frames = [linear(*sizes[i % 4], seed=i) for i in range(24)]
    expected = [alone(runners["int8"], frame) for frame in frames]
    pool = server.metrics.pools[0]
    before = pool.patches, pool.batches
    with ThreadPoolExecutor(12) as crowd:
        shown = list(crowd.map(lambda frame: client.run(address(server), "cut", [frame])[0], frames))
    assert all(np.array_equal(*pair) for pair in zip(shown, expected, strict=True))
    patches, batches = pool.patches - before[0], pool.batches - before[1]
    assert patches == sum(4 if size == (64, 64) else 3 if size == (96, 40) else 1 for size in sizes) * 6
    assert batches < patches  # frames of several patches are not computed one by one, however the clients come


class Slow(ExactRunner):
    def _run(self, batch):
        time.sleep(0.03)
        return super()._run(batch)


def test_a_small_frame_beside_a_large_one_waits_for_a_batch_or_two(generator, runners):
    with Slow(runners["int8"].quantised) as runner, Pool([runner], batch=4) as pool:
        model = matting("cut", {"int8": pool}, patch=PATCH)
        with server_of(model, pools=[pool], limits=Limits()) as running, ThreadPoolExecutor(2) as crowd:
            large = crowd.submit(client.run, address(running), "cut", [linear(640, 640)])  # a hundred batches
            while pool.batches < 2:
                time.sleep(0.01)
            before = pool.batches
            client.run(address(running), "cut", [linear(20, 20)])
            assert pool.batches - before <= 12 and not large.done()
            large.result(60)


def test_a_client_that_leaves_ends_its_patches(runners):
    with Slow(runners["int8"].quantised) as runner, Pool([runner], batch=2) as pool:
        model = matting("cut", {"int8": pool}, patch=PATCH)
        with server_of(model, limits=Limits()) as running:
            leaving = client.Address(running.host, running.port, seconds=0.3)
            with pytest.raises(client.Unreachable, match="silence"):
                client.run(leaving, running.models["cut"].describe(), [linear(640, 640)])
            end = time.monotonic() + 10
            while running.visits and time.monotonic() < end:
                time.sleep(0.02)
            assert not running.visits and pool.waiting == 0 and pool.patches < 200


# --- enlarging -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def enlarger():
    torch.manual_seed(0)
    return models.build("srunet", n_filters=8).eval()


def test_enlarging_fills_the_format_from_its_corner(enlarger):
    with open_network(enlarger) as network, Pool([network.runner], batch=1) as pool:
        model = enlarging("twice", {"float32": (network, pool)}, tile=64)
        with server_of(model, limits=Limits()) as running:
            where, small = address(running), linear(37, 45)
            format_ = np.zeros((3, 74, 90), np.float32)
            format_[:, 37:, :45] = small  # the lower left corner
            out = client.run(where, "twice", [format_])
            srgb = colour.linear_to_srgb(torch.from_numpy(small)[None]).clamp(0, 1)
            expected = colour.srgb_to_linear(enlarge(network, srgb))[0].numpy()
            assert np.abs(out - expected).max() < 1e-6
            with pytest.raises(client.Told, match="sides 2 times those of the small picture, such as 72 or 74, got 73"):
                client.run(where, "twice", [format_[:, 1:]])
            reduced = client.run(where, "twice", [linear(73, 1)], {"source": "reduce"})
            assert reduced.shape == (3, 73, 1)
            flat = np.full((3, 40, 40), 0.25, np.float32)
            flat[:, 0, 0] = np.nan
            assert np.isfinite(client.run(where, "twice", [flat], {"source": "reduce"})).all()


def test_enlarging_without_a_network_is_bicubic():
    with open_network(3) as network:
        model = enlarging("thrice", {"float32": (network, None)})
        out = model.run((np.full((3, 30, 30), 0.5, np.float32),), model.values(model.describe()), Work())
    assert np.abs(out - 0.5).max() < 1e-5


# --- from files, and the commands ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory, enlarger):
    """A generator for patches of 256 with fix positions, the same as integers alone, an enlarger, and a decoder."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    net = models.Generator(width=4, out_channels=1)
    batch = torch.rand(2, 3, 256, 256) * 2 - 1
    with torch.no_grad():
        net(batch)
    quantised = quantise(net.eval(), [batch])
    models.save(folder / "cut.safetensors", net, q_in=1, fix_positions=quantised.fix_positions)
    models.save(folder / "float.safetensors", net)
    quantised.save(folder / "integers.safetensors")
    models.save(folder / "twice.safetensors", enlarger)
    models.save(folder / "face.safetensors", models.build("codec_avatar"))
    (folder / "broken.safetensors").write_bytes(b"nothing")
    return folder


def test_models_from_files_in_one_server(files):
    with contextlib.ExitStack() as stack:
        weights = {name: files / f"{name}.safetensors" for name in ("cut", "integers")}
        served, pools = open_models(stack, weights, ["exact"], batch=2)
        twice, more = open_models(stack, {"twice": files / "twice.safetensors"}, ["auto"])
        running = stack.enter_context(server_of(*served, *twice, pools=[*pools, *more], limits=Limits()))
        where, planes = address(running), linear(100, 60)
        assert [model.name for model in client.models(where)] == ["cut", "integers", "twice"]
        cut, integers = (client.run(where, name, [planes]) for name in ("cut", "integers"))
        assert np.array_equal(cut, integers) and 0 <= cut.min() < cut.max() <= 1
        assert client.run(where, "twice", [planes]).shape == planes.shape


@pytest.mark.parametrize(
    ("name", "backends", "told"),
    [
        ("face", ["torch"], "from picture to picture"),
        ("float", ["exact"], "fix positions"),
        ("cut", ["exact", "openvino-int8-float"], "two for int8"),
        ("cut", ["warp"], "backend"),
        ("none", ["torch"], "no file"),
        ("broken", ["torch"], "model written by"),
    ],
)
def test_files_that_cannot_be_served_are_refused(files, name, backends, told):
    with contextlib.ExitStack() as stack, pytest.raises(I2IError, match=told):
        open_models(stack, {name: files / f"{name}.safetensors"}, backends, batch=1)


def test_precisions_have_names():
    assert [precision_of(b) for b in ("u50", "tensorrt-float16", "openvino")] == ["int8", "float16", "float32"]


def test_send_and_matte_write_the_same_file(files, tmp_path, capsys):
    plate = tmp_path / "plate.exr"
    write_image(plate, torch.from_numpy(linear(90, 130))[None] * 1.5)
    weights = files / "cut.safetensors"
    how = ["--model", str(weights), "--backend", "exact", "--format", "exr"]
    assert cli.main(["matte", str(plate), str(tmp_path / "job"), *how]) == 0
    with contextlib.ExitStack() as stack:
        served, _ = open_models(stack, {"cut": weights}, ["exact"])
        running = stack.enter_context(server_of(*served, SAME, limits=Limits()))
        there = ["--port", str(running.port)]
        capsys.readouterr()
        out = tmp_path / "alpha.exr"
        assert cli.main(["send", str(plate), str(out), "--matte", "--json", *there]) == 0
        assert json.loads(capsys.readouterr().out) == {"out": str(out), "model": "cut", "planes": 1}
        theirs = read_image(tmp_path / "job" / "alpha" / "plate.exr").rgb
        assert torch.equal(read_image(out).rgb, theirs)
        rgba = tmp_path / "rgba.exr"
        assert cli.main(["send", str(plate), str(rgba), "--option", "planes=premultiplied", *there]) == 0
        ours, theirs = read_image(rgba), read_image(tmp_path / "job" / "rgba" / "plate.exr")
        assert torch.equal(ours.rgb, theirs.rgb) and torch.equal(ours.alpha, theirs.alpha)
        png = tmp_path / "same.png"
        assert cli.main(["send", str(plate), str(png), "--model", "same", *there]) == 0
        srgb = colour.linear_to_srgb(read_image(plate).rgb).clamp(0, 1)
        assert (read_image(png).rgb - srgb).abs().max() < 1e-4
        assert cli.main(["send", str(png), str(tmp_path / "again.png"), "--model", "same", *there]) == 0
        assert (read_image(tmp_path / "again.png").rgb - srgb).abs().max() < 1e-4
        capsys.readouterr()
        for given, told in (
            (["--model", "none"], "cut or same"),
            (["--option", "overlap"], "NAME=VALUE"),
            (["--option", "size=3"], "got 'size'"),
            (["--option", "overlap=500"], "from 0 to"),
        ):
            assert cli.main(["send", str(plate), str(out), *given, *there]) == 2
            assert told in capsys.readouterr().err


def test_the_health_probe(capsys):
    with server_of(SAME) as running:
        assert cli.main(["serve", "--check", "--json", "--port", str(running.port)]) == 0
        assert json.loads(capsys.readouterr().out) == {"ok": True, "models": ["same"], "reason": ""}
    assert cli.main(["serve", "--check", "--port", str(running.port)]) == 1
    assert "not well" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--model", "a=x.safetensors", "--model", "a=y.safetensors"], "different names"),
        (["--model", "=x"], "NAME=VALUE"),
        (["--model", "a=/none/such.safetensors"], "no file"),
        (["--clients", "0"], "connections"),
    ],
)
def test_serving_what_cannot_be_is_one_line(given, told, capsys):
    assert cli.main(["serve", "--port", "0", "--backend", "torch", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_serve_runs_until_it_is_told(files, capsys, monkeypatch):
    from i2ilib.serve import server as module

    def told(server, _):
        with contextlib.suppress(I2IError):
            names.extend(model.name for model in client.models(address(server)))
        return server.stop()

    names: list[str] = []
    monkeypatch.setattr(module, "until_told", told)
    model = f"cut={files / 'cut.safetensors'}"
    how = ["--backend", "exact", "--port", "0", "--metrics-port", "0", "--memory", "0.5", "--json"]
    assert cli.main(["serve", "--model", model, *how]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert names == result["models"] == ["cut"] and result["metrics_port"] > 0
    assert json.loads(said.err.splitlines()[0])["kind"] == "info"
    assert threading.active_count() < 60
