"""Sessions by the tokens they have read, on disk: a prompt starts from the longest prefix that is known already."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from . import _core
from .passes import Progress
from .session import Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .model import Model
    from .options import SessionOptions

_FIRST_MARK = 256  # tokens; stored on the way through a long prompt are the marks 256, 512, 1024, 2048, ...
_STALE_SECONDS = 3600  # a temporary file older than this is of a process that was killed


class PrefixStore:
    """A folder of saved sessions that any number of processes share.

        store = PrefixStore("prefixes", max_bytes=10 << 30)
        session = store.session(model, prompt)  # has read the prompt; only what is new was computed

    An entry is bound to the model's fingerprint, the session's configuration and a SHA-256 of its tokens, appears whole
    or not at all, and carries a checksum; a damaged one is removed and counts as unknown. The least recently used go
    when the folder would exceed `max_bytes`. What an entry costs does not depend on how many tokens it stands for.
    """

    def __init__(self, folder: str | os.PathLike[str], *, max_bytes: int) -> None:
        if max_bytes < 0:
            raise _core.UsageError(f"max_bytes: found {max_bytes}, wanted 0 or more")
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "store.lock")

    def session(
        self,
        model: Model,
        prompt: str | Sequence[int],
        *,
        marks: Sequence[int] = (),
        progress: Progress | None = None,
        rewind_budget: int | None = None,
        **options: Unpack[SessionOptions],
    ) -> Session:
        """A session that has read the prompt, from the longest known prefix on. What it reads anew is stored.

        marks     lengths in tokens at which other prompts are expected to part from this one (the end of a system
                  prompt, say). Stored besides: the whole prompt, and the lengths 256, 512, 1024, ... on the way
        progress  as in Session.append, with the tokens that were read anew
        """
        tokens = model.tokenize(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        session = self.longest(model, tokens, rewind_budget=rewind_budget, **options)
        if session is None:
            session = model.session(rewind_budget=rewind_budget, **options)
        start = session.position
        stops = sorted({m for m in (*usual_marks(len(tokens)), *marks, len(tokens)) if start < m <= len(tokens)})
        begin = start
        for stop in stops:
            session.append(tokens[begin:stop], progress=_from(begin - start, progress))
            self.put(session, tokens[:stop])
            begin = stop
        return session

    def longest(
        self,
        model: Model,
        tokens: Sequence[int],
        *,
        longer_than: int = 0,
        rewind_budget: int | None = None,
        **options: Unpack[SessionOptions],
    ) -> Session | None:
        """A session that has read the longest known prefix of the tokens; None where none has more than `longer_than`.

        With a rewind_budget it can be rewound to any position, as one that has read the tokens itself.
        """
        family = self._family(model.info.fingerprint, model.session(**options).config)
        lengths = {length for length in self._lengths(family) if longer_than < length <= len(tokens)}
        for length, digest in reversed(list(_digests(tokens, sorted(lengths)))):
            path = self._path(family, length, digest)
            try:
                session = model.load_session(path)
                os.utime(path)
            except FileNotFoundError:
                continue
            except (_core.FormatError, _core.UnsupportedError):
                _remove(path)
                continue
            if session.position == length and not session.pending:
                if rewind_budget is not None:
                    session.keep_history(rewind_budget, tokens[:length])
                return session
        return None

    def put(self, session: Session, tokens: Sequence[int]) -> None:
        """Stores a session that has read exactly these tokens, unless it is known. UsageError on another count."""
        if session.position != len(tokens) or session.pending:
            raise _core.UsageError(f"tokens: found {len(tokens)}, wanted the {session.position} the session has read")
        family = self._family(session.model.info.fingerprint, session.config)
        [(length, digest)] = _digests(tokens, [len(tokens)])
        path = self._path(family, length, digest)
        if path.exists() or session.memory_bytes > self.max_bytes:
            return
        session.save(path)
        with self._lock:
            self._evict()

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size, _ in _files(self.folder, "*.state"))

    def _evict(self) -> None:
        """Removes the least recently used. A process that is loading one has it open and is not disturbed."""
        for path, _, last_used in _files(self.folder, "*.tmp"):
            if last_used < time.time() - _STALE_SECONDS:
                _remove(path)
        files = _files(self.folder, "*.state")
        total = sum(size for _, size, _ in files)
        for path, size, _ in sorted(files, key=lambda file: file[2]):
            if total <= self.max_bytes:
                return
            _remove(path)
            total -= size

    def _lengths(self, family: str) -> Iterator[int]:
        pattern = re.compile(rf"{family}-([0-9]{{1,18}})-[0-9a-f]{{40}}\.state")
        for entry in os.scandir(self.folder):
            if found := pattern.fullmatch(entry.name):
                yield int(found[1])

    def _path(self, family: str, length: int, digest: str) -> Path:
        return self.folder / f"{family}-{length}-{digest}.state"

    @staticmethod
    def _family(fingerprint: str, config: SessionOptions) -> str:
        """Names all that must be equal for a session to stand in for another."""
        text = json.dumps([fingerprint, config], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def _from(begin: int, progress: Progress | None) -> Progress | None:
    """Progress of a part, told as progress of the whole."""
    return None if progress is None else lambda done: progress(begin + done)


def usual_marks(length: int) -> Iterator[int]:
    """Where a prompt of that length is stored on the way."""
    mark = _FIRST_MARK
    while mark < length:
        yield mark
        mark *= 2


def _digests(tokens: Sequence[int], lengths: Sequence[int]) -> Iterator[tuple[int, str]]:
    """(length, SHA-256 of that many tokens) of ascending lengths, in one pass."""
    hasher, begin = hashlib.sha256(), 0
    for length in lengths:
        hasher.update(array("q", tokens[begin:length]).tobytes())
        begin = length
        yield length, hasher.hexdigest()[:40]


def _remove(path: Path) -> None:
    """Unless another process was quicker, or has it open on a system that then refuses."""
    with suppress(FileNotFoundError, PermissionError):
        path.unlink()


def _files(folder: Path, pattern: str) -> list[tuple[Path, int, float]]:
    """(path, bytes, time of last use); those that another process removes meanwhile are left out."""
    found = []
    for path in folder.glob(pattern):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.append((path, status.st_size, status.st_mtime))
    return found
