"""Copies keys and tensors of one GGUF file into another, value for value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lola_cpp._core import GgufFile, UnsupportedError
from lola_cpp.convert.optional import require
from lola_cpp.convert.output import OutputTensor

# The writer makes these from the file it writes.
_OWN_KEYS = ("general.architecture", "general.alignment", "split.no", "split.count", "split.tensors.count")


def text_of(source: GgufFile, key: str) -> str | None:
    """The value of a key that holds text; None when it is absent, FormatError when it is something else."""
    value = source.find_string(key)
    return None if value is None else value.decode(errors="replace")


def copy_keys(source: GgufFile, writer: Any, rename: Callable[[str], str | None]) -> None:
    """Adds keys of `source` to a gguf.GGUFWriter.

    Args:
        rename: gives the key in the new file, or None for a key that is not copied.

    Raises:
        UnsupportedError: a key that holds an array of arrays or an empty array, which the writer cannot write.
    """
    kinds = require("gguf").GGUFValueType
    keys = source.keys()
    for key in keys:
        target = rename(key)
        if target is None or key in _OWN_KEYS:
            continue
        kind, element = (kinds(number) for number in source.value_type(key))
        if kind == kinds.STRING:
            value = source.find_string(key)  # as bytes: it need not be valid UTF-8
        elif kind == kinds.ARRAY and element not in (kinds.STRING, kinds.ARRAY):
            value = source.get(key).tolist()
        else:
            value = None if element == kinds.ARRAY and kind == kinds.ARRAY else source.get(key)
        if kind == kinds.ARRAY and (element == kinds.ARRAY or not value):
            raise UnsupportedError(f"'{source.path}': key '{key}' holds an empty or nested array, and cannot be copied")
        writer.add_key_value(target, value, kind, element if kind == kinds.ARRAY else None)


def copied_tensor(source: GgufFile, name: str, kind: str, shape: tuple[int, ...]) -> OutputTensor:
    """A tensor whose bytes are those of `source`."""
    return OutputTensor(name, shape, kind, lambda: source.tensor_data(name))
