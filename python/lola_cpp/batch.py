"""Several sessions advanced together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from . import _core
from .generation import Generation, Token, begin_next_steps
from .passes import Progress, advance
from .session import Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import GenerationOptions

PASS_TOKENS = 512  # the core's: the most that one pass takes through the weights


class Batch:
    """Generations of several sessions of one model, prefilling or decoding, in shared passes over the weights.

    Reading the weights is most of the cost of a token, so tokens of many sessions cost little more than those of one.

        batch = Batch()
        for prompt in prompts:
            batch.add(model.session(), prompt, max_tokens=100)
        for session, token in batch:
            ...

    A step takes one token of every session that decodes, and of prompts about `prefill_tokens`: no session waits for
    another's long prompt. A prompt is always cut at positions divisible by `chunk_tokens`, so how it is cut does not
    depend on who shares the batch. A session that could not take part in a step goes first in the next.

    chunk_tokens    the part of a prompt that goes through the model at once, 1 to 256
    prefill_tokens  tokens of prompts in a step, as whole parts, at least one part; None: as many as one pass takes
    """

    def __init__(self, *, chunk_tokens: int = 128, prefill_tokens: int | None = None) -> None:
        if not 1 <= chunk_tokens <= PASS_TOKENS // 2:
            raise _core.UsageError(f"chunk_tokens: found {chunk_tokens}, wanted 1 to {PASS_TOKENS // 2}")
        if prefill_tokens is not None and prefill_tokens < 1:
            raise _core.UsageError(f"prefill_tokens: found {prefill_tokens}, wanted 1 or more, or None")
        self._chunk = chunk_tokens
        self._prefill = min(prefill_tokens or PASS_TOKENS, PASS_TOKENS)
        self._generations: list[Generation] = []

    def add(
        self, session: Session, prompt: str | Sequence[int] = (), **options: Unpack[GenerationOptions]
    ) -> Generation:
        """Lets a session join at the next step; arguments as in Session.generate."""
        generation = session.start(prompt, **options)
        self.join(generation)
        return generation

    def join(self, generation: Generation) -> None:
        """Lets a generation that was started (or was removed) take part."""
        self._generations.append(generation)

    def remove(self, session: Session) -> None:
        """Lets a session leave; it stays usable where it is."""
        self._generations = [g for g in self._generations if g.session is not session]

    def __len__(self) -> int:
        return len(self._generations)

    def step(self, *, progress: Progress | None = None) -> list[tuple[Session, Token]]:
        """Advances the sessions by one pass, and samples a token for each whose prompt is read.

        Those that finish leave. The list is empty while all that take part still read their prompts.
        """
        tokens = [(g.session, g.sample()) for g in self.advance(progress=progress)]
        self._generations = [g for g in self._generations if not g.finished]
        return tokens

    def advance(self, *, progress: Progress | None = None) -> list[Generation]:
        """The first half of a step: one pass. Returns those whose next token can be sampled, and perhaps was chosen."""
        self._generations = [g for g in self._generations if not g.finished]
        chosen = self._choose()
        advance([g.session for g in chosen], progress, chunk=self._chunk)
        ready = [g for g in chosen if not g.session.pending]
        if not any(len(g.session.pending) > 1 for g in self._generations):  # which would share the next passes
            begin_next_steps(ready)
        return ready

    def _choose(self) -> list[Generation]:
        """Who takes part in the next step; the others move to the front."""
        decoding = [g for g in self._generations if len(g.session.pending) <= 1]
        reading = [g for g in self._generations if len(g.session.pending) > 1]
        chosen = decoding[: PASS_TOKENS - (self._chunk if reading else 0)]
        room = min(PASS_TOKENS - len(chosen), max(self._prefill, self._chunk))
        for generation in reading:
            size = len(generation.session.next_part(self._chunk))
            if size <= room:
                chosen.append(generation)
                room -= size
        taking_part = set(map(id, chosen))
        left_out = [g for g in self._generations if id(g) not in taking_part]
        if left_out:
            self._generations = left_out + [g for g in self._generations if id(g) in taking_part]
        return chosen

    def __iter__(self) -> Iterator[tuple[Session, Token]]:
        while self._generations:
            yield from self.step()
