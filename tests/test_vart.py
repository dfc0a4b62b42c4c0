"""VART is a stand-in with its interface and its traps; what it computes are the exact integers, in another process."""

import ast
import dataclasses
import json
import os
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from standins import vart as standin
from standins.write_xmodel import write_xmodel
from standins.xir import field
from torch import nn

from i2ilib import I2IError, IntegrityError, UnavailableError
from i2ilib.deploy import Runner, vart, vart_worker, verify, xmodel
from i2ilib.deploy.vart import VartRunner, from_pytorch, host_tail
from i2ilib.deploy.xmodel import compile_xmodel
from i2ilib.models import Generator, SRUNet, UNet
from i2ilib.quant import nndct, quantise, with_positions

STANDINS = Path(__file__).parent / "standins"
COMPILER = f"{sys.executable} {STANDINS / 'vai_c_xir'}"
ISA2, DWC = 0x20200000010002A, 0x20200000010002B
SYNTAX = (3, 6)  # of the oldest container's Python


@pytest.fixture
def card(monkeypatch):
    """A card is here, with VART in another Python; a function sets how it behaves."""
    monkeypatch.setenv("PYTHONPATH", str(STANDINS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(vart.PYTHON, f"env STAND=IN {sys.executable}")
    monkeypatch.setenv(vart.CARD, hex(ISA2))
    monkeypatch.setenv(xmodel.VAI_C, COMPILER)
    return lambda **how: [monkeypatch.setenv(f"STANDIN_{name}", value) for name, value in how.items()]


def noise(n, size, seed=1):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def network(name):
    torch.manual_seed(0)
    net = {
        "generator": lambda: Generator(width=4, levels=4, out_channels=1),
        "srunet": lambda: SRUNet(n_filters=8, residual=False),
        "unet": lambda: UNet(filters=(4, 4, 8, 8), residual=False),
        "small": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Tanh()),
        "bare": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()),
    }[name]()
    with torch.no_grad():
        net(noise(4, 16))  # running statistics
    return net.eval()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Name, and whatever the compiler is told: compiled xmodel and network."""
    kept = {}

    def make(name, **how):
        key = name, *sorted(how.items())
        if key not in kept:
            folder = tmp_path_factory.mktemp(name)
            quantised = quantise(network(name), [noise(2, 16)])
            source = write_xmodel(folder / "net_int.xmodel", quantised)
            with pytest.MonkeyPatch.context() as patch:
                for variable, value in how.items():
                    patch.setenv(f"STANDIN_{variable}", value)
                kept[key] = compile_xmodel(source, folder / "net.xmodel", command=COMPILER), quantised
        return kept[key]

    return make


# --- the same integers -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "engines"), [("generator", 3), ("srunet", 4), ("unet", 1)])
def test_every_integer_is_the_one_of_the_reference(card, compiled, name, engines, tmp_path):
    card(ENGINES=str(engines), CALLS=str(tmp_path / "calls"))
    path, quantised = compiled(name)
    x = noise(7, 16)
    x[0, 0, 0, :4] = torch.tensor([1.5, -1.5, 0.5 / 64, -0.5 / 64])  # saturates, and ties
    with VartRunner(path, quantised=quantised, jobs=4) as runner:
        assert isinstance(runner, Runner)
        runner.prepare((2, 3, 16, 16))
        assert verify(runner, quantised.integer(x), x) == 0
        torch.testing.assert_close(runner.run(x), quantised.fake(x), rtol=0, atol=1e-6)
        out = runner.run(x[:1])
        assert out.dtype == torch.float32 and out.is_contiguous() and torch.equal(out, quantised.integer(x[:1]))
        told = runner.describe()
    assert told["engines"] == engines and told["jobs"] == 4 and told["origin"] == "measured"
    assert (told["target"], told["device"], told["precision"]) == ("VART", "Alveo U50", "int8")
    assert told["versions"]["vart"] == "0.0-standin" and told["dpu"].startswith(hex(ISA2))
    asked = Counter(line.split()[0] for line in (tmp_path / "calls").read_text().splitlines())
    parts = -(-2 // engines) + 2 * -(-7 // engines) + 1
    assert asked == {"async": parts, "wait": parts}


def test_many_batches_from_many_threads_in_flight_together(card, compiled, tmp_path):
    """The stand-in runs the last job first and reads its arrays late: a mix-up or an early reuse would show."""
    card(CALLS=str(tmp_path / "calls"))
    path, quantised = compiled("small")
    batches = [noise(1 + i % 5, 16, seed=i) for i in range(24)]
    answers = {}
    with VartRunner(path, quantised=quantised, jobs=5) as runner:

        def work(mine):
            futures = {}
            for i in mine:
                futures[i] = runner.submit(sent := batches[i].clone())
                sent.zero_()  # it may change at once
            answers.update({i: future.result(60) for i, future in futures.items()})

        threads = [threading.Thread(target=work, args=(range(start, 24, 4),)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = runner.submit(batches[0])  # leaving waits for it
    assert last.done() and torch.equal(last.result(), quantised.integer(batches[0]))
    assert all(torch.equal(answers[i], quantised.integer(batches[i])) for i in range(24))
    flying, most = 0, 0
    for line in (tmp_path / "calls").read_text().splitlines():
        flying += 1 if line.startswith("async") else -1
        most = max(most, flying)
    assert flying == 0 and 2 <= most <= 5


def test_a_tail_of_ones_own_none_at_all_and_the_output_by_name(card, compiled):
    path, quantised = compiled("small")
    x, core = noise(2, 16), quantised.on_device()
    assert torch.equal(host_tail(quantised)(core.integer(x)), quantised.integer(x))
    with VartRunner(compiled("bare")[0]):  # nothing is left to the host
        pass
    card(OUTPUTS="2")  # another one comes first
    with VartRunner(path, tail=lambda y: y, output="net__last_fix") as runner:
        assert verify(runner, core.integer(x), x) == 0
    for output in (None, "net__other"):
        with pytest.raises(I2IError, match="output: expected one of net__another_fix, net__last_fix"):
            VartRunner(path, quantised=quantised, output=output)


def test_the_hosts_tail_is_every_operator_at_the_end_in_its_order():
    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return torch.clamp(torch.tanh(self.conv(x)), -0.25, 0.1)

    torch.manual_seed(0)
    quantised = quantise(Tail(), [noise(2, 8)])
    y = torch.linspace(-2, 2, 32).view(1, 2, 4, 4)
    assert torch.equal(host_tail(quantised)(y), torch.tanh(y).clamp(-0.25, 0.1))
    assert torch.equal(host_tail(quantised.on_device())(y), y)


# --- the whole road ----------------------------------------------------------------------------------


def test_from_a_float_network_to_the_card(card, monkeypatch, tmp_path):
    monkeypatch.setenv(nndct.PYTHON, sys.executable)
    net, batches, real = network("small"), list(noise(4, 16).split(2)), nndct.quantise

    def with_an_xmodel(*arguments, **options):  # the stand-in of the quantiser exports a token
        result = real(*arguments, **options)
        write_xmodel(result.xmodel, with_positions(net, result.fix_positions, batches[0]))
        return result

    monkeypatch.setattr(nndct, "quantise", with_an_xmodel)
    with from_pytorch(net, batches, folder=tmp_path / "road", arch=hex(ISA2)) as runner:
        assert verify(runner, quantise(net, batches).integer(batches[0]), batches[0]) == 0
    assert sorted(p.name for p in (tmp_path / "road").iterdir()) == [
        "network.xmodel",
        "network.xmodel.json",
        "quantise",
    ]
    result = nndct.collect(tmp_path / "road" / "quantise")
    failed = dataclasses.replace(result, xmodel=None, export_error="ImportError: no xir")
    monkeypatch.setattr(nndct, "quantise", lambda *_, **__: failed)
    with pytest.raises(UnavailableError, match=r"an export by AMD's quantiser, got ImportError: no xir"):
        from_pytorch(net, batches, folder=tmp_path / "other")


# --- what is refused ---------------------------------------------------------------------------------


def test_another_card_is_refused_with_both_fingerprints(card, compiled):
    path, quantised = compiled("small")
    match = r"card's DPU, 0x20200000010002b \(DPUCAHX8H_ISA2_DWC\), got one for 0x20200000010002a \(DPUCAHX8H_ISA2\)"
    for other in (DWC, hex(DWC)):
        with pytest.raises(I2IError, match=match + r"\. Compile it for the card: .*arch='0x20200000010002b'") as error:
            VartRunner(path, quantised=quantised, card=other)
        assert "CHECK" not in str(error.value)  # nobody is told to switch anything off
    path, quantised = compiled("small", FINGERPRINT="0x0")  # names no DPU in the file; the sidecar is asked for nothing
    (sidecar := path.with_name("net.xmodel.json")).unlink()
    with pytest.raises(I2IError, match="got one for an unknown DPU"):
        VartRunner(path, quantised=quantised)
    assert not sidecar.exists()


def test_a_sidecar_that_says_another_dpu_is_refused(card, compiled):
    path, quantised = compiled("small", COPY="1")
    about = path.with_name("net.xmodel.json")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"fingerprint": hex(DWC)}))
    with pytest.raises(I2IError, match=r"0x20200000010002a .*, 0x20200000010002b"):
        VartRunner(path, quantised=quantised)
    path.write_bytes(path.read_bytes() + b"\x38\x01")
    with pytest.raises(IntegrityError, match="SHA-256"):
        VartRunner(path, quantised=quantised)


def test_what_vart_finds_itself_ends_its_process_alone(card, compiled, tmp_path):
    card(CARD=hex(DWC))  # the card is another than it said
    path, quantised = compiled("small")
    with pytest.raises(I2IError, match=r"an xmodel that VART runs, got .*fingerprint fail .*0x20200000010002b"):
        VartRunner(path, quantised=quantised)
    other = tmp_path / "net.xmodel"
    other.write_bytes(field(1, "net") + field(5, field(1, "a") + field(2, "conv2d")))
    with pytest.raises(I2IError, match="Check failed"):
        VartRunner(other, quantised=quantised)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"SPLIT": "resize"}, r"first of all, got 2; the CPU has: resize \(net__resize_0\)\. i2ilib\.quant\.inspect"),
        ({"BEFORE": "transpose"}, r"first of all, got 1; the CPU has: transpose \(net__transpose_0\)"),
    ],
)
def test_a_graph_that_is_split_is_refused_with_the_operators(card, compiled, how, match):
    path, quantised = compiled("small", **how)
    with pytest.raises(I2IError, match=match):
        VartRunner(path, quantised=quantised)


def test_an_xmodel_before_it_is_compiled_is_refused(card, compiled):
    path, quantised = compiled("small")
    with pytest.raises(I2IError, match=r"got 0; the CPU has: nothing\. Compile it first"):
        VartRunner(path.with_name("net_int.xmodel"), quantised=quantised)
    with pytest.raises(I2IError, match="no file"):
        VartRunner(path.with_name("other.xmodel"))


def test_the_hosts_part_must_be_given(card, compiled):
    path, quantised = compiled("small")
    with pytest.raises(I2IError, match=r"the host's part, got tanh \(.*\)\. Give quantised="):
        VartRunner(path)
    with pytest.raises(I2IError, match="one of them, got both"):
        VartRunner(path, quantised=quantised, tail=torch.tanh)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"INPUTS": "2"}, "one input, and images"),
        ({"TYPE": "xint16"}, "int8 tensors, got others: net__input_0_fix, net"),
    ],
)
def test_tensors_that_are_no_int8_images(card, compiled, how, match):
    card(**how)
    path, quantised = compiled("small")
    with pytest.raises(I2IError, match=match):
        VartRunner(path, quantised=quantised)


def test_the_xmodel_of_another_network_is_refused(card, compiled):
    path, quantised = compiled("small")
    fp = quantised.fix_positions["input"]
    with pytest.raises(
        I2IError, match=rf"input: expected .*fix position {fp + 1}, got .*fix position {fp}\. The xmodel"
    ):
        VartRunner(path, quantised=quantised.moved({"input": fp + 1}))
    last = quantised.sites[-1].name
    with pytest.raises(I2IError, match=f"net__last_fix, {last}: expected"):
        VartRunner(path, quantised=quantised.moved({last: quantised.fix_positions[last] - 1}))
    with pytest.raises(I2IError, match=r"expected \(H, W, C\) \(16, 16, 4\) at fix.*, got \(H, W, C\) \(16, 16, 2\)"):
        VartRunner(path, quantised=compiled("bare")[1].moved({"input": fp}))


def test_arguments_and_batches(card, compiled):
    path, quantised = compiled("small")
    for options in ({"jobs": 0}, {"timeout_s": 0}):
        with pytest.raises(I2IError, match="1 or more, above 0"):
            VartRunner(path, quantised=quantised, **options)
    with VartRunner(path, quantised=quantised) as runner:
        with pytest.raises(I2IError, match=r"\(C, H, W\) = \(3, 16, 16\).*compiled for, got \(1, 3, 8, 16\)"):
            runner.run(torch.zeros(1, 3, 8, 16))
        with pytest.raises(I2IError, match="float32 on the CPU"):
            runner.submit(torch.zeros(1, 3, 16, 16, dtype=torch.float64))
    runner.__exit__()  # twice is once
    with pytest.raises(I2IError, match="an open runner"):
        runner.run(noise(1, 16))


# --- when it fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "status"), [("submit", "-1: execute_async"), ("wait", "7: wait")])
def test_a_bad_status_costs_its_batch_alone(card, compiled, fault, status):
    card(FAULT=fault)
    path, quantised = compiled("small")
    with VartRunner(path, quantised=quantised, jobs=3) as runner:
        futures = [runner.submit(noise(2, 16)) for _ in range(3)]
        assert futures[0].result(60).shape == futures[2].result(60).shape == (2, 2, 16, 16)
        with pytest.raises(I2IError, match=f"status 0, got {status}"):
            futures[1].result(60)


@pytest.mark.parametrize(
    ("fault", "match"), [("crash", "one that ended: .*CU timeout"), ("raise", "one that ended: .*bad ticket")]
)
def test_a_process_that_dies_fails_what_is_in_flight_and_all_after(card, compiled, fault, match):
    card(FAULT=fault)
    path, quantised = compiled("small")
    with VartRunner(path, quantised=quantised, jobs=2) as runner:
        future = runner.submit(noise(1, 16))
        assert not future.cancel()
        with pytest.raises(I2IError, match=match):
            future.result(60)
        for _ in range(4):  # more than there are slots
            with pytest.raises(I2IError, match=match):
                runner.run(noise(7, 16))


def test_a_card_that_hangs_is_given_up(card, compiled):
    card(FAULT="hang")
    path, quantised = compiled("small")
    with VartRunner(path, quantised=quantised) as runner:
        runner.timeout_s = 0.7  # from now on: to start may take longer on a busy machine
        futures = [runner.submit(noise(1, 16)) for _ in range(2)]
        for future in futures:
            with pytest.raises(I2IError, match=r"an answer in 0\.7 s, got none"):
                future.result(60)
    assert runner.process.returncode is not None


def test_leaving_does_not_wait_for_ever(card, compiled):
    card(FAULT="hang")
    path, quantised = compiled("small")
    with VartRunner(path, quantised=quantised) as runner:
        runner.timeout_s = 0.5
        future = runner.submit(noise(1, 16))
    with pytest.raises(I2IError, match=r"an answer in|one that ended"):
        future.result(0)


def test_leaving_waits_for_all_jobs_however_many(card, compiled):
    card(FAULT="slow")
    path, quantised = compiled("small")
    with VartRunner(path, quantised=quantised) as runner:
        runner.timeout_s = 1
        futures = [runner.submit(noise(1, 16)) for _ in range(4)]  # longer than timeout_s together
    assert [future.result(0).shape for future in futures] == [(1, 2, 16, 16)] * 4


def test_an_interrupt_amid_a_job_does_not_shift_the_next_ones_bytes(card, compiled, monkeypatch):
    path, quantised = compiled("small")
    with VartRunner(path, quantised=quantised) as runner:
        tell = runner._tell

        def interrupted(data):
            tell(data[:100])
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(runner, "_tell", interrupted)
            with pytest.raises(KeyboardInterrupt):
                runner.submit(noise(1, 16))
        with pytest.raises(I2IError, match="one that ended"):
            runner.run(noise(1, 16))


def test_a_start_that_takes_too_long_is_given_up(card, compiled, monkeypatch):
    path, quantised = compiled("small")
    monkeypatch.setenv(vart.PYTHON, "sh -c 'echo warming up >&2; exec sleep 600'")
    with pytest.raises(I2IError, match=r"an answer, got none in 0\.5 s; it said: warming up\. Give it more time"):
        VartRunner(path, quantised=quantised, timeout_s=0.5)


def test_an_error_of_the_tail_reaches_who_waits(card, compiled):
    card(FAULT="idle")
    path, _ = compiled("small")
    with VartRunner(path, tail=lambda y: y.nonsense()) as runner:
        for _ in range(2):
            with pytest.raises(AttributeError, match="nonsense"):
                runner.run(noise(1, 16))


# --- what is here, and what is not ---------------------------------------------------------------------


def test_status_tells_versions_and_the_card(card, monkeypatch):
    state = vart.status()
    assert state and state.reason == f"vart 0.0-standin, DPU {hex(ISA2)} (DPUCAHX8H_ISA2)"
    assert vart.status(DWC).reason.endswith("ISA2_DWC)")
    monkeypatch.delenv(vart.CARD)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    nothing = vart.status()
    assert not nothing and "no tool for it" in nothing.reason and vart.CARD in nothing.reason


def test_settings_that_are_none_are_told_not_raised(card, compiled, monkeypatch):
    for number in ("0xcard", "'no end"):
        monkeypatch.setenv(vart.CARD, number)
        assert not (state := vart.status()) and number in state.reason
    monkeypatch.setenv(vart.CARD, hex(ISA2))
    monkeypatch.setenv(vart.PYTHON, "echo hello")
    assert "prints more than Python does: 'hello" in vart.status().reason
    monkeypatch.setenv(vart.PYTHON, "'no end")
    assert "No closing quotation" in vart.status().reason
    with pytest.raises(UnavailableError, match="No closing quotation"):
        VartRunner(compiled("small")[0])


@pytest.mark.parametrize(
    ("prints", "found"),
    [
        (
            "device_core_id=0 device= 0 core = 0 fingerprint = 0x20200000010002a batch = 3 full_cu_name=DPUCAHX8H:1",
            ISA2,
        ),
        ('{"kernels":[{"DPU Arch":"x","fingerprint":"0x20200000010002b"},{"fingerprint":"0x20200000010002b"}]}', DWC),
        (
            "cu[0]: device_id 0 kernel_name DPU fingerprint 0x20200000010002a cu_handle 0x55 cu[1]: fingerprint 0x0",
            ISA2,
        ),
        ("fingerprint = 0x2a\nfingerprint = 0x2b", "got 0x2a, 0x2b"),
        ("no device found", "none; show_dpu says: no device found"),
    ],
)
def test_the_card_is_asked_by_amds_tools(monkeypatch, tmp_path, prints, found):
    monkeypatch.delenv(vart.CARD, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    (tmp_path / "show_dpu").write_text(f"#!/bin/sh\ncat <<'END'\n{prints}\nEND\n")
    (tmp_path / "show_dpu").chmod(0o755)
    for card in (None, "show_dpu -v"):
        if isinstance(found, int):
            assert vart._card(card) == found
        else:
            with pytest.raises(UnavailableError, match=found.replace("show_dpu", card or "show_dpu")):
                vart._card(card)
    with pytest.raises(UnavailableError, match=r"none; nowhere says: .*No such file"):
        vart._card("nowhere")


def test_absence_names_the_reason(card, compiled, monkeypatch, tmp_path):
    path, quantised = compiled("small")
    monkeypatch.delenv("PYTHONPATH")
    absent = vart.status()
    assert not absent and "No module named 'vart'" in absent.reason and "container" in absent.reason
    with pytest.raises(UnavailableError, match=r"VART and xir, got .*No module named 'vart'.*container"):
        VartRunner(path, quantised=quantised)
    monkeypatch.setenv(vart.PYTHON, str(tmp_path / "no-such-python"))
    assert not (state := vart.status()) and "no Python that answers" in state.reason
    with pytest.raises(UnavailableError, match=f"a Python, from {vart.PYTHON}"):
        VartRunner(path, quantised=quantised)


def test_windows_has_no_driver_of_the_card(card, compiled, monkeypatch):
    path, quantised = compiled("small")
    monkeypatch.setattr(sys, "platform", "win32")
    assert not (state := vart.status()) and "expected Linux" in state.reason and "container" in state.reason
    with pytest.raises(UnavailableError, match="where the card's driver is, got Windows"):
        VartRunner(path, quantised=quantised)


@pytest.mark.parametrize(
    ("module", "text", "match"),
    [
        ("xir", "", "not AMD's"),  # the package of that name on PyPI has no Graph
        ("vart", "raise ImportError('libvart.so: undefined symbol: _ZN3xir')", "another Python"),
    ],
)
def test_modules_that_are_not_amds_or_of_another_build(card, compiled, monkeypatch, tmp_path, module, text, match):
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{STANDINS}")
    assert not (state := vart.status()) and match in state.reason
    path, quantised = compiled("small")
    with pytest.raises(UnavailableError, match=match):
        VartRunner(path, quantised=quantised)


def test_the_script_is_of_the_containers_python_and_stands_alone():
    source = Path(vart_worker.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=SYNTAX)
    with pytest.raises(SyntaxError):
        ast.parse("(x := 1)", feature_version=SYNTAX)  # so that the line above says something
    imports = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {"collections", "json", "numpy", "os", "platform", "select", "struct", "sys", "vart", "xir"}
    assert {name.partition(".")[0] for name in imports} == allowed
    assert len(source) < 2**17  # one argument of a command


def test_the_stand_in_has_varts_traps():
    """Else the tests above would say little."""
    tensor = standin.Tensor("t", [1, 2, 2, 1], 6)
    runner = object.__new__(standin.Runner)
    runner.inputs = runner.outputs = [tensor]
    runner.pending, runner.done, runner.count, runner.network = {}, {}, 0, _Echo()
    a, b = np.full((1, 2, 2, 1), 5, np.int8), np.full((1, 2, 2, 1), 6, np.int8)
    outs = [np.zeros((1, 2, 2, 1), np.int8) for _ in range(2)]
    tickets = [runner.execute_async([a], [outs[0]]), runner.execute_async([a], [outs[0]])]
    a[...] = b  # too early
    assert [runner.wait(ticket) for ticket in tickets] == [0, 0] and (outs[0] == 6).all()
    floats = np.array([2.5, -2.5, 1.999, -0.99], np.float32).reshape(1, 2, 2, 1)  # at fp 6: 160, -160, 127.9, -63.4
    runner.wait(runner.execute_async([floats], [outs[1]]))
    assert outs[1].ravel().tolist() == [-96, 96, 127, -63]  # wrapped, and truncated
    a.flags.writeable = False
    with pytest.raises(BufferError):
        runner.execute_async([a], [outs[0]])


class _Echo:
    """A network that gives back what it gets."""

    def integer(self, x):
        return x
