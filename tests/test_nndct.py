"""AMD's path: jobs are run by a stand-in of AMD's interface, or by a Python that misbehaves."""

import ast
import json
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
from test_quantise import TinyED
from torch import nn

from i2ilib import I2IError, IntegrityError, UnavailableError
from i2ilib.models import Generator
from i2ilib.quant import nndct, quantise, with_positions
from i2ilib.quant import nndct_worker as worker

STANDINS = Path(__file__).parent / "standins"
SYNTAX = (3, 8)  # of the container's Python


@pytest.fixture
def amd(monkeypatch):
    """AMD's interface is present in another Python."""
    monkeypatch.setenv("PYTHONPATH", str(STANDINS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(nndct.PYTHON, sys.executable)


@pytest.fixture
def pretender(monkeypatch, tmp_path):
    """A command in place of AMD's Python: it has the quantiser, and then does what the test says."""

    def install(then: str, probe: str = "echo pytorch_nndct 3.5.0; exit 0") -> None:
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then {probe}; fi\n{then}\n')
        script.chmod(0o755)
        monkeypatch.setenv(nndct.PYTHON, f"env STAND=IN '{script}'")  # a command, not only a path

    return install


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return nn.Conv2d(3, 2, 3, padding=1)


X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    net = TinyED()
    with torch.no_grad():
        net(torch.rand(4, 3, 32, 32) * 2 - 1)  # running statistics
    return net.eval()


@pytest.fixture(scope="module")
def batches():
    return list((torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1).split(2))


def calls(folder):
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


# --- the road through AMD's interface ----------------------------------------------------------------


def test_ptq_brings_back_positions_in_our_names(amd, tiny, batches, tmp_path):
    result = nndct.quantise(tiny, batches, batches[0][:1], folder=tmp_path / "job")
    assert result.fix_positions == quantise(tiny, batches).fix_positions
    ours = with_positions(tiny, result.fix_positions, batches[0])
    torch.testing.assert_close(result.output, ours.fake(batches[0][:1]), atol=0, rtol=0)
    assert result.versions["pytorch_nndct"] == "0.0-standin" and result.versions["torch"] == torch.__version__
    assert result.xmodel.read_bytes() == b"standin" and result.export_error is None
    assert result.parameters == {} and result.losses == [] and result.seconds > 0
    made = calls(result.folder)
    assert [(call["call"], call.get("mode")) for call in made] == [
        ("torch_quantizer", "calib"),
        ("forward", "calib"),
        ("forward", "calib"),
        ("export_quant_config", None),
        ("torch_quantizer", "test"),
        ("forward", "test"),
        ("export_xmodel", None),
    ]
    assert [call["batch"] for call in made if call["call"] == "forward"] == [2, 2, 1]
    assert not any(call.get("training") for call in made) and made[-1]["deploy_check"] is False
    config = made[0]["config"]
    assert (config["include_cle"], config["include_bias_corr"], config["target_device"]) == (False, False, "DPU")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["job"]  # no leftovers beside it


def test_qat_keeps_batch_norm_and_brings_back_trained_weights(amd, tiny, batches, tmp_path):
    targets = [torch.zeros(2, 1, 32, 32)] * 2
    result = nndct.quantise(
        tiny, batches, batches[0][:1], folder=tmp_path / "job", mode="qat", targets=targets, steps=4, lr=1e-3
    )
    made = [call["call"] for call in calls(result.folder)]
    assert made[:2] == ["QatProcessor", "trainable_model"] and calls(result.folder)[0]["norms"] == 3
    assert made[2:8] == ["train", "train", "freeze_bn_stats", "train", "train", "to_deployable"]
    assert made[8:] == ["deployable_model", "forward", "export_xmodel"]
    deployed, forward = calls(result.folder)[8:10]
    assert deployed["used_for_xmodel"] is True and forward["batch"] == 1
    assert len(result.losses) == 4 and result.losses[2] < result.losses[0]
    trained = TinyED()
    left = trained.load_state_dict(result.parameters, strict=False)
    assert not left.unexpected_keys and all(key.endswith("num_batches_tracked") for key in left.missing_keys)
    assert not torch.equal(trained.e1.weight, tiny.e1.weight)
    again = with_positions(trained.eval(), result.fix_positions, batches[0])
    torch.testing.assert_close(result.output, again.fake(batches[0][:1]), atol=0, rtol=0)


def test_a_missing_xir_costs_the_xmodel_alone(amd, conv, tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_WITHOUT_XIR", "1")
    options = {"equalise": True, "correct_bias": True}
    result = nndct.quantise(conv, [X], X[:1], folder=tmp_path / "job", **options)
    assert result.xmodel is None and "no xir" in result.export_error and len(result.fix_positions) == 4
    config = calls(result.folder)[0]["config"]
    assert config["include_cle"] and config["include_bias_corr"]


def test_an_empty_folder_may_be_there_as_on_windows(conv, tmp_path, monkeypatch):
    """There no rename replaces a folder, not even an empty one."""
    folder, replace = tmp_path / "job", os.replace

    def strict(source, target):
        if os.path.isdir(target):
            raise PermissionError(target)
        replace(source, target)

    folder.mkdir()
    monkeypatch.setattr(os, "replace", strict)
    assert (nndct.prepare(conv, [X], X[:1], folder=folder) / "job.json").exists()


def test_a_command_may_be_a_path_of_windows(monkeypatch):
    monkeypatch.setenv(nndct.PYTHON, r'"C:\AMD tools\python.exe" -u')
    monkeypatch.setattr(sys, "platform", "win32")
    assert nndct._command() == [r"C:\AMD tools\python.exe", "-u"]
    monkeypatch.setenv(nndct.PYTHON, "docker exec 'my container")
    assert not nndct.status() and "names no Python that answers: No closing quotation" in nndct.status().reason


# --- the script for the container ------------------------------------------------------------------


def test_the_script_is_of_the_containers_python_and_stands_alone():
    source = Path(worker.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=SYNTAX)
    with pytest.raises(SyntaxError):
        ast.parse("match x:\n  case 1: pass", feature_version=SYNTAX)  # so that the line above says something
    imports = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {"json", "os", "platform", "sys", "time", "numpy", "torch", "pytorch_nndct"}
    assert {name.partition(".")[0] for name in imports} == allowed
    top = {a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names}
    assert "pytorch_nndct" not in top


class Everything(nn.Module):
    """Every operator of the interchange document once."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, (1, 3), (1, 1), (0, 2), (1, 2), groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.act, self.relu, self.shuffle = nn.LeakyReLU(26 / 256), nn.ReLU(), nn.PixelShuffle(2)
        self.six = nn.ReLU6()
        self.max, self.mean, self.pad = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.ZeroPad2d((0, 2, 1, 1))
        self.nearest, self.bilinear = nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        y = self.act(self.norm(self.first(x)))  # 8
        z = self.relu(self.grouped(y) + y)
        z = self.six(self.up(self.max(z)))  # 8
        z = torch.cat([self.nearest(self.mean(z)), self.bilinear(self.mean(z))], 1)
        z = self.shuffle(self.last(self.pad(z)))
        return torch.sigmoid(torch.tanh(torch.clamp(z, min=-0.5)))


def test_the_script_rebuilds_every_operator(tmp_path):
    import numpy as np

    torch.manual_seed(0)
    net, x = Everything(), torch.rand(2, 3, 16, 16)
    net(x)
    net.eval()
    for mode in ("ptq", "qat"):  # folded, and with BatchNorm
        nndct.prepare(net, [x], x[:1], folder=tmp_path / mode, mode=mode, targets=[x])
        graph = json.loads((tmp_path / mode / "graph.json").read_text())
        rebuilt = worker.Network(graph, np.load(tmp_path / mode / "tensors.npz")).eval()
        with torch.no_grad():
            torch.testing.assert_close(rebuilt(x), net(x))
    assert {"norm.running_mean", "grouped.weight"} <= rebuilt.state_dict().keys()  # under their own names


def test_the_script_rebuilds_a_module_called_twice_and_bicubic(tmp_path):
    import numpy as np

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            y = self.conv(self.conv(x))
            return nn.functional.interpolate(y, scale_factor=2, mode="bicubic")

    net, x = Twice().eval(), torch.rand(2, 3, 8, 8)
    folder = nndct.prepare(net, [x], x[:1], folder=tmp_path / "job")
    graph = json.loads((folder / "graph.json").read_text())
    arrays = dict(np.load(folder / "tensors.npz"))
    with torch.no_grad():
        torch.testing.assert_close(worker.Network(graph, arrays)(x), net(x))
    arrays["parameter/conv.weight"] = arrays["parameter/conv.weight"][:1]
    with pytest.raises(RuntimeError, match=r"conv\.weight"):
        worker.Network(graph, arrays)
    with pytest.raises(I2IError, match="called once"):
        nndct.prepare(net, [x], x[:1], folder=tmp_path / "qat", mode="qat", targets=[x])


def test_qat_form_of_the_network_meets_the_demands(amd, tmp_path, monkeypatch):
    """The stand-in refuses sums outside modules, tanh before DeQuantStub, a module called twice; this one passes."""
    torch.manual_seed(0)
    net = Generator(width=4, levels=3, out_channels=1).eval()
    x = torch.rand(2, 3, 16, 16)
    options = {"mode": "qat", "targets": [torch.zeros(2, 1, 16, 16)], "steps": 1}
    result = nndct.quantise(net, [x], x[:1], folder=tmp_path / "job", **options)
    assert "decoder.0.conv.weight" in result.fix_positions
    assert not [name for name in result.parameters if name not in net.state_dict()]


def test_the_stand_in_does_refuse(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(STANDINS))
    monkeypatch.chdir(tmp_path)
    from pytorch_nndct import QatProcessor

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) + x

    try:
        with pytest.raises(RuntimeError, match="not quantized"):
            QatProcessor(nn.Conv2d(3, 3, 1), (X,))
        with pytest.raises(RuntimeError, match=r"not quantized|must be instance"):
            QatProcessor(Sum(), (X,))
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "pytorch_nndct"]:
            del sys.modules[name]


# --- when it is absent, or fails -------------------------------------------------------------------------


def test_status_where_it_is_and_where_it_is_not(amd, monkeypatch):
    found = nndct.status()
    assert found and found.reason == "pytorch_nndct 0.0-standin"
    monkeypatch.delenv("PYTHONPATH")
    absent = nndct.status()
    assert not absent and "No module named 'pytorch_nndct'" in absent.reason
    monkeypatch.delenv(nndct.PYTHON)
    here = nndct.status()
    assert not here and "container" in here.reason and nndct.PYTHON in here.reason


def test_status_names_a_build_for_another_pytorch(pretender):
    pretender("", probe='echo "OSError: libnndct.so: undefined symbol: _ZN2at" >&2; exit 1')
    state = nndct.status()
    assert not state and "undefined symbol" in state.reason and "another PyTorch" in state.reason


def test_absence_is_told_before_anything_is_written(monkeypatch, conv, tmp_path):
    monkeypatch.setenv(nndct.PYTHON, str(tmp_path / "no-such-python"))
    with pytest.raises(UnavailableError, match="no Python that answers"):
        nndct.quantise(conv, [X], X[:1], folder=tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_a_crash_is_told_with_the_end_of_the_log(pretender, conv, tmp_path):
    lines = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; "
    pretender(lines + 'echo "ImportError: undefined symbol: _ZN2at"; exit 3')
    with pytest.raises(I2IError, match=r"code 3.*line 2999 \| ImportError.*another PyTorch") as error:
        nndct.quantise(conv, [X], X[:1], folder=tmp_path / "job")
    assert "line 2980 " not in str(error.value)  # the end, not all of it
    assert "line 0\n" in (tmp_path / "job" / "worker.log").read_text()


def test_a_job_that_hangs_is_stopped(pretender, conv, tmp_path):
    pretender("echo $$ > pid; echo calibrating; exec sleep 600")
    with pytest.raises(I2IError, match=r"none after 1\.5 s; the log ends: calibrating"):
        nndct.quantise(conv, [X], X[:1], folder=tmp_path / "job", timeout_s=1.5)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "job" / "pid").read_text()), 0)


def test_no_result_and_garbage_are_refused(pretender, conv, tmp_path):
    pretender("exit 0")
    with pytest.raises(IntegrityError, match="FileNotFoundError"):
        nndct.quantise(conv, [X], X[:1], folder=tmp_path / "none")
    folder = tmp_path / "none"
    import numpy as np

    for text, match in [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "quant_info"),
        ('{"quant_info": {"param": {}, "output": {}}}', "rounded tensors"),
    ]:
        (folder / "result.json").write_text(text)
        np.savez(folder / "output.npz", output=np.zeros(1))
        with pytest.raises(IntegrityError, match=match):
            nndct.collect(folder)
    (folder / "output.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(IntegrityError, match="AMD's quantiser"):
        nndct.collect(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mode": "fast"}, "'ptq' or 'qat'"),
        ({"batches": []}, "at least one batch"),
        ({"batches": [X, X[:, :, :4]]}, "one shape"),
        ({"test": X}, "one image"),
        ({"mode": "qat"}, "1 targets"),
        ({"mode": "qat", "targets": [X], "steps": 0}, "a step or more"),
    ],
)
def test_impossible_jobs_are_refused(conv, tmp_path, change, match):
    arguments = {"batches": [X], "test": X[:1], "folder": tmp_path / "job"} | change
    with pytest.raises(I2IError, match=match):
        nndct.prepare(conv, arguments.pop("batches"), arguments.pop("test"), **arguments)
    assert not (tmp_path / "job").exists()


def test_a_folder_in_use_and_a_network_that_qat_cannot_train(conv, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(I2IError, match="one in use"):
        nndct.prepare(conv, [X], X[:1], folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(I2IError, match="host's operators at the end"):
        nndct.prepare(
            nn.Sequential(conv, nn.Tanh(), nn.Conv2d(2, 2, 1)),
            [X],
            X[:1],
            folder=tmp_path / "q",
            mode="qat",
            targets=[X],
        )


def test_an_empty_folder_will_do_and_a_failure_leaves_none(conv, tmp_path, monkeypatch):
    (tmp_path / "job").mkdir()
    folder = nndct.prepare(conv, [X], X[:1], folder=tmp_path / "job")
    assert {"graph.json", "job.json", "tensors.npz", "tensors.json", "nndct_worker.py"} == {
        p.name for p in folder.iterdir()
    }

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("numpy.savez", full)
    with pytest.raises(OSError, match="disk full"):
        nndct.prepare(conv, [X], X[:1], folder=tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["job"]


def test_slopes_other_than_the_dpus_are_told(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.LeakyReLU(0.2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folder = nndct.prepare(net, [X], X[:1], folder=tmp_path / "job")
    assert any("26/256" in str(w.message) for w in caught)
    nodes = json.loads((folder / "graph.json").read_text())["nodes"]
    assert nodes[2]["attributes"] == {"slope": 26 / 256}
