"""What AMD's quantiser would export of a network of ours, for the stand-ins of its compiler and runtime."""

import tempfile
from pathlib import Path

from standins.xir import export

from i2ilib.quant.interchange import describe

TYPES = {"input": "data", "conv_transpose2d": "transposed-conv2d", "leaky_relu": "leaky-relu"}


def write_xmodel(path, quantised, name="net"):
    """Write ``quantised`` as an xmodel with a network of ours inside; the path."""
    nodes = describe(quantised)["nodes"]
    operators = []
    for node in nodes:
        own = f"{name}__{node['name']}"
        operators.append((own, TYPES.get(node["operator"], node["operator"]), None))
        if node["fix_position"] is not None:
            operators.append((own + "_fix", "fix", node["fix_position"]))
    rounded = [node for node in nodes if node["fix_position"] is not None]
    ends = [(tuple(node["shape"]), node["fix_position"]) for node in (rounded[0], rounded[-1])]
    with tempfile.TemporaryDirectory() as folder:
        network = quantised.save(Path(folder) / "network.safetensors").read_bytes()
    export(path, name, operators, network, ends)
    return Path(path)
