"""Models of random weights, and what tests of sessions do with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lola_cpp import Model, Session
from reference import tiny_gguf
from reference.device import PASS_TOKENS
from reference.tiny_gguf import TinyAdapter, tiny

# float32 sums of the same terms in another order, through two layers; 1e-6 is usual.
ROUNDING = 1e-4
CONFIG = tiny(hidden=64, ffn=96, head_dim=32, heads=4, kv_heads=2, context_length=2 * PASS_TOKENS)
ADAPTERS = {
    "lola": TinyAdapter(feature_dim=8),
    "softmax": None,
    "hybrid": TinyAdapter(feature_dim=8, softmax_layers=(0,)),
}
SAMPLING = {"temperature": 3.0, "top_p": 0.99, "repetition_penalty": 1.2, "seed": 7}


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(2, CONFIG.vocab_size, count)]


def make_model(folder: Path, kind: str, seed: int = 0) -> Model:
    adapter, folder = ADAPTERS[kind], folder / f"{kind}{seed}"
    folder.mkdir()
    tiny_gguf.write_model(folder / "m.gguf", CONFIG, tiny_gguf.random_weights(CONFIG, seed=seed, std=0.12))
    if adapter is None:
        return Model(folder / "m.gguf", threads=1)
    tiny_gguf.write_adapter(folder / "a.gguf", CONFIG, adapter, tiny_gguf.random_adapter(CONFIG, adapter))
    return Model(folder / "m.gguf", folder / "a.gguf", threads=1)


def read(model: Model, tokens: list[int], **options: object) -> Session:
    session = model.session(**options)
    session.append(tokens)
    return session


def assert_same_logits(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() < ROUNDING * np.abs(wanted).max()
