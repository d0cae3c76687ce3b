"""Which tensor of a model gets which format: llama.cpp's mixtures, for the architectures that run here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lola_cpp._core import FormatError, GgufFile, UnsupportedError, UsageError
from lola_cpp.convert.copying import text_of
from lola_cpp.convert.layout import ARCHITECTURES

# Block sizes of the formats in mixtures that have blocks.
_BLOCK_SIZES = dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"), 32)
_BLOCK_SIZES |= dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), 256)
# Where rows are no whole blocks of 256. Where they are no whole blocks of 32 either, F16.
_NARROW = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_MAX_LAYERS = 1 << 16


@dataclass(frozen=True)
class Mixture:
    """A way to quantize a whole model.

    Attributes:
        kind: format of the matrices for which no rule says something else.
        file_type: llama.cpp's number of it, general.file_type.
        needs_importance: too few bits to be of use without an importance matrix.
        parts: part of a layer -> rule, a function of the model and the layer that gives a format.
    """

    kind: str
    file_type: int
    needs_importance: bool = False
    parts: Mapping[str, Rule] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """What the rules ask about a model."""

    layers: int
    query_heads_per_kv_head: int
    tied: bool
    has_importance: bool


@dataclass(frozen=True)
class Rule:
    """A format for the layers that `applies` to, `otherwise` (None: the mixture's own) for the others."""

    kind: str
    layers: str = "all"
    otherwise: str | None = None

    def format_of(self, layer: int, shape: Shape) -> str | None:
        return self.kind if _SELECTIONS[self.layers](layer, shape) else self.otherwise


def _more_bits(layer: int, shape: Shape) -> bool:
    eighth = shape.layers // 8
    return layer < eighth or layer >= 7 * shape.layers // 8 or (layer - eighth) % 3 == 2


_SELECTIONS: dict[str, Callable[[int, Shape], bool]] = {
    "all": lambda layer, shape: True,
    "more bits": _more_bits,
    "first two": lambda layer, shape: layer < 2,
    "first four": lambda layer, shape: layer < 4,
    "first eighth": lambda layer, shape: layer < shape.layers // 8,
    "first sixteenth": lambda layer, shape: layer < shape.layers // 16,
    "first eighth with importance": lambda layer, shape: shape.has_importance and layer < shape.layers // 8,
    "four query heads a kv head": lambda layer, shape: shape.query_heads_per_kv_head >= 4,
}

MIXTURES: dict[str, Mixture] = {
    "F32": Mixture("F32", 0),
    "F16": Mixture("F16", 1),
    "BF16": Mixture("BF16", 32),
    "Q8_0": Mixture("Q8_0", 7),
    "Q4_0": Mixture("Q4_0", 2, parts={"ffn_down": Rule("Q4_1", "first eighth with importance")}),
    "Q4_1": Mixture("Q4_1", 3),
    "Q5_0": Mixture("Q5_0", 8, parts={"ffn_down": Rule("Q5_1", "first eighth with importance")}),
    "Q5_1": Mixture("Q5_1", 9),
    "Q2_K": Mixture(
        "Q2_K",
        10,
        parts={
            "attn_v": Rule("Q4_K", "four query heads a kv head", "Q3_K"),
            "attn_output": Rule("Q3_K"),
            "ffn_down": Rule("Q3_K"),
        },
    ),
    "Q2_K_S": Mixture(
        "Q2_K",
        21,
        needs_importance=True,
        parts={"attn_v": Rule("Q4_K", "four query heads a kv head"), "ffn_down": Rule("Q4_K", "first eighth")},
    ),
    "Q3_K_S": Mixture("Q3_K", 11),
    "Q3_K_M": Mixture(
        "Q3_K",
        12,
        parts={
            "attn_v": Rule("Q5_K", "first two", "Q4_K"),
            "attn_output": Rule("Q4_K"),
            "ffn_down": Rule("Q5_K", "first sixteenth", "Q4_K"),
        },
    ),
    "Q3_K_L": Mixture(
        "Q3_K", 13, parts={"attn_v": Rule("Q5_K"), "attn_output": Rule("Q5_K"), "ffn_down": Rule("Q5_K")}
    ),
    "Q4_K_S": Mixture(
        "Q4_K", 14, parts={"attn_v": Rule("Q5_K", "first four"), "ffn_down": Rule("Q5_K", "first eighth")}
    ),
    "Q4_K_M": Mixture("Q4_K", 15, parts={"attn_v": Rule("Q6_K", "more bits"), "ffn_down": Rule("Q6_K", "more bits")}),
    "Q5_K_S": Mixture("Q5_K", 16),
    "Q5_K_M": Mixture("Q5_K", 17, parts={"attn_v": Rule("Q6_K", "more bits"), "ffn_down": Rule("Q6_K", "more bits")}),
    "Q6_K": Mixture("Q6_K", 18),
}


def planned_formats(
    file: GgufFile, mixture: Mixture, overrides: Mapping[str, str], *, has_importance: bool
) -> dict[str, str]:
    """The format of each tensor that a mixture changes.

    Args:
        overrides: regular expression -> format, for the tensors whose names it matches somewhere.

    Raises:
        UnsupportedError: a model of an architecture that does not run here.
        FormatError: the file lacks the numbers of a model.
        UsageError: an override that matches no tensor.
    """
    shape = _shape(file, has_importance)
    patterns = [(_compiled(pattern), kind) for pattern, kind in overrides.items()]
    plan = {}
    for name, kind, dimensions, _ in file.tensors():
        if not _is_quantized(name, dimensions):
            continue
        chosen = next((by_hand for pattern, by_hand in patterns if pattern.search(name)), None)
        if chosen is None:
            chosen = _chosen(name, mixture, shape, dimensions[-1])
        chosen = _fitting(chosen, dimensions[-1])
        if chosen != kind:
            plan[name] = chosen
    names = [name for name, *_ in file.tensors()]
    for pattern, _ in patterns:
        if not any(pattern.search(name) for name in names):
            raise UsageError(f"overrides: '{pattern.pattern}' matches no tensor of '{file.path}'")
    return plan


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"overrides: found {pattern!r}, wanted a regular expression: {error}") from None


