"""Two clips, frame by frame, brought to what metrics compare; and what is told of them first."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch

from ..errors import FrameError, I2IError
from ..frames import Clip, Frame, coverage, srgb_codes
from ..frames.names import numbers
from ..metrics.alignment import found_crop, found_delay, found_shift

_RUN, _RUNS = 16, 6  # frames in a row, and how often, to find a delay
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
            expected=f"{len(reference)} frame{'s' * (len(reference) != 1)}, as the reference has",
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


class SizesDiffer(FrameError):
    """Two pictures of different sizes."""


def cut_out(clip: Clip, reference: Clip, name: str) -> str:
    """What to do about two frames of different sizes: whether one is cut out of the other, and where.

    Args:
        clip: The candidate.
        reference: As long.
        name: Of the frame, as the reference has it.
    """
    place = reference.names.index(name)
    both = [next(one.read({one.names[place]}))[1] for one in (clip, reference)]
    found = found_crop(*(_image(frame, reference.mattes) for frame in both))
    if found is None:
        return "Scale one of them first; scores depend on how."
    return f"The smaller is cut out of the larger, from row {found[0]}, column {found[1]}: crop the larger."


def misalignments(clip: Clip, reference: Clip) -> tuple[list[str], int]:
    """What speaks against comparing these clips as they are: a shift, a delay, other times; one sentence each.

    Returns:
        The sentences, and in how many frames a delay was looked for.
    """
    found, looked, clearest = [], {}, (0.0, None)
    windows = _windows(len(reference))
    places = sorted({*itertools.chain(*windows)})
    for place, (_, pair) in zip(places, read_pairs(clip, reference, places), strict=True):
        if isinstance(pair, Pair):
            looked[place] = _small(pair.pred), _small(pair.target)
            clearest = max(clearest, (float(looked[place][1].std()), pair), key=lambda one: one[0])
    whole = [window for window in windows if all(place in looked for place in window)]
    delays = [found_delay(*zip(*(looked[place] for place in window), strict=True)) for window in whole]
    if any(delays):
        first = next(i for i, delay in enumerate(delays) if delay)
        since = "" if len({*delays}) == 1 else f"from about {reference.names[whole[first][0]]} on, "
        when = "later" if delays[first] > 0 else "earlier"
        found.append(f"{since}it seems to come {abs(delays[first])} frame(s) {when} than the reference")
    elif clearest[1] is not None and (shift := found_shift(clearest[1].pred, clearest[1].target)):
        words = [f"{abs(by):.1f} px {way[by > 0]}" for by, way in zip(shift, _WAYS, strict=True) if by]
        found.append(f"it seems shifted against the reference, {' and '.join(words)}")
    if clip.files and reference.files:
        counted = [_frame_numbers([file.stem for file in one.files]) for one in (clip, reference)]
        steps = [a - b for a, b in zip(*counted, strict=True) if None not in (a, b)]
        if len(steps) == len(clip) and (place := next((i for i, s in enumerate(steps) if s != steps[0]), None)):
            names = f"{clip.files[place].name} beside {reference.files[place].name}"
            found.append(f"its frame numbers part from the reference's at {names}: is a frame missing?")
    times = [one.times for one in (clip, reference)]
    unstated = [one.index is not None and not one.index.matrix_stated for one in (clip, reference)]
    if unstated.count(True) == 1:
        which = "its" if unstated[0] else "the reference's"
        found.append(f"{which} matrix is not stated: read as BT.601, by VMAF as what the other one has")
    if all(times) and len(times[0]) == len(times[1]) and clip.fps and reference.fps:
        apart = max(abs(a - b) for a, b in zip(*times, strict=True))
        if apart > 0.5 / reference.fps:
            found.append(
                f"its frames are shown at other times, up to {apart:.2f} s apart; compared in order all the same"
            )
    return found, len({*itertools.chain(*whole)})


def _windows(frames: int) -> list[range]:
    """Runs of neighbouring frames, spread over the clip: a frame may be lost anywhere."""
    last = max(0, frames - _RUN)
    starts = sorted({round(i * last / max(1, _RUNS - 1)) for i in range(_RUNS)})
    return [range(start, min(start + _RUN, frames)) for start in starts]


def _frame_numbers(names: Sequence[str]) -> list[int | None]:
    """The number in each name that counts: the last that is not the same in all."""
    rows = [numbers(name) for name in names]
    if len({len(row) for row in rows}) == 1:
        counting = [column for column in zip(*rows, strict=True) if len({*column}) > 1]
        if counting:
            return list(counting[-1])
    return [row[-1] if row else None for row in rows]


def _small(image: torch.Tensor) -> torch.Tensor:
    """Enough of a picture to recognise it by."""
    return torch.nn.functional.adaptive_avg_pool2d(image.mean(1, keepdim=True), 32)


def _image(frame: Frame, mattes: bool) -> torch.Tensor:
    return coverage(frame) if mattes else srgb_codes(frame)


def _pair(pred: Frame, target: Frame, mattes: bool) -> Pair:
    frames = {"candidate": pred, "reference": target}
    images = [_image(frame, mattes) for frame in frames.values()]
    sizes = ["{1}×{0}".format(*image.shape[-2:]) for image in images]
    if sizes[0] != sizes[1]:
        raise SizesDiffer(pred.source, expected=f"{sizes[1]} pixels, as the reference has", got=sizes[0])
    depths = [frame.depth or "depth not known" for frame in frames.values()]
    about = {"depth": depths[0] if depths[0] == depths[1] else f"{depths[0]}, against {depths[1]}"}
    about |= {"size": sizes[0], "resize": "none"}
    notes = [f"{which}: {note}" for which, frame in frames.items() for note in frame.notes]
    if mattes:
        return Pair(*images, about | {"values": "coverage"}, tuple(notes))
    about["values"] = "sRGB codes"
    for which, frame in frames.items():
        if frame.colour == "linear":
            about["values"] = f"sRGB codes; {which} converted from linear light"
        if frame.rgb.max() > 1:
            notes.append(f"{which}: what is brighter than white is compared as white")
    covered = [frame.alpha is not None and not bool((frame.alpha == 1).all()) for frame in frames.values()]
    notes += [f"{which}: its alpha is not compared" for which, some in zip(frames, covered, strict=True) if some]
    if pred.colour != target.colour and any(covered):
        notes.append("one is linear, with colours multiplied by alpha as OpenEXR has them, the other not")
    return Pair(*images, about, tuple(notes))
