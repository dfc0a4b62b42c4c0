"""Batches are a function of the seed and the step, whoever asks and in whatever order."""

import threading

import pytest
import torch

from i2ilib import I2IError
from i2ilib.train.batches import Batches
from i2ilib.train.parallel import World


class Numbers:
    """Items that are their own index and epoch; remembers who cut them."""

    def __init__(self, size=10):
        self.size, self.cuts = size, []

    def __len__(self):
        return self.size

    def cut(self, index, epoch):
        self.cuts.append((index, epoch, threading.current_thread().name))
        return torch.tensor([index]), torch.tensor([epoch])


def epoch(batches, number):
    """The indices of an epoch, batch by batch."""
    steps = range(number * batches.steps_per_epoch, (number + 1) * batches.steps_per_epoch)
    made = [batches(step) for step in steps]
    assert all(set(epochs.flatten().tolist()) == {number} for _, epochs in made)
    return torch.cat([indices for indices, _ in made]).flatten().tolist()


def test_an_epoch_sees_every_patch_once_and_the_next_in_another_order():
    batches = Batches(Numbers(), batch=2)
    assert batches.steps_per_epoch == 5
    first, second = (epoch(batches, number) for number in (0, 1))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second and first != sorted(first)


def test_what_does_not_fill_a_batch_waits_for_another_epoch():
    batches = Batches(Numbers(), batch=4)
    assert batches.steps_per_epoch == 2
    seen = [epoch(batches, number) for number in range(8)]
    assert all(len(set(one)) == 8 for one in seen)
    assert set().union(*seen) == set(range(10))  # not always the same two are left out


def test_patches_per_epoch_are_drawn_anew():
    batches = Batches(Numbers(), batch=1, per_epoch=3)
    assert batches.steps_per_epoch == 3
    seen = [frozenset(epoch(batches, number)) for number in range(12)]
    assert all(len(one) == 3 for one in seen) and len(set(seen)) > 6
    assert frozenset().union(*seen) == set(range(10))
    assert Batches(Numbers(), batch=1, per_epoch=99).steps_per_epoch == 10


def test_any_order_of_asking_gives_the_same():
    forward, backward = Batches(Numbers(), batch=3, seed=5), Batches(Numbers(), batch=3, seed=5)
    one = {step: forward(step) for step in range(9)}
    for step in (8, 0, 1, 1, 5, 6, 2, 4, 7, 3):
        assert all(torch.equal(a, b) for a, b in zip(one[step], backward(step), strict=True))
    other = Batches(Numbers(), batch=3, seed=6)
    assert any(not torch.equal(one[step][0], other(step)[0]) for step in range(3))


def test_shares_of_the_processes_make_the_whole_batch():
    whole = Batches(Numbers(12), batch=4, seed=1)
    shares = [Batches(Numbers(12), batch=4, seed=1, world=World(rank, 2)) for rank in (0, 1)]
    for step in range(6):
        parts = [share(step) for share in shares]
        assert all(part[0].shape == (2, 1) for part in parts)
        assert torch.equal(torch.cat([part[0] for part in parts]), whole(step)[0])
    assert shares[0].steps_per_epoch == whole.steps_per_epoch == 3


def test_the_next_batch_is_made_while_the_step_computes():
    data = Numbers()
    batches = Batches(data, batch=2)
    batches(0)
    batches._ahead[1].result()  # the step computes
    assert [at for *_, at in data.cuts[:2]] == [threading.current_thread().name] * 2
    assert len(data.cuts) == 4 and all(at.startswith("batches") for *_, at in data.cuts[2:])  # one ahead, no more
    batches(1)
    batches._ahead[1].result()
    assert len(data.cuts) == 6  # what was made ahead is not made again


def test_an_error_ahead_is_told_at_its_own_step():
    class Broken(Numbers):
        def cut(self, index, epoch):
            if epoch == 1:
                raise I2IError("frame", got="a hole")
            return super().cut(index, epoch)

    batches = Batches(Broken(2), batch=1)
    batches(0)
    batches(1)
    with pytest.raises(I2IError, match="a hole"):
        batches(2)
    assert batches(0)[0].shape == (1, 1)  # and the source lives on


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"batch": 11}, r"batch: expected at most the 10 patches of an epoch, got 11"),
        ({"batch": 4, "per_epoch": 3}, r"batch: expected at most the 3 patches of an epoch, got 4"),
        ({"batch": 3, "world": World(0, 2)}, r"batch: expected a multiple of the 2 processes, got 3"),
    ],
)
def test_batches_that_cannot_be(fields, match):
    with pytest.raises(I2IError, match=match):
        Batches(Numbers(), **fields)
