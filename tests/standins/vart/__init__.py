"""A stand-in with VART's interface, the exact integers of i2ilib.quant inside, and VART's traps.

``execute_async`` keeps the arrays and computes nothing; the first ``wait`` runs all that is in flight, the last one
first. So an array that is used again too early, or an answer that is taken for another's, shows. Floats are truncated
and wrapped, strides ignored, and what VART checks with a fatal error ends the process.

By the environment: STANDIN_CARD (fingerprint), STANDIN_ENGINES, STANDIN_OUTPUTS ("2": another output before the real
one), STANDIN_INPUTS, STANDIN_TYPE, STANDIN_FAULT (submit, wait, raise, hang, slow, crash, idle; nothing is computed
then), STANDIN_CALLS (a file to note calls in).
"""

import os
import sys
import tempfile
import time

__version__ = "0.0-standin"


def _fatal(text):
    print(f"F0000 dpu_runner_base_imp.cpp] {text}", file=sys.stderr, flush=True)
    os._exit(134)


def _note(text):
    if os.environ.get("STANDIN_CALLS"):
        with open(os.environ["STANDIN_CALLS"], "a") as file:
            file.write(text + "\n")


class Tensor:
    def __init__(self, name, dims, fix_point):
        self.name, self.dims, self.dtype = name, dims, os.environ.get("STANDIN_TYPE", "xint8")
        self.attributes = {"fix_point": fix_point}

    def has_attr(self, name):
        return name in self.attributes

    def get_attr(self, name):
        return self.attributes[name]


class Runner:
    @staticmethod
    def create_runner(subgraph, mode):
        model, card = subgraph.get_attr("dpu_fingerprint"), int(os.environ.get("STANDIN_CARD", "0x20200000010002a"), 16)
        print("banner of a library on standard output")
        if mode != "run" or model != card:
            _fatal(f"CHECK fingerprint fail ! model_fingerprint {model:#x} dpu_fingerprint {card:#x}")
        return Runner(subgraph)

    def __init__(self, subgraph):
        engines = int(os.environ.get("STANDIN_ENGINES", "3"))
        dims = {side: eval(subgraph.get_attr(side)) for side in ("input", "output")}
        self.network, self.pending, self.done, self.count = subgraph.network, {}, {}, 0
        (c, h, w), fp = dims["input"]
        self.inputs = [Tensor("net__input_0_fix", [engines, h, w, c], fp)] * int(os.environ.get("STANDIN_INPUTS", "1"))
        (c, h, w), fp = dims["output"]
        self.outputs = [Tensor("net__last_fix", [engines, h, w, c], fp)]
        if os.environ.get("STANDIN_OUTPUTS") == "2":
            self.outputs.insert(0, Tensor("net__another_fix", [engines, 2, 2, 5], 3))

    def get_input_tensors(self):
        return self.inputs

    def get_output_tensors(self):
        return self.outputs

    def execute_async(self, inputs, outputs):
        for arrays, tensors in ((inputs, self.inputs), (outputs, self.outputs)):
            if len(arrays) != len(tensors):
                _fatal("Check failed: number of tensor buffers")
            for array, tensor in zip(arrays, tensors, strict=True):
                view = memoryview(array)
                if view.readonly:
                    raise BufferError("array is not writable")  # as VART's binding asks for
                if view.format not in ("b", "f"):
                    _fatal("Check failed: unsupported data type")
                if array.size < tensor.dims[0] * tensor.dims[1] * tensor.dims[2] * tensor.dims[3]:
                    _fatal("Segmentation fault")
        self.count += 1
        _note(f"async {self.count}")
        if os.environ.get("STANDIN_FAULT") == "submit" and self.count == 2:
            return self.count, -1
        self.pending[self.count] = inputs, outputs
        return self.count, 0

    def wait(self, ticket):
        number, _ = ticket
        fault = os.environ.get("STANDIN_FAULT")
        _note(f"wait {number}")
        if fault == "hang":
            time.sleep(600)
        if fault == "slow":
            time.sleep(0.4)
        if fault == "crash":
            _fatal("CU timeout")
        if fault == "raise":
            raise RuntimeError("bad ticket")
        while self.pending:
            last = max(self.pending)
            arrays = self.pending.pop(last)
            if not fault:
                self._execute(*arrays)
            self.done[last] = 7 if fault == "wait" and last == 2 else 0
        return self.done.pop(number)

    def _execute(self, inputs, outputs):
        import numpy as np
        import torch

        core = self._core()
        told, made = self.inputs[0], self.outputs[-1]
        array = inputs[0]
        if array.dtype == np.float32:  # VART's own conversion
            array = (array * 2.0 ** told.get_attr("fix_point")).astype(np.int32).astype(np.int8)
        q = np.ravel(array, order="K")[: np.prod(told.dims)].reshape(told.dims)  # strides are ignored
        x = torch.from_numpy(q.copy()).permute(0, 3, 1, 2).float() * 2.0 ** -told.get_attr("fix_point")
        y = core.integer(x) * 2.0 ** made.get_attr("fix_point")
        outputs[-1][...] = y.permute(0, 2, 3, 1).to(torch.int8).numpy()
        for other in outputs[:-1]:
            other[...] = 77

    def _core(self):
        if isinstance(self.network, bytes):
            import torch

            from i2ilib.quant import load

            torch.set_num_threads(1)
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "network.safetensors")
                with open(path, "wb") as file:
                    file.write(self.network)
                self.network = load(path).on_device()
        return self.network
