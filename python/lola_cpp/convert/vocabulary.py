"""Tokenizer files of a Hugging Face folder as the tokenizer.* keys of GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lola_cpp._core import FormatError, UnsupportedError, UsageError
from lola_cpp.convert.checkpoint import read_json
from lola_cpp.convert.optional import require

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CASED = (f"{_LEAD}{_UPPER}*{_LOWER}+", f"{_LEAD}{_UPPER}+{_LOWER}*")

_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_QWEN35 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}" + _TAIL.replace(r"\p{L}\p{N}", r"\p{L}\p{M}\p{N}")
_TEKKEN = "|".join(_CASED) + r"|\p{N}" + _SLASH_TAIL
_GPT4O = "|".join(f"{part}{_CONTRACTION}?" for part in _CASED) + r"|\p{N}{1,3}" + _SLASH_TAIL

# What the pre_tokenizer of tokenizer.json does, step by step, and whether the model skips merges for whole words
# (ignore_merges) -> the name GGUF readers know it by.
_PLAIN_BYTES, _GPT2_BYTES = ("ByteLevel", False), ("ByteLevel", True)
_PRE_NAMES: dict[tuple[tuple[Any, ...], bool], str] = {
    ((("Split", _LLAMA3), _PLAIN_BYTES), True): "llama-bpe",
    ((("Split", _LLAMA3), _PLAIN_BYTES), False): "smaug-bpe",
    ((("Split", _QWEN2), _PLAIN_BYTES), False): "qwen2",
    ((("Split", _QWEN35), _PLAIN_BYTES), False): "qwen35",
    ((("Split", _TEKKEN), _PLAIN_BYTES), True): "tekken",
    ((("Split", _GPT4O), _PLAIN_BYTES), False): "gpt-4o",
    ((("Digits", True), _GPT2_BYTES), False): "smollm",
    ((_GPT2_BYTES,), False): "gpt-2",
}

_SPECIAL_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_CHAT_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


@dataclass
class Vocabulary:
    """Everything GGUF stores about a tokenizer. Lists are indexed by token id."""

    model: str  # "gpt2": byte-level BPE; "llama": SentencePiece
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    special_ids: dict[str, int] = field(default_factory=dict)  # "bos" -> id
    add_special: dict[str, bool] = field(default_factory=dict)  # "bos" -> whether prompts begin with it
    add_space_prefix: bool | None = None
    chat_template: str | list[dict[str, str]] | None = None

    def write(self, writer: Any) -> None:
        """Adds the tokenizer.* keys to a gguf.GGUFWriter."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for kind, token in self.special_ids.items():
            getattr(writer, f"add_{kind}_token_id")(token)
        for kind, value in self.add_special.items():
            getattr(writer, f"add_add_{kind}_token")(value)
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, config: Mapping[str, Any], size: int, *, pre: str | None = None) -> Vocabulary:
    """The vocabulary of a Hugging Face folder.

    Args:
        config: the folder's config.json, whose *_token_id entries are the last resort for special tokens.
        size: token count of the embedding; ids without a token become unused [PADn].
        pre: name of the pre-tokenizer, for tokenizers whose own is not in the table.

    Raises:
        UsageError: the folder has no tokenizer, or its pre-tokenizer is unknown and `pre` is not given.
        FormatError: a tokenizer file is damaged, or has ids beyond `size`.
        UnsupportedError: a tokenizer that is neither byte-level BPE nor SentencePiece.
    """
    settings = _read_optional(folder / "tokenizer_config.json")
    json_path = folder / "tokenizer.json"
    tokenizer = _read_optional(json_path)
    if (folder / "tokenizer.model").is_file():
        vocabulary = _read_sentencepiece(folder, settings, size)
    elif tokenizer:
        vocabulary = _read_bpe(tokenizer, json_path, size, pre)
    else:
        raise UsageError(f"'{folder}' has no tokenizer: wanted tokenizer.json or tokenizer.model")
    _find_special_tokens(vocabulary, tokenizer, settings, config)
    vocabulary.chat_template = _chat_template(folder, settings)
    if isinstance(settings.get("add_prefix_space"), bool) and vocabulary.model == "llama":
        vocabulary.add_space_prefix = settings["add_prefix_space"]
    return vocabulary


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _looks_special(token: str) -> bool:
    # Some folders do not mark their control tokens as special.
    return (token.startswith("<|") and token.endswith("|>")) or token in ("<pad>", "<mask>")


