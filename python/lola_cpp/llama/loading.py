"""Where the layers of a model go, as llama-cpp-python's n_gpu_layers says it."""

from __future__ import annotations

import os

from .._core import GgufFile, UnsupportedError
from ..model import Model, PathLike
from .arguments import warn_no_effect


def load(path: PathLike, adapter: PathLike | None, threads: int | None, gpu_layers: int) -> Model:
    """gpu_layers: as of Llama; more than the model has are all of them."""
    if gpu_layers == 0 or not os.path.isfile(path):
        return Model(path, adapter, threads=threads)
    all_of_them = gpu_layers < 0 or gpu_layers >= _layers(path)
    try:
        return Model(path, adapter, threads=threads, device="cuda", gpu_layers=None if all_of_them else gpu_layers)
    except UnsupportedError as error:
        model = Model(path, adapter, threads=threads)  # raises where the device is not what is unsupported
        warn_no_effect("n_gpu_layers", gpu_layers, str(error))
        return model


def _layers(path: PathLike) -> int:
    file = GgufFile(path)
    return int(file.get(f"{file.get('general.architecture')}.block_count", 0))
