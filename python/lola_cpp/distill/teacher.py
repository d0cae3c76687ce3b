"""The softmax model that is distilled: a Hugging Face folder, layer by layer from the card, host memory or disk."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lola_cpp._core import FormatError, UnsupportedError, UsageError
from lola_cpp.convert.adapter import Base
from lola_cpp.convert.checkpoint import open_folder
from lola_cpp.convert.layout import ARCHITECTURES, Heads
from lola_cpp.convert.optional import require

WEIGHTS = ("device", "host", "disk")


@dataclass
class Update:
    """LoRA of one projection: W += scale * b a."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        return (self.scale * (x @ self.a.T.to(x.dtype)) @ self.b.T.to(x.dtype)).to(x.dtype)


Updates = dict[str, Update]  # by projection: q, k, v, o


@dataclass
class Teacher:
    """weights: where layers are between their uses; they compute on `device` in `dtype`."""

    folder: Path
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    weights: str = "device"
    base: Base = field(init=False)

    def __post_init__(self) -> None:
        if not (self.folder / "config.json").is_file():
            raise UsageError(f"'{self.folder}' has no config.json, wanted a Hugging Face folder")
        transformers = require("transformers", extra="distill")
        config = transformers.AutoConfig.from_pretrained(self.folder)
        self.base = _facts(config, self.folder)
        self.sliding_window = _sliding_window(config)
        with torch.device("meta"):
            self._skeleton = transformers.AutoModelForCausalLM.from_config(config)
        rotary = type(self._skeleton.model.rotary_emb)(config)
        self._frequencies, self._rope_scale = rotary.inv_freq.double(), float(rotary.attention_scaling)
        self._checkpoint = open_folder(self.folder)
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._modules: dict[str, Any] = {}
        self._rope: tuple[Tensor, Tensor] | None = None  # of the last length
        self._tied = bool(config.tie_word_embeddings)

    def layer(self, index: int) -> Any:
        """The decoder layer of transformers, on the device."""
        return self._filled(f"model.layers.{index}.", self._skeleton.model.layers[index])

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens [batch, length] -> [batch, length, hidden]."""
        embedding = self._filled("model.embed_tokens.", self._skeleton.model.embed_tokens, move=False)
        return functional.embedding(tokens.to(embedding.weight.device), embedding.weight).to(self.device)

    def head(self) -> Callable[[Tensor], Tensor]:
        """From the last hidden states to logits."""
        norm = self._filled("model.norm.", self._skeleton.model.norm)
        name = "model.embed_tokens." if self._tied else "lm_head."
        output = self._filled(name, self._skeleton.lm_head)
        return lambda x: output(norm(x))

    def weight_bytes(self) -> tuple[int, int]:
        """Of one layer's weights, and of the embedding and the output."""
        layer = sum(value.numel() for value in self._skeleton.model.layers[0].state_dict().values())
        tables = self.base.vocab_size * self.base.embedding_length * (1 if self._tied else 2)
        return layer * self.dtype.itemsize, tables * self.dtype.itemsize

    def rope(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin [length, head_dim], from angles in double precision."""
        if self._rope is None or len(self._rope[0]) != length:
            angles = torch.arange(length, dtype=torch.float64)[:, None] * self._frequencies
            angles = torch.cat([angles, angles], -1)
            cos, sin = (self._rope_scale * x.to(torch.float32) for x in (angles.cos(), angles.sin()))
            self._rope = cos.to(self.device), sin.to(self.device)
        return self._rope

    def _filled(self, prefix: str, module: Any, *, move: bool = True) -> Any:
        if prefix in self._modules:
            return self._modules[prefix]
        tensors = self._kept.get(prefix)
        if tensors is None:
            tensors = {name: self._load(prefix + name, value.shape) for name, value in module.state_dict().items()}
            if self.weights == "host":
                self._kept[prefix] = tensors
        if move:
            tensors = {name: value.to(self.device, non_blocking=True) for name, value in tensors.items()}
        filled = copy.deepcopy(module)
        filled.load_state_dict(tensors, assign=True)
        filled.requires_grad_(False)
        if self.weights == "device":
            self._modules[prefix] = filled
        return filled

    def _load(self, name: str, shape: torch.Size) -> Tensor:
        stored = self._checkpoint.get(name)
        if stored is None or stored.shape != tuple(shape):
            found = "nothing" if stored is None else f"shape {list(stored.shape)}"
            raise FormatError(f"'{self.folder}': tensor '{name}': found {found}, wanted shape {list(shape)}")
        value = torch.from_numpy(np.ascontiguousarray(stored.load())).to(self.dtype)
        if self.weights == "device":
            return value.to(self.device)
        return value.pin_memory() if self.weights == "host" and self.device != "cpu" else value


def project(
    layer: Any, x: Tensor, rope: tuple[Tensor, Tensor], updates: Updates | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """q [batch, heads, tokens, head_dim], k and v [batch, kv_heads, tokens, head_dim] after RoPE."""
    attention, normed = layer.self_attn, layer.input_layernorm(x)

    def one(name: str) -> Tensor:
        y = getattr(attention, f"{name}_proj")(normed)
        y = y + updates[name](normed) if updates else y
        y = y.unflatten(-1, (-1, attention.head_dim))
        norm = getattr(attention, f"{name}_norm", None)
        return (y if norm is None else norm(y)).transpose(1, 2)

    return _rotated(one("q"), rope), _rotated(one("k"), rope), one("v")


def finish(layer: Any, x: Tensor, heads: Tensor, updates: Updates | None = None) -> Tensor:
    """The layer's output from its input and the outputs of its attention heads [batch, heads, tokens, head_dim]."""
    y = heads.transpose(1, 2).flatten(2).to(x.dtype)
    x = x + layer.self_attn.o_proj(y) + (updates["o"](y) if updates else 0)
    return x + layer.mlp(layer.post_attention_layernorm(x))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _rotated(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rope
    first, second = x.float().chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


def _facts(config: Any, folder: Path) -> Base:
    names = config.architectures or [None]
    if names[0] not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(f"'{folder}': architectures: found {names[0]!r}, wanted one of {known}")
    rope = config.rope_parameters
    if rope.get("rope_type", "default") not in ("default", "linear", "yarn", "llama3"):
        raise UnsupportedError(f"'{folder}': RoPE scaling {rope['rope_type']!r} is not known to the engine")
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Base(
        architecture=ARCHITECTURES[names[0]],
        name=folder.resolve().name,
        block_count=config.num_hidden_layers,
        embedding_length=config.hidden_size,
        heads=Heads(config.num_attention_heads, config.num_key_value_heads, dim),
        rope_freq_base=float(rope["rope_theta"]),
        vocab_size=config.vocab_size,
    )


def _sliding_window(config: Any) -> int | None:
    """The window of a teacher that does not attend to everything (early Mistral)."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    return window if window and (kinds is None or "sliding_attention" in kinds) else None
