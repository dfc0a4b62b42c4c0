"""Two processes with a patch each compute what one process with both computes: layers, gradients, a whole training.

The reference is PyTorch's own layer, or the command in one process, on the doubled batch.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from torch import nn

from i2ilib import cli
from i2ilib.errors import I2IError
from i2ilib.train import MattingConfig, MattingTask
from i2ilib.train.batches import Batches
from i2ilib.train.parallel import World, average, distribute, world

ENV = os.environ | {"OMP_NUM_THREADS": "1"}
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CASES = [(dtype, layout) for dtype in DTYPES for layout in FORMATS]
SIZES = [(6, 5, 3), (6, 2, 2), (6, 1, 1), (1, 4, 4)]  # channels, height, width


# --- layers, each in two processes ---------------------------------------------------------------------


def whole_batch(size, dtype, layout, n=4):
    """An input of four, and what its output is weighed with."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(n, *size, generator=random) * 2 + torch.linspace(-3, 3, size[0])[:, None, None]
    weights = torch.randn(n, *size, generator=random)
    return tuple(part.to(DTYPES[dtype]).contiguous(memory_format=FORMATS[layout]) for part in (x, weights))


def small_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Sequential(nn.Conv2d(6, 1, 3)))


def normed(norm, x, weights, mean_over=1):
    """Two batches through a norm: output and gradient of the second, gradients of its parameters, statistics."""
    norm(x.flip(-1) * 0.5)
    x = x.clone().requires_grad_()
    y = norm(x)
    (y.float() * weights.float()).sum().div(mean_over).backward()
    found = {name.removeprefix("module."): value for name, value in norm.state_dict().items()}
    gradients = {name.removeprefix("module."): p.grad for name, p in norm.named_parameters()}
    return {"y": y.detach(), "x": x.grad} | found | {f"{name}.grad": value for name, value in gradients.items()}


IN_EACH = """
import os
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from torch import nn
from i2ilib.train import MattingConfig, train_matting
from i2ilib.train import parallel
from test_parallel import CASES, SIZES, normed, small_network, whole_batch

found = {{}}
with parallel.world() as (here, device):
    found["world"] = torch.tensor(here)
    mine = lambda parts: [part.chunk(2)[here.rank] for part in parts]
    for case in CASES:
        torch.manual_seed(here.rank)  # parameters that differ until they are distributed
        norm = nn.Sequential(nn.BatchNorm2d(6))
        nn.init.normal_(norm[0].weight)
        norm = parallel.distribute(norm, here)
        for name, value in normed(norm, *mine(whole_batch((6, 5, 3), *case)), mean_over=2).items():
            found["/".join(("norm", *case, name))] = value
        x = mine(whole_batch((6, 5, 3), *case))[0]
        found["/".join(("eval", *case))] = norm.eval()(x).detach()
        for size in SIZES:
            for p in (0.5, 0.3):
                dropout = nn.Sequential(nn.Identity(), nn.Dropout(p))
                parallel.distribute(nn.ModuleList([dropout, nn.Linear(1, 1)]), here)
                x = mine(whole_batch(size, *case))[0]
                torch.manual_seed(7)
                key = "/".join(("dropout", *case, str(size), str(p)))
                found[key], found[key + "/next"] = dropout(x), torch.rand(3)
                found[key + "/eval"] = dropout.eval()(x)
    value = torch.tensor([1.0, 2.0]) * (here.rank + 1)
    value.requires_grad_()
    total = parallel._Sum.apply(value)
    total.mul(here.rank + 3.0).sum().backward()
    found |= {{"sum": total.detach(), "sum.grad": value.grad, "sum.value": value.detach()}}
    means = parallel.average({{"b": torch.tensor(here.rank + 1.0), "a": torch.tensor(4.0 * here.rank)}}, here)
    found["average"] = torch.tensor(list(means.values()))
    assert list(means) == ["b", "a"] and all(type(value) is float for value in means.values())

    network = small_network(seed=here.rank)
    names = list(network.state_dict())
    wrapped = parallel.distribute(network, here)
    assert type(wrapped) is nn.parallel.DistributedDataParallel and wrapped.module is network
    assert list(network.state_dict()) == names
    x = mine(whole_batch((3, 9, 9), "float32", "contiguous"))[0]
    torch.manual_seed(5)
    wrapped(x).square().mean().backward()
    found |= {{f"network/{{name}}": p.grad for name, p in network.named_parameters()}}

    out = Path({out!r}) / str(here.rank) / "m.safetensors"  # a place of its own for each, to see who writes
    config = MattingConfig(width=4, discriminator_width=4, epochs=1, patches=4, batch=2)
    history = train_matting({clip!r}, out, config, world=here, progress=False, save_every=0, on_epoch=print)
    found["epochs"] = torch.tensor(len(history.epochs))
torch.save(found, Path({out!r}) / f"{{here.rank}}.pt")
os._exit(0)  # as python -m i2ilib does, and says why
"""


