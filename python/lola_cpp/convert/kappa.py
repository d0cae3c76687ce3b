"""An adapter with other coefficients of the policy `weighted_recall`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lola_cpp._core import FormatError, GgufFile, UsageError
from lola_cpp.convert.copying import copied_tensor, copy_keys, text_of
from lola_cpp.convert.optional import require
from lola_cpp.convert.output import OutputTensor, write_gguf

_REPLACED_KEYS = ("adapter.lola.policy", "adapter.lola.kappa")
_REPLACED_TENSOR = re.compile(r"blk\.\d+\.attn_lola_kappa\.weight")


def write_with_kappa(source: Path, path: Path, kappa: Mapping[int, npt.NDArray[np.float32]]) -> None:
    """Copies an adapter, or a model with one inside; the copy's sessions use `weighted_recall`.

    Args:
        kappa: of each layer with LoLA attention, [heads].

    Raises:
        FormatError: the file has no LoLA adapter.
        UsageError: a kappa that is not finite, or the copy would overwrite its source.
    """
    file = GgufFile(source)
    architecture = text_of(file, "general.architecture")
    if architecture is None or file.find_int("adapter.lola.version", 1, 1) is None:
        raise FormatError(f"'{source}': found no LoLA adapter")
    if path.exists() and path.samefile(source):
        raise UsageError(f"'{path}': found the source itself, wanted another file")
    if not all(np.isfinite(values).all() for values in kappa.values()):
        raise UsageError("kappa: found a number that is not finite")
    writer = require("gguf").GGUFWriter(None, architecture)
    copy_keys(file, writer, lambda key: None if key in _REPLACED_KEYS else key)
    writer.add_string("adapter.lola.policy", "weighted_recall")
    tensors = [
        copied_tensor(file, name, kind, tuple(shape))
        for name, kind, shape, _ in file.tensors()
        if not _REPLACED_TENSOR.fullmatch(name)
    ]
    for layer, values in sorted(kappa.items()):
        data = np.asarray(values, np.float32)
        name = f"blk.{layer}.attn_lola_kappa.weight"
        tensors.append(OutputTensor(name, data.shape, "F32", lambda data=data: data))  # type: ignore[misc]
    write_gguf(writer, path, tensors)
