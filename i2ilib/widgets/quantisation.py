"""Views of quantisation: move a fix position, calibrate on fewer frames, and see what the matte makes of it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence

import ipywidgets as ipw
import torch
from torch import nn

from .. import colour, metrics
from ..errors import I2IError
from ..plots.quantisation import calibration_view_figure, float_values, grid_shares, position_figure
from ..quant.fixed_point import Kind, fake_quantise
from ..quant.ptq import BITS, Quantised, layers, quantise, within_limits
from ._base import as_truth, digest, kept, png, read_matte

REACH = 4  # positions that the slider goes to either side


@dataclasses.dataclass(frozen=True, eq=False)
class PositionView:
    """What :func:`position_view` found."""

    tensor: str  # the one that is looked at
    kind: Kind
    fix_position: int  # its bits after the binary point, now
    start: int  # as calibrated, at these bits
    bits: int
    q_in: int  # equation 2: the picture was mapped to [-q_in, q_in]
    q_out: int  # equation 3: the output was read as [-q_out, q_out]
    changes: dict[str, int]
    beyond: tuple[str, ...]  # tensors whose position the DPU's shifters do not reach
    picture: torch.Tensor  # (3, H, W) float32 sRGB, [0, 1]: the input on its grid, as the network reads it
    matte: torch.Tensor  # (1, H, W) float32 alpha, [0, 1]
    reference: torch.Tensor  # (1, H, W): nothing moved
    truth: torch.Tensor  # (1, H, W)
    error: torch.Tensor  # (1, H, W): matte - truth
    iou: float
    mse: float  # of the matte, 8-bit scale
    reference_iou: float
    reference_mse: float
    values: torch.Tensor  # (n,) float32: the tensor before any rounding, all values
    saturated_share: float  # of them, 0 to 1: beyond the ends of the grid
    zero_share: float  # not zero, and rounded to zero
    tensor_mse: float  # mean squared error of the tensor on its grid, its own units squared


def position_view(
    quantised: Quantised,
    x: torch.Tensor,
    truth: torch.Tensor,
    changes: Mapping[str, int],
    *,
    tensor: str | None = None,
    bits: int | None = None,
    q_in: int | None = None,
    q_out: int | None = None,
    trained_q: tuple[int, int] = (1, 1),
) -> PositionView:
    """Move fix positions of a matting network, compute it in exact integers, and look at the matte and at one tensor.

    Mattes and tensors are kept while ``quantised`` lives: looking at another tensor, or coming back, costs nothing.

    Args:
        quantised: The network.
        x: (1, 3, H, W) float32 as the network sees it, in [-q, q] with ``q = trained_q[0]``.
        truth: (1, 1, H, W) or (1, H, W) alpha, [0, 1].
        changes: Fix position by tensor name; the others stay as they are.
        tensor: The one to look at; by default the last of ``changes``, else the input.
        bits: Of every integer, at most those of ``quantised``. Fewer bits lower all positions by the difference, so
            that every grid keeps its range and becomes coarser; ``changes`` are positions at these bits.
        q_in: Map the picture to [-q_in, q_in] instead.
        q_out: Read the output as [-q_out, q_out] instead.
        trained_q: ``q_in`` and ``q_out`` of the training.

    Raises:
        I2IError: If a name is not a tensor of the network, a position is no whole number, ``bits`` or a ``q`` is out
            of range, or ``x`` and ``truth`` do not fit each other and the network.
    """
    truth = as_truth(truth, x)
    if tuple(x.shape[1:]) != quantised.example_shape:
        raise I2IError("x", expected=f"(1, {', '.join(map(str, quantised.example_shape))})", got=tuple(x.shape))
    bits = quantised.bits if bits is None else bits
    if bits not in BITS or bits > quantised.bits:
        raise I2IError("bits", expected=f"{BITS[0]} to {quantised.bits}", got=repr(bits))
    q_in, q_out = trained_q[0] if q_in is None else q_in, trained_q[1] if q_out is None else q_out
    for name, q in {"q_in": q_in, "q_out": q_out, "trained_q": trained_q[0], "trained_q[1]": trained_q[1]}.items():
        if q not in colour.Q_VALUES:
            raise I2IError(name, expected="a power of two from 1 to 128", got=q)
    tensor = tensor or next(reversed(list(changes)), "input")
    start = positions_at(quantised, bits)
    if strange := [name for name in (*changes, tensor) if name not in start]:
        known = ", ".join(list(start)[:6])
        raise I2IError("tensor", expected=f"a tensor of this network: {known}, …", got=", ".join(map(repr, strange)))
    if odd := {name: fp for name, fp in changes.items() if not isinstance(fp, int)}:
        raise I2IError("changes", expected="whole numbers", got=odd)
    positions = start | dict(changes)
    mapped = x * (q_in / trained_q[0])  # powers of two: exact

    def output(mapped: torch.Tensor, positions: dict[str, int], bits: int) -> torch.Tensor:
        def run() -> torch.Tensor:
            if (positions, bits) == (quantised.fix_positions, quantised.bits):
                return quantised.integer(mapped)
            return Quantised(quantised.folded, positions, quantised.example_shape, bits=bits).integer(mapped)

        return kept(quantised, ("output", digest(mapped), tuple(positions.values()), bits), run)

    (site,) = (site for site in quantised.sites if site.name == tensor)
    key = ("values", tensor, None if site.kind == "parameter" else digest(mapped))
    values = kept(quantised, key, lambda: float_values(quantised, mapped, tensor)[tensor].flatten())
    fp = positions[tensor]
    saturated, lost = grid_shares(values, fp, bits=bits, kind=site.kind)
    matte = read_matte(output(mapped, positions, bits), q_out)
    reference = read_matte(output(x, quantised.fix_positions, quantised.bits), trained_q[1])
    read = fake_quantise(mapped[0].detach(), positions["input"], kind="input", bits=bits)
    limits = within_limits(quantised.folded, positions)
    return PositionView(
        tensor=tensor,
        kind=site.kind,
        fix_position=fp,
        start=start[tensor],
        bits=bits,
        q_in=q_in,
        q_out=q_out,
        changes=dict(changes),
        beyond=tuple(name for name, position in positions.items() if limits[name] != position),
        picture=colour.from_fixed(read, trained_q[0]).clamp(0, 1),
        matte=matte,
        reference=reference,
        truth=truth,
        error=matte - truth,
        iou=metrics.iou(matte, truth),
        mse=metrics.mse(matte, truth, scale=255),
        reference_iou=metrics.iou(reference, truth),
        reference_mse=metrics.mse(reference, truth, scale=255),
        values=values,
        saturated_share=saturated,
        zero_share=lost,
        tensor_mse=(fake_quantise(values, fp, kind=site.kind, bits=bits) - values).double().square().mean().item(),
    )


def positions_at(quantised: Quantised, bits: int) -> dict[str, int]:
    """The fix positions that keep every tensor's range with fewer bits: lower by the difference."""
    return {name: fp - (quantised.bits - bits) for name, fp in quantised.fix_positions.items()}


