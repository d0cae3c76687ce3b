"""Importance matrices of the imatrix tool: read, used, and refused where damaged or of another model."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from lola_cpp import FormatError, UsageError, _core, quantize
from lola_cpp.convert.importance import read_importance
from reference import tiny_gguf
from reference.crafted_gguf import write_package_file
from reference.gguf_tensors import formats_of, tensors_of


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_gguf.tiny(layers=9, heads=4, kv_heads=1, hidden=256, ffn=256, head_dim=64)
    path = tmp_path_factory.mktemp("model") / "f16.gguf"
    tiny_gguf.write_model(path, config, tiny_gguf.random_weights(config), tensor_format="F16")
    return path


def columns(path: Path) -> dict[str, int]:
    """Tensor -> columns, of the tensors that the imatrix tool measures."""
    rows = _core.GgufFile(path).tensors()
    return {name: shape[-1] for name, _, shape, _ in rows if name.startswith("blk.") and len(shape) == 2}


def write_imatrix(path: Path, values: dict[str, np.ndarray], *, count: int = 4) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        for name, importance in values.items():
            writer.add_tensor(f"{name}.in_sum2", (importance * count).astype(np.float32)[None])
            writer.add_tensor(f"{name}.counts", np.full((1, 1), count, np.float32))

    write_package_file(path, fill)


def write_dat(path: Path, values: dict[str, np.ndarray], *, calls: int = 4) -> None:
    data = struct.pack("<i", len(values))
    for name, importance in values.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, importance.size)
        data += (importance * calls).astype("<f4").tobytes()
    path.write_bytes(data)


def random_importance(path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: np.exp(rng.standard_normal(size)).astype(np.float32) for name, size in columns(path).items()}


@pytest.mark.parametrize("write", [write_imatrix, write_dat], ids=["gguf", "dat"])
def test_both_formats_of_importance_matrices_give_the_mean_squares(
    write: Callable[[Path, dict[str, np.ndarray]], None], source: Path, tmp_path: Path
) -> None:
    wanted = random_importance(source)
    write(tmp_path / "imatrix", wanted)
    found = read_importance(tmp_path / "imatrix")
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name].ravel(), values, rtol=1e-6)


@pytest.mark.parametrize("write", [write_imatrix, write_dat], ids=["gguf", "dat"])
def test_importance_lowers_the_error_it_measures(
    write: Callable[[Path, dict[str, np.ndarray]], None], source: Path, tmp_path: Path
) -> None:
    importance = random_importance(source)
    write(tmp_path / "imatrix", importance)
    quantize(source, tmp_path / "without.gguf", "Q4_K_M")
    quantize(source, tmp_path / "with.gguf", "Q4_K_M", importance=tmp_path / "imatrix")
    weights = tensors_of(source)
    errors = [
        sum(float((factors * (tensors[name] - weights[name]) ** 2).sum()) for name, factors in importance.items())
        for tensors in (tensors_of(tmp_path / "with.gguf"), tensors_of(tmp_path / "without.gguf"))
    ]
    assert errors[0] < 0.95 * errors[1]


def test_an_importance_matrix_allows_two_bits_and_changes_the_first_layers_of_old_formats_of(
    source: Path, tmp_path: Path
) -> None:
    write_imatrix(tmp_path / "imatrix", random_importance(source))
    quantize(source, tmp_path / "q2.gguf", "Q2_K_S", importance=tmp_path / "imatrix")
    quantize(source, tmp_path / "q4.gguf", "Q4_0", importance=tmp_path / "imatrix")
    two_bits, old = formats_of(tmp_path / "q2.gguf"), formats_of(tmp_path / "q4.gguf")
    assert [two_bits[f"blk.{layer}.ffn_down.weight"] for layer in (0, 1, 2)] == ["Q4_K", "Q2_K", "Q2_K"]
    assert [old[f"blk.{layer}.ffn_down.weight"] for layer in (0, 1, 2)] == ["Q4_1", "Q4_0", "Q4_0"]


def test_an_importance_matrix_of_another_model_is_refused(source: Path, tmp_path: Path) -> None:
    importance = random_importance(source)
    write_imatrix(tmp_path / "few", {"blk.0.attn_q.weight": importance["blk.0.attn_q.weight"]})
    with pytest.raises(UsageError, match=r"found no importance of tensor 'blk\.0\.attn_k\.weight'"):
        quantize(source, tmp_path / "out.gguf", "Q4_K_M", importance=tmp_path / "few")
    write_dat(tmp_path / "short", importance | {"blk.0.attn_q.weight": np.ones(3, np.float32)})
    with pytest.raises(
        FormatError, match=r"importance of tensor 'blk\.0\.attn_q\.weight': found 3 numbers, wanted 256"
    ):
        quantize(source, tmp_path / "out.gguf", "Q4_K_M", importance=tmp_path / "short")


def test_an_importance_matrix_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for write in (write_imatrix, write_dat):
        write(tmp_path / "whole", {"a": np.ones(3, np.float32), "b": np.ones(2, np.float32)})
        data = (tmp_path / "whole").read_bytes()
        for length in range(len(data.rstrip(b"\0"))):
            (tmp_path / "cut").write_bytes(data[:length])
            with pytest.raises(FormatError, match="cut"):
                read_importance(tmp_path / "cut")


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_an_importance_that_is_no_mean_square_is_refused(value: float, tmp_path: Path) -> None:
    for write in (write_imatrix, write_dat):
        write(tmp_path / "bad", {"a": np.array([1.0, value], np.float32)})
        with pytest.raises(FormatError, match="importance of 'a': found a number below 0 or not finite"):
            read_importance(tmp_path / "bad")


@pytest.mark.parametrize("lie", [0, -1, 2**31 - 1])
def test_counts_that_lie_are_refused_before_memory_is_taken(lie: int, tmp_path: Path) -> None:
    write_dat(tmp_path / "good", {"a": np.ones(2, np.float32)})
    data = (tmp_path / "good").read_bytes()
    for at in (0, 4, 13):  # entries, bytes of the name, numbers
        (tmp_path / "bad").write_bytes(data[:at] + struct.pack("<i", lie) + data[at + 4 :])
        with pytest.raises(FormatError, match=f"found {lie} "):
            read_importance(tmp_path / "bad")


def test_a_gguf_without_sums_or_with_experts_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"found no tensor that ends in '\.in_sum2'"):
        read_importance(source)

    def without_counts(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("a.in_sum2", np.ones((1, 4), np.float32))

    def with_experts(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("a.in_sum2", np.ones((2, 4), np.float32))
        writer.add_tensor("a.counts", np.ones((2, 1), np.float32))

    for fill, wanted in ((without_counts, r"without 'a\.counts'"), (with_experts, "found 2 numbers, wanted 1")):
        write_package_file(tmp_path / "bad", fill)
        with pytest.raises(FormatError, match=wanted):
            read_importance(tmp_path / "bad")
