"""Bytes on the wire of Nuke's MLClient: header and message, pictures of planes, without a copy of their samples.

A message is twelve digits and a protobuf message. A request's digits count the message, a response's count themselves
too. Pictures are float32, little endian, plane after plane, the bottom row first; here they are NumPy views
(C, H, W) with the top row first, whose samples stay where the message lies.
"""

from __future__ import annotations

import dataclasses
import mmap
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from google.protobuf.message import DecodeError, EncodeError, Message

from ..errors import I2IError
from . import mlserver_pb2 as pb

HEADER = 12  # bytes
MOST = 2**31 - 1  # bytes of a message; the client keeps lengths in 32 bits
SEGMENT = 1400  # bytes that surely arrive together across a network
ABOUT = 1 << 18  # bytes of a request beside its samples: names, values, unknown fields
INFO_REQUEST = b"000000000006" + bytes([0x08, 1, 0x12, 2, 0x08, 1])
SAMPLE = np.dtype("<f4")

Buffer = bytes | bytearray | memoryview


class WireError(I2IError):
    """Bytes that are no message, or that do not come; the text is meant for the one who sent them."""


class Left(Exception):
    """The other side has closed the connection, or broken it."""


# --- header ------------------------------------------------------------------------------------------


def header(length: int) -> bytes:
    """Twelve digits.

    Raises:
        WireError: If the number is more than a client can take.

    Example:
        >>> header(267)
        b'000000000267'
    """
    if not 0 <= length <= MOST:
        raise WireError("message", expected=f"at most {MOST} bytes", got=length, remedy="Send a smaller picture.")
    return b"%012d" % length


def announced(digits: Buffer) -> int:
    """The number in a header.

    Raises:
        WireError: If it is anything but twelve digits.
    """
    text = bytes(digits)
    if len(text) != HEADER or not text.isdigit():
        raise WireError("header", expected=f"{HEADER} digits", got=repr(text[:HEADER]))
    return int(text)


# --- requests ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Request:
    """What a client asks for; without a model it asks for the list of models.

    Attributes:
        model: The model with the values of its options, or None.
        images: (C, H, W) float32 each, top row first; views of the message.
    """

    model: Message | None
    images: tuple[np.ndarray, ...] = ()


def request(model: Message | None = None, images: Sequence[np.ndarray] = ()) -> list[Buffer]:
    """A request in pieces for :func:`send`: the list of models, or a run of one.

    Args:
        model: As it was listed, with values.
        images: (C, H, W), top row first; one for each input.
    """
    if model is None:
        return [INFO_REQUEST]
    inner: list[Buffer] = [_key(1) + _varint(model.ByteSize()) + model.SerializeToString()]
    for image in images:
        inner += _nested(2, _image(image))
    return _framed([b"\x08\x01", *_nested(3, inner)], counted=0)


def read_request(message: Buffer) -> Request:
    """A request from its bytes. Only names and values are copied.

    Raises:
        WireError: If the bytes are no request, or a picture has another number of samples than its size says.
    """
    view = memoryview(message).cast("B")
    try:
        rest, samples = _without_samples(view)
        found = pb.RequestWrapper.FromString(rest)
    except (DecodeError, Malformed) as error:
        raise WireError("message", expected="a protobuf RequestWrapper", got=f"{len(view)} bytes, {error}") from None
    if found.HasField("r1"):
        return Request(None)
    if not found.HasField("r2"):
        raise WireError("message", expected="a request for models or for a run", got="neither")
    if not found.r2.HasField("model"):
        raise WireError("message", expected="a run of a model", got="no model")
    images = found.r2.images
    return Request(found.r2.model, tuple(_planes(*pair, i) for i, pair in enumerate(zip(images, samples, strict=True))))


def _planes(image: Message, samples: memoryview | None, place: int) -> np.ndarray:
    """One picture, as a view of its samples with the top row first."""
    what, size = f"image {place}", (image.channels, image.height, image.width)
    if min(size) < 1:
        told = f"{image.width} x {image.height}, {image.channels} planes"
        raise WireError(what, expected="a width, a height and planes of at least 1", got=told)
    wanted, there = 4 * image.width * image.height * image.channels, 0 if samples is None else len(samples)
    if wanted != there:
        told = f"{wanted} bytes for {image.width} x {image.height}, {image.channels} planes of float32"
        raise WireError(what, expected=told, got=f"{there} bytes")
    return np.frombuffer(samples, SAMPLE).reshape(size)[:, ::-1]


# --- responses ---------------------------------------------------------------------------------------


def info_response(models: Sequence[Message]) -> list[Buffer]:
    """The list of models.

    A client fetches it by one call and trusts the number in it. Where it is longer than what surely arrives together,
    the number comes last: what was cut off then has none, which the client reports instead of ending.
    """
    every = b"".join(_key(2) + _varint(model.ByteSize()) + model.SerializeToString() for model in models)
    number = b"\x08" + _varint(len(models))
    pieces = [number, every] if len(every) + 64 <= SEGMENT else [every, number]
    return [b"".join(_framed([b"\x08\x01", *_nested(2, pieces)], counted=HEADER))]  # in one write


