"""A byte-level BPE vocabulary small enough to read: two control tokens, the 256 bytes and a few merges."""

from __future__ import annotations

from typing import Any

import gguf

MERGES = ("Ġ t", "Ġ a", "h e", "i n", "Ġt he", "e r", "o n", "Ġ s", "in g", "a t", "n d", "e s", "Ġa nd", "r e")
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def vocabulary() -> list[str]:
    """<|bos|>, <|eos|>, the 256 bytes, the merged tokens; in GPT-2's printable alphabet."""
    merged = [merge.replace(" ", "") for merge in MERGES]
    return ["<|bos|>", "<|eos|>", *byte_alphabet(), *merged]


def byte_alphabet() -> list[str]:
    """Printable stand-ins of the bytes 0 ... 255: Latin-1's visible characters stay, the others go to U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(0x100 + hidden.index(byte)) for byte in range(256)]


def tokenizer_json() -> dict[str, Any]:
    """The same vocabulary as a Hugging Face tokenizer.json."""
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, token in enumerate(("<|bos|>", "<|eos|>"))
    ]
    split = {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(vocabulary())},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


def write_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
