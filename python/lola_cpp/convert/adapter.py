"""LoLA adapters: what they hold, what base they fit, and how they are written. The format is in docs/formats.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lola_cpp._core import FormatError, GgufFile, UnsupportedError, UsageError, encode
from lola_cpp.convert.checkpoint import read_json
from lola_cpp.convert.copying import text_of
from lola_cpp.convert.layout import ARCHITECTURES, Heads, is_permuted, permute_rows
from lola_cpp.convert.optional import require
from lola_cpp.convert.output import OutputTensor, write_gguf

Floats = npt.NDArray[np.float32]

VERSION = 1
FEATURE_MAPS = ("softmax_dim", "softmax_dim_half", "exp_dim", "exp_dim_half", "relu", "pos_elu")
MIXINGS = ("lolcats", "gated", "natural")
SCOPES = ("head", "group")
POLICIES = ("self_recall", "weighted_recall", "self_recall_after", "none", "first", "recent", "random")
PROJECTIONS = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
TYPES = {"f32": ("F32", 0), "f16": ("F16", 1)}  # --type -> (tensor format, general.file_type)

_SIZE_LIMIT = 1 << 24
_DEFAULT_ROPE_BASE = 10000.0


@dataclass(frozen=True)
class Base:
    """What an adapter has to know about its base model, whatever that is quantized to."""

    architecture: str
    name: str
    block_count: int
    embedding_length: int
    heads: Heads
    rope_freq_base: float
    vocab_size: int


@dataclass(frozen=True)
class Settings:
    """The defaults a session with the adapter starts with. The names are those of lola.json and of adapter.lola.*."""

    feature_map: str = "softmax_dim"
    feature_dim: int | None = None  # None: that of the maps
    skip_connection: bool = False
    mixing: str = "gated"
    affine: bool = False
    window_size: int = 64
    chunk_size: int = 64
    sparse_size: int = 64
    sparse_scope: str = "head"
    policy: str = "self_recall"
    kappa: float = 0.0
    softmax_layers: tuple[int, ...] = ()
    lora_r: int | None = None  # None: that of the LoRA matrices
    lora_alpha: float = 16.0

    def __post_init__(self) -> None:
        choices = {"feature_map": FEATURE_MAPS, "mixing": MIXINGS, "sparse_scope": SCOPES, "policy": POLICIES}
        for name, known in choices.items():
            _check(name, getattr(self, name), getattr(self, name) in known, f"one of {', '.join(known)}")
        for name, least in {"window_size": 1, "chunk_size": 1, "sparse_size": 0, "feature_dim": 1, "lora_r": 1}.items():
            value = getattr(self, name)
            fits = type(value) is int and least <= value < _SIZE_LIMIT
            _check(
                name, value, fits or (value is None and name in ("feature_dim", "lora_r")), f"an integer from {least}"
            )
        for name in ("skip_connection", "affine"):
            _check(name, getattr(self, name), isinstance(getattr(self, name), bool), "true or false")
        for name in ("kappa", "lora_alpha"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
            _check(name, value, is_number, "a finite number")
        layers = self.softmax_layers
        _check("softmax_layers", layers, all(type(layer) is int and layer >= 0 for layer in layers), "layer numbers")
        if self.chunk_size > 1 and self.window_size % self.chunk_size:
            raise UsageError(
                f"found window_size {self.window_size} with chunk_size {self.chunk_size}, wanted a multiple"
            )


def _check(name: str, value: Any, fits: bool, wanted: str) -> None:
    if not fits:
        raise UsageError(f"setting {name}: found {value!r}, wanted {wanted}")


def read_settings(path: Path) -> Settings:
    """Settings from a JSON object with the field names of Settings.

    Raises:
        FormatError: the file is not a JSON object, or has a field that is none of the settings.
        UsageError: a value out of range.
    """
    values = read_json(path)
    known = {field.name for field in dataclasses.fields(Settings)}
    if unknown := sorted(set(values) - known):
        raise FormatError(f"'{path}': unknown setting {unknown[0]!r}, wanted {', '.join(sorted(known))}")
    if "softmax_layers" in values:
        _check("softmax_layers", values["softmax_layers"], isinstance(values["softmax_layers"], list), "an array")
        values["softmax_layers"] = tuple(values["softmax_layers"])
    return Settings(**values)


@dataclass(frozen=True)
class LayerMaps:
    """Learned parts of one linear-attention layer, in Hugging Face row order."""

    query_map: Floats  # [heads, head_dim, feature_dim]
    key_map: Floats  # [heads, head_dim, feature_dim]
    window_logits: Floats  # [heads]


@dataclass(frozen=True)
class Lora:
    """A low-rank update of one projection, in Hugging Face row order: W += alpha / rank * b a."""

    a: Floats  # [rank, in]
    b: Floats  # [out, rank]


def read_base(path: Path) -> Base:
    """The facts of a base model.

    Raises:
        FormatError: the file is no GGUF model, or lacks a key.
        UnsupportedError: its architecture is none of those an adapter can be made for.
    """
    file = GgufFile(path)
    architecture = text_of(file, "general.architecture")
    if architecture is None or architecture not in ARCHITECTURES.values():
        known = ", ".join(sorted(set(ARCHITECTURES.values())))
        raise UnsupportedError(f"'{path}': general.architecture: found {architecture!r}, wanted one of {known}")

    def size(key: str, default: int | None = None) -> int:
        value = file.find_int(f"{architecture}.{key}", 1, _SIZE_LIMIT)
        value = default if value is None else value
        if value is None:
            raise FormatError(f"'{path}': key '{architecture}.{key}' is missing")
        return int(value)

    rows = {name: shape for name, _, shape, _ in file.tensors()}
    if len(rows.get("token_embd.weight", ())) != 2:
        raise FormatError(f"'{path}': tensor 'token_embd.weight' is missing, or no matrix: this is no base model")
    query, embedding = size("attention.head_count"), size("embedding_length")
    dim = size("attention.key_length", embedding // query)
    rope_base = file.find_float(f"{architecture}.rope.freq_base")
    return Base(
        architecture=architecture,
        name=text_of(file, "general.name") or path.stem,
        block_count=size("block_count"),
        embedding_length=embedding,
        heads=Heads(query, size("attention.head_count_kv", query), dim),
        rope_freq_base=_DEFAULT_ROPE_BASE if rope_base is None else rope_base,
        vocab_size=rows["token_embd.weight"][0],
    )


def base_keys(base: Base) -> dict[str, int | float]:
    """What an adapter's file says about its base: adapter.lola.base.*."""
    prefix = "adapter.lola.base."
    return {
        prefix + "block_count": base.block_count,
        prefix + "head_count": base.heads.query,
        prefix + "head_count_kv": base.heads.key_value,
        prefix + "key_length": base.heads.dim,
        prefix + "rope_freq_base": base.rope_freq_base,
        prefix + "vocab_size": base.vocab_size,
    }


