"""What metrics there are, as data: each is registered once, with its variant, and is then known by name everywhere."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from ..errors import I2IError, IntegrityError, UnavailableError
from ..runtime import fetched
from ._pair import NoScore

_METRICS: dict[str, Metric] = {}
_TOO_FEW = "needs two frames or more"


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric in one variant.

    Attributes:
        name: By which it is called, ``"ssim"``.
        label: For tables and axes, ``"SSIM"``.
        variant: What exactly is computed, in one line.
        higher_is_better: The direction.
        score_range: Smallest and largest score.
        source: Where it is defined.
        function: Scores of images (N, C, H, W) with values in [0, 1]: of ``(pred, target)``, or of ``(pred,)``.
        takes: "pair", "picture" (no reference), or "clip" (a pair whose images are frames in order).
        of: "matte" (coverage, one channel), "picture" (colours), or "any".
        unit: Of the score, empty for a plain number.
        settings: Keyword arguments of ``function`` that make the variant.
        needs: Files that must be fetched first, by name.
        smallest: Shortest side of an image, pixels.
        clips: For a metric that reads clips itself: of the two :class:`~i2ilib.frames.Clip`, the candidate's first,
            and ``progress=``, to the scores and what to keep beside them.
    """

    name: str
    label: str
    variant: str
    higher_is_better: bool
    score_range: tuple[float, float]
    source: str
    function: Callable
    takes: str = "pair"
    of: str = "picture"
    unit: str = ""
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()
    smallest: int = 1
    clips: Callable | None = None

    @property
    def takes_pairs(self) -> bool:
        """Whether it scores pairs of neighbouring frames, one less than there are frames."""
        return self.takes == "clip" and self.clips is None

    @property
    def heading(self) -> str:
        """For a column: the label with its unit, and an arrow towards better."""
        return f"{self.label}{f' ({self.unit})' if self.unit else ''} {'↑' if self.higher_is_better else '↓'}"

    def __call__(self, pred: torch.Tensor, target: torch.Tensor | None = None, **more) -> torch.Tensor:
        """The score of each image, (N,); for a metric of clips one a frame, or one a pair of neighbours."""
        images = (pred,) if self.takes == "picture" else (pred, target)
        return self.function(*images, **{**self.settings, **more, "reduction": "none"})

    def with_settings(self, **settings: object) -> Metric:
        """The same metric with other or further settings, a file of weights for instance; they are told with scores."""
        return dataclasses.replace(self, settings={**self.settings, **settings})

    def describe(self) -> dict:
        """All but the functions, for JSON."""
        fields = [field.name for field in dataclasses.fields(self) if field.name not in ("function", "clips")]
        kept = {name: getattr(self, name) for name in fields}
        low, high = self.score_range
        return kept | {
            "score_range": [low, high if math.isfinite(high) else None],
            "settings": dict(self.settings),
            "needs": list(self.needs),
        }


def register(metric: Metric) -> Metric:
    """Make a metric known by its name; the same one again, as when a cell is run twice, takes the place of the first.

    Raises:
        I2IError: If the name is another metric's or has other letters than a-z, digits, _ and the dot, or ``takes`` or
            ``of`` is unknown.
    """
    known = _METRICS.get(metric.name)
    if known is not None and known.describe() != metric.describe():
        raise I2IError("name", expected="one that is free", got=repr(metric.name), remedy="Name the variant.")
    for what, allowed in (("takes", ("pair", "picture", "clip")), ("of", ("picture", "matte", "any"))):
        if (got := getattr(metric, what)) not in allowed:
            raise I2IError(what, expected=" or ".join(allowed), got=repr(got))
    if not re.fullmatch(r"[a-z][a-z0-9_.]*", metric.name):
        raise I2IError("name", expected="a-z, digits, _ and the dot", got=repr(metric.name))
    _METRICS[metric.name] = metric
    return metric


def registry() -> Mapping[str, Metric]:
    """Every registered metric by name, in the order of registration; changed by :func:`register` alone."""
    return types.MappingProxyType(_METRICS)


def metric(name: str | Metric) -> Metric:
    """A metric by name; a metric itself, such as one with other settings, is what it is.

    Raises:
        I2IError: If there is none; lists those that there are.

    Example:
        >>> metric("mse").with_settings(scale=255.0).settings["scale"]
        255.0
    """
    if isinstance(name, Metric):
        return name
    known = registry()
    if not isinstance(name, str) or name not in known:
        raise I2IError("metric", expected="one of " + ", ".join(known), got=repr(name))
    return known[name]


