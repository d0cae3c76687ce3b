"""The hidden state after very many tokens against float64 sums, for layer 0 of the embedded model.

    python tools/convert.py hf FOLDER -o tiny-bf16.gguf --type bf16
    python tools/check_sums.py --model tiny-bf16.gguf --tokens 1000000

Layer 0 sees the token embeddings alone, so its keys and values follow from the tokens: k = rope(W_k norm(x)),
v = W_v norm(x). Without a sparse cache its sums are s = sum phi(k), Hs = sum phi(k) v' over all tokens but those in the
window. The model's matrices should be of a float type: products with quantized weights round the activations.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray
from tqdm import tqdm

from lola_cpp import Model
from lola_cpp._core import GgufFile

Array = NDArray[np.float64]


def read(file: GgufFile, name: str) -> Array:
    kind, shape = next((kind, shape) for tensor, kind, shape, _ in file.tensors() if tensor == name)
    data = file.tensor_data(name)
    if kind == "F32":
        return data.view(np.float32).reshape(shape).astype(np.float64)
    rows = quants.dequantize(data.reshape(int(np.prod(shape[:-1])), -1), GGMLQuantizationType[kind])
    return rows.reshape(shape).astype(np.float64)


class LayerZero:
    """Keys, values and features of the first layer, in float64."""

    def __init__(self, base: GgufFile, adapter: GgufFile) -> None:
        arch = base.get("general.architecture")
        self.heads = int(base.get(f"{arch}.attention.head_count"))
        self.kv_heads = int(base.get(f"{arch}.attention.head_count_kv"))
        self.eps = float(base.get(f"{arch}.attention.layer_norm_rms_epsilon"))
        self.embedding = read(base, "token_embd.weight")
        self.norm = read(base, "blk.0.attn_norm.weight")
        alpha = float(adapter.get("adapter.lora.alpha"))
        self.w_k, self.w_v = (self._merged(base, adapter, f"blk.0.attn_{x}.weight", alpha) for x in "kv")
        self.maps = read(adapter, "blk.0.attn_lola_fk.weight")
        self.dim = self.maps.shape[2]
        theta = float(base.get(f"{arch}.rope.freq_base"))
        self.frequencies = theta ** (-np.arange(0, self.dim, 2) / self.dim)

    @staticmethod
    def _merged(base: GgufFile, adapter: GgufFile, name: str, alpha: float) -> Array:
        a, b = read(adapter, name + ".lora_a"), read(adapter, name + ".lora_b")
        merged: Array = read(base, name) + alpha / a.shape[0] * b @ a
        return merged

    def sums(self, tokens: NDArray[Any], position: int) -> tuple[Array, Array]:
        """Hs [heads, F, dim] and s [heads, F] of tokens from a position on."""
        x = self.embedding[tokens]
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.eps) * self.norm
        k = (x @ self.w_k.T).reshape(len(tokens), self.kv_heads, self.dim)
        v = (x @ self.w_v.T).reshape(len(tokens), self.kv_heads, self.dim)
        angles = np.arange(position, position + len(tokens))[:, None, None] * self.frequencies
        even, odd = k[..., 0::2].copy(), k[..., 1::2].copy()
        k[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
        k[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
        states, totals = [], []
        for head in range(self.heads):
            kv_head = head * self.kv_heads // self.heads
            z = k[:, kv_head] @ self.maps[head].T
            halves = [np.exp(side - side.max(-1, keepdims=True)) for side in (z, -z)]
            phi = np.concatenate([half / half.sum(-1, keepdims=True) for half in halves], -1).clip(1e-12)
            states.append(phi.T @ v[:, kv_head])
            totals.append(phi.sum(0))
        return np.stack(states), np.stack(totals)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="default: the embedded model's")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    options = parser.parse_args()
    embedded = Path(Model.default().path).with_name("tiny-lola.gguf")
    adapter = options.adapter or embedded
    model = Model(options.model, adapter)
    session = model.session(sparse_size=0, pair_type="f32")
    layer = LayerZero(GgufFile(options.model), GgufFile(adapter))
    rng = random.Random(0)
    tokens = np.array([rng.randrange(model.info.vocabulary) for _ in range(options.tokens)])
    block = 8192
    for first in tqdm(range(0, len(tokens), block), desc="engine", file=sys.stderr, disable=None):
        session.append(tokens[first : first + block].tolist())
    window, chunk = session.config["window_size"], session.config["chunk_size"]
    absorbed = len(tokens) // chunk * chunk - window
    state, total = 0.0, 0.0
    for first in tqdm(range(0, absorbed, block), desc="float64", file=sys.stderr, disable=None):
        parts = layer.sums(tokens[first : min(first + block, absorbed)], first)
        state, total = state + parts[0], total + parts[1]
    with tempfile.TemporaryDirectory() as folder:
        session.save(Path(folder) / "state.gguf")
        saved = GgufFile(Path(folder) / "state.gguf")
        found_state, found_total = read(saved, "blk.0.hidden_state"), read(saved, "blk.0.hidden_sum")
    for name, found, wanted in (("Hs", found_state, state), ("s", found_total, total)):
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        print(f"{name}: relative error {error:.2e} after {len(tokens):,} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
