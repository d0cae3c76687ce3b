"""tools/bench: the measuring tool runs, and its limits are limits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lola_cpp import _core

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "python" / "lola_cpp" / "models"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "bench"), "--model", str(MODELS / "tiny.gguf"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("isa", _core.testing.available_isas())
def test_limits_are_rates_that_a_machine_may_have(isa: str) -> None:
    for name, rate in _core.testing.machine_limits(isa, 1).items():
        assert 1e8 < rate < 1e14, name


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bench_measures_our_side_alone(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    rows = ["decode:64@64", "decode:64@0x2", "prefill:64@0", "share", "sampling", "load"]
    adapter = str(MODELS / "tiny-lola.gguf")
    ran = bench("--adapter", adapter, "--rounds", "1", "--json", str(report), "--states", str(tmp_path), *rows)
    assert ran.returncode == 0, ran.stderr
    table = [line for line in ran.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    measured = json.loads(report.read_text())
    assert set(measured["rows"][0]["limits"]) == {"read_bytes", "int8_operations", "float_operations"}
    assert all(row["ours"][0] > 0 and not row["peer"] for row in measured["rows"])


def test_bench_refuses_a_row_that_it_does_not_know() -> None:
    ran = bench("dekode@0")
    assert ran.returncode == 2
    assert "dekode@0" in ran.stderr
