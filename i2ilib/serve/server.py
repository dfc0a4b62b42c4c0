"""The server: a thread a connection, limits on everything that a client can send, and an answer for every failure.

A client sends one request and reads until the connection ends. What goes wrong is answered by an error that it can
read: sent, the write direction ended, what still comes drained, then closed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import itertools
import json
import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil

from ..errors import I2IError
from . import wire
from .menu import Served, check_menu
from .metrics import Metrics
from .scheduler import Cancelled, Claim, Memory, Pool, Slots, Work

log = logging.getLogger("i2ilib.serve")
log.addHandler(logging.NullHandler())  # nothing on stderr unless somebody asks for it

PORT = 55555  # the node's default
_ACCEPTED = 1024  # connections that the system keeps until they are taken
_SMALL = 1 << 23  # bytes; a smaller request has slots of its own, and never waits behind large ones for one
_FAREWELL = 5.0  # seconds for a client to close, once it has its reply
_WATCH = 0.1  # seconds between looks at who has left


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may ask of the server; everything beyond is refused with a text."""

    message_bytes: int = 1 << 30  # of one request
    memory_bytes: int = 0  # of all requests that are held, and replies; 0: an eighth of the machine's
    connections: int = 256  # at once; a few more are refused with a text, the rest waits to be taken
    header_seconds: float = 10.0  # until a request's twelve digits are there
    stall_seconds: float = 20.0  # without a byte in either direction
    bytes_a_second: float = 64e3  # least, over a whole message
    slots: int = 4  # large requests that are computed at once, and as many small ones
    waiting: int = 64  # requests that wait for a slot
    drain_seconds: float = 30.0  # for what a refused client still sends

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value <= 0 and field.name not in ("memory_bytes", "waiting"):
                raise I2IError(field.name, expected="more than 0", got=value)
        if not wire.HEADER < self.message_bytes <= wire.MOST:
            raise I2IError("message_bytes", expected=f"at most {wire.MOST}", got=self.message_bytes)

    @property
    def memory(self) -> int:
        """Bytes of all messages."""
        return self.memory_bytes or psutil.virtual_memory().total // 8


class Refused(I2IError):
    """A request that is not served; the text goes to the client."""

    def __init__(self, cause: str, what: str, **parts):
        super().__init__(what, **parts)
        self.cause = cause


class _Visit:
    """One connection, and what the log tells of it."""

    def __init__(self, number: int, sock: socket.socket, address: tuple):
        self.id, self.sock, self.peer = f"{number:06x}", sock, f"{address[0]}:{address[1]}"
        self.work, self.heard = Work(), False  # heard: its header has come
        self.began, self.marks = time.monotonic(), {}
        self.story: dict[str, object] = {"outcome": "ok", "kind": "none"}
        self.unread = 0  # bytes that the client may still be sending

    def mark(self, station: str) -> None:
        """Seconds since the connection was taken, at this station's end."""
        self.marks[station] = time.monotonic() - self.began


