"""The loop of a measuring process: requests come in on standard input, answers go out on standard output."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def serve(engine: Any) -> None:
    """Calls the engine's methods by name until the input ends. What else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(engine, name)(**arguments)), file=answers, flush=True)


def peak_resident_bytes() -> int:
    """The most memory that this process has had resident, its part of mapped files included."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