def _shape(file: GgufFile, has_importance: bool) -> Shape:
    architecture = text_of(file, "general.architecture") or ""
    if architecture.removeprefix("lola-") not in ARCHITECTURES.values():
        raise UnsupportedError(
            f"'{file.path}': general.architecture: found {architecture!r}, supported: "
            f"{', '.join(sorted(set(ARCHITECTURES.values())))}"
        )
    layers = file.find_int(f"{architecture}.block_count", 1, _MAX_LAYERS)
    heads = file.find_int(f"{architecture}.attention.head_count", 1, _MAX_LAYERS)
    if layers is None or heads is None:
        raise FormatError(f"'{file.path}': {architecture}.block_count and .attention.head_count: found not both")
    kv_heads = file.find_int(f"{architecture}.attention.head_count_kv", 1, _MAX_LAYERS) or heads
    tied = all(name != "output.weight" for name, *_ in file.tensors())
    return Shape(layers, heads // kv_heads, tied, has_importance)


def _is_quantized(name: str, dimensions: tuple[int, ...]) -> bool:
    """Matrices. Norms are small and matter most, and so are an adapter's maps."""
    is_matrix = len(dimensions) >= 2 and name.endswith("weight")
    return is_matrix and not name.endswith("_norm.weight") and ".attn_lola_" not in name


def _chosen(name: str, mixture: Mixture, shape: Shape, columns: int) -> str:
    if mixture.kind not in _BLOCK_SIZES:
        return mixture.kind
    if name == "output.weight" or (name == "token_embd.weight" and shape.tied):
        # Every token's probability depends on all of it.
        return "Q8_0" if mixture.kind == "Q8_0" or columns % _BLOCK_SIZES[mixture.kind] else "Q6_K"
    match = _LAYER.fullmatch(name)
    if match is None:
        return mixture.kind
    rule = mixture.parts.get(match[2])
    chosen = (rule.format_of(int(match[1]), shape) if rule else None) or mixture.kind
    # 80 layers with grouped heads are Llama 70B: eight query heads share a value, which so deserves more bits.
    is_70b = shape.layers == 80 and shape.query_heads_per_kv_head > 1
    return "Q5_K" if is_70b and match[2] == "attn_v" and chosen in ("Q3_K", "Q4_K") else chosen


def _fitting(kind: str, columns: int) -> str:
    for candidate in (kind, _NARROW.get(kind, kind)):
        if columns % _BLOCK_SIZES.get(candidate, 1) == 0:
            return candidate
    return "F16"
