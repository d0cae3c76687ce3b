"""Slices of the training text, most of them with other names: the model cannot learn the library by heart."""

from __future__ import annotations

import numpy as np

from tiny.corpus import Corpus

RENAMED_SHARE = 0.7


class TextMaker:
    def __init__(self, corpus: Corpus, rng: np.random.Generator) -> None:
        self.text, self.rng, self.renamer = corpus.training.astype(np.int64), rng, Renamer(corpus, rng)

    def sample(self, length: int) -> np.ndarray:
        start = int(self.rng.integers(0, len(self.text) - length))
        piece = self.text[start : start + length]
        return self.renamer(piece) if self.rng.random() < RENAMED_SHARE else piece


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
