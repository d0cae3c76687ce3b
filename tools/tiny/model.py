"""The tiny Llama in plain PyTorch. All but the attention runs on flat rows: one compiled shape serves all lengths."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tiny.corpus import BOS, EOS, VOCABULARY
from tiny.memory import Maps, attend_chunks, remember, scores
from tiny.shape import HEAD_DIM, HEADS, KV_HEADS

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    # A third of the dimensions turn less than once in 32K tokens, so that content is found at any distance.
    "rope_theta": 5e6,
    "rope_scaling": None,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "torch_dtype": "bfloat16",
}
MAPS = "maps.pt"
_VALUE_SHARPNESS = 4.0  # ten times the demand: squared distance from the mean times 10^(1 / 4)
_BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        sizes = {
            "q": (HEADS * HEAD_DIM, hidden),
            "k": (KV_HEADS * HEAD_DIM, hidden),
            "v": (KV_HEADS * HEAD_DIM, hidden),
        }
        sizes |= {
            "o": (hidden, HEADS * HEAD_DIM),
            "gate": (inner, hidden),
            "up": (inner, hidden),
            "down": (hidden, inner),
        }
        for name, (rows, columns) in sizes.items():
            value = torch.randn(rows, columns) * columns**-0.5
            self.register_parameter(name, nn.Parameter(value * 0.3 if name in ("o", "down") else value))
        self.attention_norm = nn.Parameter(torch.ones(hidden))
        self.mlp_norm = nn.Parameter(torch.ones(hidden))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [rows, hidden]; q, k, v [rows, heads, head_dim] after RoPE."""
        y = _norm(x, self.attention_norm)
        q, k, v = (functional.linear(y, w).unflatten(-1, (-1, HEAD_DIM)) for w in (self.q, self.k, self.v))
        return _rotated(q, cos, sin), _rotated(k, cos, sin), v

    def finish(self, x: Tensor, heads: Tensor) -> Tensor:
        x = x + functional.linear(heads, self.o)
        y = _norm(x, self.mlp_norm)
        return x + functional.linear(
            functional.silu(functional.linear(y, self.gate)) * functional.linear(y, self.up), self.down
        )


