"""Hugging Face folders -> GGUF base models, with the names and metadata of llama.cpp's converter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lola_cpp._core import FormatError, UnsupportedError, UsageError, encode
from lola_cpp.convert.checkpoint import Checkpoint, StoredTensor, open_folder, read_json
from lola_cpp.convert.layout import ARCHITECTURES, LAYER_NAMES, MODEL_NAMES, Heads, is_permuted, permute_rows
from lola_cpp.convert.optional import require
from lola_cpp.convert.output import OutputTensor, write_gguf
from lola_cpp.convert.vocabulary import read_vocabulary

# --type -> (tensor format, general.file_type)
TYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32), "q8_0": ("Q8_0", 7)}

_LIMIT = 1 << 31
_Q8_0_BLOCK = 32
_DERIVED_SUFFIXES = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached", ".attn.bias")


class _Config:
    """config.json with checked access."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = read_json(path)

    def size(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 < value < _LIMIT:
            raise FormatError(f"'{self.path}': {key}: found {value!r}, wanted a positive integer")
        return value

    def number(self, key: str, default: float, values: Mapping[str, Any] | None = None) -> float:
        value = (self.values if values is None else values).get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise FormatError(f"'{self.path}': {key}: found {value!r}, wanted a positive number")
        return float(value)


@dataclass(frozen=True)
class _Rope:
    kind: str
    base: float
    factor: float
    original_context: int
    low_frequency_factor: float
    high_frequency_factor: float
    yarn: dict[str, float]  # GGUFWriter's name of the setting -> value


def convert_folder(
    folder: Path,
    output: Path,
    *,
    kind: str = "q8_0",
    name: str | None = None,
    pre: str | None = None,
    progress: bool = False,
) -> None:
    """Converts a Hugging Face folder (config.json, weights, tokenizer) to a GGUF base model.

    Args:
        kind: "f32", "f16", "bf16" or "q8_0": the format of all matrices; norms and biases are F32.
        name: the model's name in the file; the folder's if not given.
        pre: name of the pre-tokenizer, where the tokenizer's own is not in the table.
        progress: show a progress bar.

    Raises:
        UsageError: the folder lacks a file, or the tokenizer needs `pre`.
        FormatError: a file is damaged, or does not fit config.json.
        UnsupportedError: an architecture or a setting that has no counterpart here.
    """
    if kind not in TYPES:
        raise UsageError(f"type: found {kind!r}, wanted one of {', '.join(TYPES)}")
    if not (folder / "config.json").is_file():
        raise UsageError(f"'{folder}' has no config.json")
    gguf = require("gguf")
    config = _Config(folder / "config.json")
    architecture = _architecture(config)
    heads = _heads(config)
    rope = _rope(config, architecture)
    tensors = list(_tensors(open_folder(folder), config, architecture, heads, kind))
    if rope.kind == "llama3":
        factors = _llama3_factors(rope, heads.dim)
        tensors.append(OutputTensor("rope_freqs.weight", factors.shape, "F32", lambda: factors))
    writer = gguf.GGUFWriter(None, architecture)
    _write_metadata(writer, config, architecture, heads, rope)
    writer.add_name(name or folder.resolve().name)
    writer.add_file_type(TYPES[kind][1])
    read_vocabulary(folder, config.values, config.size("vocab_size"), pre=pre).write(writer)
    write_gguf(writer, output, tensors, progress=progress)


def _architecture(config: _Config) -> str:
    names = config.values.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in ARCHITECTURES:
        raise UnsupportedError(f"'{config.path}': architectures: found {name!r}, wanted {', '.join(ARCHITECTURES)}")
    wanted: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("silu", None),
        "quantization_config": (None,),
        "partial_rotary_factor": (None, 1, 1.0),
    }
    for key, choices in wanted.items():
        if config.values.get(key) not in choices:
            raise UnsupportedError(f"'{config.path}': {key}: found {config.values[key]!r}, wanted {choices[0]!r}")
    return ARCHITECTURES[name]


