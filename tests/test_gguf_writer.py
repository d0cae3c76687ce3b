"""The GGUF writer: both readers read what it wrote, and a failure leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from lola_cpp import _core
from reference.crafted_gguf import I64_MAX, I64_MIN


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
        (lambda w: w.put_tensor("t", "I32", [1], bytes(4)), "tensor format: found 'I32'"),
        (lambda w: [w.put_tensor("t", "F32", [1], bytes(4)) for _ in range(2)], "tensor 't': found it twice"),
    ],
)
def test_the_writer_refuses_what_the_reader_would(put: Callable[[Any], Any], wanted: str) -> None:
    with pytest.raises(_core.UsageError, match=wanted):
        put(_core.GgufWriter())
