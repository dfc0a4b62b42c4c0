"""What a search maximises: frame rates of branches made into one number.

Three objectives. "built" is the paper's: each branch at the rate of its own stages (Eq. 5), summed by priority, less a
penalty on how far the rates lie apart. "delivered" is the same of the rates that come out, where branches that share
stages wait for the slowest of them. "slowest" is the lowest delivered rate and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..errors import I2IError
from .construct import DesignSpace
from .cost import at_one_pace

OBJECTIVES = ("built", "delivered", "slowest")
PENALTIES = ("relative", "paper")
USUAL = 100.0  # FPS: at rates of this mean both penalties are the same


def fitness(
    fps: np.ndarray, priorities: Sequence[float] | None = None, alpha: float = 0.1, penalty: str = "relative"
) -> np.ndarray:
    """Score of frame rates: their sum, weighted by priority, less a penalty on their variance (Sec. VI-B1).

    Args:
        fps: (..., branches) frames per second, positive.
        priorities: Weight of each branch in the sum; 1 each by default. The variance is not weighted.
        alpha: Weight of the variance (over all branches, not a sample's), in 1/FPS. The paper does not state it; with
            0.1 its designs are the best of their space, but for case 3.
        penalty: "paper": ``alpha`` times the variance, which outweighs all else where rates are of a thousand FPS.
            "relative": that times 100 FPS over the mean rate, so that ten times the rates give ten times the score.

    Returns:
        (...) higher is better.

    Example:
        >>> round(float(fitness([61.0, 30.5, 61.0], penalty="paper")), 2)
        131.83
        >>> round(float(fitness([6100, 3050, 6100]) / fitness([61.0, 30.5, 61.0])), 6)
        100.0
    """
    fps = np.asarray(fps, float)
    weights = np.ones(fps.shape[-1]) if priorities is None else np.asarray(priorities, float)
    return fps @ weights - alpha * fps.var(-1) * (USUAL / fps.mean(-1) if penalty == "relative" else 1.0)


@dataclasses.dataclass(frozen=True)
class Goal:
    """An objective over the designs of a space, by the cycles of their branches' slowest stages."""

    space: DesignSpace
    batch: tuple[int, ...]
    priorities: tuple[float, ...]
    alpha: float = 0.1
    penalty: str = "relative"
    objective: str = "built"

    def __post_init__(self) -> None:
        for what, value, names in (
            ("penalty", self.penalty, PENALTIES),
            ("objective", self.objective, OBJECTIVES),
        ):
            if value not in names:
                raise I2IError(what, expected=" or ".join(map(repr, names)), got=repr(value))

    def rates(self, cycles: np.ndarray) -> np.ndarray:
        """Frames a second of each branch, (..., branches), that count for the objective."""
        if self.objective != "built":
            return at_one_pace(self.space, self.batch, cycles)
        return np.array(self.batch) * self.space.frequency_hz / cycles

    def score(self, cycles: np.ndarray) -> np.ndarray:
        """(...) higher is better."""
        rates = self.rates(np.asarray(cycles))
        if self.objective == "slowest":
            return rates.min(-1)
        return fitness(rates, self.priorities, self.alpha, self.penalty)
