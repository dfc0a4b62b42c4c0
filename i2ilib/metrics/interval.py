"""How sure is a difference of two means? Two candidates scored on the same frames, or with the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from ..errors import I2IError


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


def paired(ours: Sequence[float], theirs: Sequence[float], *, confidence: float = 0.95) -> Paired:
    """The mean of the differences, pair by pair, with Student's interval.

    What both candidates share (a hard frame, a lucky seed) cancels in each pair. The interval tells what other pairs
    *of the same kind* would give, and supposes that pairs do not depend on each other: neighbouring frames of a clip
    do, so take frames apart, or clips.

    Args:
        ours: Scores of one candidate, finite.
        theirs: Scores of the other on the same frames or with the same seeds, in the same order.
        confidence: Share of intervals that hold the true mean, 0 to 1.

    Returns:
        Difference, interval and number of pairs. Where all differences are equal, the interval is that one value.

    Raises:
        I2IError: If the numbers of scores differ, there are fewer than two pairs, a score is not finite, or
            ``confidence`` is not between 0 and 1.

    Example:
        >>> print(paired([0.93, 0.95, 0.90], [0.92, 0.93, 0.89]))
        +0.01333 [-0.001009, +0.02768]
    """
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
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1) * stats.sem(differences))
    return Paired(mean, mean - reach, mean + reach, n)
