"""The DPU's scheme as a PT2E quantiser: torchao turns known fix positions into quantise and dequantise operators."""

from __future__ import annotations

import torch
from torch import fx

from ..runtime import quiet, require
from .graph import CONVOLUTIONS, A, Site, copy_graph


def to_qdq(graph: fx.GraphModule, sites: list[Site], fix_positions: dict[str, int]) -> fx.GraphModule:
    """A copy of ``graph`` with int8 quantise/dequantise pairs at every site; weights become int8 constants.

    Biases stay float32 on their grid: engines add them to the accumulator and refuse a quantised one. The inputs of a
    concat are brought to its position on their way in, which rounds them exactly as rounding its output does and lets
    an engine keep the whole concat in int8.

    Args:
        graph: From :func:`i2ilib.quant.graph.capture`, parameters already on their grids.
        sites: Its sites.
        fix_positions: By tensor name, one for every site.
    """
    require("torchao")
    from torchao.quantization.pt2e import quantize_pt2e as pt2e
    from torchao.quantization.pt2e import quantizer as q

    def spec(name: str):
        return q.FixedQParamsQuantizationSpec(
            dtype=torch.int8,
            scale=2.0 ** -fix_positions[name],
            zero_point=0,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_symmetric,
        )

    class DpuQuantizer(q.Quantizer):
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            by_name = {site.node.name: site for site in sites}
            for node in model.graph.nodes:
                site = by_name.get(node.name)
                inputs = {}
                if node.target in CONVOLUTIONS:
                    inputs = {node.args[1]: spec(by_name[node.args[1].name].name)}
                elif node.target is A.cat.default:
                    inputs = {part: spec(site.name) for part in node.args[0]}
                annotated = site is not None and node.op != "get_attr"
                if annotated or inputs:
                    node.meta["quantization_annotation"] = q.QuantizationAnnotation(
                        input_qspec_map=inputs, output_qspec=spec(site.name) if annotated else None, _annotated=True
                    )
            return model

        def validate(self, model: fx.GraphModule) -> None:
            pass

    # PyTorch's own notices about the graphs that torchao copies; and it draws random numbers
    with quiet(), torch.random.fork_rng(devices=[]):
        prepared = pt2e.prepare_pt2e(copy_graph(graph), DpuQuantizer())
        return pt2e.convert_pt2e(prepared, fold_quantize=True)
