"""Runs inside AMD's Vitis AI container: ``python nndct_worker.py FOLDER``, with nothing of this project around it.

Python 3.8, PyTorch 1.12 or 1.13, NumPy and pytorch_nndct; so this file imports nothing else and uses no newer syntax.

FOLDER holds, written by ``i2ilib.quant.nndct.prepare``:

graph.json   the float network, by the words of ``i2ilib.quant.interchange``
job.json     ``mode`` "ptq" or "qat" and its options
tensors.npz  ``parameter/<name>``, ``batch/<i>``, ``target/<i>`` (QAT) and ``test``, float32

and gets, in this order: quantised/ (what AMD's tools write), output.npz (``output``; after QAT ``parameter/<name>``,
trained), result.json (versions, fix positions as AMD's quant_info.json has them, seconds).
"""

import json
import os
import platform
import sys
import time

import numpy as np
import torch
from torch import nn

DEVICE = torch.device("cpu")
HOST = ("tanh", "sigmoid", "clamp", "bicubic")  # float, behind DeQuantStub
OUT = "quantised"


class Clamp(nn.Module):
    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x):
        return torch.clamp(x, self.low, self.high)


class Network(nn.Module):
    """The network of graph.json from PyTorch's own modules, convolutions and BatchNorm under their own names.

    Modules are looked up at every call, since training replaces them in a copy of the network. With ``trainable`` it is
    the form that QatProcessor demands: stubs around the quantised part, every operator in it a module.
    """

    def __init__(self, graph, arrays, trainable=False):
        super().__init__()
        self.trainable, self.keys, self.plan = trainable, {}, []
        for index, node in enumerate(graph["nodes"]):
            weight = node["parameters"].get("weight", {}).get("name", "")
            owner, _, leaf = weight.rpartition(".")
            path = owner if owner and leaf == "weight" else f"n{index}_{node['operator']}"
            if path not in [entry[1] for entry in self.plan]:  # else a module called twice
                self.put(path, self.make(node))
            for role, about in node["parameters"].items():
                self.keys[about["name"]] = path + "." + role
            self.plan.append((node["name"], path, node["operator"], node["inputs"], node["attributes"]))
        state = {key: torch.from_numpy(arrays["parameter/" + name]) for name, key in self.keys.items()}
        missing, strange = self.load_state_dict(state, strict=False)
        if strange or [key for key in missing if not key.endswith("num_batches_tracked")]:
            raise SystemExit(f"graph.json and tensors.npz differ: {missing} {strange}")
        self.result = graph["output"]["name"]
        if trainable:
            from pytorch_nndct.nn import DeQuantStub, QuantStub

            self.quant_stub, self.dequant_stub = QuantStub(), DeQuantStub()

    def put(self, path, module):
        owner = self
        *parents, leaf = path.split(".")
        for part in parents:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.add_module(leaf, module)

    def make(self, node):
        kind, a = node["operator"], node["attributes"]
        shape = node["parameters"].get("weight", {}).get("shape")
        bias = "bias" in node["parameters"]
        if kind == "conv2d":
            settings = a["stride"], a["padding"], a["dilation"], a["groups"], bias
            return nn.Conv2d(shape[1] * a["groups"], shape[0], shape[2:], *settings)
        if kind == "conv_transpose2d":
            settings = a["stride"], a["padding"], a["output_padding"], a["groups"], bias, a["dilation"]
            return nn.ConvTranspose2d(shape[0], shape[1] * a["groups"], shape[2:], *settings)
        if kind == "batch_norm":
            return nn.BatchNorm2d(node["shape"][0], a["eps"], a["momentum"], affine=shape is not None)
        if kind in ("add", "concat", "pad", "nearest", "bilinear") and self.trainable:
            from pytorch_nndct.nn.modules import functional as amd

            kinds = {"add": amd.Add, "concat": amd.Cat, "pad": amd.Pad}
            return kinds.get(kind, amd.Interpolate)()
        if kind in ("nearest", "bilinear", "bicubic"):
            scale = tuple(a["scales"]) if a["scales"] else None
            return nn.Upsample(a["size"], scale, kind, a.get("align_corners"))
        modules = {
            **dict.fromkeys(("input", "add", "concat"), nn.Identity),  # never called: PTQ takes torch.cat and +
            "relu": nn.ReLU,
            "relu6": nn.ReLU6,
            "tanh": nn.Tanh,
            "sigmoid": nn.Sigmoid,
            "leaky_relu": lambda: nn.LeakyReLU(a["slope"]),
            "pixel_shuffle": lambda: nn.PixelShuffle(a["factor"]),
            "clamp": lambda: Clamp(a["min"], a["max"]),
            "pad": lambda: nn.ConstantPad2d(a["padding"], a["value"]),
            "max_pool2d": lambda: nn.MaxPool2d(
                a["kernel"], a["stride"], a["padding"], a["dilation"], ceil_mode=a["ceil_mode"]
            ),
            "avg_pool2d": lambda: nn.AvgPool2d(
                a["kernel"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"], a["divisor"]
            ),
        }
        return modules[kind]()

    def call(self, path, kind, x, a):
        module = self.get_submodule(path)
        if kind == "concat":
            return module(x, dim=a["axis"]) if self.trainable else torch.cat(x, a["axis"])
        if kind == "add":
            return module(*x) if self.trainable else x[0] + x[1]
        if kind == "pad" and self.trainable:
            return module(x[0], a["padding"], "constant", a["value"])
        if kind in ("nearest", "bilinear") and self.trainable:
            return module(x[0], a["size"], a["scales"], kind, a.get("align_corners"))
        return module(*x)

    def forward(self, x):
        values, dequantised = {}, False
        for name, path, kind, inputs, attributes in self.plan:
            if kind == "input":
                values[name] = self.quant_stub(x) if self.trainable else x
                continue
            tensors = [values[each] for each in inputs]
            if self.trainable and kind in HOST and not dequantised:
                tensors, dequantised = [self.dequant_stub(tensors[0])], True
            values[name] = self.call(path, kind, tensors, attributes)
        y = values[self.result]
        return self.dequant_stub(y) if self.trainable and not dequantised else y


def ptq(graph, arrays, batches, job):
    """Calibrate, then run and export; BatchNorm is folded already."""
    from pytorch_nndct.apis import torch_quantizer

    config = {"include_cle": job["equalise"], "include_bias_corr": job["correct_bias"], "target_device": "DPU"}
    config["quantizable_data_type"] = ["input", "weights", "bias", "activation"]
    with open("quant_config.json", "w") as file:
        json.dump(config, file)
    common = {"output_dir": OUT, "device": DEVICE, "quant_config_file": os.path.abspath("quant_config.json")}
    test = torch.from_numpy(arrays["test"])
    with torch.no_grad():
        quantizer = torch_quantizer("calib", Network(graph, arrays).eval(), (batches[0],), **common)
        for batch in batches:
            quantizer.quant_model(batch)
        quantizer.export_quant_config()
        quantizer = torch_quantizer("test", Network(graph, arrays).eval(), (test,), **common)
        output = quantizer.quant_model(test)
    return output, {}, [], lambda: quantizer.export_xmodel(OUT, deploy_check=False)


def qat(graph, arrays, batches, job):
    """Train with BatchNorm in place, its statistics frozen for the second half; then deploy and export."""
    from pytorch_nndct import QatProcessor

    network = Network(graph, arrays, trainable=True)
    processor = QatProcessor(network, (batches[0],), bitwidth=8)
    model = processor.trainable_model()
    model.train()
    groups = [
        {"params": model.quantizer_parameters(), "lr": job["quantizer_lr"]},
        {"params": model.non_quantizer_parameters(), "lr": job["lr"]},
    ]
    optimiser, losses = torch.optim.Adam(groups), []
    for step in range(job["steps"]):
        if step == job["steps"] // 2:
            model.freeze_bn_stats()
        target = torch.from_numpy(arrays[f"target/{step % len(batches)}"])
        loss = nn.functional.l1_loss(model(batches[step % len(batches)]), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    model.eval()
    processor.to_deployable(model, OUT)
    deployable = processor.deployable_model(OUT, used_for_xmodel=True)
    with torch.no_grad():
        output = deployable(torch.from_numpy(arrays["test"]))
    state = torch.load(os.path.join(OUT, "deployable.pth"), map_location=DEVICE)
    trained = {"parameter/" + name: state[key].numpy() for name, key in network.keys.items()}
    return output, trained, losses, lambda: processor.export_xmodel(OUT)


def main(folder):
    os.chdir(folder)  # AMD's tools also write into the working folder
    with open("graph.json") as file:
        graph = json.load(file)
    with open("job.json") as file:
        job = json.load(file)
    arrays = np.load("tensors.npz")
    batches = [torch.from_numpy(arrays[f"batch/{i}"]) for i in range(job["batches"])]
    import pytorch_nndct

    os.makedirs(OUT, exist_ok=True)
    started = time.time()
    output, trained, losses, export = {"ptq": ptq, "qat": qat}[job["mode"]](graph, arrays, batches, job)
    seconds, error = time.time() - started, None
    try:
        export()
    except (Exception, SystemExit) as failure:  # without the XIR library; the fix positions are there all the same
        error = f"{type(failure).__name__}: {failure}"
    with open(os.path.join(OUT, "quant_info.json")) as file:
        info = json.load(file)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    versions["pytorch_nndct"] = str(getattr(pytorch_nndct, "__version__", info.get("version", "unknown")))
    np.savez("output.npz", output=output.numpy(), **trained)
    result = {"versions": versions, "quant_info": info, "seconds": seconds, "losses": losses, "export_error": error}
    with open("result.json.part", "w") as file:
        json.dump(result, file)
    os.replace("result.json.part", "result.json")


if __name__ == "__main__":
    main(sys.argv[1])
