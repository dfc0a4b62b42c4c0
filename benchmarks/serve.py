"""The server of Nuke's protocol: what its wire costs, what a frame keeps of the Runner's speed, what a small one waits.

    python benchmarks/serve.py [--json] [--n 7] [--height 2160] [--width 3840] [--frames 3] [--clients 3] [--filters 64]
                               [--batch 8] [--backend NAME] [--soak 0]

Three measurements, with server and clients in processes of their own:

- wire: round trips of a picture of four planes through a model that changes nothing, in turns with a plain threaded
  echo, which reads the message into one buffer and sends its samples back from there. The client reads pieces of a
  kilobyte, as Nuke's does. Foundry's server took 2.3 (minimum) and 3.6 (median) times as long as such an echo; half of
  that is the limit.
- matting: frames from several clients through the pix2pix generator, against the same Runner alone with batches in
  flight; the weights are random, on which speed does not depend.
- fairness: a picture of 256 x 256 alone, and beside those frames.

``--soak N`` sends N mixed requests instead, with clients killed at random: what was wrong, and how memory went.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import socket
import statistics
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
from _common import arguments, quantised_generator, tell

from i2ilib.serve import conformance, wire

PEER = {"minimum": 2448 / 1061, "median": 4195 / 1164}  # Foundry's server over a plain threaded one, measured once
LIMITS = {name: value / 2 for name, value in PEER.items()}
SHARE = 0.85  # of the Runner's patches a second
PATCH = 256


# --- servers in processes of their own ---------------------------------------------------------------


@contextlib.contextmanager
def process(target: Callable, *given: object) -> Iterator[tuple[object, object, int]]:
    """A process that tells one thing when it is ready, and ends with the block: what it told, its pipe, its number."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=target, args=(theirs, *given), daemon=True)
    child.start()
    theirs.close()
    try:
        yield ours.recv(), ours, child.pid
    finally:
        with contextlib.suppress(OSError):
            ours.send("end")
        child.join(20)
        if child.is_alive():
            child.kill()


def echo(pipe, shape: tuple[int, int, int]) -> None:
    """The yardstick: a thread a connection, one buffer, and its samples sent back from where they lie."""
    head, samples, tail = wire.picture_response(np.zeros(shape, np.float32))
    size = len(samples)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    pipe.send(listener.getsockname()[1])

    def answer(sock: socket.socket) -> None:
        with sock:
            message = bytearray(int(sock.recv(wire.HEADER, socket.MSG_WAITALL)))
            view, place = memoryview(message), 0
            while place < len(message):
                place += sock.recv_into(view[place:])
            for piece in (head, view[-size:], tail):  # a picture's samples are the last of a request
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)

    def work() -> None:
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=work, daemon=True).start()
    pipe.recv()


def identity(pipe) -> None:
    """Our server, with a model that changes nothing."""
    from i2ilib.serve.menu import Option, Served
    from i2ilib.serve.server import Server

    def gain(images, values, work):
        return images[0] if values["gain"] == 1 else np.float32(values["gain"]) * images[0]

    with Server([Served("same", "Same", gain, options=(Option("gain", 1.0),))], port=0) as server:
        pipe.send(server.port)
        pipe.recv()


def matting_server(pipe, filters: int, batch: int, backend: str) -> None:
    """Our server with the generator; told "runner", it measures the Runner alone."""
    import torch

    from i2ilib.deploy import fastest_exact, make_runner, verify
    from i2ilib.serve.networks import matting, precision_of
    from i2ilib.serve.scheduler import Pool
    from i2ilib.serve.server import Server

    backend = backend or fastest_exact()[0]
    example = torch.rand(batch, 3, PATCH, PATCH) * 2 - 1
    model, quantised = quantised_generator(filters, example)
    with contextlib.ExitStack() as stack:
        runner, single = (stack.enter_context(make_runner(backend, model, example, quantised=quantised)) for _ in "ab")
        runner.prepare(tuple(example.shape))
        single.prepare((1, *example.shape[1:]))
        precision = precision_of(backend)
        with torch.inference_mode():
            right = quantised.integer(example[:2]) if precision == "int8" else model(example[:2])
        apart = verify(runner, right, example[:2])
        if apart > (1e-6 if precision == "int8" else 0.1):  # tanh is the host's, and differs in its last bits
            raise SystemExit(f"{backend} is {apart:g} from what it should give")
        pool = stack.enter_context(Pool([runner], batch=batch, single=single))
        server = stack.enter_context(Server([matting("pix2pix", {precision: pool})], port=0))
        pipe.send((server.port, backend, apart))
        while (told := pipe.recv()) != "end":
            pipe.send(_alone(runner, example, told))


