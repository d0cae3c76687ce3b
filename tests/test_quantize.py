"""Quantizing whole models: the formats of each tensor, what is kept, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from lola_cpp import FormatError, LolaError, Model, UnsupportedError, UsageError, _core, quantize
from lola_cpp.convert.merge import merge_adapter
from lola_cpp.convert.mixtures import MIXTURES
from lola_cpp.convert.quantize_cli import main
from reference import tiny_gguf
from reference.crafted_gguf import write_package_file
from reference.gguf_tensors import formats_of, tensors_of

# Wide enough for blocks of 256, with the sixteen layers that the mixtures' rules tell apart.
CONFIG = tiny_gguf.tiny(layers=16, heads=4, kv_heads=1, hidden=256, ffn=256, head_dim=64)
SMALL = tiny_gguf.tiny(layers=1)
SOME_MIXTURES = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "f32.gguf"
    tiny_gguf.write_model(path, SMALL, tiny_gguf.random_weights(SMALL))
    return path


@pytest.fixture(scope="module")
def deep_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "deep.gguf"
    tiny_gguf.write_model(path, CONFIG, tiny_gguf.random_weights(CONFIG), tensor_format="F16")
    return path


# --- Mixtures ---

# What llama_model_quantize of llama-cpp-python 0.3.36 chooses for this model: the layers that are not in the mixture's
# own format.
FACTS: dict[str, dict[str, dict[str, set[int]]]] = {
    "Q2_K": {"attn_v": {"Q4_K": set(range(16))}, "ffn_down": {"Q3_K": set(range(16))}},
    "Q3_K_M": {"attn_v": {"Q5_K": {0, 1}, "Q4_K": set(range(2, 16))}, "ffn_down": {"Q5_K": {0}}},
    "Q3_K_L": {"attn_output": {"Q5_K": set(range(16))}, "attn_k": {}},
    "Q4_K_S": {"attn_v": {"Q5_K": {0, 1, 2, 3}}, "ffn_down": {"Q5_K": {0, 1}}, "attn_output": {}},
    "Q4_K_M": {"attn_v": {"Q6_K": {0, 1, 4, 7, 10, 13, 14, 15}}, "ffn_down": {"Q6_K": {0, 1, 4, 7, 10, 13, 14, 15}}},
    "Q5_K_M": {"attn_v": {"Q6_K": {0, 1, 4, 7, 10, 13, 14, 15}}, "attn_q": {}},
    "Q4_0": {"ffn_down": {}},
}


@pytest.mark.parametrize("mixture", FACTS)
def test_a_mixture_gives_each_layer_the_format_llama_cpp_gives_it(
    mixture: str, deep_source: Path, tmp_path: Path
) -> None:
    quantize(deep_source, tmp_path / "out.gguf", mixture)
    found = formats_of(tmp_path / "out.gguf")
    for part, expected in FACTS[mixture].items():
        for layer in range(16):
            wanted = next((kind for kind, layers in expected.items() if layer in layers), None)
            if part == "ffn_down" and mixture == "Q3_K_M":
                wanted = wanted or "Q4_K"
            assert found[f"blk.{layer}.{part}.weight"] == (wanted or MIXTURES[mixture].kind)
    assert found["output.weight"] == "Q6_K"
    assert found["token_embd.weight"] == MIXTURES[mixture].kind
    assert found["blk.0.attn_norm.weight"] == "F32"


def test_a_tied_embedding_gets_the_format_of_an_output(tmp_path: Path) -> None:
    config = tiny_gguf.tiny(layers=1, tied=True)
    tiny_gguf.write_model(tmp_path / "in.gguf", config, tiny_gguf.random_weights(config))
    for mixture, wanted in (("Q4_K_S", "Q6_K"), ("Q8_0", "Q8_0"), ("F16", "F16")):
        quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", mixture)
        assert formats_of(tmp_path / "out.gguf")["token_embd.weight"] == wanted


@pytest.mark.parametrize(
    ("hidden", "mixture", "wanted"),
    [
        (96, "Q4_K_S", "Q5_0"),
        (96, "Q5_K_S", "Q5_1"),
        (96, "Q6_K", "Q8_0"),
        (96, "Q3_K_S", "Q4_0"),
        (72, "Q4_K_S", "F16"),
    ],
)
def test_rows_of_odd_width_fall_back_as_llama_cpp_does(hidden: int, mixture: str, wanted: str, tmp_path: Path) -> None:
    config = tiny_gguf.tiny(layers=1, hidden=hidden)
    tiny_gguf.write_model(tmp_path / "in.gguf", config, tiny_gguf.random_weights(config))
    quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", mixture)
    found = formats_of(tmp_path / "out.gguf")
    assert found["blk.0.attn_q.weight"] == found["token_embd.weight"] == wanted
    assert found["output.weight"] == ("F16" if hidden == 72 else "Q8_0")
    assert Model(tmp_path / "out.gguf").info.layers == 1


def test_overrides_choose_formats_by_name(source: Path, tmp_path: Path) -> None:
    overrides = {r"attn_[kv]\.": "Q8_0", "output.weight": "F16"}
    quantize(source, tmp_path / "out.gguf", "Q4_K_M", overrides=overrides)
    found = formats_of(tmp_path / "out.gguf")
    assert found["blk.0.attn_k.weight"] == found["blk.0.attn_v.weight"] == "Q8_0"
    assert (found["output.weight"], found["blk.0.attn_q.weight"]) == ("F16", "Q4_K")


# --- Files ---


@pytest.mark.parametrize("mixture", SOME_MIXTURES)
def test_a_quantized_model_runs_and_its_weights_are_near(mixture: str, source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out.gguf", mixture)
    found, wanted = tensors_of(tmp_path / "out.gguf"), tensors_of(source)
    assert list(found) == list(wanted)
    for name, weights in wanted.items():
        assert np.std(found[name] - weights) <= 0.3 * np.std(weights), name
    session = Model(tmp_path / "out.gguf", threads=1).session()
    session.append([3, 4, 5])
    assert np.isfinite(session.logits).all()


def test_the_keys_are_kept_with_their_types(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out.gguf", "Q5_K_M")
    before, after = _core.GgufFile(source), _core.GgufFile(tmp_path / "out.gguf")
    for key in before.keys():  # noqa: SIM118 (not a dict)
        assert after.value_type(key) == before.value_type(key)
        np.testing.assert_array_equal(after.get(key), before.get(key))
    reader = gguf.GGUFReader(tmp_path / "out.gguf")  # the package's own reader agrees
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q5_K_M
    assert reader.fields["general.quantization_version"].contents() == gguf.GGML_QUANT_VERSION
    assert reader.fields["general.file_type"].types == [gguf.GGUFValueType.UINT32]


def test_every_mixture_has_llama_cpps_number() -> None:
    for name, mixture in MIXTURES.items():
        wanted = "ALL_F32" if name == "F32" else f"MOSTLY_{name}"
        assert gguf.LlamaFileType[wanted].value == mixture.file_type


def test_vectors_and_the_maps_of_a_one_file_lola_model_stay_as_they_are(tmp_path: Path) -> None:
    config, adapter = tiny_gguf.tiny(layers=1), tiny_gguf.TinyAdapter()
    tiny_gguf.write_model(tmp_path / "base.gguf", config, tiny_gguf.random_weights(config))
    tiny_gguf.write_adapter(tmp_path / "a.gguf", config, adapter, tiny_gguf.random_adapter(config, adapter))
    merge_adapter(tmp_path / "base.gguf", tmp_path / "a.gguf", tmp_path / "one.gguf")
    quantize(tmp_path / "one.gguf", tmp_path / "out.gguf", "Q4_K_M")
    before, after = _core.GgufFile(tmp_path / "one.gguf"), _core.GgufFile(tmp_path / "out.gguf")
    kept = [name for name, _, shape, _ in before.tensors() if "attn_lola" in name or len(shape) == 1]
    assert len(kept) >= 6
    for name in kept:
        np.testing.assert_array_equal(after.tensor_data(name), before.tensor_data(name))
    assert Model(tmp_path / "out.gguf").info.has_lola


def test_the_file_does_not_depend_on_threads_and_shows_its_progress(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for threads in (1, 4):
        quantize(source, tmp_path / f"{threads}.gguf", "Q4_K_M", threads=threads, progress=threads == 4)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "4.gguf").read_bytes()
    assert "Q4_K_M: 100%" in capsys.readouterr().err


def test_the_parts_of_a_split_model_are_joined(source: Path, tmp_path: Path) -> None:
    weights = tiny_gguf.random_weights(SMALL)
    names = list(tensors_of(source))
    for part, of_part in enumerate((names[:5], names[5:])):

        def fill(writer: gguf.GGUFWriter, part: int = part, of_part: list[str] = of_part) -> None:
            if part == 0:
                tiny_gguf._write_metadata(writer, SMALL)
            writer.add_uint16("split.no", part)
            writer.add_uint16("split.count", 2)
            writer.add_int32("split.tensors.count", len(names))
            for name in of_part:
                writer.add_tensor(name, tensors_of(source)[name])

        write_package_file(tmp_path / f"in-{part + 1:05}-of-00002.gguf", fill)
    assert weights
    quantize(tmp_path / "in-00002-of-00002.gguf", tmp_path / "joined.gguf", "Q8_0")
    quantize(source, tmp_path / "whole.gguf", "Q8_0")
    joined, whole = (tensors_of(tmp_path / f"{name}.gguf") for name in ("joined", "whole"))
    for name, value in whole.items():
        np.testing.assert_array_equal(joined[name], value)
    assert _core.GgufFile(tmp_path / "joined.gguf").get("split.count") is None


def test_a_run_that_is_stopped_leaves_the_older_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_bytes(b"older")

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _core.quantize_file(_core.GgufFile(source), str(tmp_path / "out.gguf"), [], 7, 1, stop)
    assert (tmp_path / "out.gguf").read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_its_tensors_name(value: float, tmp_path: Path) -> None:
    weights = tiny_gguf.random_weights(SMALL)
    weights["model.layers.0.mlp.up_proj.weight"][7, 9] = value
    tiny_gguf.write_model(tmp_path / "in.gguf", SMALL, weights)
    with pytest.raises(
        FormatError, match=rf"tensor 'blk\.0\.ffn_up\.weight': found {value} in column 9, wanted a finite"
    ):
        quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q4_K_M")
    assert not (tmp_path / "out.gguf").exists()


def test_what_cannot_be_done_is_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    cases: list[tuple[type[LolaError], str, Callable[[], None]]] = [
        (UsageError, "mixture: found 'Q4_K', wanted one of F32, F16", lambda: quantize(source, out, "Q4_K")),
        (UsageError, "Q2_K_S is of no use without an importance matrix", lambda: quantize(source, out, "Q2_K_S")),
        (UsageError, "its folder does not exist", lambda: quantize(source, tmp_path / "no" / "out.gguf", "Q8_0")),
        (UsageError, "it is the source", lambda: quantize(source, source, "Q8_0")),
        (
            UsageError,
            "'nothing' matches no tensor",
            lambda: quantize(source, out, "Q8_0", overrides={"nothing": "F16"}),
        ),
        (UsageError, "wanted a regular expression", lambda: quantize(source, out, "Q8_0", overrides={"(": "F16"})),
        (UsageError, "found 'Q9'", lambda: quantize(source, out, "Q8_0", overrides={"attn_q": "Q9"})),
        (UnsupportedError, "cannot write it", lambda: quantize(source, out, "Q8_0", overrides={"attn_q": "IQ4_XS"})),
        (UsageError, "threads: found -1", lambda: quantize(source, out, "Q8_0", threads=-1)),
    ]
    for error, wanted, call in cases:
        with pytest.raises(error, match=wanted):
            call()
    with pytest.raises(TypeError):
        quantize(source, out, "Q8_0", imatrx="typo")  # type: ignore[call-arg]
    assert not list(tmp_path.iterdir())


def test_a_quantized_source_is_quantized_again_only_on_request(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "q8.gguf", "Q8_0")
    with pytest.raises(UsageError, match=r"found Q8_0, wanted one of F32, F16, BF16: .* \(allow_requantize\)"):
        quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_K_M")
    quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_K_M", allow_requantize=True)
    assert formats_of(tmp_path / "q4.gguf")["blk.0.attn_q.weight"] == "Q4_K"


def test_a_model_that_does_not_run_here_is_refused(tmp_path: Path) -> None:
    write_package_file(tmp_path / "llama.gguf", lambda writer: writer.add_tensor("t", np.ones((2, 2), np.float32)))
    with pytest.raises(FormatError, match=r"llama\.block_count"):
        quantize(tmp_path / "llama.gguf", tmp_path / "out.gguf", "Q8_0")
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match="found 'mamba', supported: llama, qwen2, qwen3"):
        quantize(tmp_path / "other.gguf", tmp_path / "out.gguf", "Q8_0")


# --- Command line ---


def test_the_command_line_quantizes_and_reports_errors(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    assert main([str(source), "q4_k_m", "-o", str(out), "--tensor-type", "attn_v=q8_0", "--threads", "1"]) == 0
    assert formats_of(out)["blk.0.attn_v.weight"] == "Q8_0"
    assert main([str(source), "q4", "-o", str(out)]) == 1
    assert "error: mixture: found 'Q4'" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.gguf"), "q8_0", "-o", str(out)]) == 1
    with pytest.raises(SystemExit):
        main([str(source), "q8_0", "-o", str(out), "--tensor-type", "attn_v"])
