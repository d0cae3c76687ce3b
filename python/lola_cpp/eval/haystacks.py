"""What needles are hidden in: the noise sentences of the long-context literature, or text."""

from __future__ import annotations

import functools
import random
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .._core import UsageError

NOISE_SENTENCES = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
_NOISE = " ".join(NOISE_SENTENCES)
_TEXT_SIZE = 8 << 20  # more of a folder is not read


@dataclass(frozen=True)
class Haystack:
    """Units of text and what stands between them; units(rng) gives a function from a count to that many units.

    name  what tables call it
    """

    units: Callable[[random.Random], Callable[[int], list[str]]]
    separator: str
    name: str


@functools.lru_cache(maxsize=4)
def find_haystack(name: str) -> Haystack:
    """noise, noise_lines (each round on a line of its own), stdlib (Python's own sources), or a text file or folder.

    Raises UsageError where the name is none of them, or no text is found.
    """
    if name in _NAMED:
        return _NAMED[name]
    return text_haystack(tuple(line for line in read_text(name).splitlines() if line.strip()), Path(name).name)


def text_haystack(lines: tuple[str, ...], name: str) -> Haystack:
    """Consecutive lines from a random place on, going round at the end."""

    def units(rng: random.Random) -> Callable[[int], list[str]]:
        start = rng.randrange(len(lines))
        return lambda count: [lines[(start + i) % len(lines)] for i in range(count)]

    return Haystack(units, "\n", name)


def _noise(_rng: random.Random) -> Callable[[int], list[str]]:
    return lambda count: [_NOISE] * count


NOISE = Haystack(_noise, " ", "noise")
_NAMED = {"noise": NOISE, "noise_lines": Haystack(_noise, "\n", "noise_lines")}


@functools.lru_cache(maxsize=4)
def read_text(name: str) -> str:
    """The text of stdlib (Python's own sources), or of a file or folder; of a large folder the first files alone.

    Raises UsageError where there is none.
    """
    path = Path(sysconfig.get_path("stdlib")) if name == "stdlib" else Path(name)
    if not path.exists():
        raise UsageError(
            f"text: found {name!r}, wanted stdlib, a file or a folder (haystacks: {', '.join(_NAMED)} too)"
        )
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix in {".py", ".txt", ".md"})
    texts: list[str] = []
    for file in files:
        texts.append(file.read_text(encoding="utf-8", errors="replace"))
        if sum(map(len, texts)) > _TEXT_SIZE:
            break
    if not "".join(texts).strip():
        raise UsageError(f"text: {path} holds none, wanted a file or a folder of .py, .txt or .md files")
    return "\n".join(texts)
