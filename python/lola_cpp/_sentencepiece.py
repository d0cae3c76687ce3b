"""SentencePiece vocabularies carry a score for each piece and no merges; byte-level BPE wants merges."""

from __future__ import annotations

import re

import numpy as np

from ._vocabulary import BYTE, CONTROL, UNKNOWN, Metadata, Vocabulary, fail, read_numbers

_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


def merges_by_score(metadata: Metadata, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Merges that rebuild the pieces in the order of their scores, best first.

    A piece comes from every pair of pieces that spells it. Control, unknown and byte pieces take no part: text must
    not merge into them.
    """
    name = "tokenizer.ggml.scores"
    scores = read_numbers(metadata, name, count=len(vocabulary.pieces), dtype=np.float64)
    if scores is None:
        fail(name, "nothing", "a score for each piece of tokenizer.ggml.tokens")
    nan = np.flatnonzero(np.isnan(scores))
    if nan.size:
        fail(f"{name}[{nan[0]}]", "NaN", "a number")
    mergeable = ~np.isin(vocabulary.kinds, (CONTROL, UNKNOWN, BYTE))
    pieces = {vocabulary.pieces[token] for token in np.flatnonzero(mergeable)}
    merges = []
    for token in np.argsort(-scores, kind="stable").tolist():
        if mergeable[token]:
            piece = vocabulary.pieces[token]
            # The longer left part first: among equals, the leftmost pair of a text wins.
            for cut in range(len(piece) - 1, 0, -1):
                if piece[:cut] in pieces and piece[cut:] in pieces:
                    merges.append((piece[:cut], piece[cut:]))
    return merges


def check_byte_pieces(vocabulary: Vocabulary) -> None:
    """FormatError unless every byte piece spells its byte, as <0x0A> does."""
    for token in np.flatnonzero(vocabulary.kinds == BYTE).tolist():
        if not _BYTE_PIECE.fullmatch(vocabulary.pieces[token]):
            fail(f"tokenizer.ggml.tokens[{token}]", repr(vocabulary.pieces[token]), "a byte piece such as <0x0A>")
