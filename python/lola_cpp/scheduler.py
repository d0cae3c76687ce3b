"""Serves many users at once: requests from threads and coroutines share passes over the weights."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from ._core import LolaError, UsageError
from .batch import Batch
from .generation import Generation, Token
from .passes import advance
from .session import Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .model import Model
    from .options import GenerationOptions


class BusyError(LolaError, RuntimeError):
    """The scheduler has as many waiting requests as it may hold; try again later."""


class Request(Iterator[Token], AsyncIterator[Token]):
    """One generation in a Scheduler: its tokens, for `for` and `async for`, from any thread or event loop.

    session        belongs to the scheduler until the request has ended, and is free to be used after that
    finish_reason  None while it runs, then "stop", "length" or "cancelled"
    """

    def __init__(self, scheduler: Scheduler, generation: Generation) -> None:
        self.session: Session = generation.session
        self.finish_reason: Literal["stop", "length", "cancelled"] | None = None
        self.generation = generation
        self.cancelled = False
        self.error: BaseException | None = None
        self._scheduler = scheduler
        self._tokens: deque[Token] = deque()
        self._changed = threading.Condition()
        self._wakers: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def cancel(self) -> None:
        """Ends it within one pass, without another token."""
        self.cancelled = True
        self._scheduler.wake()

    def result(self) -> str:
        """Waits for the end; the whole text."""
        return "".join([token.text for token in self])

    def __iter__(self) -> Request:
        return self

    def __aiter__(self) -> Request:
        return self

    def __next__(self) -> Token:
        with self._changed:
            self._changed.wait_for(lambda: self._tokens or self.ended)
            token = self._take()
        if token is None:
            raise StopIteration
        self._scheduler.wake()  # it may have paused for this reader
        return token

    async def __anext__(self) -> Token:
        event = asyncio.Event()
        waker = (asyncio.get_running_loop(), event)
        while True:
            with self._changed:
                if self._tokens or self.ended:
                    token = self._take()
                    break
                event.clear()
                self._wakers.append(waker)
            await event.wait()
        if token is None:
            raise StopAsyncIteration
        self._scheduler.wake()
        return token

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def unread(self) -> int:
        """Tokens that its reader has not taken yet."""
        return len(self._tokens)

    def deliver(self, token: Token) -> None:
        """From the scheduler's thread."""
        with self._changed:
            self._tokens.append(token)
            self.finish_reason = token.finish_reason
            self._notify()

    def end(self, error: BaseException | None) -> None:
        """From the scheduler's thread: no more tokens come. Without an error it was cancelled."""
        with self._changed:
            self.error = error
            self.finish_reason = "cancelled" if error is None else None
            self._notify()

    def _take(self) -> Token | None:
        if self._tokens:
            return self._tokens.popleft()
        if self.error is not None:
            raise self.error
        return None

    def _notify(self) -> None:
        self._changed.notify_all()
        wakers, self._wakers = self._wakers, []
        for loop, event in wakers:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # the loop was closed: nobody waits there any more
                continue