def _alone(runner, batch, patches: int) -> float:
    """Patches a second of a Runner with batches in flight."""
    runner.run(batch)
    began, waiting, count = time.perf_counter(), deque(), max(1, round(patches / len(batch)))
    for _ in range(count):
        waiting.append(runner.submit(batch))
        if len(waiting) > 3:
            waiting.popleft().result()
    while waiting:
        waiting.popleft().result()
    return count * len(batch) / (time.perf_counter() - began)


# --- measurements ----------------------------------------------------------------------------------------


def plate(channels: int, height: int, width: int) -> np.ndarray:
    """Numbers from 0 to 1 that compress badly."""
    return np.random.default_rng(0).random((channels, height, width), np.float32)


def once(port: int, sent: bytes) -> tuple[float, bytes]:
    """Seconds of one exchange, and what came back."""
    node = conformance.Node(port=port, seconds=600)
    began = time.perf_counter()
    with contextlib.closing(node.connect()) as sock:
        sock.sendall(sent)
        reply = conformance.until_end(sock)
    return time.perf_counter() - began, reply


def measure_wire(n: int, height: int, width: int) -> dict:
    """Round trips through our server and the echo, in turns."""
    image = plate(4, height, width)
    with process(identity) as (ours, _, _), process(echo, image.shape) as (plain, _, _):
        model = conformance.Node(port=ours).list_models()[0]
        sent = b"".join(wire.request(model, [image]))
        times: dict[str, list[float]] = {"ours": [], "echo": []}
        for turn in range(n + 1):
            replies = []
            for name, port in (("ours", ours), ("echo", plain)):
                seconds, reply = once(port, sent)
                times[name] += [1e3 * seconds] * (turn > 0)
                replies.append(reply)
            if replies[0] != replies[1] or not np.array_equal(wire.read_response(replies[0][12:])[1], image):
                raise SystemExit("the reply is not the picture that was sent")
    told = {name: {"minimum": min(t), "median": statistics.median(t)} for name, t in times.items()}
    ratios = {name: told["ours"][name] / told["echo"][name] for name in LIMITS}
    return {"ms": told, "ratio_to_echo": ratios, "limits": LIMITS, "foundry_to_echo": PEER, "n": n}


def stream(pipe, port: int, height: int, width: int, clients: int, frames: int) -> None:
    """Clients that send frame after frame; told "go", they begin, and tell the seconds of all."""
    image = plate(3, height, width)
    sent = b"".join(wire.request(conformance.Node(port=port).list_models()[0], [image]))
    pipe.send("ready")
    pipe.recv()
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as crowd:
        replies = list(crowd.map(lambda _: once(port, sent)[1], range(frames)))
    seconds = time.perf_counter() - began
    if any(reply != replies[0] or wire.read_response(reply[12:])[1] is None for reply in replies):
        raise SystemExit("frames differ, or failed")
    pipe.send(seconds)
    pipe.recv()


def measure_matting(options) -> tuple[dict, dict]:
    """Frames against the Runner alone before and after, and a small picture beside them."""
    from i2ilib.patches import Grid, nearest_multiple

    height, width, frames = options.height, options.width, options.frames
    patches = len(Grid(*nearest_multiple(height, width)))
    small = plate(3, PATCH, PATCH)
    with process(matting_server, options.filters, options.batch, options.backend) as ((port, backend, apart), pipe, _):
        sent = b"".join(wire.request(conformance.Node(port=port).list_models()[0], [small]))
        alone = sorted(once(port, sent)[0] for _ in range(options.n))
        rates, beside = [], []
        with process(stream, port, height, width, options.clients, frames) as (_, clients, _):
            pipe.send(patches)
            rates.append(pipe.recv())
            clients.send("go")
            time.sleep(0.5)
            while not clients.poll():
                beside.append(once(port, sent)[0])
                time.sleep(0.2)
            seconds = clients.recv()
            pipe.send(patches)
            rates.append(pipe.recv())
    runner, served = statistics.mean(rates), (frames * patches + len(beside)) / seconds
    matting = {
        "patches_per_s": served,
        "runner_patches_per_s": runner,
        "share": served / runner,
        "share_limit": SHARE,
        "frame_seconds": seconds * min(options.clients, frames) / frames,
        "frames": frames,
        "clients": options.clients,
        "patches_a_frame": patches,
        "backend": backend,
        "filters": options.filters,
        "max_difference": apart,
    }
    fairness = {
        "alone_ms": 1e3 * statistics.median(alone),
        "beside_ms": 1e3 * statistics.median(beside) if beside else None,
        "beside_worst_ms": 1e3 * max(beside) if beside else None,
        "n": len(beside),
        "behind_a_frame_ms": 1e3 * patches / runner,
    }
    return matting, fairness


