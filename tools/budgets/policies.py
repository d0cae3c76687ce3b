"""Who stays in the sparse caches at a boundary: fixed, adaptive and shared budgets.

scores [layers, batch, heads, pairs] are logarithms, -inf where there is no pair; a budget says which pairs stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Budget = Callable[[Tensor], Tensor]

MOST = 4  # times its fair share: what a head may hold at most, where budgets are not fixed


def fixed(size: int) -> Budget:
    """The paper's: every head keeps its `size` best."""
    return lambda scores: _best(scores, size)


def adaptive(share: float, size: int) -> Budget:
    """Every head keeps the fewest pairs that hold this share of its score mass (exp of the scores)."""

    def keep(scores: Tensor) -> Tensor:
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        before = ordered.softmax(-1).nan_to_num(0).cumsum(-1).roll(1, -1)
        before[..., :1] = 0
        chosen = (before < share) & (ordered > -math.inf)
        chosen[..., MOST * size :] = False
        return torch.zeros_like(chosen).scatter(-1, order, chosen)

    return keep


def shared(size: int, *, layers: bool, relative: bool) -> Budget:
    """The heads of a layer, or of all layers, share size pairs each; the best of all stay.

    relative: scores as shares of their head's, so that heads whose errors are large throughout do not take all.
    """

    def keep(scores: Tensor) -> Tensor:
        layer_count, batch, heads, pairs = scores.shape
        candidates = _best(scores, MOST * size)
        if relative:
            scores = scores - scores.logsumexp(-1, keepdim=True)
        scores = scores.masked_fill(~candidates, -math.inf)
        if layers:
            flat = scores.transpose(0, 1).reshape(batch, -1)
            kept = _best(flat, size * heads * layer_count)
            return kept.view(batch, layer_count, heads, pairs).transpose(0, 1)
        flat = scores.reshape(layer_count, batch, -1)
        return _best(flat, size * heads).view(scores.shape)

    return keep


def _best(scores: Tensor, count: int) -> Tensor:
    """Of each row the `count` largest; of equal ones the first."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True) & (scores > -math.inf)
