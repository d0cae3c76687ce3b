"""A whole decoder in float64, from Hugging Face weights: what a model's logits should be.

Like lola.py an oracle: one sequence, every step written out. Attention is passed in, so the same decoder runs with
softmax attention and with LoLA's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reference import lola
from reference.tiny_gguf import TinyAdapter, TinyConfig, Weights, llama3_factors

# (layer, q [T, H, d], k [T, G, d], v [T, G, d]) -> [T, H, d]
Attention = Callable[[int, lola.Array, lola.Array, lola.Array], lola.Array]


def softmax_attention(_layer: int, q: lola.Array, k: lola.Array, v: lola.Array) -> lola.Array:
    return lola.softmax_attention(q, k, v)


class LolaAttention:
    """The oracle's layers with an adapter's weights; softmax attention where the adapter says so."""

    def __init__(self, config: TinyConfig, adapter: TinyAdapter, weights: Weights) -> None:
        self.layers = [
            None if layer in adapter.softmax_layers else lola_layer(config, adapter, weights, layer)
            for layer in range(config.layers)
        ]

    def __call__(self, layer: int, q: lola.Array, k: lola.Array, v: lola.Array) -> lola.Array:
        lola_attention = self.layers[layer]
        return lola.softmax_attention(q, k, v) if lola_attention is None else lola_attention.advance(q, k, v)

    @property
    def smallest_margin(self) -> float:
        return min(layer.smallest_margin for layer in self.layers if layer is not None)


def lola_layer(config: TinyConfig, adapter: TinyAdapter, weights: Weights, layer: int) -> lola.Layer:
    p = f"model.layers.{layer}.self_attn."
    query_map, key_map = (np.float64(weights[p + f"feature_map_{x}.mlp.layer"]).transpose(0, 2, 1) for x in "qk")
    gate = 1 / (1 + np.exp(-np.float64(weights[p + "window_factors"]).reshape(-1)))
    kappa = np.full(config.heads, adapter.kappa)
    settings = lola.Config(
        adapter.window_size,
        adapter.chunk_size,
        adapter.sparse_size,
        adapter.sparse_scope,
        adapter.policy,
        adapter.mixing,
        adapter.affine,
    )
    learned = lola.Weights(adapter.feature_map, adapter.skip_connection, query_map, key_map, gate, kappa)
    return lola.Layer(settings, learned, config.heads, config.kv_heads, config.head_dim)


def logits(
    config: TinyConfig, weights: Weights, tokens: list[int], attention: Attention = softmax_attention
) -> lola.Array:
    """[T, vocabulary], after each token."""
    w = {name: np.float64(value) for name, value in weights.items()}
    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(config.layers):
        p = f"model.layers.{layer}."
        x = x + attention_block(config, w, p, rms_norm(x, w[p + "input_layernorm.weight"], config), layer, attention)
        normed = rms_norm(x, w[p + "post_attention_layernorm.weight"], config)
        gate = normed @ w[p + "mlp.gate_proj.weight"].T
        hidden = gate / (1 + np.exp(-gate)) * (normed @ w[p + "mlp.up_proj.weight"].T)
        x = x + hidden @ w[p + "mlp.down_proj.weight"].T
    output = w["model.embed_tokens.weight" if config.tied else "lm_head.weight"]
    return rms_norm(x, w["model.norm.weight"], config) @ output.T


def attention_block(
    config: TinyConfig, w: Weights, prefix: str, x: lola.Array, layer: int, attention: Attention
) -> lola.Array:
    def project(name: str, heads: int) -> lola.Array:
        p = f"{prefix}self_attn.{name}"
        y = x @ w[f"{p}_proj.weight"].T + w.get(f"{p}_proj.bias", 0.0)
        y = y.reshape(len(x), heads, config.head_dim)
        return rms_norm(y, w[f"{p}_norm.weight"], config) if f"{p}_norm.weight" in w else y

    q = rotate(config, project("q", config.heads))
    k = rotate(config, project("k", config.kv_heads))
    y = attention(layer, q, k, project("v", config.kv_heads))
    return y.reshape(len(x), -1) @ w[f"{prefix}self_attn.o_proj.weight"].T


def rms_norm(x: lola.Array, weight: lola.Array, config: TinyConfig) -> lola.Array:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * weight


def rotate(config: TinyConfig, x: lola.Array) -> lola.Array:
    """RoPE of x [T, heads, d] at positions 0 ... T - 1, pairs (i, i + d / 2)."""
    frequency = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    if config.rope_scaling == "llama3":
        frequency = frequency / np.float64(llama3_factors(config))
    elif config.rope_scaling == "linear":
        frequency = frequency / config.rope_factor
    angle = np.arange(len(x))[:, None, None] * frequency
    first, second = np.split(x, 2, axis=-1)
    turned = (first * np.cos(angle) - second * np.sin(angle), first * np.sin(angle) + second * np.cos(angle))
    return np.concatenate(turned, axis=-1)