def soak(count: int) -> dict:
    """Mixed requests, clients killed at random: wrong answers, and the server's memory along the way."""
    rng, wrong, memory = random.Random(0), [], []
    sizes = [(1, 1), (7, 5), (64, 64), (100, 333), (512, 300), (1080, 1920)]
    plates = {size: plate(3, *size) for size in sizes}
    with process(identity) as (port, _, number):
        model = conformance.Node(port=port).list_models()[0]
        watched = psutil.Process(number)

        def one(job: tuple[str, tuple[int, int], float]) -> None:
            kind, size, gain = job
            image = plates[size]
            sent = b"".join(wire.request(conformance.with_values(model, {"gain": gain}), [image]))
            if kind == "run":
                _, picture = wire.read_response(once(port, sent)[1][12:])
                if picture is None or not np.array_equal(picture, np.float32(gain) * image):
                    wrong.append(job)
            elif kind == "info":
                if len(conformance.Node(port=port).list_models()) != 1:
                    wrong.append(job)
            else:
                connected = contextlib.closing(conformance.Node(port=port).connect())
                with connected as sock, contextlib.suppress(ConnectionError):
                    if kind == "reset":
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.sendall({"half": sent[: len(sent) // 2], "garbage": rng.randbytes(50)}.get(kind, sent))
                    if kind == "kill":
                        sock.recv(10)

        kinds, weights = ["run"] * 6 + ["info", "kill", "half", "garbage", "reset"], [8, 8, 8, 4, 2, 1]
        began = time.perf_counter()
        with ThreadPoolExecutor(8) as crowd:
            for _ in range(20):
                jobs = [
                    (rng.choice(kinds), rng.choices(sizes, weights)[0], rng.choice([0.25, 1.0, 2.0]))
                    for _ in range(max(count // 20, 1))
                ]
                list(crowd.map(one, jobs))
                memory.append(watched.memory_info().rss / 2**20)
    return {
        "requests": 20 * max(count // 20, 1),
        "wrong": len(wrong),
        "memory_mib": [round(value) for value in memory],
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Measure, compare, print."""
    import i2ilib

    parser = arguments(
        __doc__,
        n=(7, "round trips of each; minimum and median are reported"),
        height=(2160, "of a frame"),
        width=(3840, "of a frame"),
        frames=(3, "that are matted"),
        clients=(3, "that send them"),
        filters=(64, "of the generator's first convolution"),
        batch=(8, "patches a batch"),
        soak=(0, "requests of a soak, in place of all else"),
    )
    parser.add_argument("--backend", default="", help="of the generator (default: the fastest with exact integers)")
    options = parser.parse_args()
    run = i2ilib.start(0)
    about = {"device": run.device_name, "threads": run.threads, "origin": "measured"}
    if options.soak:
        found = soak(options.soak)
        result = {"name": "serve_soak", "ours": found["wrong"], "peer": 0, "ratio": 0, "unit": "wrong", **about}
        lines = [f"{found['requests']} requests, {found['wrong']} wrong, memory in MiB: {found['memory_mib']}"]
        tell(options, result | found | {"n": found["requests"]}, lines)
        return
    on_wire = measure_wire(options.n, options.height, options.width)
    matting, fairness = measure_matting(options)
    ms = on_wire["ms"]
    result = {
        "name": "serve",
        "ours": ms["ours"]["median"],
        "peer": ms["echo"]["median"],
        "ratio": on_wire["ratio_to_echo"]["median"],
        "unit": "ms",
        "n": options.n,
        **about,
        "peer_name": "a plain threaded echo",
        "size": [options.height, options.width, 4],
        "wire": on_wire,
        "matting": matting,
        "fairness": fairness,
        "versions": run.describe()["versions"],
    }
    lines = [f"{options.width} x {options.height}; {run.device_name}, {run.threads} threads"]
    for name in LIMITS:
        ours, plain, ratio = ms["ours"][name], ms["echo"][name], on_wire["ratio_to_echo"][name]
        lines.append(
            f"  wire, {name} of {options.n}: {ours:.0f} ms, echo {plain:.0f} ms: {ratio:.2f} times, "
            f"at most {LIMITS[name]:.2f} asked for"
        )
    share = matting["share"]
    lines += [
        f"  matting ({matting['backend']}): {matting['patches_per_s']:.1f} patches/s, Runner alone "
        f"{matting['runner_patches_per_s']:.1f}: {share:.2f} of it, at least {SHARE} asked for",
        f"  256 x 256: {fairness['alone_ms']:.0f} ms alone, {fairness['beside_ms'] or 0:.0f} ms beside "
        f"{options.clients} such streams (worst {fairness['beside_worst_ms'] or 0:.0f}); behind one frame it would be "
        f"{fairness['behind_a_frame_ms']:.0f}",
    ]
    tell(options, result, lines)


if __name__ == "__main__":
    main()