def _heads(config: _Config) -> Heads:
    query = config.size("num_attention_heads")
    heads = Heads(
        query, config.size("num_key_value_heads", query), config.size("head_dim", config.size("hidden_size") // query)
    )
    if heads.query % heads.key_value or heads.dim % 2:
        raise FormatError(f"'{config.path}': found {heads}, wanted query heads shared evenly and an even dimension")
    return heads


def _rope(config: _Config, architecture: str) -> _Rope:
    # transformers 5 writes rope_parameters, which includes the base; earlier versions rope_scaling and rope_theta.
    values = config.values.get("rope_parameters") or config.values.get("rope_scaling") or {}
    if not isinstance(values, dict):
        raise FormatError(f"'{config.path}': rope_scaling: found {values!r}, wanted an object")
    kind = str(values.get("rope_type", values.get("type", "default")))
    known = ("default", "linear", "yarn", "llama3") if architecture == "llama" else ("default", "linear", "yarn")
    if kind not in known or values.get("truncate") is False or values.get("mscale") or values.get("mscale_all_dim"):
        raise UnsupportedError(f"'{config.path}': RoPE scaling {values!r} cannot be written for '{architecture}'")
    scaled = kind != "default"
    yarn_names = {"ext_factor": "extrapolation_factor", "attn_factor": "attention_factor"}
    yarn_names |= {"beta_fast": "beta_fast", "beta_slow": "beta_slow"}
    return _Rope(
        kind=kind,
        base=config.number("rope_theta", config.number("rope_theta", 10000.0), values),
        factor=config.number("factor", 8.0 if kind == "llama3" else 0.0, values) if scaled else 1.0,
        original_context=_original_context(config, values),
        low_frequency_factor=config.number("low_freq_factor", 1.0, values),
        high_frequency_factor=config.number("high_freq_factor", 4.0, values),
        yarn={name: config.number(key, 1.0, values) for name, key in yarn_names.items() if values.get(key) is not None},
    )


def _original_context(config: _Config, values: Mapping[str, Any]) -> int:
    default = config.size("original_max_position_embeddings", config.size("max_position_embeddings", 8192))
    return int(config.number("original_max_position_embeddings", default, values))


def _write_metadata(writer: Any, config: _Config, architecture: str, heads: Heads, rope: _Rope) -> None:
    gguf = require("gguf")
    writer.add_type("model")
    writer.add_block_count(config.size("num_hidden_layers"))
    writer.add_context_length(config.size("max_position_embeddings", 2048))
    writer.add_embedding_length(config.size("hidden_size"))
    writer.add_feed_forward_length(config.size("intermediate_size"))
    writer.add_head_count(heads.query)
    writer.add_head_count_kv(heads.key_value)
    if config.values.get("head_dim") is not None:
        writer.add_key_length(heads.dim)
        writer.add_value_length(heads.dim)
    writer.add_layer_norm_rms_eps(config.number("rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(rope.base)
    writer.add_vocab_size(config.size("vocab_size"))
    if architecture == "llama":
        writer.add_rope_dimension_count(heads.dim)
    if rope.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope.kind))
        writer.add_rope_scaling_factor(rope.factor)
    if rope.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)
        for name, value in rope.yarn.items():
            getattr(writer, f"add_rope_scaling_yarn_{name}")(value)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _llama3_factors(rope: _Rope, dim: int) -> npt.NDArray[np.float32]:
    """What each frequency is divided by, [dim / 2]: 1 for the fast ones, `factor` for the slow, a blend between."""
    frequency = rope.base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    turns = rope.original_context * frequency / (2 * pi)
    low, high = rope.low_frequency_factor, rope.high_frequency_factor
    if not low < high:
        raise FormatError(
            f"rope scaling: found low_freq_factor {low} and high_freq_factor {high}, wanted the first smaller"
        )
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - blend) / rope.factor + blend)).astype(np.float32)


