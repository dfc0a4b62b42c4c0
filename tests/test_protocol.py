"""The paper's experiment: numbers as in the paper's text, scores as the metrics define them."""

import contextlib
import dataclasses
import json
import re
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from conftest import shared
from PIL import Image

from i2ilib import models, protocol, runtime
from i2ilib.datasets import synthetic, videomatte
from i2ilib.train import MattingConfig, gan


@pytest.fixture(scope="module")
def paper():
    return next(shared("seeds").glob("000*.txt")).read_text(encoding="utf-8")


# --- against the paper's text ------------------------------------------------------------------------


def test_table_1(paper):
    table = paper[paper.index("Table 1. IoU and MSE") :]
    assert re.search(r"Quantised model on FPGA\s+fp32 model on GPU", table)  # which column is which
    rows = re.findall(r"^(User-\d)((?:\s+[\d.]+){4})\s*$", table, re.MULTILINE)
    found = {}
    for name, numbers in rows:
        iou8, mse8, iou, mse = map(float, numbers.split())
        found[name] = {"float": (iou, mse), "int8": (iou8, mse8)}
    assert len(found) == 4 and found == protocol.PAPER_TABLE_1
    assert [user.name for user in protocol.USERS] == list(found)


def test_patches_that_the_paper_tells(paper):
    pattern = r"~ (\d+) , ~ (\d+) & ~ (\d+) patches for HD and ~ (\d+) , ~ (\d+) & ~ (\d+) patches for 4K"
    numbers = tuple(map(int, re.search(pattern, paper).groups()))
    assert (numbers[:3], numbers[3:]) == (protocol.PAPER_PATCHES["HD"], protocol.PAPER_PATCHES["4K"])
    frames = re.search(r"used (\d+), (\d+) & (\d+) frames for training, validation, and testing", paper)
    assert tuple(map(int, frames.groups())) == tuple(len(part) for part in videomatte.paper_split())
    assert "Two users have frames in HD quality while the other two users have frames at 4K" in paper
    assert [(user.width, user.height) for user in protocol.USERS] == [(1920, 1080)] * 2 + [(3840, 2160)] * 2


def test_hd_frames_cut_as_they_are_give_the_papers_counts():
    found, told = protocol.patch_counts(1080, 1920), protocol.PAPER_PATCHES["HD"]
    miss = {name: [abs(n / m - 1) for n, m in zip(counts, told, strict=True)] for name, counts in found.items()}
    assert max(miss["unscaled"]) < 0.04 < max(miss["scaled"])


def test_4k_frames_do_not():
    told = protocol.PAPER_PATCHES["4K"]
    for counts in protocol.patch_counts(2160, 3840).values():
        assert all(n > 2.5 * m for n, m in zip(counts, told, strict=True))


@pytest.mark.parametrize(("height", "width", "stride"), [(1080, 1920, 64), (300, 900, 100), (256, 256, 64)])
def test_patch_counts_are_those_of_unfold(height, width, stride):
    whole = {  # 1080 = 4.2 · 256, 1920 = 7.5 · 256 and halves go up; 900 = 3.5 · 256
        "unscaled": (height, width),
        "scaled": {1080: (1024, 2048), 300: (256, 1024), 256: (256, 256)}[height],
    }
    found = protocol.patch_counts(height, width, stride=stride)
    for name, size in whole.items():
        each = [len(torch.arange(side).unfold(0, 256, stride)) for side in size]
        if name == "scaled":  # the last patch ends with the frame
            each = [n + bool((side - 256) % stride) for n, side in zip(each, size, strict=True)]
        assert found[name] == tuple(part * each[0] * each[1] for part in (57, 11, 7))


