"""A view of the Alveo U50's cycle model: change the card, the network's width and the jobs in flight."""

from __future__ import annotations

import dataclasses
import functools

import ipywidgets as ipw
import torch

from ..deploy.cycles import U50, Estimate, Pipeline, estimate
from ..deploy.layers import Layer, layers
from ..models import Generator
from ..plots.u50 import layer_cycles
from ._base import png

PATCH = 256  # pixels a side, as in the paper
BANKS = tuple(U50.bank_words // 8 * 2**k for k in range(7))  # words; the engine's own in the middle


@dataclasses.dataclass(frozen=True)
class U50View:
    """What :func:`u50_view` found. Modelled, not measured."""

    width: int  # filters of the network's first convolution
    estimate: Estimate
    pipeline: Pipeline  # with the jobs in flight
    sold: Pipeline  # the same network and jobs on the U50 as it is
    bounds: dict[str, float]  # share of a batch's cycles by what bounds a layer, 0 to 1

    @property
    def caption(self) -> str:
        """The result in one line."""
        now, was = self.pipeline, self.sold
        return (
            f"{now.fps:.0f} images/s, {now.latency_ms:.1f} ms latency with {now.jobs} in flight; "
            f"as sold {was.fps:.0f} and {was.latency_ms:.1f} (modelled)"
        )


@functools.lru_cache(maxsize=32)
def _network(width: int) -> tuple[Layer, ...]:
    with torch.device("meta"):
        return tuple(layers(Generator(width=width), torch.empty(1, 3, PATCH, PATCH)))


def u50_view(
    *,
    width: int = 64,
    mhz: float = U50.mhz,
    engines: int = U50.engines[0],
    bank_words: int = U50.bank_words,
    jobs: int = 3,
) -> U50View:
    """Model the pix2pix generator on 256x256 patches, on a U50 with other numbers.

    Args:
        width: Filters of its first convolution; 64 is the published one.
        mhz: Clock. The memory keeps its bytes a cycle, so it becomes faster, too.
        engines: Of each of the two cores.
        bank_words: The largest feature map that stays in an engine, in words of 16 channels.
        jobs: Batches in flight.

    Raises:
        I2IError: If one of them makes no network, no card or no queue.

    Example:
        >>> u50_view(jobs=2).pipeline.fps / u50_view(jobs=1).pipeline.fps
        2.0
    """
    target = dataclasses.replace(
        U50, name=f"{2 * engines} engines, {mhz:g} MHz", engines=(engines,) * 2, mhz=mhz, bank_words=bank_words
    )
    found = estimate(_network(width), target)
    shares = found.frame().groupby("bound").cycles.sum() / found.cycles
    sold = estimate(_network(width)).pipeline(jobs)
    return U50View(width, found, found.pipeline(jobs), sold, shares[shares > 0].to_dict())


class U50Widget(ipw.VBox):
    """The widget of :func:`u50_widget`; its controls are attributes, its last result is ``view``."""

    def __init__(self):
        self.view: U50View | None = None
        late = {"style": {"description_width": "8em"}, "layout": {"width": "27em"}, "continuous_update": False}
        banks = [(f"{words // 1024} K", words) for words in BANKS]  # longer readouts are clipped
        self.width = ipw.SelectionSlider(options=(8, 16, 24, 32, 48, 64, 96), value=64, description="width", **late)
        self.mhz = ipw.IntSlider(min=100, max=600, step=25, value=int(U50.mhz), description="clock, MHz", **late)
        self.engines = ipw.IntSlider(min=1, max=8, value=U50.engines[0], description="engines a core", **late)
        self.bank_words = ipw.SelectionSlider(options=banks, value=U50.bank_words, description="banks, words", **late)
        self.jobs = ipw.IntSlider(min=1, max=8, value=3, description="jobs in flight", **late)
        self.picture = ipw.Image(format="png", layout={"max_width": "98%", "align_self": "flex-start"})
        self._controls = {name: getattr(self, name) for name in ("width", "jobs", "mhz", "engines", "bank_words")}
        controls = tuple(self._controls.values())
        super().__init__([*(ipw.HBox(controls[i : i + 2]) for i in range(0, len(controls), 2)), self.picture])
        for control in controls:
            control.observe(self._show, "value")
        self._show()

    def _show(self, _change: object = None) -> None:
        self.view = u50_view(**{name: control.value for name, control in self._controls.items()})
        self.picture.value = png(layer_cycles(self.view.estimate, title=self.view.caption))


def u50_widget() -> U50Widget:
    """Change clock, engines, banks, jobs in flight and the generator's width, and watch where the cycles go.

    Returns:
        A widget over :func:`u50_view`. ``.width``, ``.mhz``, ``.engines``, ``.bank_words`` and ``.jobs`` are its
        controls, ``.view`` the last result, ``.picture`` the figure; setting a control's ``value`` from Python works
        without a front end.
    """
    return U50Widget()