class PositionWidget(ipw.VBox):
    """The widget of :func:`position_widget`; its controls are attributes, its last result is ``view``."""

    def __init__(self, quantised: Quantised, x: torch.Tensor, truth: torch.Tensor, trained_q: tuple[int, int]):
        self.quantised, self.x, self.truth, self.trained_q = quantised, x, truth, trained_q
        self.view: PositionView | None = None
        self.pinned: PositionView | None = None
        self._offsets: dict[str, int] = {}  # of moved positions from the calibrated ones, which follow the bits
        self._busy = False
        powers = [(str(q), q) for q in colour.Q_VALUES]
        wide = {"style": {"description_width": "7em"}, "layout": {"width": "27em"}}
        late = {"continuous_update": False, **wide}
        under = {"indent": False, "layout": {"width": "20em", "margin": "2px 2px 2px 7.5em"}}
        names = [(f"{i}   {name}", name) for i, parts in enumerate(layers(quantised).values(), 1) for name in parts]
        self.tensor = ipw.Dropdown(options=names, value="input", description="tensor", **wide)
        self.fix_position = ipw.IntSlider(description="fix position", **late)
        self.q_in = ipw.SelectionSlider(options=powers, value=trained_q[0], description="q_i (input)", **late)
        self.q_out = ipw.SelectionSlider(options=powers, value=trained_q[1], description="q_o (output)", **late)
        lowest = min(4, quantised.bits)
        self.bits = ipw.IntSlider(min=lowest, max=quantised.bits, value=quantised.bits, description="bits", **late)
        self.keep = ipw.Checkbox(description="keep q_i 2^p: the input's position follows", **under)
        self.pin = ipw.ToggleButton(
            description="compare with this setting", icon="thumb-tack", layout={"width": "16em"}
        )
        self.reset = ipw.Button(description="as calibrated", icon="undo", layout={"width": "10.5em"})
        self.moved = ipw.HBox(layout={"flex_flow": "row wrap", "margin": "2px 2px 2px 7.5em"})
        self.hint = ipw.HTML(layout={"margin": "2px 2px 2px 7.5em"})
        self.picture = ipw.Image(format="png", layout={"max_width": "98%", "align_self": "flex-start"})
        rows = ((self.tensor, self.fix_position), (self.q_in, self.q_out), (self.bits, self.pin, self.reset))
        super().__init__([*(ipw.HBox(row) for row in rows), self.keep, self.moved, self.hint, self.picture])
        for control in (self.tensor, self.fix_position, self.q_in, self.q_out, self.bits, self.keep):
            control.observe(self._changed, "value")
        self.pin.observe(self._pin, "value")
        self.reset.on_click(self._reset)
        self._show()

    @property
    def changes(self) -> dict[str, int]:
        """The fix positions that are moved, by tensor name, at the present bits."""
        start, offsets = positions_at(self.quantised, self.bits.value), dict(self._offsets)
        if self.keep.value and (follows := self._follows()):
            offsets["input"] = offsets.get("input", 0) + follows
        return {name: start[name] + offset for name, offset in offsets.items() if offset}

    def _follows(self) -> int:
        """Where the input's position goes if q_i times 2 to its power stays."""
        return int(math.log2(self.trained_q[0] / self.q_in.value))

    def _changed(self, change: dict) -> None:
        if self._busy:
            return
        if change["owner"] is self.fix_position:
            name, start = self.tensor.value, positions_at(self.quantised, self.bits.value)
            self._offsets.pop(name, None)  # the one moved last comes last
            follows = self._follows() if self.keep.value and name == "input" else 0
            if offset := self.fix_position.value - start[name] - follows:
                self._offsets[name] = offset
        self._show()

    def _pin(self, _change: object) -> None:
        self.pinned = self.view if self.pin.value else None
        self._draw()

    def _undo(self, name: str) -> None:
        self._offsets.pop(name, None)
        if name == "input":
            self._busy, self.keep.value = True, False
        self._show()

    def _reset(self, _button: object = None) -> None:
        self._offsets.clear()
        self._busy = True  # several controls, one picture
        self.q_in.value, self.q_out.value = self.trained_q
        self.bits.value, self.keep.value = self.quantised.bits, False
        self._show()

    def _show(self) -> None:
        self._busy = True
        try:
            name, changes = self.tensor.value, self.changes
            start = positions_at(self.quantised, self.bits.value)
            now = changes.get(name, start[name])
            with self.fix_position.hold_sync(), self.fix_position.hold_trait_notifications():  # ends and value together
                self.fix_position.min = min(start[name] - REACH, now)
                self.fix_position.max = max(start[name] + REACH, now)
                self.fix_position.value = now
            self.view = position_view(
                self.quantised,
                self.x,
                self.truth,
                changes,
                tensor=name,
                bits=self.bits.value,
                q_in=self.q_in.value,
                q_out=self.q_out.value,
                trained_q=self.trained_q,
            )
            self.moved.children = [self._mover(name, start[name], fp) for name, fp in changes.items()]
            self.hint.value = _hint(self.view, self.trained_q, start["input"])
            self._draw()
        finally:
            self._busy = False

    def _mover(self, name: str, start: int, fp: int) -> ipw.Button:
        button = ipw.Button(description=f"{name}: {start} → {fp}", icon="undo", layout={"width": "auto"})
        button.on_click(lambda _: self._undo(name))
        return button

    def _draw(self) -> None:
        self.picture.value = png(position_figure(self.view, self.pinned))


