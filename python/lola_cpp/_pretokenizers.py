"""How byte-level BPE vocabularies cut a text into words before merging: one row per `tokenizer.ggml.pre`.

The patterns are those of each model's own tokenizer. Where llama.cpp approximates one (contractions without Unicode
case folding, letter classes without combining marks), the original is kept. A row's patterns apply one after the
other: what one pattern matches, and what lies between its matches, is cut further by the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenizers import Regex
from tokenizers.normalizers import NFC, Normalizer
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from ._core import UnsupportedError


@dataclass(frozen=True)
class PreTokenization:
    """One row of the table.

    patterns       regular expressions, applied in order
    nfc            text is normalised to NFC first, so that encode then decode gives the normalised text
    ignore_merges  a word that is a piece by itself is taken without merging
    add_bos        a text starts with the begin-of-text token when the metadata does not say
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        splits: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])

    def normalizer(self) -> Normalizer | None:
        return NFC() if self.nfc else None


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_DIGIT = r"\p{N}"
_TRIPLES = r"\p{N}{1,3}"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# Cased letters as DeepSeek LLM lists them.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)

_GPT2 = PreTokenization((r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",))
_STARCODER = PreTokenization((_DIGIT, *_GPT2.patterns))
_GPT4 = PreTokenization((f"{_CONTRACTION}|{_WORD}|{_TRIPLES}|{_SYMBOLS}|{_SPACES}",))
_LLAMA3 = replace(_GPT4, ignore_merges=True, add_bos=True)
_SINGLE_DIGITS = PreTokenization((f"{_CONTRACTION}|{_WORD}|{_DIGIT}|{_SYMBOLS}|{_SPACES}",))
_QWEN2 = replace(_SINGLE_DIGITS, nfc=True)

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_PATH_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT4O = PreTokenization(
    (
        f"{_START}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_START}{_UPPER}+{_LOWER}*{_CONTRACTION}?"
        f"|{_TRIPLES}|{_PATH_SYMBOLS}|{_SPACES}",
    )
)
_TEKKEN = PreTokenization(
    (f"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|{_DIGIT}|{_PATH_SYMBOLS}|{_SPACES}",),
    ignore_merges=True,
    add_bos=True,
)
_QWEN35 = PreTokenization(
    (f"{_CONTRACTION}|{_START}[\\p{{L}}\\p{{M}}]+|{_DIGIT}| ?[^\\s\\p{{L}}\\p{{M}}\\p{{N}}]+[\\r\\n]*|{_SPACES}",),
    nfc=True,
)

_ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_DEEPSEEK_V3 = PreTokenization(
    (
        _TRIPLES,
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        _ASCII_PUNCTUATION + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
    )
)
_DEEPSEEK_LLM = PreTokenization(
    (
        r"[\r\n]",
        rf"\s?[{_CASED}]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        _CJK,
        r"\p{N}+",
    )
)
_DEEPSEEK_CODER = PreTokenization((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT))
_FALCON = PreTokenization((r"[\p{P}\$\+<=>\^~\|`]+", *_GPT2.patterns, "[0-9][0-9][0-9]"))
_DEFAULT = PreTokenization((r"[\p{P}\$\+<=>\^~\|]+", *_GPT2.patterns, r"\p{N}+", "[0-9][0-9][0-9]"))
_BLOOM = PreTokenization((" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+",))

PRE_TOKENIZATIONS = {
    "default": _DEFAULT,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "lfm2": _LLAMA3,
    "smaug-bpe": _GPT4,
    "dbrx": _GPT4,
    "chatglm-bpe": _GPT4,
    "glm4": replace(_GPT4, ignore_merges=True),
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": _GPT2,
    "jais": _GPT2,
    "exaone4": _GPT2,
    "trillion": _GPT2,
    "olmo": replace(_GPT2, nfc=True),
    "starcoder": _STARCODER,
    "refact": _STARCODER,
    "smollm": _STARCODER,
    "codeshell": _STARCODER,
    "exaone": _STARCODER,
    "minerva-7b": _STARCODER,
    "command-r": replace(_STARCODER, nfc=True),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "megrez": _QWEN2,
    "qwen35": _QWEN35,
    "stablelm2": _SINGLE_DIGITS,
    "hunyuan": _SINGLE_DIGITS,
    "grok-2": _SINGLE_DIGITS,
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-v3": _DEEPSEEK_V3,
    "hunyuan-dense": _DEEPSEEK_V3,
    "falcon": _FALCON,
    "tekken": _TEKKEN,
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
    "bloom": _BLOOM,
    "poro-chat": _BLOOM,
    "gpt3-finnish": _BLOOM,
    "viking": replace(_BLOOM, patterns=(*_BLOOM.patterns, _DIGIT)),
}


def pre_tokenization(name: str) -> PreTokenization:
    """The row of `tokenizer.ggml.pre`; UnsupportedError on a name that the table lacks."""
    try:
        return PRE_TOKENIZATIONS[name]
    except KeyError:
        known = ", ".join(sorted(PRE_TOKENIZATIONS))
        raise UnsupportedError(f"tokenizer.ggml.pre: found {name!r}, wanted one of {known}") from None
