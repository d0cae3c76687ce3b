"""The GGUF reader and writer: what the `gguf` package writes reads back, and what is malformed is refused by name."""

from __future__ import annotations

import contextlib
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from lola_cpp import _core

FormatError, UnsupportedError = _core.FormatError, _core.UnsupportedError

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


# ---- Files written byte by byte, so that anything can be wrong with them ----


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


# ---- Files from the gguf package ----


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


@pytest.fixture(scope="module")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "every_type.gguf"
    write_package_file(path, fill_with_every_type)
    return path


def test_every_value_type_of_the_gguf_package_reads_back(every_type: Path) -> None:
    file = _core.GgufFile(every_type)
    for name, (_, value) in SCALARS.items():
        found = file.get(f"scalar.{name}")
        assert found == value and type(found) is type(value), name
    for name, (_, dtype) in ARRAY_TYPES.items():
        found = file.get(f"array.{name}")
        assert found.dtype == np.dtype(dtype), name
        np.testing.assert_array_equal(found, array_values(dtype))
    assert file.get("array.bool").tolist() == [True, False, True]
    assert file.get("array.string") == [b"", b"b", "ünï".encode()]
    assert file.get("array.raw") == [b"\xff\xfe", b"x"]
    assert file.get("absent") is None
    assert file.get("absent", 3) == 3
    assert file.keys()[0] == "general.architecture"
    assert file.path == str(every_type)
    assert file.file_bytes == every_type.stat().st_size


def test_tensors_read_back_with_their_shape_slowest_dimension_first(every_type: Path) -> None:
    file = _core.GgufFile(every_type)
    assert file.tensors() == [
        ("matrix", "F32", (3, 4), 48),
        ("cube", "F16", (2, 3, 4), 48),
        ("blocks", "Q8_0", (2, 64), 2 * 2 * 34),
    ]
    np.testing.assert_array_equal(file.tensor_data("matrix").view(np.float32), np.arange(12))
    np.testing.assert_array_equal(file.tensor_data("cube").view(np.float16), np.arange(24))
    raw = gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(file.tensor_data("blocks"), raw.reshape(-1))
    with pytest.raises(FormatError, match=r"'nothing'.*no such tensor"):
        file.tensor_data("nothing")


def test_version_2_reads_as_version_3_does(every_type: Path) -> None:
    data = bytearray(every_type.read_bytes())
    new = parse(bytes(data))
    data[4] = 2
    old = parse(bytes(data))
    assert old.keys() == new.keys()
    assert old.tensors() == new.tensors()


def test_strings_that_are_not_utf8_are_readable() -> None:
    file = parse(craft([key(b"k", STRING, text(b"a\xff"))]))
    assert file.get("k") == "a\N{REPLACEMENT CHARACTER}"
    assert file.find_string("k") == b"a\xff"


@pytest.mark.parametrize("alignment", [8, 64, 4096, 2**20])
def test_any_permitted_alignment_reads(tmp_path: Path, alignment: int) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_custom_alignment(alignment)
        writer.add_tensor("a", np.full(3, 1.0, np.float32))
        writer.add_tensor("b", np.full(5, 2.0, np.float32))

    write_package_file(tmp_path / "m.gguf", fill)
    file = _core.GgufFile(tmp_path / "m.gguf")
    assert file.tensor_data("a").view(np.float32).tolist() == [1.0] * 3
    assert file.tensor_data("b").view(np.float32).tolist() == [2.0] * 5


def test_empty_arrays_and_empty_strings_read() -> None:
    file = parse(craft([key(b"n", ARRAY, array(U32, 0, b"")), key(b"s", ARRAY, array(STRING, 0, b""))]))
    assert file.get("n").tolist() == []
    assert file.get("s") == []
    assert file.find_int_array("n", 0, 1) == []
    assert file.find_string_array("s") == []


