"""A view of an accelerator's design space: change budget, priorities, precision and batch; the best design follows."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets as ipw
import numpy as np
from matplotlib import pyplot as plt

from ..errors import I2IError
from ..fcad import PLATFORMS, Budget, DesignSpace, pareto
from ..fcad.optimum import optimum
from ..fcad.search import check_arguments, search
from ..plots.fcad import overview
from ._base import png

if TYPE_CHECKING:
    from ..fcad.pareto import Fronts
    from ..fcad.search import SearchResult

OWN = "own"  # a budget of no platform


@dataclasses.dataclass(frozen=True)
class FcadView:
    """What :func:`fcad_view` found. Modelled, not measured."""

    space: DesignSpace
    budget: Budget
    priorities: tuple[float, ...]
    batch: tuple[int, ...]
    found: SearchResult | None  # None where nothing fits
    best: SearchResult | None  # the enumerated optimum, where branches are few enough
    reason: str = ""  # why nothing fits

    @property
    def reached(self) -> bool:
        """Whether the search found a design as fit as the optimum."""
        known = self.found is not None and self.best is not None
        return known and self.found.fitness >= self.best.fitness - 1e-9

    @property
    def caption(self) -> str:
        """The result in one line; what is delivered, where branches that share stages wait for each other."""
        if self.found is None:
            return self.reason
        fps, delivered = _rates(self.found.evaluation.fps), _rates(self.found.evaluation.delivered)
        judged = "the optimum of the space"
        if not self.reached:
            judged = "optimum unknown" if self.best is None else f"the optimum: {_rates(self.best.evaluation.fps)}"
        held = "" if delivered == fps else f", delivered {delivered}"
        return f"{fps} FPS{held}, {self.space.bits} bits (modelled; {judged})"


def _rates(fps: Sequence[float]) -> str:
    return " / ".join(f"{rate:.1f}" for rate in fps)


def fcad_view(
    space: DesignSpace,
    budget: Budget = PLATFORMS["ZU9CG"],
    *,
    bits: int = 8,
    priorities: Sequence[float] | None = None,
    batch: Sequence[int] | None = None,
    seed: int = 0,
) -> FcadView:
    """Search a design space, and enumerate its optimum to judge the search by.

    Args:
        space: From :func:`i2ilib.fcad.construct`.
        budget: What a design may occupy.
        bits: 8 or 16.
        priorities: Of the branches; 1 each by default.
        batch: Copies of each branch; 1 each by default.
        seed: Of the search.

    Returns:
        The design found. Where nothing fits, a view that says why.

    Raises:
        I2IError: If bits, priorities or batch make no problem.
    """
    space = dataclasses.replace(space, bits=bits)
    goal = check_arguments(space, budget, priorities, batch, 0.0)
    weights, copies = goal.priorities, goal.batch
    try:
        found = search(space, budget, weights, copies, seed=seed)
    except I2IError as error:
        return FcadView(space, budget, weights, copies, None, None, str(error))
    best = None
    with contextlib.suppress(I2IError):  # very many branches cannot be enumerated
        best = optimum(space, budget, weights, copies)
    return FcadView(space, budget, weights, copies, found, best)


@functools.lru_cache(maxsize=32)
def _curves(space: DesignSpace, batch: tuple[int, ...], pairs: float) -> dict[str, Fronts]:
    """The best at some rates, ``pairs`` a second among them: in the space of the search, and with uneven partitions."""
    rates = pairs * 2.0 ** np.arange(-3, 1.01, 1 / 3) * (1 - 1e-9)  # a hair less: a bound in whole cycles is met
    sets = {"powers of two": "powers", "uneven partitions": "rows"}
    return {
        name: pareto.fronts(space, rates, batch, factors=factors, objective="pairs") for name, factors in sets.items()
    }


def fcad_picture(view: FcadView) -> bytes:
    """The view as PNG: pipelines, occupancy, and the design before the fronts of its space.

    Raises:
        I2IError: If nothing was found to draw.
    """
    if view.found is None:
        raise I2IError("view", expected="a design", got=view.reason)
    curves = _curves(view.space, view.batch, view.found.evaluation.pairs_per_second)
    with plt.rc_context({"savefig.bbox": None}):  # the figure is laid out by hand, and drawn once
        return png(overview(view.found.config, view.budget, curves=curves, title=view.caption))


class FcadExplorer(ipw.VBox):
    """The widget of :func:`fcad_explorer`; its controls are attributes, its last result is ``view``."""

    def __init__(self, space: DesignSpace, platform: str, batch: Sequence[int] | None):
        self.space = space
        self.view: FcadView | None = None
        names = [pipeline.name for pipeline in space.pipelines]
        late = {"style": {"description_width": "8em"}, "layout": {"width": "21em"}, "continuous_update": False}
        start = PLATFORMS[platform]
        self.platform = ipw.Dropdown(
            options=[*PLATFORMS, OWN],
            value=platform,
            description="platform",
            style=late["style"],
            layout=late["layout"],
        )
        most = Budget(*(max(getattr(b, field) for b in PLATFORMS.values()) for field in ("dsp", "bram", "bandwidth")))
        self.dsp = ipw.IntSlider(min=0, max=most.dsp, value=start.dsp, description="DSP", **late)
        self.bram = ipw.IntSlider(min=0, max=most.bram, value=start.bram, description="BRAM, 18 Kb", **late)
        self.gbytes = ipw.FloatSlider(
            min=0, max=most.bandwidth / 8e9, step=0.1, value=start.bandwidth / 8e9, description="memory, GB/s", **late
        )
        self.bits = ipw.ToggleButtons(
            options=(8, 16), value=8, description="bits", style={"description_width": "8em", "button_width": "5em"}
        )
        self.seed = ipw.BoundedIntText(min=0, max=9999, value=0, description="seed", **late)
        priority = {"min": 0, "max": 4, "step": 0.25, "value": 1}
        self.priorities = tuple(ipw.FloatSlider(**priority, description=f"priority {name}", **late) for name in names)
        copies = batch or (1,) * len(names)
        self.batch = tuple(
            ipw.IntSlider(min=1, max=4, value=n, description=f"batch {name}", **late)
            for n, name in zip(copies, names, strict=True)
        )
        self.message = ipw.HTML()
        self.picture = ipw.Image(format="png", layout={"max_width": "98%", "align_self": "flex-start"})
        rows = [(self.platform, self.bits, self.seed), (self.dsp, self.bram, self.gbytes), self.priorities, self.batch]
        super().__init__([*(ipw.HBox(row) for row in rows), self.message, self.picture])
        self._moving = False  # several controls at once
        self.platform.observe(self._platform, "value")
        for control in (self.dsp, self.bram, self.gbytes):
            control.observe(self._budget, "value")
        for control in (self.bits, self.seed, *self.priorities, *self.batch):
            control.observe(self._show, "value")
        self._show()

    def _platform(self, _change: object) -> None:
        if self.platform.value != OWN and not self._moving:
            chosen, self._moving = PLATFORMS[self.platform.value], True
            self.dsp.value, self.bram.value, self.gbytes.value = chosen.dsp, chosen.bram, chosen.bandwidth / 8e9
            self._moving = False
            self._show()

    def _budget(self, _change: object) -> None:
        if not self._moving:
            self._moving = True
            self.platform.value = OWN
            self._moving = False
            self._show()

    def _show(self, _change: object = None) -> None:
        name = "" if self.platform.value == OWN else self.platform.value
        try:
            budget = PLATFORMS.get(name) or Budget(self.dsp.value, self.bram.value, 8e9 * self.gbytes.value)
            self.view = fcad_view(
                self.space, budget, bits=self.bits.value, priorities=[p.value for p in self.priorities],
                batch=[n.value for n in self.batch], seed=self.seed.value,
            )  # fmt: skip
            reason = self.view.reason
        except I2IError as error:  # a budget of nothing, priorities that are all zero
            self.view, reason = None, str(error)
        self.message.value = f"<b>Nothing fits.</b> {html.escape(reason)}" if reason else ""
        self.picture.layout.display = "none" if reason else ""
        self.picture.value = b"" if reason else fcad_picture(self.view)


def fcad_explorer(space: DesignSpace, *, platform: str = "ZU9CG", batch: Sequence[int] | None = None) -> FcadExplorer:
    """Change platform, budget, priorities, precision and batch, and watch the accelerator follow.

    Args:
        space: From :func:`i2ilib.fcad.construct`; any network's.
        platform: To start with, of :data:`i2ilib.fcad.PLATFORMS`.
        batch: Copies of each branch to start with; 1 each by default.

    Returns:
        A widget over :func:`fcad_view`. ``.platform``, ``.dsp``, ``.bram``, ``.gbytes``, ``.bits``, ``.seed``, and, a
        control a branch, ``.priorities`` and ``.batch`` are its controls; ``.view`` is the last result, ``.message``
        says what cannot be, ``.picture`` is the figure. Setting a control's ``value`` from Python works without a front
        end.

    Raises:
        I2IError: If there is no such platform.
    """
    if platform not in PLATFORMS:
        raise I2IError("platform", expected=" or ".join(PLATFORMS), got=repr(platform))
    return FcadExplorer(space, platform, batch)
