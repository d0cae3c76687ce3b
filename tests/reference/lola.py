"""What LoLA computes, in float64 and token by token, straight from the equations.

The oracle of the C++ and CUDA kernels. Deliberately naive: every query head keeps plain lists of pairs, every sum is
written out, nothing is shared or batched. Slow on purpose; read it to learn what the engine must do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Config:
    window_size: int = 64  # eta
    chunk_size: int = 64  # C
    sparse_size: int = 64  # lambda
    scope: str = "head"
    policy: str = "self_recall"
    mixing: str = "gated"
    affine: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Weights:
    """The learned parts of one layer.

    query_map, key_map: W of each query head, [H, f, d]. gate: g after the sigmoid, [H]. kappa: [H].
    """

    feature_map: str
    skip: bool
    query_map: Array
    key_map: Array
    gate: Array
    kappa: Array


@dataclass
class Pair:
    position: int
    k: Array  # [d]
    v: Array  # [d]
    score: float = 0.0


@dataclass
class HeadMemory:
    """The three memories of one query head."""

    state: Array  # Hs [F, d]
    sum: Array  # s [F]
    window: list[Pair] = field(default_factory=list)
    cache: list[Pair] = field(default_factory=list)
    absorbed: int = 0


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max())
    return e / e.sum()


def features(kind: str, skip: bool, weight: Array, x: Array) -> Array:
    """phi(x) [F] of x [d] under W [f, d]."""
    z = weight @ x
    if skip:
        z = x + z
    if kind == "softmax_dim":
        phi = np.concatenate([softmax(z), softmax(-z)])
    elif kind == "softmax_dim_half":
        phi = softmax(z)
    elif kind == "exp_dim":
        phi = np.concatenate([np.exp(z - z.max()), np.exp(-z + z.min())])
    elif kind == "exp_dim_half":
        phi = np.exp(z - z.max())
    elif kind == "relu":
        phi = z
    elif kind == "pos_elu":
        phi = np.array([1 + a if a > 0 else np.exp(a) for a in z])
    else:
        raise ValueError(kind)
    return np.maximum(1e-12, phi)


def scramble(x: int) -> int:
    """The finalizer of SplitMix64."""
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def random_score(seed: int, head: int, position: int) -> float:
    return (scramble(scramble(scramble(seed) ^ head) ^ position) >> 40) / 2.0**24


class Layer:
    """One layer, from before its first token."""

    def __init__(self, config: Config, weights: Weights, heads: int, kv_heads: int, head_dim: int) -> None:
        self.config, self.weights = config, weights
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.sparse_size = 0 if config.policy == "none" else config.sparse_size
        self.position = 0
        size = self.phi(weights.key_map[0], np.zeros(head_dim)).size
        self.memories = [HeadMemory(np.zeros((size, head_dim)), np.zeros(size)) for _ in range(heads)]
        # How close the closest choice between two pairs was, relative to their scores: float32 may decide it otherwise.
        self.smallest_margin = np.inf

    def advance(self, q: Array, k: Array, v: Array) -> Array:
        """q [T, H, d], k and v [T, G, d] -> the outputs [T, H, d]."""
        return np.array([self.step(*rows) for rows in zip(q, k, v, strict=True)]).reshape(q.shape)

    def step(self, q: Array, k: Array, v: Array) -> Array:
        """One token: its pair enters the window, its queries attend, and at a boundary pairs move."""
        group = self.heads // self.kv_heads
        for head, memory in enumerate(self.memories):
            memory.window.append(Pair(self.position, k[head // group], v[head // group]))
        y = np.array([self.attend(head, q[head]) for head in range(self.heads)])
        if (self.position + 1) % self.config.chunk_size == 0:
            self.pass_boundary()
        self.position += 1
        return y

    def phi(self, weight: Array, x: Array) -> Array:
        return features(self.weights.feature_map, self.weights.skip, weight, x)

    def attend(self, head: int, q: Array) -> Array:
        memory, config, gate = self.memories[head], self.config, self.weights.gate[head]
        exact = memory.window + memory.cache
        logits = np.array([q @ pair.k for pair in exact]) / np.sqrt(self.head_dim)
        values = np.array([pair.v for pair in exact])
        if memory.absorbed == 0:
            return softmax(logits) @ values
        top = logits.max()
        shift = top if config.mixing == "lolcats" else max(0.0, top)
        weights = np.exp(logits - shift)
        if config.mixing == "lolcats":
            weights, factor = gate * weights, 1 - gate if config.affine else 1.0
        elif config.mixing == "gated":
            weights, factor = gate * weights, (1 - gate) * np.exp(-shift)
        else:
            factor = np.exp(-shift)
        phi = self.phi(self.weights.query_map[head], q)
        return (weights @ values + factor * phi @ memory.state) / (weights.sum() + factor * phi @ memory.sum)

    def pass_boundary(self) -> None:
        group = self.heads // self.kv_heads
        owner_heads = 1 if self.config.scope == "head" else group
        for first in range(0, self.heads, owner_heads):
            self.pass_owner_boundary(range(first, first + owner_heads))

    def pass_owner_boundary(self, heads: range) -> None:
        """The heads share one sparse cache; their windows hold the same pairs."""
        oldest_kept = self.position - self.config.window_size + 1
        window = self.memories[heads[0]].window
        eligible = self.memories[heads[0]].cache + [pair for pair in window if pair.position < oldest_kept]
        kept = self.choose(heads, eligible)
        kept_positions = {pair.position for pair in kept}
        for head in heads:
            memory = self.memories[head]
            memory.window = [pair for pair in memory.window if pair.position >= oldest_kept]
            memory.cache = list(kept)
            for pair in eligible:
                if pair.position not in kept_positions:
                    phi = self.phi(self.weights.key_map[head], pair.k)
                    memory.state = memory.state + np.outer(phi, pair.v)
                    memory.sum = memory.sum + phi
                    memory.absorbed += 1

    def choose(self, heads: range, eligible: list[Pair]) -> list[Pair]:
        if len(eligible) <= self.sparse_size:
            return eligible
        if self.sparse_size == 0:
            return []
        per_head = [self.scores(head, eligible) for head in heads]
        scores = [max(s[i] for s in per_head) for i in range(len(eligible))]
        order = sorted(range(len(eligible)), key=lambda i: (-scores[i], eligible[i].position))
        self.note_margin(scores[order[self.sparse_size - 1]], scores[order[self.sparse_size]])
        kept = sorted(order[: self.sparse_size])
        return [Pair(eligible[i].position, eligible[i].k, eligible[i].v, scores[i]) for i in kept]

    def note_margin(self, last_in: float, first_out: float) -> None:
        if self.config.policy in ("self_recall", "weighted_recall", "self_recall_after"):
            margin = (last_in - first_out) / max(1e-3, abs(last_in))
            self.smallest_margin = min(self.smallest_margin, margin)

    def scores(self, head: int, eligible: list[Pair]) -> list[float]:
        policy = self.config.policy
        if policy == "first":
            return [0.0 for _ in eligible]
        if policy == "recent":
            return [-float(self.position + 1 - pair.position) for pair in eligible]
        if policy == "random":
            return [random_score(self.config.seed, head, pair.position) for pair in eligible]
        errors = self.recall_errors(head, eligible)
        if policy == "weighted_recall":
            kappa = self.weights.kappa[head]
            with np.errstate(divide="ignore"):
                return [
                    float(np.log(error) + kappa * (pair.k @ pair.k) / (2 * self.head_dim))
                    for error, pair in zip(errors, eligible, strict=True)
                ]
        return errors

    def recall_errors(self, head: int, eligible: list[Pair]) -> list[float]:
        """SRE of each pair against the head's hidden state, or against it with all the pairs absorbed."""
        memory, weight = self.memories[head], self.weights.key_map[head]
        state, total = memory.state, memory.sum
        if self.config.policy == "self_recall_after":
            for pair in eligible:
                phi = self.phi(weight, pair.k)
                state, total = state + np.outer(phi, pair.v), total + phi
        errors = []
        for pair in eligible:
            phi = self.phi(weight, pair.k)
            recall = phi @ state / (phi @ total) if total.any() else np.zeros(self.head_dim)
            errors.append(float(np.sum((recall - pair.v) ** 2)))
        return errors


def softmax_attention(q: Array, k: Array, v: Array) -> Array:
    """Causal softmax attention: q [T, H, d], k and v [T, G, d] -> [T, H, d]."""
    tokens, heads, head_dim = q.shape
    group = heads // k.shape[1]
    y = np.empty_like(q)
    for t in range(tokens):
        for head in range(heads):
            logits = k[: t + 1, head // group] @ q[t, head] / np.sqrt(head_dim)
            y[t, head] = softmax(logits) @ v[: t + 1, head // group]
    return y