def _hint(view: PositionView, trained_q: tuple[int, int], start: int) -> str:
    """What a mapping means for a network that was trained with another one; empty with its own."""
    parts = []
    if view.q_in != trained_q[0]:
        times = f"{view.q_in / trained_q[0]:g} times"
        text = f"q_i = {view.q_in}: trained with {trained_q[0]}, the network reads values {times} as large"
        if view.q_in > trained_q[0] and view.changes.get("input", start) >= start:
            text += ", and at this position the input saturates"
        parts.append(text + ".")
    if view.q_out != trained_q[1]:
        parts.append(f"q_o = {view.q_out}: tanh ends at 1, so alpha stays within {0.5 / view.q_out:g} of one half.")
    return " ".join(parts)


def position_widget(
    quantised: Quantised, x: torch.Tensor, truth: torch.Tensor, *, trained_q: tuple[int, int] = (1, 1)
) -> PositionWidget:
    """Move any fix position, the mapping and the bits of a matting network, and watch its matte.

    Args:
        quantised: The network.
        x: (1, 3, H, W) float32 as the network sees it, in [-q, q] with ``q = trained_q[0]``.
        truth: (1, 1, H, W) or (1, H, W) alpha, [0, 1].
        trained_q: ``q_in`` and ``q_out`` of the training.

    Returns:
        A widget over :func:`position_view`. ``.tensor``, ``.fix_position``, ``.q_in``, ``.q_out``, ``.bits`` and
        ``.keep`` (the input's position follows q_in) are its controls; ``.pin`` holds a setting to compare with,
        ``.pinned``; ``.reset`` undoes all, and ``.moved`` has a button for each moved tensor that undoes it.
        ``.changes`` are the moved positions, ``.view`` the last result, ``.hint`` what to know of it, ``.picture`` the
        figure; setting a control's ``value`` from Python works without a front end.
    """
    return PositionWidget(quantised, x, truth, trained_q)


