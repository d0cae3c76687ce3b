"""Caches for Llama.set_cache: a prompt starts from the longest beginning of it that was read before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from ..model import Model, PathLike
from ..prefix_store import PrefixStore
from ..session import Session


class BaseLlamaCache(ABC):
    """capacity_bytes: of the sessions kept; the least recently used go first."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes

    @property
    @abstractmethod
    def cache_size(self) -> int:
        """Bytes in use."""

    @abstractmethod
    def longest(
        self, model: Model, tokens: Sequence[int], options: Mapping[str, Any], *, longer_than: int
    ) -> Session | None:
        """A session of the model, with its tokens as history, that has read more than so many of these and no other."""

    @abstractmethod
    def put(self, session: Session) -> None:
        """Keeps a copy of a session that knows its tokens from the beginning."""


class LlamaRAMCache(BaseLlamaCache):
    """In memory."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)
        self._sessions: OrderedDict[tuple[int, ...], Session] = OrderedDict()  # least recently used first

    @property
    def cache_size(self) -> int:
        return sum(session.memory_bytes for session in self._sessions.values())

    def longest(
        self, model: Model, tokens: Sequence[int], options: Mapping[str, Any], *, longer_than: int
    ) -> Session | None:
        known = [
            key
            for key, session in self._sessions.items()
            if len(key) > longer_than and session.model is model and list(key) == list(tokens[: len(key)])
        ]
        if not known:
            return None
        key = max(known, key=len)
        self._sessions.move_to_end(key)
        session = self._sessions[key].fork()
        session.keep_history(options["rewind_budget"], key)
        return session

    def put(self, session: Session) -> None:
        copy, key = session.fork(), tuple(session.tokens or ())
        copy.keep_history(0, key)  # without the copies that the other keeps for rewinding
        self._sessions[key] = copy
        self._sessions.move_to_end(key)
        while self.cache_size > self.capacity_bytes:
            self._sessions.popitem(last=False)


LlamaCache = LlamaRAMCache


class LlamaDiskCache(BaseLlamaCache):
    """In a folder, a PrefixStore: processes share it, and it outlives them."""

    def __init__(self, cache_dir: PathLike = ".cache/llama_cache", capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)
        self._store = PrefixStore(cache_dir, max_bytes=capacity_bytes)

    @property
    def cache_size(self) -> int:
        return self._store.total_bytes

    def longest(
        self, model: Model, tokens: Sequence[int], options: Mapping[str, Any], *, longer_than: int
    ) -> Session | None:
        return self._store.longest(model, tokens, longer_than=longer_than, **options)

    def put(self, session: Session) -> None:
        self._store.put(session, session.tokens or ())
