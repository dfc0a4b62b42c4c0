"""The cost model against the simulation, and the classic networks against their published sizes."""

import dataclasses

import numpy as np
import pytest
import torch
from fcad_decoder import decoder_space

from i2ilib.errors import I2IError
from i2ilib.fcad import analyse, evaluate
from i2ilib.fcad.published import paper_design
from i2ilib.fcad.validate import KCU1500, PAPER_ERRORS, bandwidth_sweep, benchmarks, compare
from i2ilib.models.classic import CLASSIC, classic


def design(case):
    return paper_design(decoder_space(), case)


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, parameters", [("AlexNet", 61_100_840), ("VGG16", 138_357_544)])  # torchvision's pages
def test_parameters(name, parameters):
    network, x = classic(name, classifier=True)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(x).shape == (1, 1000)


@pytest.mark.parametrize(
    "name, classifier, gmac",
    [("AlexNet", True, 0.71), ("VGG16", True, 15.47), ("Tiny-YOLO", False, 6.97 / 2)],  # torchvision; darknet: 6.97 Bn
)
def test_operations(name, classifier, gmac):
    graph = analyse(*classic(name, classifier=classifier))
    assert sum(layer.macs for layer in graph.layers) / 1e9 == pytest.approx(gmac, abs=0.006)


def test_zfnet_has_the_maps_of_its_figure():
    network, x = classic("ZFNet")
    sides = []
    for layer in network:
        x = layer(x)
        if not isinstance(layer, torch.nn.ReLU):
            sides.append(x.shape[-1])
    assert sides == [110, 55, 26, 13, 13, 13, 13, 6] and x.shape[1] == 256


def test_tiny_yolo_keeps_its_size_where_pooling_has_stride_one():
    network, x = classic("Tiny-YOLO", classifier=True)
    assert network(x).shape == (1, 125, 13, 13)
    pad, pool = network.features[-9], network.features[-8]
    m = torch.randn(1, 1, 13, 13)
    out = pool(pad(m))
    assert out.shape == m.shape and out[0, 0, 12, 12] == m[0, 0, 12, 12]


def test_unknown_network():
    with pytest.raises(I2IError, match="AlexNet or ZFNet or VGG16 or Tiny-YOLO"):
        classic("LeNet")


# --- table IV ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(1, 6))
def test_eq_5_is_exact_at_one_pace(case):
    table = compare(design(case), frames=3)
    assert table["error at one pace (%)"].abs().max() < 0.01
    shared = {1: ["warp"], 2: ["warp"], 3: ["texture"]}.get(
        case, []
    )  # faster by itself than what it shares a pace with
    assert list(table.index[table["error (%)"].abs() > 0.01]) == shared
    assert (table.loc[shared, "error (%)"].round(1) == 100).all()
    lost = table[["starved (%)", "blocked (%)", "weights (%)"]].sum(axis=1)
    np.testing.assert_allclose(lost, table["error (%)"], atol=0.5)  # the causes add up to the error


def test_one_pace_with_copies_in_turns():
    config = design(4)
    assert evaluate(config).delivered == pytest.approx(evaluate(config).fps)
    turns = dataclasses.replace(config, batch=(1, 2, 1))  # one warp unit for two images: at half the pace
    assert evaluate(turns).delivered == pytest.approx((122.0703, 61.0352, 61.0352), rel=1e-4)
    assert compare(turns, frames=3)["error at one pace (%)"].abs().max() < 1


def test_bandwidth_sweep():
    config = design(4)
    asked = evaluate(config).bandwidth
    table = bandwidth_sweep(config, [0.25 * asked, 0.5 * asked, 1.2 * asked])
    assert table["texture"].is_monotonic_increasing and table["weights (%)"].is_monotonic_decreasing
    assert table["of the model's traffic"].tolist() == pytest.approx([0.25, 0.5, 1.2])
    np.testing.assert_allclose(
        table["traffic (Gbit/s)"], [0.25 * asked / 1e9, 0.5 * asked / 1e9, asked / 1e9], rtol=0.02
    )
    assert table["texture"].iloc[-1] == pytest.approx(122.07, rel=1e-3)
    in_order = bandwidth_sweep(config, [1.05 * asked], arbitration="in order")
    assert in_order["texture"].item() < 0.9 * 122.07


# --- figures 6 and 7 -----------------------------------------------------------------------------


def test_benchmarks():
    table = benchmarks(bits=(16,), frames=3)
    assert table.index.tolist() == [(name, 16) for name in CLASSIC]
    errors = table["error (%)"]
    assert ((errors > -0.1) & (errors < 5)).all()  # the model forgets what stalls a stage, never the reverse
    lost = table[["starved (%)", "blocked (%)", "weights (%)"]].sum(axis=1)
    np.testing.assert_allclose(lost, errors, atol=0.3)
    assert table.attrs["largest"] == errors.abs().max() >= table.attrs["mean"] > 0
    assert table.attrs["paper"] is PAPER_ERRORS
    assert (table["DSP"] <= KCU1500.dsp).all() and (table["BRAM (18 Kb)"] <= KCU1500.bram).all()
    assert (table["fill (%)"] < errors).all()
    with pytest.raises(I2IError, match="at least one precision"):
        benchmarks(bits=())
