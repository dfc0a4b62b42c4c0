"""Whatever is done with a model, and however it ends, the model stays as it was, and so does PyTorch's own state."""

import pytest
import torch
from torch import nn

from i2ilib import I2IError
from i2ilib.deploy import layers, make_runner, nncf, onnxruntime, openvino, tensorrt_engine
from i2ilib.deploy.pytorch import PytorchRunner
from i2ilib.deploy.staircase import staircase
from i2ilib.quant import inspect, nndct, qat, quantise, with_positions
from i2ilib.runtime import available

X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def step(net, x):
    net(x).square().mean().backward()


@pytest.fixture
def net():
    """A network in the middle of a training: parts frozen, weights computed from others, gradients, a hook."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding="same")),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1)),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(26 / 256),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)),
        nn.ReLU6(),
        nn.ConvTranspose2d(4, 3, 4, 2, 1),
        nn.Tanh(),
    ).train()
    net[5].eval().weight.requires_grad_(False)
    net[2].register_forward_hook(lambda module, inputs, output: output)
    step(net, X)
    return net


def state(net):
    """All of a model that a caller could notice: by module, and by tensor with its very bytes."""
    found = {
        "modes": [module.training for module in net.modules()],
        "kinds": [type(module) for module in net.modules()],
        "attributes": [sorted(vars(module)) for module in net.modules()],
        "hooks": [
            (list(module._forward_hooks.values()), list(module._forward_pre_hooks.values())) for module in net.modules()
        ],
        "caller": (torch.is_grad_enabled(), torch.get_rng_state().numpy().tobytes(), torch.get_default_dtype()),
    }
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        raw = [None if each is None else each.detach().numpy().tobytes() for each in (tensor, tensor.grad)]
        found[name] = (id(tensor), tensor.device, tensor.dtype, tensor.stride(), tensor.requires_grad, *raw)
    return found


def on_tensorrt(net, x, folder, monkeypatch):
    def absent(*args, **options):
        raise I2IError("engine", got="none")

    for name, value in {"machine": dict, "check_engine": absent, "build": lambda path, *_, **__: path}.items():
        monkeypatch.setattr(tensorrt_engine, name, value)
    monkeypatch.setattr(tensorrt_engine, "TensorRtRunner", lambda engine: engine)
    folder.mkdir(exist_ok=True)
    assert tensorrt_engine.from_pytorch(net, x, folder).exists()


def fine_tuned(net, x, folder):
    trainable = qat.Trainable(net, x, start=quantise(net, x))
    target = torch.zeros(len(x), 3, 32, 32)
    options = {"steps": 2, "lr": 0.1, "batch_norm": "live", "progress": False}
    qat.fine_tune(trainable, lambda step: (x, target), nn.functional.l1_loss, folder, **options)


def closed(runner, x):
    with runner:
        runner.run(x)


ENTRIES = {
    "quantise": lambda net, x, **_: quantise(net, x).integer(x),
    "quantise, repaired": lambda net, x, **_: quantise(net, x, equalise=True, correct_bias=True),
    "with_positions": lambda net, x, **_: with_positions(net, quantise(net, x).fix_positions, x).fake(x),
    "save": lambda net, x, folder, **_: quantise(net, x).save(folder / "net.safetensors"),
    "to_onnx": lambda net, x, folder, **_: quantise(net, x).to_onnx(folder / "net.onnx", form="cpu"),
    "inspect": lambda net, x, **_: inspect(net, example=x),
    "Trainable": lambda net, x, **_: qat.Trainable(net, x)(x),
    "fine_tune": lambda net, x, folder, **_: fine_tuned(net, x, folder / "qat"),
    "nndct": lambda net, x, folder, **_: nndct.prepare(net, x, x[:1], folder=folder / "job"),
    "nndct, QAT": lambda net, x, folder, **_: nndct.prepare(
        net, x, x[:1], folder=folder / "job", mode="qat", targets=[torch.zeros(4, 3, 32, 32)]
    ),
    "PyTorch": lambda net, x, **_: closed(PytorchRunner(net), x),
    "PyTorch, bf16": lambda net, x, **_: closed(PytorchRunner(net, precision="bf16"), x),
    "make_runner": lambda net, x, **_: closed(make_runner("torch", net, x), x),
    "ONNX Runtime": lambda net, x, **_: closed(onnxruntime.from_pytorch(net, x), x),
    "OpenVINO": lambda net, x, **_: closed(openvino.from_pytorch(net, x), x),
    "TensorRT": lambda net, x, folder, monkeypatch: on_tensorrt(net, x, folder / "tensorrt", monkeypatch),
    "NNCF": lambda net, x, **_: closed(nncf.from_pytorch(net, x), x),
    "staircase": lambda net, x, **_: staircase(net, quantise(net, x).on_device(), x),
    "layers": lambda net, x, **_: layers.layers(net, x),
}
NEEDS = {"NNCF": "nncf", "OpenVINO": "openvino", "staircase": "openvino", "ONNX Runtime": "onnxruntime"}


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_model_stays_as_it_is(net, entry, tmp_path, monkeypatch):
    if entry in NEEDS and not (there := available(NEEDS[entry])):
        pytest.skip(there.reason)
    torch.manual_seed(1)
    before = state(net)
    ENTRIES[entry](net, X, folder=tmp_path, monkeypatch=monkeypatch)
    assert state(net) == before
    step(net, X)  # and it can still be trained


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry != "layers"])
def test_the_model_stays_as_it_is_where_it_fails(net, entry, tmp_path, monkeypatch):
    if entry in NEEDS and not (there := available(NEEDS[entry])):
        pytest.skip(there.reason)
    torch.manual_seed(1)
    before = state(net)
    with pytest.raises((I2IError, RuntimeError)):  # of an engine or of PyTorch itself, which says the same of channels
        ENTRIES[entry](
            net, torch.rand(4, 5, 16, 16, generator=torch.Generator()), folder=tmp_path, monkeypatch=monkeypatch
        )
    assert state(net) == before
    step(net, X)


def test_the_state_shows_what_could_change(net):
    """So that the tests above can fail."""
    changes = {
        "eval": lambda net: net.eval(),
        "a mode": lambda net: net[5].train(),
        "gradients": lambda net: net.zero_grad(),
        "frozen": lambda net: net[9].weight.requires_grad_(False),
        "statistics": lambda net: net(X),
        "a hook": lambda net: net[0].register_forward_hook(print),
        "a norm": lambda net: nn.utils.remove_weight_norm(net[4]),
        "a seed": lambda net: torch.rand(1),
        "double": lambda net: net.double(),
    }
    for name, change in changes.items():
        before = state(net)
        change(net)
        assert state(net) != before, name
