"""Training state on disk: one safetensors file, tensors beside JSON, written whole or not at all, never pickle."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import I2IError, IntegrityError
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
        optimisers: Optimisers by name. The states of both are tensors, numbers, texts and None, in lists, tuples and
            dicts of any depth, as those of all in ``torch.optim`` are.
        about: JSON values; ``about["config"]`` is the configuration.
        history: One number a step, by name.

    Raises:
        I2IError: If a state holds anything else; the message says where.
    """
    tensors = {f"history/{name}": torch.tensor(values, dtype=torch.float64) for name, values in history.items()}
    header: dict[str, Any] = {"about": about, "module": {}, "optimiser": {}, "groups": {}}
    for name, module in modules.items():
        header["module"][name] = _pack(module.state_dict(), f"module/{name}", tensors)
    for name, optimiser in optimisers.items():
        state = optimiser.state_dict()
        header["optimiser"][name] = _pack(state["state"], f"optimiser/{name}", tensors)
        header["groups"][name] = _pack(state["param_groups"], f"groups/{name}", tensors)
    write_tensors(path, _apart(tensors), {_KEY: json.dumps(header)})


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
        about, states, moments, groups = (header[key] for key in ("about", "module", "optimiser", "groups"))
    except (ValueError, KeyError, TypeError) as error:
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
            module.load_state_dict(_unpack(states[name], tensors))
        for name, optimiser in optimisers.items():
            _restore(optimiser, _unpack(moments[name], tensors), _unpack(groups[name], tensors))
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
        remedy = "Use another folder, or delete it."
        raise IntegrityError(str(path), expected=want, got=got, remedy=remedy) from None
    history = {k.removeprefix("history/"): v.tolist() for k, v in tensors.items() if k.startswith("history/")}
    return about, history


# --- states of any depth ---------------------------------------------------------------------------------------


def _pack(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A state as JSON; its tensors go to ``tensors``, each under the way to it."""
    if isinstance(value, torch.Tensor) and _storable(value):
        key = place if place not in tensors else f"{place}#{len(tensors)}"  # 1 and "1" are two keys
        tensors[key] = value
        return {"tensor": key}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) in (list, tuple):
        parts = [_pack(part, f"{place}/{number}", tensors) for number, part in enumerate(value)]
        return parts if type(value) is list else {"tuple": parts}
    if type(value) in (dict, OrderedDict) and all(isinstance(key, str | int) for key in value):
        return {"dict": [[key, _pack(part, f"{place}/{key}", tensors)] for key, part in value.items()]}
    got = f"a {value.dtype} tensor, {value.layout}" if isinstance(value, torch.Tensor) else type(value).__name__
    expected = "dense tensors, numbers, texts, None, and lists, tuples and dicts of them"
    raise I2IError(f"checkpoint, {place}", expected=expected, got=got, remedy="Keep anything else out of the state.")


def _storable(value: torch.Tensor) -> bool:
    """Whether safetensors has a form for a tensor."""
    return value.layout == torch.strided and not value.is_quantized and value.dtype != torch.complex128


def _unpack(packed: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """What :func:`_pack` was given."""
    match packed:
        case list():
            return [_unpack(part, tensors) for part in packed]
        case {"tensor": key}:
            return tensors[key]
        case {"tuple": parts}:
            return tuple(_unpack(parts, tensors))
        case {"dict": pairs}:
            return {key: _unpack(part, tensors) for key, part in pairs}
        case dict():
            raise ValueError(f"a state with {', '.join(packed) or 'nothing'}")
    return packed


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, none sharing memory with another, as tied weights do: safetensors refuses that."""
    seen, apart = set(), {}
    for key, value in tensors.items():
        memory = value.untyped_storage().data_ptr()
        apart[key] = value.clone() if memory in seen else value
        seen.add(memory)
    return apart


def _restore(optimiser: torch.optim.Optimizer, state: dict, groups: list[dict]) -> None:
    """Load an optimiser's state to the bit; PyTorch chooses devices well, but converts tensors to the weights' type."""
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    numbers = (number for group in groups for number in group["params"])
    parameters = (parameter for group in optimiser.param_groups for parameter in group["params"])
    owners = dict(zip(numbers, parameters, strict=True))
    for key, saved in state.items():
        owner = owners.get(key)
        place = key if owner is None else owner
        optimiser.state[place] = _placed(saved, optimiser.state[place], owner)


def _placed(saved: Any, loaded: Any, owner: torch.Tensor | None) -> Any:
    """What was saved, on the devices of what was loaded, each tensor like a weight's laid out as the weight is."""
    if isinstance(saved, torch.Tensor):
        if owner is None or saved.shape != owner.shape:
            return saved.to(loaded.device)
        # fused kernels pair weights and moments by their place in memory
        return torch.empty_like(owner, dtype=saved.dtype, device=loaded.device).copy_(saved)
    if isinstance(saved, dict):
        return {key: _placed(part, loaded[key], owner) for key, part in saved.items()}
    if isinstance(saved, list | tuple):
        return type(saved)(_placed(a, b, owner) for a, b in zip(saved, loaded, strict=True))
    return saved
