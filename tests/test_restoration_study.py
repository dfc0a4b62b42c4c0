"""The thesis's tables: each network in four precisions, beside the paper, on frames of one size."""

import json
import sys

import pandas as pd
import pytest
import torch

from i2ilib import I2IError, metrics, models, runtime
from i2ilib.datasets import bvi_dvc, moving
from i2ilib.deploy import make_runner, published
from i2ilib.models.layers import enlarge
from i2ilib.quant import quantise
from i2ilib.studies import restoration as study


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    for scene in moving.SCENES[:2]:
        bvi_dvc.write_clip(root, scene.name, moving.frames(scene, 3, height=168, width=176))
    return root


def small(name, scale=2):
    torch.manual_seed(1)
    fields = {"srunet": {"n_filters": 8, "layer_multiplier": 0.5}, "unet": {"filters": (4, 4, 8, 8)}}[name]
    return models.build(name, **fields, scale=scale).eval()


@pytest.fixture(scope="module")
def found(root):
    run = runtime.start(0, preset="smoke")
    networks = {"UNet": small("unet"), "SRUNet": small("srunet")}
    return study.study(run, bvi_dvc.pairs(root), networks, frames=4, progress=False)


def rows(found, key):
    table = pd.DataFrame(found[key])
    return table[table.origin != "paper"].set_index("model"), table[table.origin == "paper"]


def test_every_network_in_every_precision_beside_the_paper(found):
    names = {f"{network}{suffix}" for network in ("UNet", "SRUNet") for suffix in ("", "-FP32", "-FP16", "-INT8")}
    for key in ("perceptual", "traditional", "vmaf", "speed"):
        ours, theirs = rows(found, key)
        assert set(ours.index) - {"bicubic"} == names and len(theirs) == 8
        assert all(origin == "measured" or origin.startswith("not measured: ") for origin in ours.origin)
    assert rows(found, "size")[0].index.tolist() == ["UNet", "SRUNet"]
    assert published.table("thesis_size").iloc[0]["value"] in set(rows(found, "size")[1]["value"])
    assert (
        found["about"]["frames"] == 4 and found["about"]["scale"] == 2 and found["about"]["size_pixels"] == [176, 168]
    )
    json.dumps(found)


def test_vmaf_is_that_of_the_assembled_clip(found, root):
    ours, _ = rows(found, "vmaf")
    clips = [[bvi_dvc.read_pair(p) for p in bvi_dvc.pairs(root, clip=scene.name)] for scene in moving.SCENES[:2]]
    order = [(0, 0), (0, 1), (0, 2), (0, 2), (0, 1), (0, 0), (1, 0), (1, 1), (1, 2), (1, 2), (1, 1), (1, 0)]
    low, high = (torch.stack([clips[c][i][k] for c, i in order]) for k in (0, 1))
    expected = metrics.vmaf(enlarge(small("srunet"), low).mul(255).round().div(255), high)
    assert expected.mean == pytest.approx(ours.loc["SRUNet", "vmaf_v0.6.1_mean"], abs=1e-3)
    assert expected.harmonic_mean == pytest.approx(ours.loc["SRUNet", "vmaf_v0.6.1_harmonic_mean"], abs=1e-3)
    assert ours.loc["SRUNet", "frames"] == 12


def test_speeds_are_against_the_network_as_it_was_trained(found):
    ours, _ = rows(found, "speed")
    measured = ours[ours.origin == "measured"]
    assert (measured.loc[["UNet", "SRUNet"], "speedup"] == 1).all() and (measured.seconds > 0).all()
    assert measured.loc["SRUNet", "engine"] == "torch" and (measured.n == 3).all()


def test_integers_make_the_file_smaller(found):
    ours, _ = rows(found, "size")
    assert (ours.int8_bytes < ours.float32_bytes).all()
    expected = 100 * (1 - ours.int8_bytes / ours.float32_bytes)
    pd.testing.assert_series_equal(ours.reduction_percent, expected, check_names=False)


@pytest.mark.parametrize("name", ["unet", "srunet"])
def test_core_and_host_are_the_network(name):
    network = small(name)
    core = study.core_of(network)
    assert core.config.folded and not core.config.residual
    low = torch.randint(0, 256, (2, 3, 19, 21), dtype=torch.uint8)
    runner = make_runner("torch", core, torch.zeros(1, 3, 24, 24))
    made = study.restored(runner, network, low)
    whole = enlarge(network, low.float() / 255).mul(255).round().to(torch.uint8)
    assert made.shape == (2, 3, 38, 42) and (made.int() - whole.int()).abs().max() <= 1  # a tie, at most


def test_int8_is_the_exact_integers():
    network = small("srunet")
    core, low = study.core_of(network), torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    quantised = quantise(core, study.calibration(2))
    _, runner = study.precisions(core, (core, quantised.fix_positions), torch.zeros(1, 3, 96, 96))["-INT8"]
    with runner:
        made = study.restored(runner, network, low)
    x = low.float().div(255) * 2 - 1
    exact = network.host(quantised.integer(x), x).add(1).div(2).mul(255).round().to(torch.uint8)
    assert (made.int() - exact.int()).abs().max() <= 1


def test_calibration_sees_photographs_and_no_clip():
    frames = study.calibration(3)
    assert frames.shape == (3, 3, 96, 96) and frames.min() >= -1 and frames.max() <= 1 and frames.std() > 0.1
    assert study.calibration(1, scale=4).shape == (1, 3, 96, 96)


def test_a_missing_precision_is_told_with_its_reason(monkeypatch):
    core = study.core_of(small("srunet"))
    quantised = quantise(core, study.calibration(1))
    plain = study.status
    absent = runtime.Availability(False, "no such unit")
    monkeypatch.setattr(study, "status", lambda name: plain(name) if name == "torch" else absent)
    found = study.precisions(core, (core, quantised.fix_positions), torch.zeros(1, 3, 96, 96))
    assert found["-FP16"] == ("torch-bf16", "not measured: no such unit")
    assert {found[suffix][1] for suffix in ("-FP32", "-FP16", "-INT8")} == {"not measured: no such unit"}
    assert not isinstance(found[""][1], str)


def test_frames_and_networks_that_cannot_be(root, tmp_path):
    run = runtime.start(0, preset="smoke")
    with pytest.raises(I2IError, match=r"SRUNet: expected a network that enlarges 2 times, got 4"):
        study.study(run, bvi_dvc.pairs(root), {"SRUNet": small("srunet", scale=4)})
    bvi_dvc.write_clip(tmp_path, "a", moving.frames(moving.SCENES[0], 1, height=64, width=64))
    with pytest.raises(I2IError, match="frames of one size, got 2 sizes"):
        study.study(run, bvi_dvc.pairs(root) + bvi_dvc.pairs(tmp_path), {})
    with pytest.raises(I2IError, match="frames of one size, got 0 sizes"):
        study.study(run, [], {})


def test_from_the_command_line(root, tmp_path, monkeypatch, capsys):
    models.save(tmp_path / "m.safetensors", small("srunet"))
    seen = {}
    monkeypatch.setattr(
        study, "study", lambda run, pairs, networks, **more: seen.update(networks) or {"run": run.preset}
    )
    monkeypatch.setattr(sys, "argv", ["study"])
    study.main([str(root), "--network", f"Mine={tmp_path / 'm.safetensors'}", "--preset", "smoke", "--json"])
    assert json.loads(capsys.readouterr().out) == {"run": "smoke"}
    assert list(seen) == ["Mine"] and seen["Mine"].config.n_filters == 8
