"""Exercises are graded on the answer that is given, and a wrong one is told what is wrong."""

import numpy as np
import pytest
import torch

from i2ilib.exercise import expect, finds, grade


def check_half(half):
    expect("half(3)", half(3), 1.5)
    expect("half(-1)", half(-1), -0.5)
    return "Dividing is exact."


def test_a_right_answer(capsys):
    def half(x):
        return x / 2

    grade(check_half, half)
    assert capsys.readouterr().out == "half: right. Dividing is exact.\n"


def test_a_stub(capsys):
    def half(x):
        raise NotImplementedError("divide")

    grade(check_half, half)
    assert capsys.readouterr().out == "half: not written yet. Hint: divide\n"


def test_a_wrong_answer_is_told_what_is_wrong():
    with pytest.raises(AssertionError, match=r"half\(-1\): expected -0\.5, got -1"):
        grade(check_half, lambda x: x / 2 if x > 0 else x)


def test_a_check_must_find_a_mistake(capsys):
    finds(check_half, lambda x: x // 2)
    assert capsys.readouterr().out == "a mistake is found: half(3): expected 1.5, got 1\n"
    with pytest.raises(AssertionError, match="which is wrong"):
        finds(check_half, lambda x: x / 2)


@pytest.mark.parametrize(
    ("got", "wanted", "within"),
    [
        (1, 1, 0),
        (1.0, 1, 0),
        (0.1 + 0.2, 0.3, 1e-9),
        (None, None, 0),
        ("a", "a", 0),
        (torch.ones(2), np.ones(2), 0),
        ([1, (2, "x")], (1, [2, "x"]), 0),
        (True, True, 0),
        ({"a": 1}, {"a": 1}, 0),
        (np.float32(2), 2, 0),
        (torch.tensor([1.0, 2.0]), [1, 2], 0),
    ],
)
def test_what_is_equal(got, wanted, within):
    expect("f()", got, wanted, within=within)


@pytest.mark.parametrize(
    ("got", "wanted", "within"),
    [
        (1, 2, 0),
        (0.3, 0.4, 0.09),
        (None, 1, 0),
        (1, None, 0),
        ("1", 1, 0),
        (float("nan"), 1, 9),
        (torch.ones(2), torch.ones(3), 0),
        (torch.zeros(3, 4), torch.ones(3, 4), 0),
        ([1], [1, 2], 0),
        (5, [5], 0),
        (object(), 5, 0),
        (False, True, 0),
    ],
)
def test_what_differs(got, wanted, within):
    with pytest.raises(AssertionError, match=r"^f\(\): expected .*, got "):
        expect("f()", got, wanted, within=within)
