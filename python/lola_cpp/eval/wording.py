"""The sentences of the recall tasks, which models are trained and asked with.

Pass keys are those of Mohtashami and Jaggi (arXiv 2305.16300), magic numbers and chains RULER's (arXiv 2404.06654).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

PASSKEY_OPENING = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
PASSKEY_QUESTION = "\nWhat is the pass key? The pass key is"
CHAIN_OPENING = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"


def passkey_line(key: str) -> str:
    return f"The pass key is {key}. Remember it. {key} is the pass key."


def magic_opening(several: bool) -> str:
    what, about = ("Some special magic numbers are", "numbers") if several else ("A special magic number is", "number")
    return (
        f"{what} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {about} afterwards.\n"
    )


def magic_line(word: str, number: str) -> str:
    return f"One of the special magic numbers for {word} is: {number}."


def magic_question(words: Sequence[str], *, several: bool) -> str:
    """several: numbers are asked for, be it of one word or of many."""
    named = words[0] if len(words) == 1 else f"{', '.join(words[:-1])}, and {words[-1]}"
    if several:
        about = f"special magic numbers for {named} mentioned in the provided text"
        return f"\nWhat are all the {about}? The {about} are"
    about = f"special magic number for {named} mentioned in the provided text"
    return f"\nWhat is the {about}? The {about} is"


def chain_lines(value: str, names: Sequence[str]) -> tuple[str, ...]:
    """A value handed on from the first variable to the last."""
    return (f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(names)))


def chain_question(value: str, count: int) -> str:
    return (
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: "
        f"According to the chain(s) of variable assignment in the text above, {count} variables are assigned the "
        f"value {value}, they are:"
    )
