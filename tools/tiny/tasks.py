"""Recall tasks as tokens: something hidden in a long text, and questions after it. The wording is that of
lola_cpp.eval; its words are never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lola_cpp.eval import wording
from lola_cpp.eval.haystacks import NOISE_SENTENCES
from lola_cpp.eval.tasks import WORDS
from tiny.corpus import BOS, Corpus

TEXT, REST, ANSWER = 0, 1, 2  # what a token is: plain text, haystack and questions, answers
TASKS = ("passkey", "needle", "needle in text", "four keys", "variables")
_LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True)
class Question:
    text: str
    answer: str


@dataclass(frozen=True)
class Puzzle:
    """The hidden sentences follow one another in this order."""

    opening: str
    hidden: list[str]
    questions: list[Question]


@dataclass(frozen=True)
class Haystack:
    """places: where something can be hidden; lines: on a line of its own."""

    tokens: np.ndarray
    places: np.ndarray
    lines: bool

    def last(self, count: int) -> Haystack:
        """It loses its beginning, so that the question meets a whole unit of it."""
        gone = max(0, len(self.tokens) - max(0, count))
        places = self.places[self.places >= gone] - gone
        return Haystack(self.tokens[gone:], places if len(places) else np.array([len(self.tokens) - gone]), self.lines)


class TaskMaker:
    """Samples of exact lengths, from one random generator."""

    def __init__(self, corpus: Corpus, rng: np.random.Generator, *, held_out: bool = False) -> None:
        self.corpus, self.rng, self.held_out = corpus, rng, held_out
        self.words = list(WORDS) if held_out else sorted(set(corpus.words) - set(WORDS))
        self.dense = (corpus.dense_held_out if held_out else corpus.dense_training).astype(np.int32)
        self.line_starts = corpus.line_starts(self.dense)
        self.full_stop = corpus.tokenizer.token_to_id(".")
        self.encode = lru_cache(maxsize=4096)(self._encode)

    def _encode(self, text: str) -> np.ndarray:
        return np.array(self.corpus.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def sample(self, length: int, lookalikes: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Training: tokens and kinds, [length] each; `lookalikes`: share of variables whose names have few letters."""
        if self.rng.random() < lookalikes:
            chains = int(self.rng.integers(1, 2 + min(3, length // 1024)))
            letters = self.rng.choice(_LETTERS, int(self.rng.integers(5, 27)), replace=False).tolist()
            return self.assemble(self.variables(chains, letters), length, self._any_haystack)
        return self._repeats(length) if self.rng.random() < 0.05 else self.task(length)

    def task(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """One that a small cache can solve too."""
        draw = self.rng.random()
        if draw < 0.05:
            return self._key_values(length)
        many = max(1, min(16, length // 256))
        if draw < 0.18:
            puzzle = self.passkey(extra=int(self.rng.integers(0, 3)))
        elif draw < 0.53:
            puzzle = self.variables(chains=int(self.rng.integers(1, 3)) if length >= 512 else 1)
        else:
            puzzle = self.magic(int(min(many, 2 ** self.rng.integers(0, 5))), int(self.rng.integers(1, 7)))
        return self.assemble(puzzle, length, self._any_haystack)

    def evaluation(self, task: str, length: int) -> tuple[np.ndarray, np.ndarray]:
        """One question of a named task, asked last: tokens, and the answer's places."""
        puzzle = {
            "passkey": self.passkey,
            "needle": lambda: self.magic(1, 1),
            "needle in text": lambda: self.magic(1, 1),
            "four keys": lambda: self.magic(4, 1),
            "variables": self.variables,
        }[task]()
        haystack = self._text if task == "needle in text" else self._standard_noise
        tokens, kinds = self.assemble(puzzle, length, haystack)
        return tokens, np.flatnonzero(kinds == ANSWER)

    # Puzzles

    def passkey(self, extra: int = 0) -> Puzzle:
        key = self._number(5)
        others = self.magic(extra, extra) if extra else Puzzle("", [], [])
        question = Question(wording.PASSKEY_QUESTION, f" {key}")
        hidden = [wording.passkey_line(key), *others.hidden]
        return Puzzle(wording.PASSKEY_OPENING, hidden, self._shuffled([question, *others.questions]))

    def magic(self, keys: int, questions: int) -> Puzzle:
        """A number for each word, for some words several."""
        words = self.rng.choice(self.words, keys, replace=False).tolist()
        several = not self.held_out and self.rng.random() < 0.2
        numbers = {
            word: [self._number(7) for _ in range(int(self.rng.integers(1, 5)) if several else 1)] for word in words
        }
        hidden = self._shuffled([wording.magic_line(word, number) for word in words for number in numbers[word]])
        first_said = {number: i for i, sentence in enumerate(hidden) for number in [sentence[-8:-1]]}
        asked = [self._magic_question([word], numbers, first_said) for word in words[:questions]]
        if keys > 1 and not self.held_out and self.rng.random() < 0.3:
            asked.append(self._magic_question(words[: int(self.rng.integers(2, 5))], numbers, first_said))
        return Puzzle(wording.magic_opening(len(hidden) > 1), hidden, asked)

    def _magic_question(self, words: list[str], numbers: dict[str, list[str]], order: dict[str, int]) -> Question:
        answers = [number for word in words for number in sorted(numbers[word], key=order.__getitem__)]
        return Question(wording.magic_question(words, several=len(answers) > 1), f" {', '.join(answers)}")

    def variables(self, chains: int = 1, letters: Sequence[str] = _LETTERS) -> Puzzle:
        hidden, questions, used = [], [], set()
        for _ in range(chains):
            value, names = self._number(5), [self._name(letters, used) for _ in range(5)]
            hidden.append(wording.chain_lines(value, names))
            questions.append(Question(wording.chain_question(value, len(names)), f" {', '.join(names)}"))
        # Chains are woven into each other, each in its own order.
        places = np.argsort(self.rng.permuted(np.repeat(np.arange(chains), 5)), kind="stable")
        woven: list[str] = [""] * (5 * chains)
        for place, line in zip(places, [line for chain in hidden for line in chain], strict=True):
            woven[place] = line
        return Puzzle(wording.CHAIN_OPENING, woven, self._shuffled(questions))

    def _name(self, letters: Sequence[str], used: set[str]) -> str:
        """One that is not used yet; `used` takes it up."""
        while (name := "".join(self.rng.choice(letters, 5))) in used:
            pass
        used.add(name)
        return name

    # Samples

    def assemble(
        self, puzzle: Puzzle, length: int, make_haystack: Callable[[int], Haystack]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and kinds, [length] each."""
        opening = np.concatenate([[BOS], self.encode(puzzle.opening)])
        haystack = make_haystack(length)
        hidden = [self.encode(f"{line}\n" if haystack.lines else f" {line}") for line in puzzle.hidden]
        asked = sum(len(self.encode(q.text)) + len(self.encode(q.answer)) + 1 for q in puzzle.questions)
        haystack = haystack.last(length - len(opening) - sum(map(len, hidden)) - asked)
        cuts = np.sort(self.rng.choice(haystack.places, len(hidden)))
        parts, last = [], 0
        for cut, sentence in zip(cuts, hidden, strict=True):
            parts += [haystack.tokens[last:cut], sentence]
            last = cut
        body = np.concatenate([*parts, haystack.tokens[last:]])
        tail, tail_kinds = self._questions(puzzle.questions, body, haystack.lines)
        if body[-1] == self.full_stop and not haystack.lines:
            body = body[:-1]
        kinds = np.concatenate([np.full(len(opening) + len(body), REST), tail_kinds]).astype(np.uint8)
        return self._exactly(np.concatenate([opening, body, tail]), length), self._exactly(kinds, length)

    def _questions(self, questions: list[Question], body: np.ndarray, lines: bool) -> tuple[np.ndarray, np.ndarray]:
        """As one text would be tokenized: a full stop and the line end after it are one token."""
        tokens, kinds = [], []
        before = "" if lines else "." if body[-1] == self.full_stop else "\n"
        for question in questions:
            text = question.text[1:] if before != "." else question.text
            for part, kind in ((("" if lines and not tokens else before) + text, REST), (question.answer, ANSWER)):
                ids = self.encode(part)
                tokens.append(ids)
                kinds.append(np.full(len(ids), kind))
            before = "."
        return np.concatenate(tokens), np.concatenate(kinds)

    def _exactly(self, row: np.ndarray, length: int) -> np.ndarray:
        """What is too long loses its beginning, what is too short repeats it."""
        short = max(0, length - len(row))
        return np.concatenate([np.resize(row[:64], short), row])[-length:].astype(row.dtype)

    def _repeats(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        half = min(length // 2, int(self.rng.integers(16, 513)))
        start = int(self.rng.integers(0, len(self.dense) - half))
        part = self.rng.integers(2, 4096, half) if self.rng.random() < 0.5 else self.dense[start : start + half]
        kinds = np.full(length, ANSWER, np.uint8)
        kinds[: half + 2] = REST
        return np.resize(part, length).astype(np.int32), kinds

    def _key_values(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        count = max(2, min(64, length // 32))
        words = self.rng.choice(self.words, count, replace=False)
        lines = [f"{word}: {self._number(4)}\n" for word in words]
        asked = [str(line) for line in self.rng.choice(lines, min(count, 8), replace=False)]
        parts = [(self.encode(line), REST) for line in lines]
        for line in asked:
            word, value = line.rstrip("\n").split(":")
            parts += [(self.encode(f"{word}:"), REST), (self.encode(value), ANSWER), (self.encode("\n"), REST)]
        tail = np.concatenate([ids for ids, _ in parts])
        kinds = np.concatenate([np.full(len(ids), kind, np.uint8) for ids, kind in parts])
        front = self._text(max(1, length)).tokens[-max(1, length - len(tail)) :].copy()
        front[0] = BOS
        kinds = np.concatenate([np.full(len(front), REST, np.uint8), kinds])
        return self._exactly(np.concatenate([front, tail]), length), self._exactly(kinds, length)

    # Haystacks

    def _any_haystack(self, length: int) -> Haystack:
        draw = self.rng.random()
        if draw < 0.35:
            return self._standard_noise(length)
        if draw < 0.45:
            return self._cycle(list(NOISE_SENTENCES), length, lines=True)
        if draw < 0.60:
            sentences = self.rng.choice(self.corpus.sentences, int(self.rng.integers(3, 9))).tolist()
            return self._cycle(sentences, length, lines=bool(self.rng.random() < 0.3))
        return self._text(length)

    def _standard_noise(self, length: int) -> Haystack:
        return self._cycle(list(NOISE_SENTENCES), length, lines=False)

    def _cycle(self, sentences: list[str], length: int, *, lines: bool) -> Haystack:
        unit = self.encode(" ".join(sentences) + "\n" if lines else "".join(f" {s}" for s in sentences))
        count = length // len(unit) + 1
        return Haystack(np.tile(unit, count), np.arange(1, count + 1) * len(unit), lines)

    def _text(self, length: int) -> Haystack:
        """Consecutive lines from a random place on, going round at the end."""
        first = int(self.rng.integers(0, len(self.line_starts)))
        starts = np.concatenate([self.line_starts[first:], self.line_starts[:first] + len(self.dense)])
        starts = (starts - starts[0])[1:]
        count = max(1, int(np.searchsorted(starts, length)))
        tokens = np.take(self.dense, np.arange(starts[count - 1]) + self.line_starts[first], mode="wrap")
        return Haystack(tokens, starts[:count], lines=True)

    def _number(self, digits: int) -> str:
        return "".join(map(str, self.rng.integers(0, 10, digits)))

    def _shuffled(self, items: list) -> list:
        return [items[i] for i in self.rng.permutation(len(items))]
