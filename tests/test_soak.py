"""A short run of tools/soak.py; the long one is for releases."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "soak.py"


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be killed by a signal")
def test_conversations_equal_their_replay_whoever_shared_a_batch_and_whatever_was_killed() -> None:
    arguments = ["--minutes", "0.12", "--sessions", "8", "--threads", "4", "--life", "3"]
    run = subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        env={**os.environ, "LOLA_FORCE_ISA": "scalar"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    counts = [int(number) for number in re.findall(r"\d+", run.stdout.splitlines()[-1])]
    assert counts[1] >= 1 and counts[2] > 0