class Scheduler:
    """Runs generations of one model on a thread of its own. Any thread or coroutine may submit.

        with Scheduler(model) as scheduler:
            request = scheduler.submit("Once upon a time", max_tokens=100)
            for token in request: ...             # or: async for token in request

    Requests start in the order of their arrival. Each step takes one token of all that decode and a bounded part of the
    prompts (see Batch), so nobody waits longer than one pass for the next token. What a session gets does not depend on
    who shares its passes, by not a bit: prompts are cut at fixed positions, and products are summed in one order.

    max_active     sessions that take part at a time; the others wait
    max_waiting    requests that may wait; one more raises BusyError
    buffer_tokens  a request whose reader is this far behind pauses until the reader has caught up
    chunk_tokens, prefill_tokens  see Batch
    """

    def __init__(
        self,
        model: Model,
        *,
        max_active: int = 64,
        max_waiting: int = 1024,
        buffer_tokens: int = 1024,
        chunk_tokens: int = 128,
        prefill_tokens: int | None = 128,
    ) -> None:
        for name, value in (("max_active", max_active), ("buffer_tokens", buffer_tokens)):
            if value < 1:
                raise UsageError(f"{name}: found {value}, wanted 1 or more")
        self.model = model
        self._max_active, self._max_waiting, self._buffer_tokens = max_active, max_waiting, buffer_tokens
        self._chunk = chunk_tokens
        self._batch = Batch(chunk_tokens=chunk_tokens, prefill_tokens=prefill_tokens)
        self._waiting: deque[Request] = deque()
        self._active: dict[int, Request] = {}  # by the id of the session
        self._paused: set[int] = set()
        self._changed = threading.Condition()
        self._woken = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="lola-scheduler", daemon=True)
        self._thread.start()

    def submit(
        self, prompt: str | Sequence[int] = (), *, session: Session | None = None, **options: Unpack[GenerationOptions]
    ) -> Request:
        """Queues a generation; arguments as in Session.generate.

        session  continues this one; None makes a new one with the model's defaults

        Raises BusyError where too many wait, and what Session.generate raises.
        """
        if session is not None and session.model is not self.model:
            raise UsageError("submit: the session is of another model")
        with self._changed:
            if self._closed:
                raise UsageError("submit: the scheduler is closed")
            if len(self._waiting) >= self._max_waiting:
                raise BusyError(f"submit: {len(self._waiting)} requests wait already, wanted fewer")
            if session is not None and any(r.session is session for r in (*self._waiting, *self._active.values())):
                raise UsageError("submit: the session has a request that has not ended")
            session = self.model.session() if session is None else session
            request = Request(self, session.start(prompt, **options))
            if request.generation.finished:
                request.finish_reason = "length"
                return request
            self._waiting.append(request)
        self.wake()
        return request

    def close(self) -> None:
        """Cancels what runs or waits, and ends the thread."""
        with self._changed:
            self._closed = True
            for request in (*self._waiting, *self._active.values()):
                request.cancelled = True
        self.wake()
        self._thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Requests that have not ended."""
        with self._changed:
            return len(self._waiting) + len(self._active)

    def wake(self) -> None:
        """Something changed that the thread should look at."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._drop_cancelled()
                self._pause_and_resume()
                self._admit()
                idle = len(self._active) == len(self._paused)
                if idle and self._closed:
                    return
                if idle and not self._woken:
                    self._changed.wait()
                self._woken = False
            if not idle:
                self._step()

    def _step(self) -> None:
        try:
            ready = self._batch.advance()
        except Exception:
            ready = self._advance_one_by_one()
        for generation in ready:
            request = self._active[id(generation.session)]
            try:
                token = generation.sample()
            except Exception as error:  # of a processor or a grammar, say: its own affair
                self._leave(request, error)
                continue
            if generation.finished:
                self._leave(request)
            request.deliver(token)

    def _advance_one_by_one(self) -> list[Generation]:
        """After a pass that failed: whoever makes it fail leaves with the error, the others go on."""
        running = [r for key, r in self._active.items() if key not in self._paused]
        for request in running:
            try:
                advance([request.session], chunk=self._chunk)
            except Exception as error:
                self._leave(request, error)
        return [r.generation for r in running if r.error is None and not r.session.pending]

    def _leave(self, request: Request, error: BaseException | None = None) -> None:
        with self._changed:
            self._batch.remove(request.session)
            self._active.pop(id(request.session), None)
            self._paused.discard(id(request.session))
        if error is not None:
            request.end(error)

    def _drop_cancelled(self) -> None:
        for request in [r for r in (*self._waiting, *self._active.values()) if r.cancelled]:
            if id(request.session) in self._active:
                self._leave(request)
            else:
                self._waiting.remove(request)
            request.end(None)

    def _pause_and_resume(self) -> None:
        for key, request in self._active.items():
            if key not in self._paused and request.unread >= self._buffer_tokens:
                self._paused.add(key)
                self._batch.remove(request.session)
            elif key in self._paused and request.unread <= self._buffer_tokens // 2:
                self._paused.discard(key)
                self._batch.join(request.generation)

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self._max_active:
            request = self._waiting.popleft()
            self._active[id(request.session)] = request
            self._batch.join(request.generation)