def write_adapter(
    path: Path,
    base: Base,
    settings: Settings,
    layers: Mapping[int, LayerMaps],
    lora: Mapping[tuple[int, str], Lora],
    *,
    kind: str = "f32",
) -> None:
    """Writes an adapter for `base`.

    Args:
        layers: maps of every layer of the base that is not in settings.softmax_layers.
        lora: updates by layer and projection ("q", "k", "v" or "o").
        kind: "f32" or "f16", the format of maps and LoRA matrices.

    Raises:
        UsageError: an unknown `kind`.
        FormatError: maps or updates that do not fit the base or the settings, or are not finite.
    """
    if kind not in TYPES:
        raise UsageError(f"type: found {kind!r}, wanted one of {', '.join(TYPES)}")
    feature_dim = _check_layers(base, settings, layers)
    _check_lora(base, settings, lora)
    writer = require("gguf").GGUFWriter(None, base.architecture)
    writer.add_type("adapter")
    writer.add_file_type(TYPES[kind][1])
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base.name)
    writer.add_string("adapter.type", "lola")
    if lora:
        writer.add_float32("adapter.lora.alpha", settings.lora_alpha)
    _write_settings(writer, dataclasses.replace(settings, feature_dim=feature_dim))
    for key, value in base_keys(base).items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    write_gguf(writer, path, _tensors(base, layers, lora, TYPES[kind][0], settings.skip_connection))


def _check_layers(base: Base, settings: Settings, layers: Mapping[int, LayerMaps]) -> int:
    linear = [layer for layer in range(base.block_count) if layer not in settings.softmax_layers]
    if missing := [layer for layer in linear if layer not in layers]:
        raise FormatError(f"layer {missing[0]} of {base.block_count} has no feature maps, and is no softmax layer")
    if extra := sorted(set(layers) - set(linear)):
        raise FormatError(f"found feature maps of layer {extra[0]}, wanted layers {linear}")
    if not linear or max(settings.softmax_layers, default=0) >= base.block_count:
        raise UsageError(f"softmax_layers: found {settings.softmax_layers}, wanted some of {base.block_count} layers")
    feature_dim = settings.feature_dim or layers[linear[0]].query_map.shape[-1]
    shape = (base.heads.query, base.heads.dim, feature_dim)
    for layer, maps in layers.items():
        for name, found, wanted in (
            ("query feature map", maps.query_map.shape, shape),
            ("key feature map", maps.key_map.shape, shape),
            ("window factors", maps.window_logits.shape, shape[:1]),
        ):
            if found != wanted:
                raise FormatError(
                    f"layer {layer}: {name}: found shape {list(found)}, wanted {list(wanted)} for this base"
                )
    if settings.skip_connection and feature_dim != base.heads.dim:
        raise FormatError(f"skip_connection: found feature_dim {feature_dim}, wanted head_dim {base.heads.dim}")
    return int(feature_dim)


