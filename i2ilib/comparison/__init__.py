"""Clips against a reference: every registered metric, frame by frame, in bounded memory.

``compare`` takes pictures, folders, image sequences and videos. What was decided on the way (depths, colour states,
alpha, alignment) travels with the scores.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from ..errors import I2IError, IntegrityError, UnavailableError
from ..frames import Clip, open_clip
from ..metrics import Metric, Paired, Score, clip_block, harmonic_mean, metric, paired
from ..metrics.catalogue import too_small, why_not
from ..runtime import file_state, versions, write_json
from .pairs import Pair, SizesDiffer, check_clips, cut_out, misalignments, read_pairs

__all__ = ["MATTES", "PICTURES", "Candidate", "Comparison", "compare"]

PICTURES = ("psnr", "ssim", "ms_ssim", "lpips_alex", "vmaf_v0.6.1", "vmaf_v0.6.1neg")
_VERSIONS = ("i2ilib", "torch", "numpy", "scipy", "scikit-image", "lpips", "flip-evaluator", "imageio-ffmpeg")
MATTES = ("iou", "mse_255", "mad", "sad", "gradient_error", "connectivity_error", "dtssd")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What the metrics say of one clip.

    Attributes:
        name: For tables; unique within a comparison.
        path: As given.
        frames: Names of the frames that were scored, as the reference has them.
        scores: By metric; a metric of clips has one value less than there are frames, or one for each.
        failed: Why a frame was not scored, by its name.
        notes: What a reader of the scores should know.
    """

    name: str
    path: str
    frames: tuple[str, ...]
    scores: dict[str, Score]
    failed: dict[str, str]
    notes: tuple[str, ...]

    def per_frame(self) -> pd.DataFrame:
        """One row a scored frame, one column a metric; NaN where a metric has no value for a frame."""
        none = (math.nan,) * len(self.frames)
        rows = {name: score.values or none for name, score in self.scores.items()}
        return pd.DataFrame(rows, index=pd.Index(self.frames, name="frame"), dtype=float)

    def worst(self, name: str) -> int:
        """The place, among the scored frames, of the one that a metric likes least.

        Raises:
            I2IError: If there is no score by that metric.
        """
        if name not in self.scores or not len(self.scores[name].scored):
            raise I2IError("metric", expected="one with scores", got=repr(name))
        values = self.per_frame()[name]
        return int(np.nanargmin(values) if self.scores[name].metric.higher_is_better else np.nanargmax(values))

    def describe(self) -> dict:
        """For JSON."""
        return {
            "name": self.name,
            "path": self.path,
            "n": len(self.frames),
            "scores": {
                name: score.describe() | {"worst_frame": self.frames[self.worst(name)] if len(score.scored) else None}
                for name, score in self.scores.items()
            },
            "failed": self.failed,
            "notes": list(self.notes),
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The candidates of one reference; made by :func:`compare`."""

    reference: str
    candidates: tuple[Candidate, ...]
    device: str
    clips: tuple[Clip, ...]  # the reference, and one a candidate

    def table(self) -> pd.DataFrame:
        """Mean ± standard deviation over the frames: one row a candidate, one column a metric."""
        rows = {
            candidate.name: {score.metric.heading: str(score) for score in candidate.scores.values()}
            for candidate in self.candidates
        }
        return pd.DataFrame(rows).T.rename_axis("candidate")

    def differences(self, *, confidence: float = 0.95) -> dict[str, dict[str, Paired]]:
        """Every further candidate against the first, frame by frame: by candidate and metric.

        The interval is a bootstrap's over a sixth of the frames at a time, since neighbours depend on each other;
        Student's below a dozen frames, which is too narrow for neighbours. It is about other frames of this clip,
        not about other clips. Frames without a score are left out; where one is infinite, as the PSNR of equal
        frames is, there is no mean to compare.
        """
        first, *others = self.candidates
        found: dict[str, dict[str, Paired]] = {}
        for other in others:
            theirs, ours = first.per_frame(), other.per_frame()
            for name in other.scores:
                pairs = pd.concat([ours[name], theirs[name]], axis=1, join="inner").to_numpy()
                pairs = pairs[~np.isnan(pairs).any(1)]
                if len(pairs) > 1 and np.isfinite(pairs).all():
                    interval = paired(*pairs.T, confidence=confidence, block=clip_block(len(pairs)))
                    found.setdefault(other.name, {})[name] = interval
        return found

    def describe(self) -> dict:
        """For JSON: candidates with their scores, and every candidate's differences to the first."""
        first = self.candidates[0].name
        return {
            "reference": self.reference,
            "device": self.device,
            "candidates": [candidate.describe() for candidate in self.candidates],
            "differences": {
                f"{name} less {first}": {
                    key: value._asdict() | {"interval": _rule(value.n)} for key, value in by_metric.items()
                }
                for name, by_metric in self.differences().items()
            },
        }

    def text(self) -> str:
        """For a terminal: a line a metric, a column a candidate; below what each is, and what a reader should know."""
        lines = [pd.DataFrame({c.name: dict(_lines(c)) for c in self.candidates}).to_string(), ""]
        if len(self.candidates[0].frames) > 1:
            lines += ["Worst frames:", pd.DataFrame({c.name: dict(_worst(c)) for c in self.candidates}).to_string(), ""]
        for one in (score.metric for score in self.candidates[0].scores.values()):
            lines.append(f"{one.label}{f' ({one.unit})' if one.unit else ''}: {one.variant}")
        lines += [f"{c.name}: {_prepared(c)}" for c in self.candidates] + [""]
        reasons: dict[str, list[str]] = {}
        for candidate in self.candidates:
            for score in candidate.scores.values():
                if score.reason:
                    reasons.setdefault(f"{score.metric.label}: not available: {score.reason}", []).append(
                        candidate.name
                    )
        everyone = len(self.candidates)
        lines += [text if len(of) == everyone else f"{', '.join(of)}: {text}" for text, of in reasons.items()]
        first = self.candidates[0].name
        for name, by_metric in self.differences().items():
            lines.append(f"{name} less {first}, frame by frame, 95 % interval (of this clip only):")
            headings = {key: score.metric.heading for key, score in self.candidates[0].scores.items()}
            lines += [f"  {headings[key]:24} {v}, n = {v.n} ({_rule(v.n)})" for key, v in by_metric.items()]
        for candidate in self.candidates:
            lines += [f"{candidate.name}: {note}" for note in candidate.notes]
            lines += [f"{candidate.name}, {frame}: not scored: {why}" for frame, why in candidate.failed.items()]
        return "\n".join(lines).rstrip()

    def worst_frame(self, by: str | None = None) -> tuple[str, torch.Tensor, torch.Tensor]:
        """The first candidate's worst frame: what to call it, its picture and the reference's, (1, C, H, W).

        Args:
            by: The metric that decides; the first with scores by default.

        Raises:
            I2IError: If there is no score by that metric.
        """
        candidate = self.candidates[0]
        by = by or next((name for name, score in candidate.scores.items() if len(score.scored)), "")
        place = candidate.worst(by)
        name, value = candidate.frames[place], candidate.per_frame()[by].iloc[place]
        reference, clip = self.clips[:2]
        pair = next(pair for found, pair in read_pairs(clip, reference, [reference.names.index(name)]) if found == name)
        return f"{name}: {candidate.scores[by].metric.label} {value:.4g}", pair.pred, pair.target

    def frames(self) -> pd.DataFrame:
        """Every score of every frame, with the candidate's name as first column."""
        tables = [c.per_frame().reset_index().assign(candidate=c.name) for c in self.candidates]
        whole = pd.concat(tables, ignore_index=True)
        return whole[["candidate", *whole.columns.drop("candidate")]]


def compare(
    reference: str | os.PathLike,
    *distorted: str | os.PathLike,
    metrics: Sequence[str | Metric] | None = None,
    mattes: bool = False,
    check: bool = True,
    layer: str | None = None,
    device: str | torch.device = "cpu",
    keep: str | os.PathLike | None = None,
    progress: bool = True,
) -> Comparison:
    """Score clips against a reference, frame by frame in order.

    Colours are compared as sRGB codes in [0, 1]; linear light is converted, and what is brighter than white becomes
    white. Alpha is not compared unless the clips are mattes.

    Args:
        reference: A picture, a folder of pictures, or a video.
        distorted: The candidates, of the same kind or another; as many frames of the same size each.
        metrics: Names in :func:`i2ilib.metrics.registry`, or metrics themselves; :data:`PICTURES` or :data:`MATTES` by
            default.
        mattes: The clips are mattes: a grey picture or an alpha channel is compared, as coverage.
        check: Look for a shift between the pictures and for a delay between the clips, and say so in the notes.
        layer: The layer of OpenEXR files; pictures and videos beside them have none.
        device: Where metrics are computed that can be computed anywhere.
        keep: A folder for the scores of each candidate; a candidate whose files and metrics are as they were is not
            scored again.
        progress: Show a bar.

    Returns:
        The comparison; frames that could not be read are in ``failed``, metrics that could not be had say why.

    Raises:
        FrameError: If a clip cannot be opened.
        I2IError: If lengths or sizes differ, a metric is unknown, or there is nothing to compare.
    """
    if not distorted:
        raise I2IError("distorted", expected="at least one clip", got="none")
    chosen = list({one.name: one for one in map(metric, metrics or (MATTES if mattes else PICTURES))}.values())
    for one in chosen:
        _check_kind(one, mattes)
    device = _device(device)
    clips = [_opened(path, layer, mattes) for path in (reference, *distorted)]
    for path, clip in zip(distorted, clips[1:], strict=True):
        check_clips(clip, clips[0], str(path))
    names = _names([Path(path) for path in distorted])
    settings = {"metrics": [one.describe() for one in chosen], "mattes": mattes, "check": check, "layer": layer}
    settings |= {"device": str(device), "versions": versions(*_VERSIONS)}
    files = [one.settings[key] for one in chosen for key in ("linear", "trunk") if one.settings.get(key)]
    settings["weights"] = [file_state(file) for file in files]
    candidates = []
    for name, path, clip in zip(names, distorted, clips[1:], strict=True):
        kept = None if keep is None else Kept(Path(keep), name, settings, (clips[0], clip))
        found = kept.read(chosen) if kept else None
        if found is None:
            found = _scored(name, path, clips[0], clip, chosen, check, device, progress)
            if kept:
                kept.write(found)
        candidates.append(found)
    return Comparison(str(reference), tuple(candidates), str(device), tuple(clips))


def _scored(
    name: str,
    path: str | os.PathLike,
    reference: Clip,
    clip: Clip,
    chosen: Sequence[Metric],
    check: bool,
    device: torch.device,
    progress: bool,
) -> Candidate:
    notes = [
        f"{which}: passed over, as no pictures: {', '.join(one.passed_over)}"
        for which, one in (("candidate", clip), ("reference", reference))
        if one.passed_over
    ]
    aligned, prepared = {"alignment": "not checked"}, {}
    if clip.index or reference.index:
        stored = [one.index.colour if one.index else "pictures" for one in (clip, reference)]
        prepared["stored"] = {", against ".join(dict.fromkeys(stored)): None}
    if check:
        found, looked = misalignments(clip, reference)
        aligned["alignment"] = "; ".join(found) or f"no shift or delay found in {looked} of {len(clip)} frames"
        notes += found
        for note in found if progress else ():
            tqdm.write(f"{name}: {note}", file=sys.stderr)
    by_frame = [one for one in chosen if one.clips is None]
    values: dict[str, list[float]] = {one.name: [] for one in by_frame}
    reasons: dict[str, tuple[str, bool]] = {}  # why a metric has no score, and whether that can be mended
    why_none: dict[str, str] = {}
    scored, failed, last = [], {}, None
    bar = tqdm(read_pairs(clip, reference), total=len(clip), desc=name, unit="frame", disable=not progress)
    for frame, pair in bar:
        if isinstance(pair, SizesDiffer) and not scored:  # all of them, most likely
            raise SizesDiffer(f"{pair}. {cut_out(clip, reference, frame)}")
        if not isinstance(pair, Pair):
            failed[frame], last = str(pair), None
            continue
        for key, value in pair.about.items():
            prepared.setdefault(key, {})[value] = None
        images = (pair.pred.to(device), pair.target.to(device))
        if last is not None and last[0].shape != images[0].shape:
            last = None
        for one in by_frame:
            if told := _add(one, images, last, values[one.name], reasons):
                why_none[one.name] = told
        notes += [note for note in pair.notes if note not in notes]
        scored.append(frame)
        last = images
    scores, about = {}, aligned | {key: "; ".join(found) for key, found in prepared.items()}
    for one in chosen:  # those that read clips themselves at the end: the frames are known to be sound by then
        if one.clips is None:
            nothing = bool(values[one.name]) and all(map(math.isnan, values[one.name]))
            reason, mendable = reasons.get(one.name, ("", False))
            reason = reason or (why_none.get(one.name, "needs two frames in a row") if nothing else "")
            scores[one.name] = Score(one, () if reason else tuple(values[one.name]), about, reason, mendable)
        else:
            scores[one.name] = _of_clips(one, clip, reference, failed, aligned, progress)
    notes += [
        f"{scores[name].metric.label} leaves frames out: {why}" for name, why in why_none.items() if scores[name].values
    ]
    if not scored:
        first = next(iter(failed.values()), "no frames")
        raise I2IError(str(path), expected="at least one frame that can be compared", got=first)
    return Candidate(name, str(path), tuple(scored), scores, failed, tuple(notes))


def _add(one: Metric, images, last, values: list[float], reasons: dict[str, tuple[str, bool]]) -> str:
    """The score of one more frame, NaN where there is none; or the reason why there are none at all.

    Returns:
        Why this metric cannot take the frame.
    """
    if one.name in reasons:
        return ""
    if reason := too_small(one, images[0]):
        reasons[one.name] = reason, False
        return ""
    if one.takes == "clip":
        if last is None:
            values.append(math.nan)
            return ""
        images = [torch.cat(pair) for pair in zip(last, images, strict=True)]
    try:
        values += one(*images).tolist()
    except (UnavailableError, IntegrityError) as error:
        reasons[one.name] = why_not(one, error), True
    except I2IError as error:
        values.append(math.nan)
        return str(error)
    return ""


def _of_clips(one: Metric, clip: Clip, reference: Clip, failed: dict, about: dict, progress: bool) -> Score:
    if failed:
        return Score(one, (), about, f"needs the whole clip, and {len(failed)} of its frames cannot be read")
    try:
        values, more = one.clips(clip, reference, progress=progress)
    except I2IError as error:  # absent, or this metric cannot take these clips: others can
        return Score(one, (), about, str(error), isinstance(error, UnavailableError))
    return Score(one, tuple(values), about | more)


def _rule(frames: int) -> str:
    return (
        f"bootstrap, blocks of {block} frames"
        if (block := clip_block(frames))
        else "Student, too narrow for neighbours"
    )


def _lines(candidate: Candidate) -> Iterator[tuple[str, str]]:
    """Mean ± standard deviation of each metric; of VMAF the harmonic mean too, which bad frames pull down."""
    for score in candidate.scores.values():
        yield score.metric.heading, "-" if score.reason else str(score)
        if score.metric.clips and score.values:
            yield f"{score.metric.label}, harmonic ↑", f"{harmonic_mean(score.scored):.4f}"


def _worst(candidate: Candidate) -> Iterator[tuple[str, str]]:
    for name, score in candidate.scores.items():
        if len(score.scored):
            place = candidate.worst(name)
            yield score.metric.heading, f"{candidate.frames[place]}: {score.values[place]:.4g}"


def _prepared(candidate: Candidate) -> str:
    """How its frames came to be what was scored."""
    about = max((score.about for score in candidate.scores.values()), key=len, default={})
    return "; ".join(f"{key}: {value}" for key, value in about.items() if isinstance(value, str))


def _opened(path: str | os.PathLike, layer: str | None, mattes: bool) -> Clip:
    """A clip; the layer is that of OpenEXR files, which others beside them do not have."""
    clip = open_clip(path, mattes=mattes)
    layered = any(file.suffix.lower() == ".exr" for file in clip.files)
    return dataclasses.replace(clip, layer=layer) if layered else clip


def _check_kind(one: Metric, mattes: bool) -> None:
    if one.of not in ("any", "matte" if mattes else "picture"):
        kinds = ("pictures in colour", "mattes") if mattes else ("mattes", "pictures in colour")
        remedy = "Leave it out." if mattes else "Say that the clips are mattes: mattes=True, --mattes."
        raise I2IError(one.name, expected=kinds[0], got=kinds[1], remedy=remedy)


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        got = f"{device!s}: {str(error).splitlines()[0]}"
        raise I2IError("device", expected="one that PyTorch has here, cpu or cuda", got=got) from None
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["_".join(part[-length:]).replace(os.sep, "") for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} {place + 1}" for place, path in enumerate(paths)]  # the same clip twice


class Kept:
    """Scores of one candidate on disk, with what they depend on; a file a pair of clips, by their paths."""

    def __init__(self, folder: Path, name: str, settings: dict, clips: Sequence[Clip]):
        paths = "\n".join(str(clip.path.absolute()) for clip in clips)
        self.path = folder / f"{name}-{hashlib.sha256(paths.encode(errors='surrogateescape')).hexdigest()[:8]}.json"
        self.about = json.loads(json.dumps(settings | {"sources": [*map(_state, clips)]}, default=str))

    def read(self, chosen: Sequence[Metric]) -> Candidate | None:
        """None where nothing is kept, or of other files or metrics, or a metric may be available by now."""
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(data, dict) or data.get("about") != self.about:
            return None
        scores = {
            one.name: Score(one, tuple(map(float, kept["values"])), kept["about"], kept["reason"], kept["mendable"])
            for one, kept in ((one, data["scores"][one.name]) for one in chosen)
        }
        if any(map(_may_be_had, scores.values())):
            return None
        return Candidate(
            data["name"], data["path"], tuple(data["frames"]), scores, data["failed"], tuple(data["notes"])
        )

    def write(self, found: Candidate) -> None:
        """Keep the scores of a candidate."""
        scores = {
            name: {"values": [_text(v) for v in one.values], "about": dict(one.about), "reason": one.reason}
            | {"mendable": one.mendable}
            for name, one in found.scores.items()
        }
        rest = {field: getattr(found, field) for field in ("name", "path", "frames", "failed", "notes")}
        write_json(self.path, {"about": self.about, **rest, "scores": scores})


def _may_be_had(score: Score) -> bool:
    """Whether a metric that was not available might be by now: not for want of the same files."""
    return score.mendable and not (score.metric.needs and score.reason == why_not(score.metric, I2IError("")))


def _state(clip: Clip) -> list[list]:
    """Of each file of a clip: name, size and time."""
    files = clip.files or (clip.path,)
    return [[str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.exists()]


def _text(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no infinity: equal pictures have a PSNR of it