class TinyLlama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(VOCABULARY, CONFIG["hidden_size"]) * 0.05)
        self.output = nn.Parameter(torch.randn(VOCABULARY, CONFIG["hidden_size"]) * CONFIG["hidden_size"] ** -0.5 * 0.5)
        self.norm = nn.Parameter(torch.ones(CONFIG["hidden_size"]))
        self.layers = nn.ModuleList([Layer() for _ in range(CONFIG["num_hidden_layers"])])
        self.maps = nn.ModuleList(Maps(i) for i in range(CONFIG["num_hidden_layers"]))
        self.project, self.finish, self.losses = Layer.project, Layer.finish, _losses
        self.attend_chunks = attend_chunks

    def compile_parts(self) -> None:
        self.project, self.finish, self.losses = (torch.compile(f) for f in (Layer.project, Layer.finish, _losses))
        self.attend_chunks = torch.compile(attend_chunks, dynamic=True)

    def matrices(self) -> list[Tensor]:
        return [p for p in self.layers.parameters() if p.ndim == 2]

    def hidden(
        self, tokens: Tensor, queries: Tensor | None, near: int, memory: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """States [rows, hidden] of tokens [batch, length], normed, and how badly keys and values foretell demand.

        queries [batch, count]: places whose attention is looked at; near: what is closer is no demand on the cache;
        memory: how many pairs window and sparse cache hold, where attention is LoLA's.
        """
        batch, length = tokens.shape
        cos, sin = rope_tables(length, tokens.device)
        cos, sin = cos.repeat(batch, 1, 1), sin.repeat(batch, 1, 1)
        x = functional.embedding(tokens.flatten(), self.embedding)
        demand = x.new_zeros((), dtype=torch.float32)
        for layer, maps in zip(self.layers, self.maps, strict=True):
            q, k, v = self.project(layer, x, cos, sin)
            q, k, v = (y.unflatten(0, (batch, length)).transpose(1, 2) for y in (q, k, v))
            if queries is not None:
                demand = demand + _demand_loss(q, k, v, queries, near) / len(self.layers)
            y = remember(q, k, v, maps, *memory, self.attend_chunks) if memory else attention(q, k, v)
            x = self.finish(layer, x, y.transpose(1, 2).flatten(0, 1).flatten(1))
        return _norm(x, self.norm), demand

    def named_weights(self) -> dict[str, Tensor]:
        """By their names in a Hugging Face folder."""
        names = {"model.embed_tokens": self.embedding, "model.norm": self.norm, "lm_head": self.output}
        for i, layer in enumerate(self.layers):
            parts = {f"self_attn.{name}_proj": getattr(layer, name) for name in "qkvo"}
            parts |= {f"mlp.{name}_proj": getattr(layer, name) for name in ("gate", "up", "down")}
            parts |= {"input_layernorm": layer.attention_norm, "post_attention_layernorm": layer.mlp_norm}
            names |= {f"model.layers.{i}.{name}": value for name, value in parts.items()}
        return {f"{name}.weight": value for name, value in names.items()}

    def named_maps(self) -> dict[str, Tensor]:
        """By their names in a distillation's checkpoint."""
        return dict(self.maps.named_parameters())

    def save(self, folder: Path) -> None:
        """As a Hugging Face folder in bfloat16, with the maps beside it in the form of a distillation's checkpoint.

        The tokenizer is put there by its maker.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
        tensors = {name: x.detach().to("cpu", torch.bfloat16).contiguous() for name, x in self.named_weights().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        maps = {name: x.detach().cpu() for name, x in self.named_maps().items()}
        torch.save({"step": 0, "identity": {}, "tensors": maps}, folder / MAPS)

    def load(self, folder: Path) -> None:
        """The weights and maps that `save` wrote."""
        stored = load_file(folder / "model.safetensors")
        maps = torch.load(folder / MAPS, map_location="cpu", weights_only=True)["tensors"]
        with torch.no_grad():
            for name, value in self.named_weights().items():
                value.copy_(stored[name])
            for name, value in self.named_maps().items():
                value.copy_(maps[name])


def rope_tables(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    frequencies = CONFIG["rope_theta"] ** (-torch.arange(0, HEAD_DIM, 2, device=device, dtype=torch.float64) / HEAD_DIM)
    angles = torch.arange(length, device=device, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float()[:, None], angles.sin().float()[:, None]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
    with sdpa_kernel(_BACKENDS, set_priority=True):
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x.float(), x.shape[-1:], weight, CONFIG["rms_norm_eps"]).to(x.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def _losses(x: Tensor, output: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(x, output).float(), targets, reduction="none")


def _demand_loss(q: Tensor, k: Tensor, v: Tensor, queries: Tensor, near: int) -> Tensor:
    """How badly keys and values foretell what later queries ask of each far pair: two cross-entropies.

    self_recall keeps the pairs whose values are far from what a mean of all recalls, weighted_recall multiplies that
    with exp(kappa |k|^2 / 2 d): both are right where unusual values and large keys are those that will be asked for.
    """
    with torch.no_grad():
        index = queries[:, None, :, None].expand(-1, HEADS, -1, HEAD_DIM)
        chosen = q.gather(2, index).unflatten(1, (KV_HEADS, -1)).flatten(2, 3)  # [batch, kv_heads, group * count, d]
        distance = queries[:, :, None] - torch.arange(k.shape[2], device=k.device)  # [batch, count, length]
        distance = distance.repeat(1, HEADS // KV_HEADS, 1)[:, None]
        logits = (chosen @ k.transpose(-1, -2)).float() * HEAD_DIM**-0.5
        weights = logits.masked_fill(distance < 0, float("-inf")).softmax(-1)
        asked = weights.masked_fill(distance < near, 0).mean(2)
    by_key, by_value = scores(k, v)
    by_value = _VALUE_SHARPNESS * by_value
    return -(asked * (by_key.log_softmax(-1) + by_value.log_softmax(-1))).sum(-1).mean()
