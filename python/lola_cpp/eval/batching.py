"""Many generations: prompts are read side by side, in passes as large as the device takes, and answered together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from .._core import UsageError
from ..batch import Batch
from ..options import GenerationOptions
from ..passes import advance
from ..session import Session

Key = TypeVar("Key")


@dataclass(frozen=True)
class Job(Generic[Key]):
    """A prompt to go on from; key is the caller's. The session is opened when its turn comes."""

    key: Key
    open: Callable[[], Session]
    tokens: Sequence[int]
    options: GenerationOptions


def generate_each(jobs: Iterable[Job[Key]], *, active: int) -> Iterator[tuple[Job[Key], str, Session]]:
    """Each job with its text and its session, as they end; at most `active` sessions are open at a time."""
    if active < 1:
        raise UsageError(f"active: found {active}, wanted 1 or more")
    batch, waiting = Batch(), iter(jobs)
    running: dict[int, tuple[Job[Key], list[str]]] = {}
    while True:
        if len(batch) <= active // 2:  # seldom, so that many prompts are read together
            fresh = [(job.open(), job) for job in islice(waiting, active - len(batch))]
            for session, job in fresh:
                batch.add(session, job.tokens, **job.options)
                running[id(session)] = job, []
            advance([session for session, _ in fresh])
        if len(batch) == 0:
            return
        for session, token in batch.step():
            job, texts = running[id(session)]
            texts.append(token.text)
            if token.finish_reason is not None:
                del running[id(session)]
                yield job, "".join(texts), session
