"""Several sessions advanced together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .generation import Generation, Token
from .session import Progress, Session, advance

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import SamplingOptions


class Batch:
    """Generations of several sessions of one model, prefilling or decoding, in shared passes over the weights.

    Reading the weights is most of the cost of a token, so tokens of many sessions cost little more than those of one.

        batch = Batch()
        for prompt in prompts:
            batch.add(model.session(), prompt, max_tokens=100)
        for session, token in batch:
            ...
    """

    def __init__(self) -> None:
        self._generations: list[Generation] = []

    def add(
        self,
        session: Session,
        prompt: str | Sequence[int] = (),
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        stop_at_end: bool = True,
        top_logprobs: int = 0,
        **sampling: Unpack[SamplingOptions],
    ) -> None:
        """Lets a session join at the next step; arguments as in Session.generate."""
        self._generations.append(
            session.start(
                prompt,
                max_tokens=max_tokens,
                stop=stop,
                stop_at_end=stop_at_end,
                top_logprobs=top_logprobs,
                **sampling,
            )
        )

    def remove(self, session: Session) -> None:
        """Lets a session leave; it stays usable where it is."""
        self._generations = [g for g in self._generations if g.session is not session]

    def __len__(self) -> int:
        return len(self._generations)

    def step(self, *, progress: Progress | None = None) -> list[tuple[Session, Token]]:
        """Reads what each session has pending and samples one token for each. Those that finish leave."""
        self._generations = [g for g in self._generations if not g.finished]
        advance([g.session for g in self._generations], progress)
        tokens = [(g.session, g.sample()) for g in self._generations]
        self._generations = [g for g in self._generations if not g.finished]
        return tokens

    def __iter__(self) -> Iterator[tuple[Session, Token]]:
        while self._generations:
            yield from self.step()
