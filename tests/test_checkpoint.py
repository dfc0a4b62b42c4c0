"""A training interrupted with any optimiser of PyTorch ends as one that was not, to the bit; no state is half kept."""

import inspect
import json
from collections import defaultdict

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from i2ilib import I2IError, IntegrityError
from i2ilib.train import checkpoint, fit
from i2ilib.train.parallel import World

STEPS, STRUCK = 6, 4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(5, 8, sparse=True)
        self.conv, self.norm, self.dense = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 4, bias=False)

    def forward(self, codes):
        return self.dense(self.norm(self.conv(self.words(codes).view(-1, 2, 4, 4))).flatten(1))


class Task:
    """What :func:`fit` trains, with one optimiser."""

    def __init__(self, make):
        self.modules = {"net": Net()}
        self.optimisers = {"net": make(self.modules["net"])}
        self.config, self.epochs, self.world = {}, 1, World()
        self.batches = Batches()

    def step(self, index, batch):
        (net,), (optimiser,) = self.modules.values(), self.optimisers.values()
        losses = []

        def closure():
            optimiser.zero_grad()
            net.zero_grad()
            losses.append(F.mse_loss(net(batch[0]), batch[1]))
            losses[-1].backward()
            return losses[-1]

        optimiser.step(closure)
        return {"loss": losses[0].item()}

    def finish_epoch(self, epoch):
        return {}


class Batches:
    steps_per_epoch = STEPS

    def __call__(self, step):
        generator = torch.Generator().manual_seed(step)
        return torch.randint(5, (6, 4), generator=generator), torch.randn(6, 4, generator=generator)


def dense(net):
    return [parameter for name, parameter in net.named_parameters() if not name.startswith("words")]


def of(kind, choose=dense, **options):
    return lambda net: kind(list(choose(net)), **options)


