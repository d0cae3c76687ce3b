"""Text to tokens and back, from a GGUF file's own metadata."""

from __future__ import annotations

import gc
import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import tokenizers
from tokenizers import AddedToken, normalizers
from tokenizers.models import BPE

from ._core import FormatError, UnsupportedError, UsageError
from ._pretokenizers import PreTokenization, pre_tokenization
from ._sentencepiece import check_byte_pieces, merges_by_score
from ._vocabulary import (
    BYTE,
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    Metadata,
    Vocabulary,
    check_merges,
    fail,
    read_bool,
    read_merges,
    read_string,
    read_vocabulary,
)
from .text_stream import TextStream

_SPACE = "\u2581"  # how SentencePiece spells a space


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte: itself where it is printable, else the next one from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


_BYTE_OF_CHARACTER = _byte_alphabet()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For building hundreds of thousands of objects: the collector would walk all of them again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Tokenizer:
    """Immutable; threads may share it.

    vocab_size              pieces in the vocabulary; a model's logits may be padded beyond it
    bos_id, eos_id, eot_id  begin of text, end of text and end of a turn; None where the model has none
    end_ids                 tokens after which the model has nothing more to say
    add_bos, add_eos        encode(add_special=True) puts them around a text
    adds_space              encode puts a space before a text, and before what follows a special piece
    """

    def __init__(self, vocabulary: Vocabulary, model: BPE, row: PreTokenization | None, metadata: Metadata) -> None:
        """Use from_gguf. The row is None for SentencePiece vocabularies."""
        self._vocabulary = vocabulary
        self._is_sentencepiece = row is None
        self.vocab_size = len(vocabulary.pieces)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.eot_id = vocabulary.eot_id
        self.end_ids = vocabulary.end_ids
        self.add_bos = _adds(metadata, "bos", self.bos_id, default=row is None or row.add_bos)
        self.add_eos = _adds(metadata, "eos", self.eos_id, default=False)
        prefix = read_bool(metadata, "tokenizer.ggml.add_space_prefix")
        self.adds_space = self._is_sentencepiece and prefix is not False
        self._bytes: dict[int, bytes] = {}
        kinds = vocabulary.kinds
        self._control = frozenset(np.flatnonzero((kinds == CONTROL) | (kinds == UNKNOWN)).tolist())
        self._special = self._control | frozenset(np.flatnonzero(kinds == USER_DEFINED).tolist())
        self._parsing = self._encoder(model, row)
        self._plain = self._encoder(model, row)
        self._plain.encode_special_tokens = True

    @classmethod
    def from_gguf(cls, file: Metadata) -> Tokenizer:
        """The tokenizer that tokenizer.ggml.model names.

        FormatError when the metadata is damaged or contradicts itself, UnsupportedError for a kind of tokenizer or a
        pre-tokenization that is not implemented.
        """
        name = read_string(file, "tokenizer.ggml.model")
        with _no_garbage_collection():
            if name == "gpt2":
                return cls._byte_level(file)
            if name == "llama":
                return cls._sentencepiece(file)
        raise UnsupportedError(f"tokenizer.ggml.model: found {name!r}, wanted gpt2 or llama")

    @classmethod
    def _byte_level(cls, file: Metadata) -> Tokenizer:
        row = pre_tokenization(read_string(file, "tokenizer.ggml.pre", "default"))
        vocabulary = read_vocabulary(file, default_ids={})
        merges = read_merges(file)
        try:
            model = BPE(vocabulary.ids, merges, ignore_merges=row.ignore_merges)
        except Exception as error:
            check_merges(merges, vocabulary.ids)
            raise FormatError(f"tokenizer.ggml.merges: {error}") from error
        return cls(vocabulary, model, row, file)

    @classmethod
    def _sentencepiece(cls, file: Metadata) -> Tokenizer:
        vocabulary = read_vocabulary(file, default_ids={"bos": 1, "eos": 2, "unknown": 0})
        check_byte_pieces(vocabulary)
        merges = merges_by_score(file, vocabulary)
        unknown = None if vocabulary.unk_id is None else vocabulary.pieces[vocabulary.unk_id]
        model = BPE(vocabulary.ids, merges, byte_fallback=True, unk_token=unknown, fuse_unk=False)
        return cls(vocabulary, model, None, file)

    def _encoder(self, model: BPE, row: PreTokenization | None) -> tokenizers.Tokenizer:
        """An encoder that cuts special pieces out of the text first."""
        encoder = tokenizers.Tokenizer(model)
        if row is None:
            # The prefix belongs to the start of the text and to what follows a special piece.
            prefix = [normalizers.Prepend(_SPACE)] if self.adds_space else []
            encoder.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
        else:
            encoder.pre_tokenizer = row.pre_tokenizer()
            if (normalizer := row.normalizer()) is not None:
                encoder.normalizer = normalizer
        encoder.add_tokens(
            [
                AddedToken(self._vocabulary.pieces[token], special=token in self._control, normalized=False)
                for token in sorted(self._special)
            ]
        )
        return encoder

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        add_special    put begin and end of text around it, as the model asks (add_bos, add_eos)
        parse_special  read the spelling of a control piece as that piece; switch it off for text from strangers
        """
        encoder = self._parsing if parse_special else self._plain
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"text: found a lone surrogate at {error.start}, wanted text that UTF-8 can hold"
            raise UsageError(message) from None
        ids: list[int] = encoder.encode(text, add_special_tokens=False).ids
        if add_special and self.add_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def encode_bytes(self, text: bytes, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Like `encode`, for UTF-8; bytes that are not UTF-8 are read as U+FFFD."""
        return self.encode(text.decode(errors="replace"), add_special=add_special, parse_special=parse_special)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of tokens, the inverse of encode; bytes that are not UTF-8 become U+FFFD.

        skip_special leaves control pieces out. UsageError on an id that the vocabulary lacks.
        """
        stream = TextStream(self, start_of_text=True, skip_special=skip_special)
        return "".join([stream.push(token) for token in ids]) + stream.flush()

    def token_bytes(self, token: int) -> bytes:
        """Raw bytes of one token, which need not be whole UTF-8 characters."""
        try:
            return self._bytes[token]
        except KeyError:
            return self._bytes.setdefault(token, self._raw_bytes(self.id_to_token(token), token))

    def _raw_bytes(self, piece: str, token: int) -> bytes:
        if token in self._special:
            return piece.encode()
        if self._is_sentencepiece:
            if self._vocabulary.kinds[token] == BYTE:
                return bytes([int(piece[3:5], 16)])
            return piece.replace(_SPACE, " ").encode()
        try:
            return bytes([_BYTE_OF_CHARACTER[character] for character in piece])
        except KeyError:
            return piece.encode()

    def id_to_token(self, token: int) -> str:
        """The piece as the vocabulary spells it; UsageError when the id is out of range."""
        if not 0 <= operator.index(token) < self.vocab_size:
            raise UsageError(f"token: found {token}, wanted an id below the vocabulary's size, {self.vocab_size}")
        return self._vocabulary.pieces[token]

    def token_to_id(self, piece: str) -> int | None:
        """The id of a piece as the vocabulary spells it, None when it has no such piece."""
        return self._vocabulary.ids.get(piece)

    def is_control(self, token: int) -> bool:
        """Whether a token steers the model and is no text."""
        return token in self._control

    def is_special(self, token: int) -> bool:
        """Whether encode cuts a token out of the text before anything else: control and user-defined pieces."""
        return token in self._special


def _adds(metadata: Metadata, name: str, token: int | None, *, default: bool) -> bool:
    key = f"tokenizer.ggml.add_{name}_token"
    explicit = read_bool(metadata, key)
    if explicit and token is None:
        fail(key, "true", f"false, or an id in tokenizer.ggml.{name}_token_id")
    return default and token is not None if explicit is None else explicit
