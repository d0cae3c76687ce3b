"""LoLA's attention for training: over whole sequences, differentiable, in memory that grows with tokens x block.

q is [batch, heads, tokens, head_dim], k and v [batch, kv_heads, tokens, head_dim], after RoPE; all sums in float32.
`attend` has no sparse cache and runs all blocks at once; `attend_with_cache` walks from boundary to boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from lola_cpp.convert.adapter import Settings
from lola_cpp.distill.feature_map import LayerMaps, features

_BLOCK = 64  # of strict windows and small chunks
_NEVER = float("-inf")


def attend(q: Tensor, k: Tensor, v: Tensor, maps: LayerMaps, settings: Settings) -> Tensor:
    """The outputs [batch, heads, tokens, head_dim] with window and hidden state alone (lambda 0)."""
    q, k, v = _by_query_head(q, k, v)
    tokens, window, block = q.shape[2], settings.window_size, _block_size(settings.chunk_size)
    padding = -tokens % block
    # Keys stand `window` places later than queries: block b of the queries sees key blocks [b, b + window / block].
    q, phi_q = (_blocks(x, 0, padding, block) for x in (q, features(q, maps.query_map, settings)))
    keys = (k, v, features(k, maps.key_map, settings))
    near_k, near_v, near_phi = (_spans(x, window, padding, block) for x in keys)
    in_window, absorbed = _masks(window, settings.chunk_size, block, q.shape[2], q.device)
    logits = (q @ near_k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~in_window, _NEVER)
    state, total = _absorbed_before(near_v, near_phi, block)
    linear, mass = phi_q @ state, phi_q @ total
    if absorbed.any():
        near = (phi_q @ near_phi.transpose(-1, -2)) * absorbed
        linear, mass = linear + near @ near_v, mass + near.sum(-1, True)
    gate_logits = maps.window_logits[:, None, None, None]
    y = mix(logits, lambda weights: weights @ near_v, linear, mass, gate_logits, settings)
    return y.flatten(2, 3)[:, :, :tokens]


def mix(
    logits: Tensor,
    weigh: Callable[[Tensor], Tensor],
    linear: Tensor,
    mass: Tensor,
    gate_logits: Tensor,
    settings: Settings,
) -> Tensor:
    """The exact pairs and the linear terms under one normaliser; `weigh` sums the pairs' values by weights."""
    gate = gate_logits.sigmoid()
    top = logits.amax(-1, True)
    if settings.mixing == "lolcats":  # the maximum is part of the trained function
        weights = gate * (logits - top).exp()
        factor: Tensor | float = 1 - gate if settings.affine else 1.0
    else:
        shift = top.detach().clamp_min(0)
        weights, factor = (logits - shift).exp(), (-shift).exp()
        if settings.mixing == "gated":
            weights, factor = gate * weights, (1 - gate) * factor
    return (weigh(weights) + factor * linear) / (weights.sum(-1, True) + factor * mass)


