"""Prompts that ask for something hidden in a long text. A task is one function and one row of TASKS."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .._core import UsageError
from . import wording
from .haystacks import NOISE, Haystack

# fmt: off
WORDS = (
    "pumpkin", "lantern", "river", "anchor", "violin", "meadow", "copper", "falcon", "island", "mirror", "basket",
    "candle", "desert", "engine", "forest", "garden", "hammer", "jacket", "kettle", "ladder", "magnet", "needle",
    "orchid", "pepper", "quarry", "ribbon", "saddle", "temple", "umbrella", "velvet", "window", "zipper", "bridge",
    "carpet", "dragon", "feather", "glacier", "harbor", "jungle", "marble",
)
# fmt: on
_CODED_WORDS = 40  # of frequent_words

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Puzzle:
    """What a task hides and asks. The first hidden sentence lies at the depth that is asked for."""

    opening: str
    question: str
    answers: tuple[str, ...]
    hidden: tuple[str, ...] = ()
    in_order: bool = False  # the hidden sentences follow one another; else the others lie anywhere
    haystack: Haystack | None = None  # of its own, in place of the one given


@dataclass(frozen=True)
class Prompt:
    """A puzzle in a haystack; depth is where the first hidden sentence lies, 0 start to 1 end."""

    text: str
    tokens: list[int]
    answers: tuple[str, ...]
    depth: float

    @property
    def completion(self) -> str:
        """What follows the prompt when all is found."""
        return f" {', '.join(self.answers)}."

    def share_found(self, text: str) -> float:
        """The share of the answers that a continuation gives; the only one has to come first."""
        if len(self.answers) == 1:
            return float(text.strip().startswith(self.answers[0]))
        return sum(answer in text for answer in self.answers) / len(self.answers)

    def found_in(self, text: str) -> bool:
        return self.share_found(text) == 1.0


def make_prompt(
    task: str,
    encode: Encode,
    length: int,
    *,
    rng: random.Random,
    haystack: Haystack = NOISE,
    depth: float | None = None,
) -> Prompt:
    """A prompt of at most `length` tokens, and short of it by little.

    encode  a text to the tokens of a model
    depth   0 to 1; None: anywhere

    Raises UsageError for an unknown task, and where not even the question fits.
    """
    if task not in TASKS:
        raise UsageError(f"task: found {task!r}, wanted one of {', '.join(TASKS)}")
    puzzle = TASKS[task](rng)
    depth = rng.random() if depth is None else depth
    hay = puzzle.haystack or haystack
    places = _places(puzzle, depth, rng)
    units = hay.units(rng)

    def text_with(count: int) -> str:
        parts = units(count)
        for place, sentence in sorted(zip(places, puzzle.hidden, strict=True), key=lambda p: p[0], reverse=True):
            parts.insert(round(place * count), sentence)
        return puzzle.opening + hay.separator.join(parts) + puzzle.question

    text = text_with(_most_units(lambda count: len(encode(text_with(count))), length))
    return Prompt(text, encode(text), puzzle.answers, depth)


def title(task: str, haystack: Haystack) -> str:
    """What tables call a task: with the haystack where it is neither noise nor the task's own."""
    own = TASKS[task](random.Random(0)).haystack is not None
    return task if own or haystack is NOISE else f"{task} in {haystack.name}"


def _places(puzzle: Puzzle, depth: float, rng: random.Random) -> list[float]:
    others = [rng.random() for _ in puzzle.hidden[1:]]
    if puzzle.in_order:
        others = sorted(depth + (1.0 - depth) * place for place in others)
    return [depth, *others][: len(puzzle.hidden)]


def _most_units(tokens_of: Callable[[int], int], length: int) -> int:
    """How many units fit, by interpolation: every look encodes the whole text. Leaves less than 1/64 of length."""
    base = tokens_of(0)
    if base > length:
        raise UsageError(f"length: found {length}, wanted at least the {base} tokens of the question itself")
    low, high, guess, slack = 0, length + 1, 16, length // 64
    size = base
    while high - low > 1 and length - size > slack:
        guess = max(low + 1, min(guess, high - 1))
        found = tokens_of(guess)
        if found <= length:
            low, size = guess, found
        else:
            high = guess
        guess = int(guess * (length - base) / max(1, found - base))
    return low


def passkey(rng: random.Random) -> Puzzle:
    key = _digits(rng, 5)
    return Puzzle(
        opening=wording.PASSKEY_OPENING,
        hidden=(wording.passkey_line(key),),
        question=wording.PASSKEY_QUESTION,
        answers=(key,),
    )


def needle(rng: random.Random, *, keys: int = 1) -> Puzzle:
    """A number for each of `keys` words; one is asked for."""
    words, numbers = rng.sample(WORDS, keys), [_digits(rng, 7) for _ in range(keys)]
    return Puzzle(
        opening=wording.magic_opening(keys > 1),
        hidden=tuple(map(wording.magic_line, words, numbers)),
        question=wording.magic_question(words[:1], several=False),
        answers=(numbers[0],),
    )


def multi_value(rng: random.Random) -> Puzzle:
    """Four numbers for one word; all are asked for."""
    word, numbers = rng.choice(WORDS), [_digits(rng, 7) for _ in range(4)]
    return Puzzle(
        opening=wording.magic_opening(True),
        hidden=tuple(wording.magic_line(word, number) for number in numbers),
        question=wording.magic_question([word], several=True),
        answers=tuple(numbers),
    )


def multi_query(rng: random.Random) -> Puzzle:
    """A number for each of four words; all are asked for."""
    words, numbers = rng.sample(WORDS, 4), [_digits(rng, 7) for _ in range(4)]
    return Puzzle(
        opening=wording.magic_opening(True),
        hidden=tuple(map(wording.magic_line, words, numbers)),
        question=wording.magic_question(words, several=True),
        answers=tuple(numbers),
    )


def variable_chain(rng: random.Random) -> Puzzle:
    """A value handed on from variable to variable; all that hold it are asked for."""
    value = _digits(rng, 5)
    names = ["".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5)) for _ in range(5)]
    return Puzzle(
        opening=wording.CHAIN_OPENING,
        hidden=wording.chain_lines(value, names),
        in_order=True,
        question=wording.chain_question(value, len(names)),
        answers=tuple(names),
    )


def frequent_words(rng: random.Random) -> Puzzle:
    """The three most frequent of many made-up words, in numbers that fall like 1 / rank^2."""
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(_CODED_WORDS)]
    total = sum(1 / rank**2 for rank in range(1, _CODED_WORDS + 1))

    def units(rng: random.Random) -> Callable[[int], list[str]]:
        seed = rng.random()

        def shuffled(count: int) -> list[str]:
            parts = [word for i, word in enumerate(words) for _ in range(round(count / total / (i + 1) ** 2))]
            random.Random(seed).shuffle(parts)
            return parts

        return shuffled

    return Puzzle(
        opening="Read the following coded text and track the frequency of each coded word. Find the three most "
        "frequently appeared coded words. ",
        haystack=Haystack(units, " ", "coded words"),
        question="\nQuestion: What are the three most frequently appeared words in the above coded text? Answer: "
        "According to the coded text above, the three most frequently appeared words are:",
        answers=tuple(words[:3]),
    )


TASKS: dict[str, Callable[[random.Random], Puzzle]] = {
    "passkey": passkey,
    "needle": needle,
    "four_keys": partial(needle, keys=4),
    "multi_value": multi_value,
    "multi_query": multi_query,
    "variable_chain": variable_chain,
    "frequent_words": frequent_words,
}


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices("0123456789", k=count))
