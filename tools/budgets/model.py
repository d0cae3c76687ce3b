"""A Llama GGUF with its adapter in PyTorch, chunk by chunk through all layers, so that a boundary sees every layer.

The same computation as the engine's in float32, for mixing `gated`, feature map `softmax_dim` and terraced windows,
with caches whose sizes differ among heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from budgets.policies import Budget
from lola_cpp._core import GgufFile, UnsupportedError

_CHECKED = {"feature_map": "softmax_dim", "mixing": "gated", "skip_connection": False}


@dataclass
class Layer:
    """Matrices with their LoRA in them."""

    tensors: dict[str, Tensor]

    def __getattr__(self, name: str) -> Tensor:
        return self.tensors[name]


@dataclass
class Counts:
    """Pairs in a head's sparse cache: their mean over boundaries and heads, and the most of any head at any time."""

    boundaries: int = 0
    mean: float = 0.0
    most: int = 0

    def add(self, kept: Tensor) -> None:
        sizes = kept.sum(-1)
        self.mean = (self.mean * self.boundaries + sizes.float().mean().item()) / (self.boundaries + 1)
        self.boundaries += 1
        self.most = max(self.most, int(sizes.max()))


@dataclass
class Memories:
    """Of all layers: the hidden state Hs [L, B, H, F, d], s [L, B, H, F, 1], and the pairs in the caches.

    pairs [L, B, H, n, 2 d + F] are (k, v, phi(k)); is_pair [L, B, H, n] says which of the n places hold one.
    """

    state: Tensor
    total: Tensor
    pairs: Tensor
    is_pair: Tensor


