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
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step, found, stored = state["step"], state["identity"], state["tensors"]
        if set(stored) != set(tensors) or found.keys() != identity.keys():
            raise KeyError("other tensors")
    except Exception as error:  # torch reports a damaged file by exceptions of many kinds
        raise FormatError(f"'{path}' is not a checkpoint of this stage: {error}") from error
    for name, wanted in identity.items():
        if found[name] != wanted:
            raise UsageError(
                f"'{path}': found a run with {name} {found[name]!r}, wanted {wanted!r}: go on with the same options, "
                "or name another output folder"
            )
    with torch.no_grad():
        for name, value in tensors.items():
            value.copy_(stored[name])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    return int(step)
