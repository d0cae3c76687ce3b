"""One generation: the state machine that Session.generate, Batch and Scheduler step through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from . import _core
from .text_stream import StopMatcher, TextStream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .grammar import Constraint
    from .options import LogitsProcessor, StoppingCriterion
    from .session import Session

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Token:
    """One generated token.

    id             its number in the vocabulary
    text           the text that became certain with it: whole characters only, and nothing that may begin a stop string
    logprob        natural logarithm of its probability, before temperature and filters
    top_logprobs   the most likely tokens at this place with theirs, best first
    finish_reason  on the last token: "stop" (end of text, a stop string or a stopping criterion) or "length"
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
        prompt: Sequence[int],
        sampler: _core.Sampler,
        constraint: Constraint | None,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        stop_at_end: bool = True,
        top_logprobs: int = 0,
        logits_processors: Sequence[LogitsProcessor] = (),
        stopping_criteria: Sequence[StoppingCriterion] = (),
    ) -> None:
        if max_tokens is not None and max_tokens < 0:
            raise _core.UsageError(f"max_tokens: found {max_tokens}, wanted 0 or more, or None")
        if top_logprobs < 0:
            raise _core.UsageError(f"top_logprobs: found {top_logprobs}, wanted 0 or more")
        self.session = session
        self._sampler = sampler
        self._constraint = constraint
        self._left = max_tokens
        self._top_logprobs = top_logprobs
        self._processors = tuple(logits_processors)
        self._criteria = tuple(stopping_criteria)
        self._seen = list(prompt) if self._processors or self._criteria else []
        tokenizer = session.model.tokenizer
        self._ends = tokenizer.end_ids if stop_at_end or constraint else frozenset()
        self._text = TextStream(tokenizer, start_of_text=session.position == 0)
        self._stop = StopMatcher([stop] if isinstance(stop, str) else stop)
        self.finished = max_tokens == 0

    def sample(self) -> Token:
        """The next token; it waits in session.pending until it is appended."""
        logits = self.session.logits if self._processors or self._criteria or self._constraint is not None else None
        token_id, logprob, top = self._choose(logits)
        self.session.pending.append(token_id)
        if self._left is not None:
            self._left -= 1
        ended = token_id in self._ends
        if self._constraint is not None and not ended:
            self._constraint.accept(token_id)
        text = self._stop.push(self._text.flush() if ended else self._text.push(token_id))
        reason: FinishReason | None = None
        if self._criterion_met(token_id, logits) or ended or self._stop.stopped:
            reason = "stop"
        elif self._left == 0:
            reason = "length"
        if reason is not None:
            text += self._stop.push(self._text.flush()) + self._stop.flush()
            reason = "stop" if self._stop.stopped else reason
            self.finished = True
        return Token(token_id, text, logprob, tuple(top), reason)

    def _choose(self, logits: NDArray[np.float32] | None) -> tuple[int, float, list[tuple[int, float]]]:
        if logits is None or logits.size == 0 or not (self._processors or self._constraint):
            return self.session.sample(self._sampler, top_logprobs=self._top_logprobs)
        adjusted = logits.copy()
        for processor in self._processors:
            adjusted = processor(self._ids(), adjusted)
        if self._constraint is not None:
            self._constraint.apply(adjusted)
        return self.session.sample(self._sampler, top_logprobs=self._top_logprobs, adjusted=adjusted)

    def _criterion_met(self, token_id: int, logits: NDArray[np.float32] | None) -> bool:
        if logits is None:
            return False
        if self._processors or self._criteria:
            self._seen.append(token_id)
        met = [criterion(self._ids(), logits) for criterion in self._criteria]  # all are asked, as some of them count
        return any(met)

    def _ids(self) -> NDArray[np.int64]:
        import numpy as np

        tokens = self.session.tokens
        return np.array(self._seen if tokens is None else tokens, dtype=np.int64)
