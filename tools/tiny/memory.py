"""LoLA's attention in the teacher's polish, all chunks of a sequence at once.

What is kept is chosen by scores that do not depend on the hidden state, so the caches of all boundaries are known
beforehand: the best of what has left the window. The hidden state has the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lola_cpp.convert.adapter import Settings
from lola_cpp.convert.layout import Heads
from lola_cpp.distill.feature_map import LayerMaps, features, initial_maps
from lola_cpp.distill.linear_attention import mix
from tiny.shape import HEAD_DIM, HEADS, KV_HEADS

# Of the student. kappa is what the demand loss trains the key norms for.
SETTINGS = Settings(policy="weighted_recall", kappa=4.0, sparse_size=64, feature_dim=64)
Attend = Callable[..., Tensor]
_GROUP, _CHUNK = HEADS // KV_HEADS, SETTINGS.chunk_size


class Maps(nn.Module):
    """A layer's feature maps and window factors."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        maps = initial_maps(Heads(HEADS, KV_HEADS, HEAD_DIM), SETTINGS, layer, seed=0, device="cpu")
        for name, value in maps.tensors().items():
            self.register_parameter(name, nn.Parameter(value.detach()))

    def layer_maps(self) -> LayerMaps:
        return LayerMaps(self.query_map, self.key_map, self.window_logits)


def scores(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What weighted_recall adds up of a pair, by key and by value, where every recall is taken for the mean value.

    k and v are [batch, kv_heads, length, head_dim], the scores [batch, kv_heads, length].
    """
    unusual = v.float() - v.float().mean(2, keepdim=True)
    by_key = SETTINGS.kappa * k.float().square().sum(-1) / (2 * HEAD_DIM)
    return by_key, (unusual.square().sum(-1) + 1e-6).log()


def remember(q: Tensor, k: Tensor, v: Tensor, maps: Maps, window: int, cache: int, attend: Attend) -> Tensor:
    """The outputs [batch, heads, length, head_dim]; each key-value head keeps `cache` pairs beside the window.

    attend: `attend_chunks`, compiled or not.
    """
    with torch.autocast(q.device.type, enabled=False):
        dtype, length, padding, trained = q.dtype, q.shape[2], -q.shape[2] % _CHUNK, maps.layer_maps()
        index, kept = (x.repeat_interleave(_GROUP, 1) for x in _kept(k, v, window, cache))
        q, k, v = q.float(), k.float().repeat_interleave(_GROUP, 1), v.float().repeat_interleave(_GROUP, 1)
        phi_q, phi_k = features(q, trained.query_map, SETTINGS), features(k, trained.key_map, SETTINGS)
        with_one = functional.pad(v, (0, 1), value=1.0)  # the state's last column is s

        def spans(x: Tensor) -> Tensor:
            x = functional.pad(x, (0, 0, window, padding)).unfold(2, window + _CHUNK, _CHUNK)
            return x.transpose(-1, -2)

        def cached(x: Tensor) -> Tensor:
            """[batch, heads, chunks, cache, n]"""
            flat = index.flatten(2)[..., None].expand(-1, -1, -1, x.shape[-1])
            return x.gather(2, flat).unflatten(2, index.shape[2:])

        def blocks(x: Tensor) -> Tensor:
            return functional.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, _CHUNK))

        absorbed = (blocks(phi_k).transpose(-1, -2) @ blocks(with_one)).cumsum(2)
        absorbed = functional.pad(absorbed, (0, 0, 0, 0, 1 + window // _CHUNK, 0))[:, :, : index.shape[2]]
        state = absorbed - (cached(phi_k) * kept[..., None]).transpose(-1, -2) @ cached(with_one)
        pairs = [torch.cat([cached(x), spans(x)], 3) for x in (k, v)]
        gate_logits = trained.window_logits[:, None].expand(index.shape[:3])
        first = _first_of_chunks(length, q.device)[:, 0].expand(index.shape[:3])
        parts = (blocks(q), *pairs, kept, first, blocks(phi_q) @ state, gate_logits)
        y = attend(*(x.flatten(0, 2) for x in parts))
        return y.unflatten(0, index.shape[:3]).flatten(2, 3)[:, :, :length].to(dtype)


def attend_chunks(
    q: Tensor, k: Tensor, v: Tensor, kept: Tensor, first: Tensor, recalled: Tensor, gate_logits: Tensor
) -> Tensor:
    """One chunk of one head a row: queries [rows, chunk, d] to what the cache holds, of which `kept` is there, and to
    the tokens from a window before the chunk on. first: where in the sequence the chunk begins; recalled: what the
    hidden state has, [rows, chunk, d + 1].
    """
    offsets = torch.arange(k.shape[1] - kept.shape[1], device=q.device) - (k.shape[1] - kept.shape[1] - _CHUNK)
    causal = offsets <= torch.arange(_CHUNK, device=q.device)[:, None]
    near = causal & (first[:, None, None] + offsets >= 0)
    seen = torch.cat([kept[:, None].expand(-1, _CHUNK, -1), near], -1)
    logits = (q @ k.transpose(-1, -2) * HEAD_DIM**-0.5).masked_fill(~seen, float("-inf"))
    linear, mass = recalled[..., :-1], recalled[..., -1:]
    return mix(logits, lambda weights: weights @ v, linear, mass, gate_logits[:, None, None], SETTINGS)


@torch.no_grad()
def _kept(k: Tensor, v: Tensor, window: int, cache: int) -> tuple[Tensor, Tensor]:
    """Places [batch, kv_heads, chunks, cache] in the sequence of what the cache holds for each chunk, and which of
    them there are."""
    length = k.shape[2]
    left = torch.arange(length, device=k.device) < _first_of_chunks(length, k.device) - window
    by_key, by_value = scores(k, v)
    best, index = (by_key + by_value)[:, :, None].masked_fill(~left, float("-inf")).topk(min(cache, length), -1)
    return index, best > float("-inf")


def _first_of_chunks(length: int, device: torch.device) -> Tensor:
    return _CHUNK * torch.arange(-(-length // _CHUNK), device=device)[:, None]
