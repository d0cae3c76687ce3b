"""Reads and checks the `tokenizer.ggml.*` metadata of a GGUF file. Nothing here trusts the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from ._core import FormatError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Pieces that end a turn whatever the metadata says; converters often leave them out. The first found is `eot`.
_END_OF_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<end_of_utterance>",
)
_ALSO_ENDING = ("<|return|>", "<|call|>", "</s>", "<|eom_id|>", "[EOS]", "<eos>")
# Fill-in-the-middle pieces that a model writes when its completion is over.
_END_OF_INFILL = (
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>",
    "<|file_sep|>",
)  # fmt: skip

_NO_SEPARATORS = bytes(byte for byte in range(256) if byte not in b" \n")


class Metadata(Protocol):
    """What is needed of an opened GGUF file: a value by its key, None where the file lacks the key."""

    def get(self, key: str, /) -> Any: ...


@dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary.

    pieces                            text of each token as the file spells it; no two are equal
    ids                               the id of each piece
    kinds                             [vocab_size] token types as in tokenizer.ggml.token_type
    bos_id, eos_id, eot_id, unk_id    special tokens, None where the model has none
    end_ids                           tokens after which a model has nothing more to say
    """

    pieces: list[str]
    ids: dict[str, int]
    kinds: npt.NDArray[np.int32]
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    unk_id: int | None
    end_ids: frozenset[int]


def fail(where: str, found: object, wanted: str) -> NoReturn:
    raise FormatError(f"{where}: found {found}, wanted {wanted}")


def read_string(metadata: Metadata, name: str, default: str | None = None) -> str:
    value = metadata.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        fail(name, "nothing" if value is None else type(value).__name__, "a string")
    return value


def read_bool(metadata: Metadata, name: str) -> bool | None:
    value = metadata.get(name)
    if value is not None and not isinstance(value, bool | np.bool_):
        fail(name, type(value).__name__, "a bool")
    return None if value is None else bool(value)


def read_strings(metadata: Metadata, name: str) -> list[bytes]:
    value = metadata.get(name)
    if value is None:
        fail(name, "nothing", "an array of strings")
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        fail(name, type(value).__name__, "an array of strings")
    if not set(map(type, value)) <= {bytes}:
        fail(name, "an array of something else", "an array of strings")
    return list(value)


def read_numbers(metadata: Metadata, name: str, *, count: int, dtype: type[np.generic]) -> npt.NDArray[Any] | None:
    """An array of `count` numbers, or None when the file lacks it."""
    value = metadata.get(name)
    if value is None:
        return None
    wanted = "integers" if np.issubdtype(dtype, np.integer) else "numbers"
    if not isinstance(value, np.ndarray) or value.dtype.kind not in ("iu" if wanted == "integers" else "iuf"):
        fail(name, type(value).__name__, f"an array of {wanted}")
    if value.shape != (count,):
        fail(name, f"{value.size} values", f"{count}, one for each piece of tokenizer.ggml.tokens")
    return value.astype(dtype)


def decode_all(name: str, values: list[bytes]) -> list[str]:
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        fail(f"{name}[{values.index(error.object)}]", repr(error.object[:60]), "valid UTF-8")


def read_merges(metadata: Metadata) -> list[tuple[str, str]]:
    """The pairs of `tokenizer.ggml.merges`, best first."""
    name = "tokenizer.ggml.merges"
    raw = read_strings(metadata, name)
    if not raw:
        return []
    joined = b"\n".join(raw)
    # One pass over all bytes instead of a check for each of some 300,000 merges.
    separators = joined.translate(None, delete=_NO_SEPARATORS)
    if separators != b" \n" * (len(raw) - 1) + b" ":
        index = next(i for i, merge in enumerate(raw) if merge.count(b" ") != 1 or b"\n" in merge)
        fail(f"{name}[{index}]", repr(raw[index][:60]), "two pieces with one space between them")
    try:
        parts = joined.replace(b"\n", b" ").decode().split(" ")
    except UnicodeDecodeError:
        parts = decode_all(name, raw)
    return list(zip(parts[0::2], parts[1::2], strict=True))


