"""Writes tiny random models and LoLA adapters as GGUF, and builds the same model in transformers.

Weights are dicts of float32 arrays in Hugging Face naming and row order; everything GGUF does differently (names,
permuted Q/K rows, quantized blocks) happens in the write functions, which return the weights as the file really stores
them. The formulas here are on purpose not the converter's own: tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from lola_cpp.convert.random_blocks import RandomBlocks
from reference.tiny_vocabulary import vocabulary, write_vocabulary

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class TinyConfig:
    """Shape of a model. The defaults let every block format (256 weights a block) store every matrix."""

    arch: str = "llama"  # or "qwen2", "qwen3"
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    hidden: int = 256
    ffn: int = 512
    context_length: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = False
    rope_scaling: str | None = None  # "llama3", "linear" or "yarn"
    rope_factor: float = 4.0
    rope_original_context: int = 512

    @property
    def vocab_size(self) -> int:
        return len(vocabulary())

    @property
    def permuted(self) -> bool:
        return self.arch == "llama"


def hf_config(config: TinyConfig) -> dict[str, Any]:
    """config.json of the model."""
    names = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    fields: dict[str, Any] = {
        "architectures": [names[config.arch]],
        "model_type": config.arch,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _hf_rope_scaling(config),
        "max_position_embeddings": config.context_length,
        "tie_word_embeddings": config.tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return fields


def _hf_rope_scaling(config: TinyConfig) -> dict[str, Any] | None:
    if config.rope_scaling is None:
        return None
    scaling: dict[str, Any] = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
    if config.rope_scaling != "linear":
        scaling["original_max_position_embeddings"] = config.rope_original_context
    if config.rope_scaling == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return scaling


def random_weights(config: TinyConfig, *, seed: int = 0, std: float = 0.05) -> Weights:
    """Float32 weights in Hugging Face naming. Norm weights lie around 1, biases around 0."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * std).astype(np.float32)

    def norm(size: int) -> np.ndarray:
        return (1.0 + 0.1 * rng.standard_normal(size)).astype(np.float32)

    q_size, kv_size = config.heads * config.head_dim, config.kv_heads * config.head_dim
    weights = {"model.embed_tokens.weight": matrix(config.vocab_size, config.hidden) * np.float32(10)}
    for layer in range(config.layers):
        p = f"model.layers.{layer}."
        weights[p + "input_layernorm.weight"] = norm(config.hidden)
        for name, rows in (("q", q_size), ("k", kv_size), ("v", kv_size)):
            weights[p + f"self_attn.{name}_proj.weight"] = matrix(rows, config.hidden)
            if config.arch == "qwen2":
                weights[p + f"self_attn.{name}_proj.bias"] = matrix(1, rows)[0]
        if config.arch == "qwen3":
            weights[p + "self_attn.q_norm.weight"] = norm(config.head_dim)
            weights[p + "self_attn.k_norm.weight"] = norm(config.head_dim)
        weights[p + "self_attn.o_proj.weight"] = matrix(config.hidden, q_size)
        weights[p + "post_attention_layernorm.weight"] = norm(config.hidden)
        weights[p + "mlp.gate_proj.weight"] = matrix(config.ffn, config.hidden)
        weights[p + "mlp.up_proj.weight"] = matrix(config.ffn, config.hidden)
        weights[p + "mlp.down_proj.weight"] = matrix(config.hidden, config.ffn)
    weights["model.norm.weight"] = norm(config.hidden)
    if not config.tied:
        weights["lm_head.weight"] = matrix(config.vocab_size, config.hidden)
    return weights


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight."""
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{_GGUF_NAMES[stem]}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_GGUF_NAMES[part]}.{kind}"


def permuted_rows(heads: int, head_dim: int) -> np.ndarray:
    """Which Hugging Face row each row of a llama q or k matrix holds: row 2i + half holds half * head_dim / 2 + i."""
    row = np.arange(heads * head_dim)
    head, inside = row // head_dim, row % head_dim
    return head * head_dim + (inside % 2) * (head_dim // 2) + inside // 2


def write_model(
    path: Path,
    config: TinyConfig,
    weights: Weights,
    *,
    tensor_format: str = "F32",
    overrides: dict[str, str] | None = None,
    seed: int = 0,
    strings: dict[str, str] | None = None,
) -> Weights:
    """Writes the model, and returns the weights as stored.

    Args:
        tensor_format: format of all matrices ("Q4_K"). Norms and biases are F32. Formats that gguf-py cannot quantize
            get random blocks instead of `weights`: what comes back is what those blocks decode to.
        overrides: GGUF tensor name -> format, for mixed models.
        seed: of the random blocks.
        strings: further metadata.
    """
    writer = gguf.GGUFWriter(path, config.arch)
    _write_metadata(writer, config)
    for key, value in (strings or {}).items():
        writer.add_string(key, value)
    blocks = RandomBlocks(seed=seed, std=0.05)
    stored: Weights = {}
    for name, value in weights.items():
        target = gguf_name(name)
        kind = (overrides or {}).get(target, tensor_format if value.ndim > 1 else "F32")
        rows = _row_order(name, config)
        data = _encode(value if rows is None else value[rows], kind, blocks)
        decoded = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
        stored[name] = decoded if rows is None else decoded[np.argsort(rows)]
        writer.add_tensor(target, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    if config.rope_scaling == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config))
    _finish(writer)
    return stored


def _row_order(name: str, config: TinyConfig) -> np.ndarray | None:
    if not config.permuted:
        return None
    if ".q_proj." in name:
        return permuted_rows(config.heads, config.head_dim)
    return permuted_rows(config.kv_heads, config.head_dim) if ".k_proj." in name else None


def _encode(value: np.ndarray, kind: str, blocks: RandomBlocks) -> np.ndarray:
    try:
        return np.ascontiguousarray(gguf.quants.quantize(np.ascontiguousarray(value), gguf.GGMLQuantizationType[kind]))
    except NotImplementedError:
        return blocks.tensor(kind, value.shape)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_metadata(writer: gguf.GGUFWriter, config: TinyConfig) -> None:
    writer.add_type("model")
    writer.add_name("tiny")
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    if config.arch == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    if config.rope_scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(config.rope_scaling))
        writer.add_rope_scaling_factor(config.rope_factor)
    if config.rope_scaling == "yarn":
        writer.add_rope_scaling_orig_ctx_len(config.rope_original_context)
    write_vocabulary(writer)


def llama3_factors(config: TinyConfig) -> np.ndarray:
    """What each RoPE frequency is divided by, [head_dim / 2], by the rule of Llama 3.1."""
    frequency = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    turns = config.rope_original_context * frequency / (2 * np.pi)
    smooth = np.clip((turns - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / config.rope_factor + smooth)).astype(np.float32)


@dataclass(frozen=True)
class TinyAdapter:
    """A LoLA adapter's settings; the metadata keys of docs/formats.md."""

    feature_map: str = "softmax_dim"
    feature_dim: int = 64
    skip_connection: bool = False
    mixing: str = "gated"
    affine: bool = False
    window_size: int = 16
    chunk_size: int = 16
    sparse_size: int = 8
    sparse_scope: str = "head"
    policy: str = "self_recall"
    kappa: float = 0.0
    lora_rank: int = 0  # 0: no LoRA
    lora_alpha: float = 16.0
    softmax_layers: tuple[int, ...] = ()


