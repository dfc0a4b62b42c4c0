"""Calibration data in every usual form gives one result; everything else is refused in a sentence."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from i2ilib import I2IError
from i2ilib.quant import calibration, nndct, output_aware, ptq, quantise, tail_aware, with_positions
from i2ilib.quant.qat import Trainable

X = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.arange(6)


class Images(Dataset):
    """Without batches, and without an end that ``for`` would find."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {"image": X[index % 6], "label": int(LABELS[index % 6])}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


FORMS = {
    "tensor": lambda: X,
    "array": lambda: X.numpy(),
    "array of doubles": lambda: [X.numpy().astype(np.float64)],
    "array of another byte order": lambda: [X.numpy().astype(">f4")],
    "list": lambda: list(X.split(2)),
    "tuple": lambda: X.split(2),
    "list of arrays": lambda: [part.numpy() for part in X.split(2)],
    "list of images": lambda: list(X),
    "iterator": lambda: iter(X.split(2)),
    "generator": lambda: (part for part in X.split(2)),
    "doubles": lambda: [X.double()],
    "with gradients": lambda: [X.clone().requires_grad_()],
    "loader of tensors": lambda: DataLoader(X, batch_size=2),
    "loader of lists": lambda: DataLoader(TensorDataset(X), batch_size=2),
    "loader of (x, label)": lambda: DataLoader(TensorDataset(X, LABELS), batch_size=4),
    "tuples": lambda: [(part, None) for part in X.split(2)],
    "loader of dicts": lambda: DataLoader(Images(), batch_size=3),
    "a dict": lambda: {"x": X, "mask": X[:, 0], "name": "clip"},
    "data set of dicts": Images,
    "data set of lists": lambda: TensorDataset(X, LABELS),
    "data set that streams": Stream,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_images(form):
    batches = list(calibration.read(FORMS[form]()))
    assert torch.equal(torch.cat(batches), X) and all(batch.dtype == torch.float32 for batch in batches)
    assert not any(batch.requires_grad for batch in batches)


class Table:
    """No tensor, no iterable."""


REFUSED = {
    "nothing": ([], "at least one batch, got none"),
    "an empty generator": (iter(()), "at least one batch, got none"),
    "an empty loader": (DataLoader(torch.empty(0, 3, 8, 8)), "at least one batch"),
    "None": (None, "expected batches .* got NoneType"),
    "a path": ("frames/", "got str.*DataLoader"),
    "an object": (Table(), "got Table"),
    "numbers": ([1.0, 2.0], "batch 0: expected a batch .* got float"),
    "names": (["a.png"], "got str"),
    "array of objects": ([np.array([None])], r"got shape \(1,\)"),
    "one axis": ([torch.zeros(3)], r"got shape \(3,\)"),
    "a video": ([torch.zeros(1, 2, 3, 8, 8)], r"got shape \(1, 2, 3, 8, 8\)"),
    "an empty batch": ([torch.zeros(0, 3, 8, 8)], r"got shape \(0, 3, 8, 8\)"),
    "without values": ([torch.empty(1, 3, 8, 8, device="meta")], "dense tensor with values, got torch.strided on meta"),
    "an empty tuple": ([()], "got tuple"),
    "labels first": ([(LABELS, X)], r"got shape \(6,\)"),
    "codes": ([(X * 127).to(torch.uint8)], r"floating point, as the network sees it, got torch.uint8.*/ 255"),
    "integers": ([X.int().numpy()], "got int32"),
    "strings": ([np.array([[["a"]]])], "got <U1"),
    "sparse": ([X.to_sparse()], "expected a dense tensor"),
    "masks": ([X > 0], "got torch.bool"),
    "NaN later": ([X, X * float("nan")], "batch 1: expected finite values, got NaN or infinity"),
    "infinity": ([X / 0], "batch 0: expected finite values"),
    "two sizes": ([X, X[..., :4]], r"one shape \(C, H, W\), got \(3, 8, 8\) and, in batch 1, \(3, 8, 4\)"),
    "two in a dict": ([{"low": X, "high": X}], r"got 2 in a dict of low, high\. Choose one: \(batch\['image'\]"),
    "none in a dict": ([{"label": LABELS}], "got 0 in a dict of label"),
    "an empty dict": ({}, "got 0 in a dict of nothing"),
}
NET = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_batch_is_refused(name):
    data, message = REFUSED[name]
    with pytest.raises(I2IError, match=message):
        quantise(NET, data)


@pytest.fixture(scope="module")
def plain():
    return quantise(NET, X.split(2))


def jobs(folder):
    """Everything that takes batches."""
    plain = quantise(NET, X.split(2))
    return {
        "quantise": lambda data: quantise(NET, data).fix_positions,
        "tail_aware": lambda data: tail_aware(plain, data).fix_positions,
        "output_aware": lambda data: output_aware(plain, data).fix_positions,
        "Trainable": lambda data: Trainable(NET, data).fix_positions,
        "nndct": lambda data: nndct.prepare(NET, data, X[:1], folder=folder).name,
    }


@pytest.mark.parametrize("entry", ["quantise", "tail_aware", "output_aware", "Trainable", "nndct"])
def test_every_entry_takes_them_and_refuses_alike(entry, tmp_path):
    call = jobs(tmp_path / "job")[entry]
    found = call(DataLoader(TensorDataset(X, LABELS), batch_size=2))
    assert found == jobs(tmp_path / "again")[entry](X.split(2)) or entry == "nndct"
    for data, message in (([], "at least one batch"), ([X.int()], "floating point"), ([X / 0], "finite")):
        with pytest.raises(I2IError, match=message):
            jobs(tmp_path / "refused")[entry](data)
    assert not (tmp_path / "refused").exists()


def test_an_example_is_a_batch(plain):
    for example in (X, X[0], X.numpy(), (X, LABELS), {"x": X}, X / 0):  # its values do not matter
        assert torch.equal(with_positions(NET, plain.fix_positions, example).fake(X), plain.fake(X))
    with pytest.raises(I2IError, match="example: expected a batch"):
        with_positions(NET, plain.fix_positions, torch.zeros(8))


def test_tail_aware_holds_one_batch_and_finds_what_all_at_once_give(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Tanh())
    nn.init.normal_(net[2].weight, 0, 2)
    x = torch.rand(24, 3, 16, 16) * 2 - 1
    quantised = quantise(net, x)
    name, errors = quantised.sites[-1].name, {}
    with torch.no_grad():
        for fp in range(quantised.fix_positions[name], quantised.fix_positions[name] + 7):  # all in memory, each anew
            moved = quantised.moved({name: fp})
            if ptq.within_limits(moved.folded, moved.fix_positions) == moved.fix_positions:
                errors[fp] = float((moved.integer(x) - quantised.folded(x)).double().square().mean())
    sizes, run = [], ptq.run
    monkeypatch.setattr(ptq, "run", lambda *args, **more: sizes.append(len(args[2])) or run(*args, **more))
    aware = tail_aware(quantised, (part for part in x.split(5)))
    assert sizes == [5, 5, 5, 5, 4]
    assert aware.fix_positions == quantised.fix_positions | {name: min(errors, key=errors.get)}
    assert aware.fix_positions[name] > quantised.fix_positions[name]
    assert torch.equal(aware.integer(x), aware.fake(x))


def test_output_aware_gives_a_weight_back_what_calibration_cut_off():
    """Its few large values are what the output is made of, and its own least squared error drops them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    with torch.no_grad():
        net[0].weight[0, 0, 1, 1] = 1.6 * float(net[0].weight.abs().max())
        net[2].weight[:, 1:] *= 0.05
    x = torch.rand(8, 3, 16, 16) * 2 - 1
    plain = quantise(net, x)
    aware = output_aware(plain, x.split(4))
    with torch.no_grad():
        before, after = (float((q.integer(x) - net(x)).square().mean()) for q in (plain, aware))
    assert after < 0.9 * before
    assert {abs(aware.fix_positions[name] - fp) for name, fp in plain.fix_positions.items()} == {0, 1}
    assert ptq.within_limits(aware.folded, aware.fix_positions) == aware.fix_positions
    assert torch.equal(aware.integer(x), aware.fake(x))


def test_tail_aware_of_a_concat():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return torch.tanh(torch.cat([self.a(x), self.b(x)], 1))

    torch.manual_seed(0)
    net = Joined()
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0, 3)
    quantised = quantise(net, X)
    errors = {}
    for fp in range(quantised.fix_positions["cat"], quantised.fix_positions["cat"] + 7):
        moved = quantised.moved({"cat": fp})
        if ptq.within_limits(moved.folded, moved.fix_positions) == moved.fix_positions:
            errors[fp] = float(
                (moved.integer(X) - torch.tanh(quantised.on_device().folded(X).detach())).double().square().mean()
            )
    assert tail_aware(quantised, X).fix_positions["cat"] == min(errors, key=errors.get)
