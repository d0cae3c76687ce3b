"""A competing process that keeps one core busy."""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType


class BusyCore:
    """Spins on one core while the block runs: its number, 'any' for wherever the system puts it, None for no load."""

    def __init__(self, core: str | None) -> None:
        self._core = core
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> None:
        if self._core is None:
            return
        self._process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        if self._core != "any":
            os.sched_setaffinity(self._process.pid, {int(self._core)})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
