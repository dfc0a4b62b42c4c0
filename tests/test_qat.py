"""Trained thresholds against AMD's quantiser, the trainable network against the deployed and the float one."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import shared
from test_quantise import TinyED
from torch import nn
from torch.nn import functional as F

from i2ilib import I2IError
from i2ilib.errors import IntegrityError
from i2ilib.models import Generator, SRUNet
from i2ilib.quant import fake_quantise, qat, quantise
from i2ilib.quant import graph as g
from i2ilib.quant.ptq import within_limits
from i2ilib.quant.qat import Trainable, fine_tune, initial_threshold, tqt

KINDS = {"param": "parameter", "output": "activation"}  # the golden's word: ours


@pytest.fixture(scope="module")
def golden():
    return np.load(shared("golden/nndct/tqt.npz"))


@pytest.fixture(scope="module")
def tiny():
    golden, net = np.load(shared("golden/nndct/tiny_ed.npz")), TinyED().eval()
    keys = [key for key in golden.files if key.startswith("weights/")]
    net.load_state_dict({key.removeprefix("weights/"): torch.from_numpy(golden[key]) for key in keys})
    return net, torch.from_numpy(golden["calib"])


def a_generator(order="dpu"):
    torch.manual_seed(1)
    net = Generator(width=4, levels=4, out_channels=1, order=order, slope=g.SLOPE)
    with torch.no_grad():
        for _ in range(5):  # running statistics
            net(torch.rand(4, 3, 32, 32) * 2 - 1)
    return net.eval(), torch.rand(4, 3, 32, 32) * 2 - 1


def an_srunet():
    torch.manual_seed(2)
    return SRUNet(n_filters=8, residual=False).eval(), torch.rand(2, 3, 16, 16) * 2 - 1


# --- the trained threshold ---------------------------------------------------------------------------


def test_values_and_gradients_are_the_golden_ones(golden):
    seen = 0
    for key in (key for key in golden.files if key.endswith("/grad_x")):
        prefix = key.removesuffix("grad_x")
        _, kind, name, *_ = key.split("/")
        x = torch.from_numpy(golden[f"x/{name}"]).requires_grad_()
        threshold = torch.tensor(golden[prefix + "log_threshold"]).requires_grad_()
        y = tqt(x, threshold, kind=KINDS[kind])
        y.backward(torch.from_numpy(golden[f"g/{name}"]))
        np.testing.assert_array_equal(y.detach(), golden[prefix + "y"])
        np.testing.assert_array_equal(x.grad, golden[key])
        np.testing.assert_allclose(threshold.grad, golden[prefix + "grad_log_threshold"][0], rtol=1e-6, atol=2e-5)
        seen += 1
    assert seen == 24


def test_thresholds_begin_as_the_golden_ones(golden):
    keys = [key for key in golden.files if key.startswith("init_log_threshold/")]
    for key in keys:
        _, kind, name = key.split("/")
        x, kind = torch.from_numpy(golden[f"x/{name}"]), KINDS[kind]
        mine = initial_threshold(x, kind)
        np.testing.assert_allclose(mine, golden[key][0], atol=2e-5)
        assert 7 - math.ceil(mine) == golden[key.replace("log_threshold", "fixpos")]
        y = tqt(x, torch.tensor(mine), kind=kind)
        np.testing.assert_array_equal(y, golden[key.replace("log_threshold", "y")])
    assert len(keys) == 14


@pytest.mark.parametrize("kind", ["input", "activation", "parameter"])
def test_ties_and_ends_of_the_range(kind):
    """The formula of the gradient has ties of its own: negative ones up, positive ones to even, for every kind."""
    q = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, -128.5, -129.0, 127.25, 127.5, 300.0])
    error = torch.tensor([0.5, 0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -128, -0.25, 127, 127])
    inside = torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0])
    x, threshold = (q / 128).requires_grad_(), torch.zeros(1, requires_grad=True)
    for i in range(len(q)):
        for_x, for_threshold = torch.autograd.grad(tqt(x, threshold, kind=kind)[i], (x, threshold))
        assert for_x[i] == inside[i]
        assert float(for_threshold) == pytest.approx(float(error[i]) * math.log(2) / 128)
    assert torch.equal(tqt(x, threshold, kind=kind), fake_quantise(x, 7, kind=kind))


def test_position_is_at_most_12_and_follows_the_bits():
    x = torch.linspace(-1, 1, 101)
    assert torch.equal(tqt(x, torch.tensor(-20.0)), fake_quantise(x, 12))
    assert torch.equal(tqt(x, torch.tensor(0.0), bits=4), fake_quantise(x, 3, bits=4))


# --- the network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", ["tiny", a_generator, lambda: a_generator("pix2pix"), an_srunet])
def test_evaluation_is_the_deployed_network(build, request):
    net, x = request.getfixturevalue("tiny") if build == "tiny" else build()
    start = quantise(net, x.split(2))
    trainable = Trainable(net, x.split(2), start=start)
    assert trainable.fix_positions == start.fix_positions
    assert torch.equal(trainable.eval()(x), start.fake(x))

    groups = [{"params": trainable.weights()}, {"params": trainable.thresholds(), "lr": 0.1}]
    optimiser = torch.optim.Adam(groups, 1e-2)
    for _ in range(10):  # live: weights, thresholds and statistics all move
        optimiser.zero_grad()
        trainable.train()(x).square().mean().backward()
        optimiser.step()
    deployed = trainable.quantised()
    out = trainable.eval()(x)
    assert torch.equal(out, deployed.fake(x)) and not torch.equal(out, start.fake(x))
    assert deployed.fix_positions == trainable.fix_positions != start.fix_positions
    trainable.freeze_batch_norm()
    assert torch.equal(trainable.train()(x), out)


def test_shifts_stay_within_their_limits_wherever_thresholds_go(tiny):
    """The integer executor refuses nothing and agrees, though most of these positions are out of a shifter's reach."""
    net, x = tiny
    trainable = Trainable(net, x.split(2)).eval()
    torch.manual_seed(5)
    nn.init.uniform_(trainable.log2_thresholds, -6, 6)
    asked = [min(7 - math.ceil(t), 12) for t in trainable.log2_thresholds.tolist()]
    deployed = trainable.quantised()
    assert list(trainable.fix_positions.values()) != asked
    assert within_limits(deployed.folded, deployed.fix_positions) == deployed.fix_positions
    assert torch.equal(trainable(x), deployed.fake(x)) and torch.equal(deployed.integer(x), deployed.fake(x))


