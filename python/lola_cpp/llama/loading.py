"""A model's file: where its layers go, as llama-cpp-python's n_gpu_layers says it, and its metadata as text."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .._core import GgufFile, UnsupportedError
from ..model import Model, PathLike
from .arguments import warn_no_effect


def load(path: PathLike, adapter: PathLike | None, threads: int | None, gpu_layers: int, device: str | None) -> Model:
    """gpu_layers, device: as of Llama; more layers than the model has are all of them."""
    if not os.path.isfile(path) or (gpu_layers == 0 and device is None):
        return Model(path, adapter, threads=threads)
    layers = gpu_layers if 0 < gpu_layers < _layers(path) else None
    if device is not None:
        return Model(path, adapter, threads=threads, device=device, gpu_layers=layers)
    try:
        return Model(path, adapter, threads=threads, device="cuda", gpu_layers=layers)
    except UnsupportedError as error:
        model = Model(path, adapter, threads=threads)  # raises where the device is not what is unsupported
        warn_no_effect("n_gpu_layers", gpu_layers, str(error))
        return model


def _layers(path: PathLike) -> int:
    file = GgufFile(path)
    return int(file.get(f"{file.get('general.architecture')}.block_count", 0))


def spelled_metadata(file: GgufFile) -> dict[str, str]:
    """All of it but the arrays."""
    values = {key: file.get(key) for key in file.keys()}  # noqa: SIM118, it is no dictionary
    return {key: _spelled(value) for key, value in values.items() if not isinstance(value, (list, np.ndarray))}


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
