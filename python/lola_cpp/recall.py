"""Prompts that ask for something hidden in a long text: the passkey and needle tasks of the long-context literature."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from . import _core

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_WORDS = ("pumpkin", "lantern", "river", "anchor", "violin", "meadow", "copper", "falcon", "island", "mirror")


@dataclass(frozen=True)
class RecallPrompt:
    """A prompt and what a model that found the hidden sentence answers; depth is where it lies, 0 start to 1 end."""

    tokens: list[int]
    answer: str
    depth: float

    def found_in(self, text: str) -> bool:
        return text.strip().startswith(self.answer)


def passkey_prompt(
    tokenizer: Tokenizer, length: int, *, rng: random.Random, depth: float | None = None
) -> RecallPrompt:
    """A five-digit pass key in repeated noise (Mohtashami and Jaggi, arXiv 2305.16300), at most `length` tokens."""
    key = "".join(rng.choices("0123456789", k=5))
    return _build(
        tokenizer,
        length,
        depth=rng.random() if depth is None else depth,
        answer=key,
        opening="There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        "I will quiz you about the important information there.\n",
        hidden=f"The pass key is {key}. Remember it. {key} is the pass key.",
        separator=" ",
        question="\nWhat is the pass key? The pass key is",
    )


def needle_prompt(
    tokenizer: Tokenizer,
    length: int,
    *,
    rng: random.Random,
    depth: float | None = None,
    separator: str = " ",
) -> RecallPrompt:
    """A seven-digit number for a word in repeated noise (RULER S-NIAH, arXiv 2404.06654), at most `length` tokens."""
    word, number = rng.choice(_WORDS), "".join(rng.choices("0123456789", k=7))
    return _build(
        tokenizer,
        length,
        depth=rng.random() if depth is None else depth,
        answer=number,
        opening="A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n",
        hidden=f"One of the special magic numbers for {word} is: {number}.",
        separator=separator,
        question=f"\nWhat is the special magic number for {word} mentioned in the provided text? "
        f"The special magic number for {word} mentioned in the provided text is",
    )


TASKS: dict[str, Callable[..., RecallPrompt]] = {
    "passkey": passkey_prompt,
    "needle": needle_prompt,
    "needle_lines": partial(needle_prompt, separator="\n"),  # each round of noise on a line of its own
}


def _build(
    tokenizer: Tokenizer,
    length: int,
    *,
    depth: float,
    answer: str,
    opening: str,
    hidden: str,
    separator: str,
    question: str,
) -> RecallPrompt:
    def prompt(repeats: int) -> list[int]:
        before = round(repeats * depth)
        parts = [_NOISE] * before + [hidden] + [_NOISE] * (repeats - before)
        return tokenizer.encode(opening + separator.join(parts) + question)

    shortest = len(prompt(0))
    if length < shortest:
        raise _core.UsageError(f"length: found {length}, wanted at least the {shortest} tokens of the question itself")
    noise = max(1, len(prompt(2)) - len(prompt(1)))
    repeats = (length - shortest) // noise
    tokens = prompt(repeats)
    while len(tokens) > length:
        repeats -= 1
        tokens = prompt(repeats)
    return RecallPrompt(tokens, answer, depth)
