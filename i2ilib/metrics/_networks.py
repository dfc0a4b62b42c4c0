"""The networks of the perceptual metrics with the weights of files: built without a download, kept for the process."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ..errors import I2IError, IntegrityError
from ..runtime import quiet, read_tensors, require

State = tuple[str, int, int]  # of a file, by runtime.file_state: a file that has changed makes a new network

_VGG16_TAPS = (3, 8, 15, 22, 29)  # the last ReLU of each of the five blocks, in torchvision's numbering
_VGG16_BN_TAPS = (5, 12, 22, 32, 42)


def linear_weights(net: str) -> Path:
    """The file of linear weights, version 0.1, that comes with the package lpips."""
    return Path(_lpips_package().__file__).parent / "weights" / "v0.1" / f"{net}.pth"


@functools.lru_cache(maxsize=8)
def lpips_network(
    net: str, spatial: bool, trunk: State, linear: State, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The package's network for images in [-1, 1]; gives (N, 1, 1, 1), or (N, 1, H, W) if ``spatial``."""
    model, weights = _empty_lpips(net, spatial), _tensors(trunk[0])
    # the package cuts the layers into slices and keeps their numbers: slice2.3.weight is features.3.weight
    names = {key: "features." + key.split(".", 1)[1] for key in model.net.state_dict()}
    _fill(model.net, trunk[0], {key: weights.get(name) for key, name in names.items()})
    return _ready(_with_linear(model, linear[0]), device, dtype)


@functools.lru_cache(maxsize=8)
def lpips_comp_network(linear: State, trunk: State, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """As :func:`lpips_network`, with VGG16 with batch normalisation for a trunk."""
    model = _empty_lpips("vgg", False)
    model.net = _Tapped(_features("vgg16_bn", trunk[0]), _VGG16_BN_TAPS)
    return _ready(_with_linear(model, linear[0]), device, dtype)


@functools.lru_cache(maxsize=8)
def dists_network(
    trunk: State, weights: State, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The trunk for images in [0, 1], and a weight for each channel's texture and structure, of sum 1 together."""
    features = _features("vgg16", trunk[0])
    for i, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            features[i] = _L2Pool()
    found = _tensors(weights[0])
    texture, structure = (found[name].to(device, dtype).flatten() for name in ("alpha", "beta"))
    total = texture.sum() + structure.sum()
    tapped = nn.Sequential(_ImageNet(), _Tapped(features, _VGG16_TAPS))
    return _ready(tapped, device, dtype), texture / total, structure / total


class _Tapped(nn.Module):
    """Layers in a row; gives the outputs of some."""

    def __init__(self, layers: nn.Sequential, taps: tuple[int, ...]):
        super().__init__()
        self.layers, self.taps = layers[: taps[-1] + 1], taps

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.taps:
                found.append(x)
        return found


class _L2Pool(nn.Module):
    """The root of the Hann-weighted mean of squares over 3×3 pixels, at every second pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taps = x.new_tensor([0.25, 0.5, 0.25])
        kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
        return (functional.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


class _ImageNet(nn.Module):
    """RGB in [0, 1] to the mean 0 and deviation 1 that torchvision's networks were trained with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, deviation = x.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 1, 3, 1, 1)
        return (x - mean) / deviation


def _empty_lpips(net: str, spatial: bool) -> nn.Module:
    """The package's network on no device: it draws no weights, takes no memory, and downloads nothing."""
    with quiet(), torch.device("meta"):  # the package asks torchvision in a way that is deprecated there
        return _lpips_package().LPIPS(net=net, spatial=spatial, pretrained=False, pnet_rand=True, verbose=False)


def _lpips_package():
    require("torchvision")  # lpips imports it
    return require("lpips")


def _with_linear(model: nn.Module, path: str) -> nn.Module:
    """The package's network with the weights of its linear layers: lin0, or lin0.model.1.weight, and so on."""
    found = {key.split(".")[0]: value for key, value in _tensors(path).items()}
    for i, layer in enumerate(model.lins):
        value, wanted = found.get(f"lin{i}"), layer.model[1].in_channels
        if value is None or value.numel() != wanted or not (value >= 0).all():
            got = "none" if value is None else f"shape {tuple(value.shape)}, smallest {value.min():g}"
            raise I2IError(path, expected=f"lin{i} of {wanted} numbers, none negative", got=got)
        layer.model[1].weight = nn.Parameter(value.reshape(1, -1, 1, 1))
    return model


def _features(name: str, path: str) -> nn.Sequential:
    """The convolutional layers of torchvision's network with the weights of a file; its classifier is left out."""
    with torch.device("meta"):
        features = getattr(require("torchvision").models, name)(weights=None).features
    weights = _tensors(path)
    _fill(features, path, {key: weights.get("features." + key) for key in features.state_dict()})
    return features


def _fill(module: nn.Module, path: str, weights: Mapping[str, torch.Tensor | None]) -> None:
    """Give a module that was made without memory its weights; every one must be there, in its shape."""
    given = {}
    for key, wanted in module.state_dict().items():
        given[key] = weights[key]
        if given[key] is None and key.endswith("num_batches_tracked"):  # old files lack this count of training steps
            given[key] = torch.tensor(0)
        if given[key] is None or given[key].shape != wanted.shape:
            got = "none" if given[key] is None else tuple(given[key].shape)
            raise I2IError(path, expected=f"weights of shape {tuple(wanted.shape)} for {key}", got=got)
    module.load_state_dict(given, assign=True)


def _ready(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return module.to(device, dtype).eval().requires_grad_(False)


def _tensors(path: str) -> dict[str, torch.Tensor]:
    """Tensors by name; of a pickle nothing else is read."""
    want = "tensors by name"
    if path.endswith(".safetensors"):
        return read_tensors(path, want)[0]
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        got = (str(error).splitlines() or [type(error).__name__])[0]
        raise IntegrityError(path, expected=want, got=got) from None
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise IntegrityError(path, expected=want, got="other objects", remedy="Save the state dict alone.")
    return found