# --- calibration ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class CalibrationView:
    """What :func:`calibration_view` found."""

    count: int  # batches calibrated on
    total: int  # batches that there are
    bits: int
    equalise: bool
    correct_bias: bool
    fix_positions: dict[str, int]
    changed: dict[str, tuple[int, int]]  # position here and with all batches, where they differ
    matte: torch.Tensor  # (1, H, W) float32 alpha, [0, 1], computed in exact integers
    reference: torch.Tensor  # (1, H, W): all batches, the same options
    truth: torch.Tensor  # (1, H, W)
    error: torch.Tensor  # (1, H, W): matte - truth
    iou: float
    mse: float  # of the matte, 8-bit scale
    reference_iou: float
    reference_mse: float
    float_iou: float  # of the network before quantisation
    float_mse: float


def calibration_view(
    model: nn.Module,
    batches: Sequence[torch.Tensor],
    x: torch.Tensor,
    truth: torch.Tensor,
    *,
    count: int,
    bits: int = 8,
    equalise: bool = False,
    correct_bias: bool = False,
    q_out: int = 1,
) -> CalibrationView:
    """Quantise a matting network on the first batches alone, and hold it against what all of them give.

    Results are kept while ``model`` lives and its parameters stay as they are.

    Args:
        model: The float network.
        batches: All calibration batches, (N, C, H, W) float32 as the network sees them.
        x: (1, C, H, W) float32, the patch to look at.
        truth: (1, 1, H, W) or (1, H, W) alpha, [0, 1].
        count: Batches to calibrate on, from the first.
        bits: Of every integer.
        equalise: As in :func:`i2ilib.quant.quantise`.
        correct_bias: As in :func:`i2ilib.quant.quantise`.
        q_out: The network's output means [-q_out, q_out].

    Raises:
        I2IError: If ``count`` is not from 1 to the number of batches, or ``x`` and ``truth`` do not fit.
    """
    batches, truth = list(batches), as_truth(truth, x)
    if count not in range(1, len(batches) + 1):
        raise I2IError("count", expected=f"1 to the {len(batches)} batches that there are", got=count)
    state = tuple((id(value), value._version) for value in model.state_dict(keep_vars=True).values())
    seen = (state, digest(x))

    def calibrated(count: int) -> tuple[dict[str, int], torch.Tensor]:
        def make() -> tuple[dict[str, int], torch.Tensor]:
            options = {"bits": bits, "equalise": equalise, "correct_bias": correct_bias}
            quantised = quantise(model, batches[:count], **options)
            return quantised.fix_positions, quantised.integer(x)

        key = ("calibrated", seen, digest(*batches[:count]), bits, equalise, correct_bias)
        return kept(model, key, make)

    (positions, out), (all_positions, all_out) = calibrated(count), calibrated(len(batches))
    plain = read_matte(kept(model, ("float", seen), lambda: _float(model, x)), q_out)
    matte, reference = read_matte(out, q_out), read_matte(all_out, q_out)
    return CalibrationView(
        count=count,
        total=len(batches),
        bits=bits,
        equalise=equalise,
        correct_bias=correct_bias,
        fix_positions=dict(positions),
        changed={name: (fp, all_positions[name]) for name, fp in positions.items() if fp != all_positions[name]},
        matte=matte,
        reference=reference,
        truth=truth,
        error=matte - truth,
        iou=metrics.iou(matte, truth),
        mse=metrics.mse(matte, truth, scale=255),
        reference_iou=metrics.iou(reference, truth),
        reference_mse=metrics.mse(reference, truth, scale=255),
        float_iou=metrics.iou(plain, truth),
        float_mse=metrics.mse(plain, truth, scale=255),
    )