def random_adapter(config: TinyConfig, adapter: TinyAdapter, *, seed: int = 1) -> Weights:
    """Float32 adapter weights in LoLCATs naming and Hugging Face row order.

    Per layer: self_attn.feature_map_{q,k}.mlp.layer [heads, head_dim, feature_dim], self_attn.window_factors
    [1, heads, 1, 1], and with LoRA self_attn.{q,k,v,o}_proj.lora_{A,B}.default.weight [rank, in], [out, rank].
    """
    rng = np.random.default_rng(seed)
    q_size, kv_size = config.heads * config.head_dim, config.kv_heads * config.head_dim
    sizes = {
        "q": (config.hidden, q_size),
        "k": (config.hidden, kv_size),
        "v": (config.hidden, kv_size),
        "o": (q_size, config.hidden),
    }
    weights: Weights = {}
    for layer in range(config.layers):
        if layer in adapter.softmax_layers:
            continue
        p = f"model.layers.{layer}.self_attn."
        for which in ("q", "k"):
            shape = (config.heads, config.head_dim, adapter.feature_dim)
            weights[p + f"feature_map_{which}.mlp.layer"] = (0.3 * rng.standard_normal(shape)).astype(np.float32)
        weights[p + "window_factors"] = rng.standard_normal((1, config.heads, 1, 1)).astype(np.float32)
        for which, (inputs, outputs) in sizes.items() if adapter.lora_rank else ():
            a, b = p + f"{which}_proj.lora_A.default.weight", p + f"{which}_proj.lora_B.default.weight"
            weights[a] = (0.05 * rng.standard_normal((adapter.lora_rank, inputs))).astype(np.float32)
            weights[b] = (0.05 * rng.standard_normal((outputs, adapter.lora_rank))).astype(np.float32)
    return weights


