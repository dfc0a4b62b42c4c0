"""Training state on disk: one safetensors file, tensors beside JSON, written whole or not at all, never pickle."""

from __future__ import annotations

import json
import os

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import IntegrityError
from ..runtime import read_tensors, write_tensors

NAME = "checkpoint.safetensors"  # in the folder of a training
_KEY = "i2ilib-checkpoint"


def save(
    path: str | os.PathLike,
    *,
    modules: dict[str, nn.Module],
    optimisers: dict[str, torch.optim.Optimizer],
    about: dict,
    history: dict[str, list[float]],
) -> None:
    """Write a checkpoint.

    Args:
        path: Where; the old file stays until the new one is whole.
        modules: Networks by name.
        optimisers: Optimisers by name.
        about: JSON values; ``about["config"]`` is the configuration.
        history: One number a step, by name.
    """
    groups = {}
    tensors = {f"history/{name}": torch.tensor(values, dtype=torch.float64) for name, values in history.items()}
    for name, module in modules.items():
        tensors |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimiser in optimisers.items():
        state = optimiser.state_dict()
        groups[name] = state["param_groups"]
        for index, values in state["state"].items():
            tensors |= {f"optimiser/{name}/{index}/{key}": value for key, value in values.items()}
    header = json.dumps({"about": about, "groups": groups})
    write_tensors(path, tensors, {_KEY: header})


def configuration(path: str | os.PathLike) -> dict:
    """The configuration in a checkpoint's header, without its tensors and unverified.

    Args:
        path: A file from :func:`save`.

    Returns:
        ``about["config"]``; empty where it cannot be read, which :func:`load` explains.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads(file.metadata()[_KEY])["about"]["config"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return {}


def load(
    path: str | os.PathLike,
    *,
    modules: dict[str, nn.Module],
    optimisers: dict[str, torch.optim.Optimizer],
    expected: dict | None = None,
) -> tuple[dict, dict[str, list[float]]]:
    """Restore modules and optimisers in place.

    Args:
        path: A file from :func:`save`.
        modules: The networks that it belongs to, by the same names.
        optimisers: The optimisers, by the same names.
        expected: The configuration that the checkpoint must have been made with; None accepts any.

    Returns:
        ``about`` and ``history`` as they were saved.

    Raises:
        IntegrityError: If the file is truncated, foreign, of another configuration, or does not fit the modules.
    """
    want = "a whole checkpoint of this training"
    tensors, headers = read_tensors(path, want)
    try:
        header = json.loads(headers[_KEY])
        about, groups = header["about"], header["groups"]
    except (ValueError, KeyError) as error:
        remedy = "Delete it to start afresh."
        raise IntegrityError(str(path), expected=want, got=f"no {error}", remedy=remedy) from None
    if expected is not None and about.get("config") != expected:
        old, both = about.get("config") or {}, {*expected, *(about.get("config") or {})}
        changed = ", ".join(
            f"{key}={old.get(key)!r} instead of {expected.get(key)!r}"
            for key in sorted(both)
            if old.get(key) != expected.get(key)
        )
        raise IntegrityError(str(path), expected=want, got=changed, remedy="Use another folder, or delete it.")
    try:
        for name, module in modules.items():
            prefix = f"module/{name}/"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        for name, optimiser in optimisers.items():
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimiser/{name}/"):
                    index, field = key.split("/")[2:]
                    state.setdefault(int(index), {})[field] = value
            optimiser.load_state_dict({"state": state, "param_groups": groups[name]})
            for parameter, values in optimiser.state.items():  # fused kernels pair them by their place in memory
                for key, value in values.items():
                    if value.shape == parameter.shape:
                        values[key] = torch.empty_like(parameter).copy_(value)
    except (RuntimeError, ValueError, KeyError) as error:
        got, remedy = " ".join(str(error).split())[:300], "Use another folder, or delete it."
        raise IntegrityError(str(path), expected=want, got=got, remedy=remedy) from None
    history = {k.removeprefix("history/"): v.tolist() for k, v in tensors.items() if k.startswith("history/")}
    return about, history
