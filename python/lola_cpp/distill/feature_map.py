"""Feature maps of linear attention, as the engine computes them, and the trained parts of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lola_cpp.convert.adapter import Settings
from lola_cpp.convert.layout import Heads

_FLOOR = 1e-12
_FIRST_GATE_LOGIT = -2.197  # g = 0.1
_NOISE = 0.02


@dataclass
class LayerMaps:
    """What attention transfer trains in one layer."""

    query_map: Tensor  # [heads, head_dim, feature_dim]
    key_map: Tensor  # [heads, head_dim, feature_dim]
    window_logits: Tensor  # [heads]

    def tensors(self) -> dict[str, Tensor]:
        return {"query_map": self.query_map, "key_map": self.key_map, "window_logits": self.window_logits}


def initial_maps(heads: Heads, settings: Settings, layer: int, *, seed: int, device: str) -> LayerMaps:
    """Half the identity and a little noise: softmax of a softened vector, which is close to the softmax kernel."""
    generator = torch.Generator().manual_seed(seed * 100_003 + layer)
    features = settings.feature_dim or heads.dim

    def one_map() -> Tensor:
        noise = torch.randn(heads.query, heads.dim, features, generator=generator)
        start = torch.zeros(heads.dim, features) if settings.skip_connection else 0.5 * torch.eye(heads.dim, features)
        return (start + _NOISE * noise).to(device).requires_grad_()

    logits = torch.full((heads.query,), _FIRST_GATE_LOGIT, device=device, requires_grad=True)
    return LayerMaps(one_map(), one_map(), logits)


def features(x: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """phi(x) [batch, heads, tokens, F] of x [batch, heads, tokens, head_dim] in float32."""
    z = x @ weight
    if settings.skip_connection:
        z = z + x
    kind = settings.feature_map
    if kind == "softmax_dim":
        phi = torch.cat([z.softmax(-1), (-z).softmax(-1)], -1)
    elif kind == "softmax_dim_half":
        phi = z.softmax(-1)
    elif kind == "exp_dim":
        phi = torch.cat([(z - z.amax(-1, True)).exp(), (z.amin(-1, True) - z).exp()], -1)
    elif kind == "exp_dim_half":
        phi = (z - z.amax(-1, True)).exp()
    elif kind == "relu":
        phi = z
    else:  # pos_elu
        phi = 1 + functional.elu(z)
    return phi.clamp_min(_FLOOR)
