"""One generation: the state machine that Session.generate and Batch.generate step through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from . import _core
from .text_stream import StopMatcher, TextStream

if TYPE_CHECKING:
    from .session import Session

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Token:
    """One generated token.

    id             its number in the vocabulary
    text           the text that became certain with it: whole characters only, and nothing that may begin a stop string
    logprob        natural logarithm of its probability, before temperature and filters
    top_logprobs   the most likely tokens at this place with theirs, best first
    finish_reason  on the last token: "stop" (end of text, or a stop string) or "length"
    """

    id: int
    text: str
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None


class Generation:
    """Samples tokens of one session until it is finished. Its owner appends `session.pending` before each sample()."""

    def __init__(
        self,
        session: Session,
        sampler: _core.Sampler,
        *,
        max_tokens: int | None,
        stop: str | Sequence[str],
        stop_at_end: bool,
        top_logprobs: int,
    ) -> None:
        if max_tokens is not None and max_tokens < 0:
            raise _core.UsageError(f"max_tokens: found {max_tokens}, wanted 0 or more, or None")
        if top_logprobs < 0:
            raise _core.UsageError(f"top_logprobs: found {top_logprobs}, wanted 0 or more")
        self.session = session
        self._sampler = sampler
        self._left = max_tokens
        self._top_logprobs = top_logprobs
        tokenizer = session.model.tokenizer
        self._ends = frozenset(tokenizer.end_ids) if stop_at_end else frozenset()
        self._text = TextStream(tokenizer, start_of_text=session.position == 0)
        self._stop = StopMatcher([stop] if isinstance(stop, str) else stop)
        self.finished = max_tokens == 0

    def sample(self) -> Token:
        """The next token; it waits in session.pending until it is appended."""
        token_id, logprob, top = self.session.sample(self._sampler, top_logprobs=self._top_logprobs)
        self.session.pending.append(token_id)
        if self._left is not None:
            self._left -= 1
        reason: FinishReason | None = None
        if token_id in self._ends:
            text, reason = self._stop.push(self._text.flush()), "stop"
        else:
            text = self._stop.push(self._text.push(token_id))
        if self._stop.stopped:
            reason = "stop"
        elif reason is None and self._left == 0:
            text, reason = text + self._stop.push(self._text.flush()), "length"
            if self._stop.stopped:
                reason = "stop"
        if reason is not None:
            text += self._stop.flush()
            self.finished = True
        return Token(token_id, text, logprob, tuple(top), reason)
