"""Fixed point against AMD's quantiser (pytorch_nndct 3.5.0), and the error branches."""

import numpy as np
import pytest
import torch
from conftest import shared

from i2ilib import I2IError
from i2ilib.quant import fixed_point as fx


@pytest.fixture(scope="module")
def rounding():
    return np.load(shared("golden/nndct/rounding.npz"))


@pytest.mark.parametrize(("method", "ours"), [("m2", fx.round_half_up), ("m3", fx.round_half_away)])
def test_rounding_equals_the_quantiser(rounding, method, ours):
    x = torch.from_numpy(rounding["x"])
    np.testing.assert_array_equal(ours(x).numpy().astype(np.int64), rounding[f"round_{method}"])


@pytest.mark.parametrize(("method", "kind"), [("m2", "activation"), ("m3", "parameter")])
def test_integers_equal_the_quantiser(rounding, method, kind):
    x = torch.from_numpy(rounding["fq_x"])
    for fp, expected in zip(rounding["fq_fp"], rounding[f"fq_int_{method}"], strict=True):
        np.testing.assert_array_equal(fx.to_integers(x, int(fp), kind=kind).numpy().astype(np.int8), expected)


@pytest.mark.parametrize(("key", "kind"), [("m2", "activation"), ("m3", "parameter"), ("range1_m2", "input")])
def test_fix_position_equals_the_quantiser(key, kind):
    golden = np.load(shared("golden/nndct/fixpos.npz"))
    for name, expected in zip(golden["names"], golden[f"fixpos_{key}"], strict=True):
        # infinity: the tool leaves a denormal tensor alone; we treat it as zero
        expected = 12 if not np.isfinite(expected) else min(int(expected), 12)
        assert fx.fix_position(torch.from_numpy(golden[f"x/{name}"]), kind) == expected, name


def test_shift_limits_equal_the_quantiser():
    golden = np.load(shared("golden/nndct/shift_limits.npz"))
    for row in golden["with_bias"].tolist():
        assert fx.limit_shifts(*row[:4]) == tuple(row[4:]), row
    for fp_in, fp_w, fp_out, *after in golden["no_bias"].tolist():
        new_w, none, new_out = fx.limit_shifts(fp_in, fp_w, None, fp_out)
        assert none is None and [new_w, new_out] == after


def test_fake_quantise_saturates_and_lies_on_the_grid():
    x = torch.tensor([-9.0, -1.0, 0.3, 9.0])
    assert fx.fake_quantise(x, 4).tolist() == [-8.0, -1.0, 0.3125, 7.9375]
    assert fx.fake_quantise(x, 0, bits=4).tolist() == [-8.0, -1.0, 0.0, 7.0]


@pytest.mark.parametrize("bad", [torch.tensor([float("nan")]), torch.tensor([float("inf"), 1.0]), torch.empty(0)])
def test_no_position_for_what_is_not_finite(bad):
    with pytest.raises(I2IError, match="finite"):
        fx.fix_position(bad)


def test_unknown_kind():
    with pytest.raises(I2IError, match="activation or input or parameter"):
        fx.fix_position(torch.ones(2), "weights")
