"""Quantisation-aware training, with AMD's demands on the network."""

import copy
import os

import torch
from torch.overrides import TorchFunctionMode

from i2ilib.quant import quantise

from . import record
from .nn import state

SUMS = (torch.cat, torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.nn.functional.interpolate)
HOST = (torch.tanh, torch.sigmoid, torch.clamp)


class Demands(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in SUMS and not state["module"]:
            raise RuntimeError(f"Quantized operation must be instance of torch.nn.Module: {func}")
        if func in HOST and state["quantised"]:
            raise RuntimeError(f"{func} before DeQuantStub")
        if func in (torch.conv2d, torch.conv_transpose2d) and not state["quantised"]:
            raise RuntimeError("Input is not quantized. Please use QuantStub/DeQuantStub")
        return func(*args, **(kwargs or {}))


class Trainable(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.log_threshold = network, torch.nn.Parameter(torch.zeros(3))

    def forward(self, x):
        record.note("train", batch=len(x), training=self.training)
        return self.network(x) + 0 * self.log_threshold.sum()

    def quantizer_parameters(self):
        return [self.log_threshold]

    def non_quantizer_parameters(self):
        return list(self.network.parameters())

    def freeze_bn_stats(self):
        record.note("freeze_bn_stats")


class QatProcessor:
    def __init__(self, model, inputs, bitwidth=8):
        record.note("QatProcessor", norms=sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()))
        self.model, self.inputs, calls = model, inputs, []
        hooks = [m.register_forward_hook(lambda m, *_: calls.append(m)) for m in model.modules()]
        with torch.no_grad(), Demands():
            copy.deepcopy(model).eval()(*inputs)  # the hooks come along
        for hook in hooks:
            hook.remove()
        if state["quantised"]:
            raise RuntimeError("no DeQuantStub at the end")
        if len(set(map(id, calls))) != len(calls):
            raise RuntimeError("module called multiple times")

    def trainable_model(self, calib_dir="", allow_reused_module=False):
        record.note("trainable_model")
        return Trainable(copy.deepcopy(self.model))

    def to_deployable(self, trained_model, output_dir):
        record.note("to_deployable")
        record.write_info(quantise(trained_model.network, [*self.inputs]), output_dir)
        torch.save(trained_model.network.state_dict(), os.path.join(output_dir, "deployable.pth"))

    def deployable_model(self, src_dir, used_for_xmodel=False):
        record.note("deployable_model", used_for_xmodel=used_for_xmodel)
        model = copy.deepcopy(self.model)
        model.load_state_dict(torch.load(os.path.join(src_dir, "deployable.pth")))

        def forward(x):
            record.note("forward", batch=len(x))
            return record.read_info(model, x, quantise(model, [x]), src_dir).fake(x)

        return forward

    def export_xmodel(self, output_dir, deploy_check=False):
        record.note("export_xmodel")
        open(os.path.join(output_dir, "Network_int.xmodel"), "wb").close()