# --- scores ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Seven frames whose grey foreground is their alpha: a network that does nothing mattes them perfectly."""
    root = tmp_path_factory.mktemp("clips")
    for kind in ("fgr/echo", "pha/echo", "bgr"):
        (root / "train" / kind).mkdir(parents=True)
    for i in range(7):
        alpha = Image.new("L", (256, 256), 40)
        alpha.paste(200, (20 * i, 0, 20 * i + 128, 256))
        alpha.save(root / f"train/pha/echo/{i}.png")
        alpha.convert("RGB").save(root / f"train/fgr/echo/{i}.png")
    Image.new("RGB", (256, 256), (0, 0, 0)).save(root / "train/bgr/echo.png")
    return root


@pytest.fixture(scope="module")
def clip(root):
    return videomatte.clips(root, "train")[0]


class Plain:
    """A runner that is a function."""

    def __init__(self, function):
        self.function = function

    def submit(self, batch):
        future = Future()
        future.set_result(self.function(batch))
        return future


@pytest.mark.parametrize("q_in", [1, 8])
def test_a_perfect_matte(clip, q_in):
    found = protocol.score(Plain(lambda batch: batch[:, :1] / q_in), clip, [0, 3, 6], mode="foreground", q_in=q_in)
    assert found == {"iou": 1.0, "mse": pytest.approx(0, abs=1e-6)}


def test_known_mattes(clip):
    inverse = protocol.score(Plain(lambda batch: -batch[:, :1]), clip, [0, 1], mode="foreground")
    # half of the codes are 40 and half 200; their complements are 215 and 55
    assert inverse == {"iou": 0.0, "mse": pytest.approx((175**2 + 145**2) / 2, rel=1e-5)}
    white = protocol.score(Plain(lambda batch: torch.ones_like(batch[:, :1])), clip, [2], mode="foreground")
    assert white == {"iou": 0.5, "mse": pytest.approx((215**2 + 55**2) / 2, rel=1e-5)}


def test_a_composite_is_seen_over_its_plate(clip):
    found = protocol.score(Plain(lambda batch: batch[:, :1]), clip, [0])  # over black: alpha times foreground
    miss = [code - code**2 / 255 for code in (40, 200)]
    assert found["mse"] == pytest.approx((miss[0] ** 2 + miss[1] ** 2) / 2, rel=1e-4)


def test_scores_are_means_over_the_frames(clip):
    runner = Plain(lambda batch: torch.ones_like(batch[:, :1]) * batch[:, :1, :1, :1])  # the colour of one corner
    each = [protocol.score(runner, clip, [i], mode="foreground") for i in (0, 5)]
    both = protocol.score(runner, clip, [0, 5], mode="foreground")
    assert each[0] != each[1]
    assert both == {key: pytest.approx((each[0][key] + each[1][key]) / 2) for key in ("iou", "mse")}


# --- a user ------------------------------------------------------------------------------------------


@pytest.fixture
def eager(monkeypatch):
    """PyTorch in OpenVINO's place, which takes seconds to compile."""

    def run(network, example):
        return contextlib.nullcontext(Plain(torch.no_grad()(getattr(network, "fake", network))))

    monkeypatch.setattr(protocol, "from_pytorch", run)


def test_a_user_from_training_to_table(root, clip, tmp_path):
    check_user(root, clip, tmp_path / "echo.safetensors", "foreground")


def test_a_user_before_a_plate(root, clip, tmp_path, eager):
    check_user(root, clip, tmp_path / "echo.safetensors", "composite")


