"""The GGUF reader on files that lie: each fault is refused by one error that names its place."""

from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest

from lola_cpp import _core
from reference.crafted_gguf import (
    ARRAY,
    BOOL,
    F64,
    STRING,
    TENSOR_Q8_0,
    TYPED,
    U8,
    U32,
    array,
    craft,
    fill_with_every_type,
    key,
    parse,
    tensor,
    text,
    write_package_file,
)

FormatError, UnsupportedError = _core.FormatError, _core.UnsupportedError


@pytest.fixture(scope="module")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "every_type.gguf"
    write_package_file(path, fill_with_every_type)
    return path


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
