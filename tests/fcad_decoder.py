"""The codec avatar decoder of F-CAD's Table I as a design space, typed in: what analysis and construction must find."""

from __future__ import annotations

from i2ilib.fcad.construct import DesignSpace, Pipeline, Stage

GEOMETRY = [(4, 128, 8, 5), (128, 64, 16, 5), (64, 64, 32, 5), (64, 32, 64, 5), (32, 32, 128, 5), (32, 4, 256, 5)]
TEXTURE = [
    (7, 128, 8, 5), (128, 64, 16, 5), (64, 64, 32, 5), (64, 64, 64, 5), (64, 64, 128, 5), (64, 16, 256, 5),
    (16, 16, 512, 5), (16, 3, 1024, 1),
]  # fmt: skip
WARP = [(64, 2, 256, 5)]
TIED = {"texture.6"}  # besides the last convolution of each branch


def decoder_space(bits: int = 8, frequency_hz: float = 200e6) -> DesignSpace:
    """Three pipelines; the warp field's one stage is fed by the texture's fifth."""
    texture = _pipeline("texture", TEXTURE, 1)
    return DesignSpace(
        (_pipeline("geometry", GEOMETRY, 0), texture, _pipeline("warp", WARP, 2, ((1, 4),))), bits, frequency_hz
    )


def _pipeline(name: str, layers: list[tuple[int, int, int, int]], index: int, fed: tuple = ()) -> Pipeline:
    stages = []
    for number, (ci, co, size, k) in enumerate(layers, start=1):
        last = number == len(layers)
        area, label = size * size, f"{name}.{number}"
        macs = ci * co * k * k * area
        untied = not last and label not in TIED
        stage = Stage(
            name=label, in_channels=ci, out_channels=co, height=size, width=size, in_height=size, in_width=size,
            kernel=(k, k), macs=macs, ops=2 * macs + (0 if last else 5 * co * area), weights=ci * co * k * k,
            upsample=1 if last else 2, bias=co * area if untied else co, untied=untied,
            external=(ci * area if number == 1 and not fed else 0) + (co * area if last else 0),
            sources=((index, number - 2),) if number > 1 else fed,
        )  # fmt: skip
        stages.append(stage)
    return Pipeline(name, tuple(stages))