def check_user(root, clip, out, mode):
    config = MattingConfig(width=4, discriminator_width=4, epochs=2, patches=2, mode=mode, q_in=2)
    row = protocol.run_user(clip, root, out, config, progress=False)
    split = videomatte.paper_split(7)
    assert (row["clip"], row["height"], row["width"]) == ("echo", 256, 256)
    assert row["frames"] == [len(part) for part in split] == [5, 1, 1]
    assert row["patches"] == {"scaled": [57, 11, 7], "unscaled": [57, 11, 7]}
    errors = [scores["mse"] for scores in row["validation"]]
    assert row["steps"] == 4 and row["kept_epoch"] == 1 + int(np.argmin(errors))
    assert 0 <= row["waiting_share"] <= 1 and 0.01 < row["peak_memory_gib"] < 1000
    model, meta = models.load(out)
    assert (meta["trained"]["mode"], meta["q_in"]) == (mode, 2)
    with torch.inference_mode():  # the float network in PyTorch, on the one test frame
        source, alpha = videomatte.matting_frame(clip, split.test[0], mode=mode)
        matte = (model(2 * (2 * source[None] - 1)) + 1) / 2
    assert row["float"]["mse"] == pytest.approx(float(((matte - alpha) ** 2).mean()) * 255**2, rel=1e-2)
    assert set(row["int8"]) == {"iou", "mse"} and 0 <= row["int8"]["iou"] <= 1 and row["int8"] != row["float"]
    assert row["int8"]["mse"] == pytest.approx(row["float"]["mse"], rel=0.2)  # INT8 is near
    json.dumps(row)  # can be recorded


def test_the_command_records_every_user(tmp_path, monkeypatch):
    rendered, trained = [], []

    def render(root, actor, *, frames, height, width):
        rendered.append((actor.name, frames, height, width))
        for kind in ("fgr", "pha"):
            folder = root / "train" / kind / f"{actor.name}_{width}x{height}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (256, 256)).save(folder / "0.png")

    def train(clip, root, out, config, *, device):
        trained.append((clip.name, out.name, config, device))
        return {"clip": clip.name}

    monkeypatch.setattr(synthetic, "write_clip", render)
    monkeypatch.setattr(protocol, "run_user", train)
    monkeypatch.setattr(runtime, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gan, "has_bf16", lambda device: True)
    protocol.main(["--preset", "smoke", "--patches", "7", f"--data={tmp_path / 'data'}"])
    names = [(user.actor, 75, user.height, user.width) for user in protocol.USERS]
    assert rendered == names
    assert [name for name, *_ in trained] == [user.clip for user in protocol.USERS]
    config = trained[0][2]
    assert (config.mode, config.patches, trained[0][1]) == ("foreground", 7, f"{protocol.USERS[0].clip}.safetensors")
    path = tmp_path / "results" / "matting_users_foreground.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["provenance"]["preset"] == "smoke"
    assert kept["result"]["config"] == dataclasses.asdict(config) and config.precision == "bf16"
    assert kept["result"]["users"] == {user.name: {"clip": user.clip} for user in protocol.USERS}
    # one user again, with the same settings: the others' rows stay; with others they would not belong together
    again = ["--preset", "smoke", "--user", "User-2", f"--data={tmp_path / 'data'}"]
    monkeypatch.setattr(protocol, "run_user", lambda clip, *_, **__: {"again": clip.name})
    protocol.main([*again, "--patches", "7"])
    users = json.loads(path.read_text(encoding="utf-8"))["result"]["users"]
    second = {"User-2": {"again": protocol.USERS[1].clip}}
    assert users == kept["result"]["users"] | second
    protocol.main([*again, "--patches", "8"])
    assert json.loads(path.read_text(encoding="utf-8"))["result"]["users"] == second
    path.write_text(json.dumps(kept), encoding="utf-8")
    monkeypatch.setattr(gan, "has_bf16", lambda device: False)  # a machine of another precision is other settings
    protocol.main([*again, "--patches", "7"])
    moved = json.loads(path.read_text(encoding="utf-8"))["result"]
    assert moved == {"config": kept["result"]["config"] | {"precision": "float32"}, "users": second}
    monkeypatch.setattr(protocol, "run_user", train)
    rendered.clear()
    protocol.main(["--preset", "smoke", "--mode", "composite", "--user", "User-2", f"--data={tmp_path / 'data'}"])
    assert rendered == [names[1]] and trained[-1][2].patches != 7
    kept = json.loads((tmp_path / "results" / "matting_users_composite.json").read_text(encoding="utf-8"))
    assert list(kept["result"]["users"]) == ["User-2"] and kept["result"]["config"]["mode"] == "composite"
