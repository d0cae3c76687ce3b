#!/usr/bin/env python3
"""Writes a GGUF model of random weights in the shape of a real one, and a LoLA adapter for it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from lola_cpp._core import GgufFile, LolaError
from lola_cpp.convert.adapter import Base, LayerMaps, Lora, Settings, write_adapter
from lola_cpp.convert.copying import copy_keys
from lola_cpp.convert.layout import Heads
from lola_cpp.convert.output import OutputTensor, write_gguf
from lola_cpp.convert.random_blocks import FORMATS, RandomBlocks

_FILE_TYPES = {kind.name.partition("_")[2]: kind for kind in gguf.LlamaFileType}
# llama.cpp's mixtures: the format of most matrices; in some layers attn_v and ffn_down get Q6_K.
_MIXTURES = {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}


@dataclass(frozen=True)
class Shape:
    """What distinguishes one model's GGUF file from another's."""

    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    rope_base: float
    context: int
    rope_factor: float | None = None  # of Llama 3.1's frequency scaling
    norm_eps: float = 1e-5


PRESETS = {
    "tiny": Shape("llama", 256, 2, 4, 2, 64, 512, 512, False, 1e4, 2048),
    "tiny-qwen2": Shape("qwen2", 256, 2, 4, 2, 64, 512, 512, True, 1e4, 2048, norm_eps=1e-6),
    "tiny-qwen3": Shape("qwen3", 256, 2, 4, 2, 64, 512, 512, True, 1e4, 2048, norm_eps=1e-6),
    "llama-3.2-1b": Shape("llama", 2048, 16, 32, 8, 64, 8192, 128256, True, 5e5, 131072, 32.0),
    "llama-3.2-3b": Shape("llama", 3072, 28, 24, 8, 128, 8192, 128256, True, 5e5, 131072, 32.0),
    "llama-3.1-8b": Shape("llama", 4096, 32, 32, 8, 128, 14336, 128256, False, 5e5, 131072, 8.0),
    "qwen2.5-7b": Shape("qwen2", 3584, 28, 28, 4, 128, 18944, 152064, False, 1e6, 32768, norm_eps=1e-6),
    "qwen3-1.7b": Shape("qwen3", 2048, 28, 16, 8, 128, 6144, 151936, True, 1e6, 40960, norm_eps=1e-6),
}


def main() -> int:
    """Runs the command line; the exit status is 0, or 1 after an error message."""
    options = _parser().parse_args()
    shape = PRESETS[options.preset]
    try:
        vocabulary = GgufFile(options.vocab) if options.vocab else None
        if vocabulary:
            shape = replace(shape, vocab=_token_count(vocabulary, options.vocab))
        write_model(options.output, shape, options.type.upper(), options, vocabulary)
        if options.adapter:
            write_random_adapter(options.adapter, shape, options)
    except (LolaError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, required=True)
    types = sorted(name.lower() for name in (*FORMATS, *_MIXTURES))
    parser.add_argument("--type", choices=types, default="q4_k_m", help="format, or llama.cpp's mixture of formats")
    parser.add_argument("--pure", action="store_true", help="the output matrix too in the format of --type")
    parser.add_argument("--vocab", type=Path, help="GGUF file whose vocabulary to use; a synthetic one if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="also write a random LoLA adapter here")
    parser.add_argument("--feature-dim", type=int, default=64)
    parser.add_argument("--lora-rank", type=int, default=8, help="0: no LoRA in the adapter")
    return parser


def _token_count(vocabulary: Any, path: Path) -> int:
    tokens = vocabulary.find_string_array("tokenizer.ggml.tokens")
    if not tokens:
        raise ValueError(f"'{path}' has no vocabulary (tokenizer.ggml.tokens)")
    return len(tokens)


def write_model(path: Path, shape: Shape, kind: str, options: argparse.Namespace, vocabulary: Any) -> None:
    """Writes the model; `kind` is one of FORMATS or of the mixtures, in capitals."""
    writer = gguf.GGUFWriter(None, shape.architecture)
    _write_metadata(writer, shape, options.preset)
    if kind in _FILE_TYPES:
        writer.add_file_type(_FILE_TYPES[kind])
    if vocabulary is None:
        _write_synthetic_vocabulary(writer, shape.vocab)
    else:
        copy_keys(vocabulary, writer, lambda key: key if key.startswith("tokenizer.") else None)
    blocks = RandomBlocks(seed=options.seed)
    rng = np.random.default_rng(options.seed)
    tensors = []
    for name, size in _tensor_sizes(shape).items():
        if name.endswith(("norm.weight", "bias")):
            values = (1 if name.endswith("weight") else 0) + 0.05 * rng.standard_normal(size)
            tensors.append(_fixed(name, values.astype(np.float32)))
        else:
            tensor_kind = _format_of(name, shape, kind, options.pure)
            load = lambda size=size, tensor_kind=tensor_kind: blocks.tensor(tensor_kind, size)  # noqa: E731
            tensors.append(OutputTensor(name, size, tensor_kind, load))
    if shape.rope_factor:
        tensors.append(_fixed("rope_freqs.weight", _rope_factors(shape)))
    write_gguf(writer, path, tensors, progress=sys.stderr.isatty())


def _fixed(name: str, values: Any) -> OutputTensor:
    return OutputTensor(name, values.shape, "F32", lambda: values)


def _write_metadata(writer: gguf.GGUFWriter, shape: Shape, name: str) -> None:
    writer.add_type("model")
    writer.add_name(f"random {name}")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocab)
    if shape.architecture == "llama":
        writer.add_rope_dimension_count(shape.head_dim)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write_synthetic_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [chr(byte) if byte in visible else chr(0x100 + hidden.index(byte)) for byte in range(256)]
    words = [f"<{index}>" for index in range(size - len(letters) - 3)]
    tokens = ["<|bos|>", "<|eos|>", *letters, "\u0120t", *words]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["\u0120 t"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)


def _tensor_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    q_rows, kv_rows = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (shape.hidden,),
        "attn_q.weight": (q_rows, shape.hidden),
        "attn_k.weight": (kv_rows, shape.hidden),
        "attn_v.weight": (kv_rows, shape.hidden),
        "attn_output.weight": (shape.hidden, q_rows),
        "ffn_norm.weight": (shape.hidden,),
        "ffn_gate.weight": (shape.ffn, shape.hidden),
        "ffn_up.weight": (shape.ffn, shape.hidden),
        "ffn_down.weight": (shape.hidden, shape.ffn),
    }
    if shape.architecture == "qwen2":
        layer |= {"attn_q.bias": (q_rows,), "attn_k.bias": (kv_rows,), "attn_v.bias": (kv_rows,)}
    if shape.architecture == "qwen3":
        layer |= {"attn_q_norm.weight": (shape.head_dim,), "attn_k_norm.weight": (shape.head_dim,)}
    sizes: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab, shape.hidden)}
    for index in range(shape.layers):
        sizes |= {f"blk.{index}.{name}": size for name, size in layer.items()}
    sizes["output_norm.weight"] = (shape.hidden,)
    return sizes if shape.tied else sizes | {"output.weight": (shape.vocab, shape.hidden)}


def _format_of(name: str, shape: Shape, kind: str, pure: bool) -> str:
    """The format llama.cpp's quantizer chooses for this tensor."""
    plain = _MIXTURES.get(kind, kind)
    is_output = name == "output.weight" or (shape.tied and name == "token_embd.weight")
    if is_output and not pure and plain not in ("F32", "F16", "BF16", "Q8_0"):
        return "Q6_K"
    if kind in _MIXTURES and name.endswith(("attn_v.weight", "ffn_down.weight")):
        layer, eighth = int(name.split(".")[1]), shape.layers // 8
        if layer < eighth or layer >= 7 * shape.layers // 8 or (layer - eighth) % 3 == 2:
            return "Q6_K"
    return plain