def _float(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return copy.deepcopy(model).cpu().eval()(x)


class CalibrationWidget(ipw.VBox):
    """The widget of :func:`calibration_widget`; its controls are attributes, its last result is ``view``."""

    def __init__(self, model: nn.Module, batches: Sequence[torch.Tensor], x: torch.Tensor, truth: torch.Tensor):
        self.model, self.batches, self.x, self.truth = model, list(batches), x, truth
        self.view: CalibrationView | None = None
        late = {"style": {"description_width": "7em"}, "layout": {"width": "27em"}, "continuous_update": False}
        total = len(self.batches)
        self.count = ipw.IntSlider(min=1, max=total, value=total, description="batches", **late)
        self.bits = ipw.IntSlider(min=4, max=BITS[-1], value=BITS[-1], description="bits", **late)
        switch = {"indent": False, "layout": {"width": "20em", "margin": "2px 2px 2px 7.5em"}}
        self.equalise = ipw.Checkbox(description="equalise the channels", **switch)
        self.correct_bias = ipw.Checkbox(description="correct the biases", **switch)
        self.picture = ipw.Image(format="png", layout={"max_width": "98%", "align_self": "flex-start"})
        rows = ((self.count, self.bits), (self.equalise, self.correct_bias))
        super().__init__([*(ipw.HBox(row) for row in rows), self.picture])
        for control in (self.count, self.bits, self.equalise, self.correct_bias):
            control.observe(self._show, "value")
        self._show()

    def _show(self, _change: object = None) -> None:
        self.view = calibration_view(
            self.model,
            self.batches,
            self.x,
            self.truth,
            count=self.count.value,
            bits=self.bits.value,
            equalise=self.equalise.value,
            correct_bias=self.correct_bias.value,
        )
        self.picture.value = png(calibration_view_figure(self.view))


def calibration_widget(
    model: nn.Module, batches: Sequence[torch.Tensor], x: torch.Tensor, truth: torch.Tensor
) -> CalibrationWidget:
    """Choose how many batches, how many bits and which repairs quantise a matting network, and watch its matte.

    Args:
        model: The float network; its output means [-1, 1].
        batches: All calibration batches, at least one, (N, C, H, W) float32 as the network sees them.
        x: (1, C, H, W) float32, the patch to look at.
        truth: (1, 1, H, W) or (1, H, W) alpha, [0, 1].

    Returns:
        A widget over :func:`calibration_view`. ``.count``, ``.bits``, ``.equalise`` and ``.correct_bias`` are its
        controls, ``.view`` the last result, ``.picture`` the figure; setting a control's ``value`` from Python works
        without a front end.
    """
    if not len(batches):
        raise I2IError("batches", expected="at least one", got="none")
    return CalibrationWidget(model, batches, x, truth)
