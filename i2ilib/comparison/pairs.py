"""Two clips, frame by frame, brought to what metrics compare; and what is told of them first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import torch

from ..errors import FrameError, I2IError
from ..frames import Clip, Frame, coverage, srgb_codes
from ..metrics.alignment import found_crop, found_delay, found_shift

_LOOKED_AT = 32  # frames, to find a delay
_WAYS = (("up", "down"), ("to the left", "to the right"))


@dataclasses.dataclass(frozen=True)
class Pair:
    """One frame of each clip, ready for metrics.

    Attributes:
        pred: (1, C, H, W) float32 in [0, 1]: sRGB codes, C = 3, or coverage, C = 1.
        target: The reference's frame.
        about: Depths and colour states, as they were.
        notes: What a reader of scores should know.
    """

    pred: torch.Tensor
    target: torch.Tensor
    about: dict[str, str]
    notes: tuple[str, ...]


def check_clips(clip: Clip, reference: Clip, path: str) -> None:
    """Refuse clips of different lengths.

    Raises:
        I2IError: Naming both counts.
    """
    if len(clip) != len(reference):
        raise I2IError(
            path,
            expected=f"{len(reference)} frames, as the reference has",
            got=len(clip),
            remedy="Frames are compared in order: cut both clips to the same ones.",
        )


def read_pairs(
    clip: Clip, reference: Clip, places: Iterable[int] | None = None
) -> Iterator[tuple[str, Pair | FrameError]]:
    """Frames of both clips in order, by the reference's name, or the error that one of them met.

    Args:
        clip: The candidate.
        reference: As long.
        places: Of the wanted frames, from 0; all by default.
    """
    wanted = range(len(reference)) if places is None else sorted(places)
    both = [one.read({one.names[place] for place in wanted}) for one in (reference, clip)]
    for (name, target), (_, pred) in zip(*both, strict=True):
        error = next((frame for frame in (target, pred) if isinstance(frame, FrameError)), None)
        try:
            yield name, error or _pair(pred, target, reference.mattes)
        except FrameError as problem:
            yield name, problem


def check_sizes(pair: Pair, name: str) -> None:
    """Refuse pictures of different sizes, and say if one is cut out of the other.

    Raises:
        I2IError: Naming both sizes.
    """
    sizes = [tuple(image.shape[-2:]) for image in (pair.pred, pair.target)]
    if sizes[0] == sizes[1]:
        return
    place = found_crop(pair.pred, pair.target)
    remedy = "Scale one of them first; scores depend on how."
    if place is not None:
        remedy = f"The smaller is cut out of the larger, from row {place[0]}, column {place[1]}: crop the larger."
    texts = ["{1}×{0}".format(*size) for size in sizes]
    raise I2IError(name, expected=f"{texts[1]} pixels, as the reference has", got=texts[0], remedy=remedy)


def misalignments(clip: Clip, reference: Clip) -> list[str]:
    """What speaks against comparing these clips as they are: a shift, a delay, other times; one sentence each."""
    found = []
    preds, targets = [], []
    both = [one.read(set(one.names[:_LOOKED_AT])) for one in (reference, clip)]
    for (_, target), (_, pred) in zip(*both, strict=True):
        if isinstance(target, Frame) and isinstance(pred, Frame) and target.rgb.shape == pred.rgb.shape:
            preds.append(_small(pred))
            targets.append(_small(target))
            if len(preds) == 1:
                first = pred.rgb.nan_to_num(), target.rgb.nan_to_num()
    if not preds:
        return found
    if delay := found_delay(preds, targets):
        found.append(f"it seems to come {abs(delay)} frame(s) {'later' if delay > 0 else 'earlier'} than the reference")
    elif shift := found_shift(*first):
        words = [f"{abs(by):.1f} px {way[by > 0]}" for by, way in zip(shift, _WAYS, strict=True) if by]
        found.append(f"it seems shifted against the reference, {' and '.join(words)}")
    times = [one.times for one in (clip, reference)]
    if all(times) and clip.fps and reference.fps:
        apart = max(abs(a - b) for a, b in zip(*times, strict=True))
        if apart > 0.5 / reference.fps:
            found.append(
                f"its frames are shown at other times, up to {apart:.2f} s apart; compared in order all the same"
            )
    return found


def _small(frame: Frame) -> torch.Tensor:
    """Enough of a frame to recognise it by."""
    grey = frame.rgb.nan_to_num(posinf=1, neginf=0).clamp(0, 1).mean(1, keepdim=True)
    return torch.nn.functional.adaptive_avg_pool2d(grey, 32)


def _pair(pred: Frame, target: Frame, mattes: bool) -> Pair:
    frames = {"candidate": pred, "reference": target}
    depths = [frame.depth or "depth not known" for frame in frames.values()]
    about = {"depth": depths[0] if depths[0] == depths[1] else f"{depths[0]}, against {depths[1]}", "resize": "none"}
    notes = [f"{which}: {note}" for which, frame in frames.items() for note in frame.notes]
    if mattes:
        about["values"] = "coverage"
        return Pair(coverage(pred), coverage(target), about, tuple(notes))
    states = {which: frame.colour for which, frame in frames.items()}
    about["values"] = "sRGB codes"
    for which, frame in frames.items():
        if states[which] == "linear":
            about["values"] = f"sRGB codes; {which} converted from linear light"
            if frame.rgb.nan_to_num().max() > 1:
                notes.append(f"{which}: what is brighter than white is compared as white")
        if frame.alpha is not None and not bool((frame.alpha == 1).all()):
            notes.append(f"{which}: its alpha is not compared")
    return Pair(srgb_codes(pred), srgb_codes(target), about, tuple(notes))
