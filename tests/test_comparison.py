"""Clips against a reference: right numbers, and one clear sentence for whatever cannot be compared."""

import csv
import gc
import json
import math
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import shared
from PIL import Image
from scipy import ndimage
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from i2ilib import FrameError, I2IError, UnavailableError, comparison, metrics
from i2ilib.cli import main
from i2ilib.comparison import compare
from i2ilib.comparison.thesis import thesis_tables
from i2ilib.frames import write_image, write_video

PHOTO = data.astronaut()[60:220, 140:340]  # a face: 160 x 200


def frames(count=4, *, noise=0.0, seed=0):
    """The photograph panned by two pixels a frame, with noise."""
    rng = np.random.default_rng(seed)
    wide = data.astronaut()[60:220, 100:400].astype(float)
    panned = [wide[:, 2 * i : 2 * i + 200] for i in range(count)]
    return [np.clip(frame + noise * rng.standard_normal(frame.shape), 0, 255).astype(np.uint8) for frame in panned]


def folder(path, pictures, suffix=".png"):
    path.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / f"{i:03}{suffix}")
    return path


@pytest.fixture
def clips(tmp_path):
    """A reference and two candidates of four frames, the second the worse."""
    made = {"ref": frames(), "fine": frames(noise=4), "poor": frames(noise=12, seed=1)}
    return [folder(tmp_path / name, pictures) for name, pictures in made.items()]


