"""Reads the tensors of checkpoints, one at a time: safetensors (own view) and PyTorch files (weights only).

A checkpoint is untrusted input: nothing in it is executed, and every size is checked against the bytes that are there.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from lola_cpp._core import FormatError, UnsupportedError, UsageError
from lola_cpp.convert.optional import require

Floats = npt.NDArray[np.float32]

_HEADER_LIMIT = 100 << 20  # the limit of the safetensors library
_SAFETENSORS_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is read when asked for. shape: slowest dimension first."""

    shape: tuple[int, ...]
    load: Callable[[], Floats]  # each call reads the file anew


Checkpoint = Mapping[str, StoredTensor]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FormatError: the file is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"'{path}' is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"'{path}': found a JSON {type(value).__name__}, wanted an object")
    return value


def open_folder(folder: Path) -> Checkpoint:
    """Tensors of a Hugging Face folder: safetensors if it has them, else PyTorch files; in one file or in shards.

    Raises:
        UsageError: the folder has no weights.
        FormatError: a file is damaged, or the index does not fit the shards.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return open_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _open_shards(folder / f"{name}.index.json")
    raise UsageError(
        f"'{folder}' has no weights: wanted model.safetensors, model.safetensors.index.json, "
        "pytorch_model.bin or pytorch_model.bin.index.json"
    )


def open_file(path: Path) -> Checkpoint:
    """Tensors of one checkpoint file, by name.

    Raises:
        UsageError: there is no such file.
        FormatError: the file is damaged.
    """
    if not path.is_file():
        raise UsageError(f"'{path}' is not a file")
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)


def _open_shards(index: Path) -> Checkpoint:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FormatError(f"'{index}': weight_map: wanted an object of tensor names and file names")
    shards: dict[str, Checkpoint] = {}
    tensors: dict[str, StoredTensor] = {}
    for name, file_name in places.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise FormatError(
                f"'{index}': tensor '{name}': found file {file_name!r}, wanted the name of a file beside it"
            )
        if file_name not in shards:
            shards[file_name] = open_file(index.parent / file_name)
        if name not in shards[file_name]:
            raise FormatError(f"'{index}': tensor '{name}' is not in the file it names, '{file_name}'")
        tensors[name] = shards[file_name][name]
    return tensors


def _open_safetensors(path: Path) -> Checkpoint:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > min(size - 8, _HEADER_LIMIT):
            raise FormatError(f"'{path}': found a header of {header_size} bytes in a safetensors file of {size}")
        text = file.read(header_size)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"'{path}': the safetensors header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise FormatError(f"'{path}': found a safetensors header of type {type(header).__name__}, wanted an object")
    header.pop("__metadata__", None)
    start = 8 + header_size
    return {name: _safetensors_entry(path, name, entry, start, size) for name, entry in header.items()}


def _safetensors_entry(path: Path, name: str, entry: Any, start: int, file_size: int) -> StoredTensor:
    where = f"'{path}': tensor '{name}'"
    if not isinstance(entry, dict):
        raise FormatError(f"{where}: found a {type(entry).__name__}, wanted an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise FormatError(f"{where}: found shape {shape!r} and data_offsets {offsets!r}, wanted non-negative integers")
    if not isinstance(dtype, str) or dtype not in _SAFETENSORS_DTYPES:
        # Such a tensor may be one the conversion does not need, a position table for example.
        return StoredTensor(tuple(shape), _refuse(f"{where}: dtype {dtype!r} cannot be converted"))
    kind = np.dtype(_SAFETENSORS_DTYPES[dtype])
    begin, end = offsets
    if end - begin != prod(shape) * kind.itemsize or start + end > file_size:
        raise FormatError(
            f"{where}: found bytes {begin} ... {end} of {file_size - start}, "
            f"wanted {prod(shape) * kind.itemsize} for {dtype} {shape}"
        )

    def load() -> Floats:
        with path.open("rb") as file:
            raw = np.fromfile(file, dtype=kind, count=prod(shape), offset=start + begin).reshape(shape)
        if dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32, copy=False)

    return StoredTensor(tuple(shape), load)


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _refuse(message: str) -> Callable[[], Floats]:
    def load() -> Floats:
        raise UnsupportedError(message)

    return load


def _open_torch(path: Path) -> Checkpoint:
    torch = require("torch")
    try:
        # Today's files are zip archives, whose tensors stay in the file until they are read.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch reports a damaged or hostile file by exceptions of many kinds
        raise FormatError(f"'{path}' is not a PyTorch file of plain tensors: {error}") from error
    if isinstance(content, dict):
        for wrapper in ("model_state_dict", "state_dict"):
            content = content[wrapper] if isinstance(content.get(wrapper), dict) else content
    if not isinstance(content, dict):
        raise FormatError(f"'{path}': found a {type(content).__name__}, wanted a dictionary of tensors")
    tensors: dict[str, StoredTensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise FormatError(f"'{path}': entry {name!r}: found a {type(value).__name__}, wanted a tensor")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise FormatError(
                f"'{path}': tensor '{name}': found shape {list(value.shape)} over "
                f"{value.untyped_storage().nbytes()} bytes, wanted bytes for each of its numbers"
            )
        tensors[name] = StoredTensor(tuple(value.shape), _torch_loader(value))
    return tensors


def _torch_loader(value: Any) -> Callable[[], Floats]:
    def load() -> Floats:
        array: Floats = value.detach().float().contiguous().numpy()
        return array

    return load
