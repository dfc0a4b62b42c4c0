"""The borders of the quantised part."""

from torch import nn

state = {"quantised": False, "module": 0}  # what a network may do now, for the demands


class QuantStub(nn.Module):
    def forward(self, x):
        state["quantised"] = True
        return x


class DeQuantStub(nn.Module):
    def forward(self, x):
        state["quantised"] = False
        return x
