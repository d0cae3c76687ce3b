"""Slices of the library's text, most of them with other names: the model cannot learn it by heart."""

from __future__ import annotations

import numpy as np

from tiny.corpus import BOS, EOS, Corpus

RENAMED_SHARE = 0.7
# Of the samples that begin with the begin-of-text token, as every prompt of the engine does. A few do not, so that
# text without it is foretold as well.
BOS_SHARE = 0.9
START_SHARES = (0.25, 0.5, 0.25)  # anywhere, at a line's begin, at a document's


class TextMaker:
    def __init__(self, corpus: Corpus, rng: np.random.Generator) -> None:
        self.rng, self.renamer = rng, Renamer(corpus, rng)
        self.texts = [(text.astype(np.int64), _starts(corpus, text)) for text in (corpus.training, corpus.unseen)]

    def sample(self, length: int, unseen: float = 0.0) -> np.ndarray:
        """From a document's begin on, or a line's, or from anywhere; `unseen`: how often from the unseen documents."""
        text, starts = self.texts[int(self.rng.random() < unseen)]
        start = int(self.rng.choice(starts[self.rng.choice(3, p=START_SHARES)]))
        start = min(start, len(text) - length)
        piece = text[start : start + length]
        piece = self.renamer(piece) if self.rng.random() < RENAMED_SHARE else piece
        if self.rng.random() < BOS_SHARE:
            piece = np.concatenate([[BOS], piece[:-1]])
        return piece


def _starts(corpus: Corpus, text: np.ndarray) -> list[np.ndarray]:
    """Where START_SHARES' samples may begin."""
    documents = np.concatenate([[0], np.flatnonzero(text[:-1] == EOS) + 1])
    return [np.arange(len(text)), corpus.line_starts(text), documents]


class Renamer:
    """Swaps some of the words for others of their kind, the same way throughout a text."""

    def __init__(self, corpus: Corpus, rng: np.random.Generator) -> None:
        self.rng = rng
        pieces = [corpus.tokenizer.decode([i]) for i in range(corpus.tokenizer.get_vocab_size())]
        spaced = [i for i, piece in enumerate(pieces) if piece[:1] == " " and piece[1:].isalpha()]
        plain = [i for i, piece in enumerate(pieces) if piece.isalpha() and len(piece) > 1]
        self.groups, self.size = [np.array(spaced), np.array(plain)], len(pieces)

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        names, share = np.arange(self.size), self.rng.uniform(0.1, 0.6)
        for group in self.groups:
            chosen = group[self.rng.random(len(group)) < share]
            names[chosen] = self.rng.permutation(chosen)
        return names[tokens]
