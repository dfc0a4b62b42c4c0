"""A client for scripts and health probes: which models are there, run one, patiently."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message

from ..errors import I2IError
from . import wire

T = TypeVar("T")
_LISTS = ("int_options", "float_options", "bool_options", "string_options", "button_options")
_STEP = 1 << 20  # bytes by which a reply's buffer grows at first


class Unreachable(I2IError):
    """No server answers, or it went away; trying again may help."""


class Told(I2IError):
    """The server's own words."""


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server is, and how long to wait for it."""

    host: str = "127.0.0.1"
    port: int = 55555
    seconds: float = 300.0  # without a byte, once connected
    connect_seconds: float = 5.0
    retries: int = 0  # when no server answers, or it goes away
    pause: float = 0.5  # seconds between tries


def models(address: Address) -> list[Message]:
    """The models that a server offers.

    Raises:
        Unreachable: If no server answers.
        Told: If it refuses.
        WireError: If it answers something else.
    """
    found, _ = _ask(address, wire.request())
    return list(found.r1.models)


def run(
    address: Address,
    model: Message | str,
    images: Sequence[np.ndarray],
    values: Mapping[str, bool | int | float | str] | None = None,
) -> np.ndarray:
    """One picture through a model.

    Args:
        address: Of the server.
        model: As listed, or its name.
        images: (C, H, W) float32 each, linear light, top row first; one for each input.
        values: Of options; a text is taken as its option's type asks.

    Returns:
        (C, H, W) float32, top row first.

    Raises:
        I2IError: If there is no such model or option, or a text is no value of its type.
        Unreachable: If no server answers, or it went away.
        Told: If the server refuses or fails.
    """
    if isinstance(model, str):
        offered = models(address)
        names = [found.name for found in offered]
        if model not in names:
            raise I2IError("model", expected=" or ".join(names), got=repr(model))
        model = offered[names.index(model)]
    found, picture = _ask(address, wire.request(with_values(model, values or {}), images))
    if picture is None:
        raise wire.WireError("response", expected="a picture", got=f"{found.r2.num_images} pictures")
    return picture


def with_values(model: Message, values: Mapping[str, bool | int | float | str]) -> Message:
    """A model as listed, with values of options.

    Raises:
        I2IError: If it has no such option, or a value is none of its type.
    """
    chosen = type(model)()
    chosen.CopyFrom(model)
    options = {option.name: (field, option) for field in _LISTS for option in getattr(chosen, field)}
    for name, value in values.items():
        if name not in options:
            raise I2IError("option", expected=" or ".join(options) or "none", got=repr(name))
        field, option = options[name]
        option.values[:] = [_typed(name, field, value)]
    return chosen


def _typed(name: str, field: str, value: bool | int | float | str) -> bool | int | float | str:
    try:
        if field in ("bool_options", "button_options"):
            return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
        return {"int_options": int, "float_options": float, "string_options": str}[field](value)
    except (KeyError, ValueError):
        kind = field.partition("_")[0]
        raise I2IError(f"option {name}", expected=f"a value of type {kind}", got=repr(value)) from None


def _ask(address: Address, pieces: Sequence[wire.Buffer]) -> tuple[Message, np.ndarray | None]:
    """Send a request, read its response; try again where the server went away."""
    reply = _again(address, lambda: _exchange(address, pieces))
    found, picture = wire.read_response(reply)
    if found.HasField("error"):
        raise Told("server", got=found.error.msg)
    return found, picture


def _again(address: Address, attempt: Callable[[], T]) -> T:
    for left in reversed(range(address.retries + 1)):
        try:
            return attempt()
        except Unreachable:
            if not left:
                raise
            time.sleep(address.pause)
    raise I2IError("retries", expected="0 or more", got=address.retries)


def _exchange(address: Address, pieces: Sequence[wire.Buffer]) -> memoryview:
    where = f"server {address.host}:{address.port}"
    try:
        sock = socket.create_connection((address.host, address.port), timeout=address.connect_seconds)
    except OSError as error:
        raise Unreachable(where, expected="an answer", got=str(error), remedy="Is it running (i2i serve)?") from None
    with contextlib.closing(sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pace = wire.Pace(address.seconds)
        with contextlib.suppress(wire.Left):  # it may have refused early; its words may still be there
            wire.send(sock, pieces, pace)
        try:
            digits = bytearray(wire.HEADER)
            wire.receive(sock, memoryview(digits), pace)
            message = bytearray()
            length = wire.announced(digits) - wire.HEADER
            while len(message) < length:
                step = min(max(_STEP, len(message)), length - len(message))
                place = len(message)
                message += bytes(step)
                with memoryview(message) as view:
                    wire.receive(sock, view[place:], pace)
        except (wire.Left, TimeoutError, OSError) as error:
            got = "silence" if isinstance(error, TimeoutError) else "the end of the connection"
            raise Unreachable(where, expected="a whole response", got=got) from None
    return memoryview(message)