def _read_bpe(tokenizer: dict[str, Any], path: Path, size: int, pre: str | None) -> Vocabulary:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise FormatError(f"'{path}': model.vocab: wanted an object of tokens and ids")
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedError(f"'{path}': found a tokenizer of type {model.get('type')!r}, wanted BPE")
    tokens, types = _place_tokens(model["vocab"], tokenizer.get("added_tokens") or [], path, size)
    merges = _merges(model.get("merges"), path)
    if any(step[0] == "ByteLevel" for step in _pre_steps(tokenizer.get("pre_tokenizer"))):
        name = pre or _pre_name(tokenizer, path)
        return Vocabulary("gpt2", name, tokens, types, merges=[" ".join(pair) for pair in merges])
    if not model.get("byte_fallback"):
        raise UnsupportedError(f"'{path}': found a BPE tokenizer without byte level and without byte fallback")
    # SentencePiece BPE merges the pair whose result scores highest: the earlier the merge, the higher the score.
    rank = {left + right: float(-i) for i, (left, right) in reversed(list(enumerate(merges)))}
    for token, index in model["vocab"].items():
        if len(token) == 6 and token.startswith("<0x") and types[index] == NORMAL:
            types[index] = BYTE
    if isinstance(model.get("unk_token"), str) and model["unk_token"] in model["vocab"]:
        types[model["vocab"][model["unk_token"]]] = UNKNOWN
    return Vocabulary(
        "llama",
        "default",
        tokens,
        types,
        scores=[rank.get(token, 0.0) for token in tokens],
        add_space_prefix=_prepends_space(tokenizer),
    )


def _prepends_space(tokenizer: dict[str, Any]) -> bool:
    parts = [tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")]
    for part in parts:
        if not isinstance(part, dict):
            continue
        parts += part.get("normalizers", []) + part.get("pretokenizers", [])
        if part.get("type") == "Prepend":
            return True
        if part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            return True
    return False


def _place_tokens(vocab: dict[str, Any], added: list[Any], path: Path, size: int) -> tuple[list[str], list[int]]:
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, index in vocab.items():
        if type(index) is not int or not 0 <= index < size or types[index] != UNUSED:
            raise FormatError(f"'{path}': token {token!r}: found id {index!r}, wanted one of its own below {size}")
        tokens[index], types[index] = token, NORMAL
    for entry in added:
        index, content = (entry.get("id"), entry.get("content")) if isinstance(entry, dict) else (None, None)
        if type(index) is not int or not 0 <= index < size or not isinstance(content, str):
            raise FormatError(f"'{path}': added token {entry!r}: wanted a content and an id below {size}")
        if entry.get("special") or _looks_special(content):
            tokens[index], types[index] = content, CONTROL
        else:
            tokens[index], types[index] = content.replace("\u2581", " "), USER_DEFINED
    return tokens, types


def _merges(merges: Any, path: Path) -> list[tuple[str, str]]:
    if not isinstance(merges, list):
        raise FormatError(f"'{path}': model.merges: wanted an array")
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise FormatError(f"'{path}': merge {merge!r}: wanted two tokens")
        # GGUF separates the two by a space; inside a token it is written as the byte alphabet's.
        pairs.append((parts[0].replace(" ", "\u0120"), parts[1].replace(" ", "\u0120")))
    return pairs


def _pre_steps(pre_tokenizer: Any) -> tuple[tuple[Any, ...], ...]:
    """The pre_tokenizer object as comparable steps; ("Unknown", ...) for what the table cannot contain."""
    if not isinstance(pre_tokenizer, dict):
        return ()
    kind = pre_tokenizer.get("type")
    if kind == "Sequence" and isinstance(pre_tokenizer.get("pretokenizers"), list):
        return tuple(step for part in pre_tokenizer["pretokenizers"] for step in _pre_steps(part))
    if kind == "ByteLevel" and not pre_tokenizer.get("add_prefix_space"):
        return (("ByteLevel", pre_tokenizer.get("use_regex", True)),)
    if kind == "Digits":
        return (("Digits", pre_tokenizer.get("individual_digits")),)
    pattern = pre_tokenizer.get("pattern")
    isolates = pre_tokenizer.get("behavior") == "Isolated" and not pre_tokenizer.get("invert")
    if kind == "Split" and isolates and isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
        # Some files hold line ends in the pattern as such, some as escapes.
        return (("Split", pattern["Regex"].replace("\r", r"\r").replace("\n", r"\n")),)
    return (("Unknown", kind),)


def _pre_name(tokenizer: dict[str, Any], path: Path) -> str:
    steps = _pre_steps(tokenizer.get("pre_tokenizer"))
    name = _PRE_NAMES.get((steps, bool(tokenizer["model"].get("ignore_merges"))))
    normalizer = tokenizer.get("normalizer")
    if name is None or (normalizer is not None and normalizer.get("type") != "NFC"):
        raise UsageError(
            f"'{path}': found a pre-tokenizer with steps {steps!r} and normalizer {normalizer!r}, wanted that of "
            f"{', '.join(_PRE_NAMES.values())}: name the GGUF pre-tokenizer that does the same with --pre NAME"
        )
    return name


def _read_sentencepiece(folder: Path, settings: dict[str, Any], size: int) -> Vocabulary:
    path = folder / "tokenizer.model"
    processor = require("sentencepiece").SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(path))
    except (RuntimeError, OSError) as error:
        raise FormatError(f"'{path}' is not a SentencePiece model: {error}") from error
    count = processor.vocab_size()
    if count > size:
        raise FormatError(f"'{path}': found {count} tokens, wanted at most the {size} of config.json's vocab_size")
    tokens = [f"[PAD{i}]" for i in range(size)]
    scores, types = [-10000.0] * size, [UNUSED] * size
    kinds = (
        (processor.IsUnknown, UNKNOWN),
        (processor.IsControl, CONTROL),
        (processor.IsUnused, UNUSED),
        (processor.IsByte, BYTE),
    )
    for i in range(count):
        tokens[i], scores[i] = processor.IdToPiece(i), processor.GetScore(i)
        types[i] = next((kind for test, kind in kinds if test(i)), NORMAL)
    added = [
        {"id": index, "content": token} for token, index in _read_optional(folder / "added_tokens.json").items()
    ] + [
        {**entry, "id": int(index) if index.isdecimal() else None}
        for index, entry in (settings.get("added_tokens_decoder") or {}).items()
    ]
    for entry in added:
        index, token = entry.get("id"), entry.get("content")
        if type(index) is not int or not 0 <= index < size or not isinstance(token, str):
            raise FormatError(f"'{folder}': added token {entry!r}: wanted a content and an id below {size}")
        special = entry.get("special") or _looks_special(token)
        tokens[index] = token if special else token.replace("\u2581", " ")
        scores[index], types[index] = -1000.0, CONTROL if special else USER_DEFINED
    return Vocabulary("llama", "default", tokens, types, scores=scores)


