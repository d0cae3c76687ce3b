"""Training states on disk: written beside the old one and then put in its place, so that a kill loses neither."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lola_cpp._core import FormatError, UsageError


def save_state(
    path: Path, step: int, identity: dict[str, Any], tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"step": step, "identity": identity, "tensors": tensors, "optimizer": optimizer.state_dict()}
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path, identity: dict[str, Any], tensors: dict[str, Tensor], optimizer: Any = None) -> int:
    """Fills the tensors and the optimizer, and returns how many steps are done: 0 where there is no file.

    Raises:
        FormatError: the file is damaged.
        UsageError: it is of another run.
    """
    if not path.is_file():
        return 0
    state = _read(path, tensors)
    found = state["identity"]
    if found.keys() != identity.keys():
        raise FormatError(f"'{path}' is not a checkpoint of this stage: {sorted(found)}, wanted {sorted(identity)}")
    for name, wanted in identity.items():
        if found[name] != wanted:
            raise UsageError(
                f"'{path}': found a run with {name} {found[name]!r}, wanted {wanted!r}: go on with the same options, "
                "or name another output folder"
            )
    _fill(tensors, state)
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def load_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fills the tensors from a checkpoint of whatever run.

    Raises FormatError where it is damaged, or of other tensors.
    """
    _fill(tensors, _read(path, tensors))


def _read(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        sizes = {name: value.shape for name, value in state["tensors"].items()}
        if sizes != {name: value.shape for name, value in tensors.items()} or not {"step", "identity"} <= state.keys():
            raise KeyError("other tensors")
    except Exception as error:  # torch reports a damaged file by exceptions of many kinds
        raise FormatError(f"'{path}' is not a checkpoint of this stage: {error}") from error
    return state


def _fill(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    with torch.no_grad():
        for name, value in tensors.items():
            value.copy_(state["tensors"][name])
