"""The study of PTQ against QAT: arms, resuming, statistics against NumPy, and what its record claims."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from i2ilib import I2IError, models, ptq_qat, runtime
from i2ilib.datasets import synthetic, videomatte
from i2ilib.metrics import iou, mse, paired
from i2ilib.models import SRUNet
from i2ilib.ptq_qat import FLOAT, NAMES, Arm, Task
from i2ilib.quant import Quantised, quantise, tail_aware


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 1, 3, padding=1),
        )

    def forward(self, x):
        return self.last(F.relu(self.norm(self.first(x))))


@pytest.fixture
def toy():
    """A task of 8 x 8 pixels: the mean of the colours; the float network misses it by a little."""
    torch.manual_seed(0)
    model = Net().eval()

    def source(seed):
        def give(step):
            x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1000 * seed + step))
            return x, x.mean(1, keepdim=True)

        return give

    def score(network):
        x, y = source(99)(0)
        return {"mse": float(F.mse_loss(network(x), y))}

    ptq_qat.train_float(model, source(7), F.l1_loss, steps=60, lr=1e-2)
    return Task(
        "toy", model, source, lambda seed: [source(seed)(-1)[0]], F.l1_loss, score, lambda net: {"mse": -1.0},
        {8: 1e-3, 4: 1e-2}, 1e-2, "mse", {"toy": 1},
    )  # fmt: skip


# --- arms --------------------------------------------------------------------------------------------


def test_the_arms_of_a_study(toy):
    found = ptq_qat.arms(toy, steps=9, bits=(4, 8))
    assert [(arm.name, arm.bits) for arm in found] == [
        ("float", FLOAT), ("float continued", FLOAT), ("continued, then PTQ", 8), ("continued, then PTQ with both", 8),
        ("PTQ", 8), ("PTQ repaired", 8), ("PTQ tail-aware", 8), ("PTQ with both", 8), ("QAT as published", 8),
        ("QAT", 8), ("QAT moving thresholds", 8), ("QAT live BatchNorm", 8),
        ("continued, then PTQ", 4), ("continued, then PTQ with both", 4), ("PTQ", 4), ("PTQ with both", 4), ("QAT", 4),
        ("QAT moving thresholds", 4),
    ]  # fmt: skip
    by = {(arm.name, arm.bits): arm for arm in found}
    control, qat = by["float continued", FLOAT], by["QAT", 8]
    assert (control.steps, control.lr) == (qat.steps, qat.lr) == (9, 1e-3)  # the fair control
    for bits in (8, 4):  # the float network has the rate that suits it, whatever the bits
        after, strongest = by["continued, then PTQ", bits], by["continued, then PTQ with both", bits]
        assert (after.steps, after.lr, after.float_first) == (9, 1e-3, True)
        assert strongest == dataclasses.replace(after, name=strongest.name, repair=True, tail_aware=True)
    assert by["QAT", 4].lr == 1e-2 and by["QAT live BatchNorm", 8] == dataclasses.replace(
        qat, name="QAT live BatchNorm", batch_norm="live"
    )
    moving = by["QAT moving thresholds", 4]
    assert moving == dataclasses.replace(by["QAT", 4], name=moving.name, threshold_lr=0.1)
    assert (by["QAT as published", 8].steps, by["QAT as published", 8].lr) == (15, 5e-8)
    assert not any(arm.steps for arm in found if arm.name == "float" or arm.name.startswith("PTQ"))


def test_no_live_batch_norm_where_there_is_none(toy):
    folded = dataclasses.replace(toy, model=models.reparametrise(SRUNet(n_filters=4, residual=False)))
    assert "QAT live BatchNorm" not in [arm.name for arm in ptq_qat.arms(folded, steps=1, bits=(8, 4))]


def test_an_arm_that_is_none(toy):
    with pytest.raises(I2IError, match=r"arms.*'QAT'.*'qat'"):
        ptq_qat.arms(toy, steps=1, names=["PTQ", "qat"])


def test_bits_without_a_rate(toy):
    with pytest.raises(I2IError, match=r"bits.*4, 8.*5"):
        ptq_qat.arms(toy, steps=1, bits=[5])


def test_where_the_arms_arrive(toy, tmp_path):
    x = toy.source(5)(0)[0]
    before = {key: value.clone() for key, value in toy.model.state_dict().items()}
    made = {
        (arm.name, arm.bits): ptq_qat.arrive(toy, arm, 0, tmp_path / f"{arm.name}{arm.bits}")
        for arm in ptq_qat.arms(toy, steps=20, bits=(8, 4))
    }
    for (name, bits), (network, how) in made.items():
        assert isinstance(network, nn.Module if bits == FLOAT else Quantised), name
        assert ("losses" in how) == (name != "float" and not name.startswith("PTQ")), name
        out = ptq_qat.runner(network)(x)
        assert not out.requires_grad and out.shape == (2, 1, 8, 8)
        if bits != FLOAT:
            assert network.bits == bits and torch.equal(out, network.fake(x)), name
    after, batches = made["float continued", FLOAT][0], toy.calibration(0)
    plain = quantise(after, batches)
    both = tail_aware(quantise(after, batches, equalise=True, correct_bias=True), batches)
    for name, expected in (("continued, then PTQ", plain), ("continued, then PTQ with both", both)):
        assert torch.equal(ptq_qat.runner(made[name, 8][0])(x), expected.fake(x)), name
    assert torch.equal(ptq_qat.runner(made["float", FLOAT][0])(x), toy.model(x).detach())
    assert all(torch.equal(before[key], value) for key, value in toy.model.state_dict().items())  # nobody touched it
    statistics = made["float continued", FLOAT][0].norm.running_mean
    assert torch.equal(statistics, before["norm.running_mean"])  # BatchNorm frozen, as in QAT
    errors = {key: toy.score(ptq_qat.runner(network))["mse"] for key, (network, _) in made.items()}
    assert errors["QAT", 4] < errors["PTQ", 4] and errors["float continued", FLOAT] < errors["float", FLOAT]
    assert made["QAT as published", 8][1]["moved"] == 0
    assert abs(errors["QAT as published", 8] / errors["PTQ", 8] - 1) < 0.01  # 15 steps at 5e-8 go nowhere


def test_seeds_draw_calibration_and_order(toy, tmp_path):
    arm = Arm("QAT", 8, 3, 1e-3, 1e-2)
    a, b, again = (ptq_qat.arrive(toy, arm, seed, tmp_path / str(i))[0] for i, seed in enumerate((0, 1, 0)))
    x = toy.source(5)(0)[0]
    assert torch.equal(a.integer(x), again.integer(x)) and not torch.equal(a.integer(x), b.integer(x))


# --- the study ---------------------------------------------------------------------------------------

SMALL = {"seeds": 2, "steps": 2, "bits": (8,), "names": ("float", "PTQ", "QAT"), "progress": False}


def test_a_study_resumes(toy, tmp_path, monkeypatch):
    asked = []
    arrive = ptq_qat.arrive

    def counted(task, arm, seed, folder):
        asked.append((arm.name, seed))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return arrive(task, arm, seed, folder)

    monkeypatch.setattr(ptq_qat, "arrive", counted)
    with pytest.raises(KeyboardInterrupt):
        ptq_qat.study(toy, **SMALL, folder=tmp_path)
    rows = ptq_qat.study(toy, **SMALL, folder=tmp_path)
    wanted = [(name, seed) for seed in (0, 1) for name in SMALL["names"]]
    assert [(row["arm"], row["seed"]) for row in rows] == wanted
    assert asked == [*wanted[:4], *wanted[3:]]  # the first three once
    assert ptq_qat.study(toy, **SMALL, folder=tmp_path) == rows and len(asked) == 7
    assert len(list(tmp_path.iterdir())) == 6  # no checkpoint is left
    monkeypatch.undo()
    fresh = ptq_qat.study(toy, **SMALL, folder=tmp_path / "other")
    assert [row["scores"] for row in fresh] == [row["scores"] for row in rows]


def test_other_settings_are_other_results(toy, tmp_path):
    a = ptq_qat.study(toy, **SMALL | {"seeds": 1}, folder=tmp_path)
    b = ptq_qat.study(toy, **SMALL | {"seeds": 1, "steps": 3}, folder=tmp_path)
    assert [row["steps"] for row in a] == [0, 0, 2] and [row["steps"] for row in b] == [0, 0, 3]
    other = dataclasses.replace(toy, about={"toy": 2}, score=lambda network: {"mse": 7.0})
    assert ptq_qat.study(other, **SMALL | {"seeds": 1}, folder=tmp_path)[0]["scores"] == {"mse": 7.0}


def test_no_seed(toy):
    with pytest.raises(I2IError, match=r"seeds.*at least 1.*0"):
        ptq_qat.study(toy, seeds=0)


def test_rates_are_tried_on_the_validation_frames(toy, tmp_path):
    rows = ptq_qat.rates(toy, (1e-4, 1e-3), (1e-1, 1e-2), steps=2, bits=(8,), folder=tmp_path, progress=False)
    assert [(row["arm"], row["lr"], row["threshold_lr"]) for row in rows] == [
        ("float", 0, 0), ("float continued", 1e-4, 0), ("float continued", 1e-3, 0), ("PTQ", 0, 0),
        ("QAT", 1e-4, 1e-2), ("QAT", 1e-3, 1e-2), ("QAT", 1e-3, 1e-1),  # one rate at a time
    ]  # fmt: skip
    assert all(row["scores"] == {"mse": -1.0} for row in rows)


# --- statistics --------------------------------------------------------------------------------------


def rows_of(values, *, task="toy", arm="PTQ", bits=8, metric="iou"):
    return [
        {"task": task, "arm": arm, "bits": bits, "seed": i, "seconds": 2.0 * i, "scores": {metric: value}}
        for i, value in enumerate(values)
    ]


def test_summaries_are_numpys():
    rng = np.random.default_rng(0)
    values = {(arm, bits): rng.normal(size=3).tolist() for arm in ("PTQ", "QAT") for bits in (8, 4)}
    rows = [row for (arm, bits), three in values.items() for row in rows_of(three, arm=arm, bits=bits)]
    for row in ptq_qat.summarise(rng.permutation(rows).tolist()):
        expected = values[row["arm"], row["bits"]]
        assert row["scores"]["iou"] == pytest.approx({"mean": np.mean(expected), "std": np.std(expected, ddof=1)})
        assert (row["task"], row["n"], row["seconds"]) == ("toy", 3, 2.0)
    assert ptq_qat.summarise(rows_of([0.5]))[0]["scores"]["iou"] == {"mean": 0.5, "std": None}


def test_a_seed_twice():
    with pytest.raises(I2IError, match=r"rows.*once.*toy, PTQ, 8 bits"):
        ptq_qat.summarise(rows_of([1.0]) + rows_of([2.0]))


@pytest.mark.parametrize(
    ("metric", "ours", "theirs", "verdict"),
    [
        ("iou", (0.92, 0.94, 0.93), (0.90, 0.91, 0.91), "better"),  # 0.02 to 0.03 apart in every pair
        ("iou/ines", (0.90, 0.91, 0.91), (0.92, 0.94, 0.93), "worse"),
        ("mse", (0.92, 0.94, 0.93), (0.90, 0.91, 0.91), "worse"),
        ("mse", (0.90, 0.91, 0.91), (0.92, 0.94, 0.93), "better"),
        ("iou", (0.92, 0.94, 0.93), (0.91, 0.95, 0.92), "no difference"),
    ],
)
def test_verdicts(metric, ours, theirs, verdict):
    rows = rows_of(ours, arm="QAT", metric=metric) + rows_of(theirs, metric=metric)[::-1]  # paired by seed
    (found,) = ptq_qat.verdicts(rows)
    assert (found["arm"], found["against"], found["bits"], found["verdict"]) == ("QAT", "PTQ", 8, verdict)
    assert {key: found[key] for key in ("difference", "low", "high", "n")} == paired(ours, theirs)._asdict()


def test_verdicts_compare_what_belongs_together():
    rows = [row for bits in (8, 4) for arm in ("PTQ", "QAT") for row in rows_of((0.1, 0.2), arm=arm, bits=bits)]
    rows += rows_of((0.3, 0.4), arm="float", bits=FLOAT) + rows_of((0.3, 0.4), arm="PTQ", task="other")
    found = [(row["arm"], row["against"], row["bits"]) for row in ptq_qat.verdicts(rows)]
    assert found == [(*pair, n) for pair in (("PTQ", "float"), ("QAT", "PTQ"), ("QAT", "float")) for n in (8, 4)]


def test_what_gives_no_verdict():
    with pytest.raises(I2IError, match=r"verdicts.*two seeds"):
        ptq_qat.verdicts(rows_of([1.0]))
    with pytest.raises(I2IError, match=r"the same seeds.*toy, QAT"):
        ptq_qat.verdicts(rows_of([1.0, 2.0], arm="QAT") + rows_of([1.0, 2.0, 3.0]))


# --- the tasks ---------------------------------------------------------------------------------------


def test_matting(clip):
    """``clip`` of conftest: four frames of noise, two for training."""
    clips = videomatte.clips(clip)
    torch.manual_seed(0)
    model = models.build("pix2pix", width=4, out_channels=1).eval()
    task = ptq_qat.matting(clips, model, mode="foreground", calibration=5)
    x, y = task.source(3)(0)
    assert x.shape == (2, 3, 256, 256) and y.shape == (2, 1, 256, 256)
    assert x.min() >= -1 and x.max() <= 1 and set(y.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(x, task.source(3)(0)[0]) and not torch.equal(x, task.source(4)(0)[0])
    drawn = task.calibration(0)
    assert [len(batch) for batch in drawn] == [5] and not torch.equal(drawn[0], task.calibration(1)[0])
    scores = task.score(lambda batch: batch[:, :1])
    srgb, alpha = videomatte.matting_frame(clips[0], videomatte.paper_split(4).test[0], mode="foreground")
    expected = {"iou": iou(srgb[None, :1], alpha[None]), "mse": mse(srgb[None, :1], alpha[None], scale=255)}
    assert scores == pytest.approx(expected, rel=1e-4)
    assert task.validate(lambda batch: batch[:, :1]) != scores


def test_every_clip_has_its_iou(clip):
    one = videomatte.clips(clip)[0]
    clips = [one, dataclasses.replace(one, name="again", pha=one.pha[::-1])]
    task = ptq_qat.matting(clips, models.build("pix2pix", width=4, out_channels=1), mode="foreground")
    scores = task.score(lambda batch: batch[:, :1])
    assert scores["iou"] == pytest.approx((scores["iou/walk"] + scores["iou/again"]) / 2)
    assert scores["iou/walk"] != scores["iou/again"]


@pytest.fixture(scope="module")
def enlarging(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sr")
    clip = videomatte.clips(runtime.DATA / "sample")[0]
    sizes = {"steps": 3, "n_filters": 4, "every": 8, "calibration": 4}
    return ptq_qat.super_resolution(clip, folder, **sizes), folder, clip, sizes


def test_super_resolution(enlarging):
    task, *_ = enlarging
    low, detail = task.source(0)(0)
    assert low.shape == (8, 3, 64, 64) and detail.shape == (8, 3, 128, 128) and low.min() >= -1 and low.max() <= 1
    bicubic = F.interpolate(low, scale_factor=2.0, mode="bicubic", align_corners=False).clamp(-1, 1)
    assert (detail + bicubic).abs().max() <= 1 + 1e-5  # the frame's own codes
    codes = (detail + bicubic + 1) * 127.5
    assert (codes - codes.round()).abs().max() < 1e-3
    assert torch.equal(low, task.source(0)(0)[0]) and not torch.equal(low, task.source(1)(0)[0])
    # a network without detail leaves the host's bicubic enlargement, which beats the nearest neighbour
    nothing = task.score(lambda tiles: torch.zeros(len(tiles), 3, 128, 128))
    nearest = F.interpolate(low, scale_factor=2.0) - bicubic
    assert 20 < nothing["psnr_db"] < 50 and 0.5 < nothing["ssim"] < 1
    assert detail.square().mean() < (detail - nearest).square().mean()


def test_the_float_network_is_trained_once(enlarging, monkeypatch):
    task, folder, clip, sizes = enlarging
    monkeypatch.setattr(ptq_qat, "train_float", None)
    again = ptq_qat.super_resolution(clip, folder, **sizes)
    assert again.about == task.about
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), task.model.parameters(), strict=True))


def test_training_a_float_network():
    torch.manual_seed(0)
    net = nn.Conv2d(1, 1, 1, bias=False)
    x = torch.rand(1, 1, 4, 4)
    losses = ptq_qat.train_float(net, lambda step: (x, 3 * x), F.mse_loss, steps=400, lr=0.1, decay=True)
    assert len(losses) == 400 and net.weight.item() == pytest.approx(3, abs=1e-3)


# --- the command -------------------------------------------------------------------------------------


def test_the_command_records(toy, tmp_path, monkeypatch, capsys):
    made = {"matting": toy, "sr": dataclasses.replace(toy, name="toy 2")}
    monkeypatch.setattr(ptq_qat, "tasks", lambda run, folder, *, names: {name: made[name] for name in names})
    monkeypatch.setattr(ptq_qat, "RECORDS", {"toy": "a", "toy 2": "b"})
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    monkeypatch.setattr(runtime, "RESULTS", tmp_path / "results")
    sizes = {key: value for key, value in SMALL.items() if key != "progress"}
    monkeypatch.setattr(ptq_qat, "size", lambda run: sizes)
    monkeypatch.setattr(ptq_qat, "rates", functools.partial(ptq_qat.rates, lrs=(1e-3,), threshold_lrs=(1e-2,)))
    ptq_qat.main(["--preset", "smoke", "--record", "--rates", "--json"])
    printed = json.loads(capsys.readouterr().out)
    kept = {name: runtime.recorded(name) for name in ("a", "b", "ptq_qat_rates")}
    assert [record["result"] for record in kept.values()] == [printed[name] for name in ("toy", "toy 2", "rates")]
    assert all(record["provenance"]["preset"] == "smoke" for record in kept.values())
    for name in ("toy", "toy 2"):
        result = printed[name]
        assert {row["task"] for row in result["rows"]} == {name} and result["about"] == {"toy": 1}
        assert len(result["rows"]) == 6 and len(result["summary"]) == 3
        assert result["verdicts"] == ptq_qat.verdicts(result["rows"])
    assert printed["rates"]["tasks"].keys() == {row["task"] for row in printed["rates"]["rows"]} == {"toy", "toy 2"}
    ptq_qat.main(["--preset", "smoke", "--task", "matting", "--seeds", "1"])
    text = capsys.readouterr().out
    assert text.count("\n") == 3 and "8 bits" in text and "±" not in text
    with pytest.raises(SystemExit):
        ptq_qat.main(["--preset", "smoke", "--record", "--seeds", "1"])
    assert "2 seeds or more" in capsys.readouterr().err


def test_the_tasks_of_a_preset(tmp_path):
    made = ptq_qat.tasks(runtime.start(0, preset="smoke"), tmp_path, names=["sr"])
    assert made.keys() == {"sr"} and made["sr"].name == "super-resolution" and made["sr"].name in ptq_qat.RECORDS


def test_a_table_with_errors():
    summary = ptq_qat.summarise(rows_of((0.25, 0.75)) + rows_of((0.5, 0.5), arm="float", bits=FLOAT))
    first, second = ptq_qat.table(summary).splitlines()
    assert "0.5 ± 0.35" in first and "8 bits" in first and "float" in second and "0.5 ± 0" in second


# --- what was recorded -------------------------------------------------------------------------------


# at fewer bits than 8, by how many of NAMES a record has not
CONTROLS = {
    0: ("PTQ", "PTQ with both", "QAT", "QAT moving thresholds", "continued, then PTQ", "continued, then PTQ with both"),
    3: ("PTQ", "QAT"),
}


@pytest.fixture(params=ptq_qat.RECORDS)
def kept(request):
    return request.param, runtime.recorded(ptq_qat.RECORDS[request.param])["result"]


def test_the_record_is_whole(kept):
    task, result = kept
    assert result["seeds"] >= 3
    names = [name for name in result["names"] if task == "matting" or name != "QAT live BatchNorm"]
    arms = {(name, FLOAT if name.startswith("float") else 8) for name in names}
    arms |= {(name, bits) for name in CONTROLS[len(NAMES) - len(result["names"])] for bits in (6, 5, 4)}
    found = [(row["task"], row["arm"], row["bits"], row["seed"]) for row in result["rows"]]
    assert sorted(found) == sorted((task, *arm, seed) for arm in arms for seed in range(result["seeds"]))
    assert result["summary"] == ptq_qat.summarise(result["rows"])
    for row, again in zip(result["verdicts"], ptq_qat.verdicts(result["rows"]), strict=True):
        sums = ("difference", "low", "high")  # in another order on another processor
        assert [row.pop(key) for key in sums] == pytest.approx([again.pop(key) for key in sums], rel=1e-6, abs=1e-12)
        assert row == again


def test_int8_is_within_a_hundredth_of_float_on_every_actor():
    result = runtime.recorded("ptq_qat_matting")["result"]
    scores = {(row["arm"], row["bits"]): row["scores"] for row in result["summary"]}
    clips = {f"iou/{actor.name}_768x512" for actor in synthetic.ACTORS}
    exact = scores["float", FLOAT]
    assert clips == {key for key in exact if "/" in key}
    for arm in ("PTQ", "QAT"):
        rounded = scores[arm, 8]
        assert all(abs(rounded[key]["mean"] - exact[key]["mean"]) < 0.01 for key in clips), arm


def words(result, arm, against, bits):
    """The verdict on each metric."""
    wanted = (arm, against, bits)
    return {
        row["metric"]: row["verdict"]
        for row in result["verdicts"]
        if (row["arm"], row["against"], row["bits"]) == wanted and "/" not in row["metric"]
    }


FIRST = {"matting": "iou", "super-resolution": "psnr_db"}


def test_training_pays_below_eight_bits(kept):
    task, result = kept
    for bits in (6, 5, 4):
        assert words(result, "QAT", "PTQ", bits)[FIRST[task]] == "better"


def test_what_notebook_07_reads_in_the_records():
    matting, sr = (runtime.recorded(name)["result"] for name in ptq_qat.RECORDS.values())
    same = "no difference"
    strongest = "continued, then PTQ with both"
    assert words(matting, "QAT", "continued, then PTQ", 8) == {"iou": same, "mse": "worse"}
    assert words(matting, "QAT as published", "PTQ", 8) == {"iou": "better", "mse": "better"}
    assert words(sr, "QAT as published", "PTQ", 8) == {"psnr_db": same, "ssim": same}
    for arm in ("PTQ repaired", "QAT"):
        assert words(sr, arm, "PTQ", 8) == {"psnr_db": "better", "ssim": "better"}
    assert words(sr, "QAT", strongest, 8) == words(sr, "QAT", strongest, 5) == {"psnr_db": same, "ssim": same}
    assert words(sr, "QAT", strongest, 6) == {"psnr_db": "better", "ssim": "worse"}
    assert words(sr, "QAT moving thresholds", strongest, 4) == {"psnr_db": "better", "ssim": "better"}
    scores = {(row["arm"], row["bits"]): row["scores"] for row in sr["summary"]}
    alone = sr["about"]["bicubic"]
    assert all(scores["QAT", 4][metric]["mean"] < alone[metric] for metric in alone)
    assert scores["QAT", 5]["ssim"]["mean"] < alone["ssim"]
    assert all(row["moved"] == 0 for row in matting["rows"] + sr["rows"] if row["arm"] in ("QAT", "QAT as published"))


def test_the_rates_are_the_best_of_those_tried():
    rows = runtime.recorded("ptq_qat_rates")["result"]["rows"]
    for task, lrs in (("matting", ptq_qat.MATTING_LR), ("super-resolution", ptq_qat.ENLARGING_LR)):
        metric = {"matting": "iou", "super-resolution": "psnr_db"}[task]
        for bits in (8, 4):
            tried = [row for row in rows if (row["task"], row["arm"], row["bits"]) == (task, "QAT", bits)]
            assert max(tried, key=lambda row: row["scores"][metric])["lr"] == lrs[bits]