@pytest.fixture(scope="module")
def each(clip, tmp_path_factory):
    """What each of two processes found, and their folder."""
    folder = tmp_path_factory.mktemp("each")
    script = folder / "each.py"
    script.write_text(IN_EACH.format(tests=os.path.dirname(__file__), out=str(folder), clip=str(clip)))
    done = subprocess.run([*LAUNCH, str(script)], env=ENV, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def together(each, key):
    return torch.cat([found[key] for found in each[1]])


@pytest.mark.parametrize("dtype, layout", CASES)
def test_batchnorm_sees_the_whole_batch(each, dtype, layout):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    nn.init.normal_(norm.weight)
    x, weights = whole_batch((6, 5, 3), dtype, layout)
    # the gradients of parameters are means over processes, so that a loss that is a mean comes out right
    expected = normed(nn.Sequential(norm), x, weights)
    rough = {"rtol": 2**-7, "atol": 2**-7} if dtype == "bfloat16" else {"rtol": 1e-5, "atol": 1e-5}
    for name in ("y", "x"):
        found = together(each, f"norm/{dtype}/{layout}/{name}")
        scale = 2 if name == "x" else 1  # the loss there was divided by the number of processes
        assert found.dtype == expected[name].dtype
        torch.testing.assert_close(found * scale, expected[name], **rough)
    for name in expected.keys() - {"y", "x"}:
        one, other = (found[f"norm/{dtype}/{layout}/{name}"] for found in each[1])
        assert torch.equal(one, other), name  # to the bit, or the processes would drift apart
        scale = 4 if name.endswith("grad") else 1  # divided there, and averaged
        torch.testing.assert_close(one * scale, expected[name], rtol=1e-5, atol=1e-4)
    found = together(each, f"eval/{dtype}/{layout}")
    torch.testing.assert_close(found, norm.eval()(x), **rough)


@pytest.mark.parametrize("p", [0.5, 0.3])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype, layout", CASES)
def test_dropout_draws_the_whole_batch(each, dtype, layout, size, p):
    x, _ = whole_batch(size, dtype, layout)
    torch.manual_seed(7)
    expected, after = nn.Dropout(p)(x), torch.rand(3)
    key = f"dropout/{dtype}/{layout}/{size}/{p}"
    found = together(each, key)
    assert found.dtype == x.dtype and torch.equal(found == 0, expected == 0)
    if p == 0.5 or dtype == "float32":
        assert torch.equal(found, expected)
    else:  # 1 / 0.7 is rounded to bfloat16 before the product
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)
    assert all(torch.equal(part[f"{key}/next"], after) for part in each[1])  # nor is what is drawn next another
    assert torch.equal(together(each, f"{key}/eval"), x)


def test_sums_and_means(each):
    for rank, found in enumerate(each[1]):
        assert found["world"].tolist() == [rank, 2]
        assert found["sum"].tolist() == [3.0, 6.0] and found["sum.grad"].tolist() == [7.0, 7.0]
        assert found["sum.value"].tolist() == [1.0 + rank, 2.0 + 2 * rank]  # not changed in place
        assert found["average"].tolist() == [1.5, 2.0]


def test_gradients_of_a_network(each):
    network = small_network(seed=0)  # the first process's weights are everybody's
    torch.manual_seed(5)
    network(whole_batch((3, 9, 9), "float32", "contiguous")[0]).square().mean().backward()
    for name, parameter in network.named_parameters():
        for found in each[1]:
            torch.testing.assert_close(found[f"network/{name}"], parameter.grad, rtol=1e-4, atol=1e-6)


def test_only_the_first_process_writes(each):
    folder, (first, second) = each
    assert {path.name for path in (folder / "0").rglob("*.*")} == {
        "m.safetensors", "checkpoint.safetensors", "epoch_01.safetensors",
    }  # fmt: skip
    assert not (folder / "1").exists()
    assert (first["epochs"], second["epochs"]) == (1, 0)


# --- alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, "1"])
def test_alone(monkeypatch, size):
    monkeypatch.delenv("WORLD_SIZE", raising=False) if size is None else monkeypatch.setenv("WORLD_SIZE", size)
    with world("cuda") as (here, device):
        assert here == World(0, 1) and here.leads and device == "cuda"
        assert not torch.distributed.is_initialized()
    network = small_network()
    assert distribute(network, here) is network and type(network[1]) is nn.BatchNorm2d
    assert average({"x": torch.tensor(0.5), "y": torch.tensor(2.0)}, here) == {"x": 0.5, "y": 2.0}
    assert not World(1, 2).leads


class Numbers:
    """Patches that are their own index and epoch."""

    def __len__(self):
        return 20

    def cut(self, index, epoch):
        return torch.tensor([index]), torch.tensor([epoch])


PLACES = [World(rank, 3) for rank in range(3)]


def test_processes_share_every_batch():
    whole, *shares = (Batches(Numbers(), batch=6, seed=3, world=place) for place in (World(), *PLACES))
    for step in range(8):  # three steps an epoch
        expected = whole(step)
        parts = [share(step) for share in shares]
        for i in range(2):
            assert torch.equal(torch.cat([part[i] for part in parts]), expected[i])
        assert all(len(part[0]) == 2 for part in parts)


