"""How sure is a difference of two means? Two candidates scored on the same frames, or with the same seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit  # scipy.stats has them too, and takes a second to import

from ..errors import I2IError

_DRAWS = 10_000
_AT_ONCE = 2**22  # blocks drawn at once: the means of an hour of frames need some memory only


class Paired(NamedTuple):
    """A mean difference with its confidence interval, in units of the score."""

    difference: float  # mean of ours minus theirs
    low: float  # ends of the interval
    high: float
    n: int  # pairs

    def verdict(self, *, higher_is_better: bool) -> str:
        """In words: "better", "worse", or "no difference" where the interval holds 0."""
        if self.low <= 0 <= self.high:
            return "no difference"
        return "better" if (self.difference > 0) == higher_is_better else "worse"

    def __str__(self) -> str:
        return f"{self.difference:+.4g} [{self.low:+.4g}, {self.high:+.4g}]"


def paired(
    ours: Sequence[float], theirs: Sequence[float], *, confidence: float = 0.95, block: int | None = None, seed: int = 0
) -> Paired:
    """The mean of the differences, pair by pair, with Student's interval or a bootstrap's.

    What both candidates share (a hard frame, a lucky seed) cancels in each pair. The interval tells what other pairs
    *of the same kind* would give. Student's supposes that pairs do not depend on each other, as seeds and clips do
    not. Neighbouring frames of a clip do, which makes it too narrow: give ``block``, longer than the dependence, and
    whole runs of frames are drawn again, 10,000 times, from the clip closed to a ring. k blocks tell how blocks spread
    no better than k scores do, so the drawn interval is widened, by √(k / (k - 1)) and by Student's t for k - 1 over
    the normal's quantile.

    Args:
        ours: Scores of one candidate, finite.
        theirs: Scores of the other on the same frames or with the same seeds, in the same order.
        confidence: Share of intervals that hold the true mean, 0 to 1.
        block: Pairs in a run, in order, for a bootstrap; 1 for pairs that do not depend on each other but are far from
            normal. None for Student's interval.
        seed: Of the bootstrap's draws.

    Returns:
        Difference, interval and number of pairs. Where all differences are equal, the interval is that one value.

    Raises:
        I2IError: If the numbers of scores differ, there are fewer than two pairs, a score is not finite,
            ``confidence`` is not between 0 and 1, or the pairs do not hold two blocks.

    Source:
        Politis and Romano, A circular block-resampling procedure for stationary data, 1992, for the bootstrap.

    Example:
        >>> print(paired([0.93, 0.95, 0.90], [0.92, 0.93, 0.89]))
        +0.01333 [-0.001009, +0.02768]
    """
    try:
        ours, theirs = ([float(score) for score in scores] for scores in (ours, theirs))
    except (TypeError, ValueError, RuntimeError) as error:  # an array of several axes
        raise I2IError("ours and theirs", expected="a row of numbers each", got=str(error)) from None
    if len(ours) != len(theirs):
        raise I2IError("ours and theirs", expected="as many scores", got=f"{len(ours)} and {len(theirs)}")
    if len(ours) < 2:
        raise I2IError("ours and theirs", expected="two pairs or more", got=len(ours), remedy="Score more frames.")
    if not 0 < confidence < 1:
        raise I2IError("confidence", expected="between 0 and 1", got=confidence)
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    if not np.isfinite(differences).all():
        raise I2IError("ours and theirs", expected="finite scores", got="NaN or inf", remedy="Leave the frame out.")
    n, mean = len(differences), float(differences.mean())
    if block is not None:
        if not isinstance(block, Integral) or not 1 <= block <= n // 2:
            raise I2IError("block", expected=f"a whole number, 1 to half of the {n} pairs", got=block)
        drawn = _drawn_means(differences, block, np.random.default_rng(seed)) - mean
        blocks, tails = n / block, np.array([(1 - confidence) / 2, (1 + confidence) / 2])
        wider = math.sqrt(blocks / (blocks - 1)) * stdtrit(blocks - 1, tails[1]) / ndtri(tails[1])
        return Paired(mean, *(float(mean + wider * end) for end in np.quantile(drawn, tails)), n)
    reach = float(stdtrit(n - 1, (1 + confidence) / 2) * differences.std(ddof=1) / math.sqrt(n))
    return Paired(mean, mean - reach, mean + reach, n)


def clip_block(frames: int) -> int | None:
    """How many neighbouring frames of a clip to draw together: a sixth; None, for Student's, below a dozen.

    With few frames either interval is too narrow where neighbours resemble each other.
    """
    return frames // 6 if frames >= 12 else None


def _drawn_means(differences: np.ndarray, block: int, rng: np.random.Generator) -> np.ndarray:
    """Means of as many differences as there are, drawn in blocks."""
    n = len(differences)
    ring = np.cumsum([0.0, *differences, *differences[: block - 1]])
    blocks = -(-n // block)
    last = n - (blocks - 1) * block  # the last block is cut
    whole, cut = (ring[length:][:n] - ring[:n] for length in (block, last))  # sums of those that begin at each place
    parts, means = max(1, min(_DRAWS, _AT_ONCE // blocks)), []
    for i in range(0, _DRAWS, parts):
        starts = rng.integers(n, size=(min(parts, _DRAWS - i), blocks))
        means.append((whole[starts[:, 1:]].sum(1) + cut[starts[:, 0]]) / n)
    return np.concatenate(means)


def harmonic_mean(scores: Sequence[float]) -> float:
    """n / Σ 1/(score + 1) - 1, as libvmaf pools: one bad frame counts more than a good one makes up for.

    Example:
        >>> round(harmonic_mean([90.0, 90.0, 10.0]), 1), sum([90, 90, 10]) / 3
        (25.6, 63.333333333333336)
    """
    if not len(scores) or min(scores) <= -1:
        raise I2IError("scores", expected="at least one, all above -1", got=list(scores)[:8])
    return len(scores) / sum(1 / (score + 1) for score in scores) - 1
