"""One attention layer with random weights and inputs, run by the engine and by the oracle."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lola_cpp import _core
from reference import lola

Array32 = NDArray[np.float32]

ISAS = _core.testing.available_isas()


@dataclass(frozen=True)
class Shape:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    map_size: int = 8
    feature_map: str = "softmax_dim"
    skip: bool = False


@dataclass(frozen=True)
class Weights32:
    query_map: Array32  # [H, f, d]
    key_map: Array32  # [H, f, d]
    gate: Array32  # [H]
    kappa: Array32  # [H]

    def as_float64(self, shape: Shape) -> lola.Weights:
        arrays = [np.float64(x) for x in (self.query_map, self.key_map, self.gate, self.kappa)]
        return lola.Weights(shape.feature_map, shape.skip, *arrays)


@dataclass(frozen=True)
class Inputs:
    q: Array32  # [T, H, d]
    k: Array32  # [T, G, d]
    v: Array32  # [T, G, d]

    def __getitem__(self, tokens: slice) -> Inputs:
        return Inputs(self.q[tokens], self.k[tokens], self.v[tokens])

    def as_float64(self) -> tuple[lola.Array, lola.Array, lola.Array]:
        return np.float64(self.q), np.float64(self.k), np.float64(self.v)


def random_weights(shape: Shape, seed: int = 0) -> Weights32:
    rng = np.random.default_rng([seed, 1])
    maps = rng.normal(size=(2, shape.heads, shape.map_size, shape.head_dim)) / np.sqrt(max(1, shape.head_dim))
    gate = rng.uniform(0.1, 0.9, shape.heads)
    kappa = rng.normal(size=shape.heads)  # both signs
    return Weights32(*(np.float32(x) for x in (maps[0], maps[1], gate, kappa)))


def random_inputs(shape: Shape, tokens: int, seed: int = 0) -> Inputs:
    rng = np.random.default_rng([seed, 2])
    q = rng.normal(size=(tokens, shape.heads, shape.head_dim))
    k = 1.5 * rng.normal(size=(tokens, shape.kv_heads, shape.head_dim))
    v = rng.normal(size=(tokens, shape.kv_heads, shape.head_dim))
    return Inputs(np.float32(q), np.float32(k), np.float32(v))


def engine_layer(
    shape: Shape, weights: Weights32, config: lola.Config, *, isa: str = "scalar", pair_type: str = "f32"
) -> _core.testing.LolaLayer:
    return _core.testing.LolaLayer(isa=isa, pair_type=pair_type, **vars(shape), **vars(weights), **vars(config))


def oracle_layer(shape: Shape, weights: Weights32, config: lola.Config) -> lola.Layer:
    return lola.Layer(config, weights.as_float64(shape), shape.heads, shape.kv_heads, shape.head_dim)


def softmax_layer(shape: Shape, isa: str, pair_type: str) -> _core.testing.SoftmaxLayer:
    return _core.testing.SoftmaxLayer(
        isa=isa,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        pair_type=pair_type,
    )


def with_stored_pairs(shape: Shape, inputs: Inputs, isa: str, pair_type: str) -> Inputs:
    """The inputs with their pairs as a KV cache gives them back."""
    cache = softmax_layer(shape, isa, pair_type)
    cache.advance(inputs.q, inputs.k, inputs.v)
    pages = cache.sections()
    k, v = (np.concatenate([page[f"kv_cache_{x}"].transpose(1, 0, 2) for page in pages]) for x in "kv")
    return Inputs(inputs.q, k[: len(inputs.q)], v[: len(inputs.q)])


def random_split(tokens: int, rng: np.random.Generator) -> list[slice]:
    cuts = np.unique(rng.integers(1, tokens, size=rng.integers(1, 12)))
    edges = [0, *cuts.tolist(), tokens]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def largest_error(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
