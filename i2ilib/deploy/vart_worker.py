"""Runs a compiled xmodel with AMD's VART: ``python -c SOURCE XMODEL JOBS``, with nothing of this project around it.

AMD's containers have Python 3.6 to 3.8; so this file imports NumPy, vart and xir only and uses no newer syntax. VART's
``wait`` keeps Python's lock and knows no time limit, and a fatal error of VART ends its process: so it has a process of
its own, and no threads. ``i2ilib.deploy.vart`` is the other end; they speak through standard input and output:

1. the worker tells versions and subgraphs (one line of JSON);
2. it is told which subgraph to run (one line: the index; none: end);
3. it tells the subgraph's tensors (one line of JSON);
4. jobs come: one byte (1: the answer is waited for) and the input tensor, int8;
5. every job is answered, in the order in which they came: status (int32), length (uint32), and the output tensors,
   int8, one after the other; with a status other than 0 the error as text.

``python -c SOURCE`` alone tells the versions and ends.
"""

import json
import os
import platform
import select
import struct
import sys
from collections import deque

import numpy as np

PATIENCE = 0.002  # seconds for the next job to arrive, before the oldest is waited for


def versions():
    import vart
    import xir

    if not hasattr(xir, "Graph"):
        raise ImportError("the module named xir here is not AMD's")
    found = {m.__name__: str(getattr(m, "__version__", "unknown")) for m in (vart, xir)}
    found["python"] = platform.python_version()
    return found


def attribute(thing, name):
    return thing.get_attr(name) if thing.has_attr(name) else None


def told_subgraph(subgraph):
    operators = [(op.get_name(), op.get_type()) for op in subgraph.get_ops()]
    device, fingerprint = attribute(subgraph, "device"), attribute(subgraph, "dpu_fingerprint")
    about = {"name": subgraph.get_name(), "device": (device or "").upper(), "operators": sorted(operators)}
    about["fingerprint"] = None if fingerprint is None else int(fingerprint)
    return about


def told_tensor(tensor):
    about = {"name": tensor.name, "dims": [int(d) for d in tensor.dims], "dtype": str(tensor.dtype)}
    about["fix_point"] = int(tensor.get_attr("fix_point"))
    return about


def read_exactly(source, size):
    """Bytes that may be written to, or None at the end."""
    data, got = bytearray(size), 0
    while got < size:
        count = source.readinto(memoryview(data)[got:])
        if not count:
            return None
        got += count
    return data


class Job:
    """One run on the card. It owns its arrays until it was waited for: VART reads and writes them in the meantime."""

    def __init__(self, runner, inputs, outputs):
        self.inputs, self.outputs = inputs, outputs
        self.ticket = runner.execute_async(self.inputs, self.outputs)  # (id, status)

    def answer(self, runner):
        if self.ticket[1] != 0:
            return self.ticket[1], b"execute_async refused the job"
        status = runner.wait(self.ticket)
        if status != 0:
            return status, b"wait ended with this status"
        return 0, b"".join(array.tobytes() for array in self.outputs)


def serve(runner, source, sink, limit):
    """Answer jobs until their end, up to ``limit`` in flight before the first is waited for: the engines overlap."""
    inputs, outputs = runner.get_input_tensors(), runner.get_output_tensors()
    shape = tuple(inputs[0].dims)
    size = int(np.prod(shape))
    flying, eager, ended = deque(), False, False
    while flying or not ended:
        room = not ended and len(flying) < limit
        if room and (not flying or select.select([source], [], [], 0 if eager else PATIENCE)[0]):
            flag = read_exactly(source, 1)
            data = read_exactly(source, size) if flag else None
            if data is None:
                ended = True
                continue
            eager = bool(flag[0])
            array = np.frombuffer(data, np.int8).reshape(shape)
            flying.append(Job(runner, [array], [np.zeros(tuple(t.dims), np.int8) for t in outputs]))
            continue
        status, payload = flying.popleft().answer(runner)
        sink.write(struct.pack("<iI", status, len(payload)) + payload)
        sink.flush()


def main(arguments):
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what AMD's libraries print goes to the log

    def tell(data):
        sink.write(json.dumps(data).encode() + b"\n")
        sink.flush()

    found = versions()
    if not arguments:
        return tell(found)
    import vart
    import xir

    graph = xir.Graph.deserialize(arguments[0])
    root = graph.get_root_subgraph()
    subgraphs = [] if root.is_leaf else root.toposort_child_subgraph()
    tell({"versions": found, "subgraphs": [told_subgraph(s) for s in subgraphs]})
    source = open(0, "rb", buffering=0)  # noqa: SIM115 (select looks at the descriptor)
    line = b""
    while not line.endswith(b"\n"):
        byte = source.read(1)
        if not byte:
            return None
        line += byte
    runner = vart.Runner.create_runner(subgraphs[int(line)], "run")
    tensors = {"inputs": runner.get_input_tensors(), "outputs": runner.get_output_tensors()}
    tell({side: [told_tensor(t) for t in each] for side, each in tensors.items()})
    serve(runner, source, sink, int(arguments[1]))
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