def test_batch_that_cannot_be_shared_out():
    with pytest.raises(I2IError, match="batch: expected a multiple of the 2 processes, got 3"):
        Batches(Numbers(), batch=3, world=World(0, 2))


# --- a whole training ----------------------------------------------------------------------------------

STEPS = 6  # two epochs of three
RATE = MattingConfig().learning_rate
OPTIONS = ["--preset=smoke", "--epochs=2", "--patches=6", "--width=4", "--precision=float32", "--json"]


def farthest(steps):
    """How far two runs of Adam can come apart in a weight, whatever their gradients.

    A step is the rate times m / √v. With m = Σ aᵢ gᵢ and v = Σ bᵢ gᵢ², Cauchy and Schwarz bound it by √(Σ aᵢ² / bᵢ).
    """
    beta1, beta2 = MattingConfig().beta1, 0.999
    reach = 0.0
    for t in range(1, steps + 1):
        a = [(1 - beta1) * beta1 ** (t - i) / (1 - beta1**t) for i in range(1, t + 1)]
        b = [(1 - beta2) * beta2 ** (t - i) / (1 - beta2**t) for i in range(1, t + 1)]
        reach += RATE * math.sqrt(sum(x * x / y for x, y in zip(a, b, strict=True)))
    return 2 * reach


def in_one(clip, out):
    """The command in this process, which takes the whole batch."""
    return cli.main(["train", str(clip), str(out), *OPTIONS, "--batch=2", "--save-every=0"])


def in_two(clip, out):
    """The same in two processes, a patch each."""
    command = [*LAUNCH, "-m", "i2ilib", "train", str(clip), str(out), *OPTIONS, "--batch=1", "--save-every=0"]
    return subprocess.Popen(command, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def state(out):
    return safetensors.torch.load_file(out.with_suffix("") / "checkpoint.safetensors")


@pytest.fixture(scope="module")
def one(clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "m.safetensors"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert in_one(clip, out) == 0
    finally:
        torch.set_num_threads(threads)
    return out


def assert_same_training(out, one, *, parted):
    """Losses and weights of two trainings that began to part at a step.

    Adam divides every gradient by its own size, so one that is nothing but rounding moves a weight as far as any
    other, perhaps the other way. Single weights may come as far apart as Adam can take them, which is a bound; most
    stay within a fraction of one step, as they do when the first weights are changed in their last bit.
    """
    made, expected = state(out), state(one)
    assert made.keys() == expected.keys() and len(made["history/l1"]) == len(expected["history/l1"]) == STEPS
    for loss in ("l1", "adversarial", "discriminator"):
        a, b = made[f"history/{loss}"], expected[f"history/{loss}"]
        torch.testing.assert_close(a[: parted + 1], b[: parted + 1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    apart = []
    for key in (key for key in made if key.startswith("module/")):
        if key.endswith("num_batches_tracked"):
            assert torch.equal(made[key], expected[key])
        elif "running" in key:
            torch.testing.assert_close(made[key], expected[key], rtol=0.05, atol=0.01)
        else:
            apart.append((made[key] - expected[key]).abs().flatten())
    apart = torch.cat(apart)
    assert apart.max() <= farthest(STEPS - parted)
    assert apart.median() < 0.25 * RATE
    assert made["optimiser/generator/0/step"] == STEPS


def test_begun_by_two_continued_by_one(clip, one, tmp_path, capsys):
    """The two are asked to end from outside, as a shell does; what they have saved is whole."""
    out = tmp_path / "m.safetensors"
    path, patience = out.with_suffix("") / "checkpoint.safetensors", time.monotonic() + 150
    process = in_two(clip, out)
    while not path.exists():
        assert process.poll() is None and time.monotonic() < patience, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)
    begun = len(state(out)["history/l1"])
    assert process.returncode != 0 and not told and 0 < begun < STEPS
    assert in_one(clip, out) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["steps"], told["processes"]) == (STEPS, 1)
    assert_same_training(out, one, parted=0)


def test_begun_by_one_continued_by_two(clip, one, tmp_path, monkeypatch):
    out, step = tmp_path / "m.safetensors", MattingTask.step

    def interrupted(self, index, batch):
        if index == 1:
            raise KeyboardInterrupt
        return step(self, index, batch)

    monkeypatch.setattr(MattingTask, "step", interrupted)
    assert in_one(clip, out) == 130
    assert len(state(out)["history/l1"]) == 1
    process = in_two(clip, out)
    told, problem = process.communicate(timeout=150)
    assert process.returncode == 0, problem
    told = json.loads(told)  # of one process alone
    assert (told["steps"], told["processes"], len(told["epochs"])) == (STEPS, 2, 2)
    assert_same_training(out, one, parted=1)
    weights, expected = (safetensors.torch.load_file(path) for path in (out, one))
    assert weights.keys() == expected.keys()


def test_more_processes_than_gpus(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(I2IError, match=r"at most 1 processes.*got process 2.*CUDA_VISIBLE_DEVICES"),
        world("cuda"),
    ):
        pass
