"""One side of the comparison: a process that answers requests, one line of JSON each."""

from __future__ import annotations

import json
import subprocess
from typing import Any


class Side:
    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: str, **arguments: Any) -> Any:
        """What the method `request` of the other process returns."""
        if self._process is None:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([request, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{' '.join(self._command)} ended during {request}")
        return json.loads(answer)

    def fresh(self) -> Side:
        """The same in a process of its own."""
        return Side(self._command)

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None
