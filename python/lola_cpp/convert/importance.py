"""Reads importance matrices: how much each column of a matrix matters, measured by llama.cpp's imatrix tool."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lola_cpp._core import FormatError, GgufFile

Importance = dict[str, npt.NDArray[np.float32]]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_NAME = 1 << 10


def read_importance(path: str | os.PathLike[str]) -> Importance:
    """Tensor name -> mean squared activation of each of its columns, from either of llama.cpp's formats.

    Raises:
        FormatError: the file is neither, is damaged, or holds numbers that are negative or not finite.
    """
    with open(path, "rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    importance = _read_gguf(path) if is_gguf else _read_dat(Path(path).read_bytes(), str(path))
    for name, values in importance.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise FormatError(f"'{path}': importance of '{name}': found a number below 0 or not finite")
    return importance


def _read_gguf(path: str | os.PathLike[str]) -> Importance:
    file = GgufFile(path)
    names = [name for name, *_ in file.tensors()]
    importance = {}
    for name in names:
        if not name.endswith(_SUMS):
            continue
        stem = name.removesuffix(_SUMS)
        if stem + _COUNTS not in names:
            raise FormatError(f"'{path}': found '{name}' without '{stem}{_COUNTS}'")
        sums, counts = (_floats(file, stem + end) for end in (_SUMS, _COUNTS))
        if counts.size != 1:
            raise FormatError(f"'{path}': '{stem}{_COUNTS}': found {counts.size} numbers, wanted 1: no experts here")
        # A matrix that no token came through: all its columns matter alike.
        importance[stem] = sums / counts if counts[0] > 0 else np.ones_like(sums)
    if not importance:
        raise FormatError(f"'{path}': found no tensor that ends in '{_SUMS}', wanted an importance matrix")
    return importance


def _floats(file: GgufFile, name: str) -> npt.NDArray[np.float32]:
    kind = next(kind for found, kind, *_ in file.tensors() if found == name)
    if kind != "F32":
        raise FormatError(f"'{file.path}': tensor '{name}': found type {kind}, wanted F32")
    return file.tensor_data(name).view(np.float32)


def _read_dat(data: bytes, path: str) -> Importance:
    """The old format: a count of entries, then of each the name, the calls, and the sums over the calls."""
    reader = _Reader(data, path)
    importance: Importance = {}
    for index in range(reader.count(12, "entries")):
        where = f"entry {index}"
        name = reader.take(reader.count(1, f"bytes of the name of {where}", _MAX_NAME), where)
        calls = reader.integer(where)
        values = np.frombuffer(reader.take(4 * reader.count(4, f"numbers of {where}"), where), np.float32)
        importance[name.decode(errors="replace")] = values / np.float32(max(calls, 1))
    return importance


class _Reader:
    def __init__(self, data: bytes, path: str) -> None:
        self._data = data
        self._path = path
        self._at = 0

    def take(self, size: int, where: str) -> bytes:
        if size > len(self._data) - self._at:
            raise FormatError(f"'{self._path}': {where}: found the end of the file at byte {len(self._data)}")
        self._at += size
        return self._data[self._at - size : self._at]

    def integer(self, where: str) -> int:
        return int(struct.unpack("<i", self.take(4, where))[0])

    def count(self, bytes_each: int, what: str, most: int | None = None) -> int:
        """A number of things that are still to come, of so many bytes each."""
        value = self.integer(what)
        limit = (len(self._data) - self._at) // bytes_each
        limit = limit if most is None else min(limit, most)
        if not 1 <= value <= limit:
            raise FormatError(f"'{self._path}': found {value} {what}, wanted 1 to {limit}: no importance matrix")
        return value
