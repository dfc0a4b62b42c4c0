"""The command line as a user meets it: exit codes, one line for each error, JSON, and the four commands in a row."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import safetensors.torch
import tifffile
import torch
from conftest import shared
from PIL import Image
from test_frames import write_video
from test_pictures import exr, flat

from i2ilib import cli, models
from i2ilib.datasets import moving
from i2ilib.deploy import EXACT, fastest_exact, status
from i2ilib.deploy.probe import SATURATES
from i2ilib.frames import open_clip, write_image
from i2ilib.models import Generator
from i2ilib.quant import quantise
from i2ilib.runtime import this_machine
from i2ilib.train import MattingTask


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small untrained generator, with fix positions, so that nothing needs to be calibrated again."""
    torch.manual_seed(0)
    net = Generator(width=4, out_channels=1)
    batch = torch.rand(2, 3, 256, 256) * 2 - 1
    with torch.no_grad():
        net(batch)  # running statistics
    path = tmp_path_factory.mktemp("weights") / "m.safetensors"
    models.save(path, net, q_in=1, fix_positions=quantise(net.eval(), [batch]).fix_positions)
    return path


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 180, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def call(capsys):
    """Run a command; gives exit code, standard output and standard error without progress bars."""

    def run(*argv):
        code = cli.main([str(a) for a in argv])
        told = capsys.readouterr()
        lines = [line for line in told.err.replace("\r", "\n").split("\n") if line.strip() and "/s]" not in line]
        return code, told.out, [line for line in lines if "[00:" not in line and "?" not in line]

    return run


@pytest.fixture
def matte(call, weights, tmp_path):
    """``i2i matte`` with the small weights on the backend that starts fastest; results in ``out``."""

    def run(frames, *more, model=weights, out=tmp_path / "out"):
        return call("matte", frames, out, "--model", model, "--backend", "torch", "--batch", "2", "--json", *more)

    return run


def assert_refused(result, name, *words):
    """Exit code 2, nothing on standard output, and one line that names the file."""
    code, out, err = result
    assert code == 2 and out == "" and len(err) == 1, err
    assert err[0].startswith("i2i: ") and str(name) in err[0] and "Traceback" not in err[0]
    for word in words:
        assert word in err[0]


# --- info ------------------------------------------------------------------------------------------


