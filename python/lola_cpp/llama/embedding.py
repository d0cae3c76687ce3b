"""Embeddings in the shape of llama-cpp-python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import UnsupportedError
from ..embedding import Pooling
from ..model import Model

LLAMA_POOLING_TYPE_UNSPECIFIED = -1
LLAMA_POOLING_TYPE_NONE = 0
LLAMA_POOLING_TYPE_MEAN = 1
LLAMA_POOLING_TYPE_CLS = 2
LLAMA_POOLING_TYPE_LAST = 3

_POOLING: dict[int, Pooling] = {
    LLAMA_POOLING_TYPE_NONE: "none",
    LLAMA_POOLING_TYPE_MEAN: "mean",
    LLAMA_POOLING_TYPE_CLS: "last",
    LLAMA_POOLING_TYPE_LAST: "last",
}


def check_pooling(pooling_type: int) -> int:
    """NONE where none is named. UnsupportedError for types that are not here."""
    if pooling_type == LLAMA_POOLING_TYPE_UNSPECIFIED:
        return LLAMA_POOLING_TYPE_NONE
    if pooling_type not in _POOLING:
        raise UnsupportedError(f"Llama: pooling_type: found {pooling_type}, wanted one of -1, {str([*_POOLING])[1:-1]}")
    return pooling_type


def embed(
    model: Model, tokens: Sequence[int], pooling_type: int, normalize: bool, options: dict[str, Any]
) -> list[float] | list[list[float]]:
    """A vector, or one for each token where nothing is pooled."""
    if pooling_type == LLAMA_POOLING_TYPE_CLS:  # of the first token, which sees no other
        tokens = tokens[:1]
    vectors = model.embed(tokens, pooling=_POOLING[pooling_type], **options)
    found: list[float] | list[list[float]] = (_normalized(vectors) if normalize else vectors).tolist()
    return found


def response(vectors: Sequence[Any], tokens: int, model: str) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [{"object": "embedding", "embedding": vector, "index": i} for i, vector in enumerate(vectors)],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(length == 0, 1, length), dtype=np.float32)