class Student:
    def __init__(self, base: Path, adapter: Path, device: str) -> None:
        files = [GgufFile(str(path)) for path in (base, adapter)]
        for name, wanted in _CHECKED.items():
            if (found := files[1].get(f"adapter.lola.{name}")) != wanted:
                raise UnsupportedError(f"'{adapter}': {name}: found {found!r}, wanted {wanted!r}")
        if (found := files[0].get("general.architecture")) != "llama":
            raise UnsupportedError(f"'{base}': architecture: found {found!r}, wanted 'llama'")
        self.device, get = device, files[0].get
        self.heads, self.kv_heads = get("llama.attention.head_count"), get("llama.attention.head_count_kv")
        self.dim, self.eps = get("llama.attention.key_length"), get("llama.attention.layer_norm_rms_epsilon")
        self.rope_base, self.kappa = get("llama.rope.freq_base"), files[1].get("adapter.lola.kappa")
        self.chunk, self.window = (files[1].get(f"adapter.lola.{name}_size") for name in ("chunk", "window"))
        self.tensors = _tensors(files[0], device) | _tensors(files[1], device)
        self.layers = [self._layer(i, files[1]) for i in range(get("llama.block_count"))]
        self.sizes = [self.dim, self.dim, 2 * self.layers[0].attn_lola_fk.shape[1]]

    def _layer(self, index: int, adapter: GgufFile) -> Layer:
        prefix = f"blk.{index}."
        mine = {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}
        for name in [name for name in mine if name.endswith("lora_a")]:
            low, high = mine.pop(name), mine.pop(name[:-1] + "b")
            mine[name[: -len(".lora_a")]] += adapter.get("adapter.lora.alpha") / len(low) * high @ low
        layer = Layer({name.removesuffix(".weight"): x for name, x in mine.items()})
        kappa = torch.full((self.heads,), float(self.kappa), device=self.device)
        layer.tensors.setdefault("attn_lola_kappa", kappa)
        return layer

    @torch.no_grad()
    def hidden(self, tokens: Tensor, budget: Budget, policy: str) -> tuple[Tensor, Counts]:
        """The states after the last norm [batch, length, hidden], and what the caches held."""
        tokens, counts, outputs = tokens.to(self.device), Counts(), []
        memories = self._nothing(len(tokens))
        near = [memories.pairs[0]] * len(self.layers)  # of each layer: the pairs in the window
        for begin in range(0, tokens.shape[1], self.chunk):
            x = functional.embedding(tokens[:, begin : begin + self.chunk], self.tensors["token_embd.weight"])
            for i, layer in enumerate(self.layers):
                x, own = self._through(layer, x, begin, near[i], memories, i)
                near[i] = torch.cat([near[i], own], 2)
            outputs.append(self._norm(x, self.tensors["output_norm.weight"]))
            if near[0].shape[2] > self.window:
                leaving = torch.stack([pairs[:, :, : -self.window] for pairs in near])
                near = [pairs[:, :, -self.window :] for pairs in near]
                memories = self._boundary(memories, leaving, budget, policy, counts)
        return torch.cat(outputs, 1), counts

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.tensors.get("output.weight", self.tensors["token_embd.weight"]).T

    def _nothing(self, batch: int) -> Memories:
        shape = (len(self.layers), batch, self.heads)
        features = self.sizes[2]
        return Memories(
            torch.zeros(*shape, features, self.dim, device=self.device),
            torch.zeros(*shape, features, 1, device=self.device),
            torch.zeros(*shape, 0, sum(self.sizes), device=self.device),
            torch.zeros(*shape, 0, dtype=torch.bool, device=self.device),
        )

    def _through(
        self, layer: Layer, x: Tensor, begin: int, near: Tensor, memories: Memories, index: int
    ) -> tuple[Tensor, Tensor]:
        """A chunk's output, and its pairs."""
        y = self._norm(x, layer.attn_norm)
        q, k, v = (
            (y @ w.T).unflatten(-1, (-1, self.dim)).transpose(1, 2) for w in (layer.attn_q, layer.attn_k, layer.attn_v)
        )
        group = self.heads // self.kv_heads
        q, k = self._rotated(q, begin), self._rotated(k, begin).repeat_interleave(group, 1)
        own = torch.cat([k, v.repeat_interleave(group, 1), _features(k, layer.attn_lola_fk)], -1)
        exact = torch.cat([memories.pairs[index], near, own], 2)
        keys, values, _ = exact.split(self.sizes, -1)
        seen = functional.pad(memories.is_pair[index], (0, exact.shape[2] - memories.is_pair.shape[3]), value=True)
        later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
        hidden = functional.pad(later, (exact.shape[2] - q.shape[2], 0)) | ~seen[:, :, None]
        logits = (q @ keys.transpose(-1, -2) * self.dim**-0.5).masked_fill(hidden, float("-inf"))
        gate = layer.attn_lola_window.sigmoid()[:, None, None]
        shift = logits.amax(-1, True).clamp_min(0)
        weights, factor = gate * (logits - shift).exp(), (1 - gate) * (-shift).exp()
        phi = _features(q, layer.attn_lola_fq)
        linear, mass = phi @ memories.state[index], phi @ memories.total[index]
        out = (weights @ values + factor * linear) / (weights.sum(-1, True) + factor * mass)
        x = x + out.transpose(1, 2).flatten(2) @ layer.attn_output.T
        y = self._norm(x, layer.ffn_norm)
        return x + (functional.silu(y @ layer.ffn_gate.T) * (y @ layer.ffn_up.T)) @ layer.ffn_down.T, own

    def _boundary(self, m: Memories, leaving: Tensor, budget: Budget, policy: str, counts: Counts) -> Memories:
        eligible = torch.cat([m.pairs, leaving], 3)
        is_pair = functional.pad(m.is_pair, (0, leaving.shape[3]), value=True)
        k, v, phi = eligible.split(self.sizes, -1)
        recalled = (phi @ m.state) / (phi @ m.total).clamp_min(torch.finfo(torch.float32).tiny)
        scores = (recalled - v).square().sum(-1).log()
        if policy == "weighted_recall":
            kappa = torch.stack([layer.attn_lola_kappa for layer in self.layers])[:, None, :, None]
            scores = scores + kappa * k.square().sum(-1) / (2 * self.dim)
        kept = budget(scores.masked_fill(~is_pair, float("-inf")))
        counts.add(kept)
        lost = (is_pair & ~kept)[..., None]
        gone = phi * lost
        order = kept.int().sort(dim=-1, descending=True, stable=True).indices[..., : max(1, int(kept.sum(-1).max()))]
        return Memories(
            m.state + gone.transpose(-1, -2) @ v,
            m.total + gone.sum(3)[..., None],
            eligible.gather(3, order[..., None].expand(*order.shape, eligible.shape[-1])),
            kept.gather(3, order),
        )

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], weight, self.eps)

    def _rotated(self, x: Tensor, begin: int) -> Tensor:
        """Pairs (2i, 2i + 1), as GGUF's llama has them."""
        frequencies = self.rope_base ** (-torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)
        angles = torch.arange(begin, begin + x.shape[2], dtype=torch.float64)[:, None] * frequencies
        cos, sin = (y.float().to(x.device) for y in (angles.cos(), angles.sin()))
        first, second = x[..., ::2], x[..., 1::2]
        return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)


def _features(x: Tensor, maps: Tensor) -> Tensor:
    """softmax_dim of x [batch, heads, tokens, d] with maps [heads, f, d]."""
    z = x @ maps.transpose(-1, -2)
    return torch.cat([z.softmax(-1), (-z).softmax(-1)], -1).clamp_min(1e-12)


def _tensors(file: GgufFile, device: str) -> dict[str, Tensor]:
    found = {}
    for name, kind, shape, _ in file.tensors():
        data = np.array(file.tensor_data(name)).reshape(shape[0], -1)
        values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).reshape(shape)
        found[name] = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(device)
    return found