def test_info_from_a_shell():
    program = [sys.executable, "-W", "error::DeprecationWarning:i2ilib", "-m", "i2ilib", "info", "--json"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    told = json.loads(done.stdout)
    assert told["backends"]["torch"]["ok"] is True and told["versions"]["torch"] == torch.__version__
    for kind in ("backends", "optional"):
        assert all(set(entry) == {"ok", "reason"} and entry["reason"] for entry in told[kind].values())


def test_info_for_people(call):
    code, out, err = call("info")
    assert code == 0 and not err and "openvino-int8" in out and "pip install" in out
    assert str(this_machine()) in out and f"default backend: {fastest_exact()[0]}" in out


def test_info_tells_the_machine_and_what_follows(call):
    told = json.loads(call("info", "--json")[1])
    assert told["machine"] == json.loads(json.dumps(this_machine().describe()))
    assert tuple(told["default_backend"].values()) == fastest_exact()
    assert told["backends"][told["default_backend"]["name"]]["ok"]


# --- matte: what it takes ---------------------------------------------------------------------------


def test_the_fastest_exact_integers_by_default_and_resumed(call, weights, picture, tmp_path):
    command = ("matte", picture, tmp_path / "out", "--model", weights)
    code, out, err = call(*command)
    name, why = fastest_exact()
    assert (code, err) == (0, []) and out.startswith(f"backend {name}: {why}\n1 written, 0 kept, 0 failed")
    assert "0 written, 1 kept, 0 failed" in call(*command)[1]
    assert json.loads((tmp_path / "out/job.json").read_text())["job"]["backend"] == name
    with Image.open(tmp_path / "out/alpha/p.png") as alpha:
        assert alpha.size == (180, 100) and alpha.mode.startswith("I;16")


def test_backends_agree(call, weights, picture, tmp_path):
    found = {}
    exact = [name for name in EXACT if status(name)]
    for backend in ("torch", *exact):
        out = tmp_path / backend
        assert call("matte", picture, out, "--model", weights, "--backend", backend, "--format", "tif")[0] == 0
        found[backend] = tifffile.imread(out / "alpha/p.tif") / 65535
    assert np.abs(found["torch"] - found["exact"]).max() < 0.02
    for backend in exact:  # tanh alone is float
        assert np.abs(found["exact"] - found[backend]).max() < 2 / 65535, backend


def test_a_backend_that_would_be_wrong_here_is_refused_with_the_alternative(
    call, weights, picture, tmp_path, monkeypatch
):
    monkeypatch.setattr("i2ilib.deploy.openvino.inexact_int8", lambda: SATURATES)
    result = call("matte", picture, tmp_path / "out", "--model", weights, "--backend", "openvino-int8")
    assert_refused(result, "openvino-int8", "saturate", "openvino-int8-float gives the exact integers")


def save_kind(kind, path):
    rng = np.random.default_rng(0)
    size = {"dot": (1, 1), "whole": (256, 256), "4K": (2160, 3840)}.get(kind, (70, 300))
    if kind == "grey":
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    elif kind == "rgba16":
        tifffile.imwrite(
            path.with_suffix(".tif"),
            rng.integers(0, 65536, (*size, 4), dtype=np.uint16),
            photometric="rgb",
            extrasamples=["unassalpha"],
        )
        return path.with_suffix(".tif"), size
    elif kind == "rgba16_png":
        write_image(path, torch.rand(1, 4, *size))
    elif kind == "exr":
        write_image(path.with_suffix(".exr"), torch.rand(1, 3, *size) * 20)
        return path.with_suffix(".exr"), size
    else:
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path, size


@pytest.mark.parametrize("kind", ["dot", "whole", "4K", "grey", "rgba16", "rgba16_png", "exr"])
def test_kinds_of_pictures(matte, tmp_path, kind):
    path, size = save_kind(kind, tmp_path / "x.png")
    code, out, err = matte(path, "--format", "tif")
    assert (code, err) == (0, []) and json.loads(out)["written"] == ["x"]
    assert tifffile.imread(tmp_path / "out/alpha/x.tif").shape == size
    rgba = tifffile.imread(tmp_path / "out/rgba/x.tif")
    assert rgba.shape == (*size, 4) and rgba.dtype == np.uint16


def test_every_option_reaches_the_pipeline(matte, picture, tmp_path):
    options = ["--input-colour=linear", "--input-alpha=unpremultiply", "--matte-transfer=srgb", "--non-finite=zero"]
    code, _, _ = matte(picture, "--stride=128", "--feather=64", "--rgba=premultiplied", *options)
    job = json.loads((tmp_path / "out/job.json").read_text())["job"]
    expected = {"stride": 128, "feather": 64, "premultiply": True, "input_colour": "linear", "backend": "torch"}
    expected |= {"input_alpha": "unpremultiply", "matte_transfer": "srgb", "non_finite": "zero", "batch": 2}
    assert code == 0 and expected.items() <= job.items()


def test_the_mapping_kept_with_the_weights_is_used(matte, picture, tmp_path):
    models.save(tmp_path / "q.safetensors", Generator(width=4, out_channels=1), q_in=64)
    assert matte(picture, model=tmp_path / "q.safetensors")[0] == 0
    assert json.loads((tmp_path / "out/job.json").read_text())["job"]["q_in"] == 64


def test_video(matte, tmp_path):
    write_video(tmp_path / "v.mp4", [np.full((48, 64, 3), 60 * i, np.uint8) for i in range(3)])
    code, out, err = matte(tmp_path / "v.mp4")
    assert (code, err) == (0, []) and json.loads(out)["written"] == [f"frame_{i:06d}" for i in (1, 2, 3)]
    assert len(list(tmp_path.glob("out/rgba/*.png"))) == 3


def test_a_photograph_over_a_photograph(call, weights, tmp_path):
    data = pytest.importorskip("skimage.data")
    with Image.open(shared("data/matting") / "lemur_foreground.png") as image:
        lemur = image.convert("RGB")
    with Image.open(shared("data/matting") / "lemur_alpha.png") as image:
        alpha = image.convert("L")
    scene = Image.fromarray(data.coffee()).resize(lemur.size)
    scene.paste(lemur, mask=alpha)
    scene.save(tmp_path / "lemur.png")
    code, out, err = call(
        "matte", tmp_path / "lemur.png", tmp_path / "out", "--model", weights, "--backend=torch", "--json"
    )
    assert (code, err) == (0, []) and json.loads(out)["written"] == ["lemur"]
    with Image.open(tmp_path / "out/alpha/lemur.png") as found:
        assert found.size == lemur.size


# --- matte: what it refuses --------------------------------------------------------------------------


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_one_bad_frame_is_told_and_the_rest_is_written(matte, picture, tmp_path):
    folder = tmp_path / "shot"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.png").write_bytes(picture.read_bytes())
    cut(folder / "b.png")
    code, out, err = matte(folder)
    report = json.loads(out)
    assert code == 1 and report["written"] == ["a", "c"] and list(report["failed"]) == ["b"]
    assert len(err) == 1 and "b.png" in err[0] and "truncated" in err[0]


def test_frames_that_are_not_finite(matte, tmp_path):
    light = torch.rand(1, 3, 40, 40)
    light[0, 1, 2, 3] = float("nan")
    write_image(tmp_path / "n.exr", light)
    code, out, err = matte(tmp_path / "n.exr")
    assert code == 1 and json.loads(out)["written"] == [] and len(err) == 1
    assert "n.exr" in err[0] and "1 pixels with NaN" in err[0]
    assert matte(tmp_path / "n.exr", "--non-finite=zero", out=tmp_path / "zero")[0] == 0


def test_a_picture_that_cannot_be_calibrated_on(call, picture, tmp_path):
    models.save(tmp_path / "m.safetensors", Generator(width=4, out_channels=1))
    result = call("matte", cut(picture), tmp_path / "out", "--model", tmp_path / "m.safetensors")
    assert_refused(result, picture, "truncated")


def test_frames_that_are_none(matte, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(matte(tmp_path / "empty"), "empty", "a folder with none")
    assert_refused(matte(tmp_path / "absent.png"), "absent.png", "nothing there")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert_refused(matte(tmp_path / "bad.mp4"), "bad.mp4")
    (tmp_path / "x.docx").write_bytes(b"no picture")
    assert_refused(matte(tmp_path / "x.docx"), "x.docx")


def test_weights_that_are_none(matte, picture, weights, tmp_path):
    assert_refused(matte(picture, model=tmp_path / "absent.safetensors"), "absent.safetensors", "no file")
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(3)}, foreign)
    assert_refused(matte(picture, model=foreign), foreign, "models.save")
    for share in (0, 0.001, 0.5, 0.99):
        (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes())
        assert_refused(matte(picture, model=cut(tmp_path / "cut.safetensors", share)), "cut.safetensors")
    pickled = tmp_path / "m.pt"
    torch.save({"x": torch.zeros(3)}, pickled)
    assert_refused(matte(picture, model=pickled), pickled)
    assert_refused(matte(picture, model=tmp_path), tmp_path)  # a folder


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_network_that_enlarges_is_no_matting_network(call, picture, tmp_path, backend):
    models.save(tmp_path / "sr.safetensors", models.SRUNet(n_filters=4))
    result = call("matte", picture, tmp_path / "out", "--model", tmp_path / "sr.safetensors", "--backend", backend)
    assert result[0] == 2 and "a matting network: 256 x 256" in result[2][-1]


