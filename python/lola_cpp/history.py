"""What rewinding a session needs: its tokens, and copies of its memories at spaced positions within a byte budget."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _core

if TYPE_CHECKING:
    from .model import Model

_SPACING = 64  # tokens between copies while decoding
PROMPT_SPACING = 512  # a prompt is read in parts that end at multiples of this, with a copy after each


@dataclass(frozen=True)
class _Copy:
    core: _core.Session  # never advanced
    position: int
    complete: bool  # can be sampled from, or there is nothing before it


class History:
    """Tokens from the position where the history begins, 4 bytes each, and copies to start a replay from.

    The copies are log-spaced: the further back, the wider apart, so going back n tokens replays at most about n.
    """

    def __init__(self, core: _core.Session, budget: int, tokens: Sequence[int] = ()) -> None:
        """budget: bytes of the copies. A session that has read something already needs one for its beginning.

        tokens  all that it has read, where they are known: the history then begins with them
        """
        if budget < 0:
            raise _core.UsageError(f"rewind_budget: found {budget}, wanted 0 or more bytes, or None")
        self.start = 0 if tokens else core.position
        self._budget = budget
        self._tokens = array("i", tokens)
        self._copies: list[_Copy] = []
        if self.start > 0 or (tokens and core.memory_bytes <= budget):
            complete = core.has_logits or self.start > 0
            self._copies.append(_Copy(core.fork(), core.position, complete))

    @property
    def end(self) -> int:
        return self.start + len(self._tokens)

    @property
    def copy_bytes(self) -> int:
        return sum(copy.core.memory_bytes for copy in self._copies)

    def tokens(self, begin: int, end: int) -> list[int]:
        """Token ids of the positions [begin, end)."""
        return self._tokens[begin - self.start : end - self.start].tolist()

    def branch(self) -> History:
        """An independent history; the copies never change, and are shared."""
        branch = object.__new__(History)
        branch.start, branch._budget = self.start, self._budget
        branch._tokens, branch._copies = self._tokens[:], self._copies[:]
        return branch

    def tokens_read(self, tokens: Iterable[int]) -> None:
        """Tokens that the session has just read."""
        self._tokens.extend(tokens)

    def keep_copy(self, core: _core.Session, *, prompt: bool) -> None:
        """Copies the memories at the end if one is due; always after a prompt, where a turn may be taken back to."""
        last = self._copies[-1].position if self._copies else self.start
        if (prompt or self.end - last >= _SPACING) and core.memory_bytes <= self._budget:
            self._copies.append(_Copy(core.fork(), core.position, complete=core.has_logits))
            self._thin(core.memory_bytes)

    def spill(self) -> None:
        """Moves the copies to host memory."""
        for copy in self._copies:
            copy.core.spill()

    def rewound(self, model: Model, core: _core.Session, position: int) -> tuple[_core.Session, list[int]]:
        """Memories at or before a position and the tokens to replay; the history then ends at those memories."""
        usable = [c for c in self._copies if c.position < position or (c.position == position and c.complete)]
        if usable:
            memories, begin = usable[-1].core.fork(), usable[-1].position
        else:
            memories, begin = _core.Session(model._core, dict(core.config)), 0
        replay = self.tokens(begin, position)
        del self._tokens[begin - self.start :]
        self._copies = [copy for copy in self._copies if copy.position <= begin]
        return memories, replay

    def _thin(self, copy_bytes: int) -> None:
        """Drops the copies missed least: whose neighbours are close together for how far back they lie."""
        first = 1 if self.start > 0 else 0  # the beginning of a loaded session cannot be replayed
        while len(self._copies) > max(first + 1, self._budget // copy_bytes):
            at = [self.start, *(copy.position for copy in self._copies), self.end]
            gaps = [(at[i + 2] - at[i]) / (self.end - at[i + 2] + 1) for i in range(first, len(self._copies) - 1)]
            del self._copies[first + gaps.index(min(gaps))]
