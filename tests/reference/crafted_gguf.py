"""GGUF files for tests: byte by byte, so that anything can be wrong with them, and from the `gguf` package."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from lola_cpp import _core

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
TENSOR_F32, TENSOR_Q8_0 = 0, 8
I64_MIN, I64_MAX = -(2**63), 2**63 - 1

# One value of every scalar type: (writer's method, value).
SCALARS: dict[str, tuple[str, Any]] = {
    "u8": ("add_uint8", 200),
    "i8": ("add_int8", -100),
    "u16": ("add_uint16", 60000),
    "i16": ("add_int16", -30000),
    "u32": ("add_uint32", 4_000_000_000),
    "i32": ("add_int32", -2_000_000_000),
    "u64": ("add_uint64", 2**64 - 1),
    "i64": ("add_int64", I64_MIN),
    "f32": ("add_float32", 0.5),
    "f64": ("add_float64", 0.1),
    "bool": ("add_bool", True),
    "string": ("add_string", "naïve ☃"),
}
ARRAY_TYPES: dict[str, tuple[int, str]] = {
    "u8": (U8, "u1"),
    "i8": (I8, "i1"),
    "u16": (U16, "u2"),
    "i16": (I16, "i2"),
    "u32": (U32, "u4"),
    "i32": (I32, "i4"),
    "u64": (U64, "u8"),
    "i64": (I64, "i8"),
    "f32": (F32, "f4"),
    "f64": (F64, "f8"),
}
# The typed accessors, each with the widest range.
TYPED: dict[str, Callable[[Any, str], Any]] = {
    "int": lambda file, name: file.find_int(name, I64_MIN, I64_MAX),
    "float": lambda file, name: file.find_float(name),
    "bool": lambda file, name: file.find_bool(name),
    "string": lambda file, name: file.find_string(name),
    "int_array": lambda file, name: file.find_int_array(name, I64_MIN, I64_MAX),
    "float_array": lambda file, name: file.find_float_array(name),
    "string_array": lambda file, name: file.find_string_array(name),
}


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def tensor(name: bytes, dims: list[int], kind: int = TENSOR_F32, offset: int = 0, n_dims: int | None = None) -> bytes:
    head = text(name) + struct.pack("<I", len(dims) if n_dims is None else n_dims)
    return head + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)


def craft(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = b"",
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    keys, tensors = keys or [], tensors or []
    counts = (len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    out = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return out + bytes(-len(out) % alignment) + data if data else out


def parse(data: bytes) -> Any:
    return _core.parse_gguf(data, "crafted")


def write_package_file(path: Path, fill: Callable[[gguf.GGUFWriter], None], **options: Any) -> None:
    writer = gguf.GGUFWriter(path, "llama", **options)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def fill_with_every_type(writer: gguf.GGUFWriter) -> None:
    for name, (method, value) in SCALARS.items():
        getattr(writer, method)(f"scalar.{name}", value)
    for name, (kind, dtype) in ARRAY_TYPES.items():
        writer.add_key_value(f"array.{name}", array_values(dtype).tolist(), gguf.GGUFValueType.ARRAY, kind)
    writer.add_array("array.bool", [True, False, True])
    writer.add_array("array.string", ["", "b", "ünï"])
    writer.add_array("array.raw", [b"\xff\xfe", b"x"])
    writer.add_tensor("matrix", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("cube", np.arange(24, dtype=np.float16).reshape(2, 3, 4))
    quantized = gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blocks", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)


def array_values(dtype: str) -> np.ndarray[Any, Any]:
    if dtype[0] == "f":
        return np.array([0.5, -2.0, 3.25], dtype)
    info = np.iinfo(dtype)
    return np.array([info.min, 7, info.max], dtype)