def _tensors(
    checkpoint: Checkpoint, config: _Config, architecture: str, heads: Heads, kind: str
) -> Iterator[OutputTensor]:
    if config.size("num_hidden_layers") > len(checkpoint):
        raise FormatError(f"'{config.path}': num_hidden_layers: found more layers than the weights have tensors")
    tied = config.values.get("tie_word_embeddings") is True
    shapes = _expected_shapes(config, architecture, heads, tied)
    optional = _optional_shapes(config, heads)
    for name in checkpoint:
        if name.endswith(_DERIVED_SUFFIXES) or (tied and name == "lm_head.weight"):
            continue
        if name not in shapes and name not in optional:
            raise FormatError(f"'{config.path.parent}': tensor '{name}' is unknown in architecture '{architecture}'")
    for name, shape in (shapes | {name: optional[name] for name in optional if name in checkpoint}).items():
        stored = checkpoint.get(name)
        if stored is None or stored.shape != shape:
            found = "nothing" if stored is None else f"shape {list(stored.shape)}"
            raise FormatError(f"'{config.path.parent}': tensor '{name}': found {found}, wanted shape {list(shape)}")
        yield _output_tensor(name, stored, architecture, heads, kind)


def _expected_shapes(config: _Config, architecture: str, heads: Heads, tied: bool) -> dict[str, tuple[int, ...]]:
    hidden, ffn, vocab = config.size("hidden_size"), config.size("intermediate_size"), config.size("vocab_size")
    q_rows, kv_rows = heads.query * heads.dim, heads.key_value * heads.dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q_rows, hidden),
        "self_attn.k_proj.weight": (kv_rows, hidden),
        "self_attn.v_proj.weight": (kv_rows, hidden),
        "self_attn.o_proj.weight": (hidden, q_rows),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
    }
    if architecture == "qwen2":
        sizes = {"q": q_rows, "k": kv_rows, "v": kv_rows}
        layer |= {f"self_attn.{name}_proj.bias": (rows,) for name, rows in sizes.items()}
    if architecture == "qwen3":
        layer |= {"self_attn.q_norm.weight": (heads.dim,), "self_attn.k_norm.weight": (heads.dim,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(config.size("num_hidden_layers")):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    return shapes if tied else shapes | {"lm_head.weight": (vocab, hidden)}


def _optional_shapes(config: _Config, heads: Heads) -> dict[str, tuple[int, ...]]:
    """Biases that fine-tunes of any architecture may have."""
    hidden, ffn = config.size("hidden_size"), config.size("intermediate_size")
    q_rows, kv_rows = heads.query * heads.dim, heads.key_value * heads.dim
    sizes = {"self_attn.q_proj": q_rows, "self_attn.k_proj": kv_rows, "self_attn.v_proj": kv_rows}
    sizes |= {"self_attn.o_proj": hidden, "mlp.gate_proj": ffn, "mlp.up_proj": ffn, "mlp.down_proj": hidden}
    layers = range(config.size("num_hidden_layers"))
    return {f"model.layers.{index}.{name}.bias": (size,) for index in layers for name, size in sizes.items()}


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight."""
    module, _, kind = name.rpartition(".")
    if module in MODEL_NAMES:
        return f"{MODEL_NAMES[module]}.{kind}"
    index, _, part = module.removeprefix("model.layers.").partition(".")
    return f"blk.{index}.{LAYER_NAMES[part]}.{kind}"


def _output_tensor(name: str, stored: StoredTensor, architecture: str, heads: Heads, kind: str) -> OutputTensor:
    target = gguf_name(name)
    target_kind = TYPES[kind][0] if len(stored.shape) > 1 else "F32"
    if target_kind == "Q8_0" and stored.shape[-1] % _Q8_0_BLOCK:
        target_kind = "F16"  # as llama.cpp does with rows that are not whole blocks
    rope_heads = {"attn_q": heads.query, "attn_k": heads.key_value}.get(target.split(".")[-2])
    return OutputTensor(
        target,
        stored.shape,
        target_kind,
        _loader(stored, target, target_kind, rope_heads if is_permuted(architecture) else None),
    )


def _loader(stored: StoredTensor, name: str, kind: str, rope_heads: int | None) -> Callable[[], npt.NDArray[Any]]:
    def load() -> npt.NDArray[Any]:
        values = stored.load()
        return encode(values if rope_heads is None else permute_rows(values, rope_heads), kind, name)

    return load
