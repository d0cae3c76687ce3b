"""The tokens of one generation as they come: for `for`, for `async for`, and to be cancelled from another thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Literal

from .generation import Generation, Token, begin_next_steps

if TYPE_CHECKING:
    from .passes import Progress


class Cancelled(Exception):
    """Ends a pass over the prompt from inside; never seen outside."""


class TokenStream(Iterator[Token], AsyncIterator[Token]):
    """What Session.generate returns.

        for token in stream: ...
        async for token in stream: ...      # each token is computed in a thread of the event loop's pool

    cancel() may be called from any thread: the stream ends within one pass over the weights (at most 512 tokens of the
    prompt), without another token. What was not read yet stays in `session.pending`.

    finish_reason  None while it runs, then "stop", "length" or "cancelled"
    """

    def __init__(self, generation: Generation, progress: Progress | None = None) -> None:
        self._generation = generation
        self._progress = progress
        self._cancelled = threading.Event()
        self.finish_reason: Literal["stop", "length", "cancelled"] | None = None
        if generation.finished:
            self.finish_reason = "length"

    def cancel(self) -> None:
        self._cancelled.set()

    def __iter__(self) -> TokenStream:
        return self

    def __aiter__(self) -> TokenStream:
        return self

    def __next__(self) -> Token:
        if (token := self._next()) is None:
            raise StopIteration
        return token

    async def __anext__(self) -> Token:
        step = asyncio.get_running_loop().run_in_executor(None, self._next)
        try:
            token = await asyncio.shield(step)
        except asyncio.CancelledError:
            self.cancel()  # the thread must leave the session before anybody else may use it
            await asyncio.wait([step])
            raise
        if token is None:
            raise StopAsyncIteration
        return token

    def _next(self) -> Token | None:
        if self._generation.finished or self.finish_reason is not None:
            return None
        try:
            self._check_cancelled(0)
            self._generation.session.read_pending(self._check_cancelled)
            self._check_cancelled(0)
        except Cancelled:
            self.finish_reason = "cancelled"
            return None
        begin_next_steps([self._generation])
        token = self._generation.sample()
        self.finish_reason = token.finish_reason
        return token

    def _check_cancelled(self, done: int) -> None:
        if self._cancelled.is_set():
            raise Cancelled
        if done > 0 and self._progress is not None:
            self._progress(done)
