"""A conformance kit: what Nuke's MLClient node does to a server, and checks for any server that wants to serve it.

    python -m i2ilib.serve.conformance [--host 127.0.0.1] [--port 55555] [--model NAME] [--json]

:class:`Node` behaves as the node's client: it connects five times at most, fetches the list of models by one call,
reads a picture until the connection ends, in pieces of a kilobyte, copies as many planes as both sides have, and ends
where it would. :func:`check` uses it, and bytes that no client should send, against a server by its address.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from google.protobuf.message import DecodeError, Message

from ..errors import I2IError
from . import mlserver_pb2 as pb
from . import wire
from .client import with_values

_PIECE = 1024  # bytes that the node reads at once
_ORDER = ("int_options", "float_options", "bool_options", "string_options", "button_options")  # of its panel


class NodeError(I2IError):
    """What the node tells its user."""


class NodeEnds(RuntimeError):
    """The node's process would end here: it trusts what it was told."""


# --- the node ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Node:
    """The client of Nuke's node.

    Attributes:
        host: Numeric IPv4.
        port: Of the server.
        seconds: This kit's own patience with a silent server; the node has none, and waits for ever.
    """

    host: str = "127.0.0.1"
    port: int = 55555
    seconds: float = 60.0
    models: list[Message] = dataclasses.field(default_factory=list)

    def connect(self) -> socket.socket:
        """Five attempts of a second, half a second apart."""
        for attempt in range(5):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.settimeout(1.0)
            try:
                sock.connect((self.host, self.port))
            except OSError:
                sock.close()
                time.sleep(0.5 if attempt < 4 else 0)
                continue
            sock.settimeout(self.seconds)
            return sock
        raise NodeError("Could not connect to server. Please check your host / port numbers.")

    def list_models(self) -> list[Message]:
        """What its button Connect does: one send, one receive for the header, one for all else.

        Raises:
            NodeError: If it would tell its user that there are no models.
            NodeEnds: If it would end, since the list has fewer models than it says, or an option has no value.
        """
        with contextlib.closing(self.connect()) as sock:
            sock.sendall(wire.INFO_REQUEST)
            announced = _atoi(_one(sock, wire.HEADER))
            found = _as_far_as_it_goes(_one(sock, announced))
        if found.HasField("error"):
            raise NodeError(found.error.msg)
        if found.r1.num_models < 1:
            raise NodeError("Server returned no models.")
        if found.r1.num_models > len(found.r1.models):
            raise NodeEnds(f"{found.r1.num_models} models announced, {len(found.r1.models)} there")
        self.models = list(found.r1.models)[: found.r1.num_models]
        for model in self.models:
            for field in _ORDER:
                if any(not option.values for option in getattr(model, field)):
                    raise NodeEnds(f"an option of {model.name} has no value")
        return self.models

    def knobs(self, label: str, values: Mapping[str, object] | None = None) -> str:
        """The text in which a script saves a model and its knobs; how it spells numbers is this kit's guess."""
        model = with_values(self._called(label), values or {})
        told = [f"model:{model.label}"]
        for field in _ORDER:
            told += [f"{option.name}:{_saved(option.values[0])}" for option in getattr(model, field)]
        return ";".join(told) + ";"

    def render(
        self,
        label: str,
        images: Sequence[np.ndarray],
        values: Mapping[str, object] | None = None,
        *,
        channels: int = 3,
    ) -> np.ndarray:
        """One picture: what the node would show.

        Args:
            label: Of the model, as in the menu.
            images: (3, H, W) float32 each, top row first, all of one size; one for each input.
            values: Of knobs.
            channels: That the node has; those which the reply lacks stay 0.

        Returns:
            (channels, H, W) float32, top row first.

        Raises:
            NodeError: With what it would tell its user.
        """
        sent = b"".join(wire.request(with_values(self._called(label), values or {}), images))
        return self.exchange(sent, size=images[0].shape[1:], channels=channels)

    def exchange(self, sent: bytes, *, size: tuple[int, int], channels: int = 3) -> np.ndarray:
        """Any bytes, sent at once; the picture that comes back, taken for one of ``size`` (height, width)."""
        found = self.answer(sent)
        if found.HasField("error"):
            raise NodeError(found.error.msg)
        if found.r2.num_images < 1 or not found.r2.images:
            raise NodeError("No image was found in the response.")
        image, (height, width) = found.r2.images[0], size
        if (image.height, image.width) != (height, width):
            raise NodeError("Received image has different dimensions.")
        planes, area = min(image.channels, channels), height * width
        if len(image.image) < 4 * planes * area:
            raise NodeError("Received image has too few samples.")
        shown = np.zeros((channels, height, width), np.float32)
        shown[:planes] = np.frombuffer(image.image, wire.SAMPLE, planes * area).reshape(planes, height, width)[:, ::-1]
        return shown

    def answer(self, sent: bytes) -> Message:
        """The response to any bytes, read until the connection ends."""
        with contextlib.closing(self.connect()) as sock:
            try:
                sock.sendall(sent)
                reply = until_end(sock)
            except ConnectionError:
                raise NodeError("Failed to read the response.") from None
            except TimeoutError:
                raise NodeError(f"the connection stayed open for {self.seconds:g} s; the node waits for ever") from None
        announced = _atoi(reply[: wire.HEADER])
        return _as_far_as_it_goes(reply[wire.HEADER : wire.HEADER + announced])

    def _called(self, label: str) -> Message:
        for model in self.models or self.list_models():
            if model.label == label:
                return model
        raise NodeError(f"no model {label!r} in the menu")


