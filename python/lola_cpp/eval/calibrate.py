"""kappa of the policy `weighted_recall`, for each head, from ordinary text.

The policy weighs a pair's recall error by exp(kappa ||k||^2 / 2d), its guess of how much attention the key will get.
Text tells: for every pair that has left the window, take the largest weight that softmax attention gives it in any
later query; kappa is the slope of the logarithm of that weight over ||k||^2 / 2d. It is negative where small keys
attract. The mean weight instead of the largest would not do: most of it is spread thinly over keys nobody looks for.

Not every model is better off with its slopes: where recall errors tell by themselves what will be asked for, any kappa
spoils them. So the rules are tried on other text, and the one that foretells it best is taken, where a token needs
more than window and hidden state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import UsageError
from ..inspection import lola_layers
from ..model import Model
from .progress import bar

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..options import SessionOptions

Floats = NDArray[np.float32]

_PASS = 256  # tokens at a time: bounds the memory of the weights
_NEED = 0.5  # nats: how much more of a token exact attention has to know
_LATER = 4  # a pair counts when at least 1/4 of the segment's queries come after it left the window


@dataclass(frozen=True)
class HeadKappa:
    """What the text says of one head: the slope, and how well norms tell the weight (correlation)."""

    layer: int
    head: int
    kappa: float
    correlation: float


def by_layer(heads: Sequence[HeadKappa]) -> dict[int, Floats]:
    """kappa as adapters have it: of each layer, [heads]."""
    layers = sorted({head.layer for head in heads})
    return {layer: np.array([h.kappa for h in heads if h.layer == layer], np.float32) for layer in layers}


def losses_by_rule(
    base: Path, adapter: Path, calibrated: Path, segments: Sequence[list[int]], **where: Any
) -> dict[str, float]:
    """The mean loss of the tokens that need a sparse cache: with self_recall, the adapter's kappa, and the slopes.

    They are those that the same weights foretell better with all pairs exact than with window and hidden state alone:
    the others would drown the differences.

    calibrated  the adapter with the slopes; one-file models are their own base and adapter
    where       device, threads, gpu_layers of Model
    """
    plain, sloped = (Model(*dict.fromkeys((base, source)), **where) for source in (adapter, calibrated))
    defaults = plain.session_defaults
    size, chunk = defaults["sparse_size"] or defaults["window_size"], defaults["chunk_size"]
    everything = -(-len(segments[0]) // chunk) * chunk
    with bar(5 * sum(map(len, segments)), "comparing rules") as progress:

        def losses(model: Model, **options: Unpack[SessionOptions]) -> Floats:
            found = []
            for segment in segments:
                found.append(-model.session(**options).score(segment)[1:])
                progress.update(len(segment))
            return np.concatenate(found)

        exact, without = losses(plain, sparse_size=0, window_size=everything), losses(plain, sparse_size=0)
        found = {
            "self_recall": losses(plain, policy="self_recall", sparse_size=size),
            "as it was": losses(plain, policy="weighted_recall", sparse_size=size),
            "slopes": losses(sloped, policy="weighted_recall", sparse_size=size),
        }
    needed = without - exact > _NEED
    return {name: float(loss[needed if needed.any() else ...].mean()) for name, loss in found.items()}


def calibrate(model: Model, segments: Sequence[list[int]], *, window_size: int | None = None) -> list[HeadKappa]:
    """Of every head with LoLA attention. window_size: the adapter's where it is not given.

    Raises UsageError for a model without an adapter, and for segments too short to look back in.
    """
    linear = lola_layers(model)
    window = window_size or model.session_defaults["window_size"]
    if len(segments[0]) < 2 * _LATER * window:
        raise UsageError(f"length: found {len(segments[0])}, wanted at least {2 * _LATER * window} for this window")
    samples: dict[int, list[tuple[Floats, Floats]]] = {}
    with bar(sum(map(len, segments)), "looking back") as progress:
        for segment in segments:
            session = model.session(context_length=len(segment))
            layers = {layer: _Lookback(len(segment), window) for layer in linear}

            def observe(layer: int, q: Floats, k: Floats, v: Floats, layers: dict[int, _Lookback] = layers) -> None:
                if layer in layers:
                    layers[layer].add(q, k)

            for begin in range(0, len(segment), _PASS):
                session._core.observe_attention(segment[begin : begin + _PASS], observe)
                progress.update(len(segment[begin : begin + _PASS]))
            for layer, lookback in layers.items():
                samples.setdefault(layer, []).append(lookback.samples())
    return [kappa for layer, parts in samples.items() for kappa in _slopes(layer, parts)]


class _Lookback:
    """Keys of one layer, and the largest weight that a query beyond the window gave each."""

    def __init__(self, length: int, window: int) -> None:
        self._length, self._window = length, window
        self._keys: Floats | None = None  # [kv_heads, length, head_dim]
        self._seen = 0

    def add(self, q: Floats, k: Floats) -> None:
        """The next queries [rows, heads, d] and keys [rows, kv_heads, d]."""
        rows, heads, dim = q.shape
        if self._keys is None:
            self._keys = np.zeros((k.shape[1], self._length, dim), np.float32)
            self._peak = np.full((heads, self._length), -np.inf, np.float32)
        begin, end = self._seen, self._seen + rows
        self._keys[:, begin:end] = k.transpose(1, 0, 2)
        self._seen = end
        age = np.arange(begin, end)[:, None] - np.arange(end)  # [rows, end]
        for head in range(heads):
            logits = q[:, head] @ self._keys[head * k.shape[1] // heads, :end].T / np.float32(np.sqrt(dim))
            logits[age < 0] = -np.inf
            logits -= logits.max(axis=1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            logits[age <= self._window] = -np.inf
            self._peak[head, :end] = np.maximum(self._peak[head, :end], logits.max(axis=0))

    def samples(self) -> tuple[Floats, Floats]:
        """||k||^2 / 2d and the logarithm of the largest weight, [heads, pairs] both, of pairs with a future."""
        assert self._keys is not None
        pairs = self._length - self._length // _LATER - self._window
        norms = (self._keys[:, :pairs] ** 2).sum(axis=2) / (2 * self._keys.shape[2])
        return np.repeat(norms, len(self._peak) // len(norms), axis=0), self._peak[:, :pairs]


def _slopes(layer: int, parts: Sequence[tuple[Floats, Floats]]) -> list[HeadKappa]:
    """Least squares in every head; each segment has a mean of its own. 0 where all norms are equal."""
    x, y = (
        np.concatenate([p - p.mean(axis=1, keepdims=True) for p in side], axis=1, dtype=np.float64)
        for side in zip(*parts, strict=True)
    )
    xx, xy, yy = (x * x).sum(axis=1), (x * y).sum(axis=1), (y * y).sum(axis=1)
    kappa = np.divide(xy, xx, out=np.zeros_like(xy), where=xx > 0)
    correlation = np.divide(xy, np.sqrt(xx * yy), out=np.zeros_like(xy), where=xx * yy > 0)
    return [HeadKappa(layer, head, float(kappa[head]), float(correlation[head])) for head in range(len(kappa))]
