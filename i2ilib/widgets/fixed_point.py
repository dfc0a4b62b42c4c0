"""A picture through the fixed-point mapping: equation 2, an int8 code, equation 3."""

from __future__ import annotations

import dataclasses

import ipywidgets as ipw
import torch

from .. import colour, plots
from ..errors import I2IError
from ._base import png


@dataclasses.dataclass(frozen=True)
class FixedPointView:
    """What :func:`fixed_point_view` found."""

    q_in: int  # equation 2: [0, 1] is mapped to [-q_in, q_in]
    q_out: int  # equation 3: the codes are read as [-q_out, q_out]
    fix_position: int  # bits after the binary point of the int8 code
    codes: torch.Tensor  # (3, H, W) int8: as they enter the network
    codes_out: torch.Tensor  # (3, H, W) int8: as they leave it
    result: torch.Tensor  # (3, H, W) float32 sRGB, [0, 1]: what comes back, clipped for display
    error_codes: torch.Tensor  # (3, H, W) float32: |result - image|, in 8-bit codes (255ths)
    histogram: torch.Tensor  # (2, 256) int64: samples with code -128 ... 127, entering and leaving
    saturated: torch.Tensor  # (2, 2) int64: samples below -128 and above 127 before clipping, entering and leaving
    zoom: tuple[int, int, int, int]  # top, left, height, width of the part that shades most smoothly, pixels
    stats: dict[str, float]  # levels, saturated_share (0 to 1), both of what enters, and with _out of what leaves;
    # mean_error and max_error (8-bit codes)


def fixed_point_view(
    image_srgb: torch.Tensor, q_in: int, q_out: int, *, fix_position: int = 0, exposure: float = 0.0
) -> FixedPointView:
    """Send an image through equation 2, an int8 code and equation 3, and look at what is left.

    The code is ``clip(round(x 2^fp), -128, 127)``. An identity network is assumed, so the code that leaves means the
    same share of its range as the code that entered: it is read back as ``code 2^-fp q_out / q_in`` in [-q_out, q_out]
    and rounded to int8 once more, as the output of a network is.

    Args:
        image_srgb: (3, H, W) or (1, 3, H, W), floating point, [0, 1].
        q_in: Power of two, 1 to 128.
        q_out: Power of two, 1 to 128.
        fix_position: Bits after the binary point of both codes, -7 to 7.
        exposure: Photographic stops added in linear light before the mapping; above 0 pushes highlights past 1, so
            that codes saturate.

    Raises:
        I2IError: If the image is no floating-point (3, H, W) of at least 12 x 12 pixels, a ``q`` is
            no power of two from 1 to 128, or ``fix_position`` is out of range.
    """
    image = image_srgb[0] if image_srgb.ndim == 4 and len(image_srgb) == 1 else image_srgb
    if image.ndim != 3 or image.shape[0] != 3 or min(image.shape[-2:]) < 12 or not image.is_floating_point():
        raise I2IError(
            "image_srgb",
            expected="a floating-point (3, H, W) or (1, 3, H, W) of at least 12 x 12 pixels",
            got=f"{tuple(image_srgb.shape)} {image_srgb.dtype}",
        )
    if fix_position not in range(-7, 8):
        raise I2IError("fix_position", expected="-7 to 7", got=fix_position)
    zoom = _smoothest(image)
    if exposure:
        image = colour.linear_to_srgb(colour.srgb_to_linear(image) * 2.0**exposure)
    mapped = colour.to_fixed(image, q_in)
    codes = colour.to_int8(mapped, fix_position=fix_position)
    entered = colour.from_int8(codes, fix_position=fix_position) * (q_out / q_in)
    codes_out = colour.to_int8(entered, fix_position=fix_position)
    result = colour.from_fixed(colour.from_int8(codes_out, fix_position=fix_position), q_out)
    error = (result - image).abs() * 255
    saturated = torch.stack([_beyond(values * 2.0**fix_position) for values in (mapped, entered)])
    histogram = torch.stack([torch.bincount(c.flatten().long() + 128, minlength=256) for c in (codes, codes_out)])
    stats = {}
    for end, clipped, counts in zip(("", "_out"), saturated, histogram, strict=True):
        stats[f"levels{end}"] = int((counts > 0).sum())
        stats[f"saturated_share{end}"] = clipped.sum().item() / codes.numel()
    return FixedPointView(
        q_in=q_in,
        q_out=q_out,
        fix_position=fix_position,
        codes=codes,
        codes_out=codes_out,
        result=result.clamp(0, 1),
        error_codes=error,
        histogram=histogram,
        saturated=saturated,
        zoom=zoom,
        stats=stats | {"mean_error": error.mean().item(), "max_error": error.max().item()},
    )


