"""Metrics to play with: push a fault until it hurts, and say which of two pictures is worse before they do."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence

import ipywidgets as ipw
import numpy as np
import pandas as pd
import torch
from PIL import Image

from ..datasets.faults import FAULTS
from ..errors import I2IError
from ..metrics import Score, score
from ..plots import ERROR_MAP, to_image

LIVE = ("psnr", "ssim", "ms_ssim")  # quick enough to follow a slider
SLOW = ("flip", "lpips_alex", "dists", "vmaf_v0.6.1", "vmaf_v0.6.1neg")
_GAP = 8  # pixels between pictures


@dataclasses.dataclass(frozen=True)
class MetricView:
    """What :func:`metric_view` found."""

    photo: torch.Tensor  # (3, H, W) sRGB, [0, 1]
    picture: torch.Tensor  # the same with the fault
    error_codes: torch.Tensor  # (H, W): largest difference of the channels, 8-bit codes
    scores: Mapping[str, Score]  # by name


def metric_view(photo: torch.Tensor, fault: str, strength: float, names: Iterable[str] = LIVE) -> MetricView:
    """Put a fault on a photograph and ask metrics how bad it is.

    Args:
        photo: (3, H, W) sRGB, floating point, [0, 1].
        fault: In :data:`i2ilib.datasets.faults.FAULTS`.
        strength: In the fault's unit.
        names: Of metrics.

    Raises:
        I2IError: If the photograph is no floating-point (3, H, W), or the fault or a metric is unknown.
    """
    if photo.ndim != 3 or photo.shape[0] != 3 or not photo.is_floating_point():
        raise I2IError("photo", expected="floating point, (3, H, W)", got=f"{tuple(photo.shape)} {photo.dtype}")
    if fault not in FAULTS:
        raise I2IError("fault", expected=" or ".join(FAULTS), got=repr(fault))
    picture = FAULTS[fault](photo, strength)
    error = 255 * (picture - photo).abs().amax(0)
    return MetricView(photo, picture, error, score(picture[None], photo[None], names))


def metric_picture(view: MetricView) -> np.ndarray:
    """Photograph, picture and error map side by side, (H, 3 W + gaps, 3) uint8; the map ends at 64 codes."""
    error = ERROR_MAP(np.log1p(view.error_codes.cpu().numpy()) / np.log1p(64.0))[..., :3]
    return _beside([to_image(view.photo), to_image(view.picture), error])


class _Pictured(ipw.VBox):
    """A widget that shows its picture where there is no front end, too."""

    def _repr_mimebundle_(self, **options):
        found = super()._repr_mimebundle_(**options)
        if found is None:
            return None
        data, about = found if isinstance(found, tuple) else (found, {})
        buffer = io.BytesIO()  # much smaller than PNG; the live picture stays without loss
        Image.open(io.BytesIO(self.picture.value)).save(buffer, "JPEG", quality=85, subsampling=0)
        return data | {"image/jpeg": base64.b64encode(buffer.getvalue()).decode()}, about


class MetricExplorer(_Pictured):
    """The widget of :func:`metric_explorer`; its controls are attributes, its last result is ``view``."""

    def __init__(self, photos: Mapping[str, torch.Tensor]):
        self.photos, self.view = dict(photos), None
        wide = {"style": {"description_width": "6em"}, "layout": {"width": "24em"}}
        names = [(fault.label, name) for name, fault in FAULTS.items()]
        self.photo = ipw.Dropdown(options=list(self.photos), description="picture", **wide)
        self.fault = ipw.Dropdown(options=names, description="fault", **wide)
        self.strength = ipw.SelectionSlider(options=[("0", 0)], description="strength", **wide)
        self.unit = ipw.Label(layout={"width": "12em"})  # beside the slider, whose own readout is short
        self.ask = ipw.Button(description="ask the slow metrics", layout={"width": "14em"})
        self.picture = ipw.Image(format="png", layout={"max_width": "98%", "align_self": "flex-start"})
        self.table = ipw.HTML()
        controls = [ipw.HBox([self.photo, self.fault]), ipw.HBox([self.strength, self.unit, self.ask])]
        super().__init__([*controls, self.picture, self.table])
        for control in (self.photo, self.strength):
            control.observe(self._update, "value")
        self.fault.observe(self._offer, "value")
        self._offer()
        self.ask.on_click(self._ask)

    def _offer(self, _change: object = None) -> None:
        """The strengths of the fault that was chosen, the middle one first."""
        fault = FAULTS[self.fault.value]
        self.strength.unobserve(self._update, "value")  # new options choose the first of them for a moment
        self.strength.options = [(f"{value:g}", value) for value in fault.strengths]
        self.unit.value = fault.unit
        self.strength.index = len(fault.strengths) // 2
        self.strength.observe(self._update, "value")
        self._update()

    def _update(self, _change: object = None) -> None:
        self._show(LIVE)

    def _ask(self, _button: object = None) -> None:
        self._show((*LIVE, *SLOW))

    def _show(self, names: Sequence[str]) -> None:
        self.view = metric_view(self.photos[self.photo.value], self.fault.value, self.strength.value, names)
        self.picture.value = _png(metric_picture(self.view))
        rows = "".join(
            f"<tr><td>{html.escape(one.metric.heading)}&emsp;</td><td><b>{html.escape(str(one))}</b></td></tr>"
            for one in self.view.scores.values()
        )
        caption = "left: as it was; middle: with the fault; right: error, from white (none) to dark (64 codes or more)"
        self.table.value = f"<small>{caption}</small><table>{rows}</table>"


def metric_explorer(photos: Mapping[str, torch.Tensor]) -> MetricExplorer:
    """Choose a picture and a fault and push its strength; PSNR, SSIM and MS-SSIM follow, the others when asked.

    Args:
        photos: By name, (3, H, W) sRGB in [0, 1].

    Returns:
        A widget over :func:`metric_view`. ``.photo``, ``.fault``, ``.strength`` and ``.ask`` are its controls,
        ``.view`` the last result, ``.picture`` the pictures; setting a control's ``value`` from Python works without a
        front end.
    """
    return MetricExplorer(photos)


@dataclasses.dataclass(frozen=True)
class ChoicePair:
    """Two pictures of one thing, of which one is to be called worse."""

    reference: torch.Tensor  # (3, H, W) sRGB, [0, 1]
    left: torch.Tensor
    right: torch.Tensor
    names: tuple[str, str]  # of left and right, told at the end
    losses: Mapping[str, tuple[float, float]]  # by metric, of left and right: the higher, the worse; NaN for no opinion


def choice_pairs(
    reference: torch.Tensor, images: Mapping[str, torch.Tensor], losses: pd.DataFrame, count: int, *, seed: int = 0
) -> list[ChoicePair]:
    """Draw pairs of pictures, each pair once, sides by chance.

    Args:
        reference: (3, H, W).
        images: By name.
        losses: A row a picture, a column a metric; the higher, the worse.
        count: Of pairs.

    Raises:
        I2IError: If there are fewer pairs.
    """
    names, rng = list(images), np.random.default_rng(seed)
    every = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    if not 1 <= count <= len(every):
        raise I2IError("count", expected=f"1 to {len(every)} pairs", got=count)
    found = []
    for place in rng.permutation(len(every))[:count]:
        left, right = rng.permutation(every[place])
        told = {metric: (losses.loc[left, metric], losses.loc[right, metric]) for metric in losses}
        found.append(ChoicePair(reference, images[left], images[right], (str(left), str(right)), told))
    return found


def agreement(pairs: Sequence[ChoicePair], choices: Sequence[str], *, tie: float = 0.01) -> pd.DataFrame:
    """How often each metric calls the picture worse that a person called worse.

    Args:
        pairs: In order.
        choices: "left" or "right" for each: the worse one.
        tie: A metric has no opinion of a pair whose two losses differ by at most this share of the larger one, signs
            aside: by 0.01, it calls 30 and 30.2 dB alike. The share is counted from the zero of the loss, so scores
            near the top of a scale, as SSIM near 1, tie easily; their distances from the top, as losses, do not.

    Returns:
        A row a metric: ``of``, the pairs of which it has an opinion, neither a tie nor with a NaN; and ``agreed``,
        those of them in which it calls worse what the person called worse.

    Raises:
        I2IError: If there is not one choice a pair, or it is another word; or ``tie`` is below 0, or 1 or more.
    """
    if not 0 <= tie < 1:
        raise I2IError("tie", expected="a share from 0 to below 1", got=tie)
    if len(choices) != len(pairs) or not set(choices) <= {"left", "right"}:
        raise I2IError("choices", expected=f"left or right, {len(pairs)} times", got=list(choices))
    rows = {metric: [0, 0] for pair in pairs for metric in pair.losses}
    for pair, chosen in zip(pairs, choices, strict=True):
        for metric, (left, right) in pair.losses.items():
            unknown = math.isnan(left) or math.isnan(right)
            if not (unknown or math.isclose(left, right, rel_tol=tie)):  # infinity is close to itself alone
                rows[metric][0] += (left > right) == (chosen == "left")
                rows[metric][1] += 1
    return pd.DataFrame.from_dict(rows, orient="index", columns=["agreed", "of"])


class ForcedChoice(_Pictured):
    """Which of the two is worse? Pair after pair; what the metrics say is told when all have been judged.

    Args:
        pairs: To judge, in order.

    ``left`` and ``right`` are the buttons that call that side worse, ``back`` takes the last choice back and ``again``
    all of them; ``choices`` holds them. :meth:`choose` does the same from Python. ``result`` is None until the end,
    then what :func:`agreement` gives.
    """

    def __init__(self, pairs: Sequence[ChoicePair]):
        if not pairs:
            raise I2IError("pairs", expected="at least one", got="none")
        self.pairs, self.choices = list(pairs), []
        self.left, self.right = (ipw.Button(description=f"{side} is worse") for side in ("left", "right"))
        self.back, self.again = (ipw.Button(description=text) for text in ("take back", "start over"))
        self.picture = ipw.Image(format="png", layout={"max_width": "98%", "align_self": "flex-start"})
        self.told = ipw.HTML()
        super().__init__([self.picture, ipw.HBox([self.left, self.right, self.back, self.again]), self.told])
        self.left.on_click(lambda _: self.choose("left"))
        self.right.on_click(lambda _: self.choose("right"))
        self.back.on_click(lambda _: self._keep(self.choices[:-1]))
        self.again.on_click(lambda _: self._keep([]))
        self._keep([])

    @property
    def result(self) -> pd.DataFrame | None:
        """Agreement of each metric with the choices; None until all pairs have been judged."""
        return agreement(self.pairs, self.choices) if len(self.choices) == len(self.pairs) else None

    def choose(self, side: str) -> None:
        """Call "left" or "right" worse, and go on to the next pair; after the last, nothing.

        Raises:
            I2IError: If it is neither.
        """
        if side not in ("left", "right"):
            raise I2IError("side", expected="left or right", got=repr(side))
        if self.result is None:
            self._keep([*self.choices, side])

    def _keep(self, choices: list[str]) -> None:
        self.choices, done = choices, len(choices)
        over = done == len(self.pairs)
        pair = self.pairs[min(done, len(self.pairs) - 1)]
        self.picture.value = _png(_beside([to_image(image) for image in (pair.left, pair.reference, pair.right)]))
        self.left.disabled = self.right.disabled = over
        self.back.disabled = self.again.disabled = not done
        if not over:
            self.told.value = f"Pair {done + 1} of {len(self.pairs)}. In the middle: the original. Which side is worse?"
            return
        judged = pd.DataFrame(
            {
                "worse, you said": [p.names[side == "right"] for p, side in zip(self.pairs, choices, strict=True)],
                "better": [p.names[side == "left"] for p, side in zip(self.pairs, choices, strict=True)],
            },
            index=pd.RangeIndex(1, len(self.pairs) + 1, name="pair"),
        )
        self.told.value = f"<b>Who agrees with you</b>{self.result.to_html()}{judged.to_html()}"


def _beside(images: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) in [0, 1] in a row, as uint8."""
    gap = np.ones((images[0].shape[0], _GAP, 3), np.float32)
    parts = [part for image in images for part in (image, gap)][:-1]
    return np.rint(255 * np.concatenate(parts, 1)).astype(np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