def test_folding_is_the_deployed_one_in_every_weight():
    """Half a million weights: folded in single precision, some would round to another integer."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256)).eval()
    net[1].weight.data.uniform_(0.5, 2)
    net[1].running_var.uniform_(0.5, 2)
    x = torch.rand(8, 256, 8, 8) * 2 - 1
    trainable = Trainable(net, [x]).eval()
    assert torch.equal(trainable(x), trainable.quantised().fake(x))


def test_thresholds_begin_without_a_start(tiny):
    net, x = tiny
    trainable = Trainable(net, x.split(2))
    assert trainable.fix_positions["input"] == 7 - math.ceil(float(x.abs().max().log2()))
    assert trainable.fix_positions["d1.weight"] == 7 - math.ceil(initial_threshold(net.d1.weight, "parameter"))
    with torch.no_grad():
        assert (trainable.eval()(x) - net(x)).abs().mean() < 0.05 * net(x).abs().mean()


def test_tensor_of_zeros_gets_12():
    net = nn.Conv2d(3, 3, 1)
    nn.init.zeros_(net.bias)
    assert Trainable(net, [torch.rand(2, 3, 8, 8)]).fix_positions["bias"] == 12


class Normed(nn.Module):
    """Both kinds of convolution, with and without a bias before BatchNorm, and one without BatchNorm."""

    def __init__(self):
        super().__init__()
        self.down, self.b1 = nn.Conv2d(3, 6, 4, 2, 1), nn.BatchNorm2d(6, eps=1e-2)
        self.up, self.b2 = nn.ConvTranspose2d(6, 5, 4, 2, 1, bias=False), nn.BatchNorm2d(5, momentum=0.3)
        self.last = nn.Conv2d(5, 2, 3, padding=1)

    def forward(self, x):
        return torch.tanh(self.last(torch.relu(self.b2(self.up(torch.relu(self.b1(self.down(x))))))))


@pytest.fixture
def normed():
    torch.manual_seed(3)
    net = Normed()
    with torch.no_grad():
        for norm in (net.b1, net.b2):  # statistics far from those of a batch
            norm.weight.uniform_(-2, 2)
            norm.bias.uniform_(-1, 1)
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.1, 4)
    return net, torch.rand(3, 3, 16, 16) * 2 - 1


def test_live_batch_norm_on_fine_grids_is_float_training(normed, monkeypatch):
    """With 24 bits nothing is left but BatchNorm's algebra: outputs, gradients and statistics are PyTorch's own."""
    monkeypatch.setattr(qat, "LARGEST", 40)
    monkeypatch.setattr(qat, "within_limits", lambda graph, positions: positions)
    net, x = normed
    trainable = Trainable(net, [x], bits=24)
    with torch.no_grad():
        trainable.log2_thresholds.add_(5)  # room for the statistics of the batch
    mine, true = trainable.train()(x), net.train()(x)
    torch.testing.assert_close(mine, true, rtol=0, atol=1e-4)
    mine.square().sum().backward()
    true.square().sum().backward()
    state, mine_by_name = net.state_dict(), dict(trainable.network.named_parameters())
    for name, parameter in net.named_parameters():
        if name == "down.bias":  # BatchNorm takes it out again: no gradient but noise
            assert mine_by_name[name].grad is None and parameter.grad.abs().max() < 1e-3
        else:
            torch.testing.assert_close(mine_by_name[name].grad, parameter.grad, rtol=1e-3, atol=1e-3)
    for name in ("b1.running_mean", "b1.running_var", "b2.running_mean", "b2.running_var"):
        torch.testing.assert_close(trainable.network.state_dict()[name], state[name])


def test_frozen_batch_norm_keeps_its_statistics(normed):
    net, x = normed
    trainable = Trainable(net, [x])
    trainable.freeze_batch_norm()
    for module in (trainable.train(), trainable.eval()):
        module(x)
    assert torch.equal(trainable.network.b1.running_mean, net.b1.running_mean)
    trainable.freeze_batch_norm(False)
    trainable.train()(x)
    assert not torch.equal(trainable.network.b1.running_mean, net.b1.running_mean)


def test_model_is_left_alone(normed):
    net, x = normed
    before = copy.deepcopy(net.state_dict())
    trainable = Trainable(net, [x])
    trainable.train()(x).sum().backward()
    assert net.training and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_state_goes_into_another_one(normed):
    net, x = normed
    one, other = Trainable(net, [x]), Trainable(Normed(), [x])
    with torch.no_grad():
        one.log2_thresholds.add_(1)
    assert set(net.state_dict()) <= {key.removeprefix("network.") for key in one.state_dict()}
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.eval()(x), other.eval()(x)) and one.fix_positions == other.fix_positions


# --- training ------------------------------------------------------------------------------------------


def imitate(net, x):
    """Batches that ask for what the float network says."""
    with torch.no_grad():
        y = net(x)
    return lambda step: (x, y)


def test_training_recovers_what_few_bits_cost(tiny, tmp_path):
    net, x = tiny
    start = quantise(net, x.split(2), bits=6)
    trainable = Trainable(net, x.split(2), start=start, bits=6)
    batches = imitate(net, x)
    options = {"steps": 80, "lr": 5e-4, "threshold_lr": 2e-2, "progress": False}
    history = fine_tune(trainable, batches, F.mse_loss, tmp_path, **options)
    target = batches(0)[1]
    assert len(history) == len(history.steps["loss"]) == 80 and not trainable.training
    assert F.mse_loss(trainable.quantised().fake(x), target) < 0.5 * F.mse_loss(start.fake(x), target)


def test_a_few_steps_at_the_papers_rate_leave_positions_and_statistics(tiny, tmp_path):
    net, x = tiny
    start = quantise(net, x.split(2))
    trainable = Trainable(copy.deepcopy(net).requires_grad_(False), x.split(2), start=start)
    fine_tune(trainable, imitate(net, x), F.l1_loss, tmp_path, steps=10, lr=5e-8, freeze_from=0, progress=False)
    assert trainable.fix_positions == start.fix_positions
    moved = (trainable.network.e1.weight - net.e1.weight).abs().max()
    assert 0 < moved <= 11 * 5e-8 + 1e-8
    assert torch.equal(trainable.network.b2.running_var, net.b2.running_var)


def test_thresholds_and_statistics_freeze_half_way(tiny, tmp_path):
    net, x = tiny
    trainable, seen = Trainable(net, x.split(2)), []

    def look(history):
        state = trainable.state_dict()
        seen.append([state[key].clone() for key in ("log2_thresholds", "network.b2.running_var", "network.e1.weight")])

    options = {"steps": 6, "lr": 1e-3, "batch_norm": "live", "progress": False}
    fine_tune(trainable, imitate(net, x), F.mse_loss, tmp_path, on_step=look, **options)
    for step in range(5):
        thresholds, variance, weight = map(torch.equal, seen[step], seen[step + 1])
        assert thresholds == variance == (step >= 2) and not weight


def test_resumed_training_ends_in_the_same_bits(tiny, tmp_path):
    net, x = tiny
    parts = x.split(2)
    with torch.no_grad():
        targets = [net(part) for part in parts]

    def train(folder, on_step=None):
        trainable = Trainable(net, parts)
        options = {"steps": 8, "lr": 1e-3, "batch_norm": "live", "save_every": 0, "progress": False}
        draw = lambda step: (parts[step % 4], targets[step % 4])  # noqa: E731
        fine_tune(trainable, draw, F.mse_loss, folder, on_step=on_step, **options)
        return trainable.state_dict()

    def cut(at):
        def stop(history):
            if len(history) == at:
                raise RuntimeError("cut")

        return stop

    whole = train(tmp_path / "whole")
    for step in (3, 7):  # before and after the freezing
        with pytest.raises(RuntimeError, match="cut"):
            train(tmp_path / "cut", cut(step))
    resumed = train(tmp_path / "cut")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


# --- errors --------------------------------------------------------------------------------------------


def test_bad_thresholds():
    x = torch.ones(3)
    for threshold in (torch.tensor(math.nan), torch.zeros(2)):
        with pytest.raises(I2IError, match="one finite number"):
            tqt(x, threshold)
    with pytest.raises(I2IError, match="kind"):
        tqt(x, torch.tensor(0.0), kind="weight")
    for values in (torch.ones(0), torch.tensor([math.inf])):
        with pytest.raises(I2IError, match="initial_threshold"):
            initial_threshold(values)
    with pytest.raises(I2IError, match="kind"):
        initial_threshold(x, "weight")


def test_bad_starts(normed):
    net, x = normed
    with pytest.raises(I2IError, match="at least one batch"):
        Trainable(net, [])
    with pytest.raises(I2IError, match="8 bits"):
        Trainable(net, [x], start=quantise(net, [x], bits=6))
    with pytest.raises(I2IError, match="other weights"):
        Trainable(net, [x], start=quantise(Normed(), [x]))
    with pytest.raises(I2IError, match="other tensors"):
        Trainable(net, [x], start=quantise(nn.Conv2d(3, 3, 1), [x]))
    with pytest.raises(I2IError, match="gelu"):
        Trainable(nn.Sequential(nn.Conv2d(3, 3, 1), nn.GELU()), [x])


def test_one_value_a_channel_has_no_deviation():
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
    with pytest.raises(I2IError, match="two values"):
        Trainable(net, [torch.rand(2, 3, 2, 2)]).train()(torch.rand(1, 3, 2, 2))


def test_bad_trainings(normed, tmp_path):
    net, x = normed
    trainable, batches = Trainable(net, [x]), imitate(net.eval(), x)

    def train(loss=F.mse_loss, **options):
        fine_tune(trainable, batches, loss, tmp_path, progress=False, **({"steps": 2, "lr": 1e-4} | options))

    with pytest.raises(I2IError, match="steps"):
        train(steps=0)
    with pytest.raises(I2IError, match="'frozen' or 'live'"):
        train(batch_norm="thawed")
    with pytest.raises(I2IError, match="a share"):
        train(freeze_from=1.5)
    with pytest.raises(I2IError, match="nan at step 0"):
        train(loss=lambda y, target: (y - target).mean() * math.nan)
    train()
    with pytest.raises(IntegrityError, match=r"lr=0\.0001 instead of 0\.1"):
        train(lr=0.1)
