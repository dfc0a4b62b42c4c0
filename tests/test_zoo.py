"""The zoo's networks against AMD's operation counts and against torchvision; the judgement against what it promises."""

import numpy as np
import pytest
import torch

from i2ilib.deploy import cycles, zoo
from i2ilib.deploy.layers import layers
from i2ilib.errors import I2IError
from i2ilib.runtime import require

USED = {"fitted", "held out"}


@pytest.fixture(scope="module")
def judged():
    return zoo.judge()


def test_published_rows_are_the_facts_of_the_zoo():
    rows = zoo.published()
    assert rows.index.is_unique and rows.source.str.contains("Vitis AI 1.3").all()
    assert rows.loc["tf_vgg16_imagenet_224_224_30.96G", ["gop", "u50", "u50lv"]].tolist() == [30.96, 161.5, 222.0]
    listed = [float(name.rsplit("_", 1)[1].rstrip("G")) for name in rows.index if name.endswith("G")]
    assert listed == rows.gop.dropna().tolist()  # the name itself ends in the operations
    assert set(rows.index) == set(zoo.ZOO) | set(zoo.NOT_REBUILT)


@pytest.mark.parametrize("name", zoo.halves()[0] + zoo.halves()[1])
def test_traced_operations_are_those_that_amd_lists(name):
    assert zoo.gop(name) == pytest.approx(zoo.published().gop[name], rel=zoo.TOLERANCE)


def test_most_of_the_zoo_is_usable_and_the_rest_has_a_reason(judged):
    fitted, held = zoo.halves()
    assert len(fitted) + len(held) == 26 and abs(len(fitted) - len(held)) <= 1
    assert not set(fitted) & set(held) and zoo.PIX2PIX not in fitted + held
    unused = judged[judged.half == "not used"]
    assert unused.note.str.len().gt(20).all()
    assert "+11.1 %" in unused.note["cf_facerec-resnet64_112_96_11G"]


@pytest.mark.parametrize(
    ("name", "build", "options"),
    [
        ("cf_resnet18_imagenet_224_224_3.65G", "resnet18", {}),
        ("tf_mlperf_resnet50_imagenet_224_224_8.19G", "resnet50", {}),
        ("tf_vgg16_imagenet_224_224_30.96G", "vgg16", {}),
        ("tf_vgg19_imagenet_224_224_39.28G", "vgg19", {}),
        ("cf_squeeze_imagenet_227_227_0.76G", "squeezenet1_1", {}),
        ("cf_inceptionv3_imagenet_299_299_11.4G", "inception_v3", {"aux_logits": False, "init_weights": False}),
    ],
)
def test_layers_are_torchvisions(name, build, options):
    models = require("torchvision").models
    with torch.device("meta"):
        model = getattr(models, build)(**options)
    _, height, width = zoo.ZOO[name]
    theirs = [x for x in layers(model, torch.empty(1, 3, height, width)) if x.macs]
    ours = [x for x in zoo.traced(name) if x.macs]

    def facts(found):
        return sorted((x.kind, x.kernel, x.stride, x.inputs, x.output, x.macs) for x in found)

    assert facts(ours) == facts(theirs)


def test_the_paper_generator_is_traced_too():
    assert sum(layer.weights for layer in zoo.traced(zoo.PIX2PIX)) == pytest.approx(54.4e6, rel=0.001)
    assert zoo.gop(zoo.PIX2PIX) / 2 == pytest.approx(6.05, rel=0.001)


def test_one_network_was_counted_without_transposed_convolutions():
    (name,) = zoo.CONVOLUTIONS_ONLY
    whole = 2e-9 * sum(layer.macs for layer in zoo.traced(name))
    assert zoo.gop(name) < zoo.published().gop[name] < whole / (1 + zoo.TOLERANCE)


def test_refitting_gives_the_constants_in_the_code():
    found = zoo.refit()
    for field in ("weights_per_cycle", "features_per_cycle", "start_cycles"):
        assert getattr(found, field) == pytest.approx(getattr(cycles.CONSTANTS, field), rel=2e-3)


def test_the_model_meets_most_networks_and_the_paper(judged):
    assert abs(judged.u50_error[zoo.PIX2PIX]) < 0.15
    shares = zoo.shares(judged)
    assert shares["fitted"] >= 0.9 and shares["held out"] >= 0.8 and shares["U50LV"] >= 0.75
    again = judged[judged.half == "held out"].u50_error.abs().le(0.15).mean()
    assert shares["held out"] == again
    assert zoo.shares(judged, 1e9) == {"fitted": 1, "held out": 1, "U50LV": 1}


def test_every_outlier_is_explained_and_only_those(judged):
    used = judged[judged.half.isin(USED)]
    worst = np.fmax(used.u50_error.abs(), used.u50lv_error.abs())
    assert set(used.index[worst > 0.15]) == set(zoo.WHY)
    assert (used.note != "").equals(worst > 0.15)


def test_judging_other_constants_changes_the_model_alone(judged):
    slow = zoo.judge(cycles.Constants(1.0, 1.0, 1e5))
    used = judged.half.isin(USED)
    assert (slow.u50_modelled < judged.u50_modelled)[used].all() and slow.u50.equals(judged.u50)


@pytest.mark.parametrize(("name", "words"), [("resnet1", "'resnet1'"), (next(iter(zoo.NOT_REBUILT)), "not found")])
def test_unknown_and_unbuilt_networks_are_refused(name, words):
    with pytest.raises(I2IError, match=words):
        zoo.traced(name)