class Server:
    """Models, served on an address until :meth:`stop`.

    Args:
        models: What is offered, in the order of the menu.
        host: A numeric IPv4 address; the node takes no other. Any but the loopback opens the server to whoever
            reaches it, and the protocol knows no password.
        port: 0 takes a free one, which :attr:`port` tells.
        limits: On what clients may ask.
        pools: The pools of the models, for the metrics page.
        metrics_port: Of a page for Prometheus on the loopback; 0 takes a free one, None leaves it out.

    Raises:
        I2IError: If the address is none or taken, or the models cannot stand together.

    Example:
        >>> from i2ilib.serve.menu import Served
        >>> with Server([Served("same", "Same", lambda images, options, work: images[0])], port=0) as server:
        ...     server.host
        '127.0.0.1'
    """

    def __init__(
        self,
        models: Sequence[Served],
        *,
        host: str = "127.0.0.1",
        port: int = PORT,
        limits: Limits | None = None,
        pools: Sequence[Pool] = (),
        metrics_port: int | None = None,
    ):
        self.models, self.limits = check_menu(models), limits or Limits()
        self.menu = wire.info_response([model.describe() for model in models])
        self.host, self.memory, self.blocks = _numeric(host), Memory(self.limits.memory), wire.Blocks()
        waiting = self.limits.waiting
        self.large, self.small = (Slots(self.limits.slots, waiting=waiting) for _ in range(2))
        self.visits: dict[str, _Visit] = {}
        self.lock, self.ending, self.numbers = threading.Lock(), threading.Event(), itertools.count(1)
        self.listener = _listen(self.host, port)
        self.port = self.listener.getsockname()[1]
        self.metrics = Metrics(self, pools)
        try:
            self.metrics_port = self.metrics.serve(metrics_port)
        except OSError as error:
            self.listener.close()
            raise I2IError(f"metrics port {metrics_port}", expected="a free port", got=error.strerror) from None
        self.free = threading.Semaphore(self.limits.connections + 32)  # the 32 are told that the server is full
        self.workers = ThreadPoolExecutor(self.limits.connections + 32, thread_name_prefix="serve")
        self.threads = [threading.Thread(target=task, daemon=True) for task in (self._accept, self._watch)]
        for thread in self.threads:
            thread.start()

    # --- connections -------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self.ending.is_set():
            if not self.free.acquire(timeout=_WATCH):
                continue
            sock = None
            while sock is None and not self.ending.is_set():
                try:
                    sock, address = self.listener.accept()
                except TimeoutError:
                    continue
                except OSError as error:  # too many files open, or the listener was closed
                    if not self.ending.is_set():
                        log.warning("accept", extra={"story": {"cause": str(error)}})
                        self.ending.wait(_WATCH)
            if sock is None:
                self.free.release()
                return
            visit = _Visit(next(self.numbers), sock, address)
            with self.lock:
                full = len(self.visits) >= self.limits.connections
                self.visits[visit.id] = visit
            self.workers.submit(self._visit, visit, full)

    def _watch(self) -> None:
        """Cancel the work of clients that have left."""
        while self.visits or not self.ending.is_set():
            with self.lock:
                visits = list(self.visits.values())
            for visit in visits:
                if "received" in visit.marks and "computed" not in visit.marks and _gone(visit.sock):
                    visit.work.cancel()
            time.sleep(_WATCH)

    def _visit(self, visit: _Visit, full: bool) -> None:
        try:
            with self.memory.claim() as claim:
                self._converse(visit, full, claim)
            if visit.story["outcome"] != "left":  # nobody is there to read or to send
                seconds = self.limits.drain_seconds if visit.unread else _FAREWELL
                wire.part(visit.sock, seconds=seconds, most=min(visit.unread, wire.MOST) + (1 << 16))
        finally:
            with contextlib.suppress(OSError):
                visit.sock.close()
            with self.lock:
                self.visits.pop(visit.id, None)
            self.free.release()
            visit.story["milliseconds"] = {name: round(1e3 * value, 3) for name, value in visit.marks.items()}
            self.metrics.count(visit)
            level = {"ok": logging.INFO, "left": logging.INFO}.get(visit.story["outcome"], logging.WARNING)
            log.log(level, "request", extra={"story": {"id": visit.id, "peer": visit.peer, **visit.story}})

    def _converse(self, visit: _Visit, full: bool, claim: Claim) -> None:
        """One request and its reply; whatever fails becomes an error reply, if anybody is left to read it."""
        try:
            pieces = self._reply(visit, full, claim)
        except (Cancelled, wire.Left):
            visit.story |= {"outcome": "left", "cause": "the client left"}
            return
        except Refused as error:
            pieces = self._failure(visit, "refused", error.cause, str(error))
        except wire.WireError as error:
            pieces = self._failure(visit, "refused", "malformed", str(error))
        except I2IError as error:
            pieces = self._failure(visit, "error", "refused by the model", str(error))
        except MemoryError:
            pieces = self._failure(visit, "error", "memory", "not enough memory for this picture")
        except BaseException as error:  # whatever a model raises; SystemExit would end this thread alone
            text = f"{type(error).__name__}: {error} (request {visit.id})"
            log.error("model", exc_info=True, extra={"story": {"id": visit.id}})
            pieces = self._failure(visit, "error", type(error).__name__, text)
        size = sum(map(len, pieces))
        claim.force(size)
        pace = wire.Pace.of(size, stall=self.limits.stall_seconds, rate=self.limits.bytes_a_second)
        try:
            wire.send(visit.sock, pieces, pace)
        except (wire.Left, TimeoutError, OSError):
            visit.story |= {"outcome": "left", "cause": "the client did not take the reply"}
        visit.mark("sent")

    def _failure(self, visit: _Visit, outcome: str, cause: str, text: str) -> list[wire.Buffer]:
        visit.story |= {"outcome": outcome, "cause": cause, "told": text[:1000]}
        return wire.error_response(text)

    def _reply(self, visit: _Visit, full: bool, claim: Claim) -> list[wire.Buffer]:
        limits = self.limits
        with contextlib.suppress(OSError):  # it may have left already
            visit.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if full:
            visit.unread = limits.message_bytes
            raise Refused("connections", "server", expected=f"at most {limits.connections} clients at once", got="more")
        length = self._header(visit)
        visit.unread = length
        if length > limits.message_bytes:
            raise Refused("size", "message", expected=f"at most {limits.message_bytes} bytes", got=length)
        message = self._message(visit, length, claim)
        request = wire.read_request(message)
        if request.model is None:
            visit.story["kind"] = "info"
            return self.menu
        visit.story |= {"kind": "inference", "model": request.model.name[:100], "size": _size(request.images)}
        served = self.models.get(request.model.name)
        if served is None:
            known = " or ".join(self.models)
            raise Refused("model", "model", expected=known, got=repr(request.model.name[:100]))
        values = served.values(request.model)
        visit.story["options"] = values
        with (self.large if length > _SMALL else self.small).taken(visit.work):
            visit.mark("admitted")
            planes = served.run(request.images, values, visit.work)
        visit.mark("computed")
        visit.story |= {"patches": visit.work.patches, "network_ms": round(1e3 * visit.work.seconds, 3)}
        return wire.picture_response(planes)

    def _header(self, visit: _Visit) -> int:
        """The length that a client announces; whatever is no digit ends it at once."""
        digits, place = memoryview(bytearray(wire.HEADER)), 0
        pace = wire.Pace(self.limits.header_seconds, time.monotonic() + self.limits.header_seconds)
        visit.unread = self.limits.message_bytes  # who says something else may still be saying it
        while place < wire.HEADER and (not place or bytes(digits[:place]).isdigit()):
            try:
                pace.wait(visit.sock)
                got = visit.sock.recv_into(digits[place:])
            except TimeoutError:
                told = f"{place} in {self.limits.header_seconds:g} s"
                raise Refused("header time", "header", expected=f"{wire.HEADER} digits", got=told) from None
            except OSError:  # broken
                got = 0
            if not got and self.ending.is_set():
                raise Refused("ending", "server", expected="a request before it ends", got="none", remedy="Try again.")
            if not got:
                raise wire.Left
            place += got
        visit.heard = True
        visit.mark("header")
        length = wire.announced(digits[:place])
        if not length:
            remedy = "A client that cannot write 2 GiB or more sends this; make the picture smaller."
            raise wire.WireError("message", expected="at least 1 byte", got=0, remedy=remedy)
        return length

    def _message(self, visit: _Visit, length: int, claim: Claim) -> np.ndarray:
        """So many bytes, in memory that is asked for as they come."""
        limits = self.limits
        message = self.blocks.take(length)
        pace = wire.Pace.of(length, stall=limits.stall_seconds, rate=limits.bytes_a_second)
        try:
            wire.receive(visit.sock, memoryview(message), pace, grow=lambda n: self._grow(claim, n, pace))
        except TimeoutError:
            got = "a pause, or too few in that time"
            raise Refused("stall", "message", expected=f"{length} bytes", got=got) from None
        visit.unread = 0
        visit.mark("received")
        visit.story["bytes"] = length
        return message

    def _grow(self, claim: Claim, n: int, pace: wire.Pace) -> None:
        began = time.monotonic()
        try:
            claim.grow(n, seconds=6 * self.limits.stall_seconds)
        except TimeoutError:
            raise Refused("memory", "server", expected="memory for one more picture", got="none") from None
        pace.until += time.monotonic() - began  # the client could not help it

    # --- the end -----------------------------------------------------------------------------------------

    def stop(self, *, seconds: float | None = None) -> bool:
        """Take no more connections, finish the requests that have begun, and end.

        Args:
            seconds: Until those are cancelled; None waits for them.

        Returns:
            Whether all were finished.
        """
        self.ending.set()
        self.threads[0].join()  # nobody comes any more
        self.listener.close()
        with self.lock:
            silent = [visit for visit in self.visits.values() if not visit.heard]
        for visit in silent:  # nothing has been asked
            with contextlib.suppress(OSError):
                visit.sock.shutdown(socket.SHUT_RD)
        until = None if seconds is None else time.monotonic() + seconds
        while self.visits and (until is None or time.monotonic() < until):
            time.sleep(0.02)
        finished = not self.visits
        for visit in list(self.visits.values()):
            visit.work.cancel()
            with contextlib.suppress(OSError):
                visit.sock.shutdown(socket.SHUT_RDWR)
        self.workers.shutdown(wait=finished)
        self.threads[1].join(5)
        self.metrics.close()
        return finished

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop(seconds=0 if any(exception) else None)


