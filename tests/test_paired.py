"""Paired intervals, against SciPy's test, against the tables of Student's t, and by how often they hold the truth."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from i2ilib import I2IError
from i2ilib.metrics import Paired, interval, paired

scores = st.floats(-1e3, 1e3, allow_subnormal=False)


@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=40), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_is_scipys(pairs, confidence):
    ours, theirs = (list(side) for side in zip(*pairs, strict=True))
    found = paired(ours, theirs, confidence=confidence)
    differences = np.subtract(ours, theirs)
    assert found.n == len(pairs) and found.difference == pytest.approx(differences.mean(), abs=1e-9)
    if np.ptp(differences) > 1e-6:  # SciPy gives NaN for no spread
        expected = stats.ttest_rel(ours, theirs).confidence_interval(confidence)
        assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-9, abs=1e-9)
    assert found.low <= found.difference <= found.high


def test_the_reach_is_that_of_the_tables():
    found = paired([0.0, 2.0], [0.0, 0.0])  # mean 1, standard error 1, t(1, 0.975) = 12.706
    assert found == pytest.approx((1, 1 - 12.706, 1 + 12.706, 2), abs=1e-3)


def test_no_spread_is_a_point():
    assert paired([0.5, 0.75], [0.25, 0.5]) == (0.25, 0.25, 0.25, 2)
    assert paired([0.5, 0.5], [0.5, 0.5]).verdict(higher_is_better=True) == "no difference"


@pytest.mark.parametrize("n", [2, 3, 10])
def test_without_an_effect_one_interval_in_twenty_is_wrong(n):
    rng = np.random.default_rng(n)
    tries = [paired(*rng.normal(size=(2, n))).verdict(higher_is_better=True) for _ in range(4000)]
    assert 0.04 < np.mean([word != "no difference" for word in tries]) < 0.06


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "word"),
    [
        (0.1, 0.3, True, "better"), (0.1, 0.3, False, "worse"), (-0.3, -0.1, True, "worse"),
        (-0.3, -0.1, False, "better"), (-0.1, 0.3, True, "no difference"), (0.0, 0.3, True, "no difference"),
    ],
)  # fmt: skip
def test_verdicts(low, high, higher_is_better, word):
    assert Paired((low + high) / 2, low, high, 9).verdict(higher_is_better=higher_is_better) == word


@pytest.mark.parametrize(
    ("ours", "theirs", "confidence", "message"),
    [
        ([1, 2], [1, 2, 3], 0.95, "ours and theirs.*as many scores.*2 and 3"),
        ([1], [1], 0.95, "two pairs or more.*1"),
        ([1, float("nan")], [1, 2], 0.95, "finite scores"),
        ([1, 2], [1, float("inf")], 0.95, "finite scores"),
        ([1, 2], [1, 2], 95, "confidence.*between 0 and 1.*95"),
    ],
)
def test_bad_scores(ours, theirs, confidence, message):
    with pytest.raises(I2IError, match=message):
        paired(ours, theirs, confidence=confidence)


def test_blocks_of_one_are_the_plain_bootstrap():
    ours, theirs = np.random.default_rng(0).gamma(1.0, size=(2, 60))
    found = paired(ours, theirs, block=1)
    peer = stats.bootstrap((ours - theirs,), np.mean, n_resamples=10_000, method="percentile", rng=1)
    expected = peer.confidence_interval
    assert found.difference == pytest.approx((ours - theirs).mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert paired(ours, theirs, block=1) == found  # the draws have a seed


def test_draws_come_in_parts(monkeypatch):
    ours, theirs = np.random.default_rng(0).normal(size=(2, 64))
    whole = paired(ours, theirs, block=2)
    monkeypatch.setattr(interval, "_AT_ONCE", 32 * 300)
    assert paired(ours, theirs, block=2) == whole


def test_blocks_hold_where_neighbours_depend_on_each_other():
    rng, missed = np.random.default_rng(3), {None: 0, 25: 0}
    for _ in range(200):
        noise = rng.normal(size=520)
        slow = np.convolve(noise, np.ones(20), "valid")[:500] / 20**0.5  # the true mean is 0
        for block in missed:
            missed[block] += paired(slow, np.zeros(500), block=block).verdict(higher_is_better=True) != "no difference"
    assert missed[None] > 100 > 40 > missed[25]


@pytest.mark.parametrize("block", [0, 3])
def test_bad_blocks(block):
    with pytest.raises(I2IError, match="block: expected a whole number, 1 to half of the 5 pairs"):
        paired(range(5), [0] * 5, block=block)


@pytest.mark.parametrize(("n", "block"), [(24, 4), (25, 4), (48, 8), (240, 40), (25, 12), (7, 3)])
def test_an_interval_holds_what_it_promises(n, block, monkeypatch):
    """Few blocks make a wide interval, not a wrong one."""
    monkeypatch.setattr(interval, "_DRAWS", 500)
    draws = np.random.default_rng(n + block).normal(size=(400, n))
    held = np.mean(
        [paired(row, np.zeros(n), block=block).verdict(higher_is_better=True) == "no difference" for row in draws]
    )
    assert 0.91 <= held <= (1 if n < 3 * block else 0.99)


@pytest.mark.parametrize(
    ("ours", "block", "message"),
    [([[1, 2], [3, 4]], None, "a row of numbers each"), ([1, 2, 3, 4], 1.5, "block: expected a whole number")],
)
def test_arguments_of_other_kinds(ours, block, message):
    with pytest.raises(I2IError, match=message):
        paired(ours, ours, block=block)


def test_scores_of_any_kind_are_taken():
    ours = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    assert paired(ours, (score for score in (1.0, 1.0, 1.0))) == paired([1, 2, 4], [1, 1, 1])
