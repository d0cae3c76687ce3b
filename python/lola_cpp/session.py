"""One conversation."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from . import _core
from .generation import Generation, Token

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .model import Model
    from .options import SamplingOptions, SessionOptions

Progress = Callable[[int], None]


class Session:
    """A model's memories of one conversation; made by Model.session. One thread uses it at a time.

    With LoLA attention its memory is the same at any length. fork() gives an independent copy, save() a file.
    """

    def __init__(self, model: Model, core: _core.Session) -> None:
        self.model = model
        self.pending: list[int] = []  # sampled, but not yet through the model
        self.sampler: _core.Sampler | None = None  # of the latest generation; saved and forked with the session
        self._core = core
        self._in_use = threading.RLock()

    @property
    def position(self) -> int:
        """Tokens seen, prompt and generated."""
        return self._core.position + len(self.pending)

    @property
    def memory_bytes(self) -> int:
        """Bytes of its memories; they do not depend on how many tokens it has seen."""
        return self._core.memory_bytes

    @property
    def config(self) -> SessionOptions:
        return self._core.config

    @property
    def logits(self) -> NDArray[np.float32]:
        """[vocabulary] after the last token, a copy; empty before the first."""
        advance([self])
        return self._core.logits

    def append(self, prompt: str | Sequence[int], *, progress: Progress | None = None) -> None:
        """Reads a prompt: a text (begin-of-text is added at position 0 where the model wants it) or token ids.

        progress is called between passes of at most 512 tokens with the tokens done. Ctrl-C takes effect there too; the
        rest of the prompt then waits in `pending`, which the next call reads first. Raises UsageError, and reads
        nothing, for ids out of range and where the KV cache of softmax layers has no room for the prompt.
        """
        with self.used_by_this_thread():
            self.pending.extend(self._tokens(prompt))
            advance([self], progress)

    def generate(
        self,
        prompt: str | Sequence[int] = (),
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        stop_at_end: bool = True,
        top_logprobs: int = 0,
        sampler: _core.Sampler | None = None,
        progress: Progress | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[Token]:
        """Reads a prompt, then streams tokens; see Token and SamplingOptions.

        max_tokens    None: until end of text, without limit
        stop          generation ends before these strings, across token borders too; the session has seen their tokens
        stop_at_end   False: goes on after end-of-text tokens
        top_logprobs  how many of the most likely tokens to report with each
        sampler       goes on with this one (of a loaded session, say) in place of sampling options
        progress      as in append, while the prompt is read
        """
        generation = self.start(
            prompt,
            max_tokens=max_tokens,
            stop=stop,
            stop_at_end=stop_at_end,
            top_logprobs=top_logprobs,
            sampler=sampler,
            **sampling,
        )
        return self._stream(generation, progress)

    def start(
        self,
        prompt: str | Sequence[int] = (),
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        stop_at_end: bool = True,
        top_logprobs: int = 0,
        sampler: _core.Sampler | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """A generation to be stepped by its owner (a Batch); arguments as in generate."""
        if sampler is None:
            sampler = _core.Sampler(**sampling)
        elif sampling:
            raise _core.UsageError(f"sampler: found together with {', '.join(sampling)}, wanted one or the other")
        with self.used_by_this_thread():
            tokens = self._tokens(prompt)
            generation = Generation(
                self,
                sampler,
                max_tokens=max_tokens,
                stop=stop,
                stop_at_end=stop_at_end,
                top_logprobs=top_logprobs,
            )
            sampler.accept(tokens)
            self.pending.extend(tokens)
            self.sampler = sampler
        return generation

    def sample(self, sampler: _core.Sampler, *, top_logprobs: int = 0) -> tuple[int, float, list[tuple[int, float]]]:
        """Chooses a token from the logits: its id, its log-probability, the most likely tokens with theirs."""
        advance([self])
        return self._core.sample(sampler, top_logprobs)

    def score(self, text: str | Sequence[int], *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Reads tokens like append; returns the log-probability of each given all before it.

        The first is NaN in a session that has seen nothing. What an exception (Ctrl-C, say) keeps from being read is
        dropped.
        """
        with self.used_by_this_thread():
            tokens = self._tokens(text)
            advance([self])
            return self._core.score(tokens, progress)

    def fork(self) -> Session:
        """An independent copy that continues bit for bit as this one would."""
        copy = Session(self.model, self._core.fork())
        copy.pending = list(self.pending)
        if self.sampler is not None:
            copy.sampler = _core.Sampler.load(self.sampler.save())
        return copy

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all that the continuation depends on, for Model.load_session. The file appears whole or not at all."""
        sampler = None if self.sampler is None else self.sampler.save().hex()
        extra = {"pending": self.pending, "sampler": sampler}
        self._core.save(os.fspath(path), json.dumps(extra).encode())

    @classmethod
    def restore(cls, model: Model, core: _core.Session, extra: bytes, *, source: str) -> Session:
        """Puts a loaded session together; `extra` is what save wrote beside the memories."""
        session = cls(model, core)
        try:
            fields = json.loads(extra)
            pending, sampler = fields["pending"], fields["sampler"]
            if not all(type(token) is int and 0 <= token < model.info.vocabulary for token in pending):
                raise ValueError("pending: wanted a list of token ids")
            session.pending = list(pending)
            if sampler is not None:
                session.sampler = _core.Sampler.load(bytes.fromhex(sampler))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _core.FormatError(f"{source}: state.extra is not what save() writes: {error}") from error
        return session

    @contextmanager
    def used_by_this_thread(self) -> Iterator[None]:
        """UsageError while another thread uses the session."""
        if not self._in_use.acquire(blocking=False):
            raise _core.UsageError("session: another thread is using it; one conversation is one thread at a time")
        try:
            yield
        finally:
            self._in_use.release()

    def _stream(self, generation: Generation, progress: Progress | None) -> Iterator[Token]:
        while not generation.finished:
            advance([self], progress)
            yield generation.sample()

    def _tokens(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            prompt = self.model.tokenize(prompt, add_special=self.position == 0)
        tokens = [int(token) for token in prompt]
        self._core.check_tokens(self.pending + tokens)
        return tokens


def advance(sessions: Sequence[Session], progress: Progress | None = None) -> None:
    """Takes what is pending in each session through the model, all of them in the same passes over the weights.

    What an exception (Ctrl-C, say) keeps from being read stays pending.
    """
    with ExitStack() as stack:
        for session in sessions:
            stack.enter_context(session.used_by_this_thread())
        waiting = [session for session in sessions if session.pending]
        positions = [session._core.position for session in waiting]

        def drop_what_was_read() -> None:
            for i, session in enumerate(waiting):
                del session.pending[: session._core.position - positions[i]]
                positions[i] = session._core.position

        def after_pass(done: int) -> None:
            drop_what_was_read()
            if progress is not None:
                progress(done)

        try:
            _core.advance([(session._core, session.pending) for session in waiting], after_pass)
        finally:
            drop_what_was_read()
