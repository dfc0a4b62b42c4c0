"""From float to integers in the DPU's scheme: signed INT8, symmetric, per tensor, power-of-two scales."""

from .fixed_point import fake_quantise, fix_position, limit_shifts, round_half_away, round_half_up, to_integers
from .inspect import TARGETS, inspect
from .interchange import compare, load, save
from .ptq import Quantised, layers, output_aware, quantise, run, sensitivity, tail_aware, with_positions

__all__ = [
    "TARGETS",
    "Quantised",
    "compare",
    "fake_quantise",
    "fix_position",
    "inspect",
    "layers",
    "limit_shifts",
    "load",
    "output_aware",
    "quantise",
    "round_half_away",
    "round_half_up",
    "run",
    "save",
    "sensitivity",
    "tail_aware",
    "to_integers",
    "with_positions",
]
