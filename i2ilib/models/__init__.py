"""Networks: plain ``nn.Module`` classes, built by name, kept in one file each."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from torch import nn

from ..errors import I2IError, IntegrityError
from ..runtime import WEIGHTS, read_tensors, write_tensors
from .codec_avatar import Avatar, CodecAvatarConfig, CodecAvatarDecoder
from .layers import with_doubling
from .pix2pix import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
from .srunet import SRUNet, SRUNetConfig, load_published, reparametrise
from .unet import UNet, UNetConfig

__all__ = [
    "MODELS",
    "Avatar",
    "CodecAvatarConfig",
    "CodecAvatarDecoder",
    "Discriminator",
    "DiscriminatorConfig",
    "Generator",
    "GeneratorConfig",
    "SRUNet",
    "SRUNetConfig",
    "UNet",
    "UNetConfig",
    "build",
    "load",
    "load_published",
    "open_network",
    "pretrained",
    "reparametrise",
    "save",
    "with_doubling",
]

MODELS: dict[str, type[nn.Module]] = {
    "pix2pix": Generator,
    "unet": UNet,
    "srunet": SRUNet,
    "codec_avatar": CodecAvatarDecoder,
}

_KEY = "i2ilib"  # under which the header of the file keeps its JSON


def build(name: str, **config) -> nn.Module:
    """A model by name, with fresh weights.

    Args:
        name: A name in :data:`MODELS`.
        **config: Fields of its configuration.

    Raises:
        I2IError: If the name or a field is not known.

    Example:
        >>> build("pix2pix", width=8, levels=4).config.filters
        [8, 16, 32, 64]
    """
    if name not in MODELS:
        raise I2IError("model", expected=" or ".join(MODELS), got=repr(name))
    return MODELS[name](**config)


def save(path: str | os.PathLike, model: nn.Module, **meta) -> None:
    """Keep a model in one ``.safetensors`` file: weights, and its name, configuration and ``meta`` in the header.

    Args:
        path: Where; an existing file is replaced whole or not at all.
        model: One of :data:`MODELS`.
        **meta: What else a user of the weights must know, as JSON values: ``q_in``, ``q_out``, colour state, training.

    Raises:
        I2IError: If the model is not of a registered class, the suffix is another, or ``meta`` does not go into JSON.
    """
    name = next((name for name, kind in MODELS.items() if type(model) is kind), None)
    if name is None:
        raise I2IError("save", expected="a " + " or ".join(k.__name__ for k in MODELS.values()), got=type(model))
    if Path(path).suffix != ".safetensors":
        raise I2IError(str(path), expected="the suffix .safetensors", got=repr(Path(path).suffix))
    try:
        header = json.dumps({"model": name, "config": dataclasses.asdict(model.config), "meta": meta})
    except TypeError as error:
        raise I2IError("save", expected="meta of JSON values", got=str(error)) from None
    write_tensors(path, model.state_dict(), {_KEY: header})


def load(path: str | os.PathLike) -> tuple[nn.Module, dict]:
    """A saved model, on the CPU and in evaluation mode, and the ``meta`` it was saved with.

    Raises:
        I2IError: If the file is missing.
        IntegrityError: If it is no safetensors file, was not written by :func:`save`, names an unknown model, or its
            tensors do not fit the configuration.
    """
    want = "a model written by i2ilib.models.save"
    try:
        state, headers = read_tensors(path, want)
    except FileNotFoundError:
        raise I2IError(str(path), expected=want, got="no file") from None
    header = headers.get(_KEY)
    if header is None:
        raise IntegrityError(str(path), expected=want, got="safetensors without a model's name and configuration")
    try:
        about = json.loads(header)
        name, config, meta = about["model"], about["config"], about["meta"]
        model = build(name, **config)
        model.load_state_dict(state)
    except (I2IError, RuntimeError, KeyError, TypeError, ValueError) as error:
        got = " ".join(str(error).split())[:300]
        raise IntegrityError(str(path), expected=want, got=got) from None
    return model.eval(), meta


def open_network(path: str | os.PathLike) -> nn.Module:
    """A network from either kind of file: ``.safetensors`` as :func:`load` reads it, ``.pth`` as it was published.

    Raises:
        I2IError: If the file is missing.
        IntegrityError: If it holds something else.
    """
    return load_published(path) if Path(path).suffix.lower() == ".pth" else load(path)[0]


def pretrained(name: str) -> tuple[nn.Module, dict]:
    """A model that comes with the project, as :func:`load` gives it.

    Args:
        name: A file in ``data/weights`` without its suffix; the folder's README says how each was trained.

    Raises:
        I2IError: If there is none of that name.
    """
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in WEIGHTS.glob("*.safetensors"))) or "none here"
        raise I2IError("pretrained", expected=f"one of data/weights ({known})", got=repr(name))
    return load(path)
