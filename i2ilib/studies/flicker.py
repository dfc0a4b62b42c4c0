"""Does quantisation make a matte flicker? dtSSD of float and INT8 networks, on the sample clip and on six actors.

A network may be as right on every frame as another and still jump from one to the next. The arms are those of
:mod:`i2ilib.ptq_qat` at 8 bits, with the strongest control; the frames are the test frames of each clip, in order.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from .. import models, ptq_qat, runtime
from ..datasets import videomatte

ARMS = ("float", "PTQ", "PTQ with both", "continued, then PTQ with both", "QAT")


def flicker(run: runtime.Run, clips: Sequence[videomatte.Clip], name: str, *, seeds: int | None = None) -> dict:
    """The study on some clips, with its statistics; what was computed before is kept in ``runs/``.

    Args:
        run: Gives the preset: how many seeds, steps and patches for calibration; each takes much longer than the last,
            from smoke by quick to full.
        clips: All of as many frames.
        name: Of the task.
        seeds: How many; the preset's by default.

    Returns:
        What :func:`i2ilib.ptq_qat.report` gives; scores are ``iou``, ``mse`` and ``dtssd``, and each by clip.
    """
    model, meta = models.pretrained("matting_actors")
    few = {"calibration": run.pick(smoke=8, quick=32, full=64)}
    task = ptq_qat.matting(clips, model, name=name, mode=meta["trained"]["mode"], q_in=meta["q_in"], **few)
    return ptq_qat.report(
        task,
        seeds=seeds or run.pick(smoke=1, quick=2, full=3),
        steps=run.pick(smoke=3, quick=50, full=100),
        bits=(8,),
        names=ARMS,
        folder=runtime.ROOT / "runs" / "flicker" / run.preset,
        progress=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m i2ilib.studies.flicker``: does quantisation make a matte flicker?"""
    parser = argparse.ArgumentParser(prog="python -m i2ilib.studies.flicker", description=main.__doc__.split(": ")[1])
    parser.add_argument("--preset", choices=runtime.PRESETS, help="default: I2I_PRESET, else quick")
    parser.add_argument("--seeds", type=int, help="how many (default: the preset's)")
    parser.add_argument("--actors", action="store_true", help="also on six actors, rendered first: takes long")
    parser.add_argument("--record", action="store_true", help="keep the result in data/results")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    run = runtime.start(0, preset=options.preset)
    groups = {"sample clip": videomatte.clips(runtime.DATA / "sample")}
    if options.actors:
        groups["six actors"] = ptq_qat.actors()
    results = {name: flicker(run, clips, name, seeds=options.seeds) for name, clips in groups.items()}
    if options.record:
        runtime.record("flicker", run, results)
    summary = [row for result in results.values() for row in result["summary"]]
    print(json.dumps(results, indent=2) if options.json else ptq_qat.table(summary))


if __name__ == "__main__":
    main()
