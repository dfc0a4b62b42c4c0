"""A stand-in with the part of AMD's xir that we call. Its files are protobuf, laid out as an xmodel; a network of ours,
and what its input and output are, travel in fields of their own.

A file that is no xmodel ends the process, as AMD's check does.
"""

import os
import sys

__version__ = "0.0-standin"
NETWORK = 1000  # field
INTEGER, UNSIGNED, STRING = 5, 8, 11  # fields of an attribute's value


# --- protobuf ----------------------------------------------------------------------------------------


def varint(value):
    out = bytearray()
    value &= 2**64 - 1
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def attribute(number, name, kind, value):
    return field(number, field(1, name) + field(2, field(kind, value)))


def parse(data):
    def take():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    at, found = 0, {}
    while at < len(data):
        key = take()
        value = take()
        if key & 7 == 2:
            value, at = data[at : at + value], at + value
        found.setdefault(key >> 3, []).append(value)
    return found


def export(path, name, operators, network, ends):
    """An xmodel as the quantiser writes it.

    ``operators``: (name, type, fix position or None); ``network``: a file of i2ilib.quant; ``ends``: (C, H, W) and fix
    position of what the DPU reads and writes.
    """
    text = field(1, name)
    for own, kind, fp in operators:
        attributes = attribute(3, "fix_point", INTEGER, fp) if fp is not None else b""
        text += field(5, field(1, own) + field(2, kind) + attributes)
    text += field(10, field(1, "root") + b"".join(field(3, own) for own, _, _ in operators))
    with open(path, "wb") as file:
        file.write(text + field(NETWORK, network) + field(1001, repr(ends[0])) + field(1002, repr(ends[1])))


# --- AMD's interface -----------------------------------------------------------------------------------


class Op:
    def __init__(self, name, kind):
        self.name, self.kind = name, kind

    def get_name(self):
        return self.name

    def get_type(self):
        return self.kind


class Subgraph:
    def __init__(self, data, kinds, network):
        parts = parse(data)
        self.network, self.kinds = network, kinds
        self.name = parts[1][0].decode()
        self.ops = [name.decode() for name in parts.get(3, [])]
        self.children = [Subgraph(child, kinds, network) for child in parts.get(4, [])]
        self.attributes = {}
        for entry in parts.get(2, []):
            key, value = (parse(entry)[n][0] for n in (1, 2))
            (content,) = next(iter(parse(value).values()))
            self.attributes[key.decode()] = content if isinstance(content, int) else content.decode()

    @property
    def is_leaf(self):
        return not self.children

    def get_name(self):
        return self.name

    def get_ops(self):
        return {Op(name, self.kinds[name]) for name in self.ops}

    def has_attr(self, name):
        return name in self.attributes

    def get_attr(self, name):
        return self.attributes[name]

    def toposort_child_subgraph(self):
        return list(self.children)


class Graph:
    @staticmethod
    def deserialize(path):
        try:
            with open(path, "rb") as file:
                parts = parse(file.read())
            kinds = {parse(op)[1][0].decode(): parse(op)[2][0].decode() for op in parts[5]}
            root = Subgraph(parts[10][0], kinds, parts[NETWORK][0])
        except Exception as error:
            print(f"F0000 graph.cpp] Check failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(134)
        graph = Graph()
        graph.root = root
        return graph

    def get_root_subgraph(self):
        return self.root