def _beyond(scaled: torch.Tensor) -> torch.Tensor:
    """Samples below -128 and above 127 once they are rounded."""
    return torch.stack([(scaled < -128.5).sum(), (scaled >= 127.5).sum()])


def _smoothest(image: torch.Tensor) -> tuple[int, int, int, int]:
    """A third of the image in each direction that is neither flat nor textured: banding shows there."""
    cell = [max(size // 12, 1) for size in image.shape[-2:]]
    pool, grey = torch.nn.functional.avg_pool2d, image.mean(0)[None, None]
    mean = pool(grey, cell)
    detail = (pool(grey.square(), cell) - mean.square()).clamp_min(0).sqrt()
    shading = (pool(mean.square(), 4, 1) - pool(mean, 4, 1).square()).clamp_min(0).sqrt()
    score = shading / (0.01 + pool(detail, 4, 1))
    row, column = divmod(int(score.argmax()), score.shape[-1])
    return row * cell[0], column * cell[1], 4 * cell[0], 4 * cell[1]


class FixedPointExplorer(ipw.VBox):
    """The widget of :func:`fixed_point_explorer`; its controls are attributes, its last result is ``view``."""

    def __init__(self, image: torch.Tensor):
        powers = [(str(q), q) for q in colour.Q_VALUES]
        wide = {"style": {"description_width": "8em"}, "layout": {"width": "26em"}, "continuous_update": False}
        self.image = image
        self.q_in = ipw.SelectionSlider(options=powers, value=64, description="q_i (input)", **wide)
        self.q_out = ipw.SelectionSlider(options=powers, value=64, description="q_o (output)", **wide)
        self.fix_position = ipw.IntSlider(min=-1, max=7, value=0, description="fix position", **wide)
        self.exposure = ipw.FloatSlider(min=-2, max=2, step=0.5, value=0, description="exposure, stops", **wide)
        self.picture = ipw.Image(format="png", layout={"max_width": "98%", "align_self": "flex-start"})
        self.view: FixedPointView | None = None
        controls = (self.q_in, self.q_out, self.fix_position, self.exposure)
        super().__init__([ipw.HBox(controls[:2]), ipw.HBox(controls[2:]), self.picture])
        for control in controls:
            control.observe(self._update, "value")
        self._update()

    def _update(self, _change: object = None) -> None:
        self.view = fixed_point_view(
            self.image,
            self.q_in.value,
            self.q_out.value,
            fix_position=self.fix_position.value,
            exposure=self.exposure.value,
        )
        self.picture.value = png(plots.fixed_point_figure(self.view))


def fixed_point_explorer(image: torch.Tensor) -> FixedPointExplorer:
    """Sliders for ``q_i``, ``q_o``, the fix position and the exposure over :func:`fixed_point_view` of an image.

    Args:
        image: (3, H, W) or (1, 3, H, W) sRGB, floating point, [0, 1].

    Returns:
        A widget. ``.q_in``, ``.q_out``, ``.fix_position`` and ``.exposure`` are its controls, ``.view`` is the last
        result and ``.picture`` the figure; setting a control's ``value`` from Python works without a front end.
    """
    return FixedPointExplorer(image)