def _find_special_tokens(
    vocabulary: Vocabulary, tokenizer: dict[str, Any], settings: dict[str, Any], config: Mapping[str, Any]
) -> None:
    ids = {token: i for i, token in reversed(list(enumerate(vocabulary.tokens)))}
    names: dict[str, str] = {}
    for kind in _SPECIAL_KINDS:
        entry = settings.get(f"{kind}_token")
        content = entry.get("content") if isinstance(entry, dict) else entry
        index = ids.get(content) if isinstance(content, str) else config.get(f"{kind}_token_id")
        if type(index) is int and 0 <= index < len(vocabulary.tokens):
            vocabulary.special_ids[kind] = index
            names[kind] = vocabulary.tokens[index]
    vocabulary.add_special |= _template_specials(tokenizer.get("post_processor"), names)
    for kind in ("bos", "eos"):
        if isinstance(settings.get(f"add_{kind}_token"), bool):
            vocabulary.add_special[kind] = settings[f"add_{kind}_token"]


def _template_specials(processor: Any, names: dict[str, str]) -> dict[str, bool]:
    """Whether tokenizer.json's post-processor puts bos first and eos last."""
    found: dict[str, bool] = {}
    for part in processor.get("processors", [processor]) if isinstance(processor, dict) else []:
        single = part.get("single") if isinstance(part, dict) and part.get("type") == "TemplateProcessing" else None
        for kind, position in (("bos", 0), ("eos", -1)):
            if isinstance(single, list) and len(single) > 1 and "SpecialToken" in single[position]:
                found[kind] = single[position]["SpecialToken"].get("id") == names.get(kind)
    return found


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | list[dict[str, str]] | None:
    template = settings.get("chat_template")
    jinja, old = (folder / name for name in _CHAT_TEMPLATE_FILES)
    if template is None and jinja.is_file():
        template = jinja.read_text(encoding="utf-8")
    elif template is None and old.is_file():
        template = read_json(old).get("chat_template")
    if template is None or isinstance(template, str):
        return template
    if isinstance(template, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
        for entry in template
    ):
        return template
    raise FormatError(f"'{folder}': chat_template: found a {type(template).__name__}, wanted a text or named texts")