def test_a_large_vocabulary_opens_in_less_than_100_ms(tmp_path: Path) -> None:
    tokens = [text(b"token%d" % i) for i in range(128_256)]
    merges = [text(b"le%d ft%d" % (i, i)) for i in range(280_000)]
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(
        craft(
            [
                key(b"tokenizer.ggml.tokens", ARRAY, array(STRING, len(tokens), b"".join(tokens))),
                key(b"tokenizer.ggml.merges", ARRAY, array(STRING, len(merges), b"".join(merges))),
            ]
        )
    )
    seconds = []
    for _ in range(5):  # the best of five: a busy machine is not the reader's doing
        start = time.perf_counter()
        _core.GgufFile(path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1


# ---- Paths ----


def test_paths_may_be_unicode_and_relative(every_type: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(every_type, tmp_path / "naïve ☃.gguf")
    monkeypatch.chdir(tmp_path)
    assert _core.GgufFile("naïve ☃.gguf").path == "naïve ☃.gguf"


def test_files_that_cannot_be_opened_are_device_errors(tmp_path: Path) -> None:
    with pytest.raises(_core.DeviceError, match=r"absent.*o such file"):
        _core.GgufFile(tmp_path / "absent.gguf")
    with pytest.raises(_core.DeviceError):
        _core.GgufFile(tmp_path)


def test_an_empty_file_is_a_format_error(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.touch()
    with pytest.raises(FormatError, match=r"0 bytes"):
        _core.GgufFile(path)


# ---- Typed access ----

TYPED: dict[str, Callable[[Any, str], Any]] = {
    "int": lambda file, name: file.find_int(name, I64_MIN, I64_MAX),
    "float": lambda file, name: file.find_float(name),
    "bool": lambda file, name: file.find_bool(name),
    "string": lambda file, name: file.find_string(name),
    "int_array": lambda file, name: file.find_int_array(name, I64_MIN, I64_MAX),
    "float_array": lambda file, name: file.find_float_array(name),
    "string_array": lambda file, name: file.find_string_array(name),
}
VALUE_TYPES = [*(f"scalar.{name}" for name in SCALARS), *(f"array.{name}" for name in [*ARRAY_TYPES, "bool", "string"])]


def accessor_of(name: str) -> str | None:
    shape, kind = name.split(".")
    base = {"bool": "bool", "string": "string"}.get(kind, "float" if kind[0] == "f" else "int")
    if shape == "scalar":
        return base
    return None if base == "bool" else f"{base}_array"


@pytest.mark.parametrize("accessor", TYPED)
@pytest.mark.parametrize("name", VALUE_TYPES)
def test_a_value_reads_through_its_own_accessor_and_no_other(every_type: Path, name: str, accessor: str) -> None:
    file = _core.GgufFile(every_type)
    if accessor != accessor_of(name):
        with pytest.raises(FormatError, match=rf"key '{name}': found .*{name.split('.')[1]}.*, wanted "):
            TYPED[accessor](file, name)
    elif name.endswith(".u64"):
        with pytest.raises(FormatError, match=rf"key '{name}': found 18446744073709551615.*, wanted an integer"):
            TYPED[accessor](file, name)
    else:
        found, value = TYPED[accessor](file, name), file.get(name)
        assert (found.decode() if isinstance(found, bytes) else found) == (
            value.tolist() if isinstance(value, np.ndarray) else value
        )


@pytest.mark.parametrize("accessor", TYPED)
def test_an_absent_key_gives_nothing(every_type: Path, accessor: str) -> None:
    assert TYPED[accessor](_core.GgufFile(every_type), "absent") is None


@pytest.mark.parametrize("value", [-1, 0, 9, 10, 255])
@pytest.mark.parametrize("kind, code", [(I16, "h"), (I32, "i"), (I64, "q")])
def test_integers_of_any_width_are_accepted_when_in_range(kind: int, code: str, value: int) -> None:
    number = struct.pack(f"<{code}", value)
    file = parse(
        craft([key(b"k", kind, number), key(b"a", ARRAY, array(kind, 2, struct.pack(f"<{code}", 5) + number))])
    )
    if 0 <= value <= 9:
        assert file.find_int("k", 0, 9) == value
        assert file.find_int_array("a", 0, 9) == [5, value]
        return
    with pytest.raises(FormatError, match=f"key 'k': found {value}, wanted an integer from 0 to 9"):
        file.find_int("k", 0, 9)
    with pytest.raises(FormatError, match=f"key 'a': found {value} at index 1, wanted an integer from 0 to 9"):
        file.find_int_array("a", 0, 9)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind, code", [(F32, "f"), (F64, "d")])
def test_floats_must_be_finite(kind: int, code: str, value: float) -> None:
    number = struct.pack(f"<{code}", value)
    file = parse(craft([key(b"k", kind, number), key(b"a", ARRAY, array(kind, 1, number))]))
    with pytest.raises(FormatError, match=r"key 'k': found -?(nan|inf)"):
        file.find_float("k")
    with pytest.raises(FormatError, match=r"key 'a': found -?(nan|inf) at index 0"):
        file.find_float_array("a")


# ---- Split files ----


def write_split(folder: Path, **options: Any) -> list[Path]:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_uint32("answer", 42)
        for i in range(3):
            writer.add_tensor(f"t{i}", np.full(4, i, np.float32))

    write_package_file(folder / "m.gguf", fill, split_max_tensors=1, **options)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("small_first", [False, True])
def test_any_part_of_a_split_file_opens_all_of_it(tmp_path: Path, small_first: bool) -> None:
    parts = write_split(tmp_path, small_first_shard=small_first)
    assert len(parts) == 3 + small_first
    for part in parts:
        file = _core.GgufFile(part)
        assert file.get("answer") == 42
        assert [row[0] for row in file.tensors()] == ["t0", "t1", "t2"]
        assert file.file_bytes == sum(p.stat().st_size for p in parts)
        for i in range(3):
            assert file.tensor_data(f"t{i}").view(np.float32).tolist() == [i] * 4


def patch(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def split_key(name: bytes, kind: int, code: str, value: int) -> bytes:
    return key(b"split." + name, kind, struct.pack(f"<{code}", value))


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    parts[1].unlink()
    for part in (parts[0], parts[2]):
        with pytest.raises(FormatError, match=r"m-00002-of-00003.gguf': found no such file, wanted part 2 of 3"):
            _core.GgufFile(part)


def test_a_part_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    shutil.copy(parts[0], parts[1])
    with pytest.raises(FormatError, match=r"m-00002-of-00003.gguf', key 'split.no': found 0, wanted 1"):
        _core.GgufFile(parts[0])


def test_a_renamed_part_is_refused(tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    renamed = parts[0].rename(tmp_path / "other.gguf")
    with pytest.raises(FormatError, match=r"other.gguf'.*part 1 of 3.*ends in '-00001-of-00003.gguf'"):
        _core.GgufFile(renamed)


def test_parts_that_disagree_are_refused(tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    patch(parts[1], split_key(b"count", U16, "H", 3), split_key(b"count", U16, "H", 4))
    with pytest.raises(FormatError, match=r"00002-of-00003.gguf', key 'split.count': found 4, wanted 3"):
        _core.GgufFile(parts[0])


def test_a_part_beyond_the_count_is_refused(tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    patch(parts[0], split_key(b"no", U16, "H", 0), split_key(b"no", U16, "H", 3))
    with pytest.raises(FormatError, match=r"key 'split.no': found 3, wanted an integer from 0 to 2"):
        _core.GgufFile(parts[0])


def test_a_wrong_tensor_total_is_refused(tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    patch(parts[2], split_key(b"tensors.count", I32, "i", 3), split_key(b"tensors.count", I32, "i", 5))
    with pytest.raises(FormatError, match=r"00003-of-00003.gguf', key 'split.tensors.count': found 5, wanted 3"):
        _core.GgufFile(parts[0])


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    patch(parts[2], text(b"t2"), text(b"t0"))
    with pytest.raises(FormatError, match=r"tensor 't0': found it twice"):
        _core.GgufFile(parts[0])


def test_a_part_without_its_number_is_refused(tmp_path: Path) -> None:
    parts = write_split(tmp_path)
    patch(parts[0], text(b"split.no"), text(b"split.nx"))
    with pytest.raises(FormatError, match=r"key 'split.no': found no such key"):
        _core.GgufFile(parts[0])


def test_a_part_in_memory_is_refused(tmp_path: Path) -> None:
    data = write_split(tmp_path)[0].read_bytes()
    with pytest.raises(FormatError, match=r"key 'split.count': found 3"):
        parse(data)


# ---- Malformed files ----


def good_tensor(name: bytes = b"t", offset: int = 0) -> bytes:
    return tensor(name, [8], offset=offset)


DATA = bytes(32)  # of good_tensor
HUGE = [2**32, 2**61, 2**63, 2**64 - 1]
Case = tuple[bytes, type[Exception], str]

MALFORMED: dict[str, Case] = {
    "no magic": (b"GGML" + craft()[4:], FormatError, "found 'GGML', wanted a file that starts with 'GGUF'"),
    "magic that is no text": (b"\xff\x00\x1b\n" + craft()[4:], FormatError, r"found '\\xff\\x00\\x1b\\x0a'"),
    "version 0": (craft(version=0), UnsupportedError, "found version 0, wanted GGUF version 2 or 3"),
    "version 1": (craft(version=1), UnsupportedError, "found version 1, wanted GGUF version 2 or 3"),
    "version 4": (craft(version=4), UnsupportedError, "found version 4, wanted GGUF version 2 or 3"),
    "big endian": (craft(version=3 << 24), UnsupportedError, "found a big-endian file, wanted little-endian"),
    # Keys
    "a key twice": (craft([key(b"k", U8, b"1"), key(b"k", U8, b"2")]), FormatError, "key 'k': found it twice"),
    "a key without name": (craft([key(b"", U8, b"12")]), FormatError, "key number 0: found a name of 0 bytes"),
    "a key of 65536 bytes": (craft([key(b"k" * 65536, U8, b"1")]), FormatError, "found a name of 65536 bytes"),
    "a key that is not UTF-8": (craft([key(b"a\xc0\xaf", U8, b"1")]), FormatError, r"key 'a\\xc0\\xaf'.*UTF-8"),
    "an unknown value type": (craft([key(b"k", 13, bytes(99))]), FormatError, "key 'k': found 13 as the value type"),
    "a bool of 2": (craft([key(b"k", BOOL, b"\x02")]), FormatError, "key 'k': found 2 as a bool, wanted 0 or 1"),
    "a bool of 255 in an array": (
        craft([key(b"k", ARRAY, array(BOOL, 3, b"\x01\x00\xff"))]),
        FormatError,
        "key 'k': found 255 as a bool, wanted 0 or 1",
    ),
    "an array of arrays": (
        craft([key(b"k", ARRAY, array(ARRAY, 1, array(U8, 1, b"1")))]),
        UnsupportedError,
        "key 'k': found an array of arrays",
    ),
    "arrays nested 10000 deep": (
        craft([key(b"k", ARRAY, array(ARRAY, 1, b"") * 10_000)]),
        UnsupportedError,
        "key 'k': found an array of arrays",
    ),
    "an empty array of arrays": (
        craft([key(b"k", ARRAY, array(ARRAY, 0, b""))]),
        UnsupportedError,
        "key 'k': found an array of arrays",
    ),
    "an array of an unknown type": (
        craft([key(b"k", ARRAY, array(99, 0, b""))]),
        FormatError,
        "key 'k': found 99 as the element type",
    ),
    "an array string past the end": (
        craft([key(b"k", ARRAY, array(STRING, 2, text(b"a") + struct.pack("<Q", 2)))]),
        FormatError,
        "key 'k': found 2 as the string's length",
    ),
    # Tensors
    "a tensor twice": (
        craft(tensors=[good_tensor(), good_tensor(offset=32)], data=DATA * 2),
        FormatError,
        "tensor 't': found it twice",
    ),
    "a tensor without name": (
        craft(tensors=[good_tensor(b"")], data=DATA),
        FormatError,
        "tensor number 0: found a name of 0 bytes",
    ),
    "a tensor name of 65 bytes": (
        craft(tensors=[good_tensor(b"t" * 65)], data=DATA),
        FormatError,
        "found a name of 65 bytes, wanted 1 to 64",
    ),
    "a tensor name that is not UTF-8": (
        craft(tensors=[good_tensor(b"\xed\xa0\x80")], data=DATA),
        FormatError,
        r"tensor '\\xed\\xa0\\x80': found a name that is not UTF-8",
    ),
    "overlapping tensors": (
        craft(tensors=[tensor(b"a", [9]), good_tensor(b"b", 32)], data=DATA * 2),
        FormatError,
        "tensor 'b': found offset 32, wanted at least 36, where tensor 'a' ends",
    ),
    "two tensors at one place": (
        craft(tensors=[good_tensor(b"a"), good_tensor(b"b")], data=DATA * 2),
        FormatError,
        "tensor '[ab]': found offset 0, wanted at least 32",
    ),
    "an offset between alignments": (
        craft(tensors=[good_tensor(offset=8)], data=DATA * 2),
        FormatError,
        "tensor 't': found offset 8, wanted a multiple of 32",
    ),
    "an offset at the end": (
        craft(tensors=[good_tensor(offset=32)], data=DATA),
        FormatError,
        "tensor 't': found 32 bytes at offset 32, wanted data inside the section of 32 bytes",
    ),
    "an offset near 2^64": (
        craft(tensors=[good_tensor(offset=2**64 - 32)], data=DATA),
        FormatError,
        "tensor 't': found 32 bytes at offset 18446744073709551584",
    ),
    "data cut short": (
        craft(tensors=[good_tensor()], data=DATA[:-1]),
        FormatError,
        "tensor 't': found 32 bytes at offset 0, wanted data inside the section of 31 bytes",
    ),
    "rows that are no whole blocks": (
        craft(tensors=[tensor(b"t", [48, 32], TENSOR_Q8_0)], data=bytes(4096)),
        FormatError,
        "tensor 't': found rows of 48 weights, wanted a multiple of 32 for type Q8_0",
    ),
    "a product of dimensions over 2^63": (
        craft(tensors=[tensor(b"t", [2**31, 2**31, 2, 1])], data=DATA),
        FormatError,
        "tensor 't': found 2 as the size of dimension 2, wanted 1 to 1",
    ),
    "a product of dimensions that wraps to 0": (
        craft(tensors=[tensor(b"t", [2**32, 2**32])], data=DATA),
        FormatError,
        "tensor 't': found 4294967296 as the size of dimension 1",
    ),
    "bytes that wrap to few": (
        craft(tensors=[tensor(b"t", [2**62])], data=DATA),
        FormatError,
        "tensor 't': found 4611686018427387904 weights of type F32",
    ),
}
MALFORMED |= {
    f"alignment {value}": (
        craft([key(b"general.alignment", U32, struct.pack("<I", value))], [good_tensor()], DATA),
        FormatError,
        f"key 'general.alignment': found {value}, wanted .* from 8 to 1048576",
    )
    for value in (0, 1, 3, 4, 48, 2**21, 2**31, 2**32 - 1)
}
MALFORMED["alignment as a string"] = (
    craft([key(b"general.alignment", STRING, text(b"32"))]),
    FormatError,
    "key 'general.alignment': found string, wanted an integer",
)
MALFORMED |= {
    f"dimension {size} at {at}": (
        craft(tensors=[tensor(b"t", [*[1] * at, size, *[1] * (3 - at)])], data=DATA),
        FormatError,
        f"tensor 't': found {size} as the size of dimension {at}",
    )
    for size in (0, 2**63, 2**64 - 1)
    for at in range(4)
}
MALFORMED |= {
    f"{count} dimensions": (
        craft(tensors=[tensor(b"t", [1] * 5, n_dims=count)], data=DATA),
        FormatError,
        f"tensor 't': found {count} dimensions, wanted 1 to 4",
    )
    for count in (0, 5, 2**31, 2**32 - 1)
}
MALFORMED |= {
    f"tensor type {number}": (
        craft(tensors=[tensor(b"t", [8], number)], data=DATA),
        UnsupportedError,
        f"tensor 't': found {found}, wanted one of F32, F16",
    )
    for number, found in (
        (4, r"type Q4_2 \(4\)"),
        (26, r"type I32 \(26\)"),
        (28, r"type F64 \(28\)"),
        (1000, "unknown type 1000"),
        (2**32 - 1, "unknown type 4294967295"),
    )
}
for huge in HUGE:
    MALFORMED |= {
        f"{huge} keys": (craft(n_keys=huge), FormatError, f"found {huge} as the key count"),
        f"{huge} tensors": (craft(n_tensors=huge), FormatError, f"found {huge} as the tensor count"),
        f"a key of {huge} bytes": (
            craft([struct.pack("<Q", huge) + bytes(30)]),
            FormatError,
            f"key number 0: found {huge} as the name's length",
        ),
        f"a string of {huge} bytes": (
            craft([key(b"k", STRING, struct.pack("<Q", huge) + bytes(30))]),
            FormatError,
            f"key 'k': found {huge} as the string's length",
        ),
        f"a tensor name of {huge} bytes": (
            craft(tensors=[struct.pack("<Q", huge) + bytes(60)]),
            FormatError,
            f"tensor number 0: found {huge} as the name's length",
        ),
    } | {
        f"{huge} elements of type {kind}": (
            craft([key(b"k", ARRAY, array(kind, huge, bytes(30)))]),
            FormatError,
            f"key 'k': found {huge} as the array's length",
        )
        for kind in (U8, U32, F64, BOOL, STRING)
    }


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_with_its_place(name: str) -> None:
    data, error, wanted = MALFORMED[name]
    with pytest.raises(error, match=rf"(?s)^file 'crafted', .*{wanted}"):
        parse(data)


def test_the_cases_of_malformed_files_are_right_but_for_their_fault() -> None:
    parse(craft([key(b"k", BOOL, b"\x01")], [good_tensor()], DATA))
    parse(craft(tensors=[tensor(b"t", [32, 32], TENSOR_Q8_0)], data=bytes(34 * 32)))
    parse(craft(tensors=[good_tensor(b"b", 64), tensor(b"a", [9])], data=DATA * 3))
    parse(craft(tensors=[good_tensor(b"t" * 64)], data=DATA))
    parse(craft([key("ключ ☃ 𝄞".encode(), U8, b"1"), key(b"k" * 65535, U8, b"1")]))


def test_a_big_endian_file_of_the_gguf_package_is_refused_as_such(tmp_path: Path) -> None:
    write_package_file(tmp_path / "big.gguf", fill_with_every_type, endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(UnsupportedError, match=r"found a big-endian file"):
        _core.GgufFile(tmp_path / "big.gguf")


def test_a_file_cut_at_any_byte_is_refused(every_type: Path, tmp_path: Path) -> None:
    data = every_type.read_bytes()
    end = len(data.rstrip(b"\0"))  # what follows is padding, which nobody needs
    assert parse(data[: len(data)]).tensors()
    for length in range(end):
        with pytest.raises(FormatError, match=r"^file 'crafted', (header|key|tensor) .*: found .*, wanted "):
            parse(data[:length])


def test_a_mapped_file_that_was_cut_is_refused(every_type: Path, tmp_path: Path) -> None:
    data = every_type.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in (1, 23, 24, 100, len(data) // 2, 4096):
        path.write_bytes(data[: min(length, len(data) - 64)])
        with pytest.raises(FormatError, match=r"cut\.gguf'"):
            _core.GgufFile(path)


def touch_everything(file: Any) -> None:
    for name in file.keys():  # noqa: SIM118 (not a dict)
        file.get(name)
        for access in TYPED.values():
            with contextlib.suppress(FormatError):
                access(file, name)
    for name, *_ in file.tensors():
        file.tensor_data(name).sum()


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_ends_in_a_file_or_in_one_of_two_errors(every_type: Path, seed: int) -> None:
    source = random.Random(seed)
    original = every_type.read_bytes()
    interesting = [0, 1, 2, 3, 0x7F, 0x80, 0xFF]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(800):
        data = bytearray(original)
        for _ in range(source.randint(1, 4)):
            at = source.randrange(len(data))
            choice = source.random()
            if choice < 0.4:
                data[at] ^= 1 << source.randrange(8)
            elif choice < 0.8:
                data[at] = source.choice(interesting)
            else:
                del data[at : at + source.randint(1, 8)]
        try:
            touch_everything(parse(bytes(data)))
            outcomes["read"] += 1
        except (FormatError, UnsupportedError) as error:
            assert str(error).startswith("file 'crafted', ")
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50  # both ways were taken


# ---- Writer ----


def filled_writer() -> Any:
    writer = _core.GgufWriter()
    writer.put_string("general.architecture", "state")
    writer.put_int("int", I64_MIN)
    writer.put_uint("uint", 2**64 - 1)
    writer.put_float("float", 0.1)
    writer.put_bool("yes", True)
    writer.put_bool("no", False)
    writer.put_string("text", "naïve ☃")
    writer.put_int_array("ints", [1, -2, I64_MAX])
    writer.put_bytes("bytes", b"\x00\xff")
    writer.put_tensor("cube", "F16", [2, 3, 5], np.arange(30, dtype=np.float16).tobytes())
    writer.put_tensor("row", "F32", [3], np.arange(3, dtype=np.float32).tobytes())
    return writer


def test_what_the_writer_wrote_both_readers_read(tmp_path: Path) -> None:
    path = tmp_path / "state.gguf"
    filled_writer().write(path)
    file = _core.GgufFile(path)
    wanted = {
        "general.architecture": "state",
        "int": I64_MIN,
        "uint": 2**64 - 1,
        "float": 0.1,
        "yes": True,
        "no": False,
        "text": "naïve ☃",
    }
    assert {name: file.get(name) for name in wanted} == wanted
    assert file.get("ints").tolist() == [1, -2, I64_MAX]
    assert file.get("bytes").tolist() == [0, 255]
    assert file.tensors() == [("cube", "F16", (2, 3, 5), 60), ("row", "F32", (3,), 12)]

    package = gguf.GGUFReader(path)
    assert {name: package.fields[name].contents() for name in wanted} == wanted
    cube, row = package.tensors
    np.testing.assert_array_equal(cube.data, np.arange(30, dtype=np.float16).reshape(2, 3, 5))
    np.testing.assert_array_equal(row.data, np.arange(3, dtype=np.float32))
    assert path.stat().st_size % 32 == 0


def test_an_empty_file_of_the_writer_reads(tmp_path: Path) -> None:
    _core.GgufWriter().write(tmp_path / "empty.gguf")
    file = _core.GgufFile(tmp_path / "empty.gguf")
    assert file.keys() == [] and file.tensors() == []


def test_writing_replaces_an_older_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "ünï.gguf"
    path.write_text("older")
    filled_writer().write(path)
    assert _core.GgufFile(path).get("text") == "naïve ☃"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_cannot_start_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(_core.DeviceError, match=r"absent.*cannot create.*o such file"):
        filled_writer().write(tmp_path / "absent" / "state.gguf")


def test_a_write_over_a_folder_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(_core.DeviceError, match=r"cannot rename"):
        filled_writer().write(folder)
    assert list(tmp_path.iterdir()) == [folder]


# In a process of its own: the limit on file sizes cannot be lifted again. Python ignores SIGXFSZ, so write() fails.
FULL_DISK = """
import resource, sys
from lola_cpp import _core
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
writer = _core.GgufWriter()
writer.put_bytes("k", bytes(100_000))
try:
    writer.write(sys.argv[1])
except _core.DeviceError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on file sizes")
def test_a_full_disk_is_a_device_error_and_the_older_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "state.gguf"
    path.write_text("older")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "cannot write" in done.stdout and "too large" in done.stdout
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "put, wanted",
    [
        (lambda w: w.put_int("", 1), "found a name of 0 bytes"),
        (lambda w: w.put_int("k" * 65536, 1), "found a name of 65536 bytes"),
        (lambda w: (w.put_int("k", 1), w.put_bool("k", True)), "key 'k': found it twice"),
        (lambda w: w.put_tensor("t" * 65, "F32", [1], bytes(4)), "found a name of 65 bytes"),
        (lambda w: w.put_tensor("t", "F32", [2], bytes(4)), "found 4 bytes .* wanted 8 bytes"),
        (lambda w: w.put_tensor("t", "F32", [], bytes(4)), "0 dimensions"),
        (lambda w: w.put_tensor("t", "F32", [1] * 5, bytes(4)), "5 dimensions"),
        (lambda w: w.put_tensor("t", "F32", [1, 0], b""), "wanted a shape"),
        (lambda w: w.put_tensor("t", "F32", [-1, -1], bytes(4)), "wanted a shape"),
        (lambda w: w.put_tensor("t", "F32", [2**62, 4], b""), "wanted a shape"),
        (lambda w: w.put_tensor("t", "Q8_0", [48], bytes(51)), "wanted a shape"),
        (lambda w: w.put_tensor("t", "I32", [1], bytes(4)), "tensor type: found 'I32'"),
        (lambda w: [w.put_tensor("t", "F32", [1], bytes(4)) for _ in range(2)], "tensor 't': found it twice"),
    ],
)
def test_the_writer_refuses_what_the_reader_would(put: Callable[[Any], Any], wanted: str) -> None:
    with pytest.raises(_core.UsageError, match=wanted):
        put(_core.GgufWriter())