def picture_response(planes: np.ndarray) -> list[Buffer]:
    """One picture, (C, H, W) with the top row first; its samples are not copied where they lie as the wire has them."""
    inner = [b"\x08\x01", *_nested(2, _image(planes)), b"\x18\x00"]
    return _framed([b"\x08\x01", *_nested(3, inner)], counted=HEADER)


def error_response(text: str) -> list[Buffer]:
    """A failure, told to the user as it is; a very long text is cut."""
    error = pb.RespondWrapper(info=True, error=pb.Error(msg=text[:4000].encode("utf-8", "replace").decode()))
    return [b"".join(_framed([error.SerializeToString()], counted=HEADER))]


def read_response(message: Buffer) -> tuple[Message, np.ndarray | None]:
    """A response from its bytes, and its first picture, (C, H, W) with the top row first.

    Raises:
        WireError: If the bytes are no response.
    """
    try:
        found = pb.RespondWrapper.FromString(message)
    except DecodeError as error:
        raise WireError("response", expected="a protobuf RespondWrapper", got=str(error)) from None
    if found.HasField("error") or not found.r2.num_images or not found.r2.images:
        return found, None
    first = found.r2.images[0]
    return found, _planes(first, memoryview(first.image), 0)


# --- protobuf, as far as samples ask for it ----------------------------------------------------------


class Malformed(ValueError):
    """Bytes that are no fields of protobuf."""


_PATH = (3, 2, 4)  # RequestWrapper.r2, RequestInference.images, Image.image


def _without_samples(view: memoryview) -> tuple[bytes, list[memoryview | None]]:
    """A request without the samples of its pictures, and the samples of each.

    Protobuf copies what it reads, twice until Python has it; pictures are left out, so that it reads names and values
    alone. Their amount is limited before anything is made of them.
    """
    samples: list[memoryview | None] = []
    budget = ABOUT

    def level(start: int, stop: int, depth: int) -> bytes:
        nonlocal budget
        kept = []
        for number, kind, first, begin, end in fields(view, start, stop):
            whole = kind == 2 and number == _PATH[depth]
            if whole and depth == 2:
                samples[-1] = view[begin:end]
                budget -= begin - first
            elif whole:
                if depth == 1:
                    samples.append(None)
                budget -= begin - first
                inner = level(begin, end, depth + 1)
                kept.append(_key(number) + _varint(len(inner)) + inner)
            else:
                budget -= end - first
                kept.append(view[first:end] if budget >= 0 else b"")
            if budget < 0:
                raise Malformed(f"more than {ABOUT} of them beside samples")
        return b"".join(kept)

    return level(0, len(view), 0), samples


