"""Metadata of small vocabularies, as GGUF files have it."""

from __future__ import annotations

from typing import Any

import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def byte_alphabet() -> list[str]:
    """GPT-2's character of each byte, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def byte_level(*merges: str, pre: str = "gpt-2", **changes: Any) -> dict[str, Any]:
    """Metadata of a small byte-level vocabulary: <s>, </s>, <tool> (user-defined), the bytes, the merged pieces."""
    pieces = ["<s>", "</s>", "<tool>", *byte_alphabet(), *(merge.replace(" ", "") for merge in merges)]
    kinds = [CONTROL, CONTROL, USER_DEFINED] + [NORMAL] * (len(pieces) - 3)
    fields = {
        "model": "gpt2",
        "pre": pre,
        "tokens": [piece.encode() for piece in pieces],
        "token_type": np.array(kinds, np.int32),
        "merges": [merge.encode() for merge in merges],
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (fields | changes).items() if value is not None}


def sentencepiece(*words: str, **changes: Any) -> dict[str, Any]:
    """Metadata of a small SentencePiece vocabulary: <unk>, <s>, </s>, the bytes, letters, words by falling score."""
    letters = "\u2581abcdehlo"
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *words]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(letters) + len(words))
    fields = {
        "model": "llama",
        "tokens": [piece.encode() for piece in pieces],
        "token_type": np.array(kinds, np.int32),
        "scores": np.array([0.0] * 259 + [-1000.0] * len(letters) + [-float(i) for i in range(len(words))], np.float32),
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (fields | changes).items() if value is not None}


def changed(metadata: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    return metadata | {f"tokenizer.ggml.{key}": value}