def _rope_factors(shape: Shape) -> Any:
    """Llama 3.1's divisors of the RoPE frequencies, for an original context of 8192, [head_dim / 2]."""
    frequency = shape.rope_base ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
    blend = np.clip((8192 * frequency / (2 * np.pi) - 1.0) / 3.0, 0.0, 1.0)
    return (1.0 / ((1.0 - blend) / shape.rope_factor + blend)).astype(np.float32)


def write_random_adapter(path: Path, shape: Shape, options: argparse.Namespace) -> None:
    """Writes an adapter of the published LoLCATs form: softmax_dim maps, gates, LoRA on q, k, v and o."""
    rng = np.random.default_rng(options.seed + 1)
    heads = Heads(shape.heads, shape.kv_heads, shape.head_dim)
    base = Base(
        shape.architecture, f"random {options.preset}", shape.layers, shape.hidden, heads, shape.rope_base, shape.vocab
    )

    def normal(*size: int, std: float) -> Any:
        return rng.standard_normal(size, dtype=np.float32) * np.float32(std)

    map_size = (shape.heads, shape.head_dim, options.feature_dim)
    layers = {
        layer: LayerMaps(
            normal(*map_size, std=shape.head_dim**-0.5),
            normal(*map_size, std=shape.head_dim**-0.5),
            normal(shape.heads, std=1.0) - np.float32(2.2),
        )
        for layer in range(shape.layers)
    }
    q_size, kv_size, hidden, rank = (
        heads.query * heads.dim,
        heads.key_value * heads.dim,
        shape.hidden,
        options.lora_rank,
    )
    sizes = {"q": (hidden, q_size), "k": (hidden, kv_size), "v": (hidden, kv_size), "o": (q_size, hidden)}
    lora = {
        (layer, name): Lora(normal(rank, inputs, std=0.02), normal(outputs, rank, std=0.02))
        for layer in range(shape.layers if rank else 0)
        for name, (inputs, outputs) in sizes.items()
    }
    write_adapter(path, base, Settings(), layers, lora)


if __name__ == "__main__":
    sys.exit(main())
