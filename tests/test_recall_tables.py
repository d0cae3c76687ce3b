"""tools/recall_tables.py: parts ask for what a table says, and what is done makes tables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import recall_tables


def given(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["recall_tables.py", "-o", "out", "--types", "a.gguf", "b.gguf", *arguments])
    return recall_tables.parse()


def samples_of(parts: list[recall_tables.Part], start: str) -> list[int]:
    found = [part.arguments for part in parts if part.name.startswith(start)]
    assert len({tuple(a[a.index("--seed") :]) for a in found}) == len(found)  # no two ask the same prompts
    return [int(a[a.index("--samples") + 1]) for a in found]


def test_long_prompts_are_asked_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = recall_tables.parts(given(monkeypatch, "-d", "cuda"))
    assert samples_of(parts, "paper-passkey-512-") == [200]
    assert samples_of(parts, "paper-passkey-16384-") == [32] * 6 + [8]
    assert samples_of(parts, "tasks-variables-32768-") == [16] * 4
    assert samples_of(parts, "paper-needle-16384-") == []
    assert {part.table for part in parts} == set(recall_tables.TABLES)
    assert len({part.name for part in parts}) == len(parts)


def test_less_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = recall_tables.parts(given(monkeypatch, "--share", "0.1", "--longest", "1024", "--only", "paper"))
    assert {part.name: samples_of([part], "") for part in parts} == {
        "paper-passkey-512-0": [20],
        "paper-needle-512-0": [10],
        "paper-passkey-1024-0": [20],
        "paper-needle-1024-0": [10],
    }


def test_what_is_done_makes_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    less = ["--only", "paper", "perplexity", "types", "--longest", "512", "--share", "0.005", "--segments", "1"]
    monkeypatch.setattr(sys, "argv", ["recall_tables.py", "-o", str(tmp_path), *less, "--sparse-sizes", "64"])
    monkeypatch.setattr(recall_tables, "PAPER", {"passkey": (200, 512)})
    assert recall_tables.main() == 0
    text = capsys.readouterr().out
    assert text == (tmp_path / "tables.md").read_text() + "\n"
    assert "| weighted_recall, lambda 64 | 1.000 (0.21 to 1.00) |" in text
    assert "against F16.gguf" in text and "not measured" not in text
    assert (tmp_path / "paper" / "passkey.svg").is_file()
