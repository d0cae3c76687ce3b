"""Turns tokens into text while they arrive: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from ._core import UsageError


class Pieces(Protocol):
    """What is needed of a Tokenizer."""

    @property
    def adds_space(self) -> bool:
        """Whether encode puts a space before a text, and before what follows a special piece."""

    def token_bytes(self, token: int) -> bytes: ...
    def is_control(self, token: int) -> bool: ...
    def is_special(self, token: int) -> bool: ...


class TextStream:
    """Text of tokens that arrive one by one.

    A character split over tokens is held back until it is whole. Bytes that cannot be part of one become U+FFFD: all
    pushes and the flush together give what decoding all the bytes at once gives.

    start_of_text  the first token begins the text, so the space that encode put there is left out
    skip_special   control pieces give no text
    """

    def __init__(self, pieces: Pieces, *, start_of_text: bool = False, skip_special: bool = True) -> None:
        self._pieces = pieces
        self._after_border = start_of_text
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that became certain with this token."""
        piece = self._pieces.token_bytes(token)
        special = self._pieces.is_special(token)
        if self._after_border and not special and self._pieces.adds_space:
            piece = piece.removeprefix(b" ")
        self._after_border = special
        if self._skip_special and self._pieces.is_control(token):
            return ""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What an unfinished character leaves at the end."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Cuts a text before the first place where one of some strings stands.

    The text may come in parts of any size. An end that may still become a stop string is held back until that is
    decided, so the result does not depend on where the parts were cut.

    stopped  a stop string has been found; nothing is let through any more
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """UsageError on a stop string that is empty or no string."""
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise UsageError(f"stop: found {stops!r}, wanted a sequence of strings that are not empty")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is certain not to belong to a stop string."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = self._first_stop(text)
        undecided = self._first_beginning(text)
        self.stopped = found <= undecided and found < len(text)
        certain = min(found, undecided)
        self._held = "" if self.stopped else text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        found = self._first_stop(held)
        self.stopped = self.stopped or found < len(held)
        return held[:found]

    def _first_stop(self, text: str) -> int:
        """Where the first stop string begins; the length of the text when there is none."""
        return min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=len(text))

    def _first_beginning(self, text: str) -> int:
        """Where the longest end of the text that only begins a stop string begins; its length when there is none."""
        longest = 0
        for stop in self._stops:
            sizes = range(min(len(stop) - 1, len(text)), longest, -1)
            longest = next((size for size in sizes if text.endswith(stop[:size])), longest)
        return len(text) - longest
