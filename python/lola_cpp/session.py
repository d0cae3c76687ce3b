"""One conversation."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import _core
from .embedding import Pool, Pooling
from .generation import Generation
from .grammar import Constraint, Grammar
from .history import PROMPT_SPACING, History
from .passes import Progress, Use, advance
from .token_stream import TokenStream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .model import Model
    from .options import GenerationOptions, SessionOptions

_GENERATION_STEPS = (
    "max_tokens",
    "stop",
    "stop_at_end",
    "top_logprobs",
    "logits_processors",
    "stopping_criteria",
)  # of GenerationOptions, what is neither the sampler's nor the grammar's


class Session:
    """A model's memories of one conversation; made by Model.session. One thread uses it at a time.

    With LoLA attention its memory is the same at any length. fork() gives an independent copy, save() a file.
    """

    def __init__(self, model: Model, core: _core.Session, *, rewind_budget: int | None = None) -> None:
        self.model = model
        self.pending: list[int] = []  # sampled, but not yet through the model
        self.sampler: _core.Sampler | None = None  # of the latest generation; saved and forked with the session
        self.constraint: Constraint | None = None  # likewise
        self._core = core
        self._history = None if rewind_budget is None else History(core, rewind_budget)
        self._in_use = threading.RLock()

    @property
    def position(self) -> int:
        """Tokens seen, prompt and generated."""
        return self._core.position + len(self.pending)

    @property
    def memory_bytes(self) -> int:
        """Bytes of its memories: of LoLA layers the same at any length, of softmax layers the pages taken so far."""
        return self._core.memory_bytes

    @property
    def history_bytes(self) -> int:
        """Bytes of the copies kept for rewinding; a fork shares those from before it."""
        return 0 if self._history is None else self._history.copy_bytes

    @property
    def config(self) -> SessionOptions:
        return self._core.config

    @property
    def tokens(self) -> list[int] | None:
        """Ids of the tokens seen, from where its history begins; None where it keeps none."""
        if self._history is None:
            return None
        return [*self._history.tokens(self._history.start, self._history.end), *self.pending]

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
        progress: Progress | None = None,
        **options: Unpack[GenerationOptions],
    ) -> TokenStream:
        """Reads a prompt, then streams tokens; see Token, GenerationOptions and TokenStream.

        progress is called as in append, while the prompt is read.
        """
        return TokenStream(self.start(prompt, **options), progress)

    def start(self, prompt: str | Sequence[int] = (), **options: Unpack[GenerationOptions]) -> Generation:
        """A generation to be stepped by its owner (a Batch); arguments as in generate."""
        own: dict[str, Any] = dict(options)
        grammar, sampler = own.pop("grammar", None), own.pop("sampler", None)
        steps = {name: own.pop(name) for name in _GENERATION_STEPS if name in own}
        if sampler is None:
            sampler = _core.Sampler(**own)
        elif own:
            raise _core.UsageError(f"sampler: found together with {', '.join(own)}, wanted one or the other")
        with self.used_by_this_thread():
            tokens = self._tokens(prompt)
            if isinstance(grammar, Grammar):
                grammar = Constraint(grammar, self.model, start=self.position + len(tokens))
            generation = Generation(self, tokens, sampler, grammar, **steps)
            sampler.accept(tokens)
            self.pending.extend(tokens)
            self.sampler, self.constraint = sampler, grammar
        return generation

    def read_pending(self, progress: Progress | None = None) -> None:
        """Takes what is pending through the model; progress as in append."""
        advance([self], progress)

    def sample(
        self, sampler: _core.Sampler, *, top_logprobs: int = 0, adjusted: NDArray[np.float32] | None = None
    ) -> tuple[int, float, list[tuple[int, float]]]:
        """Chooses a token from the logits: its id, its log-probability, the most likely tokens with theirs.

        adjusted  [vocabulary] to choose from in place of the logits; the log-probabilities stay the model's
        """
        if self.pending:
            advance([self])
        return self._core.sample(sampler, top_logprobs, adjusted)

    def score(self, text: str | Sequence[int], *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Reads tokens like append; returns the log-probability of each given all before it.

        The first is NaN in a session that has seen nothing. What an exception (Ctrl-C, say) keeps from being read is
        dropped.
        """
        with self.used_by_this_thread():
            tokens = self._tokens(text)
            advance([self])
            return self._read(self._core.score, tokens, progress)

    def embed(
        self, text: str | Sequence[int], *, pooling: Pooling = "mean", progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Reads tokens like append; returns their hidden states after the final norm, which the output matrix sees.

        pooling  "mean" and "last" give [dim], "none" gives [tokens, dim]

        What an exception (Ctrl-C, say) keeps from being read is dropped.
        """
        pool = Pool(pooling)
        with self.used_by_this_thread():
            tokens = self._tokens(text)
            advance([self])
            for begin in range(0, len(tokens), PROMPT_SPACING):
                part = tokens[begin : begin + PROMPT_SPACING]
                pool.add(self._read(self._core.embed, part, None))
                if progress is not None:
                    progress(begin + len(part))
        return pool.result()

    def fork(self) -> Session:
        """An independent copy that continues bit for bit as this one would."""
        copy = Session(self.model, self._core.fork())
        copy._take_beside(self)
        return copy

    def spill(self) -> None:
        """Moves its memories to host memory and frees the GPU's, those of its history too. The next use restores them.

        What is restored continues bit for bit. DeviceError, on the next use, where the GPU has no room by then.
        """
        with self.used_by_this_thread():
            self._core.spill()
            if self._history is not None:
                self._history.spill()

    @property
    def spilled(self) -> bool:
        return self._core.spilled

    def snapshot(self) -> Snapshot:
        """All that the continuation depends on, to be restored any number of times. It takes memory_bytes."""
        return Snapshot(self.fork())

    def restore(self, snapshot: Snapshot) -> None:
        """Goes to a snapshot, of this or another session of the model; continues from it bit for bit."""
        taken = snapshot.session()
        if taken.model is not self.model:
            raise _core.UsageError("restore: the snapshot is of another model")
        with self.used_by_this_thread():
            self._core = taken._core
            self._take_beside(taken)

    def rewind(self, position: int) -> None:
        """Goes back to where `position` tokens had been seen, from the nearest copy before it and a replay.

        For a session made with a rewind_budget. A grammar's constraint is taken back too; the sampler is dropped, as
        its draws cannot be undone. UsageError for a position before the history or after the session's.
        """
        with self.used_by_this_thread():
            history = self._history
            if history is None:
                raise _core.UsageError("rewind: the session keeps no history; make it with rewind_budget")
            if not history.start <= position <= self.position:
                raise _core.UsageError(f"rewind: found {position}, wanted {history.start} to {self.position}")
            unread = position == self._core.position > history.start and not self._core.has_logits
            if position < self._core.position or unread:
                self._core, self.pending = history.rewound(self.model, self._core, position)
            else:
                del self.pending[position - self._core.position :]
            self.sampler = None
            if self.constraint is not None and self.constraint.start <= position:
                self.constraint.rewind(position)
            else:
                self.constraint = None
            advance([self])

    def keep_history(self, rewind_budget: int, tokens: Sequence[int]) -> None:
        """Makes a session whose tokens the caller knows, all of them, one that can be rewound."""
        self._history = History(self._core, rewind_budget, tokens)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all that the continuation depends on, for Model.load_session. The file appears whole or not at all.

        It does not hold the history: a loaded session can be rewound to where it was saved and no further.
        """
        extra = {
            "pending": self.pending,
            "sampler": None if self.sampler is None else self.sampler.save().hex(),
            "constraint": None if self.constraint is None else self.constraint.save(),
        }
        self._core.save(os.fspath(path), json.dumps(extra).encode())

    @classmethod
    def from_saved(
        cls, model: Model, core: _core.Session, extra: bytes, *, source: str, rewind_budget: int | None
    ) -> Session:
        """Puts a loaded session together; `extra` is what save wrote beside the memories."""
        session = cls(model, core, rewind_budget=rewind_budget)
        try:
            fields = json.loads(extra)
            pending, sampler = fields["pending"], fields["sampler"]
            constraint = fields.get("constraint")  # files of version 0.1.0 have none
            if not all(type(token) is int and 0 <= token < model.info.vocabulary for token in pending):
                raise ValueError("pending: wanted a list of token ids")
            session.pending = list(pending)
            if sampler is not None:
                session.sampler = _core.Sampler.load(bytes.fromhex(sampler))
            if constraint is not None:
                session.constraint = Constraint.load(model, constraint)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _core.FormatError(f"{source}: state.extra is not what save() writes: {error}") from error
        return session

    def _take_beside(self, other: Session) -> None:
        """All of another session but its memories, as copies."""
        self.pending = list(other.pending)
        self.sampler = None if other.sampler is None else _core.Sampler.load(other.sampler.save())
        self.constraint = None if other.constraint is None else other.constraint.copy()
        self._history = None if other._history is None else other._history.branch()

    def used_by_this_thread(self) -> Use:
        """UsageError while another thread uses the session."""
        return Use([self])

    def next_part(self, chunk: int | None) -> list[int]:
        """The pending tokens up to the next position divisible by `chunk`, or to where its history wants a copy."""
        size = chunk or (PROMPT_SPACING if self._history is not None else None)
        return self.pending[: None if size is None else size - self._core.position % size]

    def _keep_copy(self, *, prompt: bool) -> None:
        if self._history is not None:
            self._history.keep_copy(self._core, prompt=prompt)

    def _read(
        self,
        read: Callable[[Sequence[int], Progress | None], NDArray[np.float32]],
        tokens: list[int],
        progress: Progress | None,
    ) -> NDArray[np.float32]:
        """A reading by the core, which may end early with an exception."""
        begin = self._core.position
        try:
            return read(tokens, progress)
        finally:
            if self._history is not None:
                self._history.tokens_read(tokens[: self._core.position - begin])

    def _tokens(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            prompt = self.model.tokenize(prompt, add_special=self.position == 0)
        tokens = [int(token) for token in prompt]
        self._core.check_tokens(self.pending + tokens)
        return tokens


class Snapshot:
    """A session's memories and position at one moment; immutable. Made by Session.snapshot."""

    def __init__(self, session: Session) -> None:
        self._session = session  # never advanced
        self.position = session.position
        self.memory_bytes = session.memory_bytes

    def session(self) -> Session:
        """A new session that continues from here."""
        return self._session.fork()
