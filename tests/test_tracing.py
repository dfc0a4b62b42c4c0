"""What a model computes is the same however it is written: against PyTorch itself, and against the plain spelling."""

import threading

import pytest
import torch
from test_integer import Net, agree
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from i2ilib import I2IError
from i2ilib.quant import inspect, load, quantise, with_positions
from i2ilib.quant.qat import Trainable
from i2ilib.quant.tracing import evaluation_copy

X = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


def conv(ci=3, co=4, **options):
    return nn.Conv2d(ci, co, 3, **options)


def same(net, plain, x=X):
    """Two networks have one result, and it is the model's."""
    first, second = quantise(net, x), quantise(plain, x)
    assert first.fix_positions == second.fix_positions
    assert torch.equal(first.integer(x), second.integer(x)) and torch.equal(first.fake(x), first.integer(x))
    with torch.no_grad():
        torch.testing.assert_close(first.folded(x), net.eval()(x), atol=1e-6, rtol=1e-5)
    rows = [[(r.operator, r.tensor, r.shape, r.device) for r in inspect(n, example=x).rows] for n in (net, plain)]
    assert rows[0] == rows[1] and inspect(net, example=x).cpu == []
    return first


# --- weights that are computed from others -------------------------------------------------------------

NORMS = {
    "weight_norm": nn.utils.weight_norm,
    "parametrised weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "parametrised spectral_norm": nn.utils.parametrizations.spectral_norm,
    "pruning": lambda module: prune.l1_unstructured(module, "weight", 0.3),
    "both": lambda module: prune.random_unstructured(nn.utils.weight_norm(module), "bias", 0.5),
}


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_norms_of_weights_after_a_step_of_training(name, training):
    torch.manual_seed(0)
    net = nn.Sequential(NORMS[name](conv()), nn.BatchNorm2d(4), nn.ReLU(), NORMS[name](conv(4, 2))).train()
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    net(X).square().mean().backward()
    optimiser.step()
    net(X).mean().backward()
    net.train(training)
    quantise(net, X)  # before evaluation has touched the weights again
    net.eval()
    with torch.no_grad():
        net(X)  # hooks put the weights where they can be read
    plain = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 2)).eval()
    plain[1].load_state_dict(net[1].state_dict())
    with torch.no_grad():
        for index in (0, 3):
            plain[index].weight.copy_(net[index].weight)
            plain[index].bias.copy_(net[index].bias)
    same(net, plain)


def test_copy_leaves_the_class_of_a_parametrised_model_alone():
    net = nn.utils.parametrizations.weight_norm(conv())
    copied = evaluation_copy(net)
    assert type(copied) is nn.Conv2d and "weight" in dict(copied.named_parameters())
    assert torch.equal(net(X), copied(X)) and "weight" not in dict(net.named_parameters())


def test_weight_that_the_forward_computes(tmp_path):
    torch.manual_seed(0)
    net = Net(lambda net, x: F.conv2d(x, net.c.weight * 0.5, net.c.bias - 1, padding=1).relu(), c=conv(padding=1))
    quantised = quantise(nn.Sequential(net, nn.Conv2d(4, 3, 1)), X)
    plain = nn.Sequential(conv(padding=1), nn.ReLU())
    with torch.no_grad():
        plain[0].weight.copy_(net.c.weight * 0.5)
        plain[0].bias.copy_(net.c.bias - 1)
    assert torch.equal(quantise(net, X).integer(X), quantise(plain, X).integer(X))
    again = load(quantised.save(tmp_path / "net.safetensors"))
    assert torch.equal(again.integer(X), quantised.integer(X))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda x: x, "model: expected a torch.nn.Module, got function"),
        (nn.Conv2d(3, 3, 1, device="meta"), "Conv2d: expected a module that can be copied"),
        (Net(lambda net, x: net.c(x), c=conv()), "Net: expected a module that can be copied, got TypeError"),
    ],
)
def test_what_cannot_be_copied_is_refused(net, message):
    if isinstance(net, Net):
        net.lock = threading.Lock()
    for call in (lambda: quantise(net, X), lambda: inspect(net, example=X)):
        with pytest.raises(I2IError, match=message):
            call()


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_model_of_another_float_is_taken_as_float32(kind):
    net = nn.Sequential(conv(), nn.ReLU()).to(kind)
    assert torch.equal(quantise(net, X).integer(X), quantise(evaluation_copy(net), X).integer(X))
    assert net[0].weight.dtype == kind


# --- gradients on and off --------------------------------------------------------------------------------


def switched(net, x):
    torch.set_grad_enabled(True)
    y = net.a(x)
    torch.set_grad_enabled(False)
    return net.b(y.relu())


def nested(net, x):
    with torch.enable_grad():
        y = net.a(x)
        with torch.no_grad(), torch.enable_grad():
            y = y.relu()
    return net.b(y)


def partly(net, x):
    with torch.no_grad():
        y = net.a(x)
    return net.b(F.relu(y))


def written(net, x):
    return net.b(net.a(x).relu())


