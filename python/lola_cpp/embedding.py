"""Hidden states after the final norm, of a text's tokens, made one vector or kept as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from ._core import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Pooling = Literal["mean", "last", "none"]


class Pool:
    """Takes the hidden states part by part, so that a mean needs no more memory for a longer text."""

    def __init__(self, pooling: Pooling) -> None:
        if pooling not in get_args(Pooling):
            raise UsageError(f"pooling: found {pooling!r}, wanted one of {', '.join(get_args(Pooling))}")
        self._pooling = pooling
        self._parts: list[NDArray[np.float32]] = []
        self._sum: NDArray[np.float64] | None = None
        self._count = 0

    def add(self, hidden: NDArray[np.float32]) -> None:
        """[tokens, dim] of the next tokens, one or more."""
        self._count += len(hidden)
        if self._pooling == "mean":
            total = hidden.sum(axis=0, dtype="float64")
            self._sum = total if self._sum is None else self._sum + total
        elif self._pooling == "last":
            self._parts = [hidden[-1:].copy()]
        else:
            self._parts.append(hidden)

    def result(self) -> NDArray[np.float32]:
        """[dim], or [tokens, dim] where nothing is pooled. UsageError where there were no tokens."""
        import numpy as np

        if self._count == 0:
            raise UsageError("embed: found no tokens, wanted one or more")
        if self._sum is not None:
            return (self._sum / self._count).astype(np.float32)
        hidden = np.concatenate(self._parts)
        return hidden[0] if self._pooling == "last" else hidden