def until_end(sock: socket.socket) -> bytes:
    """All that a server sends, in pieces of a kilobyte, until it ends its write direction."""
    reply = bytearray()
    while piece := sock.recv(_PIECE):
        reply += piece
    return bytes(reply)


def _one(sock: socket.socket, length: int) -> bytes:
    """One receive: what has not arrived by then is lost."""
    try:
        return sock.recv(max(length, 1))
    except OSError:
        return b""


def _atoi(digits: bytes) -> int:
    """The number at the beginning of a text, as C reads it."""
    text = digits.lstrip()
    end = next((i for i, c in enumerate(text) if not 48 <= c <= 57), len(text))
    return int(text[:end] or b"0")


def _as_far_as_it_goes(message: bytes) -> Message:
    """A response of which the end may be missing: the fields before that, as C++ leaves them after a failure."""
    with contextlib.suppress(DecodeError):
        return pb.RespondWrapper.FromString(message)
    found = pb.RespondWrapper()
    _merge_whole_fields(found, memoryview(message))
    return found


def _merge_whole_fields(into: Message, view: memoryview) -> None:
    """Take over whole fields one by one, and what is whole of the one that is cut off, if it is a message."""
    place = 0
    while place < len(view):
        try:
            _, _, first, _, end = next(wire.fields(view, place, len(view)))
        except wire.Malformed:
            _merge_cut_field(into, view, place)
            return
        try:
            into.MergeFromString(bytes(view[first:end]))
        except DecodeError:
            return
        place = end


def _merge_cut_field(into: Message, view: memoryview, place: int) -> None:
    try:
        key, place = wire.read_varint(view, place, len(view), 5)
        _, place = wire.read_varint(view, place, len(view), 5)
    except wire.Malformed:
        return
    field = into.DESCRIPTOR.fields_by_number.get(key >> 3)
    if key & 7 != 2 or field is None or field.message_type is None:
        return
    inner = getattr(into, field.name)
    _merge_whole_fields(inner.add() if hasattr(inner, "add") else inner, view[place:])


