"""No tests: the models behind the captured exchanges, and servers that tests start, also as programs of their own."""

import contextlib
import sys
import time

import numpy as np

from i2ilib.errors import I2IError
from i2ilib.serve.menu import Option, Served
from i2ilib.serve.server import Limits, Server


def half(images, values, work):
    return np.float32(values["gain"]) * images[0]


def box_blur(images, values, work):
    """Edge samples repeated outwards; summed in double precision row by row of the square, divided once."""
    radius, (_, height, width) = values["radius"], images[0].shape
    padded = np.pad(images[0].astype(np.float64), ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    total = np.zeros(images[0].shape)
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            total += padded[:, dy : dy + height, dx : dx + width]
    return (total / (2 * radius + 1) ** 2).astype(np.float32)


def every_option(images, values, work):
    if values["tag"] == "fail":
        raise I2IError("the tag asks for a failure")
    out = np.roll(images[0], values["row_shift"], axis=1) * np.float32(values["gain"])
    return (-out if values["flip_sign"] else out) + images[1]


CAPTURED = [
    Served("box_blur", "Box Blur", box_blur, options=(Option("radius", 1, low=0, high=50),)),
    Served(
        "every_option",
        "Every Option",
        every_option,
        inputs=(("plate", 3), ("matte", 1)),
        outputs=(("graded", 3),),
        options=(
            Option("flip_sign", False),
            Option("row_shift", 0),
            Option("gain", 1.0),
            Option("tag", "none"),
            Option("report", False, button=True),
        ),
    ),
    Served("half", "Half", half, options=(Option("gain", 0.5),)),
]


def same(images, values, work):
    return images[0]


SAME = Served("same", "Same", same)
QUICK = Limits(header_seconds=1.0, stall_seconds=2.0, drain_seconds=4.0)


@contextlib.contextmanager
def server_of(*models, limits=QUICK, **how):
    with Server(models or CAPTURED, port=0, limits=limits, **how) as server:
        yield server


def address(server, **how):
    from i2ilib.serve.client import Address

    return Address(server.host, server.port, **how)


def slow(images, values, work):
    """The picture, after so many seconds."""
    end = time.monotonic() + values["seconds"]
    while time.monotonic() < end:
        work.check()
        time.sleep(0.005)
    return images[0]


SLOW = Served("slow", "Slow", slow, options=(Option("seconds", 0.05, low=0, high=60),))


if __name__ == "__main__":  # python serving.py PORT: serve until a signal
    from i2ilib.serve.server import logging_to, signals, until_told

    with logging_to(sys.stderr), signals() as told:
        running = Server([SAME, SLOW], port=int(sys.argv[1]))
        print(running.port, flush=True)
        sys.exit(0 if until_told(running, told) else 1)
