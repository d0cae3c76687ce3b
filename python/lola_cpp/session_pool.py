"""Many named sessions of one model: the ones in use on the device, the idle ones in host memory and on disk."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from . import _core
from .session import Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .model import Model
    from .options import SessionOptions


class SessionPool:
    """Sessions by name. Idle ones beyond `memory_bytes` go to files, least recently used first, and come back on use.

        pool = SessionPool(model, "sessions", memory_bytes=1 << 30)
        with pool.use("alice") as session:
            for token in session.generate("Hello"): ...

    After a restart a name finds its session as its last save left it. The folder belongs to one process at a time;
    threads may share the pool.

    memory_bytes  of idle sessions kept in memory, with the copies of their histories
    device_bytes  how much of that may lie on the GPU: the others wait in host memory. None: all of it
    durable       True: a session is saved whenever its use ends, so that a killed process loses nothing but what runs
    options       of new sessions; see SessionOptions

    Raises UsageError while another process has the folder.
    """

    def __init__(
        self,
        model: Model,
        folder: str | os.PathLike[str],
        *,
        memory_bytes: int,
        device_bytes: int | None = None,
        durable: bool = False,
        rewind_budget: int | None = None,
        **options: Unpack[SessionOptions],
    ) -> None:
        for option, value in (("memory_bytes", memory_bytes), ("device_bytes", device_bytes)):
            if value is not None and value < 0:
                raise _core.UsageError(f"{option}: found {value}, wanted 0 or more")
        self.model = model
        self.folder = Path(folder)
        self._memory_bytes = memory_bytes
        self._device_bytes = device_bytes
        self._durable = durable
        self._rewind_budget = rewind_budget
        self._options = options
        self._idle: OrderedDict[str, Session] = OrderedDict()  # least recently used first
        self._unsaved: set[str] = set()  # of the idle: newer than their file
        self._busy: set[str] = set()
        self._changed = threading.Condition()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._owner = FileLock(self.folder / "owner.lock")
        try:
            self._owner.acquire(timeout=0)
        except Timeout:
            raise _core.UsageError(f"{self.folder}: another process has this pool") from None
        for leftover in self.folder.glob("*.tmp"):  # of a process that was killed while it saved
            leftover.unlink()

    @contextmanager
    def use(self, name: str) -> Iterator[Session]:
        """The session of that name, a new one if there is none. Waits while another thread uses it."""
        with self._changed:
            self._changed.wait_for(lambda: name not in self._busy)
            self._busy.add(name)
            session = self._idle.pop(name, None)
        try:
            if session is None:
                session = self._load(name)
            yield session
        finally:
            self._end_use(name, session)

    def forget(self, name: str) -> None:
        """Drops a session, in memory and on disk. Waits while a thread uses it."""
        with self._changed:
            self._changed.wait_for(lambda: name not in self._busy)
            self._idle.pop(name, None)
            self._unsaved.discard(name)
            self._path(name).unlink(missing_ok=True)

    def save(self) -> None:
        """Writes every idle session whose file is older."""
        with self._changed:
            for name in list(self._unsaved):
                self._idle[name].save(self._path(name))
                self._unsaved.discard(name)

    def close(self) -> None:
        """Saves and gives the folder back."""
        self.save()
        with self._changed:
            self._idle.clear()
        self._owner.release()

    def __contains__(self, name: str) -> bool:
        with self._changed:
            return name in self._idle or name in self._busy or self._path(name).exists()

    @property
    def idle_bytes(self) -> int:
        """Memory of the idle sessions, with the copies of their histories."""
        with self._changed:
            return _bytes_of(self._idle.values())

    @property
    def idle_device_bytes(self) -> int:
        """What of that lies on the device."""
        with self._changed:
            return _bytes_of(session for session in self._idle.values() if not session.spilled)

    def _path(self, name: str) -> Path:
        return self.folder / (hashlib.sha256(name.encode()).hexdigest()[:40] + ".state")

    def _load(self, name: str) -> Session:
        path = self._path(name)
        if path.exists():
            return self.model.load_session(path, rewind_budget=self._rewind_budget)
        return self.model.session(rewind_budget=self._rewind_budget, **self._options)

    def _end_use(self, name: str, session: Session | None) -> None:
        try:
            if session is not None and self._durable:
                session.save(self._path(name))
        finally:
            with self._changed:
                self._busy.discard(name)
                if session is not None:
                    self._idle[name] = session
                    if not self._durable:
                        self._unsaved.add(name)
                self._spill()
                self._changed.notify_all()

    def _spill(self) -> None:
        while self.idle_bytes > self._memory_bytes:
            name = next(iter(self._idle))
            if name in self._unsaved:
                self._idle[name].save(self._path(name))
                self._unsaved.discard(name)
            del self._idle[name]
        if self._device_bytes is None:
            return
        on_device = [session for session in self._idle.values() if not session.spilled]
        excess = _bytes_of(on_device) - self._device_bytes
        for session in on_device:
            if excess <= 0:
                return
            session.spill()
            excess -= _bytes_of([session])


def _bytes_of(sessions: Iterable[Session]) -> int:
    return sum(session.memory_bytes + session.history_bytes for session in sessions)
