"""Renders templates that nobody vouches for in a process of their own.

minijinja's fuel counts steps, and one step may double a string: forty of them take all memory there is. Here they take
what the process may have, and it is started again for the next template.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import _template_engine as engine
from ._core import UnsupportedError, UsageError

SECONDS = 10  # for one template


class TemplateProcess:
    """Started with its first template; any thread may use it, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, source: str) -> None:
        """TemplateFault where the source is no template."""
        self._ask({"source": source, "context": None})

    def render(self, source: str, context: Mapping[str, Any]) -> str:
        """Errors as those of _template_engine.render; UsageError for a context that JSON cannot hold."""
        return self._ask({"source": source, "context": context})

    def close(self) -> None:
        with self._lock:
            self._end()

    def _ask(self, request: Mapping[str, Any]) -> str:
        try:
            line = json.dumps(request, default=_plain).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"chat: wanted what JSON can hold: {error}") from None
        with self._lock:
            answer = self._exchange(line)
        if "refusal" in answer:
            raise engine.TemplateRefusal(answer["refusal"])
        if "fault" in answer:
            raise engine.TemplateFault(answer["fault"])
        return answer["text"]

    def _exchange(self, line: bytes) -> dict[str, str]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(SECONDS, end)
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        except BaseException:  # Ctrl-C: the reply would be taken for that of the next request
            self._end()
            raise
        finally:
            timer.cancel()
        if reply.endswith(b"\n"):
            return dict(json.loads(reply))
        self._end()
        if late.is_set():
            return {"fault": f"found no end within {SECONDS} s"}
        return {"fault": f"its process ended without an answer; it may take {engine.MAX_MEMORY >> 20} MiB of memory"}

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._process = _start()
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def forget(self) -> None:
        """In a forked process: the process belongs to the parent."""
        self._lock = threading.Lock()
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for
            self._process = None


def _start() -> subprocess.Popen[bytes]:
    import minijinja

    if not sys.executable or getattr(sys, "frozen", False):
        raise UnsupportedError(
            "chat template: there is no Python interpreter to render it in a process of its own; "
            "ChatTemplate(source, trusted=True) renders it in this one"
        )
    folder = Path(minijinja.__file__).parent.parent
    # What is loaded into every process (a sanitizer, say) might not fit into the memory of this one.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", engine.__file__, os.fspath(folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"found {type(value).__name__}")


PROCESS = TemplateProcess()
atexit.register(PROCESS.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS.forget)