def merged_weights(weights: Weights, adapter_weights: Weights, adapter: TinyAdapter) -> Weights:
    """The base weights with alpha / rank * B A added."""
    merged = dict(weights)
    for name, b in adapter_weights.items():
        if ".lora_B." in name:
            a = adapter_weights[name.replace("lora_B", "lora_A")]
            base = name.replace("lora_B.default.", "")
            merged[base] = weights[base] + np.float32(adapter.lora_alpha / adapter.lora_rank) * (b @ a)
    return merged


def write_adapter(path: Path, config: TinyConfig, adapter: TinyAdapter, weights: Weights) -> None:
    """Writes `weights` (see random_adapter) as an adapter for the model `config`."""
    writer = gguf.GGUFWriter(path, config.arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lola")
    writer.add_uint32("adapter.lola.version", 1)
    for name in ("feature_map", "mixing", "sparse_scope", "policy"):
        writer.add_string(f"adapter.lola.{name}", getattr(adapter, name))
    for name in ("feature_dim", "window_size", "chunk_size", "sparse_size"):
        writer.add_uint32(f"adapter.lola.{name}", getattr(adapter, name))
    for name in ("skip_connection", "affine"):
        writer.add_bool(f"adapter.lola.{name}", getattr(adapter, name))
    writer.add_float32("adapter.lola.kappa", adapter.kappa)
    if adapter.softmax_layers:
        writer.add_key_value(
            "adapter.lola.softmax_layers",
            list(adapter.softmax_layers),
            gguf.GGUFValueType.ARRAY,
            gguf.GGUFValueType.UINT32,
        )
    if adapter.lora_rank:
        writer.add_float32("adapter.lora.alpha", adapter.lora_alpha)
    base = {"block_count": config.layers, "head_count": config.heads, "head_count_kv": config.kv_heads}
    for key, value in (base | {"key_length": config.head_dim, "vocab_size": config.vocab_size}).items():
        writer.add_uint32(f"adapter.lola.base.{key}", value)
    writer.add_float32("adapter.lola.base.rope_freq_base", config.rope_theta)
    for name, value in weights.items():
        target, data = _adapter_tensor(name, value, config, adapter.skip_connection)
        writer.add_tensor(target, np.ascontiguousarray(data))
    _finish(writer)


def _adapter_tensor(name: str, value: np.ndarray, config: TinyConfig, skip_connection: bool) -> tuple[str, np.ndarray]:
    layer, part = name.removeprefix("model.layers.").split(".self_attn.")
    if part == "window_factors":
        return f"blk.{layer}.attn_lola_window.weight", value.reshape(-1)
    if part.startswith("feature_map_"):
        rows = permuted_rows(1, config.head_dim) if config.permuted else np.arange(config.head_dim)
        if skip_connection:  # x + W'x: features must stand in the order of x
            value = value[:, :, rows]
        # [heads, d, f] -> [heads, f, d]: GGUF lists d first because it is the fastest dimension.
        return f"blk.{layer}.attn_lola_f{part[12]}.weight", value[:, rows, :].transpose(0, 2, 1)
    projection = {"q": "q", "k": "k", "v": "v", "o": "output"}[part[0]]
    suffix = "lora_a" if "lora_A" in part else "lora_b"
    rows = _row_order(f".{part[0]}_proj.", config) if suffix == "lora_b" else None
    return f"blk.{layer}.attn_{projection}.weight.{suffix}", value if rows is None else value[rows]


def hf_model(config: TinyConfig, weights: Weights) -> Any:
    """The transformers model with these float weights, in float32 and evaluation mode."""
    import torch
    import transformers

    fields = hf_config(config)
    model_class = getattr(transformers, fields["architectures"][0])
    settings = model_class.config_class(**{k: v for k, v in fields.items() if v is not None and k != "architectures"})
    settings._attn_implementation = "eager"
    model = model_class(settings).to(torch.float32).eval()
    state = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    result = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if config.tied else set()
    if set(result.missing_keys) - tied or result.unexpected_keys:
        raise ValueError(f"weights do not fit: missing {result.missing_keys}, unexpected {result.unexpected_keys}")
    if config.tied:
        model.tie_weights()
    return model


def tiny(arch: str = "llama", **changes: Any) -> TinyConfig:
    """TinyConfig with changes, for one-line tests."""
    return replace(TinyConfig(arch=arch), **changes)