def fields(view: memoryview, start: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, wire type, start, start of the value and end of each field between two places.

    Raises:
        Malformed: If they are none, or groups, which this protocol has not.
    """
    place = start
    while place < stop:
        first = place
        key, place = read_varint(view, place, stop, 5)
        number, kind = key >> 3, key & 7
        if not number or key >= 2**32:
            raise Malformed(f"an impossible field at {first}")
        begin = place
        if kind == 0:
            _, place = read_varint(view, place, stop, 10)
        elif kind == 2:
            length, begin = read_varint(view, place, stop, 5)
            place = begin + length
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:  # groups, which no client of this protocol writes, and what does not exist
            raise Malformed(f"wire type {kind} at {first}")
        if place > stop:
            raise Malformed(f"cut off at {stop}")
        yield number, kind, first, begin, place


def read_varint(view: memoryview, place: int, stop: int, most: int) -> tuple[int, int]:
    """A number of at most so many bytes, and the place behind it."""
    value = 0
    for shift in range(most):
        if place >= stop:
            raise Malformed(f"cut off at {stop}")
        byte = view[place]
        place += 1
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, place
    raise Malformed(f"a number too long at {place}")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(number: int) -> bytes:
    return _varint(number << 3 | 2)


def _nested(number: int, pieces: list[Buffer]) -> list[Buffer]:
    """Pieces as one field of a message."""
    return [_key(number) + _varint(sum(map(len, pieces))), *pieces]


def _image(planes: np.ndarray) -> list[Buffer]:
    """An Image message of (C, H, W), top row first."""
    channels, height, width = planes.shape
    samples = np.ascontiguousarray(planes[:, ::-1], SAMPLE)
    about = pb.Image(width=width, height=height, channels=channels).SerializeToString()
    data = memoryview(samples.reshape(-1)).cast("B") if samples.size else memoryview(b"")
    return [about + b"\x22" + _varint(len(data)), data]


def _framed(pieces: list[Buffer], *, counted: int) -> list[Buffer]:
    """Pieces behind their header, small ones joined."""
    joined: list[Buffer] = [bytearray(header(sum(map(len, pieces)) + counted))]
    for piece in pieces:
        if len(piece) <= SEGMENT and isinstance(joined[-1], bytearray):
            joined[-1] += piece
        elif len(piece) <= SEGMENT:
            joined.append(bytearray(piece))
        else:
            joined.append(piece)
    return joined


def pack(message: Message, *, response: bool) -> bytes:
    """Any message behind its header, for tests and tools.

    Raises:
        WireError: If protobuf cannot write it.
    """
    try:
        body = message.SerializeToString()
    except EncodeError as error:
        raise WireError("message", expected="one that protobuf can write", got=str(error)) from None
    return header(len(body) + HEADER * response) + body


# --- memory for messages -----------------------------------------------------------------------------


class Blocks:
    """Memory for messages, some of it kept to be used again.

    The system gives a page of new memory when it is first written, and for a large picture that takes longer than the
    picture itself; a block that was used before has its pages. A new one has none until bytes come.

    Args:
        kept: Most bytes that are kept.
    """

    def __init__(self, kept: int = 1 << 28):
        self.most, self.kept = kept, []
        self.lock = threading.RLock()  # a block may come back in the middle of a taking, from the garbage collector

    def take(self, length: int) -> np.ndarray:
        """(length,) uint8 of any content; its block comes back when nothing refers to the array any more."""
        if length < 1 << 20:
            return np.empty(length, np.uint8)
        with self.lock:
            fitting = [block for block in self.kept if length <= len(block) <= 2 * length]
            block = min(fitting, key=len, default=None)
            if block is not None:
                self.kept.remove(block)
        block = mmap.mmap(-1, length) if block is None else block
        array = np.frombuffer(block, np.uint8, length)
        weakref.finalize(array, self._back, block).atexit = False
        return array

    def _back(self, block: mmap.mmap) -> None:
        with self.lock:
            self.kept.append(block)
            while sum(map(len, self.kept)) > self.most:
                self.kept.pop(0)  # the oldest goes back to the system


# --- sockets -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Pace:
    """How long the other side may take: without a byte, and for all of them.

    Attributes:
        stall: Seconds without a byte.
        until: When all is to be over, as :func:`time.monotonic` counts.
    """

    stall: float
    until: float = float("inf")

    @classmethod
    def of(cls, length: int, *, stall: float, rate: float) -> Pace:
        """For ``length`` bytes at no less than ``rate`` bytes a second, after a first ``stall``."""
        return cls(stall, time.monotonic() + stall + length / rate)

    def wait(self, sock: socket.socket) -> None:
        """Let the next call wait as long as is left.

        Raises:
            TimeoutError: If nothing is left.
        """
        left = min(self.stall, self.until - time.monotonic())
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)


def receive(
    sock: socket.socket, into: memoryview, pace: Pace, *, grow: Callable[[int], None] | None = None, step: int = 1 << 24
) -> None:
    """Fill a buffer.

    Args:
        sock: Connected.
        into: Where to; memory that the system gives when it is written needs none before.
        pace: How long it may take.
        grow: Called with a number of bytes before so many more are written; may wait or refuse.
        step: Bytes that are asked of it at once.

    Raises:
        Left: If the connection ends before; ``args[0]`` is the number of bytes that came.
        TimeoutError: If it takes too long.
    """
    place, allowed = 0, 0 if grow else len(into)
    while place < len(into):
        if place == allowed:
            allowed = min(allowed + step, len(into))
            grow(allowed - place)
        pace.wait(sock)
        try:
            got = sock.recv_into(into[place:allowed])
        except TimeoutError:
            raise
        except OSError:  # broken
            got = 0
        if not got:
            raise Left(place)
        place += got


def send(sock: socket.socket, pieces: Sequence[Buffer], pace: Pace) -> None:
    """Send pieces one behind the other, in as few calls as the system allows, without joining them.

    Raises:
        Left: If the other side has closed or broken the connection.
        TimeoutError: If it takes too long.
    """
    left = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    while left:
        pace.wait(sock)
        try:
            sent = sock.sendmsg(left[:16]) if hasattr(sock, "sendmsg") else sock.send(left[0])  # Windows: one by one
        except TimeoutError:
            raise
        except OSError as error:  # broken
            raise Left(str(error)) from None
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if sent:
            left[0] = left[0][sent:]


def part(sock: socket.socket, *, seconds: float, most: int) -> None:
    """End a connection so that the other side can read what it was sent.

    The write direction is ended and what still comes is read and forgotten, within limits: bytes that nobody has read
    make the system break the connection, and the answer would be lost.

    Args:
        sock: Connected; closed afterwards, whatever happens.
        seconds: Until it is closed anyway.
        most: Bytes until then.
    """
    pace = Pace(seconds, time.monotonic() + seconds)
    try:
        sock.shutdown(socket.SHUT_WR)
        scratch = bytearray(1 << 16)
        while most > 0:
            pace.wait(sock)
            if not (got := sock.recv_into(scratch)):
                break
            most -= got
    except OSError:  # a time-out among them
        pass
    finally:
        sock.close()
