"""ONNX files of float networks: what they compute, and which networks PyTorch has to trace again on the way."""

import onnxruntime
import pytest
import torch
from torch import nn

from i2ilib.quant.export import to_onnx


class InPlace(nn.Module):
    """Writes into what it was given by an operator before it."""

    def forward(self, x):
        y = x * 2
        y.add_(1)
        return y.relu_() + x


class Split(nn.Module):
    """An operator of several results, which have a size each."""

    def forward(self, x):
        first, second = x.split([1, 2], 1)
        return torch.cat([second, first.tanh()], 1)


NETWORKS = {
    "plain": (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.1), nn.PixelShuffle(2)), False),
    "transposed": (nn.ConvTranspose2d(3, 4, 4, 2, 1), False),
    "transposed, every argument": (
        nn.ConvTranspose2d(3, 6, (3, 2), (2, 3), (1, 0), (1, 2), groups=3, bias=False, dilation=(1, 2)),
        False,
    ),
    "unknown to ONNX": (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Softshrink(0.2)), True),
    "by others in PyTorch": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GELU()), True),
    "in place": (InPlace(), True),
    "split": (Split(), True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_computes_what_the_network_does(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    network, again = NETWORKS[name]
    traced, plain = [], torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram, "run_decompositions", lambda *args, **kw: traced.append(1) or plain(*args, **kw)
    )
    path = to_onnx(network.eval(), torch.zeros(2, 3, 8, 6), tmp_path / "x.onnx")
    assert bool(traced) == again
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = torch.randn(batch, 3, 8, 6)
        with torch.no_grad():
            expected = network(x.clone())
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), expected)