def test_fix_positions_of_another_network(call, picture, weights, tmp_path):
    model, meta = models.load(weights)
    meta["fix_positions"].popitem()
    models.save(tmp_path / "m.safetensors", model, **meta)
    result = call("matte", picture, tmp_path / "out", "--model", tmp_path / "m.safetensors")
    assert_refused(result, "fix_positions")


def test_places_that_cannot_be_written(matte, picture, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused(matte(picture, out=tmp_path / "file"), tmp_path / "file", "got a file")
    assert_refused(matte(picture, out=tmp_path / "file" / "below"), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_results_of_another_job(matte, picture, tmp_path):
    assert matte(picture)[0] == 0
    assert_refused(matte(picture, "--matte-transfer=srgb"), tmp_path / "out", "another job")
    code, out, _ = matte(picture, "--matte-transfer=srgb", "--overwrite")
    assert code == 0 and json.loads(out)["written"] == ["p"]


@pytest.mark.parametrize("option", ["--stride=0", "--stride=257", "--feather=1", "--batch=0"])
def test_numbers_that_cannot_be(matte, picture, option):
    assert_refused(matte(picture, option), option[2:].split("=")[0])


@pytest.fixture
def no_network(monkeypatch):
    """Opening a network fails the test."""
    monkeypatch.setattr("i2ilib.deploy.open_runner", lambda *_, **__: pytest.fail("a network was opened"))


@pytest.mark.parametrize("option", ["--batch=0", "--stride=0", "--stride=257", "--feather=1", "--layer=beauty"])
def test_a_refused_job_opens_no_network(matte, picture, tmp_path, no_network, option):
    frames = picture
    if "layer" in option:
        frames = tmp_path / "v.mp4"
        write_video(frames, [np.zeros((16, 16, 3), np.uint8)] * 2)
    assert_refused(matte(frames, option), option[2:].split("=")[0])


def test_a_finished_job_opens_no_network(matte, picture, monkeypatch, request):
    assert matte(picture)[0] == 0
    request.getfixturevalue("no_network")
    code, out, _ = matte(picture)
    assert code == 0 and json.loads(out)["kept"] == ["p"]
    assert_refused(matte(picture, "--matte-transfer=srgb"), "out", "another job")


def test_layers(matte, tmp_path):
    channels = [f"{layer}.{c}" for layer in ("diffuse", "specular") for c in "RGB"]
    exr(tmp_path / "l.exr", channels, flat(*[0.1] * 3, *[0.9] * 3))
    code, out, err = matte(tmp_path / "l.exr")
    assert code == 1 and "diffuse: R G B; specular: R G B" in err[0] and "--layer" in err[0]
    assert json.loads(out)["failed"].keys() == {"l"}
    assert matte(tmp_path / "l.exr", "--layer=specular", out=tmp_path / "s")[0] == 0
    assert_refused(matte(tmp_path / "l.exr", "--layer=diffuse", out=tmp_path / "s"), tmp_path / "s", "another job")


def test_what_was_done_unasked_is_told(call, weights, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_image(folder / "a.png", torch.rand(1, 4, 20, 20))
    (folder / "notes.txt").write_text("x")
    command = ["matte", folder, tmp_path / "out", "--model", weights, "--backend", "torch"]
    code, out, _ = call(*command)
    assert code == 0 and "note: its alpha channel is not used" in out and out.splitlines()[-2].endswith(": a")
    assert out.splitlines()[-1] == "passed over, as no pictures: notes.txt"
    assert json.loads(call(*command, "--overwrite", "--json")[1])["passed_over"] == ["notes.txt"]


def test_a_name_that_is_no_text_is_told(call, weights, picture, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    picture.rename(folder / "p.png")
    try:
        (folder / "\udcff.txt").write_text("x")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    code, out, _ = call("matte", folder, tmp_path / "out", "--model", weights, "--backend", "torch")
    assert code == 0 and out.endswith("passed over, as no pictures: \\udcff.txt\n")


def test_content_is_compared_on_request(matte, picture):
    assert matte(picture, "--by-content")[0] == 0
    picture.touch()
    assert json.loads(matte(picture, "--by-content")[1])["kept"] == ["p"]


@pytest.mark.parametrize("argv", [[], ["matte"], ["matte", "a", "b", "--model", "m", "--backend", "tpu"], ["paint"]])
def test_commands_that_are_none(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2 and "i2i" in capsys.readouterr().err


def test_interrupted(matte, picture, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("i2ilib.pipeline.matte", interrupt)
    code, out, err = matte(picture)
    assert code == 130 and out == "" and err == ["i2i: interrupted; the same command goes on from here"]
    monkeypatch.undo()
    assert json.loads(matte(picture)[1])["written"] == ["p"]


# --- quantise ----------------------------------------------------------------------------------------


def test_quantised_once_then_never_again(call, picture, tmp_path, monkeypatch):
    models.save(tmp_path / "m.safetensors", Generator(width=4, out_channels=1), q_in=2, colour="srgb")
    done = call("quantise", tmp_path / "m.safetensors", picture, tmp_path / "q.safetensors", "--json")
    assert (done[0], done[2]) == (0, [])
    positions = json.loads(done[1])["fix_positions"]
    _, meta = models.load(tmp_path / "q.safetensors")
    assert meta == {"q_in": 2, "colour": "srgb", "fix_positions": positions}
    assert {"input", "encoder.0.conv.weight", "head.conv"} <= set(positions)
    monkeypatch.setattr(cli, "_calibration", lambda *_, **__: pytest.fail("calibrated again"))
    options = ["--model", tmp_path / "q.safetensors", "--backend", "exact", "--json"]
    code, out, _ = call("matte", picture, tmp_path / "out", *options)
    assert code == 0 and json.loads(out)["written"] == ["p"]


def test_quantise_writes_onnx(call, weights, picture, tmp_path):
    code, _, err = call("quantise", weights, picture, tmp_path / "q.safetensors", "--onnx", tmp_path / "q.onnx")
    assert (code, err) == (0, [])
    network = onnx.load(tmp_path / "q.onnx")
    onnx.checker.check_model(network, full_check=True)
    kinds = [node.op_type for node in network.graph.node]
    assert kinds.count("Conv") == kinds.count("ConvTranspose") == 8 and kinds.count("QuantizeLinear") >= 16


def test_calibration_frames_are_spread_over_the_clip(picture, tmp_path):
    folder = tmp_path / "shot"
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (256, 256), (i * 30,) * 3).save(folder / f"{i}.png")
    cut(folder / "2.png")
    from i2ilib.pipeline import MatteOptions

    batches = cli._calibration(open_clip(folder), MatteOptions(), frames=4)
    codes = [round((float(batch.mean()) + 1) / 2 * 255) for batch in batches]
    assert codes == [0, 4 * 30, 6 * 30]  # frames 0, 2, 4, 6 without the broken one


def test_quantise_by_what_comes_out(call, weights, picture, tmp_path):
    plain, aware = (
        json.loads(call("quantise", weights, picture, tmp_path / "q.safetensors", "--json", *more)[1])["fix_positions"]
        for more in ((), ("--tail-aware",))
    )
    assert plain.keys() == aware.keys() and {k for k in plain if plain[k] != aware[k]} <= {"head.conv"}
    assert aware["head.conv"] >= plain["head.conv"]


def test_quantise_describes_the_graph(call, weights, picture, tmp_path):
    code, _, err = call("quantise", weights, picture, tmp_path / "q.safetensors", "--graph", tmp_path / "q.json")
    assert code == 0, err
    described = json.loads((tmp_path / "q.json").read_text())
    rounded = {node["name"]: node["fix_position"] for node in described["nodes"] if node["fix_position"] is not None}
    kept = models.load(tmp_path / "q.safetensors")[1]["fix_positions"]
    assert rounded and rounded.items() <= kept.items()


# --- inspect -------------------------------------------------------------------------------------------


def test_inspect_says_what_goes_where(call, weights):
    code, out, err = call("inspect", weights, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["pieces"] == 1 and {row["operator"] for row in said["operators"] if row["device"] == "CPU"} == {"tanh"}
    assert "one piece" in call("inspect", weights)[1]


def test_inspect_refuses(call, weights):
    assert_refused(call("inspect", weights, "--target", "U51"), "DPUCAHX8H_ISA2")


def test_quantise_refuses(call, weights, picture, tmp_path):
    out = tmp_path / "q.safetensors"
    assert_refused(call("quantise", tmp_path / "absent.safetensors", picture, out), "absent.safetensors")
    assert_refused(call("quantise", weights, tmp_path / "absent.png", out), "absent.png")
    assert_refused(call("quantise", weights, picture, out, "--frames-used", 0), picture, "a frame to calibrate on")
    assert_refused(call("quantise", weights, cut(picture), out), picture, "truncated")
    assert not out.exists()


# --- bench -------------------------------------------------------------------------------------------


def test_bench_verifies_and_times(call, weights):
    exact = [name for name in EXACT if status(name)]
    chosen = ["torch", "openvino", *exact]
    options = ["--batch", 2, "--n", 2, "--backend", *chosen]
    code, out, err = call("bench", weights, "--json", *options)
    assert code == 0, err
    rows = json.loads(out)["backends"]
    assert list(rows) == chosen and all(row["n"] == 2 and row["batch"] == 2 for row in rows.values())
    assert rows["torch"]["apart"] == 0 and rows["openvino"]["apart"] < 1e-4
    assert max(rows[name]["apart"] for name in exact) < 1e-6  # tanh alone is float
    options = ["--batch", 1, "--n", 1, "--backend", "torch", "exact"]
    assert "from exact integers" in call("bench", weights, *options)[1]


def test_bench_refuses(call, weights, tmp_path):
    assert_refused(call("bench", weights, "--n", 0), "--n", "1 or more")
    assert_refused(call("bench", tmp_path / "absent.safetensors"), "absent.safetensors")
    bare = tmp_path / "bare.safetensors"
    models.save(bare, Generator(width=4))
    assert_refused(call("bench", bare, "--backend", "exact"), "bare.safetensors", "fix positions")


# --- train -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two clips of four frames in the VideoMatte240K layout; two frames for training, five patches each."""
    root = tmp_path_factory.mktemp("clips")
    for kind in ("fgr/walk", "pha/walk", "fgr/wave", "pha/wave", "bgr"):
        (root / "train" / kind).mkdir(parents=True)
    for clip, shift in (("walk", 30), ("wave", -30)):
        for i in range(4):
            Image.new("RGB", (512, 256), (200, 150, 100)).save(root / f"train/fgr/{clip}/{i}.png")
            alpha = Image.new("L", (512, 256))
            alpha.paste(255, (120 + shift * i, 50, 320 + shift * i, 200))
            alpha.save(root / f"train/pha/{clip}/{i}.png")
        Image.new("RGB", (512, 256), (0, 0, 60)).save(root / f"train/bgr/{clip}.png")
    return root


@pytest.fixture
def train(call, data, tmp_path):
    """``i2i train`` for four steps; four more with ``--epochs=2``."""

    def run(*more, out=tmp_path / "m.safetensors", data=data):
        return call("train", data, out, "--preset=smoke", "--epochs=1", "--patches=4", "--width=4", "--json", *more)

    return run


def test_train_then_matte(train, matte, data, tmp_path):
    code, out, err = train()
    told = json.loads(out)
    assert (code, err) == (0, []) and (told["steps"], told["processes"]) == (4, 1)
    assert told["model"] == str(tmp_path / "m.safetensors")
    assert 0 < told["l1"] < 2 and {"discriminator", "adversarial"} <= told.keys()
    assert told["seconds"] > 0 and 0 <= told["waiting"] < 1
    (scores,) = told["epochs"]
    assert 0 <= scores["iou"] <= 1 and 0 < scores["mse"] < 255**2
    with Image.open(tmp_path / "m/progress.png") as picture:
        assert min(picture.size) > 300 and np.asarray(picture.convert("L")).std() > 10
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "checkpoint.safetensors", "epoch_01.safetensors", "progress.png",
    ]  # fmt: skip
    code, out, _ = matte(data / "train/fgr/walk", model=tmp_path / "m.safetensors")
    assert code == 0 and len(json.loads(out)["written"]) == 4


def test_train_tells_people(call, data, tmp_path):
    out = tmp_path / "m.safetensors"
    code, told, _ = call("train", data, out, "--preset=smoke", "--epochs=1", "--patches=2", "--width=4")
    scores, files = told.splitlines()
    assert code == 0 and scores.startswith("epoch 1 of 1: validation iou 0.")
    precision = models.load(out)[1]["trained"]["precision"]
    assert files == f"weights, trained in {precision}: {out}; curves and samples: {tmp_path}/m/progress.png"


def test_train_options_reach_the_weights(train, data, tmp_path):
    options = ["--clip=wave", "--clip=walk", "--epochs=2", "--patches=7", "--batch=3", "--stride=128", "--seed=5"]
    code, out, err = train(*options, "--mode=foreground", "--precision=float32")
    told = json.loads(out)
    assert (code, err) == (0, []) and told["steps"] == 4 and len(told["epochs"]) == 2
    _, meta = models.load(tmp_path / "m.safetensors")
    wanted = {"width": 4, "discriminator_width": 4, "epochs": 2, "patches": 7, "batch": 3, "stride": 128, "seed": 5}
    wanted |= {"mode": "foreground", "precision": "float32", "clip": "wave, walk", "frames": [0, 1]}
    assert wanted.items() <= meta["trained"].items()
    best = min(told["epochs"], key=lambda scores: scores["mse"])
    assert meta["trained"]["validation"] == best


def test_train_writes_events(train, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    assert train("--tensorboard", "--save-every=0")[0] == 0
    events = accumulator(str(tmp_path / "m/events")).Reload()
    assert [event.step for event in events.Scalars("step/l1")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("validation/mse")] == [4]
    assert (tmp_path / "m/progress.png").exists()


def test_an_interrupted_training_goes_on(train, tmp_path, monkeypatch):
    whole, step, taken = tmp_path / "whole.safetensors", MattingTask.step, []

    def interrupted(self, index, batch):
        taken.append(index)
        if index == 3 and taken.count(3) == 1:
            raise KeyboardInterrupt
        return step(self, index, batch)

    assert train(out=whole)[0] == 0
    monkeypatch.setattr(MattingTask, "step", interrupted)
    code, out, err = train("--save-every=0")
    assert code == 130 and out == "" and err == ["i2i: interrupted; the same command goes on from here"]
    assert not (tmp_path / "m.safetensors").exists()
    code, out, _ = train()
    assert code == 0 and json.loads(out)["steps"] == 4 and taken == [0, 1, 2, 3, 3]
    one, two = (models.load(tmp_path / name)[0].state_dict() for name in ("m.safetensors", "whole.safetensors"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_train_refuses(train, tmp_path):
    assert_refused(train(data=tmp_path / "absent"), "absent", "VideoMatte240K")
    assert_refused(train("--clip=run"), "clip", "'run'", "walk or wave")
    assert_refused(train("--memory=0.0001"), "budget_bytes", "1048576 bytes for 2 frames")
    assert_refused(train("--width=0"), "width")
    assert_refused(train("--batch=0"), "batch", "at least 1")
    assert_refused(train("--batch=5"), "batch", "at most the 4 patches")
    assert_refused(train("--epochs=0"), "epochs", "at least 1")
    assert_refused(train("--patches=0"), "patches", "at least 1")
    assert_refused(train("--stride=0"), "stride")
    assert_refused(train(out=tmp_path / "m.pt"), "m.pt", ".safetensors")
    assert not list(tmp_path.iterdir())
    assert train()[0] == 0
    assert_refused(train("--width=8"), tmp_path / "m/checkpoint.safetensors", "width=4 instead of 8")
    cut(tmp_path / "m/checkpoint.safetensors")
    assert_refused(train(), tmp_path / "m/checkpoint.safetensors", "Delete it")


# --- restoration -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """Two videos of the generator's, and a file that is none."""
    folder = moving.write_clips(tmp_path_factory.mktemp("shots"), moving.SCENES[:2], count=5, height=96, width=112)
    (folder / "torn.mp4").write_bytes(b"no video")
    return folder


def test_degrade_then_train(call, shots, tmp_path):
    code, out, err = call("degrade", shots, tmp_path / "pairs", "--crf=30", "--json")
    clips = {clip["name"]: clip for clip in json.loads(out)["clips"]}
    assert (
        (code, err) == (1, []) and clips["torn"]["state"] == "failed" and "expected a video" in clips["torn"]["reason"]
    )
    assert clips["coffee"] == {
        "name": "coffee", "state": "written", "frames": 5, "size": [96, 112], "notes": [], "reason": "",
    }  # fmt: skip
    code, out, _ = call("degrade", shots, tmp_path / "pairs", "--crf=30")
    assert code == 1 and out.startswith(f"0 written, 2 kept, 1 failed; {tmp_path / 'pairs'}\nfailed: torn: ")
    command = ["train", tmp_path / "pairs", tmp_path / "m.safetensors", "--task=restoration", "--preset=smoke"]
    command += ["--epochs=1", "--patches=4", "--batch=2", "--perceptual=vif_limited", "--validation=rocket"]
    code, out, err = call(*command, "--json")
    told = json.loads(out)
    assert (code, err) == (0, []) and (told["steps"], told["perceptual"]) == (2, "vif_limited")
    assert {"psnr_db", "ssim", "vmaf_neg", "folded_within"} == told["epochs"][0].keys()
    assert 0 <= told["waiting"] < 1
    _, meta = models.load(tmp_path / "m.safetensors")
    wanted = {"crf": 30, "clips": ["coffee"], "validation_clips": ["rocket"], "width": 8, "batch": 2, "scale": 2}
    assert wanted.items() <= meta["trained"].items() and meta["task"] == "restoration"
    with Image.open(tmp_path / "m/progress.png") as picture:
        assert min(picture.size) > 300 and np.asarray(picture.convert("L")).std() > 10
    code, out, _ = call(*command)
    assert code == 0 and out.splitlines()[1].startswith("perceptual loss: vif_limited; folding changed the output by ")


def test_degrade_takes_scale_and_rate(call, shots, tmp_path):
    assert call("degrade", shots / "coffee.mp4", tmp_path / "p", "--scale=2", "--fps=30", "--json")[0] == 0
    assert json.loads((tmp_path / "p/clips/coffee.json").read_text())["rate"] == 30
    code, out, _ = call("degrade", shots / "coffee.mp4", tmp_path / "q", "--scale=4")
    assert code == 1 and "sides of 128 pixels or more, to be scaled down 4 times" in out


def test_degrade_and_train_refuse(call, shots, tmp_path):
    assert_refused(call("degrade", tmp_path / "absent", tmp_path / "o"), "absent", "a folder of pictures or a video")
    assert_refused(call("degrade", shots, tmp_path / "o", "--crf=60"), "crf", "0 to 51")
    assert_refused(call("degrade", shots, tmp_path / "o", "--fps=0"), "fps")
    train = ["train", tmp_path, tmp_path / "m.safetensors"]
    assert_refused(call(*train, "--task=restoration"), "frames_QF", "i2i degrade")
    assert_refused(call(*train, "--task=restoration", "--stride=8"), "--stride", "--task matting")
    assert_refused(call(*train, "--task=restoration", "--mode=auto"), "--mode")
    assert_refused(call(*train, "--model=unet"), "--model", "--task restoration")
    assert_refused(call(*train, "--validation=x"), "--validation")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--preset=huge", "--mode=green", "--precision=int8", "--epochs=many", "--steps=4"])
def test_train_options_that_are_none(train, option, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(option)
    assert stopped.value.code == 2 and option[2:].split("=")[0] in capsys.readouterr().err


def test_a_full_disk_is_told_in_one_line(train, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "m.safetensors")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    assert_refused(train(), "m.safetensors", "No space left on device")

    def rust(*_, **__):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", rust)
    assert_refused(train("--save-every=0"), tmp_path / "m" / "checkpoint.safetensors", "No space left on device")
    assert_refused(train(), tmp_path / "m" / "epoch_01.safetensors", "No space left on device")
