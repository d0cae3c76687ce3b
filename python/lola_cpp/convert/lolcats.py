"""LoLCATs checkpoints -> LoLA adapters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lola_cpp._core import FormatError
from lola_cpp.convert.adapter import Base, Floats, LayerMaps, Lora, Settings, read_base, write_adapter
from lola_cpp.convert.checkpoint import StoredTensor, open_file

_LAYER = re.compile(r"(?:base_model\.)?(?:model\.){0,2}layers\.(\d{1,5})\.self_attn\.(.+)")
_MAP_PARTS = ("feature_map_q.mlp.layer", "feature_map_k.mlp.layer", "window_factors")
_LORA_PART = re.compile(r"([qkvo])_proj\.lora_([AB])(?:\.default)?\.weight")
_DERIVED = re.compile(r"rotary_emb\.\w+")

Parts = dict[tuple[int, str], StoredTensor]


def convert_lolcats(
    checkpoints: Sequence[Path], base_path: Path, output: Path, *, settings: Settings, kind: str = "f32"
) -> None:
    """Converts LoLCATs checkpoints to the adapter of one base model.

    Args:
        checkpoints: PyTorch or safetensors files, usually the distilled maps and the LoRA; a tensor of a later file
            replaces that of an earlier one.
        base_path: the base model, in any quantization.
        kind: "f32" or "f16", the format of maps and LoRA matrices.

    Raises:
        UsageError: a file is missing, or a setting is out of range.
        FormatError: tensors that are missing, unknown, of the wrong shape or not finite.
    """
    base = read_base(base_path)
    parts = _collect(checkpoints)
    layers = {layer: _layer_maps(parts, layer, base) for layer in sorted({layer for layer, _ in parts})}
    write_adapter(
        output,
        base,
        settings,
        {layer: maps for layer, maps in layers.items() if maps is not None},
        _lora_updates(parts),
        kind=kind,
    )


def _collect(checkpoints: Sequence[Path]) -> Parts:
    parts: Parts = {}
    for path in checkpoints:
        for name, tensor in open_file(path).items():
            match = _LAYER.fullmatch(name)
            if match and _DERIVED.fullmatch(match[2]):
                continue
            if not match or (match[2] not in _MAP_PARTS and not _LORA_PART.fullmatch(match[2])):
                raise FormatError(
                    f"'{path}': tensor '{name}' is unknown: wanted feature_map_q.mlp.layer, feature_map_k.mlp.layer, "
                    "window_factors or LoRA of q, k, v, o under model.layers.N.self_attn"
                )
            parts[int(match[1]), match[2]] = tensor
    return parts


def _layer_maps(parts: Parts, layer: int, base: Base) -> LayerMaps | None:
    """None for a layer without any of the three."""
    found = [name for name in _MAP_PARTS if (layer, name) in parts]
    if not found:
        return None
    if missing := [name for name in _MAP_PARTS if name not in found]:
        raise FormatError(f"layer {layer}: found {', '.join(found)}, but no {missing[0]}")
    query_map, key_map, window = (parts[layer, name] for name in _MAP_PARTS)
    if window.shape not in ((1, base.heads.query, 1, 1), (base.heads.query,)):
        wanted = [1, base.heads.query, 1, 1]
        raise FormatError(
            f"layer {layer}: window_factors: found shape {list(window.shape)}, wanted {wanted} for this base"
        )
    return LayerMaps(query_map.load(), key_map.load(), window.load().reshape(-1))


def _lora_updates(parts: Parts) -> dict[tuple[int, str], Lora]:
    halves: dict[tuple[int, str], dict[str, Floats]] = {}
    for (layer, name), tensor in parts.items():
        if match := _LORA_PART.fullmatch(name):
            if len(tensor.shape) != 2:
                raise FormatError(f"layer {layer}: {name}: found shape {list(tensor.shape)}, wanted a matrix")
            halves.setdefault((layer, match[1]), {})[match[2]] = tensor.load()
    updates: dict[tuple[int, str], Lora] = {}
    for (layer, projection), pair in halves.items():
        if set(pair) != {"A", "B"}:
            raise FormatError(f"layer {layer}: LoRA of {projection}_proj: found only {', '.join(pair)}, wanted A and B")
        updates[layer, projection] = Lora(pair["A"], pair["B"])
    return updates
