"""Checkpoints that lie: each fault is a FormatError that names the file, before memory is taken for it."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lola_cpp import FormatError, LolaError
from lola_cpp.convert.checkpoint import open_file, open_folder

GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
HUGE = 2**62


def safetensors(header: Any, data: bytes = bytes(16), *, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


MALFORMED = {
    "nothing": b"",
    "half a length": b"\x01\x00\x00",
    "a header of 2^64 - 1 bytes": safetensors({"a": GOOD}, size=2**64 - 1),
    "a header past the end": safetensors({"a": GOOD}, b"", size=10_000),
    "a header that is no JSON": safetensors(b"{"),
    "a header that is no UTF-8": safetensors(b'{"\xff": 1}'),
    "a header nested 100000 deep": safetensors(b"[" * 100_000),
    "a list": safetensors([]),
    "a number for a tensor": safetensors({"a": 1}),
    "no shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 16]}}),
    "a negative dimension": safetensors({"a": GOOD | {"shape": [-2, -2]}}),
    "a dimension of 1.5": safetensors({"a": GOOD | {"shape": [1.5]}}),
    "a dimension of true": safetensors({"a": GOOD | {"shape": [True, 4]}}),
    "dimensions whose product overflows": safetensors({"a": GOOD | {"shape": [HUGE, HUGE]}}),
    "one offset": safetensors({"a": GOOD | {"data_offsets": [0]}}),
    "offsets past the end": safetensors({"a": GOOD | {"data_offsets": [16, 32]}}),
    "offsets that run backwards": safetensors({"a": GOOD | {"data_offsets": [16, 0]}}),
    "offsets near 2^64": safetensors({"a": GOOD | {"data_offsets": [2**64 - 16, 2**64]}}),
    "too few bytes": safetensors({"a": GOOD | {"data_offsets": [0, 12]}}),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_safetensors_file_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(MALFORMED[name])
    with pytest.raises(FormatError, match=r"m\.safetensors"):
        open_file(tmp_path / "m.safetensors")


@pytest.mark.parametrize("dtype", ["I64", "F8_E4M3", "", None, 3, ["F32"], {"F32": 1}])
def test_a_dtype_that_cannot_be_converted_is_refused_where_it_is_needed(dtype: Any, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(safetensors({"a": GOOD, "b": GOOD | {"dtype": dtype}}))
    tensors = open_file(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(tensors["a"].load(), np.zeros((2, 2)))
    with pytest.raises(LolaError, match="tensor 'b': dtype"):
        tensors["b"].load()


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"weight_map": []}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": 1}}',
        b"[" * 100_000,
    ],
)
def test_an_index_that_is_none_is_refused(index: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(FormatError, match=r"index\.json"):
        open_folder(tmp_path)


@pytest.mark.parametrize("place", ["../m.safetensors", "/etc/passwd", "sub/m.safetensors", "..", ""])
def test_an_index_reaches_no_file_elsewhere(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "m.safetensors").write_bytes(safetensors({"a": GOOD}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(LolaError, match=r"wanted the name of a file beside it|is not a file"):
        open_folder(folder)


class Command:
    """Pickled, it calls a function when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    marker = tmp_path / "was here"
    torch.save({"a": Command(marker)}, tmp_path / "zip.bin")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"a": Command(marker)}))
    for name in ("zip.bin", "plain.bin"):
        with pytest.raises(FormatError, match=name):
            open_file(tmp_path / name)
    assert not marker.exists()


def test_a_tensor_of_more_numbers_than_bytes_is_refused_before_it_is_unfolded(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "m.bin")
    with pytest.raises(FormatError, match=r"'a': found shape \[1099511627776\] over 4 bytes"):
        open_file(tmp_path / "m.bin")


def test_a_pytorch_file_cut_or_damaged_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(4)}, tmp_path / "m.bin")
    whole = (tmp_path / "m.bin").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "m.bin").write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"m\.bin"):
            open_file(tmp_path / "m.bin")
    for at in range(0, len(whole), 97):
        (tmp_path / "m.bin").write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            open_file(tmp_path / "m.bin")
        except FormatError as error:
            assert "m.bin" in str(error)