def _numeric(host: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise I2IError("host", expected="a numeric IPv4 address such as 127.0.0.1", got=repr(host)) from None


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_ACCEPTED)
    except (OSError, OverflowError) as error:
        listener.close()
        got = getattr(error, "strerror", None) or str(error)
        raise I2IError(f"address {host}:{port}", expected="one that is free", got=got) from None
    listener.settimeout(_WATCH)
    return listener


def _gone(sock: socket.socket) -> bool:
    """Whether the other side has closed; what it still sends is read and forgotten, as far as it is here."""
    try:
        with selectors.DefaultSelector() as ready:
            ready.register(sock, selectors.EVENT_READ)
            for _ in range(16):
                if not ready.select(0):
                    return False
                if not sock.recv(65536):
                    return True
    except TimeoutError:
        return False
    except (OSError, ValueError):  # broken, or closed here
        return True
    return False


def _size(images: Sequence[np.ndarray]) -> str:
    return f"{images[0].shape[2]} x {images[0].shape[1]}" if images else "no image"


@contextlib.contextmanager
def signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; a second one ends the process at once. For the main thread.

    SIGHUP, which a closing terminal sends, is told in the log and nothing else.
    """
    told = threading.Event()

    def end(number: int, _) -> None:
        if told.is_set():
            os._exit(128 + number)
        log.info("ending", extra={"story": {"signal": signal.Signals(number).name}})
        told.set()

    def hang_up(number: int, _) -> None:
        log.info("passed over", extra={"story": {"signal": signal.Signals(number).name}})

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    if hung := getattr(signal, "SIGHUP", None):  # Windows has none
        before[hung] = signal.signal(hung, hang_up)
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def until_told(server: Server, told: threading.Event) -> bool:
    """Serve until the event of :func:`signals`, then finish what has begun.

    Returns:
        Whether all was finished.
    """
    while not told.wait(1.0):  # a wait without end would not let handlers run on every system
        pass
    return server.stop()


# --- log -------------------------------------------------------------------------------------------------


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, event, and the fields of its story."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "story", {}),
        }
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=True, default=str)


@contextlib.contextmanager
def logging_to(stream) -> Iterator[None]:
    """The server's log as JSON lines on a stream, for the length of the block."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