def check_merges(merges: Iterable[tuple[str, str]], ids: dict[str, int]) -> None:
    """FormatError naming the first merge whose parts or result are no pieces."""
    for left, right in merges:
        for piece in (left, right, left + right):
            if piece not in ids:
                fail(f"tokenizer.ggml.merges: merge {left!r} + {right!r}", f"no piece {piece!r}", "a piece for each")


def read_vocabulary(metadata: Metadata, *, default_ids: dict[str, int]) -> Vocabulary:
    """The pieces and their special members.

    default_ids holds those of "bos", "eos" and "unknown" where the file names none and its vocabulary reaches so far.
    """
    name = "tokenizer.ggml.tokens"
    pieces = decode_all(name, read_strings(metadata, name))
    if not pieces:
        fail(name, "no piece", "at least one")
    if "" in pieces:
        pieces = [piece or f"[EMPTY_{token}]" for token, piece in enumerate(pieces)]
    ids = {piece: token for token, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        second = next(token for token, piece in enumerate(pieces) if ids[piece] != token)
        fail(f"{name}[{second}]", f"{pieces[second]!r} again at {ids[pieces[second]]}", "pieces that differ")
    special = {
        key: _special_id(metadata, key, vocab_size=len(pieces), default=default_ids.get(key))
        for key in ("bos", "eos", "eot", "eom", "unknown", "fim_pad", "fim_rep", "fim_sep")
    }
    eot = special["eot"]
    if eot is None:
        eot = next((ids[piece] for piece in _END_OF_TURN if piece in ids), None)
    ending = _end_ids(ids, [eot, *(special[key] for key in ("eos", "eom", "fim_pad", "fim_rep", "fim_sep"))])
    return Vocabulary(
        pieces=pieces,
        ids=ids,
        kinds=_kinds(metadata, ids),
        bos_id=special["bos"],
        eos_id=special["eos"],
        eot_id=eot,
        unk_id=special["unknown"],
        end_ids=ending,
    )


def _special_id(metadata: Metadata, name: str, *, vocab_size: int, default: int | None) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return default if default is not None and default < vocab_size else None
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        fail(key, type(value).__name__, "an integer")
    if not 0 <= value < vocab_size:
        fail(key, value, f"an id below the vocabulary's size, {vocab_size}")
    return int(value)


def _kinds(metadata: Metadata, ids: dict[str, int]) -> npt.NDArray[np.int32]:
    name = "tokenizer.ggml.token_type"
    kinds = read_numbers(metadata, name, count=len(ids), dtype=np.int64)
    if kinds is None:
        return np.full(len(ids), NORMAL, np.int32)
    wrong = np.flatnonzero((kinds < 0) | (kinds > BYTE))
    if wrong.size:
        fail(f"{name}[{wrong[0]}]", kinds[wrong[0]], f"a type from 0 to {BYTE}")
    # A converter's slip: what ends a turn must never be typed as text by a user.
    for piece in (*_END_OF_TURN, *_ALSO_ENDING, *_END_OF_INFILL):
        if piece in ids:
            kinds[ids[piece]] = CONTROL
    return kinds.astype(np.int32)


def _end_ids(ids: dict[str, int], special: Iterable[int | None]) -> frozenset[int]:
    ending = {ids[piece] for piece in (*_END_OF_TURN, *_ALSO_ENDING, *_END_OF_INFILL) if piece in ids}
    ending.update(token for token in special if token is not None)
    if "<|return|>" in ids and "<|call|>" in ids:
        # In the harmony format <|end|> only separates the messages of one answer.
        ending.discard(ids.get("<|end|>", -1))
    return frozenset(ending)
