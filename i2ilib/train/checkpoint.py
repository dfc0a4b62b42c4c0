"""Training state on disk: one safetensors file, tensors beside JSON, written whole or not at all, never pickle."""

from __future__ import annotations

import json
import os

import torch
from torch import nn

from ..errors import IntegrityError
from ..runtime import write_tensors

_KEY = "i2ilib-checkpoint"


def save(
    path: str | os.PathLike,
    *,
    modules: dict[str, nn.Module],
    optimisers: dict[str, torch.optim.Optimizer],
    about: dict,
) -> None:
    """Write a checkpoint.

    Args:
        path: Where; the old file stays until the new one is whole.
        modules: Networks by name.
        optimisers: Optimisers by name.
        about: JSON values: the step, the configuration, the history of losses.
    """
    tensors, groups = {}, {}
    for name, module in modules.items():
        tensors |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimiser in optimisers.items():
        state = optimiser.state_dict()
        groups[name] = state["param_groups"]
        for index, values in state["state"].items():
            tensors |= {f"optimiser/{name}/{index}/{key}": value for key, value in values.items()}
    header = json.dumps({"about": about, "groups": groups})
    write_tensors(path, tensors, {_KEY: header})


def load(
    path: str | os.PathLike,
    *,
    modules: dict[str, nn.Module],
    optimisers: dict[str, torch.optim.Optimizer],
    expected: dict | None = None,
) -> dict:
    """Restore modules and optimisers in place.

    Args:
        path: A file from :func:`save`.
        modules: The networks that it belongs to, by the same names.
        optimisers: The optimisers, by the same names.
        expected: The configuration that the checkpoint must have been made with; None accepts any.

    Returns:
        ``about`` as it was saved.

    Raises:
        IntegrityError: If the file is truncated, foreign, of another configuration, or does not fit the modules.
    """
    from safetensors import SafetensorError, safe_open

    want = "a whole checkpoint of this training"
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        about, groups = header["about"], header["groups"]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        remedy = "Delete it to start afresh."
        raise IntegrityError(str(path), expected=want, got=str(error) or type(error).__name__, remedy=remedy) from None
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
    except (RuntimeError, ValueError, KeyError) as error:
        raise IntegrityError(str(path), expected=want, got=" ".join(str(error).split())[:300]) from None
    return about
