"""Writes GGUF files tensor by tensor. The file appears under its name only when it is complete."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lola_cpp._core import UsageError
from lola_cpp.convert.optional import require


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write.

    Attributes:
        shape: in weights, slowest dimension first.
        kind: name of the GGUF format, "Q8_0".
        load: gives the tensor's bytes in that format, of any shape and dtype; called once, when it is written.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    load: Callable[[], npt.NDArray[Any]]


def tensor_bytes(kind: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of `shape` in the format `kind`."""
    gguf = require("gguf")
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return prod(shape) // int(block_size) * int(block_bytes)


def write_gguf(writer: Any, path: Path, tensors: Sequence[OutputTensor], *, progress: bool = False) -> None:
    """Writes the keys of `writer` (a gguf.GGUFWriter made without a path) and `tensors` to `path`.

    Args:
        progress: show a progress bar.

    Raises:
        UsageError: the folder of `path` does not exist.
    """
    if not path.parent.is_dir():
        raise UsageError(f"cannot write '{path}': its folder does not exist")
    gguf, tqdm = require("gguf"), require("tqdm")
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor_bytes(tensor.kind, tensor.shape), raw_dtype=kind
        )
    partial = path.with_name(path.name + ".part")
    total = sum(tensor_bytes(tensor.kind, tensor.shape) for tensor in tensors)
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc=path.name, disable=not progress) as bar:
            for tensor in tensors:
                data = np.ascontiguousarray(tensor.load())
                writer.write_tensor_data(data)
                bar.update(data.nbytes)
        writer.close()
        os.replace(partial, path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
