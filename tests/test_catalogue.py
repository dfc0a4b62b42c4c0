"""The table of metrics: what is registered can be asked for, scored and told, and nothing is registered twice."""

import dataclasses
import json
import math

import pytest
import torch

from i2ilib import I2IError, UnavailableError, metrics, runtime
from i2ilib.metrics import Metric, catalogue

EXAMPLE = Metric(
    "example", "Example", "mean", True, (0, 1), "here", lambda pred, target, reduction: pred.mean((1, 2, 3))
)


@pytest.fixture
def empty(monkeypatch):
    monkeypatch.setattr(catalogue, "_METRICS", {})


def test_every_metric_is_described():
    for name, metric in metrics.registry().items():
        assert (
            metric.name == name and metric.variant and metric.source and metric.score_range[0] < metric.score_range[1]
        )
        assert metric.heading.startswith(metric.label) and metric.heading[-1] in "↑↓"
        json.dumps(metric.describe(), allow_nan=False)
    assert len({(m.label, m.variant) for m in metrics.registry().values()}) == len(metrics.registry())


@pytest.mark.parametrize(
    "name", [n for n, m in metrics.registry().items() if not m.needs and not m.clips and n != "lpips_comp"]
)
def test_equal_images_have_the_best_score(name):
    metric = metrics.registry()[name]
    image = torch.rand(3, 1 if metric.of == "matte" else 3, 168, 168, generator=torch.Generator().manual_seed(0))
    image[:, :, :50] = 0
    found = metrics.score(image, image, [name])[name]
    assert not found.reason and len(found.values) == 3 - (metric.takes == "clip")
    best = metric.score_range[metric.higher_is_better]
    assert metric.takes == "picture" or all(value == pytest.approx(best, abs=1e-6) for value in found.values)
    low, high = metric.score_range
    assert all(low <= value <= high for value in found.values)


def test_the_table_cannot_be_changed_from_outside():
    with pytest.raises(TypeError):
        metrics.registry()["iou"] = EXAMPLE


def test_registering(empty):
    assert metrics.register(EXAMPLE) is EXAMPLE and metrics.metric("example") is EXAMPLE
    metrics.register(EXAMPLE)  # a cell that is run again
    with pytest.raises(I2IError, match="name: expected one that is free, got 'example'"):
        metrics.register(dataclasses.replace(EXAMPLE, variant="median"))
    for field, value in (("takes", "video"), ("of", "sound"), ("name", "Two Words")):
        with pytest.raises(I2IError, match=field):
            metrics.register(dataclasses.replace(EXAMPLE, **{"name": "other", field: value}))
    with pytest.raises(I2IError, match="metric: expected one of example, got 'psnr'"):
        metrics.metric("psnr")


def test_what_a_score_tells(empty, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "CACHE", tmp_path)
    metrics.register(EXAMPLE)

    def absent(pred, target, reduction):
        raise UnavailableError("weights", remedy="Fetch them.")

    metrics.register(dataclasses.replace(EXAMPLE, name="absent", function=absent))
    metrics.register(dataclasses.replace(EXAMPLE, name="large", smallest=161))
    pred = torch.tensor([0.25, 0.75]).reshape(2, 1, 1, 1).expand(2, 3, 4, 5)
    found = metrics.score(pred, pred, ["example", "absent", "large"], about={"depth": "8 bits"})
    assert str(found["example"]) == "0.5000 ± 0.3536"  # the sample's standard deviation
    assert found["example"].describe()["about"] == {"depth": "8 bits"} and found["example"].describe()["n"] == 2
    assert str(found["absent"]) == "not available: weights. Fetch them."
    assert "161 pixels or more, these images have 5×4" in str(found["large"])
    needy = dataclasses.replace(EXAMPLE, name="needy", function=absent, needs=("brisque_allmodel", "brisque_allrange"))
    metrics.register(needy)
    expected = "not available: its weights are not here; i2i fetch brisque_allmodel brisque_allrange"
    assert str(metrics.score(pred, pred, ["needy"])["needy"]) == expected
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/brisque_allmodel").write_text("something else")
    (tmp_path / "downloads/brisque_allrange").write_text("something else")
    damaged = metrics.score(pred, pred, ["needy"])["needy"].reason
    assert damaged == "its weights have another checksum; i2i fetch brisque_allmodel brisque_allrange"
    assert found["absent"].describe()["mean"] is None and math.isnan(found["absent"].mean)
    for score in found.values():
        json.dumps(score.describe(), allow_nan=False)
    assert str(metrics.Score(EXAMPLE, (0.000123456,))) == "0.0001235"
