"""Sessions taken through the model together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from . import _core

if TYPE_CHECKING:
    from .session import Session

Progress = Callable[[int], None]


class Use:
    """Sessions that this thread uses until it leaves; UsageError while another uses one of them."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self._sessions = sessions
        self._taken = 0

    def __enter__(self) -> None:
        for session in self._sessions:
            if not session._in_use.acquire(blocking=False):
                self.__exit__()
                raise _core.UsageError("session: another thread is using it; one conversation is one thread at a time")
            self._taken += 1

    def __exit__(self, *error: object) -> None:
        for session in self._sessions[: self._taken]:
            session._in_use.release()


def advance(sessions: Sequence[Session], progress: Progress | None = None, *, chunk: int | None = None) -> None:
    """Takes what is pending in each session through the model, all of them in the same passes over the weights.

    What an exception (Ctrl-C, say) keeps from being read stays pending.

    chunk  read of each session only up to the next position divisible by this
    """
    with Use(sessions):
        total = 0

        def after_pass(done: int) -> None:
            if progress is not None:
                progress(total + done)

        while parts := [(session, session.next_part(chunk)) for session in sessions if session.pending]:
            _advance_once(parts, after_pass if progress is not None else None)
            total += sum(len(part) for _, part in parts)
            if chunk is not None:
                break
        _core.wait([session._core for session in sessions])  # for what was submitted


def submit(sessions: Sequence[Session]) -> None:
    """Takes the one token that is pending in each session through the model, and does not wait for a device that works
    behind the host.

    A session that has no room, say, keeps what is pending: the next advance() says so.
    """
    with Use(sessions):
        before = [session._core.position for session in sessions]
        try:
            _core.submit([(session._core, session.pending[0]) for session in sessions])
        except _core.LolaError:
            return
        finally:
            _drop_what_was_read(sessions, before)
        for session in sessions:
            session._keep_copy(prompt=False)


def _advance_once(parts: Sequence[tuple[Session, list[int]]], progress: Progress | None) -> None:
    sessions = [session for session, _ in parts]
    before = [session._core.position for session in sessions]

    def after_pass(done: int) -> None:
        _drop_what_was_read(sessions, before)
        if progress is not None:
            progress(done)

    try:
        _core.advance([(session._core, part) for session, part in parts], None if progress is None else after_pass)
    finally:
        _drop_what_was_read(sessions, before)
    for session, part in parts:
        session._keep_copy(prompt=len(part) > 1)


def _drop_what_was_read(sessions: Sequence[Session], before: list[int]) -> None:
    """What the sessions read since they were at `before`, which then says where they are, is not pending any more."""
    for i, session in enumerate(sessions):
        now = session._core.position
        count = now - before[i]
        if count == 0:
            continue
        if session._history is not None:
            session._history.tokens_read(session.pending[:count])
        del session.pending[:count]
        before[i] = now
