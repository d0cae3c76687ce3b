"""One generation: the state machine that Session.generate, Batch and Scheduler step through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from . import _core
from .passes import submit
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
        self._plain = not self._processors and not self._criteria and constraint is None  # the sampler alone chooses
        self._choice: tuple[int, float, list[tuple[int, float]]] | None = None  # that sample() has not told yet
        self._logits: NDArray[np.float32] | None = None  # of that choice, where somebody but the sampler looks at them
        self.runs_ahead = self._plain and session.model.runs_behind  # may choose before sample()
        self.goes_on = True  # nothing but a stop string can make the chosen token the last

    def sample(self) -> Token:
        """The next token; it waits in session.pending until it is appended, unless begin_next_steps() did that."""
        self.choose()
        assert self._choice is not None
        (token_id, logprob, top), self._choice = self._choice, None
        logits, self._logits = self._logits, None
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

    def choose(self) -> None:
        """The first half of sample(), which makes the text in the second."""
        if self._choice is not None:
            return
        if self._plain:
            choice = self.session.sample(self._sampler, top_logprobs=self._top_logprobs)
        else:
            self._logits = self.session.logits
            choice = self._adjusted(self._logits)
        self.session.pending.append(choice[0])
        if self._left is not None:
            self._left -= 1
        self.goes_on = self._left != 0 and choice[0] not in self._ends
        self._choice = choice

    def _adjusted(self, logits: NDArray[np.float32]) -> tuple[int, float, list[tuple[int, float]]]:
        if logits.size == 0 or not (self._processors or self._constraint):
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


def begin_next_steps(generations: Iterable[Generation]) -> None:
    """Lets a device that works behind the host begin the next step while the texts of this one are made.

    That is for sample(), which finds the tokens chosen, and read unless they are the last. One that a stop string
    turns out to end has read its last token too.
    """
    ahead = [generation for generation in generations if generation.runs_ahead]
    for generation in ahead:
        try:
            generation.choose()
        except _core.LolaError:  # sample() runs into it again
            continue
    if going_on := [session for g in ahead if g.goes_on and (session := g.session).pending]:
        submit(going_on)