def _saved(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- checks of a server --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that a server must do, and whether it did."""

    name: str
    ok: bool
    told: str

    def __str__(self) -> str:
        return f"{'pass' if self.ok else 'FAIL'}  {self.name}: {self.told}"


_TESTS: list[tuple[str, Callable[[Node, Message], str]]] = []


class Failure(Exception):
    """A check that was not passed; its text says how."""


def _test(about: str) -> Callable:
    def register(function: Callable[[Node, Message], str]) -> Callable:
        _TESTS.append((about, function))
        return function

    return register


def check(
    host: str = "127.0.0.1", port: int = 55555, *, model: str | None = None, seconds: float = 60.0
) -> list[Check]:
    """Everything that this kit knows to ask of a server, by address.

    Args:
        host: Numeric IPv4.
        port: Of the server.
        model: The label of a model that takes RGB pictures of any size; the first by default.
        seconds: Most that the server may take for one answer.
    """
    node = Node(host, port, seconds)
    try:
        offered = node.list_models()
    except (NodeError, NodeEnds) as error:
        return [Check("the list of models", False, str(error))]
    chosen = next((found for found in offered if found.label == model), offered[0] if model is None else None)
    if chosen is None:
        return [Check("the model", False, f"no {model!r} in the menu")]
    results = [Check("the list of models", True, f"{len(offered)}, fetched by one call")]
    for about, function in _TESTS:
        try:
            results.append(Check(about, True, function(node, chosen)))
        except (Failure, NodeError, NodeEnds, OSError) as error:
            results.append(Check(about, False, f"{type(error).__name__}: {error}"))
    return results


def plate(height: int, width: int) -> np.ndarray:
    """(3, H, W) float32, no two samples of a plane alike by mirroring: a picture that is upside down is found."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y / max(height, 2), x / max(width, 2), (x + 2 * y) % 7 / 7]).astype(np.float32)


def _images(model: Message, height: int, width: int) -> list[np.ndarray]:
    return [plate(height, width)] * max(len(model.inputs), 1)


def _alive(node: Node) -> None:
    """The server still answers another client, at once."""
    began = time.monotonic()
    Node(node.host, node.port, 10.0).list_models()
    if time.monotonic() - began > 5:
        raise Failure(f"another client waited {time.monotonic() - began:.1f} s")


def _error_of(node: Node, sent: bytes) -> str:
    """The text with which a server refuses bytes."""
    found = node.answer(sent)
    if not found.error.msg:
        raise Failure("closed without an error text")
    _alive(node)
    return found.error.msg[:100]


@_test("the list fits a segment, or its number comes last")
def _list_is_safe(node: Node, model: Message) -> str:
    with contextlib.closing(node.connect()) as sock:
        sock.sendall(wire.INFO_REQUEST)
        reply = until_end(sock)
    cut = _as_far_as_it_goes(reply[wire.HEADER : wire.SEGMENT])
    if len(reply) > wire.SEGMENT and cut.r1.num_models > len(cut.r1.models):
        raise Failure(f"{len(reply)} bytes; the first {wire.SEGMENT} announce models that are not there")
    if int(reply[: wire.HEADER]) != len(reply):
        raise Failure(f"header {reply[: wire.HEADER]!r}, {len(reply)} bytes")
    return f"{len(reply)} bytes, the header counts itself"


@_test("names, labels and options that the node can take")
def _menu_is_sound(node: Node, model: Message) -> str:
    labels = [found.label for found in node.models]
    if len(set(labels)) != len(labels) or any(";" in label for label in labels):
        raise Failure(f"labels {labels}")
    for found in node.models:
        names = [option.name for field in _ORDER for option in getattr(found, field)]
        if len(set(names)) != len(names) or any(set(name) & set(":; ") or name == "model" for name in names):
            raise Failure(f"options of {found.label}: {names}")
    return ", ".join(labels)


@_test("a picture, in the size of the request")
def _a_picture(node: Node, model: Message) -> str:
    shown = node.render(model.label, _images(model, 48, 64))
    return f"64 x 48, from {shown.min():.3f} to {shown.max():.3f}"


@_test("sizes that change: 1 x 1, odd, wide, tall")
def _sizes(node: Node, model: Message) -> str:
    sizes = ((1, 1), (7, 13), (3, 301), (257, 5))
    for height, width in sizes:
        node.render(model.label, _images(model, height, width))
    return ", ".join(f"{w} x {h}" for h, w in sizes)


@_test("values beyond 1, negatives, NaN and infinity")
def _values(node: Node, model: Message) -> str:
    images = [image.copy() for image in _images(model, 16, 16)]
    images[0][:, :2, :2] = [[np.nan, np.inf], [-np.inf, -3.0]]
    images[0][:, 4, 4] = 1e30
    node.render(model.label, images)
    return "a picture"


@_test("a header in two pieces")
def _pieces(node: Node, model: Message) -> str:
    with contextlib.closing(node.connect()) as sock:
        for piece in (wire.INFO_REQUEST[:5], wire.INFO_REQUEST[5:14], wire.INFO_REQUEST[14:]):
            sock.sendall(piece)
            time.sleep(0.05)
        found = _as_far_as_it_goes(until_end(sock)[wire.HEADER :])
    if not found.r1.models:
        raise Failure(found.error.msg or "no models")
    return "understood"


@_test("bytes behind the request")
def _more(node: Node, model: Message) -> str:
    if not node.answer(wire.INFO_REQUEST + b"x" * 1000).r1.models:
        raise Failure("no models")
    return "passed over"


@_test("one who connects and says nothing")
def _silent(node: Node, model: Message) -> str:
    with contextlib.closing(node.connect()):
        _alive(node)
    return "blocks nobody"


@_test("one who leaves in the middle of a message")
def _leaves(node: Node, model: Message) -> str:
    sent = b"".join(wire.request(model, _images(model, 32, 32)))
    with contextlib.closing(node.connect()) as sock:
        sock.sendall(sent[: len(sent) // 2])
        _alive(node)
    _alive(node)
    return "blocks nobody"


@_test("garbage instead of a header")
def _garbage(node: Node, model: Message) -> str:
    return _error_of(node, b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n")


@_test("a negative length, and length zero")
def _lengths(node: Node, model: Message) -> str:
    _error_of(node, b"-00000000001" + b"x")
    return _error_of(node, b"000000000000")


@_test("a header of ten gigabytes")
def _ten_gigabytes(node: Node, model: Message) -> str:
    began = time.monotonic()
    with contextlib.closing(node.connect()) as sock:
        sock.sendall(b"010000000000" + b"x" * 100)
        found = _as_far_as_it_goes(_until_answer(sock))
    if not found.error.msg:
        raise Failure("no error text")
    if time.monotonic() - began > 5:
        raise Failure(f"after {time.monotonic() - began:.1f} s")
    _alive(node)
    return f"refused at once: {found.error.msg[:80]}"


def _until_answer(sock: socket.socket) -> bytes:
    """A response's message, by its length: the one who refuses may keep the connection open to drain it."""
    digits = b""
    while len(digits) < wire.HEADER and (piece := sock.recv(wire.HEADER - len(digits))):
        digits += piece
    message, length = b"", _atoi(digits) - wire.HEADER
    while len(message) < length and (piece := sock.recv(length - len(message))):
        message += piece
    return message


@_test("a refusal that is read although the whole message is sent")
def _drained(node: Node, model: Message) -> str:
    sent = bytearray(b"".join(wire.request(model, _images(model, 512, 512))))
    sent[: wire.HEADER] = b"x" * wire.HEADER  # refused by its header, with three megabytes to come
    return _error_of(node, bytes(sent))


@_test("a message that is no protobuf")
def _malformed(node: Node, model: Message) -> str:
    return _error_of(node, b"000000000040" + b"\xff" * 40)


@_test("neither kind of request")
def _neither(node: Node, model: Message) -> str:
    return _error_of(node, b"000000000002\x08\x01")


@_test("an unknown model")
def _unknown(node: Node, model: Message) -> str:
    return _error_of(node, b"".join(wire.request(pb.Model(name="no model of that name"), [plate(4, 4)])))


def _request(model: Message, **image: object) -> bytes:
    """A request whose picture says of itself what it is told to."""
    told = {"width": 4, "height": 3, "channels": 3, "image": bytes(144)} | image
    images = [pb.Image(**told)] * max(len(model.inputs), 1)
    return wire.pack(pb.RequestWrapper(info=True, r2=pb.RequestInference(model=model, images=images)), response=False)


@_test("pictures with fewer or more bytes than their size")
def _bytes(node: Node, model: Message) -> str:
    _error_of(node, _request(model, image=bytes(140)))
    return _error_of(node, _request(model, image=bytes(148)))


@_test("negative and impossible sizes")
def _negative(node: Node, model: Message) -> str:
    _error_of(node, _request(model, width=-1))
    _error_of(node, _request(model, width=-4, height=-3))
    _error_of(node, _request(model, width=2**31 - 1, height=2**31 - 1))
    return _error_of(node, _request(model, channels=0, image=b""))


@_test("no picture at all")
def _no_picture(node: Node, model: Message) -> str:
    request = pb.RequestWrapper(info=True, r2=pb.RequestInference(model=model))
    return _error_of(node, wire.pack(request, response=False))


@_test("an option without a value, of another type, or that nobody declared")
def _options(node: Node, model: Message) -> str:
    strange = pb.Model(name=model.name)
    strange.int_options.add(name="name", values=[1])
    told = _error_of(node, _request(strange))
    if declared := [(field, option) for field in _ORDER for option in getattr(model, field)]:
        field, option = declared[0]
        empty = pb.Model(name=model.name)
        getattr(empty, field).add(name=option.name)
        _error_of(node, _request(empty))
        other = pb.Model(name=model.name)
        if field == "string_options":
            other.int_options.add(name=option.name, values=[1])
        else:
            other.string_options.add(name=option.name, values=["x"])
        _error_of(node, _request(other))
    return told


@_test("options that stay with their request")
def _no_leak(node: Node, model: Message) -> str:
    before = [found.SerializeToString() for found in node.list_models()]
    for option in [*model.int_options, *model.float_options]:
        with contextlib.suppress(NodeError):  # out of bounds, perhaps
            node.render(model.label, _images(model, 8, 8), {option.name: option.values[0] + 1})
    if [found.SerializeToString() for found in node.list_models()] != before:
        raise Failure("the list has changed")
    return "the list is as before"


@_test("thirty-two at once")
def _crowd(node: Node, model: Message) -> str:
    images = _images(model, 64, 64)
    alone = node.render(model.label, images)
    began = time.monotonic()
    with ThreadPoolExecutor(32) as crowd:
        nodes = [dataclasses.replace(node) for _ in range(32)]
        shown = list(crowd.map(lambda one: one.render(model.label, images), nodes))
    if wrong := sum(not np.array_equal(one, alone, equal_nan=True) for one in shown):
        raise Failure(f"{wrong} of 32 pictures differ from the one that was alone")
    return f"all answered within {time.monotonic() - began:.1f} s, all alike"


@_test("a connection that is broken while its answer is computed")
def _reset(node: Node, model: Message) -> str:
    for _ in range(4):
        with contextlib.closing(node.connect()) as sock:
            sock.sendall(b"".join(wire.request(model, _images(model, 64, 64))))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    _alive(node)
    return "blocks nobody"


def main(argv: Sequence[str] | None = None) -> int:
    """Check a server; 0 if it passes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=55555)
    parser.add_argument("--model", metavar="LABEL", help="a model that takes RGB (default: the first)")
    parser.add_argument("--seconds", type=float, default=60.0, help="most for one answer (default: 60)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    found = check(options.host, options.port, model=options.model, seconds=options.seconds)
    ok = all(one.ok for one in found)
    if options.json:
        print(json.dumps({"ok": ok, "checks": [dataclasses.asdict(one) for one in found]}))
    else:
        print("\n".join(map(str, found)))
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
