"""The study of flicker: what it counts, and what its record holds."""

import json

import pytest
import torch

from i2ilib import patches, ptq_qat, runtime
from i2ilib.datasets import synthetic, videomatte
from i2ilib.studies import flicker


def test_a_jumping_matte_flickers_and_a_wrong_but_steady_one_does_not():
    """Two networks that are as wrong on every frame: one always too bright, one too bright and too dark by turns."""
    clip = videomatte.clips(runtime.DATA / "sample")[0]
    model = torch.nn.Conv2d(3, 1, 1)
    task = ptq_qat.matting([clip], model, calibration=1)
    truth = videomatte.PatchDataset([clip], videomatte.paper_split(len(clip)).test, stride=256).frames
    alphas = [frame[3:].float().div(127.5).sub(1) for frame in truth]

    def network(signs):
        turn = iter(range(len(alphas)))

        def made(batch):
            place = next(turn)
            alpha = alphas[place].mul(0.8) + 0.1 * signs[place % 2]  # stays within [-1, 1]
            return patches.split(alpha)

        return made

    steady, jumping = (task.score(network(signs)) for signs in ((1, 1), (1, -1)))
    assert jumping["dtssd"] > 3 * steady["dtssd"] and jumping["iou"] == pytest.approx(steady["iou"], abs=0.01)


def test_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(flicker, "ARMS", ("float", "PTQ"))
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    monkeypatch.setattr(runtime, "RESULTS", tmp_path)
    flicker.main(["--preset", "smoke", "--json", "--record"])
    told = json.loads(capsys.readouterr().out)["sample clip"]
    assert {row["arm"] for row in told["rows"]} == {"float", "PTQ"} and told["seeds"] == 1
    assert all(set(row["scores"]) == {"iou", "mse", "dtssd"} for row in told["rows"])
    assert runtime.recorded("flicker")["result"]["sample clip"]["rows"] == told["rows"]

    def again(*_):
        raise AssertionError("what is kept was computed again")

    monkeypatch.setattr(ptq_qat, "arrive", again)
    flicker.main(["--preset", "smoke", "--json"])
    assert json.loads(capsys.readouterr().out)["sample clip"]["rows"] == told["rows"]
    flicker.main(["--preset", "smoke"])
    table = capsys.readouterr().out
    assert all(f"dtssd {row['scores']['dtssd']:.5g}" in table for row in told["rows"])


def test_the_actors_are_rendered_once(monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(synthetic, "DEFAULT_ROOT", tmp_path)
    monkeypatch.setattr(
        synthetic, "write_clip", lambda root, actor, **size: written.append((actor.name, size["frames"]))
    )
    monkeypatch.setattr(videomatte, "clips", lambda root: [])
    assert ptq_qat.actors() == [] and written == [(actor.name, 75) for actor in synthetic.ACTORS]
