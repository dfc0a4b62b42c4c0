"""Figures of engine files: what is drawn is what the data say."""

import pytest
import torch

from i2ilib import I2IError
from i2ilib.models import Generator
from i2ilib.plots import PALETTE
from i2ilib.plots.tensorrt import precision_figure, qdq_graph, speedups
from i2ilib.quant import quantise

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(0)
    quantised = quantise(Generator(width=2, levels=2), [torch.rand(2, 3, 16, 16)])
    return quantised.to_onnx(tmp_path_factory.mktemp("onnx") / "net.onnx", ties="even")


def test_the_graph_shows_each_operator_once_and_int8_where_it_is(file):
    graph = onnx.load(file).graph
    last = [node.name for node in graph.node if node.op_type == "ConvTranspose"][-1]
    (ax,) = qdq_graph(file, last, depth=3).axes
    texts = [text.get_text() for text in ax.texts]
    # its input: concat, Q, DQ; its weights: DQ
    assert sorted(text for text in texts if text in ("Q", "DQ", "Concat", "Conv\nTranspose")) == sorted(
        ["Conv\nTranspose", "Q", "DQ", "DQ", "Concat"]
    )
    assert texts.count("weights") == 1
    assert sum(line.get_color() == PALETTE[0] for line in ax.lines) == 2, "from Q to DQ, and the weights into theirs"


def test_a_whole_network_fits(file):
    last = onnx.load(file).graph.node[-1].name
    (ax,) = qdq_graph(file, last, depth=40, title="all").axes
    boxes = [text for text in ax.texts if text.get_bbox_patch() is not None]
    assert len(boxes) == len({box.get_position() for box in boxes}) == len(onnx.load(file).graph.node)
    assert ax.get_title() == "all"


def test_no_such_node(file, tmp_path):
    with pytest.raises(I2IError, match=r"node: expected an operator of .*, got 'none'"):
        qdq_graph(file, "none")
    with pytest.raises(I2IError, match="expected an ONNX file, got no file"):
        qdq_graph(tmp_path / "none.onnx", "x")


def test_error_maps_are_in_codes():
    one = torch.full((3, 8, 8), 0.5)
    outputs = {"float32": one, "float16": one + 1 / 255, "int8": one - 3 / 255}
    figure = precision_figure(one, outputs)
    maps = [ax.images[0] for ax in figure.axes if ax.get_title().startswith("|")]
    assert [float(image.get_array().max()) for image in maps] == pytest.approx([1, 3], abs=1e-3)
    assert [image.get_clim()[1] for image in maps] == pytest.approx([1, 3], abs=1e-3)
    assert [
        image.get_clim()[1]
        for image in [
            ax.images[0] for ax in precision_figure(one, outputs, limit=9).axes if ax.get_title().startswith("|")
        ]
    ] == [9, 9]
    three = precision_figure(one, outputs | {"other": one})
    assert sum(ax.get_title().startswith("|") for ax in three.axes) == 3


def test_one_comparison_is_enough_and_none_is_not():
    one = torch.rand(1, 4, 4)
    titles = [ax.get_title() for ax in precision_figure(torch.rand(3, 4, 4), {"float32": one, "int8": one}).axes]
    assert titles.count("int8") == 1
    for outputs in ({}, {"float32": one}, {"int8": one, "float16": one}):
        with pytest.raises(I2IError, match="expected float32 and another"):
            precision_figure(one, outputs)


def test_speedups_are_over_the_first():
    figure = speedups({"A": {"plain": 12.0, "fast": 4.0}, "B": {"plain": 5.0, "fast": 2.0}}, origin="recorded")
    assert [ax.get_title() for ax in figure.axes] == ["A", "B"]
    words = " ".join(text.get_text() for ax in figure.axes for text in ax.texts)
    assert "3.00×" in words and "2.50×" in words and words.count("×") == 2
    assert figure.axes[0].get_xlabel() == "ms per run (recorded)"