def _check_lora(base: Base, settings: Settings, lora: Mapping[tuple[int, str], Lora]) -> None:
    q_size, kv_size = base.heads.query * base.heads.dim, base.heads.key_value * base.heads.dim
    hidden = base.embedding_length
    sizes = {"q": (hidden, q_size), "k": (hidden, kv_size), "v": (hidden, kv_size), "o": (q_size, hidden)}
    for (layer, projection), update in lora.items():
        where = f"layer {layer}: LoRA of {projection}_proj"
        if layer >= base.block_count or projection not in sizes:
            raise FormatError(f"{where}: the base has {base.block_count} layers with projections {', '.join(sizes)}")
        rank = settings.lora_r or update.a.shape[0]
        inputs, outputs = sizes[projection]
        if update.a.shape != (rank, inputs) or update.b.shape != (outputs, rank):
            raise FormatError(
                f"{where}: found shapes A {list(update.a.shape)} and B {list(update.b.shape)}, "
                f"wanted {[rank, inputs]} and {[outputs, rank]}"
            )


def _write_settings(writer: Any, settings: Settings) -> None:
    gguf = require("gguf")
    writer.add_uint32("adapter.lola.version", VERSION)
    for name in ("feature_map", "mixing", "sparse_scope", "policy"):
        writer.add_string(f"adapter.lola.{name}", getattr(settings, name))
    for name in ("feature_dim", "window_size", "chunk_size", "sparse_size"):
        writer.add_uint32(f"adapter.lola.{name}", getattr(settings, name))
    for name in ("skip_connection", "affine"):
        writer.add_bool(f"adapter.lola.{name}", getattr(settings, name))
    if settings.kappa:
        writer.add_float32("adapter.lola.kappa", settings.kappa)
    if settings.softmax_layers:
        kinds = gguf.GGUFValueType
        layers = sorted(settings.softmax_layers)
        writer.add_key_value("adapter.lola.softmax_layers", layers, kinds.ARRAY, kinds.UINT32)


def _tensors(
    base: Base, layers: Mapping[int, LayerMaps], lora: Mapping[tuple[int, str], Lora], kind: str, skip: bool
) -> list[OutputTensor]:
    arrays: dict[str, tuple[Floats, str]] = {}
    for layer, maps in sorted(layers.items()):
        prefix = f"blk.{layer}.attn_lola_"
        arrays[prefix + "fq.weight"] = (_stored_map(base, maps.query_map, skip), kind)
        arrays[prefix + "fk.weight"] = (_stored_map(base, maps.key_map, skip), kind)
        arrays[prefix + "window.weight"] = (maps.window_logits, "F32")
    for (layer, projection), update in sorted(lora.items()):
        prefix = f"blk.{layer}.{PROJECTIONS[projection]}.weight.lora_"
        arrays[prefix + "a"] = (update.a, kind)
        arrays[prefix + "b"] = (_stored_rows(base, projection, update.b), kind)
    encoded = {name: (encode(values, kind, name), values.shape, kind) for name, (values, kind) in arrays.items()}
    return [
        OutputTensor(name, shape, kind, lambda data=data: data)  # type: ignore[misc]
        for name, (data, shape, kind) in encoded.items()
    ]


def _stored_map(base: Base, values: Floats, skip_connection: bool) -> Floats:
    """[heads, d, f] in Hugging Face row order -> [heads, f, d] in the base file's order.

    A skip connection adds x to W'x, so its features are in the order of x too.
    """

    def permute(axis_first: Floats) -> Floats:
        rows = axis_first.reshape(-1, axis_first.shape[-1])
        return permute_rows(rows, base.heads.query).reshape(axis_first.shape)

    if is_permuted(base.architecture):
        values = permute(values)
    stored = np.ascontiguousarray(values.swapaxes(1, 2))
    return permute(stored) if skip_connection and is_permuted(base.architecture) else stored


def _stored_rows(base: Base, projection: str, values: Floats) -> Floats:
    heads = {"q": base.heads.query, "k": base.heads.key_value}.get(projection)
    return permute_rows(values, heads) if heads and is_permuted(base.architecture) else values
