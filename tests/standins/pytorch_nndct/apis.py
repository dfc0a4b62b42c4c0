"""Post-training quantisation."""

import json
import os

import torch

from i2ilib.quant import quantise

from . import record


class Quantizer:
    def __init__(self, mode, module, example, folder):
        self.mode, self.module, self.example, self.folder = mode, module, example, folder
        self.batches = []
        if mode == "test" and not os.path.exists(os.path.join(folder, "quant_info.json")):
            raise FileNotFoundError("calibrate first")

    def quant_model(self, x):
        record.note("forward", mode=self.mode, batch=len(x), training=self.module.training)
        self.batches.append(x)
        if self.mode == "calib":
            return self.module(x)
        return record.read_info(self.module, x, quantise(self.module, [x]), self.folder).fake(x)

    def export_quant_config(self):
        record.note("export_quant_config")
        if self.mode != "calib" or not self.batches:
            raise RuntimeError("nothing calibrated")
        os.makedirs(self.folder, exist_ok=True)
        record.write_info(quantise(self.module, self.batches), self.folder)

    def export_xmodel(self, output_dir, deploy_check=True):
        record.note("export_xmodel", deploy_check=deploy_check)
        if os.environ.get("STANDIN_WITHOUT_XIR"):
            raise ImportError("no xir")
        if self.mode != "test" or [len(x) for x in self.batches] != [1]:
            raise RuntimeError("run one image in test mode first")
        with open(os.path.join(output_dir, f"{type(self.module).__name__}_int.xmodel"), "wb") as file:
            file.write(b"standin")


def torch_quantizer(
    quant_mode, module, input_args, output_dir="quantize_result", bitwidth=8, device=None, quant_config_file=None
):
    with open(quant_config_file) as file:
        config = json.load(file)
    record.note("torch_quantizer", mode=quant_mode, config=config)
    _ = config["target_device"], config["quantizable_data_type"]  # AMD's parser asks for them
    if device != torch.device("cpu"):
        raise RuntimeError("no GPU here")
    (example,) = input_args
    return Quantizer(quant_mode, module, example, output_dir)