def grouped(net):
    """Groups with settings that the optimiser does not know."""
    more = {
        "name": "weights",
        "pair": (1, 2.5),
        "off": None,
        "nested": {"a": [1, {2: "b"}]},
        "mask": torch.ones(3).bool(),
    }
    groups = [{"params": net.dense.parameters()} | more, {"params": net.conv.parameters(), "lr": 0.3}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


class Odd(Optimizer):
    """A state that is unlike the weights: another type, texts, depth, two names of one tensor, a key of its own."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})
        self.state["all"] = {"seen": 0}

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        self.state["all"]["seen"] += 1
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                total = torch.zeros_like(parameter, dtype=torch.float64)
                state |= {"mode": "sum", "past": [(None, total), {0: [total[:1], total]}], "1": total, 1: total.sum(0)}
            past = state["past"][0][1] * 0.9 + parameter.grad / 3
            state |= {"past": [(None, past), {0: [past[:1], past]}]}
            parameter.sub_(past, alpha=0.1)
        return loss


EVERY = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
}
NEED = {"SparseAdam": lambda net: net.words.parameters(), "Muon": lambda net: net.dense.parameters()}
OPTIMISERS = {
    name: of(kind, NEED.get(name, dense), lr=0.05) for name, kind in EVERY.items()
} | {
    "Adam, fused": of(torch.optim.Adam, fused=True),
    "Adam, amsgrad": of(torch.optim.Adam, amsgrad=True),
    "Adam, a tensor as rate": of(torch.optim.Adam, lr=torch.tensor(0.02)),
    "AdamW, foreach": of(torch.optim.AdamW, foreach=True, maximize=True),
    "Adagrad, falling": of(torch.optim.Adagrad, lr_decay=0.1, initial_accumulator_value=0.5),
    "RMSprop, centred": of(torch.optim.RMSprop, centered=True, momentum=0.9),
    "SGD, momentum": of(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "LBFGS, short memory": of(torch.optim.LBFGS, max_iter=3, history_size=2),
    "LBFGS, with a search": of(torch.optim.LBFGS, max_iter=4, line_search_fn="strong_wolfe"),
    "groups": grouped,
    "a strange one": of(Odd),
}  # fmt: skip


def same(a, b):
    """Whether two states are equal in kind, type and bits, at any depth."""
    if isinstance(a, torch.Tensor):
        alike = isinstance(b, torch.Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape)
        laid_out = alike and (a.stride() == b.stride() or not a.numel())
        return laid_out and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    return a == b


def strike(history):
    if len(history) == STRUCK:
        raise RuntimeError("power cut")


@pytest.mark.parametrize("name", OPTIMISERS)
def test_resumed_is_undisturbed(tmp_path, name):
    whole = Task(OPTIMISERS[name])
    wanted = fit(whole, tmp_path / "whole", progress=False)
    before = [value.clone() for value in Net().state_dict().values()]
    assert not all(map(torch.equal, before, whole.modules["net"].state_dict().values()))
    with pytest.raises(RuntimeError, match="power cut"):
        fit(Task(OPTIMISERS[name]), tmp_path / "cut", progress=False, save_every=0.0, on_step=strike)
    resumed, taken = Task(OPTIMISERS[name]), []
    history = fit(resumed, tmp_path / "cut", progress=False, on_step=taken.append)
    assert len(taken) == STEPS - STRUCK + 1 and history.steps["loss"] == wanted.steps["loss"]
    assert same(resumed.modules["net"].state_dict(), whole.modules["net"].state_dict())
    assert same(resumed.optimisers["net"].state_dict(), whole.optimisers["net"].state_dict())


# --- any state -----------------------------------------------------------------------------------------------


class Kept(Optimizer):
    """Holds what it is given."""

    def __init__(self, state=None, **group):
        super().__init__([{"params": [nn.Parameter(torch.zeros(2, 3))]} | group], {})
        if state is not None:
            self.state[self.param_groups[0]["params"][0]] = state


def write(path, **parts):
    checkpoint.save(path, **{"modules": {}, "optimisers": {}, "about": {}, "history": {}} | parts)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
TENSORS = st.builds(
    lambda shape, dtype, seed: (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 50).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
    st.integers(0, 9),
)
KEYS = st.text(max_size=5) | st.integers(-3, 99)
STATES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | TENSORS,
    lambda parts: (
        st.lists(parts, max_size=4) | st.lists(parts, max_size=4).map(tuple) | st.dictionaries(KEYS, parts, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(state=st.dictionaries(KEYS, STATES, max_size=5), more=STATES)
def test_any_state_comes_back(tmp_path_factory, state, more):
    path = tmp_path_factory.mktemp("state") / "checkpoint.safetensors"
    kept, empty = Kept(state, more=more), Kept()
    write(path, optimisers={"a": kept})
    checkpoint.load(path, modules={}, optimisers={"a": empty})
    assert same(empty.state_dict(), kept.state_dict())


class Tied(nn.Module):
    """Two layers of one weight, and something to remember beside it."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two, self.seen = nn.Linear(3, 3), nn.Linear(3, 3), (seed, [None])
        self.two.weight = self.one.weight

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state


def test_tied_weights_and_extra_state(tmp_path):
    first, second = Tied(1), Tied(2)
    write(tmp_path / "c.safetensors", modules={"net": first})
    checkpoint.load(tmp_path / "c.safetensors", modules={"net": second}, optimisers={})
    assert same(second.state_dict(), first.state_dict()) and second.seen == (1, [None])
    assert second.two.weight is second.one.weight


STRANGE = {
    "function": (len, "builtin_function_or_method"),
    "set": ({1}, "set"),
    "array": (np.zeros(2), "ndarray"),
    "dict": (defaultdict(list), "defaultdict"),
    "key": ({(1, 2): 0}, "dict"),
    "device": (torch.device("cpu"), "device"),
    "sparse": (torch.eye(2).to_sparse(), "a torch.float32 tensor, torch.sparse_coo"),
    "complex": (torch.zeros(2, dtype=torch.complex128), "a torch.complex128 tensor"),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_a_state_that_cannot_be_kept(tmp_path, strange):
    """Refused when it would be written; what was written before stays."""
    path, (value, got) = tmp_path / "c.safetensors", STRANGE[strange]
    write(path)
    before = path.read_bytes()
    tied = Tied(0)
    tied.seen = value
    for part, place in (
        ({"optimisers": {"a": Kept({"x": [0, value]})}}, "optimiser/a/0/x/1"),
        ({"optimisers": {"a": Kept(more=value)}}, "groups/a/0/more"),
        ({"modules": {"a": tied}}, "module/a/_extra_state"),
    ):
        with pytest.raises(I2IError) as error:
            write(path, **part)
        assert f"checkpoint, {place}: expected dense tensors, numbers, texts" in str(error.value)
        assert f"got {got}" in str(error.value) and str(error.value).endswith("Keep anything else out of the state.")
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


FORGED = {
    "another kind": {"strange": []},
    "two kinds": {"tensor": "x", "tuple": []},
    "no tensor": {"tensor": "x"},
    "a number": 3,
    "nothing": {},
    "a list": [1],
    "no pairs": {"dict": [1, 2]},
}


@pytest.mark.parametrize("part", ["module", "optimiser", "groups"])
@pytest.mark.parametrize("forged", FORGED)
def test_a_header_that_says_something_else(tmp_path, part, forged):
    path, net = tmp_path / "c.safetensors", nn.Linear(2, 2)
    make = lambda: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)  # noqa: E731
    write(path, modules={"a": net}, optimisers={"a": make()})
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["i2ilib-checkpoint"])
    header[part]["a"] = FORGED[forged]
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, metadata={"i2ilib-checkpoint": json.dumps(header)})
    with pytest.raises(
        IntegrityError, match=r"c.safetensors: expected a whole checkpoint of this training, got .*elete it"
    ):
        checkpoint.load(path, modules={"a": net}, optimisers={"a": make()})