def run(*arguments, capsys):
    """Exit code, the JSON object if there is one, and what went to the error stream."""
    code = main(["compare", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_the_scores_are_those_of_each_pair(clips):
    found = compare(*clips, metrics=["psnr", "mse_255"], progress=False)
    for candidate, noise, seed in zip(found.candidates, (4, 12), (0, 1), strict=True):
        pairs = list(zip(frames(), frames(noise=noise, seed=seed), strict=True))
        expected = [peak_signal_noise_ratio(a, b) for a, b in pairs]
        assert candidate.scores["psnr"].values == pytest.approx(expected, rel=1e-6)
        assert candidate.worst("psnr") == int(np.argmin(expected)) and candidate.frames == ("000", "001", "002", "003")
        assert not candidate.notes and not candidate.failed
    difference = found.differences()["poor"]["psnr"]
    assert difference == metrics.paired(*(c.scores["psnr"].values for c in found.candidates[::-1]))
    assert list(found.frames().columns) == ["candidate", "frame", "psnr", "mse_255"] and len(found.frames()) == 8
    assert found.table().loc["fine", "PSNR (dB) ↑"] == str(found.candidates[0].scores["psnr"])


@pytest.mark.parametrize(
    ("ref", "dist"), [("ex_ref.png", "ex_p0.png"), ("goldhill.gif", "goldhill_jpeg.gif"), ("I01.BMP", "i01_01_5.bmp")]
)
def test_published_values_by_the_command(ref, dist, capsys):
    folder_, rows = shared("data/metrics"), list(csv.DictReader(shared("data/metrics/metric_goldens.csv").open()))
    names = {"mse": "mse_255", "psnr": "psnr", "psnr_y": "psnr_y", "ssim": "ssim", "ms_ssim": "ms_ssim"}
    code, told, _ = run(folder_ / ref, folder_ / dist, "--metrics", ",".join(names.values()), capsys=capsys)
    (candidate,) = told["candidates"]
    checked = set()
    for row in rows:
        if (row["ref"], row["dist"]) == (ref, dist) and row["metric"] in names and "automatic" not in row["variant"]:
            score = candidate["scores"][names[row["metric"]]]
            assert score["mean"] == pytest.approx(
                float(row["value"]), rel=1e-6, abs=max(2e-6, float(row["tolerance"]))
            ), row
            assert score["metric"]["variant"] and score["about"]["depth"] == "8 bits" and score["n"] == 1
            checked.add(row["metric"])
    assert code == 0 and {"mse", "psnr", "ssim"} <= checked


def test_mattes(capsys):
    mattes = shared("data/matting")
    truth = mattes / "lemur_alpha.png"
    code, told, _ = run(truth, mattes / "lemur_alpha_fba.png", "--mattes", "--metrics", "iou,mse,sad", capsys=capsys)
    scores = told["candidates"][0]["scores"]
    assert code == 0 and scores["iou"]["about"]["values"] == "coverage"
    assert scores["iou"]["mean"] == pytest.approx(0.993944660416, abs=1e-9)
    assert scores["sad"]["mean"] == pytest.approx(1.706784313725, abs=1e-6)


@pytest.fixture
def mattes(tmp_path):
    """Four true mattes and four others, grey."""
    grey = [[frame[..., 0] for frame in clip] for clip in (frames(), frames(noise=4))]
    return [folder(tmp_path / name, pictures) for name, pictures in zip(("true", "made"), grey, strict=True)]


def test_metrics_of_clips_need_neighbours(mattes):
    found = compare(*mattes, mattes=True, metrics=["mse", "dtssd"], check=False, progress=False).candidates[0]
    pred, target = (torch.tensor(np.stack(f))[..., 0][:, None] / 255 for f in (frames(noise=4), frames()))
    expected = metrics.dtssd(pred, target, reduction="none")
    assert found.scores["dtssd"].values[1:] == pytest.approx(expected.tolist(), rel=1e-5)
    assert math.isnan(found.scores["dtssd"].values[0]) and len(found.scores["dtssd"].scored) == 3
    table = found.per_frame()
    assert math.isnan(table["dtssd"].iloc[0]) and not table["dtssd"].iloc[1:].isna().any()
    assert found.scores["mse"].about["alignment"] == "not checked"


def test_files(clips, tmp_path, capsys):
    arguments = ("--metrics", "psnr,ssim", "--csv", tmp_path / "o/f.csv", "--plot", tmp_path / "p.png")
    code, told, _ = run(*clips, *arguments, capsys=capsys)
    table = pd.read_csv(tmp_path / "o/f.csv", dtype={"frame": str})
    assert code == 0 and len(table) == 8 and set(table["candidate"]) == {"fine", "poor"}
    assert table["psnr"].iloc[:4].mean() == pytest.approx(told["candidates"][0]["scores"]["psnr"]["mean"])
    assert Image.open(tmp_path / "p.png").width > 600
    assert told["differences"]["poor less fine"]["psnr"]["high"] < 0
    main(["compare", *map(str, clips), "--metrics", "psnr"])
    text = capsys.readouterr().out
    assert "PSNR (dB) ↑" in text and "poor less fine" in text


def test_what_is_kept_is_not_scored_again(clips, tmp_path, monkeypatch):
    options = {"metrics": ["psnr"], "keep": tmp_path / "kept", "progress": False}
    first = compare(*clips, **options)
    scored, whole = [], comparison._scored
    monkeypatch.setattr(comparison, "_scored", lambda name, *rest: scored.append(name) or whole(name, *rest))
    assert compare(*clips, **options).describe() == first.describe() and scored == []
    Image.fromarray(frames()[0]).save(clips[2] / "003.png")  # another picture
    assert compare(*clips, **options).describe() != first.describe() and scored == ["poor"]
    compare(*clips, **options | {"metrics": ["ssim"]})
    assert scored == ["poor", "fine", "poor"]
    (kept,) = (tmp_path / "kept").glob("fine-*.json")
    kept.write_text("{broken")
    compare(*clips, **options | {"metrics": ["ssim"]})
    assert scored == ["poor", "fine", "poor", "fine"]


def test_an_interrupted_run_goes_on_with_the_next_file(clips, tmp_path, monkeypatch):
    options = {"metrics": ["psnr"], "keep": tmp_path / "kept", "progress": False}
    scored, whole = [], comparison._scored

    def interrupted(name, *rest):
        if name == "poor":
            raise KeyboardInterrupt
        return scored.append(name) or whole(name, *rest)

    monkeypatch.setattr(comparison, "_scored", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(*clips, **options)
    monkeypatch.setattr(comparison, "_scored", lambda name, *rest: scored.append(name) or whole(name, *rest))
    compare(*clips, **options)
    assert scored == ["fine", "poor"]


def test_equal_pictures_survive_json(clips, tmp_path, capsys):
    arguments = ("--metrics", "psnr,ssim", "--keep", tmp_path / "kept")
    for _ in range(2):  # the second time from what was kept
        code, told, _ = run(clips[0], clips[0], *arguments, capsys=capsys)
        assert code == 0 and told["candidates"][0]["scores"]["psnr"]["mean"] is None  # infinite
        assert told["candidates"][0]["scores"]["ssim"]["mean"] == pytest.approx(1)


# --- what speaks against a comparison ----------------------------------------------------------------


def notes(*paths, **options):
    return " ".join(compare(*paths, metrics=["psnr"], progress=False, **options).candidates[0].notes)


def test_a_shift_is_told(tmp_path):
    wide = data.astronaut()[60:220, 100:400]
    a, b = (folder(tmp_path / name, [wide[:, x : x + 200]]) for name, x in (("a", 50), ("b", 47)))
    assert "shifted against the reference, 3.0 px to the right" in notes(a, b)
    assert notes(a, b, check=False) == ""


def test_a_delay_is_told(tmp_path):
    many = [np.roll(frame, 5 * i, 0) for i, frame in enumerate(frames(14))]
    a, b = folder(tmp_path / "a", many[2:]), folder(tmp_path / "b", many[:-2])
    assert "2 frame(s) later than the reference" in notes(a, b)


def test_other_times_are_told(tmp_path):
    pictures = frames(8)
    write_video(tmp_path / "c.mp4", pictures, fps=25)
    write_video(tmp_path / "v.mp4", pictures, times=[0, 0.04, 0.2, 0.24, 0.28, 0.5, 0.54, 0.6])
    assert "shown at other times" in notes(tmp_path / "c.mp4", tmp_path / "v.mp4")
    assert notes(tmp_path / "c.mp4", tmp_path / "c.mp4") == ""


def test_depth_light_and_alpha_are_told(tmp_path):
    srgb = torch.from_numpy(PHOTO.copy()).permute(2, 0, 1)[None].float() / 255
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    write_image(tmp_path / "a.png", srgb, bits=8)
    write_image(tmp_path / "b.png", srgb, bits=16)
    write_image(tmp_path / "c.exr", linear)
    write_image(tmp_path / "d.png", torch.cat([srgb, torch.full_like(srgb[:, :1], 0.5)], 1), bits=8)
    write_image(tmp_path / "e.exr", linear * 3)
    found = compare(
        *(tmp_path / n for n in ("a.png", "b.png", "c.exr", "d.png", "e.exr")), progress=False, metrics=["psnr"]
    )
    deep, light, alpha, bright = found.candidates
    assert deep.scores["psnr"].mean > 90 and deep.scores["psnr"].about["depth"] == "16 bits, against 8 bits"
    assert light.scores["psnr"].mean > 60 and "16 bits, float" in light.scores["psnr"].about["depth"]
    assert "converted from linear light" in light.scores["psnr"].about["values"]
    assert alpha.scores["psnr"].mean > 90 and alpha.notes == ("candidate: its alpha is not compared",)
    assert "brighter than white is compared as white" in bright.notes[0]


# --- bad input -----------------------------------------------------------------------------------------


def test_sizes_and_crops(tmp_path, capsys):
    a = folder(tmp_path / "a", [PHOTO])
    b, c = folder(tmp_path / "b", [PHOTO[20:150, 30:180]]), folder(tmp_path / "c", [PHOTO[::2, ::2]])
    code, told, err = run(a, b, capsys=capsys)
    assert code == 2 and told is None and "expected 200×160 pixels" in err and "row 20, column 30" in err
    assert "Scale one of them first" in run(a, c, capsys=capsys)[2]


@pytest.mark.parametrize("broken", [0, 2, 3])
def test_a_frame_that_cannot_be_read(clips, mattes, capsys, broken):
    for path in (clips[1], mattes[1]):
        (path / f"00{broken}.png").write_bytes(b"\x89PNG and no more")
    code, told, _ = run(*clips[:2], "--metrics", "psnr,vmaf_v0.6.1", capsys=capsys)
    (candidate,) = told["candidates"]
    assert code == 1 and candidate["n"] == 3 and list(candidate["failed"]) == [f"00{broken}"]
    assert f"00{broken}.png" in candidate["failed"][f"00{broken}"]
    assert "needs the whole clip" in candidate["scores"]["vmaf_v0.6.1"]["not_available"]
    found = compare(*mattes, mattes=True, metrics=["dtssd"], progress=False).candidates[0]
    assert len(found.scores["dtssd"].scored) == (1 if broken == 2 else 2)  # not across the gap
    table = found.per_frame()["dtssd"]
    first_of_a_run = {0: ["001"], 2: ["000", "003"], 3: ["000"]}[broken]
    assert [frame for frame in table.index if math.isnan(table[frame])] == first_of_a_run


def test_nothing_that_can_be_read(clips, capsys):
    for path in clips[1].iterdir():
        path.write_bytes(b"")
    code, told, err = run(*clips[:2], "--metrics", "psnr", capsys=capsys)
    assert code == 2 and told is None and "at least one frame that can be compared" in err


def test_nan(tmp_path, capsys):
    image = torch.rand(1, 3, 20, 20)
    write_image(tmp_path / "a.exr", image)
    image[0, 0, 3, 3] = float("nan")
    write_image(tmp_path / "b.exr", image)
    code, _, err = run(tmp_path / "a.exr", tmp_path / "b.exr", "--metrics", "psnr", capsys=capsys)
    assert code == 2 and "b.exr: expected finite pixels, got NaN or infinity" in err


def test_small_pictures_say_what_they_are_too_small_for(tmp_path, capsys):
    a, b = (folder(tmp_path / name, [PHOTO[:17, :17] + np.uint8(i)]) for i, name in enumerate("ab"))
    code, told, _ = run(a, b, "--metrics", "psnr,ssim,ms_ssim,vmaf_v0.6.1", capsys=capsys)
    scores = told["candidates"][0]["scores"]
    assert code == 0 and scores["psnr"]["n"] == scores["ssim"]["n"] == 1
    assert "161 pixels or more" in scores["ms_ssim"]["not_available"]
    assert "expected sides of 18 pixels or more, for vmaf_v0.6.1, got 17×17" in scores["vmaf_v0.6.1"]["not_available"]


def test_other_bad_input(clips, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    short = folder(tmp_path / "short", frames(3))
    for arguments, message in (
        ((clips[0], tmp_path / "empty"), "expected pictures"),
        ((clips[0], tmp_path / "none"), "none"),
        ((clips[0], short), "expected 4 frames, as the reference has, got 3"),
        ((*clips, "--metrics", "psnr,best"), "metric: expected one of"),
        ((*clips, "--metrics", "psnr", "--worst-by", "ssim"), "--worst-by: expected one of psnr, got 'ssim'"),
        ((*clips, "--metrics", "psnr", "--csv", tmp_path), "expected a file to write, got a folder"),
        ((*clips, "--metrics", "psnr", "--plot", tmp_path / "p.xyz"), "expected a name ending in .png"),
        ((*clips, "--metrics", "psnr", "--device", "gpu"), "device: expected one that PyTorch has here"),
        ((*clips, "--metrics", "psnr,sad"), "sad: expected mattes, got pictures in colour"),
        ((*clips, "--mattes", "--metrics", "mse,vmaf_v0.6.1"), "vmaf_v0.6.1: expected pictures in colour, got mattes"),
    ):
        code, told, err = run(*arguments, capsys=capsys)
        assert code == 2 and told is None and message in err, arguments
    with pytest.raises(I2IError, match="at least one clip"):
        compare(clips[0])
    with pytest.raises(FrameError):
        compare(tmp_path / "nothing", clips[0])


# --- video ---------------------------------------------------------------------------------------------


def test_a_video_against_pictures_and_vmaf(tmp_path):
    pictures = frames(6)
    ref = folder(tmp_path / "ref", pictures)
    write_video(tmp_path / "fine.mp4", pictures, fps=25, crf=12)
    write_video(tmp_path / "poor.mp4", pictures, fps=25, crf=40)
    names = ["psnr", "vmaf_v0.6.1", "vmaf_v0.6.1neg"]
    found = compare(ref, tmp_path / "fine.mp4", tmp_path / "poor.mp4", metrics=names, progress=False)
    fine, poor = found.candidates
    for name in names:
        assert fine.scores[name].mean > poor.scores[name].mean and len(fine.scores[name].values) == 6
    expected = metrics.vmaf(tmp_path / "poor.mp4", ref)
    assert poor.scores["vmaf_v0.6.1"].values == expected.frames
    about = poor.scores["vmaf_v0.6.1"].about
    assert about["vmaf_v0.6.1"]["harmonic_mean"] == expected.harmonic_mean
    assert about.keys() == {"alignment", "vmaf_v0.6.1"}  # it does not score what others are given
    text = found.text()
    line = next(line for line in text.splitlines() if line.startswith("VMAF v0.6.1, harmonic ↑"))
    assert line.endswith(f"{expected.harmonic_mean:.4f}")
    worst = f"{poor.frames[poor.worst('psnr')]}: {min(poor.scores['psnr'].values):.4g}"
    assert (
        worst in text
        and "poor.mp4: alignment: no shift or delay found in 6 of 6 frames; stored: BT.709, limited range, against"
        in text
    )
    for name in names:
        assert f": {metrics.metric(name).variant}" in text


def test_what_frames_were_is_told_of_all_of_them(tmp_path):
    ref, pred = (folder(tmp_path / name, frames(3)) for name in ("r", "d"))
    write_image(pred / "001.png", torch.rand(1, 3, 160, 200), bits=16)
    (pred / "notes.txt").write_text("not a picture")
    found = compare(ref, pred, metrics=["psnr"], check=False, progress=False)
    assert found.candidates[0].scores["psnr"].about["depth"] == "8 bits; 16 bits, against 8 bits"
    assert found.candidates[0].notes == ("candidate: passed over, as no pictures: notes.txt",)


def test_the_unknown_band_has_names(tmp_path):
    alpha = np.zeros((60, 80), np.uint8)
    alpha[10:50, 30] = 128  # one column is partly covered, so the band is columns 20 to 40, rows 0 to 59
    alpha[10:50, 31:] = 255
    wrong = alpha.copy()
    wrong[:, 35] = wrong[:, 75] = 100
    paths = [folder(tmp_path / name, [matte, matte]) for name, matte in (("r", alpha), ("d", wrong))]
    names = ["iou_band", "mse_255_band", "sad_band", "gradient_error_band", "connectivity_error_band", "dtssd_band"]
    scores = compare(*paths, metrics=names, mattes=True, check=False, progress=False).candidates[0].scores
    error = (wrong.astype(float) - alpha)[:60, 20:41]
    assert scores["mse_255_band"].mean == pytest.approx(np.square(error).mean(), rel=1e-6)
    assert scores["sad_band"].mean == pytest.approx(np.abs(error).sum() / 255 / 1000, rel=1e-6)
    a, b = (matte[:60, 20:41] > 127.5 for matte in (wrong, alpha))
    assert scores["iou_band"].mean == pytest.approx((a & b).sum() / (a | b).sum())
    tensors = [torch.from_numpy(matte).float()[None, None] / 255 for matte in (wrong, alpha)]
    mask = metrics.unknown_band(tensors[1])
    for name in ("gradient_error", "connectivity_error"):
        expected = metrics.registry()[name].function(*tensors, mask=mask)
        assert scores[f"{name}_band"].mean == pytest.approx(expected, rel=1e-6)
    assert scores["dtssd_band"].scored.tolist() == [0.0]


def test_memory_does_not_grow_with_the_clip(tmp_path):
    """Frames are read one by one: the pictures alive at once do not depend on how many there are."""

    def pictures():
        return sum(type(one) is torch.Tensor and one.numel() > 9e4 for one in gc.get_objects())

    most = {}
    for count in (4, 16):
        alive = []

        def census(pred, target, reduction, alive=alive):
            alive.append(pictures())
            return torch.zeros(1)

        metric = metrics.Metric("alive", "Alive", "pictures", True, (0, 1), "here", census)
        paths = [folder(tmp_path / f"{kind}{count}", frames(count)) for kind in "rd"]
        clips = map(comparison.open_clip, paths)
        gc.collect()
        before = pictures()  # of other tests
        comparison._scored("x", paths[1], *clips, [metric], False, torch.device("cpu"), False)
        most[count] = max(alive[1:]) - before
    assert most[16] <= most[4] <= 8


# --- the thesis's tables -------------------------------------------------------------------------------


def test_the_thesis_tables_hold_ours_and_theirs(tmp_path):
    clean, noisy = frames(3), frames(3, noise=6)
    target, pred = (torch.tensor(np.stack(clip)).permute(0, 3, 1, 2).float() / 255 for clip in (clean, noisy))
    tables = thesis_tables(target, {"ours": pred}, label="a test")
    assert list(tables) == ["perceptual", "traditional", "vmaf"]
    traditional = tables["traditional"]
    assert traditional.loc["ours", "PSNR ↑"] == str(metrics.score(pred, target, ["psnr"])["psnr"])
    assert traditional.loc["UNet", "PSNR ↑"] == "21.6506 ± 0.1269" and traditional.loc["UNet", "origin"] == "paper"
    assert tables["perceptual"].loc["SRUNet-INT8", "DISTS ↓"] == "0.1722 ± 0.0044"
    assert tables["vmaf"].loc["SRUNet", "VMAF (harmonic mean) ↑"] == "46.65"
    result = metrics.vmaf(pred, target)
    assert tables["vmaf"].loc["ours", "VMAF (mean) ↑"] == f"{result.mean:.2f}"
    assert tables["vmaf"].loc["ours", "VMAF (harmonic mean) ↑"] == f"{result.harmonic_mean:.2f}"
    assert all(table.attrs["n"] == 3 and table.attrs["label"] == "a test" for table in tables.values())
    assert tables["perceptual"].loc["UNet", "LPIPS-Comp ↓"] == "0.2897 ± 0.0138"
    assert tables["perceptual"].loc["UNet", "LPIPS (alex) ↓"] == "not in the thesis"
    assert "not available" in tables["perceptual"].loc["ours", "LPIPS-Comp ↓"]
    missing = tables["perceptual"].loc["ours", "LPIPS (alex) ↓"]
    here = not metrics.score(pred, target, ["lpips_alex"])["lpips_alex"].reason
    assert ("±" in missing) == here and ("i2i fetch" in missing) != here
    on_disk = thesis_tables(folder(tmp_path / "r", clean), {"ours": folder(tmp_path / "d", noisy)})
    assert on_disk["traditional"].loc["ours"].tolist() == traditional.loc["ours"].tolist()
    with pytest.raises(I2IError, match="candidates: expected at least one"):
        thesis_tables(target, {})
    with pytest.raises(I2IError, match="all tensors, or all on disk, got both kinds"):
        thesis_tables(target, {"ours": pred, "theirs": tmp_path / "d"})


def test_harmonic_means():
    assert metrics.harmonic_mean([80, 80]) == pytest.approx(80)
    for bad in ([], [5, -1]):
        with pytest.raises(I2IError, match="above -1"):
            metrics.harmonic_mean(bad)


# --- odd input, lost frames, what is kept ---------------------------------------------------------------


def test_one_equal_frame_has_no_finite_mean_and_is_told(clips, capsys):
    Image.fromarray(frames()[1]).save(clips[1] / "001.png")  # the reference's own
    found = compare(*clips, metrics=["psnr"], progress=False)
    score = found.candidates[0].scores["psnr"]
    others = [value for value in score.values if math.isfinite(value)]
    assert score.equal == 1 and len(others) == 3 and score.mean == math.inf
    assert str(score) == f"inf (1 of 4 equal; the others {np.mean(others):.4f})"
    assert found.differences() == {}  # a mean that is infinite has no difference, and no verdict
    told = score.describe()
    assert told["equal"] == 1 and told["mean"] is None and told["mean_of_others"] == pytest.approx(np.mean(others))


def test_names_and_kinds_are_settled_first(clips):
    found = compare(*clips, metrics=["psnr", "psnr", "mse"], progress=False)
    assert list(found.candidates[0].scores) == ["psnr", "mse"]
    assert len(set(comparison._names([Path("a/b_c"), Path("a_b/c"), Path("q/c")]))) == 3


def test_a_later_frame_of_another_size_costs_itself(clips):
    Image.fromarray(frames()[2][:, :150]).save(clips[1] / "002.png")
    found = compare(*clips[:2], metrics=["psnr", "mse"], progress=False).candidates[0]
    assert list(found.failed) == ["002"] and "expected 200×160 pixels" in found.failed["002"]


def test_mattes_of_several_sizes(tmp_path):
    sides = ((60, 80), (40, 50), (40, 50))
    truth = [np.pad(np.full((h - 20, w - 20), 255, np.uint8), 10) for h, w in sides]
    a, b = folder(tmp_path / "a", truth), folder(tmp_path / "b", [picture // 2 for picture in truth])
    found = compare(a, b, mattes=True, progress=False).candidates[0]
    assert not found.failed and len(found.scores["dtssd"].scored) == 1 and len(found.scores["iou"].scored) == 3


def test_a_frame_that_one_metric_cannot_take(clips):
    Image.fromarray(np.zeros_like(frames()[0])).save(clips[1] / "001.png")

    def picky(pred, target, reduction):
        if not pred.any():
            raise I2IError("image", expected="a photograph", got="one value everywhere")
        return torch.ones(1)

    one = metrics.Metric("picky", "Picky", "says no to black", True, (0, 1), "here", picky)
    found = comparison._scored(
        "x", clips[1], *map(comparison.open_clip, clips[:2]), [one], False, torch.device("cpu"), False
    )
    assert len(found.scores["picky"].scored) == 3 and "Picky leaves frames out" in found.notes[0]


def test_weights_that_arrive_are_used(clips, tmp_path, monkeypatch):
    weights, options = [], {"keep": tmp_path / "kept", "progress": False, "metrics": ["needy"]}

    def needy(pred, target, reduction):
        if not weights:
            raise UnavailableError("a.pth", expected="a file in the cache", got="none")
        return torch.ones(1)

    one = metrics.Metric("needy", "Needy", "needs a file", True, (0, 1), "here", needy)
    monkeypatch.setattr(comparison, "metric", lambda name: one)
    assert compare(*clips[:2], **options).candidates[0].scores["needy"].reason
    weights.append(1)
    assert not compare(*clips[:2], **options).candidates[0].scores["needy"].reason


def test_a_shift_is_told_whatever_the_format(tmp_path):
    wide = torch.from_numpy(data.astronaut()[60:220, 100:400].copy()).permute(2, 0, 1)[None].float() / 255
    linear = torch.where(wide <= 0.04045, wide / 12.92, ((wide + 0.055) / 1.055) ** 2.4)
    for folder_, image, start in (("a", wide, 50), ("b", linear, 47)):
        (tmp_path / folder_).mkdir()
        black = torch.zeros(1, 3, 160, 200)
        for i, picture in enumerate((black, image[..., start : start + 200])):
            write_image(tmp_path / folder_ / f"{i}{'.exr' if folder_ == 'b' else '.png'}", picture)
    assert "3.0 px to the right" in notes(tmp_path / "a", tmp_path / "b")


def test_long_clips_are_compared_in_blocks(tmp_path):
    pictures = [frame[:40, :40] for frame in frames(24)]
    paths = [folder(tmp_path / n, [p + np.uint8(k) for p in pictures]) for n, k in (("r", 0), ("a", 3), ("b", 6))]
    found = compare(*paths, metrics=["mse"], check=False, progress=False)
    told = found.describe()["differences"]["b less a"]["mse"]["interval"]
    assert told == "bootstrap, blocks of 4 frames" and told in found.text()
    scores = [c.scores["mse"].values for c in found.candidates]
    assert found.differences()["b"]["mse"] == metrics.paired(scores[1], scores[0], block=4)


def test_a_cut_out_is_compared_by_its_alpha(tmp_path):
    """A coloured picture with alpha, as the pipeline writes it; also where the figure fills the frame."""
    rgb = torch.from_numpy(PHOTO.copy()).permute(2, 0, 1)[None].float() / 255
    for name, alpha in (("a", 1.0), ("b", 0.5)):
        write_image(tmp_path / f"{name}.png", torch.cat([rgb, torch.full_like(rgb[:, :1], alpha)], 1))
    found = compare(tmp_path / "a.png", tmp_path / "b.png", mattes=True, metrics=["mad"], progress=False)
    assert found.candidates[0].scores["mad"].mean == pytest.approx(0.5, abs=1e-4)


def test_a_lost_frame_is_told_by_its_number(tmp_path):
    pictures = frames(6)
    a, b = folder(tmp_path / "a", pictures[:5]), folder(tmp_path / "b", pictures)
    (b / "002.png").unlink()
    assert "part from the reference's at 003.png beside 002.png" in notes(a, b)
    assert notes(a, a) == ""


def test_a_layer_is_that_of_openexr_alone(tmp_path):
    picture = torch.rand(1, 3, 20, 24)
    write_image(tmp_path / "a.exr", picture)
    write_image(tmp_path / "b.png", picture)
    found = compare(tmp_path / "b.png", tmp_path / "a.exr", metrics=["mse"], layer="R", progress=False)
    assert not found.candidates[0].failed and found.clips[1].layer == "R" and found.clips[0].layer is None


def test_a_single_matte_by_the_usual_metrics(tmp_path, capsys):
    made = [np.full((40, 40), value, np.uint8) for value in (0, 200)]
    made[0][10:30, 10:30] = made[1][12:30, 10:30] = 255
    a, b = (folder(tmp_path / name, [matte]) for name, matte in zip("ab", made, strict=True))
    assert main(["compare", str(a), str(b), "--mattes"]) == 0
    out = capsys.readouterr().out
    assert "dtSSD: not available: needs two frames in a row" in out and "IoU" in out
    code, told, _ = run(a, b, "--mattes", "--metrics", "iou,iou_band", capsys=capsys)  # the truth has no soft pixel
    band = told["candidates"][0]["scores"]["iou_band"]
    assert code == 0 and band["mean"] is None and band["worst_frame"] is None
    assert "expected a reference with partly covered pixels" in band["not_available"]


def test_frames_that_a_metric_has_no_score_of(tmp_path):
    flat = np.full((64, 64, 3), 128, np.uint8)
    a = folder(tmp_path / "a", [flat, flat])
    score = compare(a, a, metrics=["psnr", "connectivity_error_band"], mattes=True, progress=False).candidates[0].scores
    assert score["psnr"].mean == math.inf and score["connectivity_error_band"].mean == 0
    mattes = torch.zeros(3, 1, 32, 32)
    mattes[1, :, 10:20, 10:20] = 0.5
    found = metrics.score(mattes * 0.9, mattes, ["mad_band", "dtssd"])
    assert np.isnan(found["mad_band"].values).tolist() == [True, False, True] and found["mad_band"].mean > 0
    assert metrics.score(mattes[:1], mattes[:1], ["dtssd"])["dtssd"].reason == "needs two frames or more"
    with pytest.raises(I2IError, match="target: expected images that PSNR compares with"):
        metrics.score(mattes, None, ["psnr"])


@pytest.mark.parametrize("lost", [3, 30, 60])
def test_a_lost_frame_is_told_wherever_it_was_lost(tmp_path, lost):
    """The last one is shown twice, and the files are numbered anew."""
    rng = np.random.default_rng(0)
    wide = ndimage.gaussian_filter(rng.uniform(0, 255, (48, 700)), 3)
    wide = ((wide - wide.min()) * 255 / np.ptp(wide)).astype(np.uint8)
    whole = [wide[:, 8 * i : 8 * i + 64] for i in range(72)]
    cut = [*whole[:lost], *whole[lost + 1 :], whole[-1]]
    a, b = (folder(tmp_path / name, pictures) for name, pictures in (("a", whole), ("b", cut)))
    notes = compare(a, b, metrics=["psnr"], progress=False).candidates[0].notes
    assert len(notes) == 1 and notes[0].endswith("it seems to come 1 frame(s) earlier than the reference")


def test_a_video_that_was_cut_off(tmp_path):
    write_video(tmp_path / "a.mp4", frames(24, noise=40), fps=25)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(content[: len(content) * 4 // 5])
    found = compare(tmp_path / "a.mp4", tmp_path / "b.mp4", metrics=["psnr"], progress=False).candidates[0]
    assert found.failed and found.frames and len(found.failed) + len(found.frames) == 24


def test_a_matrix_that_is_not_stated_is_told(tmp_path):
    write_video(tmp_path / "a.mp4", frames(4), fps=25)
    strip = ["-bsf:v", "h264_metadata=colour_primaries=2:transfer_characteristics=2:matrix_coefficients=2"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "a.mp4", "-c", "copy", *strip]
    subprocess.run([*command, tmp_path / "b.mkv"], check=True)
    found = compare(tmp_path / "a.mp4", tmp_path / "b.mkv", metrics=["psnr"], progress=False).candidates[0]
    assert "its matrix is not stated: read as BT.601" in found.notes[0]
    about = found.scores["psnr"].about
    assert about["stored"] == "matrix not stated, limited range, against BT.709, limited range"
    assert about["size"] == "200×160"


def test_straight_and_multiplied_colours_are_told_apart(tmp_path):
    picture = torch.rand(1, 4, 32, 32)
    write_image(tmp_path / "a.png", picture, bits=8)
    write_image(tmp_path / "b.exr", torch.cat([picture[:, :3] * picture[:, 3:], picture[:, 3:]], 1), premultiplied=True)
    found = compare(tmp_path / "a.png", tmp_path / "b.exr", metrics=["psnr"], progress=False).candidates[0]
    assert any("multiplied by alpha as OpenEXR has them" in note for note in found.notes)


def test_names_that_matplotlib_would_take_for_more(tmp_path, clips, capsys):
    odd = [folder(tmp_path / name, frames(noise=5, seed=i)) for i, name in enumerate(("$x_1^$ $\\frac{$", "_hidden"))]
    assert main(["compare", *map(str, (clips[0], *odd)), "--metrics", "psnr", "--plot", str(tmp_path / "p.png")]) == 0
    same = ["compare", str(clips[0]), str(clips[0]), "--metrics", "psnr", "--plot", str(tmp_path / "q.png")]
    assert main(same) == 0 and (tmp_path / "q.png").stat().st_size > 1000


def test_places_that_cannot_be_written_are_refused_first(clips, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(comparison, "_scored", lambda *_: pytest.fail("scored in vain"))
    for option in ("--csv", "--keep", "--plot"):
        code, _, err = run(*clips[:2], option, tmp_path / "file/x.png", capsys=capsys)
        assert code == 2 and "expected a folder to write to" in err
    code, _, err = run(*clips[:2], "--metrics", "", capsys=capsys)
    assert code == 2 and "metric: expected one of" in err


def test_what_vmaf_cannot_take_is_kept_too(tmp_path, monkeypatch):
    a, b = (folder(tmp_path / name / "same", [PHOTO[:17, :17] + np.uint8(i)]) for i, name in enumerate("ab"))
    options = {"metrics": ["psnr", "vmaf_v0.6.1"], "keep": tmp_path / "kept", "progress": False}
    first = compare(a, b, **options)
    compare(b, a, **options)  # another pair of the same names
    assert len([*(tmp_path / "kept").iterdir()]) == 2
    monkeypatch.setattr(comparison, "_scored", lambda *_: pytest.fail("scored again"))
    assert compare(a, b, **options).describe() == first.describe()


def test_a_suffix_with_a_number_is_no_lost_frame(tmp_path):
    a, b = folder(tmp_path / "a", frames()), tmp_path / "b"
    b.mkdir()
    for i, picture in enumerate(frames(noise=3)):
        Image.fromarray(picture).save(b / f"f{i:04}_x264.png")
    assert compare(a, b, metrics=["psnr"], progress=False).candidates[0].notes == ()


def test_a_dull_photograph_is_no_matte(tmp_path, capsys):
    dull = PHOTO.mean(2, keepdims=True) * [1.0, 0.97, 0.95]
    for i, name in enumerate("ab"):
        folder(tmp_path / name, [(dull * (1 - 0.01 * i)).astype(np.uint8)])
    code, _, err = run(tmp_path / "a", tmp_path / "b", "--mattes", "--metrics", "mad", capsys=capsys)
    assert code == 2 and "expected a grey picture as alpha, got one with colours" in err