@dataclasses.dataclass(frozen=True)
class Score:
    """What a metric said, with everything that is needed to read it.

    Attributes:
        metric: The metric, with its variant.
        values: One score an image or frame, in order, or one a pair of neighbours; NaN for one that has none; empty
            where the metric is not available.
        about: How the images came to be what was scored: bit depth, resizing, alignment.
        reason: Why the metric is not available, with the way to get it; empty otherwise.
        mendable: Whether it is for want of a file or a program that may come.
    """

    metric: Metric
    values: tuple[float, ...]
    about: Mapping[str, object] = dataclasses.field(default_factory=dict)
    reason: str = ""
    mendable: bool = False

    @property
    def scored(self) -> np.ndarray:
        """The values that there are; infinite ones too."""
        return np.array([value for value in self.values if not math.isnan(value)])

    @property
    def equal(self) -> int:
        """Images whose score is infinite, as the PSNR of equal ones is."""
        return sum(map(math.isinf, self.values))

    @property
    def mean(self) -> float:
        """Over the images, infinite where one score is; NaN where there is none."""
        return float(self.scored.mean()) if len(self.scored) else math.nan

    @property
    def others(self) -> np.ndarray:
        """The finite values: those of images that differ."""
        return self.scored[np.isfinite(self.scored)]

    @property
    def std(self) -> float:
        """Sample standard deviation of what :attr:`mean` is of; NaN for fewer than two."""
        return float(self.scored.std(ddof=1)) if len(self.scored) > 1 and math.isfinite(self.mean) else math.nan

    def describe(self) -> dict:
        """For JSON: score, spread, number of images, and the metric's own description."""
        found = {"mean": self.mean, "std": self.std}
        return {
            **{key: value if math.isfinite(value) else None for key, value in found.items()},
            "n": len(self.scored),
            "equal": self.equal,
            "mean_of_others": float(self.others.mean()) if self.equal and len(self.others) else None,
            "metric": self.metric.describe(),
            "about": dict(self.about),
            "not_available": self.reason or None,
        }

    def __str__(self) -> str:
        if self.reason:
            return f"not available: {self.reason}"
        if not len(self.scored):
            return "no score"
        told = _text(self.mean)
        if math.isfinite(self.std):
            told += f" ± {f'{self.std:.4f}' if self.std == 0 or self.std >= 5e-5 else f'{self.std:.0e}'}"
        if self.equal and len(self.others):
            told += f" ({self.equal} of {len(self.scored)} equal; the others {_text(float(self.others.mean()))})"
        return told


def _text(value: float) -> str:
    """Four decimals, as tables of the field print scores; four digits for what would vanish."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.1 else f"{value:.4g}"


def score(
    pred: torch.Tensor,
    target: torch.Tensor | None,
    names: Iterable[str | Metric],
    *,
    about: Mapping[str, object] | None = None,
) -> dict[str, Score]:
    """Several metrics of the same images; one that is not available says so instead of a number.

    Args:
        pred: (N, C, H, W), values in [0, 1].
        target: The same shape and range; None if only metrics without a reference are asked for.
        names: Of metrics in :func:`registry`, or metrics themselves.
        about: What to keep beside the scores.

    Raises:
        I2IError: If a name is unknown, or a metric cannot take these images.

    Example:
        >>> found = score(torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5), ["mse", "mad"])
        >>> found["mse"].values, str(found["mad"])
        ((0.25, 0.25), '0.5000 ± 0.0000')
    """
    found = {}
    for chosen in map(metric, names):
        if target is None and chosen.takes != "picture":
            raise I2IError("target", expected=f"images that {chosen.label} compares with", got=None)
        values, mendable = (), False
        reason = too_small(chosen, pred) or (_TOO_FEW if chosen.takes_pairs and len(pred) < 2 else "")
        try:
            values = () if reason else _values(chosen, pred, target)
        except (UnavailableError, IntegrityError) as error:
            reason, mendable = why_not(chosen, error), True
        except NoScore as error:
            reason = str(error)
        found[chosen.name] = Score(chosen, values, about or {}, reason, mendable)
    return found


def _values(chosen: Metric, pred: torch.Tensor, target: torch.Tensor | None) -> tuple[float, ...]:
    """The score of each image; NaN for those that have none, unless none has."""
    try:
        return tuple(chosen(pred, target).tolist())
    except NoScore:
        if chosen.takes == "clip" or len(pred) < 2:
            raise
    values, reason = [], None
    for i in range(len(pred)):
        try:
            values += chosen(pred[i : i + 1], None if target is None else target[i : i + 1]).tolist()
        except NoScore as error:
            values.append(math.nan)
            reason = error
    if all(map(math.isnan, values)):
        raise reason
    return tuple(values)


def too_small(metric: Metric, image: torch.Tensor) -> str:
    """Why a metric cannot take images of this size; empty if it can."""
    height, width = image.shape[-2:]
    if min(height, width) >= metric.smallest:
        return ""
    return f"needs sides of {metric.smallest} pixels or more, these images have {width}×{height}"


def why_not(metric: Metric, error: I2IError) -> str:
    """Why a metric is not available, and the one command that mends it, short enough for a table."""
    absent, damaged = _not_here(metric)
    if absent:
        return f"its weights are not here; i2i fetch {' '.join(absent)}"
    if damaged:
        return f"its weights have another checksum; i2i fetch {' '.join(damaged)}"
    return str(error)


def _not_here(metric: Metric) -> tuple[list[str], list[str]]:
    """The files a metric needs that are absent, and those with another checksum."""
    absent, damaged = [], []
    for name in metric.needs:
        try:
            fetched(name)
        except UnavailableError:
            absent.append(name)
        except IntegrityError:
            damaged.append(name)
    return absent, damaged