GRADIENTS = {
    "no_grad": torch.no_grad()(written),
    "inference_mode": torch.inference_mode()(written),
    "enable_grad": torch.enable_grad()(written),
    "part of it": partly,
    "set_grad_enabled": switched,
    "nested": nested,
    "detached": lambda net, x: net.b(net.a(x.detach()).relu().detach()),
}


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("outside", [True, False])
def test_gradients_off_make_no_difference(name, outside):
    torch.manual_seed(0)
    net, plain = (Net(call, a=conv(), b=conv(4, 2)) for call in (GRADIENTS[name], written))
    plain.load_state_dict(net.state_dict())
    with torch.set_grad_enabled(outside):
        first, second = quantise(net, X), quantise(plain, X)
        assert torch.is_grad_enabled() == outside
        found = inspect(net, example=X)
        assert torch.is_grad_enabled() == outside
    assert list(first.fix_positions.values()) == list(second.fix_positions.values())
    assert torch.equal(first.integer(X), second.integer(X))
    assert [r.operator for r in found.rows if r.device != "none"] == ["conv2d", "relu", "conv2d"] and not found.cpu


# --- padding by a word, operators in place, ReLU6, means -------------------------------------------------


@pytest.mark.parametrize("kernel", [3, 5, (1, 3)])
@pytest.mark.parametrize("dilation", [1, (1, 2)])
@pytest.mark.parametrize("word", ["same", "valid"])
def test_padding_by_a_word_is_that_by_numbers(kernel, dilation, word):
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, kernel, padding=word, dilation=dilation)
    pairs = zip(first.kernel_size, first.dilation, strict=True)
    numbers = [d * (k - 1) // 2 if word == "same" else 0 for k, d in pairs]
    second = nn.Conv2d(3, 4, kernel, padding=numbers, dilation=dilation)
    second.load_state_dict(first.state_dict())
    same(nn.Sequential(first, nn.ReLU()), nn.Sequential(second, nn.ReLU()))


@pytest.mark.parametrize("kernel", [2, 4, (2, 3), (3, 2)])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_an_odd_line_of_padding_goes_below_and_right(kernel, dilation):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, kernel, padding="same", dilation=dilation), nn.ReLU())
    quantised = quantise(net, X)
    with torch.no_grad():
        assert torch.equal(quantised.folded(X), net(X))
    agree(quantised, X)
    assert inspect(net, example=X).cpu == []
    assert list(quantised.fix_positions)[-1] == "1" and "0.weight" in quantised.fix_positions


@pytest.mark.parametrize("between", [nn.Identity(), nn.Dropout(), nn.Dropout2d(inplace=True)])
def test_who_writes_in_place_writes_for_every_name_of_the_tensor(between):
    def forward(net, x):
        y = net.a(x)
        F.relu(net.between(y), inplace=True)
        return net.b(y)

    net = Net(forward, a=conv(), b=conv(4, 2), between=between).eval()
    quantised = quantise(net, X)
    with torch.no_grad():
        assert torch.equal(quantised.folded(X), net(X))
    net.compute = lambda net, x: (y := net.a(x), F.relu(y.clone(), inplace=True), net.b(y))[2]  # into a copy
    with torch.no_grad():
        assert torch.equal(quantise(net, X).folded(X), net(X))


@pytest.mark.parametrize("fp", [-5, -3, -2, -1, 0, 2, 4, 5, 7])
@pytest.mark.parametrize("fp_in", [-4, -1, 3])
def test_relu6_at_every_position(fp, fp_in):
    """Six is cut where the grid has it, rounded where it has not, and beyond saturation where it cannot hold it."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU6())
    x = torch.arange(-128, 128).reshape(1, 1, 16, 16) * 2.0**-fp_in
    quantised = with_positions(net, {"input": fp_in, "0.weight": 0, "1": fp}, x)
    nn.init.ones_(quantised.folded.get_submodule("0").weight)
    want = torch.floor(x.double().clamp(0, 6) * 2.0**fp + 0.5).clamp(max=127) * 2.0**-fp
    assert torch.equal(quantised.integer(x).double(), want) and torch.equal(quantised.fake(x).double(), want)


@pytest.mark.parametrize("form", ["plain", "cpu", "float"])
def test_relu6_in_engines(form, tmp_path):
    from i2ilib.deploy.onnxruntime import OnnxRuntimeRunner

    torch.manual_seed(0)
    net = nn.Sequential(
        conv(padding=1), nn.ReLU6(), nn.Conv2d(4, 4, 4, 2, 1), nn.ReLU6(), nn.ConvTranspose2d(4, 2, 4, 2, 1)
    )
    for index in (0, 2):
        nn.init.normal_(net[index].weight, 0, 2)
    quantised = quantise(net, X)
    assert (quantised.activations(X)["1"] == 3.984375).any() or (quantised.activations(X)["1"] == 6).any()
    path = quantised.to_onnx(tmp_path / "net.onnx", form=form)
    with OnnxRuntimeRunner(path, optimise=False) as runner:
        assert torch.equal(runner.run(X), quantised.integer(X))
    again = load(quantised.save(tmp_path / "net.safetensors"))
    assert torch.equal(again.integer(X), quantised.integer(X))


def test_networks_of_every_spelling_are_trained():
    torch.manual_seed(0)
    first = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 2, padding="same", bias=False))
    trainable = Trainable(nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU6(), conv(4, 2)), X)
    trainable.train()(X).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainable.parameters())
    assert torch.equal(trainable.eval()(X), trainable.quantised().integer(X))


@pytest.mark.parametrize("kernel", [3, 5, 6, 7, (2, 3)])
def test_means_that_the_dpu_approximates_are_named_by_both(kernel):
    net = nn.Sequential(conv(padding=1), nn.AvgPool2d(kernel))
    with pytest.raises(I2IError, match=r"^1: expected a mean over 2, 4, 8.*the DPU approximates others"):
        quantise(net, X)
    (row,) = inspect(net, example=X).refused
    assert row.device == "CPU" and ("approximates" in row.reason or "not a square" in row.reason) and row.tensor == "1"
