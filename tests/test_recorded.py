"""What lies in data: recorded results have their provenance and meet the paper; weights do what their card says."""

import json

import pytest
import torch

from i2ilib import I2IError, colour, models, patches, runtime
from i2ilib.datasets import videomatte
from i2ilib.metrics import iou, paired
from i2ilib.protocol import PAPER_TABLE_1
from i2ilib.quant import with_positions
from i2ilib.studies import flicker
from i2ilib.train import MattingConfig


@pytest.mark.parametrize("path", sorted(runtime.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_provenance_is_whole(path):
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert set(kept) == {"provenance", "result"} and kept["result"]
    assert {"preset", "seed", "device_name", "threads", "date", "python", "versions"} <= kept["provenance"].keys()


def test_the_four_users_stand_beside_table_1():
    kept = runtime.recorded("matting_users_foreground")["result"]
    config = MattingConfig(**kept["config"])  # of this version
    assert (config.batch, config.epochs, config.stride, config.learning_rate) == (1, 10, 64, 2e-4)
    rows = {name: kept["users"][name] for name in PAPER_TABLE_1}  # there may be more
    for name, row in rows.items():
        assert row["frames"] == [57, 11, 7] and row["float"]["iou"] > 0.95, name  # "> 0.95": section 4.3
        assert row["waiting_share"] < 0.05 and row["peak_memory_gib"] < 8, name
    assert sorted(row["width"] for row in rows.values()) == [1920, 1920, 3840, 3840]


def test_pretrained_mattes_the_sample_in_float_and_in_integers():
    model, meta = models.pretrained("matting_actors")
    clip = videomatte.clips(runtime.DATA / "sample")[0]
    pairs = [videomatte.matting_frame(clip, i) for i in (3, 28)]
    source = torch.cat([patches.split(colour.to_fixed(s[None], meta["q_in"])) for s, _ in pairs])
    truth = torch.cat([patches.split(a[None]) for _, a in pairs])
    quantised = with_positions(model, meta["fix_positions"], source)
    with torch.no_grad():
        floats, integers = (colour.from_fixed(made, 1).clamp(0, 1) for made in (model(source), quantised.fake(source)))
    frames = [matte.reshape(1, 1, -1, 256) for matte in (floats, integers, truth)]  # one image: all patches
    assert iou(frames[0], frames[2]) > 0.95 and iou(frames[1], frames[2]) > 0.94


def test_pretrained_names_what_there_is():
    with pytest.raises(I2IError, match=r"pretrained.*matting_actors.*'nobody'"):
        models.pretrained("nobody")


def test_the_full_size_gan_on_4k_fits_where_it_was_measured():
    kept = runtime.recorded("training_4k")["result"]
    assert kept["width"] == 64 and kept["peak_memory_gib"] < 8 and kept["waiting_share"] < 0.05


def test_sharpening_beats_srunet_by_plain_vmaf_and_loses_by_neg():
    kept = runtime.recorded("restoration_src01")["result"]
    ours, theirs = (
        kept["vmaf_per_frame"][name] for name in ("SRUNet, published weights", "Lanczos, unsharp 1.5 of 5 pixels")
    )
    assert all(len(scores) == kept["frames"] for row in kept["vmaf_per_frame"].values() for scores in row.values())
    plain, neg = (paired(ours[m], theirs[m], block=12) for m in ("vmaf_v0.6.1", "vmaf_v0.6.1neg"))
    assert plain.high < 0 < neg.low


def test_int8_by_calibration_flickers_more_than_float():
    """Of the same frames and networks, on every actor, while the squared error does not tell them apart."""
    result = runtime.recorded("flicker")["result"]
    assert set(result) == {"sample clip", "six actors"} and result["six actors"]["seeds"] == 3
    rows = result["six actors"]["rows"]
    clips = result["six actors"]["about"]["clips"]
    assert len(clips) == 6 and len(rows) == 3 * len(flicker.ARMS)

    def by_actor(arm, metric):
        of = [row["scores"] for row in rows if row["arm"] == arm]
        return [sum(scores[f"{metric}/{clip}"] for scores in of) / len(of) for clip in clips]

    ours, theirs = (by_actor(arm, "dtssd") for arm in ("PTQ", "float"))
    assert all(a > b for a, b in zip(ours, theirs, strict=True))
    assert paired(ours, theirs).verdict(higher_is_better=False) == "worse"
    errors = paired(by_actor("PTQ", "mse"), by_actor("float", "mse"))
    assert errors.verdict(higher_is_better=False) == "no difference"
