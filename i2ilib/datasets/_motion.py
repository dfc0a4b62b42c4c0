"""How the synthetic actors move: every part's position as a smooth function of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import _figure as figure

if TYPE_CHECKING:
    from .synthetic import Actor

PELVIS, NECK = complex(0, 6.0), complex(0, 0.95)  # pivots in figure coordinates, x + iy


class Pose(NamedTuple):
    """Where the parts are at some times; arrays over time."""

    body_turn: np.ndarray  # radians
    body_shift: np.ndarray  # complex: x + iy
    head_at: np.ndarray  # complex
    head_turn: np.ndarray  # (..., 3, 3)
    head_roll: np.ndarray
    elbow: np.ndarray  # complex
    wrist: np.ndarray  # complex
    hand_turn: np.ndarray
    yaw: np.ndarray


def pose(actor: Actor, time: np.ndarray | float) -> Pose:
    """The actor's pose at ``time`` (seconds, scalar or array)."""
    t = np.asarray(time, float) + actor.phase
    beat = 2 * np.pi * actor.tempo * t
    body_turn = actor.sway * np.sin(0.5 * beat + 0.6) + 0.3 * actor.sway * np.sin(1.3 * beat)
    body_shift = 0.10 * np.sin(0.5 * beat) + 1j * 0.018 * np.sin(1.7 * t)
    yaw = actor.turn * np.tanh(2.2 * np.sin(beat)) + 0.05 * np.sin(2.1 * t)
    pitch = 0.05 * np.sin(0.83 * beat + 1) + 0.05 * np.cos(beat) ** 4
    head_roll = body_turn * 0.5 + 0.10 * np.sin(beat - 0.5)

    def body(point: complex) -> np.ndarray:
        return PELVIS + np.exp(1j * body_turn) * (point - PELVIS) + body_shift

    # minus i: up; the head's centre swings about the neck
    head_at = body(NECK) + np.exp(1j * head_roll) * (-NECK) + 0.10 * np.sin(yaw) + 1j * 0.10 * pitch
    shoulder = body(complex(1.22 + 0.18 * actor.build, 1.78))
    swing = 0.5 - 0.5 * np.tanh(2.4 * np.cos(1.25 * beat + 0.4))  # held, then fast
    upper = 0.16 + actor.arm * (0.18 + 0.10 * swing)  # from straight down, outwards
    elbow = shoulder + 1.62 * np.exp(1j * (np.pi / 2 - upper))
    lower = np.pi / 2 + actor.arm * (1.60 + 0.95 * (1 - swing))
    wrist = elbow + 1.42 * np.exp(1j * lower)
    hand_turn = actor.arm * (0.25 * np.sin(2.5 * beat) + 0.25)
    return Pose(
        body_turn, body_shift, head_at, figure.rotation(yaw, pitch, head_roll), head_roll, elbow, wrist, hand_turn, yaw
    )


def local(p: Pose, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Torso coordinates of figure points."""
    z = (x + 1j * y - PELVIS - p.body_shift) * np.exp(-1j * p.body_turn) + PELVIS
    return z.real.astype(np.float32), z.imag.astype(np.float32)
