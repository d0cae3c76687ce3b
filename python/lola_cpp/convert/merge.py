"""Base + LoLA adapter -> one file; and the LoRA part of an adapter as a plain llama.cpp LoRA."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lola_cpp._core import FormatError, GgufFile, UnsupportedError, UsageError, encode
from lola_cpp.convert.adapter import Base, base_keys, read_base
from lola_cpp.convert.copying import copied_tensor, copy_keys, text_of
from lola_cpp.convert.optional import require
from lola_cpp.convert.output import OutputTensor, write_gguf

# Formats that a matrix can be merged into; --lora-type is one in lower case.
_LORA_FORMATS = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
LORA_TYPES = {name.lower(): name for name in _LORA_FORMATS}

_ADAPTER_TENSOR = re.compile(r"blk\.\d+\.attn_(lola_(fq|fk|window|kappa)\.weight|(q|k|v|output)\.weight\.lora_[ab])")
_LORA_ENDS = (".lora_a", ".lora_b")
_RELATIVE_TOLERANCE = 1e-6  # of rope_freq_base, a float32 in both files

# tensor name -> (format, shape)
TensorRows = dict[str, tuple[str, tuple[int, ...]]]


def merge_adapter(
    base_path: Path, adapter_path: Path, output: Path, *, lora_type: str | None = None, progress: bool = False
) -> None:
    """Writes base and adapter as one model of architecture lola-<base>, the LoRA merged into the base's matrices.

    Args:
        lora_type: format of the matrices that the LoRA changes, one of LORA_TYPES. If not given they keep theirs,
            which has to be one of these.
        progress: show a progress bar.

    Raises:
        UnsupportedError: a matrix to be merged has another format, and `lora_type` is not given.
        FormatError: the adapter does not fit the base, or a file is damaged.
    """
    if lora_type is not None and lora_type not in LORA_TYPES:
        raise UsageError(f"lora_type: found {lora_type!r}, wanted one of {', '.join(LORA_TYPES)}")
    base_file, adapter_file = GgufFile(base_path), _open_adapter(adapter_path)
    base = read_base(base_path)
    _check_fit(adapter_file, base)
    rows, adapter_rows = _tensor_rows(base_file), _tensor_rows(adapter_file)
    updates = {name[: -len(".lora_a")] for name in adapter_rows if name.endswith(_LORA_ENDS)}
    if unknown := sorted(updates - set(rows)):
        raise FormatError(f"'{adapter_path}': LoRA of '{unknown[0]}', which the base does not have")
    if unknown := [name for name in adapter_rows if not _ADAPTER_TENSOR.fullmatch(name)]:
        raise FormatError(f"'{adapter_path}': tensor '{unknown[0]}' is unknown in an adapter")
    tensors = []
    for name, (kind, shape) in rows.items():
        if name in updates:
            tensors.append(_merged_tensor(base_file, adapter_file, adapter_rows, name, (kind, shape), lora_type))
        else:
            tensors.append(copied_tensor(base_file, name, kind, shape))
    for name, (kind, shape) in adapter_rows.items():
        if not name.endswith(_LORA_ENDS):
            tensors.append(copied_tensor(adapter_file, name, kind, shape))
    writer = require("gguf").GGUFWriter(None, f"lola-{base.architecture}")
    copy_keys(base_file, writer, _under_prefix(base.architecture))
    copy_keys(adapter_file, writer, lambda key: key if key.startswith("adapter.lola.") else None)
    write_gguf(writer, output, tensors, progress=progress)


def split_adapter(adapter_path: Path, output: Path) -> None:
    """Writes the LoRA of an adapter as a LoRA adapter that llama.cpp reads.

    It was trained for linear attention: it does not help the model with softmax attention.

    Raises:
        UsageError: the adapter has no LoRA.
        FormatError: the file is damaged, or no LoLA adapter.
    """
    adapter_file = _open_adapter(adapter_path)
    rows = {name: row for name, row in _tensor_rows(adapter_file).items() if name.endswith(_LORA_ENDS)}
    if not rows:
        raise UsageError(f"'{adapter_path}' has no LoRA to split off")
    gguf = require("gguf")
    writer = gguf.GGUFWriter(None, text_of(adapter_file, "general.architecture") or "")
    copy_keys(adapter_file, writer, lambda key: key if key.startswith("general.") else None)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", _alpha(adapter_file))
    write_gguf(writer, output, [copied_tensor(adapter_file, name, kind, shape) for name, (kind, shape) in rows.items()])


def _open_adapter(path: Path) -> Any:
    file = GgufFile(path)
    found = (text_of(file, "general.type"), text_of(file, "adapter.type"))
    if found != ("adapter", "lola"):
        raise FormatError(f"'{path}': found general.type and adapter.type {found}, wanted ('adapter', 'lola')")
    return file


def _tensor_rows(file: Any) -> TensorRows:
    return {name: (kind, tuple(shape)) for name, kind, shape, _ in file.tensors()}


def _check_fit(adapter: Any, base: Base) -> None:
    architecture = text_of(adapter, "general.architecture")
    if architecture != base.architecture:
        raise FormatError(f"'{adapter.path}' is for architecture {architecture!r}, the base's is {base.architecture!r}")
    for key, wanted in base_keys(base).items():
        found = adapter.get(key)
        if not isinstance(found, int | float) or abs(found - wanted) > _RELATIVE_TOLERANCE * wanted:
            raise FormatError(f"'{adapter.path}': {key}: found {found}, the base has {wanted}")


def _under_prefix(architecture: str) -> Callable[[str], str | None]:
    def rename(key: str) -> str | None:
        return f"lola-{key}" if key.startswith(f"{architecture}.") else key

    return rename


def _alpha(adapter: Any) -> float:
    alpha = adapter.find_float("adapter.lora.alpha")
    if alpha is None:
        raise FormatError(f"'{adapter.path}': the file has LoRA tensors, but no key adapter.lora.alpha")
    return float(alpha)


def _merged_tensor(
    base: Any,
    adapter: Any,
    adapter_rows: TensorRows,
    name: str,
    row: tuple[str, tuple[int, ...]],
    lora_type: str | None,
) -> OutputTensor:
    kind, shape = row
    a_shape, b_shape = (adapter_rows.get(name + end, ("", ()))[1] for end in _LORA_ENDS)
    if len(a_shape) != 2 or len(shape) != 2 or a_shape[1] != shape[1] or b_shape != (shape[0], a_shape[0]):
        raise FormatError(
            f"'{adapter.path}': LoRA of '{name}': found shapes A {list(a_shape)} and B {list(b_shape)}, "
            f"wanted [rank, {shape[-1]}] and [{shape[0]}, rank]"
        )
    if lora_type is None and kind not in LORA_TYPES.values():
        raise UnsupportedError(
            f"'{base.path}': tensor '{name}': the LoRA cannot be merged into {kind}, only into "
            f"{', '.join(LORA_TYPES.values())}: name the format of the merged matrices, --lora-type q8_0, "
            "or load base and adapter as two files"
        )
    scale = np.float32(_alpha(adapter) / a_shape[0])
    target = kind if lora_type is None else LORA_TYPES[lora_type]

    def load() -> npt.NDArray[Any]:
        a, b = (_floats(adapter, name + end, *adapter_rows[name + end]) for end in _LORA_ENDS)
        return encode(_floats(base, name, kind, shape) + scale * (b @ a), target, name)

    return OutputTensor(name, shape, target, load)


def _floats(file: Any, name: str, kind: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    gguf = require("gguf")
    rows = file.tensor_data(name).reshape(shape[0], -1)
    values: npt.NDArray[np.float32] = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
    return values.reshape(shape)
