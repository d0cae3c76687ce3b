"""The GGUF reader: what the `gguf` package writes reads back, through typed access and from split files."""

from __future__ import annotations

import shutil
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from lola_cpp import _core
from reference.crafted_gguf import (
    ARRAY,
    ARRAY_TYPES,
    F32,
    F64,
    I16,
    I32,
    I64,
    SCALARS,
    STRING,
    TYPED,
    U16,
    U32,
    array,
    array_values,
    craft,
    fill_with_every_type,
    key,
    parse,
    text,
    write_package_file,
)

FormatError = _core.FormatError


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
