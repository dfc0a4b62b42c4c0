"""What the stand-in notes and writes: calls.jsonl in the working folder, quant_info.json as AMD's has it."""

import json
import os

import torch

from i2ilib.quant import with_positions
from i2ilib.quant.interchange import describe

AMD = {"conv_transpose2d": "conv_transpose_2d", "max_pool2d": "maxpool", "add": "elemwise_add"}


def note(call, **about):
    with open("calls.jsonl", "a") as file:
        file.write(json.dumps({"call": call, **about}) + "\n")


def names(document):
    """(section, AMD's name, our name, position) of every rounded tensor."""
    for index, node in enumerate(document["nodes"]):
        for about in node["parameters"].values():
            yield "param", f"Network::{about['name']}", about["name"], about["fix_position"]
        if node["fix_position"] is not None:
            kind = AMD.get(node["operator"], node["operator"])
            yield "output", f"Network::nndct_{kind}_{index}", node["name"], node["fix_position"]


def write_info(quantised, folder):
    info = {"param": {}, "output": {}, "input": {}, "version": "0.0-standin"}
    for section, name, _, position in names(describe(quantised)):
        info[section][name] = [[8, position]]
    with open(os.path.join(folder, "quant_info.json"), "w") as file:
        json.dump(info, file)


def read_info(model, example, quantised, folder):
    """``model`` with the positions of the folder; ``quantised`` lends its names."""
    with open(os.path.join(folder, "quant_info.json")) as file:
        info = json.load(file)
    found = {mine: info[section][name][0][1] for section, name, mine, _ in names(describe(quantised))}
    return with_positions(model, found, torch.as_tensor(example))