def attend_with_cache(q: Tensor, k: Tensor, v: Tensor, maps: LayerMaps, settings: Settings, sparse_size: int) -> Tensor:
    """The outputs with a sparse cache of `sparse_size` pairs per query head (policies self_recall, weighted_recall)."""
    q, k, v = _by_query_head(q, k, v)
    tokens, window, chunk = q.shape[2], settings.window_size, settings.chunk_size
    phi_q, phi_k = features(q, maps.query_map, settings), features(k, maps.key_map, settings)
    pairs, sizes = torch.cat([k, v, phi_k], -1), [k.shape[-1], v.shape[-1], phi_k.shape[-1]]  # what moves together
    padding = -tokens % chunk
    # All chunks at once, cut apart: a slice for each would have a gradient as long as the sequence.
    queries = (_blocks(x, 0, padding, chunk).unbind(2) for x in (q * q.shape[-1] ** -0.5, phi_q))
    near = (_spans(x, window, padding, chunk).unbind(2) for x in (k, v))
    leaving = _blocks(pairs, window, padding, chunk).unbind(2)
    in_window, _ = _masks(window, chunk, chunk, (tokens + padding) // chunk, q.device)
    state, total = q.new_zeros(*q.shape[:2], sizes[2], sizes[1]), q.new_zeros(*q.shape[:2], sizes[2], 1)
    cache, outputs, gate_logits = pairs[:, :, :0], [], maps.window_logits[:, None, None]
    for i, (q_i, phi_i, near_k, near_v) in enumerate(zip(*queries, *near, strict=True)):
        cache_k, cache_v, _ = cache.split(sizes, -1)
        near_logits = (q_i @ near_k.transpose(-1, -2)).masked_fill(~in_window[i], _NEVER)
        logits = torch.cat([q_i @ cache_k.transpose(-1, -2), near_logits], -1)
        weigh = partial(_weigh, cache_v, near_v)
        outputs.append(mix(logits, weigh, phi_i @ state, phi_i @ total, gate_logits, settings))
        if i * chunk >= window:
            eligible = torch.cat([cache, leaving[i]], 2)
            order = _score(eligible.split(sizes, -1), state, total, settings).argsort(-1, descending=True)
            cache, lost = (_take(eligible, part) for part in (order[:, :, :sparse_size], order[:, :, sparse_size:]))
            _, lost_v, lost_phi = lost.split(sizes, -1)
            state = state + lost_phi.transpose(-1, -2) @ lost_v
            total = total + lost_phi.sum(2)[..., None]
    return torch.cat(outputs, 2)[:, :, :tokens]


def _weigh(cache_v: Tensor, near_v: Tensor, weights: Tensor) -> Tensor:
    cached, near = weights.split([cache_v.shape[2], near_v.shape[2]], -1)
    return cached @ cache_v + near @ near_v


def _score(eligible: Sequence[Tensor], state: Tensor, total: Tensor, settings: Settings) -> Tensor:
    """How much the eligible (k, v, phi) are worth keeping, [batch, heads, pairs]."""
    with torch.no_grad():
        k, v, phi = eligible
        recalled = (phi @ state) / (phi @ total).clamp_min(torch.finfo(total.dtype).tiny)
        score = (recalled - v).square().sum(-1).log()
        if settings.policy == "weighted_recall":
            score = score + settings.kappa * k.square().sum(-1) / (2 * k.shape[-1])
        return score


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(2, index[..., None].expand(-1, -1, -1, x.shape[-1]))


def _by_query_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    group = q.shape[1] // k.shape[1]
    return q.float(), k.float().repeat_interleave(group, 1), v.float().repeat_interleave(group, 1)


def _block_size(chunk: int) -> int:
    return chunk if chunk >= _BLOCK else chunk * (_BLOCK // chunk)


def _blocks(x: Tensor, front: int, back: int, block: int) -> Tensor:
    """[..., tokens, n] -> [..., blocks, block, n]."""
    return functional.pad(x, (0, 0, front, back)).unflatten(2, (-1, block))


def _spans(x: Tensor, window: int, padding: int, block: int) -> Tensor:
    """For each query block its own tokens and the `window` before: [..., blocks, window + block, n]."""
    return functional.pad(x, (0, 0, window, padding)).unfold(2, window + block, block).transpose(-1, -2)


def _masks(window: int, chunk: int, block: int, blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """[blocks, block, window + block]: which keys of its span a query has in its window, and which are absorbed."""
    query = torch.arange(block, device=device)[:, None]
    key = torch.arange(window + block, device=device)[None] - window
    oldest = query // chunk * chunk - window
    first = -block * torch.arange(blocks, device=device)[:, None, None]  # where the sequence begins
    exists = key >= first
    return (key >= oldest) & (key <= query) & exists, (key < oldest) & exists


def _absorbed_before(near_v: Tensor, near_phi: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Hs [..., F, head_dim] and s [..., F, 1] of everything before each block's span."""
    phi, v = near_phi[..., :block, :], near_v[..., :block, :]  # what the next block's span no longer has
    states, totals = phi.transpose(-1, -2) @ v, phi.sum(-2)[..., None]
    return _sum_before(states), _sum_before(totals)


def _sum_before(x: Tensor) -> Tensor:
    return functional.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1].cumsum(2)
