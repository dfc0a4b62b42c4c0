"""Operators as modules."""

import torch

from .. import state


class Functional(torch.nn.Module):
    def forward(self, *args, **kwargs):
        state["module"] += 1
        try:
            return self.function(*args, **kwargs)
        finally:
            state["module"] -= 1


class Cat(Functional):
    def function(self, x, dim=0):
        return torch.cat(x, dim=dim)


class Add(Functional):
    def function(self, input, other, alpha=1):
        return torch.add(input, other, alpha=alpha)


class Pad(Functional):
    def function(self, input, pad, mode="constant", value=0):
        return torch.nn.functional.pad(input, pad, mode, value)


class Interpolate(Functional):
    def function(self, input, size=None, scale_factor=None, mode="nearest", align_corners=None):
        return torch.nn.functional.interpolate(input, size, scale_factor, mode, align_corners)
